//! The director: turns batches of frames into verdicts.
//!
//! Sans I/O: [`Director::process`] takes frames and the moment, [`Director::tick`] lets time pass, and
//! [`Director::next_deadline`] says until when a worker may sleep. Rings, captures, benchmarks, fuzzers and tests
//! call the same functions. One [`Director`] for each worker; what they have in common is [`Shared`].

mod answer;
mod batch;
mod configuration;
mod counters;
mod errors;
mod fragments;
mod held;
mod persistent;
mod pipeline;
mod requests;
mod schedule;
mod shared;
mod tunnels;
mod verdict;

use std::sync::Arc;

use arc_swap::{ArcSwap, Cache};

use crate::conn::FlowFamily;
use crate::forward::nat::{self, Side, Translation};
use crate::forward::{NextHop, dr};
use crate::fragment;
use crate::service::ServerId;
use crate::sys::frames::FramePool;
use crate::types::{ForwardingMethod, Instant};
use crate::wire::{self, Malformed, Outcome, Parsed};

pub use batch::{BATCH_SIZE, Batch, Entry, Offload};
pub use configuration::{Configuration, Masqueraded, Network, PortLink, Settings};
pub use counters::{FrameCounts, MAX_PORTS, WorkerCounters};
pub use shared::{Capacity, Shared, Walk};
pub use verdict::{DropReason, Verdict};

use answer::Answers;
use fragments::Fragments;
use held::{Held, Promise, Receiver, Waybill};
use pipeline::{Decision, Handled, Local, Locals, Next, Note, Pass};
use tunnels::Tunnels;

/// Most timer entries that a worker looks at between two batches.
const TIMER_BUDGET: usize = 512;
/// Most connection templates that a worker looks at between two batches.
const TEMPLATE_BUDGET: usize = 128;

/// A snapshot, at hand until another takes its place.
type Snapshot<T> = Cache<ArcSnapshot<T>, Arc<T>>;

/// Where a snapshot is found: a field of [`Shared`].
struct ArcSnapshot<T: 'static> {
    shared: Arc<Shared>,
    field: fn(&Shared) -> &ArcSwap<T>,
}

impl<T> std::ops::Deref for ArcSnapshot<T> {
    type Target = ArcSwap<T>;
    fn deref(&self) -> &ArcSwap<T> {
        (self.field)(&self.shared)
    }
}

/// One worker's director.
pub struct Director {
    shared: Arc<Shared>,
    worker: usize,
    configuration: Snapshot<Configuration>,
    network: Snapshot<Network>,
    locals: Locals,
    notes: Box<[Note; BATCH_SIZE]>,
    held: Held,
    fragments: Fragments,
    answers: Answers,
    /// Of the last outer packet of a tunnel.
    identification: u16,
    /// Frames of the present batch that will be held, by their place in it.
    promised: Vec<(usize, Promise)>,
}

impl std::fmt::Debug for Director {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Director").field("worker", &self.worker).finish_non_exhaustive()
    }
}

impl Director {
    /// The director of worker `worker`, of which there must be no other.
    ///
    /// # Panics
    /// For a worker beyond what `shared` has room for: an error in the program.
    pub fn new(shared: Arc<Shared>, worker: usize) -> Self {
        assert!(worker < shared.workers(), "worker {worker} of {}", shared.workers());
        let at = |shared: &Arc<Shared>| Arc::clone(shared);
        Self {
            configuration: Cache::new(ArcSnapshot {
                shared: at(&shared),
                field: |shared| &shared.configuration,
            }),
            network: Cache::new(ArcSnapshot { shared: at(&shared), field: |shared| &shared.network }),
            shared,
            worker,
            locals: Locals::default(),
            notes: Box::new([Note::EMPTY; BATCH_SIZE]),
            held: Held::new(),
            fragments: Fragments::new(),
            answers: Answers::new(),
            identification: 0,
            promised: Vec::with_capacity(BATCH_SIZE),
        }
    }

