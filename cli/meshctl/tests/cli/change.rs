//! Changing: plans, progress, results, and how a change may end.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use serde_json::{Value, json};

use crate::support::{Daemon, Piece, Ran, Script, event, plan, ran, service, status, told};

/// A topology on disk.
fn topology(dir: &Daemon) -> String {
    let path = dir.dir.path().join("shop.yaml");
    std::fs::write(&path, "services:\n  orders: { builtin: orders }\n").expect("written");
    path.to_str().expect("text").to_owned()
}

/// A stream that shows `orders` on its way and ends with `last`.
fn stream(last: Value) -> Vec<Piece> {
    let waiting = service("orders", 1, "starting", Some("health check: connection refused on 127.0.0.1:20012"));
    let mut begin = status();
    begin["items"] = json!([]);
    vec![
        Piece::Told(10, told("snapshot", begin)),
        Piece::Raw(": keep-alive\n\n"),
        Piece::Told(11, told("service", waiting)),
        Piece::Told(12, told("service", service("orders", 2, "ready", None))),
        Piece::Told(13, last),
        Piece::Stay,
    ]
}

fn outcome(kind: &str, data: Value) -> Value {
    told("event", event(13, kind, data))
}

fn playing(watches: Vec<Vec<Piece>>) -> Daemon {
    Daemon::play(Script { watches: watches.into(), ..Script::default() })
}

fn applied() -> Value {
    outcome("revision.applied", json!({ "revision": 4 }))
}

