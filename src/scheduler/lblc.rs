//! `lblc`, locality-based least connections: a destination stays with its real server while that copes.
//!
//! The first connection to a destination goes to the real server that `wlc` picks, which is remembered. Later ones
//! follow, unless that real server is gone, has weight 0, or is crowded: has more active connections than weight,
//! while another has less than half as many as its weight. Then `wlc` picks again, and that is remembered instead.
//! A destination that nobody asks for is forgotten after a day (`lblc_expiration`). Meant for caches behind a service
//! by mark, which has many destinations. Source: `ip_vs_lblc.c`.

use super::cache::{Cache, Place, Places, is_crowded, place};
use super::{Choice, Flow, Lifetimes, Scheduler, least_loaded};
use crate::service::{RealServer, ServerSlot, ServerSlots};
use crate::types::{Duration, HashKey};

/// Locality-based least connections.
#[derive(Debug)]
pub(super) struct LocalityBased {
    /// The real server of each destination.
    cache: Cache<Place>,
    places: Places,
    lifetime: Duration,
}

impl LocalityBased {
    pub(super) fn new(secret: HashKey) -> Self {
        let lifetime = Lifetimes::default().lblc;
        Self { cache: Cache::new(secret), places: Places::default(), lifetime }
    }
}

impl Scheduler for LocalityBased {
    fn choose(&mut self, servers: &[RealServer], slots: &ServerSlots, flow: &Flow) -> Choice {
        let remembered = self.cache.recall(flow.destination, flow.now, self.lifetime);
        if let Some(position) = remembered.and_then(|place| self.places.position(place))
            && slots.get(servers[position].id).weight() > 0
            && !is_crowded(servers, slots, position)
        {
            return Choice::Server(position);
        }
        let picked = least_loaded(servers, slots, ServerSlot::overhead);
        if let Some(position) = picked {
            self.cache.remember(flow.destination, flow.now, place(&servers[position]));
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
        self.lifetime = lifetimes.lblc;
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Bench, CLIENT, destinations};
    use super::super::{Flow, Lifetimes};
    use crate::types::{Duration, Instant};

    fn openings(bench: &mut Bench) -> Vec<u32> {
        destinations(12).map(|flow| bench.open(&flow)).collect()
    }

    #[test]
    fn destinations_stay_as_recorded() {
        let mut bench = Bench::new("lblc", 0, &[1, 1, 1]);
        let expected = [3, 2, 1, 3, 2, 1, 3, 2, 1, 3, 2, 1];
        (0..5).for_each(|round| assert_eq!(openings(&mut bench), expected, "{round}"));
        let mut bench = Bench::new("lblc", 0, &[3, 2, 1]);
        let expected = [3, 2, 1, 1, 2, 1, 3, 2, 1, 1, 2, 1];
        (0..5).for_each(|round| assert_eq!(openings(&mut bench), expected, "{round}"));
    }

    #[test]
    fn a_crowded_server_is_relieved_while_another_has_half() {
        // As recorded: 11 connections are more than 10, and the next one has less than half. Then none has.
        let mut bench = Bench::new("lblc", 0, &[10, 10, 10]);
        let expected: Vec<u32> = [3, 2].into_iter().flat_map(|number| [number; 11]).chain([1; 26]).collect();
        assert_eq!(bench.openings(48), expected);
    }

    #[test]
    fn a_limit_keeps_new_destinations_away_but_not_the_old_ones() {
        // As recorded.
        let mut bench = Bench::new("lblc", 0, &[10, 10, 10]);
        assert_eq!(bench.openings(5), [3; 5]);
        bench.limit(3, 6);
        assert_eq!(bench.openings(2), [3, 3]);
        assert!(openings(&mut bench)[1..].iter().all(|&number| number != 3));
        assert_eq!(bench.openings(3), [3; 3]);
    }

    #[test]
    fn another_takes_over_from_one_that_is_quiescent_or_gone() {
        let mut bench = Bench::new("lblc", 0, &[100, 100]);
        assert_eq!(openings(&mut bench), [2, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1]);
        bench.edit(2, 0);
        assert_eq!(bench.openings(2), [1, 1]);
        bench.edit(2, 100);
        assert_eq!(bench.openings(2), [1, 1], "the new one is remembered");
        bench.remove(2);
        let third = destinations(3).last().unwrap();
        assert_eq!(bench.open(&third), 1);
        bench.add(3, 100);
        bench.add(2, 100);
        let fifth = destinations(5).last().unwrap();
        assert_eq!(bench.open(&fifth), 2, "nobody asked meanwhile: it is back");
        assert_eq!(bench.open(&third), 1);
        bench.remove(1);
        bench.remove(2);
        assert_eq!(bench.open(&third), 3);
        bench.remove(3);
        assert_eq!(bench.open(&third), 0);
    }

    #[test]
    fn a_destination_is_forgotten_after_its_lifetime() {
        let at = |seconds| Flow { now: Instant::ZERO + Duration::from_secs(seconds), ..CLIENT };
        let mut bench = Bench::new("lblc", 0, &[10, 10]);
        assert_eq!(bench.open(&at(0)), 2);
        assert_eq!(bench.open(&at(86_399)), 2);
        assert_eq!(bench.open(&at(2 * 86_400)), 1);
        bench.close(2);
        bench.close(2);
        let hour = Duration::from_secs(3600);
        bench.scheduler.set_lifetimes(Lifetimes { lblc: hour, ..Lifetimes::default() });
        assert_eq!(bench.open(&at(2 * 86_400 + 3599)), 1);
        assert_eq!(bench.open(&at(2 * 86_400 + 7199)), 2);
    }

    #[test]
    fn more_destinations_than_there_is_room_for_are_served() {
        let mut bench = Bench::new("lblc", 0, &[1, 1]);
        for number in 0..40_000_u32 {
            let flow = Flow { destination: std::net::IpAddr::V4(number.into()), ..CLIENT };
            assert_ne!(bench.open(&flow), 0);
        }
    }
}
