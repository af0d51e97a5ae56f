//! What a data-plane process remembers of requests and messages, and tells of them.
//!
//! Every span becomes a [`Record`]: plain, of fixed size, without a pointer; names are numbers ([`Names`]). A thread writes its
//! records into a [`Ring`] of its own, the newest over the oldest: no lock, no allocation, no serialisation. When a request
//! ends it is *recorded* if its trace is sampled (by the flag of `traceparent`; [`Sampler`] decides for those that begin here),
//! or if it failed, was tried again, was slow or fell back. Nothing is moved for that: being recorded is a mark on the record.
//!
//! A reader (`GET /spans`, [`serve`]) is told when there is something recorded, takes it from the rings and gets it as OTLP
//! ([`encode`]). What is overwritten before a reader took it is counted as dropped; so a reader that is slow, or absent, costs
//! requests nothing. `GET /spans?trace=` looks into the rings for everything of a trace, recorded or not: a trace that turns
//! out to be worth keeping elsewhere is made whole by what is remembered here.
//!
//! Memory: 65,536 records of 128 bytes and their keys for each thread, 8.5 MB, used only as they are filled; and no more than
//! a megabyte of words about failures.

mod encode;
mod names;
mod request;
mod ring;
mod sampler;
mod serve;

use meshctl_model::message::Failure;

pub(crate) use encode::encode;
pub(crate) use names::{Label, Names};
pub(crate) use request::{End, Spans};
pub(crate) use ring::{Remembered, Ring, Seat};
pub(crate) use sampler::{Sampler, Sampling};
pub(crate) use serve::{Reading, Source, asked_for, stream};

use crate::problem::Cause;

/// How many spans a thread remembers.
pub(crate) const REMEMBERED: usize = 1 << 16;
/// The most that are taken or recalled at once.
pub(crate) const AT_ONCE: usize = 4096;

/// One span.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Record {
    pub(crate) trace: u128,
    pub(crate) span: u64,
    /// 0: it is the first of its trace.
    pub(crate) parent: u64,
    /// Nanoseconds of [`crate::clock`].
    pub(crate) began: u64,
    pub(crate) took: u64,
    /// Of the trace.
    pub(crate) flags: u8,
    /// For the reader.
    pub(crate) recorded: bool,
    pub(crate) failed: bool,
    pub(crate) what: What,
}

impl Record {
    /// The request whose response began, and broke off.
    pub(crate) fn broke(mut self) -> Option<Self> {
        let What::Request { why, .. } = &mut self.what else { return None };
        *why = Some(Why::BodyBroken);
        Some(Self { recorded: true, failed: true, ..self })
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum What {
    /// A request as its client sees it, until its response's head.
    Request { method: Method, route: Label, edge: Label, status: u16, why: Option<Why>, fallback: bool, path: Text },
    /// One attempt of it. `number` is from 1.
    Attempt { method: Method, edge: Label, instance: Label, number: u16, status: u16, why: Option<Why> },
    /// A message, until the broker has it.
    Publish { channel: Label, message: Id, why: Option<Why>, duplicate: bool },
    /// One attempt to deliver it. `again_ms`: after which it is tried again.
    Deliver {
        channel: Label,
        subscription: Label,
        message: Id,
        replay: Id,
        number: u32,
        status: u16,
        why: Option<Why>,
        became: Became,
        state: State,
        again_ms: Option<u32>,
    },
}

/// What `error.type` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    Cause(Cause),
    Delivery(Failure),
    /// Who asked went away, or broke off its body.
    Cancelled,
    /// The response began and did not end.
    BodyBroken,
}

impl Why {
    fn name(self) -> &'static str {
        match self {
            Self::Cause(cause) => cause.name(),
            Self::Delivery(Failure::Rejected) => "rejected",
            Self::Delivery(Failure::Refused) => "refused",
            Self::Delivery(Failure::Timeout) => "timeout",
            Self::Delivery(Failure::Unreachable) => "unreachable",
            Self::Cancelled => "cancelled",
            Self::BodyBroken => "bodyBroken",
        }
    }
}

