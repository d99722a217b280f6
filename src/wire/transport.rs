//! What is read of transport headers, and their checksums.

use super::checksum::{Sum, never_zero};
use super::crc32c::sctp_checksum;
use super::{Fragment, Malformed, Parsed, protocol, u16_at};

/// Bytes of a TCP header without options.
pub const TCP_HEADER_LENGTH: usize = 20;
/// Bytes of a UDP header.
pub const UDP_HEADER_LENGTH: usize = 8;
/// Bytes of an SCTP common header.
pub const SCTP_HEADER_LENGTH: usize = 12;
/// Bytes of an SCTP chunk's header.
pub const SCTP_CHUNK_HEADER_LENGTH: usize = 4;
/// Bytes of an ICMP or ICMPv6 header.
pub const ICMP_HEADER_LENGTH: usize = 8;

/// Offset of the checksum in a TCP header.
pub const TCP_CHECKSUM: usize = 16;
/// Offset of the checksum in a UDP header.
pub const UDP_CHECKSUM: usize = 6;
/// Offset of the checksum in an SCTP common header.
pub const SCTP_CHECKSUM: usize = 8;
/// Offset of the checksum in an ICMP or ICMPv6 header.
pub const ICMP_CHECKSUM: usize = 2;

/// The flags of TCP (RFC 9293, section 3.1).
pub mod tcp_flags {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Synchronise sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset the connection.
    pub const RST: u8 = 0x04;
    /// Push.
    pub const PSH: u8 = 0x08;
    /// The acknowledgement field counts.
    pub const ACK: u8 = 0x10;
    /// The urgent pointer counts.
    pub const URG: u8 = 0x20;
    /// ECN-Echo.
    pub const ECE: u8 = 0x40;
    /// Congestion window reduced.
    pub const CWR: u8 = 0x80;
}

/// Types of SCTP chunks (RFC 9260, section 3.2).
pub mod sctp_chunk {
    /// Payload data.
    pub const DATA: u8 = 0;
    /// Initiation.
    pub const INIT: u8 = 1;
    /// Initiation acknowledgement.
    pub const INIT_ACK: u8 = 2;
    /// Selective acknowledgement.
    pub const SACK: u8 = 3;
    /// Heartbeat request.
    pub const HEARTBEAT: u8 = 4;
    /// Heartbeat acknowledgement.
    pub const HEARTBEAT_ACK: u8 = 5;
    /// Abort.
    pub const ABORT: u8 = 6;
    /// Shutdown.
    pub const SHUTDOWN: u8 = 7;
    /// Shutdown acknowledgement.
    pub const SHUTDOWN_ACK: u8 = 8;
    /// Operation error.
    pub const ERROR: u8 = 9;
    /// State cookie.
    pub const COOKIE_ECHO: u8 = 10;
    /// Cookie acknowledgement.
    pub const COOKIE_ACK: u8 = 11;
    /// Shutdown complete.
    pub const SHUTDOWN_COMPLETE: u8 = 14;
}

/// What a transport header says. All zero where there is none.
///
/// Packed into two words on purpose: as six small fields, which the compiler puts together in memory and loads as one
/// word, it made the processor wait for its stores for a quarter of the time that a frame takes.
#[derive(Clone, Copy, Default)]
pub(super) struct Upper {
    /// Source port in the high half, destination port in the low half, as they are on the wire.
    ports: u32,
    /// TCP flags, SCTP chunk, ICMP type, whether an ABORT follows: a byte each, the lowest first.
    details: u32,
}

impl Upper {
    #[inline(always)]
    const fn new(ports: [u8; 4]) -> Self {
        Self { ports: u32::from_be_bytes(ports), details: 0 }
    }

    #[inline(always)]
    const fn with_tcp_flags(self, flags: u8) -> Self {
        Self { details: self.details | flags as u32, ..self }
    }

    const fn with_sctp_chunk(self, chunk: u8) -> Self {
        Self { details: self.details | (chunk as u32) << 8, ..self }
    }

    const fn with_icmp_type(self, icmp_type: u8) -> Self {
        Self { details: self.details | (icmp_type as u32) << 16, ..self }
    }

    const fn with_sctp_abort_following(self, abort: bool) -> Self {
        Self { details: self.details | (abort as u32) << 24, ..self }
    }

