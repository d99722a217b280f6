//! Fragments of either family, in any order, on any worker.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::wire::Fragment;

const POOL: u32 = 2048;

/// One of several workers over one lab's tables.
struct Worker {
    director: Director,
    frames: FramePool,
    batch: Batch,
}

impl Worker {
    fn new(lab: &Lab, number: usize) -> Self {
        let director = Director::new(Arc::clone(lab.director.shared()), number);
        Self { director, frames: FramePool::new(POOL, 4096).unwrap(), batch: Batch::new() }
    }

    /// Verdicts about these frames, as far as there are any yet.
    fn receive(&mut self, frames: &[Vec<u8>], now: Instant) -> Vec<Sent> {
        let mut sent = Vec::new();
        for some in frames.chunks(BATCH_SIZE) {
            for bytes in some {
                let frame = self.frames.allocate_copy(bytes).unwrap();
                self.batch.push(frame, OUTSIDE, Offload::default()).unwrap();
            }
            self.director.process(&mut self.batch, &self.frames, now);
            sent.extend(self.collect());
        }
        sent
    }

    /// What has waited and need not any more.
    fn tick(&mut self, now: Instant) -> Vec<Sent> {
        let mut sent = Vec::new();
        loop {
            while !self.director.tick(&mut self.batch, &self.frames, now) {}
            let some = self.collect();
            if some.is_empty() {
                return sent;
            }
            sent.extend(some);
        }
    }

    fn collect(&mut self) -> Vec<Sent> {
        let entries: Vec<Entry> = self.batch.drain().collect();
        let sent: Vec<Sent> = entries
            .into_iter()
            .map(|entry| {
                let sent = Sent { verdict: entry.verdict, frame: self.frames.bytes(&entry.frame).to_vec() };
                self.frames.free(entry.frame);
                sent
            })
            .collect();
        let counts = self.director.frame_counts();
        assert!(self.director.is_conserved(), "{counts:?}");
        assert_eq!(counts.held - counts.released, self.away(), "what is held is in the worker's chunks");
        sent
    }

    /// Chunks that the director holds.
    fn away(&self) -> u64 {
        u64::from(POOL) - self.frames.available() as u64
    }
}

fn verdicts(sent: &[Sent]) -> Vec<Verdict> {
    sent.iter().map(|sent| sent.verdict).collect()
}

fn bytes(count: usize) -> Vec<u8> {
    (0..count).map(|index| (index * 7 + index / 256) as u8).collect()
}

/// A UDP datagram over IPv4, or a TCP segment over IPv6, to a service; not cut up yet.
fn datagram(ipv6: bool, port: u16, identification: u32) -> Build {
    let build = if ipv6 {
        let v6 = Build::ipv6(CLIENT6, VIP6).source_mac(ROUTER).destination_mac(DIRECTOR_OUTSIDE);
        v6.transport(segment(port, 80, SYN))
    } else {
        build().transport(Transport::udp(port, 53))
    };
    build.identification(identification).payload(&bytes(4000))
}

/// What a packet carries behind its IP headers.
fn content(frame: &[u8]) -> Vec<u8> {
    let Outcome::Packet(packet) = wire::parse(frame) else { panic!("not a packet") };
    frame[packet.transport_offset.into()..packet.end()].to_vec()
}

/// What receivers put together of what was sent to them: by link address, pieces by offset. Every piece must be sound, a
/// hop older, and the only one at its place.
#[derive(Default)]
struct Receivers(BTreeMap<[u8; 6], BTreeMap<u16, Vec<u8>>>);

impl Receivers {
    fn receive(&mut self, sent: &[Sent]) {
        for Sent { frame, .. } in sent.iter().filter(|sent| sent.verdict == Verdict::Transmit(INSIDE)) {
            // Parsing verifies the IPv4 header's checksum.
            let Outcome::Packet(packet) = wire::parse(frame) else { panic!("not a packet") };
            assert_eq!(packet.ttl, 63);
            assert_eq!(frame.len(), packet.end());
            let offset = match packet.fragment {
                Fragment::Later { offset, .. } => offset,
                _ => 0,
            };
            let pieces = self.0.entry(packet.destination_mac.0).or_default();
            assert!(pieces.insert(offset, content(frame)).is_none(), "twice at {offset}");
        }
    }

    /// What each got, one behind the other, holes or not.
    fn contents(&self) -> Vec<Vec<u8>> {
        self.0.values().map(|pieces| pieces.values().flatten().copied().collect()).collect()
    }
}

fn traffic(lab: &Lab, server: u32) -> crate::service::Traffic {
    lab.shared().server_traffic(ServerId(server))
}

