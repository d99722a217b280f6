//! Frames counted by what became of them, for each worker and port apart.

use std::iter::Sum;
use std::ops::AddAssign;

use crate::service::Counters;
use crate::sys::memory::atomic::{AtomicU64, Ordering};
use crate::types::PortId;

use super::{DropReason, Entry, Verdict};

const REASONS: usize = DropReason::ALL.len();

/// Most ports whose frames are counted apart; those of ports beyond are counted with the last one's.
pub const MAX_PORTS: usize = 64;

/// What one worker counts. Only that worker writes.
#[derive(Debug)]
pub struct WorkerCounters {
    /// Traffic of services and real servers.
    pub traffic: Counters,
    /// Frames, by the port that they came in by.
    ports: Box<[PortCounters; MAX_PORTS]>,
}

/// One worker's frames of one port. On cache lines of its own: the next one may be another worker's.
#[derive(Default, Debug)]
#[repr(align(64))]
struct PortCounters {
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

impl<'a> Sum<&'a Self> for FrameCounts {
    fn sum<I: Iterator<Item = &'a Self>>(counts: I) -> Self {
        counts.fold(Self::default(), |mut sum, some| {
            sum += some;
            sum
        })
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
            ports: Box::new(std::array::from_fn(|_| PortCounters::default())),
        }
    }

    #[inline]
    fn port(&self, port: PortId) -> &PortCounters {
        &self.ports[usize::from(port.0).min(MAX_PORTS - 1)]
    }

    /// Counts a batch whose frames are decided: one addition for all of one port that were sent, or went to the host.
    #[inline]
    pub(super) fn count_batch(&self, entries: &[Entry]) {
        let mut rest = entries;
        // A batch comes off one port, as a rule. One pass over it costs fewer instructions than looking for the
        // end of the port's frames first.
        while let Some(&Entry { port, .. }) = rest.first() {
            let of_port = rest.iter().take_while(|entry| entry.port == port).map(|entry| entry.verdict);
            let counters = self.port(port);
            let counted = counters.count(of_port);
            bump(&counters.received, counted as u64);
            rest = &rest[counted..];
        }
    }

    /// Counts a frame that was held and came up again.
    pub(super) fn count_released(&self, port: PortId, verdict: Verdict) {
        let port = self.port(port);
        bump(&port.released, 1);
        port.count(std::iter::once(verdict));
    }

    /// The frames of all ports. Taken between batches they are conserved; in the middle of one, not quite.
    pub fn frames(&self) -> FrameCounts {
        self.used().fold(FrameCounts::default(), |mut sum, port| {
            sum += &port.read();
            sum
        })
    }

    /// Whether each port's frames are conserved, and so all of them.
    pub(super) fn is_conserved(&self) -> bool {
        self.used().all(|port| port.read().is_conserved())
    }

    /// The ports that something came in by: few of many.
    fn used(&self) -> impl Iterator<Item = &PortCounters> {
        self.ports.iter().filter(|port| port.received.load(Ordering::Relaxed) > 0)
    }

    /// The frames that came in by `port`; conserved as all of them are.
    pub fn frames_of(&self, port: PortId) -> FrameCounts {
        self.port(port).read()
    }
}

impl PortCounters {
    /// Counts frames by verdict; says how many there were.
    #[inline]
    fn count(&self, verdicts: impl Iterator<Item = Verdict>) -> usize {
        let (mut transmitted, mut replied, mut held, mut to_host) = (0, 0, 0, 0);
        let mut counted = 0;
        for verdict in verdicts {
            counted += 1;
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
        counted
    }

    fn read(&self) -> FrameCounts {
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
