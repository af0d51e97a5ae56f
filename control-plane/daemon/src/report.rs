//! What comes back from the edge: each report changes what is seen, and nothing else.

use jiff::Timestamp;
use meshctl_drivers::gateway::GatewayError;
use meshctl_drivers::runtime::{Running, RuntimeError};
use meshctl_model::instance::Exit;
use meshctl_model::plan::{AfterStop, CRASH_LOOP, Failing, Phase};
use meshctl_model::snapshot::{BreakerState, GatewayEvent, GatewayStatus};
use serde_json::json;

use crate::state::State;

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
    Told {
        gateway: String,
        event: GatewayEvent,
    },
}

impl State {
    pub fn fold(&mut self, report: Report, now: Timestamp) {
        match report {
            Report::Started { id, outcome: Ok(running) } => self.update(&id, |instance| {
                instance.process = Some(running.process);
                instance.started_at = Some(running.started_at);
            }),
            Report::Started { id, outcome: Err(why) } => self.unstartable(&id, &why, now),
            Report::Checked { id, outcome } => self.checked(&id, outcome, now),
            Report::Exited { id, exit, log } => self.exited(&id, &exit, log, now),
            Report::Drained { id, trouble } => {
                if let Some(trouble) = trouble {
                    self.warn("instance.drainOverdue", subject(&id), format!("{id} did not drain: {trouble}"));
                }
                // Stopping it is the next step; it is decided like every other.
                self.update(&id, |instance| instance.enter(Phase::Drained, now));
            }
            Report::Stopped { id, outcome, log } => self.stopped(&id, outcome, log, now),
            Report::Pushed { gateway, outcome } => self.pushed(&gateway, outcome),
            Report::Told { gateway, event } => self.told(&gateway, event),
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
        let known = self.observed.services.get(service).and_then(|record| record.failing.as_ref());
        if known.is_some_and(|known| known.hash == failing.hash) {
            return;
        }
        let subject = format!("service/{service}");
        let data = json!({"reason": failing.reason, "log": failing.log});
        let severity = meshctl_model::event::EventSeverity::Error;
        self.event(severity, "service.failing", subject.clone(), failing.reason.clone(), data);
        let wanted = self.desired.services.get(service).map(|wanted| wanted.hash.clone());
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
        let before = link.trouble.clone();
        match outcome {
            Ok(status) => {
                link.acked_generation = status.generation;
                link.acked_revision = status.revision;
                link.version = Some(status.version);
                link.trouble = match status.refused.as_slice() {
                    [] => None,
                    refused => {
                        let each = refused.iter().map(|(address, why)| format!("cannot listen on {address}: {why}"));
                        Some(each.collect::<Vec<_>>().join("; "))
                    }
                };
            }
            Err(why) => link.trouble = Some(why.to_string()),
        }
        let trouble = link.trouble.clone();
        if trouble != before
            && let Some(trouble) = trouble
        {
            self.warn("gateway.trouble", subject(gateway), trouble);
        }
        self.untold.gateways.insert(gateway.to_owned());
    }

    fn told(&mut self, gateway: &str, event: GatewayEvent) {
        match event {
            GatewayEvent::Breaker { edge, from, to, reason, .. } => {
                let (kind, word) = match to {
                    BreakerState::Open => ("breaker.opened", "open"),
                    BreakerState::HalfOpen => ("breaker.halfOpened", "half-open"),
                    BreakerState::Closed => ("breaker.closed", "closed"),
                };
                let data = json!({"gateway": gateway, "from": from, "to": to, "reason": reason});
                let message = format!("the breaker of {edge} is {word} at {gateway}: {reason}");
                let severity = match to {
                    BreakerState::Open => meshctl_model::event::EventSeverity::Warning,
                    _ => meshctl_model::event::EventSeverity::Info,
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
