//! Flows with nothing left to choose: the requests as they are sent, but for their `{{placeholders}}`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::topology::{self, Done, DoneWhen, FlowMode, FlowRequest, Topology};
use crate::units::Span;

/// Between two looks at whether an effect shows.
pub const EVERY: Span = Span::from_millis(100);
/// After which an effect that does not show counts as lost.
pub const WITHIN: Span = Span::from_secs(30);

/// One flow.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Flow {
    /// How often it happens, beside the other flows.
    pub weight: f64,
    /// For `{{random NAME}}`.
    pub values: BTreeMap<String, Vec<String>>,
    pub synchronous: Option<Request>,
    pub asynchronous: Option<Request>,
    pub slo: Vec<Expected>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Request {
    pub method: String,
    /// With its query.
    pub path: String,
    pub headers: BTreeMap<String, String>,
    pub body: String,
    /// The status that means success; any from 200 to 399 where `None`.
    pub status: Option<u16>,
    /// Where the effect shows; always there in an asynchronous flow.
    pub visible: Option<Visible>,
}

/// Asked by `GET` again until it answers 200.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Visible {
    pub path: String,
    pub every: Span,
    pub within: Span,
}

/// A service level objective.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Expected {
    pub mode: FlowMode,
    /// In the language of [`crate::slo`].
    pub expect: String,
}

/// The flows of a topology that has no findings, by name.
pub fn flows(topology: &Topology) -> BTreeMap<String, Flow> {
    let flow = |(name, flow): (&String, &topology::Flow)| {
        let slo = topology.slo.iter().filter(|slo| slo.flow == *name);
        let slo = slo.map(|slo| Expected { mode: slo.mode.unwrap_or(flow.usual_mode()), expect: slo.expect.clone() });
        let request = |mode| flow.request(mode).and_then(|request| resolved(request, flow));
        let resolved = Flow {
            weight: flow.weight.unwrap_or(1.0),
            values: flow.values.clone(),
            synchronous: request(FlowMode::Synchronous),
            asynchronous: request(FlowMode::Asynchronous),
            slo: slo.collect(),
        };
        (name.clone(), resolved)
    };
    topology.flows.iter().map(flow).collect()
}

fn resolved(request: &FlowRequest, flow: &topology::Flow) -> Option<Request> {
    let (method, path) = request_line(&request.request)?;
    let other = flow.synchronous.as_ref();
    let body = request.body.as_ref().or(other.and_then(|other| other.body.as_ref()));
    let mut headers = other.map(|other| other.headers.clone()).unwrap_or_default();
    headers.extend(request.headers.clone());
    let body = body.map(body_text).unwrap_or_default();
    if let Some(kind) = content_type(&body, headers.keys().map(String::as_str)) {
        headers.insert("content-type".into(), kind.into());
    }
    let when = match request.done.clone() {
        Some(Done::Status(status)) => DoneWhen { status: Some(status), ..DoneWhen::default() },
        Some(Done::When(when)) => when,
        None => DoneWhen::default(),
    };
    let visible = when.visible.as_deref().and_then(request_line).map(|(_, path)| Visible {
        path: path.to_owned(),
        every: when.every.unwrap_or(EVERY),
        within: when.within.unwrap_or(WITHIN),
    });
    Some(Request { method: method.into(), path: path.into(), headers, body, status: when.status, visible })
}

/// Method and path of `POST /orders`; `None` where it is not of that form.
pub fn request_line(text: &str) -> Option<(&str, &str)> {
    let (method, path) = text.trim().split_once(' ')?;
    let path = path.trim_start();
    let named = !method.is_empty() && method.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'-');
    (named && path.starts_with('/')).then_some((method, path))
}

/// What `body` is sent as: text as it is, anything else as JSON.
pub fn body_text(body: &Value) -> String {
    match body {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// The content type of a body that nobody names one for: JSON where it looks like it.
pub fn content_type<'h>(body: &str, mut headers: impl Iterator<Item = &'h str>) -> Option<&'static str> {
    if body.is_empty() || headers.any(|name| name.eq_ignore_ascii_case("content-type")) {
        return None;
    }
    Some(if body.trim_start().starts_with(['{', '[']) { "application/json" } else { "text/plain" })
}

