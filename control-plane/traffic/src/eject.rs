//! Passive ejection: an endpoint that refuses a connection is left out at once, by this gateway alone and without asking
//! the control plane, and is tried again by connections of our own until it accepts one.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use meshctl_model::snapshot::{Ejection, GatewayEvent};
use parking_lot::Mutex;

use crate::events::Events;

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
pub(crate) struct Ejector {
    out: AtomicBool,
    why: Mutex<Option<Ejection>>,
}

impl Ejector {
    #[inline]
    pub(crate) fn is_out(&self) -> bool {
        self.out.load(Relaxed)
    }

    pub(crate) fn why(&self) -> Option<Ejection> {
        self.why.lock().clone()
    }

    /// True if this call is the one that ejected it: its caller sees to the way back.
    pub(crate) fn eject(&self, service: &str, endpoint: &str, reason: String, events: &Events) -> bool {
        let mut why = self.why.lock();
        if why.is_some() {
            return false;
        }
        let ejection = Ejection {
            service: service.to_owned(),
            endpoint: endpoint.to_owned(),
            reason,
            since: jiff::Timestamp::now(),
        };
        *why = Some(ejection.clone());
        self.out.store(true, Relaxed);
        events.emit(GatewayEvent::Ejected(ejection));
        true
    }

    pub(crate) fn bring_back(&self, events: &Events) {
        let mut why = self.why.lock();
        if let Some(Ejection { service, endpoint, .. }) = why.take() {
            self.out.store(false, Relaxed);
            events.emit(GatewayEvent::Returned { service, endpoint, at: jiff::Timestamp::now() });
        }
    }
}

/// How long to wait before try number `tries` (from 0).
pub(crate) fn pause(tries: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(1 << tries.min(10)).min(LONGEST_PAUSE)
}
