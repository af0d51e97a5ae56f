//! A topology with one channel, a stranger that publishes and a stranger that receives, both known by plain HTTP only, and
//! counts that are nobody's but the test's.

use std::collections::BTreeMap;
use std::fs;

use serde_json::{Value, json};

use crate::{Answer, System, repository, send};

/// A system whose channel `jobs` is subscribed to by `worker`.
pub struct Jobs {
    pub system: System,
    publish_url: String,
}

/// One delivery as the subscriber saw it.
#[derive(Clone, Debug)]
pub struct Received {
    pub id: String,
    pub path: String,
    /// What it answered.
    pub status: u64,
    pub headers: BTreeMap<String, String>,
    pub body: String,
}

impl Jobs {
    /// Applies the topology. `channel` and `subscription` are further fields of the two, as YAML flow: `ordered: byKey`.
    #[track_caller]
    pub fn new(channel: &str, subscription: &str) -> Self {
        Self::with(&System::new, channel, subscription)
    }

    /// The same in a system that is made otherwise.
    #[track_caller]
    pub fn with(make: &dyn Fn() -> System, channel: &str, subscription: &str) -> Self {
        let system = make();
        system.apply(&topology(&system, channel, subscription));
        let edges = system.json(&["get", "edges"]);
        let edge = edges["items"].as_array().expect("items").iter().find(|edge| edge["name"] == "app:courier");
        let address =
            edge.and_then(|edge| edge["url"].as_str()).unwrap_or_else(|| panic!("no app:courier in {edges:#}"));
        let publish_url = format!("{address}/channels/jobs/messages");
        Self { system, publish_url }
    }

    /// The body of the topology, to apply it in another form.
    pub fn topology(&self, channel: &str, subscription: &str) -> String {
        topology(&self.system, channel, subscription)
    }

    pub fn publish_url(&self) -> &str {
        &self.publish_url
    }

    /// Publishes as a service does; an error is a publish that got no answer.
    pub fn try_publish(&self, headers: &[(&str, &str)], payload: &Value) -> Result<Answer, String> {
        let headers: Vec<_> = headers.iter().copied().chain([("content-type", "application/json")]).collect();
        send("POST", &self.publish_url, &headers, payload.to_string().into_bytes())
    }

    /// Publishes, which must be accepted; the message's id.
    #[track_caller]
    pub fn publish(&self, payload: &Value) -> String {
        let answer = self.try_publish(&[], payload).expect("an answer");
        assert_eq!(answer.status, 202, "{}", String::from_utf8_lossy(&answer.body));
        answer.json()["messageId"].as_str().expect("messageId").to_owned()
    }

    /// How the subscriber answers from now on; see tests/fixtures/receiver.py.
    pub fn behave(&self, how: &Value) {
        let path = self.system.folder().join("behave.json");
        let partial = path.with_extension("new");
        fs::write(&partial, how.to_string()).expect("a file for the receiver");
        fs::rename(partial, path).expect("a file for the receiver");
    }

    /// Every delivery so far, in the order in which the subscriber answered them.
    pub fn received(&self) -> Vec<Received> {
        let text = fs::read_to_string(self.system.folder().join("received.jsonl")).unwrap_or_default();
        let complete = text.rfind('\n').map_or("", |end| &text[..=end]);
        complete.lines().map(|line| received(&serde_json::from_str(line).expect("a line of the receiver"))).collect()
    }

    /// How often each message was delivered and answered 2xx.
    pub fn processed(&self) -> BTreeMap<String, u32> {
        let mut processed = BTreeMap::new();
        for delivery in self.received().into_iter().filter(|delivery| delivery.status < 300) {
            *processed.entry(delivery.id).or_default() += 1;
        }
        processed
    }

    /// The row of the ledger.
    #[track_caller]
    pub fn ledger(&self) -> Value {
        let ran = self.system.run(&["ledger", "-o", "json"]);
        let ledger = ran.json();
        let items = ledger["items"].as_array().unwrap_or_else(|| panic!("no items in {ledger:#}"));
        items.iter().find(|row| row["name"] == "jobs/worker").unwrap_or_else(|| panic!("{ledger:#}")).clone()
    }

    /// Waits until nothing is on its way any more; the ledger then.
    #[track_caller]
    pub fn settled(&self) -> Value {
        crate::wait_for("every message to be settled", || {
            let row = self.ledger();
            (row["inFlight"] == 0 && row["retrying"] == 0 && row["balanced"] == true).then_some(row)
        })
    }

    #[track_caller]
    pub fn dead_letters(&self) -> Vec<Value> {
        self.system.json(&["dlq", "ls"])["items"].as_array().cloned().unwrap_or_default()
    }

    /// Waits for so many dead letters.
    #[track_caller]
    pub fn wait_for_dead(&self, count: usize) -> Vec<Value> {
        crate::wait_for(&format!("{count} dead letters"), || {
            Some(self.dead_letters()).filter(|letters| letters.len() == count)
        })
    }
}

fn topology(system: &System, channel: &str, subscription: &str) -> String {
    let receiver = repository().join("tests/fixtures/receiver.py");
    let (received, behave) = (system.folder().join("received.jsonl"), system.folder().join("behave.json"));
    let comma = |text: &str| if text.is_empty() { String::new() } else { format!(", {text}") };
    let (fields, more) = (comma(channel), comma(subscription));
    format!(
        "
services:
  app: {{ builtin: hello, publishes: [jobs], health: {{ http: /healthz, interval: 200ms }} }}
  worker:
    command: [python3, {receiver:?}]
    env: {{ RECEIVED: {received:?}, BEHAVE: {behave:?} }}
    health: {{ tcp: true, interval: 200ms }}
channels:
  jobs: {{ partitions: 4, key: key{fields}, subscriptions: {{ worker: {{ deliver: /work{more} }} }} }}
"
    )
}

fn received(line: &Value) -> Received {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let headers = line["headers"].as_object().cloned().unwrap_or_default();
    Received {
        id: text(&line["id"]),
        path: text(&line["path"]),
        status: line["status"].as_u64().unwrap_or_default(),
        headers: headers.iter().map(|(name, value)| (name.clone(), text(value))).collect(),
        body: text(&line["body"]),
    }
}

/// A payload that is told apart by `number` and treated by `kind`.
pub fn job(number: usize, kind: &str) -> Value {
    json!({"number": number, "kind": kind, "key": format!("k{}", number % 7)})
}
