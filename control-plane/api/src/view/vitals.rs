//! The golden signals of everything, once a second: what `top` and the TUI show.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::breakers::Breaker;
use super::messages::Channel;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Vitals {
    pub api_version: String,
    /// `Vitals`.
    pub kind: String,
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    pub routes: Vec<Signals>,
    pub edges: Vec<Signals>,
    /// Of each service, all edges that lead to it together; requests that pass by the gateways are not seen.
    pub services: Vec<Signals>,
    pub channels: Vec<Channel>,
    pub breakers: Vec<Breaker>,
    /// Dead letters that wait for somebody.
    pub dead_letters: u64,
    /// Gateways that did not answer this time: what they carry is not in here.
    pub silent: Vec<String>,
}

/// Rate, errors, duration, saturation of one thing, over the last ten seconds, all gateways together.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Signals {
    pub name: String,
    pub requests_per_s: f64,
    /// Answered 5xx, refused, or given up by the caller, in a second.
    pub errors_per_s: f64,
    /// Refused by breaker, bulkhead or rate limit, in a second, whatever the caller got instead.
    #[serde(default)]
    pub refused_per_s: f64,
    /// `None` where no request reached an instance.
    pub latency_p50_ms: Option<f64>,
    pub latency_p99_ms: Option<f64>,
    pub in_flight: u64,
    /// Waiting for a place in the bulkhead.
    pub queued: u64,
    /// Of services: what the processes of all its instances use together, 100 being one core; `None` where none can be looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_percent: Option<f64>,
    /// Of services: resident memory of all its instances together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
}
