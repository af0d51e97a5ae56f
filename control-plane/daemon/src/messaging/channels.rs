//! Channels as the API shows them: what is wanted, what the broker counts, what the store of dead letters holds, and what
//! couriers say, laid side by side.

use std::collections::BTreeMap;

use jiff::Timestamp;
use meshctl_api::view::messages::{Channel, Subscription};
use meshctl_drivers::broker::ChannelState;
use meshctl_model::delivery;

use super::couriers::{Delivering, Key};
use super::ledger::{AllCounts, entry};
use super::lines::{Line, lines};

/// The channels that are wanted, with who publishes to them.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    pub channels: BTreeMap<String, delivery::Channel>,
    /// Services by channel.
    pub publishers: BTreeMap<String, Vec<String>>,
}

/// One for each wanted channel that the broker has.
pub fn channels(
    wanted: &Wanted,
    states: &[ChannelState],
    counts: &AllCounts,
    delivering: &BTreeMap<Key, Delivering>,
    now: Timestamp,
) -> Vec<Channel> {
    let lines = lines(states);
    let known: BTreeMap<&str, &ChannelState> = states.iter().map(|state| (state.name.as_str(), state)).collect();
    let shown = wanted.channels.iter().filter_map(|(name, channel)| {
        let state = known.get(name.as_str())?;
        let subscriptions: Vec<Subscription> = channel
            .subscriptions
            .iter()
            .map(|(subscription, wanted)| {
                let key = (name.clone(), subscription.clone());
                let line = lines.get(&(name.as_str(), subscription.as_str())).cloned().unwrap_or_default();
                let ledger = entry(name, subscription, &line, counts.get(&key).copied().unwrap_or_default());
                let delivering = delivering.get(&key).cloned().unwrap_or_default();
                self::subscription(key, wanted, &line, ledger.dead, delivering, now)
            })
            .collect();
        let sum = |of: fn(&Subscription) -> u64| subscriptions.iter().map(of).sum();
        Some(Channel {
            name: name.clone(),
            partitions: state.partitions,
            ordered: if channel.ordered { "byKey" } else { "no" }.into(),
            depth: subscriptions.iter().map(|of| of.lag + of.retrying).max().unwrap_or(0),
            in_flight: sum(|of| of.in_flight),
            lag: sum(|of| of.lag),
            dead_letters: sum(|of| of.dead_letters),
            published_per_s: state.published_per_s,
            delivered_per_s: subscriptions.iter().map(|of| of.delivered_per_s).sum(),
            accepted: state.accepted,
            kept: state.kept,
            kept_bytes: state.kept_bytes,
            retention_ms: channel.retention.as_millis(),
            max_size_bytes: channel.max_size.0,
            publishers: wanted.publishers.get(name).cloned().unwrap_or_default(),
            subscriptions,
        })
    });
    shown.collect()
}

fn subscription(
    (channel, subscription): Key,
    wanted: &delivery::Subscription,
    line: &Line<'_>,
    dead_letters: u64,
    delivering: Delivering,
    now: Timestamp,
) -> Subscription {
    let paused = line.paused().map(Pause::parse);
    let (state, reason, since) = match (paused, delivering.waiting) {
        (Some(pause), _) => ("paused", Some(pause.words), pause.since),
        (None, Some((reason, since))) => ("waiting", Some(reason), Some(since)),
        (None, None) => ("flowing", None, None),
    };
    let age = |at: Timestamp| u64::try_from(now.duration_since(at).as_millis()).unwrap_or(0);
    Subscription {
        name: format!("{channel}/{subscription}"),
        channel,
        subscription,
        service: wanted.service.clone(),
        deliver: path_of(&wanted.url).to_owned(),
        state: state.into(),
        reason,
        since,
        lag: line.unsettled(),
        in_flight: line.in_flight(),
        retrying: line.retrying(),
        dead_letters,
        delivered_per_s: delivering.delivered_per_s,
        oldest_ms: line.oldest().map(age),
        latency_p50_ms: delivering.latency_p50_ms,
        latency_p99_ms: delivering.latency_p99_ms,
        concurrency: wanted.concurrency,
        attempts: wanted.retry.attempts + 1,
    }
}

/// `/events/order-placed` of `http://127.0.0.1:20417/events/order-placed`.
fn path_of(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.find('/').map_or("/", |at| &rest[at..])
}

/// Who paused a subscription and why, in the words that the broker keeps for us: it has room for one reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pause {
    pub since: Option<Timestamp>,
    /// `by root: the ledger is being repaired`.
    pub words: String,
}

impl Pause {
    pub fn new(by: &str, reason: Option<&str>, at: Timestamp) -> Self {
        let words = match reason {
            Some(reason) => format!("by {by}: {reason}"),
            None => format!("by {by}"),
        };
        Self { since: Some(at), words }
    }

