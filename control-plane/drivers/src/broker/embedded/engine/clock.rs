//! The time by which messages are stamped and grow old. It does not go back, and does not jump with the system's clock: one
//! jump ahead would stop retention until the other clock is there again.

use std::time::Duration;

use jiff::Timestamp;
use rustix::time::{ClockId, clock_gettime};

pub(super) struct Clock {
    /// Microseconds since 1970 at which the machine booted, by the system's clock when this one was made.
    boot: i64,
}

impl Clock {
    /// Begins at the system's time, or at `newest`, the time of the newest message, if that is later.
    pub(super) fn behind(newest: i64) -> Self {
        let now = Timestamp::now().as_microsecond();
        if newest > now {
            let ahead = Duration::from_micros((newest - now).cast_unsigned());
            tracing::warn!(?ahead, "messages are from the future: the clock was set back; theirs is gone by");
        }
        Self { boot: now.max(newest) - since_boot() }
    }

    /// Microseconds since 1970.
    pub(super) fn now(&self) -> i64 {
        self.boot + since_boot()
    }
}

/// Time in which the machine slept counts.
fn since_boot() -> i64 {
    let time = clock_gettime(ClockId::Boottime);
    time.tv_sec * 1_000_000 + time.tv_nsec / 1_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_begins_behind_the_newest_message_and_goes_on() {
        let future = Timestamp::now().as_microsecond() + 3_600_000_000;
        let clock = Clock::behind(future);
        let first = clock.now();
        assert!(first >= future && clock.now() >= first);
        assert!(Clock::behind(0).now() < future);
    }
}
