//! Captures, written frame by frame.

use std::io::{self, Write};

use crate::types::Instant;

use super::{ETHERNET, MAX_FRAME_LENGTH, MAX_INTERFACES, MAX_NAME_LENGTH, classic, ng};

/// What the times of a classic file count.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Resolution {
    /// Microseconds, rounded down: what every reader understands.
    Microseconds,
    /// Nanoseconds.
    Nanoseconds,
}

/// Writes a classic pcap file, in little-endian order. Best give it a buffered stream.
#[derive(Debug)]
pub struct Writer<W> {
    stream: W,
    resolution: Resolution,
}

impl<W: Write> Writer<W> {
    /// Begins a file.
    ///
    /// # Errors
    /// The stream's own.
    pub fn new(mut stream: W, resolution: Resolution) -> io::Result<Self> {
        let magic = match resolution {
            Resolution::Microseconds => classic::MAGIC_MICROSECONDS,
            Resolution::Nanoseconds => classic::MAGIC_NANOSECONDS,
        };
        let mut header = Vec::with_capacity(24);
        header.extend(magic.to_le_bytes());
        header.extend(classic::VERSION.0.to_le_bytes());
        header.extend(classic::VERSION.1.to_le_bytes());
        header.extend([0; 8]); // the time zone and its accuracy: always zero
        header.extend((MAX_FRAME_LENGTH as u32).to_le_bytes());
        header.extend(u32::from(ETHERNET).to_le_bytes());
        stream.write_all(&header)?;
        Ok(Self { stream, resolution })
    }

    /// Writes a frame, of which there were `original_length` bytes.
    ///
    /// # Errors
    /// Invalid input for a frame over [`MAX_FRAME_LENGTH`] or a time after 2106, where the format's seconds end; else
    /// the stream's own.
    pub fn write(&mut self, time: Instant, original_length: u32, bytes: &[u8]) -> io::Result<()> {
        let length = frame_length(bytes)?;
        let seconds = u32::try_from(time.as_nanos() / 1_000_000_000)
            .map_err(|_| invalid("a time after 2106, which a classic pcap file cannot say"))?;
        let nanoseconds = (time.as_nanos() % 1_000_000_000) as u32;
        let fraction = match self.resolution {
            Resolution::Microseconds => nanoseconds / 1000,
            Resolution::Nanoseconds => nanoseconds,
        };
        let mut header = [0; 16];
        for (place, number) in
            header.as_chunks_mut::<4>().0.iter_mut().zip([seconds, fraction, length, original_length])
        {
            *place = number.to_le_bytes();
        }
        self.stream.write_all(&header)?;
        self.stream.write_all(bytes)
    }

    /// Gives the stream back, flushed.
    ///
    /// # Errors
    /// The stream's own.
    pub fn finish(mut self) -> io::Result<W> {
        self.stream.flush()?;
        Ok(self.stream)
    }
}

/// Writes a pcapng file of one section, in little-endian order, with times in nanoseconds. Best give it a buffered
/// stream.
#[derive(Debug)]
pub struct NgWriter<W> {
    stream: W,
    interfaces: u32,
    block: Vec<u8>,
}

impl<W: Write> NgWriter<W> {
    /// Begins a file.
    ///
    /// # Errors
    /// The stream's own.
    pub fn new(stream: W) -> io::Result<Self> {
        let mut writer = Self { stream, interfaces: 0, block: Vec::new() };
        writer.begin(ng::SECTION_HEADER);
        writer.block.extend(ng::BYTE_ORDER_MAGIC.to_le_bytes());
        writer.block.extend(ng::VERSION.to_le_bytes());
        writer.block.extend([0; 2]); // minor version
        writer.block.extend([0xff; 8]); // a section of unknown length
        writer.end()?;
        Ok(writer)
    }

    /// Describes an interface, and returns its number for [`write`](Self::write). Of a longer name, the first
    /// [`MAX_NAME_LENGTH`] bytes (whole characters) are written.
    ///
    /// # Errors
    /// Invalid input where there are [`MAX_INTERFACES`] already; else the stream's own.
    pub fn add_interface(&mut self, name: &str) -> io::Result<u32> {
        if self.interfaces as usize == MAX_INTERFACES {
            return Err(invalid("too many interfaces for one capture"));
        }
        let name = &name[..name.floor_char_boundary(MAX_NAME_LENGTH)];
        self.begin(ng::INTERFACE_DESCRIPTION);
        self.block.extend(ETHERNET.to_le_bytes());
        self.block.extend([0; 2]);
        self.block.extend((MAX_FRAME_LENGTH as u32).to_le_bytes());
        self.option(ng::INTERFACE_NAME, name.as_bytes());
        self.option(ng::TIME_RESOLUTION, &[9]);
        self.option(ng::END_OF_OPTIONS, &[]);
        self.end()?;
        self.interfaces += 1;
        Ok(self.interfaces - 1)
    }

    /// Writes a frame of an interface, of which there were `original_length` bytes.
    ///
    /// # Errors
    /// Invalid input for a frame over [`MAX_FRAME_LENGTH`] or an interface that was not added; else the stream's own.
    pub fn write(
        &mut self,
        interface: u32,
        time: Instant,
        original_length: u32,
        bytes: &[u8],
    ) -> io::Result<()> {
        let length = frame_length(bytes)?;
        if interface >= self.interfaces {
            return Err(invalid("a frame of an interface that was not added"));
        }
        let (high, low) = ((time.as_nanos() >> 32) as u32, time.as_nanos() as u32);
        self.begin(ng::ENHANCED_PACKET);
        self.block
            .extend([interface, high, low, length, original_length].map(u32::to_le_bytes).as_flattened());
        self.padded(bytes);
        self.end()
    }

    /// Gives the stream back, flushed.
    ///
    /// # Errors
    /// The stream's own.
    pub fn finish(mut self) -> io::Result<W> {
        self.stream.flush()?;
        Ok(self.stream)
    }

    /// Begins a block: its type, and room for its length.
    fn begin(&mut self, block_type: u32) {
        self.block.clear();
        self.block.extend(block_type.to_le_bytes());
        self.block.extend([0; 4]);
    }

    fn option(&mut self, code: u16, value: &[u8]) {
        self.block.extend(code.to_le_bytes());
        self.block.extend((value.len() as u16).to_le_bytes());
        self.padded(value);
    }

    fn padded(&mut self, bytes: &[u8]) {
        self.block.extend(bytes);
        self.block.resize(self.block.len().next_multiple_of(4), 0);
    }

    /// Fills in the length, at both ends of the block, and writes it.
    fn end(&mut self) -> io::Result<()> {
        let length = (self.block.len() as u32 + 4).to_le_bytes();
        self.block[4..8].copy_from_slice(&length);
        self.block.extend(length);
        self.stream.write_all(&self.block)
    }
}

fn frame_length(bytes: &[u8]) -> io::Result<u32> {
    u32::try_from(bytes.len())
        .ok()
        .filter(|&length| length as usize <= MAX_FRAME_LENGTH)
        .ok_or_else(|| invalid("a frame too long for a capture"))
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what)
}
