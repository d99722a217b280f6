//! Timers: wakes a worker up when connections may have ended.
//!
//! Lazy: packets only store a deadline. A wheel entry that fires before its connection's deadline puts itself
//! back; one that fires at or after it, collects. A deadline that comes to lie *earlier* than the entry that
//! answers for the connection files another, on the wheel of the worker that shortened it. Which entry
//! answers is a word of the record, its tick: an entry that fires and does not find its own tick there is a
//! left-over and vanishes.
//!
//! An entry answers for a *record*, not for one use of it: when a connection ends early, its entry waits for the
//! next one that takes the record. So there is one entry for each record at most, and left-overs; and these are
//! bounded by refusing to undercut an entry once there are as many of them as records. Then a connection is
//! collected late; it is never without an entry.
//!
//! The word changes by read-modify-write only. Whoever stores a deadline and then finds that an entry answers, is
//! seen by that entry when it fires: it takes its tick out of the word first, and reads the deadline after that.

use std::io;

use crate::sys::memory::atomic::{AtomicU64, Ordering};
use crate::types::{Duration, Instant};

use super::epoch::Epochs;
use super::key::FlowFamily;
use super::pool::Pieces;
use super::table::{ConnectionId, Table, WorkerView};
use crate::service::ServerSlots;

/// A tick is 2^24 ns, 16.8 ms: how late a connection is collected at most. Look-ups go by the deadline itself.
const TICK_SHIFT: u32 = 24;
/// Slots of each level, and how many levels: 4.3 s, 18 min, 78 h.
const SLOT_BITS: u32 = 8;
const SLOTS: usize = 1 << SLOT_BITS;
const LEVELS: usize = 3;
/// Furthest that an entry can be filed ahead, in ticks; what lies beyond fires there and goes on.
const HORIZON: u64 = (1 << (SLOT_BITS * LEVELS as u32)) - 1;
/// Words of a chunk of entries: one cache line, word 0 being next chunk << 32 | entries in use.
const CHUNK_WORDS: usize = 8;
const CHUNK_ENTRIES: u64 = CHUNK_WORDS as u64 - 1;

/// In a record: no entry answers. Ticks are kept as their complements, so that a record never used says so, and an
/// earlier tick is the greater word.
const NOT_FILED: u64 = 0;

/// The chunks that all workers' wheels of one table are made of.
#[derive(Debug)]
pub(super) struct TimerPool {
    chunks: Pieces,
    /// Entries whose tick is not their record's any more.
    left_over: AtomicU64,
    most_left_over: u64,
}

impl TimerPool {
    /// Room for an entry that answers and one left over for each of `capacity` records, and in each of `wheels` wheels
    /// for a part-filled chunk in every slot and in what is due of every level. What is over is for left-overs that two
    /// workers make at once.
    pub(super) fn new(capacity: u32, wheels: usize) -> io::Result<Self> {
        let slack = wheels * (LEVELS * (SLOTS + 1) + 2);
        let chunks = u64::from(capacity) * 2 / CHUNK_ENTRIES + slack as u64 + 1;
        Ok(Self {
            chunks: Pieces::new(u32::try_from(chunks).unwrap_or(u32::MAX - 1), CHUNK_WORDS)?,
            left_over: AtomicU64::new(0),
            most_left_over: u64::from(capacity),
        })
    }

    /// Makes room for one more left-over.
    fn may_leave_over(&self) -> bool {
        let one_more = |left_over: u64| (left_over < self.most_left_over).then_some(left_over + 1);
        self.left_over.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_ok()
    }

    /// A left-over has vanished.
    fn vanished(&self) {
        self.left_over.fetch_sub(1, Ordering::Relaxed);
    }

    /// Bytes of memory that the chunks span.
    pub(super) fn memory(&self) -> usize {
        self.chunks.memory()
    }
}

