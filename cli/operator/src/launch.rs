//! Finding the daemon of a state directory, starting one, replacing one of an older build, and knowing that one is gone.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use meshctl_api::client::Client;
use meshctl_api::error::ErrorCode;
use meshctl_api::place::{DAEMON, DAEMON_LOG, DaemonRecord};
use meshctl_model::exit;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::failure::Failure;
use crate::session::{Session, replaces, skew};

/// How long a daemon may take to answer after its start: it first adopts what runs.
const START: Duration = Duration::from_secs(10);
/// How long a daemon may take to end after it was told to.
pub(crate) const END: Duration = Duration::from_secs(10);
/// Of two daemons that are started at once, one ends; the other has this long to say that it owns the directory.
const RIVAL: Duration = Duration::from_millis(500);
/// A log that has grown beyond this many bytes makes room for a new one when a daemon starts; one former log is kept.
const LOG_SIZE: u64 = 8 << 20;
/// How much of the log is shown when a daemon does not come up.
const LOG_LINES: usize = 20;

/// A daemon that answers: the one that runs, or a new one, where none runs or it is of a build that this one replaces.
pub(crate) async fn ensure(session: &Session) -> Result<Client, Failure> {
    match session.client()?.version().await {
        Ok(version) if replaces(&version) => {
            session.say(format_args!("the daemon (pid {}) runs {}: taking over", version.pid, skew(&version)));
            let client = session.client()?;
            let process = Process::of(version.pid);
            client.handover().await?;
            gone(process, version.pid).await?;
            start(session).await
        }
        Ok(version) => {
            session.warn_of_skew(&version);
            session.client()
        }
        Err(error) if error.code == ErrorCode::Unreachable => start(session).await,
        // A daemon that is there and silent owns the directory: another could not.
        Err(error) => Err(error.into()),
    }
}

/// Starts a daemon that outlives this command, and returns when it answers.
pub(crate) async fn start(session: &Session) -> Result<Client, Failure> {
    let executable = std::env::current_exe().map_err(|error| Failure::file("cannot find this executable", &error))?;
    start_from(&executable, session).await
}

async fn start_from(executable: &Path, session: &Session) -> Result<Client, Failure> {
    let dir = session.state_dir();
    let log_path = dir.join(DAEMON_LOG);
    let failed = |error: io::Error| Failure::file(format_args!("cannot start a daemon in {}", dir.display()), &error);
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
    make_room(&log_path).map_err(failed)?;
    let log = OpenOptions::new().create(true).append(true).mode(0o600).open(&log_path).map_err(failed)?;
    let log_begins = log.metadata().map_err(failed)?.len();
    let mut daemon = Command::new(executable)
        .arg("daemon")
        .arg("--state-dir")
        .arg(dir)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone().map_err(failed)?)
        .stderr(log)
        // Ctrl-C in this terminal is for this command.
        .process_group(0)
        .spawn()
        .map_err(failed)?;
    session.say(format_args!("started the daemon, pid {}, log {}", daemon.id(), log_path.display()));
    let client = session.client()?;
    answers(&client, &mut daemon, dir).await.map_err(|failure| {
        for line in last_lines(&log_path, log_begins) {
            session.say(format_args!("  | {line}"));
        }
        failure.hint(format!("its log is {}", log_path.display()))
    })?;
    Ok(client)
}

