//! A TCP socket as hyper reads and writes it.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::connection::Life;

/// A head with a short body is put together and sent as one piece, which the kernel takes faster than a list of pieces.
/// Anything longer is sent from where it lies.
const SHORT: usize = 1024;

pub(crate) struct Socket {
    io: TokioIo<TcpStream>,
    /// Of a client: told when something is read.
    life: Option<Arc<Life>>,
}

impl Socket {
    pub(crate) fn of_client(stream: TcpStream, life: Arc<Life>) -> Self {
        Self { io: TokioIo::new(stream), life: Some(life) }
    }

    pub(crate) fn of_instance(stream: TcpStream) -> Self {
        Self { io: TokioIo::new(stream), life: None }
    }

    fn wrote(&self) {
        if let Some(life) = &self.life {
            life.wrote();
        }
    }
}

impl Read for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        if let Some(life) = self.life.as_ref().filter(|life| life.may_hold_end()) {
            let mut next = [0];
            let mut next = tokio::io::ReadBuf::new(&mut next);
            if ready!(self.io.inner().poll_peek(cx, &mut next))? == 0 && life.holds_end() {
                return Poll::Pending;
            }
        }
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        if let Some(life) = &self.life {
            life.read();
        }
        Poll::Ready(Ok(()))
    }
}

impl Write for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.io).poll_write(cx, buf));
        self.wrote();
        Poll::Ready(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let [whole] = pieces {
            return self.poll_write(cx, whole);
        }
        if pieces.iter().map(|piece| piece.len()).sum::<usize>() > SHORT {
            let written = ready!(Pin::new(&mut self.io).poll_write_vectored(cx, pieces));
            self.wrote();
            return Poll::Ready(written);
        }
        let (mut together, mut length) = ([0; SHORT], 0);
        for piece in pieces {
            together[length..length + piece.len()].copy_from_slice(piece);
            length += piece.len();
        }
        self.poll_write(cx, &together[..length])
    }
}
