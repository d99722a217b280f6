//! The lab's own conduct - order, failures, cleaning up - with a stand-in for the director.
//!
//! This program has its own main, because the lab starts it again: as `PROGRAM run ...` it poses as a director,
//! as `PROGRAM adm ...` and `PROGRAM stats` as its commands, as `PROGRAM in-a-process ...` it is `uvs lab`. The
//! stand-in lets the kernel route everything for the VIP to the first real server, whose own address stays out
//! of the packets as in direct routing.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::IpAddr;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use clap::Parser;
use rustix::process::{Pid, Signal, kill_process};
use uvs::lab::{LabError, LabOptions, NAMESPACES, run};
use uvs::net::Netlink;
use uvs::net::constants as k;
use uvs::net::message::{Request, octets};

const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Parser)]
struct Options {
    #[command(flatten)]
    lab: LabOptions,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["run", ..] => stand_in(&words),
        ["adm", ..] | ["stats"] => command(&words),
        ["in-a-process", rest @ ..] => uvs::lab::main(&Options::parse_from([&["lab"], rest].concat()).lab),
        ["--list", rest @ ..] => list(rest),
        _ => tests(&words),
    }
}

/// The director's stand-in.
fn stand_in(words: &[&str]) -> ExitCode {
    if words.windows(2).any(|pair| pair == ["--io", "packet"]) {
        eprintln!("no such luck");
        return ExitCode::from(3);
    }
    let control = words.windows(2).find(|pair| pair[0] == "--control").map(|pair| pair[1]).unwrap();
    if !words.contains(&"generic") {
        route_by_the_kernel();
    }
    let listener = UnixListener::bind(control).unwrap();
    for connection in listener.incoming() {
        drop(connection);
    }
    ExitCode::SUCCESS
}

/// Makes the kernel send what comes for the VIP to the first real server. Without it, the VIP is the director's
/// host's own, where nobody serves.
fn route_by_the_kernel() {
    let vip: IpAddr = "192.168.50.100".parse().unwrap();
    let first: IpAddr = "192.168.50.22".parse().unwrap();
    let mut netlink = Netlink::open().unwrap();
    let mut index = 0_u32;
    let eth0 = Request::new(k::RTM_GETLINK, 0, &[0; k::LINK_FIXED]).text(k::IFLA_IFNAME, "eth0");
    netlink.get("find eth0", eth0, |message| index = uvs::net::Link::decode(message).unwrap().index).unwrap();
    let mut fixed = [k::AF_INET, 32, 0, 0, 0, 0, 0, 0];
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    let address = Request::new(k::RTM_DELADDR, 0, &fixed).attribute(k::IFA_LOCAL, &octets(vip));
    netlink.change("take the VIP off", address).unwrap();
    let fixed = [k::AF_INET, 32, 0, 0, k::RT_TABLE_MAIN, k::RTPROT_STATIC, 0, k::RTN_UNICAST, 0, 0, 0, 0];
    let route = Request::new(k::RTM_NEWROUTE, k::NLM_F_CREATE, &fixed)
        .attribute(k::RTA_DST, &octets(vip))
        .attribute(k::RTA_GATEWAY, &octets(first));
    netlink.change("route the VIP", route).unwrap();
    let settings = [
        ("ip_forward", "1"),
        ("conf/eth0/proxy_arp_pvlan", "1"),
        ("conf/eth0/send_redirects", "0"),
        ("conf/all/send_redirects", "0"),
    ];
    for (name, value) in settings {
        fs::write(format!("/proc/sys/net/ipv4/{name}"), value).unwrap();
    }
}

/// The commands' stand-in: says what it was asked, where the director is reachable.
fn command(words: &[&str]) -> ExitCode {
    let control = std::env::var("UVS_CONTROL").unwrap();
    std::os::unix::net::UnixStream::connect(control).unwrap();
    if words.contains(&"nosuch") {
        eprintln!("there is no scheduler 'nosuch'");
        return ExitCode::from(2);
    }
    println!("[{}]", words.join(" "));
    ExitCode::SUCCESS
}

