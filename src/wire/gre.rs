//! Generic routing encapsulation, version 0 (RFC 2784): with or without a checksum, no key, no sequence numbers.

use super::checksum::Sum;

/// Bytes of the header without a checksum.
pub const HEADER_LENGTH: usize = 4;
/// Bytes that a checksum adds.
pub const CHECKSUM_LENGTH: usize = 4;
/// The flag for a checksum, in the first byte.
const HAS_CHECKSUM: u8 = 0x80;

/// Writes the header of the packet that `packet` is to be, what it carries already there; false, with nothing written,
/// where that is shorter than the header.
#[must_use]
pub fn write(packet: &mut [u8], ether_type: u16, checksum: bool) -> bool {
    let length = length(checksum);
    let Some(header) = packet.get_mut(..length) else { return false };
    header.fill(0);
    header[0] = if checksum { HAS_CHECKSUM } else { 0 };
    header[2..4].copy_from_slice(&ether_type.to_be_bytes());
    if checksum {
        let sum = Sum::ZERO.bytes(packet).checksum();
        packet[4..6].copy_from_slice(&sum.to_be_bytes());
    }
    true
}

/// Bytes of the header.
pub const fn length(checksum: bool) -> usize {
    if checksum { HEADER_LENGTH + CHECKSUM_LENGTH } else { HEADER_LENGTH }
}

/// Reads the header that `bytes` begin with: the ethertype of what follows it, and where that begins. `None` where it
/// is cut off, of another version, or has any flag but that for a checksum.
pub fn parse(bytes: &[u8]) -> Option<(u16, usize)> {
    let &[flags, version, high, low] = bytes.first_chunk::<HEADER_LENGTH>()?;
    let length = length(flags & HAS_CHECKSUM != 0);
    let known = flags & !HAS_CHECKSUM == 0 && version == 0 && length <= bytes.len();
    known.then_some((u16::from_be_bytes([high, low]), length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_sums_up() {
        for checksum in [false, true] {
            for payload in [&b""[..], b"odd", b"even"] {
                let mut packet = [&vec![0xee; length(checksum)], payload].concat();
                assert!(write(&mut packet, 0x86dd, checksum));
                assert_eq!(parse(&packet), Some((0x86dd, if checksum { 8 } else { 4 })));
                assert_eq!(&packet[length(checksum)..], payload);
                assert_eq!(Sum::ZERO.bytes(&packet).is_right(), checksum);
            }
            assert!(!write(&mut vec![0; length(checksum) - 1], 0x0800, checksum));
        }
    }

    #[test]
    fn other_kinds_are_not_read() {
        let rows: [(&str, &[u8]); 6] = [
            ("cut off", &[0, 0, 8]),
            ("checksum cut off", &[0x80, 0, 8, 0, 1, 2, 0]),
            ("key", &[0x20, 0, 8, 0, 0, 0, 0, 1]),
            ("sequence number", &[0x10, 0, 8, 0, 0, 0, 0, 1]),
            ("routing", &[0x40, 0, 8, 0, 0, 0, 0, 1]),
            ("version 1", &[0, 1, 0x88, 0x0b, 0, 0, 0, 0]),
        ];
        for (what, bytes) in rows {
            assert_eq!(parse(bytes), None, "{what}");
        }
    }
}
