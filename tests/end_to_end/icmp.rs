//! ICMP errors about replies, which reach the real server that has to hear of them.

use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::AtomicBool;

use crate::support::cluster::{CLIENT, Cluster, ONE_ARM};
use crate::support::director::{Director, PortType};
use crate::support::traffic::{ask, ping, serve};
use crate::support::{StopWhenDropped, is_root};

const PORT: u16 = 9000;
/// Bytes that fit the link between router and client: fewer than the real server, whose own link takes 1500, knows.
const MTU: u32 = 1200;

/// The real server's replies are too large for the router's link to the client. The router says so to the virtual address;
/// the director's host, which has it, sent nothing and could do nothing.
fn a_smaller_mtu_near_the_client(port_type: PortType) {
    if !is_root() {
        return;
    }
    let cluster = Cluster::new(ONE_ARM);
    let site = &cluster.site;
    let vip = cluster.layout.vip;
    site.run("router", &format!("ip link set eth0 mtu {MTU}")).ok();
    // Without guessing at what goes through, the server depends on being told.
    for name in ["rs1", "rs2"] {
        site.run(name, "sysctl -qw net.ipv4.tcp_mtu_probing=0").ok();
    }
    let address: SocketAddr = format!("{vip}:{PORT}").parse().unwrap();
    let text = "0123456789".repeat(30_000);
    let stop = AtomicBool::new(false);
    let (text, stop) = (&text, &stop);
    std::thread::scope(|scope| {
        let _end = StopWhenDropped(stop);
        for name in ["rs1", "rs2"] {
            let listener = site.inside(name, || TcpListener::bind(address)).unwrap();
            scope.spawn(move || serve(&listener, text, stop));
        }
        let rules = format!(
            "-A -t {address} -s rr\n-a -t {address} -r {}:{PORT} -g\n-a -t {address} -r {}:{PORT} -g\n",
            cluster.server(1),
            cluster.server(2)
        );
        let rules = site.write("rules", &rules);
        let more = ["--rules", rules.to_str().unwrap()];
        let director = Director::start(site, "director", &["eth0"], port_type, &more);
        for turn in 0..2 {
            let answer = site.inside("client", || ask(address)).unwrap();
            assert!(answer == *text, "turn {turn}: {} bytes", answer.len());
        }
        let unreachable = |name| site.snmp(name, "Icmp", "InDestUnreachs");
        let told = site.snmp("router", "Icmp", "OutDestUnreachs");
        assert!(told >= 2, "the router told {told} times");
        for name in ["rs1", "rs2"] {
            assert!(unreachable(name) >= 1, "{name} was not told");
            let route = site.run(name, &format!("ip route get {CLIENT} from {vip}")).ok();
            assert!(route.contains(&format!("mtu {MTU}")), "{name}: {route}");
        }
        assert_eq!(unreachable("rs1") + unreachable("rs2"), told, "each of them got there");
        assert_eq!(unreachable("director"), 0, "and none to the host");
        // Whose other ICMP still is.
        let echoes = || site.snmp("director", "Icmp", "InEchos");
        let before = echoes();
        let answered = site.inside("client", || {
            (0..5).any(|sequence| {
                ping(vip.parse().unwrap(), sequence, std::time::Duration::from_secs(3)).unwrap()
            })
        });
        assert!(answered && echoes() > before, "the host answers echoes");
        director.check();
        director.stop();
    });
}

#[test]
fn a_smaller_mtu_near_the_client_by_native_xdp() {
    a_smaller_mtu_near_the_client(PortType::XdpNative);
}

#[test]
fn a_smaller_mtu_near_the_client_by_packet_sockets() {
    a_smaller_mtu_near_the_client(PortType::Packet);
}
