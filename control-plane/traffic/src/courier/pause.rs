//! Whether a whole subscriber is down. Then its subscription pauses itself: nothing counts as an attempt, nothing becomes a
//! dead letter, and one message at a time is tried until an answer shows that it is back.
//!
//! What this cannot tell: a subscriber that fails for every message, and one that is well while every message that is left
//! is hopeless. Both look alike, and here the first is assumed, because its messages would be lost as dead letters. So a
//! subscription that is paused because of refusals, with nothing but such messages left, stays so, a probe every few
//! seconds, until a message that succeeds is published or an operator sees why it is paused.
//!
//! Pure: time is an argument, in nanoseconds.

use meshctl_model::message::Failure;

/// So many failures in a row, without a success between them,
const IN_A_ROW: u32 = 10;
/// of so many different messages that were tried for the first time, say that the subscriber is at fault and not the
/// messages: those that are retried have failed before, and would keep failing together when nothing else is left.
const MESSAGES: usize = 5;
const FIRST_PROBE: u64 = 500_000_000;
const SLOWEST_PROBE: u64 = 5_000_000_000;

#[derive(Debug)]
pub(crate) enum Pause {
    Flowing {
        /// In a row.
        failures: u32,
        /// Whose; no more than [`MESSAGES`] of them.
        of: Vec<String>,
    },
    Paused {
        reason: String,
        /// Nobody was reached: then any answer to a probe shows that somebody is. A failing one has to succeed.
        unreachable: bool,
        next_probe: u64,
        backoff: u64,
        probing: bool,
    },
}

/// Whether an attempt may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gate {
    Open,
    /// One may, as a probe.
    Probe,
    /// None before that time.
    Until(u64),
    /// None before the probe that is under way has an answer.
    Probing,
}

/// An attempt that failed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attempt<'a> {
    /// Its id.
    pub(crate) message: &'a str,
    /// Whether it is the message's first one.
    pub(crate) fresh: bool,
    pub(crate) failure: Failure,
    pub(crate) reason: &'a str,
    /// For how long the subscriber asked not to be tried, in nanoseconds.
    pub(crate) wait: u64,
    pub(crate) probe: bool,
}

impl Default for Pause {
    fn default() -> Self {
        Self::Flowing { failures: 0, of: Vec::new() }
    }
}

impl Pause {
    pub(crate) fn gate(&self, now: u64) -> Gate {
        match self {
            Self::Flowing { .. } => Gate::Open,
            Self::Paused { probing: true, .. } => Gate::Probing,
            Self::Paused { next_probe, .. } if *next_probe <= now => Gate::Probe,
            Self::Paused { next_probe, .. } => Gate::Until(*next_probe),
        }
    }

    /// A probe begins: there is no other until it has an answer.
    pub(crate) fn probe(&mut self) {
        if let Self::Paused { probing, .. } = self {
            *probing = true;
        }
    }

    /// An attempt failed, though not because the subscriber rejected its message. Whether it counts as one.
    pub(crate) fn failed(&mut self, now: u64, attempt: Attempt<'_>) -> bool {
        let Attempt { message, fresh, failure, reason, wait, probe } = attempt;
        if probe && failure == Failure::Refused && matches!(self, Self::Paused { unreachable: true, .. }) {
            // A message that is refused each time must not keep all others from one that is back.
            *self = Self::default();
        }
        match self {
            Self::Flowing { failures, of } => {
                *failures = failures.saturating_add(1);
                if fresh && of.len() < MESSAGES && !of.iter().any(|known| known == message) {
                    of.push(message.to_owned());
                }
                let down = *failures >= IN_A_ROW && of.len() >= MESSAGES;
                let unreachable = failure == Failure::Unreachable;
                if unreachable || down {
                    let reason = match failure {
                        Failure::Unreachable => reason.to_owned(),
                        _ => format!("{failures} failures in a row; the last: {reason}"),
                    };
                    let next_probe = now.saturating_add(FIRST_PROBE.max(wait));
                    *self = Self::Paused { reason, unreachable, next_probe, backoff: FIRST_PROBE, probing: false };
                    return false;
                }
                true
            }
            Self::Paused { next_probe, backoff, probing, .. } => {
                if probe {
                    *probing = false;
                    *backoff = backoff.saturating_mul(2).min(SLOWEST_PROBE);
                    *next_probe = now.saturating_add(wait.max(*backoff));
                }
                false
            }
        }
    }

    /// The subscriber answered as one that is there. Whether that ended a pause.
    pub(crate) fn answered(&mut self) -> bool {
        match self {
            // The usual case keeps its (empty) list instead of making another.
            Self::Flowing { failures, of } => {
                *failures = 0;
                of.clear();
                false
            }
            Self::Paused { .. } => {
                *self = Self::default();
                true
            }
        }
    }

