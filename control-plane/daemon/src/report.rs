//! What comes back from the edge: each report changes what is seen, and nothing else.

use jiff::Timestamp;
use meshctl_drivers::gateway::GatewayError;
use meshctl_drivers::runtime::{Running, RuntimeError};
use meshctl_model::event::EventSeverity;
use meshctl_model::instance::Exit;
use meshctl_model::plan::{AfterStop, CRASH_LOOP, Failing, GatewayLink, Phase};
use meshctl_model::snapshot::{BreakerState, GatewayEvent, GatewayStatus};
use serde_json::{Value, json};

use crate::messaging::declare::{Declared, Occasion};
use crate::state::State;
use crate::view::breaker_word;

/// Something that an executor or a monitor saw.
#[derive(Debug)]
pub enum Report {
    Started {
        id: String,
        outcome: Result<Running, RuntimeError>,
    },
    /// A check changed its mind, or its words while the instance is starting.
    Checked {
        id: String,
        outcome: Result<(), String>,
    },
    /// It ended by itself; with its last lines.
    Exited {
        id: String,
        exit: Exit,
        log: Vec<String>,
    },
    /// No request is under way to it, or it had its time.
    Drained {
        id: String,
        trouble: Option<String>,
    },
    Stopped {
        id: String,
        outcome: Result<Exit, RuntimeError>,
        log: Vec<String>,
    },
    Pushed {
        gateway: String,
        outcome: Result<GatewayStatus, GatewayError>,
    },
    /// What a gateway says of itself differs from what it said before.
    Seen {
        gateway: String,
        status: GatewayStatus,
    },
    Told {
        gateway: String,
        event: GatewayEvent,
    },
    /// The broker has the channels, or why not.
    Declared {
        occasion: Occasion,
        outcome: Result<Declared, String>,
    },
    /// Something is to be known that changes nothing here.
    Happened {
        severity: EventSeverity,
        kind: &'static str,
        subject: String,
        message: String,
        data: Value,
    },
}

impl State {
    pub fn fold(&mut self, report: Report, now: Timestamp) {
        match report {
            Report::Started { id, outcome: Ok(running) } => {
                self.unlink(&id);
                self.update(&id, |instance| {
                    instance.process = Some(running.process);
                    instance.started_at = Some(running.started_at);
                });
            }
            Report::Started { id, outcome: Err(why) } => self.unstartable(&id, &why, now),
            Report::Checked { id, outcome } => self.checked(&id, outcome, now),
            Report::Exited { id, exit, log } => self.exited(&id, &exit, log, now),
            Report::Drained { id, trouble } => {
                if let Some(trouble) = trouble {
                    self.warn("instance.drainOverdue", subject(&id), format!("{id} did not drain: {trouble}"));
                }
                // Stopping it is the next step; it is decided like every other. It may have been begun already.
                self.update(&id, |instance| {
                    if instance.phase == Phase::Quiescing {
                        instance.enter(Phase::Drained, now);
                    }
                });
            }
            Report::Stopped { id, outcome, log } => self.stopped(&id, outcome, log, now),
            Report::Pushed { gateway, outcome } => self.pushed(&gateway, outcome),
            Report::Seen { gateway, status } => self.seen(&gateway, status),
            Report::Told { gateway, event } => self.told(&gateway, event),
            Report::Declared { occasion, outcome } => self.declared(occasion, outcome),
            Report::Happened { severity, kind, subject, message, data } => {
                self.event(severity, kind, subject, message, data);
            }
        }
    }

    fn unstartable(&mut self, id: &str, why: &RuntimeError, now: Timestamp) {
        let exit = Exit { at: now, code: None, signal: None, asked: false, reason: Some(why.to_string()) };
        let hopeless = matches!(why, RuntimeError::Unstartable { .. });
        self.ended(id, &exit, Vec::new(), hopeless, now);
    }

    fn checked(&mut self, id: &str, outcome: Result<(), String>, now: Timestamp) {
        let Some(instance) = self.observed.instances.get(id) else { return };
        let (phase, gateway) = (instance.phase, instance.is_gateway());
        match (phase, outcome) {
            (Phase::Starting | Phase::Unhealthy, Ok(())) => {
                self.update(id, |instance| {
                    instance.reason = None;
                    instance.enter(Phase::Ready, now);
                });
                if !gateway {
                    self.info("instance.ready", subject(id), format!("{id} is ready"));
                }
            }
            (Phase::Ready, Err(why)) => {
                self.warn("instance.unhealthy", subject(id), format!("{id} is out of routing: {why}"));
                self.update(id, |instance| {
                    instance.reason = Some(why);
                    instance.enter(Phase::Unhealthy, now);
                });
            }
            (Phase::Starting | Phase::Unhealthy, Err(why)) => self.update(id, |instance| instance.reason = Some(why)),
            _ => {}
        }
    }

