//! Numbers in columns.

/// A counter nine columns wide, shortened to thousands (K), millions (M), billions (G) or more (T) where it has nine
/// digits and more; in full, and as wide as that takes, if `exact`.
pub(super) fn counter(number: u64, exact: bool) -> String {
    const SHORTENED: [(u64, u64, char); 3] = [
        (1_000_000_000, 1_000, 'K'),
        (100_000_000_000, 1_000_000, 'M'),
        (100_000_000_000_000, 1_000_000_000, 'G'),
    ];
    if exact || number < 100_000_000 {
        return plain(number);
    }
    let (unit, letter) = SHORTENED
        .iter()
        .find(|(limit, ..)| number < *limit)
        .map_or((1_000_000_000_000, 'T'), |&(_, unit, letter)| (unit, letter));
    format!("{:>8}{letter}", number / unit)
}

/// A number in full, with at least one blank before it.
pub(super) fn plain(number: u64) -> String {
    format!(" {number:>8}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_shortened_as_recorded() {
        for (number, short, exact) in [
            (7, "        7", "        7"),
            (99_999_999, " 99999999", " 99999999"),
            (100_000_000, "  100000K", " 100000000"),
            (999_999_999, "  999999K", " 999999999"),
            (1_000_000_000, "    1000M", " 1000000000"),
            (99_999_999_999, "   99999M", " 99999999999"),
            (100_000_000_000, "     100G", " 100000000000"),
            (99_999_999_999_999, "   99999G", " 99999999999999"),
            (100_000_000_000_000, "     100T", " 100000000000000"),
            (u64::MAX, "18446744T", " 18446744073709551615"),
        ] {
            assert_eq!(counter(number, false), short);
            assert_eq!(counter(number, true), exact);
        }
    }
}
