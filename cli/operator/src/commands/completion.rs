//! `meshctl completion`, and the names that a shell completes while one types.

use std::ffi::OsStr;
use std::time::Duration;

use clap_complete::engine::{ArgValueCompleter, CompletionCandidate};
use clap_complete::{Shell, generate};
use meshctl_api::client::Client;
use meshctl_model::exit;

use crate::failure::Outcome;
use crate::output::print;
use crate::session::state_dir;

/// Write the script with which a shell completes meshctl's commands
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  source <(meshctl completion bash)
  meshctl completion zsh > \"${fpath[1]}/_meshctl\"
  meshctl completion fish > ~/.config/fish/completions/meshctl.fish
  source <(COMPLETE=bash meshctl)    # also completes the names of services that run")]
pub struct Args {
    /// The shell
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

pub(super) fn run(args: &Args, mut whole: clap::Command) -> Outcome {
    let mut script = Vec::new();
    generate(args.shell, &mut whole, "meshctl", &mut script);
    print(String::from_utf8_lossy(&script))?;
    Ok(exit::OK)
}

/// A shell that completes does not wait longer.
const PATIENCE: Duration = Duration::from_millis(80);

/// Completes the names of services.
pub(super) fn service_names() -> ArgValueCompleter {
    ArgValueCompleter::new(|typed: &OsStr| {
        let typed = typed.to_string_lossy();
        services().into_iter().filter(|name| name.starts_with(&*typed)).map(CompletionCandidate::new).collect()
    })
}

/// The names of the services of the system that the environment names; none where that takes long or fails. The command
/// line itself is not known while it is being typed.
pub fn services() -> Vec<String> {
    let Ok(dir) = state_dir(None) else {
        return Vec::new();
    };
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return Vec::new() };
    let names = async {
        let services = Client::at(&dir).ok()?.patience(PATIENCE).services().await.ok()?;
        Some(services.items.into_iter().map(|service| service.name).collect())
    };
    runtime.block_on(names).unwrap_or_default()
}
