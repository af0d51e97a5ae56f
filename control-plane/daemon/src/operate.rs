//! What operators ask for. Each is checked, planned, saved, and only then wanted.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use meshctl_api::error::{ApiError, ErrorCode};
use meshctl_api::view::{Accepted, Plan, PlanStep, Registration};
use meshctl_drivers::registry as drivers;
use meshctl_model::delivery::{BROKER, COURIER, Channel};
use meshctl_model::load::Sources;
use meshctl_model::plan::{Desired, DesiredService, Loss, Overlay, Phase, Ports, changes, fingerprint, losses, render};
use meshctl_model::topology::Topology;
use serde_json::json;

use crate::state::State;
use crate::store::{Changes, RevisionBody, RevisionRow, Store, StoreError};

/// Who asks, and why.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    /// The user of this machine.
    pub by: String,
    pub reason: Option<String>,
}

/// What somebody wants, before it is a revision.
#[derive(Debug)]
pub struct Wish {
    pub topology: Topology,
    pub overlay: Overlay,
    /// `apply`, `scale`, `restart`, `undo`.
    pub cause: &'static str,
    /// What the plan's fingerprint is made of, beside the revision.
    pub sources: Sources,
    /// The operator's variables that the topology was made with.
    pub environment: BTreeMap<String, String>,
    /// What the history says where the operator gives no reason: `orders=4`.
    pub detail: Option<String>,
    /// Messages may be lost by it.
    pub discard_messages: bool,
}

/// A wish with everything that follows from it. Nothing has changed yet.
#[derive(Debug)]
pub struct Planned {
    wish: Wish,
    desired: Desired,
    ports: Ports,
    pub plan: Plan,
    /// What it may lose messages by.
    pub losses: Vec<Loss>,
}

impl Planned {
    /// Whether it has to be looked up what the broker holds, before it is accepted.
    pub fn may_lose_messages(&self) -> bool {
        !self.losses.is_empty() && !self.wish.discard_messages
    }

    /// The channels that there would be.
    pub fn channels(&self) -> &BTreeMap<String, Channel> {
        &self.desired.channels
    }

    pub fn discards_messages(&self) -> bool {
        self.wish.discard_messages
    }
}

impl State {
    /// The wish to have this topology. What operators said of replicas holds where the file says nothing.
    pub fn wish_topology(&self, topology: Topology, sources: Sources) -> Wish {
        let mut overlay = self.overlay.clone();
        let names = |name: &String| topology.services.get(name);
        let ours = |name: &str| !topology.channels.is_empty() && [BROKER, COURIER].contains(&name);
        let couriers = topology.providers.couriers.instances;
        overlay.replicas.retain(|name, _| match names(name) {
            Some(service) => service.replicas.is_none(),
            None => ours(name) && couriers.is_none(),
        });
        overlay.restarts.retain(|name, _| names(name).is_some() || ours(name));
        let environment = sources.environment.clone();
        Wish { topology, overlay, cause: "apply", sources, environment, detail: None, discard_messages: false }
    }

    /// # Errors
    /// When a service does not exist.
    pub fn wish_scale(&self, replicas: impl IntoIterator<Item = (String, u32)>) -> Result<Wish, ApiError> {
        let mut overlay = self.overlay.clone();
        let mut said = Vec::new();
        for (service, count) in replicas {
            said.push(format!("{service}={count}"));
            let known = self.known_service(&service)?;
            if let Some(port) = known.template.fixed_port.filter(|_| count > 1) {
                let message =
                    format!("cannot scale {service} to {count}: its port {port} is fixed, and only one can have it");
                return Err(ApiError::new(ErrorCode::Invalid, message).hint("write `port: auto` in the topology"));
            }
            if known.template.exclusive && count != 1 {
                let message =
                    format!("cannot scale {service} to {count}: there is exactly one, which keeps what it has");
                return Err(ApiError::new(ErrorCode::Invalid, message));
            }
            if count > 1000 {
                let message = format!("cannot scale {service} to {count}: a service has at most 1000 instances");
                return Err(ApiError::new(ErrorCode::Invalid, message));
            }
            overlay.replicas.insert(service, count);
        }
        Ok(self.wish_again(overlay, "scale", said.join(", ")))
    }

    /// # Errors
    /// When a service does not exist.
    pub fn wish_restart(&self, services: &[String]) -> Result<Wish, ApiError> {
        let mut overlay = self.overlay.clone();
        for service in services {
            self.known_service(service)?;
            *overlay.restarts.entry(service.clone()).or_default() += 1;
        }
        Ok(self.wish_again(overlay, "restart", services.join(", ")))
    }

