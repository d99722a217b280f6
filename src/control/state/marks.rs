//! Rules that mark packets, and what of their packets the director must get to see.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use super::State;
use crate::control::error::ControlError;
use crate::control::marks::command::{MAX_RULES_AT_ONCE, MarkCommand, MarkRow};
use crate::service::marks::{Coverage, MAX_MARK_RULES, MarkRule, MarkRules, RuleCounters};
use crate::types::{Family, Prefix, Protocol, ServiceKey};

/// The rules of both families.
#[derive(Debug, Default)]
pub(super) struct Marks {
    entries: Vec<MarkEntry>,
    /// The director's interfaces, in the order of its ports.
    interfaces: Vec<String>,
    /// What rules that are gone had steered here, as long as connections by mark may need it.
    lingering: MarkSteering,
    changed: bool,
}

/// A rule and what it has counted.
#[derive(Clone, Debug)]
struct MarkEntry {
    rule: MarkRule,
    counters: Arc<RuleCounters>,
}

/// What rules may mark, and so has to be steered to the director. Over-approximates.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct MarkSteering {
    /// Ports of addresses; port 0 stands for all.
    pub ports: BTreeSet<(Protocol, IpAddr, u16)>,
    /// Every port of whole networks.
    pub networks: BTreeSet<(Prefix, Protocol)>,
}

impl MarkSteering {
    fn add(&mut self, rule: &MarkRule) {
        let Some(coverage) = rule.coverage() else { return };
        let own = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
        for protocol in own.into_iter().filter(|protocol| rule.protocol.holds(protocol.number())) {
            match &coverage {
                Coverage::Ports(address, ports) => {
                    self.ports.extend(ports.iter().map(|port| (protocol, *address, *port)));
                }
                Coverage::Network(network) if network.length == rule.family.bits() => {
                    self.ports.insert((protocol, network.address, 0));
                }
                Coverage::Network(network) => drop(self.networks.insert((*network, protocol))),
            }
        }
    }

    fn extend(&mut self, other: Self) {
        self.ports.extend(other.ports);
        self.networks.extend(other.networks);
    }
}

impl Marks {
    fn of(&self, family: Family) -> impl Iterator<Item = &MarkEntry> {
        self.entries.iter().filter(move |entry| entry.rule.family == family)
    }

    /// Where in the list the rule at a place of a family is.
    fn position(&self, family: Family, place: u32) -> Option<usize> {
        let own = self.entries.iter().enumerate().filter(|(_, entry)| entry.rule.family == family);
        own.map(|(position, _)| position).nth(usize::try_from(place).ok()?.checked_sub(1)?)
    }

    fn rows(&self, family: Family, place: Option<u32>) -> Vec<MarkRow> {
        let rows = self.of(family).zip(1..).map(|(entry, at)| {
            let (packets, bytes) = entry.counters.read();
            MarkRow { place: at, rule: entry.rule.clone(), packets, bytes }
        });
        rows.filter(|row| place.is_none_or(|place| place == row.place)).collect()
    }

    fn steering(&self) -> MarkSteering {
        let mut steering = MarkSteering::default();
        self.entries.iter().for_each(|entry| steering.add(&entry.rule));
        steering
    }

    /// Does a command, all of it or nothing.
    fn apply(&mut self, command: &MarkCommand) -> Result<(), ControlError> {
        let too_big = |what: &str| Err(ControlError::MarkPlace(what.to_owned()));
        match command {
            MarkCommand::Append { rules } => {
                self.check_room(rules)?;
                self.entries.extend(rules.iter().map(MarkEntry::new));
            }
            MarkCommand::Insert { place, rules } => {
                let Some(family) = rules.first().map(|rule| rule.family) else { return Ok(()) };
                let next = self.of(family).count() as u64 + 1;
                let at = match self.position(family, *place) {
                    Some(at) => at,
                    None if u64::from(*place) == next => self.entries.len(),
                    None => return too_big("insertion"),
                };
                self.check_room(rules)?;
                // Each at the same place, so that the last comes first.
                rules.iter().for_each(|rule| self.entries.insert(at, MarkEntry::new(rule)));
            }
            MarkCommand::Replace { place, rule } => {
                let Some(at) = self.position(rule.family, *place) else { return too_big("replacement") };
                let former = std::mem::replace(&mut self.entries[at], MarkEntry::new(rule));
                self.lingering.add(&former.rule);
            }
            MarkCommand::Delete { rules } => {
                let mut found = Vec::new();
                for rule in rules {
                    let same = |at: &usize| self.entries[*at].rule == *rule && !found.contains(at);
                    let at = (0..self.entries.len()).find(same);
                    found.push(at.ok_or(ControlError::NoMarkRule)?);
                }
                // From the end, so that the places before stay what they are.
                found.sort_unstable();
                found.into_iter().rev().for_each(|at| self.remove(at));
            }
            MarkCommand::DeleteAt { family, place } => match self.position(*family, *place) {
                Some(at) => self.remove(at),
                None => return too_big("deletion"),
            },
            MarkCommand::Flush { family } => {
                let Self { entries, lingering, .. } = self;
                let of_family = |entry: &&MarkEntry| entry.rule.family == *family;
                entries.iter().filter(of_family).for_each(|entry| lingering.add(&entry.rule));
                entries.retain(|entry| entry.rule.family != *family);
            }
            _ => (),
        }
        Ok(())
    }

