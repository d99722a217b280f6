//! AF_PACKET ports: for interfaces where AF_XDP is not to be had.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use super::checksum;
use super::{Port, PortStatistics};
use crate::director::{Batch, Offload};
use crate::sys::frames::{Frame, FramePool};
use crate::sys::interface::InterfaceControl;
use crate::sys::packet::{PACKET_BATCH, PacketFilter, PacketSocket, Received, VirtioHeader};
use crate::types::PortId;

/// Frames that may wait to be sent.
const QUEUE_LIMIT: usize = 4 * PACKET_BATCH;

/// Bytes of an IEEE 802.1Q tag.
const TAG: usize = 4;

/// How to open an AF_PACKET port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PacketOptions {
    /// Bytes of frames that may wait to be received, as the kernel counts them (a small frame is about 768).
    pub receive_buffer: usize,
    /// Skips the interface's queueing discipline. Off: the kernel then drops large frames that it would have
    /// to cut itself, and what does not fit the card's queue; nothing was gained by it on veth.
    pub bypass_queueing: bool,
    /// Where several workers have the interface: a number of their own for its sockets, by which the kernel
    /// gives each flow to one of them. Different for each interface.
    pub group: Option<u16>,
    /// What frames must pass to be received.
    pub filter: PacketFilter,
}

impl Default for PacketOptions {
    fn default() -> Self {
        Self {
            receive_buffer: 16 << 20,
            bypass_queueing: false,
            group: None,
            filter: PacketFilter::Everything,
        }
    }
}

/// A raw socket on one interface.
///
/// Frames keep what their sender left to a network card, both ways, so that large ones pass whole; those need
/// a pool whose chunks hold them (64 KiB and headers). The host's own stack sees the same frames.
#[derive(Debug)]
pub struct PacketPort {
    id: PortId,
    interface: u32,
    control: InterfaceControl,
    socket: PacketSocket,
    options: PacketOptions,
    /// Whether frames come: joining a group has to wait for an interface that is down.
    listening: bool,
    /// Frames to receive into.
    slots: Vec<Frame>,
    received: Box<[Received; PACKET_BATCH]>,
    queue: Vec<(Frame, VirtioHeader)>,
    /// Dropped by the kernel so far; its counter starts again whenever it is read.
    kernel_drops: Cell<u64>,
    statistics: PortStatistics,
}

impl PacketPort {
    /// Opens a socket on the interface, whose frames will be known as port `id`'s.
    ///
    /// # Errors
    /// EPERM without CAP_NET_RAW, ENODEV where the interface does not exist, `Unsupported` where it is not
    /// Ethernet, EINVAL for a group in use on another interface or a filter that the kernel refuses.
    pub fn open(id: PortId, interface: u32, options: PacketOptions) -> io::Result<Self> {
        let control = InterfaceControl::new()?;
        let socket = PacketSocket::open(interface, options.receive_buffer, options.bypass_queueing)?;
        let mut port = Self {
            id,
            interface,
            control,
            socket,
            options,
            listening: false,
            slots: Vec::with_capacity(PACKET_BATCH),
            received: Box::new([Received::default(); PACKET_BATCH]),
            queue: Vec::with_capacity(QUEUE_LIMIT),
            kernel_drops: Cell::new(0),
            statistics: PortStatistics::default(),
        };
        let listening = port.listen();
        if port.control.is_up(interface)? {
            listening?;
        }
        Ok(port)
    }

    /// The socket, to attach a program to.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Chunks of the pool that the port has.
    pub fn held(&self) -> usize {
        self.slots.len() + self.queue.len()
    }

    /// Closes the socket, and gives all chunks back to the pool; says how many.
    pub fn close(mut self, frames: &mut FramePool) -> usize {
        self.flush(frames);
        let held = self.held();
        let queued = self.queue.drain(..).map(|(frame, _)| frame);
        for frame in self.slots.drain(..).chain(queued) {
            frames.free(frame);
        }
        held
    }

    fn listen(&mut self) -> io::Result<()> {
        self.socket.listen(self.options.group, &self.options.filter)?;
        self.listening = true;
        Ok(())
    }

