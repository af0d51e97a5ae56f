//! Local processes: a shim per instance ([`shim`]), forked by the [`nursery`], a folder per instance (`folder.rs`), and nothing
//! in memory. Whatever the daemon knows of an instance it reads from the folder and the kernel, so a daemon that has just
//! started knows as much as one that has run for a year.

mod environment;
mod folder;
mod fork;
mod limits;
mod logs;
pub mod nursery;
mod output;
mod ports;
mod proc;
pub mod shim;
mod title;
mod watch;

use std::io::{self, PipeReader};
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use meshctl_model::instance::{Exit, InstanceSpec};
use rustix::process::{Signal, pidfd_send_signal};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::{Semaphore, mpsc};

pub(super) use self::environment::environment;
use self::folder::{Folder, Record, Refusal, Report, State, about};
use self::nursery::Nursery;
pub use self::ports::listening_ports;
pub use self::proc::{Usage, process_id, usage};
use self::watch::FolderWatch;
pub(super) use self::watch::end_of;
use super::{Found, FoundState, Line, Running, Runtime, RuntimeError};
use crate::Pending;

/// How long a shim may take from its lock to its record; it takes a millisecond or two.
const STARTING: Duration = Duration::from_secs(5);
/// How long the nursery and a shim may be silent before they count as frozen.
const SILENT: Duration = Duration::from_secs(30);
/// How long a shim may take to end, beyond the grace of its instance, before it is killed itself.
const ENDING: Duration = Duration::from_secs(10);
/// Lines between a log and its reader.
const LINES: usize = 256;

/// Starts instances as processes of this machine.
#[derive(Clone, Debug)]
pub struct ProcessRuntime {
    state_dir: PathBuf,
    nursery: Arc<Nursery>,
    /// Starting is work for processors: more at once than there are makes all of them slower.
    launches: Arc<Semaphore>,
}

