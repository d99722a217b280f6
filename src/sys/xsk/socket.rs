//! One AF_XDP socket: the frames of one queue of one interface.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;
use rustix::net::sockopt;
use rustix::net::xdp::{
    SocketAddrXdp, SocketAddrXdpFlags, SocketAddrXdpWithSharedUmem, XDP_PGOFF_RX_RING, XDP_PGOFF_TX_RING,
    XDP_UMEM_PGOFF_COMPLETION_RING, XDP_UMEM_PGOFF_FILL_RING, XdpDescOptions, XdpOptionsFlags,
};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use super::ring::{Consumer, Descriptor, DescriptorSlot, Producer};
use super::umem;
use crate::sys::frames::{Frame, FramePool, HEADROOM, Holder};
use crate::sys::memory::atomic::AtomicU64;
use crate::sys::sockopt as raw_sockopt;

/// Descriptors that the kernel takes off a transmit ring in one call, unless told otherwise (TX_BATCH_SIZE).
const KERNEL_BATCH: u32 = 32;

/// Descriptors that we ask the kernel to take in one call: beyond this a call's cost no longer shows.
const TRANSMIT_BUDGET: u32 = 256;

/// Bytes that the kernel may hold of frames on their way out, in copy mode. A socket's usual 208 KiB are
/// 270 small frames.
const SEND_BUFFER: i32 = 8 << 20;

/// `XDP_MAX_TX_SKB_BUDGET` of linux/if_xdp.h, since Linux 6.17; libc does not have it yet.
const XDP_MAX_TX_SKB_BUDGET: i32 = 9;

/// Whether frames are to be moved without copying.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum ZeroCopy {
    /// Where the driver can; else copied.
    #[default]
    Auto,
    /// Always copied.
    Never,
    /// Or else the socket does not open.
    Required,
}

/// Slots in a socket's rings; each a power of two.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RingSizes {
    /// Received frames not taken yet.
    pub receive: u32,
    /// Frames to send.
    pub transmit: u32,
    /// Chunks to receive into. Also how many chunks the socket keeps for receiving, at most.
    pub fill: u32,
    /// Frames sent; at least `transmit`.
    pub completion: u32,
}

impl Default for RingSizes {
    fn default() -> Self {
        Self { receive: 2048, transmit: 2048, fill: 4096, completion: 2048 }
    }
}

impl RingSizes {
    /// Whether the kernel takes them, and no completion can be lost for want of room.
    pub const fn valid(&self) -> bool {
        self.receive.is_power_of_two()
            && self.transmit.is_power_of_two()
            && self.fill.is_power_of_two()
            && self.completion.is_power_of_two()
            && self.completion >= self.transmit
    }

    /// Chunks that a socket with these rings has at most.
    pub const fn chunks(&self) -> u32 {
        self.fill.saturating_add(self.transmit)
    }
}

/// The kernel's counters of a socket, since it was opened.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct SocketStatistics {
    /// Frames dropped because there was no chunk for them or they did not fit one.
    pub dropped: u64,
    /// Frames dropped because the receive ring was full.
    pub receive_ring_full: u64,
    /// Times that no chunk was in the fill ring.
    pub fill_ring_empty: u64,
    /// Descriptors refused, in either direction.
    pub invalid_descriptors: u64,
}

/// What asking the kernel to send came to.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Kick {
    /// System calls made.
    pub system_calls: u64,
    /// Frames that the device refused; they come back as if sent.
    pub refused: u64,
    /// Why the rest stays in the ring, other than want of room.
    pub error: Option<Errno>,
}

