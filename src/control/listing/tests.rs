use std::fs;
use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;
use crate::control::command::{
    Columns, Command, ListOptions, ListWhat, Netmask, SCHEDULER_FLAGS, Tunnel, TunnelChecksum, TunnelKind,
};
use crate::control::grammar::{parse, rules};
use crate::control::names::Names;
use crate::control::names::tests::FixedNames;
use crate::types::{Family, ForwardingMethod};

fn names() -> FixedNames {
    FixedNames::new(&[])
}

fn service(
    key: ServiceKey,
    scheduler: &str,
    change: impl FnOnce(&mut ServiceSpec),
    servers: Vec<ServerRow>,
) -> ServiceRow {
    let mut spec = ServiceSpec { scheduler: scheduler.to_owned(), ..ServiceSpec::new(key.family()) };
    change(&mut spec);
    ServiceRow { key, spec, counters: Counters::default(), rates: Rates::default(), servers }
}

fn address(protocol: Protocol, address: &str, port: u16) -> ServiceKey {
    ServiceKey::Address { protocol, address: address.parse().unwrap(), port }
}

fn server(address: &str, port: u16, method: ForwardingMethod, weight: u32) -> ServerRow {
    ServerRow {
        address: address.parse().unwrap(),
        port,
        spec: ServerSpec { method, weight, ..ServerSpec::default() },
        active: 0,
        inactive: 0,
        persistent: 0,
        counters: Counters::default(),
        rates: Rates::default(),
    }
}

/// The services of `formats.txt`, in the kernel's order.
fn recorded_services() -> Vec<ServiceRow> {
    use ForwardingMethod::{DirectRouting as Route, Masquerading as Masq, Tunnel as Tun};
    use Protocol::{Sctp, Tcp, Udp};
    let tunnelled = |address: &str, kind, port, checksum| {
        let mut row = server(address, 80, Tun, 1);
        row.spec.tunnel = Tunnel { kind, port, checksum };
        row
    };
    let mut limited = server("10.88.2.12", 80, Route, 65535);
    (limited.spec.upper_threshold, limited.spec.lower_threshold) = (1000, 10);
    let mark = |mark, family| ServiceKey::Mark { family, mark };
    let same = |_: &mut ServiceSpec| {};
    vec![
        service(
            address(Tcp, "fd88::100", 80),
            "lblcr",
            same,
            vec![server("fd88:1:2:3:4:5:6:7", 8080, Masq, 1), server("fd88::11", 80, Route, 5)],
        ),
        service(
            address(Udp, "10.88.0.100", 53),
            "wlc",
            |spec| spec.one_packet = true,
            vec![server("10.88.2.11", 53, Route, 1)],
        ),
        service(
            address(Tcp, "10.88.0.101", 0),
            "sh",
            |spec| {
                spec.flags = SCHEDULER_FLAGS[0] | SCHEDULER_FLAGS[1];
                spec.persistence = Some(50);
                spec.netmask = Netmask::V4(Ipv4Addr::new(255, 255, 255, 0));
            },
            vec![server("10.88.2.13", 0, Route, 1)],
        ),
        service(
            address(Tcp, "10.88.0.102", 80),
            "sed",
            same,
            vec![
                server("10.88.9.1", 80, Route, 1),
                tunnelled("10.88.2.13", TunnelKind::Gre, 0, TunnelChecksum::None),
                tunnelled("10.88.2.12", TunnelKind::Gue, 6080, TunnelChecksum::Checksum),
                tunnelled("10.88.2.11", TunnelKind::Gue, 6080, TunnelChecksum::None),
            ],
        ),
        service(address(Tcp, "10.88.0.103", 80), "fo", same, vec![]),
        service(
            address(Tcp, "10.88.0.100", 80),
            "rr",
            same,
            vec![limited, server("10.88.2.11", 80, Route, 1)],
        ),
        service(
            address(Tcp, "10.88.0.100", 443),
            "wrr",
            |spec| spec.persistence = Some(300),
            vec![server("10.88.2.12", 8443, Masq, 0), server("10.88.2.11", 8443, Masq, 3)],
        ),
        service(address(Sctp, "10.88.0.100", 2905), "rr", same, vec![server("10.88.2.11", 2905, Masq, 1)]),
        service(
            address(Udp, "10.88.0.100", 5060),
            "rr",
            |spec| {
                spec.persistence = Some(60);
                spec.engine = Some("sip".to_owned());
            },
            vec![server("10.88.2.11", 5060, Masq, 1)],
        ),
        service(
            mark(7, Family::V4),
            "mh",
            |spec| {
                spec.flags = SCHEDULER_FLAGS[1];
                spec.persistence = Some(360);
            },
            vec![server("10.88.2.11", 0, Tun, 1)],
        ),
        service(
            mark(8, Family::V6),
            "rr",
            |spec| {
                spec.persistence = Some(60);
                spec.netmask = Netmask::V6(64);
            },
            vec![server("fd88::11", 0, Tun, 1)],
        ),
    ]
}

