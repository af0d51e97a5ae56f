//! A load test, over: the document that scripts read, and the page that people read.

use std::fmt::Write as _;

use meshctl_load::Outcome as Measured;
use meshctl_load::report::{Example, Latency, Report};
use meshctl_model::units::Span;
use serde::Serialize;

use super::load_picture::{curve, histogram};
use super::{milliseconds, size};
use crate::output::{self, BOLD, Cell, Table, styled};

/// The result of `meshctl loadtest`.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LoadTest {
    pub(crate) api_version: &'static str,
    pub(crate) kind: &'static str,
    /// What was sent.
    pub(crate) name: String,
    /// To whom.
    pub(crate) target: String,
    pub(crate) seed: u64,
    #[serde(flatten)]
    pub(crate) report: Report,
    pub(crate) slo: Vec<SloVerdict>,
    /// Where no flow ends in a channel there is none.
    pub(crate) ledger: Option<LedgerChange>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SloVerdict {
    pub(crate) expression: String,
    /// Of which the topology says so; `None` where the command line does.
    pub(crate) flow: Option<String>,
    /// `None` where the run is invalid.
    pub(crate) met: Option<bool>,
    /// In words: `182ms`.
    pub(crate) actual: Option<String>,
}

/// What changed in the ledger while the run lasted.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LedgerChange {
    pub(crate) balanced: bool,
    /// Accepted and nowhere (positive), or somewhere and never accepted (negative).
    pub(crate) missing: i64,
    pub(crate) items: Vec<LedgerItem>,
}

/// Of one subscription; negative where there is less than before.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LedgerItem {
    pub(crate) name: String,
    pub(crate) channel: String,
    pub(crate) subscription: String,
    pub(crate) accepted: i64,
    pub(crate) processed: i64,
    pub(crate) in_flight: i64,
    pub(crate) retrying: i64,
    pub(crate) dead: i64,
    pub(crate) parked: i64,
    pub(crate) discarded: i64,
    pub(crate) missing: i64,
    pub(crate) balanced: bool,
}

impl LedgerItem {
    pub(crate) fn is_anything(&self) -> bool {
        let figures = [self.accepted, self.processed, self.in_flight, self.retrying, self.dead, self.parked];
        figures.iter().chain([&self.discarded, &self.missing]).any(|figure| *figure != 0)
    }
}

/// The page: what was achieved, whether it can be believed, how latencies lie, what was promised, where to look next.
pub(crate) fn summary(test: &LoadTest, measured: &Measured) -> String {
    let width = output::width().unwrap_or(80).clamp(50, 120);
    let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    page(test, measured, width, output::speaks_unicode() && !is_dumb)
}

fn page(test: &LoadTest, measured: &Measured, width: u16, unicode: bool) -> String {
    let report = &test.report;
    let mut page = headline(test);
    if !report.errors.is_empty() {
        section(&mut page, &errors(report), width);
    }
    if report.requests_by_name.len() > 1 {
        let mut table = Table::new(["flow", "requests"]);
        for (name, count) in &report.requests_by_name {
            table.row(vec![Cell::plain(name), Cell::plain(grouped(*count))]);
        }
        section(&mut page, &table, width);
    }
    // What an invalid run measured is not shown: it would be believed.
    if report.validity.valid && report.latency_ms.is_some() {
        section(&mut page, &latencies(report), width);
        if !measured.corrected.is_empty() {
            page.push_str("\nanswer by percentile\n");
            page.push_str(&curve(&measured.corrected, width, unicode));
            page.push_str("\nanswers by latency\n");
            page.push_str(&histogram(&measured.corrected, width, unicode));
        }
    }
    if !test.slo.is_empty() {
        section(&mut page, &objectives(&test.slo), width);
    }
    if let Some(ledger) = &test.ledger {
        section(&mut page, &ledger_of_the_run(ledger), width);
    }
    examples(&mut page, "slowest", &report.slowest, width);
    examples(&mut page, "failed", &report.failed, width);
    if let Some(id) = report.failed.iter().chain(&report.slowest).find_map(|one| one.trace_id.as_ref()) {
        let _ = writeln!(page, "\nfollow one: meshctl trace {id}");
    }
    page
}

