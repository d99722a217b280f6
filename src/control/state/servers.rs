//! Real servers added, edited and removed, and what becomes of the removed ones.

use std::net::IpAddr;
use std::sync::Arc;

use super::{Meter, ServerEntry, State, TRASH_PERIOD, TrashedServer};
use crate::control::command::ServerSpec;
use crate::control::error::ControlError;
use crate::service::{RealServer, ServerId, Service, ServiceId};
use crate::types::{Family, ForwardingMethod, Instant, ServiceKey};

/// What the kernel refuses before it looks for the real server (`ip_vs_add_dest`, `ip_vs_edit_dest`).
fn check_thresholds(spec: &ServerSpec) -> Result<(), ControlError> {
    if spec.lower_threshold > spec.upper_threshold { Err(ControlError::OutOfRange) } else { Ok(()) }
}

/// What the kernel refuses of a real server's address (`ip_vs_add_dest`).
fn check(key: &ServiceKey, address: IpAddr, spec: &ServerSpec) -> Result<(), ControlError> {
    let unicast = match address {
        IpAddr::V4(address) => {
            !address.is_multicast() && !address.is_broadcast() && !address.is_unspecified()
        }
        IpAddr::V6(address) => !address.is_multicast() && !address.is_unspecified(),
    };
    // Only a tunnel takes packets of one family to a real server of the other.
    let is_reachable = spec.method == ForwardingMethod::Tunnel || Family::of(address) == key.family();
    if !unicast || !is_reachable {
        return Err(ControlError::InvalidOperation);
    }
    Ok(())
}

impl ServerEntry {
    /// Sets everything that commands say about it. Says whether its answers are to be steered here from now on.
    fn set(&mut self, spec: &ServerSpec) -> bool {
        self.spec = *spec;
        let before = self.masquerades;
        // Connections keep the method they began with.
        self.masquerades |= spec.method == ForwardingMethod::Masquerading;
        self.masquerades != before
    }
}

impl State {
    fn apply(&mut self, id: ServerId, spec: &ServerSpec) {
        self.masquerades |= spec.method == ForwardingMethod::Masquerading;
        self.masqueraded_changed = true;
        let slot = self.shared.slots.get(id);
        slot.set_weight(spec.weight);
        slot.set_thresholds(spec.upper_threshold, spec.lower_threshold);
        slot.set_method(spec.method, spec.tunnel);
        slot.set_available(true);
    }

    pub(super) fn add_server(
        &mut self,
        key: &ServiceKey,
        address: IpAddr,
        port: u16,
        spec: &ServerSpec,
    ) -> Result<(), ControlError> {
        let service = self.entry(key).ok_or(ControlError::ServiceNotDefined)?;
        check_thresholds(spec)?;
        if service.servers.iter().any(|server| (server.address, server.port) == (address, port)) {
            return Err(ControlError::ServerExists);
        }
        check(key, address, spec)?;
        let Service { id, chooser, .. } = &*service.service;
        let (service, chooser) = (*id, Arc::clone(chooser));
        let mut entry = match self.take_from_trash(key, address, port, service) {
            Some(entry) => entry,
            None => self.new_server(address, port, service)?,
        };
        entry.set(spec);
        self.apply(entry.id, spec);
        self.version += 1;
        let server = RealServer { id: entry.id, address, port, method: spec.method };
        chooser.lock().add(&self.shared.slots, server);
        if let Some(service) = self.entry_mut(key) {
            service.servers.insert(0, entry);
        }
        Ok(())
    }

    fn new_server(
        &mut self,
        address: IpAddr,
        port: u16,
        service: ServiceId,
    ) -> Result<ServerEntry, ControlError> {
        let id = ServerId(self.server_ids.allocate().ok_or(ControlError::NoMemory)?);
        let slot = self.shared.slots.get(id);
        slot.assign(service);
        slot.set_endpoint(address, port);
        let meter = Meter::new(self.shared.server_traffic(id));
        Ok(ServerEntry { id, address, port, spec: ServerSpec::default(), meter, masquerades: false })
    }

