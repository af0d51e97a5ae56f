//! Requests, compiled before the run: what never changes is copied, what changes is filled in. A mistake in a template is found
//! here, with its place, before anything is sent.

use std::io::Write;

use http::{HeaderName, HeaderValue, Method, header};
use rand::RngExt;
use rand::rngs::Xoshiro256PlusPlus;

use crate::LoadError;
use crate::plan::{self, Plan};
use crate::schedule;

/// A piece of a path, a header or a body.
#[derive(Clone, Debug, PartialEq)]
enum Part {
    Text(Vec<u8>),
    N,
    Uuid,
    Now,
    Number(i64, i64),
    OneOf(Vec<String>),
    /// Of the first answer's JSON, by its path of names; only in a completion's path.
    Field(Vec<String>),
}

/// One kind of request, ready to be sent.
#[derive(Clone, Debug)]
pub(crate) struct Compiled {
    pub to_head: bool,
    pub completion: Option<Completion>,
    expect: Vec<u16>,
    /// Up to and without the headers that are added for each request.
    head: Vec<Part>,
    /// Our own `traceparent` is sent, as the plan has none.
    traced: bool,
    body: Option<Vec<Part>>,
    seed: u64,
}

/// Where the effect shows.
#[derive(Clone, Debug)]
pub(crate) struct Completion {
    pub every: u64,
    pub within: u64,
    path: Vec<Part>,
    host: String,
}

/// All of a plan's requests.
pub(crate) fn compile(plan: &Plan) -> Result<Vec<Compiled>, LoadError> {
    plan.requests.iter().map(|template| Compiled::new(plan, template)).collect()
}

impl Compiled {
    fn new(plan: &Plan, template: &plan::Template) -> Result<Self, LoadError> {
        let scanner = Scanner { template, fields: false };
        let method = Method::from_bytes(template.method.as_bytes())
            .map_err(|_| scanner.error("method", 1, format!("`{}` is no method", template.method)))?;
        let mut head = vec![Part::Text(format!("{method} ").into_bytes())];
        head.extend(path(&scanner, "path", &template.path)?);
        text(&mut head, b" HTTP/1.1\r\n");
        let mut names = Vec::new();
        for (name, value) in &template.headers {
            let part = format!("header {name}");
            let name = HeaderName::from_bytes(name.as_bytes())
                .map_err(|_| scanner.error(&part, 1, format!("`{name}` is no header name")))?;
            if name == header::CONTENT_LENGTH || name == header::TRANSFER_ENCODING || name == header::EXPECT {
                return Err(scanner.error(&part, 1, "the engine frames bodies itself: leave it out".into()));
            }
            let value = scanner.scan(&part, value)?;
            check(&scanner, &part, &value, "a header", |text| HeaderValue::from_bytes(text).is_ok())?;
            text(&mut head, format!("{name}: ").as_bytes());
            head.extend(value);
            text(&mut head, b"\r\n");
            names.push(name);
        }
        if !names.contains(&header::HOST) {
            HeaderValue::from_str(&plan.host).map_err(|_| LoadError::Plan(format!("`{}` is no host", plan.host)))?;
            text(&mut head, format!("host: {}\r\n", plan.host).as_bytes());
        }
        let has_body = !template.body.is_empty() || [Method::POST, Method::PUT, Method::PATCH].contains(&method);
        Ok(Self {
            to_head: method == Method::HEAD,
            completion: template.completion.as_ref().map(|it| Completion::new(plan, template, it)).transpose()?,
            expect: template.expect.clone(),
            head: joined(head),
            traced: !names.contains(&HeaderName::from_static("traceparent")),
            body: has_body.then(|| scanner.scan("body", &template.body)).transpose()?.map(joined),
            seed: plan.seed,
        })
    }

    /// Whether our own trace context is sent along.
    pub fn traced(&self) -> bool {
        self.traced
    }

    pub fn expects(&self, status: u16) -> bool {
        if self.expect.is_empty() { (200..400).contains(&status) } else { self.expect.contains(&status) }
    }

