//! Everything the control loop owns, and the only ways in which it changes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use meshctl_drivers::registry::embedded::Catalogue;
use meshctl_drivers::registry::{Registration, Source};
use meshctl_model::event::{Event, EventSeverity};
use meshctl_model::plan::{
    Desired, DesiredService, Instance, Observed, Overlay, Phase, Ports, Standing, Step, decide, reserved_ports,
};
use meshctl_model::snapshot::{BreakerState, Endpoint, Snapshot};
use meshctl_model::topology::Topology;
use serde_json::Value;

use crate::messaging::declare::Occasion;
use crate::store::{Changes, LeaseRow, Remembered};
use crate::view;

/// What is wanted, what is seen, and what has yet to be written and told about it.
#[derive(Debug)]
pub struct State {
    pub revision: u64,
    /// `applying`, `applied`, `failed`; empty before the first apply.
    pub revision_state: &'static str,
    /// The revision whose outcome somebody is waiting for.
    pub awaited: Option<u64>,
    pub topology: Topology,
    pub overlay: Overlay,
    /// The operator's variables that the topology was made with: never to be shown.
    pub environment: BTreeMap<String, String>,
    pub desired: Desired,
    /// The gateway processes that are wanted, by slot.
    pub gateways: BTreeMap<u32, DesiredService>,
    pub observed: Observed,
    pub ports: Ports,
    /// Where every service is, in routing or not: instances as they are seen, and registrations from outside.
    pub registry: Catalogue,
    /// What the data plane should have now; its generation is `observed.generation`.
    pub snapshot: Arc<Snapshot>,
    /// What operators said of breakers, by edge.
    pub standings: BTreeMap<String, Standing>,
    /// Breakers that are not closed, by edge and gateway.
    pub breakers: BTreeMap<(String, String), BreakerState>,
    /// Everything is as wanted.
    pub ready: bool,
    pub going_down: bool,
    /// How often an operator has asked for something since the daemon is there.
    pub asked: u64,
    /// Messages may be lost on the way to the present revision: until that is done, once.
    pub discard_messages: bool,
    /// What came of the last declaration of channels.
    pub declared: Option<(Occasion, Result<(), String>)>,
    pub last_event: u64,
    /// Instances that ended on their way out, whose files nobody has removed.
    pub litter: Vec<String>,
    pub unwritten: Unwritten,
    pub untold: Untold,
}

/// What has yet to be written, by name: it is looked up when it is written, so that a hundred changes of one thing are one.
#[derive(Clone, Debug, Default)]
pub struct Unwritten {
    pub revision_state: bool,
    pub discard_messages: bool,
    pub instances: BTreeSet<String>,
    pub services: BTreeSet<String>,
    pub events: Vec<Event>,
    pub ports: bool,
    pub leases: BTreeSet<(String, String)>,
    /// By edge.
    pub breakers: BTreeSet<String>,
    pub generation: bool,
}

/// What watchers have yet to hear.
#[derive(Debug, Default)]
pub struct Untold {
    pub events: Vec<Event>,
    pub services: BTreeSet<String>,
    /// By instance id.
    pub gateways: BTreeSet<String>,
    pub system: bool,
}

