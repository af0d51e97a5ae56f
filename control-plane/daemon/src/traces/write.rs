//! The writer: takes what has come, many batches in one transaction, keeps each trace's row true, and removes what is too old
//! or too much, a little after each commit.
//!
//! The counts are of the same transaction as what they count. What cannot be written is dropped and counted, and the next is
//! tried again: nobody waits for a disk.

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use meshctl_model::trace::Span;
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};
use tokio::sync::mpsc;

use super::id::{self, TraceId};
use super::packed::{pack, unpack};
use super::store::{Job, Notice, Shared, Tell, Totals, lock, seconds};
use super::summary::{Class, Heard, Summary, joins};

/// Spans of one transaction, about.
const GROUP: usize = 8192;
/// Bytes of one transaction, about.
const GROUP_BYTES: usize = 4 << 20;

/// Spans that one trace may have: what has more could not be shown to anybody.
pub const LONGEST: u64 = 10_000;

/// A trace to which something came within so many seconds is spared while others can be removed: somebody may be about to look.
const SPARED: i64 = 60;

/// Traces removed in one transaction.
const REMOVED: usize = 500;
/// Such transactions after one commit.
const ROUNDS: usize = 8;
/// Free pages given back after one commit.
const GIVEN_BACK: i64 = 1024;

/// Spans of the traces that are remembered: those to which more is likely to come.
const REMEMBERED: usize = 200_000;

/// Bits of a chunk's key that are its own.
pub const CHUNK_BITS: u32 = 16;

/// A trace as it is in the file.
#[derive(Clone, Debug, Default)]
struct Known {
    number: i64,
    chunks: i64,
    summary: Summary,
    heard: Heard,
}

/// The traces that were written last.
#[derive(Default)]
struct Recent {
    traces: HashMap<TraceId, Known>,
    order: VecDeque<TraceId>,
    spans: usize,
}

pub(super) struct Writer {
    connection: Connection,
    path: PathBuf,
    shared: Arc<Shared>,
    totals: Totals,
    recent: Recent,
    tell: Tell,
    /// Nothing could be written the last time.
    failing: bool,
    /// The size for which the journal is set up.
    journal_for: u64,
}

impl Writer {
    pub fn new(connection: Connection, path: PathBuf, shared: Arc<Shared>, totals: Totals, tell: Tell) -> Self {
        Self { connection, path, shared, totals, recent: Recent::default(), tell, failing: false, journal_for: 0 }
    }

    /// Until nobody can bring spans any more.
    pub fn run(mut self, mut jobs: mpsc::Receiver<Job>) {
        while let Some(first) = jobs.blocking_recv() {
            let (mut spans, mut bytes, mut group) = (0, 0, Vec::new());
            let mut next = Some(first);
            while let Some(job) = next {
                if let Job::Spans { batch, .. } = &job {
                    spans += batch.spans.len();
                    bytes += batch.bytes;
                }
                group.push(job);
                next = if spans < GROUP && bytes < GROUP_BYTES { jobs.try_recv().ok() } else { None };
            }
            self.work(group, spans);
        }
    }

    fn work(&mut self, group: Vec<Job>, spans: usize) {
        let (mut written, mut room, mut lost) = (Vec::new(), Vec::new(), Vec::new());
        let mut by_trace: HashMap<TraceId, Vec<Span>> = HashMap::new();
        let mut order = Vec::new();
        for job in group {
            match job {
                Job::Spans { batch, room: taken, written: wants } => {
                    room.push(taken);
                    written.extend(wants);
                    for span in batch.spans {
                        let Some(trace) = id::trace(&span.trace_id) else { continue };
                        let spans = by_trace.entry(trace).or_insert_with(|| {
                            order.push(trace);
                            Vec::new()
                        });
                        spans.push(span);
                    }
                }
                Job::Lost { source, dropped } => lost.push((source, dropped)),
                Job::Tend => {}
            }
        }
        self.prepare_journal();
        let dropped = self.shared.dropped.swap(0, Ordering::Relaxed);
        let outcome = self.commit(&order, by_trace, &lost, dropped);
        if outcome.is_err() {
            // What is in memory may be ahead of the file.
            self.recent = Recent::default();
            self.shared.dropped.fetch_add(dropped + spans as u64, Ordering::Relaxed);
        }
        let outcome = outcome.and_then(|()| self.tend());
        self.judge(outcome);
        *lock(&self.shared.totals) = self.totals;
        drop(room);
        // Who asked may have gone away meanwhile.
        for wants in written {
            let _ = wants.send(());
        }
    }

