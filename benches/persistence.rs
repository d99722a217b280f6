//! Connection templates, a million of them: memory of each, and what a new connection of a persistent service costs.
//!
//! - `templates`: the table alone: a new client's template made (look-up, insertion), a known client's found and used,
//!   and both with the template's collection at its end.
//! - `persistent-connection`: a SYN through the director, parse to verdict, in batches of 64: of clients that are known,
//!   of new ones, and for comparison to a service without persistence. Connections end as fast as they begin, so each
//!   figure has a connection's end in it, too.
//!
//! `cargo bench --bench persistence`.

use std::hint::black_box;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant as Clock};

use criterion::{Criterion, Throughput};
use parking_lot::Mutex;

use uvs::conn::{FlowKey, Ipv4};
use uvs::director::{
    BATCH_SIZE, Batch, Capacity, Configuration, Director, Network, Offload, PortLink, Shared,
};
use uvs::forward::NextHop;
use uvs::persistence::{ClientMask, NewTemplate, Persistence, Templates};
use uvs::scheduler;
use uvs::service::{Chooser, RealServer, ServerId, ServerSlots, Service, ServiceId};
use uvs::sys::frames::FramePool;
use uvs::types::{
    self, ForwardingMethod, HashKey, Instant, MacAddress, PortId, Protocol, ServiceKey, Tunnel,
};
use uvs::wire::build::{Build, Transport};
use uvs::wire::{ipv4, transport::tcp_flags};

const TEMPLATES: u32 = 1 << 20;
const DIRECTOR: [u8; 6] = [2, 0, 0, 0, 0, 1];
const VIP: [u8; 4] = [192, 0, 2, 1];
const STICKY_PORT: u16 = 80;
const PLAIN_PORT: u16 = 81;
const SERVERS: u32 = 16;
/// Connections alive at a time.
const PASSING: u64 = 250_000;
/// How long a connection lives that is not answered, in seconds.
const HALF_OPEN: u64 = 60;

fn key(client: u64) -> FlowKey<Ipv4> {
    FlowKey::new([client << 32 | u64::from(u32::from_be_bytes(VIP))], 6, 0, STICKY_PORT)
}

/// Of clients in no particular order.
fn scattered(number: u64) -> u64 {
    number.wrapping_mul(0x9e37_79b9) & 0xffff_ffff
}

struct Table {
    templates: Templates<Ipv4>,
    slots: ServerSlots,
    now: Instant,
}

impl Table {
    fn new() -> Self {
        let templates = Templates::new(TEMPLATES, HashKey::new([11, 12])).expect("memory");
        Self { templates, slots: ServerSlots::new(1), now: Instant::from_nanos(1_000_000_000) }
    }

    /// A new connection of a client, ended at once.
    fn connect(&mut self, client: u64) {
        let key = key(client);
        let mut shard = self.templates.lock(&key);
        let id = match shard.find(&key, &self.slots, self.now) {
            Some(found) => found.id,
            None => {
                let timeout = types::Duration::from_secs(300);
                let new = NewTemplate { server: ServerId(0), port: STICKY_PORT, timeout };
                shard.insert(&key, new, &self.slots, self.now).expect("room")
            }
        };
        shard.take_control(id, self.now);
        drop(shard);
        self.templates.give_up_control(id);
    }
}

fn templates(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("templates");
    group.throughput(Throughput::Elements(1));
    let mut table = Table::new();
    let filling = Clock::now();
    (0..u64::from(TEMPLATES)).for_each(|number| table.connect(scattered(number)));
    let each = filling.elapsed().as_nanos() as f64 / f64::from(TEMPLATES);
    println!("filling an empty table: {each:.1} ns a template");
    let (memory, capacity) = (table.templates.memory() as f64, f64::from(table.templates.capacity()));
    println!("memory: {:.1} bytes a template", memory / capacity);
    let mut number = 0;
    group.bench_function("known-client", |bencher| {
        bencher.iter(|| {
            number = (number + 1) % u64::from(TEMPLATES);
            table.connect(black_box(scattered(number)));
        });
    });
    // As many end as begin: 300 seconds for half a million of them.
    let step = 300_000_000_000 / (u64::from(TEMPLATES) / 2) * 64;
    let mut fresh = u64::from(TEMPLATES);
    let mut live = |table: &mut Table| {
        for _ in 0..64 {
            fresh += 1;
            table.connect(scattered(fresh));
        }
        table.now = Instant::from_nanos(table.now.as_nanos() + step);
        table.templates.collect(&table.slots, table.now, 1024);
    };
    table.now = Instant::from_nanos(table.now.as_nanos() + 400_000_000_000);
    while !table.templates.collect(&table.slots, table.now, 1 << 16) {}
    (0..u64::from(TEMPLATES) / 64).for_each(|_| live(&mut table));
    group.bench_function("new-client-and-its-end", |bencher| {
        bencher.iter_custom(|iterations| {
            let rounds = iterations.div_ceil(64);
            let start = Clock::now();
            (0..rounds).for_each(|_| live(&mut table));
            start.elapsed().mul_f64(iterations as f64 / (rounds * 64) as f64)
        });
    });
    let alive = table.templates.alive();
    assert!((400_000..700_000).contains(&alive), "{alive} templates are alive");
    group.finish();
}

struct Setup {
    director: Director,
    frames: FramePool,
    batch: Batch,
    now: Instant,
    passing: u64,
}

