//! The control plane: owns desired and observed state of one state directory.
//!
//! `server` listens, `control` decides, `execute` does, `hub` tells, `store` remembers. One loop owns the truth; everybody
//! else sends it messages and holds snapshots.

mod adopt;
mod audit;
mod breakers;
mod control;
mod dead_letters;
mod execute;
mod gateways;
mod hub;
mod messaging;
mod monitor;
mod operate;
mod report;
mod server;
mod settle;
#[cfg(test)]
mod simulation;
mod state;
mod store;
mod traces;
mod view;
mod vitals;

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use meshctl_api::place::{self, DaemonRecord, SocketPath};
use meshctl_drivers::broker::SharedBroker;
use meshctl_drivers::broker::embedded::Client;
use meshctl_drivers::runtime::process::{ProcessRuntime, process_id};
use meshctl_drivers::runtime::{RuntimeError, SharedRuntime};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

use crate::audit::Audit;
use crate::control::{Control, Ended, Message};
use crate::dead_letters::DeadLetters;
use crate::execute::Executor;
use crate::hub::Hub;
use crate::messaging::Messaging;
use crate::messaging::couriers::{Couriers, ask_for_ever};
use crate::messaging::declare::declare_for_ever;
use crate::server::Shared;
use crate::state::State;
use crate::store::{Remembered, Store, StoreError};
use crate::traces::{Traces, follow_for_ever};
use crate::vitals::Samples;

pub use server::openapi;

/// Messages that may wait for the control loop; whoever sends more waits.
const INBOX: usize = 1024;

/// How a daemon is started.
#[derive(Clone, Debug)]
pub struct DaemonOptions {
    pub state_dir: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    #[error("cannot {attempt} {path}: {source}")]
    File { attempt: &'static str, path: String, source: io::Error },
    #[error("another daemon owns {0}; stop it first, or choose another --state-dir")]
    Owned(String),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error("cannot {attempt}: {source}")]
    System { attempt: &'static str, source: io::Error },
}

/// Runs until the system is down, or until SIGTERM or a hand-over, which leave everything running.
///
/// # Errors
/// When the state directory cannot be used, another daemon owns it, or what runs cannot be found out.
pub async fn run(options: DaemonOptions) -> Result<(), DaemonError> {
    let dir = absolute(&options.state_dir)?;
    let lock = own(&dir)?;
    let (store, remembered, damaged) = remember(&dir.join(place::STORE))?;
    let mut state = State::restore(remembered, offset(&dir));
    if let Some(aside) = damaged {
        let message = format!("the state was damaged and is set aside as {aside}; what runs is not known and is ended");
        state.warn("store.damaged", "system".into(), message);
    }

    let executable = std::env::current_exe()
        .map_err(|source| DaemonError::System { attempt: "find the executable of meshctl", source })?;
    let runtime: SharedRuntime = Arc::new(ProcessRuntime::new(&dir, executable.clone()).map_err(file("use", &dir))?);
    adopt::adopt(&mut state, &runtime).await?;

    let (letters, damaged) = dead_letters::store::Store::open(&dir.join(place::DEAD_LETTERS))?;
    if let Some(aside) = damaged {
        let message =
            format!("the dead letters were damaged and are set aside as {aside}; new ones are kept from now on");
        state.warn("deadletters.damaged", "deadletters".into(), message);
    }

    let (sender, messages) = mpsc::channel(INBOX);
    let (traces, damaged) = Traces::open(&dir.join(place::TRACES), sender.clone())?;
    if let Some(aside) = damaged {
        let message = format!("the traces were damaged and are set aside as {aside}; new ones are kept from now on");
        state.warn("traces.damaged", "traces".into(), message);
    }
    let audit = Audit::new(letters.clone());
    let dead_letters = DeadLetters::new(letters, sender.clone());
    let hub = Hub::default();
    let executor = Executor { runtime: Arc::clone(&runtime), state_dir: dir.clone(), reports: sender.clone() };
    let build = meshctl_api::build::build().to_owned();
    let broker: SharedBroker = Arc::new(Client::new(&dir));
    let messaging =
        Messaging { broker: Arc::clone(&broker), letters: dead_letters.clone(), couriers: Couriers::default() };
    let (declaration, declarations) = watch::channel(None);
    let (living, lives) = watch::channel(BTreeMap::new());
    dead_letters.start(broker, lives, traces.clone());
    let kept = dir.join(meshctl_model::delivery::BROKER);
    tokio::spawn(declare_for_ever(declarations, living, messaging.clone(), kept, sender.clone()));
    let control = Control::new(state, store, hub.clone(), executor, declaration, build.clone());

    let socket = SocketPath::inside(&dir, place::SOCKET).map_err(file("open", &dir))?;
    let listener = listen(socket.as_path())?;
    note_daemon(&dir)?;
    let version = meshctl_api::view::Version {
        version: meshctl_api::build::VERSION.into(),
        pid: std::process::id(),
        executable: executable.display().to_string(),
        build,
        started_at: Timestamp::now(),
        state_dir: dir.display().to_string(),
    };
    let couriers = messaging.couriers.clone();
    let samples = Samples::default();
    let shared = Shared {
        messages: sender.clone(),
        hub,
        runtime,
        version: Arc::new(version),
        messaging,
        dead_letters,
        audit,
        traces: traces.clone(),
        samples: samples.clone(),
    };
    tokio::spawn(ask_for_ever(shared.clone(), couriers));
    tokio::spawn(follow_for_ever(shared.clone(), traces));
    tokio::spawn(samples.sample_for_ever(shared.clone()));
    let server = tokio::spawn(server::serve(listener, shared));
    leave_on_signal(sender)?;
    tracing::info!(state_dir = %dir.display(), "the daemon listens");

    let ended = control.run(messages).await;
    // Watchers hear the last word before the connections close.
    tokio::time::sleep(Duration::from_millis(100)).await;
    server.abort();
    let _ = std::fs::remove_file(socket.as_path());
    if ended == Ended::Down {
        let _ = std::fs::remove_file(dir.join(place::DAEMON));
        let _ = std::fs::remove_dir_all(dir.join("gateways"));
    }
    drop(lock);
    tracing::info!(?ended, "the daemon ends");
    Ok(())
}

fn file(attempt: &'static str, path: &Path) -> impl Fn(io::Error) -> DaemonError {
    let path = path.display().to_string();
    move |source| DaemonError::File { attempt, path: path.clone(), source }
}

fn absolute(dir: &Path) -> Result<PathBuf, DaemonError> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(file("create", dir))?;
    dir.canonicalize().map_err(file("open", dir))
}

