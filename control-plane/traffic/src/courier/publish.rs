//! The publish endpoint: what a publisher is told, and when. 202 means durable; anything else means that nothing was kept,
//! unless the answer says that this is not known.

use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Body as _, Incoming};
use jiff::Timestamp;
use meshctl_drivers::broker::{BrokerError, Confirmed, Publish};
use meshctl_model::message::header;
use serde::Serialize;
use tokio::time::{Instant, timeout};

use super::Courier;
use super::event::{self, Refusal};
use crate::body::Body;
use crate::problem::{Cause, Problem};
use crate::trace::Trace;

/// How long a broker that is away is tried again,
const AWAY: Duration = Duration::from_secs(1);
/// with this between two tries.
const TRY_AGAIN: Duration = Duration::from_millis(50);
/// How long one that has been sent the messages may take to confirm them.
const CONFIRM: Duration = Duration::from_secs(10);
/// Between two pieces of a request's body.
const BODY: Duration = Duration::from_secs(30);

/// The answer for one message.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Accepted<'a> {
    message_id: String,
    event_id: String,
    channel: &'a str,
    duplicate: bool,
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
    let result = accept(courier, name, request, trace).await;
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
    let body = whole(body, event::body_limit(channel, &head.headers)).await?;
    let id = || uuid::Uuid::now_v7().to_string();
    let events =
        event::read(name, channel, &head.headers, &body, trace, Timestamp::now(), id).map_err(
            |refusal| match refusal {
                Refusal::Bad(why) => Problem::new(Cause::BadRequest, why),
                Refusal::TooLarge(why) => Problem::new(Cause::BodyTooLarge, why),
            },
        )?;
    // An event without an id of its own has its message's, which is another one's if this is a duplicate.
    let ids = events.messages.iter().map(|publish| {
        let (id, event_id) = (&publish.message.id, publish.message.header(header::CE_ID).unwrap_or_default());
        (id.clone(), (event_id != id).then(|| event_id.to_owned()))
    });
    let ids: Vec<(String, Option<String>)> = ids.collect();
    let confirmed =
        if events.messages.is_empty() { Vec::new() } else { confirm(courier, name, events.messages).await? };
    let accepted = confirmed.into_iter().zip(ids).map(|(Confirmed { message_id, .. }, (id, event_id))| {
        // What the broker calls a duplicate may be our own, sent again after an answer that did not come.
        let duplicate = message_id != id;
        Accepted { event_id: event_id.unwrap_or_else(|| message_id.clone()), message_id, channel: name, duplicate }
    });
    Ok((accepted.collect(), events.batch))
}

async fn whole(body: Incoming, limit: u64) -> Result<Bytes, Problem> {
    let too_large = || Problem::new(Cause::BodyTooLarge, format!("the body is larger than {limit} bytes"));
    if body.size_hint().lower() > limit {
        return Err(too_large());
    }
    let limited = Limited::new(body, usize::try_from(limit).unwrap_or(usize::MAX));
    match timeout(BODY, limited.collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(error)) => Err(Problem::new(Cause::BadRequest, format!("the body broke off: {error}"))),
        Err(_) => Err(Problem::new(Cause::RequestTimeout, format!("the body was not there within {BODY:?}"))),
    }
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
