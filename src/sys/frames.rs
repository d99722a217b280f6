//! Frames: buffers with room in front, each owned by exactly one holder.
//!
//! A worker has one [`FramePool`], a single mapping cut into equal chunks. AF_XDP sockets register the mapping
//! as their UMEM; raw sockets, captures and tests read into the same chunks, so that everything above sees
//! one kind of frame. A [`Frame`] is a handle: it is not `Clone`, and whoever holds it owns the chunk, so the
//! pool can hand out `&mut [u8]` without checking anything at run time but that the frame is its own.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

use super::memory::Mapping;
use super::xsk::Registration;

/// Bytes kept free in front of a received frame: what AF_XDP keeps (XDP_PACKET_HEADROOM), enough for any
/// encapsulation.
pub const HEADROOM: usize = 256;

/// The owner of one chunk of a [`FramePool`], and where in it the frame's bytes are.
///
/// Give it back with [`FramePool::free`]; a frame that is dropped instead stays lost to its pool.
#[derive(Debug)]
#[must_use = "a frame that is dropped is lost to its pool"]
pub struct Frame {
    pool: u32,
    chunk: u32,
    start: u32,
    length: u32,
}

impl Frame {
    /// Length of the frame in bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.length as usize
    }

    /// Whether the frame has no bytes.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Bytes that [`grow_front`](Self::grow_front) may still take.
    pub fn headroom(&self) -> usize {
        self.start as usize
    }

    /// Extends the frame by `count` bytes at the front, whose contents are whatever was there.
    /// Says false and changes nothing where the chunk has no such room.
    #[inline]
    #[must_use]
    pub fn grow_front(&mut self, count: usize) -> bool {
        match u32::try_from(count).ok().and_then(|count| self.start.checked_sub(count)) {
            Some(start) => {
                self.length += self.start - start;
                self.start = start;
                true
            }
            None => false,
        }
    }

    /// Takes `count` bytes off the front; all of them where there are fewer.
    #[inline]
    pub fn shrink_front(&mut self, count: usize) {
        let count = u32::try_from(count).unwrap_or(u32::MAX).min(self.length);
        self.start += count;
        self.length -= count;
    }

    /// Cuts the frame to its first `length` bytes; nothing happens where it is shorter.
    #[inline]
    pub fn truncate(&mut self, length: usize) {
        self.length = self.length.min(u32::try_from(length).unwrap_or(u32::MAX));
    }
}

/// Equal chunks of one mapping, and the list of those that nobody owns.
#[derive(Debug)]
pub struct FramePool {
    id: u32,
    mapping: Mapping,
    chunk_size: usize,
    chunks: u32,
    free: Vec<u32>,
    /// Per chunk, who in the kernel has it; 0 where nobody there does.
    holders: Vec<u32>,
    /// The kernel's registrations of the mapping, as long as the sockets that made them live.
    pub(in crate::sys) registrations: Vec<Registration>,
}

/// One pair of the kernel's rings that chunks of one pool are handed to: what comes back is checked against it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::sys) struct Holder {
    id: u32,
    pool: u32,
}

/// Holders told apart. 0 is nobody.
static NEXT_HOLDER: AtomicU32 = AtomicU32::new(1);

/// Pools told apart, so that a frame used with a foreign pool is noticed.
static NEXT_POOL: AtomicU32 = AtomicU32::new(1);

impl FramePool {
    /// A pool of `chunks` chunks of `chunk_size` bytes, [`HEADROOM`] included. AF_XDP takes 2048 or 4096.
    ///
    /// # Errors
    /// Invalid input for a chunk size that leaves no room or a pool over 2^32 bytes of chunk indices; else
    /// the kernel's own.
    pub fn new(chunks: u32, chunk_size: usize) -> io::Result<Self> {
        if chunk_size <= HEADROOM || u32::try_from(chunk_size).is_err() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let bytes = (chunks as usize).checked_mul(chunk_size).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(Self {
            id: NEXT_POOL.fetch_add(1, Ordering::Relaxed),
            mapping: Mapping::new(bytes)?,
            chunk_size,
            chunks,
            free: (0..chunks).rev().collect(),
            holders: vec![0; chunks as usize],
            registrations: Vec::new(),
        })
    }

    /// An empty frame that starts after the headroom, or `None` where every chunk is owned.
    pub fn allocate(&mut self) -> Option<Frame> {
        let chunk = self.free.pop()?;
        Some(Frame { pool: self.id, chunk, start: HEADROOM as u32, length: 0 })
    }

    /// A frame that holds a copy of `bytes`, or `None` where every chunk is owned or too small.
    pub fn allocate_copy(&mut self, bytes: &[u8]) -> Option<Frame> {
        if bytes.len() > self.capacity() {
            return None;
        }
        let mut frame = self.allocate()?;
        frame.length = bytes.len() as u32;
        self.bytes_mut(&mut frame).copy_from_slice(bytes);
        Some(frame)
    }

