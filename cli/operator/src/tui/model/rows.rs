//! The rows of each view: one function a view, from what is known to what is shown.

use std::collections::HashMap;

use jiff::Timestamp;
use meshctl_api::view::breakers::Breaker;
use meshctl_api::view::messages::{Channel, DeadLetter, Replay, Subscription};
use meshctl_api::view::traces::TraceSummary;
use meshctl_api::view::vitals::Signals;
use meshctl_api::view::{Edge, Gateway, Instance, InstanceState, Route, Service, ServiceState};
use meshctl_model::event::{Event, EventSeverity};
use meshctl_model::trace::{Node, SpanStatus, Wait, WaitCause, What, attribute};

use super::grid::{Cell, Column, Row, Tone, number, text};
use super::views::View;
use super::{Loaded, Model};
use crate::kinds::Kind;
use crate::output::age;
use crate::show::{milliseconds, size, state_word, why};
use crate::tui::figures::{percent, rate, share};

/// The columns of `view`, and its rows before they are filtered and sorted.
pub(super) fn rows(model: &Model, view: &View) -> (&'static [Column], Vec<Row>) {
    let now = model.now;
    let status = model.status.as_ref();
    let services = status.map_or(&[][..], |status| &status.items);
    let loaded = model.front().loaded.as_ref();
    match (view, loaded) {
        (View::Overview, _) => (TROUBLES, troubles(model)),
        (View::Services, _) => {
            let signals = by_name(model.vitals.as_ref().map(|vitals| &vitals.services));
            (SERVICES, services.iter().map(|one| service(one, signals.get(one.name.as_str()).copied(), now)).collect())
        }
        (View::Instances(of), _) => {
            let of_service = |service: &&Service| of.as_ref().is_none_or(|name| service.name == *name);
            let instances = services.iter().filter(of_service).flat_map(|service| &service.instances);
            (INSTANCES, instances.map(|one| instance(one, now)).collect())
        }
        (View::Gateways, _) => {
            (GATEWAYS, status.iter().flat_map(|status| &status.gateways).map(|one| gateway(one, now)).collect())
        }
        (View::Routes, Some(Loaded::Routes(routes))) => {
            let signals = by_name(model.vitals.as_ref().map(|vitals| &vitals.routes));
            (ROUTES, routes.iter().map(|one| route(one, signals.get(one.name.as_str()).copied())).collect())
        }
        (View::Edges, Some(Loaded::Edges(edges))) => {
            let signals = by_name(model.vitals.as_ref().map(|vitals| &vitals.edges));
            let breakers: HashMap<&str, &str> =
                model.breakers().iter().map(|breaker| (breaker.edge.as_str(), breaker.state.as_str())).collect();
            let row = |one: &Edge| {
                let name = one.name.as_str();
                edge(one, signals.get(name).copied(), breakers.get(name).copied().unwrap_or(&one.breaker))
            };
            (EDGES, edges.iter().map(row).collect())
        }
        (View::Channels, _) => (CHANNELS, model.channels().iter().map(channel).collect()),
        (View::Subscriptions(of), _) => {
            let of_channel = |channel: &&Channel| of.as_ref().is_none_or(|name| channel.name == *name);
            let subscriptions = model.channels().iter().filter(of_channel).flat_map(|channel| &channel.subscriptions);
            (SUBSCRIPTIONS, subscriptions.map(subscription).collect())
        }
        (View::Breakers, _) => (BREAKERS, model.breakers().iter().map(|one| breaker(one, now)).collect()),
        (View::Letters(_), Some(Loaded::Letters(letters))) => {
            (LETTERS, letters.iter().map(|one| letter(one, now)).collect())
        }
        (View::Replays, Some(Loaded::Replays(replays))) => {
            (REPLAYS, replays.iter().map(|one| replay(one, now)).collect())
        }
        (View::Traces(..), Some(Loaded::Traces(traces))) => {
            (TRACES, traces.items.iter().map(|one| trace(one, now)).collect())
        }
        (View::Trace(_), Some(Loaded::Trace { tree, .. })) => {
            (SPANS, tree.nodes.iter().enumerate().map(span).collect())
        }
        (View::Events, _) => (EVENTS, model.events.iter().rev().map(|one| event(one, now)).collect()),
        _ => (&[], Vec::new()),
    }
}

