//! One run from the plan to the report: checks what can be checked before, starts a thread for each share, tells how far it is,
//! and draws up the account.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use jiff::Timestamp;

use crate::plan::{Arrivals, Plan};
use crate::poller::monotonic;
use crate::progress::{Control, Gauge};
use crate::report::Tick;
use crate::schedule::{Window, nanos};
use crate::template::{self, Compiled};
use crate::ticks::Ticks;
use crate::worker::{ASKERS, Harvest, Worker};
use crate::{LoadError, Outcome, Stop, account, limits};

const TICK: Duration = Duration::from_millis(250);
/// How often the caller looks whether it is over.
const LOOK: Duration = Duration::from_millis(10);
/// From when everything is open until the first request: every thread must have heard of it.
const HEAD_START: Duration = Duration::from_millis(30);

/// Runs `plan` to its end, or until `stop`; `on_tick` hears of it four times a second, on the caller's thread.
///
/// Raises this process's limit of descriptors as far as the plan needs. Blocks, at the longest for the connections to open,
/// ramp, warm-up, duration and timeout together, and the `within` of a completion.
pub fn run(plan: &Plan, stop: &Stop, mut on_tick: impl FnMut(Tick)) -> Result<Outcome, LoadError> {
    let plan = checked(plan)?;
    let templates = template::compile(&plan)?;
    let askers = match templates.iter().any(|template| template.completion.is_some()) {
        true => ASKERS * plan.threads as u32,
        false => 0,
    };
    limits::raise_descriptors(plan.connections, askers)?;
    let sources = limits::sources(plan.address, plan.connections + askers)?;
    let control = Control::new(Window::of(&plan).to);
    let gauges = (0..plan.threads).map(|_| Gauge::default()).collect();
    let shared = Arc::new(Shared { plan, templates, sources, control, gauges });
    let threads = spawn(&shared)?;
    let mut ticks = Ticks::new(&shared.plan, &shared.gauges);
    let is_over = || threads.iter().all(JoinHandle::is_finished);
    // A thread that ends before the schedule begins has met an error of the machine.
    let broken = || threads.iter().any(JoinHandle::is_finished);
    let opened = || shared.gauges.iter().all(|gauge| gauge.opened.load(Relaxed));

    wait(|| stop.is_stopped() || broken() || opened(), || on_tick(ticks.opening()));
    let none_open = shared.gauges.iter().all(|gauge| gauge.connections.load(Relaxed) == 0);
    if none_open || stop.is_stopped() || broken() {
        shared.control.cancel();
    }
    let start = monotonic() + nanos(HEAD_START);
    let started_at = Timestamp::now() + HEAD_START;
    shared.control.set_start(start);
    let elapsed = || monotonic().saturating_sub(start);
    wait(
        || {
            if stop.is_stopped() {
                // In a moment that no thread has reached yet, so that all agree on what was due.
                shared.control.stop_at(elapsed() + 2 * nanos(LOOK));
            }
            is_over()
        },
        || on_tick(ticks.running(elapsed(), shared.control.end())),
    );
    let harvests = threads.into_iter().map(join).collect::<Result<Vec<_>, _>>()?;
    on_tick(ticks.done(elapsed()));
    let problem = shared.gauges.iter().find_map(Gauge::take_problem);
    if none_open && !stop.is_stopped() {
        let source = problem.unwrap_or_else(|| io::ErrorKind::TimedOut.into());
        return Err(LoadError::Connect { address: shared.plan.address, source });
    }
    Ok(account::draw_up(&shared.plan, &shared.control, harvests, problem, started_at))
}

/// What the threads work with.
struct Shared {
    plan: Plan,
    templates: Vec<Compiled>,
    sources: Vec<std::net::IpAddr>,
    control: Control,
    gauges: Vec<Gauge>,
}

fn spawn(shared: &Arc<Shared>) -> Result<Vec<JoinHandle<io::Result<Harvest>>>, LoadError> {
    let spawned = (0..shared.plan.threads).map(|i| {
        let its = shared.clone();
        thread::Builder::new()
            .name(format!("load-{i}"))
            .spawn(move || Worker::new(&its.plan, &its.templates, &its.sources, &its.control, &its.gauges[i], i)?.run())
    });
    spawned.collect::<io::Result<_>>().map_err(|source| {
        shared.control.cancel();
        LoadError::Machine { what: "starting the generator's threads", source }
    })
}

fn join(thread: JoinHandle<io::Result<Harvest>>) -> Result<Harvest, LoadError> {
    let result = thread.join().unwrap_or_else(|_| Err(io::Error::other("it panicked")));
    result.map_err(|source| LoadError::Machine { what: "running a thread of the generator", source })
}

/// Until `over`, with a `tick` in between.
fn wait(mut over: impl FnMut() -> bool, mut tick: impl FnMut()) {
    let mut next = monotonic();
    while !over() {
        if monotonic() >= next {
            tick();
            next += nanos(TICK);
        }
        thread::sleep(LOOK);
    }
}

/// The plan, if a run can have it; never with more threads than connections.
fn checked(plan: &Plan) -> Result<Plan, LoadError> {
    let refuse = |problem: String| Err(LoadError::Plan(problem));
    if plan.requests.is_empty() || plan.requests.len() > usize::from(u16::MAX) {
        return refuse(format!("{} kinds of requests: 1 to 65,535 are possible", plan.requests.len()));
    }
    if let Some(bad) = plan.requests.iter().find(|request| !(request.weight.is_finite() && request.weight > 0.0)) {
        return refuse(format!("request `{}` has weight {}: more than 0 is needed", bad.name, bad.weight));
    }
    if let Arrivals::Open { per_second } = plan.arrivals
        && !(per_second.is_finite() && per_second > 0.0)
    {
        return refuse(format!("a rate of {per_second} in a second: more than 0 is needed"));
    }
    if plan.connections == 0 || plan.threads == 0 || plan.duration.is_zero() || plan.timeout.is_zero() {
        return refuse("connections, threads, duration and timeout must be more than 0".into());
    }
    Ok(Plan { threads: plan.threads.min(plan.connections as usize), ..plan.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Template;

    #[test]
    fn impossible_plans_are_refused_with_words() {
        let good = Plan {
            address: ([127, 0, 0, 1], 1).into(),
            host: "test".into(),
            requests: vec![Template { weight: 1.0, ..Template::default() }],
            arrivals: Arrivals::Open { per_second: 1.0 },
            connections: 3,
            duration: Duration::from_secs(1),
            ramp: Duration::ZERO,
            warm_up: Duration::ZERO,
            timeout: Duration::from_secs(1),
            threads: 8,
            seed: 0,
        };
        assert_eq!(checked(&good).expect("a good plan").threads, 3);
        let light = Template { name: "a".into(), weight: 0.0, ..Template::default() };
        for (bad, said) in [
            (Plan { requests: Vec::new(), ..good.clone() }, "0 kinds of requests"),
            (Plan { requests: vec![light], ..good.clone() }, "request `a` has weight 0"),
            (Plan { arrivals: Arrivals::Open { per_second: f64::NAN }, ..good.clone() }, "a rate of NaN"),
            (Plan { connections: 0, ..good.clone() }, "must be more than 0"),
        ] {
            let error = checked(&bad).expect_err("a bad plan").to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}
