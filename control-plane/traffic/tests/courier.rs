//! A courier between a broker of plain values, which can fail as we like, and subscribers on real sockets.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use jiff::Timestamp;
use meshctl_drivers::broker::{Broker as _, BrokerError, Publish, SharedBroker};
use meshctl_model::delivery::{Behind, CourierConfig};
use meshctl_model::message::{DeathReason, Failure, Message, header};
use meshctl_model::units::Span;
use serde_json::{Value, json};
use support::courier::{CHANNEL, Courier, Listener, OK, Says, config, groups, ordered, publish, to, with};
use support::memory::Memory;
use support::{cause, get};

fn behind(which: Behind) -> String {
    which.channel(CHANNEL, "billing")
}

async fn start(config: CourierConfig) -> (Courier, Arc<Memory>) {
    let memory = Arc::new(Memory::new(groups(&config)));
    let courier = Courier::new(config, Arc::clone(&memory) as SharedBroker).await;
    (courier, memory)
}

async fn settled(courier: &Courier, memory: &Memory, but: usize) {
    courier.until("all is settled", async || memory.unsettled() == but).await;
}

/// Waits until a channel behind the subscription holds so many.
async fn holds(courier: &Courier, memory: &Memory, which: Behind, count: usize) -> Vec<Message> {
    courier.until("it is there", async || memory.all(&behind(which)).len() == count).await;
    memory.all(&behind(which))
}

fn json_of(response: &hyper::Response<String>) -> Value {
    serde_json::from_str(response.body()).expect("JSON")
}

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

