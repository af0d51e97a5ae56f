//! Channels: how they are, what is published to them by operators, and whether they flow.

use axum::Json;
use axum::extract::{ConnectInfo, Path, State as Extract};
use jiff::Timestamp;
use meshctl_api::error::{ApiError, ErrorCode};
use meshctl_api::view::List;
use meshctl_api::view::messages::{Channel, NewMessage, PauseRequest, PublishRequest, Published};
use meshctl_drivers::broker::Confirmed;
use meshctl_model::event::EventSeverity;
use serde_json::{Value, json};

use super::{Answer, Body, Failure, FromShared, Peer, Shared};
use crate::audit::Deed;
use crate::control::Message;
use crate::messaging::channels::{Pause, Wanted};
use crate::messaging::{failed, messages, wanted};
use crate::operate::Asked;
use crate::report::Report;

/// Messages that one request may publish.
const AT_ONCE: usize = 10_000;
/// Bytes of such a request: the 64 MiB that a broker takes at once, in base64, and what stands around them.
pub const LARGEST_REQUEST: usize = 96 << 20;

/// Every channel of the topology, all at one instant.
#[utoipa::path(get, path = "/v1/channels", responses((status = 200, body = List<Channel>)))]
pub async fn channels(Extract(shared): FromShared) -> Answer<List<Channel>> {
    let wanted = shared.look(|control| Ok(wanted(&control.state))).await?;
    Ok(Json(List::of("Channel", shared.messaging.channels(&wanted).await?)))
}

#[utoipa::path(get, path = "/v1/channels/{name}", params(("name" = String, Path)),
    responses((status = 200, body = Channel)))]
pub async fn channel(Extract(shared): FromShared, Path(name): Path<String>) -> Answer<Channel> {
    let wanted = one(&shared, &name).await?;
    Ok(Json(seen(&shared, &wanted, &name).await?))
}

/// The topology's channel of that name, alone.
pub(super) async fn one(shared: &Shared, name: &str) -> Result<Wanted, ApiError> {
    let mut all = shared.look(|control| Ok(wanted(&control.state))).await?;
    if !all.channels.contains_key(name) {
        let known: Vec<_> = all.channels.keys().map(String::as_str).collect();
        let hint = match known.as_slice() {
            [] => "the topology has none".to_owned(),
            known => format!("there are: {}", known.join(", ")),
        };
        return Err(ApiError::new(ErrorCode::NotFound, format!("there is no channel `{name}`")).hint(hint));
    }
    all.channels.retain(|known, _| known == name);
    Ok(all)
}

async fn seen(shared: &Shared, wanted: &Wanted, name: &str) -> Result<Channel, ApiError> {
    shared.messaging.channels(wanted).await?.pop().ok_or_else(|| {
        let message = format!("the broker does not have the channel {name} yet");
        ApiError::new(ErrorCode::Unavailable, message).hint("see `meshctl status` and `meshctl events`")
    })
}

/// Publishes messages, all or none; they are durable when the answer comes. An operator is their source: `operator/USER`.
#[utoipa::path(post, path = "/v1/channels/{name}/messages", params(("name" = String, Path)),
    request_body = PublishRequest, responses((status = 200, body = List<Published>)))]
pub async fn publish(
    Extract(shared): FromShared,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Path(name): Path<String>,
    Body(request): Body<PublishRequest>,
) -> Answer<List<Published>> {
    let asked = Asked { by: peer.name(), reason: request.reason.clone() };
    let (subject, data) = (format!("channel/{name}"), json!({"channel": name, "messages": request.messages.len()}));
    let (deed, channel) = (shared.clone(), name.clone());
    let published = async move { publish_all(&deed, &channel, request.messages, asked.by).await };
    let asked = Asked { by: peer.name(), reason: request.reason };
    let confirmed = audited(&shared, asked, "channel.publish", subject, data, published).await?;
    let published = confirmed.into_iter().map(|confirmed| Published {
        message_id: confirmed.message_id,
        channel: name.clone(),
        partition: confirmed.position.partition,
        offset: confirmed.position.offset,
        duplicate: confirmed.duplicate,
    });
    Ok(Json(List::of("Published", published.collect())))
}

async fn publish_all(
    shared: &Shared,
    name: &str,
    messages: Vec<NewMessage>,
    by: String,
) -> Result<Vec<Confirmed>, ApiError> {
    let wanted = one(shared, name).await?;
    if messages.len() > AT_ONCE {
        let message = format!("cannot publish {} messages to {name} at once", messages.len());
        return Err(ApiError::new(ErrorCode::Invalid, message).hint(format!("publish at most {AT_ONCE}")));
    }
    let now = Timestamp::now();
    let compose = |new| messages::compose(name, &wanted.channels[name], new, &by, now);
    let composed = messages.into_iter().map(compose).collect::<Result<Vec<_>, _>>()?;
    let confirmed = shared.messaging.broker.publish(name, composed).await;
    confirmed.map_err(|why| failed(&format!("publish to {name}"), why))
}

