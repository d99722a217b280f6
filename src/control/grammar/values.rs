//! Values of options: numbers, addresses, names of flags.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::control::command::{Netmask, SCHEDULER_FLAGS};
use crate::control::names::Names;
use crate::types::{Family, Protocol};

/// The longest timeout that is accepted anywhere, in seconds: 31 days.
pub(super) const MAX_TIMEOUT: u32 = 31 * 24 * 60 * 60;
/// The largest weight and threshold.
pub(super) const MAX_COUNT: u32 = i32::MAX as u32;

/// Reads a decimal number within `low..=high` as `strtol` does: blanks and a sign may lead, nothing may follow.
pub(super) fn number(text: &str, low: u32, high: u32) -> Option<u32> {
    let text = text.trim_start_matches(|c: char| c.is_ascii_whitespace() || c == '\x0b');
    let digits = text.strip_prefix('+').unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok().filter(|number| (low..=high).contains(number))
}

/// Reads an IPv4 address as `inet_aton` does: one to four parts, decimal, octal (leading 0) or hexadecimal (0x),
/// the last part filling what remains. A blank ends it.
pub(in crate::control) fn ipv4(text: &str) -> Option<Ipv4Addr> {
    let text = text.split(|c: char| c.is_ascii_whitespace()).next().unwrap_or_default();
    let parts = text.split('.').map(ipv4_part).collect::<Option<Vec<u32>>>()?;
    let (&last, leading) = parts.split_last()?;
    if leading.len() > 3 || leading.iter().any(|&part| part > 255) {
        return None;
    }
    let room = 32 - 8 * leading.len() as u32;
    if u64::from(last) >= 1 << room {
        return None;
    }
    let high = leading.iter().enumerate().fold(0, |sum, (at, &part)| sum | part << (24 - 8 * at));
    Some(Ipv4Addr::from(high | last))
}

fn ipv4_part(text: &str) -> Option<u32> {
    let (digits, radix) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None if text.len() > 1 && text.starts_with('0') => (text, 8),
        None => (text, 10),
    };
    if !digits.chars().all(|c| c.is_digit(radix)) {
        return None;
    }
    u32::from_str_radix(digits, radix).ok()
}

/// Why an address was not understood.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum BadAddress {
    /// The words of the recordings say all there is to say.
    Plain,
    /// A name that nothing knows.
    Unresolved(String),
    /// Two digits stand the wrong way round, it seems.
    Swapped(Ipv4Addr),
}

/// Reads `host`, `host:port` or `[host]:port`; the port may be a service's name under `protocol`.
pub(super) fn endpoint(
    text: &str,
    protocol: Option<Protocol>,
    names: &dyn Names,
) -> Result<(IpAddr, Option<u16>), BadAddress> {
    let (host, port_text) = split_endpoint(text).ok_or(BadAddress::Plain)?;
    let address = host_address(host, names)?;
    let Some(port_text) = port_text else { return Ok((address, None)) };
    let port = match number(port_text, 0, u32::from(u16::MAX)) {
        Some(port) => u16::try_from(port).ok(),
        None => protocol.and_then(|protocol| names.port_of(port_text, protocol)),
    };
    port.map(|port| (address, Some(port))).ok_or(BadAddress::Plain)
}

fn split_endpoint(text: &str) -> Option<(&str, Option<&str>)> {
    if let Some(inner) = text.strip_prefix('[') {
        let (host, rest) = inner.split_once(']')?;
        return rest.strip_prefix(':').map(|port| (host, Some(port)));
    }
    if text.matches(':').count() > 1 {
        return Some((text, None));
    }
    match text.split_once(':') {
        Some((host, port)) => Some((host, Some(port))),
        None => Some((text, None)),
    }
}

fn host_address(host: &str, names: &dyn Names) -> Result<IpAddr, BadAddress> {
    if host.contains(':') {
        return host.parse::<Ipv6Addr>().map(IpAddr::V6).map_err(|_| BadAddress::Plain);
    }
    if let Some(address) = ipv4(host) {
        return Ok(IpAddr::V4(address));
    }
    // What has no letter is a number gone wrong: no name server is asked about it.
    if !host.contains(|c: char| c.is_alphabetic()) {
        return Err(swapped_digits(host).map_or(BadAddress::Plain, BadAddress::Swapped));
    }
    names.address_of(host).ok_or_else(|| BadAddress::Unresolved(host.to_owned()))
}

