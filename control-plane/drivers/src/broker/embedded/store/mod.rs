//! The broker's one SQLite file: a row for each message, and beside them where each group stands. This connection is the
//! only one that writes; the engine decides what belongs into one transaction.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, ffi};

use crate::broker::{BrokerError, Position};

mod census;
pub mod load;
pub mod open;
mod pages;
pub mod rows;
pub mod salvage;
pub mod view;

const SCHEMA_VERSION: i64 = 2;

const SCHEMA: &str = "
CREATE TABLE channels (
    id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, spec TEXT NOT NULL
) STRICT;
-- first: the first offset that retention has left; next: the offset of the next message; bytes: of what is kept.
CREATE TABLE partitions (
    channel INTEGER NOT NULL, partition INTEGER NOT NULL, first INTEGER NOT NULL, next INTEGER NOT NULL, bytes INTEGER NOT NULL,
    crc INTEGER NOT NULL,
    PRIMARY KEY (channel, partition)
) STRICT, WITHOUT ROWID;
CREATE TABLE groups (
    id INTEGER PRIMARY KEY, channel INTEGER NOT NULL, name TEXT NOT NULL, paused TEXT, UNIQUE (channel, name)
) STRICT;
-- A group in a partition. base: where the group began; all below floor is settled, and the ranges above it.
CREATE TABLE cursors (
    grp INTEGER NOT NULL, partition INTEGER NOT NULL, base INTEGER NOT NULL, floor INTEGER NOT NULL, above BLOB NOT NULL,
    processed INTEGER NOT NULL, moved INTEGER NOT NULL, skipped INTEGER NOT NULL, rewound INTEGER NOT NULL,
    delivered INTEGER NOT NULL, crc INTEGER NOT NULL,
    PRIMARY KEY (grp, partition)
) STRICT, WITHOUT ROWID;
-- place: channel << 48 | partition << 40 | offset; at: microseconds since 1970; headers: as in PROTOCOL.md.
CREATE TABLE messages (
    place INTEGER PRIMARY KEY, at INTEGER NOT NULL, crc INTEGER NOT NULL, id TEXT NOT NULL, key TEXT, headers BLOB NOT NULL,
    payload BLOB NOT NULL
) STRICT;
-- Rows of messages that were found altered; nobody is given them.
CREATE TABLE damaged (
    place INTEGER PRIMARY KEY, at, crc, id, key, headers, payload
);
CREATE TABLE keys (
    channel INTEGER NOT NULL, key TEXT NOT NULL, at INTEGER NOT NULL, place INTEGER NOT NULL, id TEXT NOT NULL,
    PRIMARY KEY (channel, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX keys_by_age ON keys (channel, at);
";

/// The most channels, and the most partitions of one: what a row's place has room for.
pub const MOST_CHANNELS: u16 = 0x7fff;
pub const MOST_PARTITIONS: u32 = 256;
const OFFSETS: u64 = 1 << 40;

/// A message's row.
pub fn place(channel: u16, partition: u32, offset: u64) -> i64 {
    (i64::from(channel) << 48) | (i64::from(partition) << 40) | offset.min(OFFSETS - 1).cast_signed()
}

pub fn channel_of(place: i64) -> u16 {
    u16::try_from(place >> 48).unwrap_or(0)
}

pub fn position_of(place: i64) -> Position {
    let place = place.cast_unsigned();
    Position { partition: ((place >> 40) & 0xff) as u32, offset: place & (OFFSETS - 1) }
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot {attempt} {path}: {why}", path = path.display())]
    Io { attempt: &'static str, path: PathBuf, why: io::Error },
    #[error("{path} was written by another meshctl (schema {schema}, not {SCHEMA_VERSION}); run that one", path = path.display())]
    OtherSchema { path: PathBuf, schema: i64 },
    #[error(
        "{path} is missing, but {found} is there: put the file back, or move what is left of it out of the folder to begin with an empty one",
        path = path.display(), found = found.display()
    )]
    Missing { path: PathBuf, found: PathBuf },
    #[error("{0}")]
    Damaged(String),
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
}

impl StoreError {
    /// Whether the file itself is broken.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Damaged(_) => true,
            Self::Sqlite(why) => is_broken(why),
            Self::Io { .. } | Self::OtherSchema { .. } | Self::Missing { .. } => false,
        }
    }
}

