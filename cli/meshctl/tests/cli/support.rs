//! A daemon that is played: canned views on a real Unix socket, and every change that it was asked for, noted.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use futures_util::{StreamExt, stream};
use jiff::{SignedDuration, Timestamp};
use meshctl_api::place::{DAEMON, DaemonRecord, LOCK, SOCKET, STORE, SocketPath};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::UnixListener;

use crate::fixtures;

/// What the played daemon says.
pub(crate) struct Script {
    pub(crate) status: Value,
    pub(crate) plan: Value,
    /// The answer to every change: its status and body.
    pub(crate) accepts: (u16, Value),
    /// What each connection to `/v1/watch` gets, in order; the last one stays open where it ends with `Stay`.
    pub(crate) watches: VecDeque<Vec<Piece>>,
    pub(crate) revisions: Value,
    /// What happened, for who asks.
    pub(crate) events: Value,
    /// The daemon's version and build, where they are not those of the command.
    pub(crate) version: Option<(&'static str, &'static str)>,
    /// What is answered instead of the usual to `GET /v1/ledger` and its like, in order; the last one for ever.
    pub(crate) instead: BTreeMap<&'static str, VecDeque<(u16, Value)>>,
}

/// A piece of a stream.
pub(crate) enum Piece {
    Told(u64, Value),
    /// As it is, to cut a message in the middle.
    Raw(&'static str),
    /// The connection stays open, until the daemon is told to go down.
    Stay,
}

pub(crate) struct Daemon {
    pub(crate) dir: TempDir,
    played: Arc<Played>,
    _runtime: tokio::runtime::Runtime,
}

struct Played {
    script: Mutex<Script>,
    /// Method, path with query, and body of every change and watch.
    asked: Mutex<Vec<(String, Value)>>,
    /// A process to be the daemon, so that its end can be waited for.
    process: Mutex<Child>,
    down: tokio::sync::watch::Sender<bool>,
    socket: std::path::PathBuf,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            status: status(),
            plan: plan(),
            accepts: (202, json!({ "revision": 4, "plan": plan(), "lastEventId": "10" })),
            watches: VecDeque::new(),
            revisions: json!([]),
            events: json!([event(9, "instance.ready", json!({}))]),
            version: None,
            instead: BTreeMap::new(),
        }
    }
}

impl Script {
    /// The same, which answers `call` so, one after another.
    pub(crate) fn but(mut self, call: &'static str, answers: impl IntoIterator<Item = (u16, Value)>) -> Self {
        self.instead.insert(call, answers.into_iter().collect());
        self
    }
}

impl Daemon {
    pub(crate) fn play(script: Script) -> Self {
        Self::play_in(tempfile::tempdir().expect("a folder"), script)
    }

    pub(crate) fn play_in(dir: TempDir, script: Script) -> Self {
        let socket = dir.path().join(SOCKET);
        // As the real one binds it: the name may be longer than a socket's address.
        let address = SocketPath::inside(dir.path(), SOCKET).expect("the folder opens");
        let process = Command::new("sleep").arg("600").spawn().expect("sleep runs");
        let record = DaemonRecord { pid: process.id(), start_time: start_time(process.id()), version: "0.1.0".into() };
        std::fs::write(dir.path().join(DAEMON), serde_json::to_vec(&record).expect("JSON")).expect("written");
        for name in [LOCK, STORE] {
            std::fs::write(dir.path().join(name), "").expect("written");
        }
        let played = Arc::new(Played {
            script: Mutex::new(script),
            asked: Mutex::default(),
            process: Mutex::new(process),
            down: tokio::sync::watch::Sender::new(false),
            socket: socket.clone(),
        });
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let listener = {
            let _inside = runtime.enter();
            UnixListener::bind(address.as_path()).expect("a socket")
        };
        let router = Router::new().fallback(answer).with_state(Arc::clone(&played));
        runtime.spawn(async move { axum::serve(listener, router).await });
        Self { dir, played, _runtime: runtime }
    }

