//! Replays in the store: the set is frozen when the replay is made, and every step of a letter in it is a row's.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use meshctl_api::error::{ApiError, ErrorCode};
use meshctl_api::view::messages::Replay;
use meshctl_drivers::broker::Publish;
use meshctl_model::message::{Attempt, Message, header};
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};

use super::replay::{Item, Next, Pace, Progress, State, Told, Wish, next};
use super::sets::Set;
use super::store::{Done, nanos, timestamp};
use super::take_in::{Place, count};

/// How long the broker has to remember the idempotency keys of a replay channel. What was intended longer ago and never
/// confirmed is not published again: it might be there already.
pub const WINDOW: Duration = Duration::from_secs(7 * 86_400);

/// The broker's clock, and a publish on its way, are a little apart from ours.
const MARGIN: Duration = Duration::from_secs(3600);

/// Payloads that are intended at once, unless a single one is larger.
const BATCH_BYTES: u64 = 4 << 20;

/// What an operator wishes.
#[derive(Clone, Debug, Default)]
pub struct Order {
    pub by: String,
    pub reason: Option<String>,
    pub rate_per_s: Option<f64>,
}

/// What a replay of this set would be.
pub fn dry_run(set: &Set, order: &Order, now: Timestamp) -> Replay {
    Replay {
        replay_id: String::new(),
        fingerprint: set.fingerprint.clone(),
        selected: set.letters.len() as u64,
        issued: 0,
        processed: 0,
        failed_again: 0,
        withdrawn: 0,
        pending: set.letters.len() as u64,
        state: "dryRun".into(),
        subscriptions: set.subscriptions.clone(),
        rate_per_s: order.rate_per_s,
        by: order.by.clone(),
        reason: order.reason.clone(),
        created_at: now,
        ended_at: None,
    }
}

/// Freezes the set: from here on its letters are this replay's.
pub fn create(to: &Transaction, set: &Set, order: &Order, now: Timestamp) -> Done<Replay> {
    let id = uuid::Uuid::now_v7().to_string();
    let subscriptions = serde_json::to_string(&set.subscriptions).unwrap_or_default();
    to.prepare_cached(
        "INSERT INTO replays (id, fingerprint, selected, subscriptions, rate_per_s, state, by_user, reason, created_at)
         VALUES (?1, ?2, ?3, ?4, ?5, 'running', ?6, ?7, ?8)",
    )?
    .execute(params![
        id,
        set.fingerprint,
        set.letters.len() as u64,
        subscriptions,
        order.rate_per_s,
        order.by,
        order.reason,
        nanos(now)
    ])?;
    let number = to.last_insert_rowid();
    to.prepare_cached("INSERT INTO items (replay, letter, state) SELECT ?1, value, 'waiting' FROM json_each(?2)")?
        .execute(params![number, set.numbers()])?;
    to.prepare_cached(
        "UPDATE letters SET held_by = ?2, replay_id = ?2 WHERE number IN (SELECT letter FROM items WHERE replay = ?1)",
    )?
    .execute(params![number, id])?;
    show(to, &id)
}

/// Takes a letter of a replay one step further, and says where it stands then; `None` where this is no news.
pub fn tell(to: &Transaction, replay: &str, letter: i64, told: Told) -> Done<Option<Item>> {
    let found = to
        .prepare_cached(
            "SELECT items.state, replay, channel, subscription
             FROM replays JOIN items ON replay = replays.number JOIN letters ON letter = letters.number
             WHERE replays.id = ?1 AND letter = ?2",
        )?
        .query_row(params![replay, letter], |row| {
            let place = Place { channel: row.get(2)?, subscription: row.get(3)? };
            Ok((Item::parse(row.get_ref(0)?.as_str()?), row.get::<_, i64>(1)?, place))
        })
        .optional()?;
    let Some((Some(before), number, place)) = found else { return Ok(None) };
    let Some(after) = before.on(told) else { return Ok(None) };
    to.prepare_cached("UPDATE items SET state = ?3 WHERE replay = ?1 AND letter = ?2")?.execute(params![
        number,
        letter,
        after.as_str()
    ])?;
    if after.was_issued() && !before.was_issued() {
        count(to, &place, "issued", 1)?;
    }
    let letters = match (told, after) {
        (_, Item::Withdrawn) => "UPDATE letters SET held_by = NULL WHERE number = ?1 AND held_by = ?2",
        (Told::Confirmed, _) => {
            "UPDATE letters SET held_by = NULL, state = 'replaying' WHERE number = ?1 AND held_by = ?2 AND state = 'dead'"
        }
        _ => return Ok(Some(after)),
    };
    to.prepare_cached(letters)?.execute(params![letter, replay])?;
    Ok(Some(after))
}

