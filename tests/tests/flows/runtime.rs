//! Processes: how they end, how often they are started again, what is kept of their output.

use std::path::Path;

use meshctl_tests::{Load, System, process, wait_for, wait_until};

use crate::HELLO;

#[test]
fn all_descendants_of_an_instance_end_with_it() {
    let system = System::new();
    system.apply(
        "
services:
  family:
    command: [sh, -c, 'sleep 3600 & (sleep 3601 & wait) & setsid sleep 3602 & trap : TERM; wait; wait']
    port: none
    health: { tcp: false }
    stop: { grace: 1s }
",
    );
    let sleeping =
        || system.processes().into_iter().filter(|pid| process::command_line(*pid).starts_with("sleep 360")).count();
    wait_until("the whole family to run", || sleeping() == 3);
    system.run(&["restart", "family", "--yes"]).expect(0);
    wait_until("one family to run again, and not two", || sleeping() == 3);
    process::kill(system.pids("family")[0]);
    wait_until("the family to be started again", || {
        system.instances("family").iter().any(|i| i["restarts"].as_u64() > Some(0))
    });
    wait_until("one family to run after the crash", || sleeping() == 3);
    system.down();
}

#[test]
fn one_that_ignores_sigterm_is_killed_after_its_grace() {
    let system = System::new();
    system.apply(
        "
services:
  stubborn: { command: [sh, -c, 'trap \"\" TERM; while :; do sleep 1; done'], port: none, health: { tcp: false }, stop: { grace: 500ms } }
",
    );
    system.down();
}

#[test]
fn requests_under_way_are_finished_when_an_instance_stops() {
    let system = System::new();
    let patient = "defaults: { deadline: 20s, attemptTimeout: 20s }\n";
    system.apply(&format!("{}{patient}", HELLO.replace("replicas: 2", "replicas: 1")));
    let url = system.url("/slow?ms=1500");
    let request = std::thread::spawn(move || meshctl_tests::get(&url));
    wait_until("the request to be under way", || {
        let edges = system.json(&["get", "edges"]);
        edges["items"].as_array().into_iter().flatten().any(|edge| edge["inFlight"].as_u64() > Some(0))
    });
    system.run(&["scale", "hello=0", "--yes"]).expect(0);
    let answer = request.join().expect("no panic").expect("an answer");
    assert_eq!(answer.status, 200);
}

#[test]
fn a_crash_loop_is_shown() {
    let system = System::new();
    system
        .try_apply("\nservices:\n  crashing: { command: [sh, -c, 'echo once more; exit 7'], startTimeout: 2s }\n")
        .expect(1);
    let instance = wait_for("the crash loop to be shown", || {
        system.instances("crashing").into_iter().find(|instance| instance["state"] == "crashLoop")
    });
    assert!(instance["restarts"].as_u64() >= Some(2), "{instance:#}");
    assert!(instance["reason"].as_str().is_some_and(|reason| reason.contains('7')), "{instance:#}");
    system.run(&["status"]).says("crashing");
    system.run(&["logs", "crashing"]).expect(0).says("once more");
}

#[test]
fn instances_that_are_killed_under_load_are_replaced_and_fail_no_request() {
    let system = System::new();
    system.apply(HELLO);
    let load = Load::start(&system.url("/"), 8);
    load.pass(100);
    for _ in 0..3 {
        let before = system.pids("hello");
        process::kill(before[0]);
        load.pass(50);
        wait_until("another to be ready in its place", || {
            let now = system.pids("hello");
            now.len() == 2 && !now.contains(&before[0]) && system.status()["ready"] == true
        });
    }
    // A GET may be repeated, so even the ones that were cut short are answered.
    load.finish().expect_no_failure();
}

#[test]
fn what_is_kept_of_the_output_is_bounded() {
    let system = System::new();
    let script = "yes 0123456789012345678901234567890123456789 | head -c 20000000; echo the last line; exec sleep 3600";
    system.apply(&format!(
        "
services:
  loud: {{ command: [sh, -c, '{script}'], port: none, health: {{ tcp: false }}, logs: {{ maxSize: 64KiB, files: 2 }} }}
"
    ));
    wait_until("the last line", || {
        system.run(&["logs", "loud", "--grep", "the last line"]).stdout.contains("the last line")
    });
    let kept = bytes_beneath(system.state_dir());
    assert!(kept < 2_000_000, "{kept} bytes are kept of 20 MB, with 128 KiB allowed for them");
    let lines = system.run(&["logs", "loud"]).expect(0);
    assert!(lines.stdout.trim_end().ends_with("the last line"), "the newest is kept, the oldest goes");
}

#[test]
fn a_program_gets_its_environment_and_its_folder() {
    let system = System::new();
    std::fs::write(system.folder().join("secret"), "from a file\n").expect("a secret");
    std::fs::create_dir(system.folder().join("work")).expect("a folder");
    let script = "echo port=$PORT in=$(basename $PWD) plain=$PLAIN secret=$SECRET number=$1 me=$MESHCTL_SERVICE; exec sleep 3600";
    system.apply(&format!(
        "
services:
  told:
    command: [sh, -c, '{script}', sh, '{{{{port}}}}']
    port: {}
    workingDir: ./work
    env: {{ PLAIN: 'a b', SECRET: {{ file: secret }} }}
    health: {{ tcp: false }}
",
        system.port(5)
    ));
    let line = format!("port={0} in=work plain=a b secret=from a file number={0} me=told", system.port(5));
    wait_until("the line", || system.run(&["logs", "told"]).stdout.contains(&line));
    let shown = system.run(&["describe", "svc/told", "-o", "json"]);
    assert!(!shown.stdout.contains("from a file"), "a secret is never shown: {shown}");
}

#[test]
fn the_limit_of_open_files_holds_for_descendants_too() {
    let system = System::new();
    let script = "(ulimit -S -n; ulimit -H -n) | tr \"\\n\" \" \"; echo are the limits; exec sleep 3600";
    system.apply(&format!(
        "
services:
  bounded: {{ command: [sh, -c, '{script}'], port: none, health: {{ tcp: false }}, resources: {{ openFiles: 77 }} }}
"
    ));
    wait_until("the limits", || system.run(&["logs", "bounded"]).stdout.contains("are the limits"));
    system.run(&["logs", "bounded"]).says("77 77 are the limits");
}

fn bytes_beneath(folder: &Path) -> u64 {
    std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => bytes_beneath(&entry.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .sum()
}
