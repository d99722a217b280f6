//! Several queues, several workers, several interfaces, on live traffic.
//!
//! SCTP is left out: the kernels that these tests run on need not have it. Its frames are tested by captures.

mod multi;

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use uvs::control::client::Client;
use uvs::control::grammar::parse;
use uvs::control::names::SystemNames;
use uvs::control::protocol::{Request, Response};
use uvs::lab::http::Server;
use uvs::types::{Family, Prefix};

use multi::director::{Frames, wait_for};
use multi::traffic::{ask, fetch, upload};
use multi::{Cluster, ECHO, HTTP, Plan, Ports, UPLOAD, is_root, run_in};

/// 300 connections from all client addresses: none fails, and rr's one cursor gives each real server as many.
#[track_caller]
fn balances(plan: Plan) -> Cluster {
    let cluster = Cluster::build(plan);
    cluster.add_service("-t", HTTP);
    let target = cluster.target(HTTP);
    let failures = cluster.requests(0, 300, |source| fetch(source, target).map(drop));
    assert_eq!(failures, Vec::<String>::new(), "{}", cluster.running.uvs(&["stats"]));
    assert_eq!(cluster.served(), [100, 100, 100], "{plan:?}");
    cluster
}

/// Stops the director after a look at its counters: nothing was lost on the way.
#[track_caller]
fn ends_well(mut cluster: Cluster) -> (Frames, Vec<Frames>) {
    let (total, workers) = cluster.running.settled();
    assert_eq!((total.dropped, total.transmitted + total.to_host), (0, total.received), "{total:?}");
    let stats = cluster.running.stats();
    for worker in stats["workers"].as_array().unwrap() {
        assert_eq!(worker["handover_dropped"], 0, "{stats:#}");
    }
    cluster.running.stop();
    (total, workers)
}

/// Checks that these workers had a fair part of the work, as far as the kernel spreads it: a veth in generic mode does
/// not say which queue a frame came by, and all count as the first's.
#[track_caller]
fn all_worked(ports: Ports, workers: &[Frames]) {
    let part = workers.iter().map(|worker| worker.received).sum::<u64>() / workers.len() as u64 / 3;
    match ports {
        Ports::Native | Ports::Packet => {
            assert!(workers.iter().all(|worker| worker.received > part), "{ports:?}: {workers:?}");
        }
        Ports::Generic => assert!(workers[0].received > part, "{workers:?}"),
    }
}

#[test]
fn two_workers_on_two_queues_share_one_cursor() {
    if !is_root() {
        return;
    }
    for ports in Ports::ALL {
        let (_, workers) = ends_well(balances(Plan::new(ports, 2, 2)));
        all_worked(ports, &workers);
    }
}

#[test]
fn a_worker_without_a_queue_rests_and_the_others_work() {
    if !is_root() {
        return;
    }
    for ports in [Ports::Native, Ports::Generic] {
        let (_, workers) = ends_well(balances(Plan::new(ports, 2, 1)));
        assert!(workers[0].received > 900 && workers[1].received == 0, "{ports:?}: {workers:?}");
        let (_, workers) = ends_well(balances(Plan::new(ports, 3, 2)));
        all_worked(ports, &workers[..2]);
        assert_eq!(workers[2].received, 0, "{ports:?}");
    }
    // Raw sockets share an interface's flows whatever its queues.
    let (_, workers) = ends_well(balances(Plan::new(Ports::Packet, 3, 2)));
    all_worked(Ports::Packet, &workers);
}

#[test]
fn frames_are_handed_over_to_the_worker_that_owns_the_way_out() {
    if !is_root() {
        return;
    }
    for ports in Ports::ALL {
        let mut cluster = balances(Plan { back_queues: Some(1), ..Plan::new(ports, 2, 2) });
        let (total, workers) = cluster.running.settled();
        all_worked(ports, &workers);
        let sent = ["eth0", "eth1"].map(|interface| cluster.running.port_sum(interface, "transmitted"));
        // All of them, also what worker 1 took in, which has no queue of eth1.
        assert_eq!((sent, total.dropped), ([0, total.received], 0), "{ports:?}");
        if ports == Ports::Generic {
            run_in(&cluster.router, "ethtool", &["-K", "d0", "tso", "off"]);
        }
        // Of these flows, some are each worker's. A machine with other things to do may let the way from one worker to
        // the other fill up, which costs frames that TCP sends again.
        cluster.add_service("-t", UPLOAD);
        let target = cluster.target(UPLOAD);
        for number in 1000..1008 {
            let source = cluster.source(number);
            cluster.client.run(|| upload(source, target, LARGE / 8)).unwrap().unwrap();
        }
        cluster.running.settled();
        cluster.running.stop();
    }
}

