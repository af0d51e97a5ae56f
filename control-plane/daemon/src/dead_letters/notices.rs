//! When somebody is told that messages die: at most once in ten seconds for a subscription, with how many it were, and at
//! once when there are as many as its alert policy says. Pure: time is an argument.

use std::collections::VecDeque;

use jiff::{SignedDuration, Timestamp};
use meshctl_model::delivery::Alert;

/// Between two notices of a subscription.
const PAUSE: SignedDuration = SignedDuration::from_secs(10);

/// Deaths closer together than this part of an alert's time are counted as one moment, so that memory stays small.
const MOMENTS: i32 = 60;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// So many since the last one.
    Arrived(u64),
    /// So many within the alert's time. The next one comes only after there were fewer.
    Alert(u64),
}

/// What is to be told of one subscription.
#[derive(Debug)]
pub struct Notices {
    alert: Option<Alert>,
    untold: u64,
    told_at: Option<Timestamp>,
    recent: VecDeque<(Timestamp, u64)>,
    alerted: bool,
}

impl Notices {
    pub const fn new(alert: Option<Alert>) -> Self {
        Self { alert, untold: 0, told_at: None, recent: VecDeque::new(), alerted: false }
    }

    /// So many messages died.
    pub fn died(&mut self, letters: u64, now: Timestamp) {
        if letters == 0 {
            return;
        }
        self.untold += letters;
        let moment = self.within().unwrap_or_default() / MOMENTS;
        match self.recent.back_mut() {
            Some((at, count)) if now.duration_since(*at) < moment => *count += letters,
            _ if self.alert.is_some() => self.recent.push_back((now, letters)),
            _ => {}
        }
    }

    /// What is to be told now.
    pub fn due(&mut self, now: Timestamp) -> Vec<Notice> {
        let mut due = Vec::new();
        if self.next().is_some_and(|at| at <= now) {
            due.push(Notice::Arrived(std::mem::take(&mut self.untold)));
            self.told_at = Some(now);
        }
        if let (Some(alert), Some(within)) = (&self.alert, self.within()) {
            while self.recent.front().is_some_and(|(at, _)| now.duration_since(*at) > within) {
                self.recent.pop_front();
            }
            let count = self.recent.iter().map(|(_, count)| count).sum();
            let over = count >= u64::from(alert.count);
            if over && !self.alerted {
                due.push(Notice::Alert(count));
            }
            self.alerted = over;
        }
        due
    }

    /// When there is something to be told though nobody dies.
    pub fn next(&self) -> Option<Timestamp> {
        let after = self.told_at.and_then(|at| at.checked_add(PAUSE).ok()).unwrap_or(Timestamp::MIN);
        (self.untold > 0).then_some(after)
    }

    fn within(&self) -> Option<SignedDuration> {
        SignedDuration::try_from(self.alert.as_ref()?.within.get()).ok()
    }
}

#[cfg(test)]
mod tests {
    use meshctl_model::units::Span;

    use super::*;

    fn at(s: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + s).expect("a time")
    }

    #[test]
    fn arrivals_are_told_at_once_and_then_every_ten_seconds() {
        let mut notices = Notices::new(None);
        assert_eq!(notices.due(at(0)), []);
        notices.died(3, at(0));
        assert_eq!(notices.due(at(0)), [Notice::Arrived(3)]);
        assert_eq!(notices.next(), None);
        notices.died(2, at(1));
        notices.died(5, at(9));
        assert_eq!(notices.due(at(9)), []);
        assert_eq!(notices.next(), Some(at(10)));
        assert_eq!(notices.due(at(10)), [Notice::Arrived(7)]);
    }

    #[test]
    fn an_alert_is_told_once_until_there_were_fewer() {
        let mut notices = Notices::new(Some(Alert { count: 4, within: Span::from_secs(60) }));
        let alerts = |notices: &mut Notices, s| {
            let due = notices.due(at(s)).into_iter();
            due.filter(|notice| matches!(notice, Notice::Alert(_))).collect::<Vec<_>>()
        };
        notices.died(3, at(0));
        assert_eq!(alerts(&mut notices, 0), []);
        notices.died(1, at(30));
        assert_eq!(alerts(&mut notices, 30), [Notice::Alert(4)]);
        notices.died(1, at(40));
        assert_eq!(alerts(&mut notices, 40), [], "still the same trouble");
        assert_eq!(alerts(&mut notices, 62), [], "two are left of it");
        notices.died(2, at(63));
        assert_eq!(alerts(&mut notices, 63), [Notice::Alert(4)]);
    }

    #[test]
    fn memory_stays_small() {
        let mut notices = Notices::new(Some(Alert { count: 1_000_000, within: Span::from_secs(60) }));
        for ms in 0..100_000 {
            notices.died(1, Timestamp::from_millisecond(1_800_000_000_000 + ms).expect("a time"));
            let _ = notices.due(Timestamp::from_millisecond(1_800_000_000_000 + ms).expect("a time"));
        }
        assert!(notices.recent.len() <= 62, "{}", notices.recent.len());
    }
}
