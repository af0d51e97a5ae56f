//! Where services are, and registrations from outside.

use std::time::Duration;

use axum::Json;
use axum::extract::{Path, Query, State as Extract};
use axum::http::StatusCode;
use meshctl_api::view::{Registration, RegistryView};
use serde::Deserialize;
use utoipa::IntoParams;

use super::{Answer, Body, Failure, FromShared};
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

/// Registers an endpoint, or renews it; it leaves routing when the lease is over.
#[utoipa::path(put, path = "/v1/services/{service}/endpoints/{id}", request_body = Registration,
    params(("service" = String, Path), ("id" = String, Path)), responses((status = 204)))]
pub async fn register(
    Extract(shared): FromShared,
    Path((service, id)): Path<(String, String)>,
    Body(registration): Body<Registration>,
) -> Result<StatusCode, Failure> {
    shared.ask(|reply| Message::Register { service, id, registration, reply }).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Takes a registered endpoint out.
#[utoipa::path(delete, path = "/v1/services/{service}/endpoints/{id}",
    params(("service" = String, Path), ("id" = String, Path)), responses((status = 204)))]
pub async fn deregister(
    Extract(shared): FromShared,
    Path((service, id)): Path<(String, String)>,
) -> Result<StatusCode, Failure> {
    shared.ask(|reply| Message::Deregister { service, id, reply }).await?;
    Ok(StatusCode::NO_CONTENT)
}
