//! Real gateways as child processes, real origins on real sockets, and a client that can be as rude as it likes.
//!
//! `cargo test -p meshctl-traffic` builds the example that these tests start; with `--test NAME`, build it first.
#![allow(dead_code, unreachable_pub, reason = "every test file uses its own part of the harness")]

pub mod courier;
pub mod memory;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener as StdListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use meshctl_drivers::gateway::Gateway as _;
use meshctl_drivers::gateway::embedded::EmbeddedGateway;
use meshctl_model::policy::Policy;
use meshctl_model::snapshot::{
    EdgeRule, Endpoint, GatewayStatus, Limits, Listener, PathMatch, RouteRule, Serves, ServiceEndpoints, Snapshot,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

pub fn free_address() -> SocketAddr {
    StdListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port")
}

/// A gateway process in a folder of its own.
pub struct Gateway {
    pub address: SocketAddr,
    pub dir: PathBuf,
    pub driver: EmbeddedGateway,
    pub child: Child,
    folder: Option<tempfile::TempDir>,
}

impl Gateway {
    /// Starts one that serves `snapshot` (whose first listener is its address).
    pub async fn serving(snapshot: &Snapshot) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut gateway = Self::start(folder.path(), snapshot.listeners[0].address);
        gateway.folder = Some(folder);
        let status = gateway.push(snapshot).await;
        assert_eq!(status.refused, []);
        gateway
    }

    /// Starts one in a folder that may have been used before, and waits until it serves.
    pub fn start(dir: &Path, address: SocketAddr) -> Self {
        let test = std::env::current_exe().expect("this test's path");
        let program = test.parent().and_then(Path::parent).expect("target folder").join("examples/gateway");
        let mut child = Command::new(&program)
            .arg(dir)
            .arg("2")
            .env("MESHCTL_LOG", "info")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        let mut log = BufReader::new(child.stderr.take().expect("piped"));
        let mut seen = String::new();
        while !seen.contains("the gateway is serving") {
            let before = seen.len();
            log.read_line(&mut seen).expect("readable");
            assert!(seen.len() > before, "the gateway ended: {seen}");
        }
        std::thread::spawn(move || log.lines().map_while(Result::ok).for_each(|line| eprintln!("gateway: {line}")));
        Self { address, dir: dir.to_owned(), driver: EmbeddedGateway::new("test", dir), child, folder: None }
    }

    pub async fn push(&self, snapshot: &Snapshot) -> GatewayStatus {
        self.driver.push(snapshot).await.expect("acknowledged")
    }

    pub async fn status(&self) -> GatewayStatus {
        self.driver.status().await.expect("a status")
    }

    /// Asks the status until it is as wanted.
    pub async fn until(&self, what: &str, wanted: impl Fn(&GatewayStatus) -> bool) -> GatewayStatus {
        let polled = async {
            loop {
                let status = self.status().await;
                if wanted(&status) {
                    return status;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(20), polled)
            .await
            .unwrap_or_else(|_| panic!("never: {what}"))
    }

    /// The page on the admin socket.
    pub async fn metrics(&self) -> String {
        let stream = tokio::net::UnixStream::connect(self.dir.join("admin.sock")).await.expect("connected");
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("ready");
        tokio::spawn(connection);
        whole(sender.send_request(get("/metrics")).await.expect("an answer")).await.into_body()
    }

    pub fn terminate(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it runs");
    }

    /// Waits for the process to end by itself; its exit code.
    pub async fn ended(mut self) -> Option<i32> {
        let folder = self.folder.take();
        let code =
            tokio::task::spawn_blocking(move || self.child.wait().expect("a child").code()).await.expect("joined");
        drop(folder);
        code
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// One service `web` behind the edge `gateway:web` and a route for everything.
pub fn snapshot(address: SocketAddr, origins: &[SocketAddr]) -> Snapshot {
    let policy = Policy::default();
    Snapshot {
        topology: "test".into(),
        revision: 1,
        generation: 1,
        listeners: vec![Listener { address, serves: Serves::Routes }],
        routes: vec![route("everything", "/*", "gateway:web", &policy)],
        edges: BTreeMap::from([edge("gateway", "web", &policy)]),
        services: BTreeMap::from([("web".into(), endpoints(origins))]),
        limits: Limits::default(),
        tracing: meshctl_model::snapshot::Tracing::default(),
    }
}

pub fn edge(caller: &str, callee: &str, policy: &Policy) -> (String, EdgeRule) {
    let rule = EdgeRule {
        caller: caller.into(),
        callee: callee.into(),
        policy: policy.clone(),
        force: None,
        breaker_epoch: 0,
    };
    (format!("{caller}:{callee}"), rule)
}

pub fn route(name: &str, path: &str, edge: &str, policy: &Policy) -> RouteRule {
    let below = path.ends_with("/*");
    RouteRule {
        name: name.into(),
        host: None,
        path: PathMatch {
            segments: path.trim_end_matches("/*").split('/').filter(|s| !s.is_empty()).map(str::to_owned).collect(),
            below,
        },
        methods: Vec::new(),
        headers: Vec::new(),
        targets: vec![(edge.into(), 1.0)],
        idempotency_key: None,
        rate_limit: None,
        policy: policy.clone(),
    }
}

pub fn endpoints(origins: &[SocketAddr]) -> ServiceEndpoints {
    let endpoints =
        origins.iter().enumerate().map(|(n, address)| Endpoint { id: format!("web-{n}"), address: *address });
    ServiceEndpoints { endpoints: endpoints.collect(), expected: false }
}

/// Sets the policy of the route and of the edge.
pub fn with_policy(mut snapshot: Snapshot, set: impl Fn(&mut Policy)) -> Snapshot {
    snapshot.routes.iter_mut().for_each(|route| set(&mut route.policy));
    snapshot.edges.values_mut().for_each(|edge| set(&mut edge.policy));
    snapshot
}

/// An HTTP server of the test's own.
pub struct Origin {
    pub address: SocketAddr,
    pub requests: Arc<AtomicU64>,
    accepting: tokio::task::JoinHandle<()>,
}

impl Origin {
    /// Answers every request with `answer`, which is given the number of the request, from 0.
    pub async fn new<F, Fut, B>(answer: F) -> Self
    where
        F: Fn(u64, Request<Incoming>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Response<B>> + Send,
        B: hyper::body::Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        Self::at(free_address(), answer).await
    }

    pub async fn at<F, Fut, B>(address: SocketAddr, answer: F) -> Self
    where
        F: Fn(u64, Request<Incoming>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Response<B>> + Send,
        B: hyper::body::Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let listener = TcpListener::bind(address).await.expect("bound");
        let (requests, answer) = (Arc::new(AtomicU64::new(0)), Arc::new(answer));
        let counter = Arc::clone(&requests);
        let accepting = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (answer, counter) = (Arc::clone(&answer), Arc::clone(&counter));
                connections.spawn(async move {
                    let service = service_fn(|request| {
                        let number = counter.fetch_add(1, SeqCst);
                        let answer = Arc::clone(&answer);
                        async move { Ok::<_, Infallible>(answer(number, request).await) }
                    });
                    let http = hyper::server::conn::http1::Builder::new();
                    let _ended = http.serve_connection(TokioIo::new(stream), service).with_upgrades().await;
                });
            }
        });
        Self { address, requests, accepting }
    }

    /// Always the same text.
    pub async fn saying(text: &'static str) -> Self {
        Self::new(move |_, _| async move { say(200, text) }).await
    }

    pub fn seen(&self) -> u64 {
        self.requests.load(SeqCst)
    }

    /// Ends it at once, with all its connections.
    pub async fn end(self) {
        self.accepting.abort();
        let _ended = self.accepting.await;
    }
}

pub fn say(status: u16, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    Response::builder().status(status).body(Full::new(text.into())).expect("a response")
}

/// A connection of a well-behaved client.
pub async fn connect<B>(address: SocketAddr) -> SendRequest<B>
where
    B: hyper::body::Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let stream = TcpStream::connect(address).await.expect("connected");
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("ready");
    tokio::spawn(connection.with_upgrades());
    sender
}

