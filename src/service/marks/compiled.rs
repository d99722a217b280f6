//! Rules made ready for the packet path.

use std::sync::Arc;

use super::{AddressMatch, Coverage, MarkRule, MarkTarget, PortMatch, ProtocolMatch, bits};
use crate::sys::memory::atomic::{AtomicU64, Ordering};
use crate::types::{Family, PortId};
use crate::wire::{Addresses, Parsed};

/// What a rule has matched. Packets of connections do not come by: they keep their real server, whatever the rules say
/// by now.
#[derive(Debug, Default)]
pub struct RuleCounters {
    packets: AtomicU64,
    bytes: AtomicU64,
}

impl RuleCounters {
    /// Packets and bytes so far.
    pub fn read(&self) -> (u64, u64) {
        (self.packets.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }

    /// Starts over.
    pub fn reset(&self) {
        self.packets.store(0, Ordering::Relaxed);
        self.bytes.store(0, Ordering::Relaxed);
    }

    fn count(&self, bytes: u32) {
        // Several workers may count: packets that begin a connection are few enough for that.
        self.packets.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes.into(), Ordering::Relaxed);
    }
}

/// All rules of a configuration, in the order they are gone through. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct MarkRules {
    ipv4: Arc<[Compiled]>,
    ipv6: Arc<[Compiled]>,
}

#[derive(Debug)]
struct Compiled {
    source: Network,
    destination: Network,
    /// By port: whether the rule is for it; `None` where it is for all.
    interface: Option<Box<[bool]>>,
    protocol: ProtocolMatch,
    ports: Box<[PortMatch]>,
    target: Option<MarkTarget>,
    /// It has a whole network steered here, and not only what it marks.
    has_network: bool,
    counters: Arc<RuleCounters>,
}

#[derive(Clone, Copy, Debug)]
struct Network {
    address: u128,
    mask: u128,
    inverted: bool,
}

impl Network {
    fn new(from: AddressMatch) -> Self {
        Self { address: bits(from.address), mask: bits(from.mask), inverted: from.inverted }
    }

    fn holds(self, address: u128) -> bool {
        ((address ^ self.address) & self.mask == 0) != self.inverted
    }
}

impl Compiled {
    fn new(rule: &MarkRule, counters: &Arc<RuleCounters>, interfaces: &[String]) -> Self {
        let by_port = |interface: &super::InterfaceMatch| {
            interfaces.iter().map(|name| interface.holds(name)).collect::<Box<[bool]>>()
        };
        Self {
            source: Network::new(rule.source),
            destination: Network::new(rule.destination),
            interface: rule.interface.as_ref().map(by_port),
            protocol: rule.protocol,
            ports: rule.ports.clone().into_boxed_slice(),
            target: rule.target,
            has_network: matches!(rule.coverage(), Some(Coverage::Network(_))),
            counters: Arc::clone(counters),
        }
    }

    /// Whether the rule is for a packet, its ports aside.
    fn holds(&self, packet: &Parsed, source: u128, destination: u128, arrival: PortId) -> bool {
        let port = usize::from(arrival.0);
        self.protocol.holds(packet.protocol)
            && self.destination.holds(destination)
            && self.source.holds(source)
            && self.interface.as_ref().is_none_or(|ports| ports.get(port).copied().unwrap_or(false))
    }
}

impl MarkRules {
    /// These rules, each with its counters; `interfaces` are the director's ports by name, in their order. An interface
    /// that is no port of the director's brings it no packets.
    pub fn new<'a>(
        rules: impl Iterator<Item = (&'a MarkRule, &'a Arc<RuleCounters>)> + Clone,
        interfaces: &[String],
    ) -> Self {
        let of = |family| {
            let own = rules.clone().filter(|(rule, _)| rule.family == family);
            own.map(|(rule, counters)| Compiled::new(rule, counters, interfaces)).collect()
        };
        Self { ipv4: of(Family::V4), ipv6: of(Family::V6) }
    }

    /// A packet's family's rules, and its addresses as the rules have them.
    #[inline]
    fn of(&self, packet: &Parsed) -> (&[Compiled], u128, u128) {
        let whole = |[high, low]: [u64; 2]| u128::from(high) << 64 | u128::from(low);
        match packet.addresses {
            Addresses::V4 { source, destination } => (&self.ipv4, source.into(), destination.into()),
            Addresses::V6 { source, destination } => (&self.ipv6, whole(source), whole(destination)),
        }
    }

    /// The mark that a packet, which came in by `arrival`, leaves the chain with: 0 where no rule marks it. The rules are
    /// gone through in order, as iptables does.
    pub fn mark_of(&self, packet: &Parsed, arrival: PortId) -> u32 {
        let (rules, source, destination) = self.of(packet);
        let mut mark = 0;
        for rule in rules {
            let ports_hold =
                || rule.ports.iter().all(|ports| ports.holds(packet.source_port, packet.destination_port));
            if !rule.holds(packet, source, destination, arrival) || !ports_hold() {
                continue;
            }
            rule.counters.count(packet.ip_length);
            match rule.target {
                None => (),
                Some(MarkTarget::Mark { value, mask }) => mark = (mark & !mask) ^ value,
                Some(MarkTarget::Accept | MarkTarget::Return) => break,
            }
        }
        mark
    }

    /// Whether a packet is here, marked or not, for some rule has a network steered here that it goes to.
    pub fn bring(&self, packet: &Parsed) -> bool {
        let (rules, _, destination) = self.of(packet);
        rules.iter().any(|rule| {
            // Of the opposite of a network everything is steered.
            let in_network = rule.destination.inverted || rule.destination.holds(destination);
            rule.has_network && in_network && rule.protocol.holds(packet.protocol)
        })
    }
}

#[cfg(test)]
mod tests;
