//! The templates' protocol under a model checker: workers in many interleavings of their accesses to memory.
//!
//! ```text
//! RUSTFLAGS="--cfg uvs_shuttle" CARGO_TARGET_DIR=target/shuttle cargo test --lib persistence::model
//! ```

use std::sync::Arc;

use shuttle::rand::{Rng, thread_rng};
use shuttle::sync::Mutex;
use shuttle::thread;

use super::{NewTemplate, TemplateId, Templates};
use crate::conn::{FlowKey, Ipv4};
use crate::service::{ServerId, ServerSlots};
use crate::sys::memory::atomic::{AtomicU32, Ordering};
use crate::types::{Duration, HashKey, Instant};

const NOW: Instant = Instant::from_nanos(1_000_000_000);
/// Past the life of a template that nobody used since [`NOW`], and of its timer's tick.
const LATER: Instant = Instant::from_nanos(62_000_000_000);
const LIFE: Duration = Duration::from_secs(60);
const SERVERS: usize = 16;

struct World {
    templates: Templates<Ipv4>,
    slots: ServerSlots,
    /// Whom the scheduler picks next: another one each time, so that two picks for one client cannot agree.
    next: AtomicU32,
    /// Where new connections went: client, server.
    went: Mutex<Vec<(u32, ServerId)>>,
}

fn key(client: u32) -> FlowKey<Ipv4> {
    FlowKey::new([u64::from(client) << 32], 6, 0, 80)
}

impl World {
    fn new(capacity: u32) -> Arc<Self> {
        let slots = ServerSlots::new(SERVERS);
        (0..SERVERS).for_each(|server| slots.get(ServerId(server as u32)).set_available(true));
        let templates = Templates::new(capacity, HashKey::new([1, 2])).unwrap();
        Arc::new(Self { templates, slots, next: AtomicU32::new(0), went: Mutex::new(Vec::new()) })
    }

    /// A new connection of `client`, as the director makes it. With `lets_go`, as it must not be made: the lock is not
    /// held from the look-up on.
    fn connect(&self, client: u32, now: Instant, lets_go: bool) -> TemplateId {
        let key = key(client);
        let mut shard = self.templates.lock(&key);
        let found = shard.find(&key, &self.slots, now);
        if lets_go {
            drop(shard);
            shard = self.templates.lock(&key);
        }
        let (id, server) = match found {
            Some(found) => (found.id, found.server),
            None => {
                let server = ServerId(self.next.fetch_add(1, Ordering::Relaxed));
                let new = NewTemplate { server, port: 80, timeout: LIFE };
                (shard.insert(&key, new, &self.slots, now).unwrap(), server)
            }
        };
        shard.take_control(id, now);
        drop(shard);
        self.went.lock().unwrap().push((client, server));
        id
    }

    fn persistent(&self) -> u32 {
        (0..SERVERS).map(|server| self.slots.get(ServerId(server as u32)).persistent()).sum()
    }

    /// Templates and whether they are assured, by looking at every record.
    fn listed(&self, now: Instant) -> Vec<bool> {
        let mut listed = Vec::new();
        self.templates.visit(0, u32::MAX, now, |walked| listed.push(walked.assured));
        listed
    }
}

/// Three workers meet two new clients; each client has one server after all.
fn one_server_each(lets_go: bool) {
    let world = World::new(8);
    let threads: Vec<_> = (0..3)
        .map(|_| {
            let world = Arc::clone(&world);
            thread::spawn(move || {
                for _ in 0..2 {
                    world.connect(thread_rng().gen_range(0..2), NOW, lets_go);
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let went = world.went.lock().unwrap();
    for client in 0..2 {
        let mut servers: Vec<u32> =
            went.iter().filter(|(whose, _)| *whose == client).map(|(_, server)| server.0).collect();
        servers.dedup();
        assert!(servers.len() <= 1, "a client has two servers: {servers:?}");
    }
    let clients = (0..2).filter(|client| went.iter().any(|(whose, _)| whose == client)).count();
    assert_eq!((world.templates.alive(), world.persistent()), (clients as u64, clients as u32));
}

#[test]
fn workers_that_meet_a_new_client_agree_on_one_server() {
    shuttle::check_random(|| one_server_each(false), 500);
    shuttle::check_pct(|| one_server_each(false), 500, 3);
}

/// That the check above would see it.
#[test]
#[should_panic(expected = "a client has two servers")]
fn without_the_lock_they_would_not() {
    shuttle::check_random(|| one_server_each(true), 2000);
}

/// Connections end, are established and give way, and templates are collected and made anew, all at once: none ends that
/// controls a connection, none is assured that was not meant, and all are gone in the end.
#[test]
fn no_template_ends_that_controls_a_connection() {
    let model = || {
        let world = World::new(2);
        let id = world.connect(0, NOW, false);
        let ending = {
            let world = Arc::clone(&world);
            thread::spawn(move || {
                if thread_rng().gen_range(0..2) == 0 {
                    world.templates.assure(id);
                }
                world.templates.give_up_control(id);
                if thread_rng().gen_range(0..2) == 0 {
                    world.templates.drop_unassured(id, &world.slots);
                }
                // Late: the template may be another's by now.
                world.templates.assure(id);
            })
        };
        let collecting = {
            let world = Arc::clone(&world);
            thread::spawn(move || while !world.templates.collect(&world.slots, LATER, 1) {})
        };
        let second = world.connect(thread_rng().gen_range(0..2), LATER, false);
        // Whatever became of the first: this one is there as long as it controls something.
        world.templates.collect(&world.slots, LATER, 8);
        assert!(
            world.templates.record(second.index).is(second),
            "a template ended with a connection under it"
        );
        ending.join().unwrap();
        collecting.join().unwrap();
        if second != id {
            assert!(!world.templates.record(second.index).is_assured(), "somebody else was meant");
        }
        assert_eq!(world.templates.alive(), u64::from(world.persistent()));
        world.templates.give_up_control(second);
        let end = LATER + Duration::from_secs(600);
        while !world.templates.collect(&world.slots, end, 1) {}
        assert_eq!((world.templates.alive(), world.persistent()), (0, 0));
        assert!(world.listed(LATER).is_empty());
        assert_eq!(
            world.templates.next_deadline(),
            None,
            "what is filed is never forgotten, nor what is gone kept"
        );
    };
    shuttle::check_random(model, 1000);
    shuttle::check_pct(model, 1000, 3);
}

/// One worker files a template while another collects: it is known when it is due.
#[test]
fn what_is_filed_while_others_collect_is_not_forgotten() {
    let model = || {
        let world = World::new(8);
        let first = world.connect(0, NOW, false);
        world.templates.give_up_control(first);
        let collecting = {
            let world = Arc::clone(&world);
            thread::spawn(move || while !world.templates.collect(&world.slots, LATER, 8) {})
        };
        let second = world.connect(1, NOW, false);
        world.templates.give_up_control(second);
        collecting.join().unwrap();
        // It may have been put off while it controlled a connection.
        let end = LATER + Duration::from_secs(600);
        while !world.templates.collect(&world.slots, end, 8) {}
        assert_eq!(world.templates.alive(), 0, "a template nobody will look at");
    };
    shuttle::check_random(model, 1000);
    shuttle::check_pct(model, 1000, 3);
}
