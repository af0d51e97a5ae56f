//! From OTLP, as OpenTelemetry publishes it, to spans of ours.

use std::collections::{BTreeMap, HashSet};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use jiff::Timestamp;
use meshctl_drivers::spans::{DROPPED, Spans};
use meshctl_model::trace::{Span, SpanKind, SpanLink, SpanStatus};
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1 as otlp;
use prost::Message;
use serde_json::Value;

use super::id::{self, TraceId};
use super::store::Batch;

/// Bytes that one span may have.
const LARGEST: usize = 64 << 10;

/// The name of a service that does not give one, as the specification has it.
const NAMELESS: &str = "unknown_service";

/// The flag of `traceparent` that says that a trace is sampled.
const SAMPLED: u32 = 1;

/// What a request or a batch held.
#[derive(Clone, Debug, Default)]
pub struct Read {
    pub batch: Batch,
    /// Spans that are none.
    pub rejected: u64,
    /// Why, of the first.
    pub why: Option<&'static str>,
    /// Traces of which not everybody records everything: the rest is to be asked for.
    pub unsampled: HashSet<TraceId>,
    /// What the process says that it has dropped since it started.
    pub dropped: Option<u64>,
}

/// `bytes`: the length of what it was read from.
pub fn read(request: Spans, bytes: usize) -> Read {
    let mut read = Read { batch: Batch { spans: Vec::new(), bytes }, ..Read::default() };
    for of_resource in request.resource_spans {
        let resource = of_resource.resource.map(|resource| resource.attributes).unwrap_or_default();
        let attribute = |name: &str| resource.iter().find(|one| one.key == name)?.value.as_ref()?.value.as_ref();
        let service = match attribute("service.name") {
            Some(Any::StringValue(name)) if !name.is_empty() => name.as_str(),
            _ => NAMELESS,
        };
        if let Some(Any::IntValue(dropped)) = attribute(DROPPED) {
            read.dropped = u64::try_from(*dropped).ok();
        }
        for span in of_resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            let sampled = span.flags & SAMPLED != 0;
            match convert(span, service) {
                Ok((trace, span)) => {
                    if !sampled {
                        read.unsampled.insert(trace);
                    }
                    read.batch.spans.push(span);
                }
                Err(why) => {
                    read.rejected += 1;
                    read.why.get_or_insert(why);
                }
            }
        }
    }
    read
}

/// # Errors
/// Why it is no span.
fn convert(span: otlp::Span, service: &str) -> Result<(TraceId, Span), &'static str> {
    if span.encoded_len() > LARGEST {
        return Err("a span of more than 64KiB");
    }
    let trace = trace_id(&span.trace_id).ok_or("a trace id that is not 16 bytes, or zero")?;
    let span_id = span_id(&span.span_id).ok_or("a span id that is not 8 bytes, or zero")?;
    let parent = match span.parent_span_id.as_slice() {
        [] => None,
        bytes if bytes.iter().all(|byte| *byte == 0) => None,
        bytes => Some(self::span_id(bytes).ok_or("the id of a parent that is not 8 bytes")?),
    };
    let start = i64::try_from(span.start_time_unix_nano).map_err(|_| "a start beyond all time")?;
    let links = span.links.iter().filter_map(|link| {
        let (trace, span) = (trace_id(&link.trace_id)?, self::span_id(&link.span_id)?);
        Some(SpanLink { trace_id: id::trace_text(trace), span_id: id::span_text(span) })
    });
    let status = span.status.unwrap_or_default();
    // Most programs say why only in the exception that they record.
    let thrown = || {
        let exception = span.events.iter().find(|event| event.name == "exception")?;
        let message = exception.attributes.iter().find(|one| one.key == "exception.message")?;
        Some(value(message.value.clone()?)).and_then(|value| value.as_str().map(str::to_owned))
    };
    let status_is = match status.code {
        1 => SpanStatus::Ok,
        2 => SpanStatus::Error,
        _ => SpanStatus::Unset,
    };
    let message = if status.message.is_empty() { thrown() } else { Some(status.message) };
    let read = Span {
        trace_id: id::trace_text(trace),
        span_id: id::span_text(span_id),
        parent_span_id: parent.map(id::span_text),
        links: links.collect(),
        service: service.to_owned(),
        operation: span.name,
        kind: match span.kind {
            2 => SpanKind::Server,
            3 => SpanKind::Client,
            4 => SpanKind::Producer,
            5 => SpanKind::Consumer,
            _ => SpanKind::Internal,
        },
        start_at: Timestamp::from_nanosecond(start.into()).map_err(|_| "a start beyond all time")?,
        duration_ms: span.end_time_unix_nano.saturating_sub(span.start_time_unix_nano) as f64 / 1e6,
        status: status_is,
        message,
        attributes: attributes(span.attributes),
    };
    Ok((trace, read))
}

fn trace_id(bytes: &[u8]) -> Option<TraceId> {
    bytes.try_into().ok().map(TraceId::from_be_bytes).filter(|id| *id != 0)
}

fn span_id(bytes: &[u8]) -> Option<id::SpanId> {
    bytes.try_into().ok().map(id::SpanId::from_be_bytes).filter(|id| *id != 0)
}

fn attributes(list: Vec<KeyValue>) -> BTreeMap<String, Value> {
    list.into_iter().map(|KeyValue { key, value: of, .. }| (key, of.map_or(Value::Null, value))).collect()
}

fn value(any: AnyValue) -> Value {
    match any.value {
        Some(Any::StringValue(text)) => text.into(),
        Some(Any::BoolValue(flag)) => flag.into(),
        Some(Any::IntValue(number)) => number.into(),
        // JSON has no words for the others.
        Some(Any::DoubleValue(number)) if number.is_finite() => number.into(),
        Some(Any::DoubleValue(number)) => number.to_string().into(),
        Some(Any::ArrayValue(list)) => list.values.into_iter().map(value).collect(),
        Some(Any::KvlistValue(list)) => Value::Object(attributes(list.values).into_iter().collect()),
        Some(Any::BytesValue(bytes)) => BASE64.encode(bytes).into(),
        Some(Any::StringValueStrindex(_)) | None => Value::Null,
    }
}
