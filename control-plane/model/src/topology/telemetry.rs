//! What keeps traces, and which.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units::{Bytes, Rate, Span};

/// The least room for traces: below it the file is more index than traces.
pub const TRACES_AT_LEAST: Bytes = Bytes(8 << 20);

/// What keeps traces.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum TelemetryProvider {
    /// The store inside the daemon.
    Embedded(EmbeddedTelemetry),
}

impl Default for TelemetryProvider {
    fn default() -> Self {
        Self::Embedded(EmbeddedTelemetry::default())
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct EmbeddedTelemetry {
    /// How long traces are kept; by default 24h.
    pub keep: Option<Span>,
    /// How much is kept; by default 1GiB, at least 8MiB. Where there is no room, plain traces go first, then slow, then failed ones.
    pub max_size: Option<Bytes>,
    /// How many new traces each process of the data plane records; by default 100/s. What fails, is retried or is slow is
    /// recorded beside them.
    pub sample: Option<Rate>,
    /// A request that takes so long is slow; by default 500ms.
    pub slow: Option<Span>,
    /// Where services send spans by OTLP/HTTP, `address:port` of this machine; by default an automatic port on 127.0.0.1.
    pub listen: Option<String>,
}
