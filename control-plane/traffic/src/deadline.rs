//! The overall deadline of a request: the policy's, or what the caller has left, whichever is sooner.
//!
//! It bounds everything until the response begins, except for the time that the client takes to send its body: that
//! is bounded by the idle timeout and added to the deadline. Afterwards a body may stream for as long as it makes progress:
//! a response without a byte for the idle timeout of the snapshot's limits is cut off.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::clock::nanos;
use crate::problem::{Cause, Problem};

/// Remaining milliseconds, from caller to callee. A span and not a point in time: clocks of two machines differ.
pub(crate) const HEADER: HeaderName = HeaderName::from_static("meshctl-deadline-ms");

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Deadline {
    /// Nanoseconds of [`crate::clock`].
    pub(crate) at: u64,
}

impl Deadline {
    pub(crate) fn new(policy: Duration, headers: &HeaderMap, now: u64) -> Self {
        let policy = nanos(policy);
        let carried = headers.get(&HEADER).and_then(|value| value.to_str().ok()?.trim().parse::<u64>().ok());
        let span = carried.map_or(policy, |ms| policy.min(ms.saturating_mul(1_000_000)));
        Self { at: now.saturating_add(span) }
    }

    pub(crate) fn left(self, now: u64) -> u64 {
        self.at.saturating_sub(now)
    }

    /// What the callee is told: whole milliseconds, rounded down, so that it gives up before we do.
    pub(crate) fn header(self, now: u64) -> HeaderValue {
        HeaderValue::from(self.left(now) / 1_000_000)
    }
}

/// The answer when it is over.
pub(crate) fn passed(doing: &str) -> Problem {
    Problem::new(Cause::DeadlineExceeded, format!("the deadline passed while {doing}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sooner_wins_and_nonsense_is_ignored() {
        let with = |text: &'static str| HeaderMap::from_iter([(HEADER, HeaderValue::from_static(text))]);
        let two = Duration::from_secs(2);
        assert_eq!(Deadline::new(two, &with("150"), 7).at, 150_000_007);
        assert_eq!(Deadline::new(two, &with("9000"), 0).at, 2_000_000_000);
        assert_eq!(Deadline::new(two, &with("-1"), 0).at, 2_000_000_000);
        assert_eq!(Deadline::new(two, &with("soon"), 0).at, 2_000_000_000);
        assert_eq!(Deadline::new(two, &with("0"), 5).left(5), 0);
        assert_eq!(Deadline::new(two, &HeaderMap::new(), 0).header(500_000_001), "1499");
    }
}
