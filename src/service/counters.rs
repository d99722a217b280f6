//! Traffic counters: one block per service and per real server, for each worker its own.

use std::ops::{Add, Sub};

use serde::{Deserialize, Serialize};

use crate::sys::memory::atomic::{AtomicU64, Ordering};

use super::{MAX_SERVICES, ServerId, ServiceId};

/// What a service or a real server has seen. Bytes are those of the IP packets, headers included, as the
/// kernel counts them.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Traffic {
    /// Connections made, templates excepted.
    pub connections: u64,
    /// Packets from clients.
    pub in_packets: u64,
    /// Packets from real servers; 0 where replies bypass the director.
    pub out_packets: u64,
    /// Bytes from clients.
    pub in_bytes: u64,
    /// Bytes from real servers.
    pub out_bytes: u64,
}

impl Add for Traffic {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self {
            connections: self.connections.wrapping_add(other.connections),
            in_packets: self.in_packets.wrapping_add(other.in_packets),
            out_packets: self.out_packets.wrapping_add(other.out_packets),
            in_bytes: self.in_bytes.wrapping_add(other.in_bytes),
            out_bytes: self.out_bytes.wrapping_add(other.out_bytes),
        }
    }
}

impl Sub for Traffic {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self {
            connections: self.connections.wrapping_sub(other.connections),
            in_packets: self.in_packets.wrapping_sub(other.in_packets),
            out_packets: self.out_packets.wrapping_sub(other.out_packets),
            in_bytes: self.in_bytes.wrapping_sub(other.in_bytes),
            out_bytes: self.out_bytes.wrapping_sub(other.out_bytes),
        }
    }
}

/// One worker's counters of one service or real server. Only that worker writes them.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct CounterBlock {
    connections: AtomicU64,
    in_packets: AtomicU64,
    out_packets: AtomicU64,
    in_bytes: AtomicU64,
    out_bytes: AtomicU64,
}

/// Adds without a locked instruction: the counter has a single writer.
#[inline]
fn bump(counter: &AtomicU64, by: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
}

impl CounterBlock {
    /// Counts a new connection.
    #[inline]
    pub fn connection(&self) {
        bump(&self.connections, 1);
    }

    /// Counts a packet of `bytes` from a client.
    #[inline]
    pub fn packet_in(&self, bytes: u32) {
        bump(&self.in_packets, 1);
        bump(&self.in_bytes, u64::from(bytes));
    }

    /// Counts `bytes` more of a packet from a client that was counted without them: a later fragment's.
    #[inline]
    pub fn more_in(&self, bytes: u32) {
        bump(&self.in_bytes, u64::from(bytes));
    }

    /// Counts a packet of `bytes` from a real server.
    #[inline]
    pub fn packet_out(&self, bytes: u32) {
        bump(&self.out_packets, 1);
        bump(&self.out_bytes, u64::from(bytes));
    }

    /// Counts `bytes` more of a packet from a real server that was counted without them.
    #[inline]
    pub fn more_out(&self, bytes: u32) {
        bump(&self.out_bytes, u64::from(bytes));
    }

    /// The values now; each is exact, all of them not necessarily of one moment.
    pub fn read(&self) -> Traffic {
        Traffic {
            connections: self.connections.load(Ordering::Relaxed),
            in_packets: self.in_packets.load(Ordering::Relaxed),
            out_packets: self.out_packets.load(Ordering::Relaxed),
            in_bytes: self.in_bytes.load(Ordering::Relaxed),
            out_bytes: self.out_bytes.load(Ordering::Relaxed),
        }
    }
}

/// One worker's counters of all services and real servers.
#[derive(Debug)]
pub struct Counters {
    services: Box<[CounterBlock]>,
    servers: Box<[CounterBlock]>,
}

impl Counters {
    /// Zeroed counters for [`MAX_SERVICES`] services and `servers` real servers.
    pub fn new(servers: usize) -> Self {
        let blocks = |count| (0..count).map(|_| CounterBlock::default()).collect();
        Self { services: blocks(MAX_SERVICES), servers: blocks(servers) }
    }

    /// The block of a service.
    ///
    /// # Panics
    /// For an id beyond the table: an error in the program.
    #[inline]
    pub fn service(&self, id: ServiceId) -> &CounterBlock {
        &self.services[id.0 as usize]
    }

    /// The block of a real server.
    ///
    /// # Panics
    /// For an id beyond the table: an error in the program.
    #[inline]
    pub fn server(&self, id: ServerId) -> &CounterBlock {
        &self.servers[id.index()]
    }
}
