//! Channels: how they are, what is published to them by operators, and whether they flow.

use axum::Json;
use axum::extract::{ConnectInfo, Path, State as Extract};
use jiff::Timestamp;
use meshctl_api::error::{ApiError, ErrorCode};
use meshctl_api::view::List;
use meshctl_api::view::messages::{Channel, PauseRequest, PublishRequest, Published};
use meshctl_model::event::EventSeverity;
use serde_json::{Value, json};

use super::{Answer, Body, FromShared, Peer, Shared};
use crate::audit::Deed;
use crate::control::Message;
use crate::messaging::channels::{Pause, Wanted};
use crate::messaging::{failed, messages, wanted};
use crate::operate::Asked;
use crate::report::Report;

/// Messages that one request may publish.
const AT_ONCE: usize = 10_000;

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
    let wanted = one(&shared, &name).await?;
    let (by, now) = (peer.name(), Timestamp::now());
    if request.messages.len() > AT_ONCE {
        let message = format!("cannot publish {} messages to {name} at once", request.messages.len());
        return Err(ApiError::new(ErrorCode::Invalid, message).hint(format!("publish at most {AT_ONCE}")).into());
    }
    let asked = Asked { by: by.clone(), reason: request.reason };
    let data = json!({"channel": name, "messages": request.messages.len()});
    let compose = |new| messages::compose(&name, &wanted.channels[&name], new, &by, now);
    let composed = request.messages.into_iter().map(compose).collect::<Result<Vec<_>, _>>()?;
    let confirmed = shared.messaging.broker.publish(&name, composed).await;
    let confirmed = confirmed.map_err(|why| failed(&format!("publish to {name}"), why));
    let confirmed = audited(&shared, &asked, "channel.publish", &format!("channel/{name}"), data, confirmed).await?;
    let published = confirmed.into_iter().map(|confirmed| Published {
        message_id: confirmed.message_id,
        channel: name.clone(),
        partition: confirmed.position.partition,
        offset: confirmed.position.offset,
        duplicate: confirmed.duplicate,
    });
    Ok(Json(List::of("Published", published.collect())))
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
    let wanted = one(shared, name).await?;
    let known: Vec<String> = wanted.channels[name].subscriptions.keys().cloned().collect();
    let chosen = match &request.subscription {
        None => known,
        Some(one) if known.contains(one) => vec![one.clone()],
        Some(unknown) => {
            let message = format!("the channel {name} has no subscription `{unknown}`");
            let hint = format!("there are: {}", known.join(", "));
            return Err(ApiError::new(ErrorCode::NotFound, message).hint(hint).into());
        }
    };
    let (kind, action, word) = match pause {
        Some(_) => ("subscription.paused", "channel.pause", "paused"),
        None => ("subscription.resumed", "channel.resume", "resumed"),
    };
    for subscription in chosen {
        let subject = format!("subscription/{name}/{subscription}");
        let data = json!({"channel": name, "subscription": subscription, "by": asked.by, "reason": asked.reason});
        let outcome = shared.messaging.pause(name, &subscription, pause.as_ref()).await;
        audited(shared, &asked, action, &subject, data.clone(), outcome).await?;
        let message = match &asked.reason {
            Some(reason) => format!("{} {word} {name}/{subscription}: {reason}", asked.by),
            None => format!("{} {word} {name}/{subscription}", asked.by),
        };
        let severity = EventSeverity::Info;
        let report = Report::Happened { severity, kind, subject, message, data };
        // A closed channel means that the daemon is ending; the broker has it all the same.
        let _ = shared.messages.send(Message::Report(report)).await;
    }
    Ok(Json(seen(shared, &wanted, name).await?))
}

/// Writes down what was done, or why it was not.
async fn audited<T>(
    shared: &Shared,
    asked: &Asked,
    action: &'static str,
    subject: &str,
    data: Value,
    outcome: Result<T, ApiError>,
) -> Result<T, ApiError> {
    let deed = match &outcome {
        Ok(_) => Deed::done(asked, action, subject, data),
        Err(why) => Deed::refused(asked, action, subject, why),
    };
    match (outcome, shared.audit.record(deed).await) {
        // It is done, and nobody would know by whom: that is worth an alarm, and no reason to say that it was not done.
        (Ok(done), Err(unwritten)) => {
            tracing::error!(%unwritten, by = asked.by, action, subject, "a deed could not be audited");
            Ok(done)
        }
        (outcome, _) => outcome,
    }
}
