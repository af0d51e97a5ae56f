//! Pages of routes and edges.

use meshctl_api::view::Edge;
use meshctl_api::view::vitals::Signals;

use super::page::Page;
use super::{Facts, endings};
use crate::output::{Cell, age};
use crate::show::{self, milliseconds, percent, rate, share};

pub(super) const ROUTE_COLUMNS: &[&str] = &["route", "weight", "req/s", "errors", "p50", "p99", "deadline"];
pub(super) const EDGE_COLUMNS: &[&str] =
    &["edge", "breaker", "req/s", "errors", "p50", "p99", "in flight", "deadline", "attempt", "retries"];

/// Rate, errors, p50, p99; dashes where nothing is known.
fn golden(signals: Option<&Signals>) -> [Cell; 4] {
    let latency = |of: fn(&Signals) -> Option<f64>| Cell::maybe(signals.and_then(of).map(milliseconds));
    let errors = match signals.and_then(share) {
        None => Cell::plain("-"),
        Some(0.0) => Cell::plain("0%"),
        Some(share) => Cell::bad(percent(share)),
    };
    [
        Cell::maybe(signals.map(|signals| rate(signals.requests_per_s))),
        errors,
        latency(|signals| signals.latency_p50_ms),
        latency(|signals| signals.latency_p99_ms),
    ]
}

/// The routes that lead to a service, with the share of their requests that it gets.
pub(super) fn routes_to(facts: &Facts, service: &str) -> Vec<Vec<Cell>> {
    let leading = facts.routes.iter().filter_map(|route| {
        let target = route.targets.iter().find(|target| target.service == service)?;
        let mut row = vec![Cell::plain(&route.name), Cell::plain(format_args!("{:.0}%", target.weight_percent))];
        row.extend(golden(facts.signals(|vitals| &vitals.routes, &route.name)));
        row.push(Cell::plain(milliseconds(route.deadline_ms as f64)));
        Some(row)
    });
    leading.collect()
}

pub(super) fn edge_row(facts: &Facts, edge: &Edge) -> Vec<Cell> {
    let mut row = vec![Cell::plain(&edge.name), show::breaker(&edge.breaker)];
    row.extend(golden(facts.signals_of_edge(&edge.name)));
    row.extend([
        Cell::plain(edge.in_flight),
        Cell::plain(milliseconds(edge.deadline_ms as f64)),
        Cell::plain(milliseconds(edge.attempt_timeout_ms as f64)),
        Cell::plain(edge.retries),
    ]);
    row
}

pub(super) fn route(facts: &Facts, name: &str) -> Option<Page> {
    let route = facts.routes.iter().find(|route| route.name == name)?;
    let mut page = Page::new(format!("route/{name}"));
    page.maybe("Host", route.host.as_ref());
    page.field("Path", &route.path);
    page.field("Methods", if route.methods.is_empty() { "any".to_owned() } else { route.methods.join(", ") });
    for (header, value) in &route.headers {
        page.field("Header", format_args!("{header}: {value}"));
    }
    page.field("Deadline", milliseconds(route.deadline_ms as f64));
    page.field(
        "Retries",
        format_args!("{}, each attempt up to {}", route.retries, milliseconds(route.attempt_timeout_ms as f64)),
    );
    page.now(facts.signals(|vitals| &vitals.routes, name));
    let targets = route.targets.iter().map(|target| {
        let service = facts.service(&target.service);
        let ready = service.map(|service| format!("{}/{}", service.ready, service.desired));
        let mut row = vec![
            Cell::plain(&target.service),
            Cell::plain(format_args!("{:.0}%", target.weight_percent)),
            Cell::maybe(ready),
            facts.edge(&target.edge).map_or_else(|| Cell::plain("-"), |edge| show::breaker(&edge.breaker)),
        ];
        row.extend(golden(facts.signals_of_edge(&target.edge)));
        row
    });
    let columns = &["service", "weight", "ready", "breaker", "req/s", "errors", "p50", "p99"];
    page.table("Leads to", columns, targets.collect());
    let callees: Vec<&str> = route.targets.iter().map(|target| target.service.as_str()).collect();
    let beyond = facts.edges_where(|edge| callees.contains(&edge.caller.as_str()));
    page.table("And from there to", EDGE_COLUMNS, beyond.map(|edge| edge_row(facts, edge)).collect());
    let edges: Vec<String> = route.targets.iter().map(|target| format!("edge/{}", target.edge)).collect();
    let own = format!("route/{name}");
    endings(&mut page, facts, facts.events(|subject| subject == own || edges.iter().any(|edge| edge == subject)), &[]);
    Some(page)
}

pub(super) fn edge(facts: &Facts, name: &str) -> Option<Page> {
    let edge = facts.edge(name)?;
    let breaker = facts.vitals.as_ref().and_then(|vitals| vitals.breakers.iter().find(|breaker| breaker.edge == name));
    let mut page = Page::new(format!("edge/{name}"));
    page.field("Caller", &edge.caller);
    page.field("Callee", &edge.callee);
    page.maybe("Address", edge.url.as_ref());
    let since = breaker.and_then(|breaker| breaker.since).map(|since| format!(" for {}", age(since, facts.now)));
    let state = breaker.map_or(edge.breaker.as_str(), |breaker| breaker.state.as_str());
    page.field("Breaker", format_args!("{state}{}", since.unwrap_or_default()));
    if let Some(breaker) = breaker {
        page.maybe("Because", breaker.reason.as_ref());
        page.maybe("Forced by", breaker.by.as_ref());
        page.maybe("Until", breaker.expires_at.map(|at| format!("{at:.0}, in {}", age(facts.now, at))));
        page.field("Gateways", format_args!("{} of {} carry it", breaker.acknowledged, breaker.instances));
    }
    page.field("Deadline", milliseconds(edge.deadline_ms as f64));
    page.field(
        "Retries",
        format_args!("{}, each attempt up to {}", edge.retries, milliseconds(edge.attempt_timeout_ms as f64)),
    );
    page.field("Since start", format_args!("{} requests, {} failed attempts", edge.requests, edge.failures));
    page.now(facts.signals_of_edge(name));
    let leading = facts.routes.iter().filter(|route| route.targets.iter().any(|target| target.edge == name));
    let leading = leading.map(|route| {
        let mut row = vec![Cell::plain(&route.name)];
        row.extend(golden(facts.signals(|vitals| &vitals.routes, &route.name)));
        row
    });
    page.table("Routes over it", &["route", "req/s", "errors", "p50", "p99"], leading.collect());
    let both = [format!("edge/{name}"), format!("breaker/{name}")];
    page.traces(facts.traces(&edge.callee), facts.now);
    endings(&mut page, facts, facts.events(|subject| both.iter().any(|own| own == subject)), &[]);
    Some(page)
}
