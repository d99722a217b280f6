//! What happens to a director's interface, and tables that are full.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::live::{BRIEFLY, Live, PATIENCE};
use super::start::lonely;
use crate::support::cluster::{Cluster, ONE_ARM};
use crate::support::director::{Director, PortType};
use crate::support::{StopWhenDropped, is_root, wait_for};

/// Twice, under light traffic, whose loss is nobody's fault.
pub(super) fn interface_goes_down_and_up(live: &Live<'_>) {
    let (stop, asked) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let _end = StopWhenDropped(&stop);
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let _ = live.request(BRIEFLY);
                asked.fetch_add(1, Ordering::Relaxed);
            }
        });
        for _ in 0..2 {
            live.director.run("ip link set eth0 down").ok();
            let before = asked.load(Ordering::Relaxed);
            wait_for("requests meet a dead interface", || asked.load(Ordering::Relaxed) > before + 2);
            assert!(live.request(BRIEFLY).is_err());
            live.director.run("ip link set eth0 up").ok();
            wait_for("requests are answered again", || live.request(PATIENCE).is_ok());
        }
    });
    for _ in 0..20 {
        live.request(PATIENCE).unwrap();
    }
}

pub(super) fn interface_vanishes(live: &Live<'_>) {
    live.director.run("ip link del eth0").ok();
}

pub(super) fn interface_is_made_anew(live: &Live<'_>) {
    live.director.run("ip link add eth0 type veth peer name eth9 && ip link set eth0 up").ok();
}

/// An interface is taken as long as its director lives, and only where it is.
#[test]
fn what_a_dead_director_or_one_elsewhere_had_is_free() {
    if !is_root() {
        return;
    }
    let mut site = lonely();
    site.add("elsewhere");
    site.join(("elsewhere", "eth0"), ("nobody", "eth1"), 1);
    let index =
        |namespace: &str| site.run(namespace, "cat /proc/thread-self/net/dev_mcast | grep -w eth0").ok();
    let other = site.path("other");
    let other = ["--control", other.to_str().unwrap(), "--state-directory", other.to_str().unwrap()];
    let first = Director::start(&site, "director", &["eth0"], PortType::Packet, &[]);
    // The same name, and the same number, if in another namespace.
    assert_eq!(index("director"), index("elsewhere"));
    let elsewhere = Director::start(&site, "elsewhere", &["eth0"], PortType::Packet, &other);
    first.kill();
    elsewhere.kill();
    // Nothing is shared with the one that was killed but the interface.
    let second = Director::start(&site, "director", &["eth0"], PortType::Packet, &other);
    second.kill();
}

#[test]
fn a_full_table_refuses_new_connections_and_keeps_the_old() {
    if !is_root() {
        return;
    }
    const CONNECTIONS: usize = 16;
    let cluster = Cluster::new(ONE_ARM);
    let live = Live::start(&cluster, PortType::XdpNative, &["--connections", "16"]);
    let capacity = live.director.stats()["connections"]["capacity"].as_u64().unwrap() as usize;
    assert!((CONNECTIONS..=2 * CONNECTIONS).contains(&capacity), "{capacity}");
    let mut kept = Vec::new();
    while let Ok(mut client) = live.connect(BRIEFLY) {
        client.get(false).unwrap();
        kept.push(client);
        assert!(kept.len() <= capacity, "more connections than there is room for");
    }
    assert!(kept.len() >= CONNECTIONS / 2, "room for {} only", kept.len());
    assert!(live.director.dropped("connection-table-full") > 0, "{:#}", live.director.stats());
    for client in &mut kept {
        client.get(false).unwrap();
    }
    let listing = live.director.run("ipvsadm -Lnc").ok();
    assert_eq!(listing.matches("ESTABLISHED").count(), kept.len(), "{listing}");
    live.director.check();
    live.director.stop();
}
