//! Rate, errors and duration per route and per edge, and the gateway's own vital signs.
//!
//! Every worker thread counts in a shard of its own, so counting is a plain addition to a cache line that nobody else
//! writes; readers add the shards up.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use meshctl_model::recent::{BUCKETS, PER_DOUBLING, Recent, bucket_of, end_of};

pub(crate) const CLASSES: [&str; 6] = ["1xx", "2xx", "3xx", "4xx", "5xx", "cancelled"];

/// Rate, errors, duration of one route or edge on one thread.
#[repr(align(64))]
#[derive(Debug)]
pub(crate) struct Red {
    pub(crate) classes: [AtomicU64; 6],
    pub(crate) failures: AtomicU64,
    pub(crate) retries: AtomicU64,
    pub(crate) fallbacks: AtomicU64,
    errors: AtomicU64,
    refused: AtomicU64,
    refused_by_breaker: AtomicU64,
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
            errors: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            refused_by_breaker: AtomicU64::new(0),
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

/// How a request ended.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Outcome {
    /// `None`: the client went away before there was one.
    pub(crate) status: Option<http::StatusCode>,
    /// In nanoseconds.
    pub(crate) took: u64,
    /// Whether it was sent to an instance: how long the others took says nothing about anybody.
    pub(crate) reached: bool,
    pub(crate) refused: Option<Refusal>,
    pub(crate) fallback: bool,
}

/// Why a request was not even tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    Breaker,
    /// Bulkhead or rate limit.
    Limit,
}

impl Red {
    pub(crate) fn request(&self, ended: &Outcome) {
        let class = ended.status.map_or(5, |status| usize::from(status.as_u16() / 100).clamp(1, 5) - 1);
        count(&self.classes[class], 1);
        if ended.reached {
            count(&self.nanos, ended.took);
            count(&self.buckets[bucket_of(ended.took)], 1);
        }
        if ended.fallback {
            count(&self.fallbacks, 1);
        }
        if class >= 4 || ended.refused.is_some() && !ended.fallback {
            count(&self.errors, 1);
        }
        if let Some(refusal) = ended.refused {
            count(&self.refused, 1);
            count(&self.refused_by_breaker, (refusal == Refusal::Breaker).into());
        }
    }
}

/// The shards of one route or edge, added up.
#[derive(Clone, Debug)]
pub(crate) struct Totals {
    pub(crate) classes: [u64; 6],
    pub(crate) failures: u64,
    pub(crate) retries: u64,
    pub(crate) fallbacks: u64,
    errors: u64,
    refused: u64,
    refused_by_breaker: u64,
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
            errors: sum(&|red| &red.errors),
            refused: sum(&|red| &red.refused),
            refused_by_breaker: sum(&|red| &red.refused_by_breaker),
            nanos: sum(&|red| &red.nanos),
            buckets: std::array::from_fn(|at| sum(&|red| &red.buckets[at])),
        }
    }

    pub(crate) fn requests(&self) -> u64 {
        self.classes.iter().sum()
    }

    /// Requests that reached an instance.
    pub(crate) fn reached(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Whether no request has ended between the two.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.classes == other.classes
    }

    /// What came after `before`, which was `over_ms` ago.
    pub(crate) fn since(&self, before: Option<&Self>, over_ms: u64) -> Recent {
        let recent = |of: &dyn Fn(&Self) -> u64| of(self).saturating_sub(before.map_or(0, of));
        let mut seen = Recent {
            over_ms,
            requests: recent(&Self::requests),
            errors: recent(&|totals| totals.errors),
            refused: recent(&|totals| totals.refused),
            refused_by_breaker: recent(&|totals| totals.refused_by_breaker),
            ..Recent::default()
        };
        for bucket in 0..BUCKETS {
            seen.latencies.add(bucket, recent(&|totals| totals.buckets[bucket]));
        }
        seen
    }

    /// Cumulative counts with their upper bounds in seconds, one for each doubling.
    pub(crate) fn histogram(&self) -> impl Iterator<Item = (f64, u64)> + '_ {
        let mut seen = 0;
        self.buckets.chunks(PER_DOUBLING).enumerate().map(move |(doubling, chunk)| {
            seen += chunk.iter().sum::<u64>();
            (end_of((doubling + 1) * PER_DOUBLING - 1) as f64 / 1e9, seen)
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
    fn only_what_reached_an_instance_has_a_latency() {
        let red = [Red::default(), Red::default()];
        let served = |took| Outcome { status: Some(http::StatusCode::OK), took, reached: true, ..Outcome::default() };
        (0..100).for_each(|_| red[0].request(&served(1_000_000)));
        let before = Totals::of(&red);
        (0..98).for_each(|_| red[1].request(&served(100_000_000)));
        red[1].request(&Outcome { status: None, ..served(1_000_000_000) });
        let refused = |refusal, status, fallback| Outcome {
            status: Some(status),
            took: 20_000,
            reached: false,
            refused: Some(refusal),
            fallback,
        };
        red[0].request(&refused(Refusal::Breaker, http::StatusCode::SERVICE_UNAVAILABLE, false));
        red[0].request(&refused(Refusal::Breaker, http::StatusCode::OK, true));
        red[1].request(&refused(Refusal::Limit, http::StatusCode::TOO_MANY_REQUESTS, false));
        let after = Totals::of(&red);
        assert_eq!((after.requests(), after.reached(), after.classes[1], after.classes[5]), (202, 199, 199, 1));
        assert_eq!(after.histogram().last().map(|(_, count)| count), Some(199));
        let recent = after.since(Some(&before), 10_000);
        assert_eq!((recent.requests, recent.latencies.count()), (102, 99));
        assert_eq!((recent.refused, recent.refused_by_breaker, recent.errors), (3, 2, 3));
        assert!(recent.latencies.quantile_ms(0.5).is_some_and(|ms| (75.0..126.0).contains(&ms)));
        assert!(recent.latencies.quantile_ms(1.0).is_some_and(|ms| (1000.0..1260.0).contains(&ms)));
    }
}
