//! pcapng (draft-ietf-opsawg-pcapng): sections of blocks, some of which describe interfaces and some hold frames.

use std::io::Read;

use crate::types::Instant;

use super::input::{ByteOrder, Fields, Input};
use super::{
    Clock, ETHERNET, Error, Interface, MAX_BLOCK_LENGTH, MAX_FRAME_LENGTH, MAX_INTERFACES, MAX_NAME_LENGTH,
    Record,
};

/// Type of a section header block; the same in both byte orders.
pub(super) const SECTION_HEADER: u32 = 0x0a0d_0d0a;
/// Type of an interface description block.
pub(super) const INTERFACE_DESCRIPTION: u32 = 1;
/// Type of a packet block: obsolete, but still a frame.
pub(super) const PACKET: u32 = 2;
/// Type of a simple packet block.
pub(super) const SIMPLE_PACKET: u32 = 3;
/// Type of an enhanced packet block.
pub(super) const ENHANCED_PACKET: u32 = 6;

/// The number that tells a section's byte order.
pub(super) const BYTE_ORDER_MAGIC: u32 = 0x1a2b_3c4d;
/// Major version of the format; its minor versions are 0 and, by mistake of an early writer, 2.
pub(super) const VERSION: u16 = 1;

/// Option: nothing follows.
pub(super) const END_OF_OPTIONS: u16 = 0;
/// Option of an interface: its name.
pub(super) const INTERFACE_NAME: u16 = 2;
/// Option of an interface: what its timestamps count.
pub(super) const TIME_RESOLUTION: u16 = 9;
/// Option of an interface: seconds to add to its timestamps.
pub(super) const TIME_OFFSET: u16 = 14;

/// Bytes of a block without a body: type, length, and the length again at the end.
pub(super) const BLOCK_OVERHEAD: usize = 12;
/// Bytes of type and length in front of a body.
const BLOCK_START: usize = 8;

/// What a block was.
enum Block {
    /// Nothing to hand out.
    Other,
    /// A frame; where in the buffer it is.
    Frame { time: Instant, interface: usize, original_length: u32, start: usize, length: usize },
}

/// Where in a pcapng file the reader is: between two blocks.
#[derive(Debug)]
pub(super) struct Ng {
    order: ByteOrder,
    /// Index in the file's interfaces of the section's first.
    section_start: usize,
    /// Time of the last frame that had one.
    last_time: Instant,
}

impl Ng {
    /// Reads the rest of the first section header block, behind its type.
    pub(super) fn start<R: Read>(input: &mut Input<R>, buffer: &mut Vec<u8>) -> Result<Self, Error> {
        let mut ng = Self { order: ByteOrder::Little, section_start: 0, last_time: Instant::ZERO };
        let mut length = [0; 4];
        let offset = input.offset().saturating_sub(4);
        input.fill(&mut length, "the section header")?;
        ng.section_header(input, offset, length, buffer)?;
        Ok(ng)
    }

