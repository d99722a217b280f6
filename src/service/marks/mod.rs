//! Firewall marks: rules that give packets a number, so that a service can be chosen by it.
//!
//! A [`MarkRule`] says what `iptables -t mangle -A PREROUTING` would: which packets, and what becomes of their mark.
//! [`MarkRules`] are the same made ready for the packet path.

mod compiled;
mod coverage;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::types::Family;

pub use compiled::{MarkRules, RuleCounters};
pub use coverage::{Coverage, MAX_COVERED_PORTS};

/// Most rules of an address family: a packet that may begin a connection goes through all of them.
pub const MAX_MARK_RULES: usize = 1024;
/// Most matches on ports in one rule.
pub const MAX_PORT_MATCHES: usize = 8;
/// Most ports that one `-m multiport` takes, a range counting twice (XT_MULTI_PORTS).
pub const MAX_MULTIPORT_PLACES: usize = 15;
/// The longest name of an interface, in bytes (IFNAMSIZ less the terminator).
pub const MAX_INTERFACE_NAME: usize = 15;

/// One rule. Everything it names has to hold for it to match.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MarkRule {
    /// Which family's packets it is for; that of its addresses.
    pub family: Family,
    /// `-s`
    pub source: AddressMatch,
    /// `-d`
    pub destination: AddressMatch,
    /// `-i`
    pub interface: Option<InterfaceMatch>,
    /// `-p`
    pub protocol: ProtocolMatch,
    /// `-m tcp` and its kin, and `-m multiport`, in the order they were written.
    pub ports: Vec<PortMatch>,
    /// `-j`; a rule without one only counts packets.
    pub target: Option<MarkTarget>,
}

impl MarkRule {
    /// The rule that matches every packet of a family and does nothing.
    pub fn any(family: Family) -> Self {
        let everywhere = AddressMatch::any(family);
        Self {
            family,
            source: everywhere,
            destination: everywhere,
            interface: None,
            protocol: ProtocolMatch { number: 0, inverted: false },
            ports: Vec::new(),
            target: None,
        }
    }

    /// Whether the rule keeps the bounds of this module and is of one family throughout. What comes over a socket need
    /// not.
    pub fn is_sound(&self) -> bool {
        let addresses = [self.source, self.destination];
        let one_family = addresses.iter().all(|network| {
            Family::of(network.address) == self.family && Family::of(network.mask) == self.family
        });
        let name_fits = self.interface.as_ref().is_none_or(|interface| {
            (1..=MAX_INTERFACE_NAME).contains(&interface.name.len())
                && !interface.name.contains(char::is_whitespace)
        });
        one_family
            && name_fits
            && self.ports.len() <= MAX_PORT_MATCHES
            && self.ports.iter().all(PortMatch::fits)
    }
}

/// Addresses that agree with `address` in the bits of `mask`, or with `inverted` those that do not.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AddressMatch {
    /// An address whose bits outside the mask are 0.
    pub address: IpAddr,
    /// Which bits count: any, not only leading ones.
    pub mask: IpAddr,
    /// `!`
    pub inverted: bool,
}

/// An address's bits as a number; the first on the wire is the most significant.
pub(super) fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

/// The address of these bits; IPv4's are the lower 32.
fn address(family: Family, bits: u128) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::from(bits as u32).into(),
        Family::V6 => Ipv6Addr::from(bits).into(),
    }
}

impl AddressMatch {
    /// Every address.
    pub fn any(family: Family) -> Self {
        Self { address: address(family, 0), mask: address(family, 0), inverted: false }
    }

    /// The addresses that agree with `within` in the bits of `mask`, which is of the same family.
    pub fn new(within: IpAddr, mask: IpAddr, inverted: bool) -> Self {
        let family = Family::of(within);
        Self { address: address(family, bits(within) & bits(mask)), mask, inverted }
    }

    /// The addresses that agree with `within` in `length` leading bits; a length beyond the family's is cut to it.
    pub fn prefix(within: IpAddr, length: u8, inverted: bool) -> Self {
        let family = Family::of(within);
        let width = u32::from(family.bits());
        let all = u128::MAX >> (128 - width);
        let kept = all.checked_shr(u32::from(length)).map_or(all, |rest| all & !rest);
        Self::new(within, address(family, kept), inverted)
    }

    /// Whether every address agrees.
    pub fn is_any(&self) -> bool {
        bits(self.mask) == 0 && !self.inverted
    }

    /// How many leading bits count.
    pub fn leading_bits(&self) -> u8 {
        let width = u32::from(Family::of(self.mask).bits());
        (bits(self.mask) << (128 - width)).leading_ones() as u8
    }

    /// The length of the mask, if just its leading bits count.
    pub fn length(&self) -> Option<u8> {
        let ones = self.leading_bits();
        (u32::from(ones) == bits(self.mask).count_ones()).then_some(ones)
    }
}

/// An interface by name; one that ends in `+` stands for all whose name begins so.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct InterfaceMatch {
    /// The name as it was written.
    pub name: String,
    /// `!`
    pub inverted: bool,
}

impl InterfaceMatch {
    /// Whether packets that come in by this interface match.
    pub fn holds(&self, interface: &str) -> bool {
        let same = match self.name.strip_suffix('+') {
            Some(beginning) => interface.starts_with(beginning),
            None => interface == self.name,
        };
        same != self.inverted
    }
}

/// An IP protocol number.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ProtocolMatch {
    /// The number; 0 stands for all.
    pub number: u8,
    /// `!`
    pub inverted: bool,
}

impl ProtocolMatch {
    /// Whether packets of this protocol match.
    pub const fn holds(self, protocol: u8) -> bool {
        self.number == 0 || (self.number == protocol) != self.inverted
    }
}

