//! Limits of memory and processor time for an instance and all its descendants: control groups, version 2 or 1, where the
//! machine lets us make them. `setrlimit` cannot do this: it counts each process by itself, and address space rather than
//! memory.
//!
//! Groups are made below a group that we are in, so that whatever limits us goes on limiting what we start.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use meshctl_model::topology::Resources;
use rustix::fs::{Access, access};

/// The length of the periods in which processor time is counted, in microseconds; the kernel's own default.
const PERIOD: u64 = 100_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Controller {
    Memory,
    Cpu,
}

impl Controller {
    fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Cpu => "cpu",
        }
    }
}

/// A group in which groups can be made that this controller limits.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Parent {
    dir: PathBuf,
    unified: bool,
}

/// The groups of one instance.
#[derive(Debug, Default)]
pub(super) struct Limits {
    pub(super) dirs: Vec<PathBuf>,
    /// Whoever writes `0` here enters the group: opened beforehand, because nothing can be opened between fork and exec.
    pub(super) entrances: Vec<File>,
    /// What was wished for and is not enforced, and why.
    pub(super) unenforced: Vec<String>,
}

/// Makes the groups that `resources` ask for. What this machine cannot enforce is left out and named.
pub(super) fn make(resources: &Resources, name: &str) -> Limits {
    let mut limits = Limits::default();
    let wishes = [
        (Controller::Memory, resources.memory.map(|bytes| bytes.0)),
        (Controller::Cpu, resources.cpu.map(|cores| (cores * PERIOD as f64).round() as u64)),
    ];
    for (controller, wish) in wishes {
        let Some(amount) = wish else { continue };
        let made = match parent(controller) {
            None => Err(format!("no {} control group can be made by this user on this machine", controller.name())),
            Some(parent) => limits.enter(&parent, controller, amount, name).map_err(|error| error.to_string()),
        };
        if let Err(why) = made {
            limits.unenforced.push(format!("the {} limit is not enforced: {why}", controller.name()));
        }
    }
    limits
}

/// Removes groups whose processes have ended. One that still holds a process stays, which is for the kernel to say.
pub(super) fn remove(dirs: &[PathBuf]) {
    for dir in dirs {
        let _ = fs::remove_dir(dir);
    }
}

impl Limits {
    fn enter(&mut self, parent: &Parent, controller: Controller, amount: u64, name: &str) -> io::Result<()> {
        let dir = parent.dir.join(name);
        // Version 2 has one group for all controllers.
        if !self.dirs.contains(&dir) {
            match fs::create_dir(&dir) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => self.dirs.push(dir.clone()),
            }
            self.entrances.push(OpenOptions::new().write(true).open(dir.join("cgroup.procs"))?);
        }
        match (controller, parent.unified) {
            (Controller::Memory, true) => {
                fs::write(dir.join("memory.max"), amount.to_string())?;
                // The whole instance ends, and not a process of it that happens to be the largest.
                fs::write(dir.join("memory.oom.group"), "1")
            }
            (Controller::Memory, false) => fs::write(dir.join("memory.limit_in_bytes"), amount.to_string()),
            (Controller::Cpu, true) => fs::write(dir.join("cpu.max"), format!("{amount} {PERIOD}")),
            (Controller::Cpu, false) => {
                fs::write(dir.join("cpu.cfs_period_us"), PERIOD.to_string())?;
                fs::write(dir.join("cpu.cfs_quota_us"), amount.to_string())
            }
        }
    }
}

fn parent(controller: Controller) -> Option<Parent> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    candidates(controller, &groups, &mounts).into_iter().find(|candidate| is_usable(candidate, controller))
}

/// Where groups might be made, best first: our own group in the hierarchy that has the controller; in version 2 also those
/// above it, because a group there cannot hold processes and hand controllers down at the same time.
fn candidates(controller: Controller, groups: &str, mounts: &str) -> Vec<Parent> {
    let mut found = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let unified = controllers.is_empty();
        if !unified && !controllers.split(',').any(|name| name == controller.name()) {
            continue;
        }
        let Some((root, mount)) = mounts.lines().find_map(|line| mount(line, unified, controller)) else { continue };
        // What is outside of the mount cannot be reached.
        let Ok(below) = Path::new(path).strip_prefix(root) else { continue };
        let own: PathBuf = Path::new(mount).join(below).components().collect();
        let depth = if unified { below.components().count() + 1 } else { 1 };
        found.extend(own.ancestors().take(depth).map(|dir| Parent { dir: dir.to_owned(), unified }));
    }
    found
}

/// The root and the place of a mount, if it is of the hierarchy that is looked for.
fn mount(line: &str, unified: bool, controller: Controller) -> Option<(&str, &str)> {
    let (before, after) = line.split_once(" - ")?;
    let mut after = after.split(' ');
    let kind = after.next()?;
    let options = after.nth(1)?;
    let fits = match unified {
        true => kind == "cgroup2",
        false => kind == "cgroup" && options.split(',').any(|name| name == controller.name()),
    };
    let mut before = before.split(' ').skip(3);
    fits.then_some((before.next()?, before.next()?))
}

fn is_usable(candidate: &Parent, controller: Controller) -> bool {
    let handed_down = || {
        let list = fs::read_to_string(candidate.dir.join("cgroup.subtree_control")).unwrap_or_default();
        list.split_ascii_whitespace().any(|name| name == controller.name())
    };
    // Moving a process needs the right to take it out of where it is, too: in version 2, of the common ancestor.
    access(&candidate.dir, Access::WRITE_OK).is_ok()
        && access(candidate.dir.join("cgroup.procs"), Access::WRITE_OK).is_ok()
        && (!candidate.unified || handed_down())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dirs(controller: Controller, groups: &str, mounts: &str) -> Vec<String> {
        candidates(controller, groups, mounts).iter().map(|parent| parent.dir.display().to_string()).collect()
    }

    #[test]
    fn version_2_offers_our_own_group_and_those_above() {
        let groups = "0::/user.slice/user-1000.slice/session.scope\n";
        let mounts = "29 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
        let expected = [
            "/sys/fs/cgroup/user.slice/user-1000.slice/session.scope",
            "/sys/fs/cgroup/user.slice/user-1000.slice",
            "/sys/fs/cgroup/user.slice",
            "/sys/fs/cgroup",
        ];
        assert_eq!(dirs(Controller::Memory, groups, mounts), expected);
    }

    #[test]
    fn version_1_offers_our_own_group_of_the_controller() {
        let groups = "4:memory:/limited/here\n2:cpu,cpuacct:/\n0::/\n";
        let mounts = "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n";
        assert_eq!(dirs(Controller::Memory, groups, mounts), ["/sys/fs/cgroup/memory/limited/here"]);
        assert_eq!(dirs(Controller::Cpu, groups, mounts), ["/sys/fs/cgroup/cpu"]);
    }

    #[test]
    fn inside_a_container_the_mount_begins_where_we_are() {
        let mounts = "35 31 0:32 /docker/abc /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        assert_eq!(dirs(Controller::Memory, "4:memory:/docker/abc\n", mounts), ["/sys/fs/cgroup/memory"]);
        assert!(dirs(Controller::Memory, "4:memory:/elsewhere\n", mounts).is_empty(), "out of reach");
        assert!(dirs(Controller::Memory, "", "").is_empty(), "a machine without control groups");
    }
}
