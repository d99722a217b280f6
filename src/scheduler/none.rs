//! `none`, no scheduler: nobody is picked.
//!
//! The kernel's word for a service that has no scheduler. Its connections go on, new ones are refused as where no
//! real server is to be had. Source: `ip_vs_schedule` and `ip_vs_add_service`.

use super::{Choice, Flow, Scheduler};
use crate::service::{RealServer, ServerSlots};

/// No scheduler.
#[derive(Debug)]
pub(super) struct NoScheduler;

impl Scheduler for NoScheduler {
    fn choose(&mut self, _servers: &[RealServer], _slots: &ServerSlots, _flow: &Flow) -> Choice {
        Choice::None
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Bench;

    #[test]
    fn nobody_is_picked() {
        assert_eq!(Bench::new("none", 0, &[1, 1]).sequence(2), [0, 0]);
    }
}
