//! The roles of the process runtime by themselves, for its tests: `nursery nursery`, as `meshctl nursery`, and
//! `nursery shim DIR`, one shim without it.

use std::path::Path;
use std::process::ExitCode;

use meshctl_drivers::runtime::process::{nursery, shim};

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    match &arguments[..] {
        [_, role, ..] if role == "nursery" => nursery::main(),
        [this, role, dir] if role == "shim" => shim::main(Path::new(dir), Path::new(this)),
        _ => ExitCode::from(2),
    }
}
