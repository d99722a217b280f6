//! The whole path of a packet in process: parse to verdict, with service look-up, state, timers and counters.
//!
//! - `dr-established`: packets of established connections, picked at random among 1 K to 10 M flows, in batches of 1
//!   to 64, the same code for all; also beside a flood of SYNs, whose batches come in between but are not timed.
//! - `dr-connection`: connections from the first SYN on, about half a million of them alive: the SYN alone, and a
//!   whole life of ten packets with its expiry. These figures are for one connection.
//! - `methods`: packets of established connections by each forwarding method, DR first; under NAT those to the real
//!   servers and their answers. Everything but the method is the same.
//!
//! Frames are written before the clock starts. `cargo bench --bench director`; with `UVS_BENCH_FLOWS=1000,1000000`
//! only these many flows. For each number of flows the memory that a connection takes is printed.

use std::hint::black_box;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant as Clock};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput};
use parking_lot::Mutex;

use uvs::director::{
    BATCH_SIZE, Batch, Capacity, Configuration, Director, Network, Offload, PortLink, Shared,
};
use uvs::forward::{NextHop, Routes, Way};
use uvs::scheduler;
use uvs::service::{Chooser, RealServer, ServerId, Service, ServiceId};
use uvs::sys::frames::{Frame, FramePool};
use uvs::types::{
    ForwardingMethod, HashKey, Instant, MacAddress, PortId, Prefix, Protocol, ServiceKey, Tunnel, TunnelKind,
};
use uvs::wire::build::{Build, Transport};
use uvs::wire::{ipv4, transport::tcp_flags};

const DIRECTOR: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// The way to clients.
const ROUTER: [u8; 6] = [2, 0, 0, 0, 2, 1];
const VIP: [u8; 4] = [192, 0, 2, 1];
const SERVERS: u8 = 16;
/// Frames prepared before the clock starts.
const PREPARED: usize = 1024;
/// The first flow of those that come and go: none of the established ones.
const FIRST_PASSING_FLOW: u64 = 1 << 28;
/// Connections alive at a time while they come and go.
const PASSING: u64 = 500_000;

struct Setup {
    director: Director,
    frames: FramePool,
    now: Instant,
    flows: u64,
    random: u64,
    prepared: Vec<Frame>,
    template: Vec<u8>,
    /// What is sent: the clients' packets, or the real servers' answers.
    side: Side,
    /// The number of each flow's real server.
    chosen: Vec<u8>,
    /// The next of the flows that come and go.
    passing: u64,
}

/// Who sends the packets that are timed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Clients,
    Servers,
}

fn server_address(number: u8) -> [u8; 4] {
    [192, 0, 2, 10 + number]
}

fn hop(destination: [u8; 6]) -> NextHop {
    NextHop::Ready {
        port: PortId(0),
        source: MacAddress(DIRECTOR),
        destination: MacAddress(destination),
        vlan: None,
        mtu: 1500,
    }
}

fn template(flags: u8) -> Vec<u8> {
    Build::ipv4([10, 0, 0, 0], VIP)
        .destination_mac(DIRECTOR)
        .transport(Transport::tcp_with(0, 80, flags))
        .frame()
}

/// Client address and port of a flow: 64 connections for each client.
fn client(flow: u64) -> ([u8; 4], [u8; 2]) {
    let address = 0x0a00_0000 + (flow / 64) as u32;
    (address.to_be_bytes(), (1024 + (flow % 64) as u16).to_be_bytes())
}

/// Makes a frame one of `flow`'s client.
fn patch(frame: &mut [u8], flow: u64) {
    let (address, port) = client(flow);
    frame[26..30].copy_from_slice(&address);
    frame[34..36].copy_from_slice(&port);
    let _ = ipv4::write_checksum(&mut frame[14..34]);
}

/// Makes a frame one of real server `number` to `flow`'s client.
fn patch_answer(frame: &mut [u8], flow: u64, number: u8) {
    let (address, port) = client(flow);
    frame[26..30].copy_from_slice(&server_address(number));
    frame[30..34].copy_from_slice(&address);
    frame[34..36].copy_from_slice(&80u16.to_be_bytes());
    frame[36..38].copy_from_slice(&port);
    let _ = ipv4::write_checksum(&mut frame[14..34]);
}

impl Setup {
    fn new(flows: u64) -> Self {
        Self::by_method(flows, ForwardingMethod::DirectRouting, Tunnel::IPIP)
    }