#[test]
fn ipv6_is_balanced_and_the_host_keeps_its_neighbours() {
    if !is_root() {
        return;
    }
    for ports in Ports::ALL {
        let cluster = balances(Plan { family: Family::V6, ..Plan::new(ports, 2, 2) });
        cluster.add_service("-u", ECHO);
        let target = cluster.target(ECHO);
        let failures = cluster.requests(1000, 30, |source| ask(source, target, "who are you?").map(drop));
        assert_eq!(failures, Vec::<String>::new(), "{}", cluster.running.uvs(&["stats"]));
        assert_eq!(cluster.echoed(), [10, 10, 10]);
        // The director's host alone answers for the virtual address, and goes on doing so.
        let vip = cluster.vip().to_string();
        for _ in 0..2 {
            let neighbour = run_in(&cluster.router, "ip", &["-6", "neigh", "show", &vip, "dev", "front"]);
            assert!(neighbour.contains(" lladdr 02:05:00:00:20:00 "), "{neighbour}");
            run_in(&cluster.router, "ip", &["-6", "neigh", "flush", "dev", "front"]);
            let source = cluster.source(2000);
            cluster.client.run(|| fetch(source, cluster.target(HTTP))).unwrap().unwrap();
        }
        ends_well(cluster);
    }
}

#[test]
fn datagrams_are_balanced() {
    if !is_root() {
        return;
    }
    for ports in Ports::ALL {
        let cluster = Cluster::build(Plan::new(ports, 2, 2));
        cluster.add_service("-u", ECHO);
        let target = cluster.target(ECHO);
        let failures = cluster.requests(0, 300, |source| {
            let first = ask(source, target, "who are you?")?;
            // The same flow goes to the same real server.
            let second = ask(source, target, &"x".repeat(1200))?;
            if first == second {
                Ok(())
            } else {
                Err(std::io::Error::other(format!("{first}, then {second}")))
            }
        });
        assert_eq!(failures, Vec::<String>::new(), "{}", cluster.running.uvs(&["stats"]));
        assert_eq!(cluster.echoed(), [200, 200, 200], "{ports:?}");
        let (total, workers) = ends_well(cluster);
        assert_eq!(total.received, 600);
        all_worked(ports, &workers);
    }
}

/// Requests and answers have different ports and addresses, so that a network card, as veth does here, gives half of the
/// answers to another queue, and so to another worker, than their requests.
#[test]
fn answers_through_nat_are_translated_by_whichever_worker_gets_them() {
    if !is_root() {
        return;
    }
    for (ports, family, back_queues) in [
        (Ports::Native, Family::V4, None),
        (Ports::Native, Family::V6, Some(2)),
        (Ports::Generic, Family::V4, Some(2)),
        (Ports::Packet, Family::V4, Some(2)),
        (Ports::Packet, Family::V6, None),
    ] {
        let cluster = balances(Plan { nat: true, family, back_queues, ..Plan::new(ports, 2, 2) });
        cluster.add_service("-u", ECHO);
        let target = cluster.target(ECHO);
        let failures = cluster.requests(1000, 300, |source| ask(source, target, "who are you?").map(drop));
        assert_eq!(failures, Vec::<String>::new(), "{}", cluster.running.uvs(&["stats"]));
        assert_eq!(cluster.echoed(), [100, 100, 100]);
        if ports != Ports::Generic {
            cluster.add_service("-t", UPLOAD);
            let target = cluster.target(UPLOAD);
            let failures = cluster.requests(2000, 8, |source| upload(source, target, LARGE / 8));
            assert_eq!(failures, Vec::<String>::new(), "{}", cluster.running.uvs(&["stats"]));
        }
        let (total, workers) = cluster.running.settled();
        assert_eq!(total.to_host, 0, "an answer was not known: {}", cluster.running.uvs(&["stats"]));
        all_worked(ports, &workers);
        ends_well(cluster);
    }
}

