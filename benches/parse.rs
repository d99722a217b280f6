//! What parsing a frame costs, over frames that differ and lie in the cache.
//!
//! `cargo bench --bench parse`; divide by the 1024 frames of an iteration, or read the throughput: elements are
//! frames. Only figures of one run compare.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use uvs::wire::build::{Build, Transport};
use uvs::wire::{Outcome, parse};

/// Different frames in a row: enough that a branch predictor cannot learn them by heart.
const FRAMES: u16 = 1024;

/// Frames of 64 bytes where the headers leave room for that: IPv6 with TCP takes 74.
fn frames(build: impl Fn(u16) -> Build) -> Vec<Vec<u8>> {
    (0..FRAMES).map(|n| build(n).padded(64).frame()).collect()
}

fn v4(n: u16) -> Build {
    let [high, low] = n.to_be_bytes();
    Build::ipv4([10, 1, high, low], [192, 0, 2, low])
}

fn v6(n: u16) -> Build {
    let [high, low] = n.to_be_bytes();
    let address = |last| [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, high, last];
    Build::ipv6(address(low), address(1))
}

fn parsing(criterion: &mut Criterion) {
    let tcp = |n: u16| Transport::tcp(1024 + n, 80);
    let inputs = [
        ("ipv4-tcp", frames(|n| v4(n).transport(tcp(n)))),
        ("ipv6-tcp", frames(|n| v6(n).transport(tcp(n)))),
        ("ipv4-udp", frames(|n| v4(n).transport(Transport::udp(1024 + n, 53)))),
        ("ipv4-tcp-vlan", frames(|n| v4(n).vlan(7).transport(tcp(n)))),
        ("ipv4-tcp-options", frames(|n| v4(n).options(&[1; 8]).transport(tcp(n)))),
        ("ipv6-tcp-hop-by-hop", frames(|n| v6(n).extension(0, &[]).transport(tcp(n)))),
    ];
    let mut group = criterion.benchmark_group("parse");
    group.throughput(Throughput::Elements(FRAMES.into()));
    for (name, frames) in &inputs {
        assert!(frames.iter().all(|frame| matches!(parse(frame), Outcome::Packet(_))), "{name}");
        group.bench_function(*name, |bencher| {
            bencher.iter(|| {
                for frame in frames {
                    black_box(parse(black_box(frame)));
                }
            });
        });
    }
    group.finish();
}

criterion_group!(benches, parsing);
criterion_main!(benches);
