//! AF_XDP ports over the crate `afxdp`, behind the feature of that name: a second, independent implementation to check
//! [`XdpPort`](super::XdpPort) against, and a baseline in benches. No director runs on it; see [`AfxdpPort`] for why.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use afxdp::PENDING_LEN;
use afxdp::buf::Buf;
use afxdp::buf_mmap::BufMmap;
use afxdp::mmap_area::{MmapArea, MmapAreaOptions};
use afxdp::socket::{Socket, SocketNewError, SocketOptions, SocketRx, SocketTx};
use afxdp::umem::{Umem, UmemCompletionQueue, UmemFillQueue, UmemNewError};
use arraydeque::{ArrayDeque, Wrapping};

use super::{Port, PortStatistics, checksum};
use crate::director::{Batch, Offload};
use crate::sys::frames::{Frame, FramePool};
use crate::sys::interface::InterfaceControl;
use crate::types::PortId;

/// Bytes of a buffer; 256 of them stay free in front of a frame.
const BUFFER: usize = 4096;
/// Slots of each ring.
const RING: u32 = 2048;
/// Buffers: one for each slot of the fill ring and of the transmit ring.
const BUFFERS: usize = 2 * RING as usize;
/// Frames sent by one call, which calls the kernel just once: it takes 32 then, and the crate has no way to call it for
/// the rest.
const SEND_BATCH: usize = 16;

/// What the crate's buffers carry beside a frame: nothing.
type Buffer = BufMmap<'static, ()>;
/// The crate's queue of buffers on their way in or out.
type Pending = ArrayDeque<[Buffer; PENDING_LEN], Wrapping>;

/// Why a port could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum AfxdpError {
    /// No memory for buffers.
    #[error("no memory for buffers")]
    Memory,
    /// The kernel refused the memory.
    #[error("UMEM: {0}")]
    Umem(io::Error),
    /// The kernel refused the socket; EBUSY where the queue has one, also for some 100 ms after that was closed.
    #[error("socket: {0}")]
    Socket(io::Error),
    /// The interface.
    #[error("interface: {0}")]
    Interface(io::Error),
}

/// One queue of one interface, in copy mode.
///
/// What the crate cannot do, and what therefore keeps it out of the director:
/// - Its memory is its own, so that frames are copied from there to the pool and back.
/// - It keeps its descriptor to itself: nobody can sleep until a frame arrives ([`Port::readiness`] is `None`), nor read
///   the kernel's counters.
/// - Unless a program with a map called `xsks_map` is attached before it opens, it attaches one of its own that takes
///   *every* frame, ARP included, and stays when the port is gone (`ip link set dev NAME xdp off`).
/// - Its safe functions are not all safe: queues dropped before their sockets are read after they were freed, and a
///   buffer of one memory area can be sent as one of another. Here, the order of the fields and one area of its own for
///   each port see to that.
/// - It panics where the kernel refuses to send for a reason that it does not expect, as when the interface was removed.
/// - Frames that one call of the kernel left in the ring go out with the next frame sent.
pub struct AfxdpPort {
    id: PortId,
    interface: u32,
    control: InterfaceControl,
    // In the order in which they are to be dropped: buffers point into the memory that the queues keep, and the C
    // library, when a socket is closed, looks into the queues that it was opened with. The crate sees to neither.
    /// Received, not taken into the pool yet; empty between calls.
    received: Box<Pending>,
    /// To be sent.
    sending: Box<Pending>,
    /// Buffers that nobody uses; as large as there are buffers from the start.
    free: Vec<Buffer>,
    receive: SocketRx<'static, ()>,
    transmit: SocketTx<'static, ()>,
    fill: UmemFillQueue<'static, ()>,
    completion: UmemCompletionQueue<'static, ()>,
    /// Buffers that may still go into the fill ring.
    fillable: usize,
    statistics: PortStatistics,
}

impl std::fmt::Debug for AfxdpPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AfxdpPort")
            .field("id", &self.id)
            .field("free", &self.free.len())
            .finish_non_exhaustive()
    }
}

/// The crate hands on the C library's results, which are negative.
fn positive(error: &io::Error) -> io::Error {
    io::Error::from_raw_os_error(error.raw_os_error().unwrap_or(libc::EIO).saturating_abs())
}

