//! The message line's declarations, guard and views against a real broker.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use meshctl_api::view::messages::NewMessage;
use meshctl_drivers::broker::embedded::{Client, Options, serve};
use meshctl_drivers::broker::{Broker, Outcome, Settlement};
use meshctl_model::delivery::{self, Behind};
use meshctl_model::instance::ProcessId;
use meshctl_model::units::{Bytes, Percent, Span};
use tokio::sync::mpsc;

use super::declare::{Declaration, Declared, Occasion, Undeclared, declare, specs};
use super::messages::{Elsewhere, Follower, compose, find, shown};
use super::*;

struct Shop {
    messaging: Messaging,
    _folder: tempfile::TempDir,
    _messages: mpsc::Receiver<crate::control::Message>,
}

/// A broker of its own, which ends with the test's process.
async fn shop() -> Shop {
    let folder = tempfile::tempdir().expect("a folder");
    let options = Options { state_dir: folder.path().to_owned(), listen: None, port: None };
    std::thread::spawn(move || serve(&options));
    let (store, _) = crate::dead_letters::store::Store::open(&folder.path().join("deadletters.db")).expect("a store");
    let (sender, messages) = mpsc::channel(64);
    let messaging = Messaging {
        broker: Arc::new(Client::new(folder.path())),
        letters: DeadLetters::new(store, sender),
        couriers: Couriers::default(),
    };
    while messaging.states().await.is_err() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Shop { messaging, _folder: folder, _messages: messages }
}

fn subscription(tiers: usize) -> delivery::Subscription {
    delivery::Subscription {
        service: "billing".into(),
        url: "http://127.0.0.1:1/events".into(),
        concurrency: 8,
        timeout: Span::from_secs(1),
        retry: delivery::Retry { attempts: 5, backoff: vec![Span::from_secs(1); tiers], jitter: Percent(0.0) },
        alert: None,
    }
}

fn channel(partitions: u32, subscriptions: &[&str]) -> delivery::Channel {
    delivery::Channel {
        partitions,
        key: Some("order.id".into()),
        ordered: false,
        retention: Span::from_secs(3600),
        max_size: Bytes(1 << 20),
        max_message: Bytes(1 << 10),
        idempotency_window: Span::from_secs(600),
        subscriptions: subscriptions.iter().map(|name| ((*name).to_owned(), subscription(2))).collect(),
    }
}

fn wanted(channels: &[(&str, delivery::Channel)], last: bool, discard: bool) -> Declaration {
    let broker = Some(ProcessId { pid: 1, start_time: 0, boot_id: String::new() });
    let channels = channels.iter().map(|(name, channel)| ((*name).to_owned(), channel.clone())).collect();
    Declaration { occasion: Occasion { asked: 1, broker, last }, channels, discard }
}

impl Shop {
    async fn declare(&self, wanted: &Declaration) -> Result<Declared, String> {
        match declare(self.messaging.broker.as_ref(), &self.messaging.letters, wanted).await {
            Ok(declared) => Ok(declared),
            Err(Undeclared::Refused(why)) => Err(why),
            Err(Undeclared::Away(why)) => panic!("{why}"),
        }
    }

    async fn publish(&self, name: &str, channel: &delivery::Channel, payloads: &[&str]) -> Vec<String> {
        let compose = |payload: &&str| {
            let new = NewMessage { payload_base64: STANDARD.encode(payload), ..NewMessage::default() };
            compose(name, channel, new, "ann", Timestamp::now()).expect("a message")
        };
        let confirmed = self.messaging.broker.publish(name, payloads.iter().map(compose).collect()).await;
        confirmed.expect("published").into_iter().map(|confirmed| confirmed.message_id).collect()
    }

    async fn names(&self) -> Vec<String> {
        let mut names: Vec<_> =
            self.messaging.states().await.expect("the broker").into_iter().map(|state| state.name).collect();
        names.sort();
        names
    }
}

