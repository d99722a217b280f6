//! Replays the fuzzers' corpus, and holds its seeds to what the builders make.
//!
//! `UVS_WRITE_CORPUS=1 cargo test --test corpus` writes the seeds anew.

#[path = "../fuzz/checks.rs"]
mod checks;
#[path = "../fuzz/director.rs"]
mod director;
#[path = "../fuzz/fragments.rs"]
mod fragments;
#[path = "support/scenarios.rs"]
mod scenarios;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use uvs::io::pcap::{NgWriter, Resolution, Writer};
use uvs::types::Instant;
use uvs::wire::build::{Build, Transport};
use uvs::wire::transport::{sctp_chunk, tcp_flags};
use uvs::wire::{Outcome, parse};

fn directory(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target)
}

/// All files of a target's corpus, by name.
fn corpus(target: &str) -> BTreeMap<String, Vec<u8>> {
    let directory = directory(target);
    let files =
        std::fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    files
        .map(|file| {
            let path = file.unwrap().path();
            (path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(&path).unwrap())
        })
        .collect()
}

/// Writes the seeds where that is asked for, and compares them with the files there are.
fn check_seeds(target: &str, seeds: &BTreeMap<String, Vec<u8>>) {
    if std::env::var_os("UVS_WRITE_CORPUS").is_some() {
        std::fs::create_dir_all(directory(target)).unwrap();
        for (name, bytes) in seeds {
            std::fs::write(directory(target).join(name), bytes).unwrap();
        }
    }
    let corpus = corpus(target);
    for (name, bytes) in seeds {
        assert!(corpus.get(name) == Some(bytes), "{name}: missing, or not what the builder makes");
    }
}

fn v4() -> Build {
    Build::ipv4([192, 0, 2, 1], [198, 51, 100, 7]).transport(Transport::tcp(1234, 80))
}

fn v6() -> Build {
    let host = |last| [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last];
    Build::ipv6(host(1), host(0xff)).transport(Transport::tcp(1234, 80))
}

/// Frames that parse: each family with each transport, and what can come in front of or behind them.
fn packets() -> BTreeMap<String, Vec<u8>> {
    let mut seeds = BTreeMap::new();
    for (family, build) in [("ipv4", v4()), ("ipv6", v6())] {
        let mut add = |name: &str, build: Build| seeds.insert(format!("{family}-{name}"), build.frame());
        let of = |transport| build.clone().transport(transport);
        let abort = [sctp_chunk::ABORT, 0, 0, 4];
        add("tcp", build.clone());
        add("tcp-syn", of(Transport::tcp_with(1234, 80, tcp_flags::SYN)));
        add("tcp-rst", of(Transport::tcp_with(1234, 80, tcp_flags::RST)));
        add("tcp-payload", build.clone().payload(b"GET / HTTP/1.0\r\n\r\n"));
        add("udp", of(Transport::udp(5353, 53)).payload(b"query"));
        add("udp-empty", of(Transport::udp(5353, 53)));
        add("sctp-init", of(Transport::sctp(1234, 80, sctp_chunk::INIT)));
        add("sctp-cookie-abort", of(Transport::sctp(1234, 80, sctp_chunk::COOKIE_ECHO)).payload(&abort));
        add("raw-gre", of(Transport::Raw { protocol: 47 }).payload(&[0, 0, 8, 0]));
        add("raw-empty", of(Transport::Raw { protocol: 59 }));
        add("last-hop", build.clone().ttl(1));
        add("vlan", build.clone().vlan(100));
        add("two-tags", build.clone().tag(0x88a8, 100).vlan(200));
        add("padded", build.clone().padded(90));
        add("fragment-first", build.clone().fragment(0, true).payload(&[1; 12]));
        add("fragment-middle", build.clone().fragment(32, true).payload(&[2; 16]));
        add("fragment-last", build.clone().fragment(48, false).payload(&[3; 5]));
        add("encapsulated-ipv4", of(Transport::Raw { protocol: 4 }).payload(&v4().packet()));
        add("encapsulated-ipv6", of(Transport::Raw { protocol: 41 }).payload(&v6().packet()));
        let quote = build.packet();
        add("icmp-echo", of(Transport::Icmp { kind: 8, code: 0, rest: 1 }));
        add("icmp-unreachable", of(Transport::Icmp { kind: 3, code: 3, rest: 0 }).payload(&quote));
        add("icmpv6-echo", of(Transport::Icmpv6 { kind: 128, code: 0, rest: 1 }));
        add("icmpv6-too-big", of(Transport::Icmpv6 { kind: 2, code: 0, rest: 1280 }).payload(&quote));
    }
    let mut add = |name: &str, build: Build| seeds.insert(name.to_owned(), build.frame());
    add("ipv4-options", v4().options(&[7, 7, 4, 0, 0, 0, 0]));
    add("ipv4-dont-fragment", v4().dont_fragment());
    add("ipv6-hop-by-hop", v6().extension(0, &[5, 2, 0, 0, 1, 0]));
    add("ipv6-routing", v6().extension(43, &[2, 1, 0, 0, 0, 0]));
    add("ipv6-destination-options", v6().extension(60, &[1, 4]));
    add("ipv6-authentication", v6().extension(51, &[0; 22]));
    add("ipv6-atomic-fragment", v6().fragment(0, false));
    add("ipv6-chain", v6().extension(0, &[]).extension(60, &[]).extension(43, &[]).fragment(0, true));
    seeds
}

