//! Commands answered by a live director: executed, then brought to the packet path before the answer goes out.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration as StdDuration;

use parking_lot::Mutex;

use super::clients::Clients;
use super::stats::{self, Sources};
use crate::control::command::Command;
use crate::control::desk::{self, Answer};
use crate::control::error::ControlError;
use crate::control::protocol::{ReplySink, Request};
use crate::control::server::Handler;
use crate::control::state::State;
use crate::director::{Network, PortLink, Shared};
use crate::forward::NextHop;
use crate::io::steering::{Steering, SteeringKey};
use crate::net::{Mirror, NetworkState};
use crate::types::{Duration, Instant};
use crate::worker::clock;

/// How long a command waits for the kernel to say where new real servers are; their frames wait after that.
const SETTLE: StdDuration = StdDuration::from_secs(1);

/// How long the keys that a dead director left go on counting beside those of the services configured since.
const ADOPTION: Duration = Duration::from_secs(60);

/// Everything that answers commands.
pub(super) struct Desk {
    inner: Mutex<Inner>,
    shared: Arc<Shared>,
    mirror: Mirror,
    sources: Sources,
}

struct Inner {
    state: State,
    steering: Option<Steering>,
    wanted: BTreeSet<IpAddr>,
    /// Whether the mirror follows the routes to clients.
    follows_networks: bool,
    clients: Clients,
    steered: BTreeSet<SteeringKey>,
    /// The version of the state that the packet path goes by.
    followed: Option<u64>,
    /// A director that died left keys: until then, and as long as nobody has said what there is to balance, its
    /// clients' frames go on being kept from the host. A script adds its services one by one.
    adopted_until: Option<Instant>,
    /// The network as the log has it.
    told: Arc<NetworkState>,
    /// By port: whether the log has said that frames are too large for it.
    told_oversized: Vec<bool>,
}

impl Desk {
    pub(super) fn new(
        state: State,
        shared: Arc<Shared>,
        mirror: Mirror,
        steering: Steering,
        adopted: bool,
        sources: Sources,
    ) -> Self {
        let inner = Inner {
            state,
            steering: Some(steering),
            wanted: BTreeSet::new(),
            follows_networks: false,
            clients: Clients::default(),
            steered: BTreeSet::new(),
            followed: None,
            adopted_until: adopted.then(|| clock() + ADOPTION),
            told: Arc::default(),
            told_oversized: vec![false; sources.ports.len()],
        };
        Self { inner: Mutex::new(inner), shared, mirror, sources }
    }

    pub(super) fn mirror(&self) -> &Mirror {
        &self.mirror
    }

