//! What the tests of this layer share: any packets, and recordings of the kernel.

use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::Value;

use crate::sys::frames::{Frame, FramePool};
use crate::wire::build::{Build, Transport};
use crate::wire::checksum::Sum;
use crate::wire::transport::checksum_field;
use crate::wire::{Addresses, Offload, Outcome, Parsed, parse, protocol};

/// A packet whose every part can be chosen.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    pub(super) addresses: Addresses,
    pub(super) source_port: u16,
    pub(super) destination_port: u16,
    pub(super) protocol: u8,
    /// UDP only.
    pub(super) checksum: bool,
    pub(super) tags: Vec<u16>,
    pub(super) options: Vec<u8>,
    pub(super) extensions: Vec<Vec<u8>>,
    pub(super) ttl: u8,
    pub(super) tos: u8,
    pub(super) identification: u16,
    pub(super) dont_fragment: bool,
    pub(super) payload: Vec<u8>,
    pub(super) padded: bool,
}

impl Sample {
    pub(super) fn build(&self) -> Build {
        let (source, destination) = (self.source_port, self.destination_port);
        let transport = match self.protocol {
            protocol::TCP => Transport::tcp(source, destination),
            protocol::UDP => Transport::Udp { source, destination, checksum: self.checksum },
            _ => Transport::sctp(source, destination, 0),
        };
        let mut build = Build::new(self.addresses)
            .transport(transport)
            .payload(&self.payload)
            .options(&self.options)
            .ttl(self.ttl)
            .tos(self.tos)
            .identification(self.identification.into());
        for tag in &self.tags {
            build = build.vlan(*tag);
        }
        for body in &self.extensions {
            build = build.extension(protocol::DESTINATION_OPTIONS, body);
        }
        if self.dont_fragment {
            build = build.dont_fragment();
        }
        if self.padded { build.padded(100) } else { build }
    }

    pub(super) fn is_ipv6(&self) -> bool {
        matches!(self.addresses, Addresses::V6 { .. })
    }
}

/// Any addresses of the same family as others.
pub(super) fn addresses() -> impl Strategy<Value = Addresses> {
    prop_oneof![
        any::<(u32, u32)>().prop_map(|(source, destination)| Addresses::V4 { source, destination }),
        any::<([u64; 2], [u64; 2])>().prop_map(|(source, destination)| Addresses::V6 { source, destination }),
    ]
}

/// Any packet with ports, with up to `payload` bytes behind its transport header.
pub(super) fn samples(payload: usize) -> impl Strategy<Value = Sample> {
    let heads = (
        addresses(),
        any::<(u16, u16)>(),
        prop::sample::select(vec![protocol::TCP, protocol::UDP, protocol::SCTP]),
        any::<bool>(),
        vec(1..4095_u16, 0..=2),
        vec(any::<u8>(), 0..=40),
        vec(vec(any::<u8>(), 0..20), 0..=2),
    );
    let rest =
        (2..=255_u8, any::<u8>(), any::<u16>(), any::<bool>(), vec(any::<u8>(), 0..=payload), any::<bool>());
    (heads, rest).prop_map(|(heads, rest)| {
        let (addresses, (source_port, destination_port), protocol, checksum, tags, options, extensions) =
            heads;
        let (ttl, tos, identification, dont_fragment, payload, padded) = rest;
        Sample {
            addresses,
            source_port,
            destination_port,
            protocol,
            checksum,
            tags,
            options,
            extensions,
            ttl,
            tos,
            identification,
            dont_fragment,
            payload,
            padded,
        }
    })
}

/// What a frame that was built is read as.
pub(super) fn read(frame: &[u8]) -> Parsed {
    match parse(frame) {
        Outcome::Packet(packet) => packet,
        other => panic!("{other:?}: {frame:02x?}"),
    }
}

/// A pool, and a frame in it.
pub(super) fn pool_of(bytes: &[u8]) -> (FramePool, Frame) {
    let mut pool = FramePool::new(1, 70_000).unwrap();
    let frame = pool.allocate_copy(bytes).unwrap();
    (pool, frame)
}

/// Leaves the transport checksum of a frame to a network card, as Linux does.
pub(super) fn leave_checksum(frame: &mut [u8]) -> Offload {
    let packet = read(frame);
    let (offset, _) = checksum_field(packet.protocol).unwrap();
    let at = usize::from(packet.transport_offset) + offset;
    let sum = Sum::ZERO.pseudo_header(&packet.addresses, packet.protocol, packet.transport_length()).fold();
    frame[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    Offload {
        needs_checksum: true,
        checksum_start: packet.transport_offset,
        checksum_offset: offset as u16,
        ..Offload::default()
    }
}

/// What the network card then does; it knows nothing of the padding, which is zero.
pub(super) fn finish_checksum(frame: &mut [u8], offload: &Offload) {
    let start = usize::from(offload.checksum_start);
    let at = start + usize::from(offload.checksum_offset);
    let sum = Sum::ZERO.bytes(&frame[start..]).fold();
    let checksum = if sum == 0xffff { 0xffff } else { !sum };
    frame[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
}

/// One frame that the kernel was given, and those that it sent then.
#[derive(Clone, Debug)]
pub(super) struct Exchange {
    pub(super) what: String,
    /// `c` for the clients' side, `s` for the servers'.
    pub(super) port: String,
    pub(super) sent: Vec<u8>,
    /// Each with the port that it left by.
    pub(super) received: Vec<(String, Vec<u8>)>,
}

/// The exchanges of a recording, given as its JSON.
pub(super) fn exchanges(recording: &str) -> Vec<Exchange> {
    let recording: Value = serde_json::from_str(recording).unwrap();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let bytes = |value: &Value| {
        let digits = text(value);
        (0..digits.len() / 2).map(|n| u8::from_str_radix(&digits[2 * n..2 * n + 2], 16).unwrap()).collect()
    };
    let steps = recording["steps"].as_array().unwrap().iter().filter(|step| step["send"].is_object());
    steps
        .map(|step| Exchange {
            what: format!(
                "{} {} {}",
                text(&recording["name"]),
                text(&step["note"]),
                text(&step["send"]["desc"])
            ),
            port: text(&step["send"]["port"]),
            sent: bytes(&step["send"]["hex"]),
            received: step["recv"]
                .as_array()
                .unwrap()
                .iter()
                .map(|frame| (text(&frame["port"]), bytes(&frame["hex"])))
                .collect(),
        })
        .collect()
}
