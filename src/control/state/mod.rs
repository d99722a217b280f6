//! The state that commands change: services, real servers, settings; and what they publish to the workers.
//!
//! [`State::execute`] changes the state the way the kernel's IPVS would, [`State::publish`] hands the result to the
//! packet path as one snapshot. Between the two, the caller sees to it that the way to each of
//! [`State::wanted`] is known, so that a command's effect is complete when it is answered.

mod ids;
mod marks;
mod masqueraded;
mod rates;
mod report;
mod servers;
mod services;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use crate::conn::WorkerView;
use crate::director::{Configuration, Shared, Walk};
use crate::service::{ServerId, Service, ServiceId, Traffic};
use crate::types::{Duration, Instant, Protocol, ServiceKey};

use super::command::{Command, ServerSpec, ServiceSpec};
use super::error::ControlError;
use super::listing;
use super::settings::SettingValue;

pub use marks::MarkSteering;
pub use report::Connections;

use ids::Ids;
use rates::Estimator;

/// How often the rates are estimated (`ip_vs_est.c`).
pub const ESTIMATION_PERIOD: Duration = Duration::from_secs(2);
/// How long a removed real server is remembered after its last connection ended (IP_VS_DEST_TRASH_PERIOD), so that
/// it takes up its counters when it is added again.
const TRASH_PERIOD: Duration = Duration::from_secs(120);

/// Everything that commands change.
#[derive(Debug)]
pub struct State {
    shared: Arc<Shared>,
    /// In the order they were added: by a number that only grows.
    services: BTreeMap<u64, ServiceEntry>,
    by_key: HashMap<ServiceKey, u64>,
    added: u64,
    trash: HashMap<TrashKey, TrashedServer>,
    service_ids: Ids,
    server_ids: Ids,
    /// By service number: as how many it is configured, and named by removed real servers.
    service_uses: Vec<u32>,
    configuration: Configuration,
    changed: bool,
    masquerades: bool,
    /// The packet path has yet to hear which real servers are masqueraded.
    masqueraded_changed: bool,
    /// Counts changes of what [`wanted`](Self::wanted), [`steered`](Self::steered) and
    /// [`steered_by_source`](Self::steered_by_source) say.
    version: u64,
    /// Where the walk that ends connections of removed real servers stands, and whether another is to follow.
    ending: Option<Walk>,
    ending_again: bool,
    next_hurry: Instant,
    /// For ending connections from here.
    views: [WorkerView; 2],
    next_estimation: Instant,
    settings: Vec<(&'static str, SettingValue)>,
    marks: marks::Marks,
}

/// A configured service.
#[derive(Debug)]
struct ServiceEntry {
    service: Arc<Service>,
    spec: ServiceSpec,
    servers: Vec<ServerEntry>,
    meter: Meter,
    /// Packets to other ports than its own may be its: it is, or was, a persistent service of FTP.
    takes_data: bool,
}

/// A configured real server. Those of a service are kept in the order of their scheduler's list.
#[derive(Clone, Debug)]
struct ServerEntry {
    id: ServerId,
    address: IpAddr,
    port: u16,
    spec: ServerSpec,
    meter: Meter,
    /// It is, or was, masqueraded: its connections may have answers to translate.
    masquerades: bool,
}

/// Names a removed real server: its service, address and port.
type TrashKey = (ServiceKey, IpAddr, u16);

/// A removed real server that connections, or its counters, keep.
#[derive(Debug)]
struct TrashedServer {
    entry: ServerEntry,
    key: ServiceKey,
    service: ServiceId,
    /// As its service.
    takes_data: bool,
    idle_since: Option<Instant>,
}

/// What is subtracted from counters that only ever grow, and the rates.
#[derive(Clone, Debug, Default)]
struct Meter {
    /// What the counters were when their service or real server came, or at the last `-Z`.
    zero: Traffic,
    estimator: Estimator,
}

impl Meter {
    fn new(now: Traffic) -> Self {
        Self { zero: now, estimator: Estimator::new(now) }
    }

