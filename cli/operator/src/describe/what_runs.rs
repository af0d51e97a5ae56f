//! Pages of services and instances.

use jiff::Timestamp;
use meshctl_api::view::{Edge, Instance, LogLine, Service};

use super::page::Page;
use super::{Facts, endings, messages, traffic};
use crate::output::{Cell, Format, age};
use crate::show::{self, labels, state_word, why};

pub(super) fn service(facts: &Facts, name: &str, lines: &[LogLine]) -> Option<Page> {
    let service = facts.service(name)?;
    let mut page = Page::new(format!("service/{name}"));
    page.field(
        "State",
        format_args!("{}, {} of {} instances", state_word(service.state), service.ready, service.desired),
    );
    page.maybe("Because", why(service));
    page.field("Runs", &service.kind);
    page.maybe("Address", service.endpoint.as_ref());
    if !service.labels.is_empty() {
        page.field("Labels", labels(&service.labels).text);
    }
    page.maybe("Revision", service.instances.iter().map(|instance| instance.revision).max());
    page.field("Service id", &service.service_id);
    page.now(facts.signals(|vitals| &vitals.services, name));
    instances(&mut page, service, facts.now);
    page.table("Routes that lead here", traffic::ROUTE_COLUMNS, traffic::routes_to(facts, name));
    edges(&mut page, facts, "Called by", |edge| edge.callee == name);
    edges(&mut page, facts, "Calls", |edge| edge.caller == name);
    messages::published_by(&mut page, facts, name);
    messages::subscribed_by(&mut page, facts, name);
    page.traces(facts.traces(name), facts.now);
    endings(&mut page, facts, facts.events(|subject| concerns_service(subject, name)), lines);
    Some(page)
}

/// Whether an event is about a service, one of its instances, or an edge to or from it.
fn concerns_service(subject: &str, service: &str) -> bool {
    match subject.split_once('/') {
        Some(("service", name)) => name == service,
        Some(("instance", id)) => id.rsplit_once('-').is_some_and(|(name, _)| name == service),
        Some(("edge" | "breaker", edge)) => {
            edge.split_once(':').is_some_and(|(caller, callee)| caller == service || callee == service)
        }
        Some(("subscription", name)) => name.rsplit_once('/').is_some_and(|(_, subscriber)| subscriber == service),
        _ => false,
    }
}

fn instances(page: &mut Page, service: &Service, now: Timestamp) {
    if !service.instances.is_empty() {
        let listing = show::instances(service.instances.clone(), now);
        page.section("Instances", listing.table(&Format::Table, true).draw(None));
    }
}

fn edges(page: &mut Page, facts: &Facts, heading: &str, wanted: impl Fn(&Edge) -> bool) {
    let rows = facts.edges_where(wanted).map(|edge| traffic::edge_row(facts, edge)).collect();
    page.table(heading, traffic::EDGE_COLUMNS, rows);
}

pub(super) fn instance(facts: &Facts, id: &str, lines: &[LogLine]) -> Option<Page> {
    let all = facts.services.iter().flat_map(|service| service.instances.iter().map(move |one| (service, one)));
    let (service, instance): (&Service, &Instance) = all.into_iter().find(|(_, instance)| instance.id == id)?;
    let mut page = Page::new(format!("instance/{id}"));
    page.field("Service", &instance.service);
    page.field("State", format_args!("{} for {}", show::instance_word(instance.state), age(instance.since, facts.now)));
    page.maybe("Because", instance.reason.as_ref());
    page.maybe("Pid", instance.pid);
    page.maybe("Address", instance.address.as_ref());
    page.maybe("Started", instance.started_at.map(|at| format!("{} ago, {at:.0}", age(at, facts.now))));
    page.field("Restarts", instance.restarts);
    page.field("Revision", instance.revision);
    let siblings = service.instances.iter().filter(|other| other.id != id);
    let siblings: Vec<Vec<Cell>> = siblings
        .map(|other| {
            vec![Cell::plain(&other.id), Cell::plain(show::instance_word(other.state)), Cell::plain(other.restarts)]
        })
        .collect();
    page.table("Beside it", &["instance", "state", "restarts"], siblings);
    let subject = format!("instance/{id}");
    endings(&mut page, facts, facts.events(|other| other == subject), lines);
    Some(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_of_a_service_are_those_of_all_its_parts() {
        for subject in [
            "service/orders",
            "instance/orders-12",
            "edge/orders:inventory",
            "edge/gateway:orders",
            "subscription/order.placed/orders",
        ] {
            assert!(concerns_service(subject, "orders"), "{subject}");
        }
        for subject in ["service/orders-v2", "instance/orders-v2-1", "edge/gateway:billing", "revision/3", "gateway-1"]
        {
            assert!(!concerns_service(subject, "orders"), "{subject}");
        }
    }
}
