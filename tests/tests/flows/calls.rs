//! Calls between services: what the callee gets to see, how often it is asked, and one that does not answer any more.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};

use meshctl_tests::{Answer, System, process, send, wait_until};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::HELLO;

/// Orders as they are, and an inventory that the test plays itself, registered from outside.
const ORDERS: &str = "
services:
  orders:
    builtin: orders
    health: { http: /healthz }
    env: { STOCK_API: { urlOf: inventory } }
    calls: { inventory: { deadline: 5s, attemptTimeout: 4s } }
  inventory: { builtin: inventory, replicas: 0 }
routes:
  - { path: /orders, to: orders, deadline: 4s, attemptTimeout: 4s, retry: { attempts: 0 } }
";

/// The headers of one request that reached the test's inventory, names in lower case.
type Seen = Vec<(String, String)>;

/// Answers request after request with the given statuses, then with 200; tells what it saw.
fn play_inventory(system: &System, statuses: &[u16]) -> Receiver<Seen> {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("its address");
    let (tell, told) = channel();
    let statuses = statuses.to_vec();
    // It ends with the test's process; what it listens on is the test's own.
    std::thread::spawn(move || {
        let mut statuses = statuses.into_iter();
        for connection in listener.incoming().map_while(Result::ok) {
            if !answer(connection, &mut statuses, &tell) {
                return;
            }
        }
    });
    let body = json!({"address": address.to_string(), "leaseMs": 60_000});
    assert_eq!(system.api("PUT", "/v1/services/inventory/endpoints/played", &body).status, 204);
    wait_until("it to be in routing", || {
        let view = system.api("GET", "/v1/endpoints?service=inventory", &Value::Null).json();
        view["items"][0]["inRouting"] == true
    });
    told
}

/// One request on one connection; false when nobody listens any more to what is told.
fn answer(connection: TcpStream, statuses: &mut impl Iterator<Item = u16>, tell: &Sender<Seen>) -> bool {
    let mut reader = BufReader::new(connection.try_clone().expect("a second handle"));
    let lines = (&mut reader).lines().map_while(Result::ok).take_while(|line| !line.is_empty());
    let headers: Seen = lines
        .filter_map(|line| line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned())))
        .collect();
    if headers.is_empty() {
        return true;
    }
    let length = header(&headers, "content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    let _broken = reader.read_exact(&mut body);
    let status = statuses.next().unwrap_or(200);
    let head = format!("HTTP/1.1 {status} Played\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{{}}");
    let _gone = (&connection).write_all(head.as_bytes());
    tell.send(headers).is_ok()
}

fn header<'a>(seen: &'a Seen, name: &str) -> Option<&'a str> {
    seen.iter().find(|(given, _)| given == name).map(|(_, value)| value.as_str())
}

fn order(system: &System, headers: &[(&str, &str)]) -> Answer {
    let headers: Vec<_> = headers.iter().copied().chain([("content-type", "application/json")]).collect();
    send("POST", &system.url("/orders"), &headers, br#"{"sku":"book","quantity":1}"#.to_vec()).expect("an answer")
}

#[test]
fn deadline_and_trace_go_from_the_edge_to_the_last_service() {
    let system = System::new();
    system.apply(ORDERS);
    let told = play_inventory(&system, &[]);
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let given = format!("00-{trace}-00f067aa0ba902b7-01");
    let placed = order(&system, &[("traceparent", &given)]);
    assert_eq!(placed.status, 201, "{}", String::from_utf8_lossy(&placed.body));
    let seen = told.recv().expect("inventory was asked");
    assert!(header(&seen, "traceparent").is_some_and(|value| value.contains(trace)), "{seen:?}");
    // The edge to inventory would allow 5 s; of the 4 s that the request has from outside some are gone.
    let left: u64 = header(&seen, "meshctl-deadline-ms").and_then(|text| text.parse().ok()).expect("a deadline");
    assert!((1..4000).contains(&left), "{left}");

    // Held up on its way, a request has less left; so much less at least.
    system.turn_knobs(&system.instances("orders")[0], &json!({"latencyMs": 500}));
    assert_eq!(order(&system, &[]).status, 201);
    let seen = told.recv().expect("inventory was asked");
    let less: u64 = header(&seen, "meshctl-deadline-ms").and_then(|text| text.parse().ok()).expect("a deadline");
    assert!((1..=3500).contains(&less), "{less}");
}

#[test]
fn a_call_that_reached_nobody_is_made_again_and_the_caller_sees_nothing_of_it() {
    let system = System::new();
    system.apply(&format!("{ORDERS}defaults: {{ retry: {{ budget: 100% }} }}\n"));
    let told = play_inventory(&system, &[]);
    // Nothing listens there, so not even a POST can have arrived.
    let nobody = json!({"address": format!("127.0.0.1:{}", system.port(8)), "leaseMs": 60_000});
    assert_eq!(system.api("PUT", "/v1/services/inventory/endpoints/nobody", &nobody).status, 204);
    wait_until("a call to be made again", || {
        let placed = order(&system, &[]);
        assert_eq!(placed.status, 201, "{}", String::from_utf8_lossy(&placed.body));
        assert_eq!(told.try_iter().count(), 1, "it arrives once");
        let edges = system.json(&["get", "edges"]);
        let items = edges["items"].as_array().expect("items");
        items.iter().any(|edge| edge["name"] == "orders:inventory" && edge["retries"].as_u64() > Some(0))
    });
}

#[test]
fn a_call_that_arrived_and_may_not_be_repeated_is_made_once() {
    let system = System::new();
    system.apply(ORDERS);
    let told = play_inventory(&system, &[503]);
    let refused = order(&system, &[]);
    assert_eq!(refused.status, 503, "{}", String::from_utf8_lossy(&refused.body));
    assert_eq!(told.try_iter().count(), 1);
}

#[test]
fn a_frozen_instance_leaves_routing_and_comes_back() {
    let system = System::new();
    system.apply(&HELLO.replace("interval: 100ms", "interval: 100ms, timeout: 300ms"));
    let frozen = system.instances("hello")[0].clone();
    let pid = u32::try_from(frozen["pid"].as_u64().expect("a pid")).expect("a pid");
    let in_routing = || {
        let view = system.api("GET", "/v1/endpoints?service=hello", &Value::Null).json();
        let items = view["items"].as_array().expect("items").clone();
        items.into_iter().find(|endpoint| endpoint["id"] == frozen["id"]).expect("it is listed")["inRouting"] == true
    };
    process::signal(pid, Signal::STOP);
    wait_until("the frozen one to be out", || !in_routing());
    (0..20).for_each(|_| assert_eq!(system.get("/").status, 200));
    process::signal(pid, Signal::CONT);
    wait_until("it to be back", in_routing);
    wait_until("it to be asked again", || system.get("/").header("served-by") == frozen["id"]);
    assert!(system.pids("hello").contains(&pid), "it is the same process");
}
