//! What every runtime must do, as a suite that every driver runs in its tests. It uses nothing but the contract and `sh`,
//! and waits for events, never for time; how long a broken driver can hang is bounded by a minute.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use meshctl_model::instance::{Check, Exit, InstanceSpec, Probe, Program, SpecEnv};
use meshctl_model::topology::Resources;
use meshctl_model::units::{Bytes, Span};
use tokio::sync::mpsc::Receiver;

use super::{Found, FoundState, Line, RuntimeError, SharedRuntime, Stream};

const PATIENCE: Duration = Duration::from_secs(60);

/// Runs the whole suite. `runtime` makes a new value over the same instances each time, as a daemon that starts again does;
/// `scratch` is an empty folder that the programs can read.
///
/// # Panics
/// At the first promise that the driver does not keep.
pub async fn conformance(runtime: &dyn Fn() -> SharedRuntime, scratch: &Path) {
    starts_once(runtime(), scratch).await;
    tells_exit_status_and_signal(runtime(), scratch).await;
    starts_again_after_the_end(runtime(), scratch).await;
    names_what_cannot_start(runtime(), scratch).await;
    gives_the_environment(runtime(), scratch).await;
    stops_with_grace(runtime(), scratch).await;
    stops_by_force(runtime(), scratch).await;
    adopts_after_a_restart(runtime, scratch).await;
    never_starts_two_of_one(runtime, scratch).await;
    keeps_the_output(runtime(), scratch).await;
    follows_the_output_across_rotation(runtime(), scratch).await;
    forgets(runtime(), scratch).await;
}

/// A program for `sh`, with defaults in all else.
pub fn script(id: &str, script: &str, scratch: &Path) -> InstanceSpec {
    InstanceSpec {
        id: id.to_owned(),
        service: "conformance".to_owned(),
        program: Program::Command(vec!["sh".to_owned(), "-c".to_owned(), script.to_owned()]),
        files: std::collections::BTreeMap::new(),
        env: BTreeMap::new(),
        working_dir: scratch.display().to_string(),
        port: None,
        health: Probe { check: Check::Running, interval: Span::from_secs(1), timeout: Span::from_secs(1), failures: 3 },
        grace: Span::from_secs(60),
        resources: Resources::default(),
        log_max_size: Bytes(8 << 20),
        log_files: 2,
    }
}

/// Waits for what must happen.
///
/// # Panics
/// When it does not.
pub async fn within<T>(what: &str, event: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, event).await {
        Ok(value) => value,
        Err(_) => panic!("nothing happened for {PATIENCE:?}: {what}"),
    }
}

/// Waits for a line of output that begins with `prefix` and returns the rest of it.
///
/// # Panics
/// When it does not come.
pub async fn line(lines: &mut Receiver<Line>, prefix: &str) -> String {
    within(&format!("a line that begins with {prefix:?}"), async {
        while let Some(line) = lines.recv().await {
            if let Some(rest) = line.text.strip_prefix(prefix) {
                return rest.to_owned();
            }
        }
        panic!("the output ended without a line that begins with {prefix:?}");
    })
    .await
}

async fn run(runtime: &SharedRuntime, spec: &InstanceSpec) -> Exit {
    within("start", runtime.start(spec)).await.expect("it starts");
    within("the end", runtime.exited(&spec.id)).await
}

async fn find(runtime: &SharedRuntime, id: &str) -> Option<Found> {
    let found = within("a list", runtime.list()).await.expect("a list");
    found.into_iter().find(|found| found.spec.id == id)
}

async fn starts_once(runtime: SharedRuntime, scratch: &Path) {
    let spec = script("once", "exec sleep 1000", scratch);
    let first = within("start", runtime.start(&spec)).await.expect("it starts");
    let second = within("start", runtime.start(&spec)).await.expect("it is there");
    assert_eq!(first, second, "a second start gives the running one");
    let exit = within("stop", runtime.stop(&spec.id)).await.expect("it stops");
    assert!(exit.asked, "{exit:?}");
    let again = within("stop", runtime.stop(&spec.id)).await.expect("it is stopped");
    assert_eq!(exit, again, "stopping twice is stopping once");
    within("stop", runtime.stop("nobody-1")).await.expect("what does not exist is stopped");
}

async fn tells_exit_status_and_signal(runtime: SharedRuntime, scratch: &Path) {
    let exit = run(&runtime, &script("status", "exit 7", scratch)).await;
    assert_eq!((exit.code, exit.signal, exit.asked, &exit.reason), (Some(7), None, false, &None));
    let exit = run(&runtime, &script("signal", "kill -9 $$", scratch)).await;
    assert_eq!((exit.code, exit.signal, exit.asked, &exit.reason), (None, Some(9), false, &None));
    let later = within("the end", runtime.exited("signal")).await;
    assert_eq!(exit, later, "whoever asks later hears the same");
}

