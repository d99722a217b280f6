//! The table: datagrams of which there were fragments.
//!
//! Fixed in size. A datagram has its place in one of a few slots that its keyed hash picks, behind one lock, which is
//! taken for each fragment; fragments are few beside whole packets. Where the slots are taken, the oldest datagram makes
//! room: a flood of fragments shortens the time that others have, but cannot lock them out. There are no timers: what is
//! past its time counts as absent.

use std::io;

use crate::sys::memory::atomic::{AtomicU64, Ordering};
use crate::sys::memory::mutex::{Mutex, MutexGuard};
use crate::types::{HashKey, Instant};

use super::coverage::{Coverage, Overlap, UNIT};
use super::datagram::{Key, Piece};

/// Slots behind one lock.
const WAYS: usize = 8;
/// Most fragments of one datagram that wait for its first, over all workers: the largest datagram has 52 at IPv6's
/// least MTU.
pub const MAX_WAITING: u16 = 64;

/// One datagram, or a free slot.
#[derive(Clone, Copy, Debug)]
struct Slot<D> {
    key: Key,
    /// When its earliest fragment arrived; `None` for a free slot.
    since: Option<Instant>,
    /// Told apart from the datagrams that had this slot before.
    serial: u32,
    decision: Option<D>,
    /// Bytes of the datagram, once its last fragment was there.
    total: Option<u32>,
    /// Where its farthest fragment ends.
    farthest: u32,
    /// Units that were there.
    units: u32,
    /// Fragments that wait.
    waiting: u16,
    /// There was a fragment that contradicts another.
    ended: bool,
}

impl<D> Slot<D> {
    const fn new(key: Key, since: Option<Instant>, serial: u32) -> Self {
        Self {
            key,
            since,
            serial,
            decision: None,
            total: None,
            farthest: 0,
            units: 0,
            waiting: 0,
            ended: false,
        }
    }

    fn is_alive(&self, now: Instant) -> bool {
        self.since.is_some_and(|since| now.since(since) < self.key.patience())
    }

    /// Whether every part was there, and nobody asks for the decision any more.
    fn is_done(&self) -> bool {
        let complete = self.total.is_some_and(|total| self.units == total.div_ceil(UNIT));
        complete && !self.ended && self.decision.is_some() && self.waiting == 0
    }
}

/// Why a fragment is not to be forwarded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    /// It brings nothing that was not there: the kernel ignores such.
    Duplicate,
    /// It contradicts another fragment, or one of its datagram did before.
    Ended,
}

/// What came of a fragment's waiting.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate<D> {
    /// Nothing yet.
    Undecided,
    /// Its datagram's first fragment was decided about.
    Decided(D),
    /// Its datagram has ended.
    Ended,
    /// Its datagram is forgotten: it was too old, or had to make room.
    Forgotten,
}

/// What a waiting fragment asks with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ticket {
    slot: u32,
    serial: u32,
}

/// Datagrams by key, with decisions `D`. Shared by all workers.
#[derive(Debug)]
pub struct Table<D> {
    secret: HashKey,
    sets: Box<[Mutex<[Slot<D>; WAYS]>]>,
    coverage: Coverage,
    /// Counts the moments that waiting fragments may want to ask after.
    news: AtomicU64,
}

