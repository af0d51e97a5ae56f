//! The request path through the product: policy, errors, streams, upgrades, and a gateway that dies.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use meshctl_tests::{Answer, Load, System, installed, process, send, skip, wait_until};
use serde_json::{Value, json};

use crate::HELLO;

fn edge(system: &System, name: &str) -> Value {
    let edges = system.json(&["get", "edges"]);
    let items = edges["items"].as_array().expect("items");
    items.iter().find(|edge| edge["name"] == name).unwrap_or_else(|| panic!("no {name} in {edges:#}")).clone()
}

#[track_caller]
fn expect_problem(answer: &Answer, status: u16) -> Value {
    let body = answer.json();
    assert_eq!(answer.status, status, "{body:#}");
    assert!(answer.header("content-type").starts_with("application/problem+json"), "{answer:?}");
    assert!(body.to_string().contains("gateway:hello"), "the edge is named: {body:#}");
    body
}

#[test]
fn a_failing_instance_is_not_seen_by_those_who_may_ask_again() {
    let system = System::new();
    system.apply(&format!("{HELLO}defaults: {{ retry: {{ budget: 100% }} }}\n"));
    system.turn_knobs(&system.instances("hello")[0], &json!({"errorRate": 1}));
    let load = Load::start(&system.url("/"), 2);
    load.pass(200);
    load.finish().expect_no_failure();
}

#[test]
fn what_may_not_be_repeated_is_sent_once() {
    let system = System::new();
    system.apply(&HELLO.replace("replicas: 2", "replicas: 1"));
    system.turn_knobs(&system.instances("hello")[0], &json!({"errorRate": 1}));
    let answer = send("POST", &system.url("/echo"), &[], b"once".to_vec()).expect("an answer");
    assert_eq!(answer.status, 503);
    let health = meshctl_tests::get(&format!(
        "http://{}/healthz",
        system.instances("hello")[0]["address"].as_str().expect("an address")
    ));
    let admin = health.expect("an answer").json()["admin"].as_str().expect("the admin port").to_owned();
    let state = meshctl_tests::get(&format!("http://{admin}/state")).expect("an answer").json();
    assert_eq!(state["requests"], 1, "{state:#}");
}

#[test]
fn the_breaker_opens_names_its_edge_and_closes_again() {
    let system = System::new();
    let body = HELLO.replace("replicas: 2", "replicas: 1");
    system.apply(&format!(
        "{body}defaults: {{ retry: {{ attempts: 0 }}, breaker: {{ minimumRequests: 5, failureRatio: 50%, openFor: 300ms, probes: 1 }} }}\n"
    ));
    let instance = &system.instances("hello")[0];
    system.turn_knobs(instance, &json!({"errorRate": 1, "errorStatus": 500}));
    wait_until("the breaker to refuse", || {
        let answer = system.get("/");
        answer.status == 503 && expect_problem(&answer, 503).to_string().contains("breaker")
    });
    wait_until("the breaker to be shown", || edge(&system, "gateway:hello")["breaker"] != "closed");
    system.turn_knobs(instance, &json!({}));
    wait_until("the breaker to close", || {
        system.get("/").status == 200 && edge(&system, "gateway:hello")["breaker"] == "closed"
    });
    let events = system.run(&["events", "-o", "json"]).expect(0);
    events.says("breaker.opened").says("gateway:hello");
}

#[test]
fn an_error_names_its_cause_and_its_edge() {
    let system = System::new();
    system.apply(&format!("{HELLO}defaults: {{ deadline: 300ms, attemptTimeout: 300ms, retry: {{ attempts: 0 }} }}\n"));
    expect_problem(&system.get("/slow?ms=5000"), 504);
    system.run(&["scale", "hello=0", "--yes"]).expect(0);
    expect_problem(&system.get("/"), 503);
}

#[test]
fn a_request_brings_its_trace_its_deadline_and_where_it_came_from() {
    let system = System::new();
    system.apply(HELLO);
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let given = format!("00-{trace}-00f067aa0ba902b7-01");
    let answer = send(
        "GET",
        &system.url("/echo?a=b"),
        &[("traceparent", &given), ("connection", "x-hop"), ("x-hop", "1")],
        Vec::new(),
    );
    let seen = answer.expect("an answer").json();
    let header = |name: &str| seen["headers"][name][0].as_str().unwrap_or_default().to_owned();
    assert!(header("traceparent").contains(trace), "{seen:#}");
    let left: u64 = header("meshctl-deadline-ms").parse().unwrap_or_else(|_| panic!("no deadline in {seen:#}"));
    assert!(left > 0 && left <= 2000, "{left}");
    assert!(header("forwarded").contains("127.0.0.1") || header("x-forwarded-for").contains("127.0.0.1"), "{seen:#}");
    assert!(seen["headers"]["x-hop"].is_null(), "a hop-by-hop header goes no further: {seen:#}");
    assert_eq!((&seen["path"], &seen["query"]), (&json!("/echo"), &json!("a=b")));

    let fresh = system.get("/").json();
    assert_eq!(fresh["traceId"].as_str().map(str::len), Some(32), "a trace begins where there is none: {fresh:#}");
}

