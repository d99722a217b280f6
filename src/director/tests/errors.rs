//! ICMP errors about packets of connections, and others.

use super::*;
use crate::forward::icmp::quoted;
use crate::wire::transport::{Checked, verify};

/// A router near the client, and one near the real servers.
const NEAR_CLIENT: [u8; 4] = [10, 88, 130, 7];
const NEAR_SERVERS: [u8; 4] = [10, 88, 2, 1];
const SERVER: [u8; 4] = [10, 88, 2, 11];

/// An error of this type from `router` to the sender of `about`, an IPv4 packet, to the director's interface outside.
fn error(router: [u8; 4], kind: u8, about: &[u8]) -> Build {
    let sender = about[12..16].try_into().unwrap();
    Build::ipv4(router, sender)
        .source_mac(ROUTER)
        .destination_mac(DIRECTOR_OUTSIDE)
        .transport(Transport::Icmp { kind, code: if kind == 3 { 4 } else { 0 }, rest: 1200 })
        .payload(&about[..28])
}

/// A reply as it left the virtual service.
fn reply(port: u16) -> Vec<u8> {
    Build::ipv4(VIP, CLIENT).transport(segment(80, port, ACK)).payload(&[7; 100]).packet()
}

fn too_big(router: [u8; 16], about: &[u8]) -> Vec<u8> {
    Build::ipv6(router, about[8..24].try_into().unwrap())
        .source_mac(ROUTER)
        .destination_mac(DIRECTOR_OUTSIDE)
        .transport(Transport::Icmpv6 { kind: 2, code: 0, rest: 1280 })
        .payload(about)
        .frame()
}

/// The frame with its time to live lowered by one hop, in what follows the link header.
fn one_hop_older(frame: &[u8], lifetime: usize) -> Vec<u8> {
    let mut packet = frame[14..].to_vec();
    packet[lifetime] -= 1;
    packet
}

/// What is counted of a packet.
fn traffic(lab: &Lab, server: u32) -> [(u64, u64); 2] {
    let traffic = lab.shared().server_traffic(ServerId(server));
    [(traffic.in_packets, traffic.in_bytes), (traffic.out_packets, traffic.out_bytes)]
}

#[test]
fn an_error_about_a_reply_goes_to_the_connections_real_server() {
    let mut lab = Lab::new(3);
    let servers = [4000, 4001, 4002].map(|port| lab.chosen(port));
    let states = lab.states();
    for (port, server) in [4000, 4001, 4002].into_iter().zip(servers) {
        for kind in [3, 4, 11] {
            let [(packets, bytes), out] = traffic(&lab, server);
            let frame = error(NEAR_CLIENT, kind, &reply(port)).frame();
            let sent = lab.one(frame.clone());
            assert_eq!(sent.verdict, Verdict::Transmit(INSIDE), "type {kind}");
            assert_eq!(sent.frame[..6], server_mac(server).0);
            // But for the header's checksum.
            let expected = one_hop_older(&frame, 8);
            assert_eq!((&sent.frame[14..24], &sent.frame[26..]), (&expected[..10], &expected[12..]));
            assert_eq!(traffic(&lab, server), [(packets + 1, bytes + 56), out]);
        }
    }
    assert_eq!(lab.states(), states);
}

#[test]
fn the_same_over_ipv6() {
    let mut lab = Lab::new(1);
    assert_eq!(lab.one(tcp6(4000, SYN)).verdict, Verdict::Transmit(INSIDE));
    let about = Build::ipv6(VIP6, CLIENT6).transport(segment(80, 4000, ACK)).payload(&[7; 100]).packet();
    let frame = too_big([9; 16], &about);
    let sent = lab.one(frame.clone());
    assert_eq!((sent.verdict, &sent.frame[14..]), (Verdict::Transmit(INSIDE), &one_hop_older(&frame, 7)[..]));
    assert_eq!(sent.frame[..6], server_mac(1).0);
}

