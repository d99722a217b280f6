use std::net::UdpSocket;
use std::os::fd::BorrowedFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::*;
use crate::io::{XdpError, XdpOptions, XdpPort};
use crate::sys::xsk::test_program::RedirectAll;
use crate::sys::xsk::{RingSizes, ZeroCopy};

const CHUNKS: u32 = 16_384;

/// A port on an interface of namespace 1, with every frame of its queues coming in.
fn open(
    namespaces: &Namespaces,
    frames: &mut FramePool,
    id: u16,
    name: &str,
    queues: &[u32],
    native: bool,
    options: XdpOptions,
) -> (XdpPort, RedirectAll) {
    let interface = namespaces.interface(1, name);
    namespaces.inside(1, || {
        let port = XdpPort::open(frames, PortId(id), interface, queues, options).unwrap();
        let program = RedirectAll::attach(interface, native).unwrap();
        for (queue, socket) in port.sockets() {
            program.insert(queue, socket).unwrap();
        }
        (port, program)
    })
}

/// Namespaces 0 (the tests' ends) and 1 (the ports'), with veth pairs ca-da and cb-db.
fn two_links(test: &str, mtu: &str) -> Option<Namespaces> {
    let namespaces = Namespaces::new(test, 2)?;
    namespaces.pair(("@0", "ca"), ("@1", "da"), mtu, "1");
    namespaces.pair(("@0", "cb"), ("@1", "db"), mtu, "1");
    Some(namespaces)
}

/// Moves what came in at one port out of the other.
fn forward(frames: &mut FramePool, batch: &mut Batch, from: &mut XdpPort, to: &mut XdpPort) {
    from.receive(frames, batch);
    for entry in batch.drain() {
        to.transmit(frames, entry.frame, entry.offload);
    }
    to.flush(frames);
}

fn chunks_are_all_there(frames: &mut FramePool, ports: impl IntoIterator<Item = XdpPort>) {
    let mut held = 0;
    let mut back = 0;
    let before = frames.available();
    for mut port in ports {
        wait_for("frames to be sent", || {
            port.flush(frames);
            port.unsent() == 0 && port.in_flight() == 0
        });
        assert_eq!(port.statistics().invalid_descriptors, 0);
        held += port.held();
        back += port.close(frames);
    }
    assert!(before + held <= frames.chunks() as usize);
    assert_eq!(back, held);
    assert_eq!(frames.available(), frames.chunks() as usize);
}

fn frames_cross_two_ports_of_one_pool(test: &str, native: bool) {
    let Some(namespaces) = two_links(test, "1500") else { return };
    let mut frames = FramePool::new(CHUNKS, 2048).unwrap();
    let options = XdpOptions::default();
    let (mut a, _on_a) = open(&namespaces, &mut frames, 0, "da", &[0], native, options);
    let (mut b, _on_b) = open(&namespaces, &mut frames, 1, "db", &[0], native, options);
    assert!(!a.zero_copy(), "veth cannot");
    let (mut left, mut right) = (namespaces.tap(0, "ca"), namespaces.tap(0, "cb"));
    let mut batch = Batch::new();
    let (mut to_right, mut to_left) = (Vec::new(), Vec::new());
    let rounds = 60;
    for round in 0..rounds {
        for n in 0..64 {
            left.send(&experiment(round * 64 + n, 60 + (n as usize * 20)));
            right.send(&experiment(1 << 20 | (round * 64 + n), 1400 - n as usize));
        }
        wait_for("a burst to cross", || {
            forward(&mut frames, &mut batch, &mut a, &mut b);
            forward(&mut frames, &mut batch, &mut b, &mut a);
            to_right.extend(right.receive());
            to_left.extend(left.receive());
            let all = (round as usize + 1) * 64;
            to_right.len() == all && to_left.len() == all
        });
    }
    for (n, (right, left)) in (0..).zip(to_right.iter().zip(&to_left)) {
        assert_eq!(right, &experiment(n, 60 + (n as usize % 64 * 20)));
        assert_eq!(left, &experiment(1 << 20 | n, 1400 - n as usize % 64));
    }
    let total = u64::from(rounds) * 64;
    for port in [&a, &b] {
        let statistics = port.statistics();
        assert!(statistics.received >= total && statistics.transmitted >= total);
        assert_eq!((statistics.transmit_dropped, statistics.receive_dropped), (0, 0));
    }
    chunks_are_all_there(&mut frames, [a, b]);
}