    fn judge(&mut self, outcome: rusqlite::Result<()>) {
        match outcome {
            Ok(()) => {
                if std::mem::take(&mut self.failing) {
                    (self.tell)(Notice::Writable);
                }
            }
            Err(why) if !std::mem::replace(&mut self.failing, true) => {
                (self.tell)(Notice::Unwritable(format!("cannot write {}: {why}", self.path.display())));
            }
            Err(_) => {}
        }
    }

    /// The journal is part of what is kept: its size follows from what that may be.
    fn prepare_journal(&mut self) {
        let max_size = lock(&self.shared.bounds).max_size;
        if std::mem::replace(&mut self.journal_for, max_size) != max_size {
            let journal = journal(max_size);
            let set = self.connection.pragma_update(None, "journal_size_limit", journal);
            let set = set.and_then(|()| self.connection.pragma_update(None, "wal_autocheckpoint", journal / 2 / 4096));
            if let Err(why) = set {
                tracing::warn!(%why, "the journal of traces stays as large as it was");
            }
        }
    }

    fn commit(
        &mut self,
        order: &[TraceId],
        mut by_trace: HashMap<TraceId, Vec<Span>>,
        lost: &[(String, u64)],
        dropped: u64,
    ) -> rusqlite::Result<()> {
        if order.is_empty() && lost.is_empty() && dropped == 0 {
            return Ok(());
        }
        let slow_ns = i64::try_from(lock(&self.shared.bounds).slow.as_nanos()).unwrap_or(i64::MAX);
        let mut totals = Totals { dropped: self.totals.dropped + dropped, ..self.totals };
        let before = totals.spans;
        let to = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        for trace in order {
            let spans = by_trace.remove(trace).unwrap_or_default();
            let known = match self.recent.take(*trace) {
                Some(known) => Some(known),
                None => find(&to, *trace, slow_ns)?,
            };
            let known = add(&to, *trace, known, &spans, slow_ns, &mut totals)?;
            self.recent.keep(*trace, known);
        }
        for (source, dropped) in lost {
            totals.dropped += newly_lost(&to, source, *dropped)?;
        }
        write_totals(&to, totals)?;
        to.commit()?;
        self.shared.stored.fetch_add(totals.spans - before, Ordering::Relaxed);
        self.totals = totals;
        self.recent.shrink();
        Ok(())
    }

    /// Removes what is too old, and then what is too much.
    fn tend(&mut self) -> rusqlite::Result<()> {
        let bounds = *lock(&self.shared.bounds);
        let keep = i64::try_from(bounds.keep.as_secs()).unwrap_or(i64::MAX);
        let now = seconds();
        let most = bounds.max_size - journal(bounds.max_size).unsigned_abs();
        // A little below, so that it is not at every commit.
        let enough = most - most / 64;
        let mut too_much = pages(&self.connection)?.used() > most;
        for _ in 0..ROUNDS {
            let old = self.worst(Class::ALL.map(|class| (class, now.saturating_sub(keep))))?;
            let gone = if !old.is_empty() {
                old
            } else if too_much {
                let spared = self.worst(Class::ALL.map(|class| (class, now - SPARED)))?;
                if spared.is_empty() { self.worst(Class::ALL.map(|class| (class, i64::MAX)))? } else { spared }
            } else {
                break;
            };
            if gone.is_empty() {
                break;
            }
            self.remove(&gone)?;
            too_much &= pages(&self.connection)?.used() > enough;
        }
        let pages = pages(&self.connection)?;
        let surplus = pages.free > pages.all / 8 || pages.all.saturating_mul(pages.size) > most;
        if surplus && pages.free > 0 {
            let count = pages.free.min(GIVEN_BACK as u64);
            // It returns a row for each page.
            let mut statement = self.connection.prepare(&format!("PRAGMA incremental_vacuum({count})"))?;
            let mut rows = statement.query([])?;
            while rows.next()?.is_some() {}
        }
        Ok(())
    }

