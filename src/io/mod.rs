//! Ports: where frames come from and go to.
//!
//! Every kind of port moves [`Frame`]s of its worker's pool in and out of
//! [`Batch`]es, so the director cannot tell a ring from a capture or a test.
//!
//! [`pcap`] reads and writes captures of frames.
//!
//! A port keeps chunks of the pool: in rings, in slots to receive into, queued for sending. Each says how many
//! ([`XdpPort::held`], [`PacketPort::held`]), and gives them back when it is closed rather than dropped.

#[cfg(feature = "afxdp")]
mod afxdp;
mod checksum;
mod host;
mod memory;
#[cfg(all(test, target_endian = "little"))]
mod namespace_tests;
mod packet;
mod xdp;

pub mod pcap;
pub mod steering;

use std::io;
use std::os::fd::BorrowedFd;

use serde::{Deserialize, Serialize};

use crate::director::{Batch, Offload};
use crate::sys::frames::{Frame, FramePool};
use crate::sys::packet::VirtioHeader;

#[cfg(feature = "afxdp")]
pub use afxdp::{AfxdpError, AfxdpPort};
pub use checksum::{complete as complete_checksum, complete_if_partial as complete_partial_checksum};
pub use host::{HostPort, HostStatistics};
pub use memory::{MemoryLink, MemoryPort};
pub use packet::{PacketOptions, PacketPort};
pub use xdp::{XdpError, XdpOptions, XdpPort};

/// One worker's side of one interface.
pub trait Port: Send {
    /// Appends received frames to `batch` until it is full or nothing is left; says how many.
    /// Does not block and does not fail: what goes wrong is counted, and told by [`Port::health`].
    fn receive(&mut self, frames: &mut FramePool, batch: &mut Batch) -> usize;

    /// Queues a frame for sending; it leaves at the latest with the next [`Port::flush`]. A frame that cannot
    /// be sent goes back to the pool and is counted in [`PortStatistics::transmit_dropped`].
    fn transmit(&mut self, frames: &mut FramePool, frame: Frame, offload: Offload);

    /// Hands everything queued to the kernel, and takes sent frames back into the pool.
    fn flush(&mut self, frames: &mut FramePool);

    /// Frames that the last flush could not hand over for want of room in the kernel. A worker that has any
    /// must flush again soon, and not sleep until something arrives.
    fn unsent(&self) -> usize {
        0
    }

    /// Becomes readable when frames wait; what an idle worker sleeps on.
    fn readiness(&self) -> Option<BorrowedFd<'_>>;

    /// Counters since the port was opened.
    fn statistics(&self) -> PortStatistics;

    /// Whether the port still works; the error is the operator's to see.
    ///
    /// # Errors
    /// What keeps the port from working, as when its interface went away.
    fn health(&mut self) -> io::Result<()>;
}

/// How a port gets at its frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PortKind {
    /// AF_XDP, program in the driver, frames in place.
    XdpNativeZeroCopy,
    /// AF_XDP, program in the driver, frames copied.
    XdpNativeCopy,
    /// AF_XDP, program in the network stack, frames copied.
    XdpGeneric,
    /// AF_PACKET.
    Packet,
    /// Test or replay.
    Memory,
}

/// A port's counters. All are frames since the port was opened, unless said otherwise.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct PortStatistics {
    /// Frames received.
    pub received: u64,
    /// Frames handed to the kernel for sending.
    pub transmitted: u64,
    /// Frames that could not be sent: ring full, interface down, over-long.
    pub transmit_dropped: u64,
    /// Frames the kernel dropped before they reached the ring, for whatever reason.
    pub receive_dropped: u64,
    /// Of these, for want of room in the receive ring or the socket's buffer.
    pub receive_ring_full: u64,
    /// Times the kernel found no free chunk to receive into.
    pub fill_ring_empty: u64,
    /// Descriptors that the kernel refused.
    pub invalid_descriptors: u64,
    /// Received frames whose partial checksum was completed.
    pub checksums_completed: u64,
    /// Frames too large to be taken, left whole by the sender's offloading.
    pub oversized: u64,
    /// System calls made.
    pub system_calls: u64,
}

impl From<VirtioHeader> for Offload {
    fn from(header: VirtioHeader) -> Self {
        Self {
            needs_checksum: header.needs_checksum,
            checksum_start: header.checksum_start,
            checksum_offset: header.checksum_offset,
            segmentation: header.segmentation,
            header_length: header.header_length,
            segment_size: header.segment_size,
        }
    }
}

impl From<Offload> for VirtioHeader {
    fn from(offload: Offload) -> Self {
        Self {
            needs_checksum: offload.needs_checksum,
            segmentation: offload.segmentation,
            header_length: offload.header_length,
            segment_size: offload.segment_size,
            checksum_start: offload.checksum_start,
            checksum_offset: offload.checksum_offset,
        }
    }
}
