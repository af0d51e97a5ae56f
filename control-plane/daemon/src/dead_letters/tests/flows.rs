//! The intake and the runner as they run, against a broker in memory.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, PoisonError};

use meshctl_api::view::messages::{DeadLetterQuery, DeadLetterRequest, Replay};
use meshctl_drivers::broker::{Broker, ChannelSpec};
use meshctl_model::delivery::{Alert, Behind, Channel, Retry, Subscription};
use meshctl_model::message::{Failure, header};
use meshctl_model::units::{Bytes, Percent, Span};
use tokio::sync::{mpsc, watch};

use super::super::store::Store;
use super::super::{Counts, DeadLetters, Wish};
use super::broker::{Handle, Memory};
use super::{at, died, message, place};
use crate::control::Message as ToControl;
use crate::operate::Asked;
use crate::report::Report;
use crate::traces::Traces;

/// The daemon's dead letters on a file, with what they tell.
struct Daemon {
    letters: DeadLetters,
    told: mpsc::Receiver<ToControl>,
    traces: Traces,
    _channels: watch::Sender<BTreeMap<String, Channel>>,
}

impl Daemon {
    fn start(path: &std::path::Path, broker: &Arc<Memory>) -> Self {
        let (store, _) = Store::open(path).expect("opens");
        let (sender, told) = mpsc::channel(1024);
        let (traces, _) = Traces::open(&path.with_extension("traces"), sender.clone()).expect("opens");
        let letters = DeadLetters::new(store, sender);
        let (channels, wanted) = watch::channel(BTreeMap::from([("order.placed".to_owned(), channel())]));
        letters.start(Arc::new(Handle(Arc::clone(broker))), wanted, traces.clone());
        Self { letters, told, traces, _channels: channels }
    }

    /// The next event of that kind, as `(subject, data)`.
    async fn hears(&mut self, kind: &str) -> (String, serde_json::Value) {
        while let Some(message) = self.told.recv().await {
            if let ToControl::Report(Report::Happened { kind: heard, subject, data, .. }) = message
                && heard == kind
            {
                return (subject, data);
            }
        }
        panic!("nobody will ever tell of {kind}");
    }

    async fn counts(&self) -> Counts {
        let counts = self.letters.counts().await.expect("counts");
        counts.get(&("order.placed".to_owned(), "billing".to_owned())).copied().unwrap_or_default()
    }

    async fn replay_all(&self) -> Replay {
        self.letters.replay(DeadLetterRequest::default(), Asked::default()).await.expect("replays")
    }
}

fn channel() -> Channel {
    let subscription = Subscription {
        service: "billing".into(),
        url: "http://127.0.0.1:1/events".into(),
        concurrency: 1,
        timeout: Span::from_secs(1),
        retry: Retry { attempts: 1, backoff: vec![Span::from_secs(1)], jitter: Percent(0.0) },
        alert: Some(Alert { count: 5, within: Span::from_secs(3600) }),
    };
    Channel {
        partitions: 1,
        key: None,
        ordered: false,
        retention: Span::from_secs(60),
        max_size: Bytes(1 << 30),
        max_message: Bytes(1 << 20),
        idempotency_window: Span::from_secs(60),
        subscriptions: [("billing".to_owned(), subscription)].into(),
    }
}

fn behind(which: Behind) -> String {
    which.channel("order.placed", "billing")
}

async fn broker() -> Arc<Memory> {
    let memory = Arc::new(Memory::default());
    for which in [Behind::Dead, Behind::Replay, Behind::Replayed] {
        Handle(Arc::clone(&memory)).ensure(&spec(which)).await.expect("makes it");
    }
    memory
}

fn spec(which: Behind) -> ChannelSpec {
    ChannelSpec {
        name: behind(which),
        partitions: 1,
        retention: std::time::Duration::ZERO,
        max_size_bytes: 0,
        idempotency_window: std::time::Duration::ZERO,
        groups: Vec::new(),
    }
}

fn die(broker: &Memory, letters: impl IntoIterator<Item = usize>) {
    for number in letters {
        let letter = died(&place("billing"), message(&format!("m{number}")), Failure::Rejected, at(number as i64));
        broker.put(&behind(Behind::Dead), letter);
    }
}

/// What the subscriber does with the replayed messages from `from` on: those for which `poisonous` holds die again.
async fn subscriber(broker: Arc<Memory>, poisonous: fn(&str) -> bool) {
    let mut seen = 0;
    loop {
        broker.until(|broker| broker.all(&behind(Behind::Replay)).len() > seen).await;
        for message in broker.all(&behind(Behind::Replay)).into_iter().skip(seen) {
            seen += 1;
            if poisonous(&message.id) {
                broker.put(&behind(Behind::Dead), died(&place("billing"), message, Failure::Rejected, at(5000)));
            } else {
                broker.put(&behind(Behind::Replayed), message);
            }
        }
    }
}

