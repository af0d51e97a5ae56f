//! Who is in routing, who is not, why, and since when.

use meshctl_tests::{System, process, wait_for, wait_until};
use serde_json::{Value, json};

use crate::HELLO;

fn endpoint(system: &System, id: &Value) -> Value {
    let endpoints = system.json(&["endpoint", "ls"]);
    let items = endpoints["items"].as_array().expect("items");
    items.iter().find(|endpoint| endpoint["id"] == *id).unwrap_or_else(|| panic!("no {id} in {endpoints:#}")).clone()
}

#[test]
fn what_is_out_of_routing_says_why_and_since_when() {
    let system = System::new();
    system.apply(HELLO);
    let listed = system.json(&["registry", "ls"]);
    let of_hello = listed["items"].as_array().expect("items").iter().filter(|item| item["service"] == "hello").count();
    assert_eq!(of_hello, 2, "{listed:#}");

    let sick = &system.instances("hello")[0];
    assert_eq!(endpoint(&system, &sick["id"])["inRouting"], true);
    system.turn_knobs(sick, &json!({"notReady": true}));
    let out = wait_for("the sick one to be out", || {
        Some(endpoint(&system, &sick["id"])).filter(|endpoint| endpoint["inRouting"] == false)
    });
    assert!(out["reason"].as_str().is_some_and(|reason| reason.contains("503")), "{out:#}");
    assert!(out["since"].is_string(), "{out:#}");
    (0..20).for_each(|_| assert_ne!(system.get("/").header("served-by"), sick["id"], "it is still asked"));

    system.turn_knobs(sick, &json!({}));
    wait_until("it to be back", || endpoint(&system, &sick["id"])["inRouting"] == true);
    wait_until("it to be asked again", || system.get("/").header("served-by") == sick["id"]);
}

#[test]
fn a_dead_instance_leaves_and_its_successor_comes() {
    let system = System::new();
    system.apply(&HELLO.replace("replicas: 2", "replicas: 1"));
    let before = system.pids("hello")[0];
    process::kill(before);
    wait_until("a successor in routing", || {
        let items = system.json(&["endpoint", "ls"]);
        let inside =
            items["items"].as_array().into_iter().flatten().filter(|endpoint| endpoint["inRouting"] == true).count();
        inside == 1 && system.pids("hello").iter().any(|pid| *pid != before)
    });
    assert_eq!(system.get("/").status, 200);
}