/// An entry of the wheel: which record, and the lower half of the tick, which tells those of 78 hours apart.
#[derive(Clone, Copy, Default)]
struct Timer {
    tick: u32,
    index: u32,
}

impl Timer {
    const fn to_word(self) -> u64 {
        (self.tick as u64) << 32 | self.index as u64
    }

    const fn from_word(word: u64) -> Self {
        Self { tick: (word >> 32) as u32, index: word as u32 }
    }

    /// Whether it is the entry that answers, given its record's word.
    const fn answers(self, filed: u64) -> bool {
        filed != NOT_FILED && !filed as u32 == self.tick
    }
}

/// One worker's timers of one table.
#[derive(Debug)]
pub struct Wheel {
    /// Heads of the slots' lists: index of a chunk + 1.
    slots: Box<[[u32; SLOTS]; LEVELS]>,
    /// Which slots are not empty.
    occupied: [[u64; SLOTS / 64]; LEVELS],
    /// All ticks before this one have fired.
    current: u64,
    /// What is left of the slots that came due last, by level: heads + 1. Of level 0 it fires, of the others
    /// it is spread over the levels below.
    due: [u32; LEVELS],
    entries: u64,
}

impl Default for Wheel {
    fn default() -> Self {
        Self::new(Instant::ZERO)
    }
}

fn tick_of(moment: Instant) -> u64 {
    moment.as_nanos().div_ceil(1 << TICK_SHIFT)
}

impl Wheel {
    /// An empty wheel that starts at `now`.
    pub fn new(now: Instant) -> Self {
        Self {
            slots: Box::new([[0; SLOTS]; LEVELS]),
            occupied: Default::default(),
            current: now.as_nanos() >> TICK_SHIFT,
            due: [0; LEVELS],
            entries: 0,
        }
    }

    /// Entries filed.
    pub fn len(&self) -> u64 {
        self.entries
    }

    /// Whether nothing is filed.
    pub fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// Sees to it that the record is looked at soon after its deadline, which the caller has stored before. Says false
    /// where there is no room for an entry; one that answered before then still does, only later than could be.
    #[must_use]
    pub fn file<F: FlowFamily>(&mut self, table: &Table<F>, index: u32, deadline: Instant) -> bool {
        let tick = self.clamp(tick_of(deadline));
        let filed = table.record(index).filed();
        let undercuts = |former: u64| former != NOT_FILED && !former > tick;
        let expected = undercuts(filed.load(Ordering::Relaxed));
        if expected && !table.timers.may_leave_over() {
            return false;
        }
        let former = filed.fetch_max(!tick, Ordering::AcqRel);
        match (expected, undercuts(former)) {
            (true, false) => table.timers.vanished(),
            // Another worker filed since we looked: rare enough for the room to spare.
            (false, true) => _ = table.timers.left_over.fetch_add(1, Ordering::Relaxed),
            (true, true) | (false, false) => (),
        }
        if former != NOT_FILED && !undercuts(former) {
            return true;
        }
        let pushed = self.push(table, Timer { tick: tick as u32, index }, tick);
        if !pushed {
            // Whoever files next tries again.
            let _ = filed.compare_exchange(!tick, NOT_FILED, Ordering::AcqRel, Ordering::Relaxed);
        }
        pushed
    }

    fn clamp(&self, tick: u64) -> u64 {
        tick.clamp(self.current, self.current + HORIZON)
    }