impl State {
    pub fn restore(remembered: Remembered, offset: u16) -> Self {
        let mut observed = Observed { generation: remembered.generation, ..Observed::default() };
        observed.services.extend(remembered.services);
        observed.instances.extend(remembered.instances.into_iter().map(|i| (i.spec.id.clone(), i)));
        let ports = Ports { assigned: remembered.ports, offset, ..Ports::default() };
        // Milliseconds since 1970 are beyond every index of a predecessor, which rose by less than one in each.
        let mut registry = Catalogue::beyond(Timestamp::now().as_millisecond().unsigned_abs());
        for lease in remembered.leases {
            restore_lease(&mut registry, lease);
        }
        // The first snapshot says it all again.
        let generation = remembered.generation + 1;
        let said = remembered.breakers.into_iter().map(|(edge, said)| (edge, Standing { generation, ..said }));
        let standings = said.collect();
        let mut state = Self {
            revision: 0,
            revision_state: "",
            awaited: None,
            topology: Topology::default(),
            overlay: Overlay::default(),
            environment: BTreeMap::new(),
            desired: Desired::default(),
            gateways: BTreeMap::new(),
            observed,
            ports,
            registry,
            snapshot: Arc::default(),
            standings,
            breakers: BTreeMap::new(),
            ready: false,
            going_down: false,
            asked: 0,
            discard_messages: false,
            declared: None,
            last_event: remembered.last_event,
            litter: Vec::new(),
            unwritten: Unwritten::default(),
            untold: Untold::default(),
        };
        if let Some((row, body)) = remembered.revision {
            state.revision = row.revision;
            state.revision_state = match row.state.as_str() {
                "applied" => "applied",
                "failed" => "failed",
                "down" => "down",
                _ => "applying",
            };
            if state.revision_state == "down" {
                // Nothing is wanted. What still runs is what a `down` did not get to.
                state.going_down = !state.observed.instances.is_empty();
            } else {
                state.ports.range = body.desired.ports;
                state.ports.reserved = reserved_ports(&body.topology);
                state.topology = body.topology;
                state.overlay = body.overlay;
                state.environment = body.environment;
                state.desired = body.desired;
                state.discard_messages = body.discard_messages;
            }
        }
        state
    }

    /// Something happened.
    pub fn event(&mut self, severity: EventSeverity, kind: &str, subject: String, message: String, data: Value) {
        self.last_event += 1;
        let event = Event {
            id: self.last_event.to_string(),
            kind: kind.into(),
            subject,
            message,
            severity,
            data,
            created_at: Timestamp::now(),
        };
        tracing::info!(kind = %event.kind, subject = %event.subject, "{}", event.message);
        self.unwritten.events.push(event.clone());
        self.untold.events.push(event);
    }

    pub fn info(&mut self, kind: &str, subject: String, message: String) {
        self.event(EventSeverity::Info, kind, subject, message, Value::Null);
    }

    pub fn warn(&mut self, kind: &str, subject: String, message: String) {
        self.event(EventSeverity::Warning, kind, subject, message, Value::Null);
    }

    /// The one way to change an instance: what changes is written and told.
    pub fn update(&mut self, id: &str, change: impl FnOnce(&mut Instance)) {
        let Some(instance) = self.observed.instances.get_mut(id) else { return };
        change(instance);
        self.touch(id);
    }

    /// Its place is free again.
    pub fn forget(&mut self, id: &str) {
        self.touch(id);
        if let Some(instance) = self.observed.instances.remove(id) {
            self.registry.deregister(&instance.spec.service, id);
        }
        self.observed.gateways.remove(id);
        self.ports.release(&format!("instance/{id}"));
        self.unwritten.ports = true;
    }

    pub fn insert(&mut self, instance: Instance) {
        let id = instance.spec.id.clone();
        if !instance.is_gateway() {
            self.unwritten.ports = true;
        }
        self.observed.instances.insert(id.clone(), instance);
        self.touch(&id);
    }

    fn touch(&mut self, id: &str) {
        let Some(instance) = self.observed.instances.get(id) else { return };
        if instance.is_gateway() {
            self.untold.gateways.insert(id.to_owned());
        } else {
            list(&mut self.registry, instance);
        }
        self.touched_service(&instance.spec.service.clone());
        self.unwritten.instances.insert(id.to_owned());
    }

    /// Notes what a gateway says of an edge's breaker; the callee is shown with it.
    pub fn breaker(&mut self, edge: &str, gateway: &str, breaker: BreakerState) {
        let key = (edge.to_owned(), gateway.to_owned());
        let before = match breaker {
            BreakerState::Closed => self.breakers.remove(&key),
            _ => self.breakers.insert(key, breaker),
        };
        if before.unwrap_or_default() != breaker
            && let Some((_, callee)) = edge.split_once(':')
        {
            self.touched_service(callee);
        }
    }

