//! What packets a rule may be for, as far as steering can tell packets apart: by destination, protocol and port.

use std::net::IpAddr;

use super::{MarkRule, MarkTarget, PortMatch, PortSide};
use crate::types::Prefix;

/// Most ports of one rule that are told apart; a rule for more covers its whole address.
pub const MAX_COVERED_PORTS: usize = 64;

/// The destinations of a rule that marks; its protocol aside. Over-approximates.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Coverage {
    /// Some ports of an address, none of which is 0.
    Ports(IpAddr, Vec<u16>),
    /// All ports of a network.
    Network(Prefix),
}

impl MarkRule {
    /// Where the packets go that the rule may mark; `None` for a rule that marks none.
    pub fn coverage(&self) -> Option<Coverage> {
        if !matches!(self.target, Some(MarkTarget::Mark { .. })) {
            return None;
        }
        let destination = &self.destination;
        let length = if destination.inverted { 0 } else { destination.leading_bits() };
        let ports = destination_ports(&self.ports).filter(|_| length == self.family.bits());
        Some(match ports {
            Some(ports) => Coverage::Ports(destination.address, ports),
            None => {
                let network = Prefix::new(destination.address, length).network();
                Coverage::Network(Prefix::new(network, length))
            }
        })
    }
}

/// The destination ports that a rule can be for, if they are few. Port 0 cannot be told from all ports.
fn destination_ports(matches: &[PortMatch]) -> Option<Vec<u16>> {
    let few = |ranges: &[(u16, u16)]| {
        let count: usize =
            ranges.iter().map(|&(first, last)| usize::from(last.saturating_sub(first)) + 1).sum();
        (count <= MAX_COVERED_PORTS && ranges.iter().all(|&(first, _)| first != 0))
            .then(|| ranges.iter().flat_map(|&(first, last)| first..=last).collect::<Vec<u16>>())
    };
    // Every match has to hold, so the first that names few ports names enough.
    matches.iter().find_map(|ports| match ports {
        PortMatch::Transport { destination, .. } if !destination.inverted => {
            few(&[(destination.first, destination.last)])
        }
        PortMatch::Multiple { side: PortSide::Destination, ranges, inverted: false } => few(ranges),
        _ => None,
    })
}
