//! What goes in comes out, in bounds, whatever happens in between.

use std::collections::BTreeMap;
use std::time::Duration;

use meshctl_api::view::traces::{TraceQuery, TraceSummary};
use meshctl_model::trace::{Span, attribute};
use proptest::prelude::*;
use rusqlite::Connection;

use super::super::id::trace_text;
use super::super::packed::tests::span as any_span;
use super::super::read::{Wanted, Whole};
use super::super::store::{Batch, Bounds, Notice, ROOM, Store};
use super::{With, batch, find, open, span};

async fn list(store: &Store, query: TraceQuery) -> Vec<TraceSummary> {
    let wanted = Wanted::of(&query, span(1, 1, None, 60_000).start_at).expect("a query");
    store.read("list", move |from| wanted.list(from)).await.expect("lists")
}

async fn filtered(store: &Store, text: &str) -> Vec<String> {
    let query = TraceQuery { filter: Some(text.into()), ..TraceQuery::default() };
    list(store, query).await.into_iter().map(|trace| trace.trace_id).collect()
}

fn ids(whole: &Whole) -> Vec<&str> {
    whole.spans.iter().map(|span| span.operation.as_str()).collect()
}

#[tokio::test]
async fn spans_that_come_late_join_their_trace_also_days_and_a_restart_later() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("traces.db");
    let (store, _) = open(&path);
    store.write(batch(vec![span(7, 2, Some(1), 5)])).await;
    let early = &list(&store, TraceQuery::default()).await[0];
    assert_eq!((early.operation.as_str(), early.latency_ms, early.spans), ("operation 2", 10.0, 1));
    // The first of it comes second, and begins later by a clock that is behind: it has no parent, which says more.
    store.write(batch(vec![span(7, 1, None, 6).by("gateway").lasting(40.0)])).await;
    drop(store);
    let (store, _) = open(&path);
    let replayed = span(7, 3, Some(2), 86_400_000).by("courier").failed();
    store.write(batch(vec![replayed.clone(), replayed])).await;
    let late = list(&store, TraceQuery::default()).await.remove(0);
    assert_eq!((late.service.as_str(), late.operation.as_str(), late.latency_ms), ("gateway", "operation 1", 40.0));
    assert_eq!((late.spans, late.errors, late.status.as_str()), (3, 1, "error"));
    assert_eq!(late.duration_ms, 86_400_000.0 + 10.0 - 5.0);
    assert_eq!(late.services, ["courier", "gateway", "orders"]);
    let whole = find(&store, &trace_text(7).to_uppercase()).await.expect("is there");
    assert_eq!(ids(&whole), ["operation 2", "operation 1", "operation 3"]);
    let state = store.state().await.expect("a state");
    assert_eq!((state.traces, state.spans), (1, 3));
    assert_eq!(state.oldest_at, Some(late.start_at));
}

#[tokio::test]
async fn of_two_with_one_id_the_later_holds_and_counts_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let (store, _) = open(&folder.path().join("traces.db"));
    store.write(batch(vec![span(7, 1, None, 0)])).await;
    // Its body broke after the response had begun.
    store
        .write(batch(vec![span(7, 1, None, 0).lasting(99.0).failed(), span(7, 1, None, 0).lasting(99.0).failed()]))
        .await;
    let trace = list(&store, TraceQuery::default()).await.remove(0);
    assert_eq!((trace.spans, trace.errors, trace.latency_ms), (1, 1, 99.0));
    let whole = find(&store, &trace_text(7)).await.expect("is there");
    assert_eq!(whole.spans, [span(7, 1, None, 0).lasting(99.0).failed()]);
    assert_eq!(store.state().await.expect("a state").spans, 1);
}

