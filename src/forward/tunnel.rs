//! Tunnelling: a packet for a real server is put, unchanged, into another one that is addressed to it.
//!
//! The steps for a packet, in the kernel's order: [`decrement_lifetime`](super::dr::decrement_lifetime),
//! [`encapsulate`], fragmenting where [`Outer::must_fragment`] says so, and [`readdress`](super::dr::readdress) with
//! what [`Outer`] says. The new headers go into the frame's headroom: the packet itself is not copied.
//!
//! What the outer headers say is the kernel's (`ip_vs_tunnel_xmit`): the time to live of the inner packet, its type of
//! service with the congestion mark "experienced" as "capable" (RFC 3168, section 9.1.1), its "don't fragment". IP
//! over IPv6, and IPv6 over either, are alike. A GUE source port is chosen by the flow, so that a real server's
//! network card can spread flows; the choice is our own.

use std::net::IpAddr;

use crate::sys::frames::{Frame, FramePool};
use crate::types::{Family, HashKey, Tunnel, TunnelChecksum, TunnelKind};
use crate::wire::transport::UDP_HEADER_LENGTH;
use crate::wire::{Addresses, Fragment, Offload, Parsed, ethernet, gre, gue, ipv4, ipv6, protocol, udp};

/// Smallest packet, in bytes, that a tunnel over IPv4 must be able to carry; below it is of no use.
const SMALLEST_OVER_IPV4: u32 = 68;
/// The same over IPv6.
const SMALLEST_OVER_IPV6: u32 = 1280;

/// First port of those that GUE sends from, and how many there are: Linux's `ip_local_port_range`.
const SOURCE_PORTS: (u16, u16) = (32_768, 28_232);
/// Any numbers do: who chooses flows that meet at one port spoils but their own.
const FLOWS: HashKey = HashKey::new([0x6a09_e667_f3bc_c908, 0xbb67_ae85_84ca_a73b]);

/// Explicit congestion notification: its bits in a type of service, "capable" and "experienced" (RFC 3168).
const ECN_MASK: u8 = 0x03;
const ECN_CAPABLE: u8 = 0x02;
const ECN_EXPERIENCED: u8 = 0x03;

/// A tunnel as one packet needs it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Encapsulation {
    /// Which headers.
    pub tunnel: Tunnel,
    /// The director's own address: the one that the route to the real server prefers.
    pub source: IpAddr,
    /// The real server's address, of the same family.
    pub destination: IpAddr,
    /// Largest packet, in bytes, that the way to the real server takes, outer headers included.
    pub mtu: u32,
    /// The setting `pmtu_disc`: whether clients that forbid fragmenting are told of packets that are too big. Otherwise
    /// the outer packet may be fragmented instead.
    pub pmtu_disc: bool,
}

/// Why a packet cannot be tunnelled.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
pub enum EncapsulateError {
    /// Too big for the tunnel, and not to be fragmented: its sender is to be told `mtu`.
    #[error("larger than the {mtu} bytes that the tunnel takes")]
    TooBig {
        /// Largest packet, in bytes, that fits.
        mtu: u32,
    },
    /// The way to the real server takes hardly more than the headers.
    #[error("the way takes too small packets for a tunnel")]
    MtuTooSmall,
    /// With its headers it would be longer than a packet can be.
    #[error("too long with its headers")]
    TooLong,
    /// Left whole by its sender for a network card to cut, which does not look into our tunnels. Segmentation
    /// offloading has to be switched off where such frames come from.
    #[error("a frame that is still to be cut into segments")]
    Unsegmented,
    /// The two addresses of the tunnel are of different families.
    #[error("the ends of the tunnel are of different families")]
    OtherFamily,
    /// The chunk has no room for the headers.
    #[error("no room for the headers")]
    NoRoom,
    /// The frame is shorter than what was read of it: it was not read from this frame.
    #[error("the frame is cut off")]
    Truncated,
}

/// What a packet has become.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outer {
    /// The outer packet's family.
    pub family: Family,
    /// Its length in bytes, link header not included; that is as long as before.
    pub ip_length: u32,
    /// Whether it is larger than the way takes.
    pub must_fragment: bool,
}

