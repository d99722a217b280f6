//! The Internet checksum: whole (RFC 1071) and incremental (RFC 1624, equation 3).

use super::Addresses;

/// A one's complement sum in the making.
///
/// Words are added in the machine's own byte order and the result is swapped once at the end, which the sum
/// allows (RFC 1071, section 2 (B)); so bytes need no swapping while they are added up.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Sum(u64);

impl Sum {
    /// The sum of nothing.
    pub const ZERO: Self = Self(0);

    /// Adds bytes that begin at an even offset of what is summed; an odd last byte is padded with a zero.
    ///
    /// Meant for packets: fewer than 2^32 words may be added to one sum before it could overflow.
    #[inline]
    #[must_use]
    pub fn bytes(self, bytes: &[u8]) -> Self {
        let mut sum = self.0;
        let (words, rest) = bytes.as_chunks::<8>();
        for &word in words {
            let word = u64::from_ne_bytes(word);
            sum += (word & 0xffff_ffff) + (word >> 32);
        }
        let (words, rest) = rest.as_chunks::<4>();
        for &word in words {
            sum += u64::from(u32::from_ne_bytes(word));
        }
        let (words, rest) = rest.as_chunks::<2>();
        for &word in words {
            sum += u64::from(u16::from_ne_bytes(word));
        }
        if let [last] = *rest {
            sum += u64::from(u16::from_ne_bytes([last, 0]));
        }
        Self(sum)
    }

    /// Adds a 16-bit number.
    #[inline]
    #[must_use]
    pub const fn u16(self, value: u16) -> Self {
        Self(self.0 + value.to_be() as u64)
    }

    /// Adds a 32-bit number.
    #[inline]
    #[must_use]
    pub const fn u32(self, value: u32) -> Self {
        Self(self.0 + value.to_be() as u64)
    }

    /// Adds a 64-bit number.
    #[inline]
    #[must_use]
    pub const fn u64(self, value: u64) -> Self {
        self.u32((value >> 32) as u32).u32(value as u32)
    }

    /// Adds the pseudo-header that TCP, UDP and ICMPv6 sum in front of themselves (RFC 9293, section 3.1;
    /// RFC 8200, section 8.1). `length` counts the transport header and its payload, in bytes.
    #[inline]
    #[must_use]
    pub const fn pseudo_header(self, addresses: &Addresses, protocol: u8, length: u32) -> Self {
        let sum = match *addresses {
            Addresses::V4 { source, destination } => self.u32(source).u32(destination),
            Addresses::V6 { source, destination } => {
                self.u64(source[0]).u64(source[1]).u64(destination[0]).u64(destination[1])
            }
        };
        sum.u16(protocol as u16).u32(length)
    }

    /// The sum as a 16-bit number, carries folded in. 0xffff over bytes whose checksum field is right.
    #[inline]
    pub const fn fold(self) -> u16 {
        // Adding the halves to each other, one's complement: the carry out of the lower half is where it belongs,
        // and the upper half of the result is what is kept.
        let sum = (self.0.wrapping_add(self.0.rotate_left(32)) >> 32) as u32;
        u16::from_be((sum.wrapping_add(sum.rotate_left(16)) >> 16) as u16)
    }

    /// Whether the sum folds to 0xffff, as that of bytes whose checksum field is right. Cheaper than folding.
    #[inline]
    pub const fn is_right(self) -> bool {
        // Folding keeps the remainder by 0xffff, and leads to 0 only from 0.
        self.0.is_multiple_of(0xffff) && self.0 != 0
    }

    /// What belongs in the checksum field, where the field counted as zero.
    #[inline]
    pub const fn checksum(self) -> u16 {
        !self.fold()
    }
}

/// [`Sum::checksum`] as UDP sends it: a computed zero becomes 0xffff, for zero means "none" (RFC 768).
#[inline]
pub const fn never_zero(checksum: u16) -> u16 {
    if checksum == 0 { 0xffff } else { checksum }
}

/// What editing some fields does to the checksums that cover them.
///
/// Collect every edited field once, then apply the same change to each checksum: NAT gathers an address and a
/// port and applies them to the transport's checksum, and the address alone to the IPv4 header's.
/// RFC 1624, equation 3: `HC' = ~(~HC + ~m + m')`. (Equation 4 of RFC 1141 can yield a wrong zero.)
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Change(Sum);

impl Change {
    /// Nothing was edited.
    pub const NONE: Self = Self(Sum::ZERO);

