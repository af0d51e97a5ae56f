//! Attempts: one request, made again where that can help, until it has a response, an error worth telling, or no time.
//!
//! Every attempt takes an endpoint of the snapshot that is live at that moment, and passes the breaker. What is known of a
//! failure decides what may follow: a request that was never sent can go again whatever it is, one that may have been
//! seen only if doing it twice does no harm.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response, request};
use hyper::body::Incoming;
use meshctl_model::policy::{BreakerPolicy, Policy};
use meshctl_model::topology::RetryFailure;
use tokio::time::timeout_at;

use crate::body::{Source, Upload, UploadFailure};
use crate::breaker::{Refused, Ticket, Verdict};
use crate::clock::{self, nanos};
use crate::deadline::{self, Deadline};
use crate::metrics::count;
use crate::plan::{Edge, EdgeState, EndpointState};
use crate::pool::{self, Sender};
use crate::problem::{Cause, Problem};
use crate::spans::{Spans, Why};
use crate::trace::TRACEPARENT;
use crate::worker::{Live, Peer, Worker};
use crate::{balance, eject, retry};

/// A failed answer counts as one that took this long, at least, in nanoseconds.
const FAILED_AS_LATE_AS: u64 = 20_000_000;

/// Counts as a request under way to the endpoint for as long as it lives.
pub(crate) struct Lease(Rc<Peer>);

impl Lease {
    fn new(peer: &Rc<Peer>) -> Self {
        peer.endpoint.request_begins();
        Self(Rc::clone(peer))
    }

    pub(crate) fn peer(&self) -> &Rc<Peer> {
        &self.0
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.endpoint.request_ends();
    }
}

/// Permission of the breaker, given back with a verdict: at once when there is one, so that what this attempt meant is
/// known before the next one asks; as `Unknown` if nobody ever said.
struct Judged<'a> {
    edge: &'a EdgeState,
    policy: BreakerPolicy,
    /// `None` once it is given back.
    ticket: Option<Ticket>,
    admitted: u64,
}

impl Judged<'_> {
    fn record(&mut self, verdict: Verdict, at: u64) {
        if let Some(ticket) = self.ticket.take() {
            self.edge.breaker.record(&self.policy, ticket, verdict, at);
        }
    }
}

impl Drop for Judged<'_> {
    fn drop(&mut self) {
        self.record(Verdict::Unknown, self.admitted);
    }
}

/// One request on its way through as many attempts as it takes.
pub(crate) struct Call<'a> {
    pub(crate) worker: &'a Rc<Worker>,
    pub(crate) live: &'a Rc<Live>,
    pub(crate) edge: &'a Edge,
    pub(crate) policy: &'a Policy,
    /// As it was when the request began; see [`Call::deadline`].
    pub(crate) deadline: Deadline,
    /// How long a client may owe us bytes of its body.
    pub(crate) body_idle: Duration,
    pub(crate) repeatable: bool,
    pub(crate) source: Option<Rc<Source>>,
    pub(crate) spans: &'a Spans<'a>,
    /// Set once it is sent to an instance.
    pub(crate) reached: &'a Cell<bool>,
}

pub(crate) enum Ended {
    Problem(Problem),
    Upload(UploadFailure),
}

impl From<Problem> for Ended {
    fn from(problem: Problem) -> Self {
        Self::Problem(problem)
    }
}

/// How an attempt failed.
enum Failure {
    Connect(std::io::Error),
    /// The connection broke. `stale`: it had served before and broke without a word, as it does when the other side
    /// closes an idle connection at the moment we use it.
    Reset {
        why: hyper::Error,
        stale: bool,
    },
    Timeout,
}

impl Failure {
    /// What to tell of it.
    fn problem(&self, endpoint: &EndpointState, policy: &Policy) -> Problem {
        let EndpointState { id, address, .. } = endpoint;
        match self {
            Self::Connect(why) => {
                Problem::new(Cause::ConnectFailed, format!("cannot connect to {id} at {address}: {why}"))
            }
            Self::Reset { why, .. } => {
                Problem::new(Cause::Reset, format!("the connection to {id} broke before a response: {why}"))
            }
            Self::Timeout => {
                let why = format!("{id} did not begin to answer within {}", policy.attempt_timeout);
                Problem::new(Cause::AttemptTimeout, why)
            }
        }
    }
}

