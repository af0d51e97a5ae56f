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
    within("removing", broker.remove(&spec.name)).await.expect("it removes");
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

async fn shares_a_group(subject: &dyn Subject) {
    let broker = subject.client();
    let spec = channel("share", 6, &["all"]);
    fresh(&broker, &spec).await;
    let mut consumers = Vec::new();
    for count in 1..=3 {
        consumers.push(consume(&subject.client(), &spec, "all", 1000).await);
        until(&broker, &spec, "all", |group| group.consumers == count).await;
    }
    publish(&broker, &spec, (0..600).map(|at| message(&format!("{at}"), Some(&format!("k{at}")))).collect()).await;
    let mut seen = BTreeSet::new();
    let mut owners: BTreeMap<u32, usize> = BTreeMap::new();
    let group = until(&broker, &spec, "all", |group| group.in_flight == 600).await;
    balanced(&group);
    for (number, consumer) in consumers.iter_mut().enumerate() {
        let mut own = 0;
        while let Ok(delivery) = consumer.deliveries.try_recv() {
            own += 1;
            assert_eq!(*owners.entry(delivery.position.partition).or_insert(number), number, "one consumer at a time");
            assert!(seen.insert(delivery.message.id.clone()), "nobody else has it");
            settle(consumer, &[delivery]).await;
        }
        assert!(own > 0 || seen.len() < 600, "everybody has a share");
        // What was on its way when the buffer was looked at.
        let mut partitions = owners.values().filter(|owner| **owner == number).count();
        while partitions < 2 {
            let delivery = receive(consumer, 1).await.remove(0);
            owners.insert(delivery.position.partition, number);
            seen.insert(delivery.message.id.clone());
            settle(consumer, &[delivery]).await;
            partitions = owners.values().filter(|owner| **owner == number).count();
        }
    }
    for number in 0..3 {
        assert_eq!(owners.values().filter(|owner| **owner == number).count(), 2, "{owners:?}");
    }
}

async fn hands_over_only_what_is_settled(subject: &dyn Subject) {
    let broker = subject.client();
    let spec = channel("hand-over", 2, &["all"]);
    fresh(&broker, &spec).await;
    publish(&broker, &spec, (0..40).map(|at| message(&format!("{at}"), Some(&format!("k{at}")))).collect()).await;
    let mut first = consume(&broker, &spec, "all", 100).await;
    let held = receive(&mut first, 40).await;
    let second_client = subject.client();
    let mut second = consume(&second_client, &spec, "all", 100).await;
    until(&broker, &spec, "all", |group| group.consumers == 2).await;
    // More messages: those of the partition that stays reach the first; the one that moves waits until the first has settled.
    publish(&broker, &spec, (40..80).map(|at| message(&format!("{at}"), Some(&format!("k{at}")))).collect()).await;
    assert!(second.deliveries.try_recv().is_err(), "the first still holds what it was given");
    settle(&first, &held).await;
    let moved = receive(&mut second, 1).await.remove(0).position.partition;
    let later =
        publish(&broker, &spec, (80..120).map(|at| message(&format!("{at}"), Some(&format!("k{at}")))).collect()).await;
    let of_second = later.iter().filter(|confirmed| confirmed.position.partition == moved).count();
    let mut positions = BTreeSet::new();
    let mut last = None;
    for delivery in receive(&mut second, of_second).await {
        assert_eq!(delivery.position.partition, moved, "one partition each");
        assert!(!held.iter().any(|held| held.position == delivery.position), "what was settled does not come again");
        assert!(last < Some(delivery.position.offset), "in order");
        last = Some(delivery.position.offset);
        positions.insert(delivery.position);
    }
    balanced(&group(&broker, &spec, "all").await);
}

async fn lets_those_who_leave_finish(broker: SharedBroker) {
    let spec = channel("leave", 1, &["all"]);
    fresh(&broker, &spec).await;
    publish(&broker, &spec, numbered(0..10, 1)).await;
    let mut first = consume(&broker, &spec, "all", 10).await;
    let held = receive(&mut first, 10).await;
    let Consumer { deliveries, settler } = first;
    drop(deliveries);
    until(&broker, &spec, "all", |group| group.consumers == 0).await;
    publish(&broker, &spec, numbered(10..12, 1)).await;
    let mut second = consume(&broker, &spec, "all", 10).await;
    assert!(second.deliveries.try_recv().is_err());
    let processed = held.iter().map(|held| Settlement { position: held.position, outcome: Outcome::Processed });
    within("settling", settler.settle(processed.collect())).await.expect("it is still its");
    assert_eq!(ids(&receive(&mut second, 2).await), ["m-00010", "m-00011"]);
}