#[test]
fn frames_cross_in_native_mode() {
    frames_cross_two_ports_of_one_pool("xn", true);
}

#[test]
fn frames_cross_in_generic_mode() {
    frames_cross_two_ports_of_one_pool("xg", false);
}

#[test]
fn many_frames_leave_in_a_row_and_a_queue_is_taken_over_at_once() {
    let Some(namespaces) = two_links("xrow", "1500") else { return };
    let mut frames = FramePool::new(CHUNKS, 2048).unwrap();
    let mut right = namespaces.tap(0, "cb");
    for _ in 0..3 {
        // Each time right after the last owner went.
        let (mut b, _on_b) = open(&namespaces, &mut frames, 1, "db", &[0], true, XdpOptions::default());
        for burst in 0..5 {
            // All at once: several of the batches that the kernel takes in one call by itself.
            for n in 0..BURST {
                let frame = frames.allocate_copy(&experiment(burst * BURST + n, 60)).unwrap();
                b.transmit(&mut frames, frame, Offload::default());
            }
            b.flush(&mut frames);
            assert_eq!(b.unsent(), 0);
            let got = right.expect(BURST as usize);
            assert!((burst * BURST..).zip(&got).all(|(n, bytes)| bytes == &experiment(n, 60)));
        }
        // More than the ring holds, and than one call takes. Not all need get past the stack behind.
        let before = namespaces.sent(1, "db");
        for n in 0..5000 {
            let frame = frames.allocate_copy(&experiment(n, 60)).unwrap();
            b.transmit(&mut frames, frame, Offload::default());
        }
        wait_for("the ring to empty", || {
            b.flush(&mut frames);
            b.unsent() == 0
        });
        let statistics = b.statistics();
        assert_eq!(
            (statistics.transmitted + statistics.transmit_dropped, statistics.transmitted / 5000),
            (6000, 1)
        );
        assert!(statistics.system_calls >= 5000 / 256, "each call takes so many at most");
        wait_for("the interface to have counted", || namespaces.sent(1, "db") == before + 5000);
        while !right.receive_all().is_empty() {}
        chunks_are_all_there(&mut frames, [b]);
    }
}

#[test]
fn a_busy_queue_is_waited_for_but_not_forever() {
    let Some(namespaces) = two_links("xbusy", "1500") else { return };
    let mut frames = FramePool::new(CHUNKS, 2048).unwrap();
    let mut others = FramePool::new(CHUNKS, 2048).unwrap();
    let (other, on_other) = open(&namespaces, &mut others, 0, "da", &[0], true, XdpOptions::default());
    let interface = namespaces.interface(1, "da");
    let attempt = |frames: &mut FramePool| {
        let options = XdpOptions::default();
        namespaces.inside(1, || XdpPort::open(frames, PortId(0), interface, &[0], options))
    };
    let start = Instant::now();
    let error = attempt(&mut frames).unwrap_err();
    assert!(
        matches!(&error, XdpError::Socket { queue: 0, source } if source.raw_os_error() == Some(libc::EBUSY)),
        "{error}"
    );
    assert!(start.elapsed() >= Duration::from_secs(1));
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(200));
            drop(on_other);
            other.close(&mut others);
        });
        attempt(&mut frames).unwrap().close(&mut frames);
    });
    assert_eq!((frames.available(), others.available()), (CHUNKS as usize, CHUNKS as usize));
}

