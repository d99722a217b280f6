//! Tunnels to real servers: which headers are put around a packet.

use serde::{Deserialize, Serialize};

/// How packets to a tunnelled server are wrapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Tunnel {
    /// Which headers.
    pub kind: TunnelKind,
    /// The UDP port of GUE, never 0 there; 0 for the other kinds.
    pub port: u16,
    /// What guards the inner packet; [`TunnelChecksum::None`] for IP in IP.
    pub checksum: TunnelChecksum,
}

impl Tunnel {
    /// Plain IP in IP.
    pub const IPIP: Self = Self { kind: TunnelKind::Ipip, port: 0, checksum: TunnelChecksum::None };
}

/// The kind of a tunnel.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum TunnelKind {
    /// IP in IP
    Ipip,
    /// Generic UDP encapsulation
    Gue,
    /// Generic routing encapsulation
    Gre,
}

impl TunnelKind {
    /// The word of `--tun-type`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ipip => "ipip",
            Self::Gue => "gue",
            Self::Gre => "gre",
        }
    }
}

/// What guards the inner packet of a tunnel.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum TunnelChecksum {
    /// `--tun-nocsum`, the default
    None,
    /// `--tun-csum`
    Checksum,
    /// `--tun-remcsum`, GUE's remote checksum offload
    Remote,
}
