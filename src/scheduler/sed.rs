//! `sed`, shortest expected delay: the least (active connections + 1) / weight.
//!
//! That is how long a new connection would take, were it to share the real server's speed, its weight, with the ones
//! there. Inactive connections do not count. Compared by cross-multiplication; on a tie the first in the list stays.
//! Weight 0 and overloaded ones are left out. Source: `ip_vs_sed.c`.

use super::{Choice, Flow, Scheduler, least_loaded};
use crate::service::{RealServer, ServerSlot, ServerSlots};

/// Shortest expected delay. Keeps nothing: the counts are the state.
#[derive(Debug)]
pub(super) struct ShortestExpectedDelay;

/// Active connections, the one to come included.
pub(super) fn with_one_more(slot: &ServerSlot) -> u64 {
    u64::from(slot.active()) + 1
}

impl Scheduler for ShortestExpectedDelay {
    fn choose(&mut self, servers: &[RealServer], slots: &ServerSlots, _flow: &Flow) -> Choice {
        least_loaded(servers, slots, with_one_more).into()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Bench;

    #[test]
    fn it_picks_as_recorded() {
        assert_eq!(Bench::new("sed", 0, &[1, 1, 1]).openings(6), [3, 2, 1, 3, 2, 1]);
        assert_eq!(
            Bench::new("sed", 0, &[3, 2, 1]).openings(12),
            [1, 2, 1, 3, 2, 1, 1, 2, 1, 3, 2, 1],
            "the light one waits until the heavy ones are as slow"
        );
        assert_eq!(
            Bench::new("sed", 0, &[1, 2, 3, 4, 5]).openings(15),
            [5, 4, 3, 5, 4, 2, 5, 3, 4, 5, 5, 4, 3, 2, 1]
        );
    }

    #[test]
    fn inactive_connections_do_not_count() {
        let mut bench = Bench::new("sed", 0, &[1, 1]);
        for _ in 0..5 {
            bench.slot(2).connection_added();
        }
        assert_eq!(bench.openings(2), [2, 1]);
    }

    #[test]
    fn quiescent_overloaded_and_removed_servers_get_nothing() {
        let mut bench = Bench::new("sed", 0, &[3, 0, 1]);
        assert_eq!(bench.openings(4), [1, 1, 3, 1]);
        bench.edit(2, 8);
        assert_eq!(bench.openings(2), [2, 2]);
        bench.limit(2, 3);
        assert_eq!(bench.openings(2), [2, 1], "the limit is reached with the third connection");
        bench.remove(3);
        assert_eq!(bench.openings(2), [1, 1]);
        bench.edit(1, 0);
        assert_eq!(bench.openings(1), [0]);
        assert_eq!(Bench::new("sed", 0, &[]).sequence(1), [0]);
    }
}
