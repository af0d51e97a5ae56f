//! The help of every command, as an operator reads it, and that each says what it is for and shows how.

use std::path::Path;

use crate::support::{command, ran};

/// Every command, by its words, as the help itself lists them: none can be forgotten here.
fn commands() -> Vec<Vec<String>> {
    fn walk(words: Vec<String>, into: &mut Vec<Vec<String>>) {
        let help = help(&words);
        into.push(words.clone());
        let listed = help.split("\nCommands:\n").nth(1).and_then(|rest| rest.split("\n\n").next()).unwrap_or_default();
        // A line of a name; those of a long text go on further in.
        let names = listed.lines().filter_map(|line| line.strip_prefix("  ")).filter(|line| !line.starts_with(' '));
        for name in names.filter_map(|line| line.split_whitespace().next()) {
            walk([words.as_slice(), &[name.to_owned()]].concat(), into);
        }
    }
    let mut all = Vec::new();
    walk(Vec::new(), &mut all);
    all
}

/// The options that every command repeats are read once, at the top.
fn help(words: &[String]) -> String {
    let words: Vec<&str> = words.iter().map(String::as_str).chain(["--help"]).collect();
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
    let all = commands();
    assert!(all.iter().any(|words| words.join(" ") == "dlq replay"), "{all:?}");
    for words in &all {
        let help = help(words);
        assert!(help.contains("Examples:\n"), "{words:?} shows no examples");
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
    for words in commands().iter().filter(|words| !words.is_empty()) {
        let page = man.join(format!("meshctl-{}.1", words.join("-")));
        assert!(page.exists(), "{}", page.display());
    }
    let page = run(&["man", "rollout-undo"]);
    assert!(page.stdout.contains(".TH meshctl-rollout-undo 1") && page.stdout.contains("Examples:"), "{}", page.stdout);
    assert_eq!(run(&["man", "rollout", "undo"]).stdout, page.stdout);
    let unknown = run(&["man", "rollout-undoo"]);
    assert_eq!(unknown.status, 3);
    assert!(unknown.stderr.contains("hint: there are ") && unknown.stderr.contains("undo"), "{}", unknown.stderr);
    for shell in ["bash", "zsh", "fish", "powershell"] {
        assert!(run(&["completion", shell]).stdout.contains("rollout"), "{shell}");
    }
    assert_eq!(run(&["completion", "tcsh"]).status, 2);
}
