//! Groups: who gets what, and who gets it next.

use super::*;

pub(super) async fn shares_a_group(subject: &dyn Subject) {
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

pub(super) async fn hands_over_only_what_is_settled(subject: &dyn Subject) {
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

pub(super) async fn lets_those_who_leave_finish(broker: SharedBroker) {
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

pub(super) async fn bounds_what_is_unsettled(broker: SharedBroker) {
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

pub(super) async fn gives_every_group_everything(broker: SharedBroker) {
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

pub(super) async fn delivers_again_after_a_consumer(subject: &dyn Subject) {
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
