//! The clusters of the field notes, and others like them: a client, a router, the director, and real servers, which
//! get at their packets by direct routing, NAT or tunnels, over IPv4 or IPv6.

use uvs::lab::Decapsulator;
use uvs::types::{Family, ForwardingMethod, TunnelKind};

use super::director::{Director, PortType};
use super::{Process, Site, is_root};

/// The client's own address.
pub(crate) const CLIENT: &str = "192.168.20.17";
/// More addresses of the client, the last octets.
pub(crate) const MORE_CLIENTS: std::ops::RangeInclusive<u8> = 101..=108;
/// The router, on the client's side.
pub(crate) const ROUTER: &str = "192.168.20.50";
/// The same over IPv6.
const CLIENT_6: &str = "fd00:20::17";
const ROUTER_6: &str = "fd00:20::50";
/// What the site is called, in the notes.
pub(super) const SITE_NAME: &str = "www.xuzhichao.com";
/// Where the real servers answer in plain, for load and large files.
pub(crate) const PLAIN_PORT: u16 = 8080;
/// Where tunnels of the type GUE end.
pub(crate) const GUE_PORT: u16 = 6080;
/// The switch's side of the director's `eth0`.
const DIRECTOR_PLUG: &str = "port0";
/// The device behind which a real server finds what came through a tunnel.
const TUNNEL: &str = "tunnel0";

/// How director and real servers are placed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Layout {
    /// The virtual address.
    pub(crate) vip: &'static str,
    /// Its prefix length on the director's interface.
    vip_length: u8,
    /// The network on the director's `eth0`: what its addresses begin with, all but the last octet or group and what
    /// separates it.
    network: &'static str,
    /// The network of the real servers, the same or on the director's `eth1`.
    servers_network: &'static str,
    /// The director's last octet.
    director: u8,
    /// The router's last octet.
    router: u8,
    /// The real servers' last octets: `rs1`, `rs2` and so on.
    servers: &'static [u8],
    /// How packets get to the real servers. With NAT, the director is their gateway.
    pub(crate) forwarding: ForwardingMethod,
}

impl Layout {
    /// The same, with another way of forwarding.
    pub(crate) const fn by(self, forwarding: ForwardingMethod) -> Self {
        Self { forwarding, ..self }
    }

    /// Of all addresses.
    pub(crate) fn family(&self) -> Family {
        if self.vip.contains(':') { Family::V6 } else { Family::V4 }
    }

    /// `-4` or `-6`, as `ip` has it, and the prefix lengths of a network and of one address.
    fn lengths(&self) -> (&'static str, u8, u8) {
        match self.family() {
            Family::V4 => ("-4", 24, 32),
            Family::V6 => ("-6", 64, 128),
        }
    }

    /// An address in a network of this layout.
    fn address(&self, network: &str, last: u8) -> String {
        match self.family() {
            Family::V4 => format!("{network}.{last}"),
            Family::V6 => format!("{network}:{last}"),
        }
    }

    /// The virtual address and a port, as in a URL and in commands.
    pub(crate) fn service(&self, port: u16) -> String {
        socket(self.vip, port)
    }

    /// The client, and the router on its side.
    fn outside(&self) -> (&'static str, &'static str) {
        match self.family() {
            Family::V4 => (CLIENT, ROUTER),
            Family::V6 => (CLIENT_6, ROUTER_6),
        }
    }
}

/// An address and a port, in brackets where need be.
pub(crate) fn socket(address: &str, port: u16) -> String {
    if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}

