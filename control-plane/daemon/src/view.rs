//! What is seen, as the API shows it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use meshctl_api::view::{Endpoint, Gateway, Instance, InstanceState, RegistryView, Route, RouteTarget, Service};
use meshctl_api::view::{ServiceState, Status};
use meshctl_drivers::registry as registered;
use meshctl_model::API_VERSION;
use meshctl_model::GATEWAY;
use meshctl_model::plan::{CRASH_LOOP, Phase, Unready};
use meshctl_model::snapshot::{BreakerState, HostMatch};

use crate::control::Control;
use crate::state::State;

pub fn status(control: &Control) -> Status {
    let state = &control.state;
    Status {
        api_version: API_VERSION.into(),
        kind: "Status".into(),
        name: state.desired.name.clone(),
        revision: state.revision,
        ready: state.ready,
        items: service_names(state).iter().filter_map(|name| service(control, name)).collect(),
        gateways: state.observed.of(GATEWAY).filter_map(|instance| gateway(control, &instance.spec.id)).collect(),
        channels: Vec::new(),
        last_event_id: state.last_event.to_string(),
    }
}

fn service_names(state: &State) -> Vec<String> {
    let leaving = state.observed.instances.values().filter(|i| !i.is_gateway()).map(|i| i.spec.service.clone());
    let names: std::collections::BTreeSet<String> = state.desired.services.keys().cloned().chain(leaving).collect();
    names.into_iter().collect()
}

pub fn service(control: &Control, name: &str) -> Option<Service> {
    let state = &control.state;
    let wanted = state.desired.services.get(name);
    let instances: Vec<Instance> = state.observed.of(name).map(instance).collect();
    if wanted.is_none() && instances.is_empty() {
        return None;
    }
    let record = state.observed.services.get(name);
    let failing = record.and_then(|record| record.failing.as_ref());
    let ready = instances.iter().filter(|i| i.state == InstanceState::Ready).count() as u32;
    let unready = state.desired.unready(name, &state.observed);
    let desired = wanted.map_or(0, |service| service.replicas);
    let rolling = state.observed.of(name).any(|i| wanted.is_none_or(|service| i.hash != service.hash) || i.retiring());
    let service_state = match (&unready, wanted) {
        (_, None) => ServiceState::Stopped,
        (None, Some(service)) if service.replicas == 0 => ServiceState::Stopped,
        (None, _) => ServiceState::Ready,
        (Some(Unready::BlockedBy(_)), _) if ready == 0 => ServiceState::Blocked,
        (Some(_), _) if failing.is_some() && ready == 0 => ServiceState::Failed,
        (Some(_), _) if state.rolled_back(name) => ServiceState::RolledBack,
        (Some(_), _) if failing.is_some() => ServiceState::Degraded,
        (Some(_), _) if rolling => ServiceState::Rolling,
        (Some(_), _) if ready == 0 => ServiceState::Starting,
        (Some(_), _) => ServiceState::Degraded,
    };
    let blocked_by = match &unready {
        Some(Unready::BlockedBy(by)) => Some(by.clone()),
        _ => None,
    };
    let reason = match (&unready, failing) {
        (None, _) => open_breaker(state, name),
        (Some(_), Some(failing)) => Some(match service_state {
            ServiceState::RolledBack => format!("went back to what was ready before: {}", failing.reason),
            _ => failing.reason.clone(),
        }),
        (Some(Unready::BlockedBy(by)), None) => Some(format!("waits for {by}")),
        (Some(_), None) => {
            instances.iter().find_map(|i| i.reason.as_ref().map(|reason| format!("{}: {reason}", i.id))).or_else(|| {
                instances
                    .iter()
                    .find(|i| i.state != InstanceState::Ready)
                    .map(|i| format!("{} is {}", i.id, word(i.state)))
            })
        }
    };
    Some(Service {
        name: name.into(),
        kind: wanted.map_or_else(|| "command".into(), |service| service.kind.clone()),
        service_id: record.map(|record| record.service_id.clone()).unwrap_or_default(),
        desired,
        ready,
        state: service_state,
        blocked_by,
        reason,
        endpoint: endpoint_of(state, name, &instances),
        instances,
        labels: wanted.map(|service| service.labels.clone()).unwrap_or_default(),
    })
}

