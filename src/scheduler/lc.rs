//! `lc`, least connections: the least overhead, whatever the weight.
//!
//! A real server's overhead is 256 for each active connection and 1 for each inactive one. The one with the least is
//! picked, on a tie the first in the list. Weight 0 and overloaded ones are left out; otherwise weights do not
//! count. Source: `ip_vs_lc.c`.

use super::{Choice, Flow, Scheduler, may_take};
use crate::service::{RealServer, ServerSlots};

/// Least connections. Keeps nothing: the counts are the state.
#[derive(Debug)]
pub(super) struct LeastConnections;

impl Scheduler for LeastConnections {
    fn choose(&mut self, servers: &[RealServer], slots: &ServerSlots, _flow: &Flow) -> Choice {
        let taking = servers.iter().map(|server| slots.get(server.id)).enumerate();
        let taking = taking.filter(|(_, slot)| may_take(slot));
        // Of equal ones, `min_by_key` takes the first.
        taking.min_by_key(|(_, slot)| slot.overhead()).map(|(position, _)| position).into()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Bench;

    #[test]
    fn it_picks_as_recorded_whatever_the_weights() {
        for weights in [[1, 1, 1], [3, 2, 1]] {
            assert_eq!(Bench::new("lc", 0, &weights).openings(7), [3, 2, 1, 3, 2, 1, 3], "{weights:?}");
        }
    }

    #[test]
    fn who_ends_connections_gets_the_next() {
        let mut bench = Bench::new("lc", 0, &[1, 1, 1]);
        assert_eq!(bench.openings(6), [3, 2, 1, 3, 2, 1]);
        bench.close(1);
        bench.close(1);
        bench.close(2);
        assert_eq!(bench.openings(3), [1, 2, 1]);
    }

    #[test]
    fn quiescent_overloaded_and_removed_servers_get_nothing() {
        let mut bench = Bench::new("lc", 0, &[0, 1, 1]);
        assert_eq!(bench.openings(2), [3, 2]);
        bench.edit(1, 7);
        assert_eq!(bench.openings(2), [1, 3]);
        bench.limit(2, 2);
        assert_eq!(bench.openings(3), [2, 1, 3], "the limit is reached with the second connection");
        assert_eq!(bench.openings(3), [1, 3, 1]);
        bench.remove(1);
        bench.add(4, 1);
        assert_eq!(bench.openings(4), [4, 4, 4, 4]);
        assert_eq!(Bench::new("lc", 0, &[0]).sequence(1), [0]);
        assert_eq!(Bench::new("lc", 0, &[]).sequence(1), [0]);
    }
}
