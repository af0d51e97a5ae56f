//! The topology: what an operator writes. These types are the language; the JSON Schema is derived from them, and the
//! structural pass of [`crate::load`] checks a file against that schema before it becomes a [`Topology`].

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units::{Bytes, Percent, Rate, Span};

mod channels;
mod flows;
mod telemetry;
pub use channels::{
    BACKOFF, BrokerProvider, Channel, Couriers, DeadLetter, DeadLetterAlert, DeliveryRetry, EmbeddedBroker,
    MAX_MESSAGE, MAX_SIZE, Ordered, Subscription,
};
pub use flows::{Done, DoneWhen, Flow, FlowMode, FlowRequest, Slo};
pub use telemetry::{EmbeddedTelemetry, TRACES_AT_LEAST, TelemetryProvider};

/// The reference services that come with meshctl.
pub const BUILTINS: [&str; 5] = ["billing", "hello", "inventory", "orders", "shipping"];

/// Where the embedded gateway listens when the topology does not say.
pub const GATEWAY_LISTEN: &str = "127.0.0.1:8080";

/// From where the process runtime takes automatic ports when the topology does not say.
pub const AUTOMATIC_PORTS: &str = "20000-29999";

/// A system of services and the ways through which they reach each other.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Topology {
    /// The version of the language: `meshctl/v1`.
    pub api_version: Option<String>,
    /// Always `Topology`.
    pub kind: Option<String>,
    /// The system's name; by default the name of the file.
    pub name: Option<String>,
    /// Free-form labels, for selectors.
    pub labels: BTreeMap<String, String>,
    /// What plays each part: left out entirely, everything is embedded and runs as local processes.
    pub providers: Providers,
    /// Policy for every edge and route that does not say otherwise.
    pub defaults: EdgePolicy,
    /// The programs of the system, by name.
    pub services: BTreeMap<String, Service>,
    /// How requests from outside find a service; the most specific route wins, whatever the order.
    pub routes: Vec<Route>,
    /// How services send each other messages, by name: `order.placed`.
    pub channels: BTreeMap<String, Channel>,
    /// What those who use the system do with it, by name: what `meshctl loadtest` sends.
    pub flows: BTreeMap<String, Flow>,
    /// What those who use the system may expect.
    pub slo: Vec<Slo>,
}

/// Who plays each part of the system.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Providers {
    pub runtime: RuntimeProvider,
    pub gateway: GatewayProvider,
    /// Through what services reach each other.
    pub mesh: Mesh,
    pub registry: RegistryProvider,
    /// What keeps messages; it runs where the topology has channels.
    pub broker: BrokerProvider,
    /// What delivers messages.
    pub couriers: Couriers,
    /// What keeps traces.
    pub telemetry: TelemetryProvider,
}

/// What starts the services.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum RuntimeProvider {
    /// Local processes of this machine.
    Process(ProcessRuntime),
}

