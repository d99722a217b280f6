//! The parser against fixtures, against an independent parser, and against noise.

use std::net::IpAddr;

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use super::build::{Build, Transport};
use super::transport::{Checked, sctp_chunk, tcp_flags, verify};
use super::*;
use crate::types::{Family, MacAddress};

const CLIENT: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const VIRTUAL: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff];

fn v4() -> Build {
    Build::ipv4([192, 0, 2, 1], [198, 51, 100, 7]).transport(Transport::tcp(1234, 80))
}

fn v6() -> Build {
    Build::ipv6(CLIENT, VIRTUAL).transport(Transport::tcp(1234, 80))
}

fn packet(frame: &[u8]) -> Parsed {
    match parse(frame) {
        Outcome::Packet(packet) => packet,
        other => panic!("{other:?}: {frame:02x?}"),
    }
}

/// A TCP SYN taken off a wire (Ethernet, IPv4 with DF, 20 bytes of TCP options), written out in full so that the
/// parser does not depend on the builder being right.
const SYN: [u8; 74] = [
    0x02, 0x00, 0x00, 0x00, 0x00, 0x01, 0x02, 0x00, 0x00, 0x00, 0x00, 0x02, 0x08, 0x00, // Ethernet
    0x45, 0x00, 0x00, 0x3c, 0x1c, 0x46, 0x40, 0x00, 0x40, 0x06, 0xb1, 0xe6, // IPv4
    0xac, 0x10, 0x0a, 0x63, 0xac, 0x10, 0x0a, 0x0c, // addresses
    0xd4, 0x31, 0x00, 0x50, 0x00, 0x00, 0x00, 0x01, 0x00, 0x00, 0x00, 0x00, 0xa0, 0x02, 0xfa, 0xf0, 0x00,
    0x00, 0x00, 0x00, // TCP
    0x02, 0x04, 0x05, 0xb4, 0x04, 0x02, 0x08, 0x0a, 0, 0, 0, 1, 0, 0, 0, 0, 0x01, 0x03, 0x03, 0x07,
];

#[test]
fn every_field_of_a_known_frame_is_read() {
    let expected = Parsed {
        addresses: Addresses::V4 { source: 0xac10_0a63, destination: 0xac10_0a0c },
        fragment: Fragment::Whole,
        ip_length: 60,
        destination_mac: MacAddress([2, 0, 0, 0, 0, 1]),
        vlan: None,
        ip_offset: 14,
        transport_offset: 34,
        source_port: 0xd431,
        destination_port: 80,
        protocol: 6,
        ttl: 64,
        dont_fragment: true,
        tcp_flags: tcp_flags::SYN,
        sctp_chunk: 0,
        sctp_abort_follows: false,
        icmp_type: 0,
    };
    assert_eq!(parse(&SYN), Outcome::Packet(expected));
    assert_eq!((expected.transport_length(), expected.end()), (40, 74));
}

/// What a row of fixtures looks at: (offset of the IP header, of the transport header, protocol, ports).
type Layout = (u16, u16, u8, (u16, u16));

