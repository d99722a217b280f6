//! `twos`, twos choice: the less loaded of two drawn at random.
//!
//! Two real servers are drawn, each with the chance that its weight gives it, maybe the same one twice; the one with
//! less overhead for its weight is picked, on a tie the one drawn first. Overhead is 256 for each active connection
//! and 1 for each inactive one. Weight 0 and overloaded ones are left out.
//!
//! A draw is a number from 0 to the sum of all weights, both included, from which the weights are subtracted in the
//! order of the list until it is no longer above 0. So the first in the list has a chance of (weight + 1) in
//! (sum + 1), and each other one of weight in (sum + 1). Source: `ip_vs_twos.c`.

use super::{Choice, Flow, Load, Scheduler, may_take};
use crate::service::{RealServer, ServerSlot, ServerSlots};
use crate::types::HashKey;

/// Twos choice.
#[derive(Debug)]
pub(super) struct TwosChoice {
    /// What makes the numbers random: they are the hashes of 1, 2, 3...
    secret: HashKey,
    draws: u64,
}

impl TwosChoice {
    pub(super) fn new(secret: HashKey) -> Self {
        Self { secret, draws: 0 }
    }

    /// A number from 0 to `most`.
    fn draw(&mut self, most: u64) -> u64 {
        self.draws = self.draws.wrapping_add(1);
        let random = self.secret.hash([self.draws]);
        ((u128::from(random) * (u128::from(most) + 1)) >> 64) as u64
    }
}

/// Who takes new connections, and where in the list.
fn taking<'a>(
    servers: &'a [RealServer],
    slots: &'a ServerSlots,
) -> impl Iterator<Item = (usize, &'a ServerSlot)> {
    let listed = servers.iter().enumerate().map(|(position, server)| (position, slots.get(server.id)));
    listed.filter(|(_, slot)| may_take(slot))
}

impl Scheduler for TwosChoice {
    fn choose(&mut self, servers: &[RealServer], slots: &ServerSlots, _flow: &Flow) -> Choice {
        let sum: u64 = taking(servers, slots).map(|(_, slot)| u64::from(slot.weight())).sum();
        let draws = [self.draw(sum), self.draw(sum)];
        let mut drawn: [Option<(usize, Load)>; 2] = [None; 2];
        let mut passed = 0;
        for (position, slot) in taking(servers, slots) {
            let load = Load { overhead: slot.overhead(), weight: slot.weight() };
            passed += u64::from(load.weight);
            for (number, choice) in draws.iter().zip(&mut drawn) {
                if choice.is_none() && *number <= passed {
                    *choice = Some((position, load));
                }
            }
            if let [Some((first, first_load)), Some((second, second_load))] = drawn {
                return Choice::Server(if second_load.is_below(first_load) { second } else { first });
            }
        }
        // Nobody takes any, or weights were lowered while they were summed.
        taking(servers, slots).last().map(|(position, _)| position).into()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Bench;

    const PICKS: usize = 100_000;

    /// How many of [`PICKS`] each got, by number; nobody's are first.
    fn counts(bench: &mut Bench) -> [usize; 6] {
        let mut counts = [0; 6];
        bench.sequence(PICKS).into_iter().for_each(|number| counts[number as usize] += 1);
        counts
    }

    /// Whether a count of [`PICKS`] is within five standard deviations of a chance.
    fn is_near(count: usize, chance: f64) -> bool {
        let picks = PICKS as f64;
        (count as f64 - picks * chance).abs() <= 5.0 * (picks * chance * (1.0 - chance)).sqrt()
    }

    /// The chance of each of being drawn, in the order of the list.
    fn chances(listed: &[u32]) -> Vec<f64> {
        let sum = f64::from(listed.iter().sum::<u32>());
        let first = |place| f64::from(u8::from(place == 0));
        listed.iter().enumerate().map(|(place, &w)| (f64::from(w) + first(place)) / (sum + 1.0)).collect()
    }

    #[test]
    fn equal_loads_get_what_the_weights_say() {
        // Without connections no overhead differs: the one drawn first is picked.
        for weights in [&[1, 1, 1][..], &[3, 2, 1], &[1, 2, 3, 4, 5], &[10, 0, 5]] {
            let counts = counts(&mut Bench::new("twos", 0, weights));
            let listed: Vec<u32> = weights.iter().rev().copied().filter(|&weight| weight > 0).collect();
            let numbers = (1..=weights.len()).rev().filter(|number| weights[number - 1] > 0);
            for (number, chance) in numbers.zip(chances(&listed)) {
                assert!(is_near(counts[number], chance), "{weights:?}, {number}: {counts:?}, not {chance}");
            }
            assert_eq!(counts.iter().sum::<usize>(), PICKS);
            assert_eq!(counts[0], 0);
        }
    }

    #[test]
    fn of_two_drawn_the_less_loaded_is_picked() {
        // 1 has twice the connections of 2 for its weight, 3 has twice those of 1: so 3 is picked when drawn twice, 1
        // when drawn without 2, 2 whenever it is drawn.
        let mut bench = Bench::new("twos", 0, &[1, 2, 1]);
        for (number, connections) in [(1, 10), (2, 10), (3, 20)] {
            (0..connections).for_each(|_| bench.slot(number).connection_added());
        }
        let [third, second, first] = chances(&[1, 2, 1])[..] else { unreachable!() };
        let counts = counts(&mut bench);
        assert!(is_near(counts[3], third * third), "{counts:?}");
        assert!(is_near(counts[1], first * (first + 2.0 * third)), "{counts:?}");
        assert!(is_near(counts[2], second * (2.0 - second)), "{counts:?}");
    }

    #[test]
    fn quiescent_overloaded_and_removed_servers_get_nothing() {
        let mut bench = Bench::new("twos", 0, &[1, 1, 1, 0]);
        bench.limit(1, 1);
        bench.slot(1).connection_added();
        bench.remove(3);
        assert!(bench.sequence(1000).iter().all(|&number| number == 2));
        bench.edit(4, 1);
        assert!(bench.sequence(1000).contains(&4));
        assert_eq!(Bench::new("twos", 0, &[0, 0]).sequence(1), [0]);
        assert_eq!(Bench::new("twos", 0, &[]).sequence(1), [0]);
    }

    #[test]
    fn the_largest_weights_do_not_overflow() {
        let counts = counts(&mut Bench::new("twos", 0, &[2_147_483_647; 5]));
        assert!(counts[1..].iter().all(|&count| is_near(count, 0.2)), "{counts:?}");
    }
}
