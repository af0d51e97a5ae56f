//! The single owner of state. One loop takes what operators ask and what the edge reports, decides, writes down what it is
//! about to do, does it, and tells.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use meshctl_api::error::ApiError;
use meshctl_api::place;
use meshctl_api::view::{Accepted, Registration, Told};
use meshctl_drivers::runtime::process::listening_ports;
use meshctl_model::event::{Event, EventSeverity};
use meshctl_model::plan::{Phase, Step};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot, watch};

use crate::breakers::Act;
use crate::execute::{Executor, Round, SharedGateway};
use crate::gateways;
use crate::hub::Hub;
use crate::messaging::declare::Declaration;
use crate::monitor::Monitor;
use crate::operate::{Asked, Planned, Wish, unwritable};
use crate::report::Report;
use crate::state::{State, Untold};
use crate::store::Store;
use crate::view;

pub type Reply<T> = oneshot::Sender<Result<T, ApiError>>;

/// A look at everything, answered between two rounds of the loop.
pub type Look = Box<dyn FnOnce(&Control) + Send>;

/// What makes a wish out of the present state.
pub type MakeWish = Box<dyn FnOnce(&State, &Store) -> Result<Wish, ApiError> + Send>;

/// Everything that reaches the loop.
pub enum Message {
    Report(Report),
    Look(Look),
    Plan {
        wish: MakeWish,
        reply: Reply<Planned>,
    },
    /// `fingerprint`: of the plan that was agreed to. `weighed`: of the plan that is known to lose no messages.
    Accept {
        wish: MakeWish,
        fingerprint: Option<String>,
        weighed: Option<String>,
        asked: Asked,
        reply: Reply<Accepted>,
    },
    Down {
        asked: Asked,
        reply: Reply<Accepted>,
    },
    /// The answer is the generation of the snapshot that carries it.
    Breaker {
        edge: String,
        act: Act,
        ttl: Option<Duration>,
        asked: Asked,
        reply: Reply<u64>,
    },
    Register {
        service: String,
        id: String,
        registration: Registration,
        reply: Reply<()>,
    },
    Deregister {
        service: String,
        id: String,
        reply: Reply<()>,
    },
    /// End, and leave everything running.
    Leave {
        reply: Option<Reply<()>>,
    },
}

/// Why the loop ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Nothing runs any more.
    Down,
    /// Everything runs on.
    Left,
}

/// From the beginning of one round to the beginning of the next, at least.
const ROUND_PAUSE: Duration = Duration::from_millis(3);

/// How many messages are taken before the loop decides again: one decision for a burst.
const BURST: usize = 256;

/// The loop and what it holds.
pub struct Control {
    pub state: State,
    pub store: Store,
    pub hub: Hub,
    pub executor: Executor,
    pub monitors: BTreeMap<String, Monitor>,
    drivers: BTreeMap<String, SharedGateway>,
    /// What channels the broker is to have.
    declaration: watch::Sender<Option<Arc<Declaration>>>,
    build: String,
    /// Steps begun since the start.
    steps: u64,
    /// The store failed at the last try; said once, not at every try.
    unwritable: bool,
}

impl Control {
    pub fn new(
        state: State,
        store: Store,
        hub: Hub,
        executor: Executor,
        declaration: watch::Sender<Option<Arc<Declaration>>>,
        build: String,
    ) -> Self {
        Self {
            state,
            store,
            hub,
            executor,
            monitors: BTreeMap::new(),
            drivers: BTreeMap::new(),
            declaration,
            build,
            steps: 0,
            unwritable: false,
        }
    }

