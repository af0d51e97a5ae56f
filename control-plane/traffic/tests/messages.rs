//! Real brokers and couriers as processes, killed where it hurts; what arrives is counted by the subscriber alone.

mod support;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use meshctl_drivers::broker::embedded::Client;
use meshctl_drivers::broker::{Broker as _, ChannelSpec, ChannelState};
use meshctl_model::delivery::{Behind, COURIER_CONFIG, CourierConfig, CourierStatus};
use meshctl_model::units::Span;
use serde_json::{Value, json};
use support::courier::{CHANNEL, Listener, OK, Says, config, groups, ordered, publish, to, with};
use support::{ask, free_address, get};

/// A process of the message line, killed when dropped.
struct Process(Child);

impl Process {
    fn new(arguments: &[&str]) -> Self {
        let test = std::env::current_exe().expect("this test's path");
        let program = test.parent().and_then(Path::parent).expect("target folder").join("examples/messages");
        let mut command = Command::new(&program);
        command.args(arguments).env("MESHCTL_LOG", "info").stdout(Stdio::null());
        Self(command.spawn().unwrap_or_else(|error| panic!("{}: {error}", program.display())))
    }

    fn kill(mut self) {
        self.0.kill().expect("it runs");
    }

    fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.0), signal).expect("it runs");
    }

    /// Its exit code once it has been asked to end.
    async fn end(mut self) -> Option<i32> {
        self.signal(rustix::process::Signal::TERM);
        let ended = tokio::task::spawn_blocking(move || self.0.wait().expect("a child").code());
        ended.await.expect("joined")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// A state directory with a broker, and what couriers are to deliver.
struct System {
    dir: tempfile::TempDir,
    client: Client,
    config: CourierConfig,
    broker: Option<Process>,
}

impl System {
    async fn new(config: CourierConfig) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::write(dir.path().join(COURIER_CONFIG), serde_json::to_string(&config).expect("JSON"))
            .expect("written");
        let client = Client::new(dir.path());
        let mut system = Self { dir, client, config, broker: None };
        system.start_broker();
        let mut channels: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (channel, group) in groups(&system.config) {
            channels.entry(channel).or_default().push(group.to_owned());
        }
        for (name, groups) in channels {
            let spec = ChannelSpec {
                name,
                partitions: 4,
                retention: Duration::from_secs(3600),
                max_size_bytes: 1 << 30,
                idempotency_window: Duration::from_secs(600),
                groups,
            };
            until("declared", async || system.client.ensure(&spec).await.is_ok()).await;
        }
        system
    }

    fn start_broker(&mut self) {
        self.broker = Some(Process::new(&["broker", &self.path().to_string_lossy()]));
    }

    fn path(&self) -> PathBuf {
        self.dir.path().to_owned()
    }

    async fn courier(&self) -> (SocketAddr, Process) {
        let address = free_address();
        let path = self.path();
        let path = path.to_string_lossy();
        let process = Process::new(&["courier", &path, &path, &address.port().to_string()]);
        until("the courier is healthy", async || {
            tokio::net::TcpStream::connect(address).await.is_ok() && ask(address, get("/healthz")).await.status() == 200
        })
        .await;
        (address, process)
    }

    async fn state(&self) -> BTreeMap<String, ChannelState> {
        let state = self.client.state().await.expect("the broker answers");
        state.into_iter().map(|channel| (channel.name.clone(), channel)).collect()
    }

    async fn settled(&self) {
        let dead = Behind::Dead.channel(CHANNEL, "billing");
        until("all is settled", async || {
            let Ok(state) = self.client.state().await else { return false };
            let ours = state.iter().filter(|channel| channel.name != dead);
            ours.flat_map(|channel| &channel.groups).all(|group| group.unsettled == 0)
        })
        .await;
    }

    async fn dead(&self) -> u64 {
        self.state().await[&Behind::Dead.channel(CHANNEL, "billing")].accepted
    }
}

async fn until(what: &str, wanted: impl AsyncFn() -> bool) {
    let asked = async {
        while !wanted().await {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), asked).await.unwrap_or_else(|_| panic!("never: {what}"));
}

