//! The IPv6 header and its extension headers (RFC 8200).

use std::net::Ipv6Addr;

use etherparse::Ipv6HeaderSlice;

use crate::types::MacAddress;

use super::ethernet::Link;
use super::{Addresses, Fragment, Malformed, Parsed, protocol, transport};

/// Bytes of the fixed header.
pub const HEADER_LENGTH: usize = 40;
/// Offset of the payload length in the header.
pub const PAYLOAD_LENGTH: usize = 4;
/// Offset of the next header's protocol number.
pub const NEXT_HEADER: usize = 6;
/// Offset of the hop limit.
pub const HOP_LIMIT: usize = 7;
/// Offset of the source address.
pub const SOURCE: usize = 8;
/// Offset of the destination address.
pub const DESTINATION: usize = 24;

/// Bytes of a fragment header.
pub const FRAGMENT_HEADER_LENGTH: usize = 8;

/// Most extension headers that are walked: one more than the longest chain that RFC 8200 (section 4.1) recommends
/// (hop-by-hop, destination options, routing, fragment, authentication, ESP, destination options). The kernel knows
/// no limit but the packet's length. Each has 2,048 bytes at most.
pub const MAX_EXTENSION_HEADERS: usize = 8;

/// Reads the packet at `link.ip_offset`. The checks are `ip6_rcv_core`'s (net/ipv6/ip6_input.c): version, payload
/// length; jumbograms are refused. The headers walked are those of `ipv6_ext_hdr`.
#[inline(always)]
pub(super) fn parse<const STRICT: bool>(frame: &[u8], link: Link) -> Result<Parsed, Malformed> {
    let bytes = frame.get(link.ip_offset..).unwrap_or_default();
    if bytes.len() < HEADER_LENGTH {
        return Err(Malformed::TruncatedFrame);
    }
    let header = Ipv6HeaderSlice::from_slice(bytes).map_err(|_| Malformed::BadIpv6Header)?;
    let payload_length = usize::from(header.payload_length());
    let next_header = header.next_header().0;
    // A payload length of zero in front of hop-by-hop options announces a jumbogram (RFC 2675).
    if payload_length == 0 && next_header == protocol::HOP_BY_HOP {
        return Err(Malformed::BadIpv6Header);
    }
    let ip_length = HEADER_LENGTH + payload_length;
    if STRICT && ip_length > bytes.len() {
        return Err(Malformed::BadIpv6Header);
    }
    let bytes = &bytes[..ip_length.min(bytes.len())];
    let chain = if is_extension(next_header) {
        walk(bytes, next_header)?
    } else {
        Chain { offset: HEADER_LENGTH, protocol: next_header, fragment: Fragment::Whole }
    };
    if let Fragment::Later { offset, .. } = chain.fragment {
        // As for IPv4: a datagram's payload fits 16 bits.
        if usize::from(offset) + (ip_length.saturating_sub(chain.offset)) > usize::from(u16::MAX) {
            return Err(Malformed::BadIpv6Header);
        }
    }
    let payload = bytes.get(chain.offset..).ok_or(Malformed::BadIpv6Header)?;
    let upper = transport::parse::<STRICT>(chain.protocol, payload, chain.fragment)?;
    Ok(Parsed {
        addresses: Addresses::V6 {
            source: halves(header.source()),
            destination: halves(header.destination()),
        },
        fragment: chain.fragment,
        ip_length: ip_length as u32,
        destination_mac: MacAddress::default(),
        vlan: link.vlan,
        ip_offset: link.ip_offset as u16,
        transport_offset: (link.ip_offset + chain.offset) as u16,
        source_port: upper.source_port(),
        destination_port: upper.destination_port(),
        protocol: chain.protocol,
        ttl: header.hop_limit(),
        dont_fragment: true,
        tcp_flags: upper.tcp_flags(),
        sctp_chunk: upper.sctp_chunk(),
        sctp_abort_follows: upper.sctp_abort_follows(),
        icmp_type: upper.icmp_type(),
    })
}

#[inline(always)]
fn halves(address: [u8; 16]) -> [u64; 2] {
    let address = u128::from_be_bytes(address);
    [(address >> 64) as u64, address as u64]
}

/// Where a chain of extension headers led.
struct Chain {
    /// Offset from the IPv6 header of what follows the chain.
    offset: usize,
    protocol: u8,
    fragment: Fragment,
}

const fn is_extension(number: u8) -> bool {
    matches!(
        number,
        protocol::HOP_BY_HOP
            | protocol::ROUTING
            | protocol::FRAGMENT
            | protocol::AUTHENTICATION
            | protocol::DESTINATION_OPTIONS
    )
}

