//! CRC-32C, the checksum of SCTP (RFC 9260, section 6.8 and appendix A).

/// The Castagnoli polynomial, bits reversed.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// `TABLES[k][byte]`: what `byte` contributes when `k` more bytes follow it in a group of eight. 8 KiB, computed
/// by the compiler.
static TABLES: [[u32; 256]; 8] = tables();

const fn tables() -> [[u32; 256]; 8] {
    let mut tables = [[0; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ POLYNOMIAL } else { crc >> 1 };
            bit += 1;
        }
        tables[0][byte] = crc;
        byte += 1;
    }
    let mut follow = 1;
    while follow < 8 {
        let mut byte = 0;
        while byte < 256 {
            let before: u32 = tables[follow - 1][byte];
            tables[follow][byte] = before >> 8 ^ tables[0][(before & 0xff) as usize];
            byte += 1;
        }
        follow += 1;
    }
    tables
}

/// `POWERS[k]`: what `2^k` zero bytes multiply a CRC by, x to the power of `8 * 2^k`. Bits are reversed as in the
/// polynomial: the highest stands for 1.
static POWERS: [u32; 16] = powers();

const fn powers() -> [u32; 16] {
    let mut powers = [1 << (31 - 8); 16];
    let mut k = 1;
    while k < 16 {
        powers[k] = multiply(powers[k - 1], powers[k - 1]);
        k += 1;
    }
    powers
}

/// The product of two remainders, itself reduced by the polynomial.
const fn multiply(a: u32, mut b: u32) -> u32 {
    let mut product = 0;
    let mut bit = 1 << 31;
    while bit != 0 {
        if a & bit != 0 {
            product ^= b;
        }
        b = if b & 1 == 1 { b >> 1 ^ POLYNOMIAL } else { b >> 1 };
        bit >>= 1;
    }
    product
}

/// The bits of a CRC that change when, of the bytes that it covers, the two of `old` become those of `new` and
/// `following` more bytes come behind them. A CRC is linear, so this needs none of the other bytes, and a wrong one
/// stays as wrong as it was.
pub fn change(old: u16, new: u16, following: u16) -> u32 {
    let mut crc = 0;
    for byte in (old ^ new).to_be_bytes() {
        crc = crc >> 8 ^ TABLES[0][usize::from(crc as u8 ^ byte)];
    }
    for (bit, power) in POWERS.iter().enumerate() {
        if following >> bit & 1 == 1 {
            crc = multiply(crc, *power);
        }
    }
    crc
}

/// A CRC-32C in the making.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Crc32c(u32);

impl Default for Crc32c {
    fn default() -> Self {
        Self::NEW
    }
}

impl Crc32c {
    /// The CRC of nothing yet.
    pub const NEW: Self = Self(!0);

    /// Takes in the next bytes, eight at a time.
    #[must_use]
    pub fn bytes(self, bytes: &[u8]) -> Self {
        let mut crc = self.0;
        let (groups, rest) = bytes.as_chunks::<8>();
        for group in groups {
            let [a, b, c, d] =
                (crc ^ u32::from_le_bytes([group[0], group[1], group[2], group[3]])).to_le_bytes();
            crc = TABLES[7][usize::from(a)]
                ^ TABLES[6][usize::from(b)]
                ^ TABLES[5][usize::from(c)]
                ^ TABLES[4][usize::from(d)]
                ^ TABLES[3][usize::from(group[4])]
                ^ TABLES[2][usize::from(group[5])]
                ^ TABLES[1][usize::from(group[6])]
                ^ TABLES[0][usize::from(group[7])];
        }
        for byte in rest {
            crc = crc >> 8 ^ TABLES[0][usize::from(crc as u8 ^ byte)];
        }
        Self(crc)
    }

    /// The CRC of all the bytes taken in.
    pub const fn value(self) -> u32 {
        !self.0
    }
}

/// The checksum of a whole SCTP packet, whose field counts as zero, in the order of its four bytes on the wire:
/// the least significant byte goes first (RFC 9260, appendix A). `None` for less than a common header.
pub fn sctp_checksum(packet: &[u8]) -> Option<[u8; 4]> {
    let (ports, rest) = packet.split_at_checked(8)?;
    let (_, chunks) = rest.split_at_checked(4)?;
    Some(Crc32c::NEW.bytes(ports).bytes(&[0; 4]).bytes(chunks).value().to_le_bytes())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_answers_come_out() {
        // RFC 3720, appendix B.4, and the check value of the CRC catalogues.
        let ascending: Vec<u8> = (0..32).collect();
        let descending: Vec<u8> = (0..32).rev().collect();
        let rows: [(&[u8], u32); 6] = [
            (b"", 0),
            (b"123456789", 0xe306_9283),
            (&[0; 32], 0x8a91_36aa),
            (&[0xff; 32], 0x62a8_ab43),
            (&ascending, 0x46dd_794e),
            (&descending, 0x113f_db5c),
        ];
        for (bytes, expected) in rows {
            assert_eq!(Crc32c::NEW.bytes(bytes).value(), expected, "{bytes:?}");
        }
    }

    #[test]
    fn less_than_a_common_header_has_no_checksum() {
        assert_eq!(sctp_checksum(&[0; 11]), None);
        assert!(sctp_checksum(&[0; 12]).is_some());
    }

    proptest! {
        #[test]
        fn a_change_is_what_computing_anew_gives(
            mut bytes in proptest::collection::vec(any::<u8>(), 2..3000), at: proptest::sample::Index, new: u16,
        ) {
            let at = at.index(bytes.len() - 1);
            let before = Crc32c::NEW.bytes(&bytes).value();
            let old = u16::from_be_bytes([bytes[at], bytes[at + 1]]);
            bytes[at..at + 2].copy_from_slice(&new.to_be_bytes());
            let following = (bytes.len() - at - 2) as u16;
            prop_assert_eq!(before ^ change(old, new, following), Crc32c::NEW.bytes(&bytes).value());
        }

        #[test]
        fn pieces_add_up(bytes in proptest::collection::vec(any::<u8>(), 0..300), cut in 0_usize..300) {
            let (a, b) = bytes.split_at(cut.min(bytes.len()));
            let mut bitwise = !0_u32;
            for byte in &bytes {
                bitwise ^= u32::from(*byte);
                for _ in 0..8 {
                    bitwise = if bitwise & 1 == 1 { bitwise >> 1 ^ POLYNOMIAL } else { bitwise >> 1 };
                }
            }
            prop_assert_eq!(Crc32c::NEW.bytes(a).bytes(b).value(), !bitwise);
        }
    }
}
