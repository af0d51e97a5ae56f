//! `meshctl rollout`

use clap::Subcommand;
use meshctl_api::view::UndoRequest;
use meshctl_model::units::Span;

use super::get::list;
use crate::args::{ChangeArgs, ListArgs, OutputArgs, WaitArgs};
use crate::change;
use crate::failure::Outcome;
use crate::kinds::{Kind, Selection};
use crate::session::Session;

/// Follow, list and undo changes
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Wait until everything is ready as it is wanted
    #[command(after_help = "\
Examples:
  meshctl rollout status
  meshctl rollout status --timeout 30s
  meshctl rollout status --wait=false

Exit status: 0 if everything is ready, 1 if not, or if the revision failed.")]
    Status(StatusArgs),
    /// List the revisions: who changed what, when and why
    #[command(after_help = "\
Examples:
  meshctl rollout history
  meshctl rollout history -o json")]
    History(ListArgs),
    /// Go back to an earlier revision
    #[command(after_help = "\
Examples:
  meshctl rollout undo
  meshctl rollout undo --to-revision 3
  meshctl rollout undo --dry-run")]
    Undo(UndoArgs),
}

#[derive(Debug, clap::Args)]
pub struct StatusArgs {
    #[command(flatten)]
    wait: WaitArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, clap::Args)]
pub struct UndoArgs {
    /// The revision to go back to; the one before the present one where left out
    #[arg(long, value_name = "N", add = super::completion::names_of(crate::kinds::Kind::Revision))]
    to_revision: Option<u64>,

    #[command(flatten)]
    change: ChangeArgs,
}

impl Command {
    pub(super) fn timeout(&self) -> Option<Span> {
        match self {
            Self::Status(args) => Some(args.wait.timeout),
            Self::History(_) => None,
            Self::Undo(args) => Some(args.change.wait.timeout),
        }
    }
}

pub(super) async fn run(session: &Session, command: Command) -> Outcome {
    match command {
        Command::Status(args) => status(session, &args).await,
        Command::History(args) => list(session, &[Selection { kind: Kind::Revision, names: Vec::new() }], &args).await,
        Command::Undo(args) => undo(session, args).await,
    }
}

async fn status(session: &Session, args: &StatusArgs) -> Outcome {
    let client = session.daemon().await?;
    change::settle(session, &client, &args.wait, &args.output).await
}

async fn undo(session: &Session, args: UndoArgs) -> Outcome {
    let client = session.daemon().await?;
    let request =
        UndoRequest { to_revision: args.to_revision, reason: args.change.reason.clone(), dry_run: args.change.dry_run };
    change::finish(session, &client, client.undo(&request).await?, &args.change).await
}
