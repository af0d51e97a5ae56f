//! A generator that did not do what it was asked to says so, and gives no headline.

use std::time::Duration;

use meshctl_load::plan::{Arrivals, Plan};

use crate::server::{Reply, Server, ok};
use crate::{due, plan, shared};

#[test]
fn a_rate_that_nobody_could_send_is_invalid() {
    let server = Server::start(async |_| Reply::Send(ok("")));
    let plan = Plan {
        threads: 1,
        duration: Duration::from_millis(100),
        timeout: Duration::from_millis(100),
        // One in ten nanoseconds.
        ..plan(&server, Arrivals::Open { per_second: 1e8 })
    };
    let report = shared(&plan).report;
    assert!(!report.validity.valid);
    assert_eq!((report.latency_ms, report.uncorrected_latency_ms), (None, None));
    // All that was due is accounted for, also what was never begun.
    assert_eq!(report.requests, due(&plan).count() as u64);
    assert_eq!(report.errors.values().sum::<u64>() + report.succeeded, report.requests);
    let reasons = report.validity.reasons.join("\n");
    assert!(reasons.contains("were never sent") && reasons.contains("behind its own schedule"), "{reasons}");
    assert!(report.generator.schedule_lag_p99_ms > 10.0, "{report:?}");
}

#[test]
fn requests_that_found_no_connection_are_not_sent_and_the_run_is_invalid() {
    let server = Server::start(async |_| std::future::pending().await);
    let plan = Plan {
        connections: 2,
        timeout: Duration::from_millis(200),
        ..plan(&server, Arrivals::Open { per_second: 100.0 })
    };
    let report = shared(&plan).report;
    assert_eq!(report.succeeded, 0);
    let (timeouts, not_sent) = (report.errors["timeout"], report.errors["notSent"]);
    assert_eq!(timeouts + not_sent, report.requests);
    assert_eq!(report.requests, due(&plan).count() as u64);
    assert!(timeouts >= 2 && not_sent > timeouts, "{report:?}");
    assert!(report.validity.reasons.iter().any(|reason| reason.contains("open more connections")), "{report:?}");
    assert_eq!(report.latency_ms, None);
}

#[test]
fn a_run_that_is_over_before_anything_was_due_is_invalid() {
    let server = Server::start(async |_| Reply::Send(ok("")));
    let report = shared(&plan(&server, Arrivals::Open { per_second: 0.000_001 })).report;
    assert!(report.validity.reasons.iter().any(|reason| reason.contains("nothing was measured")), "{report:?}");
}
