//! Real servers added, edited and removed, and what becomes of the removed ones.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::{Meter, ServerEntry, State, TRASH_PERIOD, TrashedServer};
use crate::control::command::ServerSpec;
use crate::control::error::ControlError;
use crate::service::{RealServer, ServerId, ServiceId};
use crate::types::{Family, ForwardingMethod, Instant, ServiceKey};

/// What the kernel refuses, and what is not built yet (`ip_vs_add_dest`).
fn check(key: &ServiceKey, address: IpAddr, spec: &ServerSpec) -> Result<(), ControlError> {
    let refuse = |what: &str| Err(ControlError::NotSupported(what.to_owned()));
    if spec.lower_threshold > spec.upper_threshold {
        return Err(ControlError::OutOfRange);
    }
    match spec.method {
        ForwardingMethod::Masquerading => return refuse("NAT (-m)"),
        ForwardingMethod::Tunnel => return refuse("tunnelling (-i)"),
        ForwardingMethod::Local | ForwardingMethod::DirectRouting => (),
    }
    let unicast = match address {
        IpAddr::V4(address) => {
            !address.is_multicast() && !address.is_broadcast() && !address.is_unspecified()
        }
        IpAddr::V6(address) => !address.is_multicast() && !address.is_unspecified(),
    };
    if !unicast || Family::of(address) != key.family() {
        return Err(ControlError::InvalidOperation);
    }
    Ok(())
}

impl State {
    fn apply(&self, id: ServerId, spec: &ServerSpec) {
        let slot = self.shared.slots.get(id);
        slot.set_weight(spec.weight);
        slot.set_thresholds(spec.upper_threshold, spec.lower_threshold);
        slot.set_method(spec.method);
        slot.set_available(true);
    }

    pub(super) fn add_server(
        &mut self,
        key: &ServiceKey,
        address: IpAddr,
        port: u16,
        spec: &ServerSpec,
    ) -> Result<(), ControlError> {
        let position = self.find(key).ok_or(ControlError::ServiceNotDefined)?;
        if self.services[position]
            .servers
            .iter()
            .any(|server| (server.address, server.port) == (address, port))
        {
            return Err(ControlError::ServerExists);
        }
        check(key, address, spec)?;
        let service = self.services[position].service.id;
        let mut entry = match self.take_from_trash(key, address, port, service) {
            Some(entry) => entry,
            None => self.new_server(address, port, service)?,
        };
        entry.spec = *spec;
        self.apply(entry.id, spec);
        let server = RealServer { id: entry.id, address, port, method: spec.method };
        self.services[position].service.chooser.lock().add(&self.shared.slots, server);
        self.services[position].servers.insert(0, entry);
        Ok(())
    }

    fn new_server(
        &mut self,
        address: IpAddr,
        port: u16,
        service: ServiceId,
    ) -> Result<ServerEntry, ControlError> {
        let id = ServerId(self.server_ids.allocate().ok_or(ControlError::NoMemory)?);
        self.shared.slots.get(id).assign(service);
        let meter = Meter::new(self.shared.server_traffic(id));
        Ok(ServerEntry { id, address, port, spec: ServerSpec::default(), meter })
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
        let same = |trashed: &TrashedServer| {
            trashed.key == *key && (trashed.entry.address, trashed.entry.port) == (address, port)
        };
        let position = self.trash.iter().position(same)?;
        let trashed = self.trash.remove(position);
        self.shared.slots.get(trashed.entry.id).reassign(service);
        if trashed.service != service {
            self.release_service(trashed.service);
        }
        Some(trashed.entry)
    }

    pub(super) fn edit_server(
        &mut self,
        key: &ServiceKey,
        address: IpAddr,
        port: u16,
        spec: &ServerSpec,
    ) -> Result<(), ControlError> {
        let position = self.find(key).ok_or(ControlError::ServiceNotDefined)?;
        let entry = &mut self.services[position];
        let server = entry.servers.iter_mut().find(|server| (server.address, server.port) == (address, port));
        let server = server.ok_or(ControlError::NoSuchServer)?;
        check(key, address, spec)?;
        server.spec = *spec;
        let id = server.id;
        self.apply(id, spec);
        let server = RealServer { id, address, port, method: spec.method };
        self.services[position].service.chooser.lock().update(&self.shared.slots, server);
        Ok(())
    }

    pub(super) fn delete_server(
        &mut self,
        key: &ServiceKey,
        address: IpAddr,
        port: u16,
        now: Instant,
    ) -> Result<(), ControlError> {
        let position = self.find(key).ok_or(ControlError::ServiceNotDefined)?;
        let entry = &mut self.services[position];
        let place = entry.servers.iter().position(|server| (server.address, server.port) == (address, port));
        let server = entry.servers.remove(place.ok_or(ControlError::NoSuchServer)?);
        let id = entry.service.id;
        entry.service.chooser.lock().remove(&self.shared.slots, server.id);
        self.discard(server, *key, id, now);
        Ok(())
    }

    /// Into the trash with a removed real server (`__ip_vs_del_dest`). Its connections stay until they end, or end
    /// now where `expire_nodest_conn` says so.
    pub(super) fn discard(&mut self, entry: ServerEntry, key: ServiceKey, service: ServiceId, now: Instant) {
        self.shared.slots.get(entry.id).set_available(false);
        if self.configuration.settings.expire_nodest_conn {
            self.shared.end_connections_of(entry.id, &mut self.views, now);
        }
        let idle = self.shared.slots.get(entry.id).connections() == 0;
        self.trash.push(TrashedServer { entry, key, service, idle_since: idle.then_some(now) });
    }

    /// Forgets removed real servers that have been idle long enough; says whether there were any, or some lost
    /// their last connection.
    pub(super) fn empty_trash(&mut self, now: Instant) -> bool {
        let mut changed = false;
        let mut forgotten = Vec::new();
        let slots = &self.shared.slots;
        self.trash.retain_mut(|trashed| {
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
        changed |= !forgotten.is_empty();
        forgotten.iter().for_each(|(server, _)| self.server_ids.free(server.0));
        // Each service once, however many of its real servers went.
        let services: BTreeSet<ServiceId> = forgotten.into_iter().map(|(_, service)| service).collect();
        services.into_iter().for_each(|service| self.release_service(service));
        changed
    }
}
