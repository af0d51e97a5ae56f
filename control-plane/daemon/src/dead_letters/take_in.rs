//! Deaths and receipts, from the broker's channels into the store: each counted once, however often it is delivered.
//!
//! A delivery that was written down is known again by its position; since a channel that was made anew begins its positions
//! anew, a position alone is not believed, the letter must be there too. A message has one row for each subscription: a second
//! copy of it, after a seek, joins the first, and is counted as discarded.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use jiff::Timestamp;
use meshctl_api::error::{ApiError, ErrorCode};
use meshctl_api::view::messages::DeadLetter;
use meshctl_drivers::broker::Position;
use meshctl_model::delivery::Behind;
use meshctl_model::message::{Attempt, DeathReason, Failure, Message, header};
use rusqlite::{Connection, OptionalExtension, Transaction, params};

use super::fingerprint::{digest, fingerprint};
use super::replay::Told;
use super::replays::{finish, tell};
use super::store::{Done, nanos, timestamp};

/// A subscription.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub channel: String,
    pub subscription: String,
}

/// A delivery without what settles it.
#[derive(Clone, Debug)]
pub struct Arrived {
    pub position: Position,
    pub message: Message,
    pub accepted_at: Timestamp,
}

/// What is written of a letter, beside its place, its state and its replays.
pub struct Letter {
    message_id: String,
    kind: String,
    reason: DeathReason,
    attempts: u32,
    first_failed_at: Timestamp,
    last_failed_at: Timestamp,
    trace_id: Option<String>,
    key: Option<String>,
    headers: Vec<(String, String)>,
    payload: bytes::Bytes,
    history: Vec<Attempt>,
}

/// The public id of a letter: the same for the same message and subscription, in every store.
pub fn id(place: &Place, message_id: &str) -> String {
    digest([place.channel.as_str(), &place.subscription, message_id])
}

/// What was news.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    pub count: u32,
    /// Replays that are done with it.
    pub finished: Vec<String>,
}

/// Takes in what came through the dead channel of a subscription. Twice does no harm.
pub fn deaths(to: &Transaction, place: &Place, arrived: &[Arrived]) -> Done<Taken> {
    let from = Behind::Dead.channel(&place.channel, &place.subscription);
    let (mut taken, mut merged) = (Taken::default(), 0);
    for one in arrived {
        let letter = Letter::dead(place, one);
        let before = known(to, place, &letter.message_id)?;
        let passed = passed(to, &from, one.position)?;
        if passed && before.as_ref().is_some_and(|before| before.attempts >= letter.attempts) {
            continue;
        }
        taken.count += 1;
        advance(to, &from, one.position)?;
        let Some(before) = before else {
            insert(to, place, &letter)?;
            continue;
        };
        let replay = one.message.header(header::REPLAY);
        let again = replay.map(|replay| tell(to, replay, before.number, Told::Death)).transpose()?.flatten();
        let its_own = before.state == "replaying" && before.replay_id.as_deref() == replay;
        let (state, released) = match again {
            Some(_) if its_own => ("dead", replay),
            // It was given up, and came through late: the letter has gone its own way since.
            Some(_) => (before.state.as_str(), replay),
            None => {
                // A processed copy is counted where the subscriber answered.
                merged += u32::from(before.state != "processed");
                let stays = matches!(before.state.as_str(), "parked" | "replaying");
                (if stays { before.state.as_str() } else { "dead" }, None)
            }
        };
        update(to, &before, &letter, state, released)?;
        if let Some(replay) = replay.filter(|_| again.is_some())
            && finish(to, replay, one.accepted_at)?
        {
            taken.finished.push(replay.to_owned());
        }
    }
    count(to, place, "taken_in", taken.count)?;
    count(to, place, "merged", merged)?;
    Ok(taken)
}

