//! What every reference service is built on: where it listens, how it ends, what it logs, and the middleware that each
//! request passes.
//!
//! The service port carries requests; the admin port, which no route ever leads to, carries the knobs and shows the state.
//! Where it is stands in the first log line and in the body of `/healthz`.

use std::fmt::Arguments;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::serve::ListenerExt;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

mod client;
mod context;
#[cfg(test)]
pub(crate) mod courier;
pub(crate) mod inbox;
mod knobs;
mod log;
pub(crate) mod outbox;
mod problem;
mod store;

pub(crate) use client::{client, innermost};
pub(crate) use context::Context;
pub(crate) use problem::{Input, Problem};
pub(crate) use store::Store;

use knobs::{Effect, Knobs};
use log::Log;

/// Which instance answered; a header, so that bodies stay the same whoever answers.
const SERVED_BY: HeaderName = HeaderName::from_static("served-by");

/// Everything that an instance knows of itself.
#[derive(Clone)]
pub(crate) struct Kit(Arc<Inner>);

struct Inner {
    service: String,
    instance: String,
    served_by: HeaderValue,
    port: u16,
    admin_port: u16,
    started_at: jiff::Timestamp,
    knobs: watch::Sender<Knobs>,
    log: Log,
    log_requests: bool,
    log_debug: bool,
    counts: Counts,
}

#[derive(Default)]
struct Counts {
    requests: AtomicU64,
    in_flight: AtomicU64,
    failures: AtomicU64,
}

impl Kit {
    /// Reads `PORT`, and where set `ADMIN_PORT`, `MESHCTL_SERVICE`, `MESHCTL_INSTANCE`, `LOG_REQUESTS`, `LOG_LEVEL`
    /// (`debug` adds a line for each effect) and `KNOBS` (the JSON that `PUT /knobs` takes, to begin with).
    ///
    /// # Errors
    /// Says which variable is wrong and what it should be.
    pub(crate) fn from_env(name: &str) -> Result<Self, String> {
        let port = port_from_env("PORT")?
            .ok_or_else(|| format!("PORT is not set; to run it by hand: PORT=8000 meshctl service {name}"))?;
        let admin_port = port_from_env("ADMIN_PORT")?.unwrap_or(0);
        let service = env("MESHCTL_SERVICE").unwrap_or_else(|| name.into());
        let instance = env("MESHCTL_INSTANCE").unwrap_or_else(|| format!("{name}-{}", std::process::id()));
        let served_by = HeaderValue::from_str(&instance)
            .map_err(|_| format!("MESHCTL_INSTANCE is {instance:?}, which cannot stand in a header"))?;
        let knobs = match env("KNOBS") {
            None => Knobs::default(),
            Some(text) => Knobs::parse(text.as_bytes()).map_err(|why| format!("KNOBS: {why}"))?,
        };
        knobs.crash_if_asked();
        Ok(Self(Arc::new(Inner {
            log: Log::new(&instance),
            service,
            instance,
            served_by,
            port,
            admin_port,
            started_at: jiff::Timestamp::now(),
            knobs: watch::Sender::new(knobs),
            log_requests: env("LOG_REQUESTS").is_some_and(|value| value != "0"),
            log_debug: env("LOG_LEVEL").is_some_and(|value| value == "debug"),
            counts: Counts::default(),
        })))
    }

    pub(crate) fn service(&self) -> &str {
        &self.0.service
    }

    pub(crate) fn instance(&self) -> &str {
        &self.0.instance
    }

    pub(crate) fn log(&self, level: &str, message: Arguments<'_>, fields: Value) {
        self.0.log.line(level, message, fields);
    }

    /// Logs what is worth a line only to those who asked for it.
    pub(crate) fn debug(&self, message: Arguments<'_>, fields: Value) {
        if self.0.log_debug {
            self.log("debug", message, fields);
        }
    }

    /// Reads the knobs as they are now.
    fn knobs<T>(&self, read: impl FnOnce(&Knobs) -> T) -> T {
        read(&self.0.knobs.borrow())
    }

    #[cfg(test)]
    pub(crate) fn turn_for_test(&self, knobs: &str) {
        self.0.knobs.send_replace(Knobs::parse(knobs.as_bytes()).expect("knobs"));
    }

    /// An instance that nothing was said to; it listens nowhere.
    #[cfg(test)]
    pub(crate) fn for_test(service: &str, instance: &str) -> Self {
        Self(Arc::new(Inner {
            log: Log::new(instance),
            service: service.into(),
            instance: instance.into(),
            served_by: HeaderValue::from_str(instance).expect("a header"),
            port: 0,
            admin_port: 0,
            started_at: jiff::Timestamp::now(),
            knobs: watch::Sender::new(Knobs::default()),
            log_requests: false,
            log_debug: false,
            counts: Counts::default(),
        }))
    }

