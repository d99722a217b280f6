//! What names a virtual service, and how its real servers are reached.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::Family;

/// A transport protocol that is load-balanced.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[repr(u8)]
pub enum Protocol {
    /// TCP, 6
    Tcp = 6,
    /// UDP, 17
    Udp = 17,
    /// SCTP, 132
    Sctp = 132,
}

impl Protocol {
    /// The protocol of an IP protocol number, if it is one that is load-balanced.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            132 => Some(Self::Sctp),
            _ => None,
        }
    }

    /// The IP protocol number.
    pub const fn number(self) -> u8 {
        self as u8
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}

/// What names a virtual service: an address, or a mark.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum ServiceKey {
    /// `-t`, `-u`, `--sctp-service`
    Address {
        /// Transport protocol.
        protocol: Protocol,
        /// The virtual address (VIP).
        address: IpAddr,
        /// The virtual port; 0 stands for every port.
        port: u16,
    },
    /// `-f N [-6]`
    Mark {
        /// Which family's packets the mark selects.
        family: Family,
        /// The mark, never 0.
        mark: u32,
    },
}

impl ServiceKey {
    /// The family of the packets that this service takes.
    pub const fn family(&self) -> Family {
        match self {
            Self::Address { address, .. } => Family::of(*address),
            Self::Mark { family, .. } => *family,
        }
    }
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address { protocol, address: IpAddr::V4(address), port } => {
                write!(f, "{protocol} {address}:{port}")
            }
            Self::Address { protocol, address: IpAddr::V6(address), port } => {
                write!(f, "{protocol} [{address}]:{port}")
            }
            Self::Mark { family: Family::V4, mark } => write!(f, "FWM {mark}"),
            Self::Mark { family: Family::V6, mark } => write!(f, "FWM {mark} IPv6"),
        }
    }
}

/// How a packet gets to a real server.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[repr(u8)]
pub enum ForwardingMethod {
    /// NAT, `-m`, printed `Masq`
    Masquerading = 0,
    /// The director is the real server, printed `Local`
    Local = 1,
    /// Encapsulation, `-i`, printed `Tunnel`
    Tunnel = 2,
    /// DR, `-g`, printed `Route`
    DirectRouting = 3,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocol_numbers_go_both_ways() {
        for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
            assert_eq!(Protocol::from_number(protocol.number()), Some(protocol));
        }
        assert_eq!(Protocol::from_number(1), None);
    }

    #[test]
    fn padding_applies_to_names() {
        assert_eq!(format!("{:<4}|", Protocol::Tcp), "TCP |");
    }
}