#[test]
fn layers_are_found_wherever_they_are() {
    let sctp = |chunk| Transport::sctp(1234, 80, chunk);
    let echo = Transport::Icmpv6 { kind: 128, code: 0, rest: 1 };
    let rows: [(&str, Build, Layout); 19] = [
        ("TCP", v4(), (14, 34, 6, (1234, 80))),
        ("UDP", v4().transport(Transport::udp(1234, 80)), (14, 34, 17, (1234, 80))),
        ("SCTP", v4().transport(sctp(1)), (14, 34, 132, (1234, 80))),
        ("ICMP", v4().transport(Transport::Icmp { kind: 8, code: 0, rest: 1 }), (14, 34, 1, (0, 0))),
        ("GRE", v4().transport(Transport::Raw { protocol: 47 }).payload(&[9; 8]), (14, 34, 47, (0, 0))),
        ("an empty packet", v4().transport(Transport::Raw { protocol: 50 }), (14, 34, 50, (0, 0))),
        ("options", v4().options(&[1; 40]), (14, 74, 6, (1234, 80))),
        ("padding", v4().padded(60), (14, 34, 6, (1234, 80))),
        ("one tag", v4().vlan(5), (18, 38, 6, (1234, 80))),
        ("two tags", v6().tag(0x88a8, 5).vlan(6), (22, 62, 6, (1234, 80))),
        ("TCP over IPv6", v6(), (14, 54, 6, (1234, 80))),
        ("UDP over IPv6", v6().transport(Transport::udp(1234, 80)), (14, 54, 17, (1234, 80))),
        ("ICMPv6", v6().transport(echo), (14, 54, 58, (0, 0))),
        ("hop-by-hop options", v6().extension(0, &[1, 4, 0, 0, 0, 0]), (14, 62, 6, (1234, 80))),
        ("a long routing header", v6().extension(43, &[0; 22]), (14, 78, 6, (1234, 80))),
        ("authentication", v6().extension(51, &[7; 22]), (14, 78, 6, (1234, 80))),
        (
            "three extension headers",
            v6().extension(0, &[]).extension(60, &[]).extension(43, &[]),
            (14, 78, 6, (1234, 80)),
        ),
        ("nothing behind", v6().transport(Transport::Raw { protocol: 59 }), (14, 54, 59, (0, 0))),
        ("ESP", v6().extension(60, &[]).transport(Transport::Raw { protocol: 50 }), (14, 62, 50, (0, 0))),
    ];
    for (what, build, (ip, transport, protocol, ports)) in rows {
        let frame = build.frame();
        let found = packet(&frame);
        assert_eq!((found.ip_offset, found.transport_offset), (ip, transport), "{what}");
        assert_eq!(
            (found.protocol, (found.source_port, found.destination_port)),
            (protocol, ports),
            "{what}"
        );
        assert!(matches!(verify(&frame, &found), Checked::Right | Checked::Unknown), "{what}");
    }
}

#[test]
fn fragments_are_told_apart_and_only_first_ones_have_ports() {
    for (build, protocol) in [(v4().identification(0xbeef), 6), (v6().identification(0xdead_beef), 6)] {
        let payload: Vec<u8> = (0..100).collect();
        let frames = build.clone().payload(&payload).fragments(48);
        let identification = if packet(&frames[0]).family() == Family::V4 { 0xbeef } else { 0xdead_beef };
        let later = |offset, more| Fragment::Later { identification, offset, more };
        let first = Fragment::First { identification, length: 48 };
        let expected = [(first, 1234), (later(48, true), 0), (later(96, false), 0)];
        assert_eq!(frames.len(), expected.len());
        let mut datagram = Vec::<u8>::new();
        for (frame, (fragment, port)) in frames.iter().zip(expected) {
            let found = packet(frame);
            assert_eq!((found.fragment, found.source_port, found.protocol), (fragment, port, protocol));
            assert_eq!(found.has_transport_header(), port != 0);
            assert_eq!(verify(frame, &found), Checked::Unknown);
            datagram.extend(&frame[found.transport_offset.into()..found.end()]);
        }
        let whole = build.payload(&payload).frame();
        assert_eq!(datagram, whole[packet(&whole).transport_offset.into()..]);
    }
    // Options behind the fragment header are part of what is cut up.
    let mut content = vec![6, 0, 1, 4, 0, 0, 0, 0];
    content.extend(&v6().packet()[40..]);
    let options =
        v6().transport(Transport::Raw { protocol: 60 }).payload(&content).identification(5).fragment(0, true);
    let found = packet(&options.frame());
    let first = Fragment::First { identification: 5, length: 28 };
    assert_eq!((found.fragment, found.transport_offset, found.source_port), (first, 70, 1234));
    let atomic = packet(&v6().fragment(0, false).frame());
    assert_eq!((atomic.fragment, atomic.transport_offset, atomic.source_port), (Fragment::Whole, 62, 1234));
    // Long enough for ports, short of a TCP header: in a later fragment both are payload.
    let later = packet(&v4().fragment(8, false).payload(&[0xff; 12]).frame());
    assert_eq!((later.source_port, later.destination_port, later.tcp_flags), (0, 0, 0));
    // A first fragment may cut TCP's options off, though not its header.
    let options = Transport::Tcp {
        source: 1,
        destination: 2,
        flags: tcp_flags::SYN,
        sequence: 0,
        acknowledgement: 0,
        options: vec![1; 12],
    };
    let pieces = v4().transport(options).fragments(24);
    assert_eq!(packet(&pieces[0]).tcp_flags, tcp_flags::SYN);
}

