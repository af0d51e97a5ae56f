//! `meshctl dlq discard`, `park`, `restore`: what is decided about dead letters without delivering them.

use meshctl_api::client::Client;
use meshctl_api::view::messages::{DeadLetterOutcome, DeadLetterRequest};
use meshctl_model::units::Span;
use meshctl_model::{API_VERSION, exit};
use serde::Serialize;

use crate::args::DeedArgs;
use crate::ask;
use crate::failure::{Failure, Outcome};
use crate::letters::{SelectArgs, count};
use crate::output::{self, document, print_line};
use crate::session::Session;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    select: SelectArgs,
    #[command(flatten)]
    deed: DeedArgs,
}

/// What is done with them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Deed {
    Discard,
    Park,
    Restore,
}

impl Deed {
    const fn verb(self) -> &'static str {
        match self {
            Self::Discard => "discard",
            Self::Park => "park",
            Self::Restore => "restore",
        }
    }

    const fn past(self) -> &'static str {
        match self {
            Self::Discard => "discarded",
            Self::Park => "parked",
            Self::Restore => "restored",
        }
    }
}

impl Args {
    pub(super) fn timeout(&self) -> Span {
        self.deed.timeout
    }
}

pub(super) async fn run(session: &Session, deed: Deed, args: &Args) -> Outcome {
    let mut select = args.select.query()?;
    // Somebody parked them on purpose: what throws everything away does not mean them.
    if deed == Deed::Discard && select.ids.is_none() && select.r#where.is_none() {
        select.r#where = Some("state = dead".into());
    }
    if deed == Deed::Discard && !args.deed.yes && !args.deed.dry_run && !output::interactive() {
        return Err(Failure::usage("discarded letters are in no list any more, and there is nobody to ask")
            .hint("add --yes if that is meant; --dry-run shows how many there are"));
    }
    let client = session.daemon().await?;
    let mut request = DeadLetterRequest {
        select,
        reason: args.deed.reason.clone(),
        dry_run: args.deed.dry_run,
        ..Default::default()
    };
    if !args.deed.yes && !args.deed.dry_run && output::interactive() {
        // What is agreed to is this set; should it be another by then, the daemon refuses.
        let preview = call(&client, deed, &DeadLetterRequest { dry_run: true, ..request.clone() }).await?;
        let goods = if deed == Deed::Discard { " They are delivered no more." } else { "" };
        let question = format!("This {}s {}.{goods} Go on?", deed.verb(), count(preview.selected));
        if preview.selected > 0 && !ask::agreed(&question) {
            return Err(Failure::new(exit::FAILURE, "nothing was changed"));
        }
        request.fingerprint = Some(preview.fingerprint);
    }
    let outcome = call(&client, deed, &request).await?;
    report(&outcome, deed.past(), args)?;
    if deed != Deed::Restore && outcome.changed > 0 && !outcome.dry_run {
        let state = deed.past();
        session.say(format_args!("`meshctl dlq restore --where 'state = {state}'` makes them dead letters again"));
    }
    Ok(exit::OK)
}

async fn call(client: &Client, deed: Deed, request: &DeadLetterRequest) -> Result<DeadLetterOutcome, Failure> {
    client.change_dead_letters(deed.verb(), request).await.map_err(Failure::from)
}

fn report(outcome: &DeadLetterOutcome, past: &str, args: &Args) -> Result<(), Failure> {
    let format = &args.deed.output.output;
    format.must_not_be_names()?;
    if document(format, &Outcomes::of(outcome))? {
        return Ok(());
    }
    let DeadLetterOutcome { selected, changed, dry_run, .. } = outcome;
    if *dry_run {
        print_line(format_args!("would have {} {past}", count(*selected)))
    } else if changed == selected {
        print_line(format_args!("{} {past}", count(*changed)))
    } else {
        print_line(format_args!("{changed} of {} {past}; somebody was faster with the others", count(*selected)))
    }
}

/// An outcome as a document.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Outcomes<'a> {
    api_version: &'static str,
    kind: &'static str,
    #[serde(flatten)]
    outcome: &'a DeadLetterOutcome,
}

impl<'a> Outcomes<'a> {
    pub(super) fn of(outcome: &'a DeadLetterOutcome) -> Self {
        Self { api_version: API_VERSION, kind: "DeadLetterOutcome", outcome }
    }
}
