//! The shim: a small process of its own for every instance, which starts the program, keeps its output and its exit, and
//! ends everything that came of it. It survives the daemon, so that the daemon may die, return and find everything as it was.
//!
//! Invariants: whoever holds the folder's lock is the one shim of the instance, so no crash of the daemon between any two
//! steps can give a second program. The program never outlives its shim. Nothing of the instance outlives the program.
//! The shim has one thread: the kernel ties the program's life to the thread that started it.

use std::fs::{File, OpenOptions};
use std::io::{self, PipeReader, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use meshctl_model::instance::{Exit, InstanceSpec, Program};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{
    Pid, Resource, Rlimit, Signal, WaitOptions, WaitStatus, getpid, getppid, getrlimit, kill_process,
    kill_process_group, set_child_subreaper, set_parent_process_death_signal, setrlimit, setsid, wait,
};
use signal_hook::consts::{SIGCHLD, SIGTERM};

use super::environment::environment;
use super::folder::{Folder, Record, Refusal, Report};
use super::limits;
use super::output::Output;
use super::proc;
use crate::runtime::Stream;

/// The life of a shim: starts the program that `dir/spec.json` describes, and returns when nothing of it is left. Standard
/// output is a pipe to the daemon, which learns through it whether the program was started. `executable` is meshctl's own,
/// for programs that are roles of it. The process has one thread, and its descriptors are the standard three.
pub fn main(dir: &Path, executable: &Path) -> ExitCode {
    let folder = Folder { dir: dir.to_owned() };
    // Held until the process is gone. If another shim has it, the instance is in good hands; if whoever asked for it has died
    // meanwhile, its successor has looked already, seen no shim, and decides anew.
    let Ok(Some(_lock)) = folder.lock() else { return ExitCode::SUCCESS };
    if nobody_reads(io::stdout().as_fd()) {
        return ExitCode::SUCCESS;
    }
    let begun = folder
        .clear()
        .map_err(|error| Refusal::Failed(error.to_string()))
        .and_then(|()| Shim::begin(&folder, executable));
    let report: Report = begun.as_ref().map(|(_, record)| record.clone()).map_err(Refusal::clone);
    if let Err(Refusal::Unstartable(why) | Refusal::Failed(why)) = &report {
        let exit = Exit { at: Timestamp::now(), code: None, signal: None, asked: false, reason: Some(why.clone()) };
        // On a full disk the daemon learns it from the report alone.
        let _ = folder.write_exit(&exit);
    }
    tell(&report);
    match begun {
        Ok((shim, _)) => shim.watch(),
        Err(_) => return ExitCode::FAILURE,
    }
    ExitCode::SUCCESS
}

fn nobody_reads(pipe: BorrowedFd<'_>) -> bool {
    let mut watched = [PollFd::new(&pipe, PollFlags::empty())];
    poll(&mut watched, Some(&Timespec::default())).is_ok() && watched[0].revents().contains(PollFlags::ERR)
}

/// Tells the daemon and hangs up: the end of the pipe is what the daemon waits for.
fn tell(report: &Report) {
    // A daemon that is gone reads `shim.json` when it is back.
    let _ = serde_json::to_writer(io::stdout(), report).map_err(io::Error::from).and_then(|()| io::stdout().flush());
    if let Ok(nowhere) = OpenOptions::new().write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stdout(&nowhere);
    }
}

struct Shim {
    folder: Folder,
    spec: InstanceSpec,
    program: Pid,
    _groups: Groups,
    /// Readable after SIGCHLD and SIGTERM.
    signals: UnixStream,
    asked_to_stop: Arc<AtomicBool>,
    outputs: Vec<(Stream, PipeReader)>,
    log: Output,
}

/// Control groups that go with us.
struct Groups(Vec<PathBuf>);

impl Drop for Groups {
    fn drop(&mut self) {
        limits::remove(&self.0);
    }
}

