//! The packet path allocates nothing once the director is up.

use std::collections::BTreeSet;
use std::net::IpAddr;

use uvs::director::{DropReason, Verdict};
use uvs::scheduler::{self, Flow};
use uvs::service::{Chooser, RealServer, ServerId, ServerSlots, ServiceId};
use uvs::sys::allocations::CountingAllocator;
use uvs::types::{Duration, ForwardingMethod, HashKey, Instant};
use uvs::wire::build::Transport;
use uvs::wire::transport::tcp_flags::{ACK, FIN, RST, SYN};
use uvs::wire::{Outcome, parse};

use crate::director::{
    Bench, EMPTY, MARKED, MASQUERADED, NO_SERVICE, PERSISTENT, SCHEDULED, UNREACHABLE, UNRESOLVED, packet,
    replies,
};

const CLIENTS: u16 = 500;

fn frames(clients: std::ops::Range<u16>, port: u16, flags: u8) -> Vec<Vec<u8>> {
    clients
        .flat_map(|client| [false, true].map(|ipv6| (client, ipv6)))
        .map(|(client, ipv6)| packet(ipv6, client, Transport::tcp_with(1024 + client, port, flags)).frame())
        .collect()
}

fn datagrams(clients: std::ops::Range<u16>, port: u16) -> Vec<Vec<u8>> {
    clients
        .flat_map(|client| [false, true].map(|ipv6| (client, ipv6)))
        .map(|(client, ipv6)| packet(ipv6, client, Transport::udp(1024 + client, port)).frame())
        .collect()
}

/// Three of each datagram, in order or not.
fn fragments(clients: std::ops::Range<u16>, port: u16, reversed: bool) -> Vec<Vec<u8>> {
    clients
        .flat_map(|client| [false, true].map(|ipv6| (client, ipv6)))
        .flat_map(|(client, ipv6)| {
            let build = packet(ipv6, client, Transport::udp(1024 + client, port)).payload(&[7; 40]);
            let mut fragments = build.identification(u32::from(client)).fragments(16);
            if reversed {
                fragments.reverse();
            }
            fragments
        })
        .collect()
}

/// Runs the frames and says how often memory was asked for.
fn allocations(bench: &mut Bench, frames: &[Vec<u8>]) -> u64 {
    let (count, ()) = CountingAllocator::count(|| bench.run(frames, 64));
    count
}

fn all_of_it() -> Vec<(&'static str, Vec<Vec<u8>>)> {
    let mut kinds = Vec::new();
    for (scheduler, port) in SCHEDULED {
        kinds.push((scheduler, frames(0..CLIENTS, port, SYN)));
    }
    let port = SCHEDULED[0].1;
    kinds.push(("datagrams", datagrams(0..CLIENTS, port)));
    kinds.push(("established", frames(0..CLIENTS, port, ACK)));
    kinds.push(("reset", frames(0..CLIENTS, port, RST)));
    kinds.push(("new ones on old ports", frames(0..CLIENTS, port, SYN)));
    kinds.push(("closing", frames(0..CLIENTS, port, FIN | ACK)));
    kinds.push(("mid-connection, unknown", frames(CLIENTS..2 * CLIENTS, port, ACK)));
    kinds.push(("by mark", frames(0..CLIENTS, MARKED, SYN)));
    kinds.push(("by mark, datagrams", datagrams(0..CLIENTS, MARKED)));
    kinds.push(("new clients of a persistent service", frames(0..CLIENTS, PERSISTENT, SYN)));
    kinds.push(("known clients of a persistent service", datagrams(0..CLIENTS, PERSISTENT)));
    kinds.push(("the same on other ports", frames(CLIENTS..CLIENTS + 1, PERSISTENT, SYN)));
    kinds.push(("connections under templates", frames(0..CLIENTS, PERSISTENT, ACK)));
    kinds.push(("no service", frames(0..CLIENTS, NO_SERVICE, SYN)));
    kinds.push(("no server", frames(0..100, EMPTY, SYN)));
    kinds.push(("no server, datagrams", datagrams(0..100, EMPTY)));
    kinds.push(("unreachable", frames(0..100, UNREACHABLE, SYN)));
    kinds.push(("held, and too many of them", frames(0..CLIENTS, UNRESOLVED, SYN)));
    for (kind, reversed) in [("fragments", false), ("fragments, the last one first", true)] {
        kinds.push((kind, fragments(0..100, port, reversed)));
    }
    let mut lone = fragments(0..CLIENTS, port, true);
    lone.retain(|frame| matches!(parse(frame), Outcome::Packet(packet) if !packet.has_transport_header()));
    kinds.push(("fragments whose first never comes, and too many of them", lone));
    kinds.push(("masqueraded", frames(0..CLIENTS, MASQUERADED, SYN)));
    let answers = (0..CLIENTS).flat_map(|client| {
        [false, true].into_iter().flat_map(move |ipv6| replies(ipv6, client, 1024 + client, SYN | ACK))
    });
    kinds.push(("replies, translated, held or unknown", answers.collect()));
    kinds.push(("masqueraded, reset", frames(0..CLIENTS, MASQUERADED, RST)));
    kinds.push(("masqueraded, new ones on old ports", frames(0..CLIENTS, MASQUERADED, SYN)));
    kinds.push(("masqueraded, datagrams without connections", datagrams(0..CLIENTS, MASQUERADED)));
    let mut torn = frames(0..100, port, ACK);
    for (index, frame) in torn.iter_mut().enumerate() {
        frame.truncate(index % frame.len());
    }
    kinds.push(("torn", torn));
    let dying = |client| packet(client % 2 == 0, client, Transport::tcp_with(9, port, SYN)).ttl(1).frame();
    kinds.push(("expired lifetime", (0..100).map(dying).collect()));
    kinds
}