/// Notes that a replay is done as soon as every letter has its outcome; says whether that is so now.
pub fn finish(to: &Transaction, replay: &str, now: Timestamp) -> Done<bool> {
    let changed = to
        .prepare_cached(
            "UPDATE replays SET state = 'done', ended_at = ?2 WHERE id = ?1 AND state IN ('running', 'paused')
             AND NOT EXISTS (SELECT 1 FROM items WHERE replay = number AND state = 'waiting')
             AND NOT EXISTS (SELECT 1 FROM items WHERE replay = number AND state = 'intended')
             AND NOT EXISTS (SELECT 1 FROM items WHERE replay = number AND state = 'issued')",
        )?
        .execute(params![replay, nanos(now)])?;
    Ok(changed > 0)
}

/// Pauses, resumes or cancels.
pub fn steer(to: &Transaction, id: &str, wish: Wish, now: Timestamp) -> Done<Replay> {
    let replay = show(to, id)?;
    let state = State::parse(&replay.state).unwrap_or(State::Done);
    let Some(after) = state.on(wish) else {
        let message = format!("cannot {} the replay {id}: it is {}", wish.as_str(), replay.state);
        return Err(ApiError::new(ErrorCode::Conflict, message).into());
    };
    if after == state {
        return Ok(replay);
    }
    if let (State::Cancelled, Some(withdrawn)) = (after, Item::Waiting.on(Told::Withdraw)) {
        let of = "replay = (SELECT number FROM replays WHERE id = ?1) AND state = 'waiting'";
        let letters = format!(
            "UPDATE letters SET held_by = NULL WHERE held_by = ?1 AND number IN (SELECT letter FROM items WHERE {of})"
        );
        to.prepare_cached(&letters)?.execute([id])?;
        let items = format!("UPDATE items SET state = ?2 WHERE {of}");
        to.prepare_cached(&items)?.execute([id, withdrawn.as_str()])?;
    }
    let ended_at = (after == State::Cancelled).then(|| nanos(now));
    to.prepare_cached("UPDATE replays SET state = ?2, ended_at = ?3 WHERE id = ?1")?.execute(params![
        id,
        after.as_str(),
        ended_at
    ])?;
    show(to, id)
}

/// A letter that is to be published now.
#[derive(Clone, Debug)]
pub struct Ready {
    pub letter: i64,
    pub place: Place,
    pub publish: Publish,
}

/// What a step of a replay comes to.
#[derive(Debug)]
pub enum Step {
    Publish(Vec<Ready>),
    Wait(Duration),
    Nothing,
    /// Every letter has its outcome, as this step has found.
    Finished,
}

/// Writes down what the broker said of the letters published last, decides, and writes down what is to be published next.
pub fn step(to: &Transaction, id: &str, told: &[(i64, Told)], pace: &mut Pace, now: Timestamp) -> Done<Step> {
    for (letter, told) in told {
        tell(to, id, *letter, *told)?;
    }
    let (number, state): (i64, Option<State>) =
        to.prepare_cached("SELECT number, state FROM replays WHERE id = ?1")?
            .query_row([id], |row| Ok((row.get(0)?, State::parse(row.get_ref(1)?.as_str()?))))?;
    give_up(to, id, number, now)?;
    if finish(to, id, now)? {
        return Ok(Step::Finished);
    }
    let ahead = Progress {
        waiting: ahead(to, number, Item::Waiting)?,
        intended: ahead(to, number, Item::Intended)?,
        ..Progress::default()
    };
    match next(state.unwrap_or(State::Done), &ahead, pace, now) {
        Next::Issue(letters) => {
            let intended = intend(to, id, number, letters, now)?;
            pace.give_back(letters - intended);
            Ok(Step::Publish(intended_letters(to, id, number)?))
        }
        Next::Confirm => Ok(Step::Publish(intended_letters(to, id, number)?)),
        Next::Wait(wait) => Ok(Step::Wait(wait)),
        Next::Nothing => Ok(Step::Nothing),
    }
}