impl Shim {
    /// Starts the program. Nothing of it is left when that fails.
    fn begin(folder: &Folder, executable: &Path) -> Result<(Self, Record), Refusal> {
        let failed = |what: &'static str| move |error: io::Error| Refusal::Failed(format!("{what}: {error}"));
        let spec = folder
            .spec()
            .map_err(|error| Refusal::Failed(error.to_string()))?
            .ok_or_else(|| Refusal::Failed(format!("there is no spec.json in {}", folder.dir.display())))?;

        // Already the leader of a session when started by hand from a shell.
        let _ = setsid();
        set_child_subreaper(Some(getpid())).map_err(|error| failed("cannot adopt descendants")(error.into()))?;
        // Before the program exists: a SIGTERM from now on means "stop it".
        let asked_to_stop = Arc::new(AtomicBool::new(false));
        let signals = listen_to_signals(&asked_to_stop).map_err(failed("cannot listen to signals"))?;

        let mut log = Output::new(&folder.dir, spec.log_max_size.0, spec.log_files);
        let (stdout, stdout_end) = io::pipe().map_err(failed("cannot make a pipe"))?;
        let (stderr, stderr_end) = io::pipe().map_err(failed("cannot make a pipe"))?;
        for end in [stdout.as_fd(), stderr.as_fd()] {
            rustix::io::ioctl_fionbio(end, true).map_err(|error| failed("cannot read a pipe")(error.into()))?;
        }
        // Unique on this machine for as long as we live.
        let limits = limits::make(&spec.resources, &format!("meshctl-{}-{}", spec.id, std::process::id()));
        for unenforced in &limits.unenforced {
            log.notice(unenforced, Timestamp::now());
        }
        let groups = Groups(limits.dirs);
        let mut command = command(folder, &spec, executable, limits.entrances)?;
        command.stdin(Stdio::null()).stdout(stdout_end).stderr(stderr_end);
        let child = command.spawn().map_err(|error| refusal(&spec, &error))?;
        // The command holds our copies of the program's ends of the pipes, and the content of secret files.
        drop(command);

        let program = Pid::from_child(&child);
        let started_at = Timestamp::now();
        let identities = proc::process_id(std::process::id()).zip(proc::identity_of_child(child.id()));
        let Some((shim, id)) = identities else {
            let _ = end_descendants();
            return Err(Refusal::Failed("cannot read /proc: is it mounted?".to_owned()));
        };
        let record = Record { shim, program: id, started_at, control_groups: groups.0.clone() };
        if let Err(error) = folder.write_record(&record) {
            // A program that a restarted daemon could not find must not run.
            let _ = end_descendants();
            return Err(Refusal::Failed(error.to_string()));
        }
        let outputs = vec![(Stream::Stdout, stdout), (Stream::Stderr, stderr)];
        let shim =
            Self { folder: folder.clone(), spec, program, _groups: groups, signals, asked_to_stop, outputs, log };
        Ok((shim, record))
    }

    /// Until the program has ended, and everything that came of it.
    fn watch(mut self) {
        let mut exit = None;
        // When SIGKILL is due; `None` before we were asked to stop.
        let mut deadline: Option<Instant> = None;
        loop {
            self.wait_for_something(deadline);
            if deadline.is_none() && self.asked_to_stop.load(Ordering::SeqCst) {
                if exit.is_none() {
                    // The group exists for as long as its leader is not reaped, so this cannot hit a stranger.
                    let _ = kill_process_group(self.program, Signal::TERM);
                }
                deadline = Some(Instant::now() + self.spec.grace.get());
            }
            let (ended, childless) = reap();
            for (pid, status) in ended {
                if pid == self.program {
                    exit = Some(self.exit(status, deadline.is_some()));
                }
            }
            let grace_is_over = deadline.is_some_and(|deadline| Instant::now() >= deadline);
            match &exit {
                // A wrapper that passes SIGTERM on ends before what it wraps: the rest of its group has the same grace.
                Some(_) if deadline.is_some() && !grace_is_over && !childless && self.group_lives() => {}
                Some(_) => break,
                None if grace_is_over => {
                    let _ = kill_process_group(self.program, Signal::KILL);
                    deadline = deadline.map(|deadline| deadline + Duration::from_secs(1));
                }
                None => {}
            }
        }
        if let Err(why) = end_descendants() {
            self.log.notice(&why, Timestamp::now());
        }
        // Every writer is gone, so what is in the pipes now is all there will be: at most a MiB each. A writer that we were not
        // permitted to end could go on for ever.
        for _ in 0..16 {
            self.read_outputs();
        }
        for (stream, _) in std::mem::take(&mut self.outputs) {
            self.log.finish(stream, Timestamp::now());
        }
        if let Some(exit) = exit {
            // On a full disk the daemon still sees that we are gone, and says that it does not know how it ended.
            let _ = self.folder.write_exit(&exit);
        }
    }

