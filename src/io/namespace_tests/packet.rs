use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use super::*;
use crate::sys::packet::{FilterInstruction, PacketFilter};

/// Namespaces 0 and 2 (the tests' ends) and 1 (the ports'), with veth pairs ca-da and sb-db.
fn two_links(test: &str) -> Option<Namespaces> {
    let namespaces = Namespaces::new(test, 3)?;
    namespaces.pair(("@0", "ca"), ("@1", "da"), "1500", "1");
    namespaces.pair(("@2", "sb"), ("@1", "db"), "1500", "1");
    Some(namespaces)
}

fn open(namespaces: &Namespaces, id: u16, name: &str, options: PacketOptions) -> PacketPort {
    let interface = namespaces.interface(1, name);
    namespaces.inside(1, || PacketPort::open(PortId(id), interface, options)).unwrap()
}

fn pool() -> FramePool {
    FramePool::new(512, 69_632).unwrap()
}

/// Moves what came in at one port out of the other, and shows each frame to `seen`.
fn forward(
    frames: &mut FramePool,
    batch: &mut Batch,
    from: &mut PacketPort,
    to: &mut PacketPort,
    mut seen: impl FnMut(&[u8], Offload),
) {
    from.receive(frames, batch);
    for entry in batch.drain() {
        seen(frames.bytes(&entry.frame), entry.offload);
        to.transmit(frames, entry.frame, entry.offload);
    }
    to.flush(frames);
}

fn chunks_are_all_there(mut frames: FramePool, ports: impl IntoIterator<Item = PacketPort>) {
    for port in ports {
        let (held, before) = (port.held(), frames.available());
        port.close(&mut frames);
        assert_eq!(frames.available(), before + held);
    }
    assert_eq!(frames.available(), frames.chunks() as usize);
}

fn transmit(frames: &mut FramePool, port: &mut PacketPort, bytes: &[u8]) {
    let frame = frames.allocate_copy(bytes).unwrap();
    port.transmit(frames, frame, Offload::default());
}

#[test]
fn frames_cross_with_their_tags() {
    let Some(namespaces) = two_links("ptag") else { return };
    let mut frames = pool();
    let mut batch = Batch::new();
    let mut a = open(&namespaces, 0, "da", PacketOptions::default());
    let mut b = open(&namespaces, 1, "db", PacketOptions::default());
    let (mut left, mut right) = (namespaces.tap(0, "ca"), namespaces.tap(2, "sb"));
    let mut sent = Vec::new();
    let mut got = Vec::new();
    for n in 0..1000_u32 {
        let mut bytes = experiment(n, 60 + n as usize);
        if let Some(tag) =
            [None, Some([0x81, 0x00, 0x20, 0x07]), Some([0x88, 0xa8, 0x0f, 0xfe])][n as usize % 3]
        {
            bytes.splice(12..12, tag);
        }
        left.send(&bytes);
        sent.push(bytes);
        if (n + 1) % BURST == 0 {
            wait_for("all frames", || {
                forward(&mut frames, &mut batch, &mut a, &mut b, |_, offload| {
                    assert_eq!(offload, Offload::default());
                });
                got.extend(right.receive());
                got.len() >= sent.len()
            });
        }
    }
    assert_eq!(got, sent);
    // What we sent ourselves did not come back.
    assert_eq!((b.receive(&mut frames, &mut batch), a.statistics().received), (0, 1000));
    assert_eq!((b.statistics().transmitted, b.statistics().transmit_dropped), (1000, 0));
    chunks_are_all_there(frames, [a, b]);
}

#[test]
fn large_frames_of_local_senders_pass_whole() {
    let Some(namespaces) = two_links("pgso") else { return };
    namespaces.ip(&["-n", "@0", "addr", "add", "10.1.0.1/24", "dev", "ca"]);
    namespaces.ip(&["-n", "@2", "addr", "add", "10.1.0.2/24", "dev", "sb"]);
    let mut frames = pool();
    let mut batch = Batch::new();
    let mut a = open(&namespaces, 0, "da", PacketOptions::default());
    let mut b = open(&namespaces, 1, "db", PacketOptions::default());
    let listener = namespaces.inside(2, || TcpListener::bind("10.1.0.2:80").unwrap());
    const BYTES: usize = 4 << 20;
    let data: Vec<u8> = (0..BYTES).map(|n| (n / 7) as u8).collect();
    let (mut large, mut partial) = (0, 0);
    thread::scope(|scope| {
        let receiver = scope.spawn(|| {
            let mut got = Vec::new();
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.read_to_end(&mut got).unwrap();
            got
        });
        let sender = scope.spawn(|| {
            namespaces.inside(0, || {
                let mut stream =
                    TcpStream::connect_timeout(&"10.1.0.2:80".parse().unwrap(), PATIENCE).unwrap();
                stream.set_write_timeout(Some(PATIENCE)).unwrap();
                stream.write_all(&data).unwrap();
            });
        });
        wait_for("the transfer", || {
            forward(&mut frames, &mut batch, &mut a, &mut b, |bytes, offload| {
                partial += usize::from(offload.needs_checksum);
                if bytes.len() > 1514 {
                    large += 1;
                    assert_eq!((offload.segmentation & 0x7f, offload.needs_checksum), (1, true));
                    assert!(offload.segment_size > 1000 && offload.checksum_start == 34);
                }
            });
            forward(&mut frames, &mut batch, &mut b, &mut a, |_, _| {});
            receiver.is_finished()
        });
        sender.join().unwrap();
        assert!(receiver.join().unwrap() == data);
    });
    assert!(large > 10 && partial >= large, "{large} large, {partial} partial");
    assert_eq!((a.statistics().oversized, b.statistics().transmit_dropped), (0, 0));
    chunks_are_all_there(frames, [a, b]);
}

