//! ICMP error messages for IPv4 (RFC 792, RFC 1122 section 3.2.2, RFC 1812 section 4.3.2), as Linux writes them.

use std::net::Ipv4Addr;

use super::checksum::Sum;
use super::transport::{ICMP_CHECKSUM, ICMP_HEADER_LENGTH};
use super::{Addresses, Fragment, Parsed, ipv4, protocol};

/// Type of "destination unreachable".
pub const DESTINATION_UNREACHABLE: u8 = 3;
/// Type of "source quench".
pub const SOURCE_QUENCH: u8 = 4;
/// Type of "redirect".
pub const REDIRECT: u8 = 5;
/// Type of "time exceeded".
pub const TIME_EXCEEDED: u8 = 11;
/// Type of "parameter problem".
pub const PARAMETER_PROBLEM: u8 = 12;
/// Code of "destination unreachable": larger than the next link takes, and not to be fragmented.
pub const FRAGMENTATION_NEEDED: u8 = 4;
/// The highest type that Linux knows (NR_ICMP_TYPES); about higher ones nothing is sent, as they may be errors.
const HIGHEST_KNOWN: u8 = 18;

/// Most bytes of an error message, IP header included: what every host must take (RFC 1812, section 4.3.2.3).
pub const MAX_LENGTH: usize = 576;
/// Time to live of the messages, Linux's default.
const TTL: u8 = 64;
/// Precedence of the messages: internetwork control (RFC 1812, section 4.3.2.5).
const PRECEDENCE: u8 = 0xc0;
/// The bits of a packet's type of service that its error message has, too (Linux's IPTOS_TOS_MASK).
const TOS_MASK: u8 = 0x1e;

const HEADERS: usize = ipv4::HEADER_LENGTH + ICMP_HEADER_LENGTH;

/// An error to tell a sender of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Message {
    kind: u8,
    code: u8,
    /// The second half of the ICMP header.
    rest: u32,
}

impl Message {
    /// There is no way to the destination (3, 1).
    pub const HOST_UNREACHABLE: Self = Self { kind: DESTINATION_UNREACHABLE, code: 1, rest: 0 };
    /// Nobody serves the port: what IPVS sends where no real server is to be had (3, 3).
    pub const PORT_UNREACHABLE: Self = Self { kind: DESTINATION_UNREACHABLE, code: 3, rest: 0 };
    /// The time to live ran out on the way (11, 0).
    pub const TIME_EXCEEDED: Self = Self { kind: TIME_EXCEEDED, code: 0, rest: 0 };

    /// The packet is larger than `mtu`, the bytes that the next hop takes, and not to be fragmented (3, 4; RFC 1191).
    pub const fn fragmentation_needed(mtu: u16) -> Self {
        Self { kind: DESTINATION_UNREACHABLE, code: FRAGMENTATION_NEEDED, rest: mtu as u32 }
    }

    /// Any other, such as one that is passed on.
    pub const fn new(kind: u8, code: u8, rest: u32) -> Self {
        Self { kind, code, rest }
    }
}

/// Whether a message type reports an error, about which no error may be reported (RFC 1122, section 3.2.2).
pub const fn is_error(icmp_type: u8) -> bool {
    matches!(
        icmp_type,
        DESTINATION_UNREACHABLE | SOURCE_QUENCH | REDIRECT | TIME_EXCEEDED | PARAMETER_PROBLEM
    )
}

/// Whether an error message about a packet may be sent: not about other errors, not about later fragments, not to
/// or because of group addresses, not to an address that names no single host (RFC 1122, section 3.2.2; `__icmp_send`).
/// False for IPv6.
pub fn may_answer(packet: &Parsed) -> bool {
    let Addresses::V4 { source, destination } = packet.addresses else { return false };
    let (source, destination) = (Ipv4Addr::from(source), Ipv4Addr::from(destination));
    // 224.0.0.0 and above: multicast, reserved, broadcast.
    let names_a_host = !matches!(source.octets()[0], 0 | 127 | 224..);
    let to_a_host = destination.octets()[0] < 224 && !packet.destination_mac.is_group();
    let about_error =
        packet.protocol == protocol::ICMP && (is_error(packet.icmp_type) || packet.icmp_type > HIGHEST_KNOWN);
    names_a_host && to_a_host && !about_error && !matches!(packet.fragment, Fragment::Later { .. })
}

