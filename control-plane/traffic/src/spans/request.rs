//! The spans of one request at the gateway: the request itself, until its response's head, and below it each attempt, whose
//! own id is what the instance is told as its parent.
//!
//! Whether they are recorded is known when the request ends. Until then only one attempt has to be kept in hand: a second one
//! already says that the request is recorded.

use std::cell::{Cell, RefCell};

use http::{HeaderValue, StatusCode};

use super::{Label, Method, Record, Seat, Text, What, Why};
use crate::trace::Trace;
use crate::worker::Worker;

pub(crate) struct Spans<'a> {
    worker: &'a Worker,
    pub(crate) trace: Trace,
    began: u64,
    method: Method,
    path: Text,
    attempts: Cell<u16>,
    /// The attempt that ended last.
    last: RefCell<Option<Ended>>,
}

struct Ended {
    span: u64,
    began: u64,
    took: u64,
    what: What,
    words: Option<String>,
}

/// How a request ended.
#[derive(Debug, Default)]
pub(crate) struct End {
    /// `None`: the client went away before there was one.
    pub(crate) status: Option<StatusCode>,
    pub(crate) why: Option<Why>,
    pub(crate) words: Option<String>,
    pub(crate) fallback: bool,
    pub(crate) route: Label,
    pub(crate) edge: Label,
}

/// An attempt under way. Dropped without a word, it was given up because the request was.
pub(crate) struct AttemptSpan<'a> {
    spans: &'a Spans<'a>,
    span: u64,
    began: u64,
    edge: Label,
    instance: Label,
    ended: bool,
}

impl<'a> Spans<'a> {
    pub(crate) fn new(worker: &'a Worker, trace: Trace, began: u64, method: &http::Method, path: &str) -> Self {
        let (method, path) = (Method::of(method), Text::of(path));
        Self { worker, trace, began, method, path, attempts: Cell::new(0), last: RefCell::default() }
    }

    /// One attempt begins.
    pub(crate) fn attempt(&'a self, edge: Label, instance: Label, began: u64) -> AttemptSpan<'a> {
        if let Some(before) = self.last.take() {
            self.keep(before, true);
        }
        AttemptSpan { spans: self, span: self.worker.random() | 1, began, edge, instance, ended: false }
    }

    /// Remembers the request, which took so long.
    pub(crate) fn end(&self, end: End, took: u64, slow: u64) -> Seat {
        let failed = end.status.is_none_or(|status| status.is_server_error());
        let attempts = self.attempts.get();
        let recorded = self.trace.sampled() || failed || attempts > 1 || took >= slow || end.fallback;
        if let Some(last) = self.last.take() {
            self.keep(last, recorded);
        }
        let (method, path) = (self.method, self.path);
        let End { status, why, words, fallback, route, edge } = end;
        let why = if status.is_none() { Some(Why::Cancelled) } else { why };
        let status = status.map_or(0, |status| status.as_u16());
        let what = What::Request { method, route, edge, status, why, fallback, path };
        let record = Record { began: self.began, took, failed, recorded, ..self.trace.record(what) };
        self.worker.remember(record, words.as_deref().filter(|_| recorded))
    }

    fn keep(&self, attempt: Ended, recorded: bool) {
        let Ended { span, began, took, what, words } = attempt;
        let failed = matches!(what, What::Attempt { status, why, .. } if status >= 500 || why.is_some());
        let parent = self.trace.span();
        let record = Record { span, parent, began, took, failed, recorded, ..self.trace.record(what) };
        self.worker.remember(record, words.as_deref());
    }
}

impl AttemptSpan<'_> {
    /// The `traceparent` for the instance.
    pub(crate) fn header(&self) -> HeaderValue {
        self.spans.trace.header(self.span)
    }

    pub(crate) fn answered(mut self, status: StatusCode, at: u64) {
        self.end(at, status.as_u16(), None, None);
    }

    pub(crate) fn failed(mut self, why: Why, words: String, at: u64) {
        self.end(at, 0, Some(why), Some(words));
    }

    fn end(&mut self, at: u64, status: u16, why: Option<Why>, words: Option<String>) {
        self.ended = true;
        let spans = self.spans;
        let number = spans.attempts.get().saturating_add(1);
        spans.attempts.set(number);
        let (method, edge, instance) = (spans.method, self.edge, self.instance);
        let what = What::Attempt { method, edge, instance, number, status, why };
        let took = at.saturating_sub(self.began);
        let ended = Ended { span: self.span, began: self.began, took, what, words };
        spans.last.replace(Some(ended));
    }
}

impl Drop for AttemptSpan<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.end(crate::clock::now(), 0, Some(Why::Cancelled), None);
        }
    }
}
