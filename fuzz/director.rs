//! What holds for any frames, in any order, through a director: run by the fuzz target `director`, and over its corpus
//! by an ordinary test (tests/corpus.rs).
//!
//! An input is a scenario: [`HEADER_LENGTH`] bytes of setup, then steps, each of which begins with a byte whose
//! upper two bits say what it is (see [`Step`]).
#![allow(dead_code)] // each user runs some of it

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;

use uvs::director::{
    BATCH_SIZE, Batch, Capacity, Configuration, Director, DropReason, Entry, Network, Offload, PortLink,
    Settings, Shared, Verdict,
};
use uvs::forward::{NextHop, NextHopError};
use uvs::persistence::{ClientMask, Persistence};
use uvs::scheduler;
use uvs::service::{Chooser, RealServer, ServerId, Service, ServiceId, ServiceTable};
use uvs::sys::frames::FramePool;
use uvs::types::{
    Duration, Family, ForwardingMethod, HashKey, Instant, MacAddress, PortId, Protocol, ServiceKey, Tunnel,
    VlanTag,
};
use uvs::wire::build::{Build, Transport};
use uvs::wire::transport::{Checked, verify};
use uvs::wire::{Outcome, Parsed, ipv4, parse};

/// Settings; number of real servers and scheduler; where the batches are cut; eight next hops.
pub(crate) const HEADER_LENGTH: usize = 11;
/// Most steps of one scenario: it must end soon, whatever the input.
const MAX_STEPS: usize = 512;
/// Longest frame that a step spells out.
const MAX_RAW: usize = 255;
const CHUNKS: u32 = 1024;
const SERVERS: usize = 8;
const SERVICES: usize = 4;
const MTU: u32 = 200;

const DIRECTOR: [u8; 6] = [2, 0, 0, 0, 1, 254];
const VIP: [u8; 4] = [10, 88, 0, 100];
const VIP6: [u8; 16] = [0xfd, 0x88, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];
/// The longest that a fragment waits for its first.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longer than any connection lives after its last packet.
const LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// One thing that happens.
enum Step {
    /// 0x00: a frame. The rest of the byte picks a template; then a byte picks client and port of arrival, another is
    /// the TCP flags or the SCTP chunk, and a third says how many bytes of it are patched (offset and value each,
    /// lower two bits) and whether the IPv4 header is summed anew (bit 2).
    /// 0x40: a frame spelt out: a byte of length, then its bytes.
    Frame { bytes: Vec<u8>, port: PortId },
    /// 0x80: time passes: 2^(rest) ms, at most some days.
    Wait(Duration),
    /// 0xc0: something is changed: the rest picks a real server, the next byte its next hop, weight and presence.
    Change { server: usize, to: u8 },
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
        let rest = first & 0x3f;
        match first >> 6 {
            0 => {
                let (who, flags, patches) = (self.byte()?, self.byte()?, self.byte()?);
                let mut bytes = template(rest, who & 15, flags);
                for _ in 0..patches & 3 {
                    let (offset, value) = (usize::from(self.byte()?), self.byte()?);
                    if let Some(byte) = bytes.get_mut(offset) {
                        *byte = value;
                    }
                }
                if patches & 4 != 0 && bytes.len() >= 34 {
                    let _ = ipv4::write_checksum(&mut bytes[14..34]);
                }
                Some(Step::Frame { bytes, port: PortId(u16::from(who >> 7)) })
            }
            1 => {
                let length = usize::from(self.byte()?).min(MAX_RAW).min(self.0.len());
                let (bytes, after) = self.0.split_at(length);
                self.0 = after;
                Some(Step::Frame { bytes: bytes.to_vec(), port: PortId(u16::from(rest & 3)) })
            }
            2 => Some(Step::Wait(Duration::from_millis(1 << (rest % 28)))),
            _ => Some(Step::Change { server: usize::from(rest) % SERVERS, to: self.byte()? }),
        }
    }
}

