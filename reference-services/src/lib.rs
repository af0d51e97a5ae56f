//! The reference services: small, honest programs for demonstrations and tests, started as `meshctl service NAME`.
//!
//! Each service is one file on the kit, and knows of meshctl only what any program may know: the port in `PORT`, the
//! names in `MESHCTL_SERVICE` and `MESHCTL_INSTANCE`, and the addresses of other services in variables of its own.

use std::process::ExitCode;

use meshctl_model::exit;
use meshctl_model::topology::BUILTINS;

mod billing;
mod hello;
mod inventory;
mod kit;
mod orders;
mod shipping;

/// Runs one service until SIGTERM or SIGINT, and returns when the requests under way are finished.
///
/// Fails with a line on stderr: 2 for an unknown name or a missing variable, 1 for anything else.
pub fn run(name: &str) -> ExitCode {
    if !BUILTINS.contains(&name) {
        eprintln!("meshctl service: no reference service is called {name:?}; there are {}", BUILTINS.join(", "));
        return ExitCode::from(exit::USAGE);
    }
    let kit = match kit::Kit::from_env(name) {
        Ok(kit) => kit,
        Err(why) => {
            eprintln!("meshctl service {name}: {why}");
            return ExitCode::from(exit::USAGE);
        }
    };
    // One thread carries all requests: more instances, not more threads, are how a service grows here.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(why) => {
            eprintln!("meshctl service {name}: cannot start an event loop: {why}");
            return ExitCode::from(exit::FAILURE);
        }
    };
    let ended = runtime.block_on(async {
        match name {
            "billing" => billing::serve(kit).await,
            "hello" => hello::serve(kit).await,
            "inventory" => inventory::serve(kit).await,
            "shipping" => shipping::serve(kit).await,
            _ => orders::serve(kit).await,
        }
    });
    // What was asked to finish has finished; a request that hangs on purpose must not hold the process.
    runtime.shutdown_background();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("meshctl service {name}: {why}");
            ExitCode::from(exit::FAILURE)
        }
    }
}
