//! Schedulers: which real server gets a new connection.
//!
//! One file each, in one order: the algorithm in words with its source, the state, the choice, the tests.
//! To add one, write its file and a line in [`create`]'s registry. `hash` has the kernel's hashes, `cache` what the two
//! that go by locality remember.
//!
//! Every scheduler sees the real servers in the kernel's order, last added first: that decides ties and the
//! order of turns, and the recordings of the kernel hold us to it.

mod cache;
mod dh;
mod fo;
mod hash;
mod lblc;
mod lblcr;
mod lc;
mod mh;
mod none;
mod nq;
mod ovf;
mod rr;
mod sed;
mod sh;
mod twos;
mod wlc;
mod wrr;

use std::fmt::Debug;
use std::net::IpAddr;

use crate::service::{RealServer, ServerSlot, ServerSlots};
use crate::types::{Duration, HashKey, Instant};

pub use mh::Maglev;

/// What a scheduler may know of a new connection.
#[derive(Clone, Copy, Debug)]
pub struct Flow {
    /// The client.
    pub client: IpAddr,
    /// The client's port.
    pub client_port: u16,
    /// The address the client wants.
    pub destination: IpAddr,
    /// The moment of its first packet.
    pub now: Instant,
}

/// A scheduler's answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Choice {
    /// The real server at this position of the list.
    Server(usize),
    /// None may take the connection.
    None,
}

impl From<Option<usize>> for Choice {
    fn from(position: Option<usize>) -> Self {
        position.map_or(Self::None, Self::Server)
    }
}

/// How long schedulers remember destinations that nobody asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lifetimes {
    /// `lblc`: until the destination is forgotten (`lblc_expiration`).
    pub lblc: Duration,
    /// `lblcr`: that too, and until a set of real servers shrinks (`lblcr_expiration`).
    pub lblcr: Duration,
}

impl Default for Lifetimes {
    fn default() -> Self {
        let day = Duration::from_secs(24 * 60 * 60);
        Self { lblc: day, lblcr: day }
    }
}

/// Picks real servers. Called under its service's lock, once per new connection.
pub trait Scheduler: Send + Debug {
    /// Picks from `servers`, the list as of the last call to one of the others.
    fn choose(&mut self, servers: &[RealServer], slots: &ServerSlots, flow: &Flow) -> Choice;

    /// The list has a new first element, or is new as a whole. Nothing to those that keep nothing of it; so with the next
    /// two.
    fn added(&mut self, _servers: &[RealServer], _slots: &ServerSlots) {}

    /// The element that was at `position` is gone from the list.
    fn removed(&mut self, _servers: &[RealServer], _slots: &ServerSlots, _position: usize) {}

    /// Weights may have changed; the list's members have not.
    fn updated(&mut self, _servers: &[RealServer], _slots: &ServerSlots) {}

    /// Takes over other lifetimes; until then, the default ones. Nothing to those that remember no destinations.
    fn set_lifetimes(&mut self, _lifetimes: Lifetimes) {}
}

/// Scheduler flag 1 (`-b flag-1`): `sh-fallback`, `mh-fallback`.
pub const FLAG_1: u32 = 0x08;
/// Scheduler flag 2 (`-b flag-2`): `sh-port`, `mh-port`.
pub const FLAG_2: u32 = 0x10;

/// A scheduler's constructor, given the service's flags and a secret.
type Constructor = fn(u32, HashKey) -> Box<dyn Scheduler>;

/// The registry: a line for each scheduler.
const REGISTRY: &[(&str, Constructor)] = &[
    ("dh", |_, _| Box::new(dh::DestinationHash)),
    ("fo", |_, _| Box::new(fo::FailOver)),
    ("lblc", |_, secret| Box::new(lblc::LocalityBased::new(secret))),
    ("lblcr", |_, secret| Box::new(lblcr::ReplicatingLocalityBased::new(secret))),
    ("lc", |_, _| Box::new(lc::LeastConnections)),
    ("mh", |flags, _| Box::new(Maglev::new(flags))),
    ("none", |_, _| Box::new(none::NoScheduler)),
    ("nq", |_, _| Box::new(nq::NeverQueue)),
    ("ovf", |_, _| Box::new(ovf::Overflow)),
    ("rr", |_, _| Box::<rr::RoundRobin>::default()),
    ("sed", |_, _| Box::new(sed::ShortestExpectedDelay)),
    ("sh", |flags, _| Box::new(sh::SourceHash::new(flags))),
    ("twos", |_, secret| Box::new(twos::TwosChoice::new(secret))),
    ("wlc", |_, _| Box::new(wlc::WeightedLeastConnections)),
    ("wrr", |_, _| Box::<wrr::WeightedRoundRobin>::default()),
];

