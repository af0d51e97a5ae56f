//! Does one step through one driver, and reports. It decides nothing.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use meshctl_drivers::gateway::{Gateway, embedded::EmbeddedGateway};
use meshctl_drivers::runtime::SharedRuntime;
use meshctl_model::instance::InstanceSpec;
use meshctl_model::plan::{AfterStop, Step};
use meshctl_model::snapshot::Snapshot;
use tokio::sync::mpsc;

use crate::control::Message;
use crate::gateways;
use crate::report::Report;

/// How many of the last lines are kept with the end of an instance.
pub const LAST_LINES: usize = 20;

/// A running gateway that can be spoken to.
pub type SharedGateway = Arc<dyn Gateway>;

/// The drivers, and where to report.
#[derive(Clone)]
pub struct Executor {
    pub runtime: SharedRuntime,
    pub state_dir: PathBuf,
    pub reports: mpsc::Sender<Message>,
}

/// What the steps of one round need beside themselves.
pub struct Round {
    pub snapshot: Arc<Snapshot>,
    /// All that take requests now.
    pub gateways: Vec<(String, SharedGateway)>,
    /// Of instances that are started again.
    pub specs: std::collections::BTreeMap<String, InstanceSpec>,
}

impl Executor {
    /// The driver of a gateway instance.
    pub fn gateway(&self, spec: &InstanceSpec) -> SharedGateway {
        let folder = gateways::folder(&self.state_dir, gateways::slot_of(spec));
        Arc::new(EmbeddedGateway::new(spec.id.clone(), folder))
    }

    /// Starts doing `step`; what comes of it arrives as a report.
    pub fn execute(&self, step: Step, round: &Arc<Round>) {
        let (executor, round) = (self.clone(), Arc::clone(round));
        tokio::spawn(async move {
            let report = match step {
                Step::Start { spec, .. } => executor.start(*spec).await,
                Step::Restart { id } => match round.specs.get(&id) {
                    Some(spec) => executor.start(spec.clone()).await,
                    None => return,
                },
                // Taking an instance out of routing is a new snapshot, which is pushed like any other.
                Step::Drain { .. } => return,
                Step::AwaitDrained { id, within } => drained(&round.gateways, id, within.get()).await,
                Step::Stop { id, then, .. } => executor.stop(id, then).await,
                Step::Push { gateway } => match round.gateways.iter().find(|(id, _)| *id == gateway) {
                    Some((_, driver)) => {
                        let outcome = driver.push(&round.snapshot).await;
                        if outcome.is_err() {
                            // It is pushed again at the next look; not at once, or a gateway that refuses is asked for ever.
                            tokio::time::sleep(Duration::from_millis(250)).await;
                        }
                        Report::Pushed { gateway, outcome }
                    }
                    None => return,
                },
            };
            // A closed channel means that the daemon is ending.
            let _ = executor.reports.send(Message::Report(report)).await;
        });
    }

    /// Removes what an instance that is gone has left behind.
    pub fn clean(&self, id: String) {
        let runtime = Arc::clone(&self.runtime);
        tokio::spawn(async move {
            if let Err(why) = runtime.remove(&id).await {
                tracing::warn!(%why, "cannot remove the files of {id}");
            }
        });
    }

    async fn start(&self, spec: InstanceSpec) -> Report {
        let slot = gateways::slot_of(&spec);
        if slot > 0
            && let Err(why) = make_private_folder(&gateways::folder(&self.state_dir, slot))
        {
            tracing::warn!(%why, "cannot make the folder of gateway {slot}");
        }
        let outcome = self.runtime.start(&spec).await;
        Report::Started { id: spec.id, outcome }
    }

    async fn stop(&self, id: String, then: AfterStop) -> Report {
        let outcome = self.runtime.stop(&id).await;
        let log = self.runtime.tail(&id, LAST_LINES).await.into_iter().map(|line| line.text).collect();
        match &outcome {
            Ok(_) if then == AfterStop::Forget => {
                if let Err(why) = self.runtime.remove(&id).await {
                    tracing::warn!(%why, "cannot remove the files of {id}");
                }
            }
            Ok(_) => {}
            // Not at once again.
            Err(_) => tokio::time::sleep(Duration::from_secs(1)).await,
        }
        Report::Stopped { id, outcome, log }
    }
}

async fn drained(gateways: &[(String, SharedGateway)], id: String, within: Duration) -> Report {
    let ids = [id.clone()];
    let waits = gateways.iter().map(|(_, gateway)| gateway.drained(&ids, within));
    let outcomes = futures_util::future::join_all(waits).await;
    let trouble = outcomes.into_iter().find_map(Result::err).map(|why| why.to_string());
    Report::Drained { id, trouble }
}

fn make_private_folder(path: &std::path::Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}