    #[inline(always)]
    pub(super) const fn source_port(self) -> u16 {
        (self.ports >> 16) as u16
    }

    #[inline(always)]
    pub(super) const fn destination_port(self) -> u16 {
        self.ports as u16
    }

    #[inline(always)]
    pub(super) const fn tcp_flags(self) -> u8 {
        self.details as u8
    }

    #[inline(always)]
    pub(super) const fn sctp_chunk(self) -> u8 {
        (self.details >> 8) as u8
    }

    #[inline(always)]
    pub(super) const fn icmp_type(self) -> u8 {
        (self.details >> 16) as u8
    }

    #[inline(always)]
    pub(super) const fn sctp_abort_follows(self) -> bool {
        self.details >> 24 != 0
    }
}

/// Reads the transport header that `payload`, all there is behind the IP headers, begins with.
#[inline(always)]
pub(super) fn parse<const STRICT: bool>(
    number: u8,
    payload: &[u8],
    fragment: Fragment,
) -> Result<Upper, Malformed> {
    if matches!(fragment, Fragment::Later { .. }) {
        return Ok(Upper::default());
    }
    if !STRICT {
        return parse_quoted(number, payload);
    }
    match number {
        protocol::TCP => parse_tcp(payload, fragment),
        protocol::UDP => {
            let &[s0, s1, d0, d1, ..] =
                payload.first_chunk::<UDP_HEADER_LENGTH>().ok_or(Malformed::BadTransportHeader)?;
            Ok(Upper::new([s0, s1, d0, d1]))
        }
        protocol::SCTP => parse_sctp(payload),
        protocol::ICMP | protocol::ICMPV6 => {
            let &[icmp_type, ..] =
                payload.first_chunk::<ICMP_HEADER_LENGTH>().ok_or(Malformed::BadTransportHeader)?;
            Ok(Upper::default().with_icmp_type(icmp_type))
        }
        _ => Ok(Upper::default()),
    }
}

#[inline(always)]
fn parse_tcp(payload: &[u8], fragment: Fragment) -> Result<Upper, Malformed> {
    let header = payload.first_chunk::<TCP_HEADER_LENGTH>().ok_or(Malformed::BadTransportHeader)?;
    let header_length = usize::from(header[12] >> 4) * 4;
    // In a first fragment the options may continue in the next.
    let whole = matches!(fragment, Fragment::Whole);
    if header_length < TCP_HEADER_LENGTH || (whole && header_length > payload.len()) {
        return Err(Malformed::BadTransportHeader);
    }
    let [s0, s1, d0, d1, ..] = *header;
    Ok(Upper::new([s0, s1, d0, d1]).with_tcp_flags(header[13]))
}

#[inline(never)]
fn parse_sctp(payload: &[u8]) -> Result<Upper, Malformed> {
    let header = payload
        .first_chunk::<{ SCTP_HEADER_LENGTH + SCTP_CHUNK_HEADER_LENGTH }>()
        .ok_or(Malformed::BadTransportHeader)?;
    let [s0, s1, d0, d1, .., chunk, _flags, l0, l1] = *header;
    // `set_sctp_state` (net/netfilter/ipvs/ip_vs_proto_sctp.c) looks behind these two for an ABORT; a chunk that
    // announces less than its own header is not stepped over. Chunks are padded to 4 bytes.
    let chunk_length = usize::from(u16::from_be_bytes([l0, l1]));
    let next = SCTP_HEADER_LENGTH + chunk_length.next_multiple_of(4);
    let abort_follows = matches!(chunk, sctp_chunk::COOKIE_ECHO | sctp_chunk::COOKIE_ACK)
        && chunk_length >= SCTP_CHUNK_HEADER_LENGTH
        && payload.get(next..).and_then(<[u8]>::first_chunk::<SCTP_CHUNK_HEADER_LENGTH>).map(|next| next[0])
            == Some(sctp_chunk::ABORT);
    Ok(Upper::new([s0, s1, d0, d1]).with_sctp_chunk(chunk).with_sctp_abort_following(abort_follows))
}

