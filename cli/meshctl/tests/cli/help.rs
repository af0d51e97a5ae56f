//! The help of every command, as an operator reads it, and that each says what it is for and shows how.

use std::path::Path;

use crate::support::{command, ran};

const COMMANDS: &[&[&str]] = &[
    &[],
    &["validate"],
    &["plan"],
    &["diff"],
    &["apply"],
    &["status"],
    &["down"],
    &["rollout"],
    &["rollout", "status"],
    &["rollout", "history"],
    &["rollout", "undo"],
    &["get"],
    &["describe"],
    &["scale"],
    &["restart"],
    &["logs"],
    &["events"],
    &["route"],
    &["route", "ls"],
    &["route", "describe"],
    &["endpoint", "ls"],
    &["registry", "ls"],
    &["breaker"],
    &["breaker", "ls"],
    &["breaker", "trip"],
    &["breaker", "hold"],
    &["breaker", "reset"],
    &["channel"],
    &["channel", "ls"],
    &["channel", "describe"],
    &["channel", "publish"],
    &["channel", "tail"],
    &["channel", "pause"],
    &["channel", "resume"],
    &["ledger"],
    &["loadtest"],
    &["dlq"],
    &["dlq", "ls"],
    &["dlq", "show"],
    &["dlq", "replay"],
    &["dlq", "discard"],
    &["dlq", "park"],
    &["dlq", "restore"],
    &["dlq", "export"],
    &["dlq", "import"],
    &["replay"],
    &["replay", "ls"],
    &["replay", "show"],
    &["replay", "pause"],
    &["replay", "resume"],
    &["replay", "cancel"],
    &["trace"],
    &["audit"],
    &["tui"],
    &["check"],
    &["version"],
    &["completion"],
    &["man"],
];

/// The options that every command repeats are read once, at the top.
fn help(words: &[&str]) -> String {
    let words: Vec<&str> = words.iter().copied().chain(["--help"]).collect();
    let ran = ran(command(Path::new("/nonexistent"), &words).env("COLUMNS", "100").output().expect("meshctl runs"));
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""), "{words:?}");
    ran.stdout
}

fn without_globals(help: &str) -> String {
    let paragraphs = help.split("\n\n").filter(|paragraph| !paragraph.starts_with("Global options:"));
    paragraphs.collect::<Vec<_>>().join("\n\n")
}

#[test]
fn every_command_says_what_it_is_for() {
    let mut whole = String::new();
    for words in COMMANDS {
        let help = help(words);
        let is_group = help.contains("\nCommands:\n") && !words.is_empty();
        assert!(is_group || help.contains("Examples:\n"), "{words:?} shows no examples");
        assert!(help.lines().all(|line| line.chars().count() <= 100), "{words:?} is too wide");
        let help = if words.is_empty() { help } else { without_globals(&help) };
        whole.push_str(&format!("$ meshctl {} --help\n{}\n\n", words.join(" "), help.trim_end()));
    }
    insta::assert_snapshot!("help", whole);
}

#[test]
fn manuals_and_completions_are_written() {
    let dir = tempfile::tempdir().expect("a folder");
    let man = dir.path().join("man");
    let run = |words: &[&str]| ran(command(dir.path(), words).output().expect("meshctl runs"));
    assert_eq!(run(&["man", "--dir", man.to_str().expect("text")]).status, 0);
    assert!(man.join("meshctl-apply.1").exists());
    assert!(run(&["man"]).stdout.contains(".TH meshctl 1"));
    for shell in ["bash", "zsh", "fish", "powershell"] {
        assert!(run(&["completion", shell]).stdout.contains("rollout"), "{shell}");
    }
    assert_eq!(run(&["completion", "tcsh"]).status, 2);
}