fn by_name(signals: Option<&Vec<Signals>>) -> HashMap<&str, &Signals> {
    signals.into_iter().flatten().map(|signals| (signals.name.as_str(), signals)).collect()
}

const TROUBLES: &[Column] = &[text("what", 0), text("is wrong", 0)];

fn troubles(model: &Model) -> Vec<Row> {
    let row = |trouble: super::Trouble| Row {
        cells: vec![Cell::new(&trouble.subject).tone(trouble.tone), Cell::new(trouble.text)],
        id: trouble.subject,
        open: Some(trouble.open),
    };
    model.troubles().into_iter().map(row).collect()
}

/// Rate, share of errors, p50, p99, in flight.
fn signals(signals: Option<&Signals>) -> [Cell; 5] {
    let Some(Signals { requests_per_s, errors_per_s, latency_p50_ms, latency_p99_ms, in_flight, .. }) = signals else {
        return std::array::from_fn(|_| Cell::maybe(None::<&str>));
    };
    let failing = share(*errors_per_s, *requests_per_s);
    [
        Cell::new(rate(*requests_per_s)).key(*requests_per_s),
        Cell::new(percent(*errors_per_s, *requests_per_s)).key(failing).tone(match failing {
            0.0 => Tone::Plain,
            share if share < 1.0 => Tone::Careful,
            _ => Tone::Bad,
        }),
        latency(*latency_p50_ms),
        latency(*latency_p99_ms),
        Cell::count(*in_flight, Tone::Plain),
    ]
}

fn refused(per_s: Option<f64>) -> Cell {
    let Some(per_s) = per_s else { return Cell::maybe(None::<&str>) };
    Cell::new(rate(per_s)).key(per_s).tone(if per_s > 0.0 { Tone::Bad } else { Tone::Plain })
}

fn latency(ms: Option<f64>) -> Cell {
    ms.map_or_else(|| Cell::maybe(None::<&str>), |ms| Cell::new(milliseconds(ms)).key(ms))
}

/// How long ago; sorted with the latest first.
fn since(then: Option<Timestamp>, now: Timestamp) -> Cell {
    let key = |then: Timestamp| then.as_millisecond() as f64;
    then.map_or_else(|| Cell::maybe(None::<&str>), |then| Cell::new(age(then, now)).key(key(then)))
}

fn words(text: Option<&String>) -> Cell {
    Cell::new(text.map_or("", String::as_str))
}

fn page(kind: Kind, name: &str) -> Option<View> {
    Some(View::Page { kind, name: name.to_owned(), yaml: false })
}

const SERVICES: &[Column] = &[
    text("name", 0),
    number("ready", 0),
    text("state", 0),
    number("rate/s", 1),
    number("errors", 1),
    number("p50", 4),
    number("p99", 2),
    number("in flight", 5),
    number("cpu", 4),
    number("memory", 4),
    number("restarts", 5),
    number("age", 6),
    text("reason", 3),
    text("address", 7),
];

fn service(service: &Service, of: Option<&Signals>, now: Timestamp) -> Row {
    let tone = match service.state {
        ServiceState::Ready => Tone::Good,
        ServiceState::RolledBack | ServiceState::Failed | ServiceState::Degraded => Tone::Bad,
        ServiceState::Stopped => Tone::Faint,
        _ => Tone::Careful,
    };
    let restarts: u32 = service.instances.iter().map(|instance| instance.restarts).sum();
    let started = service.instances.iter().filter_map(|instance| instance.started_at).min();
    let [per_s, errors, p50, p99, in_flight] = signals(of);
    let (cpu, memory) = (of.and_then(|of| of.cpu_percent), of.and_then(|of| of.memory_bytes));
    let cells = vec![
        Cell::new(&service.name),
        Cell::new(format_args!("{}/{}", service.ready, service.desired)),
        Cell::new(state_word(service.state)).tone(tone),
        per_s,
        errors,
        p50,
        p99,
        in_flight,
        cpu.map_or_else(|| Cell::maybe(None::<&str>), |cpu| Cell::new(format_args!("{cpu:.0}%")).key(cpu)),
        memory.map_or_else(|| Cell::maybe(None::<&str>), |bytes| Cell::new(size(bytes)).key(bytes as f64)),
        Cell::count(restarts.into(), Tone::Careful),
        since(started, now),
        Cell::new(why(service).unwrap_or_default()),
        Cell::maybe(service.endpoint.as_ref()),
    ];
    Row { id: service.name.clone(), cells, open: Some(View::Instances(Some(service.name.clone()))) }
}

