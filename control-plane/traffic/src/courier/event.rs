//! What a publisher sends, in any of the forms that CloudEvents 1.0 has for HTTP, and what is kept of it.
//!
//! Kept are the payload as it is, CloudEvents attributes (`ce-…`), what describes the content, and the trace. Whatever else
//! stands in a request (credentials, cookies, forwarding) concerns that request and nobody who receives the message.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue};
use jiff::Timestamp;
use meshctl_drivers::broker::Publish;
use meshctl_model::delivery::Channel;
use meshctl_model::message::{Message, header};
use serde_json::value::RawValue;

use super::key;
use super::subscriber::IDEMPOTENCY_KEY;
use crate::forwarded::CALLER;
use crate::trace::{TRACESTATE, Trace};

/// The key of a message, where its payload does not hold it.
const KEY: HeaderName = HeaderName::from_static("meshctl-key");
/// CloudEvents' extension for distributed tracing, as a header.
const CE_TRACEPARENT: &str = "ce-traceparent";
pub(crate) const BAGGAGE: HeaderName = HeaderName::from_static("baggage");
/// Of one message: attributes and what else becomes a header, and their bytes. Whoever has more puts it into the payload; a
/// subscriber's server would not take it as headers.
const HEADERS: usize = 64;
const HEADER_BYTES: usize = 32 << 10;
/// Of one batch.
const MESSAGES: usize = 10_000;
/// The largest body of a batch, in times the largest message, and in bytes unless one message may be larger.
const BATCH: u64 = 16;
const BATCH_BYTES: u64 = 32 << 20;
/// What the messages of one batch may have together, with the attributes and keys that each of them gets from the request:
/// less than brokers take in one piece.
const TOGETHER: u64 = 48 << 20;

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    Bad(String),
    TooLarge(String),
}

/// What is to be published, and whether it was sent as a batch.
#[derive(Debug)]
pub(crate) struct Events {
    pub(crate) messages: Vec<Publish>,
    /// The span that publishes it, for each message.
    pub(crate) traces: Vec<Trace>,
    pub(crate) batch: bool,
    /// All of them, with their headers and keys.
    pub(crate) bytes: usize,
}

/// How a request holds its messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Binary,
    Structured,
    Batch,
    Lines,
}

/// What is common to the messages of one request.
struct Reader<'a> {
    name: &'a str,
    channel: &'a Channel,
    head: &'a HeaderMap,
    trace: &'a Trace,
    now: Timestamp,
    /// Who publishes, as the gateway says.
    caller: Option<&'a str>,
    idempotency_key: Option<&'a str>,
    key: Option<&'a str>,
    /// Bytes of messages so far.
    together: Cell<u64>,
    /// The span of each message so far.
    traces: RefCell<Vec<Trace>>,
}

/// The largest body that such a request may have.
pub(crate) fn body_limit(channel: &Channel, head: &HeaderMap) -> u64 {
    limit(channel, form(head))
}

/// The most bytes that one request to the channel can become.
pub(crate) fn largest_body(channel: &Channel) -> u64 {
    limit(channel, Form::Structured).max(limit(channel, Form::Batch)).max(TOGETHER).saturating_add(HEADER_BYTES as u64)
}

fn limit(channel: &Channel, form: Form) -> u64 {
    match form {
        Form::Binary => channel.max_message.0,
        // Attributes and the encoding of bytes add to the payload.
        Form::Structured => channel.max_message.0.saturating_mul(2).saturating_add(65_536),
        Form::Batch | Form::Lines => {
            let one = channel.max_message.0;
            one.saturating_mul(BATCH).min(BATCH_BYTES).max(one)
        }
    }
}

