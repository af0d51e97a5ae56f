//! What is still to come, in one line a service: how far it is, and what it waits for, by name.

use meshctl_api::view::{Gateway, Instance, InstanceState, Service, ServiceState, Status};

/// The lines of everything that is not where it should be, by what they are about.
pub(crate) fn waiting(status: &Status) -> Vec<(String, String)> {
    let services = status.items.iter().filter_map(|service| Some((service.name.clone(), of_service(service)?)));
    let gateways =
        status.gateways.iter().filter_map(|gateway| Some((gateway.id.clone(), of_gateway(gateway, status.revision)?)));
    services.chain(gateways).collect()
}

/// What a thing says once it is no longer waited for.
pub(crate) fn arrived(status: &Status, name: &str) -> String {
    match status.items.iter().find(|service| service.name == name) {
        Some(service) if service.desired > 0 => format!("{name} {}/{} ready", service.ready, service.desired),
        Some(_) => format!("{name} stopped"),
        None => match status.gateways.iter().find(|gateway| gateway.id == name) {
            Some(gateway) => format!("{name} carries revision {}", gateway.revision),
            None => format!("{name} gone"),
        },
    }
}

fn of_service(service: &Service) -> Option<String> {
    let name = &service.name;
    let progress = format!("{name} {}/{} ready", service.ready, service.desired);
    let laggard = service.instances.iter().find(|instance| instance.state != InstanceState::Ready);
    Some(match service.state {
        ServiceState::Ready => return None,
        ServiceState::Stopped if service.instances.is_empty() => return None,
        ServiceState::Stopped => format!("{name} stops · {}", instances(service)),
        ServiceState::Blocked => match (&service.blocked_by, &service.reason) {
            (Some(other), _) => format!("{name} waits for {other}"),
            (None, Some(reason)) => format!("{name} waits: {reason}"),
            (None, None) => format!("{name} waits"),
        },
        _ => match (laggard, &service.reason) {
            (Some(instance), _) => {
                let why = instance.reason.as_deref().unwrap_or_else(|| doing(instance.state));
                format!("{progress} · {}: {why}", instance.id)
            }
            (None, Some(reason)) => format!("{progress} · {reason}"),
            (None, None) => progress,
        },
    })
}

fn of_gateway(gateway: &Gateway, wanted: u64) -> Option<String> {
    let id = &gateway.id;
    match (gateway.state, &gateway.reason) {
        (InstanceState::Ready, _) if gateway.revision >= wanted => None,
        (InstanceState::Ready, None) => {
            Some(format!("{id} carries revision {} and takes over revision {wanted}", gateway.revision))
        }
        // The reason may name it already.
        (_, Some(reason)) if reason.contains(id.as_str()) => Some(reason.clone()),
        (_, Some(reason)) => Some(format!("{id}: {reason}")),
        (state, None) => Some(format!("{id} is {}", doing(state))),
    }
}

fn instances(service: &Service) -> String {
    let say = |instance: &Instance| format!("{} {}", instance.id, doing(instance.state));
    match service.instances.as_slice() {
        few @ ([_] | [_, _]) => few.iter().map(say).collect::<Vec<_>>().join(", "),
        many => format!("{} instances to go", many.len()),
    }
}

/// In the words of the daemon's reasons, which stand in the same lines.
fn doing(state: InstanceState) -> &'static str {
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
