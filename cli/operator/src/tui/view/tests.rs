//! Every view, drawn from one system in which something of everything happens.

use meshctl_api::view::{LogLine, Told};
use meshctl_model::event::Event;
use meshctl_model::trace::{Subscriptions, assemble};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::Buffer;
use ratatui::style::Color;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::*;
use crate::tui::effects::Effect;
use crate::tui::model::Loaded;
use crate::tui::model::deeds::Answer;
use crate::tui::msg::Msg;
use crate::tui::update::tests::{keys, typed};
use crate::tui::update::update;

pub(crate) const NOW: &str = "2026-11-23T10:30:00Z";
const UNICODE: Theme = Theme { color: true, unicode: true };

pub(crate) fn read<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("a view")
}

fn ago(seconds: i64) -> String {
    let now: jiff::Timestamp = NOW.parse().expect("a time");
    (now - jiff::SignedDuration::from_secs(seconds)).to_string()
}

pub(crate) fn service(name: &str, ready: u32, desired: u32, state: &str, reason: Option<&str>) -> Value {
    let instance = |number: u32| {
        let good = number <= ready;
        json!({
            "id": format!("{name}-{number}"), "service": name, "pid": 4000 + number,
            "address": format!("127.0.0.1:2{number:04}"), "state": if good { "ready" } else { "backingOff" },
            "reason": if good { None } else { Some("exited with status 1") }, "startedAt": ago(5400), "since": ago(5400),
            "restarts": if good { 0 } else { 7 }, "revision": 7
        })
    };
    json!({
        "name": name, "kind": "builtin", "serviceId": name, "desired": desired, "ready": ready, "state": state,
        "blockedBy": null, "reason": reason, "endpoint": format!("http://127.0.0.1:8080/{name}"),
        "instances": (1..=desired).map(instance).collect::<Vec<_>>(), "labels": {}
    })
}

pub(crate) fn status(services: Vec<Value>) -> Value {
    let gateway = |number: u32, state: &str| {
        json!({
            "id": format!("gateway-{number}"), "url": "http://127.0.0.1:8080", "revision": 7, "generation": 31,
            "pid": 4100 + number, "state": state, "reason": null, "metricsUrl": null, "version": "0.1.0",
            "startedAt": ago(5400), "restarts": 0
        })
    };
    json!({
        "apiVersion": "meshctl/v1", "kind": "Status", "name": "shop", "revision": 7, "ready": false, "items": services,
        "gateways": [gateway(1, "ready"), gateway(2, "ready")], "channels": [], "lastEventId": "41"
    })
}

fn signals(name: &str, rate: f64, errors: f64, p50: f64, p99: f64) -> Value {
    json!({
        "name": name, "requestsPerS": rate, "errorsPerS": errors, "latencyP50Ms": p50, "latencyP99Ms": p99,
        "inFlight": (rate / 40.0) as u64, "queued": 0, "refusedPerS": errors / 2.0, "cpuPercent": rate / 20.0,
        "memoryBytes": 31 << 20
    })
}

pub(crate) fn breaker(edge: &str, state: &str, acknowledged: u32) -> Value {
    let forced = state == "forcedOpen";
    json!({
        "edge": edge, "state": state, "since": ago(95), "by": forced.then_some("ada"),
        "reason": match state { "closed" => None, "open" => Some("52% of 40 failed"), _ => Some("stock is being counted") },
        "expiresAt": forced.then(|| ago(-505)), "acknowledged": acknowledged, "instances": 2, "stragglers": [],
        "requestsPerS": 118.4, "refusedPerS": if state == "closed" { 0.0 } else { 118.4 }
    })
}

