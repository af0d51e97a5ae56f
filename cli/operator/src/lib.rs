//! The operator's commands: what `meshctl` understands and how it answers.
//!
//! A command is arguments and one straight function over the API client; results go to stdout, everything else to
//! stderr. Nothing here knows drivers, traffic or the daemon's inside: whatever a command does is a call of the API.

mod args;
mod ask;
mod change;
pub mod commands;
mod describe;
mod examine;
mod failure;
mod kinds;
mod launch;
mod letters;
mod output;
mod payload;
mod plans;
mod progress;
mod replays;
mod session;
mod show;
mod sources;
mod traces;
mod tui;

pub use args::Globals;
pub use commands::Command;
pub use failure::{Failure, Outcome};
pub use session::state_dir;

/// Does `command` and returns its exit status; failures are printed. `whole` is the whole command line, for completion
/// and manuals.
pub fn run(globals: &Globals, command: Command, whole: fn() -> clap::Command) -> u8 {
    attempt(globals, command, whole).unwrap_or_else(|failure| {
        output::failure(&failure);
        failure.exit
    })
}

fn attempt(globals: &Globals, command: Command, whole: fn() -> clap::Command) -> Outcome {
    let session = session::Session::new(globals)?.within(command.timeout());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::file("cannot start", &error))?;
    runtime.block_on(command.run(&session, whole))
}
