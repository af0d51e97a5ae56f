//! Messages as they are kept, read without consuming them.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use jiff::Timestamp;
use meshctl_api::error::{ApiError, ErrorCode};
use meshctl_api::view::messages::{Message, NewMessage};
use meshctl_drivers::broker::{Broker, BrokerError, ChannelState, From, Position, Publish, Stored};
use meshctl_model::delivery::{Behind, Channel};
use meshctl_model::message::{self, header};
use serde_json::Value;
use uuid::Uuid;

/// A list shows no larger payloads: they are read one by one.
const SHOWN_IN_LISTS: usize = 64 << 10;
/// Read at once while searching and following.
const PAGE: u32 = 500;
/// So many messages of a channel are searched for one id,
const SEARCHED: usize = 100_000;
/// accepted within so long of the time that stands in the id.
const AROUND: Duration = Duration::from_secs(60);
/// Clocks are set back by no more.
const BEFORE: Duration = Duration::from_secs(1);
/// Looked at behind a subscription, to say which messages wait there.
const LOOKED_AT: u32 = 1000;

/// Where messages are that have left the channel itself, by subscription.
#[derive(Clone, Debug, Default)]
pub struct Elsewhere {
    /// By message id.
    pub retrying: BTreeMap<String, BTreeSet<String>>,
    pub dead: BTreeMap<String, BTreeSet<String>>,
    /// More waits there than was looked at: of what was not found nobody knows whether it was processed.
    pub partial: bool,
}

impl Elsewhere {
    /// What waits behind the subscriptions of a channel, as far as it is among the latest [`LOOKED_AT`] messages of each.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub async fn look(broker: &dyn Broker, states: &[ChannelState], channel: &str) -> Result<Self, BrokerError> {
        let mut elsewhere = Self::default();
        for state in states {
            let Some((of, subscription, behind)) = Behind::parse(&state.name) else { continue };
            let waiting = state.groups.iter().any(|group| group.unsettled > 0);
            if of != channel || !waiting || behind == Behind::Replayed {
                continue;
            }
            let places = if behind == Behind::Dead { &mut elsewhere.dead } else { &mut elsewhere.retrying };
            let there = broker.browse(&state.name, From::Last(LOOKED_AT), LOOKED_AT).await?;
            let unsettled: u64 = state.groups.iter().map(|group| group.unsettled).sum();
            let found = there.iter().filter(|stored| !stored.unsettled_by.is_empty()).count();
            elsewhere.partial |= unsettled > found as u64;
            for stored in there.into_iter().filter(|stored| !stored.unsettled_by.is_empty()) {
                places.entry(stored.message.id).or_default().insert(subscription.to_owned());
            }
        }
        Ok(elsewhere)
    }

    /// Adds what the store says of a message: the state of its letter.
    pub fn letter(&mut self, message: &str, subscription: &str, state: &str) {
        let places = match state {
            "replaying" => &mut self.retrying,
            // Nobody has processed what was discarded.
            "dead" | "parked" | "discarded" => &mut self.dead,
            _ => return,
        };
        places.entry(message.to_owned()).or_default().insert(subscription.to_owned());
    }

    fn status(&self, stored: &Stored) -> &'static str {
        let id = stored.message.id.as_str();
        match (stored.unsettled_by.is_empty(), self.retrying.contains_key(id), self.dead.contains_key(id)) {
            (false, ..) => "accepted",
            (true, true, _) => "retrying",
            (true, false, true) => "dead",
            (true, false, false) if self.partial => "settled",
            (true, false, false) => "processed",
        }
    }
}

/// A message of a channel as the API shows it; `whole`: with its payload, however large.
pub fn shown(channel: &str, stored: Stored, elsewhere: &Elsewhere, whole: bool) -> Message {
    let status = elsewhere.status(&stored);
    let Stored { position, message, accepted_at, mut unsettled_by } = stored;
    unsettled_by.extend(elsewhere.retrying.get(&message.id).into_iter().flatten().cloned());
    let with = whole || message.payload.len() <= SHOWN_IN_LISTS;
    let header = |name| message.header(name).map(str::to_owned);
    Message {
        kind: header(header::CE_TYPE).unwrap_or_else(|| channel.to_owned()),
        payload: with.then(|| readable(message.header(header::CONTENT_TYPE), &message.payload)).flatten(),
        payload_base64: whole.then(|| STANDARD.encode(&message.payload)),
        size_bytes: message.payload.len() as u64,
        status: status.into(),
        timestamp: accepted_at,
        service: header(header::PUBLISHER).or_else(|| header(header::CE_SOURCE)).unwrap_or_else(|| "unknown".into()),
        event_id: header(header::CE_ID).unwrap_or_else(|| message.id.clone()),
        channel: channel.into(),
        partition: position.partition,
        offset: position.offset,
        key: message.key,
        headers: message.headers,
        unsettled_by,
        message_id: message.id,
    }
}

/// JSON as it is, other text as a string; `None` for bytes.
fn readable(content_type: Option<&str>, payload: &Bytes) -> Option<Value> {
    let text = content_type.is_some_and(|kind| kind.starts_with("text/"));
    let json = if text { None } else { serde_json::from_slice(payload).ok() };
    json.or_else(|| std::str::from_utf8(payload).ok().map(|text| Value::String(text.to_owned())))
}

