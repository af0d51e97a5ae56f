//! What the API shows of breakers, and how an operator changes them.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The breaker of one edge, all gateways together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Breaker {
    /// `orders:inventory`.
    pub edge: String,
    /// The worst of all gateways: `closed`, `halfOpen`, `open`; `forcedOpen` and `forcedClosed` where an operator says so;
    /// `unknown` when no gateway answers.
    pub state: String,
    #[schema(value_type = Option<String>, format = DateTime)]
    pub since: Option<Timestamp>,
    /// Of the last transition, or the operator's.
    pub reason: Option<String>,
    /// Who forced it.
    pub by: Option<String>,
    /// When what was forced ends by itself.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub expires_at: Option<Timestamp>,
    /// Gateways that carry what is wanted of it now.
    pub acknowledged: u32,
    /// Gateways that there are.
    pub instances: u32,
    /// Gateways that have not acknowledged, by id.
    pub stragglers: Vec<String>,
    /// Over the last ten seconds, all gateways together.
    pub requests_per_s: f64,
    /// Requests that it refused in the last ten seconds, in a second.
    pub refused_per_s: f64,
}

/// What is asked of a breaker.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct BreakerRequest {
    /// After which what is forced ends by itself; for ever where left out.
    pub ttl_ms: Option<u64>,
    pub reason: Option<String>,
    /// Show what it would mean and change nothing.
    pub dry_run: bool,
}

/// What forcing a breaker means now, and what came of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BreakerChange {
    pub api_version: String,
    /// `BreakerChange`.
    pub kind: String,
    /// `trip`, `hold`, `reset`.
    pub action: String,
    /// The routes that lead over this edge, directly or through its caller.
    pub routes: Vec<String>,
    /// Channels whose deliveries go over it.
    pub channels: Vec<String>,
    /// What callers get: `503 problem+json breakerForcedOpen with Retry-After`, or `the fallback: 200`.
    pub callers_get: String,
    /// As it is once every gateway has acknowledged, or the wait for it was over (then `acknowledged` < `instances`).
    pub breaker: Breaker,
    /// Nothing was changed.
    pub dry_run: bool,
}
