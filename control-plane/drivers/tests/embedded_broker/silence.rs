//! Processes that are stopped: consumers lose what they hold, brokers are found again.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use meshctl_drivers::broker::conformance::{
    Subject, balanced, channel, consume, message, receive, settle, state, within,
};
use meshctl_drivers::broker::embedded::{Address, Client};
use meshctl_drivers::broker::{BrokerError, From, SharedBroker};
use rustix::process::Signal;

use crate::support::Bench;

/// A client by hand, as PROTOCOL.md says, which never pings: to the broker the same as a stopped process.
struct Hand(UnixStream);

impl Hand {
    fn send(&mut self, kind: u8, id: u64, body: &[u8]) {
        let length = u32::try_from(9 + body.len()).unwrap();
        let frame = [&length.to_be_bytes()[..], &[kind], &id.to_be_bytes(), body].concat();
        self.0.write_all(&frame).unwrap();
    }

    fn receive(&mut self) -> (u8, u64, Vec<u8>) {
        let mut head = [0; 13];
        self.0.read_exact(&mut head).unwrap();
        let length = u32::from_be_bytes(head[..4].try_into().unwrap()) as usize;
        let mut body = vec![0; length - 9];
        self.0.read_exact(&mut body).unwrap();
        (head[4], u64::from_be_bytes(head[5..].try_into().unwrap()), body)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_consumer_loses_what_it_holds() {
    let bench = Bench::start().await;
    let broker = bench.client();
    let spec = channel("silent", 2, &["all"]);
    broker.ensure(&spec).await.unwrap();
    broker.publish(&spec.name, (0..10).map(|at| message(&format!("{at}"), None)).collect()).await.unwrap();

    let mut hand = Hand(UnixStream::connect(bench.state.join("broker/broker.sock")).unwrap());
    hand.send(1, 1, br#"{"version":1,"sessionMs":300}"#);
    assert_eq!(hand.receive().0, 64);
    hand.send(5, 2, br#"{"channel":"conformance.silent","group":"all","prefetch":100}"#);
    let (kind, request, consumer) = hand.receive();
    assert_eq!((kind, request, consumer.len()), (64, 2, 8));
    let (kind, _, delivered) = hand.receive();
    assert_eq!(kind, 67);

    let mut second = consume(&broker, &spec, "all", 100).await;
    let held = receive(&mut second, 10).await;
    assert!(held.iter().all(|delivery| delivery.redelivered));
    // It wakes up, and settles the first message of what it was given.
    let position = &delivered[1..13];
    hand.send(4, 3, &[&consumer[..], &1u32.to_be_bytes(), position, &[0]].concat());
    let (kind, id, _) = hand.receive();
    assert_eq!((kind, id.to_be_bytes().to_vec()), (68, consumer), "it is told");
    let (kind, request, why) = hand.receive();
    assert_eq!((kind, request), (65, 3));
    assert!(String::from_utf8(why).unwrap().contains("Lost"));
    settle(&second, &held).await;
    let group = state(&broker, &spec.name).await.groups.remove(0);
    balanced(&group);
    assert_eq!((group.processed, group.consumers), (10, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_broker_is_found_again() {
    let bench = Bench::start().await;
    let spec = channel("stopped", 2, &["all"]);
    let address = Address::Folder(bench.state.join("broker"));
    let broker: SharedBroker = Arc::new(Client::at(address, Duration::from_millis(300)));
    broker.ensure(&spec).await.unwrap();
    let mut consumer = consume(&broker, &spec, "all", 10).await;
    bench.signal(Signal::STOP);
    let unknown = within("an answer", broker.publish(&spec.name, vec![message("m", None)])).await;
    assert!(matches!(unknown, Err(BrokerError::Unknown(_))), "{unknown:?}");
    within("the consumer's end", async { while consumer.deliveries.recv().await.is_some() {} }).await;
    drop(consumer);
    bench.signal(Signal::CONT);
    bench.answers().await;
    let again = within("an answer", broker.publish(&spec.name, vec![message("n", None)])).await;
    assert!(again.is_ok(), "{again:?}");
    let stored = broker.browse(&spec.name, From::Earliest, 10).await.unwrap();
    let mut consumer = consume(&broker, &spec, "all", 10).await;
    assert_eq!(receive(&mut consumer, stored.len()).await.len(), stored.len(), "whatever became of the first");
}

/// A client that says nothing right, or in pieces, or something too large, harms nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nonsense_ends_the_connection_only() {
    let bench = Bench::start().await;
    let greeting: &[u8] = b"\0\0\0\x26\x01\0\0\0\0\0\0\0\x01{\"version\":1,\"sessionMs\":300}";
    for nonsense in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0xff; 64],
        &[0; 64],
        &[greeting, &[0, 0, 0, 9, 99, 0, 0, 0, 0, 0, 0, 0, 0]].concat(),
    ] {
        let mut stream = UnixStream::connect(bench.state.join("broker/broker.sock")).unwrap();
        stream.write_all(nonsense).unwrap();
        let mut rest = Vec::new();
        // Reset or closed, but ended.
        let _ = stream.read_to_end(&mut rest);
    }
    let mut hand = Hand(UnixStream::connect(bench.state.join("broker/broker.sock")).unwrap());
    hand.send(1, 1, br#"{"version":1,"sessionMs":3000}"#);
    assert_eq!(hand.receive().0, 64);
    for kind in [3, 4, 5, 7, 8] {
        hand.send(kind, 9, b"\0\0\0\x02xx\xff\xff\xff\xff");
        assert_eq!(hand.receive().0, 65, "a body that cannot be understood is refused");
    }
    assert!(bench.client().state().await.is_ok());
}
