//! Tunnels: what goes in comes out, and recordings.

use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::*;
use crate::forward::testing::*;
use crate::forward::{NextHop, dr};
use crate::types::{MacAddress, PortId};
use crate::wire::build::{Build, Transport};
use crate::wire::checksum::Sum;
use crate::wire::transport::{Checked, verify};

const CHECKSUMS: [TunnelChecksum; 3] =
    [TunnelChecksum::None, TunnelChecksum::Checksum, TunnelChecksum::Remote];
const KINDS: [TunnelKind; 3] = [TunnelKind::Ipip, TunnelKind::Gue, TunnelKind::Gre];

fn tunnels() -> impl Strategy<Value = Tunnel> {
    (prop::sample::select(KINDS.to_vec()), 1..=u16::MAX, prop::sample::select(CHECKSUMS.to_vec())).prop_map(
        |(kind, port, checksum)| match kind {
            TunnelKind::Ipip => Tunnel::IPIP,
            TunnelKind::Gue => Tunnel { kind, port, checksum },
            TunnelKind::Gre => Tunnel { kind, port: 0, checksum },
        },
    )
}

fn through(tunnel: Tunnel, outer: Family) -> Encapsulation {
    let (source, destination): (IpAddr, IpAddr) = match outer {
        Family::V4 => ([10, 0, 0, 254].into(), [10, 0, 0, 11].into()),
        Family::V6 => ([0xfe; 16].into(), [0x11; 16].into()),
    };
    Encapsulation { tunnel, source, destination, mtu: 9000, pmtu_disc: true }
}

/// The frame in a tunnel, or why it is not.
fn encapsulated(
    bytes: &[u8],
    mut offload: Offload,
    with: &Encapsulation,
) -> Result<(Vec<u8>, Outer), EncapsulateError> {
    let packet = read(bytes);
    let (pool, mut frame) = pool_of(bytes);
    let result = encapsulate(&pool, &mut frame, &packet, &mut offload, with, 0x4321);
    match result {
        Ok(outer) => {
            assert_eq!(offload, Offload::default());
            Ok((pool.bytes(&frame).to_vec(), outer))
        }
        Err(error) => {
            assert_eq!(pool.bytes(&frame), bytes, "changed in spite of {error}");
            Err(error)
        }
    }
}

/// What a real server does: checks every header and checksum of a tunnel's frame, and takes the inner packet out.
fn decapsulated(frame: &[u8], with: &Encapsulation) -> (Parsed, Vec<u8>) {
    let outer = read(frame);
    assert_eq!((outer.addresses.source(), outer.addresses.destination()), (with.source, with.destination));
    assert_eq!(outer.end(), frame.len());
    let at = usize::from(outer.transport_offset);
    let (is_v6, at) = match with.tunnel.kind {
        TunnelKind::Ipip => (outer.protocol == protocol::IPV6, at),
        TunnelKind::Gue => {
            assert_eq!((outer.protocol, outer.destination_port), (protocol::UDP, with.tunnel.port));
            let (first, count) = SOURCE_PORTS;
            assert!((first..first + count).contains(&outer.source_port));
            let has_one = frame[at + 6..at + 8] != [0, 0];
            assert_eq!(has_one, with.tunnel.checksum != TunnelChecksum::None);
            assert!(!has_one || verify(frame, &outer) == Checked::Right);
            let (number, length) = gue::parse(&frame[at + 8..]).unwrap();
            (number == protocol::IPV6, at + 8 + length)
        }
        TunnelKind::Gre => {
            assert_eq!(outer.protocol, protocol::GRE);
            let (ether_type, length) = gre::parse(&frame[at..]).unwrap();
            let has_one = with.tunnel.checksum == TunnelChecksum::Checksum;
            assert_eq!(length, if has_one { 8 } else { 4 });
            assert!(!has_one || Sum::ZERO.bytes(&frame[at..]).is_right());
            (ether_type == ethernet::IPV6, at + length)
        }
    };
    assert_eq!(frame[at] >> 4, if is_v6 { 6 } else { 4 });
    (outer, frame[at..].to_vec())
}

