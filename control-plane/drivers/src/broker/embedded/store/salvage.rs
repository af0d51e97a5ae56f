//! Saves what can be read of a damaged file: every message that can still be read, and what else is as it was written, goes
//! into a new file; the damaged one is then set aside whole. What is missing is named; counts that can be read stay as they
//! were, so that whoever adds them up sees the loss.
//!
//! Invariant: at each instant there is either the damaged file at its place, from which this can begin anew, or a complete
//! `.new` that only has to be put there. `.new` is never there unless it is complete and durable; `.part` may be anything.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, params};

use super::load::{Cursor, Partition};
use super::{SCHEMA, SCHEMA_VERSION, StoreError, channel_of, load, open, pages, place, position_of, rows};
use crate::broker::ChannelSpec;
use crate::broker::embedded::settled::Settled;

/// # Errors
/// When the new file cannot be written.
pub fn salvage(path: &Path) -> Result<(), StoreError> {
    build(path)?;
    set_aside(path)?;
    put_in_place(path)
}

/// Goes on with a salvage that was interrupted, to be called before a file is created. The first that is missing says how
/// far it was.
///
/// # Errors
/// When there is no file, but what only beside a file can be: whoever took it away is to decide.
pub fn resume(path: &Path) -> Result<(), StoreError> {
    if path.exists() {
        // A `.new` of a file that is still in its place must never replace what that becomes.
        return remove_leftovers(path);
    }
    let fresh = with_suffix(path, ".new");
    let log = with_suffix(path, "-wal");
    let aside = latest_aside(path)?;
    match aside {
        Some(_) if fresh.exists() => {
            tracing::warn!(file = %path.display(), "a salvage was interrupted; it is finished now");
            put_in_place(path)
        }
        _ if fresh.exists() => Err(missing(path, &fresh)),
        Some(aside) => Err(missing(path, &aside)),
        None if log.exists() => Err(missing(path, &log)),
        None => Ok(()),
    }
}

fn missing(path: &Path, found: &Path) -> StoreError {
    StoreError::Missing { path: path.to_owned(), found: found.to_owned() }
}

fn remove_leftovers(path: &Path) -> Result<(), StoreError> {
    for leftover in [with_suffix(path, ".part"), with_suffix(path, ".new")] {
        match std::fs::remove_file(&leftover) {
            Err(why) if why.kind() != std::io::ErrorKind::NotFound => {
                return Err(StoreError::Io { attempt: "remove", path: leftover, why });
            }
            _ => {}
        }
    }
    Ok(())
}

/// Writes `.new`, from the damaged file where it lies.
fn build(path: &Path) -> Result<(), StoreError> {
    remove_leftovers(path)?;
    let part = with_suffix(path, ".part");
    let new = Connection::open(&part)?;
    // Nothing of it counts before it is complete, so it needs neither a log nor syncs on the way.
    new.pragma_update_and_check(None, "journal_mode", "MEMORY", |_| Ok(()))?;
    new.pragma_update(None, "synchronous", "OFF")?;
    new.execute_batch(&format!("BEGIN; {SCHEMA} PRAGMA user_version = {SCHEMA_VERSION};"))?;
    match Connection::open(path) {
        Ok(old) => copy(&old, path, &new)?,
        Err(why) => tracing::error!(file = %path.display(), %why, "only messages of the damaged file can be read"),
    }
    new.execute_batch("COMMIT;")?;
    new.close().map_err(|(_, why)| why)?;
    let synced = File::open(&part).and_then(|file| file.sync_all());
    synced.map_err(|why| StoreError::Io { attempt: "sync", path: part.clone(), why })?;
    rename(&part, &with_suffix(path, ".new"))?;
    sync_beside(path)
}

/// Moves the damaged file away; from here on `.new` is what counts.
fn set_aside(path: &Path) -> Result<(), StoreError> {
    let stamp = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%S%3fZ");
    rename(path, &with_suffix(path, &format!(".damaged-{stamp}")))?;
    sync_beside(path)
}

/// Puts `.new` where the damaged file was. That one's log first: beside another file SQLite would take it for that one's.
fn put_in_place(path: &Path) -> Result<(), StoreError> {
    let Some(aside) = latest_aside(path)? else { return Err(missing(path, &with_suffix(path, ".new"))) };
    for suffix in ["-wal", "-shm"] {
        let beside = with_suffix(path, suffix);
        if beside.exists() {
            rename(&beside, &with_suffix(&aside, suffix))?;
        }
    }
    sync_beside(path)?;
    rename(&with_suffix(path, ".new"), path)?;
    sync_beside(path)?;
    tracing::warn!(damaged = %aside.display(), "the broker's file was salvaged; the damaged one is kept");
    Ok(())
}

/// The file that was set aside last.
fn latest_aside(path: &Path) -> Result<Option<PathBuf>, StoreError> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { return Ok(None) };
    let failed = |why| StoreError::Io { attempt: "list", path: folder.to_owned(), why };
    let begin = format!("{}.damaged-", name.to_string_lossy());
    let mut latest = None;
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name().to_string_lossy().into_owned();
        if name.starts_with(&begin) && name.ends_with('Z') {
            latest = latest.max(Some(name));
        }
    }
    Ok(latest.map(|name| folder.join(name)))
}

