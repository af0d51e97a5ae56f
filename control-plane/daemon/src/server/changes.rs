//! Calls that change what is wanted.

use axum::Json;
use axum::extract::{ConnectInfo, State as Extract};
use axum::http::StatusCode;
use meshctl_api::error::{ApiError, ErrorCode};
use meshctl_api::view::{Accepted, ApplyRequest, DownRequest, Plan, RestartRequest, ScaleRequest, UndoRequest};
use meshctl_model::finding::Severity;
use meshctl_model::load::{Sources, load};
use meshctl_model::topology::Topology;
use serde_json::Value;

use super::channels::audited;
use super::{Answer, Body, Failure, FromShared, Peer, Shared};
use crate::control::{MakeWish, Message};
use crate::messaging::guard;
use crate::operate::{Asked, Wish};
use crate::state::State;

/// What applying would change. Changes nothing.
#[utoipa::path(post, path = "/v1/plan", request_body = ApplyRequest, responses((status = 200, body = Plan)))]
pub async fn plan(Extract(shared): FromShared, Body(request): Body<ApplyRequest>) -> Answer<Plan> {
    let topology = read(&request.sources).await?;
    let (sources, discard) = (request.sources, request.discard_messages);
    let wish: MakeWish = Box::new(move |state, _| Ok(wish_topology(state, topology, sources, discard)));
    Ok(Json(planned(&shared, wish).await?))
}

fn wish_topology(state: &State, topology: Topology, sources: Sources, discard_messages: bool) -> Wish {
    Wish { discard_messages, ..state.wish_topology(topology, sources) }
}

/// A plan that says what would be lost.
async fn planned(shared: &Shared, wish: MakeWish) -> Result<Plan, ApiError> {
    let mut planned = shared.ask(|reply| Message::Plan { wish, reply }).await?;
    let lost = shared.messaging.lost(&planned.losses).await;
    let discards = planned.discards_messages();
    guard::explain(&mut planned.plan, &planned.losses, &lost, discards);
    let kept = shared.messaging.kept(planned.channels(), &planned.losses).await?;
    let none = planned.channels().is_empty();
    guard::explain_kept(&mut planned.plan, kept, none, discards);
    Ok(planned.plan)
}

/// Asks the broker, which may take its time, before the control loop is asked to accept. Returns the plan that loses
/// nothing; whatever is accepted in between makes it another.
///
/// # Errors
/// When messages would be lost, or nobody can say.
async fn weigh(shared: &Shared, wish: MakeWish) -> Result<Option<String>, ApiError> {
    if shared.look(|control| Ok(control.state.desired.channels.is_empty())).await? {
        return Ok(None);
    }
    let planned = shared.ask(|reply| Message::Plan { wish, reply }).await?;
    if planned.may_lose_messages()
        && let Some(refusal) = guard::refusal(&shared.messaging.lost(&planned.losses).await?)
    {
        return Err(refusal);
    }
    Ok(Some(planned.plan.fingerprint))
}

/// Makes a topology what is wanted. The answer comes when it is saved; its outcome is an event, `revision.applied` or
/// `revision.failed`.
#[utoipa::path(post, path = "/v1/apply", request_body = ApplyRequest, responses((status = 202, body = Accepted)))]
pub async fn apply(
    Extract(shared): FromShared,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Body(request): Body<ApplyRequest>,
) -> Result<(StatusCode, Json<Accepted>), Failure> {
    let topology = read(&request.sources).await?;
    let ApplyRequest { sources, fingerprint, reason, discard_messages: discard } = request;
    let asked = Asked { by: peer.name(), reason };
    let wish = || -> MakeWish {
        let (topology, sources) = (topology.clone(), sources.clone());
        Box::new(move |state, _| Ok(wish_topology(state, topology, sources, discard)))
    };
    let accept = {
        let (shared, asked, to_weigh, wish) = (shared.clone(), asked.clone(), wish(), wish());
        async move {
            let weighed = weigh(&shared, to_weigh).await?;
            shared.ask(|reply| Message::Accept { wish, fingerprint, weighed, asked, reply }).await
        }
    };
    // Whoever gives up messages stands in the audit with it, accepted or not.
    let accepted = match discard {
        false => accept.await?,
        true => audited(&shared, asked, "apply.discardMessages", "channels".into(), Value::Null, accept).await?,
    };
    Ok((StatusCode::ACCEPTED, Json(accepted)))
}

