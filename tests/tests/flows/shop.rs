//! The reference shop as it is checked in: two services that reach each other through the gateway.

use meshctl_tests::{Answer, Load, System, process, repository, send, wait_until};
use serde_json::{Value, json};

/// The shop on this system's port.
fn shop() -> System {
    let system = System::new();
    let port = system.port(0).to_string();
    let system = system.with("SHOP_PORT", &port);
    let file = repository().join("manifests/topologies/shop.yaml");
    system.run(&["apply", &file.to_string_lossy(), "--yes"]).expect(0);
    system
}

fn order(system: &System, key: Option<&str>, sku: &str, quantity: u32) -> Answer {
    let mut headers = vec![("content-type", "application/json")];
    headers.extend(key.map(|key| ("idempotency-key", key)));
    let body = json!({"sku": sku, "quantity": quantity}).to_string().into_bytes();
    send("POST", &system.url("/orders"), &headers, body).expect("an answer")
}

fn available(system: &System, sku: &str) -> i64 {
    system.get(&format!("/inventory/{sku}")).json()["available"].as_i64().expect("available")
}

#[test]
fn an_order_takes_its_goods_and_can_be_read_again() {
    let system = shop();
    let before = available(&system, "desk");
    let answer = order(&system, None, "desk", 2);
    let placed = answer.json();
    assert_eq!(answer.status, 201, "{placed:#}");
    let id = placed["orderId"].as_str().expect("orderId");
    assert_eq!(placed["traceId"].as_str().map(str::len), Some(32), "{placed:#}");
    assert_eq!(system.get(&format!("/orders/{id}")).json(), placed);
    // All instances share the stock and the orders, whichever of them is asked.
    (0..8).for_each(|_| assert_eq!(available(&system, "desk"), before - 2));
    (0..8).for_each(|_| assert_eq!(system.get(&format!("/orders/{id}")).status, 200));

    assert_eq!(order(&system, None, "desk", 1000).status, 409);
    assert_eq!(order(&system, None, "unicorn", 1).json()["code"], "out-of-stock");
    assert_eq!(order(&system, None, "nothing", 1).status, 422);
    assert_eq!(system.get("/orders/none").status, 404);
    assert_eq!(system.get("/inventory/nothing").status, 404);
    assert_eq!(system.get("/reservations").status, 404, "what no route names is not reached from outside");

    let edges = system.json(&["get", "edges"]);
    let edge = edges["items"].as_array().expect("items").iter().find(|edge| edge["name"] == "orders:inventory");
    let edge = edge.unwrap_or_else(|| panic!("no orders:inventory in {edges:#}"));
    assert!(edge["url"].is_string() && edge["requests"].as_u64() >= Some(4), "orders went through its edge: {edge:#}");
}

#[test]
fn one_key_is_one_order_whatever_dies_in_between() {
    let system = shop();
    let before = available(&system, "chair");
    let first = order(&system, Some("k"), "chair", 1);
    assert_eq!(first.status, 201);
    for pid in system.pids("orders") {
        process::kill(pid);
        wait_until("the shop to be whole again", || {
            system.status()["ready"] == true && !system.pids("orders").contains(&pid)
        });
        let again = order(&system, Some("k"), "chair", 1);
        assert_eq!((again.status, again.json()), (201, first.json()));
    }
    assert_eq!(available(&system, "chair"), before - 1);
    assert_eq!(order(&system, Some("k"), "chair", 2).status, 422);
}

#[test]
fn reading_goes_on_while_instances_of_both_services_die() {
    let system = shop();
    let placed = order(&system, None, "book", 1).json();
    let load = Load::start(&system.url(&format!("/orders/{}", placed["orderId"].as_str().expect("orderId"))), 4);
    load.pass(50);
    for service in ["orders", "inventory"] {
        process::kill(system.pids(service)[0]);
        load.pass(100);
        wait_until("the shop to be whole again", || {
            system.status()["ready"] == true && system.pids(service).len() == 2
        });
    }
    load.finish().expect_no_failure();
}

#[test]
fn without_inventory_an_order_is_refused_and_finished_later_under_its_key() {
    let system = shop();
    system.run(&["scale", "inventory=0", "--yes"]).expect(0);
    let refused = order(&system, Some("later"), "book", 1);
    let problem: Value = refused.json();
    assert!([502, 503, 504].contains(&refused.status), "{problem:#}");
    system.run(&["scale", "inventory=1", "--yes"]).expect(0);
    wait_until("the order to be finished", || order(&system, Some("later"), "book", 1).status == 201);
}

#[test]
fn with_a_fallback_an_order_is_taken_without_knowing_the_stock() {
    let system = System::new();
    system.apply(
        "
services:
  orders:
    builtin: orders
    health: { http: /healthz }
    env: { STOCK_API: { urlOf: inventory } }
    calls: { inventory: { deadline: 500ms, fallback: { status: 200, body: '{\"available\": \"unknown\"}' } } }
  inventory: { builtin: inventory, replicas: 0 }
routes:
  - { path: /orders, to: orders }
",
    );
    let answer = order(&system, None, "book", 1);
    assert_eq!((answer.status, &answer.json()["stock"]), (201, &json!("unknown")));
}