    /// Takes a chunk back.
    ///
    /// # Panics
    /// Where the frame is another pool's: an error in the program.
    #[inline]
    pub fn free(&mut self, frame: Frame) {
        assert_eq!(frame.pool, self.id, "a frame was freed into a foreign pool");
        self.free.push(frame.chunk);
    }

    /// Largest frame, in bytes, that fits a chunk behind its headroom.
    pub fn capacity(&self) -> usize {
        self.chunk_size - HEADROOM
    }

    /// Chunks that nobody owns.
    pub fn available(&self) -> usize {
        self.free.len()
    }

    /// Chunks in all.
    pub fn chunks(&self) -> u32 {
        self.chunks
    }

    /// Bytes in a chunk, headroom included.
    pub fn chunk_size(&self) -> usize {
        self.chunk_size
    }

    /// The frame's bytes.
    ///
    /// # Panics
    /// Where the frame is another pool's: an error in the program.
    #[inline]
    pub fn bytes<'a>(&'a self, frame: &'a Frame) -> &'a [u8] {
        let (start, length) = self.locate(frame);
        // SAFETY: `locate` checked that the range lies inside the frame's chunk of this mapping, which lives as
        // long as the borrow of `self`. The chunk is owned by `frame` alone (handles are not Clone and are made
        // only for chunks that nobody owns), and it is borrowed shared for the same time. Safe code cannot
        // express disjoint chunks of one mapping that the kernel also knows.
        unsafe { std::slice::from_raw_parts(self.mapping.start().as_ptr().add(start), length) }
    }

    /// The frame's bytes, to change.
    ///
    /// # Panics
    /// Where the frame is another pool's: an error in the program.
    #[inline]
    #[allow(clippy::mut_from_ref)] // the exclusive borrow that makes it sound is `frame`'s, not the pool's
    pub fn bytes_mut<'a>(&'a self, frame: &'a mut Frame) -> &'a mut [u8] {
        let (start, length) = self.locate(frame);
        // SAFETY: as in `bytes`, and the frame is borrowed exclusively for as long as the slice lives.
        unsafe { std::slice::from_raw_parts_mut(self.mapping.start().as_ptr().add(start), length) }
    }

    /// Asks for the beginning of the frame, where its headers are, to be brought closer.
    #[inline]
    pub fn prefetch(&self, frame: &Frame) {
        if let Some(first) = self.bytes(frame).first() {
            super::memory::prefetch(first);
        }
    }

    /// Sets the length after somebody wrote into [`spare_mut`](Self::spare_mut); cut to the chunk.
    pub fn set_len(&self, frame: &mut Frame, length: usize) {
        let room = self.chunk_size - frame.start as usize;
        frame.length = length.min(room) as u32;
    }

    /// All bytes from the frame's start to its chunk's end, to read into.
    ///
    /// # Panics
    /// Where the frame is another pool's: an error in the program.
    #[allow(clippy::mut_from_ref)] // see `bytes_mut`
    pub fn spare_mut<'a>(&'a self, frame: &'a mut Frame) -> &'a mut [u8] {
        let (start, _) = self.locate(frame);
        let room = self.chunk_size - frame.start as usize;
        // SAFETY: the range ends with the frame's own chunk; otherwise as in `bytes_mut`.
        unsafe { std::slice::from_raw_parts_mut(self.mapping.start().as_ptr().add(start), room) }
    }

    /// Where in the mapping the frame is, checked in every build.
    #[inline]
    fn locate(&self, frame: &Frame) -> (usize, usize) {
        assert_eq!(frame.pool, self.id, "a frame was used with a foreign pool");
        debug_assert!(frame.start as usize + frame.length as usize <= self.chunk_size);
        (frame.chunk as usize * self.chunk_size + frame.start as usize, frame.length as usize)
    }

    /// The mapping, for registering it as a UMEM.
    pub(in crate::sys) fn mapping(&self) -> &Mapping {
        &self.mapping
    }

    /// A holder of this pool's chunks like no other.
    pub(in crate::sys) fn new_holder(&self) -> Holder {
        Holder { id: NEXT_HOLDER.fetch_add(1, Ordering::Relaxed), pool: self.id }
    }

    /// Hands the chunk to the kernel, to be held by `holder` there: the frame's offset in the mapping. It
    /// comes back by [`take_back`](Self::take_back) or [`reclaim`](Self::reclaim).
    ///
    /// # Panics
    /// Where the frame or the holder is another pool's: an error in the program.
    pub(in crate::sys) fn hand_over(&mut self, frame: Frame, holder: Holder) -> u64 {
        assert_eq!(holder.pool, self.id, "a foreign pool's frames were handed to the kernel");
        let (offset, _) = self.locate(&frame);
        self.holders[frame.chunk as usize] = holder.id;
        offset as u64
    }

