//! The process runtime against the suite of its family, and against what only processes of this machine can suffer.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use meshctl_drivers::runtime::conformance::{conformance, line, script, within};
use meshctl_drivers::runtime::process::{ProcessRuntime, listening_ports, process_id};
use meshctl_drivers::runtime::{Found, FoundState, Line, Runtime, RuntimeError, SharedRuntime};
use meshctl_model::instance::{Exit, InstanceSpec, ProcessId, Program, SpecEnv};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use tempfile::TempDir;
use tokio::sync::mpsc::Receiver;

/// A state directory and a folder for programs. Dropped, it leaves no process behind, whatever became of the test.
struct Bench {
    state: TempDir,
    scratch: TempDir,
}

impl Bench {
    fn new() -> Self {
        Self { state: TempDir::new().unwrap(), scratch: TempDir::new().unwrap() }
    }

    fn runtime(&self) -> ProcessRuntime {
        ProcessRuntime::new(self.state.path(), executable()).unwrap()
    }

    fn script(&self, id: &str, text: &str) -> InstanceSpec {
        script(id, text, self.scratch.path())
    }

    /// Starts a script and follows what it prints.
    async fn start(&self, spec: &InstanceSpec) -> (ProcessRuntime, ProcessId, Receiver<Line>) {
        let runtime = self.runtime();
        let running = within("start", runtime.start(spec)).await.unwrap();
        let lines = runtime.logs(&spec.id, None, true);
        (runtime, running.process, lines)
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let runtime = self.runtime();
        // Without their folders all of them are orphans. Moved at once, because those that live still write.
        std::fs::rename(self.state.path().join("instances"), self.state.path().join("over")).unwrap();
        let swept = std::thread::spawn(move || {
            let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            tokio.block_on(Runtime::sweep(&runtime)).unwrap()
        });
        swept.join().unwrap();
    }
}

/// `examples/nursery.rs`, which Cargo builds with the tests.
fn executable() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let roles = test.ancestors().nth(2).unwrap().join("examples/nursery");
    assert!(roles.exists(), "{} is missing: run `cargo build -p meshctl-drivers --examples`", roles.display());
    roles
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conforms() {
    let bench = Bench::new();
    let runtime = || Arc::new(bench.runtime()) as SharedRuntime;
    conformance(&runtime, bench.scratch.path()).await;
}

/// A family that tries to get away: a child in the group, one in a session of its own, and one whose parents are gone.
const FAMILY: &str = r#"
    sh -c 'echo "child $$"; exec sleep 1000' &
    setsid sh -c 'trap "" TERM; echo "session $$"; while :; do sleep 1000; done' &
    sh -c "setsid sh -c 'echo \"orphan \$\$\"; exec sleep 1000' &"
    wait
"#;

/// The processes of [`FAMILY`], once all are there.
async fn family(lines: &mut Receiver<Line>) -> Vec<ProcessId> {
    let mut found = Vec::new();
    while found.len() < 3 {
        let words = line(lines, "").await;
        let pid = words.split(' ').nth(1).unwrap().parse().unwrap();
        found.push(process_id(pid).unwrap());
    }
    found
}

fn shim_of(program: &ProcessId) -> Pid {
    let status = std::fs::read_to_string(format!("/proc/{}/status", program.pid)).unwrap();
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap();
    Pid::from_raw(parent.trim().parse().unwrap()).unwrap()
}

/// Whether exactly this process still runs.
fn alive(process: &ProcessId) -> bool {
    process_id(process.pid).as_ref() == Some(process)
}

