//! What the data plane knows: one value, swapped whole. A gateway keeps the last one on disk and serves on from it when
//! the control plane is away.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::policy::Policy;
use crate::recent::Recent;
use crate::topology::RateLimit;

/// Everything a gateway needs to carry requests.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Snapshot {
    /// The system's name.
    pub topology: String,
    /// The revision of the topology that the routes come from.
    pub revision: u64,
    /// Rises with every change, of routes or of endpoints; what a gateway acknowledges.
    pub generation: u64,
    pub listeners: Vec<Listener>,
    /// Most specific first: the first that matches wins.
    pub routes: Vec<RouteRule>,
    /// By name, `caller:callee`.
    pub edges: BTreeMap<String, EdgeRule>,
    /// Where the instances of each service are; a service without any is present and empty.
    pub services: BTreeMap<String, ServiceEndpoints>,
    pub limits: Limits,
    #[serde(default)]
    pub tracing: Tracing,
}

/// Which requests are recorded. Everything is remembered for a few seconds by the process that saw it; what is recorded is
/// what outlives that.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tracing {
    /// New traces that each process begins as sampled (flag 01 of `traceparent`) in a second; the others carry 00, and everybody
    /// downstream follows the flag. What fails, is retried or is slow is recorded whatever its flag.
    pub traces_per_s: f64,
    /// A request that takes so long is slow.
    pub slow_ms: u64,
}

impl Tracing {
    pub fn is_usual(&self) -> bool {
        *self == Self::default()
    }
}

impl Default for Tracing {
    fn default() -> Self {
        Self { traces_per_s: 100.0, slow_ms: 500 }
    }
}

impl Snapshot {
    /// Puts the most specific route first, by the whole order: exact host before suffix (longer first) before any; more
    /// literal segments; more segments; the path itself before everything below it; more headers; with methods before
    /// any; the name last, so that no two routes tie.
    pub fn order_routes(&mut self) {
        self.routes.sort_by(|a, b| a.specificity().cmp(&b.specificity()).then_with(|| a.name.cmp(&b.name)));
    }
}

impl RouteRule {
    /// Smaller is more specific.
    fn specificity(&self) -> impl Ord + use<> {
        use std::cmp::Reverse;
        let host = match &self.host {
            Some(HostMatch::Exact(_)) => (0, Reverse(0)),
            Some(HostMatch::Suffix(suffix)) => (1, Reverse(suffix.len())),
            None => (2, Reverse(0)),
        };
        let literal = self.path.segments.iter().filter(|segment| *segment != "*").count();
        (
            host,
            Reverse(literal),
            Reverse(self.path.segments.len()),
            self.path.below,
            Reverse(self.headers.len()),
            self.methods.is_empty(),
        )
    }
}

/// An address on which a gateway accepts connections.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Listener {
    pub address: SocketAddr,
    pub serves: Serves,
}

/// What stands behind a listener.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Serves {
    /// The routes: requests from outside.
    Routes,
    /// One edge: requests of one service to one other, whatever their path.
    Edge(String),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteRule {
    /// `GET,POST shop.local/orders`: stable, unique, readable; the label in metrics.
    pub name: String,
    pub host: Option<HostMatch>,
    pub path: PathMatch,
    /// Upper case; empty means any.
    pub methods: Vec<String>,
    /// Lower-case name and exact value; `None` means any value.
    pub headers: Vec<(String, Option<String>)>,
    /// Edges with their weights, which are 1.0 together.
    pub targets: Vec<(String, f64)>,
    /// Lower-case header name.
    pub idempotency_key: Option<String>,
    pub rate_limit: Option<RateLimit>,
    /// Deadline, attempt timeout, retry and fallback of this route; breaker and bulkhead belong to the edge.
    pub policy: Policy,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum HostMatch {
    /// Lower case, without a port.
    Exact(String),
    /// `*.example.com` as `.example.com`.
    Suffix(String),
}

/// A path as segments, the empty first one left out: `/users/*/cart` is `["users", "*", "cart"]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PathMatch {
    /// `*` matches one segment, whatever it is.
    pub segments: Vec<String>,
    /// Whether anything below matches too: `/orders/*` matches `/orders/7` and `/orders/7/lines`, and not `/orders`.
    pub below: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EdgeRule {
    /// A service, or [`crate::GATEWAY`] for requests from outside.
    pub caller: String,
    pub callee: String,
    pub policy: Policy,
    /// What an operator says of its breaker; the gateway itself ends it when its time is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub force: Option<Override>,
    /// Rises with each reset: a gateway that sees another one closes the breaker and forgets what led to it.
    #[serde(default)]
    pub breaker_epoch: u64,
}

/// The state that an operator gives a breaker, until it is taken back or its time is over. Times are those of the wall clock,
/// which all processes of a machine read alike, and which a restart does not begin anew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Override {
    pub state: Forced,
    /// For those who are refused.
    pub reason: Option<String>,
    /// The user of this machine; not for those who are refused.
    pub by: String,
    pub since: jiff::Timestamp,
    /// `None`: until it is taken back.
    pub expires_at: Option<jiff::Timestamp>,
}

