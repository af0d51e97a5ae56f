//! What the kernel tells about processes, and the one safe way to signal them: through a pidfd whose process was checked
//! after the pidfd was opened, so that a reused pid is never mistaken for the process that had it before.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use meshctl_model::instance::ProcessId;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// Names the state directory in the environment of every process of an instance; with [`INSTANCE_LABEL`] it finds
/// descendants that nothing else leads to any more.
pub(super) const STATE_DIR_LABEL: &str = "MESHCTL_STATE_DIR";
/// Names the instance in the environment of every process of it.
pub(super) const INSTANCE_LABEL: &str = "MESHCTL_INSTANCE";

/// What stands in `/proc/PID/stat`, as far as it is of use here.
pub(super) struct Stat {
    state: u8,
    pub(super) group: u32,
    start_time: u64,
    usage: Usage,
}

/// What a process uses of the machine, all its threads together, its children not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Processor time since it began, in steps of a hundredth of a second.
    pub cpu: Duration,
    /// Resident.
    pub memory_bytes: u64,
}

/// `None` where there is no such process.
pub fn usage(pid: u32) -> Option<Usage> {
    Some(stat(pid)?.usage)
}

pub(super) fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in parentheses and may itself hold spaces and parentheses.
    let rest = &text[text.iter().rposition(|byte| *byte == b')')? + 2..];
    let fields: Vec<&str> = std::str::from_utf8(rest).ok()?.split(' ').collect();
    let number = |field: usize| fields.get(field - 3)?.trim().parse::<u64>().ok();
    let ticks = number(14)?.saturating_add(number(15)?);
    let cpu = Duration::from_millis(ticks.saturating_mul(1000) / rustix::param::clock_ticks_per_second().max(1));
    let memory_bytes = number(24)?.saturating_mul(rustix::param::page_size() as u64);
    Some(Stat {
        usage: Usage { cpu, memory_bytes },
        state: *fields.first()?.as_bytes().first()?,
        group: u32::try_from(number(5)?).ok()?,
        start_time: number(22)?,
    })
}

fn boot_id() -> &'static str {
    static BOOT_ID: OnceLock<String> = OnceLock::new();
    BOOT_ID.get_or_init(|| {
        fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()).unwrap_or_default()
    })
}

/// The identity of the process that has this pid now; `None` when there is none or it has ended (a zombie has ended).
pub fn process_id(pid: u32) -> Option<ProcessId> {
    let stat = stat(pid).filter(|stat| !matches!(stat.state, b'Z' | b'X'))?;
    Some(ProcessId { pid, start_time: stat.start_time, boot_id: boot_id().to_owned() })
}

/// The identity of a child that the caller has not reaped: it may have ended already and is itself all the same.
pub(super) fn identity_of_child(pid: u32) -> Option<ProcessId> {
    Some(ProcessId { pid, start_time: stat(pid)?.start_time, boot_id: boot_id().to_owned() })
}

pub(super) fn pid(number: u32) -> Option<Pid> {
    Pid::from_raw(i32::try_from(number).ok()?)
}

/// The direct children of a process, of all its threads.
pub(super) fn children(parent: u32) -> Vec<u32> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{parent}/task")) else { return Vec::new() };
    let mut found = Vec::new();
    for task in tasks.flatten() {
        match fs::read_to_string(task.path().join("children")) {
            Ok(list) => found.extend(list.split_ascii_whitespace().filter_map(|pid| pid.parse::<u32>().ok())),
            // Kernels built without CONFIG_PROC_CHILDREN.
            Err(_) => return children_by_parent(parent),
        }
    }
    found
}

fn children_by_parent(parent: u32) -> Vec<u32> {
    let is_child = |pid: &u32| {
        fs::read_to_string(format!("/proc/{pid}/status"))
            .ok()
            .and_then(|status| status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse::<u32>().ok()))
            == Some(parent)
    };
    pids().filter(is_child).collect()
}

/// Every descendant of a process, itself excluded.
pub(super) fn descendants(ancestor: u32) -> Vec<u32> {
    let mut found = children(ancestor);
    let mut next = 0;
    while let Some(pid) = found.get(next).copied() {
        found.extend(children(pid));
        next += 1;
    }
    found
}

fn pids() -> impl Iterator<Item = u32> {
    fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The instance in whose name a process runs, if it belongs to this state directory. Only a process that bears both labels
/// belongs to an instance: a daemon or an operator's command may have the state directory in its environment as well.
fn label(pid: u32, state_dir: &Path) -> Option<String> {
    let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let value = |name: &str| {
        environment.split(|byte| *byte == 0).find_map(|entry| entry.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
    };
    if value(STATE_DIR_LABEL)? != state_dir.as_os_str().as_bytes() {
        return None;
    }
    String::from_utf8(value(INSTANCE_LABEL)?.to_vec()).ok()
}

/// Ends every process of this state directory whose instance is `doomed`, until none is left, and tells how many there
/// were. Never ends the caller, even if it was started by an instance. Blocks until they have ended.
///
/// # Errors
/// When something could not be ended within `within`.
pub(super) fn sweep(state_dir: &Path, doomed: impl Fn(&str) -> bool, within: Duration) -> Result<usize, String> {
    let until = Instant::now() + within;
    let is_doomed = |pid: u32| label(pid, state_dir).is_some_and(|instance| doomed(&instance));
    let mut ended = 0;
    // A process that is being swept may be forking: look again until a look finds nothing.
    loop {
        let found: Vec<u32> = pids().filter(|pid| *pid != std::process::id() && is_doomed(*pid)).collect();
        if found.is_empty() {
            return Ok(ended);
        }
        for number in found {
            let Some(Ok(fd)) = pid(number).map(|pid| pidfd_open(pid, PidfdFlags::empty())) else { continue };
            if !is_doomed(number) {
                continue;
            }
            match pidfd_send_signal(&fd, Signal::KILL) {
                Ok(()) if !ends_before(&fd, until) => {
                    return Err(format!("process {number} does not end, although it was killed"));
                }
                Ok(()) => ended += 1,
                Err(rustix::io::Errno::SRCH) => {}
                Err(error) => return Err(format!("process {number} cannot be killed: {error}")),
            }
        }
    }
}

fn ends_before(process: &impl AsFd, until: Instant) -> bool {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        match poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&timeout)) {
            Err(rustix::io::Errno::INTR) => {}
            answer => return answer.is_ok_and(|ready| ready > 0),
        }
    }
}
