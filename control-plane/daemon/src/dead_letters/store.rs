//! The file in which dead letters, replays and the audit are kept: `deadletters.db`, SQLite.
//!
//! One thread writes and one reads, so that a long list holds up nobody's replay. What [`Store::write`] has returned survives
//! the death of the machine (`synchronous=FULL`): the broker forgets a dead letter as soon as it is here.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use meshctl_api::error::{ApiError, ErrorCode};
use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior};
use tokio::sync::{mpsc, oneshot};

use super::sql;
use crate::store::StoreError;

/// Rises when the tables change.
const SCHEMA_VERSION: i64 = 2;

/// From version 1: what has an outcome already counts from now on.
const FROM_1: &str = "
    ALTER TABLE letters ADD COLUMN ended_at INTEGER;
    UPDATE letters SET ended_at = CAST(unixepoch('subsec') * 1e9 AS INTEGER) WHERE state IN ('processed', 'discarded');
";

/// A letter ends in many ways, and each must be timed: hence here, once.
const ENDS: &str = "
    CREATE TRIGGER letters_end AFTER UPDATE OF state ON letters WHEN new.state IS NOT old.state
    BEGIN
        UPDATE letters SET ended_at = CASE WHEN new.state IN ('processed', 'discarded')
            THEN CAST(unixepoch('subsec') * 1e9 AS INTEGER) END WHERE number = new.number;
    END;
    CREATE INDEX letters_by_end ON letters (ended_at) WHERE ended_at IS NOT NULL;
";

/// Work that may wait for a thread; whoever brings more waits.
const QUEUE: usize = 64;

