use std::net::UdpSocket;

use super::*;
use crate::io::HostPort;

/// A UDP frame to port 53 of the host, and where its parts are: the IP header's and the UDP header's offset.
fn udp(ipv6: bool, tags: usize, payload: &[u8]) -> (Vec<u8>, usize, usize) {
    let ethernet = etherparse::PacketBuilder::ethernet2([2; 6], [4; 6]);
    let source = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    let destination = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9];
    let builder = if ipv6 {
        ethernet.ipv6(source, destination, 9)
    } else {
        ethernet.ipv4([192, 0, 2, 7], [10, 9, 9, 9], 9)
    };
    let builder = builder.udp(4000, 53);
    let mut bytes = vec![0; builder.size(payload.len())];
    builder.write_to_slice(&mut bytes, payload).unwrap();
    for _ in 0..tags {
        bytes.splice(12..12, [0x81, 0, 0, 7]);
    }
    let ip = 14 + 4 * tags;
    (bytes, ip, ip + if ipv6 { 40 } else { 20 })
}

#[test]
fn packets_reach_the_hosts_sockets() {
    let Some(namespaces) = Namespaces::new("host", 1) else { return };
    namespaces.ip(&["-n", "@0", "link", "set", "lo", "up"]);
    namespaces.ip(&["-n", "@0", "addr", "add", "10.9.9.9/32", "dev", "lo"]);
    namespaces.ip(&["-n", "@0", "-6", "addr", "add", "fd00::9/128", "dev", "lo", "nodad"]);
    // An interface of another kind has the second name.
    namespaces.ip(&["-n", "@0", "link", "add", "uvs1", "type", "veth", "peer", "name", "uvs1p"]);
    let (mut first, second, v4, v6) = namespaces.inside(0, || {
        let first = HostPort::open().unwrap();
        let second = HostPort::open().unwrap();
        (first, second, UdpSocket::bind("10.9.9.9:53").unwrap(), UdpSocket::bind("[fd00::9]:53").unwrap())
    });
    assert_eq!((first.name(), second.name()), ("uvs0", "uvs2"));
    first.health().unwrap();
    let mut frames = FramePool::new(4, 69_632).unwrap();
    let mut delivered = 0;
    for (ipv6, socket, from) in [(false, &v4, "192.0.2.7:4000"), (true, &v6, "[2001:db8::1]:4000")] {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        for tags in 0..3 {
            for partial in [false, true] {
                let payload = vec![tags as u8; 300 + usize::from(partial)];
                let (mut bytes, ip, udp) = udp(ipv6, tags, &payload);
                let mut offload = Offload::default();
                if partial {
                    // What a local sender leaves: the pseudo-header's sum.
                    let addresses = if ipv6 { &bytes[ip + 8..ip + 40] } else { &bytes[ip + 12..ip + 20] };
                    let words =
                        addresses.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
                    let mut sum = words.sum::<u32>() + 17 + 8 + payload.len() as u32;
                    sum = (sum & 0xffff) + (sum >> 16);
                    sum = (sum & 0xffff) + (sum >> 16);
                    bytes[udp + 6..udp + 8].copy_from_slice(&(sum as u16).to_be_bytes());
                    offload.needs_checksum = true;
                    offload.checksum_start = udp as u16;
                    offload.checksum_offset = 6;
                }
                // As from a wire: short frames are padded.
                bytes.extend([0; 9]);
                let frame = frames.allocate_copy(&bytes).unwrap();
                first.send(&mut frames, frame, offload);
                delivered += 1;
                let mut got = [0; 2000];
                let (length, source) = socket.recv_from(&mut got).unwrap_or_else(|error| {
                    panic!("{error}: {ipv6} {tags} {partial} {:?}", first.statistics())
                });
                assert_eq!((&got[..length], source), (&payload[..], from.parse().unwrap()));
            }
        }
    }
    // A large packet of several segments, as merged on receiving.
    let payload: Vec<u8> = (0..30_000_u32).map(|n| (n / 3) as u8).collect();
    let (bytes, _, udp_at) = udp(false, 1, &payload);
    let offload = Offload {
        needs_checksum: true,
        checksum_start: udp_at as u16,
        checksum_offset: 6,
        // VIRTIO_NET_HDR_GSO_UDP_L4
        segmentation: 5,
        header_length: udp_at as u16 + 8,
        segment_size: 1000,
    };
    let frame = frames.allocate_copy(&bytes).unwrap();
    first.send(&mut frames, frame, offload);
    delivered += 1;
    let mut got = Vec::new();
    let mut part = [0; 65_536];
    while got.len() < payload.len() {
        let (length, _) = v4.recv_from(&mut part).unwrap();
        got.extend_from_slice(&part[..length]);
    }
    assert!(got == payload);
    for bytes in [&experiment(1, 60)[..], &[0; 13], &[]] {
        let frame = frames.allocate_copy(bytes).unwrap();
        first.send(&mut frames, frame, Offload::default());
    }
    let statistics = first.statistics();
    assert_eq!((statistics.delivered, statistics.not_ip, statistics.failed), (delivered, 3, 0));
    namespaces.ip(&["-n", "@0", "link", "set", "uvs0", "down"]);
    let frame = frames.allocate_copy(&udp(false, 0, b"late").0).unwrap();
    first.send(&mut frames, frame, Offload::default());
    assert_eq!(first.statistics().failed, 1);
    assert_eq!(first.health().unwrap_err().raw_os_error(), Some(libc::ENETDOWN));
    assert_eq!(frames.available(), 4);
    drop((first, second));
    let control = namespaces.inside(0, || InterfaceControl::new().unwrap());
    // A process just being started may still have a copy of the descriptor.
    wait_for("the device to go with its owner", || control.index("uvs0").is_err());
    let again = namespaces.inside(0, || HostPort::open().unwrap());
    assert_eq!(again.name(), "uvs0");
}

#[test]
fn the_device_takes_large_packets_from_anywhere() {
    let Some(namespaces) = Namespaces::new("hostset", 1) else { return };
    let host = namespaces.inside(0, || HostPort::open().unwrap());
    let read = |path: &str| namespaces.inside(0, || std::fs::read_to_string(path).unwrap().trim().to_owned());
    assert_eq!(read("/proc/sys/net/ipv4/conf/uvs0/rp_filter"), "0");
    // Its address is its own alone.
    assert!(read("/proc/thread-self/net/fib_trie").contains("127.117.118.115"));
    assert_eq!(read("/proc/thread-self/net/route").lines().count(), 1, "the heading: no route leads there");
    assert_eq!(read("/proc/sys/net/ipv6/conf/uvs0/accept_ra"), "0");
    assert_eq!(read("/proc/sys/net/ipv6/conf/uvs0/mtu"), "65535");
    drop(host);
}
