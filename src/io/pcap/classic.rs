//! Classic pcap (draft-ietf-opsawg-pcap): a file header, then frames behind short headers.

use std::io::Read;

use crate::types::Instant;

use super::input::{ByteOrder, Input};
use super::{Clock, ETHERNET, Error, Interface, MAX_FRAME_LENGTH, Record};

/// First number of a file with microseconds.
pub(super) const MAGIC_MICROSECONDS: u32 = 0xa1b2_c3d4;
/// First number of a file with nanoseconds.
pub(super) const MAGIC_NANOSECONDS: u32 = 0xa1b2_3c4d;
/// The version that everybody writes, since 1998.
pub(super) const VERSION: (u16, u16) = (2, 4);
/// Bytes of the file header behind the magic number.
const HEADER_REST: usize = 20;

/// What the file's first four bytes say; `None` where this is another format.
pub(super) fn recognise(magic: [u8; 4]) -> Option<(ByteOrder, Clock)> {
    [ByteOrder::Big, ByteOrder::Little].into_iter().find_map(|order| match order.u32(magic) {
        MAGIC_MICROSECONDS => Some((order, Clock::MICROSECONDS)),
        MAGIC_NANOSECONDS => Some((order, Clock::NANOSECONDS)),
        _ => None,
    })
}

/// Where in a classic file the reader is: behind its header.
#[derive(Debug)]
pub(super) struct Classic {
    order: ByteOrder,
    /// Nanoseconds in one unit of a time's second half.
    nanoseconds: u64,
}

impl Classic {
    /// Reads the rest of the file header.
    pub(super) fn start<R: Read>(
        input: &mut Input<R>,
        order: ByteOrder,
        clock: Clock,
    ) -> Result<(Self, Interface), Error> {
        let offset = input.offset();
        let mut header = [0; HEADER_REST];
        input.fill(&mut header, "the file header")?;
        let [v0, v1, v2, v3, _zone @ .., _, _, _, _, s0, s1, s2, s3, l0, l1, l2, l3] = header;
        let (major, minor) = (order.u16([v0, v1]), order.u16([v2, v3]));
        if (major, minor) != VERSION {
            return Err(Error::Version { offset, major, minor });
        }
        // The upper half of the link type says how long a checksum behind each frame is: to readers, padding.
        let link_type = order.u32([l0, l1, l2, l3]) as u16;
        if link_type != ETHERNET {
            return Err(Error::LinkType { offset: offset + 16, found: link_type });
        }
        let interface = Interface { name: None, snap_length: order.u32([s0, s1, s2, s3]), link_type, clock };
        let nanoseconds = if clock == Clock::NANOSECONDS { 1 } else { 1000 };
        Ok((Self { order, nanoseconds }, interface))
    }

    /// Reads the next frame into `buffer`; `None` at the end of the file.
    pub(super) fn next<'a, R: Read>(
        &self,
        input: &mut Input<R>,
        buffer: &'a mut Vec<u8>,
    ) -> Result<Option<Record<'a>>, Error> {
        let offset = input.offset();
        let Some(header) = input.next::<16>("a frame's header")? else { return Ok(None) };
        let [seconds, fraction, length, original_length] = self.order.u32s(header);
        if length as usize > MAX_FRAME_LENGTH {
            return Err(Error::TooLong { offset, length, limit: MAX_FRAME_LENGTH });
        }
        buffer.resize(length as usize, 0);
        input.fill(buffer, "a frame")?;
        // At most 2^32 seconds and as many microseconds: far from overflow.
        let time = u64::from(seconds) * 1_000_000_000 + u64::from(fraction) * self.nanoseconds;
        let time = Instant::from_nanos(time);
        Ok(Some(Record { time, interface: 0, original_length, bytes: buffer }))
    }
}
