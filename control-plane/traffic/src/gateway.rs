//! The gateway process: a thread that controls, and one data-plane thread for each core.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use meshctl_drivers::gateway::embedded::place::ADMIN_SOCKET;
use meshctl_model::snapshot::Snapshot;
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::control::{Control, Refusal};
use crate::events::Events;
use crate::handover::{self, Ask};
use crate::name::Name;
use crate::plan::Memory;
use crate::worker::{self, Shared};
use crate::{admin, disk, listener, recent};

/// How long requests under way may go on once the gateway has been asked to end, or has handed over. An upgraded
/// connection (WebSocket) has no end of its own to wait for: it goes on for as long, and is then cut off; its client
/// connects again, to whoever serves by then.
const DRAIN_WITHIN: Duration = Duration::from_secs(30);
const LOOK_AFTER_EVERY: Duration = Duration::from_secs(5);

#[derive(Clone, Debug)]
pub struct GatewayOptions {
    /// Holds the snapshot and the sockets of this gateway; made if it is not there. One gateway to a folder: a newer one
    /// in the same folder takes over from the one that runs.
    pub dir: PathBuf,
    /// Where the gateways of one system agree about addresses that they share; without it nothing is shared.
    pub siblings: Option<PathBuf>,
    /// Data-plane threads; by default one for each core.
    pub threads: Option<usize>,
    /// Where to serve `/metrics` beside the admin socket.
    pub metrics: Option<SocketAddr>,
}

#[derive(Debug, thiserror::Error)]
pub enum GatewayRunError {
    #[error("cannot use {path} as a gateway's folder: {why}", path = path.display())]
    Folder { path: PathBuf, why: io::Error },
    #[error("cannot serve metrics on {address}: {why}")]
    Metrics { address: SocketAddr, why: io::Error },
    #[error("cannot start the gateway's threads: {0}")]
    Threads(io::Error),
    #[error(
        "a data-plane thread cannot go on, as the log says: nobody would accept the connections that it is still given"
    )]
    Worker,
    #[error("the gateway that runs in {path} does not hand over: {why}; end process first, or look at its log", path = path.display())]
    Handover { path: PathBuf, why: io::Error },
}

/// Runs a gateway until SIGTERM, SIGINT or a newer gateway ends it, and all that was under way has ended.
///
/// # Errors
/// When it cannot start. Once it serves, nothing ends it but being asked to, or a thread of its own that panics.
pub fn run(options: GatewayOptions) -> Result<(), GatewayRunError> {
    let folder = |why| GatewayRunError::Folder { path: options.dir.clone(), why };
    meshctl_drivers::descriptors::raise_limit();
    std::fs::create_dir_all(&options.dir).map_err(folder)?;
    let inheritance =
        handover::take(&options.dir).map_err(|why| GatewayRunError::Handover { path: options.dir.clone(), why })?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(tokio::runtime::LocalOptions::default())
        .map_err(GatewayRunError::Threads)?;
    runtime.block_on(serve(&options, inheritance))
}

