//! ICMP errors: recorded ones, and any.

use proptest::prelude::*;

use super::*;
use crate::forward::dr;
use crate::forward::testing::*;
use crate::wire::build::{Build, Transport};
use crate::wire::{Addresses, Outcome, parse};

/// An Ethernet frame with an error about `original`, a packet, sent by the sender of `route` to its receiver.
fn error_frame(route: Addresses, kind: u8, code: u8, rest: u32, original: &[u8]) -> Vec<u8> {
    let transport = match route.family() {
        Family::V4 => Transport::Icmp { kind, code, rest },
        Family::V6 => Transport::Icmpv6 { kind, code, rest },
    };
    Build::new(route).transport(transport).payload(original).padded(80).frame()
}

/// The kinds that are looked into, and some that are not.
const KINDS: [(Family, u8, bool); 13] = [
    (Family::V4, 3, true),
    (Family::V4, 4, true),
    (Family::V4, 11, true),
    (Family::V4, 0, false),
    (Family::V4, 5, false),
    (Family::V4, 8, false),
    (Family::V4, 12, false),
    (Family::V6, 1, true),
    (Family::V6, 2, true),
    (Family::V6, 3, true),
    (Family::V6, 4, true),
    (Family::V6, 128, false),
    (Family::V6, 137, false),
];

#[test]
fn errors_of_the_right_kinds_lead_to_their_packets() {
    for (family, kind, looked_into) in KINDS {
        let (original, route) = match family {
            Family::V4 => {
                (Build::ipv4([10, 0, 0, 1], [10, 0, 0, 2]), Build::ipv4([10, 0, 0, 9], [10, 0, 0, 1]))
            }
            Family::V6 => (Build::ipv6([1; 16], [2; 16]), Build::ipv6([9; 16], [1; 16])),
        };
        let original = original.transport(Transport::tcp(1234, 80)).payload(&[7; 40]).packet();
        let route = read(&route.frame()).addresses;
        for length in [original.len() - 60 + 8, original.len()] {
            let frame = error_frame(route, kind, 0, 0, &original[..length]);
            let found =
                quoted(&frame, &read(&frame)).map(|about| (about.source_port, about.destination_port));
            assert_eq!(found, looked_into.then_some((1234, 80)), "{family:?} {kind} {length}");
        }
        // Not even the ports: the padding does not count.
        let frame = error_frame(route, kind, 0, 0, &original[..original.len() - 60 + 3]);
        assert_eq!(quoted(&frame, &read(&frame)), None);
    }
}

#[test]
fn what_has_no_ports_or_is_of_another_family_is_not_looked_into() {
    let v4 = Build::ipv4([10, 0, 0, 1], [10, 0, 0, 2]);
    let route = read(&Build::ipv4([10, 0, 0, 9], [10, 0, 0, 1]).frame()).addresses;
    let rows = [
        ("UDP", v4.clone(), true),
        ("SCTP", v4.clone().transport(Transport::sctp(1, 2, 0)), true),
        ("echo", v4.clone().transport(Transport::Icmp { kind: 8, code: 0, rest: 0 }), false),
        ("IP in IP", v4.clone().transport(Transport::Raw { protocol: 4 }).payload(&v4.packet()), false),
        ("first fragment", v4.clone().payload(&[1; 16]).fragment(0, true), true),
        ("later fragment", v4.clone().payload(&[1; 16]).fragment(8, true), false),
        ("IPv6", Build::ipv6([1; 16], [2; 16]), false),
    ];
    for (what, original, expected) in rows {
        let frame = error_frame(route, 3, 3, 0, &original.packet());
        assert_eq!(quoted(&frame, &read(&frame)).is_some(), expected, "{what}");
    }
    // The error itself is in pieces.
    let transport = Transport::Icmp { kind: 3, code: 3, rest: 0 };
    let error = Build::new(route).transport(transport).payload(&v4.packet()).fragment(0, true).frame();
    assert_eq!(quoted(&error, &read(&error)), None);
}

/// The addresses with one side replaced.
fn with(addresses: Addresses, side: Side, address: IpAddr) -> Addresses {
    Translation { side, address, port: 0 }.of(&addresses).unwrap()
}

