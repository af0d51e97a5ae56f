//! Several gateways on one address, and who may have an address at all.

use std::net::TcpListener;

use meshctl_tests::{Load, System, process, wait_until};
use serde_json::Value;

use crate::HELLO;

/// [`HELLO`] with two gateways that share the address.
fn twofold(system: &System) -> String {
    let file = system.file(HELLO);
    let text = std::fs::read_to_string(file).expect("the topology");
    let two = text.replacen("gateway: { embedded: { ", "gateway: { embedded: { instances: 2, ", 1);
    assert_ne!(two, text);
    system.raw_file("two.yaml", &two)
}

fn gateways(system: &System) -> Vec<Value> {
    system.status()["gateways"].as_array().expect("gateways").clone()
}

fn pids(system: &System) -> Vec<u64> {
    gateways(system).iter().filter_map(|gateway| gateway["pid"].as_u64()).collect()
}

/// What a gateway has carried, by its own count.
fn carried(gateway: &Value) -> u64 {
    let url = gateway["metricsUrl"].as_str().expect("metricsUrl");
    let text = String::from_utf8(meshctl_tests::get(url).expect("metrics").body).expect("text");
    let counts = text.lines().filter(|line| !line.starts_with('#') && line.contains("_requests_total"));
    counts.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).map(|count| count as u64).sum()
}

#[test]
fn two_gateways_share_the_load_and_one_goes_on_when_the_other_dies() {
    let system = System::new();
    let file = twofold(&system);
    system.run(&["apply", &file, "--yes"]).expect(0);
    let before = pids(&system);
    assert_eq!(before.len(), 2, "{:#?}", gateways(&system));
    // Every request comes on a connection of its own, and the kernel spreads connections.
    wait_until("both to be asked", || {
        assert_eq!(system.get("/").status, 200);
        gateways(&system).iter().all(|gateway| carried(gateway) > 0)
    });

    let load = Load::start(&system.url("/"), 8);
    load.pass(100);
    process::kill(u32::try_from(before[0]).expect("a pid"));
    load.pass(200);
    wait_until("another in its place", || {
        let now = pids(&system);
        system.status()["ready"] == true && now.len() == 2 && !now.contains(&before[0])
    });
    load.pass(100);
    assert!(pids(&system).contains(&before[1]), "the other one was never touched");
    // What was on its way through the one that died is lost; nothing else is, and nothing answers with an error.
    let tally = load.finish();
    assert!(tally.failed.keys().all(|reason| !reason.starts_with(['4', '5'])), "{tally:?}");
    assert!(tally.failed.values().sum::<u64>() <= 8, "more than one request of a connection was lost: {tally:?}");
    system.down();
}

#[test]
fn one_of_two_gateways_may_be_taken_away_under_load() {
    let system = System::new();
    let file = twofold(&system);
    system.run(&["apply", &file, "--yes"]).expect(0);
    let load = Load::start(&system.url("/"), 8);
    load.pass(100);
    system.apply(HELLO);
    load.pass(100);
    assert_eq!(pids(&system).len(), 1);
    system.run(&["apply", &file, "--yes"]).expect(0);
    load.pass(100);
    assert_eq!(pids(&system).len(), 2);
    load.finish().expect_no_failure();
}

#[test]
fn an_address_that_somebody_else_has_is_named_and_taken_when_it_is_free() {
    let system = System::new();
    let address = format!("127.0.0.1:{}", system.port(0));
    let somebody = TcpListener::bind(&address).expect("a free port");
    let ran = system.try_apply(HELLO).expect(1);
    assert!(ran.stderr.contains(&address) && ran.stderr.to_lowercase().contains("in use"), "{ran}");
    let status = system.status();
    assert_eq!(status["ready"], false);
    assert!(status["gateways"][0]["reason"].as_str().is_some_and(|why| why.contains(&address)), "{status:#}");
    assert_eq!(system.service("hello")["state"], "ready", "the rest runs");

    drop(somebody);
    system.apply(HELLO);
    assert_eq!(system.get("/").status, 200);
    system.down();
}

#[test]
fn two_systems_do_not_share_an_address() {
    let (one, two) = (System::new(), System::new());
    one.apply(HELLO);
    let text = std::fs::read_to_string(two.file(HELLO)).expect("the topology");
    let same = text.replacen(&two.port(0).to_string(), &one.port(0).to_string(), 1);
    assert_ne!(same, text);
    let file = two.raw_file("same.yaml", &same);
    let ran = two.run(&["apply", &file, "--yes"]).expect(1);
    let address = format!("127.0.0.1:{}", one.port(0));
    assert!(ran.stderr.contains(&address), "{ran}");

    // Not one request goes astray: only the first system's instances answer.
    let state = one.state_dir().to_string_lossy().into_owned();
    let ours = one.processes();
    assert!(!ours.is_empty() && two.processes().iter().all(|pid| !ours.contains(pid)), "{state}");
    let urls: Vec<String> =
        two.instances("hello").iter().filter_map(|i| Some(format!("http://{}", i["address"].as_str()?))).collect();
    assert_eq!(urls.len(), 2);
    let health =
        |url: &String| meshctl_tests::get(&format!("{url}/healthz")).expect("an answer").json()["admin"].clone();
    let admins: Vec<String> = urls.iter().filter_map(|url| health(url).as_str().map(str::to_owned)).collect();
    (0..50).for_each(|_| assert_eq!(one.get("/").status, 200));
    for admin in admins {
        let state = meshctl_tests::get(&format!("http://{admin}/state")).expect("an answer").json();
        assert_eq!(state["requests"], 0, "{state:#}");
    }
}