#[test]
fn transport_details_are_read() {
    let flags = tcp_flags::SYN | tcp_flags::ECE | tcp_flags::CWR;
    assert_eq!(packet(&v4().transport(Transport::tcp_with(1, 2, flags)).frame()).tcp_flags, 0xc2);
    let unreachable = Transport::Icmp { kind: 3, code: 1, rest: 0 };
    assert_eq!(packet(&v4().transport(unreachable).frame()).icmp_type, 3);
    let no_checksum = v4().transport(Transport::Udp { source: 1, destination: 2, checksum: false }).frame();
    assert_eq!(verify(&no_checksum, &packet(&no_checksum)), Checked::Absent);

    let abort = [sctp_chunk::ABORT, 0, 0, 4];
    let with = |chunk, chunk_payload, payload: &[u8]| {
        let transport = Transport::Sctp { source: 1, destination: 2, tag: 3, chunk, chunk_payload };
        let found = packet(&v4().transport(transport).payload(payload).frame());
        (found.sctp_chunk, found.sctp_abort_follows)
    };
    let padded = [&[0; 4][..], &abort].concat();
    assert_eq!(with(sctp_chunk::INIT, 0, &abort), (sctp_chunk::INIT, false));
    assert_eq!(with(sctp_chunk::COOKIE_ECHO, 0, &abort), (sctp_chunk::COOKIE_ECHO, true));
    assert_eq!(with(sctp_chunk::COOKIE_ACK, 3, &padded), (sctp_chunk::COOKIE_ACK, true));
    assert_eq!(with(sctp_chunk::COOKIE_ECHO, 4, &abort), (sctp_chunk::COOKIE_ECHO, false));
    assert_eq!(with(sctp_chunk::COOKIE_ECHO, 0, &abort[..3]), (sctp_chunk::COOKIE_ECHO, false));
    assert_eq!(with(sctp_chunk::COOKIE_ECHO, u16::MAX, &abort), (sctp_chunk::COOKIE_ECHO, false));
}

/// Changes bytes of a frame, and makes an IPv4 header's checksum right again.
fn edited(build: Build, edit: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut frame = build.frame();
    edit(&mut frame);
    if frame.len() >= 34 && frame[12..14] == [8, 0] {
        let _ = ipv4::write_checksum(&mut frame[14..34]);
    }
    frame
}

fn cut(build: Build, length: usize) -> Vec<u8> {
    let mut frame = build.frame();
    frame.truncate(length);
    frame
}

/// A packet whose headers are consistent but whose transport header is cut to `length` bytes.
fn short(build: Build, number: u8, length: usize) -> Vec<u8> {
    build.transport(Transport::Raw { protocol: number }).payload(&vec![0x50; length]).frame()
}

