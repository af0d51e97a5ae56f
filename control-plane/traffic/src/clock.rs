//! Monotonic time as a plain number: atomics can hold it, and pure cores can be given any.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Nanoseconds since this process first asked, plus one second, so that zero can mean "never".
pub(crate) fn now() -> u64 {
    nanos(START.elapsed()) + 1_000_000_000
}

pub(crate) fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

/// What the time of day was, or will be, at `at` (of [`now`]).
pub(crate) fn time(at: u64) -> jiff::Timestamp {
    let since = i64::try_from(at).unwrap_or(i64::MAX).saturating_sub(i64::try_from(now()).unwrap_or(i64::MAX));
    jiff::Timestamp::now().saturating_add(jiff::SignedDuration::from_nanos(since)).unwrap_or(jiff::Timestamp::MAX)
}

/// `at` (of [`now`]) as the clock of timers understands it.
pub(crate) fn instant(at: u64) -> tokio::time::Instant {
    (*START + Duration::from_nanos(at.saturating_sub(1_000_000_000))).into()
}