proptest! {
    #[test]
    fn a_translated_error_is_one_about_the_untranslated_packet(
        mut sample in samples(200), router in addresses(), other in addresses(), port: u16,
        from_client: bool, cut in 8_usize..200,
    ) {
        // Nothing between the IP header and the ports, so that cutting is easy to say.
        (sample.options, sample.extensions) = (Vec::new(), Vec::new());
        let family = sample.addresses.family();
        let of_family = |given: Addresses| if given.family() == family { given } else { sample.addresses };
        let (router, other) = (of_family(router).source(), of_family(other).destination());
        let kind = if family == Family::V4 { 3 } else { 1 };
        // The quoted packet was on its way from the side that the error now goes to.
        let route = Addresses::new(router, sample.addresses.source()).unwrap();
        let side = if from_client { Side::Destination } else { Side::Source };
        let to = Translation { side, address: other, port };
        let inside = opposite(side);
        let mut new = sample.clone();
        new.addresses = with(sample.addresses, inside, other);
        match inside {
            Side::Source => new.source_port = port,
            Side::Destination => new.destination_port = port,
        }
        let (mut original, mut translated) = (sample.build().packet(), new.build().packet());
        let header = if sample.is_ipv6() { 40 } else { 20 };
        // The transport checksum inside stays that of the other packet.
        let (field, length) = transport::checksum_field(sample.protocol).unwrap();
        let field = header + field..header + field + length;
        translated[field.clone()].copy_from_slice(&original[field]);
        original.truncate(header + cut);
        translated.truncate(header + cut);

        let frame = error_frame(route, kind, 3, 0, &original);
        let expected = error_frame(with(route, side, other), kind, 3, 0, &translated);
        let packet = read(&frame);
        let about = quoted(&frame, &packet).unwrap();
        let (pool, mut held) = pool_of(&frame);
        translate_error(&pool, &mut held, &packet, &about, to).unwrap();
        prop_assert_eq!(pool.bytes(&held), &expected);

        // With a wrong checksum nothing is done.
        let mut wrong = frame.clone();
        wrong[usize::from(packet.transport_offset) + 4] ^= 1;
        let (pool, mut held) = pool_of(&wrong);
        let result = translate_error(&pool, &mut held, &packet, &about, to);
        prop_assert_eq!(result, Err(TranslateError::BadChecksum));
        prop_assert_eq!(pool.bytes(&held), &wrong);
    }

    #[test]
    fn any_bytes_may_be_quoted(
        bytes in proptest::collection::vec(any::<u8>(), 0..150), kind in 0..5_u8, ipv6: bool, version in 0..4_u8,
        protocol in prop::sample::select(vec![4_u8, 6, 17, 41, 47, 58, 132]),
        side in prop::sample::select(vec![Side::Source, Side::Destination]),
    ) {
        let mut bytes = bytes;
        if let Some(first) = bytes.first_mut() {
            *first = [0x45, 0x60, 0x46, *first][usize::from(version)];
        }
        if let Some(field) = bytes.get_mut(if version == 1 { 6 } else { 9 }) {
            *field = protocol;
        }
        let route = if ipv6 { Build::ipv6([1; 16], [2; 16]) } else { Build::ipv4([1; 4], [2; 4]) };
        let frame = error_frame(read(&route.frame()).addresses, kind, 4, 1400, &bytes);
        let packet = read(&frame);
        if let Some(about) = quoted(&frame, &packet) {
            let (pool, mut held) = pool_of(&frame);
            let address: IpAddr = if ipv6 { [7; 16].into() } else { [7, 7, 7, 7].into() };
            let _ = translate_error(&pool, &mut held, &packet, &about, Translation { side, address, port: 1 });
            prop_assert_eq!(held.len(), frame.len());
        }
        if let Some(about) = about_tunnel(&frame, &packet) {
            let mut out = [0; icmpv6::MAX_LENGTH];
            let length = about.write_answer(&mut out, &frame, &packet, 0);
            prop_assert!(length.is_none_or(|length| length <= out.len()));
        }
    }
}

#[test]
fn recorded_errors_come_out_as_from_the_kernel() {
    let mut forwarded = 0;
    for exchange in exchanges(include_str!("../../../tests/oracle/cases/icmp-nat.json")) {
        let packet = read(&exchange.sent);
        if packet.protocol != protocol::ICMP {
            continue;
        }
        // The recorded connection is 10.88.128.1:5000 to 10.88.0.100:80 at 10.88.2.11:8080.
        let about = quoted(&exchange.sent, &packet)
            .filter(|about| about.source_port == 5000 || about.destination_port == 5000);
        let Some(about) = about else {
            let translated = exchange.received.iter().any(|(port, _)| *port != exchange.port);
            assert!(!translated, "{}", exchange.what);
            continue;
        };
        let [(_, out)] = exchange.received.as_slice() else { panic!("{}", exchange.what) };
        let to = match exchange.port.as_str() {
            "c" => Translation { side: Side::Destination, address: [10, 88, 2, 11].into(), port: 8080 },
            _ => Translation { side: Side::Source, address: [10, 88, 0, 100].into(), port: 80 },
        };
        let (pool, mut frame) = pool_of(&exchange.sent);
        dr::decrement_lifetime(&pool, &mut frame, &packet).unwrap();
        translate_error(&pool, &mut frame, &packet, &about, to).unwrap();
        assert_eq!(pool.bytes(&frame)[14..packet.end()], out[14..], "{}", exchange.what);
        forwarded += 1;
    }
    assert_eq!(forwarded, 11);
}

