//! The admin socket: HTTP for the control plane on a Unix socket that only its owner can open, and the metrics page,
//! which may also be on TCP.

use std::convert::Infallible;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use meshctl_drivers::spans::frame;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::broadcast::error::RecvError;

use crate::control::{Control, Refusal};
use crate::metrics::{CLASSES, Totals, Vitals};
use crate::page::{durations, family, label, process};
use crate::spans::{self, Source as _};

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// A snapshot of ten thousand services is a tenth of this.
const LARGEST_SNAPSHOT: usize = 256 << 20;
const HEAD_WITHIN: Duration = Duration::from_secs(10);

/// Serves one connection of the admin socket, or, if `metrics_only`, of the metrics address.
pub(crate) async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin, control: Rc<Control>, metrics_only: bool) {
    let service = service_fn(|request| {
        let control = Rc::clone(&control);
        async move { Ok::<_, Infallible>(answer(request, &control, metrics_only).await) }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    let connection =
        http.timer(TokioTimer::new()).header_read_timeout(HEAD_WITHIN).serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "an admin connection ended");
    }
}

async fn answer(request: Request<Incoming>, control: &Rc<Control>, metrics_only: bool) -> Answer {
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => {
            text(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", metrics(control).await)
        }
        (&Method::GET, "/healthz") => text(StatusCode::OK, "text/plain", "ok\n".to_owned()),
        _ if metrics_only => refuse(StatusCode::NOT_FOUND, "only /metrics and /healthz are here"),
        (&Method::PUT, "/snapshot") => put_snapshot(request, control).await,
        (&Method::GET, "/status") => json(StatusCode::OK, &control.status().await),
        (&Method::POST, "/drained") => drained(request.uri().query().unwrap_or(""), control).await,
        (&Method::GET, "/events") => events(control),
        (&Method::GET, "/spans") => spans(request.uri().query(), control).await,
        (method, path) => refuse(StatusCode::NOT_FOUND, &format!("there is no {method} {path}")),
    }
}

async fn put_snapshot(request: Request<Incoming>, control: &Control) -> Answer {
    let body = match Limited::new(request.into_body(), LARGEST_SNAPSHOT).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => return refuse(StatusCode::BAD_REQUEST, &format!("cannot read the snapshot: {error}")),
    };
    let snapshot = match serde_json::from_slice(&body) {
        Ok(snapshot) => snapshot,
        Err(error) => return refuse(StatusCode::UNPROCESSABLE_ENTITY, &format!("this is not a snapshot: {error}")),
    };
    match control.install(snapshot).await {
        Ok(status) => json(StatusCode::OK, &status),
        Err(refusal) => {
            let status = match refusal {
                Refusal::Older { .. } => StatusCode::CONFLICT,
                Refusal::Invalid(_) => StatusCode::UNPROCESSABLE_ENTITY,
                Refusal::Draining | Refusal::WorkerGone => StatusCode::SERVICE_UNAVAILABLE,
            };
            refuse(status, &refusal.to_string())
        }
    }
}

async fn drained(query: &str, control: &Control) -> Answer {
    let value =
        |name: &str| query.split('&').filter_map(|pair| pair.split_once('=')).find(|(n, _)| *n == name).map(|(_, v)| v);
    let endpoints: Vec<String> =
        value("endpoints").unwrap_or("").split(',').filter(|id| !id.is_empty()).map(str::to_owned).collect();
    let Some(within) = value("withinMs").and_then(|ms| ms.parse().ok()).map(Duration::from_millis) else {
        return refuse(StatusCode::BAD_REQUEST, "withinMs=N is missing: how long to wait, in milliseconds");
    };
    if control.drained(&endpoints, within).await {
        json(StatusCode::OK, &serde_json::json!({ "drained": endpoints }))
    } else {
        refuse(StatusCode::GATEWAY_TIMEOUT, &format!("requests to {} are still under way", endpoints.join(", ")))
    }
}

