//! The event stream: a snapshot, then deltas, resumed by id.

use std::io::{BufRead, BufReader, Lines, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use meshctl_tests::System;
use serde_json::{Value, json};

use crate::HELLO;

/// The stream of one connection, as the server sends it. HTTP/1.0, so that the body comes without a framing of its own.
struct Stream(Lines<BufReader<UnixStream>>);

/// One message: its id, and what was told.
type Message = (u64, Value);

impl Stream {
    fn after(system: &System, id: u64) -> Self {
        let mut connection = UnixStream::connect(system.state_dir().join("meshctl.sock")).expect("a connection");
        connection.set_read_timeout(Some(Duration::from_secs(60))).expect("a limit");
        write!(connection, "GET /v1/watch HTTP/1.0\r\nlast-event-id: {id}\r\n\r\n").expect("sent");
        Self(BufReader::new(connection).lines())
    }
}

impl Iterator for Stream {
    type Item = Message;

    /// `None` when the connection ends.
    fn next(&mut self) -> Option<Message> {
        let mut id = 0;
        loop {
            let line = self.0.next()?.ok()?;
            if let Some(text) = line.strip_prefix("id: ") {
                id = text.parse().expect("ids are numbers");
            } else if let Some(data) = line.strip_prefix("data: ") {
                return Some((id, serde_json::from_str(data).expect("JSON")));
            }
        }
    }
}

/// The ids of the events among what was told.
fn ids(told: &[Message]) -> Vec<u64> {
    let events = told.iter().filter(|(_, told)| told["kind"] == "event");
    events.map(|(_, told)| told["body"]["id"].as_str().and_then(|id| id.parse().ok()).expect("an id")).collect()
}

/// Reads until revision `number` is applied.
fn until_applied(stream: &mut Stream, number: u64) -> Vec<Message> {
    let mut told = Vec::new();
    for message in stream {
        let event = &message.1["body"];
        let done = event["type"] == "revision.applied" && event["data"]["revision"] == number;
        told.push(message);
        if done {
            return told;
        }
    }
    panic!("the stream ended before revision {number} was applied: {told:#?}")
}

#[test]
fn the_stream_goes_on_without_a_gap_or_a_repetition_over_a_new_daemon() {
    let system = System::new();
    system.apply(HELLO);
    let mut stream = Stream::after(&system, 0);
    let mut told = until_applied(&mut stream, 1);
    system.run(&["scale", "hello=3", "--yes"]).expect(0);
    told.extend(until_applied(&mut stream, 2));
    system.kill_daemon();
    told.extend(stream);
    assert!(told.iter().any(|(_, told)| told["kind"] == "snapshot"), "{told:#?}");

    let last = told.last().expect("something was told").0;
    system.apply(&HELLO.replace("replicas: 2", "replicas: 1"));
    let mut stream = Stream::after(&system, last);
    let resumed = until_applied(&mut stream, 3);
    let resumed_ids = ids(&resumed);
    assert!(resumed_ids.iter().all(|id| *id > last), "told again after {last}: {resumed_ids:?}");

    let seen: Vec<u64> = ids(&told).into_iter().chain(resumed_ids).collect();
    let list = system.api("GET", "/v1/events?after=0&limit=10000", &Value::Null).json();
    let of_list = list["items"].as_array().expect("items").iter();
    let of_list: Vec<u64> = of_list.map(|e| e["id"].as_str().and_then(|id| id.parse().ok()).expect("an id")).collect();
    assert_eq!(seen, of_list[..seen.len()], "what was streamed is what is written down");
    assert!(seen.is_sorted_by(|a, b| a < b));
}

#[test]
fn services_are_told_as_they_change() {
    let system = System::new();
    system.apply(HELLO);
    let mut stream = Stream::after(&system, 0);
    until_applied(&mut stream, 1);
    system.run(&["scale", "hello=3", "--yes"]).expect(0);
    let told = until_applied(&mut stream, 2);
    let last = told.iter().map(|(_, told)| told).rfind(|told| told["kind"] == "service");
    assert_eq!(last.map(|told| &told["body"]["ready"]), Some(&json!(3)), "{told:#?}");
    assert_eq!(system.api("GET", "/v1/watch?after=nonsense", &Value::Null).status, 400);
}
