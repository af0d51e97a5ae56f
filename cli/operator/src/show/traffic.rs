//! What carries requests: routes, edges, their breakers, and the endpoints behind them.

use jiff::Timestamp;
use meshctl_api::view::breakers::Breaker;
use meshctl_api::view::{Edge, Endpoint, Route};

use super::{Item, Listing, milliseconds};
use crate::kinds::Kind;
use crate::output::{Cell, age};

pub(crate) fn routes(routes: Vec<Route>) -> Listing {
    let item = |route: Route| {
        let methods = if route.methods.is_empty() { "any".to_owned() } else { route.methods.join(",") };
        let headers: Vec<String> = route.headers.iter().map(|(name, value)| format!("{name}: {value}")).collect();
        let cells = vec![
            Cell::plain(&route.name),
            Cell::maybe(route.host.as_ref()),
            Cell::plain(&route.path),
            Cell::plain(methods),
            Cell::plain(targets(&route)),
            Cell::plain(milliseconds(route.deadline_ms as f64)),
            Cell::plain(route.retries),
            Cell::plain(milliseconds(route.attempt_timeout_ms as f64)),
            Cell::plain(if headers.is_empty() { "-".to_owned() } else { headers.join(", ") }),
        ];
        Item::new(&route.name, &route, cells)
    };
    let columns = &["name", "host", "path", "methods", "to", "deadline", "retries", "attempt", "headers"];
    Listing::new(Kind::Route, columns, 2, routes.into_iter().map(item).collect())
}

/// `orders`, or `orders 90%, orders-v2 10%`.
pub(super) fn targets(route: &Route) -> String {
    match route.targets.as_slice() {
        [only] => only.service.clone(),
        several => {
            let parts: Vec<String> =
                several.iter().map(|target| format!("{} {}%", target.service, target.weight_percent)).collect();
            parts.join(", ")
        }
    }
}

pub(crate) fn edges(edges: Vec<Edge>) -> Listing {
    let item = |edge: Edge| {
        let cells = vec![
            Cell::plain(&edge.name),
            state(&edge.breaker),
            Cell::plain(edge.requests),
            Cell::plain(edge.failures),
            Cell::plain(edge.in_flight),
            Cell::maybe(edge.latency_p50_ms.map(milliseconds)),
            Cell::maybe(edge.latency_p99_ms.map(milliseconds)),
            Cell::plain(milliseconds(edge.deadline_ms as f64)),
            Cell::plain(edge.retries),
            Cell::plain(milliseconds(edge.attempt_timeout_ms as f64)),
            Cell::maybe(edge.url.as_ref()),
        ];
        Item::new(&edge.name, &edge, cells)
    };
    let columns = &[
        "name",
        "breaker",
        "requests",
        "failures",
        "in flight",
        "p50",
        "p99",
        "deadline",
        "retries",
        "attempt",
        "url",
    ];
    Listing::new(Kind::Edge, columns, 2, edges.into_iter().map(item).collect())
}

pub(crate) fn breakers(breakers: Vec<Breaker>, now: Timestamp) -> Listing {
    let item = |breaker: Breaker| {
        let acknowledged = format!("{}/{}", breaker.acknowledged, breaker.instances);
        let cells = vec![
            Cell::plain(&breaker.edge),
            state(&breaker.state),
            Cell::maybe(breaker.since.map(|since| age(since, now))),
            Cell::maybe(breaker.by.as_ref()),
            Cell::maybe(breaker.expires_at.map(|at| age(now, at))),
            if breaker.stragglers.is_empty() { Cell::plain(acknowledged) } else { Cell::careful(acknowledged) },
            Cell::plain(breaker.reason.as_deref().unwrap_or_default()),
            Cell::plain(breaker.requests_per_s),
            Cell::plain(breaker.refused_per_s),
        ];
        Item::new(&breaker.edge, &breaker, cells)
    };
    let columns = &["edge", "state", "since", "by", "ends in", "gateways", "reason", "requests/s", "refused/s"];
    Listing::new(Kind::Breaker, columns, 2, breakers.into_iter().map(item).collect())
}

fn state(state: &str) -> Cell {
    match state {
        "closed" => Cell::good(state),
        // `unknown`: no gateway answered.
        "halfOpen" | "forcedClosed" | "unknown" => Cell::careful(state),
        _ => Cell::bad(state),
    }
}

pub(crate) fn endpoints(endpoints: Vec<Endpoint>, now: Timestamp) -> Listing {
    let item = |endpoint: Endpoint| {
        let routing = if endpoint.in_routing { Cell::good("in") } else { Cell::bad("out") };
        let cells = vec![
            Cell::plain(&endpoint.id),
            Cell::plain(&endpoint.service),
            Cell::plain(&endpoint.address),
            routing,
            Cell::plain(age(endpoint.since, now)),
            Cell::plain(&endpoint.source),
            Cell::plain(endpoint.reason.as_deref().unwrap_or_default()),
            Cell::maybe(endpoint.last_checked_at.map(|at| age(at, now))),
            Cell::maybe(endpoint.expires_at.map(|at| age(now, at))),
        ];
        Item::new(&endpoint.id, &endpoint, cells)
    };
    let columns = &["id", "service", "address", "routing", "since", "source", "reason", "last check", "lease ends in"];
    Listing::new(Kind::Endpoint, columns, 2, endpoints.into_iter().map(item).collect())
}
