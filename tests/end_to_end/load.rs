//! Fifty thousand requests over each kind of port, of which none may fail, while the director's host goes about its
//! own business.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::support::cluster::{Cluster, MORE_CLIENTS, ONE_ARM, PLAIN_PORT, ROUTER};
use crate::support::director::{Director, PortType};
use crate::support::traffic::{Load, REQUEST_TIMEOUT, ask, ping, serve};
use crate::support::{StopWhenDropped, is_root};

/// By h2load, on a few connections that are kept.
const KEPT: u64 = 40_000;
/// A connection each, from many addresses.
const SHORT: u64 = 8_000;
/// On connections of fifty, from many addresses.
const MIXED: u64 = 4_000;
/// Where the director's host listens itself, on all of its addresses.
const OWN_PORT: u16 = 2222;
const GREETING: &str = "the host itself\n";
/// Between two looks at the director's host.
const PAUSE: Duration = Duration::from_millis(50);

/// Asks the director's host for everything of its own, again and again; says how often.
fn use_the_host(cluster: &Cluster, stop: &AtomicBool) -> u64 {
    let vip = cluster.layout.vip;
    let mut rounds = 0;
    while !stop.load(Ordering::Relaxed) {
        for address in [cluster.director().as_str(), vip] {
            let socket = SocketAddr::new(address.parse().unwrap(), OWN_PORT);
            assert_eq!(ask(socket).unwrap_or_else(|error| panic!("{socket}: {error}")), GREETING);
        }
        for address in [&cluster.director(), vip, ROUTER, &cluster.server(1), &cluster.server(2)] {
            let to: Ipv4Addr = address.parse().unwrap();
            assert!(ping(to, rounds as u16, REQUEST_TIMEOUT).unwrap(), "{address} does not answer an echo");
        }
        rounds += 1;
        std::thread::sleep(PAUSE);
    }
    rounds
}

/// The requests that h2load reports: all, succeeded, failed, errored, timed out.
fn report(text: &str) -> [u64; 5] {
    let line = text.lines().find_map(|line| line.strip_prefix("requests: ")).expect("h2load reports");
    let of = |what: &str| -> u64 {
        let part = line.split(", ").find_map(|part| part.strip_suffix(what)).expect("a known report");
        part.trim().parse().unwrap()
    };
    ["total", "succeeded", "failed", "errored", "timeout"].map(of)
}

fn load(port_type: PortType, workers: &str) {
    if !is_root() {
        return;
    }
    let cluster = Cluster::with_queues(ONE_ARM, workers.parse().unwrap());
    let site = &cluster.site;
    let director = Director::start(site, "director", &["eth0"], port_type, &["--workers", workers]);
    cluster.add_plain_service();
    let to = SocketAddrV4::new(cluster.layout.vip.parse().unwrap(), PLAIN_PORT);
    let [stop, served, never] = [const { AtomicBool::new(false) }; 3];
    let rounds = AtomicU64::new(0);
    let resets = site.snmp("director", "Tcp", "OutRsts");
    std::thread::scope(|scope| {
        let listener = site.inside("director", || TcpListener::bind(("0.0.0.0", OWN_PORT))).unwrap();
        let _serving = StopWhenDropped(&served);
        scope.spawn({
            let served = &served;
            move || serve(&listener, GREETING, served)
        });
        let looking = scope.spawn(|| {
            site.inside("client", || rounds.store(use_the_host(&cluster, &stop), Ordering::Relaxed))
        });
        // Whatever fails below, the threads above end.
        let end = StopWhenDropped(&stop);

        let line = format!("timeout 120 h2load --h1 -n {KEPT} -c 20 -t 1 http://{to}/");
        let text = site.start("client", "bash", ["-c", &line]).wait(Duration::from_secs(130)).ok();
        assert_eq!(report(&text), [KEPT, KEPT, 0, 0, 0], "{text}");

        let sources: Vec<Ipv4Addr> = MORE_CLIENTS.map(|last| Ipv4Addr::new(192, 168, 20, last)).collect();
        let each = sources.len() as u64;
        for (requests, requests_per_connection, first_port) in
            [(SHORT / each, 1, 10_000), (MIXED / each, 50, 20_000)]
        {
            let load = Load { to, requests, first_port, requests_per_connection, timeout: REQUEST_TIMEOUT };
            let outcome = site.inside("client", || load.run(&sources, &never));
            assert_eq!(outcome.errors, Vec::<String>::new());
            assert_eq!(outcome.answered(), requests * each);
            // Round robin: no port was used twice, so every connection was scheduled.
            let half = outcome.answered() / 2;
            let expected = ["node1", "node2"].map(|node| (node.to_owned(), half));
            assert_eq!(outcome.answers, expected.into());
        }
        drop(end);
        looking.join().unwrap();
    });
    assert!(rounds.load(Ordering::Relaxed) > 10, "{rounds:?} rounds");
    assert_eq!(site.snmp("director", "Tcp", "OutRsts"), resets, "the director's host reset a connection");
    director.check();
    let stats = director.stats();
    assert!(stats["frames"]["received"].as_u64().unwrap() > KEPT, "{stats:#}");
    assert_eq!(stats["connections"]["capacity"], 65536, "{stats:#}");
    director.stop();
}

#[test]
fn fifty_thousand_requests_over_native_xdp() {
    load(PortType::XdpNative, "1");
}

#[test]
fn fifty_thousand_requests_over_generic_xdp() {
    load(PortType::XdpGeneric, "1");
}

#[test]
fn fifty_thousand_requests_over_raw_sockets() {
    load(PortType::Packet, "1");
}

#[test]
fn fifty_thousand_requests_over_two_workers() {
    load(PortType::XdpNative, "2");
}
