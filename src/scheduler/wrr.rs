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

use super::{Choice, Flow, Scheduler};
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

fn gcd(mut a: u32, mut b: u32) -> u32 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
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
        let mut position = self.first();
        // One walk down from wherever `current` stands to the least weight, then one from the top: after
        // that every real server has been refused at every weight.
        let rounds = 2 * (self.largest / self.divisor + 1) + 1;
        for _ in 0..rounds {
            while position < servers.len() {
                let slot = slots.get(servers[position].id);
                if slot.weight() >= self.current && slot.weight() > 0 && !slot.is_overloaded() {
                    self.cursor = Some((servers[position].id, position));
                    return Choice::Server(position);
                }
                position += 1;
            }
            position = 0;
            self.current = match self.current.checked_sub(self.divisor) {
                Some(lower @ 1..) => lower,
                _ => self.largest,
            };
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
}
