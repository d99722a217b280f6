//! Values: the small, copyable things every other layer speaks of.
//!
//! Nothing here does I/O, allocates per packet or reads a clock: [`Instant`] is only ever handed in.

mod address;
mod hash;
mod key;
mod time;
mod tunnel;

pub use address::{BadMacAddress, BadPrefix, Family, MacAddress, PortId, Prefix, VlanTag};
pub use hash::HashKey;
pub use key::{ForwardingMethod, Protocol, ServiceKey};
pub use time::{Duration, Instant};
pub use tunnel::{Tunnel, TunnelChecksum, TunnelKind};