/// One daemon for one state directory: the kernel keeps the lock, and gives it back however the daemon ends.
fn own(dir: &Path) -> Result<File, DaemonError> {
    let path = dir.join(place::LOCK);
    let lock = File::create(&path).map_err(file("open", &path))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(DaemonError::Owned(dir.display().to_string())),
        Err(TryLockError::Error(source)) => Err(file("lock", &path)(source)),
    }
}

/// Opens the store. A damaged one is set aside, with the name that it has then, and a new one begun: a system that cannot be
/// stopped any more is worse than one whose history is elsewhere.
fn remember(path: &Path) -> Result<(Store, Remembered, Option<String>), StoreError> {
    let open = || Store::open(path).and_then(|store| store.remembered().map(|remembered| (store, remembered)));
    match open() {
        Ok((store, remembered)) => Ok((store, remembered, None)),
        Err(why) if why.is_damage() => {
            tracing::error!(%why, "setting a damaged state aside");
            let aside = store::set_aside(path);
            let (store, remembered) = open()?;
            Ok((store, remembered, Some(aside)))
        }
        Err(why) => Err(why),
    }
}

fn listen(path: &Path) -> Result<UnixListener, DaemonError> {
    // We hold the lock: a socket that is there is left over from a daemon that is gone.
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path).map_err(file("listen on", path))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(file("make private", path))?;
    Ok(listener)
}

fn note_daemon(dir: &Path) -> Result<(), DaemonError> {
    let pid = std::process::id();
    let start_time = process_id(pid).map_or(0, |process| process.start_time);
    let record = DaemonRecord { pid, start_time, version: meshctl_api::build::VERSION.into() };
    let path = dir.join(place::DAEMON);
    let text = serde_json::to_string(&record).unwrap_or_default();
    let partial = path.with_extension("json.new");
    std::fs::write(&partial, text).and_then(|()| std::fs::rename(&partial, &path)).map_err(file("write", &path))
}

/// Where the search for ports begins: different for different state directories, the same after a restart.
fn offset(dir: &Path) -> u16 {
    use sha2::{Digest, Sha256};
    let digest = Sha256::digest(dir.as_os_str().as_encoded_bytes());
    u16::from_le_bytes([digest[0], digest[1]]) % 10_000
}

/// Ending the daemon does not end the system: what runs is found again by the next one.
fn leave_on_signal(messages: mpsc::Sender<Message>) -> Result<(), DaemonError> {
    let hook = |kind| signal(kind).map_err(|source| DaemonError::System { attempt: "listen for signals", source });
    let (mut terminate, mut interrupt) = (hook(SignalKind::terminate())?, hook(SignalKind::interrupt())?);
    // The terminal that started it may close; a handler that does nothing keeps the default from ending the daemon.
    let mut hangup = hook(SignalKind::hangup())?;
    tokio::spawn(async move { while hangup.recv().await.is_some() {} });
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("asked to end; the services run on, and `meshctl down` ends them");
        let _ = messages.send(Message::Leave { reply: None }).await;
    });
    Ok(())
}