/// A frame from a client to a service, or nearly.
fn template(kind: u8, client: u8, flags: u8) -> Vec<u8> {
    let v4 = Build::ipv4([192, 0, 2, client], VIP).destination_mac(DIRECTOR);
    let mut client6 = VIP6;
    client6[15] = client;
    let v6 = Build::ipv6(client6, VIP6).destination_mac(DIRECTOR);
    let source = 1024 + u16::from(client);
    let tcp = Transport::tcp_with(source, 80, flags);
    // Replies, as they leave a service, for errors to be about.
    let reply = Build::ipv4(VIP, [192, 0, 2, client]).transport(Transport::tcp(80, source));
    let reply6 = Build::ipv6(VIP6, client6).transport(Transport::tcp(80, source));
    let build = match kind % 16 {
        12 if kind == 0x1c => {
            v4.transport(Transport::Icmp { kind: flags, code: 0, rest: 1 }).payload(&reply.packet())
        }
        12 if kind == 0x2c => {
            v6.transport(Transport::Icmpv6 { kind: flags, code: 0, rest: 1 }).payload(&reply6.packet())
        }
        0 => v4.transport(tcp),
        1 => v4.transport(Transport::udp(source, 53)).payload(&[flags; 9]),
        2 => v4.transport(Transport::sctp(source, 2905, flags)),
        3 => v6.transport(tcp),
        4 => v6.transport(Transport::udp(source, 53)),
        5 => v4.transport(tcp).vlan(7).padded(80),
        6 => v4.transport(tcp).options(&[1, 1, 1, 1]).payload(b"payload"),
        7 => v4.transport(tcp).ttl(flags & 3),
        8 => v4.transport(tcp).payload(&[5; MTU as usize]),
        9 => v4.transport(tcp).fragment(0, true).payload(&[1; 24]),
        10 => v4.transport(tcp).fragment(24, false).payload(&[2; 8]),
        11 => v6.transport(tcp).extension(60, &[1, 4, 0, 0, 0, 0]).ttl(flags & 3),
        12 => v4.transport(Transport::Icmp { kind: flags, code: 0, rest: 1 }),
        13 => v4.transport(Transport::tcp_with(source, 81, flags)),
        14 => v6.transport(tcp).tag(0x88a8, 5).vlan(6),
        _ => v4.transport(tcp).padded(60),
    };
    build.frame()
}

fn next_hop(server: usize, what: u8) -> NextHop {
    let vlan = (what & 8 != 0).then_some(VlanTag { protocol: 0x8100, id: 1 + u16::from(what >> 4) });
    match what & 7 {
        3 => NextHop::Resolving,
        4 => NextHop::Local,
        5 => NextHop::Failed(NextHopError::NeighbourFailed),
        6 => NextHop::Failed(NextHopError::NoRoute),
        _ => NextHop::Ready {
            port: PortId(1),
            source: MacAddress(DIRECTOR),
            destination: server_mac(server),
            vlan,
            mtu: MTU,
        },
    }
}

fn server_mac(server: usize) -> MacAddress {
    MacAddress([2, 0, 0, 0, 2, server as u8])
}

/// What became of a frame: to compare.
type End = (Verdict, Vec<u8>);

/// A director, and what is known of the frames that went in.
struct World {
    director: Director,
    frames: FramePool,
    batch: Batch,
    now: Instant,
    network: Network,
    services: [Arc<Service>; SERVICES],
    /// Frames on their way, by ticket.
    sent: HashMap<u16, Vec<u8>>,
    tickets: u16,
    /// What became of each, by ticket.
    ends: HashMap<u16, End>,
}

