//! How fast traces are stored and found again. No test: it judges nothing and prints what it sees.
//! `CARGO_PROFILE_RELEASE_LTO=thin CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 cargo test --release -p meshctl-daemon --lib -- --ignored --nocapture measure_traces`

use std::time::{Duration, Instant};

use meshctl_api::view::traces::TraceQuery;
use meshctl_model::trace::{SpanKind, attribute};
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use prost::Message;
use rustix::time::{ClockId, clock_gettime};

use super::id::trace_text;
use super::otlp;
use super::store::{Bounds, Store};
use meshctl_drivers::spans::Spans;

const TRACES: u64 = 1_000_000;
/// Of one request: at the gateway, its attempt, the inner edge, its attempt.
const EACH: u64 = 4;
/// Traces of one batch.
const BATCH: u64 = 500;

fn attribute_of(name: &str, value: Any) -> KeyValue {
    KeyValue { key: name.into(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

/// Numbers without order, so that ids are as random as they are in life.
fn scatter(number: u64) -> u128 {
    let mixed = u128::from(number.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5bd1_e995);
    (mixed << 64) | u128::from(number + 1)
}

fn span(trace: u64, number: u64, now: u64) -> Span {
    let text = |text: &str| Any::StringValue(text.into());
    let server = number.is_multiple_of(2);
    let mut attributes = vec![
        attribute_of(attribute::METHOD, text("POST")),
        attribute_of(attribute::PATH, text("/orders")),
        attribute_of(attribute::STATUS, Any::IntValue(201)),
        attribute_of(attribute::EDGE, text(if number < 2 { "gateway:orders" } else { "orders:inventory" })),
    ];
    if server {
        attributes.push(attribute_of(attribute::ROUTE, text("POST /orders")));
    } else {
        attributes.push(attribute_of(attribute::INSTANCE, text("orders-1")));
        attributes.push(attribute_of(attribute::ATTEMPT, Any::IntValue(1)));
    }
    let start = now + trace * 1000;
    Span {
        trace_id: scatter(trace).to_be_bytes().to_vec(),
        span_id: (trace * 8 + number + 1).to_be_bytes().to_vec(),
        parent_span_id: if number == 0 { Vec::new() } else { (trace * 8 + number).to_be_bytes().to_vec() },
        flags: 1,
        name: if server { "POST /orders".into() } else { "attempt".into() },
        kind: if server { SpanKind::Server as i32 + 1 } else { SpanKind::Client as i32 + 1 },
        start_time_unix_nano: start,
        end_time_unix_nano: start + 3_000_000 + (trace * 7919) % 700_000_000,
        attributes,
        ..Span::default()
    }
}

fn batch(first: u64, now: u64) -> Vec<u8> {
    let spans = (first..first + BATCH).flat_map(|trace| (0..EACH).map(move |number| span(trace, number, now)));
    let scope_spans = vec![ScopeSpans { spans: spans.collect(), ..ScopeSpans::default() }];
    let attributes = vec![attribute_of("service.name", Any::StringValue("gateway".into()))];
    let resource = Some(Resource { attributes, ..Resource::default() });
    Spans { resource_spans: vec![ResourceSpans { resource, scope_spans, ..ResourceSpans::default() }] }.encode_to_vec()
}

/// Processor time of all threads.
fn used() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "it measures, and takes its time"]
async fn measure_traces() {
    let folder = tempfile::tempdir().expect("a folder");
    let (store, _) = Store::open(&folder.path().join("traces.db"), Box::new(|_| ())).expect("opens");
    store.bound(Bounds { max_size: 4 << 30, ..Bounds::default() });
    let now = jiff::Timestamp::now().as_nanosecond() as u64;
    let (begun, before) = (Instant::now(), used());
    let mut making = Duration::ZERO;
    for first in (0..TRACES).step_by(BATCH as usize) {
        let made = Instant::now();
        let bytes = batch(first, now);
        making += made.elapsed();
        let request = Spans::decode(bytes.as_slice()).expect("what was encoded");
        let read = otlp::read(request, bytes.len());
        let mut batch = read.batch;
        // As fast as it goes, with nothing dropped.
        while let Err(full) = store.offer(batch) {
            batch = full;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    store.write(Default::default()).await;
    let (wall, processor) = (begun.elapsed(), used() - before - making);
    let spans = TRACES * EACH;
    let state = store.state().await.expect("a state");
    println!(
        "{spans} spans in {wall:.1?}, {processor:.1?} of a processor without making them: {:.0} spans/s and core; {} MiB, {} bytes a span; dropped {}",
        spans as f64 / processor.as_secs_f64(),
        state.size_bytes >> 20,
        state.size_bytes / spans,
        state.dropped_spans,
    );
    assert_eq!((state.traces, state.spans, state.dropped_spans), (TRACES, spans, 0));
    let mut times: Vec<Duration> = Vec::new();
    for number in 0..500 {
        let asked = trace_text(scatter(number * 1999 % TRACES));
        let begun = Instant::now();
        let found = store.read("look", move |from| super::read::whole(from, &asked)).await.expect("reads");
        times.push(begun.elapsed());
        assert_eq!(found.map(|whole| whole.spans.len()), Some(EACH as usize));
    }
    times.sort();
    println!("by id, among {TRACES}: p50 {:.2?}, p99 {:.2?}, most {:.2?}", times[250], times[495], times[499]);
    for (what, query) in [
        ("newest 50", TraceQuery::default()),
        ("slowest 50", TraceQuery { slowest: true, ..TraceQuery::default() }),
        ("errors", TraceQuery { errors: true, ..TraceQuery::default() }),
        (
            "a filter that nothing meets",
            TraceQuery { filter: Some("service = nobody".into()), ..TraceQuery::default() },
        ),
    ] {
        let wanted = super::read::Wanted::of(&query, jiff::Timestamp::now()).expect("a query");
        let begun = Instant::now();
        let found = store.read("list", move |from| wanted.list(from)).await.expect("lists");
        println!("{what}: {:.1?}, {} found", begun.elapsed(), found.len());
    }
}
