//! The store, what feeds it and what shows it.

mod http;
mod recall;
mod store;

use std::sync::{Arc, Mutex};

use jiff::Timestamp;
use meshctl_model::trace::{Span, SpanKind, SpanLink, SpanStatus, attribute};
use serde_json::Value;

use super::id::{span_text, trace_text};
use super::read::{Whole, whole};
use super::store::{Batch, Notice, Store};

/// A span of the service `orders` that took 10 ms, `at` milliseconds after a moment of long ago.
fn span(trace: u128, id: u64, parent: Option<u64>, at: i64) -> Span {
    Span {
        trace_id: trace_text(trace),
        span_id: span_text(id),
        parent_span_id: parent.map(span_text),
        links: Vec::new(),
        service: "orders".into(),
        operation: format!("operation {id}"),
        kind: SpanKind::Server,
        start_at: Timestamp::from_millisecond(1_800_000_000_000 + at).expect("a time"),
        duration_ms: 10.0,
        status: SpanStatus::Unset,
        message: None,
        attributes: Default::default(),
    }
}

trait With {
    fn with(self, name: &str, value: impl Into<Value>) -> Self;
    fn failed(self) -> Self;
    fn lasting(self, ms: f64) -> Self;
    fn by(self, service: &str) -> Self;
    fn linked(self, trace: u128, span: u64) -> Self;
    fn message(self, id: &str) -> Self;
}

impl With for Span {
    fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.attributes.insert(name.into(), value.into());
        self
    }

    fn failed(self) -> Self {
        Self { status: SpanStatus::Error, ..self }
    }

    fn lasting(self, ms: f64) -> Self {
        Self { duration_ms: ms, ..self }
    }

    fn by(self, service: &str) -> Self {
        Self { service: service.into(), ..self }
    }

    fn linked(mut self, trace: u128, span: u64) -> Self {
        self.links.push(SpanLink { trace_id: trace_text(trace), span_id: span_text(span) });
        self
    }

    fn message(self, id: &str) -> Self {
        self.with(attribute::MESSAGE_ID, id)
    }
}

fn batch(spans: Vec<Span>) -> Batch {
    let bytes = spans.len() << 10;
    Batch { spans, bytes }
}

async fn find(store: &Store, asked: &str) -> Option<Whole> {
    let asked = asked.to_owned();
    store.read("look", move |from| whole(from, &asked)).await.expect("reads")
}

/// A store that notes what it tells.
fn open(path: &std::path::Path) -> (Store, Arc<Mutex<Vec<Notice>>>) {
    let told: Arc<Mutex<Vec<Notice>>> = Arc::default();
    let tell = Arc::clone(&told);
    let (store, aside) =
        Store::open(path, Box::new(move |notice| tell.lock().expect("a lock").push(notice))).expect("opens");
    assert_eq!(aside, None);
    (store, told)
}
