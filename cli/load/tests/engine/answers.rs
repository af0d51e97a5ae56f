//! Whatever servers do with answers and connections: each request ends once, as what it was.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use meshctl_load::plan::{Arrivals, Plan, Template};
use meshctl_load::report::Report;
use meshctl_load::{LoadError, Stop, run};

use crate::server::{Reply, Seen, Server, ok, with_status};
use crate::{due, get, plan, shared};

const OPEN: Arrivals = Arrivals::Open { per_second: 200.0 };

fn all_succeed(report: &Report) {
    assert!(report.requests > 0);
    assert_eq!((report.succeeded, report.errors.len(), report.incomplete), (report.requests, 0, 0), "{report:?}");
}

#[test]
fn chunked_trickled_and_endless_answers_are_read_to_their_end() {
    let server = Server::start(async |seen| match seen.n % 4 {
        0 => Reply::Send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n".to_vec()),
        1 => Reply::Trickle(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n".to_vec()),
        2 => Reply::Trickle(ok("trickled")),
        // Without a length, the connection's end is the answer's.
        _ => Reply::Close(b"HTTP/1.1 200 OK\r\n\r\nto the end".to_vec()),
    });
    let report = shared(&plan(&server, OPEN)).report;
    all_succeed(&report);
    assert_eq!(report.requests, server.seen());
}

#[test]
fn a_large_answer_is_skipped_and_counted() {
    let server = Server::start(async |_| Reply::Send(ok(&"x".repeat(300_000))));
    let report = shared(&plan(&server, Arrivals::Open { per_second: 50.0 })).report;
    all_succeed(&report);
    assert!(report.bytes_received >= (report.requests - 4) * 300_000, "{report:?}");
}

#[test]
fn a_server_that_closes_after_each_answer_is_connected_to_again() {
    for arrivals in [OPEN, Arrivals::Closed] {
        let server = Server::start(async |_| {
            Reply::Close(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok".to_vec())
        });
        let report = shared(&plan(&server, arrivals)).report;
        all_succeed(&report);
        assert_eq!(report.requests, server.seen());
    }
}

#[test]
fn resets_statuses_and_nonsense_are_errors_by_their_names() {
    let server = Server::start(async |seen| match seen.n % 5 {
        0 => Reply::Reset(Vec::new()),
        1 => Reply::Send(with_status("503 Service Unavailable", "")),
        2 => Reply::Close(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf".to_vec()),
        3 => Reply::Close(b"220 mail.example ESMTP\r\n\r\n".to_vec()),
        _ => Reply::Send(ok("")),
    });
    let report = shared(&plan(&server, OPEN)).report;
    assert_eq!(report.requests, server.seen());
    assert_eq!(report.succeeded, report.requests / 5 + u64::from(report.requests % 5 == 4));
    let fifth = report.requests / 5;
    let close = |cause: &str, times: u64| {
        let found = report.errors.get(cause).copied().unwrap_or(0);
        assert!((fifth * times..=(fifth + 1) * times).contains(&found), "{cause}: {found} of {report:?}");
    };
    close("reset", 2);
    close("status 503", 1);
    close("malformed", 1);
    assert_eq!(report.errors.values().sum::<u64>() + report.succeeded, report.requests);
    let told: BTreeSet<&str> = report.failed.iter().map(|example| example.outcome.as_str()).collect();
    assert_eq!(told, BTreeSet::from(["malformed", "reset", "status 503"]));
}

#[test]
fn expected_statuses_are_successes_and_others_are_not() {
    let server = Server::start(async |_| Reply::Send(with_status("404 Not Found", "")));
    let mut plan = plan(&server, OPEN);
    plan.requests[0].expect = vec![404];
    all_succeed(&shared(&plan).report);
}

#[test]
fn a_server_that_dies_meanwhile_fails_what_is_sent_to_it() {
    let server = Server::start(async |_| Reply::Send(ok("")));
    let plan = Plan { connections: 2, threads: 1, ..plan(&server, OPEN) };
    let mut server = Some(server);
    let outcome = run(&plan, &Stop::new(), |tick| {
        if tick.requests > 20 {
            server.take();
        }
    });
    let report = outcome.expect("a run").report;
    assert!(report.succeeded > 0 && report.errors.get("connect").is_some_and(|&count| count > 0), "{report:?}");
    assert_eq!(report.requests, due(&plan).count() as u64);
    assert_eq!(report.errors.values().sum::<u64>() + report.succeeded, report.requests);
}

#[test]
fn nobody_listening_is_said_before_anything_else() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let server = Server::start(async |_| Reply::Send(ok("")));
    let plan = Plan { address: listener.local_addr().expect("its address"), ..plan(&server, OPEN) };
    drop(listener);
    let error = run(&plan, &Stop::new(), |_| {}).expect_err("nobody is there");
    assert!(matches!(error, LoadError::Connect { .. }), "{error}");
    assert!(error.to_string().contains("Connection refused"), "{error}");
}

#[test]
fn a_mistake_in_a_template_is_found_before_anything_is_sent() {
    let server = Server::start(async |_| Reply::Send(ok("")));
    let plan = Plan { requests: vec![get("/ok"), get("/{{nn}}")], ..plan(&server, OPEN) };
    let error = run(&plan, &Stop::new(), |_| {}).expect_err("no such placeholder");
    assert!(matches!(error, LoadError::Template { at: 2, .. }), "{error}");
    assert_eq!(server.seen(), 0);
}

/// What a server saw of a run, sorted.
fn bodies(plan: impl FnOnce(&Server) -> Plan) -> Vec<String> {
    let bodies = Arc::new(Mutex::new(Vec::new()));
    let kept = bodies.clone();
    let server = Server::start(move |seen: Seen| {
        kept.lock().expect("nobody panicked").push(format!("{} {}", seen.path(), seen.body));
        async { Reply::Send(ok("")) }
    });
    shared(&plan(&server));
    let mut bodies = std::mem::take(&mut *bodies.lock().expect("nobody panicked"));
    bodies.sort();
    bodies
}

#[test]
fn the_same_seed_sends_the_same() {
    let with_seed = |seed| {
        bodies(|server| Plan {
            seed,
            requests: vec![Template {
                method: "POST".into(),
                body: r#"{"n":{{n}},"key":"{{uuid}}","of":"{{random sku}}"}"#.into(),
                values: vec![("sku".into(), vec!["apple".into(), "pear".into()])],
                ..get("/{{random 1 1000}}")
            }],
            ..plan(server, OPEN)
        })
    };
    let first = with_seed(3);
    assert!(first.len() > 100, "{}", first.len());
    assert_eq!(first, with_seed(3));
    assert_ne!(first, with_seed(4));
}

#[test]
fn each_request_has_a_trace_of_its_own_and_few_are_sampled() {
    let parents = Arc::new(Mutex::new(Vec::new()));
    let kept = parents.clone();
    let server = Server::start(move |seen: Seen| {
        kept.lock().expect("nobody panicked").extend(seen.header("traceparent").map(String::from));
        async move { if seen.n.is_multiple_of(7) { Reply::Send(with_status("500 No", "")) } else { Reply::Send(ok("")) } }
    });
    let report = shared(&plan(&server, Arrivals::Open { per_second: 400.0 })).report;
    let parents = parents.lock().expect("nobody panicked");
    let ids: BTreeSet<&str> = parents.iter().map(|parent| &parent[3..35]).collect();
    assert_eq!((parents.len() as u64, ids.len()), (server.seen(), parents.len()));
    let sampled = parents.iter().filter(|parent| parent.ends_with("-01")).count();
    assert!((1..=22).contains(&sampled), "{sampled} in a second");
    for example in report.slowest.iter().chain(&report.failed) {
        assert!(ids.contains(example.trace_id.as_deref().unwrap_or_default()), "{example:?}");
    }
    assert_eq!((report.slowest.len(), report.failed.len()), (10, 10));
    assert!(report.slowest.is_sorted_by(|a, b| a.latency_ms >= b.latency_ms));
}

#[test]
fn a_run_that_is_stopped_reports_what_it_covered() {
    let server = Server::start(async |_| Reply::Send(ok("")));
    let plan = Plan { duration: Duration::from_secs(600), ..plan(&server, OPEN) };
    let stop = Stop::new();
    let report = run(&plan, &stop, |tick| {
        if tick.phase == "measuring" && tick.requests > 50 {
            stop.stop();
        }
    });
    let report = report.expect("a run").report;
    assert!(report.interrupted && report.duration_s > 0.0 && report.duration_s < 60.0, "{report:?}");
    all_succeed(&report);
    assert_eq!(report.requests, server.seen());
}