/// Reading is work for a thread of its own: a large file takes tens of milliseconds.
async fn read(sources: &Sources) -> Result<Topology, ApiError> {
    let sources = sources.clone();
    let loaded = tokio::task::spawn_blocking(move || load(&sources)).await;
    let loaded = loaded.map_err(|why| ApiError::new(ErrorCode::Internal, format!("reading the topology: {why}")))?;
    let errors = loaded.findings.iter().filter(|finding| finding.severity == Severity::Error).count();
    match loaded.topology.filter(|_| errors == 0) {
        Some(topology) => Ok(topology),
        None => {
            let message = format!("the topology has {errors} errors");
            let mut error = ApiError::new(ErrorCode::InvalidTopology, message).hint("see `meshctl validate FILE`");
            error.findings = loaded.findings;
            Err(error)
        }
    }
}

/// Only says what would change when `dry_run`; nobody waits for an outcome then.
async fn change(
    shared: &Shared,
    peer: Peer,
    wish: impl Fn() -> MakeWish,
    reason: Option<String>,
    dry_run: bool,
) -> Result<(StatusCode, Json<Accepted>), Failure> {
    if dry_run {
        let plan = planned(shared, wish()).await?;
        let (revision, last_event_id) = (plan.base_revision, String::new());
        return Ok((StatusCode::OK, Json(Accepted { revision, plan, last_event_id })));
    }
    let asked = Asked { by: peer.name(), reason };
    let weighed = weigh(shared, wish()).await?;
    let wish = wish();
    let accepted = shared.ask(|reply| Message::Accept { wish, fingerprint: None, weighed, asked, reply }).await?;
    Ok((StatusCode::ACCEPTED, Json(accepted)))
}

/// Changes how many instances services have.
#[utoipa::path(post, path = "/v1/scale", request_body = ScaleRequest, responses((status = 202, body = Accepted)))]
pub async fn scale(
    Extract(shared): FromShared,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Body(request): Body<ScaleRequest>,
) -> Result<(StatusCode, Json<Accepted>), Failure> {
    let ScaleRequest { replicas, reason, dry_run } = request;
    let wish = || -> MakeWish {
        let replicas = replicas.clone();
        Box::new(move |state, _| state.wish_scale(replicas))
    };
    change(&shared, peer, wish, reason, dry_run).await
}

/// Replaces every instance of services, one at a time.
#[utoipa::path(post, path = "/v1/restart", request_body = RestartRequest, responses((status = 202, body = Accepted)))]
pub async fn restart(
    Extract(shared): FromShared,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Body(request): Body<RestartRequest>,
) -> Result<(StatusCode, Json<Accepted>), Failure> {
    let RestartRequest { services, reason, dry_run } = request;
    let wish = || -> MakeWish {
        let services = services.clone();
        Box::new(move |state, _| state.wish_restart(&services))
    };
    change(&shared, peer, wish, reason, dry_run).await
}

/// Goes back to an earlier revision, as a new one.
#[utoipa::path(post, path = "/v1/undo", request_body = UndoRequest, responses((status = 202, body = Accepted)))]
pub async fn undo(
    Extract(shared): FromShared,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Body(request): Body<UndoRequest>,
) -> Result<(StatusCode, Json<Accepted>), Failure> {
    let UndoRequest { to_revision, reason, dry_run } = request;
    let wish = || -> MakeWish { Box::new(move |state, store| state.wish_undo(to_revision, store)) };
    change(&shared, peer, wish, reason, dry_run).await
}

/// Ends everything, then the daemon; its last word on `/v1/watch` is the event `system.down`.
#[utoipa::path(post, path = "/v1/down", request_body = DownRequest, responses((status = 202, body = Accepted)))]
pub async fn down(
    Extract(shared): FromShared,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Body(request): Body<DownRequest>,
) -> Result<(StatusCode, Json<Accepted>), Failure> {
    let asked = Asked { by: peer.name(), reason: request.reason };
    let accepted = shared.ask(|reply| Message::Down { asked, reply }).await?;
    Ok((StatusCode::ACCEPTED, Json(accepted)))
}

/// Ends the daemon and leaves everything running, for another binary to take over.
#[utoipa::path(post, path = "/v1/handover", responses((status = 204)))]
pub async fn handover(Extract(shared): FromShared) -> Result<StatusCode, Failure> {
    shared.ask(|reply| Message::Leave { reply: Some(reply) }).await?;
    Ok(StatusCode::NO_CONTENT)
}