#[test]
fn what_goes_in_comes_out_however_it_is_cut() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        failure_persistence: None,
        cases: 48,
        ..ProptestConfig::default()
    });
    let spans = (1_u128..5).prop_flat_map(any_span);
    let batches = prop::collection::vec((prop::collection::vec(spans, 0..8), any::<bool>()), 1..6);
    let outcome = runner.run(&batches, |batches| {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("traces.db");
        let mut expected: BTreeMap<(String, String), Span> = BTreeMap::new();
        for one in batches.iter().flat_map(|(spans, _)| spans) {
            expected.insert((one.trace_id.clone(), one.span_id.clone()), one.clone());
        }
        let found = runtime.block_on(async {
            let (mut store, _) = open(&path);
            for (spans, restart) in batches {
                store.write(batch(spans)).await;
                if restart {
                    drop(store);
                    store = open(&path).0;
                }
            }
            let mut found = BTreeMap::new();
            for trace in 1..5 {
                // Links may join other traces to it.
                let whole = find(&store, &trace_text(trace)).await.unwrap_or_default();
                found.extend(whole.spans.into_iter().map(|one| ((one.trace_id.clone(), one.span_id.clone()), one)));
            }
            found
        });
        prop_assert_eq!(found, expected);
        Ok(())
    });
    outcome.unwrap_or_else(|why| panic!("{why}"));
}

#[tokio::test]
async fn links_and_messages_join_traces_in_both_directions() {
    let folder = tempfile::tempdir().expect("a folder");
    let (store, _) = open(&folder.path().join("traces.db"));
    store.write(batch(vec![span(1, 1, None, 0), span(1, 2, Some(1), 1).message("m-1")])).await;
    // A consumer with a trace of its own that says where it follows from, and one that has only the message's id.
    store.write(batch(vec![span(2, 3, None, 20).linked(1, 2)])).await;
    store.write(batch(vec![span(3, 4, None, 30).message("m-1"), span(3, 5, Some(4), 31).message("m-2")])).await;
    store.write(batch(vec![span(4, 6, None, 40).message("m-2")])).await;
    store.write(batch(vec![span(5, 7, None, 50).message("m-3").linked(99, 1)])).await;
    for asked in [trace_text(1), trace_text(2), trace_text(4), "m-1".into(), "m-2".into()] {
        let whole = find(&store, &asked).await.expect("is there");
        assert_eq!(ids(&whole), [1, 2, 3, 4, 5, 6].map(|id| format!("operation {id}")), "{asked}");
        assert_eq!((whole.joined.len(), whole.cut), (3, false), "{asked}");
        assert_eq!(whole.message_ids(), ["m-1", "m-2"]);
    }
    assert_eq!(find(&store, "m-1").await.expect("is there").trace, 1, "of several the first that has the message");
    assert_eq!(find(&store, "m-3").await.expect("is there").joined, [0; 0], "what it links to never came");
    assert_eq!((find(&store, "m-4").await, find(&store, &trace_text(99)).await), (None, None));
}

#[tokio::test]
async fn what_joins_too_many_is_cut_and_says_so() {
    let folder = tempfile::tempdir().expect("a folder");
    let (store, _) = open(&folder.path().join("traces.db"));
    let all = (1..=300).map(|trace| span(trace, 1, None, trace as i64).message("m")).collect();
    store.write(batch(all)).await;
    let whole = find(&store, &trace_text(5)).await.expect("is there");
    assert!(whole.cut && whole.joined.len() == 100, "{}", whole.joined.len());
}