impl ProcessRuntime {
    /// Instances live in `state_dir/instances`; `executable` is meshctl's own, started as `executable nursery`.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn new(state_dir: &Path, executable: PathBuf) -> io::Result<Self> {
        let instances = Folder { dir: state_dir.join("instances") };
        instances.create().map_err(|error| about("make", &instances.dir, error))?;
        // One spelling for ever: processes carry it in their environment.
        let state_dir = state_dir.canonicalize().map_err(|error| about("find", state_dir, error))?;
        let at_once = 2 * std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let nursery = Arc::new(Nursery::new(executable, state_dir.clone()));
        Ok(Self { state_dir, nursery, launches: Arc::new(Semaphore::new(at_once)) })
    }

    fn folder(&self, id: &str) -> Result<Folder, String> {
        let plain = !id.is_empty() && !id.starts_with('.') && !id.contains(['/', '\0']);
        if plain { Ok(Folder { dir: self.instances().join(id) }) } else { Err(format!("{id:?} is not a name")) }
    }

    fn instances(&self) -> PathBuf {
        self.state_dir.join("instances")
    }

    async fn start(&self, spec: &InstanceSpec) -> Result<Running, RuntimeError> {
        let failed = |why: String| RuntimeError::Failed { attempt: "start", id: spec.id.clone(), why };
        let folder = self.folder(&spec.id).map_err(failed)?;
        if let Some(record) = running(&folder).await.map_err(|error| failed(error.to_string()))? {
            return Ok(record.into());
        }
        let turn = self.launches.acquire().await.map_err(|closed| failed(closed.to_string()))?;
        let launch = {
            let (runtime, folder, spec) = (self.clone(), folder.clone(), spec.clone());
            move || runtime.launch(&folder, &spec)
        };
        let report = match blocking(launch).await {
            Ok(report) => match tokio::time::timeout(SILENT, hear(report)).await {
                Ok(report) => report,
                Err(_) => {
                    // Nobody hears the shim any more, so it starts nothing if it comes back to life.
                    self.nursery.end();
                    Err(io::Error::other(format!("neither the nursery nor its shim said a word in {SILENT:?}")))
                }
            },
            Err(error) => Err(error),
        };
        drop(turn);
        match report.map_err(|error| failed(error.to_string()))? {
            Some(Ok(record)) => Ok(record.into()),
            Some(Err(Refusal::Unstartable(why))) => Err(RuntimeError::Unstartable { id: spec.id.clone(), why }),
            Some(Err(Refusal::Failed(why))) => Err(failed(why)),
            // The shim found another one that was faster.
            None => match running(&folder).await.map_err(|error| failed(error.to_string()))? {
                Some(record) => Ok(record.into()),
                None => Err(failed("its shim ended before it had started the program".to_owned())),
            },
        }
    }

    fn launch(&self, folder: &Folder, spec: &InstanceSpec) -> io::Result<PipeReader> {
        folder.create()?;
        folder.write_spec(spec)?;
        self.nursery.start_shim(&folder.dir)
    }

    async fn stop(&self, id: &str) -> Result<Exit, RuntimeError> {
        let failed = |why: String| RuntimeError::Failed { attempt: "stop", id: id.to_owned(), why };
        let folder = self.folder(id).map_err(failed)?;
        let shim = match folder.state().map_err(|error| failed(error.to_string()))? {
            State::Ended(exit) => return self.account(&folder, id, exit, false).await.map_err(failed),
            State::Starting(shim) | State::Running(_, shim) | State::Ending(shim) => shim,
        };
        let grace = folder.spec().ok().flatten().map_or(Duration::ZERO, |spec| spec.grace.get());
        // A shim that has ended meanwhile needs no signal.
        let _ = pidfd_send_signal(&shim, Signal::TERM);
        let hand = shim.try_clone().map_err(|error| failed(error.to_string()))?;
        if tokio::time::timeout(grace + ENDING, end_of(shim)).await.is_err() {
            // It is stopped or stuck. Its program dies with it, and what else there is, is found by its label.
            let _ = pidfd_send_signal(&hand, Signal::KILL);
            end_of(hand).await.map_err(|error| failed(error.to_string()))?;
        }
        self.account(&folder, id, folder.exit(), true).await.map_err(failed)
    }

    async fn exited(&self, id: &str) -> Exit {
        let folder = match self.folder(id) {
            Ok(folder) => folder,
            Err(why) => return how_is_not_known(why),
        };
        let shim = match folder.state() {
            Ok(State::Ended(_)) => None,
            Ok(State::Starting(shim) | State::Running(_, shim) | State::Ending(shim)) => Some(shim),
            Err(error) => return how_is_not_known(error.to_string()),
        };
        if let Some(shim) = shim
            && let Err(error) = end_of(shim).await
        {
            return how_is_not_known(error.to_string());
        }
        self.account(&folder, id, folder.exit(), false).await.unwrap_or_else(how_is_not_known)
    }

    /// How an instance ended whose shim is gone. A shim that wrote the exit has left nothing behind; one that could not,
    /// because it was killed, may have.
    async fn account(&self, folder: &Folder, id: &str, exit: Option<Exit>, asked: bool) -> Result<Exit, String> {
        if let Some(exit) = exit {
            return Ok(exit);
        }
        let (state_dir, doomed) = (self.state_dir.clone(), id.to_owned());
        blocking(move || proc::sweep(&state_dir, |instance| instance == doomed, ENDING)).await?;
        if let Some(record) = folder.record() {
            limits::remove(&record.control_groups);
        }
        if !folder.has_begun() {
            let reason = Some("it was never started".to_owned());
            return Ok(Exit { at: Timestamp::now(), code: None, signal: None, asked, reason });
        }
        let why = "its shim left no word, because it was killed, the machine went down or the disk is full";
        Ok(Exit { asked, ..how_is_not_known(why.to_owned()) })
    }

    async fn list(&self) -> Result<Vec<Found>, RuntimeError> {
        let instances = self.instances();
        let entries = std::fs::read_dir(&instances).map_err(|error| RuntimeError::Failed {
            attempt: "find",
            id: "instances".to_owned(),
            why: about("list", &instances, error).to_string(),
        })?;
        let mut found = Vec::new();
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Some(id) = name.to_str() else { continue };
            let Ok(folder) = self.folder(id) else { continue };
            found.extend(self.find(id, &folder).await);
        }
        found.sort_by(|one, other| one.spec.id.cmp(&other.spec.id));
        Ok(found)
    }

    /// What is in one folder. Trouble with it is told of and is never trouble of the others: the daemon starts with what
    /// can be found. Without a legible spec there is nothing to adopt; what runs all the same is met again when its id is
    /// started, which gives the running one.
    async fn find(&self, id: &str, folder: &Folder) -> Option<Found> {
        let spec = match folder.spec() {
            Ok(Some(spec)) => spec,
            Ok(None) => {
                tracing::warn!(instance = id, "left aside: there is no spec.json in {}", folder.dir.display());
                return None;
            }
            Err(error) => {
                tracing::warn!(instance = id, %error, "left aside");
                return None;
            }
        };
        let state = match running(folder).await {
            Ok(Some(record)) => FoundState::Running(record.into()),
            Ok(None) => {
                let account = self.account(folder, id, folder.exit(), false).await;
                FoundState::Ended(account.unwrap_or_else(how_is_not_known))
            }
            // A shim that hangs: whoever starts or stops the instance deals with it.
            Err(error) => {
                tracing::warn!(instance = id, %error, "taken as ended");
                FoundState::Ended(how_is_not_known(error.to_string()))
            }
        };
        Some(Found { spec, state })
    }

    async fn remove(&self, id: &str) -> Result<(), RuntimeError> {
        let failed = |why: String| RuntimeError::Failed { attempt: "remove", id: id.to_owned(), why };
        let folder = self.folder(id).map_err(failed)?;
        if running(&folder).await.map_err(|error| failed(error.to_string()))?.is_some() {
            return Err(failed("it is running; stop it first".to_owned()));
        }
        let removed = blocking(move || std::fs::remove_dir_all(&folder.dir)).await;
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error.to_string())),
            _ => Ok(()),
        }
    }

    async fn sweep(&self) -> Result<usize, RuntimeError> {
        let runtime = self.clone();
        let sweep = move || {
            // What cannot be looked at may be an instance still.
            let forgotten =
                |id: &str| runtime.folder(id).is_ok_and(|folder| matches!(folder.dir.try_exists(), Ok(false)));
            proc::sweep(&runtime.state_dir, forgotten, ENDING)
        };
        blocking(sweep).await.map_err(|why| RuntimeError::Failed { attempt: "sweep", id: "orphans".to_owned(), why })
    }
}