    fn by_method(flows: u64, method: ForwardingMethod, tunnel: Tunnel) -> Self {
        // Room to spare: a nearly full table makes room by ending connections.
        let connections = u32::try_from(flows + flows / 4).unwrap_or(u32::MAX).max(2048);
        let capacity = Capacity { connections, servers: 64, workers: 1 };
        let shared = Shared::new(capacity, [HashKey::new([11, 12]), HashKey::new([13, 14])]).expect("memory");
        let mut chooser = Chooser::new(scheduler::create("rr", 0, HashKey::new([5, 6])).expect("rr"));
        let mut network = Network {
            ports: vec![PortLink { addresses: vec![MacAddress(DIRECTOR)], networks: Vec::new(), mtu: 1500 }],
            local: [IpAddr::from(VIP)].into(),
            local_networks: Vec::new(),
            next_hops: Vec::new(),
            ..Network::default()
        };
        let route: Prefix = "0.0.0.0/0".parse().expect("a network");
        network.routes = Arc::new(Routes::new([(route, 0)]));
        network.ways = vec![Way::Through(hop(ROUTER))];
        for number in 0..SERVERS {
            let id = ServerId(u32::from(number));
            let address = IpAddr::from(server_address(number));
            let slot = shared.slots.get(id);
            slot.assign(ServiceId(0));
            slot.set_endpoint(address, 80);
            slot.set_method(method, tunnel);
            slot.set_weight(1);
            slot.set_available(true);
            chooser.add(&shared.slots, RealServer { id, address, port: 80, method });
            network.next_hops.push(hop([2, 0, 0, 0, 1, number]));
            network.sources.push(Some(VIP.into()));
        }
        let key = ServiceKey::Address { protocol: Protocol::Tcp, address: VIP.into(), port: 80 };
        let mut configuration = Configuration::default();
        let chooser = Arc::new(Mutex::new(chooser));
        configuration.services.insert(Arc::new(Service {
            id: ServiceId(0),
            key,
            chooser,
            persistence: None,
            one_packet: false,
        }));
        shared.configuration.store(Arc::new(configuration));
        shared.network.store(Arc::new(network));
        let mut setup = Self {
            director: Director::new(shared, 0),
            frames: FramePool::new(2 * PREPARED as u32, 2048).expect("memory"),
            now: Instant::from_nanos(1_000_000_000),
            flows,
            random: 1,
            prepared: Vec::with_capacity(PREPARED),
            template: template(tcp_flags::ACK),
            side: Side::Clients,
            chosen: Vec::new(),
            passing: FIRST_PASSING_FLOW,
        };
        setup.establish();
        setup
    }

    fn establish(&mut self) {
        let mut batch = Batch::new();
        for flags in [tcp_flags::SYN, tcp_flags::ACK] {
            let mut bytes = template(flags);
            for flow in 0..self.flows {
                patch(&mut bytes, flow);
                let frame = self.frames.allocate_copy(&bytes).expect("a free chunk");
                batch.push(frame, PortId(0), Offload::default()).expect("room");
                if batch.room() == 0 || flow + 1 == self.flows {
                    self.director.process(&mut batch, &self.frames, self.now);
                    if flags == tcp_flags::SYN {
                        let servers = batch.entries().iter().map(|entry| self.frames.bytes(&entry.frame)[5]);
                        self.chosen.extend(servers);
                    }
                    batch.clear(&mut self.frames);
                }
            }
        }
        assert_eq!(self.director.shared().ipv4.alive(), self.flows);
    }

    fn prepare(&mut self) {
        while self.prepared.len() < PREPARED {
            self.random =
                self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let flow = ((u128::from(self.random) * u128::from(self.flows)) >> 64) as u64;
            match self.side {
                Side::Clients => patch(&mut self.template, flow),
                Side::Servers => patch_answer(&mut self.template, flow, self.chosen[flow as usize]),
            }
            self.prepared.push(self.frames.allocate_copy(&self.template).expect("a free chunk"));
        }
    }

