//! What fragments say of the datagram that they are parts of.

use crate::types::{Duration, Family, HashKey};
use crate::wire::{Addresses, Fragment, Parsed};

use super::coverage::UNIT;

/// How long the rest of a datagram may be in coming (`net.ipv4.ipfrag_time`).
const PATIENCE_V4: Duration = Duration::from_secs(30);
/// The same for IPv6 (`net.ipv6.ip6frag_time`; RFC 8200, section 4.5).
const PATIENCE_V6: Duration = Duration::from_secs(60);

/// How long the fragments of a datagram wait for each other.
pub const fn patience(family: Family) -> Duration {
    match family {
        Family::V4 => PATIENCE_V4,
        Family::V6 => PATIENCE_V6,
    }
}

/// What the fragments of one datagram have in common.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Key {
    addresses: Addresses,
    identification: u32,
    /// Zero in IPv6, where fragments of one datagram may name different headers (RFC 8200, section 4.5).
    protocol: u8,
}

impl Key {
    /// No datagram's.
    pub(super) const NONE: Self =
        Self { addresses: Addresses::V4 { source: 0, destination: 0 }, identification: 0, protocol: 0 };

    pub(super) const fn patience(&self) -> Duration {
        patience(self.addresses.family())
    }

    pub(super) fn hash(&self, key: HashKey) -> u64 {
        let rest = u64::from(self.identification) << 8 | u64::from(self.protocol);
        match self.addresses {
            Addresses::V4 { source, destination } => {
                key.hash([u64::from(source) << 32 | u64::from(destination), rest])
            }
            Addresses::V6 { source: [a, b], destination: [c, d] } => key.hash([a, b, c, d, rest, 0]),
        }
    }
}

/// The part of a datagram that a fragment is. Offsets in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Piece {
    /// Where it begins: a multiple of 8.
    pub(super) start: u32,
    /// Where it ends: a multiple of 8, but for the last one.
    pub(super) end: u32,
    /// Whether the datagram ends with it.
    pub(super) last: bool,
    /// Whether it cannot be part of any datagram.
    pub(super) impossible: bool,
}

impl Piece {
    /// What a packet is a fragment of, and which part; `None` for one that is whole.
    pub fn of(packet: &Parsed) -> Option<(Key, Self)> {
        let (identification, start, length, last) = match packet.fragment {
            Fragment::Whole => return None,
            Fragment::First { identification, length } => (identification, 0, u32::from(length), false),
            Fragment::Later { identification, offset, more } => {
                (identification, u32::from(offset), packet.transport_length(), !more)
            }
        };
        let family = packet.family();
        let protocol = match family {
            Family::V4 => packet.protocol,
            Family::V6 => 0,
        };
        let key = Key { addresses: packet.addresses, identification, protocol };
        let end = (start + length).min(u32::from(u16::MAX));
        // One that is not the last and does not end at a unit: IPv4 ignores the odd bytes (`ip_frag_queue`), IPv6 does
        // not put up with it (`nf_ct_frag6_queue`).
        let odd = !last && end % UNIT != 0;
        let end = if odd { end - end % UNIT } else { end };
        let impossible = end <= start || (odd && family == Family::V6);
        Some((key, Self { start, end, last, impossible }))
    }

    pub(super) fn units(&self) -> std::ops::Range<u32> {
        self.start / UNIT..self.end.div_ceil(UNIT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::build::{Build, Transport};
    use crate::wire::{Outcome, parse};

    fn of(build: Build) -> Option<(Key, Piece)> {
        let Outcome::Packet(packet) = parse(&build.frame()) else { panic!("not a packet") };
        Piece::of(&packet)
    }

    fn v4() -> Build {
        Build::ipv4([192, 0, 2, 1], [198, 51, 100, 7]).transport(Transport::udp(1, 2)).identification(7)
    }

    fn v6() -> Build {
        Build::ipv6([1; 16], [2; 16]).transport(Transport::udp(1, 2)).identification(7)
    }

    #[test]
    fn pieces_are_where_their_headers_say() {
        // {what, packet, (start, end, last, impossible)}
        let rows = [
            ("first", v4().payload(&[0; 24]).fragment(0, true), (0, 32, false, false)),
            ("middle", v4().payload(&[0; 24]).fragment(32, true), (32, 56, false, false)),
            ("last, odd", v4().payload(&[0; 5]).fragment(56, false), (56, 61, true, false)),
            ("middle, odd", v4().payload(&[0; 13]).fragment(32, true), (32, 40, false, false)),
            ("middle, less than a unit", v4().payload(&[0; 7]).fragment(32, true), (32, 32, false, true)),
            ("last, empty", v4().fragment(32, false), (32, 32, true, true)),
            ("IPv6, first", v6().payload(&[0; 24]).fragment(0, true), (0, 32, false, false)),
            ("IPv6, middle, odd", v6().payload(&[0; 13]).fragment(32, true), (32, 40, false, true)),
            ("IPv6, last, odd", v6().payload(&[0; 5]).fragment(56, false), (56, 61, true, false)),
            (
                "the end of the largest",
                v4().payload(&[0; 7]).fragment(65_528, false),
                (65_528, 65_535, true, false),
            ),
        ];
        for (what, build, (start, end, last, impossible)) in rows {
            let (_, piece) = of(build).unwrap();
            assert_eq!(piece, Piece { start, end, last, impossible }, "{what}");
        }
        assert_eq!(of(v4()), None);
        assert_eq!(of(v6().fragment(0, false)), None, "all of it in one fragment");
    }

    #[test]
    fn datagrams_are_told_apart_by_what_the_kernel_tells_them_apart_by() {
        let key = |build: Build| of(build.payload(&[0; 8]).fragment(8, false)).unwrap().0;
        let raw = |protocol| Transport::Raw { protocol };
        assert_eq!(key(v4()), key(v4().ttl(3).tos(8).vlan(5)));
        assert_ne!(key(v4()), key(v4().identification(8)));
        assert_ne!(key(v4()), key(v4().transport(raw(6))));
        assert_eq!(key(v6()), key(v6().transport(raw(60))), "a header that the first fragment has");
        let secret = HashKey::new([1, 2]);
        assert_ne!(key(v4()).hash(secret), key(v4().identification(8)).hash(secret));
        assert_ne!(key(v6()).hash(secret), key(v6().identification(8)).hash(secret));
    }
}
