//! The table's protocol under a model checker: workers in many interleavings of their accesses to memory.
//!
//! ```text
//! RUSTFLAGS="--cfg uvs_shuttle" CARGO_TARGET_DIR=target/shuttle cargo test --lib conn::model
//! ```
//!
//! `shuttle` interleaves sequentially consistent accesses, by chance and by changing priorities; it does not show
//! what weaker orderings permit.

use std::sync::Arc;

use shuttle::rand::{Rng, thread_rng};
use shuttle::thread;

use super::epoch::Epochs;
use super::key::{FlowFamily, FlowKey, Ipv4};
use super::record::{Flags, Lifecycle};
use super::state::State;
use super::table::{ConnectionId, Found, NewConnection, Table, TableFull, WorkerView};
use super::timer::Wheel;
use crate::service::{ServerId, ServerSlots};
use crate::types::{Duration, ForwardingMethod, HashKey, Instant};

const NOW: Instant = Instant::from_nanos(1_000);
const SERVER: ServerId = ServerId(0);
const SERVER_ADDRESS: u32 = 0x0a00_0001;
const TWIN: u16 = 2;

struct World {
    table: Table<Ipv4>,
    slots: ServerSlots,
    epochs: Epochs,
}

impl World {
    fn new(capacity: u32) -> Arc<Self> {
        let table = Table::new(capacity, 2, HashKey::new([1, 2])).unwrap();
        Arc::new(Self { table, slots: ServerSlots::new(1), epochs: Epochs::new() })
    }

    /// Connections of a flow, by looking at every record.
    fn alive(&self, port: u16) -> usize {
        let mut count = 0;
        self.table.visit(0, u32::MAX, NOW, |_, _, record| count += usize::from(record.key() == flow(port)));
        count
    }

    fn collect(&self, wheel: &mut Wheel, view: &mut WorkerView, now: Instant) {
        while !wheel.advance(&self.table, &self.slots, view, &self.epochs, now, usize::MAX) {}
    }

    fn assert_counts(&self, alive: usize) {
        assert_eq!(self.table.alive(), alive as u64);
        assert_eq!(self.slots.get(SERVER).connections(), alive as u32);
    }
}

fn flow(port: u16) -> FlowKey<Ipv4> {
    if port == TWIN { FlowKey::new([8], 6, 0, 80) } else { FlowKey::new([7], 6, port, 80) }
}

/// What the real server sends. Flows 0 and [`TWIN`] have the same replies: their client uses one port towards two
/// virtual addresses.
fn reply(port: u16) -> FlowKey<Ipv4> {
    flow(port).reply(SERVER_ADDRESS, 8080)
}

fn after(milliseconds: u64) -> Instant {
    Instant::ZERO + Duration::from_millis(milliseconds)
}

struct Worker {
    world: Arc<World>,
    number: usize,
    view: WorkerView,
    /// Of the connections that it makes.
    method: ForwardingMethod,
}

impl Worker {
    fn new(world: &Arc<World>, number: usize) -> Self {
        let method = ForwardingMethod::DirectRouting;
        Self { world: Arc::clone(world), number, view: WorkerView::default(), method }
    }

    fn find(&self, port: u16) -> Option<u32> {
        Some(self.find_key(&flow(port))?.index)
    }

    fn find_key(&self, key: &FlowKey<Ipv4>) -> Option<Found> {
        let World { table, .. } = &*self.world;
        let hash = table.hash(key);
        table.find(table.probe(hash), key, hash, NOW)
    }

    /// As [`find_key`](Self::find_key), with the last word.
    fn find_locked(&self, key: &FlowKey<Ipv4>) -> Option<Found> {
        let World { table, .. } = &*self.world;
        table.lock(table.hash(key)).find(key, NOW)
    }

    /// The flow's connection, made if there is none.
    fn insert(&mut self, port: u16, deadline: Instant) -> Result<u32, TableFull> {
        let World { table, slots, epochs } = &*self.world;
        let hash = table.hash(&flow(port));
        let guard = match self.method {
            ForwardingMethod::Masquerading => table.lock_both(hash, table.hash(&reply(port))),
            _ => table.lock(hash),
        };
        if let Some(found) = guard.find(&flow(port), NOW) {
            return Ok(found.index);
        }
        let new = NewConnection {
            server: SERVER,
            address: Ipv4::ip(SERVER_ADDRESS),
            port: 8080,
            method: self.method,
            flags: Flags::INACTIVE,
            state: State::NONE,
            deadline,
            control: None,
        };
        let index = guard.insert(&flow(port), new, slots, &mut self.view, epochs)?;
        assert_eq!(self.world.alive(port), 1, "a flow has two connections");
        Ok(index)
    }