/// Reads the messages that a request holds; `new_id` makes unique ids.
///
/// # Errors
/// Nothing of a request with an error in it is published.
pub(crate) fn read(
    name: &str,
    channel: &Channel,
    head: &HeaderMap,
    body: &Bytes,
    trace: &Trace,
    now: Timestamp,
    mut new_id: impl FnMut() -> String,
) -> Result<Events, Refusal> {
    let caller = text(head, &CALLER)?;
    let (idempotency_key, key) = (text(head, &IDEMPOTENCY_KEY)?, text(head, &KEY)?);
    let reader = Reader {
        name,
        channel,
        head,
        trace,
        now,
        caller,
        idempotency_key,
        key,
        together: Cell::new(0),
        traces: RefCell::default(),
    };
    let form = form(head);
    let messages = match form {
        Form::Binary => vec![reader.binary(body.clone(), None, new_id())?],
        Form::Structured => {
            let event =
                serde_json::from_slice(body).map_err(|why| bad(format!("the event is no JSON object: {why}")))?;
            vec![reader.structured(&event, None, new_id())?]
        }
        Form::Batch => {
            let events: Vec<BTreeMap<String, &RawValue>> = serde_json::from_slice(body)
                .map_err(|why| bad(format!("the batch is no JSON array of objects: {why}")))?;
            few(events.len())?;
            let each = events.iter().enumerate();
            each.map(|(at, event)| reader.structured(event, Some(at), new_id())).collect::<Result<_, _>>()?
        }
        Form::Lines => {
            let lines = body.split(|byte| *byte == b'\n').enumerate();
            let lines: Vec<_> = lines.filter(|(_, line)| !line.trim_ascii().is_empty()).collect();
            few(lines.len())?;
            let each = lines.into_iter().enumerate();
            each.map(|(at, (number, line))| {
                let line = line.trim_ascii();
                serde_json::from_slice::<serde::de::IgnoredAny>(line)
                    .map_err(|why| bad(format!("line {} is no JSON: {why}", number + 1)))?;
                reader.binary(body.slice_ref(line), Some(at), new_id())
            })
            .collect::<Result<_, _>>()?
        }
    };
    // What the channel could never keep, it refuses for good: here that can still be told from a broker in trouble.
    let kept = messages
        .iter()
        .map(|Publish { message, .. }| message.payload.len() + message.key.iter().map(String::len).sum::<usize>());
    let (kept, most) = (kept.sum::<usize>() as u64, channel.max_size.0);
    if kept > most {
        return Err(Refusal::TooLarge(format!("{kept} bytes at once are more than {name} may keep ({most})")));
    }
    let bytes = usize::try_from(reader.together.get()).unwrap_or(usize::MAX);
    let traces = reader.traces.into_inner();
    Ok(Events { messages, traces, batch: matches!(form, Form::Batch | Form::Lines), bytes })
}

fn form(head: &HeaderMap) -> Form {
    let kind = head.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    match () {
        () if kind.eq_ignore_ascii_case("application/cloudevents+json") => Form::Structured,
        () if kind.eq_ignore_ascii_case("application/cloudevents-batch+json") => Form::Batch,
        () if kind.eq_ignore_ascii_case("application/x-ndjson") => Form::Lines,
        () => Form::Binary,
    }
}

