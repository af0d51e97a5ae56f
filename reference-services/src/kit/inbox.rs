//! The inbox: which messages have been received, so that each has its effect once however often it is delivered.
//!
//! Invariant: the effect of a message and the note that it was received are one transaction. A message is known by its id,
//! and by the source and id of the event that it carries: a publisher that repeats an event after the channel has forgotten
//! its idempotency key makes a new message of it. Notes are kept for good, since a dead letter may come back at any time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::body::Bytes;
use axum::extract::{FromRef, FromRequest, Request};
use axum::http::HeaderMap;
use meshctl_model::message::header;
use rusqlite::{Connection, OptionalExtension};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{Kit, Problem};

pub(crate) const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS inbox (
        number      INTEGER PRIMARY KEY,
        message_id  TEXT UNIQUE,
        source      TEXT,
        event_id    TEXT,
        deliveries  INTEGER NOT NULL,
        applied     INTEGER NOT NULL,
        UNIQUE (source, event_id)
    ) STRICT;
";

/// Receives messages as one instance; clones are the same.
#[derive(Clone)]
pub(crate) struct Inbox {
    kit: Kit,
    rejected: Arc<AtomicU64>,
}

/// A message as it is delivered: CloudEvents 1.0 in binary mode with a JSON object for a payload. What cannot be
/// understood is answered 4xx, which says that trying again will not help.
pub(crate) struct Delivery<T> {
    pub(crate) id: Identity,
    pub(crate) payload: T,
}

/// By what a message is known: at least one of both.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Identity {
    message: Option<String>,
    /// Source and id.
    event: Option<(String, String)>,
}

/// Whether a delivery has changed anything.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Effect {
    Applied,
    Duplicate,
}

impl Inbox {
    pub(crate) fn new(kit: &Kit) -> Self {
        Self { kit: kit.clone(), rejected: Arc::default() }
    }

    /// Does `work` if the message is new, in the transaction of `connection`. `work` says whether there was anything to do.
    pub(crate) fn once(
        connection: &Connection,
        id: &Identity,
        work: impl FnOnce(&Connection) -> rusqlite::Result<Effect>,
    ) -> rusqlite::Result<Effect> {
        let (source, event) = id.event.as_ref().map(|(source, event)| (source, event)).unzip();
        let known: Option<i64> = connection
            .prepare_cached("SELECT number FROM inbox WHERE message_id = ?1 OR (source = ?2 AND event_id = ?3)")?
            .query_row((&id.message, source, event), |row| row.get(0))
            .optional()?;
        if let Some(number) = known {
            connection
                .prepare_cached("UPDATE inbox SET deliveries = deliveries + 1 WHERE number = ?1")?
                .execute([number])?;
            return Ok(Effect::Duplicate);
        }
        let effect = work(connection)?;
        connection
            .prepare_cached(
                "INSERT INTO inbox (message_id, source, event_id, deliveries, applied) VALUES (?1, ?2, ?3, 1, ?4)",
            )?
            .execute((&id.message, source, event, effect == Effect::Applied))?;
        Ok(effect)
    }

    /// Adds to what `GET /state` shows: deliveries that were `received` and how many of them were `applied` or
    /// `duplicates`, by all instances since the beginning, and those that this instance has `rejected`.
    pub(crate) fn view(&self, connection: &Connection, view: &mut Value) -> rusqlite::Result<()> {
        let (received, applied): (i64, i64) = connection
            .prepare_cached("SELECT coalesce(sum(deliveries), 0), coalesce(sum(applied), 0) FROM inbox")?
            .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        view["received"] = received.into();
        view["applied"] = applied.into();
        view["duplicates"] = (received - applied).into();
        view["rejected"] = self.rejected.load(Ordering::Relaxed).into();
        Ok(())
    }

    async fn read<T: DeserializeOwned>(&self, request: Request) -> Result<Delivery<T>, Problem> {
        self.kit.knobs(|knobs| knobs.refusal())?;
        let id = Identity::of(request.headers()).ok_or_else(|| {
            let detail = "neither meshctl-message-id nor ce-source with ce-id says which message this is";
            Problem::new(400, "no-message-id", detail)
        })?;
        let body = Bytes::from_request(request, &()).await.map_err(|why| {
            Problem::new(
                why.status().as_u16(),
                "invalid-body",
                format!("the message cannot be read: {}", why.body_text()),
            )
        })?;
        let payload: Value = serde_json::from_slice(&body)
            .map_err(|why| Problem::new(400, "invalid-message", format!("the message is not JSON: {why}")))?;
        self.kit.knobs(|knobs| knobs.poisoning(id.name(), &payload))?;
        let payload = serde_json::from_value(payload)
            .map_err(|why| Problem::new(422, "invalid-message", format!("the message cannot be understood: {why}")))?;
        Ok(Delivery { id, payload })
    }
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Delivery<T>
where
    Inbox: FromRef<S>,
{
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let inbox = Inbox::from_ref(state);
        let delivery = inbox.read(request).await;
        if delivery.as_ref().is_err_and(|problem| problem.status() < 500) {
            inbox.rejected.fetch_add(1, Ordering::Relaxed);
        }
        delivery
    }
}

impl Identity {
    pub(crate) fn of(headers: &HeaderMap) -> Option<Self> {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let message = text(header::MESSAGE_ID);
        let event = text(header::CE_SOURCE).zip(text(header::CE_ID));
        (message.is_some() || event.is_some()).then_some(Self { message, event })
    }

    /// The message's id, or else its event's.
    pub(crate) fn name(&self) -> &str {
        self.message.as_deref().or(self.event.as_ref().map(|(_, id)| id.as_str())).unwrap_or_default()
    }
}

impl Effect {
    /// The answer to the delivery, 200 in any case.
    pub(crate) fn answer(self) -> axum::Json<Value> {
        axum::Json(json!({"duplicate": self == Self::Duplicate}))
    }
}
