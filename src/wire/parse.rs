//! A frame, read once: what the director needs to know of it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::types::{Family, MacAddress};

use super::ethernet::{self, Link};
use super::{ipv4, ipv6};

/// What a frame turned out to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// An IPv4 or IPv6 packet, whole or a fragment.
    Packet(Parsed),
    /// Something else, such as ARP: the host's.
    NotIp,
    /// Not a packet that Linux would take.
    Malformed(Malformed),
}

/// Why bytes are not a packet; one for one the director's drop reasons of the same names.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
pub enum Malformed {
    /// Shorter than its Ethernet header and tags, or than the fixed part of the IP header that these announce.
    #[error("frame shorter than its link header and a minimal IP header")]
    TruncatedFrame,
    /// Wrong version, header length below 20 or beyond the frame, total length below the header's or beyond
    /// the frame, or a fragment that ends beyond 65,535 bytes.
    #[error("bad IPv4 header")]
    BadIpv4Header,
    /// The header does not sum up.
    #[error("bad IPv4 header checksum")]
    BadIpv4Checksum,
    /// Wrong version, payload length beyond the frame, a jumbogram, or extension headers that are cut off, too
    /// many, twice fragment headers, or hop-by-hop options not in front.
    #[error("bad IPv6 header")]
    BadIpv6Header,
    /// A TCP, UDP, SCTP, ICMP or ICMPv6 header that is cut off, or a TCP data offset outside the packet.
    #[error("bad transport header")]
    BadTransportHeader,
}

/// Source and destination, in a form that is cheap to compare and to hash. Words hold the numeric value of the
/// address: the first byte on the wire is the most significant.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Addresses {
    /// IPv4
    V4 {
        /// Sender.
        source: u32,
        /// Receiver.
        destination: u32,
    },
    /// IPv6, the most significant half first.
    V6 {
        /// Sender.
        source: [u64; 2],
        /// Receiver.
        destination: [u64; 2],
    },
}

impl Addresses {
    /// The two addresses; `None` where they are of different families.
    pub fn new(source: IpAddr, destination: IpAddr) -> Option<Self> {
        match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                Some(Self::V4 { source: source.into(), destination: destination.into() })
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                Some(Self::V6 { source: halves(source), destination: halves(destination) })
            }
            _ => None,
        }
    }

    /// Their family.
    #[inline]
    pub const fn family(&self) -> Family {
        match self {
            Self::V4 { .. } => Family::V4,
            Self::V6 { .. } => Family::V6,
        }
    }

    /// The sender's.
    pub fn source(&self) -> IpAddr {
        match *self {
            Self::V4 { source, .. } => Ipv4Addr::from(source).into(),
            Self::V6 { source, .. } => whole(source).into(),
        }
    }

    /// The receiver's.
    pub fn destination(&self) -> IpAddr {
        match *self {
            Self::V4 { destination, .. } => Ipv4Addr::from(destination).into(),
            Self::V6 { destination, .. } => whole(destination).into(),
        }
    }

    /// Receiver and sender exchanged.
    #[must_use]
    pub const fn reversed(&self) -> Self {
        match *self {
            Self::V4 { source, destination } => Self::V4 { source: destination, destination: source },
            Self::V6 { source, destination } => Self::V6 { source: destination, destination: source },
        }
    }
}

/// The halves of an IPv6 address as [`Addresses::V6`] has them.
fn halves(address: Ipv6Addr) -> [u64; 2] {
    let bits = u128::from(address);
    [(bits >> 64) as u64, bits as u64]
}

fn whole(halves: [u64; 2]) -> Ipv6Addr {
    Ipv6Addr::from(u128::from(halves[0]) << 64 | u128::from(halves[1]))
}

/// Which part of its datagram a packet is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fragment {
    /// All of it. An IPv6 packet whose fragment header says so ("atomic", RFC 6946) too.
    Whole,
    /// The beginning, which has the transport header; more follows.
    First {
        /// What the fragments of one datagram have in common, next to their addresses (and, in IPv4, protocol).
        identification: u32,
        /// Bytes of the datagram that it has: the transport header and, in IPv6, extension headers behind the
        /// fragment header included.
        length: u16,
    },
    /// A later part. It has no transport header, whatever its bytes look like.
    Later {
        /// As for the first.
        identification: u32,
        /// Where in the datagram's payload it belongs, in bytes.
        offset: u16,
        /// Whether more follows.
        more: bool,
    },
}

