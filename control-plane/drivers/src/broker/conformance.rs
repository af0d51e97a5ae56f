//! What every broker must do, as a suite that every driver runs in its tests. It uses nothing but the contract, and waits for
//! events, never for time; how long a broken driver can hang is bounded by a minute.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::time::Duration;

use meshctl_model::message::Message;

use super::{
    BrokerError, ChannelSpec, ChannelState, Confirmed, Consumer, Delivery, From, GroupState, Outcome, Position,
    Publish, Seek, Settlement, SharedBroker,
};
use crate::Pending;

mod groups;
mod upkeep;

use groups::*;
use upkeep::*;

const PATIENCE: Duration = Duration::from_secs(60);

/// A broker that can be made to die and come back with what it kept.
pub trait Subject: Send + Sync {
    /// A new client, as from another process.
    fn client(&self) -> SharedBroker;

    /// Kills the broker without any warning and starts it again; returns once it answers.
    fn crash(&self) -> Pending<'_, ()>;
}

/// Runs the whole suite. Each part uses channels of its own, so that the broker may be a shared one.
///
/// # Panics
/// At the first promise that the driver does not keep.
pub async fn conformance(subject: &dyn Subject) {
    publishes_and_confirms(subject.client()).await;
    remembers_idempotency_keys(subject.client()).await;
    forgets_idempotency_keys(subject.client()).await;
    keeps_the_order_of_a_key(subject.client()).await;
    keeps_messages_exactly(subject.client()).await;
    shares_a_group(subject).await;
    hands_over_only_what_is_settled(subject).await;
    lets_those_who_leave_finish(subject.client()).await;
    bounds_what_is_unsettled(subject.client()).await;
    gives_every_group_everything(subject.client()).await;
    delivers_again_after_a_consumer(subject).await;
    survives_a_crash(subject).await;
    moves_at_once(subject).await;
    moves_all_or_none(subject.client()).await;
    settles_only_what_is_held(subject.client()).await;
    seeks_by_offset(subject.client()).await;
    seeks_by_time(subject.client()).await;
    removes_by_age(subject.client()).await;
    removes_by_size(subject.client()).await;
    refuses_when_full(subject.client()).await;
    pauses(subject).await;
    browses(subject.client()).await;
    changes_channels(subject.client()).await;
    keeps_its_books(subject.client()).await;
    names_what_it_does_not_know(subject.client()).await;
}

/// A channel with defaults in all that a test does not care about.
pub fn channel(name: &str, partitions: u32, groups: &[&str]) -> ChannelSpec {
    ChannelSpec {
        name: format!("conformance.{name}"),
        partitions,
        retention: Duration::from_secs(3600),
        max_size_bytes: 64 << 20,
        idempotency_window: Duration::from_secs(600),
        groups: groups.iter().map(|group| (*group).to_owned()).collect(),
    }
}

/// A message whose id and payload are `text`.
pub fn message(text: &str, key: Option<&str>) -> Publish {
    let payload = text.as_bytes().to_vec().into();
    let message = Message { id: text.to_owned(), key: key.map(str::to_owned), headers: Vec::new(), payload };
    Publish { message, idempotency_key: None }
}

/// Waits for what must happen.
///
/// # Panics
/// When it does not.
pub async fn within<T>(what: &str, event: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, event).await {
        Ok(value) => value,
        Err(_) => panic!("nothing happened for {PATIENCE:?}: {what}"),
    }
}

/// The next `count` deliveries.
///
/// # Panics
/// When they do not come.
pub async fn receive(consumer: &mut Consumer, count: usize) -> Vec<Delivery> {
    let mut all = Vec::with_capacity(count);
    while all.len() < count {
        let what = format!("delivery {} of {count}", all.len() + 1);
        let delivery = within(&what, consumer.deliveries.recv()).await;
        all.push(delivery.unwrap_or_else(|| panic!("the consumer ended before {what}")));
    }
    all
}

/// Settles deliveries as processed.
///
/// # Panics
/// When that is refused.
pub async fn settle(consumer: &Consumer, deliveries: &[Delivery]) {
    let processed = |delivery: &Delivery| Settlement { position: delivery.position, outcome: Outcome::Processed };
    let settlements = deliveries.iter().map(processed).collect();
    within("settling", consumer.settler.settle(settlements)).await.expect("it settles");
}

pub async fn consume(broker: &SharedBroker, spec: &ChannelSpec, group: &str, prefetch: u32) -> Consumer {
    within("joining", broker.consume(&spec.name, group, prefetch)).await.expect("it joins")
}

