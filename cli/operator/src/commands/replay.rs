//! `meshctl replay`: dead letters on their way back.

use clap::Subcommand;
use meshctl_api::client::Client;
use meshctl_api::view::messages::{PauseRequest, Replay};
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
  meshctl replay show 01936f0e
  meshctl replay show 01936f0e -w --timeout 1h
  meshctl replay show 01936f0e -o jsonpath='{.pending}'

With -w the exit status is 0 if all were processed, 1 if some failed again or were
withdrawn, 5 if some are pending when the time is over. The beginning of an id is enough.")]
    Show(ShowArgs),
    /// Issue no more for now; what is issued is delivered
    #[command(after_help = "\
Examples:
  meshctl replay pause 01936f0e --reason 'billing is too slow'
  meshctl replay resume 01936f0e")]
    Pause(TurnArgs),
    /// Go on where a replay was paused
    #[command(after_help = "\
Examples:
  meshctl replay resume 01936f0e")]
    Resume(TurnArgs),
    /// Issue no more: what was not issued stays a dead letter
    #[command(after_help = "\
Examples:
  meshctl replay cancel 01936f0e --reason 'they fail again'

What is issued has its outcome still. Where it never comes, because the messages
are lost, `meshctl dlq restore` makes them dead letters again.")]
    Cancel(TurnArgs),
}

#[derive(Debug, clap::Args)]
pub struct ShowArgs {
    /// Its id, or the beginning of it
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
    /// Its id, or the beginning of it
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
    let format = &args.output.output;
    let client = session.daemon().await?;
    let replay = find(&client, &args.id).await?;
    if !args.watch {
        return page(session, &[Selection { kind: Kind::Replay, names: vec![replay.replay_id] }], format).await;
    }
    replays::pursue(session, &client, replay, args.timeout.get(), format).await
}

async fn turn(session: &Session, action: &str, args: &TurnArgs) -> Outcome {
    let client = session.daemon().await?;
    let replay = find(&client, &args.id).await?;
    let id = &replay.replay_id;
    let format = &args.deed.output.output;
    if args.deed.dry_run {
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

/// The replay of that id, or the only one whose id begins so.
async fn find(client: &Client, id: &str) -> Result<Replay, Failure> {
    // As `-o name` writes it.
    let id = id.strip_prefix("replay/").unwrap_or(id);
    let mut replays = client.replays().await?.items;
    let mut found = (0..replays.len()).filter(|at| replays[*at].replay_id.starts_with(id));
    match (found.next(), found.next()) {
        (Some(at), None) => Ok(replays.swap_remove(at)),
        (Some(_), Some(_)) => Err(Failure::usage(format!("the ids of several replays begin with `{id}`"))
            .hint("write more of it; `meshctl replay ls` shows them")),
        (None, _) => Err(no_such(Kind::Replay, id, replays.iter().map(|replay| replay.replay_id.as_str()))),
    }
}
