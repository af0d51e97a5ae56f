//! Whether the numbers are the service's, and not the generator's own. Pure: evidence in, verdict out.
//!
//! The limits, and why:
//! - *Schedule lag*: 99 of 100 requests were taken from the schedule at most 10 ms late, or a tenth of the median latency where
//!   that is more: beyond it, a tenth of what is reported as latency would be the generator's.
//! - *Processor*: no thread of the generator used more than 95 % of a processor: at the top, the rate is the generator's own.
//! - *Connections*: all were open when the schedule began, and this machine never refused one (descriptors, ports).
//! - *Not sent*: at most 1 of 1,000 requests, the thousandth that p99.9 speaks about: those missing would have been the slowest.
//! - *Little's law*: throughput times mean time equals the mean number in flight within 5 %, from two separate books.

use crate::report::Validity;

const LAG_FLOOR_MS: f64 = 10.0;
const LAG_OF_MEDIAN: f64 = 0.1;
const BUSY: f64 = 0.95;
const NOT_SENT: f64 = 0.001;
const LITTLE: f64 = 0.05;

/// What a run says about its generator.
#[derive(Clone, Debug, Default)]
pub(crate) struct Evidence {
    pub open_loop: bool,
    pub measured_s: f64,
    pub requests: u64,
    pub not_sent: u64,
    pub lag_p99_ms: f64,
    /// Corrected, of successes.
    pub median_ms: f64,
    /// Of the busiest thread: the share of the measured time on a processor, and the share spent waiting for one.
    pub busiest: f64,
    pub waiting: f64,
    pub threads: usize,
    pub connections: u32,
    pub opened: u32,
    /// Why the others did not open, or why this machine refused connections later.
    pub connect_problem: Option<String>,
    pub refused_here: u64,
    /// Throughput times mean time, from the record of each request.
    pub recomputed_in_flight: f64,
    /// Counted at each change.
    pub in_flight_mean: f64,
}

pub(crate) fn judge(evidence: &Evidence) -> Validity {
    let e = evidence;
    let mut reasons = Vec::new();
    if e.measured_s <= 0.0 || e.requests == 0 {
        // Whatever else was wrong, there is nothing that it could have spoilt.
        let reason = format!(
            "nothing was measured: {} requests were due in {:.1} s; let it run longer, beyond its ramp and warm-up, or raise \
             the rate",
            e.requests, e.measured_s
        );
        return Validity { valid: false, reasons: vec![reason] };
    }
    let waited = match e.waiting {
        waiting if waiting >= 0.1 => format!(
            "; its busiest thread waited for a processor {:.0} % of the time: give the generator processors of its own, or \
             lower the rate",
            waiting * 100.0
        ),
        _ => "; lower the rate, or give it more threads or a faster machine".to_owned(),
    };
    let allowed = (e.median_ms * LAG_OF_MEDIAN).max(LAG_FLOOR_MS);
    if e.lag_p99_ms > allowed {
        reasons.push(format!(
            "the generator was behind its own schedule: by {:.1} ms for the latest of 100 requests, where {allowed:.1} ms are \
             allowed{waited}",
            e.lag_p99_ms
        ));
    }
    if e.busiest > BUSY {
        reasons.push(format!(
            "a thread of the generator used {:.0} % of a processor: the rate is the generator's, not the service's; give it \
             more than {} thread{} (and processors), or lower the rate",
            e.busiest * 100.0,
            e.threads,
            plural(e.threads as u64)
        ));
    }
    let why = e.connect_problem.as_deref().unwrap_or("no answer in time");
    if e.opened < e.connections {
        reasons.push(format!(
            "only {} of {} connections could be opened ({why}): ask for fewer, or let the service accept more",
            e.opened, e.connections
        ));
    }
    if e.refused_here > 0 {
        reasons.push(format!(
            "this machine refused {} connection{} ({why}): it ran out of descriptors or local ports; raise `ulimit -Hn`, widen \
             `sysctl net.ipv4.ip_local_port_range`, or ask for fewer connections",
            e.refused_here,
            plural(e.refused_here)
        ));
    }
    if e.not_sent as f64 > e.requests as f64 * NOT_SENT {
        let share = e.not_sent as f64 / e.requests as f64 * 100.0;
        let remedy = match e.open_loop {
            true => "all connections were waiting for answers: open more connections, or lower the rate",
            false => "lower the number of connections",
        };
        reasons.push(format!("{} of {} requests ({share:.1} %) were never sent: {remedy}", e.not_sent, e.requests));
    }
    let difference = (e.recomputed_in_flight - e.in_flight_mean).abs();
    if difference > LITTLE * e.in_flight_mean.max(e.recomputed_in_flight) {
        reasons.push(format!(
            "the record contradicts itself: throughput times mean time gives {:.1} requests in flight, and {:.1} were counted \
             (Little's law; 5 % are allowed): please report this as a bug of the generator",
            e.recomputed_in_flight, e.in_flight_mean
        ));
    }
    Validity { valid: reasons.is_empty(), reasons }
}

fn plural(count: u64) -> &'static str {
    if count == 1 { "" } else { "s" }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Evidence {
        Evidence {
            open_loop: true,
            measured_s: 10.0,
            requests: 10_000,
            lag_p99_ms: 1.0,
            median_ms: 5.0,
            busiest: 0.5,
            threads: 2,
            connections: 100,
            opened: 100,
            recomputed_in_flight: 5.0,
            in_flight_mean: 5.1,
            ..Evidence::default()
        }
    }

    /// The only reason why it is invalid.
    fn reason(change: impl FnOnce(&mut Evidence)) -> String {
        let mut evidence = good();
        change(&mut evidence);
        let Validity { valid, mut reasons } = judge(&evidence);
        assert!(!valid && reasons.len() == 1, "{reasons:?}");
        reasons.remove(0)
    }

    #[test]
    fn a_generator_that_kept_up_is_valid() {
        assert_eq!(judge(&good()), Validity { valid: true, reasons: Vec::new() });
    }

    #[test]
    fn each_weakness_alone_makes_it_invalid_and_is_named_with_numbers() {
        assert!(reason(|e| e.lag_p99_ms = 10.1).contains("by 10.1 ms for the latest of 100 requests, where 10.0 ms"));
        assert!(reason(|e| (e.lag_p99_ms, e.waiting) = (99.0, 0.4)).contains("waited for a processor 40 %"));
        assert!(reason(|e| e.busiest = 0.96).contains("used 96 % of a processor"));
        assert!(reason(|e| e.opened = 99).contains("only 99 of 100 connections"));
        assert!(reason(|e| e.refused_here = 1).contains("this machine refused 1 connection ("));
        assert!(reason(|e| e.not_sent = 11).contains("11 of 10000 requests (0.1 %) were never sent"));
        assert!(reason(|e| e.recomputed_in_flight = 4.0).contains("Little's law"));
        assert!(reason(|e| e.requests = 0).contains("nothing was measured"));
    }

    #[test]
    fn lag_may_be_a_tenth_of_a_slow_services_latency() {
        let slow = Evidence { median_ms: 200.0, lag_p99_ms: 19.0, ..good() };
        assert!(judge(&slow).valid);
        assert!(!judge(&Evidence { lag_p99_ms: 21.0, ..slow }).valid);
    }

    #[test]
    fn at_the_limits_it_is_still_valid() {
        let edge = Evidence {
            lag_p99_ms: 10.0,
            busiest: 0.95,
            not_sent: 10,
            recomputed_in_flight: 95.0,
            in_flight_mean: 100.0,
            ..good()
        };
        assert!(judge(&edge).valid, "{:?}", judge(&edge));
    }
}
