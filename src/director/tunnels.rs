//! Tunnelling: packets for real servers that take them inside others.

use crate::forward::NextHop;
use crate::forward::tunnel::{self, EncapsulateError, Encapsulation};
use crate::service::{ServerId, ServerSlots};
use crate::sys::frames::FramePool;
use crate::types::Family;
use crate::wire::{self, Outcome, Parsed};

use super::batch::Entry;
use super::configuration::Network;
use super::held::Waybill;
use super::{DropReason, Verdict};

/// What it takes to put packets into others.
pub(super) struct Tunnels<'a> {
    pub(super) slots: &'a ServerSlots,
    pub(super) network: &'a Network,
    pub(super) frames: &'a FramePool,
    /// The setting of that name.
    pub(super) pmtu_disc: bool,
    /// What the next outer packet that may be fragmented is identified by, among this worker's.
    pub(super) identification: &'a mut u16,
}

impl Tunnels<'_> {
    /// Puts a packet, its lifetime already decremented, into one for a real server and readdresses the frame.
    #[inline(never)]
    pub(super) fn send(&mut self, server: ServerId, entry: &mut Entry, packet: &Parsed) -> Verdict {
        let next_hop = self.network.next_hop(server);
        let &NextHop::Ready { port, mtu, .. } = next_hop else { return Verdict::Held };
        let slot = self.slots.get(server);
        let destination = slot.real_server(server).address;
        let Some(source) = self.network.source_towards(server, destination, port) else {
            return Verdict::Drop(DropReason::NoTunnelSource);
        };
        let with =
            Encapsulation { tunnel: slot.tunnel(), source, destination, mtu, pmtu_disc: self.pmtu_disc };
        *self.identification = self.identification.wrapping_add(1);
        let Entry { frame, offload, .. } = entry;
        match tunnel::encapsulate(self.frames, frame, packet, offload, &with, *self.identification) {
            Ok(outer) if outer.must_fragment => Verdict::Drop(DropReason::MustFragment),
            Ok(outer) => Waybill::outer(server, packet, &outer).send(self.frames, frame, offload, next_hop),
            Err(error) => Verdict::Drop(error.into()),
        }
    }

    /// The same with a packet that has waited.
    pub(super) fn send_held(&mut self, server: ServerId, entry: &mut Entry) -> Verdict {
        match wire::parse(self.frames.bytes(&entry.frame)) {
            Outcome::Packet(packet) => self.send(server, entry, &packet),
            // It was a packet when it came, and nobody but us has changed it.
            _ => Verdict::Drop(DropReason::TruncatedFrame),
        }
    }

    /// The largest packet, in bytes, that the tunnel to a real server takes, where the way there takes `mtu`.
    pub(super) fn mtu(&self, server: ServerId, mtu: u32) -> u32 {
        let slot = self.slots.get(server);
        let family = Family::of(slot.real_server(server).address);
        mtu.saturating_sub(tunnel::overhead(&slot.tunnel(), family) as u32)
    }
}

impl From<EncapsulateError> for DropReason {
    fn from(error: EncapsulateError) -> Self {
        match error {
            EncapsulateError::TooBig { .. } => Self::TooBig,
            EncapsulateError::MtuTooSmall => Self::TunnelMtuTooSmall,
            EncapsulateError::TooLong => Self::TooLongForTunnel,
            EncapsulateError::Unsegmented => Self::Unsegmented,
            // The source is chosen for the destination.
            EncapsulateError::OtherFamily => Self::NoTunnelSource,
            EncapsulateError::NoRoom => Self::NoRoom,
            EncapsulateError::Truncated => Self::TruncatedFrame,
        }
    }
}
