//! The rate estimator: a moving average over about eight seconds, with the kernel's arithmetic (`ip_vs_est.c`).

use crate::control::listing;
use crate::service::Traffic;

/// Fractional bits of the averages of connections and packets, and of bytes.
const PACKET_SCALE: u32 = 10;
const BYTE_SCALE: u32 = 5;
/// A new sample weighs 1/4.
const WEIGHT: u32 = 2;

/// The averages of one service or real server.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Estimator {
    last: Traffic,
    average: Traffic,
}

/// Moves `average` a quarter of the way towards what came in two seconds, scaled to one second.
fn move_towards(average: &mut u64, delta: u64, scale: u32) {
    let sample = delta << (scale - 1);
    let step = (sample.cast_signed().wrapping_sub(average.cast_signed())) >> WEIGHT;
    *average = average.wrapping_add_signed(step);
}

/// A scaled average as a whole number, rounded up as the kernel does (`ip_vs_read_estimator`).
fn rounded(average: u64, scale: u32) -> u64 {
    (average + (1 << (scale - 1)) - 1) >> scale
}

impl Estimator {
    /// Nothing estimated, counting from `now`.
    pub(super) fn new(now: Traffic) -> Self {
        Self { last: now, average: Traffic::default() }
    }

    /// Two seconds have passed, and the counters are at `now`.
    pub(super) fn sample(&mut self, now: Traffic) {
        let delta = now - self.last;
        self.last = now;
        let average = &mut self.average;
        move_towards(&mut average.connections, delta.connections, PACKET_SCALE);
        move_towards(&mut average.in_packets, delta.in_packets, PACKET_SCALE);
        move_towards(&mut average.out_packets, delta.out_packets, PACKET_SCALE);
        move_towards(&mut average.in_bytes, delta.in_bytes, BYTE_SCALE);
        move_towards(&mut average.out_bytes, delta.out_bytes, BYTE_SCALE);
    }

    /// The rates for a listing.
    pub(super) fn rates(&self) -> listing::Rates {
        let Traffic { connections, in_packets, out_packets, in_bytes, out_bytes } = self.average;
        listing::Rates {
            connections: rounded(connections, PACKET_SCALE),
            in_packets: rounded(in_packets, PACKET_SCALE),
            out_packets: rounded(out_packets, PACKET_SCALE),
            in_bytes: rounded(in_bytes, BYTE_SCALE),
            out_bytes: rounded(out_bytes, BYTE_SCALE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_stream_is_estimated_right_and_silence_ends_it() {
        let mut estimator = Estimator::default();
        let mut traffic = Traffic::default();
        let mut after_one = 0;
        for round in 0..60 {
            traffic.in_packets += 2000;
            traffic.in_bytes += 120_000;
            estimator.sample(traffic);
            if round == 0 {
                after_one = estimator.rates().in_packets;
            }
        }
        assert_eq!(after_one, 250, "a quarter of 1000 a second");
        // The average creeps up and stays a fraction below: shifting rounds down.
        assert_eq!((estimator.rates().in_packets, estimator.rates().in_bytes), (1000, 60_000));
        for _ in 0..60 {
            estimator.sample(traffic);
        }
        assert_eq!(estimator.rates(), listing::Rates::default());
    }
}
