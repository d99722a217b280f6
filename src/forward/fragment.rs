//! Fragmenting: a packet that is larger than its way takes, and may be cut, becomes several that fit.
//!
//! That is an IPv4 packet without "don't fragment", or the outer packet of a tunnel, of which the director is the
//! sender, of either family. Pieces are those that Linux makes (`ip_do_fragment`, `ip6_fragment`): each but the last as
//! large as fits, in units of 8 bytes.

use crate::sys::frames::{Frame, FramePool};
use crate::wire::{ipv4, ipv6, protocol};

/// Most pieces of one packet; enough for the largest, of 64 KiB, at any MTU of an Ethernet.
pub const MAX_FRAGMENTS: usize = 64;

/// IPv4's flag for more fragments, in front of the offset in units of 8 bytes.
const MORE: u16 = 0x2000;
/// IPv4's flag against fragmenting.
const DONT_FRAGMENT: u16 = 0x4000;
/// The bits of the offset.
const OFFSET: u16 = 0x1fff;

/// Options of IPv4: the end of the list, and one that does nothing.
const END_OF_OPTIONS: u8 = 0;
const NO_OPERATION: u8 = 1;
/// The bit of an option's number that says that it belongs into every fragment (RFC 791, section 3.1).
const COPIED: u8 = 0x80;

/// Why a packet is not cut.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
pub enum FragmentError {
    /// IPv4 with "don't fragment", or IPv6 with headers that the director does not send.
    #[error("the packet must not be fragmented")]
    Forbidden,
    /// The MTU is too small to cut anything to, or would need more than [`MAX_FRAGMENTS`] pieces.
    #[error("too many fragments")]
    TooMany,
    /// Fewer spare frames than pieces.
    #[error("no frames to put the fragments into")]
    NoFrames,
    /// There is no whole packet in the frame, or no room for its pieces in the spare ones.
    #[error("the frame is cut off")]
    Truncated,
}

/// How a packet is cut.
#[derive(Clone, Copy, Debug)]
struct Plan {
    is_ipv6: bool,
    /// Where the IP packet begins in the frame, and its headers' length, which every piece repeats.
    link: usize,
    headers: usize,
    /// Bytes behind the headers, in all and in each piece but the last.
    payload: usize,
    step: usize,
    /// IPv4: flags and offset of the packet itself, which may be a fragment.
    field: u16,
    identification: u32,
}

/// Cuts the packet that begins behind `link_length` bytes of link header. The frame becomes its first piece; for each
/// further one a frame is taken off the end of `spare` and, behind the same link header, handed to `emit`, in order.
/// Says how many. Nothing happens to a packet that fits `mtu`, the bytes of the largest IP packet that may leave,
/// except that padding is cut off.
///
/// Checksums must be complete ([`Offload::complete`](crate::wire::Offload::complete)): no network card can do it for a
/// packet in pieces. `identification` is what the pieces of an IPv6 packet have in common; those of an IPv4 packet have
/// its own. IPv6 must be the director's own packet, without extension headers.
///
/// # Errors
/// [`FragmentError`], with nothing changed.
pub fn fragment(
    frames: &FramePool,
    frame: &mut Frame,
    link_length: u16,
    mtu: u32,
    identification: u32,
    spare: &mut Vec<Frame>,
    mut emit: impl FnMut(Frame),
) -> Result<usize, FragmentError> {
    let plan = Plan::new(frames.bytes(frame), link_length.into(), mtu as usize, identification)?;
    let further = plan.pieces() - 1;
    if further > spare.len() {
        return Err(FragmentError::NoFrames);
    }
    let room = |spare: &mut Frame| frames.spare_mut(spare).len();
    if further > 0 && spare.iter_mut().rev().take(further).any(|spare| room(spare) < plan.largest()) {
        return Err(FragmentError::Truncated);
    }
    for piece in 1..=further {
        let Some(mut target) = spare.pop() else { break };
        frames.set_len(&mut target, plan.length(piece));
        plan.write(piece, frames.bytes(frame), frames.bytes_mut(&mut target));
        emit(target);
    }
    if further > 0 {
        plan.keep_first(frames, frame);
    } else {
        frame.truncate(plan.link + plan.headers + plan.payload);
    }
    Ok(further)
}

impl Plan {
    fn new(frame: &[u8], link: usize, mtu: usize, identification: u32) -> Result<Self, FragmentError> {
        let packet = frame.get(link..).ok_or(FragmentError::Truncated)?;
        let plan = match packet.first().map(|first| first >> 4) {
            Some(4) => Self::ipv4(packet, link),
            Some(6) => Self::ipv6(packet, link, identification),
            _ => None,
        };
        let mut plan = plan
            .filter(|plan| plan.headers + plan.payload <= packet.len())
            .ok_or(FragmentError::Truncated)?;
        if plan.headers + plan.payload <= mtu {
            plan.step = plan.payload;
            return Ok(plan);
        }
        if plan.is_forbidden(packet) {
            return Err(FragmentError::Forbidden);
        }
        plan.step = mtu.saturating_sub(plan.headers + plan.added()) & !7;
        if plan.step == 0 || plan.payload.div_ceil(plan.step) > MAX_FRAGMENTS {
            return Err(FragmentError::TooMany);
        }
        Ok(plan)
    }

    fn ipv4(packet: &[u8], link: usize) -> Option<Self> {
        let header: &[u8; ipv4::HEADER_LENGTH] = packet.first_chunk()?;
        let word = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        let headers = usize::from(header[0] & 0x0f) * 4;
        let payload = usize::from(word(ipv4::TOTAL_LENGTH)).checked_sub(headers)?;
        let field = word(ipv4::FRAGMENT);
        (headers >= ipv4::HEADER_LENGTH).then_some(Self {
            is_ipv6: false,
            link,
            headers,
            payload,
            step: 0,
            field,
            identification: 0,
        })
    }

