//! NAT: both directions of a connection.

use super::*;
use crate::forward::{Routes, Way};
use crate::types::{Family, Prefix};
use crate::wire::transport::{Checked, verify};

const SERVER: [u8; 4] = [10, 88, 2, 11];
const SERVER6: [u8; 16] = [0xfd, 0x88, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 11];
/// A client that is a neighbour.
const NEIGHBOUR: [u8; 4] = [10, 88, 1, 7];
/// What is added to a service's port to give its real servers'.
const SHIFT: u16 = 8000;

fn to_router() -> NextHop {
    NextHop::Ready {
        port: OUTSIDE,
        source: MacAddress(DIRECTOR_OUTSIDE),
        destination: MacAddress(ROUTER),
        vlan: None,
        mtu: 1500,
    }
}

impl Lab {
    /// A director whose services, each of one real server, are masqueraded.
    pub(super) fn masqueraded() -> Self {
        let mut lab = Self::new(1);
        for service in &lab.services {
            let ServiceKey::Address { address: vip, port, .. } = service.key else { continue };
            let mut chooser = service.chooser.lock();
            let present = chooser.servers()[0];
            let address = match Family::of(vip) {
                Family::V4 => SERVER.into(),
                Family::V6 => SERVER6.into(),
            };
            let method = ForwardingMethod::Masquerading;
            let server = RealServer { address, port: port + SHIFT, method, ..present };
            chooser.update(&lab.director.shared().slots, server);
        }
        let prefix = |text: &str| text.parse::<Prefix>().unwrap();
        lab.network.routes = Arc::new(Routes::new([
            (prefix("0.0.0.0/0"), 0),
            (prefix("::/0"), 0),
            (prefix("10.88.1.0/24"), 1),
        ]));
        lab.network.ways = vec![Way::Through(to_router()), Way::OnLink];
        lab.network.ports[0].networks = vec![prefix("10.88.1.254/24")];
        lab.network.ports[1].networks = vec![prefix("10.88.2.254/24"), prefix("fd88:2::fe/64")];
        lab.publish();
        lab
    }

    /// Sends a frame of a real server's.
    fn server_sends(&mut self, frame: Vec<u8>) -> Option<Sent> {
        let frame = self.frames.allocate_copy(&frame).unwrap();
        self.batch.push(frame, INSIDE, Offload::default()).unwrap();
        self.director.process(&mut self.batch, &self.frames, self.now);
        self.collect().pop()
    }

    fn state(&self) -> State {
        self.states()[0].1
    }
}

fn reply_to(client: [u8; 4]) -> Build {
    Build::ipv4(SERVER, client).source_mac(server_mac(1).0).destination_mac(DIRECTOR_INSIDE)
}

fn tcp_reply(client_port: u16, flags: u8) -> Vec<u8> {
    reply_to(CLIENT).transport(segment(80 + SHIFT, client_port, flags)).frame()
}

/// Source and destination of a frame whose checksums are right.
fn ends(sent: &Sent) -> ((IpAddr, u16), (IpAddr, u16)) {
    let Outcome::Packet(packet) = wire::parse(&sent.frame) else { panic!("{:?}", sent.frame) };
    assert_eq!(verify(&sent.frame, &packet), Checked::Right);
    assert_eq!(packet.ttl, 63);
    let addresses = packet.addresses;
    ((addresses.source(), packet.source_port), (addresses.destination(), packet.destination_port))
}