#[test]
fn malformed_frames_have_their_reason() {
    use Malformed::*;
    let eight = (0..8).fold(v6(), |build, _| build.extension(60, &[]));
    let hop = || v6().extension(0, &[]);
    let rows = [
        ("nothing", Vec::new(), TruncatedFrame),
        ("no ethertype", cut(v4(), 13), TruncatedFrame),
        ("a tag cut off", cut(v4().vlan(5), 17), TruncatedFrame),
        ("no IPv4 header", cut(v4(), 33), TruncatedFrame),
        ("no IPv6 header", cut(v6(), 53), TruncatedFrame),
        ("version 5", edited(v4(), |frame| frame[14] = 0x55), BadIpv4Header),
        ("header length 16", edited(v4(), |frame| frame[14] = 0x44), BadIpv4Header),
        ("header beyond the frame", edited(v4(), |frame| frame[14] = 0x4f), BadIpv4Header),
        ("total length below the header's", edited(v4(), |frame| frame[17] = 19), BadIpv4Header),
        ("total length beyond the frame", edited(v4(), |frame| frame[17] = 41), BadIpv4Header),
        ("frame cut", cut(v4(), 53), BadIpv4Header),
        ("a fragment beyond 65,535", v4().fragment(65_528, false).payload(&[0; 8]).frame(), BadIpv4Header),
        (
            "checksum",
            {
                let mut f = v4().frame();
                f[24] ^= 1;
                f
            },
            BadIpv4Checksum,
        ),
        (
            "checksum over options",
            {
                let mut f = v4().options(&[1; 4]).frame();
                f[34] ^= 2;
                f
            },
            BadIpv4Checksum,
        ),
        ("version 4 as IPv6", edited(v6(), |frame| frame[14] = 0x45), BadIpv6Header),
        ("payload beyond the frame", edited(v6(), |frame| frame[19] = 21), BadIpv6Header),
        ("jumbogram", edited(hop(), |frame| frame[18..20].fill(0)), BadIpv6Header),
        ("extension header cut off", edited(hop(), |frame| frame[19] = 7), BadIpv6Header),
        ("extension header too long", edited(hop(), |frame| frame[55] = 4), BadIpv6Header),
        ("too many extension headers", eight.clone().extension(60, &[]).frame(), BadIpv6Header),
        ("hop-by-hop options behind", v6().extension(60, &[]).extension(0, &[]).frame(), BadIpv6Header),
        ("two fragment headers", v6().extension(44, &[0; 6]).fragment(0, true).frame(), BadIpv6Header),
        (
            "an IPv6 fragment beyond 65,535",
            v6().fragment(65_528, false).payload(&[0; 8]).frame(),
            BadIpv6Header,
        ),
        ("TCP of 19 bytes", short(v4(), 6, 19), BadTransportHeader),
        ("TCP data offset 16", edited(v4(), |frame| frame[46] = 0x40), BadTransportHeader),
        ("TCP data offset beyond", edited(v4(), |frame| frame[46] = 0x60), BadTransportHeader),
        ("TCP data offset in padding", edited(v4().padded(60), |frame| frame[46] = 0x60), BadTransportHeader),
        ("UDP of 7 bytes", short(v4(), 17, 7), BadTransportHeader),
        ("SCTP without a chunk", short(v4(), 132, 15), BadTransportHeader),
        ("ICMP of 7 bytes", short(v4(), 1, 7), BadTransportHeader),
        ("ICMPv6 of 7 bytes", short(v6(), 58, 7), BadTransportHeader),
        ("TCP of 19 bytes over IPv6", short(v6(), 6, 19), BadTransportHeader),
        ("a tiny first fragment", v4().fragments(16)[0].clone(), BadTransportHeader),
    ];
    for (what, frame, reason) in rows {
        assert_eq!(parse(&frame), Outcome::Malformed(reason), "{what}");
    }
    assert_eq!(packet(&eight.frame()).source_port, 1234);
}

#[test]
fn what_is_not_ip_is_the_hosts() {
    for ether_type in [ethernet::ARP, 0x88cc, 0x0026, 0x8847] {
        let frame = edited(v6(), |frame| frame[12..14].copy_from_slice(&u16::to_be_bytes(ether_type)));
        assert_eq!(parse(&frame), Outcome::NotIp, "{ether_type:04x}");
    }
    assert_eq!(parse(&v4().vlan(1).vlan(2).vlan(3).frame()), Outcome::NotIp);
}

