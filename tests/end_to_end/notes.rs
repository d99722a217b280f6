//! The field notes' clusters, with their commands as they stand in the notes.

use crate::support::cluster::{CLIENT, Cluster, FOREIGN_VIP, ONE_ARM, ROUTER, TWO_ARMS};
use crate::support::director::{Director, PortType};
use crate::support::{is_root, wait_for};

/// The commands of note 001.
const NOTE_001: [&str; 6] = [
    "ipvsadm -A -t 192.168.50.100:80 -s rr",
    "ipvsadm -A -t 192.168.50.100:443 -s rr",
    "ipvsadm -a -t 192.168.50.100:80 -r 192.168.50.22:80 -g",
    "ipvsadm -a -t 192.168.50.100:80 -r 192.168.50.23:80 -g",
    "ipvsadm -a -t 192.168.50.100:443 -r 192.168.50.22:443 -g",
    "ipvsadm -a -t 192.168.50.100:443 -r 192.168.50.23:443 -g",
];
const OVER_HTTP: &str =
    "for i in {1..10}; do curl -m 20 -sS -k -L -Hhost:www.xuzhichao.com http://192.168.20.50; done";
const OVER_HTTPS: &str =
    "for i in {1..10}; do curl -m 20 -sS -k -Hhost:www.xuzhichao.com https://192.168.20.50; done";

/// Ten answers, by turns from both nodes.
#[track_caller]
fn assert_by_turns(answers: &str) {
    let answers: Vec<&str> = answers.lines().collect();
    assert_eq!(answers.len(), 10, "{answers:?}");
    assert!(answers.iter().all(|answer| ["node1", "node2"].contains(answer)), "{answers:?}");
    assert!(answers.windows(2).all(|pair| pair[0] != pair[1]), "{answers:?}");
}

/// The words of a listing's lines, its header aside.
fn rows(listing: &str) -> Vec<Vec<&str>> {
    listing
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|words| matches!(words[0], "TCP" | "->") && words[1] != "RemoteAddress:Port")
        .collect()
}

/// Note 001, sections 1.4 to 1.6, in its order.
fn note_001(port_type: PortType) {
    if !is_root() {
        return;
    }
    let cluster = Cluster::new(ONE_ARM);
    let site = &cluster.site;
    assert_eq!(site.run("director", "sysctl -n net.ipv4.ip_forward").ok().trim(), "0");
    let director = Director::start(site, "director", &["eth0"], port_type, &[]);
    for command in NOTE_001 {
        assert_eq!(director.run(command).ok(), "", "{command}");
    }
    let listing = director.run("ipvsadm -Ln").ok();
    let expected = "\
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn
TCP  192.168.50.100:80 rr
  -> 192.168.50.22:80             Route   1      0          0         
  -> 192.168.50.23:80             Route   1      0          0         
TCP  192.168.50.100:443 rr
  -> 192.168.50.22:443            Route   1      0          0         
  -> 192.168.50.23:443            Route   1      0          0         
";
    let (first, rest) = listing.split_once('\n').unwrap();
    assert!(first.starts_with("IP Virtual Server version "), "{first}");
    assert_eq!(sorted(rest), sorted(expected), "{rest}");

    assert_by_turns(&site.with_names("client", OVER_HTTP).ok());
    assert_by_turns(&site.with_names("client", OVER_HTTPS).ok());

    connections_are_listed(&director);
    traffic_is_listed(&director);
    director.check();
    let stats = director.stats();
    assert_eq!(stats["frames"]["dropped"].as_object().unwrap().len(), 0, "{stats:#}");
    director.stop();
}

/// The order of services is that of the kernel's table, which is hashed.
fn sorted(listing: &str) -> Vec<String> {
    let mut blocks: Vec<String> = Vec::new();
    for line in listing.lines() {
        match blocks.last_mut() {
            Some(block) if line.starts_with("  ->") => *block += &format!("\n{line}"),
            _ => blocks.push(line.to_owned()),
        }
    }
    blocks.sort();
    blocks
}

