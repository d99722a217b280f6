//! The director dies, is started again, or ends: no client hears anything from the host in its place.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::support::cluster::{Cluster, MORE_CLIENTS, ONE_ARM, PLAIN_PORT};
use crate::support::director::{Director, PortType, assert_nothing_left};
use crate::support::traffic::{Client, Load, Outcome, ask, serve};
use crate::support::{Site, StopWhenDropped, is_root, wait_for};

/// How long a request may take that is expected to get lost.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long the director stays dead, under load.
const DEAD_FOR: Duration = Duration::from_secs(2);
/// A port of the virtual address that is the host's own.
const OWN_PORT: u16 = 2222;

fn sources() -> Vec<Ipv4Addr> {
    MORE_CLIENTS.map(|last| Ipv4Addr::new(192, 168, 20, last)).collect()
}

/// Resets that the director's host has sent.
fn resets(site: &Site) -> u64 {
    site.snmp("director", "Tcp", "OutRsts")
}

/// Says how often connections were reset or refused, of the requests that failed.
fn turned_away(outcome: &Outcome) -> Vec<&String> {
    outcome.errors.iter().filter(|error| error.contains("reset") || error.contains("refused")).collect()
}

fn killed_under_load(port_type: PortType) {
    if !is_root() {
        return;
    }
    let cluster = Cluster::new(ONE_ARM);
    let site = &cluster.site;
    let rules = site.write("rules", &cluster.plain_rules());
    let more = ["--rules", rules.to_str().unwrap()];
    let director = Director::start(site, "director", &["eth0"], port_type, &more);
    let to = SocketAddrV4::new(cluster.layout.vip.parse().unwrap(), PLAIN_PORT);
    let load =
        Load { to, requests: 1 << 40, first_port: 10_000, requests_per_connection: 3, timeout: PATIENCE };
    let stop = AtomicBool::new(false);
    let before = resets(site);
    std::thread::scope(|scope| {
        let end = StopWhenDropped(&stop);
        let loading = scope.spawn(|| site.inside("client", || load.run(&sources(), &stop)));
        // A connection that knows the director from before.
        let source = SocketAddrV4::new(sources()[0], 9_000);
        let mut old = site.inside("client", || Client::connect(source, to, PATIENCE)).unwrap();
        old.get(false).unwrap();
        wait_for("load", || {
            director.stats()["frames"]["transmitted"].as_u64().is_some_and(|sent| sent > 2000)
        });
        director.kill();
        // What is in the middle of everything meets no director.
        std::thread::sleep(DEAD_FOR);
        assert_eq!(resets(site), before, "the host answered while the director was dead");

        let director = Director::start(site, "director", &["eth0"], port_type, &more);
        assert!(director.log().contains("adopted=true"), "{}", director.log());
        let fresh = Load { requests: 200, first_port: 40_000, requests_per_connection: 1, ..load };
        let outcome = site.inside("client", || fresh.run(&sources(), &AtomicBool::new(false)));
        assert_eq!(outcome.errors, Vec::<String>::new(), "after the restart");
        assert_eq!(outcome.answered(), 200 * sources().len() as u64);

        // The new director does not know the old connection, and keeps the host from ending it.
        let lost = old.get(false).unwrap_err();
        assert!(
            !matches!(lost.kind(), std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::UnexpectedEof),
            "{lost}"
        );
        assert!(director.dropped("unknown-after-restart") > 0, "{:#}", director.stats());
        drop(end);
        let outcome = loading.join().unwrap();
        assert!(outcome.answered() > 500, "{outcome:?}");
        assert_eq!(turned_away(&outcome), Vec::<&String>::new());
        assert_eq!(resets(site), before, "the host answered after the restart");
        director.check();
        director.stop();
    });
}

#[test]
fn killed_under_load_over_native_xdp() {
    killed_under_load(PortType::XdpNative);
}

#[test]
fn killed_under_load_over_generic_xdp() {
    killed_under_load(PortType::XdpGeneric);
}

