//! What was read from the kernel, and what follows from it. Makes no system call and reads no clock, so that
//! any situation can be tested, also those that the machine at hand cannot be brought into.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::constants as k;
use super::decode::{InterfaceAddress, Link, NeighbourEntry};
use super::route::{NetworkRoute, Route};
use super::state::{NetworkState, PortState};
use crate::forward::{NextHop, NextHopError, Routes, VlanTag, Way};
use crate::types::{Family, MacAddress, PortId, Prefix};

/// Most interfaces on top of each other between a port and one that is stacked on it.
const MAX_STACKING: usize = 8;
/// Most further Ethernet addresses of a port: VRRP has 255 groups for each family.
const MAX_STACKED_MACS: usize = 510;
/// How long to leave a neighbour alone after the kernel was asked to resolve it.
pub(super) const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// States in which the Ethernet address may be used.
const USABLE: u16 =
    k::NUD_REACHABLE | k::NUD_STALE | k::NUD_DELAY | k::NUD_PROBE | k::NUD_NOARP | k::NUD_PERMANENT;
/// States in which the kernel needs no nudge: it knows, or it is finding out.
const SETTLED: u16 = USABLE & !k::NUD_STALE;

/// A neighbour is told by its interface's index and its address.
pub(super) type NeighbourKey = (u32, IpAddr);

/// A neighbour that a wanted destination is reached through.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
struct Neighbour {
    mac: Option<MacAddress>,
    state: u16,
    /// The kernel gave up on it, and it did not answer since.
    failed: bool,
    /// When the kernel was last asked to resolve it.
    probed: Option<Instant>,
}

impl Neighbour {
    fn usable(&self) -> Option<MacAddress> {
        self.mac.filter(|_| self.state & USABLE != 0)
    }
}

/// A port, and the interface of its name where there is one.
#[derive(Clone, Debug)]
struct Port {
    id: PortId,
    name: String,
    link: Option<Link>,
    /// What the interface was when it was last seen.
    last_mac: MacAddress,
    last_mtu: u32,
}

/// Where a route's interface leads.
struct Exit<'a> {
    port: &'a Port,
    port_link: &'a Link,
    /// The interface of the route: the port's own, or a VLAN interface on it.
    link: &'a Link,
    tag: Option<VlanTag>,
}

/// Everything read so far.
#[derive(Clone, Debug)]
pub(super) struct View {
    ports: Vec<Port>,
    links: HashMap<u32, Link>,
    addresses: Vec<InterfaceAddress>,
    local: Vec<Prefix>,
    routes: BTreeMap<IpAddr, Route>,
    /// The table "main": which of `ways` leads to an address.
    networks: Arc<Routes>,
    ways: Vec<Route>,
    neighbours: HashMap<NeighbourKey, Neighbour>,
}

impl View {
    /// A view for these interfaces, of which nothing is known yet.
    pub(super) fn new(interfaces: &[(PortId, String)]) -> Self {
        let port = |(id, name): &(PortId, String)| Port {
            id: *id,
            name: name.clone(),
            link: None,
            last_mac: MacAddress::default(),
            last_mtu: 0,
        };
        Self {
            ports: interfaces.iter().map(port).collect(),
            links: HashMap::new(),
            addresses: Vec::new(),
            local: Vec::new(),
            routes: BTreeMap::new(),
            networks: Arc::default(),
            ways: Vec::new(),
            neighbours: HashMap::new(),
        }
    }

    /// Puts the table of links in place of what was known.
    pub(super) fn set_links(&mut self, links: Vec<Link>) {
        self.links = links.into_iter().map(|link| (link.index, link)).collect();
        for port in &mut self.ports {
            port.link = self.links.values().find(|link| link.name == port.name).cloned();
            if let Some(link) = &port.link {
                port.last_mac = link.mac.unwrap_or(port.last_mac);
                port.last_mtu = link.mtu;
            }
        }
    }

    /// Puts the table of addresses in place of what was known.
    pub(super) fn set_addresses(&mut self, addresses: Vec<InterfaceAddress>) {
        self.addresses = addresses;
    }

    /// Puts the networks that the kernel takes for its own in place of what was known.
    pub(super) fn set_local(&mut self, local: Vec<Prefix>) {
        self.local = local;
    }

