//! One connection as words.
//!
//! Word by word, after the family's address words:
//!
//! | word | holds |
//! |---|---|
//! | 0 | client's port, virtual port, protocol; never changes while published |
//! | 1 | generation, forwarding method, flags, state: changed by compare-and-swap only |
//! | 2 | deadline, nanoseconds |
//! | 3 | real server: in IPv4 its address, its port, its number; never changes while published |
//! | 4 | packets seen |
//! | 5 | tick of the timer that answers for the record, whoever uses it: see `timer` |
//! | 6 | while alive: the template that controls it, written before it is published; once dead: epoch of its death,
//!       link of a free list. Nobody else writes it, so that a worker which is late with a deadline or a count does no
//!       harm |
//! | 7, 8 | in IPv6, the real server's address |

use std::marker::PhantomData;
use std::net::IpAddr;

use crate::persistence::TemplateId;
use crate::service::ServerId;
use crate::sys::memory::atomic::{AtomicU64, Ordering};
use crate::types::{ForwardingMethod, Instant};

use super::key::{FlowFamily, FlowKey};
use super::state::State;

const PORTS: usize = 0;
const LIFE: usize = 1;
const DEADLINE: usize = 2;
const TARGET: usize = 3;
const PACKETS: usize = 4;
const FILED: usize = 5;
const LINK: usize = 6;
/// Where what only one family needs begins.
const REST: usize = 7;

/// What a connection is besides its state.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Flags(u8);

impl Flags {
    /// In the table and not removed.
    pub const ALIVE: Self = Self(1);
    /// Counts as inactive (IP_VS_CONN_F_INACTIVE).
    pub const INACTIVE: Self = Self(2);
    /// The director sees no replies (IP_VS_CONN_F_NOOUTPUT).
    pub const NO_OUTPUT: Self = Self(4);

    /// Whether all of `other` are set.
    #[inline]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// With `other` set as well.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Without `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

/// The word that changes atomically: which use of the record this is, and how the connection stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lifecycle {
    /// Counts the uses of the record.
    pub generation: u32,
    /// The method that the connection was made with; stays readable when it has ended.
    pub method: ForwardingMethod,
    /// Flags.
    pub flags: Flags,
    /// State.
    pub state: State,
}

impl Lifecycle {
    /// Whether the connection is in the table.
    #[inline]
    pub const fn is_alive(self) -> bool {
        self.flags.contains(Flags::ALIVE)
    }

    /// Whether it is in the table, and was so all the time since `former` was read, which was alive.
    #[inline]
    pub const fn is_use_of(self, former: Self) -> bool {
        self.is_alive() && self.generation == former.generation
    }

    /// Whether it counts as active with its real server.
    #[inline]
    pub const fn is_active(self) -> bool {
        !self.flags.contains(Flags::INACTIVE)
    }

    /// Of a record's next use: as one that has ended, nobody takes what he knew of this one for true.
    pub(super) const fn ended(self) -> Self {
        Self { generation: self.generation.wrapping_add(1), flags: Flags(0), state: State::NONE, ..self }
    }

    const fn to_word(self) -> u64 {
        (self.generation as u64) << 32
            | (self.method as u64) << 16
            | (self.flags.0 as u64) << 8
            | self.state.0 as u64
    }

    const fn from_word(word: u64) -> Self {
        let method = match (word >> 16) as u8 {
            0 => ForwardingMethod::Masquerading,
            1 => ForwardingMethod::Local,
            2 => ForwardingMethod::Tunnel,
            _ => ForwardingMethod::DirectRouting,
        };
        Self {
            generation: (word >> 32) as u32,
            method,
            flags: Flags((word >> 8) as u8),
            state: State(word as u8),
        }
    }
}

/// A view of one record. Any word may change while one looks, but for the key of a connection that is alive.
#[derive(Clone, Copy, Debug)]
pub struct Connection<'a, F: FlowFamily> {
    addresses: &'a [AtomicU64],
    words: &'a [AtomicU64],
    family: PhantomData<F>,
}

impl<'a, F: FlowFamily> Connection<'a, F> {
    #[inline]
    pub(super) fn new(record: &'a [AtomicU64]) -> Self {
        let (addresses, words) = record.split_at(F::ADDRESS_WORDS);
        Self { addresses, words, family: PhantomData }
    }

    /// Whether this is the record of `key`. Says nothing about being alive.
    #[inline]
    pub(super) fn has_key(&self, key: &FlowKey<F>) -> bool {
        let mut differs = self.words[PORTS].load(Ordering::Relaxed) ^ key.ports;
        for (word, &expected) in self.addresses.iter().zip(key.addresses.as_ref()) {
            differs |= word.load(Ordering::Relaxed) ^ expected;
        }
        differs == 0
    }

    /// Whether `key` is what replies to this record's flow carry. Says nothing about being alive, or masqueraded.
    #[inline]
    pub(super) fn has_reply_key(&self, key: &FlowKey<F>) -> bool {
        self.reply_key() == *key
    }

