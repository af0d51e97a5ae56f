//! Reading and writing rows of messages.

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{place, position_of};
use crate::broker::embedded::codec::Raw;

/// The check sum of a row: over all that it says.
pub fn crc(place: i64, at: i64, id: &[u8], key: Option<&[u8]>, headers: &[u8], payload: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&place.to_be_bytes());
    crc.update(&at.to_be_bytes());
    for part in [id, key.unwrap_or_default(), headers, payload] {
        // The length before each, so that no part can grow into the next.
        crc.update(&(part.len() as u64).to_be_bytes());
        crc.update(part);
    }
    crc.update(&[u8::from(key.is_some())]);
    crc.finalize()
}

pub fn insert(database: &Connection, place: i64, at: i64, message: &Raw) -> Result<(), rusqlite::Error> {
    let crc = crc(place, at, &message.id, message.key.as_deref(), &message.headers, &message.payload);
    let text = |bytes| std::str::from_utf8(bytes).map_err(rusqlite::Error::from);
    let (id, key) = (text(&message.id)?, message.key.as_deref().map(text).transpose()?);
    database
        .prepare_cached(
            "INSERT INTO messages (place, at, crc, id, key, headers, payload) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        )?
        .execute(params![place, at, crc, id, key, &message.headers[..], &message.payload[..]])?;
    Ok(())
}

/// A row as it was read.
pub struct Kept<'a> {
    pub place: i64,
    pub at: i64,
    pub id: &'a [u8],
    pub key: Option<&'a [u8]>,
    pub headers: &'a [u8],
    pub payload: &'a [u8],
}

impl<'a> Kept<'a> {
    /// `None` when the row is not as it was written.
    fn of(row: &'a Row<'_>) -> Option<Self> {
        let kept = Self {
            place: row.get(0).ok()?,
            at: row.get(1).ok()?,
            id: row.get_ref(3).ok()?.as_bytes().ok()?,
            key: row.get_ref(4).ok()?.as_bytes_or_null().ok()?,
            headers: row.get_ref(5).ok()?.as_blob().ok()?,
            payload: row.get_ref(6).ok()?.as_blob().ok()?,
        };
        let crc: u32 = row.get(2).ok()?;
        (crc == self::crc(kept.place, kept.at, kept.id, kept.key, kept.headers, kept.payload)).then_some(kept)
    }
}

/// Reads the rows of a partition from `from` to before `to`, in order, as long as `each` says so. It is given the offset,
/// and the row unless that is damaged.
pub fn scan(
    database: &Connection,
    channel: u16,
    partition: u32,
    from: u64,
    to: u64,
    mut each: impl FnMut(u64, Option<Kept<'_>>) -> bool,
) -> Result<(), rusqlite::Error> {
    let mut statement = database.prepare_cached(
        "SELECT place, at, crc, id, key, headers, payload FROM messages WHERE place >= ?1 AND place < ?2 ORDER BY place",
    )?;
    let mut rows = statement.query(params![place(channel, partition, from), place(channel, partition, to)])?;
    while let Some(row) = rows.next()? {
        let offset = position_of(row.get(0)?).offset;
        if !each(offset, Kept::of(row)) {
            break;
        }
    }
    Ok(())
}

/// How many rows there are.
pub fn count(database: &Connection, channel: u16, partition: u32, from: u64, to: u64) -> Result<u64, rusqlite::Error> {
    if from >= to {
        return Ok(0);
    }
    database
        .prepare_cached("SELECT count(*) FROM messages WHERE place >= ?1 AND place < ?2")?
        .query_row(params![place(channel, partition, from), place(channel, partition, to)], |row| row.get(0))
}

/// The first row accepted at or after `at`; `to` when there is none. Binary search: offsets rise with time.
pub fn first_since(
    database: &Connection,
    channel: u16,
    partition: u32,
    from: u64,
    to: u64,
    at: i64,
) -> Result<u64, rusqlite::Error> {
    let (mut low, mut high) = (from, to);
    while low < high {
        let middle = low + (high - low) / 2;
        match next_after(database, channel, partition, middle, high)? {
            Some((_, accepted)) if accepted >= at => high = middle,
            Some((offset, _)) => low = offset + 1,
            None => high = middle,
        }
    }
    Ok(low)
}

/// Offset and time of the first row from `from` to before `to`.
pub fn next_after(
    database: &Connection,
    channel: u16,
    partition: u32,
    from: u64,
    to: u64,
) -> Result<Option<(u64, i64)>, rusqlite::Error> {
    let mut statement = database
        .prepare_cached("SELECT place, at FROM messages WHERE place >= ?1 AND place < ?2 ORDER BY place LIMIT 1")?;
    let mut rows = statement.query(params![place(channel, partition, from), place(channel, partition, to)])?;
    match rows.next()? {
        Some(row) => Ok(Some((position_of(row.get(0)?).offset, row.get(1)?))),
        None => Ok(None),
    }
}

/// Offset and time of the last row from `from` to before `to`.
pub fn last_before(
    database: &Connection,
    channel: u16,
    partition: u32,
    from: u64,
    to: u64,
) -> Result<Option<(u64, i64)>, rusqlite::Error> {
    database
        .prepare_cached("SELECT place, at FROM messages WHERE place >= ?1 AND place < ?2 ORDER BY place DESC LIMIT 1")?
        .query_row(params![place(channel, partition, from), place(channel, partition, to)], |row| {
            Ok((position_of(row.get(0)?).offset, row.get(1)?))
        })
        .optional()
}

/// What a row counts towards the size of its channel; nothing when there is none.
pub fn size(database: &Connection, place: i64) -> Result<u64, rusqlite::Error> {
    let size = database
        .prepare_cached(
            "SELECT coalesce(octet_length(key), 0) + coalesce(octet_length(payload), 0) FROM messages WHERE place = ?1",
        )?
        .query_row([place], |row| row.get(0))
        .optional()?;
    Ok(size.unwrap_or(0))
}

/// Puts a damaged row where nobody is given it.
pub fn set_aside(database: &Connection, place: i64) -> Result<(), rusqlite::Error> {
    database.execute("INSERT OR REPLACE INTO damaged SELECT * FROM messages WHERE place = ?1", [place])?;
    database.execute("DELETE FROM messages WHERE place = ?1", [place])?;
    Ok(())
}