/// Section 1.5: protocol, time to expiry, state, source, virtual, destination.
fn connections_are_listed(director: &Director<'_>) {
    let listing = director.run("ipvsadm -Lnc").ok();
    let rows = rows(&listing);
    // Ten over http, and twice ten over https.
    assert_eq!(rows.len(), 30, "{listing}");
    for row in &rows {
        let [protocol, expire, state, source, service, server] = row[..] else { panic!("{row:?}") };
        assert_eq!(protocol, "TCP", "{row:?}");
        assert_eq!(state, "FIN_WAIT", "{row:?}");
        let (minutes, seconds) = expire.split_once(':').unwrap();
        let left = minutes.parse::<u32>().unwrap() * 60 + seconds.parse::<u32>().unwrap();
        assert!((60..=120).contains(&left) && seconds.len() == 2 && minutes.len() == 2, "{row:?}");
        assert!(source.starts_with(&format!("{CLIENT}:")), "{row:?}");
        let port = service.strip_prefix("192.168.50.100:").unwrap();
        assert!(["80", "443"].contains(&port), "{row:?}");
        let servers = [format!("192.168.50.22:{port}"), format!("192.168.50.23:{port}")];
        assert!(servers.contains(&server.to_owned()), "{row:?}");
    }
}

/// Section 1.6: counters and rates, in which nothing goes out through the director.
fn traffic_is_listed(director: &Director<'_>) {
    let stats = director.run("ipvsadm -Ln --stats").ok();
    assert!(stats.lines().nth(1).unwrap().ends_with("Conns   InPkts  OutPkts  InBytes OutBytes"), "{stats}");
    let rows_of_stats = rows(&stats);
    assert_eq!(rows_of_stats.len(), 6, "{stats}");
    for row in &rows_of_stats {
        let [_, address, connections, in_packets, out_packets, in_bytes, out_bytes] = row[..] else {
            panic!("{row:?}")
        };
        let expected = match (row[0], address.ends_with(":80")) {
            ("TCP", true) => 10,
            ("TCP", false) => 20,
            (_, true) => 5,
            (_, false) => 10,
        };
        assert_eq!(connections, expected.to_string(), "{stats}");
        // A handshake, a request and an end at least, of five packets.
        assert!(quantity(in_packets) >= 5 * expected, "{stats}");
        assert!(quantity(in_bytes) >= 40 * 5 * expected, "{stats}");
        assert_eq!((out_packets, out_bytes), ("0", "0"), "{stats}");
    }
    let rate = director.run("ipvsadm -Ln --rate").ok();
    assert!(rate.lines().nth(1).unwrap().ends_with("CPS    InPPS   OutPPS    InBPS   OutBPS"), "{rate}");
    let rows_of_rate = rows(&rate);
    assert_eq!(rows_of_rate.len(), 6, "{rate}");
    for row in rows_of_rate {
        assert_eq!(row.len(), 7, "{rate}");
        assert_eq!((row[4], row[6]), ("0", "0"), "{rate}");
        row[2..].iter().for_each(|number| assert!(number.parse::<u64>().is_ok(), "{rate}"));
    }
}

/// A counter as `ipvsadm` writes it: 12345 or 12K.
fn quantity(text: &str) -> u64 {
    let digits = text.trim_end_matches(char::is_alphabetic);
    let factor = match &text[digits.len()..] {
        "" => 1,
        "K" => 1000,
        "M" => 1_000_000,
        unit => panic!("{unit}"),
    };
    digits.parse::<u64>().unwrap() * factor
}

#[test]
fn note_001_over_native_xdp() {
    note_001(PortType::XdpNative);
}

#[test]
fn note_001_over_generic_xdp() {
    note_001(PortType::XdpGeneric);
}

#[test]
fn note_001_over_raw_sockets() {
    note_001(PortType::Packet);
}

#[test]
fn two_arms() {
    if !is_root() {
        return;
    }
    let cluster = Cluster::new(TWO_ARMS);
    for port_type in PortType::ALL {
        let director = Director::start(&cluster.site, "director", &["eth0", "eth1"], port_type, &[]);
        for command in NOTE_001 {
            let command = command.replace("-r 192.168.50", "-r 192.168.60");
            director.run(&command).ok();
        }
        assert_by_turns(&cluster.site.with_names("client", OVER_HTTP).ok());
        assert_by_turns(&cluster.site.with_names("client", OVER_HTTPS).ok());
        director.check();
        let stats = director.stats();
        // In by eth0, out by eth1.
        wait_for("frames are counted as sent", || {
            director.stats()["ports"][1]["transmitted"].as_u64().is_some_and(|sent| sent > 100)
        });
        assert_eq!(stats["ports"][0]["transmitted"], 0, "{stats:#}");
        director.stop();
    }
}

