//! ICMP errors about packets of a connection: they go where the packet came from, which only the director knows.
//!
//! A router near the client that cannot send a reply on tells the virtual address, which the reply came from. What it
//! says is for the real server; how it gets there is the connection's method. Under masquerading, whoever cannot send a
//! packet to the real server on tells the client, who does not know that server: what it is told is about the virtual
//! service.

use crate::conn::{ConnectionId, Found, Hint, Ipv4, Ipv6};
use crate::forward::icmp;
use crate::forward::nat::{self, TranslateError, Translation};
use crate::sys::frames::{Frame, FramePool};
use crate::types::Family;
use crate::wire::{Parsed, protocol};

use super::batch::Entry;
use super::pipeline::{Decision, Handled, Pass, key};
use super::{DropReason, Verdict};

impl Pass<'_> {
    /// A packet of a protocol that no service has. The host's, unless it is an ICMP error about a packet of a connection,
    /// and goes to that packet's sender.
    #[cold]
    #[inline(never)]
    pub(super) fn without_service(&mut self, packet: &Parsed, frame: &Frame) -> Decision {
        match icmp::quoted(self.frames.bytes(frame), packet) {
            Some(about) if about.addresses.source() == packet.addresses.destination() => {
                match about.family() {
                    Family::V4 => self.error::<Ipv4>(packet, &about),
                    Family::V6 => self.error::<Ipv6>(packet, &about),
                }
            }
            _ => Decision::End(Verdict::ToHost),
        }
    }

    /// An error about a packet, which the connection is looked up with as its answer would be. The connection does not
    /// notice: only the error's bytes are counted (`ip_vs_in_icmp`, `handle_response_icmp`).
    fn error<F: Handled>(&mut self, packet: &Parsed, about: &Parsed) -> Decision {
        let table = F::table(self.shared);
        let answer = Parsed {
            addresses: about.addresses.reversed(),
            source_port: about.destination_port,
            destination_port: about.source_port,
            ..*about
        };
        let key = key::<F>(&answer);
        let Some(Found { index, is_reply }) = table.find(Hint::NONE, &key, table.hash(&key), self.now) else {
            return Decision::End(Verdict::ToHost);
        };
        let record = table.record(index);
        let (server, lifecycle) = (record.server(), record.lifecycle());
        let id = ConnectionId { index, generation: lifecycle.generation };
        let slot = self.shared.slots.get(server);
        if is_reply {
            // The answer to the packet that it is about would be a reply: that was on its way to the real server.
            if packet.ttl <= 1 {
                // A router looks at that first, as for replies.
                return Decision::End(Verdict::Drop(DropReason::TtlExpired));
            }
            let traffic = &self.counters.traffic;
            traffic.server(server).packet_out(packet.ip_length);
            traffic.service(slot.service()).packet_out(packet.ip_length);
            return Decision::ToClient(id);
        }
        if !slot.is_available() {
            return Decision::End(Verdict::Drop(DropReason::RealServerGone));
        }
        self.count(server, slot, packet);
        Decision::to_server(server, lifecycle.method, id)
    }
}

/// Translates a packet that was decided about: one of a connection, or an error about one.
///
/// # Errors
/// Those of [`nat::translate`] and [`icmp::translate_error`].
#[inline]
pub(super) fn translate(
    frames: &FramePool,
    entry: &mut Entry,
    packet: &Parsed,
    to: Translation,
) -> Result<(), TranslateError> {
    match packet.protocol {
        protocol::ICMP | protocol::ICMPV6 => translate_error(frames, &mut entry.frame, packet, to),
        _ => nat::translate(frames, &mut entry.frame, packet, &entry.offload, to),
    }
}

#[cold]
fn translate_error(
    frames: &FramePool,
    frame: &mut Frame,
    packet: &Parsed,
    to: Translation,
) -> Result<(), TranslateError> {
    let about = icmp::quoted(frames.bytes(frame), packet).ok_or(TranslateError::Truncated)?;
    icmp::translate_error(frames, frame, packet, &about, to)
}
