//! Load tests against the running shop: what scripts read, where every message went, how it ends.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::Deserializer;
use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};
use meshctl_tests::{Ran, System, process, repository};
use rustix::process::Signal;
use serde_json::Value;

/// The shop on this system's port.
fn shop() -> System {
    let system = System::new();
    let port = system.port(0).to_string();
    let system = system.with("SHOP_PORT", &port);
    let file = repository().join("manifests/topologies/shop.yaml");
    system.run(&["apply", &file.to_string_lossy(), "--yes"]).expect(0);
    system
}

/// The first run that is valid: other tests may starve the generator for a while, and then it has to say so.
#[track_caller]
fn valid(system: &System, words: &[&str]) -> Ran {
    for _ in 0..10 {
        let ran = system.run(words);
        if ran.status != 98 {
            return ran;
        }
    }
    panic!("no run of ten was valid: {words:?}");
}

#[test]
fn two_hundred_sessions_browse_the_shop() {
    let system = shop();
    let log = system.folder().join("run.hlog");
    let log = log.to_str().expect("a plain name");
    let words = ["loadtest", "browse-stock", "-c", "200", "-z", "3s", "--warm-up", "500ms", "--ramp", "500ms"];
    let slo = ["--slo", "errors = 0", "--hdr-log", log, "-o", "json"];
    let result = valid(&system, &[&words[..], &slo].concat()).expect(0).json();
    assert_eq!((&result["mode"], &result["connections"]), (&"sessions".into(), &200.into()), "{result:#}");
    assert_eq!((&result["validity"]["valid"], &result["validity"]["reasons"]), (&true.into(), &Value::Array(vec![])));
    assert!(result["requests"].as_u64() > Some(100) && result["succeeded"] == result["requests"], "{result:#}");
    assert_eq!((&result["slo"][0]["expression"], &result["slo"][0]["met"]), (&"errors = 0".into(), &true.into()));
    for field in ["offeredPerS", "achievedPerS", "inFlightMean"] {
        assert!(result[field].as_f64() > Some(0.0), "{field} in {result:#}");
    }
    let slowest = result["slowest"][0]["traceId"].as_str().map(str::len);
    assert_eq!((slowest, &result["ledger"]), (Some(32), &Value::Null), "{result:#}");

    let written = std::fs::read(log).expect("the log");
    let intervals = IntervalLogIterator::new(&written).filter_map(|entry| match entry {
        Ok(LogEntry::Interval(interval)) => Some(interval),
        _ => None,
    });
    let intervals: Vec<_> = intervals.collect();
    let bytes = STANDARD.decode(intervals[0].encoded_histogram()).expect("base64");
    let read: Histogram<u64> = Deserializer::new().deserialize(&mut bytes.as_slice()).expect("a histogram");
    assert_eq!(Some(read.len()), result["succeeded"].as_u64());
    let p99 = read.value_at_quantile(0.99) as f64 / 1e6;
    let said = result["latencyMs"]["p99"].as_f64().expect("p99");
    assert!((p99 - said).abs() <= said * 0.01, "the log says {p99} ms and the result {said} ms");
}

#[test]
fn orders_are_followed_until_they_are_shipped_and_every_message_is_accounted_for() {
    let system = shop();
    let words = ["loadtest", "place-order", "--async", "-c", "200", "-q", "50", "-z", "3s", "--warm-up", "0s"];
    let slo = ["--slo", "lost = 0, visible p50 < 1h", "-o", "json"];
    let result = valid(&system, &[&words[..], &slo].concat()).expect(0).json();
    assert_eq!((&result["mode"], &result["incomplete"]), (&"async".into(), &0.into()), "{result:#}");
    assert!(result["completionMs"]["p50"].as_f64() >= result["latencyMs"]["p50"].as_f64(), "{result:#}");
    let ledger = &result["ledger"];
    assert_eq!((&ledger["balanced"], &ledger["missing"]), (&true.into(), &0.into()), "{ledger:#}");
    let items = ledger["items"].as_array().expect("items");
    let names: Vec<&str> = items.iter().filter_map(|item| item["name"].as_str()).collect();
    assert_eq!(names, ["invoice.issued/shipping", "order.placed/billing"], "{ledger:#}");
    for item in items {
        assert_eq!((&item["accepted"], &item["inFlight"]), (&item["processed"], &0.into()), "{ledger:#}");
        assert!(item["accepted"].as_u64() >= result["succeeded"].as_u64(), "{ledger:#}");
    }
    let page = valid(&system, &["loadtest", "place-order", "--async", "-q", "20", "-z", "1s", "--warm-up", "0s"]);
    page.says("all showed").says("order.placed/billing").says("balanced").says("visible p99 < 5s");
}

