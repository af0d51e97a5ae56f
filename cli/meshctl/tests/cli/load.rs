//! Load tests against a small server: what is sent, what is printed, and how it ends.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::support::{Daemon, Ran, Script, command, ran, status};

/// Method, path and query, the header `x-test`, and body of every request, each once.
type Seen = Arc<Mutex<BTreeSet<(String, String, String, String)>>>;

/// Answers after ten milliseconds: 201 to POST, 503 to `/down`, else 200.
struct Server {
    address: SocketAddr,
    seen: Seen,
    _runtime: tokio::runtime::Runtime,
}

impl Server {
    fn start() -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).expect("a port");
        let address = listener.local_addr().expect("an address");
        let seen = Seen::default();
        let router = Router::new().fallback(answer).with_state(Arc::clone(&seen));
        runtime.spawn(async move { axum::serve(listener, router).await });
        Self { address, seen, _runtime: runtime }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    fn seen(&self) -> BTreeSet<(String, String, String, String)> {
        self.seen.lock().expect("nobody panicked with it").clone()
    }
}

async fn answer(State(seen): State<Seen>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body: Bytes = axum::body::to_bytes(body, 1 << 20).await.expect("a body");
    let header = parts.headers.get("x-test").and_then(|value| value.to_str().ok()).unwrap_or_default();
    let (method, path) = (parts.method.to_string(), parts.uri.to_string());
    let body = String::from_utf8_lossy(&body).into_owned();
    seen.lock().expect("nobody panicked with it").insert((method.clone(), path.clone(), header.to_owned(), body));
    tokio::time::sleep(Duration::from_millis(10)).await;
    let status = match (path.as_str(), method.as_str()) {
        ("/down", _) => StatusCode::SERVICE_UNAVAILABLE,
        (_, "POST") => StatusCode::CREATED,
        _ => StatusCode::OK,
    };
    (status, "{\"id\":\"a-1\"}").into_response()
}

/// Short and gentle.
const SHORT: [&str; 6] = ["-z", "500ms", "--warm-up", "0s", "--ramp", "0s"];

fn short<'w>(words: &[&'w str]) -> Vec<&'w str> {
    ["loadtest"].iter().chain(words).chain(&SHORT).copied().collect()
}

/// The first run that is valid: other tests may starve the generator for a moment, and then it has to say so.
#[track_caller]
fn valid(mut command: impl FnMut() -> Command) -> Ran {
    for _ in 0..20 {
        let ran = ran(command().output().expect("meshctl runs"));
        if ran.status != 98 {
            return ran;
        }
    }
    panic!("no run of twenty was valid");
}

fn nowhere(words: &[&str]) -> Command {
    command(std::path::Path::new("/nonexistent"), words)
}

fn json_of(ran: &Ran) -> Value {
    serde_json::from_str(&ran.stdout).unwrap_or_else(|why| panic!("{why}: {}\n{}", ran.stdout, ran.stderr))
}

#[test]
fn a_url_needs_no_daemon() {
    let server = Server::start();
    let url = server.url("/a?n={{n}}");
    let words = short(&[
        "PUT",
        &url,
        "{\"k\":\"{{random 7 7}}\"}",
        "-H",
        "X-Test: {{random 3 3}}",
        "-c",
        "2",
        "-q",
        "40",
        "-o",
        "json",
    ]);
    let ran = valid(|| nowhere(&words));
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    let result = json_of(&ran);
    assert_eq!(
        [&result["apiVersion"], &result["kind"], &result["mode"], &result["name"]],
        ["meshctl/v1", "LoadTest", "sessions", "PUT /a"]
    );
    assert_eq!(
        (&result["validity"]["valid"], &result["slo"], &result["ledger"]),
        (&json!(true), &json!([]), &json!(null))
    );
    for field in ["p50", "p90", "p99", "p999", "max", "mean"] {
        assert!(result["latencyMs"][field].as_f64() >= Some(9.0), "{field}: {result:#}");
        assert!(result["uncorrectedLatencyMs"][field].is_number(), "{field}: {result:#}");
    }
    assert!(result["offeredPerS"].as_f64() > Some(1.0) && result["errors"] == json!({}), "{result:#}");
    assert!(result["requests"].as_u64() > Some(0) && result["requests"] == result["succeeded"], "{result:#}");
    let seen = server.seen();
    assert!(
        seen.iter().all(|(method, path, header, body)| {
            method == "PUT" && path.starts_with("/a?n=") && header == "3" && body == "{\"k\":\"7\"}"
        }),
        "{seen:?}"
    );
    assert!(seen.len() > 1, "each has its number: {seen:?}");
    // Progress goes to stderr, a line a second in a pipe, and --quiet leaves it out.
    assert!(ran.stderr.contains("measuring "), "{}", ran.stderr);
    let quiet: Vec<&str> = words.iter().copied().chain(["--quiet"]).collect();
    assert_eq!(valid(|| nowhere(&quiet)).stderr, "");
}

