//! Fragments: any packet is whole again when put together, and recordings.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::forward::dr;
use crate::forward::testing::*;
use crate::forward::tunnel::{Encapsulation, encapsulate};
use crate::types::Tunnel;
use crate::wire::build::{Build, Transport};
use crate::wire::{Fragment, Offload, Outcome, parse};

/// The frames of a packet's pieces; nothing may be lost of the pool.
fn fragments(bytes: &[u8], mtu: u32) -> Result<Vec<Vec<u8>>, FragmentError> {
    let link = read(bytes).ip_offset;
    let mut pool = FramePool::new(1 + MAX_FRAGMENTS as u32, 70_000).unwrap();
    let mut frame = pool.allocate_copy(bytes).unwrap();
    let mut spare: Vec<Frame> = std::iter::from_fn(|| pool.allocate()).collect();
    let mut pieces = Vec::new();
    let result = fragment(&pool, &mut frame, link, mtu, 0xabcd_1234, &mut spare, |piece| pieces.push(piece));
    if result.is_err() {
        assert_eq!(pool.bytes(&frame), bytes, "changed in spite of {result:?}");
        assert!(pieces.is_empty());
    }
    assert_eq!(spare.len() + pieces.len(), MAX_FRAGMENTS);
    pieces.insert(0, frame);
    result.map(|further| {
        assert_eq!(further + 1, pieces.len());
        pieces.iter().map(|piece| pool.bytes(piece).to_vec()).collect()
    })
}

/// Puts the payload of a packet together again, checking what every piece must have.
fn reassembled(pieces: &[Vec<u8>], mtu: u32) -> Vec<u8> {
    let mut payload = Vec::new();
    for (n, bytes) in pieces.iter().enumerate() {
        let piece = read(bytes);
        assert!(piece.ip_length <= mtu);
        assert_eq!(piece.end(), bytes.len());
        let is_last = n + 1 == pieces.len();
        let (offset, more) = match piece.fragment {
            Fragment::Whole => (0, false),
            Fragment::First { .. } => (0, true),
            Fragment::Later { offset, more, .. } => (offset.into(), more),
        };
        assert_eq!((offset, more), (payload.len(), !is_last));
        let content = &bytes[piece.transport_offset.into()..];
        assert!(is_last || content.len() % 8 == 0);
        // No piece could have been larger.
        assert!(is_last || piece.ip_length + 8 > mtu);
        payload.extend(content);
    }
    payload
}

proptest! {
    #[test]
    fn pieces_put_together_are_the_packet(mut sample in samples(1500), mtu in 200..1500_u32, padded: bool) {
        // IPv6 as the director sends it: without extension headers.
        (sample.extensions, sample.padded, sample.dont_fragment) = (Vec::new(), padded, false);
        let before = sample.build().frame();
        let packet = read(&before);
        let link = usize::from(packet.ip_offset);
        let pieces = fragments(&before, mtu).unwrap();
        prop_assert_eq!(pieces.len() == 1, packet.ip_length <= mtu);
        prop_assert_eq!(reassembled(&pieces, mtu), &before[packet.transport_offset.into()..packet.end()]);
        for bytes in &pieces {
            let piece = read(bytes);
            prop_assert_eq!(&bytes[..link], &before[..link]);
            prop_assert_eq!((piece.addresses, piece.protocol, piece.ttl), (packet.addresses, packet.protocol, packet.ttl));
            match piece.fragment {
                Fragment::Whole => prop_assert_eq!(bytes, &before[..packet.end()]),
                Fragment::First { identification, .. } | Fragment::Later { identification, .. } => {
                    let expected = if sample.is_ipv6() { 0xabcd_1234 } else { sample.identification.into() };
                    prop_assert_eq!(identification, expected);
                }
            }
        }
    }

    #[test]
    fn pieces_of_pieces_are_pieces(mut sample in samples(1400), first in 400..1000_u32, second in 100..300_u32) {
        prop_assume!(!sample.is_ipv6());
        (sample.dont_fragment, sample.options) = (false, Vec::new());
        let before = sample.build().frame();
        let packet = read(&before);
        let again: Vec<Vec<u8>> = fragments(&before, first)
            .unwrap()
            .iter()
            .flat_map(|piece| fragments(piece, second).unwrap())
            .collect();
        // They need not be as large as they could be.
        let mut payload: Vec<u8> = Vec::new();
        for (n, bytes) in again.iter().enumerate() {
            let piece = read(bytes);
            prop_assert!(piece.ip_length <= second);
            let more = match piece.fragment {
                Fragment::Later { offset, more, .. } => {
                    prop_assert_eq!(usize::from(offset), payload.len());
                    more
                }
                Fragment::First { .. } => true,
                Fragment::Whole => false,
            };
            prop_assert_eq!(more, n + 1 < again.len());
            payload.extend(&bytes[piece.transport_offset.into()..]);
        }
        prop_assert_eq!(payload, &before[packet.transport_offset.into()..packet.end()]);
    }

    #[test]
    fn any_bytes_are_taken(bytes in vec(any::<u8>(), 0..200), link in 0..30_u16, mtu in 0..200_u32, version: bool) {
        let mut bytes = bytes;
        if let Some(first) = bytes.get_mut(usize::from(link)) {
            *first = if version { 0x40 | *first & 0x0f } else { 0x60 };
        }
        let mut pool = FramePool::new(1 + MAX_FRAGMENTS as u32, 600).unwrap();
        let mut frame = pool.allocate_copy(&bytes).unwrap();
        let mut spare: Vec<Frame> = std::iter::from_fn(|| pool.allocate()).collect();
        let before = spare.len();
        let mut further = 0;
        let result = fragment(&pool, &mut frame, link, mtu, 1, &mut spare, |_| further += 1);
        prop_assert_eq!(before - spare.len(), further);
        prop_assert_eq!(result.unwrap_or(0), further);
        prop_assert!(frame.len() <= bytes.len());
    }
}

