//! The load engine: requests on a schedule, latencies from the time at which each was to be sent, and a verdict on whether the
//! generator itself kept up. No terminal code, no daemon: what to send comes as a [`Plan`](plan::Plan), what happened goes out
//! as a [`Report`](report::Report), and [`Tick`](report::Tick)s tell of it meanwhile.
//!
//! [`run`] blocks its caller until the run is over; the work is done on threads of its own. An asynchronous caller wraps it in
//! `spawn_blocking` and sends the ticks through a channel.

mod account;
mod completion;
mod connection;
mod error;
mod limits;
pub mod plan;
mod poller;
mod progress;
mod recorder;
pub mod report;
mod response;
mod run;
pub mod schedule;
mod template;
mod ticks;
mod trace;
mod verdict;
mod worker;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hdrhistogram::Histogram;
use jiff::Timestamp;

pub use error::LoadError;
pub use run::run;

/// What came out: the report, and the histograms it was read from, for curves and log files.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub report: report::Report,
    /// When the schedule began (ramp and warm-up included), by the wall clock.
    pub started_at: Timestamp,
    /// When the measured time began: the start of an HdrHistogram log's interval, whose length is `report.duration_s`.
    pub measured_at: Timestamp,
    /// Nanoseconds from the intended send time to the end of the answer, of successes. Filled also where the run is invalid: it
    /// is the caller's to withhold it then.
    pub corrected: Histogram<u64>,
    /// Nanoseconds from the actual send time.
    pub uncorrected: Histogram<u64>,
    /// Nanoseconds from the intended send time until the effect showed; empty where no flow ends in a channel.
    pub completion: Histogram<u64>,
    /// Of each of the plan's requests, in their order.
    pub shares: Vec<Share>,
}

/// What one kind of request has of the whole; histograms as in [`Outcome`]. Requests that were never taken from the schedule are
/// of no kind.
#[derive(Clone, Debug)]
pub struct Share {
    pub requests: u64,
    pub succeeded: u64,
    /// Accepted and not completed in time.
    pub incomplete: u64,
    pub corrected: Histogram<u64>,
    pub completion: Histogram<u64>,
}

/// Ends a run early, from any thread or task. What was sent until then is waited for (at most the plan's `timeout`) and
/// reported with `interrupted`.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn stop(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub fn is_stopped(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
