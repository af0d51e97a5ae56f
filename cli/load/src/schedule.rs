//! When each request is to be sent: fixed before the first one is, whatever the answers do.
//!
//! The users of an open loop are independent Poisson clocks, one for each connection. Their superposition is again a Poisson
//! process, whose arrivals fall on the connections uniformly at random: so each thread keeps one clock at the rate of all its
//! connections, which is the same thing and costs one number instead of thousands.
//!
//! A ramp is the same process in stretched time: arrivals of unit rate are mapped through the inverse of the cumulative rate,
//! which is a parabola while the rate grows and a straight line after.

use std::time::Duration;

use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

use crate::plan::{Arrivals, Plan};

/// One request that is due.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Arrival {
    /// Nanoseconds since the schedule began.
    pub at: u64,
    /// Its number in the whole run, from 1.
    pub n: u64,
    /// Which of the plan's requests.
    pub template: u16,
}

/// The arrivals of one thread, without end.
#[derive(Clone, Debug)]
pub struct Schedule {
    random: Xoshiro256PlusPlus,
    /// Of the templates, each with those before it, scaled to end at 1.
    cumulative: Vec<f64>,
    /// In a nanosecond, at the full rate; 0 in a closed loop.
    rate: f64,
    ramp: f64,
    /// Arrivals so far in the time of the unit process.
    units: f64,
    next_n: u64,
    stride: u64,
}

impl Schedule {
    /// Of thread `thread` out of `plan.threads`.
    pub fn of_thread(plan: &Plan, thread: usize) -> Self {
        let total: f64 = plan.requests.iter().map(|template| template.weight).sum();
        let mut sum = 0.0;
        let cumulative = plan.requests.iter().map(|template| {
            sum += template.weight / total;
            sum
        });
        let rate = match plan.arrivals {
            Arrivals::Open { per_second } => {
                per_second * 1e-9 * f64::from(connections_of_thread(plan, thread)) / f64::from(plan.connections)
            }
            Arrivals::Closed => 0.0,
        };
        Self {
            random: random(plan.seed, thread as u64),
            cumulative: cumulative.collect(),
            rate,
            ramp: plan.ramp.as_nanos() as f64,
            units: 0.0,
            next_n: thread as u64 + 1,
            stride: plan.threads as u64,
        }
    }

    /// The next request of an open loop.
    pub fn next_arrival(&mut self) -> Arrival {
        // The logarithm of what is left of 1 is finite, as the draw is below 1.
        self.units -= (1.0 - self.random.random::<f64>()).ln();
        let while_ramping = self.rate * self.ramp / 2.0;
        let at = if self.units < while_ramping {
            (2.0 * self.ramp * self.units / self.rate).sqrt()
        } else {
            self.ramp / 2.0 + self.units / self.rate
        };
        self.request_at(at as u64)
    }

    /// The next request where somebody else decides when: the answer before it, in a closed loop.
    pub fn request_at(&mut self, at: u64) -> Arrival {
        let n = self.next_n;
        self.next_n += self.stride;
        let last = self.cumulative.len() - 1;
        let template = match last {
            0 => 0,
            _ => {
                let draw: f64 = self.random.random();
                self.cumulative.iter().position(|&sum| draw < sum).unwrap_or(last)
            }
        };
        Arrival { at, n, template: template as u16 }
    }
}

/// How many connections thread `thread` holds: as equal as can be.
pub fn connections_of_thread(plan: &Plan, thread: usize) -> u32 {
    let threads = plan.threads as u32;
    plan.connections / threads + u32::from((thread as u32) < plan.connections % threads)
}

