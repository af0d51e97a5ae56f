//! The report, from what the threads brought home.

use std::io;
use std::time::Duration;

use hdrhistogram::Histogram;
use jiff::Timestamp;

use crate::Outcome;
use crate::plan::{Arrivals, Plan};
use crate::poller::Usage;
use crate::progress::Control;
use crate::recorder::{self, Cause, Recorder};
use crate::report::{Example, Generator, Latency, Report};
use crate::schedule::Window;
use crate::verdict::{self, Evidence};
use crate::worker::Harvest;

pub(crate) fn draw_up(
    plan: &Plan,
    control: &Control,
    harvests: Vec<Harvest>,
    problem: Option<io::Error>,
    started_at: Timestamp,
) -> Outcome {
    let window = Window { to: control.end(), ..Window::of(plan) };
    let measured = window.to.saturating_sub(window.from) as f64;
    let opened = harvests.iter().map(|harvest| harvest.opened).sum();
    let usages: Vec<Usage> = harvests.iter().map(|harvest| harvest.usage).collect();
    let mut record = Recorder::new(plan.requests.len());
    for harvest in harvests {
        record.merge(harvest.recorder);
    }
    // Of something in nanoseconds; nothing was measured where the run was stopped too early.
    let per_measured = |nanos: f64| if measured > 0.0 { nanos / measured } else { 0.0 };
    let per_s = |count: u64| per_measured(count as f64 * 1e9);
    let busiest = usages.iter().max_by_key(|usage| usage.busy).copied().unwrap_or_default();
    let in_flight_mean = per_measured(record.in_flight.area as f64);
    let evidence = Evidence {
        open_loop: matches!(plan.arrivals, Arrivals::Open { .. }),
        measured_s: measured / 1e9,
        requests: record.requests,
        not_sent: record.errors.get(&Cause::NotSent).copied().unwrap_or(0),
        lag_p99_ms: millis(record.lag.value_at_quantile(0.99)),
        median_ms: millis(record.corrected.value_at_quantile(0.5)),
        busiest: per_measured(busiest.busy as f64),
        waiting: per_measured(usages.iter().map(|usage| usage.waited).max().unwrap_or(0) as f64),
        threads: plan.threads,
        connections: plan.connections,
        opened,
        connect_problem: problem.map(|error| error.to_string()),
        refused_here: record.refused_here,
        recomputed_in_flight: per_measured(record.residence as f64),
        in_flight_mean,
    };
    let mut validity = verdict::judge(&evidence);
    if let Some((field, count)) = &record.without_field {
        validity.valid = false;
        validity.reasons.push(format!(
            "{count} answers had no field `{field}` to ask for their completion with: correct the completion's path"
        ));
    }
    let example = |example: recorder::Example| Example {
        trace_id: example.trace.map(|id| format!("{id:032x}")),
        name: plan.requests[usize::from(example.template)].name.clone(),
        latency_ms: millis(example.latency),
        outcome: match example.outcome {
            Ok(status) => status.to_string(),
            Err(cause) => cause.to_string(),
        },
    };
    let asynchronous = plan.requests.iter().any(|request| request.completion.is_some());
    let mut requests_by_name = std::collections::BTreeMap::new();
    for (request, share) in plan.requests.iter().zip(&record.by_template) {
        *requests_by_name.entry(request.name.clone()).or_default() += share.requests;
    }
    let headline = |histogram: &Histogram<u64>| latency(histogram).filter(|_| validity.valid);
    let report = Report {
        mode: match plan.arrivals {
            _ if asynchronous => "async",
            Arrivals::Open { .. } => "sessions",
            Arrivals::Closed => "inFlight",
        }
        .into(),
        offered_per_s: per_s(record.requests),
        achieved_per_s: per_s(record.came_in_time),
        connections: plan.connections,
        duration_s: measured / 1e9,
        requests: record.requests,
        succeeded: record.succeeded,
        errors: record.errors.iter().map(|(cause, count)| (cause.to_string(), *count)).collect(),
        latency_ms: headline(&record.corrected),
        uncorrected_latency_ms: headline(&record.uncorrected),
        in_flight_mean,
        interrupted: control.is_stopped(),
        requests_by_name,
        completion_ms: headline(&record.completion).filter(|_| asynchronous),
        incomplete: record.incomplete,
        bytes_received: record.bytes,
        generator: Generator {
            cpu_percent: per_measured(usages.iter().map(|usage| usage.busy as f64).sum()) * 100.0,
            max_memory_bytes: max_memory().unwrap_or(0),
            threads: plan.threads,
            schedule_lag_p99_ms: evidence.lag_p99_ms,
            schedule_lag_max_ms: millis(record.lag.max()),
        },
        slowest: record.slowest().into_iter().map(example).collect(),
        failed: record.failures().into_iter().map(example).collect(),
        validity,
    };
    Outcome {
        report,
        started_at,
        measured_at: started_at + Duration::from_nanos(window.from),
        corrected: record.corrected,
        uncorrected: record.uncorrected,
        completion: record.completion,
        shares: record.by_template,
    }
}

/// `None` where nothing was recorded.
fn latency(histogram: &Histogram<u64>) -> Option<Latency> {
    let at = |quantile| millis(histogram.value_at_quantile(quantile));
    (!histogram.is_empty()).then(|| Latency {
        p50: at(0.5),
        p90: at(0.9),
        p99: at(0.99),
        p999: at(0.999),
        max: millis(histogram.max()),
        mean: histogram.mean() / 1e6,
    })
}

fn millis(nanos: u64) -> f64 {
    nanos as f64 / 1e6
}

/// The most that this process has had in memory so far.
fn max_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}
