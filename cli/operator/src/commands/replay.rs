//! `meshctl replay`: dead letters on their way back.

use clap::Subcommand;
use meshctl_api::client::Client;
use meshctl_api::view::messages::PauseRequest;
use meshctl_model::exit;
use meshctl_model::units::Span;

use super::completion::replay_ids;
use super::get::{list, page};
use crate::args::{DeedArgs, ListArgs, OutputArgs};
use crate::failure::Outcome;
use crate::kinds::{Kind, Selection, no_such};
use crate::output::{Format, print_line};
use crate::session::Session;
use crate::{failure::Failure, replays};

/// Look at replays of dead letters; pause, resume and cancel them
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List the replays, the latest first
    #[command(
        visible_alias = "list",
        after_help = "\
Examples:
  meshctl replay ls
  meshctl replay ls -o wide
  meshctl replay ls -o jsonpath='{.items[?(@.state==\"running\")].replayId}'"
    )]
    Ls(ListArgs),
    /// Show everything about a replay, or follow it to its end
    #[command(after_help = "\
Examples:
  meshctl replay show 0192f6
  meshctl replay show 0192f6 -w --timeout 1h
  meshctl replay show 0192f6 -o jsonpath='{.pending}'

With -w the exit status is 0 if all were processed, 1 if some failed again, 5 if some are pending when the time is over.")]
    Show(ShowArgs),
    /// Issue no more for now; what is issued is delivered
    #[command(after_help = "\
Examples:
  meshctl replay pause 0192f6 --reason 'billing is too slow'
  meshctl replay resume 0192f6")]
    Pause(TurnArgs),
    /// Go on where a replay was paused
    #[command(after_help = "\
Examples:
  meshctl replay resume 0192f6")]
    Resume(TurnArgs),
    /// Issue no more: what was not issued stays a dead letter
    #[command(after_help = "\
Examples:
  meshctl replay cancel 0192f6 --reason 'they fail again'")]
    Cancel(TurnArgs),
}

#[derive(Debug, clap::Args)]
pub struct ShowArgs {
    /// Its id
    #[arg(value_name = "ID", add = replay_ids())]
    id: String,

    /// Follow it until each of its messages has an outcome
    #[arg(short, long)]
    watch: bool,

    /// How long to follow it
    #[arg(long, value_name = "DURATION", default_value = "5m", requires = "watch")]
    timeout: Span,

    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, clap::Args)]
pub struct TurnArgs {
    /// Its id
    #[arg(value_name = "ID", add = replay_ids())]
    id: String,

    #[command(flatten)]
    deed: DeedArgs,
}

impl Command {
    pub(super) fn timeout(&self) -> Option<Span> {
        match self {
            Self::Ls(_) | Self::Show(_) => None,
            Self::Pause(args) | Self::Resume(args) | Self::Cancel(args) => Some(args.deed.timeout),
        }
    }
}

pub(super) async fn run(session: &Session, command: Command) -> Outcome {
    match command {
        Command::Ls(args) => list(session, &[Selection { kind: Kind::Replay, names: Vec::new() }], &args).await,
        Command::Show(args) => show(session, &args).await,
        Command::Pause(args) => turn(session, "pause", &args).await,
        Command::Resume(args) => turn(session, "resume", &args).await,
        Command::Cancel(args) => turn(session, "cancel", &args).await,
    }
}

async fn show(session: &Session, args: &ShowArgs) -> Outcome {
    let id = bare(&args.id);
    let format = &args.output.output;
    if !args.watch {
        let selection = Selection { kind: Kind::Replay, names: vec![id.to_owned()] };
        return page(session, &[selection], format).await;
    }
    let client = session.daemon().await?;
    must_exist(&client, id).await?;
    let replay = client.replay(id).await?;
    replays::pursue(session, &client, replay, args.timeout.get(), format).await
}

async fn turn(session: &Session, action: &str, args: &TurnArgs) -> Outcome {
    let id = bare(&args.id);
    let client = session.daemon().await?;
    must_exist(&client, id).await?;
    let format = &args.deed.output.output;
    if args.deed.dry_run {
        let replay = client.replay(id).await?;
        match format {
            Format::Table | Format::Wide => {
                print_line(format_args!("replay/{id}, which is {}: would {action} it", replay.state))?;
            }
            format => replays::report(&replay, format)?,
        }
        return Ok(exit::OK);
    }
    let request = PauseRequest { subscription: None, reason: args.deed.reason.clone() };
    let replay = client.change_replay(id, action, &request).await?;
    replays::report(&replay, format)?;
    if action == "pause" {
        session.say(format_args!("`meshctl replay resume {id}` goes on with it"));
    }
    Ok(exit::OK)
}

/// An id without its kind, as `-o name` writes it.
fn bare(id: &str) -> &str {
    id.strip_prefix("replay/").unwrap_or(id)
}

async fn must_exist(client: &Client, id: &str) -> Result<(), Failure> {
    let replays = client.replays().await?.items;
    match replays.iter().any(|replay| replay.replay_id == id) {
        true => Ok(()),
        false => Err(no_such(Kind::Replay, id, replays.iter().map(|replay| replay.replay_id.as_str()))),
    }
}