/// Replays for which there is something to publish.
pub fn busy(from: &Connection) -> Done<Vec<(String, Option<f64>)>> {
    let mut statement = from.prepare_cached(
        "SELECT id, rate_per_s FROM replays
         WHERE (state = 'running' AND EXISTS (SELECT 1 FROM items WHERE replay = number AND state = 'waiting'))
            OR EXISTS (SELECT 1 FROM items WHERE replay = number AND state = 'intended') ORDER BY number",
    )?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// How many there are in that state, as far as a decision needs to know.
fn ahead(from: &Connection, number: i64, item: Item) -> Done<u64> {
    let count = from
        .prepare_cached("SELECT count(*) FROM (SELECT 1 FROM items WHERE replay = ?1 AND state = ?2 LIMIT ?3)")?
        .query_row(params![number, item.as_str(), super::replay::BATCH], |row| row.get(0))?;
    Ok(count)
}

fn give_up(to: &Transaction, id: &str, number: i64, now: Timestamp) -> Done<()> {
    let mut statement =
        to.prepare_cached("SELECT letter FROM items WHERE replay = ?1 AND state = 'intended' AND intended_at < ?2")?;
    let oldest = now.checked_sub(WINDOW - MARGIN).map_or(i64::MIN, nanos);
    let forgotten: Vec<i64> =
        statement.query_map(params![number, oldest], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    for letter in forgotten {
        tell(to, id, letter, Told::GiveUp)?;
    }
    Ok(())
}

/// Says how many it could be.
fn intend(to: &Transaction, id: &str, number: i64, letters: u32, now: Timestamp) -> Done<u32> {
    let mut statement = to.prepare_cached(
        "SELECT letter, size_bytes FROM items JOIN letters ON letter = number
         WHERE replay = ?1 AND items.state = 'waiting' ORDER BY letter LIMIT ?2",
    )?;
    let waiting: Vec<(i64, u64)> = statement
        .query_map(params![number, letters], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<rusqlite::Result<_>>()?;
    let mut stamp = to.prepare_cached("UPDATE items SET intended_at = ?3 WHERE replay = ?1 AND letter = ?2")?;
    let (mut intended, mut bytes) = (0, 0);
    for (letter, size) in waiting {
        bytes += size;
        if intended > 0 && bytes > BATCH_BYTES {
            break;
        }
        tell(to, id, letter, Told::Intend)?;
        stamp.execute(params![number, letter, nanos(now)])?;
        intended += 1;
    }
    Ok(intended)
}

/// The letters that are intended, as they are to be published: as they came, with their history and the replay's id.
fn intended_letters(from: &Connection, id: &str, number: i64) -> Done<Vec<Ready>> {
    let mut statement = from.prepare_cached(
        "SELECT letter, id, channel, subscription, message_id, message_key, headers, payload, history
         FROM items JOIN letters ON letter = letters.number JOIN contents ON letter = contents.number
         WHERE replay = ?1 AND items.state = 'intended' ORDER BY letter",
    )?;
    let rows = statement.query_map([number], |row| {
        let (letter_id, headers, history): (String, String, String) = (row.get(1)?, row.get(6)?, row.get(8)?);
        let mut message = Message {
            id: row.get(4)?,
            key: row.get(5)?,
            headers: serde_json::from_str(&headers).unwrap_or_default(),
            payload: row.get::<_, Vec<u8>>(7)?.into(),
        };
        message.set_header(header::REPLAY, id);
        message.set_history(&serde_json::from_str::<Vec<Attempt>>(&history).unwrap_or_default());
        Ok(Ready {
            letter: row.get(0)?,
            place: Place { channel: row.get(2)?, subscription: row.get(3)? },
            publish: Publish { message, idempotency_key: Some(format!("{id}/{letter_id}")) },
        })
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

const COLUMNS: &str =
    "number, id, fingerprint, selected, subscriptions, rate_per_s, state, by_user, reason, created_at, ended_at";

/// The latest first.
pub fn list(from: &Connection) -> Done<Vec<Replay>> {
    let mut statement = from.prepare_cached(&format!("SELECT {COLUMNS} FROM replays ORDER BY number DESC"))?;
    let rows = statement.query_map([], replay)?.collect::<rusqlite::Result<Vec<_>>>()?;
    rows.into_iter().map(|(number, replay)| counted(from, number, replay)).collect()
}

/// Not there: [`ErrorCode::NotFound`].
pub fn show(from: &Connection, id: &str) -> Done<Replay> {
    let found = from
        .prepare_cached(&format!("SELECT {COLUMNS} FROM replays WHERE id = ?1"))?
        .query_row([id], replay)
        .optional()?;
    let (number, replay) = found.ok_or_else(|| {
        ApiError::new(ErrorCode::NotFound, format!("there is no replay `{id}`")).hint("`meshctl replay ls` lists them")
    })?;
    counted(from, number, replay)
}

fn counted(from: &Connection, number: i64, mut replay: Replay) -> Done<Replay> {
    let progress = progress(from, number)?;
    replay.issued = progress.ever_issued();
    replay.processed = progress.processed;
    replay.failed_again = progress.failed_again;
    replay.withdrawn = progress.withdrawn;
    replay.pending = progress.pending();
    Ok(replay)
}

pub fn progress(from: &Connection, number: i64) -> Done<Progress> {
    let mut progress = Progress::default();
    let mut statement = from.prepare_cached("SELECT state, count(*) FROM items WHERE replay = ?1 GROUP BY state")?;
    let mut rows = statement.query([number])?;
    while let Some(row) = rows.next()? {
        if let Some(item) = Item::parse(row.get_ref(0)?.as_str()?) {
            progress.count(item, row.get(1)?);
        }
    }
    Ok(progress)
}

fn replay(row: &Row) -> rusqlite::Result<(i64, Replay)> {
    let subscriptions: String = row.get(4)?;
    let subscriptions: BTreeMap<String, u64> = serde_json::from_str(&subscriptions).unwrap_or_default();
    let replay = Replay {
        replay_id: row.get(1)?,
        fingerprint: row.get(2)?,
        selected: row.get(3)?,
        issued: 0,
        processed: 0,
        failed_again: 0,
        withdrawn: 0,
        pending: 0,
        state: row.get(6)?,
        subscriptions,
        rate_per_s: row.get(5)?,
        by: row.get(7)?,
        reason: row.get(8)?,
        created_at: timestamp(row.get(9)?),
        ended_at: row.get::<_, Option<i64>>(10)?.map(timestamp),
    };
    Ok((row.get(0)?, replay))
}