    /// Puts the table "main" in place of what was known. The neighbours that it leads through are looked up with those
    /// of the next [`set_routes`](Self::set_routes).
    pub(super) fn set_networks(&mut self, mut networks: Vec<NetworkRoute>) {
        // Stable: of two that are as good, the kernel takes the first.
        networks.sort_by_key(|network| network.metric);
        let mut numbers = HashMap::new();
        self.ways.clear();
        let numbered = networks.into_iter().map(|NetworkRoute { prefix, route, .. }| {
            let number = *numbers.entry(route).or_insert_with(|| {
                self.ways.push(route);
                self.ways.len() as u32 - 1
            });
            (prefix, number)
        });
        self.networks = Arc::new(Routes::new(numbered));
    }

    /// The route to a wanted destination, as last read.
    pub(super) fn route(&self, destination: IpAddr) -> Option<Route> {
        self.routes.get(&destination).copied()
    }

    /// Puts the routes to all wanted destinations in place of what was known. Neighbours that no route leads
    /// through any more are forgotten; the new ones are given back, to be looked up.
    pub(super) fn set_routes(&mut self, routes: BTreeMap<IpAddr, Route>) -> Vec<NeighbourKey> {
        self.routes = routes;
        let mut needed: Vec<NeighbourKey> = self
            .routes
            .iter()
            .filter_map(|(&destination, &route)| self.neighbour_of(destination, route))
            .chain(self.ways.iter().filter_map(|&way| self.gateway_of(way)))
            .collect();
        needed.sort_unstable();
        needed.dedup();
        self.neighbours.retain(|key, _| needed.binary_search(key).is_ok());
        needed.retain(|key| !self.neighbours.contains_key(key));
        for key in &needed {
            self.neighbours.insert(*key, Neighbour::default());
        }
        needed
    }

    /// The neighbours that routes lead through.
    pub(super) fn neighbours(&self) -> Vec<NeighbourKey> {
        self.neighbours.keys().copied().collect()
    }

    /// Takes in what the kernel says of a neighbour; ignores those that no route leads through. Says whether that
    /// was anything new.
    pub(super) fn set_neighbour(&mut self, entry: NeighbourEntry) -> bool {
        let Some(neighbour) = self.neighbours.get_mut(&(entry.link, entry.address)) else { return false };
        let before = *neighbour;
        neighbour.mac = entry.mac;
        neighbour.state = entry.state;
        if entry.state & k::NUD_FAILED != 0 {
            neighbour.failed = true;
        } else if neighbour.usable().is_some() {
            neighbour.failed = false;
        }
        before != *neighbour
    }

    /// The neighbours to ask the kernel for now, at most `limit`, those that waited longest first. An entry
    /// that is only STALE is among them: the kernel does not see our traffic, so it would forget it.
    pub(super) fn due(&self, now: Instant, limit: usize) -> Vec<NeighbourKey> {
        let mut due: Vec<_> = self
            .neighbours
            .iter()
            .filter(|(key, neighbour)| self.needs_probe(key, neighbour))
            .filter(|(_, neighbour)| neighbour.probed.is_none_or(|then| now >= then + PROBE_INTERVAL))
            .map(|(&key, neighbour)| (neighbour.probed, key))
            .collect();
        due.sort_unstable();
        due.truncate(limit);
        due.into_iter().map(|(_, key)| key).collect()
    }

    /// When the next neighbour is [`due`](Self::due), where one will be; `now` for one that was never asked for.
    pub(super) fn next_due(&self, now: Instant) -> Option<Instant> {
        self.neighbours
            .iter()
            .filter(|(key, neighbour)| self.needs_probe(key, neighbour))
            .map(|(_, neighbour)| neighbour.probed.map_or(now, |then| then + PROBE_INTERVAL))
            .min()
    }

    /// Whether the kernel is to be asked for a neighbour: it does not see to it by itself, and the link works.
    fn needs_probe(&self, key: &NeighbourKey, neighbour: &Neighbour) -> bool {
        neighbour.state & SETTLED == 0 && self.links.get(&key.0).is_some_and(|link| link.running)
    }

    /// Notes that the kernel was asked for a neighbour.
    pub(super) fn probed(&mut self, key: NeighbourKey, now: Instant) {
        if let Some(neighbour) = self.neighbours.get_mut(&key) {
            neighbour.probed = Some(now);
        }
    }