#[test]
fn what_cannot_be_sent_is_dropped_and_counted() {
    let Some(namespaces) = two_links("xbad", "1500") else { return };
    let mut frames = FramePool::new(CHUNKS, 2048).unwrap();
    let (mut b, _on_b) = open(&namespaces, &mut frames, 1, "db", &[0], true, XdpOptions::default());
    let mut right = namespaces.tap(0, "cb");
    let segmented = Offload { segmentation: 1, segment_size: 1000, ..Offload::default() };
    let outside = Offload { needs_checksum: true, checksum_start: 60, ..Offload::default() };
    for (bytes, offload) in [
        (experiment(0, 60), segmented),
        (experiment(1, 60), outside),
        (vec![], Offload::default()),
        (vec![1; 13], Offload::default()),
        (experiment(2, 60), Offload::default()),
    ] {
        let frame = frames.allocate_copy(&bytes).unwrap();
        b.transmit(&mut frames, frame, offload);
    }
    b.flush(&mut frames);
    assert_eq!(right.expect(1), [experiment(2, 60)]);
    assert_eq!((b.statistics().transmit_dropped, b.statistics().transmitted), (4, 1));
    chunks_are_all_there(&mut frames, [b]);
}

#[test]
fn several_queues_are_one_port() {
    let Some(namespaces) = Namespaces::new("xmq", 2) else { return };
    namespaces.pair(("@0", "ca"), ("@1", "da"), "1500", "2");
    let mut frames = FramePool::new(CHUNKS, 2048).unwrap();
    let (mut a, _on_a) = open(&namespaces, &mut frames, 0, "da", &[0, 1], true, XdpOptions::default());
    let mut left = namespaces.tap(0, "ca");
    let readable = |fd: BorrowedFd<'_>, wait: i64| {
        let wait = Timespec { tv_sec: wait, tv_nsec: 0 };
        poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&wait)).unwrap() > 0
    };
    let mut batch = Batch::new();
    assert!(!readable(a.readiness().unwrap(), 0));
    let mut per_queue = [0; 2];
    let mut received = 0;
    for n in 0..200_u16 {
        // The stack picks the queue by the flow; so other ports, other queues.
        let builder = etherparse::PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10; 4], [11; 4], 9);
        let builder = builder.udp(1000 + n, 7);
        let mut bytes = vec![0; builder.size(20)];
        builder.write_to_slice(&mut bytes, &[0; 20]).unwrap();
        left.send(&bytes);
        assert!(readable(a.readiness().unwrap(), 20), "frame {n}");
        for (queue, socket) in a.sockets() {
            per_queue[queue as usize] += usize::from(readable(socket, 0));
        }
        while a.receive(&mut frames, &mut batch) > 0 {}
        received += batch.len();
        batch.clear(&mut frames);
    }
    assert!(received >= 200, "{received}");
    assert!(per_queue.iter().all(|&count| count > 20), "{per_queue:?}");
    assert_eq!(a.statistics().receive_dropped, 0);
    chunks_are_all_there(&mut frames, [a]);
}

#[test]
fn partial_checksums_of_a_local_sender_are_completed() {
    for (test, native) in [("xcn", true), ("xcg", false)] {
        let Some(namespaces) = two_links(test, "1500") else { return };
        namespaces.ip(&["-n", "@0", "addr", "add", "10.1.0.1/24", "dev", "ca"]);
        namespaces.ip(&["-n", "@0", "neigh", "add", "10.1.0.2", "lladdr", "02:00:00:00:00:09", "dev", "ca"]);
        let mut frames = FramePool::new(CHUNKS, 2048).unwrap();
        let mut batch = Batch::new();
        for complete_checksums in [true, false] {
            let options = XdpOptions { complete_checksums, ..XdpOptions::default() };
            let (mut a, _on_a) = open(&namespaces, &mut frames, 0, "da", &[0], native, options);
            let socket = namespaces.inside(0, || UdpSocket::bind("10.1.0.1:0").unwrap());
            let mut right = 0;
            for n in 0..10_u8 {
                socket.send_to(&vec![n; 100 + usize::from(n)], "10.1.0.2:53").unwrap();
                wait_for("the packet", || a.receive(&mut frames, &mut batch) > 0);
                for entry in batch.entries() {
                    let sliced = etherparse::SlicedPacket::from_ethernet(frames.bytes(&entry.frame)).unwrap();
                    let (Some(etherparse::NetSlice::Ipv4(ip)), Some(etherparse::TransportSlice::Udp(udp))) =
                        (sliced.net, sliced.transport)
                    else {
                        continue;
                    };
                    let header = udp.to_header();
                    let wanted = header.calc_checksum_ipv4(&ip.header().to_header(), udp.payload()).unwrap();
                    right += usize::from(header.checksum == wanted);
                    assert_eq!(entry.offload, Offload::default());
                }
                batch.clear(&mut frames);
            }
            let expected = if complete_checksums { 10 } else { 0 };
            assert_eq!(right, expected, "native {native}");
            assert_eq!(a.statistics().checksums_completed, expected as u64);
            chunks_are_all_there(&mut frames, [a]);
        }
    }
}

