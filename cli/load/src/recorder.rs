//! What one thread saw. Only requests whose intended send time lies in the measured window are counted, and all of them are.
//!
//! Two books are kept of how many requests were in flight: one by counting at every change ([`InFlight`]), one by adding up how
//! long each recorded request took (`residence`). Little's law says that they agree; the verdict compares them.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::fmt;

use hdrhistogram::Histogram;

use crate::Share;
use crate::completion::Effect;
use crate::schedule::Window;

/// How many of the slowest and of the failed are told of.
pub(crate) const EXAMPLES: usize = 10;

/// Why a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Cause {
    Timeout,
    Connect,
    /// The connection ended before the answer did.
    Reset,
    /// What came was no HTTP/1.1 response.
    Malformed,
    NotSent,
    Status(u16),
    /// Accepted, and its effect did not show in time: not among the errors of requests.
    Incomplete,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Timeout => f.write_str("timeout"),
            Self::Connect => f.write_str("connect"),
            Self::Reset => f.write_str("reset"),
            Self::Malformed => f.write_str("malformed"),
            Self::NotSent => f.write_str("notSent"),
            Self::Incomplete => f.write_str("incomplete"),
            Self::Status(status) => write!(f, "status {status}"),
        }
    }
}

/// A request on its way. Times in nanoseconds since the schedule began.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Request {
    pub n: u64,
    pub template: u16,
    pub intended: u64,
    /// When a connection took it.
    pub sent: u64,
    pub trace: Option<u128>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Example {
    pub latency: u64,
    pub trace: Option<u128>,
    pub template: u16,
    /// The status, or why it failed.
    pub outcome: Result<u16, Cause>,
}

pub(crate) struct Recorder {
    pub corrected: Histogram<u64>,
    pub uncorrected: Histogram<u64>,
    pub completion: Histogram<u64>,
    /// How far sending was behind.
    pub lag: Histogram<u64>,
    pub requests: u64,
    pub succeeded: u64,
    /// Successes that came within the window, whenever they were due.
    pub came_in_time: u64,
    pub errors: BTreeMap<Cause, u64>,
    pub by_template: Vec<Share>,
    pub incomplete: u64,
    /// Answers without the field that the completion asks with, and its name.
    pub without_field: Option<(String, u64)>,
    pub bytes: u64,
    /// Nanoseconds that recorded requests spent in flight within the window.
    pub residence: u128,
    pub in_flight: InFlight,
    pub slowest: BinaryHeap<Reverse<Example>>,
    pub failed: Vec<Example>,
    /// Attempts to connect that this machine refused: no descriptor, no port; and the last of its words.
    pub refused_here: u64,
}

impl Recorder {
    pub fn new(templates: usize) -> Self {
        Self {
            corrected: histogram(),
            uncorrected: histogram(),
            completion: histogram(),
            lag: histogram(),
            requests: 0,
            succeeded: 0,
            came_in_time: 0,
            errors: BTreeMap::new(),
            by_template: vec![Share::default(); templates],
            incomplete: 0,
            without_field: None,
            bytes: 0,
            residence: 0,
            in_flight: InFlight::default(),
            slowest: BinaryHeap::new(),
            failed: Vec::new(),
            refused_here: 0,
        }
    }

    /// `request` came to its end at `now`. Those outside of the window only count for the residence within it.
    pub fn finished(&mut self, window: Window, request: &Request, outcome: Result<u16, Cause>, now: u64) {
        if outcome != Err(Cause::NotSent) {
            self.residence += u128::from(window.overlap(request.sent, now));
        }
        self.came_in_time += u64::from(outcome.is_ok() && window.contains(now));
        if !window.contains(request.intended) {
            return;
        }
        self.requests += 1;
        let share = &mut self.by_template[usize::from(request.template)];
        share.requests += 1;
        let latency = now.saturating_sub(request.intended);
        let example = Example { latency, trace: request.trace, template: request.template, outcome };
        match outcome {
            Ok(_) => {
                self.succeeded += 1;
                self.corrected.saturating_record(latency);
                share.succeeded += 1;
                share.corrected.saturating_record(latency);
                self.uncorrected.saturating_record(now.saturating_sub(request.sent));
                if self.slowest.len() < EXAMPLES {
                    self.slowest.push(Reverse(example));
                } else if let Some(mut fastest) = self.slowest.peek_mut()
                    && fastest.0.latency < latency
                {
                    *fastest = Reverse(example);
                }
            }
            Err(cause) => {
                *self.errors.entry(cause).or_default() += 1;
                self.failed(example);
            }
        }
    }

