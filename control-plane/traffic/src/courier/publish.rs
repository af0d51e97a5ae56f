//! The publish endpoint: what a publisher is told, and when. 202 means durable; anything else means that nothing was kept,
//! unless the answer says that this is not known.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};
use jiff::Timestamp;
use meshctl_drivers::broker::{BrokerError, Confirmed, Publish};
use meshctl_model::delivery::CourierConfig;
use meshctl_model::message::header;
use serde::Serialize;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout};

use super::Courier;
use super::event::{self, Refusal};
use crate::body::Body;
use crate::clock;
use crate::problem::{Cause, Problem};
use crate::trace::Trace;

/// How long a broker that is away is tried again,
const AWAY: Duration = Duration::from_secs(1);
/// with this between two tries.
const TRY_AGAIN: Duration = Duration::from_millis(50);
/// How long one that has been sent the messages may take to confirm them.
const CONFIRM: Duration = Duration::from_secs(10);
/// From a request's head to the end of its body.
const BODY: Duration = Duration::from_secs(30);

/// Bytes of messages on their way through this process, from their arrival to their confirmation, unless a channel takes
/// larger ones; each is in memory about three times (as a body, as a message, as a frame to the broker).
const ALL_BODIES: u64 = 128 << 20;
/// How long one waits until others have made room.
const ROOM: Duration = Duration::from_millis(250);

/// The room for bodies of this process, for as many bytes as the largest body may have, at least.
pub(crate) fn bodies(config: &CourierConfig) -> Semaphore {
    let largest = config.channels.values().map(event::largest_body).max().unwrap_or_default();
    Semaphore::new(usize::try_from(largest.max(ALL_BODIES)).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS))
}

/// The part of it that one request has taken, as its bytes came: one that is slow holds only what it has sent.
struct Room<'a> {
    all: &'a Semaphore,
    taken: Option<SemaphorePermit<'a>>,
}

impl<'a> Room<'a> {
    fn of(courier: &'a Courier) -> Self {
        Self { all: &courier.bodies, taken: None }
    }

    fn bytes(&self) -> usize {
        self.taken.as_ref().map_or(0, SemaphorePermit::num_permits)
    }

    /// Takes so many more bytes.
    async fn take(&mut self, more: usize) -> Result<(), Problem> {
        let permits = u32::try_from(more).unwrap_or(u32::MAX);
        let Ok(Ok(more)) = timeout(ROOM, self.all.acquire_many(permits)).await else {
            let why = format!("the messages under way have no room for {more} bytes more; nothing was kept, try again");
            let retry_after = Some(Duration::from_secs(1));
            return Err(Problem { retry_after, ..Problem::new(Cause::BulkheadFull, why) });
        };
        match &mut self.taken {
            Some(taken) => taken.merge(more),
            none => *none = Some(more),
        }
        Ok(())
    }
}

/// The answer for one message.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Accepted<'a> {
    message_id: String,
    event_id: String,
    channel: &'a str,
    duplicate: bool,
    #[serde(skip)]
    trace: Trace,
}

#[derive(Serialize)]
struct AcceptedBatch<'a> {
    messages: Vec<Accepted<'a>>,
}

/// Publishes what the request holds.
pub(crate) async fn publish(
    courier: &Courier,
    name: &str,
    request: Request<Incoming>,
    trace: &Trace,
) -> Result<Response<Body>, Problem> {
    let began = clock::now();
    let result = accept(courier, name, request, trace).await;
    match &result {
        Ok((accepted, _)) => accepted.iter().for_each(|Accepted { trace, message_id, duplicate, .. }| {
            courier.recorder.published(trace, name, began, message_id, *duplicate);
        }),
        Err(problem) => courier.recorder.refused(trace, name, began, problem),
    }
    courier.report.published(name, |counts| match &result {
        Ok((accepted, _)) => {
            let duplicates = accepted.iter().filter(|one| one.duplicate).count() as u64;
            counts.duplicates += duplicates;
            counts.accepted += accepted.len() as u64 - duplicates;
        }
        Err(problem) => *counts.refused.entry(problem.cause.name()).or_default() += 1,
    });
    let (mut accepted, batch) = result?;
    let json = match accepted.pop() {
        Some(only) if !batch => serde_json::to_vec(&only),
        last => {
            accepted.extend(last);
            serde_json::to_vec(&AcceptedBatch { messages: accepted })
        }
    };
    let mut response = Response::new(Body::full(json.unwrap_or_default()));
    *response.status_mut() = StatusCode::ACCEPTED;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

async fn accept<'a>(
    courier: &Courier,
    name: &'a str,
    request: Request<Incoming>,
    trace: &Trace,
) -> Result<(Vec<Accepted<'a>>, bool), Problem> {
    let Some(channel) = courier.config.channels.get(name) else {
        let known: Vec<&str> = courier.config.channels.keys().map(String::as_str).collect();
        let why = format!("there is no channel `{name}`; there are: {}", known.join(", "));
        return Err(Problem::new(Cause::NoChannel, why));
    };
    let (head, body) = request.into_parts();
    let mut room = Room::of(courier);
    let body = whole(body, event::body_limit(channel, &head.headers), &mut room).await?;
    let id = || uuid::Uuid::now_v7().to_string();
    let events =
        event::read(name, channel, &head.headers, &body, trace, Timestamp::now(), id).map_err(
            |refusal| match refusal {
                Refusal::Bad(why) => Problem::new(Cause::BadRequest, why),
                Refusal::TooLarge(why) => Problem::new(Cause::BodyTooLarge, why),
            },
        )?;
    // The messages of a batch can be more than its body: each has the attributes of the request.
    room.take(events.bytes.saturating_sub(room.bytes())).await?;
    // An event without an id of its own has its message's, which is another one's if this is a duplicate.
    let ids = events.messages.iter().zip(events.traces).map(|(publish, trace)| {
        let (id, event_id) = (&publish.message.id, publish.message.header(header::CE_ID).unwrap_or_default());
        (id.clone(), (event_id != id).then(|| event_id.to_owned()), trace)
    });
    let ids: Vec<(String, Option<String>, Trace)> = ids.collect();
    let confirmed =
        if events.messages.is_empty() { Vec::new() } else { confirm(courier, name, events.messages).await? };
    let accepted = confirmed.into_iter().zip(ids).map(|(Confirmed { message_id, .. }, (id, event_id, trace))| {
        // What the broker calls a duplicate may be our own, sent again after an answer that did not come.
        let duplicate = message_id != id;
        Accepted {
            event_id: event_id.unwrap_or_else(|| message_id.clone()),
            message_id,
            channel: name,
            duplicate,
            trace,
        }
    });
    Ok((accepted.collect(), events.batch))
}

