//! The table's protocol under a model checker: workers in many interleavings. `conn::model` says how to run it.

use std::sync::Arc;

use shuttle::rand::{Rng, thread_rng};
use shuttle::thread;

use super::{Fate, Key, Piece, Refused, Table, Ticket};
use crate::types::{Duration, HashKey, Instant};
use crate::wire::build::{Build, Transport};
use crate::wire::{Outcome, parse};

const NOW: Instant = Instant::from_nanos(1_000_000_000);

/// The fragments of a UDP datagram.
fn fragments(identification: u32) -> Vec<(Key, Piece)> {
    let build = Build::ipv4([192, 0, 2, 1], [198, 51, 100, 7])
        .transport(Transport::udp(1, 2))
        .identification(identification)
        .payload(&[0; 40]);
    let piece = |frame: Vec<u8>| match parse(&frame) {
        Outcome::Packet(packet) => Piece::of(&packet).unwrap(),
        other => panic!("{other:?}"),
    };
    build.fragments(16).into_iter().map(piece).collect()
}

/// A worker, as the director is one: it acts on each fragment, and asks after those that wait when there is news.
struct Worker {
    table: Arc<Table<u32>>,
    decision: u32,
    waiting: Vec<Ticket>,
    seen: u64,
    /// Decisions that fragments left by.
    followed: Vec<u32>,
    refused: Vec<Refused>,
}

impl Worker {
    fn new(table: &Arc<Table<u32>>, decision: u32) -> Self {
        let table = Arc::clone(table);
        Self { table, decision, waiting: Vec::new(), seen: 0, followed: Vec::new(), refused: Vec::new() }
    }

    fn receive(&mut self, (key, piece): &(Key, Piece)) {
        let mut datagram = self.table.lock(key, NOW);
        if let Err(refused) = datagram.add(piece) {
            self.refused.push(refused);
        } else if piece.start == 0 {
            datagram.decide(self.decision);
            self.followed.push(self.decision);
        } else {
            match datagram.decision() {
                Some(decision) => self.followed.push(decision),
                None => self.waiting.push(datagram.wait().expect("few wait")),
            }
        }
    }

    fn tick(&mut self) {
        let news = self.table.news();
        if std::mem::replace(&mut self.seen, news) == news {
            return;
        }
        for ticket in std::mem::take(&mut self.waiting) {
            match self.table.ask(ticket, NOW) {
                Fate::Undecided => self.waiting.push(ticket),
                Fate::Decided(decision) => self.followed.push(decision),
                Fate::Ended => self.refused.push(Refused::Ended),
                Fate::Forgotten => panic!("nothing made it so"),
            }
        }
    }
}

/// Lets workers receive these, one at a time each; what they are left with.
fn play(shares: Vec<Vec<(Key, Piece)>>) -> (Arc<Table<u32>>, Vec<Worker>) {
    let table = Arc::new(Table::new(8, HashKey::new([1, 2])).unwrap());
    let threads: Vec<_> = (1..)
        .zip(shares)
        .map(|(decision, share)| {
            let mut worker = Worker::new(&table, decision);
            thread::spawn(move || {
                for fragment in &share {
                    worker.receive(fragment);
                    worker.tick();
                }
                worker
            })
        })
        .collect();
    let mut workers: Vec<Worker> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    workers.iter_mut().for_each(Worker::tick);
    (table, workers)
}

#[test]
fn every_fragment_follows_its_first_whichever_worker_has_it() {
    let model = || {
        let mut shares = vec![Vec::new(); 3];
        for fragment in fragments(1) {
            shares[thread_rng().gen_range(0..3)].push(fragment);
        }
        let (table, workers) = play(shares);
        let followed: Vec<u32> = workers.iter().flat_map(|worker| worker.followed.clone()).collect();
        assert_eq!(followed.len(), 3);
        assert!(followed.iter().all(|decision| *decision == followed[0]), "{followed:?}");
        assert!(workers.iter().all(|worker| worker.waiting.is_empty() && worker.refused.is_empty()));
        let (key, _) = fragments(1)[0];
        assert_eq!(table.lock(&key, NOW).decision(), None, "forgotten when complete");
    };
    shuttle::check_random(model, 1000);
    shuttle::check_pct(model, 1000, 3);
}

#[test]
fn one_of_two_first_fragments_decides() {
    let model = || {
        let [first, second, _] = fragments(1).try_into().unwrap();
        let (_, workers) = play(vec![vec![first, second], vec![second, first]]);
        let followed: Vec<u32> = workers.iter().flat_map(|worker| worker.followed.clone()).collect();
        assert!(followed == [1, 1] || followed == [2, 2], "{followed:?}");
        let refused: Vec<Refused> = workers.iter().flat_map(|worker| worker.refused.clone()).collect();
        assert_eq!(refused, [Refused::Duplicate; 2]);
        assert!(workers.iter().all(|worker| worker.waiting.is_empty()));
    };
    shuttle::check_random(model, 1000);
    shuttle::check_pct(model, 1000, 3);
}

/// The first fragment arrives on one worker while a flood on another pushes its datagram out: what waited for it learns
/// of the decision or of nothing, never of another datagram's.
#[test]
fn a_ticket_is_good_for_its_own_datagram_only() {
    let model = || {
        let table = Arc::new(Table::new(8, HashKey::new([1, 2])).unwrap());
        let mut worker = Worker::new(&table, 1);
        let [first, second, _] = fragments(1).try_into().unwrap();
        worker.receive(&second);
        let ticket = worker.waiting[0];
        let flood = {
            let table = Arc::clone(&table);
            thread::spawn(move || {
                let mut flooding = Worker::new(&table, 2);
                for number in 2..11 {
                    flooding.receive(&fragments(number)[0]);
                }
            })
        };
        let deciding = {
            let table = Arc::clone(&table);
            thread::spawn(move || Worker::new(&table, 1).receive(&first))
        };
        let early = table.ask(ticket, NOW);
        flood.join().unwrap();
        deciding.join().unwrap();
        // Past its time in any case: it had waited longer than those that came since.
        let late = table.ask(ticket, NOW + Duration::from_secs(30));
        assert!([Fate::Undecided, Fate::Decided(1), Fate::Forgotten].contains(&early), "{early:?}");
        assert_eq!(late, Fate::Forgotten);
    };
    shuttle::check_random(model, 1000);
    shuttle::check_pct(model, 1000, 3);
}
