//! Who listens where: two things cannot share a port.

use std::collections::BTreeMap;

use super::{Context, syntax};
use crate::finding::{BAD_ADDRESS, BAD_PORT_RANGE, FIXED_PORT_SHARED, OUT_OF_RANGE, PORT_CLASH, PORT_IN_RANGE, ZERO};
use crate::load::tree::Place;
use crate::plan::PortRange;
use crate::topology::{
    AUTOMATIC_PORTS, GATEWAY_LISTEN, GatewayProvider, RegistryProvider, RuntimeProvider, TRACES_AT_LEAST,
    TelemetryProvider,
};
use crate::units::Bytes;

pub(super) fn check(context: &mut Context<'_, '_>) {
    let mut taken = BTreeMap::new();
    gateway(context, &mut taken);
    registry(context);
    telemetry(context, &mut taken);
    services(context, &mut taken);
}

/// Who has a port, in words, and where that stands, if it does.
type Taken = BTreeMap<u16, (String, Option<Place>)>;

fn gateway(context: &mut Context<'_, '_>, taken: &mut Taken) {
    let GatewayProvider::Embedded(gateway) = &context.topology.providers.gateway;
    let at = context.root.get("providers").get("gateway").get("embedded");
    for (key, written) in [("listen", &gateway.listen), ("metrics", &gateway.metrics)] {
        let place = written.as_ref().map(|_| at.get(key).place());
        let text = match (written, key) {
            (Some(text), _) => text.as_str(),
            // What could not be read is not the default.
            (None, "listen") if !at.has("listen") => GATEWAY_LISTEN,
            _ => continue,
        };
        match (syntax::address(text), place) {
            (Some(address), _) if address.port() == 0 => {}
            (Some(address), place) => {
                let who = match place {
                    Some(_) => format!("the gateway's `{key}` address"),
                    None => "the gateway, which listens there by default".to_owned(),
                };
                claim(context, taken, address.port(), who, place.unwrap_or_default(), place);
            }
            (None, place) => {
                let shown = context.quoted(text);
                context.add(BAD_ADDRESS, place.unwrap_or_default(), || {
                    (
                        format!("`{key}`: {shown} is not an address to listen on"),
                        "write address:port, such as 127.0.0.1:8080 or [::1]:8080",
                    )
                });
            }
        }
    }
    let metrics = gateway.metrics.as_deref().and_then(syntax::address).filter(|address| address.port() != 0);
    if let (Some(instances @ 2..), Some(_)) = (gateway.instances, metrics) {
        context.add(FIXED_PORT_SHARED, at.get("metrics").place(), || {
            (
                format!("{instances} gateway processes cannot serve their metrics on one port"),
                "leave `metrics:` out, so that each has a port of its own, or write `instances: 1`",
            )
        });
    }
    let limits = at.get("limits");
    let given = &gateway.limits;
    context.not_zero(given.header_timeout, limits, "headerTimeout");
    context.not_zero(given.idle_timeout, limits, "idleTimeout");
    context.not_zero(given.upgrade_idle_timeout, limits, "upgradeIdleTimeout");
    if given.headers == Some(Bytes(0)) {
        context.add(ZERO, limits.get("headers").place(), || {
            ("`headers` must be more than zero", "write a size such as 64KiB")
        });
    }
}

fn registry(context: &mut Context<'_, '_>) {
    let RegistryProvider::Embedded(registry) = &context.topology.providers.registry;
    let at = context.root.get("providers").get("registry").get("embedded");
    context.not_zero(registry.lease, at, "lease");
}

fn telemetry(context: &mut Context<'_, '_>, taken: &mut Taken) {
    let TelemetryProvider::Embedded(telemetry) = &context.topology.providers.telemetry;
    let at = context.root.get("providers").get("telemetry").get("embedded");
    context.not_zero(telemetry.keep, at, "keep");
    context.not_zero(telemetry.slow, at, "slow");
    if telemetry.max_size.is_some_and(|size| size < TRACES_AT_LEAST) {
        context.add(OUT_OF_RANGE, at.get("maxSize").place(), || {
            (format!("`maxSize` of traces must be at least {TRACES_AT_LEAST}"), "write a size such as 64MiB or 1GiB")
        });
    }
    let Some(text) = &telemetry.listen else { return };
    let place = at.get("listen").place();
    match syntax::address(text) {
        // Whoever reaches it may write into the store, and what spans say is for the operator alone.
        Some(address) if address.ip().is_loopback() => {
            if address.port() != 0 {
                claim(context, taken, address.port(), "the spans of services".into(), place, Some(place));
            }
        }
        _ => {
            let shown = context.quoted(text);
            context.add(BAD_ADDRESS, place, || {
                (
                    format!("`listen`: {shown} is not an address of this machine alone"),
                    "write address:port, such as 127.0.0.1:4318 or [::1]:4318",
                )
            });
        }
    }
}

fn services(context: &mut Context<'_, '_>, taken: &mut Taken) {
    let topology = context.topology;
    let RuntimeProvider::Process(runtime) = &topology.providers.runtime;
    let at = context.root.get("providers").get("runtime").get("process").get("ports");
    let text = runtime.ports.as_deref().unwrap_or(AUTOMATIC_PORTS);
    let range = text.parse::<PortRange>().ok();
    if range.is_none() {
        let shown = context.quoted(text);
        context.add(BAD_PORT_RANGE, at.place(), || {
            (
                format!("{shown} is not a range of ports"),
                format!("write the first and the last, such as {AUTOMATIC_PORTS}"),
            )
        });
    }
    for (name, service, at) in context.services() {
        let Some(port) = service.fixed_port() else { continue };
        let place = at.get("port").place();
        if let Some(replicas @ 2..) = service.replicas {
            context.add(FIXED_PORT_SHARED, place, || {
                (
                    format!("{replicas} instances cannot all listen on port {port}"),
                    "write `port: auto` and let the program listen on `PORT`, or write `replicas: 1`",
                )
            });
        }
        let who = format!("the service {}", context.quoted(name));
        claim(context, taken, port, who, place, Some(place));
        if let Some(PortRange { first, last }) = range.filter(|range| (range.first..=range.last).contains(&port)) {
            context.add(PORT_IN_RANGE, place, || {
                (
                    format!("port {port} lies among the automatic ports {first}-{last}: an instance may have it when this service comes"),
                    "choose a port outside of them, or move them with `providers: { runtime: { process: { ports: … } } }`",
                )
            });
        }
    }
}

fn claim(
    context: &mut Context<'_, '_>,
    taken: &mut Taken,
    port: u16,
    who: String,
    place: Place,
    written: Option<Place>,
) {
    match taken.get(&port) {
        None => drop(taken.insert(port, (who, written))),
        Some((other, there)) => {
            let there = there.map(|there| format!(" ({})", context.report.locate(there))).unwrap_or_default();
            let message = format!("port {port} of {who} belongs to {other}{there} already");
            context.add(PORT_CLASH, place, || (message, "choose another port for one of them, or `port: auto`"));
        }
    }
}