impl Call<'_> {
    pub(crate) async fn attempts(
        &self,
        mut head: request::Parts,
    ) -> Result<(Response<Incoming>, Sender, Lease), Ended> {
        let mut began = clock::now();
        self.edge.state.budget.request(began);
        let mut tried: Vec<Rc<Peer>> = Vec::new();
        let (mut retries, mut fresh) = (0, false);
        let mut judged = self.judged(began).map_err(|refused| Problem::refused(&self.edge.state.name, &refused))?;
        loop {
            let (peer, on_trial) = self.peer(&tried, &mut began).await?;
            let lease = Lease::new(&peer);
            let timeout = nanos(self.policy.attempt_timeout.get());
            let span = self.spans.attempt(self.edge.state.label, peer.endpoint.label, began);
            head.headers.insert(TRACEPARENT, span.header());
            head.headers.insert(deadline::HEADER, self.deadline().header(began));
            let upload = Upload::new(self.source.as_ref());
            let mut request = Some(if self.repeatable { copy(&head, upload) } else { take(&mut head, upload) });
            let sent = self.in_time(began, timeout, self.send(&peer, &mut request, fresh)).await;
            let ended = clock::now();
            let took = ended.saturating_sub(self.since(began));
            let failure = match sent {
                Ok((response, sender)) => {
                    self.worker.answered(&peer);
                    let status = response.status();
                    span.answered(status, ended);
                    let failed = status.is_server_error() && !matches!(status.as_u16(), 501 | 505);
                    // Who fails at once would otherwise look like the quickest of all, and be given the most.
                    peer.endpoint.latency.record(if failed { took.max(FAILED_AS_LATE_AS) } else { took }, ended);
                    self.conclude(&mut judged, if failed { Verdict::Failure } else { Verdict::Success }, ended);
                    if self.repeatable && retry::wanted_after_status(&self.policy.retry, status) {
                        let after = retry::retry_after(response.headers());
                        if let Some((next, pause)) = self.again(retries, after) {
                            drop((response, sender, lease));
                            tokio::time::sleep(pause).await;
                            (judged, retries) = (next, retries + 1);
                            tried.push(peer);
                            began = clock::now();
                            continue;
                        }
                    }
                    return Ok((response, sender, lease));
                }
                Err(failure) => failure,
            };
            drop(lease);
            if let Some(failure) = self.source.as_ref().and_then(|source| source.failure()) {
                span.failed(Why::Cancelled, failure.to_string(), ended);
                return Err(Ended::Upload(failure));
            }
            let problem = match &failure {
                Failure::Timeout if took < timeout => {
                    deadline::passed(&format!("{} had not begun to answer", peer.endpoint.id))
                }
                failure => failure.problem(&peer.endpoint, self.policy),
            };
            span.failed(Why::Cause(problem.cause), problem.detail.clone(), ended);
            // A request that came back was never sent: it can go again, whatever it is.
            let unsent = request.is_some() || matches!(failure, Failure::Connect(_));
            if let Some(request) = request {
                head = request.into_parts().0;
            }
            let may_repeat = unsent || self.repeatable;
            if on_trial && may_repeat && self.replayable() && ended < self.deadline().at {
                // It was sent there for our own ends; for the client it begins only now.
                tried.push(peer);
                began = ended;
                continue;
            }
            // A client that is slow to send its body says nothing about the instance.
            let heard_all = self.source.as_ref().is_none_or(|source| source.ended());
            let kind = match failure {
                Failure::Reset { stale: true, .. } if may_repeat && self.replayable() => {
                    // Nobody failed: the pool was out of date. Once more, on a connection of its own.
                    (fresh, began) = (true, ended);
                    continue;
                }
                Failure::Connect(_) => {
                    self.worker.refused(&peer, problem.detail.clone());
                    RetryFailure::ConnectFailure
                }
                Failure::Reset { stale, .. } => {
                    if heard_all && !stale {
                        self.worker.unanswered(&peer, &problem.detail);
                    }
                    RetryFailure::Reset
                }
                Failure::Timeout => {
                    peer.endpoint.latency.record(took, ended);
                    // A deadline that left less than an attempt's time says nothing about the service.
                    let whole = took >= timeout;
                    if whole {
                        self.worker.unanswered(&peer, &problem.detail);
                    }
                    if ended >= self.deadline().at {
                        self.conclude(&mut judged, if whole { Verdict::Failure } else { Verdict::Unknown }, ended);
                        return Err(deadline::passed(&format!("{} had not begun to answer", peer.endpoint.id)).into());
                    }
                    RetryFailure::Timeout
                }
            };
            self.conclude(&mut judged, Verdict::Failure, ended);
            if !(may_repeat && retry::wanted_after_failure(&self.policy.retry, kind)) {
                return Err(problem.into());
            }
            let Some((next, pause)) = self.again(retries, None) else { return Err(problem.into()) };
            if kind != RetryFailure::ConnectFailure {
                tokio::time::sleep(pause).await;
            }
            (judged, retries) = (next, retries + 1);
            tried.push(peer);
            began = clock::now();
        }
    }

    /// The time that the client took to send its body is not taken from anybody's deadline.
    fn deadline(&self) -> Deadline {
        let reading = self.source.as_ref().map_or(0, |source| source.reading());
        Deadline { at: self.deadline.at.saturating_add(reading) }
    }

    /// Since when the instance has had everything that there was for it: since the attempt began, or the client's latest
    /// bytes.
    fn since(&self, began: u64) -> u64 {
        self.source.as_ref().map_or(began, |source| source.progress().max(began))
    }

    /// Lets an attempt that began at `began` go on for as long as it is allowed to: the instance has `timeout` from the
    /// client's latest bytes on, and the client, while it owes bytes, its own limit.
    async fn in_time<T>(
        &self,
        began: u64,
        timeout: u64,
        sent: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let at = || self.since(began).saturating_add(timeout).min(self.deadline().at);
        let Some(source) = &self.source else {
            return timeout_at(clock::instant(at()), sent).await.unwrap_or(Err(Failure::Timeout));
        };
        let mut sent = std::pin::pin!(sent);
        loop {
            let owed = source.waiting();
            let until = if owed { source.progress().saturating_add(nanos(self.body_idle)) } else { at() };
            tokio::select! {
                biased;
                sent = &mut sent => return sent,
                () = source.came() => {}
                () = tokio::time::sleep_until(clock::instant(until)) => {
                    let now = clock::now();
                    if source.waiting() {
                        if now >= source.progress().saturating_add(nanos(self.body_idle)) {
                            source.stalled(self.body_idle);
                            return Err(Failure::Timeout);
                        }
                    } else if now >= at() {
                        return Err(Failure::Timeout);
                    }
                }
            }
        }
    }

    fn replayable(&self) -> bool {
        self.source.as_ref().is_none_or(|source| source.replayable())
    }

    /// # Errors
    /// When the breaker refuses.
    fn judged(&self, now: u64) -> Result<Judged<'_>, Refused> {
        let ticket = self.edge.state.breaker.admit(&self.edge.policy.breaker, now)?;
        let policy = self.edge.policy.breaker.clone();
        Ok(Judged { edge: &self.edge.state, policy, ticket: Some(ticket), admitted: now })
    }

    fn conclude(&self, judged: &mut Judged<'_>, verdict: Verdict, at: u64) {
        judged.record(verdict, at);
        if verdict == Verdict::Failure {
            count(&self.edge.state.metrics[self.worker.index].failures, 1);
        }
    }

    /// Whether there is another attempt, and after which pause: only if policy, body, deadline, breaker and budget all
    /// allow it, the budget being asked last because asking takes from it.
    fn again(&self, retries: u32, after: Option<Duration>) -> Option<(Judged<'_>, Duration)> {
        let policy = &self.policy.retry;
        if retries >= policy.attempts || !self.replayable() {
            return None;
        }
        let now = clock::now();
        let pause = retry::backoff(retries + 1, self.worker.random()).max(after.unwrap_or_default());
        if nanos(pause) >= self.deadline().left(now) {
            return None;
        }
        let judged = self.judged(now).ok()?;
        self.edge.state.budget.take(policy, now).then(|| {
            count(&self.edge.state.metrics[self.worker.index].retries, 1);
            (judged, pause)
        })
    }

    /// The endpoint for the next attempt, of the snapshot that is live now and not of the one that the request began with.
    /// True: it is out for being silent, and is given this request on trial.
    async fn peer(&self, tried: &[Rc<Peer>], now: &mut u64) -> Result<(Rc<Peer>, bool), Problem> {
        loop {
            let live = self.worker.live();
            let same = Rc::ptr_eq(&live, self.live);
            let service =
                if same { Some(self.edge.service) } else { live.plan.edge(&self.edge.state.name).map(|e| e.service) };
            let Some(service) = service else {
                return Err(Problem::new(Cause::NoEndpoint, format!("the edge {} is gone", self.edge.state.name)));
            };
            let peers = &live.peers[service];
            let was_tried = |peer: &Rc<Peer>| tried.iter().any(|t| Arc::ptr_eq(&t.endpoint, &peer.endpoint));
            if peers.first().is_some_and(|peer| peer.endpoint.ejector.any_silent()) {
                let overdue = self.stands_aside_for(*now);
                let mut untried = peers.iter().filter(|peer| !was_tried(peer));
                if let Some(peer) = untried.find(|peer| peer.endpoint.ejector.trial(*now, overdue)) {
                    return Ok((Rc::clone(peer), true));
                }
            }
            if let Some(at) = balance::choose(peers, was_tried, self.worker.random(), *now) {
                return Ok((Rc::clone(&peers[at]), false));
            }
            let service = &live.plan.services[service];
            if !service.expected || !self.policy.waits {
                let hope = if service.expected { "one" } else { "none" };
                let why = format!("{} has no instance, and {hope} is on its way", service.name);
                return Err(Problem::new(Cause::NoEndpoint, why).retry_after(0));
            }
            let changed = timeout_at(clock::instant(self.deadline().at), self.worker.changed.notified()).await;
            *now = clock::now();
            if changed.is_err() {
                return Err(deadline::passed(&format!("waiting for an instance of {}", service.name)));
            }
        }
    }

    /// How long a trial that is due waits for others before it gets this request: not at all for one that can go on
    /// elsewhere if the trial fails, and otherwise long enough for such a one to come.
    fn stands_aside_for(&self, now: u64) -> Duration {
        let time_for_another = self.deadline().left(now) > 2 * nanos(self.policy.attempt_timeout.get());
        let expendable = self.repeatable && self.replayable() && time_for_another;
        if expendable { Duration::ZERO } else { eject::LONGEST_PAUSE }
    }

    /// Sends the request, on an idle connection if there is one. It is left in `request` if it was not sent.
    async fn send(
        &self,
        peer: &Peer,
        request: &mut Option<Request<Upload>>,
        fresh: bool,
    ) -> Result<(Response<Incoming>, Sender), Failure> {
        let idle = if fresh { None } else { peer.pool.take().await };
        let reused = idle.is_some();
        let mut sender = match idle {
            Some(sender) => sender,
            None => {
                let sender =
                    pool::connect(peer.endpoint.address, &peer.pool, self.worker).await.map_err(Failure::Connect)?;
                self.worker.accepted(peer);
                sender
            }
        };
        self.reached.set(true);
        let Some(whole) = request.take() else { unreachable!("an attempt begins with its request") };
        sender.try_send_request(whole).await.map(|response| (response, sender)).map_err(|mut failed| {
            *request = failed.take_message();
            let why = failed.into_error();
            // Before the first byte of a response: anything later is an error of parsing, not of the connection.
            Failure::Reset { stale: reused && !why.is_parse(), why }
        })
    }
}

fn copy(head: &request::Parts, upload: Upload) -> Request<Upload> {
    let mut request = Request::new(upload);
    request.method_mut().clone_from(&head.method);
    request.uri_mut().clone_from(&head.uri);
    request.headers_mut().clone_from(&head.headers);
    request
}

fn take(head: &mut request::Parts, upload: Upload) -> Request<Upload> {
    let mut request = Request::new(upload);
    *request.method_mut() = std::mem::take(&mut head.method);
    *request.uri_mut() = std::mem::take(&mut head.uri);
    *request.headers_mut() = std::mem::take(&mut head.headers);
    request
}
