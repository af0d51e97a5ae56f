//! The file in which traces are kept: `traces.db`, SQLite, never larger than it may be.
//!
//! One thread writes, many spans in one transaction; what waits for it is bounded in bytes, and what finds no room is counted
//! as dropped. Up to four look things up beside it. What was committed survives the death of the daemon; of what a machine's
//! death takes nothing was promised to anybody.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use meshctl_api::error::{ApiError, ErrorCode};
use meshctl_api::view::traces::TraceStore;
use meshctl_model::trace::Span;
use rusqlite::{Connection, OpenFlags};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::write::Writer;
use crate::store::StoreError;

/// Rises when the tables change.
const SCHEMA_VERSION: i64 = 1;

/// Kibibytes of spans that wait for the writer.
pub(super) const ROOM: usize = 32 << 10;

/// Batches that wait for the writer.
const QUEUE: usize = 1024;

/// How long a reader of a gateway is held up where there is no room.
const PATIENCE: Duration = Duration::from_millis(250);

/// Who looks something up at once.
const READERS: usize = 4;

/// A chunk is some spans of one trace, in the order of their coming; its key is the trace's number and 16 bits of its own, so
/// that a trace lies together. A join is an entry under the number of a message id or of another trace, see `summary::joins`.
/// Times are nanoseconds since 1970, but for `touched`: seconds, when something came last.
const SCHEMA: &str = "
    CREATE TABLE traces (
        number INTEGER PRIMARY KEY, trace_id BLOB NOT NULL UNIQUE, class INTEGER NOT NULL, touched INTEGER NOT NULL,
        start_at INTEGER NOT NULL, end_at INTEGER NOT NULL, latency INTEGER NOT NULL,
        service TEXT NOT NULL, operation TEXT NOT NULL, spans INTEGER NOT NULL, errors INTEGER NOT NULL,
        services TEXT NOT NULL, chunks INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX traces_by_time ON traces (start_at);
    CREATE INDEX traces_by_latency ON traces (latency);
    CREATE INDEX traces_by_worth ON traces (class, touched);
    CREATE INDEX traces_failed ON traces (start_at) WHERE class >= 2;
    CREATE TABLE chunks (key INTEGER PRIMARY KEY, spans BLOB NOT NULL) STRICT;
    CREATE TABLE joins (key INTEGER NOT NULL, trace INTEGER NOT NULL, PRIMARY KEY (key, trace)) STRICT, WITHOUT ROWID;
    CREATE INDEX joins_by_trace ON joins (trace);
    CREATE TABLE counts (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
    CREATE TABLE sources (id TEXT PRIMARY KEY, dropped INTEGER NOT NULL) STRICT, WITHOUT ROWID;
";

/// What is kept, and which of it is slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    pub keep: Duration,
    /// Bytes of all files together.
    pub max_size: u64,
    pub slow: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { keep: Duration::from_secs(24 * 3600), max_size: 1 << 30, slow: Duration::from_millis(500) }
    }
}

/// Spans on their way into the store.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    pub spans: Vec<Span>,
    /// About how much memory they take: the length of what they were read from.
    pub bytes: usize,
}

/// Something that the operator is told of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Nothing can be written, and why. Said once.
    Unwritable(String),
    Writable,
}

/// Hears notices. It must not wait.
pub type Tell = Box<dyn Fn(Notice) + Send>;

/// Work for the writer.
pub(super) enum Job {
    Spans {
        batch: Batch,
        room: OwnedSemaphorePermit,
        written: Option<oneshot::Sender<()>>,
    },
    /// A process says how many spans it has dropped since it started.
    Lost {
        source: String,
        dropped: u64,
    },
    /// Look for what is too old or too much.
    Tend,
}

/// What the store holds, as of the last commit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub traces: u64,
    pub spans: u64,
    pub dropped: u64,
    pub evicted: u64,
}

