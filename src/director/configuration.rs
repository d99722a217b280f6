//! What the packet path goes by: two immutable snapshots, swapped at batch boundaries.
//!
//! [`Configuration`] comes from the operator's commands, [`Network`] from the kernel's links, addresses, routes
//! and neighbours. They change at different times and by different hands, so they are swapped apart.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::conn::Timeouts;
use crate::forward::{NextHop, NextHopError, Routes, Way};
use crate::service::marks::MarkRules;
use crate::service::{ServerId, ServiceTable};
use crate::types::{Instant, MacAddress, PortId, Prefix, Protocol};

/// What the kernel keeps under `net.ipv4.vs`, as far as it steers packets; the defaults are the kernel's.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// `ipvsadm --set`, and the other states' constants.
    pub timeouts: Timeouts,
    /// End connections whose real server was removed, instead of dropping their packets.
    pub expire_nodest_conn: bool,
    /// Templates whose real server has weight 0 count for nothing: their clients are scheduled anew.
    pub expire_quiescent_template: bool,
    /// Which old connections a SYN on their ports replaces: 0 none, bit 0 those that have ended, bit 1 also
    /// those in FIN_WAIT whose replies are not seen.
    pub conn_reuse_mode: u8,
    /// Tell masqueraded real servers what nobody has a connection for, instead of routing it on.
    pub nat_icmp_send: bool,
    /// Tell clients that forbid fragmenting of packets that are too big for a tunnel, instead of letting the outer packet
    /// be fragmented on its way.
    pub pmtu_disc: bool,
    /// Schedule TCP packets other than SYN, too.
    pub sloppy_tcp: bool,
    /// Until then, TCP packets in mid-connection that nobody knows are dropped instead of shown to the host: a
    /// director that was killed may have known them, and the host would reset them.
    pub drop_unknown_until: Instant,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            timeouts: Timeouts::default(),
            expire_nodest_conn: false,
            expire_quiescent_template: false,
            conn_reuse_mode: 1,
            nat_icmp_send: false,
            pmtu_disc: true,
            sloppy_tcp: false,
            drop_unknown_until: Instant::ZERO,
        }
    }
}

/// What masqueraded real servers send, by its source: answers, and what comes here with them.
#[derive(Clone, Debug, Default)]
pub struct Masqueraded {
    /// Where the configured ones answer from.
    pub ports: HashSet<(Protocol, IpAddr, u16)>,
    /// Those that may answer from any port, so that all they send on their own comes here, too.
    pub addresses: HashSet<(Protocol, IpAddr)>,
}

/// The operator's part.
#[derive(Clone, Debug, Default)]
pub struct Configuration {
    /// Virtual services.
    pub services: ServiceTable,
    /// Rules that mark packets for services by mark.
    pub marks: MarkRules,
    /// What masqueraded real servers send.
    pub masqueraded: Arc<Masqueraded>,
    /// Settings.
    pub settings: Settings,
}

/// One port, as the kernel has it.
#[derive(Clone, Debug)]
pub struct PortLink {
    /// Link addresses that frames for this host carry: the interface's own, and those of interfaces on top
    /// of it (as for VRRP's virtual addresses).
    pub addresses: Vec<MacAddress>,
    /// The host's own IP addresses on it, each with the network around.
    pub networks: Vec<Prefix>,
    /// Largest IP packet, in bytes.
    pub mtu: u32,
}

/// The kernel's part.
#[derive(Clone, Debug, Default)]
pub struct Network {
    /// By [`PortId`].
    pub ports: Vec<PortLink>,
    /// Addresses of the host itself, virtual addresses included.
    pub local: HashSet<IpAddr>,
    /// Whole networks of the host itself.
    pub local_networks: Vec<Prefix>,
    /// By [`ServerId`].
    pub next_hops: Vec<NextHop>,
    /// By [`ServerId`]: the host's own address that the route to a real server prefers as source, where it says one.
    pub sources: Vec<Option<IpAddr>>,
    /// Which route leads to a client, as an index of `ways`.
    pub routes: Arc<Routes>,
    /// The routes to clients.
    pub ways: Vec<Way>,
    /// Clients that are neighbours, as far as they were asked for.
    pub clients: HashMap<IpAddr, NextHop>,
}

impl Network {
    /// Whether frames to `address` that arrive on `port` are for this host.
    #[inline]
    pub fn is_own_link(&self, port: PortId, address: MacAddress) -> bool {
        self.ports.get(usize::from(port.0)).is_some_and(|port| port.addresses.contains(&address))
    }

    /// The largest IP packet of a port, in bytes.
    pub fn port_mtu(&self, port: PortId) -> Option<u32> {
        self.ports.get(usize::from(port.0)).map(|port| port.mtu)
    }

    /// Whether `address` is this host's.
    pub fn is_local(&self, address: IpAddr) -> bool {
        self.local.contains(&address) || self.local_networks.iter().any(|network| network.contains(address))
    }

    /// The way to a real server. One that the snapshot does not have was added this moment: a service lists it at once,
    /// and the kernel is still being asked.
    #[inline]
    pub fn next_hop(&self, server: ServerId) -> &NextHop {
        self.next_hops.get(server.index()).unwrap_or(&NextHop::Resolving)
    }

    /// The host's own address for packets that it sends to a real server at `address`, out of `port`.
    pub fn source_towards(&self, server: ServerId, address: IpAddr, port: PortId) -> Option<IpAddr> {
        let preferred = self.sources.get(server.index()).copied().flatten();
        preferred.or_else(|| self.own_address(port, address))
    }

    /// The way to a client; `None` for a neighbour whom nobody has asked for yet.
    #[inline]
    pub fn way_to_client(&self, client: IpAddr) -> Option<&NextHop> {
        let way = self.routes.find(client).and_then(|route| self.ways.get(route as usize));
        match way {
            Some(Way::Through(next_hop)) => Some(next_hop),
            Some(Way::OnLink) => self.clients.get(&client),
            None => Some(&NextHop::Failed(NextHopError::NoRoute)),
        }
    }

    /// The host's own address on a port, to speak to `other` from: one of the same network where there is one.
    pub fn own_address(&self, port: PortId, other: IpAddr) -> Option<IpAddr> {
        let networks = &self.ports.get(usize::from(port.0))?.networks;
        let same_family = |network: &&Prefix| network.address.is_ipv4() == other.is_ipv4();
        let nearest = networks.iter().find(|network| network.contains(other));
        nearest.or_else(|| networks.iter().find(same_family)).map(|network| network.address)
    }
}
