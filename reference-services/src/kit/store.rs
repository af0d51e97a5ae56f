//! The state that all instances of a service share: one SQLite file in the service's data directory.
//!
//! Each instance has one thread that writes and one that reads. The writer takes whatever waits and commits it together, so
//! that a thousand small writes cost a few flushes to disk; an answer is given only after the flush. The write-ahead log is
//! flushed at every commit (`synchronous = FULL`), so what was answered survives the machine, not only the process.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode};
use tokio::sync::{mpsc, oneshot};

use super::{Problem, env};

/// Jobs that wait for a thread; who comes then waits to hand over.
const WAITING: usize = 1024;
/// Jobs of one transaction.
const TOGETHER: usize = 256;
/// How long another instance's write is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// The shared state; clones are the same.
#[derive(Clone)]
pub(crate) struct Store {
    writer: Lane,
    reader: Lane,
}

impl Store {
    /// Opens the file of `service` in `DATA_DIR`, by default `data/SERVICE` of the state directory, and makes sure of
    /// `schema`, which must be harmless to repeat.
    ///
    /// # Errors
    /// Says which file and why.
    pub(crate) fn open(service: &str, schema: &str) -> Result<Self, String> {
        let folder = match (env("DATA_DIR"), env("MESHCTL_STATE_DIR")) {
            (Some(folder), _) => PathBuf::from(folder),
            (None, Some(state)) => Path::new(&state).join("data").join(service),
            (None, None) => return Err("neither DATA_DIR nor MESHCTL_STATE_DIR says where the data is kept".into()),
        };
        fs::create_dir_all(&folder).map_err(|why| format!("cannot create {}: {why}", folder.display()))?;
        Self::at(&folder.join(format!("{service}.db")), schema)
    }

    /// The same for a file of one's own.
    pub(crate) fn at(file: &Path, schema: &str) -> Result<Self, String> {
        let cannot = |why: &dyn std::fmt::Display| format!("cannot open {}: {why}", file.display());
        let writing = connect(file, schema).map_err(|why| cannot(&why))?;
        let reading = connect(file, "").map_err(|why| cannot(&why))?;
        Ok(Self {
            writer: Lane::start("store-writer", "BEGIN IMMEDIATE", writing).map_err(|why| cannot(&why))?,
            reader: Lane::start("store-reader", "BEGIN DEFERRED", reading).map_err(|why| cannot(&why))?,
        })
    }

    /// Does `work` in a transaction and returns once it is on disk. An error of one job undoes that job only.
    pub(crate) async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Problem> {
        self.writer.run(work).await
    }

    /// Does `work`, which only reads.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Problem> {
        self.reader.run(work).await
    }
}

fn connect(file: &Path, schema: &str) -> rusqlite::Result<Connection> {
    let mut connection = Connection::open(file)?;
    connection.busy_handler(Some(be_patient))?;
    // Changing to the write-ahead log asks for the whole file without regard to the busy handler, and several instances
    // may do it at once: the first one to come through has done it for all.
    let began = Instant::now();
    loop {
        let set = connection.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;");
        match set.and_then(|()| connection.execute_batch(schema)) {
            Err(why) if why.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) && began.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_millis(2));
            }
            done => return done.map(|()| connection),
        }
    }
}

/// Writes of other instances take a millisecond or a few; SQLite's own pauses grow far beyond that.
fn be_patient(times: i32) -> bool {
    const PAUSE: Duration = Duration::from_micros(500);
    std::thread::sleep(PAUSE);
    PAUSE.saturating_mul(times.unsigned_abs()) < PATIENCE
}

/// A thread with a connection, and the jobs that wait for it.
#[derive(Clone)]
struct Lane(mpsc::Sender<Job>);

/// A job is done inside the transaction, or told why there is none, and leaves the answer that is given after it.
type Job = Box<dyn FnOnce(Result<&Connection, &rusqlite::Error>) -> Answer + Send>;
type Answer = Box<dyn FnOnce(Result<(), String>)>;

impl Lane {
    fn start(name: &str, begin: &'static str, connection: Connection) -> std::io::Result<Self> {
        let (sender, receiver) = mpsc::channel(WAITING);
        std::thread::Builder::new().name(name.into()).spawn(move || work_through(receiver, begin, &connection))?;
        Ok(Self(sender))
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Problem> {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |transaction| {
            let outcome = match transaction {
                Ok(connection) => alone(connection, work).map_err(|why| why.to_string()),
                Err(why) => Err(why.to_string()),
            };
            Box::new(move |committed| {
                // A client that has gone away reads no answer.
                let _gone = answer.send(committed.and(outcome));
            })
        });
        let outcome = match self.0.send(job).await {
            Ok(()) => answered.await.unwrap_or_else(|_| Err("the store's thread has ended".into())),
            Err(_) => Err("the store's thread has ended".into()),
        };
        outcome.map_err(|why| Problem::new(500, "store-failed", format!("the data could not be kept or read: {why}")))
    }
}

