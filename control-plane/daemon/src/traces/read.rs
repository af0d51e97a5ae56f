//! Lists of traces, and one trace with all that belongs to it.

use std::collections::{BTreeSet, HashMap, VecDeque};

use jiff::Timestamp;
use meshctl_api::error::{ApiError, ErrorCode};
use meshctl_api::view::traces::{TraceQuery, TraceSummary};
use meshctl_model::filter::{self, Filter, TRACE, Value};
use meshctl_model::trace::{Span, attribute};
use meshctl_model::units::Span as Length;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::id::{self, TraceId};
use super::summary::{Class, message_key, trace_key};
use super::write::spans_of;
use crate::dead_letters::store::{nanos, timestamp};

/// How many are shown where nobody says, and how many can be.
const LIMIT: u32 = 50;
const MOST: u32 = 1000;

/// Traces that are joined to one, and the spans of all of them together.
const JOINED: usize = 100;
const SPANS: usize = 20_000;

/// Which traces are meant.
#[derive(Clone, Debug)]
pub struct Wanted {
    limit: usize,
    slowest: bool,
    errors: bool,
    since: Option<i64>,
    filter: Option<Filter>,
    now: Timestamp,
}

impl Wanted {
    /// # Errors
    /// When the filter is none, with the column, or another value cannot be.
    pub fn of(query: &TraceQuery, now: Timestamp) -> Result<Self, ApiError> {
        let limit = query.limit.unwrap_or(LIMIT);
        if limit > MOST {
            let message = format!("{limit} traces are more than are listed at once");
            return Err(ApiError::new(ErrorCode::Invalid, message).hint(format!("ask for {MOST} or fewer")));
        }
        let since = query.since.as_deref().map(|text| {
            text.parse::<Timestamp>().map(nanos).map_err(|why| {
                ApiError::new(ErrorCode::Invalid, format!("since: `{text}` is no time: {why}"))
                    .hint("write it as 2026-11-23T10:00:00Z")
            })
        });
        let text = query.filter.as_deref().filter(|text| !text.trim().is_empty());
        let filter = text.map(|text| {
            filter::parse(text, TRACE).map_err(|why| {
                ApiError::new(ErrorCode::Invalid, format!("the filter `{text}`: {why}"))
                    .hint("for example: service = orders and latency > 100ms and status = error")
            })
        });
        Ok(Self {
            limit: limit as usize,
            slowest: query.slowest,
            errors: query.errors,
            since: since.transpose()?,
            filter: filter.transpose()?,
            now,
        })
    }

    fn sql(&self) -> String {
        // In the words of the index of what failed, which is small.
        let failed = if self.errors { " AND class >= 2" } else { "" };
        let since = if self.since.is_some() { " AND start_at > ?1" } else { "" };
        let order = if self.slowest { "latency" } else { "start_at" };
        format!(
            "SELECT trace_id, class, start_at, end_at, latency, service, operation, spans, errors, services
             FROM traces WHERE TRUE{failed}{since} ORDER BY {order} DESC"
        )
    }

    /// The traces, in their order. A filter is asked about one after another, until there are enough.
    pub fn list(&self, from: &Connection) -> rusqlite::Result<Vec<TraceSummary>> {
        let mut statement = from.prepare_cached(&self.sql())?;
        let mut rows = match self.since {
            Some(since) => statement.query([since])?,
            None => statement.query([])?,
        };
        let mut found = Vec::new();
        while found.len() < self.limit
            && let Some(row) = rows.next()?
        {
            let trace = summary(row)?;
            if self.filter.as_ref().is_none_or(|filter| filter.matches(&|name: &str| field(&trace, name, self.now))) {
                found.push(trace);
            }
        }
        Ok(found)
    }
}

fn summary(row: &Row) -> rusqlite::Result<TraceSummary> {
    let (start, end, latency): (i64, i64, i64) = (row.get(2)?, row.get(3)?, row.get(4)?);
    let services: String = row.get(9)?;
    Ok(TraceSummary {
        trace_id: id::trace_text(TraceId::from_be_bytes(row.get(0)?)),
        status: Class::of(row.get(1)?).as_str().to_owned(),
        start_at: timestamp(start),
        latency_ms: latency as f64 / 1e6,
        duration_ms: end.saturating_sub(start) as f64 / 1e6,
        service: row.get(5)?,
        operation: row.get(6)?,
        spans: row.get(7)?,
        errors: row.get(8)?,
        services: services.split('\n').map(str::to_owned).collect(),
    })
}

/// What the filter is told of a trace.
fn field(trace: &TraceSummary, name: &str, now: Timestamp) -> Option<Value> {
    let text = |text: &str| Value::Text(text.to_owned());
    let length = |ms: f64| Value::Duration(Length::from_millis(ms.round() as u64));
    Some(match name {
        "age" => length(now.duration_since(trace.start_at).as_millis_f64().max(0.0)),
        "duration" => length(trace.duration_ms),
        "errors" => Value::Number(trace.errors as f64),
        "latency" => length(trace.latency_ms),
        "operation" => text(&trace.operation),
        "service" => Value::Several(trace.services.iter().map(|name| text(name)).collect()),
        "spans" => Value::Number(trace.spans as f64),
        "startAt" => Value::Time(trace.start_at),
        "status" => text(&trace.status),
        "traceId" => text(&trace.trace_id),
        // The parser knows the fields above and no other.
        _ => return None,
    })
}

