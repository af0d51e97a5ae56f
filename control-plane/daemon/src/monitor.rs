//! Watches one running instance: tells when it ends, and when its checks change their mind.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use meshctl_drivers::runtime::probe;
use meshctl_model::instance::{Check, InstanceSpec};
use meshctl_model::snapshot::GatewayEvent;
use tokio::sync::mpsc::{Receiver, Sender};
use tokio::task::JoinHandle;

use crate::control::Message;
use crate::execute::{Executor, LAST_LINES, SharedGateway};
use crate::report::Report;

/// The pauses between checks of an instance that is not ready yet: short at first, since most are ready in milliseconds.
const FIRST_CHECKS: [u64; 6] = [2, 5, 10, 20, 50, 100];

/// A program that answers nothing counts as ready when it has run for this long: most that cannot start end before.
const RUNNING_FOR: Duration = Duration::from_millis(300);

/// How long a gateway may take to say how it is.
const GATEWAY_ANSWERS: Duration = Duration::from_secs(2);

/// A watch that ends when it is dropped.
#[derive(Debug)]
pub struct Monitor {
    task: JoinHandle<()>,
    /// Milliseconds since 1970; 0 before the first check.
    checked_at: Arc<AtomicI64>,
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Monitor {
    /// Watches an instance that runs. `ready`: it was ready when it was last seen.
    pub fn start(executor: &Executor, spec: InstanceSpec, ready: bool) -> Self {
        let checked_at = Arc::new(AtomicI64::new(0));
        let (executor, seen) = (executor.clone(), Arc::clone(&checked_at));
        let task = tokio::spawn(async move {
            let id = spec.id.clone();
            let exited = executor.runtime.exited(&id);
            let checks = async {
                if crate::gateways::slot_of(&spec) > 0 {
                    let gateway = executor.gateway(&spec);
                    // Heard before it counts as ready, so that nothing that happens there is missed.
                    let events = listen(&gateway).await;
                    let last = Mutex::new(None);
                    tokio::join!(
                        check_for_ever(&spec, ready, &seen, &executor.reports, || look(
                            &spec.id,
                            &gateway,
                            &executor.reports,
                            &last
                        )),
                        hand_on(&spec.id, &gateway, events, &executor.reports)
                    );
                } else {
                    let address = spec.port.map(|port| format!("127.0.0.1:{port}")).unwrap_or_default();
                    let timeout = spec.health.timeout.get();
                    let check = || probe::check(&spec, &executor.state_dir, &address, timeout);
                    check_for_ever(&spec, ready, &seen, &executor.reports, check).await;
                }
            };
            let exit = tokio::select! {
                exit = exited => exit,
                () = checks => return,
            };
            let log = executor.runtime.tail(&id, LAST_LINES).await.into_iter().map(|line| line.text).collect();
            let _ = executor.reports.send(Message::Report(Report::Exited { id, exit, log })).await;
        });
        Self { task, checked_at }
    }

    pub fn last_checked_at(&self) -> Option<Timestamp> {
        match self.checked_at.load(Ordering::Relaxed) {
            0 => None,
            ms => Timestamp::from_millisecond(ms).ok(),
        }
    }
}

/// What of a gateway's status the control loop is told of: generation, refused listeners, ejected endpoints.
type Told = (u64, usize, Vec<String>);

/// Asks a gateway for its status, and hands it on where it says something new.
async fn look(
    id: &str,
    gateway: &SharedGateway,
    reports: &Sender<Message>,
    last: &Mutex<Option<Told>>,
) -> Result<(), String> {
    let status = tokio::time::timeout(GATEWAY_ANSWERS, gateway.status()).await;
    let status = status.map_err(|_| format!("no answer within {GATEWAY_ANSWERS:?}"))?.map_err(|why| why.to_string())?;
    let ejected = status.ejected.iter().map(|ejection| ejection.endpoint.clone()).collect();
    let told = Some((status.generation, status.refused.len(), ejected));
    let news = std::mem::replace(&mut *last.lock().unwrap_or_else(PoisonError::into_inner), told.clone()) != told;
    if news {
        // A closed channel means that the daemon is ending.
        let _ = reports.send(Message::Report(Report::Seen { gateway: id.to_owned(), status })).await;
    }
    Ok(())
}

async fn check_for_ever<F: Future<Output = Result<(), String>>>(
    spec: &InstanceSpec,
    was_ready: bool,
    seen: &AtomicI64,
    reports: &Sender<Message>,
    check: impl Fn() -> F,
) {
    let mut ready = was_ready;
    let mut failures = 0;
    let mut said = String::new();
    let mut first = FIRST_CHECKS.into_iter();
    let nothing_to_ask = spec.health.check == Check::Running && crate::gateways::slot_of(spec) == 0;
    if nothing_to_ask && !ready {
        tokio::time::sleep(RUNNING_FOR).await;
    }
    loop {
        let pause = if ready { None } else { first.next().map(Duration::from_millis) };
        let usual = spec.health.interval.get();
        // What is not ready is looked at at least four times a second, whatever its interval.
        // What failed once is soon looked at again: a frozen instance is to be known as such quickly.
        let usual = match (ready, failures) {
            (true, 0) => usual,
            (true, _) => usual.min(Duration::from_millis(100)),
            (false, _) => usual.min(Duration::from_millis(250)),
        };
        tokio::time::sleep(pause.unwrap_or(usual)).await;
        let outcome = check().await;
        seen.store(Timestamp::now().as_millisecond(), Ordering::Relaxed);
        let tell = match &outcome {
            Ok(()) => {
                failures = 0;
                !std::mem::replace(&mut ready, true)
            }
            Err(why) if ready => {
                failures += 1;
                let gone = failures >= spec.health.failures;
                ready = !gone;
                gone.then(|| said.clone_from(why)).is_some()
            }
            Err(why) if *why != said => {
                said.clone_from(why);
                true
            }
            Err(_) => false,
        };
        if tell && reports.send(Message::Report(Report::Checked { id: spec.id.clone(), outcome })).await.is_err() {
            return;
        }
    }
}

/// Connects to what a gateway tells.
async fn listen(gateway: &SharedGateway) -> Receiver<GatewayEvent> {
    let mut pauses = FIRST_CHECKS.into_iter();
    loop {
        if let Ok(events) = gateway.events().await {
            return events;
        }
        tokio::time::sleep(Duration::from_millis(pauses.next().unwrap_or(200))).await;
    }
}

/// Hands on what a gateway tells, and connects again when it stops.
async fn hand_on(id: &str, gateway: &SharedGateway, mut events: Receiver<GatewayEvent>, reports: &Sender<Message>) {
    loop {
        while let Some(event) = events.recv().await {
            let report = Report::Told { gateway: id.to_owned(), event };
            if reports.send(Message::Report(report)).await.is_err() {
                return;
            }
        }
        events = listen(gateway).await;
    }
}