fn work_through(mut jobs: mpsc::Receiver<Job>, begin: &str, connection: &Connection) {
    while let Some(first) = jobs.blocking_recv() {
        let begun = connection.execute_batch(begin);
        let transaction = begun.as_ref().map(|()| connection);
        let mut answers = vec![first(transaction)];
        // A full disk may undo the whole transaction at once: what was done after that would stand outside of any.
        while answers.len() < TOGETHER
            && !connection.is_autocommit()
            && let Ok(next) = jobs.try_recv()
        {
            answers.push(next(transaction));
        }
        let ended = begun.and_then(|()| connection.execute_batch("COMMIT")).map_err(|why| why.to_string());
        if ended.is_err() && !connection.is_autocommit() {
            // What cannot even be undone shows at the next BEGIN, which then fails as well.
            let _shown_next = connection.execute_batch("ROLLBACK");
        }
        for answer in answers {
            answer(ended.clone());
        }
    }
}

/// Does `work` so that its failure leaves nothing of it and does not touch the others of its transaction.
fn alone<T>(connection: &Connection, work: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> rusqlite::Result<T> {
    connection.prepare_cached("SAVEPOINT job")?.execute([])?;
    let outcome = work(connection);
    if outcome.is_err() {
        connection.execute_batch("ROLLBACK TO job")?;
    }
    connection.prepare_cached("RELEASE job")?.execute([])?;
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCHEMA: &str = "CREATE TABLE IF NOT EXISTS entry (name TEXT PRIMARY KEY)";

    fn insert(name: String) -> impl FnOnce(&Connection) -> rusqlite::Result<usize> + Send + 'static {
        move |connection| connection.execute("INSERT INTO entry VALUES (?1)", [name])
    }

    #[tokio::test]
    async fn instances_share_one_file_and_a_failed_job_undoes_only_itself() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("shared.db");
        let stores: Vec<_> = std::thread::scope(|scope| {
            let opening: Vec<_> = (0..4).map(|_| scope.spawn(|| Store::at(&file, SCHEMA))).collect();
            opening.into_iter().map(|thread| thread.join().expect("no panic").expect("opened")).collect()
        });
        let mut writes = tokio::task::JoinSet::new();
        for number in 0..400 {
            // Every name is written twice, through different instances: one of the two must fail, alone.
            let store = stores[number % 4].clone();
            writes.spawn(async move { store.write(insert(format!("entry-{}", number / 2))).await.is_ok() });
        }
        let succeeded = writes.join_all().await.into_iter().filter(|ok| *ok).count();
        assert_eq!(succeeded, 200);
        let count = |c: &Connection| c.query_row("SELECT count(*) FROM entry", [], |row| row.get::<_, i64>(0));
        for store in &stores {
            assert_eq!(store.read(count).await.expect("a count"), 200);
        }
    }

    #[tokio::test]
    async fn on_a_full_disk_what_was_answered_is_kept_and_nothing_else() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::at(&folder.path().join("small.db"), SCHEMA).expect("opened");
        let limit = |c: &Connection| c.query_row("PRAGMA max_page_count = 40", [], |row| row.get::<_, i64>(0));
        assert_eq!(store.write(limit).await.expect("a limit"), 40);
        let mut writes = tokio::task::JoinSet::new();
        for number in 0..200 {
            let store = store.clone();
            writes.spawn(async move { store.write(insert(format!("{number:01000}"))).await.is_ok() });
        }
        let succeeded = writes.join_all().await.into_iter().filter(|ok| *ok).count();
        let count = |c: &Connection| c.query_row("SELECT count(*) FROM entry", [], |row| row.get::<_, isize>(0));
        assert_eq!(store.read(count).await.expect("a count").cast_unsigned(), succeeded);
        assert!(succeeded < 200, "the disk was never full");
        let room = |c: &Connection| c.query_row("PRAGMA max_page_count = 4000", [], |row| row.get::<_, i64>(0));
        store.write(room).await.expect("room");
        store.write(insert("once there is room".into())).await.expect("written");
    }
}