/// Takes in what came through the receipts of a subscription. Twice does no harm.
pub fn receipts(to: &Transaction, place: &Place, arrived: &[Arrived]) -> Done<Taken> {
    let mut taken = Taken::default();
    for one in arrived {
        let (Some(replay), Some(letter)) = (one.message.header(header::REPLAY), known(to, place, &one.message.id)?)
        else {
            tracing::warn!(message = one.message.id, "a receipt for a replay that nobody remembers");
            continue;
        };
        if tell(to, replay, letter.number, Told::Receipt)?.is_none() {
            continue;
        }
        taken.count += 1;
        let changed = to
            .prepare_cached(
                "UPDATE letters SET state = 'processed', held_by = NULL WHERE number = ?1
                 AND CASE state WHEN 'replaying' THEN replay_id = ?2 WHEN 'processed' THEN FALSE ELSE coalesce(held_by = ?2, TRUE) END",
            )?
            .execute(params![letter.number, replay])?;
        if changed == 0 {
            // It was given up, came through late, and another replay has taken the letter since: there are two of it.
            count(to, place, "imported", 1)?;
        }
        if finish(to, replay, one.accepted_at)? {
            taken.finished.push(replay.to_owned());
        }
    }
    Ok(taken)
}

/// Adds letters from elsewhere, all dead, and says how many were not there yet. Those that are there are left alone.
pub fn import(to: &Transaction, letters: &[(Place, Letter)]) -> Done<u64> {
    let mut added = 0;
    for (place, letter) in letters {
        if known(to, place, &letter.message_id)?.is_none() {
            insert(to, place, letter)?;
            count(to, place, "imported", 1)?;
            added += 1;
        }
    }
    Ok(added)
}

/// How many of these letters from elsewhere are not there yet.
pub fn unknown(from: &Connection, letters: &[(Place, Letter)]) -> Done<u64> {
    let mut unknown = 0;
    for (place, letter) in letters {
        unknown += u64::from(known(from, place, &letter.message_id)?.is_none());
    }
    Ok(unknown)
}

/// Adds to what is counted of a subscription.
pub fn count(to: &Transaction, place: &Place, what: &'static str, more: u32) -> Done<()> {
    if more > 0 {
        to.prepare_cached(&format!(
            "INSERT INTO counts (channel, subscription, {what}) VALUES (?1, ?2, ?3)
             ON CONFLICT DO UPDATE SET {what} = {what} + ?3"
        ))?
        .execute(params![place.channel, place.subscription, more])?;
    }
    Ok(())
}

/// Begins to count at these, where nothing was counted yet.
pub fn seed(to: &Transaction, place: &Place, taken_in: u64, issued: u64) -> Done<()> {
    to.execute(
        "INSERT OR IGNORE INTO counts (channel, subscription, taken_in, issued) VALUES (?1, ?2, ?3, ?4)",
        params![place.channel, place.subscription, taken_in, issued],
    )?;
    Ok(())
}

/// What is there of a letter already.
struct Known {
    number: i64,
    state: String,
    attempts: u32,
    first_failed_at: Timestamp,
    last_failed_at: Timestamp,
    replay_id: Option<String>,
}

fn known(from: &Connection, place: &Place, message_id: &str) -> Done<Option<Known>> {
    let found = from
        .prepare_cached(
            "SELECT number, state, attempts, first_failed_at, last_failed_at, replay_id FROM letters
             WHERE channel = ?1 AND subscription = ?2 AND message_id = ?3",
        )?
        .query_row(params![place.channel, place.subscription, message_id], |row| {
            Ok(Known {
                number: row.get(0)?,
                state: row.get(1)?,
                attempts: row.get(2)?,
                first_failed_at: timestamp(row.get(3)?),
                last_failed_at: timestamp(row.get(4)?),
                replay_id: row.get(5)?,
            })
        })
        .optional()?;
    Ok(found)
}

/// Whether a delivery of this position, or of a later one, was written down.
fn passed(from: &Connection, channel: &str, at: Position) -> Done<bool> {
    let written: Option<u64> = from
        .prepare_cached("SELECT offset FROM positions WHERE channel = ?1 AND partition = ?2")?
        .query_row(params![channel, at.partition], |row| row.get(0))
        .optional()?;
    Ok(written.is_some_and(|offset| at.offset <= offset))
}