async fn serve(options: &GatewayOptions, inheritance: Option<handover::Inheritance>) -> Result<(), GatewayRunError> {
    let folder = |why| GatewayRunError::Folder { path: options.dir.clone(), why };
    let mut terminate = signal(SignalKind::terminate()).map_err(GatewayRunError::Threads)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(GatewayRunError::Threads)?;

    let (snapshot, inherited, predecessor) = match inheritance.map(handover::Inheritance::split) {
        Some((snapshot, sockets, from)) => (snapshot, sockets, Some(from)),
        None => (saved(&options.dir), HashMap::new(), None),
    };
    let (control, threads) = start_workers(options)?;
    let control = Rc::new(control);
    match control.begin(snapshot, inherited).await {
        Ok(()) => {}
        Err(Refusal::WorkerGone) => return Err(GatewayRunError::Worker),
        Err(refusal) => tracing::error!(%refusal, "waiting for a snapshot: the saved one cannot be used"),
    }

    let (ask, mut asked) = mpsc::channel(1);
    let (admin, admin_name) =
        Name::give(&options.dir, ADMIN_SOCKET, |path| UnixListener::bind(path)).map_err(folder)?;
    serve_admin(admin, Rc::clone(&control));
    let expiring = Rc::clone(&control);
    tokio::task::spawn_local(async move { expiring.expire_breakers().await });
    let metrics = match options.metrics {
        Some(address) => Some(
            serve_metrics(address, predecessor.is_some(), Rc::clone(&control))
                .map_err(|why| GatewayRunError::Metrics { address, why })?,
        ),
        None => None,
    };
    let handover_name = handover::listen(&options.dir, ask).map_err(folder)?;
    if let Some(from) = predecessor {
        let told = tokio::task::spawn_blocking(move || handover::accepting(&from)).await;
        if let Err(error) = told.map_err(io::Error::other).flatten() {
            tracing::warn!(%error, "the gateway before this one did not say that it stopped accepting");
        }
    }
    tracing::info!(dir = %options.dir.display(), pid = std::process::id(), "the gateway is serving");

    let mut look_after = tokio::time::interval(LOOK_AFTER_EVERY);
    let mut note = tokio::time::interval(recent::NOTE_EVERY);
    let mut stopped = None;
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            () = control.shared.worker_lost.notified() => return Err(GatewayRunError::Worker),
            _ = look_after.tick() => control.look_after().await,
            _ = note.tick() => control.note().await,
            Some(ask) = asked.recv() => match ask {
                Ask::Legacy(answer) => {
                    let _waiting = answer.send(control.legacy().await);
                }
                Ask::Stop(answer) => {
                    stopped = Some(answer);
                    break;
                }
            },
        }
    }
    if let Some(metrics) = metrics {
        metrics.abort();
    }
    let handed_over = stopped.is_some();
    tracing::info!(handed_over, "the gateway accepts no more connections and lets its requests end");
    control.stop_accepting(handed_over).await;
    if let Some(stopped) = stopped {
        let _waiting = stopped.send(());
    } else {
        [admin_name, handover_name].iter().for_each(Name::remove);
    }
    control.drain(DRAIN_WITHIN).await;
    control.end();
    // All of them are waited for, whatever became of one.
    let ended: Vec<_> = threads.into_iter().map(std::thread::JoinHandle::join).collect();
    if ended.iter().all(Result::is_ok) { Ok(()) } else { Err(GatewayRunError::Worker) }
}

/// The snapshot on disk, or an empty one. A file that cannot be used is kept aside for whoever wants to know why.
fn saved(dir: &Path) -> Snapshot {
    disk::load(dir)
        .unwrap_or_else(|error| {
            tracing::error!(%error, dir = %dir.display(), "the saved snapshot cannot be read; waiting for one");
            disk::set_aside(dir);
            None
        })
        .unwrap_or_default()
}

fn start_workers(options: &GatewayOptions) -> Result<(Control, Vec<std::thread::JoinHandle<()>>), GatewayRunError> {
    let count = options.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from)).max(1);
    let events = Events::new();
    let mut memory = Memory::new(count, events.clone());
    let empty = memory
        .plan(Snapshot::default())
        .map(Arc::new)
        .map_err(|why| GatewayRunError::Threads(io::Error::other(why)))?;
    let shared = Arc::new(Shared::new(events, count));
    let (mut senders, mut threads) = (Vec::new(), Vec::new());
    for index in 0..count {
        let (sender, commands) = mpsc::channel(4);
        let thread = worker::spawn(index, Arc::clone(&empty), Arc::clone(&shared), commands);
        threads.push(thread.map_err(GatewayRunError::Threads)?);
        senders.push(sender);
    }
    Ok((Control::new(options.dir.clone(), options.siblings.clone(), shared, senders, memory, empty), threads))
}

fn serve_admin(listener: UnixListener, control: Rc<Control>) {
    tokio::task::spawn_local(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => drop(tokio::task::spawn_local(admin::serve(stream, Rc::clone(&control), false))),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept on the admin socket; waiting");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    });
}

fn serve_metrics(address: SocketAddr, beside: bool, control: Rc<Control>) -> io::Result<tokio::task::JoinHandle<()>> {
    let mut sockets = if beside { listener::join(address, 1) } else { listener::open(address, 1) }?;
    let socket = sockets.pop().ok_or_else(|| io::Error::other("no socket was opened"))?;
    let listener = TcpListener::from_std(socket)?;
    Ok(tokio::task::spawn_local(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => drop(tokio::task::spawn_local(admin::serve(stream, Rc::clone(&control), true))),
                Err(error) => {
                    tracing::warn!(%error, %address, "cannot accept on the metrics address; waiting");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }))
}
