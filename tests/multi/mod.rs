//! Clusters with several queues, workers and clients, in network namespaces of their own.
//!
//! ```text
//!   client .10.. --- router --- front bridge --- director (one arm, or two) --- back bridge --- real servers
//! ```
//! The bridges are in the router's namespace. With one arm, the real servers are on the front bridge. Their gateway
//! is the router, so that their answers bypass the director (direct routing); with NAT it is the director.

// Each test program uses a part of it; nothing of it is anybody else's.
#![allow(dead_code, unreachable_pub)]

pub mod director;
pub mod traffic;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use uvs::lab::http::Server;
use uvs::lab::{NAMESPACES, Namespace, VethEnd, add_veth};
use uvs::types::{Family, MacAddress, Prefix};

use director::Director;

/// What the names of namespaces and directories begin with; the process's number follows.
const PREFIX: &str = "uvs-multi-";
/// The virtual service's port for HTTP.
pub const HTTP: u16 = 80;
/// The port of the service that echoes datagrams.
pub const ECHO: u16 = 5353;
/// The port of the service that takes uploads.
pub const UPLOAD: u16 = 8080;

/// How frames are taken off the director's interfaces.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ports {
    Native,
    Generic,
    Packet,
}

impl Ports {
    pub const ALL: [Self; 3] = [Self::Native, Self::Generic, Self::Packet];

    fn options(self) -> &'static [&'static str] {
        match self {
            Self::Native => &["--io", "xdp", "--xdp-mode", "native"],
            Self::Generic => &["--io", "xdp", "--xdp-mode", "generic"],
            Self::Packet => &["--io", "packet"],
        }
    }

    /// What `uvs stats` calls it.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Native => "xdp-native-copy",
            Self::Generic => "xdp-generic",
            Self::Packet => "packet",
        }
    }
}

/// What a cluster looks like.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub family: Family,
    pub ports: Ports,
    pub workers: usize,
    /// Queues of the director's first interface, and of its cable's other end.
    pub front_queues: u32,
    /// Queues of the second, which leads to the real servers; none: they are at the first.
    pub back_queues: Option<u32>,
    pub servers: u8,
    /// Real servers are masqueraded, not routed to directly.
    pub nat: bool,
}

impl Plan {
    pub const fn new(ports: Ports, workers: usize, queues: u32) -> Self {
        Self {
            family: Family::V4,
            ports,
            workers,
            front_queues: queues,
            back_queues: None,
            servers: 3,
            nat: false,
        }
    }
}

/// The networks, each a /24 or a /64.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Net {
    Clients = 1,
    Front = 2,
    Back = 3,
}

/// Host `last` of a network.
pub fn address(family: Family, net: Net, last: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, 20 + net as u8, 0, last).into(),
        Family::V6 => Ipv6Addr::new(0xfd00 + net as u16, 0, 0, 0, 0, 0, 0, last.into()).into(),
    }
}

const ROUTER: u8 = 1;
const DIRECTOR: u8 = 2;
const FIRST_CLIENT: u8 = 10;
const FIRST_SERVER: u8 = 11;
const VIRTUAL: u8 = 100;
/// Addresses of the client.
pub const CLIENTS: u8 = 8;

fn network(address: IpAddr) -> Prefix {
    Prefix::new(address, if address.is_ipv4() { 24 } else { 64 })
}

/// Any address.
fn unspecified(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
    }
}

fn mac(role: u8, number: u8) -> MacAddress {
    MacAddress([0x02, 0x05, 0, 0, role, number])
}

/// A real server, with an HTTP server that says its name, an echo of datagrams, and a sink for uploads.
#[derive(Debug)]
pub struct RealServer {
    pub name: String,
    pub address: IpAddr,
    pub namespace: Namespace,
    http: Server,
    pub echoed: Arc<AtomicU64>,
}

impl RealServer {
    /// Requests answered so far.
    pub fn served(&self) -> u64 {
        self.http.served()
    }
}

/// The whole cluster, director included. Dropping it removes everything.
pub struct Cluster {
    // First: it ends before the namespaces do.
    pub running: Director,
    pub plan: Plan,
    pub client: Namespace,
    pub router: Namespace,
    pub director: Arc<Namespace>,
    pub servers: Vec<RealServer>,
    /// One cluster at a time: each loads the machine.
    _alone: MutexGuard<'static, ()>,
}

/// Whether the test can run. Without root it says so, unless that is required.
#[must_use]
pub fn is_root() -> bool {
    if rustix::process::geteuid().is_root() {
        return true;
    }
    assert!(
        std::env::var_os("UVS_REQUIRE_ROOT").is_none_or(|value| value != "1"),
        "UVS_REQUIRE_ROOT=1, but this is not root"
    );
    eprintln!("SKIPPED: needs root for network namespaces, raw sockets and BPF");
    false
}

fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    // A test that failed left nothing here.
    ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Removes namespaces of tests that were killed.
fn sweep() {
    for entry in std::fs::read_dir(NAMESPACES).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let pid = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
            let _ = Command::new("ip").args(["netns", "delete", &name]).output();
        }
    }
}

/// A namespace with loopback, quiet in the family that is not looked at.
fn host(run: &str, role: &str, family: Family) -> Namespace {
    let namespace = Namespace::create(&format!("{run}-{role}")).unwrap();
    for scope in ["all", "default"] {
        let set = |name: &str, value| namespace.set_sysctl(name, value).unwrap();
        set(&format!("ipv4/conf/{scope}/rp_filter"), "0");
        let quiet = if family == Family::V4 { "1" } else { "0" };
        set(&format!("ipv6/conf/{scope}/disable_ipv6"), quiet);
        set(&format!("ipv6/conf/{scope}/accept_dad"), "0");
        set(&format!("ipv6/conf/{scope}/accept_ra"), "0");
    }
    namespace.set_up("lo", true).unwrap();
    namespace
}

/// A cable between a bridge in the router's namespace and a host's new interface, which gets an address.
fn plug(
    (router, bridge, name): (&Namespace, &str, &str),
    (host, interface): (&Namespace, &str),
    (role, number): (u8, u8),
    address: IpAddr,
    queues: u32,
) {
    add_veth(
        &VethEnd { namespace: router, name, mac: mac(role | 0x80, number), queues },
        &VethEnd { namespace: host, name: interface, mac: mac(role, number), queues },
    )
    .unwrap();
    router.set_master(name, bridge).unwrap();
    router.set_up(name, true).unwrap();
    host.add_address(interface, network(address)).unwrap();
    host.set_up(interface, true).unwrap();
}

impl Cluster {
    /// Builds everything and starts the director, with no services yet.
    pub fn build(plan: Plan) -> Self {
        Self::build_with(plan, |_, _| {})
    }

    /// As [`build`](Self::build), with something done in the router's and the director's namespaces before it starts.
    pub fn build_with(plan: Plan, prepare: impl FnOnce(&Namespace, &Namespace)) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let alone = alone();
        let family = plan.family;
        sweep();
        let run = format!("{PREFIX}{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let router = host(&run, "router", family);
        let client = build_client(&run, &router, family);
        for (bridge, net) in [("front", Net::Front), ("back", Net::Back)] {
            router.add_bridge(bridge, mac(0x40, net as u8)).unwrap();
            router.add_address(bridge, network(address(family, net, ROUTER))).unwrap();
            router.set_up(bridge, true).unwrap();
        }
        router.set_sysctl("ipv4/ip_forward", "1").unwrap();
        router.set_sysctl("ipv6/conf/all/forwarding", "1").unwrap();
        for scope in ["all", "front", "back"] {
            router.set_sysctl(&format!("ipv4/conf/{scope}/send_redirects"), "0").unwrap();
        }
        let director = host(&run, "director", family);
        // Generic mode's oversized frames and the like are the director's own business: nothing is routed past it.
        director.set_sysctl("ipv4/ip_forward", "0").unwrap();
        let front = address(family, Net::Front, DIRECTOR);
        plug((&router, "front", "d0"), (&director, "eth0"), (0x20, 0), front, plan.front_queues);
        if let Some(queues) = plan.back_queues {
            let back = address(family, Net::Back, DIRECTOR);
            plug((&router, "back", "d1"), (&director, "eth1"), (0x20, 1), back, queues);
        }
        director.add_address("eth0", Prefix::host(address(family, Net::Front, VIRTUAL))).unwrap();
        let gateway = address(family, Net::Front, ROUTER);
        director.add_route(Prefix::new(unspecified(family), 0), gateway).unwrap();
        let servers = (0..plan.servers).map(|number| build_server(&run, &router, plan, number)).collect();
        prepare(&router, &director);
        let director = Arc::new(director);
        let interfaces: &[&str] = if plan.back_queues.is_some() { &["eth0", "eth1"] } else { &["eth0"] };
        let running = Director::start(&run, Arc::clone(&director), plan, interfaces);
        Self { running, plan, client, router, director, servers, _alone: alone }
    }

    pub fn vip(&self) -> IpAddr {
        address(self.plan.family, Net::Front, VIRTUAL)
    }

    pub fn target(&self, port: u16) -> SocketAddr {
        (self.vip(), port).into()
    }

