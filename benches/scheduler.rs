//! Schedulers alone: a service's lock is held for as long.
//!
//! - `choose`: picking one of 10, 100 and 1000 real servers, each with its own weight and its own number of connections,
//!   for clients and destinations that differ: the pick of a new connection.
//! - `mh-fill`: what workers wait for when a real server comes to a service with `mh`: filling its table, of the
//!   default size and of 65,521 entries.
//!
//! `cargo bench --bench scheduler`.

use std::hint::black_box;
use std::net::IpAddr;

use criterion::{BenchmarkId, Criterion};

use uvs::scheduler::{self, Choice, Flow, Maglev, Scheduler};
use uvs::service::{RealServer, ServerId, ServerSlots, ServiceId};
use uvs::types::{ForwardingMethod, HashKey, Instant};

const SERVERS: [u32; 3] = [10, 100, 1000];
/// Destinations that clients want: fewer than `lblc` remembers.
const DESTINATIONS: u32 = 4096;

fn servers(count: u32) -> (Vec<RealServer>, ServerSlots) {
    let slots = ServerSlots::new(count as usize);
    let server = |number: u32| {
        let id = ServerId(number);
        let slot = slots.get(id);
        slot.assign(ServiceId(0));
        slot.set_weight(100 + number % 7);
        for _ in 0..1 + number * 37 % 100 {
            slot.connection_added();
            slot.connection_moved(true);
        }
        let address = IpAddr::V4((0x0a00_0000 + number).into());
        RealServer { id, address, port: 80, method: ForwardingMethod::DirectRouting }
    };
    ((0..count).map(server).collect(), slots)
}

fn flow(number: u32) -> Flow {
    Flow {
        client: IpAddr::V4((0x0a80_0000 + number % 65_536).into()),
        client_port: 1024 + (number % 60_000) as u16,
        destination: IpAddr::V4((0xc000_0000 + number.wrapping_mul(2_654_435_761) % DESTINATIONS).into()),
        now: Instant::ZERO,
    }
}

fn choose(criterion: &mut Criterion) {
    for name in scheduler::names().filter(|name| *name != "none") {
        let mut group = criterion.benchmark_group(format!("choose/{name}"));
        for count in SERVERS {
            let (servers, slots) = servers(count);
            let mut scheduler =
                scheduler::create(name, 0, HashKey::new([1, 2])).expect("a scheduler of this name");
            scheduler.added(&servers, &slots);
            let mut number = 0;
            group.bench_function(BenchmarkId::from_parameter(count), |bencher| {
                bencher.iter(|| {
                    number += 1;
                    let choice = scheduler.choose(&servers, &slots, black_box(&flow(number)));
                    assert_ne!(choice, Choice::None);
                    choice
                });
            });
        }
    }
}

fn fill(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("mh-fill");
    for (index, entries) in [(12, 4093), (16, 65_521)] {
        for count in SERVERS {
            let (servers, slots) = servers(count);
            let mut maglev = Maglev::with_index(0, index).expect("a size of this index");
            let mut whole = false;
            group.bench_function(BenchmarkId::new(entries.to_string(), count), |bencher| {
                // One comes, one goes: the table is filled anew each time.
                bencher.iter(|| {
                    whole = !whole;
                    maglev.added(&servers[usize::from(whole)..], &slots);
                });
            });
        }
    }
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    choose(&mut criterion);
    fill(&mut criterion);
    criterion.final_summary();
}
