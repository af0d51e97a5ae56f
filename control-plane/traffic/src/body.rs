//! Bodies in both directions. Bytes pass through without being copied; what ends with a body (a place in the bulkhead,
//! the upstream connection) travels with it.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::sync::{Notify, mpsc};
use tokio::time::Sleep;

use crate::clock;
use crate::connection::Serving;
use crate::spans::Seat;
use crate::stack::Exchange;

/// Request bodies up to this size are kept for a retry; a larger one is sent once.
const REPLAY_BYTES: usize = 64 << 10;

/// What a client gets.
pub(crate) struct Body {
    content: Content,
    /// The request counts as under way until its response has been handed over.
    serving: Option<Serving>,
    /// Where its request is remembered.
    seat: Option<Seat>,
}

enum Content {
    Empty,
    Full(Option<Bytes>),
    Relay(Relay),
    Stream(mpsc::Receiver<Bytes>),
}

/// A response body as it comes from an instance.
struct Relay {
    incoming: Incoming,
    exchange: Option<Exchange>,
    idle_limit: Duration,
    idle: Option<Pin<Box<Sleep>>>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    #[error("the instance broke off its response: {0}")]
    Broken(#[from] hyper::Error),
    #[error("the instance sent nothing of its response for {0:?}")]
    Idle(Duration),
}

impl Body {
    pub(crate) fn empty() -> Self {
        Content::Empty.into()
    }

    pub(crate) fn full(bytes: impl Into<Bytes>) -> Self {
        Content::Full(Some(bytes.into())).into()
    }

    pub(crate) fn relay(incoming: Incoming, exchange: Exchange, idle_limit: Duration) -> Self {
        if incoming.is_end_stream() {
            exchange.complete();
            return Self::empty();
        }
        let relay = Relay { incoming, exchange: Some(exchange), idle_limit, idle: None };
        Content::Relay(relay).into()
    }

    /// Frames as they come, until the sender is dropped.
    pub(crate) fn stream(frames: mpsc::Receiver<Bytes>) -> Self {
        Content::Stream(frames).into()
    }

    pub(crate) fn serving(&mut self, serving: Serving) {
        self.serving = Some(serving);
    }

    pub(crate) fn remembered(&mut self, seat: Seat) {
        self.seat = Some(seat);
    }
}

impl From<Content> for Body {
    fn from(content: Content) -> Self {
        Self { content, serving: None, seat: None }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Self { content, serving, seat } = &mut *self;
        match content {
            Content::Empty => Poll::Ready(None),
            Content::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Content::Relay(relay) => {
                let frame = ready!(relay.poll_frame(cx));
                if let (Some(Err(error)), Some(serving), Some(seat)) = (&frame, serving, *seat) {
                    serving.broke(seat, &error.to_string());
                }
                Poll::Ready(frame)
            }
            Content::Stream(frames) => frames.poll_recv(cx).map(|frame| frame.map(|bytes| Ok(Frame::data(bytes)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Empty => true,
            Content::Full(bytes) => bytes.as_ref().is_none_or(Bytes::is_empty),
            Content::Relay(relay) => relay.incoming.is_end_stream(),
            Content::Stream(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Empty => SizeHint::with_exact(0),
            Content::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Content::Relay(relay) => relay.incoming.size_hint(),
            Content::Stream(_) => SizeHint::default(),
        }
    }
}

impl Relay {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match Pin::new(&mut self.incoming).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                self.idle = None;
                // Known to be the last one: the connection is free before the client has read it.
                if self.incoming.is_end_stream() {
                    self.complete();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(broken))) => Poll::Ready(Some(Err(broken.into()))),
            Poll::Ready(None) => {
                self.complete();
                Poll::Ready(None)
            }
            Poll::Pending => {
                let limit = self.idle_limit;
                let idle = self.idle.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
                ready!(idle.as_mut().poll(cx));
                Poll::Ready(Some(Err(BodyError::Idle(limit))))
            }
        }
    }

    fn complete(&mut self) {
        if let Some(exchange) = self.exchange.take() {
            exchange.complete();
        }
    }
}

/// The body of one client request, for as many attempts as it takes.
///
/// It also tells whose time passes: while the client owes us bytes, no instance can be blamed for being slow.
pub(crate) struct Source {
    taken: RefCell<Taken>,
    /// Told when bytes that the client owed have come.
    came: Notify,
}

struct Taken {
    incoming: Incoming,
    /// What earlier reads have taken, for the next attempt; given up on beyond [`REPLAY_BYTES`].
    kept: Vec<Bytes>,
    kept_bytes: usize,
    given_up: bool,
    trailers: Option<HeaderMap>,
    ended: bool,
    total: u64,
    limit: u64,
    failure: Option<UploadFailure>,
    /// The attempt that may read. An earlier one may still be winding down when the next begins.
    attempt: u32,
    /// When this attempt began to read from the client, or last got something; 0 if it has done neither.
    progress: u64,
    /// This attempt wants bytes that the client has not sent.
    waiting: bool,
    /// How long attempts have been reading from the client, until its latest bytes.
    reading: u64,
}

/// Why a request body could not be taken in whole; never the instance's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UploadFailure {
    #[error("the request body is larger than allowed")]
    TooLarge,
    #[error("the client broke off its request body")]
    Client,
    #[error("the client sent nothing of its request body for {0:?}")]
    Stalled(Duration),
    #[error("another attempt has taken the request over")]
    Superseded,
}

impl Source {
    pub(crate) fn new(incoming: Incoming, limit: u64) -> Self {
        let taken = Taken {
            incoming,
            kept: Vec::new(),
            kept_bytes: 0,
            given_up: false,
            trailers: None,
            ended: false,
            total: 0,
            limit,
            failure: None,
            attempt: 0,
            progress: 0,
            waiting: false,
            reading: 0,
        };
        Self { taken: RefCell::new(taken), came: Notify::new() }
    }

