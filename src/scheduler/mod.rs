//! Schedulers: which real server gets a new connection.
//!
//! One file each, in one order: the algorithm in words with its source, the state, the choice, the tests.
//! To add one, write its file and a line in [`create`]'s registry.
//!
//! Every scheduler sees the real servers in the kernel's order, last added first: that decides ties and the
//! order of turns, and the recordings of the kernel hold us to it.

mod rr;
mod sh;
mod wlc;
mod wrr;

use std::fmt::Debug;
use std::net::IpAddr;

use crate::service::{RealServer, ServerSlot, ServerSlots};

/// What a scheduler may know of a new connection.
#[derive(Clone, Copy, Debug)]
pub struct Flow {
    /// The client.
    pub client: IpAddr,
    /// The client's port.
    pub client_port: u16,
    /// The address the client wants.
    pub destination: IpAddr,
}

/// A scheduler's answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Choice {
    /// The real server at this position of the list.
    Server(usize),
    /// None may take the connection.
    None,
}

/// Picks real servers. Called under its service's lock, once per new connection.
pub trait Scheduler: Send + Debug {
    /// Picks from `servers`, the list as of the last call to one of the others.
    fn choose(&mut self, servers: &[RealServer], slots: &ServerSlots, flow: &Flow) -> Choice;

    /// The list has a new first element, or is new as a whole.
    fn added(&mut self, servers: &[RealServer], slots: &ServerSlots);

    /// The element that was at `position` is gone from the list.
    fn removed(&mut self, servers: &[RealServer], slots: &ServerSlots, position: usize);

    /// Weights may have changed; the list's members have not.
    fn updated(&mut self, servers: &[RealServer], slots: &ServerSlots);
}

/// Scheduler flag 1 (`-b flag-1`): `sh-fallback`, `mh-fallback`.
pub const FLAG_1: u32 = 0x08;
/// Scheduler flag 2 (`-b flag-2`): `sh-port`, `mh-port`.
pub const FLAG_2: u32 = 0x10;

/// A scheduler's constructor, given the service's flags.
type Constructor = fn(u32) -> Box<dyn Scheduler>;

/// The registry: a line for each scheduler.
const REGISTRY: &[(&str, Constructor)] = &[
    ("rr", |_| Box::<rr::RoundRobin>::default()),
    ("sh", |flags| Box::new(sh::SourceHash::new(flags))),
    ("wlc", |_| Box::new(wlc::WeightedLeastConnections)),
    ("wrr", |_| Box::<wrr::WeightedRoundRobin>::default()),
];

/// A new scheduler by its name, or `None` where there is none of that name.
pub fn create(name: &str, flags: u32) -> Option<Box<dyn Scheduler>> {
    REGISTRY.iter().find(|(known, _)| *known == name).map(|(_, constructor)| constructor(flags))
}

/// The names that [`create`] knows.
pub fn names() -> impl Iterator<Item = &'static str> {
    REGISTRY.iter().map(|(name, _)| *name)
}

/// Whether a real server may take a new connection at all.
#[inline]
fn may_take(slot: &ServerSlot) -> bool {
    slot.weight() > 0 && !slot.is_overloaded()
}

#[cfg(test)]
pub(crate) mod testing {
    //! A list of real servers for the tests of schedulers.

    use super::*;
    use crate::service::ServerId;
    use crate::types::ForwardingMethod;

    pub(crate) struct Bench {
        pub(crate) slots: ServerSlots,
        pub(crate) servers: Vec<RealServer>,
        pub(crate) scheduler: Box<dyn Scheduler>,
    }

    pub(crate) const CLIENT: Flow = Flow {
        client: IpAddr::V4(std::net::Ipv4Addr::new(10, 88, 128, 1)),
        client_port: 4000,
        destination: IpAddr::V4(std::net::Ipv4Addr::new(10, 88, 0, 100)),
    };

    impl Bench {
        /// Servers 1, 2, 3... with these weights, added in that order.
        pub(crate) fn new(name: &str, flags: u32, weights: &[u32]) -> Self {
            let mut bench = Self {
                slots: ServerSlots::new(16),
                servers: Vec::new(),
                scheduler: create(name, flags).unwrap(),
            };
            for (index, &weight) in weights.iter().enumerate() {
                bench.add(index as u32 + 1, weight);
            }
            bench
        }

        pub(crate) fn add(&mut self, number: u32, weight: u32) {
            let id = ServerId(number);
            self.slots.get(id).set_weight(weight);
            let address = IpAddr::V4(std::net::Ipv4Addr::new(10, 88, 2, 10 + number as u8));
            self.servers
                .insert(0, RealServer { id, address, port: 80, method: ForwardingMethod::DirectRouting });
            self.scheduler.added(&self.servers, &self.slots);
        }

        pub(crate) fn edit(&mut self, number: u32, weight: u32) {
            self.slots.get(ServerId(number)).set_weight(weight);
            self.scheduler.updated(&self.servers, &self.slots);
        }

        pub(crate) fn remove(&mut self, number: u32) {
            let position = self.servers.iter().position(|server| server.id.0 == number).unwrap();
            self.servers.remove(position);
            self.scheduler.removed(&self.servers, &self.slots, position);
        }

        /// The number of the server picked, 0 for none.
        pub(crate) fn choose(&mut self, flow: &Flow) -> u32 {
            match self.scheduler.choose(&self.servers, &self.slots, flow) {
                Choice::Server(position) => self.servers[position].id.0,
                Choice::None => 0,
            }
        }

        pub(crate) fn sequence(&mut self, count: usize) -> Vec<u32> {
            (0..count).map(|_| self.choose(&CLIENT)).collect()
        }
    }
}
