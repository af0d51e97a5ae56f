//! Passive ejection: an endpoint that does not do its work is left out, by this gateway alone and without asking the
//! control plane. There are two ways out, each with its own way back, tried after pauses that grow:
//!
//! - Refused: it does not accept connections. Out at once; back when it accepts one of ours.
//! - Silent: [`IN_A_ROW`] attempts in a row got no answer. The kernel accepts connections for a frozen process, too, so
//!   only an answer brings it back: a client's request is sent there on trial, one for each pause.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use meshctl_model::snapshot::{Ejection, GatewayEvent};
use parking_lot::Mutex;

use crate::clock::nanos;
use crate::events::Events;

pub(crate) const IN_A_ROW: u32 = 3;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// A trial costs a client time, hence later.
const FIRST_TRIAL: Duration = Duration::from_millis(500);
pub(crate) const LONGEST_PAUSE: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
pub(crate) struct Ejector {
    is_out: AtomicBool,
    unanswered: AtomicU32,
    /// When the next trial is due; `NEVER` unless it is out for being silent.
    trial_at: AtomicU64,
    out: Mutex<Option<Out>>,
    silent_ones: Arc<SilentOnes>,
}

#[derive(Debug)]
struct Out {
    ejection: Ejection,
    /// Trials that have been made; `None`: it refused.
    trials: Option<u32>,
}

/// How many of all endpoints are silent; while there is none, nobody looks for a trial.
#[derive(Debug, Default)]
pub(crate) struct SilentOnes(AtomicU32);

const NEVER: u64 = 0;

impl Ejector {
    pub(crate) fn new(silent_ones: &Arc<SilentOnes>) -> Self {
        let mut ejector = Self::default();
        ejector.silent_ones = Arc::clone(silent_ones);
        ejector
    }

    #[inline]
    pub(crate) fn is_out(&self) -> bool {
        self.is_out.load(Relaxed)
    }

    pub(crate) fn why(&self) -> Option<Ejection> {
        self.out.lock().as_ref().map(|out| out.ejection.clone())
    }

    /// It refused a connection. True if this call is the one that ejected it: its caller sees to the way back.
    pub(crate) fn refused(&self, service: &str, endpoint: &str, reason: String, events: &Events) -> bool {
        self.eject(service, endpoint, reason, None, events)
    }

    /// Counts an attempt without an answer; true when it was one too many.
    pub(crate) fn unanswered(&self) -> bool {
        self.unanswered.fetch_add(1, Relaxed) + 1 >= IN_A_ROW && !self.is_out()
    }

    /// It is silent.
    pub(crate) fn silent(&self, service: &str, endpoint: &str, reason: String, now: u64, events: &Events) {
        self.eject(service, endpoint, reason, Some(now), events);
    }

    fn eject(&self, service: &str, endpoint: &str, reason: String, silent: Option<u64>, events: &Events) -> bool {
        let mut out = self.out.lock();
        if out.is_some() {
            return false;
        }
        let ejection = Ejection {
            service: service.to_owned(),
            endpoint: endpoint.to_owned(),
            reason,
            since: jiff::Timestamp::now(),
        };
        *out = Some(Out { ejection: ejection.clone(), trials: silent.map(|_| 0) });
        if let Some(now) = silent {
            self.silent_ones.0.fetch_add(1, Relaxed);
            self.trial_at.store(now.saturating_add(nanos(pause(FIRST_TRIAL, 0))), Relaxed);
        }
        self.is_out.store(true, Relaxed);
        events.emit(GatewayEvent::Ejected(ejection));
        true
    }

    /// Whether any endpoint of this gateway is silent.
    #[inline]
    pub(crate) fn any_silent(&self) -> bool {
        self.silent_ones.0.load(Relaxed) > 0
    }

    /// True if a trial has been due for `overdue`: the caller has to send its request here, and nobody else will until the
    /// next pause is over.
    pub(crate) fn trial(&self, now: u64, overdue: Duration) -> bool {
        let at = self.trial_at.load(Relaxed);
        if at == NEVER || now < at.saturating_add(nanos(overdue)) {
            return false;
        }
        let mut out = self.out.lock();
        let Some(Out { trials: Some(trials), .. }) = &mut *out else { return false };
        // Two that saw the same moment: the first one moved it.
        if self.trial_at.load(Relaxed) != at {
            return false;
        }
        *trials += 1;
        self.trial_at.store(now.saturating_add(nanos(pause(FIRST_TRIAL, *trials))), Relaxed);
        true
    }

