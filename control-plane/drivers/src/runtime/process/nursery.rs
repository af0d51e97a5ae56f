//! The nursery: a small process beside the daemon that forks the shims. A shim needs no program of its own, only a process,
//! and an exec is most of what it would cost.
//!
//! Invariants: the nursery has one thread, so its copies are whole. It was started by an exec, so it holds nothing of the
//! daemon but the socket through which it is asked, and its copies not even that. It ends with the daemon; the shims do not.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, PipeReader, PipeWriter};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::io::{Errno, retry_on_intr};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use rustix::process::setsid;

use super::folder::{Refusal, Report, about};
use super::fork::{Side, fork, reap_children};
use super::proc::{self, INSTANCE_LABEL, STATE_DIR_LABEL};
use super::shim;
use super::title::{ROOM, Title};

/// The longest name of a file, and so of an instance.
const LONGEST_NAME: usize = 255;
/// The longest path that the kernel takes.
const LONGEST_PATH: usize = 4096;
/// How long there may be no room for a request. It is freed by any that the nursery takes: in a burst of launches that is soon.
const PATIENCE: Duration = Duration::from_secs(2);

/// The daemon's end. The process is started at once, so that no instance waits for it, and again when it has died.
#[derive(Debug)]
pub(super) struct Nursery {
    executable: PathBuf,
    state_dir: PathBuf,
    process: Mutex<Option<Process>>,
}

#[derive(Debug)]
struct Process {
    child: Child,
    requests: OwnedFd,
}

impl Nursery {
    pub(super) fn new(executable: PathBuf, state_dir: PathBuf) -> Self {
        // What stands in its way stands in the way of the first shim as well, and is told then.
        let process = Process::start(&executable, &state_dir).ok();
        Self { executable, state_dir, process: Mutex::new(process) }
    }

    /// Starts a shim for the instance in `dir`. What it reports can be read from the pipe, whose end is the end of what it
    /// has to say.
    ///
    /// # Errors
    /// When there is no nursery and none can be started.
    pub(super) fn start_shim(&self, dir: &Path) -> io::Result<PipeReader> {
        let (report, writer) = io::pipe().map_err(|error| about("make a pipe for the shim of", dir, error))?;
        let mut process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        // That one has died, or is frozen, is noticed here, by the first request that it does not take.
        let asked = process.as_ref().is_some_and(|living| living.ask(dir, &writer).is_ok());
        if !asked {
            *process = None;
            let new = Process::start(&self.executable, &self.state_dir)?;
            new.ask(dir, &writer).map_err(|error| about("ask the nursery for the shim of", dir, error))?;
            *process = Some(new);
        }
        Ok(report)
    }

    /// Ends the process; the next shim comes from a new one.
    pub(super) fn end(&self) {
        *self.process.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl Process {
    fn start(executable: &Path, state_dir: &Path) -> io::Result<Self> {
        let failed = |error| about("start the nursery from", executable, error);
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .map_err(|error| failed(error.into()))?;
        set_socket_timeout(&ours, Timeout::Send, Some(PATIENCE)).map_err(|error| failed(error.into()))?;
        let longest_folder = state_dir.as_os_str().len() + "/instances/".len() + LONGEST_NAME;
        let child = Command::new(executable)
            .arg("nursery")
            // Room for the words and the label of a shim, which is to be told from its siblings.
            .arg(" ".repeat(longest_folder))
            .env(ROOM, " ".repeat(INSTANCE_LABEL.len() + LONGEST_NAME))
            .env(STATE_DIR_LABEL, state_dir)
            .env_remove(INSTANCE_LABEL)
            .stdin(theirs)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(failed)?;
        Ok(Self { child, requests: ours })
    }

    fn ask(&self, dir: &Path, report: &PipeWriter) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let report = [report.as_fd()];
        control.push(SendAncillaryMessage::ScmRights(&report));
        let words = [IoSlice::new(dir.as_os_str().as_bytes())];
        retry_on_intr(|| sendmsg(&self.requests, &words, &mut control, SendFlags::NOSIGNAL))?;
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It would end by itself. Killed and waited for, it is gone before we are.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The life of the nursery: forks a shim for every request on standard input, a socket, and returns when the daemon has
/// hung up. In a shim it returns when that has ended.
pub fn main() -> ExitCode {
    // What a terminal sends to the daemon's group, Ctrl-C for one, is not for us.
    let _ = setsid();
    reap_children();
    // Found now: the file may be replaced while we run.
    let Ok(executable) = std::env::current_exe() else { return ExitCode::FAILURE };
    let title = Title::find();
    // What is the same for every shim is looked up once: the copies have it.
    let _ = proc::process_id(std::process::id());
    while let Some((dir, report)) = request(io::stdin().as_fd()) {
        match fork() {
            Ok(Side::Parent) => {}
            Ok(Side::Child) => {
                if let Some(title) = title {
                    name(&title, &dir);
                }
                return match give_up_the_socket(report) {
                    Ok(()) => shim::main(&dir, &executable),
                    Err(_) => ExitCode::FAILURE,
                };
            }
            Err(error) => {
                let refused: Report = Err(Refusal::Failed(format!("its shim cannot be forked: {error}")));
                // A daemon that is gone needs no answer.
                let _ = serde_json::to_writer(File::from(report), &refused);
            }
        }
    }
    ExitCode::SUCCESS
}

/// The next folder for which there is to be a shim, and where that is to report. `None` when nobody asks any more.
fn request(socket: BorrowedFd<'_>) -> Option<(PathBuf, OwnedFd)> {
    loop {
        let mut path = [0; LONGEST_PATH];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = match recvmsg(socket, &mut [IoSliceMut::new(&mut path)], &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => continue,
            Err(_) => return None,
            Ok(received) if received.bytes == 0 => return None,
            Ok(received) => received.bytes,
        };
        let report = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        // Without a descriptor, which the kernel drops when we have too many, there is nobody to report to.
        let Some(report) = report else { continue };
        return Some((PathBuf::from(OsStr::from_bytes(&path[..received])), report));
    }
}

/// Makes `/proc` show a shim of this folder.
fn name(title: &Title, dir: &Path) {
    let arguments = [b"meshctl\0shim\0", dir.as_os_str().as_bytes()].concat();
    let id = dir.file_name().unwrap_or_default();
    let label = [INSTANCE_LABEL.as_bytes(), b"=", id.as_bytes()].concat();
    // Where the kernel does not let us, the shim is still found by its lock, and its program by the label of its own.
    let _ = title.write(&arguments, &label);
}

/// Leaves a shim with nothing but what it would have after an exec.
fn give_up_the_socket(report: OwnedFd) -> io::Result<()> {
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    rustix::stdio::dup2_stdout(report)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nursery_that_takes_nothing_is_given_up() {
        let (ours, _theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).expect("sockets");
        set_socket_timeout(&ours, Timeout::Send, Some(Duration::from_millis(10))).expect("a timeout");
        let frozen = Process { child: Command::new("true").spawn().expect("a process"), requests: ours };
        let (_report, writer) = io::pipe().expect("a pipe");
        let refused = (0..100_000).find_map(|_| frozen.ask(Path::new("/instance"), &writer).err());
        assert_eq!(refused.map(|why| why.kind()), Some(io::ErrorKind::WouldBlock));
    }
}
