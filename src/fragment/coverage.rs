//! Which parts of each datagram there were.

use std::io;
use std::ops::Range;

use crate::sys::memory::Words;
use crate::sys::memory::atomic::{AtomicU64, Ordering};

/// Bytes in a unit: fragment offsets count in these.
pub(super) const UNIT: u32 = 8;
/// Words of a datagram: a bit for each unit of the largest one.
const WORDS: usize = (u16::MAX as usize).div_ceil(UNIT as usize * 64);

/// How a part of a datagram relates to those before it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Overlap {
    /// All of it is new.
    None,
    /// All of it was there.
    Whole,
    /// Some of it was there.
    Partial,
}

/// A bit for each unit of every datagram. Whoever holds a datagram's lock has its bits to itself: the words are atomic
/// only because they are shared, and lie apart from the datagrams so that memory is used only where there are some.
#[derive(Debug)]
pub(super) struct Coverage {
    words: Words,
}

impl Coverage {
    pub(super) fn new(datagrams: usize) -> io::Result<Self> {
        Ok(Self { words: Words::new(datagrams.checked_mul(WORDS).ok_or(io::ErrorKind::OutOfMemory)?)? })
    }

    fn of(&self, slot: usize) -> &[AtomicU64] {
        &self.words[slot * WORDS..(slot + 1) * WORDS]
    }

    /// Forgets all units of a datagram.
    pub(super) fn clear(&self, slot: usize) {
        for word in self.of(slot) {
            word.store(0, Ordering::Relaxed);
        }
    }

    /// Notes that these units are there, if none of them was.
    pub(super) fn add(&self, slot: usize, units: Range<u32>) -> Overlap {
        let words = self.of(slot);
        let mut present = 0;
        for (index, mask) in masks(units.clone()) {
            present += (words[index].load(Ordering::Relaxed) & mask).count_ones();
        }
        if present == units.len() as u32 {
            return Overlap::Whole;
        }
        if present > 0 {
            return Overlap::Partial;
        }
        for (index, mask) in masks(units) {
            words[index].store(words[index].load(Ordering::Relaxed) | mask, Ordering::Relaxed);
        }
        Overlap::None
    }
}

/// The words that have these units, and their bits in each.
fn masks(units: Range<u32>) -> impl Iterator<Item = (usize, u64)> {
    let first = units.start / 64;
    let last = units.end.div_ceil(64).max(first).min(WORDS as u32);
    (first..last).map(move |word| {
        let start = units.start.saturating_sub(word * 64);
        let end = units.end.saturating_sub(word * 64).min(64);
        // Neither is 64 where there is a unit in this word, but for the end.
        let below = |bit: u32| if bit < 64 { (1_u64 << bit) - 1 } else { u64::MAX };
        (word as usize, below(end) & !below(start))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_largest_datagram_has_a_bit_for_each_unit() {
        assert_eq!(WORDS, 128);
        let coverage = Coverage::new(2).unwrap();
        assert_eq!(coverage.add(1, 0..8192), Overlap::None);
        assert_eq!(coverage.add(1, 8191..8192), Overlap::Whole);
        assert_eq!(coverage.add(0, 8191..8192), Overlap::None, "another datagram");
        coverage.clear(1);
        assert_eq!(coverage.add(1, 0..64), Overlap::None);
        assert_eq!(coverage.add(1, 63..65), Overlap::Partial);
        assert_eq!(coverage.add(1, 64..65), Overlap::None, "what overlapped was not noted");
    }

    proptest! {
        #[test]
        fn it_is_a_set_of_units(parts in prop::collection::vec((0_u32..8192, 1_u32..200), 1..60)) {
            let coverage = Coverage::new(1).unwrap();
            let mut there = vec![false; 8192];
            for (start, length) in parts {
                let units = start..(start + length).min(8192);
                let present = units.clone().filter(|unit| there[*unit as usize]).count();
                let expected = match present {
                    0 => Overlap::None,
                    all if all == units.len() => Overlap::Whole,
                    _ => Overlap::Partial,
                };
                prop_assert_eq!(coverage.add(0, units.clone()), expected);
                if expected == Overlap::None {
                    units.for_each(|unit| there[unit as usize] = true);
                }
            }
        }
    }
}
