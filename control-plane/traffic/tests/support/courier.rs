//! Couriers on threads of their own, what they are told to deliver, and a subscriber that writes down what it gets.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::body::Incoming;
use meshctl_drivers::broker::SharedBroker;
use meshctl_model::delivery::{Behind, Channel, CourierConfig, CourierStatus, Retry, Subscription};
use meshctl_model::units::{Bytes as Size, Percent, Span};
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};

use super::{Origin, ask, get, post, say};

pub const CHANNEL: &str = "order.placed";

/// A courier in this process.
pub struct Courier {
    pub address: SocketAddr,
    end: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Courier {
    pub async fn new(config: CourierConfig, broker: SharedBroker) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
        listener.set_nonblocking(true).expect("a socket");
        let address = listener.local_addr().expect("an address");
        let (end, asked) = oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build_local(tokio::runtime::LocalOptions::default())
                .expect("a runtime");
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
                let end = async { drop(asked.await) };
                meshctl_traffic::courier::serve(config, broker, listener, end).await.expect("served");
            });
        });
        let courier = Self { address, end: Some(end), thread: Some(thread) };
        courier.until("healthy", async || ask(address, get("/healthz")).await.status() == 200).await;
        courier
    }

    pub async fn status(&self) -> CourierStatus {
        serde_json::from_str(ask(self.address, get("/status")).await.body()).expect("a status")
    }

    pub async fn until(&self, what: &str, wanted: impl AsyncFn() -> bool) {
        let asked = async {
            while !wanted().await {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(30), asked)
            .await
            .unwrap_or_else(|_| panic!("never: {what}"));
    }

    /// Asks it to end, and waits until it has.
    pub async fn end(mut self) {
        self.ask_to_end();
        let thread = self.thread.take().expect("once");
        tokio::task::spawn_blocking(move || thread.join().expect("ended well")).await.expect("joined");
    }

    pub fn ask_to_end(&mut self) {
        drop(self.end.take());
    }

    pub async fn publish(&self, channel: &str, body: impl Into<Bytes>) -> hyper::Response<String> {
        self.send(publish(channel, body)).await
    }

    pub async fn send(&self, request: Request<Full<Bytes>>) -> hyper::Response<String> {
        ask(self.address, request).await
    }
}

pub fn publish(channel: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    let mut request = post(&format!("/channels/{channel}/messages"), body);
    request.headers_mut().insert("content-type", "application/json".parse().expect("a value"));
    request
}

pub fn with(mut request: Request<Full<Bytes>>, headers: &[(&'static str, &str)]) -> Request<Full<Bytes>> {
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.parse().expect("a value"));
    }
    request
}

