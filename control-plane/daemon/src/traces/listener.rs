//! Where services send spans: OTLP/HTTP on a loopback port, `POST /v1/traces` and nothing else. Whoever can connect is a
//! program of this machine and not more trusted than that: sizes, times and connections are bounded.

use std::io::Read as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::State as Extract;
use axum::http::header::{CONTENT_ENCODING, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router, routing};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use meshctl_api::error::{ApiError, ErrorCode};
use meshctl_drivers::spans::Spans;
use meshctl_model::event::EventSeverity;
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTracePartialSuccess, ExportTraceServiceResponse};
use prost::Message as _;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;

use super::{Traces, otlp};
use crate::control::Message;
use crate::report::Report;

/// Bytes of a body, as it comes and unpacked.
const LARGEST: usize = 16 << 20;
/// How long a client may take to send its headers, and to think before it does.
const HEADERS_WITHIN: Duration = Duration::from_secs(75);
/// How long it may take to send a body.
const BODY_WITHIN: Duration = Duration::from_secs(30);
/// Connections at once; more wait.
const CONNECTIONS: usize = 256;
/// Bytes of headers.
const HEADERS: usize = 64 << 10;

/// The listener as it is wanted, tried again until it is there.
#[derive(Default)]
pub struct Listening {
    at: Option<SocketAddr>,
    task: Option<JoinHandle<()>>,
    /// What was said of why it is not there.
    said: Option<String>,
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.close();
    }
}

impl Listening {
    fn close(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }

    /// Listens there, if it does not already.
    pub async fn at(&mut self, wanted: Option<SocketAddr>, traces: &Traces, messages: &mpsc::Sender<Message>) {
        if self.at != wanted {
            self.close();
            self.said = None;
            self.at = wanted;
        }
        let Some(address) = wanted.filter(|_| self.task.as_ref().is_none_or(JoinHandle::is_finished)) else { return };
        match TcpListener::bind(address).await {
            Ok(listener) => {
                self.task = Some(tokio::spawn(serve(listener, traces.clone())));
                if self.said.take().is_some() {
                    let message = format!("services can send spans to {address} again");
                    tell(messages, EventSeverity::Info, "traces.listening", message, address).await;
                }
            }
            Err(why) => {
                let why = why.to_string();
                if self.said.as_ref() != Some(&why) {
                    let message =
                        format!("services cannot send spans: cannot listen on {address}: {why}; trying again");
                    tell(messages, EventSeverity::Warning, "traces.notListening", message, address).await;
                    self.said = Some(why);
                }
            }
        }
    }
}

async fn tell(
    messages: &mpsc::Sender<Message>,
    severity: EventSeverity,
    kind: &'static str,
    message: String,
    at: SocketAddr,
) {
    let data = json!({"listen": at.to_string()});
    let report = Report::Happened { severity, kind, subject: "traces".into(), message, data };
    // A loop that has ended tells nobody anything.
    let _ = messages.send(Message::Report(report)).await;
}

pub(super) async fn serve(listener: TcpListener, traces: Traces) {
    let nowhere = async || {
        let message = "only POST /v1/traces is here: spans, by OTLP/HTTP";
        let error =
            ApiError::new(ErrorCode::NotFound, message).hint("`meshctl trace` shows traces; see `meshctl help`");
        (StatusCode::NOT_FOUND, Json(error))
    };
    let router = Router::new()
        .route("/v1/traces", routing::post(take))
        .fallback(nowhere)
        .method_not_allowed_fallback(nowhere)
        .with_state(traces);
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(why) => {
                // Out of descriptors, most likely: trying at once would only burn a processor.
                tracing::warn!(%why, "cannot accept who wants to send spans");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let service = TowerToHyperService::new(router.clone());
        tokio::spawn(async move {
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADERS_WITHIN)
                .max_buf_size(HEADERS)
                .serve_connection(TokioIo::new(stream), service);
            if let Err(why) = connection.await {
                tracing::debug!(%why, "a connection for spans broke");
            }
            drop(place);
        });
    }
}

/// In which of both forms somebody speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Protobuf,
    Json,
}

/// `google.rpc.Status`, the body of every refusal.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Refusal {
    /// `google.rpc.Code`.
    #[prost(int32, tag = "1")]
    pub code: i32,
    #[prost(string, tag = "2")]
    pub message: String,
}

impl Form {
    fn of(headers: &HeaderMap) -> Option<Self> {
        let text = headers.get(CONTENT_TYPE)?.to_str().ok()?;
        match text.split(';').next()?.trim().to_ascii_lowercase().as_str() {
            "application/x-protobuf" => Some(Self::Protobuf),
            "application/json" => Some(Self::Json),
            _ => None,
        }
    }

