//! Between an operator and a director: commands, rules text, listings, and how they travel.
//!
//! * [`command`] - what may be asked, as values
//! * [`grammar`] - from words to a command: the grammar of `ipvsadm`
//! * [`listing`] - what a director reports, and the text that `ipvsadm` would print of it
//! * [`marks`] - the program behind `uvs mark`: marks by the words of `iptables`
//! * [`names`] - names of hosts and ports
//! * [`settings`] - the names below `/proc/sys/net/ipv4/vs`
//! * [`error`] - what a director answers when it refuses
//! * [`protocol`] - the messages between a program and a director
//! * [`state`] - what commands change
//! * [`desk`] - requests answered from the state
//! * [`server`], [`client`] - the two ends
//! * [`exchange`] - where a program's requests go: to a socket, or to a director in the same process
//! * [`adm`] - the program behind `uvs adm`, `ipvsadm`, `ipvsadm-save` and `ipvsadm-restore`

pub mod adm;
pub mod client;
pub mod command;
pub mod desk;
pub mod error;
pub mod exchange;
pub mod grammar;
mod help;
pub mod listing;
pub mod marks;
pub mod names;
pub mod protocol;
pub mod server;
pub mod settings;
pub mod state;
