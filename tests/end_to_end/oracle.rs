//! Recordings of a real kernel with IPVS, played at a live director through its ports, and compared frame by frame.
//!
//! The test plays the clients' gateway (on `c0`) and every real server (on `s0`) with raw frames; the director has
//! `c1` and `s1`, with the addresses and neighbours that the recorded kernel had. What the host itself answers comes
//! from the real network stack of the director's namespace.
//!
//! Forgiven is what may differ from one run of the kernel to the next: IP identifications that the answering host
//! makes, checksums' values (not their being right), the expiry column by two seconds, the order of listed rows, and
//! counters that were read within two seconds of the packets, which the kernel had not added up yet.

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::Value;
use uvs::sys::frames::{Frame, FramePool};
use uvs::sys::interface::InterfaceControl;
use uvs::sys::packet::{PACKET_BATCH, PacketFilter, PacketSocket, Received, VirtioHeader};
use uvs::wire::Addresses;
use uvs::wire::build::{Build, Transport};
use uvs::wire::checksum::Sum;
use uvs::wire::transport::tcp_flags::{ACK, FIN, RST, SYN};

use crate::support::director::{Director, PortType};
use crate::support::{Finished, Site, is_root};

type Mac = [u8; 6];

const GATEWAY: Mac = [2, 0, 0x0a, 0x58, 1, 1];
const DIRECTOR_C: Mac = [2, 0, 0x0a, 0x58, 1, 0xfe];
/// How long an expected frame may take, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long to wait for a frame that must not come, and for more than those expected. A late one is noticed at the
/// next step.
const SILENCE: Duration = Duration::from_millis(60);
const SETTLE: Duration = Duration::from_millis(3);
/// How long the kernel may take to add counters up.
const COUNTERS_AGE: Duration = Duration::from_secs(2);
/// By how many seconds an expiry may differ.
const EXPIRY_SLACK: u32 = 2;
/// Loads a module of the recorded kernel, for FTP behind NAT.
const KERNEL_MODULE: &str = "$(cat /proc/sys/kernel/modprobe) ip_vs_ftp";
/// What recorded commands may call.
const UNDERSTOOD: [&str; 6] = ["ipvsadm", "uvs", "sysctl", "sleep", "tail", "sort"];

/// The director's side as the recorded kernel had it.
const DIRECTOR_SETUP: &str = "
ip link set c1 address 02:00:0a:58:01:fe && ip link set s1 address 02:00:0a:58:02:fe &&
ip addr add 10.88.1.254/24 dev c1 && ip addr add 10.88.2.254/24 dev s1 &&
sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.c1.rp_filter=0 \
    net.ipv4.conf.s1.rp_filter=0 net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.c1.send_redirects=0 \
    net.ipv4.conf.s1.send_redirects=0 net.ipv4.icmp_ratelimit=0 &&
ip neigh replace 10.88.1.1 lladdr 02:00:0a:58:01:01 dev c1 nud permanent &&
for i in 11 12 13 14 15; do
    ip neigh replace 10.88.2.$i lladdr 02:00:0a:58:02:$(printf %02x $i) dev s1 nud permanent || exit
done &&
ip route add 10.88.128.0/17 via 10.88.1.1 &&
for v in $(seq 100 120); do ip addr add 10.88.0.$v/32 dev lo || exit; done";

/// `sysctl` as recorded commands use it.
const SYSCTL: &str = "#!/bin/sh
[ \"$1\" = -qw ] || { echo \"not understood: sysctl $*\" >&2; exit 99; }
shift
for setting in \"$@\"; do
    case $setting in
    net.ipv4.vs.*=*)
        setting=${setting#net.ipv4.vs.}
        uvs set \"${setting%%=*}\" \"${setting#*=}\" >/dev/null || exit ;;
    *) echo \"not understood: sysctl $setting\" >&2; exit 99 ;;
    esac
done
";

/// One of the test's two interfaces.
struct Wire {
    name: &'static str,
    socket: PacketSocket,
    frames: FramePool,
    slots: Vec<Frame>,
}