/// The tests, which have no harness to find them.
const TESTS: [(&str, fn()); 5] = [
    ("every_request_is_answered_and_listed", every_request_is_answered_and_listed),
    ("failures_of_the_director_are_told_with_its_words", failures_of_the_director_are_told_with_its_words),
    ("unanswered_requests_fail_the_lab", unanswered_requests_fail_the_lab),
    ("a_signal_removes_everything", a_signal_removes_everything),
    ("what_a_killed_lab_leaves_is_removed_by_the_next", what_a_killed_lab_leaves_is_removed_by_the_next),
];

/// Tells `cargo nextest` what there is, in the words of the usual harness; none is ignored.
fn list(options: &[&str]) -> ExitCode {
    if !options.contains(&"--ignored") {
        TESTS.iter().for_each(|(name, _)| println!("{name}: test"));
    }
    ExitCode::SUCCESS
}

fn tests(filter: &[&str]) -> ExitCode {
    if !rustix::process::geteuid().is_root() {
        assert!(std::env::var_os("UVS_REQUIRE_ROOT").is_none_or(|value| value != "1"), "needs root");
        eprintln!("SKIPPED: needs root, to make network namespaces");
        return ExitCode::SUCCESS;
    }
    // `cargo test NAME` hands on names, among options of the usual harness, some of which have values.
    let with_value = ["--test-threads", "--skip", "--format", "--color", "-Z"];
    let names: Vec<&&str> = filter
        .iter()
        .enumerate()
        .filter(|(index, word)| {
            !word.starts_with('-') && (*index == 0 || !with_value.contains(&filter[index - 1]))
        })
        .map(|(_, word)| word)
        .collect();
    let wanted = |name: &str| names.is_empty() || names.iter().any(|word| name.contains(**word));
    // A failed assertion ends the program with its own message and status.
    for (name, test) in TESTS.into_iter().filter(|(name, _)| wanted(name)) {
        test();
        println!("test {name} ... ok");
    }
    ExitCode::SUCCESS
}

fn myself() -> PathBuf {
    std::env::current_exe().unwrap()
}

fn lab(arguments: &[&str]) -> (Result<(), LabError>, String) {
    let options = Options::parse_from([&["lab"], arguments].concat()).lab;
    let mut output = Vec::new();
    let result = run(&options, &myself(), &mut output);
    (result, String::from_utf8(output).unwrap())
}

/// Namespaces and directories of the labs of process `pid`.
fn remains(pid: u32) -> Vec<PathBuf> {
    let prefix = format!("uvs-lab-{pid}");
    [NAMESPACES, "/run"]
        .into_iter()
        .flat_map(|directory| fs::read_dir(directory).unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().contains(&prefix)))
        .collect()
}

fn every_request_is_answered_and_listed() {
    let (result, output) = lab(&["--requests", "20", "--servers", "3"]);
    assert!(result.is_ok(), "{result:?}\n{output}");
    assert!(output.contains("20 requests in ") && output.contains(": 20 answered, 0 failed"), "{output}");
    let line = |name: &str| output.lines().find(|line| line.trim_start().starts_with(name)).unwrap();
    assert!(line("node1").ends_with(" 20") && line("node2").ends_with(" 0"), "{output}");
    for listing in ["[adm -Ln]", "[adm -Lnc]", "[adm -Ln --stats]", "[stats]"] {
        assert!(output.contains(listing), "{listing}: {output}");
    }
    assert_eq!(remains(std::process::id()), Vec::<PathBuf>::new());
}