impl Override {
    /// Whether its time is over.
    pub fn is_over(&self, now: jiff::Timestamp) -> bool {
        self.expires_at.is_some_and(|at| at <= now)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Forced {
    /// Refuse everything.
    #[serde(rename = "forcedOpen")]
    Open,
    /// Let everything through, whatever fails.
    #[serde(rename = "forcedClosed")]
    Closed,
}

impl From<Forced> for BreakerState {
    fn from(forced: Forced) -> Self {
        match forced {
            Forced::Open => Self::ForcedOpen,
            Forced::Closed => Self::ForcedClosed,
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceEndpoints {
    pub endpoints: Vec<Endpoint>,
    /// Whether an instance is on its way: then a request without an endpoint waits within its deadline, instead of failing.
    pub expected: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// The instance's id.
    pub id: String,
    pub address: SocketAddr,
}

/// Limits of connections and requests, every gap filled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    pub request_body_bytes: u64,
    pub header_bytes: u64,
    pub header_timeout_ms: u64,
    pub idle_timeout_ms: u64,
    pub upgrade_idle_timeout_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            request_body_bytes: 64 << 20,
            header_bytes: 64 << 10,
            header_timeout_ms: 10_000,
            idle_timeout_ms: 75_000,
            upgrade_idle_timeout_ms: 3_600_000,
        }
    }
}

/// What a gateway process says of itself on its admin socket.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GatewayStatus {
    pub pid: u32,
    /// Of the binary.
    pub version: String,
    pub revision: u64,
    /// Live on every thread.
    pub generation: u64,
    /// Listeners that could not be opened, with the reason.
    pub refused: Vec<(SocketAddr, String)>,
    pub connections: u64,
    pub in_flight: u64,
    pub draining: bool,
    pub edges: Vec<EdgeStatus>,
    #[serde(default)]
    pub routes: Vec<RouteStatus>,
    /// Endpoints that this gateway leaves out on its own observation, with the reason.
    pub ejected: Vec<Ejection>,
}

/// One edge as one gateway sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EdgeStatus {
    pub edge: String,
    pub breaker: BreakerState,
    /// When the breaker entered that state.
    pub since: jiff::Timestamp,
    /// Why, of its last transition; `None` before the first.
    #[serde(default)]
    pub reason: Option<String>,
    /// While it is held closed: what would have opened it, `12 of 20 requests failed within 10s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub would_open: Option<String>,
    pub in_flight: u64,
    pub queued: u64,
    /// Since the gateway started.
    pub requests: u64,
    pub failures: u64,
    pub retries: u64,
    pub fallbacks: u64,
    #[serde(default)]
    pub recent: Recent,
}

/// One route as one gateway sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteStatus {
    pub route: String,
    /// Passed on and not yet answered to the end.
    pub in_flight: u64,
    /// Waiting for a place in the bulkhead of their edge.
    pub queued: u64,
    pub recent: Recent,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum BreakerState {
    /// Flowing.
    #[default]
    Closed,
    /// Refusing.
    Open,
    /// Probing.
    HalfOpen,
    /// Refusing, because an operator says so.
    ForcedOpen,
    /// Flowing whatever fails, because an operator says so.
    ForcedClosed,
}

impl BreakerState {
    /// As documents say it: `halfOpen`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "halfOpen",
            Self::ForcedOpen => "forcedOpen",
            Self::ForcedClosed => "forcedClosed",
        }
    }

    /// How much it means for callers: of several gateways the worst is shown.
    pub const fn severity(self) -> u8 {
        match self {
            Self::Closed => 0,
            Self::ForcedClosed => 1,
            Self::HalfOpen => 2,
            Self::Open => 3,
            Self::ForcedOpen => 4,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ejection {
    pub service: String,
    pub endpoint: String,
    pub reason: String,
    pub since: jiff::Timestamp,
}

/// What a gateway reports as it happens, one JSON object on a line of its admin socket's `/events`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "type")]
pub enum GatewayEvent {
    #[serde(rename_all = "camelCase")]
    Breaker { edge: String, from: BreakerState, to: BreakerState, reason: String, at: jiff::Timestamp },
    #[serde(rename_all = "camelCase")]
    Ejected(Ejection),
    #[serde(rename_all = "camelCase")]
    Returned { service: String, endpoint: String, at: jiff::Timestamp },
}