/// The address that `host` becomes when two neighbouring digits change places, if there is just one such address.
fn swapped_digits(host: &str) -> Option<Ipv4Addr> {
    // The longest text of an IPv4 address.
    const LONGEST: usize = 15;
    if host.len() > LONGEST || !host.is_ascii() {
        return None;
    }
    let mut found = None;
    for at in 1..host.len() {
        let mut bytes = host.as_bytes().to_vec();
        if bytes[at - 1] == bytes[at] || !(bytes[at - 1].is_ascii_digit() && bytes[at].is_ascii_digit()) {
            continue;
        }
        bytes.swap(at - 1, at);
        let candidate = std::str::from_utf8(&bytes).ok().and_then(|text| text.parse::<Ipv4Addr>().ok());
        match (found, candidate) {
            (Some(_), Some(_)) => return None,
            (None, Some(_)) => found = candidate,
            (_, None) => {}
        }
    }
    found
}

/// Reads `-M` for `family`: a dotted mask, or a prefix length for IPv6.
pub(super) fn netmask(text: &str, family: Family) -> Option<Netmask> {
    match family {
        Family::V4 => ipv4(text).map(Netmask::V4),
        Family::V6 => number(text, 1, 128).and_then(|length| u8::try_from(length).ok()).map(Netmask::V6),
    }
}

/// Why `-b` was not understood.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum BadFlag {
    /// No scheduler has it.
    Unknown(String),
    /// Another scheduler has it.
    Incompatible(String),
}

/// Reads `-b`, a list with commas; empty elements are skipped.
pub(super) fn scheduler_flags(text: &str, scheduler: &str) -> Result<u32, BadFlag> {
    let mut flags = 0;
    for word in text.split(',').filter(|word| !word.is_empty()) {
        let (owner, flag) = match word {
            "flag-1" => (None, 0),
            "flag-2" => (None, 1),
            "flag-3" => (None, 2),
            "sh-fallback" => (Some("sh"), 0),
            "sh-port" => (Some("sh"), 1),
            "mh-fallback" => (Some("mh"), 0),
            "mh-port" => (Some("mh"), 1),
            _ => return Err(BadFlag::Unknown(word.to_owned())),
        };
        if owner.is_some_and(|owner| owner != scheduler) {
            return Err(BadFlag::Incompatible(word.to_owned()));
        }
        flags |= SCHEDULER_FLAGS[flag];
    }
    Ok(flags)
}

/// Reads `--mcast-group`. The error is the family that the text looks like.
pub(super) fn multicast_group(text: &str) -> Result<IpAddr, Family> {
    if text.contains(':') {
        let group = text.parse::<Ipv6Addr>().ok().filter(Ipv6Addr::is_multicast);
        return group.map(IpAddr::V6).ok_or(Family::V6);
    }
    let group = text.parse::<Ipv4Addr>().ok().filter(Ipv4Addr::is_multicast);
    group.map(IpAddr::V4).ok_or(Family::V4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_strtol_reads_them() {
        for (text, expected) in [
            ("5", Some(5)),
            ("010", Some(10)),
            ("+5", Some(5)),
            (" 5", Some(5)),
            ("5 ", None),
            ("", None),
            ("+", None),
            ("-1", None),
            ("0x10", None),
            ("11", None),
            ("99999999999999999999", None),
        ] {
            assert_eq!(number(text, 0, 10), expected, "{text:?}");
        }
    }

    #[test]
    fn ipv4_addresses_are_read_as_inet_aton_reads_them() {
        for (text, expected) in [
            ("1.2.3.4", Some([1, 2, 3, 4])),
            ("1.2.3", Some([1, 2, 0, 3])),
            ("16909060", Some([1, 2, 3, 4])),
            ("0x01020304", Some([1, 2, 3, 4])),
            ("01.02.03.010", Some([1, 2, 3, 8])),
            ("1.2.3.4 x", Some([1, 2, 3, 4])),
            ("1.2.3.256", None),
            ("1.2.65536", None),
            ("1.2.65535", Some([1, 2, 255, 255])),
            ("256.1", None),
            ("1.2.3.4.5", None),
            ("4294967296", None),
            ("1..2", None),
            ("1.+2.3.4", None),
            ("08.1.1.1", None),
            ("", None),
        ] {
            assert_eq!(ipv4(text), expected.map(Ipv4Addr::from), "{text:?}");
        }
    }

    #[test]
    fn swapped_digits_are_found_when_there_is_one_way_only() {
        assert_eq!(swapped_digits("912.168.0.1"), Some(Ipv4Addr::new(192, 168, 0, 1)));
        for text in ["10.88.0.300", "300.1.1.1", "", "1.2.3.4.5", "999.999.999.9999999"] {
            assert_eq!(swapped_digits(text), None, "{text}");
        }
    }
}
