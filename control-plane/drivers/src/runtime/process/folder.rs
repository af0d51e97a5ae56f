//! The folder of one instance: what the shim and the daemon know of it, on disk.
//!
//! | file | written by | what |
//! |---|---|---|
//! | `spec.json` | daemon | what to start |
//! | `lock` | shim | locked by the shim for as long as it lives: the one answer to "does it run?" |
//! | `shim.json` | shim | which processes run |
//! | `exit.json` | shim | how the last run ended |
//! | `log`, `log.1`, … | shim | output, newest first |
//! | `files/` | daemon | what the program finds in the folder that `MESHCTL_FILES` names |
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
pub(super) const FILES: &str = "files";

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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "camelCase")]
pub(in crate::runtime) enum Refusal {
    /// Trying again without a change will not help.
    #[error("{0}")]
    Unstartable(String),
    #[error("{0}")]
    Failed(String),
}

impl Refusal {
    /// Only what is wrong with the program, its files or its rights is hopeless. All else is the state of the machine at
    /// this moment: no descriptors, processes or memory left, or a program that is just being written.
    pub(super) fn new(error: &io::Error, why: String) -> Self {
        use io::ErrorKind;
        use rustix::io::Errno;
        let hopeless = match error.kind() {
            ErrorKind::NotFound
            | ErrorKind::PermissionDenied
            | ErrorKind::NotADirectory
            | ErrorKind::IsADirectory
            | ErrorKind::InvalidInput
            | ErrorKind::InvalidFilename
            | ErrorKind::ArgumentListTooLong => true,
            _ => matches!(Errno::from_io_error(error), Some(Errno::NOEXEC | Errno::LOOP)),
        };
        if hopeless { Self::Unstartable(why) } else { Self::Failed(why) }
    }
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

    pub(super) fn record(&self) -> Option<Record> {
        self.read_word(SHIM)
    }

    pub(super) fn exit(&self) -> Option<Exit> {
        self.read_word(EXIT)
    }

    /// Whether a program was started since the last [`Self::clear`], even if the word about it is lost.
    pub(super) fn has_begun(&self) -> bool {
        self.dir.join(SHIM).exists()
    }

    /// The files come first: whoever sees the spec may start what reads them.
    pub(super) fn write_spec(&self, spec: &InstanceSpec) -> io::Result<()> {
        if !spec.files.is_empty() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(self.dir.join(FILES))?;
        }
        for (name, content) in &spec.files {
            if name.is_empty() || name.starts_with('.') || name.contains(['/', '\0']) {
                let why = format!("cannot write a file called {name:?}: that is not a plain name");
                return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
            }
            self.write_bytes(&Path::new(FILES).join(name), content.as_bytes())?;
        }
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
            let Some(holder) = self.holder()? else { return Ok(State::Ended(self.exit())) };
            let Some(pid) = proc::pid(holder) else { continue };
            let shim = match pidfd_open(pid, PidfdFlags::empty()) {
                Err(rustix::io::Errno::SRCH) => continue,
                shim => shim?,
            };
            // Only now is it certain that the descriptor means the holder, and not a later process with its pid.
            if self.holder()? != Some(holder) {
                continue;
            }
            let record = self.record().filter(|record| proc::process_id(holder).as_ref() == Some(&record.shim));
            return Ok(match record {
                None => State::Starting(shim),
                Some(_) if self.exit().is_some() => State::Ending(shim),
                Some(record) => State::Running(record, shim),
            });
        }
    }

    /// What a shim wrote. A word that cannot be read is no word: it was not forced to the disk, so a crash of the machine may
    /// have left an empty or torn file, and the shim that wrote it is as gone as if it had written nothing.
    fn read_word<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        self.read(name).unwrap_or_else(|error| {
            tracing::warn!(%error, "taken as absent");
            None
        })
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
    /// after a crash of the machine nothing of an instance runs any more, the daemon's store, which is durable, says what
    /// is to be started, and readers bear with what the crash has left. A hundred instances start at once, and a hundred flushes would be what takes the time.
    fn write<T: Serialize>(&self, name: &str, value: &T) -> io::Result<()> {
        self.write_bytes(Path::new(name), &serde_json::to_vec(value)?)
    }

    fn write_bytes(&self, name: &Path, bytes: &[u8]) -> io::Result<()> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let aside = self.dir.join(format!(".aside.{}.{count}", std::process::id()));
        let path = self.dir.join(name);
        let written = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&aside)
            .and_then(|mut file| file.write_all(bytes))
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

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    #[test]
    fn files_are_there_before_the_spec_for_nobody_else_and_nowhere_else() {
        use std::os::unix::fs::PermissionsExt;
        let scratch = tempfile::tempdir().expect("a folder");
        let folder = Folder { dir: scratch.path().join("one") };
        folder.create().expect("it can be made");
        let mut spec = crate::runtime::conformance::script("one", "", scratch.path());
        spec.files.insert("a.json".into(), "{}".into());
        for _ in 0..2 {
            folder.write_spec(&spec).expect("it is written, a second time too");
        }
        let files = folder.dir.join(FILES);
        assert_eq!(fs::read_to_string(files.join("a.json")).expect("it is there"), "{}");
        let mode = |path: &Path| fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
        assert_eq!((mode(&files), mode(&files.join("a.json"))), (0o700, 0o600));
        assert_eq!(fs::read_dir(&files).expect("it is there").count(), 1);

        for name in ["../a", "", ".a", "/a"] {
            let mut spec = crate::runtime::conformance::script("one", "", scratch.path());
            spec.files.insert(name.into(), String::new());
            assert_eq!(folder.write_spec(&spec).map_err(|error| error.kind()), Err(io::ErrorKind::InvalidInput));
        }
    }

    #[test]
    fn a_machine_that_is_short_of_something_is_asked_again() {
        let refusal = |errno: Errno| Refusal::new(&errno.into(), String::new());
        for errno in [Errno::NOENT, Errno::ACCESS, Errno::PERM, Errno::NOEXEC, Errno::NOTDIR, Errno::LOOP] {
            assert_eq!(refusal(errno), Refusal::Unstartable(String::new()), "{errno}");
        }
        for errno in [Errno::MFILE, Errno::NFILE, Errno::AGAIN, Errno::NOMEM, Errno::TXTBSY, Errno::IO, Errno::SRCH] {
            assert_eq!(refusal(errno), Refusal::Failed(String::new()), "{errno}");
        }
        // The standard library's own, such as a zero byte in an argument, which has no number.
        let zero = io::Error::from(io::ErrorKind::InvalidInput);
        assert_eq!(Refusal::new(&zero, String::new()), Refusal::Unstartable(String::new()));
    }
}
