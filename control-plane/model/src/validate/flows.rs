//! Flows and what is expected of them: requests that a route takes, placeholders that mean something, objectives that can be
//! measured.

use serde_json::Value;

use super::at::At;
use super::{Context, syntax};
use crate::finding::{
    BAD_HEADER, BAD_NAME, BAD_OBJECTIVE, BAD_PLACEHOLDER, BAD_REQUEST, EMPTY_FLOW, NO_ROUTE, NOT_VISIBLE, UNKNOWN_FLOW,
};
use crate::flow::{Placeholder, placeholders, request_line};
use crate::load::report::one_of;
use crate::load::suggest::nearest;
use crate::slo;
use crate::topology::{Flow, FlowMode, FlowRequest, Route, Slo};

pub(super) fn check(context: &mut Context<'_, '_>) {
    let topology = context.topology;
    let all = context.root.get("flows");
    for (name, flow) in &topology.flows {
        let at = all.get(name);
        if !syntax::is_channel(name) {
            let shown = context.quoted(name);
            context.add(BAD_NAME, at.key(), || {
                (
                    format!("{shown} is not a name for a flow"),
                    "use letters, digits, dots, hyphens and underscores, with a letter or digit at both ends, 100 at most",
                )
            });
        }
        if flow.synchronous.is_none() && flow.asynchronous.is_none() && !at.incomplete() {
            let shown = context.quoted(name);
            context.add(EMPTY_FLOW, at.key(), || {
                (format!("the flow {shown} sends nothing"), "add `synchronous: { request: GET /path }`")
            });
        }
        for (key, mode) in [("synchronous", FlowMode::Synchronous), ("asynchronous", FlowMode::Asynchronous)] {
            if let Some(way) = flow.request(mode) {
                request(context, flow, way, mode, at.get(key));
            }
        }
    }
    let all = context.root.get("slo");
    for (index, slo) in topology.slo.iter().enumerate() {
        objectives(context, slo, all.nth(index));
    }
}

fn request(context: &mut Context<'_, '_>, flow: &Flow, way: &FlowRequest, mode: FlowMode, at: At<'_>) {
    line(context, &way.request, way, at.get("request"));
    let filled =
        |context: &mut Context<'_, '_>, text: &str, at: At<'_>| placeholders_mean_something(context, flow, text, at);
    filled(context, &way.request, at.get("request"));
    for (name, value) in &way.headers {
        let entry = at.get("headers").get(name);
        if !syntax::is_token(name) || !syntax::is_header_value(value) {
            let shown = context.quoted(name);
            context.add(BAD_HEADER, entry.key(), || {
                (format!("{shown} cannot be a header with this value"), "write a line such as `X-Api-Key: text`")
            });
        }
        filled(context, value, entry);
    }
    if let Some(body) = &way.body {
        body_means_something(context, flow, body, at.get("body"));
    }
    let Some(visible) = way.visible() else {
        if mode == FlowMode::Asynchronous && !at.incomplete() && !at.get("done").incomplete() {
            context.add(NOT_VISIBLE, at.key(), || {
                (
                    "an asynchronous flow is done when its effect shows, and this one does not say where",
                    "add `done: { visible: \"GET /path/{{field}}\" }`, with a field of the first answer's JSON",
                )
            });
        }
        return;
    };
    let at = at.get("done");
    if request_line(visible).is_some_and(|(method, _)| method != "GET") {
        context.add(BAD_REQUEST, at.get("visible").place(), || {
            ("whether an effect shows is asked by GET", "write `GET /path/{{field}}`")
        });
    } else {
        line(context, visible, way, at.get("visible"));
    }
    for (_, inside) in placeholders(visible) {
        let fault = match inside {
            Ok(field) if syntax::is_field_path(field) => continue,
            Ok(_) => "it does not lead to a field of the first answer's JSON",
            Err(why) => why,
        };
        placeholder(context, fault.to_owned(), "write the name of a field, such as `{{orderId}}`", at.get("visible"));
    }
    if let Some(crate::topology::Done::When(when)) = &way.done {
        context.not_zero(when.every, at, "every");
        context.not_zero(when.within, at, "within");
    }
}