#[tokio::test]
async fn lists_are_ordered_filtered_and_limited() {
    let folder = tempfile::tempdir().expect("a folder");
    let (store, _) = open(&folder.path().join("traces.db"));
    store
        .write(batch(vec![
            span(1, 1, None, 0).by("gateway"),
            span(1, 2, Some(1), 1).by("billing"),
            span(2, 1, None, 1000).by("gateway").lasting(700.0),
            span(3, 1, None, 2000).by("gateway").lasting(20.0).failed(),
            span(4, 1, None, 3000).by("gateway"),
            span(4, 2, Some(1), 9000).with(attribute::OUTCOME, "dead").failed().by("courier"),
        ]))
        .await;
    let named = |traces: &[TraceSummary]| -> Vec<u128> {
        traces.iter().map(|trace| u128::from_str_radix(&trace.trace_id, 16).expect("an id")).collect()
    };
    let all = list(&store, TraceQuery::default()).await;
    assert_eq!(named(&all), [4, 3, 2, 1]);
    assert_eq!(all.iter().map(|trace| trace.status.as_str()).collect::<Vec<_>>(), ["dead", "error", "slow", "ok"]);
    let slowest = TraceQuery { slowest: true, limit: Some(2), ..TraceQuery::default() };
    assert_eq!(named(&list(&store, slowest).await), [2, 3]);
    let errors = TraceQuery { errors: true, ..TraceQuery::default() };
    assert_eq!(named(&list(&store, errors).await), [4, 3]);
    let since = Some(span(1, 1, None, 1000).start_at.to_string());
    assert_eq!(named(&list(&store, TraceQuery { since, ..TraceQuery::default() }).await), [4, 3]);
    for (text, expected) in [
        ("service = billing", vec![1]),
        ("service != billing and status != dead", vec![3, 2]),
        ("service in (courier, billing) or status = slow", vec![4, 2, 1]),
        ("latency >= 700ms", vec![2]),
        ("duration > 5s and latency < 100ms", vec![4]),
        ("errors > 0 and spans = 1", vec![3]),
        ("age < 58s", vec![4]),
        ("operation ~ 'OPERATION 1' and status in (ok, slow)", vec![2, 1]),
        ("startAt <= 2027-01-15T08:00:01Z", vec![2, 1]),
        ("traceId = 00000000000000000000000000000003", vec![3]),
    ] {
        let expected: Vec<String> = expected.into_iter().map(trace_text).collect();
        assert_eq!(filtered(&store, text).await, expected, "{text}");
    }
    for (query, says) in [
        (TraceQuery { filter: Some("servce = x".into()), ..TraceQuery::default() }, "did you mean `service`"),
        (TraceQuery { filter: Some("status = fine".into()), ..TraceQuery::default() }, "`status` is never"),
        (TraceQuery { since: Some("yesterday".into()), ..TraceQuery::default() }, "no time"),
        (TraceQuery { limit: Some(1001), ..TraceQuery::default() }, "more than are listed"),
    ] {
        let refused = Wanted::of(&query, jiff::Timestamp::now()).expect_err("is refused");
        assert!(refused.message.contains(says), "{}", refused.message);
    }
}

/// Moves what came last for all traces into the past.
fn age(path: &std::path::Path, seconds: i64, which: &str) {
    let connection = Connection::open(path).expect("opens");
    connection.busy_timeout(Duration::from_secs(5)).expect("waits");
    connection.execute(&format!("UPDATE traces SET touched = touched - {seconds} WHERE {which}"), []).expect("ages");
}

/// Commits something, so that what is done after a commit has been done before the next returns.
async fn settle(store: &Store, times: usize) {
    for _ in 0..times {
        store.write(Batch::default()).await;
    }
}

#[tokio::test]
async fn what_is_too_old_is_removed_and_counted_whatever_it_is() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("traces.db");
    let (store, _) = open(&path);
    let all = (1..=3000).map(|trace| span(trace, 1, None, 0).message(&format!("m-{trace}"))).collect();
    store.write(batch(all)).await;
    store.write(batch(vec![span(5000, 1, None, 0).failed(), span(5001, 1, None, 0)])).await;
    age(&path, 25 * 3600, "number <> 7 AND class <> 2");
    age(&path, 23 * 3600, "class = 2");
    settle(&store, 3).await;
    let state = store.state().await.expect("a state");
    assert_eq!((state.traces, state.spans, state.evicted_traces), (2, 2, 3000));
    assert_eq!(find(&store, "m-1").await, None);
    assert!(find(&store, "m-7").await.is_some() && find(&store, &trace_text(5000)).await.is_some());
    // What comes for one that is gone is a trace again.
    store.write(batch(vec![span(1, 2, Some(1), 0)])).await;
    assert_eq!(find(&store, &trace_text(1)).await.map(|whole| whole.spans.len()), Some(1));
    drop(store);
    let (store, _) = open(&path);
    let state = store.state().await.expect("a state");
    assert_eq!((state.traces, state.spans, state.evicted_traces), (3, 3, 3000), "counts outlive the daemon");
}