    fn touched_service(&mut self, service: &str) {
        if self.untold.services.insert(service.to_owned()) {
            // Those who wait for it change with it.
            let waiting = self.desired.services.iter().filter(|(_, s)| s.depends_on.iter().any(|d| d == service));
            self.untold.services.extend(waiting.map(|(name, _)| name.clone()).collect::<Vec<_>>());
        }
    }

    /// The one way to change what is remembered of a service.
    pub fn record(&mut self, service: &str, change: impl FnOnce(&mut meshctl_model::plan::ServiceRecord)) {
        let record = self.observed.services.entry(service.to_owned()).or_default();
        if record.service_id.is_empty() {
            record.service_id = uuid::Uuid::now_v7().to_string();
        }
        let before = record.clone();
        change(record);
        if *record != before {
            self.unwritten.services.insert(service.to_owned());
            self.touched_service(service);
        }
    }

    /// Decides until nothing is left to begin, and marks it all as begun. `busy` reads the ports that somebody listens on.
    pub fn next_steps(&mut self, now: Timestamp, busy: impl Fn() -> BTreeSet<u16>) -> Vec<Step> {
        self.refresh_snapshot();
        let mut begun = Vec::new();
        loop {
            // Reading the kernel's list costs as much as deciding.
            if self.wants_ports() {
                self.ports.busy = busy();
            }
            let steps = decide(&self.desired, &self.gateways, &self.observed, &mut self.ports, now);
            if steps.is_empty() {
                return begun;
            }
            for step in &steps {
                self.begin(step, now);
            }
            self.refresh_snapshot();
            begun.extend(steps);
        }
    }

    /// Whether the next decision may need a port.
    fn wants_ports(&self) -> bool {
        self.desired.services.iter().any(|(name, service)| {
            service.template.listens
                && service.template.fixed_port.is_none()
                && self.observed.staying(name).filter(|i| i.hash == service.hash).count() < service.replicas as usize
        })
    }

    /// Marks a step as under way: from here on it is seen, also by a daemon that comes after a crash.
    pub fn begin(&mut self, step: &Step, now: Timestamp) {
        match step {
            Step::Start { spec, hash } => self.begin_start(spec, hash, now),
            Step::Restart { id } => self.update(id, |instance| {
                instance.restarts += 1;
                instance.enter(Phase::Starting, now);
            }),
            Step::Drain { id } => {
                // What no gateway was told of is out already.
                let told = self.snapshot.services.values().flat_map(|service| &service.endpoints);
                let generation =
                    self.observed.generation + u64::from(told.into_iter().any(|endpoint| endpoint.id == *id));
                self.update(id, |instance| instance.enter(Phase::Draining { generation }, now));
            }
            Step::AwaitDrained { id, .. } => self.update(id, |instance| instance.enter(Phase::Quiescing, now)),
            Step::Stop { id, then, why } => {
                let (then, why) = (*then, why.clone());
                self.update(id, |instance| {
                    instance.reason = why.or(instance.reason.take());
                    instance.enter(Phase::Stopping { then }, now);
                });
            }
            Step::Push { gateway } => {
                if let Some(link) = self.observed.gateways.get_mut(gateway) {
                    link.pushing = true;
                    link.pushed_at = Some(now);
                }
            }
        }
    }

    fn begin_start(&mut self, spec: &meshctl_model::instance::InstanceSpec, hash: &str, now: Timestamp) {
        let ordinal = spec.id.rsplit('-').next().and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
        self.record(&spec.service, |record| record.next_ordinal = record.next_ordinal.max(ordinal + 1));
        let instance = Instance {
            spec: spec.clone(),
            hash: hash.to_owned(),
            revision: self.revision,
            phase: Phase::Starting,
            since: now,
            process: None,
            started_at: None,
            restarts: 0,
            failures: 0,
            reason: None,
        };
        if instance.is_gateway() {
            let slot = crate::gateways::slot_of(spec);
            let link = meshctl_model::plan::GatewayLink { slot, ..Default::default() };
            self.observed.gateways.insert(spec.id.clone(), link);
        }
        self.insert(instance);
    }

