//! Rules as `iptables` 1.8.9 prints them: `-L` and `-S`.

use std::fmt::{self, Write};

use super::command::{MarkCommand, MarkListOptions, MarkRow};
use super::values::protocol_name;
use super::{CHAIN, TABLE};
use crate::control::names::Names;
use crate::service::marks::{
    AddressMatch, InterfaceMatch, MarkRule, MarkTarget, PortMatch, PortRange, PortSide, ProtocolMatch,
};
use crate::types::{Family, Protocol};

/// What `-L` prints. Without `headings`, the rows alone.
pub(crate) fn table(rows: &[MarkRow], headings: bool, options: MarkListOptions, names: &dyn Names) -> String {
    let mut text = String::new();
    if headings {
        text.push_str(&header(options));
    }
    let names = (!options.numeric).then_some(names);
    for row in rows {
        text.push_str(&line(row, options, names));
    }
    text
}

fn header(options: MarkListOptions) -> String {
    let MarkListOptions { verbose, exact, line_numbers, .. } = options;
    let counters = if verbose { " 0 packets, 0 bytes" } else { "" };
    let mut text = format!("Chain {CHAIN} (policy ACCEPT{counters})\n");
    if line_numbers {
        text.push_str("num  ");
    }
    if verbose {
        text.push_str(if exact { "    pkts      bytes " } else { " pkts bytes " });
    }
    text.push_str("target     prot opt ");
    if verbose {
        text.push_str("in     out     ");
    }
    text.push_str("source               destination         \n");
    text
}

/// One rule of a table. Writing to a string cannot fail, here and below.
fn line(row: &MarkRow, options: MarkListOptions, names: Option<&dyn Names>) -> String {
    let rule = &row.rule;
    let mut text = String::new();
    if options.line_numbers {
        let _ = write!(text, "{:<4} ", row.place);
    }
    if options.verbose {
        let _ = write!(text, "{} {} ", count(row.packets, options.exact), count(row.bytes, options.exact));
    }
    let ProtocolMatch { number, inverted } = rule.protocol;
    let protocol =
        names.and_then(|_| protocol_name(number)).map_or_else(|| number.to_string(), str::to_owned);
    let _ = write!(text, "{:<9} {}{protocol:<4} -- ", target_name(rule.target), sign(inverted));
    if options.verbose {
        let interface =
            rule.interface.as_ref().map_or("*".to_owned(), |InterfaceMatch { name, inverted }| {
                format!("{}{name}", if *inverted { "!" } else { "" })
            });
        let _ = write!(text, " {interface:<6} {:<6} ", "*");
    }
    for network in [&rule.source, &rule.destination] {
        let _ = write!(text, "{}{:<19} ", sign(network.inverted), network_name(network, names));
    }
    for ports in &rule.ports {
        let _ = write!(text, " {}", port_match(ports, number, names));
    }
    if let Some(MarkTarget::Mark { value, mask }) = rule.target {
        let _ = write!(text, " MARK {}", mark(value, mask));
    }
    text.push('\n');
    text
}

const fn sign(inverted: bool) -> char {
    if inverted { '!' } else { ' ' }
}

const fn target_name(target: Option<MarkTarget>) -> &'static str {
    match target {
        Some(MarkTarget::Mark { .. }) => "MARK",
        Some(MarkTarget::Accept) => "ACCEPT",
        Some(MarkTarget::Return) => "RETURN",
        None => "",
    }
}

/// A counter in its column: five digits, or thousands, millions and so on of four.
fn count(number: u64, exact: bool) -> String {
    if exact {
        return format!("{number:>8}");
    }
    if number <= 99_999 {
        return format!("{number:>5}");
    }
    let thousands = |number: u64| number / 1000 + u64::from(number % 1000 >= 500);
    let mut number = number;
    for unit in ['K', 'M', 'G'] {
        number = thousands(number);
        if number <= 9999 {
            return format!("{number:>4}{unit}");
        }
    }
    format!("{:>4}T", thousands(number))
}

fn network_name(network: &AddressMatch, names: Option<&dyn Names>) -> String {
    if names.is_some() && network.length() == Some(0) {
        return "anywhere".to_owned();
    }
    let host = names.and_then(|names| names.host_of(network.address));
    let host = host.unwrap_or_else(|| network.address.to_string());
    format!("{host}{}", mask(network, false))
}

