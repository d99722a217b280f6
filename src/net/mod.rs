//! The kernel's network tables: next hops, local addresses, interfaces.
//!
//! The director takes its next hops from the kernel, so that routes, rules and neighbours are administered as
//! on any host. [`Mirror`] asks the kernel by netlink for the route to each real server, follows the neighbour
//! that it leads through, and gives out a [`NetworkState`] whenever something changed. Because the kernel does
//! not see the director's traffic, the mirror keeps neighbours in use resolved by asking for them.
//!
//! [`Netlink`], [`message`] and [`constants`] are the means; `uvs lab` builds its networks with them too.

pub mod constants;
mod decode;
pub mod message;
mod mirror;
mod route;
mod session;
mod socket;
mod state;
mod view;

pub use decode::{InterfaceAddress, Link, NeighbourEntry};
pub use mirror::{MAX_DESTINATIONS, Mirror, StartError};
pub use route::Route;
pub use socket::{Netlink, NetlinkError, Notifications, Received};
pub use state::{NetworkState, PortState};