    fn exited(&mut self, id: &str, exit: &Exit, log: Vec<String>, now: Timestamp) {
        let Some(instance) = self.observed.instances.get(id) else { return };
        // What is being stopped says so itself when it is done.
        if !matches!(instance.phase, Phase::Stopping { .. }) {
            let superseded = instance.is_gateway() && exit.code == Some(0);
            if superseded {
                self.info("gateway.finished", subject(id), format!("{id} finished its requests and ended"));
            } else {
                self.warn("instance.exited", subject(id), format!("{id} {exit}"));
            }
            self.ended(id, exit, log, false, now);
        }
    }

    /// It runs no more, and nobody asked it to end.
    fn ended(&mut self, id: &str, exit: &Exit, log: Vec<String>, hopeless: bool, now: Timestamp) {
        let Some(instance) = self.observed.instances.get(id) else { return };
        let never_ready = matches!(instance.phase, Phase::Starting);
        self.unlink(id);
        let mut forget = false;
        self.update(id, |instance| forget = instance.ended(exit, now));
        if forget {
            self.forget(id);
            self.litter.push(id.to_owned());
            return;
        }
        let Some(instance) = self.observed.instances.get(id) else { return };
        let (service, hash, failures) = (instance.spec.service.clone(), instance.hash.clone(), instance.failures);
        if hopeless || failures >= CRASH_LOOP {
            let loops = if never_ready || hopeless { "does not become ready" } else { "keeps ending" };
            let reason = format!("{id} {loops}: {exit}");
            self.failing(&service, Failing { hash, reason, log, at: now });
        }
    }

    fn failing(&mut self, service: &str, failing: Failing) {
        let wanted = self.desired.services.get(service).map(|wanted| wanted.hash.clone());
        let known = self.observed.services.get(service).and_then(|record| record.failing.as_ref());
        // That the wanted form failed stays known while the former one fails too, or the two would take turns.
        if known.is_some_and(|known| known.hash == failing.hash || Some(&known.hash) == wanted.as_ref()) {
            return;
        }
        let subject = format!("service/{service}");
        let data = json!({"reason": failing.reason, "log": failing.log});
        let severity = meshctl_model::event::EventSeverity::Error;
        self.event(severity, "service.failing", subject.clone(), failing.reason.clone(), data);
        let good = self.observed.services.get(service).and_then(|record| record.good.as_ref());
        if wanted == Some(failing.hash.clone()) && good.is_some_and(|good| good.hash != failing.hash) {
            let message = format!("{service} goes back to what was ready before");
            self.warn("service.reverted", subject, message);
        }
        self.record(service, |record| record.failing = Some(failing));
    }

    fn stopped(&mut self, id: &str, outcome: Result<Exit, RuntimeError>, log: Vec<String>, now: Timestamp) {
        let Some(instance) = self.observed.instances.get(id) else { return };
        let Phase::Stopping { then } = instance.phase else { return };
        let (service, hash) = (instance.spec.service.clone(), instance.hash.clone());
        let exit = match outcome {
            Ok(exit) => exit,
            Err(why) => {
                // Something of it still runs: it stays in view, and is stopped again at the next look.
                self.warn("instance.notStopped", subject(id), why.to_string());
                self.update(id, |instance| {
                    instance.reason = Some(why.to_string());
                    instance.enter(Phase::Drained, now);
                });
                return;
            }
        };
        match then {
            AfterStop::Forget => {
                self.info("instance.stopped", subject(id), format!("{id} is stopped"));
                self.forget(id);
            }
            AfterStop::Retry => {
                let reason = instance.reason.clone().unwrap_or_default();
                self.warn("instance.gaveUp", subject(id), format!("{id} was ended: {reason}"));
                self.update(id, |instance| {
                    instance.ended(&exit, now);
                });
                let reason = format!("{id} {reason}");
                self.failing(&service, Failing { hash, reason, log, at: now });
            }
        }
    }

    fn pushed(&mut self, gateway: &str, outcome: Result<GatewayStatus, GatewayError>) {
        let Some(link) = self.observed.gateways.get_mut(gateway) else { return };
        link.pushing = false;
        match outcome {
            Ok(status) => self.seen(gateway, status),
            Err(why @ GatewayError::Refused { .. }) => self.trouble(gateway, Some(why.to_string())),
            // It ended, or does not answer, which its monitor sees as well; it is pushed again when it is ready.
            Err(why) => tracing::warn!(%why, "a snapshot was not acknowledged"),
        }
    }

