//! The table: buckets, records, and the rules by which workers share them.
//!
//! A bucket is a cache line: word 0 holds the lock (bit 0) and the index + 1 of an overflow bucket (upper
//! half), words 1 to 7 hold entries, a 16-bit tag and the index + 1 of a record. A chain of overflow buckets is
//! kept dense: removing an entry moves the chain's last one into its place, and an overflow bucket that
//! becomes empty goes back to its pool. Readers take no lock. One that loses sight of an entry while it moves
//! only gets a miss, and a miss is looked up again under the lock before anything follows from it.

use std::io;
use std::marker::PhantomData;

use crate::persistence::{TemplateId, Templates};
use crate::service::{ServerId, ServerSlots};
use crate::sys::memory::atomic::{AtomicU64, Ordering, spin_loop};
use crate::sys::memory::{Words, prefetch};
use crate::types::{ForwardingMethod, HashKey, Instant};

use super::bucket::BucketGuard;
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
/// Set in word 0 of a bucket while somebody changes the bucket.
pub(super) const LOCKED: u64 = 1;
/// Where the overflow bucket's index + 1 begins in word 0.
pub(super) const OVERFLOW_SHIFT: u32 = 32;
/// Where the tag of an entry, and of a hash, begins.
pub(super) const TAG_SHIFT: u32 = 48;

/// Names one use of one record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ConnectionId {
    /// Index of the record.
    pub index: u32,
    /// Which of its uses.
    pub generation: u32,
}

/// What a probe without lock saw: perhaps the index of the record. Only ever a hint.
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
    /// Port at the real server.
    pub port: u16,
    /// Forwarding method.
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
        let capacity = capacity.clamp(1, NONE - 1);
        // Two to four entries to a bucket of seven when full: one in fifty overflows at worst.
        let buckets = (u64::from(capacity) / 3).next_power_of_two().max(16);
        let overflow = u32::try_from(buckets / 8 + 64).unwrap_or(NONE - 1);
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

    /// Asks for the bucket of a record's flow to be brought closer.
    #[inline]
    pub(super) fn prefetch_bucket_of(&self, index: u32) {
        self.prefetch_bucket(self.record(index).hash(self.key));
    }

    #[inline]
    fn bucket_start(&self, hash: u64) -> usize {
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
        if let Some(index) = hint.0.checked_sub(1) {
            prefetch(&self.records[index as usize * F::RECORD_WORDS]);
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

    /// The flow's connection, if it is alive and before its deadline: the hinted one if it is the right one,
    /// else whatever the bucket holds. Takes no lock, so a miss may be wrong.
    #[inline]
    pub fn find(&self, hint: Hint, key: &FlowKey<F>, hash: u64, now: Instant) -> Option<u32> {
        if let Some(index) = hint.0.checked_sub(1)
            && self.is_live(index, key, now)
        {
            return Some(index);
        }
        self.search(key, hash, now)
    }

    #[inline]
    fn is_live(&self, index: u32, key: &FlowKey<F>, now: Instant) -> bool {
        let record = self.record(index);
        record.has_key(key) && record.lifecycle().is_alive() && record.deadline() > now
    }

    pub(super) fn search(&self, key: &FlowKey<F>, hash: u64, now: Instant) -> Option<u32> {
        let tag = hash >> TAG_SHIFT;
        let mut bucket = Some(self.bucket(hash));
        while let Some(words) = bucket {
            for entry in &words[1..] {
                let entry = entry.load(Ordering::Acquire);
                if entry >> TAG_SHIFT == tag
                    && let Some(index) = (entry as u32).checked_sub(1)
                    && self.is_live(index, key, now)
                {
                    return Some(index);
                }
            }
            bucket = self.overflow_of(words);
        }
        None
    }

    /// Locks the flow's bucket.
    pub fn lock(&self, hash: u64) -> BucketGuard<'_, F> {
        let head = self.bucket(hash);
        loop {
            if head[0].fetch_or(LOCKED, Ordering::Acquire) & LOCKED == 0 {
                return BucketGuard::new(self, hash);
            }
            while head[0].load(Ordering::Relaxed) & LOCKED != 0 {
                spin_loop();
            }
        }
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
        if record.lifecycle().generation != id.generation || !record.lifecycle().is_alive() {
            return false;
        }
        // The key is stable while the record is alive, and once it is not, the lock's `remove` says so.
        let hash = record.hash(self.key);
        let guard = self.lock(hash);
        guard.remove(id, slots, view, epochs)
    }

    /// Whether so few records are left that something should give way: less than one in 32.
    #[inline]
    pub fn is_nearly_full(&self) -> bool {
        self.alive() >= u64::from(self.capacity - self.capacity / 32)
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

    fn connection(deadline: Instant) -> NewConnection {
        NewConnection {
            server: ServerId(0),
            port: 80,
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
            let guard = self.table.lock(self.table.hash(key));
            let index = match guard.find(key, CLOCK) {
                Some(index) => index,
                None => guard.insert(key, connection(LATER), self.slots, &mut self.view, self.epochs)?,
            };
            Ok(ConnectionId { index, generation: self.table.record(index).lifecycle().generation })
        }

        fn find(&self, key: &FlowKey<Ipv4>, now: Instant) -> Option<u32> {
            let hash = self.table.hash(key);
            self.table.find(self.table.probe(hash), key, hash, now)
        }

        fn remove(&mut self, id: ConnectionId) -> bool {
            self.table.remove(id, self.slots, &mut self.view, self.epochs)
        }
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

    proptest::proptest! {
        /// Against a plain map, with few buckets so that chains grow and shrink.
        #[test]
        fn the_table_is_a_map(operations in proptest::collection::vec((0_u64..120, proptest::bool::ANY), 1..600)) {
            with_worker(100, |mut worker| {
                let mut model = std::collections::HashMap::new();
                for (number, insert) in operations {
                    if insert {
                        match worker.insert(&key(number)) {
                            Ok(id) => assert_eq!(*model.entry(number).or_insert(id), id),
                            Err(TableFull) => assert!(model.len() >= 100 && !model.contains_key(&number)),
                        }
                    } else if let Some(id) = model.remove(&number) {
                        assert!(worker.remove(id));
                        worker.epochs.advance();
                    }
                    for number in 0..120 {
                        let found = worker.find(&key(number), CLOCK);
                        assert_eq!(found, model.get(&number).map(|id| id.index), "{number}");
                    }
                }
                assert_eq!(worker.table.alive(), model.len() as u64);
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
            let key = key((random >> 33) % 40);
            if random >> 63 == 0 {
                let _ = worker.insert(&key);
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
