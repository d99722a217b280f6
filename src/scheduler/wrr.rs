//! `wrr`, weighted round robin: as many turns as weight, spread out.
//!
//! A current weight `cw` starts at the largest weight. The list is walked from the cursor on, and the first
//! real server with a weight of at least `cw` that is not overloaded is picked; at the end of the list `cw`
//! falls by the weights' greatest common divisor `di`, and from 0 it goes back to the top. So weights 3, 2, 1
//! give A A B A B C rather than A A A B B C. The walk gives up once every current weight down to the least
//! was tried in vain.
//!
//! Adding, removing or editing a real server puts the cursor back to the head and computes `di` and the
//! largest weight `mw` (less `di` - 1) anew; `cw` starts over when it is beyond `mw` or 0, and otherwise is
//! brought onto the new steps. Source: `ip_vs_wrr.c`.

use super::{Choice, Flow, Scheduler, gcd, may_take};
use crate::service::{RealServer, ServerId, ServerSlots};

/// Weighted round robin.
#[derive(Debug, Default)]
pub(super) struct WeightedRoundRobin {
    /// Who was picked last, and where; nobody: the head of the list, before the first.
    cursor: Option<(ServerId, usize)>,
    current: u32,
    largest: u32,
    divisor: u32,
}

impl WeightedRoundRobin {
    fn restart(&mut self, servers: &[RealServer], slots: &ServerSlots) {
        let weights =
            || servers.iter().map(|server| slots.get(server.id).weight()).filter(|&weight| weight > 0);
        self.cursor = None;
        self.divisor = weights().fold(0, gcd).max(1);
        self.largest = weights().max().unwrap_or(0).saturating_sub(self.divisor - 1);
        if self.current > self.largest || self.current == 0 {
            self.current = self.largest;
        } else if self.divisor > 1 {
            self.current = self.current / self.divisor * self.divisor + 1;
        }
    }

    /// At the end of the list: goes on to the next lower current weight that somebody has, from the top once none is
    /// left below. The steps between, at which the whole list would be walked in vain, are taken at once: there are
    /// as many as the largest weight has, up to 2^31.
    fn lower(&mut self, servers: &[RealServer], slots: &ServerSlots) {
        self.current = match self.current.checked_sub(self.divisor) {
            Some(lower @ 1..) => lower,
            _ => self.largest,
        };
        let taking = servers.iter().map(|server| slots.get(server.id)).filter(|slot| may_take(slot));
        let Some(heaviest) = taking.map(|slot| slot.weight()).max() else { return };
        if let Some(excess) = self.current.checked_sub(heaviest) {
            let steps = excess.div_ceil(self.divisor);
            // 1 is the least that a current weight can be, and no weight is less.
            self.current = self.current.saturating_sub(steps.saturating_mul(self.divisor)).max(1);
        }
    }

    /// Position to look at next, given the list has not changed since the cursor was set.
    fn first(&self) -> usize {
        self.cursor.map_or(0, |(_, position)| position + 1)
    }
}

impl Scheduler for WeightedRoundRobin {
    fn choose(&mut self, servers: &[RealServer], slots: &ServerSlots, _flow: &Flow) -> Choice {
        if self.largest == 0 {
            return Choice::None;
        }
        // Weights and overloads change while one looks: what is picked is tried again, at most this often.
        const ATTEMPTS: usize = 3;
        let mut position = self.first();
        for _ in 0..ATTEMPTS {
            while position < servers.len() {
                let slot = slots.get(servers[position].id);
                if slot.weight() >= self.current && slot.weight() > 0 && !slot.is_overloaded() {
                    self.cursor = Some((servers[position].id, position));
                    return Choice::Server(position);
                }
                position += 1;
            }
            position = 0;
            self.lower(servers, slots);
        }
        Choice::None
    }

    fn added(&mut self, servers: &[RealServer], slots: &ServerSlots) {
        self.restart(servers, slots);
    }

    fn removed(&mut self, servers: &[RealServer], slots: &ServerSlots, _position: usize) {
        self.restart(servers, slots);
    }