/// Moves a large log to `daemon.log.1`.
fn make_room(log: &Path) -> io::Result<()> {
    match std::fs::metadata(log) {
        Ok(file) if file.len() > LOG_SIZE => std::fs::rename(log, log.with_extension("log.1")),
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Returns when the daemon answers: this child, or another that was faster and owns the directory.
async fn answers(client: &Client, child: &mut Child, dir: &Path) -> Result<(), Failure> {
    let begun = Instant::now();
    let mut ended: Option<(Instant, ExitStatus)> = None;
    let mut pause = Duration::from_millis(1);
    loop {
        match client.version().await {
            Ok(_) => return Ok(()),
            Err(error) if !matches!(error.code, ErrorCode::Unreachable | ErrorCode::Unavailable) => {
                return Err(error.into());
            }
            Err(_) => {}
        }
        if ended.is_none() {
            ended = child.try_wait().ok().flatten().map(|status| (Instant::now(), status));
        }
        if let Some((at, status)) = ended
            && at.elapsed() > RIVAL
            && recorded(dir).is_none_or(|record| !is_alive(&record))
        {
            return Err(Failure::new(exit::FAILURE, format!("the daemon ended at once: {status}")));
        }
        if begun.elapsed() > START {
            return Err(Failure::new(exit::UNREACHABLE, format!("the daemon does not answer after {START:?}")));
        }
        // Nothing tells of a socket that is about to listen. The pauses grow with what has been waited already: waiting costs
        // little, and of a short wait little is wasted.
        tokio::time::sleep(pause).await;
        pause = (begun.elapsed() / 8).clamp(Duration::from_millis(1), Duration::from_millis(100));
    }
}

/// Who says to own `dir`.
pub(crate) fn recorded(dir: &Path) -> Option<DaemonRecord> {
    serde_json::from_slice(&std::fs::read(dir.join(DAEMON)).ok()?).ok()
}

/// Whether the daemon of a record still runs; another process with its pid does not count.
pub(crate) fn is_alive(record: &DaemonRecord) -> bool {
    start_time(record.pid) == Some(record.start_time)
}

/// Field 22 of `/proc/PID/stat`; `None` where no such process runs. A zombie has ended. The drivers read the same field of
/// their instances; these lines are written twice, because an operator's command is to know nothing of drivers.
fn start_time(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it, in parentheses, may contain anything.
    let mut fields = stat[stat.rfind(')')? + 1..].split_ascii_whitespace();
    let state = fields.next()?;
    if state == "Z" { None } else { fields.nth(18)?.parse().ok() }
}

/// A running process that can be waited for, though it is nobody's child.
#[derive(Debug)]
pub(crate) struct Process(Option<std::os::fd::OwnedFd>);

impl Process {
    /// Holds on to the process that has this pid now; if none has, it has ended already.
    pub(crate) fn of(pid: u32) -> Self {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        Self(pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()))
    }
}

/// Waits until `process` has ended.
///
/// # Errors
/// When it has not within [`END`].
pub(crate) async fn gone(process: Process, pid: u32) -> Result<(), Failure> {
    let Some(handle) = process.0 else { return Ok(()) };
    let limit = Timespec { tv_sec: END.as_secs().cast_signed(), tv_nsec: 0 };
    let ended = tokio::task::spawn_blocking(move || poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&limit)));
    match ended.await {
        Ok(Ok(1..)) => Ok(()),
        _ => Err(Failure::new(exit::TIMED_OUT, format!("the daemon (pid {pid}) has not ended after {END:?}"))
            .hint("look at its log, daemon.log in the state directory")),
    }
}

