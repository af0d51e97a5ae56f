//! The broker's process: the lock on its folder, its sockets, its two threads, and its end.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::engine::{Command, Engine};
use super::metrics::Metrics;
use super::place::{FOLDER, LOCK, SOCKET};
use super::store::{StoreError, open, reader, view};
use crate::socket_path::SocketPath;

mod connection;
mod http;

/// Commands that wait for the engine; behind them, sockets are not read on.
const QUEUE: usize = 4096;
/// Bodies of requests in memory, in KiB, of all connections together.
const MEMORY_KIB: usize = 128 << 10;
const TICK: Duration = Duration::from_secs(1);

#[derive(Clone, Debug)]
pub struct Options {
    /// The system's; the broker's files are in its folder `broker`.
    pub state_dir: PathBuf,
    /// Where clients may connect by TCP, besides the Unix socket. Nobody is asked who he is there: loopback only.
    pub listen: Option<SocketAddr>,
    /// Of `/healthz` and `/metrics`, on 127.0.0.1.
    pub port: Option<u16>,
}

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("cannot {attempt} {what}: {why}")]
    Io { attempt: &'static str, what: String, why: io::Error },
    #[error("{0} is not a loopback address; the broker asks nobody who he is")]
    NotLoopback(SocketAddr),
    #[error("the broker's file: {0}")]
    Store(#[from] StoreError),
    #[error("the broker's {0} thread died")]
    Died(&'static str),
}

fn io(attempt: &'static str, what: impl std::fmt::Display) -> impl FnOnce(io::Error) -> ServeError {
    let what = what.to_string();
    move |why| ServeError::Io { attempt, what, why }
}

/// What every connection needs.
#[derive(Clone)]
struct Shared {
    engine: mpsc::Sender<Command>,
    memory: Arc<Semaphore>,
    connections: Arc<AtomicU64>,
    /// Whether the file is open.
    ready: Arc<AtomicBool>,
}

impl Shared {
    fn next_connection(&self) -> u64 {
        self.connections.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// Is the broker of a state directory until SIGTERM or SIGINT. A second one waits for the first to end.
///
/// # Errors
/// When it cannot have its folder, file, sockets or port, and when its file turns out to be damaged while it runs: starting
/// again repairs what can be repaired.
pub fn serve(options: &Options) -> Result<(), ServeError> {
    if let Some(address) = options.listen.filter(|address| !address.ip().is_loopback()) {
        return Err(ServeError::NotLoopback(address));
    }
    crate::descriptors::raise_limit();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(io("start", "the broker's event loop"))?;
    let folder = options.state_dir.join(FOLDER);
    DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(io("create", folder.display()))?;
    // It may have been there: nobody else may come to the socket and the file, from the moment they are made.
    std::fs::set_permissions(&folder, Permissions::from_mode(0o700)).map_err(io("protect", folder.display()))?;
    runtime.block_on(run(options, &folder))
}

async fn run(options: &Options, folder: &Path) -> Result<(), ServeError> {
    let mut end = End::listen()?;
    let Some(lock) = lock(folder, &mut end).await? else { return Ok(()) };
    let metrics = Arc::new(Metrics::default());
    let (engine, commands) = mpsc::channel(QUEUE);
    let shared = Shared {
        engine: engine.clone(),
        memory: Arc::new(Semaphore::new(MEMORY_KIB)),
        connections: Arc::default(),
        ready: Arc::default(),
    };
    // Before the file is open, which may take minutes: whoever watches this process sees that it is at work.
    if let Some(port) = options.port {
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let listener = TcpListener::bind(address).await.map_err(io("listen on", address))?;
        tokio::spawn(http::serve(listener, shared.clone(), Arc::clone(&metrics)));
    }
    let mut opening = open_aside(folder, &lock)?;
    let opened = tokio::select! {
        // A salvage can be interrupted anywhere; the thread ends with the process.
        () = end.asked() => return Ok(()),
        opened = &mut opening => opened.map_err(|_| ServeError::Died("opening"))??,
    };
    let (working, mut ended) = mpsc::channel::<()>(1);
    let (answering, mut view_ended) = mpsc::channel::<()>(1);
    let threads = start(opened, folder, metrics, (engine.clone(), commands), (working, answering))?;
    let socket = bind(folder)?;
    let tcp = match options.listen {
        Some(address) => Some(TcpListener::bind(address).await.map_err(io("listen on", address))?),
        None => None,
    };
    shared.ready.store(true, Ordering::Release);
    tracing::info!(folder = %folder.display(), "the broker is ready");
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            () = end.asked() => break,
            _ = ended.recv() => break,
            _ = view_ended.recv() => break,
            // A tick that finds the queue full is made up for by the next.
            _ = ticks.tick() => drop(engine.try_send(Command::Tick)),
            accepted = socket.accept() => match accepted {
                Ok((stream, _)) => {
                    let (read, write) = stream.into_split();
                    tokio::spawn(connection::serve(read, write, shared.clone()));
                }
                Err(why) => wait_after(&why).await,
            },
            accepted = accept(tcp.as_ref()) => match accepted {
                Ok(stream) => {
                    let (read, write) = stream.into_split();
                    tokio::spawn(connection::serve(read, write, shared.clone()));
                }
                Err(why) => wait_after(&why).await,
            },
        }
    }
    let _ = engine.send(Command::Stop).await;
    let outcome = tokio::task::spawn_blocking(move || (threads.writer.join(), threads.view.join())).await;
    match outcome {
        Ok((Ok(Ok(())), Err(_))) => Err(ServeError::Died("view")),
        Ok((Ok(outcome), _)) => Ok(outcome?),
        _ => Err(ServeError::Died("writer")),
    }
}

struct Threads {
    writer: JoinHandle<Result<(), StoreError>>,
    /// Ends when the writer has ended.
    view: JoinHandle<()>,
}

/// Opens the file on a thread of its own, which keeps the folder locked for as long as it works on it.
fn open_aside(
    folder: &Path,
    lock: &Arc<File>,
) -> Result<oneshot::Receiver<Result<open::Opened, StoreError>>, ServeError> {
    let (sender, receiver) = oneshot::channel();
    let (folder, lock) = (folder.to_owned(), Arc::clone(lock));
    let thread = std::thread::Builder::new().name("opening".to_owned()).spawn(move || {
        // Nobody waits for it any more where the broker was told to end.
        drop(sender.send(open::open(&folder)));
        drop(lock);
    });
    thread.map_err(io("start", "a thread"))?;
    Ok(receiver)
}

/// Starts the threads that write and read the file. `working` and `answering` are dropped when they end.
fn start(
    opened: open::Opened,
    folder: &Path,
    metrics: Arc<Metrics>,
    (sender, commands): (mpsc::Sender<Command>, mpsc::Receiver<Command>),
    (working, answering): (mpsc::Sender<()>, mpsc::Sender<()>),
) -> Result<Threads, ServeError> {
    let database = reader(&opened.path).map_err(StoreError::from)?;
    let (views, requests) = std::sync::mpsc::sync_channel(64);
    let engine = Engine::new(opened, folder.to_owned(), views, metrics)?;
    let view = std::thread::Builder::new().name("view".to_owned()).spawn(move || {
        let _answering = answering;
        view::run(&database, &requests, &sender);
    });
    let view = view.map_err(io("start", "a thread"))?;
    let writer = std::thread::Builder::new().name("engine".to_owned()).spawn(move || {
        let _working = working;
        engine.run(commands)
    });
    Ok(Threads { writer: writer.map_err(io("start", "a thread"))?, view })
}

async fn accept(listener: Option<&TcpListener>) -> io::Result<tokio::net::TcpStream> {
    match listener {
        Some(listener) => {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            Ok(stream)
        }
        None => std::future::pending().await,
    }
}

/// Out of descriptors, for one: trying again at once would burn a core.
async fn wait_after(why: &io::Error) {
    tracing::warn!(%why, "a connection could not be accepted");
    tokio::time::sleep(Duration::from_millis(100)).await;
}

/// Listens where only the user's own processes may connect.
fn bind(folder: &Path) -> Result<UnixListener, ServeError> {
    let path = SocketPath::inside(folder, SOCKET).map_err(io("open", folder.display()))?;
    // Whoever left it is gone: the folder is locked.
    match std::fs::remove_file(path.as_path()) {
        Err(why) if why.kind() != io::ErrorKind::NotFound => return Err(io("remove", path.as_path().display())(why)),
        _ => {}
    }
    let listener = UnixListener::bind(path.as_path()).map_err(io("listen on", folder.join(SOCKET).display()))?;
    std::fs::set_permissions(path.as_path(), Permissions::from_mode(0o600)).map_err(io("protect", SOCKET))?;
    Ok(listener)
}

/// Waits for the folder; `None` when asked to end before that.
async fn lock(folder: &Path, end: &mut End) -> Result<Option<Arc<File>>, ServeError> {
    let path = folder.join(LOCK);
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(io("open", path.display()))?;
    let mut told = false;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Some(Arc::new(file))),
            Err(rustix::io::Errno::WOULDBLOCK) => {}
            Err(why) => return Err(io("lock", path.display())(why.into())),
        }
        if !std::mem::replace(&mut told, true) {
            tracing::info!(lock = %path.display(), "another broker has this folder; waiting for it to end");
        }
        tokio::select! {
            () = end.asked() => return Ok(None),
            () = tokio::time::sleep(Duration::from_millis(50)) => {}
        }
    }
}

struct End {
    terminate: Signal,
    interrupt: Signal,
}

impl End {
    fn listen() -> Result<Self, ServeError> {
        let listen = |kind| signal(kind).map_err(io("listen to", "signals"));
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    async fn asked(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