fn headline(test: &LoadTest) -> String {
    let report = &test.report;
    let mut table = Table::without_header();
    let mut row = |what: &str, cell: Cell| table.row(vec![Cell::plain(what), cell]);
    let how = if report.mode == "inFlight" { "closed loop" } else { "open loop" };
    let (connections, length) = (connections(report.connections), seconds(report.duration_s));
    let ended = if report.interrupted { ", then interrupted" } else { "" };
    row("load", Cell::plain(format!("{how}, {connections}, {length}{ended}, seed {}", test.seed)));
    let requests = grouped(report.requests);
    row(
        "requests",
        match report.requests.saturating_sub(report.succeeded) {
            0 => Cell::good(format!("{requests}, none failed")),
            failed => {
                let percent = failed as f64 / report.requests as f64 * 100.0;
                Cell::bad(format!("{requests}, {} failed ({percent:.3}%)", grouped(failed)))
            }
        },
    );
    if report.completion_ms.is_some() || report.incomplete > 0 {
        row(
            "effects",
            match report.incomplete {
                0 => Cell::good("all showed"),
                some => Cell::bad(format!("{} did not show in time", grouped(some))),
            },
        );
    }
    let offered = match report.mode.as_str() {
        "inFlight" => String::new(),
        _ => format!(" of {}/s offered", grouped(report.offered_per_s.round() as u64)),
    };
    row("rate", Cell::plain(format!("{}/s{offered}", grouped(report.achieved_per_s.round() as u64))));
    row("in flight", Cell::plain(format!("{:.1} on average", report.in_flight_mean)));
    row("received", Cell::plain(size(report.bytes_received)));
    let used = &report.generator;
    row(
        "generator",
        Cell::plain(format!(
            "{}% of a core, {}, lag p99 {}, {} thread{}",
            used.cpu_percent.round(),
            size(used.max_memory_bytes),
            milliseconds(used.schedule_lag_p99_ms),
            used.threads,
            if used.threads == 1 { "" } else { "s" },
        )),
    );
    let verdict = if report.validity.valid { Cell::good("valid") } else { Cell::bad("INVALID: no latency is shown") };
    row("verdict", verdict);
    let mut text = format!("{}   {}\n\n{}", styled(BOLD, &test.name), test.target, table.draw(None));
    for reason in &report.validity.reasons {
        let _ = writeln!(text, "  - {reason}");
    }
    text
}

fn errors(report: &Report) -> Table {
    let mut table = Table::new(["failed", "requests"]);
    let mut causes: Vec<(&String, &u64)> = report.errors.iter().collect();
    causes.sort_by(|left, right| right.1.cmp(left.1).then(left.0.cmp(right.0)));
    for (cause, count) in causes {
        table.row(vec![Cell::bad(in_words(cause)), Cell::plain(grouped(*count))]);
    }
    table
}

/// The causes that are not words already.
fn in_words(cause: &str) -> String {
    match cause {
        "connect" => "connect: no connection".into(),
        "reset" => "reset: the connection broke".into(),
        "timeout" => "timeout: no answer in time".into(),
        "notSent" => "notSent: its time was over".into(),
        other => other.to_owned(),
    }
}

fn latencies(report: &Report) -> Table {
    let mut table = Table::new(["latency", "p50", "p90", "p99", "p99.9", "max", "mean", "from"]);
    let mut row = |what: &str, latency: &Option<Latency>, from: &str| {
        if let Some(Latency { p50, p90, p99, p999, max, mean }) = latency {
            let figures = [p50, p90, p99, p999, max, mean].map(|ms| Cell::plain(milliseconds(*ms)));
            table.row([Cell::plain(what)].into_iter().chain(figures).chain([Cell::plain(from)]).collect());
        }
    };
    row("answer", &report.latency_ms, "intended send time");
    row("uncorrected", &report.uncorrected_latency_ms, "actual send time");
    row("effect", &report.completion_ms, "intended send time");
    table
}

fn objectives(slo: &[SloVerdict]) -> Table {
    let mut table = Table::new(["objective", "measured", "", "flow"]);
    for one in slo {
        let met = match one.met {
            Some(true) => Cell::good("met"),
            Some(false) => Cell::bad("BREACHED"),
            None => Cell::careful("not judged"),
        };
        let flow = one.flow.as_deref().unwrap_or_default();
        table.row(vec![Cell::plain(&one.expression), Cell::maybe(one.actual.as_ref()), met, Cell::plain(flow)]);
    }
    table
}

/// Narrow enough that nothing of an account is cut off: what is under way and what has ended badly are one column each.
fn ledger_of_the_run(ledger: &LedgerChange) -> Table {
    let mut table = Table::new(["warm-up included", "accepted", "processed", "under way", "dead", ""]);
    for item in &ledger.items {
        let balanced = match item.missing {
            _ if item.balanced => Cell::good("balanced"),
            missing => Cell::bad(format!("MISSING {missing}")),
        };
        let dead = item.dead + item.parked + item.discarded;
        let figures = [item.accepted, item.processed, item.in_flight + item.retrying, dead].map(Cell::plain);
        table.row([Cell::plain(&item.name)].into_iter().chain(figures).chain([balanced]).collect());
    }
    table
}

fn examples(page: &mut String, what: &str, examples: &[Example], width: u16) {
    if examples.is_empty() {
        return;
    }
    let mut table = Table::new([what, "latency", "outcome", "trace"]);
    for one in examples.iter().take(5) {
        table.row(vec![
            Cell::plain(&one.name),
            Cell::plain(milliseconds(one.latency_ms)),
            Cell::plain(&one.outcome),
            Cell::maybe(one.trace_id.as_ref()),
        ]);
    }
    section(page, &table, width);
}

fn section(page: &mut String, table: &Table, width: u16) {
    page.push('\n');
    page.push_str(&table.draw(Some(width)));
}

/// `10,000 connections`.
pub(crate) fn connections(count: u32) -> String {
    format!("{} connection{}", grouped(count.into()), if count == 1 { "" } else { "s" })
}

