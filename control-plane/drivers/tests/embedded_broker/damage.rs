//! Torn logs, truncated and altered files: what was committed before is kept, what can be read is saved, the loss shows.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Seek as _, SeekFrom, Write};
use std::path::{Path, PathBuf};

use meshctl_drivers::broker::conformance::{Subject, channel, consume, message, receive, settle, state, within};
use meshctl_drivers::broker::{ChannelState, From};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::support::Bench;

const CHANNEL: &str = "conformance.damage";

fn wal(database: &Path) -> PathBuf {
    database.with_file_name("broker.db-wal")
}

/// A log that ends anywhere: all that was confirmed before that point is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_torn_log_keeps_what_was_confirmed_before() {
    let bench = Bench::start().await;
    let broker = bench.client();
    broker.ensure(&channel("damage", 2, &["all"])).await.unwrap();
    let mut confirmed: Vec<(u64, String)> = Vec::new();
    for number in 0..60 {
        let id = format!("m-{number}");
        broker.publish(CHANNEL, vec![message(&id, None)]).await.unwrap();
        confirmed.push((fs::metadata(wal(&bench.database())).unwrap().len(), id));
    }
    bench.down(Signal::KILL);
    let (first, last) = (confirmed[0].0, confirmed[59].0);
    assert!(last > first, "the log grows");
    for step in 0..24 {
        let cut = first + (last - first) * step / 23 + [0, 1, 24, 2000][step as usize % 4];
        let copy = TempDir::new().unwrap();
        fs::create_dir(copy.path().join("broker")).unwrap();
        for name in ["broker.db", "broker.db-wal"] {
            fs::copy(bench.state.join("broker").join(name), copy.path().join("broker").join(name)).unwrap();
        }
        let torn = fs::File::options().write(true).open(copy.path().join("broker/broker.db-wal")).unwrap();
        torn.set_len(cut).unwrap();
        let again = Bench::start_in(copy.path()).await;
        let stored = again.client().browse(CHANNEL, From::Earliest, 1000).await.unwrap();
        let kept: BTreeSet<&str> = stored.iter().map(|stored| stored.message.id.as_str()).collect();
        for (length, id) in &confirmed {
            assert!(*length > cut || kept.contains(id.as_str()), "{id} was confirmed at {length}, cut at {cut}");
        }
        let state = state(&again.client(), CHANNEL).await;
        assert_eq!((state.kept, state.groups[0].unsettled), (kept.len() as u64, kept.len() as u64));
        assert_eq!(state.accepted, state.kept, "messages and counts are one transaction");
    }
}

/// A broker with 4,000 messages of 500 bytes, half of them settled, that was closed properly.
async fn filled() -> Bench {
    let bench = Bench::start().await;
    let broker = bench.client();
    let spec = channel("damage", 2, &["all"]);
    broker.ensure(&spec).await.unwrap();
    for batch in 0..40 {
        let messages = (0..100).map(|at| {
            let id = format!("m-{:05}", batch * 100 + at);
            let mut publish = message(&id, None);
            publish.message.payload = id.repeat(63).into();
            publish
        });
        broker.publish(CHANNEL, messages.collect()).await.unwrap();
    }
    let mut consumer = consume(&broker, &spec, "all", 2000).await;
    let held = receive(&mut consumer, 2000).await;
    settle(&consumer, &held).await;
    drop((consumer, broker));
    assert!(bench.down(Signal::TERM).success());
    bench
}

/// The books, and that whatever is delivered is as it was published.
async fn survey(bench: &Bench) -> ChannelState {
    let broker = bench.client();
    let spec = channel("damage", 2, &["all"]);
    let before = state(&broker, CHANNEL).await;
    let group = &before.groups[0];
    let mut consumer = consume(&broker, &spec, "all", 10_000).await;
    let rest = receive(&mut consumer, usize::try_from(group.unsettled).unwrap()).await;
    for delivery in &rest {
        assert_eq!(delivery.message.payload, delivery.message.id.repeat(63), "no altered message is delivered");
    }
    settle(&consumer, &rest).await;
    broker.publish(CHANNEL, vec![message("after", None)]).await.unwrap();
    assert_eq!(receive(&mut consumer, 1).await[0].message.id, "after", "it goes on");
    before
}

fn damaged_files(bench: &Bench) -> usize {
    let files = fs::read_dir(bench.state.join("broker")).unwrap();
    let names = files.map(|file| file.unwrap().file_name().to_string_lossy().into_owned());
    names.filter(|name| name.contains("damaged") && name.ends_with('Z')).count()
}

