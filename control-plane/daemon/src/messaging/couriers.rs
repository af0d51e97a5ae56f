//! What couriers say of subscriptions: asked each second, since only they know whether a subscriber is down and how long a
//! delivery takes. It is what was said last, and nothing is decided by it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use meshctl_model::delivery::{COURIER, CourierStatus};
use meshctl_model::event::EventSeverity;
use serde_json::json;
use tokio::time::Instant;

use crate::control::Message;
use crate::report::Report;
use crate::server::Shared;

/// Between two questions.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long a courier may take to answer; it is asked again in a second.
const PATIENCE: Duration = Duration::from_millis(500);
/// What a courier said counts for so long.
const FRESH: Duration = Duration::from_secs(5);
/// Rates are over this time.
const WINDOW: Duration = Duration::from_secs(10);
/// The largest answer that is read.
const ENOUGH: usize = 16 << 20;

/// Channel and subscription.
pub type Key = (String, String);

/// What the couriers say, shared by everybody who shows it. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Couriers(Arc<Mutex<Heard>>);

/// What is known of a subscription from all couriers together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Delivering {
    /// Why the subscriber is waited for, and since when.
    pub waiting: Option<(String, Timestamp)>,
    pub delivered_per_s: f64,
    /// The worst of any courier: a percentile of percentiles does not exist.
    pub latency_p50_ms: Option<f64>,
    pub latency_p99_ms: Option<f64>,
}

/// A change that operators are told of.
#[derive(Clone, Debug, PartialEq)]
pub enum Turn {
    Waiting { key: Key, reason: String },
    Flowing { key: Key },
}

#[derive(Debug, Default)]
struct Heard {
    /// By instance id.
    couriers: BTreeMap<String, Courier>,
    /// What was told of subscriptions whose subscriber is down.
    waiting: BTreeMap<Key, (String, Timestamp)>,
}

#[derive(Debug)]
struct Courier {
    at: Instant,
    status: CourierStatus,
    /// Processed since it started, oldest first: what rates are made of.
    samples: VecDeque<(Instant, BTreeMap<Key, u64>)>,
}

impl Couriers {
    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn delivering(&self) -> BTreeMap<Key, Delivering> {
        self.heard().delivering()
    }
}

impl Heard {
    /// Takes in what the couriers said at `now`; the ids are of all that there are, whether they answered or not.
    fn hear(&mut self, now: Instant, answers: Vec<(String, Option<CourierStatus>)>) -> Vec<Turn> {
        self.couriers.retain(|id, courier| {
            answers.iter().any(|(there, _)| there == id) && now.duration_since(courier.at) <= FRESH
        });
        for (id, status) in answers {
            let Some(status) = status else { continue };
            let processed = status.subscriptions.iter().map(|of| (key(of), of.processed)).collect();
            let samples = self.couriers.remove(&id).map(|courier| courier.samples).unwrap_or_default();
            let mut courier = Courier { at: now, status, samples };
            courier.samples.push_back((now, processed));
            while courier.samples.front().is_some_and(|(at, _)| now.duration_since(*at) > WINDOW) {
                courier.samples.pop_front();
            }
            self.couriers.insert(id, courier);
        }
        self.turns()
    }

    /// A subscriber of which no courier knows at the moment is as it was.
    fn turns(&mut self) -> Vec<Turn> {
        let mut said: BTreeMap<Key, Option<(String, Timestamp)>> = BTreeMap::new();
        for of in self.couriers.values().flat_map(|courier| &courier.status.subscriptions) {
            let waiting = said.entry(key(of)).or_default();
            if let Some(reason) = &of.paused
                && waiting.as_ref().is_none_or(|(_, since)| of.since < *since)
            {
                *waiting = Some((reason.clone(), of.since));
            }
        }
        let mut turns = Vec::new();
        for (key, waiting) in said {
            match waiting {
                Some((reason, since)) => {
                    if self.waiting.insert(key.clone(), (reason.clone(), since)).is_none() {
                        turns.push(Turn::Waiting { key, reason });
                    }
                }
                None => {
                    if self.waiting.remove(&key).is_some() {
                        turns.push(Turn::Flowing { key });
                    }
                }
            }
        }
        turns
    }

    fn delivering(&self) -> BTreeMap<Key, Delivering> {
        let mut all: BTreeMap<Key, Delivering> = BTreeMap::new();
        for courier in self.couriers.values() {
            for of in &courier.status.subscriptions {
                let one = all.entry(key(of)).or_default();
                one.delivered_per_s += courier.rate(&key(of));
                let worse = |a: Option<f64>, b: Option<f64>| a.into_iter().chain(b).reduce(f64::max);
                one.latency_p50_ms = worse(one.latency_p50_ms, of.latency_p50_ms);
                one.latency_p99_ms = worse(one.latency_p99_ms, of.latency_p99_ms);
            }
        }
        for (key, waiting) in &self.waiting {
            if let Some(one) = all.get_mut(key) {
                one.waiting = Some(waiting.clone());
            }
        }
        all
    }
}

impl Courier {
    fn rate(&self, key: &Key) -> f64 {
        let of =
            |sample: Option<&(Instant, BTreeMap<Key, u64>)>| sample.and_then(|(at, by)| Some((*at, *by.get(key)?)));
        let (Some((since, before)), Some((until, now))) = (of(self.samples.front()), of(self.samples.back())) else {
            return 0.0;
        };
        let seconds = until.duration_since(since).as_secs_f64();
        // A process that was started again under the same id counts from zero.
        if seconds > 0.0 { now.saturating_sub(before) as f64 / seconds } else { 0.0 }
    }
}

