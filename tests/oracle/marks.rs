//! `uvs mark`: what `iptables` printed, with only the program's name changed; and what becomes of packets that are marked.

use std::fs;

use uvs::wire::build::{Build, Transport};
use uvs::wire::transport::tcp_flags::{ACK, SYN};

use super::compare::printed;
use super::lab::{CLIENTS, DIRECTOR, Lab, ROUTER};
use super::{Row, chosen, folder, rows};

/// What iptables puts before a message, by where it comes from.
const PREFIXES: [&str; 5] =
    ["iptables v1.8.9 (legacy): ", "ip6tables v1.8.9 (legacy): ", "iptables: ", "ip6tables: ", "uvs mark: "];

/// Messages without the name of who says them, and without the line about help.
fn messages(stderr: &str) -> Vec<&str> {
    let without = |line: &'_ str| -> usize {
        PREFIXES.iter().find(|prefix| line.starts_with(*prefix)).map_or(0, |prefix| prefix.len())
    };
    let lines = stderr.lines().filter(|line| !line.is_empty() && !line.starts_with("Try `"));
    lines.map(|line| &line[without(line)..]).collect()
}

/// What the two say alike, the word in question aside that `uvs` names as well.
fn agree(row: &Row, got: &str) -> bool {
    let (recorded, got) = (messages(&row.stderr), messages(got));
    recorded.len() == got.len()
        && recorded.iter().zip(&got).all(|(recorded, got)| {
            let more = got.strip_prefix(recorded);
            more.is_some_and(|more| more.is_empty() || more.starts_with(" ("))
        })
}

