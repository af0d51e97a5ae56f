//! The gateway's one owner of what is live: it turns snapshots into plans, opens and closes listeners, and has every
//! worker acknowledge before it answers.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use jiff::Timestamp;
use meshctl_drivers::spans::Spans;
use meshctl_model::snapshot::{EdgeStatus, GatewayStatus, RouteStatus, Serves, Snapshot};
use tokio::sync::{Mutex, Notify, mpsc, oneshot};

use crate::listener::Held;
use crate::metrics::{Totals, Vitals};
use crate::plan::{Memory, Plan};
use crate::recent::Notes;
use crate::spans::{Reading, Remembered, Source, encode};
use crate::worker::{Command, Shared};
use crate::{clock, disk, holder, listener};

/// How long an override is left alone at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

pub(crate) struct Control {
    pub(crate) dir: PathBuf,
    siblings: Option<PathBuf>,
    pub(crate) shared: Arc<Shared>,
    workers: RefCell<Vec<mpsc::Sender<Command>>>,
    state: Mutex<State>,
    draining: Cell<bool>,
    reading: Reading,
    /// Told when operators may have said something of breakers.
    ruled: Notify,
}

struct State {
    memory: Memory,
    live: Arc<Plan>,
    /// Our own hold on every listening socket, to hand over to a successor.
    sockets: HashMap<SocketAddr, Held>,
    refused: Vec<(SocketAddr, String)>,
    unsaved: Option<String>,
    edge_notes: Notes,
    route_notes: Notes,
}

impl State {
    fn note(&mut self) {
        let (plan, now) = (&self.live, clock::now());
        let edges = plan.edges.iter().map(|edge| (edge.state.name.as_str(), Totals::of(&edge.state.metrics)));
        self.edge_notes.take(edges, now);
        let routes = plan.routes.iter().map(|route| (route.state.name.as_str(), Totals::of(&route.state.metrics)));
        self.route_notes.take(routes, now);
    }
}

/// What a successor is given: a socket for each time that an address is listed.
pub(crate) struct Legacy {
    pub(crate) snapshot: Snapshot,
    pub(crate) sockets: Vec<(SocketAddr, TcpListener)>,
}

/// Why a snapshot did not become live.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("generation {offered} is older than generation {live}, which is live; go on from {live}")]
    Older { offered: u64, live: u64 },
    #[error("the snapshot does not hold together: {0}")]
    Invalid(String),
    #[error("the gateway is on its way down")]
    Draining,
    #[error("a thread of the gateway is gone: the gateway ends with an error and has to be started again")]
    WorkerGone,
}

/// Everything that metrics are made of, at one moment.
pub(crate) struct Sight {
    pub(crate) plan: Arc<Plan>,
    pub(crate) unsaved: bool,
    pub(crate) refused: usize,
}

impl Control {
    pub(crate) fn new(
        dir: PathBuf,
        siblings: Option<PathBuf>,
        shared: Arc<Shared>,
        workers: Vec<mpsc::Sender<Command>>,
        memory: Memory,
        live: Arc<Plan>,
    ) -> Self {
        let state = State {
            memory,
            live,
            sockets: HashMap::new(),
            refused: Vec::new(),
            unsaved: None,
            edge_notes: Notes::default(),
            route_notes: Notes::default(),
        };
        Self {
            dir,
            siblings,
            shared,
            workers: RefCell::new(workers),
            state: Mutex::new(state),
            draining: Cell::new(false),
            reading: Reading::default(),
            ruled: Notify::new(),
        }
    }

    /// Makes a snapshot live on every thread, and saves it. A listener that cannot be opened keeps nothing else from
    /// going live; it is reported as refused, and tried again from time to time.
    pub(crate) async fn install(&self, snapshot: Snapshot) -> Result<GatewayStatus, Refusal> {
        if self.draining.get() {
            return Err(Refusal::Draining);
        }
        let mut state = self.state.lock().await;
        let live = &state.live.snapshot;
        if live.topology == snapshot.topology && snapshot.generation < live.generation {
            return Err(Refusal::Older { offered: snapshot.generation, live: live.generation });
        }
        let plan = Arc::new(state.memory.plan(snapshot).map_err(Refusal::Invalid)?);
        self.switch(&mut state, plan, HashMap::new()).await?;
        self.save(&mut state).await;
        Ok(self.status_of(&state))
    }

