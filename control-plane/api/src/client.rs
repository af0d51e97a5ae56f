//! The typed client: every route of the daemon as a function, over its Unix socket.
//!
//! A failure is always an [`ApiError`], whether the daemon refused or could not be reached, so that a caller maps one
//! type to one exit status.

mod failure;
mod lines;
mod messages;
mod operate;
mod watch;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use meshctl_model::event::Event;
use reqwest::{Method, RequestBuilder, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::ApiError;
use crate::place::{SOCKET, SocketPath};
use crate::view::{
    Accepted, ApplyRequest, DownRequest, Edge, Gateway, Instance, List, LogLine, LogQuery, Plan, Registration,
    RegistryView, RestartRequest, Revision, Route, ScaleRequest, Service, Status, UndoRequest, Version,
};

pub use lines::Follow;
pub use messages::Export;
pub use watch::{Heard, Watch};

/// How long an answer may take. Streams have no such limit: they begin within it and go on.
const PATIENCE: Duration = Duration::from_secs(10);

/// A connection to the daemon of one state directory. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    socket: Arc<SocketPath>,
    /// For messages.
    place: Arc<str>,
    patience: Duration,
}

impl Client {
    /// A client for the daemon that owns `state_dir`. Nothing is opened yet.
    ///
    /// # Errors
    /// When the folder cannot be opened.
    pub fn at(state_dir: &Path) -> Result<Self, ApiError> {
        let place: Arc<str> = state_dir.join(SOCKET).to_string_lossy().into();
        let socket = SocketPath::inside(state_dir, SOCKET).map_err(|error| failure::io(&place, &error))?;
        let http = reqwest::Client::builder()
            .unix_socket(socket.as_path())
            .build()
            .map_err(|error| failure::transport(&place, error))?;
        Ok(Self { http, socket: Arc::new(socket), place, patience: PATIENCE })
    }

