//! What a request passes through, from top to bottom. The order of the layers is decided here and nowhere else:
//!
//! accept → trace context → route → overall deadline → admission (rate limit, body size, bulkhead) → retry with budget →
//! breaker → balance → attempt timeout → connect → instance
//!
//! - The trace comes first: every answer, a refusal too, can be found by its id.
//! - The route comes before deadline and admission, because it decides which ones apply.
//! - The bulkhead holds a request once, however many attempts it makes; waiting for a place uses up the deadline.
//! - Every attempt passes the breaker, so a retry never beats on a service that has just been given up on.
//! - The fallback stands outside: it answers for whatever went wrong below it.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use http::header::{CONNECTION, EXPECT, Entry, HOST, UPGRADE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, request, uri};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use meshctl_model::policy::Policy;
use meshctl_model::snapshot::Serves;
use tokio::time::timeout_at;

use crate::attempt::{Call, Ended, Lease};
use crate::body::{Body, Source, UploadFailure};
use crate::clock;
use crate::connection::Client;
use crate::deadline::{self, Deadline};
use crate::fallback::Fallback;
use crate::metrics::{Outcome, Refusal};
use crate::plan::{Edge, EdgeState, RouteState};
use crate::pool::Sender;
use crate::problem::{self, Cause, Problem};
use crate::route::Found;
use crate::spans::{End, Sampling, Seat, Spans, Why};
use crate::trace::{self, TRACESTATE, Trace};
use crate::worker::{Live, Worker};
use crate::{forwarded, retry, upgrade};

pub(crate) async fn serve(client: &Client, request: Request<Incoming>) -> Response<Body> {
    let worker = &client.worker;
    let (live, began) = (worker.live(), clock::now());
    let trace = begin_trace(client, request.headers(), live.sampling, began);
    let spans = Spans::new(worker, trace, began, request.method(), request.uri().path());
    let mut account = Account {
        worker,
        live,
        began,
        way: None,
        spans: &spans,
        end: End::default(),
        refused: None,
        reached: Cell::new(false),
        seat: None,
    };
    let result = carry(client, request, &mut account).await;
    let mut response = account.answer(result);
    account.end.status = Some(response.status());
    response.headers_mut().insert(trace::TRACE_ID, trace.id_header());
    if let Some(seat) = account.end() {
        response.body_mut().remembered(seat);
    }
    response
}

/// Inside of the system everybody does as who began the trace has said. Where requests come in, the one who asks may wish for
/// a sampled trace; it is one of so many in a second, so that no client can flood whoever keeps them.
fn begin_trace(client: &Client, headers: &HeaderMap, sampling: Sampling, now: u64) -> Trace {
    let worker = &client.worker;
    let inside = matches!(*client.entrance.serves.borrow(), Serves::Edge(_));
    let sample = |said: Option<bool>| match said {
        Some(said) if inside || !said => said,
        _ => worker.samples(sampling, now),
    };
    Trace::of(headers, || worker.random(), sample)
}

/// Where a request goes: by its route, or by the edge that it came in on.
#[derive(Clone, Copy)]
struct Way {
    route: Option<usize>,
    edge: usize,
}

/// What is known of a request, written down when it ends, in whatever way it ends.
struct Account<'a> {
    worker: &'a Worker,
    live: Rc<Live>,
    began: u64,
    way: Option<Way>,
    spans: &'a Spans<'a>,
    end: End,
    refused: Option<Refusal>,
    reached: Cell<bool>,
    /// Once it is written down.
    seat: Option<Seat>,
}

impl Account<'_> {
    fn policy(&self, way: Way) -> (&Policy, Option<&Fallback>) {
        let plan = &self.live.plan;
        match way.route {
            Some(route) => (&plan.routes[route].policy, plan.routes[route].fallback.as_ref()),
            None => (&plan.edges[way.edge].policy, plan.edges[way.edge].fallback.as_ref()),
        }
    }

    /// The response for the client: the fallback for a failed one, if there is a fallback.
    fn answer(&mut self, result: Result<Response<Body>, Problem>) -> Response<Body> {
        if let Err(problem) = &result {
            self.refused = problem.cause.refusal();
            self.end.why = Some(Why::Cause(problem.cause));
            self.end.words = Some(problem.detail.clone());
        }
        let failed = match &result {
            Ok(response) => response.status().is_server_error(),
            Err(problem) => problem.cause.status().is_server_error(),
        };
        if failed
            && let Some(way) = self.way
            && let Some(fallback) = self.policy(way).1.map(Fallback::response)
        {
            self.end.fallback = true;
            return fallback;
        }
        result.unwrap_or_else(|problem| {
            let plan = &self.live.plan;
            let place = problem::Place {
                edge: self.way.map(|way| plan.edges[way.edge].state.name.as_str()),
                route: self.way.and_then(|way| way.route).map(|route| plan.routes[route].state.name.as_str()),
                trace_id: &self.spans.trace.id(),
            };
            problem.into_response(place)
        })
    }
}

