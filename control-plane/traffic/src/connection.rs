//! One client connection: HTTP/1.1 or, by prior knowledge, HTTP/2; its limits, and how it is asked to end.
//!
//! Time limits cost nothing per request: the socket notes the worker's slow clock when it reads, and the worker looks
//! over all its connections a few times a second.

use std::cell::RefCell;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::task::{Poll, Waker};
use std::time::Duration;

use http::header::CONNECTION;
use http::{HeaderValue, Request};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::TokioTimer;
use meshctl_model::snapshot::{Limits, Serves};
use tokio::net::TcpStream;

use crate::forwarded::Origin;
use crate::metrics::{Vitals, count};
use crate::socket::Socket;
use crate::spans::Seat;
use crate::stack;
use crate::worker::Worker;

/// HTTP/2 as servers have to be since the rapid-reset attacks.
const H2_STREAMS: u32 = 128;
const H2_PENDING_RESETS: usize = 20;
const H2_ERROR_RESETS: usize = 64;
const H2_PING_AFTER: Duration = Duration::from_secs(30);
const H2_PONG_WITHIN: Duration = Duration::from_secs(10);

/// The listener that a connection came in on; what stands behind it may change while the connection lives.
pub(crate) struct Entrance {
    pub(crate) address: SocketAddr,
    pub(crate) serves: RefCell<Serves>,
}

/// What a request knows of the connection that it came on.
pub(crate) struct Client {
    pub(crate) worker: Rc<Worker>,
    pub(crate) entrance: Rc<Entrance>,
    pub(crate) origin: Origin,
}

/// What the worker knows of a connection. Ticks are the worker's slow clock; 0 is "not".
pub(crate) struct Life {
    /// Since when a request head is being awaited to its end.
    head_since: AtomicU32,
    last_read: AtomicU32,
    requests: AtomicU32,
    wish: AtomicU32,
    wished_at: AtomicU32,
    http2: AtomicBool,
    /// Since when the end of what the client sends is held back, or the last write after that.
    end_since: AtomicU32,
    end_passes: AtomicBool,
    waker: OnceLock<Waker>,
    tick: Arc<AtomicU32>,
}

/// What is wished of a connection, each stronger than the one before.
///
/// An idle HTTP/1.1 connection cannot be closed without a risk: the client's next request may be on its way. So it is
/// first given the time to send one, whose response then says that it is the last.
const AFTER_NEXT: u32 = 1;
const WHEN_IDLE: u32 = 2;
const AT_ONCE: u32 = 3;
/// How long a client is given to send its next request, in ticks.
const LAST_CALL: u32 = 4;
/// How long a client that sends nothing more is taken for one that has only said its last (`shutdown(SHUT_WR)`) and
/// still listens, in ticks. One that is gone looks the same until something is written to it; without this limit its
/// requests would go on for nobody.
const STILL_LISTENING: u32 = 8;

impl Life {
    pub(crate) fn new(tick: &Arc<AtomicU32>) -> Self {
        let now = tick.load(Relaxed);
        Self {
            head_since: AtomicU32::new(now),
            last_read: AtomicU32::new(now),
            requests: AtomicU32::new(0),
            wish: AtomicU32::new(0),
            wished_at: AtomicU32::new(0),
            http2: AtomicBool::new(false),
            end_since: AtomicU32::new(0),
            end_passes: AtomicBool::new(false),
            waker: OnceLock::new(),
            tick: Arc::clone(tick),
        }
    }

    /// Ends it if it has been too slow or too quiet; limits in ticks.
    pub(crate) fn look_over(&self, head_limit: u32, idle_limit: u32) {
        let now = self.tick.load(Relaxed);
        let since = |tick: u32| now.wrapping_sub(tick);
        if self.requests.load(Relaxed) > 0 {
            let end = self.end_since.load(Relaxed);
            if end != 0 && since(end) > STILL_LISTENING && !self.end_passes.swap(true, Relaxed) {
                self.wake();
            }
            return;
        }
        let (head, last_read) = (self.head_since.load(Relaxed), self.last_read.load(Relaxed));
        if head != 0 && since(head) > head_limit && !self.http2.load(Relaxed) {
            self.end_at_once();
        } else if since(last_read) > idle_limit
            || self.ending() && since(last_read).min(since(self.wished_at.load(Relaxed))) >= LAST_CALL
        {
            self.wish(WHEN_IDLE);
        }
    }