    /// Whether another attempt could send the whole again.
    pub(crate) fn replayable(&self) -> bool {
        let taken = self.taken.borrow();
        !taken.given_up && taken.failure.is_none()
    }

    /// The client has sent all of it.
    pub(crate) fn ended(&self) -> bool {
        let taken = self.taken.borrow();
        taken.ended || taken.incoming.is_end_stream()
    }

    pub(crate) fn failure(&self) -> Option<UploadFailure> {
        self.taken.borrow().failure
    }

    /// When this attempt last got something from the client; 0 if it has not asked for anything.
    pub(crate) fn progress(&self) -> u64 {
        self.taken.borrow().progress
    }

    /// The client owes bytes that are wanted now.
    pub(crate) fn waiting(&self) -> bool {
        self.taken.borrow().waiting
    }

    /// How long the client has taken to send what has come, in nanoseconds.
    pub(crate) fn reading(&self) -> u64 {
        self.taken.borrow().reading
    }

    /// Returns when bytes have come that had been waited for.
    pub(crate) async fn came(&self) {
        self.came.notified().await;
    }

    /// The client has owed bytes for too long.
    pub(crate) fn stalled(&self, limit: Duration) {
        self.taken.borrow_mut().failure = Some(UploadFailure::Stalled(limit));
    }
}

/// The request body of one attempt.
pub(crate) struct Upload(Option<(Rc<Source>, u32, usize)>);

impl Upload {
    pub(crate) fn new(source: Option<&Rc<Source>>) -> Self {
        Self(source.map(|source| {
            let mut taken = source.taken.borrow_mut();
            taken.attempt += 1;
            (taken.progress, taken.waiting) = (0, false);
            (Rc::clone(source), taken.attempt, 0)
        }))
    }
}

impl HttpBody for Upload {
    type Data = Bytes;
    type Error = UploadFailure;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, UploadFailure>>> {
        let Some((source, attempt, next)) = &mut self.0 else { return Poll::Ready(None) };
        let taken = &mut *source.taken.borrow_mut();
        if *attempt != taken.attempt {
            return Poll::Ready(Some(Err(UploadFailure::Superseded)));
        }
        if let Some(failure) = taken.failure {
            return Poll::Ready(Some(Err(failure)));
        }
        if let Some(kept) = taken.kept.get(*next) {
            *next += 1;
            return Poll::Ready(Some(Ok(Frame::data(kept.clone()))));
        }
        if taken.ended {
            return Poll::Ready(
                taken
                    .trailers
                    .clone()
                    .filter(|_| std::mem::replace(next, usize::MAX) != usize::MAX)
                    .map(|t| Ok(Frame::trailers(t))),
            );
        }
        let now = clock::now();
        let polled = Pin::new(&mut taken.incoming).poll_frame(cx);
        if taken.progress == 0 {
            taken.progress = now;
        }
        let waited = std::mem::replace(&mut taken.waiting, polled.is_pending());
        if polled.is_ready() {
            taken.reading += now - std::mem::replace(&mut taken.progress, now);
            if waited {
                source.came.notify_one();
            }
        }
        match ready!(polled) {
            Some(Ok(frame)) => Poll::Ready(Some(taken.take(frame, next))),
            Some(Err(_)) => {
                taken.failure = Some(UploadFailure::Client);
                Poll::Ready(Some(Err(UploadFailure::Client)))
            }
            None => {
                taken.ended = true;
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(|(source, _, next)| {
            let taken = source.taken.borrow();
            *next >= taken.kept.len() && (taken.ended || taken.incoming.is_end_stream()) && taken.trailers.is_none()
        })
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            None => SizeHint::with_exact(0),
            Some((source, _, next)) => {
                let taken = source.taken.borrow();
                let again: u64 = taken.kept.iter().skip(*next).map(|kept| kept.len() as u64).sum();
                let rest = taken.incoming.size_hint();
                let mut hint = SizeHint::new();
                hint.set_lower(rest.lower() + again);
                if let Some(upper) = rest.upper() {
                    hint.set_upper(upper + again);
                }
                hint
            }
        }
    }
}

impl Taken {
    fn take(&mut self, frame: Frame<Bytes>, next: &mut usize) -> Result<Frame<Bytes>, UploadFailure> {
        let Some(data) = frame.data_ref() else {
            self.ended = true;
            self.trailers = frame.trailers_ref().cloned();
            *next = usize::MAX;
            return Ok(frame);
        };
        self.total += data.len() as u64;
        if self.total > self.limit {
            self.failure = Some(UploadFailure::TooLarge);
            return Err(UploadFailure::TooLarge);
        }
        if self.kept_bytes + data.len() > REPLAY_BYTES {
            self.given_up = true;
            self.kept = Vec::new();
            *next = 0;
        } else if !self.given_up {
            self.kept_bytes += data.len();
            self.kept.push(data.clone());
            *next += 1;
        }
        Ok(frame)
    }
}