async fn starts_again_after_the_end(runtime: SharedRuntime, scratch: &Path) {
    for code in [3, 4] {
        let exit = run(&runtime, &script("again", &format!("echo run {code}; exit {code}"), scratch)).await;
        assert_eq!(exit.code, Some(code));
    }
    let texts: Vec<String> = runtime.tail("again", 10).await.into_iter().map(|line| line.text).collect();
    assert_eq!(texts, ["run 3", "run 4"], "the output of the run before is kept");
}

async fn names_what_cannot_start(runtime: SharedRuntime, scratch: &Path) {
    let broken = |id: &str, change: &dyn Fn(&mut InstanceSpec)| {
        let mut spec = script(id, "exit 0", scratch);
        change(&mut spec);
        spec
    };
    let cases = [
        (broken("no-program", &|spec| spec.program = Program::Command(vec!["./no-such".into()])), "./no-such"),
        (broken("not-in-path", &|spec| spec.program = Program::Command(vec!["no-such".into()])), "no-such"),
        (broken("no-folder", &|spec| spec.working_dir = "/no/such/folder".into()), "/no/such/folder"),
        (
            broken("no-file", &|spec| {
                spec.env.insert("KEY".into(), SpecEnv::File("/no/such/key".into()));
            }),
            "/no/such/key",
        ),
        (broken("no-command", &|spec| spec.program = Program::Command(Vec::new())), "empty"),
    ];
    for (spec, named) in cases {
        match within("a refusal", runtime.start(&spec)).await {
            Err(RuntimeError::Unstartable { id, why }) => {
                assert_eq!(id, spec.id);
                assert!(why.contains(named), "{why:?} does not name {named:?}");
            }
            other => panic!("{}: {other:?}", spec.id),
        }
        let found = find(&runtime, &spec.id).await;
        assert!(!matches!(found, Some(Found { state: FoundState::Running(_), .. })), "{}", spec.id);
        within("an end", runtime.exited(&spec.id)).await;
    }
}

async fn gives_the_environment(runtime: SharedRuntime, scratch: &Path) {
    std::fs::write(scratch.join("key"), "canary\n\n").expect("scratch can be written");
    let ask =
        r#"echo "$PORT|$HOST|$PLAIN|$KEY|$MESHCTL_INSTANCE|$MESHCTL_SERVICE"; cat "$MESHCTL_FILES/words"; pwd -P"#;
    let mut spec = script("environment", ask, scratch);
    spec.port = Some(20_999);
    spec.env.insert("PLAIN".into(), SpecEnv::Text("a b".into()));
    spec.env.insert("KEY".into(), SpecEnv::File(scratch.join("key").display().to_string()));
    spec.files.insert("words".into(), "from a file\n".into());
    run(&runtime, &spec).await;
    let text = runtime.tail("environment", 4).await.into_iter().map(|line| line.text).collect::<Vec<_>>().join("\n");
    let folder = scratch.canonicalize().expect("scratch is there");
    // One newline is the file's, the second belongs to the value.
    assert_eq!(
        text,
        format!("20999|127.0.0.1|a b|canary\n|environment|conformance\nfrom a file\n{}", folder.display())
    );
}

async fn stops_with_grace(runtime: SharedRuntime, scratch: &Path) {
    let spec = script("graceful", "trap 'echo going; exit 5' TERM; echo up; while :; do sleep 0.1; done", scratch);
    within("start", runtime.start(&spec)).await.expect("it starts");
    let mut lines = runtime.logs(&spec.id, None, true);
    line(&mut lines, "up").await;
    let exit = within("stop", runtime.stop(&spec.id)).await.expect("it stops");
    assert_eq!((exit.code, exit.signal, exit.asked), (Some(5), None, true));
    line(&mut lines, "going").await;
}

async fn stops_by_force(runtime: SharedRuntime, scratch: &Path) {
    let mut spec = script("stubborn", "trap '' TERM; echo up; while :; do sleep 0.1; done", scratch);
    spec.grace = Span::from_millis(50);
    within("start", runtime.start(&spec)).await.expect("it starts");
    line(&mut runtime.logs(&spec.id, None, true), "up").await;
    let exit = within("stop", runtime.stop(&spec.id)).await.expect("it stops");
    assert_eq!((exit.code, exit.signal, exit.asked), (None, Some(9), true));
}

async fn adopts_after_a_restart(runtime: &dyn Fn() -> SharedRuntime, scratch: &Path) {
    let before = runtime();
    let spec = script("adopted", "read go <go; exit 6", scratch);
    let fifo = scratch.join("go");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RWXU).expect("a fifo");
    let running = within("start", before.start(&spec)).await.expect("it starts");
    drop(before);

    let after = runtime();
    let Some(Found { state: FoundState::Running(found), spec: found_spec }) = find(&after, "adopted").await else {
        panic!("it is not found");
    };
    assert_eq!((found, found_spec), (running.clone(), spec.clone()), "it is found as it was started");
    assert_eq!(within("start", after.start(&spec)).await.expect("it is there"), running);
    let go = tokio::task::spawn_blocking(move || std::fs::write(fifo, "go\n"));
    let exit = within("the end", after.exited("adopted")).await;
    within("the write", go).await.expect("it ran").expect("it is written");
    assert_eq!(exit.code, Some(6), "the exit status of an adopted program is known");

    match find(&runtime(), "adopted").await {
        Some(Found { state: FoundState::Ended(ended), .. }) => assert_eq!(ended, exit),
        other => panic!("{other:?}"),
    }
}