#[test]
fn the_page_says_what_was_measured() {
    let server = Server::start();
    let url = server.url("/");
    let words = short(&[&url, "--closed", "-c", "2", "--slo", "p99 < 10s, errors = 0", "--seed", "9"]);
    let ran = valid(|| nowhere(&words));
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    for part in [
        "closed loop, 2 connections",
        "seed 9",
        "none failed",
        "valid",
        "LATENCY",
        "P99.9",
        "intended send time",
        "p90",
        "####",
        "OBJECTIVE",
        "met",
        "SLOWEST",
    ] {
        assert!(ran.stdout.contains(part), "no {part} in\n{}", ran.stdout);
    }
    assert!(ran.stdout.is_ascii() && ran.stdout.lines().all(|line| line.len() <= 80), "{}", ran.stdout);
}

#[test]
fn a_breached_objective_is_99() {
    let server = Server::start();
    let url = server.url("/");
    let words =
        short(&[&url, "-c", "2", "-q", "40", "--slo", "p50 < 1ms, rate > 1/s", "--slo", "errors < 1%", "-o", "json"]);
    let ran = valid(|| nowhere(&words));
    assert_eq!(ran.status, 99, "{}", ran.stderr);
    assert!(ran.stderr.contains("breached: p50 < 1ms"), "{}", ran.stderr);
    let slo = &json_of(&ran)["slo"];
    let verdicts: Vec<(&str, Option<bool>)> = slo
        .as_array()
        .into_iter()
        .flatten()
        .map(|one| (one["expression"].as_str().unwrap_or_default(), one["met"].as_bool()))
        .collect();
    assert_eq!(verdicts, [("p50 < 1ms", Some(false)), ("rate > 1/s", Some(true)), ("errors < 1%", Some(true))]);
}

#[test]
fn a_generator_that_does_not_keep_up_says_so() {
    let server = Server::start();
    let url = server.url("/");
    // One connection that is answered after ten milliseconds cannot carry a thousand requests a second.
    let words = short(&[&url, "-c", "1", "-q", "1k", "--timeout", "200ms", "--slo", "p50 < 1h"]);
    let page = ran(nowhere(&words).output().expect("meshctl runs"));
    assert_eq!(page.status, 98, "{}\n{}", page.stdout, page.stderr);
    assert!(page.stdout.contains("INVALID") && page.stderr.contains("INVALID"), "{}\n{}", page.stdout, page.stderr);
    assert!(!page.stdout.contains("P99") && page.stdout.contains("not judged"), "{}", page.stdout);
    let words: Vec<&str> = words.iter().copied().chain(["-o", "json"]).collect();
    let result = json_of(&ran(nowhere(&words).output().expect("meshctl runs")));
    assert_eq!((&result["latencyMs"], &result["slo"][0]["met"]), (&Value::Null, &Value::Null));
    let reasons = result["validity"]["reasons"].as_array().expect("reasons");
    assert!(!reasons.is_empty() && reasons.iter().all(Value::is_string), "{result:#}");
}

#[test]
fn nothing_that_succeeds_is_a_failure() {
    let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
    let url = format!("http://{free}/");
    let words = short(&[&url, "-c", "2"]);
    let refused = ran(nowhere(&words).output().expect("meshctl runs"));
    assert_eq!(refused.status, 1, "{}", refused.stderr);
    assert!(refused.stderr.contains(&format!("cannot connect to {free}")), "{}", refused.stderr);
    assert!(refused.stderr.contains("hint: is it running"), "{}", refused.stderr);
    let server = Server::start();
    let url = server.url("/down");
    let down = ran(nowhere(&short(&[&url, "-c", "2", "-q", "20"])).output().expect("meshctl runs"));
    assert_eq!(down.status, 1, "{}", down.stderr);
    assert!(down.stderr.contains("requests succeeded: status 503"), "{}", down.stderr);
    assert!(down.stdout.contains("status 503"), "{}", down.stdout);
}

fn flow(name: &str, path: &str, slo: &str) -> Value {
    json!({
        "name": name, "weight": 1.0, "values": { "names": ["x"] }, "asynchronous": null,
        "synchronous": {
            "method": "POST", "path": path, "headers": { "x-test": "flow" }, "body": "{\"name\":\"{{random names}}\"}",
            "status": 201, "visible": null
        },
        "slo": [{ "asynchronous": false, "expect": slo }]
    })
}

