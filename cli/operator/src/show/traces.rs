//! Traces in a list, and what to do next about one.

use std::collections::BTreeSet;

use jiff::Timestamp;
use meshctl_api::view::traces::{Trace, TraceSummary};
use meshctl_model::trace::{Span, SpanStatus, Subscriptions, Tree, assemble, attribute};

use super::{Item, Listing, milliseconds};
use crate::kinds::Kind;
use crate::output::{Cell, age};
use crate::traces::SHORT;

/// Columns that only `-o wide` shows come last; the whole id is among them, because any of its beginnings will do.
const COLUMNS: &[&str] =
    &["trace", "age", "operation", "latency", "total", "spans", "errors", "status", "service", "services", "trace id"];
const WIDE: usize = 3;

pub(crate) fn traces(traces: Vec<TraceSummary>, now: Timestamp) -> Listing {
    let item = |trace: TraceSummary| Item::new(&trace.trace_id, &trace, cells(&trace, now));
    Listing::new(Kind::Trace, COLUMNS, WIDE, traces.into_iter().map(item).collect())
}

/// Traces with all their spans.
pub(crate) fn whole_traces(traces: Vec<Trace>, now: Timestamp) -> Listing {
    let item = |trace: Trace| {
        let tree = assemble(trace.spans.clone(), &Subscriptions::new());
        Item::new(&trace.trace_id, &trace, cells(&summary(&trace, &tree), now))
    };
    Listing::new(Kind::Trace, COLUMNS, WIDE, traces.into_iter().map(item).collect())
}

fn cells(trace: &TraceSummary, now: Timestamp) -> Vec<Cell> {
    let status = match trace.status.as_str() {
        "ok" => Cell::good("ok"),
        "slow" => Cell::careful("slow"),
        other => Cell::bad(other),
    };
    let short: String = trace.trace_id.chars().take(SHORT).collect();
    vec![
        Cell::plain(short),
        Cell::plain(age(trace.start_at, now)),
        Cell::plain(&trace.operation),
        Cell::plain(milliseconds(trace.latency_ms)),
        Cell::plain(milliseconds(trace.duration_ms)),
        Cell::plain(trace.spans),
        if trace.errors > 0 { Cell::bad(trace.errors) } else { Cell::plain(0) },
        status,
        Cell::plain(&trace.service),
        Cell::plain(trace.services.join(",")),
        Cell::plain(&trace.trace_id),
    ]
}

/// The same at a glance as the store has it of a trace in a list, as far as the spans tell: whether it was slow is the store's to say.
fn summary(trace: &Trace, tree: &Tree) -> TraceSummary {
    let root = tree.spans().next();
    let errors = tree.spans().filter(|span| span.status == SpanStatus::Error).count();
    let is_dead = tree.spans().any(|span| span.text(attribute::OUTCOME) == Some("dead"));
    let services: BTreeSet<&String> = tree.spans().map(|span| &span.service).collect();
    let status = match (is_dead, errors) {
        (true, _) => "dead",
        (false, 0) => "ok",
        (false, _) => "error",
    };
    TraceSummary {
        trace_id: trace.trace_id.clone(),
        operation: root.map(|span| span.operation.clone()).unwrap_or_default(),
        service: root.map(|span| span.service.clone()).unwrap_or_default(),
        start_at: trace.start_at,
        latency_ms: tree.latency_ms().unwrap_or_default(),
        duration_ms: trace.duration_ms,
        spans: trace.spans.len() as u64,
        errors: errors as u64,
        services: services.into_iter().cloned().collect(),
        status: status.to_owned(),
    }
}

/// Commands that go on from here.
pub(crate) fn next_steps(trace: &Trace) -> Vec<String> {
    let about = |span: &Span| {
        let text = |name| span.text(name).map(str::to_owned);
        (text(attribute::MESSAGE_ID), text(attribute::CHANNEL), text(attribute::SUBSCRIPTION))
    };
    let was_processed = |letter: &Span| {
        trace.spans.iter().any(|span| {
            span.text(attribute::OUTCOME) == Some("processed")
                && span.start_at >= letter.start_at
                && about(span) == about(letter)
        })
    };
    let dead = trace.spans.iter().filter(|span| !was_processed(span));
    let letters: BTreeSet<&str> = dead.filter_map(|span| span.text(attribute::DEAD_LETTER)).collect();
    let mut steps = Vec::new();
    for letter in letters {
        steps.push(format!(
            "`meshctl dlq show {letter}` tells why it died, `meshctl dlq replay {letter}` delivers it again"
        ));
    }
    if !trace.complete {
        steps.push(format!("`meshctl trace {} --wait` waits for the rest", trace.trace_id));
    }
    steps.push(format!("`meshctl logs --trace {}` shows what was logged meanwhile", trace.trace_id));
    steps
}
