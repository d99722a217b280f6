//! `sh`, source hashing: a client always gets the same real server.
//!
//! 256 buckets are filled by walking the list round and round, each real server taking as many buckets in a
//! row as its weight says (and one where the weight is 0), and filled anew on every change. The client's
//! address picks the bucket by a multiplicative hash; IPv6 addresses are folded to 32 bits first. With
//! `sh-port`, the client's port is added to the address. A bucket whose real server may take nothing refuses
//! the connection; with `sh-fallback`, the other buckets are tried, each moved along by an offset that
//! itself starts from the hash. All directors with the same list agree, so the hash is the kernel's and has no
//! secret. Source: `ip_vs_sh.c`.

use std::net::IpAddr;

use super::{Choice, FLAG_1, FLAG_2, Flow, Scheduler, hash, may_take};
use crate::service::{RealServer, ServerSlots};

/// 2^8 buckets, IP_VS_SH_TAB_BITS of a default kernel.
const BUCKET_BITS: u32 = 8;
const BUCKETS: u32 = 1 << BUCKET_BITS;

/// Source hashing.
#[derive(Debug)]
pub(super) struct SourceHash {
    /// Positions in the list of real servers; empty where there are none.
    buckets: Vec<u32>,
    fallback: bool,
    with_port: bool,
}

impl SourceHash {
    pub(super) fn new(flags: u32) -> Self {
        Self { buckets: Vec::new(), fallback: flags & FLAG_1 != 0, with_port: flags & FLAG_2 != 0 }
    }

    fn fill(&mut self, servers: &[RealServer], slots: &ServerSlots) {
        self.buckets.clear();
        let mut walk = servers.iter().enumerate().cycle();
        while self.buckets.len() < BUCKETS as usize
            && let Some((position, server)) = walk.next()
        {
            let share = slots.get(server.id).weight().max(1) as usize;
            let room = BUCKETS as usize - self.buckets.len();
            self.buckets.extend(std::iter::repeat_n(position as u32, share.min(room)));
        }
    }
}

/// `ip_vs_sh_hashkey`, for an offset of 0.
fn bucket_of(client: IpAddr, port: u16) -> u32 {
    hash::multiplicative(hash::fold(client).wrapping_add(u32::from(port)), BUCKET_BITS)
}

impl Scheduler for SourceHash {
    fn choose(&mut self, servers: &[RealServer], slots: &ServerSlots, flow: &Flow) -> Choice {
        if self.buckets.is_empty() {
            return Choice::None;
        }
        let start = bucket_of(flow.client, if self.with_port { flow.client_port } else { 0 });
        let available = |bucket: u32| {
            let position = self.buckets[(bucket % BUCKETS) as usize] as usize;
            may_take(slots.get(servers[position].id)).then_some(position)
        };
        if let Some(position) = available(start) {
            return Choice::Server(position);
        }
        if self.fallback {
            // `ip_vs_sh_get_fallback` adds the hash twice: once into the offset, once on looking up.
            for offset in 0..BUCKETS {
                if let Some(position) = available((offset + start) % BUCKETS + start) {
                    return Choice::Server(position);
                }
            }
        }
        Choice::None
    }

    fn added(&mut self, servers: &[RealServer], slots: &ServerSlots) {
        self.fill(servers, slots);
    }

    fn removed(&mut self, servers: &[RealServer], slots: &ServerSlots, _position: usize) {
        self.fill(servers, slots);
    }

    fn updated(&mut self, servers: &[RealServer], slots: &ServerSlots) {
        self.fill(servers, slots);
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Bench, CLIENT, ipv6_clients};
    use super::*;

    fn clients() -> impl Iterator<Item = Flow> {
        (0..=255).map(|last| Flow { client: IpAddr::V4([10, 88, 128, last].into()), ..CLIENT })
    }

    #[test]
    fn a_client_keeps_its_server_whatever_its_port_unless_asked() {
        let mut bench = Bench::new("sh", 0, &[1, 1, 1]);
        for client in clients() {
            let first = bench.choose(&client);
            assert_eq!(bench.choose(&Flow { client_port: 9, ..client }), first);
        }
        let mut bench = Bench::new("sh", FLAG_2, &[1, 1, 1]);
        let ports: std::collections::HashSet<u32> =
            (0..100).map(|client_port| bench.choose(&Flow { client_port, ..CLIENT })).collect();
        assert_eq!(ports.len(), 3);
    }

    #[test]
    fn a_quiescent_server_refuses_its_clients_unless_they_may_fall_back() {
        let mut refusing = Bench::new("sh", 0, &[1, 0, 1]);
        let mut falling_back = Bench::new("sh", FLAG_1, &[1, 0, 1]);
        let mut refused = 0;
        for client in clients() {
            let choice = refusing.choose(&client);
            assert_ne!(choice, 2);
            refused += usize::from(choice == 0);
            let other = falling_back.choose(&client);
            assert!(matches!(other, 1 | 3));
            assert!(choice == 0 || choice == other);
        }
        assert!(refused > 0);
        assert_eq!(Bench::new("sh", FLAG_1, &[0, 0]).choose(&CLIENT), 0);
        assert_eq!(Bench::new("sh", FLAG_1, &[]).choose(&CLIENT), 0);
    }

    #[test]
    fn a_weight_beyond_the_table_fills_it() {
        assert_eq!(Bench::new("sh", 0, &[1, 2_147_483_647]).sequence(2), [2, 2]);
    }

    #[test]
    fn ipv6_clients_are_served_as_recorded() {
        let mut bench = Bench::new("sh", 0, &[3, 2, 1]);
        let picks: Vec<u32> = ipv6_clients(22_000).map(|flow| bench.choose(&flow)).collect();
        assert_eq!(picks, [1, 3, 2, 1, 1, 2, 1, 1, 1, 2, 1, 2, 2, 1, 1, 1, 3, 1, 2, 1, 1, 1, 2, 3]);
        let mut bench = Bench::new("sh", FLAG_2, &[3, 2, 1]);
        let picks: Vec<u32> = ipv6_clients(23_000).map(|flow| bench.choose(&flow)).collect();
        assert_eq!(picks, [2, 3, 1, 1, 2, 2, 3, 1, 2, 1, 2, 2, 1, 3, 1, 3, 2, 2, 3, 1, 2, 1, 2, 2]);
    }
}
