//! From a publish by plain HTTP to a subscriber that knows plain HTTP, and what becomes of a message that it does not take.

use std::collections::BTreeSet;

use meshctl_tests::{Jobs, job, process, send, wait_for, wait_until};
use serde_json::json;

#[test]
fn a_message_arrives_with_its_bytes_its_headers_and_a_name_of_its_own() {
    let jobs = Jobs::new("", "");
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let headers = [("traceparent", trace), ("ce-id", "e-1"), ("ce-type", "job.wanted"), ("ce-source", "/app/7")];
    let answer = jobs.try_publish(&headers, &job(1, "good")).expect("an answer");
    assert_eq!(answer.status, 202);
    let accepted = answer.json();
    let delivery = wait_for("the delivery", || jobs.received().pop());
    assert_eq!(delivery.path, "/work");
    assert_eq!(delivery.body, job(1, "good").to_string());
    let header = |name: &str| delivery.headers.get(name).map(String::as_str).unwrap_or_default();
    assert_eq!(json!(header("meshctl-message-id")), accepted["messageId"]);
    assert_eq!(header("ce-id"), "e-1");
    assert_eq!(header("ce-type"), "job.wanted");
    assert_eq!(header("ce-source"), "/app/7", "a source and an id name an event");
    let messages = jobs.system.json(&["get", "messages"]);
    assert_eq!(messages["items"][0]["service"], "app", "who published it is known all the same: {messages:#}");
    assert_eq!(header("ce-specversion"), "1.0");
    assert_eq!(header("content-type"), "application/json");
    assert_eq!(header("meshctl-attempt"), "1");
    assert_eq!(header("meshctl-channel"), "jobs");
    assert_eq!(header("meshctl-subscription"), "worker");
    assert!(header("traceparent").starts_with(&trace[..36]), "the trace goes on: {delivery:#?}");
    assert_ne!(header("traceparent"), trace, "a delivery is a span of its own");
    let row = jobs.settled();
    assert_eq!((&row["accepted"], &row["processed"], &row["dead"]), (&json!(1), &json!(1), &json!(0)), "{row:#}");
    jobs.system.down();
}

#[test]
fn what_cannot_be_published_is_refused_in_words() {
    let jobs = Jobs::new("maxMessage: 1KiB", "");
    let elsewhere = jobs.publish_url().replace("/jobs/", "/jbos/");
    let post = |url: &str, headers: &[(&str, &str)], body: &str| {
        send("POST", url, headers, body.as_bytes().to_vec()).expect("an answer")
    };
    assert_eq!(post(&elsewhere, &[], "{}").status, 404);
    assert_eq!(post(jobs.publish_url(), &[], &"x".repeat(1025)).status, 413);
    let broken = post(jobs.publish_url(), &[("content-type", "application/cloudevents+json")], "{");
    assert_eq!((broken.status, broken.header("content-type")), (400, "application/problem+json"));
    assert_eq!(jobs.ledger()["accepted"], 0);
}

#[test]
fn one_idempotency_key_is_one_message_and_a_batch_is_all_or_nothing() {
    let jobs = Jobs::new("", "");
    let publish = || jobs.try_publish(&[("idempotency-key", "same")], &job(1, "good")).expect("an answer").json();
    let (first, second) = (publish(), publish());
    assert_eq!(first["messageId"], second["messageId"]);
    assert_eq!((&first["duplicate"], &second["duplicate"]), (&json!(false), &json!(true)));

    let event = |id: usize| json!({"specversion": "1.0", "id": format!("b-{id}"), "source": "app", "type": "job", "data": job(id, "good")});
    let batch: Vec<_> = (0..50).map(event).collect();
    let headers = [("content-type", "application/cloudevents-batch+json")];
    let answer = send("POST", jobs.publish_url(), &headers, json!(batch).to_string().into_bytes()).expect("an answer");
    assert_eq!(answer.status, 202, "{}", String::from_utf8_lossy(&answer.body));
    assert_eq!(answer.json()["messages"].as_array().map(Vec::len), Some(50));
    wait_until("all to be processed", || jobs.processed().len() == 51);
    assert_eq!(jobs.settled()["accepted"], 51);
}

