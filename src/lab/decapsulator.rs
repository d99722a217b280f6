//! The far end of tunnels: takes packets out of IP in IP, GUE and GRE, over IPv4 and IPv6, and hands them to its host.
//!
//! A real server does that with the kernel's own devices (`ipip`, `ip6tnl`, `gre`, `fou`), which not every kernel
//! has. This needs raw sockets and a TUN device only. What arrives on raw and UDP sockets went through the kernel:
//! outer headers and their checksums are checked, and fragments put together, by it and not by the code that wrote
//! them.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, Protocol, RecvFlags, SocketFlags, SocketType, ipproto, sockopt};

use crate::sys::packet::VirtioHeader;
use crate::sys::tun::TunDevice;
use crate::types::{Family, TunnelKind};
use crate::wire::checksum::Sum;
use crate::wire::{ethernet, gre, gue, protocol};

/// Longest packet in bytes that IP knows.
const LONGEST: usize = 65_535 + 40;
/// Packets taken from a socket before the next one has its turn.
const BURST: usize = 64;
/// Bytes that a socket may hold: a fast upload comes in bursts.
const SOCKET_BUFFER: usize = 4 << 20;
/// How often the thread looks whether it should end.
const POLL: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
/// What a tunnel can carry.
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// A running decapsulator. Dropping it ends its thread and removes its device.
#[derive(Debug)]
pub struct Decapsulator {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    /// Packets handed to the host, by kind of tunnel.
    delivered: [AtomicU64; 3],
    refused: AtomicU64,
}

/// A socket, and what arrives on it.
#[derive(Debug)]
struct Source {
    socket: OwnedFd,
    form: Form,
}

/// What a socket's packets begin with, after what the kernel has taken off.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Form {
    /// The packet, of this family.
    Packet(Family),
    /// A GRE header.
    Gre,
    /// A GUE header.
    Gue,
    /// An IPv4 header, which raw sockets of that family show, and then this.
    BehindIpv4(&'static Self),
}

impl Form {
    fn kind(self) -> TunnelKind {
        match self {
            Self::Packet(_) => TunnelKind::Ipip,
            Self::Gre => TunnelKind::Gre,
            Self::Gue => TunnelKind::Gue,
            Self::BehindIpv4(form) => form.kind(),
        }
    }

    /// The packet within; nothing where there is none of the family that it should be of.
    fn unwrap(self, bytes: &[u8]) -> Option<&[u8]> {
        let (family, packet) = match self {
            Self::Packet(family) => (family, bytes),
            Self::BehindIpv4(form) => {
                let length = usize::from(bytes.first()? & 0x0f) * 4;
                return form.unwrap(bytes.get(length..)?);
            }
            Self::Gue => {
                let (inner, length) = gue::parse(bytes)?;
                let family = FAMILIES.into_iter().find(|family| protocol_of(*family) == inner)?;
                (family, &bytes[length..])
            }
            Self::Gre => {
                let (ether_type, length) = gre::parse(bytes)?;
                let family =
                    FAMILIES.into_iter().find(|family| ethernet::ether_type(*family) == ether_type)?;
                // Only a checksum makes the header longer.
                if length > gre::HEADER_LENGTH && !Sum::ZERO.bytes(bytes).is_right() {
                    return None;
                }
                (family, &bytes[length..])
            }
        };
        let version = match family {
            Family::V4 => 4,
            Family::V6 => 6,
        };
        (packet.first()? >> 4 == version).then_some(packet)
    }
}

/// The protocol number of a packet in a packet.
const fn protocol_of(inner: Family) -> u8 {
    match inner {
        Family::V4 => protocol::IPV4,
        Family::V6 => protocol::IPV6,
    }
}

impl Decapsulator {
    /// Opens sockets for all tunnels, GUE at UDP port `gue_port`, in the calling thread's network namespace, and a
    /// TUN device `device` there, which still has to be switched on. Works until it is dropped.
    ///
    /// GUE over IPv6 needs its checksum: the kernel's sockets take no datagram without one there.
    ///
    /// # Errors
    /// Not root, the port or the name is taken, or the kernel has no TUN devices.
    pub fn start(device: &str, gue_port: u16) -> io::Result<Self> {
        let device = TunDevice::create(device)?;
        let sources = sources(gue_port)?;
        let shared = Arc::new(Shared::default());
        let thread = std::thread::Builder::new().name("decapsulator".to_owned()).spawn({
            let shared = Arc::clone(&shared);
            move || forward(&sources, &device, &shared)
        })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Packets handed to the host so far that came by this kind of tunnel.
    pub fn delivered(&self, kind: TunnelKind) -> u64 {
        self.shared.delivered[kind as usize].load(Ordering::Relaxed)
    }

    /// Packets that were not what they should be, or that the host did not take.
    pub fn refused(&self) -> u64 {
        self.shared.refused.load(Ordering::Relaxed)
    }
}

impl Drop for Decapsulator {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic in the thread was reported where it happened.
            let _ = thread.join();
        }
    }
}

