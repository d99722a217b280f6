//! When a removed record may be used again: after every worker has passed a batch boundary.

use crate::sys::memory::atomic::{AtomicU64, Ordering, fence};

/// Most workers that may share a table.
pub const MAX_WORKERS: usize = 64;

/// A worker that looks at nothing: it sleeps, or does not exist.
const ASLEEP: u64 = u64::MAX;

/// On cache lines of their own: each is written by one worker at every batch.
#[derive(Debug)]
#[repr(align(128))]
struct Seen(AtomicU64);

/// The epochs of all workers.
///
/// A worker [`enter`](Self::enter)s at the start of each batch and [`leave`](Self::leave)s before it sleeps.
/// What was removed at epoch e is out of everybody's sight once [`horizon`](Self::horizon) exceeds e.
#[derive(Debug)]
pub struct Epochs {
    current: AtomicU64,
    seen: Box<[Seen]>,
}

impl Default for Epochs {
    fn default() -> Self {
        Self::new()
    }
}

impl Epochs {
    /// All workers asleep.
    pub fn new() -> Self {
        Self {
            current: AtomicU64::new(1),
            seen: (0..MAX_WORKERS).map(|_| Seen(AtomicU64::new(ASLEEP))).collect(),
        }
    }

    /// Worker `worker` starts a batch: it holds nothing from before.
    ///
    /// # Panics
    /// For a worker beyond [`MAX_WORKERS`]: an error in the program.
    #[inline]
    pub fn enter(&self, worker: usize) {
        let current = self.current.load(Ordering::Acquire);
        let seen = &self.seen[worker].0;
        if seen.load(Ordering::Relaxed) != current {
            seen.store(current, Ordering::Release);
            // Announced before anything of the table is read: a remover that does not see the announcement has
            // removed before we read.
            fence(Ordering::SeqCst);
        }
    }

    /// Worker `worker` looks at nothing until it enters again.
    pub fn leave(&self, worker: usize) {
        self.seen[worker].0.store(ASLEEP, Ordering::Release);
    }

    /// The epoch to stamp on what was just removed. The caller calls [`advance`](Self::advance) later.
    #[inline]
    pub fn stamp(&self) -> u64 {
        fence(Ordering::SeqCst);
        self.current.load(Ordering::Acquire)
    }

    /// Starts a new epoch, so that stamps of the present one can pass.
    pub fn advance(&self) {
        self.current.fetch_add(1, Ordering::AcqRel);
    }

    /// Everything stamped before this may be used again.
    pub fn horizon(&self) -> u64 {
        fence(Ordering::SeqCst);
        let current = self.current.load(Ordering::Acquire);
        self.seen.iter().map(|seen| seen.0.load(Ordering::Acquire)).fold(current, u64::min)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_removed_waits_for_every_worker_that_is_awake() {
        let epochs = Epochs::new();
        epochs.enter(0);
        epochs.enter(5);
        let stamp = epochs.stamp();
        epochs.advance();
        assert!(epochs.horizon() <= stamp);
        epochs.enter(0);
        assert!(epochs.horizon() <= stamp, "worker 5 has not passed a boundary");
        epochs.enter(5);
        assert!(epochs.horizon() > stamp);
    }

    #[test]
    fn sleepers_hold_nothing_up() {
        let epochs = Epochs::new();
        epochs.enter(0);
        epochs.leave(0);
        let stamp = epochs.stamp();
        epochs.advance();
        assert!(epochs.horizon() > stamp);
    }
}
