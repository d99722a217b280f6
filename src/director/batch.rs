//! A batch of frames on its way through the director.

use crate::sys::frames::{Frame, FramePool};
use crate::types::PortId;

use super::Verdict;

pub use crate::wire::Offload;

/// Most frames in a batch. 64 descriptors are what one visit to a ring takes; enough independent cache
/// misses to hide memory, few enough to stay in the first-level cache.
pub const BATCH_SIZE: usize = 64;

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
