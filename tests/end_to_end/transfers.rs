//! What clients do with a cluster, whichever way packets get to its real servers: pages over http and https, files of 20
//! MB there and back, names by UDP. And direct routing, the plainest of these ways.

use std::collections::BTreeSet;

use uvs::types::{Family, ForwardingMethod};

use crate::support::cluster::{Cluster, Layout, ONE_ARM, PLAIN_PORT, TWO_ARMS_6, socket};
use crate::support::director::Director;
use crate::support::{Process, is_root};

/// Bytes of a large file.
const LARGE: u64 = 20_000_000;
/// Where name servers listen.
const NAMES_PORT: u16 = 53;

/// A virtual service: the option that selects it, its port, and that of the real servers.
#[derive(Clone, Copy, Debug)]
struct Service(&'static str, u16, u16);

/// Pages, and names; files by the last of the TCP services. NAT can translate ports, so it does.
fn services(cluster: &Cluster) -> [Service; 4] {
    match cluster.layout.forwarding {
        ForwardingMethod::Masquerading => [
            Service("-t", 80, 80),
            Service("-t", 443, 443),
            Service("-t", 81, PLAIN_PORT),
            Service("-u", NAMES_PORT, 5353),
        ],
        _ => [
            Service("-t", 80, 80),
            Service("-t", 443, 443),
            Service("-t", PLAIN_PORT, PLAIN_PORT),
            Service("-u", NAMES_PORT, NAMES_PORT),
        ],
    }
}

/// Starts the name servers, and a file to send and to fetch.
fn prepare(cluster: &Cluster) -> Vec<Process> {
    let [.., names] = services(cluster);
    cluster.site.set_name_server("client", cluster.layout.vip);
    let large = cluster.site.path("large");
    cluster.site.run("client", &format!("head -c {LARGE} /dev/urandom > {}", large.display())).ok();
    let start = |number| {
        std::os::unix::fs::symlink(&large, cluster.files(number).join("large")).unwrap();
        cluster.serve_names(number, names.2)
    };
    cluster.numbers().map(start).collect()
}

/// Does all of it with services whose real servers are reached by `method`, as in `-m`, and takes them away again.
pub(crate) fn transfer(cluster: &Cluster, director: &Director<'_>, method: &str) {
    let services = services(cluster);
    let [.., files, names] = services;
    for Service(option, port, server_port) in services {
        let service = format!("{option} {}", cluster.layout.service(port));
        cluster.configure(&[format!("ipvsadm -A {service} -s rr")]);
        for number in cluster.numbers() {
            let server = socket(&cluster.server(number), server_port);
            cluster.configure(&[format!("ipvsadm -a {service} -r {server} {method}")]);
        }
    }
    // What an earlier transfer has learnt of the way's MTU.
    cluster.site.run("client", "ip -4 route flush cache; ip -6 route flush cache").ok();
    pages(cluster, director);
    large_files(cluster, director, files.1);
    look_up_names(cluster);
    for Service(option, port, _) in services {
        let row = statistics(director, option, &cluster.layout.service(port));
        let enough = if port == files.1 { LARGE } else { 0 };
        assert!(row.connections >= 2 && row.bytes_in > enough, "{row:?}");
        match cluster.layout.forwarding {
            ForwardingMethod::Masquerading => {
                assert!(row.packets_out > 0 && row.bytes_out > enough, "{row:?}");
            }
            _ => assert_eq!((row.packets_out, row.bytes_out), (0, 0), "answers bypass the director"),
        }
    }
    assert_eq!(names.1, NAMES_PORT, "where resolvers ask");
    director.check();
    cluster.configure(&["ipvsadm -C"]);
}

/// Both real servers by turns, over http and https.
fn pages(cluster: &Cluster, director: &Director<'_>) {
    for (scheme, port) in [("http", 80), ("https", 443)] {
        let ask = || {
            let url = format!("{scheme}://{}/", cluster.layout.service(port));
            let line = format!("curl -g -m 20 -sS -k -o /dev/null -w '%header{{x-node}}' {url}");
            let finished = cluster.site.run("client", &line);
            assert_eq!(finished.status, 0, "{url}: {}\n{:#}", finished.stderr, director.stats());
            finished.stdout
        };
        let answers: Vec<String> = (0..4).map(|_| ask()).collect();
        assert!(answers.iter().all(|node| node.starts_with("node")), "{scheme}: {answers:?}");
        assert!(answers.windows(2).all(|pair| pair[0] != pair[1]), "{scheme}: {answers:?}");
    }
}

/// The large file from a real server and to one, neither changed on its way.
fn large_files(cluster: &Cluster, director: &Director<'_>, port: u16) {
    let site = &cluster.site;
    let (large, fetched) = (site.path("large"), site.path("fetched"));
    let sum = |path: &std::path::Path| {
        let line = site.run("client", &format!("sha256sum {}", path.display())).ok();
        line.split_whitespace().next().unwrap().to_owned()
    };
    let curl = |what: String| {
        let line = format!("curl -g -m 50 -sS -f -w '%header{{x-node}}' {what}");
        let finished = site.run("client", &line);
        assert_eq!(finished.status, 0, "{what}: {}\n{:#}", finished.stderr, director.stats());
        finished.stdout.trim().to_owned()
    };
    let url = format!("http://{}", cluster.layout.service(port));
    let from = curl(format!("-o {} {url}/large", fetched.display()));
    assert_eq!(sum(&fetched), sum(&large), "fetched from {from}");
    let to = curl(format!("-T {} {url}/sent", large.display()));
    let number = to.strip_prefix("node").and_then(|number| number.parse().ok()).expect("a node's name");
    let sent = cluster.files(number).join("sent");
    assert_eq!(sum(&sent), sum(&large), "sent to {to}");
    std::fs::remove_file(sent).unwrap();
}

/// The system's own resolver asks by UDP, each time from another port, and hears from every real server.
fn look_up_names(cluster: &Cluster) {
    let database = match cluster.layout.family() {
        Family::V4 => "ahostsv4",
        Family::V6 => "ahostsv6",
    };
    let look_up = || {
        let answer = cluster.site.with_names("client", &format!("getent {database} node.test"));
        answer.ok().split_whitespace().next().unwrap().to_owned()
    };
    let answers: BTreeSet<String> = cluster.numbers().map(|_| look_up()).collect();
    assert_eq!(answers, cluster.numbers().map(|number| cluster.answer(number)).collect());
}

/// A row of `ipvsadm -Ln --stats`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Statistics {
    pub(crate) connections: u64,
    pub(crate) packets_out: u64,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
}