/// Bytes that a tunnel over packets of this family adds.
pub const fn overhead(tunnel: &Tunnel, outer: Family) -> usize {
    network_length(outer)
        + match tunnel.kind {
            TunnelKind::Ipip => 0,
            TunnelKind::Gue => UDP_HEADER_LENGTH + gue::HEADER_LENGTH,
            TunnelKind::Gre => gre::length(has_gre_checksum(tunnel)),
        }
}

const fn network_length(family: Family) -> usize {
    match family {
        Family::V4 => ipv4::HEADER_LENGTH,
        Family::V6 => ipv6::HEADER_LENGTH,
    }
}

/// GRE knows no remote checksum; the kernel sends none then.
const fn has_gre_checksum(tunnel: &Tunnel) -> bool {
    matches!(tunnel.checksum, TunnelChecksum::Checksum)
}

/// Puts a packet into another one, whose headers `with` describes. The link header moves in front of them, and names
/// the outer family. `packet` must be what was read of this frame, whose lifetime is already decremented; padding is
/// cut off. `identification` is what the outer packet gets if it may be fragmented.
///
/// A checksum that is left to a network card is completed first, and `offload` cleared: whoever takes the inner packet
/// out could not tell. So `--tun-remcsum`, which carries such a checksum on uncompleted, comes to the same as
/// `--tun-csum` here, as it does in the kernel for all packets but those.
///
/// # Errors
/// [`EncapsulateError`], with nothing changed.
pub fn encapsulate(
    frames: &FramePool,
    frame: &mut Frame,
    packet: &Parsed,
    offload: &mut Offload,
    with: &Encapsulation,
    identification: u16,
) -> Result<Outer, EncapsulateError> {
    let addresses = Addresses::new(with.source, with.destination).ok_or(EncapsulateError::OtherFamily)?;
    let family = addresses.family();
    let overhead = overhead(&with.tunnel, family);
    if offload.segmentation != 0 {
        return Err(EncapsulateError::Unsegmented);
    }
    fits(packet, with, overhead as u32)?;
    let ip_length = packet.ip_length + overhead as u32;
    let longest = u32::from(u16::MAX) + if family == Family::V6 { ipv6::HEADER_LENGTH as u32 } else { 0 };
    if ip_length > longest {
        return Err(EncapsulateError::TooLong);
    }
    if frame.len() < packet.end() {
        return Err(EncapsulateError::Truncated);
    }
    if frame.headroom() < overhead {
        return Err(EncapsulateError::NoRoom);
    }

    if offload.needs_checksum && !offload.complete(frames.bytes_mut(frame), packet) {
        return Err(EncapsulateError::Truncated);
    }
    let link = usize::from(packet.ip_offset);
    frame.truncate(packet.end());
    *offload = Offload::default();
    let carried = Carried::read(frames.bytes(frame), packet);
    if !frame.grow_front(overhead) {
        return Err(EncapsulateError::NoRoom);
    }
    let bytes = frames.bytes_mut(frame);
    bytes.copy_within(overhead..overhead + link, 0);
    if let Some(field) = bytes[..link].last_chunk_mut() {
        *field = ethernet::ether_type(family).to_be_bytes();
    }
    write_headers(&mut bytes[link..], &carried, with, &addresses, identification);
    Ok(Outer { family, ip_length, must_fragment: ip_length > with.mtu })
}

/// Whether the packet fits the tunnel, or may be cut to fit (`ensure_mtu_is_adequate`, `__ip_vs_get_out_rt`).
fn fits(packet: &Parsed, with: &Encapsulation, overhead: u32) -> Result<(), EncapsulateError> {
    let mtu = with.mtu.saturating_sub(overhead);
    let smallest = if with.destination.is_ipv4() { SMALLEST_OVER_IPV4 } else { SMALLEST_OVER_IPV6 };
    if mtu < smallest {
        return Err(EncapsulateError::MtuTooSmall);
    }
    let is_whole = match packet.family() {
        Family::V4 => packet.dont_fragment && with.pmtu_disc,
        Family::V6 => true,
    };
    if is_whole && packet.ip_length > mtu { Err(EncapsulateError::TooBig { mtu }) } else { Ok(()) }
}