fn captures() -> BTreeMap<String, Vec<u8>> {
    let frames = [v4().frame(), v6().frame()];
    let time = |n: usize| Instant::from_nanos(1_700_000_000_000_000_000 + n as u64 * 1_001);
    let classic = |resolution| {
        let mut writer = Writer::new(Vec::new(), resolution).unwrap();
        for (n, frame) in frames.iter().enumerate() {
            writer.write(time(n), frame.len() as u32, frame).unwrap();
        }
        writer.finish().unwrap()
    };
    let mut writer = NgWriter::new(Vec::new()).unwrap();
    for (n, frame) in frames.iter().enumerate() {
        let interface = writer.add_interface(&format!("eth{n}")).unwrap();
        writer.write(interface, time(n), frame.len() as u32, frame).unwrap();
    }
    let ng = writer.finish().unwrap();
    BTreeMap::from([
        ("microseconds.pcap".to_owned(), classic(Resolution::Microseconds)),
        ("nanoseconds.pcap".to_owned(), classic(Resolution::Nanoseconds)),
        ("two-sections.pcapng".to_owned(), [ng.clone(), ng.clone()].concat()),
        ("two-interfaces.pcapng".to_owned(), ng),
    ])
}

#[test]
fn frames_of_the_corpus_hold_what_all_frames_must() {
    let seeds = packets();
    for (name, frame) in &seeds {
        assert!(matches!(parse(frame), Outcome::Packet(_)), "{name}: {:?}", parse(frame));
    }
    check_seeds("parse", &seeds);
    for (name, bytes) in corpus("parse") {
        println!("{name}"); // shown where a check panics
        checks::frame(&bytes);
        // Cut anywhere, as fuzzers like to.
        for length in 0..bytes.len() {
            checks::frame(&bytes[..length]);
        }
    }
}

#[test]
fn captures_of_the_corpus_hold_what_all_captures_must() {
    check_seeds("capture", &captures());
    for (name, bytes) in corpus("capture") {
        println!("{name}");
        for length in 0..=bytes.len() {
            checks::capture(&bytes[..length]);
        }
    }
}

#[test]
fn scenarios_of_the_corpus_hold_what_all_scenarios_must() {
    check_seeds("director", &scenarios::all());
    for (name, bytes) in corpus("director") {
        println!("{name}");
        director::scenario(&bytes);
    }
}

#[test]
fn fragments_of_the_corpus_hold_what_all_fragments_must() {
    check_seeds("fragments", &fragments::seeds());
    for (name, bytes) in corpus("fragments") {
        println!("{name}");
        fragments::scenario(&bytes);
    }
}
