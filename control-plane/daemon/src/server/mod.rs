//! Listens: one file for each group of calls. A handler turns a request into a message for the control loop and its answer
//! into a response; it holds no state of its own.

mod audit;
mod breakers;
mod changes;
mod channels;
mod deadletters;
mod flows;
mod ledger;
mod logs;
pub mod looks;
mod messages;
mod metrics;
mod registry;
mod replays;
mod traces;
mod vitals;
mod watch;

use std::sync::Arc;

use axum::Json;
use axum::extract::connect_info::{ConnectInfo, Connected};
use axum::extract::{DefaultBodyLimit, FromRequest, Request, State as Extract};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::serve::IncomingStream;
use meshctl_api::error::{ApiError, ErrorCode};
use meshctl_api::view::Version;
use meshctl_drivers::runtime::SharedRuntime;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};
use utoipa::OpenApi;
use utoipa_axum::router::{OpenApiRouter, UtoipaMethodRouterExt};
use utoipa_axum::routes;

use crate::audit::Audit;
use crate::control::{Control, Message, Reply};
use crate::dead_letters::DeadLetters;
use crate::hub::Hub;
use crate::messaging::Messaging;
use crate::traces::Traces;
use crate::vitals::Samples;

/// What every handler has.
#[derive(Clone)]
pub struct Shared {
    pub messages: mpsc::Sender<Message>,
    pub hub: Hub,
    pub runtime: SharedRuntime,
    pub version: Arc<Version>,
    pub messaging: Messaging,
    pub dead_letters: DeadLetters,
    pub audit: Audit,
    pub samples: Samples,
    pub traces: Traces,
}

/// An error on its way out.
pub struct Failure(ApiError);

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Self(error)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(self.0)).into_response()
    }
}

pub type Answer<T> = Result<Json<T>, Failure>;

/// A JSON body whose refusal is an [`ApiError`] like every other.
pub struct Body<T>(pub T);

impl<S: Send + Sync, T: serde::de::DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, state: &S) -> Result<Self, Failure> {
        match Json::<T>::from_request(request, state).await {
            Ok(Json(body)) => Ok(Self(body)),
            Err(why) => Err(Failure(ApiError::new(ErrorCode::Invalid, format!("the request's body: {why}")))),
        }
    }
}

impl Shared {
    /// Sends a message that has a reply, and waits for it.
    pub async fn ask<T>(&self, message: impl FnOnce(Reply<T>) -> Message) -> Result<T, ApiError> {
        let (reply, answer) = oneshot::channel();
        let ending = || ApiError::new(ErrorCode::Unavailable, "the daemon is ending").hint("try again");
        self.messages.send(message(reply)).await.map_err(|_| ending())?;
        answer.await.map_err(|_| ending())?
    }

    /// Looks at everything, between two rounds of the control loop.
    pub async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Control) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        self.ask(|reply| Message::Look(Box::new(move |control| drop(reply.send(look(control)))))).await
    }
}

#[derive(OpenApi)]
#[openapi(info(
    title = "meshctl",
    description = "The control plane of one state directory, on its Unix socket. \
                   Every non-2xx answer has an ApiError as its body.",
    license(name = "Apache-2.0")
))]
struct Document;

