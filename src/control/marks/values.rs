//! Values of iptables' options: networks, protocols, ports, marks.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::MarkSyntaxError;
use super::words::fail;
use crate::control::grammar::ipv4;
use crate::control::names::Names;
use crate::service::marks::{AddressMatch, MAX_MULTIPORT_PLACES, MarkTarget, PortMatch};
use crate::types::{Family, Protocol};

type Result<T> = std::result::Result<T, MarkSyntaxError>;

/// Protocols by name; of two names of one number, listings use the first.
const PROTOCOLS: &[(&str, u8)] = &[
    ("icmp", 1),
    ("igmp", 2),
    ("ipencap", 4),
    ("tcp", 6),
    ("udp", 17),
    ("dccp", 33),
    ("ipv6", 41),
    ("gre", 47),
    ("esp", 50),
    ("ah", 51),
    ("ipv6-icmp", 58),
    ("icmpv6", 58),
    ("ospf", 89),
    ("vrrp", 112),
    ("sctp", 132),
    ("udplite", 136),
];

/// The number of `-p`: a name in any case, or a number; 0 is `all`.
pub(super) fn protocol(text: &str) -> Result<u8> {
    let lower = text.to_ascii_lowercase();
    if lower == "all" {
        return Ok(0);
    }
    let named = PROTOCOLS.iter().find(|(name, _)| *name == lower).map(|&(_, number)| number);
    let number =
        named.or_else(|| unsigned(text, u8::MAX.into()).and_then(|number| u8::try_from(number).ok()));
    number.ok_or_else(|| MarkSyntaxError(format!("unknown protocol \"{text}\" specified")))
}

/// The name of a protocol's number, if it has one here.
pub(super) fn protocol_name(number: u8) -> Option<&'static str> {
    if number == 0 {
        return Some("all");
    }
    PROTOCOLS.iter().find(|&&(_, of)| of == number).map(|&(name, _)| name)
}

/// Reads a number as `strtoul` does with base 0: decimal, octal after 0, hexadecimal after 0x.
fn unsigned(text: &str, most: u32) -> Option<u32> {
    let text = text.trim_start();
    let text = text.strip_prefix('+').unwrap_or(text);
    let (digits, radix) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None if text.len() > 1 && text.starts_with('0') => (&text[1..], 8),
        None => (text, 10),
    };
    if digits.is_empty() || !digits.chars().all(|digit| digit.is_digit(radix)) {
        return None;
    }
    u32::from_str_radix(digits, radix).ok().filter(|number| *number <= most)
}

/// What an option of `-j MARK` comes to.
pub(super) fn mark(option: &str, text: &str) -> Result<MarkTarget> {
    let bad = || {
        MarkSyntaxError(format!(
            "MARK: bad integer value for option \"--{option}\", or out of range: `{text}'"
        ))
    };
    let number = |text: &str| unsigned(text, u32::MAX).ok_or_else(bad);
    if let "or-mark" | "and-mark" | "xor-mark" = option {
        let value = number(text)?;
        return Ok(match option {
            "or-mark" => MarkTarget::Mark { value, mask: value },
            "and-mark" => MarkTarget::Mark { value: 0, mask: !value },
            _ => MarkTarget::Mark { value, mask: 0 },
        });
    }
    let (value, mask) = match text.split_once('/') {
        Some((value, mask)) => (number(value)?, number(mask)?),
        None => (number(text)?, u32::MAX),
    };
    Ok(match option {
        "set-xmark" => MarkTarget::Mark { value, mask },
        // Bits of the value count even where the mask leaves them out.
        _ => MarkTarget::Mark { value, mask: mask | value },
    })
}

