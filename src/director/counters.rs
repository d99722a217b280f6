//! Frames counted by what became of them, for each worker apart.

use std::ops::AddAssign;

use crate::service::Counters;
use crate::sys::memory::atomic::{AtomicU64, Ordering};

use super::{DropReason, Verdict};

const REASONS: usize = DropReason::ALL.len();

/// What one worker counts. Only that worker writes.
#[derive(Debug)]
pub struct WorkerCounters {
    /// Traffic of services and real servers.
    pub traffic: Counters,
    received: AtomicU64,
    released: AtomicU64,
    held: AtomicU64,
    transmitted: AtomicU64,
    replied: AtomicU64,
    to_host: AtomicU64,
    dropped: [AtomicU64; REASONS],
}

/// Frames by verdict. `received + released` is always the sum of all the others.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FrameCounts {
    /// Frames given to the director.
    pub received: u64,
    /// Held frames that came up again.
    pub released: u64,
    /// Frames set aside until a link address, or the way of their first fragment, is known.
    pub held: u64,
    /// Frames to be sent.
    pub transmitted: u64,
    /// Frames to be sent back as an answer.
    pub replied: u64,
    /// Frames for the host.
    pub to_host: u64,
    /// Frames dropped, by reason.
    pub dropped: [u64; REASONS],
}

impl Default for FrameCounts {
    fn default() -> Self {
        Self {
            received: 0,
            released: 0,
            held: 0,
            transmitted: 0,
            replied: 0,
            to_host: 0,
            dropped: [0; REASONS],
        }
    }
}

impl FrameCounts {
    /// Dropped for `reason`.
    pub fn dropped_for(&self, reason: DropReason) -> u64 {
        self.dropped[reason as usize]
    }

    /// Whether every frame that came in ended in exactly one way.
    pub fn is_conserved(&self) -> bool {
        let ends =
            self.held + self.transmitted + self.replied + self.to_host + self.dropped.iter().sum::<u64>();
        self.received + self.released == ends
    }
}

impl AddAssign<&Self> for FrameCounts {
    fn add_assign(&mut self, other: &Self) {
        self.received += other.received;
        self.released += other.released;
        self.held += other.held;
        self.transmitted += other.transmitted;
        self.replied += other.replied;
        self.to_host += other.to_host;
        for (sum, count) in self.dropped.iter_mut().zip(&other.dropped) {
            *sum += count;
        }
    }
}

/// Adds without a locked instruction: the counter has a single writer.
#[inline]
fn bump(counter: &AtomicU64, by: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
}

impl WorkerCounters {
    /// All zero, with room for `servers` real servers.
    pub fn new(servers: usize) -> Self {
        Self {
            traffic: Counters::new(servers),
            received: AtomicU64::new(0),
            released: AtomicU64::new(0),
            held: AtomicU64::new(0),
            transmitted: AtomicU64::new(0),
            replied: AtomicU64::new(0),
            to_host: AtomicU64::new(0),
            dropped: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    pub(super) fn count_received(&self, frames: usize) {
        bump(&self.received, frames as u64);
    }

    pub(super) fn count_released(&self) {
        bump(&self.released, 1);
    }

    pub(super) fn count(&self, verdict: Verdict) {
        self.count_all(std::iter::once(verdict));
    }

    /// Counts the verdicts of a batch: one addition for all that were sent, or went to the host.
    pub(super) fn count_all(&self, verdicts: impl Iterator<Item = Verdict>) {
        let (mut transmitted, mut replied, mut held, mut to_host) = (0, 0, 0, 0);
        for verdict in verdicts {
            match verdict {
                Verdict::Transmit(_) => transmitted += 1,
                Verdict::Reply(_) => replied += 1,
                Verdict::Held | Verdict::Undecided => held += 1,
                Verdict::ToHost => to_host += 1,
                Verdict::Drop(reason) => bump(&self.dropped[reason as usize], 1),
            }
        }
        bump(&self.transmitted, transmitted);
        bump(&self.replied, replied);
        bump(&self.held, held);
        bump(&self.to_host, to_host);
    }

    /// The counts now. Taken between batches they are conserved; in the middle of one, not quite.
    pub fn frames(&self) -> FrameCounts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        FrameCounts {
            received: read(&self.received),
            released: read(&self.released),
            held: read(&self.held),
            transmitted: read(&self.transmitted),
            replied: read(&self.replied),
            to_host: read(&self.to_host),
            dropped: std::array::from_fn(|index| read(&self.dropped[index])),
        }
    }
}
