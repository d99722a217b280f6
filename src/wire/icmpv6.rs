//! ICMPv6 error messages (RFC 4443), as Linux writes them.

use std::net::Ipv6Addr;

use super::checksum::Sum;
use super::transport::{ICMP_CHECKSUM, ICMP_HEADER_LENGTH};
use super::{Addresses, Parsed, ipv6, protocol};

/// Type of "destination unreachable".
pub const DESTINATION_UNREACHABLE: u8 = 1;
/// Type of "packet too big".
pub const PACKET_TOO_BIG: u8 = 2;
/// Type of "time exceeded".
pub const TIME_EXCEEDED: u8 = 3;
/// Type of "parameter problem".
pub const PARAMETER_PROBLEM: u8 = 4;
/// Type of "redirect" (RFC 4861).
pub const REDIRECT: u8 = 137;
/// Types below are errors, types from here on are information.
pub const FIRST_INFORMATIONAL: u8 = 128;

/// Most bytes of an error message, IPv6 header included: the smallest MTU there is (RFC 4443, section 2.4 (c)).
pub const MAX_LENGTH: usize = 1280;
/// Hop limit of the messages, Linux's default.
const HOP_LIMIT: u8 = 64;

const HEADERS: usize = ipv6::HEADER_LENGTH + ICMP_HEADER_LENGTH;

/// An error to tell a sender of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Message {
    kind: u8,
    code: u8,
    /// The second half of the ICMPv6 header.
    rest: u32,
}

impl Message {
    /// There is no way to the destination (1, 3).
    pub const ADDRESS_UNREACHABLE: Self = Self { kind: DESTINATION_UNREACHABLE, code: 3, rest: 0 };
    /// Nobody serves the port: what IPVS sends where no real server is to be had (1, 4).
    pub const PORT_UNREACHABLE: Self = Self { kind: DESTINATION_UNREACHABLE, code: 4, rest: 0 };
    /// The hop limit ran out on the way (3, 0).
    pub const TIME_EXCEEDED: Self = Self { kind: TIME_EXCEEDED, code: 0, rest: 0 };

    /// The packet is larger than `mtu`, the bytes that the next hop takes (2, 0).
    pub const fn packet_too_big(mtu: u32) -> Self {
        Self { kind: PACKET_TOO_BIG, code: 0, rest: mtu }
    }

    /// Any other, such as one that is passed on.
    pub const fn new(kind: u8, code: u8, rest: u32) -> Self {
        Self { kind, code, rest }
    }
}

/// Whether a message type reports an error.
pub const fn is_error(icmp_type: u8) -> bool {
    icmp_type < FIRST_INFORMATIONAL
}

/// Whether an error message about a packet may be sent: not about other errors or redirects, not to or because of
/// group addresses, not to an address that names no single host (RFC 4443, section 2.4 (e)). False for IPv4.
///
/// Stricter than the RFC, which lets "packet too big" answer multicast: the director sends none.
pub fn may_answer(packet: &Parsed) -> bool {
    let Addresses::V6 { .. } = packet.addresses else { return false };
    let multicast = |address: std::net::IpAddr| address.is_multicast();
    let (source, destination) = (packet.addresses.source(), packet.addresses.destination());
    let names_a_host = !source.is_unspecified() && !source.is_loopback() && !multicast(source);
    let to_a_host = !multicast(destination) && !packet.destination_mac.is_group();
    // A later fragment's type is unknown (its field is 0, an error's): it may be part of an error.
    let about_error =
        packet.protocol == protocol::ICMPV6 && (is_error(packet.icmp_type) || packet.icmp_type == REDIRECT);
    names_a_host && to_a_host && !about_error
}