#[test]
fn the_allocator_is_the_counting_one() {
    assert_eq!(CountingAllocator::count(|| Vec::<u8>::with_capacity(10)).0, 1);
}

#[test]
fn a_director_that_is_up_allocates_nothing() {
    let mut bench = Bench::new(20_000);
    // A thread's first use of locks and caches may allocate, once.
    allocations(&mut bench, &[packet(false, 60_000, Transport::tcp_with(1, 80, SYN)).frame()]);
    for (kind, frames) in all_of_it() {
        let before = bench.director.frame_counts().received;
        assert_eq!(allocations(&mut bench, &frames), 0, "{kind}");
        assert_eq!(bench.director.frame_counts().received - before, frames.len() as u64, "{kind}");
    }
    let counts = bench.director.frame_counts();
    assert!(counts.held > 0 && counts.transmitted > 0 && counts.to_host > 0, "{counts:?}");
    let traffic = |id| bench.director.shared().service_traffic(uvs::service::ServiceId(id));
    let replies: u64 = (0..200).map(|id| traffic(id).out_packets).sum();
    assert_eq!(replies, 2 * u64::from(CLIENTS), "of both families, one server's each");
    // A verdict of each kind was among them.
    assert!(counts.dropped.iter().filter(|count| **count > 0).count() >= 4, "{counts:?}");
    assert!(bench.director.is_conserved(), "{counts:?}");
}

#[test]
fn every_scheduler_is_among_them() {
    let all: BTreeSet<&str> = scheduler::names().filter(|name| *name != "none").collect();
    assert_eq!(SCHEDULED.map(|(name, _)| name).into_iter().collect::<BTreeSet<_>>(), all);
}

/// More of them than `lblc` and `lblcr` remember, each served by several real servers.
#[test]
fn destinations_that_come_and_go_allocate_nothing() {
    const SERVERS: u32 = 3;
    let slots = ServerSlots::new(SERVERS as usize);
    for name in scheduler::names() {
        let mut chooser = Chooser::new(scheduler::create(name, 0, HashKey::new([5, 6])).unwrap());
        for number in 0..SERVERS {
            let (id, address) = (ServerId(number), IpAddr::from([10, 0, 2, 10 + number as u8]));
            slots.get(id).assign(ServiceId(0));
            slots.get(id).set_weight(1);
            let method = ForwardingMethod::DirectRouting;
            chooser.add(&slots, RealServer { id, address, port: 80, method });
        }
        let (count, ()) = CountingAllocator::count(|| {
            for number in 0..3 * 20_000_u32 {
                let destination = IpAddr::V4((number % 20_000).into());
                let now = Instant::ZERO + Duration::from_secs(number.into());
                let flow = Flow { client: destination, client_port: 1, destination, now };
                if let Some(server) = chooser.choose(&slots, &flow) {
                    slots.get(server.id).connection_added();
                    slots.get(server.id).connection_moved(true);
                }
            }
        });
        assert_eq!(count, 0, "{name}");
    }
}