    /// After the next response: `Connection: close`, or GOAWAY.
    pub(crate) fn end(&self) {
        if self.wish.load(Relaxed) == 0 {
            self.wished_at.store(self.tick.load(Relaxed), Relaxed);
            self.wish(AFTER_NEXT);
        }
    }

    fn ending(&self) -> bool {
        self.wish.load(Relaxed) >= AFTER_NEXT
    }

    fn wish(&self, wish: u32) {
        self.wish.fetch_max(wish, Relaxed);
        self.wake();
    }

    pub(crate) fn end_at_once(&self) {
        self.wish(AT_ONCE);
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.get() {
            waker.wake_by_ref();
        }
    }

    /// A request is under way: should the client's side end now, its response is still wanted.
    pub(crate) fn may_hold_end(&self) -> bool {
        self.requests.load(Relaxed) > 0 && !self.http2.load(Relaxed) && !self.end_passes.load(Relaxed)
    }

    /// The client's side has ended. True: hyper, which would break off the request, must not hear of it yet.
    pub(crate) fn holds_end(&self) -> bool {
        let _first = self.end_since.compare_exchange(0, self.tick.load(Relaxed), Relaxed, Relaxed);
        !self.end_passes.load(Relaxed)
    }

    /// Something was written: after the client's side has ended, a sign that it is still there.
    pub(crate) fn wrote(&self) {
        if self.end_since.load(Relaxed) != 0 {
            self.end_since.store(self.tick.load(Relaxed), Relaxed);
        }
    }

    /// Something was read.
    pub(crate) fn read(&self) {
        let now = self.tick.load(Relaxed);
        self.last_read.store(now, Relaxed);
        if self.requests.load(Relaxed) == 0 && self.head_since.load(Relaxed) == 0 {
            self.head_since.store(now, Relaxed);
        }
    }
}

/// A request under way, counted from its head to the last byte of its response.
pub(crate) struct Serving {
    life: Arc<Life>,
    worker: Rc<Worker>,
}

impl Serving {
    fn new(life: &Arc<Life>, worker: &Rc<Worker>) -> Self {
        life.head_since.store(0, Relaxed);
        life.requests.fetch_add(1, Relaxed);
        count(&worker.vitals().in_flight, 1);
        Self { life: Arc::clone(life), worker: Rc::clone(worker) }
    }
}

impl Serving {
    /// Its response broke off.
    pub(crate) fn broke(&self, seat: Seat, words: &str) {
        self.worker.broke(seat, words);
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.life.requests.fetch_sub(1, Relaxed);
        self.life.last_read.store(self.life.tick.load(Relaxed), Relaxed);
        if self.life.end_since.load(Relaxed) != 0 {
            // The end that was held back is due, and nothing else would have it read.
            self.life.wake();
        }
        count(&self.worker.vitals().in_flight, 1u64.wrapping_neg());
    }
}

/// Runs tasks of HTTP/2 connections on the worker's own thread.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Here;

impl<F: Future + 'static> hyper::rt::Executor<F> for Here {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(async move {
            future.await;
        });
    }
}

/// How connections are read, under the limits of one snapshot.
pub(crate) struct Protocols {
    http1: http1::Builder,
    http2: http2::Builder<Here>,
}