/// Writes the IPv6 packet that tells the sender of `original`, from `source`, what is wrong with it; returns its
/// length in bytes, [`MAX_LENGTH`] at most. `original` is that packet from its IP header on, padding cut off; as much
/// of it is quoted as fits. Ask [`may_answer`] first.
///
/// `None`, with nothing useful written, where `original` has no whole IPv6 header or `out` is too short.
pub fn write_error(out: &mut [u8], message: Message, source: Ipv6Addr, original: &[u8]) -> Option<usize> {
    let header: &[u8; ipv6::HEADER_LENGTH] = original.first_chunk()?;
    let quoted = &original[..original.len().min(MAX_LENGTH - HEADERS)];
    let payload_length = ICMP_HEADER_LENGTH + quoted.len();
    let length = ipv6::HEADER_LENGTH + payload_length;
    let (ip, icmp) = out.get_mut(..length)?.split_at_mut(ipv6::HEADER_LENGTH);

    // Traffic class and flow label zero.
    ip[..4].copy_from_slice(&[0x60, 0, 0, 0]);
    ip[ipv6::PAYLOAD_LENGTH..][..2].copy_from_slice(&(payload_length as u16).to_be_bytes());
    ip[ipv6::NEXT_HEADER] = protocol::ICMPV6;
    ip[ipv6::HOP_LIMIT] = HOP_LIMIT;
    ip[ipv6::SOURCE..ipv6::DESTINATION].copy_from_slice(&source.octets());
    ip[ipv6::DESTINATION..].copy_from_slice(&header[ipv6::SOURCE..ipv6::DESTINATION]);

    icmp[..4].copy_from_slice(&[message.kind, message.code, 0, 0]);
    icmp[4..ICMP_HEADER_LENGTH].copy_from_slice(&message.rest.to_be_bytes());
    icmp[ICMP_HEADER_LENGTH..].copy_from_slice(quoted);
    // The pseudo-header (RFC 8200, section 8.1): both addresses, the length, the protocol.
    let checksum = Sum::ZERO
        .bytes(&ip[ipv6::SOURCE..])
        .u32(payload_length as u32)
        .u16(u16::from(protocol::ICMPV6))
        .bytes(icmp)
        .checksum();
    icmp[ICMP_CHECKSUM..ICMP_CHECKSUM + 2].copy_from_slice(&checksum.to_be_bytes());
    Some(length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::build::{Build, Transport};
    use crate::wire::transport::{Checked, verify};
    use crate::wire::{Outcome, parse, parse_inner, parse_quoted};

    const CLIENT: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    const VIRTUAL: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff];

    fn packet(build: &Build) -> (Vec<u8>, Parsed) {
        let frame = build.frame();
        match parse(&frame) {
            Outcome::Packet(packet) => (frame, packet),
            other => panic!("{build:?}: {other:?}"),
        }
    }

    fn tcp() -> Build {
        Build::ipv6(CLIENT, VIRTUAL).transport(Transport::tcp(1234, 80))
    }

    #[test]
    fn errors_quote_what_fits_and_have_right_checksums() {
        let messages = [
            (Message::PORT_UNREACHABLE, [1, 4], 0),
            (Message::ADDRESS_UNREACHABLE, [1, 3], 0),
            (Message::TIME_EXCEEDED, [3, 0], 0),
            (Message::packet_too_big(1400), [2, 0], 1400),
            (Message::new(4, 1, 6), [4, 1], 6),
        ];
        for (message, head, rest) in messages {
            for (payload, quoted) in [(0, 60), (1171, 1231), (1172, 1232), (1400, 1232)] {
                let (frame, original) = packet(&tcp().payload(&vec![0x5a; payload]));
                let mut out = [0xee; MAX_LENGTH];
                let bytes = &frame[original.ip_offset.into()..original.end()];
                let source = Ipv6Addr::LOCALHOST;
                let length = write_error(&mut out, message, source, bytes).unwrap();
                assert_eq!(length, 48 + quoted);
                let error = parse_inner(&out[..length], 0).unwrap();
                assert_eq!(error.ip_length as usize, length);
                assert_eq!((error.protocol, error.ttl), (58, 64));
                assert_eq!(error.addresses.source(), source);
                assert_eq!(error.addresses.destination(), original.addresses.source());
                assert_eq!(verify(&out, &error), Checked::Right);
                assert_eq!((&out[40..42], &out[44..48]), (&head[..], &u32::to_be_bytes(rest)[..]));
                assert_eq!(out[48..length], bytes[..quoted]);
                let inner = parse_quoted(&out[..length], 48).unwrap();
                assert_eq!((inner.addresses, inner.source_port), (original.addresses, 1234));
                assert!(out[length..].iter().all(|&byte| byte == 0xee));
            }
        }
    }

    #[test]
    fn short_buffers_and_packets_are_refused() {
        let (frame, _) = packet(&tcp());
        let mut out = [0; MAX_LENGTH];
        let source = Ipv6Addr::LOCALHOST;
        assert_eq!(write_error(&mut out[..107], Message::TIME_EXCEEDED, source, &frame[14..74]), None);
        assert_eq!(write_error(&mut out[..108], Message::TIME_EXCEEDED, source, &frame[14..74]), Some(108));
        assert_eq!(write_error(&mut out, Message::TIME_EXCEEDED, source, &frame[14..53]), None);
    }

    #[test]
    fn only_packets_of_one_host_to_one_host_are_answered() {
        let group = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
        let icmp = |kind| tcp().transport(Transport::Icmpv6 { kind, code: 0, rest: 0 });
        let rows = [
            ("TCP", tcp(), true),
            ("later fragment", tcp().fragment(8, false), true),
            ("later fragment of ICMPv6", icmp(128).fragment(8, false), false),
            ("echo request", icmp(128), true),
            ("unreachable", icmp(1), false),
            ("too big", icmp(2), false),
            ("redirect", icmp(137), false),
            ("to multicast", Build::ipv6(CLIENT, group), false),
            ("from multicast", Build::ipv6(group, VIRTUAL), false),
            ("from nobody", Build::ipv6([0; 16], VIRTUAL), false),
            ("from loopback", Build::ipv6(Ipv6Addr::LOCALHOST.octets(), VIRTUAL), false),
            ("link multicast", tcp().destination_mac([0x33, 0x33, 0, 0, 0, 1]), false),
            ("IPv4", Build::ipv4([192, 0, 2, 1], [192, 0, 2, 2]), false),
        ];
        for (what, build, expected) in rows {
            assert_eq!(may_answer(&packet(&build).1), expected, "{what}");
        }
    }
}