/// Sockets for every tunnel over both families; over IPv4 alone where the kernel has no IPv6.
fn sources(gue_port: u16) -> io::Result<Vec<Source>> {
    const FOUR: Form = Form::Packet(Family::V4);
    const SIX: Form = Form::Packet(Family::V6);
    let over_ipv4 = [
        raw(AddressFamily::INET, ipproto::IPIP, Form::BehindIpv4(&FOUR))?,
        raw(AddressFamily::INET, ipproto::IPV6, Form::BehindIpv4(&SIX))?,
        raw(AddressFamily::INET, ipproto::GRE, Form::BehindIpv4(&Form::Gre))?,
        udp(Ipv4Addr::UNSPECIFIED.into(), gue_port)?,
    ];
    let mut sources = Vec::from(over_ipv4);
    match raw(AddressFamily::INET6, ipproto::IPIP, FOUR) {
        Err(error) if error.raw_os_error() == Some(Errno::AFNOSUPPORT.raw_os_error()) => return Ok(sources),
        first => sources.push(first?),
    }
    sources.extend([
        raw(AddressFamily::INET6, ipproto::IPV6, SIX)?,
        raw(AddressFamily::INET6, ipproto::GRE, Form::Gre)?,
        udp(Ipv6Addr::UNSPECIFIED.into(), gue_port)?,
    ]);
    Ok(sources)
}

fn raw(family: AddressFamily, protocol: Protocol, form: Form) -> io::Result<Source> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(family, SocketType::RAW, flags, Some(protocol))?;
    sockopt::set_socket_recv_buffer_size_force(&socket, SOCKET_BUFFER)?;
    Ok(Source { socket, form })
}

fn udp(any: IpAddr, port: u16) -> io::Result<Source> {
    let family = if any.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(family, SocketType::DGRAM, flags, None)?;
    if any.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    sockopt::set_socket_recv_buffer_size_force(&socket, SOCKET_BUFFER)?;
    rustix::net::bind(&socket, &SocketAddr::new(any, port))?;
    Ok(Source { socket, form: Form::Gue })
}

