//! Calls that only look.

use std::time::Duration;

use axum::Json;
use axum::extract::State as Extract;
use meshctl_api::error::ApiError;
use meshctl_api::view::messages::Channel;
use meshctl_api::view::{Edge, Gateway, Instance, List, Revision, Route, Service, Status, Version};
use meshctl_model::plan::DesiredEdge;
use meshctl_model::snapshot::{BreakerState, GatewayStatus};

use super::{Answer, FromShared, Shared};
use crate::messaging::channels::Wanted;
use crate::messaging::wanted;
use crate::operate::unwritable;
use crate::view;
use crate::vitals::latencies;

/// How long a status waits for the broker.
const BROKER_ANSWERS: Duration = Duration::from_millis(200);

/// Who the daemon is.
#[utoipa::path(get, path = "/v1/version", responses((status = 200, body = Version)))]
pub async fn version(Extract(shared): FromShared) -> Json<Version> {
    Json(shared.version.as_ref().clone())
}

/// The whole system at one glance.
#[utoipa::path(get, path = "/v1/status", responses((status = 200, body = Status)))]
pub async fn status(Extract(shared): FromShared) -> Answer<Status> {
    let look = shared.look(|control| Ok((view::status(control), wanted(&control.state))));
    let (mut status, wanted) = look.await?;
    status.channels = channels(&shared, &wanted).await;
    Ok(Json(status))
}

/// None as long as the broker does not answer: how everything else is must be seen then, too, and at once.
pub async fn channels(shared: &Shared, wanted: &Wanted) -> Vec<Channel> {
    match tokio::time::timeout(BROKER_ANSWERS, shared.messaging.channels(wanted)).await {
        Ok(Ok(channels)) => channels,
        Ok(Err(why)) => {
            tracing::debug!(%why, "a status without channels");
            Vec::new()
        }
        Err(_) => Vec::new(),
    }
}

async fn seen(shared: &Shared) -> Result<Status, ApiError> {
    shared.look(|control| Ok(view::status(control))).await
}

#[utoipa::path(get, path = "/v1/services", responses((status = 200, body = List<Service>)))]
pub async fn services(Extract(shared): FromShared) -> Answer<List<Service>> {
    Ok(Json(List::of("Service", seen(&shared).await?.items)))
}

#[utoipa::path(get, path = "/v1/instances", responses((status = 200, body = List<Instance>)))]
pub async fn instances(Extract(shared): FromShared) -> Answer<List<Instance>> {
    let services = seen(&shared).await?.items;
    Ok(Json(List::of("Instance", services.into_iter().flat_map(|service| service.instances).collect())))
}

#[utoipa::path(get, path = "/v1/gateways", responses((status = 200, body = List<Gateway>)))]
pub async fn gateways(Extract(shared): FromShared) -> Answer<List<Gateway>> {
    Ok(Json(List::of("Gateway", seen(&shared).await?.gateways)))
}

#[utoipa::path(get, path = "/v1/routes", responses((status = 200, body = List<Route>)))]
pub async fn routes(Extract(shared): FromShared) -> Answer<List<Route>> {
    let routes = shared.look(|control| Ok(view::routes(&control.state))).await?;
    Ok(Json(List::of("Route", routes)))
}

#[utoipa::path(get, path = "/v1/revisions", responses((status = 200, body = List<Revision>)))]
pub async fn revisions(Extract(shared): FromShared) -> Answer<List<Revision>> {
    let look = shared.look(|control| {
        let rows = control.store.revisions().map_err(|why| unwritable(&why))?;
        Ok((rows, control.state.revision))
    });
    let (rows, current) = look.await?;
    let shown = rows.into_iter().map(|row| Revision {
        revision: row.revision,
        created_at: row.created_at,
        by: row.by,
        reason: row.reason,
        cause: row.cause,
        state: row.state,
        current: row.revision == current,
    });
    Ok(Json(List::of("Revision", shown.collect())))
}

/// Every edge, with what all gateways say of it now.
#[utoipa::path(get, path = "/v1/edges", responses((status = 200, body = List<Edge>)))]
pub async fn edges(Extract(shared): FromShared) -> Answer<List<Edge>> {
    let look = shared.look(|control| Ok((control.state.desired.edges.clone(), control.running_gateways())));
    let (edges, gateways) = look.await?;
    let answers = futures_util::future::join_all(gateways.iter().map(|gateway| gateway.status())).await;
    let answers: Vec<GatewayStatus> = answers.into_iter().filter_map(Result::ok).collect();
    Ok(Json(List::of("Edge", edges.iter().map(|(name, edge)| merged(name, edge, &answers)).collect())))
}

/// Counts and latencies are added up; of breakers the worst is shown.
fn merged(name: &str, edge: &DesiredEdge, gateways: &[GatewayStatus]) -> Edge {
    let seen: Vec<_> = gateways.iter().flat_map(|gateway| &gateway.edges).filter(|seen| seen.edge == name).collect();
    let worst = seen.iter().map(|seen| seen.breaker).max_by_key(|state| state.severity());
    let (latency_p50_ms, latency_p99_ms) = latencies(seen.iter().map(|seen| &seen.recent));
    Edge {
        name: name.into(),
        caller: edge.caller.clone(),
        callee: edge.callee.clone(),
        url: edge.address.map(|address| format!("http://{address}")),
        deadline_ms: edge.policy.deadline.as_millis(),
        attempt_timeout_ms: edge.policy.attempt_timeout.as_millis(),
        retries: edge.policy.retry.attempts,
        breaker: worst.map_or("unknown", BreakerState::name).into(),
        in_flight: seen.iter().map(|seen| seen.in_flight).sum(),
        requests: seen.iter().map(|seen| seen.requests).sum(),
        failures: seen.iter().map(|seen| seen.failures).sum(),
        latency_p50_ms,
        latency_p99_ms,
    }
}