    fn ipv6(packet: &[u8], link: usize, identification: u32) -> Option<Self> {
        let header: &[u8; ipv6::HEADER_LENGTH] = packet.first_chunk()?;
        let payload = u16::from_be_bytes([header[ipv6::PAYLOAD_LENGTH], header[ipv6::PAYLOAD_LENGTH + 1]]);
        let (headers, payload) = (ipv6::HEADER_LENGTH, usize::from(payload));
        Some(Self { is_ipv6: true, link, headers, payload, step: 0, field: 0, identification })
    }

    fn is_forbidden(&self, packet: &[u8]) -> bool {
        if self.is_ipv6 {
            let next = packet[ipv6::NEXT_HEADER];
            matches!(next, protocol::HOP_BY_HOP | protocol::ROUTING | protocol::FRAGMENT)
        } else {
            self.field & DONT_FRAGMENT != 0
        }
    }

    /// Bytes that every piece has in addition to the packet's headers.
    const fn added(&self) -> usize {
        if self.is_ipv6 { ipv6::FRAGMENT_HEADER_LENGTH } else { 0 }
    }

    const fn pieces(&self) -> usize {
        if self.step == 0 { 1 } else { self.payload.div_ceil(self.step) }
    }

    /// Where in the packet's payload a piece lies.
    fn range(&self, piece: usize) -> std::ops::Range<usize> {
        let begin = piece * self.step;
        begin..self.payload.min(begin + self.step)
    }

    /// Bytes of a piece's frame.
    fn length(&self, piece: usize) -> usize {
        self.link + self.headers + self.added() + self.range(piece).len()
    }

    /// Bytes of the longest piece's frame.
    fn largest(&self) -> usize {
        self.length(0)
    }

    /// Writes a later piece of `original`, a frame, to `target`, a frame of its length.
    fn write(&self, piece: usize, original: &[u8], target: &mut [u8]) {
        let front = self.link + self.headers;
        let range = self.range(piece);
        target[..front].copy_from_slice(&original[..front]);
        target[front + self.added()..].copy_from_slice(&original[front + range.start..front + range.end]);
        if !self.is_ipv6 {
            blank_options(&mut target[self.link + ipv4::HEADER_LENGTH..front]);
        }
        self.mark(piece, original[self.link + ipv6::NEXT_HEADER], &mut target[self.link..]);
    }

    /// Cuts the original to its first piece.
    fn keep_first(&self, frames: &FramePool, frame: &mut Frame) {
        let next_header = frames.bytes(frame)[self.link + ipv6::NEXT_HEADER];
        if self.is_ipv6 {
            // Room for the fragment header, behind the headers: they move forward if they can, else the rest moves back.
            let front = self.link + self.headers;
            if frame.grow_front(self.added()) {
                frames.bytes_mut(frame).copy_within(self.added()..self.added() + front, 0);
            } else {
                let bytes = frames.bytes_mut(frame);
                bytes.copy_within(front..front + self.step, front + self.added());
            }
        }
        frame.truncate(self.length(0));
        self.mark(0, next_header, &mut frames.bytes_mut(frame)[self.link..]);
    }

    /// Makes the headers of `packet` those of a piece.
    fn mark(&self, piece: usize, next_header: u8, packet: &mut [u8]) {
        let range = self.range(piece);
        let more = range.end < self.payload;
        let length = packet.len();
        if self.is_ipv6 {
            let payload_length = (length - ipv6::HEADER_LENGTH) as u16;
            packet[ipv6::PAYLOAD_LENGTH..][..2].copy_from_slice(&payload_length.to_be_bytes());
            packet[ipv6::NEXT_HEADER] = protocol::FRAGMENT;
            let header = &mut packet[ipv6::HEADER_LENGTH..][..ipv6::FRAGMENT_HEADER_LENGTH];
            header[..2].copy_from_slice(&[next_header, 0]);
            header[2..4].copy_from_slice(&(range.start as u16 | u16::from(more)).to_be_bytes());
            header[4..].copy_from_slice(&self.identification.to_be_bytes());
            return;
        }
        let offset = (self.field & OFFSET).wrapping_add((range.start / 8) as u16) & OFFSET;
        // The last piece of a fragment is followed by what followed that.
        let flags = self.field & !(OFFSET | MORE) | if more { MORE } else { self.field & MORE };
        packet[ipv4::TOTAL_LENGTH..][..2].copy_from_slice(&(length as u16).to_be_bytes());
        packet[ipv4::FRAGMENT..][..2].copy_from_slice(&(flags | offset).to_be_bytes());
        let _ = ipv4::write_checksum(&mut packet[..self.headers]); // cannot be too short
    }
}

/// Overwrites options that are not to be repeated by ones that do nothing, as Linux does (`ip_options_fragment`): the
/// header keeps its length.
fn blank_options(options: &mut [u8]) {
    let mut at = 0;
    // At most 40 bytes, and every round takes one at least.
    while let Some(&number) = options.get(at) {
        let length = match number {
            END_OF_OPTIONS => return,
            NO_OPERATION => 1,
            _ => match options.get(at + 1) {
                Some(&length) if length >= 2 && at + usize::from(length) <= options.len() => length.into(),
                _ => return,
            },
        };
        if number & COPIED == 0 {
            options[at..at + length].fill(NO_OPERATION);
        }
        at += length;
    }
}

#[cfg(test)]
mod tests;