/// What became of an attempt to deliver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Became {
    Processed,
    Retried,
    Dead,
    /// It was no longer ours: another courier delivers it.
    Lost,
    /// The subscriber is down, and it counted as no attempt.
    Waits,
}

/// How the subscription was when the attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Flowing,
    Paused,
    Probing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Method(u8);

const METHODS: [&str; 10] = ["_OTHER", "GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT"];

impl Method {
    pub(crate) fn of(method: &http::Method) -> Self {
        Self(METHODS.iter().position(|known| *known == method.as_str()).unwrap_or(0) as u8)
    }

    fn name(self) -> &'static str {
        METHODS[usize::from(self.0)]
    }
}

/// The begin of a text.
#[derive(Clone, Copy, PartialEq)]
pub(crate) struct Text {
    length: u8,
    cut: bool,
    bytes: [u8; Self::MOST],
}

impl Text {
    const MOST: usize = 48;

    pub(crate) fn of(text: &str) -> Self {
        let kept = &text[..text.floor_char_boundary(Self::MOST)];
        let mut bytes = [0; Self::MOST];
        bytes[..kept.len()].copy_from_slice(kept.as_bytes());
        Self { length: kept.len() as u8, cut: kept.len() < text.len(), bytes }
    }
}

impl std::fmt::Display for Text {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(std::str::from_utf8(&self.bytes[..usize::from(self.length)]).unwrap_or_default())?;
        f.write_str(if self.cut { "…" } else { "" })
    }
}

impl std::fmt::Debug for Text {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.to_string())
    }
}

/// A message's or a replay's id: all that we give are UUIDs; others fit if they are short, and are left out if not, because a
/// part of an id is the id of nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Id {
    /// Of a text; [`Self::UUID`] for a UUID's 16 bytes.
    length: u8,
    bytes: [u8; Self::MOST],
}

impl Id {
    const MOST: usize = 20;
    const UUID: u8 = u8::MAX;
    pub(crate) const NONE: Self = Self { length: 0, bytes: [0; Self::MOST] };

    pub(crate) fn of(text: &str) -> Self {
        let mut bytes = [0; Self::MOST];
        // Only in the one form that comes out again as it went in.
        if let Ok(uuid) = uuid::Uuid::try_parse(text)
            && uuid.as_hyphenated().encode_lower(&mut uuid::Uuid::encode_buffer()) == text
        {
            bytes[..16].copy_from_slice(uuid.as_bytes());
            return Self { length: Self::UUID, bytes };
        }
        if text.len() > Self::MOST {
            return Self::NONE;
        }
        bytes[..text.len()].copy_from_slice(text.as_bytes());
        Self { length: text.len() as u8, bytes }
    }

    fn text(&self) -> Option<String> {
        match self.length {
            0 => None,
            Self::UUID => {
                Some(uuid::Uuid::from_slice(&self.bytes[..16]).unwrap_or_default().as_hyphenated().to_string())
            }
            length => std::str::from_utf8(&self.bytes[..usize::from(length)]).ok().map(str::to_owned),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_two_lines_of_the_cache() {
        assert!(size_of::<Record>() <= 128, "{}", size_of::<Record>());
    }

    #[test]
    fn texts_are_cut_between_characters_and_ids_never() {
        assert_eq!(Text::of("/orders").to_string(), "/orders");
        let long = format!("/{}ü", "a".repeat(46));
        assert_eq!(Text::of(&long).to_string(), format!("/{}…", "a".repeat(46)));
        let uuid = "01928f3c-7b1a-7c3e-9d4f-0123456789ab";
        for id in [uuid, "m", "12345678901234567890"] {
            assert_eq!(Id::of(id).text().as_deref(), Some(id));
        }
        for none in ["", "123456789012345678901"] {
            assert_eq!(Id::of(none).text(), None);
        }
        assert_eq!(Id::of(&uuid.to_uppercase()).text(), None, "another id than the one in lower case");
    }

    #[test]
    fn methods_are_known_or_other() {
        assert_eq!(Method::of(&http::Method::PATCH).name(), "PATCH");
        assert_eq!(Method::of(&http::Method::from_bytes(b"BREW").expect("a method")).name(), "_OTHER");
    }
}
