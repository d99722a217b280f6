//! Templates against a plain model of the kernel's, in which every timer fires at its moment.

use proptest::prelude::*;

use super::*;
use crate::conn::{FlowKey, Ipv4};
use crate::service::{ServerId, ServerSlots};
use crate::types::{Duration, HashKey, Instant, Protocol, ServiceKey};

const SERVERS: u32 = 3;
const VIP: u64 = 0x0a58_0064;
const START: Instant = Instant::from_nanos(1_000_000_000);
/// Moments are this far from a whole second after one another, once more for each: so none of the first 24 comes within
/// a timer's resolution after a deadline, where it would be a matter of luck what happens first.
const OFFSET: Duration = Duration::from_millis(40);
const MOMENTS: u32 = 24;

#[derive(Clone, Debug)]
enum Operation {
    /// A new connection of this client to one of two ports.
    Connect { client: u32, port: u16 },
    /// The connection at this place of the list ends; by giving way to others, or on its own.
    End { which: usize, gives_way: bool },
    /// It is established.
    Establish { which: usize },
    /// So many seconds pass.
    Pass(u64),
    /// The service's timeout and netmask become others: which bits of a client's number count.
    Edit { timeout: u64, mask: u32 },
    /// A real server is removed or added again.
    Toggle(u32),
    /// A real server's weight becomes 0, or 1 again.
    Quiesce(u32),
    /// A setting is switched.
    ExpireQuiescent,
    /// What removed servers left is ended.
    EndOrphans,
}

fn operation() -> impl Strategy<Value = Operation> {
    use Operation::*;
    prop_oneof![
        6 => (0_u32..6, prop_oneof![Just(80), Just(443)]).prop_map(|(client, port)| Connect { client, port }),
        4 => (any::<usize>(), any::<bool>()).prop_map(|(which, gives_way)| End { which, gives_way }),
        2 => any::<usize>().prop_map(|which| Establish { which }),
        4 => (0_u64..150).prop_map(Pass),
        1 => (1_u64..200, prop_oneof![Just(u32::MAX), Just(!1), Just(0)])
            .prop_map(|(timeout, mask)| Edit { timeout, mask }),
        1 => (0..SERVERS).prop_map(Toggle),
        1 => (0..SERVERS).prop_map(Quiesce),
        1 => Just(ExpireQuiescent),
        1 => Just(EndOrphans),
    ]
}

/// The kernel's template, as plain data.
#[derive(Clone, Debug)]
struct Plain {
    number: usize,
    client: u32,
    port: u16,
    server: u32,
    timeout: Duration,
    deadline: Instant,
    controlled: u32,
    assured: bool,
    invalid: bool,
}

struct World {
    templates: Templates<Ipv4>,
    slots: ServerSlots,
    plain: Vec<Plain>,
    /// Connections: their template's name, and its number in the model.
    connections: Vec<(TemplateId, usize)>,
    made: usize,
    now: Instant,
    moments: u32,
    timeout: u64,
    mask: u32,
    expire_quiescent: bool,
    /// Whom the scheduler is to pick next.
    turn: u32,
}

impl World {
    fn new() -> Self {
        let slots = ServerSlots::new(SERVERS as usize);
        for server in 0..SERVERS {
            slots.get(ServerId(server)).set_available(true);
            slots.get(ServerId(server)).set_weight(1);
        }
        Self {
            templates: Templates::new(1000, HashKey::new([5, 6])).unwrap(),
            slots,
            plain: Vec::new(),
            connections: Vec::new(),
            made: 0,
            now: START,
            moments: 0,
            timeout: 50,
            mask: u32::MAX,
            expire_quiescent: false,
            turn: 0,
        }
    }

    fn key(&self, client: u32, port: u16) -> FlowKey<Ipv4> {
        let service = ServiceKey::Address { protocol: Protocol::Tcp, address: [10, 88, 0, 100].into(), port };
        let mask = ClientMask::ipv4(self.mask.into());
        TemplateKey::<Ipv4>::new(&service, mask, [u64::from(client) << 32 | VIP], 6, port).flow
    }

    fn is_usable(&self, server: u32) -> bool {
        let slot = self.slots.get(ServerId(server));
        slot.is_available() && !(self.expire_quiescent && slot.weight() == 0)
    }

    /// The next server in turn that takes new clients.
    fn choose(&mut self) -> Option<u32> {
        let takes = |server: &u32| {
            let slot = self.slots.get(ServerId(*server));
            slot.is_available() && slot.weight() > 0
        };
        let chosen = (1..=SERVERS).map(|step| (self.turn + step) % SERVERS).find(takes)?;
        self.turn = chosen;
        Some(chosen)
    }

