//! Bytes: frames read, and rewritten in place.
//!
//! [`parse()`] is total: any bytes give a [`Parsed`], "not IP", or the reason they are malformed, and never a
//! panic. It reads each header once, allocates nothing and keeps no reference, so that a batch can be parsed
//! first and its frames edited later. What it accepts is what Linux accepts of a received packet (`ip_rcv`,
//! `ipv6_rcv`) and what IPVS then needs of the transport header; each function says where it is stricter.
//!
//! A [`Parsed`] describes the frame as it was: after the link header was replaced by another of a different
//! length, or after an encapsulation, its offsets no longer hold.
//!
//! | module | holds |
//! |---|---|
//! | [`ethernet`] | the link header with up to two VLAN tags: read, replaced |
//! | [`ipv4`], [`ipv6`] | the network header: read, lifetime decremented, checksum verified |
//! | [`transport`] | ports, flags and types of TCP, UDP, SCTP, ICMP and ICMPv6; whole checksums |
//! | [`icmp`], [`icmpv6`] | error messages about a packet, written |
//! | [`udp`], [`gue`], [`gre`] | the headers of tunnels: written, and read as ICMP errors quote them |
//! | [`checksum`], [`crc32c`] | the sums, whole and incremental |
//! | [`build`] | frames for tests, benchmarks, fuzzing and the lab |

pub mod build;
pub mod checksum;
pub mod crc32c;
pub mod ethernet;
pub mod gre;
pub mod gue;
pub mod icmp;
pub mod icmpv6;
pub mod ipv4;
pub mod ipv6;
mod offload;
mod parse;
#[cfg(test)]
mod tests;
pub mod transport;
pub mod udp;

pub use offload::Offload;
pub use parse::{
    Addresses, Fragment, MAX_INNER_OFFSET, Malformed, Outcome, Parsed, parse, parse_inner, parse_into,
    parse_quoted,
};

/// IP protocol numbers that parsing knows.
pub mod protocol {
    /// IPv6 hop-by-hop options.
    pub const HOP_BY_HOP: u8 = 0;
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// IPv4 in IP.
    pub const IPV4: u8 = 4;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// IPv6 in IP.
    pub const IPV6: u8 = 41;
    /// IPv6 routing header.
    pub const ROUTING: u8 = 43;
    /// IPv6 fragment header.
    pub const FRAGMENT: u8 = 44;
    /// GRE.
    pub const GRE: u8 = 47;
    /// IPsec authentication header.
    pub const AUTHENTICATION: u8 = 51;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
    /// Nothing follows.
    pub const NONE: u8 = 59;
    /// IPv6 destination options.
    pub const DESTINATION_OPTIONS: u8 = 60;
    /// SCTP.
    pub const SCTP: u8 = 132;
}

/// The 16-bit number at `offset`, where the bytes reach that far.
#[inline]
fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    bytes.get(offset..)?.first_chunk().map(|&word| u16::from_be_bytes(word))
}
