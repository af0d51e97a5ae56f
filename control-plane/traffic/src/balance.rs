//! Which endpoint: the better of two chosen at random, by requests under way times recent latency.
//!
//! Two random choices are nearly as good as looking at all, cost the same for three endpoints and for ten thousand, and
//! do not herd: many gateways with the same stale view still spread.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What a choice looks at.
pub(crate) trait Candidate {
    fn in_flight(&self) -> u32;
    fn latency(&self) -> &Latency;
    /// Left out on this gateway's own observation.
    fn ejected(&self) -> bool;
}

/// The index of the endpoint to use; `None` only if there is none at all. `chance` is uniform over all values.
///
/// Ejected ones and those that this request has tried are left out for as long as others remain; when every one is
/// ejected all are used, because then it is more likely that we are wrong than that all are gone.
pub(crate) fn choose<C: Candidate>(
    candidates: &[C],
    tried: impl Fn(&C) -> bool,
    chance: u64,
    now: u64,
) -> Option<usize> {
    let count = candidates.len();
    if count <= 1 {
        return (count == 1).then_some(0);
    }
    let (first, second) = two_of(count, chance);
    let good = |at: usize| !candidates[at].ejected() && !tried(&candidates[at]);
    if good(first) && good(second) {
        return Some(better(candidates, first, second, now));
    }
    let classes: [&dyn Fn(&C) -> bool; 4] =
        [&|c| !c.ejected() && !tried(c), &|c| !c.ejected(), &|c| !tried(c), &|_| true];
    classes.iter().find_map(|class| {
        let members: Vec<usize> = (0..count).filter(|at| class(&candidates[*at])).collect();
        match members.len() {
            0 => None,
            1 => Some(members[0]),
            several => {
                let (first, second) = two_of(several, chance);
                Some(better(candidates, members[first], members[second], now))
            }
        }
    })
}

/// Two different indices below `count`, which is at least 2.
fn two_of(count: usize, chance: u64) -> (usize, usize) {
    let scale = |bits: u64, below: usize| ((bits * below as u64) >> 32) as usize;
    let first = scale(chance >> 32, count);
    let second = scale(chance & 0xffff_ffff, count - 1);
    (first, if second >= first { second + 1 } else { second })
}

fn better<C: Candidate>(candidates: &[C], first: usize, second: usize, now: u64) -> usize {
    let cost = |at: usize| (f64::from(candidates[at].in_flight()) + 1.0) * candidates[at].latency().estimate(now);
    if cost(second) < cost(first) { second } else { first }
}

/// Recent latency of one endpoint: a moving average that jumps up at once with a slow response and comes down slowly.
/// It fades when nothing is measured, so that an endpoint that was slow once is tried again.
#[derive(Debug, Default)]
pub(crate) struct Latency {
    /// Milliseconds as `f32` bits in the upper half, when (in milliseconds) in the lower one.
    word: AtomicU64,
}

/// After this long without a measurement, the average counts for a third.
const FADE_MS: f32 = 5_000.0;
/// Below this, differences are noise; it keeps the choice between idle endpoints even.
const FLOOR_MS: f32 = 0.5;

impl Latency {
    /// `took` and `now` in nanoseconds. Updates of threads that race may be lost: it is an estimate.
    pub(crate) fn record(&self, took: u64, now: u64) {
        let word = self.word.load(Relaxed);
        let before = f32::from_bits((word >> 32) as u32);
        let took = took as f32 / 1e6;
        let after = if took > before { before * 0.5 + took * 0.5 } else { before * 0.95 + took * 0.05 };
        self.word.store(u64::from(after.to_bits()) << 32 | (now / 1_000_000) & 0xffff_ffff, Relaxed);
    }

    /// As if nothing had been measured.
    pub(crate) fn forget(&self) {
        self.word.store(0, Relaxed);
    }

    fn estimate(&self, now: u64) -> f64 {
        let word = self.word.load(Relaxed);
        let average = f32::from_bits((word >> 32) as u32);
        if average <= FLOOR_MS {
            return FLOOR_MS.into();
        }
        let age = ((now / 1_000_000) as u32).wrapping_sub(word as u32);
        (average * (-(age as f32) / FADE_MS).exp()).max(FLOOR_MS).into()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Default)]
    struct Fake {
        in_flight: u32,
        latency: Latency,
        ejected: bool,
        tried: bool,
    }

    impl Candidate for Fake {
        fn in_flight(&self) -> u32 {
            self.in_flight
        }
        fn latency(&self) -> &Latency {
            &self.latency
        }
        fn ejected(&self) -> bool {
            self.ejected
        }
    }

    proptest! {
        #[test]
        fn two_are_different_and_in_range(count in 2usize..1_000, chance: u64) {
            let (first, second) = two_of(count, chance);
            prop_assert!(first != second && first < count && second < count);
        }

        #[test]
        fn good_ones_first(flags in prop::collection::vec((any::<bool>(), any::<bool>()), 1..12), chance: u64) {
            let all: Vec<Fake> = flags.iter().map(|(ejected, tried)| Fake { ejected: *ejected, tried: *tried, ..Fake::default() }).collect();
            let chosen = &all[choose(&all, |c| c.tried, chance, 0).expect("never nobody")];
            let exists = |class: &dyn Fn(&Fake) -> bool| all.iter().any(class);
            if exists(&|c| !c.ejected && !c.tried) {
                prop_assert!(!chosen.ejected && !chosen.tried);
            } else if exists(&|c| !c.ejected) {
                prop_assert!(!chosen.ejected);
            }
        }
    }

    #[test]
    fn load_evens_out() {
        let mut all: Vec<Fake> = (0..10).map(|_| Fake::default()).collect();
        let mut chance = 1u64;
        for _ in 0..10_000 {
            chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let at = choose(&all, |_| false, chance ^ chance >> 29, 0).expect("one");
            all[at].in_flight += 1;
        }
        assert!(all.iter().all(|c| (990..=1_010).contains(&c.in_flight)), "{all:?}");
    }

    #[test]
    fn a_slow_one_is_avoided_and_forgiven() {
        let all = [Fake::default(), Fake::default()];
        all[0].latency.record(400_000_000, 0);
        assert!((0..100u64).all(|n| choose(&all, |_| false, n << 58, 1_000_000) == Some(1)));
        let much_later = 120_000_000_000;
        assert!((0..100u64).any(|n| choose(&all, |_| false, n << 58, much_later) == Some(0)));
    }
}
