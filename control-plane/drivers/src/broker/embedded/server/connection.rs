//! One client: frames in to the engine, frames out from it. A client that has been silent for its session loses its consumers,
//! and is heard again if it wakes up.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use super::Shared;
use crate::broker::BrokerError;
use crate::broker::embedded::codec::{Frame, Malformed};
use crate::broker::embedded::engine::{Command, Join};
use crate::broker::embedded::outbox::{Outbound, Outbox, Reply};
use crate::broker::embedded::protocol::{self, Ask, Browse, Consume, Hello, VERSION, json, kind, malformed};
use crate::broker::embedded::store::view::ViewRequest;

/// What is read at once.
const CHUNK: usize = 64 << 10;
/// Sessions of silence after which a connection is closed.
const PATIENCE: u32 = 10;
const SHORTEST_SESSION: Duration = Duration::from_millis(100);
const LONGEST_SESSION: Duration = Duration::from_secs(600);

pub(super) async fn serve<R, W>(mut read: R, write: W, shared: Shared)
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin + Send + 'static,
{
    let id = shared.next_connection();
    let (outbox, out) = Outbox::new(id);
    let writer = tokio::spawn(self::write(write, out, Arc::clone(&outbox), shared.engine.clone()));
    let mut buffer = BytesMut::with_capacity(CHUNK);
    let ended = tokio::select! {
        ended = talk(&mut read, &mut buffer, &outbox, &shared) => ended,
        () = outbox.overflown() => Err(Ended::Protocol("what it is sent is not read")),
    };
    if let Err(why) = ended {
        tracing::debug!(connection = id, %why, "a client's connection ended");
    }
    let _ = shared.engine.send(Command::Gone { connection: id }).await;
    writer.abort();
}