/// The state of one channel.
///
/// # Panics
/// When there is none.
pub async fn state(broker: &SharedBroker, name: &str) -> ChannelState {
    let all = within("the state", broker.state()).await.expect("a state");
    all.into_iter().find(|channel| channel.name == name).unwrap_or_else(|| panic!("no channel {name}"))
}

async fn group(broker: &SharedBroker, spec: &ChannelSpec, name: &str) -> GroupState {
    let state = state(broker, &spec.name).await;
    state.groups.into_iter().find(|group| group.name == name).unwrap_or_else(|| panic!("no group {name}"))
}

/// Waits for a state of a group that is as wanted.
async fn until(
    broker: &SharedBroker,
    spec: &ChannelSpec,
    name: &str,
    wanted: impl Fn(&GroupState) -> bool,
) -> GroupState {
    within(&format!("a state of {name} as wanted"), async {
        loop {
            let group = group(broker, spec, name).await;
            if wanted(&group) {
                return group;
            }
            tokio::task::yield_now().await;
        }
    })
    .await
}

/// `accepted + rewound = processed + moved + skipped + unsettled`.
///
/// # Panics
/// When it does not hold.
pub fn balanced(group: &GroupState) {
    let settled = group.processed + group.moved + group.skipped;
    assert_eq!(group.accepted + group.rewound, settled + group.unsettled, "the books do not balance: {group:?}");
}

async fn fresh(broker: &SharedBroker, spec: &ChannelSpec) {
    within("removing", broker.remove(&spec.name, true)).await.expect("it removes");
    within("ensuring", broker.ensure(spec)).await.expect("it ensures");
}

async fn publish(broker: &SharedBroker, spec: &ChannelSpec, messages: Vec<Publish>) -> Vec<Confirmed> {
    let count = messages.len();
    let confirmed = within("a confirmation", broker.publish(&spec.name, messages)).await.expect("it is confirmed");
    assert_eq!(confirmed.len(), count, "every message is confirmed");
    confirmed
}

fn numbered(range: std::ops::Range<usize>, keys: usize) -> Vec<Publish> {
    range.map(|number| message(&format!("m-{number:05}"), Some(&format!("key-{}", number % keys)))).collect()
}

fn ids(deliveries: &[Delivery]) -> Vec<&str> {
    deliveries.iter().map(|delivery| delivery.message.id.as_str()).collect()
}

async fn publishes_and_confirms(broker: SharedBroker) {
    let spec = channel("publish", 4, &["all"]);
    fresh(&broker, &spec).await;
    assert_eq!(publish(&broker, &spec, Vec::new()).await, [], "nothing is nothing");
    let confirmed = publish(&broker, &spec, numbered(0..100, 10)).await;
    let positions: BTreeSet<Position> = confirmed.iter().map(|confirmed| confirmed.position).collect();
    assert_eq!(positions.len(), 100, "every message has a place of its own");
    assert!(confirmed.iter().all(|confirmed| !confirmed.duplicate && confirmed.position.partition < 4));
    assert!(confirmed.iter().enumerate().all(|(at, confirmed)| confirmed.message_id == format!("m-{at:05}")));
    for partition in 0..4 {
        let offsets: Vec<u64> = positions.iter().filter(|at| at.partition == partition).map(|at| at.offset).collect();
        assert_eq!(offsets, (0..offsets.len() as u64).collect::<Vec<_>>(), "offsets rise by one");
    }
    let state = state(&broker, &spec.name).await;
    assert_eq!((state.partitions, state.accepted, state.kept), (4, 100, 100));
    assert!(state.oldest_at.is_some() && state.kept_bytes > 0);
    // Many at once over one client, each of them confirmed for itself.
    let many = (0..200).map(|at| {
        let (broker, name) = (broker.clone(), spec.name.clone());
        tokio::spawn(async move { broker.publish(&name, vec![message(&format!("one-{at}"), None)]).await })
    });
    for (at, one) in many.collect::<Vec<_>>().into_iter().enumerate() {
        let confirmed = within("a confirmation", one).await.expect("no panic").expect("it is confirmed");
        assert_eq!(confirmed[0].message_id, format!("one-{at}"));
    }
}

async fn remembers_idempotency_keys(broker: SharedBroker) {
    let spec = channel("idempotency", 4, &["all"]);
    fresh(&broker, &spec).await;
    let keyed = |id: &str, key: &str| Publish { idempotency_key: Some(key.to_owned()), ..message(id, None) };
    let first = publish(&broker, &spec, vec![keyed("first", "k1"), keyed("other", "k2")]).await;
    let again = publish(&broker, &spec, vec![keyed("second", "k1"), keyed("third", "k3"), keyed("fourth", "k3")]).await;
    assert_eq!((again[0].message_id.as_str(), again[0].duplicate), ("first", true), "it is the first one");
    assert_eq!(again[0].position, first[0].position);
    assert_eq!((again[1].duplicate, again[2].duplicate), (false, true), "within one publish too");
    assert_eq!(again[2].message_id, "third");
    assert_eq!(state(&broker, &spec.name).await.accepted, 3);
    // Another channel's keys are others.
    let other = channel("idempotency-2", 1, &[]);
    fresh(&broker, &other).await;
    assert!(!publish(&broker, &other, vec![keyed("fifth", "k1")]).await[0].duplicate);
}

