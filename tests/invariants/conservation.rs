//! Every frame that comes in ends in exactly one way, whatever comes in.

use proptest::prelude::*;
use uvs::director::{BATCH_SIZE, Verdict};
use uvs::types::{Duration, PortId};
use uvs::wire::build::Transport;

use crate::director::{Bench, EMPTY, NO_SERVICE, PORTS, SCHEDULED, UNREACHABLE, UNRESOLVED, packet};

/// What happens to the director.
#[derive(Clone, Debug)]
enum Event {
    /// Frames, in one batch, and the ports they come in by.
    Frames(Vec<(u16, Vec<u8>)>),
    /// Milliseconds go by.
    Time(u64),
    /// The kernel learns link addresses, or forgets them.
    Resolve(bool),
}

fn transport() -> impl Strategy<Value = Transport> {
    let mut ports = vec![UNRESOLVED, UNREACHABLE, EMPTY, NO_SERVICE];
    ports.extend(SCHEDULED.map(|(_, port)| port));
    (1024_u16..1064, prop::sample::select(ports), 0_u8..64, 0..8).prop_map(|(source, port, flags, kind)| {
        match kind {
            0 => Transport::udp(source, port),
            1 => Transport::sctp(source, port, 1),
            2 => Transport::Icmp { kind: 8, code: 0, rest: 0 },
            3 => Transport::Icmpv6 { kind: 128, code: 0, rest: 0 },
            _ => Transport::tcp_with(source, port, flags),
        }
    })
}

/// A sound frame, one that was damaged somewhere, or anything.
fn frame() -> impl Strategy<Value = Vec<u8>> {
    let sound = (any::<bool>(), 0_u16..20, transport(), 1_u8..4, 0..8, prop::option::of(1_u16..3)).prop_map(
        |(ipv6, client, transport, ttl, fragment, vlan)| {
            let build = packet(ipv6, client, transport).ttl(ttl).payload(b"payload of some length");
            let build = match fragment {
                0 => build.fragment(0, true),
                1 => build.payload(b"more of it").fragment(48, false),
                2 => build.fragment(8, true),
                _ => build,
            };
            vlan.map_or(build.clone(), |id| build.vlan(id)).frame()
        },
    );
    let damage = (any::<prop::sample::Index>(), any::<u8>(), any::<prop::sample::Index>());
    prop_oneof![
        6 => sound,
        2 => (frame_to_damage(), damage).prop_map(|(mut frame, (at, byte, end))| {
            let at = at.index(frame.len());
            frame[at] = byte;
            frame.truncate(1 + end.index(frame.len()));
            frame
        }),
        1 => prop::collection::vec(any::<u8>(), 0..200),
    ]
}

fn frame_to_damage() -> impl Strategy<Value = Vec<u8>> {
    (any::<bool>(), 0_u16..20, transport()).prop_map(|(ipv6, client, transport)| {
        packet(ipv6, client, transport).payload(b"payload of some length").frame()
    })
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        8 => prop::collection::vec((0..PORTS as u16, frame()), 1..=BATCH_SIZE).prop_map(Event::Frames),
        2 => (0_u64..100_000).prop_map(Event::Time),
        1 => any::<bool>().prop_map(Event::Resolve),
    ]
}

/// Counts for the test what the director counts for itself.
#[derive(Default)]
struct Ledger {
    /// By port.
    given: [u64; PORTS],
    come_up_again: u64,
    held: u64,
}

impl Ledger {
    fn check(&mut self, bench: &mut Bench, given: &[(u16, Vec<u8>)]) {
        given.iter().for_each(|(port, _)| self.given[usize::from(*port)] += 1);
        let stayed = bench.batch.len();
        self.held += given.len().saturating_sub(stayed) as u64;
        for verdict in bench.verdicts() {
            assert!(!matches!(verdict, Verdict::Undecided | Verdict::Held), "{verdict:?}");
        }
        self.assert_agrees(bench);
    }

    fn tick(&mut self, bench: &mut Bench) {
        loop {
            let done = bench.tick();
            self.come_up_again += bench.batch.len() as u64;
            self.check(bench, &[]);
            if done {
                return;
            }
        }
    }

    fn assert_agrees(&self, bench: &Bench) {
        let counts = bench.director.frame_counts();
        assert!(bench.director.is_conserved(), "{counts:?}");
        assert_eq!((counts.received, counts.released), (self.given.iter().sum(), self.come_up_again));
        assert_eq!(counts.held, self.held);
        for (port, given) in self.given.iter().enumerate() {
            let counts = bench.director.shared().counters(0).frames_of(PortId(port as u16));
            assert!(counts.is_conserved(), "{counts:?}");
            assert_eq!(counts.received, *given, "port {port}");
        }
        // No chunk got lost, none came back twice.
        assert_eq!(bench.chunks_away() as u64, self.held - self.come_up_again);
        assert_eq!(bench.director.is_holding(), bench.chunks_away() > 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn frames_are_conserved(events in prop::collection::vec(event(), 1..40), connections in 1_u32..200) {
        let mut bench = Bench::new(connections);
        let mut ledger = Ledger::default();
        for event in events {
            match event {
                Event::Frames(frames) => {
                    frames.iter().for_each(|(port, bytes)| bench.push(PortId(*port), bytes));
                    bench.process();
                    ledger.check(&mut bench, &frames);
                }
                Event::Time(milliseconds) => bench.now += Duration::from_millis(milliseconds),
                Event::Resolve(resolved) => bench.resolve(resolved),
            }
            ledger.tick(&mut bench);
        }
        // In the end, whatever is held comes up.
        bench.now += Duration::from_secs(3600);
        for _ in 0..100 {
            ledger.tick(&mut bench);
        }
        prop_assert!(!bench.director.is_holding());
        prop_assert_eq!(bench.director.shared().ipv4.alive() + bench.director.shared().ipv6.alive(), 0);
    }
}
