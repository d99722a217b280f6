//! `lblcr`, locality-based least connections with replication: a destination has a set of real servers, which grows
//! under load and shrinks with time.
//!
//! The first connection to a destination goes to the real server that `wlc` picks, which makes its set. Later ones
//! go to the one of the set that `wlc` would pick. Where the set has none that may take connections, or that one is
//! crowded - has more active connections than weight, while another real server has less than half as many as its
//! weight - `wlc` picks from all, and its pick joins the set. A set of several that has not changed for a day
//! (`lblcr_expiration`) loses its most loaded one with the next connection; a destination that nobody asks for is
//! forgotten after as long. Meant for caches behind a service by mark, which has many destinations.
//! Source: `ip_vs_lblcr.c`.

use super::cache::{CAPACITY, Cache, Place, Places, is_crowded, place};
use super::{Choice, Flow, Lifetimes, Load, Scheduler, least_loaded, may_take};
use crate::service::{RealServer, ServerSlot, ServerSlots};
use crate::types::{Duration, HashKey, Instant};

/// Most members of all sets together. Once there are as many, sets do not grow.
const MEMBERS: usize = 4 * CAPACITY;
/// A set as large as this gives up members that are not in the list, before it grows: ones that were removed and may
/// yet come back.
const LARGE_SET: u32 = 64;
/// No member.
const NIL: u32 = u32::MAX;

/// Locality-based least connections with replication.
#[derive(Debug)]
pub(super) struct ReplicatingLocalityBased {
    /// The set of each destination.
    cache: Cache<Set>,
    members: Members,
    places: Places,
    lifetime: Duration,
}

/// A destination's real servers.
#[derive(Clone, Copy, Debug)]
struct Set {
    /// The member that joined last; NIL for none.
    first: u32,
    size: u32,
    changed: Instant,
}

#[derive(Clone, Copy, Debug)]
struct Member {
    place: Place,
    next: u32,
}

/// The members of all sets.
#[derive(Debug)]
struct Members {
    all: Vec<Member>,
    /// The first of those that are in no set.
    free: u32,
}

impl Members {
    fn new() -> Self {
        Self { all: Vec::with_capacity(MEMBERS), free: NIL }
    }

    /// The members of a set, the one that joined last first.
    fn of<'a>(&'a self, set: &Set) -> impl Iterator<Item = &'a Place> {
        let mut index = set.first;
        std::iter::from_fn(move || {
            let member = self.all.get(index as usize)?;
            index = member.next;
            Some(&member.place)
        })
    }

    /// Adds a member, if there is room for one.
    fn join(&mut self, set: &mut Set, place: Place, now: Instant) {
        let member = Member { place, next: set.first };
        let index = if let Some(free) = self.all.get_mut(self.free as usize) {
            let next = std::mem::replace(free, member).next;
            std::mem::replace(&mut self.free, next)
        } else if self.all.len() < MEMBERS {
            self.all.push(member);
            self.all.len() as u32 - 1
        } else {
            return;
        };
        *set = Set { first: index, size: set.size + 1, changed: now };
    }

    /// Takes the members out of a set that are not to be kept.
    fn retain(&mut self, set: &mut Set, keep: impl Fn(&Place) -> bool) {
        let (mut before, mut index) = (NIL, set.first);
        while let Some(&Member { place, next }) = self.all.get(index as usize) {
            if keep(&place) {
                before = index;
            } else {
                match self.all.get_mut(before as usize) {
                    Some(member) => member.next = next,
                    None => set.first = next,
                }
                self.all[index as usize].next = std::mem::replace(&mut self.free, index);
                set.size -= 1;
            }
            index = next;
        }
    }
}

impl ReplicatingLocalityBased {
    pub(super) fn new(secret: HashKey) -> Self {
        let lifetime = Lifetimes::default().lblcr;
        Self { cache: Cache::new(secret), members: Members::new(), places: Places::default(), lifetime }
    }

