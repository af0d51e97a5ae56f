//! What the daemon does to messages, as spans in their traces. Their ids follow from what they are about: said again after a
//! crash, they are the same.

use std::collections::HashSet;

use jiff::Timestamp;
use meshctl_model::delivery::DAEMON;
use meshctl_model::message::{DeathReason, Message, header};
use meshctl_model::trace::{Span, SpanKind, SpanStatus, attribute};
use sha2::{Digest, Sha256};

use super::id::{self, SpanId, TraceId};

/// Where a message was published: its `traceparent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Origin {
    trace: TraceId,
    span: SpanId,
    sampled: bool,
}

impl Origin {
    /// `None` where the message has none, or something else under that name.
    fn of(message: &Message) -> Option<Self> {
        let mut parts = message.header(header::TRACEPARENT)?.split('-').skip(1);
        let (trace, span) = (id::trace(parts.next()?)?, id::span(parts.next()?)?);
        let flags = u8::from_str_radix(parts.next()?, 16).ok()?;
        Some(Self { trace, span, sampled: flags & 1 != 0 })
    }
}

/// Spans of the daemon, and the traces of theirs of which not everybody records everything.
#[derive(Clone, Debug, Default)]
pub struct Said {
    pub spans: Vec<Span>,
    pub unsampled: HashSet<TraceId>,
}

impl Said {
    fn add(&mut self, origin: Origin, span: Span) {
        if !origin.sampled {
            self.unsampled.insert(origin.trace);
        }
        self.spans.push(span);
    }

    /// A message became a dead letter, `id`, and was written down at `until`.
    pub fn dead_letter(
        &mut self,
        (channel, subscription): (&str, &str),
        letter: &str,
        message: &Message,
        since: Timestamp,
        until: Timestamp,
    ) {
        let Some(origin) = Origin::of(message) else { return };
        let death = message.death();
        let attempts = death.as_ref().map_or(0, |death| death.attempts);
        let own = span_id(&["dead letter", letter, &attempts.to_string()]);
        let operation = format!("dead letter {channel}/{subscription}");
        let mut span = span(origin, own, operation, (channel, subscription), message, since, until);
        span.status = SpanStatus::Error;
        span.message = message.history().last().map(|attempt| attempt.reason.clone());
        let reason = death.as_ref().map_or(DeathReason::Exhausted, |death| death.reason);
        span.attributes.insert(attribute::ERROR.into(), reason.as_str().into());
        span.attributes.insert(attribute::DEAD_LETTER.into(), letter.into());
        span.attributes.insert(attribute::ATTEMPT.into(), attempts.into());
        self.add(origin, span);
    }
}

/// A message on its way back to its subscription.
#[derive(Clone, Debug)]
pub struct Issue {
    origin: Origin,
    span: Span,
}

impl Issue {
    /// Puts a message that a replay is about to issue below a span of ours. `None` where it has no trace.
    pub fn begin(replay: &str, (channel, subscription): (&str, &str), message: &mut Message) -> Option<Self> {
        let origin = Origin::of(message)?;
        let own = span_id(&["replay", replay, channel, subscription, &message.id]);
        let now = Timestamp::now();
        let operation = format!("replay {replay} {channel}/{subscription}");
        let mut span = span(origin, own, operation, (channel, subscription), message, now, now);
        span.kind = SpanKind::Producer;
        span.attributes.insert(attribute::REPLAY.into(), replay.into());
        let flags = u8::from(origin.sampled);
        let parent = format!("00-{}-{}-{flags:02x}", span.trace_id, span.span_id);
        message.set_header(header::TRACEPARENT, &parent);
        Some(Self { origin, span })
    }

    /// The broker has it.
    pub fn end(mut self, said: &mut Said) {
        self.span.duration_ms = between(self.span.start_at, Timestamp::now());
        said.add(self.origin, self.span);
    }
}

fn span(
    origin: Origin,
    own: SpanId,
    operation: String,
    (channel, subscription): (&str, &str),
    message: &Message,
    since: Timestamp,
    until: Timestamp,
) -> Span {
    let attributes = [
        (attribute::CHANNEL, channel),
        (attribute::SUBSCRIPTION, subscription),
        (attribute::MESSAGE_ID, message.id.as_str()),
    ];
    Span {
        trace_id: id::trace_text(origin.trace),
        span_id: id::span_text(own),
        parent_span_id: Some(id::span_text(origin.span)),
        links: Vec::new(),
        service: DAEMON.into(),
        operation,
        kind: SpanKind::Internal,
        start_at: since,
        duration_ms: between(since, until),
        status: SpanStatus::Ok,
        message: None,
        attributes: attributes.map(|(name, value)| (name.to_owned(), value.into())).into(),
    }
}

fn between(since: Timestamp, until: Timestamp) -> f64 {
    until.duration_since(since).as_nanos().max(0) as f64 / 1e6
}

fn span_id(about: &[&str]) -> SpanId {
    let mut hasher = Sha256::new();
    for part in about {
        hasher.update(part.as_bytes());
        hasher.update([0]);
    }
    let digest = hasher.finalize();
    // Zero is no id.
    digest.first_chunk().map_or(1, |bytes| SpanId::from_be_bytes(*bytes).max(1))
}