    fn remove(&mut self, index: u32, lifecycle: Lifecycle) {
        let World { table, slots, epochs } = &*self.world;
        let id = ConnectionId { index, generation: lifecycle.generation };
        table.remove(id, slots, &mut self.view, epochs);
    }

    /// Moves the connection between the counts, as a change of state does.
    fn turn(&self, index: u32) {
        let record = self.world.table.record(index);
        let old = record.lifecycle();
        let active = !old.is_active();
        let flags = if active { old.flags.without(Flags::INACTIVE) } else { old.flags.with(Flags::INACTIVE) };
        if old.is_alive() && record.exchange(old, Lifecycle { flags, ..old }) {
            self.world.slots.get(SERVER).connection_moved(active);
        }
    }

    /// One batch: finds or makes a connection, holds on to its record, perhaps ends it.
    fn batch(&mut self) {
        let world = Arc::clone(&self.world);
        world.epochs.enter(self.number);
        let port = thread_rng().gen_range(0..2);
        let found = match self.find(port) {
            Some(index) => Some(index),
            None => self.insert(port, after(60_000)).ok(),
        };
        let Some(index) = found else { return };
        let record = world.table.record(index);
        let held = record.lifecycle();
        match thread_rng().gen_range(0..3) {
            0 if held.is_alive() => self.remove(index, held),
            1 => self.turn(index),
            _ => thread::yield_now(),
        }
        let now = record.lifecycle();
        assert!(record.has_key(&flow(port)), "the record was used again while a worker held it");
        assert!(
            now.generation == held.generation
                || (now.generation == held.generation.wrapping_add(1) && !now.is_alive()),
            "the record was used again while a worker held it: {held:?}, then {now:?}"
        );
        world.table.reclaim(&mut self.view, &world.epochs);
    }
}

#[test]
fn one_connection_a_flow_and_no_record_used_again_while_held() {
    let model = || {
        let world = World::new(2);
        let threads: Vec<_> = (0..3)
            .map(|number| {
                let mut worker = Worker::new(&world, number);
                thread::spawn(move || {
                    for _ in 0..4 {
                        worker.batch();
                    }
                    worker.world.epochs.leave(worker.number);
                    worker
                })
            })
            .collect();
        let mut workers: Vec<Worker> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        let alive = [0, 1].map(|port| world.alive(port));
        assert!(alive.iter().all(|&count| count <= 1));
        world.assert_counts(alive.iter().sum());
        // What is not alive can be used again: no record is lost.
        let mut made = alive.iter().sum::<usize>();
        // Nobody looks at anything by now.
        for worker in &mut workers {
            while worker.insert(100 + made as u16, after(60_000)).is_ok() {
                made += 1;
            }
        }
        assert_eq!(made, 2);
    };
    // Workers that take turns at every step meet at locks; those that stop for long, at records.
    shuttle::check_random(model, 300);
    shuttle::check_pct(model, 700, 3);
}

impl Worker {
    /// One batch of a masqueraded flow: makes or ends it, and looks it up both ways.
    fn masqueraded_batch(&mut self, flows: &[u16]) {
        let world = Arc::clone(&self.world);
        world.epochs.enter(self.number);
        let port = flows[thread_rng().gen_range(0..flows.len())];
        let found = self.find_key(&reply(port));
        if let Some(Found { index, is_reply }) = found {
            assert!(is_reply);
            self.assert_same(index, |worker, key| worker.find_locked(&key).map(|found| found.index));
        }
        let Some(index) = self.find(port).or_else(|| self.insert(port, after(60_000)).ok()) else { return };
        if !flows.contains(&TWIN) {
            self.assert_same(index, |worker, key| {
                let reply = key.reply(SERVER_ADDRESS, 8080);
                worker.find_locked(&reply).map(|found| found.index)
            });
        }
        let held = world.table.record(index).lifecycle();
        if thread_rng().gen_range(0..2) == 0 && held.is_alive() {
            self.remove(index, held);
        }
        world.table.reclaim(&mut self.view, &world.epochs);
    }

    /// Looks a record's flow up another way: it is found there, or it has ended.
    fn assert_same(&self, index: u32, look_up: impl Fn(&Self, FlowKey<Ipv4>) -> Option<u32>) {
        let record = self.world.table.record(index);
        let held = record.lifecycle();
        let found = look_up(self, record.key());
        let ended = !held.is_alive() || record.lifecycle().generation != held.generation;
        assert!(found == Some(index) || ended, "found one way only: {found:?} for {index}, {held:?}");
    }
}

