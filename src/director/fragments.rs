//! Fragments: the first one is decided about as a whole packet is, later ones follow it, and those that come too early
//! wait for it.
//!
//! A fragment waits where it is: in a chunk of the worker that received it, which alone can send it. Another worker may
//! receive the first fragment (network cards do not see ports in later ones), so each asks the shared table.

use std::collections::VecDeque;

use crate::fragment::{Fate, Piece, Refused, Ticket};
use crate::sys::frames::Frame;
use crate::types::Instant;
use crate::wire::{Fragment, Parsed};

use super::batch::{Batch, Entry};
use super::counters::WorkerCounters;
use super::held::Promise;
use super::pipeline::{Decision, Next, Note, Pass};
use super::shared::{FragmentTable, Shared};
use super::{DropReason, Verdict};

/// Datagrams whose fragments are followed at a time, over all workers: a thousandth lost of 10,000 fragmented datagrams a
/// second stay for IPv4's 30 seconds. Each is 1 KiB and a bit more, used only when touched.
pub(super) const MAX_DATAGRAMS: usize = 8192;
/// Most fragments that wait for their first, with one worker, after a tick; the oldest make room for others. Enough for
/// the worker that has the first ones to be some milliseconds late.
const MAX_WAITING: usize = 512;
/// Most of them at any moment: what arrives until then.
const MAX_WAITING_MEANWHILE: usize = 2 * MAX_WAITING;

impl From<Refused> for DropReason {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Duplicate => Self::FragmentDuplicate,
            Refused::Ended => Self::FragmentOverlap,
        }
    }
}

impl Pass<'_> {
    /// A fragment, of whatever: what the host gets it gets in this way, too, so that it has all of a datagram or none.
    #[cold]
    #[inline(never)]
    pub(super) fn fragment(&mut self, packet: &Parsed, note: &Note, frame: &Frame) -> Next {
        let Some((key, piece)) = Piece::of(packet) else { return Next::Act(self.whole(packet, note, frame)) };
        let drop = |reason| Next::Act(Decision::End(Verdict::Drop(reason)));
        let mut datagram = self.shared.fragments.lock(&key, self.now);
        if let Err(refused) = datagram.add(&piece) {
            return drop(refused.into());
        }
        if let Fragment::First { .. } = packet.fragment {
            let decision = self.whole(packet, note, frame);
            datagram.decide(decision);
            return Next::Act(decision);
        }
        if let Some(decision) = datagram.decision() {
            return Next::Act(follow(self.shared, self.counters, decision, packet));
        }
        datagram.wait().map_or(drop(DropReason::FragmentQueueFull), Next::AwaitFirst)
    }
}

/// What becomes of a later fragment whose first went this way; its bytes are counted with the first one's packet, as the
/// kernel counts the datagram that it has put together.
pub(super) fn follow(
    shared: &Shared,
    counters: &WorkerCounters,
    decision: Decision,
    packet: &Parsed,
) -> Decision {
    let drop = |reason| Decision::End(Verdict::Drop(reason));
    let bytes = packet.transport_length();
    let (server, is_reply) = match decision {
        Decision::Forward(server, _) | Decision::ToServerAlone(server, _) => (server, false),
        Decision::ToServer(_, id) | Decision::ToClient(id) if !shared.is_alive(packet.family(), id) => {
            // What the first was translated to went with the connection.
            return drop(DropReason::FragmentWithoutFirst);
        }
        Decision::ToServer(server, _) => (server, false),
        Decision::ToClient(id) => (shared.server_of(packet.family(), id), true),
        Decision::End(_) => return decision,
    };
    let slot = shared.slots.get(server);
    let traffic = &counters.traffic;
    if is_reply && !slot.is_available() {
        return decision;
    }
    if is_reply {
        traffic.server(server).more_out(bytes);
        traffic.service(slot.service()).more_out(bytes);
        return decision;
    }
    if !slot.is_available() {
        return drop(DropReason::RealServerGone);
    }
    traffic.server(server).more_in(bytes);
    traffic.service(slot.service()).more_in(bytes);
    decision
}

#[derive(Debug)]
struct Waiting {
    entry: Entry,
    ticket: Ticket,
    until: Instant,
}

/// One worker's fragments that wait for their first, oldest first.
#[derive(Debug)]
pub(super) struct Fragments {
    waiting: VecDeque<Waiting>,
    /// The table's news when it was last asked.
    news: u64,
    /// The last visit ended for want of room in the batch.
    unfinished: bool,
    /// When the next of them gives up.
    next_deadline: Instant,
}

impl Fragments {
    pub(super) fn new() -> Self {
        let waiting = VecDeque::with_capacity(MAX_WAITING_MEANWHILE);
        Self { waiting, news: 0, unfinished: false, next_deadline: Instant::NEVER }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// When the first of them gives up.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let next = if self.unfinished { Instant::ZERO } else { self.next_deadline };
        (!self.waiting.is_empty()).then_some(next)
    }

    /// Whether another may wait, beside those of the present batch that were promised a place already.
    pub(super) fn has_room(&self, promised: &[(usize, Promise)]) -> bool {
        let promised =
            promised.iter().filter(|(_, promise)| matches!(promise, Promise::First { .. })).count();
        self.waiting.len() + promised < MAX_WAITING_MEANWHILE
    }

    pub(super) fn keep(&mut self, entry: Entry, ticket: Ticket, until: Instant) {
        self.next_deadline = self.next_deadline.min(until);
        self.waiting.push_back(Waiting { entry, ticket, until });
    }

    /// Hands those whose wait is over to `settle`, as far as there is room in `batch` for them: with what was decided
    /// about their first, or with why they are dropped.
    pub(super) fn release(
        &mut self,
        batch: &mut Batch,
        table: &FragmentTable,
        now: Instant,
        mut settle: impl FnMut(&mut Batch, Entry, Result<Decision, DropReason>),
    ) {
        if self.waiting.is_empty() {
            return;
        }
        // Before those that wait are asked after: what is decided from now on is news again.
        let news = table.news();
        let told = std::mem::replace(&mut self.news, news) != news;
        let too_many = self.waiting.len() > MAX_WAITING;
        if !(told || too_many || self.unfinished || now >= self.next_deadline) {
            return;
        }
        let mut unseen = self.waiting.len();
        while unseen > 0 && batch.room() > 0 {
            let Some(waiting) = self.waiting.pop_front() else { break };
            unseen -= 1;
            let outcome = match table.ask(waiting.ticket, now) {
                Fate::Decided(decision) => Ok(decision),
                Fate::Ended => Err(DropReason::FragmentOverlap),
                Fate::Forgotten => Err(DropReason::FragmentWithoutFirst),
                Fate::Undecided => {
                    let reason = if now >= waiting.until {
                        DropReason::FragmentWithoutFirst
                    } else if self.waiting.len() >= MAX_WAITING {
                        DropReason::FragmentQueueFull
                    } else {
                        self.waiting.push_back(waiting);
                        continue;
                    };
                    table.give_up(waiting.ticket);
                    Err(reason)
                }
            };
            settle(batch, waiting.entry, outcome);
        }
        // Those that wait on were put behind those that were not seen.
        self.waiting.rotate_left(unseen);
        self.unfinished = unseen > 0;
        self.next_deadline = self.waiting.iter().map(|waiting| waiting.until).min().unwrap_or(Instant::NEVER);
    }
}
