//! `hello`: the smallest service, and the counterpart of tests that look at what arrives and what comes back.
//!
//! | request | answer |
//! |---|---|
//! | `GET` any path | a greeting that names the instance, the path and the trace |
//! | `GET /slow?ms=N` | the same after N milliseconds |
//! | any `/status/CODE` | that status |
//! | any `/echo` | method, path, query, headers and size of the body, as they arrived |
//! | `POST /echo/body` | the body, streamed back as it comes |
//! | any `/upgrade` | 101 to the protocol that was asked for, then every byte comes back |

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::kit::{Context, Kit, Problem};

/// A body that is only counted may be this large.
const COUNTED_BODY_BYTES: usize = 1 << 30;

pub(crate) async fn serve(kit: Kit) -> io::Result<()> {
    let public = Router::new()
        .route("/slow", get(slow))
        .route("/status/{code}", any(status))
        .route("/echo", any(echo))
        .route("/echo/body", post(async |body: Body| body))
        .route("/upgrade", any(upgrade))
        .fallback(hello)
        .with_state(kit.clone());
    let admin =
        Router::new().route("/state", get(async |State(kit): State<Kit>| Json(kit.view()))).with_state(kit.clone());
    kit.serve(public, admin).await
}

async fn hello(State(kit): State<Kit>, context: Context, uri: Uri) -> Json<Value> {
    let instance = kit.instance();
    Json(json!({
        "message": format!("hello from {instance}"),
        "instance": instance,
        "path": uri.path(),
        "traceId": context.trace_id(),
    }))
}

#[derive(Deserialize)]
struct Slow {
    ms: u64,
}

async fn slow(State(kit): State<Kit>, Query(Slow { ms }): Query<Slow>, context: Context, uri: Uri) -> Json<Value> {
    tokio::time::sleep(Duration::from_millis(ms)).await;
    hello(State(kit), context, uri).await
}

async fn status(Path(code): Path<u16>) -> Response {
    match StatusCode::from_u16(code) {
        Ok(status) if code >= 200 => status.into_response(),
        _ => Problem::new(422, "invalid-status", format!("{code} is not the status of an answer: 200 to 999"))
            .into_response(),
    }
}

async fn echo(
    State(kit): State<Kit>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Problem> {
    let body = axum::body::to_bytes(body, COUNTED_BODY_BYTES)
        .await
        .map_err(|why| Problem::new(400, "body-broken", format!("the body broke off: {why}")))?;
    let mut seen: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (name, value) in &headers {
        seen.entry(name.as_str()).or_default().push(String::from_utf8_lossy(value.as_bytes()).into_owned());
    }
    Ok(Json(json!({
        "instance": kit.instance(),
        "method": method.as_str(),
        "path": uri.path(),
        "query": uri.query(),
        "headers": seen,
        "bodyBytes": body.len(),
    })))
}

async fn upgrade(request: Request) -> Response {
    let Some(protocol) = request.headers().get(header::UPGRADE).cloned() else {
        return Problem::new(426, "upgrade-required", "this path speaks after an upgrade: send Upgrade")
            .into_response();
    };
    tokio::spawn(async move {
        // A connection that breaks before or while it speaks has nobody left to tell.
        if let Ok(connection) = hyper::upgrade::on(request).await {
            let (mut from, mut to) = tokio::io::split(hyper_util::rt::TokioIo::new(connection));
            let _broken = tokio::io::copy(&mut from, &mut to).await;
        }
    });
    let headers = [(header::UPGRADE, protocol), (header::CONNECTION, HeaderValue::from_static("upgrade"))];
    (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()
}
