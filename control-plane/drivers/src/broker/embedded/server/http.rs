//! HTTP on the instance's port: whether it is well, and its metrics.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;

use super::Shared;
use crate::broker::ChannelState;
use crate::broker::embedded::codec::Frame;
use crate::broker::embedded::engine::Command;
use crate::broker::embedded::metrics::Metrics;
use crate::broker::embedded::outbox::Outbox;
use crate::broker::embedded::protocol::{Ask, kind};

/// How long a client may be silent before its next request is there; its connection is a descriptor.
const HEADERS_WITHIN: Duration = Duration::from_secs(30);

pub(super) async fn serve(listener: TcpListener, shared: Shared, metrics: Arc<Metrics>) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(why) => {
                super::wait_after(&why).await;
                continue;
            }
        };
        let (shared, metrics) = (shared.clone(), Arc::clone(&metrics));
        tokio::spawn(async move {
            let answer = service_fn(|request| answer(request, &shared, &metrics));
            // A client that goes away in the middle is its own affair.
            let _ = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADERS_WITHIN)
                .serve_connection(TokioIo::new(stream), answer)
                .await;
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    shared: &Shared,
    metrics: &Metrics,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (status, text) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/healthz" | "/metrics") if !shared.ready.load(Ordering::Acquire) => (
            StatusCode::SERVICE_UNAVAILABLE,
            "the broker checks or salvages its store; it is not ready yet\n".to_owned(),
        ),
        (&Method::GET, "/healthz") if shared.engine.is_closed() => {
            (StatusCode::SERVICE_UNAVAILABLE, "the broker is ending\n".to_owned())
        }
        (&Method::GET, "/healthz") => (StatusCode::OK, "ok\n".to_owned()),
        (&Method::GET, "/metrics") => match state(shared).await {
            Some(channels) => (StatusCode::OK, metrics.render(&channels)),
            None => (StatusCode::SERVICE_UNAVAILABLE, "the broker does not answer now\n".to_owned()),
        },
        (_, path) => (StatusCode::NOT_FOUND, format!("there is nothing at {path}; try /healthz or /metrics\n")),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let plain = header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    Ok(response)
}

/// Asks as a client does, without a socket between.
async fn state(shared: &Shared) -> Option<Vec<ChannelState>> {
    let (outbox, mut out) = Outbox::new(shared.next_connection());
    let reply = outbox.reply(0, None).await;
    shared.engine.send(Command::Ask { ask: Ask::State, reply }).await.ok()?;
    let mut bytes = BytesMut::from(out.recv().await?.bytes.as_ref());
    let frame = Frame::take(&mut bytes).ok()??;
    if frame.kind == kind::DONE { serde_json::from_slice(&frame.body).ok() } else { None }
}
