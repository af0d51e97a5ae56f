//! Plan and apply: the first time, the second time, from two shells, interrupted, and taken down again.

use std::path::Path;

use meshctl_tests::{System, process, wait_until};
use rustix::process::Signal;
use serde_json::json;

use crate::HELLO;

#[test]
fn the_first_apply_ends_with_a_system_that_answers_and_the_second_changes_nothing() {
    let system = System::new();
    let first = system.apply(HELLO);
    first.says("curl");
    assert!(first.stdout.contains(&system.url("")), "no {} in {first}", system.url(""));
    let answer = system.get("/some/path");
    assert_eq!((answer.status, answer.json()["path"].as_str()), (200, Some("/some/path")));

    let status = system.status();
    assert_eq!(status["ready"], true, "{status:#}");
    let hello = system.service("hello");
    assert_eq!((&hello["desired"], &hello["ready"], &hello["state"]), (&json!(2), &json!(2), &json!("ready")));
    assert_eq!(status["gateways"][0]["revision"], status["revision"], "the gateway acknowledged: {status:#}");

    let before = system.all_pids();
    assert_eq!(before.len(), 3, "two instances and a gateway: {before:?}");
    let file = system.file(HELLO);
    system.run(&["plan", &file, "--exit-code"]).expect(0);
    assert_eq!(system.json(&["plan", &file])["changes"], 0);
    system.apply(HELLO);
    assert_eq!(system.all_pids(), before);
    assert_eq!(system.status()["revision"], status["revision"], "nothing changed, so there is no new revision");
}

#[test]
fn a_plan_touches_nothing() {
    let system = System::new();
    let file = system.file(HELLO);
    let plan = system.json(&["plan", &file]);
    assert!(plan["changes"].as_u64().is_some_and(|changes| changes > 0), "{plan:#}");
    for step in plan["steps"].as_array().expect("steps") {
        for field in ["action", "kind", "name", "why", "consequence"] {
            assert!(step[field].is_string(), "{field} of {step:#}");
        }
    }
    system.run(&["plan", &file, "--exit-code"]).expect(1);
    system.run(&["diff", &file]);
    system.run(&["apply", &file, "--dry-run"]).expect(0);
    let left: Vec<_> = std::fs::read_dir(system.state_dir()).expect("the state directory").collect();
    assert!(left.is_empty(), "a plan left {left:?}");
    system.expect_nothing_runs();
}

#[test]
fn a_saved_plan_is_applied_once_and_refused_when_stale() {
    let system = System::new();
    let saved = system.folder().join("saved.plan").to_string_lossy().into_owned();
    let file = system.file(HELLO);
    system.run(&["plan", &file, "--out", &saved]);
    assert!(Path::new(&saved).is_file(), "--out writes the plan");
    system.run(&["apply", &saved, "--yes"]).expect(0);
    let pids = system.all_pids();

    let bigger = system.file(&HELLO.replace("replicas: 2", "replicas: 3"));
    system.run(&["plan", &bigger, "--out", &saved]);
    system.apply(&HELLO.replace("builtin: hello,", "builtin: hello, env: { CHANGED: yes },"));
    let between = system.all_pids();
    assert_ne!(between, pids);
    let refused = system.run(&["apply", &saved, "--yes"]).expect(4);
    refused.says("stale");
    assert_eq!(system.all_pids(), between, "a refused plan changes nothing");
}

#[test]
fn a_plan_saved_without_a_daemon_applies_also_after_the_system_was_taken_down() {
    let system = System::new();
    let saved = system.folder().join("saved.plan").to_string_lossy().into_owned();
    system.run(&["plan", &system.file(HELLO), "--out", &saved]);
    system.apply(&HELLO.replace("replicas: 2", "replicas: 1"));
    system.run(&["apply", &saved, "--yes"]).expect(4);
    system.down();
    system.run(&["apply", &saved, "--yes"]).expect(0);
    assert_eq!(system.pids("hello").len(), 2);
}

