//! The whole program, in network namespaces, with real clients and real servers.

mod fragments;
mod icmp;
mod load;
mod marks;
mod nat;
mod notes;
mod oracle;
mod restart;
mod sticky;
mod transfers;
mod trouble;
mod tunnel;

#[path = "../support/mod.rs"]
mod support;
