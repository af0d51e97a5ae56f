//! `meshctl`: one executable, several roles. The only crate that knows everything: it turns arguments into a role.

mod roles;

use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue};
use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::CompleteEnv;
use meshctl_operator::Globals;

/// hyper takes and returns two 8 KiB buffers for every request: with this allocator the gateway spends a tenth less for each.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Run a system of services behind a gateway on this machine, change it, break it, and watch it heal
#[derive(Debug, Parser)]
#[command(
    name = "meshctl",
    version,
    propagate_version = false,
    disable_help_subcommand = true,
    max_term_width = 100,
    after_help = AFTER_HELP
)]
struct Meshctl {
    #[command(flatten)]
    globals: Globals,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(flatten)]
    Operator(meshctl_operator::Command),
    #[command(flatten)]
    Role(roles::Role),
}

const AFTER_HELP: &str = "\
Examples:
  meshctl apply shop.yaml      bring a system up, or make it what the file says now
  meshctl status --watch       look at it
  meshctl down                 stop all of it

Exit status: 0 done, 1 failed, 2 wrong usage, 3 not found, 4 conflict or stale plan, 5 timed out,
69 no daemon, 77 not allowed, 78 invalid topology, 98 load test INVALID, 99 objective breached,
130 interrupted.";

fn main() -> ExitCode {
    // Before anything that could start a thread, and nothing of what follows should be in every shim.
    if roles::is_nursery() {
        return meshctl_drivers::runtime::process::nursery::main();
    }
    CompleteEnv::with_factory(Meshctl::command).complete();
    let Meshctl { globals, command } = Meshctl::try_parse().unwrap_or_else(|error| without_hidden(error).exit());
    match command {
        Command::Operator(command) => {
            log_calls(globals.verbose);
            meshctl_operator::run(&globals, command, Meshctl::command).into()
        }
        Command::Role(role) => roles::run(role, &globals),
    }
}

/// clap lists every command where one is missing, also those that are not for operators.
fn without_hidden(mut error: clap::Error) -> clap::Error {
    if let Some(ContextValue::Strings(names)) = error.remove(ContextKind::ValidSubcommand) {
        let shown =
            |name: &String| Meshctl::command().find_subcommand(name).is_some_and(|command| !command.is_hide_set());
        let names = names.into_iter().filter(shown).collect();
        error.insert(ContextKind::ValidSubcommand, ContextValue::Strings(names));
    }
    error
}

/// An operator's command logs to stderr what it asks of the daemon, if that is wanted.
fn log_calls(verbose: u8) {
    let default = match verbose {
        0 => "off",
        1 => "meshctl_api=debug",
        _ => "debug",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("MESHCTL_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(default));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).without_time().compact().init();
}
