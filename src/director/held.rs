//! Frames that wait for the link address of a real server, or of a client's.

use std::collections::VecDeque;
use std::net::IpAddr;

use crate::forward::tunnel::Outer;
use crate::forward::{NextHop, NextHopError, dr};
use crate::fragment::Ticket;
use crate::service::ServerId;
use crate::sys::frames::{Frame, FramePool};
use crate::types::{Duration, Family, Instant, PortId};
use crate::wire::Parsed;

use super::batch::{Batch, Entry, Offload};
use super::configuration::Network;
use super::tunnels::Tunnels;
use super::{DropReason, Verdict};

/// Most frames that wait at a time, with one worker.
pub(super) const MAX_HELD: usize = 256;
/// Most of them for one real server, or one client: what the kernel keeps for an unresolved neighbour, about
/// (`unres_qlen_bytes`), so that one dead server cannot starve the others.
const MAX_HELD_PER_RECEIVER: usize = 64;
/// Most of them for clients, so that their number cannot starve the real servers.
const MAX_HELD_FOR_CLIENTS: usize = 128;
/// How long a frame waits: the kernel's three probes, a second apart.
const PATIENCE: Duration = Duration::from_secs(3);

/// Whom a frame is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Receiver {
    Server(ServerId),
    /// A real server that is sent the packet in another one.
    Tunnelled(ServerId),
    Client(IpAddr),
}

impl Receiver {
    /// The way there.
    #[inline]
    pub(super) fn next_hop(self, network: &Network) -> &NextHop {
        match self {
            Self::Server(server) | Self::Tunnelled(server) => network.next_hop(server),
            Self::Client(client) => network.way_to_client(client).unwrap_or(&NextHop::Resolving),
        }
    }
}

/// A waiting frame, its time to live already lowered, its addresses translated; it is put into another packet later:
/// how large that may be is not known yet.
#[derive(Debug)]
struct Waiting {
    entry: Entry,
    waybill: Waybill,
    until: Instant,
}

/// What a frame needs to be sent on, now or later.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waybill {
    receiver: Receiver,
    link_length: u16,
    ip_length: u32,
    largest: u32,
    family: Family,
}

impl Waybill {
    #[inline(always)]
    pub(super) fn new(receiver: Receiver, packet: &Parsed, offload: &Offload) -> Self {
        Self {
            receiver,
            link_length: packet.ip_offset,
            ip_length: packet.ip_length,
            largest: offload.largest_packet(packet),
            family: packet.family(),
        }
    }

    /// Of a packet that was put into another, whose link header stayed as long as it was.
    pub(super) fn outer(server: ServerId, packet: &Parsed, outer: &Outer) -> Self {
        Self {
            receiver: Receiver::Tunnelled(server),
            link_length: packet.ip_offset,
            ip_length: outer.ip_length,
            largest: outer.ip_length,
            family: outer.family,
        }
    }

    /// Whether the packet fits the link to `next_hop`, as far as that is known.
    #[inline(always)]
    pub(super) fn fits(&self, next_hop: &NextHop) -> bool {
        !matches!(next_hop, NextHop::Ready { mtu, .. } if self.largest > *mtu)
    }

    /// Readdresses the frame to `next_hop`.
    #[inline(always)]
    pub(super) fn send(
        &self,
        frames: &FramePool,
        frame: &mut Frame,
        offload: &mut Offload,
        next_hop: &NextHop,
    ) -> Verdict {
        let &NextHop::Ready { port, vlan, .. } = next_hop else { return Verdict::Held };
        let place = (self.link_length, self.ip_length);
        match dr::readdress(frames, frame, place, self.family, self.largest, next_hop) {
            Ok(()) => {
                offload.link_header_replaced(self.link_length, if vlan.is_some() { 18 } else { 14 });
                Verdict::Transmit(port)
            }
            Err(error) => Verdict::Drop(error.into()),
        }
    }
}