    /// Appends request number `n`; `traceparent` is left out where the template brings its own.
    pub fn write(&self, n: u64, traceparent: &[u8], to: &mut Vec<u8>) {
        // Each request draws from a stream of its own: the same number is the same request, whatever became of those before.
        let mut random = LazyRandom { seed: self.seed, n, stream: None };
        fill(&self.head, n, &mut random, to);
        if self.traced {
            to.extend_from_slice(b"traceparent: ");
            to.extend_from_slice(traceparent);
            to.extend_from_slice(b"\r\n");
        }
        match self.body.as_deref() {
            None => to.extend_from_slice(b"\r\n"),
            Some(parts) => {
                to.extend_from_slice(b"content-length: ");
                let length_at = to.len();
                to.extend_from_slice(b"\r\n\r\n");
                let begin = to.len();
                fill(parts, n, &mut random, to);
                // The length stands before the body and is known after it.
                let length = (to.len() - begin).to_string();
                to.splice(length_at..length_at, length.into_bytes());
            }
        }
    }
}

impl Completion {
    fn new(plan: &Plan, template: &plan::Template, completion: &plan::Completion) -> Result<Self, LoadError> {
        let scanner = Scanner { template, fields: true };
        if completion.every.is_zero() || completion.within.is_zero() {
            let problem =
                format!("request `{}`: a completion needs a time to ask again and one to give up", template.name);
            return Err(LoadError::Plan(problem));
        }
        Ok(Self {
            every: schedule::nanos(completion.every),
            within: schedule::nanos(completion.within),
            path: joined(path(&scanner, "completion path", &completion.path)?),
            host: plan.host.clone(),
        })
    }

    /// The question for what was answered with `body`, up to the `traceparent` that each asking adds; or the name of the field
    /// that the answer lacks.
    pub fn question(&self, n: u64, body: &[u8]) -> Result<Vec<u8>, String> {
        let answer: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
        let mut request = b"GET ".to_vec();
        for part in &self.path {
            match part {
                Part::Text(text) => request.extend_from_slice(text),
                Part::N => number(&mut request, n),
                Part::Field(names) => {
                    let value = names.iter().try_fold(&answer, |value, name| value.get(name));
                    let text = match value {
                        Some(serde_json::Value::String(text)) => text.clone(),
                        Some(value @ (serde_json::Value::Number(_) | serde_json::Value::Bool(_))) => value.to_string(),
                        _ => return Err(names.join(".")),
                    };
                    encode(&mut request, &text);
                }
                // The scanner lets nothing else through.
                Part::Uuid | Part::Now | Part::Number(..) | Part::OneOf(_) => {}
            }
        }
        request.extend_from_slice(format!(" HTTP/1.1\r\nhost: {}\r\ntraceparent: ", self.host).as_bytes());
        Ok(request)
    }
}

/// Seeding costs more than most requests need.
struct LazyRandom {
    seed: u64,
    n: u64,
    stream: Option<Xoshiro256PlusPlus>,
}

impl LazyRandom {
    fn get(&mut self) -> &mut Xoshiro256PlusPlus {
        let (seed, n) = (self.seed, self.n);
        // The upper half: the schedules' streams count threads.
        self.stream.get_or_insert_with(|| schedule::random(seed, n.wrapping_add(1 << 32)))
    }
}

fn fill(parts: &[Part], n: u64, random: &mut LazyRandom, to: &mut Vec<u8>) {
    for part in parts {
        match part {
            Part::Text(text) => to.extend_from_slice(text),
            Part::N => number(to, n),
            Part::Number(low, high) => number(to, random.get().random_range(*low..=*high)),
            Part::OneOf(values) => to.extend_from_slice(values[random.get().random_range(0..values.len())].as_bytes()),
            Part::Uuid => {
                let bits: u128 = random.get().random();
                // Version 4, variant 1.
                let bits = (bits & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
                let part = |shift: u32, digits: u32| (bits >> shift) & ((1 << (digits * 4)) - 1);
                let (a, b, c, d, e) = (part(96, 8), part(80, 4), part(64, 4), part(48, 4), part(0, 12));
                // Writing to memory does not fail.
                let _ = write!(to, "{a:08x}-{b:04x}-{c:04x}-{d:04x}-{e:012x}");
            }
            Part::Now => {
                let _ = write!(to, "{:.3}", jiff::Timestamp::now());
            }
            // Only in completions, which do not come here.
            Part::Field(_) => {}
        }
    }
}

fn number(to: &mut Vec<u8>, value: impl std::fmt::Display) {
    let _ = write!(to, "{value}");
}

fn text(parts: &mut Vec<Part>, more: &[u8]) {
    parts.push(Part::Text(more.to_vec()));
}

/// Neighbouring texts become one.
fn joined(parts: Vec<Part>) -> Vec<Part> {
    parts.into_iter().fold(Vec::new(), |mut joined, part| {
        match (joined.last_mut(), part) {
            (Some(Part::Text(text)), Part::Text(more)) => text.extend(more),
            (_, part) => joined.push(part),
        }
        joined
    })
}

/// Percent-encoded, so that an answer cannot write our request.
fn encode(to: &mut Vec<u8>, value: &str) {
    for byte in value.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => to.push(byte),
            _ => {
                let _ = write!(to, "%{byte:02X}");
            }
        }
    }
}