#[test]
fn note_002_with_a_foreign_virtual_address() {
    if !is_root() {
        return;
    }
    let cluster = Cluster::new(FOREIGN_VIP);
    for port_type in PortType::ALL {
        let director = Director::start(&cluster.site, "director", &["eth0"], port_type, &[]);
        let vip = cluster.layout.vip;
        for command in NOTE_001 {
            let command = command.replace("192.168.50.100", vip).replace("192.168.50.", "192.168.118.");
            director.run(&command).ok();
        }
        // By the router's host route, and through its translation.
        let directly = format!("for i in {{1..10}}; do curl -m 20 -sS -k https://{vip}; done");
        assert_by_turns(&cluster.site.run("client", &directly).ok());
        assert_by_turns(&cluster.site.with_names("client", OVER_HTTP).ok());
        director.check();
        director.stop();
    }
}

/// The scripts of section 1.7.
mod scripts {
    use super::*;

    const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts");

    #[test]
    fn start_and_stop_a_cluster() {
        if !is_root() {
            return;
        }
        let cluster = Cluster::new(ONE_ARM);
        let site = &cluster.site;
        // The scripts are to do what the cluster's making did.
        site.run("director", "ip addr del 192.168.50.100/24 dev eth0").ok();
        let state = site.path("state");
        let run = |namespace: &str, script: &str, word: &str| {
            let line = format!(
                "STATE_DIRECTORY={} PID_FILE={} LOG_FILE={} UVS_OPTIONS='--connections 65536' \
                 WEB_SERVER_START=true WEB_SERVER_STOP=true {SCRIPTS}/{script} {word}",
                state.display(),
                site.path("uvs.pid").display(),
                site.path("director.log").display(),
            );
            site.run(namespace, &line)
        };
        for server in ["rs1", "rs2"] {
            site.run(server, "ip addr del 192.168.50.100/32 dev lo").ok();
            site.run(
                server,
                "for i in all lo default eth0; do
                     sysctl -qw net.ipv4.conf.$i.arp_ignore=0 net.ipv4.conf.$i.arp_announce=0
                 done",
            )
            .ok();
            assert_eq!(run(server, "realserver", "status").status, 3);
            run(server, "realserver", "start").ok();
            run(server, "realserver", "start").ok();
            run(server, "realserver", "status").ok();
        }
        assert_eq!(run("director", "director", "status").status, 3);
        run("director", "director", "start").ok();
        let again = run("director", "director", "start");
        assert_eq!(again.status, 0, "started twice is started: {}", again.stderr);
        assert!(run("director", "director", "status").ok().contains("192.168.50.100:80"));
        let listing = site.run("director", "ipvsadm -Ln").ok();
        for server in ["192.168.50.22:80", "192.168.50.23:80", "192.168.50.22:443", "192.168.50.23:443"] {
            assert!(listing.contains(&format!("  -> {server} ")), "{listing}");
        }
        assert_by_turns(&site.with_names("client", OVER_HTTP).ok());
        assert_by_turns(&site.with_names("client", OVER_HTTPS).ok());

        run("director", "director", "stop").ok();
        crate::support::director::assert_nothing_left(site, "director", &["eth0".to_owned()]);
        let addresses = site.run("director", "ip -o addr show dev eth0").ok();
        assert!(!addresses.contains("192.168.50.100"), "{addresses}");
        assert_eq!(run("director", "director", "status").status, 3);
        run("director", "director", "stop").ok();
        for server in ["rs1", "rs2"] {
            run(server, "realserver", "stop").ok();
            assert_eq!(run(server, "realserver", "status").status, 3);
            let left =
                site.run(server, "ip -o addr show dev lo; sysctl -n net.ipv4.conf.all.arp_ignore").ok();
            assert!(!left.contains("192.168.50.100") && left.trim_end().ends_with('0'), "{left}");
        }
        let refused = run("director", "director", "begin");
        assert_eq!(refused.status, 2, "{}", refused.stderr);
        assert!(refused.stderr.contains("start"), "{}", refused.stderr);
        let gone = format!("curl -m 2 -sS http://{ROUTER}");
        assert_ne!(site.run("client", &gone).status, 0);
    }
}
