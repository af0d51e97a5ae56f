//! One system under test.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::http::{Answer, RUNTIME};
use crate::{Ports, Ran, process, wait_until};

/// No command takes this long, not even an apply that compiles a Go program first and waits five minutes for it at most;
/// one that does is stuck, or something that it started holds its output open.
const COMMAND_LIMIT: Duration = Duration::from_secs(330);

/// A state directory, its ports, and everything that runs for it. Dropping it ends all of that.
pub struct System {
    binary: PathBuf,
    folder: TempDir,
    state: PathBuf,
    ports: Ports,
    variables: BTreeMap<String, String>,
}

impl System {
    /// Nothing runs yet; the first apply starts the daemon.
    #[expect(clippy::new_without_default, reason = "it takes ports and a folder, which a default value should not")]
    pub fn new() -> Self {
        let folder = TempDir::with_prefix("meshctl-test-").expect("a temporary folder");
        let state = folder.path().join("state");
        fs::create_dir(&state).expect("a state directory");
        Self { binary: binary(), folder, state, ports: Ports::take(), variables: BTreeMap::new() }
    }

    /// The same with a variable in the environment of every command.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.variables.insert(name.into(), value.into());
        self
    }

    /// Changes what [`System::with`] set.
    pub fn set(&mut self, name: &str, value: Option<&str>) {
        match value {
            Some(value) => drop(self.variables.insert(name.into(), value.into())),
            None => drop(self.variables.remove(name)),
        }
    }

    /// Uses another executable from here on.
    pub fn use_binary(&mut self, binary: &Path) {
        binary.clone_into(&mut self.binary);
    }

    pub fn binary(&self) -> &Path {
        &self.binary
    }

    pub fn state_dir(&self) -> &Path {
        &self.state
    }

    /// A folder for the test's own files, beside the state directory.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A port for a program of the test; number 0 is the gateway's.
    pub fn port(&self, number: u16) -> u16 {
        self.ports.fixed(number)
    }

    /// Where requests from outside arrive: `http://127.0.0.1:30100/path`.
    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port(0))
    }

    // ------------------------------------------------------------------------------------------------ commands

    /// `meshctl ARGS` for this system, ready to be started.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command
            .args(args)
            .current_dir(self.folder.path())
            .env("MESHCTL_STATE_DIR", &self.state)
            .envs(&self.variables)
            .env_remove("NO_COLOR")
            .env_remove("CLICOLOR_FORCE")
            .env_remove("COLUMNS")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs `meshctl ARGS` to its end.
    #[track_caller]
    pub fn run(&self, args: &[&str]) -> Ran {
        self.run_command(self.command(args))
    }

    /// Runs a command to its end, which means also that nothing holds its output open any more.
    #[track_caller]
    pub fn run_command(&self, command: Command) -> Ran {
        let line = line_of(&command);
        let mut command = tokio::process::Command::from(command);
        let output =
            RUNTIME.block_on(async { tokio::time::timeout(COMMAND_LIMIT, command.kill_on_drop(true).output()).await });
        let output = output
            .unwrap_or_else(|_| panic!("`{line}` and its output did not end within {COMMAND_LIMIT:?}"))
            .unwrap_or_else(|why| panic!("cannot start `{line}`: {why}"));
        Ran::of(line, &output)
    }

    /// Starts `meshctl ARGS` and returns at once.
    #[track_caller]
    pub fn start(&self, args: &[&str]) -> Child {
        self.command(args).spawn().unwrap_or_else(|why| panic!("cannot start meshctl {args:?}: {why}"))
    }

    /// The end of what [`System::start`] started.
    #[track_caller]
    pub fn end_of(&self, child: Child) -> Ran {
        let line = format!("meshctl (pid {})", child.id());
        let output = child.wait_with_output().unwrap_or_else(|why| panic!("cannot wait for {line}: {why}"));
        Ran::of(line, &output)
    }

    /// Runs `meshctl ARGS -o json`, which must succeed.
    #[track_caller]
    pub fn json(&self, args: &[&str]) -> Value {
        let args: Vec<&str> = args.iter().copied().chain(["-o", "json"]).collect();
        self.run(&args).expect(0).json()
    }

    // ------------------------------------------------------------------------------------------------ topologies

    /// A file with `body` (services, routes, …) beneath the providers that keep this system on its own ports.
    #[track_caller]
    pub fn file(&self, body: &str) -> String {
        let (listen, ports) = (self.port(0), self.ports.automatic());
        let text = format!(
            "providers:\n  \
             gateway: {{ embedded: {{ listen: \"127.0.0.1:{listen}\" }} }}\n  \
             runtime: {{ process: {{ ports: \"{ports}\" }} }}\n{body}"
        );
        self.raw_file("topology.yaml", &text)
    }

    /// A file with exactly this text.
    #[track_caller]
    pub fn raw_file(&self, name: &str, text: &str) -> String {
        let path = self.folder.path().join(name);
        fs::write(&path, text).expect("a file in the test's folder");
        path.to_str().expect("the temporary folder has a plain name").to_owned()
    }

    /// Applies `body` and expects everything to become ready.
    #[track_caller]
    pub fn apply(&self, body: &str) -> Ran {
        self.try_apply(body).expect(0)
    }

    /// Applies `body`, however it ends.
    #[track_caller]
    pub fn try_apply(&self, body: &str) -> Ran {
        let file = self.file(body);
        self.run(&["apply", &file, "--yes"])
    }

    // ------------------------------------------------------------------------------------------------ looking

    /// `meshctl status -o json`, whatever state it shows.
    #[track_caller]
    pub fn status(&self) -> Value {
        self.run(&["status", "-o", "json"]).json()
    }

    /// One service of the status.
    #[track_caller]
    pub fn service(&self, name: &str) -> Value {
        let status = self.status();
        let services = status["items"].as_array().unwrap_or_else(|| panic!("no items in {status:#}"));
        services.iter().find(|s| s["name"] == name).unwrap_or_else(|| panic!("no {name} in {status:#}")).clone()
    }

    /// The instances of one service.
    #[track_caller]
    pub fn instances(&self, service: &str) -> Vec<Value> {
        self.service(service)["instances"].as_array().cloned().unwrap_or_default()
    }

    /// The pids of one service, in order.
    #[track_caller]
    pub fn pids(&self, service: &str) -> Vec<u32> {
        let mut pids: Vec<u32> = self.instances(service).iter().filter_map(|instance| pid(&instance["pid"])).collect();
        pids.sort_unstable();
        pids
    }

    /// The pids of everything that the status shows: instances by id, gateways by url.
    #[track_caller]
    pub fn all_pids(&self) -> BTreeMap<String, u32> {
        let status = self.status();
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let instances = list(&status["items"]).into_iter().flat_map(|service| list(&service["instances"]));
        let named = |thing: &Value, key: &str| Some((thing[key].as_str()?.to_owned(), pid(&thing["pid"])?));
        instances
            .filter_map(|instance| named(&instance, "id"))
            .chain(list(&status["gateways"]).iter().filter_map(|gateway| named(gateway, "url")))
            .collect()
    }

    /// The pid of the first gateway.
    #[track_caller]
    pub fn gateway_pid(&self) -> u32 {
        let status = self.status();
        pid(&status["gateways"][0]["pid"]).unwrap_or_else(|| panic!("no gateway in {status:#}"))
    }

    /// The pid of the daemon, if one owns the state directory.
    pub fn daemon_pid(&self) -> Option<u32> {
        let text = fs::read(self.state.join("daemon.json")).ok()?;
        pid(&serde_json::from_slice::<Value>(&text).ok()?["pid"]).filter(|pid| process::runs(*pid))
    }

    /// Every process that was started for this system, the daemon and all descendants of instances included.
    pub fn processes(&self) -> Vec<u32> {
        process::with_variable("MESHCTL_STATE_DIR", &self.state.to_string_lossy())
    }

    /// `GET path` through the gateway, which must answer.
    #[track_caller]
    pub fn get(&self, path: &str) -> Answer {
        crate::get(&self.url(path)).unwrap_or_else(|why| panic!("GET {path} got no answer: {why}"))
    }

    /// A call of the daemon's API, which must be answered.
    #[track_caller]
    pub fn api(&self, method: &str, path: &str, body: &Value) -> Answer {
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        crate::http::send_to_socket(&self.state.join("meshctl.sock"), method, path, body)
            .unwrap_or_else(|why| panic!("{method} {path} got no answer: {why}"))
    }

    /// Turns the knobs of one instance of a reference service.
    #[track_caller]
    pub fn turn_knobs(&self, instance: &Value, knobs: &Value) {
        let address = instance["address"].as_str().unwrap_or_else(|| panic!("no address in {instance:#}"));
        let health = crate::get(&format!("http://{address}/healthz")).expect("an answer to the health check").json();
        let url = format!("http://{}/knobs", health["admin"].as_str().expect("the address of the admin port"));
        let answer =
            crate::send("PUT", &url, &[], knobs.to_string().into_bytes()).expect("an answer of the admin port");
        assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
    }

    // ------------------------------------------------------------------------------------------------ ending

    /// Kills the daemon, and returns when it is gone.
    #[track_caller]
    pub fn kill_daemon(&self) {
        let pid = self.daemon_pid().expect("a running daemon");
        process::kill(pid);
        wait_until("the daemon to be gone", || !process::runs(pid));
    }

    /// Takes the system down and expects nothing to be left of it.
    #[track_caller]
    pub fn down(&self) {
        self.run(&["down", "--yes"]).expect(0);
        self.expect_nothing_runs();
    }

    #[track_caller]
    pub fn expect_nothing_runs(&self) {
        let left: Vec<String> =
            self.processes().into_iter().map(|pid| format!("{pid}: {}", process::command_line(pid))).collect();
        assert!(left.is_empty(), "still running: {left:#?}");
    }
}

