//! Connections to one endpoint from one thread.
//!
//! Few busy connections carry more than many: a thousand clients need not become a thousand upstream connections, which
//! cost both sides their caches. So beyond [`WIDTH`] a request waits for a connection that is about to come back, and
//! nobody waits for a slow response:
//! - when nothing has come back for [`STILL`], as many who wait as there are connections open their own, so that a slow
//!   instance has as many as it needs after a few of these moments;
//! - who has waited for [`PATIENCE`] opens one, too, one such request in each [`GROWTH`].
//!
//! How many there can be in all is for the edge's bulkhead to say. The connection used last is used next, so that a
//! burst's surplus grows idle and is closed.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use hyper::client::conn::http1::{self, SendRequest};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use crate::body::Upload;
use crate::clock::{self, nanos};
use crate::metrics::count;
use crate::socket::Socket;
use crate::worker::Worker;

/// Connections that are opened without a second thought.
const WIDTH: u32 = 32;
const STILL: Duration = Duration::from_millis(10);
const PATIENCE: Duration = Duration::from_millis(100);
const GROWTH: Duration = Duration::from_millis(20);
/// Shorter than what common servers allow (Node.js: 5 s): then we close first, and no request meets a connection that the
/// other side is just closing.
const IDLE: Duration = Duration::from_secs(4);

pub(crate) type Sender = SendRequest<Upload>;

#[derive(Default)]
pub(crate) struct Pool {
    idle: RefCell<Vec<(Sender, u64)>>,
    waiting: RefCell<VecDeque<Waiter>>,
    /// Connections that are open or being opened.
    open: Cell<u32>,
    came_back: Cell<u64>,
    watched: Cell<bool>,
    retired: Cell<bool>,
}

/// A request that waits. Its channel closing means: open one yourself.
struct Waiter {
    since: u64,
    turn: oneshot::Sender<Sender>,
}

impl Pool {
    /// An idle connection that is still good.
    fn idle(&self) -> Option<Sender> {
        let mut idle = self.idle.borrow_mut();
        while let Some((sender, _)) = idle.pop() {
            if sender.is_ready() {
                return Some(sender);
            }
        }
        None
    }

    /// A connection that is open already; `None` when it is time to open another.
    pub(crate) async fn take(self: &Rc<Self>) -> Option<Sender> {
        if let Some(sender) = self.idle() {
            return Some(sender);
        }
        if self.open.get() < WIDTH {
            return None;
        }
        let (turn, comes) = oneshot::channel();
        self.waiting.borrow_mut().push_back(Waiter { since: clock::now(), turn });
        if !self.watched.replace(true) {
            tokio::task::spawn_local(Rc::clone(self).watch_over_waiting());
        }
        comes.await.ok()
    }

    /// Takes a connection back once its response has been read.
    pub(crate) fn put(self: &Rc<Self>, mut sender: Sender) {
        if sender.is_ready() {
            return self.hand_on(sender);
        }
        // The body is read, but its connection has not been polled since: it becomes ready, or closes, in a moment.
        let pool = Rc::clone(self);
        tokio::task::spawn_local(async move {
            if sender.ready().await.is_ok() {
                pool.hand_on(sender);
            }
        });
    }

    fn hand_on(&self, mut sender: Sender) {
        let now = clock::now();
        self.came_back.set(now);
        let mut waiting = self.waiting.borrow_mut();
        while let Some(waiter) = waiting.pop_front() {
            match waiter.turn.send(sender) {
                Ok(()) => return,
                // It gave up waiting; the next one has not.
                Err(returned) => sender = returned,
            }
        }
        if !self.retired.get() {
            self.idle.borrow_mut().push((sender, now));
        }
    }

    async fn watch_over_waiting(self: Rc<Self>) {
        let mut grown = clock::now();
        loop {
            tokio::time::sleep(STILL).await;
            // When this thread itself was held up, what came back meanwhile is handled before it is missed.
            tokio::task::yield_now().await;
            tokio::task::yield_now().await;
            let now = clock::now();
            let mut waiting = self.waiting.borrow_mut();
            waiting.retain(|waiter| !waiter.turn.is_closed());
            let Some(oldest) = waiting.front().map(|waiter| waiter.since) else {
                self.watched.set(false);
                return;
            };
            if now.saturating_sub(self.came_back.get().max(oldest)) >= nanos(STILL) {
                let as_many = waiting.len().min(self.open.get() as usize);
                waiting.drain(..as_many);
            } else if now.saturating_sub(oldest) >= nanos(PATIENCE) && now.saturating_sub(grown) >= nanos(GROWTH) {
                grown = now;
                waiting.pop_front();
            }
        }
    }

    pub(crate) fn close_idle(&self, now: u64) {
        let fresh = |(sender, since): &(Sender, u64)| now.saturating_sub(*since) < nanos(IDLE) && !sender.is_closed();
        self.idle.borrow_mut().retain(fresh);
    }

    /// The endpoint is gone: idle connections close, those in use when their response ends.
    pub(crate) fn retire(&self) {
        self.retired.set(true);
        self.idle.borrow_mut().clear();
    }
}

/// Counts an open connection, until dropped.
struct Open {
    pool: Rc<Pool>,
    worker: Rc<Worker>,
}

impl Open {
    fn new(pool: &Rc<Pool>, worker: &Rc<Worker>) -> Self {
        pool.open.set(pool.open.get() + 1);
        count(&worker.vitals().upstream_connections, 1);
        Self { pool: Rc::clone(pool), worker: Rc::clone(worker) }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.pool.open.set(self.pool.open.get() - 1);
        count(&self.worker.vitals().upstream_connections, 1u64.wrapping_neg());
        // One that waits could have taken its place: it opens its own.
        let _its_turn = self.pool.waiting.borrow_mut().pop_front();
    }
}

/// Opens a connection and sees to it for as long as it lives.
///
/// # Errors
/// Why the endpoint could not be reached.
pub(crate) async fn connect(address: SocketAddr, pool: &Rc<Pool>, worker: &Rc<Worker>) -> std::io::Result<Sender> {
    let open = Open::new(pool, worker);
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) =
        http1::Builder::new().handshake(Socket::of_instance(stream)).await.map_err(std::io::Error::other)?;
    count(&worker.vitals().upstream_opened, 1);
    tokio::task::spawn_local(async move {
        let _open = open;
        // Whoever waits for the response is told of an error; there is nobody else to tell.
        let _told = connection.with_upgrades().await;
    });
    Ok(sender)
}
