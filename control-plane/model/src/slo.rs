//! Service level objectives: `p99 < 200ms, errors < 0.1%`.
//!
//! An objective is a measure, a comparison and a limit; several are joined by commas. Measures are `p50`, `p99.9` and any other
//! percentile, `mean`, `max` (of latencies), the same after `visible` (of the time until an effect shows), `errors` (a share
//! where the limit is a percentage, else a count), `rate` (successes per second) and `lost` (effects that never showed).

use std::fmt;

use crate::units::{Percent, Rate, Span};

/// One objective.
#[derive(Clone, Debug, PartialEq)]
pub struct Objective {
    pub measure: Measure,
    pub comparison: Comparison,
    /// Milliseconds, a share (0.001 is 0.1%), a rate per second, or a count: whatever the measure is in.
    pub limit: f64,
    /// As it was written, with single spaces.
    pub text: String,
}

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Measure {
    /// Milliseconds from the intended send time to the answer, successes only.
    Latency(Statistic),
    /// Milliseconds until the effect shows.
    Visible(Statistic),
    /// Failures as a share of all requests.
    ErrorShare,
    /// Failures.
    Errors,
    /// Successes per second.
    Rate,
    /// Accepted, and their effect never showed.
    Lost,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Statistic {
    /// In percent: 99.9.
    Percentile(f64),
    Mean,
    Max,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    Less,
    AtMost,
    More,
    AtLeast,
    Equal,
}

/// Why a text is no objective.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Where it begins, in bytes.
    pub at: usize,
    pub message: String,
    pub help: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.message, self.help)
    }
}

/// Longest first, so that `<=` is not read as `<`.
const COMPARISONS: [(&str, Comparison); 8] = [
    ("<=", Comparison::AtMost),
    (">=", Comparison::AtLeast),
    ("==", Comparison::Equal),
    ("≤", Comparison::AtMost),
    ("≥", Comparison::AtLeast),
    ("<", Comparison::Less),
    (">", Comparison::More),
    ("=", Comparison::Equal),
];

/// Reads `text` as objectives joined by commas; at least one.
///
/// # Errors
/// The first thing that is wrong, and where.
pub fn parse(text: &str) -> Result<Vec<Objective>, Fault> {
    let mut at = 0;
    let mut objectives = Vec::new();
    for part in text.split(',') {
        let start = at + (part.len() - part.trim_start().len());
        objectives.push(objective(part.trim(), start)?);
        at += part.len() + 1;
    }
    Ok(objectives)
}

fn objective(text: &str, at: usize) -> Result<Objective, Fault> {
    let fault = |at, message: String, help: &str| Fault { at, message, help: help.into() };
    if text.is_empty() {
        return Err(fault(at, "an objective is missing".into(), "write one such as `p99 < 200ms`"));
    }
    let found = text.char_indices().find_map(|(start, _)| {
        let sign = COMPARISONS.iter().find(|(sign, _)| text[start..].starts_with(sign))?;
        Some((start, *sign))
    });
    let Some((start, (sign, comparison))) = found else {
        return Err(fault(at, format!("`{text}` compares nothing"), "write one of < <= > >= =, as in `p99 < 200ms`"));
    };
    let (left, right) = (text[..start].trim_end(), &text[start + sign.len()..]);
    let words: Vec<&str> = left.split_whitespace().collect();
    let measure = match *words.as_slice() {
        ["errors"] if right.contains('%') => Some(Measure::ErrorShare),
        ["errors"] => Some(Measure::Errors),
        ["rate"] => Some(Measure::Rate),
        ["lost"] => Some(Measure::Lost),
        ["visible", word] => statistic(word).map(Measure::Visible),
        ["latency", word] | [word] => statistic(word).map(Measure::Latency),
        _ => None,
    };
    let Some(measure) = measure else {
        let help = "measures are p50, p99, p99.9, mean, max, errors, rate, and of asynchronous flows visible p99, lost";
        return Err(fault(at, format!("`{left}` is not a measure"), help));
    };
    let (value, indent) = (right.trim(), right.len() - right.trim_start().len());
    let limit = match measure {
        Measure::Latency(_) | Measure::Visible(_) => value.parse::<Span>().map(|span| span.get().as_secs_f64() * 1e3),
        Measure::ErrorShare => value.parse::<Percent>().map(|share| share.0),
        Measure::Rate => value.parse::<Rate>().map(|rate| rate.0),
        Measure::Errors | Measure::Lost => match value.parse::<u32>() {
            Ok(count) => Ok(f64::from(count)),
            Err(_) => Err(format!("`{value}` is not a count")),
        },
    };
    let limit = limit.map_err(|why| {
        let (message, help) = match why.split_once(": ") {
            Some((message, help)) => (message.to_owned(), help.to_owned()),
            None => (why, "write a whole number, or of errors a percentage such as 0.1%".to_owned()),
        };
        Fault { at: at + start + sign.len() + indent, message, help }
    })?;
    Ok(Objective { measure, comparison, limit, text: format!("{} {sign} {value}", words.join(" ")) })
}

