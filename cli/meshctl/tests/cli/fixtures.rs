//! What the played daemon has to tell of channels, messages, dead letters and replays.

use serde_json::{Value, json};

use crate::support::hours_ago;

/// The answer to a call that only looks, and to a change where it says what would become of it; `None` for a path that
/// does not exist.
pub(crate) fn answer(path: &str, query: &str, body: &Value) -> Option<Value> {
    let list = |kind: &str, items: Value| json!({ "apiVersion": "meshctl/v1", "kind": kind, "items": items });
    let segments: Vec<&str> = path.trim_start_matches("/v1/").split('/').collect();
    Some(match segments.as_slice() {
        ["channels"] => list("ChannelList", json!([channel("flowing"), quiet_channel()])),
        ["channels", "order.placed", "messages"] => {
            let count = body["messages"].as_array().map_or(0, Vec::len);
            let published = (0..count).map(|at| {
                let key = &body["messages"][at]["idempotencyKey"];
                json!({
                    "messageId": format!("m-{at}"), "channel": "order.placed", "partition": 3, "offset": 40 + at,
                    "duplicate": key == "again" || key == "again/2"
                })
            });
            list("PublishedList", published.collect())
        }
        ["channels", "order.placed", "pause"] => channel("paused"),
        ["channels", "order.placed", "resume"] => channel("flowing"),
        ["ledger"] => list("LedgerEntryList", json!([entry("billing", 0), entry("shipping", 0)])),
        ["messages"] => list("MessageList", json!([message("m-1", 1), message("m-2", 2)])),
        ["messages", "m-1"] => message("m-1", 1),
        ["deadletters"] if query.contains("groupBy=") => list("DeadLetterGroupList", json!([group()])),
        ["deadletters"] => list("DeadLetterList", json!([letter("dl-2"), letter("dl-1")])),
        ["deadletters", "dl-1"] => whole_letter("eyJvcmRlcklkIjoiby0xIn0=", "application/json"),
        ["deadletters", "dl-2"] => whole_letter("AAECG1syShs=", "application/octet-stream"),
        ["deadletters", "import"] => outcome("import", 2, 1),
        ["deadletters", action] if !body.is_null() => outcome(action, 2, 2),
        ["replays"] if !body.is_null() && body["dryRun"] == json!(true) => replay("", "dryRun", 0, 0, 0),
        ["replays"] if !body.is_null() => replay("r-1", "running", 0, 0, 0),
        ["replays"] => list("ReplayList", json!([replay("r-1", "done", 2, 1, 1)])),
        ["replays", "r-1"] => replay("r-1", "done", 2, 2, 0),
        ["replays", "r-1", "pause"] => replay("r-1", "paused", 1, 0, 0),
        ["replays", "r-1", "cancel"] => replay("r-1", "cancelled", 1, 1, 0),
        ["traces"] => traces(query),
        // Ids that begin so are those that nobody knows.
        ["traces", id] if id.len() == 32 && !id.starts_with("ffff") => trace(id, true),
        ["traces", "m-1"] => trace(TRACE, true),
        ["audit"] => list("AuditEntryList", json!([audit()])),
        _ => return None,
    })
}

pub(crate) fn channel(state: &str) -> Value {
    let subscription = |name: &str, state: &str| {
        json!({
            "name": format!("order.placed/{name}"), "channel": "order.placed", "subscription": name, "service": name,
            "deliver": "/events/order-placed", "state": state, "since": null, "lag": 7, "inFlight": 2, "retrying": 1,
            "reason": if state == "flowing" { None } else { Some("connection refused") },
            "deadLetters": 2, "deliveredPerS": 11.5, "oldestMs": 1500, "latencyP50Ms": 4.2, "latencyP99Ms": null,
            "concurrency": 64, "attempts": 6
        })
    };
    json!({
        "name": "order.placed", "partitions": 8, "ordered": "byKey", "depth": 7, "inFlight": 2, "lag": 9, "deadLetters": 2,
        "publishedPerS": 12.0, "deliveredPerS": 23.5, "accepted": 1000, "kept": 900, "keptBytes": 123_456,
        "retentionMs": 604_800_000, "maxSizeBytes": 1_073_741_824, "publishers": ["orders"],
        "subscriptions": [subscription("billing", state), subscription("shipping", "flowing")]
    })
}

fn quiet_channel() -> Value {
    json!({
        "name": "stock.low", "partitions": 1, "ordered": "no", "depth": 0, "inFlight": 0, "lag": 0, "deadLetters": 0,
        "publishedPerS": 0.0, "deliveredPerS": 0.0, "accepted": 0, "kept": 0, "keptBytes": 0,
        "retentionMs": 604_800_000, "maxSizeBytes": 1_073_741_824, "publishers": [], "subscriptions": []
    })
}

/// An entry of the ledger from which so many messages are missing.
pub(crate) fn entry(subscription: &str, missing: i64) -> Value {
    json!({
        "name": format!("order.placed/{subscription}"), "channel": "order.placed", "subscription": subscription,
        "accepted": 1000 + missing, "processed": 989, "inFlight": 7, "retrying": 1, "dead": 2, "parked": 1,
        "discarded": 0, "balanced": missing == 0, "missing": missing
    })
}

pub(crate) fn message(id: &str, offset: u64) -> Value {
    json!({
        "messageId": id, "type": "order.placed", "payload": { "orderId": "o-1", "quantity": offset },
        "payloadBase64": null, "sizeBytes": 30, "status": "retrying", "timestamp": "2026-11-23T10:00:00.120Z",
        "service": "orders", "eventId": "e-1", "channel": "order.placed", "partition": 3, "offset": offset, "key": "o-1",
        "headers": [["ce-type", "order.placed"]], "unsettledBy": ["billing"]
    })
}