async fn whole(mut body: Incoming, limit: u64, room: &mut Room<'_>) -> Result<Bytes, Problem> {
    let too_large = || Problem::new(Cause::BodyTooLarge, format!("the body is larger than {limit} bytes"));
    if body.size_hint().lower() > limit {
        return Err(too_large());
    }
    let read = async {
        let mut whole = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let broke_off = |error| Problem::new(Cause::BadRequest, format!("the body broke off: {error}"));
            let Ok(data) = frame.map_err(broke_off)?.into_data() else { continue };
            if (whole.len() + data.len()) as u64 > limit {
                return Err(too_large());
            }
            room.take(data.len()).await?;
            if whole.is_empty() && body.is_end_stream() {
                // In one piece, as most are: no copy.
                return Ok(data);
            }
            whole.extend_from_slice(&data);
        }
        Ok(whole.freeze())
    };
    let too_late = || Problem::new(Cause::RequestTimeout, format!("the body was not there within {BODY:?}"));
    timeout(BODY, read).await.unwrap_or_else(|_| Err(too_late()))
}

/// Has the broker keep them. Once it may have been kept, only what has an idempotency key is sent again.
async fn confirm(courier: &Courier, name: &str, messages: Vec<Publish>) -> Result<Vec<Confirmed>, Problem> {
    let began = Instant::now();
    let safe_twice = messages.iter().all(|publish| publish.idempotency_key.is_some());
    loop {
        let error = match timeout(CONFIRM, courier.broker.publish(name, messages.clone())).await {
            Ok(Ok(confirmed)) => return Ok(confirmed),
            Ok(Err(error)) => error,
            Err(_) => BrokerError::Unknown(format!("no answer within {CONFIRM:?}")),
        };
        let again = match &error {
            // Between an `apply` and its declaration a channel may not be there yet.
            BrokerError::Unreachable(_) | BrokerError::NotFound(_) => true,
            BrokerError::Unknown(_) => safe_twice,
            _ => false,
        };
        if !again || began.elapsed() >= AWAY {
            return Err(problem(name, &error));
        }
        tokio::time::sleep(TRY_AGAIN).await;
    }
}

fn problem(name: &str, error: &BrokerError) -> Problem {
    let later = |cause, what: &str, seconds: u64| {
        let why = format!("cannot publish to {name}: {error}; {what}");
        Problem { retry_after: Some(Duration::from_secs(seconds)), ..Problem::new(cause, why) }
    };
    match error {
        BrokerError::Unknown(_) => {
            let what =
                "the message may have been kept or not: publish it again, with the same idempotency key if it had one";
            later(Cause::OutcomeUnknown, what, 1)
        }
        BrokerError::Full(_) => later(Cause::ChannelFull, "nothing was kept; try again later", 5),
        // What is wrong with a request was said before the broker saw it. A publisher takes 400 as final and gives its event
        // up: nothing that ails the broker may cost one.
        BrokerError::Refused(_) => later(Cause::BrokerAway, "nothing was kept; try again later", 5),
        BrokerError::Unreachable(_) | BrokerError::NotFound(_) | BrokerError::Lost(_) | BrokerError::Damaged(_) => {
            later(Cause::BrokerAway, "nothing was kept; try again later", 1)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bodies_find_room_or_are_refused_for_now() {
        let all = Semaphore::new(10);
        let (mut first, mut second) = (Room { all: &all, taken: None }, Room { all: &all, taken: None });
        first.take(4).await.expect("room");
        first.take(4).await.expect("room");
        let refused = second.take(3).await.expect_err("no room");
        assert_eq!(refused.cause.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(refused.retry_after.is_some());
        assert_eq!((first.bytes(), second.bytes()), (8, 0));
        // What ends makes room for those who wait.
        let (got, ()) = tokio::join!(second.take(10), async { drop(first) });
        assert!(got.is_ok());
    }
}
