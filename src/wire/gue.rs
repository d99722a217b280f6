//! Generic UDP encapsulation, variant 0 (draft-ietf-intarea-gue), as Linux speaks it: behind a UDP header.

/// Bytes of the header without options.
pub const HEADER_LENGTH: usize = 4;
/// Bits of the first byte: the variant.
const VARIANT: u8 = 0xc0;
/// Whether it is a control message and no packet.
const CONTROL: u8 = 0x20;
/// Length of the options, in words of 4 bytes.
const OPTIONS_LENGTH: u8 = 0x1f;

/// The header, without options, of a packet of this protocol.
pub const fn header(protocol: u8) -> [u8; HEADER_LENGTH] {
    [0, protocol, 0, 0]
}

/// Reads the header that `bytes` begin with: the protocol of what follows it, and where that begins. `None` where it
/// is cut off, a control message, or another variant (such as IP without a header).
pub fn parse(bytes: &[u8]) -> Option<(u8, usize)> {
    let &[first, protocol, ..] = bytes.first_chunk::<HEADER_LENGTH>()?;
    let length = HEADER_LENGTH + usize::from(first & OPTIONS_LENGTH) * 4;
    (first & (VARIANT | CONTROL) == 0 && length <= bytes.len()).then_some((protocol, length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_as_far_as_they_are_there() {
        type Row<'a> = (&'a str, &'a [u8], Option<(u8, usize)>);
        let rows: [Row<'_>; 7] = [
            ("no options", &header(4), Some((4, 4))),
            ("options", &[2, 41, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 9], Some((41, 12))),
            ("options cut off", &[2, 41, 0, 1, 0, 0, 0, 0, 0, 0, 0], None),
            ("cut off", &[0, 4, 0], None),
            ("nothing", &[], None),
            ("control message", &[0x20, 4, 0, 0], None),
            ("variant 1: IPv4 without a header", &[0x45, 0, 0, 40], None),
        ];
        for (what, bytes, expected) in rows {
            assert_eq!(parse(bytes), expected, "{what}");
        }
    }
}
