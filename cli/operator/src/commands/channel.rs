//! `meshctl channel`: what carries messages, and the valves on it.

use clap::Subcommand;
use meshctl_api::client::Client;
use meshctl_api::view::messages::{Channel, PauseRequest};
use meshctl_model::exit;
use meshctl_model::units::Span;

use super::completion::{channel_names, subscription_names};
use super::get::{list, page};
use super::{publish, tail};
use crate::args::{DeedArgs, ListArgs, OutputArgs};
use crate::failure::{Failure, Outcome};
use crate::kinds::{Kind, Selection, no_such};
use crate::output::{Format, document, print};
use crate::session::Session;
use crate::show;

/// Look at channels, publish to them, read along, stop and start their delivery
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List the channels: what waits in them, how fast they flow
    #[command(
        visible_alias = "list",
        after_help = "\
Examples:
  meshctl channel ls
  meshctl channel ls -w
  meshctl channel ls -o wide --sort-by .depth
  meshctl channel ls -o jsonpath='{.items[?(@.depth>1000)].name}'

DEPTH: what the slowest subscription has yet to settle, retries included. LAG: what
waits in the channel, summed over the subscriptions, without retries. IN FLIGHT: what
couriers hold, to deliver it now or when its next attempt is due.
`meshctl get subscriptions` shows each subscription."
    )]
    Ls(ListArgs),
    /// Show everything about a channel and its subscriptions
    #[command(after_help = "\
Examples:
  meshctl channel describe order.placed
  meshctl channel describe")]
    Describe(DescribeArgs),
    Publish(publish::Args),
    Tail(tail::Args),
    /// Stop delivery to a channel's subscriptions, or to one; nothing is lost
    #[command(after_help = "\
Examples:
  meshctl channel pause order.placed/billing --reason 'billing is being migrated'
  meshctl channel pause order.placed
  meshctl channel resume order.placed/billing")]
    Pause(ValveArgs),
    /// Deliver again where delivery was paused
    #[command(after_help = "\
Examples:
  meshctl channel resume order.placed/billing
  meshctl channel resume order.placed --dry-run")]
    Resume(ValveArgs),
}

#[derive(Debug, clap::Args)]
pub struct DescribeArgs {
    /// All where left out
    #[arg(value_name = "CHANNEL", add = channel_names())]
    names: Vec<String>,

    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, clap::Args)]
pub struct ValveArgs {
    /// A channel, or one subscription of it
    #[arg(value_name = "CHANNEL[/SUBSCRIPTION]", add = subscription_names())]
    name: String,

    #[command(flatten)]
    deed: DeedArgs,
}

/// Which way a valve is turned.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    Pause,
    Resume,
}

impl Command {
    pub(super) fn timeout(&self) -> Option<Span> {
        match self {
            Self::Ls(_) | Self::Describe(_) | Self::Tail(_) => None,
            Self::Publish(args) => Some(args.timeout()),
            Self::Pause(args) | Self::Resume(args) => Some(args.deed.timeout),
        }
    }
}

pub(super) async fn run(session: &Session, command: Command) -> Outcome {
    match command {
        Command::Ls(args) => list(session, &[Selection { kind: Kind::Channel, names: Vec::new() }], &args).await,
        Command::Describe(args) => {
            page(session, &[Selection { kind: Kind::Channel, names: args.names }], &args.output.output).await
        }
        Command::Publish(args) => publish::run(session, args).await,
        Command::Tail(args) => tail::run(session, args).await,
        Command::Pause(args) => turn(session, Turn::Pause, &args).await,
        Command::Resume(args) => turn(session, Turn::Resume, &args).await,
    }
}

async fn turn(session: &Session, turn: Turn, args: &ValveArgs) -> Outcome {
    let (name, subscription) = match args.name.split_once('/') {
        Some((name, subscription)) => (name, Some(subscription)),
        None => (args.name.as_str(), None),
    };
    let client = session.daemon().await?;
    let channel = find(&client, name).await?;
    must_subscribe(&channel, subscription)?;
    if args.deed.dry_run {
        return report(&channel, subscription, turn, &args.deed);
    }
    let request = PauseRequest { subscription: subscription.map(str::to_owned), reason: args.deed.reason.clone() };
    let channel = match turn {
        Turn::Pause => client.pause_channel(name, &request).await?,
        Turn::Resume => client.resume_channel(name, &request).await?,
    };
    report(&channel, subscription, turn, &args.deed)?;
    if turn == Turn::Pause {
        session.say(format_args!("messages wait meanwhile; `meshctl channel resume {}` delivers them", args.name));
    }
    Ok(exit::OK)
}

fn report(channel: &Channel, subscription: Option<&str>, turn: Turn, args: &DeedArgs) -> Outcome {
    let mut listing = show::channels(vec![channel.clone()]);
    if let Some(item) = listing.items.pop()
        && document(&args.output.output, &show::alone(Kind::Channel, &item))?
    {
        return Ok(exit::OK);
    }
    let became = match (args.dry_run, turn) {
        _ if args.output.output == Format::Name => "",
        (false, Turn::Pause) => " paused",
        (false, Turn::Resume) => " resumed",
        (true, Turn::Pause) => " would be paused",
        (true, Turn::Resume) => " would be resumed",
    };
    let turned = channel.subscriptions.iter().filter(|one| subscription.is_none_or(|name| one.subscription == name));
    print(turned.map(|one| format!("subscription/{}{became}\n", one.name)).collect::<String>())?;
    Ok(exit::OK)
}

/// The channel of that name.
///
/// # Errors
/// Not found, with the nearest name.
pub(super) async fn find(client: &Client, name: &str) -> Result<Channel, Failure> {
    let mut channels = client.channels().await?.items;
    match channels.iter().position(|channel| channel.name == name) {
        Some(at) => Ok(channels.swap_remove(at)),
        None => Err(no_such(Kind::Channel, name, channels.iter().map(|channel| channel.name.as_str()))),
    }
}

fn must_subscribe(channel: &Channel, subscription: Option<&str>) -> Result<(), Failure> {
    let known = || channel.subscriptions.iter().map(|one| one.subscription.as_str());
    match subscription {
        Some(name) if !known().any(|known| known == name) => Err(no_such(Kind::Subscription, name, known())),
        _ => Ok(()),
    }
}
