//! Registrations from outside: programs that meshctl did not start are in routing for as long as they say that they live.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use meshctl_tests::{Load, System, wait_until};
use serde_json::{Value, json};

use crate::HELLO;

/// A program of somebody else's, on a port of its own. It says who answered: `outside`.
struct Outside {
    child: Child,
    address: String,
}

impl Outside {
    fn start(system: &System) -> Self {
        let port = system.port(9).to_string();
        let mut command = system.command(&["service", "hello"]);
        command.env("PORT", &port).env("MESHCTL_INSTANCE", "outside").stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().expect("a program from outside");
        let address = format!("127.0.0.1:{port}");
        wait_until("it to listen", || meshctl_tests::get(&format!("http://{address}/healthz")).is_ok());
        Self { child, address }
    }

    /// How many it was asked, health checks left out.
    fn requests(&self) -> u64 {
        let health = meshctl_tests::get(&format!("http://{}/healthz", self.address)).expect("an answer").json();
        let state = format!("http://{}/state", health["admin"].as_str().expect("the admin port"));
        meshctl_tests::get(&state).expect("an answer").json()["requests"].as_u64().expect("a count")
    }

    fn register(&self, system: &System, lease_ms: u64) {
        let body = json!({"address": self.address, "leaseMs": lease_ms});
        let answer = system.api("PUT", "/v1/services/hello/endpoints/outside", &body);
        assert_eq!(answer.status, 204, "{}", String::from_utf8_lossy(&answer.body));
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _ended = self.child.wait();
    }
}

/// The endpoint `outside`, as the API shows it.
fn listed(system: &System) -> Option<Value> {
    let view = system.api("GET", "/v1/endpoints?service=hello", &Value::Null).json();
    view["items"].as_array().expect("items").iter().find(|endpoint| endpoint["id"] == "outside").cloned()
}

fn answers(system: &System) -> bool {
    // One that was slow at first gets less than its share for some seconds; who needs to see it asked waits for that.
    (0..30).any(|_| system.get("/").header("served-by") == "outside")
}

fn count_of(system: &System, kind: &str) -> usize {
    let events = system.json(&["events"]);
    events["items"].as_array().expect("items").iter().filter(|event| event["type"] == kind).count()
}

#[test]
fn one_from_outside_is_asked_until_it_is_taken_out() {
    let system = System::new();
    system.apply(HELLO);
    let outside = Outside::start(&system);
    assert!(!answers(&system), "nobody knows of it yet");
    outside.register(&system, 60_000);
    wait_until("it to be asked", || answers(&system));
    let endpoint = listed(&system).expect("it is listed");
    assert_eq!((&endpoint["inRouting"], &endpoint["source"]), (&json!(true), &json!("lease")), "{endpoint:#}");
    assert!(endpoint["expiresAt"].is_string(), "{endpoint:#}");
    system.run(&["registry", "ls"]).expect(0).says("outside");

    let load = Load::start(&system.url("/"), 4);
    load.pass(50);
    let path = "/v1/services/hello/endpoints/outside";
    assert_eq!(system.api("DELETE", path, &Value::Null).status, 204);
    wait_until("it to be asked no more", || {
        let before = outside.requests();
        load.pass(50);
        outside.requests() == before
    });
    load.pass(50);
    load.finish().expect_no_failure();
    assert_eq!(listed(&system), None);
    assert_eq!(system.api("DELETE", path, &Value::Null).status, 404);
    let nonsense = system.api("PUT", path, &json!({"address": "nowhere"}));
    assert_eq!(nonsense.status, 400, "{}", String::from_utf8_lossy(&nonsense.body));
    assert!(nonsense.json()["hint"].is_string());
    let instance = system.instances("hello")[0]["id"].as_str().expect("an id").to_owned();
    let taken =
        system.api("PUT", &format!("/v1/services/hello/endpoints/{instance}"), &json!({"address": outside.address}));
    assert_eq!(taken.status, 409, "an instance of ours cannot be registered by others");
}

#[test]
fn a_lease_that_is_renewed_stays_and_one_that_is_not_ends() {
    let system = System::new();
    system.apply(HELLO);
    let outside = Outside::start(&system);
    let (lease, began) = (Duration::from_secs(2), Instant::now());
    // Beyond its first end, renewed all the time.
    while began.elapsed() < lease + lease / 4 {
        outside.register(&system, u64::try_from(lease.as_millis()).expect("milliseconds"));
        assert!(listed(&system).is_some(), "it is gone after {:?}", began.elapsed());
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!((count_of(&system, "endpoint.registered"), count_of(&system, "endpoint.expired")), (1, 0));
    wait_until("the lease to end", || listed(&system).is_none());
    wait_until("it to be asked no more", || {
        let before = outside.requests();
        !answers(&system) && outside.requests() == before
    });
    assert_eq!(count_of(&system, "endpoint.expired"), 1);
}

#[test]
fn a_registration_outlives_the_daemon_and_a_lease_ends_also_while_it_is_away() {
    let system = System::new();
    system.apply(HELLO);
    let outside = Outside::start(&system);
    outside.register(&system, 60_000);
    let ends = Instant::now() + Duration::from_millis(500);
    let body = json!({"address": "127.0.0.1:9", "leaseMs": 500});
    assert_eq!(system.api("PUT", "/v1/services/elsewhere/endpoints/short", &body).status, 204);
    wait_until("it to be asked", || answers(&system));
    let before = listed(&system).expect("it is listed");

    system.kill_daemon();
    wait_until("it to be asked, the daemon being away", || answers(&system));
    wait_until("the shorter lease to be over", || Instant::now() > ends);
    system.apply(HELLO);
    let after = listed(&system).expect("it is known to the next daemon");
    assert_eq!((&after["address"], &after["expiresAt"]), (&before["address"], &before["expiresAt"]));
    wait_until("it to be in routing", || listed(&system).is_some_and(|endpoint| endpoint["inRouting"] == true));
    wait_until("it to be asked again", || answers(&system));
    let view = system.api("GET", "/v1/endpoints?service=elsewhere", &Value::Null).json();
    assert_eq!(view["items"], json!([]));
}

#[test]
fn a_watch_is_answered_when_something_changes() {
    let system = System::new();
    system.apply(HELLO);
    let present = system.api("GET", "/v1/endpoints?service=hello", &Value::Null).json();
    let index = present["index"].as_u64().expect("an index");
    let path = format!("/v1/endpoints?service=hello&index={index}&waitMs=60000");
    let seen = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| system.api("GET", &path, &Value::Null).json());
        let body = json!({"address": "127.0.0.1:9", "leaseMs": 60_000});
        assert_eq!(system.api("PUT", "/v1/services/hello/endpoints/outside", &body).status, 204);
        watcher.join().expect("an answer")
    });
    assert!(seen["index"].as_u64() > Some(index), "{seen:#}");
    assert_eq!(seen["items"].as_array().map(Vec::len), Some(3), "{seen:#}");
    // Without a change the answer comes at the end of the wait, with the same index.
    let index = seen["index"].as_u64().expect("an index");
    let same = system.api("GET", &format!("/v1/endpoints?service=hello&index={index}&waitMs=1"), &Value::Null).json();
    assert_eq!(same["index"], index);
}
