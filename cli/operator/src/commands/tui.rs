//! `meshctl tui`

use crate::failure::Outcome;
use crate::session::Session;
use crate::tui;

/// See the whole system on one screen, and do something about it
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshctl tui
  NO_COLOR=1 meshctl tui
  ssh host -t meshctl tui

`?` shows every key. `:svc`, `:ch`, `:dl`, `:cb`, `:tr` go to a view, `/` filters,
Enter goes into a thing, Esc back. What you do there is shown as the command that
does the same, after what it would hit, and waits for a reason.")]
pub struct Args {}

pub(super) async fn run(session: &Session, _args: &Args) -> Outcome {
    tui::run(session).await
}
