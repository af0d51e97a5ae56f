//! Dead letters: looking, deciding, and replaying them.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use serde_json::{Value, json};

use crate::fixtures::{letter, replay};
use crate::support::{Daemon, Ran, Script};

fn daemon() -> Daemon {
    Daemon::play(Script::default())
}

/// A daemon whose replay is seen so, one look after another.
fn replaying(looks: Vec<Value>) -> Daemon {
    Daemon::play(Script::default().but("GET /v1/replays/r-1", looks.into_iter().map(|look| (200, look))))
}

#[test]
fn dead_letters_are_listed_and_counted() {
    let daemon = daemon();
    let mut lists = String::new();
    for words in [&["dlq", "ls"][..], &["dlq", "ls", "--group-by", "fingerprint"], &["audit"], &["replay", "ls"]] {
        let ran = daemon.run(words);
        assert_eq!((ran.status, ran.stderr.as_str()), (0, ""), "{words:?}");
        lists.push_str(&format!("$ {}\n{}\n\n", words.join(" "), ran.stdout.trim_end()));
    }
    insta::assert_snapshot!(lists, @r"
    $ dlq ls
    ID     AGE   SUBSCRIPTION           REASON      STATE   ERROR
    dl-2   20h   order.placed/billing   exhausted   dead    POST /events/order-placed answered 500: out of stock
    dl-1   20h   order.placed/billing   exhausted   dead    POST /events/order-placed answered 500: out of stock

    $ dlq ls --group-by fingerprint
    FINGERPRINT   COUNT   FIRST   LAST   EXAMPLE   ERROR
    9f2c          2       30h     20h    dl-2      POST /events/order-placed answered 500

    $ audit
    ID   AGE   BY    ACTION              SUBJECT      OUTCOME   REASON
    1    20h   ada   deadletter.replay   replay/r-1   done      billing 1.4 is out

    $ replay ls
    REPLAY   STATE   PROCESSED   FAILED   PENDING   SELECTED   ISSUED   AGE   BY    REASON
    r-1      done    1           1        0         2          2        20h   ada
    ");
    assert_eq!(daemon.run(&["dlq", "ls", "-o", "name"]).stdout, "deadletter/dl-2\ndeadletter/dl-1\n");
    let ran = daemon.run(&["dlq", "ls", "--limit", "2"]);
    assert!(ran.stderr.contains("the latest 2; --limit 0 shows all"), "{}", ran.stderr);
    assert_eq!(daemon.run(&["dlq", "ls", "--group-by", "colour"]).status, 2);
    let json = daemon.run(&["dlq", "ls", "--group-by", "reason", "-o", "jsonpath={.items[0].count}"]);
    assert_eq!(json.stdout, "2\n", "{}", json.stderr);
}

#[test]
fn a_filter_that_is_not_understood_is_shown_with_its_place() {
    let daemon = daemon();
    let Ran { status, stdout, stderr } = daemon.run(&["dlq", "ls", "--where", "age > 1h and reson = poison"]);
    assert_eq!((status, stdout.as_str()), (2, ""));
    insta::assert_snapshot!(stderr, @r"
    error[filter]: there is no field `reson`
     --> --where:1:14
      |
    1 | age > 1h and reson = poison
      |              ^^^^^
      |
      = help: did you mean `reason`?

    error: the filter is not understood
      hint: `meshctl dlq ls --help` shows the filter language
    ");
    for (filter, complaint) in [("age >", "--where:1:6"), ("(", "--where:1:2"), ("reason = ripe", "--where:1:10")] {
        let ran = daemon.run(&["dlq", "discard", "--yes", "--where", filter]);
        assert_eq!((ran.status, ran.stderr.contains(complaint)), (2, true), "{filter}: {}", ran.stderr);
    }
    assert_eq!(daemon.asked(), [], "and nothing is changed");
}

#[test]
fn a_dead_letter_is_shown_whole() {
    let daemon = daemon();
    let ran = daemon.run(&["dlq", "show", "dl-1"]);
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
    let page: String =
        ran.stdout.lines().filter(|line| !line.contains("ago)")).map(|line| format!("{line}\n")).collect();
    insta::assert_snapshot!(page, @r#"
    deadletter/dl-1
      subscription: order.placed/billing
      state:        dead
      reason:       exhausted (refused)
      error:        POST /events/order-placed answered 500: out of stock
      fingerprint:  9f2c
      message:      m-1
      type:         order.placed
      key:          o-1
      trace:        0af7651916cd43dd8448eb211c80319c

    2 attempts
      1   2026-11-23T10:00:00.120Z  refused 500 after 12ms
          POST /events/order-placed answered 500: out of stock
      2   2026-11-23T10:00:00.120Z  timeout after 12ms
          POST /events/order-placed answered 500: out of stock

    headers
      ce-id: e-1
      content-type: application/json
      x-odd: a [2Jb

    payload (17B, application/json)
      {
        "orderId": "o-1"
      }
    "#);
    let binary = daemon.run(&["dlq", "show", "deadletter/dl-2"]).stdout;
    assert!(binary.contains("  00000000  00 01 02 1b 5b 32 4a 1b"), "{binary}");
    assert!(!binary.contains('\u{1b}'), "no header of a stranger moves the cursor");
    assert!(daemon.run(&["dlq", "show", "dl-1", "--as", "hex"]).stdout.contains("|{\"orderId\":\"o-1\"|"));
    let ran = daemon.run(&["dlq", "show", "dl-2", "--as", "json"]);
    assert_eq!((ran.status, ran.stderr.contains("(8 bytes) is not JSON")), (1, true), "{}", ran.stderr);
    assert_eq!(daemon.run(&["dlq", "show", "dl-1", "-o", "jsonpath={.history[*].status}"]).stdout, "500 null\n");
    assert_eq!(daemon.run(&["dlq", "show", "dl-9"]).status, 3);
}

#[test]
fn a_replay_is_followed_to_its_outcome() {
    let looks =
        vec![replay("r-1", "running", 1, 0, 0), replay("r-1", "running", 2, 1, 0), replay("r-1", "done", 2, 2, 0)];
    let daemon = replaying(looks);
    let words = ["dlq", "replay", "--where", "reason = exhausted", "--rate", "50/s", "--reason", "billing 1.4 is out"];
    let Ran { status, stdout, stderr } = daemon.run(&words);
    assert_eq!(
        (status, stdout.as_str()),
        (0, "replay/r-1 done: selected 2, issued 2, processed 2, failed again 0, pending 0\n")
    );
    insta::assert_snapshot!(stderr, @r"
    0/2 issued · 0 processed · 0 failed again · 2 pending
    2/2 issued · 1 processed · 0 failed again · 1 pending
    2/2 issued · 2 processed · 0 failed again · 0 pending
    ");
    assert_eq!(
        daemon.asked(),
        [(
            "POST /v1/replays".to_owned(),
            json!({
                "select": { "ids": null, "where": "reason = exhausted", "limit": null, "groupBy": null },
                "fingerprint": null, "reason": "billing 1.4 is out", "ratePerS": 50.0, "dryRun": false
            })
        )]
    );
}

#[test]
fn a_replay_says_how_it_ended() {
    let daemon = replaying(vec![replay("r-1", "done", 2, 1, 1)]);
    let ran = daemon.run(&["dlq", "replay", "dl-1", "deadletter/dl-2", "-o", "json"]);
    assert_eq!(ran.status, 1);
    assert!(ran.stderr.contains("1 of 2 messages failed again"), "{}", ran.stderr);
    assert_eq!(daemon.asked()[0].1["select"]["ids"], "dl-1,dl-2");
    let result: Value = serde_json::from_str(&ran.stdout).expect("a document");
    assert_eq!((&result["failedAgain"], &result["name"]), (&json!(1), &json!("r-1")));

    let mut withdrawn = replay("r-1", "done", 1, 1, 0);
    (withdrawn["withdrawn"], withdrawn["pending"]) = (json!(1), json!(0));
    let ran = replaying(vec![withdrawn]).run(&["dlq", "replay", "--all"]);
    assert_eq!(ran.status, 1);
    assert!(ran.stdout.contains("pending 0, withdrawn 1"), "{}", ran.stdout);
    assert!(ran.stderr.contains("only 1 of 2 messages were processed: 1 were withdrawn"), "{}", ran.stderr);

    let ran = replaying(vec![replay("r-1", "running", 2, 1, 0)]).run(&["dlq", "replay", "--all", "--timeout", "1s"]);
    assert_eq!(ran.status, 5);
    assert!(ran.stderr.contains("1 of 2 messages are still pending"), "{}", ran.stderr);
    assert!(ran.stderr.contains("`meshctl replay cancel r-1` ends it"), "{}", ran.stderr);

    let running = replay("r-1", "running", 1, 0, 0);
    let list = json!({ "apiVersion": "meshctl/v1", "kind": "ReplayList", "items": [running] });
    let cancelled = (200, replay("r-1", "cancelled", 1, 1, 0));
    let script = Script::default().but("GET /v1/replays", [(200, list)]).but("GET /v1/replays/r-1", [cancelled]);
    let ran = Daemon::play(script).run(&["replay", "show", "r", "-w"]);
    assert_eq!((ran.status, ran.stderr.contains("1 messages were not issued")), (1, true), "{}", ran.stderr);

    let daemon = replaying(vec![]);
    let ran = daemon.run(&["dlq", "replay", "--all", "--wait=false"]);
    assert_eq!((ran.status, ran.stdout.starts_with("replay/r-1 running: selected 2")), (0, true), "{}", ran.stdout);
}

#[test]
fn ctrl_c_leaves_a_replay_to_itself() {
    let daemon = replaying(vec![replay("r-1", "running", 1, 0, 0)]);
    let mut command = daemon.command(&["dlq", "replay", "--all"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("meshctl runs");
    let mut stderr = BufReader::new(child.stderr.take().expect("piped")).lines().map_while(Result::ok);
    assert!(stderr.any(|line| line.starts_with("0/2 issued")), "it follows the replay");
    let interrupt = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(interrupt.expect("kill runs").success());
    let rest: Vec<String> = stderr.collect();
    assert_eq!(child.wait().expect("ended").code(), Some(130));
    assert!(rest.iter().any(|line| line.contains("detached: replay r-1 goes on")), "{rest:?}");
}

#[test]
fn a_dry_run_states_its_radius_and_changes_nothing() {
    let daemon = daemon();
    let ran = daemon.run(&["dlq", "replay", "--where", "age > 1h", "--dry-run"]);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    insta::assert_snapshot!(ran.stdout, @r"
    would replay 2 dead letters (fingerprint beef)
    MESSAGES   TO SUBSCRIPTION
    2          order.placed/billing

    MESSAGES   DIED OF
    2          POST /events/order-placed answered 500
    ");
    for deed in ["discard", "park", "restore"] {
        let ran = daemon.run(&["dlq", deed, "--all", "--dry-run", "-o", "json"]);
        assert_eq!(ran.status, 0, "{deed}: {}", ran.stderr);
    }
    assert!(daemon.asked().iter().all(|(_, body)| body["dryRun"] == json!(true)), "{:?}", daemon.asked());
    let discarded = daemon.asked().into_iter().find(|(call, _)| call.contains("discard")).expect("it was asked");
    assert_eq!(discarded.1["select"]["where"], "state = dead", "parked ones have to be named");
}

#[test]
fn decisions_are_meant() {
    let daemon = daemon();
    for deed in ["replay", "discard", "park", "restore"] {
        let ran = daemon.run(&["dlq", deed]);
        assert_eq!((ran.status, ran.stderr.contains("no dead letters are selected")), (2, true), "{}", ran.stderr);
    }
    let ran = daemon.run(&["dlq", "discard", "--all"]);
    assert_eq!((ran.status, ran.stderr.contains("there is nobody to ask")), (2, true), "{}", ran.stderr);
    assert_eq!(daemon.asked(), [], "nothing was asked of the daemon");

    let ran = daemon.run(&["dlq", "discard", "dl-1", "dl-2", "--yes", "--reason", "load test"]);
    assert_eq!((ran.status, ran.stdout.as_str()), (0, "2 dead letters discarded\n"));
    let ran = daemon.run(&["dlq", "park", "--where", "reason = poison"]);
    assert_eq!((ran.status, ran.stdout.as_str()), (0, "2 dead letters parked\n"));
    assert!(ran.stderr.contains("meshctl dlq restore"), "{}", ran.stderr);
    let calls: Vec<String> = daemon.asked().into_iter().map(|(call, _)| call).collect();
    assert_eq!(calls, ["POST /v1/deadletters/discard", "POST /v1/deadletters/park"]);
    assert_eq!(daemon.asked()[0].1["reason"], "load test");
}

#[test]
fn dead_letters_leave_and_come_as_lines() {
    let daemon = daemon();
    let ran = daemon.run(&["dlq", "export"]);
    assert_eq!(
        (ran.stdout.as_str(), ran.stderr.as_str()),
        ("{\"id\":\"dl-1\"}\n{\"id\":\"dl-2\"}\n", "2 dead letters exported\n")
    );
    let file = daemon.dir.path().join("dead.ndjson");
    let path = file.to_str().expect("text").to_owned();
    let line = |id: &str| {
        let mut letter = letter(id);
        letter["payloadBase64"] = "A".repeat(600_000).into();
        format!("{letter}\n")
    };
    std::fs::write(&file, format!("{}\n{}{}", line("dl-1"), line("dl-2"), line("dl-3"))).expect("written");
    let ran = daemon.run(&["dlq", "import", &path, "--dry-run"]);
    assert_eq!(ran.stdout, "would have 1 dead letter imported, 1 was there already\n", "{}", ran.stderr);
    assert_eq!(daemon.asked()[0].0, "POST /v1/deadletters/import?dryRun=true");
    let ran = daemon.run(&["dlq", "import", &path, "--reason", "moved", "--yes"]);
    assert_eq!(ran.stdout, "1 dead letter imported, 1 was there already\n", "{}", ran.stderr);
    let (call, body) = daemon.asked().pop().expect("it was imported");
    assert_eq!(call, "POST /v1/deadletters/import?reason=moved");
    assert_eq!(body.as_str().map(|lines| lines.lines().count()), Some(3), "whole, in one request");

    std::fs::write(&file, format!("{}not JSON\n", line("dl-1"))).expect("written");
    for words in [&["dlq", "import", &path][..], &["dlq", "import", &path, "--dry-run"]] {
        let ran = daemon.run(words);
        assert_eq!((ran.status, ran.stderr.contains("line 2 is not a dead letter")), (1, true), "{}", ran.stderr);
    }
}

#[test]
fn replays_are_steered() {
    let daemon = daemon();
    let ran = daemon.run(&["replay", "pause", "r-1", "--reason", "too fast"]);
    assert!(ran.stdout.starts_with("replay/r-1 paused: selected 2, issued 1"), "{}", ran.stdout);
    assert!(ran.stderr.contains("`meshctl replay resume r-1`"), "{}", ran.stderr);
    assert_eq!(daemon.run(&["replay", "cancel", "replay/r-1"]).status, 0);
    assert_eq!(
        daemon.run(&["replay", "cancel", "r-1", "--dry-run"]).stdout,
        "replay/r-1, which is done: would cancel it\n"
    );
    let calls: Vec<String> = daemon.asked().into_iter().map(|(call, _)| call).collect();
    assert_eq!(calls, ["POST /v1/replays/r-1/pause", "POST /v1/replays/r-1/cancel"]);
    assert_eq!(daemon.run(&["replay", "show", "r-2"]).status, 3);
    assert!(daemon.run(&["replay", "show", "r-1"]).stdout.contains("Order.placed/billing: 2"));
}

#[test]
fn a_shell_completes_what_there_is() {
    let daemon = daemon();
    let completed = |words: &[&str]| {
        let index = (words.len() + 1).to_string();
        let mut command = daemon.command(&[&["--", "meshctl"], words, &[""]].concat());
        command.envs([("COMPLETE", "bash"), ("_CLAP_COMPLETE_INDEX", &index), ("_CLAP_IFS", "\n")]);
        String::from_utf8(command.output().expect("meshctl runs").stdout).expect("text")
    };
    assert!(completed(&["channel", "publish"]).contains("order.placed"));
    assert!(completed(&["channel", "pause"]).contains("order.placed/billing"));
    assert!(completed(&["dlq", "show"]).contains("dl-2"));
    assert!(completed(&["replay", "cancel"]).contains("r-1"));
}
