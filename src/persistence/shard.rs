//! A shard while it is locked: templates found, made, used and ended.

use crate::conn::{FlowFamily, FlowKey};
use crate::service::{ServerId, ServerSlots};
use crate::sys::memory::atomic::{MutexGuard, Ordering, fence};
use crate::types::{Duration, Instant};

use super::heap::{Heap, due, tick_at};
use super::record::{POSTPONEMENT, Record, TemplateId};
use super::templates::Templates;

/// What a shard's lock guards besides the words of its templates.
#[derive(Debug, Default)]
pub(super) struct Shard {
    /// Index + 1 of the first free record within the shard.
    free: u32,
    /// Templates in the heap: all that live.
    filed: u32,
}

/// A template that may be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Found {
    /// Its name.
    pub id: TemplateId,
    /// The real server.
    pub server: ServerId,
}

/// What a new template is made of.
#[derive(Clone, Copy, Debug)]
pub struct NewTemplate {
    /// The real server.
    pub server: ServerId,
    /// Its port, or 0 for a template of all ports.
    pub port: u16,
    /// How long it lives after each use, in whole seconds.
    pub timeout: Duration,
}

/// There is no room for another template, and none that nobody would miss.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the table of connection templates is full")]
pub struct TemplateTableFull;

/// A locked shard: all templates of some clients.
#[derive(Debug)]
pub struct ShardGuard<'a, F: FlowFamily> {
    templates: &'a Templates<F>,
    number: usize,
    hash: u64,
    shard: MutexGuard<'a, Shard>,
}

impl<'a, F: FlowFamily> ShardGuard<'a, F> {
    /// Shard `number`, which the caller has locked for a key of this hash.
    pub(super) fn new(
        templates: &'a Templates<F>,
        number: usize,
        hash: u64,
        shard: MutexGuard<'a, Shard>,
    ) -> Self {
        Self { templates, number, hash, shard }
    }