/// A trace and what is joined to it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Whole {
    pub trace: TraceId,
    /// Each once, by start.
    pub spans: Vec<Span>,
    /// Other traces that are part of it, in the order of their finding.
    pub joined: Vec<TraceId>,
    /// There is more than can be shown.
    pub cut: bool,
}

impl Whole {
    /// All messages of it, sorted.
    pub fn message_ids(&self) -> Vec<String> {
        let ids = self.spans.iter().filter_map(|span| span.text(attribute::MESSAGE_ID));
        ids.collect::<BTreeSet<_>>().into_iter().map(str::to_owned).collect()
    }
}

/// By the id of a trace, or of a message of it.
pub fn whole(from: &Connection, asked: &str) -> rusqlite::Result<Option<Whole>> {
    if let Some(trace) = id::trace(asked)
        && numbered(from, trace)?.is_some()
    {
        return joined(from, trace).map(Some);
    }
    let mut of_message = None;
    for (number, trace) in under(from, message_key(asked))? {
        let spans = spans_of(from, number, trace)?;
        let mut its_spans = spans.iter().filter(|span| span.text(attribute::MESSAGE_ID) == Some(asked));
        if its_spans.next().is_some() {
            let start = spans.iter().map(|span| span.start_at).min();
            of_message = of_message.into_iter().chain([(start, trace)]).min();
        }
    }
    of_message.map(|(_, trace)| joined(from, trace)).transpose()
}

/// The trace, and, from one to the next, those that a span links to, that link to it, and that have a message in common.
fn joined(from: &Connection, trace: TraceId) -> rusqlite::Result<Whole> {
    let mut whole = Whole { trace, ..Whole::default() };
    let (mut seen, mut queue) = (BTreeSet::from([trace]), VecDeque::from([trace]));
    let mut messages: BTreeSet<String> = BTreeSet::new();
    while let Some(trace) = queue.pop_front() {
        let Some(number) = numbered(from, trace)? else { continue };
        let spans = latest(spans_of(from, number, trace)?);
        if whole.spans.len() + spans.len() > SPANS && !whole.spans.is_empty() {
            whole.cut = true;
            continue;
        }
        let mut next = Vec::new();
        for span in &spans {
            next.extend(span.links.iter().filter_map(|link| id::trace(&link.trace_id)));
            if let Some(message) = span.text(attribute::MESSAGE_ID)
                && messages.insert(message.to_owned())
            {
                let has_it = |span: &Span| span.text(attribute::MESSAGE_ID) == Some(message);
                next.extend(confirmed(from, message_key(message), &seen, has_it)?);
            }
        }
        let this = id::trace_text(trace);
        let links = |span: &Span| span.links.iter().any(|link| link.trace_id == this);
        next.extend(confirmed(from, trace_key(trace), &seen, links)?);
        whole.spans.extend(spans);
        for found in next {
            if whole.joined.len() >= JOINED {
                whole.cut |= !seen.contains(&found);
            } else if seen.insert(found) && numbered(from, found)?.is_some() {
                whole.joined.push(found);
                queue.push_back(found);
            }
        }
    }
    whole.spans.sort_by(|a, b| (a.start_at, a.parent_span_id.is_some()).cmp(&(b.start_at, b.parent_span_id.is_some())));
    Ok(whole)
}

/// Each span once, as it came last.
fn latest(spans: Vec<Span>) -> Vec<Span> {
    let mut places: HashMap<String, usize> = HashMap::with_capacity(spans.len());
    let mut latest: Vec<Span> = Vec::with_capacity(spans.len());
    for span in spans {
        match places.get(&span.span_id) {
            Some(place) => latest[*place] = span,
            None => {
                places.insert(span.span_id.clone(), latest.len());
                latest.push(span);
            }
        }
    }
    latest
}

fn numbered(from: &Connection, trace: TraceId) -> rusqlite::Result<Option<i64>> {
    let mut statement = from.prepare_cached("SELECT number FROM traces WHERE trace_id = ?1")?;
    statement.query_row([trace.to_be_bytes()], |row| row.get(0)).optional()
}

/// The traces under a key of `joins`: not all of them need to be what is looked for.
fn under(from: &Connection, key: i64) -> rusqlite::Result<Vec<(i64, TraceId)>> {
    let mut statement = from.prepare_cached(
        "SELECT number, trace_id FROM joins JOIN traces ON number = trace WHERE key = ?1 ORDER BY number LIMIT ?2",
    )?;
    let rows = statement
        .query_map(params![key, JOINED as i64 + 1], |row| Ok((row.get(0)?, TraceId::from_be_bytes(row.get(1)?))))?;
    rows.collect()
}

/// Those under a key that have such a span, and are not known already.
fn confirmed(
    from: &Connection,
    key: i64,
    seen: &BTreeSet<TraceId>,
    is_it: impl Fn(&Span) -> bool,
) -> rusqlite::Result<Vec<TraceId>> {
    let mut found = Vec::new();
    for (number, trace) in under(from, key)? {
        if !seen.contains(&trace) && spans_of(from, number, trace)?.iter().any(&is_it) {
            found.push(trace);
        }
    }
    Ok(found)
}