impl Wire {
    fn open(name: &'static str, interface: &str) -> Self {
        let index = InterfaceControl::new().unwrap().index(interface).unwrap();
        let socket = PacketSocket::open(index, 1 << 22, false).unwrap();
        socket.listen(None, &PacketFilter::Everything).unwrap();
        let mut frames = FramePool::new(2 * PACKET_BATCH as u32, 4096).unwrap();
        let slots = (0..PACKET_BATCH).map(|_| frames.allocate().unwrap()).collect();
        Self { name, socket, frames, slots }
    }

    fn send(&mut self, bytes: &[u8]) {
        let frame = self.frames.allocate_copy(bytes).unwrap();
        let queue = [(frame, VirtioHeader::default())];
        assert_eq!(self.socket.send(&self.frames, &queue).unwrap(), 1);
        let [(frame, _)] = queue;
        self.frames.free(frame);
    }

    /// What has arrived, checksums completed as a network card would.
    fn receive(&mut self) -> Vec<Vec<u8>> {
        let mut received = [Received::default(); PACKET_BATCH];
        let count = match self.socket.receive(&self.frames, &mut self.slots, &mut received) {
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => 0,
            Err(error) => panic!("{}: {error}", self.name),
        };
        let complete = |(slot, received): (&Frame, &Received)| {
            let mut bytes = self.frames.bytes(slot).to_vec();
            assert!(!received.cut && received.tag.is_none());
            let VirtioHeader { needs_checksum, checksum_start, checksum_offset, .. } = received.header;
            if needs_checksum {
                let (start, field) =
                    (usize::from(checksum_start), usize::from(checksum_start + checksum_offset));
                let checksum = Sum::ZERO.bytes(&bytes[start..]).checksum();
                bytes[field..field + 2].copy_from_slice(&checksum.to_be_bytes());
            }
            bytes
        };
        self.slots.iter().zip(&received).take(count).map(complete).collect()
    }
}

/// A frame that came out of the director, and where.
type Out = (&'static str, Vec<u8>);

/// The clients' gateway and the real servers.
struct Outside {
    wires: [Wire; 2],
}

impl Outside {
    fn open(site: &Site) -> Self {
        Self { wires: site.inside("outside", || [Wire::open("c", "c0"), Wire::open("s", "s0")]) }
    }

    fn send(&mut self, wire: &str, bytes: &[u8]) {
        let known = self.wires.iter_mut().find(|known| known.name == wire);
        known.unwrap_or_else(|| panic!("not understood: port {wire}")).send(bytes);
    }

    /// What the director sends: waits for as many frames as are `expected`, and then a little for more.
    fn collect(&mut self, expected: usize) -> Vec<Out> {
        let mut out = Vec::new();
        let mut end = Instant::now() + if expected == 0 { SILENCE } else { PATIENCE };
        let mut settling = expected == 0;
        while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            let timeout = Timespec::try_from(left).unwrap();
            let mut descriptors = self.wires.each_ref().map(|wire| PollFd::new(&wire.socket, PollFlags::IN));
            poll(&mut descriptors, Some(&timeout)).unwrap();
            for wire in &mut self.wires {
                for bytes in wire.receive() {
                    match bytes[12..14] {
                        [0x86, 0xdd] => {}
                        [0x08, 0x06] => answer(wire, &bytes),
                        _ => out.push((wire.name, bytes)),
                    }
                }
            }
            if out.len() >= expected && !settling {
                settling = true;
                end = Instant::now() + SETTLE;
            }
        }
        out
    }
}

/// Answers an ARP request for the gateway or a real server.
fn answer(wire: &mut Wire, request: &[u8]) {
    let Some(&[a, b, c, last]) = request.get(38..42).and_then(|target| target.first_chunk::<4>()) else {
        return;
    };
    let mac = match (wire.name, [a, b, c]) {
        ("c", [10, 88, 1]) if last == 1 => GATEWAY,
        ("s", [10, 88, 2]) if (11..=15).contains(&last) => [2, 0, 0x0a, 0x58, 2, last],
        _ => return,
    };
    if request[20..22] != [0, 1] {
        return;
    }
    let asker: [u8; 10] = request[22..32].try_into().unwrap();
    let mut reply = Vec::from(&asker[..6]);
    reply.extend(mac);
    reply.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 2]);
    reply.extend(mac);
    reply.extend([a, b, c, last]);
    reply.extend(asker);
    wire.send(&reply);
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// The IPv4 packet in a frame, without the link's padding.
fn packet(frame: &[u8]) -> Option<&[u8]> {
    if frame.get(12..14)? != [8, 0] {
        return None;
    }
    frame[14..].get(..usize::from(u16_at(frame, 16)))
}

