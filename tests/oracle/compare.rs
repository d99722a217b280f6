//! What counts as the same: the rules of the recordings' own replay, and no others.

use uvs::wire::transport::Checked;
use uvs::wire::{self, Outcome as Parse};

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

/// Where an IP packet's parts are.
struct Layout {
    /// The transport's number.
    protocol: u8,
    /// Where its header begins; `None` in a later fragment.
    transport: Option<usize>,
    is_whole: bool,
}

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const FRAGMENT: u8 = 44;
const ICMPV6: u8 = 58;
const SCTP: u8 = 132;

fn is_v4(packet: &[u8]) -> bool {
    packet[0] >> 4 == 4
}

fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn layout(packet: &[u8]) -> Layout {
    if is_v4(packet) {
        let fragment = word(packet, 6);
        let transport = (fragment & 0x1fff == 0).then(|| usize::from(packet[0] & 15) * 4);
        return Layout { protocol: packet[9], transport, is_whole: fragment & 0x3fff == 0 };
    }
    match packet[6] {
        FRAGMENT => {
            let transport = (word(packet, 42) & 0xfff8 == 0).then_some(48);
            Layout { protocol: packet[40], transport, is_whole: false }
        }
        protocol => Layout { protocol, transport: Some(40), is_whole: true },
    }
}

/// Source and destination.
fn addresses(packet: &[u8]) -> (&[u8], &[u8]) {
    if is_v4(packet) { packet[12..20].split_at(4) } else { packet[8..40].split_at(16) }
}

/// Whether the packet's checksums are right: of its IPv4 header, and of TCP, UDP and ICMP in whole packets.
fn checksums_are_right(packet: &[u8]) -> bool {
    if is_v4(packet) && sum(0, &packet[..usize::from(packet[0] & 15) * 4]) != 0xffff {
        return false;
    }
    let Layout { protocol, transport: Some(at), is_whole: true } = layout(packet) else { return true };
    let segment = &packet[at..];
    let (source, destination) = addresses(packet);
    let pseudo_header = sum(sum(u32::from(protocol) + segment.len() as u32, source), destination);
    match protocol {
        ICMP => sum(0, segment) == 0xffff,
        UDP if segment.get(6..8).is_some_and(|field| field == [0, 0]) => is_v4(packet),
        TCP | UDP | ICMPV6 => sum(pseudo_header, segment) == 0xffff,
        _ => true,
    }
}

/// The IP packet in an Ethernet frame, without padding.
pub(crate) fn packet(frame: &[u8]) -> Option<&[u8]> {
    let bytes = frame.get(14..)?;
    let length = match frame[12..14] {
        [0x08, 0x00] => usize::from(word(bytes, 2)),
        [0x86, 0xdd] => 40 + usize::from(word(bytes, 4)),
        _ => return None,
    };
    bytes.get(..length)
}

/// Takes out the identification of a packet where its cause's is another: the director chose it.
fn hide_identification(bytes: &mut [u8], cause: Option<&[u8]>) {
    let place = match is_v4(bytes) {
        true if bytes[4..6] == [0, 0] => return,
        true => 4..6,
        false if bytes[6] == FRAGMENT => 44..48,
        false => return,
    };
    // An ICMP error about something else is the director's own, whatever number it happens to have.
    let is_own = layout(bytes).protocol == ICMP && cause.is_some_and(|cause| layout(cause).protocol != ICMP);
    let of_cause = cause
        .filter(|_| !is_own)
        .filter(|cause| is_v4(cause) == is_v4(bytes) && (is_v4(cause) || cause[6] == FRAGMENT));
    if of_cause.is_none_or(|cause| cause[place.clone()] != bytes[place.clone()]) {
        bytes[place].fill(0xee);
    }
}

/// Whether a packet has `cause` in it, one hop older, behind headers of a tunnel.
fn is_tunnelled(bytes: &[u8], cause: &[u8]) -> bool {
    /// Up to where a hop changes a header of IPv4; IPv6 ends that before.
    const CHANGED: usize = 12;
    let Some(cause) = packet(cause) else { return false };
    !matches!(layout(bytes).protocol, ICMP | ICMPV6)
        && bytes.len() >= cause.len() + 20
        && bytes.ends_with(&cause[CHANGED..])
}

/// Takes out what the director chose of a tunnel's headers: an identification, which is 0 only where nothing may be
/// fragmented, and the port that GUE is sent from.
fn hide_tunnel(bytes: &mut [u8]) {
    if is_v4(bytes) && (bytes[4..6] != [0, 0] || bytes[6] & 0x40 == 0) {
        bytes[4..6].fill(0xee);
    }
    if let Layout { protocol: UDP, transport: Some(at), .. } = layout(bytes) {
        bytes[at..at + 2].fill(0xee);
    }
}

/// A frame in the form that is compared.
pub(crate) type Comparable = (Vec<u8>, Vec<u8>, bool);

