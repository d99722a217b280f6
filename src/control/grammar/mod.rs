//! From words to a [`Command`]: the grammar of `ipvsadm` 1.31, with its messages and exit statuses.
//!
//! Deliberately better than the original, and otherwise the same:
//! * a message names the word where the original's leaves that open and no recording fixes it: a name that does not
//!   resolve, digits the wrong way round, a dash that is no hyphen, a missing blank;
//! * `[1.2.3.4]:80` keeps its port; `-M` may stand before the service it is for;
//! * rules may have comments, and a bad line is named.

mod check;
mod error;
mod options;
mod rules;
mod values;
mod words;

use std::net::IpAddr;

pub use error::GrammarError;
pub use rules::{MAX_RULE_LENGTH, Rule, rules};
pub(super) use values::ipv4;

use super::command::{
    Command, DEFAULT_PERSISTENCE, DEFAULT_SCHEDULER, DEFAULT_WEIGHT, ListOptions, ListWhat,
};
use super::command::{DEFAULT_DAEMON_INTERFACE, DaemonRole, Netmask, TunnelKind};
use super::names::Names;
use crate::types::{Family, ForwardingMethod, Protocol, ServiceKey};
use options::{Action, Id, Ids, Verb};
use words::{Given, Options};

/// Reads a command line without the program's name.
///
/// # Errors
/// What is wrong with it. Nothing has been changed anywhere then; host names may have been looked up.
pub fn parse(words: &[String], names: &dyn Names) -> Result<Command, GrammarError> {
    if words.is_empty() {
        let what = ListWhat::Services { service: None };
        return Ok(Command::List { what, options: ListOptions::default() });
    }
    let mut options = Options::new(words);
    let (verb, role) = match options.next() {
        Some(Ok(Given { word, value, .. })) => match word.action {
            Action::Verb(Verb::Help) => return Ok(Command::Help),
            Action::Verb(Verb::Version) => return Ok(Command::Version),
            Action::Verb(verb) => (verb, daemon_role(verb, value)?),
            _ => return Err(GrammarError::NoCommand),
        },
        Some(Err(_)) => return Err(GrammarError::NoCommand),
        None => return Err(no_option(&options.leftovers)),
    };
    let mut draft = Draft::new(verb, role);
    while let Some(given) = options.next() {
        draft.take(&given?, names)?;
    }
    check::finish(draft, &options.leftovers)
}

fn no_option(leftovers: &[&str]) -> GrammarError {
    let Some(&first) = leftovers.first() else { return GrammarError::NoCommand };
    match lookalike_dash(first) {
        Some((dash, meant)) => GrammarError::LookalikeDash { written: first.to_owned(), dash, meant },
        None if first.is_empty() || first == "-" => GrammarError::NoCommand,
        None => GrammarError::NoOption(first.to_owned()),
    }
}

/// The dash that a word begins with in the place of a hyphen, and the word as it was meant.
pub(super) fn lookalike_dash(word: &str) -> Option<(char, String)> {
    // Hyphens, dashes and minus signs that word processors and web pages put in the place of a hyphen.
    let dash = word
        .chars()
        .next()
        .filter(|c| matches!(c, '\u{2010}'..='\u{2015}' | '\u{2212}' | '\u{fe63}' | '\u{ff0d}'))?;
    let letters = word.trim_start_matches(dash);
    // A long word has lost its second hyphen to the dash.
    let hyphens = if letters.chars().count() > 1 { "--" } else { "-" };
    Some((dash, format!("{hyphens}{letters}")))
}

fn daemon_role(verb: Verb, value: Option<&str>) -> Result<DaemonRole, GrammarError> {
    match (verb, value) {
        (Verb::StartDaemon | Verb::StopDaemon, Some("backup")) => Ok(DaemonRole::Backup),
        (Verb::StartDaemon, value) if value != Some("master") => Err(GrammarError::BadStartRole),
        (Verb::StopDaemon, value) if value != Some("master") => Err(GrammarError::BadStopRole),
        _ => Ok(DaemonRole::Master),
    }
}

