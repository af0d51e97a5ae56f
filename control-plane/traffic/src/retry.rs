//! When a failed attempt is made again: only what can be repeated, only within the edge's budget, only if there is time.

use std::time::Duration;

use http::{HeaderMap, HeaderName, Method};
use meshctl_model::policy::{RETRIES_ALWAYS_ALLOWED_PER_S, RetryPolicy};
use meshctl_model::topology::{RetryFailure, RetryOn};

use crate::clock::nanos;
use crate::window::Window;

const BACKOFF_BASE: Duration = Duration::from_millis(25);
const BACKOFF_CAP: Duration = Duration::from_millis(250);
const BUDGET_WINDOW: Duration = Duration::from_secs(10);

/// Whether sending it twice does no more than sending it once.
pub(crate) fn repeatable(method: &Method, headers: &HeaderMap, idempotency_key: Option<&HeaderName>) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE)
        || idempotency_key.is_some_and(|name| headers.contains_key(name))
}

pub(crate) fn wanted_after_failure(policy: &RetryPolicy, failure: RetryFailure) -> bool {
    policy.on.contains(&RetryOn::Failure(failure))
}

pub(crate) fn wanted_after_status(policy: &RetryPolicy, status: http::StatusCode) -> bool {
    policy.on.contains(&RetryOn::Status(status.as_u16()))
}

/// Before retry number `retry` (from 1): somewhere between half and all of 25 ms, doubled each time up to 250 ms.
/// `chance` is uniform over all values.
pub(crate) fn backoff(retry: u32, chance: u64) -> Duration {
    let whole = BACKOFF_BASE.saturating_mul(1 << (retry.saturating_sub(1)).min(8)).min(BACKOFF_CAP);
    whole.mul_f64(0.5 + 0.5 * (chance >> 11) as f64 / (1u64 << 53) as f64)
}

/// `Retry-After` in seconds. The form with a date is left to the client: a date that is near enough to wait for within
/// a deadline cannot be told from clock skew.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(http::header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

/// Retries of one edge as a share of its requests, beside a trickle that is always allowed.
#[derive(Debug, Default)]
pub(crate) struct Budget(Window);

impl Budget {
    pub(crate) fn request(&self, now: u64) {
        self.0.add(false, now, nanos(BUDGET_WINDOW));
    }

    /// Takes one retry, if there is one left.
    pub(crate) fn take(&self, policy: &RetryPolicy, now: u64) -> bool {
        let sums = self.0.sums(now, nanos(BUDGET_WINDOW));
        let allowed = policy.budget.0 * sums.first as f64 + RETRIES_ALWAYS_ALLOWED_PER_S * BUDGET_WINDOW.as_secs_f64();
        let within = (sums.second as f64) < allowed.floor();
        if within {
            self.0.add_second(now, nanos(BUDGET_WINDOW));
        }
        within
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_can_be_repeated() {
        let (none, key) = (HeaderMap::new(), HeaderName::from_static("idempotency-key"));
        assert!(repeatable(&Method::GET, &none, None));
        assert!(repeatable(&Method::PUT, &none, None));
        assert!(!repeatable(&Method::POST, &none, Some(&key)));
        assert!(!repeatable(&Method::PATCH, &none, None));
        let keyed = HeaderMap::from_iter([(key.clone(), http::HeaderValue::from_static("7"))]);
        assert!(repeatable(&Method::POST, &keyed, Some(&key)));
        assert!(!repeatable(&Method::POST, &keyed, None), "the route did not promise that the key means anything");
    }

    proptest! {
        #[test]
        fn backoff_stays_within_its_bounds(retry in 1u32..100, chance: u64) {
            let pause = backoff(retry, chance);
            prop_assert!(pause >= BACKOFF_BASE / 2 && pause <= BACKOFF_CAP);
        }

        /// However requests and failures come, retries stay at the share plus the trickle.
        #[test]
        fn budget_bounds_amplification(steps in prop::collection::vec((0u64..20_000_000, any::<bool>()), 1..3_000)) {
            let (budget, policy) = (Budget::default(), meshctl_model::policy::Policy::default().retry);
            let (mut now, mut requests, mut retries) = (1_000_000_000, 0f64, 0f64);
            for (step, request) in steps {
                now += step;
                if request {
                    budget.request(now);
                    requests += 1.0;
                } else if budget.take(&policy, now) {
                    retries += 1.0;
                }
                let windows = (now as f64 / 1e10).ceil() + 1.0;
                prop_assert!(retries <= 0.2 * requests + 100.0 * windows);
            }
        }
    }
}