#[test]
fn all_of_a_datagram_reaches_one_server_in_any_order_on_any_worker() {
    // The order of arrival, and which worker has each.
    let rows: [(&str, &[(usize, usize)]); 6] = [
        ("in order", &[(0, 0), (1, 0), (2, 0), (3, 0)]),
        ("reversed", &[(3, 0), (2, 0), (1, 0), (0, 0)]),
        ("the first in the middle", &[(2, 0), (0, 0), (3, 0), (1, 0)]),
        ("later ones on another worker", &[(0, 0), (1, 1), (2, 1), (3, 1)]),
        ("later ones before, on another worker", &[(1, 1), (2, 1), (3, 1), (0, 0)]),
        ("each on another", &[(3, 2), (2, 1), (0, 0), (1, 2)]),
    ];
    for (what, arrivals) in rows {
        for ipv6 in [false, true] {
            let lab = Lab::new(3);
            let mut workers = [0, 1, 2].map(|number| Worker::new(&lab, number));
            let datagram = datagram(ipv6, 4000, 77);
            let fragments = datagram.fragments(1024);
            let mut receivers = Receivers::default();
            for &(fragment, worker) in arrivals {
                receivers.receive(&workers[worker].receive(&fragments[fragment..=fragment], lab.now));
            }
            for worker in &mut workers {
                receivers.receive(&worker.tick(lab.now));
                assert_eq!((worker.away(), worker.director.is_holding()), (0, false), "{what}");
            }
            assert_eq!(receivers.contents(), [content(&datagram.frame())], "{what}");
            assert_eq!(lab.shared().ipv4.alive() + lab.shared().ipv6.alive(), 1, "{what}");
            // Counted as the whole packet is; IPv6's fragment header goes along with the first.
            let traffic = traffic(&lab, if ipv6 { 23 } else { 13 });
            let length = datagram.packet().len() as u64 + if ipv6 { 8 } else { 0 };
            assert_eq!((traffic.connections, traffic.in_packets, traffic.in_bytes), (1, 1, length), "{what}");
        }
    }
}

#[test]
fn a_first_fragment_that_never_comes_is_waited_for_as_long_as_the_kernel_does() {
    for (ipv6, seconds) in [(false, 30), (true, 60)] {
        let lab = Lab::new(1);
        let mut worker = Worker::new(&lab, 0);
        let fragments = datagram(ipv6, 4000, 77).fragments(1024);
        assert!(worker.receive(&fragments[1..3], lab.now).is_empty());
        let end = lab.now + Duration::from_secs(seconds);
        assert_eq!(worker.director.next_deadline(), Some(end));
        assert!(worker.tick(end - Duration::from_nanos(1)).is_empty());
        let dropped = Verdict::Drop(DropReason::FragmentWithoutFirst);
        assert_eq!(verdicts(&worker.tick(end)), [dropped; 2]);
        assert_eq!((worker.away(), worker.director.next_deadline()), (0, None));
        // Nothing is known any more: the first one begins another datagram.
        assert_eq!(verdicts(&worker.receive(&fragments[..1], end)), [Verdict::Transmit(INSIDE)]);
    }
}

#[test]
fn overlaps_end_a_datagram_and_repeats_are_dropped() {
    let lab = Lab::new(1);
    let mut worker = Worker::new(&lab, 0);
    let fragments = datagram(false, 4000, 77).fragments(1024);
    let overlapping = build()
        .transport(Transport::udp(0, 0))
        .identification(77)
        .payload(&[0; 64])
        .fragment(1016, true)
        .frame();
    let overlap = Verdict::Drop(DropReason::FragmentOverlap);
    let sent = worker.receive(&[fragments[0].clone(), fragments[0].clone(), fragments[2].clone()], lab.now);
    let duplicate = Verdict::Drop(DropReason::FragmentDuplicate);
    let go = Verdict::Transmit(INSIDE);
    assert_eq!(verdicts(&sent), [go, duplicate, go]);
    let sent = worker.receive(&[overlapping.clone(), fragments[1].clone(), fragments[3].clone()], lab.now);
    assert_eq!(verdicts(&sent), [overlap; 3], "no receiver can have all of it");

    // Those that wait learn of it, on another worker, too.
    let mut other = Worker::new(&lab, 1);
    let later = lab.now + Duration::from_secs(30);
    assert!(other.receive(&fragments[1..3], later).is_empty());
    assert_eq!(verdicts(&worker.receive(&[overlapping], later)), [overlap]);
    assert_eq!(verdicts(&other.tick(later)), [overlap; 2]);
    assert_eq!(verdicts(&other.receive(&fragments[..1], later)), [overlap]);
}

