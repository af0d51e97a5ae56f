//! From desired state and ready instances to what the data plane gets.

use std::collections::BTreeMap;

use super::breakers::Standing;
use super::desired::Desired;
use super::observed::{Observed, Phase};
use crate::GATEWAY;
use crate::policy::Policy;
use crate::snapshot::{
    EdgeRule, Endpoint, HostMatch, Listener, PathMatch, RouteRule, Serves, ServiceEndpoints, Snapshot,
};
use crate::topology::{Route, Topology};

/// `orders:inventory`.
pub fn edge_name(caller: &str, callee: &str) -> String {
    format!("{caller}:{callee}")
}

/// What operators call a route: `GET,POST shop.local/orders`. Unique, because a topology with two equal ones is refused.
pub fn route_name(route: &Route) -> String {
    let mut name = String::new();
    if let Some(methods) = &route.methods {
        name.push_str(&methods.join(","));
        name.push(' ');
    }
    if let Some(host) = &route.host {
        name.push_str(host);
    }
    name.push_str(&route.path);
    for (header, value) in &route.headers {
        name.push_str(&format!(" {header}={value}"));
    }
    name
}

pub(super) fn route_rules(topology: &Topology) -> Vec<RouteRule> {
    topology.routes.iter().map(|route| route_rule(topology, route)).collect()
}

fn route_rule(topology: &Topology, route: &Route) -> RouteRule {
    let targets = route.targets().into_iter().map(|(service, weight)| (edge_name(GATEWAY, service), weight));
    RouteRule {
        name: route_name(route),
        host: route.host.as_deref().map(host_match),
        path: path_match(&route.path),
        methods: route.methods.clone().unwrap_or_default(),
        headers: route
            .headers
            .iter()
            .map(|(name, value)| (name.to_lowercase(), (value != "*").then(|| value.clone())))
            .collect(),
        targets: targets.collect(),
        idempotency_key: route.idempotency_key.as_deref().map(str::to_lowercase),
        rate_limit: route.rate_limit.clone(),
        policy: Policy::resolve(&[&topology.defaults, &route.policy()]),
    }
}

fn host_match(host: &str) -> HostMatch {
    let host = host.to_lowercase();
    match host.strip_prefix('*') {
        Some(suffix) => HostMatch::Suffix(suffix.to_owned()),
        None => HostMatch::Exact(host),
    }
}

fn path_match(path: &str) -> PathMatch {
    let below = path.ends_with("/*");
    let literal = if below { &path[..path.len() - 2] } else { path };
    let segments = literal.split('/').skip(1).map(str::to_owned);
    PathMatch { segments: segments.collect(), below }
}

/// What the data plane gets now: every route and edge, and the endpoints that may be called. The generation is the
/// caller's to count.
///
/// `leases` are endpoints registered from outside, by service; `breakers` is what operators said of breakers, by edge.
pub fn snapshot(
    desired: &Desired,
    observed: &Observed,
    leases: &BTreeMap<String, Vec<Endpoint>>,
    breakers: &BTreeMap<String, Standing>,
    revision: u64,
) -> Snapshot {
    let mut services: BTreeMap<String, ServiceEndpoints> = desired
        .services
        .iter()
        .map(|(name, service)| {
            let leased = leases.get(name).cloned().unwrap_or_default();
            (name.clone(), ServiceEndpoints { endpoints: leased, expected: service.replicas > 0 })
        })
        .collect();
    for instance in observed.instances.values().filter(|instance| instance.phase == Phase::Ready) {
        if let (Some(service), Some(address)) = (services.get_mut(&instance.spec.service), instance.address()) {
            service.endpoints.push(Endpoint { id: instance.spec.id.clone(), address });
        }
    }
    // A service that does not come up is not worth waiting for: its callers get their answer at once.
    for (name, service) in &mut services {
        service.expected &= observed.services.get(name).is_none_or(|record| record.failing.is_none());
    }
    let edge_listeners = desired.edges.iter().filter_map(|(name, edge)| {
        edge.address.map(|address| Listener { address, serves: Serves::Edge(name.clone()) })
    });
    let public = desired.gateway.iter().map(|gateway| Listener { address: gateway.listen, serves: Serves::Routes });
    let mut snapshot = Snapshot {
        topology: desired.name.clone(),
        revision,
        generation: 0,
        listeners: public.chain(edge_listeners).collect(),
        routes: desired.routes.clone(),
        edges: desired
            .edges
            .iter()
            .map(|(name, edge)| {
                let standing = breakers.get(name).cloned().unwrap_or_default();
                let rule = EdgeRule {
                    caller: edge.caller.clone(),
                    callee: edge.callee.clone(),
                    policy: edge.policy.clone(),
                    force: standing.force,
                    breaker_epoch: standing.epoch,
                };
                (name.clone(), rule)
            })
            .collect(),
        services,
        tracing: desired.telemetry.as_ref().map(|telemetry| telemetry.tracing.clone()).unwrap_or_default(),
        limits: desired.gateway.as_ref().map(|gateway| gateway.limits.clone()).unwrap_or_default(),
    };
    snapshot.order_routes();
    snapshot
}