impl<D: Copy> Table<D> {
    /// Room for `datagrams`, rounded up to a power of two, 8 at least.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(datagrams: usize, secret: HashKey) -> io::Result<Self> {
        let sets = datagrams.div_ceil(WAYS).checked_next_power_of_two().ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self {
            secret,
            sets: (0..sets).map(|_| Mutex::new([Slot::new(Key::NONE, None, 0); WAYS])).collect(),
            coverage: Coverage::new(sets * WAYS)?,
            news: AtomicU64::new(0),
        })
    }

    /// A datagram, locked; a new one where there is none of this key. No other lock of this table may be held; those of
    /// the connection table and of schedulers may be taken meanwhile, not the other way round.
    pub fn lock(&self, key: &Key, now: Instant) -> Datagram<'_, D> {
        let set = key.hash(self.secret) as usize & (self.sets.len() - 1);
        let mut slots = self.sets[set].lock();
        let known = slots.iter().position(|slot| slot.key == *key && slot.is_alive(now));
        let way = known.unwrap_or_else(|| {
            // A free one, or the oldest: `None` is less than any time.
            let oldest =
                slots.iter().enumerate().min_by_key(|(_, slot)| slot.since.filter(|_| slot.is_alive(now)));
            let way = oldest.map_or(0, |(way, _)| way);
            let slot = &mut slots[way];
            *slot = Slot::new(*key, Some(now), slot.serial.wrapping_add(1));
            self.coverage.clear(set * WAYS + way);
            way
        });
        Datagram { table: self, slots, set, way }
    }

    /// Counts up when it may be worth asking after waiting fragments.
    #[inline]
    pub fn news(&self) -> u64 {
        self.news.load(Ordering::Acquire)
    }

    /// Asks after a fragment that waits. It waits on where nothing is decided; else its ticket is used up.
    pub fn ask(&self, ticket: Ticket, now: Instant) -> Fate<D> {
        self.with_ticket(ticket, |slot| {
            if !slot.is_alive(now) {
                return Fate::Forgotten;
            }
            let fate = match slot.decision {
                _ if slot.ended => Fate::Ended,
                Some(decision) => Fate::Decided(decision),
                None => return Fate::Undecided,
            };
            slot.waiting = slot.waiting.saturating_sub(1);
            fate
        })
        .unwrap_or(Fate::Forgotten)
    }

    /// A fragment waits no longer. Its ticket is used up.
    pub fn give_up(&self, ticket: Ticket) {
        self.with_ticket(ticket, |slot| slot.waiting = slot.waiting.saturating_sub(1));
    }

    /// Looks at the datagram of a ticket, if it still has its slot; frees the slot where nothing is left to do.
    fn with_ticket<T>(&self, ticket: Ticket, look: impl FnOnce(&mut Slot<D>) -> T) -> Option<T> {
        let (set, way) = (ticket.slot as usize / WAYS, ticket.slot as usize % WAYS);
        let mut slots = self.sets.get(set)?.lock();
        let slot = slots.get_mut(way).filter(|slot| slot.serial == ticket.serial && slot.since.is_some())?;
        let result = look(slot);
        if slot.is_done() {
            slot.since = None;
        }
        Some(result)
    }
}

/// One datagram, locked. When it is let go of, it is forgotten if it is complete.
pub struct Datagram<'table, D> {
    table: &'table Table<D>,
    slots: MutexGuard<'table, [Slot<D>; WAYS]>,
    set: usize,
    way: usize,
}

impl<D> std::fmt::Debug for Datagram<'_, D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Datagram").field("set", &self.set).field("way", &self.way).finish_non_exhaustive()
    }
}

impl<D: Copy> Datagram<'_, D> {
    fn slot(&mut self) -> &mut Slot<D> {
        &mut self.slots[self.way]
    }

    /// Notes that a fragment is there.
    ///
    /// # Errors
    /// It is not to be forwarded. The rules are `ip_frag_queue`'s and `inet_frag_queue_insert`'s.
    pub fn add(&mut self, piece: &Piece) -> Result<(), Refused> {
        let place = self.set * WAYS + self.way;
        let table = self.table;
        let slot = self.slot();
        if slot.ended {
            return Err(Refused::Ended);
        }
        let contradicts = match slot.total {
            Some(total) if piece.last => piece.end != total,
            Some(total) => piece.end > total,
            None => piece.last && piece.end < slot.farthest,
        };
        let overlap = if piece.impossible || contradicts {
            Overlap::Partial
        } else {
            table.coverage.add(place, piece.units())
        };
        match overlap {
            Overlap::None => {
                slot.farthest = slot.farthest.max(piece.end);
                slot.units += piece.units().len() as u32;
                if piece.last {
                    slot.total = Some(piece.end);
                }
                Ok(())
            }
            Overlap::Whole => Err(Refused::Duplicate),
            Overlap::Partial => {
                slot.ended = true;
                self.tell();
                Err(Refused::Ended)
            }
        }
    }

    /// What was decided about its first fragment.
    pub fn decision(&self) -> Option<D> {
        self.slots[self.way].decision
    }

    /// Has its later fragments follow the first one.
    pub fn decide(&mut self, decision: D) {
        self.slot().decision = Some(decision);
        self.tell();
    }

    /// A fragment that was [`add`](Self::add)ed begins to wait for the decision; `None` where too many do.
    pub fn wait(&mut self) -> Option<Ticket> {
        let number = (self.set * WAYS + self.way) as u32;
        let slot = self.slot();
        if slot.waiting >= MAX_WAITING {
            return None;
        }
        slot.waiting += 1;
        Some(Ticket { slot: number, serial: slot.serial })
    }

    /// Those that wait may want to ask.
    fn tell(&mut self) {
        if self.slot().waiting > 0 {
            self.table.news.fetch_add(1, Ordering::Release);
        }
    }
}

