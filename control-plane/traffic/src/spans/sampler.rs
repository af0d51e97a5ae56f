//! Which traces are sampled where they begin: so many in a second, by one number for all threads. Threads that find nothing
//! left, as nearly all do under load, only read it.

use std::sync::atomic::AtomicU64;

use meshctl_model::snapshot::Tracing;

use crate::rate_limit::Pace;

#[derive(Debug, Default)]
pub(crate) struct Sampler(AtomicU64);

/// What the snapshot wants.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sampling {
    /// `None`: no trace at all.
    pace: Option<Pace>,
    /// From here on a request is slow, in nanoseconds.
    pub(crate) slow: u64,
}

impl Sampling {
    pub(crate) fn of(tracing: &Tracing) -> Self {
        let rate = tracing.traces_per_s;
        // A second's worth at once, and one where that is less.
        let pace = (rate > 0.0).then(|| Pace::new(rate, rate.max(1.0)));
        Self { pace, slow: tracing.slow_ms.saturating_mul(1_000_000) }
    }
}

impl Sampler {
    /// Whether this trace is one of them.
    pub(crate) fn takes(&self, sampling: Sampling, now: u64) -> bool {
        sampling.pace.is_some_and(|pace| pace.admit(&self.0, now).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    fn taken(sampler: &Sampler, rate: f64, times: impl Iterator<Item = u64>) -> usize {
        let sampling = Sampling::of(&Tracing { traces_per_s: rate, slow_ms: 500 });
        times.filter(|now| sampler.takes(sampling, *now)).count()
    }

    #[test]
    fn so_many_in_a_second_however_many_there_are() {
        let sampler = Sampler::default();
        assert_eq!(taken(&sampler, 100.0, (0..10_000).map(|_| S)), 100, "the first second's at once");
        // 10 k/s for ten seconds.
        let later = taken(&sampler, 100.0, (1..=100_000).map(|n| S + n * S / 10_000));
        assert!((999..=1001).contains(&later), "{later}");
    }

    #[test]
    fn few_or_none() {
        assert_eq!(taken(&Sampler::default(), 0.0, 1..1000), 0);
        assert_eq!(taken(&Sampler::default(), -1.0, 1..1000), 0);
        assert_eq!(taken(&Sampler::default(), f64::NAN, 1..1000), 0);
        // One in ten seconds, and one to begin with.
        assert_eq!(taken(&Sampler::default(), 0.1, (1..=100).map(|second| second * S)), 10);
    }

    #[test]
    fn threads_share_it() {
        let sampler = Sampler::default();
        let sampling = Sampling::of(&Tracing { traces_per_s: 1000.0, slow_ms: 500 });
        let all = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..4).map(|_| scope.spawn(|| (0..5000).filter(|_| sampler.takes(sampling, S)).count())).collect();
            threads.into_iter().map(|thread| thread.join().expect("counted")).sum::<usize>()
        });
        assert_eq!(all, 1000);
    }
}
