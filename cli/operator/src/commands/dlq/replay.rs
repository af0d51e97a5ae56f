//! `meshctl dlq replay`: dead letters go back to the subscription in which they died, and are followed until each has an
//! outcome there.

use meshctl_api::client::Client;
use meshctl_api::view::messages::{DeadLetterQuery, DeadLetterRequest, Replay};
use meshctl_model::exit;
use meshctl_model::units::{Rate, Span};

use crate::args::ChangeArgs;
use crate::failure::{Failure, Outcome};
use crate::letters::{SelectArgs, count};
use crate::output::{self, Cell, Format, Table, print, print_line};
use crate::session::Session;
use crate::{ask, replays};

/// Deliver dead letters once more, each to the subscription in which it died
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshctl dlq replay --where 'reason = exhausted and age < 1h' --dry-run
  meshctl dlq replay --where 'subscription = billing' --rate 50/s
  meshctl dlq replay 4f1c09ab77d2e310 b07e55c2aa9013d8
  meshctl dlq replay --all --wait=false

The set is frozen when the replay begins: it is issued once, whatever dies
meanwhile, whoever asks again, and even if the daemon is killed half way.
Ctrl-C detaches; `meshctl replay ls` lists replays, `replay show ID -w` follows.
Exit status: 0 if all were processed, 1 if some failed again or were withdrawn,
3 if the selection holds no dead letter, 4 if those it holds wait in a replay or
are done with, 5 if some are pending when the time is over.")]
pub struct Args {
    #[command(flatten)]
    select: SelectArgs,

    /// No faster than so many messages in a time, such as 50/s
    #[arg(long, value_name = "N/s")]
    rate: Option<Rate>,

    #[command(flatten)]
    change: ChangeArgs,
}

impl Args {
    pub(super) fn timeout(&self) -> Span {
        self.change.wait.timeout
    }
}

pub(super) async fn run(session: &Session, args: Args) -> Outcome {
    let change = &args.change;
    let format = &change.output.output;
    let client = session.daemon().await?;
    let mut request = DeadLetterRequest {
        select: args.select.query()?,
        fingerprint: None,
        reason: change.reason.clone(),
        rate_per_s: args.rate.map(|rate| rate.0),
        dry_run: change.dry_run,
    };
    if change.dry_run {
        let preview = start(&client, &request).await?;
        return show(&client, &preview, &request.select, format).await;
    }
    if !change.yes && output::interactive() {
        let preview = start(&client, &DeadLetterRequest { dry_run: true, ..request.clone() }).await?;
        if preview.selected > 0 {
            output::say(radius(&client, &preview, &request.select).await?.trim_end());
            if !ask::agreed(&format!("Replay {}?", count(preview.selected))) {
                return Err(Failure::new(exit::FAILURE, "nothing was replayed"));
            }
        }
        // What was agreed to is this set; should it be another by now, the daemon refuses.
        request.fingerprint = Some(preview.fingerprint);
    }
    let replay = start(&client, &request).await?;
    if !change.wait.wait {
        replays::report(&replay, format)?;
        let id = &replay.replay_id;
        session.say(format_args!("`meshctl replay show {id} -w` follows it, `meshctl replay cancel {id}` ends it"));
        return Ok(exit::OK);
    }
    replays::pursue(session, &client, replay, change.wait.timeout.get(), format).await
}

async fn start(client: &Client, request: &DeadLetterRequest) -> Result<Replay, Failure> {
    client.start_replay(request).await.map_err(Failure::from)
}

/// A dry run's result.
async fn show(client: &Client, preview: &Replay, select: &DeadLetterQuery, format: &Format) -> Outcome {
    if !format.for_people() {
        replays::report(preview, format)?;
        return Ok(exit::OK);
    }
    print_line(format_args!("would replay {} (fingerprint {})", count(preview.selected), preview.fingerprint))?;
    if preview.selected > 0 {
        print(radius(client, preview, select).await?)?;
    }
    Ok(exit::OK)
}

/// How many messages go to which subscriptions, and why they died: what somebody agrees to.
async fn radius(client: &Client, preview: &Replay, select: &DeadLetterQuery) -> Result<String, Failure> {
    let mut table = Table::new(["messages", "to subscription"]);
    for (name, messages) in &preview.subscriptions {
        table.row(vec![Cell::plain(messages), Cell::plain(name)]);
    }
    let dead = "state = dead";
    let filter = select.r#where.as_ref().map_or_else(|| dead.to_owned(), |filter| format!("({filter}) and {dead}"));
    let query = DeadLetterQuery { r#where: Some(filter), group_by: Some("fingerprint".into()), ..select.clone() };
    let mut why = Table::new(["messages", "died of"]);
    for group in client.dead_letter_groups(&query).await?.items.iter().take(WHYS) {
        why.row(vec![Cell::plain(group.count), Cell::plain(&group.example_error)]);
    }
    Ok(format!("{}\n{}", table.draw(None), why.draw(output::stderr_width())))
}

/// How many causes are told, the most frequent first.
const WHYS: usize = 5;