#[test]
fn poison_dies_at_once_and_what_only_stumbles_recovers() {
    let jobs = Jobs::new("", "retry: { attempts: 3, backoff: [100ms] }");
    jobs.behave(&json!({"kinds": {"bad": 422, "shaky": {"status": 503, "times": 2}, "broken": 500}}));
    let (bad, shaky, broken) =
        (jobs.publish(&job(1, "bad")), jobs.publish(&job(2, "shaky")), jobs.publish(&job(3, "broken")));
    for number in 10..30 {
        jobs.publish(&job(number, "good"));
    }
    let letters = jobs.wait_for_dead(2);
    let letter = |id: &str| letters.iter().find(|letter| letter["messageId"] == id).expect("the dead letter");
    let (poison, exhausted) = (letter(&bad), letter(&broken));
    assert_eq!((&poison["reason"], &poison["attempts"]), (&json!("poison"), &json!(1)), "{poison:#}");
    assert_eq!((&exhausted["reason"], &exhausted["attempts"]), (&json!("exhausted"), &json!(4)), "{exhausted:#}");
    let row = jobs.settled();
    assert_eq!((&row["accepted"], &row["processed"], &row["dead"]), (&json!(23), &json!(21), &json!(2)), "{row:#}");
    let attempts = |id: &str| jobs.received().iter().filter(|delivery| delivery.id == id).count();
    assert_eq!((attempts(&bad), attempts(&shaky), attempts(&broken)), (1, 3, 4));

    let shown = jobs.system.json(&["dlq", "show", exhausted["id"].as_str().expect("id")]);
    assert_eq!(shown["payload"], job(3, "broken"));
    let history = shown["history"].as_array().expect("history");
    assert_eq!(history.len(), 4);
    assert!(history.iter().all(|attempt| attempt["status"] == 500), "{shown:#}");

    let groups = jobs.system.json(&["dlq", "ls", "--group-by", "reason"]);
    let names: BTreeSet<_> = groups["items"].as_array().expect("items").iter().map(|g| g["name"].as_str()).collect();
    assert_eq!(names, BTreeSet::from([Some("exhausted"), Some("poison")]));
    let chosen = jobs.system.json(&["dlq", "ls", "--where", "reason = poison and attempts < 2"]);
    assert_eq!(chosen["items"].as_array().map(Vec::len), Some(1), "{chosen:#}");
    jobs.system.run(&["dlq", "ls", "--where", "raeson = poison"]).expect(2);
}

#[test]
fn a_subscriber_that_is_down_holds_its_messages_up_and_loses_none() {
    let jobs = Jobs::new("", "retry: { attempts: 1, backoff: [50ms] }");
    jobs.publish(&job(0, "good"));
    wait_until("the first one", || jobs.processed().len() == 1);
    jobs.system.run(&["scale", "worker=0", "--yes"]).expect(0);
    let published: BTreeSet<_> = (1..200).map(|number| jobs.publish(&job(number, "good"))).collect();
    wait_until("the subscription to say that it waits", || {
        let channel = jobs.system.json(&["channel", "describe", "jobs"]);
        channel["subscriptions"][0]["state"] == "waiting"
    });
    assert!(jobs.dead_letters().is_empty());
    jobs.system.run(&["scale", "worker=1", "--yes"]).expect(0);
    wait_until("everything to arrive", || jobs.processed().len() == 200);
    let row = jobs.settled();
    assert_eq!((&row["processed"], &row["dead"]), (&json!(200), &json!(0)), "{row:#}");
    assert!(published.iter().all(|id| jobs.processed().contains_key(id)));
}

