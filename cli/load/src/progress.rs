//! What the threads of a run and its caller say to each other meanwhile.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use hdrhistogram::Histogram;

/// From the caller to all threads.
pub(crate) struct Control {
    /// When the schedule begins, in monotonic nanoseconds; unset while connections are being opened.
    start: AtomicU64,
    /// When it ends, in nanoseconds since its start.
    end: AtomicU64,
    cancelled: AtomicBool,
    stopped: AtomicBool,
}

impl Control {
    pub fn new(end: u64) -> Self {
        let (cancelled, stopped) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { start: AtomicU64::new(u64::MAX), end: AtomicU64::new(end), cancelled, stopped }
    }

    pub fn start(&self) -> Option<u64> {
        Some(self.start.load(Relaxed)).filter(|&start| start != u64::MAX)
    }

    pub fn set_start(&self, at: u64) {
        self.start.store(at, Relaxed);
    }

    pub fn end(&self) -> u64 {
        self.end.load(Relaxed)
    }

    /// Ends the schedule at `at` unless it ends before.
    pub fn stop_at(&self, at: u64) {
        if self.end.fetch_min(at, Relaxed) > at {
            self.stopped.store(true, Relaxed);
        }
    }

    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Relaxed)
    }

    /// The schedule will never begin.
    pub fn cancel(&self) {
        self.cancelled.store(true, Relaxed);
    }

    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Relaxed)
    }
}

/// From one thread to the caller, a hundred times a second.
#[derive(Default)]
pub(crate) struct Gauge {
    /// All connections are open, or will not be.
    pub opened: AtomicBool,
    pub connections: AtomicU64,
    pub in_flight: AtomicU64,
    pub finished: AtomicU64,
    pub errors: AtomicU64,
    /// Effects that have not shown.
    pub pending: AtomicU64,
    /// The schedule has ended, and so has every request.
    pub settled: AtomicBool,
    /// The greatest lag since the caller last looked, in nanoseconds.
    pub behind: AtomicU64,
    /// Latencies of successes since the caller last looked.
    recent: Mutex<Option<Histogram<u64>>>,
    /// The last failure to connect.
    problem: Mutex<Option<io::Error>>,
}

impl Gauge {
    /// Hands over what is in `recent`, and empties it.
    pub fn hand_over(&self, recent: &mut Histogram<u64>) {
        let mut shared = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        match shared.as_mut() {
            // The bounds are the same.
            Some(shared) => drop(shared.add(&*recent)),
            None => *shared = Some(recent.clone()),
        }
        recent.reset();
    }

    pub fn take_recent(&self) -> Option<Histogram<u64>> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    pub fn set_problem(&self, error: io::Error) {
        *self.problem.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    }

    pub fn take_problem(&self) -> Option<io::Error> {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// For the live view two significant digits are enough.
pub(crate) fn recent_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1_000, 3_600_000_000_000, 2).expect("the bounds are in order")
}