fn path(scanner: &Scanner, part: &str, path: &str) -> Result<Vec<Part>, LoadError> {
    if !path.starts_with('/') {
        return Err(scanner.error(part, 1, format!("`{path}` does not begin with /")));
    }
    let parts = scanner.scan(part, path)?;
    check(scanner, part, &parts, "a path (percent-encode it)", |text| text.iter().all(u8::is_ascii_graphic))?;
    Ok(parts)
}

/// That no text and no value has what cannot stand there.
fn check(
    scanner: &Scanner,
    part: &str,
    parts: &[Part],
    place: &str,
    fits: impl Fn(&[u8]) -> bool,
) -> Result<(), LoadError> {
    let texts = parts.iter().flat_map(|part| match part {
        Part::Text(text) => vec![text.as_slice()],
        Part::OneOf(values) => values.iter().map(String::as_bytes).collect(),
        _ => Vec::new(),
    });
    match texts.into_iter().find(|text| !fits(text)) {
        Some(text) => {
            let text = String::from_utf8_lossy(text);
            Err(scanner.error(part, 1, format!("`{}` cannot stand in {place}", text.escape_debug())))
        }
        None => Ok(()),
    }
}

/// Finds `{{…}}`.
struct Scanner<'a> {
    template: &'a plan::Template,
    /// Names are fields of an answer.
    fields: bool,
}

impl Scanner<'_> {
    fn error(&self, part: &str, at: usize, problem: String) -> LoadError {
        LoadError::Template { name: self.template.name.clone(), part: part.into(), at, problem }
    }

    fn scan(&self, part: &str, source: &str) -> Result<Vec<Part>, LoadError> {
        let mut parts = Vec::new();
        let mut rest = source;
        while let Some(begin) = rest.find("{{") {
            let at = source[..source.len() - rest.len() + begin].chars().count() + 1;
            text(&mut parts, &rest.as_bytes()[..begin]);
            let inner = &rest[begin + 2..];
            let end = inner.find("}}").ok_or_else(|| self.error(part, at, "`{{` without `}}`".into()))?;
            parts.push(self.placeholder(inner[..end].trim()).map_err(|problem| self.error(part, at, problem))?);
            rest = &inner[end + 2..];
        }
        text(&mut parts, rest.as_bytes());
        Ok(parts)
    }

    fn placeholder(&self, inner: &str) -> Result<Part, String> {
        let words: Vec<&str> = inner.split_whitespace().collect();
        match words[..] {
            ["n"] => Ok(Part::N),
            [name] if self.fields && !name.split('.').any(str::is_empty) => {
                Ok(Part::Field(name.split('.').map(String::from).collect()))
            }
            _ if self.fields => {
                Err(format!("`{inner}` is no field of an answer: {{{{orderId}}}}, {{{{order.id}}}}, {{{{n}}}}"))
            }
            ["uuid"] => Ok(Part::Uuid),
            ["now"] => Ok(Part::Now),
            ["random", low, high] => match (low.parse(), high.parse()) {
                (Ok(low), Ok(high)) if low <= high => Ok(Part::Number(low, high)),
                _ => Err(format!("`{inner}`: two whole numbers are expected, the smaller first")),
            },
            ["random", name] => match self.template.values.iter().find(|(known, _)| known == name) {
                Some((_, values)) if !values.is_empty() => Ok(Part::OneOf(values.clone())),
                Some(_) => Err(format!("`{name}` has no values")),
                None => Err(format!("no values are named `{name}`")),
            },
            _ => Err(format!(
                "unknown placeholder `{inner}`: there are {{{{n}}}}, {{{{uuid}}}}, {{{{now}}}}, {{{{random 1 100}}}} and \
                 {{{{random NAME}}}}"
            )),
        }
    }
}

#[cfg(test)]
#[path = "template_tests.rs"]
mod tests;
