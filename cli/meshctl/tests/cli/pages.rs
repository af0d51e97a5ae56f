//! Whole pages: `top`, `describe`, `check` before there is a system, and that every failure says what to try next.

use std::process::Command;

use serde_json::{Value, json};

use crate::support::{Daemon, Script, command, ran, status};

fn daemon() -> Daemon {
    Daemon::play(Script::default())
}

#[test]
fn top_shows_the_golden_signals_once_where_nothing_can_be_drawn() {
    let daemon = daemon();
    let ran = daemon.run(&["top"]);
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
    insta::assert_snapshot!(ran.stdout, @r"
    120 requests/s from outside   0.5% errors   breakers: orders:inventory open   3 dead letters

    SERVICE     REQ/S   ERRORS   P50      P99    IN FLIGHT   QUEUED   CPU   MEMORY
    inventory   30      100%     -        -      2           0        12%   30MiB
    orders      120     0.5%     5.67ms   57ms   2           0        12%   30MiB
    ");
    let first = |words: &[&str]| daemon.run(words).stdout.lines().next().unwrap_or_default().to_owned();
    assert!(first(&["top", "edges", "--sort", "rate", "--no-headers"]).starts_with("gateway:orders "));
    assert!(first(&["top", "edges", "--sort", "errors", "--no-headers"]).starts_with("orders:inventory "));
    assert!(daemon.run(&["top", "rt", "-o", "wide"]).stdout.contains("REFUSED/S"));
    let ran = daemon.run(&["top", "-o", "jsonpath={.services[?(@.name==\"inventory\")].latencyP99Ms}"]);
    assert_eq!((ran.status, ran.stdout.trim()), (0, "null"), "nobody measured one");
    assert_eq!(daemon.run(&["top", "--once", "--watch"]).status, 2);
}

#[test]
fn top_is_a_json_line_a_second_where_that_is_asked_for() {
    let daemon = daemon();
    // The played daemon tells two and ends the stream, whenever it is asked: four lines are of two streams.
    let script = "\"$0\" top -w -o json | head -n 4";
    let mut command = Command::new("sh");
    let output = command
        .args(["-c", script, env!("CARGO_BIN_EXE_meshctl")])
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("MESHCTL_STATE_DIR", daemon.dir.path())
        .output();
    let ran = ran(output.expect("a shell runs"));
    let lines: Vec<Value> = ran.stdout.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(lines.len(), 4, "{}", ran.stderr);
    assert!(lines.iter().all(|line| line["kind"] == "Vitals" && line["services"][1]["requestsPerS"] == 120.4));
}

#[test]
fn top_of_a_daemon_from_before_says_so() {
    let unknown = json!({ "code": "notFound", "message": "there is no call GET /v1/vitals", "hint": null });
    let daemon = Daemon::play(Script::default().but("GET /v1/vitals", [(404, unknown)]));
    let ran = daemon.run(&["top"]);
    assert_eq!(ran.status, 3);
    assert!(ran.stderr.contains("`meshctl version` compares them"), "{}", ran.stderr);
    let ran = daemon.run(&["describe", "service/orders"]);
    assert_eq!(ran.status, 0, "a page does without what cannot be had: {}", ran.stderr);
    assert!(ran.stdout.contains("Called by") && !ran.stdout.contains("Now, over"), "{}", ran.stdout);
}

#[test]
fn a_service_is_told_on_one_page() {
    let mut failing = status();
    failing["items"][1]["instances"][1]["state"] = "crashLoop".into();
    let daemon = Daemon::play(Script { status: failing, ..Script::default() });
    let ran = daemon.run(&["describe", "service/orders"]);
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
    insta::assert_snapshot!(ran.stdout, @r"
    service/orders
      State:      ready, 2 of 2 instances
      Runs:       builtin
      Address:    http://127.0.0.1:8080/orders
      Labels:     team=commerce
      Revision:   3
      Service id: orders-id

      Now, over ten seconds
        REQ/S   ERRORS   P50      P99    IN FLIGHT   QUEUED   CPU   MEMORY   REFUSED/S
        120     0.5%     5.67ms   57ms   2           0        12%   30MiB    0

      Instances
        ID         SERVICE   STATE       PID    ADDRESS           RESTARTS   AGE   REASON
        orders-1   orders    ready       4001   127.0.0.1:20011   0          40h
        orders-2   orders    crashLoop   4002   127.0.0.1:20012   0          40h

      Routes that lead here
        ROUTE              WEIGHT   REQ/S   ERRORS   P50      P99    DEADLINE
        GET /inventory/*   100%     0       -        -        -      2s
        GET,POST /orders   100%     120     0.5%     5.67ms   57ms   2s

      Called by
        EDGE               BREAKER   REQ/S   ERRORS   P50      P99    IN FLIGHT   DEADLINE   ATTEMPT   RETRIES
        gateway:orders     closed    120     0.5%     5.67ms   57ms   1           2s         500ms     2
        orders:inventory   open      30      100%     -        -      1           2s         500ms     2
        orders:mailer      unknown   0       -        -        -      1           2s         500ms     2

      Publishes to
        CHANNEL        IN/S   DEPTH   LAG   DEAD
        order.placed   12     7       9     2

      Failed traces
        TRACE                              AGE   STATUS   TOOK   OPERATION
        4bf9aa0177b34da6a3ce929d0e0e4736   20h   dead     14ms   POST /orders

      Events
        ID   AGE   SEVERITY   TYPE             SUBJECT             MESSAGE
        9    20h   info       instance.ready   instance/orders-1   orders-1 is ready

      Last lines of the log
        orders-1  listening
        orders-2  red
    ");
}

#[test]
fn routes_edges_and_instances_have_their_pages_too() {
    let daemon = daemon();
    let page = |thing: &str| {
        let ran = daemon.run(&["describe", thing]);
        assert_eq!((ran.status, ran.stderr.as_str()), (0, ""), "{thing}");
        ran.stdout
    };
    insta::assert_snapshot!(page("edge/gateway:orders"), @r"
    edge/gateway:orders
      Caller:      gateway
      Callee:      orders
      Breaker:     closed for 150m
      Gateways:    1 of 1 carry it
      Deadline:    2s
      Retries:     2, each attempt up to 500ms
      Since start: 120 requests, 2 failed attempts

      Now, over ten seconds
        REQ/S   ERRORS   P50      P99    IN FLIGHT   QUEUED   REFUSED/S
        120     0.5%     5.67ms   57ms   2           0        0

      Routes over it
        ROUTE              REQ/S   ERRORS   P50      P99
        GET /inventory/*   0       -        -        -
        GET,POST /orders   120     0.5%     5.67ms   57ms

      Failed traces
        TRACE                              AGE   STATUS   TOOK   OPERATION
        4bf9aa0177b34da6a3ce929d0e0e4736   20h   dead     14ms   POST /orders
    ");
    let route = page("route/GET,POST /orders");
    assert!(route.contains("Leads to\n") && route.contains("orders    100%     2/2     closed    120"), "{route}");
    let instance = page("instance/inventory-2");
    assert!(instance.contains("Because:  health check: connection refused"), "{instance}");
    assert!(instance.contains("Last lines of the log\n"), "{instance}");
    let document = daemon.run(&["describe", "edge/gateway:orders", "-o", "json"]).stdout;
    let document: Value = serde_json::from_str(&document).expect("a document stays what it was");
    assert_eq!((document["kind"].as_str(), document["latencyP99Ms"].as_f64()), (Some("Edge"), Some(56.7)));
}

#[test]
fn the_machine_is_checked_before_there_is_a_system() {
    let dir = tempfile::tempdir().expect("a folder");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let file = dir.path().join("shop.yaml");
    let text = format!(
        "apiVersion: meshctl/v1\nkind: Topology\nproviders: {{ gateway: {{ embedded: {{ listen: '{address}' }} }} }}\n\
         services: {{ hello: {{ builtin: hello }} }}\n"
    );
    std::fs::write(&file, text).expect("written");
    let file = file.to_str().expect("text");
    let check = |words: &[&str]| ran(command(&dir.path().join("state"), words).output().expect("meshctl runs"));
    let ran = check(&["check", "--pre", file]);
    assert_eq!(ran.status, 1, "{}", ran.stdout);
    let taken = format!("XX the gateway cannot listen on {address}: another process listens there");
    assert!(ran.stdout.contains(&taken) && ran.stdout.contains("ss -ltnp"), "{}", ran.stdout);
    drop(listener);
    let ran = check(&["check", "--pre", file]);
    assert!(ran.stdout.contains(&format!("ok {address} is free for the gateway")), "{}", ran.stdout);
    let ran = check(&["check", "--pre", "-o", "jsonpath={.groups[*].name}"]);
    assert_eq!(ran.stdout, "meshctl machine\n");
}

#[test]
fn every_failure_ends_with_a_next_step() {
    let daemon = daemon();
    let nobody = tempfile::tempdir().expect("a folder");
    let with_daemon: [&[&str]; 9] = [
        &["get", "svc/nope"],
        &["get", "gatways"],
        &["describe", "xyz"],
        &["describe", "edge/a:b"],
        &["get", "svc", "--sort-by", ".nope"],
        &["get", "a/b", "c"],
        &["scale", "nope=2"],
        &["logs", "nope"],
        &["man", "nope"],
    ];
    for words in with_daemon {
        let ran = daemon.run(words);
        assert!(ran.status != 0 && ran.stderr.contains("  hint: "), "{words:?}: {}", ran.stderr);
    }
    let without: [&[&str]; 8] = [
        &["status"],
        &["top"],
        &["describe", "service/orders"],
        &["scale", "orders=2"],
        &["dlq", "ls"],
        &["breaker", "ls"],
        &["apply", "/nonexistent/shop.yaml"],
        &["validate", "/nonexistent/shop.yaml"],
    ];
    for words in without {
        let ran = ran(command(nobody.path(), words).output().expect("meshctl runs"));
        assert!(ran.status != 0 && ran.stderr.contains("  hint: "), "{words:?}: {}", ran.stderr);
    }
}

#[test]
fn a_shell_completes_names_of_every_kind() {
    let daemon = daemon();
    let complete = |words: &[&str]| {
        let index = (words.len() - 1).to_string();
        let mut command = daemon.command(&[&["--"], words].concat());
        command.envs([("COMPLETE", "bash"), ("_CLAP_COMPLETE_INDEX", index.as_str()), ("_CLAP_IFS", "\n")]);
        let ran = ran(command.output().expect("meshctl runs"));
        ran.stdout.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let offers = |words: &[&str], name: &str| {
        let offered = complete(words);
        assert!(offered.iter().any(|offer| offer == name), "{words:?} offers {offered:?}, not {name}");
    };
    offers(&["meshctl", "describe", "service/"], "service/orders");
    offers(&["meshctl", "describe", "svc/or"], "svc/orders");
    offers(&["meshctl", "get", "edge", "orders:i"], "orders:inventory");
    offers(&["meshctl", "get", "gat"], "gateways");
    offers(&["meshctl", "describe", "instance", "orders-"], "orders-2");
    offers(&["meshctl", "top", "ro"], "routes");
}
