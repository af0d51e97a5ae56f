//! What people and scripts read: streams, colours, widths, fields, exit statuses.

use std::process::Command;

use meshctl_tests::{Ran, System, installed, repository, skip};
use serde_json::Value;

use crate::HELLO;

const READERS: [&[&str]; 10] = [
    &["status"],
    &["get", "services"],
    &["get", "svc,inst,edges,routes"],
    &["describe", "svc/hello"],
    &["events"],
    &["rollout", "history"],
    &["registry", "ls"],
    &["endpoint", "ls"],
    &["check"],
    &["version"],
];

#[test]
fn piped_output_has_no_escapes_and_results_go_to_stdout() {
    let system = System::new();
    let applied = system.apply(HELLO);
    let file = system.file(HELLO);
    let plan = system.run(&["plan", &file]).expect(0);
    let broken = system.raw_file("broken.yaml", "services: { a: { bultin: hello } }\n");
    let invalid = system.run(&["validate", &broken]).expect(78);
    let read = READERS.map(|args| system.run(args).expect(0));
    for ran in read.iter().chain([&applied, &plan, &invalid]) {
        assert!(!ran.stdout.contains('\x1b') && !ran.stderr.contains('\x1b'), "an escape in {ran}");
        assert!(!ran.stderr.contains('\r'), "progress that redraws itself in {ran}");
    }
    for ran in &read {
        assert!(!ran.stdout.trim().is_empty(), "nothing on stdout of {ran}");
    }
}

/// Runs in a terminal of 80 columns, as `script` provides one.
fn in_terminal(system: &System, args: &[&str], variables: &[(&str, &str)]) -> Ran {
    let line: Vec<String> = args.iter().map(|arg| format!("'{arg}'")).collect();
    let inner = format!("stty cols 80 rows 24; '{}' {}", system.binary().display(), line.join(" "));
    let mut command = Command::new("script");
    let plain = system.command(args);
    command.args(["-qec", &inner, "/dev/null"]).current_dir(system.folder()).env("TERM", "xterm-256color");
    for (name, value) in plain.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.envs(variables.iter().copied()).stdin(std::process::Stdio::null());
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    system.run_command(command)
}

#[test]
fn a_terminal_gets_colours_unless_told_otherwise() {
    if !installed("script") {
        skip!("script (util-linux) is not installed");
    }
    let system = System::new();
    system.apply(HELLO);
    let status = in_terminal(&system, &["status"], &[]).expect(0);
    assert!(status.stdout.contains("\x1b["), "no colour in {status}");
    for (args, variables) in [
        (&["status"][..], &[("NO_COLOR", "1")][..]),
        (&["status"], &[("TERM", "dumb")]),
        (&["status", "--color", "never"], &[]),
    ] {
        let ran = in_terminal(&system, args, variables).expect(0);
        assert!(!ran.stdout.contains("\x1b["), "{args:?} {variables:?}: colour in {ran}");
    }
    let always = system.run(&["status", "--color", "always"]).expect(0);
    assert!(always.stdout.contains("\x1b["), "no colour in {always}");
}

#[test]
fn nothing_is_wider_than_eighty_columns() {
    if !installed("script") {
        skip!("script (util-linux) is not installed");
    }
    let system = System::new();
    let long = HELLO
        .replace("hello:", "a-service-with-quite-a-long-name:")
        .replace("to: hello", "to: a-service-with-quite-a-long-name");
    system.apply(&long);
    for args in [&["status"][..], &["get", "services"], &["get", "inst"], &["endpoint", "ls"], &["rollout", "history"]]
    {
        let ran = in_terminal(&system, args, &[("NO_COLOR", "1")]).expect(0);
        for line in ran.stdout.lines() {
            let width = line.trim_end_matches('\r').chars().count();
            assert!(width <= 80, "{width} columns in {line:?} of {ran}");
        }
    }
}

