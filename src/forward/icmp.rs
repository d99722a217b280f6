//! ICMP errors about packets of a connection.
//!
//! [`quoted`] says which packet an error is about; its addresses and ports lead to the connection, for an error about
//! a reply with its ends exchanged. Under direct routing and tunnelling the error is then forwarded like any packet
//! of the connection; under masquerading [`translate_error`] changes it inside and outside. [`about_tunnel`]
//! finds the client's packet in an error about a packet that the director itself had put around it.

use std::net::IpAddr;

use crate::sys::frames::{Frame, FramePool};
use crate::types::{Family, TunnelKind};
use crate::wire::transport::{self, Checked, ICMP_HEADER_LENGTH, UDP_HEADER_LENGTH};
use crate::wire::{Fragment, Parsed, ethernet, gre, gue, icmp, icmpv6, ipv4, parse_quoted, protocol};

use super::nat::{self, Side, TranslateError, Translation};

/// The smallest MTU of IPv4, in bytes (RFC 791, section 3.2).
const SMALLEST_IPV4_MTU: u32 = 68;

/// The packet that an ICMP error is about, its offsets counted from the beginning of the frame. `None` for anything
/// but an error of the kinds that IPVS forwards, and where less than the ports is quoted.
///
/// ICMP: unreachable, source quench and time exceeded, of any code (`ip_vs_in_icmp`; not redirects and parameter
/// problems). ICMPv6: every error (`ip_vs_in_icmp_v6`). Fragments of errors are not looked into.
pub fn quoted(frame: &[u8], packet: &Parsed) -> Option<Parsed> {
    let about = quoted_at_all(frame, packet)?;
    (about.has_transport_header() && nat::has_ports(about.protocol)).then_some(about)
}

/// As [`quoted`], whatever protocol the packet is of.
fn quoted_at_all(frame: &[u8], packet: &Parsed) -> Option<Parsed> {
    let is_forwarded = match packet.protocol {
        protocol::ICMP => matches!(
            packet.icmp_type,
            icmp::DESTINATION_UNREACHABLE | icmp::SOURCE_QUENCH | icmp::TIME_EXCEEDED
        ),
        protocol::ICMPV6 => icmpv6::is_error(packet.icmp_type),
        _ => false,
    };
    if !is_forwarded || packet.fragment != Fragment::Whole {
        return None;
    }
    // Without the padding.
    let frame = frame.get(..packet.end())?;
    let about = parse_quoted(frame, usize::from(packet.transport_offset) + ICMP_HEADER_LENGTH).ok()?;
    (about.family() == packet.family()).then_some(about)
}

/// Translates an ICMP error under masquerading, as the packets of its connection that go the same way are: `to` is what
/// [`nat::translate`] would get for them. `quoted` is what [`quoted`] found in this frame.
///
/// From the clients' side, the error's destination becomes the real server, and so does the source of the reply that
/// it quotes. From the servers' side, its source becomes the virtual service, whoever sent it, and so does the
/// destination of the request that it quotes (`ip_vs_nat_icmp`). The transport checksum inside is left as it is: it
/// was right for another packet.
///
/// # Errors
/// [`TranslateError::BadChecksum`], [`TranslateError::OtherFamily`], with nothing changed; [`TranslateError::Truncated`]
/// where the frame is not the one that was read.
pub fn translate_error(
    frames: &FramePool,
    frame: &mut Frame,
    packet: &Parsed,
    quoted: &Parsed,
    to: Translation,
) -> Result<(), TranslateError> {
    let bytes = frames.bytes_mut(frame);
    let addresses = to.of(&packet.addresses).ok_or(TranslateError::OtherFamily)?;
    if transport::verify(bytes, packet) != Checked::Right {
        return Err(TranslateError::BadChecksum);
    }
    let inside = Translation { side: opposite(to.side), ..to };
    let (begin, end) = (usize::from(quoted.ip_offset), packet.end());
    nat::replace_address(bytes.get_mut(begin..end), inside)?;
    if quoted.family() == Family::V4 {
        // Anew, as the kernel does: it may have been spoilt on its way.
        let header = bytes.get_mut(begin..usize::from(quoted.transport_offset));
        if !header.is_some_and(ipv4::write_checksum) {
            return Err(TranslateError::Truncated);
        }
    }
    if nat::has_ports(quoted.protocol) && quoted.has_transport_header() {
        let segment = bytes.get_mut(usize::from(quoted.transport_offset)..end);
        nat::replace_port(segment.ok_or(TranslateError::Truncated)?, inside);
    }
    nat::replace_address(bytes.get_mut(usize::from(packet.ip_offset)..), to)?;
    if transport::write_checksum(bytes, &Parsed { addresses, ..*packet }) {
        Ok(())
    } else {
        Err(TranslateError::Truncated)
    }
}

const fn opposite(side: Side) -> Side {
    match side {
        Side::Source => Side::Destination,
        Side::Destination => Side::Source,
    }
}

/// An ICMP error about a packet that the director put around a client's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AboutTunnel {
    /// Where the outer packet was going: a real server, if this is about a tunnel at all.
    pub server: IpAddr,
    /// Which headers were around the client's packet.
    pub kind: TunnelKind,
    /// The UDP port of GUE; 0 for the other kinds.
    pub port: u16,
    /// The client's packet, its offsets counted from the beginning of the frame. What was quoted of it may end before
    /// it does.
    pub inner: Parsed,
    /// Largest outer packet, in bytes, that some router on the way says it takes.
    pub path_mtu: Option<u32>,
    /// What the client is told.
    answer: Option<Answer>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Answer {
    V4(icmp::Message),
    V6(icmpv6::Message),
}

