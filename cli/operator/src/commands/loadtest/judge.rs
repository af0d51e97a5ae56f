//! Objectives against what was measured.

use hdrhistogram::Histogram;
use meshctl_load::Outcome as Measured;
use meshctl_model::slo::{self, Measure, Objective, Statistic};

use super::target::Target;
use crate::failure::Failure;
use crate::show::load::{LedgerChange, SloVerdict};
use crate::show::milliseconds;

/// What must hold, and of what.
#[derive(Debug)]
pub(super) struct Objectives(Vec<(Of, Objective)>);

/// Of what something is expected.
#[derive(Clone, Debug)]
enum Of {
    /// Everything that was sent, because the command line says so.
    Whole,
    /// One flow, because the topology says so: its place among the plan's requests, and its name.
    Flow(usize, String),
}

impl Objectives {
    /// Those asked for; else those of the topology for the flows that are sent.
    ///
    /// # Errors
    /// An objective about effects, where nothing is followed to its effect.
    pub(super) fn of(asked: &[Vec<Objective>], target: &Target) -> Result<Self, Failure> {
        let mut wanted: Vec<(Of, Objective)> = asked.iter().flatten().map(|one| (Of::Whole, one.clone())).collect();
        if asked.is_empty() {
            for (place, (flow, expected)) in target.expected().iter().enumerate() {
                for text in expected {
                    // The daemon took it, so that only another version's language can fail here.
                    let read = slo::parse(text).map_err(|fault| {
                        Failure::usage(format!("the objective `{text}` of {flow}: {fault}"))
                            .hint("name others with --slo")
                    })?;
                    wanted.extend(read.into_iter().map(|one| (Of::Flow(place, flow.clone()), one)));
                }
            }
        }
        let follows = target.requests().iter().any(|request| request.completion.is_some());
        match wanted.iter().find(|(_, one)| one.measure.is_asynchronous()) {
            Some((_, one)) if !follows => {
                Err(Failure::usage(format!("`{one}` is about effects, and this run does not wait for any"))
                    .hint("name a flow that has `asynchronous:`, and add --async"))
            }
            _ => Ok(Self(wanted)),
        }
    }

    /// Nothing is judged by an invalid run.
    pub(super) fn judge(&self, measured: &Measured, ledger: Option<&LedgerChange>) -> Vec<SloVerdict> {
        let is_valid = measured.report.validity.valid;
        let verdict = |(of, one): &(Of, Objective)| {
            let (seen, flow) = match of {
                Of::Whole => (Seen::all(measured, ledger), None),
                Of::Flow(place, name) => (Seen::of(measured, *place, ledger), Some(name.clone())),
            };
            let actual = seen.actual(one.measure);
            SloVerdict {
                expression: one.text.clone(),
                flow,
                met: is_valid.then(|| one.is_met(actual)),
                actual: is_valid.then(|| written(one.measure, actual)),
            }
        };
        self.0.iter().map(verdict).collect()
    }
}

/// What objectives are about.
struct Seen<'m> {
    requests: u64,
    succeeded: u64,
    per_s: f64,
    incomplete: u64,
    /// Messages that are nowhere: of which flow they were is not known.
    missing: u64,
    corrected: &'m Histogram<u64>,
    completion: &'m Histogram<u64>,
}

impl<'m> Seen<'m> {
    fn all(measured: &'m Measured, ledger: Option<&LedgerChange>) -> Self {
        let report = &measured.report;
        Self {
            requests: report.requests,
            succeeded: report.succeeded,
            per_s: report.achieved_per_s,
            incomplete: report.incomplete,
            missing: ledger.map_or(0, |ledger| ledger.missing.unsigned_abs()),
            corrected: &measured.corrected,
            completion: &measured.completion,
        }
    }

    fn of(measured: &'m Measured, place: usize, ledger: Option<&LedgerChange>) -> Self {
        let all = Self::all(measured, ledger);
        match measured.shares.get(place) {
            // What was never taken from the schedule is of no flow, and must not be forgotten where there is only one.
            Some(share) if measured.shares.len() > 1 => Self {
                requests: share.requests,
                succeeded: share.succeeded,
                per_s: share.succeeded as f64 / measured.report.duration_s,
                incomplete: share.incomplete,
                corrected: &share.corrected,
                completion: &share.completion,
                ..all
            },
            _ => all,
        }
    }

    /// In the unit of the measure's limit; `NaN` where there is nothing to measure.
    fn actual(&self, measure: Measure) -> f64 {
        let failures = self.requests.saturating_sub(self.succeeded) as f64;
        match measure {
            Measure::Latency(statistic) => latency(self.corrected, 0, statistic),
            // What never showed is later than everything that did.
            Measure::Visible(statistic) => latency(self.completion, self.incomplete, statistic),
            Measure::ErrorShare => failures / self.requests as f64,
            Measure::Errors => failures,
            Measure::Rate => self.per_s,
            Measure::Lost => self.incomplete.max(self.missing) as f64,
        }
    }
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
    fn in_a_mix_a_flow_is_judged_by_its_own_share() {
        let mut measured = crate::show::load::tests::measured();
        let share = |ms: u64, requests: u64| {
            let mut corrected = Histogram::<u64>::new(3).expect("three digits");
            corrected.record(ms * 1_000_000).expect("it grows");
            let completion = Histogram::new(3).expect("three digits");
            meshctl_load::Share { requests, succeeded: 1, incomplete: 0, corrected, completion }
        };
        measured.shares = vec![share(1, 1), share(90, 4)];
        let one = |text: &str| slo::parse(text).expect("it reads").remove(0);
        let of = |place: usize| Of::Flow(place, ["fast", "slow"][place].to_owned());
        let wanted = ["p99 < 50ms", "errors = 0"].map(one);
        let wanted =
            wanted.iter().flat_map(|one| [(of(0), one.clone()), (of(1), one.clone()), (Of::Whole, one.clone())]);
        let met = |measured: &Measured| -> Vec<Option<bool>> {
            let objectives = Objectives(wanted.clone().collect());
            objectives.judge(measured, None).into_iter().map(|verdict| verdict.met).collect()
        };
        let (yes, no) = (Some(true), Some(false));
        assert_eq!(met(&measured), [yes, no, yes, yes, no, no]);
        measured.report.validity.valid = false;
        assert_eq!(met(&measured), [None; 6], "an invalid run judges nothing");
    }

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
