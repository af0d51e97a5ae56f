//! The outbox: events are written in the transaction of what they tell of, and published from there until `EVENTS` says 202.
//!
//! Invariant: an event whose transaction is on disk is published at least once, whatever dies in between, and always under the
//! same id, so that a repetition can be told from a second event. A row is removed only once its 202 has been seen.
//!
//! The instances of a service share one outbox. Each publishes what it has written itself: a row is born with a claim of its
//! instance. Claims run out, and then anybody may take the row over; that only saves double work, since the channel knows a
//! repeated `Idempotency-Key`. Of the events with one key only the oldest is ever under way, so they arrive in their order.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::http::{HeaderMap, StatusCode, header};
use jiff::Timestamp;
use rusqlite::{Connection, Row};
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};
use tokio::task::{JoinHandle, JoinSet};

use super::client::{client, innermost};
use super::context::{TRACEPARENT, TRACESTATE};
use super::{Context, Kit, Store, env};

pub(crate) const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS outbox (
        seq           INTEGER PRIMARY KEY AUTOINCREMENT,
        event_id      TEXT NOT NULL UNIQUE,
        type          TEXT NOT NULL,
        key           TEXT NOT NULL,
        time          TEXT NOT NULL,
        traceparent   TEXT NOT NULL,
        tracestate    TEXT,
        payload       TEXT NOT NULL,
        claimed_by    TEXT,
        claimed_until INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX IF NOT EXISTS outbox_by_key ON outbox (key, seq);
";

/// Rows of one claim; one transaction settles them and claims the next.
const BATCH: usize = 256;
/// Requests under way at once.
const IN_FLIGHT: usize = 32;
/// How long nobody else takes a row that is being worked on.
const LEASE: Duration = Duration::from_secs(5);
/// What one request may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How often an idle instance looks for rows that others have left behind.
const IDLE: Duration = Duration::from_secs(1);
/// The pauses while the channel cannot be reached grow from the first to the last.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// A longer pause is not made, whoever asks for it.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How long an event that was refused is left alone.
const REFUSED_PAUSE: Duration = Duration::from_secs(30);
/// And one that was answered neither yes nor no.
const UNKEPT_PAUSE: Duration = Duration::from_secs(1);
/// How long the end of a process waits for what is under way.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// What happened, for those who subscribe.
pub(crate) struct Event {
    /// `order.placed`
    pub(crate) kind: &'static str,
    /// Events with one key are published one after another.
    pub(crate) key: String,
    pub(crate) payload: Value,
}

/// The outbox of a service as one instance sees it; clones are the same. Without `EVENTS` it keeps and publishes nothing.
#[derive(Clone)]
pub(crate) struct Outbox(Option<Arc<Publisher>>);

struct Publisher {
    kit: Kit,
    store: Store,
    client: reqwest::Client,
    url: String,
    /// A row of this instance has been written.
    written: Notify,
    stopping: watch::Sender<bool>,
    published: AtomicU64,
}

/// An event that waits to be published.
#[derive(Clone, Debug)]
struct Waiting {
    seq: i64,
    event_id: String,
    kind: String,
    key: String,
    time: String,
    traceparent: String,
    tracestate: Option<String>,
    payload: String,
}

/// What became of a batch.
#[derive(Clone, Debug, Default)]
struct Outcome {
    /// Rows that are published.
    published: Vec<i64>,
    /// Rows that nobody is to try again for a while.
    set_aside: Vec<(i64, Duration)>,
    /// Why the rest was not sent, and when to try again where the channel said so.
    away: Option<(String, Option<Duration>)>,
}

enum Answer {
    Published,
    Refused(String),
    /// The channel has answered something else, and perhaps when to ask again.
    Unkept(String, Option<Duration>),
    Unreachable(String),
}

impl Outbox {
    /// The outbox in `store`, whose schema has [`SCHEMA`], for the publish URL in `EVENTS`; begins to publish.
    ///
    /// # Errors
    /// When there can be no HTTP client.
    pub(crate) fn start(kit: &Kit, store: &Store) -> Result<(Self, Publishing), String> {
        Self::to(kit, store, env("EVENTS"))
    }

    /// The same for the publish URL `url`.
    pub(crate) fn to(kit: &Kit, store: &Store, url: Option<String>) -> Result<(Self, Publishing), String> {
        let Some(url) = url else { return Ok((Self(None), Publishing(None))) };
        let publisher = Arc::new(Publisher::new(kit, store, url)?);
        let task = tokio::spawn(Arc::clone(&publisher).run());
        Ok((Self(Some(Arc::clone(&publisher))), Publishing(Some((publisher, task)))))
    }

    /// One that keeps nothing.
    #[cfg(test)]
    pub(crate) fn none() -> Self {
        Self(None)
    }

    /// Puts `event`, which `context` has caused, into the transaction of `connection`.
    pub(crate) fn put(&self, connection: &Connection, context: &Context, event: &Event) -> rusqlite::Result<()> {
        self.0.as_ref().map_or(Ok(()), |publisher| publisher.put(connection, context, event, Timestamp::now()))
    }

    /// What `GET /state` shows: events that wait, of all instances, and what this one has published since it started.
    pub(crate) fn view(&self, connection: &Connection) -> rusqlite::Result<Value> {
        let pending: i64 = connection.prepare_cached("SELECT count(*) FROM outbox")?.query_row([], |row| row.get(0))?;
        let published = self.0.as_ref().map_or(0, |publisher| publisher.published.load(Ordering::Relaxed));
        let url = self.0.as_ref().map(|publisher| &publisher.url);
        Ok(json!({"pending": pending, "published": published, "events": url}))
    }
}

/// The publishing of one instance, to be ended with it.
pub(crate) struct Publishing(Option<(Arc<Publisher>, JoinHandle<()>)>);

impl Publishing {
    /// Finishes what is under way and leaves the rest to the other instances at once.
    pub(crate) async fn end(self) {
        let Some((publisher, mut task)) = self.0 else { return };
        publisher.stopping.send_replace(true);
        publisher.written.notify_one();
        if tokio::time::timeout(LAST_WORDS, &mut task).await.is_err() {
            task.abort();
        }
        let instance = publisher.kit.instance().to_owned();
        let release = "UPDATE outbox SET claimed_until = 0 WHERE claimed_by = ?1";
        // What cannot be released is free when its claim runs out.
        let _later = publisher.store.write(move |c| c.execute(release, [instance])).await;
    }
}

impl Publisher {
    fn new(kit: &Kit, store: &Store, url: String) -> Result<Self, String> {
        Ok(Self {
            kit: kit.clone(),
            store: store.clone(),
            client: client().map_err(|why| why.to_string())?,
            url,
            written: Notify::new(),
            stopping: watch::Sender::new(false),
            published: AtomicU64::new(0),
        })
    }

    fn put(&self, connection: &Connection, context: &Context, event: &Event, now: Timestamp) -> rusqlite::Result<()> {
        let headers = context.trace();
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        connection
            .prepare_cached(
                "INSERT INTO outbox (event_id, type, key, time, traceparent, tracestate, payload, claimed_by, claimed_until)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            )?
            .execute((
                uuid::Uuid::now_v7().to_string(),
                event.kind,
                &event.key,
                now.to_string(),
                text(TRACEPARENT),
                text(TRACESTATE),
                event.payload.to_string(),
                self.kit.instance(),
                after(now, LEASE),
            ))?;
        // The claim that this wakes queues up behind the transaction that we are in, so it finds the row.
        self.written.notify_one();
        Ok(())
    }

    async fn run(self: Arc<Self>) {
        let mut outcome = Outcome::default();
        let mut failures = 0;
        loop {
            // One event alone finds out whether the channel is there again.
            let limit = if failures == 0 { BATCH } else { 1 };
            let batch = match self.settle_and_claim(outcome.clone(), limit, Timestamp::now()).await {
                Ok(batch) => batch,
                Err(why) => {
                    // What was published and not settled is published again; it has the same id then.
                    self.kit.log("error", format_args!("the outbox cannot be read: {why}"), json!({}));
                    failures += 1;
                    self.pause(failures, None).await;
                    continue;
                }
            };
            outcome = Outcome::default();
            if *self.stopping.borrow() {
                return;
            }
            if batch.is_empty() {
                self.work().await;
                continue;
            }
            outcome = self.publish(batch).await;
            let Some((why, retry_after)) = outcome.away.take() else {
                failures = 0;
                continue;
            };
            if failures == 0 {
                self.kit.log("warn", format_args!("events wait: POST {} {why}", self.url), json!({}));
            }
            failures += 1;
            // Before the pause, for in it claims run out, and others would publish again what is published.
            if self.settle_and_claim(outcome.clone(), 0, Timestamp::now()).await.is_ok() {
                outcome = Outcome::default();
            }
            self.pause(failures, retry_after).await;
        }
    }

    /// Completes when there may be something to publish.
    async fn work(&self) {
        loop {
            if tokio::time::timeout(IDLE, self.written.notified()).await.is_ok() {
                return;
            }
            let (instance, now) = (self.kit.instance().to_owned(), Timestamp::now());
            if matches!(self.store.read(move |c| free(c, &instance, now, 1)).await, Ok(free) if !free.is_empty()) {
                return;
            }
        }
    }

    /// Waits longer the more often it has failed; a little differently each time, so that instances do not come all at once.
    async fn pause(&self, failures: u32, asked: Option<Duration>) {
        let (first, last) = PAUSES;
        let grown = first.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(last);
        let pause = asked.unwrap_or_default().min(LONGEST_PAUSE).max(grown.mul_f64(rand::random_range(0.5..=1.0)));
        let mut stopping = self.stopping.subscribe();
        // Whichever comes first ends the pause.
        let _over = tokio::time::timeout(pause, stopping.wait_for(|stopping| *stopping)).await;
    }

    /// Writes down what became of one batch and claims the next, both in one transaction.
    async fn settle_and_claim(&self, outcome: Outcome, limit: usize, now: Timestamp) -> Result<Vec<Waiting>, String> {
        let instance = self.kit.instance().to_owned();
        self.store
            .write(move |c| {
                settle(c, &outcome, now)?;
                claim(c, &instance, now, limit)
            })
            .await
            .map_err(|why| why.to_string())
    }

    /// Sends the events of `batch`, as many at once as may be, until all are answered or the channel is away.
    async fn publish(&self, batch: Vec<Waiting>) -> Outcome {
        let mut outcome = Outcome::default();
        let mut rest = batch.into_iter();
        let mut sent = JoinSet::new();
        let mut rows = HashMap::new();
        loop {
            while outcome.away.is_none()
                && sent.len() < IN_FLIGHT
                && let Some(event) = rest.next()
            {
                let request = self.request(&event);
                let task = sent.spawn(answer(request));
                rows.insert(task.id(), event);
            }
            let Some(answered) = sent.join_next_with_id().await else { return outcome };
            let (id, answer) = match answered {
                Ok(answered) => answered,
                Err(why) => (why.id(), Answer::Unreachable(format!("was not finished: {why}"))),
            };
            let Some(event) = rows.remove(&id) else { continue };
            match answer {
                Answer::Published => {
                    self.published.fetch_add(1, Ordering::Relaxed);
                    outcome.published.push(event.seq);
                }
                Answer::Refused(why) => {
                    let fields = json!({"eventId": event.event_id, "key": event.key, "type": event.kind});
                    self.kit.log("error", format_args!("event is refused: POST {} {why}", self.url), fields);
                    outcome.set_aside.push((event.seq, REFUSED_PAUSE));
                }
                Answer::Unkept(why, retry_after) => {
                    // Should it be the event's fault, the next one finds the channel there again.
                    outcome.set_aside.push((event.seq, UNKEPT_PAUSE));
                    outcome.away = Some((why, retry_after));
                }
                Answer::Unreachable(why) => outcome.away = Some((why, None)),
            }
        }
    }

    /// The event as a CloudEvent in binary mode.
    fn request(&self, event: &Waiting) -> reqwest::RequestBuilder {
        let mut request = self
            .client
            .post(&self.url)
            .timeout(TIMEOUT)
            .header(header::CONTENT_TYPE, "application/json")
            .header("ce-specversion", "1.0")
            .header("ce-id", &event.event_id)
            .header("ce-source", self.kit.service())
            .header("ce-type", &event.kind)
            .header("ce-time", &event.time)
            .header("idempotency-key", &event.event_id)
            .header("meshctl-key", &event.key)
            .header(TRACEPARENT, &event.traceparent);
        if let Some(state) = &event.tracestate {
            request = request.header(TRACESTATE, state);
        }
        request.body(event.payload.clone())
    }
}

async fn answer(request: reqwest::RequestBuilder) -> Answer {
    let response = match request.send().await {
        Ok(response) => response,
        Err(why) if why.is_timeout() => {
            return Answer::Unreachable(format!("took longer than {} s", TIMEOUT.as_secs()));
        }
        Err(why) => return Answer::Unreachable(format!("failed: {}", innermost(&why))),
    };
    let (status, retry_after) = (response.status(), retry_after(response.headers()));
    // Read to its end, so that the connection serves the next event.
    let text = response.text().await.unwrap_or_default();
    let text: String = text.chars().take(200).collect();
    match status {
        // Nothing else says that the event is kept; a gateway that answers in the channel's place may well say 200.
        StatusCode::ACCEPTED => Answer::Published,
        StatusCode::BAD_REQUEST
        | StatusCode::PAYLOAD_TOO_LARGE
        | StatusCode::UNSUPPORTED_MEDIA_TYPE
        | StatusCode::UNPROCESSABLE_ENTITY => Answer::Refused(format!("was answered {status}: {text}")),
        _ => Answer::Unkept(format!("was answered {status}: {text}"), retry_after),
    }
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(header::RETRY_AFTER)?.to_str().ok()?.parse().ok().map(Duration::from_secs)
}

/// `now` and `span` in milliseconds since 1970.
fn after(now: Timestamp, span: Duration) -> i64 {
    now.as_millisecond().saturating_add(i64::try_from(span.as_millis()).unwrap_or(i64::MAX))
}

/// The oldest events that `instance` may publish: of each key only the first, and none that others have claimed.
fn free(connection: &Connection, instance: &str, now: Timestamp, limit: usize) -> rusqlite::Result<Vec<Waiting>> {
    connection
        .prepare_cached(
            "SELECT seq, event_id, type, key, time, traceparent, tracestate, payload FROM outbox
             WHERE (claimed_by = ?1 OR claimed_until <= ?2)
               AND NOT EXISTS (SELECT 1 FROM outbox AS older WHERE older.key = outbox.key AND older.seq < outbox.seq)
             ORDER BY seq LIMIT ?3",
        )?
        .query_map((instance, now.as_millisecond(), limit), Waiting::from_row)?
        .collect()
}

fn claim(connection: &Connection, instance: &str, now: Timestamp, limit: usize) -> rusqlite::Result<Vec<Waiting>> {
    let claimed = free(connection, instance, now, limit)?;
    let mut update =
        connection.prepare_cached("UPDATE outbox SET claimed_by = ?2, claimed_until = ?3 WHERE seq = ?1")?;
    for event in &claimed {
        update.execute((event.seq, instance, after(now, LEASE)))?;
    }
    Ok(claimed)
}

fn settle(connection: &Connection, outcome: &Outcome, now: Timestamp) -> rusqlite::Result<()> {
    let mut published = connection.prepare_cached("DELETE FROM outbox WHERE seq = ?1")?;
    for seq in &outcome.published {
        published.execute([seq])?;
    }
    // Claimed by nobody for a while: it stays, and holds up no other key.
    let mut set_aside =
        connection.prepare_cached("UPDATE outbox SET claimed_by = NULL, claimed_until = ?2 WHERE seq = ?1")?;
    for (seq, pause) in &outcome.set_aside {
        set_aside.execute((seq, after(now, *pause)))?;
    }
    Ok(())
}

impl Waiting {
    fn from_row(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            seq: row.get(0)?,
            event_id: row.get(1)?,
            kind: row.get(2)?,
            key: row.get(3)?,
            time: row.get(4)?,
            traceparent: row.get(5)?,
            tracestate: row.get(6)?,
            payload: row.get(7)?,
        })
    }
}

#[cfg(test)]
#[path = "outbox_tests.rs"]
mod tests;
