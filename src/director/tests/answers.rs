//! What clients are told when a packet cannot be served.

use super::*;

/// Type and code of an ICMP error, what of it comes after the header, and the packet itself.
fn answer(sent: &Sent) -> (u8, u8, u32, wire::Parsed) {
    assert_eq!(sent.verdict, Verdict::Reply(OUTSIDE));
    assert_eq!(
        (&sent.frame[..6], &sent.frame[6..12]),
        (&ROUTER[..], &DIRECTOR_OUTSIDE[..]),
        "back where it came from"
    );
    let Outcome::Packet(packet) = wire::parse(&sent.frame) else { panic!("{:?}", sent.frame) };
    assert_eq!(wire::transport::verify(&sent.frame, &packet), wire::transport::Checked::Right);
    let icmp = &sent.frame[usize::from(packet.transport_offset)..];
    (icmp[0], icmp[1], u32::from_be_bytes([icmp[4], icmp[5], icmp[6], icmp[7]]), packet)
}

#[test]
fn clients_are_told_why_a_packet_cannot_be_served() {
    let large = |build: Build| build.transport(segment(1, 80, SYN)).payload(&[0; 1500]).frame();
    let v6 = || Build::ipv6(CLIENT6, VIP6).source_mac(ROUTER).destination_mac(DIRECTOR_OUTSIDE);
    let syn = |build: Build| build.transport(segment(1, 80, SYN)).frame();
    // {what, packet, type, code, rest}: types as recorded from the kernel for IPv4, from RFC 4443 for IPv6.
    let rows = [
        ("time to live 1", syn(build().ttl(1)), 11, 0, 0),
        ("over the MTU", large(build().dont_fragment()), 3, 4, 1500),
        ("hop limit 1", syn(v6().ttl(1)), 3, 0, 0),
        ("over the MTU, IPv6", large(v6()), 2, 0, 1500),
    ];
    for (what, frame, kind, code, rest) in rows {
        let mut lab = Lab::new(1);
        lab.network.ports[0].mtu = 9000;
        lab.publish();
        let got = lab.one(frame.clone());
        let (got_kind, got_code, got_rest, packet) = answer(&got);
        assert_eq!((got_kind, got_code, got_rest), (kind, code, rest), "{what}");
        let Outcome::Packet(sent) = wire::parse(&frame) else { panic!() };
        assert_eq!(
            packet.addresses,
            sent.addresses.reversed(),
            "{what}: from the virtual address to the client"
        );
    }
    for frame in [tcp(1, SYN), udp(1)] {
        let got = Lab::new(0).one(frame.clone());
        let (kind, code, _, packet) = answer(&got);
        assert_eq!((kind, code), (3, 3));
        let quoted = &got.frame[usize::from(packet.transport_offset) + 8..];
        assert_eq!(*quoted, frame[14..], "the packet as it came");
    }
    assert_eq!(answer(&Lab::new(0).one(tcp6(1, SYN))).0, 1);
}

#[test]
fn what_was_merged_on_its_way_is_not_answered() {
    let mut lab = Lab::new(1);
    let merged = build().dont_fragment().transport(segment(1, 80, SYN)).payload(&[0; 1500]).frame();
    assert_eq!(lab.one(merged).verdict, Verdict::Drop(DropReason::TooBig));
}

#[test]
fn answers_are_few() {
    let mut lab = Lab::new(0);
    let replies = (0..200).filter(|port| lab.tcp(4000 + port, SYN) == Verdict::Reply(OUTSIDE)).count();
    assert_eq!(replies, 50);
    assert_eq!(lab.director.frame_counts().dropped_for(DropReason::NoRealServer), 150);
}