async fn bounds_what_is_unsettled(broker: SharedBroker) {
    let spec = channel("prefetch", 3, &["all"]);
    fresh(&broker, &spec).await;
    publish(&broker, &spec, numbered(0..300, 50)).await;
    let mut consumer = consume(&broker, &spec, "all", 5).await;
    for _ in 0..20 {
        let deliveries = receive(&mut consumer, 5).await;
        let group = group(&broker, &spec, "all").await;
        assert_eq!(group.in_flight, 5);
        assert!(consumer.deliveries.try_recv().is_err(), "no more than the prefetch");
        settle(&consumer, &deliveries).await;
    }
    balanced(&until(&broker, &spec, "all", |group| group.processed == 100).await);
}

async fn gives_every_group_everything(broker: SharedBroker) {
    let spec = channel("groups", 2, &["one", "two"]);
    fresh(&broker, &spec).await;
    publish(&broker, &spec, numbered(0..50, 5)).await;
    for name in ["one", "two"] {
        let mut consumer = consume(&broker, &spec, name, 100).await;
        let deliveries = receive(&mut consumer, 50).await;
        settle(&consumer, &deliveries).await;
        let group = group(&broker, &spec, name).await;
        balanced(&group);
        assert_eq!((group.processed, group.unsettled), (50, 0));
    }
}

