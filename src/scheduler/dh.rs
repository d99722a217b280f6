//! `dh`, destination hashing: an address that clients want is always served by the same real server.
//!
//! 256 buckets are filled by walking the list round and round, a bucket for each real server whatever its weight, and
//! filled anew when one comes or goes. The destination's address picks the bucket by a multiplicative hash; IPv6
//! addresses are folded to 32 bits first. A bucket whose real server may take nothing refuses the connection. Meant
//! for caches behind a service by mark, which has many destinations. All directors with the same list agree, so the
//! hash is the kernel's and has no secret. Source: `ip_vs_dh.c`.

use super::{Choice, Flow, Scheduler, hash, may_take};
use crate::service::{RealServer, ServerSlots};

/// 2^8 buckets, IP_VS_DH_TAB_BITS of a default kernel.
const BUCKET_BITS: u32 = 8;

/// Destination hashing. Its table would be the positions 0, 1, 2... over and over, so there is none to keep.
#[derive(Debug)]
pub(super) struct DestinationHash;

impl Scheduler for DestinationHash {
    fn choose(&mut self, servers: &[RealServer], slots: &ServerSlots, flow: &Flow) -> Choice {
        let bucket = hash::multiplicative(hash::fold(flow.destination), BUCKET_BITS) as usize;
        let position = bucket.checked_rem(servers.len());
        position.filter(|&position| may_take(slots.get(servers[position].id))).into()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Bench, destinations};

    fn picks(bench: &mut Bench) -> Vec<u32> {
        destinations(12).map(|flow| bench.choose(&flow)).collect()
    }

    #[test]
    fn it_picks_as_recorded_whatever_the_weights() {
        for weights in [[1, 1, 1], [3, 2, 1]] {
            let mut bench = Bench::new("dh", 0, &weights);
            assert_eq!(picks(&mut bench), [1, 2, 3, 2, 1, 3, 1, 2, 1, 3, 1, 3], "{weights:?}");
        }
    }

    #[test]
    fn who_may_take_nothing_refuses_and_nobody_moves() {
        let mut bench = Bench::new("dh", 0, &[1, 1, 1]);
        bench.edit(2, 0);
        assert_eq!(picks(&mut bench), [1, 0, 3, 0, 1, 3, 1, 0, 1, 3, 1, 3]);
        bench.edit(2, 1);
        bench.limit(3, 1);
        bench.slot(3).connection_added();
        assert_eq!(picks(&mut bench), [1, 2, 0, 2, 1, 0, 1, 2, 1, 0, 1, 0]);
    }

    #[test]
    fn the_list_decides_after_every_change() {
        let mut bench = Bench::new("dh", 0, &[1, 1]);
        bench.add(3, 1);
        bench.remove(1);
        let after = picks(&mut bench);
        bench.remove(3);
        bench.remove(2);
        assert_eq!(picks(&mut bench), [0; 12]);
        bench.add(2, 1);
        bench.add(3, 1);
        assert_eq!(picks(&mut bench), after);
        assert!(after.contains(&2) && after.contains(&3));
    }
}