#[test]
fn what_the_host_gets_it_gets_all_of() {
    let v6 = || Build::ipv6(CLIENT6, VIP6).source_mac(ROUTER).destination_mac(DIRECTOR_OUTSIDE);
    let mut options = vec![58, 0, 1, 4, 0, 0, 0, 0];
    options.extend(
        &v6().transport(Transport::Icmpv6 { kind: 128, code: 0, rest: 1 }).payload(&bytes(40)).packet()[40..],
    );
    let rows = [
        ("a port without a service", build().transport(Transport::udp(4000, 9))),
        ("an echo", build().transport(Transport::Icmp { kind: 8, code: 0, rest: 1 })),
        ("an echo, IPv6", v6().transport(Transport::Icmpv6 { kind: 128, code: 0, rest: 1 })),
        ("options that are cut up, IPv6", v6().transport(Transport::Raw { protocol: 60 })),
        (
            "another address",
            Build::ipv4(CLIENT, [10, 88, 0, 7])
                .destination_mac(DIRECTOR_OUTSIDE)
                .transport(Transport::udp(4000, 53)),
        ),
    ];
    for (what, build) in rows {
        let payload = if what.starts_with("options") { options.clone() } else { bytes(100) };
        let fragments = build.payload(&payload).fragments(40);
        let lab = Lab::new(1);
        let mut workers = [0, 1].map(|number| Worker::new(&lab, number));
        assert!(workers[1].receive(&fragments[1..2], lab.now).is_empty(), "{what}");
        let mut sent = workers[0].receive(&fragments[..1], lab.now);
        sent.extend(workers[1].tick(lab.now));
        sent.extend(workers[1].receive(&fragments[2..], lab.now));
        assert_eq!(verdicts(&sent), vec![Verdict::ToHost; fragments.len()], "{what}");
        let frames: Vec<_> = sent.into_iter().map(|sent| sent.frame).collect();
        assert_eq!(frames, fragments, "{what}: as they came");
    }
}

#[test]
fn the_rest_shares_the_fate_of_a_first_that_is_not_forwarded() {
    // No server: one answer, and nothing of the rest gets anywhere.
    for ipv6 in [false, true] {
        let lab = Lab::new(0);
        let mut worker = Worker::new(&lab, 0);
        let fragments = datagram(ipv6, 4000, 77).fragments(1024);
        let mut sent =
            worker.receive(&[fragments[2].clone(), fragments[0].clone(), fragments[1].clone()], lab.now);
        sent.extend(worker.tick(lab.now));
        let dropped = Verdict::Drop(DropReason::NoRealServer);
        assert_eq!(verdicts(&sent), [Verdict::Reply(OUTSIDE), dropped, dropped], "IPv6: {ipv6}");
    }

    // A first fragment that the transport header does not fit into decides about nothing.
    let mut lab = Lab::new(1);
    let mut worker = Worker::new(&lab, 0);
    let tiny = datagram(true, 4000, 78).fragments(16);
    let broken = Verdict::Drop(DropReason::BadTransportHeader);
    assert_eq!(verdicts(&worker.receive(&tiny[..2], lab.now)), [broken]);
    assert_eq!(worker.away(), 1);

    // A server that is removed in between.
    let fragments = datagram(false, 4000, 79).fragments(1024);
    assert_eq!(verdicts(&worker.receive(&fragments[..1], lab.now)), [Verdict::Transmit(INSIDE)]);
    lab.shared().slots.get(ServerId(11)).set_available(false);
    let gone = Verdict::Drop(DropReason::RealServerGone);
    assert_eq!(verdicts(&worker.receive(&fragments[1..2], lab.now)), [gone]);

    // One whose link address is not known yet: all wait, then all go, in order.
    lab.shared().slots.get(ServerId(11)).set_available(true);
    lab.network.next_hops[11] = NextHop::Resolving;
    lab.publish();
    let fragments = datagram(false, 4000, 80).fragments(1024);
    let arriving = [fragments[1].clone(), fragments[0].clone()];
    assert!(worker.receive(&arriving, lab.now).is_empty());
    assert!(worker.tick(lab.now).is_empty());
    assert!(worker.receive(&fragments[2..], lab.now).is_empty());
    lab.network.next_hops[11] = ready(1);
    lab.publish();
    let sent = worker.tick(lab.now);
    assert_eq!(verdicts(&sent), [Verdict::Transmit(INSIDE); 4]);
    let mut receivers = Receivers::default();
    receivers.receive(&sent);
    assert_eq!(receivers.contents(), [content(&datagram(false, 4000, 80).frame())]);
}

