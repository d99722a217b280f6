//! The IPv4 header (RFC 791).

use std::net::Ipv4Addr;

use etherparse::Ipv4HeaderSlice;

use crate::types::MacAddress;

use super::checksum::{Change, Sum};
use super::ethernet::Link;
use super::{Addresses, Fragment, Malformed, Parsed, transport, u16_at};

/// Bytes of a header without options.
pub const HEADER_LENGTH: usize = 20;
/// Offset of the type of service byte in the header.
pub const TOS: usize = 1;
/// Offset of the total length.
pub const TOTAL_LENGTH: usize = 2;
/// Offset of the identification.
pub const IDENTIFICATION: usize = 4;
/// Offset of the flags and the fragment offset.
pub const FRAGMENT: usize = 6;
/// Offset of the time to live.
pub const TTL: usize = 8;
/// Offset of the protocol number.
pub const PROTOCOL: usize = 9;
/// Offset of the header's checksum.
pub const CHECKSUM: usize = 10;
/// Offset of the source address.
pub const SOURCE: usize = 12;
/// Offset of the destination address.
pub const DESTINATION: usize = 16;

/// Reads the packet at `link.ip_offset`. The checks and their order are `ip_rcv_core`'s (net/ipv4/ip_input.c):
/// version and header length, checksum, total length. Beyond these a fragment must end within 65,535 bytes.
#[inline(always)]
pub(super) fn parse<const STRICT: bool>(frame: &[u8], link: Link) -> Result<Parsed, Malformed> {
    let bytes = frame.get(link.ip_offset..).unwrap_or_default();
    if bytes.len() < HEADER_LENGTH {
        return Err(Malformed::TruncatedFrame);
    }
    let header = Ipv4HeaderSlice::from_slice(bytes).map_err(|_| Malformed::BadIpv4Header)?;
    if STRICT && !checksum_is_right(header.slice()) {
        return Err(Malformed::BadIpv4Checksum);
    }
    let header_length = header.slice().len();
    let total_length = usize::from(header.total_len());
    if total_length < header_length || (STRICT && total_length > bytes.len()) {
        return Err(Malformed::BadIpv4Header);
    }
    let payload = &bytes[header_length..total_length.min(bytes.len()).max(header_length)];
    let fragment = if header.is_fragmenting_payload() {
        fragment(header, total_length - header_length)?
    } else {
        Fragment::Whole
    };
    let protocol = header.protocol().0;
    let upper = transport::parse::<STRICT>(protocol, payload, fragment)?;
    Ok(Parsed {
        addresses: Addresses::V4 {
            source: u32::from_be_bytes(header.source()),
            destination: u32::from_be_bytes(header.destination()),
        },
        fragment,
        ip_length: total_length as u32,
        destination_mac: MacAddress::default(),
        vlan: link.vlan,
        ip_offset: link.ip_offset as u16,
        transport_offset: (link.ip_offset + header_length) as u16,
        source_port: upper.source_port(),
        destination_port: upper.destination_port(),
        protocol,
        ttl: header.ttl(),
        dont_fragment: header.dont_fragment(),
        tcp_flags: upper.tcp_flags(),
        sctp_chunk: upper.sctp_chunk(),
        sctp_abort_follows: upper.sctp_abort_follows(),
        icmp_type: upper.icmp_type(),
    })
}

/// What the header of a fragment says of it.
#[inline(never)]
fn fragment(header: Ipv4HeaderSlice<'_>, payload_length: usize) -> Result<Fragment, Malformed> {
    let identification = u32::from(header.identification());
    // The field counts units of 8 bytes and has 13 bits: no overflow here.
    let offset = header.fragments_offset().value() * 8;
    if usize::from(offset) + payload_length > usize::from(u16::MAX) {
        return Err(Malformed::BadIpv4Header);
    }
    Ok(if offset == 0 {
        Fragment::First { identification, length: payload_length as u16 }
    } else {
        Fragment::Later { identification, offset, more: header.more_fragments() }
    })
}

/// Whether a header, options included, sums up.
#[inline(always)]
pub fn checksum_is_right(header: &[u8]) -> bool {
    // The common length by itself: the compiler unrolls it.
    let sum = match <&[u8; HEADER_LENGTH]>::try_from(header) {
        Ok(header) => Sum::ZERO.bytes(header),
        Err(_) => sum_with_options(header),
    };
    sum.is_right()
}

#[inline(never)]
fn sum_with_options(header: &[u8]) -> Sum {
    Sum::ZERO.bytes(header)
}

/// Writes a header's checksum, computed anew. False, and nothing done, for less than a header.
#[must_use]
pub fn write_checksum(header: &mut [u8]) -> bool {
    if header.len() < HEADER_LENGTH {
        return false;
    }
    header[CHECKSUM..CHECKSUM + 2].fill(0);
    let checksum = Sum::ZERO.bytes(header).checksum();
    header[CHECKSUM..CHECKSUM + 2].copy_from_slice(&checksum.to_be_bytes());
    true
}

