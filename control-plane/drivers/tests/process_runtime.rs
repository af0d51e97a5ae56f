//! The process runtime against the suite of its family, and against what only processes of this machine can suffer.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::sync::Arc;

use meshctl_drivers::runtime::SharedRuntime;
use meshctl_drivers::runtime::conformance::conformance;
use meshctl_drivers::runtime::process::ProcessRuntime;
use tempfile::TempDir;

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
        ProcessRuntime::new(self.state.path(), shim_executable()).unwrap()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let runtime = self.runtime();
        // Without their folders all of them are orphans.
        std::fs::remove_dir_all(self.state.path().join("instances")).unwrap();
        let swept = std::thread::spawn(move || {
            let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            tokio.block_on(runtime.sweep_orphans()).unwrap()
        });
        swept.join().unwrap();
    }
}

/// `examples/shim.rs`, which Cargo builds with the tests.
fn shim_executable() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let shim = test.ancestors().nth(2).unwrap().join("examples/shim");
    assert!(shim.exists(), "{} is missing: run `cargo build -p meshctl-drivers --examples`", shim.display());
    shim
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conforms() {
    let bench = Bench::new();
    let runtime = || Arc::new(bench.runtime()) as SharedRuntime;
    conformance(&runtime, bench.scratch.path()).await;
}