#[test]
fn packets_are_cut_where_linux_cuts_them() {
    let v4 = Build::ipv4([10, 0, 0, 1], [10, 0, 0, 2]).transport(Transport::tcp(1, 2));
    let v6 = Build::ipv6([1; 16], [2; 16]).transport(Transport::tcp(1, 2));
    let options = v4.clone().options(&[1, 1, 1, 1]);
    // Packet, payload behind 20 bytes of TCP, MTU; IP lengths of the pieces.
    let rows: [(&Build, usize, u32, &[u32]); 9] = [
        (&v4, 1401, 1400, &[1396, 65]),
        (&v4, 1480, 1500, &[1500, 40]),
        (&v4, 1460, 1500, &[1500]),
        (&v4, 1461, 1500, &[1500, 21]),
        (&v4, 1361, 1400, &[1396, 25]),
        (&v4, 28, 44, &[44, 44]),
        (&options, 1457, 1500, &[1496, 29]),
        (&v6, 1481, 1500, &[1496, 101]),
        (&v6, 1440, 1500, &[1500]),
    ];
    for (build, payload, mtu, expected) in rows {
        let frame = build.clone().payload(&vec![7; payload]).frame();
        let lengths: Vec<u32> =
            fragments(&frame, mtu).unwrap().iter().map(|piece| read(piece).ip_length).collect();
        assert_eq!(lengths, expected, "{payload} {mtu} {build:?}");
    }
}

#[test]
fn what_must_not_be_cut_is_left_alone() {
    let v4 = Build::ipv4([10, 0, 0, 1], [10, 0, 0, 2]).payload(&[7; 1400]);
    let v6 = Build::ipv6([1; 16], [2; 16]).payload(&[7; 1400]);
    let rows = [
        ("don't fragment", v4.clone().dont_fragment(), 1280, Err(FragmentError::Forbidden)),
        ("don't fragment, but it fits", v4.clone().dont_fragment(), 1428, Ok(1)),
        (
            "hop-by-hop options",
            v6.clone().extension(protocol::HOP_BY_HOP, &[]),
            1280,
            Err(FragmentError::Forbidden),
        ),
        ("IPv6 fragment", v6.clone().fragment(0, true), 1280, Err(FragmentError::Forbidden)),
        ("no MTU", v4.clone(), 0, Err(FragmentError::TooMany)),
        ("no room for 8 bytes", v4.clone(), 27, Err(FragmentError::TooMany)),
        ("just too many", v4.clone(), 20 + 16 + 7, Err(FragmentError::TooMany)),
        ("just not too many", v4, 20 + 24, Ok(59)),
        ("IPv6, too many", v6, 40 + 8 + 16, Err(FragmentError::TooMany)),
    ];
    for (what, build, mtu, expected) in rows {
        assert_eq!(fragments(&build.frame(), mtu).map(|pieces| pieces.len()), expected, "{what}");
    }
}

#[test]
fn too_few_or_too_small_frames_change_nothing() {
    let bytes = Build::ipv4([10, 0, 0, 1], [10, 0, 0, 2]).payload(&[7; 4000]).frame();
    let mut large = FramePool::new(1, 6000).unwrap();
    let mut frame = large.allocate_copy(&bytes).unwrap();
    let result = fragment(&large, &mut frame, 14, 1500, 0, &mut Vec::new(), |_| panic!("none"));
    assert_eq!(result, Err(FragmentError::NoFrames));
    assert_eq!(large.bytes(&frame), bytes);

    let mut pool = FramePool::new(3, 6000).unwrap();
    let mut frame = pool.allocate_copy(&bytes).unwrap();
    let mut spare = Vec::new();
    while let Some(mut full) = pool.allocate() {
        // As if its bytes began far behind its chunk's beginning.
        pool.set_len(&mut full, usize::MAX);
        full.shrink_front(full.len() - 1000);
        spare.push(full);
    }
    let result = fragment(&pool, &mut frame, 14, 1500, 0, &mut spare, |_| panic!("none"));
    assert_eq!(result, Err(FragmentError::Truncated));
    assert_eq!((pool.bytes(&frame), spare.len()), (&bytes[..], 2));
}