/// Type of service or traffic class.
fn tos(packet: &[u8]) -> u8 {
    if packet[0] >> 4 == 4 { packet[1] } else { packet[0] << 4 | packet[1] >> 4 }
}

proptest! {
    #[test]
    fn what_goes_in_comes_out(
        sample in samples(600), tunnel in tunnels(), over_ipv6: bool, pmtu_disc: bool,
    ) {
        let family = if over_ipv6 { Family::V6 } else { Family::V4 };
        let with = Encapsulation { pmtu_disc, ..through(tunnel, family) };
        let bytes = sample.build().frame();
        let (after, outer) = encapsulated(&bytes, Offload::default(), &with).unwrap();
        let (header, inner) = decapsulated(&after, &with);
        prop_assert_eq!(&inner, &sample.build().packet());
        prop_assert_eq!(inner.len() + overhead(&tunnel, family), header.ip_length as usize);
        let expected = Outer { family, ip_length: header.ip_length, must_fragment: false };
        prop_assert_eq!(outer, expected);
        // The link header in front is the packet's own, but for the ethertype.
        let link = usize::from(read(&bytes).ip_offset);
        prop_assert_eq!(usize::from(header.ip_offset), link);
        prop_assert_eq!(&after[..link - 2], &bytes[..link - 2]);

        prop_assert_eq!(header.ttl, sample.ttl);
        let ecn = if sample.tos & 3 == 3 { 2 } else { sample.tos & 3 };
        prop_assert_eq!(tos(&after[link..]), sample.tos & 0xfc | ecn);
        if family == Family::V4 {
            let dont_fragment = sample.dont_fragment && pmtu_disc && !sample.is_ipv6();
            prop_assert_eq!(header.dont_fragment, dont_fragment);
            let identification = if dont_fragment { [0, 0] } else { [0x43, 0x21] };
            prop_assert_eq!(&after[link + 4..link + 6], &identification);
        } else {
            prop_assert_eq!(&after[link + 1] & 0x0f, 0);
            prop_assert_eq!(&after[link + 2..link + 4], &[0, 0]);
        }
    }

    #[test]
    fn a_checksum_left_to_a_network_card_is_completed(
        mut sample in samples(600), tunnel in tunnels(), over_ipv6: bool, udp: bool,
    ) {
        (sample.protocol, sample.checksum) = (if udp { protocol::UDP } else { protocol::TCP }, true);
        let with = through(tunnel, if over_ipv6 { Family::V6 } else { Family::V4 });
        let mut bytes = sample.build().frame();
        let offload = leave_checksum(&mut bytes);
        let (after, _) = encapsulated(&bytes, offload, &with).unwrap();
        prop_assert_eq!(decapsulated(&after, &with).1, sample.build().packet());
    }

    #[test]
    fn a_flow_keeps_its_port_whatever_its_packets_say(a in samples(50), b in samples(50)) {
        let with = through(Tunnel { kind: TunnelKind::Gue, port: 6080, checksum: TunnelChecksum::None }, Family::V4);
        let mut same = b.clone();
        (same.addresses, same.protocol) = (a.addresses, a.protocol);
        (same.source_port, same.destination_port) = (a.source_port, a.destination_port);
        let port = |sample: &Sample| {
            let (frame, _) = encapsulated(&sample.build().frame(), Offload::default(), &with).unwrap();
            read(&frame).source_port
        };
        prop_assert_eq!(port(&a), port(&same));
    }

    #[test]
    fn fragments_of_a_datagram_share_their_port(sample in samples(300)) {
        let with = through(Tunnel { kind: TunnelKind::Gue, port: 6080, checksum: TunnelChecksum::None }, Family::V4);
        let fragments = sample.build().fragments(64);
        let port = |bytes: &Vec<u8>| {
            let (frame, _) = encapsulated(bytes, Offload::default(), &with).unwrap();
            read(&frame).source_port
        };
        prop_assert!(fragments.iter().all(|bytes| port(bytes) == port(&fragments[0])));
    }

    #[test]
    fn what_was_read_of_another_frame_does_no_harm(
        sample in samples(100), other in samples(100), cut in 0_usize..200, tunnel in tunnels(),
        checksum_start: u16, checksum_offset: u16,
    ) {
        let packet = read(&sample.build().frame());
        let mut bytes = other.build().frame();
        bytes.truncate(cut);
        let (pool, mut frame) = pool_of(&bytes);
        let mut offload =
            Offload { needs_checksum: true, checksum_start, checksum_offset, ..Offload::default() };
        let _ = encapsulate(&pool, &mut frame, &packet, &mut offload, &through(tunnel, Family::V4), 0);
    }
}

