//! What a thread does a hundred times a second: timeouts, its own use of the processor, and news for the live view.

use std::sync::atomic::Ordering::Relaxed;

use super::{BEAT, Job, MILLISECOND, Worker};
use crate::poller::Usage;
use crate::recorder::Cause;

/// The live view's share of the latencies is handed over so often.
const HAND_OVER: u64 = 200 * MILLISECOND;

impl Worker<'_> {
    pub(super) fn beat(&mut self, now: u64) {
        if self.next.is_none() {
            self.lagged(self.beat_at, now);
        }
        self.sample_usage(now);
        if now >= self.sweep_at {
            self.sweep(now);
            // A timeout is at most a twentieth late.
            self.sweep_at = now + (self.timeout / 20).clamp(BEAT, 250 * MILLISECOND);
        }
        if now >= self.hand_over_at {
            self.gauge.hand_over(&mut self.recent);
            self.gauge.connections.store(u64::from(self.open_count()), Relaxed);
            self.hand_over_at = now + HAND_OVER;
        }
        self.publish();
        self.beat_at = now - now % BEAT + BEAT;
    }

    pub(super) fn publish(&mut self) {
        let gauge = self.gauge;
        gauge.in_flight.store(self.recorder.in_flight.count, Relaxed);
        gauge.finished.store(self.finished, Relaxed);
        gauge.errors.store(self.errors, Relaxed);
        gauge.pending.store(self.pending.len() as u64, Relaxed);
        gauge.behind.fetch_max(std::mem::take(&mut self.behind), Relaxed);
    }

    pub(super) fn sample_usage(&mut self, now: u64) {
        if self.usage.0.is_none() && now >= self.window.from {
            self.usage.0 = Some(Usage::of_this_thread());
        }
        if self.usage.1.is_none() && now >= self.window.to {
            self.usage.1 = Some(Usage::of_this_thread());
        }
    }

    /// Ends what has taken longer than the timeout since it was sent, or since it should have been.
    fn sweep(&mut self, now: u64) {
        for index in 0..self.connections.len() as u32 {
            let since = match &self.connections[index as usize].job {
                Some(Job::Request(request)) => request.sent,
                Some(Job::Ask { asked, .. }) => *asked,
                None => continue,
            };
            if now >= since.saturating_add(self.timeout) {
                self.fail(index, Cause::Timeout, now);
            }
        }
        while let Some(arrival) = self.waiting.pop_front_if(|arrival| arrival.at.saturating_add(self.timeout) <= now) {
            self.not_sent(arrival, now);
        }
    }
}