#[test]
fn iptables_lines_do_and_print_what_they_do_and_print_there() {
    let all = fs::read_to_string(folder("text/marks.txt")).unwrap();
    let (_, both) = all.split_once("== iptables\n").unwrap();
    let (ipv4, ipv6) = both.split_once("== ip6tables\n").unwrap();
    let mut wrong = Vec::new();
    let mut compared = 0;
    for (text, option) in [(ipv4, ""), (ipv6, "-6 ")] {
        let mut lab = Lab::new();
        for row in rows(text) {
            let got = lab.mark(&format!("{option}{}", row.shell));
            compared += 1;
            if (got.status, &got.stdout) != (row.status, &row.stdout) || !agree(&row, &got.stderr) {
                wrong.push(format!(
                    "{}\n{}{}not\n{}{}",
                    row.shell, got.stdout, got.stderr, row.stdout, row.stderr
                ));
            }
            let usage = got.status == 2;
            assert_eq!(got.stderr.contains("Try `uvs mark -h' or 'uvs mark --help'"), usage, "{}", row.shell);
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(compared, 147);
}

/// A SYN of a client to an address, from a port, to a port.
fn syn(to: [u8; 4], source: u16, destination: u16) -> Vec<u8> {
    segment(to, source, destination, SYN)
}

fn segment(to: [u8; 4], source: u16, destination: u16, flags: u8) -> Vec<u8> {
    let transport = Transport::tcp_with(source, destination, flags);
    let build = Build::ipv4([10, 88, 128, 1], to).source_mac(ROUTER.0).destination_mac(DIRECTOR.0);
    build.transport(transport).frame()
}

/// The server that a frame goes to, or what else becomes of it.
fn fate(lab: &mut Lab, frame: &[u8]) -> String {
    let outputs = lab.send(CLIENTS, frame);
    chosen(&outputs).unwrap_or_else(|| format!("{:?}", outputs[0].verdict))
}

fn set_up(lines: &str) -> Lab {
    let mut lab = Lab::new();
    let outcome = lab.shell(lines);
    assert_eq!((outcome.status, printed(&outcome)), (0, String::new()));
    lab
}

const VIP: [u8; 4] = [10, 88, 0, 100];
/// No address of the director's.
const ELSEWHERE: [u8; 4] = [203, 0, 113, 9];

#[test]
fn two_ports_under_one_mark_are_one_service() {
    let mut lab = set_up(
        "iptables-legacy -t mangle -A PREROUTING -d 10.88.0.100 -p tcp --dport 80 -j MARK --set-mark 10
         iptables-legacy -t mangle -A PREROUTING -d 10.88.0.100 -p tcp --dport 443 -j MARK --set-mark 10
         ipvsadm -A -f 10 -s rr
         ipvsadm -a -f 10 -r 10.88.2.11 -g -w 1
         ipvsadm -a -f 10 -r 10.88.2.12 -g -w 1",
    );
    let fates: Vec<String> = [(1, 80), (2, 443), (3, 80), (4, 443), (5, 22)]
        .map(|(source, port)| fate(&mut lab, &syn(VIP, source, port)))
        .to_vec();
    assert_eq!(fates, ["r2", "r1", "r2", "r1", "ToHost"]);
    // Packets of connections go on, whatever the rules say by now.
    assert_eq!(printed(&lab.mark("-F")), "");
    assert_eq!(fate(&mut lab, &segment(VIP, 1, 80, ACK)), "r2");
    assert_eq!(fate(&mut lab, &syn(VIP, 6, 80)), "ToHost");
    let listing = lab.shell("ipvsadm -Lnc").stdout;
    let ports: Vec<&str> = listing.lines().skip(2).filter_map(|row| row.split_whitespace().nth(5)).collect();
    assert!(ports.contains(&"10.88.2.11:443") && ports.contains(&"10.88.2.12:80"), "{listing}");
}

#[test]
fn a_mark_comes_before_an_address_and_goes_anywhere() {
    let mut lab = set_up(
        "ipvsadm -A -t 10.88.0.100:80 -s rr; ipvsadm -a -t 10.88.0.100:80 -r 10.88.2.11:80
         ipvsadm -A -f 7 -s rr; ipvsadm -a -f 7 -r 10.88.2.12
         iptables-legacy -t mangle -A PREROUTING -i c -p tcp --dport 80:81 -j MARK --set-mark 7
         iptables-legacy -t mangle -A PREROUTING -i s -p tcp -j MARK --set-mark 8
         iptables-legacy -t mangle -I PREROUTING -p tcp --sport 9 -j ACCEPT",
    );
    for (frame, expected) in [
        (syn(VIP, 1, 80), "r2"),
        (syn(VIP, 9, 80), "r1"),
        (syn(VIP, 1, 81), "r2"),
        (syn(ELSEWHERE, 1, 80), "r2"),
        (syn(ELSEWHERE, 1, 82), "ToHost"),
        (segment(ELSEWHERE, 2, 80, ACK), "ToHost"),
        // FTP's data is nobody's to schedule.
        (syn(VIP, 20, 80), "ToHost"),
    ] {
        assert_eq!(fate(&mut lab, &frame), expected);
    }
    // With another mark there is no service, and the address counts.
    assert_eq!(printed(&lab.mark("-A PREROUTING -d 10.88.0.100 -p tcp --dport 80 -j MARK --set-mark 9")), "");
    assert_eq!(fate(&mut lab, &syn(VIP, 3, 80)), "r1");
    let rows = lab.mark("-nvL PREROUTING --line-numbers").stdout;
    let counts: Vec<&str> = rows.lines().skip(2).filter_map(|row| row.split_whitespace().nth(1)).collect();
    assert_eq!(counts, ["1", "6", "0", "1"], "{rows}");
    assert_eq!(printed(&lab.mark("-Z")), "");
    assert!(lab.mark("-nvL PREROUTING").stdout.lines().skip(2).all(|row| row.starts_with("    0     0 ")));
}

#[test]
fn later_fragments_go_with_the_first_which_a_rule_marks() {
    let mut lab = set_up(
        "ipvsadm -A -f 7 -s rr; ipvsadm -a -f 7 -r 10.88.2.12
         iptables-legacy -t mangle -A PREROUTING -d 10.88.0.101 -p udp --dport 53 -j MARK --set-mark 7",
    );
    // {destination port, where both go}: the later one does not show it.
    for (identification, port, server) in [(1, 53, Some("r2".to_owned())), (2, 54, None)] {
        let build = Build::ipv4([10, 88, 128, 1], [10, 88, 0, 101]);
        let build = build.source_mac(ROUTER.0).destination_mac(DIRECTOR.0).identification(identification);
        let fragments = build.transport(Transport::udp(7000, port)).payload(&[0; 64]).fragments(40);
        assert_eq!(fragments.len(), 2);
        let [first, later] = [0, 1].map(|number| lab.send(CLIENTS, &fragments[number]));
        assert_eq!([chosen(&first), chosen(&later)], [server.clone(), server], "{port}");
        assert_eq!(later[0].verdict, first[0].verdict);
    }
}

#[test]
fn a_save_brings_everything_back_and_is_ipvsadms_without_marks() {
    let services = "-A -f 7 -s rr\n-a -f 7 -r 10.88.2.12:0 -g -w 1\n-A -f 8 -6 -s wlc\n";
    let rules = "mark -t mangle -F PREROUTING
mark -t mangle -A PREROUTING -d 10.88.0.100/32 -p tcp -m multiport --dports 80,443 -j MARK --set-xmark 0x7/0xffffffff
mark -t mangle -A PREROUTING -j RETURN
mark -6 -t mangle -F PREROUTING
mark -6 -t mangle -A PREROUTING -d fd88::/64 -i c -j MARK --set-xmark 0x8/0xff
";
    let mut lab = set_up("ipvsadm -A -f 7 -s rr; ipvsadm -a -f 7 -r 10.88.2.12; ipvsadm -A -f 8 -6");
    assert_eq!(lab.shell("ipvsadm -Sn").stdout, services);
    for line in [
        "-A PREROUTING -d 10.88.0.100 -p tcp -m multiport --dports 80,443 -j MARK --set-mark 7",
        "-A PREROUTING -j RETURN",
        "-A PREROUTING -d fd88::1/64 -i c -j MARK --set-mark 8/0xff",
    ] {
        assert_eq!(printed(&lab.mark(line)), "");
    }
    let saved = lab.shell("ipvsadm -Sn").stdout;
    assert_eq!(saved, format!("{services}{rules}"));
    // As often as one likes: rules do not double.
    for _ in 0..2 {
        let outcome = lab.restore(saved.as_bytes());
        assert_eq!((outcome.status, printed(&outcome)), (0, String::new()));
        assert_eq!(lab.shell("ipvsadm -Sn").stdout, saved);
    }
    let mut other = Lab::new();
    other.restore(saved.as_bytes());
    assert_eq!(other.shell("ipvsadm -Sn").stdout, saved);
    // A save without marks says nothing about them, as ipvsadm does not about iptables.
    assert_eq!(printed(&lab.restore(services.as_bytes())), "");
    assert_eq!(lab.shell("ipvsadm -Sn").stdout, saved);
    assert_eq!(printed(&lab.ipvsadm("-C", b"")), "");
    assert_eq!(lab.shell("ipvsadm -Sn").stdout, rules);
    // A script's own lines are taken as they are, and a bad one is named.
    let outcome = lab.restore(b"-A -f 9\nuvs mark -t mangle -A PREROUTING -j MAKE\nmark -F\n");
    assert_eq!(
        (outcome.status, &outcome.stderr[..]),
        (
            2,
            "line 2: uvs mark -t mangle -A PREROUTING -j MAKE\n\
             target `MAKE' cannot be used: there are MARK, ACCEPT and RETURN\n"
        )
    );
    assert!(lab.mark("-S").stdout.ends_with("-P PREROUTING ACCEPT\n"));
}
