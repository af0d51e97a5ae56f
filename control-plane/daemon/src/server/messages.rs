//! Messages that are kept: the last ones, one, or each as it comes.

use std::convert::Infallible;
use std::time::Duration;

use axum::Json;
use axum::body::Body as HttpBody;
use axum::extract::{Path, Query, State as Extract};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use meshctl_api::error::{ApiError, ErrorCode};
use meshctl_api::view::List;
use meshctl_api::view::messages::{Message, MessageQuery};
use meshctl_drivers::broker::{BrokerError, From};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use super::{Answer, Failure, FromShared, Shared};
use crate::messaging::channels::Wanted;
use crate::messaging::messages::{Follower, find};
use crate::messaging::{failed, wanted};

/// Messages on their way to one reader; beyond them reading waits.
const IN_FLIGHT: usize = 256;
/// The most that one list holds.
const MOST: u32 = 10_000;
/// How often a follower looks whether something came.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// The last messages of a channel, or of all, oldest first; with `follow`, NDJSON of Message: these, then what comes.
#[utoipa::path(get, path = "/v1/messages", params(MessageQuery),
    responses((status = 200, body = List<Message>)))]
pub async fn messages(Extract(shared): FromShared, Query(query): Query<MessageQuery>) -> Result<Response, Failure> {
    let wanted = match &query.channel {
        Some(name) => super::channels::one(&shared, name).await?,
        None => shared.look(|control| Ok(wanted(&control.state))).await?,
    };
    let since = query.since.as_deref().map(read_time).transpose()?;
    let last = query.last.unwrap_or(if query.follow && since.is_none() { 0 } else { 100 }).min(MOST);
    // Before the list is read, so that nothing falls in between; what is in both is told once.
    let begun = Timestamp::now();
    let list = list(&shared, &wanted, since, last).await?;
    if !query.follow {
        return Ok(Json(List::of("Message", list)).into_response());
    }
    let (sender, receiver) = mpsc::channel(IN_FLIGHT);
    tokio::spawn(follow(shared, wanted, list, begun, sender));
    let lines = ReceiverStream::new(receiver).map(|message: Message| {
        let mut text = serde_json::to_string(&message).unwrap_or_default();
        text.push('\n');
        Ok::<_, Infallible>(text)
    });
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], HttpBody::from_stream(lines)).into_response())
}

fn read_time(text: &str) -> Result<Timestamp, ApiError> {
    text.parse().map_err(|_| {
        ApiError::new(ErrorCode::Invalid, format!("`{text}` is not a time"))
            .hint("write RFC 3339: 2026-11-23T17:00:00Z")
    })
}

/// The last `last` of all channels together since then.
async fn list(shared: &Shared, wanted: &Wanted, since: Option<Timestamp>, last: u32) -> Result<Vec<Message>, ApiError> {
    if wanted.channels.is_empty() || last == 0 {
        return Ok(Vec::new());
    }
    let broker = shared.messaging.broker.as_ref();
    let states = shared.messaging.states().await?;
    let mut all = Vec::new();
    for name in wanted.channels.keys().filter(|name| states.iter().any(|state| state.name == **name)) {
        let why = |why| failed(&format!("read the messages of {name}"), why);
        let there = broker.browse(name, From::Last(last), last).await.map_err(why)?;
        let there = there.into_iter().filter(|stored| since.is_none_or(|since| stored.accepted_at >= since));
        all.extend(shared.messaging.shown(name, there.collect(), false).await?);
    }
    all.sort_by_key(|message| (message.timestamp, message.partition, message.offset));
    let surplus = all.len().saturating_sub(last as usize);
    Ok(all.split_off(surplus))
}

/// Ends when nobody reads any more, or the daemon ends. While the broker is away nothing comes.
async fn follow(shared: Shared, wanted: Wanted, list: Vec<Message>, begun: Timestamp, to: mpsc::Sender<Message>) {
    let told: std::collections::HashSet<String> =
        list.iter().filter(|message| message.timestamp >= begun).map(|message| message.message_id.clone()).collect();
    for message in list {
        if to.send(message).await.is_err() {
            return;
        }
    }
    let broker = shared.messaging.broker.as_ref();
    let mut followers: Vec<_> = wanted.channels.keys().map(|name| (name, Follower::after(begun))).collect();
    loop {
        let mut came = Vec::new();
        for (name, follower) in &mut followers {
            match follower.next(broker, name).await {
                Ok(new) => match shared.messaging.shown(name, new, false).await {
                    Ok(new) => came.extend(new),
                    // What was read is not read again: a follower would miss it.
                    Err(why) => return tracing::warn!(%why, "a follower is left"),
                },
                Err(why) => tracing::debug!(%why, channel = name.as_str(), "a follower waits"),
            }
        }
        came.sort_by_key(|message| message.timestamp);
        let idle = came.is_empty();
        for message in came.into_iter().filter(|message| !told.contains(&message.message_id)) {
            if to.send(message).await.is_err() {
                return;
            }
        }
        if idle {
            tokio::select! {
                () = tokio::time::sleep(LOOK_AGAIN) => {}
                () = to.closed() => return,
            }
        }
    }
}

/// One message with its payload, as long as it is kept.
#[utoipa::path(get, path = "/v1/messages/{id}", params(("id" = String, Path)),
    responses((status = 200, body = Message)))]
pub async fn message(Extract(shared): FromShared, Path(id): Path<String>) -> Answer<Message> {
    let wanted = shared.look(|control| Ok(wanted(&control.state))).await?;
    let broker = shared.messaging.broker.as_ref();
    for name in wanted.channels.keys() {
        match find(broker, name, &id).await {
            Ok(Some(stored)) => {
                if let Some(message) = shared.messaging.shown(name, vec![stored], true).await?.pop() {
                    return Ok(Json(message));
                }
            }
            // Declared a moment later.
            Ok(None) | Err(BrokerError::NotFound(_)) => {}
            Err(why) => return Err(failed(&format!("look for the message {id}"), why).into()),
        }
    }
    let message = format!("no channel keeps a message `{id}`");
    let hint = "settled messages are kept for the channel's retention; see `meshctl get messages`, and \
                `meshctl dlq ls` for dead letters";
    Err(ApiError::new(ErrorCode::NotFound, message).hint(hint).into())
}
