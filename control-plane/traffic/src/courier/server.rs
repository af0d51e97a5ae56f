//! What a courier serves on its port: publishes, its health, its status, its metrics.

use std::convert::Infallible;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use meshctl_drivers::spans::frame;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::{Courier, publish};
use crate::body::Body;
use crate::problem::{Cause, Place, Problem};
use crate::spans::{self, Source as _};
use crate::trace::{self, Trace};

const HEAD_WITHIN: Duration = Duration::from_secs(30);
/// Others wait until one of these ends.
const CONNECTIONS: usize = 4096;
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves until asked to end, and then until the requests under way have their answers.
pub(crate) async fn serve(courier: Rc<Courier>, listener: TcpListener, mut ending: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            _ = ending.wait_for(|ending| *ending) => break,
            accepted = listener.accept(), if connections.len() < CONNECTIONS => accepted,
            Some(_ended) = connections.join_next() => continue,
        };
        match accepted {
            Ok((stream, _)) => drop(connections.spawn_local(connection(Rc::clone(&courier), stream, ending.clone()))),
            Err(error) => {
                tracing::warn!(%error, "cannot accept connections; waiting");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    // Who connected before is served: closing the listener would reset them.
    while let Some(Ok((stream, _))) = futures_util::FutureExt::now_or_never(listener.accept()) {
        connections.spawn_local(connection(Rc::clone(&courier), stream, ending.clone()));
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn connection(courier: Rc<Courier>, stream: TcpStream, mut ending: watch::Receiver<bool>) {
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let service = service_fn(|request| {
        let courier = Rc::clone(&courier);
        async move { Ok::<_, Infallible>(answer(&courier, request).await) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_WITHIN);
    let mut connection = pin!(http.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        _ = ending.wait_for(|ending| *ending) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended");
    }
}

async fn answer(courier: &Courier, request: Request<Incoming>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    // Only what is published is worth a trace.
    let sample =
        |said: Option<bool>| said.unwrap_or_else(|| path.starts_with("/channels/") && courier.recorder.samples());
    let trace = Trace::of(request.headers(), rand::random, sample);
    let result = match (request.method(), path.as_str()) {
        (&Method::GET, "/spans") => spans(courier, request.uri().query()).await,
        (&Method::GET | &Method::HEAD, "/healthz") => Ok(health(courier)),
        (&Method::GET, "/status") => {
            let status = serde_json::to_string(&courier.report.status()).unwrap_or_default();
            Ok(text(StatusCode::OK, "application/json", status))
        }
        (&Method::GET, "/metrics") => Ok(text(
            StatusCode::OK,
            "text/plain; version=0.0.4; charset=utf-8",
            courier.report.metrics(courier.recorder.counts()),
        )),
        (method, path) => match path.strip_prefix("/channels/").and_then(|rest| rest.strip_suffix("/messages")) {
            Some(name) if method == Method::POST => {
                // Clients encode more or less of a path; one that is no text is the name of no channel.
                let decoded = percent_encoding::percent_decode_str(name).decode_utf8();
                publish::publish(courier, decoded.as_deref().unwrap_or(name), request, &trace).await
            }
            Some(_) => {
                let mut problem = Problem::new(Cause::MethodNotAllowed, format!("messages are POSTed to {path}"));
                problem.allow = Some(HeaderValue::from_static("POST"));
                Err(problem)
            }
            None => {
                let why = format!("{method} {path} is not here; messages are POSTed to /channels/NAME/messages");
                Err(Problem::new(Cause::NoRoute, why))
            }
        },
    };
    let mut response =
        result.unwrap_or_else(|problem| problem.into_response(Place { trace_id: &trace.id(), ..Place::default() }));
    response.headers_mut().insert(trace::TRACE_ID, trace.id_header());
    response
}

/// Healthy once every group was joined; a broker that goes away later is no reason to be started anew.
fn health(courier: &Courier) -> Response<Body> {
    let report = &courier.report;
    if report.ready.get() {
        return text(StatusCode::OK, "text/plain", "delivering\n".to_owned());
    }
    let why = format!("{} of {} groups joined\n", report.joined.get(), report.groups.get());
    text(StatusCode::SERVICE_UNAVAILABLE, "text/plain", why)
}

/// What is recorded, from now on, or what is remembered of some traces: see [`crate::spans`].
async fn spans(courier: &Courier, query: Option<&str>) -> Result<Response<Body>, Problem> {
    let recorder = &courier.recorder;
    let body = match spans::asked_for(query).map_err(|why| Problem::new(Cause::BadRequest, why))? {
        Some(traces) => Body::full(frame(&recorder.recall(traces).await)),
        None => {
            let waiting = recorder.waiting();
            Body::stream(spans::stream(Rc::clone(recorder), async move || waiting.notified().await))
        }
    };
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
    Ok(response)
}

fn text(status: StatusCode, kind: &'static str, text: String) -> Response<Body> {
    let mut response = Response::new(Body::full(text));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