    /// What all workers share.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Decides about every frame in the batch. Frames that must wait are taken out of it; every other one is left
    /// with its verdict, and changed where that is to send it.
    pub fn process(&mut self, batch: &mut Batch, frames: &FramePool, now: Instant) {
        self.shared.epochs.enter(self.worker);
        let counters = self.shared.counters(self.worker);
        let network = self.network.load();
        let configuration = self.configuration.load();
        let mut pass = Pass {
            shared: &self.shared,
            configuration,
            network,
            counters,
            frames,
            locals: &mut self.locals,
            now,
            arrival: crate::types::PortId::default(),
        };
        let mut conclusion = Conclusion {
            shared: &self.shared,
            worker: self.worker,
            tunnels: Tunnels {
                slots: &self.shared.slots,
                network,
                frames,
                pmtu_disc: configuration.settings.pmtu_disc,
                identification: &mut self.identification,
            },
            held: &self.held,
            promised: &mut self.promised,
            answers: &mut self.answers,
            now,
        };
        let (fragments, table) = (&self.fragments, &self.shared.fragments);
        pass.run(batch.entries_mut(), &mut self.notes, |position, entry, packet, next| match next {
            Next::Act(decision) => conclusion.conclude(position, entry, packet, decision),
            Next::AwaitFirst(ticket) if fragments.has_room(conclusion.promised) => {
                let until = now + fragment::patience(packet.family());
                conclusion.promised.push((position, Promise::First { ticket, until }));
                Verdict::Held
            }
            Next::AwaitFirst(ticket) => {
                table.give_up(ticket);
                Verdict::Drop(DropReason::FragmentQueueFull)
            }
        });
        for (taken, (position, promise)) in self.promised.drain(..).enumerate() {
            let entry = batch.take(position - taken);
            match promise {
                Promise::LinkAddress(waybill) => self.held.keep(entry, waybill, now),
                Promise::First { ticket, until } => self.fragments.keep(entry, ticket, until),
            }
        }
    }

    /// Appends to `batch`, with their verdicts, frames that have waited long enough, and sees to the timers. Call it
    /// between batches, and when [`next_deadline`](Self::next_deadline) has come. Bounded work; says whether
    /// it is done for `now`.
    pub fn tick(&mut self, batch: &mut Batch, frames: &FramePool, now: Instant) -> bool {
        self.shared.epochs.enter(self.worker);
        if !self.held.is_empty() {
            let counters = self.shared.counters(self.worker);
            let mut tunnels = Tunnels {
                slots: &self.shared.slots,
                network: self.network.load(),
                frames,
                pmtu_disc: self.configuration.load().settings.pmtu_disc,
                identification: &mut self.identification,
            };
            self.held.release(batch, &mut tunnels, now, |port, verdict| {
                counters.count_released(port, verdict);
            });
        }
        if !self.fragments.is_empty() {
            self.release_fragments(batch, frames, now);
        }
        let ipv4 = self.expire::<crate::conn::Ipv4>(now);
        let ipv6 = self.expire::<crate::conn::Ipv6>(now);
        ipv4 && ipv6
    }

    /// Sends fragments after their first, now that it is known where that went.
    fn release_fragments(&mut self, batch: &mut Batch, frames: &FramePool, now: Instant) {
        let Self { shared, worker, configuration, network, held, fragments, answers, promised, .. } = self;
        let (identification, pmtu_disc) = (&mut self.identification, configuration.load().settings.pmtu_disc);
        let counters = shared.counters(*worker);
        let network = network.load();
        fragments.release(batch, &shared.fragments, now, |batch, mut entry, outcome| {
            let outcome = outcome.map(|decision| (decision, wire::parse(frames.bytes(&entry.frame))));
            let verdict = match outcome {
                Ok((decision, Outcome::Packet(packet))) => {
                    let decision = fragments::follow(shared, counters, decision, &packet);
                    let worker = *worker;
                    let tunnels = Tunnels {
                        slots: &shared.slots,
                        network,
                        frames,
                        pmtu_disc,
                        identification: &mut *identification,
                    };
                    let mut conclusion = Conclusion { shared, worker, tunnels, held, promised, answers, now };
                    conclusion.conclude(0, &mut entry, &packet, decision)
                }
                // It was a packet when it came, and nobody has changed it.
                Ok(_) => Verdict::Drop(DropReason::TruncatedFrame),
                Err(reason) => Verdict::Drop(reason),
            };
            if let Some((_, Promise::LinkAddress(waybill))) = promised.pop() {
                // Held as before, for something else.
                return held.keep(entry, waybill, now);
            }
            counters.count_released(entry.port, verdict);
            batch.push_decided(entry.frame, entry.port, entry.offload, verdict);
        });
    }

    fn expire<F: Handled + FlowFamily>(&mut self, now: Instant) -> bool {
        let Shared { slots, epochs, .. } = &*self.shared;
        let table = F::table(&self.shared);
        let Local { view, wheel } = F::local(&mut self.locals);
        let done = wheel.advance(table, slots, view, epochs, now, TIMER_BUDGET);
        // Another worker may need what this one has collected.
        let reclaimed = table.reclaim(view, epochs);
        // After the connections: one that ends together with its template must not keep that.
        let collected = table.templates().collect(slots, now, TEMPLATE_BUDGET);
        done && reclaimed && collected
    }