/// Walks the extension headers of `packet`, the first of which is a `next`.
#[cold]
fn walk(packet: &[u8], next: u8) -> Result<Chain, Malformed> {
    let mut chain = Chain { offset: HEADER_LENGTH, protocol: next, fragment: Fragment::Whole };
    let mut fragment_seen = false;
    for _ in 0..MAX_EXTENSION_HEADERS {
        let &[next, length, ..] =
            packet.get(chain.offset..).and_then(<[u8]>::first_chunk::<8>).ok_or(Malformed::BadIpv6Header)?;
        let length = match chain.protocol {
            // Once at most, and hop-by-hop options only in front (RFC 8200, section 4.1). IPVS does not look, but
            // every receiver refuses the latter.
            protocol::FRAGMENT if fragment_seen => return Err(Malformed::BadIpv6Header),
            protocol::HOP_BY_HOP if chain.offset != HEADER_LENGTH => return Err(Malformed::BadIpv6Header),
            protocol::FRAGMENT => {
                fragment_seen = true;
                chain.fragment = fragment(packet, chain.offset).ok_or(Malformed::BadIpv6Header)?;
                FRAGMENT_HEADER_LENGTH
            }
            // RFC 4302, section 2.2: counted in 4 bytes, less 2.
            protocol::AUTHENTICATION => (usize::from(length) + 2) * 4,
            _ => (usize::from(length) + 1) * 8,
        };
        chain.offset += length;
        chain.protocol = next;
        if chain.offset > packet.len() {
            return Err(Malformed::BadIpv6Header);
        }
        if !is_extension(next) || matches!(chain.fragment, Fragment::Later { .. }) {
            return Ok(chain);
        }
    }
    Err(Malformed::BadIpv6Header)
}

/// What the fragment header at `offset` says.
fn fragment(packet: &[u8], offset: usize) -> Option<Fragment> {
    let &[_, _, o0, o1, i0, i1, i2, i3] = packet.get(offset..)?.first_chunk()?;
    let field = u16::from_be_bytes([o0, o1]);
    let identification = u32::from_be_bytes([i0, i1, i2, i3]);
    // 13 bits of offset in units of 8 bytes, 2 reserved bits, the flag for more.
    Some(match (field & 0xfff8, field & 1 != 0) {
        (0, false) => Fragment::Whole,
        (0, true) => {
            // At most what a payload length can say, less this header.
            let length = packet.len() - offset - FRAGMENT_HEADER_LENGTH;
            Fragment::First { identification, length: length as u16 }
        }
        (place, more) => Fragment::Later { identification, offset: place, more },
    })
}

/// A header to write; its flow label is zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// Traffic class.
    pub traffic_class: u8,
    /// Bytes behind the header.
    pub payload_length: u16,
    /// What follows.
    pub next_header: u8,
    /// Hop limit.
    pub hop_limit: u8,
    /// Sender.
    pub source: Ipv6Addr,
    /// Receiver.
    pub destination: Ipv6Addr,
}

impl Header {
    /// Writes it to the beginning of `bytes`; false, with nothing written, where these are too few.
    #[must_use]
    pub fn write(&self, bytes: &mut [u8]) -> bool {
        let Some(header) = bytes.first_chunk_mut::<HEADER_LENGTH>() else { return false };
        let first = 6 << 28 | u32::from(self.traffic_class) << 20;
        header[..4].copy_from_slice(&first.to_be_bytes());
        header[PAYLOAD_LENGTH..][..2].copy_from_slice(&self.payload_length.to_be_bytes());
        header[NEXT_HEADER] = self.next_header;
        header[HOP_LIMIT] = self.hop_limit;
        header[SOURCE..][..16].copy_from_slice(&self.source.octets());
        header[DESTINATION..].copy_from_slice(&self.destination.octets());
        true
    }
}

/// Takes one off the hop limit of the packet that `packet` begins with. False, and nothing done, where it is 0 or 1
/// (time exceeded) or there is no whole header. No checksum covers it.
#[inline]
#[must_use]
pub fn decrement_hop_limit(packet: &mut [u8]) -> bool {
    match packet.first_chunk_mut::<HEADER_LENGTH>() {
        Some(header) if header[HOP_LIMIT] > 1 => {
            header[HOP_LIMIT] -= 1;
            true
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::build::Build;

    #[test]
    fn the_last_hop_is_not_taken_off() {
        for (before, after) in [(0, None), (1, None), (2, Some(1)), (255, Some(254))] {
            let build = Build::ipv6([1; 16], [2; 16]);
            let mut packet = build.clone().ttl(before).packet();
            assert_eq!(decrement_hop_limit(&mut packet), after.is_some());
            assert_eq!(packet, build.ttl(after.unwrap_or(before)).packet());
        }
        assert!(!decrement_hop_limit(&mut [0x60; HEADER_LENGTH - 1]));
    }

    #[test]
    fn a_written_header_is_one_that_is_built() {
        let header = Header {
            traffic_class: 0xb9,
            payload_length: 8,
            next_header: protocol::UDP,
            hop_limit: 7,
            source: [1; 16].into(),
            destination: [2; 16].into(),
        };
        let expected = Build::ipv6([1; 16], [2; 16]).tos(0xb9).ttl(7).packet();
        let mut bytes = [0xee; HEADER_LENGTH];
        assert!(header.write(&mut bytes));
        assert_eq!(bytes, expected[..HEADER_LENGTH]);
        assert!(!header.write(&mut bytes[1..]));
    }
}