    /// The first snapshot of this process, with sockets that a predecessor left.
    pub(crate) async fn begin(
        &self,
        snapshot: Snapshot,
        inherited: HashMap<SocketAddr, Vec<TcpListener>>,
    ) -> Result<(), Refusal> {
        let mut state = self.state.lock().await;
        let plan = Arc::new(state.memory.plan(snapshot).map_err(Refusal::Invalid)?);
        self.switch(&mut state, plan, inherited).await
    }

    /// # Errors
    /// [`Refusal::WorkerGone`]; what was live is still said to be, for as long as the gateway stays.
    async fn switch(
        &self,
        state: &mut State,
        plan: Arc<Plan>,
        mut inherited: HashMap<SocketAddr, Vec<TcpListener>>,
    ) -> Result<(), Refusal> {
        let mut serves: Vec<(SocketAddr, Serves)> = Vec::new();
        let workers = self.workers();
        let mut opened: Vec<Vec<(SocketAddr, TcpListener)>> = workers.iter().map(|_| Vec::new()).collect();
        state.refused.clear();
        for listener in &plan.snapshot.listeners {
            let address = listener.address;
            if serves.iter().any(|(present, _)| *present == address) {
                state.refused.push((address, "listed twice".to_owned()));
                continue;
            }
            if let Entry::Vacant(place) = state.sockets.entry(address) {
                match sockets(address, inherited.remove(&address), workers.len(), self.siblings.as_deref()) {
                    Ok((kept, given)) => {
                        place.insert(kept);
                        for (at, socket) in given.into_iter().enumerate() {
                            opened[at % workers.len()].push((address, socket));
                        }
                    }
                    Err(error) => {
                        let why = holder::why(address, &error);
                        tracing::error!(%address, why, "cannot listen");
                        state.refused.push((address, why));
                        continue;
                    }
                }
            }
            serves.push((address, listener.serves.clone()));
        }
        // Before the first request of this plan: who starts from a saved snapshot refuses from the beginning.
        plan.rule_breakers();
        self.ruled.notify_one();
        // Our own hold goes first: a socket whose queue its worker has emptied must not take in another connection.
        state.sockets.retain(|address, _| serves.iter().any(|(present, _)| present == address));
        let installed = workers.iter().zip(opened).map(|(worker, opened)| {
            let (plan, serves) = (Arc::clone(&plan), serves.clone());
            ask(worker, |done| Command::Install { plan, opened, serves, done })
        });
        futures_util::future::join_all(installed).await.into_iter().collect::<Result<(), _>>()?;
        state.memory.settle(&plan);
        state.live = plan;
        state.note();
        Ok(())
    }

    async fn save(&self, state: &mut State) {
        let (dir, plan) = (self.dir.clone(), Arc::clone(&state.live));
        let saved = tokio::task::spawn_blocking(move || disk::save(&dir, &plan.snapshot)).await;
        state.unsaved = match saved.map_err(io::Error::other).flatten() {
            Ok(()) => None,
            Err(error) => {
                tracing::error!(%error, dir = %self.dir.display(), "the snapshot is live, but cannot be saved");
                Some(error.to_string())
            }
        };
    }

    /// Once a second: what happened more than ten seconds ago is forgotten.
    pub(crate) async fn note(&self) {
        self.state.lock().await.note();
    }

    /// Once in a while: what could not be done before is tried again.
    pub(crate) async fn look_after(&self) {
        let mut state = self.state.lock().await;
        if !state.refused.is_empty() && !self.draining.get() {
            let plan = Arc::clone(&state.live);
            if self.switch(&mut state, plan, HashMap::new()).await.is_err() {
                return;
            }
        }
        if state.unsaved.is_some() {
            self.save(&mut state).await;
        }
    }

