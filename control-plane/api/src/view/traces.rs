//! What the API shows of traces.

use jiff::Timestamp;
use meshctl_model::trace::Span;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// One trace at a glance, as lists show it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TraceSummary {
    pub trace_id: String,
    /// Of the first span: `POST /orders`.
    pub operation: String,
    /// Of the first span: `gateway`.
    pub service: String,
    #[schema(value_type = String, format = DateTime)]
    pub start_at: Timestamp,
    /// Of the first span: how long the caller waited. What followed asynchronously is in `duration_ms` of the whole.
    pub latency_ms: f64,
    /// From the first span's start to the last one's end, of this trace alone.
    pub duration_ms: f64,
    pub spans: u64,
    pub errors: u64,
    /// All that took part, sorted.
    pub services: Vec<String>,
    /// `ok`, `error`, `slow`, `dead` (a message of it became a dead letter): the worst that holds.
    pub status: String,
}

/// A list of traces, and what the store had to leave out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TraceList {
    pub api_version: String,
    /// `TraceList`.
    pub kind: String,
    pub items: Vec<TraceSummary>,
    pub store: TraceStore,
}

/// What the store of traces holds and what it lost. Counts are since the store was made.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TraceStore {
    pub traces: u64,
    pub spans: u64,
    pub size_bytes: u64,
    pub max_size_bytes: u64,
    pub keep_ms: u64,
    #[schema(value_type = Option<String>, format = DateTime)]
    pub oldest_at: Option<Timestamp>,
    /// Spans that were never stored: a process or the daemon had no room for them.
    pub dropped_spans: u64,
    /// Traces that were stored and removed since, for age or room.
    pub evicted_traces: u64,
}

/// One request and everything that followed from it: all spans of the trace, and of those that links and message ids join to it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Trace {
    pub api_version: String,
    /// `Trace`.
    pub kind: String,
    /// The trace id.
    pub name: String,
    pub trace_id: String,
    #[schema(value_type = String, format = DateTime)]
    pub start_at: Timestamp,
    /// From the first start to the last end, over everything.
    pub duration_ms: f64,
    /// Every parent is there and no message of it is still on its way.
    pub complete: bool,
    /// Why it is not complete, in words: `span 00f0… of an unknown service was never received`, `order.placed/billing is retried at …`.
    pub gaps: Vec<String>,
    /// By start.
    #[schema(value_type = Vec<Object>)]
    pub spans: Vec<Span>,
    /// Other traces that are part of this one.
    pub joined: Vec<String>,
    pub message_ids: Vec<String>,
}

/// Which traces are meant, as query parameters; the newest first unless `slowest`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::IntoParams)]
#[serde(rename_all = "camelCase", default)]
pub struct TraceQuery {
    /// At most so many; by default 50, at most 1,000.
    pub limit: Option<u32>,
    /// Those that took longest first.
    pub slowest: bool,
    /// Only those with an error or a dead letter.
    pub errors: bool,
    /// RFC 3339; those that began later.
    pub since: Option<String>,
    /// A filter: `service = orders and latency > 100ms and status = error`.
    #[serde(rename = "where")]
    pub filter: Option<String>,
}