/// What callers are refused, though every instance is ready.
fn open_breaker(state: &State, name: &str) -> Option<String> {
    let leads_here = |edge: &str| edge.split_once(':').is_some_and(|(_, callee)| callee == name);
    let refusing = state.breakers.iter().filter(|(_, breaker)| **breaker != BreakerState::ForcedClosed);
    let ((edge, gateway), breaker) = refusing.into_iter().find(|((edge, _), _)| leads_here(edge))?;
    let word = breaker_word(*breaker);
    Some(format!("the breaker of {edge} is {word} at {gateway}"))
}

pub fn breaker_word(breaker: BreakerState) -> &'static str {
    match breaker {
        BreakerState::Closed => "closed",
        BreakerState::Open => "open",
        BreakerState::HalfOpen => "half-open",
        BreakerState::ForcedOpen => "forced open",
        BreakerState::ForcedClosed => "held closed",
    }
}

fn word(state: InstanceState) -> &'static str {
    match state {
        InstanceState::Starting => "starting",
        InstanceState::Ready => "ready",
        InstanceState::Unhealthy => "unhealthy",
        InstanceState::Draining => "draining",
        InstanceState::Stopping => "stopping",
        InstanceState::BackingOff => "waiting to be started again",
        InstanceState::CrashLoop => "in a crash loop",
    }
}

/// Where it is reached from outside, or else where its first instance is.
fn endpoint_of(state: &State, name: &str, instances: &[Instance]) -> Option<String> {
    let edge = meshctl_model::plan::edge_name(GATEWAY, name);
    let route = state.desired.routes.iter().find(|route| route.targets.iter().any(|(target, _)| *target == edge));
    match (route, &state.desired.gateway) {
        (Some(route), Some(gateway)) => Some(format!("http://{}{}", gateway.listen, path_of(&route.path))),
        _ => instances.iter().find_map(|i| i.address.clone()),
    }
}

fn path_of(path: &meshctl_model::snapshot::PathMatch) -> String {
    let mut text: String = path.segments.iter().map(|segment| format!("/{segment}")).collect();
    if path.below {
        text.push_str("/*");
    }
    text
}

pub fn instance(instance: &meshctl_model::plan::Instance) -> Instance {
    let state = match instance.phase {
        Phase::Starting if instance.failures >= CRASH_LOOP => InstanceState::CrashLoop,
        Phase::Starting => InstanceState::Starting,
        Phase::Ready => InstanceState::Ready,
        Phase::Unhealthy => InstanceState::Unhealthy,
        Phase::Draining { .. } | Phase::Quiescing => InstanceState::Draining,
        Phase::Drained | Phase::Stopping { .. } => InstanceState::Stopping,
        Phase::BackingOff { .. } if instance.failures >= CRASH_LOOP => InstanceState::CrashLoop,
        Phase::BackingOff { .. } => InstanceState::BackingOff,
    };
    Instance {
        id: instance.spec.id.clone(),
        service: instance.spec.service.clone(),
        pid: instance.process.as_ref().map(|process| process.pid),
        address: instance.address().map(|address| address.to_string()),
        state,
        reason: instance.reason.clone(),
        started_at: instance.started_at,
        since: instance.since,
        restarts: instance.restarts,
        revision: instance.revision,
    }
}