/// Waits for the end of a process that is not our child.
async fn gone(process: &ProcessId) {
    let Ok(fd) = pidfd_open(Pid::from_raw(process.pid as i32).unwrap(), PidfdFlags::empty()) else { return };
    if alive(process) {
        let wait =
            move || rustix::event::poll(&mut [rustix::event::PollFd::new(&fd, rustix::event::PollFlags::IN)], None);
        within("the end of a process", tokio::task::spawn_blocking(wait)).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn descendants_end_with_a_stop() {
    let bench = Bench::new();
    let (runtime, program, mut lines) = bench.start(&bench.script("family", FAMILY)).await;
    let family = family(&mut lines).await;
    within("stop", runtime.stop("family")).await.unwrap();
    let left: Vec<_> = family.iter().chain([&program]).filter(|process| alive(process)).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn descendants_end_when_the_program_ends() {
    let bench = Bench::new();
    let (runtime, program, mut lines) = bench.start(&bench.script("family", FAMILY)).await;
    let family = family(&mut lines).await;
    kill_process(Pid::from_raw(program.pid as i32).unwrap(), Signal::KILL).unwrap();
    let exit = within("the end", runtime.exited("family")).await;
    assert_eq!((exit.signal, exit.asked), (Some(9), false));
    let left: Vec<_> = family.iter().filter(|process| alive(process)).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn nothing_is_left_when_the_shim_is_killed() {
    let bench = Bench::new();
    let (runtime, program, mut lines) = bench.start(&bench.script("family", FAMILY)).await;
    let family = family(&mut lines).await;
    kill_process(shim_of(&program), Signal::KILL).unwrap();
    let exit = within("the end", runtime.exited("family")).await;
    assert!(exit.reason.as_deref().is_some_and(|reason| reason.starts_with("how is not known")), "{exit:?}");
    gone(&program).await;
    let left: Vec<_> = family.iter().filter(|process| alive(process)).collect();
    assert!(left.is_empty(), "{left:?}");

    // A daemon that comes back only now is told the same, and may start it again.
    let again = bench.runtime();
    match &within("a list", again.list()).await.unwrap()[..] {
        [Found { state: FoundState::Ended(Exit { code: None, signal: None, reason: Some(_), .. }), .. }] => {}
        other => panic!("{other:?}"),
    }
    within("start", again.start(&bench.script("family", "sleep 1000"))).await.unwrap();
}

#[tokio::test]
async fn the_group_of_a_wrapper_has_the_same_grace() {
    let bench = Bench::new();
    let wrapper = "trap 'exit 3' TERM
        (trap 'sleep 0.2; echo drained; exit 0' TERM; echo up; while :; do sleep 0.1; done) &
        while :; do wait; done";
    let (runtime, _, mut lines) = bench.start(&bench.script("wrapper", wrapper)).await;
    line(&mut lines, "up").await;
    let exit = within("stop", runtime.stop("wrapper")).await.unwrap();
    assert_eq!(exit.code, Some(3));
    line(&mut lines, "drained").await;
}

/// A power cut leaves what was not forced to the disk empty, torn or full of zeros.
#[tokio::test]
async fn a_damaged_folder_is_no_trouble_for_the_others() {
    let bench = Bench::new();
    let (runtime, program, _) = bench.start(&bench.script("whole", "exec sleep 1000")).await;
    let spec = bench.script("model", "exit 7");
    within("start", runtime.start(&spec)).await.unwrap();
    within("the end", runtime.exited("model")).await;
    let instances = bench.state.path().join("instances");
    let damages = |whole: &[u8]| [Vec::new(), whole[..whole.len() / 2].to_vec(), vec![0; whole.len()], b"{}".to_vec()];
    let mut damaged = Vec::new();
    for file in ["spec.json", "shim.json", "exit.json"] {
        for number in 0..4 {
            let id = format!("damaged-{file}-{number}");
            let dir = instances.join(&id);
            std::fs::create_dir(&dir).unwrap();
            std::fs::write(dir.join("spec.json"), serde_json::to_vec(&bench.script(&id, "exit 7")).unwrap()).unwrap();
            for word in ["shim.json", "exit.json"] {
                std::fs::copy(instances.join("model").join(word), dir.join(word)).unwrap();
            }
            let content = std::fs::read(dir.join(file)).unwrap();
            std::fs::write(dir.join(file), &damages(&content)[number]).unwrap();
            damaged.push((id, file));
        }
    }
    // No words but unreadable ones, and things that are no instance at all.
    std::fs::create_dir_all(instances.join("strange/spec.json")).unwrap();
    std::fs::create_dir_all(instances.join("empty")).unwrap();
    std::fs::write(instances.join("a-file"), "").unwrap();

    let found = within("a list", bench.runtime().list()).await.unwrap();
    let state = |id: &str| found.iter().find(|found| found.spec.id == id).map(|found| &found.state);
    assert!(matches!(state("whole"), Some(FoundState::Running(running)) if running.process == program));
    for (id, file) in &damaged {
        match (*file, state(id)) {
            ("spec.json", None) => {}
            // The exit says how it ended; who ran is past.
            ("shim.json", Some(FoundState::Ended(exit))) => assert_eq!(exit.code, Some(7), "{id}"),
            ("exit.json", Some(FoundState::Ended(exit))) => {
                let reason = exit.reason.as_deref().unwrap_or_default();
                assert!(exit.code.is_none() && reason.starts_with("how is not known"), "{id}: {exit:?}");
            }
            (_, state) => panic!("{id}: {state:?}"),
        }
    }
    assert_eq!(found.len(), 2 + 8, "whole, model, and those whose spec is whole");
    for (id, _) in &damaged {
        within("stop", runtime.stop(id)).await.unwrap();
        within("start", runtime.start(&bench.script(id, "exit 8"))).await.unwrap();
        assert_eq!(within("the end", runtime.exited(id)).await.code, Some(8), "{id} is as good as new");
        within("remove", runtime.remove(id)).await.unwrap();
    }
}

#[tokio::test]
async fn a_frozen_shim_is_no_trouble_for_the_others() {
    let bench = Bench::new();
    let (runtime, program, _) = bench.start(&bench.script("whole", "exec sleep 1000")).await;
    let (_, frozen, _) = bench.start(&bench.script("frozen", "exec sleep 1000")).await;
    // Before it has started its program, as far as the folder tells.
    kill_process(shim_of(&frozen), Signal::STOP).unwrap();
    std::fs::remove_file(bench.state.path().join("instances/frozen/shim.json")).unwrap();
    let found = within("a list", runtime.list()).await.unwrap();
    match &found[..] {
        [Found { state: FoundState::Ended(exit), .. }, Found { state: FoundState::Running(running), .. }] => {
            assert!(exit.reason.as_deref().unwrap_or_default().contains("neither starts nor ends"), "{exit:?}");
            assert_eq!(running.process, program);
        }
        other => panic!("{other:?}"),
    }
}

/// As after a deployment: the program is still being written, which is no reason to give it up.
#[tokio::test]
async fn a_program_that_is_being_written_is_tried_again() {
    let bench = Bench::new();
    let program = bench.scratch.path().join("program");
    std::fs::copy("/bin/true", &program).unwrap();
    let writer = std::fs::OpenOptions::new().append(true).open(&program).unwrap();
    let mut spec = bench.script("new", "");
    spec.program = Program::Command(vec![program.display().to_string()]);
    let runtime = bench.runtime();
    match within("a refusal", runtime.start(&spec)).await {
        Err(RuntimeError::Failed { why, .. }) => assert!(why.contains("busy"), "{why}"),
        other => panic!("{other:?}"),
    }
    drop(writer);
    // Another test may be between fork and exec and hold a copy of the descriptor for that long.
    while let Err(error) = within("start", runtime.start(&spec)).await {
        assert!(matches!(&error, RuntimeError::Failed { why, .. } if why.contains("busy")), "{error}");
    }
    assert_eq!(within("the end", runtime.exited("new")).await.code, Some(0));
}

/// Runs the shim as a daemon does that does not live to see it.
async fn shim(dir: &Path, heard: bool) -> std::process::Output {
    let (listener, pipe) = std::io::pipe().unwrap();
    let _listener = heard.then_some(listener);
    let mut command = tokio::process::Command::new(executable());
    command.arg("shim").arg(dir).stdout(pipe);
    let child = command.spawn().unwrap();
    drop(command);
    within("the end of a shim", child.wait_with_output()).await.unwrap()
}

/// The nursery that this test's runtime uses: the parent of its shims.
fn nursery_of(program: &ProcessId) -> ProcessId {
    let shim = shim_of(program).as_raw_nonzero().get().unsigned_abs();
    let nursery = shim_of(&process_id(shim).unwrap()).as_raw_nonzero().get().unsigned_abs();
    process_id(nursery).unwrap()
}

#[tokio::test]
async fn instances_outlive_the_nursery_and_the_next_one_starts() {
    let bench = Bench::new();
    let (runtime, first, mut lines) = bench.start(&bench.script("first", "echo up; exec sleep 1000")).await;
    line(&mut lines, "up").await;
    let nursery = nursery_of(&first);
    kill_process(Pid::from_raw(nursery.pid as i32).unwrap(), Signal::KILL).unwrap();
    gone(&nursery).await;
    let second = within("start", Runtime::start(&runtime, &bench.script("second", "exec sleep 1000"))).await.unwrap();
    assert!(alive(&first) && alive(&second.process));
    assert_ne!(nursery_of(&second.process), nursery);
    for id in ["first", "second"] {
        assert!(within("stop", runtime.stop(id)).await.unwrap().asked, "{id}");
    }
}

#[tokio::test]
async fn the_nursery_ends_with_the_daemon_and_instances_do_not() {
    let bench = Bench::new();
    let (runtime, program, lines) = bench.start(&bench.script("survivor", "exec sleep 1000")).await;
    let nursery = nursery_of(&program);
    drop((runtime, lines));
    gone(&nursery).await;
    assert!(alive(&program));
    match &within("a list", bench.runtime().list()).await.unwrap()[..] {
        [Found { state: FoundState::Running(running), .. }] => assert_eq!(running.process, program),
        other => panic!("{other:?}"),
    }
}

/// Where the descriptors of a process lead, without those that whoever ran this test has given to all of us.
fn descriptors(pid: u32) -> Vec<String> {
    let leads_to = |pid: &str, fd: &str| std::fs::read_link(format!("/proc/{pid}/fd/{fd}")).ok();
    let given = |fd: &str| {
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap_or_default();
        let flags = info.lines().find_map(|line| i32::from_str_radix(line.strip_prefix("flags:")?.trim(), 8).ok());
        flags.is_some_and(|flags| flags & 0o2000000 == 0) && leads_to("self", fd) == leads_to(&pid.to_string(), fd)
    };
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let ours = names.filter(|fd| matches!(&**fd, "0" | "1" | "2") || !given(fd));
    let mut found: Vec<_> =
        ours.filter_map(|fd| Some(leads_to(&pid.to_string(), &fd)?.display().to_string())).collect();
    found.sort();
    found
}

#[tokio::test]
async fn nobody_inherits_the_descriptors_of_the_daemon() {
    let bench = Bench::new();
    let held = bench.scratch.path().join("state.db");
    let _file = std::fs::File::create(&held).unwrap();
    let _listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let runtime = bench.runtime();
    let specs = ["one", "two"].map(|id| bench.script(id, "exec sleep 1000"));
    let starts = specs.iter().map(|spec| within("start", Runtime::start(&runtime, spec)));
    let programs: Vec<_> =
        futures_util::future::join_all(starts).await.into_iter().map(|it| it.unwrap().process).collect();
    let count = |of: &[String], kind: &str| of.iter().filter(|to| to.starts_with(kind)).count();
    for program in &programs {
        let (shim, nursery) = (shim_of(program).as_raw_nonzero().get().unsigned_abs(), nursery_of(program).pid);
        let (instance, shim, nursery) = (descriptors(program.pid), descriptors(shim), descriptors(nursery));
        // The socket through which it is asked, and nothing else.
        assert_eq!(nursery[..2], ["/dev/null", "/dev/null"]);
        assert!(nursery.len() == 3 && nursery[2].starts_with("socket:"), "{nursery:?}");
        assert!(!shim.contains(&nursery[2]), "{shim:?}");
        // Two pipes of the program's output, and the two ends of what its signals wake it through.
        assert_eq!(count(&shim, "pipe:"), 2, "{shim:?}");
        assert_eq!(count(&shim, "socket:"), 3, "{shim:?}");
        assert!(!shim.contains(&held.display().to_string()), "{shim:?}");
        assert_eq!(instance.len(), 3, "{instance:?}");
        assert!(instance[0] == "/dev/null" && count(&instance, "pipe:") == 2, "{instance:?}");
    }
}

#[tokio::test]
async fn a_shim_can_be_told_from_its_siblings() {
    let bench = Bench::new();
    let (_, program, _) = bench.start(&bench.script("marked", "exec sleep 1000")).await;
    let shim = shim_of(&program).as_raw_nonzero();
    let state = bench.state.path().canonicalize().unwrap();
    let read = |file: &str| String::from_utf8(std::fs::read(format!("/proc/{shim}/{file}")).unwrap()).unwrap();
    let words = format!("meshctl\0shim\0{}\0", state.join("instances/marked").display());
    assert_eq!(read("cmdline").trim_end_matches('\0'), words.trim_end_matches('\0'));
    let variables = read("environ");
    let variables: Vec<&str> = variables.split('\0').collect();
    assert!(variables.contains(&"MESHCTL_INSTANCE=marked"), "{variables:?}");
    assert!(variables.contains(&&*format!("MESHCTL_STATE_DIR={}", state.display())), "{variables:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_start_at_once_and_leave_nothing() {
    let bench = Bench::new();
    let runtime = Arc::new(bench.runtime());
    let starts: Vec<_> = (0..100)
        .map(|number| {
            let (runtime, spec) = (Arc::clone(&runtime), bench.script(&format!("many-{number}"), "exit 7"));
            tokio::spawn(async move {
                let running = Runtime::start(&*runtime, &spec).await.unwrap();
                (running.process, runtime.exited(&spec.id).await.code)
            })
        })
        .collect();
    let mut seen = std::collections::BTreeSet::new();
    for start in starts {
        let (process, code) = within("a start and its end", start).await.unwrap();
        assert_eq!(code, Some(7));
        assert!(seen.insert((process.pid, process.start_time)), "{process:?} is two instances");
    }
    // The kernel takes the shims in: none waits for the nursery to do so.
    let last = bench.script("last", "exec sleep 1000");
    let last = within("start", Runtime::start(&*runtime, &last)).await.unwrap();
    let nursery = nursery_of(&last.process).pid;
    let children = std::fs::read_to_string(format!("/proc/{nursery}/task/{nursery}/children")).unwrap();
    for child in children.split_whitespace() {
        let stat = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        assert!(!stat.contains(") Z "), "{stat}");
    }
}

#[tokio::test]
async fn a_second_shim_starts_nothing() {
    let bench = Bench::new();
    let (runtime, program, mut lines) = bench.start(&bench.script("single", "echo $$; exec sleep 1000")).await;
    line(&mut lines, "").await;
    let dir = bench.state.path().canonicalize().unwrap().join("instances/single");
    assert!(shim(&dir, true).await.status.success());
    match &within("a list", runtime.list()).await.unwrap()[..] {
        [Found { state: FoundState::Running(running), .. }] => assert_eq!(running.process, program),
        other => panic!("{other:?}"),
    }
    assert_eq!(runtime.tail("single", 10).await.len(), 1);
}

#[tokio::test]
async fn a_shim_whose_daemon_has_died_starts_nothing() {
    let bench = Bench::new();
    let runtime = bench.runtime();
    let spec = bench.script("late", "echo started");
    let dir = bench.state.path().canonicalize().unwrap().join("instances/late");
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("spec.json"), serde_json::to_vec(&spec).unwrap()).unwrap();
    assert!(shim(&dir, false).await.status.success());
    match &within("a list", runtime.list()).await.unwrap()[..] {
        [Found { state: FoundState::Ended(exit), .. }] => {
            assert_eq!(exit.reason.as_deref(), Some("it was never started"));
        }
        other => panic!("{other:?}"),
    }
    assert!(runtime.tail("late", 1).await.is_empty());
}

#[tokio::test]
async fn a_secret_is_in_no_file_and_no_argument() {
    let bench = Bench::new();
    let secret = bench.scratch.path().join("secret");
    std::fs::write(&secret, "canary-4711\n").unwrap();
    let mut spec = bench.script("secretive", r#"test ${#KEY} = 11 && echo known; exec sleep 1000"#);
    spec.env.insert("KEY".into(), SpecEnv::File(secret.display().to_string()));
    let (runtime, program, mut lines) = bench.start(&spec).await;
    line(&mut lines, "known").await;
    let shim = shim_of(&program).as_raw_nonzero();
    let mut looked_at = 0;
    let dir = bench.state.path().join("instances/secretive");
    let arguments = ["cmdline", "environ"].map(|file| PathBuf::from(format!("/proc/{shim}/{file}")));
    for path in std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).chain(arguments) {
        let content = std::fs::read(&path).unwrap();
        assert!(!content.windows(6).any(|window| window == b"canary"), "{}", path.display());
        looked_at += 1;
    }
    assert!(looked_at >= 6, "spec.json, lock, shim.json, log and two of /proc");
    let mode =
        |name: &str| std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(dir.join(name)).unwrap().permissions());
    assert_eq!((mode(".") & 0o777, mode("spec.json") & 0o777, mode("log") & 0o777), (0o700, 0o600, 0o600));

    std::fs::write(&secret, "canary\0").unwrap();
    within("stop", runtime.stop("secretive")).await.unwrap();
    let refused = within("a refusal", runtime.start(&spec)).await.unwrap_err().to_string();
    assert!(refused.contains("zero byte") && !refused.contains("canary\0"), "{refused}");
}

#[tokio::test]
async fn orphans_are_swept_and_others_are_not() {
    let bench = Bench::new();
    let (runtime, orphan, _) = bench.start(&bench.script("orphan", "exec sleep 1000")).await;
    let (_, known, _) = bench.start(&bench.script("known", "exec sleep 1000")).await;
    std::fs::remove_dir_all(bench.state.path().join("instances/orphan")).unwrap();
    // Started by nobody's shim: only one with both labels, and with those of this state directory, is an orphan.
    let state = bench.state.path().canonicalize().unwrap();
    let labelled = |state: Option<&Path>, instance: Option<&str>| {
        let mut command = tokio::process::Command::new("sleep");
        command.arg("1000").env_remove("MESHCTL_STATE_DIR").env_remove("MESHCTL_INSTANCE").kill_on_drop(true);
        command.envs(state.map(|dir| ("MESHCTL_STATE_DIR", dir)));
        command.envs(instance.map(|id| ("MESHCTL_INSTANCE", id)));
        command.spawn().unwrap()
    };
    let mut left_over = labelled(Some(&state), Some("orphan"));
    let mut strangers = [
        labelled(Some(&state), None),
        labelled(None, Some("orphan")),
        labelled(Some(bench.scratch.path()), Some("orphan")),
        labelled(Some(&state), Some("known")),
        labelled(Some(&state), Some("")),
    ];
    let swept = within("a sweep", Runtime::sweep(&runtime)).await.unwrap();
    assert!((2..=3).contains(&swept), "the program, its shim (which may end with it) and what is left over: {swept}");
    assert!(!alive(&orphan) && alive(&known));
    within("its end", left_over.wait()).await.unwrap();
    for stranger in &mut strangers {
        assert!(stranger.try_wait().unwrap().is_none(), "{stranger:?}");
    }
    assert_eq!(within("a sweep", Runtime::sweep(&runtime)).await.unwrap(), 0);
}

#[tokio::test]
async fn a_limit_of_open_files_is_the_programs_own() {
    let bench = Bench::new();
    let mut spec = bench.script("limited", "ulimit -n; ulimit -Hn");
    spec.resources.open_files = Some(16);
    let (_, _, mut lines) = bench.start(&spec).await;
    assert_eq!((line(&mut lines, "").await, line(&mut lines, "").await), ("16".into(), "16".into()));
}

/// Processor time only: the memory controller is the same code, and the group that this test runs in may belong to
/// somebody who does not want groups in it.
#[tokio::test]
async fn a_limit_of_processor_time_holds_or_its_lack_is_said() {
    let bench = Bench::new();
    for ending in ["stop", "killed shim"] {
        let mut spec = bench.script("throttled", "echo up; exec sleep 1000");
        spec.resources.cpu = Some(0.5);
        let (runtime, program, mut lines) = bench.start(&spec).await;
        let first = line(&mut lines, "").await;
        if first != "up" {
            assert!(first.starts_with("meshctl: the cpu limit is not enforced: "), "{first}");
            assert!(first.contains("control group"), "{first}");
            return;
        }
        let record = std::fs::read(bench.state.path().join("instances/throttled/shim.json")).unwrap();
        let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
        let group = PathBuf::from(record["controlGroups"][0].as_str().unwrap());
        let read = |file: &str| std::fs::read_to_string(group.join(file)).unwrap_or_default();
        assert_eq!(read("cgroup.procs").trim(), program.pid.to_string(), "the program and not its shim");
        let quota = read("cpu.max") + &read("cpu.cfs_quota_us");
        assert!(quota.starts_with("50000"), "{quota}");
        match ending {
            "stop" => {
                within("stop", runtime.stop("throttled")).await.unwrap();
            }
            _ => {
                kill_process(shim_of(&program), Signal::KILL).unwrap();
                gone(&program).await;
                within("the end", runtime.exited("throttled")).await;
            }
        }
        assert!(!group.exists(), "{ending}: {}", group.display());
    }
}

#[tokio::test]
async fn a_role_of_meshctl_runs_with_its_arguments() {
    let bench = Bench::new();
    let mut spec = bench.script("role", "");
    // The example ends with status 2 unless it is told a role.
    spec.program = Program::Meshctl(Vec::new());
    let (runtime, ..) = bench.start(&spec).await;
    assert_eq!(within("the end", runtime.exited("role")).await.code, Some(2));
}

#[tokio::test]
async fn a_log_that_cannot_be_written_holds_up_nobody() {
    let bench = Bench::new();
    let dir = bench.state.path().join("instances/full");
    std::fs::create_dir_all(&dir).unwrap();
    std::os::unix::fs::symlink("/dev/full", dir.join("log")).unwrap();
    let spec = bench.script("full", "i=0; while [ $i -lt 20000 ]; do echo \"line $i\"; i=$((i+1)); done; exit 9");
    let runtime = bench.runtime();
    within("start", runtime.start(&spec)).await.unwrap();
    assert_eq!(within("the end", runtime.exited("full")).await.code, Some(9));
}

#[tokio::test]
async fn ports_in_use_are_known() {
    let four = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = four.local_addr().unwrap().port();
    assert!(listening_ports().unwrap().contains(&port));
    let connected = std::net::TcpStream::connect(four.local_addr().unwrap()).unwrap();
    let client = connected.local_addr().unwrap().port();
    assert!(!listening_ports().unwrap().contains(&client), "a client does not listen");
}

#[tokio::test]
async fn a_name_that_would_leave_the_folder_is_refused() {
    let bench = Bench::new();
    let runtime = bench.runtime();
    for id in ["", ".", "..", "../x", "a/b"] {
        assert!(runtime.start(&bench.script(id, "exit 0")).await.is_err(), "{id:?}");
        assert!(runtime.remove(id).await.is_err(), "{id:?}");
    }
}
