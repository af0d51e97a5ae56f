//! Events: what happened, in order. They are kept in the store, told to everybody who watches, and never changed.

use serde::{Deserialize, Serialize};

/// One thing that happened (the source's Event: event_id, event_type, data, created_at).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// Rises by one with every event of a state directory; a stream is resumed after it.
    pub id: String,
    /// `instance.ready`, `breaker.opened`, `revision.applied`: a noun and a past participle.
    #[serde(rename = "type")]
    pub kind: String,
    /// What it happened to: `instance/orders-3`, `edge/orders:inventory`.
    pub subject: String,
    /// For people.
    pub message: String,
    pub severity: EventSeverity,
    /// For programs.
    #[serde(default)]
    pub data: serde_json::Value,
    pub created_at: jiff::Timestamp,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum EventSeverity {
    #[default]
    Info,
    Warning,
    Error,
}
