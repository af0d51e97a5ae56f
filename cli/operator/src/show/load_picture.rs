//! Latencies drawn in a terminal: the curve of percentiles, and how many requests took how long.

use std::fmt::Write as _;

use hdrhistogram::Histogram;

use super::load::grouped;
use super::milliseconds;

/// Lines of the curve.
const HEIGHT: usize = 8;
/// Left of it.
const MARGIN: usize = 9;
/// Nanoseconds in a millisecond.
const MS: f64 = 1e6;

/// Signs from empty to full, of a cell that fills from below, and of one that fills from the left.
fn rising(unicode: bool) -> &'static [char] {
    if unicode { &[' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'] } else { &[' ', '.', ':', '#'] }
}

fn growing(unicode: bool) -> &'static [char] {
    if unicode { &[' ', '▏', '▎', '▍', '▌', '▋', '▊', '▉', '█'] } else { &[' ', '#'] }
}

/// Latency over percentiles, with as much room for 90 to 99 as for 99 to 99.9: where the last matter, the rest does not show.
pub(super) fn curve(latencies: &Histogram<u64>, width: u16, unicode: bool) -> String {
    let columns = usize::from(width).saturating_sub(MARGIN + 2).max(10);
    // Beyond the last of so many requests there is nothing to see.
    let decades = (latencies.len() as f64).log10().ceil().clamp(1.0, 5.0);
    let quantile = |column: usize| 1.0 - 10_f64.powf(-decades * column as f64 / (columns - 1) as f64);
    let values: Vec<f64> =
        (0..columns).map(|column| latencies.value_at_quantile(quantile(column)) as f64 / MS).collect();
    let highest = values.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
    let signs = rising(unicode);
    let steps = signs.len() - 1;
    let mut text = String::new();
    for line in (0..HEIGHT).rev() {
        let label = match line {
            line if line + 1 == HEIGHT => milliseconds(highest),
            line if line + 1 == HEIGHT / 2 => milliseconds(highest / 2.0),
            _ => String::new(),
        };
        let cells = values.iter().map(|value| {
            let filled = value / highest * (HEIGHT * steps) as f64 - (line * steps) as f64;
            signs[(filled.round().max(0.0) as usize).min(steps)]
        });
        let cells: String = cells.collect();
        let _ = writeln!(text, "{label:>MARGIN$} {}", cells.trim_end());
    }
    let mut axis = vec![' '; columns + 1];
    for (name, share) in [("p0", 0.0), ("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999), ("p99.99", 0.9999)]
    {
        let at = (-(1.0_f64 - share).log10() / decades * (columns - 1) as f64).round() as usize;
        // The label that would not fit is the one whose column is not there either.
        if at + name.len() <= axis.len() {
            axis[at..at + name.len()].iter_mut().zip(name.chars()).for_each(|(cell, sign)| *cell = sign);
        }
    }
    let axis: String = axis.into_iter().collect();
    let _ = writeln!(text, "{:MARGIN$} {}", "", axis.trim_end());
    text
}

/// How many requests took how long, between edges that people count in.
pub(super) fn histogram(latencies: &Histogram<u64>, width: u16, unicode: bool) -> String {
    let (least, most) = (latencies.min().max(1) as f64, latencies.max().max(1) as f64);
    // Few powers of ten are cut finer.
    let steps: &[f64] = if (most / least).log10() <= 2.0 { &[1.0, 1.5, 2.0, 3.0, 5.0, 7.0] } else { &[1.0, 2.0, 5.0] };
    let mut edges: Vec<f64> =
        (0..=12).flat_map(|power| steps.iter().map(move |step| step * 10_f64.powi(power))).collect();
    let first = edges.iter().rposition(|edge| *edge <= least).unwrap_or(0);
    let last = edges.iter().position(|edge| *edge > most).unwrap_or(edges.len() - 1);
    edges = edges[first..=last].to_vec();
    let mut counts = vec![0_u64; edges.len() - 1];
    for value in latencies.iter_recorded() {
        let at = edges.partition_point(|edge| *edge <= value.value_iterated_to() as f64);
        let slots = counts.len();
        counts[at.saturating_sub(1).min(slots - 1)] += value.count_since_last_iteration();
    }
    let (all, largest) = (latencies.len() as f64, counts.iter().copied().max().unwrap_or(1).max(1) as f64);
    let (label, figures) = (MARGIN * 2 - 2, 9 + 8);
    let room = usize::from(width).saturating_sub(label + figures + 4).max(8);
    let signs = growing(unicode);
    let steps = signs.len() - 1;
    let dash = if unicode { "–" } else { "-" };
    let mut text = String::new();
    let (from, to) = (counts.iter().position(|count| *count > 0), counts.iter().rposition(|count| *count > 0));
    let rows = edges.windows(2).zip(&counts).take(to.map_or(0, |to| to + 1)).skip(from.unwrap_or(0));
    for (pair, count) in rows {
        let between = format!("{}{dash}{}", edge(pair[0], unicode), edge(pair[1], unicode));
        let mut filled = (*count as f64 / largest * (room * steps) as f64).round() as usize;
        // One request among a million shows, too.
        filled = filled.max(usize::from(*count > 0));
        let mut bar: String = std::iter::repeat_n(signs[steps], filled / steps).collect();
        if !filled.is_multiple_of(steps) {
            bar.push(signs[filled % steps]);
        }
        let share = *count as f64 / all * 100.0;
        let row = format!("{between:>label$} {:>9} {share:>6.2}% {bar}", grouped(*count));
        let _ = writeln!(text, "{}", row.trim_end());
    }
    text
}

/// An edge, in nanoseconds: they are round in some unit.
fn edge(nanoseconds: f64, unicode: bool) -> String {
    match nanoseconds {
        ns if ns < 1e3 => format!("{ns}ns"),
        ns if ns < MS => format!("{}{}", ns / 1e3, if unicode { "µs" } else { "us" }),
        ns => milliseconds(ns / MS),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: impl IntoIterator<Item = u64>) -> Histogram<u64> {
        let mut histogram = Histogram::new(3).expect("three digits");
        values.into_iter().for_each(|value| histogram.record(value).expect("it grows"));
        histogram
    }

    #[test]
    fn anything_can_be_drawn() {
        for histogram_of in [of([1]), of([3_000_000]), of([0, 1]), of([1, 60_000_000_000]), of(1..5000)] {
            for width in [50, 80, 120] {
                for unicode in [true, false] {
                    for text in [curve(&histogram_of, width, unicode), histogram(&histogram_of, width, unicode)] {
                        assert!(text.lines().all(|line| line.chars().count() <= width.into()), "{width}\n{text}");
                        assert!(unicode || text.is_ascii(), "{text}");
                    }
                }
            }
        }
    }

    #[test]
    fn every_request_is_in_one_row() {
        let text = histogram(&of((1..=1000).map(|n| n * 20_000)), 80, false);
        let counts: Vec<u64> =
            text.lines().filter_map(|line| line.split_whitespace().nth(1)?.replace(',', "").parse().ok()).collect();
        assert_eq!(counts.iter().sum::<u64>(), 1000, "{text}");
    }
}
