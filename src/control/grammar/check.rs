//! The end of a command line: what is missing, what does not go together, and the command.

use super::options::{Id, Takes, Verb};
use super::{Draft, GrammarError, netmask, values};
use crate::control::command::{
    Columns, Command, DaemonSpec, ListOptions, ListWhat, Netmask, ServerSpec, ServiceSpec, Tunnel,
    TunnelChecksum, TunnelKind,
};
use crate::types::{Family, ForwardingMethod, Protocol, ServiceKey};

/// Makes the command of a command line that has been read to its end; complaints come in `ipvsadm`'s order.
pub(super) fn finish(draft: Draft, leftovers: &[&str]) -> Result<Command, GrammarError> {
    let mut leftovers = leftovers.iter();
    let mut timeouts = [0; 3];
    if draft.verb == Verb::SetTimeouts {
        for timeout in &mut timeouts {
            let text = leftovers.next().ok_or(GrammarError::SetNeedsThree)?;
            let seconds = values::number(text, 0, values::MAX_TIMEOUT);
            *timeout = seconds.ok_or_else(|| GrammarError::BadTimeout((*text).to_owned()))?;
        }
    }
    if let Some(word) = leftovers.next() {
        return Err(GrammarError::Unexpected((*word).to_owned()));
    }
    let flags = values::scheduler_flags(&draft.flags, &draft.scheduler).map_err(|bad| match bad {
        values::BadFlag::Unknown(word) => GrammarError::UnknownFlag(word),
        values::BadFlag::Incompatible(word) => GrammarError::IncompatibleFlag(word),
    })?;
    check_options(&draft)?;
    match draft.verb {
        Verb::AddService | Verb::EditService => service(draft, flags),
        Verb::AddServer | Verb::EditServer => server(&draft),
        Verb::List => list(&draft),
        Verb::SetTimeouts => {
            let [tcp, tcp_fin, udp] = timeouts;
            Ok(Command::SetTimeouts { tcp, tcp_fin, udp })
        }
        Verb::StartDaemon => Ok(Command::StartDaemon(DaemonSpec {
            role: draft.role,
            interface: draft.interface,
            sync_id: draft.sync_id,
            max_length: draft.max_length,
            group: draft.group,
            port: draft.group_port,
            ttl: draft.group_ttl,
        })),
        _ => simple(&draft),
    }
}

/// Whether the command takes the options that were given, and was given those that it needs.
fn check_options(draft: &Draft) -> Result<(), GrammarError> {
    let command = draft.verb.name();
    let mut exclusive = None;
    for (id, name) in Id::ALL {
        match (draft.verb.takes(id), draft.given.has(id)) {
            (Takes::Must, false) => return Err(GrammarError::Needed(name, command)),
            (Takes::Never, true) => return Err(GrammarError::Illegal(name, command)),
            (Takes::Exclusive, true) => match exclusive {
                Some(first) => return Err(GrammarError::Conflict(name, first, command)),
                None => exclusive = Some(name),
            },
            _ => {}
        }
    }
    Ok(())
}

/// The commands without values of their own.
fn simple(draft: &Draft) -> Result<Command, GrammarError> {
    match draft.verb {
        Verb::Flush => Ok(Command::Flush),
        Verb::Restore => Ok(Command::Restore),
        Verb::Save => Ok(Command::Save { numeric: draft.given.has(Id::Numeric) }),
        Verb::Zero => Ok(Command::Zero { service: draft.service }),
        Verb::StopDaemon => Ok(Command::StopDaemon { role: draft.role }),
        Verb::DeleteService => Ok(Command::DeleteService { key: key(draft)? }),
        Verb::DeleteServer => {
            let key = key(draft)?;
            let (address, port) = draft.server.ok_or_else(|| needed(Id::Server, draft))?;
            Ok(Command::DeleteServer { key, address, port: port.unwrap_or_else(|| service_port(key)) })
        }
        _ => Err(GrammarError::NoCommand),
    }
}

fn needed(id: Id, draft: &Draft) -> GrammarError {
    GrammarError::Needed(id.name(), draft.verb.name())
}

fn key(draft: &Draft) -> Result<ServiceKey, GrammarError> {
    draft.service.ok_or_else(|| needed(Id::Service, draft))
}

/// The port of a service, 0 for a mark.
const fn service_port(key: ServiceKey) -> u16 {
    match key {
        ServiceKey::Address { port, .. } => port,
        ServiceKey::Mark { .. } => 0,
    }
}

fn service(draft: Draft, flags: u32) -> Result<Command, GrammarError> {
    let key = key(&draft)?;
    let one_packet = draft.given.has(Id::OnePacket);
    if let ServiceKey::Address { protocol, port, .. } = key {
        if port == 0 && draft.persistence.is_none() {
            return Err(GrammarError::ZeroPort);
        }
        if one_packet && protocol != Protocol::Udp {
            return Err(GrammarError::OnePacketOnlyUdp);
        }
    }
    let family = key.family();
    let netmask = match draft.netmask {
        None => Netmask::host(family),
        Some((mask, _)) if mask.family() == family => mask,
        Some((_, text)) => netmask(&text, family)?,
    };
    let spec = ServiceSpec {
        scheduler: draft.scheduler,
        flags,
        persistence: draft.persistence,
        netmask,
        engine: draft.engine,
        one_packet,
    };
    Ok(match draft.verb {
        Verb::EditService => Command::EditService { key, spec },
        _ => Command::AddService { key, spec },
    })
}

