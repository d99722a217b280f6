//! What operators get wrong and machines do: the director says so, or goes on.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::support::cluster::{CLIENT, Cluster, ONE_ARM, PLAIN_PORT};
use crate::support::director::{Director, PortType, assert_nothing_left};
use crate::support::traffic::Client;
use crate::support::{DEADLINE, Site, StopWhenDropped, is_root, wait_for};

/// A SYN and two more tries.
const PATIENCE: Duration = Duration::from_secs(5);
/// When a connection is to be refused.
const BRIEFLY: Duration = Duration::from_millis(500);

fn service(cluster: &Cluster) -> SocketAddrV4 {
    SocketAddrV4::new(cluster.layout.vip.parse().unwrap(), PLAIN_PORT)
}

fn connect(cluster: &Cluster, timeout: Duration) -> std::io::Result<Client> {
    let source = SocketAddrV4::new(CLIENT.parse::<Ipv4Addr>().unwrap(), 0);
    cluster.site.inside("client", || Client::connect(source, service(cluster), timeout))
}

/// One request on a connection of its own.
fn request(cluster: &Cluster, timeout: Duration) -> std::io::Result<String> {
    connect(cluster, timeout)?.get(true)
}

/// A namespace with one interface, and nobody else.
fn lonely() -> Site {
    let mut site = Site::new();
    site.add("director");
    site.add("nobody");
    site.join(("director", "eth0"), ("nobody", "eth0"), 1);
    site.run("director", "ip addr add 192.0.2.1/24 dev eth0").ok();
    site
}

#[test]
fn a_director_that_cannot_start_says_why_and_leaves_nothing() {
    if !is_root() {
        return;
    }
    let site = lonely();
    let bad_rules = site.write("bad.rules", "-A -t 192.0.2.9:80 -s rr\n-A -t 192.0.2.9:81 -s nonsense\n");
    let bad_rules = bad_rules.to_str().unwrap();
    let missing = site.path("missing.rules");
    let missing = missing.to_str().unwrap();
    let cases: [(&[&str], &[&str], &[&str]); 8] = [
        (&["eth7"], &[], &["'eth7'", "eth0"]),
        (&["eth0", "eth7"], &[], &["'eth7'"]),
        (&["eth0", "eth0"], &[], &["eth0", "twice"]),
        (&["an-interface-with-too-long-a-name"], &[], &["an-interface-with-too-long-a-name"]),
        (&["eth0"], &["--rules", bad_rules], &["bad.rules", "line 2"]),
        (&["eth0"], &["--rules", missing], &["missing.rules", "No such file"]),
        (&["eth0"], &["--workers", "0"], &["--workers", "0"]),
        (&["eth0"], &["--connections", "many"], &["--connections", "many"]),
    ];
    for (interfaces, more, words) in cases {
        for port_type in [PortType::XdpNative, PortType::Packet] {
            let mut process = Director::launch(&site, "director", interfaces, port_type, more);
            let finished = process.wait(DEADLINE);
            let what = format!("{interfaces:?} {more:?}: {} {}", finished.status, finished.stderr);
            assert!((1..=2).contains(&finished.status), "{what}");
            assert!(words.iter().all(|word| finished.stderr.contains(word)), "{what}");
            assert!(!finished.stderr.contains("panicked"), "{what}");
            assert_nothing_left(&site, "director", &["eth0".to_owned()]);
        }
    }
    let without = site.run("director", "uvs run");
    assert_eq!(without.status, 2);
    assert!(without.stderr.contains("--interface"), "{}", without.stderr);
}

#[test]
fn commands_without_a_director_say_so() {
    if !is_root() {
        return;
    }
    let site = lonely();
    for line in ["ipvsadm -Ln", "uvs stats", "uvs get", "uvs set conn_reuse_mode 1", "ipvsadm-save"] {
        let finished = site.run("director", line);
        assert_ne!(finished.status, 0, "{line}");
        let path = site.control();
        assert!(finished.stderr.contains(path.to_str().unwrap()), "{line}: {}", finished.stderr);
    }
}

#[test]
fn an_interface_that_goes_down_comes_back() {
    if !is_root() {
        return;
    }
    let cluster = Cluster::new(ONE_ARM);
    for port_type in PortType::ALL {
        let mut director = Director::start(&cluster.site, "director", &["eth0"], port_type, &[]);
        cluster.add_plain_service();
        request(&cluster, PATIENCE).unwrap();
        let (stop, asked) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            let _end = StopWhenDropped(&stop);
            // Light traffic, whose loss is nobody's fault.
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let _ = request(&cluster, BRIEFLY);
                    asked.fetch_add(1, Ordering::Relaxed);
                }
            });
            for _ in 0..2 {
                director.run("ip link set eth0 down").ok();
                let before = asked.load(Ordering::Relaxed);
                wait_for("requests meet a dead interface", || asked.load(Ordering::Relaxed) > before + 2);
                assert!(request(&cluster, BRIEFLY).is_err());
                director.run("ip link set eth0 up").ok();
                wait_for("requests are answered again", || request(&cluster, PATIENCE).is_ok());
            }
        });
        assert!(director.is_running(), "{}", director.log());
        for _ in 0..20 {
            request(&cluster, PATIENCE).unwrap();
        }
        director.check();
        director.stop();
    }
}