impl Drop for System {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(self.state.join("daemon.log")).unwrap_or_default();
            let last: Vec<&str> = log.lines().rev().take(60).collect();
            eprintln!("--- the daemon's last lines");
            last.iter().rev().for_each(|line| eprintln!("{line}"));
        }
        // What one process starts while it is being killed shows in the next round.
        for _ in 0..100 {
            let left = self.processes();
            if left.is_empty() {
                break;
            }
            left.into_iter().for_each(process::kill);
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Ran {
    fn of(line: String, output: &std::process::Output) -> Self {
        Self {
            line,
            status: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

fn line_of(command: &Command) -> String {
    let name = Path::new(command.get_program()).file_name().unwrap_or_default();
    std::iter::once(name).chain(command.get_args()).map(|part| part.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

fn pid(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|pid| u32::try_from(pid).ok())
}

/// The built binary: `MESHCTL_BIN`, or beside the folder of the running test.
#[track_caller]
fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("MESHCTL_BIN") {
        return path.into();
    }
    let test = std::env::current_exe().expect("the path of the running test");
    let built = test.ancestors().nth(2).expect("a test lies in target/PROFILE/deps").join("meshctl");
    assert!(
        built.is_file(),
        "{} is not built: run tests/run, or `cargo build --workspace --bins` before `cargo test -p meshctl-tests`",
        built.display()
    );
    built
}