    fn connect(&mut self, client: u32, port: u16) {
        let key = self.key(client, port);
        let masked = client & self.mask;
        let plain = self
            .plain
            .iter()
            .position(|plain| (plain.client, plain.port) == (masked, port) && !plain.invalid);
        let found = self.templates.lock(&key).find(&key, &self.slots, self.now);
        let expected = plain.map(|index| ServerId(self.plain[index].server));
        assert_eq!(found.map(|found| found.server), expected, "where client {client} goes");
        let usable = found.filter(|found| self.is_usable(found.server.0));
        let id = match (usable, found) {
            (Some(found), _) => found.id,
            (None, stale) => {
                if let (Some(stale), Some(plain)) = (stale, plain) {
                    self.templates.lock(&key).invalidate(stale.id);
                    self.plain[plain].invalid = true;
                }
                let Some(server) = self.choose() else { return };
                let timeout = Duration::from_secs(self.timeout);
                let new = NewTemplate { server: ServerId(server), port, timeout };
                let id = self.templates.lock(&key).insert(&key, new, &self.slots, self.now).unwrap();
                self.made += 1;
                self.plain.push(Plain {
                    number: self.made,
                    client: masked,
                    port,
                    server,
                    timeout,
                    deadline: self.now + timeout,
                    controlled: 0,
                    assured: false,
                    invalid: false,
                });
                id
            }
        };
        self.templates.lock(&key).take_control(id, self.now);
        let plain = self.plain.iter_mut().rfind(|plain| (plain.client, plain.port) == (masked, port));
        let plain = plain.unwrap();
        plain.controlled += 1;
        plain.deadline = self.now + plain.timeout;
        self.connections.push((id, plain.number));
    }

    fn end(&mut self, which: usize, gives_way: bool) {
        if self.connections.is_empty() {
            return;
        }
        let (id, number) = self.connections.swap_remove(which % self.connections.len());
        self.templates.give_up_control(id);
        let plain = self.plain.iter_mut().find(|plain| plain.number == number).unwrap();
        plain.controlled -= 1;
        if gives_way {
            let ends = plain.controlled == 0 && !plain.assured;
            assert_eq!(self.templates.drop_unassured(id, &self.slots), ends);
            self.plain.retain(|plain| plain.number != number || !ends);
        }
    }

    fn pass(&mut self, seconds: u64) {
        if self.moments == MOMENTS {
            return;
        }
        self.moments += 1;
        self.now = self.now + Duration::from_secs(seconds) + OFFSET;
        // The kernel's timers, each at its moment.
        for plain in &mut self.plain {
            while plain.deadline <= self.now && plain.controlled > 0 {
                plain.timeout = Duration::from_secs(60);
                plain.deadline += plain.timeout;
            }
        }
        self.plain.retain(|plain| plain.deadline > self.now);
        while !self.templates.collect(&self.slots, self.now, 2) {}
        let next = self.templates.next_deadline();
        assert!(next.is_none_or(|next| next > self.now), "all that was due is done");
        assert!(next.is_some() || self.plain.is_empty(), "none is forgotten");
    }

    fn apply(&mut self, operation: Operation) {
        match operation {
            Operation::Connect { client, port } => self.connect(client, port),
            Operation::End { which, gives_way } => self.end(which, gives_way),
            Operation::Establish { which } => {
                if let Some(&(id, number)) = self.connections.get(which % self.connections.len().max(1)) {
                    self.templates.assure(id);
                    self.plain
                        .iter_mut()
                        .filter(|plain| plain.number == number)
                        .for_each(|plain| plain.assured = true);
                }
            }
            Operation::Pass(seconds) => self.pass(seconds),
            Operation::Edit { timeout, mask } => (self.timeout, self.mask) = (timeout, mask),
            Operation::Toggle(server) => {
                let slot = self.slots.get(ServerId(server));
                slot.set_available(!slot.is_available());
            }
            Operation::Quiesce(server) => {
                let slot = self.slots.get(ServerId(server));
                slot.set_weight(1 - slot.weight());
            }
            Operation::ExpireQuiescent => self.expire_quiescent = !self.expire_quiescent,
            Operation::EndOrphans => {
                let mut next = Some(0);
                while let Some(start) = next {
                    next = self.templates.end_orphans(start, 7, &self.slots);
                }
                let slots = &self.slots;
                self.plain
                    .retain(|plain| plain.controlled > 0 || slots.get(ServerId(plain.server)).is_available());
            }
        }
    }

    /// What a listing shows: client, port, server, its port, nanoseconds left, assured.
    fn check(&self) {
        let mut listed = Vec::new();
        let mut next = Some(0);
        while let Some(start) = next {
            next = self.templates.visit(start, 5, self.now, |walked| {
                let std::net::IpAddr::V4(client) = walked.client else { panic!("{walked:?}") };
                let (port, left) = (walked.service.1, walked.remaining.as_nanos());
                let server = (walked.server.0, walked.server_port);
                listed.push((u32::from(client), port, server, left, walked.assured));
            });
        }
        let row = |plain: &Plain| {
            let port = if plain.invalid { u16::MAX } else { plain.port };
            let left = plain.deadline.since(self.now).as_nanos();
            (plain.client, port, (plain.server, port), left, plain.assured)
        };
        let mut expected: Vec<_> = self.plain.iter().map(row).collect();
        listed.sort_unstable();
        expected.sort_unstable();
        assert_eq!(listed, expected);
        assert_eq!(self.templates.alive(), expected.len() as u64);
        for server in 0..SERVERS {
            let count = self.plain.iter().filter(|plain| plain.server == server).count();
            assert_eq!(self.slots.get(ServerId(server)).persistent() as usize, count, "server {server}");
        }
    }
}

proptest! {
    #[test]
    fn templates_are_the_kernels(operations in prop::collection::vec(operation(), 1..80)) {
        let mut world = World::new();
        for operation in operations {
            world.apply(operation);
            world.check();
        }
    }
}