    /// The client's end of connection `number`: all its addresses in turn, and no end twice, since the kernel would
    /// give a port again as soon as it is free, while the director still knows the connection.
    pub fn source(&self, number: usize) -> SocketAddr {
        let client = FIRST_CLIENT + (number % usize::from(CLIENTS)) as u8;
        // Below the ports that the kernel gives out itself.
        (address(self.plan.family, Net::Clients, client), 10_000 + number as u16).into()
    }

    /// Makes `count` requests from the client, [`ends`](Self::source) `from` and up, some at a time; gives the failures.
    pub fn requests(
        &self,
        from: usize,
        count: usize,
        request: impl Fn(SocketAddr) -> io::Result<()> + Sync,
    ) -> Vec<String> {
        self.client.run(|| traffic::requests(count, |number| request(self.source(from + number)))).unwrap()
    }

    /// Adds a virtual service (`-t` or `-u`) and all real servers to it, by rr.
    pub fn add_service(&self, kind: &str, port: u16) {
        let service = self.target(port).to_string();
        self.running.adm(&["-A", kind, &service, "-s", "rr"]);
        for server in &self.servers {
            let real = SocketAddr::from((server.address, port)).to_string();
            let method = if self.plan.nat { "-m" } else { "-g" };
            self.running.adm(&["-a", kind, &service, "-r", &real, method]);
        }
    }

    /// Requests that each real server has answered.
    pub fn served(&self) -> Vec<u64> {
        self.servers.iter().map(RealServer::served).collect()
    }

    /// Datagrams that each real server has answered.
    pub fn echoed(&self) -> Vec<u64> {
        self.servers.iter().map(|server| server.echoed.load(Ordering::Relaxed)).collect()
    }
}

fn build_client(run: &str, router: &Namespace, family: Family) -> Namespace {
    let client = host(run, "client", family);
    add_veth(
        &VethEnd { namespace: &client, name: "eth0", mac: mac(0x10, 0), queues: 4 },
        &VethEnd { namespace: router, name: "eth0", mac: mac(0x10, 1), queues: 4 },
    )
    .unwrap();
    router.add_address("eth0", network(address(family, Net::Clients, ROUTER))).unwrap();
    router.set_up("eth0", true).unwrap();
    for number in 0..CLIENTS {
        let own = address(family, Net::Clients, FIRST_CLIENT + number);
        client.add_address("eth0", network(own)).unwrap();
    }
    client.set_up("eth0", true).unwrap();
    client.add_route(Prefix::new(unspecified(family), 0), address(family, Net::Clients, ROUTER)).unwrap();
    client
}

fn build_server(run: &str, router: &Namespace, plan: Plan, number: u8) -> RealServer {
    let Plan { family, .. } = plan;
    let name = format!("rs{number}");
    let namespace = host(run, &name, family);
    let vip = address(family, Net::Front, VIRTUAL);
    if !plan.nat {
        // No ARP for the virtual address, neither answered nor asked in its name. IPv6 does not answer solicitations on
        // an interface that has not got the address itself.
        for scope in ["all", "default"] {
            namespace.set_sysctl(&format!("ipv4/conf/{scope}/arp_ignore"), "1").unwrap();
            namespace.set_sysctl(&format!("ipv4/conf/{scope}/arp_announce"), "2").unwrap();
        }
        namespace.add_address("lo", Prefix::host(vip)).unwrap();
    }
    let (bridge, net) = match plan.back_queues {
        Some(_) => ("back", Net::Back),
        None => ("front", Net::Front),
    };
    let own = address(family, net, FIRST_SERVER + number);
    plug((router, bridge, &name), (&namespace, "eth0"), (0x30, number), own, 1);
    let (gateway, asked) = if plan.nat { (DIRECTOR, own) } else { (ROUTER, vip) };
    namespace.add_route(Prefix::new(unspecified(family), 0), address(family, net, gateway)).unwrap();
    let (http, echo, upload) = namespace
        .run(|| {
            let everywhere = unspecified(family);
            let http = Server::start(TcpListener::bind((everywhere, HTTP)).unwrap(), &name).unwrap();
            // Bound to the address that is asked: so do the answers come from it.
            (http, UdpSocket::bind((asked, ECHO)).unwrap(), TcpListener::bind((everywhere, UPLOAD)).unwrap())
        })
        .unwrap();
    let echoed = Arc::new(AtomicU64::new(0));
    traffic::serve_echo(echo, &name, Arc::clone(&echoed));
    traffic::serve_uploads(upload);
    RealServer { name, address: own, namespace, http, echoed }
}

/// Runs a command in a namespace and gives what it printed.
#[track_caller]
pub fn run_in(namespace: &Namespace, program: &str, arguments: &[&str]) -> String {
    let mut command = Command::new(program);
    command.args(arguments);
    let output = namespace.run(|| command.output()).unwrap().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
