//! Pages as people see them, at 80 and at 120 columns.

use std::collections::BTreeMap;

use meshctl_model::trace::SpanKind::{self, Client, Consumer, Internal, Producer, Server};
use serde_json::{Value, json};

use super::*;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const MESSAGE: &str = "01jd7m3v0s8q4x";

fn noon() -> Timestamp {
    "2026-11-23T12:00:00Z".parse().expect("a time")
}

/// `(parent, id)`; ids are their numbers. `start` and `ms` are milliseconds.
fn span(ids: (u64, u64), service: &str, operation: &str, kind: SpanKind, start: f64, ms: f64) -> Span {
    Span {
        trace_id: TRACE.into(),
        span_id: format!("{:016x}", ids.1),
        parent_span_id: (ids.0 > 0).then(|| format!("{:016x}", ids.0)),
        links: Vec::new(),
        service: service.into(),
        operation: operation.into(),
        kind,
        start_at: noon() + jiff::SignedDuration::from_nanos((start * 1e6) as i64),
        duration_ms: ms,
        status: SpanStatus::Unset,
        message: None,
        attributes: BTreeMap::new(),
    }
}

fn with(mut span: Span, attributes: &[(&str, Value)]) -> Span {
    span.attributes.extend(attributes.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
    span
}

fn failed(span: Span, why: &str) -> Span {
    Span { status: SpanStatus::Error, message: Some(why.into()), ..span }
}

fn about(span: Span, subscription: &str) -> Span {
    let mut attributes = vec![(attribute::CHANNEL, json!("order.placed")), (attribute::MESSAGE_ID, json!(MESSAGE))];
    if !subscription.is_empty() {
        attributes.push((attribute::SUBSCRIPTION, json!(subscription)));
    }
    with(span, &attributes)
}

fn deliver(ids: (u64, u64), subscription: &str, attempt: u64, outcome: &str, start: f64, ms: f64) -> Span {
    let operation = format!("deliver order.placed/{subscription}");
    let span = about(span(ids, "courier", &operation, Consumer, start, ms), subscription);
    with(span, &[(attribute::ATTEMPT, json!(attempt)), (attribute::OUTCOME, json!(outcome))])
}

/// The request, which orders answers after it asked inventory.
fn chain() -> Vec<Span> {
    vec![
        span((0, 1), "gateway", "POST /orders", Server, 0.0, 14.2),
        span((1, 2), "gateway", "POST gateway:orders", Client, 0.3, 13.6),
        span((2, 3), "orders", "POST /orders", Server, 0.8, 12.7),
        span((3, 4), "gateway", "POST /reservations", Server, 1.4, 5.1),
        span((4, 5), "gateway", "POST orders:inventory", Client, 1.6, 4.7),
        span((5, 6), "inventory", "POST /reservations", Server, 2.0, 3.9),
    ]
}

/// The same, which publishes what was ordered.
fn publishing() -> Vec<Span> {
    let mut spans = chain();
    spans.push(about(span((3, 7), "courier", "publish order.placed", Producer, 7.5, 3.1), ""));
    spans
}

fn trace(spans: Vec<Span>, gaps: &[&str]) -> Trace {
    Trace {
        api_version: "meshctl/v1".into(),
        kind: "Trace".into(),
        name: TRACE.into(),
        trace_id: TRACE.into(),
        start_at: noon(),
        duration_ms: 0.0,
        complete: gaps.is_empty(),
        gaps: gaps.iter().map(ToString::to_string).collect(),
        spans,
        joined: Vec::new(),
        message_ids: Vec::new(),
    }
}

fn page(trace: &Trace, width: Option<usize>, signs: &'static Signs) -> String {
    let page = waterfall(trace, noon() + jiff::SignedDuration::from_mins(5), Look { width, signs });
    let page = anstream::adapter::strip_str(&page).to_string();
    for line in page.lines().skip_while(|line| !line.is_empty()) {
        assert!(width.is_none_or(|width| line.width() <= width), "{line}");
    }
    page
}

/// At 80 columns, and from there the picture at 120.
fn both(trace: &Trace) -> String {
    let wide = page(trace, Some(120), &UNICODE);
    let picture = wide.split_once("\n\n").map_or("", |(_, picture)| picture);
    format!("{}\n{picture}", page(trace, Some(80), &UNICODE))
}

#[test]
fn a_chain_of_requests() {
    insta::assert_snapshot!("chain", both(&trace(chain(), &[])));
}

#[test]
fn a_request_that_is_retried() {
    let spans = vec![
        span((0, 1), "gateway", "GET /inventory/*", Server, 0.0, 79.0),
        failed(
            with(
                span((1, 2), "gateway", "GET gateway:inventory", Client, 0.2, 4.0),
                &[(attribute::ATTEMPT, json!(1)), (attribute::EDGE, json!("gateway:inventory"))],
            ),
            "inventory-2 answered 503",
        ),
        failed(span((2, 3), "inventory", "GET /inventory/book", Server, 0.4, 3.5), "inventory-2 answered 503"),
        with(
            span((1, 4), "gateway", "GET gateway:inventory", Client, 29.0, 49.8),
            &[(attribute::ATTEMPT, json!(2)), (attribute::EDGE, json!("gateway:inventory"))],
        ),
        span((4, 5), "inventory", "GET /inventory/book", Server, 29.4, 49.1),
    ];
    insta::assert_snapshot!("retry", both(&trace(spans, &[])));
}

#[test]
fn a_message_for_two_subscriptions() {
    let mut spans = publishing();
    spans.extend([
        deliver((7, 8), "billing", 1, "processed", 12.0, 8.0),
        span((8, 9), "billing", "POST /events/order-placed", Server, 13.0, 6.0),
        failed(deliver((7, 10), "mailer", 1, "retried", 12.5, 21.0), "mailer-1 answered 500: no route to the relay"),
        deliver((7, 11), "mailer", 2, "processed", 1_240.0, 35.0),
        span((11, 12), "mailer", "POST /events/order-placed", Server, 1_241.0, 33.0),
    ]);
    insta::assert_snapshot!("async", both(&trace(spans, &[])));
}

#[test]
fn a_dead_letter_and_its_replay() {
    let mut spans = publishing();
    let letter = about(span((7, 9), "daemon", "dead letter order.placed/billing", Internal, 19.0, 2.0), "billing");
    let replay =
        about(span((7, 10), "daemon", "replay rp-1 order.placed/billing", Producer, 754_000.0, 4.0), "billing");
    spans.extend([
        failed(deliver((7, 8), "billing", 1, "dead", 12.0, 6.0), "POST /events/order-placed answered 422: no such sku"),
        with(letter, &[(attribute::DEAD_LETTER, json!("4f1c09ab77d2e310"))]),
        with(replay, &[(attribute::REPLAY, json!("rp-1"))]),
        with(deliver((10, 11), "billing", 2, "processed", 754_006.0, 11.0), &[(attribute::REPLAY, json!("rp-1"))]),
        span((11, 12), "billing", "POST /events/order-placed", Server, 754_007.0, 9.0),
    ]);
    let trace = trace(spans, &[]);
    insta::assert_snapshot!("replay", both(&trace));
    let steps = crate::show::next_steps(&trace);
    assert!(!steps.iter().any(|step| step.contains("dlq")), "{steps:?}: it was processed in the end");
    let died = Trace { spans: trace.spans[..9].to_vec(), ..trace };
    let steps = crate::show::next_steps(&died);
    assert!(steps[0].contains("`meshctl dlq show 4f1c09ab77d2e310`"), "{steps:?}");
}

#[test]
fn a_parent_that_was_never_received_and_a_clock_that_is_behind() {
    let mut spans = chain();
    spans.remove(2);
    spans.last_mut().expect("inventory").start_at = noon() - jiff::SignedDuration::from_millis(40);
    insta::assert_snapshot!(
        "missing",
        both(&trace(spans, &["span 0000000000000003, on which spans of gateway hang, was never received"]))
    );
}

#[test]
fn what_is_still_under_way() {
    let mut spans = publishing();
    let retried = deliver((7, 8), "billing", 1, "retried", 12.0, 6.0);
    let retried = with(retried, &[(attribute::NOT_BEFORE, json!("2026-11-23T12:00:09.123Z"))]);
    spans.push(failed(retried, "attemptTimeout"));
    let gap = "order.placed/billing is retried at 2026-11-23T12:00:09.123Z (message 01jd7m3v0s8q4x)";
    let trace = trace(spans, &[gap]);
    insta::assert_snapshot!("unfinished", both(&trace));
    assert!(crate::show::next_steps(&trace)[0].contains("--wait"));
}

#[test]
fn a_pipe_gets_ascii_and_everything() {
    let mut spans = chain();
    let long = "a reason with \u{1b}[31mwords\nthat go on and on, and on, and on, and on, and on, and on, and on, and on, and on";
    spans[5] = failed(spans[5].clone(), long);
    insta::assert_snapshot!("pipe", page(&trace(spans, &[]), None, &ASCII));
}

#[test]
fn narrow_terminals_and_deep_trees_are_drawn() {
    let deep: Vec<Span> = (1..60).map(|at| span((at - 1, at), "a", "deeper", Internal, at as f64, 100.0)).collect();
    let trace = trace(deep, &[]);
    for width in [1, 20, 40, 80] {
        let page = waterfall(&trace, noon(), Look { width: Some(width), signs: &UNICODE });
        assert!(page.lines().count() > 60);
    }
    page(&trace, Some(80), &UNICODE);
}