async fn delivers_again_after_a_consumer(subject: &dyn Subject) {
    let broker = subject.client();
    let spec = channel("again", 1, &["all"]);
    fresh(&broker, &spec).await;
    publish(&broker, &spec, numbered(0..20, 1)).await;
    let mut first = consume(&subject.client(), &spec, "all", 20).await;
    let held = receive(&mut first, 20).await;
    assert!(held.iter().all(|delivery| !delivery.redelivered), "for the first time");
    // Settled out of order, with holes.
    let settled: Vec<Delivery> = held.iter().filter(|held| held.position.offset % 3 == 1).cloned().collect();
    settle(&first, &settled).await;
    drop(first);
    let mut second = consume(&broker, &spec, "all", 20).await;
    let again = receive(&mut second, 20 - settled.len()).await;
    let wanted: Vec<u64> = (0..20).filter(|offset| offset % 3 != 1).collect();
    let offsets: Vec<u64> = again.iter().map(|delivery| delivery.position.offset).collect();
    assert_eq!(offsets, wanted, "what was not settled comes again, in order, and nothing else");
    assert!(again.iter().all(|delivery| delivery.redelivered), "and says so");
    balanced(&group(&broker, &spec, "all").await);
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
    assert!(rest.iter().filter(|delivery| held.contains(delivery)).all(|delivery| delivery.redelivered));
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

async fn seeks_by_offset(broker: SharedBroker) {
    let spec = channel("seek", 2, &["all"]);
    fresh(&broker, &spec).await;
    let mut all = numbered(0..20, 1);
    all.iter_mut().for_each(|publish| publish.message.key = Some("same".to_owned()));
    let partition = publish(&broker, &spec, all).await[0].position.partition;
    let mut consumer = consume(&broker, &spec, "all", 5).await;
    let held = receive(&mut consumer, 5).await;
    settle(&consumer, &held[2..]).await;
    // Forward: 0 and 1 and 5 to 9 are passed over.
    let seek = |to| broker.seek(&spec.name, "all", to);
    within("seeking", seek(Seek::At(Position { partition, offset: 10 }))).await.expect("it seeks");
    let state = group(&broker, &spec, "all").await;
    balanced(&state);
    assert_eq!((state.processed, state.skipped, state.rewound, state.unsettled), (3, 7, 0, 10));
    drop(consumer);
    let mut consumer = consume(&broker, &spec, "all", 5).await;
    let held = receive(&mut consumer, 5).await;
    assert_eq!(held[0].position.offset, 10);
    settle(&consumer, &held).await;
    drop(consumer);
    within("seeking", seek(Seek::Earliest)).await.expect("it seeks");
    let state = group(&broker, &spec, "all").await;
    balanced(&state);
    assert_eq!((state.rewound, state.unsettled), (15, 20));
    let mut consumer = consume(&broker, &spec, "all", 30).await;
    assert_eq!(receive(&mut consumer, 20).await.len(), 20);
    drop(consumer);
    within("seeking", seek(Seek::Latest)).await.expect("it seeks");
    let state = group(&broker, &spec, "all").await;
    balanced(&state);
    assert_eq!((state.unsettled, state.skipped), (0, 27));
}

async fn seeks_by_time(broker: SharedBroker) {
    let spec = channel("time", 3, &["all"]);
    fresh(&broker, &spec).await;
    for batch in 0..5 {
        publish(&broker, &spec, numbered(batch * 30..(batch + 1) * 30, 30)).await;
    }
    let stored = within("messages", broker.browse(&spec.name, From::Earliest, 1000)).await.expect("messages");
    let middle = stored[75].accepted_at;
    let wanted = stored.iter().filter(|stored| stored.accepted_at >= middle).count();
    assert!((75..150).contains(&wanted));
    within("seeking", broker.seek(&spec.name, "all", Seek::Time(middle))).await.expect("it seeks");
    let state = group(&broker, &spec, "all").await;
    balanced(&state);
    assert_eq!(state.unsettled, wanted as u64);
    let mut consumer = consume(&broker, &spec, "all", 1000).await;
    assert!(receive(&mut consumer, wanted).await.iter().all(|delivery| delivery.accepted_at >= middle));
}

async fn removes_by_age(broker: SharedBroker) {
    let mut spec = channel("age", 2, &["all", "slow"]);
    spec.retention = Duration::from_millis(1);
    fresh(&broker, &spec).await;
    publish(&broker, &spec, numbered(0..100, 10)).await;
    let mut consumer = consume(&broker, &spec, "all", 200).await;
    let held = receive(&mut consumer, 100).await;
    settle(&consumer, &held).await;
    let mut slow = consume(&broker, &spec, "slow", 200).await;
    let held = receive(&mut slow, 100).await;
    // All but the last of each partition, so that those must stay, however old.
    let mut last: BTreeMap<u32, u64> = BTreeMap::new();
    for delivery in &held {
        last.insert(delivery.position.partition, delivery.position.offset);
    }
    let (stay, go): (Vec<Delivery>, Vec<Delivery>) =
        held.into_iter().partition(|held| last[&held.position.partition] == held.position.offset);
    assert_eq!(state(&broker, &spec.name).await.kept, 100, "what a group has not settled stays");
    settle(&slow, &go).await;
    within("retention", async {
        while state(&broker, &spec.name).await.kept > stay.len() as u64 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let state = state(&broker, &spec.name).await;
    assert_eq!((state.accepted, state.kept), (100, stay.len() as u64));
    state.groups.iter().for_each(balanced);
    settle(&slow, &stay).await;
}

async fn removes_by_size(broker: SharedBroker) {
    let mut spec = channel("size", 1, &["all"]);
    spec.max_size_bytes = 100_000;
    fresh(&broker, &spec).await;
    let mut consumer = consume(&broker, &spec, "all", 100).await;
    for round in 0..30 {
        let large = Message { id: format!("{round}"), payload: vec![0; 10_000].into(), ..Message::default() };
        publish(&broker, &spec, vec![Publish { message: large, idempotency_key: None }]).await;
        let held = receive(&mut consumer, 1).await;
        settle(&consumer, &held).await;
        let state = state(&broker, &spec.name).await;
        assert!(state.kept_bytes <= 100_000, "{state:?}");
    }
    let state = state(&broker, &spec.name).await;
    assert!(state.kept > 0 && state.kept <= 10, "the newest are kept: {state:?}");
    assert_eq!((state.accepted, state.groups[0].processed), (30, 30));
    balanced(&state.groups[0]);
    within("seeking", broker.seek(&spec.name, "all", Seek::Earliest)).await.expect("it seeks");
    let group = group(&broker, &spec, "all").await;
    balanced(&group);
    assert_eq!(group.unsettled, state.kept, "from the first kept message on");
}

async fn refuses_when_full(broker: SharedBroker) {
    let mut spec = channel("full", 2, &["all"]);
    spec.max_size_bytes = 50_000;
    fresh(&broker, &spec).await;
    let large = |id: usize| {
        let message = Message { id: format!("{id}"), payload: vec![1; 10_000].into(), ..Message::default() };
        vec![Publish { message, idempotency_key: None }]
    };
    for id in 0..5 {
        publish(&broker, &spec, large(id)).await;
    }
    let refused = within("a refusal", broker.publish(&spec.name, large(5))).await;
    assert!(matches!(refused, Err(BrokerError::Full(_))), "{refused:?}");
    assert_eq!(state(&broker, &spec.name).await.accepted, 5);
    let mut consumer = consume(&broker, &spec, "all", 10).await;
    let held = receive(&mut consumer, 5).await;
    settle(&consumer, &held).await;
    publish(&broker, &spec, large(6)).await;
}

async fn pauses(subject: &dyn Subject) {
    let broker = subject.client();
    let spec = channel("pause", 1, &["all", "other"]);
    fresh(&broker, &spec).await;
    let why = Some("maintenance".to_owned());
    within("pausing", broker.pause(&spec.name, "all", why.clone())).await.expect("it pauses");
    publish(&broker, &spec, numbered(0..10, 1)).await;
    within("a crash", subject.crash()).await;
    let mut consumer = consume(&broker, &spec, "all", 10).await;
    let mut other = consume(&broker, &spec, "other", 10).await;
    let held = receive(&mut other, 10).await;
    settle(&other, &held).await;
    let group = group(&broker, &spec, "all").await;
    assert_eq!((group.paused, group.in_flight, group.unsettled), (why, 0, 10), "a pause is durable");
    assert!(consumer.deliveries.try_recv().is_err());
    within("resuming", broker.pause(&spec.name, "all", None)).await.expect("it resumes");
    assert_eq!(receive(&mut consumer, 10).await.len(), 10);
}

async fn browses(broker: SharedBroker) {
    let spec = channel("browse", 3, &["all", "other"]);
    fresh(&broker, &spec).await;
    for number in 0..30 {
        publish(&broker, &spec, numbered(number..number + 1, 30)).await;
    }
    let mut consumer = consume(&broker, &spec, "all", 100).await;
    let held = receive(&mut consumer, 30).await;
    settle(&consumer, &held[..10]).await;
    let browse =
        async |from, limit| within("messages", broker.browse(&spec.name, from, limit)).await.expect("messages");
    let all = browse(From::Earliest, 100).await;
    let ids: Vec<&str> = all.iter().map(|stored| stored.message.id.as_str()).collect();
    assert_eq!(ids.len(), 30);
    assert!(ids.is_sorted(), "in the order of acceptance: {ids:?}");
    for stored in &all {
        let open = !held[..10].iter().any(|held| held.position == stored.position);
        assert_eq!(stored.unsettled_by.contains(&"all".to_owned()), open);
        assert!(stored.unsettled_by.contains(&"other".to_owned()));
    }
    assert_eq!(browse(From::Earliest, 7).await, all[..7]);
    assert_eq!(browse(From::Last(4), 100).await, all[26..]);
    assert_eq!(browse(From::Time(all[12].accepted_at), 1).await[0].accepted_at, all[12].accepted_at);
    assert_eq!(browse(From::At(all[20].position), 1).await, all[20..21]);
    assert_eq!(group(&broker, &spec, "other").await.in_flight, 0, "nobody has consumed anything");
}

async fn changes_channels(broker: SharedBroker) {
    let mut spec = channel("change", 2, &["all"]);
    fresh(&broker, &spec).await;
    publish(&broker, &spec, numbered(0..20, 10)).await;
    within("ensuring", broker.ensure(&spec)).await.expect("as it is");
    assert_eq!(state(&broker, &spec.name).await.kept, 20);
    spec.partitions = 4;
    spec.groups.push("late".to_owned());
    within("ensuring", broker.ensure(&spec)).await.expect("more");
    let late = group(&broker, &spec, "late").await;
    balanced(&late);
    assert_eq!((late.accepted, late.unsettled), (20, 20), "a new group begins at the first kept message");
    publish(&broker, &spec, (0..80).map(|at| message(&format!("n-{at}"), Some(&format!("n{at}")))).collect()).await;
    let mut consumer = consume(&broker, &spec, "all", 200).await;
    let held = receive(&mut consumer, 100).await;
    let partitions: BTreeSet<u32> = held.iter().map(|held| held.position.partition).collect();
    assert_eq!(partitions.len(), 4);
    let fewer = ChannelSpec { partitions: 3, ..spec.clone() };
    let refused = within("a refusal", broker.ensure(&fewer)).await;
    assert!(matches!(refused, Err(BrokerError::Refused(_))), "{refused:?}");
    let gone = ChannelSpec { groups: vec!["late".to_owned()], ..spec.clone() };
    let refused = within("a refusal", broker.ensure(&gone)).await;
    assert!(matches!(refused, Err(BrokerError::Refused(_))), "{refused:?}");
    settle(&consumer, &held).await;
    within("ensuring", broker.ensure(&gone)).await.expect("nothing is lost with it now");
    within("the end", async { while consumer.deliveries.recv().await.is_some() {} }).await;
    assert_eq!(state(&broker, &spec.name).await.groups.len(), 1);
    within("removing", broker.remove(&spec.name)).await.expect("it removes");
    within("removing", broker.remove(&spec.name)).await.expect("it is removed already");
    let all = within("the state", broker.state()).await.expect("a state");
    assert!(all.iter().all(|channel| channel.name != spec.name));
    within("ensuring", broker.ensure(&spec)).await.expect("anew");
    assert_eq!(state(&broker, &spec.name).await.kept, 0, "nothing of the old one is left");
}

/// Many steps of every kind; the books balance after each.
async fn keeps_its_books(broker: SharedBroker) {
    let (spec, dead) = (channel("books", 3, &["a", "b"]), channel("books-dead", 1, &["a"]));
    fresh(&broker, &spec).await;
    fresh(&broker, &dead).await;
    for round in 0..20usize {
        publish(&broker, &spec, numbered(round * 30..(round + 1) * 30, 11)).await;
        let mut consumer = consume(&broker, &spec, "a", 17).await;
        let held = receive(&mut consumer, 10).await;
        let settlements = held.iter().enumerate().filter(|(at, _)| at % 3 != 2).map(|(at, delivery)| match at % 3 {
            0 => Settlement { position: delivery.position, outcome: Outcome::Processed },
            _ => moved(delivery, &dead),
        });
        within("settling", consumer.settler.settle(settlements.collect())).await.expect("it settles");
        if round % 4 == 3 {
            let position = Position { partition: (round % 3) as u32, offset: (round * 5) as u64 };
            within("seeking", broker.seek(&spec.name, "a", Seek::At(position))).await.expect("it seeks");
        }
        drop(consumer);
        let all = within("the state", broker.state()).await.expect("a state");
        let find = |name: &str| all.iter().find(|channel| channel.name == name).expect("the channel");
        find(&spec.name).groups.iter().for_each(balanced);
        find(&dead.name).groups.iter().for_each(balanced);
        assert_eq!(find(&spec.name).groups[0].moved, find(&dead.name).accepted, "at one instant");
    }
}

async fn names_what_it_does_not_know(broker: SharedBroker) {
    let spec = channel("known", 1, &["all"]);
    fresh(&broker, &spec).await;
    let nowhere = within("an answer", broker.publish("conformance.unknown", vec![message("m", None)])).await;
    assert!(matches!(nowhere, Err(BrokerError::NotFound(_))), "{nowhere:?}");
    let nobody = within("an answer", broker.consume(&spec.name, "nobody", 1)).await.map(drop);
    assert!(matches!(nobody, Err(BrokerError::NotFound(_))), "{nobody:?}");
    let seek = within("an answer", broker.seek(&spec.name, "nobody", Seek::Latest)).await;
    assert!(matches!(seek, Err(BrokerError::NotFound(_))), "{seek:?}");
    let pause = within("an answer", broker.pause("conformance.unknown", "all", None)).await;
    assert!(matches!(pause, Err(BrokerError::NotFound(_))), "{pause:?}");
    let browse = within("an answer", broker.browse("conformance.unknown", From::Earliest, 1)).await.map(drop);
    assert!(matches!(browse, Err(BrokerError::NotFound(_))), "{browse:?}");
}
