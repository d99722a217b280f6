//! What holds for fragments, in any order, over several workers: run by the fuzz target `fragments`, and over its corpus by
//! an ordinary test (tests/corpus.rs).
//!
//! What becomes of each is compared with what a plain model says, which knows each datagram as a list of the units that
//! were there. An input is a sequence of steps (see [`Step`]).
#![allow(dead_code)] // each user runs some of it

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;

use uvs::director::{
    Batch, Capacity, Configuration, Director, DropReason, Network, Offload, PortLink, Shared, Verdict,
};
use uvs::forward::NextHop;
use uvs::scheduler;
use uvs::service::{Chooser, RealServer, ServerId, Service, ServiceId, ServiceTable};
use uvs::sys::frames::FramePool;
use uvs::types::{Duration, ForwardingMethod, HashKey, Instant, MacAddress, PortId, Protocol, ServiceKey};
use uvs::wire::build::{Build, Transport};
use uvs::wire::{Outcome, parse};

/// Most steps of one input: fewer than fragments may wait.
const MAX_STEPS: usize = 400;
const WORKERS: usize = 3;
const SERVERS: u32 = 4;
const CHUNKS: u32 = 512;
/// Most fragments of one datagram that wait.
const MAX_WAITING: usize = 64;
const ARRIVAL: PortId = PortId(0);
const DIRECTOR: [u8; 6] = [2, 0, 0, 0, 1, 254];
const VIP: [u8; 4] = [10, 88, 0, 100];
const VIP6: [u8; 16] = [0xfd, 0x88, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];

/// One thing that happens, as bytes.
#[derive(Clone, Copy)]
enum Step {
    /// 0x00 to 0x7f: a fragment arrives. That byte picks the worker, the next one the datagram (see [`Name`]), the third
    /// the place in it in units of 8 bytes, 32 at most; of the fourth, three bits are its length in units less one, 0x40
    /// makes it three bytes longer, and 0x80 says that more follows.
    Fragment { worker: usize, name: Name, start: u16, length: u16, more: bool },
    /// 0x80 to 0xbf: a worker is at leisure.
    Tick { worker: usize },
    /// 0xc0 to 0xff: time passes, 2^n ms, at most a minute and some.
    Wait(Duration),
}

/// Which datagram: bit 0 is the family, bit 1 says that it is for a port without a service, the rest tells them apart.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Name(u8);

impl Name {
    fn is_ipv6(self) -> bool {
        self.0 & 1 != 0
    }

    fn is_the_hosts(self) -> bool {
        self.0 & 2 != 0
    }

    fn patience(self) -> Duration {
        Duration::from_secs(if self.is_ipv6() { 60 } else { 30 })
    }

    /// Its fragment with these bytes, a first one beginning with a UDP header.
    fn fragment(self, start: u16, length: u16, more: bool) -> Vec<u8> {
        let build =
            if self.is_ipv6() { Build::ipv6([7; 16], VIP6) } else { Build::ipv4([192, 0, 2, 1], VIP) };
        let port = if self.is_the_hosts() { 9 } else { 53 };
        let transport =
            Transport::Udp { source: 1024 + u16::from(self.0), destination: port, checksum: false };
        let header = if start == 0 { 8 } else { 0 };
        let payload: Vec<u8> = (start + header..start + length).map(|at| (at as u8) ^ self.0).collect();
        build
            .destination_mac(DIRECTOR)
            .identification(u32::from(self.0))
            .transport(transport)
            .payload(&payload)
            .fragment(start, more)
            .frame()
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (&first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(first)
    }

    fn step(&mut self) -> Option<Step> {
        let first = self.byte()?;
        let worker = usize::from(first & 0x3f) % WORKERS;
        Some(match first >> 6 {
            0 | 1 => {
                let (name, start, length) = (Name(self.byte()? % 16), self.byte()?, self.byte()?);
                let odd = if length & 0x40 != 0 { 3 } else { 0 };
                let units = 1 + u16::from(length & 7);
                let start = u16::from(start % 33) * 8;
                let more = length & 0x80 != 0;
                Step::Fragment { worker, name, start, length: units * 8 + odd, more }
            }
            2 => Step::Tick { worker },
            _ => Step::Wait(Duration::from_millis(1 << (first & 0x3f).min(16))),
        })
    }
}

/// Where a datagram's first fragment went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    Server([u8; 6]),
    Host,
}

/// What is expected of a frame, by its number.
type Ends = BTreeMap<u16, Result<Way, DropReason>>;

