//! The kernel runs the programs over frames and says what they decide.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::*;
use crate::io::steering::SteeringKey;
use crate::io::steering::table::KeyTable;
use crate::sys::bpf::{Map, TestRun};

const VIP4: &str = "192.0.2.10";
const VIP6: &str = "2001:db8::10";
const OTHER4: &str = "192.0.2.11";
const OTHER6: &str = "2001:db8::11";
/// Every UDP port of this address has a key, and nothing else of it.
const UDP4: &str = "192.0.2.20";
/// This address has a key for everything.
const ALL4: &str = "192.0.2.30";
/// Answers over TCP from port 8080, and over UDP from every port.
const SERVER4: &str = "192.0.2.40";
const SERVER6: &str = "2001:db8::40";

fn is_root() -> bool {
    if rustix::process::geteuid().is_root() {
        return true;
    }
    assert!(std::env::var_os("UVS_REQUIRE_ROOT").is_none(), "UVS_REQUIRE_ROOT is set");
    eprintln!("SKIPPED: needs root to run BPF programs");
    false
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn transport(text: &str, protocol: Protocol, port: u16) -> SteeringKey {
    SteeringKey::Transport { address: address(text), protocol, port }
}

fn source(text: &str, protocol: Protocol, port: u16) -> SteeringKey {
    SteeringKey::Source { address: address(text), protocol, port }
}

fn network(prefix: &str, protocol: Protocol) -> SteeringKey {
    SteeringKey::Network { prefix: prefix.parse().unwrap(), protocol }
}

fn keys() -> BTreeSet<SteeringKey> {
    BTreeSet::from([
        transport(VIP4, Protocol::Tcp, 443),
        transport(VIP4, Protocol::Sctp, 9),
        transport(VIP6, Protocol::Tcp, 443),
        transport(UDP4, Protocol::Udp, 0),
        SteeringKey::Everything { address: address(ALL4) },
        network("203.0.113.0/24", Protocol::Tcp),
        network("203.0.113.64/26", Protocol::Udp),
        network("2001:db8:1::/48", Protocol::Sctp),
        source(SERVER4, Protocol::Tcp, 8080),
        source(SERVER4, Protocol::Udp, 0),
        source(SERVER6, Protocol::Tcp, 8080),
        source(SERVER6, Protocol::Udp, 0),
    ])
}

/// An Ethernet header to a unicast address, with these tags (their EtherTypes).
fn ethernet(tags: &[u16], ethertype: u16) -> Vec<u8> {
    let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    for tag in tags {
        bytes.extend(tag.to_be_bytes());
        bytes.extend(100_u16.to_be_bytes());
    }
    bytes.extend(ethertype.to_be_bytes());
    bytes
}

/// An IPv4 header with `option_words` words of options; `fragment` are flags and offset.
fn ipv4(option_words: u8, fragment: u16, protocol: u8, to: &str) -> Vec<u8> {
    let IpAddr::V4(to) = address(to) else { panic!("IPv6") };
    let mut bytes = vec![0x45 + option_words, 0, 0, 60, 0, 1];
    bytes.extend(fragment.to_be_bytes());
    bytes.extend([64, protocol, 0, 0, 198, 51, 100, 1]);
    bytes.extend(to.octets());
    bytes.extend(vec![1; usize::from(option_words) * 4]);
    bytes
}

/// An IPv6 header, and extension headers: number and units of 8 bytes after the first 8.
fn ipv6(extensions: &[(u8, u8)], last: u8, to: &str) -> Vec<u8> {
    let IpAddr::V6(to) = address(to) else { panic!("IPv4") };
    let next = |n: usize| extensions.get(n).map_or(last, |&(number, _)| number);
    let mut bytes = vec![0x60, 0, 0, 0, 0, 60, next(0), 64];
    bytes.extend([0xfe; 16]);
    bytes.extend(to.octets());
    for (n, &(_, length)) in extensions.iter().enumerate() {
        bytes.extend([next(n + 1), length]);
        bytes.extend(vec![0; 6 + usize::from(length) * 8]);
    }
    bytes
}

/// An IPv6 header and a fragment header with this offset (in bytes) and "more fragments".
fn ipv6_fragment(offset: u16, last: u8, to: &str) -> Vec<u8> {
    let mut bytes = ipv6(&[(44, 0)], last, to);
    let at = bytes.len() - 6;
    bytes[at..at + 2].copy_from_slice(&(offset | 1).to_be_bytes());
    bytes
}

/// The first 8 bytes of a transport header.
fn ports(destination: u16) -> Vec<u8> {
    let [high, low] = destination.to_be_bytes();
    vec![0xc0, 0, high, low, 0, 0, 0, 0]
}

/// An IP header from there instead.
fn from(source: &str, mut header: Vec<u8>) -> Vec<u8> {
    match address(source) {
        IpAddr::V4(source) => header[12..16].copy_from_slice(&source.octets()),
        IpAddr::V6(source) => header[8..24].copy_from_slice(&source.octets()),
    }
    header
}

/// The first 8 bytes of a transport header, to any port.
fn ports_from(source: u16) -> Vec<u8> {
    let [high, low] = source.to_be_bytes();
    vec![high, low, 0xc0, 0, 0, 0, 0, 0]
}

fn join(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

/// What, the frame, and whether it is taken.
type Row = (&'static str, Vec<u8>, bool);

fn ipv4_rows() -> Vec<Row> {
    let eth = &ethernet(&[], 0x0800);
    let tcp = |to: &str, port| join(&[eth, &ipv4(0, 0x4000, 6, to), &ports(port)]);
    let tagged = |tags: &[u16], port| join(&[&ethernet(tags, 0x0800), &ipv4(0, 0, 6, VIP4), &ports(port)]);
    let icmp = |to: &str, kind| join(&[eth, &ipv4(0, 0, 1, to), &[kind, 0, 0, 0]]);
    let mut multicast = tcp(VIP4, 443);
    multicast[0] = 1;
    let mut broadcast = tcp(VIP4, 443);
    broadcast[..6].fill(0xff);
    let mut version_5 = tcp(VIP4, 443);
    version_5[14] = 0x55;
    let mut short_header = tcp(VIP4, 443);
    short_header[14] = 0x44;
    vec![
        ("TCP to a key", tcp(VIP4, 443), true),
        ("TCP to another port", tcp(VIP4, 22), false),
        ("TCP to the port with its bytes swapped", tcp(VIP4, 443_u16.swap_bytes()), false),
        ("TCP to another address", tcp(OTHER4, 443), false),
        ("UDP to a TCP key", join(&[eth, &ipv4(0, 0, 17, VIP4), &ports(443)]), false),
        ("SCTP to a key", join(&[eth, &ipv4(0, 0, 132, VIP4), &ports(9)]), true),
        ("UDP to an address with every port", join(&[eth, &ipv4(0, 0, 17, UDP4), &ports(53)]), true),
        ("TCP to an address with every UDP port", tcp(UDP4, 53), false),
        ("TCP to an address with everything", tcp(ALL4, 1), true),
        ("ICMP to an address with everything", join(&[eth, &ipv4(0, 0, 1, ALL4), &[8, 0]]), true),
        ("ICMP error to an address with everything", join(&[eth, &ipv4(0, 0, 1, ALL4), &[3, 4]]), true),
        ("unreachable to a VIP", icmp(VIP4, 3), true),
        ("source quench to a VIP", icmp(VIP4, 4), true),
        ("time exceeded to a VIP", icmp(VIP4, 11), true),
        ("time exceeded to a VIP, behind options", join(&[eth, &ipv4(10, 0, 1, VIP4), &[11, 0]]), true),
        ("echo to a VIP", icmp(VIP4, 8), false),
        ("echo reply to a VIP", icmp(VIP4, 0), false),
        ("redirect to a VIP", icmp(VIP4, 5), false),
        ("ICMP 10 to a VIP", icmp(VIP4, 10), false),
        ("parameter problem to a VIP", icmp(VIP4, 12), false),
        ("ICMP without a type to a VIP", join(&[eth, &ipv4(0, 0, 1, VIP4)]), false),
        ("unreachable to another address", icmp(OTHER4, 3), false),
        ("unreachable into a network", icmp("203.0.113.9", 3), true),
        ("unreachable beside a network", icmp("203.0.112.9", 3), false),
        ("ICMPv6's number over IPv4 to a VIP", join(&[eth, &ipv4(0, 0, 58, VIP4), &[3, 0]]), false),
        ("ESP to an address with everything", join(&[eth, &ipv4(0, 0, 50, ALL4)]), true),
        ("ICMP to a VIP", join(&[eth, &ipv4(0, 0, 1, VIP4), &ports(443)]), false),
        ("one option word", join(&[eth, &ipv4(1, 0, 6, VIP4), &ports(443)]), true),
        ("ten option words", join(&[eth, &ipv4(10, 0, 6, VIP4), &ports(443)]), true),
        ("options, another port", join(&[eth, &ipv4(10, 0, 6, VIP4), &ports(22)]), false),
        ("first fragment to a key", join(&[eth, &ipv4(0, 0x2000, 6, VIP4), &ports(443)]), true),
        ("first fragment to another port", join(&[eth, &ipv4(0, 0x2000, 6, VIP4), &ports(22)]), true),
        ("first fragment of an echo to a VIP", join(&[eth, &ipv4(0, 0x2000, 1, VIP4), &[8, 0]]), true),
        ("first fragment to another address", join(&[eth, &ipv4(0, 0x2000, 6, OTHER4), &ports(443)]), false),
        ("not to be fragmented, to another port", join(&[eth, &ipv4(0, 0x4000, 6, VIP4), &ports(22)]), false),
        ("middle fragment to a VIP", join(&[eth, &ipv4(0, 0x2001, 6, VIP4), &ports(22)]), true),
        ("last fragment to a VIP, one byte", join(&[eth, &ipv4(0, 0x1000, 6, VIP4), &[0]]), true),
        ("last fragment to a VIP, another protocol", join(&[eth, &ipv4(0, 1, 1, VIP4), &[0]]), true),
        ("last fragment to everything", join(&[eth, &ipv4(0, 1, 6, ALL4), &[0]]), true),
        ("last fragment to another address", join(&[eth, &ipv4(0, 1, 6, OTHER4), &ports(443)]), false),
        ("TCP into a network", tcp("203.0.113.9", 1), true),
        ("TCP into a network, and a longer one of UDP", tcp("203.0.113.70", 1), true),
        ("UDP into that one", join(&[eth, &ipv4(0, 0, 17, "203.0.113.70"), &ports(1)]), true),
        ("UDP into the network of TCP", join(&[eth, &ipv4(0, 0, 17, "203.0.113.9"), &ports(1)]), false),
        ("SCTP into the network of TCP", join(&[eth, &ipv4(0, 0, 132, "203.0.113.9"), &ports(1)]), false),
        ("ICMP into a network", join(&[eth, &ipv4(0, 0, 1, "203.0.113.9"), &ports(1)]), false),
        ("last fragment into a network", join(&[eth, &ipv4(0, 1, 6, "203.0.113.9"), &[0]]), true),
        ("last fragment beside a network", join(&[eth, &ipv4(0, 1, 6, "203.0.112.9"), &[0]]), false),
        ("TCP beside a network", tcp("203.0.112.255", 443), false),
        ("multicast frame", multicast, false),
        ("broadcast frame", broadcast, false),
        ("ARP", join(&[&ethernet(&[], 0x0806), &[0; 28]]), false),
        ("one VLAN tag", tagged(&[0x8100], 443), true),
        ("one 802.1ad tag", tagged(&[0x88a8], 443), true),
        ("QinQ", tagged(&[0x88a8, 0x8100], 443), true),
        ("QinQ, another port", tagged(&[0x88a8, 0x8100], 22), false),
        ("two 802.1Q tags", tagged(&[0x8100, 0x8100], 443), true),
        ("three tags", tagged(&[0x88a8, 0x8100, 0x8100], 443), false),
        ("tagged ARP", join(&[&ethernet(&[0x8100], 0x0806), &[0; 28]]), false),
        ("IPv4 that says version 5", version_5, false),
        ("IPv4 with a header of 16 bytes", short_header, false),
        (
            "IPv6's EtherType, IPv4's header",
            join(&[&ethernet(&[], 0x86dd), &tcp(VIP4, 443)[14..], &[0; 20]]),
            false,
        ),
    ]
}

fn ipv6_rows() -> Vec<Row> {
    let eth = &ethernet(&[], 0x86dd);
    let tcp = |extensions: &[(u8, u8)], to: &str, port| join(&[eth, &ipv6(extensions, 6, to), &ports(port)]);
    let icmp = |to: &str, kind| join(&[eth, &ipv6(&[], 58, to), &[kind, 0, 0, 0]]);
    let mut after_fragment = ipv6(&[(44, 0), (60, 1)], 6, VIP6);
    after_fragment[42] = 0;
    // Without "more fragments".
    let mut whole = ipv6_fragment(0, 6, VIP6);
    whole[43] &= !1;
    let mut version_4 = tcp(&[], VIP6, 443);
    version_4[14] = 0x45;
    vec![
        ("IPv6 TCP to a key", tcp(&[], VIP6, 443), true),
        ("IPv6 TCP to another port", tcp(&[], VIP6, 22), false),
        ("IPv6 TCP to another address", tcp(&[], OTHER6, 443), false),
        ("IPv6 UDP to a TCP key", join(&[eth, &ipv6(&[], 17, VIP6), &ports(443)]), false),
        ("IPv6 in VLAN", join(&[&ethernet(&[0x8100], 0x86dd), &ipv6(&[], 6, VIP6), &ports(443)]), true),
        (
            "IPv6 in QinQ",
            join(&[&ethernet(&[0x88a8, 0x8100], 0x86dd), &ipv6(&[], 6, VIP6), &ports(443)]),
            true,
        ),
        ("hop-by-hop options", tcp(&[(0, 0)], VIP6, 443), true),
        ("routing header", tcp(&[(43, 2)], VIP6, 443), true),
        ("destination options, long", tcp(&[(60, 130)], VIP6, 443), true),
        ("three extensions", tcp(&[(0, 1), (43, 0), (60, 3)], VIP6, 443), true),
        ("three extensions, another port", tcp(&[(0, 1), (43, 0), (60, 3)], VIP6, 22), false),
        ("as many extensions as are looked past", tcp(&[(60, 0); 8], VIP6, 443), true),
        ("as many extensions, another port", tcp(&[(60, 0); 8], VIP6, 22), false),
        ("too many extensions to a VIP", tcp(&[(60, 0); 9], VIP6, 22), true),
        ("too many extensions to another address", tcp(&[(60, 0); 9], OTHER6, 443), false),
        ("IPv6 unreachable to a VIP", icmp(VIP6, 1), true),
        ("IPv6 too big to a VIP", icmp(VIP6, 2), true),
        ("IPv6 time exceeded to a VIP", icmp(VIP6, 3), true),
        ("IPv6 parameter problem to a VIP", icmp(VIP6, 4), true),
        ("ICMPv6 0 to a VIP", icmp(VIP6, 0), false),
        ("ICMPv6 5 to a VIP", icmp(VIP6, 5), false),
        ("IPv6 echo to a VIP", icmp(VIP6, 128), false),
        ("neighbour solicitation to a VIP", icmp(VIP6, 135), false),
        ("IPv6 too big to another address", icmp(OTHER6, 2), false),
        ("IPv6 too big into a network", icmp("2001:db8:1::9", 2), true),
        ("IPv6 too big, behind options", join(&[eth, &ipv6(&[(60, 1)], 58, VIP6), &[2, 0]]), true),
        ("ICMP's number over IPv6 to a VIP", join(&[eth, &ipv6(&[], 1, VIP6), &[3, 0]]), false),
        ("ICMPv6 to a VIP", join(&[eth, &ipv6(&[], 58, VIP6), &ports(443)]), false),
        ("authentication header", join(&[eth, &ipv6(&[], 51, VIP6), &ports(443)]), false),
        ("no next header", join(&[eth, &ipv6(&[], 59, VIP6), &ports(443)]), false),
        ("IPv6 first fragment to a key", join(&[eth, &ipv6_fragment(0, 6, VIP6), &ports(443)]), true),
        ("IPv6 first fragment to another port", join(&[eth, &ipv6_fragment(0, 6, VIP6), &ports(22)]), true),
        ("IPv6 all in one fragment, another port", join(&[eth, &whole, &ports(22)]), false),
        ("IPv6 all in one fragment, to a key", join(&[eth, &whole, &ports(443)]), true),
        ("IPv6 first fragment, options after", join(&[eth, &after_fragment, &ports(443)]), true),
        ("IPv6 later fragment to a VIP", join(&[eth, &ipv6_fragment(8, 6, VIP6), &[1]]), true),
        ("IPv6 later fragment, any protocol", join(&[eth, &ipv6_fragment(0xfff8, 60, VIP6), &[1]]), true),
        (
            "IPv6 later fragment to another address",
            join(&[eth, &ipv6_fragment(8, 6, OTHER6), &ports(443)]),
            false,
        ),
        ("SCTP into a network of IPv6", join(&[eth, &ipv6(&[], 132, "2001:db8:1:ff::9"), &ports(1)]), true),
        ("TCP into it", tcp(&[], "2001:db8:1:ff::9", 443), false),
        ("SCTP beside it", join(&[eth, &ipv6(&[], 132, "2001:db8:2::9"), &ports(1)]), false),
        (
            "IPv6 later fragment into a network",
            join(&[eth, &ipv6_fragment(8, 132, "2001:db8:1::9"), &[1]]),
            true,
        ),
        ("IPv6 that says version 4", version_4, false),
        (
            "IPv4's EtherType, IPv6's header",
            join(&[&ethernet(&[], 0x0800), &tcp(&[], VIP6, 443)[14..]]),
            false,
        ),
    ]
}

/// By their source; nothing of them has a key by its destination.
fn source_rows() -> Vec<Row> {
    let (eth4, eth6) = (&ethernet(&[], 0x0800), &ethernet(&[], 0x86dd));
    let v4 = |source: &str, protocol, port| {
        join(&[eth4, &from(source, ipv4(0, 0x4000, protocol, OTHER4)), &ports_from(port)])
    };
    let v6 = |source: &str, extensions: &[(u8, u8)], protocol, port| {
        join(&[eth6, &from(source, ipv6(extensions, protocol, OTHER6)), &ports_from(port)])
    };
    let fragment4 =
        |source: &str, offset| join(&[eth4, &from(source, ipv4(0, offset, 6, OTHER4)), &ports_from(22)]);
    let fragment6 = |source: &str, offset| {
        join(&[eth6, &from(source, ipv6_fragment(offset, 6, OTHER6)), &ports_from(22)])
    };
    let to_both = join(&[eth4, &from(SERVER4, ipv4(0, 0, 6, VIP4)), &ports(443)]);
    let options = from(SERVER4, ipv4(10, 0, 6, OTHER4));
    vec![
        ("an answer over TCP", v4(SERVER4, 6, 8080), true),
        ("an answer with options", join(&[eth4, &options, &ports_from(8080)]), true),
        (
            "an answer in QinQ",
            join(&[&ethernet(&[0x88a8, 0x8100], 0x0800), &options, &ports_from(8080)]),
            true,
        ),
        ("TCP from another port", v4(SERVER4, 6, 22), false),
        ("TCP from the port with its bytes swapped", v4(SERVER4, 6, 8080_u16.swap_bytes()), false),
        ("an answer over UDP, which has every port", v4(SERVER4, 17, 22), true),
        ("SCTP from a server of TCP", v4(SERVER4, 132, 8080), false),
        ("ICMP from a server", v4(SERVER4, 1, 8080), false),
        ("TCP from elsewhere", v4(OTHER4, 6, 8080), false),
        ("TCP from a virtual address", v4(VIP4, 6, 443), false),
        ("from a server to a virtual address", to_both, true),
        ("TCP to a server", join(&[eth4, &ipv4(0, 0, 6, SERVER4), &ports(8080)]), false),
        ("first fragment from a server", fragment4(SERVER4, 0x2000), true),
        ("last fragment from a server", fragment4(SERVER4, 1), true),
        ("last fragment from elsewhere", fragment4(OTHER4, 1), false),
        ("last fragment from a virtual address", fragment4(VIP4, 1), false),
        ("an answer over IPv6", v6(SERVER6, &[], 6, 8080), true),
        ("an answer behind extensions", v6(SERVER6, &[(0, 1), (43, 0), (60, 3)], 6, 8080), true),
        ("IPv6 TCP from another port", v6(SERVER6, &[(0, 1), (43, 0), (60, 3)], 6, 22), false),
        ("IPv6 UDP from any port of a server", v6(SERVER6, &[], 17, 22), true),
        ("IPv6 TCP from elsewhere", v6(OTHER6, &[], 6, 8080), false),
        ("too many extensions from a server", v6(SERVER6, &[(60, 0); 9], 6, 22), true),
        ("too many extensions from elsewhere", v6(OTHER6, &[(60, 0); 9], 6, 22), false),
        ("IPv6 first fragment from a server", fragment6(SERVER6, 0), true),
        ("IPv6 later fragment from a server", fragment6(SERVER6, 8), true),
        ("IPv6 later fragment from elsewhere", fragment6(OTHER6, 8), false),
    ]
}

fn all_rows() -> impl Iterator<Item = Row> {
    ipv4_rows().into_iter().chain(ipv6_rows()).chain(source_rows())
}

struct Programs {
    keys: KeyTable,
    sockets: Map,
}

impl Programs {
    fn new() -> Self {
        let mut keys = KeyTable::create().unwrap();
        keys.replace(&self::keys()).unwrap();
        let sockets = Map::create(crate::sys::bpf::MapKind::XdpSockets, "test", 4, 4, 4).unwrap();
        Self { keys, sockets }
    }

    /// Each flavour, with what it says to what is taken, and to the rest.
    fn load(&self) -> [(&'static str, Program, i32, i32); 3] {
        let load = |flavour| load(&self.keys, flavour).unwrap();
        [
            ("XDP", load(Flavour::Xdp { sockets: self.sockets.as_fd() }), XDP_DROP, XDP_PASS),
            ("guard", load(Flavour::Guard), TCX_DROP, TCX_NEXT),
            ("filter", load(Flavour::Filter), FILTER_KEEP_ALL, FILTER_KEEP_NONE),
        ]
    }
}

/// The kernel shows a socket filter what follows an Ethernet header, so the frame gets one more.
fn test_run(name: &str, program: &Program, frame: &[u8], repeat: u32) -> TestRun {
    let frame = if name == "filter" { join(&[&[0; 14], frame]) } else { frame.to_vec() };
    program.test_run(&frame, repeat).unwrap()
}

fn run(name: &str, program: &Program, frame: &[u8]) -> i32 {
    test_run(name, program, frame, 1).result as i32
}

#[test]
fn every_flavour_takes_the_same_frames() {
    if !is_root() {
        return;
    }
    let programs = Programs::new();
    for (flavour, program, taken, passed) in programs.load() {
        for (what, frame, expected) in all_rows() {
            let expected = if expected { taken } else { passed };
            assert_eq!(run(flavour, &program, &frame), expected, "{flavour}: {what}");
        }
    }
}

#[test]
fn frames_cut_off_before_their_port_pass() {
    if !is_root() {
        return;
    }
    let programs = Programs::new();
    // Behind tags, since the kernel makes no test packet whose IP header, as far as it can see, is cut off.
    let frames = [
        join(&[&ethernet(&[0x88a8, 0x8100], 0x0800), &ipv4(10, 0, 6, VIP4), &ports(443)]),
        join(&[&ethernet(&[0x8100], 0x86dd), &ipv6(&[(0, 1), (43, 0), (60, 3)], 6, VIP6), &ports(443)]),
    ];
    for (flavour, program, taken, passed) in programs.load() {
        for frame in &frames {
            let port_ends = frame.len() - 4;
            for length in 14..=frame.len() {
                let expected = if length >= port_ends { taken } else { passed };
                assert_eq!(run(flavour, &program, &frame[..length]), expected, "{flavour}: {length} bytes");
            }
        }
    }
}

#[test]
fn taken_frames_go_to_the_queues_socket() {
    if !is_root() {
        return;
    }
    const XDP_REDIRECT: i32 = 4;
    let programs = Programs::new();
    let [(name, program, ..), ..] = programs.load();
    let socket =
        rustix::net::socket(rustix::net::AddressFamily::XDP, rustix::net::SocketType::RAW, None).unwrap();
    rustix::net::sockopt::set_xdp_rx_ring_size(&socket, 64).unwrap();
    let frame = join(&[&ethernet(&[], 0x0800), &ipv4(0, 0, 6, VIP4), &ports(443)]);
    let other = join(&[&ethernet(&[], 0x0800), &ipv4(0, 0, 6, VIP4), &ports(22)]);
    crate::io::steering::attach::insert_socket(&programs.sockets, 0, socket.as_fd()).unwrap();
    assert_eq!(run(name, &program, &frame), XDP_REDIRECT);
    assert_eq!(run(name, &program, &other), XDP_PASS);
    assert!(crate::io::steering::attach::insert_socket(&programs.sockets, 4, socket.as_fd()).is_err());
    // The director died: its socket leaves the map.
    drop(socket);
    assert_eq!(run(name, &program, &frame), XDP_DROP);
}

#[test]
fn keys_that_are_removed_no_longer_count() {
    if !is_root() {
        return;
    }
    let mut programs = Programs::new();
    let [(name, program, ..), ..] = programs.load();
    let eth = ethernet(&[], 0x0800);
    let tcp = |to: &str| join(&[&eth, &ipv4(0, 0, 6, to), &ports(443)]);
    let later = |to: &str| join(&[&eth, &ipv4(0, 1, 6, to), &[0]]);
    programs.keys.replace(&BTreeSet::from([transport(OTHER4, Protocol::Tcp, 443)])).unwrap();
    for (frame, expected) in [
        (tcp(OTHER4), XDP_DROP),
        (later(OTHER4), XDP_DROP),
        (tcp(VIP4), XDP_PASS),
        (later(VIP4), XDP_PASS),
        (tcp(ALL4), XDP_PASS),
    ] {
        assert_eq!(run(name, &program, &frame), expected, "{frame:?}");
    }
    assert_eq!(programs.keys.map().keys().unwrap().len(), 2);
}

#[test]
fn sources_count_as_long_as_there_is_a_key_of_one() {
    if !is_root() {
        return;
    }
    let mut programs = Programs::new();
    let [(name, program, ..), ..] = programs.load();
    let answer = join(&[&ethernet(&[], 0x0800), &from(SERVER4, ipv4(0, 0, 6, OTHER4)), &ports_from(8080)]);
    let word = |keys: &KeyTable| keys.sources().get(&[0; 4]).unwrap().unwrap();
    let without = BTreeSet::from([transport(VIP4, Protocol::Tcp, 443)]);
    let server = BTreeSet::from([source(SERVER4, Protocol::Tcp, 8080)]);
    assert_eq!(run(name, &program, &answer), XDP_DROP);
    programs.keys.replace(&without).unwrap();
    assert_eq!((run(name, &program, &answer), word(&programs.keys)), (XDP_PASS, vec![0; 4]));
    programs.keys.extend(&server).unwrap();
    assert_eq!(run(name, &program, &answer), XDP_DROP, "one more");
    programs.keys.replace(&without).unwrap();
    assert_eq!((run(name, &program, &answer), word(&programs.keys)), (XDP_PASS, vec![0; 4]));
    let mut old = KeyTable::create().unwrap();
    old.replace(&server).unwrap();
    assert!(programs.keys.merge(old.map()).unwrap());
    assert_eq!(run(name, &program, &answer), XDP_DROP, "a dead director's");
}

/// Not a test of speed: prints what the head of `program.rs` quotes.
#[test]
#[ignore = "a measurement"]
fn cost_of_a_frame() {
    if !is_root() {
        return;
    }
    let mut programs = Programs::new();
    let mut many = keys();
    many.extend((0..1000).map(|n| transport(&format!("198.51.{}.{}", n / 250, n % 250), Protocol::Tcp, 80)));
    let rows: Vec<Row> = all_rows().collect();
    let direct: BTreeSet<SteeringKey> =
        many.iter().copied().filter(|key| !matches!(key, SteeringKey::Source { .. })).collect();
    for (when, keys) in [("without NAT", direct), ("with NAT", many)] {
        programs.keys.replace(&keys).unwrap();
        for (flavour, program, ..) in programs.load() {
            for what in [
                "TCP to a key",
                "TCP to another address",
                "UDP to an address with every port",
                "ARP",
                "QinQ",
                "IPv6 TCP to a key",
                "IPv6 TCP to another address",
                "three extensions",
                "TCP into a network",
                "an answer over TCP",
                "an answer over IPv6",
            ] {
                let (_, frame, _) = rows.iter().find(|row| row.0 == what).unwrap();
                let best =
                    (0..5).map(|_| test_run(flavour, &program, frame, 1_000_000).duration).min().unwrap();
                println!("{when}: {flavour}: {what}: {best:?}");
            }
        }
    }
}