/// One JSON object on a line for each event, from now on. A reader that falls too far behind gets a last line that says
/// so, `{"type":"lagged","missed":N}`; what it missed shows in the status.
fn events(control: &Control) -> Answer {
    let lines = stream::unfold(Some(control.shared.events.subscribe()), async |receiver| {
        let mut receiver = receiver?;
        let (line, receiver) = match receiver.recv().await {
            Ok(event) => (serde_json::to_string(&event).ok()?, Some(receiver)),
            Err(RecvError::Lagged(missed)) => (format!(r#"{{"type":"lagged","missed":{missed}}}"#), None),
            Err(RecvError::Closed) => return None,
        };
        Some((Ok(Frame::data(Bytes::from(line + "\n"))), receiver))
    });
    let mut response = Response::new(BodyExt::boxed_unsync(StreamBody::new(lines)));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    response
}

/// What is recorded, from now on, or what is remembered of some traces: see [`crate::spans`].
async fn spans(query: Option<&str>, control: &Rc<Control>) -> Answer {
    let body = match spans::asked_for(query) {
        Err(why) => return refuse(StatusCode::BAD_REQUEST, &why),
        Ok(Some(traces)) => Full::new(frame(&control.recall(traces).await)).boxed_unsync(),
        Ok(None) => {
            let shared = Arc::clone(&control.shared);
            let frames = spans::stream(Rc::clone(control), async move || shared.recorded.notified().await);
            let frames = stream::unfold(frames, async |mut frames| {
                frames.recv().await.map(|bytes| (Ok(Frame::data(bytes)), frames))
            });
            BodyExt::boxed_unsync(StreamBody::new(frames))
        }
    };
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
    response
}

fn text(status: StatusCode, kind: &'static str, text: String) -> Answer {
    let mut response = Response::new(Full::new(Bytes::from(text)).boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

fn json(status: StatusCode, value: &impl serde::Serialize) -> Answer {
    text(status, "application/json", serde_json::to_string(value).unwrap_or_default())
}

fn refuse(status: StatusCode, why: &str) -> Answer {
    json(status, &serde_json::json!({ "message": why }))
}

/// The whole page in Prometheus' text form.
async fn metrics(control: &Control) -> String {
    let sight = control.sight().await;
    let plan = &sight.plan;
    let mut page = String::new();
    let routes: Vec<(String, Totals)> =
        plan.routes.iter().map(|route| (label("route", &route.state.name), Totals::of(&route.state.metrics))).collect();
    let edges: Vec<(String, Totals)> =
        plan.edges.iter().map(|edge| (label("edge", &edge.state.name), Totals::of(&edge.state.metrics))).collect();
    for (noun, all) in [("route", &routes), ("edge", &edges)] {
        family(
            &mut page,
            &format!("meshctl_{noun}_requests_total"),
            "counter",
            "Requests by class of their answer.",
            |put| {
                for (name, totals) in all {
                    for (class, count) in CLASSES.iter().zip(totals.classes) {
                        put(&format!("{{{name},class=\"{class}\"}}"), count as f64);
                    }
                }
            },
        );
        family(
            &mut page,
            &format!("meshctl_{noun}_fallbacks_total"),
            "counter",
            "Requests answered by the fallback.",
            |put| {
                all.iter().for_each(|(name, totals)| put(&format!("{{{name}}}"), totals.fallbacks as f64));
            },
        );
        let name = format!("meshctl_{noun}_request_duration_seconds");
        durations(&mut page, &name, "From the request's head to the response's.", all);
    }
    family(
        &mut page,
        "meshctl_edge_attempt_failures_total",
        "counter",
        "Attempts that the breaker counts as failed.",
        |put| {
            edges.iter().for_each(|(name, totals)| put(&format!("{{{name}}}"), totals.failures as f64));
        },
    );
    family(&mut page, "meshctl_edge_retries_total", "counter", "Attempts after the first.", |put| {
        edges.iter().for_each(|(name, totals)| put(&format!("{{{name}}}"), totals.retries as f64));
    });
    family(&mut page, "meshctl_edge_breaker_state", "gauge", "1 for the state that the breaker is in.", |put| {
        use meshctl_model::snapshot::BreakerState::{Closed, ForcedClosed, ForcedOpen, HalfOpen, Open};
        for (edge, (name, _)) in plan.edges.iter().zip(&edges) {
            let present = edge.state.breaker.state();
            for state in [Closed, Open, HalfOpen, ForcedOpen, ForcedClosed] {
                let text = state.name();
                put(&format!("{{{name},state=\"{text}\"}}"), f64::from(u8::from(state == present)));
            }
        }
    });
    family(&mut page, "meshctl_edge_in_flight", "gauge", "Requests under way.", |put| {
        plan.edges
            .iter()
            .zip(&edges)
            .for_each(|(e, (name, _))| put(&format!("{{{name}}}"), e.state.bulkhead.taken() as f64));
    });
    family(&mut page, "meshctl_edge_queued", "gauge", "Requests waiting for a place in the bulkhead.", |put| {
        plan.edges
            .iter()
            .zip(&edges)
            .for_each(|(e, (name, _))| put(&format!("{{{name}}}"), e.state.bulkhead.queued() as f64));
    });
    family(&mut page, "meshctl_endpoint_ejected", "gauge", "1 while this gateway leaves the endpoint out.", |put| {
        for endpoint in plan.services.iter().flat_map(|service| &service.endpoints) {
            let names = format!("{{{},{}}}", label("service", &endpoint.service), label("endpoint", &endpoint.id));
            put(&names, f64::from(u8::from(endpoint.ejector.is_out())));
        }
    });
    let vital = |pick: fn(&Vitals) -> &AtomicU64| control.vital(pick) as f64;
    for (name, kind, help, value) in [
        ("connections", "gauge", "Open client connections.", vital(|v| &v.connections)),
        ("connections_total", "counter", "Client connections accepted.", vital(|v| &v.accepted)),
        ("in_flight", "gauge", "Requests under way.", vital(|v| &v.in_flight)),
        ("upstream_connections", "gauge", "Open connections to instances.", vital(|v| &v.upstream_connections)),
        ("upstream_connections_total", "counter", "Connections to instances opened.", vital(|v| &v.upstream_opened)),
        ("accept_errors_total", "counter", "Accepts that failed for want of resources.", vital(|v| &v.accept_errors)),
        ("spans_recorded_total", "counter", "Spans recorded.", vital(|v| &v.spans_recorded)),
        (
            "spans_dropped_total",
            "counter",
            "Spans recorded, and lost before anybody read them.",
            control.spans_dropped() as f64,
        ),
        ("snapshot_revision", "gauge", "Revision of the topology that is live.", plan.snapshot.revision as f64),
        ("snapshot_generation", "gauge", "Generation that is live on every thread.", plan.snapshot.generation as f64),
        (
            "snapshot_unsaved",
            "gauge",
            "1 while the live snapshot could not be saved.",
            f64::from(u8::from(sight.unsaved)),
        ),
        ("listeners_refused", "gauge", "Listeners that could not be opened.", sight.refused as f64),
    ] {
        family(&mut page, &format!("meshctl_gateway_{name}"), kind, help, |put| put("", value));
    }
    process(&mut page);
    page
}