/// That the text is a request, and one that the gateway knows a route for.
fn line(context: &mut Context<'_, '_>, text: &str, way: &FlowRequest, at: At<'_>) {
    let plain = without_placeholders(text);
    let Some((method, path)) = request_line(&plain).filter(|(_, path)| syntax::is_url_path(path)) else {
        let shown = context.quoted(text);
        context.add(BAD_REQUEST, at.place(), || {
            (
                format!("{shown} is not a request"),
                "write method and path, such as `POST /orders` or `GET /orders/{{n}}`",
            )
        });
        return;
    };
    let path = path.split('?').next().unwrap_or_default();
    let routes = &context.topology.routes;
    let all = context.root.get("routes");
    let here = |route: &&Route| path_fits(&route.path, path) && conditions_fit(route, way);
    let takes = |route: &Route| {
        route.methods.as_ref().is_none_or(|methods| methods.is_empty() || methods.iter().any(|known| known == method))
    };
    if all.incomplete() || context.root.incomplete() || routes.iter().filter(here).any(takes) {
        return;
    }
    let shown = context.quoted(text);
    let methods: Vec<&str> =
        routes.iter().filter(here).flat_map(|route| route.methods.iter().flatten()).map(String::as_str).collect();
    context.add(NO_ROUTE, at.place(), || {
        let help = if methods.is_empty() {
            "name the path of a route, or add the route under `routes:`".to_owned()
        } else {
            format!("the route of that path takes {}", one_of(methods))
        };
        (
            format!("no route takes {shown}: it would be answered {}", if help.contains("takes") { 405 } else { 404 }),
            help,
        )
    });
}

/// Something in place of every `{{…}}` that may stand in a path.
fn without_placeholders(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{{") {
        plain.push_str(before);
        plain.push('x');
        rest = after.split_once("}}").map_or("", |(_, rest)| rest);
    }
    plain + rest
}

/// Whether a route of that path takes `path`: `*` is one segment, at the end everything below.
fn path_fits(route: &str, path: &str) -> bool {
    let (route, below) = match route.strip_suffix("/*") {
        Some(above) => (above, true),
        None => (route, false),
    };
    let mut wanted = route.split('/').skip(1).filter(|segment| !segment.is_empty());
    let mut present = path.split('/').skip(1);
    let mut next = present.next();
    for segment in wanted.by_ref() {
        match next {
            Some(there) if (segment == "*" && !there.is_empty()) || segment == there => next = present.next(),
            _ => return false,
        }
    }
    if route.trim_matches('/').is_empty() { below || path == "/" } else { next.is_some() == below }
}

/// Whether a request with the flow's own headers is one for the route's host and headers.
fn conditions_fit(route: &Route, way: &FlowRequest) -> bool {
    let header = |name: &str| {
        way.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    };
    let host_fits = route.host.as_ref().is_none_or(|wanted| {
        header("host").is_some_and(|host| match wanted.strip_prefix('*') {
            Some(suffix) => host.ends_with(suffix),
            None => host.eq_ignore_ascii_case(wanted),
        })
    });
    host_fits && route.headers.iter().all(|(name, value)| header(name).is_some_and(|own| value == "*" || own == value))
}

fn body_means_something(context: &mut Context<'_, '_>, flow: &Flow, body: &Value, at: At<'_>) {
    match body {
        Value::String(text) => placeholders_mean_something(context, flow, text, at),
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(index, item)| body_means_something(context, flow, item, at.nth(index)));
        }
        Value::Object(fields) => {
            fields.iter().for_each(|(name, value)| body_means_something(context, flow, value, at.get(name)));
        }
        _ => {}
    }
}

