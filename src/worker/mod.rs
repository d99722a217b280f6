//! Workers: each a thread with its own director, frames and sockets.
//!
//! A worker takes a batch off one of its ports, reads the clock once, lets the director decide, and hands each frame
//! on: out of a port of its own, to the worker that owns the port's queue, to the host, or back to the pool. Where
//! nothing arrives it sleeps on its sockets until something does, or a timer is due.

mod handover;
mod sleep;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::director::{Batch, Director, Entry, Verdict};
use crate::io::{HostPort, HostStatistics, Port, PortStatistics};
use crate::sys::frames::FramePool;
use crate::types::{Duration, Instant, PortId};

pub use handover::{Handover, handovers};

/// Longest sleep, so that a request to stop is seen soon.
const LONGEST_SLEEP: Duration = Duration::from_millis(100);
/// How often a worker that holds frames looks whether they may go, and one with unsent frames tries again.
const SHORT_SLEEP: Duration = Duration::from_millis(1);
/// How often counters are written down for others to read, while frames flow.
const REPORT_PERIOD: Duration = Duration::from_millis(50);
/// Visits to empty ports before a worker goes to sleep: frames of one flow come in bunches.
const PATIENCE: u32 = 8;

/// The clock of the whole director: nanoseconds since boot, time asleep included, so that timeouts mean real time.
pub fn clock() -> Instant {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Instant::from_nanos(now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64)
}

/// What a worker last wrote down of its ports.
#[derive(Clone, Default, Debug)]
pub struct WorkerReport {
    /// By port: its statistics, and what is wrong with it. `None` where this worker has no socket on it.
    pub ports: Vec<Option<(PortStatistics, Option<String>)>>,
    /// Packets given to the host.
    pub host: HostStatistics,
    /// Frames that another worker was to send, and was too busy to take.
    pub handover_dropped: u64,
    /// Chunks that nobody has, and all chunks.
    pub chunks: (usize, u32),
}

/// A worker's parts.
pub struct Worker {
    /// Its director.
    pub director: Director,
    /// Its frames.
    pub frames: FramePool,
    /// Its side of each port, by [`PortId`]; `None` where it owns no queue.
    pub ports: Vec<Option<Box<dyn Port>>>,
    /// The way to the host.
    pub host: HostPort,
    /// The ways to and from the other workers.
    pub handover: Handover,
    /// Where others read what it counted.
    pub report: Arc<Mutex<WorkerReport>>,
    /// Set when it is to end.
    pub stop: Arc<AtomicBool>,
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker").field("director", &self.director).finish_non_exhaustive()
    }
}

impl Worker {
    /// Works until asked to stop.
    ///
    /// # Errors
    /// The kernel refuses to wait for descriptors.
    pub fn run(mut self) -> io::Result<()> {
        let mut batch = Batch::new();
        let mut empty_rounds = 0;
        let mut next_report = Instant::ZERO;
        let mut unwell = vec![false; self.ports.len()];
        while !self.stop.load(Ordering::Relaxed) {
            let now = clock();
            let mut busy = self.receive_all(&mut batch, now);
            busy |= self.take_over();
            let timers_done = self.director.tick(&mut batch, &self.frames, now);
            busy |= !batch.is_empty() | !timers_done;
            self.dispatch(&mut batch);
            let unsent = self.flush();
            if now >= next_report {
                self.write_report(&mut unwell);
                next_report = now + REPORT_PERIOD;
            }
            empty_rounds = if busy { 0 } else { empty_rounds + 1 };
            if empty_rounds > PATIENCE {
                self.write_report(&mut unwell);
                self.sleep(now, unsent)?;
            }
        }
        Ok(())
    }

    /// One batch from each port; says whether there was any frame.
    fn receive_all(&mut self, batch: &mut Batch, mut now: Instant) -> bool {
        let mut any = false;
        for index in 0..self.ports.len() {
            let Some(port) = &mut self.ports[index] else { continue };
            if port.receive(&mut self.frames, batch) == 0 {
                continue;
            }
            if any {
                now = clock();
            }
            any = true;
            self.director.process(batch, &self.frames, now);
            self.dispatch(batch);
        }
        any
    }

    /// Sends what other workers handed over; says whether there was anything.
    fn take_over(&mut self) -> bool {
        let Self { handover, frames, ports, .. } = self;
        handover.take(|port, bytes, offload| {
            if let Some(Some(port)) = ports.get_mut(usize::from(port.0))
                && let Some(frame) = frames.allocate_copy(bytes)
            {
                port.transmit(frames, frame, offload);
            }
        })
    }

    fn dispatch(&mut self, batch: &mut Batch) {
        for Entry { frame, offload, verdict, .. } in batch.drain() {
            match verdict {
                Verdict::Transmit(PortId(port)) | Verdict::Reply(PortId(port)) => {
                    match self.ports.get_mut(usize::from(port)) {
                        Some(Some(port)) => port.transmit(&mut self.frames, frame, offload),
                        _ => {
                            self.handover.give(PortId(port), self.frames.bytes(&frame), offload);
                            self.frames.free(frame);
                        }
                    }
                }
                Verdict::ToHost => self.host.send(&mut self.frames, frame, offload),
                Verdict::Drop(_) | Verdict::Held | Verdict::Undecided => self.frames.free(frame),
            }
        }
    }

    /// Hands everything to the kernel; says whether something could not be.
    fn flush(&mut self) -> bool {
        let mut unsent = false;
        for port in self.ports.iter_mut().flatten() {
            port.flush(&mut self.frames);
            unsent |= port.unsent() > 0;
        }
        self.handover.wake();
        unsent
    }

    fn sleep(&mut self, now: Instant, unsent: bool) -> io::Result<()> {
        if !self.handover.may_sleep() {
            return Ok(());
        }
        let mut longest = LONGEST_SLEEP;
        if let Some(deadline) = self.director.next_deadline() {
            longest = longest.min(deadline.since(now));
        }
        if unsent || self.director.is_holding() {
            longest = longest.min(SHORT_SLEEP);
        }
        self.director.rest();
        let descriptors = self.ports.iter().flatten().filter_map(|port| port.readiness());
        sleep::until_readable(descriptors.chain([self.handover.readiness()]), longest.into())
    }

    /// Writes counters down, and logs a port that stops or starts to work.
    fn write_report(&mut self, unwell: &mut [bool]) {
        let mut report = self.report.lock();
        report.ports.clear();
        for (index, port) in self.ports.iter_mut().enumerate() {
            let entry = port.as_mut().map(|port| {
                let health = port.health();
                match (&health, unwell[index]) {
                    (Err(error), false) => tracing::warn!(port = index, %error, "a port does not work"),
                    (Ok(()), true) => tracing::info!(port = index, "the port works again"),
                    _ => (),
                }
                unwell[index] = health.is_err();
                (port.statistics(), health.err().map(|error| error.to_string()))
            });
            report.ports.push(entry);
        }
        report.host = self.host.statistics();
        report.handover_dropped = self.handover.dropped();
        report.chunks = (self.frames.available(), self.frames.chunks());
    }
}