    /// Processes all prepared frames in batches of `size`; how long that took.
    fn run(&mut self, batch: &mut Batch, size: usize) -> Duration {
        self.prepare();
        let mut taken = Duration::ZERO;
        while !self.prepared.is_empty() {
            // As many batches as come from one full one, so that the clock is read as often for each size.
            let start = Clock::now();
            for _ in 0..64 / size {
                for frame in self.prepared.drain(self.prepared.len() - size..) {
                    let _ = batch.push(frame, PortId(0), Offload::default());
                }
                self.now = Instant::from_nanos(self.now.as_nanos() + 1000);
                self.director.process(batch, &self.frames, self.now);
                black_box(batch.entries());
                batch.clear(&mut self.frames);
            }
            taken += start.elapsed();
        }
        self.director.tick(batch, &self.frames, self.now);
        taken
    }
}

impl Setup {
    /// Sends one of the packets that are to be timed, and looks at what became of it.
    fn assert_outcome(&mut self, batch: &mut Batch, method: ForwardingMethod, growth: usize) {
        self.prepare();
        let frame = self.prepared.pop().expect("prepared");
        let length = self.frames.bytes(&frame).len();
        let _ = batch.push(frame, PortId(0), Offload::default());
        self.director.process(batch, &self.frames, self.now);
        let sent = self.frames.bytes(&batch.entries()[0].frame);
        assert_eq!(sent.len(), length + growth);
        match self.side {
            Side::Servers => assert_eq!((&sent[..6], &sent[26..30]), (&ROUTER[..], &VIP[..])),
            Side::Clients if method == ForwardingMethod::DirectRouting => assert_eq!(sent[30..34], VIP),
            Side::Clients => assert_eq!(sent[30..34], server_address(sent[5])),
        }
        batch.clear(&mut self.frames);
    }

    fn assert_all_forwarded(&self) {
        assert!(self.director.is_conserved());
        let counts = self.director.frame_counts();
        let dropped: u64 = counts.dropped.iter().sum();
        assert_eq!((counts.to_host, dropped), (0, 0), "every packet was forwarded");
    }

    /// One batch of SYNs that begin new connections, not timed.
    fn flood(&mut self, batch: &mut Batch) {
        self.send_passing(batch, tcp_flags::SYN);
        self.passing += BATCH_SIZE as u64;
        self.director.process(batch, &self.frames, self.now);
        batch.clear(&mut self.frames);
    }

    /// Fills the batch with a packet of each of the next passing flows.
    fn send_passing(&mut self, batch: &mut Batch, flags: u8) {
        let mut bytes = template(flags);
        for flow in self.passing..self.passing + BATCH_SIZE as u64 {
            patch(&mut bytes, flow);
            let frame = self.frames.allocate_copy(&bytes).expect("a free chunk");
            let _ = batch.push(frame, PortId(0), Offload::default());
        }
    }

    /// One packet with each of `life`'s flags for each of a batch of new flows, after which as much time passes as
    /// leaves [`PASSING`] of them alive when each lives for `timeout` after the last. How long that took.
    fn live(&mut self, batch: &mut Batch, life: &[u8], timeout: Duration) -> Duration {
        let mut taken = Duration::ZERO;
        for &flags in life {
            self.send_passing(batch, flags);
            let start = Clock::now();
            self.director.process(batch, &self.frames, self.now);
            taken += start.elapsed();
            batch.clear(&mut self.frames);
        }
        self.passing += BATCH_SIZE as u64;
        let step = timeout.as_nanos() as u64 * BATCH_SIZE as u64 / PASSING;
        self.now = Instant::from_nanos(self.now.as_nanos() + step);
        let start = Clock::now();
        self.director.tick(batch, &self.frames, self.now);
        taken + start.elapsed()
    }
}

fn connections(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("dr-connection");
    group.throughput(Throughput::Elements(1));
    const ACK: u8 = tcp_flags::ACK;
    const FIN: u8 = tcp_flags::FIN;
    let whole: &[u8] = &[tcp_flags::SYN, ACK, ACK, ACK, ACK, ACK, ACK, ACK, FIN | ACK, ACK];
    // The time-outs of SYN_RECV and FIN_WAIT, in which these lives end.
    let lives = [("syn", &[tcp_flags::SYN][..], 60), ("life-of-10-packets", whole, 120)];
    for (name, life, timeout) in lives {
        let timeout = Duration::from_secs(timeout);
        let mut setup = Setup::new(2 * PASSING);
        let mut batch = Batch::new();
        // Until as many end as begin, those that were established at first included.
        for _ in 0..20 * PASSING / BATCH_SIZE as u64 {
            setup.live(&mut batch, life, timeout);
        }
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|iterations| {
                let rounds = iterations.div_ceil(BATCH_SIZE as u64);
                let taken: Duration = (0..rounds).map(|_| setup.live(&mut batch, life, timeout)).sum();
                taken.mul_f64(iterations as f64 / (rounds * BATCH_SIZE as u64) as f64)
            });
        });
        let alive = setup.director.shared().ipv4.alive();
        assert!((PASSING * 9 / 10..PASSING * 11 / 10).contains(&alive), "{alive} connections are alive");
    }
    group.finish();
}

