//! Numbers handed out and taken back, oldest first.

use std::collections::VecDeque;

/// Free numbers below a limit. A number that came back is handed out again as late as possible, so that what still
/// goes by its former meaning has long ended.
#[derive(Debug)]
pub(super) struct Ids {
    free: VecDeque<u32>,
    fresh: u32,
    limit: u32,
}

impl Ids {
    pub(super) fn new(limit: u32) -> Self {
        Self { free: VecDeque::new(), fresh: 0, limit }
    }

    pub(super) fn allocate(&mut self) -> Option<u32> {
        if self.fresh < self.limit {
            self.fresh += 1;
            return Some(self.fresh - 1);
        }
        self.free.pop_front()
    }

    pub(super) fn free(&mut self, id: u32) {
        self.free.push_back(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back_in_the_order_they_were_freed() {
        let mut ids = Ids::new(3);
        assert_eq!([ids.allocate(), ids.allocate()], [Some(0), Some(1)]);
        ids.free(1);
        ids.free(0);
        assert_eq!(ids.allocate(), Some(2));
        assert_eq!([ids.allocate(), ids.allocate(), ids.allocate()], [Some(1), Some(0), None]);
    }
}
