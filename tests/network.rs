//! The mirror of the kernel's tables against a real kernel, in network namespaces.

use std::collections::BTreeSet;
use std::net::{IpAddr, UdpSocket};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use uvs::forward::{NextHop, NextHopError, Way};
use uvs::lab::{Namespace, VethEnd, add_veth};
use uvs::net::message::{Request, octets};
use uvs::net::{
    Mirror, NeighbourEntry, Netlink, NetworkState, Notifications, Received, StartError, constants as k,
};
use uvs::types::{MacAddress, PortId, Prefix};

const PATIENCE: Duration = Duration::from_secs(15);

/// Whether the test can run. Without root it is skipped, loudly, unless `UVS_REQUIRE_ROOT` forbids that.
fn root() -> bool {
    if rustix::process::geteuid().is_root() {
        return true;
    }
    assert!(std::env::var_os("UVS_REQUIRE_ROOT").is_none_or(|value| value != "1"), "needs root");
    eprintln!("SKIPPED: needs root, to make network namespaces");
    false
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

fn mac(last: u8) -> MacAddress {
    MacAddress([0x02, 0x55, 0, 0, 0, last])
}

fn namespace(role: &str) -> Namespace {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    Namespace::create(&format!("uvs-nettest-{}-{count}-{role}", std::process::id())).unwrap()
}

/// A director's namespace and a peer's, joined by eth0 (given to the director, 10.7.0.1/24 and 2001:db8:7::1/64)
/// and eth1 (not given to it, 10.8.0.1/24). The peer has .2 on both.
struct Pair {
    director: Namespace,
    peer: Namespace,
}

impl Pair {
    fn new() -> Self {
        let pair = Self { director: namespace("director"), peer: namespace("peer") };
        for (number, name) in [(0_u8, "eth0"), (1, "eth1")] {
            pair.connect(name, number);
        }
        pair
    }

    fn connect(&self, name: &str, number: u8) {
        let end = |namespace, last| VethEnd { namespace, name, mac: mac(last), queues: 2 };
        add_veth(&end(&self.director, 1 + 16 * number), &end(&self.peer, 2 + 16 * number)).unwrap();
        for (namespace, last) in [(&self.director, 1), (&self.peer, 2)] {
            namespace.add_address(name, prefix(&format!("10.{}.0.{last}/24", 7 + number))).unwrap();
            if number == 0 {
                namespace.add_address(name, prefix(&format!("2001:db8:7::{last}/64"))).unwrap();
            }
            namespace.set_up(name, true).unwrap();
            namespace.set_up("lo", true).unwrap();
        }
    }

    fn mirror(&self, wanted: &[&str]) -> Mirror {
        let interfaces = vec![(PortId(0), "eth0".to_owned())];
        let mirror = self.director.run(|| Mirror::start(interfaces)).unwrap().unwrap();
        want(&mirror, wanted);
        mirror
    }
}

fn want(mirror: &Mirror, wanted: &[&str]) {
    mirror.want(wanted.iter().map(|text| ip(text)).collect::<BTreeSet<_>>());
    assert!(mirror.settle(PATIENCE), "the kernel was not asked in time");
}

/// Waits until the snapshot is as wanted, woken by the mirror's own channel.
#[track_caller]
fn wait(mirror: &Mirror, what: &str, right: impl Fn(&NetworkState) -> bool) {
    let changed = mirror.changed();
    let deadline = Instant::now() + PATIENCE;
    while !right(&mirror.snapshot()) {
        assert!(
            changed.recv_deadline(deadline).is_ok() || right(&mirror.snapshot()),
            "{what}: {:#?}",
            mirror.snapshot()
        );
    }
}

#[track_caller]
fn wait_hop(mirror: &Mirror, destination: &str, right: impl Fn(NextHop) -> bool) {
    let destination = ip(destination);
    wait(mirror, "next hop", |state| state.next_hops.get(&destination).is_some_and(|&hop| right(hop)));
}

fn ready(destination: MacAddress) -> NextHop {
    NextHop::Ready { port: PortId(0), source: mac(1), destination, vlan: None, mtu: 1500 }
}

#[test]
fn on_link_by_gateway_and_in_both_families() {
    if !root() {
        return;
    }
    let pair = Pair::new();
    pair.director.add_route(prefix("198.51.100.0/24"), ip("10.7.0.2")).unwrap();
    pair.director.add_route(prefix("203.0.113.0/24"), ip("2001:db8:7::2")).unwrap_err();
    pair.director.add_route(prefix("2001:db8:100::/48"), ip("2001:db8:7::2")).unwrap();
    let wanted = ["10.7.0.2", "198.51.100.9", "2001:db8:7::2", "2001:db8:100::9"];
    let mirror = pair.mirror(&wanted);
    for destination in wanted {
        wait_hop(&mirror, destination, |hop| hop == ready(mac(2)));
    }
    let state = mirror.snapshot();
    assert_eq!(state.sources[&ip("198.51.100.9")], ip("10.7.0.1"));
    assert_eq!(state.sources[&ip("2001:db8:100::9")], ip("2001:db8:7::1"));
    let port = state.port(PortId(0)).unwrap();
    assert_eq!((port.name.as_str(), port.mac, port.mtu, port.up), ("eth0", mac(1), 1500, true));
    assert_eq!((port.receive_queues, port.transmit_queues), (2, 2));
    assert!(port.addresses.contains(&prefix("10.7.0.1/24")), "{:?}", port.addresses);
    // No other destination, no other neighbour.
    want(&mirror, &["10.7.0.2"]);
    assert_eq!(mirror.snapshot().next_hops.len(), 1);
}

#[test]
fn what_is_local_foreign_or_without_route() {
    if !root() {
        return;
    }
    let pair = Pair::new();
    let mirror = pair.mirror(&["10.7.0.1", "10.8.0.2", "192.0.2.1", "2001:db8:dead::1", "127.0.0.1"]);
    wait_hop(&mirror, "10.7.0.1", |hop| hop == NextHop::Local);
    wait_hop(&mirror, "127.0.0.1", |hop| hop == NextHop::Local);
    wait_hop(&mirror, "10.8.0.2", |hop| hop == NextHop::Failed(NextHopError::ForeignInterface));
    wait_hop(&mirror, "192.0.2.1", |hop| hop == NextHop::Failed(NextHopError::NoRoute));
    wait_hop(&mirror, "2001:db8:dead::1", |hop| hop == NextHop::Failed(NextHopError::NoRoute));
    for (address, expected) in [
        ("10.7.0.1", true),
        ("10.8.0.1", true),
        ("127.9.9.9", true),
        ("2001:db8:7::1", true),
        ("10.7.0.2", false),
    ] {
        assert_eq!(mirror.snapshot().is_local(ip(address)), expected, "{address}");
    }
    assert!(mirror.snapshot().local_addresses.contains(&ip("10.8.0.1")));

    // An address comes and goes.
    quiet(&pair);
    pair.director.add_address("eth0", prefix("192.0.2.1/32")).unwrap();
    wait(&mirror, "added address", |state| state.is_local(ip("192.0.2.1")));
    wait_hop(&mirror, "192.0.2.1", |hop| hop == NextHop::Local);
    pair.director.delete_address("eth0", prefix("192.0.2.1/32")).unwrap();
    wait(&mirror, "removed address", |state| !state.is_local(ip("192.0.2.1")));
    wait_hop(&mirror, "192.0.2.1", |hop| hop == NextHop::Failed(NextHopError::NoRoute));
}

#[test]
fn routes_that_come_change_and_go_are_followed() {
    if !root() {
        return;
    }
    let pair = Pair::new();
    pair.peer.add_address("eth0", prefix("10.7.0.3/24")).unwrap();
    let mirror = pair.mirror(&["198.51.100.9"]);
    let no_route = NextHop::Failed(NextHopError::NoRoute);
    wait_hop(&mirror, "198.51.100.9", |hop| hop == no_route);
    quiet(&pair);
    pair.director.add_route(prefix("198.51.100.0/24"), ip("10.7.0.3")).unwrap();
    wait_hop(&mirror, "198.51.100.9", |hop| hop == ready(mac(2)));
    pair.director.add_route(prefix("198.51.100.9/32"), ip("10.8.0.2")).unwrap();
    wait_hop(&mirror, "198.51.100.9", |hop| hop == NextHop::Failed(NextHopError::ForeignInterface));
    pair.director.delete_route(prefix("198.51.100.9/32")).unwrap();
    wait_hop(&mirror, "198.51.100.9", |hop| hop == ready(mac(2)));
    pair.director.delete_route(prefix("198.51.100.0/24")).unwrap();
    wait_hop(&mirror, "198.51.100.9", |hop| hop == no_route);
}

/// Makes changes in the director's namespace that the lab has no need for.
fn change(pair: &Pair, request: Request) {
    pair.director
        .run(|| Netlink::open().unwrap().change("change the test's network", request).unwrap())
        .unwrap();
}

/// Waits until the kernel has nothing more to tell of the links that were just made (duplicate address
/// detection, link states). Only then does a change by the test stand alone: the mirror reads everything again
/// for any of these.
fn quiet(pair: &Pair) {
    const SILENCE: Duration = Duration::from_millis(1500);
    let mut notifications = pair.director.run(|| Notifications::open(1 << 20).unwrap()).unwrap();
    let begin = Instant::now();
    let mut last = begin;
    while last.elapsed() < SILENCE {
        assert!(begin.elapsed() < PATIENCE, "the kernel never falls silent");
        let heard = notifications.receive(|message| {
            if !matches!(message.kind, k::RTM_NEWNEIGH | k::RTM_DELNEIGH) {
                last = Instant::now();
            }
        });
        if heard.unwrap() == Received::Nothing {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn rules_and_route_metrics_count() {
    if !root() {
        return;
    }
    const RULE_UNREACHABLE: u8 = 7;
    const RULE_DESTINATION: u16 = 1;
    const RULE_PRIORITY: u16 = 6;
    let pair = Pair::new();
    let route = [k::AF_INET, 24, 0, 0, k::RT_TABLE_MAIN, k::RTPROT_STATIC, 0, k::RTN_UNICAST, 0, 0, 0, 0];
    let route = Request::new(k::RTM_NEWROUTE, k::NLM_F_CREATE, &route)
        .attribute(k::RTA_DST, &octets(ip("198.51.100.0")))
        .attribute(k::RTA_GATEWAY, &octets(ip("10.7.0.2")))
        .nested(k::RTA_METRICS, |request| request.number(k::RTAX_MTU, 1300));
    change(&pair, route);
    let mirror = pair.mirror(&["198.51.100.9"]);
    let narrow = |hop| matches!(hop, NextHop::Ready { mtu: 1300, destination, .. } if destination == mac(2));
    wait_hop(&mirror, "198.51.100.9", narrow);
    let rule = |kind, flags| {
        Request::new(kind, flags, &[k::AF_INET, 24, 0, 0, 0, 0, 0, RULE_UNREACHABLE, 0, 0, 0, 0])
            .attribute(RULE_DESTINATION, &octets(ip("198.51.100.0")))
            .number(RULE_PRIORITY, 10)
    };
    quiet(&pair);
    change(&pair, rule(k::RTM_NEWRULE, k::NLM_F_CREATE | k::NLM_F_EXCL));
    wait_hop(&mirror, "198.51.100.9", |hop| hop == NextHop::Failed(NextHopError::NoRoute));
    change(&pair, rule(k::RTM_DELRULE, 0));
    wait_hop(&mirror, "198.51.100.9", narrow);
}

#[test]
fn whole_networks_can_be_local_but_only_in_the_local_table() {
    if !root() {
        return;
    }
    let pair = Pair::new();
    let mirror = pair.mirror(&[]);
    let local = |table: u8, network: &str| {
        let fixed = [k::AF_INET, 24, 0, 0, table, k::RTPROT_STATIC, 254, k::RTN_LOCAL, 0, 0, 0, 0];
        let index = pair.director.link("lo").unwrap().index;
        let request = Request::new(k::RTM_NEWROUTE, k::NLM_F_CREATE, &fixed);
        change(&pair, request.attribute(k::RTA_DST, &octets(ip(network))).number(k::RTA_OIF, index));
    };
    quiet(&pair);
    // A transparent proxy's table, which only a rule leads to, comes first: once the other is seen, so was it.
    local(100, "203.0.113.0");
    local(k::RT_TABLE_LOCAL, "198.51.100.0");
    wait(&mirror, "local network", |state| state.is_local(ip("198.51.100.77")));
    assert!(!mirror.snapshot().is_local(ip("203.0.113.77")));
}

#[test]
fn entries_that_an_operator_made_stay_and_those_he_removed_come_back() {
    if !root() {
        return;
    }
    let pair = Pair::new();
    let index = pair.director.link("eth0").unwrap().index;
    let entry = |kind, flags, state: u16, address: &str| {
        let mut fixed = [0; k::NEIGHBOUR_FIXED];
        fixed[0] = k::AF_INET;
        fixed[4..8].copy_from_slice(&index.to_ne_bytes());
        fixed[8..10].copy_from_slice(&state.to_ne_bytes());
        Request::new(kind, flags, &fixed).attribute(k::NDA_DST, &octets(ip(address)))
    };
    let fixed = entry(k::RTM_NEWNEIGH, k::NLM_F_CREATE, k::NUD_PERMANENT, "10.7.0.50");
    change(&pair, fixed.attribute(k::NDA_LLADDR, &mac(50).0));
    let mirror = pair.mirror(&["10.7.0.2", "10.7.0.50"]);
    wait_hop(&mirror, "10.7.0.50", |hop| hop == ready(mac(50)));
    wait_hop(&mirror, "10.7.0.2", |hop| hop == ready(mac(2)));
    for _ in 0..3 {
        let changed = mirror.changed();
        change(&pair, entry(k::RTM_DELNEIGH, 0, 0, "10.7.0.2"));
        changed.recv_timeout(PATIENCE).unwrap();
        wait_hop(&mirror, "10.7.0.2", |hop| hop == ready(mac(2)));
    }
    // Longer than the interval at which neighbours are asked for: the operator's entry is still the operator's.
    std::thread::sleep(Duration::from_millis(1500));
    let look = entry(k::RTM_GETNEIGH, 0, 0, "10.7.0.50");
    let mut found = None;
    pair.director
        .run(|| {
            let mut netlink = Netlink::open().unwrap();
            netlink.get("look", look, |message| found = NeighbourEntry::decode(message)).unwrap();
        })
        .unwrap();
    assert_eq!(found.map(|entry| (entry.state, entry.mac)), Some((k::NUD_PERMANENT, Some(mac(50)))));
}

#[test]
fn a_neighbour_that_changes_its_address_or_falls_silent_is_noticed() {
    if !root() {
        return;
    }
    let pair = Pair::new();
    // The kernel's own pace would make this test minutes long.
    for (name, value) in
        [("base_reachable_time_ms", "1000"), ("delay_first_probe_time", "1"), ("retrans_time_ms", "200")]
    {
        pair.director.set_sysctl(&format!("ipv4/neigh/eth0/{name}"), value).unwrap();
    }
    let mirror = pair.mirror(&["10.7.0.2", "10.7.0.77"]);
    wait_hop(&mirror, "10.7.0.2", |hop| hop == ready(mac(2)));
    // Nobody has this address; once somebody does, it is found without anything being asked for anew.
    let failed = NextHop::Failed(NextHopError::NeighbourFailed);
    wait_hop(&mirror, "10.7.0.77", |hop| hop == failed);
    pair.peer.add_address("eth0", prefix("10.7.0.77/24")).unwrap();
    wait_hop(&mirror, "10.7.0.77", |hop| hop == ready(mac(2)));

    // Nothing but the mirror keeps the entries alive, so only it can have found this out.
    pair.peer.set_mac("eth0", mac(99)).unwrap();
    wait_hop(&mirror, "10.7.0.2", |hop| hop == ready(mac(99)));
    pair.peer.delete_address("eth0", prefix("10.7.0.77/24")).unwrap();
    wait_hop(&mirror, "10.7.0.77", |hop| hop == failed);
    wait_hop(&mirror, "10.7.0.2", |hop| hop == ready(mac(99)));
}

#[test]
fn routes_to_networks_are_followed_with_their_gateways() {
    if !root() {
        return;
    }
    let pair = Pair::new();
    let mirror = pair.mirror(&[]);
    assert_eq!(mirror.snapshot().ways, []);
    let way = |state: &NetworkState, address: &str| {
        state.routes.find(ip(address)).and_then(|route| state.ways.get(route as usize).copied())
    };
    let change = |arguments: &str| {
        let mut command = std::process::Command::new("ip");
        let status = pair.director.spawn(command.args(arguments.split(' '))).unwrap().wait().unwrap();
        assert!(status.success(), "ip {arguments}");
    };
    change("route add default via 10.7.0.2");
    change("route add 192.0.2.0/24 via 10.8.0.2");
    change("route add blackhole 198.51.100.0/24");
    change("-6 route add default via 2001:db8:7::2");
    mirror.want_networks();
    assert!(mirror.settle(PATIENCE));
    let through = Some(Way::Through(ready(mac(2))));
    wait(&mirror, "the gateways", |state| {
        [way(state, "203.0.113.9"), way(state, "2001:db8:9::9")] == [through; 2]
    });
    let state = mirror.snapshot();
    let failed = |error| Some(Way::Through(NextHop::Failed(error)));
    for (address, expected) in [
        ("10.7.0.77", Some(Way::OnLink)),
        ("2001:db8:7::77", Some(Way::OnLink)),
        ("192.0.2.9", failed(NextHopError::ForeignInterface)),
        ("198.51.100.9", failed(NextHopError::NoRoute)),
    ] {
        assert_eq!(way(&state, address), expected, "{address}");
    }
    // A better route, and one that is gone.
    change("route add 203.0.113.0/24 dev eth0");
    wait(&mirror, "the new route", |state| way(state, "203.0.113.9") == Some(Way::OnLink));
    change("route del default");
    wait(&mirror, "the route's end", |state| way(state, "8.8.8.8").is_none());
    pair.peer.set_up("eth0", false).unwrap();
    wait(&mirror, "the gateway's link down", |state| {
        way(state, "2001:db8:9::9") == failed(NextHopError::PortDown)
    });
}

#[test]
fn entries_in_use_are_kept_fresh_although_the_kernel_sees_no_traffic() {
    if !root() {
        return;
    }
    let pair = Pair::new();
    for (name, value) in [("base_reachable_time_ms", "500"), ("delay_first_probe_time", "1")] {
        pair.director.set_sysctl(&format!("ipv4/neigh/eth0/{name}"), value).unwrap();
    }
    let mirror = pair.mirror(&["10.7.0.2"]);
    wait_hop(&mirror, "10.7.0.2", |hop| hop == ready(mac(2)));
    // Several reachable times later, the next hop never faltered.
    let changed = mirror.changed();
    let end = Instant::now() + Duration::from_secs(5);
    while changed.recv_deadline(end).is_ok() {
        assert_eq!(mirror.snapshot().next_hops[&ip("10.7.0.2")], ready(mac(2)));
    }
}

#[test]
fn an_interface_that_goes_down_or_is_replaced_is_followed_by_its_name() {
    if !root() {
        return;
    }
    let pair = Pair::new();
    let mirror = pair.mirror(&["10.7.0.2"]);
    wait_hop(&mirror, "10.7.0.2", |hop| hop == ready(mac(2)));
    let before = mirror.snapshot().ports[0].ifindex;
    // The other end goes down: no carrier, the route stays.
    pair.peer.set_up("eth0", false).unwrap();
    wait(&mirror, "port down", |state| !state.ports[0].up);
    wait_hop(&mirror, "10.7.0.2", |hop| hop == NextHop::Failed(NextHopError::PortDown));
    pair.peer.set_up("eth0", true).unwrap();
    wait_hop(&mirror, "10.7.0.2", |hop| hop == ready(mac(2)));
    // The interface is removed: the port stays, under what it was.
    pair.director.delete_link("eth0").unwrap();
    wait(&mirror, "port gone", |state| state.ports[0].ifindex.is_none() && !state.ports[0].up);
    wait_hop(&mirror, "10.7.0.2", |hop| hop == NextHop::Failed(NextHopError::NoRoute));
    assert_eq!(mirror.snapshot().ports[0].mac, mac(1));
    pair.connect("eth0", 0);
    wait_hop(&mirror, "10.7.0.2", |hop| hop == ready(mac(2)));
    let after = mirror.snapshot().ports[0].ifindex;
    assert!(after.is_some() && after != before, "{before:?} {after:?}");
}

#[test]
fn a_burst_of_changes_ends_in_the_truth() {
    if !root() {
        return;
    }
    let pair = Pair::new();
    let mirror = pair.mirror(&["10.7.0.2"]);
    for round in 0..4_u8 {
        for last in 1..=250_u8 {
            let address = Prefix::host(IpAddr::from([172, 16, round, last]));
            pair.director.add_address("eth0", address).unwrap();
            if last % 2 == 0 {
                pair.director.delete_address("eth0", address).unwrap();
            }
        }
    }
    pair.director.add_address("eth0", prefix("192.0.2.9/32")).unwrap();
    wait(&mirror, "last address", |state| state.is_local(ip("192.0.2.9")));
    wait(&mirror, "all of them", |state| {
        (0..4_u8).all(|round| {
            (1..=250_u8).all(|last| state.is_local(IpAddr::from([172, 16, round, last])) == (last % 2 == 1))
        })
    });
}

#[test]
fn an_interface_that_does_not_exist_is_refused_with_those_that_do() {
    if !root() {
        return;
    }
    let pair = Pair::new();
    let start = |name: &str| {
        let interfaces = vec![(PortId(0), name.to_owned())];
        pair.director.run(|| Mirror::start(interfaces)).unwrap()
    };
    match start("eth7") {
        Err(error @ StartError::NoInterface { .. }) => {
            assert_eq!(error.to_string(), "there is no interface 'eth7'; there are: eth0, eth1, lo");
        }
        other => panic!("{other:?}"),
    }
    assert!(start("eth1").is_ok());
}

#[test]
fn namespaces_are_separate_and_leave_nothing_behind() {
    if !root() {
        return;
    }
    let pair = Pair::new();
    let paths = [pair.director.path().to_owned(), pair.peer.path().to_owned()];
    assert!(paths.iter().all(|path| path.exists()));
    // A packet from one reaches the other, and sysctls are each one's own.
    let receiver = pair.peer.run(|| UdpSocket::bind("10.7.0.2:4000").unwrap()).unwrap();
    receiver.set_read_timeout(Some(PATIENCE)).unwrap();
    pair.director
        .run(|| UdpSocket::bind("10.7.0.1:0").unwrap().send_to(b"hello", "10.7.0.2:4000").unwrap())
        .unwrap();
    let mut buffer = [0; 16];
    let (length, from) = receiver.recv_from(&mut buffer).unwrap();
    assert_eq!((&buffer[..length], from.ip()), (&b"hello"[..], ip("10.7.0.1")));
    pair.peer.set_sysctl("ipv4/ip_forward", "1").unwrap();
    pair.director.set_sysctl("ipv4/ip_forward", "0").unwrap();
    assert_eq!(pair.peer.sysctl("ipv4/ip_forward").unwrap(), "1");
    assert_eq!(pair.director.sysctl("ipv4/ip_forward").unwrap(), "0");
    let listing = |namespace: &Namespace| {
        let mut command = std::process::Command::new("cat");
        command.arg("/proc/self/net/dev").stdout(std::process::Stdio::piped());
        let output = namespace.spawn(&mut command).unwrap().wait_with_output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(listing(&pair.director).contains("eth0"));
    assert!(Namespace::create(pair.peer.name()).is_err(), "a name was taken twice");
    assert!(pair.peer.path().exists(), "a refused name was removed");
    drop(pair);
    assert!(paths.iter().all(|path| !path.exists()));
}
