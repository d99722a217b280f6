//! Services added, edited and deleted.

use std::sync::Arc;

use parking_lot::Mutex;

use super::{Meter, ServiceEntry, State};
use crate::control::command::{Netmask, ServiceSpec};
use crate::control::error::ControlError;
use crate::control::settings::{Setting, SettingValue, Support};
use crate::persistence::{ClientMask, Persistence};
use crate::scheduler::{self, Lifetimes, Scheduler};
use crate::service::{Chooser, FTP_PORT, Service, ServiceId};
use crate::types::{Duration, HashKey, Instant, Protocol, ServiceKey};

/// Refuses what is not built yet, in words.
fn check(spec: &ServiceSpec, secret: HashKey) -> Result<Box<dyn Scheduler>, ControlError> {
    let refuse = |what: &str| Err(ControlError::NotSupported(what.to_owned()));
    let scheduler =
        scheduler::create(&spec.scheduler, spec.flags, secret).ok_or(ControlError::NoScheduler)?;
    match &spec.engine {
        Some(engine) if engine == "sip" => return refuse("the persistence engine 'sip' (--pe)"),
        Some(_) => return Err(ControlError::NoScheduler),
        None => (),
    }
    Ok(scheduler)
}

/// What `-p` and `-M` say.
fn persistence(spec: &ServiceSpec) -> Option<Persistence> {
    let mask = match spec.netmask {
        Netmask::V4(mask) => ClientMask::ipv4(mask),
        Netmask::V6(length) => ClientMask::ipv6(length),
    };
    spec.persistence.map(|seconds| Persistence { timeout: Duration::from_secs(seconds.into()), mask })
}

/// Whether packets to other ports than its own may be the service's: the data of a persistent FTP service.
fn takes_data(key: &ServiceKey, spec: &ServiceSpec) -> bool {
    let is_ftp = matches!(key, ServiceKey::Address { protocol: Protocol::Tcp, port: FTP_PORT, .. });
    is_ftp && spec.persistence.is_some()
}

impl State {
    /// The scheduler that a service asks for.
    fn scheduler(&self, spec: &ServiceSpec) -> Result<Box<dyn Scheduler>, ControlError> {
        let mut scheduler = check(spec, self.shared.scheduling_key)?;
        scheduler.set_lifetimes(self.lifetimes());
        Ok(scheduler)
    }

    /// What the settings say that schedulers remember.
    fn lifetimes(&self) -> Lifetimes {
        let seconds = |name| match self.get(name) {
            Ok(SettingValue::Number(seconds)) => Duration::from_secs(seconds.unsigned_abs()),
            _ => Duration::ZERO,
        };
        Lifetimes { lblc: seconds("lblc_expiration"), lblcr: seconds("lblcr_expiration") }
    }

    pub(super) fn add_service(&mut self, key: ServiceKey, spec: &ServiceSpec) -> Result<(), ControlError> {
        if self.by_key.contains_key(&key) {
            return Err(ControlError::ServiceExists);
        }
        let scheduler = self.scheduler(spec)?;
        let id = ServiceId(self.service_ids.allocate().ok_or(ControlError::NoMemory)?);
        self.use_service(id);
        let chooser = Arc::new(Mutex::new(Chooser::new(scheduler)));
        let (persistence, one_packet) = (persistence(spec), spec.one_packet);
        let service = Arc::new(Service { id, key, chooser, persistence, one_packet });
        self.configuration.services.insert(Arc::clone(&service));
        self.changed = true;
        self.version += 1;
        let meter = Meter::new(self.shared.service_traffic(id));
        self.added += 1;
        self.by_key.insert(key, self.added);
        let takes_data = takes_data(&key, spec);
        let entry = ServiceEntry { service, spec: spec.clone(), servers: Vec::new(), meter, takes_data };
        self.services.insert(self.added, entry);
        Ok(())
    }

    /// Sets everything about a service anew; its real servers, connections and templates stay as they are. A scheduler of
    /// the same name and flags goes on where it was (`ip_vs_edit_service`).
    pub(super) fn edit_service(&mut self, key: ServiceKey, spec: &ServiceSpec) -> Result<(), ControlError> {
        let shared = Arc::clone(&self.shared);
        self.entry(&key).ok_or(ControlError::NoSuchService)?;
        let scheduler = self.scheduler(spec)?;
        let entry = self.entry_mut(&key).ok_or(ControlError::NoSuchService)?;
        if entry.spec.scheduler != spec.scheduler || entry.spec.flags != spec.flags {
            entry.service.chooser.lock().replace_scheduler(&shared.slots, scheduler);
        }
        entry.spec = spec.clone();
        let (persistence, one_packet) = (persistence(spec), spec.one_packet);
        if (entry.service.persistence, entry.service.one_packet) == (persistence, one_packet) {
            return Ok(());
        }
        // Data connections may outlive the persistence.
        let steers_more = takes_data(&key, spec) && !entry.takes_data;
        entry.takes_data |= steers_more;
        let Service { id, ref chooser, .. } = *entry.service;
        entry.service = Arc::new(Service { id, key, chooser: Arc::clone(chooser), persistence, one_packet });
        let service = Arc::clone(&entry.service);
        self.configuration.services.insert(service);
        self.changed = true;
        self.masqueraded_changed |= steers_more;
        self.version += u64::from(steers_more);
        Ok(())
    }

