//! `mh`, Maglev hashing: a client always gets the same real server, and few clients move when one comes or goes.
//!
//! A table with a prime number of entries is filled by turns. Each real server has an order of its own in which it
//! likes the entries: from `offset` on in steps of `skip`, both hashes of its address and port. The list is walked
//! round and round, and at its turn each real server takes the next entries it likes that are free, as many as its
//! share: its weight by all weights' greatest common divisor, all of them halved until the largest fits half of the
//! bits that the table's size has, but at least 1. Weights are the last above 0: a real server that gets weight 0 keeps
//! its entries and refuses, so that its clients come back to it; one added with weight 0 gets none.
//!
//! The client's address picks the entry; with `mh-port`, its port is added. Where that entry's real server may take
//! nothing, the connection is refused; with `mh-fallback`, the address is hashed again with the offsets from the
//! first entry on, until one is found. All directors with the same list agree, so the hashes are those of a 64-bit
//! kernel and have no secret. Source: `ip_vs_mh.c`, and Eisenbud et al., "Maglev: A Fast and Reliable Software
//! Network Load Balancer", NSDI 2016.
//!
//! The table is filled under the service's lock, when a real server comes, goes or gets another weight: about
//! size x ln(size) looks at a table that fits a processor's first cache. That service's new connections wait for as long,
//! some 50 to 80 microseconds; established ones do not. `benches/scheduler.rs` measures it.

use std::net::IpAddr;

use super::{Choice, FLAG_1, FLAG_2, Flow, Scheduler, gcd, hash, may_take};
use crate::service::{RealServer, ServerSlots};

/// Tables' sizes, by index from [`LEAST_INDEX`] on: the largest primes below 2^index.
const SIZES: [u32; 10] = [251, 509, 1021, 2039, 4093, 8191, 16_381, 32_749, 65_521, 131_071];
const LEAST_INDEX: u32 = 8;
/// CONFIG_IP_VS_MH_TAB_INDEX of a default kernel: 4093 entries.
const DEFAULT_INDEX: u32 = 12;
/// Keys of the two hashes, each for both halves of its.
const FIRST_KEY: u64 = 2_654_435_761;
const SECOND_KEY: u64 = 2_654_446_892;
/// An entry of the table that nobody has.
const FREE: u32 = u32::MAX;

/// Maglev hashing.
#[derive(Debug)]
pub struct Maglev {
    index: u32,
    size: u32,
    /// Positions in the list of real servers; empty where nobody has a share.
    table: Vec<u32>,
    /// What the table was filled by.
    orders: Vec<Order>,
    fallback: bool,
    with_port: bool,
}

/// In which order a real server takes entries, and how many of them at a time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Order {
    offset: u32,
    skip: u32,
    share: u32,
}

/// The kernel's `ip_vs_mh_hashkey`.
fn hash_of(address: IpAddr, port: u16, key: u64, offset: u32) -> u32 {
    hash::siphash(offset.wrapping_add(u32::from(port)).wrapping_add(hash::fold(address)), key)
}

impl Maglev {
    /// One with the table of a default kernel, and the service's flags.
    pub(super) fn new(flags: u32) -> Self {
        Self::with_size(flags, DEFAULT_INDEX, SIZES[(DEFAULT_INDEX - LEAST_INDEX) as usize])
    }

    /// One as of a kernel that was built with another CONFIG_IP_VS_MH_TAB_INDEX, from 8 for 251 entries to 17 for
    /// 131,071; `None` for one that there is not.
    pub fn with_index(flags: u32, index: u32) -> Option<Self> {
        let size = SIZES.get(index.checked_sub(LEAST_INDEX)? as usize)?;
        Some(Self::with_size(flags, index, *size))
    }

    fn with_size(flags: u32, index: u32, size: u32) -> Self {
        let (fallback, with_port) = (flags & FLAG_1 != 0, flags & FLAG_2 != 0);
        Self { index, size, table: Vec::new(), orders: Vec::new(), fallback, with_port }
    }

    fn refill(&mut self, servers: &[RealServer], slots: &ServerSlots) {
        let orders = self.orders(servers, slots);
        // Who gets weight 0, or thresholds, keeps its share: the most frequent edit costs nothing.
        if orders != self.orders || self.table.is_empty() {
            self.orders = orders;
            self.fill();
        }
    }

