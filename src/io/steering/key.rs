//! Which packets are steered to the director.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use crate::types::{Prefix, Protocol};

/// Packets that the director wants to see.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum SteeringKey {
    /// Those of one transport protocol to a port of an address.
    Transport {
        /// Destination address.
        address: IpAddr,
        /// Transport protocol.
        protocol: Protocol,
        /// Destination port; 0 stands for every port.
        port: u16,
    },
    /// Those of one transport protocol to every port of a network.
    Network {
        /// Destination addresses.
        prefix: Prefix,
        /// Transport protocol.
        protocol: Protocol,
    },
    /// Those of one transport protocol from a port of an address: what a real server behind NAT answers.
    Source {
        /// Source address.
        address: IpAddr,
        /// Transport protocol.
        protocol: Protocol,
        /// Source port; 0 stands for every port.
        port: u16,
    },
    /// All to an address, ICMP and protocols that are not load-balanced included.
    Everything {
        /// Destination address.
        address: IpAddr,
    },
}

impl SteeringKey {
    /// The address; of a network, one inside.
    pub const fn address(&self) -> IpAddr {
        match *self {
            Self::Transport { address, .. } | Self::Source { address, .. } | Self::Everything { address } => {
                address
            }
            Self::Network { prefix, .. } => prefix.address,
        }
    }
}

impl fmt::Display for SteeringKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Transport { address, protocol, port: 0 } => {
                write!(f, "{protocol} to {address}, every port")
            }
            Self::Transport { address, protocol, port } => write!(f, "{protocol} to {address}, port {port}"),
            Self::Network { prefix, protocol } => write!(f, "{protocol} to {prefix}, every port"),
            Self::Source { address, protocol, port: 0 } => {
                write!(f, "{protocol} from {address}, every port")
            }
            Self::Source { address, protocol, port } => write!(f, "{protocol} from {address}, port {port}"),
            Self::Everything { address } => write!(f, "everything to {address}"),
        }
    }
}

/// Bytes in a key of the map: selector of the family, selector of the packets, port (network order), address
/// (16 bytes; IPv4's in the first four, the rest zero).
pub(super) const KEY_BYTES: usize = 20;
/// Where the packets' selector is.
pub(super) const PACKETS_AT: usize = 1;
/// Where the port is.
pub(super) const PORT_AT: usize = 2;
/// Where the address begins.
pub(super) const ADDRESS_AT: usize = 4;

/// Where the family's selector is.
pub(super) const FAMILY_AT: usize = 0;

/// First byte of an IPv4 key.
pub(super) const FAMILY_V4: u8 = 4;
/// First byte of an IPv6 key.
pub(super) const FAMILY_V6: u8 = 6;
/// Set in the first byte of a key whose port and address are the source's.
pub(super) const SOURCE: u8 = 0x80;

/// Second byte of a key for all packets to an address. Otherwise it is a transport protocol's number, none of
/// which is 0 (IPv6's hop-by-hop options).
pub(super) const PACKETS_EVERYTHING: u8 = 0;
/// Second byte of the key that says: there is some key for this address. It takes fragments: later ones do not show
/// their ports, the host would answer when the rest does not come, and of one datagram the director gets all or nothing.
/// It takes ICMP errors, too: they may be about a packet that came from there.
/// 255 is reserved as a protocol number.
pub(super) const PACKETS_WITHOUT_PORTS: u8 = 255;

/// A key as the programs look it up.
pub(super) type KeyBytes = [u8; KEY_BYTES];

/// The bytes of a key.
pub(super) fn encode(address: IpAddr, packets: u8, port: u16) -> KeyBytes {
    let mut bytes = [0; KEY_BYTES];
    bytes[PACKETS_AT] = packets;
    bytes[PORT_AT..ADDRESS_AT].copy_from_slice(&port.to_be_bytes());
    match address {
        IpAddr::V4(address) => {
            bytes[0] = FAMILY_V4;
            bytes[ADDRESS_AT..ADDRESS_AT + 4].copy_from_slice(&address.octets());
        }
        IpAddr::V6(address) => {
            bytes[0] = FAMILY_V6;
            bytes[ADDRESS_AT..].copy_from_slice(&address.octets());
        }
    }
    bytes
}