#[test]
fn the_fields_that_scripts_rely_on_are_there() {
    let system = System::new();
    system.apply(HELLO);
    let status = system.status();
    expect_fields(&status, &["apiVersion", "kind", "name", "revision", "ready", "items", "gateways"]);
    assert_eq!(status["apiVersion"], "meshctl/v1");
    expect_fields(&status["items"][0], &["name", "kind", "desired", "ready", "state", "blockedBy", "instances"]);
    expect_fields(&status["items"][0]["instances"][0], &["id", "pid", "address", "state", "startedAt", "restarts"]);
    expect_fields(&status["gateways"][0], &["url", "revision", "pid"]);
    let plan = system.json(&["plan", &system.file(&HELLO.replace("replicas: 2", "replicas: 1"))]);
    expect_fields(&plan, &["apiVersion", "kind", "fingerprint", "changes", "steps"]);
    expect_fields(&plan["steps"][0], &["action", "kind", "name", "why", "consequence"]);
    for (args, kind) in [
        (&["get", "services"][..], "ServiceList"),
        (&["get", "instances"], "InstanceList"),
        (&["get", "edges"], "EdgeList"),
        (&["get", "routes"], "RouteList"),
        (&["endpoint", "ls"], "EndpointList"),
        (&["rollout", "history"], "RevisionList"),
        (&["events"], "EventList"),
    ] {
        let list = system.json(args);
        assert_eq!((&list["apiVersion"], &list["kind"]), (&"meshctl/v1".into(), &kind.into()), "{args:?}");
        assert!(list["items"].is_array(), "{list:#}");
    }
    let names = system.run(&["get", "services", "-o", "name"]).expect(0);
    assert_eq!(names.stdout.trim(), "service/hello");
    let yaml = system.run(&["get", "svc/hello", "-o", "yaml"]).expect(0);
    yaml.says("name: hello");
    let path = system.run(&["get", "svc/hello", "-o", "jsonpath={.state}"]).expect(0);
    assert_eq!(path.stdout.trim(), "ready");
}

fn expect_fields(value: &Value, fields: &[&str]) {
    for field in fields {
        assert!(value.get(field).is_some(), "no {field} in {value:#}");
    }
}

#[test]
fn exit_statuses_are_those_of_the_table() {
    let system = System::new();
    let file = system.file(HELLO);
    system.run(&["status"]).expect(69);
    system.run(&["no-such-verb"]).expect(2);
    system.run(&["validate", "no-such-file.yaml"]).expect(3);
    system.run(&["validate", &file]).expect(0);
    system.apply(HELLO);
    system.run(&["get", "svc/nobody"]).expect(3);
    system.run(&["describe", "svc/nobody"]).expect(3);
    system.run(&["logs", "nobody"]).expect(3);
    let unready = HELLO.replace("builtin: hello,", "builtin: hello, env: { KNOBS: '{\"notReady\": true}' },");
    system.run(&["apply", &system.file(&unready), "--yes", "--timeout", "1s"]).expect(5);
}

#[test]
fn the_schema_that_is_checked_in_is_the_one_that_is_printed() {
    let system = System::new();
    let printed = system.run(&["schema"]).expect(0).stdout;
    let file = repository().join("manifests/topology.schema.json");
    let kept = std::fs::read_to_string(&file).unwrap_or_else(|why| panic!("{}: {why}", file.display()));
    assert_eq!(printed.trim_end(), kept.trim_end(), "run: meshctl schema > manifests/topology.schema.json");
}

#[test]
fn the_document_of_the_api_that_is_checked_in_is_the_one_that_is_served() {
    let system = System::new();
    system.apply(HELLO);
    let served = system.api("GET", "/openapi.json", &Value::Null).json();
    let kept = std::fs::read_to_string(repository().join("control-plane/api/openapi.json")).expect("it is checked in");
    assert_eq!(served, serde_json::from_str::<Value>(&kept).expect("JSON"));
}

#[test]
fn shells_complete() {
    let system = System::new();
    for shell in ["bash", "zsh", "fish"] {
        let script = system.run(&["completion", shell]).expect(0);
        assert!(script.stdout.contains("meshctl"), "{script}");
    }
}
