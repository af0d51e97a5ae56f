//! One thread of the data plane: a single-threaded runtime with listening sockets, connection pools and a view of the
//! live plan of its own. Threads share only what edges and endpoints count in atomics.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use meshctl_model::snapshot::Serves;
use rand::RngExt;
use rand::rngs::SmallRng;
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::{Notify, mpsc, oneshot};

use crate::balance::{Candidate, Latency};
use crate::clock;
use crate::connection::{self, Entrance, Life, Open, Protocols};
use crate::eject;
use crate::events::Events;
use crate::metrics::{Vitals, count};
use crate::plan::{EndpointState, Plan};
use crate::pool::{self, Pool};
use crate::spans::{self, Record, Remembered, Ring, Sampler, Sampling, Seat};

/// The slow clock that limits of connections are measured by.
const TICK: Duration = Duration::from_millis(250);
/// After an accept that failed for want of descriptors or memory, doubled each time.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_ACCEPT_PAUSE: Duration = Duration::from_secs(1);

pub(crate) enum Command {
    /// Use this plan, accept on these new sockets, and on no others than those of `serves`.
    Install {
        plan: Arc<Plan>,
        opened: Vec<(SocketAddr, TcpListener)>,
        serves: Vec<(SocketAddr, Serves)>,
        done: oneshot::Sender<()>,
    },
    /// Accept nothing more. `leave_queue`: somebody else accepts from the same sockets.
    StopAccepting { leave_queue: bool, done: oneshot::Sender<()> },
    /// Let requests under way end, and all connections with them; whatever is left after `within` is cut off.
    Drain { within: Duration, done: oneshot::Sender<()> },
    /// Give the recorded spans that nobody has taken.
    TakeSpans { done: oneshot::Sender<Vec<Remembered>> },
    /// Give everything that is remembered of these traces.
    RecallSpans { traces: Arc<[u128]>, done: oneshot::Sender<Vec<Remembered>> },
}

/// What all workers are given.
pub(crate) struct Shared {
    pub(crate) events: Events,
    pub(crate) vitals: Vec<Vitals>,
    pub(crate) sampler: Sampler,
    /// Told when a thread that had no recorded spans waiting has some.
    pub(crate) recorded: Notify,
    /// Told when a thread of the data plane cannot go on.
    pub(crate) worker_lost: Notify,
}

impl Shared {
    pub(crate) fn new(events: Events, workers: usize) -> Self {
        let vitals = (0..workers).map(|_| Vitals::default()).collect();
        let (sampler, recorded, worker_lost) = (Sampler::default(), Notify::new(), Notify::new());
        Self { events, vitals, sampler, recorded, worker_lost }
    }
}

/// Held by what a worker cannot be without: the thread itself, its accept loops and its slow clock. If one panics, its
/// sockets would go on to be given connections that nobody accepts; so the whole gateway hears of it, and ends. A panic of a
/// single connection's task costs that connection only.
struct Vital(Arc<Shared>);

impl Drop for Vital {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.worker_lost.notify_one();
        }
    }
}

/// A worker's view of the live plan, with its own pools beside the endpoints.
pub(crate) struct Live {
    pub(crate) plan: Arc<Plan>,
    /// By service, as in the plan.
    pub(crate) peers: Vec<Vec<Rc<Peer>>>,
    pub(crate) protocols: Protocols,
    pub(crate) sampling: Sampling,
}

/// An endpoint as one thread sees it.
pub(crate) struct Peer {
    pub(crate) endpoint: Arc<EndpointState>,
    pub(crate) pool: Rc<Pool>,
}

impl Candidate for Rc<Peer> {
    fn in_flight(&self) -> u32 {
        self.endpoint.in_flight()
    }

    fn latency(&self) -> &Latency {
        &self.endpoint.latency
    }

    fn ejected(&self) -> bool {
        self.endpoint.ejector.is_out()
    }
}

pub(crate) struct Worker {
    pub(crate) index: usize,
    shared: Arc<Shared>,
    live: RefCell<Rc<Live>>,
    /// Told when another plan is live.
    pub(crate) changed: Notify,
    random: RefCell<SmallRng>,
    spans: RefCell<Ring>,
    tick: Arc<AtomicU32>,
    connections: RefCell<HashMap<u64, Arc<Life>>>,
    connections_ever: Cell<u64>,
    tunnels: Cell<u32>,
    /// Told when a connection or tunnel has ended.
    ended: Notify,
    entrances: RefCell<HashMap<SocketAddr, Door>>,
}

/// An address that connections come in on, and its accept loops.
struct Door {
    entrance: Rc<Entrance>,
    stops: Vec<Rc<Stop>>,
}

