//! What every gateway driver has to hold to, as a suite over one running gateway. A driver's own tests call it with a
//! gateway that has just been started and knows no snapshot yet.
//!
//! It panics with what was expected: it is for tests only.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use meshctl_model::policy::Policy;
use meshctl_model::snapshot::{
    EdgeRule, Endpoint, GatewayEvent, Limits, Listener, PathMatch, RouteRule, Serves, ServiceEndpoints, Snapshot,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::{Gateway, GatewayError};
use crate::spans::Spans;

/// The gateway under test, and a free address that it may listen on.
pub struct Subject<'a> {
    pub gateway: &'a dyn Gateway,
    pub listen: SocketAddr,
    /// A driver for a gateway that is not there.
    pub absent: &'a dyn Gateway,
}

/// The whole suite, in order.
pub async fn suite(subject: &Subject<'_>) {
    says_that_nobody_is_there(subject).await;
    acknowledges_what_is_live(subject).await;
    moves_requests_to_other_endpoints(subject).await;
    refuses_what_is_older_or_does_not_hold_together(subject).await;
    reports_a_listener_that_cannot_be_opened(subject).await;
    tells_when_endpoints_are_drained(subject).await;
    tells_of_a_dead_endpoint(subject).await;
    tells_what_it_recorded(subject).await;
}

async fn says_that_nobody_is_there(subject: &Subject<'_>) {
    let error = subject.absent.status().await.expect_err("nobody is there");
    assert!(matches!(error, GatewayError::Unreachable { .. }), "{error}");
}

async fn acknowledges_what_is_live(subject: &Subject<'_>) {
    let before = subject.gateway.status().await.expect("a status without a snapshot");
    assert_eq!((before.generation, before.draining), (0, false));
    let origin = Origin::start("first", None).await;
    let status = subject.gateway.push(&snapshot(subject.listen, 1, &[&origin])).await.expect("acknowledged");
    assert_eq!((status.revision, status.generation, status.refused.len()), (7, 1, 0));
    assert!(ask(subject.listen).await.ends_with("first"), "live means that requests get through");
    assert_eq!(subject.gateway.status().await.expect("a status").generation, 1);
}

async fn moves_requests_to_other_endpoints(subject: &Subject<'_>) {
    let (old, new) = (Origin::start("old", None).await, Origin::start("new", None).await);
    subject.gateway.push(&snapshot(subject.listen, 2, &[&old])).await.expect("acknowledged");
    assert!(ask(subject.listen).await.ends_with("old"));
    let before = old.requests.load(SeqCst);
    subject.gateway.push(&snapshot(subject.listen, 3, &[&new])).await.expect("acknowledged");
    for _ in 0..20 {
        assert!(ask(subject.listen).await.ends_with("new"));
    }
    assert_eq!(old.requests.load(SeqCst), before, "none after the acknowledgement");
}

async fn refuses_what_is_older_or_does_not_hold_together(subject: &Subject<'_>) {
    let origin = Origin::start("still", None).await;
    subject.gateway.push(&snapshot(subject.listen, 10, &[&origin])).await.expect("acknowledged");
    let older = snapshot(subject.listen, 9, &[]);
    let mut broken = snapshot(subject.listen, 11, &[]);
    broken.services.clear();
    for refused in [older, broken] {
        let error = subject.gateway.push(&refused).await.expect_err("refused");
        assert!(matches!(error, GatewayError::Refused { .. }), "{error}");
        assert!(ask(subject.listen).await.ends_with("still"), "it serves on from what it had");
    }
}

async fn reports_a_listener_that_cannot_be_opened(subject: &Subject<'_>) {
    let origin = Origin::start("open", None).await;
    let mut taken = snapshot(subject.listen, 20, &[&origin]);
    taken.listeners.push(Listener { address: origin.address, serves: Serves::Routes });
    let status = subject.gateway.push(&taken).await.expect("the rest goes live");
    assert_eq!(status.refused.len(), 1);
    assert_eq!(status.refused[0].0, origin.address);
    assert!(ask(subject.listen).await.ends_with("open"));
    let status = subject.gateway.push(&snapshot(subject.listen, 21, &[&origin])).await.expect("acknowledged");
    assert_eq!(status.refused, []);
}