#[test]
fn time_that_passes_allocates_nothing() {
    let mut bench = Bench::new(20_000);
    bench.run(&frames(0..CLIENTS, SCHEDULED[0].1, SYN), 64);
    let (two, both) = (u64::from(CLIENTS), 2 * u64::from(CLIENTS));
    assert_eq!(bench.director.shared().ipv4.alive() + bench.director.shared().ipv6.alive(), both);
    bench.run(&frames(0..20, UNRESOLVED, SYN), 64);
    assert!(bench.director.is_holding());
    bench.resolve(true);
    let (count, sent) = CountingAllocator::count(|| {
        let mut sent = 0;
        loop {
            let done = bench.tick();
            sent +=
                bench.batch.entries().iter().filter(|e| matches!(e.verdict, Verdict::Transmit(_))).count();
            bench.batch.clear(&mut bench.frames);
            if done && !bench.director.is_holding() {
                break sent;
            }
        }
    });
    assert_eq!((count, sent), (0, 40), "held frames that were released");
    let (count, ()) = CountingAllocator::count(|| {
        // SYN_RECV lasts a minute.
        for _ in 0..1000 {
            bench.now += Duration::from_millis(100);
            while !bench.tick() {}
        }
    });
    let alive = bench.director.shared().ipv4.alive();
    assert_eq!(count, 0, "the ends of {two} connections of each family");
    assert_eq!(alive, 0);
}

#[test]
fn templates_come_and_go_without_allocating() {
    let mut bench = Bench::new(20_000);
    allocations(&mut bench, &[packet(false, 60_000, Transport::tcp_with(1, PERSISTENT, SYN)).frame()]);
    let alive = |bench: &Bench| bench.director.shared().ipv4.templates().alive();
    let (first, second) = (frames(0..CLIENTS, PERSISTENT, SYN), frames(0..CLIENTS, PERSISTENT, ACK));
    assert_eq!(allocations(&mut bench, &first), 0);
    assert_eq!(allocations(&mut bench, &second), 0);
    assert_eq!(alive(&bench), u64::from(CLIENTS) + 1);
    let (count, ()) = CountingAllocator::count(|| {
        // Put off again and again until the established connections end, after 15 minutes.
        for _ in 0..1000 {
            bench.now += Duration::from_secs(1);
            while !bench.tick() {}
        }
    });
    assert_eq!((count, alive(&bench)), (0, 0));
}

/// Far more clients than templates fit.
#[test]
fn a_full_table_of_templates_allocates_nothing() {
    let mut bench = Bench::new(100);
    bench.run(&frames(0..1, PERSISTENT, SYN), 64);
    let pairs: Vec<Vec<u8>> = (0..1000_u16)
        .flat_map(|client| {
            [frames(client..client + 1, PERSISTENT, SYN), frames(client..client + 1, PERSISTENT, ACK)]
                .concat()
        })
        .collect();
    assert_eq!(allocations(&mut bench, &pairs), 0);
    let counts = bench.director.frame_counts();
    let refused = [DropReason::ConnectionTableFull, DropReason::TemplateTableFull];
    assert!(refused.iter().any(|&reason| counts.dropped_for(reason) > 0), "{counts:?}");
    assert!(bench.director.shared().ipv4.templates().alive() <= 100);
    assert!(counts.is_conserved(), "{counts:?}");
}

#[test]
fn a_full_table_allocates_nothing() {
    let mut bench = Bench::new(100);
    let port = SCHEDULED[0].1;
    bench.run(&frames(0..1, port, SYN), 64);
    let pairs: Vec<Vec<u8>> = (0..1000_u16)
        .flat_map(|client| {
            [frames(client..client + 1, port, SYN), frames(client..client + 1, port, ACK)].concat()
        })
        .collect();
    assert_eq!(allocations(&mut bench, &pairs), 0);
    let counts = bench.director.frame_counts();
    assert!(counts.dropped_for(DropReason::ConnectionTableFull) > 0, "{counts:?}");
    for alive in [bench.director.shared().ipv4.alive(), bench.director.shared().ipv6.alive()] {
        assert!((50..=200).contains(&alive), "{alive} of 100 connections");
    }
    assert!(bench.director.is_conserved(), "{counts:?}");
}