/// Publishes numbers as batches with idempotency keys, again and again until each is accepted by some courier.
async fn publish_all(couriers: &[SocketAddr], numbers: std::ops::Range<u32>, batch: u32) {
    let mut turn = 0;
    for from in numbers.clone().step_by(batch as usize) {
        let lines: Vec<String> = (from..(from + batch).min(numbers.end))
            .map(|n| json!({ "orderId": (n % 7).to_string(), "n": n }).to_string())
            .collect();
        loop {
            turn += 1;
            let address = couriers[turn % couriers.len()];
            let request = with(
                publish(CHANNEL, lines.join("\n")),
                &[("content-type", "application/x-ndjson"), ("idempotency-key", &from.to_string())],
            );
            let Ok(stream) = tokio::net::TcpStream::connect(address).await else { continue };
            let io = hyper_util::rt::TokioIo::new(stream);
            let Ok((mut sender, connection)) = hyper::client::conn::http1::handshake(io).await else { continue };
            tokio::spawn(connection);
            match sender.send_request(request).await {
                Ok(response) if response.status() == 202 => break,
                _ => {}
            }
        }
    }
}

fn number(payload: &str) -> u64 {
    serde_json::from_str::<Value>(payload).expect("JSON")["n"].as_u64().expect("a number")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn couriers_and_broker_are_killed_and_everything_arrives() {
    let mut listener = Listener::new(|_, _| OK).await;
    let mut subscription = to(listener.address());
    subscription.timeout = Span::from_secs(10);
    let mut system = System::new(config([("billing", subscription)])).await;
    let (first, one) = system.courier().await;
    let (second, two) = system.courier().await;
    let publishing = tokio::spawn(async move { publish_all(&[first, second], 0..4000, 20).await });
    listener.until("some arrived", |got| got.len() > 500).await;
    one.kill();
    listener.until("more arrived", |got| got.len() > 1000).await;
    drop(system.broker.take());
    system.start_broker();
    publishing.await.expect("all accepted");
    let got = listener
        .until("all arrived", |got| {
            let ids: std::collections::HashSet<&str> = got.iter().map(|got| got.header("meshctl-message-id")).collect();
            ids.len() >= 4000
        })
        .await;
    system.settled().await;
    let mut ids_of: BTreeMap<u64, Vec<&str>> = BTreeMap::new();
    for got in &got {
        ids_of.entry(number(&got.payload)).or_default().push(got.header("meshctl-message-id"));
    }
    assert_eq!(ids_of.len(), 4000, "every number arrived");
    for (number, ids) in &ids_of {
        assert!(ids.iter().all(|id| id == &ids[0]), "{number} was accepted twice: {ids:?}");
    }
    assert_eq!(system.dead().await, 0);
    assert_eq!(two.end().await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscriber_that_is_down_for_a_while_gets_everything_and_nothing_dies() {
    let address = free_address();
    let system = System::new(config([("billing", to(address))])).await;
    let (at, _courier) = system.courier().await;
    publish_all(&[at], 0..1000, 100).await;
    let status =
        async || -> CourierStatus { serde_json::from_str(ask(at, get("/status")).await.body()).expect("a status") };
    until("paused", async || status().await.subscriptions[0].paused.is_some()).await;
    let mut listener = Listener::at(address, |_, _| OK).await;
    listener.until("all arrived", |got| got.len() >= 1000).await;
    system.settled().await;
    assert_eq!((system.dead().await, status().await.subscriptions[0].processed), (0, 1000));
    let state = system.state().await;
    assert_eq!(state[CHANNEL].groups[0].processed, 1000);
    assert_eq!(state[&Behind::Retry(1).channel(CHANNEL, "billing")].accepted, 0, "no attempt counted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_fate_at_once_and_the_broker_counts_what_the_subscriber_saw() {
    // Every tenth is poison, every tenth fails twice, every tenth fails for ever.
    let mut listener = Listener::new(|got, before| match number(&got.payload) % 10 {
        0 => Says(400, Duration::ZERO, None),
        1 if before < 2 => Says(500, Duration::ZERO, None),
        2 => Says(503, Duration::ZERO, None),
        _ => OK,
    })
    .await;
    let system = System::new(config([("billing", to(listener.address()))])).await;
    let (at, courier) = system.courier().await;
    publish_all(&[at], 0..1000, 50).await;
    listener
        .until("all that can be processed are", |got| got.iter().filter(|got| got.status < 300).count() == 800)
        .await;
    until("the others are dead", async || system.dead().await == 200).await;
    system.settled().await;
    let state = system.state().await;
    let processed: u64 = [CHANNEL.to_owned()]
        .into_iter()
        .chain([1, 2].map(|tier| Behind::Retry(tier).channel(CHANNEL, "billing")))
        .flat_map(|name| state[&name].groups.iter().map(|group| group.processed).collect::<Vec<_>>())
        .sum();
    assert_eq!((state[CHANNEL].accepted, processed), (1000, 800));
    let of = |remainder| {
        let got = listener.got();
        got.iter().filter(|got| number(&got.payload) % 10 == remainder).count()
    };
    assert_eq!((of(0), of(1), of(2), of(3)), (100, 300, 400, 100), "no attempt too many, none too few");
    assert_eq!(courier.end().await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn order_by_key_survives_a_courier_that_is_killed() {
    let mut listener = Listener::new(|got, before| match number(&got.payload) % 50 {
        7 if before < 2 => Says(500, Duration::ZERO, None),
        _ => OK,
    })
    .await;
    let system = System::new(ordered(config([("billing", to(listener.address()))]))).await;
    let (_, one) = system.courier().await;
    let (second, _two) = system.courier().await;
    let publishing = tokio::spawn(async move { publish_all(&[second], 0..1000, 50).await });
    listener.until("some arrived", |got| got.len() > 200).await;
    one.kill();
    publishing.await.expect("all accepted");
    listener
        .until("all arrived", |got| {
            let done = got.iter().filter(|got| got.status < 300);
            done.map(|got| number(&got.payload)).collect::<std::collections::HashSet<_>>().len() == 1000
        })
        .await;
    let mut last: BTreeMap<u64, u64> = BTreeMap::new();
    let mut seen = std::collections::HashSet::new();
    for n in listener.processed().iter().map(|payload| number(payload)).filter(|n| seen.insert(*n)) {
        let before = last.insert(n % 7, n);
        assert!(before < Some(n), "{n} overtook {before:?}, which has the same key");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_a_gateway_nobody_there_is_no_failure_of_a_message() {
    let address = free_address();
    let mut snapshot = support::snapshot(address, &[]);
    snapshot.edges.extend([support::edge("courier", "web", &snapshot.routes[0].policy.clone())]);
    snapshot.listeners[0].serves = meshctl_model::snapshot::Serves::Edge("courier:web".into());
    let gateway = support::Gateway::serving(&snapshot).await;
    let mut subscription = to(address);
    subscription.retry.attempts = 0;
    let system = System::new(config([("billing", subscription)])).await;
    let (at, _courier) = system.courier().await;
    publish_all(&[at], 0..100, 10).await;
    let status =
        async || -> CourierStatus { serde_json::from_str(ask(at, get("/status")).await.body()).expect("a status") };
    until("paused", async || status().await.subscriptions[0].paused.is_some()).await;
    let reason = status().await.subscriptions[0].paused.clone();
    assert!(reason.as_ref().is_some_and(|why| why.contains("answered 503 noEndpoint: ")), "{reason:?}");
    let mut listener = Listener::new(|_, _| OK).await;
    snapshot.services.insert("web".into(), support::endpoints(&[listener.address()]));
    snapshot.generation = 2;
    gateway.push(&snapshot).await;
    let got = listener.until("all arrived", |got| got.len() >= 100).await;
    assert!(got.iter().all(|got| got.header("meshctl-caller") == "courier" && got.header("meshctl-attempt") == "1"));
    system.settled().await;
    assert_eq!(system.dead().await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_courier_that_stands_still_is_replaced_and_does_no_harm_when_it_wakes() {
    let mut listener = Listener::new(|_, _| Says(204, Duration::from_millis(5), None)).await;
    let system = System::new(config([("billing", to(listener.address()))])).await;
    let (_, frozen) = system.courier().await;
    let (second, other) = system.courier().await;
    publish_all(&[second], 0..400, 50).await;
    listener.until("some arrived", |got| got.len() > 50).await;
    frozen.signal(rustix::process::Signal::STOP);
    publish_all(&[second], 400..1000, 50).await;
    // What the frozen one held comes to the other once its session is over.
    let numbers = |got: &[support::courier::Got]| {
        got.iter().map(|got| number(&got.payload)).collect::<std::collections::HashSet<_>>().len()
    };
    listener.until("all arrived", |got| numbers(got) == 1000).await;
    frozen.signal(rustix::process::Signal::CONT);
    system.settled().await;
    assert_eq!(system.dead().await, 0);
    let processed: u64 = system.state().await[CHANNEL].groups.iter().map(|group| group.processed).sum();
    assert_eq!(processed, 1000, "each is settled once, whoever delivered it");
    assert_eq!((frozen.end().await, other.end().await), (Some(0), Some(0)));
}