async fn forgets_idempotency_keys(broker: SharedBroker) {
    let mut spec = channel("window", 1, &[]);
    spec.idempotency_window = Duration::from_millis(1);
    fresh(&broker, &spec).await;
    within("a window that passes", async {
        let mut number = 0;
        loop {
            let keyed = Publish { idempotency_key: Some("k".to_owned()), ..message(&format!("{number}"), None) };
            let confirmed = publish(&broker, &spec, vec![keyed]).await;
            number += 1;
            if number > 1 && !confirmed[0].duplicate {
                break;
            }
        }
    })
    .await;
}

async fn keeps_the_order_of_a_key(broker: SharedBroker) {
    let spec = channel("order", 4, &["all"]);
    fresh(&broker, &spec).await;
    for batch in 0..10 {
        publish(&broker, &spec, numbered(batch * 50..(batch + 1) * 50, 7)).await;
    }
    let mut consumer = consume(&broker, &spec, "all", 64).await;
    let mut by_key: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut partitions: BTreeMap<String, BTreeSet<u32>> = BTreeMap::new();
    let mut left = 500;
    while left > 0 {
        let deliveries = receive(&mut consumer, 1).await;
        settle(&consumer, &deliveries).await;
        for delivery in deliveries {
            let key = delivery.message.key.clone().expect("the key comes along");
            partitions.entry(key.clone()).or_default().insert(delivery.position.partition);
            by_key.entry(key).or_default().push(delivery.message.id);
            left -= 1;
        }
    }
    assert_eq!(by_key.len(), 7);
    for (key, messages) in by_key {
        assert!(messages.is_sorted(), "{key} is out of order: {messages:?}");
        assert_eq!(partitions[&key].len(), 1, "{key} is in one partition");
    }
}

async fn keeps_messages_exactly(broker: SharedBroker) {
    let spec = channel("exact", 1, &["all"]);
    fresh(&broker, &spec).await;
    let headers = [("a", ""), ("b", "Grüße \u{1F980}"), ("a", "again")];
    let odd = Message {
        id: "odd".to_owned(),
        key: Some("ключ".to_owned()),
        headers: headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        payload: (0..=255).collect::<Vec<u8>>().into(),
    };
    let large = Message { id: "large".to_owned(), payload: vec![7; 3 << 20].into(), ..Message::default() };
    let empty = Message { id: "empty".to_owned(), key: Some(String::new()), ..Message::default() };
    let all = [odd, large, empty];
    let publishes = all.iter().map(|message| Publish { message: message.clone(), idempotency_key: None });
    publish(&broker, &spec, publishes.collect()).await;
    let mut consumer = consume(&broker, &spec, "all", 10).await;
    let mut messages: Vec<Message> =
        receive(&mut consumer, 3).await.into_iter().map(|delivery| delivery.message).collect();
    messages.sort_by_key(|message| all.iter().position(|known| known.id == message.id));
    assert!(messages == all, "bytes, headers and key come back as they went in");
}

async fn survives_a_crash(subject: &dyn Subject) {
    let broker = subject.client();
    let spec = channel("crash", 3, &["all"]);
    fresh(&broker, &spec).await;
    publish(&broker, &spec, numbered(0..300, 20)).await;
    let keyed = Publish { idempotency_key: Some("k".to_owned()), ..message("keyed", None) };
    publish(&broker, &spec, vec![keyed.clone()]).await;
    let mut consumer = consume(&broker, &spec, "all", 100).await;
    let held = receive(&mut consumer, 100).await;
    settle(&consumer, &held[..40]).await;
    within("a crash", subject.crash()).await;
    assert_eq!(within("the end", async { while consumer.deliveries.recv().await.is_some() {} }).await, ());
    let late = vec![Settlement { position: held[50].position, outcome: Outcome::Processed }];
    let late = within("a refusal", consumer.settler.settle(late)).await;
    assert!(matches!(late, Err(BrokerError::Lost(_) | BrokerError::Unknown(_))), "{late:?}");
    drop(consumer);
    let again = publish(&broker, &spec, vec![keyed]).await;
    assert!(again[0].duplicate, "keys are remembered");
    let before = group(&broker, &spec, "all").await;
    balanced(&before);
    assert_eq!((before.accepted, before.processed, before.unsettled), (301, 40, 261));
    let mut consumer = consume(&broker, &spec, "all", 1000).await;
    let rest = receive(&mut consumer, 261).await;
    let settled: BTreeSet<Position> = held[..40].iter().map(|delivery| delivery.position).collect();
    assert!(rest.iter().all(|delivery| !settled.contains(&delivery.position)), "what was settled stays settled");
    let held: BTreeSet<Position> = held[40..].iter().map(|delivery| delivery.position).collect();
    let again: Vec<&Delivery> = rest.iter().filter(|delivery| held.contains(&delivery.position)).collect();
    assert_eq!(again.len(), 60, "what was not settled is delivered again");
    assert!(again.iter().all(|delivery| delivery.redelivered), "and marked so");
    settle(&consumer, &rest).await;
    balanced(&group(&broker, &spec, "all").await);
}

