//! Channels: how services send each other messages.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units::{Bytes, Percent, Span};

/// How much of a channel is kept when the topology does not say.
pub const MAX_SIZE: Bytes = Bytes(1 << 30);

/// The largest message when the topology does not say.
pub const MAX_MESSAGE: Bytes = Bytes(1 << 20);

/// The pauses before the retries of a delivery when the topology does not say.
pub const BACKOFF: [Span; 4] = [Span::from_millis(200), Span::from_secs(1), Span::from_secs(5), Span::from_secs(30)];

/// What keeps messages.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum BrokerProvider {
    /// meshctl's own broker, a process of this machine.
    Embedded(EmbeddedBroker),
}

impl Default for BrokerProvider {
    fn default() -> Self {
        Self::Embedded(EmbeddedBroker::default())
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct EmbeddedBroker {
    /// How long messages that every subscription has settled are kept, for all channels that do not say otherwise; by default 7d.
    pub retention: Option<Span>,
    /// How much one channel may keep, for all channels that do not say otherwise; by default 1GiB.
    pub max_size: Option<Bytes>,
}

/// What delivers messages.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Couriers {
    /// How many courier processes share the work; by default 1.
    #[schemars(range(min = 1, max = 64))]
    pub instances: Option<u32>,
}

/// Messages of one kind, from those who publish them to every subscription.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Channel {
    /// What is delivered in parallel where order is kept, and how many couriers can share the work; by default 8.
    #[schemars(range(min = 1, max = 256))]
    pub partitions: Option<u32>,
    /// The field of a JSON payload whose value is the message's key: `orderId`, `customer.id`. By default the header `Meshctl-Key`.
    pub key: Option<String>,
    /// `byKey`: messages with one key are delivered one after another; one that fails holds up its own key only. By
    /// default messages are delivered as soon as possible, in any order.
    pub ordered: Option<Ordered>,
    /// How long messages are kept that every subscription has settled; by default the broker's.
    pub retention: Option<Span>,
    /// How much is kept; a channel full of messages that are not settled refuses more. By default the broker's.
    pub max_size: Option<Bytes>,
    /// The largest message; by default 1MiB.
    pub max_message: Option<Bytes>,
    /// A publish with the `Idempotency-Key` of an earlier one within this time is that earlier one; by default 10m.
    pub idempotency_window: Option<Span>,
    /// Who receives the messages, by name.
    pub subscriptions: BTreeMap<String, Subscription>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Ordered {
    ByKey,
}

/// A receiver of a channel's messages: each message is POSTed to it (CloudEvents 1.0, binary mode) until it answers 2xx.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Subscription {
    /// The path to which messages are POSTed.
    pub deliver: String,
    /// The service that receives them; by default the one with the subscription's name.
    #[serde(default)]
    pub service: Option<String>,
    /// Deliveries under way at once, for each courier; by default 64.
    #[serde(default)]
    #[schemars(range(min = 1, max = 10_000))]
    pub concurrency: Option<u32>,
    /// What one attempt may take; by default 10s.
    #[serde(default)]
    pub timeout: Option<Span>,
    #[serde(default)]
    pub retry: DeliveryRetry,
    #[serde(default)]
    pub dead_letter: DeadLetter,
}

/// When a message that could not be delivered is tried again: after no answer, 408, 425, 429 or 5xx. Another 4xx says that the
/// message is at fault, and makes it a dead letter at once.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct DeliveryRetry {
    /// Attempts after the first; by default 5. Then the message is a dead letter.
    #[schemars(range(min = 0, max = 100))]
    pub attempts: Option<u32>,
    /// The pauses before the first retry, the second, …; the last one holds for all that follow. By default 200ms, 1s, 5s, 30s.
    #[schemars(length(min = 1, max = 16))]
    pub backoff: Option<Vec<Span>>,
    /// Each pause is longer or shorter by up to this share; by default 20%.
    pub jitter: Option<Percent>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct DeadLetter {
    /// Tell (as an event) when so many messages died within so long.
    pub alert: Option<DeadLetterAlert>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DeadLetterAlert {
    #[schemars(range(min = 1, max = 1_000_000))]
    pub count: u32,
    pub within: Span,
}

impl Channel {
    /// Every subscription with the service that receives: the one with its name where it does not say.
    pub fn receivers(&self) -> impl Iterator<Item = (&str, &str, &Subscription)> {
        self.subscriptions
            .iter()
            .map(|(name, subscription)| (name.as_str(), subscription.service.as_deref().unwrap_or(name), subscription))
    }
}