/// A command line half read: the options so far, with defaults for the others.
#[derive(Debug)]
struct Draft {
    verb: Verb,
    given: Ids,
    role: DaemonRole,
    service: Option<ServiceKey>,
    scheduler: String,
    flags: String,
    persistence: Option<u32>,
    /// The mask and the word it was read from, for a service of the other family that may follow.
    netmask: Option<(Netmask, String)>,
    engine: Option<String>,
    server: Option<(IpAddr, Option<u16>)>,
    method: ForwardingMethod,
    weight: u32,
    upper: u32,
    lower: u32,
    tunnel: TunnelKind,
    tunnel_port: u16,
    interface: String,
    sync_id: u8,
    max_length: Option<u16>,
    group: Option<IpAddr>,
    group_port: Option<u16>,
    group_ttl: Option<u8>,
}

impl Draft {
    fn new(verb: Verb, role: DaemonRole) -> Self {
        Self {
            verb,
            given: Ids::default(),
            role,
            service: None,
            scheduler: DEFAULT_SCHEDULER.to_owned(),
            flags: String::new(),
            persistence: None,
            netmask: None,
            engine: None,
            server: None,
            method: ForwardingMethod::DirectRouting,
            weight: DEFAULT_WEIGHT,
            upper: 0,
            lower: 0,
            tunnel: TunnelKind::Ipip,
            tunnel_port: 0,
            interface: DEFAULT_DAEMON_INTERFACE.to_owned(),
            sync_id: 0,
            max_length: None,
            group: None,
            group_port: None,
            group_ttl: None,
        }
    }

    /// The protocol under which names of ports are looked up; without a service yet, none are known.
    fn protocol(&self) -> Option<Protocol> {
        self.service.map(|key| match key {
            ServiceKey::Address { protocol, .. } => protocol,
            ServiceKey::Mark { .. } => Protocol::Tcp,
        })
    }

    /// The family of the service, as far as it is known.
    fn family(&self) -> Family {
        self.service.map_or(Family::V4, |key| key.family())
    }

    fn once(&mut self, id: Id) -> Result<(), GrammarError> {
        if self.given.insert(id) { Ok(()) } else { Err(GrammarError::Multiple(id.name())) }
    }

    fn take(&mut self, given: &Given<'_>, names: &dyn Names) -> Result<(), GrammarError> {
        let text = given.value.unwrap_or_default();
        match given.word.action {
            Action::Verb(_) => return Err(GrammarError::SecondCommand(given.written.to_owned())),
            Action::Nothing => {}
            Action::Service(protocol) => {
                self.once(Id::Service)?;
                let (address, port) = address("virtual", text, Some(protocol), names)?;
                self.service = Some(ServiceKey::Address { protocol, address, port: port.unwrap_or(0) });
            }
            Action::Mark => {
                self.once(Id::Service)?;
                let mark = values::number(text, 1, u32::MAX);
                let mark = mark.ok_or_else(|| GrammarError::BadMark(text.to_owned()))?;
                self.service = Some(ServiceKey::Mark { family: Family::V4, mark });
            }
            Action::Ipv6 => match &mut self.service {
                Some(ServiceKey::Mark { family, .. }) => *family = Family::V6,
                _ => return Err(GrammarError::Ipv6BeforeMark),
            },
            Action::Method(method) => {
                self.once(Id::Method)?;
                self.method = method;
            }
            Action::Option(id) => {
                self.once(id)?;
                self.option(id, given.value, names)?;
            }
        }
        Ok(())
    }