/// Applies `change` to the header's checksum. False, and nothing done, for less than a header.
#[inline]
#[must_use]
pub fn update_checksum(header: &mut [u8], change: Change) -> bool {
    let Some(checksum) = u16_at(header, CHECKSUM) else { return false };
    header[CHECKSUM..CHECKSUM + 2].copy_from_slice(&change.apply(checksum).to_be_bytes());
    true
}

/// A header without options to write, of a packet that is not a fragment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// Type of service, all eight bits.
    pub tos: u8,
    /// Bytes of the packet, header included.
    pub total_length: u16,
    /// Identification.
    pub identification: u16,
    /// Whether routers must not fragment it.
    pub dont_fragment: bool,
    /// Time to live.
    pub ttl: u8,
    /// What follows.
    pub protocol: u8,
    /// Sender.
    pub source: Ipv4Addr,
    /// Receiver.
    pub destination: Ipv4Addr,
}

impl Header {
    /// Writes it, with its checksum, to the beginning of `bytes`; false, with nothing written, where these are too
    /// few.
    #[must_use]
    pub fn write(&self, bytes: &mut [u8]) -> bool {
        let Some(header) = bytes.first_chunk_mut::<HEADER_LENGTH>() else { return false };
        header.fill(0);
        header[0] = 0x45;
        header[TOS] = self.tos;
        header[TOTAL_LENGTH..][..2].copy_from_slice(&self.total_length.to_be_bytes());
        header[IDENTIFICATION..][..2].copy_from_slice(&self.identification.to_be_bytes());
        header[FRAGMENT] = u8::from(self.dont_fragment) << 6;
        header[TTL] = self.ttl;
        header[PROTOCOL] = self.protocol;
        header[SOURCE..][..4].copy_from_slice(&self.source.octets());
        header[DESTINATION..].copy_from_slice(&self.destination.octets());
        write_checksum(header)
    }
}

/// Takes one off the time to live of the packet that `packet` begins with, and updates the header's checksum.
/// False, and nothing done, where it is 0 or 1 (time exceeded) or there is no whole header.
#[inline]
#[must_use]
pub fn decrement_ttl(packet: &mut [u8]) -> bool {
    let Some(header) = packet.first_chunk_mut::<HEADER_LENGTH>() else { return false };
    if header[TTL] <= 1 {
        return false;
    }
    header[TTL] -= 1;
    // It is the high byte of a 16-bit word: one less of it is 0x0100 less, whatever it was.
    update_checksum(header, Change::NONE.u16(0x0100, 0))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::build::Build;

    #[test]
    fn the_last_hop_is_not_taken_off() {
        for ttl in [0, 1] {
            let mut packet = Build::ipv4([10, 0, 0, 1], [10, 0, 0, 2]).ttl(ttl).packet();
            let before = packet.clone();
            assert!(!decrement_ttl(&mut packet));
            assert_eq!(packet, before);
        }
        assert!(!decrement_ttl(&mut [0x45; HEADER_LENGTH - 1]));
    }

    proptest! {
        #[test]
        fn a_written_header_is_one_that_is_built(
            source: [u8; 4], destination: [u8; 4], tos: u8, ttl: u8, identification: u16, dont_fragment: bool,
        ) {
            let header = Header {
                tos,
                total_length: 28,
                identification,
                dont_fragment,
                ttl,
                protocol: crate::wire::protocol::UDP,
                source: source.into(),
                destination: destination.into(),
            };
            let build = Build::ipv4(source, destination).tos(tos).ttl(ttl).identification(identification.into());
            let expected = if dont_fragment { build.dont_fragment() } else { build }.packet();
            let mut bytes = [0xee; HEADER_LENGTH];
            prop_assert!(header.write(&mut bytes));
            prop_assert_eq!(&bytes, &expected[..HEADER_LENGTH]);
            prop_assert!(!header.write(&mut bytes[1..]));
        }

        #[test]
        fn decrementing_keeps_the_checksum_right(
            source: [u8; 4], destination: [u8; 4], tos: u8, ttl in 2_u8.., identification: u32,
            options in proptest::collection::vec(any::<u8>(), 0..=40),
        ) {
            let build = Build::ipv4(source, destination).tos(tos).identification(identification).options(&options);
            let mut packet = build.clone().ttl(ttl).packet();
            prop_assert!(decrement_ttl(&mut packet));
            prop_assert_eq!(packet, build.ttl(ttl - 1).packet());
        }

        #[test]
        fn a_written_checksum_is_right(mut header in proptest::collection::vec(any::<u8>(), 20..=60)) {
            header.truncate(header.len() & !3);
            header[0] |= 0x40;
            prop_assert!(write_checksum(&mut header));
            prop_assert!(checksum_is_right(&header));
            header[5] = header[5].wrapping_add(1);
            prop_assert!(!checksum_is_right(&header));
        }
    }
}
