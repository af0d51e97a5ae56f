//! How far a run is, from the gauges of its threads.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use hdrhistogram::Histogram;

use crate::plan::Plan;
use crate::progress::{Gauge, recent_histogram};
use crate::report::Tick;
use crate::schedule::{Window, nanos};

/// "The last second" of a tick.
const SECOND: u64 = 1_000_000_000;

pub(crate) struct Ticks<'a> {
    gauges: &'a [Gauge],
    window: Window,
    ramp: u64,
    /// Of the ticks of the last second: when, how many were finished by then, and the latencies since the one before.
    slices: VecDeque<(u64, u64, Histogram<u64>)>,
}

impl<'a> Ticks<'a> {
    pub fn new(plan: &Plan, gauges: &'a [Gauge]) -> Self {
        Self { gauges, window: Window::of(plan), ramp: nanos(plan.ramp), slices: VecDeque::new() }
    }

    pub fn opening(&self) -> Tick {
        Tick {
            phase: "opening",
            total_s: seconds(self.window.to),
            connections: self.sum(|it| &it.connections) as u32,
            ..Tick::default()
        }
    }

    /// `end` is earlier than planned where the run was stopped.
    pub fn running(&mut self, elapsed: u64, end: u64) -> Tick {
        let phase = match elapsed {
            at if at < self.ramp => "ramp",
            at if at < self.window.from => "warm-up",
            at if at < end => "measuring",
            _ if self.sum(|it| &it.pending) > 0 && self.gauges.iter().all(|it| it.settled.load(Relaxed)) => {
                "completing"
            }
            _ => "measuring",
        };
        self.tick(phase, elapsed, end)
    }

    pub fn done(&mut self, elapsed: u64) -> Tick {
        self.tick("done", elapsed, elapsed)
    }

    fn tick(&mut self, phase: &'static str, elapsed: u64, end: u64) -> Tick {
        let mut slice = recent_histogram();
        for gauge in self.gauges {
            if let Some(recent) = gauge.take_recent() {
                // The bounds are the same.
                let _ = slice.add(recent);
            }
        }
        let requests = self.sum(|it| &it.finished);
        self.slices.push_back((elapsed, requests, slice));
        // The oldest is kept as the mark from which the others count.
        while self.slices.len() > 2 && self.slices[1].0 + SECOND <= elapsed {
            self.slices.pop_front();
        }
        let mut latencies = recent_histogram();
        for (_, _, slice) in self.slices.iter().skip(1) {
            let _ = latencies.add(slice);
        }
        let (since, before, _) = &self.slices[0];
        let span = seconds(elapsed - since);
        let behind = self.gauges.iter().map(|gauge| gauge.behind.swap(0, Relaxed)).max().unwrap_or(0);
        Tick {
            phase,
            elapsed_s: seconds(elapsed),
            total_s: seconds(end),
            connections: self.sum(|it| &it.connections) as u32,
            in_flight: self.sum(|it| &it.in_flight),
            requests,
            errors: self.sum(|it| &it.errors),
            per_s: if span > 0.0 { (requests - before) as f64 / span } else { 0.0 },
            p50_ms: latencies.value_at_quantile(0.5) as f64 / 1e6,
            p99_ms: latencies.value_at_quantile(0.99) as f64 / 1e6,
            behind_ms: behind as f64 / 1e6,
        }
    }

    fn sum(&self, of: impl Fn(&Gauge) -> &AtomicU64) -> u64 {
        self.gauges.iter().map(|gauge| of(gauge).load(Relaxed)).sum()
    }
}

fn seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}
