//! What is seen: instances and gateways with what is known of them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::desired::DesiredService;
use crate::GATEWAY;
use crate::instance::{Exit, InstanceSpec, ProcessId};

/// Everything that [`super::decide`] looks at.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    /// By id, instances of services and gateways alike.
    pub instances: BTreeMap<String, Instance>,
    /// By name; outlives the service, so that ids are never used again.
    pub services: BTreeMap<String, ServiceRecord>,
    /// By instance id.
    pub gateways: BTreeMap<String, GatewayLink>,
    /// Of the snapshot that fits the present desired state and instances.
    pub generation: u64,
}

/// One instance, from the intent to start it to its end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Instance {
    pub spec: InstanceSpec,
    /// Of the template that it was made from.
    pub hash: String,
    /// The revision that it was started for.
    pub revision: u64,
    pub phase: Phase,
    pub since: Timestamp,
    /// Of the program; `None` while there is none.
    pub process: Option<ProcessId>,
    pub started_at: Option<Timestamp>,
    pub restarts: u32,
    /// Ends in a row without having been ready for long.
    pub failures: u32,
    /// In words: the last failed check, the last exit.
    pub reason: Option<String>,
}

/// Where an instance is in its life. The arrows: starting → ready ⇄ unhealthy; from each of them to backing off when it
/// ends by itself, and to stopping when it is given up; ready → draining → quiescing → drained → stopping → gone when it is retired.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Phase {
    /// Asked for or running, not yet ready.
    Starting,
    Ready,
    /// Running, and its checks fail.
    Unhealthy,
    /// Out of every snapshot from this generation on; gateways have yet to say so.
    #[serde(rename_all = "camelCase")]
    Draining {
        generation: u64,
    },
    /// Out of every gateway; requests under way are finishing.
    Quiescing,
    /// Nothing calls it; it may be ended.
    Drained,
    /// Being ended.
    #[serde(rename_all = "camelCase")]
    Stopping {
        then: AfterStop,
    },
    /// Ended by itself; started again at that time.
    #[serde(rename_all = "camelCase")]
    BackingOff {
        until: Timestamp,
    },
}

/// What becomes of an instance that was stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum AfterStop {
    /// It is not wanted any more.
    Forget,
    /// It was given up and is tried again.
    Retry,
}

/// What is remembered of a service beside its instances.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceRecord {
    /// The source's service_id.
    pub service_id: String,
    /// The number of the next new instance.
    pub next_ordinal: u64,
    /// The last desired form in which all its instances were ready.
    pub good: Option<DesiredService>,
    /// Set when it does not become ready; cleared by becoming ready and by every apply.
    pub failing: Option<Failing>,
}

/// Why a service does not become ready.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Failing {
    /// Of the template that fails; with a good one before it, the service goes back to that.
    pub hash: String,
    pub reason: String,
    /// Its last lines.
    pub log: Vec<String>,
    pub at: Timestamp,
}

/// What is known of a running gateway beside its process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GatewayLink {
    pub slot: u32,
    /// 0 before the first acknowledgement.
    pub acked_generation: u64,
    pub acked_revision: u64,
    /// A snapshot is on its way.
    pub pushing: bool,
    /// When the last one was begun.
    pub pushed_at: Option<Timestamp>,
    /// Why the last push was not acknowledged, or which address could not be opened.
    pub trouble: Option<String>,
    pub version: Option<String>,
    /// Endpoints that it leaves out on its own observation, with the reason.
    pub ejected: BTreeMap<String, String>,
}

/// Why a service is not what is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unready {
    /// Waits for that service to be ready.
    BlockedBy(String),
    /// Does not become ready.
    Failing,
    /// On its way.
    Moving,
}

/// Between two pushes to one gateway: while a hundred instances become ready one after the other, a gateway is not given a
/// hundred snapshots.
const PUSH_PAUSE: Duration = Duration::from_millis(15);