/// Takes the client's packet out of an ICMP error about a tunnel's packet. `None` for anything else, where too little
/// is quoted, and for a wrong checksum, which the host drops, too. It is the caller's to look whether `server`, `kind`
/// and `port` are those of a tunnel, and the connection that `inner` belongs to.
///
/// Unlike the kernel (`ip_vs_in_icmp`), this knows tunnels over IPv6 and IPv6 in tunnels.
pub fn about_tunnel(frame: &[u8], packet: &Parsed) -> Option<AboutTunnel> {
    let outer = quoted_at_all(frame, packet)?;
    if !outer.has_transport_header() || transport::verify(frame, packet) != Checked::Right {
        return None;
    }
    let frame = frame.get(..packet.end())?;
    let at = usize::from(outer.transport_offset);
    let (kind, port, at) = match outer.protocol {
        protocol::IPV4 | protocol::IPV6 => (TunnelKind::Ipip, 0, at),
        protocol::UDP => {
            let at = at + UDP_HEADER_LENGTH;
            let (number, length) = gue::parse(frame.get(at..)?)?;
            if !matches!(number, protocol::IPV4 | protocol::IPV6) {
                return None;
            }
            (TunnelKind::Gue, outer.destination_port, at + length)
        }
        protocol::GRE => {
            let (ether_type, length) = gre::parse(frame.get(at..)?)?;
            if !matches!(ether_type, ethernet::IPV4 | ethernet::IPV6) {
                return None;
            }
            (TunnelKind::Gre, 0, at + length)
        }
        _ => return None,
    };
    let inner = parse_quoted(frame, at).ok()?;
    let path_mtu = path_mtu(frame, packet);
    let overhead = u32::from(inner.ip_offset - outer.ip_offset);
    let answer = answer(frame, packet, &inner, path_mtu, overhead);
    Some(AboutTunnel { server: outer.addresses.destination(), kind, port, inner, path_mtu, answer })
}

/// The MTU that an error asks to keep to; `None` where it is about something else.
fn path_mtu(frame: &[u8], packet: &Parsed) -> Option<u32> {
    let &[kind, code, _, _, a, b, c, d] = frame.get(usize::from(packet.transport_offset)..)?.first_chunk()?;
    match packet.family() {
        Family::V4 if (kind, code) == (icmp::DESTINATION_UNREACHABLE, icmp::FRAGMENTATION_NEEDED) => {
            Some(u16::from_be_bytes([c, d]).into())
        }
        Family::V6 if kind == icmpv6::PACKET_TOO_BIG => Some(u32::from_be_bytes([a, b, c, d])),
        _ => None,
    }
}

/// What to tell the sender of `inner`; `None` for nothing.
fn answer(
    frame: &[u8],
    packet: &Parsed,
    inner: &Parsed,
    path_mtu: Option<u32>,
    overhead: u32,
) -> Option<Answer> {
    let &[kind, code, _, _, rest @ ..] =
        frame.get(usize::from(packet.transport_offset)..)?.first_chunk::<ICMP_HEADER_LENGTH>()?;
    let rest = u32::from_be_bytes(rest);
    let unchanged = match packet.family() {
        Family::V4 => true,
        // A parameter problem points into the outer packet.
        Family::V6 => matches!(kind, icmpv6::DESTINATION_UNREACHABLE | icmpv6::TIME_EXCEEDED),
    } && inner.family() == packet.family();
    Some(match (inner.family(), path_mtu) {
        // Who lets it be fragmented does not look for the path's MTU.
        (Family::V4, Some(_)) if !inner.dont_fragment => return None,
        (Family::V4, Some(mtu)) => {
            // Less than any link takes is passed on as it is, as by the kernel: its receiver knows what to do with it.
            let mtu = if mtu > SMALLEST_IPV4_MTU + overhead { mtu - overhead } else { mtu };
            Answer::V4(icmp::Message::fragmentation_needed(u16::try_from(mtu).unwrap_or(u16::MAX)))
        }
        (Family::V6, Some(mtu)) => Answer::V6(icmpv6::Message::packet_too_big(
            mtu.saturating_sub(overhead).max(icmpv6::MAX_LENGTH as u32),
        )),
        (Family::V4, None) if unchanged => Answer::V4(icmp::Message::new(kind, code, rest)),
        (Family::V6, None) if unchanged => Answer::V6(icmpv6::Message::new(kind, code, rest)),
        (Family::V4, None) => Answer::V4(icmp::Message::HOST_UNREACHABLE),
        (Family::V6, None) => Answer::V6(icmpv6::Message::ADDRESS_UNREACHABLE),
    })
}

impl AboutTunnel {
    /// Writes the packet that tells the client, from the address that it asked for, what the error said: the same,
    /// but for an MTU, from which the tunnel's headers are taken. Returns its length in bytes, `None` where the client
    /// is to be told nothing: it did not forbid fragmenting, its packet was itself an error, and the like. `frame` is
    /// the one that this was found in, and `packet` what was read of it. `identification` goes into an IPv4 header.
    pub fn write_answer(
        &self,
        out: &mut [u8],
        frame: &[u8],
        packet: &Parsed,
        identification: u16,
    ) -> Option<usize> {
        let original = frame.get(usize::from(self.inner.ip_offset)..packet.end().min(self.inner.end()))?;
        match (self.answer?, self.inner.addresses.destination()) {
            (Answer::V4(message), IpAddr::V4(service)) if icmp::may_answer(&self.inner) => {
                icmp::write_error(out, message, service, identification, original)
            }
            (Answer::V6(message), IpAddr::V6(service)) if icmpv6::may_answer(&self.inner) => {
                icmpv6::write_error(out, message, service, original)
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