impl Account<'_> {
    /// Writes it down: in the metrics and as a span. `None` if that was done before.
    fn end(&mut self) -> Option<Seat> {
        if self.seat.is_some() {
            return None;
        }
        let took = clock::now() - self.began;
        let mut end = std::mem::take(&mut self.end);
        if let Some(way) = self.way {
            let (thread, plan) = (self.worker.index, &self.live.plan);
            let (refused, reached) = (self.refused, self.reached.get());
            let outcome = Outcome { status: end.status, took, reached, refused, fallback: end.fallback };
            let edge = &plan.edges[way.edge].state;
            end.edge = edge.label;
            edge.metrics[thread].request(&outcome);
            if let Some(route) = way.route {
                let route = &plan.routes[route].state;
                end.route = route.label;
                route.metrics[thread].request(&outcome);
            }
        }
        self.seat = Some(self.spans.end(end, took, self.live.sampling.slow));
        self.seat
    }
}

impl Drop for Account<'_> {
    fn drop(&mut self) {
        self.end();
    }
}

async fn carry(
    client: &Client,
    mut request: Request<Incoming>,
    account: &mut Account<'_>,
) -> Result<Response<Body>, Problem> {
    let (worker, live, began) = (account.worker, Rc::clone(&account.live), account.began);
    let host = well_formed(&request)?;
    let way = find_way(&live, client, &request, &host, worker)?;
    account.way = Some(way);
    let account = &*account;
    let (policy, _) = account.policy(way);
    let deadline = Deadline::new(policy.deadline.get(), request.headers(), began);

    let idempotency_key = match way.route.map(|route| &live.plan.routes[route]) {
        Some(route) => {
            if let (Some(limiter), Some(pace)) = (&route.state.limiter, route.pace) {
                limiter.admit(pace, request.headers(), began).map_err(|wait| {
                    Problem::new(Cause::RateLimited, "the rate limit of this route is reached").retry_after(wait)
                })?;
            }
            route.idempotency_key.as_ref()
        }
        None => None,
    };
    let body_limit = live.plan.snapshot.limits.request_body_bytes;
    if request.body().size_hint().lower() > body_limit {
        return Err(too_large(body_limit));
    }
    let edge = &live.plan.edges[way.edge];
    let route = way.route.map(|route| &live.plan.routes[route].state);
    let place = Place::take(edge, route, deadline).await?;

    let upgrade = match request.version() {
        Version::HTTP_2 => None,
        _ => forwarded::upgrade(request.headers()).map(|protocol| (protocol, hyper::upgrade::on(&mut request))),
    };
    let (mut head, incoming) = request.into_parts();
    let repeatable = upgrade.is_none() && retry::repeatable(&head.method, &head.headers, idempotency_key);
    to_upstream(&mut head, client, &account.spans.trace, &host);
    match way.route {
        None => drop(head.headers.insert(forwarded::CALLER, edge.state.caller.clone())),
        Some(_) => drop(head.headers.remove(forwarded::CALLER)),
    }
    if let Some((protocol, _)) = &upgrade {
        head.headers.insert(UPGRADE, protocol.clone());
        head.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    }
    let source = (!incoming.is_end_stream()).then(|| Rc::new(Source::new(incoming, body_limit)));
    let idle = Duration::from_millis(live.plan.snapshot.limits.idle_timeout_ms);
    let (worker, spans, reached) = (&client.worker, account.spans, &account.reached);
    let body_idle = idle;
    let call = Call { worker, live: &live, edge, policy, deadline, body_idle, repeatable, source, spans, reached };
    let (response, sender, lease) = call.attempts(head).await.map_err(|problem| match problem {
        Ended::Problem(problem) => problem,
        Ended::Upload(UploadFailure::TooLarge) => too_large(body_limit),
        Ended::Upload(stalled @ UploadFailure::Stalled(_)) => Problem::new(Cause::RequestTimeout, stalled.to_string()),
        Ended::Upload(failure) => Problem::new(Cause::BadRequest, failure.to_string()),
    })?;
    let exchange = Exchange { _place: place, lease, sender };
    Ok(match (response.status(), upgrade) {
        (StatusCode::SWITCHING_PROTOCOLS, Some((_, ours))) => switch(&client.worker, response, ours, exchange, &live),
        _ => to_client(response, exchange, idle),
    })
}