impl GatewayLink {
    /// When the next snapshot may be pushed; `None` while one is on its way, or when `generation` is there already.
    pub fn next_push(&self, generation: u64) -> Option<Timestamp> {
        let due = !self.pushing && self.acked_generation < generation;
        let paused = self.pushed_at.and_then(|at| at.checked_add(PUSH_PAUSE).ok());
        due.then_some(paused.unwrap_or(Timestamp::MIN))
    }
}

impl Instance {
    pub fn is_gateway(&self) -> bool {
        self.spec.service == GATEWAY
    }

    /// Whether it is on its way out for good.
    pub fn retiring(&self) -> bool {
        matches!(
            self.phase,
            Phase::Draining { .. } | Phase::Quiescing | Phase::Drained | Phase::Stopping { then: AfterStop::Forget }
        )
    }

    /// Its process was asked for and has not been seen yet.
    pub fn being_started(&self) -> bool {
        self.phase == Phase::Starting && self.process.is_none()
    }

    pub fn address(&self) -> Option<SocketAddr> {
        self.spec.port.map(|port| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port))
    }

    pub fn enter(&mut self, phase: Phase, now: Timestamp) {
        self.phase = phase;
        self.since = now;
    }

    /// It ended: what was asked to go is gone, anything else is started again after a pause. Returns whether it is to be
    /// forgotten.
    pub fn ended(&mut self, exit: &Exit, now: Timestamp) -> bool {
        if self.retiring() {
            return true;
        }
        let steady = self.phase == Phase::Ready && now.duration_since(self.since).as_secs() >= 10;
        self.failures = if steady { 1 } else { self.failures + 1 };
        // A gave-up instance keeps the reason for which it was given up: that it then ended says nothing.
        if !matches!(self.phase, Phase::Stopping { .. }) || self.reason.is_none() {
            self.reason = Some(exit.to_string());
        }
        self.process = None;
        let until = now.checked_add(super::backoff(self.failures)).unwrap_or(now);
        self.enter(Phase::BackingOff { until }, now);
        false
    }
}

impl Observed {
    /// Instances of a service that are there to stay.
    pub fn staying<'a>(&'a self, service: &'a str) -> impl Iterator<Item = &'a Instance> + 'a {
        self.of(service).filter(|instance| !instance.retiring())
    }

    /// Every instance of a service. Ids begin with the service's name, so that only those are looked at.
    pub fn of<'a>(&'a self, service: &'a str) -> impl Iterator<Item = &'a Instance> + 'a {
        self.instances
            .range(service.to_owned()..)
            .take_while(move |(id, _)| id.starts_with(service))
            .map(|(_, instance)| instance)
            .filter(move |instance| instance.spec.service == service)
    }

    /// Gateways that take requests, now or when they are started again: not those on their way out, and none whose successor
    /// is ready.
    pub fn serving(&self) -> impl Iterator<Item = &Instance> {
        let slot = |gateway: &Instance| self.gateways.get(&gateway.spec.id).map_or(0, |link| link.slot);
        let staying = || self.of(GATEWAY).filter(|gateway| !gateway.retiring());
        staying().filter(move |gateway| {
            !staying().any(|other| {
                other.phase == Phase::Ready && slot(other) == slot(gateway) && other.started_at > gateway.started_at
            })
        })
    }

    /// Whether a gateway uses the snapshot of `generation` or a later one.
    pub fn carries(&self, gateway: &Instance, generation: u64) -> bool {
        self.gateways.get(&gateway.spec.id).map_or(0, |link| link.acked_generation) >= generation
    }

    /// Whether every gateway that is serving uses the snapshot of `generation` or a later one. One in a crash loop holds nobody
    /// up.
    pub fn acknowledged(&self, generation: u64) -> bool {
        let looping = |gateway: &Instance| gateway.failures >= super::CRASH_LOOP && gateway.phase != Phase::Ready;
        self.serving().all(|gateway| looping(gateway) || self.carries(gateway, generation))
    }
}
