//! The network of the lab: client, router, switch, director, real servers, each a namespace of its own.
//!
//! ```text
//!   client 192.168.20.17 --- 192.168.20.50 router 192.168.50.50
//!                                                    |
//!   ------------------ switch ------------------------------------------
//!      |                         |                         |
//!   director 192.168.50.31   node1 192.168.50.22   node2 192.168.50.23 ...
//!   VIP 192.168.50.100       VIP on lo             VIP on lo
//! ```
//! The director alone answers ARP for the VIP. The real servers' gateway is the router, so that their answers
//! bypass the director (direct routing).

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};

use super::error::LabError;
use super::http::Server;
use super::links::{VethEnd, add_veth};
use super::namespace::Namespace;
use super::place::Place;
use crate::types::{MacAddress, Prefix};

/// The client's address; those of more clients follow it, in the same namespace.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 168, 20, 17);
/// The router's address on the client's side, the client's gateway.
pub const ROUTER_OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 168, 20, 50);
/// The router's address on the director's side, everybody's gateway there.
pub const ROUTER_INSIDE: Ipv4Addr = Ipv4Addr::new(192, 168, 50, 50);
/// The director's own address.
pub const DIRECTOR: Ipv4Addr = Ipv4Addr::new(192, 168, 50, 31);
/// The virtual address of the service.
pub const VIRTUAL: Ipv4Addr = Ipv4Addr::new(192, 168, 50, 100);
/// The port of the service, and of the real servers.
pub const PORT: u16 = 80;
/// Most real servers.
pub const MAX_SERVERS: u8 = 16;
/// Most clients.
pub const MAX_CLIENTS: u8 = 16;
/// The director's interface, inside its namespace.
pub const DIRECTOR_INTERFACE: &str = "eth0";

const BRIDGE: &str = "br0";
/// Everybody has one queue: a native XDP program needs as many receive queues as the peer has transmit queues.
const QUEUES: u32 = 1;

/// A real server: a namespace in which an HTTP server says its name.
#[derive(Debug)]
pub struct RealServer {
    /// What it answers with.
    pub name: String,
    /// Its own address.
    pub address: Ipv4Addr,
    /// Its namespace.
    pub namespace: Namespace,
    server: Server,
}

impl RealServer {
    /// Requests that it answered.
    pub fn served(&self) -> u64 {
        self.server.served()
    }
}

/// The whole network. Dropping it removes everything.
#[derive(Debug)]
pub struct Topology {
    /// Where requests come from.
    pub client: Namespace,
    /// Between the client's network and the servers'.
    pub router: Namespace,
    /// The bridge that joins router, director and real servers.
    pub switch: Namespace,
    /// Where the director runs.
    pub director: Namespace,
    /// The real servers.
    pub real_servers: Vec<RealServer>,
}

/// The address of client `index`, counted from 0: .17, .18 and so on.
pub fn client_address(index: u8) -> Ipv4Addr {
    let [a, b, c, first] = CLIENT.octets();
    Ipv4Addr::new(a, b, c, first + index.min(MAX_CLIENTS - 1))
}

/// The address of real server `index`, counted from 0: .22, .23 and so on, past the director's.
pub fn real_server_address(index: u8) -> Ipv4Addr {
    let last = 22 + index;
    let [a, b, c, director] = DIRECTOR.octets();
    Ipv4Addr::new(a, b, c, if last < director { last } else { last + 1 })
}

/// An Ethernet address from which the IPv4 address can be read off.
fn mac(address: Ipv4Addr) -> MacAddress {
    let [a, b, c, d] = address.octets();
    MacAddress([0x02, 0x00, a, b, c, d])
}

/// The same for the far end of that one's cable.
fn far_mac(address: Ipv4Addr) -> MacAddress {
    let MacAddress([_, _, a, b, c, d]) = mac(address);
    MacAddress([0x02, 0x01, a, b, c, d])
}

fn network(address: Ipv4Addr) -> Prefix {
    Prefix::new(IpAddr::V4(address), 24)
}

fn everything() -> Prefix {
    Prefix::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0)
}