/// Times are nanoseconds since 1970, so that SQL compares them as we do. What is large and seldom looked at lies in a table of
/// its own, so that a scan stays small.
const SCHEMA: &str = "
    CREATE TABLE letters (
        number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE,
        channel TEXT NOT NULL, subscription TEXT NOT NULL, message_id TEXT NOT NULL,
        type TEXT NOT NULL, reason TEXT NOT NULL, class TEXT NOT NULL, error TEXT NOT NULL, fingerprint TEXT NOT NULL,
        attempts INTEGER NOT NULL, first_failed_at INTEGER NOT NULL, last_failed_at INTEGER NOT NULL,
        trace_id TEXT, state TEXT NOT NULL, replay_id TEXT, held_by TEXT, message_key TEXT, size_bytes INTEGER NOT NULL,
        ended_at INTEGER,
        UNIQUE (channel, subscription, message_id)
    ) STRICT;
    CREATE INDEX letters_by_time ON letters (last_failed_at);
    CREATE INDEX letters_by_place ON letters (channel, subscription, state);
    CREATE TABLE contents (
        number INTEGER PRIMARY KEY REFERENCES letters, headers TEXT NOT NULL, payload BLOB NOT NULL, history TEXT NOT NULL
    ) STRICT;
    CREATE TABLE positions (
        channel TEXT NOT NULL, partition INTEGER NOT NULL, offset INTEGER NOT NULL, PRIMARY KEY (channel, partition)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE counts (
        channel TEXT NOT NULL, subscription TEXT NOT NULL, taken_in INTEGER NOT NULL DEFAULT 0,
        imported INTEGER NOT NULL DEFAULT 0, merged INTEGER NOT NULL DEFAULT 0, issued INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (channel, subscription)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE replays (
        number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, fingerprint TEXT NOT NULL, selected INTEGER NOT NULL,
        subscriptions TEXT NOT NULL, rate_per_s REAL, state TEXT NOT NULL, by_user TEXT NOT NULL, reason TEXT,
        created_at INTEGER NOT NULL, ended_at INTEGER
    ) STRICT;
    CREATE TABLE items (
        replay INTEGER NOT NULL REFERENCES replays, letter INTEGER NOT NULL REFERENCES letters, state TEXT NOT NULL,
        intended_at INTEGER, PRIMARY KEY (replay, letter)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX items_by_state ON items (replay, state, letter);
    CREATE TABLE audit (
        number INTEGER PRIMARY KEY, at INTEGER NOT NULL, by_user TEXT NOT NULL, action TEXT NOT NULL,
        subject TEXT NOT NULL, reason TEXT, outcome TEXT NOT NULL, data TEXT NOT NULL, digest TEXT NOT NULL
    ) STRICT;
";

/// Why work on the store came to nothing; nothing has changed then.
#[derive(Debug)]
pub enum Trouble {
    Sql(rusqlite::Error),
    Refused(ApiError),
}

impl From<rusqlite::Error> for Trouble {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(error)
    }
}

impl From<rusqlite::types::FromSqlError> for Trouble {
    fn from(error: rusqlite::types::FromSqlError) -> Self {
        Self::Sql(error.into())
    }
}

impl From<ApiError> for Trouble {
    fn from(error: ApiError) -> Self {
        Self::Refused(error)
    }
}

/// What work on the store comes to.
pub type Done<T> = Result<T, Trouble>;

type Job = Box<dyn FnOnce(&mut Connection) + Send>;

/// The way to the file. Cheap to clone; its threads end with the last clone.
#[derive(Clone, Debug)]
pub struct Store {
    writer: mpsc::Sender<Job>,
    reader: mpsc::Sender<Job>,
    path: Arc<str>,
}

impl Store {
    /// Opens or makes the file, mode 0600. A damaged one is set aside, with the name that it has then, and a new one begun.
    ///
    /// # Errors
    /// When it cannot be opened, or was written by a newer version.
    pub fn open(path: &Path) -> Result<(Self, Option<String>), StoreError> {
        match connect(path) {
            Ok((writer, reader)) => Ok((Self::on(path, writer, reader)?, None)),
            Err(why) if why.is_damage() => {
                tracing::error!(%why, "setting damaged dead letters aside");
                let aside = crate::store::set_aside(path);
                let (writer, reader) = connect(path)?;
                Ok((Self::on(path, writer, reader)?, Some(aside)))
            }
            Err(why) => Err(why),
        }
    }

    fn on(path: &Path, writer: Connection, reader: Connection) -> Result<Self, StoreError> {
        let path = path.display().to_string();
        let thread = |name: &str, connection| {
            employ(name, connection).map_err(|source| StoreError::Thread { path: path.clone(), source })
        };
        Ok(Self {
            writer: thread("letters-write", writer)?,
            reader: thread("letters-read", reader)?,
            path: path.into(),
        })
    }

    /// One transaction: everything that `work` does, or nothing. Durable when it returns.
    ///
    /// # Errors
    /// What `work` refuses, or that the file cannot be written.
    pub async fn write<T: Send + 'static>(
        &self,
        attempt: &'static str,
        work: impl FnOnce(&Transaction) -> Done<T> + Send + 'static,
    ) -> Result<T, ApiError> {
        self.run(&self.writer, attempt, move |connection| transact(connection, work)).await
    }

    /// A look at everything as it is at one instant.
    ///
    /// # Errors
    /// What `work` refuses, or that the file cannot be read.
    pub async fn read<T: Send + 'static>(
        &self,
        attempt: &'static str,
        work: impl FnOnce(&Connection) -> Done<T> + Send + 'static,
    ) -> Result<T, ApiError> {
        self.run(&self.reader, attempt, move |connection| {
            let view = connection.transaction()?;
            work(&view)
        })
        .await
    }

    async fn run<T: Send + 'static>(
        &self,
        thread: &mpsc::Sender<Job>,
        attempt: &'static str,
        work: impl FnOnce(&mut Connection) -> Done<T> + Send + 'static,
    ) -> Result<T, ApiError> {
        let (reply, answer) = oneshot::channel();
        // Who asked may have gone away meanwhile; what was asked is done all the same.
        let job: Job = Box::new(move |connection| drop(reply.send(work(connection))));
        let gone =
            || ApiError::new(ErrorCode::Internal, format!("cannot {attempt}: the thread of {} is gone", self.path));
        thread.send(job).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?.map_err(|trouble| match trouble {
            Trouble::Refused(error) => error,
            Trouble::Sql(why) => {
                let (code, hint) = remedy(&why);
                ApiError::new(code, format!("cannot {attempt} in {}: {why}", self.path)).hint(hint)
            }
        })
    }
}

