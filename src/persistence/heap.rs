//! When templates are due: a heap over words, in which each template knows its place.
//!
//! Eight children to a node, so that a level is a cache line. A template that is used again is not moved: its entry
//! comes up early, and is put where it belongs then. Deadlines of a template only ever grow.

use crate::sys::memory::atomic::{AtomicU64, Ordering};
use crate::types::Instant;

const CHILDREN: usize = 8;
/// A tick is 2^24 ns, as long as a connection's timers.
const TICK_SHIFT: u32 = 24;
/// Bits of an entry that name the template within its shard.
pub(super) const INDEX_BITS: u32 = 24;
const LAST_TICK: u64 = u64::MAX >> INDEX_BITS;

/// The heap of one shard, for as long as the shard is locked.
pub(super) struct Heap<'a> {
    /// A word for each template: its tick above its index.
    pub(super) entries: &'a [AtomicU64],
    /// The shard's records; the place of number `i` lies in word `i * stride + offset`.
    pub(super) records: &'a [AtomicU64],
    pub(super) stride: usize,
    pub(super) offset: usize,
    pub(super) length: &'a mut u32,
}

/// The tick at which a template with this deadline is looked at: the one after that at which connections of the same
/// deadline are collected, so that these are no reason to put it off.
pub(super) fn due(deadline: Instant) -> u64 {
    (deadline.as_nanos().div_ceil(1 << TICK_SHIFT) + 1).min(LAST_TICK)
}

/// The beginning of a tick.
pub(super) fn moment(tick: u64) -> Instant {
    Instant::from_nanos(tick << TICK_SHIFT)
}

/// The tick that it is at `now`.
pub(super) fn tick_at(now: Instant) -> u64 {
    now.as_nanos() >> TICK_SHIFT
}

impl Heap<'_> {
    fn get(&self, place: usize) -> u64 {
        self.entries[place].load(Ordering::Relaxed)
    }

    fn place_of(&self, index: u32) -> &AtomicU64 {
        &self.records[index as usize * self.stride + self.offset]
    }

    fn put(&self, place: usize, entry: u64) {
        self.entries[place].store(entry, Ordering::Relaxed);
        self.place_of(entry as u32 & ((1 << INDEX_BITS) - 1)).store(place as u64, Ordering::Relaxed);
    }

    /// The earliest tick, and whose it is.
    pub(super) fn first(&self) -> Option<(u64, u32)> {
        (*self.length > 0).then(|| {
            let entry = self.get(0);
            (entry >> INDEX_BITS, entry as u32 & ((1 << INDEX_BITS) - 1))
        })
    }

    /// Files a template, of which there is no entry.
    pub(super) fn push(&mut self, index: u32, tick: u64) {
        *self.length += 1;
        self.rise(*self.length as usize - 1, tick << INDEX_BITS | u64::from(index));
    }

    /// Files the first template anew, at a later tick.
    pub(super) fn postpone_first(&mut self, tick: u64) {
        if let Some((_, index)) = self.first() {
            self.sink(0, tick << INDEX_BITS | u64::from(index));
        }
    }

    /// Takes a template out.
    pub(super) fn remove(&mut self, index: u32) {
        let place = self.place_of(index).load(Ordering::Relaxed) as usize;
        *self.length -= 1;
        let last = *self.length as usize;
        if place == last {
            return;
        }
        let entry = self.get(last);
        if place > 0 && entry < self.get((place - 1) / CHILDREN) {
            self.rise(place, entry);
        } else {
            self.sink(place, entry);
        }
    }

    /// Puts an entry in at `place` or above.
    fn rise(&self, mut place: usize, entry: u64) {
        while place > 0 {
            let parent = (place - 1) / CHILDREN;
            let above = self.get(parent);
            if above <= entry {
                break;
            }
            self.put(place, above);
            place = parent;
        }
        self.put(place, entry);
    }

    /// Puts an entry in at `place` or below.
    fn sink(&self, mut place: usize, entry: u64) {
        let length = *self.length as usize;
        loop {
            let children = place * CHILDREN + 1..(place * CHILDREN + 1 + CHILDREN).min(length);
            let least = children.map(|child| (self.get(child), child)).min();
            match least {
                Some((below, child)) if below < entry => {
                    self.put(place, below);
                    place = child;
                }
                _ => break,
            }
        }
        self.put(place, entry);
    }
}

#[cfg(all(test, not(uvs_shuttle)))]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::sys::memory::Words;
    use crate::types::Duration;

    const COUNT: usize = 200;

    #[test]
    fn a_template_is_due_after_connections_of_its_deadline() {
        let deadline = Instant::ZERO + Duration::from_secs(60);
        let tick = due(deadline);
        assert!(moment(tick) > deadline + Duration::from_nanos(1 << TICK_SHIFT));
        assert!(moment(tick) <= deadline + Duration::from_nanos(2 << TICK_SHIFT));
        assert_eq!(tick_at(moment(tick)), tick);
        assert_eq!(due(Instant::NEVER), LAST_TICK);
    }

    proptest::proptest! {
        /// Against an ordered map: what is filed, put off and taken out in any order.
        #[test]
        fn the_first_is_the_earliest(
            operations in proptest::collection::vec((0_u32..COUNT as u32, 0_u64..1000, 0_u8..4), 1..800),
        ) {
            let (entries, records) = (Words::new(COUNT).unwrap(), Words::new(COUNT * 3).unwrap());
            let mut length = 0;
            let mut heap =
                Heap { entries: &entries, records: &records, stride: 3, offset: 1, length: &mut length };
            let mut model = BTreeMap::new();
            for (index, tick, what) in operations {
                match model.get(&index) {
                    None => {
                        heap.push(index, tick);
                        model.insert(index, tick);
                    }
                    Some(_) if what == 0 => {
                        let (first, index) = heap.first().unwrap();
                        heap.postpone_first(first + tick);
                        model.insert(index, first + tick);
                    }
                    Some(_) => {
                        heap.remove(index);
                        model.remove(&index);
                    }
                }
                let least = model.iter().map(|(index, tick)| (*tick, *index)).min();
                assert_eq!(heap.first(), least);
            }
            let mut rest: Vec<(u64, u32)> = model.iter().map(|(index, tick)| (*tick, *index)).collect();
            rest.sort_unstable();
            for expected in rest {
                assert_eq!(heap.first(), Some(expected));
                heap.remove(expected.1);
            }
            assert_eq!(heap.first(), None);
        }
    }
}
