//! Scenarios to begin fuzzing a director with: each leads to a place that chance would be long in finding.

use std::collections::BTreeMap;

use uvs::wire::transport::{sctp_chunk, tcp_flags};

const SYN: u8 = tcp_flags::SYN;
const ACK: u8 = tcp_flags::ACK;
const FIN: u8 = tcp_flags::FIN;
const RST: u8 = tcp_flags::RST;

/// Next hops, as the second byte of a change has them.
const READY: u8 = 0;
const TAGGED: u8 = 8;
const RESOLVING: u8 = 3;
const LOCAL: u8 = 4;
const FAILED: u8 = 5;
/// In the same byte: a weight of one; the real server is removed.
const WEIGHT: u8 = 0x40;
const REMOVED: u8 = 0x20;

/// Settings, as the first byte of a scenario has them.
const EXPIRE_NODEST: u8 = 1;
const SLOPPY: u8 = 2;
const REUSE_ENDED: u8 = 4;
const REUSE_FIN_WAIT: u8 = 8;
const DROP_UNKNOWN: u8 = 16;
const SMALL: u8 = 32;
const PERSISTENT: u8 = 64;
const EXPIRE_QUIESCENT: u8 = 128;

/// Templates, as the first byte of a frame has them.
const TCP: u8 = 0;
const UDP: u8 = 1;
const SCTP: u8 = 2;
const TCP6: u8 = 3;
const TEMPLATES: u8 = 16;
/// ICMP errors about a reply, in place of flags their type.
const ERROR: u8 = 0x1c;
const ERROR6: u8 = 0x2c;

/// A scenario while it is written.
#[derive(Clone)]
struct Scenario(Vec<u8>);

impl Scenario {
    fn new(settings: u8, servers: u8) -> Self {
        let cuts = 5;
        let mut bytes = vec![settings, servers, cuts];
        bytes.extend([READY; 8]);
        Self(bytes)
    }

    fn scheduler(mut self, number: u8) -> Self {
        self.0[1] |= number << 6;
        self
    }

    fn hops(mut self, hop: u8) -> Self {
        self.0[3..11].fill(hop);
        self
    }

    fn frame(self, template: u8, client: u8, flags: u8) -> Self {
        self.patched(template, client, flags, &[])
    }

    /// A frame some of whose bytes are others, its IPv4 header summed anew.
    fn patched(mut self, template: u8, client: u8, flags: u8, patches: &[(u8, u8)]) -> Self {
        let sum = if patches.is_empty() { 0 } else { 4 };
        self.0.extend([template, client, flags, sum | patches.len() as u8]);
        self.0.extend(patches.iter().flat_map(|&(offset, value)| [offset, value]));
        self
    }

    fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend([0x40, bytes.len() as u8]);
        self.0.extend(bytes);
        self
    }

    /// 2^`power` ms pass.
    fn wait(mut self, power: u8) -> Self {
        self.0.push(0x80 | power);
        self
    }

    fn change(mut self, server: u8, to: u8) -> Self {
        self.0.extend([0xc0 | server, to]);
        self
    }

    fn change_all(self, to: u8) -> Self {
        (0..8).fold(self, |scenario, server| scenario.change(server, to))
    }

    /// A TCP connection from its first packet to its last.
    fn connection(self, template: u8, client: u8) -> Self {
        [SYN, ACK, ACK, FIN | ACK, ACK]
            .into_iter()
            .fold(self, |scenario, flags| scenario.frame(template, client, flags))
    }
}