    /// The first class of which there is anything, oldest first: number and trace id.
    fn worst(&self, classes: [(Class, i64); 4]) -> rusqlite::Result<Vec<(i64, TraceId)>> {
        let mut statement = self.connection.prepare_cached(
            "SELECT number, trace_id FROM traces WHERE class = ?1 AND touched < ?2 ORDER BY touched LIMIT ?3",
        )?;
        for (class, before) in classes {
            let rows = statement.query_map(params![class as i64, before, REMOVED], |row| {
                Ok((row.get(0)?, TraceId::from_be_bytes(row.get(1)?)))
            })?;
            let found = rows.collect::<rusqlite::Result<Vec<_>>>()?;
            if !found.is_empty() {
                return Ok(found);
            }
        }
        Ok(Vec::new())
    }

    fn remove(&mut self, gone: &[(i64, TraceId)]) -> rusqlite::Result<()> {
        let mut totals = self.totals;
        let to = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        for (number, _) in gone {
            let chunks = chunks_of(*number);
            to.prepare_cached("DELETE FROM chunks WHERE key BETWEEN ?1 AND ?2")?.execute([chunks.0, chunks.1])?;
            to.prepare_cached("DELETE FROM joins WHERE trace = ?1")?.execute([number])?;
            let mut statement = to.prepare_cached("DELETE FROM traces WHERE number = ?1 RETURNING spans")?;
            let spans: u64 = statement.query_row([number], |row| row.get(0))?;
            totals.traces -= 1;
            totals.spans -= spans.min(totals.spans);
            totals.evicted += 1;
        }
        write_totals(&to, totals)?;
        to.commit()?;
        self.totals = totals;
        gone.iter().for_each(|(_, trace)| drop(self.recent.take(*trace)));
        Ok(())
    }
}

impl Recent {
    fn take(&mut self, trace: TraceId) -> Option<Known> {
        let known = self.traces.remove(&trace)?;
        self.spans -= known.heard.len();
        Some(known)
    }

    fn keep(&mut self, trace: TraceId, known: Known) {
        self.spans += known.heard.len();
        self.traces.insert(trace, known);
        self.order.push_back(trace);
    }

    /// The order may name a trace several times: it goes with the first of them, and is looked up again if more comes.
    fn shrink(&mut self) {
        while self.spans > REMEMBERED || self.order.len() > REMEMBERED {
            let Some(trace) = self.order.pop_front() else { return };
            self.take(trace);
        }
    }
}

/// The file's pages.
struct Pages {
    size: u64,
    all: u64,
    free: u64,
}

impl Pages {
    /// Bytes that hold something.
    fn used(&self) -> u64 {
        self.all.saturating_sub(self.free).saturating_mul(self.size)
    }
}

fn pages(connection: &Connection) -> rusqlite::Result<Pages> {
    let ask = |name: &str| connection.pragma_query_value(None, name, |row| row.get::<_, u64>(0));
    Ok(Pages { size: ask("page_size")?, all: ask("page_count")?, free: ask("freelist_count")? })
}

/// Bytes that the journal may have.
fn journal(max_size: u64) -> i64 {
    (max_size / 8).clamp(512 << 10, 32 << 20) as i64
}

/// The keys of a trace's chunks, both ends included.
pub fn chunks_of(number: i64) -> (i64, i64) {
    (number << CHUNK_BITS, (number << CHUNK_BITS) | ((1 << CHUNK_BITS) - 1))
}

/// A trace that was written before, from its spans.
fn find(from: &Transaction, trace: TraceId, slow_ns: i64) -> rusqlite::Result<Option<Known>> {
    let mut statement = from.prepare_cached("SELECT number, chunks, class FROM traces WHERE trace_id = ?1")?;
    let row =
        statement.query_row([trace.to_be_bytes()], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).optional()?;
    let Some((number, chunks, class)) = row else { return Ok(None) };
    let mut known = Known { number, chunks, ..Known::default() };
    for span in spans_of(from, number, trace)? {
        known.summary.add(&mut known.heard, &span, slow_ns);
    }
    // What is slow may have had another meaning then.
    known.summary.class = known.summary.class.max(Class::of(class));
    Ok(Some(known))
}

