//! Records as OTLP. Done where they are read, never where they are made.

use jiff::Timestamp;
use meshctl_drivers::spans::{DROPPED, Spans};
use meshctl_model::trace::attribute;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};

use super::{Became, Label, Names, Record, Remembered, State, What, Why};
use crate::clock;

/// One batch of what `service` did; `dropped` is how many it has lost so far.
pub(crate) fn encode(service: &str, names: &Names, remembered: &[Remembered], dropped: u64) -> Spans {
    let wall = u64::try_from(Timestamp::now().as_nanosecond()).unwrap_or_default();
    // What the time of day was when the monotonic clock stood at zero.
    let zero = wall.saturating_sub(clock::now());
    let spans = remembered.iter().map(|one| span(names, one, zero)).collect();
    let dropped = i64::try_from(dropped).unwrap_or(i64::MAX);
    let attributes = vec![text("service.name", service), pair(DROPPED, Value::IntValue(dropped))];
    let scope = InstrumentationScope {
        name: "meshctl".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..InstrumentationScope::default()
    };
    let scope = ScopeSpans { scope: Some(scope), spans, schema_url: String::new() };
    let resource = Some(Resource { attributes, ..Resource::default() });
    Spans { resource_spans: vec![ResourceSpans { resource, scope_spans: vec![scope], schema_url: String::new() }] }
}

fn span(names: &Names, Remembered { record, words }: &Remembered, zero: u64) -> Span {
    let began = zero.saturating_add(record.began);
    let (kind, name, attributes) = told(names, record);
    let status = record
        .failed
        .then(|| Status { message: words.as_deref().unwrap_or_default().to_owned(), code: StatusCode::Error.into() });
    Span {
        trace_id: record.trace.to_be_bytes().to_vec(),
        span_id: record.span.to_be_bytes().to_vec(),
        parent_span_id: if record.parent == 0 { Vec::new() } else { record.parent.to_be_bytes().to_vec() },
        flags: record.flags.into(),
        name,
        kind: kind.into(),
        start_time_unix_nano: began,
        end_time_unix_nano: began.saturating_add(record.took),
        attributes: attributes.0,
        status,
        ..Span::default()
    }
}

fn told(names: &Names, record: &Record) -> (SpanKind, String, Attributes) {
    let mut all = Attributes(Vec::with_capacity(8));
    match record.what {
        What::Request { method, route, edge, status, why, fallback, path } => {
            let name = match names.shown(route) {
                Some(pattern) => format!("{} {pattern}", method.name()),
                None => format!("{} {path}", method.name()),
            };
            all.text(attribute::METHOD, method.name());
            all.text(attribute::PATH, &path.to_string());
            all.name(attribute::ROUTE, names, route);
            all.name(attribute::EDGE, names, edge);
            all.number(attribute::STATUS, status.into());
            all.why(why);
            if fallback {
                all.0.push(pair(attribute::FALLBACK, Value::BoolValue(true)));
            }
            (SpanKind::Server, name, all)
        }
        What::Attempt { method, edge, instance, number, status, why } => {
            all.text(attribute::METHOD, method.name());
            all.name(attribute::EDGE, names, edge);
            all.name(attribute::INSTANCE, names, instance);
            all.number(attribute::ATTEMPT, number.into());
            all.number(attribute::STATUS, status.into());
            all.why(why);
            let callee = names.shown(edge).unwrap_or_default();
            (SpanKind::Client, format!("{} {callee}", method.name()).trim_end().to_owned(), all)
        }
        What::Publish { channel, message, why, duplicate } => {
            all.name(attribute::CHANNEL, names, channel);
            all.id(attribute::MESSAGE_ID, message);
            if duplicate {
                all.text(attribute::OUTCOME, "duplicate");
            }
            all.why(why);
            (SpanKind::Producer, format!("publish {}", names.name(channel).unwrap_or("?")), all)
        }
        What::Deliver { channel, subscription, message, replay, number, status, why, became, state, again_ms } => {
            all.name(attribute::CHANNEL, names, channel);
            all.name(attribute::SUBSCRIPTION, names, subscription);
            all.id(attribute::MESSAGE_ID, message);
            all.id(attribute::REPLAY, replay);
            all.number(attribute::ATTEMPT, number);
            all.number(attribute::STATUS, status.into());
            all.why(why);
            all.text(
                attribute::OUTCOME,
                match became {
                    Became::Processed => "processed",
                    Became::Retried => "retried",
                    Became::Dead => "dead",
                    Became::Lost => "lost",
                    Became::Waits => "waits",
                },
            );
            match state {
                State::Flowing => {}
                State::Paused => all.text(attribute::SUBSCRIPTION_STATE, "paused"),
                State::Probing => all.text(attribute::SUBSCRIPTION_STATE, "probing"),
            }
            if let Some(ms) = again_ms {
                let ended = clock::time(record.began.saturating_add(record.took));
                let at = ended.saturating_add(std::time::Duration::from_millis(ms.into())).unwrap_or(Timestamp::MAX);
                all.text(attribute::NOT_BEFORE, &at.to_string());
            }
            let of = format!("{}/{}", names.name(channel).unwrap_or("?"), names.name(subscription).unwrap_or("?"));
            (SpanKind::Consumer, format!("deliver {of}"), all)
        }
    }
}