/// Note 001: one network for all, the virtual address in it.
pub(crate) const ONE_ARM: Layout = Layout {
    vip: "192.168.50.100",
    vip_length: 24,
    network: "192.168.50",
    servers_network: "192.168.50",
    director: 31,
    router: 50,
    servers: &[22, 23],
    forwarding: ForwardingMethod::DirectRouting,
};
/// The same over IPv6.
pub(crate) const ONE_ARM_6: Layout = Layout {
    vip: "fd00:50::100",
    vip_length: 64,
    network: "fd00:50:",
    servers_network: "fd00:50:",
    ..ONE_ARM
};
/// Clients' side and servers' side apart.
pub(crate) const TWO_ARMS: Layout = Layout { servers_network: "192.168.60", ..ONE_ARM };
/// The same over IPv6.
pub(crate) const TWO_ARMS_6: Layout = Layout { servers_network: "fd00:60:", ..ONE_ARM_6 };
/// Note 002: the virtual address in no network of the director's.
pub(crate) const FOREIGN_VIP: Layout = Layout {
    vip: "192.168.51.11",
    vip_length: 32,
    network: "192.168.118",
    servers_network: "192.168.118",
    director: 10,
    router: 1,
    servers: &[22, 23],
    forwarding: ForwardingMethod::DirectRouting,
};
/// Note 000.
pub(crate) const MARKED: Layout = Layout {
    vip: "172.16.4.1",
    network: "172.16.4",
    servers_network: "172.16.4",
    servers: &[101, 102],
    ..ONE_ARM
};
/// Note 002, where its commands name three real servers.
pub(crate) const THREE_SERVERS: Layout =
    Layout { network: "192.168.1", servers_network: "192.168.1", servers: &[2, 3, 4], ..FOREIGN_VIP };
/// Note 003.
pub(crate) const HIGHLY_AVAILABLE: Layout = Layout {
    vip: "172.16.200.1",
    network: "172.16.100",
    servers_network: "172.16.100",
    servers: &[7, 8],
    ..FOREIGN_VIP
};
/// Note 004.
pub(crate) const SHOP: Layout = Layout {
    vip: "192.168.0.1",
    network: "192.168.1",
    servers_network: "192.168.1",
    servers: &[2, 3],
    ..FOREIGN_VIP
};

/// A cluster without its director's program.
#[derive(Debug)]
pub(crate) struct Cluster {
    servers: Vec<Process>,
    /// Of each real server, where packets come through tunnels.
    decapsulators: Vec<Decapsulator>,
    pub(crate) site: Site,
    pub(crate) layout: Layout,
}

impl Cluster {
    /// Everything up, each real server answering on its own address.
    pub(crate) fn new(layout: Layout) -> Self {
        Self::with_queues(layout, 1)
    }

    /// With this many queues on the director's interfaces.
    pub(crate) fn with_queues(layout: Layout, queues: u32) -> Self {
        let site = Site::of(layout.family());
        let mut cluster = Self { servers: Vec::new(), decapsulators: Vec::new(), site, layout };
        cluster.build(queues);
        for number in cluster.numbers() {
            cluster.set_up_server(number);
            let server = cluster.serve(number);
            cluster.servers.push(server);
        }
        for number in cluster.numbers() {
            cluster.wait_for_port(number, PLAIN_PORT);
        }
        cluster
    }

    /// Packets that a real server took out of tunnels of a kind.
    pub(crate) fn decapsulated(&self, number: u8, kind: TunnelKind) -> u64 {
        self.decapsulators[usize::from(number) - 1].delivered(kind)
    }

    /// Commands for the director's host as the notes have them, each of which must be taken without a word.
    #[track_caller]
    pub(crate) fn configure<S: AsRef<str>>(&self, commands: &[S]) {
        for command in commands {
            let command = command.as_ref().replace("iptables", "uvs mark");
            assert_eq!(self.site.with_names("director", &command).ok(), "", "{command}");
        }
    }

    /// The real servers' numbers, from 1.
    pub(crate) fn numbers(&self) -> std::ops::RangeInclusive<u8> {
        1..=self.layout.servers.len() as u8
    }

    /// A real server's address.
    pub(crate) fn server(&self, number: u8) -> String {
        self.layout.address(self.layout.servers_network, self.layout.servers[usize::from(number) - 1])
    }

    /// The director's own address.
    pub(crate) fn director(&self) -> String {
        self.layout.address(self.layout.network, self.layout.director)
    }

