//! Saves what can be read of a damaged file: the file is set aside whole, and every row that can still be read goes into a
//! new one. What is missing is named; counts stay as they were, so that whoever adds them up sees the loss.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, params};

use super::load::{Cursor, Partition};
use super::{SCHEMA, SCHEMA_VERSION, StoreError, channel_of, load, open, pages, place, position_of, rows, writer};

/// # Errors
/// When the new file cannot be written.
pub fn salvage(path: &Path) -> Result<(), StoreError> {
    let stamp = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%S%3fZ");
    let aside = with_suffix(path, &format!(".damaged-{stamp}"));
    let renamed = |from: PathBuf, to: PathBuf| match std::fs::rename(&from, &to) {
        Err(why) if why.kind() != std::io::ErrorKind::NotFound => {
            Err(StoreError::Io { attempt: "set aside", path: from, why })
        }
        _ => Ok(()),
    };
    // The log first: without it the file must not be opened as if it were whole.
    renamed(with_suffix(path, "-wal"), with_suffix(&aside, "-wal"))?;
    renamed(path.to_owned(), aside.clone())?;
    let _ = std::fs::remove_file(with_suffix(path, "-shm"));

    let fresh = with_suffix(path, ".new");
    for leftover in [fresh.clone(), with_suffix(&fresh, "-wal"), with_suffix(&fresh, "-shm")] {
        let _ = std::fs::remove_file(leftover);
    }
    let new = writer(&fresh)?;
    new.execute_batch(&format!("BEGIN; {SCHEMA} PRAGMA user_version = {SCHEMA_VERSION};"))?;
    match Connection::open(&aside) {
        Ok(old) => {
            // Without this, SQLite refuses to read anything of a file that is too short.
            old.pragma_update(None, "writable_schema", true)?;
            // The log's pages go into the file, where they are looked for; one that cannot has none worth having.
            let _ = old.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
            copy(&old, &aside, &new)?;
        }
        Err(why) => tracing::error!(file = %aside.display(), %why, "nothing of the damaged file can be read"),
    }
    new.execute_batch("COMMIT;")?;
    new.close().map_err(|(_, why)| why)?;
    std::fs::rename(&fresh, path).map_err(|why| StoreError::Io { attempt: "rename", path: fresh, why })?;
    if let Some(folder) = path.parent() {
        open::sync_folder(folder)?;
    }
    tracing::warn!(damaged = %aside.display(), "the broker's file was salvaged; the damaged one is kept");
    Ok(())
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// The columns of the tables besides messages, all of which are small.
const SMALL: [(&str, &str); 5] = [
    ("channels", "id, name, spec"),
    ("partitions", "channel, partition, first, next, bytes"),
    ("groups", "id, channel, name, paused"),
    ("cursors", "grp, partition, base, floor, above, processed, moved, skipped, rewound, delivered"),
    ("keys", "channel, key, at, place, id"),
];

fn copy(old: &Connection, aside: &Path, new: &Connection) -> Result<(), StoreError> {
    for (table, columns) in SMALL {
        if let Err(why) = copy_rows(old, new, table, columns)? {
            tracing::error!(table, %why, "a part of the damaged file cannot be read");
        }
    }
    copy_messages(aside, new)?;
    complete(new)
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
/// had removed are still in unused pages, and stay removed.
fn copy_messages(aside: &Path, new: &Connection) -> Result<(), StoreError> {
    let channels: HashMap<u16, load::Channel> =
        load::channels(new)?.into_iter().map(|channel| (channel.id, channel)).collect();
    let mut known: HashMap<(u16, u32), Partition> = HashMap::new();
    {
        let mut statement = new.prepare("SELECT channel, partition, first, next, bytes FROM partitions")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let partition = Partition { first: row.get(2)?, next: row.get(3)?, bytes: row.get(4)? };
            known.insert((row.get(0)?, row.get(1)?), partition);
        }
    }
    let failed = |why| StoreError::Io { attempt: "read", path: aside.to_owned(), why };
    let file = File::open(aside).map_err(failed)?;
    let mut strangers = 0u64;
    pages::scan(&file, |place, at, message| {
        let (id, position) = (channel_of(place), position_of(place));
        let Some(channel) = channels.get(&id) else {
            strangers += 1;
            return Ok(());
        };
        let partition = known.get(&(id, position.partition));
        if position.partition >= channel.spec.partitions
            || partition.is_some_and(|known| !(known.first..known.next).contains(&position.offset))
        {
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

/// Gives every channel its partitions and every group its cursors, from the messages that are there where they are missing,
/// and corrects what no longer fits together.
fn complete(new: &Connection) -> Result<(), StoreError> {
    for channel in load::channels(new)? {
        let wanted = channel.spec.partitions as usize;
        for number in 0..wanted {
            let partition = u32::try_from(number).unwrap_or(u32::MAX);
            let known: Option<Partition> = read_partition(new, channel.id, partition)?;
            let (low, high) = (place(channel.id, partition, 0), place(channel.id, partition + 1, 0));
            let (first, last, bytes): (Option<i64>, Option<i64>, u64) = new.query_row(
                "SELECT min(place), max(place), coalesce(sum(coalesce(octet_length(key), 0) + octet_length(payload)), 0)
                 FROM messages WHERE place >= ?1 AND place < ?2",
                params![low, high],
                |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
            )?;
            let behind = last.map_or(0, |last| position_of(last).offset + 1);
            let found = first.map_or(behind, |first| position_of(first).offset);
            let kept = Partition {
                first: known.map_or(found, |known| known.first.min(found.max(known.first))),
                next: known.map_or(behind, |known| known.next.max(behind)),
                bytes,
            };
            name_gaps(new, &channel.spec.name, channel.id, partition, kept)?;
            load::save_partition(new, channel.id, number, kept)?;
            for group in channel.groups.values() {
                let there = new
                    .prepare_cached("SELECT 1 FROM cursors WHERE grp = ?1 AND partition = ?2")?
                    .exists(params![group.id, number])?;
                if !there {
                    let settled = crate::broker::embedded::settled::Settled::below(kept.first);
                    let cursor = Cursor { base: kept.first, settled, delivered: kept.next, ..Cursor::default() };
                    load::save_cursor(new, group.id, number, &cursor)?;
                }
            }
        }
        for name in channel.spec.groups.iter().filter(|name| !channel.groups.contains_key(*name)) {
            let id = load::add_group(new, channel.id, name)?;
            for number in 0..wanted {
                let partition = u32::try_from(number).unwrap_or(u32::MAX);
                let first = read_partition(new, channel.id, partition)?.map_or(0, |partition| partition.first);
                let settled = crate::broker::embedded::settled::Settled::below(first);
                load::save_cursor(new, id, number, &Cursor { base: first, settled, ..Cursor::default() })?;
            }
        }
    }
    Ok(())
}

fn read_partition(new: &Connection, channel: u16, partition: u32) -> Result<Option<Partition>, rusqlite::Error> {
    let mut statement =
        new.prepare_cached("SELECT first, next, bytes FROM partitions WHERE channel = ?1 AND partition = ?2")?;
    let mut rows = statement.query(params![channel, partition])?;
    match rows.next()? {
        Some(row) => Ok(Some(Partition { first: row.get(0)?, next: row.get(1)?, bytes: row.get(2)? })),
        None => Ok(None),
    }
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
