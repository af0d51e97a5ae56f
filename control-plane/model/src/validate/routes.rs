//! Routes: what they match, and where they lead.

use std::collections::{BTreeMap, HashMap};

use super::at::At;
use super::{Context, services, syntax};
use crate::finding::{BAD_HEADER, BAD_HOST, BAD_METHOD, BAD_PATH, BAD_WEIGHTS, DUPLICATE_ROUTE, OUT_OF_RANGE};
use crate::load::tree::Place;
use crate::topology::{Fallback, RateLimitKey, Route, RouteTo};

pub(super) fn check(context: &mut Context<'_, '_>) {
    let topology = context.topology;
    let all = context.root.get("routes");
    for (index, route) in topology.routes.iter().enumerate() {
        let at = all.nth(index);
        matching(context, route, at);
        targets(context, route, at);
        for (name, place) in [
            (route.idempotency_key.as_deref(), at.get("idempotencyKey").place()),
            (
                route
                    .rate_limit
                    .as_ref()
                    .and_then(|limit| limit.per.as_ref())
                    .map(|RateLimitKey::Header(name)| name.as_str()),
                at.get("rateLimit").get("per").get("header").place(),
            ),
        ] {
            if let Some(name) = name {
                header_name(context, name, place);
            }
        }
    }
    duplicates(context, all);
}

fn matching(context: &mut Context<'_, '_>, route: &Route, at: At<'_>) {
    if let Some(fault) = syntax::path_fault(&route.path) {
        let shown = context.quoted(&route.path);
        context.add(BAD_PATH, at.get("path").place(), || {
            (format!("{shown} is not the path of a route: {fault}"), "write `/orders`, `/orders/*` or `/users/*/cart`")
        });
    }
    if let Some(host) = route.host.as_deref().filter(|host| !syntax::is_host(host)) {
        let shown = context.quoted(host);
        context.add(BAD_HOST, at.get("host").place(), || {
            (
                format!("{shown} is not a host"),
                "write a name without scheme and port, such as `shop.example.com` or `*.example.com`",
            )
        });
    }
    for (name, value) in &route.headers {
        let entry = at.get("headers").get(name);
        header_name(context, name, entry.key());
        if !syntax::is_header_value(value) {
            let shown = context.quoted(value);
            context.add(BAD_HEADER, entry.place(), || {
                (
                    format!("{shown} cannot be the value of a header"),
                    "leave out control characters and spaces at the ends; `*` means any value",
                )
            });
        }
    }
    let methods = at.get("methods");
    if route.methods.as_ref().is_some_and(Vec::is_empty) && !methods.incomplete() {
        context.add(BAD_METHOD, methods.place(), || {
            ("no method at all matches nothing", "leave `methods:` out to match any")
        });
    }
    for (index, method) in route.methods.iter().flatten().enumerate() {
        if !syntax::is_token(method) || method.bytes().any(|b| b.is_ascii_lowercase()) {
            let shown = context.quoted(method);
            let upper = method.to_ascii_uppercase();
            let help = if syntax::is_token(method) && context.tree.showable(method) == method {
                format!("write `{upper}`: methods are upper case")
            } else {
                "write a method such as `GET` or `POST`".to_owned()
            };
            context.add(BAD_METHOD, methods.nth(index).place(), || (format!("{shown} is not an HTTP method"), help));
        }
    }
}

fn header_name(context: &mut Context<'_, '_>, name: &str, place: Place) {
    if !syntax::is_token(name) {
        let shown = context.quoted(name);
        context.add(BAD_HEADER, place, || {
            (format!("{shown} is not the name of a header"), "write a name such as `X-Api-Key`")
        });
    }
}

pub(super) fn fallback(context: &mut Context<'_, '_>, fallback: Option<&Fallback>, at: At<'_>) {
    let Some(fallback) = fallback else { return };
    let at = at.get("fallback");
    if let Some(kind) =
        fallback.content_type.as_deref().filter(|kind| kind.is_empty() || !syntax::is_header_value(kind))
    {
        let shown = context.quoted(kind);
        context.add(BAD_HEADER, at.get("contentType").place(), || {
            (format!("{shown} is not a content type"), "write one such as `application/json`")
        });
    }
    if let Some(status @ (204 | 205 | 304)) = fallback.status
        && !fallback.body.is_empty()
    {
        context.add(OUT_OF_RANGE, at.get("status").place(), || {
            (format!("a response with status {status} has no body"), "choose another status, or leave `body:` out")
        });
    }
}

fn targets(context: &mut Context<'_, '_>, route: &Route, at: At<'_>) {
    let to = at.get("to");
    let places: Vec<(&str, Place)> = match &route.to {
        RouteTo::One(service) => vec![(service, to.place())],
        RouteTo::Weighted(targets) => {
            targets.iter().enumerate().map(|(i, t)| (t.service.as_str(), to.nth(i).get("service").place())).collect()
        }
    };
    for (name, place) in places {
        if context.service(name, place, "the route leads to").is_some_and(|service| !service.listens()) {
            services::no_port(context, name, place, "the route leads to");
        }
    }
    if let RouteTo::Weighted(targets) = &route.to
        && !to.incomplete()
    {
        let sum: f64 = targets.iter().map(|target| target.weight.0 * 100.0).sum();
        if (sum - 100.0).abs() > 0.01 {
            context.add(BAD_WEIGHTS, to.place(), || {
                (
                    format!("the weights are {}% together", (sum * 100.0).round() / 100.0),
                    "change them so that they are 100% together",
                )
            });
        }
        for (index, target) in targets.iter().enumerate().filter(|(_, target)| target.weight.0 == 0.0) {
            let shown = context.quoted(&target.service);
            context.add(BAD_WEIGHTS, to.nth(index).get("weight").place(), || {
                (format!("with a weight of 0% nothing reaches {shown}"), "leave it out, or give it a share")
            });
        }
    }
}

/// What a route matches beside its method.
type Match<'t> = (String, &'t str, BTreeMap<String, &'t str>);

fn duplicates(context: &mut Context<'_, '_>, all: At<'_>) {
    let topology = context.topology;
    let any = || vec!["*"];
    // For each match and method the first route; `*` is a route of any method.
    let mut first: HashMap<Match<'_>, HashMap<&str, usize>> = HashMap::new();
    for (index, route) in topology.routes.iter().enumerate() {
        let headers = route.headers.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.as_str())).collect();
        let host = route.host.as_deref().unwrap_or("").to_ascii_lowercase();
        let methods = first.entry((host, &route.path, headers)).or_default();
        let wanted = route.methods.as_ref().map_or_else(any, |list| list.iter().map(String::as_str).collect());
        // A route of any method and one of some are told apart by being more specific, so only like meets like.
        let clash = wanted.iter().find_map(|method| methods.get(method).map(|other| (*method, *other)));
        for method in &wanted {
            methods.entry(method).or_insert(index);
        }
        if let Some((method, other)) = clash.filter(|(_, other)| *other != index) {
            let there = context.report.locate(all.nth(other).get("path").place());
            let path = context.quoted(&route.path);
            let method = if method == "*" { String::new() } else { format!("{} ", context.quoted(method)) };
            let place = all.nth(index).get("path").place();
            context.add(DUPLICATE_ROUTE, place, || {
                (
                    format!("requests for {method}{path} have a route already, at {there}"),
                    "remove one of them, or tell them apart by `host:`, `methods:` or `headers:`",
                )
            });
        }
    }
}
