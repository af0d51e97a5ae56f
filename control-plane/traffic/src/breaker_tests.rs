//! The breaker under a seeded simulation, under threads, and step by step.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::SeqCst};

use meshctl_model::snapshot::Forced;
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
    assert_eq!(breaker.admit(&policy, 0), Err(Refused { wait: 200 * MS, forced: false, reason: None }));
    let first = breaker.admit(&policy, 200 * MS).expect("a probe");
    let second = breaker.admit(&policy, 200 * MS).expect("another");
    assert!(breaker.admit(&policy, 200 * MS).is_err(), "no third");
    breaker.record(&policy, first, Verdict::Unknown, 201 * MS);
    let third = breaker.admit(&policy, 201 * MS).expect("the first gave its place back");
    breaker.record(&policy, second, Verdict::Success, 202 * MS);
    assert!(breaker.admit(&policy, 202 * MS).is_err(), "one succeeded, one is out");
    breaker.record(&policy, third, Verdict::Success, 203 * MS);
    assert_eq!(breaker.state(), Closed);
    assert_eq!(*seen.lock(), [(Closed, Open), (Open, HalfOpen), (HalfOpen, Closed)]);
    let ticket = breaker.admit(&policy, 204 * MS).expect("closed");
    breaker.record(&policy, ticket, Verdict::Failure, 204 * MS);
    assert_eq!(breaker.state(), Closed, "what happened before it opened is forgotten");
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
    assert_eq!(breaker.state(), BreakerState::HalfOpen);
    breaker.record(&policy, probe, Verdict::Failure, 300 * MS);
    assert_eq!(breaker.state(), BreakerState::Open);
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
                let before = breaker.state();
                if let Ok(ticket) = breaker.admit(&policy, now) {
                    assert!(before != BreakerState::Open || breaker.state() == BreakerState::HalfOpen, "seed {seed}");
                    out.push((ticket, breaker.state() == BreakerState::HalfOpen));
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
        assert_eq!(breaker.state(), BreakerState::Closed, "seed {seed}");
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
                    let probe = state_of(ticket.0) == BreakerState::HalfOpen;
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
    assert_eq!(told.last().map(|t| t.1), Some(breaker.state()), "and the last one is the present state");
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_900_000_000 + second).expect("a time")
}

/// Of the second `since`, for `seconds` or for ever.
fn force(state: Forced, since: i64, seconds: Option<i64>) -> Override {
    let expires_at = seconds.map(|seconds| at(since + seconds));
    Override { state, reason: Some(format!("since {since}")), by: "ann".into(), since: at(since), expires_at }
}

/// Lets `count` requests fail; how many were let through.
fn fail(breaker: &Breaker, count: usize, now: u64) -> usize {
    let tickets: Vec<_> = (0..count).filter_map(|_| breaker.admit(&policy(), now).ok()).collect();
    tickets.iter().for_each(|ticket| breaker.record(&policy(), *ticket, Verdict::Failure, now));
    tickets.len()
}

#[test]
fn forced_open_refuses_with_the_operators_words_until_its_time_is_over() {
    use BreakerState::{Closed, ForcedOpen};
    let (breaker, seen) = observed();
    breaker.rule(Some(&force(Forced::Open, 0, Some(60))), 0, 0, at(0));
    let refused = breaker.admit(&policy(), 1_000_000 * MS).expect_err("however long it has been open");
    assert_eq!((refused.forced, refused.reason.as_deref()), (true, Some("since 0")));
    assert!(refused.wait > 0);
    assert_eq!(breaker.expire(0, at(59)), Some(at(60)));
    breaker.rule(Some(&force(Forced::Open, 0, Some(60))), 0, 0, at(59));
    assert_eq!(breaker.state(), ForcedOpen, "said again");
    assert_eq!(breaker.expire(0, at(60)), None);
    assert_eq!(breaker.expire(0, at(61)), None);
    breaker.rule(Some(&force(Forced::Open, 0, Some(60))), 0, 0, at(61));
    assert_eq!(breaker.state(), Closed, "a snapshot that still says it says nothing");
    assert_eq!(*seen.lock(), [(Closed, ForcedOpen), (ForcedOpen, Closed)]);
    assert_eq!(breaker.sight(&policy(), 0).reason.as_deref(), Some("its time is over"));
}

