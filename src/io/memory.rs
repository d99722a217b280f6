//! Ports in memory: for tests, and for whatever else makes frames.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::event::{EventfdFlags, eventfd};

use super::{Port, PortStatistics};
use crate::director::{Batch, Offload};
use crate::sys::frames::{Frame, FramePool};
use crate::types::PortId;

/// What both ends know.
#[derive(Debug, Default)]
struct Link {
    to_port: VecDeque<(Vec<u8>, Offload)>,
    from_port: VecDeque<(Vec<u8>, Offload)>,
    down: bool,
}

/// A port whose other end is a [`MemoryLink`]. Allocates per frame.
#[derive(Debug)]
pub struct MemoryPort {
    id: PortId,
    link: Arc<Mutex<Link>>,
    ready: Arc<OwnedFd>,
    queue: Vec<(Frame, Offload)>,
    statistics: PortStatistics,
}

/// The other end of a [`MemoryPort`]; may be cloned, and used from other threads.
#[derive(Clone, Debug)]
pub struct MemoryLink {
    link: Arc<Mutex<Link>>,
    ready: Arc<OwnedFd>,
}

impl MemoryPort {
    /// A port, whose frames will be known as port `id`'s, and its other end.
    ///
    /// # Errors
    /// The kernel's own, typically too many open files.
    pub fn new(id: PortId) -> io::Result<(Self, MemoryLink)> {
        let link = Arc::new(Mutex::new(Link::default()));
        let ready = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let other = MemoryLink { link: Arc::clone(&link), ready: Arc::clone(&ready) };
        Ok((Self { id, link, ready, queue: Vec::new(), statistics: PortStatistics::default() }, other))
    }
}

impl MemoryLink {
    /// Lets a frame arrive at the port.
    pub fn push(&self, bytes: &[u8], offload: Offload) {
        self.link.lock().to_port.push_back((bytes.to_vec(), offload));
        // A full counter is readable already.
        let _ = rustix::io::write(&*self.ready, &1_u64.to_ne_bytes());
    }

    /// Takes the first frame that the port sent and nobody took yet.
    pub fn pop(&self) -> Option<(Vec<u8>, Offload)> {
        self.link.lock().from_port.pop_front()
    }

    /// Takes the bytes of all frames that the port sent and nobody took yet.
    pub fn take_all(&self) -> Vec<Vec<u8>> {
        self.link.lock().from_port.drain(..).map(|(bytes, _)| bytes).collect()
    }

    /// Takes the link down or up. While it is down nothing arrives, what is sent is dropped, and the port
    /// says that it does not work.
    pub fn set_down(&self, down: bool) {
        self.link.lock().down = down;
    }
}

impl Port for MemoryPort {
    fn receive(&mut self, frames: &mut FramePool, batch: &mut Batch) -> usize {
        let mut link = self.link.lock();
        if link.down {
            return 0;
        }
        let first = batch.len();
        while batch.room() > 0 && frames.available() > 0 {
            let Some((bytes, offload)) = link.to_port.pop_front() else { break };
            match frames.allocate_copy(&bytes) {
                Some(frame) => {
                    if let Err(frame) = batch.push(frame, self.id, offload) {
                        frames.free(frame);
                    }
                }
                None => self.statistics.oversized += 1,
            }
        }
        if link.to_port.is_empty() {
            // Under the lock, so that no frame comes between. Nothing to read is fine.
            let _ = rustix::io::read(&*self.ready, &mut [0; 8]);
        }
        let received = batch.len() - first;
        self.statistics.received += received as u64;
        received
    }

    fn transmit(&mut self, _: &mut FramePool, frame: Frame, offload: Offload) {
        self.queue.push((frame, offload));
    }

    fn flush(&mut self, frames: &mut FramePool) {
        let mut link = self.link.lock();
        for (frame, offload) in self.queue.drain(..) {
            if link.down {
                self.statistics.transmit_dropped += 1;
            } else {
                self.statistics.transmitted += 1;
                link.from_port.push_back((frames.bytes(&frame).to_vec(), offload));
            }
            frames.free(frame);
        }
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        Some(self.ready.as_fd())
    }

    fn statistics(&self) -> PortStatistics {
        self.statistics
    }

    fn health(&mut self) -> io::Result<()> {
        if self.link.lock().down { Err(io::ErrorKind::NetworkDown.into()) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;

    fn readable(port: &MemoryPort) -> bool {
        let fd = port.readiness().unwrap();
        poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&Default::default())).unwrap() > 0
    }

    #[test]
    fn frames_cross_in_both_directions_in_order() {
        let mut frames = FramePool::new(100, 2048).unwrap();
        let mut batch = Batch::new();
        let (mut port, link) = MemoryPort::new(PortId(3)).unwrap();
        assert!(!readable(&port));
        for n in 0..70_u8 {
            link.push(&[n; 60], Offload { segmentation: n, ..Offload::default() });
        }
        link.push(&[0; 4000], Offload::default());
        let mut seen = 0;
        while readable(&port) {
            port.receive(&mut frames, &mut batch);
            for entry in batch.drain() {
                assert_eq!(entry.port, PortId(3));
                port.transmit(&mut frames, entry.frame, entry.offload);
                seen += 1;
            }
        }
        assert_eq!((seen, port.statistics().oversized), (70, 1));
        assert_eq!(link.pop(), None, "nothing leaves before the flush");
        port.flush(&mut frames);
        for n in 0..70_u8 {
            assert_eq!(link.pop(), Some((vec![n; 60], Offload { segmentation: n, ..Offload::default() })));
        }
        assert_eq!(frames.available(), 100);
    }

    #[test]
    fn a_link_that_is_down_carries_nothing() {
        let mut frames = FramePool::new(2, 2048).unwrap();
        let (mut port, link) = MemoryPort::new(PortId(0)).unwrap();
        link.set_down(true);
        link.push(&[1; 60], Offload::default());
        assert!(port.health().is_err());
        assert_eq!(port.receive(&mut frames, &mut Batch::new()), 0);
        let frame = frames.allocate_copy(&[2; 60]).unwrap();
        port.transmit(&mut frames, frame, Offload::default());
        port.flush(&mut frames);
        assert_eq!((link.take_all().len(), port.statistics().transmit_dropped), (0, 1));
        link.set_down(false);
        let mut batch = Batch::new();
        assert_eq!(port.receive(&mut frames, &mut batch), 1);
        batch.clear(&mut frames);
        assert_eq!(frames.available(), 2);
    }
}