#[test]
fn both_directions_are_translated_and_sent_on() {
    let udp_of = |build: Build, source, destination| {
        build.transport(Transport::Udp { source, destination, checksum: true }).payload(b"query").frame()
    };
    let sctp_of = |build: Build, source, destination, chunk| {
        build
            .transport(Transport::Sctp { source, destination, tag: 0, chunk, chunk_payload: 16 })
            .payload(&[0; 16])
            .frame()
    };
    let reply6 =
        || Build::ipv6(SERVER6, CLIENT6).source_mac(server_mac(1).0).destination_mac(DIRECTOR_INSIDE);
    let four = (CLIENT.into(), VIP.into(), SERVER.into());
    let six = (CLIENT6.into(), VIP6.into(), SERVER6.into());
    let rows = [
        ("TCP", tcp(4000, SYN), tcp_reply(4000, SYN | ACK), four, 80),
        ("UDP", udp_of(build(), 4000, 53), udp_of(reply_to(CLIENT), 53 + SHIFT, 4000), four, 53),
        (
            "SCTP",
            sctp_of(build(), 4000, 2905, 1),
            sctp_of(reply_to(CLIENT), 2905 + SHIFT, 4000, 2),
            four,
            2905,
        ),
        (
            "TCP over IPv6",
            tcp6(4000, SYN),
            reply6().transport(segment(80 + SHIFT, 4000, SYN | ACK)).frame(),
            six,
            80,
        ),
    ];
    for (what, request, reply, (client, vip, server), port) in rows {
        let mut lab = Lab::masqueraded();
        let early = lab.server_sends(reply.clone()).unwrap();
        assert_eq!((early.verdict, &early.frame), (Verdict::ToHost, &reply), "{what}: no connection yet");
        let sent = lab.one(request);
        assert_eq!(sent.verdict, Verdict::Transmit(INSIDE), "{what}");
        assert_eq!(sent.frame[..6], server_mac(1).0, "{what}");
        assert_eq!(ends(&sent), ((client, 4000), (server, port + SHIFT)), "{what}");
        let sent = lab.server_sends(reply).unwrap();
        assert_eq!(sent.verdict, Verdict::Transmit(OUTSIDE), "{what}");
        assert_eq!(sent.frame[..12], [ROUTER, DIRECTOR_OUTSIDE].concat(), "{what}");
        assert_eq!(ends(&sent), ((vip, port), (client, 4000)), "{what}");
    }
}

/// As recorded from the kernel.
#[test]
fn the_states_of_both_directions_and_their_counts() {
    let mut lab = Lab::masqueraded();
    let rows = [
        (false, SYN, State::SYN_RECV),
        (true, SYN | ACK, State::SYN_RECV),
        (false, ACK, State::ESTABLISHED),
        (true, ACK, State::ESTABLISHED),
        (true, FIN | ACK, State::FIN_WAIT),
        (false, ACK, State::FIN_WAIT),
        (false, FIN | ACK, State::TIME_WAIT),
        (true, ACK, State::TIME_WAIT),
        // The port is used again, and the real server refuses.
        (false, SYN, State::SYN_RECV),
        (true, RST, State::CLOSE),
    ];
    for (number, (is_reply, flags, expected)) in rows.into_iter().enumerate() {
        let sent = if is_reply {
            lab.server_sends(tcp_reply(4000, flags)).unwrap()
        } else {
            lab.one(tcp(4000, flags))
        };
        assert!(matches!(sent.verdict, Verdict::Transmit(_)), "{number}: {:?}", sent.verdict);
        assert_eq!(lab.state(), expected, "{number}");
    }
    assert_eq!(lab.counts(1), (0, 1));
    let expected = crate::service::Traffic {
        connections: 2,
        in_packets: 5,
        out_packets: 5,
        in_bytes: 200,
        out_bytes: 200,
    };
    assert_eq!(lab.shared().service_traffic(ServiceId(0)), expected);
    assert_eq!(lab.shared().server_traffic(ServerId(1)), expected);
    // RST: ten seconds, and then neither direction is known.
    lab.now += Duration::from_secs(10);
    assert_eq!(lab.server_sends(tcp_reply(4000, ACK)).unwrap().verdict, Verdict::ToHost);
    lab.now += Duration::from_millis(40); // more than two ticks of the timers
    lab.tick();
    assert_eq!(lab.shared().ipv4.alive(), 0);
}

/// A connection that another director made may say that nobody sees its replies, until one is seen.
#[test]
fn the_first_reply_says_that_replies_are_seen() {
    use crate::conn::{Epochs, FlowFamily, FlowKey, Ipv4, NewConnection, WorkerView};
    let mut lab = Lab::masqueraded();
    let addresses = Ipv4::pack(CLIENT.into(), VIP.into()).unwrap();
    let key = FlowKey::<Ipv4>::new(addresses, 6, 4000, 80);
    let new = NewConnection {
        server: ServerId(1),
        address: SERVER.into(),
        port: 80 + SHIFT,
        method: ForwardingMethod::Masquerading,
        flags: crate::conn::Flags::NO_OUTPUT,
        state: State::ESTABLISHED,
        deadline: lab.now + Duration::from_secs(60),
        control: None,
    };
    let (table, slots) = (&lab.shared().ipv4, &lab.shared().slots);
    let reply_hash = table.hash(&key.reply(u32::from_be_bytes(SERVER), 80 + SHIFT));
    let guard = table.lock_both(table.hash(&key), reply_hash);
    let index = guard.insert(&key, new, slots, &mut WorkerView::default(), &Epochs::new()).unwrap();
    drop(guard);
    let replies_unseen =
        |lab: &Lab| lab.shared().ipv4.record(index).lifecycle().flags.contains(crate::conn::Flags::NO_OUTPUT);
    assert!(replies_unseen(&lab));
    lab.server_sends(tcp_reply(4000, ACK)).unwrap();
    assert!(!replies_unseen(&lab));
    lab.tcp(4000, FIN | ACK);
    assert_eq!(lab.state(), State::CLOSE_WAIT, "IN, not IN-ONLY");
}