#[test]
fn how_it_ends_is_its_exit_status() {
    let system = shop();
    let short = ["-z", "1s", "--warm-up", "0s", "--ramp", "0s"];
    let run = |words: &[&str]| valid(&system, &[&["loadtest"], words, &short].concat());
    let breached =
        run(&["GET", "/inventory/book", "-c", "8", "-q", "50", "--slo", "p50 < 0ms, errors < 50%"]).expect(99);
    breached.says("BREACHED").says("breached: p50 < 0ms");
    // More than any one connection carries: what was never sent has no latency, and the others are not shown.
    let words =
        ["loadtest", "browse-stock", "-c", "1", "-q", "1M", "--timeout", "100ms", "-z", "1s", "--warm-up", "0s"];
    let invalid = system.run(&words).expect(98);
    invalid.says("INVALID");
    assert!(!invalid.stdout.contains("P99"), "{invalid}");

    let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
    run(&[&format!("http://{free}/"), "-c", "4"]).expect(1).says("cannot connect").says("is it running");
    let nowhere = run(&["GET", "/nowhere", "-c", "4", "-q", "40"]).expect(1);
    nowhere.says("status 404").says("none of ");
}

#[test]
fn an_interrupted_run_shows_what_it_has() {
    let system = shop();
    let words = ["loadtest", "browse-stock", "-c", "50", "-z", "5m", "--warm-up", "0s", "--ramp", "0s", "-o", "json"];
    let mut child = system.start(&words);
    let mut progress = BufReader::new(child.stderr.take().expect("piped")).lines().map_while(Result::ok);
    let measuring = progress.by_ref().filter(|line| line.starts_with("measuring ")).nth(2);
    assert!(measuring.is_some(), "it measures");
    process::signal(child.id(), Signal::INT);
    let rest: Vec<String> = progress.collect();
    let ran = system.end_of(child).expect(130);
    assert!(rest.iter().any(|line| line.contains("interrupted")), "{rest:?}");
    let result = ran.json();
    assert_eq!(result["interrupted"], true, "{result:#}");
    assert!(result["requests"].as_u64() > Some(0) && result["durationS"].as_f64() < Some(300.0), "{result:#}");
}

#[test]
fn a_flow_that_changes_restarts_nothing() {
    let system = System::new();
    let flow =
        |path: &str| format!("{}flows: {{ look: {{ synchronous: {{ request: GET {path} }} }} }}\n", crate::HELLO);
    system.apply(&flow("/"));
    let before = system.all_pids();
    let file = system.file(&flow("/again"));
    let plan = system.json(&["plan", &file]);
    let steps = plan["steps"].as_array().expect("steps");
    assert_eq!(steps.len(), 1, "{plan:#}");
    assert_eq!(
        (&steps[0]["action"], &steps[0]["kind"], &steps[0]["name"]),
        (&"change".into(), &"flow".into(), &"look".into())
    );
    system.apply(&flow("/again"));
    assert_eq!(system.all_pids(), before);
    let flows = system.api("GET", "/v1/flows", &Value::Null).json();
    assert_eq!(flows["items"][0]["synchronous"]["path"], "/again", "{flows:#}");
}
