//! The last ten seconds of every route and edge: what has been counted so far, noted once a second, so that it can be told
//! what came since.
//!
//! Something that nothing happens to keeps a single note, however long that lasts.

use std::collections::{HashMap, VecDeque};

use meshctl_model::recent::Recent;

use crate::metrics::Totals;

/// How often [`Notes::take`] is to be called.
pub(crate) const NOTE_EVERY: std::time::Duration = std::time::Duration::from_secs(1);
const BACK_NANOS: u64 = 10_000_000_000;
/// No shorter time is divided by: a request of the last millisecond does not make a thousand in a second.
const SHORTEST_MS: u64 = 1_000;

/// By name, the oldest first, each with its time. The oldest is what [`Recent`] is counted from.
#[derive(Debug, Default)]
pub(crate) struct Notes(HashMap<String, VecDeque<(u64, Totals)>>);

impl Notes {
    /// Notes how all of `present` are at `now`, in nanoseconds, and forgets what is not among them.
    pub(crate) fn take<'a>(&mut self, present: impl Iterator<Item = (&'a str, Totals)>, now: u64) {
        let mut former = std::mem::take(&mut self.0);
        for (name, totals) in present {
            let (name, mut notes) = former.remove_entry(name).unwrap_or_else(|| (name.to_owned(), VecDeque::new()));
            if notes.back().is_none_or(|(_, last)| !last.is_same(&totals)) {
                notes.push_back((now, totals));
            }
            // The second one is old enough to be counted from: nothing before it is wanted.
            while notes.get(1).is_some_and(|(at, _)| at.saturating_add(BACK_NANOS) <= now) {
                notes.pop_front();
            }
            self.0.insert(name, notes);
        }
    }

    /// What has come of `name` since the oldest note, being `totals` at `now`.
    pub(crate) fn recent(&self, name: &str, totals: &Totals, now: u64) -> Recent {
        let oldest = self.0.get(name).and_then(|notes| notes.front());
        let over_ms = oldest.map_or(0, |(at, _)| now.saturating_sub(*at).min(BACK_NANOS) / 1_000_000);
        totals.since(oldest.map(|(_, before)| before), over_ms.max(SHORTEST_MS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{Outcome, Red};

    const SECOND: u64 = 1_000_000_000;

    fn served(red: &Red) {
        red.request(&Outcome {
            status: Some(http::StatusCode::OK),
            took: 5_000_000,
            reached: true,
            ..Outcome::default()
        });
    }

    #[test]
    fn what_is_older_than_ten_seconds_is_forgotten() {
        let (red, mut notes) = ([Red::default()], Notes::default());
        let seen = |notes: &Notes, second: u64| notes.recent("a", &Totals::of(&red), second * SECOND);
        for second in 0..5 {
            notes.take([("a", Totals::of(&red))].into_iter(), second * SECOND);
            (0..10).for_each(|_| served(&red[0]));
        }
        let early = seen(&notes, 5);
        assert_eq!((early.requests, early.over_ms, early.per_s(early.requests)), (50, 5_000, 10.0));
        for second in 5..14 {
            notes.take([("a", Totals::of(&red))].into_iter(), second * SECOND);
        }
        let late = seen(&notes, 13);
        assert_eq!((late.requests, late.over_ms), (20, 10_000), "of the seconds 3 and 4");
        for second in 14..17 {
            notes.take([("a", Totals::of(&red))].into_iter(), second * SECOND);
        }
        let idle = seen(&notes, 17);
        assert_eq!((idle.requests, idle.latencies.quantile_ms(0.99)), (0, None));
        assert_eq!(notes.0["a"].len(), 1, "nothing happens, and one note is enough");
        notes.take(std::iter::empty(), 18 * SECOND);
        assert!(notes.0.is_empty());
    }

    #[test]
    fn a_moment_is_not_blown_up() {
        let (red, mut notes) = ([Red::default()], Notes::default());
        notes.take([("a", Totals::of(&red))].into_iter(), SECOND);
        served(&red[0]);
        let seen = notes.recent("a", &Totals::of(&red), SECOND + 1_000_000);
        assert_eq!(seen.per_s(seen.requests), 1.0);
    }
}
