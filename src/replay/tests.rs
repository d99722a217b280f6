//! Whole replays: small captures in, captures and text out.

use std::fs::{self, File};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use clap::Parser;

use super::*;
use crate::io::pcap::{NgWriter, Reader, Resolution, Writer};
use crate::types::Instant;
use crate::wire::build::{Build, Transport};
use crate::wire::transport::tcp_flags::{ACK, SYN};

const ROUTER: [u8; 6] = [2, 0, 0, 0, 1, 1];
const DIRECTOR_C: [u8; 6] = [2, 0, 0, 0, 1, 254];
const DIRECTOR_S: [u8; 6] = [2, 0, 0, 0, 2, 254];
const CLIENT: [u8; 4] = [198, 51, 100, 7];
const VIP: [u8; 4] = [192, 0, 2, 100];
/// When captures begin: 2024-01-01.
const START: u64 = 1_704_067_200_000_000_000;

const C: &str = "c,192.0.2.254/24,192.0.2.100/32,02:00:00:00:01:fe";
const S: &str = "s,10.88.2.254/24,02:00:00:00:02:fe";
const RULES: &str =
    "-A -t 192.0.2.100:80 -s rr\n-a -t 192.0.2.100:80 -r 10.88.2.11\n-a -t 192.0.2.100:80 -r 10.88.2.12\n";

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    options: Options,
}

/// A folder of a test's own, gone afterwards.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("uvs-replay-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    /// A classic capture; times in milliseconds after [`START`].
    fn capture(&self, name: &str, frames: &[(u64, Vec<u8>)]) {
        let file = File::create(self.path(name)).unwrap();
        let mut writer = Writer::new(file, Resolution::Microseconds).unwrap();
        for (time, bytes) in frames {
            writer.write(at(*time), bytes.len() as u32, bytes).unwrap();
        }
        writer.finish().unwrap();
    }

    /// The frames of a capture: interface, milliseconds after [`START`], bytes.
    fn frames(&self, name: &str) -> Vec<(String, u64, Vec<u8>)> {
        let mut reader = Reader::open(self.path(name)).unwrap();
        let mut frames = Vec::new();
        while let Some(record) = reader.next_record().unwrap() {
            let (time, interface) = ((record.time.as_nanos() - START) / 1_000_000, record.interface);
            let bytes = record.bytes.to_vec();
            let name = reader.interfaces()[interface].name.clone().unwrap_or_default();
            frames.push((name, time, bytes));
        }
        frames
    }

    /// Runs `uvs replay`, where words with a `%` mean files of this folder: status, output, messages.
    fn replay(&self, words: &[&str]) -> (i32, String, String) {
        let folder = format!("{}/", self.0.display());
        let words = words.iter().map(|word| word.replace('%', &folder));
        let options = match Cli::try_parse_from(std::iter::once("replay".to_owned()).chain(words)) {
            Ok(cli) => cli.options,
            Err(error) => return (error.exit_code(), String::new(), error.to_string()),
        };
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let status = run(&options, &mut stdout, &mut stderr);
        let text = |bytes| String::from_utf8(bytes).unwrap().replace(&folder, "%");
        (status, text(stdout), text(stderr))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn at(milliseconds: u64) -> Instant {
    Instant::from_nanos(START + milliseconds * 1_000_000)
}

/// A TCP packet to the virtual address as a client's router sends it.
fn from_client(port: u16, flags: u8) -> Build {
    let transport = Transport::tcp_with(port, 80, flags);
    Build::ipv4(CLIENT, VIP).source_mac(ROUTER).destination_mac(DIRECTOR_C).transport(transport)
}

/// The same as it leaves for real server `number`.
fn to_server(port: u16, flags: u8, number: u8) -> Vec<u8> {
    from_client(port, flags).source_mac(DIRECTOR_S).destination_mac([2, 0, 0, 0, 2, number]).ttl(63).frame()
}

const NEXT_HOPS: [&str; 4] =
    ["--next-hop", "10.88.2.11=02:00:00:00:02:0b", "--next-hop", "10.88.2.12=02:00:00:00:02:0c"];

/// The words of a replay of `%rules` over the usual two interfaces, and more.
fn usual<'a>(more: &[&'a str]) -> Vec<&'a str> {
    let first = ["--rules", "%rules", "--interface", C, "--interface", S];
    [&first[..], &NEXT_HOPS, more].concat()
}

