//! Lists of rules against a plain model of what iptables does with them.

use std::net::IpAddr;

use proptest::prelude::*;

use super::*;
use crate::service::marks::{InterfaceMatch, PortRange, PortSide};
use crate::wire::build::{Build, Transport};
use crate::wire::{Outcome, parse};

const INTERFACES: [&str; 3] = ["eth0", "eth1", "wan0"];

fn interfaces() -> Vec<String> {
    INTERFACES.map(str::to_owned).to_vec()
}

/// A packet as the model sees it.
#[derive(Clone, Debug)]
struct Packet {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    ports: (u16, u16),
    arrival: u16,
}

impl Packet {
    fn parsed(&self) -> Parsed {
        let (source, destination) = self.ports;
        let transport = match self.protocol {
            17 => Transport::Udp { source, destination, checksum: true },
            _ => Transport::tcp(source, destination),
        };
        let build = match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                Build::ipv4(source.octets(), destination.octets())
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                Build::ipv6(source.octets(), destination.octets())
            }
            _ => panic!("one family"),
        };
        match parse(&build.transport(transport).frame()) {
            Outcome::Packet(packet) => packet,
            other => panic!("{other:?}"),
        }
    }
}

/// The model: the words of iptables' manual, one after the other, on texts and bytes rather than on compiled rules.
fn model(rules: &[MarkRule], packet: &Packet) -> u32 {
    let mut mark = 0_u32;
    for rule in rules {
        let bytes = |address: IpAddr| match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        let inside = |network: &AddressMatch, address: IpAddr| {
            let (own, mask, of) = (bytes(network.address), bytes(network.mask), bytes(address));
            let same =
                of.len() == own.len() && (0..of.len()).all(|at| of[at] & mask[at] == own[at] & mask[at]);
            if network.inverted { !same } else { same }
        };
        if Family::of(packet.source) != rule.family {
            continue;
        }
        let mut all = inside(&rule.source, packet.source) && inside(&rule.destination, packet.destination);
        if let Some(interface) = &rule.interface {
            let came_by = INTERFACES[usize::from(packet.arrival)];
            let same = if interface.name.ends_with('+') {
                came_by.starts_with(interface.name.trim_end_matches('+'))
            } else {
                came_by == interface.name
            };
            all &= if interface.inverted { !same } else { same };
        }
        if rule.protocol.number != 0 {
            let same = packet.protocol == rule.protocol.number;
            all &= if rule.protocol.inverted { !same } else { same };
        }
        for ports in &rule.ports {
            all &= match ports {
                PortMatch::Transport { source, destination } => {
                    let inside = |range: &PortRange, port: u16| {
                        let same = port >= range.first && port <= range.last;
                        if range.inverted { !same } else { same }
                    };
                    inside(source, packet.ports.0) && inside(destination, packet.ports.1)
                }
                PortMatch::Multiple { side, ranges, inverted } => {
                    let candidates = match side {
                        PortSide::Source => vec![packet.ports.0],
                        PortSide::Destination => vec![packet.ports.1],
                        PortSide::Either => vec![packet.ports.0, packet.ports.1],
                    };
                    let mut same = false;
                    for port in candidates {
                        for (first, last) in ranges {
                            same |= port >= *first && port <= *last;
                        }
                    }
                    if *inverted { !same } else { same }
                }
            };
        }
        if !all {
            continue;
        }
        match rule.target {
            Some(MarkTarget::Accept | MarkTarget::Return) => return mark,
            Some(MarkTarget::Mark { value, mask }) => {
                for bit in 0..32 {
                    let kept = if mask >> bit & 1 == 1 { 0 } else { mark >> bit & 1 };
                    mark = mark & !(1 << bit) | (kept ^ (value >> bit & 1)) << bit;
                }
            }
            None => {}
        }
    }
    mark
}

/// Few values, so that rules and packets meet.
fn addresses(family: Family) -> impl Strategy<Value = IpAddr> {
    (0_u8..4, 0_u8..3).prop_map(move |(third, last)| match family {
        Family::V4 => IpAddr::from([10, 0, third, last]),
        Family::V6 => IpAddr::from([0xfd00, 0, 0, 0, 0, 0, u16::from(third), u16::from(last)]),
    })
}

fn networks(family: Family) -> impl Strategy<Value = AddressMatch> {
    let lengths = match family {
        Family::V4 => vec![0, 0, 8, 24, 31, 32],
        Family::V6 => vec![0, 0, 64, 112, 127, 128],
    };
    let holes: IpAddr = match family {
        Family::V4 => IpAddr::from([255, 0, 0, 255]),
        Family::V6 => IpAddr::from([0xffff, 0, 0, 0, 0, 0, 0, 0xffff]),
    };
    (addresses(family), prop::sample::select(lengths), any::<(bool, bool, bool)>()).prop_map(
        move |(address, length, (not, never, hole))| match (not && never, hole && never) {
            (inverted, true) => AddressMatch::new(address, holes, inverted),
            (inverted, false) => AddressMatch::prefix(address, length, inverted),
        },
    )
}

fn port() -> impl Strategy<Value = u16> {
    prop::sample::select(vec![0, 79, 80, 81, 443, 1024, 65535])
}

fn ranges() -> impl Strategy<Value = (u16, u16)> {
    (port(), port()).prop_map(|(one, other)| (one.min(other), one.max(other)))
}

