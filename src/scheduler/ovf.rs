//! `ovf`, weighted overflow: the heaviest, until it has more active connections than weight.
//!
//! The real server with the highest weight among those whose active connections do not exceed their weight, on a tie
//! the first in the list: so each takes one connection more than its weight says, and then the next lighter one's
//! turn comes. Once all are beyond their weight, connections are refused. Weight 0 and overloaded ones are left out.
//! Source: `ip_vs_ovf.c`.

use super::{Choice, Flow, Scheduler, heaviest, may_take};
use crate::service::{RealServer, ServerSlots};

/// Weighted overflow. Keeps nothing: weights and counts are the state.
#[derive(Debug)]
pub(super) struct Overflow;

impl Scheduler for Overflow {
    fn choose(&mut self, servers: &[RealServer], slots: &ServerSlots, _flow: &Flow) -> Choice {
        heaviest(servers, slots, |slot| may_take(slot) && slot.active() <= slot.weight()).into()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Bench;

    #[test]
    fn it_picks_as_recorded() {
        assert_eq!(Bench::new("ovf", 0, &[1, 1, 1]).openings(8), [3, 3, 2, 2, 1, 1, 0, 0]);
        assert_eq!(Bench::new("ovf", 0, &[3, 2, 1]).openings(10), [1, 1, 1, 1, 2, 2, 2, 3, 3, 0]);
    }

    #[test]
    fn it_flows_back_once_the_heaviest_has_room() {
        let mut bench = Bench::new("ovf", 0, &[2, 1]);
        assert_eq!(bench.openings(4), [1, 1, 1, 2]);
        bench.close(1);
        assert_eq!(bench.openings(3), [1, 2, 0]);
        bench.edit(2, 2);
        assert_eq!(bench.openings(2), [2, 0]);
        bench.add(3, 1);
        assert_eq!(bench.openings(3), [3, 3, 0]);
    }

    #[test]
    fn quiescent_overloaded_and_removed_servers_get_nothing() {
        let mut bench = Bench::new("ovf", 0, &[9, 5, 0]);
        bench.limit(1, 1);
        assert_eq!(bench.openings(3), [1, 2, 2]);
        bench.remove(2);
        assert_eq!(bench.openings(1), [0]);
        assert_eq!(Bench::new("ovf", 0, &[]).sequence(1), [0]);
    }
}
