//! What `check` looks at: pure questions about facts that were gathered at the edge.

mod machine;
mod messages;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use meshctl_api::build;
use meshctl_api::error::ErrorCode;
use meshctl_api::view::traces::{TraceQuery, TraceStore};
use meshctl_api::view::{Gateway, InstanceState, ServiceState, Status};
use meshctl_model::exit;
use serde::Serialize;

pub(crate) use self::machine::Ports;
use crate::failure::Failure;
use crate::launch;
use crate::session::{Session, differs, remedy, skew};
use crate::show::size;

/// Checks that belong together.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Group {
    pub(crate) name: &'static str,
    pub(crate) checks: Vec<Check>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Check {
    pub(crate) grade: Grade,
    pub(crate) message: String,
    /// What to do about it.
    pub(crate) remedy: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Grade {
    Good,
    Careful,
    Broken,
}

fn good(message: impl Into<String>) -> Check {
    Check { grade: Grade::Good, message: message.into(), remedy: None }
}

fn careful(message: impl Into<String>, remedy: impl Into<String>) -> Check {
    Check { grade: Grade::Careful, message: message.into(), remedy: Some(remedy.into()) }
}

fn broken(message: impl Into<String>, remedy: impl Into<String>) -> Check {
    Check { grade: Grade::Broken, message: message.into(), remedy: Some(remedy.into()) }
}

/// A daemon that is well answers at once; a check does not wait long to say that it does not.
const PATIENCE: Duration = Duration::from_secs(3);

/// Looks at everything, or with `pre` only at what can be known before there is a system. Nothing is changed by it.
pub(crate) async fn examine(session: &Session, ports: &Ports, pre: bool) -> Vec<Group> {
    let mut checks = vec![good(format!("this is meshctl {}", build::VERSION))];
    checks.extend(directory(session.state_dir()));
    let meshctl = Group { name: "meshctl", checks };
    let (daemon, status) = if pre { (Vec::new(), None) } else { daemon(session).await };
    let own: Vec<String> =
        status.iter().flat_map(|status| &status.gateways).map(|gateway| address(&gateway.url)).collect();
    let machine = Group { name: "machine", checks: machine::examine(session.state_dir(), ports, &own) };
    let mut groups = vec![meshctl, machine, Group { name: "daemon", checks: daemon }];
    if let Some(status) = status {
        groups.push(Group { name: "services", checks: services(&status) });
        groups.push(Group { name: "gateways", checks: gateways(&status) });
        if let Some(facts) = messages::gather(session, &status).await {
            groups.push(Group { name: "channels", checks: messages::examine(&facts) });
        }
        groups.push(Group { name: "traces", checks: traces(session).await });
    }
    groups.retain(|group| !group.checks.is_empty());
    groups
}

/// `127.0.0.1:8080` of `http://127.0.0.1:8080`.
fn address(url: &str) -> String {
    url.rsplit_once("//").map_or(url, |(_, address)| address).to_owned()
}

fn directory(dir: &Path) -> Vec<Check> {
    let shown = dir.display();
    let Ok(meta) = fs::metadata(dir) else {
        return vec![good(format!("{shown} does not exist yet"))];
    };
    let mut checks = Vec::new();
    if !meta.is_dir() {
        return vec![broken(format!("{shown} is not a folder"), "name another with --state-dir")];
    }
    if meta.uid() != rustix::process::geteuid().as_raw() {
        checks.push(broken(format!("{shown} belongs to another user"), "run as that user, or name another folder"));
    } else if meta.permissions().mode() & 0o022 != 0 {
        checks.push(broken(format!("others may write to {shown}"), format!("`chmod go-w {shown}`")));
    } else if meta.permissions().mode() & 0o055 != 0 {
        checks.push(careful(format!("others may read {shown}, where secrets are"), format!("`chmod 700 {shown}`")));
    } else {
        checks.push(good(format!("{shown} is private")));
    }
    checks
}

/// Whether the daemon answers, and what it says.
async fn daemon(session: &Session) -> (Vec<Check>, Option<Status>) {
    let record = launch::recorded(session.state_dir());
    let client = match session.client() {
        Ok(client) => client.patience(PATIENCE),
        Err(failure) => return (vec![unwell(&failure)], None),
    };
    let version = match client.version().await.map_err(Failure::from) {
        Ok(version) => version,
        Err(failure) if failure.exit != exit::UNREACHABLE => return (vec![unwell(&failure)], None),
        Err(_) => {
            let check = match record {
                None => good("no daemon runs, and none should"),
                Some(record) if launch::is_alive(&record) => {
                    broken(format!("the daemon (pid {}) runs and does not answer", record.pid), "look at daemon.log")
                }
                Some(record) => broken(
                    format!("the daemon (pid {}) died; what it started runs on", record.pid),
                    "`meshctl apply FILE` starts a new one, which takes over; `meshctl down` ends everything",
                ),
            };
            return (vec![check], None);
        }
    };
    let mut checks = vec![good(format!("the daemon answers (pid {})", version.pid))];
    checks.push(if differs(&version) {
        careful(format!("the daemon runs {}", skew(&version)), remedy(&version))
    } else {
        good("the daemon and this command are of the same build")
    });
    match client.status().await.map_err(Failure::from) {
        Ok(status) => (checks, Some(status)),
        Err(failure) => {
            checks.push(unwell(&failure));
            (checks, None)
        }
    }
}

fn unwell(failure: &Failure) -> Check {
    broken(failure.message.clone(), failure.hint.clone().unwrap_or_else(|| "look at daemon.log".to_owned()))
}

fn services(status: &Status) -> Vec<Check> {
    if status.revision == 0 {
        return vec![careful("nothing has been applied yet", "`meshctl apply FILE`")];
    }
    let services = status.items.iter().filter(|service| service.state != ServiceState::Ready).map(|service| {
        let why = crate::show::why(service).map(|why| format!(": {why}")).unwrap_or_default();
        let message = format!("{} has {} of {} instances ready{why}", service.name, service.ready, service.desired);
        let remedy = format!("`meshctl describe service/{0}` and `meshctl logs {0}` show more", service.name);
        match service.state {
            ServiceState::Stopped if service.desired == 0 => good(format!("{} is stopped, as wanted", service.name)),
            ServiceState::Failed | ServiceState::Degraded | ServiceState::RolledBack | ServiceState::Stopped => {
                broken(message, remedy)
            }
            _ => careful(message, remedy),
        }
    });
    let mut checks: Vec<Check> = services.collect();
    if checks.is_empty() {
        checks.push(good(format!("all {} services of {} are ready", status.items.len(), status.name)));
    }
    checks
}

fn gateways(status: &Status) -> Vec<Check> {
    let check = |gateway: &Gateway| {
        let why = gateway.reason.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
        if gateway.state != InstanceState::Ready {
            broken(format!("{} is not ready{why}", gateway.id), "`meshctl events` shows what happened")
        } else if gateway.revision < status.revision {
            let message = format!("{} carries revision {} of {}", gateway.id, gateway.revision, status.revision);
            careful(message, "it takes over the new one within moments; `meshctl events` if it does not")
        } else {
            good(format!("{} carries revision {} at {}", gateway.id, gateway.revision, gateway.url))
        }
    };
    status.gateways.iter().map(check).collect()
}

/// Nothing where the daemon is of before there were any.
async fn traces(session: &Session) -> Vec<Check> {
    let Ok(client) = session.client() else { return Vec::new() };
    match client.patience(PATIENCE).traces(&TraceQuery { limit: Some(1), ..TraceQuery::default() }).await {
        Ok(traces) => vec![trace_store(&traces.store)],
        Err(error) if error.code == ErrorCode::NotFound => Vec::new(),
        Err(error) => vec![unwell(&error.into())],
    }
}

fn trace_store(store: &TraceStore) -> Check {
    let kept =
        format!("{} traces are kept, in {} of {}", store.traces, size(store.size_bytes), size(store.max_size_bytes));
    match store.dropped_spans {
        0 => good(kept),
        dropped => careful(
            format!("{kept}; {dropped} spans could not be kept since the store was made"),
            "lower `providers.telemetry.embedded.sample`: traces with gaps say where",
        ),
    }
}
