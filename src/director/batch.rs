//! A batch of frames on its way through the director.

use crate::sys::frames::{Frame, FramePool};
use crate::types::PortId;
use crate::wire::Parsed;

use super::Verdict;

/// Most frames in a batch. 64 descriptors are what one visit to a ring takes; enough independent cache
/// misses to hide memory, few enough to stay in the first-level cache.
pub const BATCH_SIZE: usize = 64;

/// What the sender left for a network card to do, as a virtio-net header says it. All zero: nothing.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Offload {
    /// The checksum field holds only the pseudo-header's sum: it is to be completed over the bytes from
    /// `checksum_start` (from the start of the frame) into the field at `checksum_start + checksum_offset`.
    pub needs_checksum: bool,
    /// Offset of the first summed byte from the start of the frame.
    pub checksum_start: u16,
    /// Offset of the checksum field from `checksum_start`.
    pub checksum_offset: u16,
    /// VIRTIO_NET_HDR_GSO_*: how the frame is to be cut into segments; 0 for not at all.
    pub segmentation: u8,
    /// Bytes of headers that every segment repeats.
    pub header_length: u16,
    /// Payload bytes in each segment.
    pub segment_size: u16,
}

impl Offload {
    /// The largest IP packet that will be on the wire: a segment, where the frame is to be cut.
    #[inline]
    pub fn largest_packet(&self, packet: &Parsed) -> u32 {
        if self.segmentation == 0 {
            return packet.ip_length;
        }
        let headers = self.header_length.saturating_sub(packet.ip_offset);
        (u32::from(headers) + u32::from(self.segment_size)).min(packet.ip_length)
    }

    /// Keeps the offsets right after a link header of `before` bytes was replaced by one of `after`.
    #[inline]
    pub fn link_header_replaced(&mut self, before: u16, after: u16) {
        if self.needs_checksum {
            self.checksum_start = self.checksum_start.saturating_sub(before).saturating_add(after);
        }
        if self.segmentation != 0 {
            self.header_length = self.header_length.saturating_sub(before).saturating_add(after);
        }
    }
}

/// One frame of a batch: where it came from, and what became of it.
#[derive(Debug)]
pub struct Entry {
    /// The frame.
    pub frame: Frame,
    /// The port it arrived on.
    pub port: PortId,
    /// What is left to do on the way out.
    pub offload: Offload,
    /// Set by the director: what to do with the frame.
    pub verdict: Verdict,
}

/// Up to [`BATCH_SIZE`] frames. Allocated once per worker.
#[derive(Debug)]
pub struct Batch {
    entries: Vec<Entry>,
}

impl Default for Batch {
    fn default() -> Self {
        Self::new()
    }
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self { entries: Vec::with_capacity(BATCH_SIZE) }
    }

    /// Frames that still fit.
    #[inline]
    pub fn room(&self) -> usize {
        BATCH_SIZE - self.entries.len()
    }

    /// Frames in it.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether it holds no frame.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Appends a received frame.
    ///
    /// # Errors
    /// The frame comes back where the batch is full.
    #[inline]
    pub fn push(&mut self, frame: Frame, port: PortId, offload: Offload) -> Result<(), Frame> {
        if self.room() == 0 {
            return Err(frame);
        }
        self.entries.push(Entry { frame, port, offload, verdict: Verdict::Undecided });
        Ok(())
    }

    /// Appends a frame with its verdict; the caller has seen to [`room`](Self::room).
    pub(super) fn push_decided(&mut self, frame: Frame, port: PortId, offload: Offload, verdict: Verdict) {
        self.entries.push(Entry { frame, port, offload, verdict });
    }

    /// Takes one entry out; those behind it move up.
    pub(super) fn take(&mut self, position: usize) -> Entry {
        self.entries.remove(position)
    }

    /// The frames, in order of arrival.
    #[inline]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The frames, to decide about.
    #[inline]
    pub fn entries_mut(&mut self) -> &mut [Entry] {
        &mut self.entries
    }

    /// Takes all frames out, in order of arrival, leaving the batch empty and its memory in place.
    #[inline]
    pub fn drain(&mut self) -> impl Iterator<Item = Entry> {
        self.entries.drain(..)
    }

    /// Gives all frames back to their pool.
    #[inline]
    pub fn clear(&mut self, frames: &mut FramePool) {
        for entry in self.entries.drain(..) {
            frames.free(entry.frame);
        }
    }
}
