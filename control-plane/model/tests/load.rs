//! The loader from the outside: texts in, topology and findings out.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use meshctl_model::finding::{CODES, Finding, Severity};
use meshctl_model::load::{Loaded, SourceFile, Sources, load, variables};
use meshctl_model::starter::starter;
use meshctl_model::topology::{EnvSource, EnvValue, Port, Topology};

fn sources(texts: &[&str], environment: &[(&str, &str)]) -> Sources {
    let file = |(at, text): (usize, &&str)| SourceFile {
        name: format!("{}.yaml", ["one", "two", "three"][at]),
        folder: format!("/srv/{}", ["one", "two", "three"][at]),
        text: (*text).to_owned(),
    };
    Sources {
        files: texts.iter().enumerate().map(file).collect(),
        environment: environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
    }
}

fn read(text: &str) -> Loaded {
    load(&sources(&[text], &[]))
}

fn findings(text: &str) -> Vec<(String, usize, usize)> {
    read(text).findings.into_iter().map(|f| (f.code, f.line, f.column)).collect()
}

fn topology(loaded: Loaded) -> Topology {
    let findings = listed(&loaded.findings);
    loaded.topology.unwrap_or_else(|| panic!("{findings}"))
}

/// One finding in two lines.
fn listed(findings: &[Finding]) -> String {
    let line = |f: &Finding| {
        let severity = if f.severity == Severity::Error { "error" } else { "warning" };
        let help = f.help.as_deref().unwrap_or_default();
        format!(
            "{}:{}:{}-{}:{} {severity}[{}] {}\n    {help}\n",
            f.file, f.line, f.column, f.end_line, f.end_column, f.code, f.message
        )
    };
    findings.iter().map(line).collect()
}

/// A text with `▸` where something is found, and what.
type Row = (&'static str, &'static str);

const A: &str = "services: {a: {builtin: hello}, b: {builtin: hello}, n: {command: [x], port: none}}\n";

/// Two services around a channel, to be changed by what stands behind `~` in a row: `old => new`, several with ` | `.
const M: &str = "services: {a: {builtin: hello, publishes: [c.x]}, b: {builtin: hello}}
channels:
  c.x:
    subscriptions:
      b: {deliver: /in}
";