/// A service of every port has all that its real servers send over TCP brought here; what answers nobody goes on by the
/// host, which routes it as it would have without the director.
#[test]
fn servers_behind_nat_keep_their_own_connections() {
    if !is_root() {
        return;
    }
    for (ports, family) in
        [(Ports::Native, Family::V4), (Ports::Packet, Family::V4), (Ports::Packet, Family::V6)]
    {
        let plan = Plan { nat: true, family, back_queues: Some(2), ..Plan::new(ports, 2, 2) };
        let mut cluster = Cluster::build_with(plan, |_, director| {
            director.set_sysctl("ipv4/ip_forward", "1").unwrap();
            director.set_sysctl("ipv6/conf/all/forwarding", "1").unwrap();
            // As most distributions have it.
            director.set_sysctl("ipv4/conf/all/rp_filter", "2").unwrap();
        });
        let service = cluster.target(0).to_string();
        cluster.running.adm(&["-A", "-t", &service, "-s", "rr", "-p", "300"]);
        for server in &cluster.servers {
            let real = SocketAddr::from((server.address, 0)).to_string();
            cluster.running.adm(&["-a", "-t", &service, "-r", &real, "-m"]);
        }
        let failures = cluster.requests(0, 80, |source| fetch(source, cluster.target(HTTP)).map(drop));
        assert_eq!(failures, Vec::<String>::new(), "{}", cluster.running.uvs(&["stats"]));
        assert_eq!(cluster.running.settled().0.to_host, 0, "{}", cluster.running.uvs(&["stats"]));
        let outside = SocketAddr::from((cluster.source(0).ip(), HTTP));
        let listener = cluster.client.run(|| TcpListener::bind(outside)).unwrap().unwrap();
        let _server = Server::start(listener, "outside").unwrap();
        for server in &cluster.servers {
            let source = SocketAddr::from((server.address, 20_000));
            let answer = server.namespace.run(|| fetch(source, outside)).unwrap();
            assert_eq!(answer.unwrap(), "outside", "{}", cluster.running.uvs(&["stats"]));
        }
        assert!(cluster.running.settled().0.to_host >= 3 * 4, "{}", cluster.running.uvs(&["stats"]));
        cluster.running.stop();
    }
}

/// Bytes of an upload.
const LARGE: u64 = 20 << 20;

#[test]
fn large_uploads_arrive_whole() {
    if !is_root() {
        return;
    }
    for ports in [Ports::Native, Ports::Packet] {
        for family in [Family::V4, Family::V6] {
            let cluster = Cluster::build(Plan { family, ..Plan::new(ports, 2, 2) });
            cluster.add_service("-t", UPLOAD);
            let (source, target) = (cluster.source(0), cluster.target(UPLOAD));
            cluster.client.run(|| upload(source, target, LARGE)).unwrap().unwrap();
            let (total, _) = cluster.running.settled();
            let stats = cluster.running.uvs(&["stats"]);
            let mean = LARGE / total.transmitted;
            match ports {
                // Attaching in the driver makes a veth's other end cut what is too large.
                Ports::Native => assert!(mean < 1500, "{stats}"),
                // Raw sockets take it as it is, and the kernel cuts it behind them.
                _ => assert!(mean > 1500, "nothing came in large frames: {stats}"),
            }
            ends_well(cluster);
        }
    }
}

#[test]
fn what_is_too_large_in_generic_mode_is_told_and_the_advice_helps() {
    if !is_root() {
        return;
    }
    let cluster = Cluster::build(Plan::new(Ports::Generic, 2, 2));
    cluster.add_service("-t", UPLOAD);
    let (source, target) = (cluster.source(0), cluster.target(UPLOAD));
    std::thread::scope(|scope| {
        let uploading = scope.spawn(|| cluster.client.run(|| upload(source, target, LARGE)).unwrap());
        wait_for("the log says so", || cluster.running.log().contains("tso off"));
        assert!(cluster.running.port_sum("eth0", "oversized") > 0);
        assert!(!uploading.is_finished());
        run_in(&cluster.router, "ethtool", &["-K", "d0", "tso", "off"]);
        // From here on, even the connection that suffered gets on.
        uploading.join().unwrap().unwrap();
    });
    // Two or three segments in one fit a chunk, and were too large only for the way out.
    let (total, _) = cluster.running.settled();
    let stats = cluster.running.stats();
    assert_eq!(stats["frames"]["dropped"]["too-big"].as_u64().unwrap_or(0), total.dropped, "{stats:#}");
}