#[test]
fn an_apply_shows_its_plan_its_progress_and_its_result() {
    let daemon = playing(vec![stream(applied())]);
    let file = topology(&daemon);
    let Ran { status, stdout, stderr } = daemon.run(&["apply", &file, "--reason", "sale"]);
    assert_eq!(status, 0, "{stderr}");
    insta::assert_snapshot!(stdout, @r"
    service/orders created
    service/inventory unchanged

    shop is ready at http://127.0.0.1:8080
      curl -i http://127.0.0.1:8080/orders
    ");
    insta::assert_snapshot!(stderr, @r"
    ACTION   WHAT             WHY                   CONSEQUENCE
    create   service/orders   new in the topology   2 instances are started

    1 change: 1 to create
    orders 1/2 ready · orders-2: health check: connection refused on 127.0.0.1:20012
    orders 2/2 ready
    ");
    let asked = daemon.asked();
    let apply = asked.iter().find(|(call, _)| call == "POST /v1/apply").expect("it was applied");
    assert_eq!((&apply.1["fingerprint"], &apply.1["reason"]), (&json!("f00d"), &json!("sale")));
    assert_eq!(asked.last().map(|(call, _)| call.as_str()), Some("GET /v1/watch?after=10"));
}

#[test]
fn a_dry_run_changes_nothing() {
    let daemon = playing(vec![]);
    let file = topology(&daemon);
    let ran = daemon.run(&["apply", "-f", &file, "--dry-run"]);
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
    assert!(ran.stdout.contains("service/orders   new in the topology"), "{}", ran.stdout);
    let calls: Vec<String> = daemon.asked().into_iter().map(|(call, _)| call).collect();
    assert_eq!(calls, ["POST /v1/plan"]);
}

#[test]
fn messages_are_lost_only_where_that_is_said() {
    let daemon = playing(vec![stream(applied()), stream(applied())]);
    let file = topology(&daemon);
    assert_eq!(daemon.run(&["apply", &file]).status, 0);
    assert_eq!(daemon.run(&["apply", &file, "--discard-messages"]).status, 0);
    assert_eq!(daemon.run(&["plan", &file, "--discard-messages"]).status, 0);
    let asked = daemon.asked();
    let said = |call: &str| -> Vec<Value> {
        asked.iter().filter(|(asked, _)| asked == call).map(|(_, body)| body["discardMessages"].clone()).collect()
    };
    assert_eq!(said("POST /v1/apply"), [false, true]);
    assert_eq!(said("POST /v1/plan"), [false, true, true]);
}

#[test]
fn a_failed_apply_says_who_why_and_what_next() {
    let failed = json!({
        "revision": 4,
        "failures": [{ "service": "orders", "reason": "exited with status 1", "log": ["starting", "no database"] }],
        "blocked": [{ "service": "shipping", "by": "orders" }]
    });
    let daemon = playing(vec![stream(outcome("revision.failed", failed))]);
    let file = topology(&daemon);
    let Ran { status, stdout, stderr } = daemon.run(&["apply", &file, "-q"]);
    assert_eq!(status, 1);
    insta::assert_snapshot!(format!("{stdout}---\n{stderr}"), @r"
    service/orders failed
    service/inventory unchanged
    ---
    orders does not become ready: exited with status 1
      | starting
      | no database
    shipping is blocked by orders
    running on: inventory, orders
    error: revision 4 failed: orders did not become ready
      hint: `meshctl logs orders` shows more; correct it and apply again
    ");
}

#[test]
fn a_result_is_also_a_document() {
    let daemon = playing(vec![stream(applied())]);
    let file = topology(&daemon);
    let ran = daemon.run(&["apply", &file, "-o", "json"]);
    let rollout: Value = serde_json::from_str(&ran.stdout).expect("a document alone on stdout");
    assert_eq!(
        (&rollout["kind"], &rollout["state"], &rollout["revision"]),
        (&json!("Rollout"), &json!("applied"), &json!(4))
    );
    assert_eq!(rollout["curl"], json!("curl -i http://127.0.0.1:8080/orders"));
}

#[test]
fn a_stream_that_breaks_off_is_resumed_where_it_was() {
    let first = vec![Piece::Told(11, told("snapshot", status())), Piece::Raw("event: told\nid: 12\ndata: {\"kind\":")];
    let daemon = playing(vec![first, stream(applied())]);
    let file = topology(&daemon);
    let ran = daemon.run(&["apply", &file]);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    let watches: Vec<String> =
        daemon.asked().into_iter().map(|(call, _)| call).filter(|call| call.contains("watch")).collect();
    assert_eq!(watches, ["GET /v1/watch?after=10", "GET /v1/watch?after=11"], "half a message was not seen");
}

#[test]
fn somebody_else_may_be_faster() {
    let daemon = playing(vec![stream(outcome("revision.applied", json!({ "revision": 5 })))]);
    let ran = daemon.run(&["scale", "orders=3"]);
    assert_eq!(ran.status, 4);
    assert!(ran.stderr.contains("revision 4 gave way to revision 5"), "{}", ran.stderr);
}

#[test]
fn waiting_ends_when_its_time_is_over_or_is_not_wanted() {
    let quiet = || vec![Piece::Told(10, told("snapshot", status())), Piece::Stay];
    let daemon = playing(vec![quiet()]);
    let ran = daemon.run(&["restart", "orders", "--timeout", "200ms"]);
    assert_eq!(ran.status, 5);
    assert!(ran.stderr.contains("inventory 1/2 ready · inventory-2: health check"), "{}", ran.stderr);
    let ran = daemon.run(&["restart", "orders", "--wait=false"]);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    assert!(ran.stderr.contains("revision 4 is accepted"), "{}", ran.stderr);
}

#[test]
fn ctrl_c_detaches_and_says_what_goes_on() {
    let daemon = playing(vec![vec![Piece::Told(10, told("snapshot", status())), Piece::Stay]]);
    let mut command = daemon.command(&["restart", "orders"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("meshctl runs");
    let mut stderr = BufReader::new(child.stderr.take().expect("piped")).lines().map_while(Result::ok);
    assert!(stderr.any(|line| line.starts_with("inventory 1/2 ready")), "it follows the change");
    let interrupt = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(interrupt.expect("kill runs").success());
    let rest: Vec<String> = stderr.collect();
    assert_eq!(child.wait().expect("ended").code(), Some(130));
    assert!(rest.iter().any(|line| line.contains("detached: revision 4 goes on")), "{rest:?}");
}

#[test]
fn a_saved_plan_is_applied_as_it_was_or_not_at_all() {
    use std::os::unix::fs::PermissionsExt;
    let daemon = playing(vec![stream(applied())]);
    let file = topology(&daemon);
    let saved = daemon.dir.path().join("p");
    let saved = saved.to_str().expect("text");
    assert_eq!(daemon.run(&["plan", &file, "--out", saved, "--exit-code"]).status, 1, "there are changes");
    assert_eq!(std::fs::metadata(saved).expect("saved").permissions().mode() & 0o777, 0o600);
    assert_eq!(daemon.run(&["apply", saved]).status, 0);

    let text = std::fs::read_to_string(saved).expect("saved").replace("f00d", "0ld");
    std::fs::write(saved, text).expect("written");
    let ran = daemon.run(&["apply", saved]);
    assert_eq!(ran.status, 4);
    assert!(ran.stderr.contains("the plan is stale"), "{}", ran.stderr);
    let applied = daemon.asked().iter().filter(|(call, _)| call == "POST /v1/apply").count();
    assert_eq!(applied, 1, "the stale plan was not applied");
    assert_eq!(daemon.run(&["diff", &file]).status, 1);
    assert_eq!(daemon.run(&["diff", saved]).status, 2, "a saved plan is no topology");
}

#[test]
fn what_the_daemon_refuses_ends_with_its_status() {
    let finding = json!({
        "severity": "error", "code": "unknown-key", "message": "unknown key `comand`", "help": null,
        "file": "/gone/shop.yaml", "line": 2, "column": 3, "endLine": 2, "endColumn": 9
    });
    for (http, code, status) in [
        (409, "conflict", 4),
        (422, "invalidTopology", 78),
        (403, "forbidden", 77),
        (404, "notFound", 3),
        (500, "internal", 1),
    ] {
        let body = json!({
            "code": code, "message": "cannot do it", "hint": "do something else",
            "findings": if status == 78 { json!([finding]) } else { json!([]) }
        });
        let daemon = Daemon::play(Script { accepts: (http, body), ..Script::default() });
        let file = topology(&daemon);
        let ran = daemon.run(&["apply", &file]);
        assert_eq!(ran.status, status, "{}", ran.stderr);
        let said = if status == 78 { "error[unknown-key]: unknown key `comand`" } else { "  hint: do something else" };
        assert!(ran.stderr.contains(said), "{}", ran.stderr);
    }
}

#[test]
fn nothing_to_change_is_said() {
    let nothing = json!({ "changes": 0, "steps": [] });
    let mut empty = plan();
    empty["changes"] = nothing["changes"].clone();
    empty["steps"] = nothing["steps"].clone();
    let accepts = (202, json!({ "revision": 4, "plan": empty, "lastEventId": "10" }));
    let daemon =
        Daemon::play(Script { plan: empty, accepts, watches: vec![stream(applied())].into(), ..Script::default() });
    let file = topology(&daemon);
    assert_eq!(daemon.run(&["plan", &file, "--exit-code"]).status, 0);
    assert_eq!(daemon.run(&["diff", &file]).stdout, "");
    let ran = daemon.run(&["apply", &file]);
    assert!(ran.stderr.starts_with("no changes\n"), "{}", ran.stderr);
    assert!(ran.stdout.starts_with("service/inventory unchanged\nservice/orders unchanged\n"), "{}", ran.stdout);
}

#[test]
fn rollout_status_waits_until_everything_is_ready() {
    let mut done = status();
    done["ready"] = true.into();
    let daemon = playing(vec![vec![
        Piece::Told(9, told("snapshot", status())),
        Piece::Told(10, told("snapshot", done)),
        Piece::Stay,
    ]]);
    assert_eq!(daemon.run(&["rollout", "status"]).status, 0);
}

#[test]
fn rollout_status_tells_what_is_true_now() {
    let look = |script: Script| {
        let daemon = Daemon::play(script);
        let words = ["rollout", "status", "--wait=false"];
        let state = daemon.run(&[words.as_slice(), &["-o", "jsonpath={.state}"]].concat());
        let ran = daemon.run(&words);
        assert_eq!(ran.status, state.status);
        assert!(daemon.asked().is_empty(), "nobody waited");
        (ran, state.stdout)
    };
    let (ran, state) = look(Script::default());
    assert_eq!((ran.status, state.as_str()), (1, "notReady\n"));
    assert_eq!(ran.stdout, "service/inventory degraded\nservice/orders ready\n");
    insta::assert_snapshot!(ran.stderr, @r"
      inventory 1/2 ready · inventory-2: health check: connection refused on 127.0.0.1:20012
    error: revision 3 is not ready
      hint: without --wait=false `meshctl rollout status` waits until it is
    ");

    let mut ready = status();
    ready["ready"] = true.into();
    ready["items"] = json!([service("orders", 2, "ready", None)]);
    let (ran, state) = look(Script { status: ready, ..Script::default() });
    assert_eq!((ran.status, state.as_str(), ran.stderr.as_str()), (0, "applied\n", ""));
    assert!(ran.stdout.starts_with("service/orders ready\n\nshop is ready at "), "{}", ran.stdout);

    let failed = json!([{
        "revision": 3, "createdAt": "2026-11-23T10:00:00Z", "by": "root", "reason": null, "cause": "apply",
        "state": "failed", "current": true
    }]);
    let (ran, state) = look(Script { revisions: failed.clone(), ..Script::default() });
    assert_eq!((ran.status, state.as_str()), (1, "failed\n"));
    assert!(ran.stderr.contains("error: revision 3 failed"), "{}", ran.stderr);
    let daemon = Daemon::play(Script { revisions: failed, ..Script::default() });
    assert_eq!(daemon.run(&["rollout", "status"]).status, 1, "what has failed is not waited for");
    assert!(daemon.run(&["rollout", "history"]).stdout.contains("failed"));
}

/// A plan with a route, an edge and the gateway beside its service.
fn everything() -> Value {
    let mut plan = plan();
    let step = |kind: &str, name: &str| json!({ "action": "create", "kind": kind, "name": name, "why": "it is new", "consequence": "it is there" });
    let service = plan["steps"][0].clone();
    plan["steps"] = json!([step("gateway", "embedded"), service, step("route", "/*"), step("edge", "gateway:orders")]);
    plan
}

#[test]
fn nothing_is_called_done_that_is_not_proven() {
    let run = |watch: Vec<Piece>, gateway: Value, words: &[&str]| {
        let mut status = status();
        let fields = status["gateways"][0].as_object_mut().expect("a gateway");
        fields.extend(gateway.as_object().expect("fields").clone());
        let accepts = (202, json!({ "revision": 4, "plan": everything(), "lastEventId": "10" }));
        let daemon = Daemon::play(Script { status, accepts, watches: vec![watch].into(), ..Script::default() });
        let file = topology(&daemon);
        daemon.run(&[&["apply", &file, "-v"], words].concat()).stdout
    };
    insta::assert_snapshot!(run(vec![], json!({}), &["--wait=false"]), @r"
    gateway/embedded accepted
    service/orders accepted
    route//* accepted
    edge/gateway:orders accepted
    service/inventory unchanged
    ");
    let refused = || {
        let failure = json!({ "service": "gateway-1", "reason": "cannot listen on 127.0.0.1:8080", "log": [] });
        stream(outcome("revision.failed", json!({ "revision": 4, "failures": [failure], "blocked": [] })))
    };
    let trouble = json!({ "revision": 3, "reason": "cannot listen on 127.0.0.1:8080" });
    insta::assert_snapshot!(run(refused(), trouble, &[]), @r"
    gateway/embedded failed
    service/orders created
    route//* accepted
    edge/gateway:orders accepted
    service/inventory unchanged
    ");
    let failure = json!({ "service": "orders", "reason": "exited with status 1", "log": [] });
    let failed = stream(outcome("revision.failed", json!({ "revision": 4, "failures": [failure], "blocked": [] })));
    insta::assert_snapshot!(run(failed, json!({ "revision": 4 }), &[]), @r"
    gateway/embedded created
    service/orders failed
    route//* created
    edge/gateway:orders created
    service/inventory unchanged
    ");
}

#[test]
fn routes_and_edges_are_for_those_who_want_details() {
    let daemon = || {
        let accepts = (202, json!({ "revision": 4, "plan": everything(), "lastEventId": "10" }));
        Daemon::play(Script { accepts, watches: vec![stream(applied())].into(), ..Script::default() })
    };
    let lines = daemon().run(&["restart", "orders"]).stdout;
    assert!(lines.starts_with("gateway/embedded created\nservice/orders created\nservice/inventory"), "{lines}");
    let kinds = daemon().run(&["restart", "orders", "-o", "jsonpath={.steps[*].kind}"]).stdout;
    assert_eq!(kinds, "gateway service route edge\n");
    let names = daemon().run(&["restart", "orders", "-o", "name"]).stdout;
    assert!(names.contains("route//*\nedge/gateway:orders\n"), "{names}");
}

#[test]
fn a_system_that_is_taken_down_has_no_outcome() {
    let mut going_down = event(13, "system.goingDown", json!({ "by": "root", "reason": null }));
    going_down["message"] = "root takes the system down".into();
    let going_down = told("event", going_down);
    let daemon = playing(vec![stream(going_down.clone()), stream(going_down)]);
    let file = topology(&daemon);
    for words in [["apply", &file].as_slice(), &["rollout", "status"]] {
        let ran = daemon.run(words);
        assert_eq!((ran.status, ran.stdout.as_str()), (1, ""), "{words:?}: {}", ran.stderr);
        assert!(ran.stderr.contains("is given up: root takes the system down"), "{}", ran.stderr);
        assert!(!ran.stderr.contains("is saved"), "{}", ran.stderr);
    }
}

#[test]
fn a_reader_that_fell_behind_misses_no_outcome() {
    // The second snapshot stands for messages that were dropped, the outcome among them.
    let watch = || {
        vec![
            Piece::Told(10, told("snapshot", status())),
            Piece::Told(11, told("event", event(11, "instance.ready", json!({})))),
            Piece::Told(14, told("snapshot", status())),
            Piece::Stay,
        ]
    };
    let events = json!([
        event(11, "instance.ready", json!({})),
        event(12, "instance.unhealthy", json!({})),
        event(13, "revision.applied", json!({ "revision": 4 })),
    ]);
    let daemon = Daemon::play(Script { events, watches: vec![watch()].into(), ..Script::default() });
    let file = topology(&daemon);
    let ran = daemon.run(&["apply", &file, "--timeout", "1m"]);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
}

#[test]
fn a_newer_daemon_is_used_and_not_replaced() {
    let watches = vec![stream(applied())].into();
    let daemon = Daemon::play(Script { version: Some(("99.0.0", "newer")), watches, ..Script::default() });
    let file = topology(&daemon);
    let ran = daemon.run(&["apply", &file]);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    assert!(ran.stderr.contains("runs meshctl 99.0.0, and this is 0.1.0"), "{}", ran.stderr);
    assert!(!daemon.asked().iter().any(|(call, _)| call.contains("handover")), "it stays");
}

#[test]
fn a_topology_may_come_from_standard_input() {
    use std::io::Write;
    let daemon = playing(vec![]);
    let mut command = daemon.command(&["plan", "-"]);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("meshctl runs");
    child.stdin.take().expect("piped").write_all(b"services: { orders: { builtin: orders } }\n").expect("read");
    assert_eq!(ran(child.wait_with_output().expect("ended")).status, 0);
    let file = &daemon.asked()[0].1["sources"]["files"][0];
    assert_eq!(
        (&file["name"], &file["text"]),
        (&json!("<stdin>"), &json!("services: { orders: { builtin: orders } }\n"))
    );
}
