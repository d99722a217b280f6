//! Sticky clients and marks: the commands of notes 000, 002, 003 and 004 as they stand there, `uvs mark` in the place
//! of `iptables`, with nginx, sshd and vsftpd behind them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::net::SocketAddrV4;
use std::time::Duration;

use crate::support::cluster::{
    CLIENT, Cluster, HIGHLY_AVAILABLE, MARKED, MORE_CLIENTS, SHOP, THREE_SERVERS, with_directors,
};
use crate::support::director::Director;
use crate::support::traffic::{REQUEST_TIMEOUT, connect_from};
use crate::support::{Process, wait_for};

/// As [`Cluster::configure`].
#[track_caller]
fn configure(cluster: &Cluster, commands: &[&str]) {
    cluster.configure(commands);
}

/// The clients' addresses, each a client of its own.
fn clients() -> Vec<String> {
    MORE_CLIENTS.map(|last| format!("192.168.20.{last}")).collect()
}

/// Which real server answers a client over http or https.
#[track_caller]
fn web(cluster: &Cluster, client: &str, scheme: &str) -> String {
    let vip = cluster.layout.vip;
    let line = format!(
        "curl -m 20 -sS -k --interface {client} -o /dev/null -w '%header{{x-node}}' {scheme}://{vip}/"
    );
    let node = cluster.site.run("client", &line).ok();
    assert!(node.starts_with("node"), "{scheme} from {client}: {node:?}");
    node
}

/// Which real server's sshd greets a client.
#[track_caller]
fn ssh(cluster: &Cluster, client: &str) -> String {
    let source = SocketAddrV4::new(client.parse().unwrap(), 0);
    let to = SocketAddrV4::new(cluster.layout.vip.parse().unwrap(), 22);
    let greeting = cluster.site.inside("client", || {
        let mut line = String::new();
        let stream = connect_from(source, to, REQUEST_TIMEOUT)?;
        BufReader::new(stream).read_line(&mut line).map(|_| line)
    });
    let greeting = greeting.unwrap_or_else(|error| panic!("ssh from {client}: {error}"));
    let node = greeting.split_whitespace().last().unwrap_or_default();
    assert!(greeting.starts_with("SSH-2.0-") && node.starts_with("node"), "{greeting:?}");
    node.to_owned()
}

/// sshd on each real server.
fn serve_ssh(cluster: &Cluster) -> Vec<Process> {
    cluster.numbers().map(|number| cluster.serve_ssh(number)).collect()
}

