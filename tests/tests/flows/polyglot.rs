//! Strangers: programs that know nothing of meshctl, in whatever language this machine has.

use meshctl_tests::{System, installed, repository, skip};

fn apply(name: &str) -> System {
    let system = System::new();
    let port = system.port(0).to_string();
    let system = system.with("POLYGLOT_PORT", &port);
    let file = repository().join("manifests/topologies").join(name);
    system.run(&["apply", &file.to_string_lossy(), "--yes"]).expect(0);
    system
}

#[test]
fn python_and_node_find_each_other_by_their_own_variables() {
    for program in ["python3", "node"] {
        if !installed(program) {
            skip!("{program} is not installed");
        }
    }
    let system = apply("polyglot.yaml");
    let quote = system.get("/quote/tea").json();
    assert_eq!(quote["price"], "4.50 EUR", "{quote:#}");
    assert_eq!(system.get("/quote/gold").status, 404);
    assert_eq!(system.get("/files/catalogue.json").json()["tea"], 450);
    let edges = system.json(&["get", "edges"]);
    for name in ["quote:prices", "prices:files"] {
        let edge = edges["items"].as_array().expect("items").iter().find(|edge| edge["name"] == name);
        assert!(edge.is_some_and(|edge| edge["requests"].as_u64() > Some(0)), "nothing went through {name}: {edges:#}");
    }
    system.down();
}

#[test]
fn a_go_program_runs_from_its_source() {
    if !installed("go") {
        skip!("go is not installed");
    }
    let system = apply("polyglot-go.yaml");
    let body = String::from_utf8(system.get("/shout").body).expect("text");
    assert!(body.contains("HELLO FROM"), "{body}");
    system.down();
}