#[test]
fn what_is_sent_is_written_with_its_time_and_the_rest_is_counted() {
    let folder = Folder::new();
    folder.write("rules", RULES);
    let elsewhere = Build::ipv4(CLIENT, [192, 0, 2, 254]).destination_mac(DIRECTOR_C).frame();
    let foreign = from_client(4000, SYN).destination_mac([2, 0, 0, 0, 9, 9]).frame();
    folder.capture(
        "in.pcap",
        &[
            (0, from_client(4000, SYN).frame()),
            (250, elsewhere.clone()),
            (1500, from_client(4000, ACK).frame()),
            (1500, from_client(4001, SYN).frame()),
            (1600, foreign),
            (1700, vec![2, 0, 0]),
        ],
    );
    let words = usual(&[
        "--in",
        "c=%in.pcap",
        "--out",
        "%out.pcap",
        "--host-out",
        "%host.pcap",
        "--show",
        "-L -n -c",
        "--show",
        "-Ln",
    ]);
    let expected = "\
IPVS connection entries
pro expire state       source             virtual            destination
TCP 14:59  ESTABLISHED 198.51.100.7:4000  192.0.2.100:80     10.88.2.12:80
TCP 00:59  SYN_RECV    198.51.100.7:4001  192.0.2.100:80     10.88.2.11:80
IP Virtual Server version 1.2.1 (size=524288)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn
TCP  192.0.2.100:80 rr
  -> 10.88.2.11:80                Route   1      1          0         
  -> 10.88.2.12:80                Route   1      1          0         
           6 frames received
           0 released
           0 held
           3 transmit
           0 reply
           1 to-host
           2 drop
           1   truncated-frame
           1   foreign-link-address
";
    let got = folder.replay(&words);
    assert_eq!(got, (0, expected.to_owned(), String::new()));
    let sent = [
        (String::new(), 0, to_server(4000, SYN, 12)),
        (String::new(), 1500, to_server(4000, ACK, 12)),
        (String::new(), 1500, to_server(4001, SYN, 11)),
    ];
    assert_eq!(folder.frames("out.pcap"), sent);
    assert_eq!(folder.frames("host.pcap"), [(String::new(), 250, elsewhere)]);
    // And the same each time.
    let before = fs::read(folder.path("out.pcap")).unwrap();
    assert_eq!(folder.replay(&words), got);
    assert_eq!(fs::read(folder.path("out.pcap")).unwrap(), before);
}

#[test]
fn interfaces_of_a_pcapng_file_go_by_name_and_rules_have_their_moments() {
    let folder = Folder::new();
    let rules = "\
@1 set sloppy_tcp 1
# Before the first frame, wherever it stands:
@0.1 -e -t 192.0.2.100:80 -r 10.88.2.11 -w 0
-A -t 192.0.2.100:80 -s wrr
-a -t 192.0.2.100:80 -r 10.88.2.11 -w 9
-a -t 192.0.2.100:80 -r 10.88.2.12
@1.0005 -L -n -c
@2 -C
";
    folder.write("rules", rules);
    let mut writer = NgWriter::new(File::create(folder.path("in.pcapng")).unwrap()).unwrap();
    for name in ["s", "c", "eth9"] {
        writer.add_interface(name).unwrap();
    }
    let frames = [
        (1, 0, from_client(4000, SYN).frame()),
        // The other one's turn, but the rule of the very moment comes first.
        (1, 100, from_client(4001, SYN).frame()),
        (2, 200, from_client(4002, SYN).frame()),
        (1, 900, from_client(4003, ACK).frame()),
        (1, 1000, from_client(4004, ACK).frame()),
        // Arrives on the other side, whose link address this is not.
        (0, 1100, from_client(4005, SYN).frame()),
        (1, 2000, from_client(4006, SYN).frame()),
    ];
    for (interface, time, bytes) in &frames {
        writer.write(*interface, at(*time), bytes.len() as u32, bytes).unwrap();
    }
    writer.finish().unwrap();
    let words = usual(&["--in", "%in.pcapng", "--out", "%out.pcapng", "--connections", "100"]);
    let (status, output, messages) = folder.replay(&words);
    assert_eq!(messages, "warning: %in.pcapng: 1 frames of eth9 are left out: no --interface is called so\n");
    assert_eq!(status, 0);
    let expected = "\
IPVS connection entries
pro expire state       source             virtual            destination
TCP 00:58  SYN_RECV    198.51.100.7:4000  192.0.2.100:80     10.88.2.12:80
TCP 00:59  SYN_RECV    198.51.100.7:4001  192.0.2.100:80     10.88.2.12:80
TCP 14:59  ESTABLISHED 198.51.100.7:4004  192.0.2.100:80     10.88.2.12:80
           6 frames received
           0 released
           0 held
           3 transmit
           0 reply
           2 to-host
           1 drop
           1   foreign-link-address
";
    assert_eq!(output, expected);
    let s = || "s".to_owned();
    let sent = [
        (s(), 0, to_server(4000, SYN, 12)),
        (s(), 100, to_server(4001, SYN, 12)),
        (s(), 1000, to_server(4004, ACK, 12)),
    ];
    assert_eq!(folder.frames("out.pcapng"), sent);
}