    /// Why it is paused.
    pub(crate) fn reason(&self) -> Option<&str> {
        match self {
            Self::Flowing { .. } => None,
            Self::Paused { reason, .. } => Some(reason),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    fn failed<'a>(message: &'a str, failure: Failure, reason: &'a str, probe: bool) -> Attempt<'a> {
        Attempt { message, fresh: true, failure, reason, wait: 0, probe }
    }

    #[test]
    fn one_that_cannot_be_reached_is_down_at_once() {
        let mut pause = Pause::default();
        assert_eq!(pause.gate(0), Gate::Open);
        assert!(!pause.failed(S, failed("a", Failure::Unreachable, "nobody listens", false)));
        assert_eq!(pause.reason(), Some("nobody listens"));
        assert_eq!(pause.gate(S), Gate::Until(S + FIRST_PROBE));
        assert_eq!(pause.gate(2 * S), Gate::Probe);
    }

    #[test]
    fn one_that_fails_is_down_after_ten_of_five() {
        let mut pause = Pause::default();
        for n in 0..9 {
            assert!(pause.failed(0, failed(&(n % 5).to_string(), Failure::Refused, "500", false)), "{n}");
        }
        assert!(!pause.failed(0, failed("4", Failure::Timeout, "late", false)));
        assert!(pause.reason().is_some_and(|why| why.contains("10 failures in a row") && why.contains("late")));
    }

    #[test]
    fn a_few_messages_that_fail_are_at_fault_themselves_and_a_success_begins_anew() {
        let mut pause = Pause::default();
        for n in 0..1000 {
            assert!(pause.failed(0, failed(&(n % 4).to_string(), Failure::Refused, "500", false)), "{n}");
        }
        assert!(!pause.answered());
        for n in 0..9 {
            assert!(pause.failed(0, failed(&n.to_string(), Failure::Refused, "500", false)), "{n}");
        }
    }

    #[test]
    fn those_that_are_retried_say_nothing_of_the_subscriber() {
        let mut pause = Pause::default();
        for n in 0..1000 {
            let id = n.to_string();
            assert!(pause.failed(0, Attempt { fresh: false, ..failed(&id, Failure::Refused, "500", false) }), "{n}");
        }
    }

    #[test]
    fn probes_go_one_at_a_time_and_slower_each_time() {
        let mut pause = Pause::default();
        pause.failed(0, failed("a", Failure::Unreachable, "", false));
        let (mut now, mut gaps) = (0, Vec::new());
        for _ in 0..6 {
            let Gate::Until(at) = pause.gate(now) else { panic!("{:?}", pause.gate(now)) };
            gaps.push((at - now) / 100_000_000);
            now = at;
            assert_eq!(pause.gate(now), Gate::Probe);
            pause.probe();
            assert_eq!(pause.gate(now), Gate::Probing);
            // One that began before the pause says nothing about the probe.
            assert!(!pause.failed(now, failed("b", Failure::Refused, "", false)));
            assert_eq!(pause.gate(now), Gate::Probing);
            assert!(!pause.failed(now, failed("a", Failure::Timeout, "", true)));
        }
        assert_eq!(gaps, [5, 10, 20, 40, 50, 50]);
        assert!(pause.answered());
        assert_eq!(pause.gate(now), Gate::Open);
    }

    #[test]
    fn no_probe_comes_before_the_time_that_was_asked_for() {
        let mut pause = Pause::default();
        pause.failed(0, Attempt { wait: 30 * S, ..failed("a", Failure::Unreachable, "", false) });
        assert_eq!(pause.gate(S), Gate::Until(30 * S));
        pause.probe();
        pause.failed(30 * S, Attempt { wait: 60 * S, ..failed("a", Failure::Timeout, "", true) });
        assert_eq!(pause.gate(30 * S), Gate::Until(90 * S));
        pause.probe();
        pause.failed(90 * S, failed("a", Failure::Timeout, "", true));
        assert_eq!(pause.gate(90 * S), Gate::Until(92 * S), "and it does not last");
    }

    #[test]
    fn a_refusal_shows_that_somebody_is_there_but_not_that_one_who_failed_is_well() {
        let mut pause = Pause::default();
        pause.failed(0, failed("a", Failure::Unreachable, "", false));
        assert!(!pause.failed(0, failed("b", Failure::Refused, "", false)), "it began before");
        assert!(pause.failed(S, failed("a", Failure::Refused, "", true)));
        assert_eq!(pause.gate(S), Gate::Open);
        for n in 0..9 {
            pause.failed(S, failed(&n.to_string(), Failure::Refused, "", false));
        }
        assert!(pause.reason().is_some());
        assert!(!pause.failed(2 * S, failed("a", Failure::Refused, "", true)));
        assert!(pause.reason().is_some());
    }
}
