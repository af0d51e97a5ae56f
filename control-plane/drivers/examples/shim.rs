//! The shim role by itself, for tests of the process runtime: `shim shim DIR`, as `meshctl shim DIR`.

use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    match std::env::args_os().nth(2) {
        Some(dir) => meshctl_drivers::runtime::process::shim::main(&PathBuf::from(dir)),
        None => ExitCode::from(2),
    }
}
