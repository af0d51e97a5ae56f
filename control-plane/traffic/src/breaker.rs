//! One breaker per edge: closed (flowing), open (refusing), half-open (probing).
//!
//! Invariants, whatever the order of events and on however many threads:
//! - half-open never has more than `probes` requests out, and lets no more than `probes` through in one round;
//! - a probe that ends without a verdict gives its place back, so no breaker sticks half-open;
//! - a verdict on a request that an earlier phase admitted says nothing about the present one;
//! - observers are told by the transition itself, under its lock, in order.
//!
//! - what an operator forces holds whatever is counted: forced open admits nothing, forced closed refuses nothing, and neither
//!   drifts into another state; it ends once, when its time is over or when it is taken back, and then the breaker begins anew.
//!
//! Closed, by itself or by force, a decision is one atomic load. Only transitions, probes and refusals take the lock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Acquire, Ordering::Release};

use jiff::Timestamp;
use meshctl_model::policy::BreakerPolicy;
use meshctl_model::snapshot::{BreakerState, Override};
use parking_lot::Mutex;

use crate::clock::nanos;
use crate::window::Window;

pub(crate) struct Breaker {
    /// The number of the phase, with its state in the lowest three bits. A phase's number never comes back.
    phase: AtomicU64,
    window: Window,
    round: Mutex<Round>,
    observer: Box<dyn Fn(Transition) + Send + Sync>,
}

/// What the lock guards: the present phase beyond its number.
#[derive(Debug, Default)]
struct Round {
    since: u64,
    since_wall: Timestamp,
    /// Of the transition into it; `None` before the first.
    reason: Option<String>,
    probes_out: u32,
    probes_ok: u32,
    /// In force now.
    force: Option<Force>,
    /// As the last rule said; `None` before the first.
    epoch: Option<u64>,
}

#[derive(Debug)]
struct Force {
    by: Override,
    /// For those who are refused, who are many.
    reason: Option<Arc<str>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Transition {
    pub(crate) from: BreakerState,
    pub(crate) to: BreakerState,
    pub(crate) reason: String,
}

/// A breaker as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sight {
    pub(crate) state: BreakerState,
    pub(crate) since: Timestamp,
    pub(crate) reason: Option<String>,
    /// While it is forced closed: what would have opened it.
    pub(crate) would_open: Option<String>,
}

/// Permission for one request; [`Breaker::record`] wants it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket(u64);

/// No permission.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    /// How long to stay away, in nanoseconds.
    pub(crate) wait: u64,
    /// An operator refuses.
    pub(crate) forced: bool,
    /// The operator's.
    pub(crate) reason: Option<Arc<str>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Success,
    Failure,
    /// Nothing was learned: the client went away, or its deadline was too short to judge.
    Unknown,
}

/// Set in states that are forced.
const FORCED: u64 = 4;
/// The bits of the state. Those below [`FORCED`] say what happens to requests: 0 for all that let every one through.
const STATE: u64 = 7;
const STATE_BITS: u32 = 3;
const REFUSES_SOME: u64 = 3;

/// How long those are sent away whom an operator refuses until further notice.
const FURTHER_NOTICE: u64 = 60_000_000_000;

const fn state_of(phase: u64) -> BreakerState {
    match phase & STATE {
        0 => BreakerState::Closed,
        FORCED => BreakerState::ForcedClosed,
        1 => BreakerState::Open,
        2 => BreakerState::HalfOpen,
        _ => BreakerState::ForcedOpen,
    }
}

const fn bits_of(state: BreakerState) -> u64 {
    match state {
        BreakerState::Closed => 0,
        BreakerState::ForcedClosed => FORCED,
        BreakerState::Open => 1,
        BreakerState::HalfOpen => 2,
        BreakerState::ForcedOpen => FORCED | 1,
    }
}

impl Breaker {
    pub(crate) fn new(observer: impl Fn(Transition) + Send + Sync + 'static) -> Self {
        Self {
            phase: AtomicU64::new(0),
            window: Window::default(),
            round: Mutex::new(Round { since_wall: Timestamp::now(), ..Round::default() }),
            observer: Box::new(observer),
        }
    }

    pub(crate) fn state(&self) -> BreakerState {
        state_of(self.phase.load(Acquire))
    }

    pub(crate) fn sight(&self, policy: &BreakerPolicy, now: u64) -> Sight {
        let round = self.round.lock();
        let state = self.state();
        let would_open = (state == BreakerState::ForcedClosed).then(|| self.too_many(policy, now)).flatten();
        Sight { state, since: round.since_wall, reason: round.reason.clone(), would_open }
    }

    /// # Errors
    /// When the request must not go on.
    #[inline]
    pub(crate) fn admit(&self, policy: &BreakerPolicy, now: u64) -> Result<Ticket, Refused> {
        let phase = self.phase.load(Acquire);
        if phase & REFUSES_SOME == 0 { Ok(Ticket(phase)) } else { self.admit_slowly(policy, now) }
    }

