//! Datagrams larger than the MTU, through a live director: what arrives is what was sent.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, ipproto, sockopt};
use uvs::sys::frames::FramePool;
use uvs::sys::interface::InterfaceControl;
use uvs::sys::packet::{PacketFilter, PacketSocket, VirtioHeader};
use uvs::wire::build::{Build, Transport};
use uvs::wire::checksum::Sum;

use crate::support::director::{Director, PortType};
use crate::support::{Site, StopWhenDropped, is_root, wait_for};

const CLIENT: &str = "192.168.50.17";
const VIP: &str = "192.168.50.100";
const VIP6: &str = "fd50::100";
/// The service's port, and one that only the director's own host listens on.
const SERVICE: u16 = 5300;
const HOST: u16 = 5400;
/// Bytes in a datagram: one more than fits, some fragments, nearly as many as there can be.
const SIZES: [usize; 3] = [1473, 4000, 60_000];
/// How long one answer may take; then it is asked for again, for a busy machine may lose one.
const BRIEFLY: Duration = Duration::from_secs(1);

/// All on one network. The real servers have the virtual addresses on `lo`, where nobody hears of them.
fn site() -> Site {
    let mut site = Site::new();
    for name in ["client", "director", "rs1", "rs2", "switch"] {
        site.add(name);
    }
    site.run("switch", "ip link add front type bridge && ip link set front up").ok();
    for (number, name) in [(17, "client"), (31, "director"), (22, "rs1"), (23, "rs2")] {
        site.join((name, "eth0"), ("switch", name), 1);
        site.run("switch", &format!("ip link set {name} master front")).ok();
        site.run(
            name,
            &format!(
                "sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.eth0.rp_filter=0 \
                     net.ipv6.conf.all.disable_ipv6=0
                 ip addr add 192.168.50.{number}/24 dev eth0 && ip addr add fd50::{number}/64 dev eth0 nodad"
            ),
        )
        .ok();
    }
    site.run("director", &format!("ip addr add {VIP}/32 dev eth0 && ip addr add {VIP6}/128 dev eth0 nodad"))
        .ok();
    for name in ["rs1", "rs2"] {
        site.run(
            name,
            &format!(
                "sysctl -qw net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2
                 ip addr add {VIP}/32 dev lo && ip addr add {VIP6}/128 dev lo nodad"
            ),
        )
        .ok();
    }
    site
}

/// This many bytes, other ones each time, beginning with a number of their own.
fn bytes(count: usize) -> Vec<u8> {
    static NUMBER: AtomicU32 = AtomicU32::new(1);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let rest = (4..count).map(|index| (index * 31 + index / 251 + number as usize) as u8);
    number.to_be_bytes().into_iter().chain(rest).collect()
}

/// Sends back what it gets, its number in front.
fn echo(socket: &UdpSocket, number: u8, stop: &AtomicBool) {
    let mut buffer = vec![0; 65_536];
    buffer[0] = number;
    while !stop.load(Ordering::Relaxed) {
        match socket.recv_from(&mut buffer[1..]) {
            Ok((length, from)) => drop(socket.send_to(&buffer[..=length], from)),
            Err(error) => {
                let kinds = [io::ErrorKind::WouldBlock, io::ErrorKind::TimedOut];
                assert!(kinds.contains(&error.kind()), "{error}");
            }
        }
    }
}

fn bind(site: &Site, namespace: &str, address: IpAddr, port: u16) -> UdpSocket {
    let socket = site.inside(namespace, || UdpSocket::bind((address, port)).unwrap());
    socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    socket
}

/// Who answered, with what came, whole.
fn answer(socket: &UdpSocket, sent: &[u8]) -> Option<u8> {
    let mut buffer = vec![0; 65_536];
    while let Ok(length) = socket.recv(&mut buffer) {
        // An earlier one's may have come late.
        if buffer[1..5] == sent[..4] {
            assert!(buffer[1..length] == *sent, "an answer with other contents");
            return Some(buffer[0]);
        }
    }
    None
}

/// Asks until there is an answer.
fn ask(socket: &UdpSocket, to: SocketAddr, size: usize) -> u8 {
    let mut who = None;
    wait_for("an echo of the whole datagram", || {
        let sent = bytes(size);
        socket.send_to(&sent, to).unwrap();
        who = answer(socket, &sent);
        who.is_some()
    });
    who.unwrap()
}

fn client(site: &Site, vip: IpAddr) -> UdpSocket {
    let address: IpAddr = if vip.is_ipv4() { CLIENT.parse().unwrap() } else { "fd50::17".parse().unwrap() };
    let socket = bind(site, "client", address, 0);
    socket.set_read_timeout(Some(BRIEFLY)).unwrap();
    socket
}

/// Puts frames on the client's wire.
fn inject(site: &Site, frames: &[Vec<u8>]) {
    site.inside("client", || {
        let index = InterfaceControl::new().unwrap().index("eth0").unwrap();
        let socket = PacketSocket::open(index, 1 << 22, false).unwrap();
        socket.listen(None, &PacketFilter::Everything).unwrap();
        let mut pool = FramePool::new(1, 4096).unwrap();
        for bytes in frames {
            let queue = [(pool.allocate_copy(bytes).unwrap(), VirtioHeader::default())];
            assert_eq!(socket.send(&pool, &queue).unwrap(), 1);
            let [(frame, _)] = queue;
            pool.free(frame);
        }
    });
}

