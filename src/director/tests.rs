//! The director as its worker drives it: frames in, verdicts and frames out.

use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;

use super::*;
use crate::conn::State;
use crate::forward::NextHopError;
use crate::scheduler;
use crate::service::{Chooser, RealServer, Service, ServiceId, ServiceTable};
use crate::sys::frames::Frame;
use crate::types::{Duration, ForwardingMethod, HashKey, MacAddress, PortId, Protocol, ServiceKey, VlanTag};
use crate::wire::build::{Build, Transport};
use crate::wire::transport::tcp_flags::{ACK, FIN, RST, SYN};
use crate::wire::{self, Outcome};

const OUTSIDE: PortId = PortId(0);
const INSIDE: PortId = PortId(1);
const ROUTER: [u8; 6] = [2, 0, 0, 0, 1, 1];
const DIRECTOR_OUTSIDE: [u8; 6] = [2, 0, 0, 0, 1, 254];
const DIRECTOR_INSIDE: [u8; 6] = [2, 0, 0, 0, 2, 254];
const CLIENT: [u8; 4] = [10, 88, 128, 1];
const VIP: [u8; 4] = [10, 88, 0, 100];
const VIP6: [u8; 16] = [0xfd, 0x88, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];
const CLIENT6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

fn server_mac(number: u32) -> MacAddress {
    MacAddress([2, 0, 0, 0, 2, 10 + number as u8])
}

fn ready(number: u32) -> NextHop {
    NextHop::Ready {
        port: INSIDE,
        source: MacAddress(DIRECTOR_INSIDE),
        destination: server_mac(number),
        vlan: None,
        mtu: 1500,
    }
}

/// A director with one TCP and one UDP service for each family, all of them over the same server numbers.
struct Lab {
    director: Director,
    frames: FramePool,
    batch: Batch,
    now: Instant,
    services: Vec<Arc<Service>>,
    network: Network,
    settings: Settings,
}

struct Sent {
    verdict: Verdict,
    frame: Vec<u8>,
}

impl Lab {
    fn new(servers: u32) -> Self {
        Self::with_capacity(servers, 1000)
    }

    fn with_capacity(servers: u32, connections: u32) -> Self {
        let capacity = Capacity { connections, servers: 64, workers: 1 };
        let shared = Shared::new(capacity, [HashKey::new([1, 2]), HashKey::new([3, 4])]).unwrap();
        let mut network = Network {
            ports: [DIRECTOR_OUTSIDE, DIRECTOR_INSIDE]
                .map(|mac| PortLink { addresses: vec![MacAddress(mac)], mtu: 1500 })
                .to_vec(),
            local: [IpAddr::from(VIP), IpAddr::from(VIP6)].into(),
            local_networks: Vec::new(),
            next_hops: vec![NextHop::Failed(NextHopError::NoRoute); 64],
        };
        let mut services = Vec::new();
        for (index, (protocol, port, vip)) in [
            (Protocol::Tcp, 80, IpAddr::from(VIP)),
            (Protocol::Udp, 53, VIP.into()),
            (Protocol::Tcp, 80, VIP6.into()),
            (Protocol::Sctp, 2905, VIP.into()),
        ]
        .into_iter()
        .enumerate()
        {
            let id = ServiceId(index as u32);
            let mut chooser = Chooser::new(scheduler::create("rr", 0).unwrap());
            for number in 1..=servers {
                let server = ServerId(index as u32 * 10 + number);
                let slot = shared.slots.get(server);
                slot.assign(id);
                slot.set_weight(1);
                slot.set_available(true);
                network.next_hops[server.index()] = ready(number);
                let address = IpAddr::from([10, 88, 2, 10 + number as u8]);
                let method = ForwardingMethod::DirectRouting;
                chooser.add(&shared.slots, RealServer { id: server, address, port, method });
            }
            let key = ServiceKey::Address { protocol, address: vip, port };
            services.push(Arc::new(Service { id, key, chooser: Arc::new(Mutex::new(chooser)) }));
        }
        let mut lab = Self {
            director: Director::new(shared, 0),
            frames: FramePool::new(512, 4096).unwrap(),
            batch: Batch::new(),
            now: Instant::ZERO + Duration::from_secs(1),
            services,
            network,
            settings: Settings::default(),
        };
        lab.publish();
        lab
    }

