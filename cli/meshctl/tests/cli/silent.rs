//! Daemons that are hard to reach: deep in the file system, or there and silent.

use std::os::unix::net::UnixListener;
use std::process::{Child, Command, Stdio};

use meshctl_api::place::{DAEMON, DaemonRecord, SOCKET};
use tempfile::TempDir;

use crate::support::{Daemon, Piece, Script, command, ran, start_time};

fn deep() -> TempDir {
    tempfile::Builder::new().prefix(&"d".repeat(200)).tempdir().expect("a folder")
}

#[test]
fn a_deep_state_directory_is_as_good_as_any() {
    let daemon = Daemon::play_in(deep(), Script::default());
    for words in
        [["status"].as_slice(), &["get", "svc"], &["describe", "service/orders"], &["logs"], &["rollout", "history"]]
    {
        let ran = daemon.run(words);
        assert_eq!(ran.status, 0, "{words:?}: {}", ran.stderr);
    }
}

#[test]
fn a_deep_state_directory_that_is_not_there_yet_is_made() {
    let above = deep();
    let dir = above.path().join("state");
    let checked = ran(command(&dir, &["check"]).output().expect("meshctl runs"));
    assert!(checked.stdout.contains("no daemon runs, and none should"), "{}", checked.stdout);
    let topology = above.path().join("empty.yaml");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    drop(listener);
    let text = format!(
        "apiVersion: meshctl/v1\nkind: Topology\nproviders: {{ gateway: {{ embedded: {{ listen: '{address}' }} }} }}\n\
         services: {{ sleeper: {{ command: [sleep, '600'], port: none }} }}\n"
    );
    std::fs::write(&topology, text).expect("written");
    let path = topology.to_str().expect("text");
    let applied = ran(command(&dir, &["apply", path, "--yes"]).output().expect("meshctl runs"));
    let down = ran(command(&dir, &["down"]).output().expect("meshctl runs"));
    assert_eq!((applied.status, down.status), (0, 0), "{} {}", applied.stderr, down.stderr);
}

/// A daemon that was stopped: its socket takes connections, and nobody answers.
struct Stopped {
    dir: TempDir,
    process: Child,
    _socket: UnixListener,
}

impl Stopped {
    fn play() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let process = Command::new("sh").args(["-c", "kill -STOP $$"]).spawn().expect("a shell runs");
        let pid = process.id();
        let stat = || std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
        while !stat().contains(") T ") {
            std::thread::yield_now();
        }
        let record = DaemonRecord { pid, start_time: start_time(pid), version: "0.1.0".into() };
        std::fs::write(dir.path().join(DAEMON), serde_json::to_vec(&record).expect("JSON")).expect("written");
        let socket = UnixListener::bind(dir.path().join(SOCKET)).expect("a socket");
        Self { dir, process, _socket: socket }
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn nobody_waits_without_limit_for_a_stopped_daemon() {
    let daemon = Stopped::play();
    let (dir, pid) = (daemon.dir.path(), daemon.process.id());
    let cases = [
        (["status"].as_slice(), 69),
        (&["down"], 69),
        (&["status", "--watch"], 69),
        (&["rollout", "status", "--timeout", "300ms"], 5),
        (&["down", "--timeout", "300ms"], 5),
        (&["check"], 1),
    ];
    let run = |words| command(dir, words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("meshctl runs");
    // All at once: each waits as long as it does.
    let running = cases.map(|(words, status)| (words, status, run(words)));
    for (words, status, child) in running {
        let ran = ran(child.wait_with_output().expect("it ended"));
        assert_eq!(ran.status, status, "{words:?}: {}", ran.stderr);
        let said = ran.stdout + &ran.stderr;
        let wanted = format!("the daemon (pid {pid}) of {} does not answer (process state: stopped)", dir.display());
        assert!(said.contains(&wanted), "{words:?}: {said}");
        assert!(said.contains(&format!("kill -CONT {pid}")), "{words:?}: {said}");
    }
}

#[test]
fn a_stream_that_does_not_begin_is_not_waited_for() {
    let daemon = Daemon::play(Script { watches: vec![vec![Piece::Stay]].into(), ..Script::default() });
    let ran = daemon.run(&["status", "--watch"]);
    assert_eq!(ran.status, 69, "{}", ran.stderr);
    assert!(ran.stderr.contains("does not answer (process state: sleeping)"), "{}", ran.stderr);
}