/// What a director with `services` makes the program print.
fn print(command: &Command, mut services: Vec<ServiceRow>, names: &dyn Names) -> String {
    let labels = |numeric| if numeric { Labels::numeric() } else { Labels::named(names) };
    match command {
        Command::Save { numeric } => {
            sort_services(&mut services);
            services.iter().map(|row| save_service(row, &labels(*numeric))).collect()
        }
        Command::List { what, options } => match what {
            ListWhat::Services { service } => {
                if options.sort {
                    sort_services(&mut services);
                }
                services.retain(|row| service.is_none_or(|key| key == row.key));
                let header = services_header(service.is_none().then_some(4096), options.columns);
                let labels = labels(options.numeric);
                header + &services.iter().map(|row| services_row(row, options, &labels)).collect::<String>()
            }
            ListWhat::Connections => connection_header(options.engine_data).to_owned(),
            ListWhat::Timeouts => Timeouts { tcp: 900, tcp_fin: 120, udp: 300 }.to_string(),
            ListWhat::Daemons => String::new(),
        },
        other => panic!("{other:?} prints nothing"),
    }
}

/// Sections of `formats.txt` that are not about listings, or need more than rows: by the beginning of their command.
const ELSEWHERE: &[(&str, &str)] = &[
    ("ipvsadm -Ln -t 10.88.0.199:80", "a state knows which services there are"),
    ("ipvsadm -Lnc --pe", "grammar"),
    ("ipvsadm -h", "our own words"),
    ("ipvsadm --help", "our own words"),
    ("ipvsadm -v", "our own words"),
    ("ipvsadm --version", "our own words"),
    ("cat /proc/", "a file of the kernel's"),
    ("ipvsadm --start-daemon", "a state; its listing is tested below"),
    ("ipvsadm --stop-daemon", "a state"),
    ("ipvsadm -S -n >/tmp/s1", "a state; the property below says that nothing is lost"),
    ("ipvsadm -Z;", "a state"),
    ("ipvsadm --set", "a state"),
];

