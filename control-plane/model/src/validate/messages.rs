//! Channels: who publishes to them, who receives, and quantities that make no sense beside each other.

use std::collections::{BTreeMap, BTreeSet};

use super::at::At;
use super::graph::Graph;
use super::{Context, services, syntax};
use crate::finding::{
    BACKOFF_NOT_RISING, BAD_FIELD, BAD_NAME, BAD_PATH, LONG_TIMEOUT, MESSAGE_BEYOND_CHANNEL, MESSAGE_BEYOND_GATEWAY,
    MESSAGE_LOOP, NO_PUBLISHER, NO_SUBSCRIBER, SHORT_RETENTION, UNKNOWN_CHANNEL, ZERO,
};
use crate::load::report::one_of;
use crate::load::suggest::nearest;
use crate::load::tree::Place;
use crate::snapshot::Limits;
use crate::topology::{
    BACKOFF, BrokerProvider, Channel, EnvSource, EnvValue, GatewayProvider, MAX_MESSAGE, MAX_SIZE, Subscription,
};
use crate::units::{Bytes, Span};

/// An attempt that takes longer holds its place for nothing: whoever needs more time answers first and works afterwards.
const LONG: Span = Span::from_secs(300);

/// Circles that are shown; more are the same mistake again.
const SHOWN: usize = 8;

pub(super) fn check(context: &mut Context<'_, '_>) {
    let topology = context.topology;
    let published = publishers(context);
    let all = context.root.get("channels");
    for (name, channel) in &topology.channels {
        let at = all.get(name);
        naming(context, "channel", name, at.key());
        sizes(context, channel, at);
        if let Some(field) = channel.key.as_deref().filter(|field| !syntax::is_field_path(field)) {
            let shown = context.quoted(field);
            context.add(BAD_FIELD, at.get("key").place(), || {
                (
                    format!("{shown} does not lead to a field of a payload"),
                    "write the names of fields with dots between them, such as `orderId` or `customer.id`",
                )
            });
        }
        taking_part(context, name, channel, at, published.as_ref());
        for (name, service, subscription) in channel.receivers() {
            receiver(context, name, service, subscription, at.get("subscriptions").get(name));
            retention(context, channel, subscription, at);
        }
    }
    loops(context);
}

fn naming(context: &mut Context<'_, '_>, what: &str, name: &str, place: Place) {
    if !syntax::is_channel(name) {
        let shown = context.quoted(name);
        context.add(BAD_NAME, place, || {
            (
                format!("{shown} is not a name for a {what}"),
                "use letters, digits, dots, hyphens and underscores, with a letter or digit at both ends, 100 at most",
            )
        });
    }
}

/// The channels to which somebody publishes; `None` where that is not known, because a part of a service was left out.
fn publishers<'t>(context: &mut Context<'t, '_>) -> Option<BTreeSet<&'t str>> {
    let mut known = !context.root.get("services").incomplete();
    let mut published = BTreeSet::new();
    for (_, service, at) in context.services() {
        known &= !at.incomplete() && !at.get("publishes").incomplete() && !at.get("env").incomplete();
        published.extend(service.published());
        for (index, channel) in service.publishes.iter().enumerate() {
            let place = at.get("publishes").nth(index).place();
            known_channel(context, channel, place, "`publishes` names");
        }
        for (variable, value) in &service.env {
            if let EnvValue::From(EnvSource::PublishUrlOf(channel)) = value {
                let place = at.get("env").get(variable).get("publishUrlOf").place();
                known_channel(context, channel, place, &format!("`{variable}` wants to publish to"));
            }
        }
    }
    known.then_some(published)
}

