//! The director over a capture: offline, without privileges, the same each time.
//!
//! * [`Bench`] - a whole director, to which frames, commands and the time are handed
//! * [`Topology`] - the network around it, as told

mod bench;
mod topology;

pub use bench::{BEGINNING, Bench, FrameTooLong, MAX_FRAME, Output, Terminal, Warning};
pub use topology::{Interface, MAX_INTERFACES, MTU, Neighbour, Topology, TopologyError};