/// Whether all checksums of an IPv4 packet are right.
fn checksums_are_right(packet: &[u8]) -> bool {
    let header = usize::from(packet[0] & 15) * 4;
    if Sum::ZERO.bytes(&packet[..header]).checksum() != 0 {
        return false;
    }
    let body = &packet[header..];
    if u16_at(packet, 6) & 0x3fff != 0 {
        return true;
    }
    let addresses = Addresses::V4 {
        source: u32::from_be_bytes(packet[12..16].try_into().unwrap()),
        destination: u32::from_be_bytes(packet[16..20].try_into().unwrap()),
    };
    let pseudo = Sum::ZERO.pseudo_header(&addresses, packet[9], body.len() as u32);
    match packet[9] {
        17 if u16_at(body, 6) == 0 => true,
        6 | 17 => pseudo.bytes(body).checksum() == 0,
        1 => Sum::ZERO.bytes(body).checksum() == 0,
        _ => true,
    }
}

/// A frame that came out, without what may differ.
#[derive(PartialEq, Eq, Debug)]
struct Comparable {
    port: String,
    destination: Vec<u8>,
    /// The packet; all that follows the addresses, where it is no IPv4.
    bytes: Vec<u8>,
    checksums_are_right: bool,
}

impl Comparable {
    /// `cause` is the frame that went in before.
    fn new(port: &str, frame: &[u8], cause: &[u8]) -> Self {
        let destination = frame[..6].to_vec();
        let Some(original) = packet(frame) else {
            let bytes = frame[14..].to_vec();
            return Self { port: port.to_owned(), destination, bytes, checksums_are_right: true };
        };
        let mut bytes = original.to_vec();
        let identification = u16_at(&bytes, 4);
        if packet(cause).map(|cause| u16_at(cause, 4)) != Some(identification) && identification != 0 {
            bytes[4..6].fill(0xee);
        }
        bytes[10..12].fill(0);
        let header = usize::from(bytes[0] & 15) * 4;
        let (protocol, fragment) = (bytes[9], u16_at(&bytes, 6) & 0x1fff);
        let body = &mut bytes[header..];
        if fragment == 0 {
            match protocol {
                6 if body.len() >= 18 => body[16..18].fill(0),
                17 if body.len() >= 8 && u16_at(body, 6) != 0 => body[6..8].copy_from_slice(&[0, 1]),
                1 => {
                    body[2..4].fill(0);
                    // The checksum of the quoted header.
                    if body.len() >= 20 && matches!(body[0], 3 | 4 | 5 | 11 | 12) {
                        body[18..20].fill(0);
                    }
                }
                _ => {}
            }
        }
        Self { port: port.to_owned(), destination, bytes, checksums_are_right: checksums_are_right(original) }
    }
}

/// Minutes and seconds.
fn expiry(word: &str) -> Option<u32> {
    let (minutes, seconds) = word.split_once(':')?;
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number(minutes) || !is_number(seconds) || seconds.len() != 2 {
        return None;
    }
    Some(minutes.parse::<u32>().ok()? * 60 + seconds.parse::<u32>().ok()?)
}

fn rows(listing: &str) -> Vec<Vec<&str>> {
    let mut rows: Vec<Vec<&str>> = listing
        .lines()
        .filter(|line| !line.starts_with("IP Virtual Server"))
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|row| !row.is_empty())
        .collect();
    rows.sort_by_key(|row| row.iter().filter(|word| expiry(word).is_none()).copied().collect::<Vec<_>>());
    rows
}