fn too_large(limit: u64) -> Problem {
    Problem::new(Cause::BodyTooLarge, format!("the request body is larger than {limit} bytes"))
}

/// Refuses what two readers could understand differently. Returns the host that the request is for, port included.
fn well_formed(request: &Request<Incoming>) -> Result<Option<HeaderValue>, Problem> {
    let bad = |why: &str| Err(Problem::new(Cause::BadRequest, why));
    if request.method() == Method::CONNECT {
        return Err(Problem::new(Cause::MethodNotAllowed, "this gateway does not tunnel: CONNECT is refused"));
    }
    let mut hosts = request.headers().get_all(HOST).iter();
    let (host, another) = (hosts.next(), hosts.next());
    if another.is_some() {
        return bad("more than one Host field");
    }
    let host = match (request.uri().authority(), host) {
        (Some(authority), Some(host)) if !authority.as_str().as_bytes().eq_ignore_ascii_case(host.as_bytes()) => {
            return bad("the Host field differs from the host in the request line");
        }
        (_, Some(host)) => Some(host.clone()),
        (Some(authority), None) => HeaderValue::from_str(authority.as_str()).ok(),
        (None, None) if request.version() == Version::HTTP_11 => return bad("no Host field"),
        (None, None) => None,
    };
    if let Some(host) = &host
        && !host.as_bytes().iter().all(|c| c.is_ascii_alphanumeric() || b".-_:[]~%!$&'()*+,;=".contains(c))
    {
        return bad("the Host field is no host");
    }
    if request.uri().authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return bad("a user name in the request line");
    }
    if climbs(request.uri().path()) {
        return bad("the path has a segment `.` or `..`: what it means would depend on who reads it");
    }
    Ok(host)
}

/// Whether a segment of the path is `.` or `..`, percent-encoded or not.
fn climbs(path: &str) -> bool {
    // Nearly every path is settled by this glance.
    if !path.contains("/.") && !path.contains(['%', '\\']) {
        return false;
    }
    path.split(['/', '\\']).any(|segment| {
        let plain = segment.replace("%2e", ".").replace("%2E", ".");
        plain == "." || plain == ".."
    })
}

fn find_way<B>(
    live: &Live,
    client: &Client,
    request: &Request<B>,
    host: &Option<HeaderValue>,
    worker: &Worker,
) -> Result<Way, Problem> {
    let plan = &live.plan;
    match &*client.entrance.serves.borrow() {
        Serves::Edge(name) => match plan.edge_at.get(name) {
            Some(edge) => Ok(Way { route: None, edge: *edge }),
            None => Err(Problem::new(Cause::NoRoute, format!("the edge `{name}` is gone"))),
        },
        Serves::Routes => {
            let host = host.as_ref().and_then(|host| host.to_str().ok()).unwrap_or("");
            let name = without_port(host);
            let lower;
            let name = if name.bytes().any(|c| c.is_ascii_uppercase()) {
                lower = name.to_ascii_lowercase();
                &lower
            } else {
                name
            };
            let (method, path) = (request.method(), request.uri().path());
            match plan.table.find(name, path, method, request.headers()) {
                Found::Route(route) => {
                    let targets = &plan.routes[route].targets;
                    let edge = match targets.as_slice() {
                        [(only, _)] => *only,
                        several => {
                            let last = several[several.len() - 1];
                            let point = (worker.random() >> 11) as f64 / (1u64 << 53) as f64 * last.1;
                            several.iter().find(|(_, upto)| point < *upto).map_or(last.0, |(edge, _)| *edge)
                        }
                    };
                    Ok(Way { route: Some(route), edge })
                }
                Found::OtherMethods(allowed) => {
                    let allowed = allowed.iter().map(Method::as_str).collect::<Vec<_>>().join(", ");
                    let mut problem = Problem::new(
                        Cause::MethodNotAllowed,
                        format!("{path} is there for {allowed}, not for {method}"),
                    );
                    problem.allow = HeaderValue::try_from(allowed).ok();
                    Err(problem)
                }
                Found::Nothing => Err(Problem::new(Cause::NoRoute, format!("no route for {method} {name}{path}"))),
            }
        }
    }
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|c| c.is_ascii_digit()) => name,
        _ => host,
    }
}