/// Whether the file is broken, or may not be what SQLite takes it for: it must be opened anew.
pub fn is_damage(why: &rusqlite::Error) -> bool {
    is_broken(why) || is_unsynced(why)
}

fn is_broken(why: &rusqlite::Error) -> bool {
    matches!(why.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

/// Whether a sync failed. The kernel may have dropped what it could not write and says so only once: what a second sync
/// says is worth nothing.
fn is_unsynced(why: &rusqlite::Error) -> bool {
    let code = why.sqlite_error().map(|error| error.extended_code);
    matches!(code, Some(ffi::SQLITE_IOERR_FSYNC | ffi::SQLITE_IOERR_DIR_FSYNC))
}

/// Whether there is no room for a write, or the device refuses it; either can pass.
pub fn is_full(why: &rusqlite::Error) -> bool {
    matches!(why.sqlite_error_code(), Some(ErrorCode::DiskFull | ErrorCode::SystemIoFailure)) && !is_unsynced(why)
}

/// What a failed write means to whoever asked for it.
pub fn refusal(why: &rusqlite::Error) -> BrokerError {
    if is_full(why) {
        BrokerError::Full(format!("disk full, or it cannot be written to ({why}); what is kept is delivered on"))
    } else if is_broken(why) {
        BrokerError::Damaged(format!("its file cannot be read ({why}); it is repaired when the broker starts again"))
    } else {
        // Nothing is wrong with what was asked for: it may be tried again.
        BrokerError::Unreachable(format!("its file cannot be written now: {why}"))
    }
}

/// A connection as the broker needs it: durable commits, and as few checkpoints as a moderate log allows.
fn writer(path: &Path) -> Result<Connection, rusqlite::Error> {
    let database = Connection::open(path)?;
    database.busy_timeout(Duration::from_secs(5))?;
    database.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
    database.pragma_update(None, "synchronous", "FULL")?;
    database.pragma_update(None, "wal_autocheckpoint", 8_000)?;
    database.pragma_update(None, "journal_size_limit", 64 << 20)?;
    database.pragma_update(None, "cache_size", -32_768)?;
    database.pragma_update(None, "temp_store", "MEMORY")?;
    database.set_prepared_statement_cache_capacity(64);
    Ok(database)
}

/// A connection that only reads.
pub fn reader(path: &Path) -> Result<Connection, rusqlite::Error> {
    let database =
        Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    database.busy_timeout(Duration::from_secs(5))?;
    database.set_prepared_statement_cache_capacity(64);
    Ok(database)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_failed_write_means() {
        let failure = |code| rusqlite::Error::SqliteFailure(ffi::Error::new(code), None);
        let full = failure(ffi::SQLITE_FULL);
        assert!(is_full(&full) && !is_damage(&full) && matches!(refusal(&full), BrokerError::Full(_)));
        let unwritten = failure(ffi::SQLITE_IOERR_WRITE);
        assert!(is_full(&unwritten) && !is_damage(&unwritten));
        let unsynced = failure(ffi::SQLITE_IOERR_FSYNC);
        assert!(
            !is_full(&unsynced) && is_damage(&unsynced) && matches!(refusal(&unsynced), BrokerError::Unreachable(_))
        );
        assert!(!StoreError::from(unsynced).is_damage(), "what is durable of the file is whole");
        let broken = failure(ffi::SQLITE_CORRUPT);
        assert!(is_damage(&broken) && matches!(refusal(&broken), BrokerError::Damaged(_)));
        assert!(matches!(refusal(&failure(ffi::SQLITE_BUSY)), BrokerError::Unreachable(_)));
    }
}
