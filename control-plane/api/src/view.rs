//! What the API shows. Field names are a contract with scripts (`cli.md`): they may be added to, never changed.

use std::collections::BTreeMap;

use jiff::Timestamp;
use meshctl_model::event::Event;
use meshctl_model::load::Sources;
use meshctl_model::plan::Change;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub mod breakers;
pub mod flows;
pub mod messages;
pub mod traces;
pub mod vitals;

/// The whole system at one glance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    pub api_version: String,
    /// `Status`.
    pub kind: String,
    /// The system's name.
    pub name: String,
    /// 0 before the first apply.
    pub revision: u64,
    /// Every service has its instances ready, and every gateway carries this revision and the present endpoints.
    pub ready: bool,
    pub items: Vec<Service>,
    pub gateways: Vec<Gateway>,
    /// Empty where the topology has none, and as long as the broker does not answer.
    #[serde(default)]
    pub channels: Vec<messages::Channel>,
    /// The last event told before this was taken; a stream resumes after it.
    pub last_event_id: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    pub name: String,
    /// What runs: `builtin`, `command`.
    pub kind: String,
    /// The source's service_id: stable over restarts and revisions.
    pub service_id: String,
    /// Instances wanted.
    pub desired: u32,
    pub ready: u32,
    pub state: ServiceState,
    /// The service that this one waits for, or that failed before it.
    pub blocked_by: Option<String>,
    /// Why it is not ready, in words; `None` when it is.
    pub reason: Option<String>,
    /// Where requests from outside find it, if a route leads to it; otherwise the first instance's address.
    pub endpoint: Option<String>,
    pub instances: Vec<Instance>,
    pub labels: BTreeMap<String, String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum ServiceState {
    /// As many ready instances as wanted, all of the wanted revision.
    Ready,
    /// On its way to the first ready instance.
    Starting,
    /// Instances are being replaced.
    Rolling,
    /// Fewer ready instances than wanted, at least one.
    Degraded,
    /// The wanted form did not become ready; the former one runs.
    RolledBack,
    /// A service that must come first is not ready.
    Blocked,
    /// It does not become ready; it is tried again with growing pauses.
    Failed,
    /// No instance is wanted, or all are on their way out.
    Stopped,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Instance {
    pub id: String,
    pub service: String,
    /// Of the program itself, not of its shim.
    pub pid: Option<u32>,
    /// `127.0.0.1:20014`.
    pub address: Option<String>,
    pub state: InstanceState,
    /// In words, where the state alone does not tell: the last failed check, the last exit.
    pub reason: Option<String>,
    #[schema(value_type = Option<String>, format = DateTime)]
    pub started_at: Option<Timestamp>,
    /// When it entered this state.
    #[schema(value_type = String, format = DateTime)]
    pub since: Timestamp,
    pub restarts: u32,
    /// The revision that it was started for.
    pub revision: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum InstanceState {
    Starting,
    Ready,
    /// Running, and its checks fail.
    Unhealthy,
    /// Out of routing; requests under way are finishing.
    Draining,
    Stopping,
    /// Ended by itself; will be started again.
    BackingOff,
    /// Ended several times in a row without becoming ready.
    CrashLoop,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Gateway {
    pub id: String,
    /// `http://127.0.0.1:8080`.
    pub url: String,
    /// What it has acknowledged.
    pub revision: u64,
    pub generation: u64,
    pub pid: Option<u32>,
    pub state: InstanceState,
    pub reason: Option<String>,
    /// Where Prometheus reads: `http://127.0.0.1:20001/metrics`.
    pub metrics_url: Option<String>,
    /// Of its binary.
    pub version: Option<String>,
    #[schema(value_type = Option<String>, format = DateTime)]
    pub started_at: Option<Timestamp>,
    pub restarts: u32,
}

/// A list of any kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct List<T> {
    pub api_version: String,
    /// `ServiceList`, `InstanceList`, …
    pub kind: String,
    pub items: Vec<T>,
}

impl<T> List<T> {
    /// A list of `kind`, which is the singular: `Service`.
    pub fn of(kind: &str, items: Vec<T>) -> Self {
        Self { api_version: meshctl_model::API_VERSION.into(), kind: format!("{kind}List"), items }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Route {
    pub name: String,
    pub host: Option<String>,
    pub path: String,
    pub methods: Vec<String>,
    pub headers: BTreeMap<String, String>,
    pub targets: Vec<RouteTarget>,
    pub deadline_ms: u64,
    pub attempt_timeout_ms: u64,
    pub retries: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RouteTarget {
    pub service: String,
    pub edge: String,
    pub weight_percent: f64,
}

/// An edge: one caller, one callee, and what happened between them, all gateways together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Edge {
    /// `orders:inventory`, `gateway:orders`.
    pub name: String,
    pub caller: String,
    pub callee: String,
    /// Where the caller finds it; `None` for edges from outside.
    pub url: Option<String>,
    pub deadline_ms: u64,
    pub attempt_timeout_ms: u64,
    pub retries: u32,
    /// The worst among the gateways: `closed`, `halfOpen`, `open`; `unknown` when none answers.
    pub breaker: String,
    pub in_flight: u64,
    pub requests: u64,
    pub failures: u64,
    /// Over the last ten seconds, of the requests that reached an instance; `None` where none did.
    pub latency_p50_ms: Option<f64>,
    pub latency_p99_ms: Option<f64>,
}

/// Where a service is, whether it is in routing, and if not why and since when.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    pub service: String,
    /// The instance's id, or the name under which it was registered from outside.
    pub id: String,
    pub address: String,
    pub in_routing: bool,
    /// Why it is out, or which gateway left it out; `None` when it is in everywhere.
    pub reason: Option<String>,
    #[schema(value_type = String, format = DateTime)]
    pub since: Timestamp,
    /// `instance` (started by us, checked actively) or `lease` (registered from outside, renewed).
    pub source: String,
    /// When the lease ends.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub expires_at: Option<Timestamp>,
    #[schema(value_type = Option<String>, format = DateTime)]
    pub last_checked_at: Option<Timestamp>,
}

/// Endpoints of one service at one index of the registry; a watch asks for the next.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RegistryView {
    pub api_version: String,
    /// `EndpointList`.
    pub kind: String,
    /// Rises with every change.
    pub index: u64,
    pub items: Vec<Endpoint>,
}

/// A registration from outside.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Registration {
    /// `127.0.0.1:9000`.
    pub address: String,
    /// How long it lives without being renewed; the topology's `registry.embedded.lease` where left out.
    pub lease_ms: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Revision {
    pub revision: u64,
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// The user of this machine.
    pub by: String,
    pub reason: Option<String>,
    /// `apply`, `scale`, `restart`, `undo`.
    pub cause: String,
    /// `applying`, `applied`, `failed`, `down`; once another is wanted `superseded` (was applied) or `abandoned` (never was).
    pub state: String,
    /// Whether it is the wanted one.
    pub current: bool,
}

/// What would change, and what follows from it. Executing it makes no further choice.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    pub api_version: String,
    /// `Plan`.
    pub kind: String,
    /// Of the desired topology and the state that it was compared with; a plan is stale when it differs.
    pub fingerprint: String,
    /// Steps that change something.
    pub changes: u32,
    pub steps: Vec<PlanStep>,
    /// The revision that it starts from.
    pub base_revision: u64,
    /// What it was made from; present in a plan that is saved, so that it can be applied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub sources: Option<Sources>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlanStep {
    /// `create`, `change`, `remove`, `restart`, `scale`.
    pub action: String,
    /// `service`, `gateway`, `route`, `edge`.
    pub kind: String,
    pub name: String,
    /// The difference that causes it: `command: ["a"] -> ["b"]`.
    pub why: String,
    /// What it means for requests: `instances are replaced one at a time; no request fails`.
    pub consequence: String,
}

impl From<Change> for PlanStep {
    fn from(Change { action, kind, name, why, consequence }: Change) -> Self {
        Self { action, kind, name, why, consequence }
    }
}

/// Body of plan and apply.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ApplyRequest {
    #[schema(value_type = Object)]
    pub sources: Sources,
    /// The fingerprint of the plan that was agreed to; refused as a conflict if the plan would differ now.
    pub fingerprint: Option<String>,
    pub reason: Option<String>,
    /// Whether messages may be lost, where a channel is removed or gets fewer partitions.
    pub discard_messages: bool,
}

