//! Channels and subscriptions with every default filled in: what brokers are told, and what couriers deliver by.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::snapshot::Tracing;
use crate::units::{Bytes, Percent, Span};

/// The service that couriers are, for edges (`orders:courier`, `courier:billing`), `scale` and `logs`.
pub const COURIER: &str = "courier";
/// The service that the embedded broker is.
pub const BROKER: &str = "broker";
/// The group in which the daemon consumes.
pub const DAEMON: &str = "daemon";
/// The file in which a courier finds its [`CourierConfig`], in the folder named by the environment variable [`FILES`].
pub const COURIER_CONFIG: &str = "courier.json";
/// The environment variable that names the folder of an instance's files.
pub const FILES: &str = "MESHCTL_FILES";

/// Everything a courier needs to know.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CourierConfig {
    /// The system's name.
    pub topology: String,
    pub channels: BTreeMap<String, Channel>,
    /// Not written where it is as usual, so that what a courier is given stays what it was.
    #[serde(default, skip_serializing_if = "Tracing::is_usual")]
    pub tracing: Tracing,
}

/// A channel of the topology.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Channel {
    pub partitions: u32,
    /// The field of a JSON payload that is the key: `orderId`, `customer.id`.
    pub key: Option<String>,
    /// Whether messages with one key are delivered one after another, in order.
    pub ordered: bool,
    /// How long settled messages are kept,
    pub retention: Span,
    /// and how much of the channel in all. Messages that some subscription has not settled are never removed: a channel
    /// that is full of them refuses to be published to.
    pub max_size: Bytes,
    pub max_message: Bytes,
    /// A publish with the idempotency key of an earlier one within this time is that earlier one.
    pub idempotency_window: Span,
    pub subscriptions: BTreeMap<String, Subscription>,
}

/// Who receives a channel's messages, and how hard it is tried.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Subscription {
    /// The service that receives them.
    pub service: String,
    /// Where messages are POSTed: an address on the gateway that leads to the service, and the path.
    pub url: String,
    /// Deliveries under way at once, for each courier.
    pub concurrency: u32,
    /// What one attempt may take.
    pub timeout: Span,
    pub retry: Retry,
    /// Tell when so many messages died within so long.
    pub alert: Option<Alert>,
}

/// When a message that could not be delivered is tried again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Retry {
    /// After the first.
    pub attempts: u32,
    /// Before the first retry, the second, …; the last one holds for all that follow. Never empty.
    pub backoff: Vec<Span>,
    /// Each pause is longer or shorter by up to this share.
    pub jitter: Percent,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Alert {
    pub count: u32,
    pub within: Span,
}

/// The channels that stand behind a subscription: `order.placed/billing/retry-2`. No channel of a topology has a slash in its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Behind {
    /// Waiting for the retry after this pause, from 1: one channel for each, so that whoever is first in it is due first.
    Retry(u32),
    /// Dead letters on their way to the daemon.
    Dead,
    /// Dead letters on their way back to the subscriber.
    Replay,
    /// Receipts for replayed messages that the subscriber has processed, on their way to the daemon: the message without its payload.
    Replayed,
}

impl Behind {
    /// The channel's name.
    pub fn channel(self, channel: &str, subscription: &str) -> String {
        match self {
            Self::Retry(tier) => format!("{channel}/{subscription}/retry-{tier}"),
            Self::Dead => format!("{channel}/{subscription}/dead"),
            Self::Replay => format!("{channel}/{subscription}/replay"),
            Self::Replayed => format!("{channel}/{subscription}/replayed"),
        }
    }

    /// `(channel, subscription, which)` of such a name; `None` for a channel of the topology.
    pub fn parse(name: &str) -> Option<(&str, &str, Self)> {
        let mut parts = name.splitn(3, '/');
        let (channel, subscription, rest) = (parts.next()?, parts.next()?, parts.next()?);
        let behind = match rest {
            "dead" => Self::Dead,
            "replay" => Self::Replay,
            "replayed" => Self::Replayed,
            tier => Self::Retry(tier.strip_prefix("retry-")?.parse().ok()?),
        };
        Some((channel, subscription, behind))
    }

    /// All of a subscription, in the order in which a message may come through them.
    pub fn of(retry: &Retry) -> impl Iterator<Item = Self> + use<> {
        let tiers = retry.backoff.len().min(retry.attempts as usize);
        (1..=tiers).map(|tier| Self::Retry(u32::try_from(tier).unwrap_or(u32::MAX))).chain([
            Self::Dead,
            Self::Replay,
            Self::Replayed,
        ])
    }

    /// The one group of such a channel: who consumes it.
    pub const fn group(self) -> &'static str {
        match self {
            Self::Retry(_) | Self::Replay => COURIER,
            Self::Dead | Self::Replayed => DAEMON,
        }
    }
}

/// What a courier says of itself, at `GET /status` on its port.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CourierStatus {
    /// Whether the broker answers it.
    pub connected: bool,
    pub subscriptions: Vec<SubscriptionStatus>,
}

/// A subscription as one courier sees it. Counts are since the courier started.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SubscriptionStatus {
    pub channel: String,
    pub subscription: String,
    /// Why it delivers nothing but probes: the subscriber as a whole is down. `None` while it flows.
    pub paused: Option<String>,
    /// Since it flows, or is paused.
    pub since: jiff::Timestamp,
    pub in_flight: u64,
    pub processed: u64,
    pub retried: u64,
    pub dead: u64,
    /// From accepted to processed, of the last minute; `None` without any.
    pub latency_p50_ms: Option<f64>,
    pub latency_p99_ms: Option<f64>,
}