#[test]
fn a_frame_too_long_for_the_interface_is_dropped_alone() {
    let Some(namespaces) = two_links("pmtu") else { return };
    let mut frames = pool();
    let mut b = open(&namespaces, 1, "db", PacketOptions::default());
    let mut right = namespaces.tap(2, "sb");
    for n in 0..100 {
        let length = if n % 10 == 3 { 1515 } else { 1514 };
        transmit(&mut frames, &mut b, &experiment(n, length));
    }
    // Nonsense is refused by the kernel, and no more harm than that.
    transmit(&mut frames, &mut b, &[1; 5]);
    let frame = frames.allocate_copy(&experiment(7, 60)).unwrap();
    b.transmit(
        &mut frames,
        frame,
        Offload { needs_checksum: true, checksum_start: 900, ..Offload::default() },
    );
    transmit(&mut frames, &mut b, &experiment(100, 60));
    b.flush(&mut frames);
    assert_eq!((b.statistics().transmitted, b.statistics().transmit_dropped), (91, 12));
    let got = right.expect(91);
    assert_eq!(got.last(), Some(&experiment(100, 60)));
    assert_eq!(b.unsent(), 0);
    chunks_are_all_there(frames, [b]);
}

#[test]
fn frames_larger_than_a_chunk_are_counted_and_dropped() {
    let Some(namespaces) = two_links("pbig") else { return };
    let mut frames = FramePool::new(128, 1024).unwrap();
    let mut batch = Batch::new();
    let mut a = open(&namespaces, 0, "da", PacketOptions::default());
    let mut left = namespaces.tap(0, "ca");
    for (n, length) in [768, 769, 60].into_iter().enumerate() {
        left.send(&experiment(n as u32, length));
    }
    let mut lengths = Vec::new();
    wait_for("the frames", || {
        a.receive(&mut frames, &mut batch);
        lengths.extend(batch.entries().iter().map(|entry| entry.frame.len()));
        batch.clear(&mut frames);
        lengths.len() + a.statistics().oversized as usize >= 3
    });
    assert_eq!(lengths, [768, 60]);
    chunks_are_all_there(frames, [a]);
}

#[test]
fn an_interface_goes_down_and_comes_back() {
    let Some(namespaces) = two_links("pdown") else { return };
    let mut frames = pool();
    let mut batch = Batch::new();
    let mut b = open(&namespaces, 1, "db", PacketOptions::default());
    let mut right = namespaces.tap(2, "sb");
    b.health().unwrap();
    namespaces.ip(&["-n", "@1", "link", "set", "db", "down"]);
    assert_eq!(b.health().unwrap_err().raw_os_error(), Some(libc::ENETDOWN));
    for n in 0..300 {
        transmit(&mut frames, &mut b, &experiment(n, 60));
    }
    b.flush(&mut frames);
    assert_eq!((b.statistics().transmitted, b.statistics().transmit_dropped), (0, 300));
    assert_eq!(b.receive(&mut frames, &mut batch), 0);
    namespaces.ip(&["-n", "@1", "link", "set", "db", "up"]);
    b.health().unwrap();
    wait_for("frames again, both ways", || {
        transmit(&mut frames, &mut b, &experiment(1000, 60));
        b.flush(&mut frames);
        right.send(&experiment(1001, 60));
        let got = b.receive(&mut frames, &mut batch);
        batch.clear(&mut frames);
        got > 0 && right.receive().contains(&experiment(1000, 60))
    });
    namespaces.ip(&["-n", "@1", "link", "del", "db"]);
    assert_eq!(b.health().unwrap_err().raw_os_error(), Some(libc::ENODEV));
    transmit(&mut frames, &mut b, &experiment(1002, 60));
    b.flush(&mut frames);
    assert_eq!(b.statistics().transmit_dropped, 301);
    chunks_are_all_there(frames, [b]);
}