    fn orders(&self, servers: &[RealServer], slots: &ServerSlots) -> Vec<Order> {
        let weights = || servers.iter().map(|server| slots.get(server.id).last_weight());
        let divisor = weights().fold(0, gcd).max(1);
        let largest = weights().max().unwrap_or(0) / divisor;
        let shift = (u32::BITS - largest.leading_zeros()).saturating_sub(self.index / 2);
        let order = |server: &RealServer| {
            let weight = slots.get(server.id).last_weight();
            Order {
                offset: hash_of(server.address, server.port, FIRST_KEY, 0) % self.size,
                skip: hash_of(server.address, server.port, SECOND_KEY, 0) % (self.size - 1) + 1,
                share: ((weight / divisor) >> shift).max(weight.min(1)),
            }
        };
        servers.iter().map(order).collect()
    }

    /// Fills the table. Of more real servers than it has entries only those added first take part, as the kernel
    /// leaves a table as it was when more are added.
    fn fill(&mut self) {
        self.table.clear();
        let excess = self.orders.len().saturating_sub(self.size as usize);
        let taking = (0..).zip(&self.orders).skip(excess).filter(|(_, order)| order.share > 0);
        let mut turns: Vec<(u32, Order)> = taking.map(|(position, order)| (position, *order)).collect();
        if turns.is_empty() {
            return;
        }
        self.table.resize(self.size as usize, FREE);
        let mut free = self.size;
        loop {
            for (position, Order { offset: next, skip, share }) in &mut turns {
                for _ in 0..*share {
                    // The size is a prime, so that an order goes through all entries; and one is free.
                    while self.table[*next as usize] != FREE {
                        *next += *skip;
                        if *next >= self.size {
                            *next -= self.size;
                        }
                    }
                    self.table[*next as usize] = *position;
                    free -= 1;
                    if free == 0 {
                        return;
                    }
                }
            }
        }
    }
}

impl Scheduler for Maglev {
    fn choose(&mut self, servers: &[RealServer], slots: &ServerSlots, flow: &Flow) -> Choice {
        if self.table.is_empty() {
            return Choice::None;
        }
        let takes = |server: &RealServer| may_take(slots.get(server.id));
        let port = if self.with_port { flow.client_port } else { 0 };
        let entry = |offset| hash_of(flow.client, port, FIRST_KEY, offset) % self.size;
        let available = |entry: u32| {
            let position = self.table[entry as usize] as usize;
            takes(&servers[position]).then_some(position)
        };
        let start = entry(0);
        if let Some(position) = available(start) {
            return Choice::Server(position);
        }
        // Without the second condition, a flood of connections that nobody can take goes through the table for each.
        if self.fallback && servers.iter().any(takes) {
            let offsets = (0..self.size).map(|step| (start + step) % self.size);
            return offsets.map(entry).find_map(available).into();
        }
        Choice::None
    }

    fn added(&mut self, servers: &[RealServer], slots: &ServerSlots) {
        self.refill(servers, slots);
    }

    fn removed(&mut self, servers: &[RealServer], slots: &ServerSlots, _position: usize) {
        self.refill(servers, slots);
    }

    fn updated(&mut self, servers: &[RealServer], slots: &ServerSlots) {
        self.refill(servers, slots);
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Bench, clients, ipv6_clients};
    use super::*;
    use crate::service::{ServerId, ServiceId};
    use crate::types::ForwardingMethod;

    fn picks(bench: &mut Bench) -> Vec<u32> {
        clients(12).map(|flow| bench.choose(&flow)).collect()
    }

    #[test]
    fn it_picks_as_recorded() {
        for (weights, flags, expected) in [
            (&[1, 1, 1][..], 0, [2, 1, 1, 1, 2, 1, 2, 1, 2, 3, 1, 2]),
            (&[3, 2, 1], 0, [2, 1, 1, 1, 2, 1, 2, 1, 2, 1, 1, 2]),
            (&[1, 2, 3, 4, 5], 0, [4, 5, 5, 2, 2, 5, 5, 5, 4, 3, 3, 5]),
            (&[10, 0, 5], 0, [1, 1, 1, 1, 3, 1, 1, 1, 1, 1, 1, 3]),
            (&[1, 1, 1], FLAG_2, [2, 1, 1, 1, 1, 3, 2, 2, 2, 2, 3, 2]),
        ] {
            assert_eq!(picks(&mut Bench::new("mh", flags, weights)), expected, "{weights:?} {flags:x}");
        }
    }

