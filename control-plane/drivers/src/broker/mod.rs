//! Brokers keep messages until every group of consumers has settled them. A driver knows nothing of retries and dead letters:
//! those are channels too, and moving a message there is one [`Outcome`] of a delivery.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use meshctl_model::message::Message;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::Pending;

pub mod conformance;
pub mod embedded;

/// The contract of every broker driver; one value stands for one broker, and reconnects by itself.
pub trait Broker: Send + Sync {
    /// Makes the channel be as described, and its groups exactly these; a new group begins at the channel's first kept
    /// message. Durable when it returns. What is as described already stays untouched.
    ///
    /// # Errors
    /// [`BrokerError::Refused`] when it would lose messages: fewer partitions, or a group removed that has messages to settle.
    fn ensure<'a>(&'a self, channel: &'a ChannelSpec) -> Pending<'a, Result<(), BrokerError>>;

    /// Removes a channel, and with `discard` whatever is still to be settled in it; one that does not exist is removed already.
    ///
    /// # Errors
    /// [`BrokerError::Refused`] when a group has messages to settle that nobody told it to discard.
    fn remove<'a>(&'a self, channel: &'a str, discard: bool) -> Pending<'a, Result<(), BrokerError>>;

    /// Publishes all or none, and returns once they are durable, in their order.
    ///
    /// # Errors
    /// None of them is kept then, except after [`BrokerError::Unknown`].
    fn publish<'a>(
        &'a self,
        channel: &'a str,
        messages: Vec<Publish>,
    ) -> Pending<'a, Result<Vec<Confirmed>, BrokerError>>;

    /// Joins a group. Each partition of the channel has one consumer of the group at a time; a partition moves only when its
    /// former consumer has settled what it holds, or is gone. No more than `prefetch` deliveries are unsettled at once.
    /// The consumer ends when it is dropped, and when the connection is lost: then its receiver closes, and it is joined
    /// anew. Whatever it has not settled is delivered again, in order.
    ///
    /// # Errors
    /// When the broker does not answer, or knows neither channel nor group.
    fn consume<'a>(
        &'a self,
        channel: &'a str,
        group: &'a str,
        prefetch: u32,
    ) -> Pending<'a, Result<Consumer, BrokerError>>;

    /// Where the group goes on, in all partitions or one. Later messages are delivered again, earlier ones are skipped.
    ///
    /// # Errors
    /// When the broker does not answer, or knows neither channel nor group.
    fn seek<'a>(&'a self, channel: &'a str, group: &'a str, to: Seek) -> Pending<'a, Result<(), BrokerError>>;

    /// Stops (with the reason) or resumes delivery to a group; durable.
    ///
    /// # Errors
    /// When the broker does not answer, or knows neither channel nor group.
    fn pause<'a>(
        &'a self,
        channel: &'a str,
        group: &'a str,
        reason: Option<String>,
    ) -> Pending<'a, Result<(), BrokerError>>;

    /// Every channel, all at one instant.
    ///
    /// # Errors
    /// When the broker does not answer.
    fn state(&self) -> Pending<'_, Result<Vec<ChannelState>, BrokerError>>;

    /// Kept messages of a channel, settled or not, without consuming them: at most `limit` from `from` on, in the order in which they were
    /// accepted (as far as partitions allow).
    ///
    /// # Errors
    /// When the broker does not answer, or does not know the channel.
    fn browse<'a>(&'a self, channel: &'a str, from: From, limit: u32) -> Pending<'a, Result<Vec<Stored>, BrokerError>>;
}

/// A broker that can be shared.
pub type SharedBroker = Arc<dyn Broker>;

/// What a channel is to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelSpec {
    pub name: String,
    pub partitions: u32,
    /// How long a message is kept that every group has settled.
    pub retention: Duration,
    /// Of keys and payloads. Full of messages that are not settled, the channel refuses more.
    pub max_size_bytes: u64,
    /// How long an idempotency key is remembered.
    pub idempotency_window: Duration,
    pub groups: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publish {
    pub message: Message,
    /// A second publish with the same key within the channel's window changes nothing and is confirmed as the first.
    pub idempotency_key: Option<String>,
}

