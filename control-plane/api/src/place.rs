//! Where things are inside a state directory. One state directory is one daemon.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The daemon's Unix socket.
pub const SOCKET: &str = "meshctl.sock";
/// Present while a daemon owns the directory: a [`DaemonRecord`] as JSON.
pub const DAEMON: &str = "daemon.json";
/// The daemon's own log.
pub const DAEMON_LOG: &str = "daemon.log";
/// Held locked by the daemon for as long as it lives.
pub const LOCK: &str = "lock";
/// Desired state, events, allocations.
pub const STORE: &str = "state.db";
/// Dead letters, replays, the audit.
pub const DEAD_LETTERS: &str = "deadletters.db";

/// What requests and messages passed through.
pub const TRACES: &str = "traces.db";

/// Who owns a state directory, so that it can be told alive from dead without asking it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DaemonRecord {
    pub pid: u32,
    /// Field 22 of `/proc/PID/stat`: clock ticks after boot. With it a reused pid is not mistaken for the daemon.
    pub start_time: u64,
    pub version: String,
}

/// A Unix socket's name inside `dir` that always fits: the kernel allows 107 bytes, and a state directory may be deeper
/// than that. The folder is kept open for as long as the value lives, and a long name goes through it.
#[derive(Debug)]
pub struct SocketPath {
    path: PathBuf,
    _folder: Option<File>,
}

impl SocketPath {
    /// In a folder that does not exist nobody listens: its name stays as it is, and connecting to it fails.
    ///
    /// # Errors
    /// When `dir` exists and cannot be opened.
    pub fn inside(dir: &Path, name: &str) -> io::Result<Self> {
        let path = dir.join(name);
        if path.as_os_str().len() <= 107 {
            return Ok(Self { path, _folder: None });
        }
        let folder = match File::open(dir) {
            Ok(folder) => folder,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self { path, _folder: None }),
            Err(error) => return Err(error),
        };
        let path = PathBuf::from(format!("/proc/self/fd/{}/{name}", folder.as_raw_fd()));
        Ok(Self { path, _folder: Some(folder) })
    }

    pub fn as_path(&self) -> &Path {
        &self.path
    }
}
