//! The engine against servers that behave in known ways: what it reports must be what they did.

mod answers;
mod completion;
mod latency;
mod server;
mod validity;

use std::sync::{PoisonError, RwLock, RwLockWriteGuard};
use std::time::Duration;

use meshctl_load::plan::{Arrivals, Plan, Template};
use meshctl_load::{Outcome, Stop, run};

use server::Server;

/// A run of a second on four connections and two threads.
fn plan(server: &Server, arrivals: Arrivals) -> Plan {
    Plan {
        address: server.address,
        host: server.address.to_string(),
        requests: vec![get("/")],
        arrivals,
        connections: 4,
        duration: Duration::from_secs(1),
        ramp: Duration::ZERO,
        warm_up: Duration::ZERO,
        timeout: Duration::from_secs(5),
        threads: 2,
        seed: 1,
    }
}

fn get(path: &str) -> Template {
    let name = format!("GET {path}");
    Template { name, weight: 1.0, method: "GET".into(), path: path.into(), ..Template::default() }
}

/// Tests whose numbers depend on the machine's attention run while no other does.
static ATTENTION: RwLock<()> = RwLock::new(());

/// While it lives no other test is in a run, and this one's threads go before other programs, as far as we may say so: only
/// root may, others may need another attempt. Linux weighs sessions (`autogroup`) before it weighs threads.
struct Alone {
    _guard: RwLockWriteGuard<'static, ()>,
}

fn alone() -> Alone {
    let guard = ATTENTION.write().unwrap_or_else(PoisonError::into_inner);
    // The threads of server and generator inherit it.
    let _ = rustix::process::setpriority_process(None, -15);
    let _ = std::fs::write("/proc/self/autogroup", "-15");
    Alone { _guard: guard }
}

impl Drop for Alone {
    fn drop(&mut self) {
        let _ = std::fs::write("/proc/self/autogroup", "0");
    }
}

/// A run among those of other tests.
fn shared(plan: &Plan) -> Outcome {
    let _attention = ATTENTION.read().unwrap_or_else(PoisonError::into_inner);
    outcome(plan)
}

fn outcome(plan: &Plan) -> Outcome {
    run(plan, &Stop::new(), |_| {}).expect("a run")
}

/// The arrivals of all threads that are due within the measured time.
fn due(plan: &Plan) -> impl Iterator<Item = meshctl_load::schedule::Arrival> {
    use meshctl_load::schedule::{Schedule, Window};
    let window = Window::of(plan);
    let of_thread = move |thread| {
        let mut schedule = Schedule::of_thread(plan, thread);
        std::iter::from_fn(move || Some(schedule.next_arrival()))
            .take_while(move |arrival| arrival.at < window.to)
            .filter(move |arrival| window.contains(arrival.at))
    };
    (0..plan.threads).flat_map(of_thread)
}
