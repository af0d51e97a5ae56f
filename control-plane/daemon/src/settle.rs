//! When is a change done? Judged from what is seen after every step, never from what was asked.

use std::collections::BTreeSet;

use meshctl_model::delivery::BROKER;
use meshctl_model::event::EventSeverity;
use meshctl_model::plan::{DesiredService, Phase, Unready};
use serde_json::json;

use crate::state::State;

/// What stands between the system and what is wanted.
#[derive(Debug, Default)]
struct Outstanding {
    /// Something is on its way and may still succeed.
    moving: bool,
    /// `(service, reason, last lines)`.
    failures: Vec<(String, String, Vec<String>)>,
    /// `(service, by)`.
    blocked: Vec<(String, String)>,
}

impl State {
    /// Notes what has become ready, and tells the outcome of a change when there is one.
    pub fn settle(&mut self, touched: &BTreeSet<String>) {
        for name in touched {
            self.note_good(name);
        }
        let outstanding = self.outstanding();
        // Where nothing is wanted nothing is missing, and yet nothing is ready.
        let ready = self.desired.gateway.is_some()
            && !self.going_down
            && !outstanding.moving
            && outstanding.failures.is_empty()
            && outstanding.blocked.is_empty();
        if ready != self.ready {
            self.ready = ready;
            self.untold.system = true;
        }
        if ready && self.revision_state != "applied" {
            self.awaited.get_or_insert(self.revision);
        }
        let Some(revision) = self.awaited.filter(|_| !outstanding.moving && !self.going_down) else { return };
        self.awaited = None;
        let subject = format!("revision/{revision}");
        let state = if ready { "applied" } else { "failed" };
        if self.revision_state != state {
            self.revision_state = state;
            self.unwritten.revision_state = true;
        }
        if ready {
            let message = format!("revision {revision} is applied: every instance is ready, every gateway carries it");
            self.event(EventSeverity::Info, "revision.applied", subject, message, json!({"revision": revision}));
            return;
        }
        let names: Vec<_> = outstanding.failures.iter().map(|(service, ..)| service.as_str()).collect();
        let message = format!("revision {revision} is not applied: {} failed", names.join(", "));
        let failures: Vec<_> = outstanding
            .failures
            .iter()
            .map(|(service, reason, log)| json!({"service": service, "reason": reason, "log": log}))
            .collect();
        let blocked: Vec<_> =
            outstanding.blocked.iter().map(|(service, by)| json!({"service": service, "by": by})).collect();
        let data = json!({"revision": revision, "failures": failures, "blocked": blocked});
        self.event(EventSeverity::Error, "revision.failed", subject, message, data);
    }

    /// A service that is wholly ready has a form to go back to.
    fn note_good(&mut self, name: &str) {
        let Some(wanted) = self.desired.services.get(name).cloned() else { return };
        if self.desired.unready(name, &self.observed).is_none() {
            self.record(name, |record| {
                record.failing = None;
                record.good = Some(wanted);
            });
        }
    }

    fn outstanding(&self) -> Outstanding {
        let mut outstanding = Outstanding::default();
        for name in self.desired.services.keys() {
            match self.desired.unready(name, &self.observed) {
                None => {}
                Some(Unready::Moving) => outstanding.moving = true,
                Some(Unready::BlockedBy(by)) => outstanding.blocked.push((name.clone(), by)),
                Some(Unready::Failing) => {
                    let record = self.observed.services.get(name);
                    let failing = record.and_then(|record| record.failing.as_ref());
                    outstanding.moving |= self.former(name).is_some() && !self.rolled_back(name);
                    let (reason, log) = failing.map(|f| (f.reason.clone(), f.log.clone())).unwrap_or_default();
                    outstanding.failures.push((name.clone(), reason, log));
                }
            }
        }
        // Blocked by something that itself is only on its way is on its way too.
        let stuck: BTreeSet<&str> = outstanding
            .failures
            .iter()
            .map(|(name, ..)| name.as_str())
            .chain(outstanding.blocked.iter().map(|(name, _)| name.as_str()))
            .collect();
        outstanding.moving |= outstanding.blocked.iter().any(|(_, by)| !stuck.contains(by.as_str()));
        outstanding.moving |=
            self.observed.instances.values().any(|instance| instance.retiring() && !instance.is_gateway());
        self.gateways_outstanding(&mut outstanding);
        self.channels_outstanding(&mut outstanding);
        outstanding
    }

    /// As long as there is no broker that could be told, it is the broker that is outstanding.
    fn channels_outstanding(&self, outstanding: &mut Outstanding) {
        let Some(occasion) = self.occasion() else { return };
        match &self.declared {
            Some((declared, Ok(()))) if *declared == occasion => {}
            Some((declared, Err(why))) if *declared == occasion => {
                outstanding.failures.push((BROKER.into(), why.clone(), Vec::new()));
            }
            _ => outstanding.moving = true,
        }
    }

    /// The form that a failing service goes back to, if there is one.
    fn former(&self, name: &str) -> Option<&DesiredService> {
        let record = self.observed.services.get(name)?;
        let (good, failing) = (record.good.as_ref()?, record.failing.as_ref()?);
        Some(good).filter(|good| good.hash != failing.hash)
    }

    /// Whether a service that failed in a new form is wholly back in the former one.
    pub fn rolled_back(&self, name: &str) -> bool {
        self.former(name).is_some_and(|good| {
            let there = self.observed.of(name).filter(|i| i.hash == good.hash && i.phase == Phase::Ready).count();
            there == good.replicas as usize && self.observed.of(name).count() == there
        })
    }

    fn gateways_outstanding(&self, outstanding: &mut Outstanding) {
        for (slot, wanted) in &self.gateways {
            let link = |id: &str| self.observed.gateways.get(id).filter(|link| link.slot == *slot);
            let current = self
                .observed
                .of(meshctl_model::GATEWAY)
                .find(|i| i.hash == wanted.hash && !i.retiring() && link(&i.spec.id).is_some());
            let Some((current, link)) = current.and_then(|i| Some((i, link(&i.spec.id)?))) else {
                outstanding.moving = true;
                continue;
            };
            let acknowledged = current.phase == Phase::Ready && link.acked_generation >= self.observed.generation;
            let name = || current.spec.id.clone();
            if let Some(trouble) = link.trouble.clone().filter(|_| !link.pushing) {
                outstanding.failures.push((name(), trouble, Vec::new()));
            } else if !acknowledged {
                let failing = self.observed.services.get(meshctl_model::GATEWAY).and_then(|r| r.failing.clone());
                match failing.filter(|failing| failing.hash == wanted.hash) {
                    Some(failing) => outstanding.failures.push((name(), failing.reason, failing.log)),
                    None => outstanding.moving = true,
                }
            }
        }
    }
}