    /// What was asked for, apart from looking.
    pub(crate) fn asked(&self) -> Vec<(String, Value)> {
        lock(&self.played.asked).clone()
    }

    pub(crate) fn command(&self, words: &[&str]) -> Command {
        command(self.dir.path(), words)
    }

    /// Runs the command to its end.
    pub(crate) fn run(&self, words: &[&str]) -> Ran {
        ran(self.command(words).output().expect("meshctl runs"))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let mut process = lock(&self.played.process);
        let _ = process.kill();
        let _ = process.wait();
    }
}

/// The built command, with an environment in which nothing but its words decides.
pub(crate) fn command(state_dir: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_meshctl"));
    command
        .args(words)
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("MESHCTL_STATE_DIR", state_dir)
        .stdin(Stdio::null());
    command
}

pub(crate) struct Ran {
    pub(crate) status: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

pub(crate) fn ran(output: Output) -> Ran {
    Ran {
        status: output.status.code().expect("it ended by itself"),
        stdout: String::from_utf8(output.stdout).expect("text"),
        stderr: String::from_utf8(output.stderr).expect("text"),
    }
}

fn lock<T>(value: &Mutex<T>) -> MutexGuard<'_, T> {
    value.lock().expect("nobody panicked with it")
}

async fn answer(State(played): State<Arc<Played>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    let body = axum::body::to_bytes(body, 16 << 20).await.expect("a body");
    let json: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
    if parts.method != "GET" || path == "/v1/watch" {
        let noted = if json.is_null() { String::from_utf8_lossy(&body).into() } else { json.clone() };
        lock(&played.asked).push((format!("{} {}", parts.method, parts.uri), noted));
    }
    if let Some((status, body)) = instead(&played, &format!("{} {path}", parts.method)) {
        return (StatusCode::from_u16(status).expect("a status"), Json(body)).into_response();
    }
    let list = |kind: &str, items: &Value| {
        Json(json!({ "apiVersion": "meshctl/v1", "kind": kind, "index": 7, "items": items })).into_response()
    };
    let status = lock(&played.script).status.clone();
    match path.as_str() {
        "/v1/version" => Json(version(&played)).into_response(),
        "/v1/status" => Json(status).into_response(),
        "/v1/services" => list("ServiceList", &status["items"]),
        "/v1/gateways" => list("GatewayList", &status["gateways"]),
        "/v1/instances" => {
            let instances = status["items"]
                .as_array()
                .into_iter()
                .flatten()
                .flat_map(|service| service["instances"].as_array().cloned().unwrap_or_default());
            list("InstanceList", &instances.collect())
        }
        "/v1/routes" => list("RouteList", &routes()),
        "/v1/edges" => list("EdgeList", &edges()),
        "/v1/breakers" => list("BreakerList", &breakers()),
        "/v1/endpoints" => list("EndpointList", &endpoints()),
        "/v1/revisions" => list("RevisionList", &lock(&played.script).revisions),
        "/v1/events" => list("EventList", &lock(&played.script).events),
        "/v1/logs" => (StatusCode::OK, logs()).into_response(),
        "/v1/watch" => watch(&played),
        "/v1/plan" => Json(lock(&played.script).plan.clone()).into_response(),
        "/v1/handover" => StatusCode::NO_CONTENT.into_response(),
        "/v1/apply" | "/v1/scale" | "/v1/restart" | "/v1/undo" | "/v1/down" => {
            let (status, body) = lock(&played.script).accepts.clone();
            if path == "/v1/down" {
                go_down(&played);
            }
            (StatusCode::from_u16(status).expect("a status"), Json(body)).into_response()
        }
        "/v1/deadletters/export" => "{\"id\":\"dl-1\"}\n{\"id\":\"dl-2\"}\n".into_response(),
        "/v1/messages" if parts.uri.query().unwrap_or_default().contains("follow=true") => {
            format!("{}\n", fixtures::message("m-3", 3)).into_response()
        }
        _ => match fixtures::answer(&path, parts.uri.query().unwrap_or_default(), &json) {
            Some(body) => Json(body).into_response(),
            None => not_found(&path),
        },
    }
}