    fn publish(&mut self) {
        let mut services = ServiceTable::default();
        self.services.iter().for_each(|service| services.insert(Arc::clone(service)));
        let shared = self.director.shared();
        shared.configuration.store(Arc::new(Configuration { services, settings: self.settings }));
        shared.network.store(Arc::new(self.network.clone()));
    }

    fn shared(&self) -> &Shared {
        self.director.shared()
    }

    fn batch(&mut self, sent: &[Vec<u8>]) -> Vec<Sent> {
        for bytes in sent {
            let frame = self.frames.allocate_copy(bytes).unwrap();
            self.batch.push(frame, OUTSIDE, Offload::default()).unwrap();
        }
        self.director.process(&mut self.batch, &self.frames, self.now);
        self.collect()
    }

    fn collect(&mut self) -> Vec<Sent> {
        let entries: Vec<Entry> = self.batch.drain().collect();
        let sent = entries
            .into_iter()
            .map(|entry| {
                let frame: Frame = entry.frame;
                let bytes = self.frames.bytes(&frame).to_vec();
                self.frames.free(frame);
                Sent { verdict: entry.verdict, frame: bytes }
            })
            .collect();
        assert!(self.director.frame_counts().is_conserved(), "{:?}", self.director.frame_counts());
        sent
    }

    fn one(&mut self, frame: Vec<u8>) -> Sent {
        self.one_or_none(frame).unwrap()
    }

    fn one_or_none(&mut self, frame: Vec<u8>) -> Option<Sent> {
        self.batch(&[frame]).pop()
    }

    fn tcp(&mut self, port: u16, flags: u8) -> Verdict {
        self.one(tcp(port, flags)).verdict
    }

    /// The number of the server that a SYN from `port` goes to.
    fn chosen(&mut self, port: u16) -> u32 {
        let sent = self.one(tcp(port, SYN));
        assert_eq!(sent.verdict, Verdict::Transmit(INSIDE));
        u32::from(sent.frame[5]) - 10
    }

    fn tick(&mut self) -> Vec<Sent> {
        while !self.director.tick(&mut self.batch, &self.frames, self.now) {}
        self.collect()
    }

    fn counts(&self, server: u32) -> (u32, u32) {
        let slot = self.shared().slots.get(ServerId(server));
        (slot.active(), slot.inactive())
    }

    fn states(&self) -> Vec<(u16, State)> {
        let mut states = Vec::new();
        self.shared().ipv4.visit(0, 10_000, self.now, |_, lifecycle, record| {
            states.push((record.ports().0, lifecycle.state));
        });
        states
    }
}

fn build() -> Build {
    Build::ipv4(CLIENT, VIP).source_mac(ROUTER).destination_mac(DIRECTOR_OUTSIDE)
}

fn segment(source: u16, destination: u16, flags: u8) -> Transport {
    Transport::Tcp { source, destination, flags, sequence: 1000, acknowledgement: 1, options: Vec::new() }
}

fn tcp(source: u16, flags: u8) -> Vec<u8> {
    build().transport(segment(source, 80, flags)).frame()
}

fn udp(source: u16) -> Vec<u8> {
    build().transport(Transport::Udp { source, destination: 53, checksum: true }).payload(b"query").frame()
}