struct Attributes(Vec<KeyValue>);

impl Attributes {
    fn text(&mut self, name: &str, value: &str) {
        self.0.push(text(name, value));
    }

    fn name(&mut self, name: &str, names: &Names, label: Label) {
        if let Some(value) = names.name(label) {
            self.text(name, value);
        }
    }

    fn id(&mut self, name: &str, id: super::Id) {
        if let Some(value) = id.text() {
            self.text(name, &value);
        }
    }

    /// 0 is none.
    fn number(&mut self, name: &str, value: u32) {
        if value > 0 {
            self.0.push(pair(name, Value::IntValue(value.into())));
        }
    }

    fn why(&mut self, why: Option<Why>) {
        if let Some(why) = why {
            self.text(attribute::ERROR, why.name());
        }
    }
}

fn text(name: &str, value: &str) -> KeyValue {
    pair(name, Value::StringValue(value.to_owned()))
}

fn pair(name: &str, value: Value) -> KeyValue {
    KeyValue { key: name.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

#[cfg(test)]
mod tests {
    use meshctl_model::message::Failure;
    use prost::Message as _;

    use super::*;
    use crate::problem::Cause;
    use crate::spans::{Id, Method, Text};

    const TRACE: u128 = 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736;

    fn record(what: What) -> Record {
        let began = clock::now();
        Record { trace: TRACE, span: 2, parent: 1, began, took: 1_500, flags: 1, recorded: true, failed: false, what }
    }

    /// Through the wire and back.
    fn told(names: &Names, record: Record, words: Option<&str>) -> Span {
        let remembered = Remembered { record, words: words.map(Into::into) };
        let bytes = encode("gateway", names, &[remembered], 7).encode_to_vec();
        let mut all = Spans::decode(bytes.as_slice()).expect("OTLP");
        let resource = all.resource_spans[0].resource.clone().expect("a resource");
        assert_eq!(pairs(&resource.attributes), [("service.name", "gateway".to_owned()), (DROPPED, "7".to_owned())]);
        all.resource_spans.remove(0).scope_spans.remove(0).spans.remove(0)
    }

    fn pairs(attributes: &[KeyValue]) -> Vec<(&str, String)> {
        let value = |pair: &KeyValue| match pair.value.as_ref().and_then(|any| any.value.as_ref()) {
            Some(Value::StringValue(text)) => text.clone(),
            Some(Value::IntValue(number)) => number.to_string(),
            Some(Value::BoolValue(flag)) => flag.to_string(),
            other => panic!("{other:?}"),
        };
        attributes.iter().map(|pair| (pair.key.as_str(), value(pair))).collect()
    }

    fn strings<'a>(pairs: &'a [(&'a str, String)]) -> Vec<(&'a str, &'a str)> {
        pairs.iter().map(|(name, value)| (*name, value.as_str())).collect()
    }

    #[test]
    fn a_request_that_was_refused() {
        let mut names = Names::default();
        let (route, edge) = (names.give("orders", "/orders/*"), names.give("gateway:orders", "orders"));
        let what = What::Request {
            method: Method::of(&http::Method::POST),
            route,
            edge,
            status: 503,
            why: Some(Why::Cause(Cause::BreakerOpen)),
            fallback: false,
            path: Text::of("/orders/7"),
        };
        let before = Timestamp::now();
        let span = told(&names, Record { failed: true, ..record(what) }, Some("the breaker is open"));
        assert_eq!((span.trace_id.as_slice(), span.flags), (&TRACE.to_be_bytes()[..], 1));
        assert_eq!((span.span_id, span.parent_span_id), (2u64.to_be_bytes().to_vec(), 1u64.to_be_bytes().to_vec()));
        assert_eq!((span.name.as_str(), span.kind), ("POST /orders/*", SpanKind::Server as i32));
        assert_eq!(span.end_time_unix_nano - span.start_time_unix_nano, 1_500);
        let after = before.as_nanosecond() as u64;
        assert!(span.start_time_unix_nano.abs_diff(after) < 60_000_000_000, "the time of day");
        let status = span.status.expect("a status");
        assert_eq!((status.code(), status.message.as_str()), (StatusCode::Error, "the breaker is open"));
        assert_eq!(
            strings(&pairs(&span.attributes)),
            [
                (attribute::METHOD, "POST"),
                (attribute::PATH, "/orders/7"),
                (attribute::ROUTE, "orders"),
                (attribute::EDGE, "gateway:orders"),
                (attribute::STATUS, "503"),
                (attribute::ERROR, "breakerOpen"),
            ]
        );
    }

    #[test]
    fn the_first_of_a_trace_on_an_edge_and_its_attempt() {
        let mut names = Names::default();
        let (edge, instance) = (names.give("orders:inventory", "inventory"), names.give("inventory-1", "inventory-1"));
        let method = Method::of(&http::Method::GET);
        let path = Text::of(&format!("/{}", "x".repeat(99)));
        let (route, why) = (Label::default(), None);
        let what = What::Request { method, route, edge, status: 200, why, fallback: true, path };
        let span = told(&names, Record { parent: 0, ..record(what) }, None);
        assert_eq!((span.parent_span_id.len(), span.status), (0, None));
        assert_eq!(span.name, format!("GET /{}…", "x".repeat(47)));
        assert!(pairs(&span.attributes).contains(&(attribute::FALLBACK, "true".to_owned())));
        let span = told(&names, record(What::Attempt { method, edge, instance, number: 2, status: 200, why }), None);
        assert_eq!((span.name.as_str(), span.kind), ("GET inventory", SpanKind::Client as i32));
        let attributes = pairs(&span.attributes);
        assert!(attributes.contains(&(attribute::INSTANCE, "inventory-1".to_owned())));
        assert!(attributes.contains(&(attribute::ATTEMPT, "2".to_owned())));
    }

    #[test]
    fn a_delivery_that_is_tried_again() {
        let mut names = Names::default();
        let (channel, subscription) = (names.give("order.placed", ""), names.give("billing", ""));
        let message = "01928f3c-7b1a-7c3e-9d4f-0123456789ab";
        let what = What::Deliver {
            channel,
            subscription,
            message: Id::of(message),
            replay: Id::of("r-1"),
            number: 3,
            status: 500,
            why: Some(Why::Delivery(Failure::Refused)),
            became: Became::Retried,
            state: State::Probing,
            again_ms: Some(2_000),
        };
        let span = told(&names, Record { failed: true, ..record(what) }, None);
        assert_eq!((span.name.as_str(), span.kind), ("deliver order.placed/billing", SpanKind::Consumer as i32));
        let attributes = pairs(&span.attributes);
        let (not_before, rest) = attributes.split_last().expect("attributes");
        assert_eq!(
            strings(rest),
            [
                (attribute::CHANNEL, "order.placed"),
                (attribute::SUBSCRIPTION, "billing"),
                (attribute::MESSAGE_ID, message),
                (attribute::REPLAY, "r-1"),
                (attribute::ATTEMPT, "3"),
                (attribute::STATUS, "500"),
                (attribute::ERROR, "refused"),
                (attribute::OUTCOME, "retried"),
                (attribute::SUBSCRIPTION_STATE, "probing"),
            ]
        );
        let again: Timestamp = not_before.1.parse().expect("RFC 3339");
        let ended = i128::from(span.end_time_unix_nano);
        assert!((again.as_nanosecond() - ended - 2_000_000_000).abs() < 1_000_000, "two seconds after its end");
    }
}