#[tokio::test]
async fn a_message_arrives_as_a_cloud_event_and_is_settled() {
    let mut listener = Listener::new(|_, _| OK).await;
    let (courier, memory) = start(config([("billing", to(listener.address()))])).await;
    let request = with(
        publish(CHANNEL, r#"{"orderId":"o-1", "n" : 1}"#),
        &[("traceparent", PARENT), ("ce-tenant", "blue"), ("meshctl-caller", "orders"), ("authorization", "secret")],
    );
    let accepted = courier.send(request).await;
    assert_eq!(accepted.status(), 202);
    let told = json_of(&accepted);
    let id = told["messageId"].as_str().expect("an id");
    assert_eq!(told, json!({ "messageId": id, "eventId": id, "channel": CHANNEL, "duplicate": false }));
    let got = listener.until("it arrived", |got| got.len() == 1).await.remove(0);
    assert_eq!(got.payload, r#"{"orderId":"o-1", "n" : 1}"#, "every byte");
    for (name, value) in [
        ("ce-specversion", "1.0"),
        ("ce-id", id),
        ("ce-source", "orders"),
        ("ce-type", CHANNEL),
        ("ce-tenant", "blue"),
        ("content-type", "application/json"),
        ("meshctl-message-id", id),
        ("idempotency-key", id),
        ("meshctl-channel", CHANNEL),
        ("meshctl-subscription", "billing"),
        ("meshctl-attempt", "1"),
        ("authorization", ""),
        ("meshctl-history", ""),
    ] {
        assert_eq!(got.header(name), value, "{name}");
    }
    assert!(got.header("ce-time").parse::<Timestamp>().is_ok());
    assert_eq!(got.header("traceparent")[..36], PARENT[..36], "the same trace");
    settled(&courier, &memory, 0).await;
    let kept = memory.all(CHANNEL).remove(0);
    let trace = kept.header("traceparent").map(|parent| &parent[..36]);
    assert_eq!((kept.key.as_deref(), trace), (Some("o-1"), Some(&PARENT[..36])));
    assert_eq!(courier.status().await.subscriptions[0].processed, 1);
    courier.end().await;
}

#[tokio::test]
async fn poison_is_dead_at_once_and_says_why() {
    let mut listener = Listener::new(|_, _| Says(422, Duration::ZERO, None)).await;
    let (courier, memory) = start(config([("billing", to(listener.address()))])).await;
    courier.publish(CHANNEL, "{}").await;
    let dead = holds(&courier, &memory, Behind::Dead, 1).await.remove(0);
    let death = dead.death().expect("a death");
    assert_eq!((death.reason, death.attempts, death.channel.as_str()), (DeathReason::Poison, 1, CHANNEL));
    let history = dead.history();
    assert_eq!((history.len(), history[0].failure, history[0].status), (1, Failure::Rejected, Some(422)));
    assert_eq!(history[0].reason, "POST /events answered 422: as a test");
    assert_eq!(listener.until("one attempt", |got| !got.is_empty()).await.len(), 1);
    courier.end().await;
}

#[tokio::test]
async fn a_message_that_no_request_can_carry_is_poison_and_breaks_nothing() {
    let mut listener = Listener::new(|_, _| OK).await;
    let (courier, memory) = start(config([("billing", to(listener.address()))])).await;
    let headers = (0..40_000).map(|n| (format!("ce-a{n}"), "1".to_owned())).collect();
    let message = Message { id: "m".into(), headers, ..Message::default() };
    memory.publish(CHANNEL, vec![Publish { message, idempotency_key: None }]).await.expect("published");
    let dead = holds(&courier, &memory, Behind::Dead, 1).await.remove(0);
    assert_eq!(dead.death().map(|death| death.reason), Some(DeathReason::Poison));
    assert!(dead.history()[0].reason.contains("more than a request can have"), "{}", dead.history()[0].reason);
    courier.publish(CHANNEL, "next").await;
    assert_eq!(listener.until("the next", |got| got.len() == 1).await[0].payload, "next");
    courier.end().await;
}

#[tokio::test]
async fn what_fails_twice_and_then_works_is_processed() {
    let mut listener = Listener::new(|_, before| if before < 2 { Says(500, Duration::ZERO, None) } else { OK }).await;
    let (courier, memory) = start(config([("billing", to(listener.address()))])).await;
    courier.publish(CHANNEL, "{}").await;
    let got = listener.until("three attempts", |got| got.len() == 3).await;
    settled(&courier, &memory, 0).await;
    let attempts: Vec<&str> = got.iter().map(|got| got.header("meshctl-attempt")).collect();
    assert_eq!(attempts, ["1", "2", "3"]);
    assert_eq!(memory.all(&behind(Behind::Dead)), []);
    assert_eq!(memory.all(&behind(Behind::Retry(1))).len(), 1);
    assert_eq!(memory.all(&behind(Behind::Retry(2)))[0].history().len(), 2);
    let status = courier.status().await.subscriptions.remove(0);
    assert_eq!((status.processed, status.retried, status.dead, status.paused.as_ref()), (1, 2, 0, None));
    assert!(status.latency_p99_ms.is_some_and(|ms| ms > 5.0), "{status:?}");
    courier.end().await;
}

#[tokio::test]
async fn what_fails_to_the_end_is_dead_with_its_history() {
    let listener = Listener::new(|_, _| Says(503, Duration::ZERO, None)).await;
    let (courier, memory) = start(config([("billing", to(listener.address()))])).await;
    courier.publish(CHANNEL, "{}").await;
    let dead = holds(&courier, &memory, Behind::Dead, 1).await.remove(0);
    assert_eq!(dead.death().map(|death| (death.reason, death.attempts)), Some((DeathReason::Exhausted, 4)));
    let numbers: Vec<u32> = dead.history().iter().map(|attempt| attempt.number).collect();
    assert_eq!(numbers, [1, 2, 3, 4]);
    assert_eq!(dead.header(header::NOT_BEFORE), None);
    assert_eq!(dead.payload, "{}");
    courier.end().await;
}

#[tokio::test]
async fn a_subscriber_that_asks_for_time_gets_it() {
    let listener = Listener::new(|_, _| Says(429, Duration::ZERO, Some("120"))).await;
    let (courier, memory) = start(config([("billing", to(listener.address()))])).await;
    courier.publish(CHANNEL, "{}").await;
    let retry = behind(Behind::Retry(1));
    courier.until("it waits", async || !memory.all(&retry).is_empty()).await;
    let not_before: Timestamp =
        memory.all(&retry)[0].header(header::NOT_BEFORE).expect("a time").parse().expect("a time");
    let wait = not_before.duration_since(Timestamp::now()).as_secs();
    assert!((60..=120).contains(&wait), "{wait} s");
    courier.end().await;
    assert_eq!(memory.unsettled(), 1, "what waits is left to the next courier");
}

#[tokio::test]
async fn no_answer_in_time_is_a_failure_of_its_own() {
    let late = Says(200, Duration::from_secs(3600), None);
    let listener =
        Listener::new(move |_, before| if before == 0 { late } else { Says(400, Duration::ZERO, None) }).await;
    let mut subscription = to(listener.address());
    subscription.timeout = Span::from_millis(100);
    let (courier, memory) = start(config([("billing", subscription)])).await;
    courier.publish(CHANNEL, "{}").await;
    let history = holds(&courier, &memory, Behind::Dead, 1).await[0].history();
    assert_eq!((history[0].failure, history[0].status), (Failure::Timeout, None));
    assert!(history[0].reason.contains("was not answered within 100ms"), "{}", history[0].reason);
    assert_eq!(history[1].failure, Failure::Rejected);
    courier.end().await;
}

#[tokio::test]
async fn a_subscriber_that_is_down_pauses_its_subscription_and_nothing_dies() {
    let address = support::free_address();
    let mut subscription = to(address);
    subscription.retry.attempts = 0;
    let (courier, memory) = start(config([("billing", subscription)])).await;
    for n in 0..40 {
        assert_eq!(courier.publish(CHANNEL, n.to_string()).await.status(), 202);
    }
    courier.until("paused", async || courier.status().await.subscriptions[0].paused.is_some()).await;
    let reason = courier.status().await.subscriptions[0].paused.clone().expect("paused");
    assert!(reason.contains("found nobody at") && reason.contains(&address.to_string()), "{reason}");
    let page = courier.send(get("/metrics")).await.into_body();
    assert!(page.contains("meshctl_courier_paused{channel=\"order.placed\",subscription=\"billing\"} 1"), "{page}");
    let mut listener = Listener::at(address, |_, _| OK).await;
    let got = listener.until("all arrived", |got| got.len() == 40).await;
    assert!(got.iter().all(|got| got.header("meshctl-attempt") == "1"), "what reached nobody was no attempt");
    settled(&courier, &memory, 0).await;
    assert_eq!(memory.all(&behind(Behind::Dead)), []);
    assert_eq!(courier.status().await.subscriptions[0].paused, None);
    courier.end().await;
}

#[tokio::test]
async fn order_holds_up_one_key_only() {
    // The first of key `a` fails three times.
    let mut listener = Listener::new(|got, before| match got.payload.contains(r#""n":0"#) && before < 3 {
        true => Says(500, Duration::ZERO, None),
        false => OK,
    })
    .await;
    let (courier, memory) = start(ordered(config([("billing", to(listener.address()))]))).await;
    let body = |key: &str, n: u32| json!({ "orderId": key, "n": n }).to_string();
    let mut lines: Vec<String> = (0..20).map(|n| body("a", n)).collect();
    lines.extend((100..120).map(|n| body("b", n)));
    let batch = with(publish(CHANNEL, lines.join("\n")), &[("content-type", "application/x-ndjson")]);
    assert_eq!(courier.send(batch).await.status(), 202);
    listener.until("all arrived", |got| got.iter().filter(|got| got.status < 300).count() == 40).await;
    let processed = listener.processed();
    let of = |key: &str| processed.iter().filter(|text| text.contains(key)).cloned().collect::<Vec<_>>();
    assert_eq!(of(r#""a""#), lines[..20]);
    assert_eq!(of(r#""b""#), lines[20..]);
    let first_a = processed.iter().position(|text| text.contains(r#""a""#));
    assert!(first_a > Some(0), "the other key does not wait");
    settled(&courier, &memory, 0).await;
    assert_eq!(memory.all(&behind(Behind::Retry(1))), [], "it is retried in its place");
    courier.end().await;
}

#[tokio::test]
async fn a_slow_subscription_stops_nobody_else() {
    let stuck = Listener::new(|_, _| Says(200, Duration::from_secs(3600), None)).await;
    let mut quick = Listener::new(|_, _| OK).await;
    let mut slow = to(stuck.address());
    (slow.timeout, slow.concurrency) = (Span::from_secs(3600), 2);
    let (courier, memory) = start(config([("slow", slow), ("billing", to(quick.address()))])).await;
    let lines: Vec<String> = (0..500).map(|n| n.to_string()).collect();
    let batch = with(publish(CHANNEL, lines.join("\n")), &[("content-type", "application/x-ndjson")]);
    assert_eq!(courier.send(batch).await.status(), 202);
    quick.until("the other has all", |got| got.len() == 500).await;
    settled(&courier, &memory, 500).await;
    assert_eq!(stuck.got().len(), 2, "no more than its concurrency");
    assert!(memory.state().settles.iter().any(|together| *together > 1), "settled together");
    drop(courier);
}

#[tokio::test]
async fn batches_in_both_forms() {
    let mut listener = Listener::new(|_, _| OK).await;
    let (courier, memory) = start(config([("billing", to(listener.address()))])).await;
    let event = |id: &str, data: Value| json!({ "specversion": "1.0", "id": id, "source": "s", "type": "t", "subject": "é\"", "data": data });
    let events = json!([event("e1", json!({ "orderId": 7 })), event("e2", json!("text"))]).to_string();
    let kind = [("content-type", "application/cloudevents-batch+json")];
    let accepted = courier.send(with(publish(CHANNEL, events.clone()), &kind)).await;
    assert_eq!(accepted.status(), 202);
    let told = json_of(&accepted);
    assert_eq!((&told["messages"][0]["eventId"], &told["messages"][1]["eventId"]), (&json!("e1"), &json!("e2")));
    let got = listener.until("both", |got| got.len() == 2).await;
    let of = |id: &str| got.iter().find(|got| got.header("ce-id") == id).expect("there").clone();
    assert_eq!((of("e1").payload.as_str(), of("e2").payload.as_str()), (r#"{"orderId":7}"#, "\"text\""));
    assert_eq!((of("e1").header("ce-subject"), of("e1").header("ce-source")), ("%C3%A9%22", "s"));
    assert_eq!(memory.all(CHANNEL)[0].key.as_deref(), Some("7"));
    // The same events again are duplicates, by source and id.
    let again = json_of(&courier.send(with(publish(CHANNEL, events), &kind)).await);
    assert_eq!(again["messages"][0]["duplicate"], true);
    assert_eq!(again["messages"][0]["messageId"], told["messages"][0]["messageId"]);
    let empty = courier.send(with(publish(CHANNEL, "[]"), &kind)).await;
    assert_eq!((empty.status().as_u16(), json_of(&empty)), (202, json!({ "messages": [] })));
    let broken = with(publish(CHANNEL, "{}\n\nnot json\n"), &[("content-type", "application/x-ndjson")]);
    let refused = courier.send(broken).await;
    assert_eq!(refused.status(), 400);
    assert!(refused.body().contains("line 3 is no JSON"), "{}", refused.body());
    assert_eq!(memory.all(CHANNEL).len(), 2, "all or nothing");
    courier.end().await;
}

#[tokio::test]
async fn a_publish_with_the_same_key_is_the_same_message() {
    let memory = Arc::new(Memory::new([(CHANNEL.to_owned(), "nobody")]));
    let courier = Courier::new(config([]), Arc::clone(&memory) as SharedBroker).await;
    let send = async |key: &str, caller: &'static str| {
        json_of(
            &courier.send(with(publish(CHANNEL, "{}"), &[("idempotency-key", key), ("meshctl-caller", caller)])).await,
        )
    };
    let (first, again) = (send("1", "orders").await, send("1", "orders").await);
    assert_eq!((&first["duplicate"], &again["duplicate"]), (&json!(false), &json!(true)));
    assert_eq!((&first["messageId"], &first["eventId"]), (&again["messageId"], &again["eventId"]));
    for (key, caller) in [("2", "orders"), ("1", "shipping")] {
        assert_eq!(send(key, caller).await["duplicate"], false, "{key} of {caller} is another");
    }
    assert_eq!(memory.all(CHANNEL).len(), 3);
    let page = courier.send(get("/metrics")).await.into_body();
    assert!(page.contains("meshctl_courier_published_total{channel=\"order.placed\"} 3"), "{page}");
    courier.end().await;
}

#[tokio::test]
async fn a_broker_that_fails_is_told_as_what_it_is() {
    let mut listener = Listener::new(|_, _| OK).await;
    let (courier, memory) = start(config([("billing", to(listener.address()))])).await;
    for (error, expected, says) in [
        (BrokerError::Unknown("cut".into()), "outcomeUnknown", "may have been kept or not"),
        (BrokerError::Full("disk".into()), "channelFull", "nothing was kept"),
        (BrokerError::Damaged("page 7".into()), "brokerAway", "nothing was kept"),
        (BrokerError::Refused("its file cannot be written".into()), "brokerAway", "nothing was kept"),
    ] {
        memory.state().publish_errors.push_back(error);
        let refused = courier.publish(CHANNEL, "{}").await;
        assert_eq!((refused.status().as_u16(), cause(&refused)), (503, expected));
        assert!(refused.headers().contains_key("retry-after"));
        assert!(refused.body().contains(says), "{}", refused.body());
    }
    // With an idempotency key it is sent again, and is no duplicate of itself.
    memory.state().publish_errors.push_back(BrokerError::Unknown("cut".into()));
    let again = courier.send(with(publish(CHANNEL, "0"), &[("idempotency-key", "k")])).await;
    assert_eq!((again.status().as_u16(), &json_of(&again)["duplicate"]), (202, &json!(false)));
    // A moment of absence is waited for; a longer one is told.
    memory.state().publish_errors.push_back(BrokerError::Unreachable("a moment".into()));
    assert_eq!(courier.publish(CHANNEL, "1").await.status(), 202);
    memory.state().away = true;
    memory.cut();
    let refused = courier.publish(CHANNEL, "{}").await;
    assert_eq!((refused.status().as_u16(), cause(&refused)), (503, "brokerAway"));
    courier.until("told", async || !courier.status().await.connected).await;
    assert_eq!(courier.send(get("/healthz")).await.status(), 200, "no reason to be started anew");
    memory.state().away = false;
    assert_eq!(courier.publish(CHANNEL, "2").await.status(), 202);
    listener.until("both", |got| ["1", "2"].iter().all(|n| got.iter().any(|got| got.payload == *n))).await;
    settled(&courier, &memory, 0).await;
    courier.end().await;
}

#[tokio::test]
async fn what_cannot_be_settled_is_tried_again_or_comes_again() {
    let mut listener = Listener::new(|_, _| OK).await;
    let (courier, memory) = start(config([("billing", to(listener.address()))])).await;
    memory
        .state()
        .settle_errors
        .extend([BrokerError::Unreachable("a moment".into()), BrokerError::Full("disk".into())]);
    courier.publish(CHANNEL, "1").await;
    settled(&courier, &memory, 0).await;
    assert_eq!(listener.got().len(), 1, "only the settle was repeated");
    // Cut off while deliveries are under way: they come again.
    for n in 0..50 {
        courier.publish(CHANNEL, n.to_string()).await;
        if n % 10 == 0 {
            memory.cut();
        }
    }
    settled(&courier, &memory, 0).await;
    let got = listener.until("all", |got| got.len() >= 51).await;
    let ids: std::collections::BTreeSet<&str> = got.iter().map(|got| got.header("meshctl-message-id")).collect();
    assert_eq!(ids.len(), 51);
    courier.end().await;
}

#[tokio::test]
async fn a_replayed_message_leaves_a_receipt() {
    let mut listener =
        Listener::new(|got, _| if got.payload == "bad" { Says(400, Duration::ZERO, None) } else { OK }).await;
    let (courier, memory) = start(config([("billing", to(listener.address()))])).await;
    for payload in ["good", "bad"] {
        let mut message = Message { id: payload.into(), payload: payload.into(), ..Message::default() };
        message.set_header(header::REPLAY, "r1");
        message.set_history(&[meshctl_model::message::Attempt {
            number: 4,
            at: Timestamp::now(),
            failure: Failure::Refused,
            reason: "before".into(),
            status: Some(500),
            duration_ms: 1,
            replay: None,
        }]);
        let messages = vec![Publish { message, idempotency_key: None }];
        memory.publish(&behind(Behind::Replay), messages).await.expect("published");
    }
    let got = listener.until("both", |got| got.len() == 2).await;
    assert_eq!((got[0].header("meshctl-replay-id"), got[0].header("meshctl-attempt")), ("r1", "5"));
    let receipts = holds(&courier, &memory, Behind::Replayed, 1).await;
    assert_eq!((receipts.len(), receipts[0].id.as_str(), receipts[0].header(header::REPLAY)), (1, "good", Some("r1")));
    assert!(receipts[0].payload.is_empty());
    let dead = holds(&courier, &memory, Behind::Dead, 1).await.remove(0);
    assert_eq!(dead.history().iter().map(|attempt| attempt.number).collect::<Vec<_>>(), [4, 5]);
    assert_eq!(dead.history()[1].replay.as_deref(), Some("r1"));
    assert_eq!(dead.header(header::REPLAY), Some("r1"));
    courier.end().await;
}

#[tokio::test]
async fn a_courier_that_ends_finishes_what_is_under_way() {
    let go = Arc::new(AtomicBool::new(false));
    let answered = Arc::clone(&go);
    let mut listener = Listener::new(move |_, _| {
        answered.store(true, SeqCst);
        Says(200, Duration::from_secs(2), None)
    })
    .await;
    let mut subscription = to(listener.address());
    subscription.timeout = Span::from_secs(60);
    let (mut courier, memory) = start(config([("billing", subscription)])).await;
    courier.publish(CHANNEL, "1").await;
    listener.until("under way", |got| !got.is_empty()).await;
    assert_eq!(memory.unsettled(), 1);
    courier.ask_to_end();
    memory.until_nobody_receives(CHANNEL).await;
    assert_eq!(memory.unsettled(), 1, "what is under way is not waited for before");
    let late = Publish { message: Message { id: "late".into(), ..Message::default() }, idempotency_key: None };
    memory.publish(CHANNEL, vec![late]).await.expect("published");
    courier.end().await;
    assert!(go.load(SeqCst));
    assert_eq!((memory.unsettled(), listener.got().len()), (1, 1), "what came later is left to the next courier");
}

#[tokio::test]
async fn many_that_wait_for_one_key_hold_up_no_other() {
    let mut listener = Listener::new(|got, _| match got.payload.contains(r#""a""#) {
        true => Says(200, Duration::from_secs(3600), None),
        false => OK,
    })
    .await;
    let mut subscription = to(listener.address());
    subscription.timeout = Span::from_secs(3600);
    let (courier, memory) = start(ordered(config([("billing", subscription)]))).await;
    let mut lines = vec![json!({ "orderId": "a" }).to_string(); 2000];
    lines.push(json!({ "orderId": "b" }).to_string());
    let batch = with(publish(CHANNEL, lines.join("\n")), &[("content-type", "application/x-ndjson")]);
    assert_eq!(courier.send(batch).await.status(), 202);
    listener.until("the other key", |got| got.iter().any(|got| got.payload.contains(r#""b""#))).await;
    settled(&courier, &memory, 2000).await;
    assert_eq!(listener.got().len(), 2);
    drop(courier);
}

#[tokio::test]
async fn a_channels_name_may_be_encoded() {
    let memory = Arc::new(Memory::new([(CHANNEL.to_owned(), "nobody")]));
    let courier = Courier::new(config([]), Arc::clone(&memory) as SharedBroker).await;
    let accepted = courier.publish("order%2Eplac%65d", "{}").await;
    assert_eq!((accepted.status().as_u16(), &json_of(&accepted)["channel"]), (202, &json!(CHANNEL)));
    let unknown = courier.publish("order%FFplaced", "{}").await;
    assert_eq!((unknown.status().as_u16(), cause(&unknown)), (404, "noChannel"));
    assert_eq!(memory.all(CHANNEL).len(), 1);
    courier.end().await;
}

#[tokio::test]
async fn requests_that_make_no_sense_are_refused_with_a_reason() {
    let (courier, memory) = start(config([("billing", to(support::free_address()))])).await;
    let big = "x".repeat((64 << 10) + 1);
    let structured = [("content-type", "application/cloudevents+json")];
    let more: String = (0..15_000).map(|n| format!(r#","{n:x}":1"#)).collect();
    let attributes = format!(r#"{{"specversion":"1.0","id":"e","source":"s","type":"t"{more}}}"#);
    for (request, status, why, says) in [
        (publish("order.plced", "{}"), 404, "noChannel", "there are: order.placed"),
        (get("/channels/order.placed/messages"), 405, "methodNotAllowed", "POSTed"),
        (get("/nowhere"), 404, "noRoute", "/channels/NAME/messages"),
        (publish(CHANNEL, big), 413, "bodyTooLarge", "65536"),
        (with(publish(CHANNEL, "{}"), &[("ce-specversion", "0.3")]), 400, "badRequest", "specversion"),
        (with(publish(CHANNEL, "{}"), &[("ce-time", "soon")]), 400, "badRequest", "RFC 3339"),
        (with(publish(CHANNEL, "{}"), &[("ce-id", "")]), 400, "badRequest", "`ce-id` is empty"),
        (with(publish(CHANNEL, "{}"), &structured), 400, "badRequest", "has no `id`"),
        (with(publish(CHANNEL, "[]"), &structured), 400, "badRequest", "no JSON object"),
        (with(publish(CHANNEL, attributes), &structured), 400, "badRequest", "15005 attributes"),
    ] {
        let refused = courier.send(request).await;
        assert_eq!((refused.status().as_u16(), cause(&refused)), (status, why), "{}", refused.body());
        assert!(refused.body().contains(says), "{}", refused.body());
        assert_eq!(refused.headers()["content-type"], "application/problem+json");
    }
    assert_eq!(memory.all(CHANNEL), []);
    let refused = courier.send(get("/metrics")).await.into_body();
    assert!(
        refused.contains(r#"meshctl_courier_refused_total{channel="order.placed",cause="badRequest"} 6"#),
        "{refused}"
    );
    courier.end().await;
}
