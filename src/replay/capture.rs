//! The captures of a replay: several read as one stream of frames, in the order of their times; and those written.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufReader, BufWriter};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::{ReplayError, Topology};
use crate::io::pcap::{Error, NgWriter, Reader, Resolution, Writer};
use crate::types::{Instant, PortId};

/// Most captures read at a time.
pub const MAX_INPUTS: usize = 64;

/// A captured frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Captured {
    /// When, in nanoseconds since 1970.
    pub(super) time: Instant,
    /// Where it arrives.
    pub(super) port: PortId,
    pub(super) bytes: Vec<u8>,
    /// The capture has only its beginning.
    pub(super) is_cut: bool,
}

/// On which port a capture's frames arrive.
#[derive(Clone, Copy, Debug)]
enum Arrival {
    Always(PortId),
    /// As the capture names its interfaces.
    ByName,
}

/// A capture, opened.
#[derive(Debug)]
struct Source {
    path: PathBuf,
    reader: Reader<BufReader<File>>,
    arrival: Arrival,
    /// Its next frame.
    next: Option<Captured>,
    /// Names of its interfaces that are not the director's: their frames are left out.
    foreign: BTreeSet<String>,
    left_out: u64,
}

/// Why a capture cannot be read, or not to its end.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The file.
    #[error("{}: {source}", .path.display())]
    Format {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        source: Error,
    },
    /// Frames that could have arrived anywhere.
    #[error("{}: it does not name its interfaces: write --in NAME={}", .0.display(), .0.display())]
    NoName(PathBuf),
}

impl Source {
    fn open(path: PathBuf, arrival: Arrival, topology: &Topology) -> Result<Self, CaptureError> {
        let reader = match Reader::open(&path) {
            Ok(reader) => reader,
            Err(source) => return Err(CaptureError::Format { path, source }),
        };
        let mut source = Self { path, reader, arrival, next: None, foreign: BTreeSet::new(), left_out: 0 };
        source.read(topology)?;
        Ok(source)
    }

    /// Reads the next frame that arrives somewhere.
    fn read(&mut self, topology: &Topology) -> Result<(), CaptureError> {
        loop {
            let record = match self.reader.next_record() {
                Ok(record) => record,
                Err(source) => return Err(CaptureError::Format { path: self.path.clone(), source }),
            };
            let Some(record) = record else { return Ok(()) };
            let captured = Captured {
                time: record.time,
                port: PortId(0),
                bytes: record.bytes.to_vec(),
                is_cut: record.original_length as usize > record.bytes.len(),
            };
            let interface = record.interface;
            let port = match self.arrival {
                Arrival::Always(port) => Some(port),
                Arrival::ByName => {
                    let name =
                        self.reader.interfaces().get(interface).and_then(|found| found.name.as_deref());
                    let name = name.ok_or_else(|| CaptureError::NoName(self.path.clone()))?;
                    let port = topology.port(name);
                    if port.is_none() {
                        self.left_out += 1;
                        self.foreign.insert(name.to_owned());
                    }
                    port
                }
            };
            if let Some(port) = port {
                self.next = Some(Captured { port, ..captured });
                return Ok(());
            }
        }
    }
}

/// Several captures as one.
#[derive(Debug)]
pub(super) struct Inputs {
    sources: Vec<Source>,
}

impl Inputs {
    /// Opens captures, each `FILE` or `NAME=FILE`.
    pub(super) fn open(inputs: &[impl AsRef<OsStr>], topology: &Topology) -> Result<Self, ReplayError> {
        if inputs.len() > MAX_INPUTS {
            return Err(ReplayError::TooManyInputs);
        }
        let mut sources = Vec::with_capacity(inputs.len());
        for input in inputs {
            let (name, path) = split(input.as_ref());
            let arrival = match name {
                Some(name) => Arrival::Always(
                    topology.port(name).ok_or_else(|| ReplayError::NoSuchInterface(name.to_owned()))?,
                ),
                None if topology.interfaces().len() == 1 => Arrival::Always(PortId(0)),
                None => Arrival::ByName,
            };
            sources.push(Source::open(path.to_owned(), arrival, topology)?);
        }
        Ok(Self { sources })
    }