impl Topology {
    /// Builds the network with `clients` clients (at most [`MAX_CLIENTS`]) and `servers` real servers (at most
    /// [`MAX_SERVERS`]) that already serve.
    pub(super) fn build(
        place: &Place,
        clients: u8,
        servers: u8,
        interrupted: &dyn Fn() -> bool,
    ) -> Result<Self, LabError> {
        let check = || if interrupted() { Err(LabError::Interrupted) } else { Ok(()) };
        let switch = host(place, "switch")?;
        switch.add_bridge(BRIDGE, MacAddress([0x02, 0x01, 0, 0, 0, 1]))?;
        switch.set_up(BRIDGE, true)?;
        let (client, router) = client_and_router(place, &switch, clients)?;
        check()?;
        let director = host(place, "director")?;
        plug(&switch, "director", &director, DIRECTOR_INTERFACE, DIRECTOR)?;
        director.add_address(DIRECTOR_INTERFACE, Prefix::host(IpAddr::V4(VIRTUAL)))?;
        director.add_route(everything(), IpAddr::V4(ROUTER_INSIDE))?;
        // What the director does not take must not be routed past it.
        sysctl(&director, "ipv4/ip_forward", "0")?;
        let mut real_servers = Vec::new();
        for index in 0..servers.min(MAX_SERVERS) {
            check()?;
            real_servers.push(real_server(place, &switch, index)?);
        }
        Ok(Self { client, router, switch, director, real_servers })
    }

    /// All namespaces with their roles.
    pub fn namespaces(&self) -> impl Iterator<Item = (&str, &Namespace)> {
        let fixed = [
            ("client", &self.client),
            ("router", &self.router),
            ("switch", &self.switch),
            ("director", &self.director),
        ];
        fixed
            .into_iter()
            .chain(self.real_servers.iter().map(|server| (server.name.as_str(), &server.namespace)))
    }
}

/// A namespace with its loopback interface on and without IPv6, whose chatter would only disturb the view.
fn host(place: &Place, role: &str) -> Result<Namespace, LabError> {
    let name = place.namespace(role);
    let namespace = Namespace::create(&name)
        .map_err(LabError::system(format!("the network namespace {name} could not be made")))?;
    for scope in ["all", "default"] {
        let setting = format!("ipv6/conf/{scope}/disable_ipv6");
        // A kernel without IPv6 has nothing to switch off.
        if namespace.sysctl(&setting).is_ok() {
            sysctl(&namespace, &setting, "1")?;
        }
        // Strict filters would drop answers of the VIP that do not come from where the VIP is.
        sysctl(&namespace, &format!("ipv4/conf/{scope}/rp_filter"), "0")?;
    }
    namespace.set_up("lo", true)?;
    Ok(namespace)
}

fn sysctl(namespace: &Namespace, name: &str, value: &str) -> Result<(), LabError> {
    namespace
        .set_sysctl(name, value)
        .map_err(LabError::system(format!("a setting of the namespace {} failed", namespace.name())))
}

/// Joins `host`'s new interface `name`, with `address`, to a new port of the switch called after `role`.
fn plug(
    switch: &Namespace,
    role: &str,
    host: &Namespace,
    name: &str,
    address: Ipv4Addr,
) -> Result<(), LabError> {
    add_veth(
        &VethEnd { namespace: switch, name: role, mac: far_mac(address), queues: QUEUES },
        &VethEnd { namespace: host, name, mac: mac(address), queues: QUEUES },
    )?;
    switch.set_master(role, BRIDGE)?;
    switch.set_up(role, true)?;
    host.add_address(name, network(address))?;
    host.set_up(name, true)?;
    Ok(())
}

fn client_and_router(
    place: &Place,
    switch: &Namespace,
    clients: u8,
) -> Result<(Namespace, Namespace), LabError> {
    let (client, router) = (host(place, "client")?, host(place, "router")?);
    add_veth(
        &VethEnd { namespace: &client, name: "eth0", mac: mac(CLIENT), queues: QUEUES },
        &VethEnd { namespace: &router, name: "eth0", mac: mac(ROUTER_OUTSIDE), queues: QUEUES },
    )?;
    for index in 0..clients.clamp(1, MAX_CLIENTS) {
        client.add_address("eth0", network(client_address(index)))?;
    }
    client.set_up("eth0", true)?;
    router.add_address("eth0", network(ROUTER_OUTSIDE))?;
    router.set_up("eth0", true)?;
    client.add_route(everything(), IpAddr::V4(ROUTER_OUTSIDE))?;
    plug(switch, "router", &router, "eth1", ROUTER_INSIDE)?;
    sysctl(&router, "ipv4/ip_forward", "1")?;
    // A router tells senders of shorter ways; that the VIP's answers come from elsewhere is meant.
    for scope in ["all", "default", "eth1"] {
        sysctl(&router, &format!("ipv4/conf/{scope}/send_redirects"), "0")?;
    }
    Ok((client, router))
}

