//! Matches on ports, as the words of a rule bring them: `-m tcp` and its kin, `-m multiport`, and their options.

use super::MarkSyntaxError;
use super::grammar::twice;
use super::values;
use super::words::{Given, Id, fail};
use crate::control::names::Names;
use crate::service::marks::{MAX_PORT_MATCHES, PortMatch, PortRange, PortSide, ProtocolMatch};

type Result<T> = std::result::Result<T, MarkSyntaxError>;

/// The matches of a rule so far.
#[derive(Debug, Default)]
pub(super) struct Ports {
    drafts: Vec<PortDraft>,
}

/// A match on ports half read.
#[derive(Debug)]
enum PortDraft {
    Transport {
        /// The protocol that it was loaded for by name.
        named: Option<u8>,
        source: Option<PortRange>,
        destination: Option<PortRange>,
    },
    Multiple(Option<List>),
}

/// What `--dports` and its kin say.
#[derive(Debug)]
struct List {
    /// The option's name.
    name: &'static str,
    side: PortSide,
    ranges: Vec<(u16, u16)>,
    inverted: bool,
}

impl Ports {
    /// `-m`
    pub(super) fn load(&mut self, name: &str) -> Result<()> {
        let new = match name {
            "multiport" => PortDraft::Multiple(None),
            "tcp" | "udp" | "sctp" => {
                let named = Some(values::protocol(name)?);
                PortDraft::Transport { named, source: None, destination: None }
            }
            _ => {
                return fail(format!(
                    "match `{name}' cannot be used: there are tcp, udp, sctp and multiport"
                ));
            }
        };
        self.push(new)
    }

    fn push(&mut self, new: PortDraft) -> Result<()> {
        if self.drafts.len() == MAX_PORT_MATCHES {
            return fail(format!("more than {MAX_PORT_MATCHES} matches on ports"));
        }
        self.drafts.push(new);
        Ok(())
    }

    /// `--sport`, `--dport`
    pub(super) fn range(
        &mut self,
        given: &Given<'_>,
        protocol: Option<ProtocolMatch>,
        names: &dyn Names,
    ) -> Result<()> {
        let transport = |ports: &PortDraft| matches!(ports, PortDraft::Transport { .. });
        if !self.drafts.iter().any(transport) {
            if self.drafts.iter().any(|ports| matches!(ports, PortDraft::Multiple(_))) {
                // So iptables reads its abbreviation, and so many write it.
                return self.list(given, protocol, names);
            }
            if !protocol.is_some_and(|protocol| matches!(protocol.number, 6 | 17 | 132)) {
                return fail(format!(
                    "unknown option \"{}\" (write -p tcp, -p udp or -p sctp before it)",
                    given.written
                ));
            }
            self.push(PortDraft::Transport { named: None, source: None, destination: None })?;
        }
        let (first, last) = values::port_range(given.value.unwrap_or_default(), number(protocol), names)?;
        let range = PortRange { first, last, inverted: given.inverted };
        let Some(PortDraft::Transport { source, destination, .. }) =
            self.drafts.iter_mut().rev().find(|ports| transport(ports))
        else {
            return Ok(());
        };
        let side = if given.word.id == Id::SourcePort { source } else { destination };
        match side.replace(range) {
            Some(_) => fail(format!("Only one `--{}' allowed", given.word.names[0])),
            None => Ok(()),
        }
    }

    /// `--sports`, `--dports`, `--ports`
    pub(super) fn list(
        &mut self,
        given: &Given<'_>,
        protocol: Option<ProtocolMatch>,
        names: &dyn Names,
    ) -> Result<()> {
        let multiple = |ports: &&mut PortDraft| matches!(ports, PortDraft::Multiple(_));
        let Some(PortDraft::Multiple(place)) = self.drafts.iter_mut().rev().find(multiple) else {
            return fail(format!("unknown option \"{}\" (write -m multiport before it)", given.written));
        };
        let (name, side) = match given.word.id {
            Id::SourcePort | Id::SourcePorts => ("source-ports", PortSide::Source),
            Id::DestinationPort | Id::DestinationPorts => ("destination-ports", PortSide::Destination),
            _ => ("ports", PortSide::Either),
        };
        if let Some(first) = place {
            return fail(format!("multiport: {}", twice(first.name, name)));
        }
        check_multiport(protocol)?;
        let ranges = values::port_list(given.value.unwrap_or_default(), number(protocol), names)?;
        *place = Some(List { name, side, ranges, inverted: given.inverted });
        Ok(())
    }

    /// The matches on ports, in the order they were written.
    pub(super) fn finish(self, protocol: Option<ProtocolMatch>) -> Result<Vec<PortMatch>> {
        let finish = |draft: PortDraft| match draft {
            PortDraft::Transport { named, source, destination } => match (named, protocol) {
                (None, Some(ProtocolMatch { number: 6 | 17 | 132, inverted: false })) => {
                    Ok(transport(source, destination))
                }
                (Some(named), Some(own)) if own == (ProtocolMatch { number: named, inverted: false }) => {
                    Ok(transport(source, destination))
                }
                (Some(named), _) => {
                    let name = values::protocol_name(named).unwrap_or_default();
                    fail(format!("-m {name} needs `-p {name}'"))
                }
                (None, _) => fail("ports need `-p tcp', `-p udp' or `-p sctp', and no `!' before it"),
            },
            PortDraft::Multiple(Some(List { side, ranges, inverted, .. })) => {
                check_multiport(protocol)?;
                Ok(PortMatch::Multiple { side, ranges, inverted })
            }
            PortDraft::Multiple(None) => fail("multiport: one of --dports, --sports and --ports is required"),
        };
        self.drafts.into_iter().map(finish).collect()
    }
}

fn number(protocol: Option<ProtocolMatch>) -> u8 {
    protocol.map_or(0, |protocol| protocol.number)
}

fn check_multiport(protocol: Option<ProtocolMatch>) -> Result<()> {
    match protocol {
        None => fail("multiport needs `-p tcp', `-p udp', `-p udplite', `-p sctp' or `-p dccp'"),
        Some(ProtocolMatch { number: 6 | 17 | 33 | 132 | 136, inverted: false }) => Ok(()),
        Some(_) => fail("multiport only works with TCP, UDP, UDPLITE, SCTP and DCCP"),
    }
}

fn transport(source: Option<PortRange>, destination: Option<PortRange>) -> PortMatch {
    PortMatch::Transport {
        source: source.unwrap_or(PortRange::ANY),
        destination: destination.unwrap_or(PortRange::ANY),
    }
}