impl Reader<'_> {
    /// A payload whose attributes stand in the request's head; `at`: its place in a batch.
    fn binary(&self, payload: Bytes, at: Option<usize>, id: String) -> Result<Publish, Refusal> {
        let mut headers = Vec::with_capacity(10);
        for (name, value) in self.head {
            let content = [CONTENT_TYPE, CONTENT_ENCODING, CONTENT_LANGUAGE].contains(name) && at.is_none();
            if content || name.as_str().starts_with("ce-") {
                if headers.iter().any(|(known, _)| known == name.as_str()) {
                    return Err(bad(format!("`{name}` is given twice")));
                }
                headers.push((name.as_str().to_owned(), readable(name, value)?.to_owned()));
            }
        }
        if at.is_some() {
            headers.push((header::CONTENT_TYPE.to_owned(), "application/json".to_owned()));
        }
        self.publish(headers, payload, at, id)
    }

    /// An event as one JSON object.
    fn structured(
        &self,
        event: &BTreeMap<String, &RawValue>,
        at: Option<usize>,
        id: String,
    ) -> Result<Publish, Refusal> {
        let which = at.map_or(String::new(), |at| format!("event {at}: "));
        let bad = |why: String| bad(format!("{which}{why}"));
        let mut headers = Vec::with_capacity(10);
        let (mut data, mut base64, mut kind) = (None, None, None);
        for (name, value) in event {
            let value = value.get();
            match name.as_str() {
                _ if value == "null" => {}
                "data" => data = Some(value),
                "data_base64" => base64 = Some(value),
                "datacontenttype" => kind = Some(attribute(name, value).map_err(&bad)?),
                name if !name.is_empty() && name.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit()) => {
                    let text = attribute(name, value).map_err(&bad)?;
                    headers.push((format!("ce-{name}"), encode(&text)));
                }
                name => return Err(bad(format!("`{name}` is no attribute's name: lower-case letters and digits"))),
            }
        }
        for required in [header::CE_ID, header::CE_SOURCE, header::CE_SPECVERSION, header::CE_TYPE] {
            if !headers.iter().any(|(name, _)| name == required) {
                return Err(bad(format!("it has no `{}`", required.trim_start_matches("ce-"))));
            }
        }
        let json = kind.as_deref().is_none_or(is_json);
        let payload = match (data, base64) {
            (Some(_), Some(_)) => return Err(bad("it has both `data` and `data_base64`".to_owned())),
            (Some(data), None) if !json && data.starts_with('"') => Bytes::from(attribute("data", data).map_err(&bad)?),
            (Some(data), None) => Bytes::copy_from_slice(data.as_bytes()),
            (None, Some(text)) => {
                let text = attribute("data_base64", text).map_err(&bad)?;
                let engine = base64::engine::general_purpose::STANDARD;
                let bytes = base64::Engine::decode(&engine, text);
                Bytes::from(bytes.map_err(|why| bad(format!("`data_base64` is no base64: {why}")))?)
            }
            (None, None) => Bytes::new(),
        };
        let kind = kind.or_else(|| data.map(|_| "application/json".to_owned()));
        if let Some(kind) = kind {
            HeaderValue::from_str(&kind).map_err(|_| bad(format!("`datacontenttype` is no media type: {kind:?}")))?;
            headers.push((header::CONTENT_TYPE.to_owned(), kind));
        }
        self.publish(headers, payload, at, id)
    }

    fn publish(
        &self,
        headers: Vec<(String, String)>,
        payload: Bytes,
        at: Option<usize>,
        id: String,
    ) -> Result<Publish, Refusal> {
        let limit = self.channel.max_message.0;
        if payload.len() as u64 > limit {
            let which = at.map_or("the message".to_owned(), |at| format!("message {at} of the batch"));
            let why = format!("{which} has {} bytes; {} takes messages of up to {limit}", payload.len(), self.name);
            return Err(Refusal::TooLarge(why));
        }
        let from_payload = || self.channel.key.as_deref().and_then(|field| key::find(&payload, field));
        let key = self.key.map(str::to_owned).or_else(from_payload);
        let mut message = Message { id, key, headers, payload };
        if message.header(header::CE_SPECVERSION).is_some_and(|version| version != "1.0") {
            return Err(bad("only `specversion` 1.0 of CloudEvents is understood"));
        }
        if message.header(header::CE_TIME).is_some_and(|time| time.parse::<Timestamp>().is_err()) {
            return Err(bad("`ce-time` is no time as RFC 3339 writes it"));
        }
        for name in [header::CE_ID, header::CE_SOURCE, header::CE_TYPE] {
            if message.header(name).is_some_and(str::is_empty) {
                return Err(bad(format!("`{name}` is empty")));
            }
        }
        let idempotency_key = self.idempotency_key(&message, at);
        let or_else = |message: &mut Message, name: &str, value: &dyn Fn() -> String| {
            if message.header(name).is_none() {
                message.headers.push((name.to_owned(), value()));
            }
        };
        let event_id = message.id.clone();
        or_else(&mut message, header::CE_ID, &|| event_id.clone());
        match self.caller {
            Some(caller) => message.set_header(header::PUBLISHER, caller),
            None => message.remove_header(header::PUBLISHER),
        }
        // A source and an id name an event: what the publisher says of it is kept as it is.
        or_else(&mut message, header::CE_SOURCE, &|| self.caller.unwrap_or("unknown").to_owned());
        or_else(&mut message, header::CE_TYPE, &|| self.name.to_owned());
        or_else(&mut message, header::CE_TIME, &|| self.now.to_string());
        message.remove_header(header::CE_SPECVERSION);
        self.carry_trace(&mut message, at)?;
        self.measure(&message, idempotency_key.as_deref(), at)?;
        Ok(Publish { message, idempotency_key })
    }

    /// Whether it can be delivered as an HTTP request, and published with those before it.
    fn measure(&self, message: &Message, idempotency_key: Option<&str>, at: Option<usize>) -> Result<(), Refusal> {
        let (count, bytes) =
            (message.headers.len(), message.headers.iter().map(|(name, text)| name.len() + text.len()));
        let bytes = bytes.sum::<usize>();
        if count > HEADERS || bytes > HEADER_BYTES {
            let which = at.map_or("the message".to_owned(), |at| format!("message {at} of the batch"));
            return Err(bad(format!(
                "{which} has {count} attributes of {bytes} bytes together; up to {HEADERS} of {HEADER_BYTES} \
                 bytes are taken: put what is long into the payload"
            )));
        }
        let keys = message.key.as_deref().into_iter().chain(idempotency_key).map(str::len).sum::<usize>();
        let together = self.together.get() + (bytes + keys + message.payload.len()) as u64;
        self.together.set(together);
        match at {
            Some(at) if at > 0 && together > TOGETHER => Err(Refusal::TooLarge(format!(
                "with message {at} the batch has more than {TOGETHER} bytes: publish fewer at once"
            ))),
            _ => Ok(()),
        }
    }

    /// A key means what its publisher means by it: two publishers that number their messages alike do not collide. Its parts
    /// are separated by what none of them can hold.
    fn idempotency_key(&self, message: &Message, at: Option<usize>) -> Option<String> {
        let caller = self.caller.unwrap_or_default();
        let place = at.map_or(String::new(), |at| at.to_string());
        if let Some(given) = self.idempotency_key {
            return Some(["key", caller, given, &place].join("\0"));
        }
        let (source, id) = (message.header(header::CE_SOURCE)?, message.header(header::CE_ID)?);
        // In a batch of lines all have the attributes of the request.
        let place = if form(self.head) == Form::Lines { place } else { String::new() };
        Some(["event", caller, source, id, &place].join("\0"))
    }

    /// Every message is published by a span of its own, which its deliveries follow.
    fn carry_trace(&self, message: &mut Message, at: Option<usize>) -> Result<(), Refusal> {
        // An event of a batch may have come about elsewhere than the request that brings it.
        let own = message.header(CE_TRACEPARENT).filter(|_| at.is_some());
        let own = own.map(|own| Trace::after(Some(own.as_bytes()), rand::random, |said| said == Some(true)));
        let own = own.filter(Trace::continued);
        let trace = match (own, at) {
            (Some(own), _) => own,
            (None, Some(_)) => self.trace.beside(rand::random),
            (None, None) => *self.trace,
        };
        self.traces.borrow_mut().push(trace);
        message.headers.push((header::TRACEPARENT.to_owned(), trace.traceparent()));
        let goes_on = self.trace.continued() && own.is_none();
        let names = if goes_on { &[TRACESTATE, BAGGAGE][..] } else { &[BAGGAGE] };
        for name in names {
            // Lists, which may come in several lines.
            let lines = self.head.get_all(name).iter().map(|value| readable(name, value));
            let lines: Vec<&str> = lines.collect::<Result<_, _>>()?;
            if !lines.is_empty() {
                message.headers.push((name.as_str().to_owned(), lines.join(",")));
            }
        }
        Ok(())
    }
}