impl Default for RuntimeProvider {
    fn default() -> Self {
        Self::Process(ProcessRuntime::default())
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ProcessRuntime {
    /// Automatic ports are taken from here: `20000-29999`. It should lie outside the kernel's ephemeral ports.
    pub ports: Option<String>,
}

/// What carries requests.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum GatewayProvider {
    /// meshctl's own gateway.
    Embedded(EmbeddedGateway),
}

impl Default for GatewayProvider {
    fn default() -> Self {
        Self::Embedded(EmbeddedGateway::default())
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct EmbeddedGateway {
    /// Where requests from outside arrive, `address:port`; by default `127.0.0.1:8080`.
    pub listen: Option<String>,
    /// How many gateway processes share the address; by default 1.
    #[schemars(range(min = 1, max = 16))]
    pub instances: Option<u32>,
    /// Threads of each process; by default one for each core.
    #[schemars(range(min = 1, max = 256))]
    pub threads: Option<u32>,
    /// Where metrics are read, `address:port`; by default an automatic port on 127.0.0.1.
    pub metrics: Option<String>,
    /// Limits of every connection and request.
    pub limits: GatewayLimits,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct GatewayLimits {
    /// The largest request body; by default 64MiB. A larger one is answered 413.
    pub request_body: Option<Bytes>,
    /// All headers of a request together; by default 64KiB. More is answered 431.
    pub headers: Option<Bytes>,
    /// How long a client may take to send its headers; by default 10s.
    pub header_timeout: Option<Span>,
    /// A client connection without a request is closed after this long; by default 75s.
    pub idle_timeout: Option<Span>,
    /// An upgraded connection (WebSocket) without traffic in either direction is closed after this long; by default 1h.
    pub upgrade_idle_timeout: Option<Span>,
}

/// Through what services reach each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Mesh {
    /// Through the gateway: every edge has an address of its own on it.
    #[default]
    Gateway,
}

/// What knows where the instances are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum RegistryProvider {
    /// The registry inside the daemon.
    Embedded(EmbeddedRegistry),
}

impl Default for RegistryProvider {
    fn default() -> Self {
        Self::Embedded(EmbeddedRegistry::default())
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct EmbeddedRegistry {
    /// How long a registration made from outside lives without being renewed, where it names no time; by default 30s.
    pub lease: Option<Span>,
}

/// A program and how it is run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Service {
    /// A reference service that comes with meshctl: `orders`, `inventory`, `billing`, `shipping`, `hello`.
    pub builtin: Option<String>,
    /// Any program: its arguments, `{{port}}`, `{{instance}}` and `{{service}}` filled in for each instance.
    pub command: Option<Vec<String>>,
    /// A container image.
    pub image: Option<String>,
    /// How many instances; by default 1.
    #[schemars(range(min = 0, max = 1000))]
    pub replicas: Option<u32>,
    /// The port that the program listens on, given to it as `PORT`: `auto` (the default), a number, or `none`.
    pub port: Option<Port>,
    /// Where the program runs, from the file's folder; by default that folder.
    pub working_dir: Option<String>,
    /// Environment variables, beside `PORT`, `HOST`, `MESHCTL_SERVICE`, `MESHCTL_INSTANCE`, where to send spans
    /// (`OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_EXPORTER_OTLP_PROTOCOL`, `OTEL_SERVICE_NAME`), and of the daemon's own `PATH`,
    /// `HOME`, `USER`, `SHELL`, locale, time zone and temporary folder. Nothing else is inherited.
    pub env: BTreeMap<String, EnvValue>,
    /// How it is known to be ready and alive; by default a TCP connection to its port.
    pub health: Health,
    /// Start order only: these must be ready first.
    pub depends_on: Vec<String>,
    /// The services that this one calls, each with policy where the default does not fit.
    pub calls: BTreeMap<String, EdgePolicy>,
    /// The channels that this one publishes to.
    pub publishes: Vec<String>,
    /// What each instance may use.
    pub resources: Resources,
    /// How an instance ends.
    pub stop: Stop,
    /// How long an instance may take to become ready; by default 30s.
    pub start_timeout: Option<Span>,
    /// How much of its output is kept.
    pub logs: LogLimits,
    /// Free-form labels, for selectors.
    pub labels: BTreeMap<String, String>,
}

/// The port that a program listens on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Port {
    Fixed(#[schemars(range(min = 1, max = 65535))] u16),
    Named(PortName),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum PortName {
    /// Chosen by meshctl.
    Auto,
    /// The program listens on no port; nothing can call it.
    None,
}

impl Service {
    /// The port that the topology fixes.
    pub fn fixed_port(&self) -> Option<u16> {
        match self.port {
            Some(Port::Fixed(port)) => Some(port),
            _ => None,
        }
    }

    /// Whether anything can call it.
    pub fn listens(&self) -> bool {
        self.port != Some(Port::Named(PortName::None))
    }

    /// The channels that it publishes to: those it names, and those whose address it asks for.
    pub fn published(&self) -> BTreeSet<&str> {
        let asked_for = self.env.values().filter_map(|value| match value {
            EnvValue::From(EnvSource::PublishUrlOf(channel)) => Some(channel),
            _ => None,
        });
        self.publishes.iter().chain(asked_for).map(String::as_str).collect()
    }
}

/// The value of an environment variable.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum EnvValue {
    Text(String),
    Bool(bool),
    Integer(i64),
    Number(f64),
    From(EnvSource),
}

/// Where the value of an environment variable comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum EnvSource {
    /// The address at which this service reaches another: `http://127.0.0.1:20417`.
    UrlOf(String),
    /// Where this service publishes to a channel by POST: `http://127.0.0.1:20418/channels/order.placed/messages`.
    PublishUrlOf(String),
    /// The content of a file, without its last line break, read when an instance starts; it is never shown.
    File(String),
}

/// How an instance is known to be ready and alive.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Health {
    /// A path that answers 2xx or 3xx to GET.
    pub http: Option<String>,
    /// `true`: the port accepts connections. `false`: running is healthy enough.
    pub tcp: Option<bool>,
    /// A program that exits 0, with the environment of the instance.
    pub exec: Option<Vec<String>>,
    /// Time between checks; by default 500ms.
    pub interval: Option<Span>,
    /// Time that one check may take; by default 1s.
    pub timeout: Option<Span>,
    /// Failed checks in a row until the instance is out of routing; by default 2.
    #[schemars(range(min = 1, max = 100))]
    pub failures: Option<u32>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Resources {
    /// The most memory of an instance, its descendants included.
    pub memory: Option<Bytes>,
    /// The most processor time, in cores: `0.5`.
    #[schemars(range(min = 0.01, max = 1024.0))]
    pub cpu: Option<f64>,
    /// The most open files of each process.
    #[schemars(range(min = 16, max = 1_048_576))]
    pub open_files: Option<u64>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Stop {
    /// How long requests under way may take once nothing new is sent; by default 10s.
    pub drain: Option<Span>,
    /// Time between SIGTERM and SIGKILL; by default 10s.
    pub grace: Option<Span>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct LogLimits {
    /// A log file is rotated at this size; by default 8MiB.
    pub max_size: Option<Bytes>,
    /// How many files are kept, the current one included; by default 2.
    #[schemars(range(min = 1, max = 100))]
    pub files: Option<u32>,
}

/// Policy of an edge. Every field left out is taken from `defaults`, then from meshctl's own.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct EdgePolicy {
    /// All attempts together, waiting included; travels with the request. By default 2s.
    pub deadline: Option<Span>,
    /// One attempt, until its response begins; by default 500ms.
    pub attempt_timeout: Option<Span>,
    pub retry: Option<Retry>,
    pub breaker: Option<Breaker>,
    pub bulkhead: Option<Bulkhead>,
    /// The answer where the service gives none.
    pub fallback: Option<Fallback>,
}

/// When a failed attempt is made again. Only requests that can be repeated are: GET, HEAD, OPTIONS, TRACE, PUT, DELETE,
/// one with the route's idempotency key, and any that never reached an instance.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Retry {
    /// Attempts after the first; by default 2. 0 switches retries off.
    #[schemars(range(min = 0, max = 10))]
    pub attempts: Option<u32>,
    /// What is tried again; by default connectFailure, reset, timeout, 502, 503, 504.
    pub on: Option<Vec<RetryOn>>,
    /// Retries as a share of all requests of the edge; by default 20% (and always 10/s).
    pub budget: Option<Percent>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum RetryOn {
    Status(#[schemars(range(min = 400, max = 599))] u16),
    Failure(RetryFailure),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum RetryFailure {
    /// The instance could not be reached; the request was never sent.
    ConnectFailure,
    /// The connection broke before a response.
    Reset,
    /// The attempt timed out.
    Timeout,
}

/// When an edge stops calling a service that fails.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Breaker {
    /// It opens at this share of failures; by default 50%.
    pub failure_ratio: Option<Percent>,
    /// Not before this many requests in the window; by default 20.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub minimum_requests: Option<u32>,
    /// How far it looks back; by default 10s.
    pub window: Option<Span>,
    /// How long it refuses before it probes; by default 5s.
    pub open_for: Option<Span>,
    /// Requests let through to probe; when all succeed, it closes. By default 3.
    #[schemars(range(min = 1, max = 1000))]
    pub probes: Option<u32>,
}

/// How much of a caller one dependency may occupy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Bulkhead {
    /// Requests under way at once; by default 1024.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub concurrency: Option<u32>,
    /// Requests that may wait for a place; by default 256. More are refused.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub queue: Option<u32>,
}

/// The answer where a service gives none; it carries `Meshctl-Fallback: true` and counts apart from success.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Fallback {
    /// By default 200.
    #[schemars(range(min = 200, max = 599))]
    pub status: Option<u16>,
    /// By default `application/json` where the body is JSON, else `text/plain`.
    pub content_type: Option<String>,
    pub body: String,
}

/// How requests from outside find a service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Route {
    /// `/orders` is that path alone, `/orders/*` everything below it, and `*` within a path one segment: `/users/*/cart`.
    pub path: String,
    /// `shop.example.com`, or `*.example.com`; by default any.
    #[serde(default)]
    pub host: Option<String>,
    /// By default any.
    #[serde(default)]
    pub methods: Option<Vec<String>>,
    /// Header values that the request must have; `*` means any value.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// A service, or several with weights.
    pub to: RouteTo,
    /// A request with this header may be repeated, whatever its method.
    #[serde(default)]
    pub idempotency_key: Option<String>,
    /// How many requests pass; more are answered 429.
    #[serde(default)]
    pub rate_limit: Option<RateLimit>,
    #[serde(default)]
    pub deadline: Option<Span>,
    #[serde(default)]
    pub attempt_timeout: Option<Span>,
    #[serde(default)]
    pub retry: Option<Retry>,
    #[serde(default)]
    pub fallback: Option<Fallback>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum RouteTo {
    One(String),
    Weighted(Vec<WeightedTarget>),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WeightedTarget {
    pub service: String,
    /// The weights of one route are 100% together.
    pub weight: Percent,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RateLimit {
    pub rate: Rate,
    /// How many may come at once; by default one second's worth.
    #[serde(default)]
    #[schemars(range(min = 1, max = 10_000_000))]
    pub burst: Option<u32>,
    /// Counted for each value of this; by default for all requests together.
    #[serde(default)]
    pub per: Option<RateLimitKey>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum RateLimitKey {
    /// The value of a request header.
    Header(String),
}

impl Route {
    /// The services behind the route with their weights, which are 1.0 together.
    pub fn targets(&self) -> Vec<(&str, f64)> {
        match &self.to {
            RouteTo::One(service) => vec![(service, 1.0)],
            RouteTo::Weighted(targets) => targets.iter().map(|t| (t.service.as_str(), t.weight.0)).collect(),
        }
    }

    /// What the route says of policy, beside its edge.
    pub fn policy(&self) -> EdgePolicy {
        EdgePolicy {
            deadline: self.deadline,
            attempt_timeout: self.attempt_timeout,
            retry: self.retry.clone(),
            fallback: self.fallback.clone(),
            ..EdgePolicy::default()
        }
    }
}

impl EnvValue {
    /// The value as text where it needs nothing from anywhere else.
    pub fn literal(&self) -> Option<String> {
        match self {
            Self::Text(text) => Some(text.clone()),
            Self::Bool(value) => Some(value.to_string()),
            Self::Integer(value) => Some(value.to_string()),
            Self::Number(value) => Some(value.to_string()),
            Self::From(_) => None,
        }
    }
}