    /// Serves `public` on the service port and `admin`, beside the knobs, on the admin port, until SIGTERM or SIGINT; returns
    /// when the requests under way are answered.
    ///
    /// # Errors
    /// When a port cannot be opened.
    pub(crate) async fn serve(self, public: Router, admin: Router) -> io::Result<()> {
        let admin_listener = listen("ADMIN_PORT", self.0.admin_port).await?;
        let admin_address = admin_listener.local_addr()?;
        let listener = listen("PORT", self.0.port).await?;
        let stopping = self.stopping()?;

        // Whoever connects from here on is answered; the lines tell where.
        self.0.log.line("info", format_args!("listening on {}", listener.local_addr()?), json!({}));
        self.0.log.line("info", format_args!("admin on {admin_address}"), json!({}));
        let health = get(async |State((kit, admin)): State<(Kit, SocketAddr)>| kit.health(admin).await)
            .with_state((self.clone(), admin_address));
        let public = public
            .layer(axum::middleware::from_fn_with_state(self.clone(), carry))
            .route("/healthz", health)
            .into_make_service();
        let admin = admin.merge(knobs::routes(self.clone())).into_make_service();

        tokio::spawn(async move { axum::serve(admin_listener, admin).await });
        let listener = listener.tap_io(|stream| {
            // Answers are small and whole: waiting to fill a packet would only delay them. A connection that is gone already
            // shows so at its first read.
            let _gone = stream.set_nodelay(true);
        });
        axum::serve(listener, public).with_graceful_shutdown(stopping).await?;
        self.0.log.line("info", format_args!("stopped"), json!({}));
        Ok(())
    }

    /// Completes when the process is asked to end.
    fn stopping(&self) -> io::Result<impl Future<Output = ()> + use<>> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let kit = self.clone();
        Ok(async move {
            let signal = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            };
            let in_flight = kit.0.counts.in_flight.load(Ordering::Relaxed);
            let stopping = format_args!("{signal}: finishing {in_flight} requests under way").to_string();
            kit.0.log.line("info", format_args!("{stopping}"), json!({}));
        })
    }

    async fn health(&self, admin: SocketAddr) -> Response {
        let knobs = self.0.knobs.borrow().clone();
        if knobs.hang {
            self.unhung().await;
        }
        let (status, word) = if knobs.not_ready { (503, "notReady") } else { (200, "ok") };
        let body = json!({"status": word, "instance": self.0.instance, "admin": admin.to_string()});
        (problem::status(status), axum::Json(body)).into_response()
    }

    /// Completes when nobody wants this instance to hang any more.
    async fn unhung(&self) {
        // The sender lives in `self`, so the wait cannot end for want of one.
        let mut knobs = self.0.knobs.subscribe();
        let _never_closed = knobs.wait_for(|knobs| !knobs.hang).await;
    }

    /// What every service shows at `GET /state`.
    pub(crate) fn view(&self) -> Value {
        let counts = &self.0.counts;
        json!({
            "service": self.0.service,
            "instance": self.0.instance,
            "startedAt": self.0.started_at,
            "requests": counts.requests.load(Ordering::Relaxed),
            "inFlight": counts.in_flight.load(Ordering::Relaxed),
            "failures": counts.failures.load(Ordering::Relaxed),
        })
    }
}

/// What each request passes: counted, given a trace, held up as the knobs say, answered, and logged where it failed.
async fn carry(State(kit): State<Kit>, mut request: Request, next: Next) -> Response {
    let inner = &kit.0;
    let began = Instant::now();
    let _counted = InFlight::enter(&inner.counts);
    let context = Context::of(request.headers(), began);
    request.extensions_mut().insert(context.clone());
    let line = (request.method().clone(), request.uri().path().to_owned());

    let effect = inner.knobs.borrow().effect();
    let mut response = match effect {
        Effect::None => next.run(request).await,
        Effect::Delay(time) => {
            tokio::time::sleep(time).await;
            next.run(request).await
        }
        Effect::Fail(status, time) => {
            tokio::time::sleep(time).await;
            Problem::new(status, "injected-error", format!("{} fails on purpose", inner.instance)).into_response()
        }
        Effect::Hang => {
            kit.unhung().await;
            next.run(request).await
        }
    };

    response.headers_mut().insert(SERVED_BY, inner.served_by.clone());
    let failed = response.status().is_server_error();
    if failed {
        inner.counts.failures.fetch_add(1, Ordering::Relaxed);
    }
    if failed || inner.log_requests {
        let (method, path) = line;
        let level = if failed { "error" } else { "info" };
        let fields = json!({
            "method": method.as_str(),
            "path": path,
            "status": response.status().as_u16(),
            "durationMs": began.elapsed().as_millis(),
            "traceId": context.trace_id(),
        });
        inner.log.line(level, format_args!("{method} {path} {}", response.status().as_u16()), fields);
    }
    response
}

/// A request under way: counted down also when its client goes away and the request is dropped.
struct InFlight<'a>(&'a Counts);

impl<'a> InFlight<'a> {
    fn enter(counts: &'a Counts) -> Self {
        counts.requests.fetch_add(1, Ordering::Relaxed);
        counts.in_flight.fetch_add(1, Ordering::Relaxed);
        Self(counts)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn listen(variable: &str, port: u16) -> io::Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.map_err(|why| {
        io::Error::new(why.kind(), format!("cannot listen on 127.0.0.1:{port}: {why}; {variable} names another port"))
    })
}

/// A variable that is set and not empty.
pub(crate) fn env(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn port_from_env(name: &str) -> Result<Option<u16>, String> {
    env(name)
        .map(|text| text.parse().map_err(|_| format!("{name} is {text:?}, which is not a port: 1 to 65535")))
        .transpose()
}