    #[test]
    fn who_gets_weight_0_keeps_its_clients_and_refuses_them() {
        let mut bench = Bench::new("mh", 0, &[1, 1, 1]);
        bench.edit(2, 0);
        assert_eq!(picks(&mut bench), [0, 1, 1, 1, 0, 1, 0, 1, 0, 3, 1, 0]);
        bench.edit(2, 1);
        assert_eq!(picks(&mut bench), [2, 1, 1, 1, 2, 1, 2, 1, 2, 3, 1, 2]);
        bench.limit(3, 1);
        bench.slot(3).connection_added();
        assert_eq!(picks(&mut bench), [2, 1, 1, 1, 2, 1, 2, 1, 2, 0, 1, 2]);
        bench.slot(3).connection_removed(false);
        bench.remove(2);
        assert!(picks(&mut bench).iter().all(|number| [1, 3].contains(number)));
        // Added again with weight 0, it has no weight to remember.
        bench.add(2, 0);
        assert!(picks(&mut bench).iter().all(|number| [1, 3].contains(number)));
        assert_eq!(picks(&mut Bench::new("mh", 0, &[0, 0])), [0; 12]);
        assert_eq!(picks(&mut Bench::new("mh", 0, &[])), [0; 12]);
    }

    #[test]
    fn with_fallback_somebody_else_takes_the_refused() {
        let mut bench = Bench::new("mh", FLAG_1, &[1, 1, 1]);
        let before = picks(&mut bench);
        bench.edit(2, 0);
        for (before, after) in before.into_iter().zip(picks(&mut bench)) {
            assert!(if before == 2 { [1, 3].contains(&after) } else { after == before });
        }
        bench.edit(1, 0);
        assert_eq!(picks(&mut bench), [3; 12]);
        bench.edit(3, 0);
        assert_eq!(picks(&mut bench), [0; 12]);
    }

    /// Real servers of their own addresses, in the order of the list, with these weights.
    fn servers(weights: &[u32]) -> (Vec<RealServer>, ServerSlots) {
        let slots = ServerSlots::new(weights.len());
        let server = |(number, &weight): (u32, &u32)| {
            let id = ServerId(number);
            slots.get(id).assign(ServiceId(0));
            slots.get(id).set_weight(weight);
            let address = IpAddr::V4((0x0a00_0000 + number).into());
            RealServer { id, address, port: 80, method: ForwardingMethod::DirectRouting }
        };
        ((0..).zip(weights).map(server).collect(), slots)
    }

    /// A table filled for them, each entry with the number of who has it.
    fn table(index: u32, servers: &[RealServer], slots: &ServerSlots) -> Vec<u32> {
        let mut maglev = Maglev::with_index(0, index).unwrap();
        maglev.added(servers, slots);
        maglev.table.iter().map(|&position| servers[position as usize].id.0).collect()
    }

    #[test]
    fn ipv6_clients_are_served_as_recorded() {
        // 1 to 3 with weights 3 to 1, the last added first.
        let (mut servers, slots) = servers(&[1, 2, 3]);
        for (server, last) in servers.iter_mut().zip([0x13, 0x12, 0x11]) {
            server.address = IpAddr::from([0xfd88, 2, 0, 0, 0, 0, 0, last]);
        }
        let picks = |flags, first_port| -> Vec<usize> {
            let mut maglev = Maglev::new(flags);
            maglev.added(&servers, &slots);
            let choices = ipv6_clients(first_port).map(|flow| maglev.choose(&servers, &slots, &flow));
            choices
                .map(|choice| if let Choice::Server(position) = choice { 3 - position } else { 0 })
                .collect()
        };
        let expected = [1, 1, 2, 3, 1, 2, 3, 2, 2, 2, 3, 2, 2, 1, 2, 2, 1, 2, 2, 1, 1, 3, 3, 3];
        assert_eq!(picks(0, 20_000), expected);
        let expected = [2, 2, 1, 1, 3, 1, 1, 2, 1, 1, 3, 2, 2, 1, 1, 2, 2, 1, 1, 2, 1, 2, 1, 1];
        assert_eq!(picks(FLAG_2, 21_000), expected);
    }

    fn entries_of_each(table: &[u32], servers: usize) -> Vec<u32> {
        let mut counts = vec![0; servers];
        table.iter().for_each(|&number| counts[number as usize] += 1);
        counts
    }

