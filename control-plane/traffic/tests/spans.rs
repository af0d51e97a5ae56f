//! What gateways and couriers remember of requests and messages, and what they tell of it.

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::Response;
use meshctl_drivers::gateway::Gateway as _;
use meshctl_drivers::spans::{self, Spans};
use meshctl_model::snapshot::{Listener, Serves, Snapshot, Tracing};
use meshctl_model::topology::Fallback;
use meshctl_model::trace::attribute;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use parking_lot::Mutex;
use support::courier::{CHANNEL, Courier, Listener as Subscriber, OK, Says, config, groups, publish, to, with};
use support::memory::Memory;
use support::*;
use tokio::sync::mpsc;

const SAMPLED: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const PARENT: &str = "00f067aa0ba902b7";

/// Nothing is sampled: what is recorded is recorded for what became of it.
fn unsampled(mut snapshot: Snapshot) -> Snapshot {
    snapshot.tracing = Tracing { traces_per_s: 0.0, slow_ms: 60_000 };
    snapshot
}

fn all(batch: Spans) -> Vec<Span> {
    batch.resource_spans.into_iter().flat_map(|of| of.scope_spans).flat_map(|of| of.spans).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn text(span: &Span, name: &str) -> String {
    let value = span.attributes.iter().find(|pair| pair.key == name);
    match value.and_then(|pair| pair.value.as_ref()).and_then(|any| any.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::BoolValue(flag)) => flag.to_string(),
        None => String::new(),
        other => panic!("{other:?}"),
    }
}

/// `SERVER 503`, `CLIENT ! 503 connectFailed`: the kind, whether it failed, its status and its error.
fn told(span: &Span) -> String {
    let kind = span.kind().as_str_name().trim_start_matches("SPAN_KIND_");
    let failed = if span.status.as_ref().is_some_and(|status| status.code == 2) { " !" } else { "" };
    let rest = [attribute::STATUS, attribute::ERROR].map(|name| text(span, name));
    let rest: String = rest.into_iter().filter(|text| !text.is_empty()).map(|text| format!(" {text}")).collect();
    format!("{kind}{failed}{rest}")
}

/// Everything that a process records, as it comes.
struct Told {
    batches: mpsc::Receiver<Spans>,
    seen: Vec<Span>,
}

impl Told {
    async fn by(gateway: &Gateway) -> Self {
        Self { batches: gateway.driver.spans().await.expect("spans"), seen: Vec::new() }
    }

    /// Waits until a span is as wanted; all of its trace, by start.
    async fn until(&mut self, what: &str, wanted: impl Fn(&Span) -> bool) -> Vec<Span> {
        let read = async {
            while !self.seen.iter().any(&wanted) {
                self.seen.extend(all(self.batches.recv().await.expect("it goes on")));
            }
        };
        let read = tokio::time::timeout(Duration::from_secs(20), read).await;
        read.unwrap_or_else(|_| panic!("never: {what}"));
        let trace = self.seen.iter().find(|span| wanted(span)).map(|span| span.trace_id.clone()).unwrap_or_default();
        let mut spans: Vec<Span> = self.seen.iter().filter(|span| span.trace_id == trace).cloned().collect();
        spans.sort_by_key(|span| (span.start_time_unix_nano, span.kind));
        spans
    }

    /// Waits until the request to this path has ended.
    async fn request(&mut self, path: &str) -> Vec<Span> {
        self.until(path, |span| span.kind() == SpanKind::Server && text(span, attribute::PATH) == path).await
    }
}

/// Notes the `traceparent` of each request, and answers with the status that its path begins with.
async fn noting() -> (Origin, Arc<Mutex<Vec<String>>>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let book = Arc::clone(&seen);
    let origin = Origin::new(move |_, request| {
        let parent = request.headers()["traceparent"].to_str().expect("text").to_owned();
        book.lock().push(parent);
        let status = request.uri().path()[1..].parse().unwrap_or(200);
        async move { say(status, "") }
    });
    (origin.await, seen)
}

fn trace_id<B>(response: &Response<B>) -> String {
    response.headers()["meshctl-trace-id"].to_str().expect("text").to_owned()
}

