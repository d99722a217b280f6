//! The table: buckets, records, and the rules by which workers share them.
//!
//! A bucket is a cache line: word 0 holds the lock (bit 0) and the index + 1 of an overflow bucket (upper
//! half), words 1 to 7 hold entries, a 16-bit tag and the index + 1 of a record. A chain of overflow buckets is
//! kept dense: removing an entry moves the chain's last one into its place, and an overflow bucket that
//! becomes empty goes back to its pool. Readers take no lock. One that loses sight of an entry while it moves
//! only gets a miss, and a miss is looked up again under the lock before anything follows from it.
//!
//! A masqueraded connection has a second entry, marked, in the bucket of what its replies carry. The one word that says
//! whether the record is alive makes both visible at once, and ends both at once: it is set once both entries are
//! there, and cleared before either goes. Where both buckets have to be locked, the first in memory is locked first.
//!
//! Two connections may have the same replies: a client that uses one port of its own towards two virtual services, both
//! of which chose the same real server and port. Nobody can tell the two apart by a reply, and the real server takes
//! them for one. The younger gets the replies, as in the kernel, whose chains begin with the youngest; here it keeps them
//! to itself even when it ends first.

use std::io;
use std::marker::PhantomData;
use std::net::IpAddr;

use crate::persistence::{TemplateId, Templates};
use crate::service::{ServerId, ServerSlots};
use crate::sys::memory::atomic::{AtomicU64, Ordering};
use crate::sys::memory::{Words, prefetch};
use crate::types::{ForwardingMethod, HashKey, Instant};

use super::epoch::Epochs;
use super::key::{FlowFamily, FlowKey};
use super::pool::{FreeStack, NONE, Pieces};
use super::record::{Connection, Flags, Lifecycle};
use super::state::State;
use super::timer::TimerPool;

/// Words in a bucket: one cache line.
const BUCKET_WORDS: usize = 8;
/// Free records that a worker keeps to itself, to meet the others on the shared list less often.
const LOCAL_FREE: usize = 64;
/// Where the overflow bucket's index + 1 begins in word 0.
pub(super) const OVERFLOW_SHIFT: u32 = 32;
/// Where the tag of an entry, and of a hash, begins.
pub(super) const TAG_SHIFT: u32 = 48;
/// Set in the lower half of an entry that leads from replies to their connection.
const REPLY: u32 = 1 << 31;
/// Most records, so that an index + 1 leaves room for the mark.
const MAX_CAPACITY: u32 = REPLY - 2;

/// Names one use of one record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ConnectionId {
    /// Index of the record.
    pub index: u32,
    /// Which of its uses.
    pub generation: u32,
}

/// A connection that was found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Found {
    /// Index of the record.
    pub index: u32,
    /// Found by what its replies carry: the packet comes from the real server.
    pub is_reply: bool,
}

impl Found {
    /// The lower half of its entry.
    pub(super) const fn to_entry(self) -> u32 {
        (self.index + 1) | if self.is_reply { REPLY } else { 0 }
    }

    /// What an entry's lower half leads to; `None` where that is empty.
    #[inline]
    fn from_entry(entry: u32) -> Option<Self> {
        let index = (entry & !REPLY).checked_sub(1)?;
        Some(Self { index, is_reply: entry & REPLY != 0 })
    }
}

/// What a probe without lock saw: perhaps the entry of the record. Only ever a hint.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Hint(u32);

impl Hint {
    /// Nothing seen.
    pub const NONE: Self = Self(0);
}

/// What a new connection is made of.
#[derive(Clone, Copy, Debug)]
pub struct NewConnection {
    /// The real server.
    pub server: ServerId,
    /// Its address.
    pub address: IpAddr,
    /// Port at the real server.
    pub port: u16,
    /// Forwarding method. [`Masquerading`](ForwardingMethod::Masquerading) makes replies lead to the connection, too.
    pub method: ForwardingMethod,
    /// Flags; `ALIVE` is added.
    pub flags: Flags,
    /// First state.
    pub state: State,
    /// When it ends unless a packet comes.
    pub deadline: Instant,
    /// The template that controls it, which counts it already.
    pub control: Option<TemplateId>,
}