async fn never_starts_two_of_one(runtime: &dyn Fn() -> SharedRuntime, scratch: &Path) {
    let spec = Arc::new(script("crowd", "echo started; exec sleep 1000", scratch));
    let starts: Vec<_> = (0..8)
        .map(|_| {
            let (runtime, spec) = (runtime(), Arc::clone(&spec));
            tokio::spawn(async move { runtime.start(&spec).await })
        })
        .collect();
    let mut running = Vec::new();
    for start in starts {
        running.push(within("start", start).await.expect("no panic").expect("it runs"));
    }
    assert!(running.iter().all(|one| *one == running[0]), "all got the same: {running:?}");
    let runtime = runtime();
    line(&mut runtime.logs("crowd", None, true), "started").await;
    within("stop", runtime.stop("crowd")).await.expect("it stops");
    assert_eq!(runtime.tail("crowd", 10).await.len(), 1, "one was started");
}

async fn keeps_the_output(runtime: SharedRuntime, scratch: &Path) {
    let long = 40_000;
    let print = format!("echo out; echo err >&2; printf '%0{long}d\\n' 0; printf 'no newline'");
    let begun = Timestamp::now();
    run(&runtime, &script("output", &print, scratch)).await;

    let mut lines = runtime.tail("output", 10).await;
    assert!(lines.iter().all(|line| line.at >= begun && line.at <= Timestamp::now()));
    let error = lines.iter().position(|line| line.stream == Stream::Stderr).expect("a line of stderr");
    assert_eq!(lines.remove(error).text, "err");
    let texts: Vec<&str> = lines.iter().map(|line| line.text.as_str()).collect();
    assert_eq!(texts, ["out", &"0".repeat(long), "no newline"]);
    assert_eq!(runtime.tail("output", 1).await.len(), 1);
    assert_eq!(runtime.tail("nobody-1", 1).await.len(), 0);

    let all = runtime.logs("output", None, false);
    assert_eq!(within("all lines", drain(all)).await.len(), 4, "without following, the output ends");
    let last = lines[2].at;
    assert_eq!(within("no line", drain(runtime.logs("output", Some(last), false))).await.len(), 0);
}

async fn drain(mut lines: Receiver<Line>) -> Vec<Line> {
    let mut all = Vec::new();
    while let Some(line) = lines.recv().await {
        all.push(line);
    }
    all
}

async fn follows_the_output_across_rotation(runtime: SharedRuntime, scratch: &Path) {
    // Each line waits for the reader, so that rotation cannot overtake it: what must not be lost is what was not yet old.
    let go = scratch.join("next");
    rustix::fs::mkfifoat(rustix::fs::CWD, &go, rustix::fs::Mode::RWXU).expect("a fifo");
    let count = "exec 3<>next; i=0; while [ $i -lt 200 ]; do echo \"line $i\"; i=$((i+1)); read go <&3; done; exit 0";
    let mut spec = script("rotating", count, scratch);
    spec.log_max_size = Bytes(1024);
    spec.log_files = 3;
    within("start", runtime.start(&spec)).await.expect("it starts");
    let mut lines = runtime.logs("rotating", None, true);
    let mut pace = tokio::net::unix::pipe::OpenOptions::new().read_write(true).open_sender(&go).expect("the fifo");
    for number in 0..200 {
        assert_eq!(line(&mut lines, "line ").await, number.to_string());
        within("pace", tokio::io::AsyncWriteExt::write_all(&mut pace, b"go\n")).await.expect("it is written");
    }
    assert_eq!(within("the end", runtime.exited("rotating")).await.code, Some(0));
    let kept = runtime.tail("rotating", 200).await;
    assert!(kept.len() > 30 && kept.len() < 100, "3 files of 1 KiB keep some of it: {}", kept.len());
    assert_eq!(kept.last().map(|line| line.text.as_str()), Some("line 199"));
}

async fn forgets(runtime: SharedRuntime, scratch: &Path) {
    let spec = script("forgotten", "exec sleep 1000", scratch);
    within("start", runtime.start(&spec)).await.expect("it starts");
    assert!(runtime.remove("forgotten").await.is_err(), "what runs is not forgotten");
    within("stop", runtime.stop("forgotten")).await.expect("it stops");
    within("remove", runtime.remove("forgotten")).await.expect("it is forgotten");
    within("remove", runtime.remove("forgotten")).await.expect("twice is once");
    assert!(find(&runtime, "forgotten").await.is_none());
    assert!(runtime.tail("forgotten", 10).await.is_empty());
}