/// What a frame of the present batch is to wait for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Promise {
    /// The link address of where it is to go.
    LinkAddress(Waybill),
    /// The decision about its datagram's first fragment.
    First {
        /// What to ask with.
        ticket: Ticket,
        /// How long.
        until: Instant,
    },
}

/// One worker's waiting frames, oldest first.
#[derive(Debug)]
pub(super) struct Held {
    waiting: VecDeque<Waiting>,
}

impl Held {
    pub(super) fn new() -> Self {
        Self { waiting: VecDeque::with_capacity(MAX_HELD) }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// When the first of them gives up.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.waiting.front().map(|waiting| waiting.until)
    }

    /// Whether another frame for `receiver` may wait, beside those of the present batch that were promised a place
    /// already.
    pub(super) fn has_room(&self, receiver: Receiver, promised: &[(usize, Promise)]) -> bool {
        let waiting = self.waiting.iter().map(|waiting| waiting.waybill.receiver);
        let promised = promised.iter().filter_map(|(_, promise)| match promise {
            Promise::LinkAddress(waybill) => Some(waybill.receiver),
            Promise::First { .. } => None,
        });
        let (mut all, mut for_clients, mut for_receiver) = (0, 0, 0);
        for other in waiting.chain(promised) {
            all += 1;
            for_clients += usize::from(matches!(other, Receiver::Client(_)));
            for_receiver += usize::from(other == receiver);
        }
        let has_share = !matches!(receiver, Receiver::Client(_)) || for_clients < MAX_HELD_FOR_CLIENTS;
        all < MAX_HELD && for_receiver < MAX_HELD_PER_RECEIVER && has_share
    }

    pub(super) fn keep(&mut self, entry: Entry, waybill: Waybill, now: Instant) {
        self.waiting.push_back(Waiting { entry, waybill, until: now + PATIENCE });
    }

    /// Appends to `batch`, decided, the frames whose wait is over, as far as there is room.
    pub(super) fn release(
        &mut self,
        batch: &mut Batch,
        tunnels: &mut Tunnels<'_>,
        now: Instant,
        mut count: impl FnMut(PortId, Verdict),
    ) {
        for _ in 0..self.waiting.len() {
            if batch.room() == 0 {
                return;
            }
            let Some(mut waiting) = self.waiting.pop_front() else { return };
            let Waiting { entry, waybill, until } = &mut waiting;
            let verdict = match waybill.receiver.next_hop(tunnels.network) {
                NextHop::Resolving if now < *until => {
                    self.waiting.push_back(waiting);
                    continue;
                }
                NextHop::Resolving => Verdict::Drop(DropReason::NeighbourFailed),
                NextHop::Local => Verdict::ToHost,
                NextHop::Failed(error) => Verdict::Drop((*error).into()),
                next_hop @ NextHop::Ready { .. } => match waybill.receiver {
                    Receiver::Tunnelled(server) => tunnels.send_held(server, entry),
                    _ => waybill.send(tunnels.frames, &mut entry.frame, &mut entry.offload, next_hop),
                },
            };
            let Entry { frame, port, offload, .. } = waiting.entry;
            count(port, verdict);
            batch.push_decided(frame, port, offload, verdict);
        }
    }
}

impl From<NextHopError> for DropReason {
    fn from(error: NextHopError) -> Self {
        match error {
            NextHopError::NoRoute => Self::NoRoute,
            NextHopError::ForeignInterface => Self::ForeignInterface,
            NextHopError::NeighbourFailed => Self::NeighbourFailed,
            NextHopError::PortDown => Self::PortDown,
        }
    }
}

impl From<dr::RewriteError> for DropReason {
    fn from(error: dr::RewriteError) -> Self {
        match error {
            dr::RewriteError::TtlExpired => Self::TtlExpired,
            dr::RewriteError::TooBig => Self::TooBig,
            dr::RewriteError::NoRoom => Self::NoRoom,
        }
    }
}
