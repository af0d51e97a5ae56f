//! Breakers in an operator's hand: on every gateway at once, over every restart, and over by themselves.

use std::process::{Command, Stdio};

use meshctl_tests::{Answer, System, get, process, wait_until};
use rustix::process::Signal;
use serde_json::{Value, json};

/// `hello` behind `/`, and behind `front`, which is itself behind `/front`. Who calls `front:hello` gets a fallback.
const CHAIN: &str = "
services:
  hello: { builtin: hello, health: { http: /healthz, interval: 100ms } }
  front:
    builtin: hello
    health: { http: /healthz, interval: 100ms }
    env: { HELLO: { urlOf: hello } }
    calls: { hello: { fallback: { status: 203, body: 'later' } } }
defaults: { retry: { attempts: 0 }, breaker: { minimumRequests: 5, failureRatio: 50%, openFor: 1h, probes: 1 } }
routes:
  - { path: /, to: hello }
  - { path: /slow, to: hello }
  - { path: /front, to: front }
";

/// [`CHAIN`] with so many gateways on one address.
fn file(system: &System, gateways: u32) -> String {
    let text = std::fs::read_to_string(system.file(CHAIN)).expect("the topology");
    let several = format!("gateway: {{ embedded: {{ instances: {gateways}, ");
    system.raw_file("chain.yaml", &text.replacen("gateway: { embedded: { ", &several, 1))
}

fn applied(gateways: u32) -> System {
    let system = System::new();
    system.run(&["apply", &file(&system, gateways), "--yes"]).expect(0);
    system
}

fn breaker(system: &System, edge: &str) -> Value {
    let breakers = system.json(&["breaker", "ls"]);
    let items = breakers["items"].as_array().expect("items");
    items.iter().find(|breaker| breaker["edge"] == edge).unwrap_or_else(|| panic!("no {edge} in {breakers:#}")).clone()
}

/// Where each gateway says how it is.
fn metrics(system: &System) -> Vec<String> {
    let status = system.status();
    let gateways = status["gateways"].as_array().expect("gateways");
    gateways.iter().map(|gateway| gateway["metricsUrl"].as_str().expect("metricsUrl").to_owned()).collect()
}

/// Whether a gateway itself says that the breaker is in that state; it may be on its way up.
fn is(url: &str, edge: &str, state: &str) -> bool {
    let line = format!("meshctl_edge_breaker_state{{edge=\"{edge}\",state=\"{state}\"}} 1");
    get(url).is_ok_and(|answer| String::from_utf8_lossy(&answer.body).contains(&line))
}

/// Expects the gateway's refusal, as its callers get it.
#[track_caller]
fn expect_refused(answer: &Answer, edge: &str, reason: Option<&str>) {
    let problem = answer.json();
    assert_eq!((answer.status, answer.header("content-type")), (503, "application/problem+json"), "{problem:#}");
    assert_eq!((&problem["cause"], &problem["edge"]), (&json!("breakerForcedOpen"), &json!(edge)), "{problem:#}");
    assert_eq!(problem["reason"].as_str(), reason, "{problem:#}");
    assert!(
        answer.header("retry-after").parse::<u64>().is_ok_and(|seconds| (1..=3600).contains(&seconds)),
        "{answer:?}"
    );
    assert!(problem.get("by").is_none(), "who did it is not for callers: {problem:#}");
}

/// Requests on connections of their own, which the kernel spreads over the gateways: all are refused.
#[track_caller]
fn all_are_refused(system: &System, reason: Option<&str>) {
    (0..20).for_each(|_| expect_refused(&system.get("/"), "gateway:hello", reason));
}

fn events(system: &System, kind: &str) -> Vec<Value> {
    let events = system.json(&["events"]);
    events["items"].as_array().expect("items").iter().filter(|event| event["type"] == kind).cloned().collect()
}