fn advance(to: &Transaction, channel: &str, at: Position) -> Done<()> {
    to.prepare_cached(
        "INSERT INTO positions (channel, partition, offset) VALUES (?1, ?2, ?3)
         ON CONFLICT DO UPDATE SET offset = excluded.offset",
    )?
    .execute(params![channel, at.partition, at.offset])?;
    Ok(())
}

fn insert(to: &Transaction, place: &Place, letter: &Letter) -> Done<()> {
    let (class, status, error) = letter.failure();
    let fingerprint = fingerprint(letter.reason.as_str(), class, status, error);
    to.prepare_cached(
        "INSERT INTO letters (id, channel, subscription, message_id, type, reason, class, error, fingerprint, attempts,
             first_failed_at, last_failed_at, trace_id, state, message_key, size_bytes)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, 'dead', ?14, ?15)",
    )?
    .execute(params![
        id(place, &letter.message_id),
        place.channel,
        place.subscription,
        letter.message_id,
        letter.kind,
        letter.reason.as_str(),
        class,
        error,
        fingerprint,
        letter.attempts,
        nanos(letter.first_failed_at),
        nanos(letter.last_failed_at),
        letter.trace_id,
        letter.key,
        letter.payload.len() as u64,
    ])?;
    fill(to, to.last_insert_rowid(), letter)
}

