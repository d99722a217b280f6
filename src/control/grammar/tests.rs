use std::fs;
use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;

use super::*;
use crate::control::command::{DaemonSpec, ServerSpec, ServiceSpec};
use crate::control::names::tests::FixedNames;

fn recording(name: &str) -> String {
    let path = format!("{}/tests/oracle/text/{name}", env!("CARGO_MANIFEST_DIR"));
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn names() -> FixedNames {
    FixedNames::new(&[("localhost", "127.0.0.1"), ("virtualdomain", "192.168.51.11")])
}

fn parse_words(words: &[&str]) -> Result<Command, GrammarError> {
    let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
    parse(&words, &names())
}

fn parse_line(line: &str) -> Result<Command, GrammarError> {
    parse_words(&line.split_whitespace().collect::<Vec<_>>())
}

/// What goes to the standard error for a bad line under the name `ipvsadm`.
fn message(error: &GrammarError) -> String {
    const HELP: &str = "Try `ipvsadm -h' or 'ipvsadm --help' for more information.";
    match error {
        GrammarError::NoCommand => HELP.to_owned(),
        error if error.points_to_help() => format!("{error}\n{HELP}"),
        error => error.to_string(),
    }
}

/// A command as the recordings show what was sent to the kernel over its old interface; `None` for what that
/// interface cannot carry or does not send.
fn sent(command: &Command) -> Option<String> {
    let head = |verb: &str, key: &ServiceKey, spec: Option<&ServiceSpec>| {
        let (protocol, address, port, mark) = match *key {
            ServiceKey::Address { protocol, address: IpAddr::V4(address), port } => {
                (protocol, address, port, 0)
            }
            ServiceKey::Mark { family: Family::V4, mark } => (Protocol::Tcp, Ipv4Addr::UNSPECIFIED, 0, mark),
            _ => return None,
        };
        let (scheduler, flags, timeout, mask) = match spec {
            Some(spec) => (
                &spec.scheduler[..],
                u32::from(spec.persistence.is_some()) | u32::from(spec.one_packet) << 2 | spec.flags,
                spec.persistence.unwrap_or(0),
                spec.netmask.to_string(),
            ),
            None => ("", 0, 0, "255.255.255.255".to_owned()),
        };
        let protocol = protocol.number();
        Some(format!(
            "{verb} proto={protocol} {address}:{port} fwm={mark} sched={scheduler} flags={flags:x} to={timeout} mask={mask}"
        ))
    };
    let server = |verb, key, address: &IpAddr, port: &u16, spec: &ServerSpec| {
        address.is_ipv4().then_some(())?;
        let head = head(verb, key, None)?;
        let ServerSpec { weight, method, upper_threshold, lower_threshold, .. } = spec;
        let method = *method as u8;
        Some(format!(
            "{head} DEST {address}:{port} fl={method:x} w={weight} u={upper_threshold} l={lower_threshold}"
        ))
    };
    match command {
        Command::AddService { spec, .. } | Command::EditService { spec, .. } if spec.engine.is_some() => None,
        Command::AddService { key, spec } => head("ADD", key, Some(spec)),
        Command::EditService { key, spec } => head("EDIT", key, Some(spec)),
        Command::DeleteService { key } => head("DEL", key, None),
        Command::Zero { service: Some(key) } => head("ZERO", key, None),
        Command::Zero { service: None } => {
            Some("ZERO proto=0 0.0.0.0:0 fwm=0 sched= flags=0 to=0 mask=255.255.255.255".to_owned())
        }
        Command::AddServer { key, address, port, spec } => server("ADDDEST", key, address, port, spec),
        Command::EditServer { key, address, port, spec } => server("EDITDEST", key, address, port, spec),
        Command::DeleteServer { key, address, port } => {
            server("DELDEST", key, address, port, &ServerSpec::default())
        }
        Command::Flush => Some("FLUSH".to_owned()),
        Command::SetTimeouts { tcp, tcp_fin, udp } => Some(format!("TIMEOUT {tcp} {tcp_fin} {udp}")),
        Command::StartDaemon(DaemonSpec { role, interface, sync_id, .. }) => {
            let role = if *role == DaemonRole::Master { 1 } else { 2 };
            Some(format!("STARTDAEMON state={role} if={interface} id={sync_id}"))
        }
        Command::StopDaemon { role } => {
            let role = if *role == DaemonRole::Master { 1 } else { 2 };
            Some(format!("STOPDAEMON state={role} if= id=0"))
        }
        Command::List { .. }
        | Command::Save { .. }
        | Command::Restore
        | Command::Mark(_)
        | Command::Help
        | Command::Version => None,
    }
}

/// Where we differ from the recordings on purpose: what is written, and what comes of it.
const DIFFERENCES: &[(&str, &str)] = &[
    // The word is named.
    ("-a -t 1.2.3.4:80 -r 2.3.4.5:80 -g-w 1", "2 -g-w: unknown option (is a blank missing before '-w'?)"),
    ("-a -t 1.2.3.4:80 -r 2.3.4.5:80 -g-", "2 -g-: unknown option (is a blank missing before '-'?)"),
    (
        "-a -f 10 -rserver-address",
        "2 illegal real server address[:port] specified: `server-address' does not resolve",
    ),
    (
        "-A -t 912.168.0.1:0",
        "2 illegal virtual server address[:port] specified: `912.168.0.1:0' (did you mean 192.168.0.1?)",
    ),
    (
        "-A -p -t nosuch.invalid:80",
        "2 illegal virtual server address[:port] specified: `nosuch.invalid' does not resolve",
    ),
    ("-A -tp 1.2.3.4:80", "2 illegal virtual server address[:port] specified: `p' does not resolve"),
    (
        "-A -tcp-service 1.2.3.4:80",
        "2 illegal virtual server address[:port] specified: `cp-service' does not resolve",
    ),
    ("-A --tcp-service -s", "2 illegal virtual server address[:port] specified: `-s' does not resolve"),
    (
        "-a -r x1.2.3. -t 1.2.3.4:80",
        "2 illegal real server address[:port] specified: `x1.2.3.' does not resolve",
    ),
    ("-A -p -t ::1]", "2 illegal virtual server address[:port] specified"),
    // The service's port is the default, wherever the service stands.
    (
        "-d -r 2.3.4.5 -t 1.2.3.4:80",
        "DELDEST proto=6 1.2.3.4:80 fwm=0 sched= flags=0 to=0 mask=255.255.255.255 DEST 2.3.4.5:80 fl=3 w=1 u=0 l=0",
    ),
    // The port is kept.
    ("-A -p -t [1.2.3.4]:80", "ADD proto=6 1.2.3.4:80 fwm=0 sched=wlc flags=1 to=360 mask=255.255.255.255"),
    (
        "-A -p -t [localhost]:80",
        "ADD proto=6 127.0.0.1:80 fwm=0 sched=wlc flags=1 to=360 mask=255.255.255.255",
    ),
];

#[test]
fn every_recorded_command_line_ends_as_recorded() {
    let rows: Vec<serde_json::Value> = serde_json::from_str(&recording("grammar.json")).unwrap();
    assert!(rows.len() > 700, "only {} rows", rows.len());
    let mut differences = 0;
    for row in &rows {
        let words: Vec<String> = serde_json::from_value(row["args"].clone()).unwrap();
        let line = words.join(" ");
        let got = parse(&words, &names());
        let got = match &got {
            Ok(command) => sent(command).unwrap_or_default(),
            Err(error) => format!("{} {}", error.status(), message(error)),
        };
        let recorded = match row["error"].as_str() {
            Some(error) => format!("{} {error}", row["status"]),
            None => row["accepted"].as_str().unwrap_or_default().to_owned(),
        };
        match DIFFERENCES.iter().find(|(written, _)| *written == line) {
            Some((_, expected)) => {
                assert_eq!(got, *expected, "{line}");
                differences += usize::from(got != recorded);
            }
            None if words.iter().any(|word| word == "foo") && recorded.starts_with("255 Try") => {
                assert_eq!(got, format!("2 unexpected argument foo\n{}", &recorded[4..]), "{line}");
            }
            None if words.first().is_some_and(|word| word == "--") && words.len() > 1 => {
                assert_eq!(got, format!("2 unexpected argument {}\n{}", words[1], &recorded[4..]), "{line}");
            }
            None => assert_eq!(got, recorded, "{line}"),
        }
    }
    assert_eq!(
        differences,
        DIFFERENCES.len() - 1,
        "a listed difference is none, apart from the one without a word"
    );
}

/// Lines of `errors.txt` that a director's state answers: with an empty grammar error they must all parse.
const NEEDS_STATE: &[&str] = &[
    "Service already exists",
    "Scheduler or persistence engine not found",
    "No such service",
    "Service not defined",
    "Destination already exists",
    "No such destination",
    "Numerical result out of range",
    "Invalid operation.  Possibly wrong module version, address not unicast, ...",
    "No daemon is running",
    // Not about words: the caller is not root.
    "Can't initialize ipvs: Permission denied (you must be root)",
];

#[test]
fn every_recorded_error_is_made_or_left_to_the_state() {
    let text = recording("errors.txt");
    let (mut made, mut left) = (0, 0);
    for section in text.split("### ").skip(1) {
        let mut lines = section.lines();
        let shell = lines.next().unwrap();
        let status: i32 = lines.next().unwrap().strip_prefix("rc=").unwrap().parse().unwrap();
        let errors: Vec<&str> = lines.filter_map(|line| line.strip_prefix("err: ")).collect();
        if shell.contains('|') {
            // Rules: the test of the whole program has them.
            continue;
        }
        let commands: Vec<&str> =
            shell.split("; ").filter_map(|part| part.split("ipvsadm ").nth(1)).collect();
        let by_state = errors.is_empty() || NEEDS_STATE.contains(&errors[0]);
        for command in &commands {
            let got = parse_line(command);
            if by_state {
                assert!(got.is_ok(), "{shell}: {got:?}");
                left += 1;
            } else {
                let error = got.expect_err(shell);
                assert_eq!((message(&error), error.status()), (errors.join("\n"), status), "{shell}");
                made += 1;
            }
        }
    }
    assert_eq!((made, left), (45, 40), "rows of errors.txt, made here and left to the state");
}

#[test]
fn the_notes_commands_are_understood() {
    let notes = "\
-A -t 192.168.50.100:80 -s rr
-a -t 192.168.50.100:80 -r 192.168.50.22:80 -g
-a -t 192.168.50.100:80 -r 192.168.50.22 -g
-Ln
-Lnc
-Ln --stats
-Ln --rate
-C
-A -t virtualdomain:www -p
-a -t virtualdomain:www -r 192.168.1.2 -m
-A -t virtualdomain:ftp -p 540
-a -t virtualdomain:ftp -r 192.168.1.2 -g
-A -t virtualdomain:0 -p
-a -t virtualdomain:0 -r 192.168.1.2 -g
-A -t virtualdomain:www -p -M 255.255.255.0
-a -t virtualdomain:www -r 192.168.1.2
-A -f 10 -s rr
-a -f 10 -r 172.16.4.101 -g -w 1
-A -t 172.16.4.1 -s rr -p
-a -t 172.16.4.1 -r 172.16.4.101 -g
-L -n
-E -f 10 -s rr -p
-A -t 172.16.200.1:0 -s rr -p 600
-L -c
-a -t 192.168.0.1:0 -r 192.168.1.2 -w 4 -g
";
    for rule in rules(notes, &names()) {
        assert!(rule.command.is_ok(), "{}: {:?}", rule.text, rule.command);
    }
}

#[test]
fn slips_are_named_with_status_2() {
    for (words, named) in [
        (&["–C"][..], "–C"),
        (&["—list"], "--list"),
        (&["-a", "-t", "1.2.3.4:80", "-r", "1.2.3.5", "-g-w", "1"], "-g-w"),
        (&["-a", "-f", "10", "-rserver-address"], "server-address"),
        (&["-A", "-t", "912.168.0.1:0"], "912.168.0.1"),
        (&["list"], "list"),
    ] {
        let error = parse_words(words).unwrap_err();
        assert_eq!(error.status(), 2, "{words:?}");
        assert!(message(&error).contains(named), "{words:?}: {error}");
    }
}

#[test]
fn a_mask_may_stand_before_its_service() {
    for (line, expected) in [
        ("-A -M 64 -t [::1]:80 -p", Ok(Netmask::V6(64))),
        ("-A -f 5 -M 64 -6 -p", Ok(Netmask::V6(64))),
        ("-A -M 255.255.0.0 -t 1.2.3.4:80 -p", Ok(Netmask::V4(Ipv4Addr::new(255, 255, 0, 0)))),
        ("-A -M 255.255.0.0 -f 5 -6 -p", Err(GrammarError::BadIpv6Mask)),
    ] {
        let got = parse_line(line).map(|command| match command {
            Command::AddService { spec, .. } => spec.netmask,
            other => panic!("{line}: {other:?}"),
        });
        assert_eq!(got, expected, "{line}");
    }
}

#[test]
fn daemons_get_all_they_are_told() {
    let line = "--start-daemon backup --mcast-interface eth1 --syncid 8 --sync-maxlen 1400 \
                --mcast-group ff02::81 --mcast-port 8850 --mcast-ttl 3";
    let expected = DaemonSpec {
        role: DaemonRole::Backup,
        interface: "eth1".to_owned(),
        sync_id: 8,
        max_length: Some(1400),
        group: Some("ff02::81".parse().unwrap()),
        port: Some(8850),
        ttl: Some(3),
    };
    assert_eq!(parse_line(line), Ok(Command::StartDaemon(expected)));
}

#[test]
fn rules_skip_comments_and_number_the_rest() {
    let text = "# saved\n\n  -C  \nipvsadm -D -f 1\r\nbad line\nipvsadm\n\"-C\"\n-R\n";
    let got: Vec<_> =
        rules(text, &names()).map(|rule| (rule.number, rule.text.to_owned(), rule.command)).collect();
    let mark = ServiceKey::Mark { family: Family::V4, mark: 1 };
    assert_eq!(
        got,
        [
            (3, "-C".to_owned(), Ok(Command::Flush)),
            (4, "ipvsadm -D -f 1".to_owned(), Ok(Command::DeleteService { key: mark })),
            (5, "bad line".to_owned(), Err(GrammarError::NoCommand)),
            (7, "\"-C\"".to_owned(), Err(GrammarError::NoCommand)),
            (8, "-R".to_owned(), Err(GrammarError::NoCommand)),
        ]
    );
    let long = format!("-C {}\n-C", " -n".repeat(MAX_RULE_LENGTH));
    let got: Vec<_> = rules(&long, &names()).map(|rule| rule.command).collect();
    assert_eq!(got, [Err(GrammarError::LineTooLong), Ok(Command::Flush)]);
}

proptest! {
    #[test]
    fn no_words_make_it_panic(words in prop::collection::vec(word(), 0..8)) {
        let _ = parse(&words, &names());
    }
}

/// Words that get far into the grammar, and some that do not.
fn word() -> impl Strategy<Value = String> {
    let known = options::WORDS.map(|word| format!("--{}", word.long)).to_vec();
    prop_oneof![
        4 => "-[AEDCaedLlZRSnctufsprMgimwxyob6hv]{1,4}",
        3 => prop::sample::select(known),
        2 => r"[\[\]:.0-9a-f]{0,12}",
        1 => "[0-9]{1,12}",
        1 => r"(sh|mh|flag)-(1|2|port|fallback)(,\PC{0,4})?",
        1 => r"--?[a-z\-]{0,8}=?\PC{0,4}",
        1 => r"\PC{0,6}",
    ]
}
