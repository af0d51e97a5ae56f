//! What happened and what happens: the event log and the live stream.

use std::convert::Infallible;

use axum::Json;
use axum::extract::{Query, State as Extract};
use axum::http::HeaderMap;
use axum::response::sse::{Event as Sse, KeepAlive, Sse as Stream};
use axum::response::{IntoResponse, Response};
use meshctl_api::error::{ApiError, ErrorCode};
use meshctl_api::view::{List, Told};
use meshctl_model::event::Event;
use serde::Deserialize;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use utoipa::IntoParams;

use super::{Answer, Failure, FromShared, Shared};
use crate::messaging::wanted;
use crate::view;

/// Messages on their way to one reader; beyond them it is the hub that waits no longer.
const IN_FLIGHT: usize = 64;

/// Events told to somebody who resumes; who missed more starts from the snapshot.
const RESUMED: u64 = 10_000;

#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default)]
pub struct WatchQuery {
    /// Begin after the event of this id.
    after: Option<String>,
}

/// Server-sent events `told`: missed events if asked for, a snapshot, then what changes.
#[utoipa::path(get, path = "/v1/watch", params(WatchQuery),
    responses((status = 200, content_type = "text/event-stream", body = Told)))]
pub async fn watch(
    Extract(shared): FromShared,
    Query(query): Query<WatchQuery>,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let resumed = headers.get("last-event-id").and_then(|value| value.to_str().ok()).map(str::to_owned);
    let after = event_id(query.after.or(resumed).as_deref())?;
    let (sender, receiver) = mpsc::channel(IN_FLIGHT);
    tokio::spawn(tell(shared, after, sender));
    Ok(Stream::new(ReceiverStream::new(receiver)).keep_alive(KeepAlive::default()).into_response())
}

fn event_id(text: Option<&str>) -> Result<Option<u64>, ApiError> {
    let parse = |text: &str| {
        text.parse().map_err(|_| ApiError::new(ErrorCode::Invalid, format!("`{text}` is not the id of an event")))
    };
    text.filter(|text| !text.is_empty()).map(parse).transpose()
}

/// Ends when the reader is gone or the daemon ends.
async fn tell(shared: Shared, after: Option<u64>, to: mpsc::Sender<Result<Sse, Infallible>>) {
    // Subscribed first: what happens while the snapshot is taken is told twice rather than never.
    let mut told = shared.hub.subscribe();
    let mut last = after;
    if catch_up(&shared, &to, &mut last).await.is_none() {
        return;
    }
    loop {
        let next = match told.recv().await {
            Ok(Told::Event(event)) => {
                let id = event.id.parse().ok();
                if id <= last {
                    continue;
                }
                last = id;
                Told::Event(event)
            }
            Ok(told) => told,
            Err(RecvError::Lagged(_)) => match catch_up(&shared, &to, &mut last).await {
                Some(()) => continue,
                None => return,
            },
            Err(RecvError::Closed) => return,
        };
        if send(&to, last, &next).await.is_err() {
            return;
        }
    }
}

/// The events after `last`, if there is one, and how everything is after them. `None` when nobody listens any more.
async fn catch_up(shared: &Shared, to: &mpsc::Sender<Result<Sse, Infallible>>, last: &mut Option<u64>) -> Option<()> {
    let after = *last;
    // One look for both: what happens between two looks would be in neither.
    let look = shared.look(move |control| {
        let missed = match after {
            Some(after) => control.events(Some(after), "", RESUMED)?,
            None => Vec::new(),
        };
        Ok((missed, view::status(control), wanted(&control.state)))
    });
    let (missed, mut snapshot, wanted) = look.await.ok()?;
    snapshot.channels = super::looks::channels(shared, &wanted).await;
    let missed = if missed.len() as u64 == RESUMED { Vec::new() } else { missed };
    for event in missed {
        *last = event.id.parse().ok();
        send(to, *last, &Told::Event(event)).await.ok()?;
    }
    *last = snapshot.last_event_id.parse().ok().max(*last);
    send(to, *last, &Told::Snapshot(snapshot)).await.ok()
}

async fn send(to: &mpsc::Sender<Result<Sse, Infallible>>, last: Option<u64>, told: &Told) -> Result<(), ()> {
    let data = serde_json::to_string(told).unwrap_or_default();
    let message = Sse::default().event("told").id(last.unwrap_or(0).to_string()).data(data);
    to.send(Ok(message)).await.map_err(|_| ())
}

#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default)]
pub struct EventQuery {
    /// After the event of this id, oldest first; without it the last ones.
    after: Option<String>,
    /// At most so many; by default 100, at most 10,000.
    limit: Option<u64>,
    /// Whose subject begins with this: `service/orders`.
    subject: Option<String>,
}

#[utoipa::path(get, path = "/v1/events", params(EventQuery),
    responses((status = 200, body = List<serde_json::Value>)))]
pub async fn events(Extract(shared): FromShared, Query(query): Query<EventQuery>) -> Answer<List<Event>> {
    let after = event_id(query.after.as_deref())?;
    let limit = query.limit.unwrap_or(100).min(10_000);
    let subject = query.subject.unwrap_or_default();
    let look = shared.look(move |control| control.events(after, &subject, limit));
    Ok(Json(List::of("Event", look.await?)))
}
