//! What a director reports, as plain rows in its own order, and the text that `ipvsadm` would print of them.

mod connections;
mod labels;
mod number;
mod save;
mod services;
mod sort;

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

pub use connections::{connection_header, connection_row};
pub use labels::Labels;
pub use save::save_service;
pub use services::{services_header, services_row};
pub use sort::{sort_servers, sort_services};

use super::command::{DaemonRole, ServerSpec, ServiceSpec};
use crate::types::{Protocol, ServiceKey};

/// The version of IPVS whose behaviour this is: part of the first line of listings.
pub const IPVS_VERSION: &str = "1.2.1";

/// Counters since the service or server was added, or since `-Z`.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Counters {
    /// Connections scheduled.
    pub connections: u64,
    /// Packets from clients.
    pub in_packets: u64,
    /// Packets from servers: 0 unless their answers come through the director.
    pub out_packets: u64,
    /// Bytes from clients, IP header included.
    pub in_bytes: u64,
    /// Bytes from servers, IP header included.
    pub out_bytes: u64,
}

/// Each of the counters per second, smoothed by the director.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Rates {
    /// Connections a second.
    pub connections: u64,
    /// Packets from clients a second.
    pub in_packets: u64,
    /// Packets from servers a second.
    pub out_packets: u64,
    /// Bytes from clients a second.
    pub in_bytes: u64,
    /// Bytes from servers a second.
    pub out_bytes: u64,
}

/// A virtual service with its real servers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ServiceRow {
    /// Which service.
    pub key: ServiceKey,
    /// What it is.
    pub spec: ServiceSpec,
    /// What went through it.
    pub counters: Counters,
    /// What goes through it.
    pub rates: Rates,
    /// Its servers in the director's order: last added first.
    pub servers: Vec<ServerRow>,
}

/// A real server of a service.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ServerRow {
    /// Its address.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// What it is.
    pub spec: ServerSpec,
    /// Connections in an active state.
    pub active: u32,
    /// Connections in any other.
    pub inactive: u32,
    /// Connection templates.
    pub persistent: u32,
    /// What went to and from it.
    pub counters: Counters,
    /// What goes to and from it.
    pub rates: Rates,
}

/// A connection or a connection template.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ConnectionRow {
    /// `None`, printed `IP`, for the template of a mark.
    pub protocol: Option<Protocol>,
    /// Whole seconds until it ends.
    pub expires: u64,
    /// The state's name, as in `ESTABLISHED`.
    pub state: String,
    /// The client; port 0 in a template.
    pub client: (IpAddr, u16),
    /// What the client meant; in the template of a mark, the mark in the place of an address.
    pub service: (IpAddr, u16),
    /// The real server.
    pub server: (IpAddr, u16),
    /// The name of a persistence engine, and its data as text.
    pub engine: Option<(String, String)>,
}

/// The timeouts that `--set` changes, in seconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Timeouts {
    /// Established TCP connections.
    pub tcp: u32,
    /// TCP connections after a FIN.
    pub tcp_fin: u32,
    /// UDP.
    pub udp: u32,
}

impl std::fmt::Display for Timeouts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "Timeout (tcp tcpfin udp): {} {} {}", self.tcp, self.tcp_fin, self.udp)
    }
}

/// A synchronization daemon that runs.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DaemonRow {
    /// Which of the two.
    pub role: DaemonRole,
    /// Its interface.
    pub interface: String,
    /// Its identity among synchronizing directors.
    pub sync_id: u8,
    /// The largest message in bytes of UDP payload; 0 is not printed.
    pub max_length: u16,
    /// The multicast group.
    pub group: Option<IpAddr>,
    /// The UDP port; 0 is not printed.
    pub port: u16,
    /// The time to live of messages; 0 is not printed.
    pub ttl: u8,
}

impl std::fmt::Display for DaemonRow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { role, interface, sync_id, max_length, group, port, ttl } = self;
        write!(f, "{} sync daemon (mcast={interface}, syncid={sync_id}", role.name())?;
        if *max_length != 0 {
            write!(f, ", maxlen={max_length}")?;
        }
        if let Some(group) = group {
            write!(f, ", group={group}")?;
        }
        if *port != 0 {
            write!(f, ", port={port}")?;
        }
        if *ttl != 0 {
            write!(f, ", ttl={ttl}")?;
        }
        writeln!(f, ")")
    }
}

/// The names of a service's scheduler flags with commas between; empty without any.
fn flag_names(spec: &ServiceSpec) -> String {
    // Two schedulers have names of their own for the first two, and no use for the third.
    let names: &[&str] = match &spec.scheduler[..] {
        "sh" => &["sh-fallback", "sh-port"],
        "mh" => &["mh-fallback", "mh-port"],
        _ => &["flag-1", "flag-2", "flag-3"],
    };
    let set = super::command::SCHEDULER_FLAGS.iter().zip(names).filter(|(bit, _)| spec.flags & **bit != 0);
    set.map(|(_, name)| *name).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests;
