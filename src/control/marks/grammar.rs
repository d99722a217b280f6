//! From iptables' words to a [`MarkCommand`].

use super::command::{MAX_RULES_AT_ONCE, MarkCommand, MarkListOptions};
use super::ports::Ports;
use super::values;
use super::words::{Given, Id, Reader, fail};
use super::{CHAIN, MarkSyntaxError, TABLE};
use crate::control::names::Names;
use crate::service::marks::{
    AddressMatch, InterfaceMatch, MAX_INTERFACE_NAME, MarkRule, MarkTarget, ProtocolMatch,
};
use crate::types::Family;

type Result<T> = std::result::Result<T, MarkSyntaxError>;

/// What a command line asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Asked {
    /// A director.
    Command(MarkCommand),
    /// How to use the program.
    Help,
    /// Which program it is.
    Version,
}

/// Reads a command line without the program's name.
///
/// # Errors
/// What is wrong with it; host names may have been looked up.
pub(super) fn parse(words: &[String], names: &dyn Names) -> Result<Asked> {
    let mut reader = Reader::new(words);
    let mut draft = Draft::default();
    while let Some(given) = reader.next()? {
        match given.word.id {
            Id::Help => return Ok(Asked::Help),
            Id::Version => return Ok(Asked::Version),
            _ => draft.take(&given, &mut reader, names)?,
        }
    }
    draft.finish(names).map(Asked::Command)
}

