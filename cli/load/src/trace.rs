//! A trace context for each request, so that every one of them can be looked up; but only a few are sampled, as a load test
//! must not flood the trace store. Those that fail or are slow are kept by the data plane whatever their flag says.

use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, make_rng};

use crate::schedule;

/// Sampled in a second, by all threads together.
const SAMPLED_PER_S: u64 = 20;
pub(crate) const LENGTH: usize = 55;

pub(crate) struct Traces {
    /// Not from the plan's seed: a second run of the same plan must not be taken for the first.
    random: Xoshiro256PlusPlus,
    every: u64,
    next_sampled: u64,
}

impl Traces {
    pub fn new(threads: usize) -> Self {
        let mut random: Xoshiro256PlusPlus = make_rng();
        let every = schedule::nanos(std::time::Duration::from_secs(1)) / SAMPLED_PER_S * threads as u64;
        Self { next_sampled: random.random_range(0..every), random, every }
    }

    /// The value of a `traceparent`, and the trace id in it, for a request that is sent at `now`.
    pub fn next(&mut self, now: u64) -> ([u8; LENGTH], u128) {
        let sampled = now >= self.next_sampled;
        if sampled {
            self.next_sampled = now + self.every;
        }
        let (trace, span) = (self.random.random::<u128>() | 1, self.random.random::<u64>() | 1);
        let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
        hex(&mut text[3..19], (trace >> 64) as u64);
        hex(&mut text[19..35], trace as u64);
        hex(&mut text[36..52], span);
        text[LENGTH - 1] = b'0' + u8::from(sampled);
        (text, trace)
    }
}

fn hex(to: &mut [u8], mut value: u64) {
    for digit in to.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(value & 15) as usize];
        value >>= 4;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_fresh_and_few_are_sampled() {
        let mut traces = Traces::new(2);
        let mut sampled = 0;
        let mut ids = std::collections::BTreeSet::new();
        // Ten seconds at a thousand in a second.
        for i in 0..10_000u64 {
            let (text, id) = traces.next(i * 1_000_000);
            let text = std::str::from_utf8(&text).expect("text");
            assert_eq!(text[..36], format!("00-{id:032x}-"));
            sampled += u32::from(text.ends_with("-01"));
            assert!(ids.insert(id));
        }
        // Half of twenty for each of ten seconds: this is one thread of two.
        assert!((99..=101).contains(&sampled), "{sampled}");
    }
}