/// All scenarios, by name.
pub(crate) fn all() -> BTreeMap<String, Vec<u8>> {
    let mut seeds = BTreeMap::new();
    for template in 0..TEMPLATES {
        let scenario = Scenario::new(REUSE_ENDED, 3).frame(template, 1, SYN).frame(template, 1, ACK);
        seeds.insert(format!("template-{template:02}"), scenario.frame(template, 2, 1).0);
    }
    let mut add = |name: &str, scenario: Scenario| seeds.insert(name.to_owned(), scenario.0);
    let plain = || Scenario::new(REUSE_ENDED, 3);
    add("tcp-life", plain().connection(TCP, 1).wait(18));
    add("tcp6-life", plain().connection(TCP6, 1).wait(18));
    add("tcp-reset", plain().frame(TCP, 1, SYN).frame(TCP, 1, RST).wait(14).frame(TCP, 1, ACK));
    add("tcp-reused", plain().connection(TCP, 1).frame(TCP, 1, SYN).frame(TCP, 1, ACK));
    let reuse = Scenario::new(REUSE_ENDED | REUSE_FIN_WAIT, 3);
    add("tcp-reused-in-fin-wait", reuse.frame(TCP, 1, SYN).frame(TCP, 1, ACK).connection(TCP, 1));
    add("tcp-sloppy", Scenario::new(SLOPPY, 3).frame(TCP, 1, ACK).frame(TCP, 1, FIN).frame(TCP, 2, RST));
    let unknown = Scenario::new(DROP_UNKNOWN, 3).frame(TCP, 1, ACK).frame(TCP, 1, SYN).wait(13);
    add("tcp-unknown-after-restart", unknown.frame(TCP, 2, ACK));
    add("udp-expires", plain().frame(UDP, 1, 0).wait(19).frame(UDP, 1, 0));
    let chunks = [sctp_chunk::INIT, sctp_chunk::COOKIE_ECHO, sctp_chunk::DATA, sctp_chunk::SHUTDOWN];
    add("sctp-life", chunks.into_iter().fold(plain(), |scenario, chunk| scenario.frame(SCTP, 1, chunk)));
    let errors = |scenario: Scenario, template| {
        (0..14).fold(scenario, |scenario, kind| scenario.frame(template, 1, kind).frame(template, 2, kind))
    };
    let made = plain().frame(TCP, 1, SYN).frame(TCP6, 1, SYN);
    add("icmp-errors", errors(made.clone(), ERROR));
    add("icmpv6-errors", errors(made.clone(), ERROR6));
    add("icmp-errors-when-all-is-over", errors(errors(made.wait(19), ERROR), ERROR6));
    let unresolved = plain().hops(RESOLVING).frame(TCP, 1, SYN).frame(ERROR, 1, 3);
    add(
        "icmp-errors-wait",
        unresolved.change_all(WEIGHT | READY).wait(1).change_all(REMOVED).frame(ERROR, 1, 3),
    );
    add("no-server", Scenario::new(0, 0).connection(TCP, 1));
    for (number, name) in ["rr", "wrr", "wlc", "sh"].into_iter().enumerate() {
        let many = (0..12).fold(plain().scheduler(number as u8), |scenario, client| {
            scenario.frame(TCP, client, SYN).frame(UDP, client, 0)
        });
        add(&format!("scheduler-{name}"), many.change(1, 0).frame(TCP, 13, SYN).frame(TCP, 14, SYN));
    }
    let waiting = plain().hops(RESOLVING).connection(TCP, 1).frame(UDP, 2, 0);
    add("neighbour-resolves", waiting.clone().change_all(WEIGHT | READY).wait(1));
    add("neighbour-resolves-tagged", waiting.clone().change_all(WEIGHT | TAGGED).wait(1));
    add("neighbour-is-local", waiting.clone().change_all(WEIGHT | LOCAL).wait(1));
    add("neighbour-fails", waiting.clone().change_all(WEIGHT | FAILED).wait(1));
    add("neighbour-is-silent", waiting.clone().wait(12));
    add("neighbour-queue-full", (0..90).fold(waiting, |scenario, _| scenario.frame(UDP, 2, 0)));
    let queues = (0..180).fold(plain().hops(RESOLVING), |scenario, n| scenario.frame(UDP, n % 3, 0));
    add("neighbour-queues-of-several", queues.clone().frame(TCP, 1, SYN).wait(12));
    add("tagged", plain().hops(TAGGED).connection(TCP, 1).frame(5, 2, SYN).frame(14, 3, SYN));
    let made = |settings| Scenario::new(settings, 1).frame(TCP, 1, SYN).frame(TCP, 1, ACK);
    add("server-removed", made(0).change(0, REMOVED).frame(TCP, 1, ACK).frame(TCP, 1, SYN));
    let removed = made(EXPIRE_NODEST).change(0, REMOVED).frame(TCP, 1, ACK);
    add("server-removed-expires", removed.frame(TCP, 1, SYN));
    add("server-quiescent", made(EXPIRE_NODEST).change(0, 0).frame(TCP, 1, SYN).frame(TCP, 2, SYN));
    let full = (0..16).fold(Scenario::new(SMALL, 3), |scenario, client| scenario.frame(TCP, client, SYN));
    let full = (0..16).fold(full, |scenario, client| scenario.frame(UDP, client, 0));
    add("table-full", full.clone().wait(17).frame(TCP, 1, SYN));
    add("patched-length", plain().patched(TCP, 1, SYN, &[(17, 41)]).patched(6, 1, SYN, &[(17, 10)]));
    add(
        "patched-addresses",
        plain().patched(TCP, 1, SYN, &[(29, 9), (33, 101)]).patched(TCP, 1, SYN, &[(5, 3)]),
    );
    add("patched-fragment", plain().patched(TCP, 1, SYN, &[(20, 0x20)]).patched(TCP, 1, SYN, &[(21, 1)]));
    add("patched-data-offset", plain().patched(TCP, 1, SYN, &[(46, 0xf0)]));
    add("raw-arp", plain().raw(&[&[0xff; 6][..], &[2, 0, 0, 0, 1, 1, 8, 6], &[0; 28]].concat()));
    add("raw-cut-off", plain().raw(&[2, 0, 0, 0, 1, 254, 2, 0, 0, 0, 1, 1, 8]).raw(&[]));
    let sticky = |settings| Scenario::new(REUSE_ENDED | PERSISTENT | settings, 3);
    let neighbours = (0..12).fold(sticky(0), |scenario, client| scenario.frame(TCP, client, SYN));
    add("persistent-clients", (0..12).fold(neighbours, |scenario, client| scenario.frame(TCP6, client, SYN)));
    // Put off while it controls a connection, used again, and over.
    let postponed = sticky(0).frame(TCP, 1, SYN).frame(TCP, 1, ACK).wait(16).frame(TCP, 0, SYN).wait(16);
    add("persistent-postponed", postponed.wait(20).frame(TCP, 1, SYN));
    add("persistent-ended-connection", sticky(0).connection(TCP, 1).frame(TCP, 1, RST).frame(TCP, 1, SYN));
    let quiescent = sticky(EXPIRE_QUIESCENT).frame(TCP, 1, SYN).change_all(0).frame(TCP, 0, SYN);
    add("persistent-quiescent", quiescent.change_all(WEIGHT).frame(TCP, 1, SYN).frame(TCP, 0, SYN));
    let removed = sticky(EXPIRE_NODEST).frame(TCP, 1, SYN).change(2, REMOVED).frame(TCP, 1, ACK);
    add("persistent-removed", removed.frame(TCP, 1, SYN).frame(TCP, 0, SYN));
    let flood = |flags| {
        (0..16).fold(sticky(SMALL), |scenario, client| {
            scenario.frame(TCP, client, SYN).frame(TCP, client, flags).frame(UDP, client, 0)
        })
    };
    add("persistent-table-full", flood(SYN).frame(TCP, 1, SYN).wait(17).frame(TCP, 1, SYN));
    add("persistent-table-full-of-assured", flood(ACK).frame(TCP, 1, SYN).wait(17).frame(TCP, 1, SYN));
    seeds
}
