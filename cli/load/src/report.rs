//! What happened: the fields are a contract with scripts (`cli.md`).

use std::collections::BTreeMap;

use serde::Serialize;

/// How far a run is, a few times a second.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tick {
    /// `opening`, `ramp`, `warm-up`, `measuring`, `completing` (waiting for asynchronous effects), `done`.
    pub phase: &'static str,
    pub elapsed_s: f64,
    /// Of the whole run.
    pub total_s: f64,
    pub connections: u32,
    pub in_flight: u64,
    pub requests: u64,
    pub errors: u64,
    /// Over the last second.
    pub per_s: f64,
    /// Over the last second, from intended send times.
    pub p50_ms: f64,
    pub p99_ms: f64,
    /// How far the sender is behind its own schedule now.
    pub behind_ms: f64,
}

/// One run, over.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// `sessions` (open loop), `inFlight` (closed loop), `async` (flows that end in a channel).
    pub mode: String,
    pub validity: Validity,
    /// Intended.
    pub offered_per_s: f64,
    /// Successes that came within the measured time, in a second: those that only came after it are no throughput.
    pub achieved_per_s: f64,
    pub connections: u32,
    pub duration_s: f64,
    /// Those that were to be sent within the measured time.
    pub requests: u64,
    pub succeeded: u64,
    /// By cause: `timeout`, `connect`, `reset` (the connection ended before the answer did), `malformed` (no HTTP/1.1),
    /// `status 503`, `notSent` (no connection was free for it in time, or the generator was too slow).
    pub errors: BTreeMap<String, u64>,
    /// From intended send times, successes only; `None` where the run is invalid.
    pub latency_ms: Option<Latency>,
    /// From actual send times: what a generator that forgives itself would say.
    pub uncorrected_latency_ms: Option<Latency>,
    /// Mean over the measured time.
    pub in_flight_mean: f64,
    /// Stopped before its time: `durationS` is what was measured until then.
    pub interrupted: bool,
    pub requests_by_name: BTreeMap<String, u64>,
    /// From the intended send time until the effect shows; `None` where no flow ends in a channel.
    pub completion_ms: Option<Latency>,
    /// Accepted and not completed in time.
    pub incomplete: u64,
    pub bytes_received: u64,
    /// What the generator itself used.
    pub generator: Generator,
    /// The slowest and the failed, to follow with `meshctl trace`: at most ten each.
    pub slowest: Vec<Example>,
    pub failed: Vec<Example>,
}

/// Whether the numbers are the service's, and not the generator's own.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Validity {
    pub valid: bool,
    /// In words, with numbers and what to do: why it is not.
    pub reasons: Vec<String>,
}

/// Milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Latency {
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
    pub mean: f64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Generator {
    pub cpu_percent: f64,
    pub max_memory_bytes: u64,
    pub threads: usize,
    /// How far sending was behind its schedule, 99 of 100 requests.
    pub schedule_lag_p99_ms: f64,
    pub schedule_lag_max_ms: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Example {
    pub trace_id: Option<String>,
    pub name: String,
    pub latency_ms: f64,
    /// `200`, or the cause of the failure; `incomplete` where it was accepted and its effect did not show.
    pub outcome: String,
}
