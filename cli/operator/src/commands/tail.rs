//! `meshctl channel tail`

use jiff::Timestamp;
use meshctl_api::view::messages::{Message, MessageQuery};
use meshctl_model::exit;

use super::channel::find;
use super::completion::channel_names;
use super::logs::since;
use crate::args::OutputArgs;
use crate::failure::{Failure, Outcome};
use crate::kinds::Kind;
use crate::output::{BOLD, Format, document, print_line, styled};
use crate::session::Session;
use crate::{payload, show};

/// Show the messages of a channel, oldest first; reading along changes nothing
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshctl channel tail order.placed
  meshctl channel tail order.placed -f
  meshctl channel tail order.placed --last 5 -o wide
  meshctl channel tail order.placed --since 10m -o json | jq .payload

A line is the time, the key and the payload; -o wide adds id, place, type and
publisher, -o json everything.")]
pub struct Args {
    /// The channel
    #[arg(value_name = "CHANNEL", add = channel_names())]
    channel: String,

    /// Go on as more is published
    #[arg(short, long)]
    follow: bool,

    /// How many of those that are there
    #[arg(long, value_name = "N", default_value_t = 20)]
    last: u32,

    /// Only what was accepted since then: 5m, or 2026-11-23T10:00:00Z
    #[arg(long, value_name = "WHEN")]
    since: Option<String>,

    #[command(flatten)]
    output: OutputArgs,
}

pub(super) async fn run(session: &Session, args: Args) -> Outcome {
    let since = args.since.as_deref().map(|text| since(text, Timestamp::now())).transpose()?;
    let client = session.daemon().await?;
    find(&client, &args.channel).await?;
    let query = MessageQuery {
        channel: Some(args.channel),
        last: Some(args.last),
        since: since.map(|at| at.to_string()),
        follow: args.follow,
    };
    let format = &args.output.output;
    if !args.follow {
        client.messages(&query).await?.items.into_iter().try_for_each(|message| show(message, format))?;
        return Ok(exit::OK);
    }
    let mut messages = client.follow_messages(&query).await?;
    while let Some(message) = messages.next().await? {
        show(message, format)?;
    }
    Err(Failure::new(exit::UNREACHABLE, "the daemon has ended, or gave up a reader that was too slow")
        .hint("`meshctl status` tells which; --since goes on from the last line"))
}

fn show(message: Message, format: &Format) -> Result<(), Failure> {
    if !format.for_people() {
        let mut listing = show::messages(vec![message], Timestamp::now());
        let Some(item) = listing.items.pop() else { return Ok(()) };
        return match format {
            Format::Json => print_line(show::alone(Kind::Message, &item)),
            Format::Name => print_line(format_args!("message/{}", item.name)),
            format => document(format, &show::alone(Kind::Message, &item)).map(drop),
        };
    }
    let body = payload::one_line(message.payload.as_ref(), message.payload_base64.as_deref(), message.size_bytes);
    let key = message.key.as_deref().unwrap_or("-").replace(char::is_control, " ");
    let line = match format {
        Format::Wide => {
            let Message { message_id, partition, offset, kind, service, .. } = &message;
            let at = message.timestamp;
            format!("{at} {message_id} {partition}@{offset} {kind} {service} {} {body}", styled(BOLD, key))
        }
        _ => format!("{} {} {body}", message.timestamp.strftime("%H:%M:%S%.3fZ"), styled(BOLD, key)),
    };
    print_line(line)
}