/// Whether two listings say the same. The last `forgiven` columns of rows with addresses may differ.
fn listings_agree(want: &str, got: &str, forgiven: usize) -> bool {
    let (want, got) = (rows(want), rows(got));
    want.len() == got.len()
        && want.iter().zip(&got).all(|(want, got)| {
            let is_data = want.iter().any(|word| word.parse::<u64>().is_ok());
            let compared = if is_data { want.len().saturating_sub(forgiven) } else { want.len() };
            want.len() == got.len()
                && want.iter().zip(got).take(compared).all(|(want, got)| {
                    want == got
                        || matches!((expiry(want), expiry(got)), (Some(want), Some(got))
                            if want.abs_diff(got) <= EXPIRY_SLACK)
                })
        })
}

/// The namespaces, and the test's side of them.
struct Stage<'a> {
    site: &'a Site,
    outside: Outside,
}

impl Stage<'_> {
    fn site() -> Site {
        let mut site = Site::new();
        site.add("outside");
        site.add("director");
        for (outside, inside) in [("c0", "c1"), ("s0", "s1")] {
            site.join(("outside", outside), ("director", inside), 1);
        }
        site.run("director", DIRECTOR_SETUP).ok();
        // A limit of the whole machine with some kernels, of the namespace with others.
        let unlimited = "sysctl -qw net.ipv4.icmp_msgs_per_sec=100000 net.ipv4.icmp_msgs_burst=100000";
        let _ = site.run("director", unlimited);
        fs::create_dir(site.path("recorded")).unwrap();
        let sysctl = site.write("recorded/sysctl", SYSCTL);
        fs::set_permissions(sysctl, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        site
    }

    /// Runs a recorded command at the director.
    fn command(&self, line: &str) -> Finished {
        for part in line.split(['|', ';', '\n']) {
            let word = part.split_whitespace().next().unwrap_or_default();
            assert!(UNDERSTOOD.contains(&word), "not understood: {word:?} in {line:?}");
        }
        self.site.run("director", &format!("PATH={}:$PATH; {line}", self.site.path("recorded").display()))
    }

    fn set_up(&self, recording: &Value) {
        for line in recording["setup"].as_array().unwrap() {
            if line == KERNEL_MODULE {
                continue;
            }
            // An operator's script changes the program's name.
            self.command(
                &line
                    .as_str()
                    .unwrap()
                    .replace("ip6tables-legacy ", "uvs mark -6 ")
                    .replace("iptables-legacy ", "uvs mark "),
            )
            .ok();
        }
    }
}

/// Agreements counted, disagreements kept.
#[derive(Default)]
struct Score {
    compared: usize,
    complaints: Vec<String>,
}

impl Score {
    fn add(&mut self, agrees: bool, complaint: impl FnOnce() -> String) {
        self.compared += 1;
        if !agrees {
            self.complaints.push(complaint());
        }
    }
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_else(|| panic!("not understood: no {name} in {value}"))
}

