//! Spans of one trace as they lie in the store: protobuf, each word written once. The trace's id is the row's, and not repeated.
//!
//! What goes in comes out, but for ids that are none and durations beyond whole nanoseconds.

use std::collections::{BTreeMap, HashMap};
use std::sync::LazyLock;

use jiff::Timestamp;
use meshctl_model::trace::{Span, SpanKind, SpanLink, SpanStatus};
use prost::Message;
use serde_json::Value;

use super::id::{self, SpanId, TraceId};

/// Words that most chunks would have, known by their place: at the end more may be added, and nothing may be moved.
const KNOWN: [&str; 30] = [
    "",
    "gateway",
    "courier",
    "daemon",
    "GET",
    "POST",
    "http.request.method",
    "url.path",
    "http.response.status_code",
    "error.type",
    "messaging.destination.name",
    "messaging.destination.subscription.name",
    "messaging.message.id",
    "meshctl.edge",
    "meshctl.route",
    "meshctl.instance",
    "meshctl.attempt",
    "meshctl.outcome",
    "meshctl.notBefore",
    "meshctl.replay.id",
    "meshctl.deadLetter.id",
    "meshctl.fallback",
    "processed",
    "retried",
    "dead",
    "http.route",
    "server.address",
    "server.port",
    "network.protocol.version",
    "url.scheme",
];

static PLACES: LazyLock<HashMap<&'static str, u32>> =
    LazyLock::new(|| KNOWN.iter().zip(0..).map(|(word, place)| (*word, place)).collect());

#[derive(Clone, PartialEq, Message)]
struct Chunk {
    /// Their places go on behind those of [`KNOWN`].
    #[prost(string, repeated, tag = "1")]
    words: Vec<String>,
    #[prost(message, repeated, tag = "2")]
    spans: Vec<Packed>,
}

#[derive(Clone, PartialEq, Message)]
struct Packed {
    #[prost(fixed64, tag = "1")]
    id: u64,
    #[prost(fixed64, optional, tag = "2")]
    parent: Option<u64>,
    #[prost(uint32, tag = "3")]
    service: u32,
    #[prost(uint32, tag = "4")]
    operation: u32,
    #[prost(uint32, tag = "5")]
    kind: u32,
    /// Nanoseconds since 1970.
    #[prost(sfixed64, tag = "6")]
    start: i64,
    #[prost(uint64, tag = "7")]
    nanos: u64,
    #[prost(uint32, tag = "8")]
    status: u32,
    #[prost(uint32, optional, tag = "9")]
    message: Option<u32>,
    #[prost(message, repeated, tag = "10")]
    attributes: Vec<Attribute>,
    #[prost(message, repeated, tag = "11")]
    links: Vec<Link>,
}

#[derive(Clone, PartialEq, Message)]
struct Attribute {
    #[prost(uint32, tag = "1")]
    name: u32,
    #[prost(oneof = "Is", tags = "2, 3, 4, 5, 6")]
    is: Option<Is>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Is {
    #[prost(uint32, tag = "2")]
    Text(u32),
    #[prost(sint64, tag = "3")]
    Integer(i64),
    #[prost(double, tag = "4")]
    Number(f64),
    #[prost(bool, tag = "5")]
    Flag(bool),
    /// Lists, maps, and what is too large for the others.
    #[prost(string, tag = "6")]
    Json(String),
}

#[derive(Clone, PartialEq, Message)]
struct Link {
    #[prost(bytes = "vec", tag = "1")]
    trace: Vec<u8>,
    #[prost(fixed64, tag = "2")]
    span: u64,
}

/// The words of a chunk while it is made.
#[derive(Default)]
struct Words<'a> {
    list: Vec<String>,
    places: HashMap<&'a str, u32>,
}

impl<'a> Words<'a> {
    fn place(&mut self, word: &'a str) -> u32 {
        if let Some(place) = PLACES.get(word).or_else(|| self.places.get(word)) {
            return *place;
        }
        let place = (KNOWN.len() + self.list.len()) as u32;
        self.list.push(word.to_owned());
        self.places.insert(word, place);
        place
    }
}