    /// The same real server of the same service, removed not long ago: it goes on with its connections and
    /// counters (`ip_vs_trash_get_dest`).
    fn take_from_trash(
        &mut self,
        key: &ServiceKey,
        address: IpAddr,
        port: u16,
        service: ServiceId,
    ) -> Option<ServerEntry> {
        let trashed = self.trash.remove(&(*key, address, port))?;
        self.shared.slots.get(trashed.entry.id).reassign(service);
        self.release_service(trashed.service);
        Some(trashed.entry)
    }

    pub(super) fn edit_server(
        &mut self,
        key: &ServiceKey,
        address: IpAddr,
        port: u16,
        spec: &ServerSpec,
    ) -> Result<(), ControlError> {
        let entry = self.entry_mut(key).ok_or(ControlError::ServiceNotDefined)?;
        check_thresholds(spec)?;
        let server = entry.servers.iter_mut().find(|server| (server.address, server.port) == (address, port));
        let server = server.ok_or(ControlError::NoSuchServer)?;
        check(key, address, spec)?;
        let steers_more = server.set(spec);
        let id = server.id;
        let chooser = Arc::clone(&entry.service.chooser);
        self.apply(id, spec);
        self.version += u64::from(steers_more);
        let server = RealServer { id, address, port, method: spec.method };
        chooser.lock().update(&self.shared.slots, server);
        Ok(())
    }

    pub(super) fn delete_server(
        &mut self,
        key: &ServiceKey,
        address: IpAddr,
        port: u16,
        now: Instant,
    ) -> Result<(), ControlError> {
        let shared = Arc::clone(&self.shared);
        let entry = self.entry_mut(key).ok_or(ControlError::ServiceNotDefined)?;
        let place = entry.servers.iter().position(|server| (server.address, server.port) == (address, port));
        let server = entry.servers.remove(place.ok_or(ControlError::NoSuchServer)?);
        let service = (entry.service.id, entry.takes_data);
        entry.service.chooser.lock().remove(&shared.slots, server.id);
        self.discard(server, *key, service, now);
        Ok(())
    }

    /// Into the trash with a removed real server (`__ip_vs_del_dest`); `takes_data` is its service's. Its connections and
    /// templates stay until they end, or are ended soon where `expire_nodest_conn` says so (`expire_nodest_conn_work`).
    pub(super) fn discard(
        &mut self,
        entry: ServerEntry,
        key: ServiceKey,
        (service, takes_data): (ServiceId, bool),
        now: Instant,
    ) {
        let slot = self.shared.slots.get(entry.id);
        slot.set_available(false);
        self.masqueraded_changed = true;
        let idle = slot.connections() == 0;
        self.ending_again |= self.configuration.settings.expire_nodest_conn && !idle;
        self.version += 1;
        self.use_service(service);
        let place = (key, entry.address, entry.port);
        let idle_since = idle.then_some(now);
        self.trash.insert(place, TrashedServer { entry, key, service, takes_data, idle_since });
    }

    /// Forgets removed real servers that have been idle long enough.
    pub(super) fn empty_trash(&mut self, now: Instant) {
        let mut changed = false;
        let mut forgotten = Vec::new();
        let slots = &self.shared.slots;
        self.trash.retain(|_, trashed| {
            if slots.get(trashed.entry.id).connections() > 0 {
                trashed.idle_since = None;
                return true;
            }
            let since = *trashed.idle_since.get_or_insert_with(|| {
                changed = true;
                now
            });
            let keep = now.since(since) < TRASH_PERIOD;
            if !keep {
                forgotten.push((trashed.entry.id, trashed.service));
            }
            keep
        });
        self.version += u64::from(changed || !forgotten.is_empty());
        for (server, service) in forgotten {
            self.server_ids.free(server.0);
            self.release_service(service);
        }
    }
}