#[test]
fn listings_are_what_was_recorded() {
    let path = format!("{}/tests/oracle/text/formats.txt", env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(&path).unwrap();
    let mut compared = 0;
    let mut sections =
        text.split("### ipvsadm").skip(1).map(|section| format!("ipvsadm{section}")).collect::<Vec<_>>();
    sections.extend(text.split("### timeout 20 ").skip(1).map(str::to_owned));
    for section in sections {
        let (shell, rest) = section.split_once('\n').unwrap();
        let (recorded, _) = rest.split_once("### rc=").unwrap();
        if ELSEWHERE.iter().any(|(start, _)| shell.starts_with(start)) {
            continue;
        }
        let mut words: Vec<String> = shell.split(' ').map(str::to_owned).collect();
        if words.remove(0) == "ipvsadm-save" {
            words.insert(0, "-S".to_owned());
        }
        let command = parse(&words, &names()).unwrap();
        let mut expected = recorded.to_owned();
        if matches!(command, Command::Save { .. }) {
            // The one difference: thresholds are saved.
            let changed = expected.replacen("-w 65535\n", "-w 65535 -x 1000 -y 10\n", 1);
            assert_ne!(changed, expected, "{shell}");
            expected = changed;
        }
        assert_eq!(print(&command, recorded_services(), &names()), expected, "{shell}");
        compared += 1;
    }
    assert_eq!(compared, 23);
}

#[test]
fn recorded_connections_come_out_as_they_went_in() {
    let folder = format!("{}/tests/oracle/cases", env!("CARGO_MANIFEST_DIR"));
    let (mut rows, labels) = (0, Labels::numeric());
    for entry in fs::read_dir(folder).unwrap() {
        let case: serde_json::Value =
            serde_json::from_slice(&fs::read(entry.unwrap().path()).unwrap()).unwrap();
        for step in case["steps"].as_array().unwrap() {
            let output = step["stdout"].as_str().unwrap_or_default();
            for line in output.lines() {
                let words: Vec<&str> = line.split_whitespace().collect();
                let &[protocol, expires, state, client, service, server] = &words[..] else { continue };
                let Some((minutes, seconds)) = expires.split_once(':') else { continue };
                let (Ok(minutes), Ok(seconds)) = (minutes.parse::<u64>(), seconds.parse::<u64>()) else {
                    continue;
                };
                let endpoint = |text: &str| {
                    let (address, port) = text.rsplit_once(':').unwrap();
                    (address.trim_matches(['[', ']']).parse().unwrap(), port.parse().unwrap())
                };
                let row = ConnectionRow {
                    protocol: match protocol {
                        "TCP" => Some(Protocol::Tcp),
                        "UDP" => Some(Protocol::Udp),
                        "SCTP" => Some(Protocol::Sctp),
                        "IP" => None,
                        other => panic!("{other}"),
                    },
                    expires: minutes * 60 + seconds,
                    state: state.to_owned(),
                    client: endpoint(client),
                    service: endpoint(service),
                    server: endpoint(server),
                    engine: None,
                };
                assert_eq!(connection_row(&row, false, &labels), format!("{line}\n"));
                rows += 1;
            }
        }
    }
    assert!(rows > 200, "only {rows} rows");
}

#[test]
fn connections_shift_their_columns_as_ipvsadm_does() {
    let row = |protocol, expires, state: &str, service: &str, engine: Option<(&str, &str)>| ConnectionRow {
        protocol,
        expires,
        state: state.to_owned(),
        client: ("10.88.0.100".parse().unwrap(), 8080),
        service: (service.parse().unwrap(), 5060),
        server: ("10.88.2.11".parse().unwrap(), 5060),
        engine: engine.map(|(name, data)| (name.to_owned(), data.to_owned())),
    };
    // Printed by ipvsadm 1.31 for a made-up /proc/net/ip_vs_conn.
    for (row, engine_data, expected) in [
        (
            row(Some(Protocol::Udp), 89_999, "UDP", "10.88.0.101", None),
            false,
            "UDP 1499:59 UDP         10.88.0.100:8080   10.88.0.101:5060   10.88.2.11:5060\n",
        ),
        (
            row(Some(Protocol::Sctp), 61, "S-ACK-SENT", "10.88.0.101", None),
            false,
            "SCTP 01:01  S-ACK-SENT  10.88.0.100:8080   10.88.0.101:5060   10.88.2.11:5060\n",
        ),
        (
            row(Some(Protocol::Udp), 59, "NONE", "10.88.0.101", Some(("sip", "4a54"))),
            true,
            "UDP 00:59  NONE        10.88.0.100:8080   10.88.0.101:5060   10.88.2.11:5060  sip                4a54\n",
        ),
        (
            row(None, 49, "NONE", "0.0.0.7", Some(("sip", "4a54"))),
            false,
            "IP  00:49  NONE        10.88.0.100:8080   0.0.0.7:5060       10.88.2.11:5060\n",
        ),
    ] {
        assert_eq!(connection_row(&row, engine_data, &Labels::numeric()), expected);
    }
}

#[test]
fn long_names_are_cut_in_tables_only() {
    let host = "host-3232235521.verylongdomainname.example.org";
    let names =
        FixedNames::new(&[(host, "192.168.0.1"), ("six.verylongdomainname.withmore.example.org", "fd88::1")]);
    let labels = Labels::named(&names);
    let row = |vip: &str| {
        let servers = vec![server(vip, 8080, ForwardingMethod::Masquerading, 1)];
        service(address(Protocol::Tcp, vip, 80), "rr", |_| {}, servers)
    };
    let options = ListOptions::default();
    // As ipvsadm 1.31 printed them.
    assert_eq!(
        services_row(&row("192.168.0.1"), &options, &labels),
        "TCP  host-3232235521.verylongdoma rr\n  -> host-3232235521.verylongdoma Masq    1      0          0         \n"
    );
    let stats = ListOptions { columns: Columns::Stats, ..options };
    assert_eq!(
        services_row(&row("192.168.0.1"), &stats, &labels),
        "TCP  host-3232235521.verylongdoma        0        0        0        0        0\n  \
         -> host-3232235521.verylongdoma        0        0        0        0        0\n"
    );
    assert_eq!(
        save_service(&row("192.168.0.1"), &labels),
        format!("-A -t {host}:http -s rr\n-a -t {host}:http -r {host}:http-alt -m -w 1\n")
    );
    assert!(
        services_row(&row("fd88::1"), &options, &labels)
            .contains("[six.verylongdomainname.withmore.example.org]:http ")
    );
}

#[test]
fn counters_stand_in_their_columns() {
    let mut row = service(
        address(Protocol::Tcp, "192.168.0.1", 80),
        "rr",
        |spec| spec.flags = SCHEDULER_FLAGS.iter().sum(),
        vec![server("255.255.255.254", 8083, ForwardingMethod::Local, 2_147_483_647)],
    );
    let numbers = |connections, in_packets| (connections, in_packets, 1, 100_000_000_000, 99_999_999_999_999);
    let (connections, in_packets, out_packets, in_bytes, out_bytes) = numbers(1_234_567_890, 99_999_999);
    row.servers[0].counters = Counters { connections, in_packets, out_packets, in_bytes, out_bytes };
    row.servers[0].rates = Rates { connections, in_packets, out_packets, in_bytes, out_bytes };
    row.rates.connections = 100_000_000;
    row.servers[0].active = 4_000_000_000;
    let print = |columns, exact| {
        services_row(&row, &ListOptions { columns, exact, ..ListOptions::default() }, &Labels::numeric())
    };
    assert_eq!(
        print(Columns::Stats, false).lines().nth(1),
        Some("  -> 255.255.255.254:8083            1234M 99999999        1     100G   99999G")
    );
    assert_eq!(
        print(Columns::Stats, true).lines().nth(1),
        Some("  -> 255.255.255.254:8083         1234567890 99999999        1 100000000000 99999999999999")
    );
    assert_eq!(
        print(Columns::Rates, false),
        "TCP  192.168.0.1:80                100000K        0        0        0        0\n  \
         -> 255.255.255.254:8083         1234567890 99999999        1     100G   99999G\n"
    );
    assert_eq!(
        print(Columns::Connections, false),
        "TCP  192.168.0.1:80 rr (flag-1,flag-2,flag-3)\n  \
         -> 255.255.255.254:8083         Local   2147483647 4000000000 0         \n"
    );
}

#[test]
fn daemons_are_told_as_recorded() {
    let row = |role, interface: &str, sync_id, max_length, group: &str, port, ttl| DaemonRow {
        role,
        interface: interface.to_owned(),
        sync_id,
        max_length,
        group: Some(group.parse().unwrap()),
        port,
        ttl,
    };
    assert_eq!(
        row(DaemonRole::Master, "dummy0", 7, 1472, "224.0.0.81", 8848, 1).to_string(),
        "master sync daemon (mcast=dummy0, syncid=7, maxlen=1472, group=224.0.0.81, port=8848, ttl=1)\n"
    );
    assert_eq!(
        row(DaemonRole::Backup, "dummy0", 8, 1400, "224.0.0.99", 8850, 3).to_string(),
        "backup sync daemon (mcast=dummy0, syncid=8, maxlen=1400, group=224.0.0.99, port=8850, ttl=3)\n"
    );
}

proptest! {
    #[test]
    fn what_is_saved_reads_back(row in any_service(), numeric: bool) {
        let names = names();
        let labels = if numeric { Labels::numeric() } else { Labels::named(&names) };
        let text = save_service(&row, &labels);
        let mut commands = rules(&text, &names).map(|rule| rule.command.map_err(|error| (error, rule.text.to_owned())));
        prop_assert_eq!(commands.next(), Some(Ok(Command::AddService { key: row.key, spec: row.spec.clone() })));
        for server in &row.servers {
            let ServerRow { address, port, spec, .. } = *server;
            prop_assert_eq!(commands.next(), Some(Ok(Command::AddServer { key: row.key, address, port, spec })));
        }
        prop_assert_eq!(commands.next(), None);
    }
}

/// A service that the grammar can express.
fn any_service() -> impl Strategy<Value = ServiceRow> {
    let key = prop_oneof![
        (0..3_usize, any::<IpAddr>(), any::<u16>()).prop_map(|(protocol, address, port)| {
            let protocol = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp][protocol];
            ServiceKey::Address { protocol, address, port }
        }),
        (any::<bool>(), 1..=u32::MAX).prop_map(|(v6, mark)| {
            ServiceKey::Mark { family: if v6 { Family::V6 } else { Family::V4 }, mark }
        }),
    ];
    let spec = (
        prop::sample::select(vec!["rr", "wlc", "sh", "mh", "unheard-of"]),
        0..8_u32,
        prop::option::of(1..=2_678_400_u32),
        (any::<[u8; 4]>(), 1..=128_u8),
        prop::option::of(Just("sip".to_owned())),
        any::<bool>(),
    );
    (key, spec, prop::collection::vec(any_server(), 0..4)).prop_map(|(key, spec, servers)| {
        let (scheduler, flags, persistence, (mask, length), engine, one_packet) = spec;
        let v4 = key.family() == Family::V4;
        let protocol = match key {
            ServiceKey::Address { protocol, .. } => Some(protocol),
            ServiceKey::Mark { .. } => None,
        };
        // Only what means something can be said.
        let any_port = matches!(key, ServiceKey::Address { port: 0, .. });
        let persistence = persistence.or(any_port.then_some(7));
        let netmask = if v4 { Netmask::V4(mask.into()) } else { Netmask::V6(length) };
        let flags = if matches!(scheduler, "sh" | "mh") { flags & 3 } else { flags };
        let spec = ServiceSpec {
            scheduler: scheduler.to_owned(),
            flags: flags << 3,
            persistence,
            netmask: if persistence.is_some() { netmask } else { Netmask::host(key.family()) },
            engine,
            one_packet: one_packet && !matches!(protocol, Some(Protocol::Tcp | Protocol::Sctp)),
        };
        let servers = servers.into_iter().map(|server| fit(server, &key)).collect();
        service(key, scheduler, |slot| *slot = spec, servers)
    })
}

