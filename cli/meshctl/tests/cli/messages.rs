//! Channels, publishing, reading along, and the ledger.

use std::io::Write;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::fixtures::{channel, entry};
use crate::support::{Daemon, Ran, Script, ran, service, status};

fn daemon() -> Daemon {
    Daemon::play(Script::default())
}

/// Runs with `input` on standard input.
fn fed(daemon: &Daemon, words: &[&str], input: &str) -> Ran {
    let mut command = daemon.command(words);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("meshctl runs");
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("written");
    ran(child.wait_with_output().expect("ended"))
}

#[test]
fn lists_of_the_asynchronous_half() {
    let daemon = daemon();
    let mut lists = String::new();
    for kind in ["ch", "sub", "dl", "replay", "ledger", "audit"] {
        let ran = daemon.run(&["get", kind]);
        assert_eq!(ran.status, 0, "{}", ran.stderr);
        lists.push_str(&format!("$ get {kind}\n{}\n\n", ran.stdout.trim_end()));
    }
    insta::assert_snapshot!(lists, @r"
    $ get ch
    CHANNEL        DEPTH   IN FLIGHT   LAG   DEAD   IN/S   OUT/S   STATE
    order.placed   7       2           9     2      12     24      flowing
    stock.low      0       0           0     0      0      0       no subscriptions

    $ get sub
    SUBSCRIPTION            STATE     LAG   IN FLIGHT   RETRYING   DEAD   OUT/S   OLDEST   REASON
    order.placed/billing    flowing   7     2           1          2      12      1.5s
    order.placed/shipping   flowing   7     2           1          2      12      1.5s

    $ get dl
    ID     AGE   SUBSCRIPTION           REASON      STATE   ERROR
    dl-2   20h   order.placed/billing   exhausted   dead    POST /events/order-placed answered 500: out of stock
    dl-1   20h   order.placed/billing   exhausted   dead    POST /events/order-placed answered 500: out of stock

    $ get replay
    REPLAY   STATE   PROCESSED   FAILED   PENDING   SELECTED   ISSUED   AGE   BY    REASON
    r-1      done    1           1        0         2          2        20h   ada

    $ get ledger
         SUBSCRIPTION            ACCEPTED =   PROCESSED +   IN FLIGHT +   RETRYING +   DEAD +   PARKED +   DISCARDED   MISSING
    ok   order.placed/billing    1000         989           7             1            2        1          0
    ok   order.placed/shipping   1000         989           7             1            2        1          0

    $ get audit
    ID   AGE   BY    ACTION              SUBJECT      OUTCOME   REASON
    1    20h   ada   deadletter.replay   replay/r-1   done      billing 1.4 is out
    ");
    let messages = daemon.run(&["get", "msg", "--no-headers"]).stdout;
    assert!(messages.starts_with("m-1   order.placed   retrying   "), "{messages}");
    let wide = daemon.run(&["channel", "ls", "-o", "wide", "--no-headers"]);
    assert!(wide.stdout.contains("121KiB") && wide.stdout.contains("billing,shipping"), "{}", wide.stdout);
}

#[test]
fn everything_answers_to_its_name() {
    let daemon = daemon();
    let out = |words: &[&str]| {
        let ran = daemon.run(words);
        assert_eq!(ran.status, 0, "{words:?}: {}", ran.stderr);
        ran.stdout
    };
    assert_eq!(out(&["channel", "ls", "-o", "name"]), "channel/order.placed\nchannel/stock.low\n");
    assert_eq!(
        out(&["get", "sub", "-o", "name"]),
        "subscription/order.placed/billing\nsubscription/order.placed/shipping\n"
    );
    assert!(out(&["describe", "subscription/order.placed/billing"]).contains("Deliver:         /events/order-placed"));
    assert!(out(&["get", "sub", "order.placed/billing"]).contains("flowing"));
    assert!(out(&["describe", "message/m-1"]).contains("Unsettled by:   billing"));
    assert!(out(&["describe", "deadletter/dl-1"]).contains("Fingerprint:     9f2c"));
    assert!(out(&["describe", "replay/r-1"]).contains("Failed again:  1"));
    assert!(out(&["channel", "describe", "stock.low"]).contains("Published by: nobody"));
    assert_eq!(
        out(&["get", "ch", "-o", "jsonpath={.items[0].subscriptions[*].name}"]),
        "order.placed/billing order.placed/shipping\n"
    );
    let ran = daemon.run(&["channel", "describe", "order.plced"]);
    assert_eq!((ran.status, ran.stderr.contains("did you mean `order.placed`?")), (3, true), "{}", ran.stderr);
    let ran = daemon.run(&["get", "message/m-9"]);
    assert_eq!((ran.status, ran.stderr.contains("m-9")), (3, true), "{}", ran.stderr);
}

#[test]
fn a_published_message_is_what_was_meant() {
    let daemon = daemon();
    let words = [
        "channel",
        "publish",
        "order.placed",
        "{\"orderId\":\"o-1\"}",
        "--key",
        "o-1",
        "-H",
        "Tenant=acme",
        "--type",
        "order.imported",
        "--reason",
        "lost mail",
    ];
    let ran = daemon.run(&words);
    assert_eq!(
        (ran.status, ran.stdout.as_str(), ran.stderr.as_str()),
        (0, "message/m-0 published to order.placed, partition 3, offset 40\n", "")
    );
    let (call, body) = daemon.asked().pop().expect("it was published");
    assert_eq!(call, "POST /v1/channels/order.placed/messages");
    assert_eq!(
        body,
        json!({
            "messages": [{
                "type": "order.imported", "key": "o-1", "contentType": "application/json", "headers": [["tenant", "acme"]],
                "payloadBase64": "eyJvcmRlcklkIjoiby0xIn0=", "idempotencyKey": null
            }],
            "reason": "lost mail"
        })
    );
    let again = daemon.run(&["channel", "publish", "order.placed", "x", "--idempotency-key", "again"]);
    assert_eq!(again.stdout, "message/m-0 was published to order.placed before, under the same key\n");
    let json = daemon.run(&["channel", "publish", "order.placed", "x", "-o", "json"]);
    let document: Value = serde_json::from_str(&json.stdout).expect("a document");
    assert_eq!((&document["kind"], &document["name"]), (&json!("Message"), &json!("m-0")));
}

#[test]
fn a_payload_comes_from_a_file_or_a_pipe() {
    let daemon = daemon();
    let file = daemon.dir.path().join("payload");
    std::fs::write(&file, b"\x00\xff").expect("written");
    let at = format!("@{}", file.display());
    assert_eq!(daemon.run(&["channel", "publish", "order.placed", &at]).status, 0);
    assert_eq!(fed(&daemon, &["channel", "publish", "order.placed"], "words").status, 0);
    let sent = |at: usize, field: &str| daemon.asked()[at].1["messages"][0][field].clone();
    assert_eq!([sent(0, "payloadBase64"), sent(0, "contentType")], ["AP8=", "application/octet-stream"]);
    assert_eq!([sent(1, "payloadBase64"), sent(1, "contentType")], ["d29yZHM=", "text/plain; charset=utf-8"]);

    let empty = daemon.run(&["channel", "publish", "order.placed"]);
    assert_eq!((empty.status, empty.stderr.contains("standard input is empty")), (2, true), "{}", empty.stderr);
    assert_eq!(daemon.run(&["channel", "publish", "order.placed", ""]).status, 0, "which may be meant");
    assert_eq!(daemon.run(&["channel", "publish", "nowhere", "x"]).status, 3);
    assert_eq!(daemon.run(&["channel", "publish", "order.placed", "@/nonexistent"]).status, 1);
    assert_eq!(daemon.run(&["channel", "publish", "order.placed", "x", "-H", "no value"]).status, 2);
}

#[test]
fn lines_are_messages_and_are_sent_in_batches() {
    let daemon = daemon();
    let input: String = (0..1001).map(|at| format!("{{\"n\":{at}}}\r\n\n")).collect();
    let words = ["channel", "publish", "order.placed", "--lines"];
    let ran = fed(&daemon, &words, &input);
    assert_eq!((ran.status, ran.stdout.as_str()), (0, "1001 messages published to order.placed\n"), "{}", ran.stderr);
    let batches: Vec<usize> =
        daemon.asked().iter().map(|(_, body)| body["messages"].as_array().map_or(0, Vec::len)).collect();
    assert_eq!(batches, [500, 500, 1]);
    assert_eq!(daemon.asked()[0].1["messages"][1]["payloadBase64"], "eyJuIjoxfQ==", "without the line's end");

    let ran = fed(&daemon, &[&words[..], &["--idempotency-key", "again"]].concat(), "a\nb\n");
    assert_eq!(ran.stdout, "2 messages published to order.placed, 1 of them published before\n");
    let ran = fed(&daemon, &[&words[..], &["-o", "json"]].concat(), "a\nb\n");
    assert!(ran.stdout.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()), "{}", ran.stdout);
    let calls = daemon.asked().len();
    let ran = fed(&daemon, &[&words[..], &["--dry-run"]].concat(), "a\nbc\n");
    assert_eq!(ran.stdout, "would publish 2 messages (3B) to order.placed, for billing, shipping\n");
    assert_eq!(daemon.asked().len(), calls, "a dry run publishes nothing");
}

