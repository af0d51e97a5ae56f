//! Traces: looked at, and sent by services that would rather use the socket.

use axum::Json;
use axum::body::Body as HttpBody;
use axum::extract::{Path, Query, State as Extract};
use axum::http::HeaderMap;
use axum::response::Response;
use meshctl_api::view::traces::{Trace, TraceList, TraceQuery};
use meshctl_model::trace::Subscriptions;

use super::{Answer, FromShared};

/// Traces, the newest first.
#[utoipa::path(get, path = "/v1/traces", params(TraceQuery), responses((status = 200, body = TraceList)))]
pub async fn list(Extract(shared): FromShared, Query(query): Query<TraceQuery>) -> Answer<TraceList> {
    Ok(Json(shared.traces.list(&query).await?))
}

/// One trace with all that belongs to it, by its id or by the id of a message.
#[utoipa::path(get, path = "/v1/traces/{id}", params(("id" = String, Path)), responses((status = 200, body = Trace)))]
pub async fn show(Extract(shared): FromShared, Path(id): Path<String>) -> Answer<Trace> {
    let look = shared.look(|control| {
        let channels = &control.state.desired.channels;
        let names = channels.iter().map(|(name, of)| (name.clone(), of.subscriptions.keys().cloned().collect()));
        Ok(names.collect::<Subscriptions>())
    });
    let subscriptions = look.await?;
    Ok(Json(shared.traces.show(&id, &subscriptions).await?))
}

/// Takes spans by OTLP/HTTP, an ExportTraceServiceRequest as protobuf or JSON, plain or gzip. The answer is in the form of the
/// request: an ExportTraceServiceResponse, or a google.rpc.Status.
#[utoipa::path(post, path = "/v1/traces",
    request_body(content = Object, content_type = "application/json", description = "ExportTraceServiceRequest"),
    responses((status = 200, description = "ExportTraceServiceResponse", body = Object)))]
pub async fn take(shared: FromShared, headers: HeaderMap, body: HttpBody) -> Response {
    crate::traces::take(Extract(shared.0.traces), headers, body).await
}
