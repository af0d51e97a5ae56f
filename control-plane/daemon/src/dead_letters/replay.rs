//! What a replay may do next, as pure decisions: no clock, no store, no broker.
//!
//! Each letter of a replay goes `waiting -> intended -> issued -> processed | failedAgain`, and each step is written down before
//! the next is taken. What is intended may be with the broker or not: it is published again under the same idempotency
//! key until the broker confirms it, so that it is there once. No step leads back to `waiting`.

use std::time::Duration;

use jiff::Timestamp;

/// At most so many letters are between the intention and the confirmation.
pub const BATCH: u32 = 500;

/// A letter in a replay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Item {
    Waiting,
    /// It may be with the broker.
    Intended,
    /// It is with the broker.
    Issued,
    /// By the subscriber.
    Processed,
    /// A dead letter again.
    FailedAgain,
    /// Not issued, and never will be by this replay.
    Withdrawn,
}

/// What is learnt of a letter in a replay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    Intend,
    /// By the broker.
    Confirmed,
    /// The subscriber has processed it.
    Receipt,
    Death,
    /// By a cancel.
    Withdraw,
    /// Intended so long ago that the broker may have forgotten the key.
    GiveUp,
}

impl Item {
    pub const ALL: [Self; 6] =
        [Self::Waiting, Self::Intended, Self::Issued, Self::Processed, Self::FailedAgain, Self::Withdrawn];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Intended => "intended",
            Self::Issued => "issued",
            Self::Processed => "processed",
            Self::FailedAgain => "failedAgain",
            Self::Withdrawn => "withdrawn",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|item| item.as_str() == text)
    }

    /// What it is then; `None` where this is no news. An outcome proves that it was issued, also where the confirmation is
    /// still on its way or was given up.
    pub const fn on(self, told: Told) -> Option<Self> {
        match (self, told) {
            (Self::Waiting, Told::Intend) => Some(Self::Intended),
            (Self::Waiting, Told::Withdraw) | (Self::Intended, Told::GiveUp) => Some(Self::Withdrawn),
            (Self::Intended, Told::Confirmed) => Some(Self::Issued),
            (Self::Intended | Self::Issued | Self::Withdrawn, Told::Receipt) => Some(Self::Processed),
            (Self::Intended | Self::Issued | Self::Withdrawn, Told::Death) => Some(Self::FailedAgain),
            _ => None,
        }
    }

    /// Whether it is known to have been published.
    pub const fn was_issued(self) -> bool {
        matches!(self, Self::Issued | Self::Processed | Self::FailedAgain)
    }
}

/// How many letters of a replay are in each state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    pub waiting: u64,
    pub intended: u64,
    pub issued: u64,
    pub processed: u64,
    pub failed_again: u64,
    pub withdrawn: u64,
}

impl Progress {
    pub fn count(&mut self, item: Item, letters: u64) {
        *match item {
            Item::Waiting => &mut self.waiting,
            Item::Intended => &mut self.intended,
            Item::Issued => &mut self.issued,
            Item::Processed => &mut self.processed,
            Item::FailedAgain => &mut self.failed_again,
            Item::Withdrawn => &mut self.withdrawn,
        } += letters;
    }

    /// Durably on their way at some time.
    pub const fn ever_issued(&self) -> u64 {
        self.issued + self.processed + self.failed_again
    }

    /// Will have an outcome and have none yet.
    pub const fn pending(&self) -> u64 {
        self.waiting + self.intended + self.issued
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Running,
    Paused,
    /// What was not issued stays dead; what was has its outcome still.
    Cancelled,
    /// Every letter has its outcome.
    Done,
}

impl State {
    pub const ALL: [Self; 4] = [Self::Running, Self::Paused, Self::Cancelled, Self::Done];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Cancelled => "cancelled",
            Self::Done => "done",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }

    /// What an operator's wish makes of it; `None` where that cannot be.
    pub const fn on(self, wish: Wish) -> Option<Self> {
        match (self, wish) {
            (Self::Running | Self::Paused, Wish::Pause) => Some(Self::Paused),
            (Self::Running | Self::Paused, Wish::Resume) => Some(Self::Running),
            (Self::Running | Self::Paused | Self::Cancelled, Wish::Cancel) => Some(Self::Cancelled),
            _ => None,
        }
    }
}

/// What operators wish of a replay. To wish twice does no harm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    Pause,
    Resume,
    Cancel,
}

impl Wish {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Cancel => "cancel",
        }
    }
}

/// What is to be done next for a replay.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Next {
    /// Publish what is intended, and note what is confirmed: first of all, and in every state.
    Confirm,
    /// Intend so many more.
    Issue(u32),
    /// Its rate allows no more before.
    Wait(Duration),
    /// Something else has to happen first.
    Nothing,
}