fn tcp6(source: u16, flags: u8) -> Vec<u8> {
    Build::ipv6(CLIENT6, VIP6)
        .source_mac(ROUTER)
        .destination_mac(DIRECTOR_OUTSIDE)
        .transport(segment(source, 80, flags))
        .frame()
}

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
fn what_begins_no_connection_is_the_hosts() {
    let mut lab = Lab::new(1);
    // {flags, scheduled}: anything with SYN and without RST (recorded from the kernel).
    let rows = [
        (ACK, false),
        (RST, false),
        (FIN | ACK, false),
        (SYN | ACK, true),
        (0, false),
        (SYN | RST, false),
        (SYN | FIN, true),
    ];
    for (index, (flags, scheduled)) in rows.into_iter().enumerate() {
        let expected = if scheduled { Verdict::Transmit(INSIDE) } else { Verdict::ToHost };
        assert_eq!(lab.tcp(5000 + index as u16, flags), expected, "flags {flags:#x}");
    }
    lab.settings.sloppy_tcp = true;
    lab.publish();
    let sloppy = [
        (ACK, true, State::ESTABLISHED),
        (FIN | ACK, true, State::CLOSE),
        (0, true, State::CLOSE),
        (RST, false, State::NONE),
    ];
    for (index, (flags, scheduled, state)) in sloppy.into_iter().enumerate() {
        let port = 6000 + index as u16;
        let expected = if scheduled { Verdict::Transmit(INSIDE) } else { Verdict::ToHost };
        assert_eq!(lab.tcp(port, flags), expected, "sloppy, flags {flags:#x}");
        assert_eq!(lab.states().contains(&(port, state)), scheduled);
    }
}

/// Without persistence a service schedules its own port alone, though look-up finds an FTP service for its data.
#[test]
fn ftp_data_is_the_hosts() {
    let mut lab = Lab::new(1);
    let former = &lab.services[0];
    let key = ServiceKey::Address { protocol: Protocol::Tcp, address: VIP.into(), port: 21 };
    lab.services.push(Arc::new(Service { id: ServiceId(9), key, chooser: Arc::clone(&former.chooser) }));
    lab.publish();
    let to = |source, port| build().transport(segment(source, port, SYN)).frame();
    assert_eq!(lab.one(to(4000, 21)).verdict, Verdict::Transmit(INSIDE));
    assert_eq!(lab.one(to(4000, 5000)).verdict, Verdict::ToHost, "what may be passive data");
    assert_eq!(lab.one(to(4000, 20)).verdict, Verdict::ToHost);
    assert_eq!(lab.one(to(20, 80)).verdict, Verdict::ToHost, "what may be active data");
    assert_eq!(lab.shared().ipv4.alive(), 1);
}

#[test]
fn what_is_not_ours_goes_to_the_host_and_what_is_broken_is_dropped() {
    let mut lab = Lab::new(1);
    let other_port = build().transport(segment(1, 81, SYN)).frame();
    let other_address = Build::ipv4(CLIENT, [10, 88, 0, 7])
        .destination_mac(DIRECTOR_OUTSIDE)
        .transport(segment(1, 80, SYN))
        .frame();
    let mut arp = tcp(1, SYN);
    arp[12..14].copy_from_slice(&[8, 6]);
    let mut group = tcp(1, SYN);
    group[..6].fill(0xff);
    let mut foreign = tcp(1, SYN);
    foreign[5] ^= 1;
    let mut checksum = tcp(1, SYN);
    checksum[24] ^= 0xff;
    let mut version = tcp(1, SYN);
    version[14] = 0x55;
    let fragment = build().transport(segment(1, 80, SYN)).payload(&[0; 64]).fragment(0, true).frame();
    let drop = Verdict::Drop;
    let rows = [
        ("a port without a service", other_port, Verdict::ToHost),
        ("an address without a service", other_address, Verdict::ToHost),
        ("ARP", arp, Verdict::ToHost),
        ("a broadcast", group, Verdict::ToHost),
        ("another host's link address", foreign, drop(DropReason::ForeignLinkAddress)),
        ("IP checksum", checksum, drop(DropReason::BadIpv4Checksum)),
        ("IP version", version, drop(DropReason::BadIpv4Header)),
        ("cut in the TCP header", tcp(1, SYN)[..40].to_vec(), drop(DropReason::BadIpv4Header)),
        ("cut in the link header", tcp(1, SYN)[..10].to_vec(), drop(DropReason::TruncatedFrame)),
        ("nothing", Vec::new(), drop(DropReason::TruncatedFrame)),
        ("fragment", fragment, drop(DropReason::Fragment)),
        (
            "over the MTU, to be fragmented",
            build().transport(segment(1, 80, SYN)).payload(&[0; 1500]).frame(),
            drop(DropReason::TooBig),
        ),
    ];
    for (what, frame, expected) in rows {
        assert_eq!(lab.one(frame).verdict, expected, "{what}");
    }
    let counts = lab.director.frame_counts();
    assert_eq!((counts.received, counts.to_host, counts.dropped_for(DropReason::BadIpv4Header)), (12, 4, 2));
}

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