/// Two flows of which each has its entry in the bucket where the other's replies have theirs: whoever locks them in the
/// order of its own entries waits for the other for ever.
fn crossing_flows() -> [u16; 2] {
    let world = World::new(2);
    let buckets =
        |port: u16| [flow(port), reply(port)].map(|key| world.table.bucket_start(world.table.hash(&key)));
    let crossing = |one: u16, other: u16| {
        let ([own, replies], [other_own, other_replies]) = (buckets(one), buckets(other));
        own == other_replies && replies == other_own && own != replies
    };
    let pairs = (100..400).flat_map(|one| (one + 1..400).map(move |other| [one, other]));
    pairs.into_iter().find(|&[one, other]| crossing(one, other)).expect("among so many")
}

/// Two look-ups, by what the client sends and by what the real server sends, agree.
#[test]
fn a_masqueraded_connection_is_found_both_ways_or_neither() {
    let model = |flows: [u16; 2]| {
        let world = World::new(2);
        let threads: Vec<_> = (0..3)
            .map(|number| {
                let mut worker = Worker::new(&world, number);
                worker.method = ForwardingMethod::Masquerading;
                thread::spawn(move || {
                    for _ in 0..3 {
                        worker.masqueraded_batch(&flows);
                    }
                    worker.world.epochs.leave(worker.number);
                    worker
                })
            })
            .collect();
        let mut workers: Vec<Worker> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        let alive: Vec<u32> = flows.iter().filter_map(|&port| workers[0].find(port)).collect();
        world.assert_counts(alive.len());
        for index in alive {
            let held = world.table.record(index).lifecycle();
            workers[0].remove(index, held);
        }
        // Nothing leads anywhere any more, from either side.
        world.assert_counts(0);
        assert!(flows.iter().all(|&port| workers[0].find_key(&reply(port)).is_none()));
        assert!(world.table.is_blank(), "an entry was left");
    };
    shuttle::check_random(move || model([0, TWIN]), 300);
    shuttle::check_pct(move || model([0, TWIN]), 700, 3);
    // Looked for once, though only an execution of the model may do so.
    let found = Arc::new(std::sync::OnceLock::new());
    let again = Arc::clone(&found);
    shuttle::check_random(move || model(*found.get_or_init(crossing_flows)), 300);
    shuttle::check_pct(move || model(*again.get_or_init(crossing_flows)), 700, 3);
}

/// One worker shortens a connection's life while the other's wheel looks at it; the record goes from one use to the
/// next meanwhile. Whatever the order, everything is collected when it is due.
#[test]
fn no_connection_is_without_a_timer() {
    let model = || {
        let world = World::new(2);
        let mut owner = Worker::new(&world, 0);
        let mut wheels = [Wheel::default(), Wheel::default()];
        let index = owner.insert(0, after(1_000)).unwrap();
        assert!(wheels[0].file(&world.table, index, after(1_000)));
        // A packet has put the end off since.
        world.table.record(index).set_deadline(after(900_000));
        let [mut first, mut second] = wheels;
        let firing = thread::spawn(move || {
            let world = Arc::clone(&owner.world);
            world.epochs.enter(0);
            world.collect(&mut first, &mut owner.view, after(1_020));
            world.epochs.leave(0);
            (owner, first)
        });
        let mut other = Worker::new(&world, 1);
        world.epochs.enter(1);
        let record = world.table.record(index);
        let held = record.lifecycle();
        let index = if thread_rng().gen_range(0..2) == 0 {
            other.remove(index, held);
            world.epochs.leave(1);
            world.epochs.enter(1);
            other.insert(1, after(10_000)).unwrap()
        } else {
            record.set_deadline(after(10_000));
            index
        };
        assert!(second.file(&world.table, index, after(10_000)));
        world.epochs.leave(1);
        let (mut owner, mut first) = firing.join().unwrap();
        world.assert_counts(1);
        world.collect(&mut first, &mut owner.view, after(9_900));
        world.collect(&mut second, &mut other.view, after(9_900));
        world.assert_counts(1);
        world.collect(&mut first, &mut owner.view, after(10_040));
        world.collect(&mut second, &mut other.view, after(10_040));
        world.assert_counts(0);
    };
    shuttle::check_random(model, 1000);
}