#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error("a frame cannot be understood: {0}")]
    Malformed(#[from] Malformed),
    #[error("{0}")]
    Protocol(&'static str),
}

async fn talk<R: AsyncRead + Unpin>(
    read: &mut R,
    buffer: &mut BytesMut,
    outbox: &Arc<Outbox>,
    shared: &Shared,
) -> Result<(), Ended> {
    let hello = tokio::time::timeout(Duration::from_secs(10), next(read, buffer)).await;
    let Ok(Some(frame)) = hello.map_err(|_| Ended::Protocol("no greeting"))? else { return Ok(()) };
    let reply = outbox.reply(frame.id, None).await;
    let hello: Option<Hello> = serde_json::from_slice(&frame.body).ok();
    let Some(hello) = hello.filter(|hello| frame.kind == kind::HELLO && hello.version == VERSION) else {
        reply.failed(&BrokerError::Refused(format!("it speaks version {VERSION} of the protocol")));
        // Time for the refusal to be written; the other side closes.
        let _ = tokio::time::timeout(Duration::from_secs(1), next(read, buffer)).await;
        return Err(Ended::Protocol("another version"));
    };
    reply.done(json(&Hello { version: VERSION, session_ms: hello.session_ms }));
    let session = Duration::from_millis(hello.session_ms).clamp(SHORTEST_SESSION, LONGEST_SESSION);
    let mut silences = 0;
    loop {
        match tokio::time::timeout(session, next(read, buffer)).await {
            Ok(frame) => match frame? {
                Some(frame) => {
                    silences = 0;
                    if frame.kind == kind::PING {
                        outbox.control(kind::PONG, frame.id);
                    } else if !alive(outbox, session, pass_on(frame, outbox, shared)).await? {
                        return Ok(());
                    }
                }
                None => return Ok(()),
            },
            Err(_) => {
                silences += 1;
                if silences == 1 {
                    tracing::warn!(connection = outbox.id, ?session, "a client is silent: others get its messages");
                }
                if silences > PATIENCE || shared.engine.send(Command::Gone { connection: outbox.id }).await.is_err() {
                    return Err(Ended::Protocol("silence"));
                }
            }
        }
    }
}

/// Waits for `done`, and lets the client know meanwhile that somebody is here: the engine may be waiting for the disk.
async fn alive<T>(outbox: &Outbox, session: Duration, done: impl Future<Output = T>) -> T {
    let mut done = std::pin::pin!(done);
    loop {
        match tokio::time::timeout(session / 3, &mut done).await {
            Ok(value) => return value,
            Err(_) => outbox.control(kind::PONG, 0),
        }
    }
}

/// The next frame; `None` at the end. May be dropped and called again.
async fn next<R: AsyncRead + Unpin>(read: &mut R, buffer: &mut BytesMut) -> Result<Option<Frame>, Ended> {
    loop {
        if let Some(frame) = Frame::take(buffer)? {
            return Ok(Some(frame));
        }
        buffer.reserve(CHUNK);
        if read.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
}

/// Gives a request to the engine; `false` when that is gone.
async fn pass_on(frame: Frame, outbox: &Arc<Outbox>, shared: &Shared) -> Result<bool, Ended> {
    let Frame { kind, id, body } = frame;
    if kind == kind::LEAVE {
        return Ok(shared.engine.send(Command::Leave { connection: outbox.id }).await.is_ok());
    }
    let size = u32::try_from(body.len() >> 10).unwrap_or(u32::MAX);
    let memory = Arc::clone(&shared.memory).acquire_many_owned(size + 1).await.ok();
    let reply = outbox.reply(id, memory).await;
    match command(kind, body, outbox, reply)? {
        Ok(command) => Ok(shared.engine.send(command).await.is_ok()),
        Err((reply, why)) => {
            reply.failed(&why);
            Ok(true)
        }
    }
}

type Understood = Result<Command, (Reply, BrokerError)>;

fn command(kind: u8, body: Bytes, outbox: &Arc<Outbox>, reply: Reply) -> Result<Understood, Ended> {
    let understood = match kind {
        kind::PUBLISH => match protocol::publish(body) {
            Ok((channel, messages)) => Ok(Command::Publish { channel, messages, reply }),
            Err(why) => Err((reply, malformed("what was published", why))),
        },
        kind::SETTLE => match protocol::settle(body) {
            Ok((consumer, settlements)) => Ok(Command::Settle { consumer, settlements, reply }),
            Err(why) => Err((reply, malformed("what was settled", why))),
        },
        kind::CONSUME => match serde_json::from_slice::<Consume>(&body) {
            Ok(Consume { channel, group, prefetch }) => {
                Ok(Command::Join(Join { channel, group, prefetch, outbox: Arc::clone(outbox), reply }))
            }
            Err(why) => Err((reply, malformed("who consumes", why))),
        },
        kind::ASK => match serde_json::from_slice::<Ask>(&body) {
            Ok(ask) => Ok(Command::Ask { ask, reply }),
            Err(why) => Err((reply, malformed("the request", why))),
        },
        kind::BROWSE => match serde_json::from_slice::<Browse>(&body) {
            Ok(browse) => Ok(Command::View(ViewRequest::Browse { browse, reply })),
            Err(why) => Err((reply, malformed("the request", why))),
        },
        _ => return Err(Malformed::Value(u64::from(kind)).into()),
    };
    Ok(understood)
}

async fn write<W: AsyncWrite + Unpin>(
    mut write: W,
    mut out: mpsc::Receiver<Outbound>,
    outbox: Arc<Outbox>,
    engine: mpsc::Sender<Command>,
) {
    let mut frames = Vec::with_capacity(256);
    let mut together = BytesMut::with_capacity(CHUNK);
    while out.recv_many(&mut frames, 256).await > 0 {
        for frame in &frames {
            together.extend_from_slice(&frame.bytes);
            if together.len() >= CHUNK && write.write_all_buf(&mut together).await.is_err() {
                return;
            }
        }
        if write.write_all_buf(&mut together).await.is_err() {
            return;
        }
        together.clear();
        let mut starved = false;
        for frame in frames.drain(..) {
            starved |= outbox.written(&frame);
        }
        if starved && engine.send(Command::Drained { connection: outbox.id }).await.is_err() {
            return;
        }
    }
}