#[tokio::test]
async fn a_retried_request_is_one_span_above_two() {
    let parents = Arc::new(Mutex::new(Vec::new()));
    let book = Arc::clone(&parents);
    let origin = Origin::new(move |number, request| {
        book.lock().push(request.headers()["traceparent"].to_str().expect("text").to_owned());
        async move { say(if number == 0 { 503 } else { 200 }, "") }
    });
    let gateway = Gateway::serving(&unsampled(snapshot(free_address(), &[origin.await.address]))).await;
    let mut told_by = Told::by(&gateway).await;
    let answer = ask(gateway.address, get("/orders/7?secret=1")).await;
    assert_eq!(answer.status(), 200);
    let spans = told_by.request("/orders/7").await;
    let [server, first, second] = spans.as_slice() else { panic!("{spans:#?}") };
    assert_eq!(spans.iter().map(told).collect::<Vec<_>>(), ["SERVER 200", "CLIENT ! 503", "CLIENT 200"]);
    assert_eq!((hex(&server.trace_id), server.parent_span_id.len()), (trace_id(&answer), 0));
    assert_eq!((&first.parent_span_id, &second.parent_span_id), (&server.span_id, &server.span_id));
    assert_eq!((server.name.as_str(), first.name.as_str()), ("GET /*", "GET web"));
    assert_eq!([1, 2].map(|at| text(&spans[at], attribute::ATTEMPT)), ["1", "2"]);
    assert_eq!(text(second, attribute::INSTANCE), "web-0");
    assert_eq!([attribute::EDGE, attribute::ROUTE].map(|name| text(server, name)), ["gateway:web", "everything"]);
    let carried = |span: &Span| format!("00-{}-{}-00", hex(&span.trace_id), hex(&span.span_id));
    assert_eq!(*parents.lock(), [carried(first), carried(second)], "who is called knows which attempt it is");
}

#[tokio::test]
async fn what_is_fast_and_unsampled_is_remembered_and_not_recorded() {
    let (origin, _) = noting().await;
    let gateway = Gateway::serving(&unsampled(snapshot(free_address(), &[origin.address]))).await;
    let mut told_by = Told::by(&gateway).await;
    let mut client = connect(gateway.address).await;
    let fast = whole(client.send_request(get("/fast")).await.expect("an answer")).await;
    client.ready().await.expect("kept alive");
    whole(client.send_request(get("/500")).await.expect("an answer")).await;
    let failed = told_by.request("/500").await;
    assert_eq!(failed.iter().map(told).collect::<Vec<_>>(), ["SERVER ! 500", "CLIENT ! 500"]);
    // Both requests were of one connection, hence of one thread: the first would have come before.
    assert!(told_by.seen.iter().all(|span| text(span, attribute::PATH) != "/fast"), "{:#?}", told_by.seen);
    let recalled = all(gateway.driver.recall(&[trace_id(&fast), "f".repeat(32)]).await.expect("remembered"));
    let mut recalled: Vec<String> = recalled.iter().map(told).collect();
    recalled.sort();
    assert_eq!(recalled, ["CLIENT 200", "SERVER 200"]);
    assert!(gateway.driver.recall(&["nonsense".to_owned()]).await.is_err());
}

#[tokio::test]
async fn what_is_slow_is_recorded_whatever_its_flag() {
    let (origin, parents) = noting().await;
    let mut snapshot = unsampled(snapshot(free_address(), &[origin.address]));
    snapshot.tracing.slow_ms = 0;
    let gateway = Gateway::serving(&snapshot).await;
    let mut told_by = Told::by(&gateway).await;
    ask(gateway.address, get("/slow")).await;
    let spans = told_by.request("/slow").await;
    assert_eq!(spans.iter().map(|span| span.flags).collect::<Vec<_>>(), [0, 0]);
    assert!(parents.lock()[0].ends_with("-00"));
}

#[tokio::test]
async fn a_client_cannot_have_more_sampled_than_there_is_room_for_and_inside_everybody_follows() {
    let (origin, parents) = noting().await;
    let inside = free_address();
    let mut snapshot = snapshot(free_address(), &[origin.address]);
    snapshot.listeners.push(Listener { address: inside, serves: Serves::Edge("gateway:web".into()) });
    // One, and then none for a quarter of an hour.
    snapshot.tracing = Tracing { traces_per_s: 0.001, slow_ms: 60_000 };
    let gateway = Gateway::serving(&snapshot).await;
    let mut told_by = Told::by(&gateway).await;
    let wish = async |address: SocketAddr, path: &str| ask(address, with(get(path), &[("traceparent", SAMPLED)])).await;
    wish(gateway.address, "/first").await;
    let first = told_by.request("/first").await;
    assert_eq!(first.iter().map(|span| span.flags).collect::<Vec<_>>(), [1, 1]);
    assert_eq!(hex(&first[0].parent_span_id), PARENT);
    wish(gateway.address, "/second").await;
    wish(inside, "/third").await;
    ask(inside, with(get("/fourth"), &[("traceparent", &SAMPLED.replace("-01", "-00"))])).await;
    let third = told_by.request("/third").await;
    assert!(third.iter().any(|span| span.name == "GET /third"), "an edge is told by its path");
    let flags: Vec<String> = parents.lock().iter().map(|parent| parent[52..].to_owned()).collect();
    assert_eq!(flags, ["-01", "-00", "-01", "-00"]);
    assert!(parents.lock().iter().all(|parent| parent[..35] == SAMPLED[..35]), "one trace");
}