    /// The interfaces that the director has.
    pub(crate) fn interfaces(&self) -> &'static [&'static str] {
        if self.has_two_arms() { &["eth0", "eth1"] } else { &["eth0"] }
    }

    fn has_two_arms(&self) -> bool {
        self.layout.network != self.layout.servers_network
    }

    fn build(&mut self, queues: u32) {
        let site = &mut self.site;
        let names = (1..=self.layout.servers.len()).map(|number| format!("rs{number}"));
        let names: Vec<String> = names.collect();
        let hosts = ["client", "router", "director", "switch"];
        hosts.into_iter().chain(names.iter().map(String::as_str)).for_each(|name| site.add(name));
        let two_arms = self.layout.network != self.layout.servers_network;
        let site = &self.site;
        site.run("switch", "ip link add front type bridge && ip link add back type bridge").ok();
        let back = if two_arms { "back" } else { "front" };
        site.join(("client", "eth0"), ("router", "eth0"), 1);
        let mut plugs = vec![("director", "eth0", "front"), ("router", "eth1", "front")];
        plugs.extend(names.iter().map(|name| (name.as_str(), "eth0", back)));
        if two_arms {
            plugs.extend([("router", "eth2", back), ("director", "eth1", back)]);
        }
        for (number, (namespace, interface, bridge)) in plugs.into_iter().enumerate() {
            let port = format!("port{number}");
            site.join(
                (namespace, interface),
                ("switch", &port),
                if namespace == "director" { queues } else { 1 },
            );
            site.run("switch", &format!("ip link set {port} master {bridge}")).ok();
        }
        site.run("switch", "ip link set front up; ip link set back up").ok();
        self.address();
        if self.layout.family() == Family::V4 {
            self.translate();
        }
    }

    /// Addresses and routes of everybody but the real servers.
    fn address(&self) {
        let (site, layout) = (&self.site, &self.layout);
        let Layout { network, servers_network, vip, vip_length, .. } = *layout;
        let ((client, outside), (family, length, host)) = (layout.outside(), layout.lengths());
        let inside = layout.address(network, layout.router);
        site.run("client", &format!("ip addr add {client}/{length} dev eth0")).ok();
        site.run("client", &format!("ip {family} route add default via {outside}")).ok();
        if layout.family() == Family::V4 {
            for last in MORE_CLIENTS {
                site.run("client", &format!("ip addr add 192.168.20.{last}/24 dev eth0")).ok();
            }
        }
        site.run("router", "sysctl -qw net.ipv4.ip_forward=1").ok();
        site.run("router", &format!("ip addr add {outside}/{length} dev eth0")).ok();
        site.run("router", &format!("ip addr add {inside}/{length} dev eth1")).ok();
        site.run("director", &format!("ip addr add {}/{length} dev eth0", self.director())).ok();
        site.run("director", &format!("ip {family} route add default via {inside}")).ok();
        site.run("director", &format!("ip addr add {vip}/{vip_length} dev eth0")).ok();
        if self.has_two_arms() {
            let router = layout.address(servers_network, layout.router);
            site.run("router", &format!("ip addr add {router}/{length} dev eth2")).ok();
            let director = layout.address(servers_network, layout.director);
            site.run("director", &format!("ip addr add {director}/{length} dev eth1")).ok();
        }
        if vip_length == host {
            site.run("router", &format!("ip route add {vip}/{host} dev eth1")).ok();
        }
        if layout.family() == Family::V6 {
            site.run("router", "sysctl -qw net.ipv6.conf.all.forwarding=1").ok();
        }
        match layout.forwarding {
            // The director's host is the real servers' gateway, and routes what they send on their own. That they could
            // send to the router at once, they need not know: answers have to come back.
            ForwardingMethod::Masquerading => {
                let redirects =
                    ["all", "default", "eth0"].map(|scope| format!("net.ipv4.conf.{scope}.send_redirects=0"));
                site.run("director", &format!("sysctl -qw net.ipv4.ip_forward=1 {}", redirects.join(" ")))
                    .ok();
                if layout.family() == Family::V6 {
                    site.run("director", "sysctl -qw net.ipv6.conf.all.forwarding=1").ok();
                }
            }
            // No network card cuts what is in a tunnel: frames have to come in as they are to go out.
            ForwardingMethod::Tunnel => {
                site.run("switch", &format!("ethtool -K {DIRECTOR_PLUG} tso off gso off")).ok();
            }
            _ => {}
        }
    }

    /// The router's rules of note 001, as they stand there.
    fn translate(&self) {
        let Layout { network, vip, .. } = self.layout;
        for line in [
            &format!("iptables -t nat -A PREROUTING -d {ROUTER} -p tcp --dport 80 -j DNAT --to {vip}:80"),
            &format!("iptables -t nat -A PREROUTING -d {ROUTER} -p tcp --dport 443 -j DNAT --to {vip}:443"),
            &format!("iptables -t nat -A POSTROUTING -s {network}.0/24 -o eth0 -j SNAT --to {ROUTER}"),
        ] {
            self.site.run("router", line).ok();
        }
        self.site.name_hosts("client", &format!("{ROUTER} {SITE_NAME}"));
    }

    /// A real server of the notes: the virtual address on `lo`, which nobody hears of by ARP, and the router as its
    /// gateway; with NAT, the director as its gateway. Over IPv6 nobody hears of addresses on `lo`.
    fn set_up_server(&mut self, number: u8) {
        let namespace = format!("rs{number}");
        let (family, length, host) = self.layout.lengths();
        let Layout { servers_network, router, director, vip, forwarding, .. } = self.layout;
        let behind_nat = forwarding == ForwardingMethod::Masquerading;
        let gateway = self.layout.address(servers_network, if behind_nat { director } else { router });
        let address = self.server(number);
        let line =
            format!("ip addr add {address}/{length} dev eth0 && ip {family} route add default via {gateway}");
        self.site.run(&namespace, &line).ok();
        if !behind_nat {
            let line = format!(
                "for i in all lo default eth0; do
                     sysctl -qw net.ipv4.conf.$i.arp_ignore=1 net.ipv4.conf.$i.arp_announce=2
                 done && ip addr add {vip}/{host} dev lo"
            );
            self.site.run(&namespace, &line).ok();
        }
        if forwarding == ForwardingMethod::Tunnel {
            self.end_tunnels(&namespace);
        }
    }

    /// Lets a real server take packets out of tunnels. Where the kernel has tunnels of its own, their devices are on,
    /// lest it tell the director that nobody takes them; what then arrives twice is two packets like any.
    fn end_tunnels(&mut self, namespace: &str) {
        let end = self.site.inside(namespace, || Decapsulator::start(TUNNEL, GUE_PORT));
        self.decapsulators.push(end.expect("TUN devices and raw sockets"));
        let line = format!(
            "sysctl -qw net.ipv4.conf.{TUNNEL}.rp_filter=0; ip link set {TUNNEL} up
             for i in tunl0 sit0 gre0 ip6tnl0 ip6gre0; do ip link set $i up 2>/dev/null; done; true"
        );
        self.site.run(namespace, &line).ok();
    }

    /// Runs `test` over raw sockets and over AF_XDP, each with a director of its own on all interfaces. Commands on its
    /// host know the virtual address as `virtualdomain`.
    pub(crate) fn with_directors(&self, test: impl Fn(&Director<'_>)) {
        self.site.name_hosts("director", &format!("{} virtualdomain", self.layout.vip));
        for port_type in [PortType::Packet, PortType::XdpNative] {
            let director = Director::start(&self.site, "director", self.interfaces(), port_type, &[]);
            test(&director);
            director.check();
            director.stop();
        }
    }

    /// Rules for the plain port, round robin over both servers, as `ipvsadm-restore` takes them.
    pub(crate) fn plain_rules(&self) -> String {
        let vip = self.layout.vip;
        let service = format!("-t {vip}:{PLAIN_PORT}");
        format!(
            "-A {service} -s rr\n-a {service} -r {}:{PLAIN_PORT} -g -w 1\n-a {service} -r {}:{PLAIN_PORT} -g -w 1\n",
            self.server(1),
            self.server(2)
        )
    }

    /// Runs the rules of [`plain_rules`](Self::plain_rules) in the running director.
    pub(crate) fn add_plain_service(&self) {
        let file = self.site.write("plain.rules", &self.plain_rules());
        self.site.run("director", &format!("ipvsadm-restore < {}", file.display())).ok();
    }
}

/// Runs `test` over raw sockets and over AF_XDP, each with a director of its own.
pub(crate) fn with_directors(layout: Layout, test: impl Fn(&Cluster, &Director<'_>)) {
    if is_root() {
        let cluster = Cluster::new(layout);
        cluster.with_directors(|director| test(&cluster, director));
    }
}