fn bytes_of(frame: &Value) -> Vec<u8> {
    let hex = text(frame, "hex");
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

/// Plays a case's steps.
fn play_steps(stage: &mut Stage<'_>, recording: &Value, score: &mut Score) {
    let name = text(recording, "name");
    let mut last_sent = Instant::now();
    for step in recording["steps"].as_array().unwrap() {
        let keys: Vec<&str> = step.as_object().unwrap().keys().map(String::as_str).collect();
        if let Some(seconds) = step["sleep"].as_f64() {
            std::thread::sleep(Duration::from_secs_f64(seconds));
        } else if let Some(sent) = step.get("send") {
            last_sent = Instant::now();
            let bytes = bytes_of(sent);
            let expected = step["recv"].as_array().expect("what came");
            stage.outside.send(text(sent, "port"), &bytes);
            let out = stage.outside.collect(expected.len());
            let want: Vec<Comparable> = expected
                .iter()
                .map(|frame| Comparable::new(text(frame, "port"), &bytes_of(frame), &bytes))
                .collect();
            let got: Vec<Comparable> =
                out.iter().map(|(port, frame)| Comparable::new(port, frame, &bytes)).collect();
            score.add(want == got, || {
                let note = step["note"].as_str().unwrap_or_default();
                format!("{name}: {} [{note}]\n  want {want:x?}\n  got  {got:x?}", text(sent, "desc"))
            });
        } else if let Some(line) = step["exec"].as_str() {
            let finished = stage.command(line);
            let want = format!("{}{}", text(step, "stdout"), text(step, "stderr"));
            let got = format!("{}{}", finished.stdout, finished.stderr);
            let counters = line.contains("--stats") && last_sent.elapsed() < COUNTERS_AGE;
            let agrees =
                step["rc"] == finished.status && listings_agree(&want, &got, if counters { 5 } else { 0 });
            score.add(agrees, || format!("{name}: {line}\n  want {want}\n  got  {got}"));
        } else {
            panic!("{name}: not understood: a step of {keys:?}");
        }
    }
}

/// Plays a sequence's events: which server gets which packet.
fn play_events(stage: &mut Stage<'_>, recording: &Value, score: &mut Score) {
    let name = text(recording, "name");
    let mut identification = 100;
    for event in recording["events"].as_array().unwrap() {
        let kind = event[0].as_str().unwrap();
        if kind == "exec" {
            stage.command(event[1].as_str().unwrap()).ok();
            continue;
        }
        let (flags, sequence, acknowledgement) = match kind {
            "syn" => (SYN, 1000, 0),
            "ack" => (ACK, 1001, 1),
            "fin" => (FIN | ACK, 1001, 1),
            "rst" => (RST, 1001, 1),
            _ => panic!("{name}: not understood: {kind}"),
        };
        let address = |at: usize| event[at].as_str().unwrap().parse::<Ipv4Addr>().unwrap();
        let port = |at: usize| u16::try_from(event[at].as_u64().unwrap()).unwrap();
        let (client, service) =
            (SocketAddrV4::new(address(1), port(2)), SocketAddrV4::new(address(3), port(4)));
        identification += 1;
        let transport = Transport::Tcp {
            source: client.port(),
            destination: service.port(),
            flags,
            sequence,
            acknowledgement,
            options: Vec::new(),
        };
        let frame = Build::ipv4(client.ip().octets(), service.ip().octets())
            .source_mac(GATEWAY)
            .destination_mac(DIRECTOR_C)
            .identification(identification)
            .transport(transport)
            .frame();
        stage.outside.send("c", &frame);
        let want = event[5].as_str();
        // Where no server was chosen, an answer came back to the client, or nothing: not part of the recording.
        let out = stage.outside.collect(usize::from(want.is_some()));
        let to_servers: Vec<String> = out
            .iter()
            .filter(|(port, _)| *port == "s")
            .map(|(_, frame)| format!("r{}", i32::from(frame[5]) - 10))
            .collect();
        let want: Vec<String> = want.map(str::to_owned).into_iter().collect();
        score.add(to_servers == want, || format!("{name}: {event}: got {to_servers:?}"));
    }
}

fn recorded(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/oracle").join(path)
}

/// Plays recordings, each at a director of its own, and expects so many comparisons.
#[track_caller]
fn play(paths: &[PathBuf], port_type: PortType, expected: usize) {
    if !is_root() {
        return;
    }
    let site = Stage::site();
    let mut stage = Stage { site: &site, outside: Outside::open(&site) };
    let mut score = Score::default();
    for path in paths {
        let recording: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
        let director = Director::start(&site, "director", &["c1", "s1"], port_type, &[]);
        stage.set_up(&recording);
        if recording.get("events").is_some() {
            play_events(&mut stage, &recording, &mut score);
        } else {
            play_steps(&mut stage, &recording, &mut score);
        }
        director.check();
        director.stop();
    }
    let disagreements = score.complaints.len();
    assert_eq!(disagreements, 0, "of {}:\n{}", score.compared, score.complaints.join("\n"));
    assert_eq!(score.compared, expected);
}

/// What direct routing has to say to, case by case.
const CASES: [&str; 9] = [
    "dr-tcp-states",
    "udp-dr",
    "quiesce",
    "conn-reuse-0",
    "conn-reuse-1",
    "persist-ftp-21",
    "persist-fwmark",
    "persist-pcc",
    "persist-ppc",
];
/// Frames sent and commands run in them.
const CASE_STEPS: usize = 141;
/// Packets in the sequences.
const SEQUENCE_STEPS: usize = 2417;

/// A template that outlives its time, second by second: half a minute, so it is played over one kind of port. A second
/// is what its listings leave a busy machine.
const EXPIRY: &str = "cases/persist-expiry.json";
/// Frames sent and commands run in it.
const EXPIRY_STEPS: usize = 16;

fn cases() -> Vec<PathBuf> {
    CASES.map(|name| recorded(&format!("cases/{name}.json"))).into()
}

/// The sequences of four schedulers, and those of services by mark. All of them are played in process.
fn sequences() -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(recorded("seq"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            let name = path.file_name().unwrap().to_str().unwrap();
            let is_ours = ["rr-", "wrr-", "wlc-", "sh-"].iter().any(|scheduler| name.starts_with(scheduler));
            (is_ours && name.ends_with(".json")) || name.ends_with("-fwm.json")
        })
        .collect();
    paths.sort();
    paths
}

