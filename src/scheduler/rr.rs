//! `rr`, round robin: the next one.
//!
//! A cursor stands on the real server picked last, or on the head of the list. Each pick goes on to the next
//! one, past the end to the first, until it meets one that has a weight above 0 and is not overloaded; one
//! round and no more. When the real server under the cursor is removed, the cursor steps back to the one
//! before it; an edit leaves it where it is. Source: `ip_vs_rr.c`.

use super::{Choice, Flow, Scheduler, may_take};
use crate::service::{RealServer, ServerId, ServerSlots};

/// Round robin.
#[derive(Debug, Default)]
pub(super) struct RoundRobin {
    /// Who was picked last, and where it was then; nobody: the head of the list.
    cursor: Option<(ServerId, usize)>,
}

impl RoundRobin {
    /// The cursor's position now. The remembered one is right unless the list has changed.
    fn position(&self, servers: &[RealServer]) -> Option<usize> {
        let (id, position) = self.cursor?;
        match servers.get(position) {
            Some(server) if server.id == id => Some(position),
            _ => servers.iter().position(|server| server.id == id),
        }
    }
}

impl Scheduler for RoundRobin {
    fn choose(&mut self, servers: &[RealServer], slots: &ServerSlots, _flow: &Flow) -> Choice {
        let first = self.position(servers).map_or(0, |position| position + 1);
        for step in 0..servers.len() {
            let position = (first + step) % servers.len();
            if may_take(slots.get(servers[position].id)) {
                self.cursor = Some((servers[position].id, position));
                return Choice::Server(position);
            }
        }
        Choice::None
    }

    fn removed(&mut self, servers: &[RealServer], _slots: &ServerSlots, position: usize) {
        // A cursor on the head of the list stays there, whoever goes.
        if self.cursor.is_some() && self.position(servers).is_none() {
            self.cursor = position.checked_sub(1).map(|before| (servers[before].id, before));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Bench;

    #[test]
    fn turns_go_from_the_last_added_to_the_first() {
        assert_eq!(Bench::new("rr", 0, &[1, 1, 1]).sequence(7), [3, 2, 1, 3, 2, 1, 3]);
        assert_eq!(Bench::new("rr", 0, &[3, 0, 1]).sequence(4), [3, 1, 3, 1]);
        assert_eq!(Bench::new("rr", 0, &[0, 0]).sequence(2), [0, 0]);
        assert_eq!(Bench::new("rr", 0, &[]).sequence(1), [0]);
    }

    #[test]
    fn the_cursor_names_a_server_not_a_position() {
        let mut bench = Bench::new("rr", 0, &[1, 1, 1, 1]);
        assert_eq!(bench.sequence(2), [4, 3]);
        bench.add(5, 1);
        assert_eq!(bench.sequence(2), [2, 1]);
        bench.remove(1);
        assert_eq!(bench.sequence(2), [5, 4]);
        bench.remove(4);
        assert_eq!(bench.sequence(2), [3, 2]);
    }

    #[test]
    fn removing_the_head_under_the_cursor_starts_over() {
        let mut bench = Bench::new("rr", 0, &[1, 1, 1]);
        assert_eq!(bench.sequence(1), [3]);
        bench.remove(3);
        assert_eq!(bench.sequence(3), [2, 1, 2]);
    }

    #[test]
    fn removing_others_leaves_the_cursor_on_the_head() {
        let mut bench = Bench::new("rr", 0, &[1, 1, 1]);
        bench.remove(2);
        assert_eq!(bench.sequence(3), [3, 1, 3], "nobody was picked yet");
        let mut bench = Bench::new("rr", 0, &[1, 1, 1, 1]);
        assert_eq!(bench.sequence(1), [4]);
        bench.remove(4);
        bench.remove(2);
        assert_eq!(bench.sequence(2), [3, 1], "the one picked last was the first in the list, and went");
    }
}