impl Protocols {
    pub(crate) fn new(limits: &Limits) -> Self {
        let header_bytes = usize::try_from(limits.header_bytes).unwrap_or(usize::MAX);
        let mut http1 = http1::Builder::new();
        // The buffer also holds what follows a head, hence never smaller than usual.
        http1.half_close(false).max_header_size(header_bytes).max_buf_size(header_bytes.clamp(65_536, 16 << 20));
        let mut http2 = http2::Builder::new(Here);
        http2
            .timer(TokioTimer::new())
            .max_concurrent_streams(H2_STREAMS)
            .max_pending_accept_reset_streams(H2_PENDING_RESETS)
            .max_local_error_reset_streams(H2_ERROR_RESETS)
            .max_header_list_size(u32::try_from(limits.header_bytes).unwrap_or(u32::MAX))
            .keep_alive_interval(H2_PING_AFTER)
            .keep_alive_timeout(H2_PONG_WITHIN);
        Self { http1, http2 }
    }
}

pub(crate) async fn serve(
    stream: TcpStream,
    address: SocketAddr,
    life: Arc<Life>,
    worker: Rc<Worker>,
    entrance: Rc<Entrance>,
) {
    let begins_as_http2 = until_ended(&life, speaks_http2(&stream), WHEN_IDLE, |_| false).await;
    let Some(begins_as_http2) = begins_as_http2 else { return };
    life.http2.store(begins_as_http2, Relaxed);
    let live = worker.live();
    let client = Rc::new(Client { worker: Rc::clone(&worker), entrance, origin: Origin::new(address.ip()) });
    let service = service_fn(|request: Request<Incoming>| {
        let serving = Serving::new(&life, &worker);
        let client = Rc::clone(&client);
        async move {
            let mut response = stack::serve(&client, request).await;
            if serving.life.ending() && !serving.life.http2.load(Relaxed) {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            response.body_mut().serving(serving);
            Ok::<_, Infallible>(response)
        }
    });
    let socket = Socket::of_client(stream, Arc::clone(&life));
    let ended = if begins_as_http2 {
        let connection = live.protocols.http2.serve_connection(socket, service);
        drop(live);
        until_ended(&life, connection, AFTER_NEXT, |c| (c.graceful_shutdown(), true).1).await
    } else {
        let connection = live.protocols.http1.serve_connection(socket, service).with_upgrades();
        drop(live);
        until_ended(&life, connection, WHEN_IDLE, |c| (c.graceful_shutdown(), true).1).await
    };
    if let Some(Err(error)) = ended {
        tracing::debug!(%error, "a client connection ended");
    }
}

/// Whether the client begins with HTTP/2's preface. Nothing is taken from the socket.
async fn speaks_http2(stream: &TcpStream) -> bool {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    const NEXT_LOOK: Duration = Duration::from_millis(10);
    let mut begin = [0; PREFACE.len()];
    loop {
        // An error here is an error for whoever reads next.
        let Ok(length) = stream.peek(&mut begin).await else { return false };
        if length == 0 || begin[..length] != PREFACE[..length] {
            return false;
        }
        if length == PREFACE.len() {
            return true;
        }
        tokio::time::sleep(NEXT_LOOK).await;
    }
}

/// Drives a connection until it ends by itself (`Some`), or has to end at once (`None`). `end` begins a graceful end when
/// as much as `enough` is wished, and says whether there is anything to wait for.
async fn until_ended<C: Future>(
    life: &Life,
    connection: C,
    enough: u32,
    end: impl Fn(Pin<&mut C>) -> bool,
) -> Option<C::Output> {
    let mut connection = pin!(connection);
    let mut asked = false;
    std::future::poll_fn(|cx| {
        life.waker.get_or_init(|| cx.waker().clone());
        let wish = life.wish.load(Relaxed);
        if wish >= AT_ONCE {
            return Poll::Ready(None);
        }
        if wish >= enough && !std::mem::replace(&mut asked, true) && !end(connection.as_mut()) {
            return Poll::Ready(None);
        }
        connection.as_mut().poll(cx).map(Some)
    })
    .await
}

/// The vital signs of one open connection.
pub(crate) struct Open<'a>(&'a Vitals);

impl<'a> Open<'a> {
    pub(crate) fn new(vitals: &'a Vitals) -> Self {
        count(&vitals.accepted, 1);
        count(&vitals.connections, 1);
        Self(vitals)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        count(&self.0.connections, 1u64.wrapping_neg());
    }
}