/// Two routes and a flow over them, to be changed by what stands behind `^`, as [`M`] is.
const F: &str = "services: {a: {builtin: hello}}
routes: [{path: /a, methods: [POST], to: a}, {path: /b/*, to: a}]
flows:
  f:
    values: {skus: [x, y]}
    synchronous: {request: POST /a, body: {sku: '{{random skus}}', n: 1}, done: 201}
    asynchronous: {request: POST /a, done: {visible: 'GET /b/{{id}}'}}
slo:
  - {flow: f, expect: p99 < 1s}
";

/// What begins with `+` stands below [`A`], and what begins with `~` is a change of [`M`],
/// with `^` of [`F`].
#[rustfmt::skip]
const BAD: &[Row] = &[
    ("services: [\n▸", "syntax"),
    ("a: ▸1\n\tb: 2\n", "syntax"),
    ("+x: &a [▸*a]", "self-reference"),
    ("+x: ▸*nobody", "syntax"),
    ("+name: x\n▸name: y", "duplicate-key"),
    ("+? ▸[a]\n: 1", "bad-key"),
    ("+name: ▸!new x", "unsupported-tag"),
    ("+providers: {runtime: ▸!process {}}", "unsupported-tag"),
    ("+name: x▸${}", "bad-variable"),
    ("+name: ▸${X}", "unset-variable"),
    ("+name: \"ä ${X:-1} ▸${Y}\"", "unset-variable"),
    ("+name: 'a ▸${X}\n  $${N} ▸${Y}▸${Z}'", "unset-variable unset-variable unset-variable"),
    ("+name: ▸\"\\x24{X}\"", "unset-variable"),
    ("+name: |-\n  ab\n  c ▸${X}", "unset-variable"),
    ("+▸nmae: x", "unknown-key"),
    ("+routes: [▸{to: a}]", "missing-key"),
    ("+routes: ▸{}", "wrong-type"),
    ("+name: ▸[x]", "wrong-type"),
    ("▸- a", "wrong-type"),
    ("+kind: ▸topology", "unknown-value"),
    ("+apiVersion: ▸v2", "unknown-value"),
    ("services: {a: {builtin: hello, port: ▸any}}", "unknown-value"),
    ("services: {a: {builtin: hello, port: ▸70000}}", "out-of-range"),
    ("services: {a: {builtin: hello, replicas: ▸-1}}", "out-of-range"),
    ("services: {a: {builtin: hello, resources: {cpu: ▸0}}}", "out-of-range"),
    ("+defaults: {deadline: ▸5 minutes}", "bad-quantity"),
    ("+defaults: {deadline: ▸5}", "wrong-type"),
    ("+defaults: {deadline: ▸[1s]}", "wrong-type"),
    ("+defaults: {retry: {budget: ▸200%}}", "bad-quantity"),
    ("+providers: {gateway: {embedded: {}, ▸envoy: {}}}", "one-choice"),
    ("+providers: {gateway: ▸{}}", "one-choice"),
    ("+providers: {gateway: ▸embeded}", "unknown-value"),
    ("+providers: {gateway: {▸embeded: {}}}", "unknown-key"),
    ("+▸scenarios: {}\n▸slos: []", "unknown-key unknown-key"),
    ("+providers: {broker: ▸kafka, telemetry: ▸prometheus}", "not-yet not-yet"),
    ("+providers: {telemetry: {embedded: {keep: ▸0s, maxSize: ▸1MiB, slow: ▸0s}}}", "zero out-of-range zero"),
    ("+providers: {telemetry: {embedded: {listen: ▸0.0.0.0:4318}}}", "bad-address"),
    ("+providers: {telemetry: {embedded: {listen: ▸127.0.0.1:8080}}}", "port-clash"),
    ("+providers: {telemetry: {embedded: {listen: ▸here, sample: ▸fast}}}", "bad-address bad-quantity"),
    ("+providers: {broker: {▸rabbitmq: {}}}", "not-yet"),
    ("~b: {deliver => b: {▸dlq: x, deliver", "unknown-key"),
    ("~subscriptions: => ▸schema: x.json\n    subscriptions:", "not-yet"),
    ("+providers: {runtime: ▸docker}", "not-yet"),
    ("+providers: {runtime: {▸kubernetes: {}}, mesh: ▸sidecar}", "not-yet not-yet"),
    ("+providers: {gateway: {▸nginx: {}}, registry: ▸consul}", "not-yet not-yet"),
    ("+routes: [{path: /a, to: a, ▸cache: {}}]", "not-yet"),
    ("services: {a: {▸image: nginx}}", "not-yet"),
    ("▸", "no-services"),
    ("▸# nothing\n", "no-services"),
    ("name: x\n▸services: {}", "no-services"),
    ("+name: ▸My Shop", "bad-name"),
    ("services: {▸A_b: {builtin: hello}}", "bad-name"),
    ("services: {▸gateway: {builtin: hello}}", "bad-name"),
    ("services: {a: {builtin: ▸helo}}", "unknown-builtin"),
    ("services: {▸a: {}}", "no-program"),
    ("services:\n  ▸a:\n", "no-program"),
    ("services: {a: {builtin: hello, ▸command: [x]}}", "several-programs"),
    ("services: {a: {command: ▸[]}}", "empty-command"),
    ("services: {a: {command: [x], health: {exec: ▸['']}}}", "empty-command"),
    ("services: {a: {builtin: hello, env: {▸1A: x}}}", "bad-env-name"),
    ("services: {a: {builtin: hello, env: {▸PORT: 1}}}", "reserved-env"),
    ("services: {a: {builtin: hello, health: {http: /, ▸tcp: true}}}", "several-checks"),
    ("services: {a: {builtin: hello, health: {http: ▸healthz}}}", "bad-path"),
    ("services: {a: {builtin: hello, health: {interval: ▸0s}}}", "zero"),
    ("services: {a: {builtin: hello, logs: {maxSize: ▸0B}}}", "zero"),
    ("services: {a: {command: [x], port: none, health: {▸http: /}}}", "no-port"),
    ("services: {a: {command: [x, ▸\"{{port}}\"], port: none}}", "no-port"),
    ("services: {a: {builtin: hello, dependsOn: [▸c]}}", "unknown-service"),
    ("services: {a: {builtin: hello, calls: {▸c: }}}", "unknown-service"),
    ("services: {a: {builtin: hello, env: {U: {urlOf: ▸c}}}}", "unknown-service"),
    ("services: {a: {builtin: hello, calls: {▸a: }}}", "self-call"),
    ("services: {a: {builtin: hello, dependsOn: [▸b]}, b: {builtin: hello, replicas: 0}}", "never-ready"),
    ("services: {a: {builtin: hello, dependsOn: [▸b]}, b: {builtin: hello, dependsOn: [a]}}", "start-cycle"),
    ("services: {a: {builtin: hello, dependsOn: [▸a]}}", "start-cycle"),
    ("services: {a: {builtin: hello, calls: {▸b: }}, b: {builtin: hello, env: {A: {urlOf: a}}}}", "call-cycle"),
    ("services: {a: {builtin: hello, calls: {▸b: {deadline: 1s}}}, b: {builtin: hello, calls: {a: {deadline: 1s}}}}", "call-cycle"),
    ("services: {a: {builtin: hello, port: ▸9000, replicas: 2}}", "fixed-port-shared"),
    ("services: {a: {builtin: hello, port: 9000}, b: {builtin: hello, port: ▸9000}}", "port-clash"),
    ("services: {a: {builtin: hello, port: ▸8080}}", "port-clash"),
    ("services: {a: {builtin: hello, port: ▸25000}}", "port-in-range"),
    ("+providers: {gateway: {embedded: {listen: '127.0.0.1:1', metrics: ▸'127.0.0.1:1'}}}", "port-clash"),
    ("+providers: {gateway: {embedded: {metrics: ▸'127.0.0.1:1', instances: 2}}}", "fixed-port-shared"),
    ("+providers: {gateway: {embedded: {listen: ▸'localhost:80'}}}", "bad-address"),
    ("+providers: {runtime: {process: {ports: ▸9-1}}}", "bad-port-range"),
    ("+routes: [{path: /a, to: ▸c}]", "unknown-service"),
    ("+routes: [{path: /a, to: ▸n}]", "no-port"),
    ("+routes: [{path: ▸a, to: a}]", "bad-path"),
    ("+routes: [{path: /a, host: ▸'x:80', to: a}]", "bad-host"),
    ("+routes: [{path: /a, methods: [▸get], to: a}]", "bad-method"),
    ("+routes: [{path: /a, methods: ▸[], to: a}]", "bad-method"),
    ("+routes: [{path: /a, headers: {▸'a b': x}, to: a}]", "bad-header"),
    ("+routes: [{path: /a, to: a, idempotencyKey: ▸''}]", "bad-header"),
    ("+routes: [{path: /a, to: a, fallback: {contentType: ▸''}}]", "bad-header"),
    ("+routes: [{path: /a, to: a}, {path: ▸/a, to: b}]", "duplicate-route"),
    ("+routes: [{path: /a, methods: [GET, PUT], to: a}, {path: ▸/a, methods: [PUT], to: b}]", "duplicate-route"),
    ("+routes: [{path: /a, to: ▸[{service: a, weight: 50%}, {service: b, weight: 40%}]}]", "bad-weights"),
    ("+routes: [{path: /a, to: [{service: a, weight: 100%}, {service: b, weight: ▸0%}]}]", "bad-weights"),
    ("+defaults: {attemptTimeout: ▸3s}", "attempt-beyond-deadline"),
    ("+defaults: {deadline: ▸0s}", "zero"),
    ("+defaults: {breaker: {failureRatio: ▸0%}}", "zero"),
    ("+defaults: {deadline: 1s, retry: {attempts: ▸2}}", "retries-beyond-deadline"),
    ("services: {a: {builtin: hello, calls: {b: {deadline: ▸5s}}}, b: {builtin: hello}}\nroutes: [{path: /, to: a}]", "deadline-beyond-caller"),
    ("services: {a: {builtin: hello, calls: {b: {deadline: 5s, retry: {attempts: 5}}}}, b: {builtin: hello}}\nroutes: [{path: /, to: a, deadline: 6s}]", ""),
    ("services: {a: {builtin: hello, calls: {b: {retry: {attempts: ▸1}}}}, b: {builtin: hello}}\nroutes: [{path: /, to: a, deadline: 800ms}]", "retries-beyond-deadline"),
    ("services: {a: {builtin: hello, calls: {b: }}, b: {builtin: hello, calls: {c: }}, c: {builtin: hello, calls: {▸d: }}, d: {builtin: hello}}\nroutes: [{path: /, to: a}]", "retry-amplification"),
    ("~", ""),
    ("~b: {deliver: /in} => b: ▸{}", "missing-key"),
    ("~/in} => /in, retry: {backoff: ▸[]}}", "out-of-range"),
    ("~subscriptions: => partitions: ▸0\n    subscriptions:", "out-of-range"),
    ("services: {a: {builtin: hello, publishes: [▸x], env: {E: {publishUrlOf: ▸x}}}}", "unknown-channel unknown-channel"),
    ("~publishes: [c.x] => publishes: [c.x], env: {E: {publishUrlOf: ▸c.y}}", "unknown-channel"),
    ("~b: {deliver => b: {service: ▸c, deliver", "unknown-service"),
    ("~      b: =>       ▸bb:", "unknown-service"),
    ("~b: {builtin: hello} => b: {command: [x], port: none} |       b: =>       ▸b:", "no-port"),
    ("~, b: {builtin => , ▸broker: {builtin |       b: =>       broker:", "bad-name"),
    ("~a: {builtin: hello, => ▸courier: {builtin: hello,", "bad-name"),
    ("~[c.x] => ['c/x'] |   c.x: =>   ▸c/x:", "bad-name"),
    ("~[c.x] => ['..'] |   c.x: =>   ▸..:", "bad-name"),
    ("~      b: {deliver =>       ▸b-: {service: b, deliver", "bad-name"),
    ("~/in => ▸in", "bad-path"),
    ("~/in => ▸'http://127.0.0.1/in'", "bad-path"),
    ("~, publishes: [c.x] =>  |   c.x: =>   ▸c.x:", "no-publisher"),
    ("~, publishes: [c.x] => , env: {E: {publishUrlOf: c.x}}", ""),
    ("~subscriptions:\n      b: {deliver: /in} => key: k |   c.x: =>   ▸c.x:", "no-subscriber"),
    ("~subscriptions: => key: ▸$.id\n    subscriptions:", "bad-field"),
    ("~subscriptions: => maxSize: ▸0B\n    subscriptions:", "zero"),
    ("~subscriptions: => maxSize: 64KiB\n    maxMessage: ▸65KiB\n    subscriptions:", "message-beyond-channel"),
    ("~subscriptions: => maxMessage: ▸65MiB\n    subscriptions:", "message-beyond-gateway"),
    ("~subscriptions: => maxSize: ▸64KiB\n    subscriptions:", "message-beyond-channel"),
    ("~subscriptions: => retention: ▸10s\n    subscriptions:", "short-retention"),
    ("~services: => providers: {broker: {embedded: {retention: ▸10s}}}\nservices:", "short-retention"),
    ("~subscriptions: => retention: 10s\n    subscriptions: | /in => /in, retry: {backoff: [1s]}", ""),
    ("~/in => /in, timeout: ▸6m", "long-timeout"),
    ("~/in => /in, timeout: ▸0s", "zero"),
    ("~/in => /in, deadLetter: {alert: {count: 1, within: ▸0s}}", "zero"),
    ("~/in => /in, retry: {backoff: [1s, 2s, ▸1s]}", "backoff-not-rising"),
    ("~b: {builtin: hello} => b: {builtin: hello, publishes: [c.x]} |       b: =>       ▸b:", "message-loop"),
    ("^", ""),
    ("+flows: {▸f: {}}", "empty-flow"),
    ("+flows: {▸f: , ▸g: {synchronous: }}", "empty-flow empty-flow"),
    ("^  f:\n =>   ▸f/g:\n |   - {flow: f, =>   - {flow: f/g,", "bad-name"),
    ("^synchronous: {request: POST /a => synchronous: {request: ▸/a", "bad-request"),
    ("^synchronous: {request: POST /a => synchronous: {request: ▸post /a", "bad-request"),
    ("^synchronous: {request: POST /a => synchronous: {request: ▸POST /a b", "bad-request"),
    ("^synchronous: {request: POST /a => synchronous: {request: ▸POST http://x/a", "bad-request"),
    ("^synchronous: {request: POST /a => synchronous: {▸url: POST /a", "unknown-key"),
    ("^synchronous: {request: POST /a => synchronous: {request: ▸POST /aa", "no-route"),
    ("^synchronous: {request: POST /a => synchronous: {request: ▸'GET /a?x={{n}}'", "no-route"),
    ("^synchronous: {request: POST /a => synchronous: {request: ▸POST /b", "no-route"),
    ("^synchronous: {request: POST /a => synchronous: {request: 'PUT /b/{{n}}/{{random 1 9}}?x={{uuid}}'", ""),
    ("^path: /a, => path: /a, host: x.org, | POST /a, body => ▸POST /a, body | POST /a, done => ▸POST /a, done", "no-route no-route"),
    ("^path: /a, => path: /a, host: x.org, | POST /a, body => POST /a, headers: {Host: x.org}, body | POST /a, done => POST /a, headers: {host: x.org}, done", ""),
    ("^'{{random skus}}' => ▸'{{random sku}}'", "bad-placeholder"),
    ("^'{{random skus}}' => [1, {x: ▸'{{oops}}'}]", "bad-placeholder"),
    ("^'{{random skus}}' => ▸'{{n'", "bad-placeholder"),
    ("^POST /a, body => POST /a, headers: {x: ▸'{{random 9 1}}'}, body", "bad-placeholder"),
    ("^POST /a, body => POST /a, headers: {▸a b: x}, body", "bad-header"),
    ("^'GET /b/{{id}}' => ▸'GET /b/{{a b}}'", "bad-placeholder"),
    ("^'GET /b/{{id}}' => ▸'POST /b/{{id}}'", "bad-request"),
    ("^'GET /b/{{id}}' => ▸'GET /c/{{id}}'", "no-route"),
    ("^{visible: 'GET /b/{{id}}'} => {visible: 'GET /b/{{id}}', every: ▸0s}", "zero"),
    ("^    asynchronous: =>     ▸asynchronous: | {visible: 'GET /b/{{id}}'} => {status: 201}", "not-visible"),
    ("^done: 201 => done: ▸99", "out-of-range"),
    ("^flow: f => flow: ▸g", "unknown-flow"),
    ("^flow: f => flow: f, mode: ▸later", "unknown-value"),
    ("^    asynchronous: {request: POST /a, done: {visible: 'GET /b/{{id}}'}}\n =>  | flow: f => flow: f, mode: ▸asynchronous", "bad-objective"),
    ("^p99 < 1s => ▸p99 < 1", "bad-objective"),
    ("^p99 < 1s => ▸lost = 0", "bad-objective"),
    ("^expect: p99 < 1s => mode: asynchronous, expect: lost = 0", ""),
];

/// A row as a text with marks.
fn written(row: &str) -> String {
    if let Some(rest) = row.strip_prefix('+') {
        return format!("{A}{rest}");
    }
    let (base, changes) = match (row.strip_prefix('~'), row.strip_prefix('^')) {
        (Some(changes), _) => (M, changes),
        (_, Some(changes)) => (F, changes),
        _ => return row.to_owned(),
    };
    changes.split(" | ").filter(|change| !change.is_empty()).fold(base.to_owned(), |text, change| {
        let (old, new) = change.split_once(" => ").expect("a change");
        assert!(text.contains(old), "{change}");
        text.replacen(old, new, 1)
    })
}

#[test]
fn every_mistake_is_found_where_it_stands() {
    let mut seen = BTreeSet::new();
    let mut wrong = String::new();
    for (marked, codes) in BAD {
        let marked = written(marked);
        let mut places = Vec::new();
        for (line, text) in marked.split('\n').enumerate() {
            let marks = text.chars().enumerate().filter(|(_, c)| *c == '▸').enumerate();
            places.extend(marks.map(|(before, (column, _))| (line + 1, column - before + 1)));
        }
        let text = marked.replace('▸', "");
        let loaded = read(&text);
        let found: Vec<(&str, (usize, usize))> =
            loaded.findings.iter().map(|f| (f.code.as_str(), (f.line, f.column))).collect();
        let expected: Vec<(&str, (usize, usize))> = codes.split_whitespace().zip(places).collect();
        if found != expected {
            let _ = writeln!(wrong, "{marked}\nexpected {expected:?}, found\n{}", listed(&loaded.findings));
        }
        for finding in &loaded.findings {
            assert!(
                !finding.message.is_empty() && finding.help.as_ref().is_some_and(|help| !help.is_empty()),
                "{finding:?}"
            );
            assert!((finding.line, finding.column) <= (finding.end_line, finding.end_column), "{finding:?}");
        }
        let errors = loaded.findings.iter().any(|f| f.severity == Severity::Error);
        assert_eq!(loaded.topology.is_none(), errors, "{text}");
        seen.extend(codes.split_whitespace());
    }
    assert!(wrong.is_empty(), "{wrong}");
    // The first three need large texts or several files and have tests of their own; the last one needs a bug.
    let elsewhere = ["too-large", "too-deep", "more-findings", "conflict", "internal"];
    let never: Vec<&str> =
        CODES.iter().map(|code| code.name).filter(|name| !seen.contains(name) && !elsewhere.contains(name)).collect();
    assert!(never.is_empty(), "no test for {never:?}");
}

#[test]
fn five_mistakes_are_found_in_one_go() {
    let text = "\
name: shop
providers: { gateway: { embedded: { listen: 127.0.0.1:8080 } } }
services:
  orders:
    builtin: orders
    replcias: 2
    calls:
      inventroy: { deadline: 5 seconds }
  inventory:
    builtin: inventory
    port: 8080
routes:
  - { path: /orders, to: orders }
  - { path: /orders, to: inventory }
";
    insta::assert_snapshot!(listed(&read(text).findings));
}

#[test]
fn what_is_left_out_causes_no_further_findings() {
    for (text, expected) in [
        ("services: {a: {comand: [x]}}", vec![("unknown-key", 1, 16)]),
        ("services: {a: {builtin: [x]}}\nroutes: [{path: /, to: a}]", vec![("wrong-type", 1, 25)]),
        ("services: {a: [], b: {builtin: hello, calls: {a: }}}", vec![("wrong-type", 1, 15)]),
        ("services: []", vec![("wrong-type", 1, 11)]),
        ("servces: {a: {}}", vec![("unknown-key", 1, 1)]),
        (
            "services: {a: {builtin: hello}}\nroutes: [{path: 1, to: a}, {path: x, to: a}]",
            vec![("wrong-type", 2, 17), ("bad-path", 2, 35)],
        ),
        ("services: {a: {builtin: hello, port: x, env: {PORT: 1}}}", vec![("unknown-value", 1, 38)]),
        (
            "services: {a: {builtin: hello}}\nroutes: [{path: /, to: [{service: a, weight: 1}, {service: a, weight: 50%}]}]",
            vec![("wrong-type", 2, 46)],
        ),
    ] {
        let found = findings(text);
        let found: Vec<(&str, usize, usize)> =
            found.iter().map(|(code, line, column)| (code.as_str(), *line, *column)).collect();
        assert_eq!(found, expected, "{text}");
    }
}

#[test]
fn remedies_name_what_was_probably_meant() {
    for (text, help) in [
        ("servces: {}", "did you mean `services`?"),
        ("services: {a: {builtin: hello, depends_on: []}}", "did you mean `dependsOn`?"),
        ("services: {a: {builtin: hello, Replicas: 1}}", "did you mean `replicas`?"),
        ("services: {a: {builtin: hello, instances: 1}}", "meshctl calls it `replicas`"),
        ("services: {a: {builtin: hello, deadline: 1s}}", "`deadline` belongs at `services.NAME.calls.NAME.deadline`"),
        ("services: {a: {builtin: hello, interval: 1s}}", "`interval` belongs at `services.NAME.health.interval`"),
        ("+listen: x", "`listen` belongs at `providers.gateway.embedded.listen`"),
        ("+defaults: {<<: {}}", "YAML 1.2 has no merge keys: say what is shared under `defaults`"),
        ("+defaults: {deadline: 5}", "write the unit: 5ms or 5s"),
        ("services: {a: {builtin: hello, replicas: '2'}}", "write it without quotes: 2"),
        ("services: {a: {builtin: hello, health: {tcp: yes}}}", "write true, without quotes"),
        ("services: {a: {command: [sleep, 5]}}", "put it in quotes: \"5\""),
        ("services: {a: {command: x}}", "write a list: [x]"),
        ("services: {orders: {builtin: hello}}\nroutes: [{path: /, to: order}]", "did you mean `orders`?"),
        ("+routes: [{path: /a, methods: [get], to: a}]", "write `GET`: methods are upper case"),
        ("+topics: {}", "meshctl calls it `channels`"),
        ("~subscriptions: => consumers: {}\n    subscriptions:", "meshctl calls it `subscriptions`"),
        ("~b: {deliver => b: {url", "meshctl calls it `deliver`"),
        ("~b: {deliver => b: {maxRetries: 3, deliver", "meshctl calls it `retry.attempts`"),
        ("~b: {deliver => b: {dlq: x, deliver", "meshctl calls it `deadLetter`"),
        ("~[c.x] => [c.x, c.xx]", "did you mean `c.x`?"),
        ("~      b: =>       mailer:", "describe it under `services:`, or name one of `a` or `b`"),
        ("~b: {builtin => billing: {builtin |       b: =>       biling:", "did you mean `billing`?"),
        ("~subscriptions: => ordered: true\n    subscriptions:", "write `byKey`"),
        ("~/in} => /in, retry: {backoff: 1s}}", "write a list: [1s]"),
        ("+slos: []", "meshctl calls it `slo`"),
        ("^flow: f => flow: buy", "describe it under `flows:`, or name one of `f`"),
        ("^{{random skus}} => {{random sku}}", "did you mean `{{random skus}}`?"),
        ("^{{random skus}} => {{random colours}}", "add `values: { colours: [one, another] }` to the flow"),
        ("^POST /a, body => GET /a, body", "the route of that path takes `POST`"),
        ("^p99 < 1s => p99 < 1", "write a number and a unit, such as 150ms, 2s, 5m, 1h or 7d"),
    ] {
        let text = written(text);
        let found = read(&text).findings;
        assert_eq!(found.len(), 1, "{text}\n{}", listed(&found));
        assert_eq!(found[0].help.as_deref(), Some(help), "{text}");
    }
}

#[test]
fn defaults_are_no_cause_for_alarm() {
    let text = "services: {a: {builtin: hello, calls: {b: }}, b: {builtin: hello, calls: {c: }}, c: {builtin: hello}}\n\
                routes: [{path: /, to: a}, {path: /b, to: b}, {path: /b, methods: [GET], to: c}, {path: /b, host: x, to: c}]";
    assert_eq!(listed(&read(text).findings), "");
    // A circle with deadlines that shrink ends by itself.
    let text = "services: {a: {builtin: hello, calls: {b: {deadline: 1s}}}, b: {builtin: hello, calls: {a: {deadline: 900ms}}}}";
    assert_eq!(listed(&read(text).findings), "");
}

#[test]
fn circles_and_amplification_name_their_path() {
    let message = |text: &str| read(text).findings.first().map(|f| f.message.clone()).unwrap_or_default();
    assert_eq!(
        message(
            "services: {a: {builtin: hello, calls: {b: }}, b: {builtin: hello, calls: {c: }}, c: {builtin: hello, calls: {a: }}}"
        ),
        "these services call each other in a circle without a deadline that fits: a -> b -> c -> a"
    );
    assert_eq!(
        message(
            "services: {a: {builtin: hello, calls: {b: }}, b: {builtin: hello, calls: {c: {retry: {attempts: 5}, attemptTimeout: 150ms}}}, c: {builtin: hello}}\nroutes: [{path: /checkout, to: a}]"
        ),
        "route /checkout -> a -> b -> c: 54 attempts at c for one request, 8s100ms > 2s"
    );
    assert_eq!(
        message("services: {a: {builtin: hello}}\nroutes: [{path: /, to: a, deadline: 1s, retry: {attempts: 2}}]"),
        "3 attempts of 500ms need 1s500ms, the deadline is 1s: when they time out, the last attempt can never run"
    );
}

#[test]
fn a_loop_of_messages_names_its_way() {
    let text = "services: {a: {builtin: hello, publishes: [c.x]}, b: {builtin: hello, publishes: [d]}}
channels: {c.x: {subscriptions: {b: {deliver: /c}}}, d: {subscriptions: {back: {service: a, deliver: /d}}}}";
    let found = read(text).findings;
    assert_eq!(found.len(), 1, "{}", listed(&found));
    assert_eq!(found[0].message, "a message may go round for ever: c.x -> b -> d -> a -> c.x");
}

#[test]
fn variables_are_filled_in_and_typed_afterwards() {
    let text = "name: ${NAME}\nservices:\n  a:\n    command: [\"${P}\", a$$b, $HOME]\n    port: ${P:-8081}\n    replicas: ${R:-1}\n    \
                env: {A: \"${P}\", B: 1.10, C: \"${EMPTY}\", D: true, E: '${X:-}'}\n";
    let environment = [("NAME", "shop"), ("P", "9000"), ("EMPTY", "")];
    let topology = topology(load(&sources(&[text], &environment)));
    let service = &topology.services["a"];
    assert_eq!(topology.name.as_deref(), Some("shop"));
    assert_eq!(service.port, Some(Port::Fixed(9000)));
    assert_eq!(service.replicas, Some(1));
    assert_eq!(service.command.as_deref(), Some(["9000", "a$b", "$HOME"].map(String::from).as_slice()));
    let texts: Vec<(&str, String)> =
        service.env.iter().map(|(name, value)| (name.as_str(), value.literal().unwrap_or_default())).collect();
    assert_eq!(
        texts,
        [("A", "9000"), ("B", "1.10"), ("C", ""), ("D", "true"), ("E", "")].map(|(name, value)| (name, value.into()))
    );
    assert_eq!(variables(text), ["EMPTY", "NAME", "P", "R", "X"]);
    assert_eq!(variables("# ${COMMENT}\na: ${A}${A:-x} $$${B} $${C} $D"), ["A", "B"]);
}

#[test]
fn values_of_variables_are_never_shown() {
    let secret = "hunter2 Ω";
    let text = "name: ${S}\napiVersion: ${S}\nkind: x${S}\ndefaults: {deadline: \"${S}\", breaker: {window: \"${S}s\"}}\nproviders:\n  gateway: {embedded: {listen: \"${S}\", instances: \"${S}\"}}\n  \
                runtime: {process: {ports: \"${S}\"}}\n  registry: ${S}\nservices:\n  a:\n    builtin: ${S}\n    port: ${S}\n    replicas: ${S}\n    \
                dependsOn: [\"${S}\"]\n    publishes: [\"${S}\"]\n    health: {http: \"${S}\", tcp: \"${S}\"}\n    env: {U: {urlOf: \"${S}\"}}\nroutes:\n- {path: \"${S}\", host: \"${S}\", \
                methods: [\"${S}\"], headers: {a: \"${S}\\u0001\"}, to: \"${S}\", idempotencyKey: \"${S}\", fallback: {contentType: \"${S}\\u0001\"}}\n\
                - {path: \"${S}\", host: \"${S}\", methods: [\"${S}\"], headers: {a: \"${S}\\u0001\"}, to: [{service: \"${S}\", weight: 0%}]}\n\
                channels:\n  c: {key: \"${S}\", ordered: \"${S}\", maxSize: \"${S}\", subscriptions: {a: {deliver: \"${S}\", service: \"${S}\"}}}\n";
    let found = read_with(text, &[("S", secret)]);
    assert!(found.len() > 20, "{}", listed(&found));
    assert!(!listed(&found).contains("hunter2"), "{}", listed(&found));
}

fn read_with(text: &str, environment: &[(&str, &str)]) -> Vec<Finding> {
    load(&sources(&[text], environment)).findings
}

#[test]
fn several_files_are_one_topology() {
    let one = "name: shop\nlabels: {team: x}\nproviders: {gateway: {embedded: {instances: 2}}}\nservices: {a: {builtin: hello, workingDir: ../w, env: {F: {file: s/x}}}}\nroutes: [{path: /a, to: a}]\n";
    let two = "labels: {stage: y, team: x}\nproviders: {gateway: {embedded: {threads: 2}}}\nservices: {b: {builtin: hello, env: {F: {file: s/x}}}}\n---\nroutes: [{path: /b, to: b}]\n";
    let topology = topology(load(&sources(&[one, two], &[])));
    assert_eq!(topology.labels.len(), 2);
    assert_eq!(topology.routes.iter().map(|route| route.path.as_str()).collect::<Vec<_>>(), ["/a", "/b"]);
    assert_eq!(topology.services["a"].working_dir.as_deref(), Some("/srv/w"));
    assert_eq!(topology.services["b"].working_dir.as_deref(), Some("/srv/two"));
    assert_eq!(topology.services["a"].env["F"], EnvValue::From(EnvSource::File("/srv/one/s/x".into())));
    assert_eq!(topology.services["b"].env["F"], EnvValue::From(EnvSource::File("/srv/two/s/x".into())));

    let found =
        load(&sources(&["name: x\nservices: {a: {builtin: hello}}", "name: y\nservices: {a: {builtin: hello}}"], &[]))
            .findings;
    let place: Vec<(&str, &str, usize, usize)> =
        found.iter().map(|f| (f.code.as_str(), f.file.as_str(), f.line, f.column)).collect();
    assert_eq!(place, [("conflict", "two.yaml", 1, 1), ("conflict", "two.yaml", 2, 12)]);
    assert!(found[1].message.contains("one.yaml:2:12"), "{}", found[1].message);
}

#[test]
fn findings_follow_files_and_lines() {
    let found = load(&sources(&["services: {a: {builtin: hello}}\nx: 1\n", "y: 1\nz: 1\n"], &[])).findings;
    let place: Vec<(&str, usize)> = found.iter().map(|f| (f.file.as_str(), f.line)).collect();
    assert_eq!(place, [("one.yaml", 2), ("two.yaml", 1), ("two.yaml", 2)]);
}

#[test]
fn short_forms_are_taken() {
    let text = "providers: {runtime: process, gateway: {embedded: }, registry: embedded, mesh: gateway}\n\
                services:\n  a:\n    builtin: hello\n    calls:\n    env:\n    health:\n    dependsOn:\n    replicas:\nroutes:\n";
    let topology = topology(read(text));
    assert_eq!(topology.providers, meshctl_model::topology::Providers::default());
    assert_eq!(topology.name.as_deref(), Some("one"));
}

#[test]
fn line_ends_marks_and_wide_characters_count_as_in_an_editor() {
    let unknown = |line, column| vec![("unknown-key".to_owned(), line, column)];
    let services = "services: {a: {builtin: hello}}";
    assert_eq!(findings(&format!("{services}\r\nnmae: x\r\n")), unknown(2, 1));
    assert_eq!(findings(&format!("\u{feff}nmae: x\n{services}\n")), unknown(1, 1));
    assert_eq!(findings("services: {a: {env: {A: 'äöü😀'}, bultin: x, builtin: hello}}"), unknown(1, 34));
    let found = read(&format!("{services}\r\nlabels: {{a: 'é'}}\r\nname: 'é ${{X}}'\r\n")).findings;
    assert_eq!((found[0].line, found[0].column, found[0].end_column), (3, 10, 14));
}

#[test]
fn bombs_are_refused() {
    let laughs = (1..40).fold("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned(), |text, at| {
        format!("{text}a{at}: &a{at} [{}]\n", format!("*a{},", at - 1).repeat(10))
    });
    let long = format!(
        "a: &a \"{}\"\nlabels:\n{}",
        "x".repeat(400_000),
        (0..40).map(|at| format!("  l{at}: *a\n")).collect::<String>()
    );
    let variable = format!("name: \"{}\"", "${A}".repeat(1000));
    for (what, text, code) in [
        ("a large file", "x".repeat((1 << 20) + 1), "too-large"),
        ("many values", "- 1\n".repeat(100_000), "too-large"),
        ("many values in a line", format!("a: [[{}", "1,".repeat(200_000)), "too-large"),
        (
            "many services",
            (0..5_001).fold("services:\n".to_owned(), |text, at| format!("{text}  a{at}: {{builtin: hello}}\n")),
            "too-large",
        ),
        ("many anchors", (0..2_000).map(|at| format!("- &a{at} x\n")).collect(), "too-large"),
        ("a billion laughs", laughs, "too-large"),
        ("a long text many times", long, "too-large"),
        ("a variable many times", variable, "too-large"),
        ("deep lists", "[".repeat(1_000), "too-deep"),
        ("deep blocks", "- ".repeat(1_000), "too-deep"),
        (
            "deep aliases",
            (1..70).fold("a0: &a0 [x]\n".into(), |text, at| format!("{text}a{at}: &a{at} [*a{}]\n", at - 1)),
            "too-deep",
        ),
    ] {
        let found = read_with(&text, &[("A", &"x".repeat(10_000))]);
        assert_eq!(found.iter().map(|f| f.code.as_str()).collect::<Vec<_>>(), [code], "{what}");
    }
}

#[test]
fn no_more_findings_than_anybody_reads() {
    let text = (0..1_000).fold(A.to_owned(), |text, at| format!("{text}x{at}: 1\n"));
    let found = read(&text).findings;
    assert_eq!(found.len(), 101);
    assert_eq!(found[100].code, "more-findings");
    assert!(found[100].message.contains("900 more"), "{}", found[100].message);
}

#[test]
fn four_thousand_services_are_taken() {
    let text = (1..4_000).fold("services:\n  s0: {builtin: hello}\n".to_owned(), |text, at| {
        format!("{text}  s{at}:\n    command: [./server, \"{{{{port}}}}\"]\n    replicas: 2\n    calls: {{s0: }}\n")
    });
    assert_eq!(topology(read(&text)).services.len(), 4_000);
}

/// The starter with the marks of its examples taken away.
fn uncommented() -> String {
    starter().replace("#-", "")
}

#[test]
fn the_starter_is_right_and_so_are_its_examples() {
    let plain = load(&sources(&[starter()], &[]));
    assert_eq!(listed(&plain.findings), "");
    assert_eq!(variables(starter()), ["MESHCTL_PORT"]);
    let all = load(&sources(&[&uncommented()], &[]));
    assert_eq!(listed(&all.findings), "");
    assert_eq!(topology(all).services.len(), 3);
}

mod any_text {
    use proptest::prelude::*;

    use super::*;

    /// Text that is nearly a topology.
    fn nearly() -> impl Strategy<Value = String> {
        let words = prop::sample::select(vec![
            "services",
            "routes",
            "providers",
            "gateway",
            "embedded",
            "a",
            "b",
            "calls",
            "env",
            "urlOf",
            "deadline",
            "retry",
            "attempts",
            "2s",
            "5",
            "true",
            "~",
            ": ",
            ":\n",
            "\n",
            "\n  ",
            "\n    ",
            "- ",
            "[",
            "]",
            "{",
            "}",
            ", ",
            "&x ",
            "*x",
            "!t ",
            "'",
            "\"",
            "|\n",
            "#",
            "${A}",
            "${",
            "$$",
            "---\n",
            "ä",
            "\t",
            "\r\n",
            "<<",
            "? ",
            "builtin: hello",
            "port: 80",
            "channels",
            "subscriptions",
            "publishes",
            "deliver: /a",
            "backoff",
        ]);
        prop::collection::vec(words, 0..60).prop_map(|words| words.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn is_answered(text in prop_oneof![any::<String>(), nearly()]) {
            let loaded = load(&sources(&[&text], &[("A", "x")]));
            let errors = loaded.findings.iter().any(|f| f.severity == Severity::Error);
            prop_assert_eq!(loaded.topology.is_some(), !errors);
            prop_assert!(loaded.findings.iter().all(|f| f.line > 0 && f.column > 0 && f.code != "internal"));
            drop(variables(&text));
        }
    }
}
