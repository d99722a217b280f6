//! One batch on its way: parse and hash all, probe all, then act on each.
//!
//! What the first two stages find is a hint. By the time a frame is acted on, those before it may have made,
//! changed or ended the very connection; so a hit is looked at again, a miss is looked up again, and under the
//! bucket's lock before anything is scheduled. Results do not depend on how frames are split into batches.

use crate::conn::{
    Connection, ConnectionId, Direction, Flags, FlowKey, Found, Hint, Ipv4, Ipv6, Lifecycle, State,
    StateTable, Table, TcpEvent, Wheel, WorkerView, sctp,
};
use crate::fragment::Ticket;
use crate::persistence::TemplateFamily;
use crate::service::{ServerId, ServerSlot};
use crate::sys::frames::{Frame, FramePool};
use crate::types::{ForwardingMethod, Instant, PortId, Protocol};
use crate::wire::transport::tcp_flags;
use crate::wire::{self, Addresses, Fragment, Outcome, Parsed};

use super::batch::{BATCH_SIZE, Entry};
use super::configuration::{Configuration, Network};
use super::counters::WorkerCounters;
use super::shared::Shared;
use super::{DropReason, Verdict};

/// First chunk of an SCTP association (RFC 9260, section 3.3.2).
pub(super) const SCTP_INIT: u8 = 1;
/// The chunk that ends an association without further words.
pub(super) const SCTP_ABORT: u8 = 6;

/// What the first stages note of each frame.
#[derive(Clone, Copy, Debug)]
pub(super) struct Note {
    outcome: Outcome,
    hash: u64,
    hint: Hint,
}

impl Note {
    pub(super) const EMPTY: Self = Self { outcome: Outcome::NotIp, hash: 0, hint: Hint::NONE };
}

/// What one worker keeps of one family's table.
#[derive(Debug, Default)]
pub(super) struct Local {
    pub(super) view: WorkerView,
    pub(super) wheel: Wheel,
}

/// Both families' locals.
#[derive(Debug, Default)]
pub(super) struct Locals {
    pub(super) ipv4: Local,
    pub(super) ipv6: Local,
}

/// A family as the pipeline needs it: where its table is, and a packet's key.
pub(super) trait Handled: TemplateFamily {
    fn table(shared: &Shared) -> &Table<Self>;
    fn local(locals: &mut Locals) -> &mut Local;
    fn addresses(addresses: &Addresses) -> Self::Addresses;
}

impl Handled for Ipv4 {
    #[inline]
    fn table(shared: &Shared) -> &Table<Self> {
        &shared.ipv4
    }
    #[inline]
    fn local(locals: &mut Locals) -> &mut Local {
        &mut locals.ipv4
    }
    #[inline]
    fn addresses(addresses: &Addresses) -> [u64; 1] {
        match *addresses {
            Addresses::V4 { source, destination } => [u64::from(source) << 32 | u64::from(destination)],
            Addresses::V6 { .. } => [0],
        }
    }
}

impl Handled for Ipv6 {
    #[inline]
    fn table(shared: &Shared) -> &Table<Self> {
        &shared.ipv6
    }
    #[inline]
    fn local(locals: &mut Locals) -> &mut Local {
        &mut locals.ipv6
    }
    #[inline]
    fn addresses(addresses: &Addresses) -> [u64; 4] {
        match *addresses {
            Addresses::V6 { source: [a, b], destination: [c, d] } => [a, b, c, d],
            Addresses::V4 { .. } => [0; 4],
        }
    }
}

#[inline]
pub(super) fn key<F: Handled>(packet: &Parsed) -> FlowKey<F> {
    FlowKey::new(
        F::addresses(&packet.addresses),
        packet.protocol,
        packet.source_port,
        packet.destination_port,
    )
}

/// Where a packet is to go, once it is known to belong to a service.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Decision {
    /// To this real server, by this method, which is not masquerading.
    Forward(ServerId, ForwardingMethod),
    /// To this real server, whose address and port this connection has: the packet gets them as destination.
    ToServer(ServerId, ConnectionId),
    /// To this real server, without a connection: the packet gets its address, and this port, as destination.
    ToServerAlone(ServerId, u16),
    /// To the client, from the virtual service's address and port, which this connection has: the packet gets them as
    /// source.
    ToClient(ConnectionId),
    /// Nowhere further, or to the host.
    End(Verdict),
}