fn channel() -> Value {
    let subscription = |name: &str, state: &str, reason: Option<&str>| {
        json!({
            "name": format!("order.placed/{name}"), "channel": "order.placed", "subscription": name, "service": name,
            "deliver": "/events/order-placed", "state": state, "reason": reason, "since": ago(30), "lag": 412,
            "inFlight": 3, "retrying": 12, "deadLetters": 3, "deliveredPerS": 87.0, "oldestMs": 31_000,
            "latencyP50Ms": 4.2, "latencyP99Ms": 880.0, "concurrency": 64, "attempts": 6
        })
    };
    json!({
        "name": "order.placed", "partitions": 8, "ordered": "byKey", "depth": 412, "inFlight": 6, "lag": 824,
        "deadLetters": 3, "publishedPerS": 118.0, "deliveredPerS": 174.0, "accepted": 90_000, "kept": 4100,
        "keptBytes": 4_500_000, "retentionMs": 604_800_000, "maxSizeBytes": 1_073_741_824, "publishers": ["orders"],
        "subscriptions": [
            subscription("billing", "waiting", Some("connection refused on 127.0.0.1:20031")),
            subscription("shipping", "flowing", None)
        ]
    })
}

pub(crate) fn vitals(rate: f64, breakers: Vec<Value>) -> Value {
    json!({
        "apiVersion": "meshctl/v1", "kind": "Vitals", "at": NOW,
        "routes": [
            signals("GET /orders/*", rate, 0.0, 2.1, 14.0),
            signals("POST /orders", rate / 3.0, rate / 40.0, 8.4, 63.0 + rate / 10.0),
            signals("GET /inventory/*", rate / 9.0, 0.0, 0.9, 3.8)
        ],
        "edges": [
            signals("gateway:orders", rate * 1.3, rate / 40.0, 4.0, 41.0),
            signals("orders:inventory", rate / 3.0, rate / 50.0, 1.1, 9.0)
        ],
        "services": [
            signals("orders", rate * 1.3, rate / 40.0, 4.0, 41.0),
            signals("inventory", rate / 2.0, rate / 50.0, 1.1, 9.0)
        ],
        "channels": [channel()], "breakers": breakers, "deadLetters": 3, "silent": []
    })
}

fn events() -> Vec<Event> {
    let event = |id: u64, seconds: i64, kind: &str, subject: &str, message: &str, severity: &str| {
        read(json!({
            "id": id.to_string(), "type": kind, "subject": subject, "message": message, "severity": severity,
            "data": {}, "createdAt": ago(seconds)
        }))
    };
    vec![
        event(38, 5400, "revision.applied", "revision/7", "revision 7 is applied", "info"),
        event(39, 120, "instance.ended", "instance/billing-1", "billing-1 exited with status 1", "error"),
        event(40, 95, "breaker.opened", "edge/orders:inventory", "52% of 40 requests failed", "warning"),
        event(
            41,
            30,
            "subscription.paused",
            "subscription/order.placed/billing",
            "billing cannot be reached",
            "warning",
        ),
    ]
}

fn letter(id: &str, reason: &str, state: &str) -> Value {
    json!({
        "id": id, "messageId": "01936f0e-7c1a-7d3e-9a51-2f6d1b0c8e44", "type": "order.placed", "channel": "order.placed",
        "subscription": "billing", "reason": reason, "class": "refused",
        "error": "POST /events/order-placed answered 500: the ledger is closed", "fingerprint": "9f2c", "attempts": 6,
        "firstFailedAt": ago(900), "lastFailedAt": ago(600), "traceId": "0af7651916cd43dd8448eb211c80319c",
        "state": state, "replayId": null, "key": "o-17", "sizeBytes": 1740
    })
}

pub(crate) fn replay(processed: u64, failed_again: u64, state: &str) -> Value {
    json!({
        "replayId": "01936f0e-9a51-7d3e-9a51-2f6d1b0c8e44", "fingerprint": "beef", "selected": 3, "issued": 3,
        "processed": processed, "failedAgain": failed_again, "pending": 3 - processed - failed_again, "state": state,
        "subscriptions": { "order.placed/billing": 3 }, "ratePerS": null, "by": "ada", "reason": "billing 1.4 is out",
        "createdAt": ago(300), "endedAt": null
    })
}

