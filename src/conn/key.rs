//! What tells flows apart, as words.

use std::fmt::Debug;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::types::{Family, HashKey};

/// An address family's flows: how many words their addresses take.
///
/// The two families have tables of their own, so that an IPv4 record fits one cache line.
pub trait FlowFamily: Copy + Eq + Debug + Send + Sync + 'static {
    /// Both addresses of a flow.
    type Addresses: Copy + Eq + Debug + AsRef<[u64]>;
    /// Words that the addresses take.
    const ADDRESS_WORDS: usize;
    /// Words of a whole record: a whole number of cache lines.
    const RECORD_WORDS: usize;
    /// The family.
    const FAMILY: Family;

    /// Packs a flow's addresses.
    fn pack(client: IpAddr, destination: IpAddr) -> Option<Self::Addresses>;
    /// Unpacks what [`pack`](Self::pack) packed, given the words.
    fn unpack(words: &[u64]) -> (IpAddr, IpAddr);
    /// Hashes addresses and ports.
    fn hash(key: HashKey, addresses: &Self::Addresses, ports: u64) -> u64;
}

/// IPv4 flows: both addresses in one word, a record in one cache line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ipv4;

/// IPv6 flows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ipv6;

impl FlowFamily for Ipv4 {
    type Addresses = [u64; 1];
    const ADDRESS_WORDS: usize = 1;
    const RECORD_WORDS: usize = 8;
    const FAMILY: Family = Family::V4;

    fn pack(client: IpAddr, destination: IpAddr) -> Option<Self::Addresses> {
        match (client, destination) {
            (IpAddr::V4(client), IpAddr::V4(destination)) => {
                Some([u64::from(u32::from(client)) << 32 | u64::from(u32::from(destination))])
            }
            _ => None,
        }
    }

    fn unpack(words: &[u64]) -> (IpAddr, IpAddr) {
        let word = words.first().copied().unwrap_or_default();
        (Ipv4Addr::from((word >> 32) as u32).into(), Ipv4Addr::from(word as u32).into())
    }

    #[inline]
    fn hash(key: HashKey, addresses: &Self::Addresses, ports: u64) -> u64 {
        key.hash([addresses[0], ports])
    }
}

impl FlowFamily for Ipv6 {
    type Addresses = [u64; 4];
    const ADDRESS_WORDS: usize = 4;
    const RECORD_WORDS: usize = 16;
    const FAMILY: Family = Family::V6;

    fn pack(client: IpAddr, destination: IpAddr) -> Option<Self::Addresses> {
        match (client, destination) {
            (IpAddr::V6(client), IpAddr::V6(destination)) => {
                let (client, destination) = (u128::from(client), u128::from(destination));
                Some([(client >> 64) as u64, client as u64, (destination >> 64) as u64, destination as u64])
            }
            _ => None,
        }
    }

    fn unpack(words: &[u64]) -> (IpAddr, IpAddr) {
        let word = |index: usize| u128::from(words.get(index).copied().unwrap_or_default());
        (Ipv6Addr::from(word(0) << 64 | word(1)).into(), Ipv6Addr::from(word(2) << 64 | word(3)).into())
    }

    #[inline]
    fn hash(key: HashKey, addresses: &Self::Addresses, ports: u64) -> u64 {
        key.hash([addresses[0], addresses[1], addresses[2], addresses[3], ports, 0])
    }
}

/// A flow as the client sends it: who, to which virtual address, by which protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FlowKey<F: FlowFamily> {
    /// Client's and virtual address.
    pub addresses: F::Addresses,
    /// Client's port << 48 | virtual port << 32 | protocol number.
    pub ports: u64,
}

impl<F: FlowFamily> FlowKey<F> {
    /// The key of a packet from `client_port` to `virtual_port`.
    #[inline]
    pub fn new(addresses: F::Addresses, protocol: u8, client_port: u16, virtual_port: u16) -> Self {
        let ports = u64::from(client_port) << 48 | u64::from(virtual_port) << 32 | u64::from(protocol);
        Self { addresses, ports }
    }

    /// The client's port.
    pub fn client_port(&self) -> u16 {
        (self.ports >> 48) as u16
    }

    /// The virtual port.
    pub fn virtual_port(&self) -> u16 {
        (self.ports >> 32) as u16
    }

    /// The IP protocol number.
    pub fn protocol(&self) -> u8 {
        self.ports as u8
    }

    /// The client's and the virtual address.
    pub fn addresses(&self) -> (IpAddr, IpAddr) {
        F::unpack(self.addresses.as_ref())
    }

    /// The keyed hash that places the flow.
    #[inline]
    pub fn hash(&self, key: HashKey) -> u64 {
        F::hash(key, &self.addresses, self.ports)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_unpack_to_what_they_were_made_of() {
        let (client, vip): (IpAddr, IpAddr) = ("192.0.2.1".parse().unwrap(), "198.51.100.2".parse().unwrap());
        let key = FlowKey::<Ipv4>::new(Ipv4::pack(client, vip).unwrap(), 6, 40000, 80);
        assert_eq!(key.addresses(), (client, vip));
        assert_eq!((key.client_port(), key.virtual_port(), key.protocol()), (40000, 80, 6));
        let (client, vip): (IpAddr, IpAddr) =
            ("2001:db8::1".parse().unwrap(), "fd00:1:2:3:4:5:6:7".parse().unwrap());
        let key = FlowKey::<Ipv6>::new(Ipv6::pack(client, vip).unwrap(), 17, 1, 65535);
        assert_eq!(key.addresses(), (client, vip));
        assert!(Ipv4::pack(client, vip).is_none());
    }
}