fn system(server: &Server) -> Daemon {
    let mut status = status();
    status["gateways"][0]["url"] = json!(server.url(""));
    let flows = json!({
        "apiVersion": "meshctl/v1", "kind": "FlowList",
        "items": [flow("buy", "/buy", "p99 < 10s, errors = 0"), flow("sell", "/sell", "p99 < 0ms")]
    });
    Daemon::play(Script { status, ..Script::default() }.but("GET /v1/flows", [(200, flows)]))
}

#[test]
fn flows_are_sent_as_the_topology_says() {
    let server = Server::start();
    let daemon = system(&server);
    let gentle = ["-c", "2", "-q", "40", "-o", "json"];
    let words = |names: &[&'static str]| short(&[names, &gentle[..]].concat());
    let ran = valid(|| daemon.command(&words(&["buy"])));
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    let result = json_of(&ran);
    let expected = json!({ "expression": "errors = 0", "flow": "buy", "met": true, "actual": "0" });
    assert_eq!(result["slo"][1], expected, "{result:#}");
    let sent = ("POST".to_owned(), "/buy".to_owned(), "flow".to_owned(), "{\"name\":\"x\"}".to_owned());
    assert_eq!(server.seen().into_iter().collect::<Vec<_>>(), [sent]);
    assert_eq!(valid(|| daemon.command(&words(&["sell"]))).status, 99);
    // Several together: what is expected of each is judged by its own share.
    let ran = valid(|| daemon.command(&words(&[])));
    assert_eq!(ran.status, 99, "{}", ran.stderr);
    let verdicts: Vec<(Value, Value)> = json_of(&ran)["slo"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|one| (one["flow"].clone(), one["met"].clone()))
        .collect();
    let buy = || (json!("buy"), json!(true));
    assert_eq!(verdicts, [buy(), buy(), (json!("sell"), json!(false))]);
    let by_name = json_of(&ran)["requestsByName"].clone();
    assert_eq!(
        by_name.as_object().map(|names| names.keys().cloned().collect::<Vec<_>>()),
        Some(vec!["buy".into(), "sell".into()])
    );
    // A path goes to the gateway, too.
    assert_eq!(valid(|| daemon.command(&words(&["GET", "/own"]))).status, 0);
    assert!(server.seen().iter().any(|(method, path, ..)| method == "GET" && path == "/own"));
}

#[test]
fn what_cannot_be_sent_is_said_before_anything_is() {
    let server = Server::start();
    let daemon = system(&server);
    let url = server.url("/");
    for (words, exit, says) in [
        (&["buyy"][..], 3, "did you mean `buy`?"),
        (&["buy", "--async"], 2, "where the effect of buy shows"),
        (&["buy", "-d", "x"], 2, "a flow has its own method and body"),
        (&["buy", "/path"], 2, "neither flows nor a request"),
        (&["https://127.0.0.1/"], 2, "plain HTTP/1.1"),
        (&[&url, "--slo", "p99 < fast"], 2, "is not a duration"),
        (&[&url, "--slo", "lost = 0"], 2, "does not wait for any"),
        (&[&url, "--async"], 2, "only a flow says where its effect shows"),
        (&[&url, "-q", "10", "--closed"], 2, "cannot be used with"),
        (&[&url, "-c", "0"], 2, "between 1 and 1M"),
        (&[&url, "-z", "0s"], 2, "more than zero"),
        (&[&url, "-d", "{{oops}}"], 2, "oops"),
        (&[&url, "-D", "/nonexistent/file"], 1, "cannot read /nonexistent/file"),
        (&[&url, "--hdr-log", "/nonexistent/log"], 1, "cannot write /nonexistent/log"),
        (&[&url, "-o", "name"], 2, "-o name"),
    ] {
        let words: Vec<&str> = ["loadtest"].iter().chain(words).copied().collect();
        let ran = daemon.run(&words);
        assert_eq!(ran.status, exit, "{words:?}: {}", ran.stderr);
        assert!(ran.stderr.contains(says) && ran.stdout.is_empty(), "{words:?}: {}", ran.stderr);
    }
    assert!(server.seen().is_empty(), "{:?}", server.seen());
    let daemon = Daemon::play(
        Script::default().but("GET /v1/flows", [(200, json!({"apiVersion": "", "kind": "", "items": []}))]),
    );
    let ran = daemon.run(&["loadtest"]);
    assert_eq!((ran.status, ran.stderr.contains("the topology has no flows")), (3, true), "{}", ran.stderr);
    let ran = crate::support::ran(nowhere(&["loadtest"]).output().expect("meshctl runs"));
    assert_eq!(ran.status, 69, "{}", ran.stderr);
}
