//! A request and everything that follows from it, as one tree: over services and channels, retries, a dead letter and its replay.

use meshctl_model::trace::{Span, Subscriptions, What, assemble, attribute};
use meshctl_tests::{System, repository, send, wait_for, wait_until};
use serde_json::{Value, json};

/// The shop as it is checked in.
fn shop() -> System {
    let system = System::new();
    let port = system.port(0).to_string();
    let system = system.with("SHOP_PORT", &port);
    let file = repository().join("manifests/topologies/shop.yaml");
    system.run(&["apply", &file.to_string_lossy(), "--yes"]).expect(0);
    system
}

fn turn_knobs(system: &System, service: &str, knobs: &Value) {
    system.instances(service).iter().for_each(|instance| system.turn_knobs(instance, knobs));
}

/// The trace when nothing of it is on its way any more.
fn complete(system: &System, id: &str) -> Value {
    let trace = system.json(&["trace", id, "--wait", "--timeout", "60s"]);
    assert_eq!((&trace["complete"], &trace["gaps"]), (&json!(true), &json!([])), "{trace:#}");
    trace
}

fn spans(trace: &Value) -> Vec<Span> {
    serde_json::from_value(trace["spans"].clone()).unwrap_or_else(|why| panic!("{why}: {trace:#}"))
}

/// What became of each attempt to deliver to a subscription, the first one first.
fn outcomes(trace: &Value, subscription: &str) -> Vec<String> {
    let operation = format!("deliver {subscription}");
    let mut attempts: Vec<Span> = spans(trace).into_iter().filter(|span| span.operation == operation).collect();
    attempts.sort_by_key(|span| span.start_at);
    attempts.iter().map(|span| span.text(attribute::OUTCOME).unwrap_or_default().to_owned()).collect()
}

#[test]
fn a_request_its_retries_its_dead_letter_and_the_replay_are_one_tree() {
    let system = shop();
    turn_knobs(&system, "billing", &json!({"errorRate": 1}));
    let id = "0af7651916cd43dd8448eb211c80319c";
    let parent = format!("00-{id}-b7ad6b7169203331-01");
    let headers = [("content-type", "application/json"), ("traceparent", parent.as_str())];
    let body = json!({"sku": "book", "quantity": 1}).to_string().into_bytes();
    let answer = send("POST", &system.url("/orders"), &headers, body).expect("an answer");
    assert_eq!((answer.status, &answer.json()["traceId"]), (201, &json!(id)));

    let retried = wait_for("the first attempt to be in the trace", || {
        let ran = system.run(&["trace", id, "-o", "json"]);
        let trace: Value = serde_json::from_str(&ran.stdout).ok()?;
        (outcomes(&trace, "order.placed/billing").first()? == "retried").then_some(trace)
    });
    assert_eq!(retried["complete"], false, "it is still on its way: {retried:#}");
    assert!(retried["gaps"].to_string().contains("order.placed/billing is retried at "), "{}", retried["gaps"]);
    system.run(&["trace", id, "--wait", "--timeout", "1ms"]).expect(5);

    turn_knobs(&system, "billing", &json!({"poison": {"sku": "book"}}));
    let letter = wait_for("the dead letter", || {
        let letters = system.json(&["dlq", "ls"]);
        letters["items"][0]["id"].as_str().map(str::to_owned)
    });
    let dead = complete(&system, id);
    let attempts = outcomes(&dead, "order.placed/billing");
    assert_eq!(attempts.last().map(String::as_str), Some("dead"), "{attempts:?}");
    system.run(&["trace", id]).expect(0).says(&format!("`meshctl dlq show {letter}`"));
    wait_until("the list of those that failed to name it", || {
        system.json(&["trace", "--errors"])["items"]
            .as_array()
            .is_some_and(|items| items.iter().any(|it| it["traceId"] == id))
    });

    turn_knobs(&system, "billing", &json!({}));
    system.run(&["dlq", "replay", &letter, "--yes"]).expect(0);
    let whole = wait_for("the replay to be in the trace", || {
        let trace = complete(&system, id);
        outcomes(&trace, "invoice.issued/shipping").contains(&"processed".to_owned()).then_some(trace)
    });
    let attempts = outcomes(&whole, "order.placed/billing");
    let (last, before) = attempts.split_last().expect("attempts");
    assert_eq!((last.as_str(), before.last().map(String::as_str)), ("processed", Some("dead")), "{attempts:?}");

    let tree = assemble(spans(&whole), &Subscriptions::new());
    assert!(tree.is_complete(), "{:?}", tree.gaps);
    assert!(tree.nodes.iter().all(|node| !matches!(node.what, What::Unknown { .. })), "every parent is there");
    assert_eq!(tree.nodes.iter().filter(|node| node.parent.is_none()).count(), 1);
    assert!(tree.spans().all(|span| span.trace_id == id), "and all of it is one trace");
    let first = tree.nodes[0].span().expect("the request");
    assert_eq!((first.service.as_str(), first.operation.as_str()), ("gateway", "POST /orders"));
    let told: Vec<&str> = tree.spans().map(|span| span.operation.as_str()).collect();
    for operation in ["publish order.placed", "dead letter order.placed/billing", "publish invoice.issued"] {
        assert!(told.contains(&operation), "{operation} in {told:?}");
    }
    let page = system.run(&["trace", id]).expect(0);
    page.says("until replayed").says("for the retry").says("attempt 1 retried").says("complete:  yes");
    let message = whole["messageIds"][0].as_str().expect("a message");
    assert_eq!(system.json(&["trace", message])["traceId"], id, "a message leads to its trace");
    assert_eq!(system.json(&["trace", &id[..8]])["traceId"], id, "and so do the first digits");
    system.down();
}

#[test]
fn a_request_is_sent_and_followed_to_its_last_delivery() {
    let system = shop();
    let ran = system.run(&["trace", "--send", r#"POST /orders {"sku":"lamp","quantity":2}"#, "-o", "json"]).expect(0);
    ran.says("POST /orders answered 201 Created");
    let trace = ran.json();
    assert_eq!((&trace["complete"], &trace["kind"]), (&json!(true), &json!("Trace")));
    for subscription in ["order.placed/billing", "invoice.issued/shipping"] {
        assert_eq!(outcomes(&trace, subscription), ["processed"], "{subscription}");
    }
    let id = trace["traceId"].as_str().expect("traceId");
    assert_eq!(system.json(&["trace", "--last"])["traceId"], id);
    assert_eq!(system.json(&["trace", "--slowest", "1"])["items"][0]["traceId"], id);
    system.run(&["get", "traces"]).expect(0).says(&id[..12]);
    system.run(&["describe", &format!("trace/{id}")]).expect(0).says("complete:  yes");
    // What is refused is followed, too.
    let refused = system.run(&["trace", "--send", r#"POST /orders {"sku":"unicorn","quantity":1}"#]).expect(0);
    refused.says("answered 409").says("complete:  yes");
    system.run(&["trace", "ffffffffffffffffffffffffffffffff"]).expect(3);
    system.run(&["trace", "--where", "colour = red"]).expect(2);
    system.down();
}