#[test]
fn states_follow_the_client_alone() {
    let mut lab = Lab::new(1);
    for (flags, state, counts) in [
        (SYN, State::SYN_RECV, (1, 0)),
        (RST, State::SYN_RECV, (1, 0)),
        (ACK, State::ESTABLISHED, (1, 0)),
        (FIN | ACK, State::FIN_WAIT, (0, 1)),
        (ACK, State::FIN_WAIT, (0, 1)),
        (SYN, State::SYN_RECV, (1, 0)),
        (ACK, State::ESTABLISHED, (1, 0)),
        (RST, State::CLOSE, (0, 1)),
    ] {
        lab.tcp(4000, flags);
        assert_eq!(lab.states(), [(4000, state)], "after {flags:#x}");
        assert_eq!(lab.counts(1), counts, "after {flags:#x}");
    }
    // CLOSE is 10 seconds.
    lab.now += Duration::from_secs(10);
    assert!(lab.states().is_empty());
    lab.now += Duration::from_millis(20);
    lab.tick();
    assert_eq!((lab.counts(1), lab.shared().ipv4.alive()), ((0, 0), 0));
    assert_eq!(
        lab.director.next_deadline().map(|next| next > lab.now),
        Some(true),
        "the 15-minute left-over"
    );
}

#[test]
fn a_syn_on_old_ports_begins_anew_where_it_may() {
    // {mode, flags that end the first connection, whether the second goes elsewhere}
    let rows =
        [(0, RST, false), (1, RST, true), (1, FIN | ACK, false), (3, FIN | ACK, true), (2, FIN | ACK, true)];
    for (mode, end, elsewhere) in rows {
        let mut lab = Lab::new(2);
        lab.settings.conn_reuse_mode = mode;
        lab.publish();
        let first = lab.chosen(4000);
        lab.tcp(4000, ACK);
        lab.tcp(4000, end);
        assert_eq!(lab.chosen(4000) != first, elsewhere, "mode {mode}, end {end:#x}");
        assert_eq!(lab.states(), [(4000, State::SYN_RECV)]);
        assert_eq!(lab.shared().ipv4.alive(), 1);
    }
}

#[test]
fn a_removed_servers_packets_are_dropped_or_scheduled_anew() {
    let mut lab = Lab::new(2);
    assert_eq!(lab.chosen(4000), 2);
    lab.services[0].chooser.lock().remove(&lab.director.shared().slots, ServerId(2));
    lab.shared().slots.get(ServerId(2)).set_available(false);
    assert_eq!(lab.tcp(4000, ACK), Verdict::Drop(DropReason::RealServerGone));
    lab.shared().slots.get(ServerId(2)).set_available(true);
    assert_eq!(lab.tcp(4000, ACK), Verdict::Transmit(INSIDE), "it came back");
    lab.shared().slots.get(ServerId(2)).set_available(false);
    lab.settings.expire_nodest_conn = true;
    lab.publish();
    assert_eq!(lab.tcp(4000, ACK), Verdict::ToHost, "not a SYN: nobody's");
    assert_eq!(lab.chosen(4000), 1);
    assert_eq!(lab.counts(2), (0, 0));
}

#[test]
fn nobody_to_serve_is_a_drop_and_quiescent_servers_keep_what_they_have() {
    let mut lab = Lab::new(1);
    assert_eq!(lab.chosen(4000), 1);
    lab.shared().slots.get(ServerId(1)).set_weight(0);
    assert_eq!(lab.tcp(4001, SYN), Verdict::Reply(OUTSIDE));
    assert_eq!(lab.tcp(4000, ACK), Verdict::Transmit(INSIDE));
}