/// The link address of a namespace's interface.
fn mac(site: &Site, namespace: &str) -> [u8; 6] {
    let text = site.run(namespace, "ip -o link show eth0").ok();
    let mut words = text.split_whitespace().skip_while(|word| *word != "link/ether");
    let bytes = words.nth(1).unwrap().split(':').map(|part| u8::from_str_radix(part, 16).unwrap());
    bytes.collect::<Vec<u8>>().try_into().unwrap()
}

/// Sends a datagram's fragments, the last one first, until there is an answer.
fn ask_reversed(site: &Site) -> u8 {
    let vip = VIP.parse::<Ipv4Addr>().unwrap();
    let socket = client(site, vip.into());
    let (mut who, mut identification) = (None, 100);
    wait_for("an echo of what was sent backwards", || {
        let sent = bytes(4000);
        identification += 1;
        let mut fragments = Build::ipv4(CLIENT.parse::<Ipv4Addr>().unwrap().octets(), vip.octets())
            .source_mac(mac(site, "client"))
            .destination_mac(mac(site, "director"))
            .identification(identification)
            .transport(Transport::udp(socket.local_addr().unwrap().port(), SERVICE))
            .payload(&sent)
            .fragments(1480);
        fragments.reverse();
        inject(site, &fragments);
        who = answer(&socket, &sent);
        who.is_some()
    });
    who.unwrap()
}

/// A large echo request to the virtual address, which the director's host answers.
fn ping(site: &Site) {
    let socket = site.inside("client", || {
        rustix::net::socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::ICMP)).unwrap()
    });
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(BRIEFLY)).unwrap();
    let payload = bytes(4000);
    let mut message = vec![8, 0, 0, 0, 0x12, 0x34, 0, 1];
    message.extend(&payload);
    let checksum = Sum::ZERO.bytes(&message).checksum();
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
    let to = SocketAddr::new(VIP.parse().unwrap(), 0);
    wait_for("an answer to a large ping", || {
        rustix::net::sendto(&socket, &message, SendFlags::empty(), &to).unwrap();
        let mut buffer = vec![0; 8192];
        while let Ok((length, _)) = rustix::net::recv(&socket, &mut buffer[..], RecvFlags::empty()) {
            let packet = &buffer[..length];
            if packet[20] == 0 && packet[24..28] == message[4..8] {
                assert_eq!(packet[28..], payload);
                return true;
            }
        }
        false
    });
}

#[test]
fn datagrams_over_the_mtu_arrive_whole() {
    if !is_root() {
        return;
    }
    let site = site();
    let vips: [IpAddr; 2] = [VIP.parse().unwrap(), VIP6.parse().unwrap()];
    let mut sockets = Vec::new();
    for vip in vips {
        sockets.push((bind(&site, "rs1", vip, SERVICE), 1));
        sockets.push((bind(&site, "rs2", vip, SERVICE), 2));
        sockets.push((bind(&site, "director", vip, HOST), 9));
    }
    let of = |vip: &str, servers: [&str; 2]| {
        let server = |server: &str| format!("-a -u {vip}:{SERVICE} -r {server}:{SERVICE} -g\n");
        format!("-A -u {vip}:{SERVICE} -s rr\n{}{}", server(servers[0]), server(servers[1]))
    };
    let rules =
        of(VIP, ["192.168.50.22", "192.168.50.23"]) + &of(&format!("[{VIP6}]"), ["[fd50::22]", "[fd50::23]"]);
    let rules = site.write("rules", &rules);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _end = StopWhenDropped(&stop);
        for (socket, number) in &sockets {
            scope.spawn(|| echo(socket, *number, &stop));
        }
        for port_type in PortType::ALL {
            let more = ["--rules", rules.to_str().unwrap()];
            let director = Director::start(&site, "director", &["eth0"], port_type, &more);
            for vip in vips {
                let mut servers = Vec::new();
                for size in SIZES {
                    let (one, other) = (client(&site, vip), client(&site, vip));
                    for socket in [&one, &other] {
                        let number = ask(socket, SocketAddr::new(vip, SERVICE), size);
                        assert!([1, 2].contains(&number), "a real server answers");
                        servers.push(number);
                    }
                    assert_eq!(ask(&one, SocketAddr::new(vip, HOST), size), 9, "the host answers");
                }
                assert!(servers.contains(&1) && servers.contains(&2), "{servers:?}");
            }
            let released = || director.stats()["frames"]["released"].as_u64().unwrap();
            let before = released();
            assert!([1, 2].contains(&ask_reversed(&site)));
            assert!(released() >= before + 2, "the last two waited for the first");
            ping(&site);
            for reason in ["fragment-overlap", "fragment-duplicate", "fragment-queue-full"] {
                assert_eq!(director.dropped(reason), 0, "{reason}");
            }
            director.check();
            director.stop();
        }
    });
}
