//! How long operators wait with 100,000 dead letters. No test: it judges nothing and prints what it sees.
//! `cargo test --release -p meshctl-daemon --lib -- --ignored --nocapture measure`

use std::sync::Arc;
use std::time::{Duration, Instant};

use meshctl_api::view::messages::{DeadLetterQuery, DeadLetterRequest};
use meshctl_drivers::broker::Broker;
use meshctl_model::message::Failure;

use super::super::replay::Told;
use super::super::replay::{BATCH, Pace};
use super::super::replays::{self, Step};
use super::super::store::Store;
use super::super::take_in;
use super::broker::{Handle, Memory};
use super::http::served;
use super::{arrived, at, died, message, place};

const LETTERS: u64 = 100_000;

/// The middle one of nine.
async fn time<T>(what: &str, mut work: impl AsyncFnMut() -> T) {
    let mut times: Vec<Duration> = Vec::new();
    for _ in 0..9 {
        let begun = Instant::now();
        let _ = work().await;
        times.push(begun.elapsed());
    }
    times.sort();
    println!("{what:<44} {:>8.1?} (most {:.1?})", times[4], times[8]);
}

#[tokio::test]
#[ignore = "it measures, and takes its time"]
async fn measure_looks_at_a_hundred_thousand() {
    let folder = tempfile::tempdir().expect("a folder");
    let begun = Instant::now();
    let client = served(folder.path(), LETTERS).await;
    println!("taken in, in one transaction: {:.1?}", begun.elapsed());
    let filtered = |text: &str| DeadLetterQuery { r#where: Some(text.into()), ..DeadLetterQuery::default() };
    time("list (500 latest)", async || client.dead_letters(&DeadLetterQuery::default()).await.expect("lists")).await;
    for text in
        ["messageId = m77", "error ~ 'no such thing'", "reason = poison and age > 1h", "error ~ order or key = x"]
    {
        time(&format!("filter: {text}"), async || client.dead_letters(&filtered(text)).await.expect("lists")).await;
    }
    for by in ["reason", "fingerprint", "subscription", "state"] {
        let query = DeadLetterQuery { group_by: Some(by.into()), ..DeadLetterQuery::default() };
        time(&format!("group by {by}"), async || client.dead_letter_groups(&query).await.expect("groups")).await;
    }
    let id = client.dead_letters(&DeadLetterQuery::default()).await.expect("lists").items[0].id.clone();
    time("show", async || client.dead_letter(&id).await.expect("is there")).await;
    let dry = DeadLetterRequest { dry_run: true, ..DeadLetterRequest::default() };
    time("replay --dry-run of all", async || client.start_replay(&dry).await.expect("would")).await;
    let begun = Instant::now();
    let replay = client.start_replay(&DeadLetterRequest::default()).await.expect("replays");
    println!("a replay of {} made: {:.1?}", replay.selected, begun.elapsed());
}

#[tokio::test]
#[ignore = "it measures, and takes its time"]
async fn measure_a_replay_of_a_hundred_thousand() {
    let folder = tempfile::tempdir().expect("a folder");
    let (store, _) = Store::open(&folder.path().join("deadletters.db")).expect("opens");
    let mut taking = Duration::ZERO;
    for from in (0..LETTERS).step_by(BATCH as usize) {
        let letter =
            |n| arrived(n, died(&place("billing"), message(&format!("m{n}")), Failure::Rejected, at(n as i64)));
        let batch: Vec<_> = (from..from + u64::from(BATCH)).map(letter).collect();
        let begun = Instant::now();
        store.write("fill", move |to| take_in::deaths(to, &place("billing"), &batch)).await.expect("writes");
        taking += begun.elapsed();
    }
    println!("taken in, {BATCH} in a transaction: {taking:.1?}");
    let query = DeadLetterQuery::default();
    let wanted = super::super::sql::Where::of(&query, at(0)).expect("a filter");
    let made = store.write("make", move |to| {
        let set = super::super::sets::select(to, &query, &wanted, super::super::Action::Replay, None)?;
        replays::create(to, &set, &replays::Order::default(), at(0))
    });
    let id = made.await.expect("made").replay_id;
    let broker = Handle(Arc::new(Memory::default()));
    broker.0.put("order.placed/billing/replay", message("first"));
    let (begun, mut told) = (Instant::now(), Vec::<(i64, Told)>::new());
    loop {
        let (replay, said) = (id.clone(), std::mem::take(&mut told));
        let step = store.write("step", move |to| replays::step(to, &replay, &said, &mut Pace::new(None, at(0)), at(0)));
        let Step::Publish(ready) = step.await.expect("steps") else { break };
        told.extend(ready.iter().map(|one| (one.letter, Told::Confirmed)));
        let messages = ready.into_iter().map(|one| one.publish).collect();
        broker.publish("order.placed/billing/replay", messages).await.expect("publishes");
    }
    println!("issued, but for the broker's own time: {:.1?}", begun.elapsed());
}
