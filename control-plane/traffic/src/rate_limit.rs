//! Rate limits by the generic cell rate algorithm: one number per key, the time at which its allowance is whole again.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use meshctl_model::topology::{RateLimit, RateLimitKey};
use parking_lot::Mutex;

/// How many values of a header are told apart at once. Beyond it, values that were not seen for longest are forgotten:
/// they get a fresh allowance, which errs on the side of letting requests pass.
const KEYS: usize = 65_536;
const SHARDS: usize = 16;

/// Nanoseconds between requests, and how far ahead of them the arrival time may run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Pace {
    interval: u64,
    tolerance: u64,
}

impl Pace {
    pub(crate) fn of(limit: &RateLimit) -> Self {
        Self::new(limit.rate.0, limit.burst.map_or(limit.rate.0.max(1.0), f64::from))
    }

    /// So many in a second, and `burst` at once.
    pub(crate) fn new(rate: f64, burst: f64) -> Self {
        let interval = (1e9 / rate).max(1.0) as u64;
        Self { interval, tolerance: ((burst - 1.0).max(0.0) * interval as f64) as u64 }
    }

    /// Takes one of what `whole_at` stands for.
    ///
    /// # Errors
    /// How long to wait, in nanoseconds.
    pub(crate) fn admit(self, whole_at: &AtomicU64, now: u64) -> Result<(), u64> {
        let mut seen = whole_at.load(Relaxed);
        loop {
            let next = self.take(seen, now)?;
            match whole_at.compare_exchange_weak(seen, next, Relaxed, Relaxed) {
                Ok(_) => return Ok(()),
                Err(other) => seen = other,
            }
        }
    }

    /// The decision itself: the key's new number, or how long to wait.
    fn take(self, whole_at: u64, now: u64) -> Result<u64, u64> {
        let whole_at = whole_at.max(now);
        match (whole_at - now).checked_sub(self.tolerance) {
            None | Some(0) => Ok(whole_at.saturating_add(self.interval)),
            Some(wait) => Err(wait),
        }
    }
}

#[derive(Debug)]
pub(crate) struct Limiter {
    header: Option<http::HeaderName>,
    together: AtomicU64,
    hasher: RandomState,
    keyed: [Mutex<HashMap<u64, u64>>; SHARDS],
}

impl Limiter {
    pub(crate) fn new(limit: &RateLimit) -> Self {
        let header = limit.per.as_ref().and_then(|RateLimitKey::Header(name)| name.to_ascii_lowercase().parse().ok());
        Self { header, together: AtomicU64::new(0), hasher: RandomState::new(), keyed: Default::default() }
    }

    /// # Errors
    /// How long to wait, in nanoseconds.
    pub(crate) fn admit(&self, pace: Pace, headers: &http::HeaderMap, now: u64) -> Result<(), u64> {
        match &self.header {
            None => pace.admit(&self.together, now),
            Some(header) => {
                let value = headers.get(header).map_or(&b""[..], http::HeaderValue::as_bytes);
                self.admit_key(pace, self.hasher.hash_one(value), now)
            }
        }
    }

    fn admit_key(&self, pace: Pace, key: u64, now: u64) -> Result<(), u64> {
        let mut shard = self.keyed[key as usize % SHARDS].lock();
        let next = pace.take(shard.get(&key).copied().unwrap_or(0), now)?;
        if shard.len() >= KEYS / SHARDS && !shard.contains_key(&key) {
            shard.retain(|_, whole_at| *whole_at > now);
            if shard.len() >= KEYS / SHARDS {
                let mut ages: Vec<u64> = shard.values().copied().collect();
                let middle = ages.len() / 2;
                let (_, median, _) = ages.select_nth_unstable(middle);
                let median = *median;
                shard.retain(|_, whole_at| *whole_at > median);
            }
        }
        shard.insert(key, next);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use meshctl_model::units::Rate;
    use proptest::prelude::*;

    use super::*;

    fn limit(rate: f64, burst: Option<u32>, per: Option<&str>) -> RateLimit {
        RateLimit { rate: Rate(rate), burst, per: per.map(|name| RateLimitKey::Header(name.into())) }
    }

    #[test]
    fn burst_then_pace() {
        let limit = limit(10.0, Some(3), None);
        let (limiter, pace, none) = (Limiter::new(&limit), Pace::of(&limit), http::HeaderMap::new());
        let at = 1_000_000_000;
        assert_eq!((0..5).filter(|_| limiter.admit(pace, &none, at).is_ok()).count(), 3);
        assert_eq!(limiter.admit(pace, &none, at), Err(100_000_000));
        assert!(limiter.admit(pace, &none, at + 100_000_000).is_ok());
        assert!(limiter.admit(pace, &none, at + 100_000_000).is_err());
    }

    #[test]
    fn keys_are_counted_apart_and_bounded() {
        let limit = limit(1.0, Some(1), Some("X-Api-Key"));
        let (limiter, pace) = (Limiter::new(&limit), Pace::of(&limit));
        let key = |n: u32| http::HeaderMap::from_iter([(http::HeaderName::from_static("x-api-key"), n.into())]);
        for n in 0..200_000 {
            assert!(limiter.admit(pace, &key(n), 1_000_000_000 + u64::from(n)).is_ok(), "{n}");
        }
        assert!(limiter.admit(pace, &key(199_999), 1_000_500_000).is_err());
        assert!(limiter.keyed.iter().map(|shard| shard.lock().len()).sum::<usize>() <= KEYS);
    }

    proptest! {
        /// In any stretch of time, no more than the burst and what the rate adds.
        #[test]
        fn never_more_than_rate_and_burst(rate in 1u32..1_000, burst in 1u32..50, steps in prop::collection::vec(0u64..50_000_000, 1..400)) {
            let limit = limit(f64::from(rate), Some(burst), None);
            let (limiter, pace, none) = (Limiter::new(&limit), Pace::of(&limit), http::HeaderMap::new());
            let start = 1_000_000_000;
            let (mut now, mut passed) = (start, 0f64);
            for step in steps {
                now += step;
                passed += if limiter.admit(pace, &none, now).is_ok() { 1.0 } else { 0.0 };
                let allowed = f64::from(burst) + (now - start) as f64 / 1e9 * f64::from(rate);
                prop_assert!(passed <= allowed + 1.0, "{passed} of {allowed}");
            }
        }
    }
}