    /// The flow as the client sends it.
    #[inline]
    pub fn key(&self) -> FlowKey<F> {
        FlowKey { addresses: F::load(self.addresses), ports: self.words[PORTS].load(Ordering::Relaxed) }
    }

    /// The flow as the real server sends it, where its packets are masqueraded.
    #[inline]
    pub fn reply_key(&self) -> FlowKey<F> {
        let target = self.words[TARGET].load(Ordering::Relaxed);
        self.key().reply(F::load_target(target, &self.words[REST..]), (target >> 16) as u16)
    }

    /// Client's and virtual address.
    pub fn addresses(&self) -> (IpAddr, IpAddr) {
        F::unpack(&F::load(self.addresses))
    }

    /// Client's port, virtual port, IP protocol number.
    pub fn ports(&self) -> (u16, u16, u8) {
        let word = self.words[PORTS].load(Ordering::Relaxed);
        ((word >> 48) as u16, (word >> 32) as u16, word as u8)
    }

    /// Generation, flags and state.
    #[inline]
    pub fn lifecycle(&self) -> Lifecycle {
        Lifecycle::from_word(self.words[LIFE].load(Ordering::Acquire))
    }

    /// Puts `new` in place of `old`; says false where somebody else was faster.
    #[inline]
    pub fn exchange(&self, old: Lifecycle, new: Lifecycle) -> bool {
        self.words[LIFE]
            .compare_exchange(old.to_word(), new.to_word(), Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    }

    /// When the connection ends unless another packet comes.
    #[inline]
    pub fn deadline(&self) -> Instant {
        Instant::from_nanos(self.words[DEADLINE].load(Ordering::Relaxed))
    }

    /// Sets the deadline. One that comes to lie earlier needs a timer filed, afterwards.
    #[inline]
    pub fn set_deadline(&self, deadline: Instant) {
        self.words[DEADLINE].store(deadline.as_nanos(), Ordering::Relaxed);
    }

    /// The real server.
    #[inline]
    pub fn server(&self) -> ServerId {
        ServerId(u32::from(self.words[TARGET].load(Ordering::Relaxed) as u16))
    }

    /// The real server's address and port. The address is unspecified where it is of the other family, as a tunnel's
    /// far end may be.
    pub fn target(&self) -> (IpAddr, u16) {
        let word = self.words[TARGET].load(Ordering::Relaxed);
        (F::ip(F::load_target(word, &self.words[REST..])), (word >> 16) as u16)
    }

    /// Writes the real server of a record that is not published yet.
    pub(super) fn set_target(&self, server: ServerId, address: F::Address, port: u16) {
        let value = u32::from(port) << 16 | server.0 & u32::from(u16::MAX);
        F::store_target(&self.words[TARGET], &self.words[REST..], address, value);
    }

    /// The connection template that controls the connection. Only to be believed if the connection was alive, in one
    /// and the same use of its record, before and after: where a change of the lifecycle that was read before has succeeded
    /// since.
    #[inline]
    pub fn control(&self) -> Option<TemplateId> {
        TemplateId::from_word(self.words[LINK].load(Ordering::Relaxed))
    }

    /// Names the template of a record that is not published yet.
    pub(super) fn set_control(&self, control: Option<TemplateId>) {
        self.words[LINK].store(control.map_or(0, TemplateId::to_word), Ordering::Relaxed);
    }

    /// Packets from the client so far.
    pub fn packets(&self) -> u64 {
        self.words[PACKETS].load(Ordering::Relaxed)
    }

    /// Counts a packet from the client. Two workers at once may count one: it steers nothing exact.
    #[inline]
    pub fn count_packet(&self) {
        let packets = self.words[PACKETS].load(Ordering::Relaxed);
        self.words[PACKETS].store(packets.wrapping_add(1), Ordering::Relaxed);
    }

    /// Writes the key of a record that is not published yet.
    pub(super) fn set_key(&self, key: &FlowKey<F>) {
        for (word, &value) in self.addresses.iter().zip(key.addresses.as_ref()) {
            word.store(value, Ordering::Relaxed);
        }
        self.words[PORTS].store(key.ports, Ordering::Relaxed);
        self.words[PACKETS].store(0, Ordering::Relaxed);
    }

    /// Publishes the state of a record that nobody else can change yet.
    pub(super) fn set_lifecycle(&self, lifecycle: Lifecycle) {
        self.words[LIFE].store(lifecycle.to_word(), Ordering::Release);
    }

    /// The tick of the timer that answers for this record, as its complement; 0 for none.
    #[inline]
    pub(super) fn filed(&self) -> &'a AtomicU64 {
        &self.words[FILED]
    }

    /// The word that links free and dead records.
    pub(super) fn link(&self) -> &'a AtomicU64 {
        &self.words[LINK]
    }
}
