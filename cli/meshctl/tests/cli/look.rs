//! Looking: tables, documents, names, and what goes wrong.

use serde_json::Value;

use crate::support::{Daemon, Ran, Script, command, ran};

fn daemon() -> Daemon {
    Daemon::play(Script::default())
}

#[test]
fn status_is_the_system_at_one_glance() {
    let Ran { status, stdout, stderr } = daemon().run(&["status"]);
    assert_eq!((status, stderr.as_str()), (0, ""));
    insta::assert_snapshot!(stdout, @r"
    shop   revision 3   not ready

    NAME        KIND      READY   STATE      RESTARTS   AGE   ADDRESS                        REASON
    inventory   builtin   1/2     degraded   0          40h   http://127.0.0.1:8080/orders   health check: connection refused on 127.0.0.1:20012
    orders      builtin   2/2     ready      0          40h   http://127.0.0.1:8080/orders

    GATEWAY     URL                     STATE   REVISION   PID    RESTARTS   AGE   REASON
    gateway-1   http://127.0.0.1:8080   ready   3          4100   0          40h
    ");
}

#[test]
fn lists_of_every_kind() {
    let daemon = daemon();
    let mut lists = String::new();
    for kind in ["svc", "inst", "rt", "edge", "ep", "gw", "ev", "cb"] {
        let ran = daemon.run(&["get", kind, "-o", "wide"]);
        assert_eq!(ran.status, 0, "{}", ran.stderr);
        lists.push_str(&format!("$ get {kind}\n{}\n\n", ran.stdout.trim_end()));
    }
    insta::assert_snapshot!(lists, @r"
    $ get svc
    NAME        KIND      READY   STATE      RESTARTS   AGE   ADDRESS                        REASON                                                PIDS        LABELS
    inventory   builtin   1/2     degraded   0          40h   http://127.0.0.1:8080/orders   health check: connection refused on 127.0.0.1:20012   4001,4002   team=commerce
    orders      builtin   2/2     ready      0          40h   http://127.0.0.1:8080/orders                                                         4001,4002   team=commerce

    $ get inst
    ID            SERVICE     STATE      PID    ADDRESS           RESTARTS   AGE   REASON                                                REVISION   IN STATE
    inventory-1   inventory   ready      4001   127.0.0.1:20011   0          40h                                                         3          30h
    inventory-2   inventory   starting   4002   127.0.0.1:20012   0          40h   health check: connection refused on 127.0.0.1:20012   3          30h
    orders-1      orders      ready      4001   127.0.0.1:20011   0          40h                                                         3          30h
    orders-2      orders      ready      4002   127.0.0.1:20012   0          40h                                                         3          30h

    $ get rt
    NAME               HOST   PATH           METHODS    TO       DEADLINE   RETRIES   ATTEMPT   HEADERS
    GET /inventory/*   -      /inventory/*   GET        orders   2s         2         500ms     -
    GET,POST /orders   -      /orders        GET,POST   orders   2s         2         500ms     -

    $ get edge
    NAME               BREAKER   REQUESTS   FAILURES   IN FLIGHT   P50      P99    DEADLINE   RETRIES   ATTEMPT   URL
    gateway:orders     closed    120        2          1           1.23ms   57ms   2s         2         500ms     -
    orders:inventory   open      0          2          1           -        -      2s         2         500ms     -
    orders:mailer      unknown   0          2          1           -        -      2s         2         500ms     -

    $ get ep
    ID            SERVICE     ADDRESS           ROUTING   SINCE   SOURCE     REASON                             LAST CHECK   LEASE ENDS IN
    inventory-2   inventory   127.0.0.1:20012   out       30h     instance   health check: connection refused   20h          -

    $ get gw
    GATEWAY     URL                     STATE   REVISION   PID    RESTARTS   AGE   REASON   GENERATION   VERSION   METRICS
    gateway-1   http://127.0.0.1:8080   ready   3          4100   0          40h            12           0.1.0     http://127.0.0.1:20001/metrics

    $ get ev
    ID   AGE   SEVERITY   TYPE             SUBJECT             MESSAGE
    9    20h   info       instance.ready   instance/orders-1   orders-1 is ready

    $ get cb
    EDGE               STATE        SINCE   BY    ENDS IN   GATEWAYS   REASON                                REQUESTS/S   REFUSED/S
    gateway:orders     closed       30h     -     -         2/2                                              12.5         0
    orders:inventory   open         30h     -     -         2/2        12 of 20 requests failed within 10s   12.5         0
    orders:mailer      unknown      30h     -     -         2/2                                              12.5         0
    orders:prices      forcedOpen   30h     ann   29h       1/2        prices is being migrated              12.5         0
    ");
}

#[test]
fn documents_keep_their_form() {
    let daemon = daemon();
    let json = |words: &[&str]| -> Value {
        let ran = daemon.run(words);
        serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{words:?}: {error}: {}", ran.stderr))
    };
    let status = json(&["status", "-o", "json"]);
    assert_eq!((&status["revision"], &status["ready"]), (&3.into(), &false.into()));
    assert_eq!(status["items"][1]["instances"][0]["pid"], 4001);
    let list = json(&["get", "services", "-o", "json"]);
    assert_eq!((list["kind"].as_str(), list["items"][0]["kind"].as_str()), (Some("ServiceList"), Some("builtin")));
    let one = json(&["get", "svc/orders", "-o", "json"]);
    assert_eq!(
        (one["kind"].as_str(), one["runs"].as_str(), one["name"].as_str()),
        (Some("Service"), Some("builtin"), Some("orders"))
    );
    let all = json(&["get", "svc,gw", "-o", "json"]);
    assert_eq!((all["kind"].as_str(), all["items"].as_array().map(Vec::len)), (Some("List"), Some(3)));
    let breakers = json(&["breaker", "ls", "-o", "json"]);
    let open = &breakers["items"][1];
    assert_eq!((open["name"].as_str(), open["state"].as_str()), (open["edge"].as_str(), Some("open")));
    assert_eq!((open["acknowledged"].as_u64(), open["instances"].as_u64()), (Some(2), Some(2)));
    assert_eq!(json(&["registry", "ls", "-o", "json"])["index"], 7);
}

#[test]
fn a_shown_plan_does_not_tell_the_variables_of_its_topology() {
    let daemon = daemon();
    let shop = shop();
    let file = shop.path().to_str().expect("text");
    for words in
        [["plan", file].as_slice(), &["diff", file], &["apply", file, "--dry-run"], &["scale", "orders=3", "--dry-run"]]
    {
        for format in ["table", "wide", "json", "yaml", "name", "jsonpath={$}"] {
            let ran = daemon.run(&[words, &["-o", format]].concat());
            assert!(ran.stdout.contains("orders"), "{words:?} {format}: {}", ran.stderr);
            let said = ran.stdout + &ran.stderr;
            assert!(!said.contains("SECRET") && !said.contains("hidden"), "{words:?} {format}: {said}");
        }
    }
}

#[test]
fn scripts_take_what_they_need() {
    let daemon = daemon();
    let out = |words: &[&str]| daemon.run(words).stdout;
    assert_eq!(out(&["get", "svc", "-o", "name"]), "service/inventory\nservice/orders\n");
    assert_eq!(out(&["get", "svc", "-o", "jsonpath={.items[*].name}"]), "inventory orders\n");
    assert_eq!(out(&["get", "svc/orders", "-o", "jsonpath={.instances[*].pid}"]), "4001 4002\n");
    assert_eq!(
        out(&["get", "edges", "--sort-by", ".requests", "-o", "name"]),
        "edge/orders:inventory\nedge/orders:mailer\nedge/gateway:orders\n"
    );
    assert!(out(&["status", "-o", "yaml"]).starts_with("apiVersion: meshctl/v1\nkind: Status\n"));
    assert!(out(&["get", "svc", "--no-headers"]).starts_with("inventory"));
    assert!(out(&["describe", "svc/orders"]).contains("Service id: orders-id"));
}

#[test]
fn what_is_missing_is_named_with_what_is_near() {
    let daemon = daemon();
    let failed = |words: &[&str]| {
        let ran = daemon.run(words);
        assert_eq!(ran.stdout, "", "{words:?}");
        (ran.status, ran.stderr)
    };
    assert_eq!(
        failed(&["get", "svc/order"]),
        (3, "error: there is no service `order`\n  hint: did you mean `orders`?\n".to_owned())
    );
    assert_eq!(
        failed(&["get", "gatways"]),
        (3, "error: there is no kind `gatways`\n  hint: did you mean `gateways`?\n".to_owned())
    );
    assert_eq!(failed(&["logs", "mailer"]).0, 3);
    assert_eq!(failed(&["scale", "ordrs=2"]).0, 3);
    assert_eq!(failed(&["get", "svc", "-o", "csv"]).0, 2);
    assert_eq!(failed(&["scale", "orders"]).0, 2);
    assert_eq!(failed(&["logs", "--since", "yesterday"]).0, 2);
    assert_eq!(failed(&["status", "--sort-by"]).0, 2);
}

#[test]
fn without_a_daemon_it_says_so() {
    let dir = tempfile::tempdir().expect("a folder");
    let ran = ran(command(dir.path(), &["status"]).output().expect("meshctl runs"));
    assert_eq!((ran.status, ran.stdout.as_str()), (69, ""));
    assert!(
        ran.stderr.contains("no daemon answers at") && ran.stderr.contains("hint: start a system"),
        "{}",
        ran.stderr
    );
}

#[test]
fn a_daemon_of_another_build_is_worth_a_warning() {
    let daemon = Daemon::play(Script { version: Some(("0.1.0", "other")), ..Script::default() });
    let ran = daemon.run(&["status", "-o", "name"]);
    assert_eq!(ran.stdout, "service/inventory\nservice/orders\ngateway/gateway-1\n");
    assert!(ran.stderr.contains("warning: the daemon") && ran.stderr.contains("another build"), "{}", ran.stderr);
    assert_eq!(daemon.run(&["status", "-q"]).stderr, "");
    assert_eq!(daemon.run(&["version", "-o", "jsonpath={.skew}"]).stdout, "true\n");
}

#[test]
fn logs_name_their_instance_and_carry_no_escapes_in_a_pipe() {
    let ran = daemon().run(&["logs", "orders"]);
    assert_eq!((ran.status, ran.stdout.as_str()), (0, "orders-1 | listening\norders-2 | red\n"));
    let ran = daemon().run(&["logs", "-o", "json"]);
    assert_eq!(ran.stdout.lines().count(), 2);
    assert!(ran.stdout.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()));
}

#[test]
fn colours_are_for_those_who_want_them() {
    let daemon = daemon();
    let colours = |words: &[&str], variable: Option<(&str, &str)>| {
        let output = daemon.command(words).envs(variable).output().expect("meshctl runs");
        ran(output).stdout.contains('\u{1b}')
    };
    assert!(!colours(&["status"], None), "a pipe");
    assert!(colours(&["status", "--color", "always"], None));
    let breakers = daemon.run(&["get", "cb", "--color", "always"]).stdout;
    assert!(breakers.contains("\u{1b}[38;5;3munknown"), "what nobody knows is yellow: {breakers:?}");
    assert!(colours(&["status"], Some(("CLICOLOR_FORCE", "1"))));
    assert!(!colours(&["status", "--color", "never"], Some(("CLICOLOR_FORCE", "1"))));
    assert!(!colours(&["status"], Some(("NO_COLOR", "1"))));
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    use std::io::Read;
    use std::process::Stdio;
    let daemon = daemon();
    let mut child = daemon
        .command(&["completion", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("meshctl runs");
    drop(child.stdout.take());
    let mut stderr = String::new();
    child.stderr.take().expect("piped").read_to_string(&mut stderr).expect("text");
    assert_eq!((child.wait().expect("ended").code(), stderr.as_str()), (Some(0), ""));
}

#[test]
fn check_says_what_is_wrong_and_what_to_do() {
    let daemon = daemon();
    let ran = daemon.run(&["check"]);
    assert_eq!(ran.status, 1, "inventory is degraded");
    assert!(ran.stdout.is_ascii(), "a pipe gets ASCII: {}", ran.stdout);
    assert!(ran.stdout.contains("XX inventory has 1 of 2 instances ready"), "{}", ran.stdout);
    assert!(ran.stdout.contains("`meshctl logs inventory`"), "{}", ran.stdout);
    let ran = daemon.run(&["check", "-o", "jsonpath={.groups[*].name}"]);
    assert_eq!(ran.stdout, "meshctl machine daemon services gateways traces\n");
}

#[test]
fn completion_knows_the_services_that_run() {
    let daemon = daemon();
    let mut command = daemon.command(&["--", "meshctl", "restart", ""]);
    let output = command.envs([("COMPLETE", "bash"), ("_CLAP_COMPLETE_INDEX", "2"), ("_CLAP_IFS", "\n")]).output();
    let ran = ran(output.expect("meshctl runs"));
    let words: Vec<&str> = ran.stdout.lines().collect();
    assert!(words.contains(&"orders") && words.contains(&"inventory"), "{words:?} {}", ran.stderr);
}

fn shop() -> tempfile::NamedTempFile {
    let file = tempfile::Builder::new().suffix(".yaml").tempfile().expect("a file");
    std::fs::write(file.path(), "services:\n  orders: { builtin: orders }\n").expect("written");
    file
}

#[test]
fn what_sorts_nothing_is_refused() {
    let ran = daemon().run(&["get", "instances", "--sort-by", "nope"]);
    assert_eq!(ran.status, 2);
    assert!(ran.stderr.contains("no instance has `nope` to sort by"), "{}", ran.stderr);
    assert!(ran.stderr.contains(".restarts"), "{}", ran.stderr);
}

#[test]
fn everything_in_a_list_has_a_name() {
    let daemon = daemon();
    let kinds = [
        ("instances", "inventory-1 "),
        ("endpoints", "inventory-2"),
        ("gateways", "gateway-1"),
        ("edges", "gateway:orders "),
    ];
    for (kind, begins) in kinds {
        let ran = daemon.run(&["get", kind, "-o", "jsonpath={.items[*].name}"]);
        assert!(ran.status == 0 && ran.stdout.starts_with(begins), "{kind}: {} {}", ran.stdout, ran.stderr);
    }
    let ran = daemon.run(&["registry", "ls", "-o", "jsonpath={.index} {.items[*].name}"]);
    assert_eq!(ran.stdout, "7 inventory-2\n");
    for command in ["check", "version"] {
        assert_eq!(daemon.run(&[command, "-o", "name"]).status, 2, "{command} lists nothing");
    }
}

#[test]
fn what_a_topology_does_not_find_is_a_warning() {
    let dir = tempfile::tempdir().expect("a folder");
    let topology = "apiVersion: meshctl/v1\nkind: Topology\nservices:\n  web:\n    command: [./doesnotexist]\n    \
                    env: { KEY: { file: key.txt } }\n  shell:\n    command: [/bin/sh]\n  words:\n    command: [./words.yaml]\n";
    let path = dir.path().join("words.yaml");
    std::fs::write(&path, topology).expect("written");
    for word in ["validate", "plan"] {
        let words = [word, path.to_str().expect("text")];
        let ran = ran(command(&dir.path().join("state"), &words).output().expect("meshctl runs"));
        assert_eq!(ran.status, 0, "{word}: {}", ran.stderr);
        let warnings: Vec<&str> = ran.stderr.lines().filter(|line| line.starts_with("warning: service")).collect();
        let key = dir.path().join("key.txt");
        assert_eq!(
            warnings,
            [
                "warning: service web: program ./doesnotexist does not exist",
                &format!("warning: service web: file {} of KEY does not exist", key.display()),
                "warning: service words: program ./words.yaml is not executable",
            ]
        );
    }
}

#[test]
fn usage_names_only_what_an_operator_needs() {
    let dir = tempfile::tempdir().expect("a folder");
    let usage = ran(command(dir.path(), &["-q"]).output().expect("meshctl runs"));
    assert_eq!(usage.status, 2);
    assert!(usage.stderr.contains("apply") && !usage.stderr.contains("gateway"), "{}", usage.stderr);
    let usage = ran(command(dir.path(), &["scale"]).output().expect("meshctl runs"));
    assert!(usage.stderr.contains("Usage:") && !usage.stderr.contains("--state-dir"), "{}", usage.stderr);
}