fn key(of: &meshctl_model::delivery::SubscriptionStatus) -> Key {
    (of.channel.clone(), of.subscription.clone())
}

/// Asks every courier each second, for as long as the daemon lives. Where there are none it only looks whether there are.
pub async fn ask_for_ever(shared: Shared, couriers: Couriers) {
    let http = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().unwrap_or_default();
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let look = shared.look(|control| {
            let running = control.state.observed.of(COURIER).filter(|courier| courier.process.is_some());
            Ok(running.filter_map(|courier| Some((courier.spec.id.clone(), courier.address()?))).collect::<Vec<_>>())
        });
        let Ok(there) = look.await else { return };
        let answers = there.into_iter().map(|(id, address)| {
            let http = &http;
            async move { (id, ask(http, &format!("http://{address}/status")).await) }
        });
        let answers = futures_util::future::join_all(answers).await;
        let turns = couriers.heard().hear(Instant::now(), answers);
        for turn in turns {
            if shared.messages.send(Message::Report(told(turn))).await.is_err() {
                return;
            }
        }
    }
}

/// `None` where it does not answer, or not in our words: its health check tells of that.
async fn ask(http: &reqwest::Client, url: &str) -> Option<CourierStatus> {
    let answer = http.get(url).send().await.ok()?.error_for_status().ok()?;
    if answer.content_length().is_some_and(|length| length > ENOUGH as u64) {
        return None;
    }
    answer.json().await.ok()
}

fn told(turn: Turn) -> Report {
    let name = |(channel, subscription): &Key| format!("{channel}/{subscription}");
    let (severity, kind, key, message, reason) = match turn {
        Turn::Waiting { key, reason } => {
            let message = format!("{} waits for its subscriber: {reason}", name(&key));
            (EventSeverity::Warning, "subscription.waiting", key, message, Some(reason))
        }
        Turn::Flowing { key } => {
            let message = format!("{} flows again", name(&key));
            (EventSeverity::Info, "subscription.flowing", key, message, None)
        }
    };
    let data = json!({"channel": key.0, "subscription": key.1, "reason": reason});
    Report::Happened { severity, kind, subject: format!("subscription/{}", name(&key)), message, data }
}

#[cfg(test)]
mod tests {
    use meshctl_model::delivery::SubscriptionStatus;

    use super::*;

    fn says(paused: Option<&str>, processed: u64, p99: Option<f64>) -> CourierStatus {
        let subscription = SubscriptionStatus {
            channel: "order.placed".into(),
            subscription: "billing".into(),
            paused: paused.map(str::to_owned),
            since: Timestamp::UNIX_EPOCH,
            in_flight: 0,
            processed,
            retried: 0,
            dead: 0,
            latency_p50_ms: None,
            latency_p99_ms: p99,
        };
        CourierStatus { connected: true, subscriptions: vec![subscription] }
    }

    fn billing() -> Key {
        ("order.placed".into(), "billing".into())
    }

    #[test]
    fn a_subscriber_that_is_down_is_told_once_and_flows_only_when_a_courier_says_so() {
        let mut heard = Heard::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let answers = |one, two| vec![("courier-1".to_owned(), one), ("courier-2".to_owned(), two)];
        assert_eq!(heard.hear(at(0), answers(Some(says(None, 0, None)), Some(says(None, 0, None)))), []);
        let down = heard.hear(at(1), answers(Some(says(Some("refused"), 0, None)), Some(says(None, 0, None))));
        assert_eq!(down, [Turn::Waiting { key: billing(), reason: "refused".into() }]);
        assert_eq!(heard.delivering()[&billing()].waiting.as_ref().map(|(why, _)| why.as_str()), Some("refused"));
        assert_eq!(heard.hear(at(2), answers(Some(says(Some("refused"), 0, None)), None)), []);
        // All couriers are gone for a while: nobody knows better.
        assert_eq!(heard.hear(at(9), Vec::new()), []);
        let up = heard.hear(at(10), vec![("courier-3".into(), Some(says(None, 0, None)))]);
        assert_eq!(up, [Turn::Flowing { key: billing() }]);
        assert_eq!(heard.delivering()[&billing()].waiting, None);
    }

    #[test]
    fn rates_are_sums_over_the_window_and_percentiles_the_worst() {
        let mut heard = Heard::default();
        let start = Instant::now();
        for second in 0..=20 {
            let answers = vec![
                ("courier-1".to_owned(), Some(says(None, 100 * second, Some(5.0)))),
                ("courier-2".to_owned(), Some(says(None, 1000 + 50 * second, Some(9.0)))),
            ];
            heard.hear(start + Duration::from_secs(second), answers);
        }
        let delivering = &heard.delivering()[&billing()];
        assert!((delivering.delivered_per_s - 150.0).abs() < 1e-9, "{delivering:?}");
        assert_eq!((delivering.latency_p50_ms, delivering.latency_p99_ms), (None, Some(9.0)));
        // Started again: it counts from zero, which is not a negative rate.
        heard.hear(start + Duration::from_secs(21), vec![("courier-1".into(), Some(says(None, 0, None)))]);
        assert!(heard.delivering()[&billing()].delivered_per_s >= 0.0);
    }
}