#[test]
fn what_is_forced_for_ever_ends_when_it_is_taken_back() {
    let (breaker, _) = observed();
    breaker.rule(Some(&force(Forced::Open, 0, None)), 0, 0, at(0));
    assert_eq!(breaker.expire(0, at(1_000_000)), None);
    let refused = breaker.admit(&policy(), 0).expect_err("for ever");
    assert_eq!(refused.wait, FURTHER_NOTICE);
    breaker.rule(None, 0, 0, at(1));
    assert_eq!(breaker.state(), BreakerState::Closed);
    assert_eq!(breaker.sight(&policy(), 0).reason.as_deref(), Some("an operator took it back"));
}

#[test]
fn held_closed_it_says_what_it_would_have_done() {
    let (breaker, seen) = observed();
    breaker.rule(Some(&force(Forced::Closed, 0, None)), 0, 0, at(0));
    assert_eq!(fail(&breaker, 50, 0), 50);
    let sight = breaker.sight(&policy(), 0);
    assert_eq!(sight.state, BreakerState::ForcedClosed);
    assert_eq!(sight.would_open.as_deref(), Some("50 of 50 requests failed within 1s"));
    assert_eq!(breaker.sight(&policy(), 5_000 * MS).would_open, None, "not any more");
    breaker.rule(None, 0, 0, at(1));
    assert_eq!(fail(&breaker, 3, 0), 3, "it begins anew");
    assert_eq!(breaker.state(), BreakerState::Closed);
    fail(&breaker, 1, 0);
    assert_eq!(breaker.state(), BreakerState::Open, "and judges again");
    assert_eq!(seen.lock().len(), 3);
}

#[test]
fn another_epoch_closes_it_and_forgets() {
    let (breaker, _) = observed();
    breaker.rule(None, 7, 0, at(0));
    fail(&breaker, 4, 0);
    breaker.rule(None, 7, 0, at(1));
    assert_eq!(breaker.state(), BreakerState::Open, "the same epoch says nothing");
    breaker.rule(None, 8, 0, at(2));
    assert_eq!(breaker.state(), BreakerState::Closed);
    assert_eq!(breaker.sight(&policy(), 0).reason.as_deref(), Some("an operator reset it"));
    assert_eq!(fail(&breaker, 3, 0), 3);
    breaker.rule(None, 9, 0, at(3));
    assert_eq!(fail(&breaker, 3, 0), 3, "a closed one forgets as well");
    assert_eq!(breaker.state(), BreakerState::Closed);
}

