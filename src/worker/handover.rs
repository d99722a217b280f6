//! Frames handed to the worker that owns the queue they leave by.
//!
//! Workers have a pool each, so the bytes are copied, into buffers that were made at the start and go round.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, bounded};
use rustix::event::{EventfdFlags, eventfd};

use crate::director::Offload;
use crate::types::PortId;

/// Frames on their way to one worker at a time.
const WAITING: usize = 256;

/// A frame's bytes on their way.
struct Parcel {
    port: PortId,
    offload: Offload,
    bytes: Vec<u8>,
}

/// The way to one worker.
#[derive(Clone)]
struct Inbox {
    sender: Sender<Parcel>,
    /// Empty buffers on their way back.
    empty: Receiver<Vec<u8>>,
    wake: Arc<OwnedFd>,
}

/// One worker's ways to the others, and its own inbox.
pub struct Handover {
    inboxes: Vec<Inbox>,
    /// Which worker owns a queue of each port.
    owners: Vec<usize>,
    own: Receiver<Parcel>,
    returned: Sender<Vec<u8>>,
    wake: Arc<OwnedFd>,
    woken: Vec<bool>,
    dropped: u64,
}

impl std::fmt::Debug for Handover {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handover").field("owners", &self.owners).field("dropped", &self.dropped).finish()
    }
}

/// Connects `workers` workers. `owners` says for each port which worker sends for those that cannot; `largest` is the
/// largest frame in bytes.
///
/// # Errors
/// No descriptors to wake workers with.
pub fn handovers(workers: usize, owners: &[usize], largest: usize) -> io::Result<Vec<Handover>> {
    let mut inboxes = Vec::new();
    let mut ends = Vec::new();
    for _ in 0..workers {
        let (sender, own) = bounded(WAITING);
        let (returned, empty) = bounded(WAITING);
        // A worker alone never hands anything over.
        for _ in 0..if workers > 1 { WAITING } else { 0 } {
            let _ = returned.try_send(Vec::with_capacity(largest));
        }
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        inboxes.push(Inbox { sender, empty, wake: Arc::clone(&wake) });
        ends.push((own, returned, wake));
    }
    let make = |(own, returned, wake)| Handover {
        inboxes: inboxes.clone(),
        owners: owners.to_vec(),
        own,
        returned,
        wake,
        woken: vec![false; workers],
        dropped: 0,
    };
    Ok(ends.into_iter().map(make).collect())
}

impl Handover {
    /// Gives a copy of a frame to the worker that can send it. Never waits: where that worker is too busy, the frame is
    /// dropped and counted.
    pub fn give(&mut self, port: PortId, bytes: &[u8], offload: Offload) {
        if !self.try_give(port, bytes, offload) {
            self.dropped += 1;
        }
    }

    fn try_give(&mut self, port: PortId, bytes: &[u8], offload: Offload) -> bool {
        let Some(&owner) = self.owners.get(usize::from(port.0)) else { return false };
        let Some(inbox) = self.inboxes.get(owner) else { return false };
        let Ok(mut buffer) = inbox.empty.try_recv() else { return false };
        buffer.clear();
        let fits = bytes.len() <= buffer.capacity();
        if fits {
            buffer.extend_from_slice(bytes);
        }
        // One that does not fit sends the buffer round empty.
        let sent = inbox.sender.try_send(Parcel { port, offload, bytes: buffer }).is_ok();
        self.woken[owner] = true;
        fits && sent
    }

    /// Wakes the workers that were given something since the last call.
    pub fn wake(&mut self) {
        for (woken, inbox) in self.woken.iter_mut().zip(&self.inboxes) {
            if std::mem::take(woken) {
                // A full counter wakes just as well.
                let _ = rustix::io::write(&*inbox.wake, &1_u64.to_ne_bytes());
            }
        }
    }

    /// Takes frames out of the own inbox, as many as may wait at a time; says whether there was any.
    pub fn take(&mut self, mut send: impl FnMut(PortId, &[u8], Offload)) -> bool {
        if self.own.is_empty() {
            return false;
        }
        for parcel in self.own.try_iter().take(WAITING) {
            if !parcel.bytes.is_empty() {
                send(parcel.port, &parcel.bytes, parcel.offload);
            }
            let _ = self.returned.try_send(parcel.bytes);
        }
        true
    }

    /// Before sleeping on [`readiness`](Self::readiness): takes off what woke this worker, which may be for what it has
    /// taken since, and would keep it awake for ever. Says whether it may sleep: what is given from now on wakes it.
    pub fn may_sleep(&self) -> bool {
        // Nothing to take off is as well.
        let _ = rustix::io::read(&*self.wake, &mut [0_u8; 8]);
        self.own.is_empty()
    }

    /// Readable when something was given to the inbox since [`may_sleep`](Self::may_sleep).
    pub fn readiness(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Frames that could not be handed over.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    #[test]
    fn frames_reach_the_owner_and_buffers_go_round() {
        let mut workers = handovers(2, &[0, 1], 100).unwrap();
        let mut second = workers.pop().unwrap();
        let mut first = workers.pop().unwrap();
        for round in 0..3 * WAITING {
            first.give(PortId(1), &[round as u8; 60], Offload::default());
            first.wake();
            let mut got = Vec::new();
            assert!(second.take(|port, bytes, _| got.push((port, bytes.to_vec()))));
            assert_eq!(got, [(PortId(1), vec![round as u8; 60])]);
        }
        assert_eq!(first.dropped(), 0);
        assert!(!first.take(|_, _, _| panic!("nothing was given to it")));
    }

    #[test]
    fn a_wake_up_that_comes_late_does_not_keep_one_awake() {
        let mut workers = handovers(2, &[0, 1], 100).unwrap();
        let is_awake = |worker: &Handover| {
            let mut polled = [PollFd::from_borrowed_fd(worker.readiness(), PollFlags::IN)];
            poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() > 0
        };
        workers[0].give(PortId(1), &[0; 60], Offload::default());
        assert!(!workers[1].may_sleep(), "there is something in its inbox");
        assert!(workers[1].take(|_, _, _| ()));
        workers[0].wake();
        assert!(is_awake(&workers[1]));
        assert!(!workers[1].take(|_, _, _| ()) && workers[1].may_sleep());
        assert!(!is_awake(&workers[1]));
        workers[0].give(PortId(1), &[0; 60], Offload::default());
        workers[0].wake();
        assert!(is_awake(&workers[1]) && !workers[1].may_sleep());
    }

    #[test]
    fn a_busy_owner_costs_frames_and_nothing_else() {
        let mut workers = handovers(2, &[0, 1], 100).unwrap();
        workers[0].give(PortId(1), &[0; 101], Offload::default());
        workers[0].give(PortId(9), &[0; 60], Offload::default());
        for _ in 0..WAITING + 5 {
            workers[0].give(PortId(1), &[0; 60], Offload::default());
        }
        assert_eq!(workers[0].dropped(), 2 + 6, "too long, unknown port, and what did not fit the inbox");
        let mut got = 0;
        workers[1].take(|_, _, _| got += 1);
        assert_eq!(got, WAITING - 1);
    }
}
