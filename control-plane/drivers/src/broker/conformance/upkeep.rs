//! Seeking, retention, fullness, pauses, browsing, changes, and the books through all of it.

use super::*;

pub(super) async fn seeks_by_offset(broker: SharedBroker) {
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

pub(super) async fn seeks_by_time(broker: SharedBroker) {
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

pub(super) async fn removes_by_age(broker: SharedBroker) {
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

pub(super) async fn removes_by_size(broker: SharedBroker) {
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

pub(super) async fn refuses_when_full(broker: SharedBroker) {
    let mut spec = channel("full", 2, &["all"]);
    spec.max_size_bytes = 50_000;
    fresh(&broker, &spec).await;
    let large = |id: usize| {
        let message = Message { id: format!("{id}"), payload: vec![1; 10_000].into(), ..Message::default() };
        vec![Publish { message, idempotency_key: Some(format!("key-{id}")) }]
    };
    for id in 0..5 {
        publish(&broker, &spec, large(id)).await;
    }
    let refused = within("a refusal", broker.publish(&spec.name, large(5))).await;
    assert!(matches!(refused, Err(BrokerError::Full(_))), "{refused:?}");
    assert!(publish(&broker, &spec, large(4)).await[0].duplicate, "what is kept needs no room");
    assert_eq!(state(&broker, &spec.name).await.accepted, 5);
    let mut consumer = consume(&broker, &spec, "all", 10).await;
    let held = receive(&mut consumer, 5).await;
    settle(&consumer, &held).await;
    publish(&broker, &spec, large(6)).await;
}

pub(super) async fn pauses(subject: &dyn Subject) {
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

pub(super) async fn browses(broker: SharedBroker) {
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

pub(super) async fn changes_channels(broker: SharedBroker) {
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
    let refused = within("a refusal", broker.remove(&spec.name, false)).await;
    assert!(matches!(refused, Err(BrokerError::Refused(_))), "{refused:?}");
    within("removing", broker.remove(&spec.name, true)).await.expect("it removes");
    within("removing", broker.remove(&spec.name, false)).await.expect("it is removed already");
    let all = within("the state", broker.state()).await.expect("a state");
    assert!(all.iter().all(|channel| channel.name != spec.name));
    within("ensuring", broker.ensure(&spec)).await.expect("anew");
    assert_eq!(state(&broker, &spec.name).await.kept, 0, "nothing of the old one is left");
}

/// Many steps of every kind; the books balance after each.
pub(super) async fn keeps_its_books(broker: SharedBroker) {
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

pub(super) async fn names_what_it_does_not_know(broker: SharedBroker) {
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
