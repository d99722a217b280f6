//! Frames for tests, benchmarks, fuzzing and the lab: any headers, lengths and checksums filled in.
//!
//! Not for the packet path: it allocates. Nothing here shares code with the parsers, and of the checksums only the
//! sums themselves, so that a frame built here tests what reads it.

use crate::types::{MacAddress, VlanTag};

use super::checksum::Sum;
use super::ethernet::{self, CUSTOMER_TAG};
use super::{Addresses, protocol};

mod transport;

pub use transport::Transport;

/// A frame to build. Starts as a UDP datagram to port 9 from a host to another; each method changes one thing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Build {
    destination_mac: MacAddress,
    source_mac: MacAddress,
    tags: Vec<VlanTag>,
    addresses: Addresses,
    ttl: u8,
    tos: u8,
    identification: u32,
    dont_fragment: bool,
    fragment: Option<(u16, bool)>,
    options: Vec<u8>,
    extensions: Vec<(u8, Vec<u8>)>,
    transport: Transport,
    payload: Vec<u8>,
    minimum: usize,
}

impl Build {
    /// A packet between these addresses.
    pub fn new(addresses: Addresses) -> Self {
        Self {
            destination_mac: MacAddress([2, 0, 0, 0, 0, 1]),
            source_mac: MacAddress([2, 0, 0, 0, 0, 2]),
            tags: Vec::new(),
            addresses,
            ttl: 64,
            tos: 0,
            identification: 0x1234,
            dont_fragment: false,
            fragment: None,
            options: Vec::new(),
            extensions: Vec::new(),
            transport: Transport::udp(1024, 9),
            payload: Vec::new(),
            minimum: 0,
        }
    }

    /// An IPv4 packet.
    pub fn ipv4(source: [u8; 4], destination: [u8; 4]) -> Self {
        Self::new(Addresses::V4 {
            source: u32::from_be_bytes(source),
            destination: u32::from_be_bytes(destination),
        })
    }

    /// An IPv6 packet.
    pub fn ipv6(source: [u8; 16], destination: [u8; 16]) -> Self {
        let halves = |address: [u8; 16]| {
            let address = u128::from_be_bytes(address);
            [(address >> 64) as u64, address as u64]
        };
        Self::new(Addresses::V6 { source: halves(source), destination: halves(destination) })
    }

    /// The link address it is sent to.
    #[must_use]
    pub fn destination_mac(mut self, address: [u8; 6]) -> Self {
        self.destination_mac = MacAddress(address);
        self
    }

    /// The link address it is sent from.
    #[must_use]
    pub fn source_mac(mut self, address: [u8; 6]) -> Self {
        self.source_mac = MacAddress(address);
        self
    }

    /// Adds a VLAN tag behind those there are.
    #[must_use]
    pub fn tag(mut self, protocol: u16, id: u16) -> Self {
        self.tags.push(VlanTag { protocol, id });
        self
    }

    /// Adds an 802.1Q tag behind those there are.
    #[must_use]
    pub fn vlan(self, id: u16) -> Self {
        self.tag(CUSTOMER_TAG, id)
    }