/// Eight kibibytes that do not get smaller.
fn large(trace: u128, seed: u64) -> Span {
    use std::fmt::Write;
    let mut text = String::new();
    let mut number = seed;
    while text.len() < 8 << 10 {
        number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let _ = write!(text, "{number:016x}");
    }
    span(trace, seed + 1, None, trace as i64).with("text", text)
}

#[tokio::test]
async fn where_there_is_no_room_plain_traces_go_before_slow_ones_and_those_before_failed_and_dead_ones() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("traces.db");
    let (store, _) = open(&path);
    let most = 8 << 20;
    store.bound(Bounds { max_size: most, ..Bounds::default() });
    let kinds = |trace: u128| match trace % 4 {
        0 => large(trace, 0),
        1 => large(trace, 0).lasting(900.0),
        2 => large(trace, 0).failed(),
        _ => large(trace, 0).failed().with(attribute::OUTCOME, "dead"),
    };
    for from in (0..600).step_by(20) {
        store.write(batch((from..from + 20).map(|trace| kinds(trace + 4)).collect())).await;
        age(&path, 100, "TRUE");
    }
    let of = async |store: &Store| {
        let all = list(store, TraceQuery { limit: Some(1000), ..TraceQuery::default() }).await;
        ["ok", "slow", "error", "dead"].map(|status| all.iter().filter(|trace| trace.status == status).count())
    };
    assert_eq!(of(&store).await, [150; 4], "there is room for all of it");
    // As much again, plain and long ago: what is plain goes first.
    for from in (1000..1600).step_by(20) {
        store.write(batch((from..from + 20).map(|trace| large(trace, 0)).collect())).await;
        age(&path, 100, "TRUE");
    }
    settle(&store, 5).await;
    let [plain, slow, failed, dead] = of(&store).await;
    assert!(plain < 400 && (slow, failed, dead) == (150, 150, 150), "{plain} {slow} {failed} {dead}");
    // Dead ones only: now the others have to go, in their order.
    for from in (2000..2400).step_by(20) {
        store
            .write(batch((from..from + 20).map(|trace| large(trace, 0).with(attribute::OUTCOME, "dead")).collect()))
            .await;
        age(&path, 100, "TRUE");
        settle(&store, 2).await;
    }
    let [plain, slow, failed, dead] = of(&store).await;
    assert_eq!((plain, slow), (0, 0));
    assert!(failed > 0 && failed < 300 && dead == 550, "{failed} {dead}");
    settle(&store, 20).await;
    let state = store.state().await.expect("a state");
    assert!(state.size_bytes <= most, "{} bytes of {most}", state.size_bytes);
    assert_eq!(state.evicted_traces + state.traces, 600 + 600 + 400, "nothing is lost uncounted");
}

#[tokio::test]
async fn what_just_came_is_spared_and_less_room_makes_a_smaller_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("traces.db");
    let (store, _) = open(&path);
    store.bound(Bounds { max_size: 64 << 20, ..Bounds::default() });
    for from in (1..1200).step_by(100) {
        store.write(batch((from..from + 100).map(|trace| large(trace, 0).failed()).collect())).await;
    }
    age(&path, 100, "TRUE");
    let before = store.state().await.expect("a state").size_bytes;
    store.bound(Bounds { max_size: 8 << 20, ..Bounds::default() });
    store.write(batch(vec![large(5000, 0)])).await;
    settle(&store, 20).await;
    let after = store.state().await.expect("a state");
    assert!(before > 9 << 20 && after.size_bytes <= 8 << 20, "{before} {}", after.size_bytes);
    assert!(find(&store, &trace_text(5000)).await.is_some(), "it is plain, and somebody may be about to look");
}

