//! The port over the crate `afxdp` beside ours: the same frames, the same results.

use super::*;
use crate::io::{AfxdpError, AfxdpPort, PortStatistics, XdpOptions, XdpPort};
use crate::sys::xsk::test_program::RedirectAll;

const CHUNKS: u32 = 16_384;
const ROUNDS: u32 = 20;

/// Opens one kind of port on an interface of the calling thread's namespace, for frames of the program.
type Open = fn(&mut FramePool, PortId, &str, &RedirectAll) -> Box<dyn Port>;

/// What came out at the left, at the right, and what the ports counted.
type Exchanged = (Vec<Vec<u8>>, Vec<Vec<u8>>, [PortStatistics; 2]);

fn ours(frames: &mut FramePool, id: PortId, name: &str, program: &RedirectAll) -> Box<dyn Port> {
    let interface = InterfaceControl::new().unwrap().index(name).unwrap();
    let port = XdpPort::open(frames, id, interface, &[0], XdpOptions::default()).unwrap();
    for (queue, socket) in port.sockets() {
        program.insert(queue, socket).unwrap();
    }
    Box::new(port)
}

/// The crate finds the program, and in it the map, by itself.
fn theirs(_: &mut FramePool, id: PortId, name: &str, _: &RedirectAll) -> Box<dyn Port> {
    Box::new(AfxdpPort::open(id, name, 0).unwrap())
}

/// Moves what came in at one port out of the other.
fn forward(frames: &mut FramePool, batch: &mut Batch, from: &mut dyn Port, to: &mut dyn Port) {
    from.receive(frames, batch);
    for entry in batch.drain() {
        to.transmit(frames, entry.frame, entry.offload);
    }
    to.flush(frames);
}

/// Joins two links by two ports and sends frames both ways.
fn exchange(test: &str, native: bool, open: Open) -> Option<Exchanged> {
    let namespaces = Namespaces::new(test, 2)?;
    namespaces.pair(("@0", "ca"), ("@1", "da"), "1500", "1");
    namespaces.pair(("@0", "cb"), ("@1", "db"), "1500", "1");
    let interfaces = [namespaces.interface(1, "da"), namespaces.interface(1, "db")];
    let mut frames = FramePool::new(CHUNKS, 4096).unwrap();
    let (mut a, mut b, _programs) = namespaces.inside(1, || {
        // Before the ports: the crate attaches one of its own where there is none.
        let programs = interfaces.map(|interface| RedirectAll::attach(interface, native).unwrap());
        let a = open(&mut frames, PortId(0), "da", &programs[0]);
        let b = open(&mut frames, PortId(1), "db", &programs[1]);
        (a, b, programs)
    });
    let (mut left, mut right) = (namespaces.tap(0, "ca"), namespaces.tap(0, "cb"));
    let mut batch = Batch::new();
    let (mut to_right, mut to_left) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        for n in 0..64 {
            left.send(&experiment(round * 64 + n, 60 + n as usize * 20));
            right.send(&experiment(1 << 20 | (round * 64 + n), 1400 - n as usize));
        }
        let all = (round as usize + 1) * 64;
        wait_for("a burst to cross", || {
            forward(&mut frames, &mut batch, &mut *a, &mut *b);
            forward(&mut frames, &mut batch, &mut *b, &mut *a);
            to_right.extend(right.receive());
            to_left.extend(left.receive());
            to_right.len() >= all && to_left.len() >= all
        });
    }
    assert!(a.health().is_ok() && b.health().is_ok());
    assert_eq!((a.unsent(), b.unsent()), (0, 0));
    Some((to_right, to_left, [a.statistics(), b.statistics()]))
}

fn both_ports_move_the_same_frames(test: &str, native: bool) {
    let Some(theirs) = exchange(&format!("{test}t"), native, theirs) else { return };
    let ours = exchange(&format!("{test}o"), native, ours).unwrap();
    assert_eq!((&ours.0, &ours.1), (&theirs.0, &theirs.1));
    let total = u64::from(ROUNDS) * 64;
    assert_eq!((ours.0.len() as u64, ours.1.len() as u64), (total, total));
    for statistics in ours.2.iter().chain(&theirs.2) {
        assert!(statistics.received >= total && statistics.transmitted >= total, "{statistics:?}");
        assert_eq!((statistics.transmit_dropped, statistics.receive_dropped), (0, 0));
    }
}

#[test]
fn both_ports_move_the_same_frames_in_native_mode() {
    both_ports_move_the_same_frames("an", true);
}

#[test]
fn both_ports_move_the_same_frames_in_generic_mode() {
    both_ports_move_the_same_frames("ag", false);
}

#[test]
fn an_interface_that_is_not_there_is_an_error() {
    let error = AfxdpPort::open(PortId(0), "nosuch", 0).unwrap_err();
    assert!(matches!(error, AfxdpError::Interface(_)), "{error}");
    assert!(AfxdpPort::open(PortId(0), "nul\0", 0).is_err());
}
