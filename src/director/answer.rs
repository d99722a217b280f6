//! What the director itself tells a client: that a packet cannot be served, and why. A real server is told why its reply
//! cannot be sent on, or that it is nobody's.
//!
//! An answer takes the place of the packet that it is about, in the same frame, and goes back where that came from.
//! Its sender is the address that the client asked for, or, where that is not the host's own, the host's on that port,
//! as a router would answer. Few are sent: a token bucket for all clients of a worker
//! together holds back what a flood would call forth, as the kernel's `icmp_msgs_per_sec` does.

use std::net::IpAddr;

use crate::sys::frames::FramePool;
use crate::types::{Duration, Family, Instant};
use crate::wire::{Fragment, Parsed, icmp, icmpv6, ipv4, ipv6};

use super::batch::{Entry, Offload};
use super::configuration::Network;
use super::{DropReason, Verdict};

/// Answers a second, and at once after a pause: the kernel's defaults (`icmp_msgs_per_sec`, `icmp_msgs_burst`).
const PER_SECOND: u64 = 1000;
const BURST: u64 = 50;
const INTERVAL: Duration = Duration::from_nanos(1_000_000_000 / PER_SECOND);

/// Writes answers, not too many.
#[derive(Debug)]
pub(super) struct Answers {
    scratch: Box<[u8; icmpv6::MAX_LENGTH]>,
    identification: u16,
    tokens: u64,
    refilled: Instant,
}

impl Answers {
    pub(super) fn new() -> Self {
        Self {
            scratch: Box::new([0; icmpv6::MAX_LENGTH]),
            identification: 0,
            tokens: BURST,
            refilled: Instant::ZERO,
        }
    }

    /// Takes the place of a verdict to drop a packet: where the client is to be told why, the frame becomes the
    /// answer and the verdict to send it back. Anything else stays as it is. `mtu` is the largest packet, in bytes, that
    /// would not have been too big.
    #[cold]
    pub(super) fn instead_of(
        &mut self,
        reason: DropReason,
        frames: &FramePool,
        entry: &mut Entry,
        packet: &Parsed,
        (network, mtu): (&Network, u32),
        now: Instant,
    ) -> Verdict {
        // What is wrong with the whole datagram is said once, to its first fragment; of IPv6 even a later one that is too
        // big is answered for itself.
        if matches!(packet.fragment, Fragment::Later { .. }) && reason != DropReason::TooBig {
            return Verdict::Drop(reason);
        }
        let destination = packet.addresses.destination();
        let sender = if network.is_local(destination) {
            destination
        } else {
            match network.own_address(entry.port, packet.addresses.source()) {
                Some(address) => address,
                None => return Verdict::Drop(reason),
            }
        };
        let length = match sender {
            IpAddr::V4(address) => {
                let message = match reason {
                    DropReason::NoRealServer | DropReason::UnknownAnswer => icmp::Message::PORT_UNREACHABLE,
                    DropReason::TtlExpired => icmp::Message::TIME_EXCEEDED,
                    DropReason::TooBig if packet.dont_fragment => {
                        icmp::Message::fragmentation_needed(u16::try_from(mtu).unwrap_or(u16::MAX))
                    }
                    _ => return Verdict::Drop(reason),
                };
                if !icmp::may_answer(packet) || !self.take_token(now) {
                    return Verdict::Drop(reason);
                }
                self.identification = self.identification.wrapping_add(1);
                let original = original(reason, frames, entry, packet);
                icmp::write_error(&mut *self.scratch, message, address, self.identification, original)
            }
            IpAddr::V6(address) => {
                let message = match reason {
                    DropReason::NoRealServer | DropReason::UnknownAnswer => icmpv6::Message::PORT_UNREACHABLE,
                    DropReason::TtlExpired => icmpv6::Message::TIME_EXCEEDED,
                    DropReason::TooBig => icmpv6::Message::packet_too_big(mtu),
                    _ => return Verdict::Drop(reason),
                };
                if !icmpv6::may_answer(packet) || !self.take_token(now) {
                    return Verdict::Drop(reason);
                }
                let original = original(reason, frames, entry, packet);
                icmpv6::write_error(&mut *self.scratch, message, address, original)
            }
        };
        match length {
            Some(length) if self.replace(frames, entry, packet, length) => Verdict::Reply(entry.port),
            _ => Verdict::Drop(reason),
        }
    }

    fn take_token(&mut self, now: Instant) -> bool {
        let earned = now.since(self.refilled).as_nanos() / INTERVAL.as_nanos();
        if earned > 0 {
            self.tokens = (self.tokens + earned).min(BURST);
            self.refilled = now;
        }
        let allowed = self.tokens > 0;
        self.tokens = self.tokens.saturating_sub(1);
        allowed
    }

    /// Puts the first `length` bytes of the scratch behind the frame's link header, which is turned round.
    fn replace(&self, frames: &FramePool, entry: &mut Entry, packet: &Parsed, length: usize) -> bool {
        let link = usize::from(packet.ip_offset);
        frames.set_len(&mut entry.frame, link + length);
        if entry.frame.len() != link + length {
            return false;
        }
        let bytes = frames.bytes_mut(&mut entry.frame);
        bytes[link..].copy_from_slice(&self.scratch[..length]);
        let (to, from) = bytes.split_at_mut(6);
        to.swap_with_slice(&mut from[..6]);
        entry.offload = Offload::default();
        true
    }
}

/// The packet as it is now, without its link header and what pads it. One that was to be routed on has come that far: a
/// router first takes one off the hops that are left to it.
fn original<'a>(
    reason: DropReason,
    frames: &'a FramePool,
    entry: &'a mut Entry,
    packet: &Parsed,
) -> &'a [u8] {
    let bytes = frames.bytes_mut(&mut entry.frame);
    let end = packet.end().min(bytes.len());
    let Some(original) = bytes.get_mut(usize::from(packet.ip_offset)..end) else { return &[] };
    if reason == DropReason::UnknownAnswer {
        let _ = match packet.family() {
            Family::V4 => ipv4::decrement_ttl(original),
            Family::V6 => ipv6::decrement_hop_limit(original),
        };
    }
    original
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_calls_forth_a_burst_and_then_a_thousand_a_second() {
        let mut answers = Answers::new();
        let mut now = Instant::ZERO + Duration::from_secs(100);
        let count = |answers: &mut Answers, now| (0..10_000).filter(|_| answers.take_token(now)).count();
        assert_eq!(count(&mut answers, now), 50);
        now += Duration::from_millis(10);
        assert_eq!(count(&mut answers, now), 10);
        let mut sent = 0;
        for _ in 0..10_000 {
            now += Duration::from_nanos(100_000);
            sent += usize::from(answers.take_token(now));
        }
        assert!((990..=1010).contains(&sent), "{sent} in a second of ten a millisecond");
    }
}
