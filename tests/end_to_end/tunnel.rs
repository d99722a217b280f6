//! Tunnels: real servers take the clients' packets out of others, and answer past the director.

use std::collections::BTreeSet;

use uvs::types::ForwardingMethod::Tunnel;
use uvs::types::TunnelKind;

use crate::support::Process;
use crate::support::cluster::{
    Cluster, GUE_PORT, Layout, MORE_CLIENTS, ONE_ARM, ONE_ARM_6, THREE_SERVERS, with_directors,
};
use crate::support::director::Director;
use crate::transfers::{transfer, with_files_and_names};

/// A client's largest packet, in bytes, as long as it knows nothing of tunnels.
const MTU: u32 = 1500;

/// The largest packet that the client's kernel believes the way to the virtual address takes, where it has learnt it.
fn learnt_mtu(cluster: &Cluster) -> Option<u32> {
    let route = cluster.site.run("client", &format!("ip route get {}", cluster.layout.vip)).ok();
    let mut words = route.split_whitespace().skip_while(|word| *word != "mtu");
    words.nth(1).map(|mtu| mtu.parse().unwrap())
}

/// How much every real server has taken out of tunnels of a kind.
fn decapsulated(cluster: &Cluster, kind: TunnelKind) -> Vec<u64> {
    cluster.numbers().map(|number| cluster.decapsulated(number, kind)).collect()
}

/// Everything through tunnels of one type. The large file's segments are too big for the tunnel at first, and must not
/// be fragmented: the client learns of it from the director, and of nobody else.
fn through(cluster: &Cluster, director: &Director<'_>, options: &str, kind: TunnelKind, overhead: u32) {
    let before = decapsulated(cluster, kind);
    let told = director.stats();
    transfer(cluster, director, &format!("-i {options}"));
    let after = decapsulated(cluster, kind);
    assert!(before.iter().zip(&after).all(|(before, after)| after > before), "{before:?}, then {after:?}");
    assert_eq!(learnt_mtu(cluster), Some(MTU - overhead), "{options}, before: {told:#}");
}

#[test]
fn ip_in_ip() {
    with_files_and_names(ONE_ARM.by(Tunnel), |cluster, director| {
        through(cluster, director, "", TunnelKind::Ipip, 20);
    });
}

#[test]
fn ip_in_ip_over_ipv6() {
    with_files_and_names(ONE_ARM_6.by(Tunnel), |cluster, director| {
        through(cluster, director, "--tun-type ipip", TunnelKind::Ipip, 40);
    });
}

#[test]
fn gue_and_gre() {
    with_files_and_names(ONE_ARM.by(Tunnel), |cluster, director| {
        let gue = format!("--tun-type gue --tun-port {GUE_PORT}");
        through(cluster, director, &format!("{gue} --tun-nocsum"), TunnelKind::Gue, 20 + 8 + 4);
        through(cluster, director, &format!("{gue} --tun-csum"), TunnelKind::Gue, 20 + 8 + 4);
        through(cluster, director, "--tun-type gre", TunnelKind::Gre, 20 + 4);
        through(cluster, director, "--tun-type gre --tun-csum", TunnelKind::Gre, 20 + 8);
    });
}

#[test]
fn gue_and_gre_over_ipv6() {
    with_files_and_names(ONE_ARM_6.by(Tunnel), |cluster, director| {
        let gue = format!("--tun-type gue --tun-port {GUE_PORT} --tun-csum");
        through(cluster, director, &gue, TunnelKind::Gue, 40 + 8 + 4);
        through(cluster, director, "--tun-type gre", TunnelKind::Gre, 40 + 4);
    });
}

/// Note 002: sticky http under TUN.
#[test]
fn note_002_sticky_http() {
    const LAYOUT: Layout = THREE_SERVERS.by(Tunnel);
    with_directors(LAYOUT, |cluster, director| {
        cluster.configure(&[
            "ipvsadm -A -t virtualdomain:www -p",
            "ipvsadm -a -t virtualdomain:www -r 192.168.1.2 -i",
            "ipvsadm -a -t virtualdomain:www -r 192.168.1.3 -i",
            "ipvsadm -a -t virtualdomain:www -r 192.168.1.4 -i",
        ]);
        let before: u64 = decapsulated(cluster, TunnelKind::Ipip).iter().sum();
        let ask = || {
            let line =
                format!("curl -m 20 -sS -o /dev/null -w '%header{{x-node}}' http://{}/", cluster.layout.vip);
            cluster.site.run("client", &line).ok()
        };
        let first = ask();
        assert!(first.starts_with("node"), "{first:?}");
        assert!((0..5).all(|_| ask() == first), "a client stays with its real server");
        let listing = director.run("ipvsadm -Ln").ok();
        assert_eq!(listing.lines().filter(|line| line.contains(" Tunnel ")).count(), 3, "{listing}");
        let after: u64 = decapsulated(cluster, TunnelKind::Ipip).iter().sum();
        assert!(after >= before + 6 * 4, "{before}, then {after}");
    });
}

/// FTP under TUN: a client's control and data connections, passive in either way, go to one real server.
#[test]
fn sticky_ftp() {
    const LAYOUT: Layout = THREE_SERVERS.by(Tunnel);
    with_directors(LAYOUT, |cluster, director| {
        let _servers: Vec<Process> = cluster.numbers().map(|number| cluster.serve_ftp(number)).collect();
        cluster.configure(&[
            "ipvsadm -A -t virtualdomain:ftp -s rr -p 540",
            "ipvsadm -a -t virtualdomain:ftp -r 192.168.1.2 -i",
            "ipvsadm -a -t virtualdomain:ftp -r 192.168.1.3 -i",
            "ipvsadm -a -t virtualdomain:ftp -r 192.168.1.4 -i",
        ]);
        let mut nodes = BTreeSet::new();
        for last in MORE_CLIENTS {
            let fetch = |more: &str| {
                let url = format!("ftp://{}/node", cluster.layout.vip);
                let line = format!("curl -m 20 -sS --interface 192.168.20.{last} {more} {url}");
                cluster.site.run("client", &line).ok()
            };
            let node = fetch("");
            assert!(node.starts_with("node"), "{node:?}");
            assert_eq!(fetch("--disable-epsv"), node);
            nodes.insert(node);
        }
        assert_eq!(nodes.len(), 3, "{nodes:?}");
        assert_eq!(director.dropped("unsegmented"), 0);
    });
}