fn known_channel(context: &mut Context<'_, '_>, name: &str, place: Place, what: &str) {
    let channels = &context.topology.channels;
    if channels.contains_key(name) {
        return;
    }
    let shown = context.quoted(name);
    context.add(UNKNOWN_CHANNEL, place, || {
        let names = || channels.keys().map(String::as_str);
        let help = match nearest(name, names()) {
            Some(near) => format!("did you mean `{near}`?"),
            None if channels.is_empty() => "describe it under `channels:`".to_owned(),
            None => format!("describe it under `channels:`, or name one of {}", one_of(names())),
        };
        (format!("{what} {shown}, and there is no such channel"), help)
    });
}

fn taking_part(
    context: &mut Context<'_, '_>,
    name: &str,
    channel: &Channel,
    at: At<'_>,
    published: Option<&BTreeSet<&str>>,
) {
    if published.is_some_and(|published| !published.contains(name)) {
        let shown = context.quoted(name);
        context.add(NO_PUBLISHER, at.key(), || {
            (format!("no service publishes to {shown}"), "name it under `publishes:` of a service, if one does")
        });
    }
    if channel.subscriptions.is_empty() && !at.incomplete() && !at.get("subscriptions").incomplete() {
        let shown = context.quoted(name);
        context.add(NO_SUBSCRIBER, at.key(), || {
            (
                format!("nobody receives the messages of {shown}: each counts as settled at once"),
                "add `subscriptions: { SERVICE: { deliver: /path } }`",
            )
        });
    }
}

fn receiver(context: &mut Context<'_, '_>, name: &str, service: &str, subscription: &Subscription, at: At<'_>) {
    naming(context, "subscription", name, at.key());
    let said = subscription.service.is_some();
    let place = if said { at.get("service").place() } else { at.key() };
    let what =
        if said { "the subscription delivers to" } else { "the subscription delivers to the service of its name," };
    if context.service(service, place, what).is_some_and(|service| !service.listens()) {
        services::no_port(context, service, place, "the subscription delivers to");
    }
    if !syntax::is_url_path(&subscription.deliver) {
        let shown = context.quoted(&subscription.deliver);
        context.add(BAD_PATH, at.get("deliver").place(), || {
            (
                format!("{shown} is not a path"),
                "write the path only, such as `/events/order-placed`; `service:` says whose it is",
            )
        });
    }
    context.not_zero(subscription.timeout, at, "timeout");
    if let Some(timeout) = subscription.timeout.filter(|timeout| *timeout > LONG) {
        context.add(LONG_TIMEOUT, at.get("timeout").place(), || {
            (
                format!("an attempt may take {timeout}: one that hangs holds its place and its message for so long"),
                format!("write at most {LONG}, and let what takes longer be done after the answer"),
            )
        });
    }
    if let Some(alert) = &subscription.dead_letter.alert {
        context.not_zero(Some(alert.within), at.get("deadLetter").get("alert"), "within");
    }
    let backoff = subscription.retry.backoff.as_deref().unwrap_or_default();
    if let Some(index) = backoff.windows(2).position(|pair| pair[1] < pair[0]) {
        let place = at.get("retry").get("backoff").nth(index + 1).place();
        context.add(BACKOFF_NOT_RISING, place, || {
            (
                format!("the pause of {} is shorter than the one before it, {}", backoff[index + 1], backoff[index]),
                "let the pauses rise: what is down needs the more time the longer it is down",
            )
        });
    }
}