    pub(super) fn delete_service(&mut self, key: &ServiceKey, now: Instant) -> Result<(), ControlError> {
        let number = self.by_key.remove(key).ok_or(ControlError::NoSuchService)?;
        let entry = self.services.remove(&number).ok_or(ControlError::NoSuchService)?;
        self.configuration.services.remove(key);
        self.changed = true;
        self.version += 1;
        let id = entry.service.id;
        entry.service.chooser.lock().clear(&self.shared.slots);
        for server in entry.servers {
            self.discard(server, *key, (id, entry.takes_data), now);
        }
        self.release_service(id);
        Ok(())
    }

    /// `-C`: all services go, connections stay.
    pub(super) fn flush(&mut self, now: Instant) {
        let keys: Vec<ServiceKey> = self.services.values().map(|entry| entry.service.key).collect();
        for key in keys {
            // It was there a moment ago, and nobody else changes the state.
            let _ = self.delete_service(&key, now);
        }
    }

    /// One more has a service's number: the service configured, or a removed real server of it.
    pub(super) fn use_service(&mut self, id: ServiceId) {
        self.service_uses[id.0 as usize] += 1;
    }

    /// One less has a service's number; it is free once nobody has it.
    pub(super) fn release_service(&mut self, id: ServiceId) {
        let uses = &mut self.service_uses[id.0 as usize];
        *uses -= 1;
        if *uses == 0 {
            self.service_ids.free(id.0);
        }
    }

    pub(super) fn zero(&mut self, key: Option<&ServiceKey>) -> Result<(), ControlError> {
        if let Some(key) = key
            && !self.by_key.contains_key(key)
        {
            return Err(ControlError::NoSuchService);
        }
        let shared = Arc::clone(&self.shared);
        for entry in self.services.values_mut() {
            if key.is_some_and(|key| *key != entry.service.key) {
                continue;
            }
            entry.meter.reset(shared.service_traffic(entry.service.id));
            for server in &mut entry.servers {
                server.meter.reset(shared.server_traffic(server.id));
            }
        }
        Ok(())
    }

    /// `--set`: 0 keeps a timeout. Connections adopt theirs with their next packet.
    pub(super) fn set_timeouts(&mut self, tcp: u32, tcp_fin: u32, udp: u32) {
        let timeouts = &mut self.configuration.settings.timeouts;
        let [established, fin_wait] = [crate::conn::State::ESTABLISHED, crate::conn::State::FIN_WAIT];
        for (timeout, seconds) in
            [(&mut timeouts.tcp[usize::from(established.0)], tcp), (&mut timeouts.udp, udp)]
        {
            if seconds != 0 {
                *timeout = Duration::from_secs(seconds.into());
            }
        }
        if tcp_fin != 0 {
            timeouts.tcp[usize::from(fin_wait.0)] = Duration::from_secs(tcp_fin.into());
        }
        self.changed = true;
    }

    /// Sets a setting of `net.ipv4.vs`.
    ///
    /// # Errors
    /// An unknown name, a value it cannot have, or one that this director cannot act on yet.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), ControlError> {
        let setting = Setting::find(name)?;
        let value = setting.accept(value)?;
        if let (Support::Live, SettingValue::Number(number)) = (setting.support, &value) {
            let settings = &mut self.configuration.settings;
            match setting.name {
                "conn_reuse_mode" => settings.conn_reuse_mode = *number as u8,
                "expire_nodest_conn" => settings.expire_nodest_conn = *number != 0,
                "expire_quiescent_template" => settings.expire_quiescent_template = *number != 0,
                "nat_icmp_send" => settings.nat_icmp_send = *number != 0,
                "pmtu_disc" => settings.pmtu_disc = *number != 0,
                "sloppy_tcp" => settings.sloppy_tcp = *number != 0,
                // Not the packet path's: the schedulers are told below.
                "lblc_expiration" | "lblcr_expiration" => (),
                other => return Err(ControlError::NotSupported(format!("setting {other}"))),
            }
            self.changed = true;
        }
        self.settings.retain(|(known, _)| *known != setting.name);
        self.settings.push((setting.name, value));
        if matches!(setting.name, "lblc_expiration" | "lblcr_expiration") {
            let lifetimes = self.lifetimes();
            self.services.values().for_each(|entry| entry.service.chooser.lock().set_lifetimes(lifetimes));
        }
        Ok(())
    }

    /// The value of a setting.
    ///
    /// # Errors
    /// An unknown name.
    pub fn get(&self, name: &str) -> Result<SettingValue, ControlError> {
        let setting = Setting::find(name)?;
        let set = self.settings.iter().find(|(known, _)| *known == setting.name);
        Ok(set.map_or_else(|| setting.default_value(), |(_, value)| value.clone()))
    }
}