impl Setup {
    fn new() -> Self {
        let capacity = Capacity { connections: TEMPLATES, servers: 64, workers: 1 };
        let shared = Shared::new(capacity, [HashKey::new([11, 12]), HashKey::new([13, 14])]).expect("memory");
        let mut chooser = Chooser::new(scheduler::create("rr", 0, HashKey::new([5, 6])).expect("rr"));
        let mut network = Network {
            ports: vec![PortLink { addresses: vec![MacAddress(DIRECTOR)], networks: Vec::new(), mtu: 1500 }],
            local: [IpAddr::from(VIP)].into(),
            local_networks: Vec::new(),
            next_hops: Vec::new(),
            ..Network::default()
        };
        for number in 0..SERVERS {
            let id = ServerId(number);
            let slot = shared.slots.get(id);
            slot.assign(ServiceId(0));
            slot.set_weight(1);
            slot.set_available(true);
            let address = IpAddr::from([192, 0, 2, 10 + number as u8]);
            let method = ForwardingMethod::DirectRouting;
            slot.set_endpoint(address, 0);
            slot.set_method(method, Tunnel::IPIP);
            chooser.add(&shared.slots, RealServer { id, address, port: 0, method });
            network.next_hops.push(NextHop::Ready {
                port: PortId(0),
                source: MacAddress(DIRECTOR),
                destination: MacAddress([2, 0, 0, 0, 1, number as u8]),
                vlan: None,
                mtu: 1500,
            });
        }
        let mut configuration = Configuration::default();
        let chooser = Arc::new(Mutex::new(chooser));
        let sticky = Persistence { timeout: types::Duration::from_secs(1000), mask: ClientMask::ALL };
        for (number, port, persistence) in [(0, STICKY_PORT, Some(sticky)), (1, PLAIN_PORT, None)] {
            let key = ServiceKey::Address { protocol: Protocol::Tcp, address: VIP.into(), port };
            let chooser = Arc::clone(&chooser);
            configuration.services.insert(Arc::new(Service {
                id: ServiceId(number),
                key,
                chooser,
                persistence,
                one_packet: false,
            }));
        }
        shared.configuration.store(Arc::new(configuration));
        shared.network.store(Arc::new(network));
        Self {
            director: Director::new(shared, 0),
            frames: FramePool::new(256, 2048).expect("memory"),
            batch: Batch::new(),
            now: Instant::from_nanos(1_000_000_000),
            passing: 0,
        }
    }

    /// SYNs of a batch of new connections, each of the client that `client` says, and as much time as leaves
    /// [`PASSING`] of them alive. How long that took.
    fn live(&mut self, port: u16, client: impl Fn(u64) -> u64) -> Duration {
        for _ in 0..BATCH_SIZE {
            self.passing += 1;
            let address = (client(self.passing) as u32).to_be_bytes();
            let source = 1024 + (self.passing % 60_000) as u16;
            let bytes = Build::ipv4(address, VIP)
                .destination_mac(DIRECTOR)
                .transport(Transport::tcp_with(source, port, tcp_flags::SYN))
                .frame();
            debug_assert!(ipv4::checksum_is_right(&bytes[14..34]));
            let frame = self.frames.allocate_copy(&bytes).expect("a free chunk");
            let _ = self.batch.push(frame, PortId(0), Offload::default());
        }
        let step = HALF_OPEN * 1_000_000_000 * BATCH_SIZE as u64 / PASSING;
        self.now = Instant::from_nanos(self.now.as_nanos() + step);
        let start = Clock::now();
        self.director.process(&mut self.batch, &self.frames, self.now);
        let taken = start.elapsed();
        self.batch.clear(&mut self.frames);
        let start = Clock::now();
        self.director.tick(&mut self.batch, &self.frames, self.now);
        taken + start.elapsed()
    }
}

/// What is measured, the port of its service, and the client of each turn.
type Row = (&'static str, u16, fn(u64) -> u64);

fn connections(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("persistent-connection");
    group.throughput(Throughput::Elements(1));
    // Half of the clients that fit come again and again. New ones stay for a thousand seconds, 16 times as long as their
    // half-open connection: so many would not fit, and give way to the next.
    let known: fn(u64) -> u64 = |number| scattered(number % u64::from(TEMPLATES / 2));
    let rows: [Row; 3] = [
        ("without-persistence", PLAIN_PORT, known),
        ("known-client", STICKY_PORT, known),
        ("new-client", STICKY_PORT, scattered),
    ];
    for (name, port, client) in rows {
        let mut setup = Setup::new();
        for _ in 0..4 * u64::from(TEMPLATES) / BATCH_SIZE as u64 {
            setup.live(port, client);
        }
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|iterations| {
                let rounds = iterations.div_ceil(BATCH_SIZE as u64);
                let taken: Duration = (0..rounds).map(|_| setup.live(port, client)).sum();
                taken.mul_f64(iterations as f64 / (rounds * BATCH_SIZE as u64) as f64)
            });
        });
        let counts = setup.director.frame_counts();
        let dropped: u64 = counts.dropped.iter().sum();
        println!(
            "{name}: {} connections and {} templates alive, {dropped} of {} packets dropped",
            setup.director.shared().ipv4.alive(),
            setup.director.shared().ipv4.templates().alive(),
            counts.received
        );
    }
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    templates(&mut criterion);
    connections(&mut criterion);
    criterion.final_summary();
}
