//! Services by mark: ports and networks that a mark brings together.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use crate::support::cluster::{CLIENT, Cluster, ONE_ARM, PLAIN_PORT};
use crate::support::director::{Director, PortType};
use crate::support::traffic::{Client, ask, serve};
use crate::support::{StopWhenDropped, is_root};

/// A port of the virtual address that is the host's own, as SSH's is.
const OWN_PORT: u16 = 2222;
/// An address that is nobody's but the real servers'.
const ELSEWHERE: &str = "203.0.113.9";

/// Note 000, with the addresses of note 001, and `iptables` called by its name here.
const NOTE_000: [&str; 5] = [
    "uvs mark -t mangle -A PREROUTING -d 192.168.50.100 -p tcp --dport 80 -j MARK --set-mark 10",
    "ipvsadm -A -f 10 -s rr",
    "ipvsadm -a -f 10 -r 192.168.50.22 -g -w 1",
    "ipvsadm -a -f 10 -r 192.168.50.23 -g -w 1",
    "uvs mark -t mangle -A PREROUTING -d 192.168.50.100 -p tcp --dport 443 -j MARK --set-mark 10",
];

fn two_ports_under_one_mark(port_type: PortType) {
    if !is_root() {
        return;
    }
    let cluster = Cluster::new(ONE_ARM);
    let site = &cluster.site;
    let own = SocketAddr::new(cluster.layout.vip.parse().unwrap(), OWN_PORT);
    let stop = AtomicBool::new(false);
    let stop = &stop;
    std::thread::scope(|scope| {
        let _end = StopWhenDropped(stop);
        let listener = site.inside("director", || TcpListener::bind(("0.0.0.0", OWN_PORT))).unwrap();
        scope.spawn(move || serve(&listener, "host", stop));
        let director = Director::start(site, "director", &["eth0"], port_type, &[]);
        for command in NOTE_000 {
            assert_eq!(director.run(command).ok(), "", "{command}");
        }
        let rows = director.run("ipvsadm -Ln").ok();
        assert!(rows.contains("\nFWM  10 rr\n  -> 192.168.50.2"), "{rows}");
        let by_https = "for i in {1..10}; do curl -m 20 -sS -k https://192.168.20.50; done";
        let answers = site.with_names("client", by_https).ok();
        let answers: Vec<&str> = answers.lines().collect();
        assert_eq!(answers.len(), 10, "{answers:?}");
        assert!(answers.windows(2).all(|pair| pair[0] != pair[1]), "{answers:?}");
        // Each begins over http and is sent on to https: two turns of one service, so that it is always the same node's
        // turn in the end.
        let by_http =
            "for i in {1..6}; do curl -m 20 -sS -k -L -Hhost:www.xuzhichao.com http://192.168.20.50; done";
        let answers = site.with_names("client", by_http).ok();
        let answers: Vec<&str> = answers.lines().collect();
        assert_eq!(answers.len(), 6, "{answers:?}");
        assert!(answers.windows(2).all(|pair| pair[0] == pair[1]), "{answers:?}");
        assert_eq!(site.inside("client", || ask(own)).unwrap(), "host");
        let rules = director.run("uvs mark -t mangle -L -n -v").ok();
        let counts: Vec<&str> =
            rules.lines().skip(2).filter_map(|row| row.split_whitespace().next()).collect();
        assert_eq!(counts, ["6", "16"], "{rules}");

        assert_eq!(director.run("uvs mark -t mangle -F").ok(), "");
        let refused = site.with_names("client", "curl -m 5 -sS -k https://192.168.20.50");
        assert_ne!(refused.status, 0, "without rules, nothing is the service's: {}", refused.stdout);
        director.check();
        director.stop();
    });
}

#[test]
fn two_ports_under_one_mark_over_xdp() {
    two_ports_under_one_mark(PortType::XdpNative);
}

#[test]
fn two_ports_under_one_mark_over_raw_sockets() {
    two_ports_under_one_mark(PortType::Packet);
}

/// Marks for whole networks, one of which is not the director's at all; and what is saved of them, in the next director.
fn networks(port_type: PortType) {
    if !is_root() {
        return;
    }
    let cluster = Cluster::new(ONE_ARM);
    let site = &cluster.site;
    site.run("router", &format!("ip route add 203.0.113.0/24 via {}", cluster.director())).ok();
    for server in ["rs1", "rs2"] {
        site.run(server, &format!("ip addr add {ELSEWHERE}/32 dev lo")).ok();
    }
    let to = SocketAddrV4::new(ELSEWHERE.parse().unwrap(), PLAIN_PORT);
    let own = SocketAddr::new(cluster.layout.vip.parse().unwrap(), OWN_PORT);
    let ask_all = || {
        let source = SocketAddrV4::new(CLIENT.parse::<Ipv4Addr>().unwrap(), 0);
        let once = || Client::connect(source, to, Duration::from_secs(10))?.get(true);
        let answers: Vec<String> = (0..4).map(|_| site.inside("client", once).unwrap()).collect();
        assert!(answers.iter().all(|answer| answer.starts_with("node")), "{answers:?}");
        assert!(answers.windows(2).all(|pair| pair[0] != pair[1]), "{answers:?}");
    };
    let stop = AtomicBool::new(false);
    let stop = &stop;
    std::thread::scope(|scope| {
        let _end = StopWhenDropped(stop);
        let listener = site.inside("director", || TcpListener::bind(("0.0.0.0", OWN_PORT))).unwrap();
        scope.spawn(move || serve(&listener, "host", stop));
        let director = Director::start(site, "director", &["eth0"], port_type, &[]);
        for command in [
            "uvs mark -t mangle -A PREROUTING -d 203.0.113.0/24 -i eth0 -p tcp --dport 8000:9000 -j MARK --set-mark 7",
            // Its network has the virtual address, whose other ports come to the director now, and go on to the host.
            "uvs mark -A PREROUTING -d 192.168.50.96/27 -p tcp -m multiport --dports 7000:7999 -j MARK --set-mark 7",
            "ipvsadm -A -f 7 -s rr",
            "ipvsadm -a -f 7 -r 192.168.50.22",
            "ipvsadm -a -f 7 -r 192.168.50.23",
        ] {
            assert_eq!(director.run(command).ok(), "", "{command}");
        }
        ask_all();
        assert_eq!(site.inside("client", || ask(own)).unwrap(), "host");
        let to_host = || director.stats()["frames"]["to_host"].as_u64().unwrap();
        assert!(to_host() > 0, "the host's own port is in a network that is steered");
        let saved = director.run("ipvsadm-save -n").ok();
        assert!(
            saved.contains("\nmark -t mangle -F PREROUTING\nmark -t mangle -A PREROUTING -d 203."),
            "{saved}"
        );
        director.kill();

        let rules = site.write("saved.rules", &saved);
        let more = ["--rules", rules.to_str().unwrap()];
        let director = Director::start(site, "director", &["eth0"], port_type, &more);
        assert!(director.log().contains("adopted=true"), "{}", director.log());
        assert_eq!(director.run("ipvsadm-save -n").ok(), saved);
        ask_all();
        // Over what is there, nothing doubles.
        director.run(&format!("ipvsadm-restore < {}", rules.display())).ok();
        assert_eq!(director.run("ipvsadm-save -n").ok(), saved);
        ask_all();
        director.check();
        director.stop();
    });
}

#[test]
fn networks_over_xdp() {
    networks(PortType::XdpNative);
}

#[test]
fn networks_over_raw_sockets() {
    networks(PortType::Packet);
}
