//! The clusters of the field notes: a client, a router, the director, real servers that run nginx and, where a test
//! wants them, sshd and vsftpd.

use std::net::SocketAddr;

use super::{Process, Site, wait_for};

/// The client's own address.
pub(crate) const CLIENT: &str = "192.168.20.17";
/// More addresses of the client, the last octets.
pub(crate) const MORE_CLIENTS: std::ops::RangeInclusive<u8> = 101..=108;
/// The router, on the client's side.
pub(crate) const ROUTER: &str = "192.168.20.50";
/// What the site is called, in the notes.
const SITE_NAME: &str = "www.xuzhichao.com";
/// Where the real servers answer in plain, for load.
pub(crate) const PLAIN_PORT: u16 = 8080;

/// How director and real servers are placed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Layout {
    /// The virtual address.
    pub(crate) vip: &'static str,
    /// Its prefix length on the director's interface.
    vip_length: u8,
    /// The network on the director's `eth0`, first three octets.
    network: &'static str,
    /// The network of the real servers, the same or on the director's `eth1`.
    servers_network: &'static str,
    /// The director's last octet.
    director: u8,
    /// The router's last octet.
    router: u8,
    /// The real servers' last octets: `rs1`, `rs2` and so on.
    servers: &'static [u8],
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
};
/// Clients' side and servers' side apart.
pub(crate) const TWO_ARMS: Layout = Layout { servers_network: "192.168.60", ..ONE_ARM };
/// Note 002: the virtual address in no network of the director's.
pub(crate) const FOREIGN_VIP: Layout = Layout {
    vip: "192.168.51.11",
    vip_length: 32,
    network: "192.168.118",
    servers_network: "192.168.118",
    director: 10,
    router: 1,
    servers: &[22, 23],
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
        let mut cluster = Self { servers: Vec::new(), site: Site::new(), layout };
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

    /// The real servers' numbers, from 1.
    pub(crate) fn numbers(&self) -> std::ops::RangeInclusive<u8> {
        1..=self.layout.servers.len() as u8
    }

    /// A real server's address.
    pub(crate) fn server(&self, number: u8) -> String {
        format!("{}.{}", self.layout.servers_network, self.layout.servers[usize::from(number) - 1])
    }

    /// The director's own address.
    pub(crate) fn director(&self) -> String {
        format!("{}.{}", self.layout.network, self.layout.director)
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
        let Layout { network, servers_network, director, router, vip, vip_length, .. } = self.layout;
        site.run("switch", "ip link add front type bridge && ip link add back type bridge").ok();
        let back = if two_arms { "back" } else { "front" };
        site.join(("client", "eth0"), ("router", "eth0"), 1);
        let mut plugs = vec![("router", "eth1", "front"), ("director", "eth0", "front")];
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
        site.run("client", &format!("ip addr add {CLIENT}/24 dev eth0; ip route add default via {ROUTER}"))
            .ok();
        for last in MORE_CLIENTS {
            site.run("client", &format!("ip addr add 192.168.20.{last}/24 dev eth0")).ok();
        }
        site.run(
            "router",
            &format!(
                "sysctl -qw net.ipv4.ip_forward=1; ip addr add {ROUTER}/24 dev eth0
                 ip addr add {network}.{router}/24 dev eth1"
            ),
        )
        .ok();
        site.run("director", &format!("ip addr add {network}.{director}/24 dev eth0")).ok();
        site.run("director", &format!("ip route add default via {network}.{router}")).ok();
        site.run("director", &format!("ip addr add {vip}/{vip_length} dev eth0")).ok();
        if two_arms {
            site.run("router", &format!("ip addr add {servers_network}.{router}/24 dev eth2")).ok();
            site.run("director", &format!("ip addr add {servers_network}.{director}/24 dev eth1")).ok();
        }
        if vip_length == 32 {
            site.run("router", &format!("ip route add {vip}/32 dev eth1")).ok();
        }
        self.translate();
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

    /// A real server of the notes: the virtual address on `lo`, which nobody hears of by ARP.
    fn set_up_server(&self, number: u8) {
        let (address, namespace) = (self.server(number), format!("rs{number}"));
        let Layout { servers_network, router, vip, .. } = self.layout;
        let line = format!(
            "ip addr add {address}/24 dev eth0 && ip route add default via {servers_network}.{router} &&
             for i in all lo default eth0; do
                 sysctl -qw net.ipv4.conf.$i.arp_ignore=1 net.ipv4.conf.$i.arp_announce=2
             done && ip addr add {vip}/32 dev lo"
        );
        self.site.run(&namespace, &line).ok();
    }

    /// nginx: http that redirects to https, https with a certificate of its own, and a plain port.
    fn serve(&self, number: u8) -> Process {
        let directory = self.site.path(&format!("nginx{number}"));
        std::fs::create_dir_all(&directory).unwrap();
        let namespace = format!("rs{number}");
        let place = directory.display();
        self.site
            .run(
                &namespace,
                &format!(
                    "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 \
                     -subj /CN={SITE_NAME} -keyout {place}/key.pem -out {place}/certificate.pem"
                ),
            )
            .ok();
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|what| format!("{what}_temp_path {place}/{what};"))
            .join("\n");
        let configuration = format!(
            "daemon off;
master_process off;
user root;
pid {place}/nginx.pid;
error_log {place}/error.log;
worker_rlimit_nofile 8192;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    keepalive_requests 1000000;
    {temporary}
    server {{
        listen 80 backlog=4096;
        add_header X-Node node{number} always;
        return 301 https://$host$request_uri;
    }}
    server {{
        listen 443 ssl;
        ssl_certificate {place}/certificate.pem;
        ssl_certificate_key {place}/key.pem;
        add_header X-Node node{number};
        location / {{ return 200 \"node{number}\\n\"; }}
    }}
    server {{
        listen {PLAIN_PORT} backlog=4096;
        location / {{ return 200 \"node{number}\\n\"; }}
    }}
}}
"
        );
        let file = directory.join("nginx.conf");
        std::fs::write(&file, configuration).unwrap();
        let log = directory.join("error.log");
        self.site.start(
            &namespace,
            "nginx",
            ["-e", log.to_str().unwrap(), "-p", directory.to_str().unwrap(), "-c", file.to_str().unwrap()],
        )
    }

    /// sshd on a real server, whose greeting names the server.
    pub(crate) fn serve_ssh(&self, number: u8) -> Process {
        let place = self.site.path(&format!("sshd{number}"));
        std::fs::create_dir_all(&place).unwrap();
        std::fs::create_dir_all("/run/sshd").unwrap();
        let key = place.join("key");
        let namespace = format!("rs{number}");
        self.site
            .run(&namespace, &format!("rm -f {0}; ssh-keygen -q -t ed25519 -N '' -f {0}", key.display()))
            .ok();
        let text = format!(
            "Port 22\nHostKey {}\nPidFile none\nVersionAddendum node{number}\nUsePAM no\nMaxStartups 100\n",
            key.display()
        );
        let file = self.site.write(&format!("sshd{number}/sshd_config"), &text);
        let server =
            self.site.start(&namespace, "/usr/sbin/sshd", ["-D", "-e", "-f", file.to_str().unwrap()]);
        self.wait_for_port(number, 22);
        server
    }

    /// vsftpd on a real server, for passive transfers by the virtual address, with a file `node` that names the server.
    pub(crate) fn serve_ftp(&self, number: u8) -> Process {
        let root = self.site.path(&format!("ftp{number}"));
        let empty = self.site.path(&format!("ftp{number}.empty"));
        std::fs::create_dir_all(&root).unwrap();
        std::fs::create_dir_all(&empty).unwrap();
        std::fs::write(root.join("node"), format!("node{number}\n")).unwrap();
        let text = format!(
            "listen=YES\nbackground=NO\nanonymous_enable=YES\nlocal_enable=NO\nno_anon_password=YES\n\
             anon_root={}\nsecure_chroot_dir={}\npasv_enable=YES\npasv_address={}\nseccomp_sandbox=NO\n\
             connect_from_port_20=YES\nxferlog_enable=NO\n",
            root.display(),
            empty.display(),
            self.layout.vip
        );
        let file = self.site.write(&format!("vsftpd{number}.conf"), &text);
        let namespace = format!("rs{number}");
        let server = self.site.start(&namespace, "/usr/sbin/vsftpd", [file.to_str().unwrap()]);
        self.wait_for_port(number, 21);
        server
    }

    fn wait_for_port(&self, number: u8, port: u16) {
        let address: SocketAddr = format!("{}:{port}", self.server(number)).parse().unwrap();
        self.site.inside(&format!("rs{number}"), || {
            wait_for("the server listens", || std::net::TcpStream::connect(address).is_ok());
        });
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
