//! One connection as words.
//!
//! Word by word, after the family's address words:
//!
//! | word | holds |
//! |---|---|
//! | 0 | client's port, virtual port, protocol; never changes while published |
//! | 1 | generation, flags, state: changed by compare-and-swap only |
//! | 2 | deadline, nanoseconds |
//! | 3 | real server, its port, forwarding method |
//! | 4 | packets seen |
//! | 5 | tick of the timer that answers for the record, whoever uses it: see `timer` |
//! | 6 | while alive: the template that controls it, written before it is published; once dead: epoch of its death,
//!       link of a free list. Nobody else writes it, so that a worker which is late with a deadline or a count does no
//!       harm |

use std::marker::PhantomData;

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

    /// Whether it counts as active with its real server.
    #[inline]
    pub const fn is_active(self) -> bool {
        !self.flags.contains(Flags::INACTIVE)
    }

    const fn to_word(self) -> u64 {
        (self.generation as u64) << 32 | (self.flags.0 as u64) << 8 | self.state.0 as u64
    }

    const fn from_word(word: u64) -> Self {
        Self { generation: (word >> 32) as u32, flags: Flags((word >> 8) as u8), state: State(word as u8) }
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

    /// The flow's hash, for finding its bucket again.
    pub(super) fn hash(&self, key: crate::types::HashKey) -> u64 {
        let words = [0, 1, 2, 3].map(|index: usize| match self.addresses.get(index) {
            Some(word) => word.load(Ordering::Relaxed),
            None => 0,
        });
        let (client, destination) = F::unpack(&words);
        match F::pack(client, destination) {
            Some(addresses) => F::hash(key, &addresses, self.words[PORTS].load(Ordering::Relaxed)),
            None => 0,
        }
    }

    /// Client's and virtual address.
    pub fn addresses(&self) -> (std::net::IpAddr, std::net::IpAddr) {
        let words = [0, 1, 2, 3].map(|index: usize| match self.addresses.get(index) {
            Some(word) => word.load(Ordering::Relaxed),
            None => 0,
        });
        F::unpack(&words)
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
        ServerId(self.words[TARGET].load(Ordering::Relaxed) as u32)
    }

    /// The real server's port and the method that the connection was made with.
    pub fn target(&self) -> (u16, ForwardingMethod) {
        let word = self.words[TARGET].load(Ordering::Relaxed);
        let method = match (word >> 48) as u8 {
            0 => ForwardingMethod::Masquerading,
            1 => ForwardingMethod::Local,
            2 => ForwardingMethod::Tunnel,
            _ => ForwardingMethod::DirectRouting,
        };
        ((word >> 32) as u16, method)
    }

    pub(super) fn set_target(&self, server: ServerId, port: u16, method: ForwardingMethod) {
        let word = (method as u64) << 48 | u64::from(port) << 32 | u64::from(server.0);
        self.words[TARGET].store(word, Ordering::Relaxed);
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