/// The bytes of a key of packets by their source.
fn encode_source(address: IpAddr, packets: u8, port: u16) -> KeyBytes {
    let mut bytes = encode(address, packets, port);
    bytes[FAMILY_AT] |= SOURCE;
    bytes
}

/// Whether a key is of packets by their source.
pub(super) const fn is_source(bytes: &KeyBytes) -> bool {
    bytes[FAMILY_AT] & SOURCE != 0
}

/// The entries of the map of addresses for these keys: theirs, and one for each address, or source (see
/// [`PACKETS_WITHOUT_PORTS`]).
pub(super) fn entries(keys: &BTreeSet<SteeringKey>) -> BTreeSet<KeyBytes> {
    keys.iter()
        .flat_map(|key| {
            let own = match *key {
                SteeringKey::Transport { address, protocol, port } => {
                    encode(address, protocol.number(), port)
                }
                SteeringKey::Everything { address } => encode(address, PACKETS_EVERYTHING, 0),
                SteeringKey::Source { address, protocol, port } => {
                    let entries = [(protocol.number(), port), (PACKETS_WITHOUT_PORTS, 0)];
                    return entries.map(|(packets, port)| encode_source(address, packets, port)).to_vec();
                }
                SteeringKey::Network { .. } => return Vec::new(),
            };
            vec![own, encode(key.address(), PACKETS_WITHOUT_PORTS, 0)]
        })
        .collect()
}

/// Bytes in a key of the map of networks: how many of the bits that follow count (32 bits, in the machine's order), and
/// a key as in the map of addresses, without a port.
pub(super) const NETWORK_BYTES: usize = 4 + KEY_BYTES;
/// Bits in front of the address in such a key, which all count.
const NETWORK_HEAD_BITS: u32 = ADDRESS_AT as u32 * 8;
/// The bits that count in what the programs look up: all.
pub(super) const NETWORK_ALL_BITS: u32 = KEY_BYTES as u32 * 8;

/// A network's key as the programs look it up.
pub(super) type NetworkBytes = [u8; NETWORK_BYTES];

/// The entries of the map of networks for these keys: for each network its own, and one for packets that do not show
/// their ports.
pub(super) fn network_entries(keys: &BTreeSet<SteeringKey>) -> BTreeSet<NetworkBytes> {
    let networks = keys.iter().filter_map(|key| match *key {
        SteeringKey::Network { prefix, protocol } => Some((prefix, protocol)),
        _ => None,
    });
    let entry = |prefix: Prefix, packets: u8| {
        let mut bytes = [0; NETWORK_BYTES];
        let (length, key) = bytes.split_at_mut(4);
        length.copy_from_slice(&(NETWORK_HEAD_BITS + u32::from(prefix.length)).to_ne_bytes());
        key.copy_from_slice(&encode(prefix.network(), packets, 0));
        bytes
    };
    networks
        .flat_map(|(prefix, protocol)| {
            [entry(prefix, protocol.number()), entry(prefix, PACKETS_WITHOUT_PORTS)]
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_one_layout() {
        let v4 = "192.0.2.10".parse().unwrap();
        let tcp = SteeringKey::Transport { address: v4, protocol: Protocol::Tcp, port: 443 };
        let everything = SteeringKey::Everything { address: "2001:db8::1".parse().unwrap() };
        let source = SteeringKey::Source { address: v4, protocol: Protocol::Udp, port: 53 };
        let entries = entries(&BTreeSet::from([tcp, everything, source]));
        let mut address = [0; 16];
        address[..4].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
        address[15] = 1;
        let v6 = |packets: u8| {
            let mut bytes = [0; 20];
            bytes[..2].copy_from_slice(&[6, packets]);
            bytes[4..].copy_from_slice(&address);
            bytes
        };
        let expected = BTreeSet::from([
            [4, 6, 1, 187, 192, 0, 2, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            [4, 255, 0, 0, 192, 0, 2, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            [0x84, 17, 0, 53, 192, 0, 2, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            [0x84, 255, 0, 0, 192, 0, 2, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            v6(0),
            v6(255),
        ]);
        assert_eq!(entries.iter().filter(|entry| is_source(entry)).count(), 2);
        assert_eq!(entries, expected);
    }
}