#[test]
fn flows_spread_over_ports() {
    let with =
        through(Tunnel { kind: TunnelKind::Gue, port: 6080, checksum: TunnelChecksum::None }, Family::V4);
    let ports: std::collections::HashSet<u16> = (1000..1256)
        .map(|port| {
            let build = Build::ipv4([10, 0, 0, 1], [10, 0, 0, 2]).transport(Transport::tcp(port, 80));
            let (frame, _) = encapsulated(&build.frame(), Offload::default(), &with).unwrap();
            read(&frame).source_port
        })
        .collect();
    assert!(ports.len() > 240, "{} of 256", ports.len());
}

#[test]
fn a_checksum_further_inside_is_completed_there() {
    // What a local sender of a tunnel of its own leaves: its outer checksum done, the inner one not.
    let inner = Build::ipv4([1, 1, 1, 1], [2, 2, 2, 2]).transport(Transport::tcp(1, 2)).payload(b"inside");
    let right = inner.packet();
    let mut inner = inner.frame();
    leave_checksum(&mut inner);
    let around = |packet: &[u8]| {
        Build::ipv4([10, 0, 0, 1], [10, 0, 0, 2])
            .transport(Transport::Udp { source: 7, destination: 4789, checksum: false })
            .payload(packet)
    };
    let offload = Offload {
        needs_checksum: true,
        checksum_start: 14 + 20 + 8 + 20,
        checksum_offset: 16,
        ..Offload::default()
    };
    let with = through(Tunnel::IPIP, Family::V4);
    let (after, _) = encapsulated(&around(&inner[14..]).frame(), offload, &with).unwrap();
    assert_eq!(decapsulated(&after, &with).1, around(&right).packet());
}