fn instead(played: &Played, call: &str) -> Option<(u16, Value)> {
    let mut script = lock(&played.script);
    let answers = script.instead.get_mut(call)?;
    if answers.len() > 1 { answers.pop_front() } else { answers.front().cloned() }
}

fn not_found(path: &str) -> Response {
    let error = json!({ "code": "notFound", "message": format!("there is nothing at {path}"), "hint": null });
    (StatusCode::NOT_FOUND, Json(error)).into_response()
}

/// As the real one: the stream ends, the socket is gone, and then the process.
fn go_down(played: &Played) {
    std::fs::remove_file(&played.socket).expect("the socket was there");
    let mut process = lock(&played.process);
    process.kill().expect("it ran");
    process.wait().expect("it ended");
    played.down.send_replace(true);
}

fn watch(played: &Arc<Played>) -> Response {
    let pieces = lock(&played.script).watches.pop_front().unwrap_or_default();
    let down = played.down.subscribe();
    let chunks = stream::iter(pieces).then(move |piece| {
        let mut down = down.clone();
        async move {
            Ok::<_, Infallible>(match piece {
                Piece::Told(id, told) => Bytes::from(format!("event: told\nid: {id}\ndata: {told}\n\n")),
                Piece::Raw(text) => Bytes::from(text),
                Piece::Stay => {
                    let _ = down.wait_for(|down| *down).await;
                    Bytes::new()
                }
            })
        }
    });
    Response::builder().header("content-type", "text/event-stream").body(Body::from_stream(chunks)).expect("a response")
}

fn version(played: &Played) -> Value {
    let said = lock(&played.script).version.map(|(version, build)| (version, build.to_owned()));
    let (version, build) = said.unwrap_or_else(|| ("0.1.0", own_build()));
    json!({
        "version": version, "pid": lock(&played.process).id(), "executable": "/usr/bin/meshctl", "build": build,
        "startedAt": "2026-11-23T10:00:00Z", "stateDir": "/state"
    })
}

/// The build of the command that is tested, as it says itself.
fn own_build() -> String {
    let nowhere = Path::new("/nonexistent");
    let said = command(nowhere, &["version", "-o", "jsonpath={.client.build}"]).output().expect("meshctl runs");
    String::from_utf8(said.stdout).expect("text").trim().to_owned()
}

pub(crate) fn start_time(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    let after_name = stat.rsplit(')').next().expect("a name");
    after_name.split_ascii_whitespace().nth(19).and_then(|ticks| ticks.parse().ok()).expect("a number")
}

/// So many hours ago and a half, so that the age is shown the same for as long as a test takes.
pub(crate) fn hours_ago(hours: i64) -> String {
    let then = Timestamp::now() - SignedDuration::from_mins(hours * 60 + 30);
    then.to_string()
}

pub(crate) fn service(name: &str, ready: u32, state: &str, reason: Option<&str>) -> Value {
    let instance = |number: u32| {
        let id = format!("{name}-{number}");
        let good = number <= ready;
        json!({
            "id": id, "service": name, "pid": 4000 + number, "address": format!("127.0.0.1:2001{number}"),
            "state": if good { "ready" } else { "starting" }, "reason": if good { None } else { reason },
            "startedAt": hours_ago(40), "since": hours_ago(30), "restarts": 0, "revision": 3
        })
    };
    json!({
        "name": name, "kind": "builtin", "serviceId": format!("{name}-id"), "desired": 2, "ready": ready, "state": state,
        "blockedBy": null, "reason": reason, "endpoint": "http://127.0.0.1:8080/orders",
        "instances": [instance(1), instance(2)], "labels": { "team": "commerce" }
    })
}

pub(crate) fn status() -> Value {
    json!({
        "apiVersion": "meshctl/v1", "kind": "Status", "name": "shop", "revision": 3, "ready": false,
        "items": [
            service("inventory", 1, "degraded", Some("health check: connection refused on 127.0.0.1:20012")),
            service("orders", 2, "ready", None),
        ],
        "gateways": [{
            "id": "gateway-1", "url": "http://127.0.0.1:8080", "revision": 3, "generation": 12, "pid": 4100,
            "state": "ready", "reason": null, "metricsUrl": "http://127.0.0.1:20001/metrics", "version": "0.1.0",
            "startedAt": hours_ago(40), "restarts": 0
        }],
        "lastEventId": "9"
    })
}