impl<D> Drop for Datagram<'_, D> {
    fn drop(&mut self) {
        let slot = &mut self.slots[self.way];
        if slot.is_done() {
            slot.since = None;
        }
    }
}

#[cfg(all(test, not(uvs_shuttle)))]
mod tests {
    use super::*;
    use crate::types::Duration;
    use crate::wire::build::{Build, Transport};
    use crate::wire::{Outcome, parse};

    const START: Instant = Instant::from_nanos(1_000_000_000);

    fn piece(identification: u32, start: u16, length: usize, more: bool) -> (Key, Piece) {
        let header = if start == 0 { 8 } else { 0 };
        let build = Build::ipv4([192, 0, 2, 1], [198, 51, 100, 7])
            .transport(Transport::udp(1, 2))
            .identification(identification)
            .payload(&vec![0; length - header])
            .fragment(start, more);
        let Outcome::Packet(packet) = parse(&build.frame()) else { panic!("not a packet") };
        Piece::of(&packet).unwrap()
    }

    fn table() -> Table<u32> {
        Table::new(WAYS, HashKey::new([1, 2])).unwrap()
    }

    fn add(table: &Table<u32>, (key, piece): (Key, Piece), now: Instant) -> Result<(), Refused> {
        table.lock(&key, now).add(&piece)
    }

    /// Lets pieces, each (start, length, more), arrive in order.
    fn arrive(pieces: &[(u16, usize, bool)]) -> Vec<Result<(), Refused>> {
        let table = table();
        pieces
            .iter()
            .map(|&(start, length, more)| add(&table, piece(1, start, length, more), START))
            .collect()
    }