/// Between everybody who has to do with the file.
#[derive(Debug, Default)]
pub(super) struct Shared {
    pub totals: Mutex<Totals>,
    pub bounds: Mutex<Bounds>,
    /// Dropped, and not written down yet.
    pub dropped: AtomicU64,
    /// Stored since the daemon started, to make a rate of.
    pub stored: AtomicU64,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The way to the file. Cheap to clone; its thread ends with the last clone.
#[derive(Clone, Debug)]
pub struct Store {
    jobs: mpsc::Sender<Job>,
    pub(super) room: Arc<Semaphore>,
    shared: Arc<Shared>,
    readers: Arc<(Semaphore, Mutex<Vec<Connection>>)>,
    path: Arc<Path>,
}

impl Store {
    /// Opens or makes the file, mode 0600. A damaged one is set aside, with the name that it has then, and a new one begun.
    ///
    /// # Errors
    /// When it cannot be opened, or was written by a newer version.
    pub fn open(path: &Path, tell: Tell) -> Result<(Self, Option<String>), StoreError> {
        let opened = connect(path).and_then(|connection| Ok((totals(path, &connection)?, connection)));
        let ((totals, connection), aside) = match opened {
            Ok(opened) => (opened, None),
            Err(why) if why.is_damage() => {
                tracing::error!(%why, "setting damaged traces aside");
                let aside = crate::store::set_aside(path);
                ((Totals::default(), connect(path)?), Some(aside))
            }
            Err(why) => return Err(why),
        };
        let shared = Arc::new(Shared { totals: Mutex::new(totals), ..Shared::default() });
        let (jobs, work) = mpsc::channel(QUEUE);
        let writer = Writer::new(connection, path.to_owned(), Arc::clone(&shared), totals, tell);
        let thread = std::thread::Builder::new().name("traces-write".into()).spawn(move || writer.run(work));
        thread.map_err(|source| StoreError::Thread { path: path.display().to_string(), source })?;
        let store = Self {
            jobs,
            room: Arc::new(Semaphore::new(ROOM)),
            shared,
            readers: Arc::new((Semaphore::new(READERS), Mutex::new(Vec::new()))),
            path: path.into(),
        };
        Ok((store, aside))
    }

    /// Takes spans if there is room now.
    ///
    /// # Errors
    /// The batch, where there is none; it is the caller's to count.
    pub fn offer(&self, batch: Batch) -> Result<(), Batch> {
        let Ok(room) = Arc::clone(&self.room).try_acquire_many_owned(kibibytes(&batch)) else { return Err(batch) };
        let job = Job::Spans { batch, room, written: None };
        self.jobs.try_send(job).map_err(|unsent| match unsent.into_inner() {
            Job::Spans { batch, .. } => batch,
            Job::Lost { .. } | Job::Tend => Batch::default(),
        })
    }

    /// Takes spans as soon as there is room; where there is none for a while they are dropped and counted.
    pub async fn put(&self, batch: Batch) {
        let count = batch.spans.len();
        if tokio::time::timeout(PATIENCE, self.send(batch, None)).await.is_err() {
            self.dropped(count);
        }
    }

    /// As [`Self::put`], and returns when they can be looked up, or are dropped.
    pub async fn write(&self, batch: Batch) {
        let count = batch.spans.len();
        let (written, done) = oneshot::channel();
        match tokio::time::timeout(PATIENCE, self.send(batch, Some(written))).await {
            // A writer that has ended has dropped its end.
            Ok(()) => drop(done.await),
            Err(_) => self.dropped(count),
        }
    }

    async fn send(&self, batch: Batch, written: Option<oneshot::Sender<()>>) {
        // Neither is ever closed while there is somebody to send.
        let Ok(room) = Arc::clone(&self.room).acquire_many_owned(kibibytes(&batch)).await else { return };
        let _ = self.jobs.send(Job::Spans { batch, room, written }).await;
    }

    /// Counts spans that could not be taken.
    pub fn dropped(&self, spans: usize) {
        self.shared.dropped.fetch_add(spans as u64, Ordering::Relaxed);
    }

    /// Hears that a process has dropped so many spans since it started. What is not taken in now is with the next word of it.
    pub fn lost(&self, source: &str, dropped: u64) {
        let _ = self.jobs.try_send(Job::Lost { source: source.to_owned(), dropped });
    }

    /// Removes what is too old or too much; it is done after every commit, too.
    pub fn tend(&self) {
        // A writer that has so much to do tends itself.
        let _ = self.jobs.try_send(Job::Tend);
    }

    pub fn bound(&self, bounds: Bounds) {
        *lock(&self.shared.bounds) = bounds;
    }

    /// Spans stored since the daemon started.
    pub fn stored(&self) -> u64 {
        self.shared.stored.load(Ordering::Relaxed)
    }