/// What the outer headers take from the inner packet.
struct Carried {
    family: Family,
    tos: u8,
    ttl: u8,
    dont_fragment: bool,
    source_port: u16,
}

impl Carried {
    fn read(frame: &[u8], packet: &Parsed) -> Self {
        let header = &frame[packet.ip_offset.into()..];
        // As they are now, not as they were when the packet was read.
        let (tos, ttl, dont_fragment) = match packet.family() {
            Family::V4 => (header[ipv4::TOS], header[ipv4::TTL], packet.dont_fragment),
            // Routers never fragment IPv6; around it the kernel does not forbid it.
            Family::V6 => (header[0] << 4 | header[1] >> 4, header[ipv6::HOP_LIMIT], false),
        };
        Self { family: packet.family(), tos, ttl, dont_fragment, source_port: source_port(packet) }
    }
}

/// The port that GUE sends a flow's packets from. Fragments have no ports, or only the first has: all of a datagram's
/// go by its addresses.
fn source_port(packet: &Parsed) -> u16 {
    let ports = match packet.fragment {
        Fragment::Whole => u64::from(packet.source_port) << 16 | u64::from(packet.destination_port),
        Fragment::First { .. } | Fragment::Later { .. } => 0,
    };
    let last = ports << 8 | u64::from(packet.protocol);
    let hash = match packet.addresses {
        Addresses::V4 { source, destination } => {
            FLOWS.hash([u64::from(source) << 32 | u64::from(destination), last])
        }
        Addresses::V6 { source, destination } => {
            FLOWS.hash([source[0], source[1], destination[0], destination[1], last])
        }
    };
    let (first, count) = SOURCE_PORTS;
    first + (((hash >> 32) * u64::from(count)) >> 32) as u16
}

/// Writes all headers of the outer packet that `bytes` is to be, the inner packet already in its place.
fn write_headers(
    bytes: &mut [u8],
    inner: &Carried,
    with: &Encapsulation,
    addresses: &Addresses,
    identification: u16,
) {
    let ip_length = bytes.len();
    let (network, payload) = bytes.split_at_mut(network_length(addresses.family()));
    let inner_protocol = match inner.family {
        Family::V4 => protocol::IPV4,
        Family::V6 => protocol::IPV6,
    };
    // All of them have room, and lengths that their fields can say: `encapsulate` has seen to it.
    let (number, written) = match with.tunnel.kind {
        TunnelKind::Ipip => (inner_protocol, true),
        TunnelKind::Gue => {
            payload[UDP_HEADER_LENGTH..][..gue::HEADER_LENGTH].copy_from_slice(&gue::header(inner_protocol));
            let guarded = (with.tunnel.checksum != TunnelChecksum::None).then_some(addresses);
            (protocol::UDP, udp::write(payload, inner.source_port, with.tunnel.port, guarded))
        }
        TunnelKind::Gre => {
            let ether_type = ethernet::ether_type(inner.family);
            (protocol::GRE, gre::write(payload, ether_type, has_gre_checksum(&with.tunnel)))
        }
    };
    let tos =
        if inner.tos & ECN_MASK == ECN_EXPERIENCED { inner.tos & !ECN_MASK | ECN_CAPABLE } else { inner.tos };
    let dont_fragment = inner.dont_fragment && with.pmtu_disc;
    let written = written
        && match (with.source, with.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => ipv4::Header {
                tos,
                total_length: ip_length as u16,
                identification: if dont_fragment { 0 } else { identification },
                dont_fragment,
                ttl: inner.ttl,
                protocol: number,
                source,
                destination,
            }
            .write(network),
            (IpAddr::V6(source), IpAddr::V6(destination)) => ipv6::Header {
                traffic_class: tos,
                payload_length: payload.len() as u16,
                next_header: number,
                hop_limit: inner.ttl,
                source,
                destination,
            }
            .write(network),
            _ => false,
        };
    debug_assert!(written, "headers of {with:?} in {ip_length} bytes");
}

#[cfg(test)]
mod tests;
