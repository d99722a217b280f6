//! What the mirror gives out: plain data, replaced as a whole.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::forward::{NextHop, Routes, Way};
use crate::types::{MacAddress, PortId, Prefix};

/// One of the director's interfaces, as the kernel has it now. Followed by name: an interface that went away
/// and came back is the same port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PortState {
    /// The port.
    pub port: PortId,
    /// The interface's name.
    pub name: String,
    /// The interface's index; none while there is no such interface.
    pub ifindex: Option<u32>,
    /// Its Ethernet address; while it is gone, the one that it had.
    pub mac: MacAddress,
    /// Ethernet addresses of the interfaces stacked on it that are up, macvlans and VLANs, in order: frames to them
    /// arrive here too, as those to the virtual router's address that keepalived makes (`use_vmac`). Its own is not
    /// among them.
    pub stacked_macs: Vec<MacAddress>,
    /// Largest IP packet in bytes; while it is gone, what it was.
    pub mtu: u32,
    /// There, switched on, and with a carrier.
    pub up: bool,
    /// Receive queues.
    pub receive_queues: u32,
    /// Transmit queues.
    pub transmit_queues: u32,
    /// Its addresses, each with the size of the network around it.
    pub addresses: Vec<Prefix>,
}

/// Addresses, ports and next hops at one moment.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct NetworkState {
    /// Every single address that the kernel takes for the host's own.
    pub local_addresses: HashSet<IpAddr>,
    /// Whole networks that the kernel takes for the host's own, such as 127.0.0.0/8.
    pub local_networks: Vec<Prefix>,
    /// The director's interfaces, in the order given.
    pub ports: Vec<PortState>,
    /// The way to each destination that was asked for.
    pub next_hops: HashMap<IpAddr, NextHop>,
    /// The source address that the host itself would use towards each of them, where it has one: the outer
    /// source of a tunnel.
    pub sources: HashMap<IpAddr, IpAddr>,
    /// The table "main", where it was asked for: which route leads to an address, as an index of `ways`.
    pub routes: Arc<Routes>,
    /// The ways that these routes lead.
    pub ways: Vec<Way>,
}

impl NetworkState {
    /// Whether the kernel would deliver a packet for `address` to the host itself. Loopback addresses always
    /// are local, even while the loopback interface is down.
    pub fn is_local(&self, address: IpAddr) -> bool {
        address.is_loopback()
            || self.local_addresses.contains(&address)
            || self.local_networks.iter().any(|network| network.contains(address))
    }

    /// The port's state, where there is such a port.
    pub fn port(&self, port: PortId) -> Option<&PortState> {
        self.ports.iter().find(|state| state.port == port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_are_loopback_single_addresses_and_whole_networks() {
        let state = NetworkState {
            local_addresses: HashSet::from(["192.0.2.1".parse().unwrap()]),
            local_networks: vec!["198.51.100.0/24".parse().unwrap()],
            ..NetworkState::default()
        };
        for (address, expected) in [
            ("127.0.0.1", true),
            ("127.255.0.9", true),
            ("::1", true),
            ("192.0.2.1", true),
            ("192.0.2.2", false),
            ("198.51.100.200", true),
            ("198.51.101.1", false),
            ("2001:db8::1", false),
        ] {
            assert_eq!(state.is_local(address.parse().unwrap()), expected, "{address}");
        }
    }
}
