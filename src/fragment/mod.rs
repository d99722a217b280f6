//! Fragments, followed on the fly: nothing is put together here, that is the receiver's.
//!
//! The first fragment of a datagram has the transport header, so it alone can be decided about. The [`Table`], shared by
//! all workers, remembers that decision for the others, and which parts of the datagram there were: parts that overlap
//! end it, as they end it in the kernel (RFC 5722, RFC 8200 section 4.5). A fragment that comes before the first one waits
//! with the worker that received it, which holds a [`Ticket`] to ask with.
//!
//! What the table holds for each datagram is made by its caller, and is the same for every forwarding method.

mod coverage;
mod datagram;
#[cfg(all(test, uvs_shuttle))]
mod model;
mod table;

pub use datagram::{Key, Piece, patience};
pub use table::{Datagram, Fate, MAX_WAITING, Refused, Table, Ticket};