    /// `-Z`: counters show nothing and rates start over (`ip_vs_zero_stats`).
    fn reset(&mut self, now: Traffic) {
        self.zero = now;
        self.estimator = Estimator::new(now);
    }

    fn counters(&self, now: Traffic) -> listing::Counters {
        let Traffic { connections, in_packets, out_packets, in_bytes, out_bytes } = now - self.zero;
        listing::Counters { connections, in_packets, out_packets, in_bytes, out_bytes }
    }
}

impl State {
    /// No services, default settings, over the tables of `shared`.
    pub fn new(shared: Arc<Shared>, now: Instant) -> Self {
        Self {
            service_ids: Ids::new(crate::service::MAX_SERVICES as u32),
            server_ids: Ids::new(shared.slots.len() as u32),
            shared,
            service_uses: vec![0; crate::service::MAX_SERVICES],
            services: BTreeMap::new(),
            by_key: HashMap::new(),
            added: 0,
            trash: HashMap::new(),
            configuration: Configuration::default(),
            changed: false,
            masquerades: false,
            masqueraded_changed: false,
            version: 0,
            ending: None,
            ending_again: false,
            next_hurry: now,
            views: Default::default(),
            next_estimation: now + ESTIMATION_PERIOD,
            settings: Vec::new(),
            marks: marks::Marks::default(),
        }
    }

    /// Executes a command that changes something. The workers see it after [`publish`](Self::publish).
    ///
    /// # Errors
    /// The kernel's answer, with nothing changed.
    pub fn execute(&mut self, command: &Command, now: Instant) -> Result<(), ControlError> {
        match command {
            Command::AddService { key, spec } => self.add_service(*key, spec),
            Command::EditService { key, spec } => self.edit_service(*key, spec),
            Command::DeleteService { key } => self.delete_service(key, now),
            Command::Flush => {
                self.flush(now);
                Ok(())
            }
            Command::AddServer { key, address, port, spec } => self.add_server(key, *address, *port, spec),
            Command::EditServer { key, address, port, spec } => self.edit_server(key, *address, *port, spec),
            Command::DeleteServer { key, address, port } => self.delete_server(key, *address, *port, now),
            Command::Zero { service } => self.zero(service.as_ref()),
            Command::SetTimeouts { tcp, tcp_fin, udp } => {
                self.set_timeouts(*tcp, *tcp_fin, *udp);
                Ok(())
            }
            Command::Mark(command) => self.mark(command),
            Command::StartDaemon(_) | Command::StopDaemon { .. } => {
                Err(ControlError::NotSupported("the synchronization daemon".to_owned()))
            }
            Command::List { .. }
            | Command::Save { .. }
            | Command::Restore
            | Command::Help
            | Command::Version => Err(ControlError::Refused("it changes nothing".to_owned())),
        }
    }

    /// Whether any real server was masqueraded so far: then the packet path needs the ways to clients.
    pub fn masquerades(&self) -> bool {
        self.masquerades
    }

    /// Hands the state to the packet path: it takes effect with each worker's next batch.
    pub fn publish(&mut self) {
        self.compile_marks();
        if std::mem::take(&mut self.masqueraded_changed) && self.masquerades {
            self.configuration.masqueraded = Arc::new(self.masqueraded());
            self.changed = true;
        }
        if std::mem::take(&mut self.changed) {
            self.shared.configuration.store(Arc::new(self.configuration.clone()));
        }
    }

    /// Real servers that a way must be known to: the configured ones, and removed ones that have connections.
    pub fn wanted(&self) -> impl Iterator<Item = (ServerId, IpAddr)> {
        let configured = self.services.values().flat_map(|service| &service.servers);
        let removed = self.trash.values().map(|trashed| &trashed.entry);
        configured.chain(removed).map(|server| (server.id, server.address))
    }