/// Executes commands, given as ipvsadm's arguments, over one connection, and gives what each one failed with.
fn execute(client: &mut Client, commands: &[&str]) -> Vec<String> {
    let words = |line: &&str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let commands = commands.iter().map(|line| parse(&words(line), &SystemNames::new()).unwrap()).collect();
    let mut failures = Vec::new();
    let take = |response| {
        if let Response::Failed(error) = response {
            failures.push(error.to_string());
        }
        Ok(())
    };
    client.call(&Request::Commands(commands), take).unwrap();
    failures
}

#[test]
fn editing_under_load_fails_no_request() {
    if !is_root() {
        return;
    }
    for ports in Ports::ALL {
        let cluster = Cluster::build(Plan::new(ports, 2, 2));
        cluster.add_service("-t", HTTP);
        let target = cluster.target(HTTP);
        let done = AtomicBool::new(false);
        let (mut rounds, mut rates) = (0, Vec::new());
        let failures = std::thread::scope(|scope| {
            let load = scope.spawn(|| {
                let mut failures = Vec::new();
                for from in (0..50_000).step_by(100) {
                    failures.extend(cluster.requests(from, 100, |source| fetch(source, target).map(drop)));
                    if done.load(Ordering::Relaxed) {
                        break;
                    }
                }
                failures
            });
            let mut client = Client::connect(&cluster.running.control()).unwrap();
            let begun = Instant::now();
            while begun.elapsed() < Duration::from_secs(5) {
                let failed = execute(&mut client, &EDITS[rounds % EDITS.len()]);
                assert_eq!(failed, Vec::<String>::new(), "round {rounds}");
                rounds += 1;
                if rounds % 50 == 0 {
                    rates.push(cluster.running.adm(&["-Ln", "--rate"]));
                }
                std::thread::sleep(Duration::from_millis(9));
            }
            done.store(true, Ordering::Relaxed);
            load.join().unwrap()
        });
        assert_eq!(failures, Vec::<String>::new(), "{}", cluster.running.uvs(&["stats"]));
        assert!(rounds > 100, "{rounds} rounds of edits in 5 s");
        let rate = |listing: &String| -> u64 {
            let line = listing.lines().find(|line| line.starts_with("TCP  10.22.0.100:80 ")).unwrap();
            line.split_whitespace().nth(2).unwrap().parse().unwrap()
        };
        assert!(rates.iter().any(|listing| rate(listing) > 0), "{rates:?}");
        let served = cluster.served();
        assert!(served.iter().all(|&served| served > 0), "{served:?}");
        let (total, _) = cluster.running.settled();
        assert_eq!(total.dropped, 0, "{}", cluster.running.uvs(&["stats"]));
    }
}

/// Edits of everything but what would take a real server away from its connections: weights, down to none and back;
/// thresholds; a real server that comes and goes with no weight; another service with the same real servers; schedulers.
const EDITS: [[&str; 4]; 2] = [
    [
        "-e -t 10.22.0.100:80 -r 10.22.0.13:80 -g -w 0",
        "-a -t 10.22.0.100:80 -r 10.22.0.99:80 -g -w 0",
        "-A -t 10.22.0.100:81 -s wlc",
        "-a -t 10.22.0.100:81 -r 10.22.0.11:81 -g -w 7",
    ],
    [
        "-e -t 10.22.0.100:80 -r 10.22.0.13:80 -g -w 1",
        "-d -t 10.22.0.100:80 -r 10.22.0.99:80",
        "-D -t 10.22.0.100:81",
        "-e -t 10.22.0.100:80 -r 10.22.0.12:80 -g -x 60000 -y 50000",
    ],
];

