//! The folder of one instance: what the shim and the daemon know of it, on disk.
//!
//! | file | written by | what |
//! |---|---|---|
//! | `spec.json` | daemon | what to start |
//! | `lock` | shim | locked by the shim for as long as it lives: the one answer to "does it run?" |
//! | `shim.json` | shim | which processes run |
//! | `exit.json` | shim | how the last run ended |
//! | `log`, `log.1`, … | shim | output, newest first |
//!
//! The lock is a POSIX record lock, because the kernel then tells who holds it without anybody having to take it: looking
//! never disturbs a shim that is just starting. A shim removes `exit.json` under the lock before it starts anything, so
//! `exit.json` beside the `shim.json` of the holder belongs to the holder's run.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use jiff::Timestamp;
use meshctl_model::instance::{Exit, InstanceSpec, ProcessId};
use rustix::fs::FlockOperation;
use rustix::process::{Flock, FlockType, PidfdFlags, fcntl_getlk, pidfd_open};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::proc;

const SPEC: &str = "spec.json";
const SHIM: &str = "shim.json";
const EXIT: &str = "exit.json";
const LOCK: &str = "lock";
pub(super) const LOG: &str = "log";

/// What a shim writes down once its program runs.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Record {
    pub(super) shim: ProcessId,
    pub(super) program: ProcessId,
    pub(super) started_at: Timestamp,
    /// The control groups that hold the instance, to be removed with it.
    #[serde(default)]
    pub(super) control_groups: Vec<PathBuf>,
}

/// What a shim tells the daemon that started it, once, through its standard output.
pub(super) type Report = Result<Record, Refusal>;

/// Why a program was not started.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Refusal {
    /// Trying again without a change will not help.
    Unstartable(String),
    Failed(String),
}

/// What the folder says of the instance. The descriptors are pidfds of the shim.
pub(super) enum State {
    /// A shim exists and has not yet started its program.
    Starting(OwnedFd),
    Running(Record, OwnedFd),
    /// The program has ended; its shim is about to.
    Ending(OwnedFd),
    /// No shim exists. Without an exit, the last one was killed, its disk was full, or there never was one.
    Ended(Option<Exit>),
}

#[derive(Clone, Debug)]
pub(super) struct Folder {
    pub(super) dir: PathBuf,
}

impl Folder {
    pub(super) fn create(&self) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)
    }

    pub(super) fn spec(&self) -> io::Result<Option<InstanceSpec>> {
        self.read(SPEC)
    }

    pub(super) fn record(&self) -> io::Result<Option<Record>> {
        self.read(SHIM)
    }

    pub(super) fn exit(&self) -> io::Result<Option<Exit>> {
        self.read(EXIT)
    }

    pub(super) fn write_spec(&self, spec: &InstanceSpec) -> io::Result<()> {
        self.write(SPEC, spec)
    }

    pub(super) fn write_record(&self, record: &Record) -> io::Result<()> {
        self.write(SHIM, record)
    }

    pub(super) fn write_exit(&self, exit: &Exit) -> io::Result<()> {
        self.write(EXIT, exit)
    }

    /// Forgets the run before.
    pub(super) fn clear(&self) -> io::Result<()> {
        for name in [EXIT, SHIM] {
            match fs::remove_file(self.dir.join(name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Takes the lock for the life of this process. `None` when another process has it. The file must stay open, and must
    /// not be opened a second time by this process: closing any descriptor of it gives a record lock back.
    pub(super) fn lock(&self) -> io::Result<Option<File>> {
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(self.dir.join(LOCK))?;
        match rustix::fs::fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(file)),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::ACCESS) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The pid of the shim.
    fn holder(&self) -> io::Result<Option<u32>> {
        let file = match File::open(self.dir.join(LOCK)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let lock = fcntl_getlk(&file, &Flock::from(FlockType::WriteLock))?;
        Ok(lock.and_then(|lock| lock.pid).and_then(|pid| u32::try_from(pid.as_raw_nonzero().get()).ok()))
    }

    pub(super) fn state(&self) -> io::Result<State> {
        // Looked at again when the holder changes under our eyes; a shim lives longer than a look, so this ends.
        loop {
            let Some(holder) = self.holder()? else { return Ok(State::Ended(self.exit()?)) };
            let Some(pid) = proc::pid(holder) else { continue };
            let shim = match pidfd_open(pid, PidfdFlags::empty()) {
                Err(rustix::io::Errno::SRCH) => continue,
                shim => shim?,
            };
            // Only now is it certain that the descriptor means the holder, and not a later process with its pid.
            if self.holder()? != Some(holder) {
                continue;
            }
            let record = self.record()?.filter(|record| proc::process_id(holder).as_ref() == Some(&record.shim));
            return Ok(match record {
                None => State::Starting(shim),
                Some(_) if self.exit()?.is_some() => State::Ending(shim),
                Some(record) => State::Running(record, shim),
            });
        }
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> io::Result<Option<T>> {
        let path = self.dir.join(name);
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(about("read", &path, error)),
            Ok(bytes) => bytes,
        };
        serde_json::from_slice(&bytes).map(Some).map_err(|error| about("understand", &path, error.into()))
    }

    /// Whole or not at all, for every reader at every moment: written aside and renamed. It is not forced to the disk:
    /// after a crash of the machine nothing of an instance runs any more, and the daemon's store, which is durable, says what
    /// is to be started. A hundred instances start at once, and a hundred flushes would be what takes the time.
    fn write<T: Serialize>(&self, name: &str, value: &T) -> io::Result<()> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let aside = self.dir.join(format!(".{name}.{}.{count}", std::process::id()));
        let path = self.dir.join(name);
        let written = serde_json::to_vec(value)
            .map_err(io::Error::from)
            .and_then(|bytes| {
                let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&aside)?;
                file.write_all(&bytes)
            })
            .and_then(|()| fs::rename(&aside, &path));
        written.map_err(|error| {
            // Whatever of it exists; when nothing does, there is nothing to remove.
            let _ = fs::remove_file(&aside);
            about("write", &path, error)
        })
    }
}

/// The same error with what was attempted on what.
pub(super) fn about(attempt: &str, path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot {attempt} {}: {error}", path.display()))
}
