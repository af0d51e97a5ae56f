//! Secrets go into the processes that need them, and are shown nowhere.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use meshctl_tests::{System, process, wait_until};
use serde_json::Value;

/// In a file.
const IN_FILE: &str = "canary-in-a-file-5f1c";
const NEXT_IN_FILE: &str = "canary-in-a-file-77aa";
/// In the operator's environment.
const IN_VARIABLE: &str = "canary-in-a-variable-93be";
const NEXT_IN_VARIABLE: &str = "canary-in-a-variable-c20d";

const TOPOLOGY: &str = "
services:
  keeper:
    command: [sh, -c, 'test -n \"$FILE_SECRET\" && test -n \"$VARIABLE_SECRET\" && echo both are here; exec sleep 3600']
    port: none
    health: { tcp: false }
    env: { FILE_SECRET: { file: secret }, VARIABLE_SECRET: \"${CANARY}\" }
";

#[test]
fn a_secret_is_in_no_output_argument_log_or_answer() {
    let mut system = System::new().with("CANARY", IN_VARIABLE);
    let secret = system.folder().join("secret");
    std::fs::write(&secret, IN_FILE).expect("a secret");
    let file = system.file(TOPOLOGY);
    let saved = system.folder().join("saved.plan").to_string_lossy().into_owned();
    let mut shown = vec![system.run(&["plan", &file]), system.run(&["plan", &file, "-o", "json"])];
    shown.push(system.run(&["diff", &file]));
    shown.push(system.apply(TOPOLOGY));
    wait_until("both to have arrived", || system.run(&["logs", "keeper"]).stdout.contains("both are here"));

    // A change of each is shown as a change and not as what it is.
    std::fs::write(&secret, NEXT_IN_FILE).expect("another secret");
    system.set("CANARY", Some(NEXT_IN_VARIABLE));
    let changed = system.run(&["plan", &file, "--out", &saved]);
    changed.says("VARIABLE_SECRET");
    shown.push(changed);
    shown.push(system.run(&["diff", &file]));
    shown.push(system.run(&["diff", &file, "-o", "json"]));
    shown.push(system.run(&["restart", "keeper", "--yes"]));
    for args in [
        &["status"][..],
        &["describe", "svc/keeper"],
        &["describe", "inst/keeper-1"],
        &["get", "svc,inst,rev"],
        &["events"],
        &["logs", "keeper"],
        &["rollout", "history"],
        &["check"],
    ] {
        shown.push(system.run(args));
        shown.push(system.run(&[args, &["-o", "json"]].concat()));
    }
    for ran in &shown {
        expect_none(&ran.stdout, &ran.line);
        expect_none(&ran.stderr, &ran.line);
    }
    for path in ["/v1/status", "/v1/services", "/v1/instances", "/v1/revisions", "/v1/events?after=0", "/v1/endpoints"]
    {
        expect_none(&String::from_utf8_lossy(&system.api("GET", path, &Value::Null).body), path);
    }
    for pid in system.processes() {
        expect_none(&process::command_line(pid), "the arguments of a process");
    }
    expect_none(&std::fs::read_to_string(system.state_dir().join("daemon.log")).expect("its log"), "daemon.log");
    // A file's secret is written down nowhere. What the environment gave is part of the topology, which is for its owner only.
    files(system.state_dir(), &mut |path, text| {
        assert!(![IN_FILE, NEXT_IN_FILE].iter().any(|canary| text.contains(canary)), "a secret in {}", path.display());
    });
    // A saved plan says what will be applied, values of variables included, wherever it is applied; so it is for its owner only.
    let mode = std::fs::metadata(&saved).expect("the saved plan").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let text = std::fs::read_to_string(&saved).expect("the saved plan");
    assert!(!text.contains(IN_FILE) && !text.contains(NEXT_IN_FILE), "{text}");
}

#[track_caller]
fn expect_none(text: &str, of: &str) {
    for canary in [IN_FILE, NEXT_IN_FILE, IN_VARIABLE, NEXT_IN_VARIABLE] {
        assert!(!text.contains(canary), "{canary} in {of}:\n{text}");
    }
}

fn files(folder: &Path, look: &mut impl FnMut(&Path, &str)) {
    for entry in std::fs::read_dir(folder).expect("a folder").filter_map(Result::ok) {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => files(&entry.path(), look),
            Ok(kind) if kind.is_file() => {
                let bytes = std::fs::read(entry.path()).unwrap_or_default();
                look(&entry.path(), &String::from_utf8_lossy(&bytes));
            }
            _ => {}
        }
    }
}