    /// Puts an entry into the slot of `place`, a tick not before the present one.
    fn push<F: FlowFamily>(&mut self, table: &Table<F>, timer: Timer, place: u64) -> bool {
        let distance = place.saturating_sub(self.current);
        let level = match distance {
            0..0x100 => 0,
            0x100..0x1_0000 => 1,
            _ => 2,
        };
        let slot = (place >> (SLOT_BITS * level as u32)) as usize % SLOTS;
        let pool = &table.timers.chunks;
        let head = self.slots[level][slot];
        let room = head
            .checked_sub(1)
            .filter(|&chunk| pool.get(chunk)[0].load(Ordering::Relaxed) as u32 as u64 != CHUNK_ENTRIES);
        let chunk = match room {
            Some(chunk) => chunk,
            None => {
                let Some(chunk) = pool.allocate() else { return false };
                pool.get(chunk)[0].store(u64::from(head) << 32, Ordering::Relaxed);
                self.slots[level][slot] = chunk + 1;
                self.occupied[level][slot / 64] |= 1 << (slot % 64);
                chunk
            }
        };
        let words = pool.get(chunk);
        let link = words[0].load(Ordering::Relaxed);
        words[1 + (link as u32) as usize].store(timer.to_word(), Ordering::Relaxed);
        words[0].store(link + 1, Ordering::Relaxed);
        self.entries += 1;
        true
    }

    fn take_slot(&mut self, level: usize, slot: usize) -> u32 {
        self.occupied[level][slot / 64] &= !(1 << (slot % 64));
        std::mem::take(&mut self.slots[level][slot])
    }

    /// Takes up to 7 entries off what is due of a level; says how many.
    fn take_chunk<F: FlowFamily>(
        &mut self,
        table: &Table<F>,
        level: usize,
        into: &mut [Timer; CHUNK_ENTRIES as usize],
    ) -> usize {
        let Some(chunk) = self.due[level].checked_sub(1) else { return 0 };
        let pool = &table.timers.chunks;
        let words = pool.get(chunk);
        let link = words[0].load(Ordering::Relaxed);
        let count = (link as u32 as usize).min(CHUNK_ENTRIES as usize);
        for (timer, word) in into.iter_mut().zip(&words[1..=count]) {
            *timer = Timer::from_word(word.load(Ordering::Relaxed));
        }
        self.due[level] = (link >> 32) as u32;
        pool.free(chunk);
        self.entries -= count as u64;
        count
    }

    /// The first occupied slot of a level at or after `from`, within one turn.
    fn next_occupied(&self, level: usize, from: usize) -> Option<usize> {
        (0..=SLOTS / 64).find_map(|step| {
            let word = (from / 64 + step) % (SLOTS / 64);
            let mut bits = self.occupied[level][word];
            if step == 0 {
                bits &= u64::MAX << (from % 64);
            } else if step == SLOTS / 64 {
                bits &= !(u64::MAX << (from % 64));
            }
            (bits != 0).then(|| word * 64 + bits.trailing_zeros() as usize)
        })
    }

