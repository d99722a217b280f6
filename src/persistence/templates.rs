//! All templates of one address family: shards, and the few words that lead to them.

use std::io;
use std::net::IpAddr;

use crate::conn::{FlowFamily, FlowKey};
use crate::service::{ServerId, ServerSlots};
use crate::sys::memory::Words;
use crate::sys::memory::atomic::{AtomicU64, Mutex, Ordering, fence};
use crate::types::{Duration, HashKey, Instant};

use super::heap::{Heap, INDEX_BITS, moment, tick_at};
use super::record::{PLACE, Record, TemplateId};
use super::shard::{Shard, ShardGuard};

/// Most shards, each behind a lock: a few times more than workers that meet new clients at the same moment.
const MAX_SHARDS: u32 = 64;
/// Templates for which a further shard is worth its while.
const SHARD_SIZE: u32 = 1024;
/// No tick: nothing is due.
const NOTHING: u64 = u64::MAX;

/// A shard's lock, and what others may read without it.
#[derive(Debug)]
#[repr(align(128))]
struct Slot {
    /// The tick at which a template is to be looked at next.
    due: AtomicU64,
    /// Records that were used at some time.
    used: AtomicU64,
    shard: Mutex<Shard>,
}

/// The templates of one address family, shared by all workers. Memory is reserved when they are made, and used when
/// touched.
#[derive(Debug)]
pub struct Templates<F: FlowFamily> {
    key: HashKey,
    records: Words,
    /// Of each shard, heads of its hash chains: index within the shard + 1.
    heads: Words,
    shard_heads: u32,
    heaps: Words,
    shard_capacity: u32,
    shards: Box<[Slot]>,
    /// The earliest tick of all shards, or an earlier one.
    due: AtomicU64,
    alive: AtomicU64,
    /// Where the next to collect begins, so that no shard is always last.
    turn: AtomicU64,
    family: std::marker::PhantomData<F>,
}

/// A template as a walk finds it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Walked {
    /// IP protocol number; 0 for that of a mark.
    pub protocol: u8,
    /// The client as far as it counts.
    pub client: IpAddr,
    /// Virtual address and port: port 0 for all; the mark in the place of an address; port 65535 in one that was found
    /// invalid.
    pub service: (IpAddr, u16),
    /// The real server.
    pub server: ServerId,
    /// Its port, 0 for all, 65535 in one that was found invalid.
    pub server_port: u16,
    /// How long it has to live unless it is used.
    pub remaining: Duration,
    /// A connection under it got somewhere.
    pub assured: bool,
}

