//! Forwarding: how a packet is changed so that it reaches its real server.

pub mod dr;
mod next_hop;

pub use crate::types::VlanTag;
pub use next_hop::{NextHop, NextHopError};