/// The client's packet, in a tunnel's, in a router's error; and that as read.
fn tunnel_error(outer: &Build, kind: u8, code: u8, rest: u32, cut: usize) -> (Vec<u8>, Parsed) {
    let outer = outer.packet();
    let parsed = crate::wire::parse_inner(&outer, 0).unwrap();
    let router: IpAddr = match parsed.family() {
        Family::V4 => [10, 9, 9, 9].into(),
        Family::V6 => [9; 16].into(),
    };
    let route = Addresses::new(router, parsed.addresses.source()).unwrap();
    let frame = error_frame(route, kind, code, rest, &outer[..cut.min(outer.len())]);
    let packet = read(&frame);
    (frame, packet)
}

const DIRECTOR: [u8; 4] = [10, 0, 0, 254];
const SERVER: [u8; 4] = [10, 0, 0, 11];
const DIRECTOR6: [u8; 16] = [0xfe; 16];
const SERVER6: [u8; 16] = [0x11; 16];

/// Headers of a tunnel around a packet.
fn around(kind: TunnelKind, ipv6: bool, packet: &[u8]) -> Build {
    let outer = if ipv6 { Build::ipv6(DIRECTOR6, SERVER6) } else { Build::ipv4(DIRECTOR, SERVER) };
    let number = if packet[0] >> 4 == 6 { protocol::IPV6 } else { protocol::IPV4 };
    match kind {
        TunnelKind::Ipip => outer.transport(Transport::Raw { protocol: number }).payload(packet),
        TunnelKind::Gue => outer
            .transport(Transport::Udp { source: 40000, destination: 6080, checksum: false })
            .payload(&[&gue::header(number)[..], packet].concat()),
        TunnelKind::Gre => {
            let mut bytes = [&[0; 8][..], packet].concat();
            let ether_type = if number == protocol::IPV6 { ethernet::IPV6 } else { ethernet::IPV4 };
            assert!(gre::write(&mut bytes, ether_type, true));
            outer.transport(Transport::Raw { protocol: protocol::GRE }).payload(&bytes)
        }
    }
}