#[tokio::test]
async fn what_dies_is_taken_in_once_though_it_is_delivered_twice() {
    let folder = tempfile::tempdir().expect("a folder");
    let broker = broker().await;
    *broker.refused_settlements.lock().unwrap_or_else(PoisonError::into_inner) = 2;
    die(&broker, 0..1200);
    let mut daemon = Daemon::start(&folder.path().join("deadletters.db"), &broker);
    let (subject, _) = daemon.hears("deadletter.arrived").await;
    assert_eq!(subject, "subscription/order.placed/billing");
    let (_, alert) = daemon.hears("deadletters.alert").await;
    assert!(alert["count"].as_u64() >= Some(5), "{alert}");
    broker.until(|broker| broker.unsettled(&behind(Behind::Dead)) == 0).await;
    assert_eq!(daemon.counts().await, Counts { taken_in: 1200, dead: 1200, ..Counts::default() });
}

#[tokio::test]
async fn a_replay_ends_when_the_subscriber_has_answered_for_every_letter() {
    let folder = tempfile::tempdir().expect("a folder");
    let broker = broker().await;
    die(&broker, 0..700);
    let mut daemon = Daemon::start(&folder.path().join("deadletters.db"), &broker);
    broker.until(|broker| broker.unsettled(&behind(Behind::Dead)) == 0).await;
    *broker.lost_confirms.lock().unwrap_or_else(PoisonError::into_inner) = 2;
    tokio::spawn(subscriber(Arc::clone(&broker), |id| id.ends_with('7')));
    let replay = daemon.replay_all().await;
    assert_eq!((replay.selected, replay.state.as_str()), (700, "running"));
    let (subject, data) = daemon.hears("replay.done").await;
    assert_eq!(subject, format!("replay/{}", replay.replay_id));
    assert_eq!(data, serde_json::json!({"selected": 700, "processed": 630, "failedAgain": 70, "withdrawn": 0}));
    let issued = broker.all(&behind(Behind::Replay));
    assert_eq!(issued.len(), 700, "each once, though confirmations were lost");
    let done = daemon.letters.show_replay(replay.replay_id).await.expect("is there");
    assert_eq!((done.issued, done.processed, done.failed_again, done.pending), (700, 630, 70, 0));
    assert_eq!(done.state, "done");
    let counts = Counts { taken_in: 770, dead: 70, processed: 630, issued: 700, ..Counts::default() };
    assert_eq!(daemon.counts().await, counts);
}

#[tokio::test]
async fn what_is_too_large_together_is_replayed_in_parts() {
    let folder = tempfile::tempdir().expect("a folder");
    let broker = broker().await;
    die(&broker, 0..50);
    let daemon = Daemon::start(&folder.path().join("deadletters.db"), &broker);
    broker.until(|broker| broker.unsettled(&behind(Behind::Dead)) == 0).await;
    *broker.most.lock().unwrap_or_else(PoisonError::into_inner) = Some(3);
    daemon.replay_all().await;
    broker.until(|broker| broker.all(&behind(Behind::Replay)).len() == 50).await;
    let issued: Vec<String> = broker.all(&behind(Behind::Replay)).into_iter().map(|message| message.id).collect();
    let expected: Vec<String> = (0..50).map(|number| format!("m{number}")).collect();
    assert_eq!(issued, expected, "in order");
}

#[tokio::test]
async fn what_is_refused_alone_is_withdrawn_and_said() {
    let folder = tempfile::tempdir().expect("a folder");
    let broker = broker().await;
    die(&broker, 0..5);
    let mut daemon = Daemon::start(&folder.path().join("deadletters.db"), &broker);
    broker.until(|broker| broker.unsettled(&behind(Behind::Dead)) == 0).await;
    *broker.most.lock().unwrap_or_else(PoisonError::into_inner) = Some(0);
    let replay = daemon.replay_all().await;
    assert_eq!(daemon.hears("replay.withdrawn").await.1["count"], 5);
    assert_eq!(daemon.hears("replay.done").await.1["withdrawn"], 5);
    let done = daemon.letters.show_replay(replay.replay_id).await.expect("is there");
    assert_eq!((done.issued, done.withdrawn, done.pending), (0, 5, 0));
}

#[tokio::test]
async fn a_replay_waits_for_a_broker_that_does_not_know_its_channel_yet() {
    let folder = tempfile::tempdir().expect("a folder");
    let broker = broker().await;
    die(&broker, 0..5);
    let daemon = Daemon::start(&folder.path().join("deadletters.db"), &broker);
    broker.until(|broker| broker.unsettled(&behind(Behind::Dead)) == 0).await;
    let handle = Handle(Arc::clone(&broker));
    handle.remove(&behind(Behind::Replay), true).await.expect("removes it");
    daemon.replay_all().await;
    broker.until(|broker| broker.asked_in_vain()).await;
    handle.ensure(&spec(Behind::Replay)).await.expect("makes it");
    broker.until(|broker| broker.all(&behind(Behind::Replay)).len() == 5).await;
}