#[test]
fn inner_and_quoted_packets_are_read_at_their_offset() {
    let inner = v4().payload(&[5; 100]).packet();
    let outer = v6().transport(Transport::Raw { protocol: 4 }).payload(&inner).frame();
    let found = packet(&outer);
    assert_eq!(found.protocol, protocol::IPV4);
    let offset = usize::from(found.transport_offset);
    let read = parse_inner(&outer, offset).unwrap();
    assert_eq!((read.ip_offset, read.source_port, read.end()), (54, 1234, outer.len()));

    // What routers must quote: the IP header and eight bytes.
    let quote = &outer[..offset + 28];
    assert_eq!(parse_inner(quote, offset), Err(Malformed::BadIpv4Header));
    let quoted = parse_quoted(quote, offset).unwrap();
    assert_eq!((quoted.source_port, quoted.destination_port, quoted.tcp_flags), (1234, 80, 0));
    assert_eq!((quoted.ip_length, quoted.addresses), (140, read.addresses));
    assert_eq!(parse_quoted(&outer, offset).unwrap().tcp_flags, tcp_flags::ACK);
    assert_eq!(parse_quoted(&outer[..offset + 23], offset), Err(Malformed::BadTransportHeader));
    assert_eq!(parse_quoted(&outer[..offset + 19], offset), Err(Malformed::TruncatedFrame));
    let inner = v6().packet();
    assert_eq!(parse_quoted(&inner[..48], 0).unwrap().source_port, 1234);
    let far = vec![0x45; MAX_INNER_OFFSET + 100];
    assert_eq!(parse_inner(&far, MAX_INNER_OFFSET + 1), Err(Malformed::TruncatedFrame));
    assert_eq!(parse_inner(&far, MAX_INNER_OFFSET), Err(Malformed::BadIpv4Checksum));
    for (bytes, offset) in [(&[0x35; 40][..], 0), (&[], 0), (&[0x45], 1), (&[0x45], usize::MAX)] {
        assert_eq!(parse_inner(bytes, offset), Err(Malformed::TruncatedFrame));
    }
}

#[test]
fn addresses_read_back() {
    let pairs = [("192.0.2.1", "198.51.100.7"), ("2001:db8::1", "2001:db8:1::ff")];
    for (source, destination) in
        pairs.map(|(a, b)| (a.parse::<IpAddr>().unwrap(), b.parse::<IpAddr>().unwrap()))
    {
        let addresses = Addresses::new(source, destination).unwrap();
        assert_eq!((addresses.source(), addresses.destination()), (source, destination));
        assert_eq!(addresses.reversed().source(), destination);
        assert_eq!(packet(&Build::new(addresses).frame()).addresses, addresses);
    }
    assert_eq!(Addresses::new("10.0.0.1".parse().unwrap(), "::1".parse().unwrap()), None);
}

fn any_addresses() -> impl Strategy<Value = Addresses> {
    prop_oneof![
        any::<(u32, u32)>().prop_map(|(source, destination)| Addresses::V4 { source, destination }),
        any::<([u64; 2], [u64; 2])>().prop_map(|(source, destination)| Addresses::V6 { source, destination }),
    ]
}

fn any_transport() -> impl Strategy<Value = Transport> {
    prop_oneof![
        (any::<[u16; 2]>(), any::<u8>(), any::<[u32; 2]>(), vec(any::<u8>(), 0..=40)).prop_map(
            |([source, destination], flags, [sequence, acknowledgement], options)| Transport::Tcp {
                source,
                destination,
                flags,
                sequence,
                acknowledgement,
                options
            }
        ),
        any::<([u16; 2], bool)>().prop_map(|([source, destination], checksum)| Transport::Udp {
            source,
            destination,
            checksum
        }),
        any::<([u16; 2], u32, u8, u16)>().prop_map(|([source, destination], tag, chunk, chunk_payload)| {
            Transport::Sctp { source, destination, tag, chunk, chunk_payload }
        }),
        any::<(u8, u8, u32)>().prop_map(|(kind, code, rest)| Transport::Icmp { kind, code, rest }),
        any::<(u8, u8, u32)>().prop_map(|(kind, code, rest)| Transport::Icmpv6 { kind, code, rest }),
        // Numbers that are neither extension headers nor known transports.
        (61_u8..=131).prop_map(|protocol| Transport::Raw { protocol }),
    ]
}