fn any_server() -> impl Strategy<Value = ServerRow> {
    let count = || prop_oneof![Just(0), 0..=2_147_483_647_u32];
    let tunnel = (0..3_usize, 1..=u16::MAX, 0..3_usize);
    (any::<IpAddr>(), any::<u16>(), 0..3_usize, count(), count(), count(), tunnel).prop_map(
        |(address, port, method, weight, upper_threshold, lower_threshold, (kind, tunnel_port, checksum))| {
            use ForwardingMethod::{DirectRouting, Masquerading, Tunnel as Tun};
            use TunnelChecksum::{Checksum, None, Remote};
            let method = [DirectRouting, Masquerading, Tun][method];
            let tunnel = match (method, kind) {
                (Tun, 1) => {
                    let checksum = [None, Checksum, Remote][checksum];
                    Tunnel { kind: TunnelKind::Gue, port: tunnel_port, checksum }
                }
                (Tun, 2) => {
                    Tunnel { kind: TunnelKind::Gre, port: 0, checksum: [None, Checksum, None][checksum] }
                }
                _ => Tunnel::IPIP,
            };
            let mut row = server("1.2.3.4", port, method, weight);
            row.address = address;
            row.spec = ServerSpec { weight, method, upper_threshold, lower_threshold, tunnel };
            row
        },
    )
}

/// Makes a server one that `key` may have.
fn fit(mut server: ServerRow, key: &ServiceKey) -> ServerRow {
    if server.spec.method != ForwardingMethod::Tunnel && Family::of(server.address) != key.family() {
        server.address = match key.family() {
            Family::V4 => "10.0.0.9".parse().unwrap(),
            Family::V6 => "fd00::9".parse().unwrap(),
        };
    }
    if let (ServiceKey::Address { port, .. }, true) =
        (key, server.spec.method != ForwardingMethod::Masquerading)
    {
        server.port = *port;
    }
    server
}