/// A port, or a service's name under `protocol`, else under any.
pub(super) fn port(text: &str, protocol: u8, names: &dyn Names) -> Result<u16> {
    let number = unsigned(text, u16::MAX.into()).and_then(|port| u16::try_from(port).ok());
    let named = || {
        let own = Protocol::from_number(protocol).unwrap_or(Protocol::Tcp);
        let candidates = [own, Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
        candidates.into_iter().find_map(|protocol| names.port_of(text, protocol))
    };
    number.or_else(named).ok_or_else(|| MarkSyntaxError(format!("invalid port/service `{text}' specified")))
}

/// `--dport`, `--sport`: a port or `FIRST:LAST`, either of which may be left out.
pub(super) fn port_range(text: &str, protocol: u8, names: &dyn Names) -> Result<(u16, u16)> {
    let Some((first, last)) = text.split_once(':') else {
        let port = port(text, protocol, names)?;
        return Ok((port, port));
    };
    let first = if first.is_empty() { 0 } else { port(first, protocol, names)? };
    let last = if last.is_empty() { u16::MAX } else { port(last, protocol, names)? };
    if first > last { fail("invalid portrange (min > max)") } else { Ok((first, last)) }
}

/// `--dports` and its kin: ports and ranges with commas between them.
pub(super) fn port_list(text: &str, protocol: u8, names: &dyn Names) -> Result<Vec<(u16, u16)>> {
    let mut ranges = Vec::new();
    for part in text.split(',') {
        let range = match part.split_once(':') {
            Some((first, last)) => (port(first, protocol, names)?, port(last, protocol, names)?),
            None => {
                let port = port(part, protocol, names)?;
                (port, port)
            }
        };
        if range.0 > range.1 {
            return fail("invalid portrange specified");
        }
        ranges.push(range);
        if PortMatch::places(&ranges) > MAX_MULTIPORT_PLACES {
            return fail("too many ports specified");
        }
    }
    Ok(ranges)
}

/// The family that a word of `-s` or `-d` can only be of: that of an IPv6 address.
pub(super) fn is_ipv6(text: &str) -> bool {
    text.contains(':')
}

/// One network of `-s` or `-d`, `ADDRESS[/LENGTH]`, `ADDRESS[/MASK]` or a host's name, of the family that is wanted, or
/// of whichever it is.
pub(super) fn network(
    text: &str,
    family: Option<Family>,
    inverted: bool,
    names: &dyn Names,
) -> Result<AddressMatch> {
    let (host, mask) = match text.split_once('/') {
        Some((host, mask)) => (host, Some(mask)),
        None => (text, None),
    };
    let unknown = || {
        let hint = match (family, host.parse::<IpAddr>()) {
            (Some(Family::V6), Ok(IpAddr::V4(_))) => " (it is an IPv4 address)",
            (Some(Family::V4), Ok(IpAddr::V6(_))) => " (it is an IPv6 address)",
            _ => "",
        };
        MarkSyntaxError(format!("host/network `{host}' not found{hint}"))
    };
    let address = address(host, family, names).ok_or_else(unknown)?;
    let Some(mask) = mask else { return Ok(AddressMatch::prefix(address, u8::MAX, inverted)) };
    let invalid = || MarkSyntaxError(format!("invalid mask `{mask}' specified"));
    let width = Family::of(address).bits();
    if let Some(length) = unsigned_decimal(mask) {
        let length = u8::try_from(length).ok().filter(|length| *length <= width).ok_or_else(invalid)?;
        return Ok(AddressMatch::prefix(address, length, inverted));
    }
    let mask = match address {
        IpAddr::V4(_) => mask.parse::<Ipv4Addr>().map(IpAddr::V4).ok(),
        IpAddr::V6(_) => mask.parse::<Ipv6Addr>().map(IpAddr::V6).ok(),
    };
    Ok(AddressMatch::new(address, mask.ok_or_else(invalid)?, inverted))
}

fn unsigned_decimal(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if digits { text.parse().ok() } else { None }
}

fn address(host: &str, family: Option<Family>, names: &dyn Names) -> Option<IpAddr> {
    let wanted = |address: &IpAddr| family.is_none_or(|family| Family::of(*address) == family);
    if is_ipv6(host) {
        return host.parse().ok().map(IpAddr::V6).filter(wanted);
    }
    if let Some(address) = short_ipv4(host).or_else(|| ipv4(host)) {
        return Some(IpAddr::V4(address)).filter(wanted);
    }
    // What has no letter is a number gone wrong: no name server is asked about it.
    if !host.contains(char::is_alphabetic) {
        return None;
    }
    match family {
        Some(family) => names.address_in(host, family),
        None => names.address_of(host),
    }
}

/// Reads decimal bytes with dots; those that are left out at the end are 0, as in `10/8` and `192.168/16`.
fn short_ipv4(text: &str) -> Option<Ipv4Addr> {
    let mut bytes = [0; 4];
    let mut parts = text.split('.');
    for byte in &mut bytes {
        let Some(part) = parts.next() else { break };
        // A leading 0 makes it octal, which is another notation.
        if part.len() > 1 && part.starts_with('0') {
            return None;
        }
        *byte = u8::try_from(unsigned_decimal(part)?).ok()?;
    }
    parts.next().is_none().then_some(Ipv4Addr::from(bytes))
}