#[test]
fn replies_of_a_removed_server_are_still_translated_and_not_counted() {
    let mut lab = Lab::masqueraded();
    lab.tcp(4000, SYN);
    lab.shared().slots.get(ServerId(1)).set_available(false);
    assert_eq!(lab.tcp(4000, ACK), Verdict::Drop(DropReason::RealServerGone));
    assert_eq!(lab.server_sends(tcp_reply(4000, SYN | ACK)).unwrap().verdict, Verdict::Transmit(OUTSIDE));
    let (of_server, of_service) =
        (lab.shared().server_traffic(ServerId(1)), lab.shared().service_traffic(ServiceId(0)));
    assert_eq!((of_server.in_packets, of_server.out_packets), (1, 0));
    assert_eq!((of_service.in_packets, of_service.out_packets), (1, 0));
    lab.shared().slots.get(ServerId(1)).set_available(true);
    lab.server_sends(tcp_reply(4000, ACK)).unwrap();
    assert_eq!(lab.shared().server_traffic(ServerId(1)).out_packets, 1);
}

#[test]
fn a_server_is_told_why_its_reply_cannot_be_sent_on() {
    let large = reply_to(CLIENT)
        .dont_fragment()
        .transport(segment(80 + SHIFT, 4000, ACK))
        .payload(&[0; 1400])
        .frame();
    let old = reply_to(CLIENT).ttl(1).transport(segment(80 + SHIFT, 4000, FIN | ACK)).frame();
    for (what, reply, kind, code, mtu) in
        [("time to live 1", old, 11, 0, 0), ("too large", large, 3, 4, 1400)]
    {
        let mut lab = Lab::masqueraded();
        let NextHop::Ready { port, source, destination, vlan, .. } = to_router() else { unreachable!() };
        lab.network.ways[0] = Way::Through(NextHop::Ready { port, source, destination, vlan, mtu: 1400 });
        lab.publish();
        lab.tcp(4000, SYN);
        let sent = lab.server_sends(reply.clone()).unwrap();
        assert_eq!(sent.verdict, Verdict::Reply(INSIDE), "{what}");
        assert_eq!(sent.frame[..12], [server_mac(1).0, DIRECTOR_INSIDE].concat(), "{what}");
        let Outcome::Packet(packet) = wire::parse(&sent.frame) else { panic!("{what}") };
        assert_eq!(packet.addresses.source(), IpAddr::from([10, 88, 2, 254]), "{what}");
        assert_eq!(packet.addresses.destination(), IpAddr::from(SERVER), "{what}");
        let icmp = &sent.frame[usize::from(packet.transport_offset)..];
        assert_eq!(
            (icmp[0], icmp[1], u32::from(icmp[6]) << 8 | u32::from(icmp[7])),
            (kind, code, mtu),
            "{what}"
        );
        // Quoted as the real server knows it, whichever port the client sees.
        assert_eq!(icmp[8 + 12..8 + 24], reply[14 + 12..14 + 24], "{what}");
    }
}

/// The whole of a connection's frames in one batch, so that none is found by the first stages.
#[test]
fn a_reply_in_the_batch_of_its_connections_first_packet_is_found() {
    let mut lab = Lab::masqueraded();
    let mut reply = tcp_reply(4000, SYN | ACK);
    reply[..6].copy_from_slice(&DIRECTOR_OUTSIDE);
    let sent = lab.batch(&[tcp(4000, SYN), reply, tcp(4000, ACK)]);
    let verdicts: Vec<Verdict> = sent.iter().map(|sent| sent.verdict).collect();
    assert_eq!(verdicts, [INSIDE, OUTSIDE, INSIDE].map(Verdict::Transmit));
    assert_eq!(lab.state(), State::ESTABLISHED);
}

