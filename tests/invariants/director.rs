//! A director over both families and every scheduler, and the frames for it.

use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use uvs::director::{
    BATCH_SIZE, Batch, Capacity, Configuration, Director, Network, Offload, PortLink, Shared, Verdict,
};
use uvs::forward::{NextHop, NextHopError, Routes, Way};
use uvs::persistence::{ClientMask, Persistence};
use uvs::scheduler;
use uvs::service::marks::{MarkRule, MarkRules, MarkTarget, PortMatch, PortSide, RuleCounters};
use uvs::service::{Chooser, RealServer, ServerId, Service, ServiceId};
use uvs::sys::frames::FramePool;
use uvs::types::{
    Duration, Family, ForwardingMethod, HashKey, Instant, MacAddress, PortId, Protocol, ServiceKey, Tunnel,
};
use uvs::wire::build::{Build, Transport};

pub(crate) const PORT: PortId = PortId(0);
/// Ports that frames may come in by; all go out by the first.
pub(crate) const PORTS: usize = 3;
const MAC: [u8; 6] = [2, 0, 0, 0, 1, 254];
const VIP: [u8; 4] = [192, 0, 2, 1];
const VIP6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const SERVERS: u32 = 4;
/// More than the frames that can be in a batch and held at the same time.
const CHUNKS: u32 = 1536;

/// Virtual ports, all of the same address: one for each scheduler, and one whose servers' link addresses are not
/// known, one whose servers cannot be reached, one without servers, one that has a service by mark, one that is
/// persistent, and one whose servers are masqueraded.
#[rustfmt::skip]
pub(crate) const SCHEDULED: [(&str, u16); 14] = [
    ("rr", 80), ("wrr", 81), ("wlc", 82), ("sh", 83), ("lc", 84), ("lblc", 85), ("lblcr", 86), ("dh", 87), ("sed", 88),
    ("nq", 89), ("fo", 93), ("ovf", 94), ("mh", 95), ("twos", 96),
];
pub(crate) const UNRESOLVED: u16 = 90;
pub(crate) const UNREACHABLE: u16 = 91;
pub(crate) const EMPTY: u16 = 92;
pub(crate) const MARKED: u16 = 97;
/// A service whose clients stay with their server.
pub(crate) const PERSISTENT: u16 = 98;
/// How long they do after their last connection.
pub(crate) const PERSISTENCE: Duration = Duration::from_secs(30);
/// A service of masqueraded servers, which makes no connections of datagrams.
pub(crate) const MASQUERADED: u16 = 100;
/// The port of masqueraded servers.
const SERVER_PORT: u16 = 8100;
pub(crate) const NO_SERVICE: u16 = 99;

pub(crate) struct Bench {
    pub(crate) director: Director,
    pub(crate) frames: FramePool,
    pub(crate) batch: Batch,
    pub(crate) now: Instant,
    network: Network,
    unresolved: Vec<ServerId>,
}