/// A frame that was sent for `cause`, in the form that is compared: link address, packet, and whether its checksums are
/// right, with their values and identifications of the director's own taken out.
pub(crate) fn comparable(frame: &[u8], cause: &[u8]) -> Comparable {
    let Some(bytes) = packet(frame) else { return (frame[..6].to_vec(), frame[14..].to_vec(), true) };
    let right = checksums_are_right(bytes);
    let mut bytes = bytes.to_vec();
    if is_tunnelled(&bytes, cause) {
        hide_tunnel(&mut bytes);
    } else {
        hide_identification(&mut bytes, packet(cause));
    }
    if is_v4(&bytes) {
        bytes[10..12].fill(0);
    }
    if let Layout { protocol, transport: Some(at), .. } = layout(&bytes) {
        match protocol {
            TCP if bytes.len() >= at + 18 => bytes[at + 16..at + 18].fill(0),
            UDP if bytes.len() >= at + 8
                && (bytes[at + 6..at + 8] != [0, 0] || is_translated_without_checksum(&bytes, cause)) =>
            {
                bytes[at + 6..at + 8].copy_from_slice(&[0, 1]);
            }
            SCTP if bytes.len() >= at + 12 && is_translated_with_a_wrong_crc(&bytes, cause) => {
                bytes[at + 8..at + 12].fill(0);
            }
            ICMP => {
                bytes[at + 2..at + 4].fill(0);
                if bytes.len() >= at + 20 && matches!(bytes[at], 3 | 4 | 5 | 11 | 12) {
                    bytes[at + 18..at + 20].fill(0);
                }
            }
            ICMPV6 => bytes[at + 2..at + 4].fill(0),
            _ => {}
        }
    }
    (frame[..6].to_vec(), bytes, right)
}

/// Whether a packet is `cause` with other addresses, and the CRC of that is wrong: the kernel makes it right, the director
/// leaves it as wrong as it was, so that the receiver notices.
fn is_translated_with_a_wrong_crc(bytes: &[u8], cause: &[u8]) -> bool {
    let translated = packet(cause)
        .is_some_and(|cause| is_v4(cause) == is_v4(bytes) && addresses(cause) != addresses(bytes));
    let Parse::Packet(parsed) = wire::parse(cause) else { return false };
    translated && wire::transport::verify(cause, &parsed) == Checked::Wrong
}

/// Whether a UDP packet is `cause` with other addresses, and that has no checksum: the kernel fills one in, the director
/// leaves it out over IPv4, which is a difference that its documentation lists.
fn is_translated_without_checksum(bytes: &[u8], cause: &[u8]) -> bool {
    packet(cause).filter(|cause| is_v4(cause) && is_v4(bytes)).is_some_and(|cause| {
        let Layout { protocol, transport: Some(at), .. } = layout(cause) else { return false };
        protocol == UDP && cause.get(at + 6..at + 8) == Some(&[0, 0]) && addresses(cause) != addresses(bytes)
    })
}

/// Whether `answer` is what the host's own stack answers to `cause`: a reset, an unreachable port or protocol, an echo.
pub(crate) fn is_host_answer(answer: &[u8], cause: &[u8]) -> bool {
    const RST: u8 = 4;
    let (Some(answer), Some(cause)) = (packet(answer), packet(cause)) else { return false };
    let (source, destination) = addresses(answer);
    if (destination, source) != addresses(cause) {
        return false;
    }
    let Layout { protocol, transport: Some(at), .. } = layout(answer) else { return false };
    match protocol {
        TCP => answer[at + 13] & RST != 0,
        ICMP => matches!(answer[at..at + 2], [3, 2 | 3] | [0, 0]),
        ICMPV6 => matches!(answer[at..at + 2], [1, 4] | [4, 1] | [129, 0]),
        _ => false,
    }
}

/// Whether `answer` is `cause` as a router sends it on, one hop older: the host does that.
pub(crate) fn is_routed(answer: &[u8], cause: &[u8]) -> bool {
    let (Some(answer), Some(cause)) = (packet(answer), packet(cause)) else { return false };
    let mut expected = cause.to_vec();
    let (lifetime, checksum) = if is_v4(cause) { (8, 10..12) } else { (7, 0..0) };
    expected[lifetime] = expected[lifetime].wrapping_sub(1);
    expected[checksum.clone()].copy_from_slice(&answer[checksum]);
    answer == expected
}

/// Whether the packet is a TCP segment that resets: nobody answers that.
pub(crate) fn is_reset(frame: &[u8]) -> bool {
    packet(frame).is_some_and(|bytes| match layout(bytes) {
        Layout { protocol: TCP, transport: Some(at), .. } => {
            bytes.get(at + 13).is_some_and(|flags| flags & 4 != 0)
        }
        _ => false,
    })
}

/// Whether the packet is an ICMP error: nobody answers that.
pub(crate) fn is_icmp_error(frame: &[u8]) -> bool {
    packet(frame).is_some_and(|bytes| match layout(bytes) {
        Layout { protocol: ICMP, transport: Some(at), .. } => {
            bytes.get(at).is_some_and(|kind| matches!(kind, 3 | 4 | 5 | 11 | 12))
        }
        Layout { protocol: ICMPV6, transport: Some(at), .. } => bytes.get(at).is_some_and(|kind| *kind < 128),
        _ => false,
    })
}

/// Whether an ICMPv6 error is `cause`, from the servers' side, as its receiver has to get it: from the virtual service,
/// and about a packet to that. The kernel drops it, for it verifies its checksum without the pseudo header; the
/// director does not, which is a difference that its documentation lists.
pub(crate) fn is_translated_error_over_ipv6(frame: &[u8], cause: &[u8]) -> bool {
    let (Some(bytes), Some(cause_bytes)) = (packet(frame), packet(cause)) else { return false };
    if is_v4(bytes) || is_v4(cause_bytes) || !is_icmp_error(cause) || !is_icmp_error(frame) {
        return false;
    }
    let Layout { transport: Some(at), .. } = layout(bytes) else { return false };
    let ((service, client), (_, asked)) = (addresses(bytes), addresses(cause_bytes));
    let quoted = bytes.get(at + 8..).filter(|quoted| quoted.len() >= 40);
    checksums_are_right(bytes)
        && client == asked
        && quoted.is_some_and(|quoted| addresses(quoted) == (client, service))
        && cause_bytes.get(at + 8..).is_some_and(|quoted| addresses(quoted).1 != service)
}

/// `MINUTES:SECONDS` in seconds.
pub(crate) fn expiry(word: &str) -> Option<i64> {
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
