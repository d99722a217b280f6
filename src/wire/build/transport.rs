//! Transport headers to build.

use crate::wire::checksum::{Sum, never_zero};
use crate::wire::crc32c::sctp_checksum;
use crate::wire::{Addresses, protocol, transport};

use super::put_u16;

/// A transport header.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Transport {
    /// TCP.
    Tcp {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
        /// Flags, see [`transport::tcp_flags`].
        flags: u8,
        /// Sequence number.
        sequence: u32,
        /// Acknowledgement number.
        acknowledgement: u32,
        /// Options; padded with zeroes to a multiple of 4 bytes, of at most 40.
        options: Vec<u8>,
    },
    /// UDP.
    Udp {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
        /// Whether to compute a checksum; otherwise it is 0.
        checksum: bool,
    },
    /// SCTP, in front of whose payload comes one chunk header.
    Sctp {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
        /// Verification tag.
        tag: u32,
        /// The chunk's type, see [`transport::sctp_chunk`].
        chunk: u8,
        /// Bytes of the payload that belong to this chunk; what follows is whatever the payload says.
        chunk_payload: u16,
    },
    /// ICMP.
    Icmp {
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
        /// Second half of the header.
        rest: u32,
    },
    /// ICMPv6.
    Icmpv6 {
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
        /// Second half of the header.
        rest: u32,
    },
    /// No header: the payload alone, under this protocol number.
    Raw {
        /// IP protocol number.
        protocol: u8,
    },
}

impl Transport {
    /// A TCP segment with ACK set and no options.
    pub const fn tcp(source: u16, destination: u16) -> Self {
        Self::tcp_with(source, destination, transport::tcp_flags::ACK)
    }

    /// A TCP segment with these flags and no options.
    pub const fn tcp_with(source: u16, destination: u16, flags: u8) -> Self {
        Self::Tcp { source, destination, flags, sequence: 1, acknowledgement: 1, options: Vec::new() }
    }

    /// A UDP datagram with a checksum.
    pub const fn udp(source: u16, destination: u16) -> Self {
        Self::Udp { source, destination, checksum: true }
    }

    /// An SCTP packet of one empty chunk.
    pub const fn sctp(source: u16, destination: u16, chunk: u8) -> Self {
        Self::Sctp { source, destination, tag: 1, chunk, chunk_payload: 0 }
    }

    /// The IP protocol number.
    pub const fn protocol(&self) -> u8 {
        match self {
            Self::Tcp { .. } => protocol::TCP,
            Self::Udp { .. } => protocol::UDP,
            Self::Sctp { .. } => protocol::SCTP,
            Self::Icmp { .. } => protocol::ICMP,
            Self::Icmpv6 { .. } => protocol::ICMPV6,
            Self::Raw { protocol } => *protocol,
        }
    }

    /// Header and payload, with the checksum.
    pub(super) fn bytes(&self, addresses: &Addresses, payload: &[u8]) -> Vec<u8> {
        let mut bytes = self.header(payload.len());
        bytes.extend(payload);
        let plain = Sum::ZERO.bytes(&bytes).checksum();
        let with_pseudo_header =
            Sum::ZERO.pseudo_header(addresses, self.protocol(), bytes.len() as u32).bytes(&bytes).checksum();
        match self {
            Self::Tcp { .. } => put_u16(&mut bytes, transport::TCP_CHECKSUM, with_pseudo_header),
            Self::Udp { checksum: true, .. } => {
                put_u16(&mut bytes, transport::UDP_CHECKSUM, never_zero(with_pseudo_header));
            }
            Self::Sctp { .. } => {
                if let Some(checksum) = sctp_checksum(&bytes) {
                    bytes[transport::SCTP_CHECKSUM..][..4].copy_from_slice(&checksum);
                }
            }
            Self::Icmp { .. } => put_u16(&mut bytes, transport::ICMP_CHECKSUM, plain),
            Self::Icmpv6 { .. } => put_u16(&mut bytes, transport::ICMP_CHECKSUM, with_pseudo_header),
            Self::Udp { .. } | Self::Raw { .. } => {}
        }
        bytes
    }

    /// The header with a checksum of zero.
    fn header(&self, payload_length: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        match *self {
            Self::Tcp { source, destination, flags, sequence, acknowledgement, ref options } => {
                let options_length = options.len().min(40).next_multiple_of(4);
                bytes.extend([source.to_be_bytes(), destination.to_be_bytes()].concat());
                bytes.extend([sequence.to_be_bytes(), acknowledgement.to_be_bytes()].concat());
                bytes.extend([(5 + options_length as u8 / 4) << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
                bytes.extend(options.iter().chain(std::iter::repeat(&0)).take(options_length));
            }
            Self::Udp { source, destination, .. } => {
                let length = transport::UDP_HEADER_LENGTH + payload_length;
                bytes.extend([source, destination, length as u16, 0].map(u16::to_be_bytes).concat());
            }
            Self::Sctp { source, destination, tag, chunk, chunk_payload } => {
                bytes.extend([source, destination].map(u16::to_be_bytes).concat());
                bytes.extend([tag, 0].map(u32::to_be_bytes).concat());
                let chunk_length = chunk_payload.saturating_add(transport::SCTP_CHUNK_HEADER_LENGTH as u16);
                bytes.extend([[chunk, 0], chunk_length.to_be_bytes()].concat());
            }
            Self::Icmp { kind, code, rest } | Self::Icmpv6 { kind, code, rest } => {
                bytes.extend([kind, code, 0, 0]);
                bytes.extend(rest.to_be_bytes());
            }
            Self::Raw { .. } => {}
        }
        bytes
    }
}
