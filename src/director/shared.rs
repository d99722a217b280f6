//! What all workers share.

use std::io;
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::conn::{ConnectionId, Epochs, Ipv4, Ipv6, MAX_WORKERS, Table, WorkerView};
use crate::service::{MAX_REAL_SERVERS, ServerId, ServerSlots, ServiceId, Traffic};
use crate::types::{HashKey, Instant};

use super::configuration::{Configuration, Network};
use super::counters::{FrameCounts, WorkerCounters};

/// How large a director is made.
#[derive(Clone, Copy, Debug)]
pub struct Capacity {
    /// Connections of each address family.
    pub connections: u32,
    /// Real servers over all services.
    pub servers: usize,
    /// Workers, at most [`MAX_WORKERS`].
    pub workers: usize,
}

impl Default for Capacity {
    fn default() -> Self {
        Self { connections: 1 << 20, servers: MAX_REAL_SERVERS, workers: 1 }
    }
}

/// The tables, the counters, and the snapshots that workers go by.
#[derive(Debug)]
pub struct Shared {
    /// Connections over IPv4.
    pub ipv4: Table<Ipv4>,
    /// Connections over IPv6.
    pub ipv6: Table<Ipv6>,
    /// Real servers.
    pub slots: ServerSlots,
    /// Who may still look at what.
    pub epochs: Epochs,
    /// The operator's configuration.
    pub configuration: ArcSwap<Configuration>,
    /// The kernel's links, addresses and next hops.
    pub network: ArcSwap<Network>,
    counters: Box<[WorkerCounters]>,
}

impl Shared {
    /// Tables of this capacity, empty, with secrets of their own.
    ///
    /// # Errors
    /// Out of memory; more workers than [`MAX_WORKERS`].
    pub fn new(capacity: Capacity, keys: [HashKey; 2]) -> io::Result<Arc<Self>> {
        if capacity.workers == 0 || capacity.workers > MAX_WORKERS {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{} workers: there can be 1 to {MAX_WORKERS}", capacity.workers),
            ));
        }
        let slots = ServerSlots::new(capacity.servers);
        // The control thread ends connections, too, and has timers of its own to make room for.
        let wheels = capacity.workers + 1;
        Ok(Arc::new(Self {
            ipv4: Table::new(capacity.connections, wheels, keys[0])?,
            ipv6: Table::new(capacity.connections, wheels, keys[1])?,
            counters: (0..capacity.workers).map(|_| WorkerCounters::new(slots.len())).collect(),
            slots,
            epochs: Epochs::new(),
            configuration: ArcSwap::default(),
            network: ArcSwap::default(),
        }))
    }

    /// Number of workers there is room for.
    pub fn workers(&self) -> usize {
        self.counters.len()
    }

    /// One worker's counters.
    ///
    /// # Panics
    /// For a worker beyond [`workers`](Self::workers): an error in the program.
    pub fn counters(&self, worker: usize) -> &WorkerCounters {
        &self.counters[worker]
    }

    /// All workers' frames by verdict.
    pub fn frame_counts(&self) -> FrameCounts {
        self.counters.iter().fold(FrameCounts::default(), |mut sum, counters| {
            sum += &counters.frames();
            sum
        })
    }

    /// A service's traffic over all workers, since the director started.
    pub fn service_traffic(&self, id: ServiceId) -> Traffic {
        self.counters
            .iter()
            .fold(Traffic::default(), |sum, counters| sum + counters.traffic.service(id).read())
    }

    /// A real server's traffic over all workers, since the director started.
    pub fn server_traffic(&self, id: ServerId) -> Traffic {
        self.counters
            .iter()
            .fold(Traffic::default(), |sum, counters| sum + counters.traffic.server(id).read())
    }

    /// Ends all connections to a real server (`expire_nodest_conn` does so when it is removed).
    /// Walks the tables in steps; says how many it ended.
    pub fn end_connections_of(&self, server: ServerId, views: &mut [WorkerView; 2], now: Instant) -> u64 {
        self.end_of(&self.ipv4, server, &mut views[0], now)
            + self.end_of(&self.ipv6, server, &mut views[1], now)
    }

    fn end_of<F: crate::conn::FlowFamily>(
        &self,
        table: &Table<F>,
        server: ServerId,
        view: &mut WorkerView,
        now: Instant,
    ) -> u64 {
        const STEP: u32 = 4096;
        let mut ended = 0;
        let mut next = Some(0);
        let mut found = Vec::with_capacity(STEP as usize);
        while let Some(start) = next {
            next = table.visit(start, STEP, now, |index, lifecycle, record| {
                if record.server() == server {
                    found.push(ConnectionId { index, generation: lifecycle.generation });
                }
            });
            for id in found.drain(..) {
                ended += u64::from(table.remove(id, &self.slots, view, &self.epochs));
            }
            table.give_back(view, &self.epochs);
        }
        ended
    }
}
