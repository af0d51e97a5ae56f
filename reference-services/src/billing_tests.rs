//! Billing over HTTP, with a real file and a real server in the courier's place.

use std::path::Path as FilePath;

use axum::http::{HeaderMap, HeaderValue};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::*;
use crate::kit::client;
use crate::kit::courier::Courier;
use crate::kit::inbox::Identity;

/// An instance of billing that serves.
#[derive(Clone)]
struct Instance {
    url: String,
    billing: Billing,
}

async fn start(file: &FilePath, instance: &str, outbox: Outbox) -> Instance {
    let store = Store::at(file, &format!("{SCHEMA}{}{}", inbox::SCHEMA, outbox::SCHEMA)).expect("a store");
    let kit = Kit::for_test("billing", instance);
    let billing = Billing { inbox: Inbox::new(&kit), kit, store, outbox };
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let router = public(billing.clone());
    tokio::spawn(async move { axum::serve(listener, router).await });
    Instance { url, billing }
}

impl Instance {
    /// Delivers `body`; `ids` are message id, source, and event id, the empty ones left out.
    async fn deliver(&self, ids: [&str; 3], body: impl Into<String>) -> (u16, Value) {
        let names = ["meshctl-message-id", "ce-source", "ce-id"];
        let mut request = client().expect("a client").post(format!("{}/events/order-placed", self.url));
        for (name, value) in names.into_iter().zip(ids).filter(|(_, value)| !value.is_empty()) {
            request = request.header(name, value);
        }
        let response = request.body(body.into()).send().await.expect("an answer");
        (response.status().as_u16(), response.json().await.expect("JSON"))
    }

    async fn invoice(&self, order_id: &str) -> (u16, Value) {
        let answer = client().expect("a client").get(format!("{}/invoices/{order_id}", self.url)).send().await;
        let answer = answer.expect("an answer");
        (answer.status().as_u16(), answer.json().await.expect("JSON"))
    }

    /// received, applied, duplicates, rejected, invoices
    async fn counts(&self) -> [i64; 5] {
        let Json(state) = state(State(self.billing.clone())).await.expect("a state");
        ["received", "applied", "duplicates", "rejected", "invoices"]
            .map(|name| state[name].as_i64().unwrap_or_else(|| panic!("no {name} in {state}")))
    }
}

fn placed(order_id: &str) -> String {
    json!({"orderId": order_id, "sku": "book", "quantity": 2, "status": "confirmed"}).to_string()
}

#[tokio::test]
async fn a_message_has_its_effect_once_by_whichever_of_its_names_and_instances_it_comes() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("billing.db");
    let courier = Courier::start().await;
    let store = Store::at(&file, outbox::SCHEMA).expect("a store");
    let (outbox, publishing) =
        Outbox::to(&Kit::for_test("billing", "billing-1"), &store, Some(courier.url.clone())).expect("an outbox");
    let first = start(&file, "billing-1", outbox).await;
    let second = start(&file, "billing-2", Outbox::none()).await;

    assert_eq!(first.invoice("a").await.0, 404);
    assert_eq!(first.deliver(["m1", "orders", "e1"], placed("a")).await, (200, json!({"duplicate": false})));
    let (status, invoice) = first.invoice("a").await;
    assert_eq!((status, &invoice["totalCents"]), (200, &json!(3980)), "{invoice}");

    let again = (200, json!({"duplicate": true}));
    assert_eq!(first.deliver(["m1", "orders", "e1"], placed("a")).await, again);
    assert_eq!(second.deliver(["m1", "", ""], placed("a")).await, again);
    // The same event, published once more after the channel has forgotten its key.
    assert_eq!(second.deliver(["m2", "orders", "e1"], placed("a")).await, again);
    // Another event that claims to have placed the order.
    assert_eq!(second.deliver(["m3", "orders", "e3"], placed("a")).await, again);
    assert_eq!(second.invoice("a").await, (200, invoice.clone()));
    assert_eq!(first.counts().await, [5, 1, 4, 0, 1]);

    let issued = courier.until(1).await;
    assert_eq!(issued[0].header("ce-type"), "invoice.issued");
    assert_eq!(issued[0].payload["invoiceId"], invoice["invoiceId"]);
    assert_eq!(issued[0].payload["orderId"], "a");
    publishing.end().await;
    assert_eq!(courier.accepted().len(), 1);
}

#[tokio::test]
async fn many_deliveries_of_few_messages_at_once_are_few_invoices() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("billing.db");
    let first = start(&file, "billing-1", Outbox::none()).await;
    let second = start(&file, "billing-2", Outbox::none()).await;
    let mut deliveries = JoinSet::new();
    for number in 0..120 {
        let instance = if number % 2 == 0 { first.clone() } else { second.clone() };
        let name = (number % 30).to_string();
        deliveries.spawn(async move { instance.deliver([&name, "orders", &name], placed(&name)).await });
    }
    let answers = deliveries.join_all().await;
    assert!(answers.iter().all(|(status, _)| *status == 200), "{answers:?}");
    assert_eq!(answers.iter().filter(|(_, answer)| answer["duplicate"] == false).count(), 30);
    assert_eq!(second.counts().await, [120, 30, 90, 0, 30]);
}