#[test]
fn a_trip_reaches_every_gateway_outlives_everything_and_is_taken_back() {
    let system = applied(2);
    let reason = "hello is being moved";
    let dry = system.run(&["breaker", "trip", "front:hello", "--dry-run"]).expect(0);
    assert!(dry.stdout.contains("/front") && dry.stdout.contains("the fallback: 203"), "{dry}");
    assert!(!dry.stdout.contains("/slow"), "/slow does not lead over it: {dry}");
    assert_eq!(breaker(&system, "front:hello")["state"], "closed");

    let change = system.json(&["breaker", "trip", "gateway:hello", "--ttl", "1h", "--reason", reason]);
    assert_eq!(change["breaker"]["acknowledged"], 2, "{change:#}");
    assert_eq!((&change["breaker"]["instances"], &change["breaker"]["stragglers"]), (&json!(2), &json!([])));
    assert_eq!((&change["action"], &change["routes"]), (&json!("trip"), &json!(["/", "/slow"])), "{change:#}");
    all_are_refused(&system, Some(reason));
    assert!(metrics(&system).iter().all(|url| is(url, "gateway:hello", "forcedOpen")));
    let shown = breaker(&system, "gateway:hello");
    assert_eq!((&shown["state"], &shown["reason"]), (&json!("forcedOpen"), &json!(reason)), "{shown:#}");
    assert!(shown["by"].is_string() && shown["expiresAt"].is_string(), "{shown:#}");
    assert!(shown["refusedPerS"].as_f64().is_some_and(|rate| rate > 0.0), "{shown:#}");

    // The same for all edges to one service; the one with a fallback has it answered.
    let both = system.json(&["breaker", "trip", "*:hello", "--ttl", "1h", "--reason", reason]);
    assert_eq!(both["items"].as_array().map(Vec::len), Some(2), "{both:#}");
    let edges = system.json(&["get", "edge/front:hello"]);
    let answer = get(edges["url"].as_str().expect("the address of the edge")).expect("an answer");
    assert_eq!((answer.status, answer.body.as_slice()), (203, &b"later"[..]));

    // A third gateway refuses from its first snapshot on; another revision and another daemon change nothing.
    system.run(&["apply", &file(&system, 3), "--yes"]).expect(0);
    assert_eq!(metrics(&system).iter().filter(|url| is(url, "gateway:hello", "forcedOpen")).count(), 3);
    system.kill_daemon();
    all_are_refused(&system, Some(reason));
    system.run(&["apply", &file(&system, 3), "--yes"]).expect(0);
    all_are_refused(&system, Some(reason));
    let again = breaker(&system, "gateway:hello");
    assert_eq!((&again["state"], &again["since"].is_string()), (&json!("forcedOpen"), &true), "{again:#}");
    wait_until("all to have told the new daemon", || breaker(&system, "gateway:hello")["acknowledged"] == 3);

    let reset = system.json(&["breaker", "reset", "gateway:hello", "--reason", "moved"]);
    assert_eq!((&reset["breaker"]["state"], &reset["breaker"]["acknowledged"]), (&json!("closed"), &json!(3)));
    (0..20).for_each(|_| assert_eq!(system.get("/").status, 200));
    assert_eq!(breaker(&system, "front:hello")["state"], "forcedOpen", "the other one stays");

    // Who did what and why, and what came of it at each gateway.
    wait_until("three to have told", || events(&system, "breaker.released").len() >= 3);
    assert!(events(&system, "breaker.tripped").iter().all(|event| event["data"]["reason"] == reason));
    assert!(events(&system, "breaker.forcedOpen").len() >= 2);
    let history = system.run(&["describe", "breaker/gateway:hello"]).expect(0);
    history.says("breaker.tripped").says(reason).says("breaker.reset").says("moved");
    let audit = system.json(&["audit"]);
    let deeds: Vec<&str> =
        audit["items"].as_array().expect("items").iter().filter_map(|e| e["action"].as_str()).collect();
    assert_eq!(deeds, ["breaker.trip", "breaker.trip", "breaker.trip", "breaker.reset"], "{audit:#}");
    system.down();
}

#[test]
fn it_is_over_by_itself_though_the_daemon_is_dead() {
    let system = applied(2);
    let (metrics, gateway) = (metrics(&system), system.gateway_pid());
    system.run(&["breaker", "trip", "gateway:hello", "--ttl", "4s"]).expect(0).says("2/2 gateways");
    expect_refused(&system.get("/"), "gateway:hello", None);
    system.kill_daemon();
    wait_until("both to let requests through", || metrics.iter().all(|url| is(url, "gateway:hello", "closed")));
    (0..20).for_each(|_| assert_eq!(system.get("/").status, 200));
    // A gateway and a daemon that start again do not bring it back: both still have it in writing.
    process::kill(gateway);
    system.run(&["apply", &file(&system, 2), "--yes"]).expect(0);
    (0..20).for_each(|_| assert_eq!(system.get("/").status, 200));
    assert_eq!(breaker(&system, "gateway:hello")["state"], "closed");
    assert_eq!(events(&system, "breaker.expired").len(), 1);
    system.down();
}