    /// The files.
    pub(super) fn paths(&self) -> impl Iterator<Item = &Path> {
        self.sources.iter().map(|source| source.path.as_path())
    }

    /// The time of the next frame.
    pub(super) fn next_time(&self) -> Option<Instant> {
        self.sources.iter().filter_map(|source| source.next.as_ref()).map(|frame| frame.time).min()
    }

    /// Takes the next frame: the earliest one, of the first capture that has one of that time. Also says why the capture
    /// it came from does not go on, if it should.
    pub(super) fn take(&mut self, topology: &Topology) -> (Option<Captured>, Result<(), CaptureError>) {
        let time = self.next_time();
        let is_next = |source: &&mut Source| source.next.as_ref().map(|frame| frame.time) == time;
        let Some(source) = self.sources.iter_mut().filter(|source| source.next.is_some()).find(is_next)
        else {
            return (None, Ok(()));
        };
        let frame = source.next.take();
        (frame, source.read(topology))
    }

    /// Interfaces in the captures that are not the director's, with the file and its number of frames left out.
    pub(super) fn left_out(&self) -> impl Iterator<Item = (&Path, u64, &BTreeSet<String>)> {
        let sources = self.sources.iter().filter(|source| source.left_out > 0);
        sources.map(|source| (source.path.as_path(), source.left_out, &source.foreign))
    }
}

/// `NAME=FILE` apart; a file whose own name has a `=` is written with a folder, as in `./a=b.pcap`.
fn split(input: &OsStr) -> (Option<&str>, &Path) {
    let bytes = input.as_bytes();
    let parts = bytes.iter().position(|&byte| byte == b'=').map(|at| (&bytes[..at], &bytes[at + 1..]));
    match parts.and_then(|(name, path)| Some((std::str::from_utf8(name).ok()?, path))) {
        Some((name, path)) if !name.contains('/') => (Some(name), Path::new(OsStr::from_bytes(path))),
        _ => (None, Path::new(input)),
    }
}

/// A capture that is written.
#[derive(Debug)]
pub(super) enum Sink {
    Classic(Writer<BufWriter<File>>),
    /// Its interfaces are the director's, by port.
    Ng(NgWriter<BufWriter<File>>),
}

impl Sink {
    /// Makes a file: pcapng where its name ends so, else pcap.
    pub(super) fn create(path: &Path, topology: &Topology) -> io::Result<Self> {
        let stream = BufWriter::new(File::create(path)?);
        if !path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("pcapng")) {
            return Ok(Self::Classic(Writer::new(stream, Resolution::Nanoseconds)?));
        }
        let mut writer = NgWriter::new(stream)?;
        for interface in topology.interfaces() {
            writer.add_interface(&interface.name)?;
        }
        Ok(Self::Ng(writer))
    }

    pub(super) fn write(&mut self, port: PortId, time: Instant, bytes: &[u8]) -> io::Result<()> {
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        match self {
            Self::Classic(writer) => writer.write(time, length, bytes),
            Self::Ng(writer) => writer.write(port.0.into(), time, length, bytes),
        }
    }

    pub(super) fn finish(self) -> io::Result<()> {
        match self {
            Self::Classic(writer) => writer.finish().map(drop),
            Self::Ng(writer) => writer.finish().map(drop),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_is_named_before_the_first_sign_of_equality() {
        let split = |text: &'static str| {
            let (name, path) = split(OsStr::new(text));
            (name.map(str::to_owned), path.to_str().unwrap().to_owned())
        };
        assert_eq!(split("a.pcap"), (None, "a.pcap".to_owned()));
        assert_eq!(split("c=a=b.pcap"), (Some("c".to_owned()), "a=b.pcap".to_owned()));
        assert_eq!(split("./c=a.pcap"), (None, "./c=a.pcap".to_owned()));
    }
}
