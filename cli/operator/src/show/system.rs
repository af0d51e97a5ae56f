//! What runs: services, instances, gateways; and what happened: revisions, events.

use jiff::Timestamp;
use meshctl_api::view::{Gateway, Instance, InstanceState, Revision, Service, ServiceState};
use meshctl_model::event::{Event, EventSeverity};

use super::{Item, Listing, labels};
use crate::kinds::Kind;
use crate::output::{Cell, age};

pub(crate) fn services(services: Vec<Service>, now: Timestamp) -> Listing {
    let item = |service: Service| {
        let restarts: u32 = service.instances.iter().map(|instance| instance.restarts).sum();
        let started = service.instances.iter().filter_map(|instance| instance.started_at).min();
        let pids: Vec<String> =
            service.instances.iter().filter_map(|instance| instance.pid).map(|pid| pid.to_string()).collect();
        let cells = vec![
            Cell::plain(&service.name),
            Cell::plain(&service.kind),
            Cell::plain(format_args!("{}/{}", service.ready, service.desired)),
            service_state(service.state),
            Cell::plain(restarts),
            Cell::maybe(started.map(|at| age(at, now))),
            Cell::maybe(service.endpoint.as_ref()),
            Cell::plain(why(&service).unwrap_or_default()),
            Cell::plain(if pids.is_empty() { "-".to_owned() } else { pids.join(",") }),
            labels(&service.labels),
        ];
        Item::new(&service.name, &service, cells)
    };
    let columns = &["name", "kind", "ready", "state", "restarts", "age", "address", "reason", "pids", "labels"];
    Listing::new(Kind::Service, columns, 2, services.into_iter().map(item).collect())
}

pub(crate) fn instances(instances: Vec<Instance>, now: Timestamp) -> Listing {
    let item = |instance: Instance| {
        let cells = vec![
            Cell::plain(&instance.id),
            Cell::plain(&instance.service),
            instance_state(instance.state),
            Cell::maybe(instance.pid),
            Cell::maybe(instance.address.as_ref()),
            Cell::plain(instance.restarts),
            Cell::maybe(instance.started_at.map(|at| age(at, now))),
            Cell::plain(instance.reason.as_deref().unwrap_or_default()),
            Cell::plain(instance.revision),
            Cell::plain(age(instance.since, now)),
        ];
        Item::new(&instance.id, &instance, cells)
    };
    let columns = &["id", "service", "state", "pid", "address", "restarts", "age", "reason", "revision", "in state"];
    Listing::new(Kind::Instance, columns, 2, instances.into_iter().map(item).collect())
}

pub(crate) fn gateways(gateways: Vec<Gateway>, now: Timestamp) -> Listing {
    let item = |gateway: Gateway| {
        let cells = vec![
            Cell::plain(&gateway.id),
            Cell::plain(&gateway.url),
            instance_state(gateway.state),
            Cell::plain(gateway.revision),
            Cell::maybe(gateway.pid),
            Cell::plain(gateway.restarts),
            Cell::maybe(gateway.started_at.map(|at| age(at, now))),
            Cell::plain(gateway.reason.as_deref().unwrap_or_default()),
            Cell::plain(gateway.generation),
            Cell::maybe(gateway.version.as_ref()),
            Cell::maybe(gateway.metrics_url.as_ref()),
        ];
        Item::new(&gateway.id, &gateway, cells)
    };
    let columns = &[
        "gateway",
        "url",
        "state",
        "revision",
        "pid",
        "restarts",
        "age",
        "reason",
        "generation",
        "version",
        "metrics",
    ];
    Listing::new(Kind::Gateway, columns, 3, gateways.into_iter().map(item).collect())
}

pub(crate) fn revisions(revisions: Vec<Revision>, now: Timestamp) -> Listing {
    let item = |revision: Revision| {
        let state = match revision.state.as_str() {
            "applied" => Cell::good(&revision.state),
            "failed" => Cell::bad(&revision.state),
            "applying" => Cell::careful(&revision.state),
            other => Cell::plain(other),
        };
        let cells = vec![
            Cell::plain(revision.revision),
            Cell::plain(if revision.current { "*" } else { "" }),
            state,
            Cell::plain(&revision.cause),
            Cell::plain(&revision.by),
            Cell::plain(age(revision.created_at, now)),
            Cell::plain(revision.reason.as_deref().unwrap_or_default()),
        ];
        Item::new(revision.revision.to_string(), &revision, cells)
    };
    let columns = &["revision", "current", "state", "cause", "by", "age", "reason"];
    Listing::new(Kind::Revision, columns, 0, revisions.into_iter().map(item).collect())
}

pub(crate) fn events(events: Vec<Event>, now: Timestamp) -> Listing {
    let item = |event: Event| {
        let severity = match event.severity {
            EventSeverity::Info => Cell::plain("info"),
            EventSeverity::Warning => Cell::careful("warning"),
            EventSeverity::Error => Cell::bad("error"),
        };
        let cells = vec![
            Cell::plain(&event.id),
            Cell::plain(age(event.created_at, now)),
            severity,
            Cell::plain(&event.kind),
            Cell::plain(&event.subject),
            Cell::plain(&event.message),
        ];
        Item::new(&event.id, &event, cells)
    };
    let columns = &["id", "age", "severity", "type", "subject", "message"];
    Listing::new(Kind::Event, columns, 0, events.into_iter().map(item).collect())
}

/// Why a service is not ready, in words.
pub(crate) fn why(service: &Service) -> Option<String> {
    match (&service.reason, &service.blocked_by) {
        (Some(reason), _) => Some(reason.clone()),
        (None, Some(other)) => Some(format!("waits for {other}")),
        (None, None) => None,
    }
}

/// As the API writes it.
pub(crate) fn state_word(state: ServiceState) -> &'static str {
    match state {
        ServiceState::Ready => "ready",
        ServiceState::Starting => "starting",
        ServiceState::Rolling => "rolling",
        ServiceState::Degraded => "degraded",
        ServiceState::RolledBack => "rolledBack",
        ServiceState::Blocked => "blocked",
        ServiceState::Failed => "failed",
        ServiceState::Stopped => "stopped",
    }
}

pub(super) fn service_state(state: ServiceState) -> Cell {
    let word = state_word(state);
    match state {
        ServiceState::Ready => Cell::good(word),
        ServiceState::RolledBack | ServiceState::Failed => Cell::bad(word),
        ServiceState::Stopped => Cell::plain(word),
        _ => Cell::careful(word),
    }
}

pub(super) fn instance_state(state: InstanceState) -> Cell {
    let word = instance_word(state);
    match state {
        InstanceState::Ready => Cell::good(word),
        InstanceState::Starting | InstanceState::Draining | InstanceState::Stopping => Cell::careful(word),
        InstanceState::Unhealthy | InstanceState::BackingOff | InstanceState::CrashLoop => Cell::bad(word),
    }
}

/// As the API writes it.
pub(crate) fn instance_word(state: InstanceState) -> &'static str {
    match state {
        InstanceState::Ready => "ready",
        InstanceState::Starting => "starting",
        InstanceState::Unhealthy => "unhealthy",
        InstanceState::Draining => "draining",
        InstanceState::Stopping => "stopping",
        InstanceState::BackingOff => "backingOff",
        InstanceState::CrashLoop => "crashLoop",
    }
}