#[test]
fn killed_under_load_over_raw_sockets() {
    killed_under_load(PortType::Packet);
}

/// Whether the director's host itself answers at the service's address and port.
fn host_answers(site: &Site, to: SocketAddr) -> bool {
    site.inside("client", || TcpStream::connect_timeout(&to, Duration::from_millis(500)).is_ok())
}

#[test]
fn a_killed_director_is_cleaned_up_by_detach() {
    if !is_root() {
        return;
    }
    let cluster = Cluster::new(ONE_ARM);
    let site = &cluster.site;
    let state = Director::state_directory(site);
    let detach = format!("uvs detach --state-directory {}", state.display());
    let stop = AtomicBool::new(false);
    let to: SocketAddr = format!("{}:{PLAIN_PORT}", cluster.layout.vip).parse().unwrap();
    let own = SocketAddr::new(to.ip(), OWN_PORT);
    std::thread::scope(|scope| {
        let _end = StopWhenDropped(&stop);
        for port in [PLAIN_PORT, OWN_PORT] {
            let stop = &stop;
            let listener = site.inside("director", || TcpListener::bind(("0.0.0.0", port))).unwrap();
            scope.spawn(move || serve(&listener, "host", stop));
        }
        for port_type in PortType::ALL {
            wait_for("the host's own service", || host_answers(site, to) && host_answers(site, own));
            let director = Director::start(site, "director", &["eth0"], port_type, &[]);
            cluster.add_plain_service();
            let refused = site.run("director", &detach).ok();
            assert!(refused.contains("left alone"), "{refused}");
            let source = SocketAddrV4::new(sources()[0], 0);
            let mut client = site.inside("client", || {
                Client::connect(source, to.to_string().parse().unwrap(), Duration::from_secs(10)).unwrap()
            });
            assert!(client.get(true).unwrap().starts_with("node"));
            director.kill();
            assert!(!host_answers(site, to), "{port_type:?}: the host answers for a dead director");
            assert_eq!(site.inside("client", || ask(own)).unwrap(), "host");
            let detached = site.run("director", &detach).ok();
            assert!(detached.contains("eth0: detached"), "{detached}");
            assert!(host_answers(site, to), "{port_type:?}: detached, and the host does not answer");
            assert_eq!(site.run("director", &detach).ok(), "nothing to detach\n");
            // A dead director cannot take its socket away.
            std::fs::remove_file(site.control()).unwrap();
            assert_nothing_left(site, "director", &["eth0".to_owned()]);
        }
    });
}

#[test]
fn a_stopped_director_leaves_nothing() {
    if !is_root() {
        return;
    }
    let cluster = Cluster::new(ONE_ARM);
    let site = &cluster.site;
    let stop = AtomicBool::new(false);
    let to: SocketAddr = format!("{}:{PLAIN_PORT}", cluster.layout.vip).parse().unwrap();
    std::thread::scope(|scope| {
        let stop = &stop;
        let _end = StopWhenDropped(stop);
        let listener = site.inside("director", || TcpListener::bind(("0.0.0.0", PLAIN_PORT))).unwrap();
        scope.spawn(move || serve(&listener, "host", stop));
        wait_for("the host's own service", || host_answers(site, to));
        for port_type in PortType::ALL {
            let director = Director::start(site, "director", &["eth0"], port_type, &[]);
            cluster.add_plain_service();
            let source = SocketAddrV4::new(sources()[0], 0);
            let mut client = site.inside("client", || {
                Client::connect(source, to.to_string().parse().unwrap(), Duration::from_secs(10)).unwrap()
            });
            assert!(client.get(true).unwrap().starts_with("node"));
            let started = Instant::now();
            director.stop();
            assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
            assert_eq!(site.inside("client", || ask(to)).unwrap(), "host", "{port_type:?}");
        }
    });
    assert!(stop.load(Ordering::Relaxed));
}
