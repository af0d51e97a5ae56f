//! The daemon may die at any moment: requests go on, the same processes are adopted, and what was begun is finished.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::Child;

use meshctl_tests::{Load, System, process, wait_until};
use rustix::process::Signal;
use serde_json::Value;

use crate::HELLO;

#[test]
fn killed_under_load_it_fails_no_request_and_adopts_what_runs() {
    let system = System::new();
    system.apply(HELLO);
    let before = system.all_pids();
    let load = Load::start(&system.url("/"), 8);
    load.pass(100);
    system.kill_daemon();
    load.pass(300);
    system.run(&["status"]).expect(69);
    system.apply(HELLO);
    load.pass(100);
    assert_eq!(system.all_pids(), before);
    load.finish().expect_no_failure();
    assert_eq!(instances_running(&system), BTreeMap::from([("hello".into(), 2)]));
    system.down();
}

#[test]
fn an_instance_that_died_while_it_was_away_is_replaced() {
    let system = System::new();
    system.apply(HELLO);
    let before = system.pids("hello");
    system.kill_daemon();
    process::kill(before[0]);
    system.run(&["apply", &system.file(HELLO), "--yes"]).expect(0);
    wait_until("the system to be ready", || system.status()["ready"] == true);
    let after = system.pids("hello");
    assert_eq!(after.len(), 2);
    assert!(after.contains(&before[1]) && !after.contains(&before[0]), "{before:?} {after:?}");
}

/// A system can always be stopped, also when nobody can read any more what it consists of.
#[test]
fn with_a_damaged_state_down_still_leaves_nothing() {
    let system = System::new();
    system.apply(HELLO);
    system.kill_daemon();
    for name in ["state.db", "state.db-wal", "state.db-shm"] {
        std::fs::write(system.state_dir().join(name), [7; 20_000]).expect("the state is damaged");
    }
    assert_eq!(instances_running(&system), BTreeMap::from([("hello".into(), 2)]));
    system.run(&["down"]).expect(0);
    assert_eq!(instances_running(&system), BTreeMap::new());
    system.apply(HELLO);
    system.down();
}

/// Each step of the first apply, and then each step of a change, is where the daemon dies once. Started again it ends where
/// an undisturbed run ends.
#[test]
fn killed_at_any_step_of_the_first_apply_it_ends_as_if_undisturbed() {
    let steps = crash_at_every_step(|_| ());
    assert!(steps > 2, "only {steps} steps were disturbed");
}

#[test]
fn killed_at_any_step_of_a_change_it_ends_as_if_undisturbed() {
    const BEFORE: &str = "
services:
  alpha: { builtin: hello, replicas: 2, env: { COLOUR: red }, health: { http: /healthz } }
  gone: { builtin: hello, health: { http: /healthz } }
routes:
  - { path: '/alpha/*', to: alpha }
  - { path: '/gone/*', to: gone }
";
    let steps = crash_at_every_step(|system| {
        system.apply(BEFORE);
        system.kill_daemon();
    });
    assert!(steps > 2, "only {steps} steps were disturbed");
}

const AIM: &str = "
services:
  alpha: { builtin: hello, replicas: 2, env: { COLOUR: blue }, health: { http: /healthz } }
  beta: { builtin: hello, dependsOn: [alpha], health: { http: /healthz } }
routes:
  - { path: '/alpha/*', to: alpha }
  - { path: '/beta/*', to: beta }
";

fn crash_at_every_step(prepare: impl Fn(&System)) -> u32 {
    for step in 1..100 {
        let mut system = System::new();
        prepare(&system);
        system.set("MESHCTL_CRASH_AT", Some(&step.to_string()));
        let file = system.file(AIM);
        let apply = system.start(&["apply", &file, "--yes"]);
        system.set("MESHCTL_CRASH_AT", None);
        let (apply, survived) = end_of_apply_or_daemon(&system, apply);
        // The daemon alone, without another apply: what was begun is finished by itself, and the apply that is still there
        // tells so. What was never accepted is not begun; then the system is what it was before.
        let daemon = (!survived).then(|| system.start(&["daemon"]));
        let ran = system.end_of(apply);
        if let Some(mut daemon) = daemon {
            wait_until("the daemon to answer", || system.run(&["status"]).status != 69);
            // A daemon that dies between accepting and answering leaves its caller unsure, who says just that.
            let unsure = ran.status == 69 && ran.stderr.contains("broke off");
            assert!(unsure || (ran.status == 0) == accepted(&system), "the daemon died at step {step}: {ran}");
            if ran.status == 0 {
                assert!(as_it_should_be(&system), "{ran} {:#}", system.status());
            }
            process::signal(daemon.id(), Signal::KILL);
            daemon.wait().expect("the daemon's end");
        }
        system.apply(AIM);
        assert!(as_it_should_be(&system), "{:#}", system.status());
        let expected = BTreeMap::from([("alpha".to_owned(), 2), ("beta".to_owned(), 1)]);
        assert_eq!(instances_running(&system), expected, "after the daemon died at step {step}");
        assert_eq!((system.get("/alpha/x").status, system.get("/beta/x").status), (200, 200));
        assert_eq!(system.get("/gone/x").status, 404);
        if survived {
            ran.expect(0);
            // It would die at a later step: the next one, which adopts, will not.
            system.kill_daemon();
            system.apply(AIM);
        }
        system.down();
        if survived {
            return step - 1;
        }
    }
    panic!("an apply of two services has no hundred steps");
}