    /// Reads blocks until one is a frame; `None` at the end of the file.
    pub(super) fn next<'a, R: Read>(
        &mut self,
        input: &mut Input<R>,
        interfaces: &mut Vec<Interface>,
        buffer: &'a mut Vec<u8>,
    ) -> Result<Option<Record<'a>>, Error> {
        loop {
            let offset = input.offset();
            let Some([t0, t1, t2, t3, length @ ..]) = input.next::<BLOCK_START>("a block's header")? else {
                return Ok(None);
            };
            let block_type = self.order.u32([t0, t1, t2, t3]);
            let block = if block_type == SECTION_HEADER {
                self.section_header(input, offset, length, buffer)?;
                self.section_start = interfaces.len();
                Block::Other
            } else {
                self.block(input, offset, block_type, length, interfaces, buffer)?
            };
            if let Block::Frame { time, interface, original_length, start, length } = block {
                self.last_time = time;
                let bytes = &buffer[start..start + length];
                return Ok(Some(Record { time, interface, original_length, bytes }));
            }
        }
    }

    /// Reads a section header from behind its length on, which is needed to know in which order that length is.
    fn section_header<R: Read>(
        &mut self,
        input: &mut Input<R>,
        offset: u64,
        length: [u8; 4],
        buffer: &mut Vec<u8>,
    ) -> Result<(), Error> {
        const WHAT: &str = "a section header";
        let mut fixed = [0; 8];
        input.fill(&mut fixed, WHAT)?;
        let [m0, m1, m2, m3, v0, v1, v2, v3] = fixed;
        self.order = [ByteOrder::Big, ByteOrder::Little]
            .into_iter()
            .find(|order| order.u32([m0, m1, m2, m3]) == BYTE_ORDER_MAGIC)
            .ok_or(Error::Damaged { offset, what: "a section header without its byte order" })?;
        let (major, minor) = (self.order.u16([v0, v1]), self.order.u16([v2, v3]));
        if major != VERSION {
            return Err(Error::Version { offset: offset + 12, major, minor });
        }
        // Section length (8 bytes) and options are of no use here; the length at the end is checked.
        let body = body_length(offset, self.order.u32(length))?;
        let rest = body
            .checked_sub(fixed.len() + 8)
            .ok_or(Error::Damaged { offset, what: "a section header shorter than it must be" })?;
        input.skip(rest + 8, WHAT)?;
        self.end(input, offset, length)?;
        buffer.clear();
        Ok(())
    }

    /// Reads or skips a block from its body on.
    fn block<R: Read>(
        &mut self,
        input: &mut Input<R>,
        offset: u64,
        block_type: u32,
        length: [u8; 4],
        interfaces: &mut Vec<Interface>,
        buffer: &mut Vec<u8>,
    ) -> Result<Block, Error> {
        const WHAT: &str = "a block";
        let announced = self.order.u32(length);
        let body = body_length(offset, announced)?;
        if !matches!(block_type, INTERFACE_DESCRIPTION | PACKET | SIMPLE_PACKET | ENHANCED_PACKET) {
            input.skip(body, WHAT)?;
            self.end(input, offset, length)?;
            return Ok(Block::Other);
        }
        if announced as usize > MAX_BLOCK_LENGTH {
            return Err(Error::TooLong { offset, length: announced, limit: MAX_BLOCK_LENGTH });
        }
        buffer.resize(body, 0);
        input.fill(buffer, WHAT)?;
        self.end(input, offset, length)?;
        let fields = Fields { order: self.order, rest: buffer };
        if block_type == INTERFACE_DESCRIPTION {
            if interfaces.len() == MAX_INTERFACES {
                return Err(Error::TooManyInterfaces { offset });
            }
            let short = Error::Damaged { offset, what: "an interface description shorter than it must be" };
            interfaces.push(describe(fields).ok_or(short)?);
            return Ok(Block::Other);
        }
        let described = interfaces.get(self.section_start..).unwrap_or_default();
        self.frame(offset, block_type, fields, described)
    }

    /// Reads the length at the end of a block, which repeats the one at its beginning.
    fn end<R: Read>(&self, input: &mut Input<R>, offset: u64, length: [u8; 4]) -> Result<(), Error> {
        let mut repeated = [0; 4];
        input.fill(&mut repeated, "a block")?;
        if repeated == length {
            Ok(())
        } else {
            Err(Error::Damaged { offset, what: "a block whose two lengths differ" })
        }
    }

    /// A block that holds a frame. `described` are the section's interfaces.
    fn frame(
        &self,
        offset: u64,
        block_type: u32,
        mut fields: Fields<'_>,
        described: &[Interface],
    ) -> Result<Block, Error> {
        let body = fields.rest.len();
        let header = FrameHeader::read(block_type, &mut fields, described)
            .ok_or(Error::Damaged { offset, what: "a packet block shorter than it must be" })?;
        let interface = described
            .get(header.interface as usize)
            .ok_or(Error::UnknownInterface { offset, interface: header.interface })?;
        if interface.link_type != ETHERNET {
            return Err(Error::LinkType { offset, found: interface.link_type });
        }
        let length = header.length as usize;
        if length > MAX_FRAME_LENGTH {
            return Err(Error::TooLong { offset, length: header.length, limit: MAX_FRAME_LENGTH });
        }
        let start = body - fields.rest.len();
        if length > fields.rest.len() {
            return Err(Error::Damaged { offset, what: "a frame longer than its block" });
        }
        let time = match header.units {
            Some(units) => interface.clock.instant(units).ok_or(Error::Time { offset })?,
            None => self.last_time,
        };
        let interface = self.section_start + header.interface as usize;
        Ok(Block::Frame { time, interface, original_length: header.original_length, start, length })
    }
}

/// What the three kinds of blocks that hold frames have in front of them.
struct FrameHeader {
    /// The interface's number in the section.
    interface: u32,
    /// The time, in the interface's units.
    units: Option<u64>,
    length: u32,
    original_length: u32,
}

impl FrameHeader {
    /// Leaves `fields` at the frame.
    fn read(block_type: u32, fields: &mut Fields<'_>, described: &[Interface]) -> Option<Self> {
        if block_type == SIMPLE_PACKET {
            let original_length = fields.u32()?;
            // Only the interface's limit tells how much of the frame is there (section 4.4).
            let limit = described.first().map_or(0, |interface| interface.snap_length);
            let length = if limit == 0 { original_length } else { original_length.min(limit) };
            return Some(Self { interface: 0, units: None, length, original_length });
        }
        let interface = if block_type == PACKET {
            let interface = fields.u16()?;
            let _frames_lost = fields.u16()?;
            u32::from(interface)
        } else {
            fields.u32()?
        };
        let (high, low) = (fields.u32()?, fields.u32()?);
        let (length, original_length) = (fields.u32()?, fields.u32()?);
        Some(Self { interface, units: Some(u64::from(high) << 32 | u64::from(low)), length, original_length })
    }
}

/// Length of the body of a block that announces `length` bytes in all.
fn body_length(offset: u64, length: u32) -> Result<usize, Error> {
    if !length.is_multiple_of(4) {
        return Err(Error::Damaged { offset, what: "a block whose length is no multiple of four" });
    }
    (length as usize)
        .checked_sub(BLOCK_OVERHEAD)
        .ok_or(Error::Damaged { offset, what: "a block shorter than its own frame" })
}

/// What an interface description says; `None` where it is cut off.
fn describe(mut fields: Fields<'_>) -> Option<Interface> {
    let link_type = fields.u16()?;
    let _reserved = fields.u16()?;
    let snap_length = fields.u32()?;
    let mut interface = Interface { name: None, snap_length, link_type, clock: Clock::MICROSECONDS };
    // Each option takes four bytes at least: the block's length bounds the loop. Options may just end.
    while let (Some(code), Some(length)) = (fields.u16(), fields.u16()) {
        let value = fields.padded(length.into())?;
        match (code, value) {
            (END_OF_OPTIONS, _) => break,
            (INTERFACE_NAME, _) => {
                let name = &value[..value.len().min(MAX_NAME_LENGTH)];
                interface.name = Some(String::from_utf8_lossy(name).into_owned());
            }
            (TIME_RESOLUTION, &[resolution]) => interface.clock.resolution = resolution,
            (TIME_OFFSET, &[a, b, c, d, e, f, g, h]) => {
                interface.clock.offset = fields.order.i64([a, b, c, d, e, f, g, h]);
            }
            _ => {}
        }
    }
    Some(interface)
}
