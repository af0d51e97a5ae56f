//! What [`assemble`](super::assemble) makes of spans, ready to be drawn from top to bottom.

use std::fmt;

use jiff::Timestamp;

use super::Span;

/// One request with all that followed from it, as one tree.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tree {
    /// Parents before their children, each with all below it before the next: as it is drawn. The first is the root; empty
    /// where there were no spans.
    pub nodes: Vec<Node>,
    /// When the first span began, after clocks were put right.
    pub start_at: Timestamp,
    /// From there to the end of the last span.
    pub duration_ms: f64,
    /// What is not known yet, or never will be.
    pub gaps: Vec<Gap>,
}

impl Tree {
    /// Whether everything is there that belongs to it, and nothing of it is still under way.
    pub fn is_complete(&self) -> bool {
        self.gaps.is_empty()
    }

    /// How long the caller waited: the duration of the root.
    pub fn latency_ms(&self) -> Option<f64> {
        self.nodes.first().map(|root| root.duration_ms)
    }

    pub fn spans(&self) -> impl Iterator<Item = &Span> {
        self.nodes.iter().filter_map(Node::span)
    }
}

/// A line of the tree.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    pub what: What,
    /// The place of its parent in [`Tree::nodes`]; `None` only for the root.
    pub parent: Option<usize>,
    /// 0 for the root.
    pub depth: usize,
    /// Since the tree's start, after clocks were put right.
    pub start_ms: f64,
    pub duration_ms: f64,
    /// The part of its duration in which none of its children ran.
    pub self_ms: f64,
    /// On the critical path, the chain that determined when everything ended: how much of it was this and nothing below it.
    /// Of all nodes together that is the whole time.
    pub critical_ms: Option<f64>,
    /// By how much its clock was put forward, because it would have begun before what caused it.
    pub shifted_ms: f64,
}

impl Node {
    pub fn span(&self) -> Option<&Span> {
        match &self.what {
            What::Span(span) => Some(span),
            What::Unknown { .. } | What::Wait(_) => None,
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum What {
    Span(Box<Span>),
    /// Others name it as their parent, and nobody sent it. It lasts as long as they do, as far as is known.
    Unknown {
        trace_id: String,
        span_id: String,
    },
    /// Time in which a message or a request waited for its turn.
    Wait(Wait),
}

/// Nothing happened because …
#[derive(Clone, Debug, PartialEq)]
pub struct Wait {
    pub cause: WaitCause,
    /// `order.placed/billing`; of an attempt of a request, the edge.
    pub at: String,
    /// It had not ended when the last span was received; it is drawn to the end of the tree.
    pub open: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub enum WaitCause {
    /// … a message was not taken yet.
    Delivery,
    /// … a failed attempt is followed by a pause, for a message until this time.
    Retry { not_before: Option<Timestamp> },
    /// … a dead letter lies until somebody replays it.
    Replay,
}

/// Why a tree is not complete.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Gap {
    /// A parent that nobody sent; `services` are those whose spans hang on it, sorted.
    Missing { span_id: String, services: Vec<String> },
    /// Spans that are, by what they say, their own ancestors. One of them was cut loose.
    Circle { span_id: String },
    /// A subscription that has not taken a message yet.
    Undelivered { message_id: String, at: String },
    /// A message of which an attempt failed, and that is tried again.
    Retrying { message_id: String, at: String, not_before: Option<String> },
    /// A dead letter that is on its way back to the subscriber.
    Replaying { message_id: String, at: String, replay: String },
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { span_id, services } => {
                write!(f, "span {span_id}, on which spans of {} hang, was never received", services.join(", "))
            }
            Self::Circle { span_id } => write!(f, "span {span_id} is, as it says, below itself"),
            Self::Undelivered { message_id, at } => write!(f, "{at} has not taken message {message_id} yet"),
            Self::Retrying { at, not_before: Some(time), message_id } => {
                write!(f, "{at} is retried at {time} (message {message_id})")
            }
            Self::Retrying { at, not_before: None, message_id } => {
                write!(f, "{at} is being retried (message {message_id})")
            }
            Self::Replaying { message_id, at, replay } => {
                write!(f, "{at} has not taken what {replay} replays yet (message {message_id})")
            }
        }
    }
}
