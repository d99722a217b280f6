//! What was recorded of a Linux kernel with IPVS, given to the director in this process.
//!
//! The recordings are under `tests/oracle`. What the kernel's own stack answered in them - a reset, an unreachable port -
//! is the host's to answer here, too: there the director's verdict has to be that the host gets the packet.

#[path = "oracle/compare.rs"]
mod compare;
#[path = "oracle/lab.rs"]
mod lab;
#[path = "oracle/later.rs"]
mod later;
#[path = "oracle/marks.rs"]
mod marks;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::Ipv4Addr;

use serde_json::Value;

use uvs::director::Verdict;
use uvs::replay::Output;
use uvs::types::PortId;
use uvs::wire::build::{Build, Transport};
use uvs::wire::transport::tcp_flags::{ACK, FIN, RST, SYN};

use compare::{
    Comparable, comparable, is_host_answer, is_icmp_error, is_reset, is_routed,
    is_translated_error_over_ipv6, printed, same_listing, without_counters,
};
use lab::{CLIENTS, DIRECTOR, Lab, ROUTER, SERVERS, server_mac};
use later::Sign;

/// Recorded cases that are played.
const CASES: &[&str] = &[
    "conn-reuse-0",
    "conn-reuse-1",
    "conn-reuse-nat-1",
    "dr-tcp-states",
    "nat-icmp-send",
    "icmp-dr",
    "icmp-nat",
    "nat-tcp-states",
    "no-destination",
    "persist-expiry",
    "persist-ftp-21",
    "persist-fwmark",
    "persist-pcc",
    "persist-ppc",
    "quiesce",
    "reuse-still-counts",
    "sctp-chunk-pairs",
    "sctp-dr",
    "sctp-dr-after-abort",
    "sctp-dr-after-cookie-echo",
    "sctp-dr-after-init",
    "sctp-dr-after-init-ack",
    "sctp-dr-after-shutdown",
    "sctp-first-chunk",
    "sctp-icmp-nat",
    "sctp-nat",
    "sctp-nat-after-abort",
    "sctp-nat-after-cookie-ack",
    "sctp-nat-after-cookie-echo",
    "sctp-nat-after-error",
    "sctp-nat-after-init",
    "sctp-nat-after-init-ack",
    "sctp-nat-after-shutdown",
    "sctp-tun",
    "thresholds",
    "tun-gre",
    "tun-gue",
    "tun-gue-csum",
    "udp-dr",
    "udp-nat",
    "udp-ops",
    "udp-tun",
    "v6-conn-reuse-0",
    "v6-conn-reuse-1",
    "v6-dr-headers",
    "v6-dr-tcp-states",
    "v6-icmp-dr",
    "v6-icmp-nat",
    "v6-icmp-tun",
    "v6-nat-headers",
    "v6-nat-icmp-send",
    "v6-nat-tcp-states",
    "v6-nat-tcp-states-client-close",
    "v6-no-destination",
    "v6-persist-fwmark",
    "v6-persist-pcc",
    "v6-persist-ppc",
    "v6-persist-prefix",
    "v6-quiesce",
    "v6-sctp-nat",
    "v6-thresholds",
    "v6-tun-6in4",
    "v6-tun-gre",
    "v6-tun-gre-6in4",
    "v6-tun-gre-csum",
    "v6-tun-gue",
    "v6-tun-gue-6in4",
    "v6-tun-gue-csum",
    "v6-tun-headers",
    "v6-tun-icmp-from-path",
    "v6-udp-dr",
    "v6-udp-nat",
    "v6-udp-ops",
    "v6-udp-tun",
];
/// Recorded cases of fragments: the kernel sends them on once it has all, the director as they come. With each, how its
/// listing goes on here: with the connection of the datagram that is not complete.
const FRAGMENT_CASES: &[(&str, &str)] = &[
    ("frag-dr", "UDP 04:58 UDP 10.88.128.1:7002 10.88.0.100:53 10.88.2.12:53\n"),
    ("v6-frag-dr", "UDP 04:58 UDP [fd88:80::1]:7002 [fd88::100]:53 [fd88:2::12]:53\n"),
    ("frag-nat", "UDP 04:58 UDP 10.88.128.1:7002 10.88.0.100:53 10.88.2.12:53\n"),
    ("v6-frag-nat", "UDP 04:58 UDP [fd88:80::1]:7002 [fd88::100]:53 [fd88:2::12]:53\n"),
];

