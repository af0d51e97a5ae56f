//! meshctl's own gateway, spoken to over its admin socket: HTTP on a Unix socket, one connection for each call, so that
//! a call never meets a connection that a restarted gateway has left behind.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use meshctl_model::snapshot::{GatewayEvent, GatewayStatus, Snapshot};
use serde::Deserialize;
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use super::{Gateway, GatewayError};
use crate::Pending;
use crate::socket_path::SocketPath;
use crate::spans::{self, Spans};

pub mod place;

use place::ADMIN_SOCKET;

/// A large snapshot is compiled and synced to disk before it is acknowledged.
const PUSH_WITHIN: Duration = Duration::from_secs(30);
const STATUS_WITHIN: Duration = Duration::from_secs(5);
/// What a wait for drained endpoints may take beyond its own limit.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
const LARGEST_ANSWER: usize = 64 << 20;
/// Events that the receiver has not taken yet; beyond it the gateway's own backlog fills, and then cuts us off.
const EVENTS_WAITING: usize = 256;
/// Batches of spans, likewise; what the gateway then loses it counts.
const SPANS_WAITING: usize = 16;

/// One gateway process.
#[derive(Clone, Debug)]
pub struct EmbeddedGateway {
    id: String,
    dir: PathBuf,
}

/// What the gateway says when it does not do as asked.
#[derive(Deserialize)]
struct Complaint {
    message: String,
}

impl EmbeddedGateway {
    /// `dir` is the folder that the gateway process was given.
    pub fn new(id: impl Into<String>, dir: impl Into<PathBuf>) -> Self {
        Self { id: id.into(), dir: dir.into() }
    }

    async fn request(&self, method: Method, path: &str, body: Vec<u8>) -> Result<Response<Incoming>, GatewayError> {
        let socket = SocketPath::inside(&self.dir, ADMIN_SOCKET).map_err(|e| self.unreachable(&e))?;
        let stream = UnixStream::connect(socket.as_path()).await.map_err(|e| self.unreachable(&e))?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|e| self.unreachable(&e))?;
        // It ends with the response's body; an error of it is an error of the request.
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "gateway")
            .body(Full::new(Bytes::from(body)))
            .map_err(|e| self.refused(e.to_string()))?;
        sender.send_request(request).await.map_err(|e| self.unreachable(&e))
    }

    /// A response whose body goes on for as long as the gateway does.
    async fn endless(&self, path: &str, what: &'static str) -> Result<Response<Incoming>, GatewayError> {
        let answer = tokio::time::timeout(STATUS_WITHIN, self.request(Method::GET, path, Vec::new())).await;
        let response = answer.unwrap_or_else(|_| Err(self.timed_out(what, STATUS_WITHIN)))?;
        if !response.status().is_success() {
            return Err(self.refused(format!("{what} was answered {}", response.status())));
        }
        Ok(response)
    }

    /// One whole exchange.
    async fn call<T: for<'de> Deserialize<'de>>(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
        within: Duration,
        what: &'static str,
    ) -> Result<T, GatewayError> {
        let exchange = async {
            let response = self.request(method, path, body).await?;
            let status = response.status();
            let body = Limited::new(response.into_body(), LARGEST_ANSWER).collect().await;
            let body = body.map_err(|e| self.unreachable(&*e))?.to_bytes();
            if status.is_success() {
                return serde_json::from_slice(&body)
                    .map_err(|e| self.refused(format!("its answer to {what} cannot be read: {e}")));
            }
            let why = serde_json::from_slice::<Complaint>(&body)
                .map_or_else(|_| format!("{what} was answered {status}"), |complaint| complaint.message);
            Err(match status {
                StatusCode::GATEWAY_TIMEOUT => self.timed_out(what, within),
                // On its way down: whoever comes after it can be asked again.
                StatusCode::SERVICE_UNAVAILABLE => GatewayError::Unreachable { id: self.id.clone(), why },
                _ => self.refused(why),
            })
        };
        tokio::time::timeout(within, exchange).await.unwrap_or_else(|_| Err(self.timed_out(what, within)))
    }

    fn unreachable(&self, why: &(impl std::error::Error + ?Sized)) -> GatewayError {
        // hyper tells what happened in the error's source.
        let why = match why.source() {
            Some(source) => format!("{why}: {source}"),
            None => why.to_string(),
        };
        GatewayError::Unreachable { id: self.id.clone(), why }
    }

    fn refused(&self, why: String) -> GatewayError {
        GatewayError::Refused { id: self.id.clone(), why }
    }

    fn timed_out(&self, what: &'static str, within: Duration) -> GatewayError {
        GatewayError::TimedOut { id: self.id.clone(), what, seconds: within.as_secs_f64().ceil() as u64 }
    }
}