fn port_match() -> impl Strategy<Value = PortMatch> {
    let range = || {
        (ranges(), prop::bool::weighted(0.2)).prop_map(|((first, last), inverted)| PortRange {
            first,
            last,
            inverted,
        })
    };
    let sides = vec![PortSide::Source, PortSide::Destination, PortSide::Either];
    prop_oneof![
        (range(), range()).prop_map(|(source, destination)| PortMatch::Transport { source, destination }),
        (prop::sample::select(sides), prop::collection::vec(ranges(), 1..4), prop::bool::weighted(0.2))
            .prop_map(|(side, ranges, inverted)| PortMatch::Multiple { side, ranges, inverted }),
    ]
}

fn target() -> impl Strategy<Value = Option<MarkTarget>> {
    prop_oneof![
        6 => (0_u32..8, prop::sample::select(vec![0, 1, 3, 0xf0, u32::MAX]))
            .prop_map(|(value, mask)| Some(MarkTarget::Mark { value, mask })),
        1 => Just(Some(MarkTarget::Accept)),
        1 => Just(Some(MarkTarget::Return)),
        1 => Just(None),
    ]
}

fn rule() -> impl Strategy<Value = MarkRule> {
    let names = vec!["eth0", "eth1", "eth+", "wan0", "none0"];
    let interface = prop::option::weighted(0.4, (prop::sample::select(names), any::<bool>()));
    let family = prop::sample::select(vec![Family::V4, Family::V6]);
    let protocol = (prop::sample::select(vec![0, 6, 17, 132]), any::<bool>());
    family.prop_flat_map(move |family| {
        let ports = prop::collection::vec(port_match(), 0..2);
        (networks(family), networks(family), interface.clone(), protocol.clone(), ports, target()).prop_map(
            move |(source, destination, interface, (number, inverted), ports, target)| MarkRule {
                family,
                source,
                destination,
                interface: interface
                    .map(|(name, inverted)| InterfaceMatch { name: name.to_owned(), inverted }),
                protocol: ProtocolMatch { number, inverted: inverted && number != 0 },
                ports,
                target,
            },
        )
    })
}

fn packet() -> impl Strategy<Value = Packet> {
    let family = prop::sample::select(vec![Family::V4, Family::V6]);
    family.prop_flat_map(|family| {
        let protocol = prop::sample::select(vec![6, 17]);
        (addresses(family), addresses(family), protocol, (port(), port()), 0_u16..3).prop_map(
            |(source, destination, protocol, ports, arrival)| Packet {
                source,
                destination,
                protocol,
                ports,
                arrival,
            },
        )
    })
}

fn compile(rules: &[MarkRule]) -> (MarkRules, Vec<Arc<RuleCounters>>) {
    let counters: Vec<Arc<RuleCounters>> = rules.iter().map(|_| Arc::default()).collect();
    (MarkRules::new(rules.iter().zip(&counters), &interfaces()), counters)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn marks_are_what_the_model_says(
        rules in prop::collection::vec(rule(), 0..12),
        packets in prop::collection::vec(packet(), 1..8),
    ) {
        let (compiled, _) = compile(&rules);
        for packet in &packets {
            let (parsed, arrival) = (packet.parsed(), PortId(packet.arrival));
            let mark = compiled.mark_of(&parsed, arrival);
            prop_assert_eq!(mark, model(&rules, packet), "{:?}", packet);
        }
    }
}

fn marking(value: u32) -> MarkRule {
    MarkRule { target: Some(MarkTarget::Mark { value, mask: u32::MAX }), ..MarkRule::any(Family::V4) }
}

#[test]
fn rules_count_what_reaches_them_and_matches() {
    let accept = MarkRule { target: Some(MarkTarget::Accept), ..MarkRule::any(Family::V4) };
    let only_udp = MarkRule { protocol: ProtocolMatch { number: 17, inverted: false }, ..marking(3) };
    let (compiled, counters) = compile(&[marking(1), only_udp, accept, marking(2)]);
    let packet = Packet {
        source: [10, 0, 0, 1].into(),
        destination: [10, 0, 0, 2].into(),
        protocol: 6,
        ports: (1, 80),
        arrival: 0,
    };
    let parsed = packet.parsed();
    assert_eq!(compiled.mark_of(&parsed, PortId(0)), 1);
    assert_eq!(compiled.mark_of(&parsed, PortId(0)), 1);
    let bytes = u64::from(parsed.ip_length) * 2;
    let read: Vec<_> = counters.iter().map(|counters| counters.read()).collect();
    assert_eq!(read, [(2, bytes), (0, 0), (2, bytes), (0, 0)]);
    counters[0].reset();
    assert_eq!(counters[0].read(), (0, 0));
}

#[test]
fn a_port_that_nobody_named_matches_no_name() {
    let named = InterfaceMatch { name: "+".to_owned(), inverted: false };
    let (compiled, _) = compile(&[MarkRule { interface: Some(named), ..marking(1) }]);
    let packet = Packet {
        source: [10, 0, 0, 1].into(),
        destination: [10, 0, 0, 2].into(),
        protocol: 17,
        ports: (1, 80),
        arrival: 0,
    };
    assert_eq!(compiled.mark_of(&packet.parsed(), PortId(2)), 1);
    assert_eq!(compiled.mark_of(&packet.parsed(), PortId(3)), 0);
}