/// How an accept loop is asked to end.
#[derive(Default)]
struct Stop {
    asked: Notify,
    leave_queue: Cell<bool>,
}

/// Starts the thread; it ends when the sender of `commands` is dropped.
///
/// # Errors
/// When the thread or its runtime cannot be made.
pub(crate) fn spawn(
    index: usize,
    plan: Arc<Plan>,
    shared: Arc<Shared>,
    commands: mpsc::Receiver<Command>,
) -> io::Result<std::thread::JoinHandle<()>> {
    std::thread::Builder::new().name(format!("traffic-{index}")).spawn(move || {
        let _vital = Vital(Arc::clone(&shared));
        let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
        match runtime {
            Ok(runtime) => runtime.block_on(Worker::run(index, plan, shared, commands)),
            // The first command to it finds that nobody is there.
            Err(error) => tracing::error!(%error, index, "cannot start a worker's runtime"),
        }
    })
}

impl Worker {
    async fn run(index: usize, plan: Arc<Plan>, shared: Arc<Shared>, mut commands: mpsc::Receiver<Command>) {
        let live = Rc::new(Live::new(plan, None));
        let worker = Rc::new(Self {
            index,
            shared,
            live: RefCell::new(live),
            changed: Notify::new(),
            random: RefCell::new(rand::make_rng()),
            spans: RefCell::new(Ring::new(spans::REMEMBERED)),
            tick: Arc::new(AtomicU32::new(1)),
            connections: RefCell::default(),
            connections_ever: Cell::new(0),
            tunnels: Cell::new(0),
            ended: Notify::new(),
            entrances: RefCell::default(),
        });
        tokio::task::spawn_local(Rc::clone(&worker).look_after_connections());
        while let Some(command) = commands.recv().await {
            match command {
                Command::Install { plan, opened, serves, done } => {
                    worker.install(plan, opened, &serves);
                    let _waiting = done.send(());
                }
                Command::StopAccepting { leave_queue, done } => {
                    worker.entrances.borrow_mut().drain().for_each(|(_, door)| stop_all(&door.stops, leave_queue));
                    // The loops hear of it when they are next polled, which is before this answer leaves the thread.
                    tokio::task::yield_now().await;
                    let _waiting = done.send(());
                }
                Command::TakeSpans { done } => {
                    let _waiting = done.send(worker.spans.borrow_mut().take());
                }
                Command::RecallSpans { traces, done } => {
                    let _waiting = done.send(worker.spans.borrow().recall(&traces));
                }
                Command::Drain { within, done } => {
                    let worker = Rc::clone(&worker);
                    tokio::task::spawn_local(async move {
                        worker.drain(within).await;
                        let _waiting = done.send(());
                    });
                }
            }
        }
    }

    pub(crate) fn live(&self) -> Rc<Live> {
        Rc::clone(&self.live.borrow())
    }

    pub(crate) fn random(&self) -> u64 {
        self.random.borrow_mut().random()
    }

    /// Whether a trace that begins here, or asks to be sampled at the edge, is one of those that are.
    pub(crate) fn samples(&self, sampling: Sampling, now: u64) -> bool {
        self.shared.sampler.takes(sampling, now)
    }

    /// Remembers a span.
    pub(crate) fn remember(&self, record: Record, words: Option<&str>) -> Seat {
        let mut spans = self.spans.borrow_mut();
        let seat = spans.push(record, words);
        self.vitals().spans_dropped.store(spans.dropped(), Relaxed);
        if record.recorded {
            count(&self.vitals().spans_recorded, 1);
            if spans.waiting() == 1 {
                self.shared.recorded.notify_one();
            }
        }
        seat
    }

    /// The body of a response broke off after its head: its request's span, if it is still remembered, is told again.
    pub(crate) fn broke(&self, seat: Seat, words: &str) {
        let record = self.spans.borrow().get(seat);
        if let Some(record) = record.and_then(Record::broke) {
            self.remember(record, Some(words));
        }
    }

    pub(crate) fn vitals(&self) -> &Vitals {
        &self.shared.vitals[self.index]
    }