/// A datagram as the model knows it.
struct Datagram {
    since: Instant,
    units: BTreeSet<u16>,
    total: Option<u16>,
    way: Option<Way>,
    ended: bool,
    /// Worker and number of those that wait.
    waiting: Vec<(usize, u16)>,
}

#[derive(Default)]
struct Model {
    datagrams: BTreeMap<Name, Datagram>,
    ends: Ends,
}

impl Model {
    /// The frames that wait in a datagram that nobody asks for any more.
    fn forget(&mut self, name: Name) {
        for (_, number) in self.datagrams.remove(&name).into_iter().flat_map(|datagram| datagram.waiting) {
            self.ends.insert(number, Err(DropReason::FragmentWithoutFirst));
        }
    }

    fn forget_if_old(&mut self, name: Name, now: Instant) {
        if self.datagrams.get(&name).is_some_and(|datagram| now.since(datagram.since) >= name.patience()) {
            self.forget(name);
        }
    }

    fn forget_if_done(&mut self, name: Name) {
        let done = self.datagrams.get(&name).is_some_and(|datagram| {
            let complete =
                datagram.total.is_some_and(|total| datagram.units.len() == usize::from(total.div_ceil(8)));
            complete && !datagram.ended && datagram.way.is_some() && datagram.waiting.is_empty()
        });
        if done {
            self.datagrams.remove(&name);
        }
    }

    /// Whether the fragment may take part, and with which way, if that is known.
    fn add(
        &mut self,
        name: Name,
        (start, length, more): (u16, u16, bool),
        now: Instant,
    ) -> Result<Option<Way>, DropReason> {
        self.forget_if_old(name, now);
        let datagram = self.datagrams.entry(name).or_insert_with(|| Datagram {
            since: now,
            units: BTreeSet::new(),
            total: None,
            way: None,
            ended: false,
            waiting: Vec::new(),
        });
        let odd = more && length % 8 != 0;
        let end = if odd { start + length - length % 8 } else { start + length };
        let mut ends = odd && name.is_ipv6();
        ends |= match datagram.total {
            Some(total) if more => end > total,
            Some(total) => end != total,
            None => !more && datagram.units.last().is_some_and(|last| end < (last + 1) * 8),
        };
        let units: BTreeSet<u16> = (start / 8..end.div_ceil(8)).collect();
        let present = units.intersection(&datagram.units).count();
        if datagram.ended || ends || (present > 0 && present < units.len()) {
            datagram.ended = true;
            return Err(DropReason::FragmentOverlap);
        }
        if present > 0 {
            return Err(DropReason::FragmentDuplicate);
        }
        datagram.units.extend(units);
        if !more {
            datagram.total = Some(end);
        }
        Ok(datagram.way)
    }

    fn tick(&mut self, worker: usize, now: Instant) {
        let names: Vec<Name> = self.datagrams.keys().copied().collect();
        for name in names {
            self.forget_if_old(name, now);
            let Some(datagram) = self.datagrams.get_mut(&name) else { continue };
            let end = match datagram.way {
                _ if datagram.ended => Err(DropReason::FragmentOverlap),
                Some(way) => Ok(way),
                None => continue,
            };
            for (_, number) in datagram.waiting.extract_if(.., |(its, _)| *its == worker) {
                self.ends.insert(number, end);
            }
            self.forget_if_done(name);
        }
    }
}

struct Worker {
    director: Director,
    frames: FramePool,
    batch: Batch,
}

struct World {
    workers: Vec<Worker>,
    now: Instant,
    model: Model,
    ends: Ends,
    sent: BTreeMap<u16, Vec<u8>>,
}