#[test]
fn an_ipv6_packet_without_headroom_is_cut_all_the_same() {
    let bytes =
        Build::ipv6([1; 16], [2; 16]).payload(&(0..=255).cycle().take(1500).collect::<Vec<u8>>()).frame();
    let (mut frame, mut pool) = {
        let mut pool = FramePool::new(2, 4000).unwrap();
        (pool.allocate().unwrap(), pool)
    };
    assert!(frame.grow_front(frame.headroom()));
    pool.set_len(&mut frame, bytes.len());
    pool.bytes_mut(&mut frame).copy_from_slice(&bytes);
    let mut spare = vec![pool.allocate().unwrap()];
    let mut second = None;
    fragment(&pool, &mut frame, 14, 1400, 7, &mut spare, |piece| second = Some(piece)).unwrap();
    let pieces = [&frame, &second.unwrap()].map(|piece| pool.bytes(piece).to_vec());
    assert_eq!(reassembled(&pieces, 1400), bytes[54..]);
}

#[test]
fn later_pieces_keep_only_options_that_belong_into_each() {
    // A record of the route (7, not copied), a no-operation, a router alert (148, copied), a timestamp (68, not).
    let options = [7, 7, 4, 0, 0, 0, 0, 1, 148, 4, 0, 0, 68, 4, 5, 0, 0, 0, 0, 0];
    let kept = [1, 1, 1, 1, 1, 1, 1, 1, 148, 4, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0];
    let bytes = Build::ipv4([10, 0, 0, 1], [10, 0, 0, 2]).options(&options).payload(&[7; 1000]).frame();
    let pieces = fragments(&bytes, 600).unwrap();
    assert_eq!(pieces.len(), 2);
    assert_eq!(pieces[0][34..54], options);
    assert_eq!(pieces[1][34..54], kept);
    assert!(pieces.iter().all(|piece| matches!(parse(piece), Outcome::Packet(_))));

    // Options that contradict themselves are left as they are.
    for broken in [[7, 0, 9, 9], [7, 5, 9, 9], [1, 1, 1, 7]] {
        let mut blanked = broken;
        blank_options(&mut blanked);
        assert_eq!(blanked, broken);
    }
}

/// Lowers the time to live, and puts the packet into a tunnel, if there is one.
fn prepared(bytes: &[u8], tunnel: Option<(&Encapsulation, u16)>) -> Vec<u8> {
    let packet = read(bytes);
    let (pool, mut frame) = pool_of(bytes);
    dr::decrement_lifetime(&pool, &mut frame, &packet).unwrap();
    if let Some((with, identification)) = tunnel {
        let outer =
            encapsulate(&pool, &mut frame, &packet, &mut Offload::default(), with, identification).unwrap();
        assert!(outer.must_fragment);
    }
    pool.bytes(&frame).to_vec()
}

#[test]
fn recorded_packets_are_cut_as_by_the_kernel() {
    let tunnel = Encapsulation {
        tunnel: Tunnel::IPIP,
        source: [10, 88, 2, 254].into(),
        destination: [10, 88, 2, 11].into(),
        mtu: 1500,
        pmtu_disc: true,
    };
    let rows = [
        (include_str!("../../../tests/oracle/cases/dr-ttl-tos-mtu.json"), 1400, None),
        (include_str!("../../../tests/oracle/cases/tun-headers.json"), 1500, Some(&tunnel)),
    ];
    for (recording, mtu, tunnel) in rows {
        let mut cut = 0;
        for exchange in exchanges(recording) {
            let [(_, first), (_, second)] = exchange.received.as_slice() else { continue };
            let identification = u16::from_be_bytes([first[18], first[19]]);
            let bytes = prepared(&exchange.sent, tunnel.map(|with| (with, identification)));
            let pieces = fragments(&bytes, mtu).unwrap();
            // Behind the link header, which is not set here.
            let without_link =
                |frames: &[&Vec<u8>]| frames.iter().map(|frame| frame[14..].to_vec()).collect::<Vec<_>>();
            assert_eq!(without_link(&pieces.iter().collect::<Vec<_>>()), without_link(&[first, second]));
            cut += 1;
        }
        assert_eq!(cut, 1);
    }
}