/// A new scheduler by its name, or `None` where there is none of that name. `secret` is for those that draw lots or
/// keep tables by what an attacker may choose; what all directors have to agree on does not depend on it.
pub fn create(name: &str, flags: u32, secret: HashKey) -> Option<Box<dyn Scheduler>> {
    REGISTRY.iter().find(|(known, _)| *known == name).map(|(_, constructor)| constructor(flags, secret))
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

/// What a real server has to do, for its weight. Compared by cross-multiplication, so that nothing is rounded.
#[derive(Clone, Copy, Debug)]
struct Load {
    /// Below 2^41.
    overhead: u64,
    /// Below 2^32.
    weight: u32,
}

impl Load {
    #[inline]
    fn is_below(self, other: Self) -> bool {
        // The products need more than 64 bits.
        u128::from(self.overhead) * u128::from(other.weight)
            < u128::from(other.overhead) * u128::from(self.weight)
    }
}

/// The position of the real server with the least overhead for its weight, of those that may take a connection; the
/// first in the list on a tie.
#[inline]
fn least_loaded(
    servers: &[RealServer],
    slots: &ServerSlots,
    overhead: impl Fn(&ServerSlot) -> u64,
) -> Option<usize> {
    let mut least: Option<(usize, Load)> = None;
    for (position, server) in servers.iter().enumerate() {
        let slot = slots.get(server.id);
        if !may_take(slot) {
            continue;
        }
        let load = Load { overhead: overhead(slot), weight: slot.weight() };
        if least.is_none_or(|(_, least)| load.is_below(least)) {
            least = Some((position, load));
        }
    }
    least.map(|(position, _)| position)
}

/// The position of the real server with the highest weight, of those that `may`; the first in the list on a tie.
fn heaviest(servers: &[RealServer], slots: &ServerSlots, may: impl Fn(&ServerSlot) -> bool) -> Option<usize> {
    let mut heaviest: Option<(usize, u32)> = None;
    for (position, server) in servers.iter().enumerate() {
        let slot = slots.get(server.id);
        let weight = slot.weight();
        if may(slot) && heaviest.is_none_or(|(_, most)| weight > most) {
            heaviest = Some((position, weight));
        }
    }
    heaviest.map(|(position, _)| position)
}

/// The greatest common divisor; that of a number and 0 is the number.
fn gcd(mut a: u32, mut b: u32) -> u32 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod simulation;

#[cfg(test)]
pub(crate) mod testing {
    //! A list of real servers for the tests of schedulers.

    use super::*;
    use crate::service::{ServerId, ServiceId};
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
        now: Instant::ZERO,
    };

    /// Connections to so many destinations one after the other, as in the recordings of services by mark.
    pub(crate) fn destinations(count: u8) -> impl Iterator<Item = Flow> {
        (0..count).map(|number| Flow { destination: IpAddr::from([10, 88, 0, 100 + number]), ..CLIENT })
    }

    /// The clients of the recordings.
    pub(crate) fn clients(count: u16) -> impl Iterator<Item = Flow> {
        (0..count).map(|number| Flow {
            client: IpAddr::from([10, 88, 128 + (number * 5 % 7) as u8, 1 + (number * 37 % 12) as u8]),
            client_port: 20_000 + number * 13,
            ..CLIENT
        })
    }

    /// Those of a recording over IPv6, with ports from `first_port` on.
    pub(crate) fn ipv6_clients(first_port: u16) -> impl Iterator<Item = Flow> {
        (0..24_u16).map(move |number| {
            let [a, b, c] = [7919, 104_729, 1_299_709].map(|factor: u32| (u32::from(number) * factor) as u16);
            let client = IpAddr::from([0xfd88, 0xc, a, b, 0, 0, c, 1 + number]);
            Flow { client, client_port: first_port + 13 * number, ..CLIENT }
        })
    }

    impl Bench {
        /// Servers 1, 2, 3... with these weights, added in that order.
        pub(crate) fn new(name: &str, flags: u32, weights: &[u32]) -> Self {
            Self::of(create(name, flags, HashKey::new([1, 2])).unwrap(), weights)
        }

        pub(crate) fn of(scheduler: Box<dyn Scheduler>, weights: &[u32]) -> Self {
            let slots = ServerSlots::new(weights.len() + 16);
            let mut bench = Self { slots, servers: Vec::new(), scheduler };
            for (index, &weight) in weights.iter().enumerate() {
                bench.add(index as u32 + 1, weight);
            }
            bench
        }

        pub(crate) fn slot(&self, number: u32) -> &ServerSlot {
            self.slots.get(ServerId(number))
        }

        /// Adds a server as new, but for the connections that it has.
        pub(crate) fn add(&mut self, number: u32, weight: u32) {
            let slot = self.slot(number);
            slot.reassign(ServiceId(0));
            slot.set_weight(weight);
            let [.., high, low] = (10 + number).to_be_bytes();
            let (id, address) = (ServerId(number), IpAddr::from([10, 88, 2 + high, low]));
            let server = RealServer { id, address, port: 80, method: ForwardingMethod::DirectRouting };
            self.servers.insert(0, server);
            self.scheduler.added(&self.servers, &self.slots);
        }

        pub(crate) fn edit(&mut self, number: u32, weight: u32) {
            self.slot(number).set_weight(weight);
            self.scheduler.updated(&self.servers, &self.slots);
        }

        /// Sets an upper threshold, which takes effect with the next connection.
        pub(crate) fn limit(&mut self, number: u32, upper: u32) {
            self.slot(number).set_thresholds(upper, 0);
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

        /// The number of the server picked, which has an active connection more then; 0 for none.
        pub(crate) fn open(&mut self, flow: &Flow) -> u32 {
            let number = self.choose(flow);
            if number > 0 {
                self.slot(number).connection_added();
                self.slot(number).connection_moved(true);
            }
            number
        }

        pub(crate) fn openings(&mut self, count: usize) -> Vec<u32> {
            (0..count).map(|_| self.open(&CLIENT)).collect()
        }

        /// One of a server's active connections ends.
        pub(crate) fn close(&mut self, number: u32) {
            self.slot(number).connection_removed(true);
        }
    }
}
