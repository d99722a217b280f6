//! What counts as the same: the rules of the recordings' own replay, and no others.

use super::lab::Outcome;

/// The one's complement sum of `bytes`, added to `sum`, folded.
fn sum(sum: u32, bytes: &[u8]) -> u32 {
    let words =
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0)));
    let mut total = words.fold(sum, |total, word| total + word);
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    total
}

/// Offset in an IPv4 packet of what follows its header.
fn header_length(packet: &[u8]) -> usize {
    usize::from(packet[0] & 15) * 4
}

fn fragment_offset(packet: &[u8]) -> u16 {
    u16::from_be_bytes([packet[6], packet[7]]) & 0x1fff
}

/// Whether the packet's checksums are right: of its IPv4 header, and of TCP, UDP and ICMP in whole packets.
fn checksums_are_right(packet: &[u8]) -> bool {
    let (header, rest) = packet.split_at(header_length(packet));
    if sum(0, header) != 0xffff {
        return false;
    }
    if u16::from_be_bytes([packet[6], packet[7]]) & 0x3fff != 0 {
        return true;
    }
    let protocol = packet[9];
    let pseudo_header = sum(u32::from(protocol) + rest.len() as u32, &packet[12..20]);
    match protocol {
        1 => sum(0, rest) == 0xffff,
        6 => sum(pseudo_header, rest) == 0xffff,
        17 => rest.get(6..8).is_some_and(|field| field == [0, 0]) || sum(pseudo_header, rest) == 0xffff,
        _ => true,
    }
}

/// The IPv4 packet in an Ethernet frame, without padding.
pub(crate) fn packet(frame: &[u8]) -> Option<&[u8]> {
    let bytes = frame.strip_prefix(&frame[..12])?.strip_prefix(&[8, 0])?;
    let length = usize::from(u16::from_be_bytes([*bytes.get(2)?, *bytes.get(3)?]));
    bytes.get(..length)
}

/// A frame in the form that is compared.
pub(crate) type Comparable = (Vec<u8>, Vec<u8>, bool);

/// A frame that was sent for `cause`, in the form that is compared: link address, packet, and whether its checksums are
/// right, with their values and identifications of the director's own taken out.
pub(crate) fn comparable(frame: &[u8], cause: &[u8]) -> Comparable {
    let Some(bytes) = packet(frame) else { return (frame[..6].to_vec(), frame[14..].to_vec(), true) };
    let right = checksums_are_right(bytes);
    let mut bytes = bytes.to_vec();
    let its_cause = packet(cause).map(|cause| [cause[4], cause[5]]);
    if bytes[4..6] != [0, 0] && its_cause.as_ref().is_none_or(|cause| bytes[4..6] != cause[..]) {
        bytes[4..6].fill(0xee);
    }
    bytes[10..12].fill(0);
    let at = header_length(&bytes);
    if fragment_offset(&bytes) == 0 {
        match bytes[9] {
            6 if bytes.len() >= at + 18 => bytes[at + 16..at + 18].fill(0),
            17 if bytes.len() >= at + 8 && bytes[at + 6..at + 8] != [0, 0] => {
                bytes[at + 6..at + 8].copy_from_slice(&[0, 1]);
            }
            1 => {
                bytes[at + 2..at + 4].fill(0);
                if bytes.len() >= at + 20 && matches!(bytes[at], 3 | 4 | 5 | 11 | 12) {
                    bytes[at + 18..at + 20].fill(0);
                }
            }
            _ => {}
        }
    }
    (frame[..6].to_vec(), bytes, right)
}

/// Whether `answer` is what the host's own stack answers to `cause`: a reset, an unreachable port, an echo.
pub(crate) fn is_host_answer(answer: &[u8], cause: &[u8]) -> bool {
    const RST: u8 = 4;
    let (Some(answer), Some(cause)) = (packet(answer), packet(cause)) else { return false };
    if (&answer[12..16], &answer[16..20]) != (&cause[16..20], &cause[12..16]) {
        return false;
    }
    let at = header_length(answer);
    match answer[9] {
        6 => answer[at + 13] & RST != 0,
        1 => matches!(answer[at..at + 2], [3, 3] | [0, 0]),
        _ => false,
    }
}

/// Whether the packet is a TCP segment that resets: nobody answers that.
pub(crate) fn is_reset(frame: &[u8]) -> bool {
    packet(frame).is_some_and(|bytes| bytes[9] == 6 && bytes[header_length(bytes) + 13] & 4 != 0)
}

/// `MINUTES:SECONDS` in seconds.
fn expiry(word: &str) -> Option<i64> {
    let (minutes, seconds) = word.split_once(':')?;
    if minutes.len() < 2 || seconds.len() != 2 {
        return None;
    }
    Some(minutes.parse::<i64>().ok()? * 60 + seconds.parse::<i64>().ok()?)
}

/// A listing's rows, in an order that does not depend on when they expire.
fn rows(text: &str) -> Vec<Vec<&str>> {
    let lines = text.lines().filter(|line| !line.starts_with("IP Virtual Server"));
    let mut rows: Vec<Vec<&str>> =
        lines.map(|line| line.split_whitespace().collect::<Vec<_>>()).filter(|row| !row.is_empty()).collect();
    rows.sort_by_key(|row| row.iter().copied().filter(|word| expiry(word).is_none()).collect::<Vec<_>>());
    rows
}

/// Whether two texts have the same rows, two seconds of expiry aside.
pub(crate) fn same_listing(got: &str, recorded: &str) -> bool {
    let same = |(got, recorded): (&&str, &&str)| {
        got == recorded
            || expiry(got).zip(expiry(recorded)).is_some_and(|(got, recorded)| (got - recorded).abs() <= 2)
    };
    let (got, recorded) = (rows(got), rows(recorded));
    got.len() == recorded.len()
        && got
            .iter()
            .zip(&recorded)
            .all(|(got, recorded)| got.len() == recorded.len() && got.iter().zip(recorded).all(same))
}

/// A listing of counters without them: the kernel copies them every two seconds, so what a recording has is of before.
pub(crate) fn without_counters(text: &str) -> String {
    let is_count = |word: &str| word.bytes().all(|byte| byte.is_ascii_digit());
    text.lines()
        .map(|line| {
            line.split_whitespace().filter(|word| !is_count(word)).collect::<Vec<_>>().join(" ") + "\n"
        })
        .collect()
}

/// Both streams, as the recordings' replay compares them.
pub(crate) fn printed(outcome: &Outcome) -> String {
    format!("{}{}", outcome.stdout, outcome.stderr)
}

#[test]
fn expiries_are_told_from_endpoints_and_may_differ_by_two_seconds() {
    assert_eq!(
        [expiry("14:59"), expiry("1499:59"), expiry("10.0.0.1:80"), expiry("9:80")],
        [Some(899), Some(89_999), None, None]
    );
    assert!(same_listing("TCP 01:00 X a\nTCP 00:10 Y b\n", "TCP 00:09 Y b\nTCP 00:58 X a"));
    assert!(!same_listing("TCP 01:00 X a\n", "TCP 00:57 X a\n"));
    assert!(!same_listing("TCP 01:00 X a\n", "TCP 00:59 Z a\n"));
    assert!(!same_listing("TCP 01:00 X a\n", ""));
}