    /// The same, with no more than this patience. Where it is less than usual and runs out, time is over
    /// ([`ErrorCode::TimedOut`](crate::error::ErrorCode::TimedOut)), and nothing is said about the daemon.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = self.patience.min(patience);
        self
    }

    /// The socket, as connections name it.
    pub fn socket(&self) -> &Path {
        self.socket.as_path()
    }

    pub async fn version(&self) -> Result<Version, ApiError> {
        self.get("/v1/version").await
    }

    pub async fn status(&self) -> Result<Status, ApiError> {
        self.get("/v1/status").await
    }

    pub async fn services(&self) -> Result<List<Service>, ApiError> {
        self.get("/v1/services").await
    }

    pub async fn instances(&self) -> Result<List<Instance>, ApiError> {
        self.get("/v1/instances").await
    }

    pub async fn gateways(&self) -> Result<List<Gateway>, ApiError> {
        self.get("/v1/gateways").await
    }

    pub async fn routes(&self) -> Result<List<Route>, ApiError> {
        self.get("/v1/routes").await
    }

    pub async fn edges(&self) -> Result<List<Edge>, ApiError> {
        self.get("/v1/edges").await
    }

    pub async fn revisions(&self) -> Result<List<Revision>, ApiError> {
        self.get("/v1/revisions").await
    }

    /// The last `limit` events after `after` whose subject begins with `subject`, oldest first.
    pub async fn events(
        &self,
        after: Option<&str>,
        limit: Option<usize>,
        subject: Option<&str>,
    ) -> Result<List<Event>, ApiError> {
        let request = self.request(Method::GET, "/v1/events");
        self.json(request.query(&[("after", after), ("subject", subject)]).query(&[("limit", limit)])).await
    }

    /// The endpoints of `service`, or of all.
    pub async fn endpoints(&self, service: Option<&str>) -> Result<RegistryView, ApiError> {
        self.json(self.request(Method::GET, "/v1/endpoints").query(&[("service", service)])).await
    }

    /// The endpoints of `service` as soon as the registry has passed `index`, or as they are after `wait`.
    pub async fn endpoints_after(
        &self,
        service: Option<&str>,
        index: u64,
        wait: Duration,
    ) -> Result<RegistryView, ApiError> {
        let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        let request = self.request(Method::GET, "/v1/endpoints").query(&[("service", service)]);
        let request = request.query(&[("index", index), ("waitMs", wait_ms)]);
        self.json(request.timeout(wait.saturating_add(self.patience))).await
    }

    /// Registers an endpoint from outside, or renews its lease.
    pub async fn register(&self, service: &str, id: &str, at: &Registration) -> Result<(), ApiError> {
        self.send(self.request(Method::PUT, &endpoint(service, id)).json(at)).await.map(drop)
    }

    pub async fn deregister(&self, service: &str, id: &str) -> Result<(), ApiError> {
        self.send(self.request(Method::DELETE, &endpoint(service, id))).await.map(drop)
    }

    /// Output of instances, oldest first; with `follow` it goes on.
    pub async fn logs(&self, query: &LogQuery) -> Result<Follow<LogLine>, ApiError> {
        let answer = self.open(self.http.get(self.url("/v1/logs")).query(query)).await?;
        Ok(Follow::new(lines::Lines::new(answer, Arc::clone(&self.place))))
    }

    /// What happens from now on, or after the event `after`. The stream comes back by itself when it breaks off, for as
    /// long as `return_within`; zero ends with the daemon.
    pub async fn watch(&self, after: Option<String>, return_within: Duration) -> Result<Watch, ApiError> {
        Watch::open(self.clone(), after, return_within).await
    }

    pub async fn plan(&self, body: &ApplyRequest) -> Result<Plan, ApiError> {
        self.post("/v1/plan", body).await
    }

    pub async fn apply(&self, body: &ApplyRequest) -> Result<Accepted, ApiError> {
        self.post("/v1/apply", body).await
    }

    pub async fn scale(&self, body: &ScaleRequest) -> Result<Accepted, ApiError> {
        self.post("/v1/scale", body).await
    }

    pub async fn restart(&self, body: &RestartRequest) -> Result<Accepted, ApiError> {
        self.post("/v1/restart", body).await
    }

    pub async fn undo(&self, body: &UndoRequest) -> Result<Accepted, ApiError> {
        self.post("/v1/undo", body).await
    }

    /// Everything is stopped, and then the daemon ends.
    pub async fn down(&self, body: &DownRequest) -> Result<Accepted, ApiError> {
        self.post("/v1/down", body).await
    }

    /// The daemon ends and leaves everything running, for the next one to adopt.
    pub async fn handover(&self) -> Result<(), ApiError> {
        self.send(self.request(Method::POST, "/v1/handover")).await.map(drop)
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        self.json(self.request(Method::GET, path)).await
    }

    async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, ApiError> {
        self.json(self.request(Method::POST, path).json(body)).await
    }

    fn url(&self, path: &str) -> String {
        format!("http://meshctl{path}")
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, self.url(path)).timeout(self.patience)
    }

    async fn json<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, ApiError> {
        let answer = self.send(request).await?;
        let path = answer.url().path().to_owned();
        let body = answer.bytes().await.map_err(|error| self.failed(error))?;
        serde_json::from_slice(&body).map_err(|error| failure::not_understood(&path, &error))
    }

    /// Sends, and turns every answer that is not a success into the error that it carries.
    async fn send(&self, request: RequestBuilder) -> Result<Response, ApiError> {
        let request = request.build().map_err(|error| failure::transport(&self.place, error))?;
        let (method, path, begun) = (request.method().clone(), request.url().path().to_owned(), Instant::now());
        let answer = self.http.execute(request).await.map_err(|error| self.failed(error))?;
        tracing::debug!(%method, path, status = answer.status().as_u16(), elapsed = ?begun.elapsed(), "asked the daemon");
        if answer.status().is_success() { Ok(answer) } else { Err(failure::refused(&path, answer).await) }
    }

    fn failed(&self, error: reqwest::Error) -> ApiError {
        if error.is_timeout() { self.silent() } else { failure::transport(&self.place, error) }
    }

    /// Patience has run out.
    fn silent(&self) -> ApiError {
        failure::silent(&self.place, self.patience < PATIENCE)
    }

    /// [`Self::send`] for an answer without an end: only its beginning has to come in time.
    async fn open(&self, request: RequestBuilder) -> Result<Response, ApiError> {
        match tokio::time::timeout(self.patience, self.send(request)).await {
            Ok(answer) => answer,
            Err(_) => Err(self.silent()),
        }
    }
}

fn endpoint(service: &str, id: &str) -> String {
    format!("/v1/services/{service}/endpoints/{id}")
}
