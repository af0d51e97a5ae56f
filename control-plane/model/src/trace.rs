//! A trace: what one request and the messages that follow from it passed through. Words and numbers are OpenTelemetry's.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::GATEWAY;
use crate::delivery::{COURIER, DAEMON};

mod assemble;
mod messages;
mod path;
#[cfg(test)]
mod tests;
mod tree;

pub use assemble::{Subscriptions, assemble};
pub use tree::{Gap, Node, Tree, Wait, WaitCause, What};

/// The names of attributes that meshctl itself gives and reads: OpenTelemetry's semantic conventions where it has one.
pub mod attribute {
    pub const METHOD: &str = "http.request.method";
    /// Without the query, which may hold secrets.
    pub const PATH: &str = "url.path";
    pub const STATUS: &str = "http.response.status_code";
    /// The cause of a problem that we answered with: `breakerOpen`; or of a failed attempt: `attemptTimeout`.
    pub const ERROR: &str = "error.type";
    pub const CHANNEL: &str = "messaging.destination.name";
    pub const SUBSCRIPTION: &str = "messaging.destination.subscription.name";
    pub const MESSAGE_ID: &str = "messaging.message.id";
    /// `caller:callee`.
    pub const EDGE: &str = "meshctl.edge";
    pub const ROUTE: &str = "meshctl.route";
    /// The instance that was asked.
    pub const INSTANCE: &str = "meshctl.instance";
    /// From 1; of a message through retries and replays.
    pub const ATTEMPT: &str = "meshctl.attempt";
    /// What became of a delivery: `processed`, `retried`, `dead`, `lost` (settled by somebody else meanwhile), `waits` (the
    /// subscriber is down: it was no attempt, and the message is tried again when it is back). Of a publish: `duplicate`.
    pub const OUTCOME: &str = "meshctl.outcome";
    /// When a message that is retried will be tried again, RFC 3339.
    pub const NOT_BEFORE: &str = "meshctl.notBefore";
    /// Of a delivery: `paused` where the subscription was, or became so; `probing` where this was the one message that is
    /// tried meanwhile.
    pub const SUBSCRIPTION_STATE: &str = "meshctl.subscription.state";
    pub const REPLAY: &str = "meshctl.replay.id";
    pub const DEAD_LETTER: &str = "meshctl.deadLetter.id";
    /// True where the answer was the fallback's.
    pub const FALLBACK: &str = "meshctl.fallback";
}

/// One thing that was done, by one process, from a start to an end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Span {
    /// 32 lower-case hexadecimal digits.
    pub trace_id: String,
    /// 16 of them.
    pub span_id: String,
    /// `None` for the first of its trace.
    pub parent_span_id: Option<String>,
    /// Spans that it follows from without being part of: a message's consumer and its producer.
    pub links: Vec<SpanLink>,
    /// Who did it: a service, `gateway`, `courier`, `daemon`.
    pub service: String,
    /// What: `POST /orders`, `publish order.placed`, `deliver order.placed/billing`.
    pub operation: String,
    pub kind: SpanKind,
    pub start_at: Timestamp,
    pub duration_ms: f64,
    pub status: SpanStatus,
    /// Why it failed, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// See [`attribute`]; services add their own.
    pub attributes: BTreeMap<String, Value>,
}

impl Span {
    /// The attribute, if it is text.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.attributes.get(name).and_then(Value::as_str)
    }

    pub fn end_at(&self) -> Timestamp {
        let nanos = (self.duration_ms.max(0.0) * 1e6) as i64;
        self.start_at.checked_add(jiff::SignedDuration::from_nanos(nanos)).unwrap_or(self.start_at)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SpanLink {
    pub trace_id: String,
    pub span_id: String,
}

/// As OpenTelemetry has them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum SpanKind {
    #[default]
    Internal,
    /// Answers a request.
    Server,
    /// Makes one.
    Client,
    /// Publishes a message.
    Producer,
    /// Delivers or takes one.
    Consumer,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum SpanStatus {
    /// Nobody said; taken for good.
    #[default]
    Unset,
    Ok,
    Error,
}