async fn tells_when_endpoints_are_drained(subject: &Subject<'_>) {
    let gate = Arc::new(Semaphore::new(0));
    let (old, new) = (Origin::start("old", Some(Arc::clone(&gate))).await, Origin::start("new", None).await);
    subject.gateway.push(&snapshot(subject.listen, 30, &[&old])).await.expect("acknowledged");
    let under_way = tokio::spawn(ask(subject.listen));
    while old.requests.load(SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    subject.gateway.push(&snapshot(subject.listen, 31, &[&new])).await.expect("acknowledged");
    let leaving = [old.id.to_owned()];
    let error = subject.gateway.drained(&leaving, Duration::from_millis(50)).await.expect_err("one is under way");
    assert!(matches!(error, GatewayError::TimedOut { .. }), "{error}");
    let drained = subject.gateway.drained(&leaving, Duration::from_secs(20));
    let (drained, ()) = tokio::join!(drained, async { gate.add_permits(1) });
    drained.expect("drained when it has ended");
    assert!(under_way.await.expect("joined").ends_with("old"), "and it ended well");
    subject.gateway.drained(&["unheard-of".to_owned()], Duration::ZERO).await.expect("nothing is under way to it");
}

async fn tells_of_a_dead_endpoint(subject: &Subject<'_>) {
    let mut events = subject.gateway.events().await.expect("events");
    let (dead, alive) = (Origin::start("dead", None).await, Origin::start("alive", None).await);
    subject.gateway.push(&snapshot(subject.listen, 40, &[&dead, &alive])).await.expect("acknowledged");
    dead.accepting.abort();
    let told = async {
        loop {
            if let Some(GatewayEvent::Ejected(ejection)) = events.recv().await {
                return ejection.endpoint;
            }
        }
    };
    let asked = async {
        loop {
            assert!(ask(subject.listen).await.ends_with("alive"), "the client does not notice");
        }
    };
    tokio::select! {
        endpoint = told => assert_eq!(endpoint, "dead"),
        () = asked => {}
    }
    let status = subject.gateway.status().await.expect("a status");
    assert!(status.ejected.iter().any(|ejection| ejection.endpoint == "dead"), "{status:?}");
}

async fn tells_what_it_recorded(subject: &Subject<'_>) {
    assert!(matches!(subject.absent.spans().await, Err(GatewayError::Unreachable { .. })));
    assert!(matches!(subject.absent.recall(&[]).await, Err(GatewayError::Unreachable { .. })));
    let mut spans = subject.gateway.spans().await.expect("spans");
    let origin = Origin::start("seen", None).await;
    let mut sampled = snapshot(subject.listen, 50, &[&origin]);
    sampled.tracing.traces_per_s = 1_000_000.0;
    subject.gateway.push(&sampled).await.expect("acknowledged");
    let answer = ask(subject.listen).await;
    let id = answer.lines().find_map(|line| line.strip_prefix("meshctl-trace-id: ")).expect("under which it is found");
    let of = |batch: &Spans| {
        let spans = batch.resource_spans.iter().flat_map(|of| &of.scope_spans).flat_map(|of| &of.spans);
        let ids = spans.map(|span| span.trace_id.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
        ids.filter(|other| other == id).count()
    };
    let mut told = 0;
    // The request, and its attempt.
    while told < 2 {
        told += of(&spans.recv().await.expect("it goes on"));
    }
    let recalled = subject.gateway.recall(&[id.to_owned()]).await.expect("remembered");
    assert_eq!((told, of(&recalled)), (2, 2));
    let service = recalled.resource_spans[0].resource.as_ref().map(|resource| resource.attributes[0].key.as_str());
    assert_eq!(service, Some("service.name"));
}

/// A server that answers every request with its name, and closes the connection.
struct Origin {
    id: &'static str,
    address: SocketAddr,
    requests: Arc<AtomicU64>,
    accepting: tokio::task::JoinHandle<()>,
}

impl Origin {
    /// With a gate, every answer takes a permit of it.
    async fn start(id: &'static str, gate: Option<Arc<Semaphore>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let requests = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&requests);
        let accepting = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (counter, gate) = (Arc::clone(&counter), gate.clone());
                tokio::spawn(async move {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        match stream.read_u8().await {
                            Ok(byte) => head.push(byte),
                            Err(_) => return,
                        }
                    }
                    counter.fetch_add(1, SeqCst);
                    if let Some(gate) = gate {
                        gate.acquire().await.expect("never closed").forget();
                    }
                    let answer =
                        format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{id}", id.len());
                    let _gone = stream.write_all(answer.as_bytes()).await;
                });
            }
        });
        Self { id, address, requests, accepting }
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// One request on a connection of its own; the whole answer.
async fn ask(address: SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).await.expect("the gateway listens");
    stream.write_all(b"GET / HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    answer
}

fn snapshot(listen: SocketAddr, generation: u64, origins: &[&Origin]) -> Snapshot {
    let policy = Policy::default();
    let endpoints = origins.iter().map(|origin| Endpoint { id: origin.id.to_owned(), address: origin.address });
    Snapshot {
        topology: "conformance".into(),
        revision: 7,
        generation,
        listeners: vec![Listener { address: listen, serves: Serves::Routes }],
        routes: vec![RouteRule {
            name: "everything".into(),
            host: None,
            path: PathMatch { segments: Vec::new(), below: true },
            methods: Vec::new(),
            headers: Vec::new(),
            targets: vec![("gateway:web".into(), 1.0)],
            idempotency_key: None,
            rate_limit: None,
            policy: policy.clone(),
        }],
        edges: BTreeMap::from([(
            "gateway:web".to_owned(),
            EdgeRule { caller: "gateway".into(), callee: "web".into(), policy, force: None, breaker_epoch: 0 },
        )]),
        services: BTreeMap::from([(
            "web".to_owned(),
            ServiceEndpoints { endpoints: endpoints.collect(), expected: false },
        )]),
        limits: Limits::default(),
        tracing: meshctl_model::snapshot::Tracing::default(),
    }
}
