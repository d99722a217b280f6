//! `uvs lab` with the real director: a hundred requests, half and half, by each way of getting at frames.
//!
//! Needs root, for network namespaces: skips loudly without it, and fails instead where `UVS_REQUIRE_ROOT=1`.

use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Longest that one lab may take.
const PATIENCE: Duration = Duration::from_secs(60);

fn is_root() -> bool {
    if rustix::process::geteuid().is_root() {
        return true;
    }
    assert!(std::env::var_os("UVS_REQUIRE_ROOT").is_none_or(|value| value != "1"), "needs root");
    eprintln!("SKIPPED: needs root, to make network namespaces");
    false
}

/// Runs a lab to its end; a lab that hangs is asked to end, and fails.
fn lab(arguments: &[&str]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_uvs"))
        .arg("lab")
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + PATIENCE;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            let pid = rustix::process::Pid::from_child(&child);
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    child.wait_with_output().unwrap()
}

/// The last number of the line that starts with `name`.
fn number(text: &str, name: &str) -> Option<u64> {
    text.lines().find(|line| line.trim_start().starts_with(name))?.split_whitespace().last()?.parse().ok()
}

fn half_and_half(arguments: &[&str], kind: &str) {
    if !is_root() {
        return;
    }
    let output = lab(&[&["--requests", "100"], arguments].concat());
    let text = String::from_utf8_lossy(&output.stdout);
    let all = format!("{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{all}");
    assert_eq!((number(&text, "node1"), number(&text, "node2")), (Some(50), Some(50)), "{all}");
    // From the port's own statistics: a silent fall-back to another kind fails here.
    let kind_line = text.lines().find(|line| line.contains(" kind ")).unwrap_or_default();
    assert_eq!(kind_line.split_whitespace().last(), Some(kind), "{all}");
    assert!(number(&text, "eth0 worker 0 received").is_some_and(|frames| frames >= 500), "{all}");
    assert_eq!(number(&text, "frames received"), number(&text, "eth0 worker 0 received"), "{all}");
}

#[test]
fn af_xdp_in_the_driver() {
    half_and_half(&["--io", "xdp", "--xdp-mode", "native"], "xdp-native-copy");
}

#[test]
fn af_xdp_in_the_stack() {
    half_and_half(&["--io", "xdp", "--xdp-mode", "generic"], "xdp-generic");
}

#[test]
fn raw_sockets() {
    half_and_half(&["--io", "packet"], "packet");
}

#[test]
fn the_best_is_taken_unasked() {
    half_and_half(&[], "xdp-native-copy");
}

/// Every way to the real servers over either family, by AF_XDP in the driver and by raw sockets.
fn half_and_half_each_way(arguments: &[&str]) {
    half_and_half(&[arguments, &["--io", "xdp", "--xdp-mode", "native"]].concat(), "xdp-native-copy");
    half_and_half(&[arguments, &["--io", "packet"]].concat(), "packet");
}

#[test]
fn direct_routing_over_ipv6() {
    half_and_half_each_way(&["--ipv6"]);
}

#[test]
fn nat() {
    half_and_half_each_way(&["--forwarding", "nat"]);
}

#[test]
fn nat_over_ipv6() {
    half_and_half_each_way(&["--forwarding", "nat", "--ipv6"]);
}

#[test]
fn tunnels() {
    half_and_half_each_way(&["--forwarding", "tun"]);
}

#[test]
fn tunnels_over_ipv6() {
    half_and_half_each_way(&["--forwarding", "tun", "--ipv6"]);
}

/// Each client's answers all from one real server, and its template in the listing; `service` as a template names it.
fn clients_stick(arguments: &[&str], protocol: &str, service: &str) {
    if !is_root() {
        return;
    }
    let output = lab(&[&["--requests", "40", "--persistent"], arguments].concat());
    let text = String::from_utf8_lossy(&output.stdout);
    let all = format!("{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{all}");
    assert_eq!((number(&text, "node1"), number(&text, "node2")), (Some(20), Some(20)), "{all}");
    for client in 17..=20 {
        let client = format!("192.168.20.{client}");
        let line = text.lines().find(|line| line.contains(&format!("client {client}:"))).expect("a client");
        let node = line.split_whitespace().nth(2).unwrap();
        assert_eq!(line.split_once(": ").unwrap().1, format!("{node} 10"), "{all}");
        let server = if node == "node1" { "192.168.50.22:" } else { "192.168.50.23:" };
        let template = text.lines().find(|line| line.contains(&format!(" {client}:0 "))).expect("a template");
        let words: Vec<&str> = template.split_whitespace().collect();
        assert_eq!((words[0], words[2], words[4]), (protocol, "ASSURED", service), "{all}");
        assert!(words[5].starts_with(server), "{all}");
    }
}

#[test]
fn sticky_clients() {
    clients_stick(&[], "TCP", "192.168.50.100:80");
}

#[test]
fn sticky_clients_of_a_mark() {
    clients_stick(&["--mark", "7"], "IP", "0.0.0.7:0");
}