/// Returns when the apply has ended, or the daemon that it started; and whether the daemon lives on.
fn end_of_apply_or_daemon(system: &System, mut apply: Child) -> (Child, bool) {
    let mut seen = false;
    wait_until("the apply or the daemon to end", || {
        let runs = system.daemon_pid().is_some();
        seen |= runs;
        (seen && !runs) || apply.try_wait().expect("a child of ours").is_some()
    });
    (apply, system.daemon_pid().is_some())
}

/// Whether the aim was saved: its service `beta` is wanted.
fn accepted(system: &System) -> bool {
    system.status()["items"].as_array().into_iter().flatten().any(|service| service["name"] == "beta")
}

fn as_it_should_be(system: &System) -> bool {
    let ran = system.run(&["status", "-o", "json"]);
    if ran.status == 69 {
        return false;
    }
    let status: Value = ran.json();
    let names: Vec<&Value> = status["items"].as_array().into_iter().flatten().map(|service| &service["name"]).collect();
    status["ready"] == true && names == ["alpha", "beta"]
}

/// How many instances really run, by service: counted from the kernel, whatever the daemon believes.
fn instances_running(system: &System) -> BTreeMap<String, usize> {
    let mut counts: BTreeMap<String, std::collections::BTreeSet<String>> = BTreeMap::new();
    let mut pids: BTreeMap<String, usize> = BTreeMap::new();
    for pid in system.processes() {
        let command = process::command_line(pid);
        if !command.contains(" service ") {
            continue;
        }
        let environ = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let variable = |name: &str| {
            environ.split(|byte| *byte == 0).find_map(|variable| {
                Some(String::from_utf8_lossy(variable).strip_prefix(name)?.strip_prefix('=')?.to_owned())
            })
        };
        if let (Some(service), Some(instance)) = (variable("MESHCTL_SERVICE"), variable("MESHCTL_INSTANCE")) {
            counts.entry(service.clone()).or_default().insert(instance);
            *pids.entry(service).or_default() += 1;
        }
    }
    // One process is one instance: no instance runs twice.
    assert!(
        pids.iter().all(|(service, count)| counts[service].len() == *count),
        "an instance runs twice: {pids:?} {counts:?}"
    );
    pids
}

#[test]
fn its_socket_is_for_its_owner_only() {
    let system = System::new();
    system.apply(HELLO);
    let mode = std::fs::metadata(system.state_dir().join("meshctl.sock")).expect("the socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_newer_binary_takes_over_without_a_failed_request() {
    let mut system = System::new();
    system.apply(HELLO);
    let instances = system.pids("hello");
    // Another build is another file; a byte after the end of an executable changes nothing about what it does.
    let newer = system.folder().join("meshctl");
    std::fs::copy(system.binary(), &newer).expect("a copy of the binary");
    std::fs::OpenOptions::new()
        .append(true)
        .open(&newer)
        .and_then(|mut file| file.write_all(b"\n"))
        .expect("one more byte");

    let load = Load::start(&system.url("/"), 8);
    load.pass(100);
    system.use_binary(&newer);
    system.apply(HELLO);
    load.pass(200);
    load.finish().expect_no_failure();
    let runs = |pid| process::executable(pid).is_some_and(|executable| executable == newer);
    assert!(system.daemon_pid().is_some_and(runs), "the daemon is the newer one");
    assert!(runs(system.gateway_pid()), "the gateway is the newer one");
    assert_eq!(system.pids("hello").len(), instances.len());
}

#[test]
fn events_are_told_in_order_and_from_the_beginning() {
    let system = System::new();
    system.apply(HELLO);
    let events = system.json(&["events"]);
    let ids: Vec<u64> = events["items"]
        .as_array()
        .expect("items")
        .iter()
        .map(|event| {
            event["id"].as_str().and_then(|id| id.parse().ok()).unwrap_or_else(|| panic!("the id of {event:#}"))
        })
        .collect();
    assert!(!ids.is_empty() && ids.is_sorted_by(|a, b| a < b), "{ids:?}");
    let ready = |event: &&Value| event["type"] == "instance.ready";
    assert_eq!(events["items"].as_array().expect("items").iter().filter(ready).count(), 2, "{events:#}");
}
