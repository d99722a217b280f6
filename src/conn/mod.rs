//! Connections: one table for all workers, their states, and their ends.
//!
//! A [`Table`] holds the connections of one address family: fixed-size records of plain atomic words, found
//! through buckets of one cache line, named by index and generation. Looking up and updating an existing
//! connection takes no lock; making or removing one locks its bucket. [`Epochs`] keep a record from being
//! reused while a worker may still look at it, and each worker's [`Wheel`] wakes it up when
//! connections may have come to their end.

mod bucket;
mod epoch;
mod key;
#[cfg(all(test, uvs_shuttle))]
mod model;
mod pool;
mod record;
pub mod sctp;
mod state;
mod table;
mod timer;

pub use bucket::BucketGuard;
pub use epoch::{Epochs, MAX_WORKERS};
pub use key::{FlowFamily, FlowKey, Ipv4, Ipv6};
pub use record::{Connection, Flags, Lifecycle};
pub use state::{Direction, State, StateTable, TcpEvent, Timeouts};
pub use table::{ConnectionId, Found, Hint, NewConnection, Table, TableFull, WorkerView};
pub use timer::{TIMER_RESOLUTION, Wheel};
