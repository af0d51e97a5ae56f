//! What is to be sent, to whom, and when: everything is decided before the first byte goes out.

use std::net::SocketAddr;
use std::time::Duration;

/// One run.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The gateway, or the server.
    pub address: SocketAddr,
    /// The value of `Host`.
    pub host: String,
    /// What is sent, each as often as its weight says; at least one.
    pub requests: Vec<Template>,
    pub arrivals: Arrivals,
    /// Open at the same time.
    pub connections: u32,
    /// Measured; warm-up and ramp come before it.
    pub duration: Duration,
    /// From nothing to the full rate, or to all connections.
    pub ramp: Duration,
    /// At the full rate, and not counted.
    pub warm_up: Duration,
    /// After which a request counts as timed out; its connection is closed.
    pub timeout: Duration,
    /// Threads, each with its own event loop and connections.
    pub threads: usize,
    /// The same seed sends the same at the same times.
    pub seed: u64,
}

/// When requests are sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arrivals {
    /// Open loop: so many in a second, as independent users would (Poisson), regardless of answers. Latency counts from the
    /// intended time.
    Open { per_second: f64 },
    /// Closed loop: each connection sends its next request when it has its answer. The service decides the rate.
    Closed,
}

/// One kind of request. `{{…}}` in path, headers and body is filled in for each request: `{{n}}` (its number from 1),
/// `{{uuid}}`, `{{random 1 100}}`, `{{random NAME}}` (one of the values of that name), `{{now}}`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Template {
    /// In reports: the flow's name, or `GET /inventory/apple`.
    pub name: String,
    pub weight: f64,
    pub method: String,
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub body: String,
    /// For `{{random NAME}}`.
    pub values: Vec<(String, Vec<String>)>,
    /// The status that means success; any 2xx and 3xx where empty.
    pub expect: Vec<u16>,
    /// Where the effect shows after the answer, for flows that end in a channel.
    pub completion: Option<Completion>,
}

/// Asked again until it answers 200: `GET /shipments/{{orderId}}`, filled in from the fields of the first answer's JSON.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    pub path: String,
    /// Between two questions.
    pub every: Duration,
    /// After which it counts as not completed.
    pub within: Duration,
}
