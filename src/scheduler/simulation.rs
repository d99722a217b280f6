//! Schedulers that go by load, under requests of uneven size: a simulation with real servers of weights from 1 to 16.

use crate::types::HashKey;

use super::testing::{Bench, CLIENT};

/// Requests simulated, after as many for warming up.
const REQUESTS: usize = 5000;
const WEIGHTS: [u32; 5] = [1, 2, 4, 8, 16];

/// Numbers that look random, the same ones each time.
struct Random(u64);

impl Random {
    /// From above 0 up to 1.
    fn fraction(&mut self) -> f64 {
        self.0 += 1;
        let bits = HashKey::new([17, 19]).hash([self.0]) >> 11;
        (bits + 1) as f64 / (1_u64 << 53) as f64
    }

    /// Exponentially distributed.
    fn exponential(&mut self, mean: f64) -> f64 {
        -mean * self.fraction().ln()
    }

    /// Nine of ten are small, and one is forty times as large; 1 in the mean.
    fn work(&mut self) -> f64 {
        let small = 1.0 / 4.9;
        if self.fraction() <= 0.9 { small } else { 40.0 * small }
    }
}

/// What real servers do with their requests.
#[derive(Clone, Copy, PartialEq)]
enum Service {
    /// Each lasts as long as its size says, whoever has it, as of clients that are slow themselves.
    Lasting,
    /// A real server works on all of its at once, together as fast as its weight says.
    Shared,
}

/// What came out, of the requests that were measured.
struct Outcome {
    /// How long one took in the mean.
    delay: f64,
    /// How far the real servers' loads, their requests for each unit of weight, were apart, in the mean over time.
    spread: f64,
}

/// Requests come in so many that they have `intensity` for each unit of weight to do.
fn simulate(scheduler: &str, service: Service, intensity: f64, seed: u64) -> Outcome {
    let mut bench = Bench::new(scheduler, 0, &WEIGHTS);
    let mut random = Random(seed << 32);
    let interval = 1.0 / (intensity * f64::from(WEIGHTS.iter().sum::<u32>()));
    // What is left to do of each request, and when it came, by real server.
    let mut requests: [Vec<(f64, f64)>; WEIGHTS.len()] = Default::default();
    let mut outcome = Outcome { delay: 0.0, spread: 0.0 };
    let (mut now, mut began, mut arrivals, mut done) = (0.0, 0.0, 0, 0);
    let mut arrival = random.exponential(interval);
    while done < REQUESTS {
        let rate = |server: usize, active: usize| match service {
            Service::Lasting => 1.0,
            Service::Shared => f64::from(WEIGHTS[server]) / active as f64,
        };
        let ends = requests.iter().enumerate().filter_map(|(server, requests)| {
            let least = requests.iter().map(|(left, _)| *left).reduce(f64::min)?;
            Some((now + least / rate(server, requests.len()), server))
        });
        let end = ends.reduce(|first, other| if other.0 < first.0 { other } else { first });
        let next = end.map_or(arrival, |(end, _)| end.min(arrival));
        let measured = arrivals > REQUESTS;
        if measured {
            let loads =
                || requests.iter().zip(WEIGHTS).map(|(all, weight)| all.len() as f64 / f64::from(weight));
            let spread = loads().fold(0.0, f64::max) - loads().fold(f64::INFINITY, f64::min);
            outcome.spread += (next - now) * spread;
        }
        for (server, requests) in requests.iter_mut().enumerate() {
            let work = (next - now) * rate(server, requests.len());
            requests.iter_mut().for_each(|(left, _)| *left -= work);
        }
        now = next;
        if let Some((_, server)) = end.filter(|(end, _)| *end <= arrival) {
            let mine = &mut requests[server];
            let least = (0..mine.len()).min_by(|&a, &b| mine[a].0.total_cmp(&mine[b].0)).unwrap();
            let (_, came) = mine.swap_remove(least);
            bench.close(server as u32 + 1);
            if measured {
                outcome.delay += now - came;
                done += 1;
            }
        } else {
            let number = bench.open(&CLIENT);
            requests[number as usize - 1].push((random.work(), now));
            arrival = now + random.exponential(interval);
            arrivals += 1;
            if arrivals == REQUESTS + 1 {
                began = now;
            }
        }
    }
    outcome.delay /= done as f64;
    outcome.spread /= now - began;
    outcome
}

#[test]
fn wlc_keeps_loads_together_whatever_the_requests() {
    for seed in 1..=3 {
        // Twenty requests for each unit of weight; the lightest real server's count in whole units.
        let [wlc, wrr] = ["wlc", "wrr"].map(|name| simulate(name, Service::Lasting, 20.0, seed).spread);
        assert!(wlc < 1.0, "{seed}: {wlc}");
        assert!(wrr > 3.0, "{seed}: {wrr}, of one that goes by weight alone");
    }
}

#[test]
fn sed_gives_the_shortest_delay_where_real_servers_differ_and_have_time() {
    for seed in 1..=3 {
        for utilization in [0.3, 0.6] {
            let [sed, wlc, wrr] =
                ["sed", "wlc", "wrr"].map(|name| simulate(name, Service::Shared, utilization, seed).delay);
            assert!(
                sed < 0.97 * wlc,
                "{utilization} {seed}: {sed}, {wlc} with wlc, which likes slow idle ones"
            );
            assert!(sed < 0.6 * wrr, "{utilization} {seed}: {sed}, {wrr} by weight alone");
        }
    }
}
