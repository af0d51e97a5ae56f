//! Runtimes start, stop and find instances. Drivers describe processes; only a runtime starts them.

use std::sync::Arc;

use jiff::Timestamp;
use meshctl_model::instance::{Exit, InstanceSpec, ProcessId};

use crate::Pending;

pub mod conformance;
pub mod probe;
pub mod process;

/// The contract of every runtime.
pub trait Runtime: Send + Sync {
    /// Starts an instance. Returns when its process exists, which is not yet readiness. Starting an id that is already
    /// running does not start a second one: it returns the running one.
    ///
    /// # Errors
    /// When no process could be made; none is left behind then. The reason is kept as its exit until [`Runtime::remove`].
    fn start<'a>(&'a self, spec: &'a InstanceSpec) -> Pending<'a, Result<Running, RuntimeError>>;

    /// Ends an instance and all its descendants: SIGTERM, the grace of its spec, SIGKILL. Returns when nothing of it runs any
    /// more; an instance that does not exist is already stopped.
    ///
    /// # Errors
    /// When something of it could not be ended.
    fn stop<'a>(&'a self, id: &'a str) -> Pending<'a, Result<Exit, RuntimeError>>;

    /// Completes when the instance has ended, however it ended, also for one that was adopted.
    fn exited<'a>(&'a self, id: &'a str) -> Pending<'a, Exit>;

    /// Every instance of this state directory that runs or has left something behind, for adoption after a restart of the daemon:
    /// found by recorded pid and start time, never by name. An instance of which too little can be read is left out or
    /// has ended for a reason that says so; it does not keep the others from being found.
    ///
    /// # Errors
    /// When it cannot be told at all what there is.
    fn list(&self) -> Pending<'_, Result<Vec<Found>, RuntimeError>>;

    /// Forgets a stopped instance: removes its files, logs included.
    fn remove<'a>(&'a self, id: &'a str) -> Pending<'a, Result<(), RuntimeError>>;

    /// Ends everything that bears this state directory's label and belongs to no instance any more; called when nothing
    /// should be left. Returns how many processes there were.
    ///
    /// # Errors
    /// When one of them cannot be ended.
    fn sweep(&self) -> Pending<'_, Result<usize, RuntimeError>>;

    /// The last `lines` of an instance's output that it kept, oldest first.
    fn tail<'a>(&'a self, id: &'a str, lines: usize) -> Pending<'a, Vec<Line>>;

    /// The output after `since` and, with `follow`, what comes, until the receiver is dropped.
    fn logs(&self, id: &str, since: Option<Timestamp>, follow: bool) -> tokio::sync::mpsc::Receiver<Line>;
}

/// A runtime that can be shared.
pub type SharedRuntime = Arc<dyn Runtime>;

/// A process that was started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// Of the program itself.
    pub process: ProcessId,
    pub started_at: Timestamp,
}

/// What [`Runtime::list`] finds.
#[derive(Clone, Debug)]
pub struct Found {
    pub spec: InstanceSpec,
    pub state: FoundState,
}

#[derive(Clone, Debug)]
pub enum FoundState {
    Running(Running),
    Ended(Exit),
}

/// One line of output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    pub at: Timestamp,
    pub stream: Stream,
    pub text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

#[derive(Clone, Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The program cannot be executed, a file of its environment cannot be read, its folder does not exist: trying again
    /// without a change will not help.
    #[error("cannot start {id}: {why}")]
    Unstartable { id: String, why: String },
    #[error("cannot {attempt} {id}: {why}")]
    Failed { attempt: &'static str, id: String, why: String },
}