/// A stream of random numbers that the same `seed` and `stream` always give. Streams are apart even for seeds 1, 2, 3.
pub(crate) fn random(seed: u64, stream: u64) -> Xoshiro256PlusPlus {
    Xoshiro256PlusPlus::seed_from_u64(seed.wrapping_add(stream.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
}

/// The measured time, in nanoseconds since the schedule began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    pub from: u64,
    pub to: u64,
}

impl Window {
    pub fn of(plan: &Plan) -> Self {
        let from = nanos(plan.ramp + plan.warm_up);
        Self { from, to: from + nanos(plan.duration) }
    }

    pub fn contains(self, at: u64) -> bool {
        (self.from..self.to).contains(&at)
    }

    /// How much of the time between `from` and `to` lies within.
    pub fn overlap(self, from: u64, to: u64) -> u64 {
        to.min(self.to).saturating_sub(from.max(self.from))
    }
}

/// Runs of centuries are not planned.
pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX / 4)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Template;

    fn plan(seed: u64) -> Plan {
        let template = |weight| Template { weight, ..Template::default() };
        Plan {
            address: ([127, 0, 0, 1], 1).into(),
            host: "test".into(),
            requests: vec![template(3.0), template(1.0)],
            arrivals: Arrivals::Open { per_second: 10_000.0 },
            connections: 11,
            duration: Duration::from_secs(10),
            ramp: Duration::from_secs(2),
            warm_up: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            threads: 2,
            seed,
        }
    }

    fn first(seed: u64, thread: usize) -> Vec<Arrival> {
        let mut schedule = Schedule::of_thread(&plan(seed), thread);
        (0..100_000).map(|_| schedule.next_arrival()).collect()
    }

    #[test]
    fn a_seed_gives_the_same_schedule_and_another_seed_or_thread_another() {
        assert_eq!(first(7, 0), first(7, 0));
        assert_ne!(first(7, 0)[..10], first(8, 0)[..10]);
        assert_ne!(first(7, 0)[0].at, first(7, 1)[0].at);
    }

    #[test]
    fn the_ramp_sends_half_as_many_and_the_rest_comes_at_the_full_rate() {
        // 6 of the 11 connections, so 6/11 of the rate.
        let rate = 10_000.0 * 6.0 / 11.0;
        let arrivals = first(7, 0);
        let within = |from: f64, to: f64| {
            arrivals.iter().filter(|a| a.at as f64 >= from * 1e9 && (a.at as f64) < to * 1e9).count() as f64
        };
        // Counts of a Poisson process lie within five standard deviations, their square roots.
        for (from, to, expected) in [(0.0, 1.0, rate * 0.25), (1.0, 2.0, rate * 0.75), (2.0, 12.0, rate * 10.0)] {
            let found = within(from, to);
            assert!((found - expected).abs() < 5.0 * expected.sqrt(), "{from}..{to}: {found}, expected {expected}");
        }
        assert!(arrivals.is_sorted_by_key(|a| a.at));
    }

    #[test]
    fn gaps_are_exponential() {
        let mut plan = plan(1);
        plan.ramp = Duration::ZERO;
        let mut schedule = Schedule::of_thread(&plan, 0);
        let mean = 11.0 / 6.0 * 1e5;
        let mut last = 0;
        let mut longer = 0;
        for _ in 0..100_000 {
            let at = schedule.next_arrival().at;
            longer += u32::from((at - last) as f64 > mean * 2.0);
            last = at;
        }
        // e^-2 of them are longer than two means.
        assert!((f64::from(longer) / 1e5 - (-2.0f64).exp()).abs() < 0.006, "{longer}");
    }

    #[test]
    fn numbers_are_unique_over_threads_and_weights_are_followed() {
        let (one, two) = (first(3, 0), first(3, 1));
        assert_eq!((one[0].n, two[0].n, one[1].n, two[1].n), (1, 2, 3, 4));
        let heavy = one.iter().filter(|a| a.template == 0).count() as f64 / one.len() as f64;
        assert!((heavy - 0.75).abs() < 0.01, "{heavy}");
    }

    #[test]
    fn connections_are_divided_without_loss() {
        let plan = plan(0);
        assert_eq!((connections_of_thread(&plan, 0), connections_of_thread(&plan, 1)), (6, 5));
    }

    #[test]
    fn overlap_clips_at_both_ends() {
        let window = Window { from: 10, to: 20 };
        assert_eq!(
            [window.overlap(0, 5), window.overlap(5, 15), window.overlap(15, 30), window.overlap(0, 99)],
            [0, 5, 5, 10]
        );
    }
}
