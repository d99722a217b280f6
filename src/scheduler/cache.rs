//! What `lblc` and `lblcr` remember by: destinations with what was decided for each, and where a real server that
//! was decided on is now.
//!
//! Memory is reserved when the scheduler is made, the packet path takes none. Where the kernel's table grows, and is
//! swept every minute for what has been idle for six minutes while it holds more than 16,384 destinations, ours
//! gives up the destination that was asked for the longest ago, when there is a 16,385th.

use std::net::IpAddr;

use crate::service::{RealServer, ServerSlots};
use crate::types::{Duration, HashKey, Instant};

/// Most destinations: where the kernel begins to sweep (IP_VS_LBLC_TAB_SIZE * 16).
pub(super) const CAPACITY: usize = 16 * 1024;
const CHAINS: usize = 4096;
/// No entry.
const NIL: u32 = u32::MAX;

/// A real server by what it is known by as long as it may come back.
pub(super) type Place = (IpAddr, u16);

/// Where the list has each real server.
#[derive(Debug, Default)]
pub(super) struct Places(Vec<(Place, u32)>);

impl Places {
    /// Takes over a changed list.
    pub(super) fn rebuild(&mut self, servers: &[RealServer]) {
        self.0.clear();
        self.0.extend(servers.iter().zip(0..).map(|(server, position)| (place(server), position)));
        self.0.sort_unstable();
    }

    /// The position of the real server, or `None` while it is not in the list.
    pub(super) fn position(&self, place: &Place) -> Option<usize> {
        let found = self.0.binary_search_by(|(known, _)| known.cmp(place)).ok()?;
        Some(self.0[found].1 as usize)
    }
}

/// What a real server is remembered by.
pub(super) fn place(server: &RealServer) -> Place {
    (server.address, server.port)
}

/// Whether the real server at `position` is to be relieved: it has more active connections than weight, while another
/// has less than half of what its weight says (`is_overloaded` in `ip_vs_lblc.c`).
pub(super) fn is_crowded(servers: &[RealServer], slots: &ServerSlots, position: usize) -> bool {
    let slot = slots.get(servers[position].id);
    let has_half = |server: &RealServer| {
        let slot = slots.get(server.id);
        u64::from(slot.active()) * 2 < u64::from(slot.weight())
    };
    slot.active() > slot.weight() && servers.iter().any(has_half)
}

/// A bounded memory of destinations. Full, it forgets the one that was asked for the longest ago.
#[derive(Debug)]
pub(super) struct Cache<T> {
    /// An attacker may choose destinations: which chain they are in has to be a secret.
    secret: HashKey,
    /// First entries.
    chains: Vec<u32>,
    entries: Vec<Entry<T>>,
    /// The ends of the list of all entries, in the order of their last use.
    newest: u32,
    oldest: u32,
}

#[derive(Debug)]
struct Entry<T> {
    destination: IpAddr,
    last_used: Instant,
    /// The next in the chain.
    next: u32,
    newer: u32,
    older: u32,
    value: T,
}

impl<T: Copy> Cache<T> {
    /// An empty one, with memory for [`CAPACITY`] destinations.
    pub(super) fn new(secret: HashKey) -> Self {
        let (chains, entries) = (vec![NIL; CHAINS], Vec::with_capacity(CAPACITY));
        Self { secret, chains, entries, newest: NIL, oldest: NIL }
    }

    fn chain_of(&self, destination: IpAddr) -> usize {
        let hash = match destination {
            IpAddr::V4(address) => self.secret.hash([u64::from(u32::from(address))]),
            IpAddr::V6(address) => {
                let bits = u128::from(address);
                self.secret.hash([(bits >> 64) as u64, bits as u64])
            }
        };
        hash as usize % CHAINS
    }

    fn find(&self, destination: IpAddr) -> Option<u32> {
        let mut index = self.chains[self.chain_of(destination)];
        while let Some(entry) = self.entries.get(index as usize) {
            if entry.destination == destination {
                return Some(index);
            }
            index = entry.next;
        }
        None
    }

    /// What is remembered of a destination, unless nobody has asked for it for `lifetime`.
    pub(super) fn recall(&mut self, destination: IpAddr, now: Instant, lifetime: Duration) -> Option<&mut T> {
        let index = self.find(destination)?;
        if now.since(self.entries[index as usize].last_used) >= lifetime {
            return None;
        }
        self.touch(index, now);
        Some(&mut self.entries[index as usize].value)
    }

    /// Remembers `value` of a destination; returns what is forgotten for it, of the same one or of another.
    pub(super) fn remember(&mut self, destination: IpAddr, now: Instant, value: T) -> Option<T> {
        if let Some(index) = self.find(destination) {
            self.touch(index, now);
            return Some(std::mem::replace(&mut self.entries[index as usize].value, value));
        }
        let chain = self.chain_of(destination);
        let entry =
            Entry { destination, last_used: now, next: self.chains[chain], newer: NIL, older: NIL, value };
        if self.entries.len() < CAPACITY {
            let index = self.entries.len() as u32;
            self.entries.push(entry);
            self.chains[chain] = index;
            self.link(index);
            return None;
        }
        let index = self.oldest;
        self.unlink(index);
        self.unchain(index);
        // Read after its place in the chain was given up: it may have been the first of this one.
        let next = self.chains[chain];
        let forgotten = std::mem::replace(&mut self.entries[index as usize], Entry { next, ..entry });
        self.chains[chain] = index;
        self.link(index);
        Some(forgotten.value)
    }

