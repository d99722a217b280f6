//! What an operator may ask of a director: every command of `ipvsadm` 1.31, and those about marks, as plain values.
//!
//! [`grammar`](super::grammar) makes them from words, the state executes them. They travel from one to the other as
//! messages of [`protocol`](super::protocol), so they hold nothing that needs this process.

use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};

use super::marks::command::MarkCommand;
use crate::types::{Family, ForwardingMethod, ServiceKey};

pub use crate::types::{Tunnel, TunnelChecksum, TunnelKind};

/// The scheduler of a service whose command names none.
pub const DEFAULT_SCHEDULER: &str = "wlc";
/// Seconds that `-p` without a number asks for: what `ipvsadm` 1.31 sends (its manual says 300).
pub const DEFAULT_PERSISTENCE: u32 = 360;
/// The weight of a real server whose command names none.
pub const DEFAULT_WEIGHT: u32 = 1;
/// The interface of a synchronization daemon whose command names none.
pub const DEFAULT_DAEMON_INTERFACE: &str = "eth0";

/// One command.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Command {
    /// `-A`
    AddService {
        /// Which service.
        key: ServiceKey,
        /// What it shall be.
        spec: ServiceSpec,
    },
    /// `-E`: everything about the service is set anew, what the command left out to its default
    EditService {
        /// Which service.
        key: ServiceKey,
        /// What it shall be.
        spec: ServiceSpec,
    },
    /// `-D`
    DeleteService {
        /// Which service.
        key: ServiceKey,
    },
    /// `-C`: all services go
    Flush,
    /// `-a`
    AddServer {
        /// Of which service.
        key: ServiceKey,
        /// The real server's address.
        address: IpAddr,
        /// Its port; 0 keeps the packet's port.
        port: u16,
        /// What it shall be.
        spec: ServerSpec,
    },
    /// `-e`: everything about the server is set anew, what the command left out to its default
    EditServer {
        /// Of which service.
        key: ServiceKey,
        /// The real server's address.
        address: IpAddr,
        /// Its port.
        port: u16,
        /// What it shall be.
        spec: ServerSpec,
    },
    /// `-d`
    DeleteServer {
        /// Of which service.
        key: ServiceKey,
        /// The real server's address.
        address: IpAddr,
        /// Its port.
        port: u16,
    },
    /// `-L`, `-l`, or no word at all
    List {
        /// What to list.
        what: ListWhat,
        /// How to print it.
        options: ListOptions,
    },
    /// `-S`: the services as commands that `-R` reads
    Save {
        /// Addresses and ports as numbers.
        numeric: bool,
    },
    /// `-R`: read commands from the standard input, one on a line
    Restore,
    /// `-Z`: counters back to zero
    Zero {
        /// Of which service; `None` means of all.
        service: Option<ServiceKey>,
    },
    /// `--set`, in seconds; 0 keeps the timeout as it is
    SetTimeouts {
        /// Established TCP connections.
        tcp: u32,
        /// TCP connections after a FIN.
        tcp_fin: u32,
        /// UDP.
        udp: u32,
    },
    /// `--start-daemon`
    StartDaemon(DaemonSpec),
    /// `--stop-daemon`
    StopDaemon {
        /// Which of the two.
        role: DaemonRole,
    },
    /// `uvs mark`
    Mark(MarkCommand),
    /// `-h`
    Help,
    /// `-v`
    Version,
}

/// What `-A` and `-E` say about a virtual service.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ServiceSpec {
    /// `-s`: a scheduler's name, known or not.
    pub scheduler: String,
    /// `-b`: [`SCHEDULER_FLAGS`], or-ed.
    pub flags: u32,
    /// `-p`: the persistence timeout in seconds, 1..=2678400.
    pub persistence: Option<u32>,
    /// `-M`: which bits of a client's address persistence looks at.
    pub netmask: Netmask,
    /// `--pe`: a persistence engine's name, known or not.
    pub engine: Option<String>,
    /// `-o`: every packet is scheduled anew.
    pub one_packet: bool,
}

impl ServiceSpec {
    /// What a command without options asks for, for a service of `family`.
    pub fn new(family: Family) -> Self {
        Self {
            scheduler: DEFAULT_SCHEDULER.to_owned(),
            flags: 0,
            persistence: None,
            netmask: Netmask::host(family),
            engine: None,
            one_packet: false,
        }
    }
}