/// Stops delivery to one subscription, or to all of the channel. Messages are accepted and kept meanwhile.
#[utoipa::path(post, path = "/v1/channels/{name}/pause", params(("name" = String, Path)),
    request_body = PauseRequest, responses((status = 200, body = Channel)))]
pub async fn pause(
    Extract(shared): FromShared,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Path(name): Path<String>,
    Body(request): Body<PauseRequest>,
) -> Answer<Channel> {
    let pause = Pause::new(&peer.name(), request.reason.as_deref(), Timestamp::now());
    flow(&shared, peer, &name, request, Some(pause)).await
}

/// Delivery goes on where it was stopped.
#[utoipa::path(post, path = "/v1/channels/{name}/resume", params(("name" = String, Path)),
    request_body = PauseRequest, responses((status = 200, body = Channel)))]
pub async fn resume(
    Extract(shared): FromShared,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Path(name): Path<String>,
    Body(request): Body<PauseRequest>,
) -> Answer<Channel> {
    flow(&shared, peer, &name, request, None).await
}

async fn flow(shared: &Shared, peer: Peer, name: &str, request: PauseRequest, pause: Option<Pause>) -> Answer<Channel> {
    let asked = Asked { by: peer.name(), reason: request.reason };
    let (kind, action, word) = match pause {
        Some(_) => ("subscription.paused", "channel.pause", "paused"),
        None => ("subscription.resumed", "channel.resume", "resumed"),
    };
    let (wanted, chosen) = match chosen(shared, name, request.subscription.as_deref()).await {
        Ok(found) => found,
        Err(why) => {
            let subject = match request.subscription {
                Some(subscription) => format!("subscription/{name}/{subscription}"),
                None => format!("channel/{name}"),
            };
            let refused = async move { Err(why) };
            return audited(shared, asked, action, subject, Value::Null, refused).await.map(Json).map_err(Failure);
        }
    };
    for subscription in chosen {
        let subject = format!("subscription/{name}/{subscription}");
        let data = json!({"channel": name, "subscription": subscription, "by": asked.by, "reason": asked.reason});
        let message = match &asked.reason {
            Some(reason) => format!("{} {word} {name}/{subscription}: {reason}", asked.by),
            None => format!("{} {word} {name}/{subscription}", asked.by),
        };
        let (to, channel, pause) = (shared.clone(), name.to_owned(), pause.clone());
        let (told, about) = (data.clone(), subject.clone());
        let deed = async move {
            to.messaging.pause(&channel, &subscription, pause.as_ref()).await?;
            let report = Report::Happened { severity: EventSeverity::Info, kind, subject: about, message, data: told };
            // A closed channel means that the daemon is ending; the broker has it all the same.
            let _ = to.messages.send(Message::Report(report)).await;
            Ok(())
        };
        audited(shared, asked.clone(), action, subject, data, deed).await?;
    }
    Ok(Json(seen(shared, &wanted, name).await?))
}

/// The channel, and the subscriptions of it that are meant: one, or all.
async fn chosen(shared: &Shared, name: &str, subscription: Option<&str>) -> Result<(Wanted, Vec<String>), ApiError> {
    let wanted = one(shared, name).await?;
    let known: Vec<String> = wanted.channels[name].subscriptions.keys().cloned().collect();
    match subscription {
        None => Ok((wanted, known)),
        Some(one) if known.iter().any(|known| known == one) => Ok((wanted, vec![one.to_owned()])),
        Some(unknown) => {
            let message = format!("the channel {name} has no subscription `{unknown}`");
            let hint = format!("there are: {}", known.join(", "));
            Err(ApiError::new(ErrorCode::NotFound, message).hint(hint))
        }
    }
}

/// Does a deed, and writes down that it was done or why it was not. Both go on when whoever asked does not wait for the
/// answer: nothing is done that is not written down.
pub(super) async fn audited<T: Send + 'static>(
    shared: &Shared,
    asked: Asked,
    action: &'static str,
    subject: String,
    data: Value,
    deed: impl Future<Output = Result<T, ApiError>> + Send + 'static,
) -> Result<T, ApiError> {
    let audit = shared.audit.clone();
    let both = tokio::spawn(async move {
        let outcome = deed.await;
        let entry = match &outcome {
            Ok(_) => Deed::done(&asked, action, subject.clone(), data),
            Err(why) => Deed::refused(&asked, action, subject.clone(), why),
        };
        // It is done, and nobody would know by whom: that is worth an alarm, and no reason to say that it was not done.
        if let Err(unwritten) = audit.record(entry).await {
            tracing::error!(%unwritten, by = asked.by, action, subject, "a deed could not be audited");
        }
        outcome
    });
    both.await.map_err(|why| ApiError::new(ErrorCode::Internal, format!("the daemon failed at {action}: {why}")))?
}