fn span(id: &str, parent: Option<&str>, who: (&str, &str), kind: &str, at: (i64, f64), attributes: Value) -> Value {
    let start: jiff::Timestamp = NOW.parse().expect("a time");
    let failed = attributes.get("error.type").is_some();
    json!({
        "traceId": "0af7651916cd43dd8448eb211c80319c", "spanId": format!("{id:0>16}"),
        "parentSpanId": parent.map(|parent| format!("{parent:0>16}")), "links": [], "service": who.0, "operation": who.1,
        "kind": kind, "startAt": (start + jiff::SignedDuration::from_millis(at.0)).to_string(), "durationMs": at.1,
        "status": if failed { "error" } else { "ok" }, "attributes": attributes
    })
}

fn trace() -> Loaded {
    let message = "01936f0e-7c1a-7d3e-9a51-2f6d1b0c8e44";
    let spans = json!([
        span("1", None, ("gateway", "POST /orders"), "server", (0, 61.0), json!({"http.response.status_code": 201})),
        span(
            "2",
            Some("1"),
            ("gateway", "attempt"),
            "client",
            (1, 20.0),
            json!({"meshctl.attempt": 1, "error.type": "attemptTimeout", "meshctl.edge": "gateway:orders"})
        ),
        span(
            "3",
            Some("1"),
            ("gateway", "attempt"),
            "client",
            (24, 36.0),
            json!({"meshctl.attempt": 2, "http.response.status_code": 201, "meshctl.instance": "orders-2"})
        ),
        span("4", Some("3"), ("orders", "POST /orders"), "server", (25, 34.0), json!({})),
        span(
            "5",
            Some("4"),
            ("courier", "publish order.placed"),
            "producer",
            (50, 3.0),
            json!({"messaging.message.id": message})
        ),
        span(
            "6",
            Some("5"),
            ("courier", "deliver order.placed/billing"),
            "consumer",
            (60, 12.0),
            json!({"meshctl.attempt": 1, "meshctl.outcome": "retried", "error.type": "refused", "messaging.message.id": message})
        ),
    ]);
    let trace = json!({
        "apiVersion": "meshctl/v1", "kind": "Trace", "name": "0af7651916cd43dd8448eb211c80319c",
        "traceId": "0af7651916cd43dd8448eb211c80319c", "startAt": NOW, "durationMs": 72.0, "complete": false,
        "gaps": ["order.placed/billing is retried at 2026-11-23T10:30:02Z"], "spans": spans, "joined": [],
        "messageIds": [message]
    });
    let trace: meshctl_api::view::traces::Trace = read(trace);
    let tree = assemble(trace.spans.clone(), &Subscriptions::new());
    Loaded::Trace { trace: Box::new(trace), tree }
}