prop_compose! {
    /// Any valid frame that the builder can make.
    fn any_build()(
        addresses in any_addresses(),
        tags in vec((prop_oneof![Just(0x8100_u16), Just(0x88a8)], 0_u16..4096), 0..=2),
        transport in any_transport(),
        payload in vec(any::<u8>(), 0..200),
        options in vec(Just(1_u8), 0..=40),
        hop_by_hop in proptest::option::weighted(0.2, vec(any::<u8>(), 0..30)),
        extensions in vec((prop_oneof![Just(43_u8), Just(60)], vec(any::<u8>(), 0..30)), 0..=3),
        fragment in proptest::option::weighted(0.3, (0_u16..8000, any::<bool>())),
        (ttl, tos, identification, dont_fragment) in any::<(u8, u8, u32, bool)>(),
        padded in 0_usize..100,
    ) -> Build {
        let mut build = Build::new(addresses).transport(transport).payload(&payload).options(&options);
        build = build.ttl(ttl).tos(tos).identification(identification).padded(padded);
        for (protocol, id) in tags {
            build = build.tag(protocol, id);
        }
        if let Some(body) = hop_by_hop {
            build = build.extension(0, &body);
        }
        for (number, body) in &extensions {
            build = build.extension(*number, body);
        }
        if dont_fragment {
            build = build.dont_fragment();
        }
        match fragment {
            Some((offset, more)) => build.fragment(offset, more),
            None => build,
        }
    }
}

/// What has to hold for whatever was parsed: offsets in order, inside the frame; nothing read where nothing is.
fn check_invariants(frame: &[u8], packet: &Parsed) -> Result<(), TestCaseError> {
    prop_assert!(packet.ip_offset < packet.transport_offset);
    prop_assert!(usize::from(packet.transport_offset) <= packet.end());
    prop_assert!(packet.end() <= frame.len());
    let ports = matches!(packet.protocol, 6 | 17 | 132) && packet.has_transport_header();
    prop_assert!(ports || (packet.source_port, packet.destination_port) == (0, 0));
    verify(frame, packet);
    Ok(())
}

