//! A keyed hash of two words, for tables whose keys an attacker may choose.

/// The secret of one table. Whoever makes a table draws it at random; tests and replay pass their own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HashKey([u64; 2]);

/// Odd constants with half of their bits set, so that an all-zero input still meets a full multiplier
/// (the first digits of the fractional part of pi).
const PI: [u64; 2] = [0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7345];

impl HashKey {
    /// A key of the caller's choosing.
    pub const fn new(words: [u64; 2]) -> Self {
        Self(words)
    }

    /// Hashes the words of a flow's key.
    ///
    /// Each pair is combined with secret words by a 64 x 64 -> 128 bit multiplication whose halves are
    /// folded: one multiplication a pair, and both the bucket (low bits) and the tag (high bits) depend on
    /// every input bit and on the secret, which is what defeats keys chosen to collide.
    #[inline]
    pub fn hash<const N: usize>(self, words: [u64; N]) -> u64 {
        let [mut a, b] = self.0;
        let mut pairs = words.chunks_exact(2);
        for pair in &mut pairs {
            a = fold(pair[0] ^ a ^ PI[0], pair[1] ^ b ^ PI[1]) ^ a.rotate_left(29);
        }
        for &word in pairs.remainder() {
            a = fold(word ^ a ^ PI[1], b ^ PI[0]) ^ a.rotate_left(29);
        }
        fold(a ^ PI[1], b ^ PI[0])
    }
}

#[inline]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product as u64) ^ ((product >> 64) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_input_bit_moves_about_half_of_the_output() {
        let key = HashKey::new([0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210]);
        for word in 0..2 {
            for bit in 0..64 {
                let mut total = 0;
                for sample in 0..64_u64 {
                    let input = [sample.wrapping_mul(PI[0]), sample.wrapping_mul(PI[1])];
                    let mut other = input;
                    other[word] ^= 1 << bit;
                    total += (key.hash(input) ^ key.hash(other)).count_ones();
                }
                let mean = f64::from(total) / 64.0;
                assert!((28.0..36.0).contains(&mean), "word {word} bit {bit}: {mean} bits change");
            }
        }
    }

    #[test]
    fn sequential_flows_spread_over_buckets() {
        let key = HashKey::new([7, 11]);
        let mut buckets = [0_u32; 256];
        for port in 0..65_536_u64 {
            buckets[(key.hash([0x0a00_0001_0a00_0002, port << 48 | 80 << 32 | 6]) >> 56) as usize] += 1;
        }
        // 256 expected in each, standard deviation 16: six of them either way.
        assert!(buckets.iter().all(|&count| (160..352).contains(&count)), "{buckets:?}");
    }

    #[test]
    fn the_key_changes_everything() {
        let input = [1, 2];
        assert_ne!(HashKey::new([1, 2]).hash(input), HashKey::new([1, 3]).hash(input));
    }
}