    /// Names of the interfaces that there are, sorted.
    pub(super) fn link_names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.links.values().map(|link| link.name.clone()).collect();
        names.sort_unstable();
        names
    }

    /// The interface of each port, in the order given.
    pub(super) fn port_links(&self) -> impl Iterator<Item = (&str, Option<&Link>)> {
        self.ports.iter().map(|port| (port.name.as_str(), port.link.as_ref()))
    }

    /// The port that traffic out of interface `index` leaves by: the port's interface itself, or a VLAN
    /// interface directly on it.
    fn exit(&self, index: u32) -> Option<Exit<'_>> {
        let own = |index: u32| {
            self.ports
                .iter()
                .filter_map(|port| port.link.as_ref().map(|link| (port, link)))
                .find(|(_, link)| link.index == index)
        };
        if let Some((port, link)) = own(index) {
            return Some(Exit { port, port_link: link, link, tag: None });
        }
        let link = self.links.get(&index)?;
        let tag = link.vlan?;
        let (port, port_link) = own(link.parent?)?;
        Some(Exit { port, port_link, link, tag: Some(tag) })
    }

    /// The neighbour that `route` to `destination` leads through, where it leaves by a port.
    fn neighbour_of(&self, destination: IpAddr, route: Route) -> Option<NeighbourKey> {
        match route {
            Route::Via { link, gateway, .. } => {
                self.exit(link).map(|exit| (exit.link.index, gateway.unwrap_or(destination)))
            }
            Route::Local | Route::None => None,
        }
    }

    /// The gateway of a route to a network, where it has one.
    fn gateway_of(&self, route: Route) -> Option<NeighbourKey> {
        match route {
            Route::Via { gateway: Some(gateway), .. } => self.neighbour_of(gateway, route),
            _ => None,
        }
    }

    /// The way that a route to a network leads.
    fn way(&self, route: Route) -> Way {
        match route {
            Route::Via { gateway: Some(gateway), .. } => Way::Through(self.next_hop(gateway, route)),
            Route::Via { link, gateway: None, .. } => match self.exit(link) {
                Some(_) => Way::OnLink,
                None => Way::Through(NextHop::Failed(NextHopError::ForeignInterface)),
            },
            Route::Local => Way::Through(NextHop::Local),
            Route::None => Way::Through(NextHop::Failed(NextHopError::NoRoute)),
        }
    }

    /// The way to `destination`, whose route is `route`.
    fn next_hop(&self, destination: IpAddr, route: Route) -> NextHop {
        let (index, mtu) = match route {
            Route::Local => return NextHop::Local,
            Route::None => return NextHop::Failed(NextHopError::NoRoute),
            Route::Via { link, mtu, .. } => (link, mtu),
        };
        let Some(exit) = self.exit(index) else {
            return NextHop::Failed(NextHopError::ForeignInterface);
        };
        if !(exit.port_link.running && exit.link.running) {
            return NextHop::Failed(NextHopError::PortDown);
        }
        let key = self.neighbour_of(destination, route);
        let neighbour = key.and_then(|key| self.neighbours.get(&key)).copied().unwrap_or_default();
        match neighbour.usable() {
            Some(mac) => NextHop::Ready {
                port: exit.port.id,
                source: exit.link.mac.unwrap_or(exit.port.last_mac),
                destination: mac,
                vlan: exit.tag,
                mtu: mtu.map_or(exit.link.mtu, |mtu| mtu.min(exit.link.mtu)),
            },
            // The kernel tries again and again: until an answer comes, it stays failed.
            None if neighbour.failed => NextHop::Failed(NextHopError::NeighbourFailed),
            None => NextHop::Resolving,
        }
    }

    /// What follows from everything read so far.
    pub(super) fn state(&self) -> NetworkState {
        let mut state = NetworkState::default();
        for prefix in &self.local {
            if prefix.length == Family::of(prefix.address).bits() {
                state.local_addresses.insert(prefix.address);
            } else {
                state.local_networks.push(*prefix);
            }
        }
        // The order in which the kernel lists them says nothing: two listings that differ in it are equal.
        state.local_networks.sort_unstable_by_key(|network| (network.address, network.length));
        state.ports = self.ports.iter().map(|port| self.port_state(port)).collect();
        state.routes = Arc::clone(&self.networks);
        state.ways = self.ways.iter().map(|&way| self.way(way)).collect();
        for (&destination, &route) in &self.routes {
            state.next_hops.insert(destination, self.next_hop(destination, route));
            if let Route::Via { source: Some(source), .. } = route {
                state.sources.insert(destination, source);
            }
        }
        state
    }

    /// Ethernet addresses other than its own of what is stacked on an interface, by which its cable reaches the host.
    fn stacked_macs(&self, port: &Link) -> Vec<MacAddress> {
        let mut macs: Vec<MacAddress> = self
            .links
            .values()
            .filter(|link| link.up && self.is_stacked(link, port.index))
            .filter_map(|link| link.mac.filter(|_| link.mac != port.mac))
            .collect();
        macs.sort_unstable_by_key(|mac| mac.0);
        macs.dedup();
        macs.truncate(MAX_STACKED_MACS);
        macs
    }

    /// Whether frames for `link` arrive by the interface `below`, through macvlans and VLANs only.
    fn is_stacked(&self, link: &Link, below: u32) -> bool {
        let mut link = Some(link);
        for _ in 0..MAX_STACKING {
            let Some(parent) =
                link.filter(|link| link.macvlan || link.vlan.is_some()).and_then(|link| link.parent)
            else {
                return false;
            };
            if parent == below {
                return true;
            }
            link = self.links.get(&parent);
        }
        false
    }

    fn port_state(&self, port: &Port) -> PortState {
        let link = port.link.as_ref();
        let own = |address: &&InterfaceAddress| link.is_some_and(|link| link.index == address.link);
        let mut addresses: Vec<_> = self.addresses.iter().filter(own).map(|address| address.prefix).collect();
        addresses.sort_unstable_by_key(|prefix| (prefix.address, prefix.length));
        PortState {
            port: port.id,
            name: port.name.clone(),
            ifindex: link.map(|link| link.index),
            mac: port.last_mac,
            stacked_macs: link.map_or_else(Vec::new, |link| self.stacked_macs(link)),
            mtu: port.last_mtu,
            up: link.is_some_and(|link| link.running),
            receive_queues: link.map_or(0, |link| link.receive_queues),
            transmit_queues: link.map_or(0, |link| link.transmit_queues),
            addresses,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::decode::tests::link_bytes;
    use super::super::message::Messages;
    use super::*;

    const RUNNING: u32 = k::IFF_UP | k::IFF_RUNNING;

    fn link(index: u32, name: &str, flags: u32, parent: Option<u32>, id: Option<u16>) -> Link {
        let tag = id.map(|id| VlanTag { protocol: 0x8100, id });
        let bytes = link_bytes(index, name, flags, parent, tag);
        Link::decode(Messages::new(&bytes).next().unwrap()).unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn mac(last: u8) -> MacAddress {
        MacAddress([2, 0, 0, 0, 0, last])
    }

    fn via(link: u32) -> Route {
        Route::Via { link, gateway: None, source: None, mtu: None }
    }

    /// A view of eth0 (index 3, port 0) and what else is given, with one wanted destination.
    fn view(more: Vec<Link>, route: Route) -> View {
        let mut view = View::new(&[(PortId(0), "eth0".to_owned())]);
        let mut links = vec![link(3, "eth0", RUNNING, None, None)];
        links.extend(more);
        view.set_links(links);
        view.set_routes(BTreeMap::from([(ip("10.0.0.9"), route)]));
        view
    }

    fn hop(view: &View) -> NextHop {
        view.state().next_hops[&ip("10.0.0.9")]
    }

    fn tell(view: &mut View, link: u32, address: &str, state: u16, last: Option<u8>) {
        view.set_neighbour(NeighbourEntry { link, address: ip(address), mac: last.map(mac), state });
    }

    #[test]
    fn a_vlan_interface_on_a_port_leads_out_of_that_port_with_its_tag() {
        let mut view = view(vec![link(7, "eth0.100", RUNNING, Some(3), Some(100))], via(7));
        assert_eq!(hop(&view), NextHop::Resolving);
        assert_eq!(view.due(Instant::now(), 9), [(7, ip("10.0.0.9"))]);
        tell(&mut view, 7, "10.0.0.9", k::NUD_REACHABLE, Some(99));
        let tag = VlanTag { protocol: 0x8100, id: 100 };
        let expected = NextHop::Ready {
            port: PortId(0),
            source: mac(7),
            destination: mac(99),
            vlan: Some(tag),
            mtu: 1500,
        };
        assert_eq!(hop(&view), expected);
    }

    #[test]
    fn a_vlan_interface_that_is_itself_the_port_carries_no_tag() {
        let mut view = View::new(&[(PortId(4), "eth0.100".to_owned())]);
        view.set_links(vec![
            link(3, "eth0", RUNNING, None, None),
            link(7, "eth0.100", RUNNING, Some(3), Some(100)),
        ]);
        view.set_routes(BTreeMap::from([(ip("10.0.0.9"), via(7))]));
        tell(&mut view, 7, "10.0.0.9", k::NUD_PERMANENT, Some(99));
        let expected =
            NextHop::Ready { port: PortId(4), source: mac(7), destination: mac(99), vlan: None, mtu: 1500 };
        assert_eq!(hop(&view), expected);
    }

    #[test]
    fn a_port_has_the_ethernet_addresses_of_what_is_stacked_on_it() {
        let macvlan =
            |index, parent, flags| Link { macvlan: true, ..link(index, "vrrp", flags, Some(parent), None) };
        let mut view = view(
            vec![
                macvlan(9, 3, RUNNING),
                link(7, "eth0.5", RUNNING, Some(3), Some(5)),
                macvlan(8, 7, RUNNING),
                // Down; on another interface; of another kind; a loop.
                macvlan(10, 3, 0),
                link(4, "eth1", RUNNING, None, None),
                macvlan(11, 4, RUNNING),
                link(12, "vxlan", RUNNING, Some(3), None),
                macvlan(13, 14, RUNNING),
                macvlan(14, 13, RUNNING),
            ],
            Route::None,
        );
        assert_eq!(view.state().ports[0].stacked_macs, [mac(7), mac(8), mac(9)]);
        assert_eq!(view.state().ports[0].mac, mac(3));
        view.set_links(
            (20..1020_u32)
                .map(|index| Link {
                    mac: Some(MacAddress([2, 1, 0, 0, (index >> 8) as u8, index as u8])),
                    ..macvlan(index, 3, RUNNING)
                })
                .chain([link(3, "eth0", RUNNING, None, None)])
                .collect(),
        );
        assert_eq!(view.state().ports[0].stacked_macs.len(), MAX_STACKED_MACS);
    }

    #[test]
    fn what_is_not_directly_on_a_port_is_foreign() {
        let foreign = NextHop::Failed(NextHopError::ForeignInterface);
        let eth1 = || link(4, "eth1", RUNNING, None, None);
        assert_eq!(hop(&view(vec![eth1()], via(4))), foreign);
        assert_eq!(hop(&view(vec![eth1(), link(8, "eth1.5", RUNNING, Some(4), Some(5))], via(8))), foreign);
        // A tag within a tag, and something stacked that is no VLAN.
        let inner = vec![
            link(7, "eth0.100", RUNNING, Some(3), Some(100)),
            link(9, "qinq", RUNNING, Some(7), Some(5)),
        ];
        assert_eq!(hop(&view(inner, via(9))), foreign);
        assert_eq!(hop(&view(vec![link(9, "macvlan0", RUNNING, Some(3), None)], via(9))), foreign);
        assert_eq!(hop(&view(vec![], via(77))), foreign);
        assert!(view(vec![eth1()], via(4)).neighbours().is_empty(), "a foreign neighbour was asked for");
    }

    #[test]
    fn ports_that_are_down_or_gone_say_so() {
        let mut view = view(vec![link(7, "eth0.100", k::IFF_UP, Some(3), Some(100))], via(7));
        assert_eq!(hop(&view), NextHop::Failed(NextHopError::PortDown));
        view.set_links(vec![
            link(3, "eth0", k::IFF_UP, None, None),
            link(7, "eth0.100", RUNNING, Some(3), Some(100)),
        ]);
        assert_eq!(hop(&view), NextHop::Failed(NextHopError::PortDown));
        view.set_links(vec![]);
        let port = view.state().ports.remove(0);
        assert_eq!((port.ifindex, port.up, port.mac, port.mtu), (None, false, mac(3), 1500));
        // It comes back under another index.
        view.set_links(vec![link(30, "eth0", RUNNING, None, None)]);
        assert_eq!(view.state().ports[0].ifindex, Some(30));
    }

    #[test]
    fn a_neighbour_that_failed_stays_failed_until_it_answers() {
        let failed = NextHop::Failed(NextHopError::NeighbourFailed);
        let mut view = view(vec![], via(3));
        tell(&mut view, 3, "10.0.0.9", k::NUD_INCOMPLETE, None);
        assert_eq!(hop(&view), NextHop::Resolving);
        tell(&mut view, 3, "10.0.0.9", k::NUD_FAILED, None);
        assert_eq!(hop(&view), failed);
        tell(&mut view, 3, "10.0.0.9", k::NUD_INCOMPLETE, None);
        assert_eq!(hop(&view), failed);
        tell(&mut view, 3, "10.0.0.9", k::NUD_REACHABLE, Some(5));
        assert!(matches!(hop(&view), NextHop::Ready { .. }));
        // Once it answered, being forgotten is not being dead.
        tell(&mut view, 3, "10.0.0.9", k::NUD_NONE, None);
        assert_eq!(hop(&view), NextHop::Resolving);
    }

    #[test]
    fn probes_are_bounded_in_number_and_rate_and_spare_what_the_kernel_sees_to() {
        let mut view = View::new(&[(PortId(0), "eth0".to_owned())]);
        view.set_links(vec![link(3, "eth0", RUNNING, None, None)]);
        let addresses: Vec<IpAddr> = (1..=20_u8).map(|last| IpAddr::from([10, 0, 0, last])).collect();
        let fresh = view.set_routes(addresses.iter().map(|&address| (address, via(3))).collect());
        assert_eq!(fresh.len(), 20);
        let start = Instant::now();
        let first = view.due(start, 8);
        assert_eq!(first.len(), 8);
        for key in first.clone() {
            view.probed(key, start);
        }
        let second = view.due(start, 100);
        assert_eq!(second.len(), 12);
        assert!(second.iter().all(|key| !first.contains(key)));
        for key in second {
            view.probed(key, start);
        }
        assert!(view.due(start + PROBE_INTERVAL - Duration::from_millis(1), 100).is_empty());
        assert_eq!(view.next_due(start), Some(start + PROBE_INTERVAL));
        let later = start + PROBE_INTERVAL;
        for state in [k::NUD_REACHABLE, k::NUD_DELAY, k::NUD_PROBE, k::NUD_NOARP, k::NUD_PERMANENT] {
            tell(&mut view, 3, "10.0.0.1", state, Some(5));
            assert!(!view.due(later, 100).contains(&(3, addresses[0])), "{state:#x}");
        }
        for state in [k::NUD_NONE, k::NUD_STALE, k::NUD_FAILED] {
            tell(&mut view, 3, "10.0.0.1", state, Some(5));
            assert!(view.due(later, 100).contains(&(3, addresses[0])), "{state:#x}");
        }
    }

    #[test]
    fn gateways_are_shared_and_forgotten_with_their_last_route() {
        let gateway = Some(ip("10.0.0.1"));
        let route = Route::Via { link: 3, gateway, source: Some(ip("10.0.0.2")), mtu: Some(1400) };
        let mut view = view(vec![], route);
        let both = BTreeMap::from([(ip("10.0.0.9"), route), (ip("192.0.2.1"), route)]);
        assert!(view.set_routes(both).is_empty());
        assert_eq!(view.neighbours(), [(3, ip("10.0.0.1"))]);
        tell(&mut view, 3, "10.0.0.1", k::NUD_STALE, Some(1));
        let state = view.state();
        assert_eq!(state.sources[&ip("192.0.2.1")], ip("10.0.0.2"));
        assert!(matches!(state.next_hops[&ip("192.0.2.1")], NextHop::Ready { mtu: 1400, .. }));
        view.set_routes(BTreeMap::from([(ip("192.0.2.1"), Route::None)]));
        assert!(view.neighbours().is_empty());
        assert_eq!(view.state().next_hops.len(), 1);
    }

    #[test]
    fn a_route_mtu_cannot_exceed_the_links() {
        let mut view = view(vec![], Route::Via { link: 3, gateway: None, source: None, mtu: Some(9000) });
        tell(&mut view, 3, "10.0.0.9", k::NUD_REACHABLE, Some(5));
        assert!(matches!(hop(&view), NextHop::Ready { mtu: 1500, .. }));
    }
}