    fn install(
        self: &Rc<Self>,
        plan: Arc<Plan>,
        opened: Vec<(SocketAddr, TcpListener)>,
        serves: &[(SocketAddr, Serves)],
    ) {
        let before = self.live();
        let live = Rc::new(Live::new(plan, Some(&before)));
        *self.live.borrow_mut() = Rc::clone(&live);
        let kept: std::collections::HashSet<*const Pool> =
            live.peers.iter().flatten().map(|peer| Rc::as_ptr(&peer.pool)).collect();
        let gone = before.peers.iter().flatten().filter(|peer| !kept.contains(&Rc::as_ptr(&peer.pool)));
        gone.for_each(|peer| peer.pool.retire());

        let mut entrances = self.entrances.borrow_mut();
        entrances.retain(|address, door| match serves.iter().find(|(at, _)| at == address) {
            Some((_, serves)) => {
                door.entrance.serves.replace(serves.clone());
                true
            }
            None => {
                stop_all(&door.stops, false);
                false
            }
        });
        for (address, socket) in opened {
            let Some((_, serves)) = serves.iter().find(|(at, _)| *at == address) else { continue };
            let door = entrances.entry(address).or_insert_with(|| {
                let entrance = Entrance { address, serves: RefCell::new(serves.clone()) };
                Door { entrance: Rc::new(entrance), stops: Vec::new() }
            });
            let stop = Rc::new(Stop::default());
            door.stops.push(Rc::clone(&stop));
            tokio::task::spawn_local(Rc::clone(self).accept(socket, Rc::clone(&door.entrance), stop));
        }
        drop(entrances);
        self.changed.notify_waiters();
    }

    async fn accept(self: Rc<Self>, socket: TcpListener, entrance: Rc<Entrance>, stop: Rc<Stop>) {
        let _vital = Vital(Arc::clone(&self.shared));
        let listener = match tokio::net::TcpListener::from_std(socket) {
            Ok(listener) => listener,
            Err(error) => {
                tracing::error!(%error, address = %entrance.address, "cannot accept");
                return self.shared.worker_lost.notify_one();
            }
        };
        let mut pause = ACCEPT_PAUSE;
        loop {
            let accepted = tokio::select! {
                biased;
                () = stop.asked.notified() => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, client)) => {
                    pause = ACCEPT_PAUSE;
                    self.begin(stream, client, &entrance);
                }
                // The client was gone before we came; the next one is not.
                Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) => {
                }
                Err(error) => {
                    count(&self.vitals().accept_errors, 1);
                    tracing::warn!(%error, address = %entrance.address, ?pause, "cannot accept connections; waiting");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_ACCEPT_PAUSE);
                }
            }
        }
        if !stop.leave_queue.get() {
            // Who connected before we stopped is served: closing the socket would reset them.
            while let Some(Ok((stream, client))) = futures_util::FutureExt::now_or_never(listener.accept()) {
                self.begin(stream, client, &entrance);
            }
        }
    }

    fn begin(self: &Rc<Self>, stream: tokio::net::TcpStream, client: SocketAddr, entrance: &Rc<Entrance>) {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection was gone before it began");
            return;
        }
        let id = self.connections_ever.get();
        self.connections_ever.set(id + 1);
        let life = Arc::new(Life::new(&self.tick));
        self.connections.borrow_mut().insert(id, Arc::clone(&life));
        let (worker, entrance) = (Rc::clone(self), Rc::clone(entrance));
        tokio::task::spawn_local(async move {
            let open = Open::new(worker.vitals());
            connection::serve(stream, client, life, Rc::clone(&worker), entrance).await;
            drop(open);
            worker.connections.borrow_mut().remove(&id);
            worker.ended.notify_waiters();
        });
    }

    /// Marks an upgraded connection, until dropped.
    pub(crate) fn tunnel(self: &Rc<Self>) -> impl Drop + use<> {
        struct Tunnel(Rc<Worker>);
        impl Drop for Tunnel {
            fn drop(&mut self) {
                self.0.tunnels.set(self.0.tunnels.get() - 1);
                self.0.ended.notify_waiters();
            }
        }
        self.tunnels.set(self.tunnels.get() + 1);
        Tunnel(Rc::clone(self))
    }

    async fn look_after_connections(self: Rc<Self>) {
        let _vital = Vital(Arc::clone(&self.shared));
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let now = self.tick.load(Relaxed).wrapping_add(1).max(1);
            self.tick.store(now, Relaxed);
            let live = self.live();
            let limits = &live.plan.snapshot.limits;
            let in_ticks = |ms: u64| u32::try_from(ms / TICK.as_millis() as u64).unwrap_or(u32::MAX >> 1);
            let (head, idle) = (in_ticks(limits.header_timeout_ms), in_ticks(limits.idle_timeout_ms));
            self.connections.borrow().values().for_each(|life| life.look_over(head, idle));
            if now.is_multiple_of(4) {
                let at = clock::now();
                live.peers.iter().flatten().for_each(|peer| peer.pool.close_idle(at));
            }
        }
    }

    async fn drain(&self, within: Duration) {
        let until = tokio::time::Instant::now() + within;
        loop {
            let ended = self.ended.notified();
            self.connections.borrow().values().for_each(|life| life.end());
            if self.connections.borrow().is_empty() && self.tunnels.get() == 0 {
                return;
            }
            if tokio::time::timeout_at(until, ended).await.is_err() {
                let (connections, tunnels) = (self.connections.borrow().len(), self.tunnels.get());
                tracing::warn!(connections, tunnels, "cut off what did not end in time");
                self.connections.borrow().values().for_each(|life| life.end_at_once());
                return;
            }
        }
    }

    /// The endpoint refused a connection: leaves it out and sees to its return.
    pub(crate) fn refused(self: &Rc<Self>, peer: &Rc<Peer>, reason: String) {
        let endpoint = &peer.endpoint;
        if !endpoint.ejector.refused(&endpoint.service, &endpoint.id, reason, &self.shared.events) {
            return;
        }
        let (worker, peer) = (Rc::clone(self), Rc::clone(peer));
        tokio::task::spawn_local(async move {
            for tries in 0.. {
                tokio::time::sleep(eject::connect_pause(tries)).await;
                let endpoint = &peer.endpoint;
                if endpoint.leaving.load(Relaxed) || !endpoint.ejector.is_out() {
                    return;
                }
                let connecting = pool::connect(endpoint.address, &peer.pool, &worker);
                if let Ok(Ok(sender)) = tokio::time::timeout(eject::connect_pause(tries), connecting).await {
                    peer.pool.put(sender);
                    return worker.accepted(&peer);
                }
            }
        });
    }

    /// The endpoint accepted a connection.
    pub(crate) fn accepted(&self, peer: &Peer) {
        peer.endpoint.ejector.accepted(&self.shared.events);
    }

    /// The endpoint answered a request.
    pub(crate) fn answered(&self, peer: &Peer) {
        if peer.endpoint.ejector.answered(&self.shared.events) {
            // What was measured while it was frozen would keep requests away from it for long.
            peer.endpoint.latency.forget();
        }
    }

    /// The endpoint did not answer a request. After a few in a row it is left out, unless no other would be left.
    pub(crate) fn unanswered(&self, peer: &Peer, last: &str) {
        let endpoint = &peer.endpoint;
        if !endpoint.ejector.unanswered() {
            return;
        }
        let live = self.live();
        let all = live.plan.services.iter().filter(|service| service.name == endpoint.service);
        let mut others = all.flat_map(|service| &service.endpoints).filter(|other| !Arc::ptr_eq(other, endpoint));
        if others.any(|other| !other.ejector.is_out()) {
            let reason = format!("{} attempts in a row without an answer; the last: {last}", eject::IN_A_ROW);
            endpoint.ejector.silent(&endpoint.service, &endpoint.id, reason, clock::now(), &self.shared.events);
        }
    }
}