impl Runtime for ProcessRuntime {
    fn start<'a>(&'a self, spec: &'a InstanceSpec) -> Pending<'a, Result<Running, RuntimeError>> {
        Box::pin(self.start(spec))
    }

    fn stop<'a>(&'a self, id: &'a str) -> Pending<'a, Result<Exit, RuntimeError>> {
        Box::pin(self.stop(id))
    }

    fn exited<'a>(&'a self, id: &'a str) -> Pending<'a, Exit> {
        Box::pin(self.exited(id))
    }

    fn list(&self) -> Pending<'_, Result<Vec<Found>, RuntimeError>> {
        Box::pin(self.list())
    }

    fn remove<'a>(&'a self, id: &'a str) -> Pending<'a, Result<(), RuntimeError>> {
        Box::pin(self.remove(id))
    }

    fn sweep(&self) -> Pending<'_, Result<usize, RuntimeError>> {
        Box::pin(self.sweep())
    }

    fn tail<'a>(&'a self, id: &'a str, lines: usize) -> Pending<'a, Vec<Line>> {
        Box::pin(async move {
            match self.folder(id) {
                Ok(folder) => blocking(move || logs::tail(&folder.dir, lines)).await,
                Err(_) => Vec::new(),
            }
        })
    }

    fn logs(&self, id: &str, since: Option<Timestamp>, follow: bool) -> mpsc::Receiver<Line> {
        // A reader that is slower than the log holds back the reading of the file, never the program.
        let (lines, receiver) = mpsc::channel(LINES);
        if let Ok(folder) = self.folder(id) {
            tokio::spawn(logs::send(folder.dir, since, follow, lines));
        }
        receiver
    }
}

impl From<Record> for Running {
    fn from(record: Record) -> Self {
        Self { process: record.program, started_at: record.started_at }
    }
}

fn how_is_not_known(why: String) -> Exit {
    let reason = Some(format!("how is not known: {why}"));
    Exit { at: Timestamp::now(), code: None, signal: None, asked: false, reason }
}

/// What runs in the folder, once it is settled whether anything does.
async fn running(folder: &Folder) -> io::Result<Option<Record>> {
    let settled = async {
        loop {
            match folder.state()? {
                State::Running(record, _) => return Ok(Some(record)),
                State::Ended(_) => return Ok(None),
                State::Ending(shim) => end_of(shim).await?,
                State::Starting(shim) => {
                    let mut watch = FolderWatch::new(&folder.dir)?;
                    // What came between the look and the watch has not been seen by the watch.
                    if let State::Starting(_) = folder.state()? {
                        tokio::select! {
                            changed = watch.changed() => changed?,
                            ended = end_of(shim) => ended?,
                        }
                    }
                }
            }
        }
    };
    tokio::time::timeout(STARTING, settled).await.unwrap_or_else(|_| {
        Err(io::Error::other(format!(
            "its shim (the holder of the lock in {}) neither starts nor ends",
            folder.dir.display()
        )))
    })
}

/// What a new shim says; `None` when it ends without a word.
async fn hear(report: PipeReader) -> io::Result<Option<Report>> {
    let mut words = Vec::new();
    pipe::Receiver::from_owned_fd(OwnedFd::from(report))?.read_to_end(&mut words).await?;
    if words.is_empty() {
        return Ok(None);
    }
    serde_json::from_slice(&words).map(Some).map_err(io::Error::from)
}

/// Runs what waits for the disk or the kernel where it holds nobody up.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
    }
}
