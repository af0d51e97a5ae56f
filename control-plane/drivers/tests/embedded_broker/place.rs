//! Where a broker is: deep folders, TCP, HTTP, and one broker for each folder.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use meshctl_drivers::broker::SharedBroker;
use meshctl_drivers::broker::conformance::{Subject, channel, consume, message, receive, within};
use meshctl_drivers::broker::embedded::{Address, Client, SESSION};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::support::Bench;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deep_folder_is_no_hindrance() {
    let folder = TempDir::new().unwrap();
    let deep = folder.path().join("d".repeat(90)).join("e".repeat(90));
    std::fs::create_dir_all(&deep).unwrap();
    let bench = Bench::start_in(&deep).await;
    bench.client().ensure(&channel("deep", 1, &[])).await.unwrap();
    let socket = std::fs::metadata(deep.join("broker/broker.sock")).unwrap();
    assert_eq!(socket.permissions().mode() & 0o777, 0o600);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_second_waits_for_the_first() {
    let first = Bench::start().await;
    let broker = first.client();
    broker.ensure(&channel("lock", 1, &[])).await.unwrap();
    broker.publish("conformance.lock", vec![message("m", None)]).await.unwrap();
    let second = Bench::start_in(&first.state).await;
    broker.publish("conformance.lock", vec![message("n", None)]).await.unwrap();
    assert!(second.is_running(), "it waits");
    first.down(Signal::KILL);
    second.answers().await;
    let state = second.client().state().await.unwrap();
    assert_eq!(state[0].kept, 2);
    assert!(second.down(Signal::TERM).success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_speaks_tcp_and_http() {
    let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (tcp, http): (SocketAddr, SocketAddr) = (free(), free());
    let bench = Bench::start_with(tcp, http.port()).await;
    let broker: SharedBroker = Arc::new(Client::at(Address::Tcp(tcp), SESSION));
    let spec = channel("tcp", 2, &["all"]);
    broker.ensure(&spec).await.unwrap();
    broker.publish(&spec.name, vec![message("m", None)]).await.unwrap();
    let mut consumer = consume(&broker, &spec, "all", 10).await;
    receive(&mut consumer, 1).await;
    let get = |path: &str| {
        let mut stream = TcpStream::connect(http).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    };
    assert!(get("/healthz").starts_with("HTTP/1.1 200"));
    let metrics = get("/metrics");
    assert!(metrics.contains("meshctl_broker_accepted_messages_total 1\n"), "{metrics}");
    let lag = "meshctl_broker_group_unsettled_messages{channel=\"conformance.tcp\",group=\"all\"} 1\n";
    assert!(metrics.contains(lag), "{metrics}");
    drop(consumer);
    assert!(bench.down(Signal::TERM).success());
}

/// While the store cannot be opened yet, the process says so and can be ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_says_that_it_is_opening_its_store() {
    let bench = Bench::start().await;
    bench.down(Signal::KILL);
    let holder = rusqlite::Connection::open(bench.database()).unwrap();
    holder.pragma_update(None, "locking_mode", "EXCLUSIVE").unwrap();
    holder.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (tcp, http) = (free(), free());
    bench.start_process_with(tcp, http.port());
    let mut stream = within("an answer", async {
        loop {
            match TcpStream::connect(http) {
                Ok(stream) => break stream,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    })
    .await;
    stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: broker\r\nconnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("HTTP/1.1 503") && text.contains("not ready yet"), "{text}");
    assert!(bench.down(Signal::TERM).success(), "{}", bench.log());
}
