//! What `check` looks at: pure questions about facts that were gathered at the edge.

mod messages;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use meshctl_api::view::{InstanceState, ServiceState, Status};
use meshctl_model::exit;
use rustix::process::{Resource, getrlimit};
use serde::Serialize;

use crate::failure::Failure;
use crate::launch;
use crate::session::{Session, differs, remedy, skew};

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

/// Looks at everything. Nothing is changed by it.
pub(crate) async fn examine(session: &Session) -> Vec<Group> {
    let mut groups = vec![machine(session.state_dir())];
    let mut checks = directory(session.state_dir());
    let (daemon, status) = daemon(session).await;
    checks.extend(daemon);
    groups.push(Group { name: "state directory", checks });
    if let Some(status) = status {
        groups.push(Group { name: "system", checks: system(&status) });
        if let Some(facts) = messages::gather(session, &status).await {
            groups.push(Group { name: "messages", checks: messages::examine(&facts) });
        }
    }
    groups
}

fn machine(state_dir: &Path) -> Group {
    let mut checks = vec![open_files(getrlimit(Resource::Nofile).maximum), clock(Timestamp::now())];
    if let Some(free) = free_space(state_dir) {
        checks.push(disk(free));
    }
    if let Ok(range) = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range") {
        checks.extend(ephemeral_ports(&range));
    }
    Group { name: "machine", checks }
}

/// The hard limit is what counts: the roles raise their own soft limit.
fn open_files(limit: Option<u64>) -> Check {
    let Some(limit) = limit else { return good("any number of open files is allowed") };
    let remedy = "raise it: `LimitNOFILE=` of the unit, or /etc/security/limits.d";
    match limit {
        0..4096 => broken(format!("only {limit} open files are allowed for a process"), remedy),
        4096..20_000 => {
            careful(format!("{limit} open files are allowed: enough for some thousand connections"), remedy)
        }
        _ => good(format!("{limit} open files are allowed for a process")),
    }
}

fn clock(now: Timestamp) -> Check {
    // The year this was written: no clock that is right shows less.
    const WRITTEN: i64 = 1_767_225_600;
    if now.as_second() < WRITTEN {
        return broken(format!("the clock shows {now}"), "set it: ages, leases and logs depend on it");
    }
    good("the clock is plausible")
}

/// Free bytes where the state directory is or will be.
fn free_space(state_dir: &Path) -> Option<u64> {
    let existing = state_dir.ancestors().find(|dir| dir.exists())?;
    let disk = rustix::fs::statvfs(existing).ok()?;
    Some(disk.f_bavail.saturating_mul(disk.f_frsize))
}

fn disk(free: u64) -> Check {
    let shown = format!("{} MiB are free for state and logs", free >> 20);
    match free >> 20 {
        0..100 => broken(shown, "make room, or name another folder with --state-dir"),
        100..1024 => careful(shown, "logs are bounded for each instance; make room if there will be many"),
        _ => good(shown),
    }
}

/// The ports that are given to instances must not be taken by outgoing connections meanwhile.
fn ephemeral_ports(range: &str) -> Option<Check> {
    const OURS: (u16, u16) = (20_000, 29_999);
    let mut bounds = range.split_whitespace().map(str::parse::<u16>);
    let (Some(Ok(low)), Some(Ok(high))) = (bounds.next(), bounds.next()) else { return None };
    if low <= OURS.1 && OURS.0 <= high {
        return Some(careful(
            format!("outgoing connections use the ports {low}-{high}, some of which meshctl gives to instances"),
            "set net.ipv4.ip_local_port_range to 32768 60999, or `providers.runtime.process.ports` to others",
        ));
    }
    Some(good(format!("outgoing connections ({low}-{high}) and instances (20000-29999) use different ports")))
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

fn system(status: &Status) -> Vec<Check> {
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
    checks.extend(status.gateways.iter().map(|gateway| {
        let why = gateway.reason.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
        if gateway.state != InstanceState::Ready {
            broken(format!("{} is not ready{why}", gateway.id), "`meshctl events` shows what happened")
        } else if gateway.revision < status.revision {
            let message = format!("{} carries revision {} of {}", gateway.id, gateway.revision, status.revision);
            careful(message, "it takes over the new one within moments; `meshctl events` if it does not")
        } else {
            good(format!("{} carries revision {} at {}", gateway.id, gateway.revision, gateway.url))
        }
    }));
    checks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_graded() {
        for (limit, grade) in [
            (Some(1024), Grade::Broken),
            (Some(4096), Grade::Careful),
            (Some(20_000), Grade::Good),
            (None, Grade::Good),
        ] {
            assert_eq!(open_files(limit).grade, grade, "{limit:?}");
        }
        assert_eq!(disk(50 << 20).grade, Grade::Broken);
        assert_eq!(disk(5 << 30).grade, Grade::Good);
        assert_eq!(clock(Timestamp::UNIX_EPOCH).grade, Grade::Broken);
    }

    #[test]
    fn ports_that_both_use_are_a_warning() {
        let grade = |range| ephemeral_ports(range).map(|check| check.grade);
        assert_eq!(grade("32768\t60999\n"), Some(Grade::Good));
        assert_eq!(grade("1024\t65535\n"), Some(Grade::Careful));
        assert_eq!(grade("29999 30000"), Some(Grade::Careful));
        assert_eq!(grade("what"), None);
    }
}