const INSTANCES: &[Column] = &[
    text("id", 0),
    text("service", 4),
    text("state", 0),
    number("pid", 3),
    text("address", 2),
    number("restarts", 1),
    number("age", 1),
    text("reason", 1),
    number("revision", 5),
];

fn instance_state(state: InstanceState) -> Cell {
    let (word, tone) = match state {
        InstanceState::Ready => ("ready", Tone::Good),
        InstanceState::Starting => ("starting", Tone::Careful),
        InstanceState::Unhealthy => ("unhealthy", Tone::Bad),
        InstanceState::Draining => ("draining", Tone::Careful),
        InstanceState::Stopping => ("stopping", Tone::Careful),
        InstanceState::BackingOff => ("backingOff", Tone::Bad),
        InstanceState::CrashLoop => ("crashLoop", Tone::Bad),
    };
    Cell::new(word).tone(tone)
}

fn instance(instance: &Instance, now: Timestamp) -> Row {
    let cells = vec![
        Cell::new(&instance.id),
        Cell::new(&instance.service),
        instance_state(instance.state),
        Cell::maybe(instance.pid),
        Cell::maybe(instance.address.as_ref()),
        Cell::count(instance.restarts.into(), Tone::Careful),
        since(instance.started_at, now),
        words(instance.reason.as_ref()),
        Cell::new(instance.revision),
    ];
    Row { id: instance.id.clone(), cells, open: page(Kind::Instance, &instance.id) }
}

const GATEWAYS: &[Column] = &[
    text("gateway", 0),
    text("url", 0),
    text("state", 0),
    number("revision", 1),
    number("generation", 2),
    number("pid", 2),
    number("restarts", 1),
    number("age", 1),
    text("reason", 1),
];

fn gateway(gateway: &Gateway, now: Timestamp) -> Row {
    let cells = vec![
        Cell::new(&gateway.id),
        Cell::new(&gateway.url),
        instance_state(gateway.state),
        Cell::new(gateway.revision),
        Cell::new(gateway.generation),
        Cell::maybe(gateway.pid),
        Cell::count(gateway.restarts.into(), Tone::Careful),
        since(gateway.started_at, now),
        words(gateway.reason.as_ref()),
    ];
    Row { id: gateway.id.clone(), cells, open: page(Kind::Gateway, &gateway.id) }
}

const ROUTES: &[Column] = &[
    text("route", 0),
    text("to", 2),
    number("rate/s", 0),
    number("errors", 0),
    number("p50", 1),
    number("p99", 0),
    number("in flight", 4),
    number("deadline", 3),
    number("retries", 5),
];

fn route(route: &Route, of: Option<&Signals>) -> Row {
    let targets = match route.targets.as_slice() {
        [only] => only.service.clone(),
        several => {
            let part =
                |target: &meshctl_api::view::RouteTarget| format!("{} {}%", target.service, target.weight_percent);
            several.iter().map(part).collect::<Vec<_>>().join(", ")
        }
    };
    let [per_s, errors, p50, p99, in_flight] = signals(of);
    let cells = vec![
        Cell::new(&route.name),
        Cell::new(targets),
        per_s,
        errors,
        p50,
        p99,
        in_flight,
        Cell::new(milliseconds(route.deadline_ms as f64)).key(route.deadline_ms as f64),
        Cell::count(route.retries.into(), Tone::Plain),
    ];
    Row { id: route.name.clone(), cells, open: page(Kind::Route, &route.name) }
}

