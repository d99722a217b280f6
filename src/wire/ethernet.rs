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

/// What a frame's link header says. The offset is wider than it needs to be, so that the compiler does not pass the
/// whole in one register: putting it together went through memory and cost a quarter of a tagged frame's time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Link {
    pub(super) ip_offset: usize,
    pub(super) vlan: Option<u16>,
}

impl Link {
    /// Without tags.
    pub(super) const UNTAGGED: Self = Self { ip_offset: HEADER_LENGTH, vlan: None };
}

/// Reads an Ethernet header without looking behind it: to whom it is sent, and the ethertype.
#[inline(always)]
pub(super) fn parse(frame: &[u8]) -> Result<(MacAddress, u16), Malformed> {
    let header: &[u8; HEADER_LENGTH] = frame.first_chunk().ok_or(Malformed::TruncatedFrame)?;
    let [d0, d1, d2, d3, d4, d5, .., high, low] = *header;
    Ok((MacAddress([d0, d1, d2, d3, d4, d5]), u16::from_be_bytes([high, low])))
}

/// Whether an ethertype announces a VLAN tag.
#[inline(always)]
pub(super) const fn is_tag(ether_type: u16) -> bool {
    matches!(ether_type, CUSTOMER_TAG | SERVICE_TAG)
}

/// Steps over the tags behind the header, the first of which `ether_type` announced; returns the link with them and
/// the ethertype behind them.
pub(super) fn parse_tags(frame: &[u8], mut ether_type: u16) -> Result<(Link, u16), Malformed> {
    let mut link = Link::UNTAGGED;
    for _ in 0..MAX_TAGS {
        if !is_tag(ether_type) {
            break;
        }
        let offset = link.ip_offset;
        let control = u16_at(frame, offset).ok_or(Malformed::TruncatedFrame)?;
        ether_type = u16_at(frame, offset + 2).ok_or(Malformed::TruncatedFrame)?;
        // Identifier 0 carries only a priority (IEEE 802.1Q); Linux looks behind such a tag, too.
        link.vlan = link.vlan.or(Some(control & VLAN_ID).filter(|&id| id != 0));
        link.ip_offset += TAG_LENGTH;
    }
    Ok((link, ether_type))
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
    #[inline(always)]
    #[must_use]
    pub fn write(&self, bytes: &mut [u8]) -> bool {
        let length = self.length();
        let Some(place) = bytes.get_mut(..length) else { return false };
        // Field by field to where they belong: gathered first, they would have to be copied from stores that are
        // still on their way.
        place[..6].copy_from_slice(&self.destination.0);
        place[6..12].copy_from_slice(&self.source.0);
        if let Some(tag) = self.vlan {
            place[12..14].copy_from_slice(&tag.protocol.to_be_bytes());
            place[14..16].copy_from_slice(&(tag.id & VLAN_ID).to_be_bytes());
        }
        place[length - 2..].copy_from_slice(&self.ether_type.to_be_bytes());
        true
    }
}

/// Takes the first `present` bytes, its link header with all tags, off a frame and puts `header` there. What
/// follows stays where it is in memory: only the frame's start moves, if the lengths differ.
///
/// False, and nothing done, where the frame is shorter than `present` or has no room in front.
#[inline(always)]
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

    /// The link header and the ethertype behind all tags.
    fn read(frame: &[u8]) -> Result<(Link, u16), Malformed> {
        let (destination, ether_type) = parse(frame)?;
        assert_eq!(destination, TO);
        parse_tags(frame, ether_type)
    }

    #[test]
    fn links_are_read_up_to_two_tags() {
        let addresses = [2, 0, 0, 0, 0, 0x11, 2, 0, 0, 0, 0, 0x22];
        type Expected = Result<(usize, Option<u16>, u16), Malformed>;
        let rows: [(&str, &[u8], Expected); 11] = [
            ("IPv4", &[8, 0], Ok((14, None, IPV4))),
            ("IPv6", &[0x86, 0xdd], Ok((14, None, IPV6))),
            ("ARP", &[8, 6], Ok((14, None, ARP))),
            ("802.3 length field", &[0, 46], Ok((14, None, 46))),
            ("one tag, priority 7", &[0x81, 0, 0xe1, 0x23, 8, 0], Ok((18, Some(0x123), IPV4))),
            ("priority tag", &[0x81, 0, 0xe0, 0, 0x86, 0xdd], Ok((18, None, IPV6))),
            ("service and customer tag", &[0x88, 0xa8, 0, 5, 0x81, 0, 0, 6, 8, 0], Ok((22, Some(5), IPV4))),
            ("priority tag, then a VLAN", &[0x88, 0xa8, 0, 0, 0x81, 0, 0, 6, 8, 0], Ok((22, Some(6), IPV4))),
            (
                "three tags",
                &[0x81, 0, 0, 5, 0x81, 0, 0, 6, 0x81, 0, 0, 7, 8, 0],
                Ok((22, Some(5), CUSTOMER_TAG)),
            ),
            ("no ethertype", &[8], Err(Malformed::TruncatedFrame)),
            ("tag cut off", &[0x81, 0, 0, 5, 8], Err(Malformed::TruncatedFrame)),
        ];
        for (what, rest, expected) in rows {
            let frame = [&addresses[..], rest].concat();
            let found = read(&frame).map(|(link, ether_type)| (link.ip_offset, link.vlan, ether_type));
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
                let (link, ether_type) = read(after).unwrap();
                assert_eq!(link.ip_offset, header.length());
                assert_eq!((link.vlan, ether_type), (vlan.map(|tag| tag.id), IPV6));
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