/// The group's books are short by exactly what the channel has lost of the unsettled messages.
fn lost(state: &ChannelState) -> u64 {
    let group = &state.groups[0];
    assert_eq!((state.accepted, group.accepted), (4000, 4000), "counts stay: {state:?}");
    group.accepted - group.processed - group.unsettled
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_truncated_file_is_salvaged() {
    let bench = filled().await;
    let file = fs::File::options().write(true).open(bench.database()).unwrap();
    let length = file.metadata().unwrap().len();
    file.set_len(length * 6 / 10 + 123).unwrap();
    bench.up().await;
    assert!(damaged_files(&bench) >= 1, "the damaged file is kept");
    let state = survey(&bench).await;
    assert!(state.kept > 500 && state.kept < 4000, "what can be read is there, and no more: {state:?}");
    assert!(lost(&state) > 0, "the loss shows: {state:?}");
    assert!(bench.log().contains("messages are lost"), "and is named");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_in_the_middle_is_cut_out() {
    let bench = filled().await;
    fs::remove_file(bench.state.join("broker/clean")).unwrap();
    let mut file = fs::File::options().write(true).open(bench.database()).unwrap();
    let length = file.metadata().unwrap().len();
    file.seek(SeekFrom::Start(length / 2 / 4096 * 4096)).unwrap();
    file.write_all(&[0xa5; 40 * 4096]).unwrap();
    bench.up().await;
    assert_eq!(damaged_files(&bench), 1, "{}", bench.log());
    let state = survey(&bench).await;
    assert!(state.kept > 3000 && state.kept < 4000, "around the garbage everything is there: {state:?}");
    assert!(lost(&state) <= 4000 - state.kept);
}

/// Closed properly, altered since: it is found when it is used, and repaired by the next start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_found_while_running_is_cut_out_by_the_next_start() {
    let bench = filled().await;
    let mut file = fs::File::options().write(true).open(bench.database()).unwrap();
    let length = file.metadata().unwrap().len();
    file.seek(SeekFrom::Start(length / 2 / 4096 * 4096)).unwrap();
    file.write_all(&vec![0xa5; usize::try_from(length / 2 / 4096 * 4096).unwrap() / 2]).unwrap();
    bench.start_process();
    // Whoever looks at the messages meets it; the broker ends, and is started again, as a daemon does it.
    within("the broker's end", async {
        while bench.is_running() {
            let _ = bench.client().state().await;
        }
    })
    .await;
    bench.up().await;
    assert_eq!(damaged_files(&bench), 1, "{}", bench.log());
    let state = survey(&bench).await;
    assert!(state.kept < 4000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_altered_message_is_never_delivered() {
    let bench = filled().await;
    let mut bytes = fs::read(bench.database()).unwrap();
    // The payload of a message that is not settled; its row stays well formed.
    let broken = b"m-03990m-03990m-03990";
    let at = bytes.windows(broken.len()).position(|window| window == broken).unwrap();
    bytes[at + 30] ^= 1;
    fs::write(bench.database(), bytes).unwrap();
    bench.up().await;
    let broker = bench.client();
    let spec = channel("damage", 2, &["all"]);
    let before = state(&broker, CHANNEL).await.kept_bytes;
    let mut consumer = consume(&broker, &spec, "all", 10_000).await;
    let rest = receive(&mut consumer, 1999).await;
    assert!(rest.iter().all(|delivery| delivery.message.payload == delivery.message.id.repeat(63)));
    assert!(rest.iter().all(|delivery| delivery.message.id != "m-03990"));
    settle(&consumer, &rest).await;
    let state = state(&broker, CHANNEL).await;
    assert_eq!((state.kept, lost(&state)), (3999, 1), "the loss shows: {state:?}");
    assert_eq!(before - state.kept_bytes, rest[0].message.payload.len() as u64, "its size is not kept either");
    assert!(bench.log().contains("a message is damaged"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_none_is_set_aside() {
    let bench = filled().await;
    fs::write(bench.database(), b"this is no database at all".repeat(1000)).unwrap();
    bench.up().await;
    assert_eq!(damaged_files(&bench), 1);
    let broker = bench.client();
    assert_eq!(broker.state().await.unwrap(), [], "nothing can be read of it");
    broker.ensure(&channel("damage", 2, &["all"])).await.unwrap();
    broker.publish(CHANNEL, vec![message("after", None)]).await.unwrap();
}
