//! A bucket while it is locked: connections made and removed.

use crate::service::ServerSlots;
use crate::sys::memory::atomic::{AtomicU64, Ordering};
use crate::types::Instant;

use super::epoch::Epochs;
use super::key::{FlowFamily, FlowKey};
use super::record::{Flags, Lifecycle};
use super::state::State;
use super::table::{
    ConnectionId, LOCKED, NewConnection, OVERFLOW_SHIFT, TAG_SHIFT, Table, TableFull, WorkerView,
};

/// A locked bucket.
#[derive(Debug)]
pub struct BucketGuard<'a, F: FlowFamily> {
    table: &'a Table<F>,
    hash: u64,
}

impl<'a, F: FlowFamily> BucketGuard<'a, F> {
    /// The bucket of `hash`, which the caller has locked.
    pub(super) fn new(table: &'a Table<F>, hash: u64) -> Self {
        Self { table, hash }
    }

    /// The flow's connection, if it is alive and before its deadline. Under the lock a miss is final.
    pub fn find(&self, key: &FlowKey<F>, now: Instant) -> Option<u32> {
        self.table.search(key, self.hash, now)
    }

    /// The flow's connection past its deadline, which must go before another takes its place.
    pub fn find_expired(&self, key: &FlowKey<F>) -> Option<ConnectionId> {
        let index = self.table.search(key, self.hash, Instant::ZERO)?;
        let generation = self.table.record(index).lifecycle().generation;
        Some(ConnectionId { index, generation })
    }

    /// Makes a connection: writes a record, then publishes it. The caller has made sure that there is none for
    /// this flow, and files its timer. A template that is to control it already counts it, and whoever ends it counts it
    /// off.
    ///
    /// # Errors
    /// Nothing is changed where the table is full; the template still counts the connection.
    pub fn insert(
        &self,
        key: &FlowKey<F>,
        new: NewConnection,
        slots: &ServerSlots,
        view: &mut WorkerView,
        epochs: &Epochs,
    ) -> Result<u32, TableFull> {
        let index = self.table.allocate(view, epochs).ok_or(TableFull)?;
        let record = self.table.record(index);
        let generation = record.lifecycle().generation;
        record.set_key(key);
        record.set_target(new.server, new.port, new.method);
        record.set_control(new.control);
        record.set_deadline(new.deadline);
        // Counted before anybody can find it, move it between the counts or end it.
        let server = slots.get(new.server);
        server.connection_added();
        if !new.flags.contains(Flags::INACTIVE) {
            server.connection_moved(true);
        }
        self.table.alive.fetch_add(1, Ordering::Relaxed);
        record.set_lifecycle(Lifecycle { generation, flags: new.flags.with(Flags::ALIVE), state: new.state });
        let entry = (self.hash >> TAG_SHIFT) << TAG_SHIFT | u64::from(index + 1);
        if !self.add_entry(entry) {
            // A walk over the records may have seen it: as one that has ended, it is not taken for the next.
            let generation = generation.wrapping_add(1);
            record.set_lifecycle(Lifecycle { generation, flags: Flags::default(), state: State::NONE });
            server.connection_removed(!new.flags.contains(Flags::INACTIVE));
            self.table.alive.fetch_sub(1, Ordering::Relaxed);
            view.free.push(index);
            return Err(TableFull);
        }
        Ok(index)
    }

    /// Ends a connection of this bucket; says false where it had ended already.
    pub fn remove(
        &self,
        id: ConnectionId,
        slots: &ServerSlots,
        view: &mut WorkerView,
        epochs: &Epochs,
    ) -> bool {
        let record = self.table.record(id.index);
        let server = record.server();
        let last = loop {
            let old = record.lifecycle();
            if old.generation != id.generation || !old.is_alive() {
                return false;
            }
            let generation = id.generation.wrapping_add(1);
            if record.exchange(old, Lifecycle { generation, flags: Flags::default(), state: State::NONE }) {
                break old;
            }
        };
        self.remove_entry(id.index + 1);
        if let Some(template) = record.control() {
            self.table.templates.give_up_control(template);
        }
        slots.get(server).connection_removed(last.is_active());
        self.table.alive.fetch_sub(1, Ordering::Relaxed);
        self.table.bury(view, epochs, id.index);
        true
    }

    fn add_entry(&self, entry: u64) -> bool {
        let mut bucket = self.table.bucket(self.hash);
        loop {
            if let Some(free) = bucket[1..].iter().find(|word| word.load(Ordering::Relaxed) == 0) {
                free.store(entry, Ordering::Release);
                return true;
            }
            match self.table.overflow_of(bucket) {
                Some(next) => bucket = next,
                None => break,
            }
        }
        let Some(index) = self.table.overflow.allocate() else { return false };
        self.table.overflow.get(index)[1].store(entry, Ordering::Relaxed);
        // Published with its entry in place; the lock bit of a head stays as it is.
        bucket[0].fetch_or(u64::from(index + 1) << OVERFLOW_SHIFT, Ordering::Release);
        true
    }

    /// Empties the entry of a record, moving the chain's last entry into its place.
    fn remove_entry(&self, index: u32) {
        let mut previous: Option<&[AtomicU64]> = None;
        let mut bucket = self.table.bucket(self.hash);
        let mut hole: Option<&AtomicU64> = None;
        loop {
            if hole.is_none() {
                hole = bucket[1..].iter().find(|word| word.load(Ordering::Relaxed) as u32 == index);
            }
            match self.table.overflow_of(bucket) {
                Some(next) => {
                    previous = Some(bucket);
                    bucket = next;
                }
                None => break,
            }
        }
        let Some(hole) = hole else { return };
        let Some(last) = bucket[1..].iter().rfind(|word| word.load(Ordering::Relaxed) != 0) else { return };
        hole.store(last.load(Ordering::Relaxed), Ordering::Release);
        last.store(0, Ordering::Release);
        let emptied = bucket[1..].iter().all(|word| word.load(Ordering::Relaxed) == 0);
        if let (true, Some(previous)) = (emptied, previous) {
            let link = previous[0].load(Ordering::Relaxed);
            previous[0].fetch_and(u64::from(u32::MAX), Ordering::Release);
            self.table.overflow.free((link >> OVERFLOW_SHIFT) as u32 - 1);
        }
    }
}

impl<F: FlowFamily> Drop for BucketGuard<'_, F> {
    fn drop(&mut self) {
        self.table.bucket(self.hash)[0].fetch_and(!LOCKED, Ordering::Release);
    }
}
