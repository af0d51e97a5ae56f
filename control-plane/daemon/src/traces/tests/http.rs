//! What services send, over a real connection.

use std::io::Write;
use std::net::SocketAddr;

use meshctl_drivers::spans::Spans;
use meshctl_model::trace::SpanStatus;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message as _;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::super::Traces;
use super::super::id::trace_text;
use super::super::listener::{Listening, Refusal, serve};
use super::super::store::ROOM;
use super::find;
use crate::control::Message;
use crate::report::Report;

struct Service {
    _folder: tempfile::TempDir,
    traces: Traces,
    address: SocketAddr,
    http: reqwest::Client,
}

impl Service {
    async fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let (messages, _told) = mpsc::channel(8);
        let (traces, _) = Traces::open(&folder.path().join("traces.db"), messages).expect("opens");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listens");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(serve(listener, traces.clone()));
        Self {
            _folder: folder,
            traces,
            address,
            http: reqwest::Client::builder().no_proxy().build().expect("a client"),
        }
    }

    async fn post(&self, kind: &str, encoding: Option<&str>, body: Vec<u8>) -> (u16, String, Vec<u8>) {
        let mut request = self.http.post(format!("http://{}/v1/traces", self.address)).header("content-type", kind);
        if let Some(encoding) = encoding {
            request = request.header("content-encoding", encoding);
        }
        let answer = request.body(body).send().await.expect("an answer");
        let kind = answer.headers()["content-type"].to_str().expect("text").to_owned();
        (answer.status().as_u16(), kind, answer.bytes().await.expect("a body").to_vec())
    }
}

const PROTOBUF: &str = "application/x-protobuf";
const JSON: &str = "application/json; charset=utf-8";

/// As the specification of OTLP has it, with a span that is none.
fn request(trace: u128) -> Value {
    json!({"resourceSpans": [{
        "resource": {"attributes": [
            {"key": "service.name", "value": {"stringValue": "billing"}},
            {"key": "process.pid", "value": {"intValue": "17"}}
        ]},
        "scopeSpans": [{"scope": {"name": "my.library", "version": "1.0.0"}, "spans": [
            {
                "traceId": trace_text(trace).to_uppercase(), "spanId": "EEE19B7EC3C1B174",
                "parentSpanId": "EEE19B7EC3C1B173", "name": "charge", "kind": 5, "flags": 1,
                "startTimeUnixNano": "1800000000000000000", "endTimeUnixNano": 1_800_000_000_012_500_000_u64,
                "status": {"code": 2},
                "attributes": [
                    {"key": "messaging.message.id", "value": {"stringValue": format!("m-{trace}")}},
                    {"key": "amount", "value": {"doubleValue": 1.5}},
                    {"key": "count", "value": {"intValue": "-3"}},
                    {"key": "tags", "value": {"arrayValue": {"values": [{"stringValue": "a"}, {"boolValue": true}]}}}
                ],
                "links": [{"traceId": trace_text(trace + 1), "spanId": "EEE19B7EC3C1B170"}],
                "events": [{"name": "exception", "timeUnixNano": "1800000000000000000", "attributes": [
                    {"key": "exception.message", "value": {"stringValue": "no such card"}}]}]
            },
            {"traceId": "00000000000000000000000000000000", "spanId": "EEE19B7EC3C1B174", "name": "none"}
        ]}]
    }]})
}

fn gzip(body: &[u8]) -> Vec<u8> {
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packer.write_all(body).expect("packs");
    packer.finish().expect("packs")
}

#[tokio::test]
async fn spans_come_in_both_forms_packed_or_not() {
    let service = Service::new().await;
    let ways = [(PROTOBUF, None), (PROTOBUF, Some("gzip")), (JSON, None), (JSON, Some("gzip"))];
    for (trace, (kind, encoding)) in (0..).map(|n| 100 + 2 * n).zip(ways) {
        let value = request(trace);
        let body = match kind {
            JSON => value.to_string().into_bytes(),
            _ => serde_json::from_value::<Spans>(value).expect("OTLP").encode_to_vec(),
        };
        let body = if encoding.is_some() { gzip(&body) } else { body };
        let (status, answered, body) = service.post(kind, encoding, body).await;
        assert_eq!((status, answered.as_str()), (200, kind.split(';').next().expect("a type")));
        let (rejected, why) = match kind {
            JSON => {
                let part = serde_json::from_slice::<Value>(&body).expect("JSON")["partialSuccess"].clone();
                (part["rejectedSpans"].as_str().map(str::to_owned), part["errorMessage"].to_string())
            }
            _ => {
                let answer = ExportTraceServiceResponse::decode(body.as_slice()).expect("a response");
                let part = answer.partial_success.expect("a part");
                (Some(part.rejected_spans.to_string()), part.error_message)
            }
        };
        assert_eq!(rejected.as_deref(), Some("1"));
        assert!(why.contains("trace id"), "{why}");
        service.traces.store.write(Default::default()).await;
        let whole = find(&service.traces.store, &format!("m-{trace}")).await.expect("is there");
        let [span] = whole.spans.as_slice() else { panic!("{whole:?}") };
        assert_eq!((span.trace_id.clone(), span.span_id.as_str()), (trace_text(trace), "eee19b7ec3c1b174"));
        assert_eq!((span.service.as_str(), span.operation.as_str(), span.duration_ms), ("billing", "charge", 12.5));
        assert_eq!((span.status, span.message.as_deref()), (SpanStatus::Error, Some("no such card")));
        assert_eq!(span.links[0].trace_id, trace_text(trace + 1));
        let attributes =
            json!({"messaging.message.id": format!("m-{trace}"), "amount": 1.5, "count": -3, "tags": ["a", true]});
        assert_eq!(serde_json::to_value(&span.attributes).expect("JSON"), attributes);
    }
}

