//! Persistence: clients that stay with their real server, by connection templates.
//!
//! A template says where a client's new connections go, for as long as it lives: a fixed record of plain atomic words
//! like a connection, found by the client (as far as the service's netmask looks at it) and what the client wants.
//! [`Templates`] holds those of one address family in shards of bounded size, each behind one small lock that is taken
//! once for a new connection and never for a packet. Whoever holds the shard of a client is the only one to decide
//! about that client, so that two workers that meet it at once agree on one server.
//!
//! The rules - keys, validity, the timer with its quirks - are those of `ip_vs_sched_persist`, `ip_vs_check_template`
//! and `ip_vs_conn_expire`.

mod heap;
mod key;
#[cfg(all(test, uvs_shuttle))]
mod model;
#[cfg(test)]
mod property;
mod record;
mod shard;
mod templates;

pub use key::{ClientMask, Persistence, TemplateFamily, TemplateKey, own_port};
pub use record::TemplateId;
pub use shard::{Found, NewTemplate, ShardGuard, TemplateTableFull};
pub use templates::{Templates, Walked};