/// What lies in the store for these spans, all of one trace.
pub fn pack(spans: &[&Span]) -> Vec<u8> {
    let mut words = Words::default();
    let spans = spans.iter().map(|span| packed(span, &mut words)).collect();
    Chunk { words: words.list, spans }.encode_to_vec()
}

fn packed<'a>(span: &'a Span, words: &mut Words<'a>) -> Packed {
    let attribute = |(name, value): (&'a String, &'a Value), words: &mut Words<'a>| {
        let is = match value {
            Value::String(text) => Is::Text(words.place(text)),
            Value::Bool(flag) => Is::Flag(*flag),
            Value::Number(number) => match (number.as_i64(), number.as_f64()) {
                (Some(integer), _) => Is::Integer(integer),
                (None, Some(float)) if number.is_f64() => Is::Number(float),
                _ => Is::Json(value.to_string()),
            },
            other => Is::Json(other.to_string()),
        };
        Attribute { name: words.place(name), is: Some(is) }
    };
    Packed {
        id: id::span(&span.span_id).unwrap_or_default(),
        parent: span.parent_span_id.as_deref().and_then(id::span),
        service: words.place(&span.service),
        operation: words.place(&span.operation),
        kind: span.kind as u32,
        start: crate::dead_letters::store::nanos(span.start_at),
        nanos: nanos(span),
        status: span.status as u32,
        message: span.message.as_deref().map(|message| words.place(message)),
        attributes: span.attributes.iter().map(|one| attribute(one, words)).collect(),
        links: span.links.iter().filter_map(link).collect(),
    }
}

fn link(link: &SpanLink) -> Option<Link> {
    Some(Link { trace: id::trace(&link.trace_id)?.to_be_bytes().to_vec(), span: id::span(&link.span_id)? })
}

/// How long it took, in whole nanoseconds.
pub fn nanos(span: &Span) -> u64 {
    // A negative or absurd number saturates.
    (span.duration_ms * 1e6).round() as u64
}

/// The spans that [`pack`] was given.
///
/// # Errors
/// When the bytes are none of ours.
pub fn unpack(trace: TraceId, bytes: &[u8]) -> Result<Vec<Span>, prost::DecodeError> {
    let Chunk { words, spans } = Chunk::decode(bytes)?;
    let trace_id = id::trace_text(trace);
    Ok(spans.into_iter().map(|packed| unpacked(packed, &trace_id, &words)).collect())
}

fn unpacked(packed: Packed, trace_id: &str, words: &[String]) -> Span {
    let word = |place: u32| {
        let place = place as usize;
        let known = KNOWN.get(place).map(|word| (*word).to_owned());
        known.or_else(|| words.get(place - KNOWN.len()).cloned()).unwrap_or_default()
    };
    let value = |is: Option<Is>| match is {
        Some(Is::Text(place)) => Value::String(word(place)),
        Some(Is::Integer(integer)) => integer.into(),
        Some(Is::Number(number)) => number.into(),
        Some(Is::Flag(flag)) => flag.into(),
        Some(Is::Json(text)) => serde_json::from_str(&text).unwrap_or_default(),
        None => Value::Null,
    };
    let links = packed.links.into_iter().filter_map(|Link { trace, span }| {
        let trace = TraceId::from_be_bytes(trace.try_into().ok()?);
        Some(SpanLink { trace_id: id::trace_text(trace), span_id: id::span_text(span) })
    });
    Span {
        trace_id: trace_id.to_owned(),
        span_id: id::span_text(packed.id),
        parent_span_id: packed.parent.map(id::span_text),
        links: links.collect(),
        service: word(packed.service),
        operation: word(packed.operation),
        kind: kind(packed.kind),
        start_at: Timestamp::from_nanosecond(packed.start.into()).unwrap_or(Timestamp::UNIX_EPOCH),
        duration_ms: packed.nanos as f64 / 1e6,
        status: status(packed.status),
        message: packed.message.map(word),
        attributes: packed
            .attributes
            .into_iter()
            .map(|one| (word(one.name), value(one.is)))
            .collect::<BTreeMap<_, _>>(),
    }
}