fn placeholders_mean_something(context: &mut Context<'_, '_>, flow: &Flow, text: &str, at: At<'_>) {
    const KNOWN: &str = "write `{{n}}`, `{{uuid}}`, `{{now}}`, `{{random 1 100}}` or `{{random NAME}}`";
    for (_, inside) in placeholders(text) {
        let (fault, help) = match inside.map_err(str::to_owned).and_then(Placeholder::parse) {
            Ok(Placeholder::OneOf(name)) if flow.values.get(name).is_none_or(Vec::is_empty) => {
                let help = match nearest(name, flow.values.keys().map(String::as_str)) {
                    Some(near) => format!("did you mean `{{{{random {near}}}}}`?"),
                    None => format!("add `values: {{ {name}: [one, another] }}` to the flow"),
                };
                (format!("the flow has no values called `{name}`"), help)
            }
            Ok(_) => continue,
            Err(fault) => (fault, KNOWN.to_owned()),
        };
        placeholder(context, fault, &help, at);
    }
}

fn placeholder(context: &mut Context<'_, '_>, fault: String, help: &str, at: At<'_>) {
    context.add(BAD_PLACEHOLDER, at.place(), || (format!("a `{{{{…}}}}` cannot be filled in: {fault}"), help));
}

fn objectives(context: &mut Context<'_, '_>, slo: &Slo, at: At<'_>) {
    let topology = context.topology;
    let Some(flow) = topology.flows.get(&slo.flow) else {
        if !context.root.get("flows").incomplete() && !context.root.incomplete() {
            let shown = context.quoted(&slo.flow);
            context.add(UNKNOWN_FLOW, at.get("flow").place(), || {
                let names = || topology.flows.keys().map(String::as_str);
                let help = match nearest(&slo.flow, names()) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None if topology.flows.is_empty() => "describe it under `flows:`".to_owned(),
                    None => format!("describe it under `flows:`, or name one of {}", one_of(names())),
                };
                (format!("something is expected of {shown}, and there is no such flow"), help)
            });
        }
        return;
    };
    let mode = slo.mode.unwrap_or(flow.usual_mode());
    let part = if mode == FlowMode::Synchronous { "synchronous" } else { "asynchronous" };
    if flow.request(mode).is_none() && !context.root.get("flows").get(&slo.flow).incomplete() {
        context.add(BAD_OBJECTIVE, at.get("mode").place(), || {
            (format!("the flow has no `{part}:`"), "name the mode that it has, or describe the other one")
        });
    }
    let expect = at.get("expect").place();
    match slo::parse(&slo.expect) {
        Err(fault) => {
            let shown = context.quoted(&slo.expect);
            context.add(BAD_OBJECTIVE, expect, || {
                let said = if shown.contains(slo.expect.as_str()) { fault.message } else { "it cannot be read".into() };
                (format!("{shown} is not an objective: {said}"), fault.help)
            });
        }
        Ok(objectives) if mode == FlowMode::Synchronous => {
            if let Some(wrong) = objectives.iter().find(|one| one.measure.is_asynchronous()) {
                let wrong = wrong.text.clone();
                context.add(BAD_OBJECTIVE, expect, || {
                    (
                        format!("`{wrong}` is about an effect that shows later, and this is of the synchronous flow"),
                        "add `mode: asynchronous`, or leave it out",
                    )
                });
            }
        }
        Ok(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_fit_routes_as_the_gateway_fits_them() {
        for (route, path) in [
            ("/orders", "/orders"),
            ("/orders/*", "/orders/x"),
            ("/orders/*", "/orders/x/y"),
            ("/", "/"),
            ("/*", "/a/b"),
            ("/users/*/cart", "/users/x/cart"),
            ("/*", "/"),
        ] {
            assert!(path_fits(route, path), "{route} {path}");
        }
        for (route, path) in [
            ("/orders", "/orders/x"),
            ("/orders/*", "/orders"),
            ("/orders", "/order"),
            ("/", "/a"),
            ("/users/*/cart", "/users/x"),
        ] {
            assert!(!path_fits(route, path), "{route} {path}");
        }
    }
}
