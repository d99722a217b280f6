//! What a sender left for a network card to do.

use super::checksum::{Sum, never_zero};
use super::{Parsed, protocol, transport};

/// What the sender left for a network card to do, as a virtio-net header says it. All zero: nothing.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Offload {
    /// The checksum field holds only the pseudo-header's sum: it is to be completed over the bytes from
    /// `checksum_start` (from the start of the frame) into the field at `checksum_start + checksum_offset`.
    pub needs_checksum: bool,
    /// Offset of the first summed byte from the start of the frame.
    pub checksum_start: u16,
    /// Offset of the checksum field from `checksum_start`.
    pub checksum_offset: u16,
    /// VIRTIO_NET_HDR_GSO_*: how the frame is to be cut into segments; 0 for not at all.
    pub segmentation: u8,
    /// Bytes of headers that every segment repeats.
    pub header_length: u16,
    /// Payload bytes in each segment.
    pub segment_size: u16,
}

impl Offload {
    /// The largest IP packet that will be on the wire: a segment, where the frame is to be cut.
    #[inline]
    pub fn largest_packet(&self, packet: &Parsed) -> u32 {
        if self.segmentation == 0 {
            return packet.ip_length;
        }
        let headers = self.header_length.saturating_sub(packet.ip_offset);
        (u32::from(headers) + u32::from(self.segment_size)).min(packet.ip_length)
    }

    /// Keeps the offsets right after a link header of `before` bytes was replaced by one of `after`.
    #[inline]
    pub fn link_header_replaced(&mut self, before: u16, after: u16) {
        if self.needs_checksum {
            self.checksum_start = self.checksum_start.saturating_sub(before).saturating_add(after);
        }
        if self.segmentation != 0 {
            self.header_length = self.header_length.saturating_sub(before).saturating_add(after);
        }
    }

    /// Whether it is this packet's own transport checksum that is to be completed, and not one further inside (of a
    /// packet in a tunnel).
    #[inline]
    pub fn is_transport_checksum(&self, packet: &Parsed) -> bool {
        let field = transport::checksum_field(packet.protocol).map(|(offset, _)| offset);
        self.needs_checksum
            && self.checksum_start == packet.transport_offset
            && field == Some(usize::from(self.checksum_offset))
    }

    /// Does what is left to do of a checksum, of a packet read from this very frame; its addresses and ports may have
    /// been translated since. Says false, and changes nothing, where the field is not in it. This note of what is left
    /// to do stays as it is: reset it.
    pub fn complete(&self, frame: &mut [u8], packet: &Parsed) -> bool {
        let own = self.is_transport_checksum(packet);
        if own && packet.protocol == protocol::SCTP {
            return transport::write_checksum(frame, packet);
        }
        // The field already holds the pseudo-header's sum.
        let end = packet.end().min(frame.len());
        let Some(bytes) = frame.get_mut(usize::from(self.checksum_start)..end) else { return false };
        let checksum = Sum::ZERO.bytes(bytes).checksum();
        // Further inside it may be UDP's.
        let may_be_zero = own && packet.protocol == protocol::TCP;
        let checksum = if may_be_zero { checksum } else { never_zero(checksum) };
        let field = bytes.get_mut(usize::from(self.checksum_offset)..).and_then(<[u8]>::first_chunk_mut);
        field.map(|field| *field = checksum.to_be_bytes()).is_some()
    }
}