    /// Ends, for ever, what operators forced for a time that is over, whether or not there is a control plane. The clock that
    /// counts may be set while we wait, hence the look every second.
    pub(crate) async fn expire_breakers(&self) {
        loop {
            let next = self.state.lock().await.live.expire_breakers();
            let pause = async {
                match next.map(|at| Duration::try_from(at.duration_since(Timestamp::now()))) {
                    Some(left) => tokio::time::sleep(left.unwrap_or_default().min(LONGEST_PAUSE)).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = pause => {}
                () = self.ruled.notified() => {}
            }
        }
    }

    pub(crate) async fn status(&self) -> GatewayStatus {
        self.status_of(&*self.state.lock().await)
    }

    fn status_of(&self, state: &State) -> GatewayStatus {
        let (plan, now) = (&state.live, clock::now());
        let edges = plan.edges.iter().map(|edge| {
            let totals = Totals::of(&edge.state.metrics);
            let breaker = edge.state.breaker.sight(&edge.policy.breaker, now);
            EdgeStatus {
                edge: edge.state.name.clone(),
                breaker: breaker.state,
                since: breaker.since,
                reason: breaker.reason,
                would_open: breaker.would_open,
                in_flight: edge.state.bulkhead.taken(),
                queued: edge.state.bulkhead.queued(),
                requests: totals.requests(),
                failures: totals.failures,
                retries: totals.retries,
                fallbacks: totals.fallbacks,
                recent: state.edge_notes.recent(&edge.state.name, &totals, now),
            }
        });
        let routes = plan.routes.iter().map(|route| RouteStatus {
            route: route.state.name.clone(),
            in_flight: route.state.in_flight.load(Relaxed).into(),
            queued: route.state.queued.load(Relaxed).into(),
            recent: state.route_notes.recent(&route.state.name, &Totals::of(&route.state.metrics), now),
        });
        let endpoints = plan.services.iter().flat_map(|service| &service.endpoints);
        GatewayStatus {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            revision: plan.snapshot.revision,
            generation: plan.snapshot.generation,
            refused: state.refused.clone(),
            connections: self.vital(|vitals| &vitals.connections),
            in_flight: self.vital(|vitals| &vitals.in_flight),
            draining: self.draining.get(),
            edges: edges.collect(),
            routes: routes.collect(),
            ejected: endpoints.filter_map(|endpoint| endpoint.ejector.why()).collect(),
        }
    }

    pub(crate) fn vital(&self, pick: impl Fn(&Vitals) -> &std::sync::atomic::AtomicU64) -> u64 {
        // Shards may run below zero on one thread and above on another; together they are right.
        self.shared.vitals.iter().fold(0, |sum, vitals| sum.wrapping_add(pick(vitals).load(Relaxed)))
    }

    pub(crate) async fn sight(&self) -> Sight {
        let state = self.state.lock().await;
        Sight { plan: Arc::clone(&state.live), unsaved: state.unsaved.is_some(), refused: state.refused.len() }
    }

    /// True when no request is under way to any of these endpoints, false when `within` was over first.
    pub(crate) async fn drained(&self, endpoints: &[String], within: Duration) -> bool {
        // Endpoints that are still in the snapshot announce nothing, hence the look every so often.
        const LOOK: Duration = Duration::from_millis(20);
        let until = tokio::time::Instant::now() + within;
        loop {
            let state = self.state.lock().await;
            let freed = Arc::clone(&state.memory.freed);
            let freed = freed.notified();
            if state.memory.in_flight_to(endpoints) == 0 {
                return true;
            }
            drop(state);
            if tokio::time::Instant::now() >= until {
                return false;
            }
            let _either = tokio::time::timeout(LOOK.min(within), freed).await;
        }
    }

    /// Everything that a successor needs to go on in our place.
    pub(crate) async fn legacy(&self) -> io::Result<Legacy> {
        let state = self.state.lock().await;
        let sockets = state.sockets.iter().flat_map(|(address, held)| held.sockets.iter().map(move |s| (*address, s)));
        let sockets = sockets.map(|(address, socket)| Ok((address, socket.try_clone()?))).collect::<io::Result<_>>()?;
        Ok(Legacy { snapshot: state.live.snapshot.clone(), sockets })
    }

    /// Accepts nothing more. `handed_over`: a successor accepts from the same sockets.
    pub(crate) async fn stop_accepting(&self, handed_over: bool) {
        self.draining.set(true);
        self.state.lock().await.sockets.clear();
        let stopped = self.workers().into_iter().map(async |worker| {
            // One that is gone accepts nothing; its end is noticed when it is joined.
            let _gone = ask(&worker, |done| Command::StopAccepting { leave_queue: handed_over, done }).await;
        });
        futures_util::future::join_all(stopped).await;
    }

    /// Lets what is under way end; returns when all has ended or `within` is over.
    pub(crate) async fn drain(&self, within: Duration) {
        let drained = self.workers().into_iter().map(async |worker| {
            let _gone = ask(&worker, |done| Command::Drain { within, done }).await;
        });
        futures_util::future::join_all(drained).await;
    }

    /// Lets the worker threads end.
    pub(crate) fn end(&self) {
        self.workers.borrow_mut().clear();
    }

    /// Has every thread give spans; one that is gone gives none.
    async fn gather(&self, command: impl Fn(oneshot::Sender<Vec<Remembered>>) -> Command) -> Vec<Remembered> {
        let gathered = self.workers().into_iter().map(|worker| {
            let (done, spans) = oneshot::channel();
            let command = command(done);
            async move {
                worker.send(command).await.ok()?;
                spans.await.ok()
            }
        });
        futures_util::future::join_all(gathered).await.into_iter().flatten().flatten().collect()
    }

    async fn encode(&self, remembered: &[Remembered]) -> Spans {
        let dropped = self.spans_dropped();
        encode(meshctl_model::GATEWAY, &self.state.lock().await.memory.names, remembered, dropped)
    }

    /// Those that were recorded and that no reader got.
    pub(crate) fn spans_dropped(&self) -> u64 {
        self.vital(|vitals| &vitals.spans_dropped) + self.reading.lost()
    }

    fn workers(&self) -> Vec<mpsc::Sender<Command>> {
        self.workers.borrow().clone()
    }
}

impl Source for Control {
    fn reading(&self) -> &Reading {
        &self.reading
    }