    fn answer(self, status: StatusCode, protobuf: Vec<u8>, text: &Value) -> Response {
        let (kind, body) = match self {
            Self::Protobuf => ("application/x-protobuf", protobuf),
            Self::Json => ("application/json", text.to_string().into_bytes()),
        };
        (status, [(CONTENT_TYPE, kind)], body).into_response()
    }

    fn refuse(self, status: StatusCode, message: String) -> Response {
        let code = match status {
            StatusCode::SERVICE_UNAVAILABLE => 14,
            StatusCode::PAYLOAD_TOO_LARGE => 8,
            StatusCode::REQUEST_TIMEOUT => 4,
            _ => 3,
        };
        let refusal = Refusal { code, message };
        self.answer(status, refusal.encode_to_vec(), &json!({"code": code, "message": refusal.message}))
    }
}

/// Takes spans from a service: OTLP/HTTP, protobuf or JSON, gzip or plain.
pub async fn take(Extract(traces): Extract<Traces>, headers: HeaderMap, body: Body) -> Response {
    let Some(form) = Form::of(&headers) else {
        let message = "a content-type other than application/x-protobuf and application/json".to_owned();
        return Form::Json.refuse(StatusCode::UNSUPPORTED_MEDIA_TYPE, message);
    };
    let packed = match headers.get(CONTENT_ENCODING).map(HeaderValue::as_bytes) {
        None | Some(b"identity" | b"") => false,
        Some(b"gzip") => true,
        Some(_) => {
            let message = "a content-encoding other than gzip".to_owned();
            return form.refuse(StatusCode::UNSUPPORTED_MEDIA_TYPE, message);
        }
    };
    let body = match tokio::time::timeout(BODY_WITHIN, to_bytes(body, LARGEST)).await {
        Ok(Ok(body)) => body,
        Ok(Err(why)) => {
            let too_large =
                std::error::Error::source(&why).is_some_and(|why| why.is::<http_body_util::LengthLimitError>());
            return if too_large {
                form.refuse(StatusCode::PAYLOAD_TOO_LARGE, format!("a body of more than {LARGEST} bytes"))
            } else {
                form.refuse(StatusCode::BAD_REQUEST, format!("a body that broke off: {why}"))
            };
        }
        Err(_) => {
            return form.refuse(StatusCode::REQUEST_TIMEOUT, format!("a body that took more than {BODY_WITHIN:?}"));
        }
    };
    // Unpacking a large one takes a while, in which others want to be served.
    let read = tokio::task::spawn_blocking(move || parse(form, packed, &body)).await;
    let read = match read.unwrap_or_else(|why| Err((StatusCode::BAD_REQUEST, why.to_string()))) {
        Ok(read) => read,
        Err((status, why)) => return form.refuse(status, why),
    };
    let (rejected, why) = (read.rejected, read.why);
    if !read.batch.spans.is_empty() && traces.store.offer(read.batch).is_err() {
        let mut answer = form.refuse(StatusCode::SERVICE_UNAVAILABLE, "more spans than can be stored".to_owned());
        answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
        return answer;
    }
    let partial_success = (rejected > 0).then(|| ExportTracePartialSuccess {
        rejected_spans: i64::try_from(rejected).unwrap_or(i64::MAX),
        error_message: why.unwrap_or_default().to_owned(),
    });
    let text = match &partial_success {
        // A 64-bit number is text in the JSON of protobuf.
        Some(part) => json!({"partialSuccess": {
            "rejectedSpans": part.rejected_spans.to_string(), "errorMessage": part.error_message,
        }}),
        None => json!({}),
    };
    form.answer(StatusCode::OK, ExportTraceServiceResponse { partial_success }.encode_to_vec(), &text)
}

/// # Errors
/// With which status it is refused, and why.
fn parse(form: Form, packed: bool, body: &[u8]) -> Result<otlp::Read, (StatusCode, String)> {
    let bad = |why: String| (StatusCode::BAD_REQUEST, why);
    let mut unpacked = Vec::new();
    let body = if packed {
        // One more than allowed tells what is too large from what is just as large.
        let read = flate2::read::MultiGzDecoder::new(body).take(LARGEST as u64 + 1).read_to_end(&mut unpacked);
        read.map_err(|why| bad(format!("a body that is not gzip: {why}")))?;
        if unpacked.len() > LARGEST {
            return Err((StatusCode::PAYLOAD_TOO_LARGE, format!("a body of more than {LARGEST} bytes when unpacked")));
        }
        unpacked.as_slice()
    } else {
        body
    };
    let request = match form {
        Form::Protobuf => Spans::decode(body).map_err(|why| bad(format!("a body that is no request: {why}")))?,
        Form::Json => serde_json::from_slice(body).map_err(|why| bad(format!("a body that is no request: {why}")))?,
    };
    Ok(otlp::read(request, body.len()))
}