    /// What a gateway says is what counts, whatever it was sent.
    fn seen(&mut self, gateway: &str, status: GatewayStatus) {
        let Some(link) = self.observed.gateways.get_mut(gateway) else { return };
        link.acked_generation = status.generation;
        link.acked_revision = status.revision;
        link.version = Some(status.version);
        let breakers = status.edges.into_iter().map(|edge| (edge.edge, edge.breaker)).collect::<Vec<_>>();
        link.ejected = status.ejected.into_iter().map(|ejection| (ejection.endpoint, ejection.reason)).collect();
        // It knows a generation that was forgotten here, as after a power cut: the next one is beyond it.
        self.observed.generation = self.observed.generation.max(status.generation);
        for (edge, breaker) in breakers {
            self.breaker(&edge, gateway, breaker);
        }
        let refused = status.refused.iter().map(|(address, why)| format!("cannot listen on {address}: {why}"));
        let refused = refused.collect::<Vec<_>>().join("; ");
        self.trouble(gateway, Some(refused).filter(|text| !text.is_empty()));
    }

    fn trouble(&mut self, gateway: &str, trouble: Option<String>) {
        let Some(link) = self.observed.gateways.get_mut(gateway) else { return };
        let before = std::mem::replace(&mut link.trouble, trouble.clone());
        if let Some(trouble) = trouble.filter(|trouble| before.as_ref() != Some(trouble)) {
            self.warn("gateway.trouble", subject(gateway), trouble);
        }
        self.untold.gateways.insert(gateway.to_owned());
    }

    /// A process that starts or ends has acknowledged nothing.
    fn unlink(&mut self, id: &str) {
        if let Some(link) = self.observed.gateways.get_mut(id) {
            *link = GatewayLink { slot: link.slot, ..GatewayLink::default() };
            self.breakers.retain(|(_, gateway), _| gateway != id);
        }
    }

    fn declared(&mut self, occasion: Occasion, outcome: Result<Declared, String>) {
        let outcome = match outcome {
            Ok(Declared { new, removed }) => {
                for name in new {
                    self.info("channel.declared", format!("channel/{name}"), format!("the broker has {name}"));
                }
                for name in removed {
                    let message = format!("the broker has {name} no more");
                    self.info("channel.removed", format!("channel/{name}"), message);
                }
                // A permission is for once: what is accepted from now on is nobody's to lose.
                if self.discard_messages && occasion.last && occasion.asked == self.asked {
                    self.discard_messages = false;
                    self.unwritten.discard_messages = true;
                }
                Ok(())
            }
            Err(why) => {
                // While messages are drained their number changes all the time, and the reason does not.
                let reason = |why: &String| why.replace(|letter: char| letter.is_ascii_digit(), "");
                let before = self.declared.as_ref().and_then(|(_, outcome)| outcome.as_ref().err());
                let known = before.is_some_and(|before| reason(before) == reason(&why));
                if !known {
                    self.warn("channel.refused", "service/broker".into(), why.clone());
                }
                Err(why)
            }
        };
        self.declared = Some((occasion, outcome));
        self.untold.system = true;
    }

    fn told(&mut self, gateway: &str, event: GatewayEvent) {
        match event {
            GatewayEvent::Breaker { edge, from, to, reason, .. } => {
                self.breaker(&edge, gateway, to);
                let kind = match (from, to) {
                    (BreakerState::ForcedOpen | BreakerState::ForcedClosed, BreakerState::Closed) => "breaker.released",
                    (_, BreakerState::Closed) => "breaker.closed",
                    (_, BreakerState::Open) => "breaker.opened",
                    (_, BreakerState::HalfOpen) => "breaker.halfOpened",
                    (_, BreakerState::ForcedOpen) => "breaker.forcedOpen",
                    (_, BreakerState::ForcedClosed) => "breaker.forcedClosed",
                };
                let mut data = json!({"gateway": gateway, "from": from, "to": to, "reason": reason});
                if let Some(force) = self.standings.get(&edge).and_then(|standing| standing.force.as_ref())
                    && BreakerState::from(force.state) == to
                {
                    data["by"] = json!(force.by);
                    data["expiresAt"] = json!(force.expires_at);
                }
                let message = format!("the breaker of {edge} is {} at {gateway}: {reason}", breaker_word(to));
                let severity = match to {
                    BreakerState::Open | BreakerState::ForcedOpen => EventSeverity::Warning,
                    _ => EventSeverity::Info,
                };
                self.event(severity, kind, format!("edge/{edge}"), message, data);
            }
            GatewayEvent::Ejected(ejection) => {
                let message = format!("{gateway} leaves {} out: {}", ejection.endpoint, ejection.reason);
                self.warn("endpoint.ejected", format!("endpoint/{}", ejection.endpoint), message);
            }
            GatewayEvent::Returned { endpoint, .. } => {
                let message = format!("{gateway} calls {endpoint} again");
                self.info("endpoint.returned", format!("endpoint/{endpoint}"), message);
            }
        }
    }
}

fn subject(id: &str) -> String {
    format!("instance/{id}")
}
