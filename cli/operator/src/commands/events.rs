//! `meshctl events`

use jiff::Timestamp;
use meshctl_api::client::Client;
use meshctl_api::view::{List, Told};
use meshctl_model::event::Event;
use meshctl_model::exit;

use super::live;
use crate::args::OutputArgs;
use crate::failure::{Failure, Outcome};
use crate::output::{self, Format, document, print, print_line};
use crate::session::Session;
use crate::show;

/// Show what happened, oldest first
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshctl events
  meshctl events -w
  meshctl events --subject instance/orders --limit 20
  meshctl events -w -o json | jq -r .message")]
pub struct Args {
    /// Go on as more happens
    #[arg(short, long)]
    watch: bool,

    /// Only what happened to things whose KIND/NAME begins so
    #[arg(long, value_name = "PREFIX")]
    subject: Option<String>,

    /// How many, at most
    #[arg(long, value_name = "N", default_value_t = 50)]
    limit: usize,

    /// Leave the header line out
    #[arg(long)]
    no_headers: bool,

    #[command(flatten)]
    output: OutputArgs,
}

pub(super) async fn run(session: &Session, args: &Args) -> Outcome {
    let client = session.daemon().await?;
    let past = client.events(None, Some(args.limit), args.subject.as_deref()).await?;
    if args.watch {
        return watch(&client, past, args).await;
    }
    if !document(&args.output.output, &past)? {
        show(past.items, !args.no_headers, args)?;
    }
    Ok(exit::OK)
}

async fn watch(client: &Client, past: List<Event>, args: &Args) -> Outcome {
    let after = past.items.last().map(|event| event.id.clone());
    show(past.items, !args.no_headers, args)?;
    live(client, after, async |told| match told {
        Told::Event(event) if args.subject.as_ref().is_none_or(|prefix| event.subject.starts_with(prefix)) => {
            show(vec![event], false, args)
        }
        _ => Ok(()),
    })
    .await
}

fn show(events: Vec<Event>, header: bool, args: &Args) -> Result<(), Failure> {
    match &args.output.output {
        Format::Json => {
            events.iter().try_for_each(|event| print_line(serde_json::to_string(event).unwrap_or_default()))
        }
        Format::Name => print(show::events(events, Timestamp::now()).names()),
        format @ (Format::Table | Format::Wide) => {
            print(show::events(events, Timestamp::now()).table(format, header).draw(output::width()))
        }
        format => events.iter().try_for_each(|event| document(format, event).map(drop)),
    }
}
