//! One template as words.
//!
//! Word by word, after the family's address words:
//!
//! | word | holds |
//! |---|---|
//! | 0 | virtual port, protocol; never changes while the template lives |
//! | 1 | generation, flags |
//! | 2 | deadline, nanoseconds |
//! | 3 | real server, its port in the template |
//! | 4 | timeout in seconds; link of a hash chain or of the free list |
//! | 5 | connections that it controls |
//! | 6 | place in the shard's heap |
//!
//! Words change under the shard's lock, but for two: a connection that ends counts itself off, and one that is
//! established marks its template as assured, by compare-and-swap with the generation.

use std::marker::PhantomData;
use std::net::IpAddr;

use crate::conn::{FlowFamily, FlowKey};
use crate::service::ServerId;
use crate::sys::memory::atomic::{AtomicU64, Ordering};
use crate::types::{Duration, HashKey, Instant};

const PORTS: usize = 0;
const LIFE: usize = 1;
const DEADLINE: usize = 2;
const TARGET: usize = 3;
const TIMEOUT: usize = 4;
const CONTROLLED: usize = 5;
/// After the address words, so it depends on the family where it lies in a record.
pub(super) const PLACE: usize = 6;

const ALIVE: u64 = 1;
const ASSURED: u64 = 2;
const INVALID: u64 = 4;

/// A template that is past its time but still controls connections is put off by so much, and lives no longer than
/// that after each later use (`ip_vs_conn_expire`).
pub(super) const POSTPONEMENT: Duration = Duration::from_secs(60);

/// Names one use of one template's record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TemplateId {
    /// Index of the record.
    pub(super) index: u32,
    /// Which of its uses.
    pub(super) generation: u32,
}

impl TemplateId {
    /// As a word that is never 0; 0 stands for none.
    #[inline]
    pub(crate) const fn to_word(self) -> u64 {
        (self.generation as u64) << 32 | (self.index as u64 + 1)
    }

    /// What [`to_word`](Self::to_word) made.
    #[inline]
    pub(crate) const fn from_word(word: u64) -> Option<Self> {
        match (word as u32).checked_sub(1) {
            Some(index) => Some(Self { index, generation: (word >> 32) as u32 }),
            None => None,
        }
    }
}

/// A view of one record.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record<'a, F: FlowFamily> {
    addresses: &'a [AtomicU64],
    words: &'a [AtomicU64],
    family: PhantomData<F>,
}

impl<'a, F: FlowFamily> Record<'a, F> {
    #[inline]
    pub(super) fn new(record: &'a [AtomicU64]) -> Self {
        let (addresses, words) = record.split_at(F::ADDRESS_WORDS);
        Self { addresses, words, family: PhantomData }
    }

    fn load(&self, word: usize) -> u64 {
        self.words[word].load(Ordering::Relaxed)
    }

    fn store(&self, word: usize, value: u64) {
        self.words[word].store(value, Ordering::Relaxed);
    }

    #[inline]
    pub(super) fn has_key(&self, key: &FlowKey<F>) -> bool {
        let mut differs = self.load(PORTS) ^ key.ports;
        for (word, &expected) in self.addresses.iter().zip(key.addresses.as_ref()) {
            differs |= word.load(Ordering::Relaxed) ^ expected;
        }
        differs == 0
    }

    /// The client as far as it counts, and the virtual address or the mark.
    pub(super) fn addresses(&self) -> (IpAddr, IpAddr) {
        F::unpack(&F::load(self.addresses))
    }

    pub(super) fn hash(&self, key: HashKey) -> u64 {
        F::hash(key, &F::load(self.addresses), self.load(PORTS))
    }

    /// Virtual port and protocol number.
    pub(super) fn ports(&self) -> (u16, u8) {
        let word = self.load(PORTS);
        ((word >> 32) as u16, word as u8)
    }

    pub(super) fn set_key(&self, key: &FlowKey<F>) {
        for (word, &value) in self.addresses.iter().zip(key.addresses.as_ref()) {
            word.store(value, Ordering::Relaxed);
        }
        self.store(PORTS, key.ports);
    }

    fn life(&self) -> u64 {
        self.words[LIFE].load(Ordering::Acquire)
    }

    pub(super) fn generation(&self) -> u32 {
        (self.life() >> 32) as u32
    }

    pub(super) fn is_alive(&self) -> bool {
        self.life() & ALIVE != 0
    }

    pub(super) fn is_assured(&self) -> bool {
        self.life() & ASSURED != 0
    }

    /// Whether it was found not to lead to a usable real server, and only waits for its end.
    pub(super) fn is_invalid(&self) -> bool {
        self.life() & INVALID != 0
    }

    /// Whether it is the living template of that generation.
    pub(super) fn is(&self, id: TemplateId) -> bool {
        self.life() & (u64::MAX << 32 | ALIVE) == u64::from(id.generation) << 32 | ALIVE
    }

    pub(super) fn begin(&self) {
        let word = self.life() >> 32 << 32 | ALIVE;
        self.words[LIFE].store(word, Ordering::Release);
    }

