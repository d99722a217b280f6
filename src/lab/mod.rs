//! The lab: a whole cluster in network namespaces, to try the director on.

pub mod http;
mod links;
mod namespace;

pub use links::{MAX_INTERFACE_NAME, VethEnd, add_veth};
pub use namespace::{NAMESPACES, Namespace};