#[test]
fn a_gateway_that_starts_alone_refuses_what_it_was_told_to() {
    let system = applied(1);
    let url = metrics(&system).remove(0);
    system.run(&["breaker", "trip", "gateway:hello", "--reason", "until further notice"]).expect(0);
    let pid = system.gateway_pid();
    let line = process::command_line(pid);
    system.kill_daemon();
    process::kill(pid);
    wait_until("nobody to answer", || get(&url).is_err());
    let mut command = Command::new(system.binary());
    command.args(line.split_whitespace().skip(1)).env("MESHCTL_STATE_DIR", system.state_dir());
    let mut alone =
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
    wait_until("it to serve", || is(&url, "gateway:hello", "forcedOpen"));
    expect_refused(&system.get("/"), "gateway:hello", Some("until further notice"));
    process::kill(alone.id());
    alone.wait().expect("it ended");
}

#[test]
fn what_is_held_closed_stays_so_and_says_what_it_would_have_done() {
    let system = applied(1);
    system.run(&["breaker", "hold", "gateway:hello", "--reason", "we watch it"]).expect(0).says("forcedClosed");
    let hello = system.instances("hello")[0].clone();
    system.turn_knobs(&hello, &json!({"errorRate": 1, "errorStatus": 500}));
    (0..20).for_each(|_| assert_eq!(system.get("/").status, 500, "every one gets through"));
    let held = breaker(&system, "gateway:hello");
    assert_eq!(held["state"], "forcedClosed", "{held:#}");
    let reason = held["reason"].as_str().expect("a reason");
    assert!(reason.starts_with("we watch it; would be open: 20 of 20 requests failed"), "{reason}");

    // Taken back, it begins anew, and opens by itself; its last transition says why. Reset closes that, too.
    system.run(&["breaker", "reset", "gateway:hello"]).expect(0);
    wait_until("it to open by itself", || system.get("/").json()["cause"] == "breakerOpen");
    let open = breaker(&system, "gateway:hello");
    assert_eq!((&open["state"], &open["by"]), (&json!("open"), &Value::Null), "{open:#}");
    assert_eq!(open["reason"], "5 of 5 requests failed within 10s");
    system.turn_knobs(&hello, &json!({}));
    assert_eq!(system.get("/").status, 503, "it stays open for an hour");
    system.run(&["breaker", "reset", "gateway:hello"]).expect(0).says("closed at 1/1 gateways");
    assert_eq!(system.get("/").status, 200);
    assert_eq!(breaker(&system, "gateway:hello")["reason"], "an operator reset it");
}

#[test]
fn unknown_edges_are_refused_and_edges_that_go_take_what_was_said_with_them() {
    let system = applied(1);
    let ran = system.run(&["breaker", "trip", "gateway:helo"]).expect(3);
    ran.says("did you mean `gateway:hello`?");
    system.run(&["breaker", "trip", "nobody:*"]).expect(3);
    let refused = system.api("POST", "/v1/breakers/a:b/trip", &json!({"reason": "why not"}));
    assert_eq!((refused.status, &refused.json()["code"]), (404, &json!("notFound")));
    let endless = system.api("POST", "/v1/breakers/gateway:hello/trip", &json!({"ttlMs": 0}));
    assert_eq!(endless.status, 400);
    let audit = system.json(&["audit"]);
    let outcomes: Vec<&str> =
        audit["items"].as_array().expect("items").iter().filter_map(|entry| entry["outcome"].as_str()).collect();
    assert!(outcomes.len() == 2 && outcomes[0].contains("no edge `a:b`"), "{audit:#}");

    system.run(&["breaker", "trip", "front:hello", "--reason", "gone soon"]).expect(0);
    system.apply(crate::HELLO);
    let dropped = events(&system, "breaker.dropped");
    assert_eq!((dropped.len(), &dropped[0]["data"]["reason"]), (1, &json!("gone soon")), "{dropped:#?}");
    system.run(&["apply", &file(&system, 1), "--yes"]).expect(0);
    assert_eq!(breaker(&system, "front:hello")["state"], "closed", "it is another edge");
}

#[test]
fn who_does_not_acknowledge_is_named() {
    let system = applied(2);
    let gateways = system.status()["gateways"].clone();
    let frozen = gateways[0]["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).expect("a pid");
    process::signal(frozen, Signal::STOP);
    let ran = system.run(&["breaker", "trip", "front:hello", "--ttl", "1h"]).expect(5);
    process::signal(frozen, Signal::CONT);
    ran.says("1/2 gateways").says(gateways[0]["id"].as_str().expect("an id"));
    wait_until("it to catch up", || breaker(&system, "front:hello")["acknowledged"] == 2);
    assert!(metrics(&system).iter().all(|url| is(url, "front:hello", "forcedOpen")));
}