/// Later fragments of which the first never comes, and first ones of which the rest never comes.
#[test]
fn a_flood_takes_bounded_room_and_others_get_through() {
    let lab = Lab::with_capacity(2, 20_000);
    let mut workers = [0, 1].map(|number| Worker::new(&lab, number));
    for round in 0..200_u32 {
        let now = lab.now + Duration::from_millis(u64::from(round));
        let flood = |from: u32, fragment: usize| -> Vec<Vec<u8>> {
            let datagram = build().transport(Transport::udp(1, 53)).payload(&[0; 16]);
            let of = |number| datagram.clone().identification(from + round * 64 + number).fragments(8);
            (0..64).map(|number| of(number).swap_remove(fragment)).collect()
        };
        let (later, first) = (flood(1000, 1), flood(20_000, 0));
        workers[0].receive(&later, now);
        workers[1].receive(&first, now);
        assert!(workers[0].away() <= 1024, "{}", workers[0].away());
        if round % 20 == 19 {
            let port = 5000 + round as u16;
            let wanted = datagram(false, port, 40_000 + round);
            let mut fragments = wanted.fragments(1024);
            if round % 40 == 19 {
                fragments.reverse();
            }
            let mut receivers = Receivers::default();
            // A reversed one needs a place to wait: some give theirs up at each tick.
            workers[0].tick(now);
            receivers.receive(&workers[0].receive(&fragments, now));
            let released = workers[0].tick(now);
            assert!(workers[0].away() <= 512);
            receivers.receive(&released);
            assert_eq!(receivers.contents(), [content(&wanted.frame())], "round {round}");
        }
    }
    let counts = workers[0].director.frame_counts();
    assert!(counts.dropped_for(DropReason::FragmentQueueFull) > 0);
    let end = lab.now + Duration::from_secs(60);
    for worker in &mut workers {
        worker.tick(end);
        assert_eq!(worker.away(), 0);
    }
}

/// Many of one datagram do not take the places of others.
#[test]
fn one_datagram_has_few_that_wait() {
    let lab = Lab::new(1);
    let mut worker = Worker::new(&lab, 0);
    let fragments = datagram(false, 4000, 77).fragments(40);
    let sent = worker.receive(&fragments[1..], lab.now);
    assert_eq!(worker.away(), 64);
    assert!(sent.iter().all(|sent| sent.verdict == Verdict::Drop(DropReason::FragmentQueueFull)));
}