/// Requests, operators and a wall clock that jumps, in any order: while something is forced nothing else happens, and each
/// override ends once.
#[test]
fn forced_states_hold_for_every_seed() {
    for seed in 0..300 {
        let mut random = StdRng::seed_from_u64(seed);
        let (breaker, seen) = observed();
        let policy = policy();
        let (mut now, mut wall, mut epoch) = (0, 0i64, 0);
        let mut wanted: Option<Override> = None;
        let mut out = Vec::new();
        for _ in 0..3_000 {
            now += random.random_range(0..40) * MS;
            wall += random.random_range(0..3);
            if random.random_bool(0.01) {
                wall += random.random_range(-50..50);
            }
            match random.random_range(0..100) {
                0..3 => {
                    let state = if random.random_bool(0.5) { Forced::Open } else { Forced::Closed };
                    let ttl = random.random_bool(0.7).then(|| random.random_range(1..30));
                    wanted = Some(force(state, wall, ttl));
                }
                3..5 => wanted = None,
                5..7 => epoch += 1,
                7..20 => drop(breaker.expire(now, at(wall))),
                20..60 => {
                    if let Ok(ticket) = breaker.admit(&policy, now) {
                        assert_ne!(breaker.state(), BreakerState::ForcedOpen, "seed {seed}");
                        out.push(ticket);
                    } else {
                        assert_ne!(breaker.state(), BreakerState::ForcedClosed, "seed {seed}");
                    }
                }
                _ if out.is_empty() => {}
                _ => {
                    let ticket = out.swap_remove(random.random_range(0..out.len()));
                    let verdict = [Verdict::Success, Verdict::Failure, Verdict::Unknown][random.random_range(0..3)];
                    let before = breaker.state();
                    breaker.record(&policy, ticket, verdict, now);
                    let forced = matches!(before, BreakerState::ForcedOpen | BreakerState::ForcedClosed);
                    assert!(!forced || breaker.state() == before, "seed {seed}: no verdict moves it");
                }
            }
            // As snapshots come: often, and mostly with nothing new.
            if random.random_bool(0.3) {
                breaker.rule(wanted.as_ref(), epoch, now, at(wall));
                let forced = wanted.as_ref().filter(|force| !force.is_over(at(wall))).map(|force| force.state.into());
                let present = Some(breaker.state()).filter(|state| bits_of(*state) & FORCED != 0);
                assert_eq!(present, forced, "seed {seed}");
            }
        }
        let told = seen.lock();
        assert!(told.windows(2).all(|pair| pair[0].1 == pair[1].0), "seed {seed}: {told:?}");
        assert!(told.iter().all(|(from, to)| from != to), "seed {seed}: {told:?}");
        let forced = |state: &BreakerState| bits_of(*state) & FORCED != 0;
        let left = told.iter().filter(|(from, to)| forced(from) && !forced(to));
        assert!(left.into_iter().all(|(_, to)| *to == BreakerState::Closed), "seed {seed}: it begins anew");
    }
}

#[test]
fn threads_see_nothing_through_a_forced_breaker_and_one_end_of_it() {
    const ROUNDS: i64 = 2_000;
    let (breaker, seen) = observed();
    let (policy, clock) = (policy(), AtomicU64::new(0));
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let (breaker, policy, clock, done) = (&breaker, &policy, &clock, &done);
            scope.spawn(move || {
                let mut random = StdRng::seed_from_u64(thread);
                while !done.load(SeqCst) {
                    let now = clock.fetch_add(MS / 4, SeqCst);
                    if let Ok(ticket) = breaker.admit(policy, now) {
                        assert_ne!(state_of(ticket.0), BreakerState::ForcedOpen);
                        let verdict = if random.random_bool(0.7) { Verdict::Failure } else { Verdict::Success };
                        breaker.record(policy, ticket, verdict, now);
                    }
                }
            });
        }
        for round in 0..ROUNDS {
            let state = if round % 2 == 0 { Forced::Open } else { Forced::Closed };
            let wanted = force(state, round * 10, Some(5));
            breaker.rule(Some(&wanted), 0, clock.load(SeqCst), at(round * 10));
            for _ in 0..20 {
                assert_eq!(breaker.state(), state.into(), "whatever the others do");
                assert_eq!(breaker.admit(&policy, clock.load(SeqCst)).is_ok(), state == Forced::Closed);
            }
            // Two that see its time pass at once, as the timer and a snapshot may.
            std::thread::scope(|scope| {
                scope.spawn(|| breaker.expire(clock.load(SeqCst), at(round * 10 + 5)));
                scope.spawn(|| breaker.rule(Some(&wanted), 0, clock.load(SeqCst), at(round * 10 + 5)));
            });
        }
        done.store(true, SeqCst);
    });
    let told = seen.lock();
    let ends = told.iter().filter(|(from, _)| bits_of(*from) & FORCED != 0).count();
    assert_eq!(ends, usize::try_from(ROUNDS).expect("few"), "each ends once");
    assert!(told.windows(2).all(|pair| pair[0].1 == pair[1].0), "observers see every transition once, in order");
}