    /// Reads the value of an option that may have one.
    fn option(&mut self, id: Id, value: Option<&str>, names: &dyn Names) -> Result<(), GrammarError> {
        let text = value.unwrap_or_default();
        let count = |error| values::number(text, 0, values::MAX_COUNT).ok_or(error);
        match id {
            Id::Scheduler => text.clone_into(&mut self.scheduler),
            Id::SchedulerFlags => text.clone_into(&mut self.flags),
            Id::Engine => self.engine = Some(text.to_owned()),
            Id::Persistent => {
                let seconds = match value {
                    Some(text) => values::number(text, 1, values::MAX_TIMEOUT),
                    None => Some(DEFAULT_PERSISTENCE),
                };
                self.persistence = Some(seconds.ok_or_else(|| GrammarError::BadTimeout(text.to_owned()))?);
            }
            Id::Netmask => self.netmask = Some((netmask(text, self.family())?, text.to_owned())),
            Id::Server => self.server = Some(address("real", text, self.protocol(), names)?),
            Id::Weight => self.weight = count(GrammarError::BadWeight)?,
            Id::Upper => self.upper = count(GrammarError::BadUpperThreshold)?,
            Id::Lower => self.lower = count(GrammarError::BadLowerThreshold)?,
            Id::TunnelType => {
                let kinds = [TunnelKind::Ipip, TunnelKind::Gue, TunnelKind::Gre];
                let kind = kinds.into_iter().find(|kind| kind.name() == text);
                self.tunnel = kind.ok_or(GrammarError::BadTunnelType)?;
            }
            Id::TunnelPort => {
                self.tunnel_port = small(text, 1, u16::MAX).ok_or(GrammarError::BadTunnelPort)?
            }
            _ => self.daemon_option(id, text)?,
        }
        Ok(())
    }

    /// Reads the value of an option of the synchronization daemon.
    fn daemon_option(&mut self, id: Id, text: &str) -> Result<(), GrammarError> {
        // The largest UDP payload over IPv4.
        const MAX_LENGTH: u16 = u16::MAX - 28;
        match id {
            Id::Interface => text.clone_into(&mut self.interface),
            Id::Identity => self.sync_id = small(text, 0, u8::MAX).ok_or(GrammarError::BadSyncId)?,
            Id::MaxLength => {
                self.max_length = Some(small(text, 1, MAX_LENGTH).ok_or(GrammarError::BadMaxLength)?);
            }
            Id::Group => {
                let group = values::multicast_group(text);
                let bad = |family| GrammarError::BadGroup { family, text: text.to_owned() };
                self.group = Some(group.map_err(bad)?);
            }
            Id::GroupPort => {
                self.group_port = Some(small(text, 1, u16::MAX).ok_or(GrammarError::BadGroupPort)?)
            }
            Id::GroupTtl => self.group_ttl = Some(small(text, 1, u8::MAX).ok_or(GrammarError::BadGroupTtl)?),
            _ => {}
        }
        Ok(())
    }
}

fn small<N: Into<u32> + TryFrom<u32>>(text: &str, low: N, high: N) -> Option<N> {
    values::number(text, low.into(), high.into()).and_then(|number| N::try_from(number).ok())
}

fn netmask(text: &str, family: Family) -> Result<Netmask, GrammarError> {
    values::netmask(text, family).ok_or(match family {
        Family::V4 => GrammarError::BadMask,
        Family::V6 => GrammarError::BadIpv6Mask,
    })
}

fn address(
    which: &'static str,
    text: &str,
    protocol: Option<Protocol>,
    names: &dyn Names,
) -> Result<(IpAddr, Option<u16>), GrammarError> {
    values::endpoint(text, protocol, names).map_err(|bad| match bad {
        values::BadAddress::Plain => GrammarError::BadAddress(which),
        values::BadAddress::Unresolved(name) => GrammarError::Unresolved { which, name },
        values::BadAddress::Swapped(meant) => {
            GrammarError::Swapped { which, written: text.to_owned(), meant }
        }
    })
}

#[cfg(test)]
mod tests;
