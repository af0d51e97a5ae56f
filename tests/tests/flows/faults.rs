//! Messages flow while everything that carries them is killed and frozen, and counts that are not ours say what arrived.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use meshctl_tests::{Jobs, System, job, process, repository, send, wait_for, wait_until};
use rustix::process::Signal;
use serde_json::{Value, json};

/// Publishes until told to stop, as a service with an outbox does: every message again under its key until it is accepted.
fn publish_until(jobs: &Jobs, first: usize, stop: &AtomicBool) -> BTreeMap<String, usize> {
    let mut accepted = BTreeMap::new();
    let mut number = first;
    while !stop.load(Ordering::Relaxed) {
        let began = Instant::now();
        let key = format!("job-{number}");
        let id = loop {
            assert!(began.elapsed() < Duration::from_secs(90), "{key} could not be published for 90 s");
            match jobs.try_publish(&[("idempotency-key", &key)], &job(number, "good")) {
                Ok(answer) if answer.status == 202 => break answer.json()["messageId"].clone(),
                Ok(answer) => assert!(answer.status >= 500, "{}", String::from_utf8_lossy(&answer.body)),
                Err(_) => {}
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        accepted.insert(id.as_str().expect("messageId").to_owned(), number);
        number += 1;
    }
    accepted
}

#[test]
fn nothing_acknowledged_is_lost_whatever_is_killed_or_frozen() {
    let jobs = Jobs::new("", "concurrency: 16, timeout: 2s");
    jobs.system.run(&["scale", "courier=2", "--yes"]).expect(0);
    let stop = AtomicBool::new(false);
    let accepted = std::thread::scope(|scope| {
        let publishers: Vec<_> = (0..3)
            .map(|n| {
                scope.spawn({
                    let (jobs, stop) = (&jobs, &stop);
                    move || publish_until(jobs, n * 1_000_000, stop)
                })
            })
            .collect();
        for service in ["broker", "courier", "worker", "broker", "courier"] {
            let before = jobs.processed().len();
            wait_until("messages to flow", || jobs.processed().len() > before + 100);
            let pid = jobs.system.pids(service)[0];
            process::kill(pid);
            wait_until("the killed one to be replaced", || {
                jobs.system.status()["ready"] == true && !jobs.system.pids(service).contains(&pid)
            });
        }
        for service in ["courier", "broker", "worker"] {
            let before = jobs.processed().len();
            wait_until("messages to flow", || jobs.processed().len() > before + 100);
            let pid = jobs.system.pids(service)[0];
            process::signal(pid, Signal::STOP);
            // Long enough for every timeout on the way: what is frozen is noticed by its silence.
            std::thread::sleep(Duration::from_secs(4));
            process::signal(pid, Signal::CONT);
        }
        jobs.system.kill_daemon();
        let before = jobs.processed().len();
        wait_until("messages to flow without a daemon", || jobs.processed().len() > before + 100);
        jobs.system.run(&["apply", &jobs.system.folder().join("topology.yaml").to_string_lossy(), "--yes"]).expect(0);
        stop.store(true, Ordering::Relaxed);
        publishers.into_iter().flat_map(|publisher| publisher.join().expect("a publisher")).collect::<BTreeMap<_, _>>()
    });
    wait_until("everything that was acknowledged to arrive", || {
        let processed = jobs.processed();
        accepted.keys().all(|id| processed.contains_key(id))
    });
    let row = jobs.settled();
    // A duplicate bears the id of the first: told apart by it, there are exactly as many as were published.
    assert_eq!(jobs.processed().len(), accepted.len(), "phantoms");
    assert_eq!((&row["accepted"], &row["dead"]), (&json!(accepted.len()), &json!(0)), "{row:#}");
    assert_eq!(row["processed"], accepted.len(), "{row:#}");
    let numbers: BTreeSet<_> = accepted.values().collect();
    assert_eq!(numbers.len(), accepted.len(), "one publish, one message");
    jobs.system.down();
}

#[test]
fn what_was_accepted_outlives_the_whole_system() {
    let jobs = Jobs::new("", "");
    jobs.system.run(&["channel", "pause", "jobs/worker", "--reason", "to keep them", "--yes"]).expect(0);
    let ids: BTreeSet<_> = (0..50).map(|number| jobs.publish(&job(number, "good"))).collect();
    jobs.system.down();
    jobs.system.run(&["apply", &jobs.system.folder().join("topology.yaml").to_string_lossy(), "--yes"]).expect(0);
    assert_eq!(jobs.ledger()["inFlight"], 50);
    jobs.system.run(&["channel", "resume", "jobs/worker", "--yes"]).expect(0);
    wait_until("everything to arrive", || jobs.processed().len() == 50);
    assert!(ids.iter().all(|id| jobs.processed().contains_key(id)));
}

fn shop() -> System {
    let system = System::new();
    let port = system.port(0).to_string();
    let system = system.with("SHOP_PORT", &port);
    let file = repository().join("manifests/topologies/shop.yaml");
    system.run(&["apply", &file.to_string_lossy(), "--yes"]).expect(0);
    system
}

fn order(system: &System, key: &str) -> Option<String> {
    let headers = [("content-type", "application/json"), ("idempotency-key", key)];
    let body = json!({"sku": "book", "quantity": 1}).to_string().into_bytes();
    let answer = send("POST", &system.url("/orders"), &headers, body).ok()?;
    (answer.status == 201).then(|| answer.json()["orderId"].as_str().expect("orderId").to_owned())
}

/// What one instance of a reference service has counted; all instances share one store.
fn counted(system: &System, service: &str) -> Value {
    let instances = system.instances(service);
    let address = instances[0]["address"].as_str().expect("an address");
    let health = meshctl_tests::get(&format!("http://{address}/healthz")).expect("an answer").json();
    let admin = health["admin"].as_str().expect("the address of the admin port");
    meshctl_tests::get(&format!("http://{admin}/state")).expect("an answer").json()
}

#[test]
fn every_order_has_exactly_one_invoice_and_one_shipment_whatever_dies() {
    let system = shop();
    let mut orders = BTreeSet::new();
    for (round, victim) in ["orders", "billing", "broker", "shipping", "courier"].into_iter().enumerate() {
        for number in 0..10 {
            let key = format!("order-{round}-{number}");
            if number == 5 {
                process::kill(system.pids(victim)[0]);
            }
            orders.insert(wait_for("the order to be taken", || order(&system, &key)));
        }
        wait_until("the shop to be whole again", || system.status()["ready"] == true);
    }
    for id in &orders {
        for path in ["invoices", "shipments"] {
            wait_until(&format!("/{path}/{id}"), || system.get(&format!("/{path}/{id}")).status == 200);
        }
    }
    assert_eq!(orders.len(), 50);
    for service in ["billing", "shipping"] {
        let state = counted(&system, service);
        assert_eq!(state["applied"], 50, "{service}: {state:#}");
    }
    wait_until("the ledger to be balanced and settled", || {
        let ledger = system.run(&["ledger", "-o", "json"]).json();
        let rows = ledger["items"].as_array().cloned().unwrap_or_default();
        rows.len() == 2 && rows.iter().all(|row| row["balanced"] == true && row["processed"] == 50)
    });
    assert!(system.json(&["dlq", "ls"])["items"].as_array().is_some_and(Vec::is_empty));
    system.down();
}