/// The end of what was written to a log after `from`.
fn last_lines(log: &Path, from: u64) -> Vec<String> {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(log)?;
        let end = file.metadata()?.len();
        file.seek(SeekFrom::Start(from.max(end.saturating_sub(64 << 10))))?;
        let mut text = Vec::new();
        file.read_to_end(&mut text)?;
        Ok(text)
    };
    let text = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_LINES)..].iter().map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use axum::{Json, Router, routing::get};
    use meshctl_api::place::SOCKET;
    use tokio::net::UnixListener;

    use super::*;
    use crate::args::{Globals, When};

    fn session(dir: &Path) -> Session {
        let globals = Globals { state_dir: Some(dir.to_owned()), color: When::Auto, quiet: true, verbose: 0 };
        Session::new(&globals).expect("a session")
    }

    /// An executable that does what `lines` say when it is started as a daemon.
    fn executable(dir: &Path, lines: &str) -> PathBuf {
        let path = dir.join("meshctl");
        std::fs::write(&path, format!("#!/bin/sh\n{lines}\n")).expect("written");
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o700)).expect("executable");
        path
    }

    #[tokio::test]
    async fn a_started_daemon_is_waited_for() {
        let dir = tempfile::tempdir().expect("a folder");
        let state_dir = dir.path().join("state");
        // It says with which words it was started, and stays; the socket opens only after that.
        let said = dir.path().join("said");
        rustix::fs::mkfifoat(rustix::fs::CWD, &said, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR).expect("a pipe");
        let executable = executable(dir.path(), &format!("echo $$ \"$@\" > {}; exec sleep 600", said.display()));
        let daemon = async {
            let words = tokio::fs::read_to_string(&said).await.expect("it was started");
            let listener = UnixListener::bind(state_dir.join(SOCKET)).expect("a socket");
            let version = serde_json::json!({
                "version": "0", "pid": 1, "executable": "", "build": "", "startedAt": "2026-11-23T10:00:00Z", "stateDir": ""
            });
            let router = Router::new().route("/v1/version", get(async move || Json(version)));
            tokio::spawn(async move { axum::serve(listener, router).await });
            words
        };
        let session = session(&state_dir);
        let (client, words) = tokio::join!(start_from(&executable, &session), daemon);
        assert_eq!(client.expect("it answers").version().await.expect("a version").version, "0");
        let (pid, words) = words.trim().split_once(' ').expect("a pid and words");
        let pid = pid.parse().ok().and_then(Pid::from_raw).expect("a pid");
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("it stayed");
        assert_eq!(words, format!("daemon --state-dir {}", state_dir.display()));
        let mode = std::os::unix::fs::PermissionsExt::mode(&state_dir.metadata().expect("made").permissions());
        assert_eq!(mode & 0o777, 0o700);
    }

    #[tokio::test]
    async fn a_daemon_that_ends_at_once_is_a_failure_with_its_last_words() {
        let dir = tempfile::tempdir().expect("a folder");
        let executable = executable(dir.path(), "echo cannot lock >&2; exit 3");
        let state_dir = dir.path().join("state");
        let failure = start_from(&executable, &session(&state_dir)).await.expect_err("it ended");
        assert_eq!(failure.exit, exit::FAILURE);
        assert!(failure.message.contains("exit status: 3"), "{}", failure.message);
        assert_eq!(last_lines(&state_dir.join(DAEMON_LOG), 0), ["cannot lock"]);
    }

    #[test]
    fn a_large_log_makes_room() {
        let dir = tempfile::tempdir().expect("a folder");
        let (log, former) = (dir.path().join(DAEMON_LOG), dir.path().join("daemon.log.1"));
        make_room(&log).expect("none yet is none too many");
        let file = File::create(&log).expect("made");
        file.set_len(LOG_SIZE).expect("grown");
        make_room(&log).expect("it has room");
        assert!(log.exists() && !former.exists());
        file.set_len(LOG_SIZE + 1).expect("grown");
        make_room(&log).expect("moved");
        assert!(!log.exists());
        assert_eq!(former.metadata().expect("kept").len(), LOG_SIZE + 1);
    }

    #[tokio::test]
    async fn the_end_of_a_process_is_noticed_whoever_started_it() {
        let mut child = Command::new("sleep").arg("600").spawn().expect("sleep runs");
        let record = DaemonRecord {
            pid: child.id(),
            start_time: start_time(child.id()).expect("it runs"),
            version: String::new(),
        };
        assert!(is_alive(&record));
        assert!(!is_alive(&DaemonRecord { start_time: record.start_time + 1, ..record.clone() }), "a reused pid");
        let process = Process::of(record.pid);
        child.kill().expect("it ran");
        gone(process, record.pid).await.expect("it ended");
        assert!(!is_alive(&record), "a zombie has ended");
        child.wait().expect("it ended");
        gone(Process::of(record.pid), record.pid).await.expect("it is gone");
    }
}