/// What is in it: for a new letter, or for one whose contents were forgotten.
fn fill(to: &Transaction, number: i64, letter: &Letter) -> Done<()> {
    to.prepare_cached("INSERT INTO contents (number, headers, payload, history) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![number, json(&letter.headers), letter.payload.as_ref(), json(&letter.history)])?;
    Ok(())
}

/// The latest failure is what is shown; the history of both is kept. `released`: the replay that holds it no more.
fn update(to: &Transaction, before: &Known, letter: &Letter, state: &str, released: Option<&str>) -> Done<()> {
    let (class, status, error) = letter.failure();
    if letter.last_failed_at >= before.last_failed_at {
        let fingerprint = fingerprint(letter.reason.as_str(), class, status, error);
        to.prepare_cached(
            "UPDATE letters SET reason = ?2, class = ?3, error = ?4, fingerprint = ?5, last_failed_at = ?6 WHERE number = ?1",
        )?
        .execute(params![
            before.number,
            letter.reason.as_str(),
            class,
            error,
            fingerprint,
            nanos(letter.last_failed_at)
        ])?;
    }
    to.prepare_cached(
        "UPDATE letters SET state = ?2, attempts = ?3, first_failed_at = ?4,
             held_by = CASE WHEN held_by = ?5 THEN NULL ELSE held_by END WHERE number = ?1",
    )?
    .execute(params![
        before.number,
        state,
        before.attempts.max(letter.attempts),
        nanos(before.first_failed_at.min(letter.first_failed_at)),
        released,
    ])?;
    let history: Option<String> = to
        .prepare_cached("SELECT history FROM contents WHERE number = ?1")?
        .query_row([before.number], |row| row.get(0))
        .optional()?;
    let Some(history) = history else { return fill(to, before.number, letter) };
    let mut history: Vec<Attempt> = serde_json::from_str(&history).unwrap_or_default();
    history.extend(letter.history.iter().cloned());
    history.sort_by_key(|attempt| (attempt.at, attempt.number));
    history.dedup();
    history.drain(..history.len().saturating_sub(HISTORY));
    to.prepare_cached("UPDATE contents SET history = ?2 WHERE number = ?1")?
        .execute(params![before.number, json(&history)])?;
    Ok(())
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

/// Attempts that are remembered of a letter that dies again and again: the latest.
const HISTORY: usize = 100;

/// What only couriers, brokers and daemons say to each other. A letter keeps the rest: all that the publisher sent.
const INTERNAL: [&str; 5] = [header::HISTORY, header::NOT_BEFORE, header::DEATH, header::REPLAY, header::ATTEMPT];

impl Letter {
    /// One that says nothing of its death is kept as well: whoever put it there had a reason.
    fn dead(place: &Place, arrived: &Arrived) -> Self {
        let message = &arrived.message;
        let (history, death) = (message.history(), message.death());
        let last = history.last();
        let rejected = last.is_some_and(|attempt| attempt.failure == Failure::Rejected);
        let made_out = if rejected { DeathReason::Poison } else { DeathReason::Exhausted };
        let died_at = death.as_ref().map_or(arrived.accepted_at, |death| death.at);
        let trace_id = message.header(header::TRACEPARENT).and_then(|parent| parent.split('-').nth(1));
        Self {
            message_id: message.id.clone(),
            kind: message.header(header::CE_TYPE).unwrap_or(&place.channel).to_owned(),
            reason: death.as_ref().map_or(made_out, |death| death.reason),
            attempts: death.map_or(last.map_or(0, |attempt| attempt.number), |death| death.attempts),
            first_failed_at: history.first().map_or(died_at, |attempt| attempt.at),
            last_failed_at: last.map_or(died_at, |attempt| attempt.at),
            trace_id: trace_id.map(str::to_owned),
            key: message.key.clone(),
            headers: message.headers.iter().filter(|(name, _)| !INTERNAL.contains(&name.as_str())).cloned().collect(),
            payload: message.payload.clone(),
            history,
        }
    }

    /// One that was exported.
    ///
    /// # Errors
    /// When something is missing without which it could not be replayed.
    pub fn exported(letter: DeadLetter) -> Result<(Place, Self), ApiError> {
        let missing = |what: &str| {
            let message = format!("the dead letter {} has no {what}", letter.id);
            ApiError::new(ErrorCode::Invalid, message).hint("only what `meshctl dlq export` writes can be imported")
        };
        if letter.message_id.is_empty() || letter.channel.is_empty() || letter.subscription.is_empty() {
            return Err(missing("messageId, channel or subscription"));
        }
        let payload = letter.payload_base64.as_ref().ok_or_else(|| missing("payloadBase64"))?;
        let payload = BASE64.decode(payload).map_err(|why| {
            let message = format!("the payloadBase64 of the dead letter {} is not base64: {why}", letter.id);
            ApiError::new(ErrorCode::Invalid, message)
        })?;
        let mut headers = letter.headers.clone().ok_or_else(|| missing("headers"))?;
        // A file may say what it likes, and must not speak for couriers and brokers.
        headers.retain(|(name, _)| !INTERNAL.contains(&name.to_ascii_lowercase().as_str()));
        let place = Place { channel: letter.channel, subscription: letter.subscription };
        let mut history = letter.history.unwrap_or_default();
        if history.is_empty() {
            history.push(Attempt {
                number: letter.attempts,
                at: letter.last_failed_at,
                failure: parse_class(&letter.class),
                reason: letter.error,
                status: None,
                duration_ms: 0,
                replay: None,
            });
        }
        let read = Self {
            message_id: letter.message_id,
            kind: letter.kind,
            reason: letter.reason,
            attempts: letter.attempts,
            first_failed_at: letter.first_failed_at,
            last_failed_at: letter.last_failed_at,
            trace_id: letter.trace_id,
            key: letter.key,
            headers,
            payload: payload.into(),
            history,
        };
        Ok((place, read))
    }

    pub fn id(&self, place: &Place) -> String {
        id(place, &self.message_id)
    }

    /// Class, status and words of the last failure.
    fn failure(&self) -> (&'static str, Option<u16>, &str) {
        match self.history.last() {
            Some(attempt) => (class(attempt.failure), attempt.status, &attempt.reason),
            None => (class(Failure::Refused), None, "it is not known why"),
        }
    }
}

const fn class(failure: Failure) -> &'static str {
    match failure {
        Failure::Rejected => "rejected",
        Failure::Refused => "refused",
        Failure::Timeout => "timeout",
        Failure::Unreachable => "unreachable",
    }
}

fn parse_class(text: &str) -> Failure {
    let all = [Failure::Rejected, Failure::Timeout, Failure::Unreachable];
    all.into_iter().find(|failure| class(*failure) == text).unwrap_or(Failure::Refused)
}