    /// Renders what the data plane should have; a difference is a new generation.
    pub fn refresh_snapshot(&mut self) {
        let mut next = meshctl_model::plan::snapshot(
            &self.desired,
            &self.observed,
            &self.leased(),
            &self.standings,
            self.revision,
        );
        next.generation = self.observed.generation;
        if next != *self.snapshot {
            self.observed.generation += 1;
            next.generation = self.observed.generation;
            self.unwritten.generation = true;
            self.snapshot = Arc::new(next);
        }
    }

    /// Everything that has yet to be written, as it is now.
    pub fn changes(&self) -> Changes {
        let unwritten = &self.unwritten;
        let instances = || unwritten.instances.iter().map(|id| (id, self.observed.instances.get(id)));
        let leases = || unwritten.leases.iter().map(|key| (key, self.lease(key)));
        let standing = |edge: &String| Some((edge.clone(), self.standings.get(edge)?.clone()));
        let unsaid = unwritten.breakers.iter().filter(|edge| !self.standings.contains_key(*edge));
        let record = |name: &String| Some((name.clone(), self.observed.services.get(name)?.clone()));
        Changes {
            revision: None,
            revision_states: unwritten
                .revision_state
                .then_some((self.revision, self.revision_state))
                .into_iter()
                .collect(),
            discard_messages: unwritten.discard_messages.then_some((self.revision, self.discard_messages)),
            instances: instances().filter_map(|(_, instance)| instance.cloned()).collect(),
            instances_gone: instances().filter(|(_, i)| i.is_none()).map(|(id, _)| id.clone()).collect(),
            services: unwritten.services.iter().filter_map(record).collect(),
            events: unwritten.events.clone(),
            ports: unwritten.ports.then(|| self.ports.assigned.clone()),
            leases: leases().filter_map(|(_, lease)| lease).collect(),
            leases_gone: leases().filter(|(_, l)| l.is_none()).map(|(key, _)| key.clone()).collect(),
            breakers: unwritten.breakers.iter().filter_map(standing).collect(),
            breakers_gone: unsaid.cloned().collect(),
            generation: unwritten.generation.then_some(self.observed.generation),
        }
    }

    /// A registration from outside, as it is written down.
    fn lease(&self, (service, id): &(String, String)) -> Option<LeaseRow> {
        let found = self.registry.service(service, Timestamp::MIN).items.into_iter().find(|found| found.id == *id)?;
        let Source::Lease { expires_at, length } = found.source else { return None };
        Some(LeaseRow { service: found.service, id: found.id, address: found.address, expires_at, length })
    }

    fn leased(&self) -> BTreeMap<String, Vec<Endpoint>> {
        let mut by_service: BTreeMap<String, Vec<Endpoint>> = BTreeMap::new();
        for lease in self.registry.snapshot(Timestamp::MIN).items {
            if let (Source::Lease { .. }, Ok(address)) = (lease.source, lease.address.parse()) {
                by_service.entry(lease.service).or_default().push(Endpoint { id: lease.id, address });
            }
        }
        by_service
    }
}

/// Puts an instance into the registry as it is seen now.
fn list(registry: &mut Catalogue, instance: &Instance) {
    let Some(address) = instance.address() else { return };
    let (service, id) = (&instance.spec.service, &instance.spec.id);
    let registration =
        Registration { service: service.clone(), id: id.clone(), address: address.to_string(), lease: None };
    let outcome = match instance.phase {
        Phase::Ready => Ok(()),
        _ => Err(view::why_out(instance)),
    };
    let at = instance.since;
    if let Err(why) = registry.register(&registration, at).and_then(|_| registry.mark(service, id, outcome, at)) {
        tracing::warn!(%why, "the registry refuses {id}");
    }
}

fn restore_lease(registry: &mut Catalogue, lease: LeaseRow) {
    let LeaseRow { service, id, address, expires_at, length } = lease;
    let renewed_at = expires_at.checked_sub(length).unwrap_or(expires_at);
    let registration = Registration { service, id, address, lease: Some(length) };
    if let Err(why) = registry.register(&registration, renewed_at) {
        tracing::warn!(%why, "a registration could not be restored");
    }
}