/// A UDP frame of one of many flows.
fn flow(port: u16) -> Vec<u8> {
    let builder = etherparse::PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10; 4], [11; 4], 9).udp(port, 7);
    let mut bytes = vec![0; builder.size(8)];
    builder.write_to_slice(&mut bytes, &[0; 8]).unwrap();
    bytes
}

#[test]
fn workers_share_an_interface_by_flows() {
    let Some(namespaces) = two_links("pfan") else { return };
    let mut frames = pool();
    let mut batch = Batch::new();
    let options = PacketOptions { group: Some(77), ..PacketOptions::default() };
    // The second interface is down: its port cannot join its group yet, and must not hear others' frames.
    namespaces.ip(&["-n", "@1", "link", "set", "db", "down"]);
    let mut ports: Vec<PacketPort> = (0..2).map(|id| open(&namespaces, id, "da", options.clone())).collect();
    let other = PacketOptions { group: Some(78), ..PacketOptions::default() };
    let mut later: Vec<PacketPort> = (0..2).map(|id| open(&namespaces, id, "db", other.clone())).collect();
    namespaces.ip(&["-n", "@1", "link", "set", "db", "up"]);
    let interface = namespaces.interface(1, "db");
    let clash = namespaces.inside(1, || PacketPort::open(PortId(3), interface, options.clone()));
    assert_eq!(clash.unwrap_err().raw_os_error(), Some(libc::EINVAL), "one group, two interfaces");
    for port in &mut later {
        port.health().unwrap();
    }
    for (ports, mut tap) in [(&mut ports, namespaces.tap(0, "ca")), (&mut later, namespaces.tap(2, "sb"))] {
        let mut seen = std::collections::HashMap::new();
        let mut counts = [0; 2];
        for _ in 0..3 {
            for port in 0..100 {
                tap.send(&flow(port));
            }
        }
        wait_for("each frame once", || {
            for (worker, port) in ports.iter_mut().enumerate() {
                port.receive(&mut frames, &mut batch);
                for entry in batch.drain() {
                    let bytes = frames.bytes(&entry.frame).to_vec();
                    assert_eq!(*seen.entry(bytes).or_insert(worker), worker, "a flow changed its worker");
                    counts[worker] += 1;
                    frames.free(entry.frame);
                }
            }
            counts[0] + counts[1] >= 300
        });
        assert_eq!((counts[0] + counts[1], seen.len()), (300, 100));
        assert!(counts[0] > 30 && counts[1] > 30, "{counts:?}");
    }
    chunks_are_all_there(frames, ports.into_iter().chain(later));
}

#[test]
fn only_what_passes_the_filter_is_received() {
    let Some(namespaces) = two_links("pfil") else { return };
    let mut frames = pool();
    let mut batch = Batch::new();
    // ldh [12]; jeq #0x88b5, pass; ret #0; pass: ret #-1
    let filter = [(0x28, 0, 0, 12), (0x15, 1, 0, 0x88b5), (0x06, 0, 0, 0), (0x06, 0, 0, u32::MAX)].map(
        |(code, jump_true, jump_false, operand)| FilterInstruction { code, jump_true, jump_false, operand },
    );
    let options =
        PacketOptions { filter: PacketFilter::Classic(filter.to_vec()), ..PacketOptions::default() };
    let mut left = namespaces.tap(0, "ca");
    let mut a = open(&namespaces, 0, "da", options);
    for n in 0..50 {
        left.send(&flow(n));
        left.send(&experiment(u32::from(n), 60));
    }
    let mut got = 0;
    wait_for("the frames that pass", || {
        a.receive(&mut frames, &mut batch);
        got += batch.len();
        assert!(batch.entries().iter().all(|entry| is_experiment(frames.bytes(&entry.frame))));
        batch.clear(&mut frames);
        got >= 50
    });
    assert_eq!(a.statistics().received, 50);
    let broken = PacketOptions {
        filter: PacketFilter::Classic(vec![FilterInstruction {
            code: 0xffff,
            jump_true: 0,
            jump_false: 0,
            operand: 0,
        }]),
        ..PacketOptions::default()
    };
    let interface = namespaces.interface(1, "da");
    assert!(namespaces.inside(1, || PacketPort::open(PortId(0), interface, broken)).is_err());
    chunks_are_all_there(frames, [a]);
}

#[test]
fn a_full_receive_buffer_is_counted() {
    let Some(namespaces) = two_links("pfull") else { return };
    let options = PacketOptions { receive_buffer: 1 << 16, ..PacketOptions::default() };
    let a = open(&namespaces, 0, "da", options);
    let mut left = namespaces.tap(0, "ca");
    wait_for("drops", || {
        left.send(&experiment(1, 60));
        a.statistics().receive_ring_full > 100
    });
    let drops = a.statistics().receive_dropped;
    assert_eq!(a.statistics().receive_dropped, drops, "reading does not reset it");
}
