//! Flows: what those who use the system do with it, and what they may expect.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A flow of the running system, with every default filled in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Flow {
    pub name: String,
    /// How often it happens, beside the other flows.
    pub weight: f64,
    /// For `{{random NAME}}`.
    pub values: BTreeMap<String, Vec<String>>,
    /// It is done when its answer comes.
    pub synchronous: Option<FlowRequest>,
    /// It is done when its effect shows.
    pub asynchronous: Option<FlowRequest>,
    pub slo: Vec<FlowSlo>,
}

/// A request from outside; path, headers and body hold placeholders.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct FlowRequest {
    pub method: String,
    /// With its query.
    pub path: String,
    pub headers: BTreeMap<String, String>,
    pub body: String,
    /// The status that means success; any from 200 to 399 where `None`.
    pub status: Option<u16>,
    /// Where the effect shows.
    pub visible: Option<FlowEffect>,
}

/// Asked by `GET` again until it answers 200.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct FlowEffect {
    /// With the fields of the first answer's JSON to be filled in: `/shipments/{{orderId}}`.
    pub path: String,
    /// Between two questions.
    pub every_ms: u64,
    /// After which it counts as lost.
    pub within_ms: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct FlowSlo {
    pub asynchronous: bool,
    /// `p99 < 200ms, errors < 0.1%`.
    pub expect: String,
}
