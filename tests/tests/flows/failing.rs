//! Services that crash, hang or never become ready: they are named, their dependents wait, and everybody else runs.

use meshctl_tests::System;
use serde_json::json;

/// `bad` beside a good service, with one that must come after it.
fn beside_good(bad: &str) -> String {
    format!(
        "
services:
  good: {{ builtin: hello, health: {{ http: /healthz }} }}
  bad: {bad}
  after: {{ builtin: hello, dependsOn: [bad], health: {{ http: /healthz }} }}
routes:
  - {{ path: '/*', to: good }}
"
    )
}

/// Applies, expects the failure to be told with `words`, and the rest to run.
fn expect_named(bad: &str, words: &[&str]) {
    let system = System::new();
    let ran = system.try_apply(&beside_good(bad)).expect(1);
    ran.says("bad").says("blocked by bad");
    for word in words {
        ran.says(word);
    }

    assert_eq!(system.get("/still/here").status, 200);
    assert_eq!(system.service("good")["state"], "ready");
    let after = system.service("after");
    assert_eq!((&after["state"], &after["blockedBy"]), (&json!("blocked"), &json!("bad")), "{after:#}");
    assert_eq!(after["instances"].as_array().map(Vec::len), Some(0), "what waits has not been started: {after:#}");
    assert_eq!(system.status()["ready"], false);
    system.down();
}

#[test]
fn one_that_crashes_is_named_with_its_last_lines() {
    let script = "echo the first line; echo cannot read the key file >&2; exit 3";
    expect_named(
        &format!("{{ command: [sh, -c, '{script}'], startTimeout: 5s }}"),
        &["cannot read the key file", "the first line", "3"],
    );
}

#[test]
fn one_that_does_not_exist_is_named_with_its_program() {
    expect_named("{ command: [/nowhere/server], startTimeout: 5s }", &["/nowhere/server"]);
}

#[test]
fn one_that_hangs_is_given_up() {
    expect_named(
        "{ builtin: hello, env: { KNOBS: '{\"hang\": true}' }, health: { http: /healthz, timeout: 200ms }, startTimeout: 2s, stop: { drain: 1s, grace: 1s } }",
        &["/healthz"],
    );
}

#[test]
fn one_that_never_becomes_ready_is_given_up() {
    expect_named(
        "{ builtin: hello, env: { KNOBS: '{\"notReady\": true}' }, health: { http: /healthz }, startTimeout: 2s }",
        &["503"],
    );
}

#[test]
fn one_that_never_opens_its_port_is_given_up() {
    expect_named("{ command: [sleep, '3600'], startTimeout: 2s }", &["port"]);
}

#[test]
fn it_is_well_again_once_the_file_is_mended() {
    let system = System::new();
    let bad = beside_good("{ command: [sh, -c, 'exit 3'], startTimeout: 2s }");
    system.try_apply(&bad).expect(1);
    let good = system.pids("good");
    system.apply(&beside_good("{ builtin: hello, health: { http: /healthz } }"));
    assert_eq!(system.pids("good"), good);
    assert_eq!(system.service("after")["state"], "ready");
}
