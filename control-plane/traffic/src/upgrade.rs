//! Connections that changed their protocol (WebSocket): bytes are carried both ways until either side ends or both have
//! been silent for the limit. A gateway that ends or hands over cuts them off when its time to drain is over.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use crate::stack::Exchange;
use crate::worker::Worker;

/// Carries the connection in a task of its own. `exchange` is held until it ends: it counts as a request under way.
pub(crate) fn spawn(worker: &Rc<Worker>, ours: OnUpgrade, theirs: OnUpgrade, idle: Duration, exchange: Exchange) {
    let worker = Rc::clone(worker);
    tokio::task::spawn_local(async move {
        let _tunnel = worker.tunnel();
        let _exchange = exchange;
        if let Err(error) = carry(ours, theirs, idle).await {
            tracing::debug!(%error, "an upgraded connection ended");
        }
    });
}

async fn carry(ours: OnUpgrade, theirs: OnUpgrade, idle: Duration) -> Result<(), Box<dyn std::error::Error>> {
    let (client, instance) = tokio::try_join!(ours, theirs)?;
    let heard = Rc::new(Cell::new(Instant::now()));
    let mut client = Heard { io: TokioIo::new(client), heard: Rc::clone(&heard) };
    let mut instance = Heard { io: TokioIo::new(instance), heard: Rc::clone(&heard) };
    let silence = async {
        while heard.get().elapsed() < idle {
            tokio::time::sleep_until(heard.get() + idle).await;
        }
    };
    tokio::select! {
        carried = tokio::io::copy_bidirectional(&mut client, &mut instance) => { carried?; }
        () = silence => {}
    }
    Ok(())
}

/// Notes when something was last read.
struct Heard<I> {
    io: I,
    heard: Rc<Cell<Instant>>,
}

impl<I: AsyncRead + Unpin> AsyncRead for Heard<I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        self.heard.set(Instant::now());
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Heard<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