    /// Waits for output, a signal or the deadline, and takes in all output there is.
    fn wait_for_something(&mut self, deadline: Option<Instant>) {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let timeout =
            left.map(|left| Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) });
        let mut watched: Vec<_> = self.outputs.iter().map(|(_, pipe)| PollFd::new(pipe, PollFlags::IN)).collect();
        watched.push(PollFd::new(&self.signals, PollFlags::IN));
        // Interrupted is as good as woken: the caller looks at everything.
        let _ = poll(&mut watched, timeout.as_ref());
        let mut word = [0; 64];
        while self.signals.read(&mut word).is_ok_and(|read| read > 0) {}
        self.read_outputs();
    }

    /// Reads each pipe once. A pipe that is over is let go.
    fn read_outputs(&mut self) {
        // Not zeroed: a shim whose program is silent never touches this memory, and there are hundreds of shims.
        let mut buffer = [MaybeUninit::uninit(); 64 * 1024];
        let log = &mut self.log;
        self.outputs.retain_mut(|(stream, pipe)| match rustix::io::read(&*pipe, &mut buffer) {
            Ok(([], _)) => {
                log.finish(*stream, Timestamp::now());
                false
            }
            Ok((bytes, _)) => {
                log.take(*stream, bytes, Timestamp::now());
                true
            }
            Err(error) => matches!(error, Errno::AGAIN | Errno::INTR),
        });
    }

    fn exit(&self, status: WaitStatus, asked: bool) -> Exit {
        let (code, signal) = (status.exit_status(), status.terminating_signal());
        Exit { at: Timestamp::now(), code, signal, asked, reason: None }
    }

    /// Whether anything is left of the program's own process group; only asked when the program itself has ended.
    fn group_lives(&self) -> bool {
        let group = self.program.as_raw_nonzero().get().unsigned_abs();
        proc::descendants(std::process::id()).into_iter().filter_map(proc::stat).any(|stat| stat.group == group)
    }
}

fn listen_to_signals(asked_to_stop: &Arc<AtomicBool>) -> io::Result<UnixStream> {
    let (signals, wake) = UnixStream::pair()?;
    signals.set_nonblocking(true)?;
    signal_hook::flag::register(SIGTERM, Arc::clone(asked_to_stop))?;
    signal_hook::low_level::pipe::register(SIGTERM, wake.try_clone()?)?;
    signal_hook::low_level::pipe::register(SIGCHLD, wake)?;
    Ok(signals)
}

