//! The asynchronous half: whether messages flow, and whether every one of them is accounted for.

use meshctl_api::view::messages::{Channel, LedgerEntry};
use meshctl_api::view::{Service, Status};
use meshctl_model::delivery::{BROKER, COURIER};

use super::{Check, PATIENCE, broken, careful, good};
use crate::commands::imbalance;
use crate::failure::Failure;
use crate::letters::count;
use crate::session::Session;

/// What the daemon says of a system that has channels.
pub(super) struct Facts {
    broker: Service,
    couriers: Vec<Service>,
    channels: Result<Vec<Channel>, Failure>,
    ledger: Result<Vec<LedgerEntry>, Failure>,
}

/// Asks the daemon; nothing where the system has no channels.
pub(super) async fn gather(session: &Session, status: &Status) -> Option<Facts> {
    let of_kind = |kind: &str| status.items.iter().filter(|one| one.kind == kind).cloned().collect::<Vec<_>>();
    let broker = of_kind(BROKER).pop()?;
    let client = session.client().ok()?.patience(PATIENCE);
    Some(Facts {
        broker,
        couriers: of_kind(COURIER),
        channels: client.channels().await.map(|list| list.items).map_err(Failure::from),
        ledger: client.ledger().await.map(|list| list.items).map_err(Failure::from),
    })
}

pub(super) fn examine(facts: &Facts) -> Vec<Check> {
    let mut checks = vec![broker(facts)];
    checks.extend(facts.couriers.iter().map(couriers));
    if let Ok(channels) = &facts.channels {
        checks.extend(flow(channels));
        checks.push(dead_letters(channels));
    }
    match &facts.ledger {
        Ok(entries) => checks.extend(ledger(entries)),
        // Without a broker there is nothing to count, and that was said.
        Err(_) if facts.channels.is_err() => {}
        Err(failure) => checks.push(broken(format!("no ledger: {}", failure.message), remedy(failure))),
    }
    checks
}

fn broker(facts: &Facts) -> Check {
    match &facts.channels {
        Ok(channels) if facts.broker.ready > 0 => good(match channels.len() {
            1 => "the broker answers: 1 channel".to_owned(),
            count => format!("the broker answers: {count} channels"),
        }),
        Ok(_) => broken("the broker is not ready", "`meshctl logs broker` shows why; publishers wait meanwhile"),
        Err(failure) => broken(format!("the broker does not answer: {}", failure.message), remedy(failure)),
    }
}

fn remedy(failure: &Failure) -> String {
    failure.hint.clone().unwrap_or_else(|| "`meshctl logs broker` shows why".to_owned())
}

/// A courier is ready once it has joined all its channels.
fn couriers(service: &Service) -> Check {
    let Service { name, ready, desired, .. } = service;
    let remedy = format!("`meshctl logs {name}` shows why");
    match *ready {
        0 => broken(format!("no courier is connected, and nothing is delivered (0 of {desired})"), remedy),
        ready if ready < *desired => careful(format!("{ready} of {desired} couriers are connected"), remedy),
        1 => good("the courier is connected"),
        ready => good(format!("{ready} couriers are connected")),
    }
}

fn flow(channels: &[Channel]) -> Vec<Check> {
    let all: Vec<_> = channels.iter().flat_map(|channel| &channel.subscriptions).collect();
    let mut checks: Vec<Check> = all
        .iter()
        .filter(|one| one.state != "flowing")
        .map(|one| {
            let why = one.reason.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
            let wait = if one.lag == 1 { "message waits" } else { "messages wait" };
            let waiting = format!("{} is {}{why}; {} {wait}", one.name, one.state, one.lag);
            match one.state.as_str() {
                "paused" => careful(waiting, format!("`meshctl channel resume {}` delivers them", one.name)),
                _ => {
                    broken(waiting, format!("it resumes by itself; `meshctl logs {}` shows what is wrong", one.service))
                }
            }
        })
        .collect();
    if checks.is_empty() {
        checks.push(good(format!("all {} subscriptions flow", all.len())));
    }
    checks
}