/// What a packet's headers say. Offsets count from the start of the parsed frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Parsed {
    /// Source and destination address.
    pub addresses: Addresses,
    /// Fragmentation.
    pub fragment: Fragment,
    /// Length of the IP packet in bytes, IP header included, link header and padding not: what byte counters
    /// count. In a quoted packet ([`parse_quoted`]): what its header says, however little of it is there.
    pub ip_length: u32,
    /// Whose link address it was sent to; all zero for inner and quoted packets.
    pub destination_mac: MacAddress,
    /// The VLAN: the identifier of the outermost tag that has one (a tag with identifier 0 carries only a
    /// priority).
    pub vlan: Option<u16>,
    /// Offset of the IP header; for a received frame, the length of its link header with all tags.
    pub ip_offset: u16,
    /// Offset of what follows the IP header and its extension headers: the transport header, or in a later
    /// fragment its piece of payload.
    pub transport_offset: u16,
    /// Source port of TCP, UDP and SCTP; else 0.
    pub source_port: u16,
    /// Destination port of TCP, UDP and SCTP; else 0.
    pub destination_port: u16,
    /// IP protocol number of what is at `transport_offset`. In a later IPv6 fragment it can be an extension
    /// header that its datagram's first fragment has whole.
    pub protocol: u8,
    /// Time to live or hop limit.
    pub ttl: u8,
    /// IPv4: the flag. IPv6: always, for routers never fragment.
    pub dont_fragment: bool,
    /// TCP: the flags, see [`transport::tcp_flags`](super::transport::tcp_flags); else 0.
    pub tcp_flags: u8,
    /// SCTP: type of the first chunk; else 0 (which is also DATA: look at `protocol`).
    pub sctp_chunk: u8,
    /// SCTP: the first chunk is COOKIE-ECHO or COOKIE-ACK and an ABORT comes next. The kernel counts such a
    /// packet as an ABORT.
    pub sctp_abort_follows: bool,
    /// ICMP and ICMPv6: the message's type; else 0.
    pub icmp_type: u8,
}

impl Parsed {
    /// The packet's family.
    #[inline]
    pub const fn family(&self) -> Family {
        self.addresses.family()
    }

    /// Whether it has a transport header: not so for later fragments.
    #[inline]
    pub const fn has_transport_header(&self) -> bool {
        !matches!(self.fragment, Fragment::Later { .. })
    }

    /// Bytes of the IP packet from `transport_offset` on: transport header and payload.
    #[inline]
    pub const fn transport_length(&self) -> u32 {
        let headers = self.transport_offset.saturating_sub(self.ip_offset);
        self.ip_length.saturating_sub(headers as u32)
    }

    /// Offset of the first byte behind the IP packet: what follows in the frame is padding.
    #[inline]
    pub const fn end(&self) -> usize {
        self.ip_offset as usize + self.ip_length as usize
    }
}

/// How strict to be, as an argument for the const parameter `STRICT` of the parsers, so that the fast path is
/// compiled without the other's branches. This one is for received packets.
pub(super) const RECEIVED: bool = true;
/// For the beginning of a packet that an ICMP error quotes: its end may be missing, its header's checksum may have
/// been spoilt on its way, and of its transport header only the ports must be there.
pub(super) const QUOTED: bool = false;

/// Reads a received Ethernet frame.
#[inline]
pub fn parse(frame: &[u8]) -> Outcome {
    let mut outcome = Outcome::NotIp;
    parse_into(frame, &mut outcome);
    outcome
}