    /// The pick among a destination's set, unless it is crowded; the set shrinks when its time has come.
    fn recall(&mut self, servers: &[RealServer], slots: &ServerSlots, flow: &Flow) -> Option<usize> {
        let Self { cache, members, places, lifetime } = self;
        let set = cache.recall(flow.destination, flow.now, *lifetime)?;
        let positions = || members.of(set).filter_map(|place| places.position(place));
        let slot = |position: usize| slots.get(servers[position].id);
        let taking = positions().filter(|&position| may_take(slot(position)));
        let load = |position| Load { overhead: slot(position).overhead(), weight: slot(position).weight() };
        let least =
            taking.reduce(|least, other| if load(other).is_below(load(least)) { other } else { least });
        if set.size > 1 && flow.now.since(set.changed) > *lifetime {
            let heavy = positions().filter(|&position| slot(position).weight() > 0);
            let most =
                heavy.reduce(|most, other| if load(most).is_below(load(other)) { other } else { most });
            if let Some(most) = most.map(|position| place(&servers[position])) {
                members.retain(set, |place| *place != most);
                set.changed = flow.now;
            }
        }
        least.filter(|&position| !is_crowded(servers, slots, position))
    }

    /// Adds the real server to a destination's set, which is made where there is none.
    fn remember(&mut self, server: &RealServer, flow: &Flow) {
        let Self { cache, members, places, lifetime } = self;
        let place = place(server);
        if let Some(set) = cache.recall(flow.destination, flow.now, *lifetime) {
            if set.size >= LARGE_SET {
                members.retain(set, |place| places.position(place).is_some());
            }
            if !members.of(set).any(|member| *member == place) {
                members.join(set, place, flow.now);
            }
            return;
        }
        let empty = Set { first: NIL, size: 0, changed: flow.now };
        if let Some(mut forgotten) = cache.remember(flow.destination, flow.now, empty) {
            members.retain(&mut forgotten, |_| false);
        }
        if let Some(set) = cache.recall(flow.destination, flow.now, *lifetime) {
            members.join(set, place, flow.now);
        }
    }
}

impl Scheduler for ReplicatingLocalityBased {
    fn choose(&mut self, servers: &[RealServer], slots: &ServerSlots, flow: &Flow) -> Choice {
        if let Some(position) = self.recall(servers, slots, flow) {
            return Choice::Server(position);
        }
        let picked = least_loaded(servers, slots, ServerSlot::overhead);
        if let Some(position) = picked {
            self.remember(&servers[position], flow);
        }
        picked.into()
    }

    fn added(&mut self, servers: &[RealServer], _slots: &ServerSlots) {
        self.places.rebuild(servers);
    }

    fn removed(&mut self, servers: &[RealServer], _slots: &ServerSlots, _position: usize) {
        self.places.rebuild(servers);
    }

    fn set_lifetimes(&mut self, lifetimes: Lifetimes) {
        self.lifetime = lifetimes.lblcr;
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Bench, CLIENT, destinations};
    use super::*;
    use crate::service::ServerId;
    use crate::types::ForwardingMethod;

    const DAY: u64 = 86_400;

    fn at(seconds: u64) -> Flow {
        Flow { now: Instant::ZERO + Duration::from_secs(seconds), ..CLIENT }
    }

    #[test]
    fn destinations_stay_as_recorded() {
        let mut bench = Bench::new("lblcr", 0, &[1, 1, 1]);
        for round in 0..5 {
            let picks: Vec<u32> = destinations(12).map(|flow| bench.open(&flow)).collect();
            assert_eq!(picks, [3, 2, 1, 3, 2, 1, 3, 2, 1, 3, 2, 1], "{round}");
        }
    }

    #[test]
    fn a_set_grows_under_load_as_recorded() {
        let mut bench = Bench::new("lblcr", 0, &[1, 1, 1]);
        assert_eq!(bench.openings(12), [3, 3, 2, 2, 1, 1, 1, 2, 3, 1, 2, 3], "then all three take turns");
        let mut bench = Bench::new("lblcr", 0, &[3, 2, 1]);
        assert_eq!(bench.openings(15), [3, 3, 2, 2, 2, 1, 1, 1, 1, 1, 2, 1, 1, 2, 3]);
    }

    #[test]
    fn a_set_shrinks_by_its_most_loaded_with_time() {
        let mut bench = Bench::new("lblcr", 0, &[1, 1]);
        assert_eq!(bench.openings(3), [2, 2, 1], "the set is 1 and 2, 2 with more connections");
        for time in [DAY / 2, DAY] {
            assert_eq!(bench.choose(&at(time)), 1, "{time}");
        }
        assert_eq!(bench.open(&at(DAY + 1)), 1, "the less loaded, and now the only one");
        bench.close(2);
        assert_eq!(bench.choose(&at(DAY + 1)), 1, "2 has fewer connections, but is no member");
        bench.close(2);
        assert_eq!(bench.choose(&at(DAY + 1)), 2, "1 is crowded, 2 joins again");
        bench.close(1);
        assert_eq!(bench.open(&at(DAY + 1)), 2);
        // Nobody asks for as long: the destination is forgotten, and both have one connection.
        assert_eq!(bench.choose(&at(2 * DAY + 1)), 2, "the first in the list on a tie");
        bench.slot(2).connection_added();
        assert_eq!(bench.open(&at(2 * DAY + 2)), 2, "1 has less, but is no member any more");
    }

