//! Forwarding: how a packet is changed so that it reaches its real server.

pub mod dr;
pub mod fragment;
pub mod icmp;
pub mod nat;
mod next_hop;
pub mod tunnel;

#[cfg(test)]
mod testing;

pub use crate::types::VlanTag;
pub use next_hop::{NextHop, NextHopError};