fn failures_of_the_director_are_told_with_its_words() {
    // A program that ends at once and says nothing.
    let options = Options::parse_from(["lab"]).lab;
    let error = run(&options, Path::new("/bin/true"), &mut Vec::new()).unwrap_err().to_string();
    assert!(error.contains("ended by itself (exit status: 0); its log is empty"), "{error}");
    for (arguments, expected) in [
        (["--io", "packet"], ["ended by itself (exit status: 3)", "no such luck"]),
        (
            ["--scheduler", "nosuch"],
            ["'uvs adm -A -t 192.168.50.100:80 -s nosuch' failed", "no scheduler 'nosuch'"],
        ),
    ] {
        let error = lab(&arguments).0.unwrap_err().to_string();
        assert!(expected.iter().all(|part| error.contains(part)), "{error}");
        assert_eq!(remains(std::process::id()), Vec::<PathBuf>::new());
    }
}

fn unanswered_requests_fail_the_lab() {
    let (result, output) = lab(&["--requests", "50", "--xdp-mode", "generic"]);
    match result {
        // It gives up after a few in a row, but shows what there is to see.
        Err(LabError::Requests { failed: 5, requests: 5, last }) => {
            assert!(last.contains("refused"), "{last}")
        }
        other => panic!("{other:?}"),
    }
    assert!(output.contains("5 requests in ") && output.contains(": 0 answered, 5 failed"), "{output}");
    assert!(output.contains("[adm -Lnc]"), "{output}");
    assert_eq!(remains(std::process::id()), Vec::<PathBuf>::new());
}

/// A lab in a process of its own that stays up, and its output so far.
fn kept() -> (Child, String) {
    let mut child = Command::new(myself())
        .args(["in-a-process", "--requests", "2", "--keep"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = String::new();
    let mut lines = BufReader::new(child.stdout.as_mut().unwrap());
    while !output.contains("A request:\n  nsenter") {
        assert_ne!(lines.read_line(&mut output).unwrap(), 0, "{output}");
    }
    (child, output)
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap(), signal).unwrap();
}

/// Processes whose command line names the directory of the labs of process `pid`.
fn directors(pid: u32) -> usize {
    let directory = format!("/run/uvs-lab-{pid}/");
    let processes = fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| fs::read(entry.unwrap().path().join("cmdline")).ok());
    processes.filter(|line| String::from_utf8_lossy(line).contains(&directory)).count()
}

fn a_signal_removes_everything() {
    for kind in [Signal::INT, Signal::TERM] {
        let (mut child, output) = kept();
        assert_eq!(directors(child.id()), 1);
        assert!(!remains(child.id()).is_empty());
        // What is printed for entering a host works.
        let command = output.lines().find(|line| line.contains("nsenter") && line.contains("curl")).unwrap();
        let mut words = command.split_whitespace().take_while(|word| *word != "curl");
        let entered = Command::new(words.next().unwrap())
            .args(words)
            .args(["cat", "/proc/net/route"])
            .output()
            .unwrap();
        assert!(String::from_utf8_lossy(&entered.stdout).contains("eth0"), "{entered:?}");
        signal(&child, kind);
        let status = child.wait().unwrap();
        let mut errors = String::new();
        child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
        assert!(status.success(), "{status} {errors}");
        assert_eq!((directors(child.id()), remains(child.id())), (0, vec![]));
    }
}

fn what_a_killed_lab_leaves_is_removed_by_the_next() {
    let (mut child, _) = kept();
    signal(&child, Signal::KILL);
    child.wait().unwrap();
    assert!(!remains(child.id()).is_empty());
    // The director ends with the lab even so.
    let deadline = Instant::now() + PATIENCE;
    while directors(child.id()) > 0 {
        assert!(Instant::now() < deadline, "the director outlived the lab");
        std::thread::sleep(Duration::from_millis(10));
    }
    let (result, output) = lab(&["--requests", "1"]);
    assert!(result.is_ok(), "{result:?}");
    assert!(output.contains(&format!("uvs-lab-{}", child.id())), "{output}");
    assert_eq!(remains(child.id()), Vec::<PathBuf>::new());
}