#[test]
fn cases_over_native_xdp() {
    play(&cases(), PortType::XdpNative, CASE_STEPS);
}

#[test]
fn cases_over_raw_sockets() {
    play(&cases(), PortType::Packet, CASE_STEPS);
}

#[test]
fn sequences_over_native_xdp() {
    play(&sequences(), PortType::XdpNative, SEQUENCE_STEPS);
}

#[test]
fn sequences_over_raw_sockets() {
    play(&sequences(), PortType::Packet, SEQUENCE_STEPS);
}

/// That the comparison itself sees what it should.
mod comparison {
    use super::*;

    fn frame(flags: u8, identification: u32) -> Vec<u8> {
        Build::ipv4([10, 88, 128, 1], [10, 88, 0, 100])
            .identification(identification)
            .transport(Transport::tcp_with(4000, 80, flags))
            .frame()
    }

    #[test]
    fn frames_differ_by_what_counts() {
        let of = |frame: &[u8], cause: &[u8]| Comparable::new("s", frame, cause);
        let cause = frame(SYN, 7);
        assert_eq!(of(&frame(SYN, 7), &cause), of(&cause, &cause));
        assert_eq!(of(&frame(SYN, 8), &cause), of(&frame(SYN, 9), &cause), "the host's own identification");
        assert_ne!(of(&frame(SYN, 8), &cause), of(&cause, &cause), "it was to be kept");
        assert_ne!(of(&frame(ACK, 7), &cause), of(&cause, &cause));
        assert_ne!(Comparable::new("c", &cause, &cause), of(&cause, &cause));
        let mut wrong = cause.clone();
        wrong[14 + 20 + 16] ^= 1;
        assert_ne!(of(&wrong, &cause), of(&cause, &cause), "a wrong checksum");
        let mut elsewhere = cause.clone();
        elsewhere[5] ^= 1;
        assert_ne!(of(&elsewhere, &cause), of(&cause, &cause), "another server");
    }

    #[test]
    fn listings_differ_by_what_counts() {
        let listing = "TCP 00:59  SYN_RECV    10.88.128.1:4000\nTCP 14:59  ESTABLISHED 10.88.128.2:4000\n";
        let older = "TCP 14:57  ESTABLISHED 10.88.128.2:4000\nTCP 01:00  SYN_RECV    10.88.128.1:4000\n";
        assert!(listings_agree(listing, older, 0));
        assert!(!listings_agree(listing, &older.replace("14:57", "14:56"), 0));
        assert!(!listings_agree(listing, &older.replace("SYN_RECV", "CLOSE"), 0));
        assert!(!listings_agree(listing, "", 0));
        let stats = "Prot Conns InPkts\nTCP 10.88.0.100:53 0 0\n";
        assert!(listings_agree(stats, &stats.replace("0 0", "3 7"), 2));
        assert!(!listings_agree(stats, &stats.replace("0 0", "3 7"), 0));
        assert!(!listings_agree(stats, &stats.replace("100:53", "100:54"), 2));
        assert!(!listings_agree(stats, &stats.replace("InPkts", "Packets"), 2));
    }
}

#[test]
fn expiry_over_raw_sockets() {
    play(&[recorded(EXPIRY)], PortType::Packet, EXPIRY_STEPS);
}
