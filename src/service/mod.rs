//! Virtual services and their real servers, as the packet path sees them.
//!
//! A [`Service`] is immutable and shared: an edit makes a new one. What changes while packets flow lies in
//! two places it points to: the [`ServerSlot`]s with their counts and weights (atomics), and the
//! [`Chooser`], the list of real servers with the scheduler's state under one small lock.

mod counters;
mod lookup;
pub mod marks;
mod slot;

use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::persistence::Persistence;
use crate::scheduler::{Choice, Flow, Lifetimes, Scheduler};
use crate::types::{ForwardingMethod, Protocol, ServiceKey};

pub use counters::{CounterBlock, Counters, Traffic};
pub use lookup::{FTP_DATA_PORT, FTP_PORT, ServiceTable};
pub use slot::{MAX_REAL_SERVERS, ServerId, ServerSlot, ServerSlots};

/// Most virtual services at a time, those whose connections outlive them included.
pub const MAX_SERVICES: usize = 16_384;

/// Names a virtual service for as long as it, or a connection made by it, lives. Indexes its counters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ServiceId(pub u32);

/// A real server as its service's scheduler lists it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RealServer {
    /// Where its counts, weight and flags are.
    pub id: ServerId,
    /// Its address.
    pub address: IpAddr,
    /// Its port; 0 keeps the packet's.
    pub port: u16,
    /// How packets get to it.
    pub method: ForwardingMethod,
}

/// A virtual service.
#[derive(Debug)]
pub struct Service {
    /// Names it to counters and connections.
    pub id: ServiceId,
    /// What selects its packets.
    pub key: ServiceKey,
    /// Its real servers and who picks among them. Outlives edits of the service.
    pub chooser: Arc<Mutex<Chooser>>,
    /// Clients stay with their real server, if and how.
    pub persistence: Option<Persistence>,
    /// Each packet of UDP is scheduled by itself; of no effect on other protocols, which a service by mark gets, too.
    pub one_packet: bool,
}

impl Service {
    /// Whether packets of `protocol` make no connections (`IP_VS_SVC_F_ONEPACKET`, which `ip_vs_schedule` heeds for UDP).
    #[inline]
    pub fn schedules_each_packet(&self, protocol: Protocol) -> bool {
        self.one_packet && protocol == Protocol::Udp
    }
}

/// A service's real servers, and the scheduler that picks among them.
///
/// One lock guards the pick and the state it leaves, so that all workers share one cursor. Touched once per
/// new connection.
#[derive(Debug)]
pub struct Chooser {
    servers: Vec<RealServer>,
    scheduler: Box<dyn Scheduler>,
}

impl Chooser {
    /// No real servers yet.
    pub fn new(scheduler: Box<dyn Scheduler>) -> Self {
        Self { servers: Vec::new(), scheduler }
    }

    /// Picks a real server for a new connection.
    #[inline]
    pub fn choose(&mut self, slots: &ServerSlots, flow: &Flow) -> Option<RealServer> {
        match self.scheduler.choose(&self.servers, slots, flow) {
            Choice::Server(position) => self.servers.get(position).copied(),
            Choice::None => None,
        }
    }

    /// The real servers in the kernel's order: last added first.
    pub fn servers(&self) -> &[RealServer] {
        &self.servers
    }

    /// Adds a real server at the head of the list, as the kernel does (list_add_rcu in `ip_vs_ctl.c`).
    pub fn add(&mut self, slots: &ServerSlots, server: RealServer) {
        self.servers.insert(0, server);
        self.scheduler.added(&self.servers, slots);
    }

    /// Removes a real server; false where it is not in the list.
    pub fn remove(&mut self, slots: &ServerSlots, id: ServerId) -> bool {
        let Some(position) = self.servers.iter().position(|server| server.id == id) else { return false };
        self.servers.remove(position);
        self.scheduler.removed(&self.servers, slots, position);
        true
    }

    /// Removes all real servers.
    pub fn clear(&mut self, slots: &ServerSlots) {
        self.servers.clear();
        self.scheduler.added(&self.servers, slots);
    }

    /// Takes over a real server's new method, or hears that its weight changed.
    pub fn update(&mut self, slots: &ServerSlots, server: RealServer) {
        if let Some(present) = self.servers.iter_mut().find(|present| present.id == server.id) {
            *present = server;
        }
        self.scheduler.updated(&self.servers, slots);
    }

    /// Tells the scheduler how long to remember what nobody asks for.
    pub fn set_lifetimes(&mut self, lifetimes: Lifetimes) {
        self.scheduler.set_lifetimes(lifetimes);
    }

    /// Lets another scheduler go on from here, without memory of what the former picked.
    pub fn replace_scheduler(&mut self, slots: &ServerSlots, scheduler: Box<dyn Scheduler>) {
        self.scheduler = scheduler;
        self.scheduler.added(&self.servers, slots);
    }
}