fn bad(why: impl Into<String>) -> Refusal {
    Refusal::Bad(why.into())
}

fn few(count: usize) -> Result<(), Refusal> {
    match count {
        ..=MESSAGES => Ok(()),
        _ => Err(Refusal::TooLarge(format!("a batch of {count} messages; no more than {MESSAGES} are taken at once"))),
    }
}

fn readable<'a>(name: &HeaderName, value: &'a HeaderValue) -> Result<&'a str, Refusal> {
    value.to_str().map_err(|_| bad(format!("`{name}` holds characters other than visible ASCII: percent-encode them")))
}

fn text<'a>(head: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, Refusal> {
    match head.get(name).map(|value| readable(name, value)).transpose()? {
        Some("") => Err(bad(format!("`{name}` is empty"))),
        other => Ok(other),
    }
}

fn is_json(kind: &str) -> bool {
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    kind == "application/json" || kind == "text/json" || kind.ends_with("+json")
}

/// The text of an attribute: strings, numbers and booleans are allowed.
fn attribute(name: &str, value: &str) -> Result<String, String> {
    match value.as_bytes().first() {
        Some(b'"') => serde_json::from_str(value).map_err(|why| format!("`{name}` cannot be read: {why}")),
        Some(b'{' | b'[') | None => Err(format!("`{name}` is no text, number or boolean")),
        Some(_) => Ok(value.to_owned()),
    }
}

/// As an HTTP header holds an attribute (CloudEvents' HTTP binding, 3.1.3.2).
fn encode(text: &str) -> String {
    let plain = |c: char| c.is_ascii_graphic() && c != '"' && c != '%';
    if text.chars().all(plain) {
        return text.to_owned();
    }
    let mut encoded = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if plain(c) {
            encoded.push(c);
        } else {
            let mut bytes = [0; 4];
            c.encode_utf8(&mut bytes).bytes().for_each(|byte| encoded.push_str(&format!("%{byte:02X}")));
        }
    }
    encoded
}

#[cfg(test)]
#[path = "event_tests.rs"]
mod tests;