fn sizes(context: &mut Context<'_, '_>, channel: &Channel, at: At<'_>) {
    for (size, key) in [(channel.max_size, "maxSize"), (channel.max_message, "maxMessage")] {
        if size == Some(Bytes(0)) {
            context.add(ZERO, at.get(key).place(), || {
                (format!("`{key}` must be more than zero"), "write a size such as 64MiB, or leave it out")
            });
        }
    }
    let BrokerProvider::Embedded(broker) = &context.topology.providers.broker;
    let most = channel.max_size.or(broker.max_size).unwrap_or(MAX_SIZE);
    let largest = channel.max_message.unwrap_or(MAX_MESSAGE);
    if largest > most && most > Bytes(0) {
        let key = if channel.max_message.is_some() { "maxMessage" } else { "maxSize" };
        let default = if channel.max_message.is_some() { "" } else { " by default" };
        context.add(MESSAGE_BEYOND_CHANNEL, at.get(key).place(), || {
            (
                format!("a message may have {largest}{default}, and all of the channel together {most}"),
                "write a smaller `maxMessage`, or a larger `maxSize`",
            )
        });
    }
    let GatewayProvider::Embedded(gateway) = &context.topology.providers.gateway;
    let request = gateway.limits.request_body.unwrap_or(Bytes(Limits::default().request_body_bytes));
    if let Some(largest) = channel.max_message.filter(|largest| *largest > request) {
        context.add(MESSAGE_BEYOND_GATEWAY, at.get("maxMessage").place(), || {
            (
                format!("a message may have {largest}, and messages travel in requests, which end at {request}"),
                "write a smaller `maxMessage`, or a larger `requestBody` under `limits:` of the gateway",
            )
        });
    }
}

/// What every subscription has settled need not be kept; but while a message waits for its retry, the ones beside it are
/// what an operator looks at.
fn retention(context: &mut Context<'_, '_>, channel: &Channel, subscription: &Subscription, at: At<'_>) {
    let BrokerProvider::Embedded(broker) = &context.topology.providers.broker;
    let place = match channel.retention {
        Some(_) => at.get("retention").place(),
        None => context.root.get("providers").get("broker").get("embedded").get("retention").place(),
    };
    let Some(retention) = channel.retention.or(broker.retention) else { return };
    let retry = &subscription.retry;
    let tried = retry.attempts != Some(0);
    let longest = retry.backoff.as_deref().unwrap_or(&BACKOFF).iter().max().copied();
    if let Some(longest) = longest.filter(|longest| tried && *longest > retention) {
        context.add(SHORT_RETENTION, place, || {
            (
                format!("messages are kept for {retention}, and one may wait {longest} for its retry"),
                format!("keep them for longer than {longest}, so that one can see what came with it"),
            )
        });
    }
}

/// What is received on one channel may be published to another by the same service, and come back.
fn loops(context: &mut Context<'_, '_>) {
    let topology = context.topology;
    let names: Vec<&str> = topology.channels.keys().map(String::as_str).collect();
    let number: BTreeMap<&str, usize> = names.iter().enumerate().map(|(at, name)| (*name, at)).collect();
    let mut graph: Graph<(&str, Place)> = Graph::new(names.len());
    let all = context.root.get("channels");
    for (from, (name, channel)) in topology.channels.iter().enumerate() {
        for (subscription, service, _) in channel.receivers() {
            let place = all.get(name).get("subscriptions").get(subscription).key();
            let onward = topology.services.get(service).map(|service| service.published()).unwrap_or_default();
            let onward = onward.into_iter().filter_map(|channel| number.get(channel));
            graph.edges[from].extend(onward.map(|to| (*to, (service, place))));
        }
    }
    for circle in graph.circles(|_| true, SHOWN) {
        let step = |at: usize| {
            let (from, to) = (circle[at], circle[(at + 1) % circle.len()]);
            graph.edges[from].iter().find(|(next, _)| *next == to).map(|(_, (service, place))| (*service, *place))
        };
        let plain = |name: &str| context.quoted(name).replace('`', "");
        let mut way = String::new();
        for (at, channel) in circle.iter().enumerate().take(12) {
            let service = step(at).map(|(service, _)| plain(service)).unwrap_or_default();
            way.push_str(&format!("{} -> {service} -> ", plain(names[*channel])));
        }
        let gap = if circle.len() > 12 { "… -> " } else { "" };
        let way = format!("{way}{gap}{}", plain(names[circle[0]]));
        let place = step(0).map(|(_, place)| place).unwrap_or_default();
        context.add(MESSAGE_LOOP, place, || {
            (
                format!("a message may go round for ever: {way}"),
                "see to it that one of these services does not publish for what came from itself",
            )
        });
    }
}
