//! The golden signals: once, or once a second.

use std::convert::Infallible;

use axum::Json;
use axum::body::Body as HttpBody;
use axum::extract::{Query, State as Extract};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use meshctl_api::view::vitals::Vitals;
use serde::Deserialize;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::WatchStream;
use utoipa::IntoParams;

use super::{Failure, FromShared};

#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default)]
pub struct VitalsQuery {
    /// Once a second, one JSON object on a line, until the reader goes. Who reads too slowly misses some.
    follow: bool,
}

/// Rate, errors, duration and saturation over the last ten seconds, of routes, edges and services; channels; breakers.
#[utoipa::path(get, path = "/v1/vitals", params(VitalsQuery), responses((status = 200, body = Vitals)))]
pub async fn vitals(Extract(shared): FromShared, Query(query): Query<VitalsQuery>) -> Result<Response, Failure> {
    if !query.follow {
        return Ok(Json(shared.samples.now(&shared).await?).into_response());
    }
    let lines = WatchStream::from_changes(shared.samples.follow()).map(|vitals| {
        let mut text = vitals.and_then(|vitals| serde_json::to_string(&*vitals).ok()).unwrap_or_default();
        text.push('\n');
        Ok::<_, Infallible>(text)
    });
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], HttpBody::from_stream(lines)).into_response())
}
