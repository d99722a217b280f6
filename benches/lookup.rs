//! The connection look-up alone: hash, probe and find, of flows picked at random among 1 K to 10 M, one at a time and
//! in stages over batches. `cargo bench --bench lookup`; `UVS_BENCH_FLOWS=1000,1000000` for only these many flows.

use std::hint::black_box;
use std::time::{Duration, Instant as Clock};

use criterion::{BenchmarkId, Criterion, Throughput};

use uvs::conn::{Epochs, Flags, FlowKey, Hint, Ipv4, NewConnection, State, Table, WorkerView};
use uvs::service::{ServerId, ServerSlots};
use uvs::types::{ForwardingMethod, HashKey, Instant};

/// Flows looked up between two readings of the clock.
const PICKED: usize = 4096;
const VIP: u64 = 0xc000_0201;

/// 64 connections for each client.
fn key(flow: u64) -> FlowKey<Ipv4> {
    FlowKey::new([(0x0a00_0000 + flow / 64) << 32 | VIP], 6, 1024 + (flow % 64) as u16, 80)
}

fn filled(flows: u64) -> Table<Ipv4> {
    let capacity = u32::try_from(flows + flows / 4).expect("few enough");
    let table = Table::<Ipv4>::new(capacity, 1, HashKey::new([11, 12])).expect("memory");
    let (slots, epochs, mut view) = (ServerSlots::new(1), Epochs::new(), WorkerView::default());
    let new = NewConnection {
        server: ServerId(0),
        address: [10, 0, 0, 1].into(),
        port: 80,
        method: ForwardingMethod::DirectRouting,
        flags: Flags::NO_OUTPUT,
        state: State::ESTABLISHED,
        deadline: Instant::NEVER,
        control: None,
    };
    for flow in 0..flows {
        let key = key(flow);
        table.lock(table.hash(&key)).insert(&key, new, &slots, &mut view, &epochs).expect("room");
    }
    table
}

/// Looks the flows up `size` at a time, stage by stage; how many were found.
fn look_up(table: &Table<Ipv4>, keys: &[FlowKey<Ipv4>], size: usize) -> usize {
    let mut notes = [(0, Hint::NONE); 64];
    let mut found = 0;
    for batch in keys.chunks(size) {
        for (key, note) in batch.iter().zip(&mut notes) {
            note.0 = table.hash(key);
            table.prefetch_bucket(note.0);
        }
        for note in &mut notes[..batch.len()] {
            note.1 = table.probe(note.0);
        }
        for (key, &(hash, hint)) in batch.iter().zip(&notes) {
            found += usize::from(table.find(hint, key, hash, Instant::ZERO).is_some());
        }
    }
    found
}

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    let wanted =
        std::env::var("UVS_BENCH_FLOWS").unwrap_or_else(|_| "1000,64000,1000000,10000000".to_owned());
    let mut group = criterion.benchmark_group("lookup");
    group.throughput(Throughput::Elements(1));
    for flows in wanted.split(',').filter_map(|flows| flows.trim().parse::<u64>().ok()) {
        let table = filled(flows);
        let mut random = 1_u64;
        for size in [1, 8, 32, 64] {
            let id = BenchmarkId::new(format!("{flows}-flows"), format!("batch-{size}"));
            group.bench_function(id, |bencher| {
                bencher.iter_custom(|iterations| {
                    let rounds = iterations.div_ceil(PICKED as u64);
                    let mut taken = Duration::ZERO;
                    for _ in 0..rounds {
                        let keys: Vec<_> = (0..PICKED)
                            .map(|_| {
                                random = random
                                    .wrapping_mul(6_364_136_223_846_793_005)
                                    .wrapping_add(1_442_695_040_888_963_407);
                                key(((u128::from(random) * u128::from(flows)) >> 64) as u64)
                            })
                            .collect();
                        let start = Clock::now();
                        let found = look_up(&table, black_box(&keys), size);
                        taken += start.elapsed();
                        assert_eq!(found, PICKED, "every flow is known");
                    }
                    taken.mul_f64(iterations as f64 / (rounds * PICKED as u64) as f64)
                });
            });
        }
    }
    group.finish();
    criterion.final_summary();
}