/// The answer to every change: it is saved and will be pursued; its outcome comes as an event.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Accepted {
    pub revision: u64,
    pub plan: Plan,
    /// The last event before this change; following the stream from here misses nothing of it.
    pub last_event_id: String,
}

/// What is changed about running services without a new file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ScaleRequest {
    pub replicas: BTreeMap<String, u32>,
    pub reason: Option<String>,
    pub dry_run: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RestartRequest {
    pub services: Vec<String>,
    pub reason: Option<String>,
    pub dry_run: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct UndoRequest {
    /// The one before the present one where left out.
    pub to_revision: Option<u64>,
    pub reason: Option<String>,
    pub dry_run: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct DownRequest {
    pub reason: Option<String>,
}

/// One line of an instance's output.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct LogLine {
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    pub instance: String,
    pub service: String,
    /// `stdout` or `stderr`.
    pub stream: String,
    pub line: String,
}

/// What of the logs is asked for, as query parameters.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::IntoParams)]
#[serde(rename_all = "camelCase", default)]
pub struct LogQuery {
    /// Service names, separated by commas; all where left out.
    pub services: Option<String>,
    /// RFC 3339.
    pub since: Option<String>,
    /// The last lines of each instance.
    pub tail: Option<usize>,
    pub follow: bool,
    /// Lines that contain this text.
    pub grep: Option<String>,
}

/// Who the daemon is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Version {
    pub version: String,
    pub pid: u32,
    /// The executable that runs.
    pub executable: String,
    /// Differs between builds of one version.
    pub build: String,
    #[schema(value_type = String, format = DateTime)]
    pub started_at: Timestamp,
    pub state_dir: String,
}

/// One message of `GET /v1/watch` (server-sent events): first a snapshot, then what changes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", tag = "kind", content = "body")]
pub enum Told {
    /// Everything, as it is after the event named in it. Sent first, and again when a reader has fallen too far behind.
    Snapshot(Status),
    /// One thing happened.
    #[schema(value_type = Object)]
    Event(Event),
    /// A service changed; replaces the one of that name.
    Service(Service),
    /// A service is gone.
    ServiceGone(String),
    Gateway(Gateway),
    GatewayGone(String),
    /// Revision, readiness or name changed.
    #[serde(rename_all = "camelCase")]
    System {
        name: String,
        revision: u64,
        ready: bool,
    },
}