#[test]
fn a_key_keeps_its_order_and_one_that_fails_holds_up_no_other() {
    let jobs = Jobs::new("ordered: byKey", "retry: { attempts: 5, backoff: [300ms] }");
    jobs.behave(&json!({"kinds": {"shaky": {"status": 503, "times": 3}}}));
    for number in 0..70 {
        jobs.publish(&job(number, if number == 0 { "shaky" } else { "good" }));
    }
    wait_until("all to be processed", || jobs.processed().len() == 70);
    let order: Vec<usize> = jobs
        .received()
        .iter()
        .filter(|delivery| delivery.status < 300)
        .map(|delivery| serde_json::from_str::<serde_json::Value>(&delivery.body).expect("JSON")["number"].as_u64())
        .map(|number| usize::try_from(number.expect("a number")).expect("a small number"))
        .collect();
    for key in 0..7 {
        let of_key: Vec<_> = order.iter().filter(|number| *number % 7 == key).collect();
        assert!(of_key.is_sorted(), "key {key} was overtaken: {of_key:?}");
    }
    let first_of_failing = order.iter().position(|number| number % 7 == 0).expect("key 0");
    assert!(first_of_failing >= 6, "other keys waited for the failing one: {order:?}");
}

#[test]
fn pausing_holds_a_subscription_and_a_channel_with_messages_is_not_given_up() {
    let jobs = Jobs::new("", "");
    jobs.system.run(&["channel", "pause", "jobs/worker", "--reason", "maintenance", "--yes"]).expect(0);
    for number in 0..10 {
        jobs.publish(&job(number, "good"));
    }
    let channel = jobs.system.json(&["channel", "describe", "jobs"]);
    assert_eq!((&channel["subscriptions"][0]["state"], &channel["lag"]), (&json!("paused"), &json!(10)), "{channel:#}");

    let without =
        jobs.topology("", "").split("channels:").next().expect("the services").replace(", publishes: [jobs]", "");
    let refused = jobs.system.try_apply(&without).expect(4);
    assert!(refused.stderr.contains("jobs") && refused.stderr.contains("10"), "{}", refused.stderr);
    jobs.system.try_apply(&jobs.topology("", "").replace("partitions: 4", "partitions: 2")).expect(4);
    assert!(jobs.received().is_empty());

    jobs.system.run(&["channel", "resume", "jobs/worker", "--yes"]).expect(0);
    wait_until("everything to arrive", || jobs.processed().len() == 10);
    jobs.settled();
    // What is empty may go, and couriers with it.
    jobs.system.apply(&without);
    assert!(jobs.system.status()["channels"].as_array().is_some_and(Vec::is_empty));
}

#[test]
fn a_channel_changes_while_messages_flow() {
    let jobs = Jobs::new("", "");
    let mut published = BTreeSet::new();
    for (round, fields) in ["partitions: 4", "partitions: 8", "partitions: 8, retention: 1h"].into_iter().enumerate() {
        let file = jobs.system.file(&jobs.topology("", "").replace("partitions: 4", fields));
        let apply = jobs.system.start(&["apply", &file, "--yes"]);
        for number in 0..100 {
            published.insert(jobs.publish(&job(round * 100 + number, "good")));
        }
        jobs.system.end_of(apply).expect(0);
    }
    wait_until("everything to arrive", || jobs.processed().len() == published.len());
    assert_eq!(jobs.settled()["accepted"], 300);
}

#[test]
fn an_operator_publishes_and_tails() {
    let jobs = Jobs::new("", "");
    let payload = job(1, "good").to_string();
    let published = jobs.system.json(&["channel", "publish", "jobs", &payload, "--key", "mine"]);
    wait_until("the delivery", || jobs.processed().len() == 1);
    let tail = jobs.system.run(&["channel", "tail", "jobs", "--last", "5", "-o", "json"]).expect(0);
    let id = published["items"][0]["messageId"].as_str().or(published["messageId"].as_str()).expect("messageId");
    assert!(tail.stdout.contains(id) && tail.stdout.contains("\"mine\""), "{}", tail.stdout);
    let status = jobs.system.status();
    assert_eq!(status["channels"][0]["name"], "jobs", "{status:#}");
    process::kill(jobs.system.pids("broker")[0]);
    wait_until("the broker to be back", || jobs.system.status()["ready"] == true);
    jobs.publish(&job(2, "good"));
    wait_until("the second delivery", || jobs.processed().len() == 2);
}