/// Finds a message in a channel by its id, which holds the time when it was accepted.
///
/// # Errors
/// When the broker does not answer.
pub async fn find(broker: &dyn Broker, channel: &str, id: &str) -> Result<Option<Stored>, BrokerError> {
    let Some(at) = time_of(id) else { return Ok(None) };
    let until = at.saturating_add(AROUND).unwrap_or(Timestamp::MAX);
    let mut follower = Follower::after(at.saturating_sub(BEFORE).unwrap_or(Timestamp::MIN));
    for _ in 0..SEARCHED / PAGE as usize {
        let page = follower.next(broker, channel).await?;
        let beyond = page.last().is_none_or(|last| last.accepted_at > until);
        if let Some(found) = page.into_iter().find(|stored| stored.message.id == id) {
            return Ok(Some(found));
        }
        if beyond {
            break;
        }
    }
    Ok(None)
}

/// The time in a UUIDv7.
fn time_of(id: &str) -> Option<Timestamp> {
    let (seconds, nanoseconds) = Uuid::parse_str(id).ok()?.get_timestamp()?.to_unix();
    Timestamp::new(i64::try_from(seconds).ok()?, i32::try_from(nanoseconds).ok()?).ok()
}

/// Reads a channel from some time on, each message once, and what comes as it comes.
#[derive(Debug)]
pub struct Follower {
    /// Everything accepted before is read,
    from: Timestamp,
    /// and these, which were accepted then.
    read: HashSet<Position>,
    limit: u32,
}

impl Follower {
    pub fn after(from: Timestamp) -> Self {
        Self { from, read: HashSet::new(), limit: PAGE }
    }

    /// What is there and was not read yet, oldest first; empty when there is nothing new.
    ///
    /// # Errors
    /// When the broker does not answer, or does not know the channel.
    pub async fn next(&mut self, broker: &dyn Broker, channel: &str) -> Result<Vec<Stored>, BrokerError> {
        loop {
            let page = broker.browse(channel, From::Time(self.from), self.limit).await?;
            let full = page.len() >= self.limit as usize;
            let new: Vec<Stored> = page.into_iter().filter(|stored| !self.read.contains(&stored.position)).collect();
            let Some(last) = new.last() else {
                // Many that were accepted at once fill a page with what is known.
                if full && self.limit < PAGE << 10 {
                    self.limit *= 2;
                    continue;
                }
                return Ok(new);
            };
            self.limit = PAGE;
            if last.accepted_at > self.from {
                self.from = last.accepted_at;
                self.read.clear();
            }
            let latest = new.iter().filter(|stored| stored.accepted_at == self.from);
            self.read.extend(latest.map(|stored| stored.position));
            return Ok(new);
        }
    }
}

/// What an operator publishes, as a message of its channel.
///
/// # Errors
/// When it is not what the channel takes.
pub fn compose(name: &str, channel: &Channel, new: NewMessage, by: &str, now: Timestamp) -> Result<Publish, ApiError> {
    let invalid = |why: String| ApiError::new(ErrorCode::Invalid, format!("cannot publish to {name}: {why}"));
    let payload = STANDARD.decode(&new.payload_base64).map_err(|why| invalid(format!("payloadBase64: {why}")))?;
    if payload.len() as u64 > channel.max_message.0 {
        let message =
            format!("{} bytes are more than the channel's maxMessage, {}", payload.len(), channel.max_message);
        return Err(invalid(message));
    }
    let id = Uuid::now_v7().to_string();
    let json: Option<Value> = serde_json::from_slice(&payload).ok();
    let key = new.key.or_else(|| key_of(channel.key.as_deref()?, json.as_ref()?));
    let mut message = message::Message { id: id.clone(), key, headers: Vec::new(), payload: payload.into() };
    for (header, value) in new.headers {
        let header = header.to_ascii_lowercase();
        if header.starts_with("meshctl-") {
            return Err(invalid(format!("the header {header} is not for publishers")));
        }
        message.headers.push((header, value));
    }
    let content_type = new.content_type.or_else(|| message.header(header::CONTENT_TYPE).map(str::to_owned));
    let kind = if json.is_some() { "application/json" } else { "application/octet-stream" };
    let event_id = message.header(header::CE_ID).map_or(id, str::to_owned);
    message.set_header(header::CE_SPECVERSION, "1.0");
    message.set_header(header::CE_ID, event_id);
    message.set_header(header::CE_SOURCE, format!("operator/{by}"));
    message.set_header(header::CE_TYPE, new.kind.unwrap_or_else(|| name.to_owned()));
    message.set_header(header::CE_TIME, now.to_string());
    message.set_header(header::CONTENT_TYPE, content_type.unwrap_or_else(|| kind.to_owned()));
    Ok(Publish { message, idempotency_key: new.idempotency_key })
}

/// The value of a field, `customer.id`, as a key.
fn key_of(path: &str, payload: &Value) -> Option<String> {
    match path.split('.').try_fold(payload, |value, field| value.get(field))? {
        Value::String(text) => Some(text.clone()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
        other => Some(other.to_string()),
    }
}