fn rename(from: &Path, to: &Path) -> Result<(), StoreError> {
    std::fs::rename(from, to).map_err(|why| StoreError::Io { attempt: "rename", path: from.to_owned(), why })
}

fn sync_beside(path: &Path) -> Result<(), StoreError> {
    path.parent().map_or(Ok(()), open::sync_folder)
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// The columns of the tables besides messages, all of which are small.
const SMALL: [(&str, &str); 5] = [
    ("channels", "id, name, spec"),
    ("partitions", "channel, partition, first, next, bytes, crc"),
    ("groups", "id, channel, name, paused"),
    ("cursors", "grp, partition, base, floor, above, processed, moved, skipped, rewound, delivered, crc"),
    ("keys", "channel, key, at, place, id"),
];

fn copy(old: &Connection, path: &Path, new: &Connection) -> Result<(), StoreError> {
    // Without the first, SQLite refuses to read anything of a file that is too short; with the second, it would remove a log
    // that it does not understand.
    old.pragma_update(None, "writable_schema", true)?;
    old.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    for (table, columns) in SMALL {
        if let Err(why) = copy_rows(old, new, table, columns)? {
            tracing::error!(table, %why, "a part of the damaged file cannot be read");
        }
    }
    drop_unreadable_channels(new)?;
    copy_messages(path, new)?;
    complete(new)
}

/// A channel whose declaration cannot be read cannot be served; its rows stay in the file that is set aside.
fn drop_unreadable_channels(new: &Connection) -> Result<(), rusqlite::Error> {
    let mut statement = new.prepare("SELECT id, name, spec FROM channels")?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    for (id, name, spec) in rows.collect::<Result<Vec<(i64, String, String)>, _>>()? {
        if let Err(why) = serde_json::from_str::<ChannelSpec>(&spec) {
            tracing::error!(channel = name, %why, "a channel's declaration is altered; it is left behind");
            new.execute("DELETE FROM channels WHERE id = ?1", [id])?;
        }
    }
    Ok(())
}

/// Copies rows until one cannot be read; the inner error is the old file's.
fn copy_rows(
    old: &Connection,
    new: &Connection,
    table: &str,
    columns: &str,
) -> Result<Result<(), rusqlite::Error>, StoreError> {
    let width = columns.split(',').count();
    let places = (1..=width).map(|at| format!("?{at}")).collect::<Vec<_>>().join(", ");
    let mut insert = new.prepare_cached(&format!("INSERT OR IGNORE INTO {table} ({columns}) VALUES ({places})"))?;
    let mut statement = match old.prepare(&format!("SELECT {columns} FROM {table}")) {
        Ok(statement) => statement,
        Err(why) => return Ok(Err(why)),
    };
    let mut rows = match statement.query([]) {
        Ok(rows) => rows,
        Err(why) => return Ok(Err(why)),
    };
    loop {
        let row = match rows.next() {
            Ok(Some(row)) => row,
            Ok(None) => return Ok(Ok(())),
            Err(why) => return Ok(Err(why)),
        };
        let values: Result<Vec<rusqlite::types::Value>, _> = (0..width).map(|at| row.get(at)).collect();
        let values = match values {
            Ok(values) => values,
            Err(why) => return Ok(Err(why)),
        };
        // A row that has become something else than its table takes is as good as gone.
        if let Err(why) = insert.execute(rusqlite::params_from_iter(values))
            && super::is_full(&why)
        {
            return Err(why.into());
        }
    }
}

/// Every intact message of the channels that are known, page by page: a broken tree hides none of them. Rows that retention
/// had removed are still in unused pages, and stay removed where it is known how far it was.
fn copy_messages(path: &Path, new: &Connection) -> Result<(), StoreError> {
    let mut channels: HashMap<u16, (ChannelSpec, BTreeMap<u32, Partition>)> = HashMap::new();
    for (id, spec) in load::specs(new)? {
        channels.insert(id, (spec, load::partitions(new, id)?));
    }
    let failed = |why| StoreError::Io { attempt: "read", path: path.to_owned(), why };
    let file = File::open(path).map_err(failed)?;
    let log = match File::open(with_suffix(path, "-wal")) {
        Ok(log) => Some(log),
        Err(why) if why.kind() == std::io::ErrorKind::NotFound => None,
        Err(why) => return Err(StoreError::Io { attempt: "read", path: with_suffix(path, "-wal"), why }),
    };
    let mut strangers = 0u64;
    pages::scan(&file, log.as_ref(), |place, at, message| {
        let (id, position) = (channel_of(place), position_of(place));
        let Some((spec, partitions)) = channels.get(&id) else {
            strangers += 1;
            return Ok(());
        };
        let removed = partitions.get(&position.partition).is_some_and(|known| position.offset < known.first);
        if position.partition >= spec.partitions || removed {
            return Ok(());
        }
        match rows::insert(new, place, at, &message) {
            // An earlier copy of the page has it already.
            Err(why) if why.sqlite_error_code() == Some(rusqlite::ErrorCode::ConstraintViolation) => Ok(()),
            other => other.map_err(Salvage::Sqlite),
        }
    })
    .map_err(|why| match why {
        Salvage::Io(why) => failed(why),
        Salvage::Sqlite(why) => why.into(),
    })?;
    if strangers > 0 {
        tracing::error!(messages = strangers, "messages of channels that are not known any more were left behind");
    }
    Ok(())
}

enum Salvage {
    Io(std::io::Error),
    Sqlite(rusqlite::Error),
}

impl From<std::io::Error> for Salvage {
    fn from(why: std::io::Error) -> Self {
        Self::Io(why)
    }
}

/// Gives every channel its partitions and every group its cursors. What is missing of them, or altered, is found from what is
/// there: no offset that anybody knows of is given again, and a group whose place is lost is given everything again.
fn complete(new: &Connection) -> Result<(), StoreError> {
    let remembered = remembered(new)?;
    for (id, spec) in load::specs(new)? {
        let partitions = load::partitions(new, id)?;
        let mut groups = Vec::new();
        for (group, name, _) in load::groups(new, id)? {
            groups.push((group, name, load::cursors(new, group)?));
        }
        for name in &spec.groups {
            if !groups.iter().any(|(_, there, _)| there == name) {
                tracing::error!(channel = spec.name, group = name, "a group is lost; it is given everything again");
                groups.push((load::add_group(new, id, name)?, name.clone(), BTreeMap::new()));
            }
        }
        for number in 0..spec.partitions {
            let known = partitions.get(&number);
            let (low, high) = (place(id, number, 0), place(id, number + 1, 0));
            let (first, last, bytes): (Option<i64>, Option<i64>, u64) = new.query_row(
                "SELECT min(place), max(place), coalesce(sum(coalesce(octet_length(key), 0) + octet_length(payload)), 0)
                 FROM messages WHERE place >= ?1 AND place < ?2",
                params![low, high],
                |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
            )?;
            let behind = |place: Option<i64>| place.map_or(0, |place| position_of(place).offset + 1);
            let cursors = groups.iter().filter_map(|(_, _, cursors)| cursors.get(&number));
            let reached = cursors.map(|cursor| cursor.settled.end().max(cursor.base).max(cursor.delivered)).max();
            let next = behind(last)
                .max(behind(remembered.get(&(id, number)).copied()))
                .max(reached.unwrap_or(0))
                .max(known.map_or(0, |known| known.next));
            let found = first.map_or(next, |first| position_of(first).offset);
            let kept = Partition { first: known.map_or(found, |known| known.first), next, bytes };
            if known.is_none_or(|known| known.next != next) {
                let from = known.map(|known| known.next);
                tracing::error!(
                    channel = spec.name,
                    partition = number,
                    ?from,
                    next,
                    "the next offset is not as it was"
                );
            }
            name_gaps(new, &spec.name, id, number, kept)?;
            load::save_partition(new, id, number as usize, kept)?;
            for (group, name, cursors) in &groups {
                if cursors.contains_key(&number) {
                    continue;
                }
                let (channel, from) = (&spec.name, kept.first);
                tracing::error!(channel, group = name, partition = number, from, "where a group stood is lost");
                let cursor = Cursor {
                    base: kept.first,
                    settled: Settled::below(kept.first),
                    delivered: kept.next,
                    ..Cursor::default()
                };
                load::save_cursor(new, *group, number as usize, &cursor)?;
            }
        }
    }
    Ok(())
}

/// The last place of each partition that an idempotency key stands for.
fn remembered(new: &Connection) -> Result<HashMap<(u16, u32), i64>, rusqlite::Error> {
    let mut statement = new.prepare("SELECT max(place) FROM keys GROUP BY channel, place >> 40")?;
    let places = statement.query_map([], |row| row.get::<_, i64>(0))?;
    places.map(|place| place.map(|place| ((channel_of(place), position_of(place).partition), place))).collect()
}

/// Says which offsets have no row any more.
fn name_gaps(new: &Connection, name: &str, channel: u16, number: u32, kept: Partition) -> Result<(), rusqlite::Error> {
    let mut statement =
        new.prepare_cached("SELECT place FROM messages WHERE place >= ?1 AND place < ?2 ORDER BY place")?;
    let mut rows = statement.query(params![place(channel, number, kept.first), place(channel, number, kept.next)])?;
    let mut expected = kept.first;
    let lost = |from: u64, to: u64| {
        if from < to {
            tracing::error!(channel = name, partition = number, from, to, count = to - from, "messages are lost");
        }
    };
    while let Some(row) = rows.next()? {
        let offset = position_of(row.get(0)?).offset;
        lost(expected, offset);
        expected = offset + 1;
    }
    lost(expected, kept.next);
    Ok(())
}

#[cfg(test)]
mod tests;