    /// Time to live or hop limit; 64 otherwise.
    #[must_use]
    pub fn ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }

    /// Type of service or traffic class; 0 otherwise.
    #[must_use]
    pub fn tos(mut self, tos: u8) -> Self {
        self.tos = tos;
        self
    }

    /// The identification: IPv4 has the low 16 bits, IPv6 all, in fragments only.
    #[must_use]
    pub fn identification(mut self, identification: u32) -> Self {
        self.identification = identification;
        self
    }

    /// Sets IPv4's flag.
    #[must_use]
    pub fn dont_fragment(mut self) -> Self {
        self.dont_fragment = true;
        self
    }

    /// Marks the packet as the fragment that begins at this offset (in bytes, rounded down to 8), and says whether
    /// more follows. For one at 0 the transport header comes first, for others the payload alone.
    #[must_use]
    pub fn fragment(mut self, offset: u16, more: bool) -> Self {
        self.fragment = Some((offset & 0xfff8, more));
        self
    }

    /// IPv4 options; padded with zeroes to a multiple of 4 bytes, of at most 40.
    #[must_use]
    pub fn options(mut self, options: &[u8]) -> Self {
        self.options = options.to_vec();
        self
    }

    /// Adds an IPv6 extension header of this number behind those there are, in front of a fragment header: `body` is
    /// what follows its first two bytes, padded with zeroes to a multiple of 8 bytes in all.
    #[must_use]
    pub fn extension(mut self, number: u8, body: &[u8]) -> Self {
        self.extensions.push((number, body.to_vec()));
        self
    }

    /// The transport header.
    #[must_use]
    pub fn transport(mut self, transport: Transport) -> Self {
        self.transport = transport;
        self
    }

    /// What follows the transport header.
    #[must_use]
    pub fn payload(mut self, payload: &[u8]) -> Self {
        self.payload = payload.to_vec();
        self
    }

    /// Pads the frame behind its packet to this many bytes, as a network card does to 60.
    #[must_use]
    pub fn padded(mut self, minimum: usize) -> Self {
        self.minimum = minimum;
        self
    }

    /// The frame.
    ///
    /// # Panics
    /// Where the packet is larger than its length field can say.
    pub fn frame(&self) -> Vec<u8> {
        let mut frame = self.link_header();
        frame.extend(self.packet());
        if frame.len() < self.minimum {
            frame.resize(self.minimum, 0);
        }
        frame
    }

    /// The packet without its link header.
    ///
    /// # Panics
    /// As [`frame`](Self::frame).
    pub fn packet(&self) -> Vec<u8> {
        let content = match self.fragment {
            Some((offset, _)) if offset != 0 => self.payload.clone(),
            _ => self.transport.bytes(&self.addresses, &self.payload),
        };
        self.packet_around(&content)
    }

    /// The frames of the whole datagram cut into fragments with `size` bytes (rounded down to 8, at least 8) of it
    /// in each; one unfragmented frame where it fits. The transport checksum covers the whole datagram.
    ///
    /// # Panics
    /// Where the datagram is larger than a fragment offset can say.
    pub fn fragments(&self, size: usize) -> Vec<Vec<u8>> {
        let size = (size & !7).max(8);
        let content = self.transport.bytes(&self.addresses, &self.payload);
        if content.len() <= size {
            return vec![self.frame()];
        }
        let pieces = content.chunks(size).enumerate();
        pieces
            .map(|(index, piece)| {
                let offset = u16::try_from(index * size).expect("a datagram within 65,535 bytes");
                let more = index * size + piece.len() < content.len();
                let mut frame = self.link_header();
                frame.extend(self.clone().fragment(offset, more).packet_around(piece));
                frame
            })
            .collect()
    }

    fn link_header(&self) -> Vec<u8> {
        let mut bytes = [self.destination_mac.0, self.source_mac.0].concat();
        for tag in &self.tags {
            bytes.extend([tag.protocol, tag.id].map(u16::to_be_bytes).concat());
        }
        bytes.extend(ethernet::ether_type(self.addresses.family()).to_be_bytes());
        bytes
    }

    fn packet_around(&self, content: &[u8]) -> Vec<u8> {
        match self.addresses {
            Addresses::V4 { source, destination } => self.ipv4_packet(source, destination, content),
            Addresses::V6 { source, destination } => self.ipv6_packet(source, destination, content),
        }
    }

    fn ipv4_packet(&self, source: u32, destination: u32, content: &[u8]) -> Vec<u8> {
        let options_length = self.options.len().min(40).next_multiple_of(4);
        let length = 20 + options_length + content.len();
        let length = u16::try_from(length).expect("a packet within 65,535 bytes");
        let (offset, more) = self.fragment.unwrap_or_default();
        let flags = u16::from(self.dont_fragment) << 14 | u16::from(more) << 13 | (offset / 8);
        let mut bytes = vec![0x45 + options_length as u8 / 4, self.tos];
        bytes.extend([length, self.identification as u16, flags].map(u16::to_be_bytes).concat());
        bytes.extend([self.ttl, self.transport.protocol(), 0, 0]);
        bytes.extend([source, destination].map(u32::to_be_bytes).concat());
        bytes.extend(self.options.iter().chain(std::iter::repeat(&0)).take(options_length));
        let checksum = Sum::ZERO.bytes(&bytes).checksum();
        put_u16(&mut bytes, 10, checksum);
        bytes.extend(content);
        bytes
    }

    fn ipv6_packet(&self, source: [u64; 2], destination: [u64; 2], content: &[u8]) -> Vec<u8> {
        let fragment = self.fragment.map(|(offset, more)| {
            let mut body = (offset | u16::from(more)).to_be_bytes().to_vec();
            body.extend(self.identification.to_be_bytes());
            (protocol::FRAGMENT, body)
        });
        let chain: Vec<_> = self.extensions.iter().cloned().chain(fragment).collect();
        let mut next = chain.iter().map(|(number, _)| *number).chain([self.transport.protocol()]);
        let first = next.next().unwrap_or(protocol::NONE);
        let mut extensions = Vec::new();
        for ((number, body), next) in chain.iter().zip(next) {
            let length = (2 + body.len()).next_multiple_of(8);
            let field = match *number {
                protocol::FRAGMENT => 0,
                protocol::AUTHENTICATION => length / 4 - 2,
                _ => length / 8 - 1,
            };
            extensions.extend([next, field as u8]);
            extensions.extend(body.iter().chain(std::iter::repeat(&0)).take(length - 2));
        }
        let length = extensions.len() + content.len();
        let length = u16::try_from(length).expect("a payload within 65,535 bytes");
        let mut bytes = (0x6000_0000 | u32::from(self.tos) << 20).to_be_bytes().to_vec();
        bytes.extend(length.to_be_bytes());
        bytes.extend([first, self.ttl]);
        bytes.extend([source[0], source[1], destination[0], destination[1]].map(u64::to_be_bytes).concat());
        bytes.extend(extensions);
        bytes.extend(content);
        bytes
    }
}

fn put_u16(bytes: &mut [u8], offset: usize, value: u16) {
    bytes[offset..offset + 2].copy_from_slice(&value.to_be_bytes());
}