fn dead_letters(channels: &[Channel]) -> Check {
    match channels.iter().map(|channel| channel.dead_letters).sum() {
        0 => good("there are no dead letters"),
        letters => careful(
            format!("there {} {}", if letters == 1 { "is" } else { "are" }, count(letters)),
            "`meshctl dlq ls --group-by fingerprint` shows why; `meshctl dlq replay` delivers them again",
        ),
    }
}

fn ledger(entries: &[LedgerEntry]) -> Vec<Check> {
    let mut checks: Vec<Check> = entries
        .iter()
        .filter(|entry| !entry.balanced)
        .map(|entry| {
            let what = format!("the ledger of {} is not balanced: {}", entry.name, imbalance(entry));
            broken(what, "`meshctl ledger` shows where it stands; `meshctl events` what happened")
        })
        .collect();
    if checks.is_empty() {
        checks.push(good("the ledger is balanced"));
    }
    checks
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::examine::Grade;

    fn service(kind: &str, ready: u32) -> Service {
        let service = json!({
            "name": kind, "kind": kind, "serviceId": kind, "desired": 1, "ready": ready, "state": "ready",
            "blockedBy": null, "reason": null, "endpoint": null, "instances": [], "labels": {}
        });
        serde_json::from_value(service).expect("a service")
    }

    fn channel(state: &str, dead_letters: u64) -> Channel {
        let subscription = json!({
            "name": "order.placed/billing", "channel": "order.placed", "subscription": "billing", "service": "billing",
            "deliver": "/events", "state": state, "reason": "connection refused", "since": null, "lag": 7, "inFlight": 0,
            "retrying": 0, "deadLetters": dead_letters, "deliveredPerS": 0.0, "oldestMs": null, "latencyP50Ms": null,
            "latencyP99Ms": null, "concurrency": 64, "attempts": 6
        });
        let channel = json!({
            "name": "order.placed", "partitions": 8, "ordered": "no", "depth": 7, "inFlight": 0, "lag": 7,
            "deadLetters": dead_letters, "publishedPerS": 0.0, "deliveredPerS": 0.0, "accepted": 9, "kept": 9,
            "keptBytes": 900, "retentionMs": 1000, "maxSizeBytes": 1000, "publishers": ["orders"],
            "subscriptions": Value::Array(vec![subscription])
        });
        serde_json::from_value(channel).expect("a channel")
    }

    fn entry(missing: i64) -> LedgerEntry {
        let entry = json!({
            "name": "order.placed/billing", "channel": "order.placed", "subscription": "billing", "accepted": 9,
            "processed": 2, "inFlight": 7, "retrying": 0, "dead": 0, "parked": 0, "discarded": 0,
            "balanced": missing == 0, "missing": missing
        });
        serde_json::from_value(entry).expect("an entry")
    }

    fn facts(state: &str, dead_letters: u64, missing: i64) -> Facts {
        Facts {
            broker: service("broker", 1),
            couriers: vec![service("courier", 1)],
            channels: Ok(vec![channel(state, dead_letters)]),
            ledger: Ok(vec![entry(missing)]),
        }
    }

    fn grades(facts: &Facts) -> Vec<Grade> {
        examine(facts).iter().map(|check| check.grade).collect()
    }

    #[test]
    fn what_is_wrong_with_messages_is_found() {
        use Grade::{Broken, Careful, Good};
        assert_eq!(grades(&facts("flowing", 0, 0)), [Good; 5]);
        assert_eq!(grades(&facts("paused", 3, 0)), [Good, Good, Careful, Careful, Good]);
        assert_eq!(grades(&facts("waiting", 0, 2)), [Good, Good, Broken, Good, Broken]);
        let away = || Err(Failure::new(1, "the broker is away"));
        let no_broker = Facts { channels: away(), ledger: Err(Failure::new(1, "")), ..facts("flowing", 0, 0) };
        assert_eq!(grades(&no_broker), [Broken, Good], "and no more is said about what nobody can count");
        let no_courier = Facts { couriers: vec![service("courier", 0)], ..facts("flowing", 0, 0) };
        assert_eq!(grades(&no_courier)[1], Broken);
        let unbalanced = examine(&facts("flowing", 0, -2)).pop().expect("the last is the ledger");
        assert!(
            unbalanced.message.ends_with("2 messages are somewhere and were never accepted"),
            "{}",
            unbalanced.message
        );
    }
}
