//! What lists show of a trace, kept up to date as its spans arrive, in whatever order. Pure.

use std::collections::{BTreeSet, HashMap};

use meshctl_model::trace::{Span, SpanStatus, attribute};

use super::id::{self, SpanId};
use super::packed::{likeness, nanos};
use crate::dead_letters::store::nanos as instant;

/// How bad it is; what is worse is kept longer. As numbers in the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    #[default]
    Plain = 0,
    Slow = 1,
    Failed = 2,
    /// A message of it became a dead letter.
    Dead = 3,
}

impl Class {
    /// The order in which they are removed where there is no room.
    pub const ALL: [Self; 4] = [Self::Plain, Self::Slow, Self::Failed, Self::Dead];

    pub fn of(number: i64) -> Self {
        Self::ALL.into_iter().find(|class| *class as i64 == number).unwrap_or_default()
    }

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "ok",
            Self::Slow => "slow",
            Self::Failed => "error",
            Self::Dead => "dead",
        }
    }
}

/// A trace at a glance. Times are nanoseconds since 1970.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Summary {
    pub class: Class,
    pub start: i64,
    pub end: i64,
    pub first: First,
    pub spans: u64,
    pub errors: u64,
    pub services: BTreeSet<String>,
}

/// The span with which a trace begins: the earliest of those without a parent, or, where none has come, the earliest.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct First {
    pub span: SpanId,
    pub is_root: bool,
    pub start: i64,
    /// How long it took, in nanoseconds.
    pub latency: i64,
    pub service: String,
    pub operation: String,
}

/// What has come of a span: its likeness, and whether it failed.
pub type Heard = HashMap<SpanId, (u64, bool)>;

impl Summary {
    /// Takes in a span; `false` where exactly this one was heard already. Of two with one id the later holds.
    pub fn add(&mut self, heard: &mut Heard, span: &Span, slow_ns: i64) -> bool {
        let (span_id, likeness) = likeness(span);
        let failed = span.status == SpanStatus::Error;
        let before = heard.insert(span_id, (likeness, failed));
        if before.is_some_and(|(same, _)| same == likeness) {
            return false;
        }
        let (start, length) = (instant(span.start_at), i64::try_from(nanos(span)).unwrap_or(i64::MAX));
        let end = start.saturating_add(length);
        let empty = self.spans == 0;
        self.start = if empty { start } else { self.start.min(start) };
        self.end = if empty { end } else { self.end.max(end) };
        self.spans += u64::from(before.is_none());
        self.errors += u64::from(failed);
        self.errors -= u64::from(before.is_some_and(|(_, failed)| failed));
        if !self.services.contains(&span.service) {
            self.services.insert(span.service.clone());
        }
        let is_root = span.parent_span_id.is_none();
        let rank = |is_root: bool, start: i64| (!is_root, start);
        if empty || span_id == self.first.span || rank(is_root, start) < rank(self.first.is_root, self.first.start) {
            let (service, operation) = (span.service.clone(), span.operation.clone());
            self.first = First { span: span_id, is_root, start, latency: length, service, operation };
        }
        let dead = span.attributes.contains_key(attribute::DEAD_LETTER)
            && span.service == meshctl_model::delivery::DAEMON
            || span.text(attribute::OUTCOME) == Some("dead");
        self.class = self.class.max(match (dead, self.errors > 0, self.first.latency >= slow_ns) {
            (true, ..) => Class::Dead,
            (_, true, _) => Class::Failed,
            (.., true) => Class::Slow,
            _ => Class::Plain,
        });
        true
    }
}

/// Under what a trace is found beside its id: the ids of its messages, and of the traces that its spans link to. Numbers, for
/// an index that stays small; who finds something looks whether it is true.
pub fn joins(span: &Span) -> Vec<i64> {
    let message = span.text(attribute::MESSAGE_ID).map(message_key);
    let links = span.links.iter().filter(|link| link.trace_id != span.trace_id);
    message.into_iter().chain(links.filter_map(|link| id::trace(&link.trace_id)).map(trace_key)).collect()
}

pub fn message_key(message_id: &str) -> i64 {
    key(&[b"message ", message_id.as_bytes()])
}

pub fn trace_key(trace: id::TraceId) -> i64 {
    key(&[b"trace ", &trace.to_be_bytes()])
}

fn key(parts: &[&[u8]]) -> i64 {
    use sha2::{Digest, Sha256};
    let mut hasher = Sha256::new();
    parts.iter().for_each(|part| hasher.update(part));
    let digest = hasher.finalize();
    digest.first_chunk().map_or(0, |bytes| i64::from_be_bytes(*bytes))
}