    /// Takes over a chunk that the kernel gave back. A shared ring is hostile: the range is checked to lie
    /// in one chunk, and that chunk to have been handed to this very holder and not to have come back since.
    pub(in crate::sys) fn take_back(&mut self, offset: u64, length: u32, holder: Holder) -> Option<Frame> {
        let offset = usize::try_from(offset).ok()?;
        let chunk = u32::try_from(offset / self.chunk_size).ok()?;
        let start = offset % self.chunk_size;
        if start + length as usize > self.chunk_size {
            return None;
        }
        let held_by = self.holders.get_mut(chunk as usize).filter(|held_by| **held_by == holder.id)?;
        *held_by = 0;
        Some(Frame { pool: self.id, chunk, start: start as u32, length })
    }

    /// Takes back every chunk that `holder` has, and says how many. For a holder that is gone from the kernel.
    pub(in crate::sys) fn reclaim(&mut self, holder: Holder) -> usize {
        let before = self.free.len();
        for (chunk, held_by) in self.holders.iter_mut().enumerate() {
            if *held_by == holder.id {
                *held_by = 0;
                self.free.push(chunk as u32);
            }
        }
        self.free.len() - before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_disjoint_and_come_back() {
        let mut pool = FramePool::new(4, 2048).unwrap();
        let mut frames: Vec<Frame> = (0..4_u8).map(|n| pool.allocate_copy(&[n; 1000]).unwrap()).collect();
        assert!(pool.allocate().is_none());
        for (n, frame) in frames.iter_mut().enumerate() {
            assert!(pool.bytes(frame).iter().all(|&byte| usize::from(byte) == n));
            pool.bytes_mut(frame).fill(9);
        }
        for frame in frames {
            pool.free(frame);
        }
        assert_eq!(pool.available(), 4);
    }

    #[test]
    fn fronts_grow_into_the_headroom_and_no_further() {
        let mut pool = FramePool::new(1, 2048).unwrap();
        let mut frame = pool.allocate_copy(b"payload").unwrap();
        assert!(frame.grow_front(HEADROOM));
        assert!(!frame.grow_front(1));
        assert_eq!(&pool.bytes(&frame)[HEADROOM..], b"payload");
        frame.shrink_front(HEADROOM);
        frame.truncate(3);
        assert_eq!(pool.bytes(&frame), b"pay");
        pool.free(frame);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut pool = FramePool::new(1, 2048).unwrap();
        assert!(pool.allocate_copy(&[0; 2048]).is_none());
        assert_eq!(pool.available(), 1);
        assert!(FramePool::new(1, HEADROOM).is_err());
    }

    #[test]
    fn the_kernel_gives_back_only_what_it_was_given_and_only_once() {
        let mut pool = FramePool::new(3, 2048).unwrap();
        let (one, other) = (pool.new_holder(), pool.new_holder());
        let frame = pool.allocate_copy(b"payload").unwrap();
        let kept = pool.allocate().unwrap();
        let offset = pool.hand_over(frame, one);
        assert_eq!(offset % 2048, HEADROOM as u64);
        assert!(pool.take_back(offset, 2048, one).is_none(), "beyond the chunk");
        assert!(pool.take_back(offset + 2048, 1, one).is_none(), "a chunk that the kernel does not have");
        assert!(pool.take_back(3 * 2048, 1, one).is_none(), "beyond the pool");
        assert!(pool.take_back(u64::MAX, 1, one).is_none(), "beyond everything");
        assert!(pool.take_back(offset, 7, other).is_none(), "another holder's");
        let frame = pool.take_back(offset, 7, one).unwrap();
        assert!(pool.take_back(offset, 7, one).is_none(), "given back already");
        assert_eq!(pool.bytes(&frame), b"payload");
        pool.hand_over(frame, other);
        assert_eq!(pool.reclaim(one), 0);
        assert_eq!(pool.reclaim(other), 1);
        pool.free(kept);
        assert_eq!(pool.available(), 3);
    }

    #[test]
    #[should_panic(expected = "foreign pool")]
    fn a_foreign_holder_is_noticed() {
        let mut one = FramePool::new(1, 2048).unwrap();
        let two = FramePool::new(1, 2048).unwrap();
        let frame = one.allocate().unwrap();
        one.hand_over(frame, two.new_holder());
    }

    #[test]
    #[should_panic(expected = "foreign pool")]
    fn a_foreign_frame_is_noticed() {
        let mut one = FramePool::new(1, 2048).unwrap();
        let two = FramePool::new(1, 2048).unwrap();
        let frame = one.allocate().unwrap();
        let _ = two.bytes(&frame);
    }
}
