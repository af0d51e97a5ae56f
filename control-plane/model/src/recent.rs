//! What happened within the last seconds, in a form that can be added up over threads, gateways and edges: counts, and how
//! often a latency fell into each bucket. Percentiles are taken of the sum, because percentiles themselves cannot be added.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Buckets of durations: four for each doubling, from 65 µs to 137 s.
pub const BUCKETS: usize = 84;
const FIRST_POWER: u32 = 16;
pub const PER_DOUBLING: usize = 4;

/// The bucket that a duration falls into.
pub fn bucket_of(nanos: u64) -> usize {
    let nanos = nanos.max(1 << FIRST_POWER);
    let power = 63 - nanos.leading_zeros();
    let within = (nanos >> (power - 2)) & (PER_DOUBLING as u64 - 1);
    ((power - FIRST_POWER) as usize * PER_DOUBLING + within as usize).min(BUCKETS - 1)
}

/// Where a bucket ends, in nanoseconds.
pub fn end_of(bucket: usize) -> u64 {
    let (power, within) = ((bucket / PER_DOUBLING) as u32 + FIRST_POWER, (bucket % PER_DOUBLING) as u64);
    (1 << power) + (within + 1) * (1 << (power - 2))
}

/// How often a latency fell into each bucket; buckets without any are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Latencies(BTreeMap<u8, u64>);

impl Latencies {
    pub fn add(&mut self, bucket: usize, count: u64) {
        if count > 0 {
            *self.0.entry(bucket.min(BUCKETS - 1) as u8).or_default() += count;
        }
    }

    pub fn merge(&mut self, other: &Self) {
        other.0.iter().for_each(|(bucket, count)| self.add((*bucket).into(), *count));
    }

    pub fn count(&self) -> u64 {
        self.0.values().sum()
    }

    /// The latency, in milliseconds, that `share` of them stayed within; `None` where there are none. Within its bucket it is
    /// interpolated, so it may be off by up to a fourth of itself, and is so only where latencies lie unevenly.
    pub fn quantile_ms(&self, share: f64) -> Option<f64> {
        let rank = (share * self.count() as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (bucket, count) in &self.0 {
            if seen + count >= rank {
                let (end, bucket) = (end_of((*bucket).into()), usize::from(*bucket));
                let begin = if bucket == 0 { 0 } else { end_of(bucket - 1) };
                let within = (rank - seen) as f64 / *count as f64;
                return Some((begin as f64 + (end - begin) as f64 * within) / 1e6);
            }
            seen += count;
        }
        None
    }
}

/// What one gateway has seen of one route or edge within the last seconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Recent {
    /// How long that is: ten seconds, a little more for want of a finer look, or less where there is less to look back on.
    pub over_ms: u64,
    pub requests: u64,
    /// Answered 5xx, refused without a fallback, or given up by the caller.
    pub errors: u64,
    /// Refused by breaker, bulkhead or rate limit, whatever the caller got instead.
    pub refused: u64,
    /// Of those, by the breaker.
    pub refused_by_breaker: u64,
    /// Of the requests that reached an instance, and of no others.
    pub latencies: Latencies,
}

impl Recent {
    /// As so many in a second.
    pub fn per_s(&self, count: u64) -> f64 {
        if self.over_ms == 0 { 0.0 } else { count as f64 * 1000.0 / self.over_ms as f64 }
    }
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
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn a_percentile_is_of_the_sum() {
        let mut one = Latencies::default();
        assert_eq!(one.quantile_ms(0.5), None, "of nothing there is none");
        one.add(bucket_of(1_000_000), 99);
        let mut other = Latencies::default();
        other.add(bucket_of(100_000_000), 101);
        one.merge(&other);
        assert_eq!(one.count(), 200);
        let (median, last) = (one.quantile_ms(0.5).expect("some"), one.quantile_ms(0.99).expect("some"));
        assert!((75.0..126.0).contains(&median) && (75.0..126.0).contains(&last), "{median} {last}");
        assert!(one.quantile_ms(0.4).is_some_and(|ms| (0.8..1.26).contains(&ms)));
        let told = serde_json::to_string(&one).expect("written");
        assert_eq!(serde_json::from_str::<Latencies>(&told).expect("read"), one);
    }
}