#[test]
fn after_a_kill_unknown_connections_are_not_shown_to_the_host() {
    let mut lab = Lab::new(1);
    lab.settings.drop_unknown_until = lab.now + Duration::from_secs(60);
    lab.publish();
    assert_eq!(lab.tcp(4000, ACK), Verdict::Drop(DropReason::UnknownAfterRestart));
    assert_eq!(lab.tcp(4000, SYN), Verdict::Transmit(INSIDE));
    lab.now += Duration::from_secs(60);
    assert_eq!(lab.tcp(4001, ACK), Verdict::ToHost);
}

#[test]
fn a_full_table_refuses_the_next_and_keeps_the_rest() {
    let mut lab = Lab::with_capacity(1, 10);
    for port in 0..10 {
        lab.chosen(4000 + port);
        lab.tcp(4000 + port, ACK);
    }
    assert_eq!(lab.tcp(5000, SYN), Verdict::Drop(DropReason::ConnectionTableFull));
    assert_eq!(lab.counts(1), (10, 0));
    assert_eq!(lab.tcp(4009, ACK), Verdict::Transmit(INSIDE));
    lab.tcp(4000, RST);
    lab.now += Duration::from_secs(11);
    lab.tick();
    lab.tick();
    assert_eq!(lab.tcp(5000, SYN), Verdict::Transmit(INSIDE));
}

#[test]
fn a_flood_of_syns_pushes_out_its_own_kind() {
    let mut lab = Lab::with_capacity(1, 200);
    for port in 0..100 {
        lab.chosen(1000 + port);
        lab.tcp(1000 + port, ACK);
    }
    let mut refused = 0;
    // Many times the table, before the first of their timers is due.
    for port in 0..50_000 {
        refused += usize::from(lab.tcp(10_000 + port, SYN) != Verdict::Transmit(INSIDE));
    }
    assert!(refused < 5000, "{refused} of 50,000 refused: the flood's own older connections make room");
    assert!((0..100).all(|port| lab.tcp(1000 + port, ACK) == Verdict::Transmit(INSIDE)));
    assert!(lab.shared().ipv4.alive() <= 200);
    let states = lab.states();
    assert_eq!(states.iter().filter(|(_, state)| *state == State::ESTABLISHED).count(), 100);
}

#[test]
fn a_flood_of_queries_or_associations_leaves_room_for_others() {
    let init = |source| {
        build()
            .transport(Transport::Sctp { source, destination: 2905, tag: 0, chunk: 1, chunk_payload: 16 })
            .payload(&[0; 16])
            .frame()
    };
    for flood in [&(|port| udp(port)) as &dyn Fn(u16) -> Vec<u8>, &init] {
        let mut lab = Lab::with_capacity(1, 200);
        (0..400).for_each(|port| _ = lab.one(flood(10_000 + port)));
        assert!(lab.shared().ipv4.alive() > 180);
        let served = (0..20).filter(|port| lab.tcp(1000 + port, SYN) == Verdict::Transmit(INSIDE)).count();
        assert!(served > 18, "{served} of 20");
    }
}

/// A real server that the network's snapshot does not know yet is one that was added this moment.
#[test]
fn a_way_not_known_yet_is_waited_for() {
    let mut lab = Lab::new(2);
    let hops = std::mem::replace(&mut lab.network.next_hops, vec![NextHop::Resolving]);
    lab.publish();
    assert!(lab.one_or_none(tcp(4000, SYN)).is_none(), "held");
    lab.network.next_hops = hops;
    lab.publish();
    assert_eq!(lab.tick().len(), 1);
}