    fn wish_again(&self, overlay: Overlay, cause: &'static str, detail: String) -> Wish {
        let (topology, environment) = (self.topology.clone(), self.environment.clone());
        let (sources, detail) = (Sources::default(), Some(detail));
        Wish { topology, overlay, cause, sources, environment, detail, discard_messages: false }
    }

    /// # Errors
    /// When there is no such revision to go back to.
    pub fn wish_undo(&self, to: Option<u64>, store: &Store) -> Result<Wish, ApiError> {
        let read = |number| store.revision(number).map_err(|why| unwritable(&why));
        let found = match to {
            Some(number) => read(number)?,
            None => {
                let rows = store.revisions().map_err(|why| unwritable(&why))?;
                let worked = rows.iter().rev().filter(|row| row.revision < self.revision && row.state == "superseded");
                let mut found = None;
                for row in worked {
                    found = read(row.revision)?.filter(|(_, body)| self.differs(body));
                    if found.is_some() {
                        break;
                    }
                }
                found
            }
        };
        let (row, body) = found.ok_or_else(|| {
            let message = match to {
                Some(number) => format!("there is no revision {number} to go back to"),
                None => "there is no other revision that was ever wholly applied, to go back to".to_owned(),
            };
            ApiError::new(ErrorCode::NotFound, message).hint("see `meshctl rollout history`")
        })?;
        let RevisionBody { topology, mut overlay, environment, .. } = body;
        // A restart cannot be undone, and going back is no reason for another.
        overlay.restarts.clone_from(&self.overlay.restarts);
        let detail = Some(format!("to revision {}", row.revision));
        let sources = Sources::default();
        Ok(Wish { topology, overlay, cause: "undo", sources, environment, detail, discard_messages: false })
    }

    /// Whether a revision wants something else than the present one, restarts aside.
    fn differs(&self, body: &RevisionBody) -> bool {
        body.topology != self.topology || body.overlay.replicas != self.overlay.replicas
    }

    fn known_service(&self, name: &str) -> Result<&DesiredService, ApiError> {
        self.desired.services.get(name).ok_or_else(|| {
            let known: Vec<_> = self.desired.services.keys().map(String::as_str).collect();
            let hint = if known.is_empty() {
                "nothing is applied yet: `meshctl apply FILE`".to_owned()
            } else {
                format!("there are: {}", known.join(", "))
            };
            ApiError::new(ErrorCode::NotFound, format!("there is no service `{name}`")).hint(hint)
        })
    }

    /// What would change. `busy` are the ports that somebody listens on.
    ///
    /// # Errors
    /// When an address cannot be found for everything.
    pub fn plan(&self, wish: Wish, busy: std::collections::BTreeSet<u16>) -> Result<Planned, ApiError> {
        let mut ports = Ports { busy, ..self.ports.clone() };
        let desired =
            render(&wish.topology, &wish.overlay, &mut ports).map_err(|why| ApiError::new(ErrorCode::Invalid, why))?;
        let mut steps: Vec<PlanStep> = changes(&self.desired, &desired).into_iter().map(PlanStep::from).collect();
        steps.extend(self.retries(&desired));
        for step in &mut steps {
            step.why = masked(&step.why, &self.environment, &wish.environment);
        }
        // Where nothing is wanted a plan is the same as one made without a daemon.
        let base_revision = if self.desired.gateway.is_some() { self.revision } else { 0 };
        let plan = Plan {
            api_version: meshctl_model::API_VERSION.into(),
            kind: "Plan".into(),
            fingerprint: fingerprint(&wish.sources, base_revision),
            changes: steps.len() as u32,
            steps,
            base_revision,
            sources: Some(wish.sources.clone()).filter(|sources| !sources.files.is_empty()),
        };
        let losses = losses(&self.desired, &desired);
        Ok(Planned { wish, desired, ports, plan, losses })
    }

    /// Applying what is wanted already is the wish to try what failed once more.
    fn retries(&self, desired: &Desired) -> Vec<PlanStep> {
        let failing = desired.services.iter().filter_map(|(name, service)| {
            let failing = self.observed.services.get(name)?.failing.as_ref()?;
            (failing.hash == service.hash && self.desired.services.contains_key(name)).then_some((name, failing))
        });
        failing
            .map(|(name, failing)| PlanStep {
                action: "retry".into(),
                kind: "service".into(),
                name: name.clone(),
                why: failing.reason.clone(),
                consequence: "it is tried again".into(),
            })
            .collect()
    }