#[test]
fn a_neighbour_is_asked_for_once_it_gets_a_reply_which_waits() {
    let mut lab = Lab::masqueraded();
    let syn = |port| {
        Build::ipv4(NEIGHBOUR, VIP)
            .source_mac(ROUTER)
            .destination_mac(DIRECTOR_OUTSIDE)
            .transport(segment(port, 80, SYN))
            .frame()
    };
    let reply = |port| reply_to(NEIGHBOUR).transport(segment(80 + SHIFT, port, SYN | ACK)).frame();
    for port in 4000..4070 {
        assert_eq!(lab.one(syn(port)).verdict, Verdict::Transmit(INSIDE));
    }
    assert_eq!(lab.shared().clients_asked_for().count(), 0);
    assert!(lab.server_sends(reply(4000)).is_none(), "held");
    assert_eq!(lab.shared().clients_asked_for().collect::<Vec<_>>(), [IpAddr::from(NEIGHBOUR)]);
    lab.network.clients.insert(NEIGHBOUR.into(), NextHop::Resolving);
    lab.publish();
    for port in 4001..4064 {
        assert!(lab.server_sends(reply(port)).is_none(), "held");
    }
    assert_eq!(lab.shared().clients_asked_for().count(), 0, "somebody sees to it");
    let over = lab.server_sends(reply(4064)).unwrap();
    assert_eq!(over.verdict, Verdict::Drop(DropReason::NeighbourQueueFull));
    let NextHop::Ready { port, source, vlan, mtu, .. } = to_router() else { unreachable!() };
    let destination = MacAddress([2, 0, 0, 0, 1, 7]);
    lab.network.clients.insert(NEIGHBOUR.into(), NextHop::Ready { port, source, destination, vlan, mtu });
    lab.publish();
    let released = lab.tick();
    assert_eq!(released.len(), 64);
    for (sent, client_port) in released.iter().zip(4000..) {
        assert_eq!((sent.verdict, &sent.frame[..6]), (Verdict::Transmit(OUTSIDE), &destination.0[..]));
        assert_eq!(ends(sent), ((VIP.into(), 80), (NEIGHBOUR.into(), client_port)));
    }
}

#[test]
fn many_clients_leave_the_servers_room_to_wait() {
    let mut lab = Lab::masqueraded();
    lab.network.ways[0] = Way::Through(NextHop::Resolving);
    lab.publish();
    let client = |number: u8| [10, 99, 0, number];
    let mut waiting = 0;
    for number in 0..200 {
        let syn = Build::ipv4(client(number), VIP)
            .destination_mac(DIRECTOR_OUTSIDE)
            .transport(segment(4000, 80, SYN))
            .frame();
        lab.one(syn);
        let reply = reply_to(client(number)).transport(segment(80 + SHIFT, 4000, SYN | ACK)).frame();
        waiting += usize::from(lab.server_sends(reply).is_none());
    }
    assert_eq!(waiting, 128);
    lab.network.next_hops[1] = NextHop::Resolving;
    lab.publish();
    assert!(lab.one_or_none(tcp(4001, SYN)).is_none(), "held");
}

#[test]
fn a_client_that_nobody_can_reach_gets_nothing() {
    let mut lab = Lab::masqueraded();
    lab.network.routes = Arc::default();
    lab.publish();
    lab.tcp(4000, SYN);
    let sent = lab.server_sends(tcp_reply(4000, SYN | ACK)).unwrap();
    assert_eq!(sent.verdict, Verdict::Drop(DropReason::NoRoute));
}

#[test]
fn a_full_table_makes_room_for_both_entries_and_none_is_left_over() {
    let mut lab = Lab::masqueraded();
    for port in 1000..3000 {
        assert_eq!(lab.tcp(port, SYN), Verdict::Transmit(INSIDE), "{port}");
    }
    let known: Vec<u16> = lab.states().iter().map(|(port, _)| *port).collect();
    assert!((960..=1000).contains(&known.len()), "{}", known.len());
    for port in 1000..3000 {
        let sent = lab.server_sends(tcp_reply(port, SYN | ACK)).unwrap();
        assert_eq!(sent.verdict == Verdict::Transmit(OUTSIDE), known.contains(&port), "{port}");
    }
    lab.now += Duration::from_secs(900);
    lab.tick();
    assert_eq!(lab.shared().ipv4.alive(), 0);
}

/// Fragments of one side's datagram, from that side.
fn fragments(build: Build, source: u16, destination: u16) -> Vec<Vec<u8>> {
    let transport = Transport::Udp { source, destination, checksum: true };
    build.identification(7).transport(transport).payload(&[5; 100]).fragments(64)
}