impl World {
    fn new(header: &[u8; HEADER_LENGTH]) -> Self {
        let [knobs, servers, _cuts, hops @ ..] = *header;
        let connections = if is_small(header) { 16 } else { 4096 };
        let capacity = Capacity { connections, servers: SERVICES * SERVERS, workers: 1 };
        let shared = Shared::new(capacity, [HashKey::new([1, 2]), HashKey::new([3, 4])]).expect("memory");
        let keys = [
            (Protocol::Tcp, IpAddr::from(VIP), 80),
            (Protocol::Udp, VIP.into(), 53),
            (Protocol::Sctp, VIP.into(), 2905),
            (Protocol::Tcp, VIP6.into(), 80),
        ];
        let name = ["rr", "wrr", "wlc", "sh"][usize::from(servers >> 6)];
        // Two clients at a time count as one.
        let mask = |address: IpAddr| match address {
            IpAddr::V4(_) => ClientMask::ipv4([255, 255, 255, 254].into()),
            IpAddr::V6(_) => ClientMask::ipv6(127),
        };
        let services = std::array::from_fn(|index| {
            let id = ServiceId(index as u32);
            let mut chooser =
                Chooser::new(scheduler::create(name, 0, HashKey::new([5, 6])).expect("a scheduler"));
            for number in 0..usize::from(servers) % (SERVERS + 1) {
                let server = ServerId((index * SERVERS + number) as u32);
                let slot = shared.slots.get(server);
                slot.assign(id);
                slot.set_weight(1);
                slot.set_available(true);
                let address = IpAddr::from([10, 88, 2, number as u8]);
                let method = ForwardingMethod::DirectRouting;
                slot.set_endpoint(address, 80);
                slot.set_method(method, Tunnel::IPIP);
                chooser.add(&shared.slots, RealServer { id: server, address, port: 80, method });
            }
            let (protocol, address, port) = keys[index];
            let key = ServiceKey::Address { protocol, address, port };
            let timeout = Duration::from_secs(50);
            let persistence = (knobs & 64 != 0).then(|| Persistence { timeout, mask: mask(address) });
            Arc::new(Service {
                id,
                key,
                chooser: Arc::new(Mutex::new(chooser)),
                persistence,
                one_packet: false,
            })
        });
        let mut table = ServiceTable::default();
        services.iter().for_each(|service| table.insert(Arc::clone(service)));
        let settings = Settings {
            expire_nodest_conn: knobs & 1 != 0,
            sloppy_tcp: knobs & 2 != 0,
            conn_reuse_mode: knobs >> 2 & 3,
            expire_quiescent_template: knobs & 128 != 0,
            drop_unknown_until: Instant::from_nanos(if knobs & 16 != 0 { 5_000_000_000 } else { 0 }),
            ..Settings::default()
        };
        shared.configuration.store(Arc::new(Configuration {
            services: table,
            settings,
            ..Configuration::default()
        }));
        let network = Network {
            ports: vec![
                PortLink { addresses: vec![MacAddress(DIRECTOR)], networks: Vec::new(), mtu: MTU };
                2
            ],
            local: [IpAddr::from(VIP), IpAddr::from(VIP6)].into(),
            local_networks: Vec::new(),
            next_hops: (0..SERVICES * SERVERS)
                .map(|server| next_hop(server % SERVERS, hops[server % SERVERS]))
                .collect(),
            ..Network::default()
        };
        shared.network.store(Arc::new(network.clone()));
        Self {
            director: Director::new(shared, 0),
            frames: FramePool::new(CHUNKS, 2048).expect("memory"),
            batch: Batch::new(),
            now: Instant::from_nanos(1_000_000_000),
            network,
            services,
            sent: HashMap::new(),
            tickets: 0,
            ends: HashMap::new(),
        }
    }

    /// Puts a frame into the batch. Its ticket travels in a field that means something only for segments, and, for the
    /// answer that may come of it, in the end of the sender's link address, which means nothing to the director.
    fn send(&mut self, mut bytes: Vec<u8>, port: PortId) {
        if let Some(end) = bytes.get_mut(10..12) {
            end.copy_from_slice(&self.tickets.to_be_bytes());
        }
        let frame = self.frames.allocate_copy(&bytes).expect("a chunk for each step");
        let offload = Offload { segment_size: self.tickets, ..Offload::default() };
        self.batch.push(frame, port, offload).expect("room");
        self.sent.insert(self.tickets, bytes);
        self.tickets += 1;
    }

    fn process(&mut self) {
        self.director.process(&mut self.batch, &self.frames, self.now);
        self.collect(false);
    }

    fn tick(&mut self) {
        for _ in 0..4096 {
            let done = self.director.tick(&mut self.batch, &self.frames, self.now);
            let released = !self.batch.entries().is_empty();
            self.collect(true);
            if done && !released {
                return;
            }
        }
        panic!("the director does not get through with its timers");
    }

