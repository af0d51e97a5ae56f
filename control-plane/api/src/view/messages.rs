//! What the API shows of the asynchronous half: channels, the ledger, messages, dead letters, replays.

use jiff::Timestamp;
use meshctl_model::message::{Attempt, DeathReason};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

/// A channel at one instant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Channel {
    pub name: String,
    pub partitions: u32,
    /// `byKey`, or `no`.
    pub ordered: String,
    /// Messages that are not yet settled by every subscription, retries included: the largest among the subscriptions.
    pub depth: u64,
    /// With a courier now, over all subscriptions.
    pub in_flight: u64,
    /// Not yet settled, the sum over the subscriptions.
    pub lag: u64,
    pub dead_letters: u64,
    /// In the last ten seconds.
    pub published_per_s: f64,
    pub delivered_per_s: f64,
    pub accepted: u64,
    pub kept: u64,
    pub kept_bytes: u64,
    pub retention_ms: u64,
    pub max_size_bytes: u64,
    /// The services that publish to it.
    pub publishers: Vec<String>,
    pub subscriptions: Vec<Subscription>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Subscription {
    /// `order.placed/billing`.
    pub name: String,
    pub channel: String,
    pub subscription: String,
    pub service: String,
    /// The path to which messages are POSTed.
    pub deliver: String,
    /// `flowing`; `paused` by an operator; `waiting` for a subscriber that is down.
    pub state: String,
    /// Why it is not flowing.
    pub reason: Option<String>,
    #[schema(value_type = Option<String>, format = DateTime)]
    pub since: Option<Timestamp>,
    /// Messages in the channel that it has not settled.
    pub lag: u64,
    pub in_flight: u64,
    pub retrying: u64,
    pub dead_letters: u64,
    pub delivered_per_s: f64,
    /// How old the oldest message is that it has not settled.
    pub oldest_ms: Option<u64>,
    /// From accepted to processed; `None` without any of late.
    pub latency_p50_ms: Option<f64>,
    pub latency_p99_ms: Option<f64>,
    pub concurrency: u32,
    /// At most, the first included.
    pub attempts: u32,
}

/// Where everything is that a channel accepted for a subscription.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct LedgerEntry {
    /// `order.placed/billing`.
    pub name: String,
    pub channel: String,
    pub subscription: String,
    /// Messages accepted for it, once more for each time that a seek went back over them.
    pub accepted: u64,
    pub processed: u64,
    /// Waiting in the channel, or with a courier for the first time.
    pub in_flight: u64,
    /// Waiting for their next attempt, replays included.
    pub retrying: u64,
    pub dead: u64,
    pub parked: u64,
    /// By an operator, or passed over by a seek.
    pub discarded: u64,
    /// `accepted = processed + inFlight + retrying + dead + parked + discarded`, each counted on its own.
    pub balanced: bool,
    /// Accepted and nowhere (positive), or somewhere and never accepted (negative).
    pub missing: i64,
}

/// A message (the source's Message: message_id, type, payload, status, timestamp; of one Service, about one Event).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Message {
    pub message_id: String,
    #[serde(rename = "type")]
    pub kind: String,
    /// JSON as it is, other text as a string; `None` where it is neither, or was not asked for.
    pub payload: Option<Value>,
    pub payload_base64: Option<String>,
    pub size_bytes: u64,
    /// The least that can be said of all subscriptions: `accepted`, `retrying`, `dead`, `processed`; `settled` where too much waits
    /// for another attempt to tell whether this does.
    pub status: String,
    #[schema(value_type = String, format = DateTime)]
    pub timestamp: Timestamp,
    /// Who published it.
    pub service: String,
    /// The event that it is about: several messages may carry one event.
    pub event_id: String,
    pub channel: String,
    pub partition: u32,
    pub offset: u64,
    pub key: Option<String>,
    pub headers: Vec<(String, String)>,
    /// The subscriptions that have yet to settle it.
    pub unsettled_by: Vec<String>,
}

/// Body of an operator's publish.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PublishRequest {
    pub messages: Vec<NewMessage>,
    pub reason: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct NewMessage {
    /// The channel's name where left out.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    pub key: Option<String>,
    pub content_type: Option<String>,
    pub headers: Vec<(String, String)>,
    pub payload_base64: String,
    pub idempotency_key: Option<String>,
}

/// A publish that is durable.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Published {
    pub message_id: String,
    pub channel: String,
    pub partition: u32,
    pub offset: u64,
    /// It had been published before, under the same idempotency key.
    pub duplicate: bool,
}

/// What of a channel's messages is asked for, as query parameters.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::IntoParams)]
#[serde(rename_all = "camelCase", default)]
pub struct MessageQuery {
    /// Only of this channel; all where left out.
    pub channel: Option<String>,
    /// The last so many; 100 where left out.
    pub last: Option<u32>,
    /// RFC 3339.
    pub since: Option<String>,
    /// What comes, too: one JSON object on a line.
    pub follow: bool,
}