/// What the daemon says to what is asked for `view`.
fn loaded(view: &View) -> Loaded {
    let text = |text: &str| Loaded::Text { lines: text.lines().map(str::to_owned).collect(), trace: None };
    match view {
        View::Routes => {
            let route = |name: &str, to: &[(&str, f64)]| {
                let targets: Vec<Value> = to
                    .iter()
                    .map(|(to, weight)| json!({ "service": to, "edge": format!("gateway:{to}"), "weightPercent": weight }))
                    .collect();
                json!({
                    "name": name, "host": null, "path": name, "methods": [], "headers": {}, "targets": targets,
                    "deadlineMs": 2000, "attemptTimeoutMs": 500, "retries": 2
                })
            };
            Loaded::Routes(read(json!([
                route("GET /inventory/*", &[("inventory", 100.0)]),
                route("GET /orders/*", &[("orders", 90.0), ("orders-v2", 10.0)]),
                route("POST /orders", &[("orders", 100.0)]),
            ])))
        }
        View::Edges => {
            let edge = |name: &str| {
                let (caller, callee) = name.split_once(':').expect("an edge");
                json!({
                    "name": name, "caller": caller, "callee": callee, "url": null, "deadlineMs": 2000,
                    "attemptTimeoutMs": 500, "retries": 2, "breaker": "closed", "inFlight": 1, "requests": 0,
                    "failures": 0, "latencyP50Ms": 0.0, "latencyP99Ms": 0.0
                })
            };
            Loaded::Edges(read(json!([edge("gateway:orders"), edge("orders:inventory"), edge("orders:mailer")])))
        }
        View::Letters(_) => Loaded::Letters(read(json!([
            letter("4f1c09ab77d2e310", "exhausted", "dead"),
            letter("b07e55c2aa9013d8", "poison", "dead"),
            letter("c17e55c2aa9013d8", "exhausted", "replaying"),
        ]))),
        View::Letter(_) => {
            let mut letter = letter("4f1c09ab77d2e310", "exhausted", "dead");
            letter["history"] = json!([{
                "number": 1, "at": ago(900), "failure": "refused", "status": 500, "durationMs": 12,
                "reason": "POST /events/order-placed answered 500: the ledger is closed"
            }]);
            letter["payload"] = json!({ "orderId": "o-17", "sku": "desk", "quantity": 2 });
            letter["headers"] = json!([["ce-type", "order.placed"]]);
            let letter = read(letter);
            let page = crate::commands::dead_letter_page(&letter, None).expect("a page");
            // How long ago that was is for the wall clock to say.
            let page = anstream::adapter::strip_str(&page).to_string();
            let lines = page.lines().map(|line| line.split(" (").next().unwrap_or(line).to_owned()).collect();
            Loaded::Text { lines, trace: letter.trace_id }
        }
        View::Replays => Loaded::Replays(read(json!([replay(2, 0, "running"), replay(2, 1, "done")]))),
        View::Traces(..) => Loaded::Traces(Box::new(read(json!({
            "apiVersion": "meshctl/v1", "kind": "TraceList", "items": [
                {
                    "traceId": "0af7651916cd43dd8448eb211c80319c", "operation": "POST /orders", "service": "gateway",
                    "startAt": ago(4), "latencyMs": 61.0, "durationMs": 72.0, "spans": 6, "errors": 2,
                    "services": ["courier", "gateway", "orders"], "status": "error"
                },
                {
                    "traceId": "11f7651916cd43dd8448eb211c80319c", "operation": "GET /orders/*", "service": "gateway",
                    "startAt": ago(9), "latencyMs": 1.7, "durationMs": 1.7, "spans": 3, "errors": 0,
                    "services": ["gateway", "orders"], "status": "ok"
                }
            ],
            "store": {
                "traces": 2, "spans": 9, "sizeBytes": 4096, "maxSizeBytes": 1_073_741_824, "keepMs": 86_400_000,
                "oldestAt": ago(9), "droppedSpans": 0, "evictedTraces": 0
            }
        })))),
        View::Trace(_) => trace(),
        View::Page { .. } => text("service/orders\n  Desired: 3\n  Ready:   3\n  State:   ready\n"),
        other => panic!("nothing is asked for {other:?}"),
    }
}

/// A system in which something of everything happens, watched for a minute.
pub(crate) fn system(size: (u16, u16)) -> Model {
    let mut model = Model::new(NOW.parse().expect("a time"), size);
    let services = vec![
        service("billing", 0, 1, "failed", Some("billing-1 exited with status 1, 7 times in a row")),
        service("inventory", 2, 2, "ready", None),
        service("orders", 3, 3, "ready", None),
        service("shipping", 1, 2, "rolling", None),
    ];
    update(&mut model, Msg::Past(events()));
    update(&mut model, Msg::Told(Box::new(Told::Snapshot(read(status(services))))));
    for second in 0..60u32 {
        let rate = 900.0 + 600.0 * f64::from(second).mul_add(0.21, 0.0).sin();
        let breakers = vec![
            breaker("gateway:orders", "closed", 2),
            breaker("orders:inventory", "open", 2),
            breaker("orders:mailer", "forcedOpen", 1),
        ];
        update(&mut model, Msg::Vitals(Box::new(read(vitals(rate, breakers)))));
    }
    model
}