    /// The record at `local`, its place within the shard.
    fn record(&self, local: u32) -> Record<'a, F> {
        self.templates.record(self.templates.index(self.number, local))
    }

    fn id(&self, local: u32) -> TemplateId {
        let index = self.templates.index(self.number, local);
        TemplateId { index, generation: self.record(local).generation() }
    }

    fn local(&self, id: TemplateId) -> u32 {
        id.index - self.templates.index(self.number, 0)
    }

    fn heap(&mut self) -> Heap<'_> {
        self.templates.heap(self.number, &mut self.shard.filed)
    }

    /// Tells workers when something is due here next.
    fn tell_due(&mut self) {
        let first = self.heap().first().map_or(u64::MAX, |(tick, _)| tick);
        self.templates.set_due(self.number, first);
    }

    /// The template for this key, whose shard this is, if its time is not over; put off as the kernel would have.
    pub fn find(&mut self, key: &FlowKey<F>, slots: &ServerSlots, now: Instant) -> Option<Found> {
        let head = self.templates.head(self.number, self.hash);
        let mut next = head.load(Ordering::Relaxed) as u32;
        while let Some(local) = next.checked_sub(1) {
            let record = self.record(local);
            if record.has_key(key) {
                return self
                    .still_lives(local, slots, now)
                    .then(|| Found { id: self.id(local), server: record.server() });
            }
            next = record.link();
        }
        None
    }

    /// Whether a template lives at `now`; does what its timer would have done by then.
    fn still_lives(&mut self, local: u32, slots: &ServerSlots, now: Instant) -> bool {
        let record = self.record(local);
        if record.deadline() > now {
            return true;
        }
        if record.is_over(now) {
            self.end(local, slots);
            return false;
        }
        record.set_deadline(record.deadline_by(now));
        record.set_timeout(POSTPONEMENT);
        true
    }

    /// The template leads to no usable real server: it is not found any more, and waits for its end.
    pub fn invalidate(&mut self, id: TemplateId) {
        let local = self.local(id);
        self.unchain(local);
        self.record(local).invalidate();
    }

    /// Makes a template, of whose key there is none, and counts it with its real server. Where there is no room, one
    /// without connections that never got anywhere gives way.
    ///
    /// # Errors
    /// Nothing is changed where the shard is full.
    pub fn insert(
        &mut self,
        key: &FlowKey<F>,
        new: NewTemplate,
        slots: &ServerSlots,
        now: Instant,
    ) -> Result<TemplateId, TemplateTableFull> {
        let local = match self.allocate() {
            Some(local) => local,
            None => {
                self.make_room(slots, now);
                self.allocate().ok_or(TemplateTableFull)?
            }
        };
        let record = self.record(local);
        // Whoever walks over the records and sees any of this sees that the former template has ended.
        fence(Ordering::Release);
        record.set_key(key);
        record.set_target(new.server, new.port);
        record.set_timeout(new.timeout);
        let deadline = now + record.timeout();
        record.set_deadline(deadline);
        let head = self.templates.head(self.number, self.hash);
        record.set_link(head.load(Ordering::Relaxed) as u32);
        head.store(u64::from(local + 1), Ordering::Relaxed);
        record.begin();
        self.heap().push(local, due(deadline));
        self.tell_due();
        self.templates.count(true);
        slots.get(new.server).template_added();
        Ok(self.id(local))
    }

    /// A new connection begins under the template: it lives as long again, and not less than the connection.
    pub fn take_control(&mut self, id: TemplateId, now: Instant) {
        let record = self.record(self.local(id));
        record.set_deadline(now + record.timeout());
        record.take_control();
    }

    fn allocate(&mut self) -> Option<u32> {
        if let Some(local) = self.shard.free.checked_sub(1) {
            self.shard.free = self.record(local).link();
            return Some(local);
        }
        self.templates.take_fresh(self.number)
    }

    /// Ends a template that nobody would miss: one that is over; else, among a few that lie far apart (neighbours are of
    /// one age, and have their connections still or no more), one without connections that is not assured, or invalid.
    #[cold]
    fn make_room(&mut self, slots: &ServerSlots, now: Instant) {
        const SAMPLE: u64 = 32;
        let first = self.heap().first().map(|(_, local)| local);
        if let Some(local) = first.filter(|&local| self.record(local).is_over(now)) {
            self.end(local, slots);
            return;
        }
        let count = u64::from(self.templates.shard_capacity());
        let (start, stride) = (self.hash >> 8, (count / SAMPLE).max(1));
        let may_go = |local: &u32| {
            let record = self.record(*local);
            let missed = record.is_assured() && !record.is_invalid() && !record.is_over(now);
            record.is_alive() && record.controlled() == 0 && !missed
        };
        let mut places = (0..SAMPLE.min(count)).map(|step| ((start + step * stride) % count) as u32);
        if let Some(local) = places.find(may_go) {
            self.end(local, slots);
        }
    }

    /// Ends a template of this shard unless it was used again since, controls connections, or `spare` says so.
    pub(super) fn end_unless(
        &mut self,
        id: TemplateId,
        slots: &ServerSlots,
        spare: impl FnOnce(Record<'_, F>) -> bool,
    ) -> bool {
        let local = self.local(id);
        let record = self.record(local);
        let ends = record.is(id) && record.controlled() == 0 && !spare(record);
        if ends {
            self.end(local, slots);
        }
        ends
    }

    /// Looks at what is due, at most `budget` templates: ends what is over, and puts off the rest. Says how many.
    pub(super) fn collect(&mut self, slots: &ServerSlots, now: Instant, budget: usize) -> usize {
        let target = tick_at(now);
        let mut looked_at = 0;
        while looked_at < budget {
            let Some((_, local)) = self.heap().first().filter(|&(tick, _)| tick <= target) else { break };
            looked_at += 1;
            if self.still_lives(local, slots, now) {
                let tick = due(self.record(local).deadline());
                self.heap().postpone_first(tick);
            }
        }
        self.tell_due();
        looked_at
    }

    /// Ends a template without connections.
    fn end(&mut self, local: u32, slots: &ServerSlots) {
        let record = self.record(local);
        if !record.is_invalid() {
            self.unchain(local);
        }
        record.end();
        self.heap().remove(local);
        self.tell_due();
        record.set_link(self.shard.free);
        self.shard.free = local + 1;
        self.templates.count(false);
        slots.get(record.server()).template_removed();
    }

    fn unchain(&mut self, local: u32) {
        let record = self.record(local);
        let head = self.templates.head(self.number, record.hash(self.templates.key()));
        let mut next = head.load(Ordering::Relaxed) as u32;
        if next == local + 1 {
            head.store(u64::from(record.link()), Ordering::Relaxed);
            return;
        }
        while let Some(before) = next.checked_sub(1) {
            let before = self.record(before);
            next = before.link();
            if next == local + 1 {
                before.set_link(record.link());
                return;
            }
        }
    }
}
