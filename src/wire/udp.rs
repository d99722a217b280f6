//! The UDP header (RFC 768), written.

use super::checksum::{Sum, never_zero};
use super::transport::{UDP_CHECKSUM, UDP_HEADER_LENGTH};
use super::{Addresses, protocol};

/// Writes the header of the datagram that `datagram` is to be, its payload already there; with a checksum where
/// `addresses`, those of its packet, are given, and otherwise with none (0). False, with nothing written, where it is
/// shorter than a header or longer than the length field can say.
#[must_use]
pub fn write(datagram: &mut [u8], source: u16, destination: u16, addresses: Option<&Addresses>) -> bool {
    let Ok(length) = u16::try_from(datagram.len()) else { return false };
    let Some(header) = datagram.first_chunk_mut::<UDP_HEADER_LENGTH>() else { return false };
    for (field, value) in header.as_chunks_mut::<2>().0.iter_mut().zip([source, destination, length, 0]) {
        *field = value.to_be_bytes();
    }
    if let Some(addresses) = addresses {
        let pseudo = Sum::ZERO.pseudo_header(addresses, protocol::UDP, length.into());
        let checksum = never_zero(pseudo.bytes(datagram).checksum());
        datagram[UDP_CHECKSUM..UDP_CHECKSUM + 2].copy_from_slice(&checksum.to_be_bytes());
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::build::{Build, Transport};

    #[test]
    fn a_written_header_is_one_that_is_built() {
        for checksum in [false, true] {
            for payload in [&b""[..], b"odd", b"even"] {
                let build = Build::ipv4([10, 0, 0, 1], [10, 0, 0, 2])
                    .transport(Transport::Udp { source: 7, destination: 6080, checksum })
                    .payload(payload);
                let expected = build.packet();
                let mut bytes = [&[0xee; 8], payload].concat();
                let addresses = Addresses::V4 { source: 0x0a00_0001, destination: 0x0a00_0002 };
                assert!(write(&mut bytes, 7, 6080, checksum.then_some(&addresses)));
                assert_eq!(bytes, expected[20..]);
            }
        }
        assert!(!write(&mut [0; 7], 1, 2, None));
        assert!(!write(&mut vec![0; 65_536], 1, 2, None));
    }
}