fn folder(name: &str) -> String {
    format!("{}/tests/oracle/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn recording(folder_name: &str, name: &str) -> Value {
    let path = format!("{}/{name}.json", folder(folder_name));
    let bytes = fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    serde_json::from_slice(&bytes).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The names of all recordings in a folder.
fn recordings(folder_name: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(folder(folder_name)).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter_map(|name| name.strip_suffix(".json").map(str::to_owned)).collect()
}

/// All sequences.
fn played_sequences() -> BTreeSet<String> {
    recordings("seq")
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value}: a text was expected"))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().unwrap_or_else(|| panic!("{value}: a list was expected"))
}

fn bytes(hex: &Value) -> Vec<u8> {
    let digits = text(hex).as_bytes().chunks(2);
    digits.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

fn port(name: &Value) -> PortId {
    match text(name) {
        "c" => CLIENTS,
        "s" => SERVERS,
        other => panic!("port {other}"),
    }
}

/// A director set up as the recording says.
fn set_up(recording: &Value) -> Lab {
    let mut lab = Lab::new();
    for line in list(&recording["setup"]) {
        let outcome = lab.shell(text(line));
        assert_eq!((outcome.status, &printed(&outcome)[..]), (0, ""), "{line}");
    }
    lab
}

/// Whether the director did with a frame what the kernel did, else why not.
fn check_sent(sent: &[u8], recorded: &[Value], outputs: &[Output]) -> Result<(), String> {
    let [output] = outputs else { return Err(format!("{} frames were decided about", outputs.len())) };
    let verdict = output.verdict;
    let answers: Vec<(PortId, Vec<u8>)> =
        recorded.iter().map(|answer| (port(&answer["port"]), bytes(&answer["hex"]))).collect();
    match &answers[..] {
        [] if (is_reset(sent) || is_icmp_error(sent)) && verdict == Verdict::ToHost => {}
        [] if is_translated_error_over_ipv6(&output.bytes, sent) && verdict == Verdict::Transmit(CLIENTS) => {
            return Ok(());
        }
        [] if matches!(verdict, Verdict::Drop(_)) => return Ok(()),
        [] => return Err(format!("nothing was recorded, the verdict is {verdict:?}")),
        [(CLIENTS, answer)] if is_host_answer(answer, sent) && verdict == Verdict::ToHost => {}
        [(CLIENTS, answer)] if is_routed(answer, sent) && verdict == Verdict::ToHost => {}
        [(port, answer)] => {
            if ![Verdict::Transmit(*port), Verdict::Reply(*port)].contains(&verdict) {
                return Err(format!("it was sent out of port {}, the verdict is {verdict:?}", port.0));
            }
            let (recorded, got) = (comparable(answer, sent), comparable(&output.bytes, sent));
            return if got == recorded {
                Ok(())
            } else {
                Err(format!("{got:02x?} instead of {recorded:02x?}"))
            };
        }
        more => return Err(format!("{} frames were recorded", more.len())),
    }
    if output.bytes == sent { Ok(()) } else { Err("the host gets it changed".to_owned()) }
}

/// Plays one step; says whether there was anything to compare, and how that went.
fn play_step(lab: &mut Lab, step: &Value) -> Option<Result<(), String>> {
    if let Some(seconds) = step.get("sleep") {
        lab.sleep(seconds.as_f64().unwrap());
        return None;
    }
    if let Some(script) = step.get("exec").map(text) {
        let outcome = lab.shell(script);
        let (mut got, mut recorded) =
            (printed(&outcome), format!("{}{}", text(&step["stdout"]), text(&step["stderr"])));
        // Where the kernel's save leaves iptables' rules out, the director's has its own.
        got = got.split_inclusive('\n').filter(|line| !line.starts_with("mark ")).collect();
        if script.contains("--stats") {
            (got, recorded) = (without_counters(&got), without_counters(&recorded));
        }
        let same = outcome.status == step["rc"] && same_listing(&got, &recorded);
        return Some(if same { Ok(()) } else { Err(format!("{script}:\n{got}instead of\n{recorded}")) });
    }
    let send = step.get("send").unwrap_or_else(|| panic!("{step}: no such step is known"));
    let sent = bytes(&send["hex"]);
    let outputs = lab.send(port(&send["port"]), &sent);
    Some(check_sent(&sent, list(&step["recv"]), &outputs).map_err(|why| format!("{}: {why}", send["desc"])))
}

#[test]
fn frames_and_listings_are_as_recorded() {
    let mut compared = 0;
    let mut wrong = Vec::new();
    for name in CASES {
        let case = recording("cases", name);
        let mut lab = set_up(&case);
        for (number, step) in list(&case["steps"]).iter().enumerate() {
            let Some(result) = play_step(&mut lab, step) else { continue };
            compared += 1;
            wrong.extend(result.err().map(|why| format!("{name}, step {number}: {why}")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(compared, 1418);
}

/// Where a fragment's identification is: as the director gets it, it sends it on. (Over IPv6 the kernel makes its own.)
fn identification(frame: &[u8]) -> std::ops::Range<usize> {
    if frame[12..14] == [0x08, 0] { 18..20 } else { 58..62 }
}

/// What was sent, as frames that can be compared, by the identification of what they were sent for: sets, for the order
/// is not the same.
type Sent = BTreeMap<Vec<u8>, BTreeSet<(u16, Comparable)>>;

fn note(sent: &mut Sent, port: PortId, frame: &[u8], cause: &[u8]) {
    let name = cause[identification(cause)].to_vec();
    let mut frame = frame.to_vec();
    let place = identification(&frame);
    frame[place.clone()].copy_from_slice(&cause[place]);
    assert!(
        sent.entry(name).or_default().insert((port.0, comparable(&frame, cause))),
        "a frame is sent twice"
    );
}

/// Plays a case of fragments; returns how many frames were compared.
fn play_fragments(name: &str, incomplete: &str) -> usize {
    let case = recording("cases", name);
    let mut lab = set_up(&case);
    let (mut recorded, mut got) = (Sent::new(), Sent::new());
    let mut arrived = BTreeMap::<Vec<u8>, usize>::new();
    for step in list(&case["steps"]) {
        let Some(send) = step.get("send") else {
            if let Some(script) = step.get("exec") {
                let expected = text(&step["stdout"]).to_owned() + incomplete;
                let outcome = lab.shell(text(script));
                assert!(same_listing(&outcome.stdout, &expected), "{name}: {}", outcome.stdout);
            } else {
                lab.sleep(step["sleep"].as_f64().unwrap());
            }
            continue;
        };
        let frame = bytes(&send["hex"]);
        *arrived.entry(frame[identification(&frame)].to_vec()).or_default() += 1;
        for answer in list(&step["recv"]) {
            note(&mut recorded, port(&answer["port"]), &bytes(&answer["hex"]), &frame);
        }
        for output in lab.send_fragment(port(&send["port"]), &frame) {
            let Verdict::Transmit(port) = output.verdict else { panic!("{name}: {:?}", output.verdict) };
            assert_eq!(output.bytes[identification(&frame)], frame[identification(&frame)], "{name}");
            note(&mut got, port, &output.bytes, &frame);
        }
    }
    let all: BTreeMap<_, _> = got.iter().map(|(name, frames)| (name.clone(), frames.len())).collect();
    assert_eq!(all, arrived, "{name}: all that came, once its first did");
    for (datagram, frames) in &recorded {
        assert_eq!(&got[datagram], frames, "{name}");
    }
    recorded.values().map(BTreeSet::len).sum()
}

#[test]
fn of_each_datagram_that_is_complete_the_fragments_are_as_recorded() {
    let compared: usize =
        FRAGMENT_CASES.iter().map(|(name, incomplete)| play_fragments(name, incomplete)).sum();
    assert_eq!(compared, 24);
}

#[test]
fn counters_are_of_every_packet() {
    let case = recording("cases", "udp-dr");
    let mut lab = set_up(&case);
    list(&case["steps"]).iter().for_each(|step| drop(play_step(&mut lab, step)));
    // The recording has zeroes: the kernel had not copied them yet.
    let recorded = "\
Prot LocalAddress:Port Conns InPkts OutPkts InBytes OutBytes
-> RemoteAddress:Port
UDP 10.88.0.100:53 4 5 0 165 0
-> 10.88.2.11:53 2 2 0 66 0
-> 10.88.2.12:53 2 3 0 99 0
";
    let outcome = lab.shell("ipvsadm -Ln --stats --exact");
    assert!(same_listing(&outcome.stdout, recorded), "{}", outcome.stdout);
}

/// The frame of an event in a recorded sequence.
fn frame_of(event: &Value, identification: u32) -> Vec<u8> {
    let (flags, sequence, acknowledgement) = match text(&event[0]) {
        "syn" => (SYN, 1000, 0),
        "ack" => (ACK, 1001, 1),
        "fin" => (FIN | ACK, 1001, 1),
        "rst" => (RST, 1001, 1),
        other => panic!("no event '{other}' is known"),
    };
    let number = |value: &Value| u16::try_from(value.as_u64().unwrap()).unwrap();
    let address = |value: &Value| text(value).parse::<Ipv4Addr>().unwrap().octets();
    let transport = Transport::Tcp {
        source: number(&event[2]),
        destination: number(&event[4]),
        flags,
        sequence,
        acknowledgement,
        options: Vec::new(),
    };
    Build::ipv4(address(&event[1]), address(&event[3]))
        .source_mac(ROUTER.0)
        .destination_mac(DIRECTOR.0)
        .identification(identification)
        .transport(transport)
        .frame()
}

/// The server that a frame went to.
fn chosen(outputs: &[Output]) -> Option<String> {
    let sent = outputs.iter().find(|output| output.verdict == Verdict::Transmit(SERVERS))?;
    (1..=5).find(|&number| sent.bytes[..6] == server_mac(number).0).map(|number| format!("r{number}"))
}

#[test]
fn servers_are_chosen_as_recorded() {
    let mut compared = 0;
    let mut wrong = Vec::new();
    let played = played_sequences();
    for name in &played {
        let sequence = recording("seq", name);
        let mut lab = set_up(&sequence);
        for (number, event) in list(&sequence["events"]).iter().enumerate() {
            if event[0] == "exec" {
                let outcome = lab.shell(text(&event[1]));
                assert_eq!((outcome.status, &printed(&outcome)[..]), (0, ""), "{name}: {event}");
                continue;
            }
            let outputs = lab.send(CLIENTS, &frame_of(event, number as u32 + 1));
            let got = chosen(&outputs);
            compared += 1;
            if got.as_deref() != event[5].as_str() {
                wrong.push(format!("{name}, event {number}: {event}: {got:?}"));
            }
        }
        let lines: Vec<&str> = list(&sequence["final_Ln"]).iter().map(text).collect();
        let outcome = lab.shell("ipvsadm -Ln");
        compared += 1;
        if !same_listing(&printed(&outcome), &lines.join("\n")) {
            wrong.push(format!("{name}: {}", outcome.stdout));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!((played.len(), compared), (93, 5964));
}

/// Says whether a recording needs what the list says that it needs.
fn is_missing(lab: &mut Lab, recording: &Value, sign: Sign) -> bool {
    let is_ours = |line: &&str| line.starts_with("ipvsadm ") || line.starts_with("sysctl -qw net.ipv4.vs.");
    let commands = list(&recording["setup"]).iter().map(text).filter(is_ours);
    let messages: Vec<String> = commands.map(|line| printed(&lab.shell(line))).collect();
    match sign {
        Sign::Refused(what) => messages.contains(&format!("{what} is not supported yet\n")),
        Sign::Differs => {
            assert!(messages.iter().all(String::is_empty), "{messages:?}");
            let mut steps = list(&recording["steps"]).iter();
            steps.any(|step| play_step(lab, step).is_some_and(|result| result.is_err()))
        }
    }
}

#[test]
fn every_recording_is_played_or_needs_what_is_not_there_yet() {
    let played = CASES
        .iter()
        .chain(FRAGMENT_CASES.iter().map(|(name, _)| name))
        .map(|name| (*name).to_owned())
        .collect();
    for (folder, played, later) in
        [("cases", played, later::CASES), ("seq", played_sequences(), later::SEQUENCES)]
    {
        let mut all: Vec<String> = played.into_iter().collect();
        for (feature, sign, names) in later {
            for name in *names {
                let missing = is_missing(&mut Lab::new(), &recording(folder, name), *sign);
                assert!(missing, "{name} is said to need {feature}, but does without");
                all.push((*name).to_owned());
            }
        }
        all.sort_unstable();
        assert_eq!(all, Vec::from_iter(recordings(folder)), "{folder}: played once, or listed once");
    }
}

/// The services of `formats.txt` that there can be so far.
const SERVICES: &str = "\
ipvsadm -A -t 10.88.0.100:80 -s rr
ipvsadm -a -t 10.88.0.100:80 -r 10.88.2.11:80
ipvsadm -a -t 10.88.0.100:80 -r 10.88.2.12:80 -w 65535 -x 1000 -y 10
ipvsadm -A -t 10.88.0.103:80 -s fo
ipvsadm -A -t [fd88::100]:80 -s rr
";

/// A recorded command line: what it was, what it printed on either stream, and its exit status.
struct Row {
    shell: String,
    stdout: String,
    stderr: String,
    status: i32,
}

fn error_rows() -> Vec<Row> {
    rows(&fs::read_to_string(folder("text/errors.txt")).unwrap())
}

fn rows(text: &str) -> Vec<Row> {
    let rows = text.split("### ").skip(1).map(|section| {
        let mut lines = section.lines();
        let shell = lines.next().unwrap().to_owned();
        let status = lines.next().unwrap().strip_prefix("rc=").unwrap().parse().unwrap();
        let stream = |prefix: &str| {
            let lines = section.lines().filter_map(|line| line.strip_prefix(prefix));
            lines.map(|line| format!("{line}\n")).collect()
        };
        Row { shell, stdout: stream("out: "), stderr: stream("err: "), status }
    });
    rows.collect()
}

/// Why a row of `errors.txt` is not compared here; `None` for one that is.
fn elsewhere(row: &Row) -> Option<&'static str> {
    match &row.shell[..] {
        shell if shell.contains("printf") => Some("the program's own tests restore; it names lines"),
        shell if shell.starts_with("setpriv") => Some("who may do it is up to the socket"),
        "ipvsadm -Ln --rate --stats" => Some("the listing has a tunnelled server of the other family"),
        _ => None,
    }
}

#[test]
fn commands_fail_as_recorded() {
    let mut lab = Lab::new();
    assert_eq!(printed(&lab.shell(SERVICES)), "");
    let (mut compared, mut later_rows, mut other) = (0, 0, 0);
    for row in error_rows() {
        if elsewhere(&row).is_some() {
            other += 1;
            continue;
        }
        let got = lab.shell(&row.shell);
        if let Some((_, missing)) = later::ERRORS.iter().find(|(shell, _)| *shell == row.shell) {
            let message = format!("{missing} is not supported yet");
            assert_eq!(got.status, 255, "{}", row.shell);
            assert!(!got.stderr.is_empty(), "{}", row.shell);
            assert!(got.stderr.lines().all(|line| line == message), "{}: {}", row.shell, got.stderr);
            later_rows += 1;
            continue;
        }
        assert_eq!(got.status, row.status, "{}", row.shell);
        // What is said about words, and where it says more than was recorded, is for the grammar's own tests.
        if row.stderr.is_empty() || STATE_ANSWERS.contains(&row.stderr.trim_end()) {
            assert_eq!((got.stdout, got.stderr), (row.stdout, row.stderr), "{}", row.shell);
        }
        compared += 1;
    }
    assert_eq!((compared, later_rows, other), (73, later::ERRORS.len(), 4));
}

/// What a state answers.
const STATE_ANSWERS: &[&str] = &[
    "Service already exists",
    "Scheduler or persistence engine not found",
    "No such service",
    "Service not defined",
    "Destination already exists",
    "No such destination",
    "Numerical result out of range",
];

#[test]
fn commands_on_the_state_print_as_recorded() {
    let all = fs::read_to_string(folder("text/formats.txt")).unwrap();
    let recorded = |shell: &str| {
        let section = all.split_once(&format!("### {shell}\n")).unwrap_or_else(|| panic!("{shell}")).1;
        let (output, rest) = section.split_once("### rc=").unwrap();
        (output.to_owned(), rest.lines().next().unwrap().parse::<i32>().unwrap())
    };
    let mut lab = Lab::new();
    assert_eq!(printed(&lab.shell(SERVICES)), "");
    for shell in [
        "ipvsadm -Ln -t 10.88.0.100:80",
        "ipvsadm -Z; ipvsadm -Z -t 10.88.0.100:80; echo $?",
        "ipvsadm -L -n -c",
        "ipvsadm -L --timeout",
        "ipvsadm --set 1000 200 300; ipvsadm -L --timeout",
    ] {
        let got = lab.shell(shell);
        assert_eq!((printed(&got), got.status), recorded(shell), "{shell}");
    }
    let (missing, status) = recorded("ipvsadm -Ln -t 10.88.0.199:80");
    let got = lab.shell("ipvsadm -Ln -t 10.88.0.199:80");
    assert_eq!((format!("STDERR: {}", got.stderr), got.status), (missing, status));
    for command in ["--start-daemon master --mcast-interface dummy0 --syncid 7", "--stop-daemon backup"] {
        let got = lab.ipvsadm(command, b"");
        let message = "the synchronization daemon is not supported yet\n".to_owned();
        assert_eq!((got.status, got.stderr), (255, message), "{command}");
    }
    let (same, _) = recorded(
        "ipvsadm -S -n >/tmp/s1; ipvsadm -C; ipvsadm -R </tmp/s1; ipvsadm -S -n | diff /tmp/s1 - && echo same",
    );
    let saved = lab.ipvsadm("-S -n", b"").stdout;
    assert_eq!(saved.lines().count(), 5);
    lab.ipvsadm("-C", b"");
    assert_eq!(lab.ipvsadm("-S -n", b"").stdout, "");
    let restored = lab.ipvsadm("-R", saved.as_bytes());
    assert_eq!((printed(&restored), restored.status), (String::new(), 0));
    assert_eq!(if lab.ipvsadm("-S -n", b"").stdout == saved { "same\n" } else { "differ\n" }, same);
}