    pub fn text(&self) -> String {
        match self.since {
            Some(since) => format!("{since} {}", self.words),
            None => self.words.clone(),
        }
    }

    pub fn parse(text: &str) -> Self {
        let timed = text.split_once(' ').and_then(|(since, words)| Some((since.parse().ok()?, words)));
        match timed {
            Some((since, words)) => Self { since: Some(since), words: words.into() },
            None => Self { since: None, words: text.into() },
        }
    }
}

#[cfg(test)]
mod tests {
    use meshctl_drivers::broker::GroupState;
    use meshctl_model::delivery::Behind;
    use meshctl_model::units::{Bytes, Percent, Span};

    use super::*;

    fn wanted() -> Wanted {
        let subscription = delivery::Subscription {
            service: "billing".into(),
            url: "http://127.0.0.1:20417/events/order-placed?x=1".into(),
            concurrency: 64,
            timeout: Span::from_secs(10),
            retry: delivery::Retry { attempts: 5, backoff: vec![Span::from_secs(1)], jitter: Percent(0.2) },
            alert: None,
        };
        let channel = delivery::Channel {
            partitions: 8,
            key: None,
            ordered: false,
            retention: Span::from_secs(60),
            max_size: Bytes(1 << 30),
            max_message: Bytes(1 << 20),
            idempotency_window: Span::from_secs(600),
            subscriptions: [("billing".to_owned(), subscription.clone()), ("mailer".to_owned(), subscription)].into(),
        };
        Wanted { channels: [("order.placed".to_owned(), channel)].into(), publishers: BTreeMap::new() }
    }

    fn group(name: &str, unsettled: u64, oldest: Option<&str>) -> GroupState {
        let oldest_unsettled_at = oldest.map(|at| at.parse().expect("a time"));
        GroupState { name: name.into(), accepted: unsettled, unsettled, oldest_unsettled_at, ..GroupState::default() }
    }

    #[test]
    fn depth_is_of_the_slowest_subscription_and_lag_of_all() {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().expect("a time");
        let retry = Behind::Retry(1).channel("order.placed", "billing");
        let states = vec![
            ChannelState {
                name: "order.placed".into(),
                partitions: 8,
                groups: vec![group("billing", 3, Some("2026-01-01T00:00:59Z")), group("mailer", 4, None)],
                ..ChannelState::default()
            },
            ChannelState {
                name: retry,
                groups: vec![group("courier", 2, Some("2026-01-01T00:00:30Z"))],
                ..ChannelState::default()
            },
        ];
        let shown = channels(&wanted(), &states, &AllCounts::new(), &BTreeMap::new(), now);
        let channel = &shown[0];
        assert_eq!((channel.depth, channel.lag), (5, 7));
        let billing = &channel.subscriptions[0];
        assert_eq!((billing.lag, billing.retrying, billing.oldest_ms), (3, 2, Some(30_000)));
        assert_eq!((billing.state.as_str(), billing.deliver.as_str()), ("flowing", "/events/order-placed?x=1"));
        assert_eq!(billing.attempts, 6);
    }

    #[test]
    fn an_operators_pause_is_shown_before_a_subscriber_that_is_down() {
        let now = Timestamp::UNIX_EPOCH;
        let pause = Pause::new("root", Some("a repair"), now);
        let mut paused = group("billing", 0, None);
        paused.paused = Some(pause.text());
        let state = ChannelState {
            name: "order.placed".into(),
            groups: vec![paused],
            partitions: 8,
            ..ChannelState::default()
        };
        let down = Delivering { waiting: Some(("connection refused".into(), now)), ..Delivering::default() };
        let keys = ["billing", "mailer"].map(|of| ("order.placed".to_owned(), of.to_owned()));
        let delivering = keys.into_iter().map(|key| (key, down.clone())).collect();
        let shown = channels(&wanted(), &[state], &AllCounts::new(), &delivering, now);
        let [billing, mailer] = shown[0].subscriptions.as_slice() else { panic!("two subscriptions") };
        assert_eq!((billing.state.as_str(), billing.reason.as_deref()), ("paused", Some("by root: a repair")));
        assert_eq!(billing.since, Some(now));
        assert_eq!((mailer.state.as_str(), mailer.reason.as_deref()), ("waiting", Some("connection refused")));
    }

    #[test]
    fn a_pause_that_somebody_else_wrote_is_shown_as_it_is() {
        let pause = Pause::parse("maintenance of the machine");
        assert_eq!(pause, Pause { since: None, words: "maintenance of the machine".into() });
    }

    #[test]
    fn a_channel_that_the_broker_does_not_have_yet_is_not_shown() {
        assert!(channels(&wanted(), &[], &AllCounts::new(), &BTreeMap::new(), Timestamp::UNIX_EPOCH).is_empty());
    }
}