/// All spans that came of a trace, in the order of their coming; one may be there twice, and the later holds.
pub fn spans_of(from: &Connection, number: i64, trace: TraceId) -> rusqlite::Result<Vec<Span>> {
    let (first, last) = chunks_of(number);
    let mut statement = from.prepare_cached("SELECT spans FROM chunks WHERE key BETWEEN ?1 AND ?2 ORDER BY key")?;
    let mut rows = statement.query([first, last])?;
    let mut spans = Vec::new();
    while let Some(row) = rows.next()? {
        let bytes = row.get_ref(0)?.as_blob()?;
        let unreadable = |why| rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Blob, Box::new(why));
        spans.extend(unpack(trace, bytes).map_err(unreadable)?);
    }
    Ok(spans)
}

/// Adds spans to a trace, or begins one.
fn add(
    to: &Transaction,
    trace: TraceId,
    known: Option<Known>,
    spans: &[Span],
    slow_ns: i64,
    totals: &mut Totals,
) -> rusqlite::Result<Known> {
    let is_new = known.is_none();
    let mut known = known.unwrap_or_default();
    let before = known.summary.spans;
    let mut fresh: Vec<&Span> = Vec::with_capacity(spans.len());
    for span in spans {
        if known.summary.spans >= LONGEST || known.chunks >= 1 << CHUNK_BITS {
            totals.dropped += 1;
        } else if known.summary.add(&mut known.heard, span, slow_ns) {
            fresh.push(span);
        }
    }
    if fresh.is_empty() {
        return Ok(known);
    }
    let Summary { class, start, end, first, spans, errors, services } = &known.summary;
    let services = services.iter().map(String::as_str).collect::<Vec<_>>().join("\n");
    let row = params![
        class.to_owned() as i64,
        seconds(),
        start,
        end,
        first.latency,
        first.service,
        first.operation,
        spans,
        errors,
        services,
        known.chunks + 1,
    ];
    if is_new {
        let mut statement = to.prepare_cached(
            "INSERT INTO traces (class, touched, start_at, end_at, latency, service, operation, spans, errors, services, chunks,
                 trace_id) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
        )?;
        let id = trace.to_be_bytes();
        let row: Vec<&dyn rusqlite::ToSql> = row.iter().copied().chain([&id as &dyn rusqlite::ToSql]).collect();
        known.number = statement.insert(&*row)?;
        totals.traces += 1;
    } else {
        let mut statement = to.prepare_cached(
            "UPDATE traces SET class = ?1, touched = ?2, start_at = ?3, end_at = ?4, latency = ?5, service = ?6,
                 operation = ?7, spans = ?8, errors = ?9, services = ?10, chunks = ?11 WHERE number = ?12",
        )?;
        let row: Vec<&dyn rusqlite::ToSql> =
            row.iter().copied().chain([&known.number as &dyn rusqlite::ToSql]).collect();
        statement.execute(&*row)?;
    }
    to.prepare_cached("INSERT INTO chunks (key, spans) VALUES (?1, ?2)")?
        .execute(params![chunks_of(known.number).0 | known.chunks, pack(&fresh)])?;
    known.chunks += 1;
    totals.spans += known.summary.spans - before;
    for key in fresh.iter().flat_map(|span| joins(span)) {
        to.prepare_cached("INSERT OR IGNORE INTO joins (key, trace) VALUES (?1, ?2)")?.execute([key, known.number])?;
    }
    Ok(known)
}

/// What a process has dropped since it said so last. One that says less began anew.
fn newly_lost(to: &Transaction, source: &str, dropped: u64) -> rusqlite::Result<u64> {
    let before: Option<u64> = to
        .prepare_cached("SELECT dropped FROM sources WHERE id = ?1")?
        .query_row([source], |row| row.get(0))
        .optional()?;
    to.prepare_cached("INSERT OR REPLACE INTO sources (id, dropped) VALUES (?1, ?2)")?
        .execute(params![source, dropped])?;
    Ok(before.filter(|before| *before <= dropped).map_or(dropped, |before| dropped - before))
}

fn write_totals(to: &Transaction, totals: Totals) -> rusqlite::Result<()> {
    let Totals { traces, spans, dropped, evicted } = totals;
    let mut statement = to.prepare_cached("INSERT OR REPLACE INTO counts (name, value) VALUES (?1, ?2)")?;
    for (name, value) in [("traces", traces), ("spans", spans), ("dropped", dropped), ("evicted", evicted)] {
        statement.execute(params![name, value])?;
    }
    Ok(())
}
