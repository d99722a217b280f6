//! The link header: Ethernet II with up to two VLAN tags.

use crate::sys::frames::{Frame, FramePool};
use crate::types::{Family, MacAddress, VlanTag};

use super::{Malformed, u16_at};

/// Bytes of an Ethernet header without tags.
pub const HEADER_LENGTH: usize = 14;
/// Bytes of a VLAN tag.
pub const TAG_LENGTH: usize = 4;
/// Tags that are read through: a service tag and a customer tag (IEEE 802.1ad). What has more is not for us.
pub const MAX_TAGS: usize = 2;

/// Ethertype of IPv4.
pub const IPV4: u16 = 0x0800;
/// Ethertype of IPv6.
pub const IPV6: u16 = 0x86dd;
/// Ethertype of ARP.
pub const ARP: u16 = 0x0806;
/// Ethertype of a customer VLAN tag (IEEE 802.1Q).
pub const CUSTOMER_TAG: u16 = 0x8100;
/// Ethertype of a service VLAN tag (IEEE 802.1ad).
pub const SERVICE_TAG: u16 = 0x88a8;

/// The ethertype of a family's packets.
pub const fn ether_type(family: Family) -> u16 {
    match family {
        Family::V4 => IPV4,
        Family::V6 => IPV6,
    }
}

/// The bits of a tag's second half that are its VLAN identifier.
const VLAN_ID: u16 = 0x0fff;

/// What a frame's link header says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Link {
    pub(super) ip_offset: u16,
    pub(super) vlan: Option<u16>,
    pub(super) destination: MacAddress,
}

/// Reads the link header, and says of which family the packet behind it is; `None` for what is not IP.
#[inline]
pub(super) fn parse(frame: &[u8]) -> Result<Option<(Link, Family)>, Malformed> {
    let header: &[u8; HEADER_LENGTH] = frame.first_chunk().ok_or(Malformed::TruncatedFrame)?;
    let [d0, d1, d2, d3, d4, d5, .., high, low] = *header;
    let mut link = Link {
        ip_offset: HEADER_LENGTH as u16,
        vlan: None,
        destination: MacAddress([d0, d1, d2, d3, d4, d5]),
    };
    let mut ether_type = u16::from_be_bytes([high, low]);
    if matches!(ether_type, CUSTOMER_TAG | SERVICE_TAG) {
        ether_type = parse_tags(frame, &mut link, ether_type)?;
    }
    match ether_type {
        IPV4 => Ok(Some((link, Family::V4))),
        IPV6 => Ok(Some((link, Family::V6))),
        _ => Ok(None),
    }
}

/// Steps over the tags, the first of which `ether_type` announced; returns the ethertype behind them.
#[cold]
fn parse_tags(frame: &[u8], link: &mut Link, mut ether_type: u16) -> Result<u16, Malformed> {
    for _ in 0..MAX_TAGS {
        if !matches!(ether_type, CUSTOMER_TAG | SERVICE_TAG) {
            break;
        }
        let offset = usize::from(link.ip_offset);
        let control = u16_at(frame, offset).ok_or(Malformed::TruncatedFrame)?;
        ether_type = u16_at(frame, offset + 2).ok_or(Malformed::TruncatedFrame)?;
        // Identifier 0 carries only a priority (IEEE 802.1Q); Linux looks behind such a tag, too.
        link.vlan = link.vlan.or(Some(control & VLAN_ID).filter(|&id| id != 0));
        link.ip_offset += TAG_LENGTH as u16;
    }
    Ok(ether_type)
}

/// A link header to put in front of an IP packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LinkHeader {
    /// The next hop's address.
    pub destination: MacAddress,
    /// The address of the interface that sends.
    pub source: MacAddress,
    /// The tag to send with.
    pub vlan: Option<VlanTag>,
    /// What follows: [`IPV4`] or [`IPV6`].
    pub ether_type: u16,
}

impl LinkHeader {
    /// Its length in bytes.
    #[inline]
    pub const fn length(&self) -> usize {
        match self.vlan {
            None => HEADER_LENGTH,
            Some(_) => HEADER_LENGTH + TAG_LENGTH,
        }
    }

    /// Writes it to the beginning of `bytes`; false, with nothing written, where these are too few.
    #[inline]
    #[must_use]
    pub fn write(&self, bytes: &mut [u8]) -> bool {
        let [t0, t1] = self.ether_type.to_be_bytes();
        let mut header = [0; HEADER_LENGTH];
        header[..6].copy_from_slice(&self.destination.0);
        header[6..12].copy_from_slice(&self.source.0);
        let Some(tag) = self.vlan else {
            header[12..].copy_from_slice(&[t0, t1]);
            return bytes.first_chunk_mut().map(|place| *place = header).is_some();
        };
        let Some(place) = bytes.first_chunk_mut::<{ HEADER_LENGTH + TAG_LENGTH }>() else { return false };
        header[12..].copy_from_slice(&tag.protocol.to_be_bytes());
        let [c0, c1] = (tag.id & VLAN_ID).to_be_bytes();
        place[..HEADER_LENGTH].copy_from_slice(&header);
        place[HEADER_LENGTH..].copy_from_slice(&[c0, c1, t0, t1]);
        true
    }
}

