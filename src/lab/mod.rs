//! The lab: a whole cluster in network namespaces, to try the director on.
//!
//! `uvs lab` builds the network of [`topology`], starts the director in it as a process of its own, configures
//! it by `uvs adm` as an operator would, sends requests and shows who answered them. Everything is removed at
//! the end, also by Ctrl-C; what a killed lab leaves behind is removed by the next one.

mod decapsulator;
mod director;
mod error;
mod host;
pub mod http;
mod links;
mod namespace;
mod options;
mod place;
mod run;
pub mod topology;

pub use decapsulator::Decapsulator;
pub use error::LabError;
pub use host::{Host, MAX_CLIENTS, MAX_SERVERS};
pub use links::{MAX_INTERFACE_NAME, VethEnd, add_veth};
pub use namespace::{NAMESPACES, Namespace};
pub use options::{Forwarding, IoKind, LabOptions, XdpMode};
pub use run::{main, run};