    fn check_room(&self, rules: &[MarkRule]) -> Result<(), ControlError> {
        let present = rules.first().map_or(0, |rule| self.of(rule.family).count());
        if present + rules.len() > MAX_MARK_RULES { Err(ControlError::TooManyMarkRules) } else { Ok(()) }
    }

    fn remove(&mut self, at: usize) {
        let former = self.entries.remove(at);
        self.lingering.add(&former.rule);
    }
}

impl MarkEntry {
    fn new(rule: &MarkRule) -> Self {
        Self { rule: rule.clone(), counters: Arc::default() }
    }
}

/// The rules that a command brings.
fn rules_of(command: &MarkCommand) -> &[MarkRule] {
    match command {
        MarkCommand::Append { rules }
        | MarkCommand::Insert { rules, .. }
        | MarkCommand::Delete { rules }
        | MarkCommand::Check { rules } => rules,
        MarkCommand::Replace { rule, .. } => std::slice::from_ref(rule),
        _ => &[],
    }
}

impl State {
    /// Says which interfaces the director has, in the order of its ports: rules name them.
    pub fn set_interfaces(&mut self, interfaces: Vec<String>) {
        self.marks.interfaces = interfaces;
        self.marks.changed = true;
        self.changed = true;
    }

    pub(super) fn mark(&mut self, command: &MarkCommand) -> Result<(), ControlError> {
        let rules = rules_of(command);
        let one_family = rules.windows(2).all(|pair| pair[0].family == pair[1].family);
        if !one_family || rules.len() > MAX_RULES_AT_ONCE || !rules.iter().all(MarkRule::is_sound) {
            return Err(ControlError::Refused("a rule that no command makes".to_owned()));
        }
        match command {
            MarkCommand::Check { rules } => {
                let is_there = |rule: &MarkRule| self.marks.entries.iter().any(|entry| entry.rule == *rule);
                return if rules.iter().all(is_there) { Ok(()) } else { Err(ControlError::NoMarkRule) };
            }
            MarkCommand::Zero { family, place } => {
                let own = self.marks.of(*family).zip(1..);
                own.filter(|(_, at)| place.is_none_or(|place| place == *at))
                    .for_each(|(entry, _)| entry.counters.reset());
                return Ok(());
            }
            MarkCommand::Nothing | MarkCommand::List { .. } | MarkCommand::Save { .. } => return Ok(()),
            _ => (),
        }
        self.marks.apply(command)?;
        self.marks.changed = true;
        self.changed = true;
        self.version += 1;
        Ok(())
    }

    /// The rules of a family, or the one at a place.
    pub fn mark_rows(&self, family: Family, place: Option<u32>) -> Vec<MarkRow> {
        self.marks.rows(family, place)
    }

    /// The rules of both families.
    pub fn all_mark_rows(&self) -> Vec<MarkRow> {
        [Family::V4, Family::V6].into_iter().flat_map(|family| self.mark_rows(family, None)).collect()
    }

    /// Brings the packet path's rules up to date; before it is [published](State::publish).
    pub(super) fn compile_marks(&mut self) {
        if std::mem::take(&mut self.marks.changed) {
            let rules = self.marks.entries.iter().map(|entry| (&entry.rule, &entry.counters));
            self.configuration.marks = MarkRules::new(rules, &self.marks.interfaces);
        }
    }

    /// What of the rules' packets the director must get to see: nothing, unless there is a service by mark, or one that
    /// is gone but for its connections. What rules that are gone had brought stays as long as there are connections by mark,
    /// any of which may need it.
    pub fn steered_by_marks(&self) -> MarkSteering {
        let by_mark = |key: &ServiceKey| matches!(key, ServiceKey::Mark { .. });
        let has_service = self.by_key.keys().any(by_mark);
        if !has_service && !self.has_connections_by_mark() {
            return MarkSteering::default();
        }
        let mut steering = self.marks.steering();
        steering.extend(self.marks.lingering.clone());
        steering
    }

    fn has_connections_by_mark(&self) -> bool {
        let by_mark = |key: &ServiceKey| matches!(key, ServiceKey::Mark { .. });
        let configured = self.services.values().filter(|entry| by_mark(&entry.service.key));
        let configured = configured.flat_map(|entry| entry.servers.iter().map(|server| server.id));
        let removed =
            self.trash.values().filter(|trashed| by_mark(&trashed.key)).map(|trashed| trashed.entry.id);
        configured.chain(removed).any(|id| self.shared.slots.get(id).connections() > 0)
    }

    /// Forgets what rules that are gone had steered here, once no connection can need it.
    pub(super) fn forget_former_marks(&mut self) {
        if self.marks.lingering != MarkSteering::default() && !self.has_connections_by_mark() {
            self.marks.lingering = MarkSteering::default();
            self.version += 1;
        }
    }
}

#[cfg(test)]
mod tests;
