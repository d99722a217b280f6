//! Plays a recording, and says where the director does otherwise.
//!
//! Beyond what the recordings of `tests/oracle/cases` have, a step's `datagram` is a number that the fragments of one
//! datagram share: they are compared together, for the kernel sends them when it has all of them.

use std::collections::BTreeSet;

use serde_json::Value;

use uvs::director::Verdict;
use uvs::replay::Output;
use uvs::types::PortId;

use crate::compare::{
    Comparable, comparable, expiry, is_host_answer, is_reset, packet, printed, same_listing, without_counters,
};
use crate::lab::{CLIENTS, Lab, SERVERS};

/// What came of a recording.
pub(crate) struct Played {
    /// Steps that were compared.
    pub(crate) compared: usize,
    /// Steps that differ: which, and how.
    pub(crate) differences: Vec<(usize, String)>,
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

/// Plays all of a recording's steps, also after one that differs.
pub(crate) fn play(recording: &Value) -> Played {
    let mut lab = Lab::new();
    let mut played = Played { compared: 0, differences: Vec::new() };
    let setup: Vec<&str> = list(&recording["setup"]).iter().map(text).collect();
    let outcome = lab.shell(&setup.join("\n"));
    if !printed(&outcome).is_empty() {
        played.differences.push((0, format!("setup: {}", printed(&outcome))));
    }
    let steps = list(&recording["steps"]);
    let mut number = 0;
    while number < steps.len() {
        let step = &steps[number];
        let datagram = step.get("datagram");
        let rest = &steps[number + 1..];
        let more =
            rest.iter().take_while(|next| datagram.is_some() && next.get("datagram") == datagram).count();
        let result = if let Some(seconds) = step.get("sleep") {
            lab.sleep(seconds.as_f64().unwrap());
            Ok(())
        } else if step.get("exec").is_some() {
            run(&mut lab, step)
        } else {
            send(&mut lab, &steps[number..=number + more])
        };
        played.compared += usize::from(step.get("sleep").is_none());
        played.differences.extend(result.err().map(|why| (number, why)));
        number += 1 + more;
    }
    played
}

/// Runs a step's commands, and compares what they print.
fn run(lab: &mut Lab, step: &Value) -> Result<(), String> {
    let script = text(&step["exec"]);
    let outcome = lab.shell(script);
    let (mut got, mut recorded) =
        (printed(&outcome), format!("{}{}", text(&step["stdout"]), text(&step["stderr"])));
    // The kernel copies counters every two seconds.
    if script.contains("--stats") && step.get("settled").is_none() {
        (got, recorded) = (without_counters(&got), without_counters(&recorded));
    }
    let ending: BTreeSet<Vec<&str>> =
        [&got, &recorded].into_iter().flat_map(|text| ending_rows(text)).collect();
    let lasting = |text: &str| {
        let rows = text.lines().filter(|row| !ending.contains(&without_expiry(row)));
        rows.map(|row| format!("{row}\n")).collect::<String>()
    };
    if outcome.status == step["rc"] && same_listing(&lasting(&got), &lasting(&recorded)) {
        return Ok(());
    }
    Err(format!("{script}: status {}\n{got}instead of status {}\n{recorded}", outcome.status, step["rc"]))
}

/// Two listings' times may differ by as much; a row with less left may be in one of them only.
const SLACK_SECONDS: i64 = 2;

fn without_expiry(row: &str) -> Vec<&str> {
    row.split_whitespace().filter(|word| expiry(word).is_none()).collect()
}

/// A listing's rows that are about to end, without when.
fn ending_rows(text: &str) -> impl Iterator<Item = Vec<&str>> {
    let ends = |word| expiry(word).is_some_and(|seconds| seconds <= SLACK_SECONDS);
    text.lines().filter(move |row| row.split_whitespace().any(ends)).map(without_expiry)
}

/// A frame that was sent: out of which port, and what of it counts.
type Sent = (u16, Comparable);

/// What counts of a frame that was sent for `cause`, a fragment or not. Of a datagram that it has put together, the kernel
/// chooses the fragments' identification anew (IPv6), and quotes all of it in an error.
fn to_compare(port: PortId, frame: &[u8], cause: &[u8], is_fragment: bool) -> Sent {
    let (link, mut packet, are_right) = comparable(frame, cause);
    let is_v4 = packet[0] >> 4 == 4;
    if is_fragment && is_error(frame) {
        let (addresses, kind) = if is_v4 { (12..20, 20..22) } else { (8..40, 40..42) };
        packet = [&packet[addresses], &packet[kind]].concat();
    } else if is_fragment && !is_v4 && packet[6] == IPV6_FRAGMENT {
        packet[44..48].fill(0);
    }
    (port.0, (link, packet, are_right))
}

/// Gives the director the frames of some steps, and compares what comes of all of them.
fn send(lab: &mut Lab, steps: &[Value]) -> Result<(), String> {
    let (mut got, mut recorded, mut to_host) = (Vec::<Sent>::new(), Vec::new(), Vec::new());
    let mut verdicts = Vec::new();
    let is_fragment = steps[0].get("datagram").is_some();
    let frames: Vec<Vec<u8>> = steps.iter().map(|step| bytes(&step["send"]["hex"])).collect();
    for (step, frame) in steps.iter().zip(&frames) {
        for Output { verdict, bytes, .. } in lab.send_fragment(port(&step["send"]["port"]), frame) {
            verdicts.push(verdict);
            match verdict {
                Verdict::Transmit(port) | Verdict::Reply(port) => {
                    got.push(to_compare(port, &bytes, frame, is_fragment));
                }
                Verdict::ToHost => to_host.push(bytes),
                _ => {}
            }
        }
        let answers = list(&step["recv"]).iter();
        recorded.extend(answers.map(|answer| (port(&answer["port"]), bytes(&answer["hex"]), frame)));
    }
    let is_hosts = |answer: &[u8]| {
        to_host.iter().any(|sent| is_host_answer(answer, sent) || is_forwarded_by_host(answer, sent))
    };
    let mut by_director: Vec<Sent> = recorded
        .iter()
        .filter(|(_, answer, _)| !is_hosts(answer))
        .map(|(port, answer, cause)| to_compare(*port, answer, cause, is_fragment))
        .collect();
    let has_host_answered = by_director.len() < recorded.len();
    got.sort_unstable();
    by_director.sort_unstable();
    let why = if to_host.iter().any(|frame| !frames.contains(frame)) {
        "the host gets it changed".to_owned()
    } else if !has_host_answered && to_host.iter().any(|frame| !is_silent_about(frame)) {
        "the host would have answered".to_owned()
    } else if got != by_director {
        in_short(&got, &by_director)
    } else {
        return Ok(());
    };
    Err(format!("{}: {why}; verdicts {verdicts:?}; recorded: {}", words(steps), recorded_words(steps)))
}

/// What is only in one of two sorted lists.
fn in_short(got: &[Sent], recorded: &[Sent]) -> String {
    let only = |those: &[Sent], others: &[Sent]| {
        let mut text = String::new();
        for (port, (link, packet, are_right)) in those.iter().filter(|sent| !others.contains(sent)) {
            let hex: String = packet.iter().take(100).map(|byte| format!("{byte:02x}")).collect();
            let sums = if *are_right { "" } else { " (wrong checksum)" };
            text += &format!(" port {port} to {:02x}: {hex}{sums}", link[link.len() - 1]);
        }
        if text.is_empty() { " the same, but not as often".to_owned() } else { text }
    };
    format!("sent{} instead of{}", only(got, recorded), only(recorded, got))
}

fn words(steps: &[Value]) -> String {
    steps.iter().map(|step| text(&step["send"]["desc"])).collect::<Vec<_>>().join(" + ")
}

fn recorded_words(steps: &[Value]) -> String {
    let answers = steps.iter().flat_map(|step| list(&step["recv"]));
    let words: Vec<String> =
        answers.map(|answer| format!("{} {}", text(&answer["port"]), text(&answer["desc"]))).collect();
    if words.is_empty() { "nothing".to_owned() } else { words.join(" + ") }
}

const IPV4_ICMP: u8 = 1;
const IPV6_ICMP: u8 = 58;
const IPV6_FRAGMENT: u8 = 44;

/// Whether a frame is an ICMP error.
fn is_error(frame: &[u8]) -> bool {
    packet(frame).is_some_and(|packet| match packet[0] >> 4 {
        4 => packet[9] == IPV4_ICMP && matches!(packet.get(20), Some(3 | 4 | 5 | 11 | 12)),
        _ => packet[6] == IPV6_ICMP && packet.get(40).is_some_and(|&kind| kind < 128),
    })
}

/// Whether the host's stack has nothing to say to this frame: it has a wrong checksum, say.
fn is_silent_about(frame: &[u8]) -> bool {
    let (_, _, is_right) = comparable(frame, frame);
    is_error(frame) || is_reset(frame) || !is_right
}

/// Whether `answer` is `sent` as a router passes it on: one hop less, and else the same; or that it has come too far.
fn is_forwarded_by_host(answer: &[u8], sent: &[u8]) -> bool {
    let (Some(answer), Some(sent)) = (packet(answer), packet(sent)) else { return false };
    match sent[0] >> 4 {
        4 if sent[8] == 1 => {
            return answer[9] == IPV4_ICMP && answer[16..20] == sent[12..16] && answer[20..22] == [11, 0];
        }
        6 if sent[7] == 1 => {
            return answer[6] == IPV6_ICMP && answer[24..40] == sent[8..24] && answer[40..42] == [3, 0];
        }
        _ => {}
    }
    let mut expected = sent.to_vec();
    let mut passed = answer.to_vec();
    let hops = if sent[0] >> 4 == 4 { 8 } else { 7 };
    expected[hops] = expected[hops].wrapping_sub(1);
    if hops == 8 {
        // The header's checksum goes with it.
        expected[10..12].fill(0);
        passed[10..12].fill(0);
    }
    expected == passed
}
