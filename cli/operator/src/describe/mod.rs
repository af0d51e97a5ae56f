//! Everything about one thing on one page, out of everything that the daemon knows: a page answers what one would otherwise
//! ask five commands. What cannot be had (a broker that is away, a daemon of before) is left out, and never holds up the rest.

mod messages;
mod page;
mod traffic;
mod what_runs;

use std::time::Duration;

use jiff::Timestamp;
use meshctl_api::client::Client;
use meshctl_api::view::messages::Channel;
use meshctl_api::view::traces::{TraceQuery, TraceSummary};
use meshctl_api::view::vitals::{Signals, Vitals};
use meshctl_api::view::{Edge, Instance, InstanceState, LogLine, LogQuery, Route, Service, ServiceState};
use meshctl_model::event::Event;

use self::page::Page;
use crate::failure::Failure;
use crate::kinds::Kind;
use crate::show::{self, Item};

/// A daemon that is well answers at once; a page waits no longer for its parts.
const PATIENCE: Duration = Duration::from_secs(3);
/// Events that are looked through for those of one thing, and how many a page shows.
const EVENTS: (usize, usize) = (1_000, 8);
/// Lines of each failing instance.
const LINES: usize = 8;
/// Failed traces that are looked through, and how many a page shows.
const TRACES: (u32, usize) = (100, 5);

/// What pages are made of.
#[derive(Debug)]
struct Facts {
    now: Timestamp,
    services: Vec<Service>,
    routes: Vec<Route>,
    edges: Vec<Edge>,
    channels: Vec<Channel>,
    events: Vec<Event>,
    vitals: Option<Vitals>,
    /// Of what failed lately.
    traces: Vec<TraceSummary>,
}

/// The page of each of `items`.
pub(crate) async fn pages(client: &Client, kind: Kind, items: &[Item]) -> Result<Vec<String>, Failure> {
    if !matches!(kind, Kind::Service | Kind::Instance | Kind::Route | Kind::Edge | Kind::Channel | Kind::Breaker) {
        return Ok(items.iter().map(|item| show::describe(kind, item)).collect());
    }
    let facts = Facts::of(&client.clone().patience(PATIENCE)).await?;
    let mut pages = Vec::with_capacity(items.len());
    for item in items {
        let page = match kind {
            Kind::Service => what_runs::service(&facts, &item.name, &failing_logs(client, &facts, &item.name).await),
            Kind::Instance => what_runs::instance(&facts, &item.name, &logs(client, &[&item.name]).await),
            Kind::Route => traffic::route(&facts, &item.name),
            Kind::Edge | Kind::Breaker => traffic::edge(&facts, &item.name),
            _ => messages::channel(&facts, &item.name),
        };
        // It may have gone since it was listed: then what was listed is all there is.
        pages.push(page.map_or_else(|| show::describe(kind, item), |page| page.text()));
    }
    Ok(pages)
}

impl Facts {
    async fn of(client: &Client) -> Result<Self, Failure> {
        let failed = TraceQuery { errors: true, limit: Some(TRACES.0), ..TraceQuery::default() };
        let (services, routes, edges, channels, events, vitals, traces) = tokio::join!(
            client.services(),
            client.routes(),
            client.edges(),
            client.channels(),
            client.events(None, Some(EVENTS.0), None),
            client.vitals(),
            client.traces(&failed),
        );
        Ok(Self {
            now: Timestamp::now(),
            services: services?.items,
            routes: routes?.items,
            edges: edges?.items,
            channels: channels.map(|list| list.items).unwrap_or_default(),
            events: events.map(|list| list.items).unwrap_or_default(),
            vitals: vitals.ok(),
            traces: traces.map(|list| list.items).unwrap_or_default(),
        })
    }

    fn service(&self, name: &str) -> Option<&Service> {
        self.services.iter().find(|service| service.name == name)
    }

    fn edge(&self, name: &str) -> Option<&Edge> {
        self.edges.iter().find(|edge| edge.name == name)
    }

    fn edges_where<'a>(&'a self, wanted: impl Fn(&Edge) -> bool + 'a) -> impl Iterator<Item = &'a Edge> {
        self.edges.iter().filter(move |edge| wanted(edge))
    }

    /// The golden signals of one of `among`.
    fn signals(&self, among: fn(&Vitals) -> &[Signals], name: &str) -> Option<&Signals> {
        among(self.vitals.as_ref()?).iter().find(|signals| signals.name == name)
    }

    fn signals_of_edge(&self, name: &str) -> Option<&Signals> {
        self.signals(|vitals| &vitals.edges, name)
    }

    /// The last events about any of what `concerns`, the latest last.
    fn events(&self, concerns: impl Fn(&str) -> bool) -> Vec<Event> {
        let found: Vec<&Event> = self.events.iter().filter(|event| concerns(&event.subject)).collect();
        found[found.len().saturating_sub(EVENTS.1)..].iter().copied().cloned().collect()
    }

    /// The latest failed traces in which `service` took part.
    fn traces(&self, service: &str) -> Vec<&TraceSummary> {
        let took_part = |trace: &&TraceSummary| trace.services.iter().any(|name| name == service);
        self.traces.iter().filter(took_part).take(TRACES.1).collect()
    }
}

/// The last words of the instances of a service that are not well.
async fn failing_logs(client: &Client, facts: &Facts, service: &str) -> Vec<LogLine> {
    let Some(service) = facts.service(service) else { return Vec::new() };
    let unwell = |instance: &&Instance| {
        matches!(instance.state, InstanceState::Unhealthy | InstanceState::BackingOff | InstanceState::CrashLoop)
            || service.state == ServiceState::Failed
    };
    let ids: Vec<&str> = service.instances.iter().filter(unwell).map(|instance| instance.id.as_str()).collect();
    if ids.is_empty() { Vec::new() } else { logs(client, &ids).await }
}

/// The last lines of instances; none where they cannot be had.
async fn logs(client: &Client, ids: &[&str]) -> Vec<LogLine> {
    let query = LogQuery { services: Some(ids.join(",")), tail: Some(LINES), ..LogQuery::default() };
    let read = async {
        let (mut lines, mut following) = (Vec::new(), client.logs(&query).await.ok()?);
        while let Some(line) = following.next().await.ok()? {
            lines.push(line);
        }
        Some(lines)
    };
    tokio::time::timeout(PATIENCE, read).await.ok().flatten().unwrap_or_default()
}

/// The sections that every page ends with.
fn endings(page: &mut Page, facts: &Facts, events: Vec<Event>, lines: &[LogLine]) {
    page.events(events, facts.now);
    page.logs(lines);
}
