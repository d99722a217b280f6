//! The system: everything that needs `unsafe`, behind safe types.
//!
//! The only folder in which `unsafe` is allowed. Each block says why it is sound and why safe code cannot do
//! the same. Nothing here knows what a service or a connection is.
#![allow(unsafe_code)]

pub mod allocations;
pub mod bpf;
pub mod claim;
pub mod frames;
pub mod interface;
pub mod memory;
pub mod names;
pub mod namespace;
pub mod netlink;
pub mod packet;
pub mod signals;
pub mod sockopt;
pub mod tun;
pub mod xsk;
