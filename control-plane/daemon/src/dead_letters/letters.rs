//! Rows of dead letters, and looks at them.

use std::collections::{BTreeMap, HashMap};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use meshctl_api::error::{ApiError, ErrorCode};
use meshctl_api::view::messages::{DeadLetter, DeadLetterGroup, DeadLetterQuery};
use meshctl_model::message::{Attempt, DeathReason};
use rusqlite::{Connection, OptionalExtension, Row, params_from_iter};

use super::Counts;
use super::sql::Where;
use super::store::{Done, timestamp};
use super::take_in::Place;

/// Letters that a list shows where nothing else is asked for.
const SHOWN: u32 = 500;

const COLUMNS: &str =
    "id, message_id, type, channel, subscription, reason, class, error, fingerprint, attempts, first_failed_at,
    last_failed_at, trace_id, state, replay_id, message_key, size_bytes";

/// The latest failure first.
pub fn list(from: &Connection, query: &DeadLetterQuery, wanted: &Where) -> Done<Vec<DeadLetter>> {
    let limit = match query.limit {
        Some(0) => i64::MAX,
        limit => i64::from(limit.unwrap_or(SHOWN)),
    };
    let text = format!(
        "SELECT {COLUMNS} FROM letters WHERE {} ORDER BY last_failed_at DESC, number DESC LIMIT {limit}",
        wanted.sql
    );
    let mut statement = from.prepare_cached(&text)?;
    let rows = statement.query_map(params_from_iter(&wanted.values), letter)?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// Everything about one. Not there: [`ErrorCode::NotFound`].
pub fn show(from: &Connection, id: &str) -> Done<DeadLetter> {
    let number = from
        .prepare_cached("SELECT number FROM letters WHERE id = ?1")?
        .query_row([id], |row| row.get(0))
        .optional()?
        .ok_or_else(|| unknown(id))?;
    Ok(whole(from, number)?.ok_or_else(|| unknown(id))?)
}

pub fn unknown(id: &str) -> ApiError {
    ApiError::new(ErrorCode::NotFound, format!("there is no dead letter `{id}`"))
        .hint("`meshctl dlq ls` lists them; a filter on `state` also those that are processed or discarded")
}

/// Everything about one, if it is there.
pub fn whole(from: &Connection, number: i64) -> Done<Option<DeadLetter>> {
    let text = format!(
        "SELECT {COLUMNS}, headers, payload, history FROM letters LEFT JOIN contents USING (number) WHERE number = ?1"
    );
    let found = from.prepare_cached(&text)?.query_row([number], |row| {
        if row.get_ref(18)?.as_blob_or_null()?.is_none() {
            // It ended long ago: see `forget`.
            return letter(row);
        }
        let (headers, history): (String, String) = (row.get(17)?, row.get(19)?);
        let payload = row.get_ref(18)?.as_blob()?;
        let text = std::str::from_utf8(payload).ok();
        let json = text.and_then(|text| serde_json::from_str(text).ok());
        Ok(DeadLetter {
            headers: Some(serde_json::from_str(&headers).unwrap_or_default()),
            history: Some(serde_json::from_str::<Vec<Attempt>>(&history).unwrap_or_default()),
            payload: json.or_else(|| Some(text?.into())),
            payload_base64: Some(BASE64.encode(payload)),
            ..letter(row)?
        })
    });
    Ok(found.optional()?)
}

/// The columns that `groupBy` may name.
const GROUPS: [&str; 6] = ["reason", "channel", "subscription", "fingerprint", "class", "state"];

/// Largest first; the example is the latest.
pub fn group(from: &Connection, by: &str, wanted: &Where) -> Done<Vec<DeadLetterGroup>> {
    let Some(column) = GROUPS.into_iter().find(|known| *known == by) else {
        let message = format!("dead letters cannot be grouped by `{by}`");
        return Err(ApiError::new(ErrorCode::Invalid, message).hint(format!("one of {}", GROUPS.join(", "))).into());
    };
    // A hash table, rather than SQLite's sort of everything that is found.
    let text = format!("SELECT {column}, first_failed_at, last_failed_at, number FROM letters WHERE {}", wanted.sql);
    let mut found: HashMap<String, Found> = HashMap::new();
    let mut statement = from.prepare_cached(&text)?;
    let mut rows = statement.query(params_from_iter(&wanted.values))?;
    while let Some(row) = rows.next()? {
        let (name, first, last, number) = (row.get_ref(0)?.as_str()?, row.get(1)?, row.get(2)?, row.get(3)?);
        match found.get_mut(name) {
            Some(group) => {
                group.count += 1;
                group.first = group.first.min(first);
                group.latest = group.latest.max((last, number));
            }
            None => drop(found.insert(name.to_owned(), Found { count: 1, first, latest: (last, number) })),
        }
    }
    let mut example = from.prepare_cached("SELECT id, error FROM letters WHERE number = ?1")?;
    let mut groups = Vec::with_capacity(found.len());
    for (name, Found { count, first, latest: (last, number) }) in found {
        let (example_id, example_error) = example.query_row([number], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let (first_failed_at, last_failed_at) = (timestamp(first), timestamp(last));
        groups.push(DeadLetterGroup { name, count, example_id, example_error, first_failed_at, last_failed_at });
    }
    groups.sort_by(|one, other| other.count.cmp(&one.count).then_with(|| one.name.cmp(&other.name)));
    Ok(groups)
}

struct Found {
    count: u64,
    first: i64,
    /// When it failed last, and its number.
    latest: (i64, i64),
}

/// The states of those of these messages that are letters of a subscription, by message id.
pub fn states(from: &Connection, place: &Place, messages: &[String]) -> Done<BTreeMap<String, String>> {
    let mut found = from.prepare_cached(
        "SELECT message_id, state FROM letters
         WHERE channel = ?1 AND subscription = ?2 AND message_id IN (SELECT value FROM json_each(?3))",
    )?;
    let messages = serde_json::to_string(messages).unwrap_or_default();
    let found =
        found.query_map([&place.channel, &place.subscription, &messages], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(found.collect::<Result<_, _>>()?)
}

/// By (channel, subscription).
pub fn counts(from: &Connection) -> Done<BTreeMap<(String, String), Counts>> {
    let mut counts: BTreeMap<(String, String), Counts> = BTreeMap::new();
    let mut kept =
        from.prepare_cached("SELECT channel, subscription, taken_in, imported, merged, issued FROM counts")?;
    let mut rows = kept.query([])?;
    while let Some(row) = rows.next()? {
        let entry = counts.entry((row.get(0)?, row.get(1)?)).or_default();
        (entry.taken_in, entry.imported, entry.discarded, entry.issued) =
            (row.get(2)?, row.get(3)?, row.get(4)?, row.get(5)?);
    }
    let mut there = from.prepare_cached(
        "SELECT channel, subscription, state, count(*) FROM letters GROUP BY channel, subscription, state",
    )?;
    let mut rows = there.query([])?;
    while let Some(row) = rows.next()? {
        let entry = counts.entry((row.get(0)?, row.get(1)?)).or_default();
        let letters: u64 = row.get(3)?;
        match row.get_ref(2)?.as_str()? {
            "dead" => entry.dead += letters,
            "parked" => entry.parked += letters,
            "discarded" => entry.discarded += letters,
            "replaying" => entry.replaying += letters,
            _ => entry.processed += letters,
        }
    }
    Ok(counts)
}

pub fn reason(text: &str) -> DeathReason {
    if text == DeathReason::Poison.as_str() { DeathReason::Poison } else { DeathReason::Exhausted }
}

fn letter(row: &Row) -> rusqlite::Result<DeadLetter> {
    Ok(DeadLetter {
        id: row.get(0)?,
        message_id: row.get(1)?,
        kind: row.get(2)?,
        channel: row.get(3)?,
        subscription: row.get(4)?,
        reason: reason(row.get_ref(5)?.as_str()?),
        class: row.get(6)?,
        error: row.get(7)?,
        fingerprint: row.get(8)?,
        attempts: row.get(9)?,
        first_failed_at: timestamp(row.get(10)?),
        last_failed_at: timestamp(row.get(11)?),
        trace_id: row.get(12)?,
        state: row.get(13)?,
        replay_id: row.get(14)?,
        key: row.get(15)?,
        size_bytes: row.get(16)?,
        history: None,
        headers: None,
        payload: None,
        payload_base64: None,
    })
}
