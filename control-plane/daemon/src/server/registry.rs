//! Where services are, and registrations from outside.

use std::time::Duration;

use axum::Json;
use axum::extract::{Path, Query, State as Extract};
use axum::http::StatusCode;
use meshctl_api::view::{Registration, RegistryView};
use serde::Deserialize;
use utoipa::IntoParams;

use super::{Answer, Body, Failure, FromShared, Shared};
use crate::control::Message;
use crate::view;

/// A watch waits this long at most; the watcher then simply asks again.
const LONGEST_WAIT: Duration = Duration::from_secs(300);

#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase")]
pub struct EndpointQuery {
    /// Of this service only.
    service: Option<String>,
    /// Answer when the registry's index is beyond this one.
    index: Option<u64>,
    /// How long to wait for that, in milliseconds.
    wait_ms: Option<u64>,
}

/// Endpoints, in routing or not, with the reason and since when.
#[utoipa::path(get, path = "/v1/endpoints", params(EndpointQuery), responses((status = 200, body = RegistryView)))]
pub async fn endpoints(Extract(shared): FromShared, Query(query): Query<EndpointQuery>) -> Answer<RegistryView> {
    let wait = Duration::from_millis(query.wait_ms.unwrap_or(30_000)).min(LONGEST_WAIT);
    let deadline = tokio::time::Instant::now() + wait;
    // Subscribed before the first look, so that no change falls in between.
    let mut changes = shared.hub.subscribe();
    loop {
        let service = query.service.clone();
        let view = shared.look(move |control| Ok(view::registry(control, service.as_deref()))).await?;
        let fresh = query.index.is_none_or(|index| view.index > index);
        if fresh || tokio::time::Instant::now() >= deadline {
            return Ok(Json(view));
        }
        // Whatever is told may have changed the registry; a reader that fell behind looks as well.
        let _ = tokio::time::timeout_at(deadline, changes.recv()).await;
    }
}

/// Registers an endpoint, or renews it; it leaves routing when the lease is over. 204 when every gateway knows it, 202 when
/// some gateway has not said so within a second.
#[utoipa::path(put, path = "/v1/services/{service}/endpoints/{id}", request_body = Registration,
    params(("service" = String, Path), ("id" = String, Path)), responses((status = 204), (status = 202)))]
pub async fn register(
    Extract(shared): FromShared,
    Path((service, id)): Path<(String, String)>,
    Body(registration): Body<Registration>,
) -> Result<StatusCode, Failure> {
    let (of, named) = (service.clone(), id.clone());
    shared.ask(|reply| Message::Register { service: of, id: named, registration, reply }).await?;
    known(&shared, service, id, true).await
}

/// Takes a registered endpoint out. 204 when no gateway knows it any more, 202 when some gateway has not said so within a
/// second.
#[utoipa::path(delete, path = "/v1/services/{service}/endpoints/{id}",
    params(("service" = String, Path), ("id" = String, Path)), responses((status = 204), (status = 202)))]
pub async fn deregister(
    Extract(shared): FromShared,
    Path((service, id)): Path<(String, String)>,
) -> Result<StatusCode, Failure> {
    let (of, named) = (service.clone(), id.clone());
    shared.ask(|reply| Message::Deregister { service: of, id: named, reply }).await?;
    known(&shared, service, id, false).await
}

/// Waits until every gateway has acknowledged a snapshot with the endpoint in it, or without it.
async fn known(shared: &Shared, service: String, id: String, wanted: bool) -> Result<StatusCode, Failure> {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(1);
    loop {
        let (service, id) = (service.clone(), id.clone());
        let done = shared.look(move |control| {
            let state = &control.state;
            let Some(listed) = state.snapshot.services.get(&service) else { return Ok(true) };
            let there = listed.endpoints.iter().any(|endpoint| endpoint.id == id);
            Ok(there == wanted && state.observed.acknowledged(state.snapshot.generation))
        });
        if done.await? {
            return Ok(StatusCode::NO_CONTENT);
        }
        if tokio::time::Instant::now() >= deadline {
            return Ok(StatusCode::ACCEPTED);
        }
        // An acknowledgement is no event that is told; it takes some milliseconds.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