/// A command line half read.
#[derive(Debug, Default)]
struct Draft<'a> {
    verb: Option<(Id, String)>,
    place: Option<u32>,
    family: Option<Family>,
    source: Option<(&'a str, bool)>,
    destination: Option<(&'a str, bool)>,
    interface: Option<InterfaceMatch>,
    protocol: Option<ProtocolMatch>,
    ports: Ports,
    target: Option<Jump>,
    list: MarkListOptions,
    /// The first option that only a rule has.
    of_rule: Option<String>,
}

#[derive(Debug)]
enum Jump {
    Accept,
    Return,
    Mark(Option<(&'static str, MarkTarget)>),
}

impl<'a> Draft<'a> {
    fn take(&mut self, given: &Given<'a>, reader: &mut Reader<'a>, names: &dyn Names) -> Result<()> {
        let text = given.value.unwrap_or_default();
        let id = given.word.id;
        if is_of_rule(id) {
            self.of_rule.get_or_insert_with(|| given.written.clone());
        }
        if given.inverted && !may_be_inverted(id) {
            return match id {
                Id::SetMark | Id::SetXmark | Id::OrMark | Id::AndMark | Id::XorMark => {
                    fail(format!("MARK: option \"{}\" cannot be inverted.", given.written))
                }
                _ => fail(format!("cannot have ! before {}", given.written)),
            };
        }
        match id {
            Id::Table if text != TABLE => {
                return fail(format!("can't use table `{text}': marks are set in the table `{TABLE}'"));
            }
            Id::Table | Id::Wait | Id::WaitInterval => (),
            Id::Ipv4 => self.family = Some(Family::V4),
            Id::Ipv6 => self.family = Some(Family::V6),
            Id::Numeric => self.list.numeric = true,
            Id::Verbose => self.list.verbose = true,
            Id::Exact => self.list.exact = true,
            Id::LineNumbers => self.list.line_numbers = true,
            Id::Source => once(&mut self.source, (text, given.inverted), "-s")?,
            Id::Destination => once(&mut self.destination, (text, given.inverted), "-d")?,
            Id::InInterface => once(&mut self.interface, interface(text, given.inverted)?, "-i")?,
            Id::Protocol => {
                let number = values::protocol(text)?;
                if number == 0 && given.inverted {
                    return fail("rule would never match protocol");
                }
                once(&mut self.protocol, ProtocolMatch { number, inverted: given.inverted }, "-p")?;
            }
            Id::Jump => once(&mut self.target, jump(text)?, "-j")?,
            Id::Match => self.ports.load(text)?,
            Id::SourcePort | Id::DestinationPort => self.ports.range(given, self.protocol, names)?,
            Id::SourcePorts | Id::DestinationPorts | Id::Ports => {
                self.ports.list(given, self.protocol, names)?;
            }
            Id::SetMark | Id::SetXmark | Id::OrMark | Id::AndMark | Id::XorMark => self.mark(given)?,
            Id::Foreign => {
                return fail(format!(
                    "option \"{}\" is not one that marks are set by (-s -d -i -p -m tcp|udp|sctp|multiport)",
                    given.written
                ));
            }
            _ => self.verb(given, reader)?,
        }
        Ok(())
    }

    fn verb(&mut self, given: &Given<'_>, reader: &mut Reader<'_>) -> Result<()> {
        if let Some((_, first)) = &self.verb {
            return fail(format!("Cannot use {} with {first}", given.written));
        }
        let id = given.word.id;
        self.verb = Some((id, given.written.clone()));
        if matches!(id, Id::NewChain | Id::RenameChain) || (id == Id::DeleteChain && given.value.is_some()) {
            return fail(format!("{}: there are no chains but {CHAIN} here", given.written));
        }
        if let Some(chain) = given.value.filter(|chain| *chain != CHAIN) {
            return fail(format!(
                "chain `{chain}' cannot be used: packets are marked in {CHAIN}, as they come in"
            ));
        }
        match id {
            Id::Policy => match reader.plain() {
                Some("ACCEPT") => (),
                Some(policy) => return fail(format!("policy `{policy}' cannot be used: {CHAIN} accepts")),
                None => return fail("-P requires a chain and a policy"),
            },
            Id::Insert | Id::Replace | Id::Delete | Id::List | Id::ListRules | Id::Zero
                if given.value.is_some() =>
            {
                self.place = reader.plain().map(place).transpose()?;
            }
            _ => (),
        }
        Ok(())
    }

    fn mark(&mut self, given: &Given<'_>) -> Result<()> {
        let name = given.word.names[0];
        match &mut self.target {
            Some(Jump::Mark(Some((first, _)))) => fail(format!("MARK: {}", twice(first, name))),
            Some(Jump::Mark(target)) => {
                *target = Some((name, values::mark(name, given.value.unwrap_or_default())?));
                Ok(())
            }
            _ => fail(format!("unknown option \"{}\" (write -j MARK before it)", given.written)),
        }
    }

    /// Makes the command of a command line that has been read to its end.
    fn finish(self, names: &dyn Names) -> Result<MarkCommand> {
        let Some((id, verb)) = &self.verb else { return fail("no command specified") };
        let with_rule = match id {
            Id::Append | Id::Insert | Id::Replace | Id::Check => true,
            Id::Delete => self.place.is_none(),
            _ => false,
        };
        if let Some(option) = self.of_rule.as_ref().filter(|_| !with_rule) {
            return fail(format!("Illegal option `{option}' with this command"));
        }
        let MarkListOptions { numeric, verbose, exact, line_numbers } = self.list;
        let lists = *id == Id::List;
        for (given, option, allowed) in [
            (numeric, "-n", lists),
            (verbose, "-v", lists || *id == Id::ListRules),
            (exact, "-x", lists),
            (line_numbers, "--line-numbers", lists),
        ] {
            if given && !allowed {
                return fail(format!("Illegal option `{option}' with this command"));
            }
        }
        let family = self.family.unwrap_or(Family::V4);
        let (place, options) = (self.place, self.list);
        Ok(match (id, place) {
            (Id::Append, _) => MarkCommand::Append { rules: self.rules(names)? },
            (Id::Insert, _) => MarkCommand::Insert { place: place.unwrap_or(1), rules: self.rules(names)? },
            (Id::Check, _) => MarkCommand::Check { rules: self.rules(names)? },
            (Id::Delete, Some(place)) => MarkCommand::DeleteAt { family, place },
            (Id::Delete, None) => MarkCommand::Delete { rules: self.rules(names)? },
            (Id::Replace, None) => return fail("-R requires a rule number"),
            (Id::Replace, Some(place)) => match <[MarkRule; 1]>::try_from(self.rules(names)?) {
                Ok([rule]) => MarkCommand::Replace { place, rule },
                Err(_) => return fail("Replacement rule does not specify a unique address"),
            },
            (Id::Flush, _) => MarkCommand::Flush { family },
            (Id::Zero, _) => MarkCommand::Zero { family, place },
            (Id::List, _) => MarkCommand::List { family, place, options },
            (Id::ListRules, _) => MarkCommand::Save { family, place, counters: verbose },
            (Id::Policy | Id::DeleteChain, _) => MarkCommand::Nothing,
            _ => return fail(format!("{verb} is not a command for marks")),
        })
    }

    /// The rules of a command: one for each source and destination.
    fn rules(self, names: &dyn Names) -> Result<Vec<MarkRule>> {
        let target = match self.target {
            None => None,
            Some(Jump::Accept) => Some(MarkTarget::Accept),
            Some(Jump::Return) => Some(MarkTarget::Return),
            Some(Jump::Mark(Some((_, target)))) => Some(target),
            Some(Jump::Mark(None)) => {
                return fail("MARK: One of the --set-xmark, --{and,or,xor,set}-mark options is required");
            }
        };
        let texts = [self.source, self.destination];
        // An address of IPv6 decides, wherever it stands.
        let six = texts.iter().flatten().any(|(text, _)| text.split(',').any(values::is_ipv6));
        let mut family = self.family.or(six.then_some(Family::V6));
        let mut sides = Vec::new();
        for side in texts {
            let networks = networks(side, family, names)?;
            // A name that is only an IPv6 host's decides, too, for what comes after it.
            family = family.or(networks.first().map(|network| Family::of(network.address)));
            sides.push(networks);
        }
        let family = family.unwrap_or(Family::V4);
        let everywhere = [AddressMatch::any(family)];
        let [sources, destinations] = &sides[..] else { return Ok(Vec::new()) };
        let or_any =
            |side: &'_ Vec<AddressMatch>| if side.is_empty() { everywhere.to_vec() } else { side.clone() };
        let (sources, destinations) = (or_any(sources), or_any(destinations));
        if sources.len() * destinations.len() > MAX_RULES_AT_ONCE {
            return fail(format!("the addresses make more than {MAX_RULES_AT_ONCE} rules"));
        }
        let rule = MarkRule {
            interface: self.interface,
            protocol: self.protocol.unwrap_or(ProtocolMatch { number: 0, inverted: false }),
            ports: self.ports.finish(self.protocol)?,
            target,
            ..MarkRule::any(family)
        };
        let with = |source: &AddressMatch, destination: &AddressMatch| MarkRule {
            source: *source,
            destination: *destination,
            ..rule.clone()
        };
        let of_source =
            |source: &AddressMatch| destinations.iter().map(|to| with(source, to)).collect::<Vec<_>>();
        Ok(sources.iter().flat_map(of_source).collect())
    }
}

fn is_of_rule(id: Id) -> bool {
    matches!(
        id,
        Id::Source
            | Id::Destination
            | Id::InInterface
            | Id::Protocol
            | Id::Jump
            | Id::Match
            | Id::SourcePort
            | Id::DestinationPort
            | Id::SourcePorts
            | Id::DestinationPorts
            | Id::Ports
            | Id::SetMark
            | Id::SetXmark
            | Id::OrMark
            | Id::AndMark
            | Id::XorMark
    )
}

fn may_be_inverted(id: Id) -> bool {
    matches!(
        id,
        Id::Source
            | Id::Destination
            | Id::InInterface
            | Id::Protocol
            | Id::SourcePort
            | Id::DestinationPort
            | Id::SourcePorts
            | Id::DestinationPorts
            | Id::Ports
    )
}

/// Options of which one goes, in the order in which iptables names two of them.
const EXCLUSIVE: [&str; 8] = [
    "set-xmark",
    "set-mark",
    "and-mark",
    "or-mark",
    "xor-mark",
    "source-ports",
    "destination-ports",
    "ports",
];

/// What is wrong with two options of which one goes.
pub(super) fn twice(first: &str, second: &str) -> String {
    if first == second {
        return format!("option \"--{first}\" can only be used once.");
    }
    let place = |name: &str| EXCLUSIVE.iter().position(|known| *known == name);
    let (first, second) = if place(first) < place(second) { (first, second) } else { (second, first) };
    format!("option \"--{first}\" cannot be used together with \"--{second}\".")
}

fn once<T>(place: &mut Option<T>, value: T, option: &str) -> Result<()> {
    match place.replace(value) {
        Some(_) => fail(format!("multiple {option} flags not allowed")),
        None => Ok(()),
    }
}

fn place(text: &str) -> Result<u32> {
    let number = text.parse().ok().filter(|number| *number > 0);
    number.ok_or_else(|| MarkSyntaxError(format!("Invalid rule number `{text}'")))
}

fn interface(name: &str, inverted: bool) -> Result<InterfaceMatch> {
    if name.is_empty() {
        return fail("Empty interface is likely to be undesired");
    }
    if name.len() > MAX_INTERFACE_NAME || name.contains(char::is_whitespace) {
        return fail(format!("interface name `{name}' must be shorter than IFNAMSIZ ({MAX_INTERFACE_NAME})"));
    }
    Ok(InterfaceMatch { name: name.to_owned(), inverted })
}

fn jump(name: &str) -> Result<Jump> {
    match name {
        "MARK" => Ok(Jump::Mark(None)),
        "ACCEPT" => Ok(Jump::Accept),
        "RETURN" => Ok(Jump::Return),
        _ => fail(format!("target `{name}' cannot be used: there are MARK, ACCEPT and RETURN")),
    }
}

fn networks(
    side: Option<(&str, bool)>,
    family: Option<Family>,
    names: &dyn Names,
) -> Result<Vec<AddressMatch>> {
    let Some((text, inverted)) = side else { return Ok(Vec::new()) };
    if inverted && text.contains(',') {
        return fail("! not allowed with multiple source or destination IP addresses");
    }
    if text.split(',').count() > MAX_RULES_AT_ONCE {
        return fail(format!("the addresses make more than {MAX_RULES_AT_ONCE} rules"));
    }
    let mut family = family;
    let mut found = Vec::new();
    for part in text.split(',') {
        let network = values::network(part, family, inverted, names)?;
        family = Some(Family::of(network.address));
        found.push(network);
    }
    Ok(found)
}
