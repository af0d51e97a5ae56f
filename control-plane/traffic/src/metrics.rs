//! Rate, errors and duration per route and per edge, and the gateway's own vital signs.
//!
//! Every worker thread counts in a shard of its own, so counting is a plain addition to a cache line that nobody else
//! writes; readers add the shards up.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Duration buckets: four for each doubling, from 65 µs to 68 s.
const BUCKETS: usize = 84;
const FIRST_POWER: u32 = 16;
const PER_POWER: u64 = 4;

pub(crate) const CLASSES: [&str; 6] = ["1xx", "2xx", "3xx", "4xx", "5xx", "cancelled"];

/// Rate, errors, duration of one route or edge on one thread.
#[repr(align(64))]
#[derive(Debug)]
pub(crate) struct Red {
    pub(crate) classes: [AtomicU64; 6],
    pub(crate) failures: AtomicU64,
    pub(crate) retries: AtomicU64,
    pub(crate) fallbacks: AtomicU64,
    nanos: AtomicU64,
    buckets: [AtomicU64; BUCKETS],
}

impl Default for Red {
    fn default() -> Self {
        Self {
            classes: Default::default(),
            failures: AtomicU64::new(0),
            retries: AtomicU64::new(0),
            fallbacks: AtomicU64::new(0),
            nanos: AtomicU64::new(0),
            buckets: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }
}

/// Adds to a counter that only this thread writes.
#[inline]
pub(crate) fn count(counter: &AtomicU64, add: u64) {
    counter.store(counter.load(Relaxed).wrapping_add(add), Relaxed);
}

fn bucket_of(nanos: u64) -> usize {
    let nanos = nanos.max(1 << FIRST_POWER);
    let power = 63 - nanos.leading_zeros();
    let within = (nanos >> (power - 2)) & (PER_POWER - 1);
    ((u64::from(power - FIRST_POWER) * PER_POWER + within) as usize).min(BUCKETS - 1)
}

/// Where a bucket ends, in nanoseconds.
fn end_of(bucket: usize) -> u64 {
    let (power, within) = (bucket as u64 / PER_POWER + u64::from(FIRST_POWER), bucket as u64 % PER_POWER);
    (1 << power) + (within + 1) * (1 << (power - 2))
}

impl Red {
    /// `status` of `None`: the client went away before there was one.
    pub(crate) fn request(&self, status: Option<http::StatusCode>, nanos: u64) {
        let class = status.map_or(5, |status| usize::from(status.as_u16() / 100).clamp(1, 5) - 1);
        count(&self.classes[class], 1);
        count(&self.nanos, nanos);
        count(&self.buckets[bucket_of(nanos)], 1);
    }
}

/// The shards of one route or edge, added up.
#[derive(Clone, Debug)]
pub(crate) struct Totals {
    pub(crate) classes: [u64; 6],
    pub(crate) failures: u64,
    pub(crate) retries: u64,
    pub(crate) fallbacks: u64,
    pub(crate) nanos: u64,
    buckets: [u64; BUCKETS],
}

impl Totals {
    pub(crate) fn of(shards: &[Red]) -> Self {
        let sum = |pick: &dyn Fn(&Red) -> &AtomicU64| shards.iter().map(|shard| pick(shard).load(Relaxed)).sum();
        Self {
            classes: std::array::from_fn(|at| sum(&|red| &red.classes[at])),
            failures: sum(&|red| &red.failures),
            retries: sum(&|red| &red.retries),
            fallbacks: sum(&|red| &red.fallbacks),
            nanos: sum(&|red| &red.nanos),
            buckets: std::array::from_fn(|at| sum(&|red| &red.buckets[at])),
        }
    }

    pub(crate) fn requests(&self) -> u64 {
        self.classes.iter().sum()
    }

    /// The duration that `share` of the requests since `before` stayed within, in milliseconds; 0 if there were none.
    pub(crate) fn quantile_ms(&self, before: Option<&Self>, share: f64) -> f64 {
        let recent = |at: usize| self.buckets[at] - before.map_or(0, |before| before.buckets[at].min(self.buckets[at]));
        let count: u64 = (0..BUCKETS).map(recent).sum();
        let rank = (share * count as f64).ceil() as u64;
        let mut seen = 0;
        for at in (0..BUCKETS).filter(|_| count > 0) {
            seen += recent(at);
            if seen >= rank {
                return end_of(at) as f64 / 1e6;
            }
        }
        0.0
    }

    /// Cumulative counts with their upper bounds in seconds, one for each doubling.
    pub(crate) fn histogram(&self) -> impl Iterator<Item = (f64, u64)> + '_ {
        let mut seen = 0;
        self.buckets.chunks(PER_POWER as usize).enumerate().map(move |(power, chunk)| {
            seen += chunk.iter().sum::<u64>();
            ((1u64 << (power as u32 + FIRST_POWER + 1)) as f64 / 1e9, seen)
        })
    }
}

/// One worker's own vital signs.
#[repr(align(64))]
#[derive(Debug, Default)]
pub(crate) struct Vitals {
    pub(crate) connections: AtomicU64,
    pub(crate) accepted: AtomicU64,
    pub(crate) in_flight: AtomicU64,
    pub(crate) upstream_connections: AtomicU64,
    pub(crate) upstream_opened: AtomicU64,
    pub(crate) accept_errors: AtomicU64,
    pub(crate) spans_recorded: AtomicU64,
    pub(crate) spans_dropped: AtomicU64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_hold_what_they_say() {
        let mut last = 0;
        for nanos in (0..40).map(|power| 3u64.pow(power) / 2).filter(|nanos| *nanos < 60_000_000_000) {
            let bucket = bucket_of(nanos);
            assert!(nanos < end_of(bucket) && bucket >= last, "{nanos}");
            assert!(bucket == 0 || nanos >= end_of(bucket - 1), "{nanos}");
            last = bucket;
        }
    }

    #[test]
    fn quantiles_are_of_the_recent_ones() {
        let red = [Red::default(), Red::default()];
        (0..100).for_each(|_| red[0].request(Some(http::StatusCode::OK), 1_000_000));
        let before = Totals::of(&red);
        assert!((1.0..1.3).contains(&before.quantile_ms(None, 0.5)));
        (0..99).for_each(|_| red[1].request(Some(http::StatusCode::OK), 100_000_000));
        red[1].request(None, 1_000_000_000);
        let after = Totals::of(&red);
        assert!((100.0..126.0).contains(&after.quantile_ms(Some(&before), 0.5)));
        assert!((1000.0..1260.0).contains(&after.quantile_ms(Some(&before), 1.0)));
        assert_eq!((after.requests(), after.classes[1], after.classes[5]), (200, 199, 1));
        assert_eq!(after.histogram().last().map(|(_, count)| count), Some(200));
    }
}
