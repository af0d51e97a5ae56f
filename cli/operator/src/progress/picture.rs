//! The picture of the system that a stream of changes paints.

use meshctl_api::view::{Status, Told};

/// Lays `told` over `status`. Changes before the first snapshot are part of it already.
pub(crate) fn fold(status: &mut Option<Status>, told: Told) {
    if let Told::Snapshot(snapshot) = told {
        *status = Some(snapshot);
        return;
    }
    let Some(status) = status else { return };
    match told {
        Told::Snapshot(_) => {}
        Told::Event(event) => status.last_event_id = event.id,
        Told::Service(service) => put(&mut status.items, service, |service| &service.name),
        Told::ServiceGone(name) => status.items.retain(|service| service.name != name),
        Told::Gateway(gateway) => put(&mut status.gateways, gateway, |gateway| &gateway.id),
        Told::GatewayGone(id) => status.gateways.retain(|gateway| gateway.id != id),
        Told::System { name, revision, ready } => {
            status.name = name;
            status.revision = revision;
            status.ready = ready;
        }
    }
}

/// Replaces the thing of that name, or puts it where it belongs in the order of names.
fn put<T>(things: &mut Vec<T>, thing: T, name: impl Fn(&T) -> &String) {
    match things.iter().position(|other| name(other) >= name(&thing)) {
        Some(at) if name(&things[at]) == name(&thing) => things[at] = thing,
        Some(at) => things.insert(at, thing),
        None => things.push(thing),
    }
}