#[test]
fn frames_larger_than_a_chunk_are_counted() {
    for (test, native) in [("xon", true), ("xog", false)] {
        let Some(namespaces) = two_links(test, "3000") else { return };
        let mut frames = FramePool::new(CHUNKS, 2048).unwrap();
        let mut batch = Batch::new();
        let (mut a, _on_a) = open(&namespaces, &mut frames, 0, "da", &[0], native, XdpOptions::default());
        let mut left = namespaces.tap(0, "ca");
        for length in [1700, 2500, 1792, 1793, 60] {
            left.send(&experiment(length as u32, length));
        }
        let mut lengths = Vec::new();
        wait_for("the small frames", || {
            a.receive(&mut frames, &mut batch);
            lengths.extend(batch.entries().iter().map(|entry| entry.frame.len()));
            batch.clear(&mut frames);
            lengths.last() == Some(&60)
        });
        assert_eq!(lengths, [1700, 1792, 60], "native {native}");
        let statistics = a.statistics();
        assert_eq!((statistics.oversized, statistics.receive_dropped), (2, 2), "native {native}");
        chunks_are_all_there(&mut frames, [a]);
    }
}

#[test]
fn a_starved_fill_ring_is_counted_and_recovers() {
    let Some(namespaces) = two_links("xstarve", "1500") else { return };
    let rings = RingSizes { receive: 64, transmit: 64, fill: 64, completion: 64 };
    let options = XdpOptions { rings, ..XdpOptions::default() };
    let mut frames = FramePool::new(1024, 2048).unwrap();
    let (mut a, _on_a) = open(&namespaces, &mut frames, 0, "da", &[0], true, options);
    let mut left = namespaces.tap(0, "ca");
    for n in 0..200 {
        left.send(&experiment(n, 60));
    }
    wait_for("the kernel to drop", || a.statistics().receive_dropped >= 136);
    let statistics = a.statistics();
    assert!(statistics.fill_ring_empty > 0 && statistics.oversized == 0, "{statistics:?}");
    let mut batch = Batch::new();
    wait_for("the ring to empty", || {
        let got = a.receive(&mut frames, &mut batch);
        batch.clear(&mut frames);
        got == 0
    });
    left.send(&experiment(1000, 60));
    wait_for("a frame again", || a.receive(&mut frames, &mut batch) > 0);
    batch.clear(&mut frames);
    chunks_are_all_there(&mut frames, [a]);
}

