//! Flows: what those who use the system do with it, and what they may expect.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::units::Span;

/// A business step: one request from outside, and what shows that it is done. `meshctl loadtest` sends them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Flow {
    /// How often it happens, beside the other flows; by default 1.
    #[schemars(range(min = 0.001, max = 1_000_000.0))]
    pub weight: Option<f64>,
    /// Lists of which `{{random NAME}}` takes one: `skus: [book, lamp]`.
    pub values: BTreeMap<String, Vec<String>>,
    /// It is done when its answer comes.
    pub synchronous: Option<FlowRequest>,
    /// It is done when its effect shows. What it leaves out of `headers` and `body` is that of `synchronous`.
    pub asynchronous: Option<FlowRequest>,
}

/// What is sent. In path, headers and body these are filled in for each request: `{{n}}` (its number), `{{uuid}}`, `{{now}}`,
/// `{{random 1 100}}`, `{{random NAME}}` (one of the values of that name).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FlowRequest {
    /// Method and path: `POST /orders`.
    pub request: String,
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// Sent as JSON; text is sent as it is.
    #[serde(default)]
    pub body: Option<Value>,
    /// What shows success; by default any status from 200 to 399.
    #[serde(default)]
    pub done: Option<Done>,
}

/// What shows that a request succeeded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Done {
    /// This status of the answer.
    Status(#[schemars(range(min = 200, max = 599))] u16),
    When(DoneWhen),
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct DoneWhen {
    /// The status of the answer; by default any from 200 to 399.
    #[schemars(range(min = 200, max = 599))]
    pub status: Option<u16>,
    /// Asked again until it answers 200: `GET /shipments/{{orderId}}`, with the fields of the answer's JSON filled in.
    pub visible: Option<String>,
    /// Between two questions; by default 100ms.
    pub every: Option<Span>,
    /// After which it counts as lost; by default 30s.
    pub within: Option<Span>,
}

/// What those who use the system may expect of a flow.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Slo {
    pub flow: String,
    /// By default `synchronous` where the flow has both.
    #[serde(default)]
    pub mode: Option<FlowMode>,
    /// `p99 < 200ms, errors < 0.1%, rate > 1000/s`; of an asynchronous flow also `visible p99 < 5s, lost = 0`.
    pub expect: String,
}

/// Which way a flow goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum FlowMode {
    Synchronous,
    Asynchronous,
}

impl Flow {
    /// The way that is meant where nobody says.
    pub fn usual_mode(&self) -> FlowMode {
        if self.synchronous.is_none() && self.asynchronous.is_some() {
            FlowMode::Asynchronous
        } else {
            FlowMode::Synchronous
        }
    }

    pub fn request(&self, mode: FlowMode) -> Option<&FlowRequest> {
        match mode {
            FlowMode::Synchronous => self.synchronous.as_ref(),
            FlowMode::Asynchronous => self.asynchronous.as_ref(),
        }
    }
}

impl FlowRequest {
    /// Where the effect shows, as it is written.
    pub fn visible(&self) -> Option<&str> {
        match &self.done {
            Some(Done::When(when)) => when.visible.as_deref(),
            _ => None,
        }
    }
}