/// What is filled in for each request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Placeholder<'t> {
    /// `{{n}}`
    Number,
    /// `{{uuid}}`
    Uuid,
    /// `{{now}}`
    Now,
    /// `{{random 1 100}}`, both ends included.
    Between(i64, i64),
    /// `{{random skus}}`
    OneOf(&'t str),
}

/// The insides of every `{{…}}` of `text`, trimmed, each with the byte at which it begins. One that is not closed is the rest of
/// the text and an error.
pub fn placeholders(text: &str) -> impl Iterator<Item = (usize, Result<&str, &'static str>)> {
    let mut from = 0;
    std::iter::from_fn(move || {
        let at = from + text.get(from..)?.find("{{")?;
        match text[at + 2..].find("}}") {
            Some(length) => {
                from = at + 2 + length + 2;
                Some((at, Ok(text[at + 2..at + 2 + length].trim())))
            }
            None => {
                from = text.len() + 1;
                Some((at, Err("it is not closed by `}}`")))
            }
        }
    })
}

impl<'t> Placeholder<'t> {
    /// # Errors
    /// Why `inside` is none.
    pub fn parse(inside: &'t str) -> Result<Self, String> {
        let words: Vec<&str> = inside.split_whitespace().collect();
        match *words.as_slice() {
            ["n"] => Ok(Self::Number),
            ["uuid"] => Ok(Self::Uuid),
            ["now"] => Ok(Self::Now),
            ["random", name] => Ok(Self::OneOf(name)),
            ["random", low, high] => match (low.parse(), high.parse()) {
                (Ok(low), Ok(high)) if low <= high => Ok(Self::Between(low, high)),
                (Ok(_), Ok(_)) => Err(format!("{low} is more than {high}")),
                _ => Err("`random` takes two whole numbers, or the name of a list of values".into()),
            },
            _ => Err("there is no such placeholder".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_found_where_they_stand() {
        let found: Vec<_> = placeholders("/a/{{ n }}?b={{random 1 9}}&c={d}{{x").collect();
        assert_eq!(found, [(3, Ok("n")), (13, Ok("random 1 9")), (33, Err("it is not closed by `}}`"))]);
        assert_eq!(placeholders("{\"a\":{\"b\":{}}}").count(), 0, "JSON is not a template");
    }

    #[test]
    fn placeholders_read() {
        assert_eq!(Placeholder::parse("n"), Ok(Placeholder::Number));
        assert_eq!(Placeholder::parse("random -1 9"), Ok(Placeholder::Between(-1, 9)));
        assert_eq!(Placeholder::parse("random skus"), Ok(Placeholder::OneOf("skus")));
        for wrong in ["", "N", "random", "random 9 1", "random a b", "orderId"] {
            assert!(Placeholder::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn request_lines_read() {
        assert_eq!(request_line("POST /orders"), Some(("POST", "/orders")));
        assert_eq!(request_line(" GET  /a?b={{n}} "), Some(("GET", "/a?b={{n}}")));
        for wrong in ["", "/orders", "post /orders", "GET orders", "GET", "GET http://a/b"] {
            assert_eq!(request_line(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_asynchronous_way_takes_what_it_leaves_out_from_the_other() {
        let text = "
            flows:
              f:
                weight: 2
                synchronous: { request: POST /a, headers: { X: y }, body: { k: '{{n}}' }, done: 201 }
                asynchronous: { request: POST /a, done: { visible: 'GET /b/{{id}}', within: 5s } }
            slo: [{ flow: f, expect: p99 < 1s }, { flow: f, mode: asynchronous, expect: lost = 0 }]";
        let topology: Topology = serde_yaml::from_str(text).expect("a topology");
        let flows = flows(&topology);
        let Flow { weight, synchronous: Some(sync), asynchronous: Some(way), slo, .. } = &flows["f"] else {
            panic!("{flows:?}")
        };
        assert_eq!((*weight, sync.status, way.status), (2.0, Some(201), None));
        assert_eq!((way.body.as_str(), way.headers["X"].as_str()), ("{\"k\":\"{{n}}\"}", "y"));
        assert_eq!(way.headers["content-type"], "application/json");
        let visible = way.visible.as_ref().expect("where it shows");
        assert_eq!((visible.path.as_str(), visible.every, visible.within), ("/b/{{id}}", EVERY, Span::from_secs(5)));
        assert_eq!([slo[0].mode, slo[1].mode], [FlowMode::Synchronous, FlowMode::Asynchronous]);
    }
}