#[test]
fn an_interface_goes_down_and_comes_back() {
    let Some(namespaces) = two_links("xdown", "1500") else { return };
    let mut frames = FramePool::new(CHUNKS, 2048).unwrap();
    let mut batch = Batch::new();
    let (mut a, _on_a) = open(&namespaces, &mut frames, 0, "da", &[0], true, XdpOptions::default());
    let mut left = namespaces.tap(0, "ca");
    a.health().unwrap();
    namespaces.ip(&["-n", "@1", "link", "set", "da", "down"]);
    assert_eq!(a.health().unwrap_err().raw_os_error(), Some(libc::ENETDOWN));
    for n in 0..3000 {
        let frame = frames.allocate_copy(&experiment(n, 60)).unwrap();
        a.transmit(&mut frames, frame, Offload::default());
    }
    a.flush(&mut frames);
    let statistics = a.statistics();
    assert_eq!(statistics.transmitted + statistics.transmit_dropped, 3000);
    assert!(statistics.transmit_dropped >= 3000 - 2048);
    namespaces.ip(&["-n", "@1", "link", "set", "da", "up"]);
    a.health().unwrap();
    wait_for("both directions", || {
        a.flush(&mut frames);
        left.send(&experiment(9000, 60));
        let got = a.receive(&mut frames, &mut batch);
        batch.clear(&mut frames);
        got > 0 && a.unsent() == 0
    });
    let frame = frames.allocate_copy(&experiment(9999, 60)).unwrap();
    a.transmit(&mut frames, frame, Offload::default());
    a.flush(&mut frames);
    wait_for("the last frame", || left.receive().contains(&experiment(9999, 60)));
    chunks_are_all_there(&mut frames, [a]);
    namespaces.ip(&["-n", "@1", "link", "del", "db"]);
}

#[test]
fn an_interface_that_is_deleted_leaves_a_port_that_says_so() {
    let Some(namespaces) = two_links("xgone", "1500") else { return };
    let mut frames = FramePool::new(CHUNKS, 2048).unwrap();
    // The first registers the pool's memory; the second shares it, and must outlive the first's interface.
    let (mut a, _on_a) = open(&namespaces, &mut frames, 0, "da", &[0], true, XdpOptions::default());
    let (mut b, on_b) = open(&namespaces, &mut frames, 1, "db", &[0], true, XdpOptions::default());
    namespaces.ip(&["-n", "@1", "link", "del", "da"]);
    assert_eq!(a.health().unwrap_err().raw_os_error(), Some(libc::ENODEV));
    let frame = frames.allocate_copy(&experiment(1, 60)).unwrap();
    a.transmit(&mut frames, frame, Offload::default());
    a.flush(&mut frames);
    let mut right = namespaces.tap(0, "cb");
    let frame = frames.allocate_copy(&experiment(2, 60)).unwrap();
    b.transmit(&mut frames, frame, Offload::default());
    b.flush(&mut frames);
    assert_eq!(right.expect(1), [experiment(2, 60)]);
    b.close(&mut frames);
    drop(on_b);
    // The pool's first registration is of no more use, with its socket still open: it is made again.
    let (b, _on_b) = open(&namespaces, &mut frames, 1, "db", &[0], true, XdpOptions::default());
    // The frame that never went is lost with the port; all others come back.
    b.close(&mut frames);
    a.close(&mut frames);
    assert_eq!(frames.available(), CHUNKS as usize - 1);
}

#[test]
fn what_cannot_be_opened_says_why_and_costs_nothing() {
    let Some(namespaces) = two_links("xerr", "1500") else { return };
    let mut frames = FramePool::new(CHUNKS, 2048).unwrap();
    let interface = namespaces.interface(1, "da");
    let mut attempt = |queues: &[u32], options: XdpOptions| {
        namespaces
            .inside(1, || XdpPort::open(&mut frames, PortId(0), interface, queues, options))
            .unwrap_err()
    };
    let options = XdpOptions::default();
    assert!(matches!(attempt(&[], options), XdpError::NoQueue));
    let rings = RingSizes { receive: 100, ..RingSizes::default() };
    assert!(matches!(attempt(&[0], XdpOptions { rings, ..options }), XdpError::RingSizes(_)));
    let error = attempt(&[0], XdpOptions { zero_copy: ZeroCopy::Required, ..options });
    assert!(
        matches!(&error, XdpError::Socket { queue: 0, source } if source.raw_os_error() == Some(libc::EOPNOTSUPP)),
        "{error}"
    );
    let error = attempt(&[0, 7], options);
    assert!(
        matches!(&error, XdpError::Socket { queue: 7, source } if source.raw_os_error() == Some(libc::EINVAL)),
        "{error}"
    );
    assert!(matches!(attempt(&[0; 100], options), XdpError::TooFewChunks { .. }));
    assert_eq!(frames.available(), CHUNKS as usize);
}