    /// The first of each cause tell more than many of one.
    fn failed(&mut self, example: Example) {
        if self.failed.len() < EXAMPLES || !self.failed.iter().any(|known| known.outcome == example.outcome) {
            self.failed.push(example);
        }
    }

    /// The effect of an accepted request shows.
    pub fn completed(&mut self, effect: &Effect, now: u64) {
        let latency = now.saturating_sub(effect.intended);
        self.completion.saturating_record(latency);
        self.by_template[usize::from(effect.template)].completion.saturating_record(latency);
    }

    /// The effect of an accepted request has not shown in its time.
    pub fn incomplete(&mut self, effect: &Effect, now: u64) {
        self.incomplete += 1;
        self.by_template[usize::from(effect.template)].incomplete += 1;
        let (latency, outcome) = (now.saturating_sub(effect.intended), Err(Cause::Incomplete));
        self.failed(Example { latency, trace: effect.trace, template: effect.template, outcome });
    }

    /// `count` requests of unknown kind that were never even taken from the schedule.
    pub fn never_begun(&mut self, count: u64) {
        if count > 0 {
            self.requests += count;
            *self.errors.entry(Cause::NotSent).or_default() += count;
        }
    }

    /// An accepted request whose answer lacks `field`: nobody can ask whether it completed.
    pub fn without_field(&mut self, field: String) {
        self.incomplete += 1;
        self.without_field.get_or_insert((field, 0)).1 += 1;
    }

    /// Adds what another thread saw.
    pub fn merge(&mut self, other: Self) {
        for (ours, theirs) in [
            (&mut self.corrected, &other.corrected),
            (&mut self.uncorrected, &other.uncorrected),
            (&mut self.completion, &other.completion),
            (&mut self.lag, &other.lag),
        ] {
            // All have the same bounds.
            let _ = ours.add(theirs);
        }
        self.requests += other.requests;
        self.succeeded += other.succeeded;
        self.came_in_time += other.came_in_time;
        for (cause, count) in other.errors {
            *self.errors.entry(cause).or_default() += count;
        }
        for (ours, theirs) in self.by_template.iter_mut().zip(other.by_template) {
            ours.requests += theirs.requests;
            ours.succeeded += theirs.succeeded;
            ours.incomplete += theirs.incomplete;
            let _ = ours.corrected.add(theirs.corrected);
            let _ = ours.completion.add(theirs.completion);
        }
        self.incomplete += other.incomplete;
        if let Some((field, count)) = other.without_field {
            self.without_field.get_or_insert((field, 0)).1 += count;
        }
        self.bytes += other.bytes;
        self.residence += other.residence;
        self.in_flight.area += other.in_flight.area;
        self.slowest.extend(other.slowest);
        self.failed.extend(other.failed);
        self.refused_here += other.refused_here;
    }

    /// The slowest first.
    pub fn slowest(&self) -> Vec<Example> {
        let mut all: Vec<Example> = self.slowest.iter().map(|example| example.0).collect();
        all.sort_by_key(|example| Reverse(example.latency));
        all.truncate(EXAMPLES);
        all
    }

    /// One of each cause before the second of any.
    pub fn failures(&self) -> Vec<Example> {
        let mut seen: BTreeMap<Option<Cause>, usize> = BTreeMap::new();
        let mut ranked: Vec<(usize, Example)> = Vec::new();
        for example in &self.failed {
            let rank = seen.entry(example.outcome.err()).or_default();
            ranked.push((*rank, *example));
            *rank += 1;
        }
        ranked.sort_by_key(|(rank, _)| *rank);
        ranked.into_iter().take(EXAMPLES).map(|(_, example)| example).collect()
    }
}

impl Default for Share {
    fn default() -> Self {
        Self { requests: 0, succeeded: 0, incomplete: 0, corrected: histogram(), completion: histogram() }
    }
}

/// Three significant digits from a microsecond to an hour; what is longer counts as an hour.
pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1_000, 3_600_000_000_000, 3).expect("the bounds are in order")
}

