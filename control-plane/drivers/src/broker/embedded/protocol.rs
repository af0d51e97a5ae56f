//! What broker and clients say to each other; PROTOCOL.md is the same for people. Frequent requests are binary, rare ones JSON.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::codec::{Malformed, Raw, Reader, put_bytes, put_message, put_option, put_parts};
use crate::broker::{
    BrokerError, ChannelSpec, Confirmed, Delivery, From, Outcome, Position, Publish, Seek, Settlement, Stored,
};

pub const VERSION: u32 = 1;

/// The kinds of frames.
pub mod kind {
    // From clients.
    pub const HELLO: u8 = 1;
    pub const PING: u8 = 2;
    pub const PUBLISH: u8 = 3;
    pub const SETTLE: u8 = 4;
    pub const CONSUME: u8 = 5;
    pub const LEAVE: u8 = 6;
    pub const ASK: u8 = 7;
    pub const BROWSE: u8 = 8;
    // From the broker.
    pub const DONE: u8 = 64;
    pub const FAILED: u8 = 65;
    pub const PONG: u8 = 66;
    pub const DELIVER: u8 = 67;
    pub const ENDED: u8 = 68;
}

/// The first frame of a connection.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hello {
    pub version: u32,
    /// After so long a silence the client is taken for dead.
    pub session_ms: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Consume {
    pub channel: String,
    pub group: String,
    pub prefetch: u32,
}

/// The rare requests.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Ask {
    Ensure(ChannelSpec),
    Remove {
        channel: String,
        #[serde(default)]
        discard: bool,
    },
    Seek {
        channel: String,
        group: String,
        to: Seek,
    },
    Pause {
        channel: String,
        group: String,
        reason: Option<String>,
    },
    State,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Browse {
    pub channel: String,
    pub from: From,
    pub limit: u32,
}

pub fn json<T: Serialize>(value: &T) -> Bytes {
    serde_json::to_vec(value).unwrap_or_default().into()
}

/// What a broken or hostile peer sent is a refusal.
pub fn malformed(what: &str, why: impl std::fmt::Display) -> BrokerError {
    BrokerError::Refused(format!("{what} cannot be understood: {why}"))
}

/// A message to be accepted.
#[derive(Clone, Debug)]
pub struct Incoming {
    pub idempotency_key: Option<Bytes>,
    pub message: Raw,
}

pub fn put_publish(out: &mut BytesMut, channel: &str, messages: &[Publish]) {
    put_bytes(out, channel.as_bytes());
    out.put_u32(u32::try_from(messages.len()).unwrap_or(u32::MAX));
    for publish in messages {
        put_option(out, publish.idempotency_key.as_deref().map(str::as_bytes));
        put_message(out, &publish.message);
    }
}

pub fn publish(body: Bytes) -> Result<(String, Vec<Incoming>), Malformed> {
    let mut body = Reader(body);
    let channel = body.string()?;
    let count = body.count(14)?;
    let messages = (0..count)
        .map(|_| Ok(Incoming { idempotency_key: body.option(Reader::text)?, message: body.raw()? }))
        .collect::<Result<_, _>>()?;
    Ok((channel, messages))
}

pub fn put_confirmed(out: &mut BytesMut, id: &[u8], position: Position, duplicate: bool) {
    put_position(out, position);
    out.put_u8(u8::from(duplicate));
    put_bytes(out, id);
}

pub fn confirmed(body: Bytes) -> Result<Vec<Confirmed>, Malformed> {
    let mut body = Reader(body);
    let mut all = Vec::new();
    while body.0.has_remaining() {
        let (position, duplicate) = (position(&mut body)?, body.u8()? == 1);
        all.push(Confirmed { message_id: body.string()?, position, duplicate });
    }
    Ok(all)
}

/// What became of a delivery.
#[derive(Clone, Debug)]
pub enum Fate {
    Processed,
    Moved { channel: String, message: Raw },
}

pub fn put_settle(out: &mut BytesMut, consumer: u64, settlements: &[Settlement]) {
    out.put_u64(consumer);
    out.put_u32(u32::try_from(settlements.len()).unwrap_or(u32::MAX));
    for settlement in settlements {
        put_position(out, settlement.position);
        match &settlement.outcome {
            Outcome::Processed => out.put_u8(0),
            Outcome::Moved { channel, message } => {
                out.put_u8(1);
                put_bytes(out, channel.as_bytes());
                put_message(out, message);
            }
        }
    }
}

pub fn settle(body: Bytes) -> Result<(u64, Vec<(Position, Fate)>), Malformed> {
    let mut body = Reader(body);
    let consumer = body.u64()?;
    let count = body.count(13)?;
    let settlements = (0..count)
        .map(|_| {
            let position = position(&mut body)?;
            let fate = match body.u8()? {
                0 => Fate::Processed,
                1 => Fate::Moved { channel: body.string()?, message: body.raw()? },
                other => return Err(Malformed::Value(u64::from(other))),
            };
            Ok((position, fate))
        })
        .collect::<Result<_, _>>()?;
    Ok((consumer, settlements))
}

fn put_position(out: &mut BytesMut, position: Position) {
    out.put_u32(position.partition);
    out.put_u64(position.offset);
}

fn position(body: &mut Reader) -> Result<Position, Malformed> {
    Ok(Position { partition: body.u32()?, offset: body.u64()? })
}

/// A message as the store has it, on its way out.
pub struct Outgoing<'a> {
    pub position: Position,
    pub at: i64,
    pub id: &'a [u8],
    pub key: Option<&'a [u8]>,
    pub headers: &'a [u8],
    pub payload: &'a [u8],
}

impl Outgoing<'_> {
    fn put(&self, out: &mut BytesMut) {
        put_position(out, self.position);
        out.put_i64(self.at);
        put_parts(out, self.id, self.key, self.headers, self.payload);
    }
}

pub fn put_delivery(out: &mut BytesMut, message: &Outgoing<'_>, redelivered: bool) {
    out.put_u8(u8::from(redelivered));
    message.put(out);
}

pub fn deliveries(body: Bytes) -> Result<Vec<Delivery>, Malformed> {
    let mut body = Reader(body);
    let mut all = Vec::new();
    while body.0.has_remaining() {
        let redelivered = body.u8()? == 1;
        let (position, accepted_at) = (position(&mut body)?, timestamp(body.i64()?)?);
        all.push(Delivery { position, message: body.message()?, accepted_at, redelivered });
    }
    Ok(all)
}

pub fn put_stored(out: &mut BytesMut, message: &Outgoing<'_>, unsettled_by: &[&str]) {
    message.put(out);
    out.put_u32(u32::try_from(unsettled_by.len()).unwrap_or(u32::MAX));
    for group in unsettled_by {
        put_bytes(out, group.as_bytes());
    }
}

pub fn stored(body: Bytes) -> Result<Vec<Stored>, Malformed> {
    let mut body = Reader(body);
    let mut all = Vec::new();
    while body.0.has_remaining() {
        let (position, accepted_at) = (position(&mut body)?, timestamp(body.i64()?)?);
        let message = body.message()?;
        let count = body.count(4)?;
        let unsettled_by = (0..count).map(|_| body.string()).collect::<Result<_, _>>()?;
        all.push(Stored { position, message, accepted_at, unsettled_by });
    }
    Ok(all)
}

/// Microseconds since 1970.
pub fn timestamp(micros: i64) -> Result<Timestamp, Malformed> {
    Timestamp::from_microsecond(micros).map_err(|_| Malformed::Value(micros.cast_unsigned()))
}