    async fn take(&self) -> (Spans, usize) {
        let taken = self.gather(|done| Command::TakeSpans { done }).await;
        (self.encode(&taken).await, taken.len())
    }

    async fn recall(&self, traces: Vec<u128>) -> Spans {
        let traces: Arc<[u128]> = traces.into();
        let recalled = self.gather(|done| Command::RecallSpans { traces: Arc::clone(&traces), done }).await;
        self.encode(&recalled).await
    }
}

/// Sends a command and waits until it has been carried out.
///
/// # Errors
/// [`Refusal::WorkerGone`].
async fn ask(
    worker: &mpsc::Sender<Command>,
    command: impl FnOnce(oneshot::Sender<()>) -> Command,
) -> Result<(), Refusal> {
    let (done, carried_out) = oneshot::channel();
    worker.send(command(done)).await.map_err(|_| Refusal::WorkerGone)?;
    carried_out.await.map_err(|_| Refusal::WorkerGone)
}

/// Sockets for an address: those to keep and those to give to the workers, at least one for each of them.
fn sockets(
    address: SocketAddr,
    inherited: Option<Vec<TcpListener>>,
    workers: usize,
    siblings: Option<&Path>,
) -> io::Result<(Held, Vec<TcpListener>)> {
    let kept = match inherited {
        Some(sockets) => listener::inherit(address, workers, sockets, siblings)?,
        None => listener::open_beside(address, workers, siblings)?,
    };
    let given = kept.sockets.iter().map(TcpListener::try_clone).collect::<io::Result<_>>()?;
    Ok((kept, given))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::Events;

    #[tokio::test]
    async fn a_snapshot_that_a_dead_worker_never_saw_is_not_live() {
        let events = Events::new();
        let mut memory = Memory::new(2, events.clone());
        let live = Arc::new(memory.plan(Snapshot::default()).expect("an empty plan"));
        let shared = Arc::new(Shared::new(events, 2));
        let (alive, mut commands) = mpsc::channel(4);
        let (dead, _) = mpsc::channel(4);
        tokio::spawn(async move {
            while let Some(Command::Install { done, .. }) = commands.recv().await {
                done.send(()).expect("somebody waits");
            }
        });
        let folder = tempfile::tempdir().expect("a folder");
        let control = Control::new(folder.path().to_owned(), None, shared, vec![alive, dead], memory, live);
        let next = Snapshot { generation: 1, ..Snapshot::default() };
        assert!(matches!(control.install(next).await, Err(Refusal::WorkerGone)));
        assert_eq!(control.status().await.generation, 0);
        assert!(!folder.path().join("snapshot.json").exists());
    }
}