#[test]
fn what_does_not_fit_is_refused_or_to_be_fragmented() {
    let gue = Tunnel { kind: TunnelKind::Gue, port: 6080, checksum: TunnelChecksum::None };
    let gre = Tunnel { kind: TunnelKind::Gre, port: 0, checksum: TunnelChecksum::None };
    let guarded = Tunnel { checksum: TunnelChecksum::Checksum, ..gre };
    let (whole, cut) = (Ok(false), Ok(true));
    let too_big = |mtu| Err(EncapsulateError::TooBig { mtu });
    let small = Err(EncapsulateError::MtuTooSmall);
    let (v4, v6) = (Family::V4, Family::V6);
    // Tunnel, its family, pmtu_disc, MTU; inner family, DF, length.
    type Row = ((Tunnel, Family, bool, u32), (Family, bool, usize), Result<bool, EncapsulateError>);
    let rows: [Row; 27] = [
        ((Tunnel::IPIP, v4, true, 1500), (v4, true, 1480), whole),
        ((Tunnel::IPIP, v4, true, 1500), (v4, true, 1481), too_big(1480)),
        ((Tunnel::IPIP, v4, true, 1500), (v4, false, 1480), whole),
        ((Tunnel::IPIP, v4, true, 1500), (v4, false, 1481), cut),
        ((Tunnel::IPIP, v4, false, 1500), (v4, true, 1481), cut),
        ((gue, v4, true, 1500), (v4, true, 1468), whole),
        ((gue, v4, true, 1500), (v4, true, 1469), too_big(1468)),
        ((gre, v4, true, 1500), (v4, true, 1476), whole),
        ((gre, v4, true, 1500), (v4, true, 1477), too_big(1476)),
        ((guarded, v4, true, 1500), (v4, true, 1472), whole),
        ((guarded, v4, true, 1500), (v4, true, 1473), too_big(1472)),
        ((Tunnel::IPIP, v6, true, 1500), (v4, true, 1460), whole),
        ((Tunnel::IPIP, v6, true, 1500), (v4, true, 1461), too_big(1460)),
        ((Tunnel::IPIP, v6, true, 1500), (v4, false, 1461), cut),
        ((Tunnel::IPIP, v4, true, 1500), (v6, false, 1480), whole),
        ((Tunnel::IPIP, v4, true, 1500), (v6, false, 1481), too_big(1480)),
        ((Tunnel::IPIP, v4, false, 1500), (v6, false, 1481), too_big(1480)),
        ((Tunnel::IPIP, v6, true, 1500), (v6, false, 1460), whole),
        ((Tunnel::IPIP, v6, true, 1500), (v6, false, 1461), too_big(1460)),
        ((Tunnel::IPIP, v4, true, 87), (v4, false, 40), small),
        ((Tunnel::IPIP, v4, true, 88), (v4, false, 40), whole),
        ((Tunnel::IPIP, v4, true, 0), (v4, false, 40), small),
        ((Tunnel::IPIP, v6, true, 1319), (v4, false, 40), small),
        ((Tunnel::IPIP, v6, true, 1320), (v4, false, 40), whole),
        ((Tunnel::IPIP, v4, true, 70_000), (v4, false, 65_516), Err(EncapsulateError::TooLong)),
        ((Tunnel::IPIP, v4, true, 70_000), (v4, false, 65_515), whole),
        ((Tunnel::IPIP, v6, true, 70_000), (v4, false, 65_535), whole),
    ];
    for ((tunnel, outer, pmtu_disc, mtu), (family, dont_fragment, length), expected) in rows {
        let (inner, header) = match family {
            Family::V4 => (Build::ipv4([10, 0, 0, 1], [10, 0, 0, 2]), 20),
            Family::V6 => (Build::ipv6([1; 16], [2; 16]), 40),
        };
        let inner = inner.transport(Transport::tcp(1, 2)).payload(&vec![7; length - header - 20]);
        let inner = if dont_fragment { inner.dont_fragment() } else { inner };
        let with = Encapsulation { mtu, pmtu_disc, ..through(tunnel, outer) };
        let result = encapsulated(&inner.frame(), Offload::default(), &with);
        let found = result.as_ref().map(|(_, outer)| outer.must_fragment).map_err(|error| *error);
        assert_eq!(found, expected, "{tunnel:?} over {outer:?}, {mtu}: {family:?} {dont_fragment} {length}");
        if let Ok((frame, _)) = result {
            assert_eq!(decapsulated(&frame, &with).1, inner.packet());
        }
    }
}

#[test]
fn what_cannot_be_tunnelled_is_left_alone() {
    let bytes = Build::ipv4([10, 0, 0, 1], [10, 0, 0, 2]).padded(60).frame();
    let with = through(Tunnel::IPIP, Family::V4);
    let oversized = Offload { segmentation: 1, segment_size: 1460, ..Offload::default() };
    assert_eq!(encapsulated(&bytes, oversized, &with), Err(EncapsulateError::Unsegmented));
    let mixed = Encapsulation { source: Ipv6Addr::LOCALHOST.into(), ..with };
    assert_eq!(encapsulated(&bytes, Offload::default(), &mixed), Err(EncapsulateError::OtherFamily));
    let outside = Offload { needs_checksum: true, checksum_start: 41, ..Offload::default() };
    assert_eq!(encapsulated(&bytes, outside, &with), Err(EncapsulateError::Truncated));

    let packet = read(&bytes);
    // One byte less in front than the header has.
    let (pool, mut frame) = pool_of(&bytes);
    assert!(frame.grow_front(frame.headroom() - 19));
    frame.truncate(bytes.len());
    pool.bytes_mut(&mut frame).copy_from_slice(&bytes);
    let result = encapsulate(&pool, &mut frame, &packet, &mut Offload::default(), &with, 0);
    assert_eq!(result, Err(EncapsulateError::NoRoom));
    assert_eq!(pool.bytes(&frame), bytes);
}