#[tokio::test]
async fn what_cannot_be_written_is_dropped_and_counted_and_said_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("traces.db");
    let (store, told) = open(&path);
    store.write(batch(vec![span(1, 1, None, 0)])).await;
    let side = Connection::open(&path).expect("opens");
    side.busy_timeout(Duration::from_secs(5)).expect("waits");
    side.execute_batch("ALTER TABLE chunks RENAME TO elsewhere").expect("renames");
    for trace in 2..5 {
        store.write(batch(vec![span(trace, 1, None, 0), span(trace, 2, Some(1), 0)])).await;
    }
    let state = store.state().await.expect("a state");
    assert_eq!((state.traces, state.spans, state.dropped_spans), (1, 1, 6));
    side.execute_batch("ALTER TABLE elsewhere RENAME TO chunks").expect("renames");
    store.write(batch(vec![span(9, 1, None, 0), span(1, 2, Some(1), 0)])).await;
    let state = store.state().await.expect("a state");
    assert_eq!((state.traces, state.spans, state.dropped_spans), (2, 3, 6));
    let told = told.lock().expect("a lock").clone();
    assert!(
        matches!(told.as_slice(), [Notice::Unwritable(why), Notice::Writable] if why.contains("chunks")),
        "{told:?}"
    );
    drop(store);
    assert_eq!(open(&path).0.state().await.expect("a state").dropped_spans, 6);
}

#[tokio::test]
async fn where_there_is_no_room_to_wait_spans_are_dropped_and_counted() {
    let folder = tempfile::tempdir().expect("a folder");
    let (store, _) = open(&folder.path().join("traces.db"));
    let all = store.room.clone().acquire_many_owned(ROOM as u32).await.expect("all of it");
    assert_eq!(store.offer(batch(vec![span(1, 1, None, 0)])).expect_err("no room").spans.len(), 1);
    store.put(batch(vec![span(1, 1, None, 0), span(1, 2, Some(1), 0)])).await;
    assert_eq!(store.state().await.expect("a state").dropped_spans, 2);
    drop(all);
    // One that is larger than all the room there is goes through alone.
    store.write(Batch { bytes: 1 << 40, ..batch(vec![span(2, 1, None, 0)]) }).await;
    assert_eq!(store.state().await.expect("a state").spans, 1);
}

#[tokio::test]
async fn a_trace_has_a_longest_length() {
    let folder = tempfile::tempdir().expect("a folder");
    let (store, _) = open(&folder.path().join("traces.db"));
    store.write(batch((1..=10_007).map(|id| span(1, id, None, 0)).collect())).await;
    let state = store.state().await.expect("a state");
    assert_eq!((state.spans, state.dropped_spans), (10_000, 7));
}

#[tokio::test]
async fn what_processes_lost_is_added_up_over_restarts_of_theirs_and_ours() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("traces.db");
    let mut store = open(&path).0;
    for (source, lost, sum) in
        [("gateway-1", 5, 5), ("gateway-1", 5, 5), ("courier-1", 2, 7), ("gateway-1", 9, 11), ("gateway-1", 3, 14)]
    {
        store.lost(source, lost);
        settle(&store, 1).await;
        assert_eq!(store.state().await.expect("a state").dropped_spans, sum);
        drop(store);
        store = open(&path).0;
    }
}

#[tokio::test]
async fn a_damaged_file_is_set_aside() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("traces.db");
    let (store, _) = open(&path);
    store.write(batch(vec![span(1, 1, None, 0)])).await;
    drop(store);
    std::fs::write(
        &path,
        b"nothing that SQLite would know, of any length that is enough to be read as a header".repeat(99),
    )
    .expect("writes");
    let (store, aside) = Store::open(&path, Box::new(|_| ())).expect("opens another");
    assert!(aside.is_some_and(|aside| std::path::Path::new(&aside).exists()));
    store.write(batch(vec![span(2, 1, None, 0)])).await;
    assert!(find(&store, &trace_text(2)).await.is_some());
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(std::fs::metadata(&path).expect("is there").permissions().mode() & 0o777, 0o600);
}