/// Two workers at once, real threads, each with one half of every datagram. They keep in step as far as it takes for no
/// more to wait than may.
#[test]
fn workers_that_race_lose_nothing() {
    const DATAGRAMS: u32 = 2000;
    let lab = Lab::with_capacity(3, 20_000);
    let now = lab.now;
    let shares: [Vec<Vec<u8>>; 2] = std::array::from_fn(|worker| {
        let of = |number: u32| {
            let port = 1000 + number as u16;
            let fragments = datagram(number % 2 == 1, port, number).payload(&bytes(60)).fragments(40);
            // Alternating, so that either may be first.
            let swap = usize::from(number / 2 % 2 == 1);
            fragments[worker ^ swap].clone()
        };
        (0..DATAGRAMS).map(of).collect()
    });
    let mut workers = [0, 1].map(|number| Worker::new(&lab, number));
    let step = std::sync::Barrier::new(2);
    let mut sent: Vec<Sent> = std::thread::scope(|scope| {
        let threads: Vec<_> = workers
            .iter_mut()
            .zip(&shares)
            .map(|(worker, share)| {
                let step = &step;
                scope.spawn(move || {
                    let mut sent = Vec::new();
                    for stride in share.chunks(200) {
                        for some in stride.chunks(8) {
                            sent.extend(worker.receive(some, now));
                            sent.extend(worker.tick(now));
                        }
                        step.wait();
                    }
                    sent
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    for worker in &mut workers {
        sent.extend(worker.tick(now));
        assert_eq!(worker.away(), 0);
    }
    let mut servers = BTreeMap::<(bool, u32), Vec<[u8; 6]>>::new();
    for Sent { verdict, frame } in sent {
        assert_eq!(verdict, Verdict::Transmit(INSIDE));
        let Outcome::Packet(packet) = wire::parse(&frame) else { panic!("not a packet") };
        let (Fragment::First { identification, .. } | Fragment::Later { identification, .. }) =
            packet.fragment
        else {
            panic!("a whole packet")
        };
        let ipv6 = packet.family() == crate::types::Family::V6;
        servers.entry((ipv6, identification)).or_default().push(packet.destination_mac.0);
    }
    assert_eq!(servers.len(), DATAGRAMS as usize);
    assert!(servers.values().all(|servers| servers.len() == 2 && servers[0] == servers[1]));
}

/// A datagram's length; units in its pieces, in turn; which piece arrives and on which worker; sizes of batches.
type Journey = (usize, Vec<u16>, Vec<(prop::sample::Index, usize)>, Vec<usize>);

/// A datagram, cut up at random, and what happens to the pieces: each goes to a worker, some twice, some nowhere.
fn journey() -> impl Strategy<Value = Journey> {
    (
        40_usize..1200,
        prop::collection::vec(1_u16..20, 1..40),
        prop::collection::vec((any::<prop::sample::Index>(), 0_usize..3), 1..80),
        prop::collection::vec(1_usize..20, 1..8),
    )
}

/// The fragments of a datagram with pieces of these many units; the first has the transport header.
fn cut(datagram: &Build, units: &[u16]) -> Vec<Vec<u8>> {
    let whole = content(&datagram.frame());
    let Outcome::Packet(packet) = wire::parse(&datagram.frame()) else { panic!("not a packet") };
    let raw = datagram.clone().transport(Transport::Raw { protocol: packet.protocol });
    let (mut offset, mut units, mut frames) = (0, units.iter().cycle(), Vec::new());
    while offset < whole.len() {
        let units = units.next().map_or(1, |units| usize::from(*units));
        let units = if offset == 0 { units.max(3) } else { units };
        let end = (offset + units * 8).min(whole.len());
        let piece = raw.clone().payload(&whole[offset..end]).fragment(offset as u16, end < whole.len());
        frames.push(piece.frame());
        offset = end;
    }
    frames
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn receivers_get_what_was_sent_or_less(
        ipv6: bool,
        (length, units, arrivals, sizes) in journey(),
    ) {
        let lab = Lab::new(3);
        let mut workers = [0, 1, 2].map(|number| Worker::new(&lab, number));
        let datagram = datagram(ipv6, 4000, 77).payload(&bytes(length));
        let whole = content(&datagram.frame());
        let fragments = cut(&datagram, &units);
        let arrivals: Vec<(usize, usize)> =
            arrivals.iter().map(|(index, worker)| (index.index(fragments.len()), *worker)).collect();
        // Up to where it is complete: after that it is forgotten, and what comes again is another's.
        let mut came = vec![false; fragments.len()];
        let incomplete = arrivals.iter().position(|(fragment, _)| {
            came[*fragment] = true;
            came.iter().all(|came| *came)
        });
        let arrivals = &arrivals[..incomplete.map_or(arrivals.len(), |last| last + 1)];
        let mut sent = Vec::new();
        let (mut rest, mut sizes) = (arrivals, sizes.iter().cycle());
        while !rest.is_empty() {
            let (some, later) = rest.split_at(sizes.next().map_or(1, |size| *size).min(rest.len()));
            for run in some.chunk_by(|(_, worker), (_, next)| worker == next) {
                let worker = &mut workers[run[0].1];
                let frames: Vec<Vec<u8>> =
                    run.iter().map(|(fragment, _)| fragments[*fragment].clone()).collect();
                sent.extend(worker.receive(&frames, lab.now));
                sent.extend(worker.tick(lab.now));
            }
            rest = later;
        }
        workers.iter_mut().for_each(|worker| sent.extend(worker.tick(lab.now)));
        let mut receivers = Receivers::default();
        receivers.receive(&sent);
        prop_assert!(receivers.0.len() <= 1, "one server at most");
        for (offset, piece) in receivers.0.values().flatten() {
            let start = usize::from(*offset);
            prop_assert_eq!(&whole[start..start + piece.len()], &piece[..]);
        }
        let arrived: usize = receivers.0.values().map(BTreeMap::len).sum();
        let expected = if came[0] { came.iter().filter(|came| **came).count() } else { 0 };
        prop_assert_eq!(arrived, expected, "all that came, if the first did");
        // What has not been sent by the end of its time is dropped.
        let mut dropped = Vec::new();
        let end = lab.now + Duration::from_secs(60);
        workers.iter_mut().for_each(|worker| dropped.extend(worker.tick(end)));
        let without_first = Verdict::Drop(DropReason::FragmentWithoutFirst);
        prop_assert!(dropped.iter().all(|sent| sent.verdict == without_first));
        prop_assert!(workers.iter().all(|worker| worker.away() == 0));
    }
}
