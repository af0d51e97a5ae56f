//! How many in the last ten seconds. Pure.

const SECONDS: i64 = 10;

/// One count for each of the last ten seconds, and the second they end with.
#[derive(Clone, Debug, Default)]
pub struct Rate {
    counts: [u64; SECONDS as usize],
    last: i64,
}

impl Rate {
    /// `now` in microseconds.
    pub fn add(&mut self, now: i64, count: u64) {
        self.advance(now);
        let at = usize::try_from(self.last.rem_euclid(SECONDS)).unwrap_or(0);
        if let Some(slot) = self.counts.get_mut(at) {
            *slot += count;
        }
    }

    pub fn per_second(&mut self, now: i64) -> f64 {
        self.advance(now);
        self.counts.iter().sum::<u64>() as f64 / SECONDS as f64
    }

    fn advance(&mut self, now: i64) {
        let second = now.div_euclid(1_000_000);
        for passed in (self.last.max(second - SECONDS) + 1)..=second {
            let at = usize::try_from(passed.rem_euclid(SECONDS)).unwrap_or(0);
            if let Some(slot) = self.counts.get_mut(at) {
                *slot = 0;
            }
        }
        self.last = self.last.max(second);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_forgets_after_ten_seconds() {
        let (mut rate, second) = (Rate::default(), 1_000_000);
        let start = 1_700_000_000 * second;
        rate.add(start, 30);
        rate.add(start + 4 * second, 20);
        assert!((rate.per_second(start + 9 * second) - 5.0).abs() < 1e-9);
        assert!((rate.per_second(start + 10 * second) - 2.0).abs() < 1e-9);
        assert!(rate.per_second(start + 100 * second).abs() < 1e-9);
    }
}