/// Times packets of established connections in batches of `size`.
fn measure(
    group: &mut BenchmarkGroup<'_, WallTime>,
    id: BenchmarkId,
    setup: &mut Setup,
    batch: &mut Batch,
    size: usize,
) {
    group.bench_function(id, |bencher| {
        bencher.iter_custom(|iterations| {
            let rounds = iterations.div_ceil(PREPARED as u64);
            let taken: Duration = (0..rounds).map(|_| setup.run(batch, size)).sum();
            taken.mul_f64(iterations as f64 / (rounds * PREPARED as u64) as f64)
        });
    });
}

fn methods(criterion: &mut Criterion) {
    use ForwardingMethod::{DirectRouting, Masquerading, Tunnel as Tunnelling};
    const GUE: Tunnel = Tunnel { kind: TunnelKind::Gue, port: 6080, ..Tunnel::IPIP };
    const GRE: Tunnel = Tunnel { kind: TunnelKind::Gre, ..Tunnel::IPIP };
    // With the bytes that a packet grows by.
    let rows = [
        ("dr", DirectRouting, Tunnel::IPIP, Side::Clients, 0),
        ("nat-to-servers", Masquerading, Tunnel::IPIP, Side::Clients, 0),
        ("nat-to-clients", Masquerading, Tunnel::IPIP, Side::Servers, 0),
        ("ipip", Tunnelling, Tunnel::IPIP, Side::Clients, 20),
        ("gue", Tunnelling, GUE, Side::Clients, 32),
        ("gre", Tunnelling, GRE, Side::Clients, 24),
    ];
    let mut group = criterion.benchmark_group("methods");
    group.throughput(Throughput::Elements(1));
    for flows in [1000, 64_000] {
        for (name, method, tunnel, side, growth) in rows {
            let mut setup = Setup::by_method(flows, method, tunnel);
            setup.side = side;
            let mut batch = Batch::new();
            setup.assert_outcome(&mut batch, method, growth);
            let id = BenchmarkId::new(name, format!("{flows}-flows"));
            measure(&mut group, id, &mut setup, &mut batch, BATCH_SIZE);
            setup.assert_all_forwarded();
        }
    }
    group.finish();
}

fn established(criterion: &mut Criterion) {
    let wanted =
        std::env::var("UVS_BENCH_FLOWS").unwrap_or_else(|_| "1000,64000,1000000,10000000".to_owned());
    let mut group = criterion.benchmark_group("dr-established");
    group.throughput(Throughput::Elements(1));
    for flows in wanted.split(',').filter_map(|flows| flows.trim().parse().ok()) {
        let mut setup = Setup::new(flows);
        let mut batch = Batch::new();
        let table = &setup.director.shared().ipv4;
        println!("memory: {:.1} bytes a connection", table.memory() as f64 / f64::from(table.capacity()));
        for size in [1, 8, 32, 64] {
            let id = BenchmarkId::new(format!("{flows}-flows"), format!("batch-{size}"));
            measure(&mut group, id, &mut setup, &mut batch, size);
        }
        setup.assert_all_forwarded();
        group.bench_function(
            BenchmarkId::new(format!("{flows}-flows"), "batch-64-beside-flood"),
            |bencher| {
                bencher.iter_custom(|iterations| {
                    let rounds = iterations.div_ceil(PREPARED as u64);
                    let mut taken = Duration::ZERO;
                    for _ in 0..rounds {
                        for _ in 0..PREPARED / BATCH_SIZE {
                            setup.flood(&mut batch);
                        }
                        taken += setup.run(&mut batch, BATCH_SIZE);
                    }
                    taken.mul_f64(iterations as f64 / (rounds * PREPARED as u64) as f64)
                });
            },
        );
        let counts = setup.director.frame_counts();
        assert!(setup.director.is_conserved());
        assert_eq!(counts.to_host, 0, "no established connection made room for the flood");
    }
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    established(&mut criterion);
    methods(&mut criterion);
    connections(&mut criterion);
    criterion.final_summary();
}
