//! A broker process in a folder of its own, which can be killed, stopped and started again.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};

use meshctl_drivers::Pending;
use meshctl_drivers::broker::SharedBroker;
use meshctl_drivers::broker::conformance::{Subject, within};
use meshctl_drivers::broker::embedded::Client;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

pub struct Bench {
    pub state: PathBuf,
    _folder: Option<TempDir>,
    process: Mutex<Option<Child>>,
}

impl Bench {
    pub async fn start() -> Self {
        let folder = TempDir::new().unwrap();
        let bench = Self { state: folder.path().to_owned(), _folder: Some(folder), process: Mutex::new(None) };
        bench.up().await;
        bench
    }

    /// In a folder that is somebody else's.
    pub async fn start_in(state: &Path) -> Self {
        let bench = Self { state: state.to_owned(), _folder: None, process: Mutex::new(None) };
        bench.up().await;
        bench
    }

    /// With TCP, and HTTP on a port.
    pub async fn start_with(tcp: SocketAddr, port: u16) -> Self {
        let folder = TempDir::new().unwrap();
        let bench = Self { state: folder.path().to_owned(), _folder: Some(folder), process: Mutex::new(None) };
        bench.start_process_with(tcp, port);
        bench.answers().await;
        bench
    }

    /// Starts the process with TCP, and HTTP on a port, whatever becomes of it.
    pub fn start_process_with(&self, tcp: SocketAddr, port: u16) {
        self.spawn(|command| command.arg(tcp.to_string()).env("PORT", port.to_string()));
    }

    /// Starts the process and waits until a broker answers, it or another one.
    pub async fn up(&self) {
        self.spawn(|command| command);
        self.answers().await;
    }

    /// Starts the process, whatever becomes of it.
    pub fn start_process(&self) {
        self.spawn(|command| command);
    }

    fn spawn(&self, with: impl FnOnce(&mut Command) -> &mut Command) {
        let log = std::fs::File::options().create(true).append(true).open(self.state.join("log")).unwrap();
        let mut command = Command::new(executable());
        command.arg(&self.state).env_remove("PORT").stdin(Stdio::null()).stderr(log);
        *self.process.lock().unwrap() = Some(with(&mut command).spawn().unwrap());
    }

    pub fn is_running(&self) -> bool {
        self.process.lock().unwrap().as_mut().unwrap().try_wait().unwrap().is_none()
    }

    pub async fn answers(&self) {
        within("a broker that answers", async {
            while self.client().state().await.is_err() {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    pub fn signal(&self, signal: Signal) {
        let process = self.process.lock().unwrap();
        kill_process(Pid::from_child(process.as_ref().unwrap()), signal).unwrap();
    }

    /// Sends a signal that ends it, and waits for that.
    pub fn down(&self, signal: Signal) -> ExitStatus {
        self.signal(signal);
        self.process.lock().unwrap().take().unwrap().wait().unwrap()
    }

    pub fn database(&self) -> PathBuf {
        self.state.join("broker/broker.db")
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.state.join("log")).unwrap()
    }
}

impl Subject for Bench {
    fn client(&self) -> SharedBroker {
        Arc::new(Client::new(&self.state))
    }

    fn crash(&self) -> Pending<'_, ()> {
        Box::pin(async {
            self.down(Signal::KILL);
            self.up().await;
        })
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.lock().unwrap().take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// `examples/broker.rs`, which Cargo builds with the tests.
fn executable() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let broker = test.ancestors().nth(2).unwrap().join("examples/broker");
    assert!(broker.exists(), "{} is missing: run `cargo build -p meshctl-drivers --examples`", broker.display());
    broker
}