fn kind(number: u32) -> SpanKind {
    let all = [SpanKind::Server, SpanKind::Client, SpanKind::Producer, SpanKind::Consumer];
    all.into_iter().find(|kind| *kind as u32 == number).unwrap_or_default()
}

fn status(number: u32) -> SpanStatus {
    [SpanStatus::Ok, SpanStatus::Error].into_iter().find(|status| *status as u32 == number).unwrap_or_default()
}

/// Two spans are one thing said twice if this is equal.
pub fn likeness(span: &Span) -> (SpanId, u64) {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    (&span.service, &span.operation, nanos(span), span.start_at, span.status, &span.message).hash(&mut hasher);
    for (name, value) in &span.attributes {
        name.hash(&mut hasher);
        match value {
            Value::String(text) => text.hash(&mut hasher),
            other => other.to_string().hash(&mut hasher),
        }
    }
    (id::span(&span.span_id).unwrap_or_default(), hasher.finish())
}

#[cfg(test)]
pub mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text() -> impl Strategy<Value = String> {
        prop_oneof![Just(String::new()), prop::sample::select(&KNOWN[..]).prop_map(str::to_owned), any::<String>()]
    }

    fn value() -> impl Strategy<Value = Value> {
        prop_oneof![
            text().prop_map(Value::String),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            prop::num::f64::NORMAL.prop_map(Value::from),
            any::<bool>().prop_map(Value::from),
            prop::collection::vec(text(), 0..3).prop_map(Value::from),
            Just(Value::Null),
        ]
    }

    /// Any span of this trace, as far as ids, times and durations can be.
    pub fn span(trace: TraceId) -> impl Strategy<Value = Span> {
        let ids = (1_u64.., prop::option::of(1_u64..), prop::collection::vec((1_u128.., 1_u64..), 0..3));
        let what = (text(), text(), 0_u32..5, 0_u32..3, prop::option::of(text()));
        let when = (0..2_000_000_000_000_000_000_i64, 0..1_u64 << 50);
        (ids, what, when, prop::collection::btree_map(text(), value(), 0..6)).prop_map(
            move |((span_id, parent, links), (service, operation, of_kind, of_status, message), when, attributes)| {
                Span {
                    trace_id: id::trace_text(trace),
                    span_id: id::span_text(span_id),
                    parent_span_id: parent.map(id::span_text),
                    links: links
                        .into_iter()
                        .map(|(trace, span)| SpanLink { trace_id: id::trace_text(trace), span_id: id::span_text(span) })
                        .collect(),
                    service,
                    operation,
                    kind: kind(of_kind),
                    start_at: Timestamp::from_nanosecond(when.0.into()).expect("in range"),
                    duration_ms: when.1 as f64 / 1e6,
                    status: status(of_status),
                    message,
                    attributes,
                }
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_goes_in_comes_out(spans in prop::collection::vec(span(7), 0..5)) {
            let packed = pack(&spans.iter().collect::<Vec<_>>());
            prop_assert_eq!(unpack(7, &packed), Ok(spans));
        }

        #[test]
        fn garbage_is_refused_or_read_but_never_fatal(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = unpack(7, &bytes);
        }
    }

    #[test]
    fn what_we_say_ourselves_needs_no_words() {
        use meshctl_model::trace::attribute as a;
        for name in [
            a::METHOD,
            a::PATH,
            a::STATUS,
            a::ERROR,
            a::CHANNEL,
            a::SUBSCRIPTION,
            a::MESSAGE_ID,
            a::EDGE,
            a::ROUTE,
            a::INSTANCE,
            a::ATTEMPT,
            a::OUTCOME,
            a::NOT_BEFORE,
            a::REPLAY,
            a::DEAD_LETTER,
            a::FALLBACK,
        ] {
            assert!(PLACES.contains_key(name), "{name}");
        }
        assert_eq!(PLACES.len(), KNOWN.len(), "no word twice");
    }
}
