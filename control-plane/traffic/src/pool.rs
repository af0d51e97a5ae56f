//! Connections to one endpoint from one thread. The one used last is used next, so that a burst's surplus grows idle
//! and is closed.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::body::Upload;
use crate::metrics::count;
use crate::worker::Worker;

/// Shorter than what common servers allow (Node.js: 5 s): then we close first, and no request meets a connection that the
/// other side is just closing.
const IDLE_NANOS: u64 = 4_000_000_000;

pub(crate) type Sender = SendRequest<Upload>;

#[derive(Default)]
pub(crate) struct Pool {
    idle: RefCell<Vec<(Sender, u64)>>,
    retired: Cell<bool>,
}

impl Pool {
    /// An idle connection that is still good.
    pub(crate) fn take(&self) -> Option<Sender> {
        let mut idle = self.idle.borrow_mut();
        while let Some((sender, _)) = idle.pop() {
            if sender.is_ready() {
                return Some(sender);
            }
        }
        None
    }

    /// Takes a connection back once its response has been read.
    pub(crate) fn put(self: &Rc<Self>, mut sender: Sender, now: u64) {
        if self.retired.get() || sender.is_closed() {
            return;
        }
        if sender.is_ready() {
            self.idle.borrow_mut().push((sender, now));
            return;
        }
        // The body is read, but its connection has not been polled since: it becomes ready, or closes, in a moment.
        let pool = Rc::clone(self);
        tokio::task::spawn_local(async move {
            if sender.ready().await.is_ok() && !pool.retired.get() {
                pool.idle.borrow_mut().push((sender, now));
            }
        });
    }

    pub(crate) fn close_idle(&self, now: u64) {
        self.idle.borrow_mut().retain(|(sender, since)| now.saturating_sub(*since) < IDLE_NANOS && !sender.is_closed());
    }

    /// The endpoint is gone: idle connections close, those in use when their response ends.
    pub(crate) fn retire(&self) {
        self.retired.set(true);
        self.idle.borrow_mut().clear();
    }
}

/// Opens a connection and sees to it for as long as it lives.
///
/// # Errors
/// Why the endpoint could not be reached.
pub(crate) async fn connect(address: std::net::SocketAddr, worker: &Rc<Worker>) -> std::io::Result<Sender> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) =
        http1::Builder::new().handshake(TokioIo::new(stream)).await.map_err(std::io::Error::other)?;
    let worker = Rc::clone(worker);
    count(&worker.vitals().upstream_opened, 1);
    count(&worker.vitals().upstream_connections, 1);
    tokio::task::spawn_local(async move {
        // Whoever waits for the response is told of an error; there is nobody else to tell.
        let _told = connection.with_upgrades().await;
        count(&worker.vitals().upstream_connections, 1u64.wrapping_neg());
    });
    Ok(sender)
}
