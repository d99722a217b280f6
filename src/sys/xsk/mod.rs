//! AF_XDP: sockets whose rings and frames are shared with the kernel.
//!
//! One UMEM, the worker's [`FramePool`](super::frames::FramePool), serves all of a worker's sockets; each
//! (interface, queue) has a socket with four rings of its own. Needs-wakeup is always on.

mod cursor;
mod ring;
mod socket;
#[cfg(test)]
pub(crate) mod test_program;
mod umem;

pub use socket::{Kick, RingSizes, SocketStatistics, XskSocket, ZeroCopy};
pub(in crate::sys) use umem::Registration;