const EDGES: &[Column] = &[
    text("edge", 0),
    text("breaker", 0),
    number("rate/s", 0),
    number("errors", 0),
    number("refused/s", 1),
    number("p50", 2),
    number("p99", 0),
    number("in flight", 3),
    number("queued", 5),
    number("deadline", 4),
    number("retries", 5),
];

fn breaker_state(state: &str) -> Cell {
    Cell::new(state).tone(match state {
        "closed" => Tone::Good,
        "open" | "forcedOpen" => Tone::Bad,
        _ => Tone::Careful,
    })
}

fn edge(edge: &Edge, of: Option<&Signals>, breaker: &str) -> Row {
    let [per_s, errors, p50, p99, in_flight] = signals(of);
    let cells = vec![
        Cell::new(&edge.name),
        breaker_state(breaker),
        per_s,
        errors,
        refused(of.map(|of| of.refused_per_s)),
        p50,
        p99,
        in_flight,
        of.map_or_else(|| Cell::maybe(None::<&str>), |of| Cell::count(of.queued, Tone::Careful)),
        Cell::new(milliseconds(edge.deadline_ms as f64)).key(edge.deadline_ms as f64),
        Cell::count(edge.retries.into(), Tone::Plain),
    ];
    Row { id: edge.name.clone(), cells, open: page(Kind::Edge, &edge.name) }
}

const CHANNELS: &[Column] = &[
    text("channel", 0),
    number("depth", 0),
    number("lag", 0),
    number("in flight", 2),
    number("dead", 0),
    number("in/s", 0),
    number("out/s", 0),
    text("state", 1),
    number("kept", 3),
    number("size", 3),
    number("partitions", 4),
];

fn channel(channel: &Channel) -> Row {
    let stuck = channel.subscriptions.iter().find(|one| one.state == "waiting");
    let stuck = stuck.or_else(|| channel.subscriptions.iter().find(|one| one.state != "flowing"));
    let state = match stuck {
        Some(one) if one.state == "waiting" => Cell::new(format_args!("{} waits", one.subscription)).tone(Tone::Bad),
        Some(one) => Cell::new(format_args!("{} {}", one.subscription, one.state)).tone(Tone::Careful),
        None if channel.subscriptions.is_empty() => Cell::new("nobody receives").tone(Tone::Faint),
        None => Cell::new("flowing").tone(Tone::Good),
    };
    let cells = vec![
        Cell::new(&channel.name),
        Cell::count(channel.depth, Tone::Plain),
        Cell::count(channel.lag, Tone::Plain),
        Cell::count(channel.in_flight, Tone::Plain),
        Cell::count(channel.dead_letters, Tone::Bad),
        Cell::new(rate(channel.published_per_s)).key(channel.published_per_s),
        Cell::new(rate(channel.delivered_per_s)).key(channel.delivered_per_s),
        state,
        Cell::count(channel.kept, Tone::Plain),
        Cell::new(size(channel.kept_bytes)).key(channel.kept_bytes as f64),
        Cell::count(channel.partitions.into(), Tone::Plain),
    ];
    Row { id: channel.name.clone(), cells, open: Some(View::Subscriptions(Some(channel.name.clone()))) }
}

const SUBSCRIPTIONS: &[Column] = &[
    text("subscription", 0),
    text("state", 0),
    number("lag", 0),
    number("in flight", 3),
    number("retrying", 1),
    number("dead", 0),
    number("out/s", 0),
    number("oldest", 2),
    number("p99", 2),
    text("reason", 1),
];

fn subscription(subscription: &Subscription) -> Row {
    let tone = match subscription.state.as_str() {
        "flowing" => Tone::Good,
        "waiting" => Tone::Bad,
        _ => Tone::Careful,
    };
    let cells = vec![
        Cell::new(&subscription.name),
        Cell::new(&subscription.state).tone(tone),
        Cell::count(subscription.lag, Tone::Plain),
        Cell::count(subscription.in_flight, Tone::Plain),
        Cell::count(subscription.retrying, Tone::Careful),
        Cell::count(subscription.dead_letters, Tone::Bad),
        Cell::new(rate(subscription.delivered_per_s)).key(subscription.delivered_per_s),
        latency(subscription.oldest_ms.map(|ms| ms as f64)),
        latency(subscription.latency_p99_ms),
        words(subscription.reason.as_ref()),
    ];
    let letters =
        format!("channel = \"{}\" and subscription = \"{}\"", subscription.channel, subscription.subscription);
    Row { id: subscription.name.clone(), cells, open: Some(View::Letters(Some(letters))) }
}