#[test]
fn a_second_director_is_refused_and_the_first_goes_on() {
    if !is_root() {
        return;
    }
    let cluster = Cluster::new(ONE_ARM);
    let site = &cluster.site;
    for port_type in PortType::ALL {
        let director = Director::start(site, "director", &["eth0"], port_type, &[]);
        cluster.add_plain_service();
        let mut kept = connect(&cluster, PATIENCE).unwrap();
        kept.get(false).unwrap();
        let other = site.path("other");
        let other = other.to_str().unwrap();
        let in_use = format!("eth0: another director (pid {}) has it; stop that one first", director.id());
        // The same socket; another socket; and then even another state directory, so that they share no file.
        let cases: [(&[&str], &str); 3] = [
            (&[], "another director listens on"),
            (&["--control", other], &in_use),
            (&["--control", other, "--state-directory", other], &in_use),
        ];
        for ((more, message), second_type) in
            cases.into_iter().flat_map(|case| PortType::ALL.map(|second_type| (case, second_type)))
        {
            let finished = Director::launch(site, "director", &["eth0"], second_type, more).wait(DEADLINE);
            let what = format!("{port_type:?}, then {second_type:?} with {more:?}: {}", finished.stderr);
            assert_eq!(finished.status, 1, "{what}");
            assert!(finished.stderr.contains(message), "{what}");
            kept.get(false).unwrap();
            request(&cluster, PATIENCE).unwrap();
            assert!(director.run("ipvsadm -Ln").ok().contains(&service(&cluster).to_string()));
        }
        let left: Vec<_> = std::fs::read_dir(other).into_iter().flatten().collect();
        assert!(left.is_empty(), "{left:?}");
        director.check();
        director.stop();
    }
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
    let index = |namespace: &str| site.run(namespace, "cat /sys/class/net/eth0/ifindex").ok();
    let other = site.path("other");
    let other = ["--control", other.to_str().unwrap(), "--state-directory", other.to_str().unwrap()];
    let first = Director::start(&site, "director", &["eth0"], PortType::Packet, &[]);
    // The same name, and the same number, if in another namespace.
    assert_eq!(index("director"), index("elsewhere"));
    let elsewhere = Director::start(&site, "elsewhere", &["eth0"], PortType::Packet, &other);
    first.kill();
    // Nothing is shared with the one that was killed but the interface.
    elsewhere.kill();
    let second = Director::start(&site, "director", &["eth0"], PortType::Packet, &other);
    second.kill();
}

#[test]
fn rubbish_and_silence_at_the_control_socket_disturb_nobody() {
    if !is_root() {
        return;
    }
    let cluster = Cluster::new(ONE_ARM);
    let mut director = Director::start(&cluster.site, "director", &["eth0"], PortType::XdpNative, &[]);
    cluster.add_plain_service();
    let open = || UnixStream::connect(cluster.site.control()).unwrap();
    let silent: Vec<UnixStream> = (0..8).map(|_| open()).collect();
    let long = vec![b'x'; 1 << 20];
    let huge_length = [0xff; 64];
    let rubbish: [&[u8]; 7] = [
        b"\n",
        b"hello\n",
        b"{}\n",
        b"\0\0\0\0",
        &huge_length,
        b"{\"Commands\":[{\"Nonsense\":1}]}\n",
        &long,
    ];
    for bytes in rubbish {
        let mut stream = open();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        // The director may hang up in the middle of it.
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(director.run("ipvsadm -Ln").ok().contains(&service(&cluster).to_string()));
    }
    // Half a request, and gone.
    for _ in 0..100 {
        let _ = open().write_all(b"\0\0\0\x20{\"Comm");
    }
    assert!(director.is_running(), "{}", director.log());
    request(&cluster, PATIENCE).unwrap();
    director.run("uvs stats").ok();
    assert!(!director.log().contains("panicked"), "{}", director.log());
    drop(silent);
    director.check();
    director.stop();
}

#[test]
fn a_full_table_refuses_new_connections_and_keeps_the_old() {
    if !is_root() {
        return;
    }
    const CONNECTIONS: usize = 16;
    let cluster = Cluster::new(ONE_ARM);
    let options = ["--connections", "16"];
    let director = Director::start(&cluster.site, "director", &["eth0"], PortType::XdpNative, &options);
    cluster.add_plain_service();
    let capacity = director.stats()["connections"]["capacity"].as_u64().unwrap() as usize;
    assert!((CONNECTIONS..=2 * CONNECTIONS).contains(&capacity), "{capacity}");
    let mut kept = Vec::new();
    while let Ok(mut client) = connect(&cluster, BRIEFLY) {
        client.get(false).unwrap();
        kept.push(client);
        assert!(kept.len() <= capacity, "more connections than there is room for");
    }
    assert!(kept.len() >= CONNECTIONS / 2, "room for {} only", kept.len());
    assert!(director.dropped("connection-table-full") > 0, "{:#}", director.stats());
    for client in &mut kept {
        client.get(false).unwrap();
    }
    let listing = director.run("ipvsadm -Lnc").ok();
    assert_eq!(listing.matches("ESTABLISHED").count(), kept.len(), "{listing}");
    director.check();
    director.stop();
}
