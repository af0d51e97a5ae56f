//! `meshctl dlq`: the dead letters, and what is done about them.

mod change;
mod replay;
mod show;
mod transfer;

use clap::Subcommand;
use jiff::Timestamp;
use meshctl_api::client::Client;
use meshctl_api::view::messages::DeadLetterQuery;
use meshctl_model::exit;
use meshctl_model::units::Span;

use crate::args::TableArgs;
use crate::failure::{Failure, Outcome};
use crate::letters::understood;
use crate::output::{self, Format, document, print};
use crate::session::Session;
use crate::show as listings;
use change::Deed;
pub(crate) use show::page;

/// Look at dead letters, find out why they died, and replay, discard or keep them
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List dead letters, the latest first, or count them by what is alike
    #[command(
        visible_alias = "list",
        after_help = "\
Examples:
  meshctl dlq ls
  meshctl dlq ls --group-by fingerprint
  meshctl dlq ls --where 'reason = poison and age > 1h'
  meshctl dlq ls --where 'subscription = billing and not error ~ \"timed out\"'
  meshctl dlq ls --where 'class = timeout' -o name | xargs meshctl dlq park

Filter: FIELD OPERATOR VALUE, joined by and, or, not and parentheses.
Operators: = != < <= > >= ~ (contains) in (a, b).
Fields: age, attempts, channel, class, error, fingerprint, firstFailedAt, id,
key, lastFailedAt, messageId, reason, replayId, sizeBytes, state, subscription,
traceId, type.
Values: words, \"quoted texts\", numbers, sizes such as 64KiB, durations such as
1h30m, times such as 2026-11-23T10:00:00Z.
Letters that are processed or discarded are listed where the filter asks for a
state: 'state = discarded'."
    )]
    Ls(LsArgs),
    Show(show::Args),
    Replay(replay::Args),
    /// Throw dead letters away: they are delivered no more, and the ledger says so
    #[command(after_help = "\
Examples:
  meshctl dlq discard --where 'reason = poison' --reason 'load test'
  meshctl dlq discard 4f1c09ab77d2e310 --dry-run
  meshctl dlq discard --where 'age > 30d' --yes")]
    Discard(change::Args),
    /// Put dead letters aside: neither replayed nor counted as dead, until they are restored
    #[command(after_help = "\
Examples:
  meshctl dlq park --where 'subscription = billing' --reason 'waits for 1.4'
  meshctl dlq restore --where 'state = parked'")]
    Park(change::Args),
    /// Make parked or discarded letters dead letters again
    #[command(after_help = "\
Examples:
  meshctl dlq restore --where 'state = parked'
  meshctl dlq restore --where 'state = discarded and age < 1h' --dry-run
  meshctl dlq restore 4f1c09ab77d2e310 --reason 'its copy was lost with a disk'

Letters that a replay has issued and that never came back can be restored by
their ids, once the replay is cancelled; `dlq ls --where 'state = replaying'`
lists them. Should a copy of one still come through, it may be processed twice,
and until then the ledger counts it twice.")]
    Restore(change::Args),
    Export(transfer::ExportArgs),
    Import(transfer::ImportArgs),
}

#[derive(Debug, clap::Args)]
pub struct LsArgs {
    /// Only those that a filter holds for
    #[arg(long = "where", value_name = "EXPR")]
    filter: Option<String>,

    /// Count them by reason, class, channel, subscription, fingerprint or state
    #[arg(long, value_name = "FIELD", hide_possible_values = true)]
    group_by: Option<By>,

    /// How many, at most; 0 for all
    #[arg(long, value_name = "N", default_value_t = 500)]
    limit: u32,

    #[command(flatten)]
    table: TableArgs,
}

/// What dead letters are counted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "camelCase")]
pub enum By {
    Reason,
    Class,
    Channel,
    Subscription,
    Fingerprint,
    State,
}

impl By {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Reason => "reason",
            Self::Class => "class",
            Self::Channel => "channel",
            Self::Subscription => "subscription",
            Self::Fingerprint => "fingerprint",
            Self::State => "state",
        }
    }
}

impl Command {
    pub(super) fn timeout(&self) -> Option<Span> {
        match self {
            Self::Ls(_) | Self::Show(_) | Self::Export(_) => None,
            Self::Replay(args) => Some(args.timeout()),
            Self::Discard(args) | Self::Park(args) | Self::Restore(args) => Some(args.timeout()),
            Self::Import(args) => Some(args.timeout()),
        }
    }
}

pub(super) async fn run(session: &Session, command: Command) -> Outcome {
    match command {
        Command::Ls(args) => ls(session, args).await,
        Command::Show(args) => show::run(session, &args).await,
        Command::Replay(args) => replay::run(session, args).await,
        Command::Discard(args) => change::run(session, Deed::Discard, &args).await,
        Command::Park(args) => change::run(session, Deed::Park, &args).await,
        Command::Restore(args) => change::run(session, Deed::Restore, &args).await,
        Command::Export(args) => transfer::export(session, &args).await,
        Command::Import(args) => transfer::import(session, args).await,
    }
}

async fn ls(session: &Session, args: LsArgs) -> Outcome {
    understood(args.filter.as_deref())?;
    let client = session.daemon().await?;
    let query = DeadLetterQuery {
        ids: None,
        r#where: args.filter,
        limit: Some(args.limit),
        group_by: args.group_by.map(|by| by.as_str().to_owned()),
    };
    match args.group_by {
        Some(by) => groups(session, &client, &query, by, &args.table).await,
        None => letters(session, &client, &query, args.limit, &args.table).await,
    }
}

async fn letters(session: &Session, client: &Client, query: &DeadLetterQuery, limit: u32, args: &TableArgs) -> Outcome {
    let letters = client.dead_letters(query).await?.items;
    let listing = listings::dead_letters(letters, Timestamp::now()).sorted(args.sort_by.as_deref())?;
    let format = &args.output.output;
    if document(format, &listing.document())? {
        // Whoever reads documents counts for himself.
    } else if *format == Format::Name {
        print(listing.names())?;
    } else if listing.items.is_empty() {
        session.say("no dead letters");
    } else {
        print(listing.table(format, !args.no_headers).draw(output::width()))?;
    }
    if limit > 0 && listing.items.len() == limit as usize {
        session.say(format_args!("these are the latest {limit}; --limit 0 shows all, --group-by counts them"));
    }
    Ok(exit::OK)
}

async fn groups(session: &Session, client: &Client, query: &DeadLetterQuery, by: By, args: &TableArgs) -> Outcome {
    let format = &args.output.output;
    format.must_not_be_names()?;
    if args.sort_by.is_some() {
        return Err(Failure::usage("groups come largest first; --sort-by sorts only what is not grouped"));
    }
    let groups = client.dead_letter_groups(query).await?;
    if document(format, &groups)? {
        return Ok(exit::OK);
    }
    if groups.items.is_empty() {
        session.say("no dead letters");
    } else {
        let table = listings::groups(&groups.items, by.as_str(), !args.no_headers, Timestamp::now());
        print(table.draw(output::width()))?;
    }
    Ok(exit::OK)
}