    /// A moment not after which [`advance`](Self::advance) should be called again; `None` for an empty wheel.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.next_event().map(|tick| Instant::from_nanos(tick << TICK_SHIFT))
    }

    /// The next tick at which a slot of any level is due.
    fn next_event(&self) -> Option<u64> {
        if self.due != [0; LEVELS] {
            return Some(self.current.saturating_sub(1));
        }
        (0..LEVELS)
            .filter_map(|level| {
                let shift = SLOT_BITS * level as u32;
                // Level 0 fires slot `current` next; the others' slot of `current` was spread when entered,
                // unless `current` stands just at its beginning.
                let base = if level == 0 { self.current } else { self.current.div_ceil(1 << shift) << shift };
                let turn = base >> shift;
                let slot = self.next_occupied(level, turn as usize % SLOTS)?;
                let ahead = (slot + SLOTS - turn as usize % SLOTS) % SLOTS;
                Some((turn + ahead as u64) << shift)
            })
            .min()
    }

    /// Fires what is due at `now`: collects connections past their deadline, puts the others back. Looks at
    /// about `budget` entries at most, and says whether it got through.
    pub fn advance<F: FlowFamily>(
        &mut self,
        table: &Table<F>,
        slots: &ServerSlots,
        view: &mut WorkerView,
        epochs: &Epochs,
        now: Instant,
        budget: usize,
    ) -> bool {
        let target = now.as_nanos() >> TICK_SHIFT;
        let mut left = budget;
        let mut timers = [Timer::default(); CHUNK_ENTRIES as usize];
        loop {
            while let Some(level) = (0..LEVELS).rev().find(|&level| self.due[level] != 0) {
                if left == 0 {
                    return false;
                }
                let count = self.take_chunk(table, level, &mut timers);
                left = left.saturating_sub(count.max(1));
                // Nothing else looked at these records lately: wait for all of them at once, and, before firing, for
                // the buckets that connections may have to be taken out of.
                timers[..count].iter().for_each(|timer| table.prefetch_record(timer.index));
                if level == 0 {
                    timers[..count].iter().for_each(|timer| table.prefetch_buckets_of(timer.index));
                }
                for &timer in &timers[..count] {
                    // Where there is no room to put an entry back, which the pool's size rules out, it fires.
                    if level == 0 || !self.spread(table, timer) {
                        self.fire(table, slots, view, epochs, timer, now);
                    }
                }
            }
            match self.next_event() {
                Some(tick) if tick <= target => self.enter_tick(tick),
                _ => {
                    self.current = self.current.max(target + 1);
                    return true;
                }
            }
        }
    }

    /// Goes past `tick`: its own slot is due, and so are those of higher levels that begin there.
    fn enter_tick(&mut self, tick: u64) {
        for level in 0..LEVELS {
            let shift = SLOT_BITS * level as u32;
            if tick & ((1 << shift) - 1) == 0 {
                self.due[level] = self.take_slot(level, (tick >> shift) as usize % SLOTS);
            }
        }
        self.current = tick + 1;
    }

    /// Moves an entry of a higher level to where it belongs now; says false where there is no room.
    fn spread<F: FlowFamily>(&mut self, table: &Table<F>, timer: Timer) -> bool {
        let filed = table.record(timer.index).filed().load(Ordering::Relaxed);
        if timer.answers(filed) {
            return self.push(table, timer, self.clamp(!filed));
        }
        table.timers.vanished();
        true
    }

    fn fire<F: FlowFamily>(
        &mut self,
        table: &Table<F>,
        slots: &ServerSlots,
        view: &mut WorkerView,
        epochs: &Epochs,
        timer: Timer,
        now: Instant,
    ) {
        let record = table.record(timer.index);
        let filed = record.filed().load(Ordering::Relaxed);
        let taken = timer.answers(filed)
            && record.filed().compare_exchange(filed, NOT_FILED, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        if !taken {
            // Another entry answers.
            table.timers.vanished();
            return;
        }
        let lifecycle = record.lifecycle();
        if !lifecycle.is_alive() {
            return; // whoever uses the record next files for it
        }
        let deadline = record.deadline();
        if deadline <= now || !self.file(table, timer.index, deadline) {
            let id = ConnectionId { index: timer.index, generation: lifecycle.generation };
            table.remove(id, slots, view, epochs);
        }
    }
}

/// How late a connection is collected at most, while its worker keeps up.
pub const TIMER_RESOLUTION: Duration = Duration::from_nanos(1 << TICK_SHIFT);

#[cfg(test)]
mod tests {
    use super::super::key::{FlowKey, Ipv4};
    use super::super::record::Flags;
    use super::super::state::State;
    use super::super::table::NewConnection;
    use super::*;
    use crate::service::ServerId;
    use crate::types::{ForwardingMethod, HashKey};

    struct Bench {
        table: Table<Ipv4>,
        slots: ServerSlots,
        view: WorkerView,
        epochs: Epochs,
        wheel: Wheel,
        now: Instant,
    }

    impl Bench {
        fn new(capacity: u32) -> Self {
            Self {
                table: Table::new(capacity, 1, HashKey::new([1, 2])).unwrap(),
                slots: ServerSlots::new(1),
                view: WorkerView::default(),
                epochs: Epochs::new(),
                wheel: Wheel::default(),
                now: Instant::ZERO,
            }
        }

