//! Changes under load fail no request, and a version that is no good goes back by itself.

use meshctl_tests::{Load, System, wait_until};

use crate::HELLO;

#[test]
fn a_rolling_restart_fails_no_request() {
    let system = System::new();
    system.apply(HELLO);
    let before = system.pids("hello");
    let load = Load::start(&system.url("/slow?ms=20"), 8);
    load.pass(100);
    system.run(&["restart", "hello", "--yes"]).expect(0);
    load.pass(100);
    load.finish().expect_no_failure();
    let after = system.pids("hello");
    assert!(after.len() == 2 && after.iter().all(|pid| !before.contains(pid)), "{before:?} {after:?}");
}

#[test]
fn a_rolling_restart_of_a_single_instance_fails_no_request() {
    let system = System::new();
    system.apply(&HELLO.replace("replicas: 2", "replicas: 1"));
    let load = Load::start(&system.url("/"), 4);
    load.pass(100);
    system.run(&["restart", "hello", "--yes"]).expect(0);
    load.pass(100);
    load.finish().expect_no_failure();
}

#[test]
fn a_service_with_a_fixed_port_is_replaced_in_its_place_while_requests_wait() {
    let system = System::new();
    let port = system.port(5);
    let body = |edit: u32| {
        let fixed = format!("builtin: hello, port: {port}, env: {{ EDIT: '{edit}' }},");
        let patient = "defaults: { deadline: 20s, attemptTimeout: 20s }\n";
        HELLO.replace("builtin: hello, replicas: 2,", &fixed) + patient
    };
    system.apply(&body(0));
    let load = Load::start(&system.url("/"), 8);
    load.pass(100);
    for edit in 1..4 {
        let before = system.pids("hello");
        system.apply(&body(edit));
        load.pass(50);
        let instance = &system.instances("hello")[0];
        assert_eq!(instance["address"], format!("127.0.0.1:{port}"), "{instance:#}");
        assert_ne!(system.pids("hello"), before);
    }
    load.finish().expect_no_failure();
}

#[test]
fn twenty_edits_under_load_fail_no_request() {
    let system = System::new();
    system.apply(HELLO);
    let load = Load::start(&system.url("/"), 8);
    load.pass(50);
    for edit in 0..20 {
        // By turns a change of the program, of the routes, of the number of instances, and of policy.
        let body = match edit % 4 {
            0 => HELLO.replace("builtin: hello,", &format!("builtin: hello, env: {{ EDIT: '{edit}' }},")),
            1 => format!("{HELLO}  - {{ path: /edit/{edit}, to: hello }}\n"),
            2 => HELLO.replace("replicas: 2", "replicas: 3"),
            _ => format!("{HELLO}defaults: {{ deadline: {}ms }}\n", 3000 + edit),
        };
        system.apply(&body);
        load.pass(20);
    }
    load.finish().expect_no_failure();
}

#[test]
fn a_version_that_does_not_become_ready_goes_back_by_itself() {
    let system = System::new();
    system.apply(HELLO);
    let before = system.pids("hello");
    let load = Load::start(&system.url("/"), 4);
    load.pass(50);
    let bad = HELLO.replace(
        "builtin: hello,",
        "builtin: hello, env: { KNOBS: '{\"notReady\": true}' }, startTimeout: 2s, stop: { grace: 2s },",
    );
    let ran = system.try_apply(&bad).expect(1);
    ran.says("hello");
    wait_until("the former version to stand", || system.service("hello")["state"] == "rolledBack");
    load.pass(50);
    load.finish().expect_no_failure();
    let after = system.pids("hello");
    assert!(
        after.len() == 2 && after.iter().any(|pid| before.contains(pid)),
        "the second was never touched: {before:?} {after:?}"
    );
    assert_eq!(system.status()["ready"], false, "what is wanted does not run");
}
