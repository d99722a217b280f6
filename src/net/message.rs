//! Netlink's framing: messages and attributes, both ways, in safe code.
//!
//! Numbers are in the host's byte order unless the kernel's headers say otherwise. Reading is total: whatever
//! the bytes, an iterator ends at the first thing that contradicts itself, and nothing panics.
//! Source: include/uapi/linux/netlink.h.

use std::net::IpAddr;

use super::constants::{AF_INET, AF_INET6};

/// Bytes of a message's header.
pub const HEADER: usize = 16;
/// Bytes of an attribute's header.
const ATTRIBUTE_HEADER: usize = 4;
/// Messages and attributes start at multiples of this many bytes.
const ALIGNMENT: usize = 4;
/// An attribute's type without NLA_F_NESTED and NLA_F_NET_BYTEORDER.
const TYPE_MASK: u16 = 0x3fff;
/// NLA_F_NESTED: the attribute holds attributes.
const NESTED: u16 = 0x8000;

/// One message, borrowed from the datagram it came in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Message<'a> {
    /// What it is: NLMSG_* or RTM_*.
    pub kind: u16,
    /// NLM_F_*.
    pub flags: u16,
    /// The request that it answers; 0 for notifications.
    pub sequence: u32,
    /// What follows the header.
    pub payload: &'a [u8],
}

/// The messages in a datagram; ends at the first that is cut off.
#[derive(Clone, Debug)]
pub struct Messages<'a>(&'a [u8]);

impl<'a> Messages<'a> {
    /// The messages in `datagram`.
    pub fn new(datagram: &'a [u8]) -> Self {
        Self(datagram)
    }
}

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let length = read_u32(self.0, 0)? as usize;
        let message = Message {
            kind: read_u16(self.0, 4)?,
            flags: read_u16(self.0, 6)?,
            sequence: read_u32(self.0, 8)?,
            payload: self.0.get(HEADER..length)?,
        };
        self.0 = self.0.get(length.next_multiple_of(ALIGNMENT)..).unwrap_or_default();
        Some(message)
    }
}

/// The attributes in a payload as (type, value); ends at the first that is cut off.
#[derive(Clone, Debug)]
pub struct Attributes<'a>(&'a [u8]);

impl<'a> Attributes<'a> {
    /// The attributes in `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The attributes behind a fixed part of `fixed` bytes; none where the payload is shorter.
    pub fn after(payload: &'a [u8], fixed: usize) -> Self {
        Self(payload.get(fixed.next_multiple_of(ALIGNMENT)..).unwrap_or_default())
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<(u16, &'a [u8])> {
        let length = usize::from(read_u16(self.0, 0)?);
        let kind = read_u16(self.0, 2)? & TYPE_MASK;
        let value = self.0.get(ATTRIBUTE_HEADER..length)?;
        self.0 = self.0.get(length.next_multiple_of(ALIGNMENT)..).unwrap_or_default();
        Some((kind, value))
    }
}

/// The byte at `offset`.
pub fn read_u8(bytes: &[u8], offset: usize) -> Option<u8> {
    bytes.get(offset).copied()
}

/// The number at `offset`, in the host's byte order.
pub fn read_u16(bytes: &[u8], offset: usize) -> Option<u16> {
    let bytes = bytes.get(offset..offset.checked_add(2)?)?;
    Some(u16::from_ne_bytes(bytes.try_into().ok()?))
}

/// The number at `offset`, in the host's byte order.
pub fn read_u32(bytes: &[u8], offset: usize) -> Option<u32> {
    let bytes = bytes.get(offset..offset.checked_add(4)?)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

/// The kernel's number for an address's family.
pub fn family(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => AF_INET,
        IpAddr::V6(_) => AF_INET6,
    }
}

/// An address as attributes hold it.
pub fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// A message being written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    bytes: Vec<u8>,
}

impl Request {
    /// A message of `kind` with `flags` and the fixed part that its kind demands.
    pub fn new(kind: u16, flags: u16, fixed: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend([0; 4]);
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend([0; 8]);
        bytes.extend(fixed);
        let mut request = Self { bytes };
        request.pad();
        request
    }