fn server(draft: &Draft) -> Result<Command, GrammarError> {
    let key = key(draft)?;
    let (address, port) = draft.server.ok_or_else(|| needed(Id::Server, draft))?;
    let tunnelled = draft.method == ForwardingMethod::Tunnel;
    if Family::of(address) != key.family() && !tunnelled {
        return Err(GrammarError::MixedFamilies);
    }
    let tunnel = tunnel(draft, tunnelled)?;
    let spec = ServerSpec {
        weight: draft.weight,
        method: draft.method,
        upper_threshold: draft.upper,
        lower_threshold: draft.lower,
        tunnel,
    };
    // Only NAT can change the port of a service that has one.
    let own_port = draft.method == ForwardingMethod::Masquerading || matches!(key, ServiceKey::Mark { .. });
    let port = port.filter(|_| own_port).unwrap_or_else(|| service_port(key));
    Ok(match draft.verb {
        Verb::EditServer => Command::EditServer { key, address, port, spec },
        _ => Command::AddServer { key, address, port, spec },
    })
}

/// Whether the kind of tunnel takes the options that were given.
fn tunnel(draft: &Draft, tunnelled: bool) -> Result<Tunnel, GrammarError> {
    const OPTIONS: [Id; 5] =
        [Id::TunnelType, Id::TunnelPort, Id::TunnelNoChecksum, Id::TunnelChecksum, Id::TunnelRemoteChecksum];
    if !tunnelled {
        let any = OPTIONS.iter().any(|&id| draft.given.has(id));
        return if any { Err(GrammarError::TunnelMethod) } else { Ok(Tunnel::IPIP) };
    }
    let kind = draft.tunnel;
    let mut first = None;
    for &id in &OPTIONS[1..] {
        match (tunnel_takes(kind, id), draft.given.has(id)) {
            (Takes::Must, false) => return Err(GrammarError::TunnelNeeds(id.name(), kind.name())),
            (Takes::Never, true) => return Err(GrammarError::TunnelIllegal(id.name(), kind.name())),
            (Takes::Exclusive, true) => match first {
                Some(other) => return Err(GrammarError::TunnelConflict(id.name(), other, kind.name())),
                None => first = Some(id.name()),
            },
            _ => {}
        }
    }
    let checksum = if draft.given.has(Id::TunnelChecksum) {
        TunnelChecksum::Checksum
    } else if draft.given.has(Id::TunnelRemoteChecksum) {
        TunnelChecksum::Remote
    } else {
        TunnelChecksum::None
    };
    Ok(Tunnel { kind, port: draft.tunnel_port, checksum })
}

const fn tunnel_takes(kind: TunnelKind, id: Id) -> Takes {
    match (kind, id) {
        (TunnelKind::Gue, Id::TunnelPort) => Takes::Must,
        (TunnelKind::Gue, Id::TunnelNoChecksum | Id::TunnelChecksum | Id::TunnelRemoteChecksum)
        | (TunnelKind::Gre, Id::TunnelNoChecksum | Id::TunnelChecksum) => Takes::Exclusive,
        _ => Takes::Never,
    }
}

fn list(draft: &Draft) -> Result<Command, GrammarError> {
    let has = |id| draft.given.has(id);
    let what = if has(Id::Connection) {
        ListWhat::Connections
    } else if has(Id::Timeout) {
        ListWhat::Timeouts
    } else if has(Id::Daemon) {
        ListWhat::Daemons
    } else {
        ListWhat::Services { service: draft.service }
    };
    let columned = has(Id::Stats) || has(Id::Rate) || has(Id::Thresholds);
    let conflict = match what {
        ListWhat::Services { .. } => false,
        ListWhat::Connections => columned,
        ListWhat::Timeouts | ListWhat::Daemons => columned || has(Id::PersistentConn),
    };
    if conflict {
        return Err(GrammarError::ListConflict);
    }
    let columns = if has(Id::Stats) {
        Columns::Stats
    } else if has(Id::Rate) {
        Columns::Rates
    } else if has(Id::Thresholds) {
        Columns::Thresholds
    } else if has(Id::PersistentConn) {
        Columns::Persistent
    } else if has(Id::TunnelInfo) {
        Columns::Tunnels
    } else {
        Columns::Connections
    };
    let options = ListOptions {
        numeric: has(Id::Numeric),
        columns,
        exact: has(Id::Exact),
        sort: !has(Id::NoSort),
        engine_data: has(Id::PersistentConn),
    };
    Ok(Command::List { what, options })
}
