//! Templates against a plain model of the kernel's, in which every timer fires at its moment.

use proptest::prelude::*;

use super::*;
use crate::conn::Ipv4;
use crate::service::{ServerId, ServerSlots};
use crate::types::{Duration, Family, HashKey, Instant, Protocol, ServiceKey};

const SERVERS: u32 = 3;
const VIP: u32 = 0x0a58_0064;
const START: Instant = Instant::from_nanos(1_000_000_000);
/// Moments are this far from a whole second after one another, once more for each: so none of the first 24 comes within
/// a timer's resolution after a deadline, where it would be a matter of luck what happens first.
const OFFSET: Duration = Duration::from_millis(40);
const MOMENTS: u32 = 24;

/// What a connection is to, as far as templates tell apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Wanted {
    /// A service of this port: a template of its own.
    Port(u16),
    /// A service with port 0: one template for all ports of a protocol.
    AllPorts(Protocol),
    /// A service by this mark: one template for all protocols and ports.
    Mark(u32),
}

impl Wanted {
    /// Protocol number, virtual address or mark, and port of its template.
    fn of_template(self) -> (u8, u32, u16) {
        match self {
            Self::Port(port) => (Protocol::Tcp.number(), VIP, port),
            Self::AllPorts(protocol) => (protocol.number(), VIP, 0),
            Self::Mark(mark) => (0, mark, 0),
        }
    }
}

#[derive(Clone, Debug)]
enum Operation {
    /// A new connection of this client, by this protocol and to this port, of a service of the kind.
    Connect { client: u32, wanted: Wanted, packet: (Protocol, u16) },
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
        6 => (0_u32..6, wanted()).prop_map(|(client, (wanted, packet))| Connect { client, wanted, packet }),
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

fn wanted() -> impl Strategy<Value = (Wanted, (Protocol, u16))> {
    let protocol = prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp)];
    let packet = (protocol, prop_oneof![Just(80), Just(443)]);
    prop_oneof![
        3 => prop_oneof![Just(80), Just(443)].prop_map(|port| (Wanted::Port(port), (Protocol::Tcp, port))),
        1 => packet.clone().prop_map(|packet| (Wanted::AllPorts(packet.0), packet)),
        // One mark looks like the virtual address.
        3 => (prop_oneof![Just(7), Just(8), Just(VIP)], packet)
            .prop_map(|(mark, packet)| (Wanted::Mark(mark), packet)),
    ]
}

/// The kernel's template, as plain data.
#[derive(Clone, Debug)]
struct Plain {
    number: usize,
    client: u32,
    wanted: Wanted,
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

    fn key(&self, client: u32, wanted: Wanted, (protocol, port): (Protocol, u16)) -> TemplateKey<Ipv4> {
        let address = |port| ServiceKey::Address { protocol, address: [10, 88, 0, 100].into(), port };
        let service = match wanted {
            Wanted::Port(port) => address(port),
            Wanted::AllPorts(_) => address(0),
            Wanted::Mark(mark) => ServiceKey::Mark { family: Family::V4, mark },
        };
        let mask = ClientMask::ipv4(self.mask.into());
        let addresses = [u64::from(client) << 32 | u64::from(VIP)];
        TemplateKey::new(&service, mask, addresses, protocol.number(), port)
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

    fn connect(&mut self, client: u32, wanted: Wanted, packet: (Protocol, u16)) {
        let TemplateKey { flow: key, of_one_port } = self.key(client, wanted, packet);
        let masked = client & self.mask;
        let plain = self
            .plain
            .iter()
            .position(|plain| (plain.client, plain.wanted) == (masked, wanted) && !plain.invalid);
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
                let port = if of_one_port { packet.1 } else { 0 };
                let new = NewTemplate { server: ServerId(server), port, timeout };
                let id = self.templates.lock(&key).insert(&key, new, &self.slots, self.now).unwrap();
                self.made += 1;
                self.plain.push(Plain {
                    number: self.made,
                    client: masked,
                    wanted,
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
        let plain = self.plain.iter_mut().rfind(|plain| (plain.client, plain.wanted) == (masked, wanted));
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
            Operation::Connect { client, wanted, packet } => self.connect(client, wanted, packet),
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

    /// What a listing shows: client; protocol, virtual address or mark, and port; server, its port; nanoseconds left,
    /// assured.
    fn check(&self) {
        let mut listed = Vec::new();
        let mut next = Some(0);
        while let Some(start) = next {
            next = self.templates.visit(start, 5, self.now, |walked| {
                let (std::net::IpAddr::V4(client), (std::net::IpAddr::V4(address), port)) =
                    (walked.client, walked.service)
                else {
                    panic!("{walked:?}")
                };
                let service = (walked.protocol, u32::from(address), port);
                let server = (walked.server.0, walked.server_port);
                let left = walked.remaining.as_nanos();
                listed.push((u32::from(client), service, server, left, walked.assured));
            });
        }
        let row = |plain: &Plain| {
            let (protocol, address, port) = plain.wanted.of_template();
            let port = if plain.invalid { u16::MAX } else { port };
            let left = plain.deadline.since(self.now).as_nanos();
            (plain.client, (protocol, address, port), (plain.server, port), left, plain.assured)
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