fn stop_all(stops: &[Rc<Stop>], leave_queue: bool) {
    for stop in stops {
        stop.leave_queue.set(leave_queue);
        stop.asked.notify_one();
    }
}

impl Live {
    fn new(plan: Arc<Plan>, before: Option<&Self>) -> Self {
        let mut pools: HashMap<*const EndpointState, Rc<Peer>> = before
            .map(|before| {
                before.peers.iter().flatten().map(|peer| (Arc::as_ptr(&peer.endpoint), Rc::clone(peer))).collect()
            })
            .unwrap_or_default();
        let peers = plan.services.iter().map(|service| {
            let peers = service.endpoints.iter().map(|endpoint| {
                pools
                    .remove(&Arc::as_ptr(endpoint))
                    .unwrap_or_else(|| Rc::new(Peer { endpoint: Arc::clone(endpoint), pool: Rc::default() }))
            });
            peers.collect()
        });
        let peers = peers.collect();
        let protocols = Protocols::new(&plan.snapshot.limits);
        let sampling = Sampling::of(&plan.snapshot.tracing);
        Self { plan, peers, protocols, sampling }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_of_something_vital_is_told_and_an_end_is_not() {
        let shared = Arc::new(Shared::new(Events::new(), 1));
        let vital = Vital(Arc::clone(&shared));
        std::thread::spawn(move || drop(vital)).join().expect("no panic");
        assert!(futures_util::FutureExt::now_or_never(shared.worker_lost.notified()).is_none());
        let vital = Vital(Arc::clone(&shared));
        // In a task, where the runtime catches it and nobody looks at the outcome.
        tokio::spawn(async move {
            let _vital = vital;
            tokio::task::yield_now().await;
            panic!("as a test");
        });
        shared.worker_lost.notified().await;
    }
}