/// A durable message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confirmed {
    /// Of the message that is kept: of the earlier one where this was a duplicate.
    pub message_id: String,
    pub position: Position,
    pub duplicate: bool,
}

/// Where a message is in its channel. Offsets rise by one in each partition and are never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Position {
    pub partition: u32,
    pub offset: u64,
}

/// A member of a group.
pub struct Consumer {
    /// What is to be settled. Closes when the connection to the broker is lost.
    pub deliveries: mpsc::Receiver<Delivery>,
    pub settler: Arc<dyn Settler>,
}

/// A message on its way to a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    pub position: Position,
    pub message: Message,
    /// When the broker accepted it into this channel.
    pub accepted_at: Timestamp,
    /// Whether it may have been delivered before.
    pub redelivered: bool,
}

/// Says what became of deliveries. Independent of the order in which they came.
pub trait Settler: Send + Sync {
    /// Settles all or none; durable when it returns. A message that moves onward is kept in its new place before it counts as settled
    /// here; the embedded broker does both in one transaction.
    ///
    /// # Errors
    /// [`BrokerError::Lost`] when the deliveries are somebody else's by now. Whatever was not settled will be delivered again.
    fn settle(&self, settlements: Vec<Settlement>) -> Pending<'_, Result<(), BrokerError>>;
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settlement {
    pub position: Position,
    pub outcome: Outcome,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The subscriber has it.
    Processed,
    /// It goes on in another channel, in this form.
    Moved { channel: String, message: Message },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Seek {
    /// The first kept message.
    Earliest,
    /// Behind the last.
    Latest,
    At(Position),
    /// The first message accepted at or after this time, in every partition.
    Time(Timestamp),
}

/// Where browsing begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum From {
    Earliest,
    /// The last so many.
    Last(u32),
    At(Position),
    Time(Timestamp),
}

/// A message as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    pub position: Position,
    pub message: Message,
    pub accepted_at: Timestamp,
    /// The groups that have yet to settle it.
    pub unsettled_by: Vec<String>,
}

/// A channel at one instant. Counts are of messages, for as long as the channel exists.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ChannelState {
    pub name: String,
    pub partitions: u32,
    /// Accepted ever.
    pub accepted: u64,
    /// Kept now, settled or not: counted, not calculated.
    pub kept: u64,
    pub kept_bytes: u64,
    pub oldest_at: Option<Timestamp>,
    /// In the last ten seconds.
    pub published_per_s: f64,
    pub groups: Vec<GroupState>,
}

/// A group at the same instant. `accepted + rewound = processed + moved + skipped + unsettled` unless something was lost.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GroupState {
    pub name: String,
    /// Accepted into the channel since the group exists, with what was there when it began.
    pub accepted: u64,
    pub processed: u64,
    pub moved: u64,
    /// Passed over by a seek.
    pub skipped: u64,
    /// Settled once and made unsettled again by a seek.
    pub rewound: u64,
    /// Not settled: the messages that are really there, counted.
    pub unsettled: u64,
    /// Of those, with a consumer now.
    pub in_flight: u64,
    pub oldest_unsettled_at: Option<Timestamp>,
    /// In the last ten seconds.
    pub settled_per_s: f64,
    pub consumers: u32,
    /// Why delivery is paused.
    pub paused: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum BrokerError {
    /// Nothing happened; trying again later may help.
    #[error("the broker does not answer: {0}")]
    Unreachable(String),
    /// The connection broke before the answer: it may have happened or not.
    #[error("the broker went away before it answered: {0}")]
    Unknown(String),
    #[error("the broker has no {0}")]
    NotFound(String),
    /// The channel is full, or the disk is: publishers wait and try again.
    #[error("the broker cannot take more: {0}")]
    Full(String),
    /// It will not do that, whenever it is asked.
    #[error("the broker refuses: {0}")]
    Refused(String),
    /// These deliveries belong to somebody else now.
    #[error("the deliveries are no longer this consumer's: {0}")]
    Lost(String),
    #[error("the broker is damaged: {0}")]
    Damaged(String),
}