    /// Makes a plan what is wanted. Saved first: what was answered survives everything.
    ///
    /// # Errors
    /// When it cannot be saved; nothing has changed then.
    pub fn accept(
        &mut self,
        planned: Planned,
        asked: Asked,
        store: &mut Store,
        now: Timestamp,
    ) -> Result<Accepted, ApiError> {
        if self.going_down {
            let message = "the system is going down; apply again when it has ended";
            return Err(ApiError::new(ErrorCode::Unavailable, message));
        }
        let Planned { wish, desired, ports, plan, .. } = planned;
        let (last_event_id, discard_messages) = (self.last_event.to_string(), wish.discard_messages);
        let changed = plan.steps.iter().any(|step| step.action != "retry");
        if changed || self.revision == 0 || self.revision_state == "down" {
            let revision = last_revision(store)?.max(self.revision) + 1;
            let row = RevisionRow {
                revision,
                created_at: now,
                by: asked.by.clone(),
                reason: asked.reason.clone().or_else(|| wish.detail.clone()),
                cause: wish.cause.into(),
                state: "applying".into(),
            };
            let Wish { topology, overlay, environment, .. } = wish;
            let body = RevisionBody { topology, overlay, environment, desired, discard_messages };
            let ports_now = Some(ports.assigned.clone());
            let change = Changes { revision: Some((row, body.clone())), ports: ports_now, ..Changes::default() };
            store.commit(&change).map_err(|why| unwritable(&why))?;
            self.revision = revision;
            self.revision_state = "applying";
            self.topology = body.topology;
            self.overlay = body.overlay;
            self.environment = body.environment;
            let removed = self.desired.services.keys().filter(|name| !body.desired.services.contains_key(*name));
            self.untold.services.extend(removed.cloned());
            self.untold.services.extend(body.desired.services.keys().cloned());
            self.desired = body.desired;
            self.ports = ports;
            self.release_edges();
            self.drop_breakers();
            let message =
                format!("{} asks for revision {revision} ({}): {} changes", asked.by, wish.cause, plan.changes);
            let data = json!({"revision": revision, "by": asked.by, "reason": asked.reason, "cause": wish.cause});
            let severity = meshctl_model::event::EventSeverity::Info;
            self.event(severity, "revision.accepted", format!("revision/{revision}"), message, data);
        } else if discard_messages != self.discard_messages {
            let permission = Some((self.revision, discard_messages));
            let change = Changes { discard_messages: permission, ..Changes::default() };
            store.commit(&change).map_err(|why| unwritable(&why))?;
        }
        self.discard_messages = discard_messages;
        self.asked += 1;
        self.try_again(now);
        self.awaited = Some(self.revision);
        self.untold.system = true;
        Ok(Accepted { revision: self.revision, plan, last_event_id })
    }

    /// An apply is also the wish to try what failed once more, at once.
    fn try_again(&mut self, now: Timestamp) {
        let names: Vec<String> = self.observed.services.keys().cloned().collect();
        for name in names {
            self.record(&name, |record| record.failing = None);
        }
        let waiting: Vec<String> = self
            .observed
            .instances
            .values()
            .filter(|instance| matches!(instance.phase, Phase::BackingOff { .. }))
            .map(|instance| instance.spec.id.clone())
            .collect();
        for id in waiting {
            self.update(&id, |instance| {
                instance.failures = 0;
                instance.enter(Phase::BackingOff { until: now }, now);
            });
        }
        // A refused address is tried again only by a new push.
        for link in self.observed.gateways.values_mut().filter(|link| link.trouble.is_some()) {
            link.trouble = None;
            link.acked_generation = 0;
        }
    }

    /// Addresses of edges that are no longer wanted can be given to others.
    fn release_edges(&mut self) {
        let metrics = self.gateways.len().max(self.desired.gateway.as_ref().map_or(0, |g| g.instances as usize));
        let desired = &self.desired;
        self.ports.assigned.retain(|owner, _| match owner.split_once('/') {
            Some(("edge", edge)) => desired.edges.contains_key(edge),
            Some(("metrics", slot)) => slot.parse::<usize>().is_ok_and(|slot| slot <= metrics),
            _ => true,
        });
        self.unwritten.ports = true;
    }

    /// From here on nothing is wanted.
    pub fn down(&mut self, asked: &Asked, store: &mut Store) -> Accepted {
        let last_event_id = self.last_event.to_string();
        let empty = Desired { name: self.desired.name.clone(), ports: self.desired.ports, ..Desired::default() };
        let steps: Vec<PlanStep> = changes(&self.desired, &empty).into_iter().map(PlanStep::from).collect();
        let plan = Plan {
            api_version: meshctl_model::API_VERSION.into(),
            kind: "Plan".into(),
            fingerprint: fingerprint(&Sources::default(), self.revision),
            changes: steps.len() as u32,
            steps,
            base_revision: self.revision,
            sources: None,
        };
        self.untold.services.extend(self.desired.services.keys().cloned());
        self.desired = empty;
        self.drop_breakers();
        self.going_down = true;
        self.awaited = None;
        self.revision_state = "down";
        self.untold.system = true;
        let saved = Changes { revision_states: vec![(self.revision, "down")], ..Changes::default() };
        // A full disk is no reason to keep everything running: it is written when there is room again, at the end at last.
        if let Err(why) = store.commit(&saved) {
            self.unwritten.revision_state = true;
            self.warn(
                "store.unwritable",
                "system".into(),
                format!("that the system goes down is not saved yet: {why}"),
            );
        }
        let data = json!({"by": asked.by, "reason": asked.reason});
        let message = format!("{} takes the system down", asked.by);
        let severity = meshctl_model::event::EventSeverity::Info;
        self.event(severity, "system.goingDown", "system".into(), message, data);
        Accepted { revision: self.revision, plan, last_event_id }
    }

