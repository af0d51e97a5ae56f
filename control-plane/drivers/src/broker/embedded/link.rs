//! One connection to a broker: requests out, answers and deliveries in, a ping now and then. It is never
//! mended; whoever needs one makes another.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::client::Address;
use super::codec::{FRAME_HEAD, Frame, LONGEST_FRAME, frame};
use super::place::SOCKET;
use super::protocol::{Hello, VERSION, deliveries, json, kind};
use crate::broker::{BrokerError, Delivery};
use crate::socket_path::SocketPath;

/// Frames that wait to be written; publishers wait behind them.
const QUEUE: usize = 1024;
/// Requests in memory that are not written yet, in KiB: two of the longest.
const MEMORY_KIB: usize = 2 * (LONGEST_FRAME >> 10) + 2;
const CHUNK: usize = 64 << 10;
/// How long a broker may take to accept a connection.
const CONNECTING: Duration = Duration::from_secs(5);

type Answer = Result<Bytes, BrokerError>;

pub struct Link {
    frames: mpsc::Sender<Request>,
    memory: Arc<Semaphore>,
    waiting: Arc<Waiting>,
    next: AtomicU64,
}

/// A request on its way, and the memory that it holds until it is written.
struct Request {
    frame: Bytes,
    _memory: Option<OwnedSemaphorePermit>,
}

/// Who waits for answers; `None` once there will be none.
struct Waiting(Mutex<Option<HashMap<u64, oneshot::Sender<Answer>>>>);

impl Waiting {
    fn with<T>(&self, act: impl FnOnce(&mut Option<HashMap<u64, oneshot::Sender<Answer>>>) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn answer(&self, id: u64, answer: Answer) {
        if let Some(waiting) = self.with(|all| all.as_mut().and_then(|all| all.remove(&id))) {
            // Who does not wait any more does not care.
            let _ = waiting.send(answer);
        }
    }

    fn close(&self, why: &str) {
        for (_, waiting) in self.with(Option::take).unwrap_or_default() {
            let _ = waiting.send(Err(BrokerError::Unknown(why.to_owned())));
        }
    }
}

impl Link {
    /// Connects and greets. Deliveries of the connection's one consumer go to `deliveries`.
    pub async fn connect(
        address: &Address,
        session: Duration,
        deliveries: Option<mpsc::Sender<Delivery>>,
    ) -> Result<Self, BrokerError> {
        let unreachable = |why: String| BrokerError::Unreachable(why);
        let connecting = async {
            match address {
                Address::Folder(folder) => {
                    let at = |why| unreachable(format!("{}: {why}", folder.join(SOCKET).display()));
                    let path = SocketPath::inside(folder, SOCKET).map_err(at)?;
                    let (read, write) = UnixStream::connect(path.as_path()).await.map_err(at)?.into_split();
                    Ok(Self::start(read, write, session, deliveries))
                }
                Address::Tcp(address) => {
                    let at = |why| unreachable(format!("{address}: {why}"));
                    let stream = TcpStream::connect(address).await.map_err(at)?;
                    stream.set_nodelay(true).map_err(at)?;
                    let (read, write) = stream.into_split();
                    Ok(Self::start(read, write, session, deliveries))
                }
            }
        };
        let greeted = async {
            let link = connecting.await?;
            let session_ms = u64::try_from(session.as_millis()).unwrap_or(u64::MAX);
            let hello = json(&Hello { version: VERSION, session_ms });
            match link.request(kind::HELLO, hello.len(), |out| out.put_slice(&hello)).await {
                Ok(_) => Ok(link),
                Err(BrokerError::Unknown(why)) => Err(unreachable(why)),
                Err(other) => Err(other),
            }
        };
        let late = |_| unreachable(format!("no greeting within {CONNECTING:?}"));
        tokio::time::timeout(CONNECTING, greeted).await.map_err(late)?
    }

    fn start<R, W>(read: R, write: W, session: Duration, deliveries: Option<mpsc::Sender<Delivery>>) -> Self
    where
        R: AsyncRead + Unpin + Send + 'static,
        W: AsyncWrite + Unpin + Send + 'static,
    {
        let (frames, out) = mpsc::channel(QUEUE);
        let waiting = Arc::new(Waiting(Mutex::new(Some(HashMap::new()))));
        tokio::spawn(write_all(write, out, session / 3));
        tokio::spawn(read_all(read, Arc::clone(&waiting), session, deliveries, frames.downgrade()));
        Self { frames, memory: Arc::new(Semaphore::new(MEMORY_KIB)), waiting, next: AtomicU64::new(1) }
    }

    pub fn is_closed(&self) -> bool {
        self.waiting.with(|all| all.is_none())
    }