#[test]
fn two_shells_may_apply_at_once() {
    let system = System::new();
    system.apply(HELLO);
    let with = |value: &str| {
        let body = HELLO.replace("builtin: hello,", &format!("builtin: hello, env: {{ SHELL_NAME: {value} }},"));
        std::fs::rename(system.file(&body), system.folder().join(format!("{value}.yaml"))).expect("renamed");
        format!("{value}.yaml")
    };
    let (one, two) = (with("one"), with("two"));
    let running = [&one, &two].map(|file| system.start(&["apply", file, "--yes"]));
    let ended = running.map(|child| system.end_of(child));
    assert!(ended.iter().any(|ran| ran.status == 0), "neither went through: {} {}", ended[0], ended[1]);
    // Whoever came second either waited its turn or was told that it lost; nobody is left with half of each.
    assert!(ended.iter().all(|ran| [0, 1, 4].contains(&ran.status)), "{} {}", ended[0], ended[1]);
    wait_until("the system to be ready", || system.status()["ready"] == true);
    let kept = [&one, &two].map(|file| system.json(&["plan", file])["changes"] == 0);
    assert!(kept[0] != kept[1], "exactly one of the two is what runs: {kept:?}");
    assert_eq!(system.pids("hello").len(), 2);
}

#[test]
fn ctrl_c_detaches_and_the_system_goes_on() {
    // Not ready until the test turns the knob, so that the interruption always comes in the middle.
    let system = System::new();
    let body = HELLO.replace("builtin: hello,", "builtin: hello, env: { KNOBS: '{\"notReady\": true}' },");
    let file = system.file(&body);
    let apply = system.start(&["apply", &file, "--yes"]);
    wait_until("both instances to run", || {
        system.run(&["status", "-o", "json"]).status != 69
            && system.status()["items"][0]["instances"][1]["pid"].is_u64()
    });
    process::signal(apply.id(), Signal::INT);
    let ended = system.end_of(apply).expect(130);
    ended.says("status");

    for instance in system.instances("hello") {
        // The port opens a moment after the process exists.
        let address = instance["address"].as_str().expect("an address").to_owned();
        wait_until("the instance to listen", || meshctl_tests::get(&format!("http://{address}/healthz")).is_ok());
        system.turn_knobs(&instance, &json!({}));
    }
    wait_until("the system to become ready by itself", || system.status()["ready"] == true);
    assert_eq!(system.get("/").status, 200);
}

#[test]
fn down_leaves_no_process_socket_or_port_and_purge_no_data() {
    let system = System::new();
    system.apply(HELLO);
    let socket = system.state_dir().join("meshctl.sock");
    assert!(socket.exists());
    let addresses: Vec<String> = system
        .instances("hello")
        .iter()
        .filter_map(|instance| Some(instance["address"].as_str()?.to_owned()))
        .collect();
    assert_eq!(addresses.len(), 2);
    system.down();
    assert!(!socket.exists(), "the socket is left");
    for address in addresses.iter().chain([&format!("127.0.0.1:{}", system.port(0))]) {
        std::net::TcpListener::bind(address).unwrap_or_else(|why| panic!("{address} is not free: {why}"));
    }
    system.run(&["status"]).expect(69);

    system.apply(HELLO);
    system.run(&["down", "--purge", "--yes"]).expect(0);
    system.expect_nothing_runs();
    let left: Vec<_> = std::fs::read_dir(system.state_dir()).into_iter().flatten().collect();
    assert!(left.is_empty(), "--purge left {left:?}");
}

#[test]
fn two_systems_run_side_by_side() {
    let (one, two) = (System::new(), System::new());
    one.apply(HELLO);
    two.apply(HELLO);
    assert_eq!((one.get("/").status, two.get("/").status), (200, 200));
    let pids = two.all_pids();
    one.down();
    assert_eq!(two.all_pids(), pids);
    assert_eq!(two.get("/").status, 200);
}
