//! What was accepted and has not shown its effect yet. Each is asked for again after its `every`, or a tenth of the time that it
//! has taken so far where that is more: so a completion latency is at most a tenth (or one `every`) too long, and slow effects
//! are not asked for all the time.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

/// One effect that is waited for. Times in nanoseconds since the schedule began.
#[derive(Clone, Debug)]
pub(crate) struct Effect {
    pub intended: u64,
    pub template: u16,
    pub n: u64,
    pub trace: Option<u128>,
    /// The question, up to its `traceparent`.
    pub question: Box<[u8]>,
    pub every: u64,
    /// When it counts as incomplete.
    pub deadline: u64,
}

#[derive(Default)]
pub(crate) struct Pending {
    queue: BinaryHeap<Reverse<Due>>,
}

struct Due {
    at: u64,
    effect: Effect,
}

impl Pending {
    /// After the answer, and after each question in vain. Gives it back where its time is over.
    pub fn wait(&mut self, effect: Effect, now: u64) -> Result<(), Effect> {
        if now >= effect.deadline {
            return Err(effect);
        }
        let pause = effect.every.max(now.saturating_sub(effect.intended) / 10);
        // A last question at the deadline.
        let at = (now + pause).min(effect.deadline);
        self.queue.push(Reverse(Due { at, effect }));
        Ok(())
    }

    pub fn next_at(&self) -> Option<u64> {
        self.queue.peek().map(|due| due.0.at)
    }

    /// The next to be asked for, if its time has come.
    pub fn take(&mut self, now: u64) -> Option<Effect> {
        self.next_at().filter(|&at| at <= now)?;
        self.queue.pop().map(|due| due.0.effect)
    }

    pub fn len(&self) -> usize {
        self.queue.len()
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at, self.effect.n).cmp(&(other.at, other.effect.n))
    }
}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Due {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_back_off_with_the_age_and_end_at_the_deadline() {
        let mut pending = Pending::default();
        let effect = Effect {
            intended: 0,
            template: 0,
            n: 1,
            trace: None,
            question: Box::default(),
            every: 10,
            deadline: 1_000,
        };
        assert!(pending.wait(effect, 5).is_ok());
        let mut asked = Vec::new();
        while let Some(at) = pending.next_at() {
            assert!(pending.take(at - 1).is_none(), "before its time");
            let effect = pending.take(at).expect("its time");
            asked.push(at);
            let _ = pending.wait(effect, at);
        }
        assert_eq!(asked[..4], [15, 25, 35, 45]);
        assert!(asked.windows(2).all(|pair| pair[1] - pair[0] <= 10.max(pair[0] / 10)), "{asked:?}");
        assert_eq!(asked.last(), Some(&1_000));
    }
}