/// The head as the instance gets it, all but the deadline and its place in the trace, which each attempt knows best.
fn to_upstream(head: &mut request::Parts, client: &Client, trace: &Trace, host: &Option<HeaderValue>) {
    if head.uri.authority().is_some() || head.uri.scheme().is_some() {
        let mut origin = uri::Parts::default();
        origin.path_and_query = head.uri.path_and_query().cloned();
        head.uri = Uri::from_parts(origin).unwrap_or_default();
    }
    head.version = Version::HTTP_11;
    head.extensions.clear();
    // Room for what is added below: growing step by step would move everything several times.
    head.headers.reserve(8);
    forwarded::end_hop(&mut head.headers);
    // The gateway itself says "100 Continue" when it begins to read the body.
    head.headers.remove(EXPECT);
    if let (Some(host), Entry::Vacant(place)) = (host, head.headers.entry(HOST)) {
        place.insert(host.clone());
    }
    let outermost = matches!(*client.entrance.serves.borrow(), Serves::Routes);
    client.origin.tell(&mut head.headers, host.as_ref(), outermost);
    if !trace.continued() {
        // The state of a trace that we begin would belong to another one.
        head.headers.remove(TRACESTATE);
    }
}

fn to_client(response: Response<Incoming>, exchange: Exchange, idle: Duration) -> Response<Body> {
    let (mut head, incoming) = response.into_parts();
    forwarded::end_hop(&mut head.headers);
    head.version = Version::HTTP_11;
    head.extensions.clear();
    Response::from_parts(head, Body::relay(incoming, exchange, idle))
}

/// The instance agreed to another protocol: from here on bytes are carried both ways.
fn switch(
    worker: &Rc<Worker>,
    mut response: Response<Incoming>,
    ours: OnUpgrade,
    exchange: Exchange,
    live: &Live,
) -> Response<Body> {
    let theirs = hyper::upgrade::on(&mut response);
    let idle = Duration::from_millis(live.plan.snapshot.limits.upgrade_idle_timeout_ms);
    upgrade::spawn(worker, ours, theirs, idle, exchange);
    let mut switched = Response::new(Body::empty());
    *switched.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *switched.headers_mut() = std::mem::take(response.headers_mut());
    switched
}

/// A place in the edge's bulkhead, given back when dropped.
struct Place {
    edge: Arc<EdgeState>,
    route: Option<Arc<RouteState>>,
}

impl Place {
    async fn take(edge: &Edge, route: Option<&Arc<RouteState>>, deadline: Deadline) -> Result<Self, Problem> {
        let bulkhead = &edge.state.bulkhead;
        if !bulkhead.try_enter(&edge.policy.bulkhead) {
            let _queued = route.map(|route| Queued::new(&route.queued));
            match timeout_at(clock::instant(deadline.at), bulkhead.enter(&edge.policy.bulkhead)).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => {
                    let policy = &edge.policy.bulkhead;
                    let why = format!("{} requests are under way and {} wait", policy.concurrency, policy.queue);
                    return Err(Problem::new(Cause::BulkheadFull, why).retry_after(0));
                }
                Err(_) => return Err(deadline::passed("waiting for one of the requests under way to end")),
            }
        }
        if let Some(route) = route {
            route.in_flight.fetch_add(1, Relaxed);
        }
        Ok(Self { edge: Arc::clone(&edge.state), route: route.cloned() })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.edge.bulkhead.leave();
        if let Some(route) = &self.route {
            route.in_flight.fetch_sub(1, Relaxed);
        }
    }
}

/// One that waits, counted for as long as it does.
struct Queued<'a>(&'a AtomicU32);

impl<'a> Queued<'a> {
    fn new(counter: &'a AtomicU32) -> Self {
        counter.fetch_add(1, Relaxed);
        Self(counter)
    }
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// What a response holds on to until its body has been read. Dropped before that, it closes the upstream connection.
pub(crate) struct Exchange {
    _place: Place,
    lease: Lease,
    sender: Sender,
}

impl Exchange {
    /// The response has been read to its end: its connection can serve another.
    pub(crate) fn complete(self) {
        self.lease.peer().pool.put(self.sender);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_climb() {
        for bad in ["/..", "/a/../b", "/a/%2e%2E/b", "/a/.%2e", "/./a", "/a\\..\\b", "/a/."] {
            assert!(climbs(bad), "{bad}");
        }
        for good in ["/", "/a.b/c..d", "/.well-known/x", "/a%20b/...", "/%2efoo"] {
            assert!(!climbs(good), "{good}");
        }
    }

    #[test]
    fn hosts_without_their_port() {
        for (host, name) in [("shop:80", "shop"), ("shop", "shop"), ("[::1]:80", "[::1]"), ("[::1]", "[::1]")] {
            assert_eq!(without_port(host), name);
        }
    }
}
