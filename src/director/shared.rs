//! What all workers share.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::conn::{ConnectionId, Epochs, FlowFamily, Ipv4, Ipv6, MAX_WORKERS, Table, WorkerView};
use crate::forward::nat::{Side, Translation};
use crate::service::{MAX_REAL_SERVERS, ServerId, ServerSlots, ServiceId, Traffic};
use crate::types::{Family, HashKey, Instant};

use super::configuration::{Configuration, Network};
use super::counters::{FrameCounts, WorkerCounters};
use super::fragments::MAX_DATAGRAMS;
use super::pipeline::Decision;
use super::requests::Requests;

/// How large a director is made.
#[derive(Clone, Copy, Debug)]
pub struct Capacity {
    /// Connections of each address family, and as many connection templates.
    pub connections: u32,
    /// Real servers over all services.
    pub servers: usize,
    /// Workers, at most [`MAX_WORKERS`].
    pub workers: usize,
}

/// Records at a time of a walk.
const STEP: u32 = 4096;

/// Where a walk over both tables stands, connections first and then templates in each; the default is the beginning.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Walk {
    /// In the table of IPv6.
    pub ipv6: bool,
    /// Among its templates.
    pub templates: bool,
    /// The next record.
    pub next: u32,
}

impl Walk {
    /// Goes on at record `next`, or at the end of these records with what comes after; `None` once there is nothing.
    pub fn advanced(self, next: Option<u32>) -> Option<Self> {
        match (next, self) {
            (Some(next), _) => Some(Self { next, ..self }),
            (None, Self { templates: false, ipv6, .. }) => Some(Self { ipv6, templates: true, next: 0 }),
            (None, Self { ipv6: false, .. }) => Some(Self { ipv6: true, ..Self::default() }),
            (None, _) => None,
        }
    }
}

impl Default for Capacity {
    fn default() -> Self {
        Self { connections: 1 << 20, servers: MAX_REAL_SERVERS, workers: 1 }
    }
}

/// Datagrams that came in fragments, with what was decided about their first.
pub(super) type FragmentTable = crate::fragment::Table<Decision>;

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
    pub(super) fragments: FragmentTable,
    /// A secret for schedulers.
    pub scheduling_key: HashKey,
    counters: Box<[WorkerCounters]>,
    requests: Box<[Requests]>,
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
            fragments: FragmentTable::new(
                MAX_DATAGRAMS,
                HashKey::new([keys[0].hash([0]), keys[1].hash([0])]),
            )?,
            counters: (0..capacity.workers).map(|_| WorkerCounters::new(slots.len())).collect(),
            slots,
            epochs: Epochs::new(),
            configuration: ArcSwap::default(),
            network: ArcSwap::default(),
            scheduling_key: HashKey::new(keys.map(|key| key.hash([0]))),
            requests: (0..capacity.workers).map(|_| Requests::new()).collect(),
        }))
    }

    /// Worker `worker` has a reply for a client that is a neighbour and that [`Network::clients`] lacks: somebody is to
    /// ask the kernel for it. Where too many were asked for already, the next reply asks again.
    pub(super) fn ask_for_client(&self, worker: usize, client: IpAddr) {
        self.requests[worker].ask(client);
    }

    /// The clients that workers asked for since the last call, some of them more than once. Only one thread may call
    /// this.
    pub fn clients_asked_for(&self) -> impl Iterator<Item = IpAddr> {
        self.requests.iter().flat_map(Requests::take)
    }

    /// Whether a connection is still the one that was decided about some time ago.
    pub(super) fn is_alive(&self, family: Family, id: ConnectionId) -> bool {
        let lifecycle = match family {
            Family::V4 => self.ipv4.record(id.index).lifecycle(),
            Family::V6 => self.ipv6.record(id.index).lifecycle(),
        };
        lifecycle.is_alive() && lifecycle.generation == id.generation
    }

    /// The real server of a connection.
    pub(super) fn server_of(&self, family: Family, id: ConnectionId) -> ServerId {
        match family {
            Family::V4 => self.ipv4.record(id.index).server(),
            Family::V6 => self.ipv6.record(id.index).server(),
        }
    }

    /// What masquerading puts in place of one side of a packet: of the destination, that it goes to the connection's
    /// real server; of the source, that it comes from the virtual service. The record must be the one that was found.
    pub(super) fn translation(&self, family: Family, index: u32, side: Side) -> Translation {
        fn of<F: FlowFamily>(table: &Table<F>, index: u32, side: Side) -> Translation {
            let record = table.record(index);
            let (address, port) = match side {
                Side::Destination => record.target(),
                Side::Source => (record.addresses().1, record.ports().1),
            };
            Translation { side, address, port }
        }
        match family {
            Family::V4 => of(&self.ipv4, index, side),
            Family::V6 => of(&self.ipv6, index, side),
        }
    }

    /// What masquerading puts in place of a packet's destination where there is no connection to say it.
    pub(super) fn translation_alone(&self, server: ServerId, port: u16) -> Translation {
        let address = self.slots.get(server).real_server(server).address;
        Translation { side: Side::Destination, address, port }
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

    /// Goes on ending the connections whose real server was removed (`expire_nodest_conn` wants it so), and templates
    /// that are left without any, a bounded number of records further. Says where to go on next time, `None` at the end.
    pub fn end_orphans(&self, walk: Walk, views: &mut [WorkerView; 2], now: Instant) -> Option<Walk> {
        /// A million records: some milliseconds.
        const STEPS: u32 = 256;
        let mut found = Vec::with_capacity(STEP as usize);
        let mut walk = Some(walk);
        for _ in 0..STEPS {
            let at = walk?;
            let Self { ipv4, ipv6, slots, .. } = self;
            walk = at.advanced(match at {
                Walk { ipv6: false, templates: false, next } => {
                    self.end_orphans_of(ipv4, next, &mut views[0], &mut found, now)
                }
                Walk { ipv6: true, templates: false, next } => {
                    self.end_orphans_of(ipv6, next, &mut views[1], &mut found, now)
                }
                Walk { ipv6: false, next, .. } => ipv4.templates().end_orphans(next, STEP, slots),
                Walk { next, .. } => ipv6.templates().end_orphans(next, STEP, slots),
            });
        }
        walk
    }

    /// One step among the connections of a family; `found` is room for what is noted before it is ended.
    fn end_orphans_of<F: FlowFamily>(
        &self,
        table: &Table<F>,
        start: u32,
        view: &mut WorkerView,
        found: &mut Vec<ConnectionId>,
        now: Instant,
    ) -> Option<u32> {
        let next = table.visit(start, STEP, now, |index, lifecycle, record| {
            if !self.slots.get(record.server()).is_available() {
                found.push(ConnectionId { index, generation: lifecycle.generation });
            }
        });
        for id in found.drain(..) {
            table.remove(id, &self.slots, view, &self.epochs);
        }
        table.give_back(view, &self.epochs);
        next
    }
}