/// `/LENGTH` or `/MASK`; that of a host only where it is wanted.
fn mask(network: &AddressMatch, of_hosts: bool) -> String {
    match network.length() {
        Some(length) if length == Family::of(network.address).bits() && !of_hosts => String::new(),
        Some(length) => format!("/{length}"),
        None => format!("/{}", network.mask),
    }
}

fn port_name(port: u16, protocol: u8, names: Option<&dyn Names>) -> String {
    let named = names.zip(Protocol::from_number(protocol));
    named.and_then(|(names, protocol)| names.service_of(port, protocol)).unwrap_or_else(|| port.to_string())
}

fn port_match(ports: &PortMatch, protocol: u8, names: Option<&dyn Names>) -> String {
    let mut text = String::new();
    match ports {
        PortMatch::Transport { source, destination } => {
            text.push_str(protocol_name(protocol).unwrap_or_default());
            for (word, range) in [("spt", source), ("dpt", destination)] {
                let PortRange { first, last, inverted } = *range;
                if range_is_any(range) {
                    continue;
                }
                let not = if inverted { "!" } else { "" };
                let (first_name, last_name) =
                    (port_name(first, protocol, names), port_name(last, protocol, names));
                let _ = if first == last {
                    write!(text, " {word}:{not}{first_name}")
                } else {
                    write!(text, " {word}s:{not}{first_name}:{last_name}")
                };
            }
        }
        PortMatch::Multiple { side, ranges, inverted } => {
            let word = match side {
                PortSide::Source => "sports",
                PortSide::Destination => "dports",
                PortSide::Either => "ports",
            };
            let not = if *inverted { " !" } else { "" };
            let _ = write!(
                text,
                "multiport {word} {not}{}",
                list(ranges, |port| port_name(port, protocol, names))
            );
        }
    }
    text
}

fn list(ranges: &[(u16, u16)], name: impl Fn(u16) -> String) -> String {
    let range = |&(first, last): &(u16, u16)| match first == last {
        true => name(first),
        false => format!("{}:{}", name(first), name(last)),
    };
    ranges.iter().map(range).collect::<Vec<_>>().join(",")
}

fn range_is_any(range: &PortRange) -> bool {
    *range == PortRange::ANY
}

fn mark(value: u32, mask: u32) -> String {
    match (value, mask) {
        (0, mask) => format!("and {:#x}", !mask),
        (value, mask) if value == mask => format!("or {value:#x}"),
        (value, 0) => format!("xor {value:#x}"),
        (value, u32::MAX) => format!("set {value:#x}"),
        (value, mask) => format!("xset {value:#x}/{mask:#x}"),
    }
}

/// What `-S` prints. With `policy`, that of the chain comes first.
pub(crate) fn commands(rows: &[MarkRow], policy: bool, counters: bool) -> String {
    let mut text = String::new();
    if policy {
        let _ = writeln!(text, "-P {CHAIN} ACCEPT{}", if counters { " -c 0 0" } else { "" });
    }
    for row in rows {
        let counted = counters.then_some((row.packets, row.bytes));
        let _ = writeln!(text, "{}", rule(&row.rule, counted));
    }
    text
}

/// The lines of a save that bring these rules back, each family's in place of whatever is there then.
pub(crate) fn save(rows: &[MarkRow]) -> String {
    let mut text = String::new();
    for family in [Family::V4, Family::V6] {
        let option = option(family);
        let mut own = rows.iter().filter(|row| row.rule.family == family).peekable();
        if own.peek().is_some() {
            let _ = writeln!(text, "mark{option} -t {TABLE} -F {CHAIN}");
        }
        for row in own {
            let _ = writeln!(text, "mark{option} -t {TABLE} {}", rule(&row.rule, None));
        }
    }
    text
}