#[tokio::test]
async fn every_end_of_a_request_is_told() {
    let nobody = free_address();
    let mut snapshot = snapshot(free_address(), &[nobody]);
    snapshot.tracing = Tracing { traces_per_s: 1000.0, slow_ms: 60_000 };
    snapshot.routes = vec![
        route("plain", "/plain", "gateway:web", &snapshot.routes[0].policy),
        route("fallback", "/fallback", "gateway:web", &snapshot.routes[0].policy),
    ];
    let given = Fallback { status: Some(200), body: "{}".into(), content_type: None };
    snapshot.routes[1].policy.fallback = Some(given);
    snapshot = with_policy(snapshot, |policy| {
        policy.retry.attempts = 0;
        policy.breaker.minimum_requests = 1;
        policy.breaker.open_for = meshctl_model::units::Span::from_secs(600);
    });
    let gateway = Gateway::serving(&snapshot).await;
    let mut told_by = Told::by(&gateway).await;
    let mut first = async |path: &str| {
        ask(gateway.address, get(path)).await;
        let spans = told_by.request(path).await;
        (spans.iter().map(told).collect::<Vec<_>>(), spans)
    };
    let (nowhere, spans) = first("/nowhere").await;
    assert_eq!((nowhere, spans[0].name.as_str()), (vec!["SERVER 404 noRoute".into()], "GET /nowhere"));
    let (unreached, spans) = first("/plain").await;
    assert_eq!(unreached, ["SERVER ! 502 connectFailed", "CLIENT ! connectFailed"]);
    let words = spans[1].status.as_ref().map(|status| status.message.clone()).unwrap_or_default();
    assert!(words.contains("cannot connect to web-0"), "{words}");
    let (fallback, spans) = first("/fallback").await;
    assert_eq!(fallback, ["SERVER 200 breakerOpen"], "answered, and no attempt was made");
    assert_eq!(text(&spans[0], attribute::FALLBACK), "true");
    let page = gateway.metrics().await;
    assert!(page.contains("meshctl_gateway_spans_recorded_total 4\n"), "{page}");
    assert!(page.contains("meshctl_gateway_spans_dropped_total 0\n"), "{page}");
}

#[tokio::test]
async fn a_client_that_goes_away_is_told_as_an_error() {
    let arrived = Arc::new(tokio::sync::Notify::new());
    let tell = Arc::clone(&arrived);
    let origin = Origin::new(move |_, _| {
        tell.notify_one();
        std::future::pending::<Response<http_body_util::Full<bytes::Bytes>>>()
    });
    let gateway = Gateway::serving(&unsampled(snapshot(free_address(), &[origin.await.address]))).await;
    let mut told_by = Told::by(&gateway).await;
    let mut client = tokio::net::TcpStream::connect(gateway.address).await.expect("connected");
    let request = b"GET /gone HTTP/1.1\r\nhost: test\r\n\r\n";
    tokio::io::AsyncWriteExt::write_all(&mut client, request).await.expect("sent");
    arrived.notified().await;
    // A reset: one that only says its last may still be listening.
    client.set_zero_linger().expect("a socket");
    drop(client);
    let spans = told_by.request("/gone").await;
    assert_eq!(spans.iter().map(told).collect::<Vec<_>>(), ["SERVER ! cancelled", "CLIENT ! cancelled"]);
}

#[tokio::test]
async fn a_body_that_breaks_off_is_told_again() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("an address");
    let half = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let mut head = [0; 4096];
        tokio::io::AsyncReadExt::read(&mut stream, &mut head).await.expect("a request");
        let half = b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf";
        tokio::io::AsyncWriteExt::write_all(&mut stream, half).await.expect("sent");
    });
    let mut snapshot = snapshot(free_address(), &[address]);
    snapshot.tracing = Tracing { traces_per_s: 1000.0, slow_ms: 60_000 };
    let gateway = Gateway::serving(&snapshot).await;
    let mut told_by = Told::by(&gateway).await;
    let response = connect(gateway.address).await.send_request(get("/half")).await.expect("a head");
    assert!(http_body_util::BodyExt::collect(response.into_body()).await.is_err(), "it broke");
    half.await.expect("answered");
    let broken = |span: &Span| text(span, attribute::ERROR) == "bodyBroken";
    let spans = told_by.until("it broke", broken).await;
    let last = spans.iter().rfind(|span| span.kind() == SpanKind::Server).expect("a request");
    assert_eq!(told(last), "SERVER ! 200 bodyBroken");
    assert!(spans.iter().filter(|span| span.kind() == SpanKind::Server).all(|span| span.span_id == last.span_id));
}