impl<F: FlowFamily> Templates<F> {
    /// Room for `capacity` templates, none of them there yet.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(capacity: u32, key: HashKey) -> io::Result<Self> {
        let capacity = capacity.clamp(1, (MAX_SHARDS << INDEX_BITS) - 1);
        let shards = (capacity / SHARD_SIZE).clamp(1, MAX_SHARDS).next_power_of_two();
        let even = capacity.div_ceil(shards);
        // The hash fills shards unevenly: six standard deviations hardly ever occur.
        let slack = if shards > 1 { 6 * even.isqrt() } else { 0 };
        let shard_capacity = (even + slack).min((1 << INDEX_BITS) - 1);
        let shard_heads = (shard_capacity / 2).next_power_of_two();
        let count = shards as usize * shard_capacity as usize;
        let slot = |_| Slot {
            due: AtomicU64::new(NOTHING),
            used: AtomicU64::new(0),
            shard: Mutex::new(Shard::default()),
        };
        Ok(Self {
            key,
            records: Words::new(count * F::RECORD_WORDS)?,
            heads: Words::new(shards as usize * shard_heads as usize)?,
            shard_heads,
            heaps: Words::new(count)?,
            shard_capacity,
            shards: (0..shards).map(slot).collect(),
            due: AtomicU64::new(NOTHING),
            alive: AtomicU64::new(0),
            turn: AtomicU64::new(0),
            family: std::marker::PhantomData,
        })
    }

    /// Templates in the table, those past their time and not collected yet included.
    pub fn alive(&self) -> u64 {
        self.alive.load(Ordering::Relaxed)
    }

    /// Most templates that fit; a little fewer where the hash fills shards unevenly.
    pub fn capacity(&self) -> u32 {
        self.shards.len() as u32 * self.shard_capacity
    }

    /// Bytes of memory that the table spans when it is full.
    pub fn memory(&self) -> usize {
        size_of_val(&*self.records) + size_of_val(&*self.heads) + size_of_val(&*self.heaps)
    }

    /// Locks the shard of `key`: whoever holds it decides alone about the key's template.
    pub fn lock(&self, key: &FlowKey<F>) -> ShardGuard<'_, F> {
        let hash = key.hash(self.key);
        // The low bits find the chain within the shard.
        let number = (hash >> 40) as usize & (self.shards.len() - 1);
        ShardGuard::new(self, number, hash, self.shards[number].shard.lock())
    }

    fn lock_of(&self, id: TemplateId) -> ShardGuard<'_, F> {
        let number = (id.index / self.shard_capacity) as usize;
        ShardGuard::new(self, number, 0, self.shards[number].shard.lock())
    }

    /// A connection under the template has ended. Takes no lock.
    pub fn give_up_control(&self, id: TemplateId) {
        let before = self.record(id.index).give_up_control();
        debug_assert!(before > 0, "a template that controls nothing");
    }

    /// A connection under the template got somewhere: established, or answered. Takes no lock.
    pub fn assure(&self, id: TemplateId) {
        self.record(id.index).assure(id);
    }

    /// Ends a template whose connection had to give way, if it has no other and never got anywhere, so that a flood
    /// leaves neither connections nor templates (`ip_vs_conn_expire`). The caller holds no lock.
    pub fn drop_unassured(&self, id: TemplateId, slots: &ServerSlots) -> bool {
        self.lock_of(id).end_unless(id, slots, |record| record.is_assured())
    }

    /// Looks at templates whose time may be over, about `budget` at most: ends those without connections, and puts off
    /// the others. Says whether it got through. The caller holds no lock.
    pub fn collect(&self, slots: &ServerSlots, now: Instant, budget: usize) -> bool {
        let target = tick_at(now);
        if self.due.load(Ordering::Relaxed) > target {
            return true;
        }
        // Whoever files an earlier one from now on says so; what was filed before is found below.
        self.due.swap(NOTHING, Ordering::AcqRel);
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) as usize;
        let (mut left, mut earliest) = (budget, NOTHING);
        for step in 0..self.shards.len() {
            let number = (turn + step) & (self.shards.len() - 1);
            let slot = &self.shards[number];
            if left > 0 && slot.due.load(Ordering::Acquire) <= target {
                let mut guard = ShardGuard::new(self, number, 0, slot.shard.lock());
                left -= guard.collect(slots, now, left);
            }
            earliest = earliest.min(slot.due.load(Ordering::Acquire));
        }
        self.due.fetch_min(earliest, Ordering::AcqRel);
        earliest > target
    }

    /// When [`collect`](Self::collect) should be called at the latest; `None` while there is nothing to look at.
    pub fn next_deadline(&self) -> Option<Instant> {
        let due = self.due.load(Ordering::Relaxed);
        (due != NOTHING).then(|| moment(due))
    }

    /// Visits the records from `start` on, at most `count` of them, and calls `visit` with the templates that live.
    /// Says where to go on, `None` at the end. Takes no lock.
    pub fn visit(&self, start: u32, count: u32, now: Instant, mut visit: impl FnMut(Walked)) -> Option<u32> {
        self.walk(start, count, |index| {
            let record = self.record(index);
            let generation = record.generation();
            if !record.is_alive() || record.is_over(now) {
                return;
            }
            let (client, destination) = record.addresses();
            let (port, protocol) = record.ports();
            let invalid = record.is_invalid();
            let walked = Walked {
                protocol,
                client,
                service: (destination, if invalid { u16::MAX } else { port }),
                server: record.server(),
                server_port: if invalid { u16::MAX } else { record.server_port() },
                remaining: record.deadline_by(now).since(now),
                assured: record.is_assured(),
            };
            // Else another took the record while it was read: what was read comes before what is now.
            fence(Ordering::Acquire);
            if record.is(TemplateId { index, generation }) {
                visit(walked);
            }
        })
    }

    /// Ends templates without connections whose real server was removed (`expire_nodest_conn` wants it so), among
    /// `count` records from `start` on. Says where to go on, `None` at the end.
    pub fn end_orphans(&self, start: u32, count: u32, slots: &ServerSlots) -> Option<u32> {
        self.walk(start, count, |index| {
            let record = self.record(index);
            let id = TemplateId { index, generation: record.generation() };
            if record.is_alive() && !slots.get(record.server()).is_available() {
                self.lock_of(id).end_unless(id, slots, |record| slots.get(record.server()).is_available());
            }
        })
    }

    /// Calls `look` with the records from `start` on that were ever used, `count` of them. Says where to go on, `None` at
    /// the end.
    fn walk(&self, start: u32, count: u32, mut look: impl FnMut(u32)) -> Option<u32> {
        let (mut index, mut left) = (start, count);
        while left > 0 {
            let number = (index / self.shard_capacity) as usize;
            let used = self.shards.get(number)?.used.load(Ordering::Acquire) as u32;
            let first = self.index(number, 0);
            let end = index.saturating_add(left).min(first + used);
            (index..end).for_each(&mut look);
            left -= end.saturating_sub(index);
            // What was never used is passed over at no cost.
            index = if end < first + used { end } else { first + self.shard_capacity };
        }
        (index < self.capacity()).then_some(index)
    }

    pub(super) fn key(&self) -> HashKey {
        self.key
    }

    pub(super) fn shard_capacity(&self) -> u32 {
        self.shard_capacity
    }

    /// The index of a shard's record.
    pub(super) fn index(&self, number: usize, local: u32) -> u32 {
        number as u32 * self.shard_capacity + local
    }

    pub(super) fn record(&self, index: u32) -> Record<'_, F> {
        let start = index as usize * F::RECORD_WORDS;
        Record::new(&self.records[start..start + F::RECORD_WORDS])
    }

    /// The head of the chain of a hash.
    pub(super) fn head(&self, number: usize, hash: u64) -> &AtomicU64 {
        let chain = hash as usize & (self.shard_heads as usize - 1);
        &self.heads[number * self.shard_heads as usize + chain]
    }

    pub(super) fn heap<'a>(&'a self, number: usize, length: &'a mut u32) -> Heap<'a> {
        let (count, start) = (self.shard_capacity as usize, self.index(number, 0) as usize);
        let stride = F::RECORD_WORDS;
        Heap {
            entries: &self.heaps[start..start + count],
            records: &self.records[start * stride..(start + count) * stride],
            stride,
            offset: F::ADDRESS_WORDS + PLACE,
            length,
        }
    }

    /// Takes a shard's next record that was never used; the caller has the shard's lock.
    pub(super) fn take_fresh(&self, number: usize) -> Option<u32> {
        let used = &self.shards[number].used;
        let fresh = used.load(Ordering::Relaxed);
        (fresh < u64::from(self.shard_capacity)).then(|| {
            used.store(fresh + 1, Ordering::Release);
            fresh as u32
        })
    }

    /// When a shard's first template is due; the caller has the shard's lock.
    pub(super) fn set_due(&self, number: usize, tick: u64) {
        let due = &self.shards[number].due;
        let before = due.load(Ordering::Relaxed);
        if before != tick {
            due.store(tick, Ordering::Release);
        }
        if tick < before {
            // Not only where it is less than what is read: whoever collects may just have taken that out.
            self.due.fetch_min(tick, Ordering::AcqRel);
        }
    }

    pub(super) fn count(&self, one_more: bool) {
        if one_more {
            self.alive.fetch_add(1, Ordering::Relaxed);
        } else {
            self.alive.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(all(test, not(uvs_shuttle)))]
mod tests {
    use super::super::{NewTemplate, TemplateTableFull};
    use super::*;
    use crate::conn::{Ipv4, Ipv6};

    const NOW: Instant = Instant::from_nanos(1_000_000_000);
    const LIFE: Duration = Duration::from_secs(60);

    fn key(client: u32) -> FlowKey<Ipv4> {
        FlowKey::new([u64::from(client) << 32], 6, 0, 80)
    }

    fn templates(capacity: u32) -> (Templates<Ipv4>, ServerSlots) {
        (Templates::new(capacity, HashKey::new([1, 2])).unwrap(), ServerSlots::new(1))
    }

    fn insert(
        (templates, slots): &(Templates<Ipv4>, ServerSlots),
        client: u32,
        now: Instant,
    ) -> Result<TemplateId, TemplateTableFull> {
        let new = NewTemplate { server: ServerId(0), port: 80, timeout: LIFE };
        templates.lock(&key(client)).insert(&key(client), new, slots, now)
    }

    fn is_there((templates, slots): &(Templates<Ipv4>, ServerSlots), client: u32, now: Instant) -> bool {
        templates.lock(&key(client)).find(&key(client), slots, now).is_some()
    }

    #[test]
    fn as_many_fit_as_were_asked_for() {
        for capacity in [1, 16, 1000, 100_000] {
            let all = templates(capacity);
            assert!((0..capacity).all(|client| insert(&all, client, NOW).is_ok()));
            assert_eq!(all.0.alive(), u64::from(capacity));
            assert!((0..capacity).all(|client| is_there(&all, client, NOW)), "{capacity}: nobody gave way");
            assert!(!is_there(&all, capacity, NOW));
        }
    }

    #[test]
    fn in_a_full_table_the_unassured_without_connections_give_way_and_no_others() {
        let all = templates(16);
        let ids: Vec<_> = (0..16).map(|client| insert(&all, client, NOW).unwrap()).collect();
        // One is of neither kind, some are assured, the others control connections.
        for (client, id) in (0..).zip(&ids) {
            match client {
                0 => (),
                1..8 => all.0.assure(*id),
                _ => all.0.lock(&key(client)).take_control(*id, NOW),
            }
        }
        insert(&all, 100, NOW).unwrap();
        assert!(!is_there(&all, 0, NOW), "it gave way");
        assert!((1..16).all(|client| is_there(&all, client, NOW)));
        all.0.assure(all.0.lock(&key(100)).find(&key(100), &all.1, NOW).unwrap().id);
        assert_eq!(insert(&all, 101, NOW), Err(TemplateTableFull));
        assert_eq!((all.0.alive(), all.1.get(ServerId(0)).persistent()), (16, 16));
        // Whose time is over goes first, assured or not.
        let later = NOW + LIFE;
        insert(&all, 102, later).unwrap();
        assert!((8..16).all(|client| is_there(&all, client, later)), "they control connections");
        assert_eq!((1..8).chain([100]).filter(|&client| is_there(&all, client, later)).count(), 0);
        // What is invalid goes though it is assured.
        let id = ids[8];
        all.0.assure(id);
        all.0.lock(&key(8)).invalidate(id);
        all.0.give_up_control(id);
        assert!(!is_there(&all, 8, later));
        let mut more = 200;
        while insert(&all, more, later).is_ok() && more < 300 {
            all.0.assure(all.0.lock(&key(more)).find(&key(more), &all.1, later).unwrap().id);
            more += 1;
        }
        assert_eq!(all.0.alive(), 16);
        assert_eq!((9..16).chain(200..more).filter(|&client| is_there(&all, client, later)).count(), 16);
    }

    #[test]
    fn many_are_collected_a_bounded_number_at_a_time() {
        let all = templates(100_000);
        assert!((0..50_000).all(|client| insert(&all, client, NOW).is_ok()));
        let (templates, slots) = &all;
        assert!(templates.collect(slots, NOW, 1), "nothing is due");
        let due = templates.next_deadline().unwrap();
        assert!(due > NOW + LIFE && due < NOW + LIFE + Duration::from_millis(40));
        let mut turns = 0;
        loop {
            turns += 1;
            let before = templates.alive();
            let done = templates.collect(slots, due, 1000);
            assert!(before - templates.alive() <= 1000);
            if done {
                break;
            }
        }
        assert_eq!((templates.alive(), slots.get(ServerId(0)).persistent()), (0, 0));
        assert!((50..60).contains(&turns), "{turns}");
        assert!((0..100).all(|client| insert(&all, client, due).is_ok()));
    }

    #[test]
    fn walks_pass_over_what_was_never_used() {
        let all = templates(1 << 20);
        assert!((0..10).all(|client| insert(&all, client, NOW).is_ok()));
        let (mut seen, mut steps, mut next) = (0, 0, Some(0));
        while let Some(start) = next {
            steps += 1;
            next = all.0.visit(start, 4, NOW, |_| seen += 1);
        }
        assert_eq!(seen, 10);
        assert!(steps < 10, "{steps}");
    }

    #[test]
    fn both_families_remember_what_they_were_given() {
        let templates = Templates::<Ipv6>::new(16, HashKey::new([3, 4])).unwrap();
        let slots = ServerSlots::new(1);
        let (client, vip): (IpAddr, IpAddr) = ("2001:db8::".parse().unwrap(), "fd88::100".parse().unwrap());
        let key = FlowKey::<Ipv6>::new(Ipv6::pack(client, vip).unwrap(), 17, 0, 53);
        let new = NewTemplate { server: ServerId(0), port: 53, timeout: LIFE };
        let id = templates.lock(&key).insert(&key, new, &slots, NOW).unwrap();
        templates.assure(id);
        let mut walked = Vec::new();
        templates.visit(0, 16, NOW, |template| walked.push(template));
        let expected = Walked {
            protocol: 17,
            client,
            service: (vip, 53),
            server: ServerId(0),
            server_port: 53,
            remaining: LIFE,
            assured: true,
        };
        assert_eq!(walked, [expected]);
    }
}