impl Gateway for EmbeddedGateway {
    fn push<'a>(&'a self, snapshot: &'a Snapshot) -> Pending<'a, Result<GatewayStatus, GatewayError>> {
        Box::pin(async move {
            let body = serde_json::to_vec(snapshot).map_err(|e| self.refused(format!("cannot write it: {e}")))?;
            self.call(Method::PUT, "/snapshot", body, PUSH_WITHIN, "taking a snapshot").await
        })
    }

    fn status(&self) -> Pending<'_, Result<GatewayStatus, GatewayError>> {
        Box::pin(self.call(Method::GET, "/status", Vec::new(), STATUS_WITHIN, "telling its status"))
    }

    fn drained<'a>(&'a self, endpoints: &'a [String], within: Duration) -> Pending<'a, Result<(), GatewayError>> {
        Box::pin(async move {
            let path = format!("/drained?endpoints={}&withinMs={}", endpoints.join(","), within.as_millis());
            let what = "letting the requests under way end";
            let answer = self.call(Method::POST, &path, Vec::new(), within + ANSWER_WITHIN, what).await;
            answer.map(|_: serde::de::IgnoredAny| ()).map_err(|error| match error {
                GatewayError::TimedOut { .. } => self.timed_out(what, within),
                other => other,
            })
        })
    }

    fn events(&self) -> Pending<'_, Result<mpsc::Receiver<GatewayEvent>, GatewayError>> {
        Box::pin(async move {
            let response = self.endless("/events", "telling its events").await?;
            let (events, receiver) = mpsc::channel(EVENTS_WAITING);
            tokio::spawn(forward(response.into_body(), events, self.id.clone()));
            Ok(receiver)
        })
    }

    fn spans(&self) -> Pending<'_, Result<mpsc::Receiver<Spans>, GatewayError>> {
        Box::pin(async move {
            let response = self.endless("/spans", "telling its spans").await?;
            let (batches, receiver) = mpsc::channel(SPANS_WAITING);
            tokio::spawn(spans::forward(response.into_body(), batches, self.id.clone()));
            Ok(receiver)
        })
    }

    fn recall<'a>(&'a self, trace_ids: &'a [String]) -> Pending<'a, Result<Spans, GatewayError>> {
        Box::pin(async move {
            let what = "recalling traces";
            let exchange = async {
                let response = self.request(Method::GET, &spans::recall_path(trace_ids), Vec::new()).await?;
                if !response.status().is_success() {
                    return Err(self.refused(format!("{what} was answered {}", response.status())));
                }
                let unreachable = |why| GatewayError::Unreachable { id: self.id.clone(), why };
                spans::one(response.into_body()).await.map_err(unreachable)
            };
            let answered = tokio::time::timeout(STATUS_WITHIN, exchange).await;
            answered.unwrap_or_else(|_| Err(self.timed_out(what, STATUS_WITHIN)))
        })
    }
}

/// Reads events, one JSON object on a line, until either side ends. A last line says when the gateway cut us off because
/// we were too slow; to the receiver that is an end like any other. What it missed shows in the status only.
async fn forward(mut body: Incoming, events: mpsc::Sender<GatewayEvent>, id: String) {
    let mut unread = Vec::new();
    loop {
        let frame = tokio::select! {
            frame = body.frame() => frame,
            () = events.closed() => return,
        };
        let Some(Ok(frame)) = frame else { return };
        unread.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
        while let Some(end) = unread.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = unread.drain(..=end).collect();
            match serde_json::from_slice(&line) {
                Ok(event) => {
                    if events.send(event).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    tracing::warn!(gateway = %id, line = %String::from_utf8_lossy(&line), %error, "an event is missing");
                }
            }
        }
    }
}