    #[test]
    fn what_contradicts_ends_the_datagram_and_what_repeats_is_ignored() {
        use Refused::{Duplicate, Ended};
        type Row = (&'static str, &'static [(u16, usize, bool)], &'static [Result<(), Refused>]);
        // What the kernel does, see `ip_frag_queue`.
        let rows: [Row; 10] = [
            ("in order", &[(0, 16, true), (16, 16, true), (32, 5, false)], &[Ok(()), Ok(()), Ok(())]),
            ("reversed", &[(32, 5, false), (16, 16, true), (0, 16, true)], &[Ok(()), Ok(()), Ok(())]),
            ("again", &[(16, 16, true), (16, 16, true)], &[Ok(()), Err(Duplicate)]),
            ("part of it again", &[(16, 32, true), (24, 8, true)], &[Ok(()), Err(Duplicate)]),
            ("the last again", &[(32, 5, false), (32, 5, false)], &[Ok(()), Err(Duplicate)]),
            (
                "overlapping",
                &[(16, 16, true), (24, 16, true), (0, 16, true)],
                &[Ok(()), Err(Ended), Err(Ended)],
            ),
            ("around", &[(16, 8, true), (8, 32, true)], &[Ok(()), Err(Ended)]),
            ("two ends", &[(32, 5, false), (32, 6, false)], &[Ok(()), Err(Ended)]),
            ("behind the end", &[(32, 5, false), (40, 8, true)], &[Ok(()), Err(Ended)]),
            ("an end too early", &[(40, 8, true), (32, 5, false)], &[Ok(()), Err(Ended)]),
        ];
        for (what, pieces, expected) in rows {
            assert_eq!(arrive(pieces), expected, "{what}");
        }
    }

    #[test]
    fn those_that_wait_learn_the_decision_and_the_datagram_is_forgotten_with_the_last() {
        let table = table();
        let (key, last) = piece(1, 16, 5, false);
        let ticket = {
            let mut datagram = table.lock(&key, START);
            datagram.add(&last).unwrap();
            assert_eq!(datagram.decision(), None);
            datagram.wait().unwrap()
        };
        let news = table.news();
        assert_eq!(table.ask(ticket, START), Fate::Undecided);
        {
            let mut datagram = table.lock(&key, START);
            datagram.add(&piece(1, 0, 16, true).1).unwrap();
            datagram.decide(7);
        }
        assert_ne!(table.news(), news);
        assert_eq!(
            table.lock(&key, START).add(&last),
            Err(Refused::Duplicate),
            "it is known while somebody waits"
        );
        assert_eq!(table.ask(ticket, START), Fate::Decided(7));
        assert_eq!(table.ask(ticket, START), Fate::Forgotten, "used up");
        assert_eq!(table.lock(&key, START).add(&last), Ok(()), "another datagram");
        assert_eq!(table.lock(&key, START).decision(), None);
    }

    #[test]
    fn an_end_and_old_age_are_told_to_those_that_wait() {
        let (key, middle) = piece(1, 16, 16, true);
        let wait = |table: &Table<u32>| {
            let mut datagram = table.lock(&key, START);
            datagram.add(&middle).unwrap();
            datagram.wait().unwrap()
        };
        let ended = table();
        let ticket = wait(&ended);
        let news = ended.news();
        add(&ended, piece(1, 24, 16, true), START).unwrap_err();
        assert_ne!(ended.news(), news);
        assert_eq!(ended.ask(ticket, START), Fate::Ended);

        let old = table();
        let ticket = wait(&old);
        let later = START + Duration::from_secs(30);
        assert_eq!(old.ask(ticket, later - Duration::from_nanos(1)), Fate::Undecided);
        assert_eq!(old.ask(ticket, later), Fate::Forgotten);
        old.lock(&key, later).decide(9);
        assert_eq!(old.ask(ticket, later), Fate::Forgotten, "of the same name, but another");
    }

    #[test]
    fn a_flood_pushes_out_the_oldest() {
        let table = table();
        let at = |number: u32| START + Duration::from_millis(u64::from(number));
        for number in 0..WAYS as u32 {
            let (key, first) = piece(number, 0, 16, true);
            let mut datagram = table.lock(&key, at(number));
            datagram.add(&first).unwrap();
            datagram.decide(number);
        }
        let (key, late) = piece(100, 16, 16, true);
        let ticket = {
            let mut datagram = table.lock(&key, at(50));
            datagram.add(&late).unwrap();
            datagram.wait().unwrap()
        };
        let decisions: Vec<_> = (1..WAYS as u32)
            .map(|number| table.lock(&piece(number, 0, 16, true).0, at(60)).decision())
            .collect();
        assert_eq!(decisions, (1..WAYS as u32).map(Some).collect::<Vec<_>>(), "all but the oldest");
        for number in 0..2 * WAYS as u32 {
            drop(table.lock(&piece(200 + number, 0, 16, true).0, at(70 + number)));
        }
        assert_eq!(table.ask(ticket, at(90)), Fate::Forgotten);
        table.give_up(ticket);
    }

    #[test]
    fn few_of_one_datagram_wait() {
        let table = table();
        let (key, _) = piece(1, 16, 16, true);
        let mut datagram = table.lock(&key, START);
        let tickets: Vec<Ticket> = std::iter::from_fn(|| datagram.wait()).collect();
        assert_eq!(tickets.len(), usize::from(MAX_WAITING));
        drop(datagram);
        table.give_up(tickets[0]);
        assert!(table.lock(&key, START).wait().is_some());
    }
}