#[tokio::test]
async fn a_replay_begins_though_whoever_asked_for_it_has_gone() {
    let folder = tempfile::tempdir().expect("a folder");
    let broker = broker().await;
    die(&broker, 0..5);
    let mut daemon = Daemon::start(&folder.path().join("deadletters.db"), &broker);
    broker.until(|broker| broker.unsettled(&behind(Behind::Dead)) == 0).await;
    let asked = daemon.letters.replay(DeadLetterRequest::default(), Asked::default());
    // Polled once and dropped, as a handler is whose client disconnects.
    assert!(futures_util::FutureExt::now_or_never(asked).is_none(), "it is under way");
    daemon.hears("replay.started").await;
    broker.until(|broker| broker.all(&behind(Behind::Replay)).len() == 5).await;
}

#[tokio::test]
async fn what_is_paused_waits_and_what_is_cancelled_stays_dead() {
    let folder = tempfile::tempdir().expect("a folder");
    let broker = broker().await;
    die(&broker, 0..10);
    let daemon = Daemon::start(&folder.path().join("deadletters.db"), &broker);
    broker.until(|broker| broker.unsettled(&behind(Behind::Dead)) == 0).await;
    // One at once, and the next a long time later.
    let request = DeadLetterRequest { rate_per_s: Some(0.001), ..DeadLetterRequest::default() };
    let replay = daemon.letters.replay(request, Asked::default()).await.expect("replays");
    broker.until(|broker| broker.all(&behind(Behind::Replay)).len() == 1).await;
    let id = replay.replay_id;
    let paused = daemon.letters.steer(id.clone(), Wish::Pause, Asked::default()).await.expect("pauses");
    assert_eq!(paused.state, "paused");
    let cancelled = daemon.letters.steer(id.clone(), Wish::Cancel, Asked::default()).await.expect("cancels");
    assert_eq!((cancelled.state.as_str(), cancelled.pending), ("cancelled", 1));
    assert!(daemon.letters.steer(id, Wish::Resume, Asked::default()).await.is_err());
    let others = daemon.replay_all().await;
    assert_eq!(others.selected, 9, "those that were not issued");
}

#[test]
fn a_daemon_that_is_killed_half_way_is_followed_by_one_that_goes_on() {
    const LETTERS: usize = 3000;
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("deadletters.db");
    // What dies with this runtime dies between any two lines, as in a daemon that is killed.
    let first = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("starts");
    let (broker, id) = first.block_on(async {
        let broker = broker().await;
        die(&broker, 0..LETTERS);
        let daemon = Daemon::start(&path, &broker);
        broker.until(|broker| broker.unsettled(&behind(Behind::Dead)) == 0).await;
        let replay = daemon.replay_all().await;
        broker.until(|broker| broker.all(&behind(Behind::Replay)).len() >= LETTERS / 2).await;
        (broker, replay.replay_id)
    });
    first.shutdown_background();
    let issued = broker.all(&behind(Behind::Replay)).len();
    assert!(issued < LETTERS, "it was killed half way");

    let second = tokio::runtime::Runtime::new().expect("starts");
    second.block_on(async {
        let mut daemon = Daemon::start(&path, &broker);
        tokio::spawn(subscriber(Arc::clone(&broker), |_| false));
        let (subject, _) = daemon.hears("replay.done").await;
        assert_eq!(subject, format!("replay/{id}"));
        let done = daemon.letters.show_replay(id).await.expect("is there");
        assert_eq!((done.processed, done.pending, done.failed_again), (LETTERS as u64, 0, 0));
        let all = broker.all(&behind(Behind::Replay));
        let ids: HashSet<_> = all.iter().map(|message| message.id.as_str()).collect();
        assert_eq!((all.len(), ids.len()), (LETTERS, LETTERS), "each letter once");
        assert!(all.iter().all(|message| message.header(header::HISTORY).is_some()));
        let left = daemon.letters.list(DeadLetterQuery::default()).await.expect("lists");
        assert_eq!(left, []);
    });
}

#[tokio::test]
async fn an_import_that_is_a_dry_run_reads_and_writes_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let broker = broker().await;
    die(&broker, 0..1);
    let daemon = Daemon::start(&folder.path().join("deadletters.db"), &broker);
    broker.until(|broker| broker.unsettled(&behind(Behind::Dead)) == 0).await;
    let mut export = daemon.letters.export(DeadLetterQuery::default()).await.expect("exports");
    let mut letter = export.recv().await.expect("there is one").expect("is read");
    letter.message_id = "another".into();
    for (dry_run, changed) in [(true, 1), (false, 1)] {
        let mut import = daemon.letters.import(Asked::default(), dry_run);
        import.line(&serde_json::to_vec(&letter).expect("JSON")).await.expect("is a letter");
        let outcome = import.finish().await.expect("imports");
        assert_eq!((outcome.selected, outcome.changed, outcome.dry_run), (1, changed, dry_run));
        assert_eq!(daemon.counts().await.imported, if dry_run { 0 } else { changed });
    }
}