    /// Makes a received frame whole and puts it into the batch; says whether it did.
    fn take(&mut self, frames: &mut FramePool, batch: &mut Batch, mut frame: Frame, with: Received) -> bool {
        let tagged = match with.tag {
            Some(tag) => insert_tag(frames, &mut frame, tag),
            None => true,
        };
        if with.cut || !tagged {
            self.statistics.oversized += 1;
            frames.free(frame);
            return false;
        }
        let mut offload = Offload::from(with.header);
        if with.tag.is_some() {
            shift(&mut offload, TAG as u16);
        }
        // The way out takes every such header for a 16-bit sum.
        if offload.needs_checksum
            && checksum::is_sctp(frames.bytes(&frame), &offload)
            && checksum::complete(frames.bytes_mut(&mut frame), &offload)
        {
            self.statistics.checksums_completed += 1;
            offload = Offload { needs_checksum: false, checksum_start: 0, checksum_offset: 0, ..offload };
        }
        if let Err(frame) = batch.push(frame, self.id, offload) {
            frames.free(frame);
            return false;
        }
        true
    }
}

impl Port for PacketPort {
    fn receive(&mut self, frames: &mut FramePool, batch: &mut Batch) -> usize {
        let wanted = batch.room().min(PACKET_BATCH);
        while self.slots.len() < wanted {
            let Some(frame) = frames.allocate() else { break };
            self.slots.push(frame);
        }
        let wanted = wanted.min(self.slots.len());
        if wanted == 0 {
            return 0;
        }
        self.statistics.system_calls += 1;
        // Nothing waits, or the interface went down: `health` tells.
        let Ok(got) = self.socket.receive(frames, &mut self.slots[..wanted], &mut self.received) else {
            return 0;
        };
        let mut taken = 0;
        // Lent out, so that `take` has the rest of the port; neither allocates.
        let mut slots = std::mem::take(&mut self.slots);
        for (index, frame) in slots.drain(..got).enumerate() {
            let with = self.received[index];
            taken += usize::from(self.take(frames, batch, frame, with));
        }
        self.slots = slots;
        self.statistics.received += taken as u64;
        taken
    }

    fn transmit(&mut self, frames: &mut FramePool, frame: Frame, offload: Offload) {
        if self.queue.len() >= QUEUE_LIMIT {
            self.flush(frames);
        }
        if self.queue.len() >= QUEUE_LIMIT {
            self.statistics.transmit_dropped += 1;
            return frames.free(frame);
        }
        self.queue.push((frame, offload.into()));
    }

    fn flush(&mut self, frames: &mut FramePool) {
        let mut done = 0;
        while done < self.queue.len() {
            self.statistics.system_calls += 1;
            match self.socket.send(frames, &self.queue[done..]) {
                Ok(sent) => {
                    self.statistics.transmitted += sent as u64;
                    done += sent;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    // Down or gone: none will go. Else the first is at fault, and the others may.
                    let down =
                        matches!(error.raw_os_error(), Some(libc::ENETDOWN | libc::ENXIO | libc::ENODEV));
                    let lost = if down { self.queue.len() - done } else { 1 };
                    self.statistics.transmit_dropped += lost as u64;
                    done += lost;
                }
            }
        }
        for (frame, _) in self.queue.drain(..done) {
            frames.free(frame);
        }
    }

    fn unsent(&self) -> usize {
        self.queue.len()
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        Some(self.socket.as_fd())
    }

    fn statistics(&self) -> PortStatistics {
        if let Ok(drops) = self.socket.take_drops() {
            self.kernel_drops.set(self.kernel_drops.get() + drops);
        }
        let drops = self.kernel_drops.get();
        PortStatistics { receive_dropped: drops, receive_ring_full: drops, ..self.statistics }
    }

    fn health(&mut self) -> io::Result<()> {
        self.control.check(self.interface)?;
        if self.listening { Ok(()) } else { self.listen() }
    }
}

/// Puts a tag that the kernel took out back behind the addresses. Says false where there is no room.
fn insert_tag(frames: &FramePool, frame: &mut Frame, (protocol, control): (u16, u16)) -> bool {
    if frame.len() < 12 || !frame.grow_front(TAG) {
        return false;
    }
    let bytes = frames.bytes_mut(frame);
    bytes.copy_within(TAG..TAG + 12, 0);
    bytes[12..14].copy_from_slice(&protocol.to_be_bytes());
    bytes[14..16].copy_from_slice(&control.to_be_bytes());
    true
}

/// Moves what is left for a card to do by `count` bytes inserted before it.
fn shift(offload: &mut Offload, count: u16) {
    if offload.needs_checksum {
        offload.checksum_start = offload.checksum_start.saturating_add(count);
    }
    if offload.segmentation != 0 {
        offload.header_length = offload.header_length.saturating_add(count);
    }
}