    /// It answered a request, whatever the answer. True if that brought it back; one that refuses connections may still
    /// answer on those that it has.
    #[inline]
    pub(crate) fn answered(&self, events: &Events) -> bool {
        if self.unanswered.load(Relaxed) != 0 {
            self.unanswered.store(0, Relaxed);
        }
        self.is_out() && self.bring_back(events, |out| out.trials.is_some())
    }

    /// It accepted a connection.
    pub(crate) fn accepted(&self, events: &Events) {
        if self.is_out() {
            self.bring_back(events, |out| out.trials.is_none());
        }
    }

    fn bring_back(&self, events: &Events, enough: impl Fn(&Out) -> bool) -> bool {
        let mut out = self.out.lock();
        let Some(Out { ejection: Ejection { service, endpoint, .. }, trials }) = out.take_if(|out| enough(out)) else {
            return false;
        };
        if trials.is_some() {
            self.trial_at.store(NEVER, Relaxed);
            self.silent_ones.0.fetch_sub(1, Relaxed);
        }
        self.is_out.store(false, Relaxed);
        events.emit(GatewayEvent::Returned { service, endpoint, at: jiff::Timestamp::now() });
        true
    }
}

impl Drop for Ejector {
    fn drop(&mut self) {
        if self.out.get_mut().as_ref().is_some_and(|out| out.trials.is_some()) {
            self.silent_ones.0.fetch_sub(1, Relaxed);
        }
    }
}

/// How long to wait before trying for the `tries`-th time (from 0) to connect to one that refused.
pub(crate) fn connect_pause(tries: u32) -> Duration {
    pause(FIRST_PAUSE, tries)
}

fn pause(first: Duration, tries: u32) -> Duration {
    first.saturating_mul(1 << tries.min(10)).min(LONGEST_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn silent(ejector: &Ejector, now: u64) {
        ejector.silent("web", "web-0", "frozen".into(), now, &Events::new());
    }

    #[test]
    fn only_an_unbroken_row_counts() {
        let (ejector, events) = (Ejector::default(), Events::new());
        assert!(!ejector.unanswered() && !ejector.unanswered());
        assert!(!ejector.answered(&events), "it was not out");
        assert!(!ejector.unanswered() && !ejector.unanswered());
        assert!(ejector.unanswered(), "the third in a row");
        silent(&ejector, 0);
        assert!(!ejector.unanswered(), "it is out already");
    }

    #[test]
    fn trials_come_one_for_each_pause_and_pauses_grow() {
        let ejector = Ejector::default();
        silent(&ejector, 0);
        let mut trials = (0..20_000).filter(|ms| ejector.trial(ms * MS, Duration::ZERO));
        for at in [500, 1_500, 3_500, 7_500, 12_500, 17_500] {
            assert_eq!(trials.next(), Some(at));
        }
        assert_eq!(trials.next(), None);
        drop(trials);
        let due = ejector.trial_at.load(Relaxed);
        assert!(!ejector.trial(due + 4_999 * MS, LONGEST_PAUSE) && ejector.trial(due + 5_000 * MS, LONGEST_PAUSE));
    }

    #[test]
    fn the_silent_come_back_by_an_answer_and_not_by_accepting() {
        let all = Arc::default();
        let (ejector, other, events) = (Ejector::new(&all), Ejector::new(&all), Events::new());
        silent(&ejector, 0);
        assert!(other.any_silent());
        ejector.accepted(&events);
        assert!(ejector.is_out());
        assert!(ejector.answered(&events) && !ejector.is_out() && !other.any_silent());
        assert!(!ejector.trial(u64::MAX, Duration::ZERO));
        silent(&ejector, 0);
        drop(ejector);
        assert!(!other.any_silent(), "one that left the snapshot is not looked for");

        assert!(other.refused("web", "web-1", "refused".into(), &events));
        assert!(!other.trial(u64::MAX, Duration::ZERO) && !other.any_silent());
        assert!(!other.answered(&events) && other.is_out());
        other.accepted(&events);
        assert!(!other.is_out());
    }
}
