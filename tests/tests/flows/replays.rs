//! Dead letters go back to their own subscription, at most once for each set, and what is said of them is what became of them.

use meshctl_tests::{Jobs, job, wait_until};
use serde_json::{Value, json};

/// So many messages that the subscriber rejects, all of them dead letters by now.
fn with_dead_letters(count: usize) -> Jobs {
    let jobs = Jobs::new("", "retry: { attempts: 1, backoff: [50ms] }");
    jobs.behave(&json!({"kinds": {"bad": 422}}));
    let body = (0..count).map(|number| job(number, "bad").to_string()).collect::<Vec<_>>().join("\n");
    let headers = [("content-type", "application/x-ndjson")];
    let answer = meshctl_tests::send("POST", jobs.publish_url(), &headers, body.into_bytes()).expect("an answer");
    assert_eq!(answer.status, 202, "{}", String::from_utf8_lossy(&answer.body));
    wait_until("all of them to be dead", || jobs.ledger()["dead"] == count);
    assert_eq!(jobs.settled()["dead"], count);
    jobs
}

#[test]
fn a_replay_restores_what_was_missing_once_and_says_what_is_still_poison() {
    let jobs = with_dead_letters(20);
    let dry = jobs.system.json(&["dlq", "replay", "--all", "--dry-run"]);
    assert_eq!((&dry["selected"], &dry["state"]), (&json!(20), &json!("dryRun")), "{dry:#}");
    assert_eq!(jobs.ledger()["dead"], 20);

    // Still poisonous: said so, and nothing is lost.
    let again = jobs.system.run(&["dlq", "replay", "--all", "--yes", "--reason", "try", "-o", "json"]).expect(1).json();
    assert_eq!(
        (&again["processed"], &again["failedAgain"], &again["pending"]),
        (&json!(0), &json!(20), &json!(0)),
        "{again:#}"
    );
    assert_eq!(jobs.settled()["dead"], 20);
    assert!(jobs.dead_letters().iter().all(|letter| letter["attempts"] == 2));

    jobs.behave(&json!({}));
    let healed =
        jobs.system.run(&["dlq", "replay", "--all", "--yes", "--reason", "fixed", "-o", "json"]).expect(0).json();
    assert_eq!((&healed["processed"], &healed["failedAgain"]), (&json!(20), &json!(0)), "{healed:#}");
    let processed = jobs.processed();
    assert!(processed.len() == 20 && processed.values().all(|times| *times == 1), "{processed:#?}");
    let row = jobs.settled();
    assert_eq!((&row["processed"], &row["dead"]), (&json!(20), &json!(0)), "{row:#}");
    let audit = jobs.system.json(&["audit"]);
    let entries = audit["items"].as_array().expect("items");
    assert!(entries.iter().any(|entry| entry["reason"] == "fixed" && entry["by"].is_string()), "{audit:#}");
}

#[test]
fn a_replay_goes_on_after_the_daemon_was_killed_and_doubles_nothing() {
    let jobs = with_dead_letters(400);
    jobs.behave(&json!({}));
    let args =
        ["dlq", "replay", "--all", "--yes", "--reason", "crash", "--rate", "200/s", "--wait=false", "-o", "json"];
    let replay = jobs.system.run(&args).expect(0).json();
    let id = replay["replayId"].as_str().expect("replayId").to_owned();
    for _ in 0..3 {
        let before = jobs.processed().len();
        wait_until("some more to be replayed", || jobs.processed().len() > before + 20);
        jobs.system.kill_daemon();
        // Any command that needs one starts it; what runs is found again.
        jobs.system.run(&["apply", &jobs.system.folder().join("topology.yaml").to_string_lossy(), "--yes"]).expect(0);
    }
    wait_until("the replay to end", || jobs.system.json(&["replay", "show", &id])["state"] == "done");
    let shown = jobs.system.json(&["replay", "show", &id]);
    assert_eq!((&shown["processed"], &shown["failedAgain"]), (&json!(400), &json!(0)), "{shown:#}");
    let processed = jobs.processed();
    assert!(processed.len() == 400 && processed.values().all(|times| *times == 1), "{processed:#?}");
    assert_eq!(jobs.settled()["processed"], 400);
}

#[test]
fn discarding_is_a_decision_that_is_written_down_and_an_export_brings_all_back() {
    let jobs = with_dead_letters(5);
    let export = jobs.system.run(&["dlq", "export"]).expect(0).stdout;
    assert_eq!(export.lines().count(), 5);
    let first: Value = serde_json::from_str(export.lines().next().expect("a line")).expect("JSON");
    assert!(first["payloadBase64"].is_string() && first["headers"].is_array(), "{first:#}");
    let id = first["id"].as_str().expect("id");
    let outcome =
        jobs.system.run(&["dlq", "discard", id, "--yes", "--reason", "worthless", "-o", "json"]).expect(0).json();
    assert_eq!(outcome["changed"], 1, "{outcome:#}");
    let row = jobs.ledger();
    assert_eq!((&row["dead"], &row["discarded"], &row["balanced"]), (&json!(4), &json!(1), &json!(true)), "{row:#}");
    jobs.system.run(&["dlq", "show", "nothing"]).expect(3);

    // Into a system that has never seen them.
    let other = Jobs::new("", "");
    let file = other.system.raw_file("letters.ndjson", &export);
    other.system.run(&["dlq", "import", &file]).expect(0);
    assert_eq!(other.dead_letters().len(), 5);
    other.system.run(&["dlq", "replay", "--all", "--yes", "--reason", "move"]).expect(0);
    assert_eq!(other.processed().len(), 5);
    assert_eq!(other.settled()["balanced"], true);
}
