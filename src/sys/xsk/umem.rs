//! A worker's frames as the memory of AF_XDP sockets.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Weak};

use rustix::net::xdp::{XdpUmemReg, XdpUmemRegFlags};

use crate::sys::frames::FramePool;

/// A registration of a pool's mapping as a UMEM.
///
/// The kernel knows a UMEM by a bound socket, and every socket that shares it gets that socket's mode. So a
/// pool is registered at most once per mode, and not again before the socket that did it is gone.
#[derive(Debug)]
pub(in crate::sys) struct Registration {
    socket: Weak<OwnedFd>,
    zero_copy: bool,
}

/// Registers the pool's mapping with `socket`. The kernel keeps the pages until the last socket closes, even
/// where the pool is gone by then.
pub(super) fn register(socket: BorrowedFd<'_>, frames: &FramePool) -> io::Result<()> {
    let registration = XdpUmemReg {
        addr: frames.mapping().start().as_ptr().expose_provenance() as u64,
        len: u64::from(frames.chunks()) * frames.chunk_size() as u64,
        chunk_size: u32::try_from(frames.chunk_size()).map_err(|_| io::ErrorKind::InvalidInput)?,
        // On top of XDP_PACKET_HEADROOM, which is HEADROOM already.
        headroom: 0,
        flags: XdpUmemRegFlags::empty(),
        tx_metadata_len: 0,
    };
    Ok(rustix::net::sockopt::set_xdp_umem_reg(socket, registration)?)
}

/// The socket through which to share the pool's registration in this mode, if there is one.
pub(super) fn shared(frames: &FramePool, zero_copy: bool) -> Option<Arc<OwnedFd>> {
    let same = frames.registrations.iter().filter(|registration| registration.zero_copy == zero_copy);
    same.filter_map(|registration| registration.socket.upgrade()).next()
}

/// Notes that `socket`, now bound, registered the pool.
pub(super) fn note(frames: &mut FramePool, socket: &Arc<OwnedFd>, zero_copy: bool) {
    frames.registrations.retain(|registration| registration.socket.strong_count() > 0);
    frames.registrations.push(Registration { socket: Arc::downgrade(socket), zero_copy });
}
