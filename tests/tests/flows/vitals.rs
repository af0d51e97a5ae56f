//! The golden signals of a running system: what they count, what they leave out, and who shows them.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use meshctl_tests::{Load, System, process, wait_for, wait_until};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::HELLO;

fn vitals(system: &System) -> Value {
    system.api("GET", "/v1/vitals", &Value::Null).json()
}

fn of<'a>(vitals: &'a Value, kind: &str, name: &str) -> &'a Value {
    let things = vitals[kind].as_array().unwrap_or_else(|| panic!("no {kind} in {vitals:#}"));
    things.iter().find(|thing| thing["name"] == name).unwrap_or_else(|| panic!("no {name} in {vitals:#}"))
}

#[test]
fn two_gateways_are_one_sum_and_after_idleness_nothing_is_claimed() {
    let system = System::new();
    let text = std::fs::read_to_string(system.file(HELLO)).expect("the topology");
    let two = text.replacen("gateway: { embedded: { ", "gateway: { embedded: { instances: 2, ", 1);
    assert_ne!(two, text);
    system.run(&["apply", &system.raw_file("two.yaml", &two), "--yes"]).expect(0);
    let load = Load::start(&system.url("/"), 4);
    load.pass(500);
    let seen = wait_for("the load to be seen", || {
        let seen = vitals(&system);
        (of(&seen, "services", "hello")["requestsPerS"].as_f64()? > 10.0).then_some(seen)
    });
    let (hello, edge) = (of(&seen, "services", "hello"), of(&seen, "edges", "gateway:hello"));
    assert_eq!(seen["silent"], json!([]), "{seen:#}");
    assert_eq!((&hello["errorsPerS"], &hello["refusedPerS"]), (&json!(0.0), &json!(0.0)), "{seen:#}");
    assert_eq!(of(&seen, "routes", "/")["requestsPerS"], edge["requestsPerS"], "one route, one edge: {seen:#}");
    let (p50, p99) = (edge["latencyP50Ms"].as_f64().expect("some"), edge["latencyP99Ms"].as_f64().expect("some"));
    assert!(0.0 < p50 && p50 <= p99, "{seen:#}");
    assert!(hello["memoryBytes"].as_u64() > Some(1 << 20) && hello["cpuPercent"].is_number(), "{seen:#}");
    let requests = |system: &System| system.json(&["get", "edge/gateway:hello"])["requests"].as_u64();
    assert!(requests(&system) >= Some(500));

    let followed = system.start(&["top", "-w", "-o", "json"]);
    let mut child = followed;
    let lines = BufReader::new(child.stdout.take().expect("its output")).lines();
    let lines: Vec<String> = lines.take(3).map(|line| line.expect("a line")).collect();
    child.kill().expect("it ran");
    child.wait().expect("it ended");
    let told: Vec<Value> = lines.iter().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert!(told.iter().all(|one| one["kind"] == "Vitals" && one["at"].is_string()), "{told:#?}");
    assert!(told[0]["at"].as_str() < told[2]["at"].as_str());
    load.finish().expect_no_failure();

    let frozen = system.gateway_pid();
    process::signal(frozen, Signal::STOP);
    let seen = vitals(&system);
    process::signal(frozen, Signal::CONT);
    assert_eq!(seen["silent"].as_array().map(Vec::len), Some(1), "a gateway that is frozen is named: {seen:#}");

    wait_until("what is over to be forgotten", || of(&vitals(&system), "services", "hello")["requestsPerS"] == 0.0);
    let seen = vitals(&system);
    for (kind, name) in [("services", "hello"), ("edges", "gateway:hello"), ("routes", "/")] {
        let idle = of(&seen, kind, name);
        assert_eq!((&idle["latencyP50Ms"], &idle["latencyP99Ms"]), (&Value::Null, &Value::Null), "{idle:#}");
    }
    let edge = system.json(&["get", "edge/gateway:hello"]);
    assert_eq!(edge["latencyP99Ms"], Value::Null, "and so say the edges: {edge:#}");
    system.run(&["top", "--once"]).expect(0).says("hello").says("0 requests/s from outside");
}

#[test]
fn what_is_refused_is_an_error_and_no_latency() {
    let system = System::new();
    let body = HELLO.replace("replicas: 2", "replicas: 1");
    let breaker = "{ minimumRequests: 5, failureRatio: 50%, openFor: 60s, probes: 1 }";
    system.apply(&format!("{body}defaults: {{ retry: {{ attempts: 0 }}, breaker: {breaker} }}\n"));
    system.turn_knobs(&system.instances("hello")[0], &json!({"errorRate": 1, "latencyMs": 100}));
    wait_until("the breaker to open", || String::from_utf8_lossy(&system.get("/").body).contains("breakerOpen"));
    (0..200).for_each(|_| assert_eq!(system.get("/").status, 503));
    let seen = vitals(&system);
    let edge = of(&seen, "edges", "gateway:hello");
    let number = |field: &str| edge[field].as_f64().unwrap_or_else(|| panic!("no {field} in {edge:#}"));
    assert!(number("refusedPerS") > 0.0 && number("refusedPerS") < number("requestsPerS"), "{edge:#}");
    assert_eq!(number("errorsPerS"), number("requestsPerS"), "nobody got what they asked for: {edge:#}");
    assert!(number("latencyP50Ms") > 70.0, "most were refused within microseconds, and do not count: {edge:#}");
    let breakers = seen["breakers"].as_array().expect("breakers");
    let breaker = breakers.iter().find(|one| one["edge"] == "gateway:hello").expect("the edge's");
    assert_eq!(
        (&breaker["state"], &breaker["instances"], &breaker["acknowledged"]),
        (&json!("open"), &json!(1), &json!(1))
    );
    assert!(breaker["refusedPerS"].as_f64() > Some(0.0), "{breaker:#}");

    let page = system.run(&["describe", "service/hello"]).expect(0);
    page.says("Called by").says("gateway:hello").says("open").says("100%").says("breaker.opened");
    system.run(&["describe", "edge/gateway:hello"]).expect(0).says("Breaker:").says("open for");
    let check = system.command(&["check", "-o", "json"]).stdout(Stdio::piped()).output().expect("it runs");
    let check: Value = serde_json::from_slice(&check.stdout).expect("JSON");
    let names: Vec<&str> =
        check["groups"].as_array().expect("groups").iter().filter_map(|group| group["name"].as_str()).collect();
    assert_eq!(names[..5], ["meshctl", "machine", "daemon", "services", "gateways"]);
}