    #[test]
    fn the_lifetime_is_a_setting() {
        let mut bench = Bench::new("lblcr", 0, &[9, 9]);
        assert_eq!(bench.open(&at(0)), 2);
        let hour = Duration::from_secs(3600);
        bench.scheduler.set_lifetimes(Lifetimes { lblcr: hour, ..Lifetimes::default() });
        assert_eq!(bench.choose(&at(3599)), 2);
        assert_eq!(bench.choose(&at(7199)), 1);
    }

    #[test]
    fn members_are_used_again_and_never_more_than_there_may_be() {
        let mut members = Members::new();
        let empty = Set { first: NIL, size: 0, changed: Instant::ZERO };
        let place = |number: u16| (CLIENT.client, number);
        let mut sets = [empty; 2];
        for number in 0..MEMBERS {
            members.join(&mut sets[number % 2], place(number as u16), Instant::ZERO);
        }
        members.join(&mut sets[0], place(0), Instant::ZERO);
        assert_eq!(sets.map(|set| set.size), [MEMBERS as u32 / 2; 2], "there is no room for another");
        members.retain(&mut sets[0], |(_, number)| number % 4 != 0);
        assert_eq!(sets[0].size, MEMBERS as u32 / 4);
        assert!(members.of(&sets[0]).all(|(_, number)| number % 4 == 2));
        assert_eq!(members.of(&sets[0]).count(), MEMBERS / 4);
        members.join(&mut sets[1], place(4), Instant::ZERO);
        assert_eq!(members.of(&sets[1]).next(), Some(&place(4)));
        members.retain(&mut sets[1], |_| false);
        assert_eq!((sets[1].size, sets[1].first), (0, NIL));
        for number in 0..MEMBERS {
            members.join(&mut sets[1], place(number as u16), Instant::ZERO);
        }
        assert_eq!(sets[1].size, MEMBERS as u32 * 3 / 4);
        assert_eq!(members.all.capacity(), MEMBERS, "it never grows");
    }

    #[test]
    fn a_large_set_gives_up_those_that_are_gone() {
        let mut scheduler = ReplicatingLocalityBased::new(HashKey::new([1, 2]));
        let slots = ServerSlots::new(1);
        slots.get(ServerId(0)).set_weight(1);
        // Each is gone before the next comes.
        for port in 1..500 {
            let method = ForwardingMethod::DirectRouting;
            let servers = [RealServer { id: ServerId(0), address: CLIENT.destination, port, method }];
            scheduler.added(&servers, &slots);
            assert_eq!(scheduler.choose(&servers, &slots, &CLIENT), Choice::Server(0));
        }
        assert_eq!(scheduler.members.all.len(), LARGE_SET as usize);
    }

    #[test]
    fn more_destinations_than_there_is_room_for_are_served() {
        let mut bench = Bench::new("lblcr", 0, &[1, 1]);
        for number in 0..40_000_u32 {
            let flow = Flow { destination: std::net::IpAddr::V4((number % 20_000).into()), ..CLIENT };
            assert_ne!(bench.open(&flow), 0);
        }
    }

    #[test]
    fn quiescent_overloaded_and_removed_servers_get_nothing() {
        let mut bench = Bench::new("lblcr", 0, &[10, 10, 10]);
        assert_eq!(bench.openings(5), [3; 5]);
        bench.limit(3, 6);
        assert_eq!(bench.openings(3), [3, 2, 2], "an overloaded member is left out, another joins");
        bench.remove(2);
        assert_eq!(bench.openings(1), [1]);
        bench.edit(1, 0);
        assert_eq!(bench.openings(1), [0]);
        bench.add(2, 10);
        assert_eq!(bench.openings(1), [2], "a member again");
        assert_eq!(Bench::new("lblcr", 0, &[]).openings(1), [0]);
    }
}
