//! Calls that change what is wanted.

use axum::Json;
use axum::extract::{ConnectInfo, State as Extract};
use axum::http::StatusCode;
use meshctl_api::error::{ApiError, ErrorCode};
use meshctl_api::view::{Accepted, ApplyRequest, DownRequest, Plan, RestartRequest, ScaleRequest, UndoRequest};
use meshctl_model::finding::Severity;
use meshctl_model::load::{Sources, load};
use meshctl_model::topology::Topology;

use super::{Answer, Body, Failure, FromShared, Peer, Shared};
use crate::control::{MakeWish, Message};
use crate::operate::Asked;

/// What applying would change. Changes nothing.
#[utoipa::path(post, path = "/v1/plan", request_body = ApplyRequest, responses((status = 200, body = Plan)))]
pub async fn plan(Extract(shared): FromShared, Body(request): Body<ApplyRequest>) -> Answer<Plan> {
    let topology = read(&request.sources).await?;
    let wish: MakeWish = Box::new(move |state, _| Ok(state.wish_topology(topology, request.sources)));
    Ok(Json(shared.ask(|reply| Message::Plan { wish, reply }).await?))
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
    let ApplyRequest { sources, fingerprint, reason, discard_messages: _ } = request;
    let asked = Asked { by: peer.name(), reason };
    let wish: MakeWish = Box::new(move |state, _| Ok(state.wish_topology(topology, sources)));
    let accepted = shared.ask(|reply| Message::Accept { wish, fingerprint, asked, reply }).await?;
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
    wish: MakeWish,
    reason: Option<String>,
    dry_run: bool,
) -> Result<(StatusCode, Json<Accepted>), Failure> {
    if dry_run {
        let plan = shared.ask(|reply| Message::Plan { wish, reply }).await?;
        let (revision, last_event_id) = (plan.base_revision, String::new());
        return Ok((StatusCode::OK, Json(Accepted { revision, plan, last_event_id })));
    }
    let asked = Asked { by: peer.name(), reason };
    let accepted = shared.ask(|reply| Message::Accept { wish, fingerprint: None, asked, reply }).await?;
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
    change(&shared, peer, Box::new(move |state, _| state.wish_scale(replicas)), reason, dry_run).await
}

/// Replaces every instance of services, one at a time.
#[utoipa::path(post, path = "/v1/restart", request_body = RestartRequest, responses((status = 202, body = Accepted)))]
pub async fn restart(
    Extract(shared): FromShared,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Body(request): Body<RestartRequest>,
) -> Result<(StatusCode, Json<Accepted>), Failure> {
    let RestartRequest { services, reason, dry_run } = request;
    change(&shared, peer, Box::new(move |state, _| state.wish_restart(&services)), reason, dry_run).await
}

/// Goes back to an earlier revision, as a new one.
#[utoipa::path(post, path = "/v1/undo", request_body = UndoRequest, responses((status = 202, body = Accepted)))]
pub async fn undo(
    Extract(shared): FromShared,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Body(request): Body<UndoRequest>,
) -> Result<(StatusCode, Json<Accepted>), Failure> {
    let UndoRequest { to_revision, reason, dry_run } = request;
    change(&shared, peer, Box::new(move |state, store| state.wish_undo(to_revision, store)), reason, dry_run).await
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