fn statistic(word: &str) -> Option<Statistic> {
    match word {
        "mean" => Some(Statistic::Mean),
        "max" => Some(Statistic::Max),
        _ => {
            let percent: f64 = word.strip_prefix('p')?.parse().ok()?;
            // `p999` is how many write 99.9: taken at its word it would be no percentile at all.
            let percent = if percent > 100.0 && percent < 1000.0 { percent / 10.0 } else { percent };
            (percent > 0.0 && percent < 100.0).then_some(Statistic::Percentile(percent))
        }
    }
}

impl Measure {
    /// Whether only a flow has it whose effect shows later.
    pub fn is_asynchronous(self) -> bool {
        matches!(self, Self::Visible(_) | Self::Lost)
    }
}

impl Objective {
    /// Whether `actual`, in the unit of the limit, is as it should be. What was not measured is `NaN`, and is not.
    pub fn is_met(&self, actual: f64) -> bool {
        match self.comparison {
            Comparison::Less => actual < self.limit,
            Comparison::AtMost => actual <= self.limit,
            Comparison::More => actual > self.limit,
            Comparison::AtLeast => actual >= self.limit,
            Comparison::Equal => (actual - self.limit).abs() < 1e-9,
        }
    }
}

impl fmt::Display for Objective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_reads() {
        let p = |percent| Statistic::Percentile(percent);
        for (text, measure, comparison, limit) in [
            ("p99 < 200ms", Measure::Latency(p(99.0)), Comparison::Less, 200.0),
            ("p99.9<=1.5s", Measure::Latency(p(99.9)), Comparison::AtMost, 1500.0),
            ("p999 < 1s", Measure::Latency(p(99.9)), Comparison::Less, 1000.0),
            ("mean < 5ms", Measure::Latency(Statistic::Mean), Comparison::Less, 5.0),
            ("latency max ≤ 2s", Measure::Latency(Statistic::Max), Comparison::AtMost, 2000.0),
            ("errors < 0.1%", Measure::ErrorShare, Comparison::Less, 0.001),
            ("errors = 0", Measure::Errors, Comparison::Equal, 0.0),
            ("rate > 1000/s", Measure::Rate, Comparison::More, 1000.0),
            ("visible p99 < 5s", Measure::Visible(p(99.0)), Comparison::Less, 5000.0),
            ("lost == 0", Measure::Lost, Comparison::Equal, 0.0),
        ] {
            let read = parse(text).unwrap_or_else(|fault| panic!("{text}: {fault}"));
            let [one] = read.as_slice() else { panic!("{read:?}") };
            assert_eq!((one.measure, one.comparison), (measure, comparison), "{text}");
            assert!((one.limit - limit).abs() < 1e-9, "{text}: {}", one.limit);
        }
        let several = parse("p99<200ms,  visible   p50 < 1s ,lost=0").expect("three");
        let texts: Vec<String> = several.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["p99 < 200ms", "visible p50 < 1s", "lost = 0"]);
    }

    #[test]
    fn what_is_wrong_is_said_where_it_stands() {
        for (text, at, says) in [
            ("", 0, "missing"),
            ("p99 < 1s,", 9, "missing"),
            ("p99", 0, "compares nothing"),
            ("p100 < 1s", 0, "`p100` is not a measure"),
            ("p99 < 1s, speed > 1", 10, "`speed` is not a measure"),
            ("p99 < 200", 6, "`200` is not a duration"),
            ("p99 < 1s, errors <  -1%", 20, "not a percentage"),
            ("rate > 1000", 7, "`1000` is not a rate"),
            ("lost = few", 7, "`few` is not a count"),
            ("p99 < < 1s", 6, "not a duration"),
        ] {
            let fault = parse(text).expect_err(text);
            assert_eq!(fault.at, at, "{text}: {fault}");
            assert!(fault.message.contains(says), "{text}: {fault}");
        }
    }

    #[test]
    fn limits_hold_as_they_are_written() {
        let met = |text: &str, actual: f64| parse(text).expect("it reads")[0].is_met(actual);
        assert!(met("p99 < 200ms", 199.9) && !met("p99 < 200ms", 200.0) && met("p99 <= 200ms", 200.0));
        assert!(met("rate > 10/s", 10.1) && !met("rate > 10/s", 10.0) && met("rate >= 600/m", 10.0));
        assert!(met("errors = 0", 0.0) && !met("errors = 0", 1.0) && met("errors < 0.1%", 0.000_9));
        assert!(!met("p99 < 200ms", f64::NAN) && !met("lost = 0", f64::NAN), "what was not measured is not met");
    }
}
