//! AF_XDP ports: one socket per queue that the worker owns on an interface.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread;
use std::time::Duration;

use rustix::event::epoll;

use super::checksum;
use super::{Port, PortStatistics};
use crate::director::{BATCH_SIZE, Batch, Offload};
use crate::sys::frames::{Frame, FramePool};
use crate::sys::interface::InterfaceControl;
use crate::sys::memory::prefetch;
use crate::sys::xsk::{RingSizes, XskSocket, ZeroCopy};
use crate::types::PortId;

/// Waits between attempts to bind a queue that is busy: for 75 to 160 ms after a queue's owner went, the
/// kernel has not let go of it. 1.06 s in all.
const BUSY_WAITS_MS: [u64; 8] = [10, 20, 40, 80, 160, 250, 250, 250];

/// Shortest frame that is sent: an Ethernet header. Drivers make little of less.
const SHORTEST_FRAME: usize = 14;

/// How to open an AF_XDP port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct XdpOptions {
    /// Whether frames are to stay where they are.
    pub zero_copy: ZeroCopy,
    /// Slots of the rings of each socket.
    pub rings: RingSizes,
    /// Chunks that receiving leaves in the pool, for frames that the director makes or holds.
    pub reserve: usize,
    /// Complete checksums that hold only the pseudo-header's sum; AF_XDP does not say which do.
    pub complete_checksums: bool,
}

impl Default for XdpOptions {
    fn default() -> Self {
        Self {
            zero_copy: ZeroCopy::Auto,
            rings: RingSizes::default(),
            reserve: 4 * BATCH_SIZE,
            complete_checksums: true,
        }
    }
}

impl XdpOptions {
    /// Chunks that a port with `queues` queues has at most. A worker's pool wants the sum over its ports, one
    /// `reserve`, and what the director itself holds.
    pub fn chunks(&self, queues: usize) -> usize {
        queues * self.rings.chunks() as usize
    }
}

/// Why an AF_XDP port could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum XdpError {
    /// The worker owns no queue of the interface.
    #[error("no queue was given")]
    NoQueue,
    /// Ring sizes that cannot be.
    #[error("ring sizes must be powers of two, and completions at least as many as frames to send: {0:?}")]
    RingSizes(RingSizes),
    /// Not enough chunks left to receive into.
    #[error("{needed} free chunks are needed to receive into, and {available} are left")]
    TooFewChunks {
        /// What the port needs.
        needed: usize,
        /// What the pool has.
        available: usize,
    },
    /// The kernel refused a socket.
    #[error("AF_XDP socket for queue {queue}: {source}")]
    Socket {
        /// The queue.
        queue: u32,
        /// What the kernel says; EBUSY where somebody else has the queue.
        source: io::Error,
    },
    /// The kernel refused something else.
    #[error(transparent)]
    System(#[from] io::Error),
}

/// AF_XDP sockets on the queues that one worker owns of one interface.
///
/// Frames are sent through the first queue, so that a connection's frames stay in order. While the interface
/// is down, frames already in the ring wait there, and go out when it is up; further ones are dropped once
/// the ring is full. Frames that do not fit a chunk are dropped by the kernel and counted as
/// [oversized](PortStatistics::oversized) (in zero-copy mode by the card, which counts them itself).
#[derive(Debug)]
pub struct XdpPort {
    id: PortId,
    interface: u32,
    control: InterfaceControl,
    queues: Vec<u32>,
    sockets: Vec<XskSocket>,
    /// The socket that the next visit starts with, so that no queue starves another.
    next: usize,
    options: XdpOptions,
    /// Readable when any socket is, where there are several.
    readiness: Option<OwnedFd>,
    statistics: PortStatistics,
}

impl XdpPort {
    /// Opens sockets on `queues` of the interface, whose frames will be known as port `id`'s, and gives them
    /// chunks to receive into. Nothing arrives before a program sends frames their way; see
    /// [`sockets`](Self::sockets).
    ///
    /// A queue that is busy is tried again for about a second. May block for that long.
    ///
    /// # Errors
    /// See [`XdpError`]; the pool is as it was.
    pub fn open(
        frames: &mut FramePool,
        id: PortId,
        interface: u32,
        queues: &[u32],
        options: XdpOptions,
    ) -> Result<Self, XdpError> {
        if queues.is_empty() {
            return Err(XdpError::NoQueue);
        }
        if !options.rings.valid() {
            return Err(XdpError::RingSizes(options.rings));
        }
        let needed = queues.len() * options.rings.fill as usize + options.reserve;
        if frames.available() < needed {
            return Err(XdpError::TooFewChunks { needed, available: frames.available() });
        }
        let control = InterfaceControl::new()?;
        let mut sockets = Vec::with_capacity(queues.len());
        for &queue in queues {
            let socket = open_patiently(frames, interface, queue, options);
            sockets.push(socket.map_err(|source| XdpError::Socket { queue, source })?);
        }
        let readiness = if sockets.len() > 1 { Some(gather(&sockets)?) } else { None };
        for socket in &mut sockets {
            socket.refill(frames, options.reserve);
        }
        Ok(Self {
            id,
            interface,
            control,
            queues: queues.to_vec(),
            sockets,
            next: 0,
            options,
            readiness,
            statistics: PortStatistics::default(),
        })
    }

    /// The queues and their sockets, to be put into the program's XSKMAP.
    pub fn sockets(&self) -> impl Iterator<Item = (u32, BorrowedFd<'_>)> {
        self.queues.iter().copied().zip(self.sockets.iter().map(AsFd::as_fd))
    }

