//! Lock-free lists of free indices, linked through words of the things they name.

use std::io;

use crate::sys::memory::Words;
use crate::sys::memory::atomic::{AtomicU64, Ordering};

/// No index.
pub(super) const NONE: u32 = u32::MAX;

/// A stack of free indices. The link of each lies in `links(index)`, which the stack owns while the index is
/// free; a count in the head's upper half keeps a slow pop from taking a head that went and came back.
#[derive(Debug)]
#[repr(align(128))]
pub(super) struct FreeStack {
    head: AtomicU64,
}

impl FreeStack {
    /// An empty stack.
    pub(super) fn new() -> Self {
        Self { head: AtomicU64::new(u64::from(NONE)) }
    }

    /// Puts `index` on top.
    pub(super) fn push<'a>(&self, links: impl Fn(u32) -> &'a AtomicU64, index: u32) {
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            links(index).store(u64::from(head as u32), Ordering::Relaxed);
            let new = (head >> 32).wrapping_add(1) << 32 | u64::from(index);
            match self.head.compare_exchange_weak(head, new, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(present) => head = present,
            }
        }
    }

    /// Takes the top, if there is one.
    pub(super) fn pop<'a>(&self, links: impl Fn(u32) -> &'a AtomicU64) -> Option<u32> {
        let mut head = self.head.load(Ordering::Acquire);
        loop {
            let index = head as u32;
            if index == NONE {
                return None;
            }
            // May read a link that its new owner already overwrote; then the head has moved on, too.
            let next = links(index).load(Ordering::Relaxed) as u32;
            let new = (head >> 32).wrapping_add(1) << 32 | u64::from(next);
            match self.head.compare_exchange_weak(head, new, Ordering::Acquire, Ordering::Acquire) {
                Ok(_) => return Some(index),
                Err(present) => head = present,
            }
        }
    }
}

/// Equal pieces of words with a free list: overflow buckets, timer chunks. Word 0 of a free piece is its link.
#[derive(Debug)]
pub(super) struct Pieces {
    words: Words,
    size: usize,
    free: FreeStack,
    /// Pieces that were never used: handed out in order, so that making the pool touches no memory.
    fresh: AtomicU64,
    count: u32,
}

impl Pieces {
    pub(super) fn new(count: u32, size: usize) -> io::Result<Self> {
        let words = Words::new(count as usize * size)?;
        Ok(Self { words, size, free: FreeStack::new(), fresh: AtomicU64::new(0), count })
    }

    /// Bytes of memory that the pieces span, used or not.
    pub(super) fn memory(&self) -> usize {
        size_of_val(&*self.words)
    }

    /// The words of a piece.
    #[inline]
    pub(super) fn get(&self, index: u32) -> &[AtomicU64] {
        let start = index as usize * self.size;
        &self.words[start..start + self.size]
    }

    /// Takes a piece that nobody uses, its words all zero.
    pub(super) fn allocate(&self) -> Option<u32> {
        if let Some(index) = self.free.pop(|index| &self.get(index)[0]) {
            for word in self.get(index) {
                word.store(0, Ordering::Relaxed);
            }
            return Some(index);
        }
        let take = |fresh: u64| (fresh < u64::from(self.count)).then_some(fresh + 1);
        self.fresh.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).ok().map(|fresh| fresh as u32)
    }

    /// Takes a piece back.
    pub(super) fn free(&self, index: u32) {
        self.free.push(|index| &self.get(index)[0], index);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_piece_is_handed_out_once_until_it_comes_back() {
        let pieces = Pieces::new(100, 8).unwrap();
        let all: HashSet<u32> = std::iter::from_fn(|| pieces.allocate()).collect();
        assert_eq!(all.len(), 100);
        pieces.get(7)[3].store(9, Ordering::Relaxed);
        pieces.free(7);
        assert_eq!(pieces.allocate(), Some(7));
        assert_eq!(pieces.get(7)[3].load(Ordering::Relaxed), 0);
        assert_eq!(pieces.allocate(), None);
    }

    #[test]
    fn threads_never_share_a_piece() {
        let pieces = Pieces::new(64, 8).unwrap();
        std::thread::scope(|scope| {
            for id in 1..=4_u64 {
                let pieces = &pieces;
                scope.spawn(move || {
                    for _ in 0..20_000 {
                        let Some(index) = pieces.allocate() else { continue };
                        let word = &pieces.get(index)[1];
                        assert_eq!(word.swap(id, Ordering::Relaxed), 0, "piece {index} has two owners");
                        assert_eq!(word.swap(0, Ordering::Relaxed), id);
                        pieces.free(index);
                    }
                });
            }
        });
    }
}