    fn change(&mut self, server: usize, to: u8) {
        for (service, index) in self.services.iter().zip((server..).step_by(SERVERS)) {
            self.network.next_hops[index] = next_hop(server, to);
            let id = ServerId(index as u32);
            let slots = &self.director.shared().slots;
            slots.get(id).set_weight(u32::from(to >> 6));
            let mut chooser = service.chooser.lock();
            if to & 0x20 != 0 && chooser.remove(slots, id) {
                slots.get(id).set_available(false);
            } else if let Some(&present) = chooser.servers().iter().find(|present| present.id == id) {
                chooser.update(slots, present);
            }
        }
        self.director.shared().network.store(Arc::new(self.network.clone()));
    }

    /// Takes the decided frames out of the batch and checks each, then what holds between batches.
    fn collect(&mut self, waited: bool) {
        let entries: Vec<Entry> = self.batch.drain().collect();
        for entry in entries {
            let bytes = self.frames.bytes(&entry.frame).to_vec();
            self.frames.free(entry.frame);
            let ticket = match entry.verdict {
                Verdict::Reply(_) => u16::from_be_bytes([bytes[4], bytes[5]]),
                _ => entry.offload.segment_size,
            };
            let before = self.sent.remove(&ticket).expect("each frame comes out once");
            self.check(&before, &bytes, entry.verdict, waited);
            self.ends.insert(ticket, (entry.verdict, bytes));
        }
        let counts = self.director.frame_counts();
        assert!(self.director.is_conserved(), "{counts:?}");
        let waiting = counts.held - counts.released;
        assert_eq!(waiting, self.sent.len() as u64, "what did not come out waits");
        assert_eq!(self.frames.available() as u64 + waiting, u64::from(CHUNKS), "no chunk is lost");
        assert_eq!(waiting != 0, self.director.is_holding());
        let shared = self.director.shared();
        let of_servers: u64 = (0..shared.slots.len())
            .map(|index| shared.slots.get(ServerId(index as u32)))
            .map(|slot| u64::from(slot.active()) + u64::from(slot.inactive()))
            .sum();
        assert_eq!(of_servers, shared.ipv4.alive() + shared.ipv6.alive());
        let persistent: u64 = (0..shared.slots.len())
            .map(|index| u64::from(shared.slots.get(ServerId(index as u32)).persistent()))
            .sum();
        assert_eq!(persistent, shared.ipv4.templates().alive() + shared.ipv6.templates().alive());
    }

    fn check(&self, before: &[u8], after: &[u8], verdict: Verdict, waited: bool) {
        match verdict {
            Verdict::Transmit(port) => check_sent(before, after, port),
            Verdict::ToHost if !waited => assert_eq!(before, after, "the host gets what came"),
            Verdict::ToHost => (),
            Verdict::Drop(reason) => {
                let malformed = matches!(parse(before), Outcome::Malformed(_));
                assert_eq!(malformed, (reason as u8) <= DropReason::BadTransportHeader as u8, "{reason:?}");
            }
            Verdict::Reply(port) => check_reply(before, after, port),
            Verdict::Held | Verdict::Undecided => panic!("{verdict:?} came out"),
        }
    }

    /// Nobody waits for ever, and no connection lives for ever.
    fn end(&mut self) {
        for hop in &mut self.network.next_hops {
            *hop = NextHop::Failed(NextHopError::PortDown);
        }
        self.director.shared().network.store(Arc::new(self.network.clone()));
        self.now += PATIENCE;
        self.tick();
        assert!(!self.director.is_holding());
        assert_eq!(self.frames.available(), CHUNKS as usize);
        self.now += LIFETIME;
        self.tick();
        let shared = self.director.shared();
        assert_eq!((shared.ipv4.alive(), shared.ipv6.alive()), (0, 0), "all have ended");
        let templates = [shared.ipv4.templates().alive(), shared.ipv6.templates().alive()];
        assert_eq!(templates, [0, 0], "no template is kept for nothing");
    }
}