    /// Appends an attribute. A value over 65531 bytes, which the format cannot hold, is cut.
    #[must_use]
    pub fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        let value = &value[..value.len().min(usize::from(u16::MAX) - ATTRIBUTE_HEADER)];
        self.bytes.extend(((value.len() + ATTRIBUTE_HEADER) as u16).to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(value);
        self.pad();
        self
    }

    /// Appends a number, in the host's byte order.
    #[must_use]
    pub fn number(self, kind: u16, value: u32) -> Self {
        self.attribute(kind, &value.to_ne_bytes())
    }

    /// Appends a text with the zero that ends it.
    #[must_use]
    pub fn text(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attribute(kind, &bytes)
    }

    /// Appends an attribute that holds what `fill` appends.
    #[must_use]
    pub fn nested(self, kind: u16, fill: impl FnOnce(Self) -> Self) -> Self {
        self.nested_after(kind, &[], fill)
    }

    /// Appends an attribute that holds `fixed`, and then what `fill` appends.
    #[must_use]
    pub fn nested_after(mut self, kind: u16, fixed: &[u8], fill: impl FnOnce(Self) -> Self) -> Self {
        let start = self.bytes.len();
        self.bytes.extend([0; 2]);
        self.bytes.extend((kind | NESTED).to_ne_bytes());
        self.bytes.extend(fixed);
        self.pad();
        let mut request = fill(self);
        let length = (request.bytes.len() - start).min(usize::from(u16::MAX)) as u16;
        request.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        request
    }

    /// The finished message, under `sequence` and with `flags` added.
    pub fn finish(mut self, sequence: u32, flags: u16) -> Vec<u8> {
        let length = self.bytes.len() as u32;
        let flags = u16::from_ne_bytes([self.bytes[6], self.bytes[7]]) | flags;
        self.bytes[0..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.bytes
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGNMENT), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_written_reads_back() {
        let bytes = Request::new(24, 1, &[7; 12])
            .text(3, "eth0")
            .nested(18, |request| request.text(1, "veth").number(2, 9))
            .number(4, 1500)
            .finish(77, 4);
        let messages: Vec<_> = Messages::new(&bytes).collect();
        assert_eq!(messages.len(), 1);
        let message = messages[0];
        assert_eq!((message.kind, message.flags, message.sequence), (24, 5, 77));
        let attributes: Vec<_> = Attributes::after(message.payload, 12).collect();
        assert_eq!(attributes[0], (3, &b"eth0\0"[..]));
        let inner: Vec<_> = Attributes::new(attributes[1].1).collect();
        assert_eq!(attributes[1].0, 18);
        assert_eq!(inner, [(1, &b"veth\0"[..]), (2, &9_u32.to_ne_bytes()[..])]);
        assert_eq!(attributes[2], (4, &1500_u32.to_ne_bytes()[..]));
    }

    #[test]
    fn lengths_that_contradict_themselves_end_the_reading() {
        let good = Request::new(16, 0, &[0; 16]).finish(1, 0);
        for length in [0_u32, 1, 15, good.len() as u32 + 1, u32::MAX] {
            let mut bytes = good.clone();
            bytes[0..4].copy_from_slice(&length.to_ne_bytes());
            assert_eq!(Messages::new(&bytes).count(), 0, "{length}");
        }
        for length in [0_u16, 3, 9, u16::MAX] {
            let mut bytes = [0; 8];
            bytes[0..2].copy_from_slice(&length.to_ne_bytes());
            assert_eq!(Attributes::new(&bytes).count(), 0, "{length}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic_and_with_progress(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
            prop_assert!(Messages::new(&bytes).count() <= bytes.len() / HEADER);
            prop_assert!(Attributes::new(&bytes).count() <= bytes.len() / ATTRIBUTE_HEADER);
        }

        #[test]
        fn attributes_read_back(values in prop::collection::vec((0_u16..TYPE_MASK, prop::collection::vec(any::<u8>(), 0..40)), 0..20)) {
            let mut request = Request::new(1, 0, &[]);
            for (kind, value) in &values {
                request = request.attribute(*kind, value);
            }
            let bytes = request.finish(1, 0);
            let message = Messages::new(&bytes).next().unwrap();
            let read: Vec<_> = Attributes::new(message.payload).map(|(kind, value)| (kind, value.to_vec())).collect();
            prop_assert_eq!(read, values);
        }
    }
}
