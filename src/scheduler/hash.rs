//! The kernel's hashes, bit for bit and without a secret: directors with the same real servers have to agree on who
//! gets a client. Sources: `hash.h`, `siphash.c` and the `hashkey` functions of `ip_vs_sh.c`, `ip_vs_dh.c` and
//! `ip_vs_mh.c`.

use std::net::IpAddr;

/// 2^32 / golden ratio, GOLDEN_RATIO_32.
const GOLDEN_RATIO: u32 = 0x61C8_8647;

/// An address in 32 bits: an IPv6 address's four words, one over the other.
pub(super) fn fold(address: IpAddr) -> u32 {
    match address {
        IpAddr::V4(address) => u32::from(address),
        IpAddr::V6(address) => {
            let bits = u128::from(address);
            [96, 64, 32, 0].into_iter().fold(0, |sum, shift| sum ^ (bits >> shift) as u32)
        }
    }
}

/// `hash_32`: the top `bits` of a multiplication, 1 to 32 of them.
pub(super) const fn multiplicative(value: u32, bits: u32) -> u32 {
    value.wrapping_mul(GOLDEN_RATIO) >> (32 - bits)
}

/// `hsiphash` of one word as a 64-bit kernel has it: the low half of SipHash-1-3, the word's bytes in little-endian
/// order, the key both of its halves.
pub(super) const fn siphash(value: u32, key: u64) -> u32 {
    /// "somepseudorandomlygeneratedbytes"
    const START: [u64; 4] =
        [0x736f_6d65_7073_6575, 0x646f_7261_6e64_6f6d, 0x6c79_6765_6e65_7261, 0x7465_6462_7974_6573];
    const LENGTH: u64 = 4;
    let block = LENGTH << 56 | value as u64;
    let mut state = [START[0] ^ key, START[1] ^ key, START[2] ^ key, START[3] ^ key ^ block];
    state = sip_round(state);
    state[0] ^= block;
    state[2] ^= 0xff;
    state = sip_round(sip_round(sip_round(state)));
    (state[0] ^ state[1] ^ state[2] ^ state[3]) as u32
}

const fn sip_round([mut a, mut b, mut c, mut d]: [u64; 4]) -> [u64; 4] {
    a = a.wrapping_add(b);
    b = b.rotate_left(13) ^ a;
    a = a.rotate_left(32);
    c = c.wrapping_add(d);
    d = d.rotate_left(16) ^ c;
    a = a.wrapping_add(d);
    d = d.rotate_left(21) ^ a;
    c = c.wrapping_add(b);
    b = b.rotate_left(17) ^ c;
    c = c.rotate_left(32);
    [a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv6_addresses_are_folded() {
        assert_eq!(fold("2001:db8::1".parse().unwrap()), 0x2001_0db8 ^ 1);
        assert_eq!(fold("192.0.2.1".parse().unwrap()), 0xc000_0201);
    }

    #[test]
    fn the_top_bits_are_taken() {
        assert_eq!(multiplicative(1, 8), 0x61);
        assert_eq!(multiplicative(1, 32), GOLDEN_RATIO);
    }

    /// As CPython from 3.11 on hashes bytes under `PYTHONHASHSEED=0`: SipHash-1-3 with a key of zeroes.
    #[test]
    fn it_is_siphash() {
        let rows = [(0, 0x9ac4_8af0), (1, 0xc37b_7090), (0x0a58_8001, 0x612d_7f7f), (u32::MAX, 0x74ca_d6e2)];
        for (value, expected) in rows {
            assert_eq!(siphash(value, 0), expected, "{value:#x}");
        }
    }
}
