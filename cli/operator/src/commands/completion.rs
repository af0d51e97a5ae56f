//! `meshctl completion`, and the names that a shell completes while one types.

use std::ffi::OsStr;
use std::time::Duration;

use clap_complete::engine::{ArgValueCompleter, CompletionCandidate};
use clap_complete::{Shell, generate};
use meshctl_api::client::Client;
use meshctl_api::view::messages::{Channel, DeadLetterQuery};
use meshctl_api::view::traces::TraceQuery;
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
  source <(COMPLETE=bash meshctl)    # also completes names: services, edges, channels")]
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
    completer(services)
}

/// Completes the names of edges.
pub(super) fn edge_names() -> ArgValueCompleter {
    completer(|| {
        names(async |client| Some(client.breakers().await.ok()?.items.into_iter().map(|one| one.edge).collect()))
    })
}

/// Completes the names of channels.
pub(super) fn channel_names() -> ArgValueCompleter {
    completer(|| {
        names(async |client| Some(client.channels().await.ok()?.items.into_iter().map(|one| one.name).collect()))
    })
}

/// Completes the names of flows.
pub(super) fn flow_names() -> ArgValueCompleter {
    completer(|| {
        names(async |client| Some(client.flows().await.ok()?.items.into_iter().map(|flow| flow.name).collect()))
    })
}

/// Completes the names of channels and, with a slash, of their subscriptions.
pub(super) fn subscription_names() -> ArgValueCompleter {
    completer(|| {
        names(async |client| {
            let channels = client.channels().await.ok()?.items;
            let of = |channel: Channel| {
                let subscriptions = channel.subscriptions.into_iter().map(|one| one.name);
                std::iter::once(channel.name).chain(subscriptions).collect::<Vec<_>>()
            };
            Some(channels.into_iter().flat_map(of).collect())
        })
    })
}

/// Completes the ids of the latest dead letters.
pub(crate) fn dead_letter_ids() -> ArgValueCompleter {
    completer(|| {
        names(async |client| {
            let query = DeadLetterQuery { limit: Some(LATEST), ..DeadLetterQuery::default() };
            Some(client.dead_letters(&query).await.ok()?.items.into_iter().map(|letter| letter.id).collect())
        })
    })
}

/// Completes the ids of replays.
pub(super) fn replay_ids() -> ArgValueCompleter {
    completer(|| {
        names(async |client| Some(client.replays().await.ok()?.items.into_iter().map(|one| one.replay_id).collect()))
    })
}

/// Completes the ids of the latest traces.
pub(super) fn trace_ids() -> ArgValueCompleter {
    completer(|| {
        names(async |client| {
            let query = TraceQuery { limit: Some(LATEST), ..TraceQuery::default() };
            Some(client.traces(&query).await.ok()?.items.into_iter().map(|trace| trace.trace_id).collect())
        })
    })
}

/// As many dead letters or traces as somebody looks through.
const LATEST: u32 = 50;

fn completer(known: impl Fn() -> Vec<String> + Send + Sync + 'static) -> ArgValueCompleter {
    ArgValueCompleter::new(move |typed: &OsStr| {
        let typed = typed.to_string_lossy();
        known().into_iter().filter(|name| name.starts_with(&*typed)).map(CompletionCandidate::new).collect()
    })
}

/// The names of the services of the system that the environment names; none where that takes long or fails. The command
/// line itself is not known while it is being typed.
pub fn services() -> Vec<String> {
    names(async |client| Some(client.services().await.ok()?.items.into_iter().map(|service| service.name).collect()))
}

/// What the daemon of the system that the environment names says to `ask`.
fn names(ask: impl AsyncFnOnce(Client) -> Option<Vec<String>>) -> Vec<String> {
    let Ok(dir) = state_dir(None) else {
        return Vec::new();
    };
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return Vec::new() };
    let names = async { ask(Client::at(&dir).ok()?.patience(PATIENCE)).await };
    runtime.block_on(names).unwrap_or_default()
}