fn command(folder: &Folder, spec: &InstanceSpec, executable: &Path, groups: Vec<File>) -> Result<Command, Refusal> {
    let mut command = match &spec.program {
        Program::Meshctl(arguments) => {
            let mut command = Command::new(executable);
            command.args(arguments);
            command
        }
        Program::Command(words) => {
            let Some((program, arguments)) = words.split_first() else {
                return Err(Refusal::Unstartable("its command is empty".to_owned()));
            };
            let mut command = Command::new(program);
            command.args(arguments);
            command
        }
    };
    // `STATE_DIR/instances/ID`
    let state_dir = folder.dir.ancestors().nth(2).unwrap_or(Path::new("/"));
    command.env_clear().envs(environment(spec, state_dir)?);
    match std::fs::metadata(&spec.working_dir) {
        Ok(found) if found.is_dir() => {}
        Ok(_) => {
            return Err(Refusal::Unstartable(format!("its working directory {} is not a directory", spec.working_dir)));
        }
        Err(error) => {
            let why = format!("its working directory {} cannot be entered: {error}", spec.working_dir);
            return Err(Refusal::new(&error, why));
        }
    }
    command.current_dir(&spec.working_dir);
    let open_files = spec.resources.open_files.map(|files| Rlimit { current: Some(files), maximum: Some(files) });
    tie_to_us(&mut command, open_files, groups);
    Ok(command)
}

/// Gives the program a session and so a process group of its own, and a life that ends with ours.
#[allow(unsafe_code)]
fn tie_to_us(command: &mut Command, open_files: Option<Rlimit>, groups: Vec<File>) {
    let shim = getpid();
    let between_fork_and_exec = move || {
        setsid()?;
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // The signal is sent at the moment of our death; if that has passed already, it would never come.
        if getppid() != Some(shim) {
            return Err(Errno::SRCH.into());
        }
        for group in &groups {
            rustix::io::write(group, b"0")?;
        }
        if let Some(limit) = open_files {
            setrlimit(Resource::Nofile, limit)?;
        }
        Ok(())
    };
    // SAFETY: the closure allocates nothing, takes no lock and makes plain system calls only, which is what may be done
    // between fork and exec; and the shim has one thread anyway.
    unsafe { command.pre_exec(between_fork_and_exec) };
}

fn refusal(spec: &InstanceSpec, error: &io::Error) -> Refusal {
    let program = match &spec.program {
        Program::Meshctl(_) => "meshctl's own executable",
        Program::Command(words) => words.first().map_or("", String::as_str),
    };
    let hard = getrlimit(Resource::Nofile).maximum;
    let why = match (error.kind(), spec.resources.open_files) {
        (io::ErrorKind::PermissionDenied, Some(wanted)) if hard.is_some_and(|hard| hard < wanted) => {
            let hard = hard.unwrap_or_default();
            format!("{wanted} open files are more than the {hard} that this machine allows (see `ulimit -Hn`)")
        }
        (io::ErrorKind::NotFound, _) if !program.contains('/') => {
            format!("cannot execute {program}: no such program in the PATH")
        }
        (io::ErrorKind::NotFound, _) if Path::new(&spec.working_dir).join(program).exists() => {
            format!("cannot execute {program}: the interpreter or loader that it names does not exist")
        }
        _ => format!("cannot execute {program}: {error}"),
    };
    Refusal::new(error, why)
}

/// Takes in all children that have ended, and tells whether there are no others.
fn reap() -> (Vec<(Pid, WaitStatus)>, bool) {
    let mut ended = Vec::new();
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some(child)) => ended.push(child),
            answer => return (ended, answer.is_err_and(|error| error == Errno::CHILD)),
        }
    }
}

/// Kills our children until there are none. What a dead child leaves behind becomes our child, so this reaches every
/// descendant, also one that has made a session of its own.
fn end_descendants() -> Result<(), String> {
    loop {
        let (_, childless) = reap();
        if childless {
            return Ok(());
        }
        let children = proc::children(std::process::id());
        if children.is_empty() {
            return Ok(());
        }
        // Only we can reap our children, so these pids are theirs until then.
        let refused: Vec<u32> = children
            .iter()
            .copied()
            .filter(|child| proc::pid(*child).is_some_and(|pid| kill_process(pid, Signal::KILL).is_err()))
            .collect();
        if refused.len() == children.len() {
            return Err(format!("processes {refused:?} are left: not permitted to end them"));
        }
        let _ = wait(WaitOptions::empty());
    }
}
