//! Forking without an exec: what the standard library does not offer, and the only code here that needs `unsafe` for it.

use std::io;

/// Which of the two processes we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Parent,
    Child,
}

/// Makes a copy of this process. Both go on from here.
///
/// # Errors
/// When the process has more than one thread, and when the machine has no room for another process.
#[allow(unsafe_code, reason = "no safe function forks")]
pub(super) fn fork() -> io::Result<Side> {
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    if threads != 1 {
        return Err(io::Error::other(format!("a process of {threads} threads cannot be copied")));
    }
    // SAFETY: the child has the thread that forks and no other. As there is no other, none can have held a lock or been in
    // the middle of a change, so the child finds everything as it was and may do whatever its parent may.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Side::Child),
        _ => Ok(Side::Parent),
    }
}

/// From now on the kernel takes in our children when they end, and nobody has to wait for them.
#[allow(unsafe_code, reason = "no safe function ignores a signal")]
pub(super) fn reap_children() {
    // SAFETY: ignoring a signal makes no code run.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
}
