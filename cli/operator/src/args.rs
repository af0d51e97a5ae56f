//! Arguments that several commands share.

use std::path::PathBuf;

use clap::{ArgAction, Args};
use meshctl_model::units::Span;

use crate::output::Format;

/// What every command takes.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Global options")]
pub struct Globals {
    /// The folder of this system, one daemon each [env: MESHCTL_STATE_DIR] [default: ~/.local/state/meshctl/default]
    #[arg(long, global = true, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,

    /// When to use colours: auto (NO_COLOR is honoured), always, never
    #[arg(
        long,
        global = true,
        value_name = "WHEN",
        default_value = "auto",
        hide_default_value = true,
        hide_possible_values = true
    )]
    pub color: When,

    /// Say nothing but the result and errors
    #[arg(short, long, global = true)]
    pub quiet: bool,

    /// Show routes, edges and what is asked of the daemon; twice for everything
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum When {
    Auto,
    Always,
    Never,
}

/// How the result is written.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Output options")]
pub struct OutputArgs {
    /// table, wide, json, yaml, name, jsonpath=TEMPLATE
    #[arg(short, long, value_name = "FORMAT", default_value = "table", hide_default_value = true)]
    pub output: Format,
}

/// How a list is written.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Output options")]
pub struct TableArgs {
    #[command(flatten)]
    pub output: OutputArgs,

    /// Leave the header line out
    #[arg(long)]
    pub no_headers: bool,

    /// Sort by a field of the JSON form, such as .restarts
    #[arg(long, value_name = "JSONPATH")]
    pub sort_by: Option<String>,
}

/// How a list is written that may be watched.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Output options")]
pub struct ListArgs {
    #[command(flatten)]
    pub table: TableArgs,

    /// Go on, and show each thing again when it changes
    #[arg(short, long)]
    pub watch: bool,
}

/// What every change takes.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Change options")]
pub(crate) struct ChangeArgs {
    /// Show what would be done and change nothing
    #[arg(long)]
    pub dry_run: bool,

    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,

    /// Why, for the history
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,

    #[command(flatten)]
    pub wait: WaitArgs,

    #[command(flatten)]
    pub output: OutputArgs,
}

/// Whether and how long to wait for the outcome.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Change options")]
pub(crate) struct WaitArgs {
    /// Wait until it is done; with --wait=false only until it is accepted
    #[arg(long, value_name = "BOOL", action = ArgAction::Set, num_args = 0..=1, require_equals = true,
          default_value_t = true, default_missing_value = "true", hide_default_value = true, hide_possible_values = true)]
    pub wait: bool,

    /// How long to wait; then the exit status is 5, and the change goes on
    #[arg(long, value_name = "DURATION", default_value = "5m")]
    pub timeout: Span,
}

/// What a change takes that is done when the daemon answers.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Change options")]
pub(crate) struct DeedArgs {
    /// Show what would be done and change nothing
    #[arg(long)]
    pub dry_run: bool,

    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,

    /// Why, for the audit
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,

    /// How long to wait for the daemon's answer
    #[arg(long, value_name = "DURATION", default_value = "10s")]
    pub timeout: Span,

    #[command(flatten)]
    pub output: OutputArgs,
}