/// A match on ports.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum PortMatch {
    /// `-m tcp`, `-m udp` or `-m sctp`, whichever the protocol is; or one of their options alone.
    Transport {
        /// `--sport`
        source: PortRange,
        /// `--dport`
        destination: PortRange,
    },
    /// `-m multiport`
    Multiple {
        /// Which of a packet's ports are compared.
        side: PortSide,
        /// Any of these.
        ranges: Vec<(u16, u16)>,
        /// `!`
        inverted: bool,
    },
}

impl PortMatch {
    /// Places of a multiport that its ranges take: one for a port, two for a range.
    pub fn places(ranges: &[(u16, u16)]) -> usize {
        ranges.iter().map(|(first, last)| if first == last { 1 } else { 2 }).sum()
    }

    fn fits(&self) -> bool {
        match self {
            Self::Transport { .. } => true,
            Self::Multiple { ranges, .. } => Self::places(ranges) <= MAX_MULTIPORT_PLACES,
        }
    }

    /// Whether a packet with these ports matches.
    pub fn holds(&self, source_port: u16, destination_port: u16) -> bool {
        match self {
            Self::Transport { source, destination } => {
                source.holds(source_port) && destination.holds(destination_port)
            }
            Self::Multiple { side, ranges, inverted } => {
                let any = |port: u16| ranges.iter().any(|(first, last)| (*first..=*last).contains(&port));
                let some = match side {
                    PortSide::Source => any(source_port),
                    PortSide::Destination => any(destination_port),
                    PortSide::Either => any(source_port) || any(destination_port),
                };
                some != *inverted
            }
        }
    }
}

/// Which ports a multiport compares.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum PortSide {
    /// `--sports`
    Source,
    /// `--dports`
    Destination,
    /// `--ports`: one of the two is enough
    Either,
}

/// Ports from `first` to `last`, or with `inverted` all others.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PortRange {
    /// The first.
    pub first: u16,
    /// The last; never below the first.
    pub last: u16,
    /// `!`
    pub inverted: bool,
}

impl PortRange {
    /// Every port.
    pub const ANY: Self = Self { first: 0, last: u16::MAX, inverted: false };

    /// Whether the port is one of them.
    pub fn holds(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port) != self.inverted
    }
}

/// What becomes of a packet that matches.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum MarkTarget {
    /// `-j MARK --set-xmark VALUE/MASK`, which all its options come to: the mark loses the mask's bits, the value's are
    /// turned over. The next rule goes on from there.
    Mark {
        /// Bits to turn over.
        value: u32,
        /// Bits to clear first.
        mask: u32,
    },
    /// `-j ACCEPT`: the mark stays as it is by now.
    Accept,
    /// `-j RETURN`: in a chain that nothing leads to, as `ACCEPT`.
    Return,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> AddressMatch {
        let (address, length) = text.split_once('/').unwrap();
        AddressMatch::prefix(address.parse().unwrap(), length.parse().unwrap(), false)
    }

    #[test]
    fn networks_know_their_length() {
        for (text, network, mask) in [
            ("10.1.2.3/8", "10.0.0.0", "255.0.0.0"),
            ("10.1.2.3/0", "0.0.0.0", "0.0.0.0"),
            ("10.1.2.3/32", "10.1.2.3", "255.255.255.255"),
            ("fd00::1/0", "::", "::"),
            ("fd00::1/64", "fd00::", "ffff:ffff:ffff:ffff::"),
            ("fd00::1/128", "fd00::1", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
        ] {
            let found = prefix(text);
            assert_eq!((found.address.to_string(), found.mask.to_string()), (network.into(), mask.into()));
            let length = text.split_once('/').unwrap().1.parse().unwrap();
            assert_eq!((found.leading_bits(), found.length()), (length, Some(length)), "{text}");
        }
        let holes = AddressMatch::new("10.1.2.3".parse().unwrap(), "255.0.255.0".parse().unwrap(), false);
        assert_eq!(holes.address, "10.0.2.0".parse::<IpAddr>().unwrap());
        assert_eq!((holes.leading_bits(), holes.length()), (8, None));
    }

    #[test]
    fn rules_beyond_the_bounds_are_not_sound() {
        let any = || MarkRule::any(Family::V4);
        assert!(any().is_sound());
        let named = |name: &str| MarkRule {
            interface: Some(InterfaceMatch { name: name.to_owned(), inverted: false }),
            ..any()
        };
        assert!(named("eth0").is_sound());
        let many = |count: u16| PortMatch::Multiple {
            side: PortSide::Either,
            ranges: (0..count).map(|port| (port, port)).collect(),
            inverted: false,
        };
        assert!(MarkRule { ports: vec![many(15); 8], ..any() }.is_sound());
        for bad in [
            named(""),
            named("sixteen-letters-"),
            named("a b"),
            MarkRule { ports: vec![many(16)], ..any() },
            MarkRule { ports: vec![many(1); 9], ..any() },
            MarkRule { source: AddressMatch::any(Family::V6), ..any() },
            MarkRule { destination: AddressMatch { mask: "::".parse().unwrap(), ..any().source }, ..any() },
        ] {
            assert!(!bad.is_sound(), "{bad:?}");
        }
    }

    #[test]
    fn names_that_end_in_plus_stand_for_many() {
        for (name, interface, expected) in [
            ("eth0", "eth0", true),
            ("eth0", "eth01", false),
            ("eth+", "eth0", true),
            ("eth+", "eth", true),
            ("eth+", "wlan0", false),
            ("+", "wlan0", true),
        ] {
            for inverted in [false, true] {
                let matching = InterfaceMatch { name: name.to_owned(), inverted };
                assert_eq!(matching.holds(interface), expected != inverted, "{name} {interface}");
            }
        }
    }
}