impl Decision {
    /// To a connection's real server.
    #[inline]
    pub(super) fn to_server(server: ServerId, method: ForwardingMethod, id: ConnectionId) -> Self {
        match method {
            ForwardingMethod::Masquerading => Self::ToServer(server, id),
            method => Self::Forward(server, method),
        }
    }
}

/// What to do with a packet now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Next {
    /// Carry this out.
    Act(Decision),
    /// A fragment: wait until its datagram's first is decided about.
    AwaitFirst(Ticket),
}

/// Everything that stays the same for the length of a batch, but for the last.
pub(super) struct Pass<'a> {
    pub(super) shared: &'a Shared,
    pub(super) configuration: &'a Configuration,
    pub(super) network: &'a Network,
    pub(super) counters: &'a WorkerCounters,
    pub(super) frames: &'a FramePool,
    pub(super) locals: &'a mut Locals,
    pub(super) now: Instant,
    /// By which port the packet that is being decided about came in.
    pub(super) arrival: PortId,
}

impl Pass<'_> {
    /// Decides about every frame of a batch, in order. `conclude` carries the decision about a packet out; it also
    /// gets the packet's place in the batch.
    pub(super) fn run(
        &mut self,
        entries: &mut [Entry],
        notes: &mut [Note; BATCH_SIZE],
        mut conclude: impl FnMut(usize, &mut Entry, &Parsed, Next) -> Verdict,
    ) {
        let frames = self.frames;
        for entry in entries.iter() {
            frames.prefetch(&entry.frame);
        }
        for (entry, note) in entries.iter().zip(notes.iter_mut()) {
            self.read(frames.bytes(&entry.frame), note);
        }
        for note in &mut notes[..entries.len().min(BATCH_SIZE)] {
            if let Outcome::Packet(packet) = &note.outcome {
                note.hint = match packet.addresses {
                    Addresses::V4 { .. } => self.shared.ipv4.probe(note.hash),
                    Addresses::V6 { .. } => self.shared.ipv6.probe(note.hash),
                };
            }
        }
        for (position, (entry, note)) in entries.iter_mut().zip(notes.iter()).enumerate() {
            entry.verdict = match &note.outcome {
                Outcome::NotIp => Verdict::ToHost,
                Outcome::Malformed(reason) => Verdict::Drop((*reason).into()),
                Outcome::Packet(packet) => {
                    let next = self.decide(packet, note, entry);
                    conclude(position, entry, packet, next)
                }
            };
        }
        self.counters.count_batch(entries);
    }

    /// Stage one: parse, hash, and ask for the bucket. The note is written where it is: see
    /// [`wire::parse_into`].
    #[inline(always)]
    fn read(&self, bytes: &[u8], note: &mut Note) {
        note.hint = Hint::NONE;
        wire::parse_into(bytes, &mut note.outcome);
        if let Outcome::Packet(packet) = &note.outcome {
            match packet.addresses {
                Addresses::V4 { .. } => {
                    note.hash = self.shared.ipv4.hash(&key::<Ipv4>(packet));
                    self.shared.ipv4.prefetch_bucket(note.hash);
                }
                Addresses::V6 { .. } => {
                    note.hash = self.shared.ipv6.hash(&key::<Ipv6>(packet));
                    self.shared.ipv6.prefetch_bucket(note.hash);
                }
            }
        }
    }

    /// What the packet is, in the kernel's order (`ip_vs_in_hook`).
    #[inline]
    fn decide(&mut self, packet: &Parsed, note: &Note, &Entry { port, ref frame, .. }: &Entry) -> Next {
        self.arrival = port;
        if !self.network.is_own_link(port, packet.destination_mac) {
            let group = packet.destination_mac.is_group();
            let verdict = if group { Verdict::ToHost } else { Verdict::Drop(DropReason::ForeignLinkAddress) };
            return Next::Act(Decision::End(verdict));
        }
        if packet.fragment != Fragment::Whole {
            return self.fragment(packet, note, frame);
        }
        Next::Act(self.whole(packet, note, frame))
    }

    /// What becomes of a packet with a transport header.
    #[inline(always)]
    pub(super) fn whole(&mut self, packet: &Parsed, note: &Note, frame: &Frame) -> Decision {
        let Some(protocol) = Protocol::from_number(packet.protocol) else {
            return self.without_service(packet, frame);
        };
        match packet.addresses {
            Addresses::V4 { .. } => self.packet::<Ipv4>(packet, protocol, note),
            Addresses::V6 { .. } => self.packet::<Ipv6>(packet, protocol, note),
        }
    }

    #[inline]
    fn packet<F: Handled>(&mut self, packet: &Parsed, protocol: Protocol, note: &Note) -> Decision {
        let key = key::<F>(packet);
        let table = F::table(self.shared);
        match table.find(note.hint, &key, note.hash, self.now) {
            Some(Found { index, is_reply: false }) => {
                self.known::<F>(index, packet, protocol, &key, note.hash)
            }
            Some(Found { index, is_reply: true }) => self.reply::<F>(index, packet, protocol),
            None => self.unknown::<F>(packet, protocol, &key, note.hash),
        }
    }

    /// A packet of a connection's client.
    #[inline]
    fn known<F: Handled>(
        &mut self,
        index: u32,
        packet: &Parsed,
        protocol: Protocol,
        key: &FlowKey<F>,
        hash: u64,
    ) -> Decision {
        let record = F::table(self.shared).record(index);
        let lifecycle = record.lifecycle();
        let server = record.server();
        let slot = self.shared.slots.get(server);
        let settings = &self.configuration.settings;
        if opens(packet, protocol) {
            let quiescent = settings.expire_nodest_conn && slot.weight() == 0;
            // What a template controls is not reused, however it ended.
            if quiescent || (self.is_reused(protocol, lifecycle) && record.control().is_none()) {
                self.end::<F>(ConnectionId { index, generation: lifecycle.generation });
                return self
                    .instead_of(slot, lifecycle, |pass| pass.unknown::<F>(packet, protocol, key, hash));
            }
        }
        if !slot.is_available() {
            if !settings.expire_nodest_conn {
                return Decision::End(Verdict::Drop(DropReason::RealServerGone));
            }
            self.end::<F>(ConnectionId { index, generation: lifecycle.generation });
            return self.unknown::<F>(packet, protocol, key, hash);
        }
        self.count(server, slot, packet);
        record.count_packet();
        self.advance::<F>(index, record, lifecycle, packet, protocol, false);
        let id = ConnectionId { index, generation: lifecycle.generation };
        Decision::to_server(server, lifecycle.method, id)
    }

    /// A packet of a connection's real server, on its way to the client (`handle_response`). That the real server was
    /// removed does not matter to it, nor does what its packet may begin.
    #[inline]
    pub(super) fn reply<F: Handled>(&mut self, index: u32, packet: &Parsed, protocol: Protocol) -> Decision {
        if packet.ttl <= 1 {
            // A router looks at that first (`ip_forward`): the connection does not hear of the packet.
            return Decision::End(Verdict::Drop(DropReason::TtlExpired));
        }
        let record = F::table(self.shared).record(index);
        let (server, lifecycle) = (record.server(), record.lifecycle());
        let slot = self.shared.slots.get(server);
        if slot.is_available() {
            // Not for one that was removed (`ip_vs_out_stats`).
            let traffic = &self.counters.traffic;
            traffic.server(server).packet_out(packet.ip_length);
            traffic.service(slot.service()).packet_out(packet.ip_length);
        }
        if protocol == Protocol::Udp
            && let Some(template) = record.control()
            // Only then it was the connection's.
            && record.lifecycle().is_use_of(lifecycle)
        {
            F::table(self.shared).templates().assure(template);
        }
        self.advance::<F>(index, record, lifecycle, packet, protocol, true);
        Decision::ToClient(ConnectionId { index, generation: lifecycle.generation })
    }

    /// Whether a SYN on this connection's ports begins another one (`is_new_conn_expected`).
    fn is_reused(&self, protocol: Protocol, lifecycle: Lifecycle) -> bool {
        let mode = self.configuration.settings.conn_reuse_mode;
        if mode == 0 {
            return false;
        }
        match (protocol, lifecycle.state) {
            (Protocol::Tcp, State::TIME_WAIT | State::CLOSE) | (Protocol::Sctp, State::SCTP_CLOSED) => true,
            (Protocol::Tcp, State::FIN_WAIT) => mode & 2 != 0 && lifecycle.flags.contains(Flags::NO_OUTPUT),
            _ => false,
        }
    }

    #[inline]
    pub(super) fn count(&self, server: ServerId, slot: &ServerSlot, packet: &Parsed) {
        let traffic = &self.counters.traffic;
        traffic.server(server).packet_in(packet.ip_length);
        traffic.service(slot.service()).packet_in(packet.ip_length);
    }

    /// Moves the state machine on and puts the deadline off.
    #[inline(always)]
    pub(super) fn advance<F: Handled>(
        &mut self,
        index: u32,
        record: Connection<'_, F>,
        mut lifecycle: Lifecycle,
        packet: &Parsed,
        protocol: Protocol,
        is_reply: bool,
    ) {
        let mut state = lifecycle.state;
        while lifecycle.is_alive() {
            state = next_state(protocol, lifecycle, packet, is_reply);
            let answers_first = is_reply && lifecycle.flags.contains(Flags::NO_OUTPUT);
            if state == lifecycle.state && !answers_first {
                break;
            }
            let active = state.is_active(protocol);
            let mut flags = if active {
                lifecycle.flags.without(Flags::INACTIVE)
            } else {
                lifecycle.flags.with(Flags::INACTIVE)
            };
            let control = record.control();
            if is_reply {
                flags = flags.without(Flags::NO_OUTPUT);
            }
            if record.exchange(lifecycle, Lifecycle { state, flags, ..lifecycle }) {
                if let Some(template) = control.filter(|_| assures(protocol, state)) {
                    F::table(self.shared).templates().assure(template);
                }
                if active != lifecycle.is_active() {
                    self.shared.slots.get(record.server()).connection_moved(active);
                }
                break;
            }
            // Another worker had a packet of the same connection.
            lifecycle = record.lifecycle();
        }
        let deadline = self.now + self.configuration.settings.timeouts.of(packet.protocol, state);
        let shortened = deadline < record.deadline();
        record.set_deadline(deadline);
        if shortened {
            // No room for the timer means the connection is collected when its former one fires.
            let _ = F::local(self.locals).wheel.file(F::table(self.shared), index, deadline);
        }
    }

    /// Schedules what takes the place of a connection that has just ended, which still counts while a real server is
    /// chosen: the kernel only has its timer run off at once (`ip_vs_conn_expire_now`).
    #[cold]
    fn instead_of(
        &mut self,
        slot: &ServerSlot,
        ended: Lifecycle,
        schedule: impl FnOnce(&mut Self) -> Decision,
    ) -> Decision {
        slot.connection_added();
        if ended.is_active() {
            slot.connection_moved(true);
        }
        let decision = schedule(self);
        slot.connection_removed(ended.is_active());
        decision
    }

    #[cold]
    pub(super) fn end<F: Handled>(&mut self, id: ConnectionId) {
        let Shared { slots, epochs, .. } = self.shared;
        F::table(self.shared).remove(id, slots, &mut F::local(self.locals).view, epochs);
    }
}