/// Compares with what etherparse, slicing the whole packet, finds.
fn check_against_etherparse(frame: &[u8], packet: &Parsed) -> Result<(), TestCaseError> {
    let sliced = SlicedPacket::from_ethernet(frame)
        .map_err(|error| TestCaseError::fail(format!("etherparse: {error:?} {frame:02x?}")))?;
    let offset_of = |slice: &[u8]| slice.as_ptr() as usize - frame.as_ptr() as usize;
    match sliced.net {
        Some(NetSlice::Ipv4(ip)) => {
            let header = ip.header();
            prop_assert_eq!(packet.addresses.source(), IpAddr::from(header.source_addr()));
            prop_assert_eq!(packet.addresses.destination(), IpAddr::from(header.destination_addr()));
            prop_assert_eq!(usize::from(packet.ip_offset), offset_of(header.slice()));
            prop_assert_eq!(usize::from(packet.transport_offset), offset_of(ip.payload().payload));
            prop_assert_eq!((packet.ttl, packet.ip_length), (header.ttl(), u32::from(header.total_len())));
            prop_assert_eq!(packet.dont_fragment, header.dont_fragment());
            prop_assert_eq!(packet.fragment == Fragment::Whole, !header.is_fragmenting_payload());
        }
        Some(NetSlice::Ipv6(ip)) => {
            let header = ip.header();
            prop_assert_eq!(packet.addresses.source(), IpAddr::from(header.source_addr()));
            prop_assert_eq!(packet.addresses.destination(), IpAddr::from(header.destination_addr()));
            prop_assert_eq!(usize::from(packet.ip_offset), offset_of(header.slice()));
            prop_assert_eq!(usize::from(packet.transport_offset), offset_of(ip.payload().payload));
            prop_assert_eq!(packet.protocol, ip.payload().ip_number.0);
            prop_assert_eq!(packet.fragment == Fragment::Whole, !ip.is_payload_fragmented());
        }
        other => return Err(TestCaseError::fail(format!("{other:?}"))),
    }
    match sliced.transport {
        Some(TransportSlice::Tcp(tcp)) => {
            prop_assert_eq!(
                (packet.source_port, packet.destination_port),
                (tcp.source_port(), tcp.destination_port())
            );
            prop_assert_eq!(packet.tcp_flags & tcp_flags::SYN != 0, tcp.syn());
            prop_assert_eq!(packet.tcp_flags & tcp_flags::ACK != 0, tcp.ack());
            prop_assert_eq!(packet.tcp_flags & tcp_flags::RST != 0, tcp.rst());
            prop_assert_eq!(packet.tcp_flags & tcp_flags::FIN != 0, tcp.fin());
        }
        Some(TransportSlice::Udp(udp)) => {
            prop_assert_eq!(
                (packet.source_port, packet.destination_port),
                (udp.source_port(), udp.destination_port())
            );
        }
        Some(TransportSlice::Icmpv4(icmp)) => prop_assert_eq!(packet.icmp_type, icmp.type_u8()),
        Some(TransportSlice::Icmpv6(icmp)) => prop_assert_eq!(packet.icmp_type, icmp.type_u8()),
        Some(_) | None => {
            prop_assert!(!matches!((packet.protocol, packet.fragment), (6 | 17, Fragment::Whole)))
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn noise_never_panics(bytes in vec(any::<u8>(), 0..200)) {
        if let Outcome::Packet(packet) = parse(&bytes) {
            check_invariants(&bytes, &packet)?;
        }
        let _ = (parse_inner(&bytes, 0), parse_quoted(&bytes, 0));
    }

    #[test]
    fn mutated_frames_never_panic(
        build in any_build(),
        changes in vec((any::<Index>(), any::<u8>()), 0..4),
        keep in any::<Index>(),
        cut in proptest::bool::weighted(0.3),
    ) {
        let mut frame = build.frame();
        for (place, value) in changes {
            let place = place.index(frame.len());
            frame[place] = value;
        }
        if cut {
            frame.truncate(keep.index(frame.len()));
        }
        // Mutation would nearly always stop at the IPv4 checksum.
        if frame.len() >= 34 && frame[12..14] == [8, 0] {
            let end = (14 + usize::from(frame[14] & 15) * 4).clamp(34, frame.len());
            let _ = ipv4::write_checksum(&mut frame[14..end]);
        }
        if let Outcome::Packet(packet) = parse(&frame) {
            check_invariants(&frame, &packet)?;
            let again = parse_inner(&frame, packet.ip_offset.into());
            prop_assert_eq!(again.map(|again| again.transport_offset), Ok(packet.transport_offset));
        }
        let _ = parse_quoted(&frame, 14);
    }

    #[test]
    fn valid_frames_parse_as_etherparse_has_them(build in any_build()) {
        let frame = build.frame();
        match parse(&frame) {
            Outcome::Packet(packet) => {
                check_invariants(&frame, &packet)?;
                check_against_etherparse(&frame, &packet)?;
                // UDP without a checksum is an error over IPv6, and the only wrong one that is built.
                let absent = matches!((packet.family(), packet.protocol), (Family::V6, 17));
                prop_assert!(verify(&frame, &packet) != Checked::Wrong || absent);
            }
            other => return Err(TestCaseError::fail(format!("{other:?}"))),
        }
    }

    #[test]
    fn quoting_keeps_what_a_look_up_needs(build in any_build(), length in 0_usize..300) {
        let packet = build.packet();
        if let (Ok(whole), Ok(quoted)) = (parse_inner(&packet, 0), parse_quoted(&packet[..length.min(packet.len())], 0)) {
            prop_assert_eq!(quoted.addresses, whole.addresses);
            prop_assert_eq!((quoted.source_port, quoted.destination_port), (whole.source_port, whole.destination_port));
            // How much of its datagram a first fragment has is more than its quotation.
            let kind = |packet: &Parsed| match packet.fragment {
                Fragment::First { identification, .. } => Fragment::First { identification, length: 0 },
                other => other,
            };
            prop_assert_eq!((quoted.protocol, kind(&quoted)), (whole.protocol, kind(&whole)));
            prop_assert_eq!((quoted.transport_offset, quoted.ip_length), (whole.transport_offset, whole.ip_length));
        }
    }
}
