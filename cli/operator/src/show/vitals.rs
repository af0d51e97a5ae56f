//! The golden signals as a table: rate, errors, duration, saturation.

use meshctl_api::view::vitals::Signals;

use super::messages::{rate, size};
use super::milliseconds;
use crate::output::{Cell, Table};

/// From here on errors are what an operator looks at first.
const MANY_ERRORS: f64 = 0.05;

/// What each column of [`signals`] after the name says.
const COLUMNS: [&str; 6] = ["req/s", "errors", "p50", "p99", "in flight", "queued"];

/// A row for each of `things`, under `title`. Services have two columns more; `wide` adds what was refused.
pub(crate) fn signals(title: &str, things: &[Signals], wide: bool, header: bool) -> Table {
    let processes = things.iter().any(|thing| thing.memory_bytes.is_some());
    let mut titles = vec![title];
    titles.extend(COLUMNS);
    titles.extend(processes.then_some(["cpu", "memory"]).into_iter().flatten());
    titles.extend(wide.then_some("refused/s"));
    let mut table = if header { Table::new(titles) } else { Table::without_header() };
    for thing in things {
        let mut cells = vec![Cell::plain(&thing.name)];
        cells.extend(cells_of(thing));
        if processes {
            cells.push(Cell::maybe(thing.cpu_percent.map(|percent| format!("{percent:.0}%"))));
            cells.push(Cell::maybe(thing.memory_bytes.map(size)));
        }
        if wide {
            cells.push(Cell::plain(rate(thing.refused_per_s)));
        }
        table.row(cells);
    }
    table
}

/// One for each of [`COLUMNS`].
fn cells_of(thing: &Signals) -> [Cell; 6] {
    let queued = if thing.queued > 0 { Cell::careful(thing.queued) } else { Cell::plain(0) };
    [
        Cell::plain(rate(thing.requests_per_s)),
        errors(thing),
        Cell::maybe(thing.latency_p50_ms.map(milliseconds)),
        Cell::maybe(thing.latency_p99_ms.map(milliseconds)),
        Cell::plain(thing.in_flight),
        queued,
    ]
}

/// The share of requests that failed; `-` where there were none.
fn errors(thing: &Signals) -> Cell {
    match share(thing) {
        None => Cell::plain("-"),
        Some(0.0) => Cell::plain("0%"),
        Some(share) if share >= MANY_ERRORS => Cell::bad(percent(share)),
        Some(share) => Cell::careful(percent(share)),
    }
}

/// Errors among requests; `None` where there were none.
pub(crate) fn share(thing: &Signals) -> Option<f64> {
    (thing.requests_per_s > 0.0).then(|| (thing.errors_per_s / thing.requests_per_s).min(1.0))
}

/// `0.8%`, `12%`; something is never shown as nothing.
pub(crate) fn percent(share: f64) -> String {
    match 100.0 * share {
        0.0 => "0%".to_owned(),
        percent if percent < 0.1 => "<0.1%".to_owned(),
        percent if percent < 10.0 => format!("{percent:.1}%"),
        percent => format!("{percent:.0}%"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_errors_are_not_none() {
        assert_eq!([0.0, 0.0001, 0.0084, 0.5, 1.0].map(percent), ["0%", "<0.1%", "0.8%", "50%", "100%"]);
        assert_eq!(share(&Signals::default()), None);
    }
}
