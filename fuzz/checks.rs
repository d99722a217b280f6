//! What holds for any bytes: run by the fuzz targets, and over the corpus by an ordinary test (tests/corpus.rs).
#![allow(dead_code)] // each user runs some of them

use std::net::{Ipv4Addr, Ipv6Addr};

use uvs::io::pcap::{MAX_FRAME_LENGTH, Reader};
use uvs::types::Family;
use uvs::wire::transport::{Checked, verify};
use uvs::wire::{Fragment, Outcome, Parsed, icmp, icmpv6, ipv4, ipv6, parse, parse_inner, parse_quoted};

/// Reads bytes as a frame, and does with what it holds what the director does.
///
/// # Panics
/// Where something does not hold that must.
pub(crate) fn frame(bytes: &[u8]) {
    read_frame(bytes);
    // Nearly all changes to an IPv4 header stop at its checksum: look behind it.
    let mut summed = bytes.to_vec();
    if bytes.len() >= 34 && bytes[12..14] == [8, 0] {
        let end = (14 + usize::from(bytes[14] & 15) * 4).clamp(34, bytes.len());
        assert!(ipv4::write_checksum(&mut summed[14..end]));
        read_frame(&summed);
    }
    for offset in [0, 14, 42] {
        if let Ok(packet) = parse_inner(bytes, offset) {
            check_packet(bytes, &packet);
        }
        let _ = parse_quoted(bytes, offset);
    }
}

fn read_frame(bytes: &[u8]) {
    let Outcome::Packet(packet) = parse(bytes) else { return };
    check_packet(bytes, &packet);
    assert!(matches!(packet.ip_offset, 14 | 18 | 22));
    assert_ne!(packet.vlan, Some(0));
    let inner = parse_inner(bytes, packet.ip_offset.into());
    let same = Parsed { vlan: None, destination_mac: Default::default(), ..packet };
    assert_eq!(inner, Ok(same), "a packet reads the same without its link header");
    check_lifetime(bytes, &packet);
    check_error(bytes, &packet);
}

/// Offsets are in order and inside the frame; nothing was read where nothing is.
fn check_packet(bytes: &[u8], packet: &Parsed) {
    assert!(packet.ip_offset < packet.transport_offset);
    assert!(usize::from(packet.transport_offset) <= packet.end());
    assert!(packet.end() <= bytes.len());
    let whole = packet.transport_length() + u32::from(packet.transport_offset - packet.ip_offset);
    assert_eq!(whole, packet.ip_length);
    let ports = (packet.source_port, packet.destination_port) != (0, 0);
    assert!(!ports || (matches!(packet.protocol, 6 | 17 | 132) && packet.has_transport_header()));
    assert!(packet.tcp_flags == 0 || packet.protocol == 6);
    assert!(packet.sctp_chunk == 0 || packet.protocol == 132);
    if packet.fragment != Fragment::Whole {
        assert_eq!(verify(bytes, packet), Checked::Unknown);
    }
}

/// Taking a hop off changes that and the header's checksum, which stays right.
fn check_lifetime(bytes: &[u8], packet: &Parsed) {
    let mut after = bytes.to_vec();
    let ip = &mut after[packet.ip_offset.into()..];
    let done = match packet.family() {
        Family::V4 => ipv4::decrement_ttl(ip),
        Family::V6 => ipv6::decrement_hop_limit(ip),
    };
    assert_eq!(done, packet.ttl > 1);
    let ttl = if done { packet.ttl - 1 } else { packet.ttl };
    assert_eq!(parse(&after), Outcome::Packet(Parsed { ttl, ..*packet }));
    assert_eq!(verify(&after, packet), verify(bytes, packet));
}

/// The error about a packet is itself a packet, quotes it, and is not answered by another.
fn check_error(bytes: &[u8], packet: &Parsed) {
    let original = &bytes[packet.ip_offset.into()..packet.end()];
    let mut out = [0; icmpv6::MAX_LENGTH];
    let length = match packet.family() {
        Family::V4 => icmp::write_error(
            &mut out,
            icmp::Message::PORT_UNREACHABLE,
            Ipv4Addr::new(10, 0, 0, 1),
            7,
            original,
        ),
        Family::V6 => {
            icmpv6::write_error(&mut out, icmpv6::Message::PORT_UNREACHABLE, Ipv6Addr::LOCALHOST, original)
        }
    };
    let length = length.expect("a parsed packet has a whole IP header");
    let error = parse_inner(&out[..length], 0).expect("an error is a packet");
    assert_eq!(verify(&out[..length], &error), Checked::Right);
    assert_eq!(error.addresses.destination(), packet.addresses.source());
    assert!(!icmp::may_answer(&error) && !icmpv6::may_answer(&error));
    let quoted = parse_quoted(&out[..length], usize::from(error.transport_offset) + 8);
    // A long chain of extension headers can push everything else out of the quote.
    if usize::from(packet.transport_offset - packet.ip_offset) <= 500 {
        let quoted = quoted.expect("what was a packet is one when quoted");
        assert_eq!((quoted.addresses, quoted.fragment), (packet.addresses, packet.fragment));
        assert_eq!(quoted.source_port, packet.source_port);
        assert_eq!(quoted.destination_port, packet.destination_port);
    }
}

/// Reads bytes as a capture, to its end.
///
/// # Panics
/// Where something does not hold that must.
pub(crate) fn capture(bytes: &[u8]) {
    let Ok(mut reader) = Reader::new(bytes) else { return };
    loop {
        let before = reader.offset();
        let interface = match reader.next_record() {
            Ok(Some(record)) => {
                assert!(record.bytes.len() <= MAX_FRAME_LENGTH.min(bytes.len()));
                record.interface
            }
            Ok(None) | Err(_) => break,
        };
        assert!(interface < reader.interfaces().len());
        assert!(reader.offset() > before && reader.offset() <= bytes.len() as u64);
    }
    assert!(matches!(reader.next_record(), Ok(None)), "an end stays an end");
}
