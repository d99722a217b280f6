//! The network around a director that has no kernel to ask: interfaces, neighbours and gateways, as told.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::director::{Network, PortLink};
use crate::forward::{NextHop, NextHopError, Routes, Way};
use crate::service::ServerId;
use crate::types::{Family, MacAddress, PortId, Prefix};

/// Largest IP packet of every interface, in bytes.
pub const MTU: u32 = 1500;
/// Most interfaces.
pub const MAX_INTERFACES: usize = 64;

/// An interface given to the director.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Interface {
    /// Its name, like no other's.
    pub name: String,
    /// The host's own addresses, virtual ones included, each with the network that is reached directly.
    pub addresses: Vec<Prefix>,
    /// Its link address.
    pub mac: MacAddress,
}

/// Somebody whose link address is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Neighbour {
    /// Who.
    pub address: IpAddr,
    /// The link address.
    pub mac: MacAddress,
    /// Which interface it is behind; `None` for the one whose network holds the address.
    pub port: Option<PortId>,
}

/// What is wrong with a topology.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TopologyError {
    /// Nothing to receive on.
    #[error("no interface is given")]
    NoInterface,
    /// More than [`MAX_INTERFACES`].
    #[error("more than {MAX_INTERFACES} interfaces are given")]
    TooManyInterfaces,
    /// Two interfaces under one name.
    #[error("interface {0} is given twice")]
    SameName(String),
    /// A group address as an interface's own.
    #[error("interface {name}: {mac} is a group address; no interface has that")]
    GroupAddress {
        /// The interface.
        name: String,
        /// Its alleged address.
        mac: MacAddress,
    },
    /// Two link addresses for one neighbour.
    #[error("the link address of {0} is given twice")]
    SameNeighbour(IpAddr),
    /// A neighbour behind no interface.
    #[error("{0} lies in no interface's network: say which interface it is behind")]
    NeighbourOutside(IpAddr),
    /// A neighbour at one of the host's own addresses.
    #[error("{0} is an interface's own address, not a neighbour's")]
    NeighbourIsLocal(IpAddr),
    /// Two gateways of one family.
    #[error("there are two gateways for {}", match .0 { Family::V4 => "IPv4", Family::V6 => "IPv6" })]
    TwoGateways(Family),
    /// A gateway that cannot be reached.
    #[error("nobody knows the link address of the gateway {0}")]
    UnknownGateway(IpAddr),
}

/// Interfaces, neighbours and gateways that fit together.
#[derive(Clone, Debug)]
pub struct Topology {
    interfaces: Vec<Interface>,
    neighbours: HashMap<IpAddr, (PortId, MacAddress)>,
    gateways: Vec<IpAddr>,
    local: HashSet<IpAddr>,
}

impl Topology {
    /// A topology of these; interfaces get their [`PortId`]s in the order given.
    ///
    /// # Errors
    /// What does not fit together.
    pub fn new(
        interfaces: Vec<Interface>,
        neighbours: &[Neighbour],
        gateways: Vec<IpAddr>,
    ) -> Result<Self, TopologyError> {
        if interfaces.is_empty() {
            return Err(TopologyError::NoInterface);
        }
        if interfaces.len() > MAX_INTERFACES {
            return Err(TopologyError::TooManyInterfaces);
        }
        for (index, interface) in interfaces.iter().enumerate() {
            if interfaces[..index].iter().any(|other| other.name == interface.name) {
                return Err(TopologyError::SameName(interface.name.clone()));
            }
            if interface.mac.is_group() {
                return Err(TopologyError::GroupAddress { name: interface.name.clone(), mac: interface.mac });
            }
        }
        let local = interfaces.iter().flat_map(|interface| &interface.addresses);
        let local = local.map(|prefix| prefix.address).collect();
        let mut topology = Self { interfaces, neighbours: HashMap::new(), gateways: Vec::new(), local };
        neighbours.iter().try_for_each(|neighbour| topology.add_neighbour(neighbour))?;
        for gateway in gateways {
            let family = Family::of(gateway);
            if topology.gateways.iter().any(|other| Family::of(*other) == family) {
                return Err(TopologyError::TwoGateways(family));
            }
            if !topology.neighbours.contains_key(&gateway) {
                return Err(TopologyError::UnknownGateway(gateway));
            }
            topology.gateways.push(gateway);
        }
        Ok(topology)
    }

