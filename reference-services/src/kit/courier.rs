//! For tests: a real HTTP server in the courier's place, which remembers what it was sent.

use std::collections::{BTreeSet, VecDeque};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;

const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Clone)]
pub(crate) struct Courier {
    pub(crate) url: String,
    inner: Arc<Inner>,
}

struct Inner {
    accepted: watch::Sender<Vec<Accepted>>,
    /// The answers to the next requests; when there are none left, events are accepted.
    answers: Mutex<VecDeque<Response>>,
    /// What an event with this key is always answered.
    fault: Mutex<Option<(String, StatusCode)>>,
}

#[derive(Clone, Debug)]
pub(crate) struct Accepted {
    pub(crate) headers: HeaderMap,
    pub(crate) payload: Value,
}

impl Accepted {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

impl Courier {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let url = format!("http://{}/channels/a/messages", listener.local_addr().expect("an address"));
        let inner = Arc::new(Inner {
            accepted: watch::Sender::new(Vec::new()),
            answers: Mutex::default(),
            fault: Mutex::default(),
        });
        let router = Router::new().route("/channels/a/messages", post(accept)).with_state(Arc::clone(&inner));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { url, inner }
    }

    pub(crate) fn answers(&self, answers: impl IntoIterator<Item = Response>) {
        self.inner.answers.lock().expect("no panic").extend(answers);
    }

    pub(crate) fn fails(&self, key: &str, status: StatusCode) {
        *self.inner.fault.lock().expect("no panic") = Some((key.to_owned(), status));
    }

    /// Everything that was accepted, repetitions included.
    pub(crate) fn accepted(&self) -> Vec<Accepted> {
        self.inner.accepted.borrow().clone()
    }

    /// The different events among them.
    pub(crate) fn events(&self) -> BTreeSet<String> {
        self.accepted().iter().map(|accepted| accepted.header("idempotency-key").to_owned()).collect()
    }

    /// Completes when so many requests were accepted.
    pub(crate) async fn until(&self, count: usize) -> Vec<Accepted> {
        let mut accepted = self.inner.accepted.subscribe();
        // So long only where something is lost: a test that waits for it must end.
        match tokio::time::timeout(PATIENCE, accepted.wait_for(|accepted| accepted.len() >= count)).await {
            Ok(accepted) => accepted.expect("the sender is here").clone(),
            Err(_) => panic!("{count} events should have come, and {} did", self.accepted().len()),
        }
    }
}

async fn accept(State(inner): State<Arc<Inner>>, headers: HeaderMap, body: Bytes) -> Response {
    if let Some(answer) = inner.answers.lock().expect("no panic").pop_front() {
        return answer;
    }
    if let Some((key, status)) = inner.fault.lock().expect("no panic").as_ref()
        && headers.get("meshctl-key").is_some_and(|given| given == key)
    {
        return status.into_response();
    }
    let payload = serde_json::from_slice(&body).expect("JSON");
    inner.accepted.send_modify(|accepted| accepted.push(Accepted { headers, payload }));
    (StatusCode::ACCEPTED, axum::Json(json!({"duplicate": false}))).into_response()
}