#[test]
fn time_goes_on_until_it_is_told_to_stop() {
    let folder = Folder::new();
    folder.write("rules", &format!("{RULES}@59 -Lnc\n@70 -D -t 192.0.2.100:80\n"));
    // Two captures, merged by time.
    folder.capture("a.pcap", &[(0, from_client(4000, SYN).frame()), (20, from_client(4002, SYN).frame())]);
    folder.capture("b.pcap", &[(10, from_client(4001, SYN).frame())]);
    let inputs = ["--in", "c=%a.pcap", "--in", "c=%b.pcap", "--out", "%out.pcap", "--show", "-L -n -c"];
    let (status, output, messages) = folder.replay(&usual(&[&inputs[..], &["--until", "60.015"]].concat()));
    assert_eq!(
        (status, &messages[..]),
        (0, "warning: --until is before the end, 70.000 s after the first frame\n")
    );
    let listings: Vec<&str> = output.split("IPVS connection entries\n").collect();
    assert_eq!(listings[1].lines().filter(|line| line.starts_with("TCP 00:01")).count(), 3, "{output}");
    assert!(!listings[2].contains("TCP"), "gone with time: {output}");
    let ports = |bytes: &[u8]| u16::from_be_bytes([bytes[34], bytes[35]]);
    let sent: Vec<u16> = folder.frames("out.pcap").iter().map(|(_, _, bytes)| ports(bytes)).collect();
    assert_eq!(sent, [4000, 4001, 4002]);

    folder.write("rules", RULES);
    for (until, left) in [("59.9", 3), ("60.005", 2), ("60.015", 1), ("61", 0), ("86400", 0)] {
        let (status, output, _) = folder.replay(&usual(&[&inputs[..], &["--until", until]].concat()));
        assert_eq!(
            (status, output.lines().filter(|line| line.starts_with("TCP")).count()),
            (0, left),
            "{until}"
        );
    }
}

#[test]
fn gateways_and_what_is_missing() {
    let folder = Folder::new();
    let rules = "\
-A -t 192.0.2.100:80
-a -t 192.0.2.100:80 -r 203.0.113.5
-A -t 192.0.2.101:80
-a -t 192.0.2.101:80 -r 10.88.2.99
-A -t [2001:db8::1]:80
-a -t [2001:db8::1]:80 -r 2001:db8::2
";
    folder.write("rules", rules);
    folder.capture("in.pcap", &[(0, from_client(4000, SYN).frame())]);
    let gateway = ["--next-hop", "192.0.2.1=02:00:00:00:01:01", "--gateway", "192.0.2.1"];
    let more = [&["--in", "c=%in.pcap", "--out", "%out.pcap"][..], &gateway].concat();
    let (status, _, messages) = folder.replay(&usual(&more));
    let expected = "\
warning: the service address 192.0.2.101 is no interface's: its packets are the host's
warning: the service address 2001:db8::1 is no interface's: its packets are the host's
warning: the link address of the real server 10.88.2.99 is not known: its packets are dropped
warning: no way leads to the real server 2001:db8::2: its packets are dropped
";
    assert_eq!((status, &messages[..]), (0, expected));
    let by_gateway = from_client(4000, SYN).source_mac(DIRECTOR_C).destination_mac(ROUTER).ttl(63).frame();
    assert_eq!(folder.frames("out.pcap"), [(String::new(), 0, by_gateway)]);
}

#[test]
fn one_interface_takes_every_frame() {
    let folder = Folder::new();
    folder.write("rules", RULES);
    folder.capture("in.pcap", &[(0, from_client(4000, SYN).frame())]);
    let one = "c,192.0.2.254/24,192.0.2.100/32,10.88.2.254/24,02:00:00:00:01:fe";
    let words =
        [&["--rules", "%rules", "--interface", one][..], &NEXT_HOPS, &["--in", "%in.pcap", "--out", "%o"]];
    assert_eq!(folder.replay(&words.concat()).0, 0);
    let sent = from_client(4000, SYN).source_mac(DIRECTOR_C).destination_mac([2, 0, 0, 0, 2, 12]).ttl(63);
    assert_eq!(folder.frames("o"), [(String::new(), 0, sent.frame())]);
}