    /// Runs commands against the state, then brings their effect to the packet path.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> (T, Result<(), ControlError>) {
        let mut inner = self.inner.lock();
        let result = change(&mut inner.state);
        inner.state.hurry(clock());
        let committed = self.commit(&mut inner);
        (result, committed)
    }

    /// Makes what the state says happen, in this order: answers are steered here before there is a way to whoever gives them,
    /// the ways to real servers are known before they are picked, and frames are steered here once there is a service for
    /// them.
    fn commit(&self, inner: &mut Inner) -> Result<(), ControlError> {
        let version = inner.state.version();
        let moved = inner.followed != Some(version);
        let masquerades_now = inner.state.masquerades() && !inner.follows_networks;
        if masquerades_now {
            self.mirror.want_networks();
            inner.follows_networks = true;
        }
        if moved || masquerades_now {
            self.steer_answers(inner)?;
            let wanted: BTreeSet<IpAddr> = inner.state.wanted().map(|(_, address)| address).collect();
            let asks = wanted != inner.wanted;
            if asks {
                inner.wanted = wanted;
                self.want(inner);
            }
            if (asks || masquerades_now) && !self.mirror.settle(SETTLE) {
                tracing::warn!("the kernel takes long to say where the real servers are");
            }
            self.refresh(inner);
        }
        inner.state.publish();
        if moved || inner.adopted_until.is_some() {
            self.steer(inner)?;
        }
        // Only now: what failed is tried again with the next command.
        inner.followed = Some(version);
        Ok(())
    }

    /// Asks the kernel for the ways to real servers, and to clients that are neighbours.
    fn want(&self, inner: &Inner) {
        self.mirror.want(inner.wanted.iter().copied().chain(inner.clients.addresses()).collect());
    }

    /// Has the answers of masqueraded real servers come here that have not so far: the host would send them on as they are.
    fn steer_answers(&self, inner: &mut Inner) -> Result<(), ControlError> {
        let missing: BTreeSet<SteeringKey> =
            answers(&inner.state).filter(|key| !inner.steered.contains(key)).collect();
        if let Some(steering) = inner.steering.as_mut().filter(|_| !missing.is_empty()) {
            steering.add_keys(&missing).map_err(|error| ControlError::Refused(error.to_string()))?;
        }
        Ok(())
    }

    fn steer(&self, inner: &mut Inner) -> Result<(), ControlError> {
        let marked = inner.state.steered_by_marks();
        let networks =
            marked.networks.into_iter().map(|(prefix, protocol)| SteeringKey::Network { prefix, protocol });
        let keys: BTreeSet<SteeringKey> = inner
            .state
            .steered()
            .into_iter()
            .chain(marked.ports)
            .map(|(protocol, address, port)| SteeringKey::Transport { address, protocol, port })
            .chain(networks)
            .chain(answers(&inner.state))
            .collect();
        let adopts = inner.adopted_until.is_some_and(|until| clock() < until || keys.is_empty());
        if keys == inner.steered && (adopts || inner.adopted_until.is_none()) {
            return Ok(());
        }
        if let Some(steering) = &mut inner.steering {
            let result = if adopts { steering.add_keys(&keys) } else { steering.set_keys(&keys) };
            result.map_err(|error| ControlError::Refused(error.to_string()))?;
        }
        if !adopts {
            inner.adopted_until = None;
        }
        inner.steered = keys;
        Ok(())
    }

    /// The kernel's links, addresses, routes or neighbours have changed.
    pub(super) fn network_changed(&self) {
        self.refresh(&mut self.inner.lock());
    }

    fn refresh(&self, inner: &mut Inner) {
        let snapshot = self.mirror.snapshot();
        tell_changes(&inner.told, &snapshot, &inner.wanted);
        self.shared.network.store(Arc::new(network(&snapshot, &inner.state, &inner.clients)));
        inner.told = snapshot;
    }

    /// Lets time pass for the state.
    pub(super) fn tick(&self) {
        let mut inner = self.inner.lock();
        let ways = &self.mirror.snapshot().next_hops;
        if inner.clients.update(self.shared.clients_asked_for(), ways, clock()) {
            self.want(&inner);
            self.refresh(&mut inner);
        }
        for (told, (interface, lost)) in inner.told_oversized.iter_mut().zip(self.sources.oversized()) {
            if lost > 0 && !std::mem::replace(told, true) {
                tracing::warn!(
                    interface,
                    "frames larger than the interface's MTU arrive and are lost: a sender or the interface merges \
                     them; switch that off with 'ethtool -K {interface} gro off lro off', on veth also 'tso off' at \
                     the other end"
                );
            }
        }
        let adoption_ends =
            inner.adopted_until.is_some_and(|until| clock() >= until) && !inner.steered.is_empty();
        if (inner.state.tick(clock()) | adoption_ends)
            && let Err(error) = self.commit(&mut inner)
        {
            tracing::error!(%error, "cannot update what is steered here");
        }
    }

    /// Takes the steering out, to end it.
    pub(super) fn take_steering(&self) -> Option<Steering> {
        self.inner.lock().steering.take()
    }
}

/// What masqueraded real servers send.
fn answers(state: &State) -> impl Iterator<Item = SteeringKey> {
    let steered = state.steered_by_source().into_iter();
    steered.map(|(protocol, address, port)| SteeringKey::Source { address, protocol, port })
}