fn names(wanted: &Declaration) -> Vec<String> {
    let mut names: Vec<_> = specs(&wanted.channels).into_iter().map(|spec| spec.name).collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_new_comes_at_once_and_what_is_not_wanted_goes_last() {
    let shop = shop().await;
    let first = wanted(&[("c", channel(2, &["a", "b"])), ("d", channel(1, &["a"]))], false, false);
    let declared = shop.declare(&first).await.expect("declared");
    assert_eq!(declared, Declared { new: vec!["c".into(), "d".into()], removed: Vec::new() });
    assert_eq!(shop.names().await, names(&first));
    assert_eq!(shop.declare(&first).await, Ok(Declared::default()), "twice does nothing");

    let other = [("c", channel(4, &["b", "e"]))];
    shop.declare(&wanted(&other, false, false)).await.expect("declared");
    let now = shop.names().await;
    for kept in ["c/a/dead", "d", "c/e/replay"] {
        assert!(now.contains(&kept.to_owned()), "{kept} is not in {now:?}");
    }
    let last = wanted(&other, true, false);
    let declared = shop.declare(&last).await.expect("declared");
    assert_eq!(declared, Declared { new: Vec::new(), removed: vec!["d".into()] });
    assert_eq!(shop.names().await, names(&last));
    let states = shop.messaging.states().await.expect("the broker");
    let c = states.iter().find(|state| state.name == "c").expect("c");
    let groups: Vec<_> = c.groups.iter().map(|group| group.name.as_str()).collect();
    assert_eq!((c.partitions, groups), (4, vec!["b", "e"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_holds_messages_goes_unless_the_operator_says_so() {
    let shop = shop().await;
    let two = channel(2, &["a", "b"]);
    shop.declare(&wanted(&[("c", two.clone()), ("d", two.clone())], true, false)).await.expect("declared");
    shop.publish("c", &two, &["1", "2", "3"]).await;

    for (channels, expected) in [
        (vec![("d", two.clone())], "the channel c is not wanted any more, and holds 6 messages that are not settled"),
        (
            vec![("c", channel(2, &["a"])), ("d", two.clone())],
            "the subscription c/b is not wanted any more, and holds 3 messages",
        ),
        (vec![("c", channel(1, &["a", "b"])), ("d", two.clone())], "the channel c is to be made anew, and holds 6"),
    ] {
        let refused = shop.declare(&wanted(&channels, true, false)).await.expect_err("refused");
        assert!(refused.contains(expected), "{refused}");
        shop.declare(&wanted(&channels, false, false)).await.expect("nothing is taken away yet");
    }
    let one = [("c", channel(1, &["a"])), ("d", two.clone())];
    shop.declare(&wanted(&one, true, true)).await.expect("discarded");
    let states = shop.messaging.states().await.expect("the broker");
    let c = states.iter().find(|state| state.name == "c").expect("c");
    assert_eq!((c.partitions, c.accepted, c.groups.len()), (1, 0, 1), "it begins anew");
    shop.declare(&wanted(&one[1..], true, false)).await.expect("it is empty now");
    assert!(!shop.names().await.iter().any(|name| name.starts_with('c')));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_is_weighed_by_what_the_broker_holds() {
    let shop = shop().await;
    let two = channel(2, &["a", "b"]);
    shop.declare(&wanted(&[("c", two.clone())], true, false)).await.expect("declared");
    let desired = |channels: &[(&str, delivery::Channel)]| meshctl_model::plan::Desired {
        channels: wanted(channels, true, false).channels,
        gateway: Some(meshctl_model::plan::DesiredGateway {
            listen: ([127, 0, 0, 1], 1).into(),
            instances: 1,
            threads: None,
            metrics: Vec::new(),
            limits: Default::default(),
        }),
        ..Default::default()
    };
    let (old, new) = (desired(&[("c", two.clone())]), desired(&[("c", channel(2, &["a"]))]));
    let losses = meshctl_model::plan::losses(&old, &new);
    assert_eq!(shop.messaging.lost(&losses).await.expect("weighed"), []);
    shop.publish("c", &two, &["1", "2"]).await;
    let lost = shop.messaging.lost(&losses).await.expect("weighed");
    let refusal = guard::refusal(&lost).expect("refused");
    assert!(
        refusal.message.ends_with("subscription b of channel c is removed: it holds 2 messages that are not settled"),
        "{refusal}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_are_read_once_found_by_their_id_and_shown_for_what_they_are() {
    let shop = shop().await;
    let channel = channel(4, &["a"]);
    shop.declare(&wanted(&[("c", channel.clone())], true, false)).await.expect("declared");
    let broker = shop.messaging.broker.as_ref();
    let mut follower = Follower::after(Timestamp::now());
    assert!(follower.next(broker, "c").await.expect("read").is_empty());
    let payloads: Vec<String> = (0..1200).map(|number| format!("{{\"order\":{{\"id\":\"o-{number}\"}}}}")).collect();
    let mut published = Vec::new();
    for some in payloads.chunks(600) {
        published.extend(shop.publish("c", &channel, &some.iter().map(String::as_str).collect::<Vec<_>>()).await);
    }
    let mut read = Vec::new();
    loop {
        let new = follower.next(broker, "c").await.expect("read");
        if new.is_empty() {
            break;
        }
        read.extend(new.into_iter().map(|stored| stored.message.id));
    }
    read.sort();
    published.sort();
    assert_eq!(read, published, "each once");

    let found = find(broker, "c", &published[700]).await.expect("searched").expect("found");
    let message = shown("c", found, &Elsewhere::default(), true);
    assert_eq!(message.message_id, published[700]);
    assert_eq!((message.status.as_str(), message.unsettled_by), ("accepted", vec!["a".to_owned()]));
    assert_eq!((message.service.as_str(), message.kind.as_str()), ("operator/ann", "c"));
    let id = message.payload.as_ref().and_then(|payload| payload["order"]["id"].as_str().map(str::to_owned));
    assert_eq!(message.key, id, "the key is the field that the channel names");
    assert_eq!(find(broker, "c", "01890a5d-ac96-774b-bcce-b302099a8057").await.expect("searched"), None);
    assert_eq!(find(broker, "c", "nonsense").await.expect("searched"), None);

    let large = NewMessage { payload_base64: STANDARD.encode([0; 2000]), ..NewMessage::default() };
    let refused = compose("c", &channel, large, "ann", Timestamp::now()).expect_err("too large");
    assert!(refused.message.contains("maxMessage"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_holds_for_a_subscription_with_everything_that_waits_behind_it() {
    let shop = shop().await;
    let channel = channel(1, &["a", "b"]);
    let wanted_now = wanted(&[("c", channel.clone())], true, false);
    shop.declare(&wanted_now).await.expect("declared");
    let pause = Pause::new("ann", Some("a repair"), Timestamp::now());
    shop.messaging.pause("c", "a", Some(&pause)).await.expect("paused");
    let paused = |states: Vec<ChannelState>| {
        let of = |state: ChannelState| {
            let names = state.groups.into_iter().filter(|group| group.paused.is_some()).map(|group| group.name);
            names.map(|group| format!("{} {group}", state.name)).collect::<Vec<_>>()
        };
        let mut all: Vec<_> = states.into_iter().flat_map(of).collect();
        all.sort();
        all
    };
    let expected = ["c a", "c/a/replay courier", "c/a/retry-1 courier", "c/a/retry-2 courier"];
    assert_eq!(paused(shop.messaging.states().await.expect("the broker")), expected);
    let seen = Wanted { channels: wanted_now.channels.clone(), publishers: BTreeMap::new() };
    let views = shop.messaging.channels(&seen).await.expect("seen");
    assert_eq!(views[0].subscriptions[0].reason.as_deref(), Some("by ann: a repair"));
    assert!(shop.messaging.ledger(&seen).await.expect("seen").iter().all(|entry| entry.balanced));
    let mut more = wanted_now.clone();
    more.channels
        .get_mut("c")
        .and_then(|c| c.subscriptions.get_mut("a"))
        .expect("a")
        .retry
        .backoff
        .push(Span::default());
    shop.declare(&more).await.expect("declared");
    let now = paused(shop.messaging.states().await.expect("the broker"));
    assert!(now.contains(&"c/a/retry-3 courier".to_owned()), "what comes later is paused, too: {now:?}");
    // Made anew with fewer partitions it is paused as it was, and can be resumed.
    more.channels.get_mut("c").expect("c").partitions = 2;
    shop.declare(&more).await.expect("declared");
    more.channels.get_mut("c").expect("c").partitions = 1;
    shop.declare(&more).await.expect("declared");
    assert_eq!(paused(shop.messaging.states().await.expect("the broker")), now);
    shop.messaging.pause("c", "a", None).await.expect("resumed");
    shop.declare(&more).await.expect("declared");
    assert!(paused(shop.messaging.states().await.expect("the broker")).is_empty());
    assert_eq!(Behind::parse("c/a/retry-1"), Some(("c", "a", Behind::Retry(1))));
}

/// Settles so many messages of a group, as processed or moved.
async fn settle(broker: &dyn Broker, channel: &str, group: &str, count: usize, to: Option<&str>) {
    let mut consumer = broker.consume(channel, group, 100).await.expect("joined");
    let mut settlements = Vec::new();
    while settlements.len() < count {
        let delivery = consumer.deliveries.recv().await.expect("a delivery");
        let outcome = match to {
            None => Outcome::Processed,
            Some(to) => Outcome::Moved { channel: to.into(), message: delivery.message },
        };
        settlements.push(Settlement { position: delivery.position, outcome });
    }
    consumer.settler.settle(settlements).await.expect("settled");
}

fn without_tiers(mut channel: delivery::Channel, tiers: usize) -> delivery::Channel {
    channel.subscriptions.values_mut().for_each(|subscription| subscription.retry.backoff.truncate(tiers));
    channel
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tier_that_is_not_wanted_any_more_still_counts() {
    let shop = shop().await;
    let broker = shop.messaging.broker.as_ref();
    let two = channel(1, &["a"]);
    shop.declare(&wanted(&[("c", two.clone())], true, false)).await.expect("declared");
    shop.publish("c", &two, &["1", "2", "3"]).await;
    settle(broker, "c", "a", 3, Some("c/a/retry-2")).await;
    settle(broker, "c/a/retry-2", COURIER, 2, None).await;

    let one = [("c", without_tiers(two.clone(), 1))];
    let refused = shop.declare(&wanted(&one, true, false)).await.expect_err("nobody would drain it");
    assert!(refused.contains("the channel c/a/retry-2 is not wanted any more, and holds 1 message"), "{refused}");
    assert!(refused.contains("--discard-messages") && refused.contains("the former file"), "{refused}");
    shop.declare(&wanted(&one, true, true)).await.expect("discarded");
    let seen = Wanted { channels: wanted(&one, true, false).channels, publishers: BTreeMap::new() };
    let entry = shop.messaging.ledger(&seen).await.expect("seen").remove(0);
    assert_eq!((entry.accepted, entry.processed, entry.discarded, entry.balanced), (3, 2, 1, true), "{entry:?}");
    shop.declare(&wanted(&one, true, false)).await.expect("an empty tier is in nobody's way");
    shop.declare(&wanted(&[("c", two)], true, false)).await.expect("it is wanted again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_that_still_has_messages_loses_nothing_behind_it() {
    let shop = shop().await;
    let two = channel(1, &["a", "b"]);
    shop.declare(&wanted(&[("c", two.clone())], true, false)).await.expect("declared");
    let before = shop.names().await;
    shop.publish("c", &two, &["1"]).await;
    let one = [("c", channel(1, &["a"]))];
    let refused = shop.declare(&wanted(&one, true, false)).await.expect_err("refused");
    assert!(refused.contains("the subscription c/b is not wanted any more, and holds 1 message"), "{refused}");
    assert_eq!(shop.names().await, before);
    settle(shop.messaging.broker.as_ref(), "c", "b", 1, None).await;
    let declared = shop.declare(&wanted(&one, true, false)).await.expect("drained");
    assert_eq!(declared, Declared::default(), "no channel of the topology came or went");
    assert!(!shop.names().await.iter().any(|name| name.starts_with("c/b/")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_that_was_being_made_anew_when_the_daemon_died_is_made_anew() {
    let shop = shop().await;
    let broker = shop.messaging.broker.as_ref();
    let two = channel(2, &["a"]);
    shop.declare(&wanted(&[("c", two.clone())], true, false)).await.expect("declared");
    shop.publish("c", &two, &["1"]).await;
    settle(broker, "c", "a", 1, Some("c/a/dead")).await;
    let died = broker.remove("c/a/dead", false).await;
    assert!(matches!(died, Err(BrokerError::Refused(_))), "what is not settled stays: {died:?}");
    settle(broker, "c/a/dead", delivery::DAEMON, 1, None).await;
    broker.remove("c", false).await.expect("the first step, and no more");
    let one = [("c", channel(1, &["a"]))];
    shop.declare(&wanted(&one, false, false)).await.expect("what is missing comes at once");
    shop.declare(&wanted(&one, true, false)).await.expect("declared");
    let states = shop.messaging.states().await.expect("the broker");
    assert!(states.iter().all(|state| state.partitions == 1 && state.accepted == 0), "{states:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_lost_with_the_store_is_missing() {
    let shop = shop().await;
    let broker = shop.messaging.broker.as_ref();
    let one = channel(1, &["a"]);
    let wanted = wanted(&[("c", one.clone())], true, false);
    shop.declare(&wanted).await.expect("declared");
    shop.publish("c", &one, &["1", "2", "3"]).await;
    settle(broker, "c", "a", 3, Some("c/a/dead")).await;
    // By a daemon with another store, which is no more.
    settle(broker, "c/a/dead", delivery::DAEMON, 2, None).await;
    shop.declare(&wanted).await.expect("declared");
    shop.declare(&wanted).await.expect("twice is once");
    let seen = Wanted { channels: wanted.channels, publishers: BTreeMap::new() };
    let entry = shop.messaging.ledger(&seen).await.expect("seen").remove(0);
    assert_eq!((entry.accepted, entry.dead, entry.missing, entry.balanced), (3, 1, 2, false), "{entry:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_looked_at_is_not_called_processed() {
    let shop = shop().await;
    let broker = shop.messaging.broker.as_ref();
    let one = channel(1, &["a"]);
    shop.declare(&wanted(&[("c", one.clone())], true, false)).await.expect("declared");
    let mut ids = Vec::new();
    for _ in 0..11 {
        ids.extend(shop.publish("c", &one, &["1"; 100]).await);
        settle(broker, "c", "a", 100, Some("c/a/retry-1")).await;
    }
    for (id, status) in [(&ids[0], "settled"), (&ids[1099], "retrying")] {
        let found = find(broker, "c", id).await.expect("searched").expect("found");
        let shown = shop.messaging.shown("c", vec![found], false).await.expect("shown");
        assert_eq!(shown[0].status, status);
    }
    settle(broker, "c/a/retry-1", COURIER, 100, None).await;
    let found = find(broker, "c", &ids[0]).await.expect("searched").expect("found");
    assert_eq!(shop.messaging.shown("c", vec![found], false).await.expect("shown")[0].status, "processed");
}
