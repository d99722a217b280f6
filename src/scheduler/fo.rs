//! `fo`, weighted fail-over: the heaviest, always.
//!
//! The real server with the highest weight gets everything, on a tie the first in the list, until it goes, gets
//! weight 0 or is overloaded: then the next heaviest does. Source: `ip_vs_fo.c`.

use super::{Choice, Flow, Scheduler, heaviest, may_take};
use crate::service::{RealServer, ServerSlots};

/// Weighted fail-over. Keeps nothing: the weights are the state.
#[derive(Debug)]
pub(super) struct FailOver;

impl Scheduler for FailOver {
    fn choose(&mut self, servers: &[RealServer], slots: &ServerSlots, _flow: &Flow) -> Choice {
        heaviest(servers, slots, may_take).into()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Bench;

    #[test]
    fn it_picks_as_recorded() {
        for (weights, expected) in [(&[1, 1, 1][..], 3), (&[3, 2, 1], 1), (&[1, 2, 3, 4, 5], 5)] {
            assert_eq!(Bench::new("fo", 0, weights).openings(9), [expected; 9], "{weights:?}");
        }
    }

    #[test]
    fn the_next_heaviest_takes_over_and_gives_back() {
        let mut bench = Bench::new("fo", 0, &[3, 2, 1]);
        bench.edit(1, 0);
        assert_eq!(bench.openings(2), [2, 2]);
        bench.limit(2, 3);
        assert_eq!(bench.openings(2), [2, 3], "with its third connection it is overloaded");
        bench.close(2);
        assert_eq!(bench.openings(1), [2], "below three quarters of it, no longer");
        bench.remove(2);
        assert_eq!(bench.openings(1), [3]);
        bench.edit(1, 3);
        assert_eq!(bench.openings(1), [1]);
        bench.add(4, 3);
        assert_eq!(bench.openings(1), [4], "of equals, the last added");
        assert_eq!(Bench::new("fo", 0, &[0, 0]).sequence(1), [0]);
        assert_eq!(Bench::new("fo", 0, &[]).sequence(1), [0]);
    }
}