    /// A 16-bit field, at an even offset, went from `old` to `new`.
    #[inline]
    #[must_use]
    pub const fn u16(self, old: u16, new: u16) -> Self {
        Self(self.0.u16(!old).u16(new))
    }

    /// A 32-bit field, at an even offset, went from `old` to `new`.
    #[inline]
    #[must_use]
    pub const fn u32(self, old: u32, new: u32) -> Self {
        Self(self.0.u32(!old).u32(new))
    }

    /// A 128-bit field, at an even offset, went from `old` to `new`: pairs as in [`Addresses::V6`].
    #[inline]
    #[must_use]
    pub const fn u128(self, old: [u64; 2], new: [u64; 2]) -> Self {
        Self(self.0.u64(!old[0]).u64(!old[1]).u64(new[0]).u64(new[1]))
    }

    /// The checksum after the edit, from the checksum before it. Right if and only if `checksum` was.
    #[inline]
    pub const fn apply(self, checksum: u16) -> u16 {
        self.0.u16(!checksum).checksum()
    }

    /// The same for a field that holds only a sum, not its complement, such as the pseudo-header's where the rest is
    /// left to a network card. Never 0, as in the kernel, unless everything summed is.
    #[inline]
    pub const fn apply_partial(self, sum: u16) -> u16 {
        self.0.u16(sum).fold()
    }

    /// The same for UDP: zero stays zero ("none"), and a computed zero becomes 0xffff.
    #[inline]
    pub const fn apply_udp(self, checksum: u16) -> u16 {
        if checksum == 0 { 0 } else { never_zero(self.apply(checksum)) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The checksum as RFC 1071's definition reads, word by word.
    fn by_definition(bytes: &[u8]) -> u16 {
        let mut sum = 0_u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    #[test]
    fn the_example_of_rfc_1071_adds_up() {
        // Section 3: the sum of these bytes is 0xddf2.
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(Sum::ZERO.bytes(&bytes).fold(), 0xddf2);
    }

    #[test]
    fn the_example_of_rfc_1624_comes_out_as_zero() {
        // Section 4: HC = 0xdd2f, m = 0x5555, m' = 0x3285 gives 0x0000, where RFC 1141 gave 0xffff.
        assert_eq!(Change::NONE.u16(0x5555, 0x3285).apply(0xdd2f), 0x0000);
    }

    #[test]
    fn udp_keeps_no_checksum_and_never_sends_a_computed_zero() {
        let change = Change::NONE.u16(0x5555, 0x3285);
        assert_eq!(change.apply_udp(0), 0);
        assert_eq!(change.apply_udp(0xdd2f), 0xffff);
    }

    #[test]
    fn the_largest_packet_of_ones_does_not_overflow() {
        let bytes = vec![0xff; 65_536];
        assert_eq!(Sum::ZERO.bytes(&bytes).fold(), 0xffff);
    }

    proptest! {
        #[test]
        fn fast_equals_the_definition(bytes in proptest::collection::vec(any::<u8>(), 0..1600)) {
            prop_assert_eq!(Sum::ZERO.bytes(&bytes).checksum(), by_definition(&bytes));
        }

        #[test]
        fn numbers_count_as_their_bytes(a: u16, b: u32, c: u64) {
            let mut bytes = Vec::from(a.to_be_bytes());
            bytes.extend(b.to_be_bytes());
            bytes.extend(c.to_be_bytes());
            prop_assert_eq!(Sum::ZERO.u16(a).u32(b).u64(c).fold(), Sum::ZERO.bytes(&bytes).fold());
        }

        #[test]
        fn incremental_equals_whole(
            mut bytes in proptest::collection::vec(any::<u8>(), 24..200),
            port: u16, word: u32, address: [u64; 2],
        ) {
            bytes[23] |= 1; // all zero is the one input with two right checksums
            let before = Sum::ZERO.bytes(&bytes).checksum();
            let old = |range: std::ops::Range<usize>| bytes[range].iter().fold(0_u64, |n, &b| n << 8 | u64::from(b));
            let change = Change::NONE
                .u16(old(0..2) as u16, port)
                .u32(old(2..6) as u32, word)
                .u128([old(6..14), old(14..22)], address);
            bytes[0..2].copy_from_slice(&port.to_be_bytes());
            bytes[2..6].copy_from_slice(&word.to_be_bytes());
            bytes[6..14].copy_from_slice(&address[0].to_be_bytes());
            bytes[14..22].copy_from_slice(&address[1].to_be_bytes());
            prop_assert_eq!(change.apply(before), Sum::ZERO.bytes(&bytes).checksum());
        }
    }
}