    /// Section 3.4 of the paper: a table with more than 100 entries for each real server gives shares that differ by 1 %
    /// at most. Section 5.3: 1000 real servers share one of 65,537 almost perfectly, where Karger's and rendezvous
    /// hashing give one of them 29.7 % and 49.5 % more than the mean. (The kernel's has 65,521 entries.)
    #[test]
    fn shares_are_as_even_as_the_paper_says() {
        for (index, count) in [(12, 3), (12, 40), (16, 650), (16, 1000), (17, 1300)] {
            let (servers, slots) = servers(&vec![1; count]);
            let table = table(index, &servers, &slots);
            let entries = entries_of_each(&table, count);
            let (least, most) = (*entries.iter().min().unwrap(), *entries.iter().max().unwrap());
            assert!(most - least <= 1, "{count} servers: {least} to {most} of {}", table.len());
            let mean = table.len() as f64 / count as f64;
            if table.len() > 100 * count {
                assert!(f64::from(most - least) / mean <= 0.01, "{count} servers: {least} to {most}");
            }
            assert!(f64::from(most) / mean < 1.01, "{count} servers: {most}, mean {mean}");
        }
    }

    /// How much of a table changes hands between those that stay, when the first `gone` of 1000 go.
    fn needless_moves(index: u32, gone: usize) -> f64 {
        let (servers, slots) = servers(&[1; 1000]);
        let before = table(index, &servers, &slots);
        let after = table(index, &servers[gone..], &slots);
        let moved = before.iter().zip(&after).filter(|(was, is)| **was >= gone as u32 && was != is);
        moved.count() as f64 / before.len() as f64
    }

    /// Section 5.3 of the paper: entries change hands beyond those of the real servers that fail, the fewer the larger
    /// the table is. It has 1000 real servers and up to a few in a hundred failing at a time; the bounds are ours.
    #[test]
    fn few_clients_move_when_servers_go() {
        for (gone, bound) in [(1, 0.01), (10, 0.025), (50, 0.035)] {
            let [small, middle, large] = [12, 16, 17].map(|index| needless_moves(index, gone));
            assert!(middle < bound, "{gone} of 1000 gone: {middle} of 65,521 entries move without need");
            assert!(large < middle && middle < small, "{gone} of 1000 gone: {small}, {middle}, {large}");
        }
    }

    proptest::proptest! {
        #![proptest_config(proptest::test_runner::Config::with_cases(64))]
        #[test]
        fn entries_are_shared_by_weight(
            index in 8_u32..=12,
            weights in proptest::collection::vec(0_u32..=8, 1..20),
        ) {
            let (servers, slots) = servers(&weights);
            let table = table(index, &servers, &slots);
            let divisor = weights.iter().copied().fold(0, gcd).max(1);
            let shares: Vec<u32> = weights.iter().map(|weight| weight / divisor).collect();
            let sum: u32 = shares.iter().sum();
            if sum == 0 {
                proptest::prop_assert!(table.is_empty());
                return Ok(());
            }
            proptest::prop_assert_eq!(table.len(), SIZES[(index - LEAST_INDEX) as usize] as usize);
            let rounds = table.len() as u32 / sum;
            for (count, share) in entries_of_each(&table, weights.len()).into_iter().zip(shares) {
                proptest::prop_assert!((rounds * share..=(rounds + 1) * share).contains(&count));
            }
        }
    }

    #[test]
    fn weights_far_apart_are_halved_until_they_fit() {
        // 65,535 has 16 bits, of which 6 stay: 63 entries at a turn, and 1 for what is nothing then.
        let (servers, slots) = servers(&[65_535, 1]);
        let entries = entries_of_each(&table(12, &servers, &slots), 2);
        assert_eq!(entries, [4093 - 4093 / 64, 4093 / 64]);
    }

    #[test]
    fn of_more_servers_than_entries_the_first_added_have_one_each() {
        let (servers, slots) = servers(&[1; 300]);
        let entries = entries_of_each(&table(8, &servers, &slots), 300);
        assert_eq!(entries.iter().filter(|count| **count == 1).count(), 251);
        assert!(entries[..49].iter().all(|count| *count == 0), "the head of the list was added last");
    }

    #[test]
    fn there_are_ten_sizes() {
        assert!(Maglev::with_index(0, 7).is_none());
        assert!(Maglev::with_index(0, 18).is_none());
        assert!((8..=17).all(|index| Maglev::with_index(0, index).is_some()));
        for (size, index) in SIZES.into_iter().zip(8..) {
            assert!(size < 1 << index && (2..400).all(|divisor| size == divisor || size % divisor != 0));
        }
    }
}