/// Writes the IPv4 packet that tells the sender of `original`, from `source`, what is wrong with it; returns its
/// length in bytes, [`MAX_LENGTH`] at most. `original` is that packet from its IP header on, padding cut off; as much
/// of it is quoted as fits. `identification` goes into the IP header. Ask [`may_answer`] first.
///
/// `None`, with nothing useful written, where `original` has no whole IPv4 header or `out` is too short.
pub fn write_error(
    out: &mut [u8],
    message: Message,
    source: Ipv4Addr,
    identification: u16,
    original: &[u8],
) -> Option<usize> {
    let header: &[u8; ipv4::HEADER_LENGTH] = original.first_chunk()?;
    let quoted = &original[..original.len().min(MAX_LENGTH - HEADERS)];
    let length = HEADERS + quoted.len();
    let (ip, icmp) = out.get_mut(..length)?.split_at_mut(ipv4::HEADER_LENGTH);

    ip.fill(0);
    ip[0] = 0x45;
    ip[ipv4::TOS] = PRECEDENCE | (header[ipv4::TOS] & TOS_MASK);
    ip[ipv4::TOTAL_LENGTH..][..2].copy_from_slice(&(length as u16).to_be_bytes());
    ip[ipv4::IDENTIFICATION..][..2].copy_from_slice(&identification.to_be_bytes());
    ip[ipv4::TTL] = TTL;
    ip[ipv4::PROTOCOL] = protocol::ICMP;
    ip[ipv4::SOURCE..][..4].copy_from_slice(&source.octets());
    ip[ipv4::DESTINATION..].copy_from_slice(&header[ipv4::SOURCE..ipv4::DESTINATION]);
    let _ = ipv4::write_checksum(ip); // cannot be too short

    icmp[..4].copy_from_slice(&[message.kind, message.code, 0, 0]);
    icmp[4..ICMP_HEADER_LENGTH].copy_from_slice(&message.rest.to_be_bytes());
    icmp[ICMP_HEADER_LENGTH..].copy_from_slice(quoted);
    let checksum = Sum::ZERO.bytes(icmp).checksum();
    icmp[ICMP_CHECKSUM..ICMP_CHECKSUM + 2].copy_from_slice(&checksum.to_be_bytes());
    Some(length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::build::{Build, Transport};
    use crate::wire::transport::{Checked, verify};
    use crate::wire::{Outcome, parse, parse_inner, parse_quoted};

    fn packet(build: &Build) -> (Vec<u8>, Parsed) {
        let frame = build.frame();
        match parse(&frame) {
            Outcome::Packet(packet) => (frame, packet),
            other => panic!("{build:?}: {other:?}"),
        }
    }

    fn tcp() -> Build {
        Build::ipv4([192, 0, 2, 1], [198, 51, 100, 7]).transport(Transport::tcp(1234, 80))
    }

    #[test]
    fn errors_quote_what_fits_and_have_right_checksums() {
        let messages = [
            (Message::PORT_UNREACHABLE, [3, 3], 0),
            (Message::HOST_UNREACHABLE, [3, 1], 0),
            (Message::TIME_EXCEEDED, [11, 0], 0),
            (Message::fragmentation_needed(1400), [3, 4], 1400),
            (Message::new(12, 0, 0x0900_0000), [12, 0], 0x0900_0000),
        ];
        for (message, head, rest) in messages {
            for (payload, quoted) in [(0, 40), (507, 547), (508, 548), (1400, 548)] {
                let (frame, original) = packet(&tcp().tos(0x2e).payload(&vec![0x5a; payload]));
                let mut out = [0xee; MAX_LENGTH];
                let bytes = &frame[original.ip_offset.into()..original.end()];
                let length = write_error(&mut out, message, [10, 0, 0, 9].into(), 0xabcd, bytes).unwrap();
                assert_eq!(length, 28 + quoted);
                let error = parse_inner(&out[..length], 0).unwrap();
                assert_eq!(error.ip_length as usize, length);
                assert_eq!((error.protocol, error.ttl, error.dont_fragment), (1, 64, false));
                assert_eq!(error.addresses.source(), Ipv4Addr::new(10, 0, 0, 9));
                assert_eq!(error.addresses.destination(), original.addresses.source());
                assert_eq!(verify(&out, &error), Checked::Right);
                // Precedence 6, and of 0x2e the type of service bits.
                assert_eq!((out[1], &out[4..6]), (0xce, &[0xab, 0xcd][..]));
                assert_eq!((&out[20..22], &out[24..28]), (&head[..], &u32::to_be_bytes(rest)[..]));
                assert_eq!(out[28..length], bytes[..quoted]);
                let inner = parse_quoted(&out[..length], 28).unwrap();
                assert_eq!((inner.addresses, inner.source_port), (original.addresses, 1234));
                assert!(out[length..].iter().all(|&byte| byte == 0xee));
            }
        }
    }

    #[test]
    fn short_buffers_and_packets_are_refused() {
        let (frame, _) = packet(&tcp());
        let mut out = [0; MAX_LENGTH];
        let source = Ipv4Addr::LOCALHOST;
        assert_eq!(write_error(&mut out[..67], Message::TIME_EXCEEDED, source, 0, &frame[14..54]), None);
        assert_eq!(write_error(&mut out[..68], Message::TIME_EXCEEDED, source, 0, &frame[14..54]), Some(68));
        assert_eq!(write_error(&mut out, Message::TIME_EXCEEDED, source, 0, &frame[14..33]), None);
    }

    #[test]
    fn only_packets_of_one_host_to_one_host_are_answered() {
        let to = |address| Build::ipv4([192, 0, 2, 1], address);
        let from = |address| Build::ipv4(address, [198, 51, 100, 7]);
        let icmp = |kind| tcp().transport(Transport::Icmp { kind, code: 0, rest: 0 });
        let rows = [
            ("TCP", tcp(), true),
            ("first fragment", tcp().fragment(0, true), true),
            ("later fragment", tcp().fragment(8, false), false),
            ("echo request", icmp(8), true),
            ("echo reply", icmp(0), true),
            ("unreachable", icmp(3), false),
            ("time exceeded", icmp(11), false),
            ("unknown ICMP", icmp(19), false),
            ("to multicast", to([224, 0, 0, 18]), false),
            ("to broadcast", to([255; 4]), false),
            ("from nobody", from([0; 4]), false),
            ("from loopback", from([127, 0, 0, 1]), false),
            ("from multicast", from([239, 1, 1, 1]), false),
            ("link broadcast", tcp().destination_mac([0xff; 6]), false),
            ("IPv6", Build::ipv6([1; 16], [2; 16]), false),
        ];
        for (what, build, expected) in rows {
            assert_eq!(may_answer(&packet(&build).1), expected, "{what}");
        }
    }
}
