//! An instance: one running copy of a service, from what starts it to what became of it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::units::{Bytes, Span};

/// Everything a runtime needs to start one instance. Nothing is left to choose: names, ports and addresses are filled in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InstanceSpec {
    /// Unique in a state directory for ever: `orders-3`.
    pub id: String,
    pub service: String,
    pub program: Program,
    /// Literal values and files; a file is read by the runtime when the instance starts.
    pub env: BTreeMap<String, SpecEnv>,
    /// Files that the runtime writes before the instance starts, in a folder of its own which `MESHCTL_FILES` names: name and content.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub files: BTreeMap<String, String>,
    /// Absolute.
    pub working_dir: String,
    /// The port that the program is expected to listen on, on 127.0.0.1.
    pub port: Option<u16>,
    pub health: Probe,
    /// Between SIGTERM and SIGKILL.
    pub grace: Span,
    pub resources: crate::topology::Resources,
    /// A log file is rotated at this size,
    pub log_max_size: Bytes,
    /// and this many files are kept, the current one included.
    pub log_files: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Program {
    /// A role of meshctl's own executable, with its arguments: `["service", "orders"]`. The runtime knows the executable.
    Meshctl(Vec<String>),
    /// A program and its arguments.
    Command(Vec<String>),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum SpecEnv {
    Text(String),
    /// An absolute path.
    File(String),
}

/// How an instance is known to be ready and alive.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Probe {
    pub check: Check,
    pub interval: Span,
    pub timeout: Span,
    /// Failures in a row until it counts as unhealthy.
    pub failures: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Check {
    /// GET this path; 2xx and 3xx are healthy.
    Http(String),
    /// A TCP connection.
    Tcp,
    /// A program that exits 0.
    Exec(Vec<String>),
    /// Running is healthy.
    Running,
}

/// A process that cannot be mistaken for another: pids are reused, but not with the same start time in the same boot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProcessId {
    pub pid: u32,
    /// Field 22 of `/proc/PID/stat`: clock ticks after boot.
    pub start_time: u64,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
}

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Exit {
    pub at: jiff::Timestamp,
    pub code: Option<i32>,
    pub signal: Option<i32>,
    /// Whether we asked it to end.
    pub asked: bool,
    /// Why there is neither a code nor a signal, or why it never started: `cannot execute ./server: no such file`.
    pub reason: Option<String>,
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.reason, self.code, self.signal) {
            (Some(reason), _, _) => f.write_str(reason),
            (None, Some(code), _) => write!(f, "exited with status {code}"),
            (None, None, Some(signal)) => write!(f, "ended by signal {signal} ({})", signal_name(signal)),
            (None, None, None) => f.write_str("ended, how is not known"),
        }
    }
}

fn signal_name(signal: i32) -> &'static str {
    match signal {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL",
        11 => "SIGSEGV",
        13 => "SIGPIPE",
        15 => "SIGTERM",
        24 => "SIGXCPU",
        25 => "SIGXFSZ",
        _ => "other",
    }
}