#[test]
fn refusals_and_broken_files_are_told_and_kept_in_the_status() {
    let folder = Folder::new();
    folder.write(
        "rules",
        &format!(
            "{RULES}-A -t 192.0.2.100:80\n@0.5 set drop_entry 1\n@0.6 -A -u 192.0.2.100:80 -p --pe sip\n"
        ),
    );
    folder.capture("in.pcap", &[(0, from_client(4000, SYN).frame()), (700, from_client(4001, SYN).frame())]);
    let more = ["--in", "c=%in.pcap", "--out", "%out.pcap"];
    let (status, output, messages) = folder.replay(&usual(&more));
    let expected = "\
line 4: -A -t 192.0.2.100:80
Service already exists
line 5: @0.5 set drop_entry 1
drop_entry other than '0': defence against floods is not supported yet
line 6: @0.6 -A -u 192.0.2.100:80 -p --pe sip
the persistence engine 'sip' (--pe) is not supported yet
";
    assert_eq!((status, &messages[..]), (255, expected));
    assert!(output.contains("           2 transmit\n"), "{output}");
    // A listing that is refused counts, too.
    folder.write("rules", RULES);
    let (status, _, messages) =
        folder.replay(&usual(&[&more[..], &["--show", "-L -t 192.0.2.1:80"]].concat()));
    assert_eq!((status, &messages[..]), (255, "--show '-L -t 192.0.2.1:80'\nNo such service\n"));
    // A capture whose writer was killed: what there is of it is played.
    let whole = fs::read(folder.path("in.pcap")).unwrap();
    fs::write(folder.path("in.pcap"), &whole[..whole.len() - 5]).unwrap();
    let (status, output, messages) = folder.replay(&usual(&more));
    assert_eq!(status, 1);
    assert!(
        messages.starts_with("uvs replay: %in.pcap: byte ") && messages.lines().count() == 1,
        "{messages}"
    );
    assert!(output.contains("           1 transmit\n"), "{output}");
    // One that cut its frames short.
    let mut writer =
        Writer::new(File::create(folder.path("in.pcap")).unwrap(), Resolution::Microseconds).unwrap();
    writer.write(at(0), 1500, &from_client(4000, SYN).frame()[..40]).unwrap();
    writer.write(at(1), 70_000, &vec![0; 70_000]).unwrap();
    writer.write(at(366 * 86_400_000 + 1), 60, &[0; 60]).unwrap();
    drop(writer);
    let (status, output, messages) = folder.replay(&usual(&more));
    assert_eq!(
        (status, &messages[..]),
        (1, "uvs replay: frames more than 366 days after the first are left out\n")
    );
    let expected = "           1 frames cut short by the capture\n           1 frames too long for a director, left out\n";
    assert!(output.ends_with(expected), "{output}");
}