/// There is no free record, overflow bucket or timer for another connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the connection table is full")]
pub struct TableFull;

/// The connections of one address family with their templates, shared by all workers.
#[derive(Debug)]
pub struct Table<F: FlowFamily> {
    pub(super) key: HashKey,
    buckets: Words,
    bucket_mask: u64,
    pub(super) overflow: Pieces,
    records: Words,
    capacity: u32,
    free: FreeStack,
    fresh: AtomicU64,
    pub(super) alive: AtomicU64,
    pub(super) timers: TimerPool,
    pub(super) templates: Templates<F>,
    family: PhantomData<F>,
}

/// What one worker keeps of a table: free records, and dead ones that others may still be looking at.
#[derive(Debug)]
pub struct WorkerView {
    pub(super) free: Vec<u32>,
    limbo_head: u32,
    limbo_tail: u32,
    limbo_length: u32,
}

impl Default for WorkerView {
    fn default() -> Self {
        Self { free: Vec::with_capacity(LOCAL_FREE), limbo_head: NONE, limbo_tail: NONE, limbo_length: 0 }
    }
}

impl<F: FlowFamily> Table<F> {
    /// A table for `capacity` connections and as many templates, shared by `workers` workers, with its secret.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(capacity: u32, workers: usize, key: HashKey) -> io::Result<Self> {
        let capacity = capacity.clamp(1, MAX_CAPACITY);
        // Up to three entries to a bucket of seven when full: one in eighty overflows at worst; of masqueraded
        // connections twice as many: then one in four does.
        let buckets = (u64::from(capacity) / 3).next_power_of_two().max(16);
        let overflow = u32::try_from(buckets * 3 / 8 + 64).unwrap_or(NONE - 1);
        Ok(Self {
            key,
            buckets: Words::new(buckets as usize * BUCKET_WORDS)?,
            bucket_mask: buckets - 1,
            overflow: Pieces::new(overflow, BUCKET_WORDS)?,
            records: Words::new(capacity as usize * F::RECORD_WORDS)?,
            capacity,
            free: FreeStack::new(),
            fresh: AtomicU64::new(0),
            alive: AtomicU64::new(0),
            timers: TimerPool::new(capacity, workers)?,
            templates: Templates::new(capacity, key)?,
            family: PhantomData,
        })
    }

    /// Most connections that fit.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// The templates that control connections of this table.
    #[inline]
    pub fn templates(&self) -> &Templates<F> {
        &self.templates
    }

    /// Bytes of memory that the table spans when it is full: buckets, records and timers; not its templates.
    pub fn memory(&self) -> usize {
        size_of_val(&*self.buckets)
            + size_of_val(&*self.records)
            + self.overflow.memory()
            + self.timers.memory()
    }

    /// Number of buckets, as `ipvsadm -L` prints the table's size.
    pub fn buckets(&self) -> u64 {
        self.bucket_mask + 1
    }

    /// Connections in the table, those past their deadline and not collected yet included.
    pub fn alive(&self) -> u64 {
        self.alive.load(Ordering::Relaxed)
    }

    /// The hash that places `key`.
    #[inline]
    pub fn hash(&self, key: &FlowKey<F>) -> u64 {
        key.hash(self.key)
    }

    /// Asks for the bucket of `hash` to be brought closer.
    #[inline]
    pub fn prefetch_bucket(&self, hash: u64) {
        prefetch(&self.buckets[self.bucket_start(hash)]);
    }

    /// Asks for a record to be brought closer.
    #[inline]
    pub(super) fn prefetch_record(&self, index: u32) {
        prefetch(&self.records[index as usize * F::RECORD_WORDS]);
    }

    /// Asks for the buckets that lead to a record to be brought closer.
    #[inline]
    pub(super) fn prefetch_buckets_of(&self, index: u32) {
        let record = self.record(index);
        self.prefetch_bucket(self.hash(&record.key()));
        if record.lifecycle().method == ForwardingMethod::Masquerading {
            self.prefetch_bucket(self.hash(&record.reply_key()));
        }
    }

    #[inline]
    pub(super) fn bucket_start(&self, hash: u64) -> usize {
        // The low bits: the tag takes the high ones.
        (hash & self.bucket_mask) as usize * BUCKET_WORDS
    }

    #[inline]
    pub(super) fn bucket(&self, hash: u64) -> &[AtomicU64] {
        let start = self.bucket_start(hash);
        &self.buckets[start..start + BUCKET_WORDS]
    }

    #[inline]
    pub(super) fn overflow_of(&self, bucket: &[AtomicU64]) -> Option<&[AtomicU64]> {
        let index = (bucket[0].load(Ordering::Acquire) >> OVERFLOW_SHIFT) as u32;
        index.checked_sub(1).map(|index| self.overflow.get(index))
    }

    /// A record whose tag fits, brought closer. No more than a hint: neither that it is the flow's, nor,
    /// without one, that the flow is unknown.
    #[inline]
    pub fn probe(&self, hash: u64) -> Hint {
        // An entry with the flow's tag differs from it only below the tag. No branch on which one of the seven
        // it is: nobody could foresee that.
        let tag = hash >> TAG_SHIFT << TAG_SHIFT;
        let nearest = self.bucket(hash)[1..]
            .iter()
            .map(|entry| entry.load(Ordering::Acquire) ^ tag)
            .fold(u64::MAX, u64::min);
        if nearest >> TAG_SHIFT != 0 {
            return Hint::NONE;
        }
        let hint = Hint(nearest as u32);
        if let Some(found) = Found::from_entry(hint.0) {
            self.prefetch_record(found.index);
        }
        hint
    }

    /// A record by its index.
    ///
    /// # Panics
    /// For an index beyond the table: an error in the program.
    #[inline]
    pub fn record(&self, index: u32) -> Connection<'_, F> {
        let start = index as usize * F::RECORD_WORDS;
        Connection::new(&self.records[start..start + F::RECORD_WORDS])
    }

    /// The connection of a packet, if it is alive and before its deadline: the hinted one if it is the right one,
    /// else whatever the bucket holds. Takes no lock, so a miss may be wrong.
    #[inline]
    pub fn find(&self, hint: Hint, key: &FlowKey<F>, hash: u64, now: Instant) -> Option<Found> {
        if let Some(found) = Found::from_entry(hint.0)
            && self.is_live(found, key, now)
        {
            return Some(found);
        }
        self.search(hash, |found| self.is_live(found, key, now))
    }

    #[inline]
    pub(super) fn is_live(&self, found: Found, key: &FlowKey<F>, now: Instant) -> bool {
        let record = self.record(found.index);
        let has_key = if found.is_reply { record.has_reply_key(key) } else { record.has_key(key) };
        has_key && record.lifecycle().is_alive() && record.deadline() > now
    }

    /// The first of those whose tag fits that is the right one.
    pub(super) fn search(&self, hash: u64, is_right: impl Fn(Found) -> bool) -> Option<Found> {
        let tag = hash >> TAG_SHIFT;
        let mut bucket = Some(self.bucket(hash));
        while let Some(words) = bucket {
            for entry in &words[1..] {
                let entry = entry.load(Ordering::Acquire);
                if entry >> TAG_SHIFT == tag
                    && let Some(found) = Found::from_entry(entry as u32)
                    && is_right(found)
                {
                    return Some(found);
                }
            }
            bucket = self.overflow_of(words);
        }
        None
    }

    /// Takes a record that nobody uses and nobody looks at.
    pub(super) fn allocate(&self, view: &mut WorkerView, epochs: &Epochs) -> Option<u32> {
        if view.free.is_empty() {
            self.reclaim(view, epochs);
        }
        if let Some(index) = view.free.pop() {
            return Some(index);
        }
        let take = |fresh: u64| (fresh < u64::from(self.capacity)).then_some(fresh + 1);
        match self.fresh.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take) {
            Ok(fresh) => Some(fresh as u32),
            Err(_) => self.free.pop(|index| self.record(index).link()),
        }
    }

    /// Moves dead records that nobody can be looking at any more to the free ones. Call it now and then, also
    /// from an idle worker. Bounded work; says whether it is done, or has to wait for others.
    pub fn reclaim(&self, view: &mut WorkerView, epochs: &Epochs) -> bool {
        if view.limbo_length == 0 {
            return true;
        }
        let mut horizon = epochs.horizon() as u32;
        for _ in 0..4 * LOCAL_FREE {
            if view.limbo_head == NONE {
                return true;
            }
            let index = view.limbo_head;
            let link = self.record(index).link().load(Ordering::Relaxed);
            let stamp = (link >> 32) as u32;
            let has_passed = |horizon: u32| horizon.wrapping_sub(stamp) as i32 > 0;
            if !has_passed(horizon) && stamp == epochs.stamp() as u32 {
                // Nothing passes the present epoch: begin another.
                epochs.advance();
                horizon = epochs.horizon() as u32;
            }
            if !has_passed(horizon) {
                return true;
            }
            view.limbo_head = link as u32;
            view.limbo_length -= 1;
            if view.free.len() < LOCAL_FREE {
                view.free.push(index);
            } else {
                self.free.push(|index| self.record(index).link(), index);
            }
        }
        false
    }

    /// As [`reclaim`](Self::reclaim) until it is done, for one that makes no connections: all of them for others.
    pub fn give_back(&self, view: &mut WorkerView, epochs: &Epochs) {
        while !self.reclaim(view, epochs) {}
        for index in view.free.drain(..) {
            self.free.push(|index| self.record(index).link(), index);
        }
    }

    pub(super) fn bury(&self, view: &mut WorkerView, epochs: &Epochs, index: u32) {
        let stamp = epochs.stamp() & u64::from(u32::MAX);
        self.record(index).link().store(stamp << 32 | u64::from(NONE), Ordering::Relaxed);
        if view.limbo_head == NONE {
            view.limbo_head = index;
        } else {
            let tail = self.record(view.limbo_tail).link();
            tail.store(
                tail.load(Ordering::Relaxed) & !u64::from(u32::MAX) | u64::from(index),
                Ordering::Relaxed,
            );
        }
        view.limbo_tail = index;
        view.limbo_length += 1;
    }

    /// Ends a connection, if it is still the one with that generation; says whether it was.
    /// The real server's counts are adjusted.
    pub fn remove(
        &self,
        id: ConnectionId,
        slots: &ServerSlots,
        view: &mut WorkerView,
        epochs: &Epochs,
    ) -> bool {
        let record = self.record(id.index);
        let lifecycle = record.lifecycle();
        if lifecycle.generation != id.generation || !lifecycle.is_alive() {
            return false;
        }
        // The keys are stable while the record is alive, and once it is not, the locks' `remove` says so.
        let hash = self.hash(&record.key());
        let guard = match lifecycle.method {
            ForwardingMethod::Masquerading => self.lock_both(hash, self.hash(&record.reply_key())),
            _ => self.lock(hash),
        };
        guard.remove(id, slots, view, epochs)
    }

    /// Whether so few records are left that something should give way: less than one in 32.
    #[inline]
    pub fn is_nearly_full(&self) -> bool {
        self.alive() >= u64::from(self.capacity - self.capacity / 32)
    }

    /// Whether no entry is in any bucket and no bucket is locked.
    #[cfg(test)]
    pub(super) fn is_blank(&self) -> bool {
        self.buckets.iter().all(|word| word.load(Ordering::Relaxed) == 0)
    }

    /// Makes room: looks at a few records, from a place that `random` picks, and ends those that `may_go` gives up, at
    /// most two, with the templates that were made for them alone. Says how many. Bounded work; takes the lock of the
    /// record's own bucket, then that of its template's shard, so the caller must hold none.
    pub fn evict(
        &self,
        random: u64,
        slots: &ServerSlots,
        view: &mut WorkerView,
        epochs: &Epochs,
        may_go: impl Fn(Lifecycle, Connection<'_, F>) -> bool,
    ) -> usize {
        const SAMPLE: u32 = 16;
        const MOST: usize = 2;
        let start = ((u128::from(random) * u128::from(self.capacity)) >> 64) as u32;
        let mut ended = 0;
        for step in 0..SAMPLE {
            let index = (u64::from(start) + u64::from(step)) % u64::from(self.capacity);
            let record = self.record(index as u32);
            let lifecycle = record.lifecycle();
            if !lifecycle.is_alive() || !may_go(lifecycle, record) {
                continue;
            }
            let id = ConnectionId { index: index as u32, generation: lifecycle.generation };
            let control = record.control();
            if !self.remove(id, slots, view, epochs) {
                continue;
            }
            if let Some(template) = control {
                self.templates.drop_unassured(template, slots);
            }
            ended += 1;
            if ended == MOST {
                break;
            }
        }
        ended
    }

    /// Visits the records from `start` on, at most `count` of them, and calls `visit` with those alive and
    /// before their deadline. Says where to go on, `None` at the end. Takes no lock and holds nothing up.
    pub fn visit(
        &self,
        start: u32,
        count: u32,
        now: Instant,
        mut visit: impl FnMut(u32, Lifecycle, Connection<'_, F>),
    ) -> Option<u32> {
        let used = (self.fresh.load(Ordering::Acquire) as u32).min(self.capacity);
        let end = start.saturating_add(count).min(used);
        for index in start..end {
            let record = self.record(index);
            let lifecycle = record.lifecycle();
            if lifecycle.is_alive() && record.deadline() > now {
                visit(index, lifecycle, record);
            }
        }
        (end < used).then_some(end)
    }
}

#[cfg(test)]
mod tests {
    use super::super::key::Ipv4;
    use super::*;

    const CLOCK: Instant = Instant::from_nanos(1_000);
    const LATER: Instant = Instant::from_nanos(2_000);
    const SERVER: u32 = 0x0a58_020b;

    fn connection(deadline: Instant) -> NewConnection {
        NewConnection {
            server: ServerId(0),
            address: Ipv4::ip(SERVER),
            port: 8080,
            method: ForwardingMethod::DirectRouting,
            flags: Flags::INACTIVE,
            state: State::NONE,
            deadline,
            control: None,
        }
    }

    struct Worker<'a> {
        table: &'a Table<Ipv4>,
        slots: &'a ServerSlots,
        epochs: &'a Epochs,
        view: WorkerView,
        number: usize,
    }

    impl Worker<'_> {
        fn insert(&mut self, key: &FlowKey<Ipv4>) -> Result<ConnectionId, TableFull> {
            self.insert_by(key, ForwardingMethod::DirectRouting)
        }

        fn insert_by(
            &mut self,
            key: &FlowKey<Ipv4>,
            method: ForwardingMethod,
        ) -> Result<ConnectionId, TableFull> {
            let hash = self.table.hash(key);
            let guard = match method {
                ForwardingMethod::Masquerading => self.table.lock_both(hash, self.table.hash(&reply(key))),
                _ => self.table.lock(hash),
            };
            let index = match guard.find(key, CLOCK) {
                Some(Found { index, is_reply }) => {
                    assert!(!is_reply);
                    index
                }
                None => {
                    let new = NewConnection { method, ..connection(LATER) };
                    guard.insert(key, new, self.slots, &mut self.view, self.epochs)?
                }
            };
            Ok(ConnectionId { index, generation: self.table.record(index).lifecycle().generation })
        }

        fn look_up(&self, key: &FlowKey<Ipv4>, now: Instant) -> Option<Found> {
            let hash = self.table.hash(key);
            self.table.find(self.table.probe(hash), key, hash, now)
        }

        /// The flow's connection, looked up by what its client sends.
        fn find(&self, key: &FlowKey<Ipv4>, now: Instant) -> Option<u32> {
            let found = self.look_up(key, now)?;
            assert!(!found.is_reply);
            Some(found.index)
        }

        /// The flow's connection, looked up by what its real server sends.
        fn find_by_reply(&self, key: &FlowKey<Ipv4>, now: Instant) -> Option<u32> {
            let found = self.look_up(&reply(key), now)?;
            assert!(found.is_reply);
            Some(found.index)
        }

        fn remove(&mut self, id: ConnectionId) -> bool {
            self.table.remove(id, self.slots, &mut self.view, self.epochs)
        }
    }

    /// What the real server of [`connection`] answers to a flow.
    fn reply(key: &FlowKey<Ipv4>) -> FlowKey<Ipv4> {
        key.reply(SERVER, 8080)
    }

    fn key(number: u64) -> FlowKey<Ipv4> {
        FlowKey::new([number >> 16], 6, number as u16, 80)
    }

    fn with_worker(capacity: u32, test: impl FnOnce(Worker<'_>)) {
        let (table, slots) = (Table::new(capacity, 1, HashKey::new([3, 4])).unwrap(), ServerSlots::new(1));
        let epochs = Epochs::new();
        test(Worker {
            table: &table,
            slots: &slots,
            epochs: &epochs,
            view: WorkerView::default(),
            number: 0,
        });
    }

    #[test]
    fn a_full_table_finds_everything_refuses_more_and_empties() {
        with_worker(10_000, |mut worker| {
            let ids: Vec<_> = (0..10_000).map(|n| worker.insert(&key(n)).unwrap()).collect();
            assert_eq!(worker.insert(&key(10_000)), Err(TableFull));
            for (number, id) in ids.iter().enumerate() {
                assert_eq!(worker.find(&key(number as u64), CLOCK), Some(id.index));
            }
            assert_eq!(worker.find(&key(10_000), CLOCK), None);
            assert_eq!(worker.slots.get(ServerId(0)).inactive(), 10_000);
            for id in &ids {
                assert!(worker.remove(*id));
                assert!(!worker.remove(*id), "twice");
            }
            assert_eq!((worker.table.alive(), worker.slots.get(ServerId(0)).connections()), (0, 0));
            assert!((0..10_000).all(|n| worker.find(&key(n), CLOCK).is_none()));
            for number in 20_000..30_000 {
                worker.insert(&key(number)).unwrap();
            }
        });
    }

    #[test]
    fn past_its_deadline_a_connection_counts_as_absent() {
        with_worker(10, |mut worker| {
            let id = worker.insert(&key(1)).unwrap();
            assert_eq!(worker.find(&key(1), LATER), None);
            let guard = worker.table.lock(worker.table.hash(&key(1)));
            assert_eq!(guard.find(&key(1), LATER), None);
            assert_eq!(guard.find_expired(&key(1)), Some(id));
        });
    }

    #[test]
    fn a_record_rests_until_everybody_passed_a_batch() {
        with_worker(1, |mut worker| {
            worker.epochs.enter(3);
            let id = worker.insert(&key(1)).unwrap();
            worker.remove(id);
            assert_eq!(worker.insert(&key(2)), Err(TableFull), "worker 3 may still look at it");
            worker.epochs.enter(3);
            assert!(worker.insert(&key(2)).is_ok());
        });
    }

    #[test]
    fn what_one_worker_removed_others_get_once_it_has_passed() {
        with_worker(5000, |mut worker| {
            let ids: Vec<_> = (0..5000).map(|n| worker.insert(&key(n)).unwrap()).collect();
            ids.iter().for_each(|id| assert!(worker.remove(*id)));
            worker.epochs.advance();
            let mut turns = 0;
            while !worker.table.reclaim(&mut worker.view, worker.epochs) {
                turns += 1;
            }
            assert!((5..100).contains(&turns), "some at a time, and it says when it is done: {turns}");
            worker.table.give_back(&mut worker.view, worker.epochs);
            let (table, slots, epochs) = (worker.table, worker.slots, worker.epochs);
            let mut other = Worker { table, slots, epochs, view: WorkerView::default(), number: 1 };
            assert!((5000..10_000).all(|number| other.insert(&key(number)).is_ok()));
        });
    }

    #[test]
    fn visiting_goes_in_steps_over_what_lives() {
        with_worker(1000, |mut worker| {
            let ids: Vec<_> = (0..1000).map(|n| worker.insert(&key(n)).unwrap()).collect();
            ids.iter().step_by(2).for_each(|id| assert!(worker.remove(*id)));
            let (mut seen, mut next) = (Vec::new(), Some(0));
            while let Some(start) = next {
                next = worker.table.visit(start, 64, CLOCK, |index, _, record| {
                    seen.push((index, record.ports().0));
                });
            }
            assert_eq!(seen.len(), 500);
            assert!(seen.iter().all(|(_, port)| port % 2 == 1));
            worker.table.visit(0, 1000, LATER, |_, _, _| panic!("past its deadline"));
        });
    }

    #[test]
    fn replies_lead_to_masqueraded_connections_alone() {
        with_worker(10, |mut worker| {
            let direct = worker.insert(&key(1)).unwrap();
            let id = worker.insert_by(&key(2), ForwardingMethod::Masquerading).unwrap();
            assert_eq!(worker.find(&key(1), CLOCK), Some(direct.index));
            assert_eq!(worker.find_by_reply(&key(1), CLOCK), None);
            assert_eq!(worker.find(&key(2), CLOCK), Some(id.index));
            assert_eq!(worker.find_by_reply(&key(2), CLOCK), Some(id.index));
            assert_eq!(worker.find_by_reply(&key(2), LATER), None, "past its deadline");
            let record = worker.table.record(id.index);
            assert_eq!((record.key(), record.reply_key()), (key(2), reply(&key(2))));
            assert_eq!(record.target(), (Ipv4::ip(SERVER), 8080));
            assert!(worker.remove(id));
            assert_eq!(worker.find_by_reply(&key(2), CLOCK), None);
            assert_eq!(worker.find(&key(2), CLOCK), None);
        });
    }

    /// One port of a client's towards two virtual services that chose the same real server.
    #[test]
    fn of_two_connections_with_the_same_replies_the_younger_gets_them() {
        with_worker(10, |mut worker| {
            let other = FlowKey { addresses: [1], ..key(1) };
            assert_eq!(reply(&other), reply(&key(1)));
            let older = worker.insert_by(&key(1), ForwardingMethod::Masquerading).unwrap();
            let younger = worker.insert_by(&other, ForwardingMethod::Masquerading).unwrap();
            assert_eq!(worker.find_by_reply(&key(1), CLOCK), Some(younger.index));
            assert_eq!(worker.find(&key(1), CLOCK), Some(older.index));
            assert!(worker.remove(older));
            assert_eq!(worker.find_by_reply(&key(1), CLOCK), Some(younger.index));
            assert!(worker.remove(younger));
            assert_eq!(worker.find_by_reply(&key(1), CLOCK), None);
            assert!(worker.table.is_blank(), "an entry was left");
        });
    }

    #[test]
    fn a_table_full_of_masqueraded_connections_finds_them_both_ways() {
        // The most entries to a bucket that there can be: just below the next size.
        let capacity = 3 * 4096 + 2;
        with_worker(capacity, |mut worker| {
            assert_eq!(worker.table.buckets(), 4096);
            for number in 0..u64::from(capacity) {
                worker.insert_by(&key(number), ForwardingMethod::Masquerading).unwrap();
            }
            for number in 0..u64::from(capacity) {
                let index = worker.find(&key(number), CLOCK);
                assert!(index.is_some() && worker.find_by_reply(&key(number), CLOCK) == index);
            }
        });
    }

    proptest::proptest! {
        /// Against plain maps, with few buckets so that chains grow and shrink. Half of the flows share what their
        /// replies carry with one other.
        #[test]
        fn the_table_is_a_map(
            operations in proptest::collection::vec((0_u64..120, proptest::bool::ANY, proptest::bool::ANY), 1..600)
        ) {
            use std::collections::HashMap;
            let key = |number: u64| FlowKey { addresses: [number / 60], ..key(number % 60) };
            with_worker(100, |mut worker| {
                let (mut flows, mut replies) = (HashMap::new(), HashMap::new());
                for (number, insert, masquerade) in operations {
                    if insert {
                        let method = if masquerade {
                            ForwardingMethod::Masquerading
                        } else {
                            ForwardingMethod::DirectRouting
                        };
                        let known = flows.contains_key(&number);
                        match worker.insert_by(&key(number), method) {
                            Ok(id) => {
                                assert_eq!(*flows.entry(number).or_insert(id), id);
                                if masquerade && !known {
                                    replies.insert(number % 60, id);
                                }
                            }
                            Err(TableFull) => assert!(flows.len() >= 100 && !known),
                        }
                    } else if let Some(id) = flows.remove(&number) {
                        assert!(worker.remove(id));
                        replies.retain(|_, reply| *reply != id);
                        worker.epochs.advance();
                    }
                    for number in 0..120 {
                        let found = worker.find(&key(number), CLOCK);
                        assert_eq!(found, flows.get(&number).map(|id| id.index), "{number}");
                        let found = worker.find_by_reply(&key(number), CLOCK);
                        assert_eq!(found, replies.get(&(number % 60)).map(|id| id.index), "{number}");
                    }
                }
                assert_eq!(worker.table.alive(), flows.len() as u64);
            });
        }
    }

    /// Workers make, find and end the same few flows. At the end the counts are those of what is left, and a
    /// flow never has two connections.
    #[test]
    fn workers_agree() {
        let (table, slots) = (Table::<Ipv4>::new(64, 4, HashKey::new([5, 6])).unwrap(), ServerSlots::new(1));
        let epochs = Epochs::new();
        let views: Vec<WorkerView> = std::thread::scope(|scope| {
            let run = |number| {
                let (table, slots, epochs) = (&table, &slots, &epochs);
                scope.spawn(move || {
                    churn(Worker { table, slots, epochs, view: WorkerView::default(), number })
                })
            };
            let threads: Vec<_> = (0..4).map(run).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let mut flows = std::collections::HashSet::new();
        table.visit(0, 64, CLOCK, |_, _, record| {
            assert!(flows.insert(record.ports()), "{:?}", record.ports())
        });
        let looker =
            Worker { table: &table, slots: &slots, epochs: &epochs, view: Default::default(), number: 0 };
        for number in 0..40 {
            let found = looker.find(&key(number), CLOCK);
            assert_eq!(
                looker.find_by_reply(&key(number), CLOCK),
                found.filter(|_| number % 2 == 1),
                "{number}"
            );
        }
        assert_eq!(table.alive(), flows.len() as u64);
        assert_eq!(slots.get(ServerId(0)).connections() as usize, flows.len());
        // Everything that is not alive can be used again: nothing leaked.
        let mut made = 0;
        for view in views {
            let mut worker = Worker { table: &table, slots: &slots, epochs: &epochs, view, number: 0 };
            while worker.insert(&key(1000 + made)).is_ok() {
                made += 1;
            }
        }
        assert_eq!(made as usize + flows.len(), 64);
    }

    fn churn(mut worker: Worker<'_>) -> WorkerView {
        let mut random = worker.number as u64 + 1;
        for _ in 0..30_000 {
            worker.epochs.enter(worker.number);
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let number = (random >> 33) % 40;
            let key = key(number);
            if random >> 63 == 0 {
                let methods = [ForwardingMethod::DirectRouting, ForwardingMethod::Masquerading];
                let _ = worker.insert_by(&key, methods[number as usize % 2]);
            } else if let Some(index) = worker.find(&key, CLOCK) {
                let record = worker.table.record(index);
                let generation = record.lifecycle().generation;
                if record.has_key(&key) && record.lifecycle().is_alive() {
                    worker.remove(ConnectionId { index, generation });
                }
            }
            worker.table.reclaim(&mut worker.view, worker.epochs);
        }
        worker.epochs.leave(worker.number);
        worker.view
    }
}