/// Hands on what arrives, until told to stop.
fn forward(sources: &[Source], device: &TunDevice, shared: &Shared) {
    let mut buffer = vec![0; LONGEST];
    while !shared.stop.load(Ordering::Relaxed) {
        let mut fds: Vec<PollFd<'_>> =
            sources.iter().map(|source| PollFd::new(&source.socket, PollFlags::IN)).collect();
        // Interrupted or timed out: nothing is there then, and the next round looks again.
        let _ = poll(&mut fds, Some(&POLL));
        for source in sources {
            for _ in 0..BURST {
                // Nothing there, or an error that a socket tells once, of something sent to it.
                let Ok((length, _)) = rustix::net::recv(&source.socket, &mut buffer[..], RecvFlags::empty())
                else {
                    break;
                };
                let packet = source.form.unwrap(&buffer[..length]);
                match packet.map(|packet| device.send(VirtioHeader::default(), packet)) {
                    Some(Ok(())) => &shared.delivered[source.form.kind() as usize],
                    Some(Err(_)) | None => &shared.refused,
                }
                .fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::Namespace;
    use crate::types::Prefix;
    use crate::wire::build::{Build, Transport};
    use proptest::prelude::*;

    const FOUR: &[u8] = &[0x45, 1, 2, 3];
    const SIX: &[u8] = &[0x60, 1, 2, 3];

    /// A GRE packet around `packet`.
    fn in_gre(ether_type: u16, packet: &[u8], checksum: bool) -> Vec<u8> {
        let mut bytes = [&vec![0; gre::length(checksum)], packet].concat();
        assert!(gre::write(&mut bytes, ether_type, checksum));
        bytes
    }

    #[test]
    fn packets_are_taken_out_of_what_carries_them() {
        let gue = |protocol, packet: &[u8]| [&gue::header(protocol), packet].concat();
        let behind = |bytes: &[u8]| [&[0x46][..], &[0; 23], bytes].concat();
        for (packet, family, protocol, ether_type) in
            [(FOUR, Family::V4, 4, 0x0800), (SIX, Family::V6, 41, 0x86dd)]
        {
            assert_eq!(Form::Packet(family).unwrap(packet), Some(packet));
            assert_eq!(Form::Gue.unwrap(&gue(protocol, packet)), Some(packet));
            for checksum in [false, true] {
                let mut bytes = in_gre(ether_type, packet, checksum);
                assert_eq!(Form::Gre.unwrap(&bytes), Some(packet));
                assert_eq!(Form::BehindIpv4(&Form::Gre).unwrap(&behind(&bytes)), Some(packet));
                *bytes.last_mut().unwrap() ^= 1;
                assert_eq!(Form::Gre.unwrap(&bytes).is_none(), checksum, "spoilt on the way");
            }
        }
        for (what, form, bytes) in [
            ("nothing", Form::Packet(Family::V4), vec![]),
            ("the other family", Form::Packet(Family::V4), SIX.to_vec()),
            ("GUE names the other family", Form::Gue, gue(41, FOUR)),
            ("GUE with something else", Form::Gue, gue(17, FOUR)),
            ("GRE names the other family", Form::Gre, in_gre(0x0800, SIX, false)),
            ("GRE with something else", Form::Gre, in_gre(0x6558, FOUR, false)),
            ("a header and no more", Form::BehindIpv4(&Form::Packet(Family::V4)), behind(&[])),
        ] {
            assert_eq!(form.unwrap(&bytes), None, "{what}");
        }
    }

    /// A UDP packet for port 9 of the virtual address, which the host has on `lo`.
    fn datagram(family: Family) -> Vec<u8> {
        let packet = match family {
            Family::V4 => Build::ipv4([10, 9, 9, 9], [10, 88, 0, 1]),
            Family::V6 => {
                let [from, to] = ["fd00:9::9", "fd00:88::1"].map(|text| text.parse::<Ipv6Addr>().unwrap());
                Build::ipv6(from.octets(), to.octets())
            }
        };
        packet.transport(Transport::udp(1000, 9)).payload(b"through a tunnel").packet()
    }

    /// Sends bytes to the host itself, as IP packets of a protocol, or to a UDP port.
    fn send(outer: Family, protocol: Protocol, gue: bool, bytes: &[u8]) {
        let (to, family) = match outer {
            Family::V4 => (IpAddr::from(Ipv4Addr::LOCALHOST), AddressFamily::INET),
            Family::V6 => (IpAddr::from(Ipv6Addr::LOCALHOST), AddressFamily::INET6),
        };
        let (kind, port) = if gue { (SocketType::DGRAM, PORT) } else { (SocketType::RAW, 0) };
        let protocol = (!gue).then_some(protocol);
        let socket = rustix::net::socket(family, kind, protocol).unwrap();
        let to = SocketAddr::new(to, port);
        rustix::net::sendto(&socket, bytes, rustix::net::SendFlags::empty(), &to).unwrap();
    }

    const PORT: u16 = 6080;

    /// Every kind of tunnel over either family with a packet of either family, all of which reach a socket.
    #[test]
    fn what_comes_through_a_tunnel_reaches_the_host() {
        if !rustix::process::geteuid().is_root() {
            assert!(std::env::var_os("UVS_REQUIRE_ROOT").is_none_or(|value| value != "1"), "needs root");
            eprintln!("SKIPPED: needs root, to make network namespaces");
            return;
        }
        let namespace = Namespace::create(&format!("uvs-decap-{}", std::process::id())).unwrap();
        for scope in ["all", "default"] {
            namespace.set_sysctl(&format!("ipv4/conf/{scope}/rp_filter"), "0").unwrap();
        }
        namespace.set_up("lo", true).unwrap();
        let addresses: [IpAddr; 2] = ["10.88.0.1".parse().unwrap(), "fd00:88::1".parse().unwrap()];
        for address in addresses {
            namespace.add_address("lo", Prefix::host(address)).unwrap();
        }
        let decapsulator = namespace.run(|| Decapsulator::start("tunnel0", PORT)).unwrap().unwrap();
        namespace.set_up("tunnel0", true).unwrap();
        namespace
            .run(|| {
                let sockets = addresses.map(|address| std::net::UdpSocket::bind((address, 9)).unwrap());
                for outer in FAMILIES {
                    for (inner, socket) in FAMILIES.into_iter().zip(&sockets) {
                        socket.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
                        let packet = datagram(inner);
                        let ipip = if inner == Family::V4 { ipproto::IPIP } else { ipproto::IPV6 };
                        let ether_type = ethernet::ether_type(inner);
                        let gue = [&gue::header(protocol_of(inner)), &packet[..]].concat();
                        for (protocol, is_gue, bytes) in [
                            (ipip, false, packet.clone()),
                            (ipproto::GRE, false, in_gre(ether_type, &packet, false)),
                            (ipproto::GRE, false, in_gre(ether_type, &packet, true)),
                            (ipproto::UDP, true, gue),
                        ] {
                            send(outer, protocol, is_gue, &bytes);
                            let mut got = [0; 64];
                            let (length, _) = socket.recv_from(&mut got).unwrap();
                            assert_eq!(&got[..length], b"through a tunnel", "{outer:?} {protocol:?}");
                        }
                    }
                }
                send(Family::V4, ipproto::GRE, false, &in_gre(0x6558, b"no IP", false));
            })
            .unwrap();
        let delivered =
            [TunnelKind::Ipip, TunnelKind::Gue, TunnelKind::Gre].map(|kind| decapsulator.delivered(kind));
        assert_eq!(delivered, [4, 4, 8]);
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while decapsulator.refused() == 0 {
            assert!(std::time::Instant::now() < deadline, "what is no IP packet is not counted");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            for form in [Form::Packet(Family::V6), Form::Gre, Form::Gue] {
                let _ = form.unwrap(&bytes);
            }
            let _ = Form::BehindIpv4(&Form::Gre).unwrap(&bytes);
        }
    }
}