/// An AF_XDP socket bound to one queue of one interface.
///
/// It takes frames of one pool only, the one it was opened with; a method that is given another panics rather
/// than hand the kernel somebody else's memory. Dropping it leaves its chunks lost to the pool; [`close`](Self::close) gives them back.
#[derive(Debug)]
pub struct XskSocket {
    // The rings come first: their mappings keep the socket alive in the kernel.
    receive: Consumer<DescriptorSlot>,
    transmit: Producer<DescriptorSlot>,
    fill: Producer<AtomicU64>,
    completion: Consumer<AtomicU64>,
    receive_holder: Holder,
    transmit_holder: Holder,
    /// Chunks in the fill ring, the driver and the receive ring.
    receiving: u32,
    /// Chunks in the transmit ring, the driver and the completion ring.
    transmitting: u32,
    /// Descriptors that made no sense and were left alone.
    nonsense: u64,
    zero_copy: bool,
    socket: Arc<OwnedFd>,
}

impl XskSocket {
    /// Opens a socket for a queue, with the pool as its UMEM, shared with the pool's other sockets.
    ///
    /// # Errors
    /// Invalid input for ring sizes that are not [valid](RingSizes::valid). Of the kernel's: EBUSY where the
    /// queue has a socket, also for some 100 ms after that was closed; EOPNOTSUPP where zero-copy is required
    /// and not to be had; EINVAL for a queue that the interface does not have or a pool whose chunks are not
    /// 2048 or 4096 bytes; ENODEV, EPERM.
    pub fn open(
        frames: &mut FramePool,
        interface: u32,
        queue: u32,
        rings: RingSizes,
        zero_copy: ZeroCopy,
    ) -> io::Result<Self> {
        if !rings.valid() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        match zero_copy {
            ZeroCopy::Never => Self::open_in(frames, interface, queue, rings, false),
            ZeroCopy::Required => Self::open_in(frames, interface, queue, rings, true),
            ZeroCopy::Auto => match Self::open_in(frames, interface, queue, rings, true) {
                // Busy is busy in either mode, and passes.
                Err(error) if error.raw_os_error() != Some(libc::EBUSY) => {
                    Self::open_in(frames, interface, queue, rings, false)
                }
                opened => opened,
            },
        }
    }

    fn open_in(
        frames: &mut FramePool,
        interface: u32,
        queue: u32,
        rings: RingSizes,
        zero_copy: bool,
    ) -> io::Result<Self> {
        if let Some(shared) = umem::shared(frames, zero_copy) {
            match Self::open_with(frames, interface, queue, rings, zero_copy, Some(shared)) {
                // The sharing socket lost its interface: the pool has to be registered again.
                Err(error) if error.raw_os_error() == Some(libc::EBADF) => {}
                opened => return opened,
            }
        }
        let socket = Self::open_with(frames, interface, queue, rings, zero_copy, None)?;
        umem::note(frames, &socket.socket, zero_copy);
        Ok(socket)
    }