    /// # Errors
    /// When the file cannot be read.
    pub async fn state(&self) -> Result<TraceStore, ApiError> {
        let oldest = self.read("find the oldest trace", |from| {
            from.prepare_cached("SELECT min(start_at) FROM traces")?.query_row([], |row| row.get::<_, Option<i64>>(0))
        });
        let oldest = oldest.await?;
        let (totals, bounds) = (*lock(&self.shared.totals), *lock(&self.shared.bounds));
        Ok(TraceStore {
            traces: totals.traces,
            spans: totals.spans,
            size_bytes: size(&self.path),
            max_size_bytes: bounds.max_size,
            keep_ms: u64::try_from(bounds.keep.as_millis()).unwrap_or(u64::MAX),
            oldest_at: oldest.map(crate::dead_letters::store::timestamp),
            dropped_spans: totals.dropped + self.shared.dropped.load(Ordering::Relaxed),
            evicted_traces: totals.evicted,
        })
    }

    /// A look at everything as it is at one instant.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        attempt: &'static str,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, ApiError> {
        let failed = |why: String| {
            let message = format!("cannot {attempt} in {}: {why}", self.path.display());
            ApiError::new(ErrorCode::Unavailable, message)
                .hint("see the daemon's log; requests and messages are not touched")
        };
        let _turn = self.readers.0.acquire().await.map_err(|why| failed(why.to_string()))?;
        let (readers, path) = (Arc::clone(&self.readers), Arc::clone(&self.path));
        let look = tokio::task::spawn_blocking(move || {
            let idle = lock(&readers.1).pop();
            let mut connection = idle.map_or_else(|| reader(&path), Ok)?;
            let view = connection.transaction()?;
            let found = work(&view)?;
            drop(view);
            lock(&readers.1).push(connection);
            Ok::<_, rusqlite::Error>(found)
        });
        look.await.map_err(|why| failed(why.to_string()))?.map_err(|why| failed(why.to_string()))
    }
}

fn kibibytes(batch: &Batch) -> u32 {
    // One larger than all the room takes all of it.
    u32::try_from((batch.bytes >> 10).clamp(1, ROOM)).unwrap_or(u32::MAX)
}

fn reader(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(Duration::from_secs(5))?;
    Ok(connection)
}

fn connect(path: &Path) -> Result<Connection, StoreError> {
    let shown = path.display().to_string();
    let failed = |attempt| {
        let path = shown.clone();
        move |source| StoreError::Sql { attempt, path, source }
    };
    let connection = Connection::open(path).map_err(failed("open"))?;
    crate::store::restrict(path);
    let prepare = || -> rusqlite::Result<i64> {
        connection.busy_timeout(Duration::from_secs(5))?;
        connection.set_prepared_statement_cache_capacity(64);
        // Before the first table: pages that are free can be given back without writing the whole file anew.
        connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        connection.pragma_update(None, "cache_size", -(32 << 10))?;
        connection.pragma_query_value(None, "user_version", |row| row.get(0))
    };
    match prepare().map_err(failed("read"))? {
        0 => {
            let schema = format!("BEGIN; {SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;");
            connection.execute_batch(&schema).map_err(failed("create"))?;
        }
        SCHEMA_VERSION => {}
        found => return Err(StoreError::Newer { path: shown, found }),
    }
    Ok(connection)
}

/// What was counted when it was written last. A look at both ends of every table finds most damage before somebody is told of it.
fn totals(path: &Path, connection: &Connection) -> Result<Totals, StoreError> {
    let look = || -> rusqlite::Result<Totals> {
        for (table, key) in [("traces", "number"), ("chunks", "key"), ("joins", "key")] {
            for end in ["ASC", "DESC"] {
                let sql = format!("SELECT * FROM {table} ORDER BY {key} {end} LIMIT 1");
                connection.prepare(&sql)?.query([])?.next()?;
            }
        }
        for index in ["start_at", "latency", "trace_id"] {
            connection.prepare(&format!("SELECT max({index}) FROM traces"))?.query([])?.next()?;
        }
        let count = |name: &str| -> rusqlite::Result<u64> {
            let mut statement = connection.prepare("SELECT coalesce(max(value), 0) FROM counts WHERE name = ?1")?;
            statement.query_row([name], |row| row.get(0))
        };
        Ok(Totals {
            traces: count("traces")?,
            spans: count("spans")?,
            dropped: count("dropped")?,
            evicted: count("evicted")?,
        })
    };
    look().map_err(|source| StoreError::Sql { attempt: "read", path: path.display().to_string(), source })
}

/// Bytes of the file and its journal.
pub(super) fn size(path: &Path) -> u64 {
    let length = |path: PathBuf| std::fs::metadata(path).map_or(0, |file| file.len());
    let mut journal = path.as_os_str().to_owned();
    journal.push("-wal");
    length(path.to_owned()) + length(journal.into())
}

/// Seconds since 1970.
pub(super) fn seconds() -> i64 {
    Timestamp::now().as_second()
}