impl AfxdpPort {
    /// Opens a socket on a queue of the interface called `name`, whose frames will be known as port `id`'s.
    ///
    /// # Errors
    /// See [`AfxdpError`].
    pub fn open(id: PortId, name: &str, queue: u32) -> Result<Self, AfxdpError> {
        let control = InterfaceControl::new().map_err(AfxdpError::Interface)?;
        // Also keeps names from the crate that would make it panic.
        let interface = control.index(name).map_err(AfxdpError::Interface)?;
        let (area, free): (Arc<MmapArea<'static, ()>>, Vec<Buffer>) =
            MmapArea::new(BUFFERS, BUFFER, MmapAreaOptions { huge_tlb: false })
                .map_err(|_| AfxdpError::Memory)?;
        let (umem, completion, fill) = Umem::new(area, RING, RING).map_err(|error| match error {
            UmemNewError::Create(error) => AfxdpError::Umem(positive(&error)),
            UmemNewError::RingNotPowerOfTwo => AfxdpError::Umem(io::ErrorKind::InvalidInput.into()),
        })?;
        let options = SocketOptions { copy_mode: true, ..SocketOptions::default() };
        let (_, receive, transmit) =
            Socket::new(umem, name, queue as usize, RING, RING, options).map_err(|error| match error {
                SocketNewError::Create(error) => AfxdpError::Socket(positive(&error)),
                SocketNewError::RingNotPowerOfTwo => AfxdpError::Socket(io::ErrorKind::InvalidInput.into()),
            })?;
        let mut port = Self {
            id,
            interface,
            control,
            received: Box::new(ArrayDeque::new()),
            sending: Box::new(ArrayDeque::new()),
            free,
            receive,
            transmit,
            fill,
            completion,
            fillable: RING as usize,
            statistics: PortStatistics::default(),
        };
        port.refill();
        Ok(port)
    }

    /// Gives the kernel buffers to receive into.
    fn refill(&mut self) {
        // All of a batch go or none; it fails where the kernel has not seen the last ones.
        if let Ok(filled) = self.fill.fill(&mut self.free, self.fillable) {
            self.fillable -= filled.min(self.fillable);
        }
        if self.fill.needs_wakeup() {
            self.statistics.system_calls += 1;
            self.receive.wake();
        }
    }

    /// Copies received frames into the pool.
    fn take_in(&mut self, frames: &mut FramePool, batch: &mut Batch) {
        while let Some(buffer) = self.received.pop_front() {
            let bytes = buffer.get_data().get(..usize::from(buffer.get_len())).unwrap_or_default();
            match frames.allocate_copy(bytes) {
                Some(mut frame) => {
                    if checksum::complete_if_partial(frames.bytes_mut(&mut frame)) {
                        self.statistics.checksums_completed += 1;
                    }
                    if let Err(frame) = batch.push(frame, self.id, Offload::default()) {
                        frames.free(frame);
                    }
                }
                None => self.statistics.receive_dropped += 1,
            }
            self.free.push(buffer);
        }
    }
}

impl Port for AfxdpPort {
    fn receive(&mut self, frames: &mut FramePool, batch: &mut Batch) -> usize {
        let before = batch.len();
        if let Ok(got) = self.receive.try_recv(&mut self.received, batch.room(), ()) {
            self.fillable += got;
        }
        self.take_in(frames, batch);
        self.refill();
        let received = batch.len() - before;
        self.statistics.received += received as u64;
        received
    }

    fn transmit(&mut self, frames: &mut FramePool, mut frame: Frame, offload: Offload) {
        let sendable = offload.segmentation == 0
            && !frame.is_empty()
            && (!offload.needs_checksum || checksum::complete(frames.bytes_mut(&mut frame), &offload));
        if self.free.is_empty() || self.sending.is_full() {
            self.flush(frames);
        }
        let bytes = frames.bytes(&frame);
        let room = !self.sending.is_full();
        let buffer =
            self.free.pop_if(|buffer| sendable && room && bytes.len() <= usize::from(buffer.get_capacity()));
        if let Some(mut buffer) = buffer {
            buffer.get_data_mut()[..bytes.len()].copy_from_slice(bytes);
            buffer.set_len(bytes.len() as u16);
            // There is room: nothing falls out at the other end.
            let _ = self.sending.push_back(buffer);
            self.statistics.transmitted += 1;
        } else {
            self.statistics.transmit_dropped += 1;
        }
        frames.free(frame);
    }

    fn flush(&mut self, _frames: &mut FramePool) {
        // Nothing can be served that was not sent: the loop ends when the ring takes no more.
        for _ in 0..PENDING_LEN.div_ceil(SEND_BATCH) {
            let _ = self.completion.service(&mut self.free, BUFFERS);
            if self.sending.is_empty() {
                return;
            }
            self.statistics.system_calls += 1;
            if !matches!(self.transmit.try_send(&mut self.sending, SEND_BATCH), Ok(1..)) {
                break;
            }
        }
        let _ = self.completion.service(&mut self.free, BUFFERS);
    }

    fn unsent(&self) -> usize {
        self.sending.len()
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn statistics(&self) -> PortStatistics {
        self.statistics
    }

    fn health(&mut self) -> io::Result<()> {
        self.control.check(self.interface)
    }
}