fn router() -> OpenApiRouter<Shared> {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(looks::version))
        .routes(routes!(looks::status))
        .routes(routes!(looks::services))
        .routes(routes!(looks::instances))
        .routes(routes!(looks::gateways))
        .routes(routes!(looks::routes))
        .routes(routes!(looks::edges))
        .routes(routes!(looks::revisions))
        .routes(routes!(registry::endpoints))
        .routes(routes!(registry::register, registry::deregister))
        .routes(routes!(watch::watch))
        .routes(routes!(watch::events))
        .routes(routes!(logs::logs))
        .routes(routes!(changes::plan))
        .routes(routes!(changes::apply))
        .routes(routes!(changes::scale))
        .routes(routes!(changes::restart))
        .routes(routes!(changes::undo))
        .routes(routes!(changes::down))
        .routes(routes!(changes::handover))
        .routes(routes!(channels::channels))
        .routes(routes!(channels::channel))
        .routes(routes!(channels::publish).layer(DefaultBodyLimit::max(channels::LARGEST_REQUEST)))
        .routes(routes!(channels::pause))
        .routes(routes!(channels::resume))
        .routes(routes!(breakers::breakers))
        .routes(routes!(breakers::trip))
        .routes(routes!(breakers::hold))
        .routes(routes!(breakers::reset))
        .routes(routes!(flows::flows))
        .routes(routes!(ledger::ledger))
        .routes(routes!(messages::messages))
        .routes(routes!(messages::message))
        .routes(routes!(metrics::metrics))
        .routes(routes!(vitals::vitals))
        .routes(routes!(deadletters::list))
        .routes(routes!(deadletters::show))
        .routes(routes!(deadletters::discard))
        .routes(routes!(deadletters::park))
        .routes(routes!(deadletters::restore))
        .routes(routes!(deadletters::export))
        .routes(routes!(deadletters::import))
        .routes(routes!(replays::list, replays::create))
        .routes(routes!(replays::show))
        .routes(routes!(replays::pause))
        .routes(routes!(replays::resume))
        .routes(routes!(replays::cancel))
        .routes(routes!(audit::audit))
        .routes(routes!(traces::list, traces::take))
        .routes(routes!(traces::show))
}

/// The document that is served at `/openapi.json` and kept in `control-plane/api/openapi.json`.
pub fn openapi() -> serde_json::Value {
    serde_json::to_value(router().into_openapi()).unwrap_or_default()
}

/// Who is at the other end of a connection, as the kernel says.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    pub uid: Option<u32>,
}

impl Connected<IncomingStream<'_, UnixListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        Self { uid: stream.io().peer_cred().ok().map(|credentials| credentials.uid()) }
    }
}

impl Peer {
    /// The name of the user, or its number.
    pub fn name(self) -> String {
        let Some(uid) = self.uid else { return "somebody".into() };
        let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        let named = users.lines().find_map(|line| {
            let mut fields = line.split(':');
            let (name, _, number) = (fields.next()?, fields.next()?, fields.next()?);
            (number.parse() == Ok(uid)).then(|| name.to_owned())
        });
        named.unwrap_or_else(|| uid.to_string())
    }
}

/// The socket's mode keeps others out; this keeps out who was handed a connection.
async fn only_the_owner(ConnectInfo(peer): ConnectInfo<Peer>, request: Request, next: Next) -> Response {
    let owner = rustix::process::geteuid().as_raw();
    if peer.uid.is_some_and(|uid| uid == owner || uid == 0) {
        return next.run(request).await;
    }
    let message = format!("only the user {owner} and root may operate this system");
    Failure(ApiError::new(ErrorCode::Forbidden, message)).into_response()
}

async fn nowhere(request: Request) -> Failure {
    let message = format!("there is no call {} {}", request.method(), request.uri().path());
    Failure(ApiError::new(ErrorCode::NotFound, message).hint("GET /openapi.json lists them"))
}

pub async fn serve(listener: UnixListener, shared: Shared) {
    let (router, document) = router().split_for_parts();
    let document = Arc::new(serde_json::to_value(document).unwrap_or_default());
    let router = router
        .route("/openapi.json", axum::routing::get(move || async move { Json(document.as_ref().clone()) }))
        .fallback(nowhere)
        .method_not_allowed_fallback(nowhere)
        .layer(middleware::from_fn(only_the_owner))
        .with_state(shared);
    let service = router.into_make_service_with_connect_info::<Peer>();
    if let Err(why) = axum::serve(listener, service).await {
        tracing::error!(%why, "the daemon's socket failed");
    }
}

pub(crate) type FromShared = Extract<Shared>;