        fn insert(&mut self, port: u16, deadline: Instant) -> ConnectionId {
            let key = FlowKey::new([7], 6, port, 80);
            let new = NewConnection {
                server: ServerId(0),
                address: [10, 0, 0, 1].into(),
                port: 80,
                method: ForwardingMethod::DirectRouting,
                flags: Flags::INACTIVE,
                state: State::NONE,
                deadline,
                control: None,
            };
            let guard = self.table.lock(self.table.hash(&key));
            let index = guard.insert(&key, new, &self.slots, &mut self.view, &self.epochs).unwrap();
            let id = ConnectionId { index, generation: self.table.record(index).lifecycle().generation };
            drop(guard);
            assert!(self.wheel.file(&self.table, index, deadline));
            id
        }

        fn advance(&mut self, to: Instant, budget: usize) -> bool {
            self.now = to;
            let Self { table, slots, view, epochs, wheel, .. } = self;
            wheel.advance(table, slots, view, epochs, to, budget)
        }

        fn remove(&mut self, id: ConnectionId) -> bool {
            self.table.remove(id, &self.slots, &mut self.view, &self.epochs)
        }

        fn is_alive(&self, id: ConnectionId) -> bool {
            let lifecycle = self.table.record(id.index).lifecycle();
            lifecycle.generation == id.generation && lifecycle.is_alive()
        }
    }

    fn at(milliseconds: u64) -> Instant {
        Instant::ZERO + Duration::from_millis(milliseconds)
    }

    #[test]
    fn connections_end_at_their_deadline_on_every_level() {
        let deadlines = [1, 100, 4_000, 5_000, 60_000, 900_000, 1_200_000, 86_400_000, 400_000_000];
        let mut bench = Bench::new(64);
        let ids: Vec<_> = deadlines.iter().zip(1..).map(|(&ms, port)| bench.insert(port, at(ms))).collect();
        for (&deadline, &id) in deadlines.iter().zip(&ids) {
            bench.advance(at(deadline - 1), usize::MAX);
            assert!(bench.is_alive(id), "{deadline} ms: too early");
            bench.advance(at(deadline + 34), usize::MAX);
            assert!(!bench.is_alive(id), "{deadline} ms: not collected");
        }
        assert!(bench.wheel.is_empty());
        assert_eq!((bench.table.alive(), bench.slots.get(ServerId(0)).connections()), (0, 0));
    }

    #[test]
    fn a_later_deadline_needs_no_entry_and_an_earlier_one_gets_its_own() {
        let mut bench = Bench::new(8);
        let id = bench.insert(1, at(60_000));
        bench.table.record(id.index).set_deadline(at(900_000));
        assert!(bench.wheel.file(&bench.table, id.index, at(900_000)));
        assert_eq!(bench.wheel.len(), 1);
        bench.advance(at(61_000), usize::MAX);
        assert!(bench.is_alive(id));
        for deadline in [70_000, 200_000, 70_000] {
            bench.table.record(id.index).set_deadline(at(deadline));
            assert!(bench.wheel.file(&bench.table, id.index, at(deadline)));
        }
        assert_eq!(bench.wheel.len(), 2, "however often the deadline goes to and fro");
        bench.advance(at(70_100), usize::MAX);
        assert!(!bench.is_alive(id));
        bench.advance(at(1_000_000), usize::MAX);
        assert!(bench.wheel.is_empty());
    }

    #[test]
    fn work_is_bounded_and_goes_on_where_it_stopped() {
        let mut bench = Bench::new(1000);
        for port in 0..1000 {
            bench.insert(port, at(60_000));
        }
        let mut rounds = 0;
        while !bench.advance(at(61_000), 64) {
            rounds += 1;
            assert!(rounds < 200);
        }
        assert!(rounds > 10);
        assert_eq!(bench.table.alive(), 0);
    }

