//! Traces: lists, pages, and waiting until everything that follows from a request is done.

use std::io::{Read, Write};
use std::net::TcpListener;

use serde_json::{Value, json};

use crate::fixtures::{TRACE, trace};
use crate::support::{Daemon, Ran, Script};

fn daemon() -> Daemon {
    Daemon::play(Script::default())
}

/// A daemon to which the trace becomes known so, one look after another.
fn tracing(looks: Vec<(u16, Value)>) -> Daemon {
    Daemon::play(Script::default().but("GET /v1/traces/4bf92f3577b34da6a3ce929d0e0e4736", looks))
}

fn unknown() -> (u16, Value) {
    (404, json!({ "code": "notFound", "message": "there is no such trace", "hint": null }))
}

#[test]
fn traces_are_listed_with_what_was_lost() {
    let daemon = daemon();
    let Ran { status, stdout, stderr } = daemon.run(&["trace"]);
    assert_eq!((status, stderr.as_str()), (0, "not shown: 7 spans were dropped for want of room\n"));
    insta::assert_snapshot!(stdout, @r"
    TRACE          AGE   OPERATION      LATENCY   TOTAL   SPANS   ERRORS   STATUS
    4bf92f3577b3   20h   POST /orders   14ms      1.28s   12      0        ok
    4bf9aa0177b3   20h   POST /orders   14ms      1.28s   12      1        dead
    ");
    let list = daemon.run(&["trace", "--slowest", "5", "-o", "json"]);
    let list: Value = serde_json::from_str(&list.stdout).expect("a document");
    assert_eq!((&list["kind"], &list["items"][1]["status"]), (&json!("TraceList"), &json!("dead")));
    assert_eq!(list["store"]["droppedSpans"], 7);
    // A script gets a list also where there is one thing in it.
    let errors = daemon.run(&["trace", "--errors", "-o", "jsonpath={.items[*].traceId}"]);
    assert_eq!(errors.stdout, "4bf9aa0177b34da6a3ce929d0e0e4736\n");
    assert!(daemon.run(&["trace", "--errors"]).stdout.starts_with("trace/4bf9aa01"), "and people the one trace");
    assert_eq!(daemon.run(&["get", "traces", "-o", "name"]).stdout.lines().next(), Some(&*format!("trace/{TRACE}")));
}

#[test]
fn a_trace_is_drawn() {
    let daemon = daemon();
    let Ran { status, stdout, stderr } = daemon.run(&["trace", TRACE]);
    let stdout = stdout.lines().filter(|line| !line.contains("ago)")).collect::<Vec<_>>().join("\n");
    assert_eq!(status, 0);
    insta::assert_snapshot!(format!("{stdout}\n\n{stderr}"), @r"
    trace/4bf92f3577b34da6a3ce929d0e0e4736
      took:      12ms; the caller waited 4ms
      spans:     3, of gateway, courier
      complete:  yes
      time went: 4ms (33%) in courier publish order.placed
                 4ms (33%) in courier deliver order.placed/billing
                 2ms (17%) in gateway POST /orders

    SPAN                                                  TOOK 0                                   12ms
    gateway POST /orders                                   4ms #############
    `-courier publish order.placed                         4ms       ##############
      |-waiting 2ms for delivery                                                   .......
      `-courier deliver order.placed/billing processed     4ms                           ##############

    # critical path   = beside it   . waiting

    `meshctl logs --trace 4bf92f3577b34da6a3ce929d0e0e4736` shows what was logged meanwhile
    ");
    let whole = daemon.run(&["trace", TRACE]).stdout;
    for words in [
        &["trace", "m-1"][..],
        &["trace", "4bf92f"],
        &["trace", "--last"],
        &["describe", "trace/4BF92F35"],
        &["trace", &format!("tr/{TRACE}")],
    ] {
        let ran = daemon.run(words);
        assert_eq!((ran.status, ran.stdout.as_str()), (0, whole.as_str()), "{words:?}: {}", ran.stderr);
    }
    let document: Value =
        serde_json::from_str(&daemon.run(&["trace", TRACE, "-o", "json"]).stdout).expect("a document");
    assert_eq!((&document["traceId"], &document["complete"]), (&json!(TRACE), &json!(true)));
    assert_eq!(document["spans"][2]["attributes"]["meshctl.outcome"], "processed");
    assert_eq!(daemon.run(&["get", &format!("trace/{TRACE}"), "-o", "jsonpath={.durationMs}"]).stdout, "12.0\n");
}

#[test]
fn what_does_not_exist_or_cannot_be_asked_is_said() {
    let daemon = daemon();
    for (words, status, said) in [
        (&["trace", "ffffffff77b34da6a3ce929d0e0e4736"][..], 3, "error: "),
        (&["trace", "ffff"], 3, "error: "),
        (&["describe", "trace/ffffff"], 3, "error: "),
        (&["trace", "4bf9"], 3, "error: "),
        (&["trace", "--where", "colour = red"], 2, "there is no field `colour`"),
        (&["trace", "--since", "yesterday"], 2, "neither a duration"),
        (&["trace", "--wait"], 2, "name its ID, or add --last"),
        (&["trace", TRACE, "--last"], 2, "cannot be used with"),
        (&["trace", "-H", "a: b"], 2, "--send"),
        (&["trace", "--send", "GET orders"], 2, "no path on the gateway"),
    ] {
        let ran = daemon.run(words);
        assert_eq!((ran.status, ran.stdout.as_str()), (status, ""), "{words:?}: {}", ran.stderr);
        assert!(ran.stderr.contains(said), "{words:?}: {}", ran.stderr);
    }
}

#[test]
fn several_that_begin_alike_are_named() {
    let alike = |end: &str| {
        json!({
            "traceId": format!("4bf92f3577b34da6a3ce929d0e0e4{end}"), "operation": "GET /", "service": "gateway",
            "startAt": "2026-11-23T10:00:00Z", "latencyMs": 1.0, "durationMs": 1.0, "spans": 1, "errors": 0, "services": [],
            "status": "ok"
        })
    };
    let list = json!({ "apiVersion": "meshctl/v1", "kind": "TraceList", "items": [alike("736"), alike("737")], "store": {
        "traces": 2, "spans": 2, "sizeBytes": 1, "maxSizeBytes": 2, "keepMs": 1, "oldestAt": null, "droppedSpans": 0,
        "evictedTraces": 0
    }});
    let daemon = Daemon::play(Script::default().but("GET /v1/traces", [(200, list)]));
    let ran = daemon.run(&["trace", "4bf92f35"]);
    assert_eq!((ran.status, ran.stderr.contains("2 traces begin with 4bf92f35")), (2, true), "{}", ran.stderr);
}

#[test]
fn a_trace_is_waited_for_until_it_is_complete() {
    let daemon = tracing(vec![unknown(), (200, trace(TRACE, false)), (200, trace(TRACE, true))]);
    let ran = daemon.run(&["trace", TRACE, "--wait"]);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    let said: Vec<&str> = ran.stderr.lines().take(3).collect();
    assert_eq!(
        said,
        [
            "waiting: no span of it was received yet",
            "waiting: order.placed/billing has not taken message m-1 yet",
            "everything is there; waiting for stragglers"
        ]
    );
    assert!(ran.stdout.contains("complete:  yes"), "{}", ran.stdout);

    let daemon = tracing(vec![(200, trace(TRACE, false))]);
    let ran = daemon.run(&["trace", TRACE, "--wait", "--timeout", "300ms"]);
    assert_eq!(ran.status, 5, "{}", ran.stderr);
    assert!(ran.stdout.contains("complete:  no"), "what there is of it is shown: {}", ran.stdout);
    assert!(
        ran.stderr.contains("is not complete: order.placed/billing has not taken message m-1 yet"),
        "{}",
        ran.stderr
    );
}

/// A gateway that answers one request, and what it was asked.
fn gateway(answer: &'static str) -> (String, std::thread::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let asked = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("somebody asks");
        let mut asked = Vec::new();
        let mut byte = [0];
        // The last byte of the body that is sent.
        while !asked.ends_with(b"}") && stream.read(&mut byte).expect("it is read") > 0 {
            asked.push(byte[0]);
        }
        stream.write_all(answer.as_bytes()).expect("it is answered");
        String::from_utf8(asked).expect("text")
    });
    (url, asked)
}

