//! Replays: dead letters on their way back to their own subscriptions.

use axum::Json;
use axum::extract::{ConnectInfo, Path, State as Extract};
use axum::http::StatusCode;
use meshctl_api::view::List;
use meshctl_api::view::messages::{DeadLetterRequest, PauseRequest, Replay};

use super::{Answer, Body, Failure, FromShared, Peer, Shared};
use crate::dead_letters::Wish;
use crate::operate::Asked;

/// Freezes the selected dead letters as a set and begins to send them. Only what is dead and in no other replay is in the set; when
/// that is nothing, the conflict says why. With `dryRun` nothing changes, and the answer shows the set.
#[utoipa::path(post, path = "/v1/replays", request_body = DeadLetterRequest, responses(
    (status = 202, body = Replay), (status = 200, description = "The set of a dry run", body = Replay)))]
pub async fn create(
    Extract(shared): FromShared,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Body(mut request): Body<DeadLetterRequest>,
) -> Result<(StatusCode, Json<Replay>), Failure> {
    let status = if request.dry_run { StatusCode::OK } else { StatusCode::ACCEPTED };
    let asked = Asked { by: peer.name(), reason: request.reason.take() };
    Ok((status, Json(shared.dead_letters.replay(request, asked).await?)))
}

/// Every replay, the latest first.
#[utoipa::path(get, path = "/v1/replays", responses((status = 200, body = List<Replay>)))]
pub async fn list(Extract(shared): FromShared) -> Answer<List<Replay>> {
    Ok(Json(List::of("Replay", shared.dead_letters.replays().await?)))
}

#[utoipa::path(get, path = "/v1/replays/{id}", params(("id" = String, Path)), responses((status = 200, body = Replay)))]
pub async fn show(Extract(shared): FromShared, Path(id): Path<String>) -> Answer<Replay> {
    Ok(Json(shared.dead_letters.show_replay(id).await?))
}

/// What is issued goes on; nothing more is issued until it is resumed. Of the body only the reason counts.
#[utoipa::path(post, path = "/v1/replays/{id}/pause", params(("id" = String, Path)), request_body = PauseRequest,
    responses((status = 200, body = Replay)))]
pub async fn pause(
    Extract(shared): FromShared,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Path(id): Path<String>,
    Body(request): Body<PauseRequest>,
) -> Answer<Replay> {
    steer(&shared, peer, id, Wish::Pause, request).await
}

#[utoipa::path(post, path = "/v1/replays/{id}/resume", params(("id" = String, Path)), request_body = PauseRequest,
    responses((status = 200, body = Replay)))]
pub async fn resume(
    Extract(shared): FromShared,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Path(id): Path<String>,
    Body(request): Body<PauseRequest>,
) -> Answer<Replay> {
    steer(&shared, peer, id, Wish::Resume, request).await
}

/// What is not issued yet stays dead, and can be in another replay; what is issued has its outcome still.
#[utoipa::path(post, path = "/v1/replays/{id}/cancel", params(("id" = String, Path)), request_body = PauseRequest,
    responses((status = 200, body = Replay)))]
pub async fn cancel(
    Extract(shared): FromShared,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Path(id): Path<String>,
    Body(request): Body<PauseRequest>,
) -> Answer<Replay> {
    steer(&shared, peer, id, Wish::Cancel, request).await
}

async fn steer(shared: &Shared, peer: Peer, id: String, wish: Wish, request: PauseRequest) -> Answer<Replay> {
    let asked = Asked { by: peer.name(), reason: request.reason };
    Ok(Json(shared.dead_letters.steer(id, wish, asked).await?))
}
