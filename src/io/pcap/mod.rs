//! Captures: pcap and pcapng files of Ethernet frames, read and written as streams.
//!
//! [`Reader`] tells the formats apart by itself: classic pcap (draft-ietf-opsawg-pcap) in either byte order with
//! microseconds or nanoseconds, and pcapng (draft-ietf-opsawg-pcapng) with any number of sections and interfaces.
//! [`Writer`] writes the one, [`NgWriter`] the other, whose interfaces have names. Nothing holds more than one block
//! in memory, and every size that a file announces has a limit.
//!
//! Times are nanoseconds since 1970 (UTC), as an [`Instant`] with that origin.

mod classic;
mod input;
mod ng;
mod reader;
#[cfg(test)]
mod tests;
mod writer;

use std::io;

use crate::types::Instant;

pub use reader::Reader;
pub use writer::{NgWriter, Resolution, Writer};

/// Longest frame that is read or written, in bytes: libpcap's own limit (MAXIMUM_SNAPLEN).
pub const MAX_FRAME_LENGTH: usize = 262_144;

/// Longest block of a pcapng file that is looked into, in bytes: the longest frame with 64 KiB of options. Blocks of
/// other kinds are skipped, whatever their length.
pub const MAX_BLOCK_LENGTH: usize = MAX_FRAME_LENGTH + 65_536;

/// Most interfaces in a file, all sections taken together.
pub const MAX_INTERFACES: usize = 1024;

/// Longest name of an interface, in bytes; the rest of a longer one is cut off.
pub const MAX_NAME_LENGTH: usize = 255;

/// LINKTYPE_ETHERNET, the only one that is read and written.
const ETHERNET: u16 = 1;

/// A captured frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Record<'a> {
    /// When, in nanoseconds since 1970. A pcapng simple packet block has no time: it gets that of the frame before.
    pub time: Instant,
    /// Index of the interface in [`Reader::interfaces`].
    pub interface: usize,
    /// Length of the frame on the wire, in bytes; more than there is of it where the capture cut it.
    pub original_length: u32,
    /// The frame, or its beginning.
    pub bytes: &'a [u8],
}

/// An interface that frames were captured on. A classic file has one, without a name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Interface {
    /// Its name, where the file has it.
    pub name: Option<String>,
    /// Longest piece of a frame that was captured, in bytes; 0 for no limit.
    pub snap_length: u32,
    /// LINKTYPE_*; frames of others than Ethernet's are refused.
    link_type: u16,
    clock: Clock,
}

/// What a timestamp counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Clock {
    /// `if_tsresol`: units a second as a negative power, of 2 with the highest bit set, else of 10.
    resolution: u8,
    /// `if_tsoffset`: seconds to add.
    offset: i64,
}

impl Clock {
    const MICROSECONDS: Self = Self { resolution: 6, offset: 0 };
    const NANOSECONDS: Self = Self { resolution: 9, offset: 0 };

    /// The moment that `units` stand for; `None` for one before 1970 or after 2554, where nanoseconds end.
    fn instant(self, units: u64) -> Option<Instant> {
        const SECOND: u128 = 1_000_000_000;
        let exponent = u32::from(self.resolution & 0x7f);
        // Less than 2^64 units times 10^9: no overflow, whatever the resolution.
        let nanoseconds = if self.resolution & 0x80 != 0 {
            (u128::from(units) * SECOND) >> exponent
        } else {
            // A power of ten too large for its type divides to zero.
            10_u128.checked_pow(exponent).map_or(0, |divisor| u128::from(units) * SECOND / divisor)
        };
        let nanoseconds = i128::try_from(nanoseconds).ok()?;
        let total = nanoseconds + i128::from(self.offset) * SECOND as i128;
        u64::try_from(total).ok().map(Instant::from_nanos)
    }
}

/// What is wrong with a capture, and where: offsets count bytes from the start of the file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("byte {offset}: {source}")]
    Read {
        /// Where reading failed.
        offset: u64,
        /// The system's own words.
        source: io::Error,
    },
    /// It begins like neither format. Compressed captures do so, for one.
    #[error("not a pcap or pcapng file: it begins with {found:02x?}")]
    NotACapture {
        /// Its first four bytes.
        found: [u8; 4],
    },
    /// It ends in the middle of something, as a capture does whose writer was killed.
    #[error("byte {offset}: the file ends in the middle of {what}")]
    Truncated {
        /// Where the file ends.
        offset: u64,
        /// What is not whole.
        what: &'static str,
    },
    /// A version of the format that nobody writes any more, or does not write yet.
    #[error("byte {offset}: version {major}.{minor} of the format is not supported")]
    Version {
        /// Where the version is.
        offset: u64,
        /// Its first number.
        major: u16,
        /// Its second number.
        minor: u16,
    },
    /// Frames that are not Ethernet's.
    #[error("byte {offset}: frames of link type {found}; only Ethernet (link type 1) is read")]
    LinkType {
        /// Where the first such frame, or the file's header, begins.
        offset: u64,
        /// LINKTYPE_*
        found: u16,
    },
    /// A frame or block beyond the limits.
    #[error("byte {offset}: a length of {length} bytes, over the limit of {limit}: the file is damaged")]
    TooLong {
        /// Where the frame or block begins.
        offset: u64,
        /// What it announces.
        length: u32,
        /// What is taken.
        limit: usize,
    },
    /// A block that contradicts itself.
    #[error("byte {offset}: {what}: the file is damaged")]
    Damaged {
        /// Where the block begins.
        offset: u64,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A frame of an interface that its section does not describe.
    #[error("byte {offset}: a frame of interface {interface}, which the section does not describe")]
    UnknownInterface {
        /// Where the block begins.
        offset: u64,
        /// The interface's number in its section.
        interface: u32,
    },
    /// More interfaces than are taken.
    #[error("byte {offset}: more than {MAX_INTERFACES} interfaces")]
    TooManyInterfaces {
        /// Where the first too many is described.
        offset: u64,
    },
    /// A time that nanoseconds since 1970 in 64 bits cannot say.
    #[error("byte {offset}: a time before 1970 or after 2554")]
    Time {
        /// Where the block begins.
        offset: u64,
    },
}
