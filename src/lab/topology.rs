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
//! The director alone answers ARP for the VIP. With direct routing (shown) and tunnels, the real servers' gateway is the
//! router, so that their answers bypass the director. With NAT it is the director, and only the director has the VIP.
//! Over IPv6 the addresses are fd00:20::17 and so on.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};

use super::decapsulator::Decapsulator;
use super::error::LabError;
use super::host::{Host, MAX_CLIENTS, MAX_SERVERS};
use super::http::Server;
use super::links::{VethEnd, add_veth};
use super::namespace::Namespace;
use super::place::Place;
use crate::types::{Family, ForwardingMethod, MacAddress, Prefix};

/// The port of the service, and of the real servers.
pub const PORT: u16 = 80;
/// The director's interface, inside its namespace.
pub const DIRECTOR_INTERFACE: &str = "eth0";

const BRIDGE: &str = "br0";
/// Everybody has one queue: a native XDP program needs as many receive queues as the peer has transmit queues.
const QUEUES: u32 = 1;
/// The device behind which a real server finds what came through a tunnel.
const TUNNEL: &str = "tunnel0";
/// Where GUE would arrive: the port that ipvsadm's manual has in its example.
const GUE_PORT: u16 = 6080;

/// What is to be built.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Plan {
    /// Of all addresses.
    pub(super) family: Family,
    /// How packets get to the real servers.
    pub(super) forwarding: ForwardingMethod,
    /// Clients, at most [`MAX_CLIENTS`].
    pub(super) clients: u8,
    /// Real servers, at most [`MAX_SERVERS`].
    pub(super) servers: u8,
}

/// A real server: a namespace in which an HTTP server says its name.
#[derive(Debug)]
pub struct RealServer {
    /// What it answers with.
    pub name: String,
    /// Its own address.
    pub address: IpAddr,
    /// Its namespace.
    pub namespace: Namespace,
    server: Server,
    /// Where packets come through a tunnel that the kernel has no device for.
    _decapsulator: Option<Decapsulator>,
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

fn everything(family: Family) -> Prefix {
    Prefix::new(unspecified(family), 0)
}

fn unspecified(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
    }
}