/// Puts a recorded packet through all steps up to fragmenting.
fn replay(
    exchange: &Exchange,
    with: &Encapsulation,
    identification: u16,
) -> Result<Vec<u8>, EncapsulateError> {
    let packet = read(&exchange.sent);
    let (pool, mut frame) = pool_of(&exchange.sent);
    dr::decrement_lifetime(&pool, &mut frame, &packet).unwrap();
    let outer = encapsulate(&pool, &mut frame, &packet, &mut Offload::default(), with, identification)?;
    let next_hop = NextHop::Ready {
        port: PortId(1),
        source: MacAddress([2, 0, 0x0a, 0x58, 2, 0xfe]),
        destination: MacAddress([2, 0, 0x0a, 0x58, 2, 0x0b]),
        vlan: None,
        mtu: with.mtu,
    };
    let place = (packet.ip_offset, outer.ip_length);
    dr::readdress(&pool, &mut frame, place, outer.family, outer.ip_length, &next_hop).unwrap();
    Ok(pool.bytes(&frame).to_vec())
}

#[test]
fn recorded_packets_come_out_as_from_the_kernel() {
    let tunnel = |kind, port, checksum| Tunnel { kind, port, checksum };
    // Packets in tunnels, and those that were too big.
    let rows = [
        (include_str!("../../../tests/oracle/cases/tun-headers.json"), Tunnel::IPIP, (19, 2)),
        (include_str!("../../../tests/oracle/cases/udp-tun.json"), Tunnel::IPIP, (2, 0)),
        (
            include_str!("../../../tests/oracle/cases/tun-gre.json"),
            tunnel(TunnelKind::Gre, 0, TunnelChecksum::None),
            (4, 1),
        ),
        (
            include_str!("../../../tests/oracle/cases/tun-gue.json"),
            tunnel(TunnelKind::Gue, 6080, TunnelChecksum::None),
            (4, 1),
        ),
        (
            include_str!("../../../tests/oracle/cases/tun-gue-csum.json"),
            tunnel(TunnelKind::Gue, 6080, TunnelChecksum::Checksum),
            (4, 1),
        ),
    ];
    for (recording, tunnel, expected) in rows {
        let with = Encapsulation {
            tunnel,
            source: Ipv4Addr::new(10, 88, 2, 254).into(),
            destination: Ipv4Addr::new(10, 88, 2, 11).into(),
            mtu: 1500,
            pmtu_disc: true,
        };
        let mut found = (0, 0);
        for exchange in exchanges(recording) {
            let [(port, out)] = exchange.received.as_slice() else { continue };
            let answer = read(out);
            if *port != exchange.port && answer.addresses.destination() == with.destination {
                // The identification is the director's own, and so is the port, which a checksum covers.
                let identification = u16::from_be_bytes([out[18], out[19]]);
                let mut after = replay(&exchange, &with, identification).unwrap();
                if tunnel.kind == TunnelKind::Gue {
                    let own = read(&after).source_port;
                    after[34..36].copy_from_slice(&answer.source_port.to_be_bytes());
                    let field: &mut [u8; 2] = after[40..].first_chunk_mut().unwrap();
                    let change = crate::wire::checksum::Change::NONE.u16(own, answer.source_port);
                    *field = change.apply_udp(u16::from_be_bytes(*field)).to_be_bytes();
                }
                assert_eq!(&after, out, "{}", exchange.what);
                found.0 += 1;
            } else if answer.icmp_type == 3 && out[35] == 4 {
                let mtu = u32::from(u16::from_be_bytes([out[40], out[41]]));
                assert_eq!(replay(&exchange, &with, 0), Err(EncapsulateError::TooBig { mtu }));
                found.1 += 1;
            }
        }
        assert_eq!(found, expected, "{tunnel:?}");
    }
}
