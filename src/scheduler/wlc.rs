//! `wlc`, weighted least connections: the least overhead for its weight.
//!
//! A real server's overhead is 256 for each active connection and 1 for each inactive one. The one with the
//! least overhead / weight is picked, compared by cross-multiplication so that nothing is rounded; on a tie
//! the first in the list stays. Weight 0 and overloaded ones are left out. Source: `ip_vs_wlc.c`.

use super::{Choice, Flow, Scheduler, least_loaded};
use crate::service::{RealServer, ServerSlot, ServerSlots};

/// Weighted least connections. Keeps nothing: the counts are the state.
#[derive(Debug)]
pub(super) struct WeightedLeastConnections;

impl Scheduler for WeightedLeastConnections {
    fn choose(&mut self, servers: &[RealServer], slots: &ServerSlots, _flow: &Flow) -> Choice {
        least_loaded(servers, slots, ServerSlot::overhead).into()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Bench;

    #[test]
    fn it_picks_as_recorded() {
        assert_eq!(Bench::new("wlc", 0, &[1, 1, 1]).openings(6), [3, 2, 1, 3, 2, 1]);
        assert_eq!(
            Bench::new("wlc", 0, &[3, 2, 1]).openings(12),
            [3, 2, 1, 1, 2, 1, 3, 2, 1, 1, 2, 1],
            "each one's first is free; then overhead/weight decides"
        );
    }

    #[test]
    fn a_quiescent_server_gets_nothing() {
        assert_eq!(Bench::new("wlc", 0, &[0, 5]).sequence(3), [2, 2, 2]);
        assert_eq!(Bench::new("wlc", 0, &[0]).sequence(1), [0]);
    }
}
