//! A capture of either format, read frame by frame.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use super::classic::{self, Classic};
use super::input::Input;
use super::ng::{self, Ng};
use super::{Error, Interface, Record};

/// Reads the frames of a capture.
#[derive(Debug)]
pub struct Reader<R> {
    input: Input<R>,
    format: Format,
    interfaces: Vec<Interface>,
    buffer: Vec<u8>,
    finished: bool,
}

#[derive(Debug)]
enum Format {
    Classic(Classic),
    Ng(Ng),
}

impl Reader<BufReader<File>> {
    /// Opens a file.
    ///
    /// # Errors
    /// The file cannot be read, or is no capture.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let file = File::open(path).map_err(|source| Error::Read { offset: 0, source })?;
        Self::new(BufReader::new(file))
    }
}

impl<R: Read> Reader<R> {
    /// Begins to read a stream, best a buffered one.
    ///
    /// # Errors
    /// The stream cannot be read, or is no capture.
    pub fn new(stream: R) -> Result<Self, Error> {
        let mut input = Input::new(stream);
        let mut buffer = Vec::new();
        let Some(magic) = input.next("the file header")? else {
            return Err(Error::Truncated { offset: 0, what: "the file header" });
        };
        let (format, interfaces) = if let Some((order, clock)) = classic::recognise(magic) {
            let (classic, interface) = Classic::start(&mut input, order, clock)?;
            (Format::Classic(classic), vec![interface])
        } else if u32::from_be_bytes(magic) == ng::SECTION_HEADER {
            (Format::Ng(Ng::start(&mut input, &mut buffer)?), Vec::new())
        } else {
            return Err(Error::NotACapture { found: magic });
        };
        Ok(Self { input, format, interfaces, buffer, finished: false })
    }

    /// The next frame; `None` at the end of the capture, and after an error.
    ///
    /// # Errors
    /// What is wrong with the capture, and where. What was read before it stands.
    pub fn next_record(&mut self) -> Result<Option<Record<'_>>, Error> {
        if self.finished {
            return Ok(None);
        }
        // Undone by a frame that could be read.
        self.finished = true;
        let record = match &mut self.format {
            Format::Classic(classic) => classic.next(&mut self.input, &mut self.buffer),
            Format::Ng(ng) => ng.next(&mut self.input, &mut self.interfaces, &mut self.buffer),
        }?;
        self.finished = record.is_none();
        Ok(record)
    }

    /// The interfaces described so far, in the order of the file; those of all sections. Of a pcapng file that has a
    /// description in front of each interface's first frame, all that [`Record::interface`] may name.
    pub fn interfaces(&self) -> &[Interface] {
        &self.interfaces
    }

    /// Bytes of the capture that were read.
    pub fn offset(&self) -> u64 {
        self.input.offset()
    }
}