pub(crate) fn letter(id: &str) -> Value {
    json!({
        "id": id, "messageId": "m-1", "type": "order.placed", "channel": "order.placed", "subscription": "billing",
        "reason": "exhausted", "class": "refused", "error": "POST /events/order-placed answered 500: out of stock",
        "fingerprint": "9f2c", "attempts": 2, "firstFailedAt": hours_ago(30), "lastFailedAt": hours_ago(20),
        "traceId": "0af7651916cd43dd8448eb211c80319c", "state": "dead", "replayId": null, "key": "o-1", "sizeBytes": 17
    })
}

fn whole_letter(payload: &str, content_type: &str) -> Value {
    let attempt = |number: u32, status: Option<u16>, failure: &str| {
        json!({
            "number": number, "at": "2026-11-23T10:00:00.120Z", "failure": failure, "status": status, "durationMs": 12,
            "reason": "POST /events/order-placed answered 500: out of stock"
        })
    };
    let mut letter = letter("dl-1");
    letter["firstFailedAt"] = "2026-11-23T10:00:00Z".into();
    letter["history"] = json!([attempt(1, Some(500), "refused"), attempt(2, None, "timeout")]);
    letter["headers"] = json!([["ce-id", "e-1"], ["content-type", content_type], ["x-odd", "a\u{1b}[2Jb"]]);
    letter["payloadBase64"] = payload.into();
    letter
}

fn group() -> Value {
    json!({
        "name": "9f2c", "count": 2, "exampleId": "dl-2", "exampleError": "POST /events/order-placed answered 500",
        "firstFailedAt": hours_ago(30), "lastFailedAt": hours_ago(20)
    })
}

fn outcome(action: &str, selected: u64, changed: u64) -> Value {
    json!({ "action": action, "fingerprint": "beef", "selected": selected, "changed": changed, "dryRun": false })
}

pub(crate) fn replay(id: &str, state: &str, issued: u64, processed: u64, failed_again: u64) -> Value {
    json!({
        "replayId": id, "fingerprint": "beef", "selected": 2, "issued": issued, "processed": processed,
        "failedAgain": failed_again, "pending": 2 - processed - failed_again, "state": state,
        "subscriptions": { "order.placed/billing": 2 }, "ratePerS": null, "by": "ada", "reason": null,
        "createdAt": hours_ago(20), "endedAt": null
    })
}

fn audit() -> Value {
    json!({
        "id": "1", "at": hours_ago(20), "by": "ada", "action": "deadletter.replay", "subject": "replay/r-1",
        "reason": "billing 1.4 is out", "outcome": "done", "data": { "selected": 2 }, "digest": "d1935"
    })
}

pub(crate) const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

/// Two traces, of which one failed.
fn traces(query: &str) -> Value {
    let summary = |id: &str, status: &str| {
        json!({
            "traceId": id, "operation": "POST /orders", "service": "gateway", "startAt": hours_ago(20), "latencyMs": 14.2,
            "durationMs": 1280.0, "spans": 12, "errors": u64::from(status != "ok"),
            "services": ["courier", "gateway", "orders"], "status": status
        })
    };
    let mut items = vec![summary(TRACE, "ok"), summary("4bf9aa0177b34da6a3ce929d0e0e4736", "dead")];
    items.retain(|item| !query.contains("errors=true") || item["status"] != "ok");
    items.truncate(if query.contains("limit=1&") { 1 } else { 2 });
    json!({
        "apiVersion": "meshctl/v1", "kind": "TraceList", "items": items,
        "store": {
            "traces": 2, "spans": 24, "sizeBytes": 4096, "maxSizeBytes": 1 << 30, "keepMs": 86_400_000, "oldestAt": null,
            "droppedSpans": 7, "evictedTraces": 0
        }
    })
}

/// A request that was answered, and a message of it that is delivered or not yet.
pub(crate) fn trace(id: &str, is_delivered: bool) -> Value {
    let span = |parent: Option<&str>,
                own: &str,
                service: &str,
                operation: &str,
                kind: &str,
                start: &str,
                attributes: Value| {
        json!({
            "traceId": id, "spanId": own, "parentSpanId": parent, "links": [], "service": service,
            "operation": operation, "kind": kind, "startAt": start, "durationMs": 4.0, "status": "unset",
            "attributes": attributes
        })
    };
    let mut attributes = json!({ "messaging.destination.name": "order.placed", "messaging.message.id": "m-1" });
    let mut spans = vec![
        span(None, "0000000000000001", "gateway", "POST /orders", "server", "2026-11-23T10:00:00Z", json!({})),
        span(
            Some("0000000000000001"),
            "0000000000000002",
            "courier",
            "publish order.placed",
            "producer",
            "2026-11-23T10:00:00.002Z",
            attributes.clone(),
        ),
    ];
    let gap = "order.placed/billing has not taken message m-1 yet";
    if is_delivered {
        attributes["messaging.destination.subscription.name"] = "billing".into();
        attributes["meshctl.outcome"] = "processed".into();
        let (parent, start) = (Some("0000000000000002"), "2026-11-23T10:00:00.008Z");
        let operation = "deliver order.placed/billing";
        spans.push(span(parent, "0000000000000003", "courier", operation, "consumer", start, attributes));
    }
    json!({
        "apiVersion": "meshctl/v1", "kind": "Trace", "name": id, "traceId": id, "startAt": "2026-11-23T10:00:00Z",
        "durationMs": 12.0, "complete": is_delivered, "gaps": if is_delivered { json!([]) } else { json!([gap]) },
        "spans": spans, "joined": [], "messageIds": ["m-1"]
    })
}