/// Whether the packet begins a connection even where there is one (`is_new_conn`).
#[inline]
fn opens(packet: &Parsed, protocol: Protocol) -> bool {
    match protocol {
        Protocol::Tcp => packet.tcp_flags & tcp_flags::SYN != 0,
        Protocol::Sctp => packet.sctp_chunk == SCTP_INIT,
        Protocol::Udp => false,
    }
}

/// Whether a connection that enters this state proves its template worth keeping. (UDP does by its first answer.)
#[inline]
pub(super) fn assures(protocol: Protocol, state: State) -> bool {
    match protocol {
        Protocol::Tcp => state == State::ESTABLISHED,
        Protocol::Sctp => state == State::SCTP_ESTABLISHED,
        Protocol::Udp => false,
    }
}

/// The state after a packet from the client, or a reply.
#[inline]
pub(super) fn next_state(protocol: Protocol, lifecycle: Lifecycle, packet: &Parsed, is_reply: bool) -> State {
    let direction = if is_reply {
        Direction::Output
    } else if lifecycle.flags.contains(Flags::NO_OUTPUT) {
        Direction::InputOnly
    } else {
        Direction::Input
    };
    match protocol {
        Protocol::Tcp => StateTable::NORMAL.next(lifecycle.state, direction, TcpEvent::of(packet.tcp_flags)),
        Protocol::Udp => State::UDP,
        Protocol::Sctp => {
            sctp::next(lifecycle.state, direction, packet.sctp_chunk, packet.sctp_abort_follows)
        }
    }
}
