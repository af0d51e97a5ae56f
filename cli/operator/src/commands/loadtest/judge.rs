//! Objectives against what was measured.

use hdrhistogram::Histogram;
use meshctl_load::Outcome as Measured;
use meshctl_load::report::Report;
use meshctl_model::slo::{self, Measure, Objective, Statistic};

use super::target::Target;
use crate::failure::Failure;
use crate::show::load::{LedgerChange, SloVerdict};
use crate::show::milliseconds;

/// What must hold, and of which flow the topology says so.
#[derive(Debug)]
pub(super) struct Objectives {
    wanted: Vec<(Option<String>, Objective)>,
    notes: Vec<String>,
}

impl Objectives {
    /// Those asked for; else those of the topology. Where several flows are mixed, what is expected of each is not measured:
    /// latencies are of all of them together.
    ///
    /// # Errors
    /// An objective about effects, where nothing is followed to its effect.
    pub(super) fn of(asked: &[Vec<Objective>], target: &Target) -> Result<Self, Failure> {
        let mut notes = Vec::new();
        let wanted: Vec<(Option<String>, Objective)> = if asked.is_empty() {
            let mut wanted = Vec::new();
            if let [(flow, expected)] = target.expected() {
                for text in expected {
                    // The daemon took it, so that only another version's language can fail here.
                    let read = slo::parse(text).map_err(|fault| {
                        Failure::usage(format!("the objective `{text}` of {flow}: {fault}"))
                            .hint("name others with --slo")
                    })?;
                    wanted.extend(read.into_iter().map(|one| (Some(flow.clone()), one)));
                }
            } else if target.expected().iter().any(|(_, expected)| !expected.is_empty()) {
                notes.push(
                    "objectives are of one flow, and this run mixes several: name one flow, or say what must hold with --slo".into(),
                );
            }
            wanted
        } else {
            asked.iter().flatten().map(|one| (None, one.clone())).collect()
        };
        let follows = target.requests().iter().any(|request| request.completion.is_some());
        match wanted.iter().find(|(_, one)| one.measure.is_asynchronous()) {
            Some((_, one)) if !follows => {
                Err(Failure::usage(format!("`{one}` is about effects, and this run does not wait for any"))
                    .hint("name a flow that has `asynchronous:`, and add --async"))
            }
            _ => Ok(Self { wanted, notes }),
        }
    }

    /// What is worth saying before it begins.
    pub(super) fn notes(&self) -> impl Iterator<Item = &str> {
        self.notes.iter().map(String::as_str)
    }

    /// Nothing is judged by an invalid run.
    pub(super) fn judge(&self, measured: &Measured, ledger: Option<&LedgerChange>) -> Vec<SloVerdict> {
        let verdict = |(flow, one): &(Option<String>, Objective)| {
            let actual = actual(one.measure, measured, ledger);
            SloVerdict {
                expression: one.text.clone(),
                flow: flow.clone(),
                met: measured.report.validity.valid.then(|| one.is_met(actual)),
                actual: measured.report.validity.valid.then(|| written(one.measure, actual)),
            }
        };
        self.wanted.iter().map(verdict).collect()
    }
}

/// In the unit of the measure's limit; `NaN` where there is nothing to measure.
fn actual(measure: Measure, measured: &Measured, ledger: Option<&LedgerChange>) -> f64 {
    let report = &measured.report;
    match measure {
        Measure::Latency(statistic) => latency(&measured.corrected, 0, statistic),
        // What never showed is later than everything that did.
        Measure::Visible(statistic) => latency(&measured.completion, report.incomplete, statistic),
        Measure::ErrorShare => failures(report) as f64 / report.requests as f64,
        Measure::Errors => failures(report) as f64,
        Measure::Rate => report.achieved_per_s,
        Measure::Lost => report.incomplete.max(ledger.map_or(0, |ledger| ledger.missing.unsigned_abs())) as f64,
    }
}

fn failures(report: &Report) -> u64 {
    report.requests.saturating_sub(report.succeeded)
}

/// Milliseconds, among the values of `histogram` and `never` that are later than all of them.
fn latency(histogram: &Histogram<u64>, never: u64, statistic: Statistic) -> f64 {
    let known = histogram.len();
    if known + never == 0 {
        return f64::NAN;
    }
    let ms = |nanoseconds: f64| nanoseconds / 1e6;
    match statistic {
        Statistic::Mean | Statistic::Max if never > 0 => f64::INFINITY,
        Statistic::Mean => ms(histogram.mean()),
        Statistic::Max => ms(histogram.max() as f64),
        Statistic::Percentile(percent) => {
            let rank = (percent / 100.0 * (known + never) as f64).ceil();
            if rank > known as f64 {
                f64::INFINITY
            } else {
                ms(histogram.value_at_quantile(rank / known as f64) as f64)
            }
        }
    }
}

fn written(measure: Measure, actual: f64) -> String {
    match measure {
        _ if actual.is_nan() => "nothing measured".into(),
        _ if actual.is_infinite() => "never".into(),
        Measure::Latency(_) | Measure::Visible(_) => milliseconds(actual),
        Measure::ErrorShare => format!("{:.3}%", actual * 100.0),
        Measure::Rate => format!("{}/s", actual.round()),
        Measure::Errors | Measure::Lost => format!("{actual}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_never_showed_is_later_than_all_that_did() {
        let mut shown = Histogram::<u64>::new(3).expect("three digits");
        (1..=99).for_each(|ms| shown.record(ms * 1_000_000).expect("it grows"));
        let at = |never, percent| latency(&shown, never, Statistic::Percentile(percent));
        assert!((at(1, 99.0) - 99.0).abs() < 0.1, "{}", at(1, 99.0));
        assert!((at(0, 50.0) - 50.0).abs() < 0.1, "{}", at(0, 50.0));
        assert!(at(2, 99.0).is_infinite() && latency(&shown, 1, Statistic::Max).is_infinite());
        let empty = Histogram::<u64>::new(3).expect("three digits");
        assert!(latency(&empty, 0, Statistic::Mean).is_nan() && latency(&empty, 5, Statistic::Mean).is_infinite());
    }
}