#[test]
fn nonsense_changes_nothing_and_ends_with_2() {
    let folder = Folder::new();
    folder.write("rules", RULES);
    folder.write("bad", "-C\n@3 -A -t 192.0.2.100:80 -w 1\n");
    folder.write("text", "no capture at all");
    folder.capture("in.pcap", &[(0, from_client(4000, SYN).frame())]);
    let files = ["--in", "c=%in.pcap", "--out", "%out.pcap"];
    let with = |words: &[&'static str]| usual(&[&files[..], words].concat());
    let instead = |file: &'static str, out: &'static str| usual(&["--in", file, "--out", out]);
    let rules = |file: &'static str, interfaces: &[&'static str]| {
        [&["--rules", file, "--in", "c=%in.pcap", "--out", "%out.pcap"][..], interfaces].concat()
    };
    let interface = |value: &'static str| rules("%rules", &["--interface", value]);
    let rows: Vec<(Vec<&str>, &str)> = vec![
        (rules("%rules", &[]), "--interface <NAME,ADDRESS/PREFIX[,...],MAC>"),
        (rules("%none", &["--interface", C]), "%none: No such file or directory"),
        (
            rules("%bad", &["--interface", C]),
            "%bad, line 2: @3 -A -t 192.0.2.100:80 -w 1\nIllegal 'weight' option",
        ),
        (interface("c"), "write NAME,ADDRESS/PREFIX,MAC, as in"),
        (interface("c,02:00:00:00:01:fe"), "write NAME,ADDRESS/PREFIX,MAC, as in"),
        (interface("c,192.0.2.1,02:00:00:00:01:fe"), "'192.0.2.1' is not a network"),
        (interface("c,192.0.2.1/33,02:00:00:00:01:fe"), "'192.0.2.1/33' is not a network"),
        (interface("c,192.0.2.1/24,02:00"), "'02:00' is not an Ethernet address"),
        (interface(",192.0.2.1/24,02:00:00:00:01:fe"), "'' is no interface's name"),
        (interface("c,192.0.2.1/24,03:00:00:00:01:fe"), "03:00:00:00:01:fe is a group address"),
        (with(&["--interface", C]), "interface c is given twice"),
        (with(&["--next-hop", "10.88.2.13"]), "write ADDRESS=MAC, as in"),
        (with(&["--next-hop", "10.88.2.=02:00:00:00:02:0d"]), "'10.88.2.' is not an IP address"),
        (with(&["--next-hop", "10.88.2.13=0d"]), "'0d' is not an Ethernet address"),
        (with(&["--next-hop", "10.88.2.13=02:00:00:00:02:0d@x"]), "no --interface is called x"),
        (
            with(&["--next-hop", "10.88.2.11=02:00:00:00:02:0d"]),
            "the link address of 10.88.2.11 is given twice",
        ),
        (
            with(&["--next-hop", "203.0.113.1=02:00:00:00:02:0d"]),
            "203.0.113.1 lies in no interface's network",
        ),
        (with(&["--next-hop", "10.88.2.254=02:00:00:00:02:0d"]), "10.88.2.254 is an interface's own address"),
        (with(&["--gateway", "192.0.2.1"]), "nobody knows the link address of the gateway 192.0.2.1"),
        (with(&["--gateway", "router"]), "invalid value 'router'"),
        (with(&["--show", "-A -t 192.0.2.1:80"]), "it is no listing"),
        (with(&["--show", "-L -x"]), "--show '-L -x': -x: missing argument"),
        (with(&["--until", "-1"]), "unexpected argument '-1'"),
        (with(&["--until=-1"]), "'-1' is not a number of seconds"),
        (with(&["--until", "1e9"]), "'1e9' is not a number of seconds"),
        (with(&["--until", "31622401"]), "'31622401' is not a number of seconds from 0 to 31622400"),
        (with(&["--connections", "0"]), "0 is not in 1..=67108864"),
        (with(&["--connections", "99999999"]), "99999999 is not in 1..=67108864"),
        (with(&["--in", "x=%in.pcap"]), "no --interface is called x"),
        (instead("%in.pcap", "%out.pcap"), "%in.pcap: it does not name its interfaces"),
        (instead("c=%none", "%out.pcap"), "%none: byte 0: No such file or directory"),
        (instead("c=%text", "%out.pcap"), "%text: not a pcap or pcapng file"),
        (instead("c=%in.pcap", "%in.pcap"), "%in.pcap: it cannot be written, as it is another of the files"),
        (instead("c=%in.pcap", "%rules"), "%rules: it cannot be written, as it is another of the files"),
        (
            with(&["--host-out", "%out.pcap"]),
            "%out.pcap: it cannot be written, as it is another of the files",
        ),
        (instead("c=%in.pcap", "%none/out.pcap"), "%none/out.pcap: No such file or directory"),
    ];
    let capture = fs::read(folder.path("in.pcap")).unwrap();
    for (words, message) in rows {
        let (status, output, messages) = folder.replay(&words);
        assert_eq!((status, &output[..]), (2, ""), "{words:?}: {messages}");
        assert!(messages.contains(message), "{words:?}: {messages}");
        assert!(messages.starts_with("uvs replay: ") || messages.starts_with("error: "), "{messages}");
    }
    assert_eq!(fs::read(folder.path("in.pcap")).unwrap(), capture);
    assert_eq!(fs::read_to_string(folder.path("rules")).unwrap(), RULES);
    let many = std::iter::repeat_n(["--in", "c=%in.pcap"], MAX_INPUTS).flatten().collect::<Vec<_>>();
    assert!(folder.replay(&with(&many)).2.contains("more than 64 captures to read"));
}

#[test]
fn an_empty_capture_and_no_rules_are_fine() {
    let folder = Folder::new();
    folder.write("rules", "\n# nothing\n@5 -L -n\n");
    folder.capture("in.pcap", &[]);
    let (status, output, messages) =
        folder.replay(&usual(&["--in", "c=%in.pcap", "--out", "%out.pcap", "--until", "10"]));
    assert_eq!((status, &messages[..]), (0, ""));
    assert!(output.starts_with("IP Virtual Server") && output.contains("           0 frames received\n"));
    assert_eq!(folder.frames("out.pcap"), []);
}