#[tokio::test]
async fn what_is_nothing_is_refused_in_the_form_in_which_it_came() {
    let service = Service::new().await;
    let bomb = gzip(&vec![b' '; 20 << 20]);
    assert!(bomb.len() < 1 << 20);
    for (kind, encoding, body, status, says) in [
        (PROTOBUF, None, b"\xff\xff\xff".to_vec(), 400, "no request"),
        (JSON, None, b"{\"resourceSpans\": 7}".to_vec(), 400, "no request"),
        (JSON, None, b"[".repeat(100_000), 400, "no request"),
        (JSON, Some("gzip"), b"{}".to_vec(), 400, "not gzip"),
        (JSON, Some("gzip"), bomb, 413, "when unpacked"),
        (PROTOBUF, None, vec![0; (16 << 20) + 1], 413, "more than"),
        (PROTOBUF, Some("zstd"), Vec::new(), 415, "content-encoding"),
        ("text/plain", None, Vec::new(), 415, "content-type"),
    ] {
        let (answered, form, body) = service.post(kind, encoding, body).await;
        let message = match form.as_str() {
            PROTOBUF => Refusal::decode(body.as_slice()).expect("a status").message,
            _ => serde_json::from_slice::<Value>(&body).expect("JSON")["message"].to_string(),
        };
        assert_eq!((answered, form == PROTOBUF), (status, kind == PROTOBUF), "{message}");
        assert!(message.contains(says), "{message}");
    }
    // Nothing in it is no mistake.
    assert_eq!(service.post(PROTOBUF, None, Vec::new()).await, (200, PROTOBUF.into(), Vec::new()));
    assert_eq!(service.post(JSON, None, b"{}".to_vec()).await, (200, "application/json".into(), b"{}".to_vec()));
    let http = &service.http;
    for (method, path) in [("GET", "/v1/traces"), ("POST", "/v1/metrics"), ("GET", "/v1/services")] {
        let url = format!("http://{}{path}", service.address);
        let answer = http.request(method.parse().expect("a method"), url).send().await.expect("an answer");
        assert_eq!(answer.status().as_u16(), 404, "{method} {path}");
        assert!(answer.text().await.expect("a body").contains("only POST /v1/traces is here"));
    }
}

#[tokio::test]
async fn a_service_is_asked_to_come_again_where_there_is_no_room() {
    let service = Service::new().await;
    let all = service.traces.store.room.clone().acquire_many_owned(ROOM as u32).await.expect("all of it");
    let url = format!("http://{}/v1/traces", service.address);
    let send = async || {
        let request = service.http.post(&url).header("content-type", "application/json");
        request.body(request_body()).send().await.expect("an answer")
    };
    let refused = send().await;
    assert_eq!((refused.status().as_u16(), refused.headers()["retry-after"].as_bytes()), (503, b"1".as_slice()));
    drop(all);
    assert_eq!(send().await.status().as_u16(), 200);
    assert_eq!(service.traces.store.state().await.expect("a state").dropped_spans, 0, "the service still has them");
}

fn request_body() -> String {
    request(500).to_string()
}

#[tokio::test]
async fn a_port_that_is_taken_is_tried_again_and_said_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let (messages, mut told) = mpsc::channel(8);
    let (traces, _) = Traces::open(&folder.path().join("traces.db"), messages.clone()).expect("opens");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("listens");
    let address = taken.local_addr().expect("an address");
    let mut listening = Listening::default();
    for _ in 0..3 {
        listening.at(Some(address), &traces, &messages).await;
    }
    drop(taken);
    listening.at(Some(address), &traces, &messages).await;
    let answer =
        reqwest::Client::builder().no_proxy().build().expect("a client").get(format!("http://{address}/")).send().await;
    assert_eq!(answer.expect("an answer").status().as_u16(), 404);
    let mut heard = Vec::new();
    while let Ok(Message::Report(Report::Happened { kind, message, .. })) = told.try_recv() {
        heard.push((kind, message.contains(&address.to_string())));
    }
    assert_eq!(heard, [("traces.notListening", true), ("traces.listening", true)]);
    listening.at(None, &traces, &messages).await;
    drop(std::net::TcpListener::bind(address));
}
