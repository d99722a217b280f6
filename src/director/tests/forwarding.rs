//! What is sent to real servers: to which, and how it is changed.

use super::*;

#[test]
fn direct_routing_changes_link_addresses_and_lifetime_alone() {
    for (what, sent, family_length) in
        [("IPv4", tcp(4000, SYN), 20), ("IPv6", tcp6(4000, SYN), 40), ("UDP", udp(4000), 20)]
    {
        let mut lab = Lab::new(1);
        let got = lab.one(sent.clone());
        assert_eq!(got.verdict, Verdict::Transmit(INSIDE), "{what}");
        assert_eq!(got.frame[..6], server_mac(1).0, "{what}");
        assert_eq!(got.frame[6..12], DIRECTOR_INSIDE, "{what}");
        assert_eq!(got.frame[14 + family_length..], sent[14 + family_length..], "{what}: payload");
        let Outcome::Packet(before) = wire::parse(&sent) else { panic!("{what}") };
        // Parsing verifies the IPv4 header's checksum.
        let Outcome::Packet(after) = wire::parse(&got.frame) else { panic!("{what}: not a packet") };
        assert_eq!(after.ttl, before.ttl - 1, "{what}");
        assert_eq!(after.addresses, before.addresses, "{what}");
    }
}

#[test]
fn connections_keep_their_server_and_new_ones_take_turns() {
    let mut lab = Lab::new(3);
    let first: Vec<u32> = (0..6).map(|port| lab.chosen(4000 + port)).collect();
    assert_eq!(first, [3, 2, 1, 3, 2, 1]);
    for (port, server) in first.iter().enumerate() {
        let sent = lab.one(tcp(4000 + port as u16, ACK));
        assert_eq!(u32::from(sent.frame[5]) - 10, *server);
    }
    assert_eq!((lab.counts(1), lab.counts(2), lab.counts(3)), ((2, 0), (2, 0), (2, 0)));
}

#[test]
fn both_families_and_all_protocols_are_load_balanced() {
    let mut lab = Lab::new(2);
    let sctp = build()
        .transport(Transport::Sctp { source: 9, destination: 2905, tag: 0, chunk: 1, chunk_payload: 16 })
        .payload(&[0; 16])
        .frame();
    for frame in [tcp6(1, SYN), tcp6(2, SYN), udp(1), udp(2), sctp] {
        assert_eq!(lab.one(frame).verdict, Verdict::Transmit(INSIDE));
    }
    assert_eq!((lab.counts(11), lab.counts(12)), ((0, 1), (0, 1)), "UDP is never active");
    assert_eq!((lab.counts(21), lab.counts(22)), ((1, 0), (1, 0)));
    assert_eq!(lab.counts(32), (0, 1));
}

#[test]
fn tags_go_off_and_on() {
    let mut lab = Lab::new(1);
    let plain = tcp(4000, SYN);
    let tagged = build().vlan(7).transport(segment(4000, 80, ACK)).frame();
    let padded = build().transport(segment(4000, 80, ACK)).padded(60).frame();
    assert_eq!(lab.one(plain.clone()).frame.len(), plain.len());
    assert_eq!(lab.one(tagged).frame.len(), plain.len(), "in by a VLAN, out without");
    assert_eq!(lab.one(padded).frame.len(), plain.len(), "padding is cut off");
    let NextHop::Ready { port, source, destination, mtu, .. } = ready(1) else { unreachable!() };
    let vlan = Some(VlanTag { protocol: 0x8100, id: 9 });
    lab.network.next_hops[1] = NextHop::Ready { port, source, destination, mtu, vlan };
    lab.publish();
    let sent = lab.one(plain);
    assert_eq!(sent.frame[12..18], [0x81, 0, 0, 9, 8, 0]);
    let Outcome::Packet(packet) = wire::parse(&sent.frame) else { panic!() };
    assert_eq!((packet.vlan, packet.source_port), (Some(9), 4000));
}

#[test]
fn offloaded_frames_are_measured_by_their_segments() {
    let mut lab = Lab::new(1);
    lab.tcp(4000, SYN);
    let large = build().transport(segment(4000, 80, ACK)).payload(&[7; 3000]).frame();
    let frame = lab.frames.allocate_copy(&large).unwrap();
    let offload = Offload {
        needs_checksum: true,
        checksum_start: 34,
        checksum_offset: 16,
        segmentation: 1,
        header_length: 54,
        segment_size: 1400,
    };
    lab.batch.push(frame, OUTSIDE, offload).unwrap();
    lab.director.process(&mut lab.batch, &lab.frames, lab.now);
    let entry = lab.batch.drain().next().unwrap();
    assert_eq!((entry.verdict, entry.offload), (Verdict::Transmit(INSIDE), offload));
    lab.frames.free(entry.frame);
}
