//! `wlc`, weighted least connections: the least overhead for its weight.
//!
//! A real server's overhead is 256 for each active connection and 1 for each inactive one. The one with the
//! least overhead / weight is picked, compared by cross-multiplication so that nothing is rounded; on a tie
//! the first in the list stays. Weight 0 and overloaded ones are left out. Source: `ip_vs_wlc.c`.

use super::{Choice, Flow, Scheduler, may_take};
use crate::service::{RealServer, ServerSlots};

/// Weighted least connections. Keeps nothing: the counts are the state.
#[derive(Debug)]
pub(super) struct WeightedLeastConnections;

impl Scheduler for WeightedLeastConnections {
    fn choose(&mut self, servers: &[RealServer], slots: &ServerSlots, _flow: &Flow) -> Choice {
        let mut least: Option<(usize, u64, u64)> = None;
        for (position, server) in servers.iter().enumerate() {
            let slot = slots.get(server.id);
            if !may_take(slot) {
                continue;
            }
            let (overhead, weight) = (slot.overhead(), u64::from(slot.weight()));
            let lighter = match least {
                None => true,
                // Overheads are below 2^41 and weights below 2^31: the products need more than 64 bits.
                Some((_, least_overhead, least_weight)) => {
                    u128::from(least_overhead) * u128::from(weight)
                        > u128::from(overhead) * u128::from(least_weight)
                }
            };
            if lighter {
                least = Some((position, overhead, weight));
            }
        }
        least.map_or(Choice::None, |(position, ..)| Choice::Server(position))
    }

    fn added(&mut self, _servers: &[RealServer], _slots: &ServerSlots) {}

    fn removed(&mut self, _servers: &[RealServer], _slots: &ServerSlots, _position: usize) {}

    fn updated(&mut self, _servers: &[RealServer], _slots: &ServerSlots) {}
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Bench, CLIENT};
    use crate::service::ServerId;

    #[test]
    fn connections_spread_by_weight_and_ties_go_to_the_last_added() {
        let mut bench = Bench::new("wlc", 0, &[3, 2, 1]);
        let mut picks = Vec::new();
        for _ in 0..12 {
            let number = bench.choose(&CLIENT);
            let slot = bench.slots.get(ServerId(number));
            slot.connection_added();
            slot.connection_moved(true);
            picks.push(number);
        }
        // Each one's first is free; then overhead/weight decides.
        assert_eq!(picks[..3], [3, 2, 1]);
        let count = |number| picks.iter().filter(|&&pick| pick == number).count();
        assert_eq!((count(1), count(2), count(3)), (6, 4, 2));
    }

    #[test]
    fn a_quiescent_server_gets_nothing() {
        assert_eq!(Bench::new("wlc", 0, &[0, 5]).sequence(3), [2, 2, 2]);
        assert_eq!(Bench::new("wlc", 0, &[0]).sequence(1), [0]);
    }
}