pub fn gateway(control: &Control, id: &str) -> Option<Gateway> {
    let state = &control.state;
    let found = state.observed.instances.get(id)?;
    let link = state.observed.gateways.get(id)?;
    let shown = instance(found);
    let gateway = state.desired.gateway.as_ref();
    let metrics = gateway.and_then(|gateway| gateway.metrics.get(link.slot.saturating_sub(1) as usize));
    Some(Gateway {
        id: id.into(),
        url: gateway.map(|gateway| format!("http://{}", gateway.listen)).unwrap_or_default(),
        revision: link.acked_revision,
        generation: link.acked_generation,
        pid: shown.pid,
        // A gateway that cannot open its address is not well, however well its process is.
        state: if link.trouble.is_some() { InstanceState::Unhealthy } else { shown.state },
        reason: link.trouble.clone().or(shown.reason),
        metrics_url: metrics.map(|address| format!("http://{address}/metrics")),
        version: link.version.clone(),
        started_at: shown.started_at,
        restarts: shown.restarts,
    })
}

pub fn routes(state: &State) -> Vec<Route> {
    let route = |route: &meshctl_model::snapshot::RouteRule| Route {
        name: route.name.clone(),
        host: route.host.as_ref().map(|host| match host {
            HostMatch::Exact(host) => host.clone(),
            HostMatch::Suffix(suffix) => format!("*{suffix}"),
        }),
        path: path_of(&route.path),
        methods: route.methods.clone(),
        headers: route
            .headers
            .iter()
            .map(|(name, value)| (name.clone(), value.clone().unwrap_or_else(|| "*".into())))
            .collect::<BTreeMap<_, _>>(),
        targets: route
            .targets
            .iter()
            .map(|(edge, weight)| RouteTarget {
                service: edge.split_once(':').map_or(edge.as_str(), |(_, callee)| callee).to_owned(),
                edge: edge.clone(),
                weight_percent: weight * 100.0,
            })
            .collect(),
        deadline_ms: route.policy.deadline.as_millis(),
        attempt_timeout_ms: route.policy.attempt_timeout.as_millis(),
        retries: route.policy.retry.attempts,
    };
    state.desired.routes.iter().map(route).collect()
}

/// Endpoints of one service, or of all, in routing or not.
pub fn registry(control: &Control, service: Option<&str>) -> RegistryView {
    let now = Timestamp::now();
    let registry = &control.state.registry;
    let found = match service {
        Some(name) => registry.service(name, now),
        None => registry.snapshot(now),
    };
    let endpoint = |found: registered::Endpoint| {
        let (source, expires_at) = match found.source {
            registered::Source::Instance => ("instance", None),
            registered::Source::Lease { expires_at, .. } => ("lease", Some(expires_at)),
        };
        let reason = match found.health {
            registered::Health::In => None,
            registered::Health::Out { reason } => Some(reason),
        };
        let (in_routing, reason) = match reason {
            None => routed(control, &found.service, &found.id),
            out => (false, out),
        };
        let last_checked_at = control.monitors.get(&found.id).and_then(|monitor| monitor.last_checked_at());
        Endpoint {
            in_routing,
            service: found.service,
            id: found.id,
            address: found.address,
            reason,
            since: found.since,
            source: source.into(),
            expires_at,
            last_checked_at,
        }
    };
    RegistryView {
        api_version: API_VERSION.into(),
        kind: "EndpointList".into(),
        index: found.index,
        items: found.items.into_iter().map(endpoint).collect(),
    }
}

/// Whether an endpoint that is well is called, and what the gateways have against it.
fn routed(control: &Control, service: &str, id: &str) -> (bool, Option<String>) {
    let state = &control.state;
    if !state.desired.services.contains_key(service) {
        return (false, Some("the topology has no service of this name".into()));
    }
    let gateways: Vec<_> = state.observed.gateways.iter().filter(|(_, link)| link.acked_generation > 0).collect();
    let against: Vec<String> = gateways
        .iter()
        .filter_map(|(gateway, link)| Some(format!("left out by {gateway}: {}", link.ejected.get(id)?)))
        .collect();
    (against.is_empty() || against.len() < gateways.len(), (!against.is_empty()).then(|| against.join("; ")))
}

/// Why an instance is not in routing.
pub fn why_out(found: &meshctl_model::plan::Instance) -> String {
    let shown = instance(found);
    shown.reason.unwrap_or_else(|| word(shown.state).to_owned())
}