#[test]
fn a_request_is_sent_and_followed() {
    let (url, asked) = gateway("HTTP/1.1 201 Created\r\ncontent-length: 17\r\n\r\n{\"orderId\":\"o-1\"}");
    let mut script = Script::default();
    script.status["gateways"][0]["url"] = url.into();
    let daemon = Daemon::play(script);
    let ran = daemon.run(&["trace", "--send", r#"post /orders {"sku":"book"}"#, "-H", "Idempotency-Key: first"]);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    let asked = asked.join().expect("it was asked");
    let header = |name: &str| {
        let line =
            asked.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{name} in {asked}"));
        line.trim().to_owned()
    };
    assert!(asked.starts_with("POST /orders HTTP/1.1\r\n") && asked.ends_with(r#"{"sku":"book"}"#), "{asked}");
    assert_eq!((header("idempotency-key:"), header("content-type:")), ("first".into(), "application/json".into()));
    let parent = header("traceparent:");
    let id = parent.split('-').nth(1).expect("a trace id");
    assert!(parent.ends_with("-01") && id.len() == 32, "{parent}");
    assert!(ran.stdout.starts_with(&format!("trace/{id}\n")), "{}", ran.stdout);
    assert!(ran.stderr.contains("POST /orders answered 201 Created after "), "{}", ran.stderr);
    assert!(ran.stderr.contains(r#"{"orderId":"o-1"}"#), "{}", ran.stderr);
}

#[test]
fn a_request_that_nobody_takes_is_a_failure() {
    let mut script = Script::default();
    // Nobody listens on a port that was given back.
    let free = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    script.status["gateways"][0]["url"] = format!("http://{free}").into();
    let ran = Daemon::play(script).run(&["trace", "--send", "GET /orders/1"]);
    assert_eq!((ran.status, ran.stdout.as_str()), (1, ""));
    assert!(ran.stderr.contains(&format!("cannot send GET /orders/1 to http://{free}")), "{}", ran.stderr);
    let mut script = Script::default();
    script.status["gateways"][0]["state"] = "starting".into();
    let ran = Daemon::play(script).run(&["trace", "--send", "GET /orders/1"]);
    assert_eq!((ran.status, ran.stderr.contains("no gateway is ready")), (1, true), "{}", ran.stderr);
}