const BREAKERS: &[Column] = &[
    text("edge", 0),
    text("state", 0),
    number("since", 1),
    number("rate/s", 0),
    number("refused/s", 1),
    number("acks", 0),
    number("ends in", 1),
    text("by", 3),
    text("reason", 2),
];

fn breaker(breaker: &Breaker, now: Timestamp) -> Row {
    let is_behind = breaker.acknowledged < breaker.instances;
    let cells = vec![
        Cell::new(&breaker.edge),
        breaker_state(&breaker.state),
        since(breaker.since, now),
        Cell::new(rate(breaker.requests_per_s)).key(breaker.requests_per_s),
        Cell::new(rate(breaker.refused_per_s)).key(breaker.refused_per_s).tone(if breaker.refused_per_s > 0.0 {
            Tone::Bad
        } else {
            Tone::Plain
        }),
        Cell::new(format_args!("{}/{}", breaker.acknowledged, breaker.instances)).tone(if is_behind {
            Tone::Careful
        } else {
            Tone::Plain
        }),
        Cell::maybe(breaker.expires_at.map(|at| age(now, at))),
        Cell::maybe(breaker.by.as_ref()),
        words(breaker.reason.as_ref()),
    ];
    Row { id: breaker.edge.clone(), cells, open: page(Kind::Breaker, &breaker.edge) }
}

const LETTERS: &[Column] = &[
    text("id", 0),
    number("age", 0),
    text("subscription", 0),
    text("reason", 0),
    text("state", 0),
    number("attempts", 3),
    text("error", 0),
    text("class", 3),
    text("key", 4),
    number("size", 4),
];

fn letter(letter: &DeadLetter, now: Timestamp) -> Row {
    let tone = match letter.state.as_str() {
        "dead" => Tone::Bad,
        "processed" => Tone::Good,
        "replaying" => Tone::Careful,
        _ => Tone::Plain,
    };
    let cells = vec![
        Cell::new(&letter.id),
        since(Some(letter.last_failed_at), now),
        Cell::new(format_args!("{}/{}", letter.channel, letter.subscription)),
        Cell::new(letter.reason.as_str()),
        Cell::new(&letter.state).tone(tone),
        Cell::count(letter.attempts.into(), Tone::Plain),
        Cell::new(&letter.error),
        Cell::new(&letter.class),
        Cell::maybe(letter.key.as_ref()),
        Cell::new(size(letter.size_bytes)).key(letter.size_bytes as f64),
    ];
    Row { id: letter.id.clone(), cells, open: Some(View::Letter(letter.id.clone())) }
}

const REPLAYS: &[Column] = &[
    text("replay", 0),
    text("state", 0),
    number("processed", 0),
    number("failed", 0),
    number("pending", 0),
    number("selected", 1),
    number("age", 1),
    text("by", 3),
    text("reason", 2),
];

fn replay(replay: &Replay, now: Timestamp) -> Row {
    let tone = match replay.state.as_str() {
        "done" if replay.processed < replay.selected => Tone::Bad,
        "done" => Tone::Good,
        "running" | "paused" => Tone::Careful,
        _ => Tone::Plain,
    };
    let cells = vec![
        Cell::new(&replay.replay_id),
        Cell::new(&replay.state).tone(tone),
        Cell::count(replay.processed, Tone::Plain),
        Cell::count(replay.failed_again, Tone::Bad),
        Cell::count(replay.pending, Tone::Careful),
        Cell::count(replay.selected, Tone::Plain),
        since(Some(replay.created_at), now),
        Cell::new(&replay.by),
        words(replay.reason.as_ref()),
    ];
    // A filter that names no state leaves out what is processed by now.
    let letters =
        format!("replayId = \"{}\" and state in (dead, parked, replaying, processed, discarded)", replay.replay_id);
    Row { id: replay.replay_id.clone(), cells, open: Some(View::Letters(Some(letters))) }
}

