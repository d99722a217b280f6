//! Forwarding: how a packet is changed so that it reaches its real server. Pure functions on frames.
//!
//! | module | holds |
//! |---|---|
//! | [`dr`] | what all methods have in common, and direct routing needs alone: lifetime, link header |
//! | [`nat`] | masquerading: an address and a port replaced |
//! | [`tunnel`] | the packet put into another |
//! | [`icmp`] | errors about packets of connections: under masquerading, and from inside tunnels |
//! | [`fragment`] | a packet cut to the MTU |
//! | [`Routes`] | which way leads to an address |

pub mod dr;
pub mod fragment;
pub mod icmp;
pub mod nat;
mod next_hop;
mod routes;
pub mod tunnel;

#[cfg(test)]
mod testing;

pub use crate::types::VlanTag;
pub use next_hop::{NextHop, NextHopError};
pub use routes::{Routes, Way};