/// What kind of trouble it is, and what to try.
fn remedy(why: &rusqlite::Error) -> (ErrorCode, &'static str) {
    use rusqlite::ErrorCode as Sqlite;
    match why.sqlite_error_code() {
        Some(
            Sqlite::DiskFull
            | Sqlite::ReadOnly
            | Sqlite::CannotOpen
            | Sqlite::SystemIoFailure
            | Sqlite::PermissionDenied,
        ) => {
            (ErrorCode::Unavailable, "is the disk full, or the directory not writable? Nothing has changed; try again")
        }
        Some(Sqlite::DatabaseBusy | Sqlite::DatabaseLocked) => {
            (ErrorCode::Unavailable, "another process holds the file. Nothing has changed; try again")
        }
        Some(Sqlite::DatabaseCorrupt | Sqlite::NotADatabase) => {
            (ErrorCode::Internal, "the file is damaged: a daemon that starts anew sets it aside and begins another")
        }
        _ => (ErrorCode::Internal, "nothing has changed; it is a mistake of meshctl's: please report it"),
    }
}

fn transact<T>(connection: &mut Connection, work: impl FnOnce(&Transaction) -> Done<T>) -> Done<T> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let done = work(&transaction)?;
    transaction.commit()?;
    Ok(done)
}

/// A thread that works on one connection until nobody can bring it work any more.
fn employ(name: &str, mut connection: Connection) -> std::io::Result<mpsc::Sender<Job>> {
    let (sender, mut jobs) = mpsc::channel::<Job>(QUEUE);
    std::thread::Builder::new().name(name.into()).spawn(move || {
        while let Some(job) = jobs.blocking_recv() {
            job(&mut connection);
        }
    })?;
    Ok(sender)
}

/// One connection to write and one to read.
fn connect(path: &Path) -> Result<(Connection, Connection), StoreError> {
    let shown = path.display().to_string();
    let failed = |attempt| {
        let path = shown.clone();
        move |source| StoreError::Sql { attempt, path, source }
    };
    let writer = Connection::open(path).map_err(failed("open"))?;
    crate::store::restrict(path);
    let found = prepare(&writer).map_err(failed("read"))?;
    match found {
        0 => {
            let schema = format!("BEGIN; {SCHEMA} {ENDS} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;");
            writer.execute_batch(&schema).map_err(failed("create"))?;
        }
        1 => {
            let change = format!("BEGIN; {FROM_1} {ENDS} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;");
            writer.execute_batch(&change).map_err(failed("bring up to date"))?;
        }
        SCHEMA_VERSION => {}
        _ => return Err(StoreError::Newer { path: shown, found }),
    }
    // A page that is broken would otherwise be found when somebody is told that his message is there.
    writer.query_row("SELECT count(*) FROM letters", [], |row| row.get::<_, u64>(0)).map_err(failed("read"))?;
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let reader = Connection::open_with_flags(path, flags).map_err(failed("open"))?;
    reader.busy_timeout(Duration::from_secs(5)).and_then(|()| sql::teach(&reader)).map_err(failed("open"))?;
    Ok((writer, reader))
}

fn prepare(connection: &Connection) -> rusqlite::Result<i64> {
    connection.busy_timeout(Duration::from_secs(5))?;
    sql::teach(connection)?;
    connection.set_prepared_statement_cache_capacity(64);
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", "ON")?;
    connection.pragma_update(None, "journal_size_limit", 32 << 20)?;
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}

/// As it is written.
pub fn nanos(at: Timestamp) -> i64 {
    i64::try_from(at.as_nanosecond()).unwrap_or(i64::MAX)
}

/// As it was written.
pub fn timestamp(nanos: i64) -> Timestamp {
    Timestamp::from_nanosecond(i128::from(nanos)).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// A connection to an empty store in memory.
#[cfg(test)]
pub fn in_memory() -> Connection {
    let connection = Connection::open_in_memory().expect("opens");
    connection.execute_batch(&format!("{SCHEMA} {ENDS}")).expect("the tables are made");
    sql::teach(&connection).expect("it learns");
    connection.set_prepared_statement_cache_capacity(64);
    connection
}