    /// Runs until the system is down or somebody asks the daemon to leave.
    pub async fn run(mut self, mut messages: mpsc::Receiver<Message>) -> Ended {
        self.state.awaited =
            (self.state.revision > 0 && self.state.revision_state == "applying").then_some(self.state.revision);
        loop {
            let begun = tokio::time::Instant::now();
            self.round();
            if self.state.going_down && self.state.observed.instances.is_empty() {
                // What fled from its instance and belongs to nobody; nothing is left when `system.down` is told.
                match self.executor.runtime.sweep().await {
                    Ok(0) => {}
                    Ok(count) => {
                        let message = format!("{count} processes that belonged to no instance were ended");
                        self.state.warn("system.swept", "system".into(), message);
                    }
                    Err(why) => self.state.warn("system.notSwept", "system".into(), why.to_string()),
                }
                let message = "nothing runs any more".to_owned();
                self.state.event(EventSeverity::Info, "system.down", "system".into(), message, Value::Null);
                self.write();
                self.tell();
                return Ended::Down;
            }
            let wake = self.next_deadline();
            // A burst of reports makes few rounds, a single one is not kept waiting.
            tokio::time::sleep_until(begun + ROUND_PAUSE).await;
            let first = tokio::select! {
                message = messages.recv() => message,
                () = tokio::time::sleep(wake) => None,
            };
            if first.is_none() && !self.executor.state_dir.join(place::LOCK).exists() {
                tracing::error!(
                    "the state directory is gone; what runs is ended by `meshctl down` with the same --state-dir"
                );
                return Ended::Left;
            }
            let now = Timestamp::now();
            let burst = std::iter::from_fn(|| messages.try_recv().ok()).take(BURST);
            for message in first.into_iter().chain(burst) {
                if let Message::Leave { reply } = message {
                    self.write();
                    if let Some(reply) = reply {
                        let _ = reply.send(Ok(()));
                    }
                    return Ended::Left;
                }
                self.take(message, now);
            }
            self.state.expire_leases(now);
            self.state.expire_breakers(now);
        }
    }

