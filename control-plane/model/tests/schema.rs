//! The published schema: in step with the types, and true of what the loader takes.

use std::path::{Path, PathBuf};

use meshctl_model::load::{SourceFile, Sources, load};
use meshctl_model::schema::{topology_schema, topology_schema_text};
use meshctl_model::starter::starter;

fn manifests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../manifests")
}

#[test]
fn the_checked_in_schema_is_the_derived_one() {
    let written = std::fs::read_to_string(manifests().join("topology.schema.json")).unwrap_or_default();
    // As values: the order of keys depends on what other crates make of serde_json.
    let parse = |text: &str| serde_json::from_str::<serde_json::Value>(text).ok();
    assert_eq!(parse(&topology_schema_text()), Some(topology_schema()));
    assert!(
        parse(&written) == Some(topology_schema()),
        "the language changed: run `meshctl schema > manifests/topology.schema.json`"
    );
}

/// What the schema has against a YAML text.
fn complaints(text: &str) -> Vec<String> {
    let value: serde_json::Value = serde_yaml::from_str(text).expect("the text is YAML");
    let validator = jsonschema::draft202012::new(&topology_schema()).expect("the schema is a schema");
    validator.iter_errors(&value).map(|error| format!("{}: {error}", error.instance_path())).collect()
}

#[test]
fn examples_satisfy_the_schema() {
    assert_eq!(complaints(starter()), [""; 0]);
    assert_eq!(complaints(&starter().replace("#-", "")), [""; 0]);
    let Ok(folder) = std::fs::read_dir(manifests().join("topologies")) else { return };
    for file in folder.flatten().filter(|file| file.path().extension().is_some_and(|extension| extension == "yaml")) {
        let text = std::fs::read_to_string(file.path()).expect("an example can be read");
        assert_eq!(complaints(&text), [""; 0], "{}", file.path().display());
        let file = SourceFile { name: file.path().display().to_string(), folder: "/".into(), text };
        let loaded = load(&Sources { files: vec![file.clone()], ..Sources::default() });
        assert_eq!(loaded.findings, [], "{}", file.name);
    }
}

#[test]
fn the_schema_takes_what_the_loader_takes_and_refuses_what_it_refuses() {
    let taken = "
providers: { runtime: process, gateway: { embedded: { instances: '${N}', listen: '${L}' } }, mesh: gateway, registry: embedded, broker: embedded, telemetry: { embedded: { keep: 24h, maxSize: 1GiB, sample: 100/s, slow: 500ms, listen: '127.0.0.1:4318' } }, couriers: { instances: '${C}' } }
defaults: { deadline: '${D:-2s}', retry: { attempts: '${A}', on: [reset, 502, '${O}'] } }
services:
  a: { builtin: hello, port: '${P}', calls: { b: }, env: { A: 1, B: true, C: 1.5, D: x, E: { file: y }, F: { publishUrlOf: c } }, publishes: [c], health: { tcp: '${T}' } }
  b:
routes:
channels:
  c:
  d: { partitions: '${P}', ordered: byKey, retention: '${R}', subscriptions: { a: { deliver: /a, retry: , deadLetter: { alert: { count: 1, within: 5m } } } } }
flows:
  f:
  g: { weight: '${W}', values: { v: [x] }, synchronous: { request: GET /, body: [1, { k: }], done: '${S}' }, asynchronous: { request: GET /, done: { visible: GET /, within: '${T}' } } }
slo: [{ flow: g, mode: asynchronous, expect: lost = 0 }]
";
    assert_eq!(complaints(taken), [""; 0]);
    for refused in [
        "nmae: x",
        "services: { a: { port: 70000 } }",
        "services: { a: { replicas: many } }",
        "channels: { c: { partitions: 0 } }",
        "channels: { c: { subscriptions: { a: {} } } }",
        "channels: { c: { subscriptions: { a: { deliver: /a, retry: { backoff: [] } } } } }",
        "channels: { c: { ordered: yes } }",
        "providers: { broker: kafka }",
        "defaults: { deadline: 5 }",
        "defaults: { deadline: soon }",
        "providers: { runtime: docker }",
        "providers: { gateway: { embedded: {}, envoy: {} } }",
        "providers: { mesh: sidecar }",
        "routes: [{ path: /a }]",
        "flows: { f: { synchronous: { request: GET /, done: 99 } } }",
        "flows: { f: { synchronous: {} } }",
        "slo: [{ flow: f }]",
    ] {
        assert!(!complaints(refused).is_empty(), "{refused}");
    }
}