    /// Adds or renews a registration from outside.
    ///
    /// # Errors
    /// When the address is none.
    pub fn register(
        &mut self,
        service: &str,
        id: &str,
        registration: &Registration,
        now: Timestamp,
    ) -> Result<(), ApiError> {
        if let Err(why) = registration.address.parse::<std::net::SocketAddr>() {
            let message =
                format!("cannot register {id} of {service}: `{}` is not an address: {why}", registration.address);
            return Err(ApiError::new(ErrorCode::Invalid, message).hint("write ADDRESS:PORT, such as 127.0.0.1:9000"));
        }
        let ours = id.strip_prefix(service).and_then(|rest| rest.strip_prefix('-'));
        if ours.is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit())) {
            let message =
                format!("cannot register {id} of {service}: names of that form are those of instances started here");
            return Err(ApiError::new(ErrorCode::Conflict, message).hint("choose another name"));
        }
        let default = if self.desired.lease.as_millis() == 0 { 30_000 } else { self.desired.lease.as_millis() };
        let length = Duration::from_millis(registration.lease_ms.unwrap_or(default).clamp(1, 86_400_000));
        let before = self.registry.index();
        let wanted = drivers::Registration {
            service: service.into(),
            id: id.into(),
            address: registration.address.clone(),
            lease: Some(length),
        };
        self.registry.register(&wanted, now).map_err(|why| refused(&why))?;
        if self.registry.index() != before {
            let message = format!("{id} of {service} is registered at {}", registration.address);
            self.info("endpoint.registered", format!("endpoint/{id}"), message);
        }
        self.unwritten.leases.insert((service.to_owned(), id.to_owned()));
        Ok(())
    }

    /// # Errors
    /// When it is not registered.
    pub fn deregister(&mut self, service: &str, id: &str) -> Result<(), ApiError> {
        let found = self.registry.service(service, Timestamp::MIN).items.into_iter().find(|found| found.id == id);
        if !found.is_some_and(|found| matches!(found.source, drivers::Source::Lease { .. })) {
            let message = format!("nothing is registered from outside as {id} of {service}");
            return Err(ApiError::new(ErrorCode::NotFound, message).hint("see `meshctl registry ls`"));
        }
        self.registry.deregister(service, id);
        self.unwritten.leases.insert((service.to_owned(), id.to_owned()));
        self.info("endpoint.deregistered", format!("endpoint/{id}"), format!("{id} of {service} is deregistered"));
        Ok(())
    }

    /// A lease that was not renewed is over at its end, not at some later look.
    pub fn expire_leases(&mut self, now: Timestamp) {
        for lease in self.registry.expire(now) {
            let message = format!("the registration of {} of {} was not renewed", lease.id, lease.service);
            self.warn("endpoint.expired", format!("endpoint/{}", lease.id), message);
            self.unwritten.leases.insert((lease.service, lease.id));
        }
    }
}

/// Values of the operator's variables may be secrets: what was written as `${NAME}` is shown as that.
fn masked(text: &str, old: &BTreeMap<String, String>, new: &BTreeMap<String, String>) -> String {
    let shown = old.iter().chain(new).filter(|(_, value)| value.len() > 2);
    shown.fold(text.to_owned(), |text, (name, value)| text.replace(value.as_str(), &format!("${{{name}}}")))
}

fn refused(why: &drivers::RegistryError) -> ApiError {
    ApiError::new(ErrorCode::Conflict, why.to_string())
}

fn last_revision(store: &Store) -> Result<u64, ApiError> {
    let rows = store.revisions().map_err(|why| unwritable(&why))?;
    Ok(rows.last().map_or(0, |row| row.revision))
}

/// The words for a store that fails, which is nearly always a full disk.
pub fn unwritable(why: &StoreError) -> ApiError {
    ApiError::new(ErrorCode::Unavailable, format!("nothing was changed: {why}"))
        .hint("free some space (`meshctl check` shows how much there is), then try again")
}
