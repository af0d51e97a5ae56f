//! Policy with every gap filled: what an edge really does.

use serde::{Deserialize, Serialize};

use crate::topology::{Breaker, Bulkhead, EdgePolicy, Fallback, Retry, RetryFailure, RetryOn};
use crate::units::{Percent, Span};

/// The policy in force on an edge or route. Durations are milliseconds in JSON text form (`150ms`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Policy {
    pub deadline: Span,
    pub attempt_timeout: Span,
    pub retry: RetryPolicy,
    pub breaker: BreakerPolicy,
    pub bulkhead: BulkheadPolicy,
    pub fallback: Option<Fallback>,
    /// Whether a request waits for an instance that is on its way, for as long as its deadline lets it. A courier's does not:
    /// it has to know at once that nobody has seen the message, and knows itself how to wait.
    #[serde(default = "yes", skip_serializing_if = "Clone::clone")]
    pub waits: bool,
}

const fn yes() -> bool {
    true
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RetryPolicy {
    /// Attempts after the first.
    pub attempts: u32,
    pub on: Vec<RetryOn>,
    /// Retries as a share of requests, beside [`RETRIES_ALWAYS_ALLOWED_PER_S`].
    pub budget: Percent,
}

/// A quiet edge may always retry this often (the default of Linkerd's retry budget), or its budget would round to nothing.
pub const RETRIES_ALWAYS_ALLOWED_PER_S: f64 = 10.0;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BreakerPolicy {
    pub failure_ratio: Percent,
    pub minimum_requests: u32,
    pub window: Span,
    pub open_for: Span,
    pub probes: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BulkheadPolicy {
    pub concurrency: u32,
    pub queue: u32,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            deadline: Span::from_secs(2),
            attempt_timeout: Span::from_millis(500),
            retry: RetryPolicy {
                attempts: 2,
                on: vec![
                    RetryOn::Failure(RetryFailure::ConnectFailure),
                    RetryOn::Failure(RetryFailure::Reset),
                    RetryOn::Failure(RetryFailure::Timeout),
                    RetryOn::Status(502),
                    RetryOn::Status(503),
                    RetryOn::Status(504),
                ],
                budget: Percent(0.2),
            },
            breaker: BreakerPolicy {
                failure_ratio: Percent(0.5),
                minimum_requests: 20,
                window: Span::from_secs(10),
                open_for: Span::from_secs(5),
                probes: 3,
            },
            bulkhead: BulkheadPolicy { concurrency: 1024, queue: 256 },
            fallback: None,
            waits: true,
        }
    }
}

impl Policy {
    /// meshctl's own defaults with `layers` laid over them, the last one on top.
    ///
    /// A deadline shorter than the attempt timeout shortens the attempt with it.
    pub fn resolve(layers: &[&EdgePolicy]) -> Self {
        let mut policy = layers.iter().fold(Self::default(), |policy, layer| policy.overlaid(layer));
        policy.attempt_timeout = policy.attempt_timeout.min(policy.deadline);
        policy
    }

    fn overlaid(mut self, over: &EdgePolicy) -> Self {
        let set = |into: &mut Span, from: Option<Span>| {
            if let Some(value) = from {
                *into = value;
            }
        };
        set(&mut self.deadline, over.deadline);
        set(&mut self.attempt_timeout, over.attempt_timeout);
        if let Some(Retry { attempts, on, budget }) = &over.retry {
            self.retry.attempts = attempts.unwrap_or(self.retry.attempts);
            self.retry.on = on.clone().unwrap_or(self.retry.on);
            self.retry.budget = budget.unwrap_or(self.retry.budget);
        }
        if let Some(Breaker { failure_ratio, minimum_requests, window, open_for, probes }) = &over.breaker {
            self.breaker.failure_ratio = failure_ratio.unwrap_or(self.breaker.failure_ratio);
            self.breaker.minimum_requests = minimum_requests.unwrap_or(self.breaker.minimum_requests);
            set(&mut self.breaker.window, *window);
            set(&mut self.breaker.open_for, *open_for);
            self.breaker.probes = probes.unwrap_or(self.breaker.probes);
        }
        if let Some(Bulkhead { concurrency, queue }) = &over.bulkhead {
            self.bulkhead.concurrency = concurrency.unwrap_or(self.bulkhead.concurrency);
            self.bulkhead.queue = queue.unwrap_or(self.bulkhead.queue);
        }
        if over.fallback.is_some() {
            self.fallback.clone_from(&over.fallback);
        }
        self
    }
}