#[test]
fn frames_wait_for_a_link_address_in_order_and_not_for_ever() {
    let mut lab = Lab::new(2);
    lab.network.next_hops[2] = NextHop::Resolving;
    lab.publish();
    // rr: ports 0, 2, 4... go to server 2, the others to 1.
    let sent: Vec<_> = (0..6).map(|port| tcp(4000 + port, SYN)).collect();
    assert!(
        lab.batch(&sent).iter().all(|sent| sent.verdict == Verdict::Transmit(INSIDE) && sent.frame[5] == 11)
    );
    assert!(lab.director.is_holding());
    assert!(lab.tick().is_empty());
    lab.network.next_hops[2] = ready(2);
    lab.publish();
    let released = lab.tick();
    let ports: Vec<u8> = released.iter().map(|sent| sent.frame[35]).collect();
    assert_eq!(ports, [0xa0, 0xa2, 0xa4]);
    assert!(released.iter().all(|sent| sent.verdict == Verdict::Transmit(INSIDE) && sent.frame[22] == 63));
    lab.network.next_hops[2] = NextHop::Resolving;
    lab.publish();
    let many: Vec<_> = (0..64).map(|_| tcp(4000, ACK)).collect();
    assert!(lab.batch(&many).is_empty());
    let over: Vec<_> = lab.batch(&many[..3]).iter().map(|sent| sent.verdict).collect();
    assert_eq!(over, [Verdict::Drop(DropReason::NeighbourQueueFull); 3]);
    lab.now += Duration::from_secs(3);
    assert!(lab.director.next_deadline().is_some_and(|next| next <= lab.now));
    assert!(lab.tick().iter().all(|sent| sent.verdict == Verdict::Drop(DropReason::NeighbourFailed)));
    assert_eq!((lab.frames.available(), lab.director.is_holding()), (512, false));
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

#[test]
fn a_down_or_missing_way_is_a_reason_of_its_own() {
    let mut lab = Lab::new(1);
    for (next_hop, expected) in [
        (NextHop::Failed(NextHopError::NoRoute), Verdict::Drop(DropReason::NoRoute)),
        (NextHop::Failed(NextHopError::ForeignInterface), Verdict::Drop(DropReason::ForeignInterface)),
        (NextHop::Failed(NextHopError::NeighbourFailed), Verdict::Drop(DropReason::NeighbourFailed)),
        (NextHop::Failed(NextHopError::PortDown), Verdict::Drop(DropReason::PortDown)),
        (NextHop::Local, Verdict::ToHost),
        (ready(1), Verdict::Transmit(INSIDE)),
    ] {
        lab.network.next_hops[1] = next_hop;
        lab.publish();
        assert_eq!(lab.tcp(4000, SYN), expected);
    }
}

mod splits {
    //! Any split of a sequence of frames into batches gives the same result. (One thing aside: in a table that is
    //! full to the last record, a record that was just given up can be used again only in the next batch.)

    use proptest::prelude::*;

    use super::*;

    type Outcome = (Vec<(Verdict, Vec<u8>)>, Vec<(u16, State)>, FrameCounts);

    fn outcome(frames: &[(u16, u8, bool)], sizes: &[usize]) -> Outcome {
        let mut lab = Lab::with_capacity(3, 200);
        let bytes: Vec<Vec<u8>> = frames
            .iter()
            .map(|&(port, flags, is_udp)| if is_udp { udp(port) } else { tcp(port, flags) })
            .collect();
        let (mut rest, mut sizes, mut out) = (&bytes[..], sizes.iter().cycle(), Vec::new());
        while !rest.is_empty() {
            let size = sizes.next().map_or(1, |&size| size.clamp(1, BATCH_SIZE)).min(rest.len());
            let (now, later) = rest.split_at(size);
            out.extend(lab.batch(now).into_iter().map(|sent| (sent.verdict, sent.frame)));
            rest = later;
        }
        let mut states = lab.states();
        states.sort_by_key(|(port, state)| (*port, state.0));
        (out, states, lab.director.frame_counts())
    }

    proptest! {
        #[test]
        fn batches_do_not_matter(
            frames in prop::collection::vec(
                (1_u16..16, prop::sample::select(vec![SYN, ACK, FIN | ACK, RST, SYN | ACK, 0]), prop::bool::weighted(0.2)),
                1..150,
            ),
            sizes in prop::collection::vec(1_usize..65, 1..8),
        ) {
            prop_assert_eq!(outcome(&frames, &[1]), outcome(&frames, &sizes));
        }
    }
}