fn moved(delivery: &Delivery, to: &ChannelSpec) -> Settlement {
    let mut message = delivery.message.clone();
    message.set_header("moved", "yes");
    let outcome = Outcome::Moved { channel: to.name.clone(), message };
    Settlement { position: delivery.position, outcome }
}

async fn moves_at_once(subject: &dyn Subject) {
    let broker = subject.client();
    let (from, to) = (channel("move-from", 1, &["all"]), channel("move-to", 2, &["all"]));
    fresh(&broker, &from).await;
    fresh(&broker, &to).await;
    publish(&broker, &from, numbered(0..10, 1)).await;
    let mut consumer = consume(&broker, &from, "all", 10).await;
    let held = receive(&mut consumer, 10).await;
    let settlements = held[..5].iter().map(|delivery| moved(delivery, &to)).collect();
    within("moving", consumer.settler.settle(settlements)).await.expect("they move");
    within("a crash", subject.crash()).await;
    let (one, other) = (group(&broker, &from, "all").await, group(&broker, &to, "all").await);
    balanced(&one);
    assert_eq!((one.moved, one.unsettled, other.accepted, other.unsettled), (5, 5, 5, 5));
    let mut consumer = consume(&broker, &to, "all", 10).await;
    let arrived = receive(&mut consumer, 5).await;
    assert_eq!(ids(&arrived), ids(&held[..5]), "with their ids, in the order of their key");
    assert!(arrived.iter().all(|delivery| delivery.message.header("moved") == Some("yes")), "in their new form");
}

async fn moves_all_or_none(broker: SharedBroker) {
    let (from, to) = (channel("none-from", 1, &["all"]), channel("none-to", 1, &["all"]));
    fresh(&broker, &from).await;
    fresh(&broker, &to).await;
    publish(&broker, &from, numbered(0..3, 1)).await;
    let mut consumer = consume(&broker, &from, "all", 10).await;
    let held = receive(&mut consumer, 3).await;
    let nowhere = channel("nowhere", 1, &[]);
    let settlements = vec![
        Settlement { position: held[0].position, outcome: Outcome::Processed },
        moved(&held[1], &to),
        moved(&held[2], &nowhere),
    ];
    let refused = within("a refusal", consumer.settler.settle(settlements)).await;
    assert!(matches!(refused, Err(BrokerError::NotFound(_))), "{refused:?}");
    let one = group(&broker, &from, "all").await;
    balanced(&one);
    assert_eq!((one.processed, one.moved, one.unsettled), (0, 0, 3), "none of them is settled");
    assert_eq!(state(&broker, &to.name).await.accepted, 0, "none has moved");
    settle(&consumer, &held).await;
}

async fn settles_only_what_is_held(broker: SharedBroker) {
    let spec = channel("held", 1, &["all"]);
    fresh(&broker, &spec).await;
    publish(&broker, &spec, numbered(0..10, 1)).await;
    let mut consumer = consume(&broker, &spec, "all", 5).await;
    let held = receive(&mut consumer, 5).await;
    let one = |offset| Settlement { position: Position { partition: 0, offset }, outcome: Outcome::Processed };
    let refused = within("a refusal", consumer.settler.settle(vec![one(0), one(7)])).await;
    assert!(matches!(refused, Err(BrokerError::Lost(_))), "{refused:?}");
    assert_eq!(group(&broker, &spec, "all").await.processed, 0, "all or none");
    settle(&consumer, &held[..1]).await;
    let refused = within("a refusal", consumer.settler.settle(vec![one(0)])).await;
    assert!(matches!(refused, Err(BrokerError::Lost(_))), "once only: {refused:?}");
    balanced(&group(&broker, &spec, "all").await);
}