impl Bench {
    pub(crate) fn new(connections: u32) -> Self {
        let capacity = Capacity { connections, servers: 512, workers: 1 };
        let shared = Shared::new(capacity, [HashKey::new([1, 2]), HashKey::new([3, 4])]).unwrap();
        let network = Network {
            ports: vec![
                PortLink { addresses: vec![MacAddress(MAC)], networks: Vec::new(), mtu: 1500 };
                PORTS
            ],
            local: [IpAddr::from(VIP), IpAddr::from(VIP6)].into(),
            local_networks: Vec::new(),
            next_hops: vec![NextHop::Failed(NextHopError::NoRoute); 512],
            sources: vec![None; 512],
            // Clients behind a gateway, but for those of IPv6, who are neighbours.
            routes: Arc::new(Routes::new(
                [("0.0.0.0/0", 0), ("::/0", 1)].map(|(prefix, route)| (prefix.parse().unwrap(), route)),
            )),
            ways: vec![Way::Through(ready(0)), Way::OnLink],
            ..Network::default()
        };
        let mut bench = Self {
            director: Director::new(shared, 0),
            frames: FramePool::new(CHUNKS, 2048).unwrap(),
            batch: Batch::new(),
            now: Instant::ZERO + Duration::from_secs(1),
            network,
            unresolved: Vec::new(),
        };
        let mut configuration = Configuration::default();
        let mut ids = 0..;
        for address in [IpAddr::from(VIP), IpAddr::from(VIP6)] {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let special =
                    [UNRESOLVED, UNREACHABLE, EMPTY, PERSISTENT, MASQUERADED].map(|port| ("rr", port));
                for (scheduler, port) in SCHEDULED.into_iter().chain(special) {
                    let key = ServiceKey::Address { protocol, address, port };
                    let id = ServiceId(ids.next().unwrap());
                    configuration.services.insert(Arc::new(bench.service(id, key, scheduler, port)));
                }
            }
        }
        let mut rules = Vec::new();
        for family in [Family::V4, Family::V6] {
            let key = ServiceKey::Mark { family, mark: 7 };
            let id = ServiceId(ids.next().unwrap());
            configuration.services.insert(Arc::new(bench.service(id, key, "rr", MARKED)));
            // Some that do not match come first.
            let marking = |port, value| MarkRule {
                ports: vec![PortMatch::Multiple {
                    side: PortSide::Destination,
                    ranges: vec![(port, port)],
                    inverted: false,
                }],
                target: Some(MarkTarget::Mark { value, mask: u32::MAX }),
                ..MarkRule::any(family)
            };
            rules.extend((1000..1020).map(|port| marking(port, 1)));
            rules.push(marking(MARKED, 7));
        }
        let counters: Vec<Arc<RuleCounters>> = rules.iter().map(|_| Arc::default()).collect();
        configuration.marks = MarkRules::new(rules.iter().zip(&counters), &[]);
        bench.director.shared().configuration.store(Arc::new(configuration));
        bench.publish();
        bench
    }

    fn service(&mut self, id: ServiceId, key: ServiceKey, scheduler: &str, port: u16) -> Service {
        let shared = Arc::clone(self.director.shared());
        let mut chooser = Chooser::new(scheduler::create(scheduler, 0, HashKey::new([5, 6])).unwrap());
        let servers = if port == EMPTY { 0 } else { SERVERS };
        for number in 0..servers {
            let server = ServerId(id.0 * SERVERS + number);
            let slot = shared.slots.get(server);
            slot.assign(id);
            slot.set_weight(1 + number);
            slot.set_available(true);
            match port {
                UNRESOLVED => {
                    self.unresolved.push(server);
                    self.network.next_hops[server.index()] = NextHop::Resolving;
                }
                UNREACHABLE => {}
                _ => self.network.next_hops[server.index()] = ready(number),
            }
            let is_ipv6 = key.family() == Family::V6;
            let address = server_address(is_ipv6, number as u8);
            self.network.sources[server.index()] = Some(server_address(is_ipv6, 200));
            let (method, port) = match port {
                MASQUERADED => (ForwardingMethod::Masquerading, SERVER_PORT),
                UNRESOLVED if number % 2 == 1 => (ForwardingMethod::Tunnel, UNRESOLVED),
                port => (ForwardingMethod::DirectRouting, port),
            };
            slot.set_endpoint(address, port);
            slot.set_method(method, Tunnel::IPIP);
            chooser.add(&shared.slots, RealServer { id: server, address, port, method });
        }
        let sticky = Persistence { timeout: PERSISTENCE, mask: ClientMask::ALL };
        let persistence = (port == PERSISTENT).then_some(sticky);
        Service {
            id,
            key,
            chooser: Arc::new(Mutex::new(chooser)),
            persistence,
            one_packet: port == MASQUERADED,
        }
    }

    fn publish(&self) {
        self.director.shared().network.store(Arc::new(self.network.clone()));
    }

    /// The kernel answers, or forgets again, the link addresses that were asked for.
    pub(crate) fn resolve(&mut self, resolved: bool) {
        for server in &self.unresolved {
            self.network.next_hops[server.index()] = if resolved { ready(0) } else { NextHop::Resolving };
        }
        self.publish();
    }

    /// Puts copies of the frames into the batch.
    pub(crate) fn fill<'a>(&mut self, frames: impl IntoIterator<Item = &'a [u8]>) {
        for bytes in frames {
            self.push(PORT, bytes);
        }
    }

    /// Puts a copy of a frame that came in by `port` into the batch.
    pub(crate) fn push(&mut self, port: PortId, bytes: &[u8]) {
        let frame = self.frames.allocate_copy(bytes).expect("a free chunk");
        self.batch.push(frame, port, Offload::default()).expect("room in the batch");
    }

    pub(crate) fn process(&mut self) {
        self.director.process(&mut self.batch, &self.frames, self.now);
    }

    /// One visit; says whether that was all.
    pub(crate) fn tick(&mut self) -> bool {
        self.director.tick(&mut self.batch, &self.frames, self.now)
    }

    /// Verdicts, in order; the frames go back to the pool.
    pub(crate) fn verdicts(&mut self) -> Vec<Verdict> {
        let verdicts = self.batch.entries().iter().map(|entry| entry.verdict).collect();
        self.batch.clear(&mut self.frames);
        verdicts
    }

    /// Runs the frames in batches of `size` and ticks after each, without caring for the verdicts.
    pub(crate) fn run(&mut self, frames: &[Vec<u8>], size: usize) {
        assert!(size <= BATCH_SIZE);
        for some in frames.chunks(size) {
            self.fill(some.iter().map(Vec::as_slice));
            self.process();
            self.batch.clear(&mut self.frames);
            while !self.tick() {
                self.batch.clear(&mut self.frames);
            }
            self.batch.clear(&mut self.frames);
        }
    }

    /// The pool's chunks that are neither free nor in the batch: the held ones.
    pub(crate) fn chunks_away(&self) -> usize {
        CHUNKS as usize - self.frames.available() - self.batch.len()
    }
}