/// The command in the words that ask for it, as a log has it: of several rules just the first, for there may be hundreds.
impl fmt::Display for MarkCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let with_rules = |f: &mut fmt::Formatter<'_>, beginning: &str, rules: &[MarkRule]| {
            let Some((first, others)) = rules.split_first() else { return write!(f, "mark {beginning}") };
            let family = option(first.family);
            write!(f, "mark{family} {beginning}{}", words(first, None))?;
            if others.is_empty() { Ok(()) } else { write!(f, " (and {} more rules)", others.len()) }
        };
        let of_family = |f: &mut fmt::Formatter<'_>, letter: char, family: Family, place: Option<u32>| {
            write!(f, "mark{} -{letter} {CHAIN}", option(family))?;
            place.map_or(Ok(()), |place| write!(f, " {place}"))
        };
        match self {
            Self::Append { rules } => with_rules(f, &format!("-A {CHAIN}"), rules),
            Self::Insert { place, rules } => with_rules(f, &format!("-I {CHAIN} {place}"), rules),
            Self::Replace { place, rule } => {
                with_rules(f, &format!("-R {CHAIN} {place}"), std::slice::from_ref(rule))
            }
            Self::Delete { rules } => with_rules(f, &format!("-D {CHAIN}"), rules),
            Self::Check { rules } => with_rules(f, &format!("-C {CHAIN}"), rules),
            Self::DeleteAt { family, place } => of_family(f, 'D', *family, Some(*place)),
            Self::Flush { family } => of_family(f, 'F', *family, None),
            Self::Zero { family, place } => of_family(f, 'Z', *family, *place),
            Self::List { family, place, .. } => of_family(f, 'L', *family, *place),
            Self::Save { family, place, .. } => of_family(f, 'S', *family, *place),
            Self::Nothing => f.write_str("mark"),
        }
    }
}

/// What says that a command is about a family.
const fn option(family: Family) -> &'static str {
    match family {
        Family::V4 => "",
        Family::V6 => " -6",
    }
}

/// A rule as the command that appends it.
fn rule(rule: &MarkRule, counters: Option<(u64, u64)>) -> String {
    format!("-A {CHAIN}{}", words(rule, counters))
}

/// What follows the chain in a rule's command.
fn words(rule: &MarkRule, counters: Option<(u64, u64)>) -> String {
    let mut text = String::new();
    for (option, network) in [("-s", &rule.source), ("-d", &rule.destination)] {
        if !network.is_any() {
            let not = not(network.inverted);
            let _ = write!(text, "{not} {option} {}{}", network.address, mask(network, true));
        }
    }
    if let Some(InterfaceMatch { name, inverted }) = &rule.interface
        // Any interface: iptables leaves it out as well.
        && (name != "+" || *inverted)
    {
        let _ = write!(text, "{} -i {name}", not(*inverted));
    }
    let ProtocolMatch { number, inverted } = rule.protocol;
    let protocol = protocol_name(number).map_or_else(|| number.to_string(), str::to_owned);
    if number != 0 {
        let _ = write!(text, "{} -p {protocol}", not(inverted));
    }
    for ports in &rule.ports {
        port_options(ports, &protocol, &mut text);
    }
    if let Some((packets, bytes)) = counters {
        let _ = write!(text, " -c {packets} {bytes}");
    }
    match rule.target {
        Some(MarkTarget::Mark { value, mask }) => {
            let _ = write!(text, " -j MARK --set-xmark {value:#x}/{mask:#x}");
        }
        Some(target) => {
            let _ = write!(text, " -j {}", target_name(Some(target)));
        }
        None => (),
    }
    text
}

const fn not(inverted: bool) -> &'static str {
    if inverted { " !" } else { "" }
}

fn port_options(ports: &PortMatch, protocol: &str, text: &mut String) {
    match ports {
        PortMatch::Transport { source, destination } => {
            let _ = write!(text, " -m {protocol}");
            for (option, range) in [("--sport", source), ("--dport", destination)] {
                if !range_is_any(range) {
                    let ports = list(&[(range.first, range.last)], |port| port.to_string());
                    let _ = write!(text, "{} {option} {ports}", not(range.inverted));
                }
            }
        }
        PortMatch::Multiple { side, ranges, inverted } => {
            let option = match side {
                PortSide::Source => "--sports",
                PortSide::Destination => "--dports",
                PortSide::Either => "--ports",
            };
            let ports = list(ranges, |port| port.to_string());
            let _ = write!(text, " -m multiport{} {option} {ports}", not(*inverted));
        }
    }
}