#[test]
fn bodies_go_through_whole_and_limits_are_kept() {
    let system = System::new();
    system.apply(HELLO);
    let body: Vec<u8> = (0..8_u32 << 20).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let answer = send("POST", &system.url("/echo/body"), &[], body.clone()).expect("an answer");
    assert_eq!(answer.status, 200);
    assert!(answer.body == body, "{} bytes came back of {}", answer.body.len(), body.len());
    let large = "x".repeat(100 << 10);
    let answer = send("GET", &system.url("/"), &[("x-large", &large)], Vec::new());
    assert!(answer.is_ok_and(|answer| answer.status == 431), "100 KiB of headers are too many");

    let file = system.file(HELLO);
    let text = std::fs::read_to_string(&file).expect("the topology");
    let limited = text.replacen("gateway: { embedded: { ", "gateway: { embedded: { limits: { requestBody: 1KiB }, ", 1);
    assert_ne!(limited, text);
    let file = system.raw_file("limited.yaml", &limited);
    system.run(&["apply", &file, "--yes"]).expect(0);
    let answer = send("POST", &system.url("/echo"), &[], vec![b'x'; 2000]).expect("an answer");
    assert_eq!(answer.status, 413);
}

#[test]
fn an_upgraded_connection_is_carried_both_ways() {
    let system = System::new();
    system.apply(HELLO);
    let mut connection = TcpStream::connect(("127.0.0.1", system.port(0))).expect("a connection");
    connection.set_read_timeout(Some(Duration::from_secs(30))).expect("a limit");
    connection
        .write_all(b"GET /upgrade HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
        .expect("sent");
    let head = read_until(&mut connection, b"\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    for word in ["first", "second", "third"] {
        connection.write_all(word.as_bytes()).expect("sent");
        assert_eq!(read_until(&mut connection, word.as_bytes()), word);
    }
}

fn read_until(connection: &mut TcpStream, end: &[u8]) -> String {
    let mut read = Vec::new();
    while !read.ends_with(end) {
        let mut byte = [0];
        connection.read_exact(&mut byte).expect("more to read");
        read.push(byte[0]);
    }
    String::from_utf8(read).expect("text")
}

#[test]
fn a_gateway_that_is_killed_comes_back_also_without_the_daemon() {
    let system = System::new();
    system.apply(HELLO);
    let load = Load::start(&system.url("/"), 4);
    load.pass(100);
    let pid = system.gateway_pid();
    process::kill(pid);
    load.pass(100);
    wait_until("another gateway", || system.status()["ready"] == true && system.gateway_pid() != pid);
    // What was on its way through the one that died is lost; nothing answers with an error.
    let tally = load.finish();
    assert!(tally.failed.keys().all(|reason| !reason.starts_with(['4', '5'])), "{tally:?}");

    let load = Load::start(&system.url("/"), 4);
    load.pass(50);
    system.kill_daemon();
    load.pass(300);
    load.finish().expect_no_failure();
}

#[test]
fn weights_hosts_methods_and_headers_choose() {
    let system = System::new();
    system.apply(
        "
services:
  one: { builtin: hello, health: { http: /healthz } }
  two: { builtin: hello, health: { http: /healthz } }
routes:
  - { path: /only, to: one }
  - { path: '/users/*/cart', to: two }
  - { path: '/users/*', methods: [GET], to: one }
  - { path: /flag, headers: { x-beta: '*' }, to: two }
  - { path: /flag, to: one }
  - { path: /, host: two.example, to: two }
  - { path: /split, to: [ { service: one, weight: 50% }, { service: two, weight: 50% } ] }
",
    );
    let served = |path: &str, headers: &[(&str, &str)]| {
        let answer = send("GET", &system.url(path), headers, Vec::new()).expect("an answer");
        let by = answer.header("served-by").split('-').next().unwrap_or_default().to_owned();
        if answer.status == 200 { by } else { answer.status.to_string() }
    };
    assert_eq!(served("/only", &[]), "one");
    assert_eq!(served("/only/below", &[]), "404");
    assert_eq!(served("/users/7/cart", &[]), "two");
    assert_eq!(served("/users/7", &[]), "one");
    assert_eq!(served("/flag", &[]), "one");
    assert_eq!(served("/flag", &[("x-beta", "1")]), "two");
    assert_eq!(served("/", &[("host", "two.example")]), "two");
    assert_eq!(served("/", &[]), "404");
    let answer = send("DELETE", &system.url("/users/7"), &[], Vec::new()).expect("an answer");
    assert_eq!(answer.status, 405);
    let split: Vec<String> = (0..40).map(|_| served("/split", &[])).collect();
    assert!(split.iter().any(|by| by == "one") && split.iter().any(|by| by == "two"), "{split:?}");
}

#[test]
fn metrics_tell_of_every_route_and_edge() {
    let system = System::new();
    system.apply(HELLO);
    (0..5).for_each(|_| drop(system.get("/")));
    let url = system.status()["gateways"][0]["metricsUrl"].as_str().expect("metricsUrl").to_owned();
    let text = String::from_utf8(meshctl_tests::get(&url).expect("an answer").body).expect("text");
    assert!(text.contains("gateway:hello"), "{text}");
    assert!(text.lines().any(|line| line.starts_with("# TYPE") && line.ends_with("histogram")), "{text}");
}

#[test]
fn http_2_is_spoken_to_those_who_begin_with_it() {
    if !installed("curl") {
        skip!("curl is not installed");
    }
    let system = System::new();
    system.apply(HELLO);
    let mut command = std::process::Command::new("curl");
    let told = "%{http_version} %{http_code}";
    command.args(["--http2-prior-knowledge", "-sS", "-o", "/dev/null", "-w", told, &system.url("/")]);
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    assert_eq!(system.run_command(command).expect(0).stdout, "2 200");
}