/// What is counted of a virtual service.
#[track_caller]
pub(crate) fn statistics(director: &Director<'_>, option: &str, service: &str) -> Statistics {
    let protocol = if option == "-u" { "UDP" } else { "TCP" };
    let listing = director.run("ipvsadm -Ln --stats --exact").ok();
    let rows = listing.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let row = rows.into_iter().find(|row| row.starts_with(&[protocol, service]));
    let row = row.unwrap_or_else(|| panic!("{service} is not listed: {listing}"));
    let numbers: Vec<u64> = row[2..].iter().map(|number| number.parse().unwrap()).collect();
    let &[connections, _, packets_out, bytes_in, bytes_out] = &numbers[..] else { panic!("{listing}") };
    Statistics { connections, packets_out, bytes_in, bytes_out }
}

/// A cluster whose servers have everything that is transferred, and directors in turn.
pub(crate) fn with_files_and_names(layout: Layout, test: impl Fn(&Cluster, &Director<'_>)) {
    if is_root() {
        let cluster = Cluster::new(layout);
        let _names = prepare(&cluster);
        cluster.with_directors(|director| test(&cluster, director));
    }
}

#[test]
fn direct_routing() {
    with_files_and_names(ONE_ARM, |cluster, director| transfer(cluster, director, "-g"));
}

#[test]
fn direct_routing_over_ipv6() {
    with_files_and_names(TWO_ARMS_6, |cluster, director| transfer(cluster, director, "-g"));
}
