//! Real servers behind tunnels.

use super::*;
use crate::types::{Prefix, TunnelChecksum, TunnelKind};
use crate::wire::{Addresses, Parsed, protocol};

/// What the route to the real servers prefers.
const SOURCE: [u8; 4] = [10, 88, 2, 254];
const GUE: Tunnel = Tunnel { kind: TunnelKind::Gue, port: 6080, checksum: TunnelChecksum::Checksum };

impl Lab {
    /// One real server of every service, behind a tunnel.
    fn tunnelled(tunnel: Tunnel) -> Self {
        let mut lab = Self::new(1);
        for service in &lab.services {
            let mut chooser = service.chooser.lock();
            let present = chooser.servers()[0];
            let server = RealServer { method: ForwardingMethod::Tunnel, ..present };
            let slots = &lab.director.shared().slots;
            slots.get(server.id).set_method(server.method, tunnel);
            chooser.update(slots, server);
        }
        lab.network.sources = vec![Some(SOURCE.into()); 64];
        // Larger than the way to the real servers.
        lab.network.ports[0].mtu = 9000;
        lab.publish();
        lab
    }
}

fn parsed(frame: &[u8]) -> Parsed {
    match wire::parse(frame) {
        Outcome::Packet(packet) => packet,
        other => panic!("{other:?}"),
    }
}

/// Checks the outer packet of a frame, that its protocol's number is `number`, and that what follows `headers` bytes of
/// headers is `inner`, one hop older.
fn check(sent: &Sent, number: u8, headers: usize, inner: &[u8]) {
    assert_eq!((sent.verdict, &sent.frame[..6]), (Verdict::Transmit(INSIDE), &server_mac(1).0[..]));
    let outer = parsed(&sent.frame);
    let destination = u32::from_be_bytes([10, 88, 2, 11]);
    assert_eq!(outer.addresses, Addresses::V4 { source: u32::from_be_bytes(SOURCE), destination });
    assert_eq!((outer.protocol, outer.ttl), (number, 63));
    let packet = &sent.frame[14 + headers..];
    let mut expected = inner[14..].to_vec();
    if expected[0] >> 4 == 4 {
        assert!(wire::ipv4::decrement_ttl(&mut expected));
    } else {
        expected[7] -= 1;
    }
    assert_eq!(packet, expected);
}

#[test]
fn packets_of_both_families_go_inside_others_to_a_server_over_ipv4() {
    for (tunnel, numbers, overhead) in [
        (Tunnel::IPIP, [protocol::IPV4, protocol::IPV6], 20),
        (GUE, [protocol::UDP; 2], 32),
        (Tunnel { kind: TunnelKind::Gre, ..Tunnel::IPIP }, [protocol::GRE; 2], 24),
    ] {
        let mut lab = Lab::tunnelled(tunnel);
        for (frame, number) in [tcp(4000, SYN), tcp6(4000, SYN)].into_iter().zip(numbers) {
            check(&lab.one(frame.clone()), number, overhead, &frame);
        }
    }
}

#[test]
fn a_tunnel_that_is_changed_counts_from_the_next_packet_on() {
    let mut lab = Lab::tunnelled(Tunnel::IPIP);
    check(&lab.one(tcp(4000, SYN)), protocol::IPV4, 20, &tcp(4000, SYN));
    lab.shared().slots.get(ServerId(1)).set_method(ForwardingMethod::DirectRouting, GUE);
    // The connection's method is the one that it was made with.
    check(&lab.one(tcp(4000, ACK)), protocol::UDP, 32, &tcp(4000, ACK));
}

#[test]
fn packets_wait_for_a_link_address_and_grow_one_hop_older_meanwhile() {
    let mut lab = Lab::tunnelled(GUE);
    lab.network.next_hops[1] = NextHop::Resolving;
    lab.publish();
    for port in 0..64 {
        assert!(lab.one_or_none(tcp(4000 + port, SYN)).is_none(), "held");
    }
    assert_eq!(lab.tcp(4000, SYN), Verdict::Drop(DropReason::NeighbourQueueFull));
    lab.network.next_hops[1] = ready(1);
    lab.publish();
    let released = lab.tick();
    assert_eq!(released.len(), 64);
    for (sent, port) in released.iter().zip(4000..) {
        check(sent, protocol::UDP, 32, &tcp(port, SYN));
    }
}

#[test]
fn later_fragments_are_tunnelled_one_by_one() {
    let mut lab = Lab::tunnelled(Tunnel::IPIP);
    let piece = |more, offset, payload: &[u8]| {
        let transport = Transport::Udp { source: 4000, destination: 53, checksum: false };
        let mut frame = build().transport(transport).payload(payload).frame();
        let field: u16 = (u16::from(more) << 13) | offset;
        frame[20..22].copy_from_slice(&field.to_be_bytes());
        assert!(wire::ipv4::write_checksum(&mut frame[14..34]));
        frame
    };
    for frame in [piece(true, 0, &[1; 16]), piece(false, 3, &[2; 8])] {
        check(&lab.one(frame.clone()), protocol::IPV4, 20, &frame);
    }
}

#[test]
fn what_a_tunnel_cannot_carry_is_told_or_has_a_reason() {
    let large = |build: Build, payload| build.transport(segment(1, 80, SYN)).payload(payload).frame();
    let mut lab = Lab::tunnelled(GUE);
    // 40 bytes of headers and 32 of the tunnel's.
    let fits = large(build().dont_fragment(), &[0; 1428]);
    check(&lab.one(fits.clone()), protocol::UDP, 32, &fits);
    let told = lab.one(large(build().dont_fragment(), &[0; 1429]));
    assert_eq!(told.verdict, Verdict::Reply(OUTSIDE));
    assert_eq!(told.frame[34..36], [3, 4]);
    assert_eq!(told.frame[40..42], 1468_u16.to_be_bytes());
    let may_be_cut = large(build(), &[0; 1429]);
    assert_eq!(lab.one(may_be_cut.clone()).verdict, Verdict::Drop(DropReason::MustFragment));
    lab.settings.pmtu_disc = false;
    lab.publish();
    let forbidden = large(build().dont_fragment(), &[0; 1429]);
    assert_eq!(lab.one(forbidden).verdict, Verdict::Drop(DropReason::MustFragment));

    let whole = lab.frames.allocate_copy(&may_be_cut).unwrap();
    let offload = Offload { segmentation: 1, segment_size: 500, header_length: 54, ..Offload::default() };
    lab.batch.push(whole, OUTSIDE, offload).unwrap();
    lab.director.process(&mut lab.batch, &lab.frames, lab.now);
    assert_eq!(lab.collect()[0].verdict, Verdict::Drop(DropReason::Unsegmented));

    if let NextHop::Ready { mtu, .. } = &mut lab.network.next_hops[1] {
        *mtu = 99;
    }
    lab.publish();
    assert_eq!(lab.tcp(4000, SYN), Verdict::Drop(DropReason::TunnelMtuTooSmall));
}

#[test]
fn without_a_preferred_source_the_ports_own_address_is_taken() {
    let mut lab = Lab::tunnelled(Tunnel::IPIP);
    lab.network.sources.clear();
    lab.publish();
    assert_eq!(lab.tcp(4000, SYN), Verdict::Drop(DropReason::NoTunnelSource));
    lab.network.ports[1].networks = vec![Prefix::new(SOURCE.into(), 24)];
    lab.publish();
    check(&lab.one(tcp(4000, SYN)), protocol::IPV4, 20, &tcp(4000, SYN));
}