fn ready(number: u32) -> NextHop {
    NextHop::Ready {
        port: PORT,
        source: MacAddress(MAC),
        destination: MacAddress([2, 0, 0, 0, 2, number as u8]),
        vlan: None,
        mtu: 1500,
    }
}

fn server_address(ipv6: bool, number: u8) -> IpAddr {
    match ipv6 {
        false => [10, 0, 2, 10 + number].into(),
        true => [0xfd, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10 + number].into(),
    }
}

/// What every server of [`MASQUERADED`] might answer to a client's port: the one that has the client's connection, and
/// those that have not.
pub(crate) fn replies(ipv6: bool, client: u16, port: u16, flags: u8) -> impl Iterator<Item = Vec<u8>> {
    (0..SERVERS as u8).map(move |number| {
        let transport = Transport::tcp_with(SERVER_PORT, port, flags);
        let [high, low] = client.to_be_bytes();
        let build = match server_address(ipv6, number) {
            IpAddr::V4(server) => Build::ipv4(server.octets(), [10, 9, high, low]),
            IpAddr::V6(server) => Build::ipv6(server.octets(), client6(client)),
        };
        build.destination_mac(MAC).transport(transport).frame()
    })
}

fn client6(client: u16) -> [u8; 16] {
    let mut address = VIP6;
    address[8] = 7;
    address[14..].copy_from_slice(&client.to_be_bytes());
    address
}

/// A packet of client `client` (of 2^16) to the virtual address of its family.
pub(crate) fn packet(ipv6: bool, client: u16, transport: Transport) -> Build {
    let [high, low] = client.to_be_bytes();
    let build = if ipv6 { Build::ipv6(client6(client), VIP6) } else { Build::ipv4([10, 9, high, low], VIP) };
    build.destination_mac(MAC).transport(transport)
}
