//! Buckets while they are locked: connections made and removed.

use crate::service::ServerSlots;
use crate::sys::memory::atomic::{AtomicU64, Ordering, spin_loop};
use crate::types::{ForwardingMethod, Instant};

use super::epoch::Epochs;
use super::key::{FlowFamily, FlowKey};
use super::record::{Flags, Lifecycle};
use super::table::{
    ConnectionId, Found, NewConnection, OVERFLOW_SHIFT, TAG_SHIFT, Table, TableFull, WorkerView,
};

/// Set in word 0 of a bucket while somebody changes the bucket.
const LOCKED: u64 = 1;

impl<F: FlowFamily> Table<F> {
    /// Locks the flow's bucket: enough to look it up for good, and to make a connection that is not masqueraded.
    pub fn lock(&self, hash: u64) -> BucketGuard<'_, F> {
        self.lock_bucket(hash);
        BucketGuard { table: self, hash, reply_hash: None }
    }

    /// Locks the flow's bucket and that of its replies.
    pub fn lock_both(&self, hash: u64, reply_hash: u64) -> BucketGuard<'_, F> {
        let (own, reply) = (self.bucket_start(hash), self.bucket_start(reply_hash));
        // In the same order by everybody, so that nobody waits for one who waits for him.
        if own <= reply {
            self.lock_bucket(hash);
        }
        if own != reply {
            self.lock_bucket(reply_hash);
        }
        if own > reply {
            self.lock_bucket(hash);
        }
        BucketGuard { table: self, hash, reply_hash: Some(reply_hash) }
    }

    fn lock_bucket(&self, hash: u64) {
        let head = &self.bucket(hash)[0];
        while head.fetch_or(LOCKED, Ordering::Acquire) & LOCKED != 0 {
            while head.load(Ordering::Relaxed) & LOCKED != 0 {
                spin_loop();
            }
        }
    }

    /// Lets go of the locks of a guard.
    fn unlock(&self, hash: u64, reply_hash: Option<u64>) {
        let unlock = |hash| self.bucket(hash)[0].fetch_and(!LOCKED, Ordering::Release);
        if let Some(reply) = reply_hash.filter(|&reply| self.bucket_start(reply) != self.bucket_start(hash)) {
            unlock(reply);
        }
        unlock(hash);
    }
}

/// The locked bucket of a flow, and perhaps that of its replies.
#[derive(Debug)]
pub struct BucketGuard<'a, F: FlowFamily> {
    table: &'a Table<F>,
    hash: u64,
    reply_hash: Option<u64>,
}

impl<'a, F: FlowFamily> BucketGuard<'a, F> {
    /// The connection of a packet, if it is alive and before its deadline. Under the lock a miss is final.
    pub fn find(&self, key: &FlowKey<F>, now: Instant) -> Option<Found> {
        self.table.search(self.hash, |found| self.table.is_live(found, key, now))
    }

    /// The flow's connection past its deadline, which must be removed before another takes its place, and for which
    /// this lock must be let go.
    pub fn find_expired(&self, key: &FlowKey<F>) -> Option<ConnectionId> {
        let is_live = |found| self.table.is_live(found, key, Instant::ZERO);
        let Found { index, .. } = self.table.search(self.hash, |found| !found.is_reply && is_live(found))?;
        let generation = self.table.record(index).lifecycle().generation;
        Some(ConnectionId { index, generation })
    }

    /// Makes a connection: writes a record, leads to it, then publishes it. The caller has made sure that there is none
    /// for this flow, has locked the bucket of its replies too where they are to lead to it, and files its timer. A
    /// template that is to control it already counts it, and whoever ends it counts it off.
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
        record.set_target(new.server, F::address(new.address).unwrap_or_default(), new.port);
        record.set_control(new.control);
        record.set_deadline(new.deadline);
        if !self.add_entry(self.hash, Found { index, is_reply: false }) {
            view.free.push(index);
            return Err(TableFull);
        }
        if new.method == ForwardingMethod::Masquerading && !self.add_reply(index) {
            self.remove_entry(self.hash, Found { index, is_reply: false });
            // Somebody without the lock may have seen the entry: the record rests.
            self.table.bury(view, epochs, index);
            return Err(TableFull);
        }
        // Counted before anybody can move it between the counts or end it.
        let server = slots.get(new.server);
        server.connection_added();
        if !new.flags.contains(Flags::INACTIVE) {
            server.connection_moved(true);
        }
        self.table.alive.fetch_add(1, Ordering::Relaxed);
        let flags = new.flags.with(Flags::ALIVE);
        record.set_lifecycle(Lifecycle { generation, method: new.method, flags, state: new.state });
        Ok(index)
    }

    /// Ends a connection of this bucket, or these; says false where it had ended already.
    pub(super) fn remove(
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
            if record.exchange(old, old.ended()) {
                break old;
            }
        };
        self.remove_entry(self.hash, Found { index: id.index, is_reply: false });
        if let Some(reply_hash) = self.reply_hash {
            self.remove_entry(reply_hash, Found { index: id.index, is_reply: true });
        }
        if let Some(template) = record.control() {
            self.table.templates.give_up_control(template);
        }
        slots.get(server).connection_removed(last.is_active());
        self.table.alive.fetch_sub(1, Ordering::Relaxed);
        self.table.bury(view, epochs, id.index);
        true
    }

    /// Leads replies to a record, away from an older one with the same.
    fn add_reply(&self, index: u32) -> bool {
        let Some(hash) = self.reply_hash else {
            debug_assert!(false, "the bucket of the replies is not locked");
            return false;
        };
        let (reply, key) = (Found { index, is_reply: true }, self.table.record(index).reply_key());
        let is_older = |found: Found| found.is_reply && self.table.record(found.index).has_reply_key(&key);
        match self.table.search(hash, is_older).and_then(|older| self.entry(hash, older)) {
            Some(word) => {
                word.store(entry_word(hash, reply), Ordering::Release);
                true
            }
            None => self.add_entry(hash, reply),
        }
    }

    /// Where a record's entry is in the chain of `hash`.
    fn entry(&self, hash: u64, of: Found) -> Option<&AtomicU64> {
        let mut bucket = Some(self.table.bucket(hash));
        while let Some(words) = bucket {
            let is_entry = |word: &&AtomicU64| word.load(Ordering::Relaxed) as u32 == of.to_entry();
            if let Some(entry) = words[1..].iter().find(is_entry) {
                return Some(entry);
            }
            bucket = self.table.overflow_of(words);
        }
        None
    }

    fn add_entry(&self, hash: u64, to: Found) -> bool {
        let entry = entry_word(hash, to);
        let mut bucket = self.table.bucket(hash);
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

    /// Empties the entry of a record, if it is there, moving the chain's last entry into its place.
    fn remove_entry(&self, hash: u64, of: Found) {
        let Some(hole) = self.entry(hash, of) else { return };
        let mut previous: Option<&[AtomicU64]> = None;
        let mut bucket = self.table.bucket(hash);
        while let Some(next) = self.table.overflow_of(bucket) {
            previous = Some(bucket);
            bucket = next;
        }
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

/// The entry that leads from `hash` to a record.
const fn entry_word(hash: u64, to: Found) -> u64 {
    hash >> TAG_SHIFT << TAG_SHIFT | to.to_entry() as u64
}

impl<F: FlowFamily> Drop for BucketGuard<'_, F> {
    fn drop(&mut self) {
        self.table.unlock(self.hash, self.reply_hash);
    }
}