    fn touch(&mut self, index: u32, now: Instant) {
        self.entries[index as usize].last_used = now;
        if self.newest != index {
            self.unlink(index);
            self.link(index);
        }
    }

    /// Puts an entry at the head of the list by use.
    fn link(&mut self, index: u32) {
        let older = std::mem::replace(&mut self.newest, index);
        let entry = &mut self.entries[index as usize];
        (entry.newer, entry.older) = (NIL, older);
        match self.entries.get_mut(older as usize) {
            Some(entry) => entry.newer = index,
            None => self.oldest = index,
        }
    }

    /// Takes an entry out of the list by use.
    fn unlink(&mut self, index: u32) {
        let Entry { newer, older, .. } = self.entries[index as usize];
        match self.entries.get_mut(newer as usize) {
            Some(entry) => entry.older = older,
            None => self.newest = older,
        }
        match self.entries.get_mut(older as usize) {
            Some(entry) => entry.newer = newer,
            None => self.oldest = newer,
        }
    }

    /// Takes an entry out of its chain.
    fn unchain(&mut self, index: u32) {
        let Entry { destination, next, .. } = self.entries[index as usize];
        let chain = self.chain_of(destination);
        if self.chains[chain] == index {
            self.chains[chain] = next;
            return;
        }
        let mut before = self.chains[chain];
        while let Some(entry) = self.entries.get_mut(before as usize) {
            if entry.next == index {
                entry.next = next;
                return;
            }
            before = entry.next;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{BTreeMap, HashMap};

    const DAY: Duration = Duration::from_secs(86_400);

    fn cache() -> Cache<u32> {
        Cache::new(HashKey::new([1, 2]))
    }

    fn address(number: u32) -> IpAddr {
        match number % 2 {
            0 => IpAddr::V4(number.into()),
            _ => IpAddr::V6((u128::from(number) << 40).into()),
        }
    }

    fn at(seconds: u64) -> Instant {
        Instant::ZERO + Duration::from_secs(seconds)
    }

    #[test]
    fn a_destination_is_forgotten_once_idle_for_its_lifetime() {
        let mut cache = cache();
        assert_eq!(cache.recall(address(1), at(0), DAY), None);
        assert_eq!(cache.remember(address(1), at(0), 7), None);
        assert_eq!(cache.recall(address(1), at(86_399), DAY), Some(&mut 7), "and is used anew");
        assert_eq!(cache.recall(address(1), at(86_399 + 86_399), DAY), Some(&mut 7));
        assert_eq!(cache.recall(address(1), at(3 * 86_400), DAY), None);
        assert_eq!(cache.remember(address(1), at(3 * 86_400), 8), Some(7));
        assert_eq!(cache.recall(address(1), at(3 * 86_400), DAY), Some(&mut 8));
        assert_eq!(cache.recall(address(1), at(3 * 86_400), Duration::ZERO), None);
    }

    #[test]
    fn a_full_cache_forgets_what_was_asked_for_the_longest_ago() {
        let mut cache = cache();
        let all = CAPACITY as u32;
        (0..all).for_each(|number| assert_eq!(cache.remember(address(number), at(0), number), None));
        assert!(cache.recall(address(0), at(1), DAY).is_some());
        assert_eq!(cache.remember(address(all), at(1), all), Some(1));
        assert_eq!(cache.remember(address(all + 1), at(1), all + 1), Some(2));
        for (number, known) in [(0, true), (1, false), (2, false), (3, true), (all, true), (all + 1, true)] {
            assert_eq!(cache.recall(address(number), at(1), DAY).is_some(), known, "{number}");
        }
        assert_eq!(cache.entries.capacity(), CAPACITY, "it never grows");
    }

    #[test]
    fn it_is_what_a_map_with_times_would_be() {
        let mut cache = cache();
        let mut model: HashMap<IpAddr, (u64, u32)> = HashMap::new();
        let mut by_use = BTreeMap::new();
        let key = HashKey::new([3, 4]);
        for step in 0..200_000_u64 {
            let random = key.hash([step]);
            // More than there is room for, some of them often.
            let destination = address((random as u32 % 40_000) >> (random >> 62));
            let value = (random >> 32) as u32;
            if value & 1 == 0 {
                let got = cache.recall(destination, at(step), DAY).copied();
                let known = model.get_mut(&destination).filter(|(used, _)| step - *used < 86_400);
                assert_eq!(got, known.as_ref().map(|(_, value)| *value), "{step}");
                let Some((used, _)) = known else { continue };
                by_use.remove(&std::mem::replace(used, step));
            } else {
                let replaced = model.insert(destination, (step, value));
                let mut forgotten = replaced.map(|(_, value)| value);
                if let Some((used, _)) = replaced {
                    by_use.remove(&used);
                }
                if model.len() > CAPACITY {
                    let (_, oldest) = by_use.pop_first().unwrap();
                    forgotten = model.remove(&oldest).map(|(_, value)| value);
                }
                assert_eq!(cache.remember(destination, at(step), value), forgotten, "{step}");
            }
            by_use.insert(step, destination);
        }
        assert_eq!((model.len(), cache.entries.len()), (CAPACITY, CAPACITY), "it was full");
    }
}