/// Body of pause and resume.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PauseRequest {
    /// One subscription; all of the channel where left out.
    pub subscription: Option<String>,
    pub reason: Option<String>,
}

/// A message that one subscription could not be given.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeadLetter {
    pub id: String,
    pub message_id: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub channel: String,
    pub subscription: String,
    /// `poison` or `exhausted`.
    #[schema(value_type = String)]
    pub reason: DeathReason,
    /// What the last attempt came to, in a word: `rejected`, `refused`, `timeout`, `unreachable`.
    pub class: String,
    /// The last failure in words.
    pub error: String,
    /// The same for failures that look alike: reason, class, status and error without its numbers and ids.
    pub fingerprint: String,
    pub attempts: u32,
    #[schema(value_type = String, format = DateTime)]
    pub first_failed_at: Timestamp,
    #[schema(value_type = String, format = DateTime)]
    pub last_failed_at: Timestamp,
    pub trace_id: Option<String>,
    /// `dead`, `parked`, `replaying`, `processed` (by a replay), `discarded`.
    pub state: String,
    /// The last replay that it was in.
    pub replay_id: Option<String>,
    pub key: Option<String>,
    pub size_bytes: u64,
    /// The rest is there when one dead letter is shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<Object>>)]
    pub history: Option<Vec<Attempt>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub headers: Option<Vec<(String, String)>>,
    /// JSON as it is, other text as a string.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload_base64: Option<String>,
}

/// Which dead letters, as query parameters and in bodies. All that are given must hold.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema, utoipa::IntoParams)]
#[serde(rename_all = "camelCase", default)]
pub struct DeadLetterQuery {
    /// Ids, separated by commas.
    pub ids: Option<String>,
    /// A filter: `reason = poison and age > 1h`.
    pub r#where: Option<String>,
    /// Only lists: at most so many, the latest failure first; 500 where left out, 0 for all.
    pub limit: Option<u32>,
    /// Only lists: counted by `reason`, `channel`, `subscription`, `fingerprint`, `class` or `state`.
    pub group_by: Option<String>,
}

/// Dead letters that have something in common.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeadLetterGroup {
    /// What they have in common.
    pub name: String,
    pub count: u64,
    /// One of them, as an example.
    pub example_id: String,
    pub example_error: String,
    #[schema(value_type = String, format = DateTime)]
    pub first_failed_at: Timestamp,
    #[schema(value_type = String, format = DateTime)]
    pub last_failed_at: Timestamp,
}

/// Body of replay, discard, park and restore.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct DeadLetterRequest {
    pub select: DeadLetterQuery,
    /// The fingerprint of the set that was agreed to; refused as a conflict if it would be another now.
    pub fingerprint: Option<String>,
    pub reason: Option<String>,
    /// Only replays: messages per second.
    pub rate_per_s: Option<f64>,
    pub dry_run: bool,
}

/// The outcome of discard, park and restore.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeadLetterOutcome {
    /// `discard`, `park`, `restore`, `import`.
    pub action: String,
    /// Of the set.
    pub fingerprint: String,
    pub selected: u64,
    /// How many of them were changed; fewer than selected where others were first. In a dry run of an import, would be.
    pub changed: u64,
    pub dry_run: bool,
}

/// How exported dead letters are taken in: query parameters, the lines are the body.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::IntoParams)]
#[serde(rename_all = "camelCase", default)]
pub struct ImportQuery {
    pub reason: Option<String>,
    pub dry_run: bool,
}

/// Dead letters on their way back to their own subscription.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Replay {
    /// Empty for a dry run.
    pub replay_id: String,
    /// Of the frozen set.
    pub fingerprint: String,
    pub selected: u64,
    /// Durably on their way.
    pub issued: u64,
    /// By the subscriber.
    pub processed: u64,
    /// Dead letters again.
    pub failed_again: u64,
    /// Dead letters still, or for ever: by a cancel, because the broker refused them, or because they cannot come back.
    #[serde(default)]
    pub withdrawn: u64,
    /// None of these yet.
    pub pending: u64,
    /// `running`, `paused`, `cancelled` (what was not issued stays dead), `done`; `dryRun`.
    pub state: String,
    /// By subscription, what is selected.
    pub subscriptions: std::collections::BTreeMap<String, u64>,
    pub rate_per_s: Option<f64>,
    pub by: String,
    pub reason: Option<String>,
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    #[schema(value_type = Option<String>, format = DateTime)]
    pub ended_at: Option<Timestamp>,
}

/// Who did what, why, and what came of it. Each entry holds the digest of the one before it: a change of any but the newest shows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuditEntry {
    pub id: String,
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    pub by: String,
    /// `deadletter.replay`, `channel.pause`.
    pub action: String,
    pub subject: String,
    pub reason: Option<String>,
    /// `done`, or why it was refused.
    pub outcome: String,
    #[schema(value_type = Object)]
    pub data: Value,
    pub digest: String,
}