impl Topology {
    /// Builds the network with real servers that already serve.
    pub(super) fn build(place: &Place, plan: Plan, interrupted: &dyn Fn() -> bool) -> Result<Self, LabError> {
        let check = || if interrupted() { Err(LabError::Interrupted) } else { Ok(()) };
        let family = plan.family;
        let switch = host(place, "switch", family)?;
        switch.add_bridge(BRIDGE, MacAddress([0x02, 0x01, 0, 0, 0, 1]))?;
        switch.set_up(BRIDGE, true)?;
        let (client, router) = client_and_router(place, &switch, plan)?;
        check()?;
        let director = director(place, &switch, plan)?;
        let mut real_servers = Vec::new();
        for index in 0..plan.servers.min(MAX_SERVERS) {
            check()?;
            real_servers.push(real_server(place, &switch, plan, index)?);
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

/// A namespace with its loopback interface on. One for IPv4 has no IPv6, whose chatter would only disturb the view; one
/// for IPv6 believes no router, and uses an address without asking whether somebody has it.
fn host(place: &Place, role: &str, family: Family) -> Result<Namespace, LabError> {
    let name = place.namespace(role);
    let namespace = Namespace::create(&name)
        .map_err(LabError::system(format!("the network namespace {name} could not be made")))?;
    for scope in ["all", "default"] {
        // Strict filters would drop answers of the VIP that do not come from where the VIP is.
        sysctl(&namespace, &format!("ipv4/conf/{scope}/rp_filter"), "0")?;
        if family == Family::V6 {
            for setting in ["accept_dad", "accept_ra", "accept_redirects"] {
                sysctl(&namespace, &format!("ipv6/conf/{scope}/{setting}"), "0")?;
            }
            continue;
        }
        let setting = format!("ipv6/conf/{scope}/disable_ipv6");
        // A kernel without IPv6 has nothing to switch off.
        if namespace.sysctl(&setting).is_ok() {
            sysctl(&namespace, &setting, "1")?;
        }
    }
    namespace.set_up("lo", true)?;
    Ok(namespace)
}

fn sysctl(namespace: &Namespace, name: &str, value: &str) -> Result<(), LabError> {
    namespace
        .set_sysctl(name, value)
        .map_err(LabError::system(format!("a setting of the namespace {} failed", namespace.name())))
}

/// Lets a namespace route between its interfaces, or not. It never tells senders of shorter ways: that answers do not
/// come back as requests came is meant.
fn set_routing(namespace: &Namespace, family: Family, on: bool) -> Result<(), LabError> {
    let value = if on { "1" } else { "0" };
    match family {
        Family::V4 => sysctl(namespace, "ipv4/ip_forward", value)?,
        Family::V6 => return sysctl(namespace, "ipv6/conf/all/forwarding", value),
    }
    for scope in ["all", "default", "eth0", "eth1"] {
        let setting = format!("ipv4/conf/{scope}/send_redirects");
        if namespace.sysctl(&setting).is_ok() {
            sysctl(namespace, &setting, "0")?;
        }
    }
    Ok(())
}

/// Joins `namespace`'s new interface `name`, with the address of `host`, to a new port of the switch called after
/// `role`.
fn plug(
    switch: &Namespace,
    role: &str,
    namespace: &Namespace,
    name: &str,
    host: Host,
    family: Family,
) -> Result<(), LabError> {
    add_veth(
        &VethEnd { namespace: switch, name: role, mac: host.far_mac(), queues: QUEUES },
        &VethEnd { namespace, name, mac: host.mac(), queues: QUEUES },
    )?;
    switch.set_master(role, BRIDGE)?;
    switch.set_up(role, true)?;
    namespace.add_address(name, host.in_network(family))?;
    namespace.set_up(name, true)?;
    Ok(())
}

fn client_and_router(
    place: &Place,
    switch: &Namespace,
    plan: Plan,
) -> Result<(Namespace, Namespace), LabError> {
    let family = plan.family;
    let (client, router) = (host(place, "client", family)?, host(place, "router", family)?);
    add_veth(
        &VethEnd { namespace: &client, name: "eth0", mac: Host::Client(0).mac(), queues: QUEUES },
        &VethEnd { namespace: &router, name: "eth0", mac: Host::RouterOutside.mac(), queues: QUEUES },
    )?;
    for index in 0..plan.clients.clamp(1, MAX_CLIENTS) {
        client.add_address("eth0", Host::Client(index).in_network(family))?;
    }
    client.set_up("eth0", true)?;
    router.add_address("eth0", Host::RouterOutside.in_network(family))?;
    router.set_up("eth0", true)?;
    client.add_route(everything(family), Host::RouterOutside.address(family))?;
    plug(switch, "router", &router, "eth1", Host::RouterInside, family)?;
    set_routing(&router, family, true)?;
    Ok((client, router))
}

fn director(place: &Place, switch: &Namespace, plan: Plan) -> Result<Namespace, LabError> {
    let family = plan.family;
    let director = host(place, "director", family)?;
    plug(switch, "director", &director, DIRECTOR_INTERFACE, Host::Director, family)?;
    director.add_address(DIRECTOR_INTERFACE, Prefix::host(Host::Virtual.address(family)))?;
    director.add_route(everything(family), Host::RouterInside.address(family))?;
    // What the director does not take must not be routed past it; but as the real servers' gateway its host routes what
    // they send on their own.
    set_routing(&director, family, plan.forwarding == ForwardingMethod::Masquerading)?;
    Ok(director)
}

fn real_server(place: &Place, switch: &Namespace, plan: Plan, index: u8) -> Result<RealServer, LabError> {
    let Plan { family, forwarding, .. } = plan;
    let (name, own) = (format!("node{}", index + 1), Host::RealServer(index));
    let namespace = host(place, &name, family)?;
    let behind_nat = forwarding == ForwardingMethod::Masquerading;
    if !behind_nat {
        // Before the VIP is there: no ARP for it, neither answered nor asked in its name. Neighbour discovery is for
        // the addresses of the link that it comes by, and needs nothing.
        for scope in ["all", "default", "lo"] {
            sysctl(&namespace, &format!("ipv4/conf/{scope}/arp_ignore"), "1")?;
            sysctl(&namespace, &format!("ipv4/conf/{scope}/arp_announce"), "2")?;
        }
        namespace.add_address("lo", Prefix::host(Host::Virtual.address(family)))?;
    }
    plug(switch, &name, &namespace, "eth0", own, family)?;
    let gateway = if behind_nat { Host::Director } else { Host::RouterInside };
    namespace.add_route(everything(family), gateway.address(family))?;
    let decapsulator = match forwarding {
        ForwardingMethod::Tunnel => tunnel_end(&namespace, family)?,
        _ => None,
    };
    let everywhere = SocketAddr::new(unspecified(family), PORT);
    let server = namespace
        .run(|| TcpListener::bind(everywhere).and_then(|listener| Server::start(listener, &name)))
        .and_then(|server| server)
        .map_err(LabError::system(format!("the web server of {name} did not start")))?;
    Ok(RealServer { name, address: own.address(family), namespace, server, _decapsulator: decapsulator })
}

/// Lets a real server take packets out of IP in IP: by the kernel's own device, which every namespace has where the
/// kernel's tunnels are loaded, else by a decapsulator.
fn tunnel_end(namespace: &Namespace, family: Family) -> Result<Option<Decapsulator>, LabError> {
    let of_the_kernel = match family {
        Family::V4 => "tunl0",
        Family::V6 => "ip6tnl0",
    };
    if namespace.link(of_the_kernel).is_ok() {
        namespace.set_up(of_the_kernel, true)?;
        return Ok(None);
    }
    let decapsulator = namespace
        .run(|| Decapsulator::start(TUNNEL, GUE_PORT))
        .and_then(|decapsulator| decapsulator)
        .map_err(LabError::system(format!("the tunnels' end in {} did not start", namespace.name())))?;
    namespace.set_up(TUNNEL, true)?;
    Ok(Some(decapsulator))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::http;
    use std::path::PathBuf;
    use std::time::Duration;

    fn root() -> bool {
        if rustix::process::geteuid().is_root() {
            return true;
        }
        assert!(std::env::var_os("UVS_REQUIRE_ROOT").is_none_or(|value| value != "1"), "needs root");
        eprintln!("SKIPPED: needs root, to make network namespaces");
        false
    }

    const PLAN: Plan =
        Plan { family: Family::V4, forwarding: ForwardingMethod::DirectRouting, clients: 1, servers: 1 };
    const ALL: [(Family, ForwardingMethod); 6] = [
        (Family::V4, ForwardingMethod::DirectRouting),
        (Family::V4, ForwardingMethod::Masquerading),
        (Family::V4, ForwardingMethod::Tunnel),
        (Family::V6, ForwardingMethod::DirectRouting),
        (Family::V6, ForwardingMethod::Masquerading),
        (Family::V6, ForwardingMethod::Tunnel),
    ];

    #[test]
    fn the_client_reaches_real_servers_and_the_director_alone_answers_for_the_vip() {
        if !root() {
            return;
        }
        for (family, forwarding) in ALL {
            let place = Place::claim().unwrap();
            let plan = Plan { family, forwarding, clients: 1, servers: 2 };
            let topology = Topology::build(&place, plan, &|| false).unwrap();
            let timeout = Duration::from_secs(10);
            for server in &topology.real_servers {
                let address = SocketAddr::new(server.address, PORT);
                let answer = topology.client.run(|| http::get(address, "x", "/", timeout)).unwrap().unwrap();
                assert_eq!(answer.body.trim(), server.name, "{plan:?}");
                assert_eq!(server.served(), 1, "{plan:?}");
            }
            // With no director, the VIP is the director's host, which has no web server: refused, not timed out.
            let vip = SocketAddr::new(Host::Virtual.address(family), PORT);
            let error = topology.client.run(|| http::get(vip, "x", "/", timeout)).unwrap().unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{plan:?}: {error}");
            assert_eq!(topology.real_servers.iter().map(RealServer::served).sum::<u64>(), 2);
            assert_eq!(topology.namespaces().count(), 6);
            if family == Family::V4 {
                // And the router found nobody but the director there.
                let read = || std::fs::read_to_string("/proc/thread-self/net/arp");
                let neighbours = topology.router.run(read).unwrap().unwrap();
                let vip = neighbours.lines().find(|line| line.starts_with("192.168.50.100 ")).unwrap();
                assert!(vip.contains(&Host::Director.mac().to_string()), "{neighbours}");
            }
        }
    }

    #[test]
    fn nothing_is_left_behind_not_even_when_interrupted() {
        if !root() {
            return;
        }
        let place = Place::claim().unwrap();
        let topology = Topology::build(&place, PLAN, &|| false).unwrap();
        let paths: Vec<PathBuf> =
            topology.namespaces().map(|(_, namespace)| namespace.path().to_owned()).collect();
        let directory = place.file("");
        assert!(directory.exists() && paths.iter().all(|path| path.exists()));
        drop((topology, place));
        assert!(!directory.exists() && paths.iter().all(|path| !path.exists()));

        let place = Place::claim().unwrap();
        let prefix = place.namespace("");
        assert!(matches!(Topology::build(&place, PLAN, &|| true), Err(LabError::Interrupted)));
        let left = std::fs::read_dir(crate::lab::NAMESPACES)
            .unwrap()
            .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with(&prefix))
            .count();
        assert_eq!(left, 0);
    }
}