    fn add_neighbour(&mut self, neighbour: &Neighbour) -> Result<(), TopologyError> {
        let Neighbour { address, mac, port } = *neighbour;
        if self.local.contains(&address) {
            return Err(TopologyError::NeighbourIsLocal(address));
        }
        let port = port.or_else(|| self.on_link(address)).ok_or(TopologyError::NeighbourOutside(address))?;
        match self.neighbours.insert(address, (port, mac)) {
            Some(_) => Err(TopologyError::SameNeighbour(address)),
            None => Ok(()),
        }
    }

    /// The interface whose network holds `address`; the narrowest network wins, then the first.
    fn on_link(&self, address: IpAddr) -> Option<PortId> {
        let networks = (0..).zip(&self.interfaces).flat_map(|(port, interface)| {
            let holding = interface.addresses.iter().filter(move |network| network.contains(address));
            holding.map(move |network| (network.length, std::cmp::Reverse(port)))
        });
        networks.max().map(|(_, std::cmp::Reverse(port))| PortId(port))
    }

    /// The interfaces, by [`PortId`].
    pub fn interfaces(&self) -> &[Interface] {
        &self.interfaces
    }

    /// The port of the interface called `name`.
    pub fn port(&self, name: &str) -> Option<PortId> {
        (0..)
            .zip(&self.interfaces)
            .find(|(_, interface)| interface.name == name)
            .map(|(port, _)| PortId(port))
    }

    /// Whether `address` is the host's own.
    pub fn is_local(&self, address: IpAddr) -> bool {
        self.local.contains(&address)
    }

    /// The way to `address`: itself where it is on a link, else the gateway of its family.
    pub fn way(&self, address: IpAddr) -> NextHop {
        if self.is_local(address) {
            return NextHop::Local;
        }
        let known = |address| {
            let &(port, destination) = self.neighbours.get(&address)?;
            let source = self.interfaces.get(usize::from(port.0))?.mac;
            Some(NextHop::Ready { port, source, destination, vlan: None, mtu: MTU })
        };
        if let Some(way) = known(address) {
            return way;
        }
        if self.on_link(address).is_some() {
            return NextHop::Failed(NextHopError::NeighbourFailed);
        }
        let gateway = self.gateways.iter().find(|gateway| Family::of(**gateway) == Family::of(address));
        gateway.and_then(|gateway| known(*gateway)).unwrap_or(NextHop::Failed(NextHopError::NoRoute))
    }

    /// What the director goes by, for these real servers.
    pub fn network(&self, servers: impl Iterator<Item = (ServerId, IpAddr)>) -> Network {
        let mut next_hops = Vec::new();
        for (server, address) in servers {
            if next_hops.len() <= server.index() {
                next_hops.resize(server.index() + 1, NextHop::Resolving);
            }
            next_hops[server.index()] = self.way(address);
        }
        let port = |interface: &Interface| PortLink {
            addresses: vec![interface.mac],
            networks: interface.addresses.clone(),
            mtu: MTU,
        };
        let (routes, ways) = self.routes();
        Network {
            ports: self.interfaces.iter().map(port).collect(),
            local: self.local.clone(),
            local_networks: Vec::new(),
            next_hops,
            // The one of the interface that they are sent out of.
            sources: Vec::new(),
            routes: Arc::new(routes),
            ways,
            clients: self.neighbours.keys().map(|&client| (client, self.way(client))).collect(),
        }
    }