    fn updated(&mut self, servers: &[RealServer], slots: &ServerSlots) {
        self.restart(servers, slots);
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Bench;

    #[test]
    fn turns_are_spread_by_weight() {
        assert_eq!(Bench::new("wrr", 0, &[1, 1, 1]).sequence(6), [3, 2, 1, 3, 2, 1]);
        assert_eq!(Bench::new("wrr", 0, &[4, 2, 8]).sequence(7), [3, 2, 1, 3, 3, 3, 1]);
    }

    #[test]
    fn everybody_gets_turns_by_weight_in_the_long_run() {
        let mut counts = [0; 4];
        for number in Bench::new("wrr", 0, &[5, 1, 3]).sequence(900) {
            counts[number as usize] += 1;
        }
        assert_eq!(counts, [0, 500, 100, 300]);
    }

    #[test]
    fn it_ends_when_nobody_may_take_the_connection() {
        assert_eq!(Bench::new("wrr", 0, &[0, 0]).sequence(1), [0]);
        assert_eq!(Bench::new("wrr", 0, &[]).sequence(1), [0]);
        let mut bench = Bench::new("wrr", 0, &[2_147_483_647]);
        assert_eq!(bench.sequence(2), [1, 1]);
        bench.edit(1, 0);
        assert_eq!(bench.sequence(1), [0]);
    }

    #[test]
    fn weights_far_apart_cost_no_more_than_others() {
        // Two thousand million steps from the overloaded one's weight down to the other's.
        let mut bench = Bench::new("wrr", 0, &[1, 2_147_483_647]);
        let slot = bench.slots.get(crate::service::ServerId(2));
        slot.set_thresholds(1, 0);
        slot.connection_added();
        let start = std::time::Instant::now();
        assert_eq!(bench.sequence(100), [1; 100]);
        assert!(start.elapsed() < std::time::Duration::from_secs(1), "{:?}", start.elapsed());
    }

    /// The kernel's walk as its source tells it: one step of the current weight at each end of the list.
    fn kernels_walk(weights: &[u32], overloaded: &[bool], state: &mut (u32, usize)) -> Option<usize> {
        let divisor = weights.iter().copied().filter(|&weight| weight > 0).fold(0, super::super::gcd).max(1);
        let largest = weights.iter().copied().max().unwrap_or(0).saturating_sub(divisor - 1);
        let (current, next) = state;
        for _ in 0..2 * (largest + 2) {
            while *next < weights.len() {
                let place = *next;
                *next += 1;
                if !overloaded[place] && weights[place] > 0 && weights[place] >= *current {
                    return Some(place);
                }
            }
            *next = 0;
            *current = match current.checked_sub(divisor) {
                Some(lower @ 1..) => lower,
                _ => largest,
            };
        }
        None
    }

    proptest::proptest! {
        #[test]
        fn steps_taken_at_once_lead_where_single_steps_do(
            weights in proptest::collection::vec(0_u32..40, 1..8),
            overloaded in proptest::collection::vec(proptest::bool::ANY, 8),
        ) {
            let mut bench = Bench::new("wrr", 0, &weights);
            for number in (1..=weights.len()).filter(|number| overloaded[number - 1]) {
                let slot = bench.slots.get(crate::service::ServerId(number as u32));
                slot.set_thresholds(1, 0);
                slot.connection_added();
            }
            // The list has the last added first.
            let listed: Vec<u32> = weights.iter().rev().copied().collect();
            let off: Vec<bool> = overloaded[..weights.len()].iter().rev().copied().collect();
            let divisor = listed.iter().copied().filter(|&weight| weight > 0).fold(0, super::super::gcd).max(1);
            let top = listed.iter().copied().max().unwrap_or(0).saturating_sub(divisor - 1);
            // Adding them one by one left the current weight somewhere.
            bench.scheduler = super::super::create("wrr", 0, crate::types::HashKey::new([0, 0])).unwrap();
            bench.scheduler.added(&bench.servers, &bench.slots);
            let mut state = (top, 0);
            for _ in 0..100 {
                let expected = kernels_walk(&listed, &off, &mut state);
                let expected = expected.map_or(0, |place| (weights.len() - place) as u32);
                proptest::prop_assert_eq!(bench.choose(&super::super::testing::CLIENT), expected);
            }
        }
    }
}
