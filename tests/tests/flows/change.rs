//! Changing what runs: only what changed is touched, and every change can be looked up and undone.

use meshctl_tests::{System, wait_until};
use serde_json::{Value, json};

use crate::HELLO;

const TWO: &str = "
services:
  left: { builtin: hello, health: { http: /healthz } }
  right: { builtin: hello, health: { http: /healthz } }
routes:
  - { path: '/left/*', to: left }
  - { path: '/right/*', to: right }
";

#[test]
fn a_change_of_one_service_touches_only_that_one() {
    let system = System::new();
    system.apply(TWO);
    let (left, right, gateway) = (system.pids("left"), system.pids("right"), system.gateway_pid());
    let changed = TWO.replacen("builtin: hello", "builtin: hello, env: { COLOUR: blue }", 1);

    let file = system.file(&changed);
    let plan = system.json(&["plan", &file]);
    let named: Vec<&Value> = plan["steps"].as_array().expect("steps").iter().map(|step| &step["name"]).collect();
    assert_eq!(named, [&json!("left")], "{plan:#}");
    assert!(plan["steps"][0]["why"].as_str().is_some_and(|why| why.contains("COLOUR")), "{plan:#}");

    system.apply(&changed);
    assert_ne!(system.pids("left"), left);
    assert_eq!(system.pids("right"), right);
    assert_eq!(system.gateway_pid(), gateway);
}

#[test]
fn a_service_that_is_removed_ends_and_a_new_one_comes() {
    let system = System::new();
    system.apply(TWO);
    let right = system.pids("right");
    let file = TWO.replace("left", "middle");
    system.apply(&file);
    assert_eq!(system.pids("right"), right);
    assert_eq!(system.get("/middle/x").status, 200);
    assert_eq!(system.get("/left/x").status, 404);
    assert_eq!(system.status()["items"].as_array().map(Vec::len), Some(2));
}

#[test]
fn scaling_restarting_and_undoing() {
    let system = System::new();
    system.apply(HELLO);
    let two = system.pids("hello");

    system.run(&["scale", "hello=3", "--yes"]).expect(0);
    let three = system.pids("hello");
    assert_eq!(three.len(), 3);
    assert!(two.iter().all(|pid| three.contains(pid)), "scaling up restarts nothing: {two:?} {three:?}");

    system.run(&["restart", "hello", "--yes"]).expect(0);
    let fresh = system.pids("hello");
    assert_eq!(fresh.len(), 3);
    assert!(fresh.iter().all(|pid| !three.contains(pid)), "every instance is a new one: {three:?} {fresh:?}");

    system.run(&["scale", "hello=0", "--yes"]).expect(0);
    wait_until("no instance to be left", || system.instances("hello").is_empty());
    system.run(&["rollout", "undo", "--yes"]).expect(0);
    assert_eq!(system.pids("hello").len(), 3, "the revision before had three");

    let history = system.json(&["rollout", "history"]);
    let revisions = history["items"].as_array().expect("items");
    let causes: Vec<&str> = revisions.iter().filter_map(|revision| revision["cause"].as_str()).collect();
    for cause in ["apply", "scale", "restart", "undo"] {
        assert!(causes.contains(&cause), "no {cause} in {history:#}");
    }
    assert_eq!(revisions.iter().filter(|revision| revision["current"] == true).count(), 1, "{history:#}");
    system.run(&["scale", "nobody=2", "--yes"]).expect(3);
    system.run(&["restart", "nobody", "--yes"]).expect(3);
}

#[test]
fn the_order_of_starting_is_kept() {
    let system = System::new();
    system.apply(
        "
services:
  last: { builtin: hello, dependsOn: [middle], health: { http: /healthz } }
  middle: { builtin: hello, dependsOn: [first], health: { http: /healthz } }
  first: { builtin: hello, health: { http: /healthz } }
",
    );
    let began = ["first", "middle", "last"]
        .map(|name| system.instances(name)[0]["startedAt"].as_str().expect("startedAt").to_owned());
    assert!(began[0] < began[1] && began[1] < began[2], "RFC 3339 times are in the order of starting: {began:?}");
}
