//! What the state tells listings.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::State;
use crate::conn::{FlowFamily, Table};
use crate::control::error::ControlError;
use crate::control::listing::{ConnectionRow, ServerRow, ServiceRow, Timeouts};
use crate::director::{Shared, Walk};
use crate::persistence::{Templates, Walked};
use crate::service::ServerId;
use crate::types::{Instant, Protocol, ServiceKey};

/// Records looked at for one chunk of a listing.
const CHUNK: u32 = 4096;

impl State {
    /// All services, in the order they were added, each with its real servers last added first; or just one.
    ///
    /// # Errors
    /// There is no such service.
    pub fn services(&self, key: Option<&ServiceKey>) -> Result<Vec<ServiceRow>, ControlError> {
        match key {
            Some(key) => {
                self.entry(key).map(|entry| vec![self.service_row(entry)]).ok_or(ControlError::NoSuchService)
            }
            None => Ok(self.services.values().map(|entry| self.service_row(entry)).collect()),
        }
    }

    fn service_row(&self, entry: &super::ServiceEntry) -> ServiceRow {
        ServiceRow {
            key: entry.service.key,
            spec: entry.spec.clone(),
            counters: entry.meter.counters(self.shared.service_traffic(entry.service.id)),
            rates: entry.meter.estimator.rates(),
            servers: entry.servers.iter().map(|server| self.server_row(server)).collect(),
        }
    }

    fn server_row(&self, server: &super::ServerEntry) -> ServerRow {
        let slot = self.shared.slots.get(server.id);
        ServerRow {
            address: server.address,
            port: server.port,
            spec: server.spec,
            active: slot.active(),
            inactive: slot.inactive(),
            persistent: slot.persistent(),
            counters: server.meter.counters(self.shared.server_traffic(server.id)),
            rates: server.meter.estimator.rates(),
        }
    }

    /// The timeouts that `--set` changes.
    pub fn timeouts(&self) -> Timeouts {
        let timeouts = &self.configuration.settings.timeouts;
        let seconds = |state: crate::conn::State| {
            u32::try_from(timeouts.tcp[usize::from(state.0)].as_secs()).unwrap_or(u32::MAX)
        };
        Timeouts {
            tcp: seconds(crate::conn::State::ESTABLISHED),
            tcp_fin: seconds(crate::conn::State::FIN_WAIT),
            udp: u32::try_from(timeouts.udp.as_secs()).unwrap_or(u32::MAX),
        }
    }

    /// Number of buckets of the connection table: the `size` of listings.
    pub fn table_size(&self) -> u64 {
        self.shared.ipv4.buckets()
    }

    /// Who lists connections: it needs the state only to begin, and then walks the tables on its own, so that a long
    /// listing keeps no command waiting.
    pub fn connections(&self) -> Connections {
        Connections {
            shared: Arc::clone(&self.shared),
            servers: self.wanted().collect(),
            walk: Some(Walk::default()),
        }
    }

    pub(super) fn estimate(&mut self) {
        for entry in self.services.values_mut() {
            entry.meter.estimator.sample(self.shared.service_traffic(entry.service.id));
            for server in &mut entry.servers {
                server.meter.estimator.sample(self.shared.server_traffic(server.id));
            }
        }
    }
}

/// A walk over all connections and templates, in chunks.
#[derive(Debug)]
pub struct Connections {
    shared: Arc<Shared>,
    servers: HashMap<ServerId, IpAddr>,
    walk: Option<Walk>,
}

impl Connections {
    /// The next rows, perhaps none of them; `None` at the end.
    pub fn next_chunk(&mut self, now: Instant) -> Option<Vec<ConnectionRow>> {
        let walk = self.walk?;
        let Shared { ipv4, ipv6, .. } = &*self.shared;
        let next = |rows: &mut Vec<ConnectionRow>| match walk {
            Walk { ipv6: false, templates: false, next } => connections(ipv4, &self.servers, next, now, rows),
            Walk { ipv6: true, templates: false, next } => connections(ipv6, &self.servers, next, now, rows),
            Walk { ipv6: false, next, .. } => templates(ipv4.templates(), &self.servers, next, now, rows),
            Walk { next, .. } => templates(ipv6.templates(), &self.servers, next, now, rows),
        };
        let mut rows = Vec::new();
        self.walk = walk.advanced(next(&mut rows));
        Some(rows)
    }
}

fn templates<F: FlowFamily>(
    templates: &Templates<F>,
    servers: &HashMap<ServerId, IpAddr>,
    start: u32,
    now: Instant,
    rows: &mut Vec<ConnectionRow>,
) -> Option<u32> {
    templates.visit(start, CHUNK, now, |template| {
        rows.extend(servers.get(&template.server).map(|server| template_row(&template, *server)));
    })
}

fn template_row(template: &Walked, server: IpAddr) -> ConnectionRow {
    let Walked { protocol, client, service, server_port, remaining, assured, .. } = *template;
    ConnectionRow {
        protocol: Protocol::from_number(protocol),
        expires: remaining.as_secs(),
        state: if assured { "ASSURED" } else { "NONE" }.to_owned(),
        client: (client, 0),
        service,
        server: (server, server_port),
        engine: None,
    }
}

fn connections<F: FlowFamily>(
    table: &Table<F>,
    servers: &HashMap<ServerId, IpAddr>,
    start: u32,
    now: Instant,
    rows: &mut Vec<ConnectionRow>,
) -> Option<u32> {
    table.visit(start, CHUNK, now, |_, lifecycle, record| {
        let (client, destination) = record.addresses();
        let (client_port, virtual_port, protocol) = record.ports();
        // A connection made since the listing began may have a real server that it does not know.
        let Some(server) = servers.get(&record.server()) else { return };
        rows.push(ConnectionRow {
            protocol: Protocol::from_number(protocol),
            expires: record.deadline().since(now).as_secs(),
            state: lifecycle.state.name(protocol).to_owned(),
            client: (client, client_port),
            service: (destination, virtual_port),
            server: (*server, record.target().1),
            engine: None,
        });
    })
}
