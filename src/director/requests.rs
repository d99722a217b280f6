//! What a worker asks of whoever may ask the kernel: the link addresses of clients.

use std::net::IpAddr;

use crate::sys::memory::atomic::{AtomicU64, Ordering};

/// Most of one worker's requests that nobody has taken note of yet.
const MAX_REQUESTS: usize = 64;

/// One worker's requests: a ring with one writer, the worker, and one reader. Neither waits for the other.
#[derive(Debug)]
pub(super) struct Requests {
    /// Addresses as IPv6 has them, in two halves.
    slots: [[AtomicU64; 2]; MAX_REQUESTS],
    written: AtomicU64,
    read: AtomicU64,
}

impl Requests {
    /// None yet.
    pub(super) fn new() -> Self {
        Self {
            slots: std::array::from_fn(|_| [AtomicU64::new(0), AtomicU64::new(0)]),
            written: AtomicU64::new(0),
            read: AtomicU64::new(0),
        }
    }

    fn slot(&self, number: u64) -> &[AtomicU64; 2] {
        &self.slots[number as usize % MAX_REQUESTS]
    }

    /// Asks for `address`; in vain where too much was asked for already.
    pub(super) fn ask(&self, address: IpAddr) {
        let written = self.written.load(Ordering::Relaxed);
        if written.wrapping_sub(self.read.load(Ordering::Acquire)) >= MAX_REQUESTS as u64 {
            return;
        }
        let bits = match address {
            IpAddr::V4(address) => u128::from(address.to_ipv6_mapped()),
            IpAddr::V6(address) => u128::from(address),
        };
        let [high, low] = self.slot(written);
        high.store((bits >> 64) as u64, Ordering::Relaxed);
        low.store(bits as u64, Ordering::Relaxed);
        self.written.store(written.wrapping_add(1), Ordering::Release);
    }

    /// Takes the requests out. Only one at a time may do so.
    pub(super) fn take(&self) -> impl Iterator<Item = IpAddr> {
        let written = self.written.load(Ordering::Acquire);
        std::iter::from_fn(move || {
            let read = self.read.load(Ordering::Relaxed);
            if read == written {
                return None;
            }
            let [high, low] = self.slot(read).each_ref().map(|word| word.load(Ordering::Relaxed));
            self.read.store(read.wrapping_add(1), Ordering::Release);
            let bits = u128::from(high) << 64 | u128::from(low);
            Some(IpAddr::V6(bits.into()).to_canonical())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_comes_out_once_and_what_is_too_much_is_not_kept() {
        let requests = Requests::new();
        let four = |number: u8| IpAddr::from([10, 0, 0, number]);
        let six = "2001:db8::7".parse().unwrap();
        for _ in 0..10 {
            requests.ask(six);
            (1..=100).for_each(|number| requests.ask(four(number)));
            let taken: Vec<IpAddr> = requests.take().collect();
            let kept = MAX_REQUESTS as u8 - 1;
            assert_eq!(taken, std::iter::once(six).chain((1..=kept).map(four)).collect::<Vec<_>>());
            assert_eq!(requests.take().count(), 0);
        }
    }

    #[test]
    fn a_reader_beside_the_writer_gets_them_whole_and_in_order() {
        const LAST: u64 = 100_000;
        let requests = Requests::new();
        let address =
            |number: u64| IpAddr::from((u128::from(number) << 64 | u128::from(number)).to_be_bytes());
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| (1..=LAST).for_each(|number| requests.ask(address(number))));
            let mut last = 0;
            let mut ended = false;
            while !ended {
                ended = writer.is_finished();
                for taken in requests.take() {
                    let IpAddr::V6(bits) = taken else { panic!("{taken}") };
                    let number = u128::from(bits) as u64;
                    assert_eq!(address(number), taken);
                    assert!(number > last);
                    last = number;
                }
            }
            assert!(last > 0);
        });
    }
}
