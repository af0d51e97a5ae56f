//! One breaker per edge: closed (flowing), open (refusing), half-open (probing).
//!
//! Invariants, whatever the order of events and on however many threads:
//! - half-open never has more than `probes` requests out, and lets no more than `probes` through in one round;
//! - a probe that ends without a verdict gives its place back, so no breaker sticks half-open;
//! - a verdict on a request that an earlier phase admitted says nothing about the present one;
//! - observers are told by the transition itself, under its lock, in order.
//!
//! Closed, a decision is one atomic load. Only transitions and probes take the lock.

use std::sync::atomic::{AtomicU64, Ordering::Acquire, Ordering::Release};

use meshctl_model::policy::BreakerPolicy;
use meshctl_model::snapshot::BreakerState;
use parking_lot::Mutex;

use crate::clock::nanos;
use crate::window::Window;

pub(crate) struct Breaker {
    /// The number of the phase, with its state in the lowest two bits. A phase's number never comes back.
    phase: AtomicU64,
    window: Window,
    round: Mutex<Round>,
    observer: Box<dyn Fn(Transition) + Send + Sync>,
}

/// What the lock guards: the present phase beyond its number.
#[derive(Debug, Default)]
struct Round {
    since: u64,
    since_wall: jiff::Timestamp,
    probes_out: u32,
    probes_ok: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Transition {
    pub(crate) from: BreakerState,
    pub(crate) to: BreakerState,
    pub(crate) reason: String,
}

/// Permission for one request; [`Breaker::record`] wants it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket(u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Success,
    Failure,
    /// Nothing was learned: the client went away, or its deadline was too short to judge.
    Unknown,
}

const fn state_of(phase: u64) -> BreakerState {
    match phase & 3 {
        0 => BreakerState::Closed,
        1 => BreakerState::Open,
        _ => BreakerState::HalfOpen,
    }
}

impl Breaker {
    pub(crate) fn new(observer: impl Fn(Transition) + Send + Sync + 'static) -> Self {
        Self {
            phase: AtomicU64::new(0),
            window: Window::default(),
            round: Mutex::new(Round { since_wall: jiff::Timestamp::now(), ..Round::default() }),
            observer: Box::new(observer),
        }
    }

    /// The state and since when.
    pub(crate) fn state(&self) -> (BreakerState, jiff::Timestamp) {
        let round = self.round.lock();
        (state_of(self.phase.load(Acquire)), round.since_wall)
    }

    /// # Errors
    /// How long to stay away, in nanoseconds.
    #[inline]
    pub(crate) fn admit(&self, policy: &BreakerPolicy, now: u64) -> Result<Ticket, u64> {
        let phase = self.phase.load(Acquire);
        if phase & 3 == 0 { Ok(Ticket(phase)) } else { self.admit_slowly(policy, now) }
    }

    #[cold]
    fn admit_slowly(&self, policy: &BreakerPolicy, now: u64) -> Result<Ticket, u64> {
        let mut round = self.round.lock();
        let open_for = nanos(policy.open_for.get());
        match state_of(self.phase.load(Acquire)) {
            BreakerState::Closed => return Ok(Ticket(self.phase.load(Acquire))),
            BreakerState::Open => {
                let over = round.since.saturating_add(open_for);
                if now < over {
                    return Err(over - now);
                }
                self.enter(&mut round, BreakerState::HalfOpen, now, || format!("{} passed; probing", policy.open_for));
            }
            BreakerState::HalfOpen => {}
        }
        if round.probes_out + round.probes_ok >= policy.probes.max(1) {
            return Err(open_for.min(1_000_000_000));
        }
        round.probes_out += 1;
        Ok(Ticket(self.phase.load(Acquire)))
    }

    pub(crate) fn record(&self, policy: &BreakerPolicy, ticket: Ticket, verdict: Verdict, now: u64) {
        if self.phase.load(Acquire) != ticket.0 {
            return;
        }
        if ticket.0 & 3 != 0 {
            return self.record_probe(policy, ticket, verdict, now);
        }
        let length = nanos(policy.window.get());
        match verdict {
            Verdict::Unknown => {}
            Verdict::Success => self.window.add(false, now, length),
            Verdict::Failure => {
                self.window.add(true, now, length);
                let sums = self.window.sums(now, length);
                let (requests, failures) = (sums.first, sums.second);
                if requests >= u64::from(policy.minimum_requests)
                    && failures as f64 >= policy.failure_ratio.0 * requests as f64
                {
                    let mut round = self.round.lock();
                    if self.phase.load(Acquire) == ticket.0 {
                        self.enter(&mut round, BreakerState::Open, now, || {
                            format!("{failures} of {requests} requests failed within {}", policy.window)
                        });
                    }
                }
            }
        }
    }

    #[cold]
    fn record_probe(&self, policy: &BreakerPolicy, ticket: Ticket, verdict: Verdict, now: u64) {
        let mut round = self.round.lock();
        if self.phase.load(Acquire) != ticket.0 {
            return;
        }
        round.probes_out -= 1;
        match verdict {
            Verdict::Unknown => {}
            Verdict::Failure => self.enter(&mut round, BreakerState::Open, now, || "a probe failed".into()),
            Verdict::Success => {
                round.probes_ok += 1;
                if round.probes_ok >= policy.probes.max(1) {
                    let ok = round.probes_ok;
                    self.window.clear();
                    self.enter(&mut round, BreakerState::Closed, now, || format!("{ok} probes succeeded"));
                }
            }
        }
    }

    fn enter(&self, round: &mut Round, to: BreakerState, now: u64, reason: impl FnOnce() -> String) {
        let phase = self.phase.load(Acquire);
        let bits = match to {
            BreakerState::Closed => 0,
            BreakerState::Open => 1,
            BreakerState::HalfOpen => 2,
        };
        *round = Round { since: now, since_wall: jiff::Timestamp::now(), probes_out: 0, probes_ok: 0 };
        self.phase.store((((phase >> 2) + 1) << 2) | bits, Release);
        (self.observer)(Transition { from: state_of(phase), to, reason: reason() });
    }
}

#[cfg(test)]
#[path = "breaker_tests.rs"]
mod tests;