/// Gives everything that is asked for.
pub(crate) fn answer(model: &mut Model, effects: Vec<Effect>) {
    for effect in effects {
        match effect {
            Effect::Load { screen, view } => drop(update(model, Msg::Loaded { screen, result: Ok(loaded(&view)) })),
            Effect::FollowLog { screen, .. } => {
                let line = |second: u32, instance: &str, stream: &str, line: &str| -> LogLine {
                    read(json!({
                        "at": format!("2026-11-23T10:29:{second:02}Z"), "instance": instance, "service": "orders",
                        "stream": stream, "line": line
                    }))
                };
                let lines = vec![
                    line(1, "orders-1", "stdout", r#"{"level":"info","message":"placed","orderId":"o-17"}"#),
                    line(2, "orders-2", "stderr", "inventory answered 503"),
                ];
                update(model, Msg::Written { screen, lines });
            }
            other => panic!("unexpected {other:?}"),
        }
    }
}

/// What `model` looks like.
fn drawn(model: &mut Model, theme: Theme) -> Buffer {
    model.settle();
    let (columns, rows) = model.size;
    let mut terminal = Terminal::new(TestBackend::new(columns, rows)).expect("a terminal in memory");
    terminal.draw(|frame| view(model, theme, frame)).expect("drawn");
    terminal.backend().buffer().clone()
}

pub(crate) fn shown(model: &mut Model) -> String {
    text(&drawn(model, UNICODE))
}

fn text(buffer: &Buffer) -> String {
    let rows = buffer.content().chunks(usize::from(buffer.area.width));
    let line = |row: &[ratatui::buffer::Cell]| row.iter().map(|cell| cell.symbol()).collect::<String>();
    rows.map(|row| line(row).trim_end().to_owned() + "\n").collect()
}

/// The system with `line` typed after `:`.
fn at(line: &str, size: (u16, u16)) -> Model {
    let mut model = system(size);
    let effects = typed(&mut model, &format!(":{line}\n"));
    answer(&mut model, effects);
    model
}

const SIZES: [(u16, u16); 2] = [(80, 24), (120, 40)];

fn check(name: &str, model: &mut Model) {
    let (columns, rows) = model.size;
    insta::assert_snapshot!(format!("{name}-{columns}x{rows}"), shown(model));
}

#[test]
fn every_view() {
    for size in SIZES {
        check("overview", &mut system(size));
        for name in [
            "services",
            "instances",
            "gateways",
            "routes",
            "edges",
            "channels",
            "subscriptions",
            "deadletters",
            "breakers",
            "replays",
            "traces",
            "events",
            "logs",
        ] {
            check(name, &mut at(name, size));
        }
        check("deadletter", &mut at("dl 4f1c09ab77d2e310", size));
        check("trace", &mut at("tr 0af7651916cd43dd8448eb211c80319c", size));
        let mut page = at("svc", size);
        let effects = typed(&mut page, "Gd");
        answer(&mut page, effects);
        check("describe", &mut page);
    }
    check("overview", &mut system((200, 60)));
}

#[test]
fn a_dialog_says_what_it_would_do_and_what_it_did() {
    for size in SIZES {
        let mut model = at("cb", size);
        let effects = typed(&mut model, "t");
        let [Effect::DryRun { dry_run, .. }] = effects[..] else { panic!("{effects:?}") };
        let change = |breaker: Value| -> Answer {
            Answer::Force(Box::new(read(json!({
                "apiVersion": "meshctl/v1", "kind": "BreakerChange", "action": "trip",
                "routes": ["GET /orders/*", "POST /orders"], "channels": ["order.placed"],
                "callersGet": "503 problem+json breakerForcedOpen with Retry-After", "breaker": breaker, "dryRun": false
            }))))
        };
        let result = Ok(change(breaker("gateway:orders", "closed", 2)));
        update(&mut model, Msg::WouldBe { dry_run, result });
        typed(&mut model, "stock is wrong");
        check("dialog", &mut model);
        let effects = typed(&mut model, "\n");
        let [Effect::Do { job, .. }] = effects[..] else { panic!("{effects:?}") };
        update(&mut model, Msg::Did { job, result: Ok(change(breaker("gateway:orders", "forcedOpen", 1))) });
        check("dialog-under-way", &mut model);
        let all = vec![breaker("gateway:orders", "forcedOpen", 2)];
        update(&mut model, Msg::Vitals(Box::new(read(vitals(900.0, all)))));
        check("dialog-done", &mut model);
    }
}

#[test]
fn help_prompt_and_stale_state() {
    for size in SIZES {
        let mut model = at("dl", size);
        typed(&mut model, "?");
        check("help", &mut model);
        keys(&mut model, &[crossterm::event::KeyCode::Esc]);
        typed(&mut model, "  :s");
        keys(&mut model, &[crossterm::event::KeyCode::Tab]);
        check("prompt", &mut model);
        let mut model = at("svc", size);
        update(&mut model, Msg::Gone);
        let later = model.now + jiff::SignedDuration::from_secs(12);
        update(&mut model, Msg::Tick(later));
        check("stale", &mut model);
        let buffer = drawn(&mut model, UNICODE);
        assert!(buffer[(2, 3)].modifier.contains(Modifier::DIM), "what is stale is dimmed");
        assert!(!buffer[(0, 0)].modifier.contains(Modifier::DIM), "what says so is not");
    }
}

#[test]
fn without_colour_and_beyond_ascii_everything_can_be_read() {
    let plain = Theme { color: false, unicode: false };
    let mut models = vec![system((80, 24)), at("tr 0af7651916cd43dd8448eb211c80319c", (80, 24)), at("cb", (120, 40))];
    typed(&mut models[2], "t");
    for model in &mut models {
        let buffer = drawn(model, plain);
        for cell in buffer.content() {
            assert!(cell.symbol().is_ascii(), "{:?} in\n{}", cell.symbol(), text(&buffer));
            assert_eq!((cell.fg, cell.bg), (Color::Reset, Color::Reset), "{}", text(&buffer));
        }
    }
    insta::assert_snapshot!("overview-ascii", text(&drawn(&mut models[0], plain)));
    insta::assert_snapshot!("trace-ascii", text(&drawn(&mut models[1], plain)));
}

#[test]
fn any_size_can_be_drawn() {
    let mut models =
        [system((1, 1)), at("svc", (1, 1)), at("tr 0af7651916cd43dd8448eb211c80319c", (1, 1)), at("cb", (1, 1))];
    typed(&mut models[3], "t");
    for (columns, rows) in [(1, 1), (2, 3), (10, 4), (20, 5), (79, 7), (300, 100)] {
        for model in &mut models {
            update(model, Msg::Resize(columns, rows));
            drawn(model, UNICODE);
        }
    }
}

/// Measured, not asserted: `cargo test --release -p meshctl-operator frame_time -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn frame_time_with_five_hundred_services() {
    let mut model = Model::new(NOW.parse().expect("a time"), (200, 60));
    let services: Vec<Value> = (0..500)
        .map(|at| service(&format!("service-{at:03}"), 3, 4, "degraded", Some("an instance is not ready")))
        .collect();
    update(&mut model, Msg::Told(Box::new(Told::Snapshot(read(status(services.clone()))))));
    update(&mut model, Msg::Vitals(Box::new(read(vitals(900.0, Vec::new())))));
    typed(&mut model, ":svc\n");
    let mut terminal = Terminal::new(TestBackend::new(200, 60)).expect("a terminal in memory");
    let mut measure = |what: &str, message: &dyn Fn(u32) -> Msg| {
        let (mut worst, mut sum) = (std::time::Duration::ZERO, std::time::Duration::ZERO);
        for at in 0..200u32 {
            let begun = std::time::Instant::now();
            update(&mut model, message(at));
            model.settle();
            terminal.draw(|frame| view(&model, UNICODE, frame)).expect("drawn");
            worst = worst.max(begun.elapsed());
            sum += begun.elapsed();
        }
        println!("{what}: {:?} a frame, {worst:?} the slowest", sum / 200);
    };
    let key = |code| Msg::Key(crossterm::event::KeyEvent::new(code, crossterm::event::KeyModifiers::NONE));
    measure("a key that moves the cursor", &|_| key(crossterm::event::KeyCode::Down));
    measure("a key that sorts", &|_| key(crossterm::event::KeyCode::Char('s')));
    measure("a service that changed", &|at| Msg::Told(Box::new(Told::Service(read(services[at as usize].clone())))));
}