    fn open_with(
        frames: &FramePool,
        interface: u32,
        queue: u32,
        rings: RingSizes,
        zero_copy: bool,
        shared: Option<Arc<OwnedFd>>,
    ) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::XDP, SocketType::RAW, flags, None)?;
        if shared.is_none() {
            umem::register(socket.as_fd(), frames)?;
        }
        sockopt::set_xdp_umem_fill_ring_size(&socket, rings.fill)?;
        sockopt::set_xdp_umem_completion_ring_size(&socket, rings.completion)?;
        sockopt::set_xdp_rx_ring_size(&socket, rings.receive)?;
        sockopt::set_xdp_tx_ring_size(&socket, rings.transmit)?;
        // Both are wishes: sending works without, in more calls.
        let budget = TRANSMIT_BUDGET.min(rings.transmit) as i32;
        let _ = raw_sockopt::set_int(socket.as_fd(), libc::SOL_XDP, XDP_MAX_TX_SKB_BUDGET, budget);
        let _ = raw_sockopt::set_int(socket.as_fd(), libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, SEND_BUFFER);
        let offsets = sockopt::xdp_mmap_offsets(&socket)?;
        let fd = socket.as_fd();
        let receive = Consumer::map(fd, XDP_PGOFF_RX_RING, &offsets.rx, rings.receive)?;
        let transmit = Producer::map(fd, XDP_PGOFF_TX_RING, &offsets.tx, rings.transmit)?;
        let fill = Producer::map(fd, XDP_UMEM_PGOFF_FILL_RING, &offsets.fr, rings.fill)?;
        let completion = Consumer::map(fd, XDP_UMEM_PGOFF_COMPLETION_RING, &offsets.cr, rings.completion)?;
        bind(&socket, interface, queue, zero_copy, shared.as_deref())?;
        let got = sockopt::xdp_options(&socket)?;
        Ok(Self {
            receive,
            transmit,
            fill,
            completion,
            receive_holder: frames.new_holder(),
            transmit_holder: frames.new_holder(),
            receiving: 0,
            transmitting: 0,
            nonsense: 0,
            zero_copy: got.contains(XdpOptionsFlags::XDP_OPTIONS_ZEROCOPY),
            socket: Arc::new(socket),
        })
    }

    /// Whether frames are moved without copying.
    pub fn zero_copy(&self) -> bool {
        self.zero_copy
    }

    /// Gives the kernel chunks to receive into, as many as the fill ring takes, but leaves `reserve` in the
    /// pool. Says how many system calls it took.
    pub fn refill(&mut self, frames: &mut FramePool, reserve: usize) -> u64 {
        let wanted = self.fill.size().saturating_sub(self.receiving);
        let spare = u32::try_from(frames.available().saturating_sub(reserve)).unwrap_or(u32::MAX);
        let count = self.fill.room(wanted).min(wanted).min(spare);
        for _ in 0..count {
            let Some(frame) = frames.allocate() else { break };
            if !self.fill.push(frames.hand_over(frame, self.receive_holder)) {
                break;
            }
            self.receiving += 1;
        }
        if count > 0 {
            self.fill.submit();
        }
        if self.receiving > 0 && self.fill.needs_wakeup() {
            // Wakes the driver; there is no data to be had this way, so no result is of interest.
            let _ = rustix::net::recv(&*self.socket, &mut [0_u8; 0], RecvFlags::DONTWAIT);
            return 1;
        }
        0
    }

    /// The next received frame. Its slot is the kernel's again after [`release`](Self::release).
    pub fn receive(&mut self, frames: &mut FramePool) -> Option<Frame> {
        while let Some(descriptor) = self.receive.pop() {
            let frame = frames.take_back(descriptor.address, descriptor.length, self.receive_holder);
            let Some(frame) = frame else {
                self.nonsense += 1;
                continue;
            };
            self.receiving = self.receiving.saturating_sub(1);
            if descriptor.options & XdpDescOptions::XDP_PKT_CONTD.bits() != 0 {
                // Part of a frame in several chunks, which the socket did not ask for.
                self.nonsense += 1;
                frames.free(frame);
                continue;
            }
            return Some(frame);
        }
        None
    }

    /// Gives the slots of all frames taken back to the kernel.
    pub fn release(&mut self) {
        self.receive.release();
    }

    /// Queues a frame to send.
    ///
    /// # Errors
    /// The frame comes back where the ring is full, and where the kernel would lose it: an empty one.
    pub fn queue(&mut self, frames: &mut FramePool, frame: Frame) -> Result<(), Frame> {
        // The kernel skips an empty frame and never completes it. No more may be under way than complete.
        if frame.is_empty() || self.transmitting >= self.transmit.size() || self.transmit.room(1) == 0 {
            return Err(frame);
        }
        let length = frame.len() as u32;
        let address = frames.hand_over(frame, self.transmit_holder);
        self.transmitting += 1;
        let pushed = self.transmit.push(Descriptor { address, length, options: 0 });
        debug_assert!(pushed, "there was room");
        Ok(())
    }

    /// Shows the kernel the frames queued, and calls it until it has taken them or can take no more.
    pub fn kick(&mut self) -> Kick {
        self.transmit.submit();
        let mut kick = Kick::default();
        // In copy mode a call takes a bounded number of frames, or one that the device refused.
        for _ in 0..self.transmit.size().div_ceil(KERNEL_BATCH) + KERNEL_BATCH {
            let before = self.transmit.untaken();
            if before == 0 || !self.transmit.needs_wakeup() {
                break;
            }
            kick.system_calls += 1;
            match rustix::net::send(&*self.socket, &[], SendFlags::DONTWAIT) {
                Ok(_) => break,
                Err(Errno::BUSY) if !self.zero_copy => kick.refused += 1,
                Err(Errno::AGAIN | Errno::BUSY | Errno::NOBUFS | Errno::INTR) => {
                    if self.transmit.untaken() == before {
                        break;
                    }
                }
                Err(error) => {
                    kick.error = Some(error);
                    break;
                }
            }
        }
        kick
    }

    /// Takes sent frames' chunks back into the pool, and says how many.
    pub fn reap(&mut self, frames: &mut FramePool) -> u32 {
        let mut reaped = 0;
        if self.transmitting == 0 {
            return 0;
        }
        while let Some(address) = self.completion.pop() {
            match frames.take_back(address, 0, self.transmit_holder) {
                Some(frame) => {
                    frames.free(frame);
                    reaped += 1;
                }
                None => self.nonsense += 1,
            }
        }
        self.completion.release();
        self.transmitting = self.transmitting.saturating_sub(reaped);
        reaped
    }

    /// Frames queued that the kernel will not take before the next [`kick`](Self::kick).
    pub fn stuck(&self) -> u32 {
        if self.transmit.needs_wakeup() { self.transmit.untaken() } else { 0 }
    }

    /// Chunks that the kernel has for receiving and for sending.
    pub fn held(&self) -> (u32, u32) {
        (self.receiving, self.transmitting)
    }

    /// The kernel's counters.
    ///
    /// # Errors
    /// The kernel's own; does not happen on an open socket.
    pub fn statistics(&self) -> io::Result<SocketStatistics> {
        let kernel = sockopt::xdp_statistics(&*self.socket)?;
        Ok(SocketStatistics {
            dropped: kernel.rx_dropped,
            receive_ring_full: kernel.rx_ring_full.unwrap_or(0),
            fill_ring_empty: kernel.rx_fill_ring_empty_descs.unwrap_or(0),
            invalid_descriptors: kernel.rx_invalid_descs + kernel.tx_invalid_descs + self.nonsense,
        })
    }

    /// Closes the socket and takes its chunks back into the pool, as far as that is safe; says how many.
    ///
    /// In copy mode that is all but those of frames still on their way out. In zero-copy mode the kernel
    /// takes the device's queue down some time after the socket is closed, so that none can be taken back.
    pub fn close(mut self, frames: &mut FramePool) -> usize {
        let reaped = self.reap(frames) as usize;
        let Self { receive, transmit, fill, completion, receive_holder, zero_copy, socket, .. } = self;
        drop((receive, transmit, fill, completion));
        drop(socket);
        if zero_copy { reaped } else { reaped + frames.reclaim(receive_holder) }
    }
}

impl AsFd for XskSocket {
    /// What goes into an XSKMAP, and becomes readable when frames wait.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Binds the socket to its queue. A socket that shares a UMEM takes its mode, too, from the one it shares with.
fn bind(
    socket: &OwnedFd,
    interface: u32,
    queue: u32,
    zero_copy: bool,
    shared: Option<&OwnedFd>,
) -> io::Result<()> {
    if let Some(shared) = shared {
        let addr = SocketAddrXdp::new(SocketAddrXdpFlags::XDP_SHARED_UMEM, interface, queue);
        let address = SocketAddrXdpWithSharedUmem { addr, shared_umem_fd: shared.as_fd() };
        return Ok(rustix::net::bind(socket, &address)?);
    }
    let mode = if zero_copy { SocketAddrXdpFlags::XDP_ZEROCOPY } else { SocketAddrXdpFlags::XDP_COPY };
    let flags = mode | SocketAddrXdpFlags::XDP_USE_NEED_WAKEUP;
    Ok(rustix::net::bind(socket, &SocketAddrXdp::new(flags, interface, queue))?)
}

const _: () = assert!(HEADROOM == 256, "XDP_PACKET_HEADROOM: received frames start there");
