//! Two counts over a sliding stretch of time, without locks: ten buckets, each one word that holds the tick it belongs
//! to and both counts. A bucket of an older tick counts as empty, so nothing has to sweep.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

const BUCKETS: u64 = 10;
const COUNT_BITS: u32 = 22;
const COUNT: u64 = (1 << COUNT_BITS) - 1;
const TICK: u64 = (1 << (64 - 2 * COUNT_BITS)) - 1;
/// A full bucket stops counting this far below its limit: threads that add at the same time stay within their bits.
const FULL: u64 = COUNT - 4096;

#[derive(Debug, Default)]
pub(crate) struct Window([AtomicU64; BUCKETS as usize]);

/// How much of each kind the window holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sums {
    pub(crate) first: u64,
    pub(crate) second: u64,
}

impl Window {
    /// Adds one to the first count and, if `both`, to the second one. `now` and `length` in nanoseconds.
    pub(crate) fn add(&self, both: bool, now: u64, length: u64) {
        self.bump(1 | if both { 1 << COUNT_BITS } else { 0 }, now, length);
    }

    /// Adds one to the second count alone.
    pub(crate) fn add_second(&self, now: u64, length: u64) {
        self.bump(1 << COUNT_BITS, now, length);
    }

    fn bump(&self, add: u64, now: u64, length: u64) {
        let tick = now / (length / BUCKETS).max(1);
        let bucket = &self.0[(tick % BUCKETS) as usize];
        let tick = tick & TICK;
        let mut seen = bucket.load(Relaxed);
        loop {
            if seen >> (2 * COUNT_BITS) == tick {
                if seen & COUNT < FULL && (seen >> COUNT_BITS) & COUNT < FULL {
                    bucket.fetch_add(add, Relaxed);
                }
                return;
            }
            match bucket.compare_exchange_weak(seen, tick << (2 * COUNT_BITS) | add, Relaxed, Relaxed) {
                Ok(_) => return,
                Err(other) => seen = other,
            }
        }
    }

    pub(crate) fn sums(&self, now: u64, length: u64) -> Sums {
        let tick = now / (length / BUCKETS).max(1);
        self.0.iter().map(|bucket| bucket.load(Relaxed)).fold(Sums::default(), |sums, word| {
            // The age of the bucket in ticks, around the end of the tick's bits too.
            if (tick & TICK).wrapping_sub(word >> (2 * COUNT_BITS)) & TICK < BUCKETS {
                Sums { first: sums.first + (word & COUNT), second: sums.second + ((word >> COUNT_BITS) & COUNT) }
            } else {
                sums
            }
        })
    }

    pub(crate) fn clear(&self) {
        self.0.iter().for_each(|bucket| bucket.store(0, Relaxed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    #[test]
    fn counts_slide_out() {
        let window = Window::default();
        for second in 100..105 {
            window.add(second % 2 == 0, second * S, 10 * S);
        }
        assert_eq!(window.sums(105 * S, 10 * S), Sums { first: 5, second: 3 });
        assert_eq!(window.sums(112 * S, 10 * S), Sums { first: 2, second: 1 });
        assert_eq!(window.sums(200 * S, 10 * S), Sums::default());
    }

    #[test]
    fn concurrent_adds_are_all_counted() {
        let window = Window::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..10_000).for_each(|_| window.add(true, 100 * S, 10 * S)));
            }
        });
        assert_eq!(window.sums(100 * S, 10 * S), Sums { first: 40_000, second: 40_000 });
    }
}