    pub(super) fn end(&self) {
        let generation = self.generation().wrapping_add(1);
        self.words[LIFE].store(u64::from(generation) << 32, Ordering::Release);
    }

    pub(super) fn invalidate(&self) {
        self.words[LIFE].fetch_or(INVALID, Ordering::AcqRel);
    }

    /// Marks the template, if it is still the one meant. Takes no lock.
    pub(super) fn assure(&self, id: TemplateId) {
        let mut word = self.life();
        while self.is(id) && word & ASSURED == 0 {
            let exchange =
                self.words[LIFE].compare_exchange(word, word | ASSURED, Ordering::AcqRel, Ordering::Acquire);
            match exchange {
                Ok(_) => return,
                Err(present) => word = present,
            }
        }
    }

    pub(super) fn deadline(&self) -> Instant {
        Instant::from_nanos(self.load(DEADLINE))
    }

    pub(super) fn set_deadline(&self, deadline: Instant) {
        self.store(DEADLINE, deadline.as_nanos());
    }

    pub(super) fn server(&self) -> ServerId {
        ServerId(self.load(TARGET) as u32)
    }

    /// The real server's port as the template has it, 0 unless it is of one port.
    pub(super) fn server_port(&self) -> u16 {
        (self.load(TARGET) >> 32) as u16
    }

    pub(super) fn set_target(&self, server: ServerId, port: u16) {
        self.store(TARGET, u64::from(port) << 32 | u64::from(server.0));
    }

    pub(super) fn timeout(&self) -> Duration {
        Duration::from_secs(self.load(TIMEOUT) >> 32)
    }

    pub(super) fn set_timeout(&self, timeout: Duration) {
        let seconds = timeout.as_secs().min(u64::from(u32::MAX));
        self.store(TIMEOUT, seconds << 32 | u64::from(self.link()));
    }

    pub(super) fn link(&self) -> u32 {
        self.load(TIMEOUT) as u32
    }

    pub(super) fn set_link(&self, link: u32) {
        self.store(TIMEOUT, self.load(TIMEOUT) >> 32 << 32 | u64::from(link));
    }

    /// Connections that it controls.
    pub(super) fn controlled(&self) -> u64 {
        self.words[CONTROLLED].load(Ordering::Acquire)
    }

    /// One more connection; under the shard's lock, so that nobody ends the template meanwhile.
    pub(super) fn take_control(&self) {
        self.words[CONTROLLED].fetch_add(1, Ordering::Relaxed);
    }

    /// One less. The template may end from now on. Takes no lock.
    pub(super) fn give_up_control(&self) -> u64 {
        self.words[CONTROLLED].fetch_sub(1, Ordering::Release)
    }

    /// Whether its time is over at `now`: past the deadline, with nothing to control.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        self.deadline() <= now && self.controlled() == 0
    }

    /// The deadline that the kernel's timer would have by `now`: one that came while there were connections was put
    /// off, again and again.
    pub(super) fn deadline_by(&self, now: Instant) -> Instant {
        let deadline = self.deadline();
        if deadline > now {
            return deadline;
        }
        let times = now.since(deadline).as_nanos() / POSTPONEMENT.as_nanos() + 1;
        deadline + Duration::from_nanos(POSTPONEMENT.as_nanos().saturating_mul(times))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conn::Ipv4;
    use crate::sys::memory::Words;

    fn at(seconds: u64) -> Instant {
        Instant::ZERO + Duration::from_secs(seconds)
    }

    #[test]
    fn ids_are_words_and_none_of_them_is_nought() {
        for (index, generation) in [(0, 0), (7, 9), (u32::MAX - 1, u32::MAX)] {
            let id = TemplateId { index, generation };
            assert_ne!(id.to_word(), 0);
            assert_eq!(TemplateId::from_word(id.to_word()), Some(id));
        }
        assert_eq!(TemplateId::from_word(0), None);
    }

    #[test]
    fn deadlines_go_on_in_steps_of_a_minute() {
        let words = Words::new(8).unwrap();
        let record = Record::<Ipv4>::new(&words);
        record.set_deadline(at(10));
        for (now, expected) in [(9, 10), (10, 70), (69, 70), (70, 130), (131, 190)] {
            assert_eq!(record.deadline_by(at(now)), at(expected), "{now}");
        }
    }

    #[test]
    fn only_the_template_that_is_meant_is_assured() {
        let words = Words::new(8).unwrap();
        let record = Record::<Ipv4>::new(&words);
        let id = TemplateId { index: 0, generation: 0 };
        record.assure(id);
        assert!(!record.is_assured(), "nothing lives there");
        record.begin();
        record.assure(TemplateId { generation: 1, ..id });
        assert!(!record.is_assured());
        record.assure(id);
        assert!(record.is_assured() && record.is_alive() && record.is(id));
        record.end();
        record.begin();
        record.assure(id);
        assert!(!record.is_assured(), "the next user of the record");
    }
}
