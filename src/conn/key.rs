//! What tells flows apart, as words.

use std::fmt::Debug;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::sys::memory::atomic::{AtomicU64, Ordering};
use crate::types::{Family, HashKey};

/// An address family's flows: how many words their addresses take.
///
/// The two families have tables of their own, so that an IPv4 record fits one cache line.
pub trait FlowFamily: Copy + Eq + Debug + Send + Sync + 'static {
    /// One address.
    type Address: Copy + Eq + Debug + Default;
    /// Both addresses of a flow.
    type Addresses: Copy + Eq + Debug + AsRef<[u64]>;
    /// Words that both addresses take.
    const ADDRESS_WORDS: usize;
    /// Words of a whole record: a whole number of cache lines.
    const RECORD_WORDS: usize;
    /// The family.
    const FAMILY: Family;

    /// An address of this family; `None` for one of the other.
    fn address(address: IpAddr) -> Option<Self::Address>;
    /// The other way round.
    fn ip(address: Self::Address) -> IpAddr;
    /// Puts a flow's addresses together.
    fn join(client: Self::Address, destination: Self::Address) -> Self::Addresses;
    /// Takes a flow's addresses apart.
    fn split(addresses: &Self::Addresses) -> (Self::Address, Self::Address);
    /// Reads both addresses off the beginning of a record.
    fn load(words: &[AtomicU64]) -> Self::Addresses;
    /// Hashes addresses and ports.
    fn hash(key: HashKey, addresses: &Self::Addresses, ports: u64) -> u64;

    /// Writes the real server's address to where a record has it: `target` is the word with its port and number,
    /// which come in the lower half of `value`, and `rest` what follows the words that both families have.
    fn store_target(target: &AtomicU64, rest: &[AtomicU64], address: Self::Address, value: u32);
    /// Reads the address that [`store_target`](Self::store_target) wrote, `target` being the value of that word.
    fn load_target(target: u64, rest: &[AtomicU64]) -> Self::Address;

    /// Packs a flow's addresses; `None` where one is of the other family.
    fn pack(client: IpAddr, destination: IpAddr) -> Option<Self::Addresses> {
        Some(Self::join(Self::address(client)?, Self::address(destination)?))
    }
    /// Unpacks what [`pack`](Self::pack) packed.
    fn unpack(addresses: &Self::Addresses) -> (IpAddr, IpAddr) {
        let (client, destination) = Self::split(addresses);
        (Self::ip(client), Self::ip(destination))
    }
}

/// IPv4 flows: both addresses in one word, a record in one cache line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ipv4;

/// IPv6 flows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ipv6;

impl FlowFamily for Ipv4 {
    type Address = u32;
    type Addresses = [u64; 1];
    const ADDRESS_WORDS: usize = 1;
    const RECORD_WORDS: usize = 8;
    const FAMILY: Family = Family::V4;

    fn address(address: IpAddr) -> Option<u32> {
        match address {
            IpAddr::V4(address) => Some(address.into()),
            IpAddr::V6(_) => None,
        }
    }

    fn ip(address: u32) -> IpAddr {
        Ipv4Addr::from(address).into()
    }

    #[inline]
    fn join(client: u32, destination: u32) -> [u64; 1] {
        [u64::from(client) << 32 | u64::from(destination)]
    }

    #[inline]
    fn split(&[addresses]: &[u64; 1]) -> (u32, u32) {
        ((addresses >> 32) as u32, addresses as u32)
    }

    #[inline]
    fn load(words: &[AtomicU64]) -> [u64; 1] {
        [words[0].load(Ordering::Relaxed)]
    }

    #[inline]
    fn hash(key: HashKey, addresses: &Self::Addresses, ports: u64) -> u64 {
        key.hash([addresses[0], ports])
    }

    fn store_target(target: &AtomicU64, _: &[AtomicU64], address: u32, value: u32) {
        target.store(u64::from(address) << 32 | u64::from(value), Ordering::Relaxed);
    }

    #[inline]
    fn load_target(target: u64, _: &[AtomicU64]) -> u32 {
        (target >> 32) as u32
    }
}

impl FlowFamily for Ipv6 {
    type Address = [u64; 2];
    type Addresses = [u64; 4];
    const ADDRESS_WORDS: usize = 4;
    const RECORD_WORDS: usize = 16;
    const FAMILY: Family = Family::V6;

    fn address(address: IpAddr) -> Option<[u64; 2]> {
        match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(address) => {
                let bits = u128::from(address);
                Some([(bits >> 64) as u64, bits as u64])
            }
        }
    }

    fn ip([high, low]: [u64; 2]) -> IpAddr {
        Ipv6Addr::from(u128::from(high) << 64 | u128::from(low)).into()
    }

    #[inline]
    fn join([a, b]: [u64; 2], [c, d]: [u64; 2]) -> [u64; 4] {
        [a, b, c, d]
    }

    #[inline]
    fn split(&[a, b, c, d]: &[u64; 4]) -> ([u64; 2], [u64; 2]) {
        ([a, b], [c, d])
    }

    #[inline]
    fn load(words: &[AtomicU64]) -> [u64; 4] {
        [0, 1, 2, 3].map(|index: usize| words[index].load(Ordering::Relaxed))
    }

    #[inline]
    fn hash(key: HashKey, addresses: &Self::Addresses, ports: u64) -> u64 {
        key.hash([addresses[0], addresses[1], addresses[2], addresses[3], ports, 0])
    }

    fn store_target(target: &AtomicU64, rest: &[AtomicU64], [high, low]: [u64; 2], value: u32) {
        target.store(u64::from(value), Ordering::Relaxed);
        rest[0].store(high, Ordering::Relaxed);
        rest[1].store(low, Ordering::Relaxed);
    }

    #[inline]
    fn load_target(_: u64, rest: &[AtomicU64]) -> [u64; 2] {
        [rest[0].load(Ordering::Relaxed), rest[1].load(Ordering::Relaxed)]
    }
}

/// A flow as packets of one direction carry it: from whom, to whom, by which protocol. A connection has the client's,
/// who sends to a virtual address; one that is masqueraded also has the replies', which its real server sends to the
/// client. Both are looked up alike.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FlowKey<F: FlowFamily> {
    /// Client's and virtual address; in replies, the real server's and the client's.
    pub addresses: F::Addresses,
    /// Client's port << 48 | virtual port << 32 | protocol number; in replies, real server's and client's port.
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
        F::unpack(&self.addresses)
    }

    /// What replies to this flow carry, where its real server is at that address and port.
    #[inline]
    pub fn reply(&self, server: F::Address, server_port: u16) -> Self {
        let (client, _) = F::split(&self.addresses);
        Self::new(F::join(server, client), self.protocol(), server_port, self.client_port())
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
        let server = "fd00::2".parse().unwrap();
        let reply = key.reply(Ipv6::address(server).unwrap(), 8080);
        assert_eq!(reply.addresses(), (server, client));
        assert_eq!((reply.client_port(), reply.virtual_port(), reply.protocol()), (8080, 1, 17));
    }
}