fn real_server(place: &Place, switch: &Namespace, index: u8) -> Result<RealServer, LabError> {
    let name = format!("node{}", index + 1);
    let address = real_server_address(index);
    let namespace = host(place, &name)?;
    // Before the VIP is there: no ARP for it, neither answered nor asked in its name.
    for scope in ["all", "default", "lo"] {
        sysctl(&namespace, &format!("ipv4/conf/{scope}/arp_ignore"), "1")?;
        sysctl(&namespace, &format!("ipv4/conf/{scope}/arp_announce"), "2")?;
    }
    namespace.add_address("lo", Prefix::host(IpAddr::V4(VIRTUAL)))?;
    plug(switch, &name, &namespace, "eth0", address)?;
    namespace.add_route(everything(), IpAddr::V4(ROUTER_INSIDE))?;
    let everywhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT));
    let server = namespace
        .run(|| TcpListener::bind(everywhere).and_then(|listener| Server::start(listener, &name)))
        .and_then(|server| server)
        .map_err(LabError::system(format!("the web server of {name} did not start")))?;
    Ok(RealServer { name, address, namespace, server })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::http;
    use std::collections::HashSet;
    use std::path::PathBuf;
    use std::time::Duration;

    #[test]
    fn no_two_hosts_share_an_address() {
        let mut addresses: HashSet<_> =
            [ROUTER_OUTSIDE, ROUTER_INSIDE, DIRECTOR, VIRTUAL].into_iter().collect();
        for index in 0..MAX_SERVERS {
            assert!(addresses.insert(real_server_address(index)), "{index}");
        }
        for index in 0..MAX_CLIENTS {
            assert!(addresses.insert(client_address(index)), "{index}");
        }
        assert_eq!(real_server_address(0), Ipv4Addr::new(192, 168, 50, 22));
        assert_eq!(real_server_address(1), Ipv4Addr::new(192, 168, 50, 23));
    }

    fn root() -> bool {
        if rustix::process::geteuid().is_root() {
            return true;
        }
        assert!(std::env::var_os("UVS_REQUIRE_ROOT").is_none_or(|value| value != "1"), "needs root");
        eprintln!("SKIPPED: needs root, to make network namespaces");
        false
    }

    #[test]
    fn the_client_reaches_real_servers_and_the_director_alone_answers_for_the_vip() {
        if !root() {
            return;
        }
        let place = Place::claim().unwrap();
        let topology = Topology::build(&place, 1, 3, &|| false).unwrap();
        let timeout = Duration::from_secs(10);
        for server in &topology.real_servers {
            let address = SocketAddr::from((server.address, PORT));
            let answer = topology.client.run(|| http::get(address, "x", "/", timeout)).unwrap().unwrap();
            assert_eq!(answer.body.trim(), server.name);
            assert_eq!(server.served(), 1);
        }
        // With no director, the VIP is the director's host, which has no web server: refused, not timed out.
        let vip = SocketAddr::from((VIRTUAL, PORT));
        let error = topology.client.run(|| http::get(vip, "x", "/", timeout)).unwrap().unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{error}");
        // And the router found nobody but the director there.
        let neighbours =
            topology.router.run(|| std::fs::read_to_string("/proc/thread-self/net/arp")).unwrap().unwrap();
        let vip_line = neighbours.lines().find(|line| line.starts_with("192.168.50.100 ")).unwrap();
        assert!(vip_line.contains(&mac(DIRECTOR).to_string()), "{neighbours}");
        assert_eq!(topology.namespaces().count(), 7);
    }

    #[test]
    fn nothing_is_left_behind_not_even_when_interrupted() {
        if !root() {
            return;
        }
        let place = Place::claim().unwrap();
        let topology = Topology::build(&place, 1, 1, &|| false).unwrap();
        let paths: Vec<PathBuf> =
            topology.namespaces().map(|(_, namespace)| namespace.path().to_owned()).collect();
        let directory = place.file("");
        assert!(directory.exists() && paths.iter().all(|path| path.exists()));
        drop((topology, place));
        assert!(!directory.exists() && paths.iter().all(|path| !path.exists()));

        let place = Place::claim().unwrap();
        let prefix = place.namespace("");
        assert!(matches!(Topology::build(&place, 1, 1, &|| true), Err(LabError::Interrupted)));
        let left = std::fs::read_dir(crate::lab::NAMESPACES)
            .unwrap()
            .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with(&prefix))
            .count();
        assert_eq!(left, 0);
    }
}
