//! The breaker under a seeded simulation, under threads, and step by step.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::SeqCst};

use meshctl_model::units::{Percent, Span};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;

const MS: u64 = 1_000_000;

fn policy() -> BreakerPolicy {
    BreakerPolicy {
        failure_ratio: Percent(0.5),
        minimum_requests: 4,
        window: Span::from_secs(1),
        open_for: Span::from_millis(200),
        probes: 2,
    }
}

type Seen = Arc<Mutex<Vec<(BreakerState, BreakerState)>>>;

fn observed() -> (Breaker, Seen) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&seen);
    (Breaker::new(move |t| told.lock().push((t.from, t.to))), seen)
}

#[test]
fn opens_probes_and_closes() {
    use BreakerState::{Closed, HalfOpen, Open};
    let (breaker, seen) = observed();
    let policy = policy();
    for _ in 0..4 {
        let ticket = breaker.admit(&policy, 0).expect("closed");
        breaker.record(&policy, ticket, Verdict::Failure, 0);
    }
    assert_eq!(breaker.admit(&policy, 0), Err(200 * MS));
    let first = breaker.admit(&policy, 200 * MS).expect("a probe");
    let second = breaker.admit(&policy, 200 * MS).expect("another");
    assert!(breaker.admit(&policy, 200 * MS).is_err(), "no third");
    breaker.record(&policy, first, Verdict::Unknown, 201 * MS);
    let third = breaker.admit(&policy, 201 * MS).expect("the first gave its place back");
    breaker.record(&policy, second, Verdict::Success, 202 * MS);
    assert!(breaker.admit(&policy, 202 * MS).is_err(), "one succeeded, one is out");
    breaker.record(&policy, third, Verdict::Success, 203 * MS);
    assert_eq!(breaker.state().0, Closed);
    assert_eq!(*seen.lock(), [(Closed, Open), (Open, HalfOpen), (HalfOpen, Closed)]);
    let ticket = breaker.admit(&policy, 204 * MS).expect("closed");
    breaker.record(&policy, ticket, Verdict::Failure, 204 * MS);
    assert_eq!(breaker.state().0, Closed, "what happened before it opened is forgotten");
}

#[test]
fn late_verdicts_say_nothing() {
    let (breaker, _) = observed();
    let policy = policy();
    let late = breaker.admit(&policy, 0).expect("closed");
    for _ in 0..4 {
        let ticket = breaker.admit(&policy, 0).expect("closed");
        breaker.record(&policy, ticket, Verdict::Failure, 0);
    }
    let probe = breaker.admit(&policy, 300 * MS).expect("a probe");
    breaker.record(&policy, late, Verdict::Failure, 300 * MS);
    assert_eq!(breaker.state().0, BreakerState::HalfOpen);
    breaker.record(&policy, probe, Verdict::Failure, 300 * MS);
    assert_eq!(breaker.state().0, BreakerState::Open);
}

/// Requests of random length with random verdicts over simulated hours; the model counts what the breaker must hold to.
#[test]
fn simulation_holds_the_invariants_for_every_seed() {
    for seed in 0..300 {
        let mut random = StdRng::seed_from_u64(seed);
        let (breaker, seen) = observed();
        let policy = policy();
        let mut now = 0;
        let mut out: Vec<(Ticket, bool)> = Vec::new();
        for _ in 0..3_000 {
            now += random.random_range(0..40) * MS;
            if random.random_bool(0.6) {
                let before = breaker.state().0;
                if let Ok(ticket) = breaker.admit(&policy, now) {
                    assert!(before != BreakerState::Open || breaker.state().0 == BreakerState::HalfOpen, "seed {seed}");
                    out.push((ticket, breaker.state().0 == BreakerState::HalfOpen));
                }
            } else if !out.is_empty() {
                let (ticket, _) = out.swap_remove(random.random_range(0..out.len()));
                let verdict = [Verdict::Success, Verdict::Failure, Verdict::Unknown][random.random_range(0..3)];
                breaker.record(&policy, ticket, verdict, now);
            }
            let present = breaker.phase.load(SeqCst);
            let probes = out.iter().filter(|(ticket, probe)| *probe && ticket.0 == present).count();
            assert!(probes <= policy.probes as usize, "seed {seed}: {probes} probes out");
        }
        // No sticking: when everything under way has ended, successes alone close it.
        for (ticket, _) in out.drain(..) {
            breaker.record(&policy, ticket, Verdict::Unknown, now);
        }
        for _ in 0..=policy.probes {
            now += 250 * MS;
            if let Ok(ticket) = breaker.admit(&policy, now) {
                breaker.record(&policy, ticket, Verdict::Success, now);
            }
        }
        assert_eq!(breaker.state().0, BreakerState::Closed, "seed {seed}");
        let told = seen.lock();
        assert!(told.windows(2).all(|pair| pair[0].1 == pair[1].0), "seed {seed}: {told:?}");
    }
}

#[test]
fn threads_never_exceed_the_probes() {
    let (breaker, seen) = observed();
    let policy = policy();
    let (clock, probing) = (AtomicU64::new(0), AtomicI64::new(0));
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (breaker, policy, clock, probing) = (&breaker, &policy, &clock, &probing);
            scope.spawn(move || {
                let mut random = StdRng::seed_from_u64(thread);
                for _ in 0..100_000 {
                    let now = clock.fetch_add(MS / 4, SeqCst);
                    let Ok(ticket) = breaker.admit(policy, now) else { continue };
                    let probe = ticket.0 & 3 == 2;
                    if probe {
                        // A probe that its phase outlived is no probe any more, hence the second look.
                        let out = probing.fetch_add(1, SeqCst) + 1;
                        assert!(out <= 2 || breaker.phase.load(SeqCst) != ticket.0, "{out} probes");
                    }
                    let verdict = if random.random_bool(0.5) { Verdict::Failure } else { Verdict::Success };
                    if probe {
                        probing.fetch_sub(1, SeqCst);
                    }
                    breaker.record(policy, ticket, verdict, now);
                }
            });
        }
    });
    let told = seen.lock();
    assert!(told.len() > 100, "it moved: {}", told.len());
    assert!(told.windows(2).all(|pair| pair[0].1 == pair[1].0), "observers see every transition once, in order");
    assert_eq!(told.last().map(|t| t.1), Some(breaker.state().0), "and the last one is the present state");
}
