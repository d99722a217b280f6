//! Where a packet for a real server leaves, and to whose link address.

use crate::types::{MacAddress, PortId, VlanTag};

/// The way to one real server, as the kernel's routes and neighbours have it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NextHop {
    /// Known.
    Ready {
        /// The port to send out of.
        port: PortId,
        /// That interface's own address (a VLAN interface's, where it is one).
        source: MacAddress,
        /// The real server's, or its gateway's.
        destination: MacAddress,
        /// The tag to send with, where the route leads through a VLAN interface.
        vlan: Option<VlanTag>,
        /// Largest IP packet that fits, in bytes.
        mtu: u32,
    },
    /// The kernel was asked for the link address and has not answered yet.
    Resolving,
    /// The real server is the director's own host.
    Local,
    /// There is no way.
    Failed(NextHopError),
}

/// Why there is no way to a real server.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
pub enum NextHopError {
    /// The kernel has no route.
    #[error("the kernel has no route to it")]
    NoRoute,
    /// The route leads out of an interface that the director was not given.
    #[error("the route leads out of an interface that the director was not given (--interface)")]
    ForeignInterface,
    /// Nobody answers for the address.
    #[error("nobody on the link answers for it")]
    NeighbourFailed,
    /// The interface is down.
    #[error("the interface is down")]
    PortDown,
}