#[test]
fn fragments_are_translated_like_their_first_as_long_as_the_connection_lives() {
    let mut lab = Lab::masqueraded();
    let (request, reply) = (fragments(build(), 4000, 53), fragments(reply_to(CLIENT), 53 + SHIFT, 4000));
    let addresses = |sent: &Sent| {
        let Outcome::Packet(packet) = wire::parse(&sent.frame) else { panic!("{:?}", sent.frame) };
        (packet.addresses.source(), packet.addresses.destination())
    };
    let (client, vip, server) = (IpAddr::from(CLIENT), IpAddr::from(VIP), IpAddr::from(SERVER));
    let (mut there, mut back) = (Vec::new(), Vec::new());
    for frame in request {
        let sent = lab.one(frame);
        assert_eq!((sent.verdict, addresses(&sent)), (Verdict::Transmit(INSIDE), (client, server)));
        there.push(sent.frame);
    }
    for frame in &reply {
        let sent = lab.server_sends(frame.clone()).unwrap();
        assert_eq!((sent.verdict, addresses(&sent)), (Verdict::Transmit(OUTSIDE), (vip, client)));
        back.push(sent.frame);
    }
    // Put together again, the checksum is that of the datagram made anew.
    let checksum = |frames: &[Vec<u8>]| frames[0][14 + 20 + 6..14 + 20 + 8].to_vec();
    let made =
        |from, to, source, destination| checksum(&fragments(Build::ipv4(from, to), source, destination));
    assert_eq!(checksum(&there), made(CLIENT, SERVER, 4000, 53 + SHIFT));
    assert_eq!(checksum(&back), made(VIP, CLIENT, 53, 4000));
    let traffic = lab.shared().service_traffic(ServiceId(1));
    assert_eq!((traffic.in_packets, traffic.out_packets), (1, 1));
    assert_eq!((traffic.in_bytes, traffic.out_bytes), (128, 128), "of the whole datagrams");
    // The connection ends between the first and the next.
    let other = reply_to(CLIENT).identification(8);
    let transport = Transport::Udp { source: 53 + SHIFT, destination: 4000, checksum: true };
    let mut late = other.transport(transport).payload(&[5; 100]).fragments(64).into_iter();
    assert_eq!(lab.server_sends(late.next().unwrap()).unwrap().verdict, Verdict::Transmit(OUTSIDE));
    let shared = Arc::clone(lab.director.shared());
    let generation = shared.ipv4.record(0).lifecycle().generation;
    let (id, mut view) = (crate::conn::ConnectionId { index: 0, generation }, Default::default());
    assert!(shared.ipv4.remove(id, &shared.slots, &mut view, &shared.epochs));
    let orphan = lab.server_sends(late.next().unwrap()).unwrap();
    assert_eq!(orphan.verdict, Verdict::Drop(DropReason::FragmentWithoutFirst));
}

/// A client stays with its server whichever way the reply goes; an answer proves that its template is worth keeping.
#[test]
fn persistent_services_are_masqueraded_too_and_a_datagrams_answer_assures() {
    use crate::persistence::{ClientMask, Persistence};
    let mut lab = Lab::masqueraded();
    let persistence = Some(Persistence { timeout: Duration::from_secs(50), mask: ClientMask::ALL });
    for service in &mut lab.services {
        let Service { id, key, ref chooser, .. } = **service;
        let (chooser, one_packet) = (Arc::clone(chooser), false);
        *service = Arc::new(Service { id, key, chooser, persistence, one_packet });
        let mut chooser = service.chooser.lock();
        let present = chooser.servers()[0];
        lab.director.shared().slots.get(present.id).set_endpoint(present.address, present.port);
        lab.director.shared().slots.get(present.id).set_method(present.method, Tunnel::IPIP);
        chooser.update(&lab.director.shared().slots, present);
    }
    lab.publish();
    let assured = |lab: &Lab| {
        let mut all = Vec::new();
        lab.shared().ipv4.templates().visit(0, u32::MAX, lab.now, |walked| all.push(walked.assured));
        all
    };
    let query = |source| build().transport(Transport::udp(source, 53)).frame();
    let answer = |port| reply_to(CLIENT).transport(Transport::udp(53 + SHIFT, port)).frame();
    for port in [4000, 4001] {
        let sent = lab.one(query(port));
        assert_eq!(ends(&sent), ((CLIENT.into(), port), (SERVER.into(), 53 + SHIFT)), "made, then found");
    }
    assert_eq!(assured(&lab), [false]);
    let sent = lab.server_sends(answer(4001)).unwrap();
    assert_eq!(ends(&sent), ((VIP.into(), 53), (CLIENT.into(), 4001)));
    assert_eq!(assured(&lab), [true]);
}