/// Reads a received Ethernet frame, and puts what it is where it is to stay. An outcome is large: one that is put
/// together elsewhere and then copied in wide words makes the processor wait for each of its narrow stores.
#[inline(always)]
pub fn parse_into(frame: &[u8], outcome: &mut Outcome) {
    // Untagged first, and by itself: with the offset of the IP header known, all others in a packet without options
    // are constants.
    let (destination, ether_type) = match ethernet::parse(frame) {
        Ok(header) => header,
        Err(reason) => return *outcome = Outcome::Malformed(reason),
    };
    match ether_type {
        ethernet::IPV4 => put(ipv4::parse::<RECEIVED>(frame, Link::UNTAGGED), destination, outcome),
        ethernet::IPV6 => parse_ipv6(frame, destination, outcome),
        _ if ethernet::is_tag(ether_type) => parse_tagged(frame, destination, ether_type, outcome),
        _ => *outcome = Outcome::NotIp,
    }
}

/// By itself, so that the code for IPv4 stays small enough to be put where it is called.
#[inline(never)]
fn parse_ipv6(frame: &[u8], destination: MacAddress, outcome: &mut Outcome) {
    put(ipv6::parse::<RECEIVED>(frame, Link::UNTAGGED), destination, outcome);
}

#[inline(never)]
fn parse_tagged(frame: &[u8], destination: MacAddress, ether_type: u16, outcome: &mut Outcome) {
    match ethernet::parse_tags(frame, ether_type) {
        Ok((link, ethernet::IPV4)) => put(ipv4::parse::<RECEIVED>(frame, link), destination, outcome),
        Ok((link, ethernet::IPV6)) => put(ipv6::parse::<RECEIVED>(frame, link), destination, outcome),
        Ok(_) => *outcome = Outcome::NotIp,
        Err(reason) => *outcome = Outcome::Malformed(reason),
    }
}

#[inline(always)]
fn put(packet: Result<Parsed, Malformed>, destination_mac: MacAddress, outcome: &mut Outcome) {
    match packet {
        Ok(packet) => *outcome = Outcome::Packet(Parsed { destination_mac, ..packet }),
        Err(reason) => reject(reason, outcome),
    }
}

/// Out of line, or else both cases share their stores: the sender's address, in whose place the reason lies, would be
/// stored in pieces, and waited for where it is read whole.
#[cold]
#[inline(never)]
fn reject(reason: Malformed, outcome: &mut Outcome) {
    *outcome = Outcome::Malformed(reason);
}

/// The farthest into a frame that an inner packet may begin: half of what an offset of [`Parsed`] can say, which leaves
/// the other half for its own headers (16,424 bytes at most). No frame that is received is that long.
pub const MAX_INNER_OFFSET: usize = 32_768;

/// Reads the IP packet at `offset` of a frame, as inside a tunnel's packet; its family is what its version says.
///
/// # Errors
/// Why it is malformed; [`Malformed::TruncatedFrame`] also for a version that is neither 4 nor 6, and for an offset over
/// [`MAX_INNER_OFFSET`].
pub fn parse_inner(frame: &[u8], offset: usize) -> Result<Parsed, Malformed> {
    packet_at::<RECEIVED>(frame, offset)
}

/// Reads the beginning of an IP packet at `offset` of a frame, as an ICMP error quotes it: the packet's end may
/// be missing, its header's checksum is not looked at, and four bytes of transport header (the ports) are
/// enough. TCP flags, SCTP chunk and ICMP type are 0 where they are cut off.
///
/// # Errors
/// Why not even that much can be read; [`Malformed::TruncatedFrame`] also for a version that is neither 4 nor 6, and for an offset over
/// [`MAX_INNER_OFFSET`].
pub fn parse_quoted(frame: &[u8], offset: usize) -> Result<Parsed, Malformed> {
    packet_at::<QUOTED>(frame, offset)
}

fn packet_at<const STRICT: bool>(frame: &[u8], offset: usize) -> Result<Parsed, Malformed> {
    let first = frame.get(offset).ok_or(Malformed::TruncatedFrame)?;
    if offset > MAX_INNER_OFFSET {
        return Err(Malformed::TruncatedFrame);
    }
    let link = Link { ip_offset: offset, vlan: None };
    match first >> 4 {
        4 => ipv4::parse::<STRICT>(frame, link),
        6 => ipv6::parse::<STRICT>(frame, link),
        _ => Err(Malformed::TruncatedFrame),
    }
}