#[test]
fn errors_about_tunnels_are_told_to_the_client() {
    let v4 = Build::ipv4([192, 0, 2, 1], [198, 51, 100, 7]).dont_fragment();
    let v6 = Build::ipv6([0x20; 16], [0x30; 16]);
    let (too_big, unreachable) = ((3, 4, 1400), (3, 1, 0));
    let (too_big6, unreachable6, problem6) = ((2, 0, 1400), (1, 0, 0), (4, 1, 40));
    // Kind and inner packet; IPv6 outside; the router's error; what the client is told.
    type Row<'a> = (TunnelKind, &'a Build, bool, (u8, u8, u32), Option<(u8, u8, u32)>);
    let fragmentable = Build::ipv4([192, 0, 2, 1], [198, 51, 100, 7]);
    let rows: [Row<'_>; 19] = [
        (TunnelKind::Ipip, &v4, false, too_big, Some((3, 4, 1380))),
        (TunnelKind::Gue, &v4, false, too_big, Some((3, 4, 1368))),
        (TunnelKind::Gre, &v4, false, too_big, Some((3, 4, 1372))),
        (TunnelKind::Ipip, &v4, false, (3, 4, 88), Some((3, 4, 88))),
        (TunnelKind::Ipip, &v4, false, (3, 4, 89), Some((3, 4, 69))),
        (TunnelKind::Ipip, &v4, false, (3, 4, 0), Some((3, 4, 0))),
        (TunnelKind::Ipip, &v4, false, unreachable, Some((3, 1, 0))),
        (TunnelKind::Gue, &v4, false, (11, 0, 0), Some((11, 0, 0))),
        (TunnelKind::Ipip, &fragmentable, false, too_big, None),
        (TunnelKind::Ipip, &fragmentable, false, unreachable, Some((3, 1, 0))),
        (TunnelKind::Ipip, &v6, false, too_big, Some((2, 0, 1380))),
        (TunnelKind::Gre, &v6, false, (3, 4, 1290), Some((2, 0, 1280))),
        (TunnelKind::Gre, &v6, false, unreachable, Some((1, 3, 0))),
        (TunnelKind::Ipip, &v4, true, too_big6, Some((3, 4, 1360))),
        (TunnelKind::Gue, &v4, true, unreachable6, Some((3, 1, 0))),
        (TunnelKind::Gue, &v6, true, too_big6, Some((2, 0, 1348))),
        (TunnelKind::Gre, &v6, true, unreachable6, Some((1, 0, 0))),
        (TunnelKind::Ipip, &v6, true, problem6, Some((1, 3, 0))),
        (TunnelKind::Ipip, &v6, true, (3, 0, 0), Some((3, 0, 0))),
    ];
    for (kind, inner, ipv6, (error, code, rest), expected) in rows {
        let what = format!("{kind:?} {ipv6} {error}/{code} {rest} {inner:?}");
        let inner = inner.clone().transport(Transport::tcp(5000, 80)).payload(&[7; 100]).packet();
        let (frame, packet) = tunnel_error(&around(kind, ipv6, &inner), error, code, rest, usize::MAX);
        let about = about_tunnel(&frame, &packet).unwrap_or_else(|| panic!("{what}"));
        let server: IpAddr = if ipv6 { SERVER6.into() } else { SERVER.into() };
        assert_eq!((about.server, about.kind), (server, kind), "{what}");
        assert_eq!(about.port, if kind == TunnelKind::Gue { 6080 } else { 0 });
        assert_eq!((about.inner.source_port, about.inner.destination_port), (5000, 80));
        let is_about_size = if ipv6 { error == 2 } else { (error, code) == (3, 4) };
        assert_eq!(about.path_mtu, is_about_size.then_some(rest), "{what}");

        let mut out = [0; icmpv6::MAX_LENGTH];
        let length = about.write_answer(&mut out, &frame, &packet, 0x1234);
        assert_eq!(length.is_some(), expected.is_some(), "{what}");
        let (Some(length), Some((kind, code, rest))) = (length, expected) else { continue };
        let answer = crate::wire::parse_inner(&out[..length], 0).unwrap();
        assert_eq!(transport::verify(&out, &answer), Checked::Right);
        assert_eq!(answer.addresses, about.inner.addresses.reversed());
        let message = &out[answer.transport_offset.into()..length];
        assert_eq!(
            (&message[..2], &message[4..8]),
            (&[kind, code][..], &u32::to_be_bytes(rest)[..]),
            "{what}"
        );
        assert_eq!(&message[8..], &inner, "{what}");
    }
}

#[test]
fn errors_about_other_packets_are_not_taken_for_a_tunnels() {
    let inner = Build::ipv4([192, 0, 2, 1], [198, 51, 100, 7]).transport(Transport::tcp(5000, 80)).packet();
    let found = |outer: &Build, cut: usize| {
        let (frame, packet) = tunnel_error(outer, 3, 1, 0, cut);
        about_tunnel(&frame, &packet)
    };
    for kind in [TunnelKind::Ipip, TunnelKind::Gue, TunnelKind::Gre] {
        let outer = around(kind, false, &inner);
        assert!(found(&outer, usize::MAX).is_some());
        // Eight bytes of the client's packet are not its ports.
        assert_eq!(found(&outer, 20 + 8 + 4 + 8), None, "{kind:?}");
        assert!(found(&outer.clone().fragment(0, true), usize::MAX).is_some());
        // A later part of a tunnel's packet is not its beginning, whatever it looks like.
        assert_eq!(
            found(&Build::ipv4(DIRECTOR, SERVER).payload(&inner).fragment(8, false), usize::MAX),
            None
        );
        let (mut frame, packet) = tunnel_error(&outer, 3, 1, 0, usize::MAX);
        frame[usize::from(packet.transport_offset) + 2] ^= 1;
        assert!(matches!(parse(&frame), Outcome::Packet(again) if again == packet));
        assert_eq!(about_tunnel(&frame, &packet), None, "wrong checksum");
    }
    let tcp = Build::ipv4(DIRECTOR, SERVER).transport(Transport::tcp(1, 2)).payload(&inner);
    assert_eq!(found(&tcp, usize::MAX), None);
}

#[test]
fn the_client_is_told_nothing_about_its_own_errors() {
    let quench = Transport::Icmp { kind: 3, code: 1, rest: 0 };
    let inner = Build::ipv4([192, 0, 2, 1], [198, 51, 100, 7]).transport(quench).payload(&[0; 28]).packet();
    let (frame, packet) = tunnel_error(&around(TunnelKind::Ipip, false, &inner), 3, 1, 0, usize::MAX);
    let about = about_tunnel(&frame, &packet).unwrap();
    assert_eq!(about.write_answer(&mut [0; 576], &frame, &packet, 0), None);
}