    /// Events after `after` whose subject begins with `subject`, also those that could not be written yet.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn events(&self, after: Option<u64>, subject: &str, limit: u64) -> Result<Vec<Event>, ApiError> {
        let mut events = self.store.events(after, subject, limit).map_err(|why| unwritable(&why))?;
        if events.len() as u64 >= limit {
            return Ok(events);
        }
        let written = events.last().map_or(after.unwrap_or(0), |event| event.id.parse().unwrap_or(0));
        let in_memory =
            self.state.unwritten.events.iter().filter(|event| {
                event.id.parse().is_ok_and(|id: u64| id > written) && event.subject.starts_with(subject)
            });
        events.extend(in_memory.cloned());
        Ok(events)
    }

    fn take(&mut self, message: Message, now: Timestamp) {
        // A reply nobody waits for any more is no loss: what was accepted is saved.
        match message {
            Message::Report(report) => self.state.fold(report, now),
            Message::Look(look) => look(self),
            Message::Plan { wish, reply } => drop(reply.send(self.plan(wish))),
            Message::Accept { wish, fingerprint, weighed, asked, reply } => {
                let outcome = self.accept(wish, fingerprint.as_deref(), weighed.as_deref(), asked, now);
                drop(reply.send(outcome));
            }
            Message::Down { asked, reply } => drop(reply.send(Ok(self.state.down(&asked, &mut self.store)))),
            Message::Breaker { edge, act, ttl, asked, reply } => {
                drop(reply.send(self.state.say_of_breaker(&edge, act, ttl, &asked, &mut self.store, now)));
            }
            Message::Register { service, id, registration, reply } => {
                drop(reply.send(self.state.register(&service, &id, &registration, now)));
            }
            Message::Deregister { service, id, reply } => drop(reply.send(self.state.deregister(&service, &id))),
            Message::Leave { .. } => {}
        }
    }

    /// A way to every gateway that runs.
    pub fn running_gateways(&self) -> Vec<SharedGateway> {
        let running = self.state.observed.of(meshctl_model::GATEWAY).filter(|gateway| gateway.process.is_some());
        running.map(|gateway| self.executor.gateway(&gateway.spec)).collect()
    }

    fn plan(&self, wish: MakeWish) -> Result<Planned, ApiError> {
        let wish = wish(&self.state, &self.store)?;
        self.state.plan(wish, listening_ports().unwrap_or_default())
    }

    fn accept(
        &mut self,
        wish: MakeWish,
        fingerprint: Option<&str>,
        weighed: Option<&str>,
        asked: Asked,
        now: Timestamp,
    ) -> Result<Accepted, ApiError> {
        let planned = self.plan(wish)?;
        if fingerprint.is_some_and(|agreed| agreed != planned.plan.fingerprint) {
            let message = format!(
                "the plan is stale: the system is at revision {} now, and the plan was made for another state",
                self.state.revision
            );
            return Err(ApiError::new(meshctl_api::error::ErrorCode::Conflict, message)
                .hint("make a new one with `meshctl plan`, look at it, and apply that"));
        }
        if planned.may_lose_messages() && weighed != Some(planned.plan.fingerprint.as_str()) {
            let message =
                "nothing was changed: somebody else changed the system meanwhile, and messages might be lost now";
            return Err(ApiError::new(meshctl_api::error::ErrorCode::Conflict, message).hint("try again"));
        }
        self.state.accept(planned, asked, &mut self.store, now)
    }

    /// Decide until nothing is left to begin; write; tell; do.
    fn round(&mut self) {
        let now = Timestamp::now();
        self.state.gateways =
            gateways::templates(self.state.desired.gateway.as_ref(), &self.executor.state_dir, &self.build);
        let begun = self.state.next_steps(now, || listening_ports().unwrap_or_default());
        self.watch();
        self.declare();
        let touched = self.state.untold.services.clone();
        self.state.settle(&touched);
        self.write();
        self.tell();
        self.execute(begun);
    }

    fn execute(&mut self, steps: Vec<Step>) {
        self.state.litter.drain(..).for_each(|id| self.executor.clean(id));
        if steps.is_empty() {
            return;
        }
        let specs = steps.iter().filter_map(|step| match step {
            Step::Restart { id } => {
                self.state.observed.instances.get(id).map(|instance| (id.clone(), instance.spec.clone()))
            }
            _ => None,
        });
        let specs = specs.collect();
        let running = self.state.observed.of(meshctl_model::GATEWAY).filter(|gateway| gateway.process.is_some());
        let running: Vec<_> = running.map(|gateway| gateway.spec.clone()).collect();
        let round = Round {
            snapshot: Arc::clone(&self.state.snapshot),
            gateways: running.iter().map(|spec| (spec.id.clone(), self.driver(spec))).collect(),
            specs,
        };
        let round = Arc::new(round);
        for step in steps {
            self.steps += 1;
            crash_here(self.steps, &step);
            self.executor.execute(step, &round);
        }
    }

    pub fn driver(&mut self, spec: &meshctl_model::instance::InstanceSpec) -> SharedGateway {
        let driver = self.drivers.entry(spec.id.clone()).or_insert_with(|| self.executor.gateway(spec));
        Arc::clone(driver)
    }

    /// Every running instance has a monitor, and nothing else has.
    fn watch(&mut self) {
        let observed = &self.state.observed;
        let runs = |id: &String| {
            observed
                .instances
                .get(id)
                .is_some_and(|instance| instance.process.is_some() && !matches!(instance.phase, Phase::Stopping { .. }))
        };
        self.monitors.retain(|id, _| runs(id));
        self.drivers.retain(|id, _| observed.instances.contains_key(id));
        for (id, instance) in &observed.instances {
            if runs(id) && !self.monitors.contains_key(id) {
                let ready =
                    matches!(instance.phase, Phase::Ready | Phase::Draining { .. } | Phase::Quiescing | Phase::Drained);
                let monitor = Monitor::start(&self.executor, instance.spec.clone(), ready);
                self.monitors.insert(id.clone(), monitor);
            }
        }
    }

    /// Another occasion is another declaration.
    fn declare(&self) {
        let occasion = self.state.occasion();
        let known = self.declaration.borrow().as_ref().map(|declaration| declaration.occasion.clone());
        if occasion != known {
            self.declaration.send_replace(self.state.declaration().map(Arc::new));
        }
    }

    fn write(&mut self) {
        let changes = self.state.changes();
        match self.store.commit(&changes) {
            Ok(()) => {
                self.state.unwritten = Default::default();
                if std::mem::take(&mut self.unwritable) {
                    self.state.info("store.writable", "system".into(), "the state can be written again".into());
                }
            }
            // The system runs on from memory, and everything unwritten is written as soon as it can be. Should the daemon
            // die before, it finds what runs by its label and ends what it does not know.
            Err(why) if !std::mem::replace(&mut self.unwritable, true) => {
                self.state.warn("store.unwritable", "system".into(), format!("{why}; going on from memory"));
            }
            Err(_) => {}
        }
        // A disk that stays full must not fill the memory instead.
        let surplus = self.state.unwritten.events.len().saturating_sub(10_000);
        self.state.unwritten.events.drain(..surplus);
    }

    fn tell(&mut self) {
        let Untold { events, services, gateways, system } = std::mem::take(&mut self.state.untold);
        if !self.hub.anybody() {
            return;
        }
        for name in services.iter().filter(|name| *name != meshctl_model::GATEWAY) {
            self.hub.tell(match view::service(self, name) {
                Some(service) => Told::Service(service),
                None => Told::ServiceGone(name.clone()),
            });
        }
        for id in gateways {
            self.hub.tell(match view::gateway(self, &id) {
                Some(gateway) => Told::Gateway(gateway),
                None => Told::GatewayGone(id),
            });
        }
        if system {
            let state = &self.state;
            let name = state.desired.name.clone();
            self.hub.tell(Told::System { name, revision: state.revision, ready: state.ready });
        }
        // Last, so that who hears of an outcome has seen what led to it.
        events.into_iter().for_each(|event| self.hub.tell(Told::Event(event)));
    }

    /// When the loop must look again though nothing is reported.
    fn next_deadline(&self) -> Duration {
        let now = Timestamp::now();
        let state = &self.state;
        let waits = state.observed.instances.values().filter_map(|instance| match instance.phase {
            Phase::BackingOff { until } => Some(until),
            Phase::Starting if !instance.being_started() => {
                let service = state.desired.services.get(&instance.spec.service);
                let limit = service.map_or(Duration::from_secs(15), |service| service.start_timeout.get());
                instance.since.checked_add(limit).ok()
            }
            _ => None,
        });
        let current = state.observed.of(meshctl_model::GATEWAY).filter(|gateway| {
            gateway.phase == Phase::Ready && state.gateways.values().any(|wanted| wanted.hash == gateway.hash)
        });
        let pushes = current
            .filter_map(|gateway| state.observed.gateways.get(&gateway.spec.id)?.next_push(state.observed.generation));
        let next = waits
            .chain(pushes)
            .chain(state.registry.next_expiry())
            .chain(state.next_breaker_end())
            .map(|at| at.duration_since(now))
            .min();
        let usual = Duration::from_secs(1);
        match next {
            Some(wait) if wait.is_negative() => Duration::from_millis(1),
            Some(wait) => wait.unsigned_abs().saturating_add(Duration::from_millis(1)).min(usual),
            None => usual,
        }
    }
}

/// Ends the daemon as `kill -9` would, just before its step of that number, so that a test can try every one.
#[cfg(debug_assertions)]
fn crash_here(number: u64, step: &Step) {
    let wanted = std::env::var("MESHCTL_CRASH_AT").ok().and_then(|text| text.parse::<u64>().ok());
    if wanted == Some(number) {
        tracing::error!(number, ?step, "ending here, as asked by MESHCTL_CRASH_AT");
        std::process::abort();
    }
}

#[cfg(not(debug_assertions))]
fn crash_here(_number: u64, _step: &Step) {}