impl World {
    fn new() -> Self {
        let capacity = Capacity { connections: 1024, servers: 64, workers: WORKERS };
        let shared = Shared::new(capacity, [HashKey::new([1, 2]), HashKey::new([3, 4])]).expect("memory");
        let mut services = ServiceTable::default();
        let mut next_hops = Vec::new();
        for (number, address) in [IpAddr::from(VIP), VIP6.into()].into_iter().enumerate() {
            let id = ServiceId(number as u32);
            let mut chooser =
                Chooser::new(scheduler::create("rr", 0, HashKey::new([5, 6])).expect("a scheduler"));
            for server in 0..SERVERS {
                let server = ServerId(id.0 * SERVERS + server);
                let slot = shared.slots.get(server);
                slot.assign(id);
                slot.set_weight(1);
                slot.set_available(true);
                let real = IpAddr::from([10, 88, 2, server.0 as u8]);
                let method = ForwardingMethod::DirectRouting;
                chooser.add(&shared.slots, RealServer { id: server, address: real, port: 53, method });
                next_hops.push(NextHop::Ready {
                    port: PortId(1),
                    source: MacAddress(DIRECTOR),
                    destination: MacAddress([2, 0, 0, 0, 2, server.0 as u8]),
                    vlan: None,
                    mtu: 1500,
                });
            }
            let key = ServiceKey::Address { protocol: Protocol::Udp, address, port: 53 };
            services.insert(Arc::new(Service {
                id,
                key,
                chooser: Arc::new(Mutex::new(chooser)),
                persistence: None,
                one_packet: false,
            }));
        }
        shared.configuration.store(Arc::new(Configuration { services, ..Configuration::default() }));
        shared.network.store(Arc::new(Network {
            ports: vec![
                PortLink { addresses: vec![MacAddress(DIRECTOR)], networks: Vec::new(), mtu: 1500 };
                2
            ],
            local: [IpAddr::from(VIP), IpAddr::from(VIP6)].into(),
            local_networks: Vec::new(),
            next_hops,
            ..Network::default()
        }));
        let worker = |number| Worker {
            director: Director::new(Arc::clone(&shared), number),
            frames: FramePool::new(CHUNKS, 2048).expect("memory"),
            batch: Batch::new(),
        };
        Self {
            workers: (0..WORKERS).map(worker).collect(),
            now: Instant::from_nanos(1_000_000_000),
            model: Model::default(),
            ends: Ends::new(),
            sent: BTreeMap::new(),
        }
    }

    fn fragment(&mut self, worker: usize, name: Name, place: (u16, u16, bool)) {
        let number = self.sent.len() as u16;
        let bytes = name.fragment(place.0, place.1, place.2);
        // As far as the packet goes: IPv6's fragment without others is none.
        let is_fragment = place.0 != 0 || place.2;
        let Worker { director, frames, batch } = &mut self.workers[worker];
        let frame = frames.allocate_copy(&bytes).expect("a chunk for each step");
        // The number travels in a field that means something only for segments.
        let offload = Offload { segment_size: number, ..Offload::default() };
        batch.push(frame, ARRIVAL, offload).expect("room");
        self.sent.insert(number, bytes);
        director.process(batch, frames, self.now);
        self.collect(worker);
        let got = self.ends.get(&number).copied();
        let whole = |got: Option<Result<Way, DropReason>>| {
            let way = got.expect("it has its ports").expect("nothing is in its way");
            assert_eq!(way == Way::Host, name.is_the_hosts());
            way
        };
        let expected = if !is_fragment {
            Some(Ok(whole(got)))
        } else {
            match self.model.add(name, place, self.now) {
                Err(reason) => Some(Err(reason)),
                Ok(_) if place.0 == 0 => {
                    let way = whole(got);
                    if let Some(datagram) = self.model.datagrams.get_mut(&name) {
                        datagram.way = Some(way);
                    }
                    Some(Ok(way))
                }
                Ok(Some(way)) => Some(Ok(way)),
                Ok(None) => self.model.datagrams.get_mut(&name).and_then(|datagram| {
                    if datagram.waiting.len() == MAX_WAITING {
                        return Some(Err(DropReason::FragmentQueueFull));
                    }
                    datagram.waiting.push((worker, number));
                    None
                }),
            }
        };
        assert_eq!(got, expected, "{name:?} {place:?}");
        if let Some(expected) = expected {
            self.model.ends.insert(number, expected);
        }
        self.model.forget_if_done(name);
    }

    fn tick(&mut self, worker: usize) {
        self.model.tick(worker, self.now);
        loop {
            let Worker { director, frames, batch } = &mut self.workers[worker];
            let done = director.tick(batch, frames, self.now);
            let released = !batch.is_empty();
            self.collect(worker);
            if done && !released {
                return;
            }
        }
    }