    /// What the director must get to see: every service, and every service that is gone but for its connections; those by
    /// mark aside, for which see [`steered_by_marks`](Self::steered_by_marks).
    /// Protocol, virtual address, port; port 0 stands for all.
    pub fn steered(&self) -> BTreeSet<(Protocol, IpAddr, u16)> {
        let gone =
            self.trash.values().filter(|trashed| self.shared.slots.get(trashed.entry.id).connections() > 0);
        let present = self.services.values().map(|entry| (entry.service.key, entry.takes_data));
        let all = present.chain(gone.map(|trashed| (trashed.key, trashed.takes_data)));
        all.filter_map(|(key, takes_data)| match key {
            ServiceKey::Address { protocol, address, port } => {
                Some((protocol, address, if takes_data { 0 } else { port }))
            }
            ServiceKey::Mark { .. } => None,
        })
        .collect()
    }

    /// Changes whenever [`wanted`](Self::wanted), [`steered`](Self::steered) or
    /// [`steered_by_source`](Self::steered_by_source) may have, so that an edit of something
    /// else costs nothing of the rest.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Until then, drop packets in mid-connection that nobody knows: see
    /// [`Settings::drop_unknown_until`](crate::director::Settings::drop_unknown_until).
    pub fn drop_unknown_until(&mut self, moment: Instant) {
        self.configuration.settings.drop_unknown_until = moment;
        self.changed = true;
    }

    /// Lets time pass: estimates rates, ends connections of removed real servers where a setting says so, forgets
    /// removed real servers that are idle. Says whether the [`version`](Self::version) has changed.
    pub fn tick(&mut self, now: Instant) -> bool {
        let before = self.version;
        // After a pause (a suspended machine) the past is not made up for: nobody sees a rate of then.
        const MOST_AT_ONCE: u32 = 8;
        for _ in 0..MOST_AT_ONCE {
            if self.next_estimation > now {
                break;
            }
            self.estimate();
            self.next_estimation += ESTIMATION_PERIOD;
        }
        if self.next_estimation <= now {
            self.next_estimation = now + ESTIMATION_PERIOD;
        }
        self.end_orphans(now);
        self.shared.ipv4.give_back(&mut self.views[0], &self.shared.epochs);
        self.shared.ipv6.give_back(&mut self.views[1], &self.shared.epochs);
        self.empty_trash(now);
        self.forget_former_marks();
        self.version != before
    }

    /// Begins at once, rather than with the next [`tick`](Self::tick), to end the connections of what a command removed,
    /// where a setting says so: the kernel does so within a clock tick. Not more often than a hundred times a second, since each
    /// time is a walk over the table.
    pub fn hurry(&mut self, now: Instant) {
        const PAUSE: Duration = Duration::from_millis(10);
        if self.ending_again && now >= self.next_hurry {
            self.next_hurry = now + PAUSE;
            self.end_orphans(now);
        }
    }

    /// Goes on ending connections whose real server is gone, a bounded number of records further.
    fn end_orphans(&mut self, now: Instant) {
        if self.ending.is_none() && std::mem::take(&mut self.ending_again) {
            self.ending = Some(Walk::default());
        }
        if let Some(walk) = self.ending {
            self.ending = self.shared.end_orphans(walk, &mut self.views, now);
        }
    }

    /// When [`tick`](Self::tick) is to be called at the latest.
    pub fn next_deadline(&self) -> Instant {
        self.next_estimation
    }

    fn entry(&self, key: &ServiceKey) -> Option<&ServiceEntry> {
        self.services.get(self.by_key.get(key)?)
    }

    fn entry_mut(&mut self, key: &ServiceKey) -> Option<&mut ServiceEntry> {
        self.services.get_mut(self.by_key.get(key)?)
    }
}

#[cfg(test)]
mod tests;