/// The number of requests on connections, and its integral over the window.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct InFlight {
    pub count: u64,
    /// Requests times nanoseconds.
    pub area: u128,
    since: u64,
}

impl InFlight {
    pub fn begin(&mut self, window: Window, now: u64) {
        self.advance(window, now);
        self.count += 1;
    }

    pub fn end(&mut self, window: Window, now: u64) {
        self.advance(window, now);
        self.count -= 1;
    }

    pub fn advance(&mut self, window: Window, now: u64) {
        self.area += u128::from(self.count) * u128::from(window.overlap(self.since, now));
        self.since = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Window = Window { from: 1_000_000, to: 11_000_000 };

    fn request(intended: u64, sent: u64) -> Request {
        Request { n: 1, template: 0, intended, sent, trace: Some(7) }
    }

    #[test]
    fn only_what_was_due_in_the_window_counts() {
        let mut recorder = Recorder::new(1);
        recorder.finished(WINDOW, &request(999_999, 999_999), Ok(200), 2_000_000);
        recorder.finished(WINDOW, &request(11_000_000, 11_000_000), Ok(200), 12_000_000);
        assert_eq!((recorder.requests, recorder.corrected.len(), recorder.came_in_time), (0, 0, 1));
        recorder.finished(WINDOW, &request(10_999_999, 11_500_000), Ok(200), 15_000_000);
        assert_eq!((recorder.requests, recorder.succeeded, recorder.by_template[0].requests), (1, 1, 1));
        assert_eq!(recorder.came_in_time, 1);
        assert!(recorder.corrected.equivalent(recorder.corrected.max(), 4_000_001));
        assert!(recorder.uncorrected.equivalent(recorder.uncorrected.max(), 3_500_000));
    }

    #[test]
    fn the_two_books_agree_also_for_what_crosses_the_edges() {
        let mut recorder = Recorder::new(1);
        let spans = [(0, 3_000_000), (2_000_000, 2_500_000), (10_000_000, 20_000_000), (500_000, 15_000_000)];
        let mut changes: Vec<(u64, bool)> = spans.iter().flat_map(|&(from, to)| [(from, true), (to, false)]).collect();
        changes.sort_unstable();
        for (at, begins) in changes {
            match begins {
                true => recorder.in_flight.begin(WINDOW, at),
                false => recorder.in_flight.end(WINDOW, at),
            }
        }
        for (from, to) in spans {
            recorder.finished(WINDOW, &request(from, from), Ok(200), to);
        }
        assert_eq!(recorder.in_flight.area, 2_000_000 + 500_000 + 1_000_000 + 10_000_000);
        assert_eq!(recorder.residence, recorder.in_flight.area);
    }

    #[test]
    fn failures_are_no_latencies_and_their_examples_show_every_cause() {
        let mut recorder = Recorder::new(1);
        for _ in 0..30 {
            recorder.finished(WINDOW, &request(2_000_000, 2_000_000), Err(Cause::Status(503)), 3_000_000);
        }
        recorder.finished(WINDOW, &request(2_000_000, 2_000_000), Err(Cause::Timeout), 9_000_000);
        recorder.never_begun(5);
        assert_eq!((recorder.requests, recorder.succeeded, recorder.corrected.len()), (36, 0, 0));
        assert_eq!(recorder.errors[&Cause::Status(503)], 30);
        assert_eq!(recorder.errors[&Cause::NotSent], 5);
        let outcomes: Vec<_> = recorder.failures().iter().map(|example| example.outcome).collect();
        assert_eq!(outcomes.len(), EXAMPLES);
        assert_eq!(outcomes[..2], [Err(Cause::Status(503)), Err(Cause::Timeout)]);
    }

    #[test]
    fn the_slowest_of_all_threads_are_kept() {
        let (mut one, mut two) = (Recorder::new(1), Recorder::new(1));
        for millis in 1..=20 {
            let recorder = if millis % 2 == 0 { &mut one } else { &mut two };
            recorder.finished(WINDOW, &request(2_000_000, 2_000_000), Ok(200), 2_000_000 + millis * 1_000_000);
        }
        one.merge(two);
        let slowest: Vec<u64> = one.slowest().iter().map(|example| example.latency / 1_000_000).collect();
        assert_eq!(slowest, [20, 19, 18, 17, 16, 15, 14, 13, 12, 11]);
        assert_eq!(one.requests, 20);
    }
}
