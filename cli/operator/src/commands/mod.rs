//! One file for each noun and verb. A command reads as a straight line: arguments, calls, result.

mod apply;
mod audit;
mod breaker;
mod channel;
mod check;
mod completion;
mod diff;
mod dlq;
mod down;
mod events;
mod get;
mod init;
mod ledger;
mod loadtest;
mod logs;
mod man;
mod nouns;
mod plan;
mod publish;
mod replay;
mod restart;
mod rollout;
mod scale;
mod schema;
mod status;
mod tail;
mod trace;
mod tui;
mod validate;
mod version;

use std::time::Duration;

use clap::Subcommand;
use meshctl_api::client::Client;
use meshctl_api::view::Told;
use meshctl_model::exit;
use tokio::time::MissedTickBehavior;

use crate::failure::{Failure, Outcome};
use crate::session::Session;

pub(crate) use completion::dead_letter_ids;
pub use completion::services as complete_services;
pub(crate) use dlq::page as dead_letter_page;
pub(crate) use ledger::imbalance;

/// What an operator can ask for.
#[derive(Debug, Subcommand)]
pub enum Command {
    Init(init::Args),
    Validate(validate::Args),
    Plan(plan::Args),
    Diff(diff::Args),
    Apply(apply::Args),
    Status(status::Args),
    Down(down::Args),
    #[command(subcommand)]
    Rollout(rollout::Command),
    Get(get::Args),
    Describe(get::DescribeArgs),
    Scale(scale::Args),
    Restart(restart::Args),
    Logs(logs::Args),
    Events(events::Args),
    #[command(subcommand)]
    Route(nouns::RouteCommand),
    #[command(subcommand)]
    Endpoint(nouns::EndpointCommand),
    #[command(subcommand)]
    Registry(nouns::RegistryCommand),
    #[command(subcommand)]
    Breaker(breaker::Command),
    #[command(subcommand)]
    Channel(channel::Command),
    Ledger(ledger::Args),
    Loadtest(Box<loadtest::Args>),
    #[command(subcommand)]
    Dlq(dlq::Command),
    #[command(subcommand)]
    Replay(replay::Command),
    Trace(Box<trace::Args>),
    Audit(audit::Args),
    Tui(tui::Args),
    Check(check::Args),
    Version(version::Args),
    Completion(completion::Args),
    Man(man::Args),
    Schema(schema::Args),
}

impl Command {
    /// How long it may take, where it was told.
    pub(crate) fn timeout(&self) -> Option<Duration> {
        let timeout = match self {
            Self::Apply(args) => args.timeout(),
            Self::Scale(args) => args.timeout(),
            Self::Restart(args) => args.timeout(),
            Self::Rollout(command) => command.timeout()?,
            Self::Down(args) => args.timeout(),
            Self::Breaker(command) => command.timeout()?,
            Self::Channel(command) => command.timeout()?,
            Self::Dlq(command) => command.timeout()?,
            Self::Replay(command) => command.timeout()?,
            Self::Trace(args) => args.timeout()?,
            _ => return None,
        };
        Some(timeout.get())
    }

    /// Does it. `whole` is the whole command line, for what describes it.
    pub(crate) async fn run(self, session: &Session, whole: fn() -> clap::Command) -> Outcome {
        match self {
            Self::Init(args) => init::run(&args),
            Self::Validate(args) => validate::run(&args),
            Self::Plan(args) => plan::run(session, args).await,
            Self::Diff(args) => diff::run(session, args).await,
            Self::Apply(args) => apply::run(session, args).await,
            Self::Status(args) => status::run(session, &args).await,
            Self::Down(args) => down::run(session, args).await,
            Self::Rollout(command) => rollout::run(session, command).await,
            Self::Get(args) => get::run(session, &args).await,
            Self::Describe(args) => get::describe(session, &args).await,
            Self::Scale(args) => scale::run(session, args).await,
            Self::Restart(args) => restart::run(session, args).await,
            Self::Logs(args) => logs::run(session, args).await,
            Self::Events(args) => events::run(session, &args).await,
            Self::Route(command) => nouns::route(session, command).await,
            Self::Endpoint(command) => nouns::endpoint(session, command).await,
            Self::Registry(command) => nouns::registry(session, command).await,
            Self::Breaker(command) => breaker::run(session, command).await,
            Self::Channel(command) => channel::run(session, command).await,
            Self::Ledger(args) => ledger::run(session, args).await,
            Self::Loadtest(args) => loadtest::run(session, *args).await,
            Self::Dlq(command) => dlq::run(session, command).await,
            Self::Replay(command) => replay::run(session, command).await,
            Self::Trace(args) => trace::run(session, *args).await,
            Self::Audit(args) => audit::run(session, &args).await,
            Self::Tui(args) => tui::run(session, &args).await,
            Self::Check(args) => check::run(session, &args).await,
            Self::Version(args) => version::run(session, &args).await,
            Self::Completion(args) => completion::run(&args, whole()),
            Self::Man(args) => man::run(&args, whole()),
            Self::Schema(args) => schema::run(&args),
        }
    }
}

/// A watching command outlives a daemon that is replaced.
const RETURN: Duration = Duration::from_secs(30);
/// How often a watching command looks at what changes without an event: counts of messages.
const PULSE: Duration = Duration::from_secs(1);

/// Hands everything that is told after the event `after`, or from now on, to `show`, for as long as there is a daemon.
async fn live(
    client: &Client,
    after: Option<String>,
    mut show: impl AsyncFnMut(Told) -> Result<(), Failure>,
) -> Outcome {
    let mut watch = client.watch(after, RETURN).await?;
    while let Some(told) = watch.next().await? {
        show(told).await?;
    }
    Err(ended())
}

/// As [`live`], and a pulse now and then, when nothing is told and it is time to look again.
async fn live_with_pulse(client: &Client, mut show: impl AsyncFnMut(Option<Told>) -> Result<(), Failure>) -> Outcome {
    let mut watch = client.watch(None, RETURN).await?;
    let mut pulse = tokio::time::interval(PULSE);
    pulse.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let heard = tokio::select! {
            told = watch.next() => Some(told?.ok_or_else(ended)?),
            _ = pulse.tick() => None,
        };
        show(heard).await?;
    }
}

fn ended() -> Failure {
    Failure::new(exit::UNREACHABLE, "the daemon has ended")
}
