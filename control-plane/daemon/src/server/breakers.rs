//! Breakers: how they are at all gateways, and what operators say of them.

use std::time::Duration;

use axum::Json;
use axum::extract::{ConnectInfo, Path, State as Extract};
use meshctl_api::error::{ApiError, ErrorCode};
use meshctl_api::view::breakers::{Breaker, BreakerChange, BreakerRequest};
use meshctl_api::view::{List, Told};
use meshctl_model::plan::{Reach, reach};
use meshctl_model::snapshot::GatewayStatus;
use serde_json::json;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

use super::channels::audited;
use super::{Answer, Body, FromShared, Peer, Shared};
use crate::breakers::{Act, Standings};
use crate::control::Message;
use crate::operate::Asked;

/// A gateway that has not acknowledged by then is named, and gets it when it can.
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(5);
/// How long a gateway is waited for to say how its breakers are.
const GATEWAY_ANSWERS: Duration = Duration::from_secs(1);

/// Every breaker: each edge has one.
#[utoipa::path(get, path = "/v1/breakers", responses((status = 200, body = List<Breaker>)))]
pub async fn breakers(Extract(shared): FromShared) -> Answer<List<Breaker>> {
    let (standings, gateways) =
        shared.look(|control| Ok((Standings::of(&control.state), control.running_gateways()))).await?;
    let asked = gateways.iter().map(|gateway| tokio::time::timeout(GATEWAY_ANSWERS, gateway.status()));
    let answers = futures_util::future::join_all(asked).await;
    let answers: Vec<GatewayStatus> = answers.into_iter().flatten().filter_map(Result::ok).collect();
    Ok(Json(List::of("Breaker", standings.seen(&answers))))
}

/// Refuses every request of the edge, at every gateway, until it is reset or its time is over. The answer comes when all gateways
/// have acknowledged, or five seconds have passed.
#[utoipa::path(post, path = "/v1/breakers/{edge}/trip", params(("edge" = String, Path)), request_body = BreakerRequest,
    responses((status = 200, body = BreakerChange)))]
pub async fn trip(
    Extract(shared): FromShared,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Path(edge): Path<String>,
    Body(request): Body<BreakerRequest>,
) -> Answer<BreakerChange> {
    change(&shared, peer, edge, Act::Trip, request).await
}

/// Keeps it closed, whatever fails.
#[utoipa::path(post, path = "/v1/breakers/{edge}/hold", params(("edge" = String, Path)), request_body = BreakerRequest,
    responses((status = 200, body = BreakerChange)))]
pub async fn hold(
    Extract(shared): FromShared,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Path(edge): Path<String>,
    Body(request): Body<BreakerRequest>,
) -> Answer<BreakerChange> {
    change(&shared, peer, edge, Act::Hold, request).await
}

/// Takes back what was forced, and closes it: it begins anew.
#[utoipa::path(post, path = "/v1/breakers/{edge}/reset", params(("edge" = String, Path)), request_body = BreakerRequest,
    responses((status = 200, body = BreakerChange)))]
pub async fn reset(
    Extract(shared): FromShared,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Path(edge): Path<String>,
    Body(request): Body<BreakerRequest>,
) -> Answer<BreakerChange> {
    change(&shared, peer, edge, Act::Reset, request).await
}

async fn change(shared: &Shared, peer: Peer, edge: String, act: Act, request: BreakerRequest) -> Answer<BreakerChange> {
    let BreakerRequest { ttl_ms, reason, dry_run } = request;
    let known = edge.clone();
    let reached = shared.look(move |control| {
        control.state.must_have_edge(&known)?;
        Ok(reach(&control.state.desired, &known).unwrap_or_default())
    });
    if dry_run {
        let (reached, breaker) = (reached.await?, one(shared, &edge).await?);
        return Ok(Json(changed(act, reached, breaker, true)));
    }
    let ttl = ttl_ms.map(Duration::from_millis);
    let asked = Asked { by: peer.name(), reason };
    // Heard before it is said, so that no acknowledgement is missed.
    let told = shared.hub.subscribe();
    let said = {
        let (shared, edge, asked) = (shared.clone(), edge.clone(), asked.clone());
        async move { shared.ask(|reply| Message::Breaker { edge, act, ttl, asked, reply }).await }
    };
    let subject = format!("edge/{edge}");
    let generation = audited(shared, asked, act.audited(), subject, json!({"ttlMs": ttl_ms}), said).await?;
    // Who does not acknowledge in time shows in the breaker.
    let _in_time = tokio::time::timeout(ACKNOWLEDGED_WITHIN, acknowledged(shared, generation, told)).await;
    Ok(Json(changed(act, reached.await?, one(shared, &edge).await?, false)))
}

/// Returns when every gateway that serves carries the generation.
async fn acknowledged(shared: &Shared, generation: u64, mut told: Receiver<Told>) -> Result<(), ApiError> {
    loop {
        let look = shared.look(move |control| {
            let observed = &control.state.observed;
            Ok(observed.serving().all(|gateway| observed.carries(gateway, generation)))
        });
        if look.await? {
            return Ok(());
        }
        loop {
            match told.recv().await {
                Ok(Told::Gateway(_) | Told::GatewayGone(_)) | Err(RecvError::Lagged(_)) => break,
                Ok(_) => {}
                Err(RecvError::Closed) => return Err(ApiError::new(ErrorCode::Unavailable, "the daemon is ending")),
            }
        }
    }
}

async fn one(shared: &Shared, edge: &str) -> Result<Breaker, ApiError> {
    let Json(all) = breakers(Extract(shared.clone())).await.map_err(|failure| failure.0)?;
    let gone = || ApiError::new(ErrorCode::NotFound, format!("the edge {edge} has gone meanwhile"));
    all.items.into_iter().find(|breaker| breaker.edge == edge).ok_or_else(gone)
}

fn changed(act: Act, reached: Reach, breaker: Breaker, dry_run: bool) -> BreakerChange {
    let callers_get = match act {
        Act::Trip => reached.callers_get,
        Act::Hold => "what the service answers, or fails to; the breaker stays closed whatever fails".into(),
        Act::Reset => "what the service answers; the breaker opens by itself when too much fails".into(),
    };
    BreakerChange {
        api_version: meshctl_model::API_VERSION.into(),
        kind: "BreakerChange".into(),
        action: act.name().into(),
        routes: reached.routes,
        channels: reached.channels,
        callers_get,
        breaker,
        dry_run,
    }
}