pub fn config(subscriptions: impl IntoIterator<Item = (&'static str, Subscription)>) -> CourierConfig {
    let channel = Channel {
        partitions: 4,
        key: Some("orderId".into()),
        ordered: false,
        retention: Span::from_secs(3600),
        max_size: Size(1 << 30),
        max_message: Size(64 << 10),
        idempotency_window: Span::from_secs(600),
        subscriptions: subscriptions.into_iter().map(|(name, its)| (name.to_owned(), its)).collect(),
    };
    let channels = BTreeMap::from([(CHANNEL.to_owned(), channel)]);
    CourierConfig { topology: "test".into(), channels, tracing: meshctl_model::snapshot::Tracing::default() }
}

pub fn ordered(mut config: CourierConfig) -> CourierConfig {
    config.channels.values_mut().for_each(|channel| channel.ordered = true);
    config
}

/// Retries quickly, so that tests need not wait.
pub fn to(address: SocketAddr) -> Subscription {
    Subscription {
        service: "web".into(),
        url: format!("http://{address}/events"),
        concurrency: 16,
        timeout: Span::from_millis(500),
        retry: Retry { attempts: 3, backoff: vec![Span::from_millis(10), Span::from_millis(20)], jitter: Percent(0.2) },
        alert: None,
    }
}

/// Every channel and group that a broker has for it.
pub fn groups(config: &CourierConfig) -> Vec<(String, &str)> {
    let mut groups = Vec::new();
    for (name, channel) in &config.channels {
        for (subscription, its) in &channel.subscriptions {
            groups.push((name.clone(), subscription.as_str()));
            let behind = Behind::of(&its.retry);
            groups.extend(behind.map(|behind| (behind.channel(name, subscription), behind.group())));
        }
    }
    groups
}

/// A delivery as the subscriber saw it.
#[derive(Clone, Debug)]
pub struct Got {
    pub headers: BTreeMap<String, String>,
    pub payload: String,
    pub status: u16,
}

impl Got {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

/// A subscriber whose answers are a function of what it got and how often it had got that message.
pub struct Listener {
    pub origin: Origin,
    got: Arc<Mutex<Vec<Got>>>,
    changed: watch::Receiver<usize>,
}

/// An answer: after so long, the status, and `Retry-After`.
#[derive(Clone, Copy, Debug)]
pub struct Says(pub u16, pub std::time::Duration, pub Option<&'static str>);

pub const OK: Says = Says(204, std::time::Duration::ZERO, None);

impl Listener {
    pub async fn new(answer: impl Fn(&Got, usize) -> Says + Send + Sync + 'static) -> Self {
        Self::at(super::free_address(), answer).await
    }

    pub async fn at(address: SocketAddr, answer: impl Fn(&Got, usize) -> Says + Send + Sync + 'static) -> Self {
        let got: Arc<Mutex<Vec<Got>>> = Arc::default();
        let (tell, changed) = watch::channel(0);
        let (book, answer, tell) = (Arc::clone(&got), Arc::new(answer), Arc::new(tell));
        let origin = Origin::at(address, move |_, request: Request<Incoming>| {
            let (book, answer, tell) = (Arc::clone(&book), Arc::clone(&answer), Arc::clone(&tell));
            async move {
                let (head, body) = request.into_parts();
                let payload = body.collect().await.expect("a body").to_bytes();
                let headers = head.headers.iter();
                let headers = headers.map(|(n, v)| (n.to_string(), v.to_str().expect("text").to_owned())).collect();
                let mut one = Got { headers, payload: String::from_utf8(payload.to_vec()).expect("text"), status: 0 };
                let Says(status, after, retry_after) = {
                    let mut book = book.lock();
                    let id = one.header("meshctl-message-id");
                    let before = book.iter().filter(|other| other.header("meshctl-message-id") == id).count();
                    let says = answer(&one, before);
                    one.status = says.0;
                    book.push(one);
                    says
                };
                tell.send_modify(|count| *count += 1);
                if !after.is_zero() {
                    tokio::time::sleep(after).await;
                }
                let mut response = say(status, if status < 300 { "" } else { "as\n a test" });
                if let Some(retry_after) = retry_after {
                    response.headers_mut().insert("retry-after", retry_after.parse().expect("a value"));
                }
                response
            }
        })
        .await;
        Self { origin, got, changed }
    }

    pub fn got(&self) -> Vec<Got> {
        self.got.lock().clone()
    }

    pub fn address(&self) -> SocketAddr {
        self.origin.address
    }

    /// Waits until what it got is as wanted.
    pub async fn until(&mut self, what: &str, wanted: impl Fn(&[Got]) -> bool) -> Vec<Got> {
        let seen = async {
            loop {
                self.changed.borrow_and_update();
                if wanted(&self.got.lock()) {
                    return;
                }
                self.changed.changed().await.expect("it listens");
            }
        };
        let in_time = tokio::time::timeout(std::time::Duration::from_secs(30), seen).await;
        in_time.unwrap_or_else(|_| panic!("never: {what}"));
        self.got()
    }

    /// Payloads that were answered 2xx, in their order.
    pub fn processed(&self) -> Vec<String> {
        self.got.lock().iter().filter(|got| got.status < 300).map(|got| got.payload.clone()).collect()
    }
}