/// Connection templates as listed: protocol, state, source, virtual, destination.
fn templates(director: &Director<'_>) -> Vec<[String; 5]> {
    let listing = director.run("ipvsadm -L -c -n").ok();
    let rows = listing.lines().map(|line| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
    rows.filter_map(|row| match <[String; 6]>::try_from(row) {
        Ok([protocol, _, state, source, service, server]) if source.ends_with(":0") => {
            Some([protocol, state, source, service, server])
        }
        _ => None,
    })
    .collect()
}

/// Asserts that there are just these templates, in any order.
#[track_caller]
fn assert_templates(director: &Director<'_>, expected: &[[&str; 5]]) {
    let expected: BTreeSet<[String; 5]> = expected.iter().map(|row| row.map(str::to_owned)).collect();
    assert_eq!(templates(director).into_iter().collect::<BTreeSet<_>>(), expected);
}

/// How many answers each real server gave.
fn tally(answers: impl IntoIterator<Item = String>) -> BTreeMap<String, usize> {
    answers.into_iter().fold(BTreeMap::new(), |mut tally, answer| {
        *tally.entry(answer).or_default() += 1;
        tally
    })
}

fn two_nodes(first: usize, second: usize) -> BTreeMap<String, usize> {
    [("node1".to_owned(), first), ("node2".to_owned(), second)].into()
}

/// Note 000: a mark, a catch-all service beside it, the same mark over two ports without and with persistence.
#[test]
fn note_000() {
    with_directors(MARKED, |cluster, director| {
        let site = &cluster.site;
        configure(
            cluster,
            &["iptables -t mangle -A PREROUTING -d 172.16.4.1 -p tcp --dport 80 -j MARK --set-mark 10"],
        );
        let listing = site.run("director", "uvs mark -t mangle -L -n").ok();
        let rule = listing.lines().find(|line| line.starts_with("MARK")).expect("a rule is listed");
        for word in ["tcp", "172.16.4.1", "dpt:80", "0xa"] {
            assert!(rule.contains(word), "{listing}");
        }
        configure(
            cluster,
            &[
                "ipvsadm -C",
                "ipvsadm -A -f 10 -s rr",
                "ipvsadm -a -f 10 -r 172.16.4.101 -g -w 1",
                "ipvsadm -a -f 10 -r 172.16.4.102 -g -w 1",
            ],
        );
        let answers: Vec<String> = (0..6).map(|_| web(cluster, CLIENT, "http")).collect();
        assert!(answers.windows(2).all(|pair| pair[0] != pair[1]), "{answers:?}");
        let refused = site.run("client", &format!("curl -m 20 -sS -k https://{}", cluster.layout.vip));
        assert_eq!(refused.status, 7, "what is not marked is the host's, which refuses: {}", refused.stderr);

        configure(
            cluster,
            &["ipvsadm -A -t 172.16.4.1 -s rr -p", "ipvsadm -a -t 172.16.4.1 -r 172.16.4.101 -g"],
        );
        let listing = director.run("ipvsadm -L -n").ok();
        assert!(listing.contains("\nTCP  172.16.4.1:0 rr persistent 360\n"), "{listing}");
        assert!(listing.contains("\nFWM  10 rr\n"), "{listing}");
        // The note's other way to write it: it is there already.
        let again = director.run("ipvsadm -A -t 172.16.4.1:0 -s rr -p");
        assert!(again.status == 255 && again.stderr.contains("Service already exists"), "{again:?}");
        let again = director.run("ipvsadm -a -t 172.16.4.1:0 -r 172.16.4.101 -g");
        assert!(again.status == 255 && again.stderr.contains("Destination already exists"), "{again:?}");

        configure(
            cluster,
            &["iptables -t mangle -A PREROUTING -d 172.16.4.1 -p tcp --dport 443 -j MARK --set-mark 10"],
        );
        // One service, one cursor: http and https take turns.
        let answers = (0..8).map(|turn| web(cluster, CLIENT, ["http", "https"][turn / 2 % 2]));
        let answers: Vec<String> = answers.collect();
        assert!(answers.windows(2).all(|pair| pair[0] != pair[1]), "{answers:?}");

        configure(cluster, &["ipvsadm -E -f 10 -s rr -p"]);
        let by_client = clients().into_iter().map(|client| {
            let node = web(cluster, &client, "http");
            assert_eq!(web(cluster, &client, "https"), node, "{client} moves from http to https");
            assert_eq!(web(cluster, &client, "http"), node, "{client} moves back");
            node
        });
        assert_eq!(tally(by_client), two_nodes(4, 4));
        for [protocol, state, source, service, _] in templates(director) {
            assert_eq!(
                (protocol.as_str(), state.as_str(), service.as_str()),
                ("IP", "ASSURED", "0.0.0.10:0")
            );
            assert!(source.starts_with("192.168.20.1"), "{source}");
        }

        configure(cluster, &["iptables -t mangle -F"]);
        let answers = clients().into_iter().map(|client| web(cluster, &client, "http"));
        assert_eq!(
            tally(answers).into_keys().collect::<Vec<_>>(),
            ["node1"],
            "the catch-all service's only one"
        );
    });
}

/// Note 003: per port, per client and by mark, side by side and one after the other.
#[test]
fn note_003() {
    with_directors(HIGHLY_AVAILABLE, |cluster, director| {
        let _listeners = serve_ssh(cluster);
        configure(
            cluster,
            &[
                "ipvsadm -A -t 172.16.200.1:80 -s rr -p 600",
                "ipvsadm -a -t 172.16.200.1:80 -r 172.16.100.7 -g",
                "ipvsadm -a -t 172.16.200.1:80 -r 172.16.100.8 -g",
            ],
        );
        // While a template lives, the scheduler is not asked.
        let node = web(cluster, CLIENT, "http");
        assert!((0..5).all(|_| web(cluster, CLIENT, "http") == node));
        let rip = if node == "node1" { "172.16.100.7" } else { "172.16.100.8" };
        let (source, server) = (format!("{CLIENT}:0"), format!("{rip}:80"));
        assert_templates(director, &[["TCP", "ASSURED", &source, "172.16.200.1:80", &server]]);

        configure(
            cluster,
            &[
                "ipvsadm -A -t 172.16.200.1:0 -s rr -p 600",
                "ipvsadm -a -t 172.16.200.1:0 -r 172.16.100.7 -g",
                "ipvsadm -a -t 172.16.200.1:0 -r 172.16.100.8 -g",
            ],
        );
        for client in clients() {
            let node = web(cluster, &client, "https");
            assert_eq!(ssh(cluster, &client), node, "{client}: every port but 80 goes with the client");
        }

        configure(
            cluster,
            &[
                "ipvsadm -C",
                "iptables -t mangle -A PREROUTING -d 172.16.200.1 -i eth0 -p tcp --dport 80 -j MARK --set-mark 10",
                "iptables -t mangle -A PREROUTING -d 172.16.200.1 -i eth0 -p tcp --dport 443 -j MARK --set-mark 10",
                "ipvsadm -A -f 10 -s rr -p 600",
                "ipvsadm -a -f 10 -r 172.16.100.7 -g",
                "ipvsadm -a -f 10 -r 172.16.100.8 -g",
            ],
        );
        let by_client = clients().into_iter().map(|client| {
            let node = web(cluster, &client, "https");
            assert_eq!(web(cluster, &client, "http"), node);
            node
        });
        assert_eq!(tally(by_client), two_nodes(4, 4));
        // The note's `--dports` without `-m multiport`, then as it should be: ports 80 and 22 under one mark.
        let slip =
            "uvs mark -t mangle -A PREROUTING -d 172.16.200.1 -p tcp --dports 80,22 -j MARK --set-mark 10";
        let refused = director.run(slip);
        assert!(refused.status == 2 && refused.stderr.contains("-m multiport"), "{refused:?}");
        configure(cluster, &[&slip.replace("--dports", "-m multiport --dports")]);
        for client in clients() {
            assert_eq!(ssh(cluster, &client), web(cluster, &client, "http"), "{client}");
        }
        configure(cluster, &["iptables -t mangle -F"]);
    });
}

/// Note 004: a shop, whose customers stay with one real server, by weight.
#[test]
fn note_004() {
    with_directors(SHOP, |cluster, director| {
        let _listeners = serve_ssh(cluster);
        let customers = &clients()[..6];
        configure(
            cluster,
            &[
                "ipvsadm -A -t 192.168.0.1:0 -s wlc -p 600",
                "ipvsadm -a -t 192.168.0.1:0 -r 192.168.1.2 -w 4 -g",
                "ipvsadm -a -t 192.168.0.1:0 -r 192.168.1.3 -w 2 -g",
            ],
        );
        let first = customers.iter().map(|customer| web(cluster, customer, "http"));
        let nodes: Vec<String> = first.collect();
        assert_eq!(tally(nodes.clone()), two_nodes(4, 2));
        for (customer, node) in customers.iter().zip(&nodes) {
            assert_eq!(&web(cluster, customer, "https"), node, "{customer} pays where the basket is");
            assert_eq!(&ssh(cluster, customer), node, "{customer}: all ports");
        }
        let listing = director.run("ipvsadm -L -n --persistent-conn").ok();
        for (server, weight, persistent) in [("192.168.1.2:0", "4", "4"), ("192.168.1.3:0", "2", "2")] {
            let row = listing.lines().find(|line| line.contains(server)).expect("the server is listed");
            let row: Vec<&str> = row.split_whitespace().collect();
            assert_eq!(row[2..4], [weight, persistent], "{listing}");
        }

        // Per port: what a customer does over ssh says nothing about where its http goes.
        configure(
            cluster,
            &[
                "ipvsadm -C",
                "ipvsadm -A -t 192.168.0.1:80 -s wlc -p 600",
                "ipvsadm -a -t 192.168.0.1:80 -r 192.168.1.2 -w 4 -g",
                "ipvsadm -a -t 192.168.0.1:80 -r 192.168.1.3 -w 2 -g",
                "ipvsadm -A -t 192.168.0.1:22 -s wlc -p 300",
                "ipvsadm -a -t 192.168.0.1:22 -r 192.168.1.3 -g",
            ],
        );
        let listing = director.run("ipvsadm -L -n").ok();
        assert!(listing.contains("TCP  192.168.0.1:80 wlc persistent 600\n"), "{listing}");
        assert!(listing.contains("TCP  192.168.0.1:22 wlc persistent 300\n"), "{listing}");
        for customer in customers {
            let node = web(cluster, customer, "http");
            assert_eq!(ssh(cluster, customer), "node2", "{customer}");
            assert_eq!(web(cluster, customer, "http"), node, "{customer}");
        }

        configure(
            cluster,
            &[
                "ipvsadm -C",
                "iptables -t mangle -A PREROUTING -d 192.168.0.1 -p tcp --dport 80 -j MARK --set-mark 10",
                "iptables -t mangle -A PREROUTING -d 192.168.0.1 -p tcp --dport 443 -j MARK --set-mark 10",
                "ipvsadm -A -f 10 -s wlc -p 600",
                "ipvsadm -a -f 10 -r 192.168.1.2 -g -w 4",
                "ipvsadm -a -f 10 -r 192.168.1.3 -g -w 2",
            ],
        );
        let nodes = customers.iter().map(|customer| {
            let node = web(cluster, customer, "https");
            assert_eq!(web(cluster, customer, "http"), node, "{customer}");
            node
        });
        assert_eq!(tally(nodes), two_nodes(4, 2));
        configure(cluster, &["iptables -t mangle -F"]);
    });
}

/// Note 002, direct routing: FTP with a template of its own kind, a catch-all service, a group of clients.
#[test]
fn note_002_persistence() {
    with_directors(THREE_SERVERS, |cluster, director| {
        let _ftp: Vec<Process> = cluster.numbers().map(|number| cluster.serve_ftp(number)).collect();
        let _ssh = serve_ssh(cluster);
        configure(
            cluster,
            &[
                "ipvsadm -A -t virtualdomain:ftp -p 540",
                "ipvsadm -a -t virtualdomain:ftp -r 192.168.1.2 -g",
                "ipvsadm -a -t virtualdomain:ftp -r 192.168.1.3 -g",
                "ipvsadm -a -t virtualdomain:ftp -r 192.168.1.4 -g",
            ],
        );
        let mut nodes = BTreeSet::new();
        for client in clients() {
            let fetch = |more: &str| {
                let url = format!("ftp://{}/node", cluster.layout.vip);
                let line = format!("curl -m 20 -sS --interface {client} {more} {url}");
                cluster.site.run("client", &line).ok()
            };
            // EPSV, then PASV: each a control and a data connection.
            let node = fetch("");
            assert_eq!(fetch("--disable-epsv"), node, "{client}");
            let server =
                format!("192.168.1.{}", node.trim().strip_prefix("node").unwrap().parse::<u8>().unwrap() + 1);
            let listing = director.run("ipvsadm -L -c -n").ok();
            let own = listing.lines().filter(|line| line.contains(&format!(" {client}:")));
            let own: Vec<Vec<&str>> = own.map(|line| line.split_whitespace().collect()).collect();
            assert_eq!(own.len(), 1 + 4, "a template, two control and two data connections: {listing}");
            assert!(own.iter().all(|row| row[5].starts_with(&format!("{server}:"))), "{listing}");
            let to_control = own.iter().filter(|row| row[4] == "192.168.51.11:21").count();
            let template = own.iter().find(|row| row[3].ends_with(":0")).expect("a template");
            assert_eq!((to_control, template[4]), (2, "192.168.51.11:0"), "{listing}");
            assert_eq!(template[5], format!("{server}:0"), "{listing}");
            nodes.insert(node);
        }
        assert_eq!(nodes.len(), 3, "{nodes:?}");

        configure(
            cluster,
            &[
                "ipvsadm -C",
                "ipvsadm -A -t virtualdomain:0 -p",
                "ipvsadm -a -t virtualdomain:0 -r 192.168.1.2 -g",
                "ipvsadm -a -t virtualdomain:0 -r 192.168.1.3 -g",
                "ipvsadm -a -t virtualdomain:0 -r 192.168.1.4 -g",
            ],
        );
        let answers = clients().into_iter().map(|client| {
            let node = web(cluster, &client, "http");
            assert_eq!((web(cluster, &client, "https"), ssh(cluster, &client)), (node.clone(), node.clone()));
            node
        });
        assert_eq!(tally(answers).len(), 3);

        configure(
            cluster,
            &[
                "ipvsadm -C",
                "ipvsadm -A -t virtualdomain:www -p -M 255.255.255.0",
                "ipvsadm -a -t virtualdomain:www -r 192.168.1.2",
                "ipvsadm -a -t virtualdomain:www -r 192.168.1.3",
            ],
        );
        let listing = director.run("ipvsadm -L -n").ok();
        assert!(
            listing.contains("TCP  192.168.51.11:80 wlc persistent 360 mask 255.255.255.0\n"),
            "{listing}"
        );
        let answers = tally(clients().into_iter().map(|client| web(cluster, &client, "http")));
        assert_eq!(answers.len(), 1, "one network, one server: {answers:?}");
        let server = if answers.contains_key("node1") { "192.168.1.2:80" } else { "192.168.1.3:80" };
        // Those of the services before it outlive them.
        let own = templates(director).into_iter().filter(|row| row[3] == "192.168.51.11:80");
        let own: Vec<_> = own.map(|row| [row[2].clone(), row[4].clone()]).collect();
        assert_eq!(own, [["192.168.20.0:0", server]]);
    });
}

/// Note 000 again: `sh` binds by address and for good; persistence binds whom the scheduler picked, and for a time.
#[test]
fn source_hashing_and_persistence_differ() {
    with_directors(SHOP, |cluster, director| {
        let servers =
            ["ipvsadm -a -t 192.168.0.1:443 -r 192.168.1.2", "ipvsadm -a -t 192.168.0.1:443 -r 192.168.1.3"];
        configure(cluster, &["ipvsadm -A -t 192.168.0.1:443 -s sh"]);
        configure(cluster, &servers);
        let bound: Vec<String> = clients().iter().map(|client| web(cluster, client, "https")).collect();
        let again: Vec<String> = clients().iter().map(|client| web(cluster, client, "https")).collect();
        assert_eq!(bound, again);
        assert_eq!(tally(bound.clone()).len(), 2, "{bound:?}");

        // Connections end a second after their FIN, templates two seconds after their last use.
        configure(
            cluster,
            &[
                "ipvsadm -D -t 192.168.0.1:443",
                "ipvsadm --set 0 1 0",
                "ipvsadm -A -t 192.168.0.1:443 -s rr -p 2",
            ],
        );
        configure(cluster, &servers);
        let first = web(cluster, CLIENT, "https");
        assert_eq!(web(cluster, CLIENT, "https"), first);
        wait_for("the template ends", || templates(director).is_empty());
        let second = web(cluster, CLIENT, "https");
        assert_ne!(second, first, "a new template is the scheduler's next turn");

        // A client that is still there keeps its template, however long ago it came.
        let source = SocketAddrV4::new(CLIENT.parse().unwrap(), 0);
        let to = SocketAddrV4::new(cluster.layout.vip.parse().unwrap(), 443);
        let stays = cluster.site.inside("client", || connect_from(source, to, REQUEST_TIMEOUT)).unwrap();
        std::thread::sleep(Duration::from_secs(5));
        let [kept] = &templates(director)[..] else {
            panic!("the template is gone: {:?}", templates(director))
        };
        assert_eq!(kept[1], "ASSURED");
        assert_eq!(web(cluster, CLIENT, "https"), second);
        drop(stays);
        configure(cluster, &["ipvsadm --set 0 120 0"]);
    });
}

/// What a reader of the notes may type, and what it gets: a message that names the word, status 2, nothing changed.
#[test]
fn slips_of_the_notes() {
    with_directors(MARKED, |cluster, director| {
        configure(
            cluster,
            &[
                "ipvsadm -A -f 10 -s rr",
                "iptables -t mangle -A PREROUTING -d 172.16.4.1 -p tcp --dport 80 -j MARK --set-mark 10",
            ],
        );
        let state = || director.run("ipvsadm -S -n; uvs mark -S").ok();
        let before = state();
        let mark = "uvs mark -t mangle -A PREROUTING -d 172.16.4.1 -p tcp";
        for (command, word) in [
            ("ipvsadm \u{2013}C".to_owned(), "\u{2013}C"),
            ("ipvsadm -a -f 10 -r 172.16.4.101 -g-w 1".to_owned(), "-w"),
            ("ipvsadm -a -f 10 -rserver-address".to_owned(), "server-address"),
            ("ipvsadm -A -t 912.168.0.1:0 -s wlc -p 600".to_owned(), "912.168.0.1:0"),
            (mark.replace("mangle", "mangel") + " --dport 80 -j MARK --set-mark 10", "mangel"),
            (format!("{mark} -dport 80 -j MARK --set-mark 10"), "port"),
            (format!("{mark} --dport 80 -j MAKE --set-mark 10"), "MAKE"),
            (format!("{mark} --dports 80,22 -j MARK --set-mark 10"), "--dports"),
            (format!("{mark} --dport 80 -j MARK --set-mark"), "--set-mark"),
        ] {
            let refused = director.run(&command);
            assert_eq!(refused.status, 2, "{command}: {}", refused.stderr);
            assert!(refused.stderr.contains(word), "{command}: {}", refused.stderr);
            assert_eq!(state(), before, "{command}");
        }
        configure(cluster, &["ipvsadm -a -f 10 -r 172.16.4.102"]);
        assert_eq!(web(cluster, CLIENT, "http"), "node2", "what there was goes on working");
        configure(cluster, &["iptables -t mangle -F"]);
    });
}