    /// The ways to clients: straight to those in an interface's network or known as neighbours, else by the gateways.
    fn routes(&self) -> (Routes, Vec<Way>) {
        const ON_LINK: u32 = 0;
        let mut ways = vec![Way::OnLink];
        let networks = self.interfaces.iter().flat_map(|interface| interface.addresses.iter().copied());
        let networks = networks.filter(|network| *network != Prefix::host(network.address));
        let neighbours = self.neighbours.keys().map(|&neighbour| Prefix::host(neighbour));
        let mut routes: Vec<_> = networks.chain(neighbours).map(|prefix| (prefix, ON_LINK)).collect();
        for (&gateway, number) in self.gateways.iter().zip(1..) {
            let everything = Prefix::new(gateway, 0);
            routes.push((everything, number));
            ways.push(Way::Through(self.way(gateway)));
        }
        (Routes::new(routes), ways)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(name: &str, addresses: &[&str], last: u8) -> Interface {
        let addresses = addresses.iter().map(|text| text.parse().unwrap()).collect();
        Interface { name: name.to_owned(), addresses, mac: MacAddress([2, 0, 0, 0, 0, last]) }
    }

    fn neighbour(address: &str, last: u8, port: Option<u16>) -> Neighbour {
        let mac = MacAddress([2, 0, 0, 0, 1, last]);
        Neighbour { address: address.parse().unwrap(), mac, port: port.map(PortId) }
    }

    fn two() -> Vec<Interface> {
        vec![
            interface("c", &["10.0.0.1/8", "10.88.0.100/32"], 1),
            interface("s", &["10.88.2.254/24", "fd00::1/64"], 2),
        ]
    }

    #[test]
    fn ways_lead_over_the_narrowest_network_else_over_the_gateway() {
        let neighbours = [
            neighbour("10.88.2.11", 11, None),
            neighbour("10.1.1.1", 1, None),
            neighbour("192.0.2.7", 7, Some(1)),
        ];
        let topology = Topology::new(two(), &neighbours, vec!["10.1.1.1".parse().unwrap()]).unwrap();
        let way = |address: &str| match topology.way(address.parse().unwrap()) {
            NextHop::Ready { port, source, destination, vlan: None, mtu: MTU } => {
                format!("{} {} to {}", port.0, source.0[5], destination.0[5])
            }
            other => format!("{other:?}"),
        };
        assert_eq!(way("10.88.2.11"), "1 2 to 11");
        assert_eq!(way("10.88.2.12"), "Failed(NeighbourFailed)");
        assert_eq!(way("10.1.1.1"), "0 1 to 1");
        assert_eq!(way("192.0.2.7"), "1 2 to 7", "a neighbour in nobody's network");
        assert_eq!(way("192.0.2.8"), "0 1 to 1", "by the gateway");
        assert_eq!(way("2001:db8::1"), "Failed(NoRoute)", "a gateway of the other family");
        assert_eq!(way("10.88.0.100"), "Local");
        let network = topology.network([].into_iter());
        let client = |address: &str| network.way_to_client(address.parse().unwrap()).copied();
        assert_eq!(client("10.88.2.12"), None, "a neighbour that nobody knows");
        for known in ["10.88.2.11", "192.0.2.7", "192.0.2.8", "2001:db8::1"] {
            assert_eq!(client(known), Some(topology.way(known.parse().unwrap())), "{known}");
        }
        let network = topology.network([(ServerId(2), "10.88.2.11".parse().unwrap())].into_iter());
        assert!(matches!(network.next_hop(ServerId(2)), NextHop::Ready { .. }));
        assert_eq!(*network.next_hop(ServerId(1)), NextHop::Resolving, "not configured when it was asked");
        assert!(network.is_own_link(PortId(1), MacAddress([2, 0, 0, 0, 0, 2])));
        assert!(!network.is_own_link(PortId(0), MacAddress([2, 0, 0, 0, 0, 2])));
    }

    #[test]
    fn what_does_not_fit_together_is_refused() {
        let gateway = |text: &str| vec![text.parse().unwrap()];
        let new = |interfaces, neighbours: &[Neighbour], gateways| {
            Topology::new(interfaces, neighbours, gateways).unwrap_err().to_string()
        };
        assert_eq!(new(vec![], &[], vec![]), "no interface is given");
        let many = (0..65).map(|n| interface(&format!("i{n}"), &[], n)).collect();
        assert_eq!(new(many, &[], vec![]), "more than 64 interfaces are given");
        let twice = vec![interface("c", &[], 1), interface("c", &[], 2)];
        assert_eq!(new(twice, &[], vec![]), "interface c is given twice");
        let group = vec![Interface { mac: MacAddress([0xff; 6]), ..interface("c", &[], 1) }];
        assert!(new(group, &[], vec![]).contains("group address"));
        let same = [neighbour("10.88.2.11", 1, None), neighbour("10.88.2.11", 2, None)];
        assert_eq!(new(two(), &same, vec![]), "the link address of 10.88.2.11 is given twice");
        assert!(new(two(), &[neighbour("192.0.2.1", 1, None)], vec![]).contains("no interface's network"));
        assert!(new(two(), &[neighbour("10.88.2.254", 1, None)], vec![]).contains("own address"));
        assert!(new(two(), &[], gateway("10.0.0.9")).contains("link address of the gateway 10.0.0.9"));
        let known = [neighbour("10.0.0.9", 1, None), neighbour("10.0.0.8", 1, None)];
        let both = vec!["10.0.0.9".parse().unwrap(), "10.0.0.8".parse().unwrap()];
        assert_eq!(new(two(), &known, both), "there are two gateways for IPv4");
    }
}