    /// When [`tick`](Self::tick) should be called at the latest; `None` while nothing is pending.
    pub fn next_deadline(&self) -> Option<Instant> {
        let Locals { ipv4, ipv6 } = &self.locals;
        let Shared { ipv4: table4, ipv6: table6, .. } = &*self.shared;
        let templates = [table4.templates().next_deadline(), table6.templates().next_deadline()];
        let timers = [ipv4.wheel.next_deadline(), ipv6.wheel.next_deadline()];
        let waits = [self.held.next_deadline(), self.fragments.next_deadline()];
        timers.into_iter().chain(templates).chain(waits).flatten().min()
    }

    /// Whether frames wait for something outside, or that another worker may receive: then look at
    /// [`tick`](Self::tick) soon.
    pub fn is_holding(&self) -> bool {
        !self.held.is_empty() || !self.fragments.is_empty()
    }

    /// The worker goes to sleep: it looks at nothing until its next batch or tick.
    pub fn rest(&self) {
        self.shared.epochs.leave(self.worker);
    }

    /// This worker's frames by verdict.
    pub fn frame_counts(&self) -> FrameCounts {
        self.shared.counters(self.worker).frames()
    }

    /// Whether every frame that came in ended in exactly one way, those of each port apart.
    pub fn is_conserved(&self) -> bool {
        self.shared.counters(self.worker).is_conserved()
    }
}

/// What it takes to carry decisions out.
struct Conclusion<'a> {
    shared: &'a Shared,
    worker: usize,
    tunnels: Tunnels<'a>,
    held: &'a Held,
    promised: &'a mut Vec<(usize, Promise)>,
    answers: &'a mut Answers,
    now: Instant,
}

impl Conclusion<'_> {
    /// Carries out what was decided about a packet, which has this place in the batch. Where the verdict is to hold it,
    /// it has been promised a place.
    #[inline(always)]
    fn conclude(
        &mut self,
        position: usize,
        entry: &mut Entry,
        packet: &Parsed,
        decision: Decision,
    ) -> Verdict {
        let Self { shared, worker, tunnels, held, promised, answers, now } = self;
        let (network, frames) = (tunnels.network, tunnels.frames);
        let may_wait = |receiver| held.has_room(receiver, promised);
        let (verdict, receiver) = match decision {
            Decision::Forward(server, ForwardingMethod::Tunnel) => {
                let receiver = Receiver::Tunnelled(server);
                (wrap(tunnels, entry, packet, server, may_wait), Some(receiver))
            }
            Decision::Forward(server, _) => {
                let receiver = Receiver::Server(server);
                let next_hop = network.next_hop(server);
                (forward(frames, entry, packet, receiver, next_hop, None, may_wait), Some(receiver))
            }
            Decision::ToServer(server, id) => {
                let receiver = Receiver::Server(server);
                let to = shared.translation(packet.family(), id.index, Side::Destination);
                (masquerade(network, frames, entry, packet, receiver, to, may_wait), Some(receiver))
            }
            Decision::ToServerAlone(server, port) => {
                let receiver = Receiver::Server(server);
                let to = shared.translation_alone(server, port);
                (masquerade(network, frames, entry, packet, receiver, to, may_wait), Some(receiver))
            }
            Decision::ToClient(id) => {
                let client = packet.addresses.destination();
                let receiver = Receiver::Client(client);
                let to = shared.translation(packet.family(), id.index, Side::Source);
                if network.way_to_client(client).is_none() {
                    shared.ask_for_client(*worker, client);
                }
                (masquerade(network, frames, entry, packet, receiver, to, may_wait), Some(receiver))
            }
            Decision::End(verdict) => (verdict, None),
        };
        match (verdict, receiver) {
            (Verdict::Held, Some(receiver)) => {
                let waybill = Waybill::new(receiver, packet, &entry.offload);
                promised.push((position, Promise::LinkAddress(waybill)));
            }
            (Verdict::Drop(reason), receiver) => {
                // Larger than the link that it came by: merged on the way, which its sender knows nothing of.
                let merged = network.port_mtu(entry.port).is_some_and(|mtu| packet.ip_length > mtu);
                if merged {
                    return verdict;
                }
                let mtu = receiver.map_or(0, |receiver| largest(tunnels, receiver));
                return answers.instead_of(reason, frames, entry, packet, (network, mtu), *now);
            }
            _ => (),
        }
        verdict
    }
}