#[tokio::test]
async fn what_cannot_be_understood_is_rejected_and_leaves_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let billing = start(&folder.path().join("billing.db"), "billing-1", Outbox::none()).await;
    let ids = ["m1", "orders", "e1"];
    for (ids, body, status, code) in [
        (ids, "not JSON".to_owned(), 400, "invalid-message"),
        (ids, String::new(), 400, "invalid-message"),
        (ids, "[]".into(), 422, "invalid-message"),
        (ids, json!({"sku": "book", "quantity": 1}).to_string(), 422, "invalid-message"),
        (ids, json!({"orderId": "a", "sku": "book", "quantity": -1}).to_string(), 422, "invalid-message"),
        (["", "orders", ""], placed("a"), 400, "no-message-id"),
    ] {
        let (answered, problem) = billing.deliver(ids, body.clone()).await;
        assert_eq!((answered, &problem["code"]), (status, &json!(code)), "{body}");
    }
    assert_eq!(billing.counts().await, [0, 0, 0, 6, 0]);
    // An operator has mended it.
    assert_eq!(billing.deliver(ids, placed("a")).await.0, 200);
    assert_eq!(billing.counts().await, [1, 1, 0, 6, 1]);
}

#[tokio::test]
async fn the_knobs_refuse_and_poison_messages_and_leave_requests_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let billing = start(&folder.path().join("billing.db"), "billing-1", Outbox::none()).await;
    let ids = ["m1", "orders", "e1"];
    billing.billing.kit.turn_for_test(r#"{"refuse": true, "retryAfterS": 7}"#);
    let refused = client().expect("a client").post(format!("{}/events/order-placed", billing.url)).send().await;
    let refused = refused.expect("an answer");
    assert_eq!((refused.status().as_u16(), &refused.headers()["retry-after"]), (503, &"7".parse().expect("a header")));
    assert_eq!(billing.invoice("a").await.0, 404);
    billing.billing.kit.turn_for_test(r#"{"poison": {"sku": "book"}}"#);
    let (status, problem) = billing.deliver(ids, placed("a")).await;
    assert_eq!((status, &problem["code"]), (422, &json!("poison")));
    billing.billing.kit.turn_for_test("{}");
    assert_eq!(billing.deliver(ids, placed("a")).await.0, 200);
    assert_eq!(billing.counts().await, [1, 1, 0, 1, 1]);
}

#[tokio::test]
async fn a_crash_before_the_commit_leaves_neither_note_nor_invoice_nor_event() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("billing.db");
    let courier = Courier::start().await;
    let store = Store::at(&file, outbox::SCHEMA).expect("a store");
    let (outbox, publishing) =
        Outbox::to(&Kit::for_test("billing", "billing-1"), &store, Some(courier.url.clone())).expect("an outbox");
    let billing = start(&file, "billing-1", outbox.clone()).await;
    {
        let headers = HeaderMap::from_iter([
            ("ce-source".parse().expect("a name"), HeaderValue::from_static("orders")),
            ("ce-id".parse().expect("a name"), HeaderValue::from_static("e1")),
        ]);
        let (id, context) = (Identity::of(&headers).expect("an id"), Context::of(&headers, std::time::Instant::now()));
        let invoice = Invoice {
            invoice_id: "never".into(),
            order_id: "a".into(),
            sku: "book".into(),
            quantity: 2,
            total_cents: 3980,
            trace_id: "t".into(),
            issued_at: "2026-01-01T00:00:00Z".into(),
        };
        let dying = Connection::open(&file).expect("a connection");
        dying.execute_batch("BEGIN IMMEDIATE").expect("begun");
        let effect = Inbox::once(&dying, &id, |c| issue(c, &invoice, &outbox, &context));
        assert_eq!(effect, Ok(Effect::Applied));
        // The connection goes as with its process: the transaction open.
    }
    assert_eq!(billing.counts().await, [0; 5]);
    let ids = ["m1", "orders", "e1"];
    assert_eq!(billing.deliver(ids, placed("a")).await, (200, json!({"duplicate": false})));
    // The answer is lost with the process; the next instance knows the message.
    drop(billing);
    let next = start(&file, "billing-2", Outbox::none()).await;
    assert_eq!(next.deliver(ids, placed("a")).await, (200, json!({"duplicate": true})));
    assert_eq!(next.counts().await, [2, 1, 1, 0, 1]);
    courier.until(1).await;
    publishing.end().await;
    assert_eq!(courier.accepted().len(), 1);
    assert_ne!(courier.accepted()[0].payload["invoiceId"], "never");
}
