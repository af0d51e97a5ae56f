//! Effects that show after the answer.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use meshctl_load::plan::{Arrivals, Completion, Plan, Template};
use meshctl_load::{Stop, run};

use crate::server::{Reply, Seen, Server, ok, with_status};
use crate::{due, get, plan, shared};

const TAKES: Duration = Duration::from_millis(300);

/// Accepts orders, and ships each after a while, except every tenth.
fn shop() -> Server {
    let orders: Arc<Mutex<BTreeMap<String, Instant>>> = Arc::default();
    Server::start(move |seen: Seen| {
        let mut orders = orders.lock().expect("nobody panicked");
        let reply = match seen.path().strip_prefix("/shipments/") {
            None => {
                orders.insert(seen.body.clone(), Instant::now());
                with_status("202 Accepted", &format!(r#"{{"order":{{"id":{}}}}}"#, seen.body))
            }
            Some(id) => match orders.get(id) {
                Some(accepted) if accepted.elapsed() >= TAKES && !id.ends_with('0') => ok("{}"),
                _ => with_status("404 Not Found", ""),
            },
        };
        async { Reply::Send(reply) }
    })
}

fn ordering(path: &str, server: &Server) -> Plan {
    let completion =
        Completion { path: path.into(), every: Duration::from_millis(10), within: Duration::from_millis(1_500) };
    let order =
        Template { method: "POST".into(), body: "{{n}}".into(), completion: Some(completion), ..get("/orders") };
    Plan { requests: vec![order], ..plan(server, Arrivals::Open { per_second: 100.0 }) }
}

#[test]
fn completion_counts_from_the_intended_send_time_and_what_never_shows_is_incomplete() {
    let server = shop();
    let plan = ordering("/shipments/{{order.id}}", &server);
    let outcome = shared(&plan);
    let report = &outcome.report;
    let due: Vec<_> = due(&plan).collect();
    let never = due.iter().filter(|arrival| arrival.n % 10 == 0).count() as u64;
    assert_eq!((report.requests, report.succeeded), (due.len() as u64, due.len() as u64), "{report:?}");
    assert_eq!((report.mode.as_str(), report.incomplete), ("async", never));
    assert_eq!(outcome.completion.len(), report.requests - never);
    // In nanoseconds, less what the histogram rounds by.
    assert!(outcome.completion.min() as f64 >= TAKES.as_nanos() as f64 * 0.999, "{}", outcome.completion.min());
    assert!(outcome.completion.max() < 1_500_000_000, "{}", outcome.completion.max());
    assert!(report.failed.iter().all(|example| example.outcome == "incomplete" && example.trace_id.is_some()));
}

#[test]
fn who_stops_a_run_does_not_wait_for_effects_longer_than_for_answers() {
    let server = Server::start(async |seen: Seen| match seen.path() {
        "/orders" => Reply::Send(ok(r#"{"order":{"id":1}}"#)),
        _ => Reply::Send(with_status("404 Not Found", "")),
    });
    let mut plan = ordering("/shipments/{{order.id}}", &server);
    let within = Duration::from_secs(100_000);
    plan.requests[0].completion.as_mut().expect("it has one").within = within;
    let plan = Plan { duration: within, timeout: Duration::from_millis(300), ..plan };
    let stop = Stop::new();
    let report = run(&plan, &stop, |tick| {
        if tick.requests > 20 {
            stop.stop();
        }
    });
    let report = report.expect("a run").report;
    assert!(report.interrupted && report.requests > 20, "{report:?}");
    assert_eq!((report.incomplete, report.completion_ms), (0, None));
}

#[test]
fn an_answer_without_the_field_is_told_and_the_run_is_invalid() {
    let server = shop();
    let report = shared(&ordering("/shipments/{{orderId}}", &server)).report;
    assert_eq!(report.incomplete, report.requests);
    assert!(report.validity.reasons.iter().any(|reason| reason.contains("no field `orderId`")), "{report:?}");
}