    /// Whether frames stay where they are, on every queue.
    pub fn zero_copy(&self) -> bool {
        self.sockets.iter().all(XskSocket::zero_copy)
    }

    /// Chunks of the pool that the port has.
    pub fn held(&self) -> usize {
        self.sockets
            .iter()
            .map(XskSocket::held)
            .map(|(receive, transmit)| (receive + transmit) as usize)
            .sum()
    }

    /// Of these, chunks with frames on their way out: queued, with the driver, or sent and not taken back.
    pub fn in_flight(&self) -> usize {
        self.sockets.iter().map(|socket| socket.held().1 as usize).sum()
    }

    /// Closes the sockets, and takes back as many chunks as is safe; says how many. See [`XskSocket::close`].
    pub fn close(mut self, frames: &mut FramePool) -> usize {
        self.flush(frames);
        self.sockets.into_iter().map(|socket| socket.close(frames)).sum()
    }

    fn drop_frame(&mut self, frames: &mut FramePool, frame: Frame) {
        self.statistics.transmit_dropped += 1;
        frames.free(frame);
    }

    /// Completes checksums of the batch's frames from `first` on, which are this port's.
    fn complete_checksums(&mut self, frames: &FramePool, batch: &mut Batch, first: usize) {
        for entry in &mut batch.entries_mut()[first..] {
            if checksum::complete_if_partial(frames.bytes_mut(&mut entry.frame)) {
                self.statistics.checksums_completed += 1;
            }
        }
    }
}

impl Port for XdpPort {
    fn receive(&mut self, frames: &mut FramePool, batch: &mut Batch) -> usize {
        let first = batch.len();
        let count = self.sockets.len();
        for offset in 0..count {
            let socket = &mut self.sockets[(self.next + offset) % count];
            while batch.room() > 0 {
                let Some(frame) = socket.receive(frames) else { break };
                // Another processor wrote it; on the way while the others are taken.
                if let Some(byte) = frames.bytes(&frame).first() {
                    prefetch(byte);
                }
                if let Err(frame) = batch.push(frame, self.id, Offload::default()) {
                    frames.free(frame);
                }
            }
            socket.release();
            self.statistics.system_calls += socket.refill(frames, self.options.reserve);
        }
        self.next = (self.next + 1) % count;
        if self.options.complete_checksums {
            self.complete_checksums(frames, batch, first);
        }
        let received = batch.len() - first;
        self.statistics.received += received as u64;
        received
    }

    fn transmit(&mut self, frames: &mut FramePool, mut frame: Frame, offload: Offload) {
        let sendable = frame.len() >= SHORTEST_FRAME
            && offload.segmentation == 0
            && (!offload.needs_checksum || checksum::complete(frames.bytes_mut(&mut frame), &offload));
        if !sendable {
            return self.drop_frame(frames, frame);
        }
        let queued = match self.sockets[0].queue(frames, frame) {
            Ok(()) => Ok(()),
            Err(frame) => {
                self.flush(frames);
                self.sockets[0].queue(frames, frame)
            }
        };
        match queued {
            Ok(()) => self.statistics.transmitted += 1,
            Err(frame) => self.drop_frame(frames, frame),
        }
    }

    fn flush(&mut self, frames: &mut FramePool) {
        let socket = &mut self.sockets[0];
        // First, so that the kernel has room to say what it sent.
        socket.reap(frames);
        let kick = socket.kick();
        socket.reap(frames);
        self.statistics.system_calls += kick.system_calls;
        self.statistics.transmit_dropped += kick.refused;
        self.statistics.transmitted = self.statistics.transmitted.saturating_sub(kick.refused);
    }

    fn unsent(&self) -> usize {
        self.sockets[0].stuck() as usize
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        match &self.readiness {
            Some(all) => Some(all.as_fd()),
            None => self.sockets.first().map(AsFd::as_fd),
        }
    }

    fn statistics(&self) -> PortStatistics {
        let mut statistics = self.statistics;
        for socket in &self.sockets {
            let Ok(kernel) = socket.statistics() else { continue };
            statistics.receive_dropped += kernel.dropped + kernel.receive_ring_full;
            statistics.receive_ring_full += kernel.receive_ring_full;
            statistics.fill_ring_empty += kernel.fill_ring_empty;
            statistics.invalid_descriptors += kernel.invalid_descriptors;
            if !socket.zero_copy() {
                // In copy mode a frame is dropped for want of a chunk, counted at the fill ring, or for its size.
                statistics.oversized += kernel.dropped.saturating_sub(kernel.fill_ring_empty);
            }
        }
        statistics
    }

    fn health(&mut self) -> io::Result<()> {
        self.control.check(self.interface)
    }
}

/// Opens a socket, trying again while the queue is busy.
fn open_patiently(
    frames: &mut FramePool,
    interface: u32,
    queue: u32,
    options: XdpOptions,
) -> io::Result<XskSocket> {
    for wait in BUSY_WAITS_MS {
        match XskSocket::open(frames, interface, queue, options.rings, options.zero_copy) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                thread::sleep(Duration::from_millis(wait));
            }
            opened => return opened,
        }
    }
    XskSocket::open(frames, interface, queue, options.rings, options.zero_copy)
}

/// A descriptor that becomes readable when one of the sockets is.
fn gather(sockets: &[XskSocket]) -> io::Result<OwnedFd> {
    let all = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    for (index, socket) in sockets.iter().enumerate() {
        let data = epoll::EventData::new_u64(index as u64);
        epoll::add(&all, socket, data, epoll::EventFlags::IN)?;
    }
    Ok(all)
}