const TRACES: &[Column] = &[
    text("trace", 1),
    number("age", 0),
    text("operation", 0),
    text("status", 0),
    number("latency", 0),
    number("duration", 2),
    number("spans", 3),
    number("errors", 1),
    text("services", 4),
];

fn trace(trace: &TraceSummary, now: Timestamp) -> Row {
    let tone = match trace.status.as_str() {
        "ok" => Tone::Good,
        "slow" => Tone::Careful,
        _ => Tone::Bad,
    };
    let cells = vec![
        Cell::new(&trace.trace_id),
        since(Some(trace.start_at), now),
        Cell::new(format_args!("{} {}", trace.service, trace.operation)),
        Cell::new(&trace.status).tone(tone),
        latency(Some(trace.latency_ms)),
        latency(Some(trace.duration_ms)),
        Cell::count(trace.spans, Tone::Plain),
        Cell::count(trace.errors, Tone::Bad),
        Cell::new(trace.services.join(",")),
    ];
    Row { id: trace.trace_id.clone(), cells, open: Some(View::Trace(trace.trace_id.clone())) }
}

/// What a waterfall is drawn from: the bars are drawn beside it.
const SPANS: &[Column] = &[text("what", 0), number("took", 0), text("how", 0)];

fn span((at, node): (usize, &Node)) -> Row {
    let (what, how, tone) = match &node.what {
        What::Span(span) => {
            let attempt = span.attributes.get(attribute::ATTEMPT).map(|attempt| format!("attempt {attempt}"));
            let failed = span.message.clone().or_else(|| span.text(attribute::ERROR).map(str::to_owned));
            let status = span.attributes.get(attribute::STATUS).map(ToString::to_string);
            let outcome = span.text(attribute::OUTCOME).map(str::to_owned);
            let how: Vec<String> = [attempt, status, outcome, failed].into_iter().flatten().collect();
            let tone = if span.status == SpanStatus::Error { Tone::Bad } else { Tone::Plain };
            (format!("{} {}", span.service, span.operation), how.join(", "), tone)
        }
        What::Unknown { span_id, .. } => {
            ("not received".to_owned(), format!("others name span {span_id} as what they are part of"), Tone::Careful)
        }
        What::Wait(Wait { cause, at, open }) => {
            let at = if at.is_empty() { "it" } else { at };
            let why = match cause {
                WaitCause::Delivery => format!("{at} has not taken it"),
                WaitCause::Retry { .. } => format!("{at} pauses before the next attempt"),
                WaitCause::Replay => format!("{at}: dead until it is replayed"),
            };
            (why, if *open { "still".to_owned() } else { String::new() }, Tone::Faint)
        }
    };
    let cells = vec![
        Cell::new(format_args!("{}{what}", "  ".repeat(node.depth))).tone(tone),
        latency(Some(node.duration_ms)),
        Cell::new(how).tone(tone),
    ];
    Row { id: at.to_string(), cells, open: None }
}

const EVENTS: &[Column] =
    &[number("age", 0), text("severity", 1), text("type", 0), text("subject", 0), text("message", 0), number("id", 2)];

fn event(event: &Event, now: Timestamp) -> Row {
    let (word, tone) = match event.severity {
        EventSeverity::Info => ("info", Tone::Plain),
        EventSeverity::Warning => ("warning", Tone::Careful),
        EventSeverity::Error => ("error", Tone::Bad),
    };
    let cells = vec![
        since(Some(event.created_at), now),
        Cell::new(word).tone(tone),
        Cell::new(&event.kind),
        Cell::new(&event.subject),
        Cell::new(&event.message),
        Cell::new(&event.id),
    ];
    let open = event.subject.split_once('/').and_then(|(kind, name)| page(Kind::parse(kind).ok()?, name));
    Row { id: event.id.clone(), cells, open }
}