/// The one decision.
pub fn next(state: State, progress: &Progress, pace: &mut Pace, now: Timestamp) -> Next {
    if progress.intended > 0 {
        return Next::Confirm;
    }
    if state != State::Running || progress.waiting == 0 {
        return Next::Nothing;
    }
    let wanted = u32::try_from(progress.waiting).unwrap_or(u32::MAX).min(BATCH);
    match pace.take(wanted, now) {
        Ok(allowed) => Next::Issue(allowed),
        Err(wait) => Next::Wait(wait),
    }
}

/// A rate that is kept: what was not used for a quarter of a second is gone, but for two letters.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    per_s: Option<f64>,
    credit: f64,
    at: Timestamp,
}

impl Pace {
    /// `per_s`: letters per second, above 0; `None` for as fast as possible.
    pub const fn new(per_s: Option<f64>, now: Timestamp) -> Self {
        Self { per_s, credit: 1.0, at: now }
    }

    /// How many of `wanted` may go now, at least one, or how long none may.
    fn take(&mut self, wanted: u32, now: Timestamp) -> Result<u32, Duration> {
        let Some(per_s) = self.per_s else { return Ok(wanted) };
        let passed = now.duration_since(self.at).as_secs_f64().max(0.0);
        self.at = now;
        self.credit = (self.credit + passed * per_s).min((per_s / 4.0).max(2.0));
        if self.credit < 1.0 {
            // A slow clock or a tiny rate must not make this a day, nor a rounding error a busy loop.
            return Err(Duration::from_secs_f64(((1.0 - self.credit) / per_s).clamp(0.001, 60.0)));
        }
        let allowed = f64::from(wanted).min(self.credit.floor());
        self.credit -= allowed;
        // Between 1 and `wanted`.
        Ok(allowed as u32)
    }

    /// So many of those allowed did not go.
    pub fn give_back(&mut self, letters: u32) {
        self.credit += f64::from(letters);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_millisecond(1_800_000_000_000 + ms).expect("a time")
    }

    #[test]
    fn a_rate_is_kept_whenever_it_is_looked_at() {
        for step_ms in [1, 7, 40, 250, 900] {
            for per_s in [0.5, 3.0, 50.0, 10_000.0] {
                let mut pace = Pace::new(Some(per_s), at(0));
                let issued: u32 =
                    (0..10_000).step_by(step_ms).map(|ms| pace.take(BATCH, at(ms)).unwrap_or_default()).sum();
                let most = per_s * 10.0 + 2.0;
                assert!(f64::from(issued) <= most, "{issued} in 10 s at {per_s}/s, looking each {step_ms} ms");
                let step_s = step_ms as f64 / 1000.0;
                let possible = per_s.min(f64::from(BATCH) / step_s).min((per_s / 4.0).max(2.0) / step_s);
                assert!(f64::from(issued) >= possible * 9.0 - 2.0, "{issued} at {per_s}/s, each {step_ms} ms");
            }
        }
    }

    #[test]
    fn the_wait_that_is_told_is_long_enough() {
        let mut pace = Pace::new(Some(4.0), at(0));
        assert_eq!(pace.take(10, at(0)), Ok(1));
        assert_eq!(pace.take(10, at(0)), Err(Duration::from_millis(250)));
        assert_eq!(pace.take(10, at(250)), Ok(1));
    }

    #[test]
    fn what_is_intended_is_confirmed_before_anything_else_and_in_every_state() {
        for state in State::ALL {
            let progress = Progress { intended: 1, waiting: 5, ..Progress::default() };
            assert_eq!(next(state, &progress, &mut Pace::new(None, at(0)), at(0)), Next::Confirm);
            let progress = Progress { waiting: 5, ..Progress::default() };
            let expected = if state == State::Running { Next::Issue(5) } else { Next::Nothing };
            assert_eq!(next(state, &progress, &mut Pace::new(None, at(0)), at(0)), expected);
        }
    }

    #[test]
    fn no_step_leads_back_to_where_it_would_be_issued_again() {
        let all = [Told::Intend, Told::Confirmed, Told::Receipt, Told::Death, Told::Withdraw, Told::GiveUp];
        for item in Item::ALL {
            for told in all {
                assert_ne!(item.on(told), Some(Item::Waiting));
                assert!(item == Item::Waiting || item.on(told) != Some(Item::Intended), "{item:?} on {told:?}");
                assert!(!item.was_issued() || item.on(told).is_none_or(Item::was_issued), "{item:?} on {told:?}");
            }
        }
    }
}
