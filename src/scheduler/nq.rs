//! `nq`, never queue: an idle one at once, otherwise as `sed`.
//!
//! The first real server in the list without an active connection is picked, however light it is; where each has
//! some, the one with the least (active connections + 1) / weight, on a tie the first in the list. Weight 0 and
//! overloaded ones are left out. Source: `ip_vs_nq.c`.

use super::sed::with_one_more;
use super::{Choice, Flow, Scheduler, least_loaded, may_take};
use crate::service::{RealServer, ServerSlots};

/// Never queue. Keeps nothing: the counts are the state.
#[derive(Debug)]
pub(super) struct NeverQueue;

impl Scheduler for NeverQueue {
    fn choose(&mut self, servers: &[RealServer], slots: &ServerSlots, _flow: &Flow) -> Choice {
        let idle = servers.iter().position(|server| {
            let slot = slots.get(server.id);
            may_take(slot) && slot.active() == 0
        });
        idle.or_else(|| least_loaded(servers, slots, with_one_more)).into()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Bench;

    #[test]
    fn it_picks_as_recorded() {
        assert_eq!(Bench::new("nq", 0, &[1, 1, 1]).openings(6), [3, 2, 1, 3, 2, 1]);
        assert_eq!(Bench::new("nq", 0, &[3, 2, 1]).openings(12), [3, 2, 1, 1, 2, 1, 1, 2, 1, 3, 2, 1]);
        assert_eq!(
            Bench::new("nq", 0, &[1, 2, 3, 4, 5]).openings(15),
            [5, 4, 3, 2, 1, 5, 4, 5, 3, 4, 5, 5, 4, 3, 2]
        );
    }

    #[test]
    fn who_becomes_idle_is_next_however_light() {
        let mut bench = Bench::new("nq", 0, &[100, 1]);
        assert_eq!(bench.openings(4), [2, 1, 1, 1]);
        bench.close(2);
        assert_eq!(bench.openings(2), [2, 1]);
    }

    #[test]
    fn quiescent_overloaded_and_removed_servers_get_nothing() {
        let mut bench = Bench::new("nq", 0, &[2, 0, 1]);
        assert_eq!(bench.openings(3), [3, 1, 1]);
        bench.edit(2, 1);
        assert_eq!(bench.openings(1), [2]);
        bench.limit(1, 2);
        assert_eq!(bench.openings(2), [1, 3], "the limit is exceeded with the next connection");
        bench.remove(2);
        assert_eq!(bench.openings(1), [3]);
        assert_eq!(Bench::new("nq", 0, &[0, 0]).sequence(1), [0]);
        assert_eq!(Bench::new("nq", 0, &[]).sequence(1), [0]);
    }
}