/// What is the same for every frame that is to go to a next hop: looks whether there is a way, and lowers the time to
/// live. A verdict where the frame goes no further.
#[inline(always)]
fn set_out(frames: &FramePool, entry: &mut Entry, packet: &Parsed, next_hop: &NextHop) -> Option<Verdict> {
    match next_hop {
        NextHop::Local => return Some(Verdict::ToHost),
        NextHop::Failed(error) => return Some(Verdict::Drop((*error).into())),
        NextHop::Resolving | NextHop::Ready { .. } => (),
    }
    let lived = dr::decrement_lifetime(frames, &mut entry.frame, packet);
    lived.err().map(|error| Verdict::Drop(error.into()))
}

/// Changes a frame for its receiver. `may_wait` says whether there is room for one that must wait.
#[inline(always)]
fn forward(
    frames: &FramePool,
    entry: &mut Entry,
    packet: &Parsed,
    receiver: Receiver,
    next_hop: &NextHop,
    translation: Option<Translation>,
    may_wait: impl FnOnce(Receiver) -> bool,
) -> Verdict {
    if let Some(verdict) = set_out(frames, entry, packet, next_hop) {
        return verdict;
    }
    let waybill = Waybill::new(receiver, packet, &entry.offload);
    match next_hop {
        NextHop::Ready { .. } => {
            if let Some(to) = translation {
                // An answer to one that is too large quotes it as its sender knows it.
                if !waybill.fits(next_hop) {
                    return Verdict::Drop(DropReason::TooBig);
                }
                if let Err(error) = errors::translate(frames, entry, packet, to) {
                    return Verdict::Drop(error.into());
                }
            }
            waybill.send(frames, &mut entry.frame, &mut entry.offload, next_hop)
        }
        _ if may_wait(receiver) => match translation.map(|to| errors::translate(frames, entry, packet, to)) {
            None | Some(Ok(())) => Verdict::Held,
            Some(Err(error)) => Verdict::Drop(error.into()),
        },
        _ => Verdict::Drop(DropReason::NeighbourQueueFull),
    }
}

/// Puts a packet into another one for a real server; one that must wait is put there when its wait is over.
#[inline(never)]
fn wrap(
    tunnels: &mut Tunnels<'_>,
    entry: &mut Entry,
    packet: &Parsed,
    server: ServerId,
    may_wait: impl FnOnce(Receiver) -> bool,
) -> Verdict {
    let next_hop = tunnels.network.next_hop(server);
    if let Some(verdict) = set_out(tunnels.frames, entry, packet, next_hop) {
        return verdict;
    }
    match next_hop {
        NextHop::Ready { .. } => tunnels.send(server, entry, packet),
        _ if may_wait(Receiver::Tunnelled(server)) => Verdict::Held,
        _ => Verdict::Drop(DropReason::NeighbourQueueFull),
    }
}

/// The largest packet, in bytes, that goes to a receiver; 0 where that is not known.
#[cold]
fn largest(tunnels: &Tunnels<'_>, receiver: Receiver) -> u32 {
    match (receiver.next_hop(tunnels.network), receiver) {
        (NextHop::Ready { mtu, .. }, Receiver::Tunnelled(server)) => tunnels.mtu(server, *mtu),
        (NextHop::Ready { mtu, .. }, _) => *mtu,
        _ => 0,
    }
}

/// Translates a frame and changes it for its receiver.
#[inline(never)]
fn masquerade(
    network: &Network,
    frames: &FramePool,
    entry: &mut Entry,
    packet: &Parsed,
    receiver: Receiver,
    to: Translation,
    may_wait: impl FnOnce(Receiver) -> bool,
) -> Verdict {
    forward(frames, entry, packet, receiver, receiver.next_hop(network), Some(to), may_wait)
}

impl From<nat::TranslateError> for DropReason {
    fn from(error: nat::TranslateError) -> Self {
        match error {
            // A record has addresses of its own family, so the frame is not what was read of it.
            nat::TranslateError::OtherFamily | nat::TranslateError::Truncated => Self::TruncatedFrame,
            nat::TranslateError::ChecksumAcrossFragments => Self::ChecksumAcrossFragments,
            nat::TranslateError::BadChecksum => Self::BadTransportHeader,
        }
    }
}

impl From<Malformed> for DropReason {
    fn from(malformed: Malformed) -> Self {
        match malformed {
            Malformed::TruncatedFrame => Self::TruncatedFrame,
            Malformed::BadIpv4Header => Self::BadIpv4Header,
            Malformed::BadIpv4Checksum => Self::BadIpv4Checksum,
            Malformed::BadIpv6Header => Self::BadIpv6Header,
            Malformed::BadTransportHeader => Self::BadTransportHeader,
        }
    }
}

#[cfg(test)]
mod tests;