/// Logs what an operator would want to know: a way to a real server found or lost, a port up or down.
fn tell_changes(before: &NetworkState, now: &NetworkState, servers: &BTreeSet<IpAddr>) {
    for (address, next_hop) in now.next_hops.iter().filter(|(address, _)| servers.contains(address)) {
        let former = before.next_hops.get(address);
        match next_hop {
            _ if former == Some(next_hop) => (),
            NextHop::Failed(error) => tracing::warn!(server = %address, "no way to the real server: {error}"),
            NextHop::Ready { destination, .. } => {
                tracing::info!(server = %address, link = %destination, "way known")
            }
            NextHop::Local => tracing::info!(server = %address, "the real server is this host"),
            NextHop::Resolving => tracing::debug!(server = %address, "asking for its link address"),
        }
    }
    for port in &now.ports {
        let former = before.port(port.port);
        match former.map(|former| former.up) {
            Some(true) if !port.up => tracing::warn!(interface = port.name, "interface down"),
            Some(false) if port.up => tracing::info!(interface = port.name, "interface up"),
            _ => (),
        }
        match former.map(|former| (former.ifindex, port.ifindex)) {
            Some((Some(_), None)) => tracing::warn!(interface = port.name, "the interface has gone"),
            Some((before, now)) if before != now => tracing::warn!(
                interface = port.name,
                "the interface was made anew: restart the director to use it again"
            ),
            _ => (),
        }
    }
}

/// The packet path's view of the kernel.
fn network(snapshot: &NetworkState, state: &State, clients: &Clients) -> Network {
    let way = |address| snapshot.next_hops.get(&address).copied().unwrap_or(NextHop::Resolving);
    let ports = snapshot
        .ports
        .iter()
        .map(|port| PortLink {
            addresses: [&[port.mac], &port.stacked_macs[..]].concat(),
            networks: port.addresses.clone(),
            mtu: port.mtu,
        })
        .collect();
    let (mut next_hops, mut sources) = (Vec::new(), Vec::new());
    for (id, address) in state.wanted() {
        if next_hops.len() <= id.index() {
            // What is not there is not asked for yet, as what follows: the kernel answers in a moment.
            next_hops.resize(id.index() + 1, NextHop::Resolving);
            sources.resize(id.index() + 1, None);
        }
        next_hops[id.index()] = way(address);
        sources[id.index()] = snapshot.sources.get(&address).copied();
    }
    Network {
        ports,
        local: snapshot.local_addresses.clone(),
        local_networks: snapshot.local_networks.clone(),
        next_hops,
        sources,
        routes: Arc::clone(&snapshot.routes),
        ways: snapshot.ways.clone(),
        clients: clients.addresses().map(|client| (client, way(client))).collect(),
    }
}

/// A command on one line of the log.
fn in_words(command: &Command) -> String {
    match command {
        Command::Mark(command) => command.to_string(),
        command => format!("{command:?}"),
    }
}

impl Handler for Desk {
    fn handle(&self, request: Request, reply: &mut dyn ReplySink) -> io::Result<()> {
        let Request::Commands(commands) = &request else {
            let (answer, committed) = self.change(|state| {
                desk::other(state, &request, |state, json| {
                    stats::text(&self.sources, &self.shared, state, json)
                })
            });
            return match answer.and_then(|answer| committed.map(|()| answer)) {
                Ok(answer) => answer.send(reply, clock),
                Err(error) => reply.end(Err(error)),
            };
        };
        // All of them under one lock, so that a thousand rules are one snapshot; sent once it is let go, so that
        // nobody waits for a slow reader.
        let (mut answers, committed) = self.change(|state| {
            let answer = |command: &Command| {
                let answer = desk::command(state, command, clock());
                match &answer {
                    Ok(Answer::Done) => tracing::info!(command = in_words(command), "done"),
                    Ok(_) => (),
                    Err(error) => tracing::info!(command = in_words(command), %error, "refused"),
                }
                answer
            };
            commands.iter().map(answer).collect::<Vec<_>>()
        });
        if let (Err(error), Some(last)) = (committed, answers.last_mut()) {
            *last = Err(error);
        }
        for answer in answers {
            match answer {
                Ok(answer) => answer.send(reply, clock)?,
                Err(error) => reply.end(Err(error))?,
            }
        }
        Ok(())
    }
}