/// The three bits that a scheduler may give a meaning to, in order: `flag-1`, `flag-2`, `flag-3`.
pub const SCHEDULER_FLAGS: [u32; 3] = [0x08, 0x10, 0x20];

/// Which bits of a client's address persistence looks at.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Netmask {
    /// Any 32 bits, not only leading ones.
    V4(Ipv4Addr),
    /// Leading bits, 1..=128.
    V6(u8),
}

impl Netmask {
    /// The mask that keeps each client apart.
    pub const fn host(family: Family) -> Self {
        match family {
            Family::V4 => Self::V4(Ipv4Addr::BROADCAST),
            Family::V6 => Self::V6(128),
        }
    }

    /// Whether each client stands for itself: such a mask is not printed.
    pub fn is_host(self) -> bool {
        self == Self::host(self.family())
    }

    /// The family of the addresses it masks.
    pub const fn family(self) -> Family {
        match self {
            Self::V4(_) => Family::V4,
            Self::V6(_) => Family::V6,
        }
    }
}

impl std::fmt::Display for Netmask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::V4(mask) => mask.fmt(f),
            Self::V6(length) => length.fmt(f),
        }
    }
}

/// What `-a` and `-e` say about a real server.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ServerSpec {
    /// `-w`: 0..=2147483647; 0 takes no new connections.
    pub weight: u32,
    /// `-g`, `-i`, `-m`
    pub method: ForwardingMethod,
    /// `-x`: connections from which on it takes no more; 0 means no limit.
    pub upper_threshold: u32,
    /// `-y`: connections below which it takes some again; 0 means three quarters of the upper threshold.
    pub lower_threshold: u32,
    /// `--tun-type` and its like; [`Tunnel::IPIP`] for other methods.
    pub tunnel: Tunnel,
}

impl Default for ServerSpec {
    fn default() -> Self {
        Self {
            weight: DEFAULT_WEIGHT,
            method: ForwardingMethod::DirectRouting,
            upper_threshold: 0,
            lower_threshold: 0,
            tunnel: Tunnel::IPIP,
        }
    }
}

/// What `-L` lists.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ListWhat {
    /// The services and their servers.
    Services {
        /// One of them; `None` means all.
        service: Option<ServiceKey>,
    },
    /// `-c`: the connections and templates.
    Connections,
    /// `--timeout`
    Timeouts,
    /// `--daemon`
    Daemons,
}

/// How `-L` prints.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ListOptions {
    /// `-n`: addresses and ports as numbers.
    pub numeric: bool,
    /// What is told about each server.
    pub columns: Columns,
    /// `--exact`: counters with all their digits.
    pub exact: bool,
    /// False after `--nosort`: the order of the director's own lists.
    pub sort: bool,
    /// `--persistent-conn`: with `-c`, the persistence engine's data too.
    pub engine_data: bool,
}

impl Default for ListOptions {
    fn default() -> Self {
        Self { numeric: false, columns: Columns::Connections, exact: false, sort: true, engine_data: false }
    }
}

/// What a listing tells about each server.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Columns {
    /// Method, weight, connections.
    Connections,
    /// `--stats`
    Stats,
    /// `--rate`
    Rates,
    /// `--thresholds`
    Thresholds,
    /// `--persistent-conn`
    Persistent,
    /// `--tun-info`
    Tunnels,
}

/// A role of the synchronization daemon; both may run at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum DaemonRole {
    /// Tells others about its connections.
    Master,
    /// Listens.
    Backup,
}

impl DaemonRole {
    /// The word of `--start-daemon` and of the listing.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Master => "master",
            Self::Backup => "backup",
        }
    }
}

/// What `--start-daemon` says.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DaemonSpec {
    /// Which of the two.
    pub role: DaemonRole,
    /// `--mcast-interface`
    pub interface: String,
    /// `--syncid`; 0 on a backup means any.
    pub sync_id: u8,
    /// `--sync-maxlen`: 1..=65507 bytes of UDP payload; `None` follows the interface.
    pub max_length: Option<u16>,
    /// `--mcast-group`, a multicast address.
    pub group: Option<IpAddr>,
    /// `--mcast-port`, never 0.
    pub port: Option<u16>,
    /// `--mcast-ttl`, never 0.
    pub ttl: Option<u8>,
}