pub fn get(path: &str) -> Request<Full<Bytes>> {
    Request::get(path).header("host", "test").body(Full::default()).expect("a request")
}

pub fn post(path: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    Request::post(path).header("host", "test").body(Full::new(body.into())).expect("a request")
}

/// The whole answer to one request on a connection of its own.
pub async fn ask(address: SocketAddr, request: Request<Full<Bytes>>) -> Response<String> {
    let response = connect(address).await.send_request(request).await.expect("an answer");
    whole(response).await
}

pub async fn whole(response: Response<Incoming>) -> Response<String> {
    let (head, body) = response.into_parts();
    let body = body.collect().await.expect("a whole body").to_bytes();
    Response::from_parts(head, String::from_utf8(body.to_vec()).expect("text"))
}

/// Why the gateway itself answered, if it did.
pub fn cause<B>(response: &Response<B>) -> &str {
    response.headers().get("meshctl-cause").map_or("", |value| value.to_str().expect("text"))
}

/// Sends bytes as they are and returns everything that comes back until the other side closes.
pub async fn raw(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.expect("connected");
    // A server that has refused already may have closed.
    let _sent = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let _closed = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

/// Requests on several connections until told to stop; every answer that is not `200` is a failure.
pub struct Load {
    stop: Arc<std::sync::atomic::AtomicBool>,
    tasks: tokio::task::JoinSet<(u64, Vec<String>)>,
    pub done: Arc<AtomicU64>,
}

impl Load {
    pub fn on(address: SocketAddr, connections: usize) -> Self {
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let done = Arc::new(AtomicU64::new(0));
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..connections {
            let (stop, done) = (Arc::clone(&stop), Arc::clone(&done));
            tasks.spawn(async move {
                let (mut succeeded, mut failed) = (0, Vec::new());
                let mut sender = connect(address).await;
                while !stop.load(SeqCst) {
                    if sender.ready().await.is_err() {
                        // Closed after an answer, as a draining gateway does: not a failure, but a new connection.
                        sender = connect(address).await;
                        continue;
                    }
                    match sender.send_request(get("/load")).await {
                        Ok(response) if response.status() == 200 => {
                            let body = response.into_body().collect().await;
                            if let Err(error) = body {
                                failed.push(format!("body: {error}"));
                            }
                            succeeded += 1;
                            done.fetch_add(1, SeqCst);
                        }
                        Ok(response) => {
                            failed.push(format!("{} {}", response.status(), whole(response).await.into_body()))
                        }
                        // The connection was closed while it was idle, before a byte of this request had been read.
                        Err(error) if error.is_canceled() || error.is_closed() => sender = connect(address).await,
                        Err(error) => failed.push(format!("{error:?}")),
                    }
                }
                (succeeded, failed)
            });
        }
        Self { stop, tasks, done }
    }

    /// Waits until this many more requests have succeeded.
    pub async fn goes_on(&self, more: u64) {
        let goal = self.done.load(SeqCst) + more;
        while self.done.load(SeqCst) < goal {
            tokio::task::yield_now().await;
        }
    }

    /// How many succeeded, and what failed.
    pub async fn stop(self) -> (u64, Vec<String>) {
        self.stop.store(true, SeqCst);
        let results = self.tasks.join_all().await;
        results.into_iter().fold((0, Vec::new()), |(count, mut all), (more, failed)| {
            all.extend(failed);
            (count + more, all)
        })
    }
}