fn packet(frame: &[u8]) -> Parsed {
    match parse(frame) {
        Outcome::Packet(packet) => packet,
        other => panic!("{other:?} was sent on"),
    }
}

/// What is sent is what came: readdressed, a hop older, with right checksums and without padding.
fn check_sent(before: &[u8], after: &[u8], port: PortId) {
    let (came, goes) = (packet(before), packet(after));
    assert_eq!(port, PortId(1));
    assert_eq!(goes.ttl, came.ttl - 1);
    assert_eq!(goes.end(), after.len(), "no padding is left");
    assert!(goes.ip_length <= MTU);
    assert_eq!(after[6..12], DIRECTOR);
    assert!((0..SERVERS).any(|server| server_mac(server) == goes.destination_mac));
    let mut expected = before[usize::from(came.ip_offset)..came.end()].to_vec();
    match came.family() {
        Family::V4 => assert!(ipv4::decrement_ttl(&mut expected)),
        Family::V6 => expected[7] -= 1,
    }
    assert_eq!(&after[usize::from(goes.ip_offset)..], expected);
}

/// What a packet quotes, given the packet is an ICMP error.
fn quoted<'a>(answer: &'a [u8], parsed: &Parsed) -> &'a [u8] {
    &answer[usize::from(parsed.transport_offset) + 8..]
}

/// A packet without what changes on its way: time to live and header checksum, or hop limit.
fn without_lifetime(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    match packet.first().map(|byte| byte >> 4) {
        Some(4) => {
            packet[8] = 0;
            packet[10..12].fill(0);
        }
        _ => packet[7] = 0,
    }
    packet
}

/// An answer goes back to whoever sent the packet, from the address that it was for, with right checksums.
fn check_reply(before: &[u8], after: &[u8], port: PortId) {
    let came = packet(before);
    let answer = packet(after);
    let quoted = quoted(after, &answer);
    let original = &before[usize::from(came.ip_offset)..came.end()];
    assert_eq!(without_lifetime(quoted), without_lifetime(&original[..quoted.len().min(original.len())]));
    assert!(port.0 < 2, "{port:?}");
    assert_eq!((&after[..6], &after[6..12]), (&before[6..12], &before[..6]));
    assert_eq!(answer.addresses, came.addresses.reversed());
    assert_eq!(verify(after, &answer), Checked::Right);
}

/// In a small table it depends on the batches which record is free again: then results cannot be compared.
fn is_small(header: &[u8; HEADER_LENGTH]) -> bool {
    header[0] & 32 != 0
}

/// Plays a scenario in batches of `size(n)` frames, n counting batches; what became of each frame.
fn play(
    header: &[u8; HEADER_LENGTH],
    steps: &[u8],
    mut size: impl FnMut(usize) -> usize,
) -> HashMap<u16, End> {
    let mut world = World::new(header);
    let mut reader = Reader(steps);
    let mut batches = 0;
    let mut room = size(batches);
    for _ in 0..MAX_STEPS {
        let Some(step) = reader.step() else { break };
        let is_frame = matches!(step, Step::Frame { .. });
        if !is_frame || room == 0 {
            world.process();
            batches += 1;
            room = size(batches);
        }
        match step {
            Step::Frame { bytes, port } => {
                world.send(bytes, port);
                room -= 1;
            }
            Step::Wait(span) => {
                world.now += span;
                world.tick();
            }
            Step::Change { server, to } => world.change(server, to),
        }
    }
    world.process();
    world.end();
    world.ends
}

/// Plays a scenario, and plays it again in other batches: what becomes of a frame does not depend on these.
///
/// # Panics
/// Where something does not hold that must.
pub(crate) fn scenario(input: &[u8]) {
    let Some((header, steps)) = input.split_first_chunk::<HEADER_LENGTH>() else { return };
    let cuts = usize::from(header[2]);
    let ends = play(header, steps, |batch| 1 + (cuts * (batch + 1) * 7) % BATCH_SIZE);
    if !is_small(header) {
        assert_eq!(ends, play(header, steps, |_| 1), "one by one");
        assert_eq!(ends, play(header, steps, |_| BATCH_SIZE), "in full batches");
    }
}