#[test]
fn lines_that_break_off_say_how_far_they_came() {
    let full = json!({ "code": "unavailable", "message": "the channel is full", "hint": "wait" });
    let published = json!({ "apiVersion": "meshctl/v1", "kind": "PublishedList", "items": (0..500).map(|at| json!({
        "messageId": format!("m-{at}"), "channel": "order.placed", "partition": 0, "offset": at, "duplicate": false
    })).collect::<Vec<_>>() });
    let script = Script::default().but("POST /v1/channels/order.placed/messages", [(200, published), (503, full)]);
    let daemon = Daemon::play(script);
    let ran = fed(&daemon, &["channel", "publish", "order.placed", "--lines"], &"x\n".repeat(600));
    assert_eq!(ran.status, 1);
    assert!(ran.stderr.contains("the channel is full (500 messages before that are published)"), "{}", ran.stderr);
}

#[test]
fn reading_along_shows_a_line_for_each_message() {
    let daemon = daemon();
    let ran = daemon.run(&["channel", "tail", "order.placed", "--last", "2"]);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    insta::assert_snapshot!(ran.stdout, @r#"
    10:00:00.120Z o-1 {"orderId":"o-1","quantity":1}
    10:00:00.120Z o-1 {"orderId":"o-1","quantity":2}
    "#);
    let wide = daemon.run(&["channel", "tail", "order.placed", "-o", "wide"]).stdout;
    assert!(wide.starts_with("2026-11-23T10:00:00.12Z m-1 3@1 order.placed orders o-1 {"), "{wide}");
    assert_eq!(daemon.run(&["channel", "tail", "order.placed", "-o", "name"]).stdout, "message/m-1\nmessage/m-2\n");
    let followed = daemon.run(&["channel", "tail", "order.placed", "-f", "-o", "json", "--since", "10m"]);
    assert_eq!((followed.status, followed.stderr.contains("the daemon has ended")), (69, true), "{}", followed.stderr);
    assert_eq!(serde_json::from_str::<Value>(&followed.stdout).expect("a line")["messageId"], "m-3");
}

#[test]
fn delivery_is_paused_and_resumed() {
    let daemon = daemon();
    let ran = daemon.run(&["channel", "pause", "order.placed/billing", "--reason", "migration"]);
    assert_eq!((ran.status, ran.stdout.as_str()), (0, "subscription/order.placed/billing paused\n"));
    assert!(ran.stderr.contains("`meshctl channel resume order.placed/billing`"), "{}", ran.stderr);
    let ran = daemon.run(&["channel", "resume", "order.placed"]);
    assert_eq!(ran.stdout, "subscription/order.placed/billing resumed\nsubscription/order.placed/shipping resumed\n");
    assert_eq!(
        daemon.asked(),
        [
            (
                "POST /v1/channels/order.placed/pause".to_owned(),
                json!({ "subscription": "billing", "reason": "migration" })
            ),
            ("POST /v1/channels/order.placed/resume".to_owned(), json!({ "subscription": null, "reason": null })),
        ]
    );
    let ran = daemon.run(&["channel", "pause", "order.placed", "--dry-run"]);
    assert!(ran.stdout.contains("billing would be paused"), "{}", ran.stdout);
    let ran = daemon.run(&["channel", "pause", "order.placed/biling"]);
    assert_eq!((ran.status, ran.stderr.contains("did you mean `billing`?")), (3, true), "{}", ran.stderr);
    assert_eq!(daemon.asked().len(), 2, "neither of them changed anything");
}

#[test]
fn the_ledger_names_what_is_missing() {
    let daemon = daemon();
    let ran = daemon.run(&["ledger"]);
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
    assert!(ran.stdout.starts_with("     SUBSCRIPTION            ACCEPTED =   PROCESSED +"), "{}", ran.stdout);
    assert!(ran.stdout.lines().skip(1).all(|line| line.starts_with("ok   order.placed/")), "{}", ran.stdout);
    assert_eq!(daemon.run(&["ledger", "stock.low"]).status, 0, "which nobody subscribes to");
    assert_eq!(daemon.run(&["ledger", "nowhere"]).status, 3);

    let items = json!([entry("billing", 3), entry("shipping", -1)]);
    let ledger = json!({ "apiVersion": "meshctl/v1", "kind": "LedgerEntryList", "items": items });
    let daemon = Daemon::play(Script::default().but("GET /v1/ledger", [(200, ledger)]));
    let ran = daemon.run(&["ledger", "order.placed"]);
    assert_eq!(ran.status, 1);
    assert!(ran.stdout.contains("XX   order.placed/billing"), "{}", ran.stdout);
    let said = "order.placed/billing: 3 accepted messages are nowhere; \
                order.placed/shipping: 1 message is somewhere and was never accepted";
    assert!(ran.stderr.contains(said), "{}", ran.stderr);
    let ran = daemon.run(&["ledger", "-o", "jsonpath={.items[?(@.balanced==false)].missing}"]);
    assert_eq!((ran.status, ran.stdout.as_str()), (1, "3 -1\n"));
}

#[test]
fn status_and_check_look_at_messages_where_there_are_channels() {
    let mut with_channels = status();
    with_channels["channels"] = json!([channel("waiting")]);
    with_channels["items"] = json!([service("orders", 2, "ready", None), broker(), courier()]);
    let waiting = json!({ "apiVersion": "meshctl/v1", "kind": "ChannelList", "items": [channel("waiting")] });
    let script = Script { status: with_channels, ..Script::default() }.but("GET /v1/channels", [(200, waiting)]);
    let daemon = Daemon::play(script);
    let shown = daemon.run(&["status"]).stdout;
    assert!(shown.contains("\nCHANNEL        DEPTH   IN FLIGHT   LAG   DEAD   IN/S   OUT/S   STATE\n"), "{shown}");
    assert!(shown.contains("waiting: billing"), "{shown}");
    assert!(daemon.run(&["status", "-o", "name"]).stdout.contains("channel/order.placed\n"));

    let ran = daemon.run(&["check"]);
    assert_eq!(ran.status, 1, "{}", ran.stdout);
    let group = ran.stdout.split("channels\n").nth(1).expect("the group");
    let messages = group.split("\n\n").next().unwrap_or_default();
    insta::assert_snapshot!(messages, @r"
      ok the broker answers: 1 channel
      ok 2 couriers are connected
      XX order.placed/billing is waiting: connection refused; 7 messages wait
          it resumes by itself; `meshctl logs billing` shows what is wrong
      !! there are 2 dead letters
          `meshctl dlq ls --group-by fingerprint` shows why; `meshctl dlq replay` delivers them again
      ok the ledger is balanced
    ");
}

fn broker() -> Value {
    let mut service = service("broker", 2, "ready", None);
    service["kind"] = "broker".into();
    service
}

fn courier() -> Value {
    let mut service = service("courier", 2, "ready", None);
    service["kind"] = "courier".into();
    service
}
