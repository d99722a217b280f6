//! Direct routing: only the Ethernet addresses and the time to live change.

use crate::sys::frames::{Frame, FramePool};
use crate::types::Family;
use crate::wire::Parsed;
use crate::wire::ethernet::{self, LinkHeader};
use crate::wire::{ipv4, ipv6};

use super::NextHop;

/// Why a packet could not be turned into one for the real server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RewriteError {
    /// The time to live or hop limit would become 0.
    TtlExpired,
    /// Larger than the next hop's MTU.
    TooBig,
    /// The chunk has no room for the new link header.
    NoRoom,
}

/// Takes one off the packet's time to live, as a router does. First of all steps of every remote method
/// (`decrement_ttl` in `ip_vs_xmit.c`), so that a packet that dies of it is not measured any further.
///
/// # Errors
/// [`RewriteError::TtlExpired`], with nothing changed.
#[inline(always)]
pub fn decrement_lifetime(
    frames: &FramePool,
    frame: &mut Frame,
    parsed: &Parsed,
) -> Result<(), RewriteError> {
    let packet = &mut frames.bytes_mut(frame)[usize::from(parsed.ip_offset)..];
    let lives = match parsed.family() {
        Family::V4 => ipv4::decrement_ttl(packet),
        Family::V6 => ipv6::decrement_hop_limit(packet),
    };
    if lives { Ok(()) } else { Err(RewriteError::TtlExpired) }
}

/// Puts a link header for `next_hop` in front of the packet in place of the present one of `present` bytes, and
/// cuts off the padding behind it, as the kernel does (`ip_rcv_core`).
///
/// `largest` is the largest IP packet that will be on the wire, which for a frame that is still to be cut into
/// segments is a segment.
///
/// # Errors
/// [`RewriteError::TooBig`] and [`RewriteError::NoRoom`], with nothing changed.
#[inline(always)]
pub fn readdress(
    frames: &FramePool,
    frame: &mut Frame,
    (present, ip_length): (u16, u32),
    family: Family,
    largest: u32,
    next_hop: &NextHop,
) -> Result<(), RewriteError> {
    let &NextHop::Ready { source, destination, vlan, mtu, .. } = next_hop else {
        return Err(RewriteError::NoRoom);
    };
    if largest > mtu {
        return Err(RewriteError::TooBig);
    }
    let ether_type = match family {
        Family::V4 => ethernet::IPV4,
        Family::V6 => ethernet::IPV6,
    };
    frame.truncate(usize::from(present) + ip_length as usize);
    let header = LinkHeader { destination, source, vlan, ether_type };
    if ethernet::replace(frames, frame, usize::from(present), &header) {
        Ok(())
    } else {
        Err(RewriteError::NoRoom)
    }
}