#[test]
fn an_interface_may_go_down_and_come_up_and_the_virtual_address_go_and_come() {
    if !is_root() {
        return;
    }
    for ports in Ports::ALL {
        let mut cluster = balances(Plan::new(ports, 2, 2));
        let target = cluster.target(HTTP);
        let failures = std::thread::scope(|scope| {
            let load = scope.spawn(|| {
                // Some 2 s of requests: those that begin while it is down come through on their second or third try.
                cluster.requests(1000, 400, |source| {
                    std::thread::sleep(Duration::from_millis(40));
                    fetch(source, target).map(drop)
                })
            });
            std::thread::sleep(Duration::from_millis(400));
            cluster.director.set_up("eth0", false).unwrap();
            wait_for("it is noticed", || cluster.running.log().contains("interface down"));
            std::thread::sleep(Duration::from_millis(600));
            cluster.director.set_up("eth0", true).unwrap();
            wait_for("it is noticed", || cluster.running.log().contains("interface up"));
            load.join().unwrap()
        });
        assert_eq!(failures, Vec::<String>::new(), "{}", cluster.running.uvs(&["stats"]));
        assert_eq!(cluster.served().iter().sum::<u64>(), 700);
        // Without its address, the virtual service's frames are the host's.
        let vip = Prefix::host(cluster.vip());
        let before = cluster.running.settled().0.to_host;
        cluster.director.delete_address("eth0", vip).unwrap();
        wait_for("the service is gone", || {
            let to = |()| TcpStream::connect_timeout(&target, Duration::from_millis(200));
            cluster.client.run(|| to(())).unwrap().is_err()
        });
        assert!(cluster.running.settled().0.to_host > before);
        cluster.director.add_address("eth0", vip).unwrap();
        let failures = cluster.requests(2000, 30, |source| fetch(source, target).map(drop));
        assert_eq!(failures, Vec::<String>::new(), "{}", cluster.running.uvs(&["stats"]));
        assert!(cluster.running.is_running());
        cluster.running.settled();
        cluster.running.stop();
    }
}

#[test]
fn a_virtual_router_s_own_ethernet_address_is_taken_for_the_host_s() {
    if !is_root() {
        return;
    }
    for ports in Ports::ALL {
        let cluster = Cluster::build(Plan::new(ports, 2, 2));
        cluster.add_service("-t", HTTP);
        let (target, vip) = (cluster.target(HTTP), cluster.vip());
        // As keepalived does with use_vmac, on a director that runs already.
        cluster.director.delete_address("eth0", Prefix::host(vip)).unwrap();
        for scope in ["all", "default"] {
            cluster.director.set_sysctl(&format!("ipv4/conf/{scope}/arp_ignore"), "1").unwrap();
        }
        let macvlan = "link add vrrp.51 link eth0 address 00:00:5e:00:01:33 type macvlan mode private";
        run_in(&cluster.director, "ip", &macvlan.split(' ').collect::<Vec<_>>());
        cluster.director.add_address("vrrp.51", Prefix::host(vip)).unwrap();
        cluster.director.set_up("vrrp.51", true).unwrap();
        run_in(&cluster.router, "ip", &["neigh", "flush", "dev", "front"]);
        let failures = cluster.requests(0, 90, |source| fetch(source, target).map(drop));
        assert_eq!(failures, Vec::<String>::new(), "{}", cluster.running.uvs(&["stats"]));
        assert_eq!(cluster.served(), [30, 30, 30]);
        let neighbour = run_in(&cluster.router, "ip", &["neigh", "show", &vip.to_string(), "dev", "front"]);
        assert!(neighbour.contains(" lladdr 00:00:5e:00:01:33 "), "{neighbour}");
        // A foreign one is not.
        let foreign = ["neigh", "replace", &vip.to_string(), "dev", "front", "lladdr", "00:00:5e:00:01:34"];
        run_in(&cluster.router, "ip", &foreign);
        let attempt =
            cluster.client.run(|| TcpStream::connect_timeout(&target, Duration::from_millis(500))).unwrap();
        assert!(attempt.is_err());
        let dropped = cluster.running.settled();
        let stats = cluster.running.stats();
        assert_eq!(stats["frames"]["dropped"]["foreign-link-address"], dropped.0.dropped, "{stats:#}");
        assert!(dropped.0.dropped > 0);
    }
}

#[test]
fn queues_that_are_switched_off_are_left_alone() {
    if !is_root() {
        return;
    }
    for ports in [Ports::Native, Ports::Generic] {
        let cluster = Cluster::build_with(Plan::new(ports, 2, 4), |router, director| {
            run_in(router, "ethtool", &["-L", "d0", "rx", "2", "tx", "2"]);
            run_in(director, "ethtool", &["-L", "eth0", "rx", "2", "tx", "2"]);
        });
        cluster.add_service("-t", HTTP);
        let target = cluster.target(HTTP);
        let failures = cluster.requests(0, 90, |source| fetch(source, target).map(drop));
        assert_eq!(failures, Vec::<String>::new(), "{}", cluster.running.uvs(&["stats"]));
        let (_, workers) = ends_well(cluster);
        all_worked(ports, &workers);
    }
}
