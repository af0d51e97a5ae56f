//! kill -9 at random points, counted by ids of the test's own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use meshctl_drivers::broker::conformance::{Subject, balanced, channel, message, state, within};
use meshctl_drivers::broker::{BrokerError, From, Outcome, Position, Publish, Settlement, SharedBroker};
use tokio::sync::Notify;

use crate::support::Bench;

/// What the test knows without asking the broker.
#[derive(Default)]
struct Count {
    confirmed: BTreeMap<String, Position>,
    settled: BTreeSet<Position>,
    /// Deliveries of what had been settled, with a durable answer, before they were delivered.
    wrong: Vec<Position>,
    seen: BTreeSet<Position>,
}

struct Flow {
    count: Mutex<Count>,
    progress: Notify,
    over: AtomicBool,
}

impl Flow {
    fn over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }
}

const CHANNEL: &str = "conformance.flow";

/// Publishes again what was not confirmed, with the same key, until it is.
async fn publish(broker: SharedBroker, flow: Arc<Flow>, publisher: usize) {
    let mut number = 0;
    while !flow.over() {
        let batch: Vec<Publish> = (number..number + 5)
            .map(|at| {
                let id = format!("p{publisher}-{at}");
                Publish { idempotency_key: Some(id.clone()), ..message(&id, Some(&format!("k{}", at % 9))) }
            })
            .collect();
        number += 5;
        let confirmed = loop {
            match within("a publish", broker.publish(CHANNEL, batch.clone())).await {
                Ok(confirmed) => break confirmed,
                Err(BrokerError::Unreachable(_) | BrokerError::Unknown(_)) => tokio::task::yield_now().await,
                Err(other) => panic!("{other}"),
            }
        };
        let mut count = flow.count.lock().unwrap();
        for confirmed in confirmed {
            let before = count.confirmed.insert(confirmed.message_id, confirmed.position);
            assert_eq!(before, None);
        }
        drop(count);
        flow.progress.notify_one();
    }
}

async fn consume(broker: SharedBroker, flow: Arc<Flow>, group: &'static str) {
    while !flow.over() {
        let Ok(mut consumer) = broker.consume(CHANNEL, group, 50).await else {
            tokio::task::yield_now().await;
            continue;
        };
        while let Some(first) = consumer.deliveries.recv().await {
            let mut held = vec![first];
            while let Ok(next) = consumer.deliveries.try_recv() {
                held.push(next);
            }
            {
                let mut count = flow.count.lock().unwrap();
                for delivery in &held {
                    if count.settled.contains(&delivery.position) {
                        count.wrong.push(delivery.position);
                    }
                    count.seen.insert(delivery.position);
                }
            }
            let processed = held.iter().map(|held| Settlement { position: held.position, outcome: Outcome::Processed });
            if consumer.settler.settle(processed.collect()).await.is_ok() {
                let mut count = flow.count.lock().unwrap();
                count.settled.extend(held.iter().map(|held| held.position));
            }
            if flow.over() {
                break;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_by_kill() {
    let bench = Bench::start().await;
    let broker = bench.client();
    broker.ensure(&channel("flow", 4, &["all"])).await.unwrap();
    let flow = Arc::new(Flow { count: Mutex::default(), progress: Notify::new(), over: AtomicBool::new(false) });
    let mut tasks = tokio::task::JoinSet::new();
    for publisher in 0..4 {
        tasks.spawn(publish(bench.client(), Arc::clone(&flow), publisher));
    }
    for _ in 0..2 {
        tasks.spawn(consume(bench.client(), Arc::clone(&flow), "all"));
    }
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..12 {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        for _ in 0..20 + seed % 150 {
            within("a confirmation", flow.progress.notified()).await;
        }
        bench.crash().await;
    }
    flow.over.store(true, Ordering::SeqCst);
    within("the publishers' end", async {
        for _ in 0..4 {
            tasks.join_next().await.unwrap().unwrap();
        }
    })
    .await;
    tasks.abort_all();
    while tasks.join_next().await.is_some() {}

    let stored = broker.browse(CHANNEL, From::Earliest, 1_000_000).await.unwrap();
    let count = std::mem::take(&mut *flow.count.lock().unwrap());
    assert!(count.confirmed.len() > 1000 && count.settled.len() > 100, "it flowed: {}", count.confirmed.len());
    assert_eq!(count.wrong, [], "what was settled durably came again");
    let kept: BTreeMap<String, Position> =
        stored.iter().map(|stored| (stored.message.id.clone(), stored.position)).collect();
    assert_eq!(kept.len(), stored.len(), "no id is kept twice");
    for (id, position) in &count.confirmed {
        assert_eq!(kept.get(id), Some(position), "{id} was confirmed");
    }
    let open: BTreeSet<Position> =
        stored.iter().filter(|stored| !stored.unsettled_by.is_empty()).map(|stored| stored.position).collect();
    assert!(count.settled.iter().all(|settled| !open.contains(settled)), "what was settled is open again");
    for stored in &stored {
        assert!(count.seen.contains(&stored.position) || open.contains(&stored.position), "settled unseen");
    }
    let open = open.len() as u64;
    let state = state(&broker, CHANNEL).await;
    balanced(&state.groups[0]);
    assert_eq!(state.groups[0].unsettled, open);
    assert_eq!((state.accepted, state.kept), (stored.len() as u64, stored.len() as u64));
}