pub(crate) fn plan() -> Value {
    json!({
        "apiVersion": "meshctl/v1", "kind": "Plan", "fingerprint": "f00d", "changes": 1, "baseRevision": 3,
        "steps": [{
            "action": "create", "kind": "service", "name": "orders", "why": "new in the topology",
            "consequence": "2 instances are started"
        }],
        "sources": { "files": [], "environment": { "SECRET": "hidden" } }
    })
}

pub(crate) fn event(id: u64, kind: &str, data: Value) -> Value {
    json!({
        "id": id.to_string(), "type": kind, "subject": "instance/orders-1", "message": "orders-1 is ready",
        "severity": "info", "data": data, "createdAt": hours_ago(20)
    })
}

pub(crate) fn told(kind: &str, body: Value) -> Value {
    json!({ "kind": kind, "body": body })
}

fn routes() -> Value {
    let route = |name: &str, path: &str, methods: Value| {
        json!({
            "name": name, "host": null, "path": path, "methods": methods, "headers": {}, "deadlineMs": 2000,
            "attemptTimeoutMs": 500, "retries": 2,
            "targets": [{ "service": "orders", "edge": "gateway:orders", "weightPercent": 100.0 }]
        })
    };
    json!([
        route("GET /inventory/*", "/inventory/*", json!(["GET"])),
        route("GET,POST /orders", "/orders", json!(["GET", "POST"]))
    ])
}

fn edges() -> Value {
    let edge = |name: &str, breaker: &str, requests: u64| {
        let latency = |ms: f64| if requests > 0 { json!(ms) } else { Value::Null };
        json!({
            "name": name, "caller": "gateway", "callee": "orders", "url": null, "deadlineMs": 2000,
            "attemptTimeoutMs": 500, "retries": 2, "breaker": breaker, "inFlight": 1, "requests": requests,
            "failures": 2, "latencyP50Ms": latency(1.234), "latencyP99Ms": latency(56.7)
        })
    };
    let quiet = edge("orders:mailer", "unknown", 0);
    json!([edge("gateway:orders", "closed", 120), edge("orders:inventory", "open", 0), quiet])
}

fn breakers() -> Value {
    let breaker = |edge: &str, state: &str| {
        json!({
            "edge": edge, "state": state, "since": hours_ago(30), "reason": null, "by": null, "expiresAt": null,
            "acknowledged": 2, "instances": 2, "stragglers": [], "requestsPerS": 12.5, "refusedPerS": 0.0
        })
    };
    let mut open = breaker("orders:inventory", "open");
    open["reason"] = "12 of 20 requests failed within 10s".into();
    let mut forced = breaker("orders:prices", "forcedOpen");
    forced["reason"] = "prices is being migrated".into();
    forced["by"] = "ann".into();
    forced["expiresAt"] = hours_ago(-30).into();
    forced["acknowledged"] = 1.into();
    forced["stragglers"] = json!(["gateway-2"]);
    json!([breaker("gateway:orders", "closed"), open, breaker("orders:mailer", "unknown"), forced])
}

fn endpoints() -> Value {
    json!([{
        "service": "inventory", "id": "inventory-2", "address": "127.0.0.1:20012", "inRouting": false,
        "reason": "health check: connection refused", "since": hours_ago(30), "source": "instance",
        "expiresAt": null, "lastCheckedAt": hours_ago(20)
    }])
}

fn logs() -> String {
    let line = |instance: &str, text: &str| {
        json!({
            "at": "2026-11-23T10:00:02Z", "instance": instance, "service": "orders", "stream": "stdout", "line": text
        })
    };
    format!("{}\n{}\n", line("orders-1", "listening"), line("orders-2", "\u{1b}[31mred\u{1b}[0m"))
}
