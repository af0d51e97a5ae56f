//! Percentiles against servers whose latencies can be calculated.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use meshctl_load::plan::{Arrivals, Plan};
use meshctl_load::{Outcome, Stop, run};

use crate::server::{Reply, Server, ok};
use crate::{alone, due, get, outcome, plan, shared};

/// The server answers nothing in the first `FROZEN` milliseconds of every `PERIOD` of the wall clock.
const PERIOD: u64 = 2_000;
const FROZEN: u64 = 400;
/// A server that thaws later than this, in milliseconds, did not do what the test calculates with.
const LATE: u64 = 5;

/// With the latest that it thawed after its time, in milliseconds.
fn freezing() -> (Server, Arc<AtomicU64>) {
    let late = Arc::new(AtomicU64::new(0));
    let latest = late.clone();
    let server = Server::start(move |_| {
        let latest = latest.clone();
        async move {
            let left = FROZEN.saturating_sub(wall_clock() % PERIOD);
            if left > 0 {
                tokio::time::sleep(Duration::from_millis(left)).await;
                latest.fetch_max((wall_clock() % PERIOD).saturating_sub(FROZEN), SeqCst);
            }
            Reply::Send(ok("thawed"))
        }
    });
    (server, late)
}

/// Milliseconds.
fn wall_clock() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970").as_millis() as u64
}

/// The first run in which `plan` could be kept to, by `undisturbed` and by the generator's own word: others prove nothing.
fn valid(plan: &Plan, mut undisturbed: impl FnMut() -> bool) -> Outcome {
    for _ in 0..8 {
        let outcome = outcome(plan);
        if undisturbed() && outcome.report.validity.valid {
            return outcome;
        }
        assert!(outcome.report.validity.valid || outcome.report.latency_ms.is_none(), "{:?}", outcome.report);
        eprintln!("disturbed, once more: {:?}", outcome.report.validity.reasons);
    }
    panic!("other programs disturbed each of eight runs: this test needs a processor to itself for a few seconds");
}

#[test]
fn a_freezing_server_shows_as_long_as_users_would_have_waited() {
    let _alone = alone();
    let (server, late) = freezing();
    let plan = Plan { duration: Duration::from_secs(4), ..plan(&server, Arrivals::Open { per_second: 400.0 }) };
    let outcome = valid(&plan, || late.swap(0, SeqCst) <= LATE);

    // What each request of this very schedule must wait.
    let mut waits: Vec<f64> = due(&plan)
        .map(|arrival| {
            let at = outcome.started_at.as_nanosecond() as f64 / 1e6 + arrival.at as f64 / 1e6;
            (FROZEN as f64 - at % PERIOD as f64).max(0.0)
        })
        .collect();
    waits.sort_by(f64::total_cmp);
    let expected = |quantile: f64| waits[(waits.len() as f64 * quantile) as usize];
    let corrected = outcome.report.latency_ms.expect("valid");
    for (found, quantile) in [(corrected.p90, 0.9), (corrected.p99, 0.99)] {
        let expected = expected(quantile);
        assert!((found - expected).abs() < 0.05 * expected, "p{quantile}: {found}, expected {expected}");
    }
    // And what any such schedule must: a fifth of the time is frozen, so 99 of 100 wait less than 95 % of the freeze.
    assert!((corrected.p99 - 380.0).abs() < 19.0, "{corrected:?}");
    // Four connections hide the rest of what waited: this is what a closed loop reports.
    let uncorrected = outcome.report.uncorrected_latency_ms.expect("valid");
    assert!(uncorrected.p90 < corrected.p90 / 5.0, "{uncorrected:?} {corrected:?}");
    assert_eq!(outcome.report.requests, waits.len() as u64);
    assert_eq!(outcome.corrected.len(), waits.len() as u64);
}

#[test]
fn littles_law_holds_in_a_closed_loop_with_a_fixed_delay() {
    let _alone = alone();
    let server = Server::start(async |_| {
        tokio::time::sleep(Duration::from_millis(100)).await;
        Reply::Send(ok(""))
    });
    let duration = Duration::from_secs(3);
    let plan =
        Plan { duration, connections: 20, warm_up: Duration::from_millis(300), ..plan(&server, Arrivals::Closed) };
    let report = valid(&plan, || true).report;
    assert_eq!(report.mode, "inFlight");
    let latency = report.latency_ms.expect("valid");
    assert!(latency.p50 >= 100.0, "{latency:?}");
    assert!(report.in_flight_mean > 19.5 && report.in_flight_mean <= 20.0, "{report:?}");
    let recomputed = report.achieved_per_s * latency.mean / 1000.0;
    assert!((recomputed - report.in_flight_mean).abs() < 0.05 * report.in_flight_mean, "{recomputed} {report:?}");
}

#[test]
fn every_request_of_the_schedule_is_sent_once_and_counted_once() {
    let server = Server::start(async |_| Reply::Send(ok("")));
    let plan = Plan {
        ramp: Duration::from_millis(300),
        warm_up: Duration::from_millis(200),
        requests: vec![get("/a"), get("/b")],
        ..plan(&server, Arrivals::Open { per_second: 500.0 })
    };
    let report = shared(&plan).report;
    let due: Vec<_> = due(&plan).collect();
    assert_eq!((report.requests, report.succeeded, report.errors.len()), (due.len() as u64, due.len() as u64, 0));
    let to_a = due.iter().filter(|arrival| arrival.template == 0).count() as u64;
    assert_eq!(report.requests_by_name["GET /a"], to_a);
    // Ramp and warm-up are sent, and not counted: half of 500/s for 0.3 s, all of it for 0.2 s.
    let before = server.seen() - report.requests;
    assert!((100..260).contains(&before), "{before}");
}

#[test]
fn ticks_tell_of_every_phase_in_order() {
    let server = Server::start(async |_| Reply::Send(ok("")));
    let plan = Plan {
        ramp: Duration::from_millis(600),
        warm_up: Duration::from_millis(600),
        ..plan(&server, Arrivals::Open { per_second: 200.0 })
    };
    let mut ticks = Vec::new();
    let report = run(&plan, &Stop::new(), |tick| ticks.push(tick)).expect("a run").report;
    let mut phases: Vec<&str> = ticks.iter().map(|tick| tick.phase).collect();
    phases.dedup();
    assert_eq!(phases, ["opening", "ramp", "warm-up", "measuring", "done"]);
    let last = ticks.last().expect("one at least");
    assert_eq!(last.requests, server.seen());
    assert!(last.requests >= report.requests && last.in_flight == 0);
    assert!(ticks.iter().any(|tick| tick.per_s > 0.0 && tick.p99_ms > 0.0 && tick.connections == 4), "{ticks:?}");
}
