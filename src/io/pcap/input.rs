//! A byte stream that knows how far it has come.

use std::io::{ErrorKind, Read};

use super::Error;

/// Bytes skipped at a time.
const SKIP: usize = 4096;

#[derive(Debug)]
pub(super) struct Input<R> {
    stream: R,
    offset: u64,
}

impl<R: Read> Input<R> {
    pub(super) const fn new(stream: R) -> Self {
        Self { stream, offset: 0 }
    }

    /// Bytes read so far.
    pub(super) const fn offset(&self) -> u64 {
        self.offset
    }

    /// Fills `buffer` with the next bytes, which belong to `what`.
    pub(super) fn fill(&mut self, buffer: &mut [u8], what: &'static str) -> Result<(), Error> {
        match self.read_up_to(buffer)? {
            read if read == buffer.len() => Ok(()),
            _ => Err(Error::Truncated { offset: self.offset, what }),
        }
    }

    /// The next bytes, which begin `what`; `None` where the stream ends in front of them.
    pub(super) fn next<const N: usize>(&mut self, what: &'static str) -> Result<Option<[u8; N]>, Error> {
        let mut bytes = [0; N];
        match self.read_up_to(&mut bytes)? {
            0 => Ok(None),
            read if read == N => Ok(Some(bytes)),
            _ => Err(Error::Truncated { offset: self.offset, what }),
        }
    }

    /// Steps over `count` bytes of `what`.
    pub(super) fn skip(&mut self, mut count: usize, what: &'static str) -> Result<(), Error> {
        let mut buffer = [0; SKIP];
        while count > 0 {
            let piece = count.min(SKIP);
            self.fill(&mut buffer[..piece], what)?;
            count -= piece;
        }
        Ok(())
    }

    /// Reads until `buffer` is full or the stream ends; says how many bytes.
    fn read_up_to(&mut self, buffer: &mut [u8]) -> Result<usize, Error> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.stream.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(count) => {
                    filled += count;
                    self.offset += count as u64;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(source) => return Err(Error::Read { offset: self.offset, source }),
            }
        }
        Ok(filled)
    }
}

/// In which order a file has the bytes of its numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ByteOrder {
    Big,
    Little,
}

impl ByteOrder {
    pub(super) const fn u16(self, bytes: [u8; 2]) -> u16 {
        match self {
            Self::Big => u16::from_be_bytes(bytes),
            Self::Little => u16::from_le_bytes(bytes),
        }
    }

    pub(super) const fn u32(self, bytes: [u8; 4]) -> u32 {
        match self {
            Self::Big => u32::from_be_bytes(bytes),
            Self::Little => u32::from_le_bytes(bytes),
        }
    }

    /// Four numbers in a row.
    pub(super) fn u32s(self, bytes: [u8; 16]) -> [u32; 4] {
        let mut numbers = [0; 4];
        for (number, &word) in numbers.iter_mut().zip(bytes.as_chunks().0) {
            *number = self.u32(word);
        }
        numbers
    }

    pub(super) const fn i64(self, bytes: [u8; 8]) -> i64 {
        match self {
            Self::Big => i64::from_be_bytes(bytes),
            Self::Little => i64::from_le_bytes(bytes),
        }
    }
}

/// The fields of a block, taken one after the other; each is `None` where the block is too short.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fields<'a> {
    pub(super) order: ByteOrder,
    pub(super) rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(super) fn u16(&mut self) -> Option<u16> {
        let (&bytes, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        Some(self.order.u16(bytes))
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        let (&bytes, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        Some(self.order.u32(bytes))
    }

    /// The next `length` bytes, and past the padding that brings them to a multiple of four; padding that the block
    /// ends in is not missed.
    pub(super) fn padded(&mut self, length: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.rest.split_at_checked(length)?;
        let padding = length.next_multiple_of(4) - length;
        self.rest = rest.get(padding..).unwrap_or_default();
        Some(bytes)
    }
}
