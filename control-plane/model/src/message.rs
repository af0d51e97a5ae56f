//! A message: what a service publishes and a subscriber receives. The broker keeps key, headers and payload exactly as they
//! are and understands none of them; everything that we say about a message stands in headers, so that it survives any
//! broker.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The headers of CloudEvents 1.0 in binary mode, and ours. Names are lower case everywhere.
pub mod header {
    /// The event's id: the publisher's own, or the message's. Two messages with the same source and id carry one event.
    pub const CE_ID: &str = "ce-id";
    /// Where the event comes from: what the publisher says, or the service that published it.
    pub const CE_SOURCE: &str = "ce-source";
    /// The service that published it, as the gateway knows it. No subscriber sees it.
    pub const PUBLISHER: &str = "meshctl-caller";
    /// What happened: `order.placed`. The channel's name where the publisher does not say.
    pub const CE_TYPE: &str = "ce-type";
    /// RFC 3339, when it was accepted unless the publisher says.
    pub const CE_TIME: &str = "ce-time";
    pub const CE_SPECVERSION: &str = "ce-specversion";
    pub const CONTENT_TYPE: &str = "content-type";
    pub const TRACEPARENT: &str = "traceparent";
    /// Unique for ever; what a subscriber deduplicates by.
    pub const MESSAGE_ID: &str = "meshctl-message-id";
    pub const CHANNEL: &str = "meshctl-channel";
    pub const SUBSCRIPTION: &str = "meshctl-subscription";
    /// Which attempt this is, from 1.
    pub const ATTEMPT: &str = "meshctl-attempt";
    /// On a replayed message: the replay.
    pub const REPLAY: &str = "meshctl-replay-id";
    /// Between courier, broker and daemon only: [`super::Attempt`]s as a JSON array. No subscriber sees it.
    pub const HISTORY: &str = "meshctl-history";
    /// Between couriers only: not to be delivered before, RFC 3339.
    pub const NOT_BEFORE: &str = "meshctl-not-before";
    /// On a dead letter: a [`super::Death`] as JSON.
    pub const DEATH: &str = "meshctl-death";
}

/// What is kept of a message between the one who publishes it and those who receive it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// UUIDv7, given when it is accepted; the same through retries, dead letters and replays.
    pub id: String,
    /// Messages with one key go to one partition and keep their order there.
    pub key: Option<String>,
    /// Lower-case names, in the order in which they came.
    pub headers: Vec<(String, String)>,
    pub payload: bytes::Bytes,
}

impl Message {
    /// The first header of that (lower-case) name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Replaces every header of that name by one.
    pub fn set_header(&mut self, name: &str, value: impl Into<String>) {
        self.remove_header(name);
        self.headers.push((name.to_owned(), value.into()));
    }

    pub fn remove_header(&mut self, name: &str) {
        self.headers.retain(|(known, _)| known != name);
    }

    /// Attempts so far, oldest first.
    pub fn history(&self) -> Vec<Attempt> {
        self.header(header::HISTORY).and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
    }

    pub fn set_history(&mut self, attempts: &[Attempt]) {
        self.set_header(header::HISTORY, serde_json::to_string(attempts).unwrap_or_default());
    }

    /// Why it is dead; `None` on a message that is not a dead letter.
    pub fn death(&self) -> Option<Death> {
        self.header(header::DEATH).and_then(|text| serde_json::from_str(text).ok())
    }

    pub fn set_death(&mut self, death: &Death) {
        self.set_header(header::DEATH, serde_json::to_string(death).unwrap_or_default());
    }
}

/// One attempt to deliver a message that did not succeed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attempt {
    /// From 1, through retries and replays.
    pub number: u32,
    pub at: Timestamp,
    pub failure: Failure,
    /// In words: `POST /events/order-placed answered 500: out of stock` (the body's first 200 characters).
    pub reason: String,
    pub status: Option<u16>,
    pub duration_ms: u64,
    /// The replay that it belonged to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay: Option<String>,
}

/// Why an attempt did not succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Failure {
    /// The subscriber answered 4xx other than 408, 425 and 429: the message is at fault, and trying again will not help.
    Rejected,
    /// It answered 408, 425, 429 or 5xx.
    Refused,
    /// No answer within the subscription's timeout.
    Timeout,
    /// No instance of it could be reached; it has never seen the message.
    Unreachable,
}

/// Why a message is a dead letter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Death {
    pub channel: String,
    pub subscription: String,
    pub reason: DeathReason,
    /// Unique among the deaths of a message, so that a death told twice is known once: the number of its last attempt.
    pub attempts: u32,
    pub at: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum DeathReason {
    /// The subscriber rejected it.
    Poison,
    /// All attempts failed.
    Exhausted,
}

impl DeathReason {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Poison => "poison",
            Self::Exhausted => "exhausted",
        }
    }
}