/// `12,345`.
pub(crate) fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `10s`, `2.5s`, `2m30s`.
pub(crate) fn seconds(seconds: f64) -> String {
    match seconds {
        short if short < 60.0 => format!("{}s", (short * 10.0).round() / 10.0),
        long => Span::from_secs(long.round() as u64).to_string(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use hdrhistogram::Histogram;
    use jiff::Timestamp;
    use meshctl_load::report::{Generator, Validity};

    use super::*;

    /// A run of a thousand requests between 1 and 40 ms, of which ten failed.
    pub(crate) fn measured() -> Measured {
        let mut corrected = Histogram::<u64>::new(3).expect("three digits");
        for n in 0..990_u64 {
            let ms = 1.0 + 39.0 * (n as f64 / 990.0).powi(8);
            corrected.record((ms * 1e6) as u64).expect("it grows");
        }
        let latency = Latency { p50: 1.15, p90: 17.8, p99: 37.0, p999: 39.7, max: 39.7, mean: 5.3 };
        let report = Report {
            mode: "sessions".into(),
            validity: Validity { valid: true, reasons: Vec::new() },
            offered_per_s: 100.0,
            achieved_per_s: 99.0,
            connections: 1000,
            duration_s: 10.0,
            requests: 1000,
            succeeded: 990,
            errors: BTreeMap::from([("timeout".into(), 3), ("status 503".into(), 7)]),
            latency_ms: Some(latency),
            uncorrected_latency_ms: Some(Latency { p50: 1.1, ..latency }),
            in_flight_mean: 0.53,
            interrupted: false,
            requests_by_name: BTreeMap::from([("place-order".into(), 200), ("browse-stock".into(), 800)]),
            completion_ms: None,
            incomplete: 0,
            bytes_received: 123_456,
            generator: Generator {
                cpu_percent: 12.3,
                max_memory_bytes: 20 << 20,
                threads: 1,
                schedule_lag_p99_ms: 0.2,
                schedule_lag_max_ms: 1.0,
            },
            slowest: vec![example(Some("4bf92f3577b34da6a3ce929d0e0e4736"), 39.7, "201")],
            failed: vec![example(None, 10_000.0, "timeout")],
        };
        let (uncorrected, completion) = (corrected.clone(), Histogram::new(3).expect("three digits"));
        let at = Timestamp::UNIX_EPOCH;
        let shares = Vec::new();
        Measured { report, started_at: at, measured_at: at, corrected, uncorrected, completion, shares }
    }

    fn example(trace: Option<&str>, latency_ms: f64, outcome: &str) -> Example {
        Example { trace_id: trace.map(Into::into), name: "place-order".into(), latency_ms, outcome: outcome.into() }
    }

    fn test(measured: &Measured) -> LoadTest {
        let slo = |expression: &str, met, actual: Option<&str>| SloVerdict {
            expression: expression.into(),
            flow: Some("place-order".into()),
            met,
            actual: actual.map(Into::into),
        };
        LoadTest {
            api_version: meshctl_model::API_VERSION,
            kind: "LoadTest",
            name: "place-order, browse-stock".into(),
            target: "http://127.0.0.1:8080".into(),
            seed: 7,
            report: measured.report.clone(),
            slo: vec![slo("p99 < 200ms", Some(true), Some("37ms")), slo("errors < 0.1%", Some(false), Some("1.000%"))],
            ledger: Some(LedgerChange {
                balanced: true,
                missing: 0,
                items: vec![LedgerItem {
                    name: "order.placed/billing".into(),
                    channel: "order.placed".into(),
                    subscription: "billing".into(),
                    accepted: 200,
                    processed: 199,
                    in_flight: 0,
                    retrying: 0,
                    dead: 1,
                    parked: 0,
                    discarded: 0,
                    missing: 0,
                    balanced: true,
                }],
            }),
        }
    }

    fn plain(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    #[test]
    fn a_page_fits_eighty_columns() {
        let measured = measured();
        for unicode in [true, false] {
            let page = plain(&page(&test(&measured), &measured, 80, unicode));
            assert!(page.lines().all(|line| line.chars().count() <= 80), "{page}");
            assert!(unicode || page.is_ascii(), "{page}");
            insta::assert_snapshot!(if unicode { "page_unicode" } else { "page_ascii" }, page);
        }
    }

    #[test]
    fn an_invalid_run_shows_no_latency() {
        let mut measured = measured();
        measured.report.latency_ms = None;
        measured.report.validity =
            Validity { valid: false, reasons: vec!["sending was 3s behind its schedule; give it more threads".into()] };
        let page = plain(&page(&test(&measured), &measured, 80, true));
        assert!(page.contains("INVALID") && page.contains("3s behind its schedule"), "{page}");
        assert!(!page.contains("P99") && !page.contains('█'), "{page}");
    }

    #[test]
    fn figures_are_written_for_people() {
        assert_eq!([grouped(0), grouped(999), grouped(1000), grouped(1_234_567)], ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([seconds(2.54), seconds(10.0), seconds(150.0)], ["2.5s", "10s", "2m30s"]);
    }
}