/// The header of a quoted packet: ports, or an ICMP type, and whatever else happens to be there.
#[inline(never)]
fn parse_quoted(number: u8, payload: &[u8]) -> Result<Upper, Malformed> {
    let byte = |offset| payload.get(offset).copied().unwrap_or(0);
    let ports = || payload.first_chunk().map(|&ports| Upper::new(ports)).ok_or(Malformed::BadTransportHeader);
    match number {
        protocol::TCP => Ok(ports()?.with_tcp_flags(byte(13))),
        protocol::UDP => ports(),
        protocol::SCTP => Ok(ports()?.with_sctp_chunk(byte(SCTP_HEADER_LENGTH))),
        protocol::ICMP | protocol::ICMPV6 => {
            let icmp_type = *payload.first().ok_or(Malformed::BadTransportHeader)?;
            Ok(Upper::default().with_icmp_type(icmp_type))
        }
        _ => Ok(Upper::default()),
    }
}

/// What can be said of a packet's transport checksum.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Checked {
    /// It is right.
    Right,
    /// It is wrong.
    Wrong,
    /// UDP over IPv4 without a checksum.
    Absent,
    /// A protocol whose checksum is not known here, or a fragment, over which none can be computed.
    Unknown,
}

/// Computes the transport checksum of a parsed frame over all its bytes.
pub fn verify(frame: &[u8], packet: &Parsed) -> Checked {
    let Some(bytes) = frame.get(usize::from(packet.transport_offset)..packet.end()) else {
        return Checked::Unknown;
    };
    if packet.fragment != Fragment::Whole {
        return Checked::Unknown;
    }
    let pseudo = Sum::ZERO.pseudo_header(&packet.addresses, packet.protocol, packet.transport_length());
    let right = match packet.protocol {
        // Over IPv6 a UDP checksum of zero is an error (RFC 8200, section 8.1).
        protocol::UDP if u16_at(bytes, UDP_CHECKSUM) == Some(0) => {
            return match packet.addresses {
                super::Addresses::V4 { .. } => Checked::Absent,
                super::Addresses::V6 { .. } => Checked::Wrong,
            };
        }
        protocol::TCP | protocol::UDP | protocol::ICMPV6 => pseudo.bytes(bytes).fold() == 0xffff,
        protocol::ICMP => Sum::ZERO.bytes(bytes).fold() == 0xffff,
        protocol::SCTP => {
            sctp_checksum(bytes).is_some_and(|sum| bytes.get(SCTP_CHECKSUM..SCTP_CHECKSUM + 4) == Some(&sum))
        }
        _ => return Checked::Unknown,
    };
    if right { Checked::Right } else { Checked::Wrong }
}

/// Where in a transport header of this protocol the checksum is, and how long: `None` for protocols whose checksum is
/// not known here.
pub const fn checksum_field(number: u8) -> Option<(usize, usize)> {
    match number {
        protocol::TCP => Some((TCP_CHECKSUM, 2)),
        protocol::UDP => Some((UDP_CHECKSUM, 2)),
        protocol::ICMP | protocol::ICMPV6 => Some((ICMP_CHECKSUM, 2)),
        protocol::SCTP => Some((SCTP_CHECKSUM, 4)),
        _ => None,
    }
}

/// Writes the transport checksum of a parsed frame, computed over all its bytes. False, and nothing done, where
/// there is none to compute: see [`Checked::Unknown`].
#[must_use]
pub fn write_checksum(frame: &mut [u8], packet: &Parsed) -> bool {
    let Some((offset, length)) = checksum_field(packet.protocol) else { return false };
    let Some(bytes) = frame.get_mut(usize::from(packet.transport_offset)..packet.end()) else { return false };
    if packet.fragment != Fragment::Whole || bytes.len() < offset + length {
        return false;
    }
    bytes[offset..offset + length].fill(0);
    let pseudo = Sum::ZERO.pseudo_header(&packet.addresses, packet.protocol, packet.transport_length());
    let checksum = match packet.protocol {
        protocol::SCTP => {
            let Some(checksum) = sctp_checksum(bytes) else { return false };
            bytes[offset..offset + 4].copy_from_slice(&checksum);
            return true;
        }
        protocol::UDP => never_zero(pseudo.bytes(bytes).checksum()),
        protocol::ICMP => Sum::ZERO.bytes(bytes).checksum(),
        _ => pseudo.bytes(bytes).checksum(),
    };
    bytes[offset..offset + 2].copy_from_slice(&checksum.to_be_bytes());
    true
}