    #[cold]
    fn admit_slowly(&self, policy: &BreakerPolicy, now: u64) -> Result<Ticket, Refused> {
        let mut round = self.round.lock();
        let open_for = nanos(policy.open_for.get());
        let stay_away = |wait| Err(Refused { wait, forced: false, reason: None });
        match self.state() {
            BreakerState::Closed | BreakerState::ForcedClosed => return Ok(Ticket(self.phase.load(Acquire))),
            BreakerState::ForcedOpen => {
                return Err(round.force.as_ref().map_or_else(Refused::further_notice, Force::refusal));
            }
            BreakerState::Open => {
                let over = round.since.saturating_add(open_for);
                if now < over {
                    return stay_away(over - now);
                }
                self.enter(&mut round, BreakerState::HalfOpen, now, format!("{} passed; probing", policy.open_for));
            }
            BreakerState::HalfOpen => {}
        }
        if round.probes_out + round.probes_ok >= policy.probes.max(1) {
            return stay_away(open_for.min(1_000_000_000));
        }
        round.probes_out += 1;
        Ok(Ticket(self.phase.load(Acquire)))
    }

    pub(crate) fn record(&self, policy: &BreakerPolicy, ticket: Ticket, verdict: Verdict, now: u64) {
        if self.phase.load(Acquire) != ticket.0 {
            return;
        }
        if ticket.0 & REFUSES_SOME != 0 {
            return self.record_probe(policy, ticket, verdict, now);
        }
        let length = nanos(policy.window.get());
        match verdict {
            Verdict::Unknown => {}
            Verdict::Success => self.window.add(false, now, length),
            Verdict::Failure => {
                self.window.add(true, now, length);
                // Held closed, it counts on, so that it can be said what it would have done.
                if ticket.0 & FORCED == 0
                    && let Some(why) = self.too_many(policy, now)
                {
                    let mut round = self.round.lock();
                    if self.phase.load(Acquire) == ticket.0 {
                        self.enter(&mut round, BreakerState::Open, now, why);
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
            Verdict::Failure => self.enter(&mut round, BreakerState::Open, now, "a probe failed".into()),
            Verdict::Success => {
                round.probes_ok += 1;
                if round.probes_ok >= policy.probes.max(1) {
                    let ok = round.probes_ok;
                    self.begin_anew(&mut round, now, format!("{ok} probes succeeded"));
                }
            }
        }
    }

    /// Why it opens, where more failed than the policy allows.
    fn too_many(&self, policy: &BreakerPolicy, now: u64) -> Option<String> {
        let sums = self.window.sums(now, nanos(policy.window.get()));
        let (requests, failures) = (sums.first, sums.second);
        (failures > 0
            && requests >= u64::from(policy.minimum_requests)
            && failures as f64 >= policy.failure_ratio.0 * requests as f64)
            .then(|| format!("{failures} of {requests} requests failed within {}", policy.window))
    }

    /// Does what an operator wants of it. Said again, it changes nothing.
    pub(crate) fn rule(&self, force: Option<&Override>, epoch: u64, now: u64, wall: Timestamp) {
        let mut round = self.round.lock();
        let reset = round.epoch.replace(epoch).is_some_and(|before| before != epoch);
        match force.filter(|force| !force.is_over(wall)) {
            Some(force) if round.force.as_ref().is_some_and(|present| present.by == *force) => {}
            Some(force) => {
                let to = force.state.into();
                let reason = force.reason.clone().unwrap_or_else(|| "an operator wants it so".into());
                if self.state() == to {
                    round.reason = Some(reason);
                } else {
                    self.enter(&mut round, to, now, reason);
                }
                round.force = Some(Force { by: force.clone(), reason: force.reason.as_deref().map(Arc::from) });
            }
            None if round.force.is_some() => self.release(&mut round, now, wall),
            None if reset && self.state() != BreakerState::Closed => {
                self.begin_anew(&mut round, now, "an operator reset it".into());
            }
            None if reset => self.window.clear(),
            None => {}
        }
    }

    /// Ends what is forced if its time is over. Returns when it will be, if anything is forced that ends by itself.
    pub(crate) fn expire(&self, now: u64, wall: Timestamp) -> Option<Timestamp> {
        // Nearly always nothing is forced.
        if self.phase.load(Acquire) & FORCED == 0 {
            return None;
        }
        let mut round = self.round.lock();
        let force = &round.force.as_ref()?.by;
        if !force.is_over(wall) {
            return force.expires_at;
        }
        self.release(&mut round, now, wall);
        None
    }

    fn release(&self, round: &mut Round, now: u64, wall: Timestamp) {
        let over = round.force.as_ref().is_some_and(|force| force.by.is_over(wall));
        let reason = if over { "its time is over" } else { "an operator took it back" };
        self.begin_anew(round, now, reason.into());
    }

    fn begin_anew(&self, round: &mut Round, now: u64, reason: String) {
        self.window.clear();
        self.enter(round, BreakerState::Closed, now, reason);
    }

    fn enter(&self, round: &mut Round, to: BreakerState, now: u64, reason: String) {
        let phase = self.phase.load(Acquire);
        let (since_wall, epoch) = (Timestamp::now(), round.epoch);
        *round = Round { since: now, since_wall, reason: Some(reason.clone()), epoch, ..Round::default() };
        self.phase.store((((phase >> STATE_BITS) + 1) << STATE_BITS) | bits_of(to), Release);
        (self.observer)(Transition { from: state_of(phase), to, reason });
    }
}

impl Refused {
    fn further_notice() -> Self {
        Self { wait: FURTHER_NOTICE, forced: true, reason: None }
    }
}

impl Force {
    fn refusal(&self) -> Refused {
        let rest = |at: Timestamp| u64::try_from(at.duration_since(Timestamp::now()).as_nanos()).unwrap_or(0);
        let wait = self.by.expires_at.map_or(FURTHER_NOTICE, rest);
        Refused { wait, forced: true, reason: self.reason.clone() }
    }
}

#[cfg(test)]
#[path = "breaker_tests.rs"]
mod tests;