#[tokio::test]
async fn another_reader_takes_over_and_what_nobody_read_waits() {
    let (origin, _) = noting().await;
    let gateway = Gateway::serving(&unsampled(snapshot(free_address(), &[origin.address]))).await;
    ask(gateway.address, get("/500")).await;
    let mut first = Told::by(&gateway).await;
    first.request("/500").await;
    let mut second = Told::by(&gateway).await;
    while first.batches.recv().await.is_some() {}
    ask(gateway.address, get("/501")).await;
    second.request("/501").await;
    assert!(second.seen.iter().all(|span| text(span, attribute::PATH) != "/500"), "once");
}

#[tokio::test]
async fn a_published_message_and_its_deliveries_are_one_trace() {
    let mut subscriber =
        Subscriber::new(|_, before| if before == 0 { Says(500, Duration::ZERO, None) } else { OK }).await;
    let mut config = config([("billing", to(subscriber.address()))]);
    config.tracing = Tracing { traces_per_s: 0.0, slow_ms: 60_000 };
    let memory = Arc::new(Memory::new(groups(&config)));
    let courier = Courier::new(config, memory).await;
    let batches = spans::follow(courier.address).await.expect("spans");
    let mut told_by = Told { batches, seen: Vec::new() };
    let accepted = courier.send(with(publish(CHANNEL, "{}"), &[("traceparent", SAMPLED)])).await;
    let id = serde_json::from_str::<serde_json::Value>(accepted.body()).expect("JSON")["messageId"].clone();
    let got = subscriber.until("delivered", |got| got.len() == 2).await;
    let processed = |span: &Span| text(span, attribute::OUTCOME) == "processed";
    let spans = told_by.until("processed", processed).await;
    let [published, failed, delivered] = spans.as_slice() else { panic!("{spans:#?}") };
    assert_eq!(
        spans.iter().map(|span| (span.name.as_str(), told(span))).collect::<Vec<_>>(),
        [
            ("publish order.placed", "PRODUCER".to_owned()),
            ("deliver order.placed/billing", "CONSUMER ! 500 refused".to_owned()),
            ("deliver order.placed/billing", "CONSUMER".to_owned()),
        ]
    );
    assert_eq!((hex(&published.trace_id), hex(&published.parent_span_id)), (SAMPLED[3..35].into(), PARENT.into()));
    assert_eq!((&failed.parent_span_id, &delivered.parent_span_id), (&published.span_id, &published.span_id));
    assert_eq!(spans.iter().map(|span| text(span, attribute::MESSAGE_ID)).collect::<Vec<_>>(), vec![id; 3]);
    assert_eq!([failed, delivered].map(|span| text(span, attribute::ATTEMPT)), ["1", "2"]);
    assert_eq!(text(failed, attribute::OUTCOME), "retried");
    assert!(text(failed, attribute::NOT_BEFORE).parse::<jiff::Timestamp>().is_ok(), "{failed:#?}");
    let carried: Vec<&str> = got.iter().map(|got| &got.header("traceparent")[36..52]).collect();
    assert_eq!(carried, [hex(&failed.span_id), hex(&delivered.span_id)]);
    let recalled = spans::recall(courier.address, &[SAMPLED[3..35].to_owned()]).await.expect("remembered");
    assert_eq!(all(recalled).len(), 3);
    // A reader does not keep a courier from ending.
    courier.end().await;
    while told_by.batches.recv().await.is_some() {}
}

#[tokio::test]
async fn a_subscriber_that_is_away_shows_in_what_became_of_its_attempts() {
    let away = free_address();
    let mut config = config([("billing", to(away))]);
    config.tracing = Tracing { traces_per_s: 0.0, slow_ms: 60_000 };
    let memory = Arc::new(Memory::new(groups(&config)));
    let courier = Courier::new(config, memory).await;
    let batches = spans::follow(courier.address).await.expect("spans");
    let mut told_by = Told { batches, seen: Vec::new() };
    courier.publish(CHANNEL, "{}").await;
    let state = |span: &Span| text(span, attribute::SUBSCRIPTION_STATE);
    let spans = told_by.until("a probe", |span| state(span) == "probing").await;
    let deliveries: Vec<&Span> = spans.iter().filter(|span| span.kind() == SpanKind::Consumer).collect();
    assert_eq!((state(deliveries[0]).as_str(), told(deliveries[0]).as_str()), ("paused", "CONSUMER ! unreachable"));
    assert!(deliveries.iter().all(|span| text(span, attribute::OUTCOME) == "waits" && span.flags == 0));
    courier.end().await;
}