    /// Asks; `size` is the most that `write` appends, and known before, so that what is too long is never made.
    pub async fn request(&self, kind: u8, size: usize, write: impl FnOnce(&mut BytesMut)) -> Answer {
        let closed = || BrokerError::Unreachable("the connection is closed".to_owned());
        if size > LONGEST_FRAME - FRAME_HEAD {
            let why = format!("{size} bytes in one request are too many; {LONGEST_FRAME} is the most");
            return Err(BrokerError::Refused(why));
        }
        let kib = u32::try_from(size >> 10).unwrap_or(u32::MAX) + 1;
        let memory = Arc::clone(&self.memory).acquire_many_owned(kib).await.ok();
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let request = Request { frame: frame(kind, id, write), _memory: memory };
        // A place in the queue first: so long as it is waited for, nothing has happened.
        let place = self.frames.reserve().await.map_err(|_| closed())?;
        let (answer, answered) = oneshot::channel();
        let entered = self.waiting.with(|all| all.as_mut().map(|all| all.insert(id, answer)).is_some());
        if !entered {
            return Err(closed());
        }
        place.send(request);
        answered.await.unwrap_or_else(|_| Err(BrokerError::Unknown("the connection ended".to_owned())))
    }
}

/// Ends when the link is dropped, which closes the connection.
async fn write_all<W: AsyncWrite + Unpin>(mut write: W, mut frames: mpsc::Receiver<Request>, pause: Duration) {
    let mut waiting = Vec::with_capacity(256);
    let mut together = BytesMut::with_capacity(CHUNK);
    let ping = frame(kind::PING, 0, |_| {});
    // Pings go by time, requests or not: an answer to a request may take longer than a session, one to a ping must not.
    let pause = pause.max(Duration::from_millis(1));
    let mut pings = tokio::time::interval_at(tokio::time::Instant::now() + pause, pause);
    pings.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            count = frames.recv_many(&mut waiting, 256) => match count {
                0 => break,
                _ => waiting.iter().for_each(|waiting| together.extend_from_slice(&waiting.frame)),
            },
            _ = pings.tick() => together.extend_from_slice(&ping),
        }
        if write.write_all_buf(&mut together).await.is_err() {
            return;
        }
        together.clear();
        waiting.clear();
    }
    let _ = write.shutdown().await;
}

async fn read_all<R: AsyncRead + Unpin>(
    mut read: R,
    waiting: Arc<Waiting>,
    session: Duration,
    mut out: Option<mpsc::Sender<Delivery>>,
    frames: mpsc::WeakSender<Request>,
) {
    let mut buffer = BytesMut::with_capacity(CHUNK);
    let why = loop {
        match Frame::take(&mut buffer) {
            Ok(Some(frame)) => {
                if let Err(why) = take_in(frame, &waiting, &mut out).await {
                    break why;
                }
                continue;
            }
            Ok(None) => {}
            Err(why) => break why.to_string(),
        }
        buffer.reserve(CHUNK);
        let unwanted = async {
            match &out {
                Some(out) => out.closed().await,
                None => std::future::pending().await,
            }
        };
        let read = tokio::select! {
            read = tokio::time::timeout(session, read.read_buf(&mut buffer)) => read,
            () = unwanted => {
                // Nobody receives the consumer's deliveries any more. What it holds can be settled on.
                out = None;
                if let Some(frames) = frames.upgrade() {
                    let _ = frames.send(Request { frame: frame(kind::LEAVE, 0, |_| {}), _memory: None }).await;
                }
                continue;
            }
        };
        match read {
            Ok(Ok(0)) => break "it closed the connection".to_owned(),
            Ok(Ok(_)) => {}
            Ok(Err(why)) => break why.to_string(),
            Err(_) => break format!("it said nothing for {session:?}"),
        }
    };
    waiting.close(&why);
}

async fn take_in(frame: Frame, waiting: &Waiting, out: &mut Option<mpsc::Sender<Delivery>>) -> Result<(), String> {
    match frame.kind {
        kind::DONE => waiting.answer(frame.id, Ok(frame.body)),
        kind::FAILED => {
            let why = serde_json::from_slice(&frame.body)
                .unwrap_or_else(|why| BrokerError::Refused(format!("for a reason that cannot be read: {why}")));
            waiting.answer(frame.id, Err(why));
        }
        kind::DELIVER => {
            for delivery in deliveries(frame.body).map_err(|why| why.to_string())? {
                if let Some(out) = out {
                    // Fails when nobody wants them any more; the broker has been told.
                    let _ = out.send(delivery).await;
                }
            }
        }
        kind::ENDED => *out = None,
        kind::PONG => {}
        other => return Err(format!("it sent a frame of kind {other}")),
    }
    Ok(())
}