    /// A client that opens, resets and opens again leaves entries behind as fast as it can send.
    #[test]
    fn left_over_entries_are_bounded_and_no_connection_is_without_one() {
        let mut bench = Bench::new(8);
        for round in 0..100_000_u64 {
            let id = bench.insert(1, at(60_000 + round / 100));
            bench.table.record(id.index).set_deadline(at(10_000));
            let _ = bench.wheel.file(&bench.table, id.index, at(10_000));
            assert!(bench.remove(id));
            bench.table.reclaim(&mut bench.view, &bench.epochs);
        }
        assert!(bench.wheel.len() <= 2 * 8, "{} entries for 8 records", bench.wheel.len());
        for port in 0..8 {
            let id = bench.insert(port, at(900_000));
            bench.table.record(id.index).set_deadline(at(20_000));
            let _ = bench.wheel.file(&bench.table, id.index, at(20_000));
        }
        // Where there was no room for an earlier entry, the later one answers.
        bench.advance(at(1_000_000), usize::MAX);
        assert_eq!(bench.table.alive(), 0);
        assert!(bench.wheel.is_empty());
        assert_eq!(bench.table.timers.left_over.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_record_used_again_before_its_entry_fired_needs_no_other() {
        let mut bench = Bench::new(1);
        let first = bench.insert(1, at(60_000));
        assert!(bench.remove(first));
        bench.advance(at(30_000), usize::MAX);
        let second = bench.insert(2, at(90_000));
        assert_eq!((second.index, bench.wheel.len()), (first.index, 1));
        bench.advance(at(61_000), usize::MAX);
        assert!(bench.is_alive(second));
        bench.advance(at(90_034), usize::MAX);
        assert!(!bench.is_alive(second) && bench.wheel.is_empty());
    }

    #[test]
    fn the_next_deadline_is_never_late() {
        let mut bench = Bench::new(8);
        assert_eq!(bench.wheel.next_deadline(), None);
        let id = bench.insert(1, at(3_600_000));
        let mut wakes = 0;
        while bench.is_alive(id) {
            let next = bench.wheel.next_deadline().unwrap();
            assert!(next <= at(3_600_000) + TIMER_RESOLUTION);
            bench.advance(next, usize::MAX);
            wakes += 1;
        }
        assert!(wakes <= 4, "an idle worker sleeps: {wakes} wakes");
    }

    proptest::proptest! {
        #[test]
        fn whatever_the_deadlines_nobody_dies_early_or_lingers(
            changes in proptest::collection::vec((0_u16..20, 1_u64..2_000_000, 0_u64..30_000), 1..200)
        ) {
            let mut bench = Bench::new(64);
            let mut known: std::collections::HashMap<u16, (ConnectionId, u64)> = Default::default();
            let mut clock = 0;
            for (port, life, pause) in changes {
                clock += pause;
                bench.advance(at(clock), usize::MAX);
                for (id, deadline) in known.values() {
                    if *deadline > clock {
                        assert!(bench.is_alive(*id));
                    } else if *deadline + 34 < clock {
                        assert!(!bench.is_alive(*id), "deadline {deadline} at {clock}");
                    }
                }
                known.retain(|_, (id, _)| bench.is_alive(*id));
                let deadline = clock + life;
                if let Some((id, known_deadline)) = known.get_mut(&port) {
                    bench.table.record(id.index).set_deadline(at(deadline));
                    assert!(bench.wheel.file(&bench.table, id.index, at(deadline)));
                    *known_deadline = deadline;
                } else {
                    let id = bench.insert(port, at(deadline));
                    known.insert(port, (id, deadline));
                }
            }
            assert!(bench.wheel.len() <= 20 * 30);
            bench.advance(at(clock + 3_000_000), usize::MAX);
            assert_eq!(bench.table.alive(), 0);
        }
    }
}
