//! `meshctl status`

use jiff::Timestamp;
use meshctl_api::client::Client;
use meshctl_api::error::ErrorCode;
use meshctl_api::view::Status;
use meshctl_model::delivery::BROKER;
use meshctl_model::exit;

use super::live_with_pulse;
use crate::args::OutputArgs;
use crate::failure::{Failure, Outcome};
use crate::output::{self, BOLD, CAREFUL, Format, GOOD, document, print, print_line, styled};
use crate::progress::fold;
use crate::session::Session;
use crate::show::{self, Listing};

/// Show the whole system at one glance
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshctl status
  meshctl status --watch
  meshctl status -o json | jq .ready
  meshctl status -o jsonpath='{range .items[*]}{.name}{\"\\n\"}{end}'")]
pub struct Args {
    /// Go on, and show it again whenever it changes
    #[arg(short, long)]
    watch: bool,

    /// Leave the header lines out
    #[arg(long)]
    no_headers: bool,

    #[command(flatten)]
    output: OutputArgs,
}

pub(super) async fn run(session: &Session, args: &Args) -> Outcome {
    let client = session.daemon().await?;
    if !args.watch {
        show(&client.status().await?, args)?;
        return Ok(exit::OK);
    }
    let (mut status, mut shown) = (None::<Status>, None);
    live_with_pulse(&client, async |heard| {
        match heard {
            Some(told) => fold(&mut status, told),
            None => look_at_channels(&client, &mut status).await?,
        }
        let Some(status) = &status else { return Ok(()) };
        // What is shown does not depend on the last event; most events change nothing of it.
        let now = Status { last_event_id: String::new(), ..Status::clone(status) };
        if shown.as_ref() != Some(&now) {
            show_again(status, args)?;
            shown = Some(now);
        }
        Ok(())
    })
    .await
}

/// What flows through channels changes without events. Whether a daemon that is gone comes back is for the watch to find out.
async fn look_at_channels(client: &Client, status: &mut Option<Status>) -> Result<(), Failure> {
    let Some(status) = status.as_mut().filter(|status| status.items.iter().any(|service| service.kind == BROKER))
    else {
        return Ok(());
    };
    match client.channels().await {
        Ok(channels) => status.channels = channels.items,
        Err(error) if matches!(error.code, ErrorCode::Unreachable | ErrorCode::Unavailable) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

fn show(status: &Status, args: &Args) -> Result<(), Failure> {
    if document(&args.output.output, status)? {
        return Ok(());
    }
    print(page(status, &args.output.output, !args.no_headers, output::width(), Timestamp::now()))
}

/// On a terminal in place of what stood there; in a pipe below it; as JSON one line.
fn show_again(status: &Status, args: &Args) -> Result<(), Failure> {
    if args.output.output == Format::Json {
        let line = serde_json::to_string(status).unwrap_or_default();
        return print_line(line);
    }
    if output::width().is_some() && args.output.output.for_people() {
        print("\u{1b}[H\u{1b}[2J")?;
    }
    show(status, args)
}

fn page(status: &Status, format: &Format, headers: bool, width: Option<u16>, now: Timestamp) -> String {
    let services = show::services(status.items.clone(), now);
    let channels = show::channels(status.channels.clone());
    let gateways = show::gateways(status.gateways.clone(), now);
    if *format == Format::Name {
        return services.names() + &channels.names() + &gateways.names();
    }
    let table = |listing: &Listing| listing.table(format, headers).draw(width);
    let mut text = String::new();
    if headers {
        let readiness = if status.ready { styled(GOOD, "ready") } else { styled(CAREFUL, "not ready") };
        let name = if status.name.is_empty() { "nothing applied yet" } else { &status.name };
        text.push_str(&format!("{}   revision {}   {readiness}\n\n", styled(BOLD, name), status.revision));
    }
    text.push_str(&table(&services));
    if !status.channels.is_empty() {
        text.push('\n');
        text.push_str(&table(&channels));
    }
    if !status.gateways.is_empty() {
        text.push('\n');
        text.push_str(&table(&gateways));
    }
    text
}