    fn collect(&mut self, worker: usize) {
        let Worker { director, frames, batch } = &mut self.workers[worker];
        for entry in batch.drain() {
            let after = frames.bytes(&entry.frame).to_vec();
            frames.free(entry.frame);
            let number = entry.offload.segment_size;
            let before = &self.sent[&number];
            let end = match entry.verdict {
                Verdict::Transmit(port) => {
                    assert_eq!(port, PortId(1));
                    check_sent(before, &after);
                    Ok(Way::Server(*after.first_chunk().expect("an address")))
                }
                Verdict::ToHost => {
                    assert_eq!(*before, after, "the host gets what came");
                    Ok(Way::Host)
                }
                Verdict::Drop(reason) => Err(reason),
                other => panic!("{other:?} came out"),
            };
            assert_eq!(self.ends.insert(number, end), None, "each comes out once");
        }
        let counts = director.frame_counts();
        assert!(director.is_conserved(), "{counts:?}");
        let waiting = counts.held - counts.released;
        assert_eq!(frames.available() as u64 + waiting, u64::from(CHUNKS), "no chunk is lost");
        assert_eq!(waiting != 0, director.is_holding());
    }

    /// Nobody waits for ever.
    fn end(mut self) {
        for worker in 0..WORKERS {
            self.tick(worker);
        }
        self.now += Duration::from_secs(60);
        for worker in 0..WORKERS {
            self.tick(worker);
            assert!(!self.workers[worker].director.is_holding());
        }
        assert_eq!(self.ends.len(), self.sent.len());
        assert_eq!(self.ends, self.model.ends);
    }
}

/// What is sent is what came, a hop older; parsing verifies the checksum.
fn check_sent(before: &[u8], after: &[u8]) {
    let (Outcome::Packet(came), Outcome::Packet(goes)) = (parse(before), parse(after)) else {
        panic!("no packet was sent on")
    };
    assert_eq!((goes.addresses, goes.fragment, goes.ttl), (came.addresses, came.fragment, came.ttl - 1));
    assert_eq!(after[usize::from(goes.transport_offset)..], before[usize::from(came.transport_offset)..]);
}

/// Plays an input.
///
/// # Panics
/// Where something becomes of a fragment that should not.
pub(crate) fn scenario(input: &[u8]) {
    let mut world = World::new();
    let mut reader = Reader(input);
    for _ in 0..MAX_STEPS {
        match reader.step() {
            Some(Step::Fragment { worker, name, start, length, more }) => {
                world.fragment(worker, name, (start, length, more));
            }
            Some(Step::Tick { worker }) => world.tick(worker),
            Some(Step::Wait(span)) => world.now += span,
            None => break,
        }
    }
    world.end();
}

/// Inputs to begin with.
pub(crate) fn seeds() -> BTreeMap<String, Vec<u8>> {
    const MORE: u8 = 0x80;
    const ODD: u8 = 0x40;
    const TICK: u8 = 0x80;
    const TIME: u8 = 0xc0;
    let mut seeds = BTreeMap::new();
    for (family, name) in [("ipv4", 0), ("ipv6", 1), ("ipv4-host", 2), ("ipv6-host", 3)] {
        let (first, middle, last) = ([name, 0, MORE | 3], [name, 4, MORE | 3], [name, 8, ODD | 1]);
        let mut add = |what: &str, steps: &[&[u8]]| seeds.insert(format!("{family}-{what}"), steps.concat());
        add("in-order", &[&[0], &first, &[0], &middle, &[0], &last]);
        add("reversed", &[&[0], &last, &[0], &middle, &[0], &first, &[TICK]]);
        add("twice", &[&[0], &first, &[0], &first, &[0], &middle, &[0], &middle, &[0], &last, &[0], &last]);
        add("workers", &[&[1], &middle, &[0], &first, &[2], &last, &[TICK | 1], &[TICK | 2]]);
        add("overlap", &[&[1], &last, &[0], &first, &[0, name, 2, MORE | 3], &[2], &middle, &[TICK | 1]]);
        add("two-ends", &[&[0], &first, &[0], &last, &[0, name, 8, 3], &[0], &middle]);
        add("behind-the-end", &[&[0], &last, &[0, name, 20, MORE], &[0], &first]);
        add("odd", &[&[0, name, 0, MORE | ODD | 3], &[0], &middle, &[0], &last]);
        add("too-late", &[&[0], &last, &[TIME | 16, 0], &first, &[TICK, 0], &middle]);
        add("old-way", &[&[1], &last, &[0], &first, &[TIME | 16, TICK | 1]]);
        let mut many = Vec::new();
        for unit in 0..32 {
            many.extend([unit, name, 32 - unit, MORE, unit, name + 4, 32 - unit, MORE]);
        }
        add("many", &[&many, &[0, name, 0, MORE, TICK, TICK | 1, TICK | 2]]);
    }
    seeds
}