/// Takes the first `present` bytes, its link header with all tags, off a frame and puts `header` there. What
/// follows stays where it is in memory: only the frame's start moves, if the lengths differ.
///
/// False, and nothing done, where the frame is shorter than `present` or has no room in front.
#[inline]
#[must_use]
pub fn replace(pool: &FramePool, frame: &mut Frame, present: usize, header: &LinkHeader) -> bool {
    let length = header.length();
    if frame.len() < present {
        return false;
    }
    if length < present {
        frame.shrink_front(present - length);
    } else if length > present && !frame.grow_front(length - present) {
        return false;
    }
    header.write(pool.bytes_mut(frame))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::frames::HEADROOM;

    const TO: MacAddress = MacAddress([2, 0, 0, 0, 0, 0x11]);
    const FROM: MacAddress = MacAddress([2, 0, 0, 0, 0, 0x22]);
    const TAG: VlanTag = VlanTag { protocol: CUSTOMER_TAG, id: 0x123 };

    #[test]
    fn links_are_read_up_to_two_tags() {
        let addresses = [2, 0, 0, 0, 0, 0x11, 2, 0, 0, 0, 0, 0x22];
        type Expected = Result<Option<(u16, Option<u16>, Family)>, Malformed>;
        let rows: [(&str, &[u8], Expected); 11] = [
            ("IPv4", &[8, 0], Ok(Some((14, None, Family::V4)))),
            ("IPv6", &[0x86, 0xdd], Ok(Some((14, None, Family::V6)))),
            ("ARP", &[8, 6], Ok(None)),
            ("802.3 length field", &[0, 46], Ok(None)),
            ("one tag, priority 7", &[0x81, 0, 0xe1, 0x23, 8, 0], Ok(Some((18, Some(0x123), Family::V4)))),
            ("priority tag", &[0x81, 0, 0xe0, 0, 0x86, 0xdd], Ok(Some((18, None, Family::V6)))),
            (
                "service and customer tag",
                &[0x88, 0xa8, 0, 5, 0x81, 0, 0, 6, 8, 0],
                Ok(Some((22, Some(5), Family::V4))),
            ),
            (
                "priority tag, then a VLAN",
                &[0x88, 0xa8, 0, 0, 0x81, 0, 0, 6, 8, 0],
                Ok(Some((22, Some(6), Family::V4))),
            ),
            ("three tags", &[0x81, 0, 0, 5, 0x81, 0, 0, 6, 0x81, 0, 0, 7, 8, 0], Ok(None)),
            ("no ethertype", &[8], Err(Malformed::TruncatedFrame)),
            ("tag cut off", &[0x81, 0, 0, 5, 8], Err(Malformed::TruncatedFrame)),
        ];
        for (what, rest, expected) in rows {
            let frame = [&addresses[..], rest].concat();
            let found = parse(&frame).map(|found| {
                found.map(|(link, family)| {
                    assert_eq!(link.destination, TO, "{what}");
                    (link.ip_offset, link.vlan, family)
                })
            });
            assert_eq!(found, expected, "{what}");
        }
    }

    #[test]
    fn replacing_keeps_the_packet_whatever_the_lengths() {
        let mut pool = FramePool::new(1, 2048).unwrap();
        for present in [14, 18, 22] {
            for vlan in [None, Some(TAG)] {
                let bytes: Vec<u8> = (0..present as u8).map(|_| 0xee).chain(1..=100).collect();
                let mut frame = pool.allocate_copy(&bytes).unwrap();
                let header = LinkHeader { destination: TO, source: FROM, vlan, ether_type: IPV6 };
                assert!(replace(&pool, &mut frame, present, &header));
                let after = pool.bytes(&frame);
                assert_eq!(&after[..12], [TO.0, FROM.0].concat());
                let rest: &[u8] =
                    if vlan.is_some() { &[0x81, 0x00, 0x01, 0x23, 0x86, 0xdd] } else { &[0x86, 0xdd] };
                assert_eq!(&after[12..header.length()], rest);
                assert!(after[header.length()..].iter().copied().eq(1..=100), "{present} {vlan:?}");
                let (link, family) = parse(after).unwrap().unwrap();
                assert_eq!(usize::from(link.ip_offset), header.length());
                assert_eq!((link.vlan, family), (vlan.map(|tag| tag.id), Family::V6));
                pool.free(frame);
            }
        }
    }

    #[test]
    fn what_cannot_be_replaced_is_left_alone() {
        let mut pool = FramePool::new(1, 2048).unwrap();
        let mut frame = pool.allocate_copy(&[7; 20]).unwrap();
        let tagged = LinkHeader { destination: TO, source: FROM, vlan: Some(TAG), ether_type: IPV4 };
        assert!(!replace(&pool, &mut frame, 21, &tagged));
        assert!(frame.grow_front(HEADROOM));
        pool.bytes_mut(&mut frame).fill(7);
        assert!(!replace(&pool, &mut frame, 14, &tagged));
        assert!(pool.bytes(&frame).iter().all(|&byte| byte == 7));
        pool.free(frame);
    }
}
