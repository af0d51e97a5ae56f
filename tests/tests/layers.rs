//! The dependency rule of ARCHITECTURE.md, and what the house allows from outside.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

/// Which of our crates may know which others. `meshctl` knows everything.
const MAY_KNOW: [(&str, &[&str]); 9] = [
    ("meshctl-model", &[]),
    ("meshctl-api", &["meshctl-model"]),
    ("meshctl-drivers", &["meshctl-model"]),
    ("meshctl-traffic", &["meshctl-model", "meshctl-drivers"]),
    ("meshctl-daemon", &["meshctl-model", "meshctl-api", "meshctl-drivers", "meshctl-traffic"]),
    ("meshctl-load", &["meshctl-model"]),
    ("meshctl-operator", &["meshctl-model", "meshctl-api", "meshctl-load"]),
    ("meshctl-services", &["meshctl-model", "meshctl-api"]),
    ("meshctl-tests", &["meshctl-model", "meshctl-api"]),
];

/// Crates of which a second version would double what is heavy, or split types that must meet.
const ONE_VERSION: [&str; 9] =
    ["hyper", "hyper-util", "tokio", "axum", "rusqlite", "reqwest", "rustls", "http", "serde_json"];

/// Crypto comes from `ring`; these would bring a second provider or a system library.
const NOT_HERE: [&str; 6] = ["aws-lc-rs", "aws-lc-sys", "openssl", "openssl-sys", "native-tls", "boring"];

fn metadata() -> Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--filter-platform", "x86_64-unknown-linux-gnu"])
        .current_dir(meshctl_tests::repository())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("cargo metadata is JSON")
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map_or(&[], Vec::as_slice)
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

#[test]
fn no_room_knows_a_room_that_it_should_not() {
    let metadata = metadata();
    let members: BTreeSet<&str> = list(&metadata, "workspace_members").iter().filter_map(Value::as_str).collect();
    let ours: Vec<&Value> =
        list(&metadata, "packages").iter().filter(|package| members.contains(text(package, "id"))).collect();
    let names: BTreeSet<&str> = ours.iter().map(|package| text(package, "name")).collect();
    let rule: BTreeMap<&str, &[&str]> = MAY_KNOW.into_iter().collect();
    let mut wrong = Vec::new();
    for package in &ours {
        let name = text(package, "name");
        if name == "meshctl" {
            continue;
        }
        let Some(may_know) = rule.get(name) else {
            wrong.push(format!("{name} has no place in the rule: add it there and to ARCHITECTURE.md"));
            continue;
        };
        // Dependencies of tests count as well: a test that needs another room is in the wrong room.
        for dependency in list(package, "dependencies").iter().map(|dependency| text(dependency, "name")) {
            if names.contains(dependency) && !may_know.contains(&dependency) {
                wrong.push(format!("{name} -> {dependency}"));
            }
        }
    }
    assert!(wrong.is_empty(), "arrows against the rule: {wrong:#?}");
    assert!(ours.len() > MAY_KNOW.len(), "cargo metadata shows only {names:?}");
}

#[test]
fn heavy_crates_come_in_one_version_and_crypto_from_ring_only() {
    let metadata = metadata();
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for package in list(&metadata, "packages") {
        versions.entry(text(package, "name")).or_default().insert(text(package, "version"));
    }
    let twice: Vec<_> =
        ONE_VERSION.iter().filter_map(|name| versions.get_key_value(name)).filter(|(_, v)| v.len() > 1).collect();
    assert!(twice.is_empty(), "more than one version: {twice:?}");
    let refused: Vec<_> = NOT_HERE.iter().filter(|name| versions.contains_key(**name)).collect();
    assert!(refused.is_empty(), "not allowed here: {refused:?}");
    assert!(versions.contains_key("tokio"), "cargo metadata shows no tokio at all");
}