/// The host looks at them: some may be about its own packets.
#[test]
fn the_host_gets_what_is_not_about_a_packet_of_a_connection_to_its_sender() {
    let mut lab = Lab::new(1);
    assert_eq!(lab.tcp(4000, SYN), Verdict::Transmit(INSIDE));
    let about = |kind| error(NEAR_CLIENT, kind, &reply(4000));
    let request = build().transport(segment(4000, 80, ACK)).packet();
    let to_another = Build::ipv4(NEAR_CLIENT, [10, 88, 1, 254])
        .destination_mac(DIRECTOR_OUTSIDE)
        .transport(Transport::Icmp { kind: 3, code: 3, rest: 0 })
        .payload(&reply(4000));
    let rows = [
        ("another connection", error(NEAR_CLIENT, 3, &reply(4001)).frame()),
        ("redirect", about(5).frame()),
        ("parameter problem", about(12).frame()),
        ("echo", about(8).frame()),
        ("in pieces", about(3).fragment(0, true).frame()),
        ("about a request", error(NEAR_CLIENT, 3, &request).destination_mac(DIRECTOR_OUTSIDE).frame()),
        ("to somebody else", to_another.frame()),
    ];
    let before = traffic(&lab, 1);
    for (what, frame) in rows {
        let sent = lab.one(frame.clone());
        assert_eq!((sent.verdict, sent.frame), (Verdict::ToHost, frame), "{what}");
    }
    assert_eq!(traffic(&lab, 1), before);
}

#[test]
fn an_error_for_a_server_that_was_removed_or_with_no_hop_left_goes_nowhere() {
    let mut lab = Lab::new(1);
    assert_eq!(lab.tcp(4000, SYN), Verdict::Transmit(INSIDE));
    let frame = |ttl| error(NEAR_CLIENT, 3, &reply(4000)).ttl(ttl).frame();
    // No answer, either: nobody is told of errors about errors.
    assert_eq!(lab.one(frame(1)).verdict, Verdict::Drop(DropReason::TtlExpired));
    lab.shared().slots.get(ServerId(1)).set_available(false);
    assert_eq!(lab.one(frame(64)).verdict, Verdict::Drop(DropReason::RealServerGone));
    lab.shared().slots.get(ServerId(1)).set_available(true);
    assert_eq!(lab.one(frame(64)).verdict, Verdict::Transmit(INSIDE));
}

#[test]
fn under_nat_both_directions_are_about_what_their_receiver_knows() {
    let mut lab = Lab::masqueraded();
    assert_eq!(lab.tcp(4000, SYN), Verdict::Transmit(INSIDE));
    let request = Build::ipv4(CLIENT, SERVER).transport(segment(4000, 8080, ACK)).packet();
    let (client, vip, server) = (CLIENT.into(), VIP.into(), SERVER.into());
    // Outer sender and receiver, then those of the packet inside.
    type Ends = ((IpAddr, IpAddr), ((IpAddr, u16), (IpAddr, u16)));
    let to_server: Ends = ((NEAR_CLIENT.into(), server), ((server, 8080), (client, 4000)));
    let to_client: Ends = ((vip, client), ((client, 4000), (vip, 80)));
    let rows = [
        (error(NEAR_CLIENT, 3, &reply(4000)), OUTSIDE, INSIDE, to_server),
        (error(NEAR_SERVERS, 11, &request).destination_mac(DIRECTOR_INSIDE), INSIDE, OUTSIDE, to_client),
    ];
    let state = lab.states();
    for (error, from, to, expected) in rows {
        let [into, out] = traffic(&lab, 1);
        let mut damaged = error.clone().frame();
        damaged[14 + 20 + 4] ^= 1;
        for (frame, is_right) in [(error.frame(), true), (damaged, false)] {
            let frame = lab.frames.allocate_copy(&frame).unwrap();
            lab.batch.push(frame, from, Offload::default()).unwrap();
            lab.director.process(&mut lab.batch, &lab.frames, lab.now);
            let sent = lab.collect().pop().unwrap();
            if !is_right {
                assert_eq!(sent.verdict, Verdict::Drop(DropReason::BadTransportHeader));
                continue;
            }
            assert_eq!(sent.verdict, Verdict::Transmit(to));
            let Outcome::Packet(packet) = wire::parse(&sent.frame) else { panic!("{:?}", sent.frame) };
            assert_eq!(verify(&sent.frame, &packet), Checked::Right);
            let inner = quoted(&sent.frame, &packet).unwrap();
            let ends = |packet: &Parsed| (packet.addresses.source(), packet.addresses.destination());
            let (source, destination) = ends(&inner);
            let got = (ends(&packet), ((source, inner.source_port), (destination, inner.destination_port)));
            assert_eq!(got, expected);
        }
        let counted = traffic(&lab, 1);
        let (same, more) = if to == INSIDE {
            ((counted[1], out), (counted[0], into))
        } else {
            ((counted[0], into), (counted[1], out))
        };
        assert_eq!(same.0, same.1);
        assert_eq!(more.0, (more.1.0 + 2, more.1.1 + 112), "counted before the checksum is looked at");
    }
    assert_eq!(lab.states(), state);
}
