//! `meshctl trace`: what a request and the messages that follow from it passed through.

mod send;
mod wait;

use jiff::Timestamp;
use meshctl_api::client::Client;
use meshctl_api::view::traces::{Trace, TraceQuery, TraceStore};
use meshctl_model::exit;
use meshctl_model::filter::TRACE;
use meshctl_model::units::Span;
use tokio::time::Instant;

use super::completion::trace_ids;
use super::logs::since;
use super::publish::header;
use crate::args::TableArgs;
use crate::failure::{Failure, Outcome};
use crate::kinds::Kind;
use crate::letters::understood_as;
use crate::output::{self, Format, document, print};
use crate::session::Session;
use crate::show;
use crate::traces::resolve;

/// Follow a request through gateway, services, channels, retries, dead letters and replays
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshctl trace --last
  meshctl trace 4bf92f3577b3
  meshctl trace --slowest 10 --since 1h
  meshctl trace --errors
  meshctl trace --where 'service = orders and latency > 100ms'
  meshctl trace --send 'POST /orders {\"sku\":\"book\",\"quantity\":1}'
  meshctl trace --send 'GET /inventory/book' -H 'accept: application/json'

One trace is drawn as a tree with a bar for each span; several are a list. With
-o wide the only attempt of a request has a line of its own, too.
An ID is a trace's, the first 6 digits of it or more, or a message's.
--send waits until the asynchronous side has caught up, too.
Filter: FIELD OPERATOR VALUE, joined by and, or, not and parentheses.
Fields: age, duration, errors, latency, operation, service, spans, startAt,
status (ok, slow, error, dead), traceId.
Exit status: 3 if there is no such trace, 5 if it is not complete in time.")]
pub struct Args {
    /// A trace, by its id, its first digits, or the id of a message
    #[arg(value_name = "ID", add = trace_ids(), conflicts_with_all = ["last", "slowest", "errors", "filter", "since", "limit", "send"])]
    id: Option<String>,

    /// The newest of them
    #[arg(long, help_heading = "Selection", conflicts_with = "slowest")]
    last: bool,

    /// The N that took longest
    #[arg(long, value_name = "N", help_heading = "Selection", conflicts_with = "limit", value_parser = clap::value_parser!(u32).range(1..=1000))]
    slowest: Option<u32>,

    /// Only those with an error or a dead letter
    #[arg(long, help_heading = "Selection")]
    errors: bool,

    /// Only those that a filter holds for: 'service = orders and status = error'
    #[arg(long = "where", value_name = "EXPR", id = "filter", help_heading = "Selection")]
    filter: Option<String>,

    /// Only those that began since then: 5m, or 2026-11-23T10:00:00Z
    #[arg(long, value_name = "WHEN", help_heading = "Selection")]
    since: Option<String>,

    /// How many, at most [default: 20]
    #[arg(long, value_name = "N", help_heading = "Selection", value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: Option<u32>,

    /// Send this request through the gateway, wait until all that follows is done, and show it
    #[arg(long, value_name = "METHOD PATH BODY", conflicts_with_all = ["last", "slowest", "errors", "filter", "since", "limit"], value_parser = send::request)]
    send: Option<send::Request>,

    /// A header of the request that is sent, as often as wanted
    #[arg(long = "header", short = 'H', value_name = "NAME: VALUE", requires = "send", value_parser = header)]
    headers: Vec<(String, String)>,

    /// Wait until the trace is complete
    #[arg(long, conflicts_with_all = ["slowest", "limit", "send"])]
    wait: bool,

    /// How long to wait with --send and --wait; then the exit status is 5
    #[arg(long, value_name = "DURATION", default_value = "30s")]
    timeout: Span,

    #[command(flatten)]
    table: TableArgs,
}

/// A list that somebody looks through.
const LIMIT: u32 = 20;

impl Args {
    /// How long there is to wait, where it waits.
    pub(super) fn timeout(&self) -> Option<Span> {
        (self.wait || self.send.is_some()).then_some(self.timeout)
    }

    fn query(&self) -> Result<TraceQuery, Failure> {
        understood_as(self.filter.as_deref(), TRACE, "trace")?;
        let since = self.since.as_deref().map(|text| since(text, Timestamp::now())).transpose()?;
        Ok(TraceQuery {
            limit: Some(if self.last { 1 } else { self.slowest.or(self.limit).unwrap_or(LIMIT) }),
            slowest: self.slowest.is_some(),
            errors: self.errors,
            since: since.map(|at| at.to_string()),
            filter: self.filter.clone(),
        })
    }
}

pub(super) async fn run(session: &Session, args: Args) -> Outcome {
    let format = &args.table.output.output;
    if let Some(request) = &args.send {
        return send::run(session, request, &args.headers, args.timeout.get(), format).await;
    }
    let query = args.query()?;
    let client = session.daemon().await?;
    match &args.id {
        Some(id) if args.wait => {
            wait::until_complete(session, &client, id, (Instant::now(), args.timeout.get()), format).await
        }
        Some(id) => one(session, &resolve(&client, id).await?, format),
        None => list(session, &client, &query, &args).await,
    }
}

/// From the end of a request to its trace in the store, as a rule,
const ARRIVES_WITHIN: std::time::Duration = std::time::Duration::from_millis(250);
/// and on a busy machine.
const ARRIVES_AT_LATEST: std::time::Duration = std::time::Duration::from_secs(2);

async fn list(session: &Session, client: &Client, query: &TraceQuery, args: &Args) -> Outcome {
    let mut traces = client.traces(query).await?;
    if args.last {
        // Of a request that was answered a moment ago the spans are still on their way.
        let patience = Instant::now() + ARRIVES_AT_LATEST;
        tokio::time::sleep(ARRIVES_WITHIN).await;
        traces = client.traces(query).await?;
        while traces.items.is_empty() && Instant::now() < patience {
            tokio::time::sleep(ARRIVES_WITHIN).await;
            traces = client.traces(query).await?;
        }
    }
    let format = &args.table.output.output;
    match traces.items.as_slice() {
        [] if args.last => {
            return Err(Failure::not_found("there is no such trace")
                .hint("`meshctl trace --send 'GET /'` sends a request and follows it"));
        }
        // A script gets a list where it asked for one, however many there are.
        [only] if args.last || format.for_people() => {
            let id = &only.trace_id;
            return match args.wait {
                true => wait::until_complete(session, client, id, (Instant::now(), args.timeout.get()), format).await,
                false => one(session, &client.trace(id).await?, format),
            };
        }
        _ if args.wait => {
            return Err(Failure::usage("only one trace can be waited for").hint("name its ID, or add --last"));
        }
        _ => {}
    }
    let count = traces.items.len();
    let store = json(&traces.store);
    let listing = show::traces(traces.items, Timestamp::now()).sorted(args.table.sort_by.as_deref())?;
    let mut whole = listing.document();
    whole["store"] = store;
    if document(format, &whole)? {
        return Ok(exit::OK);
    }
    if *format == Format::Name {
        print(listing.names())?;
    } else if count == 0 {
        session.say("no traces");
    } else {
        print(listing.table(format, !args.table.no_headers).draw(output::width()))?;
    }
    if let Some(loss) = loss(&traces.store) {
        session.say(loss);
    }
    Ok(exit::OK)
}

fn json(store: &TraceStore) -> serde_json::Value {
    serde_json::to_value(store).unwrap_or_default()
}

/// What is not in the list because it was not kept.
fn loss(store: &TraceStore) -> Option<String> {
    let TraceStore { dropped_spans, evicted_traces, .. } = store;
    let dropped = (*dropped_spans > 0).then(|| format!("{dropped_spans} spans were dropped for want of room"));
    let evicted = (*evicted_traces > 0).then(|| format!("{evicted_traces} traces were removed for age or room"));
    let parts: Vec<String> = [dropped, evicted].into_iter().flatten().collect();
    (!parts.is_empty()).then(|| format!("not shown: {}", parts.join(", ")))
}

/// Shows a trace on a page, and what to do next.
fn one(session: &Session, trace: &Trace, format: &Format) -> Outcome {
    let now = Timestamp::now();
    if *format == Format::Name {
        print(format!("{}/{}\n", Kind::Trace.singular(), trace.trace_id))?;
    } else if !document(format, trace)? {
        let look = show::Look { attempts: *format == Format::Wide, ..show::Look::of_stdout() };
        print(show::waterfall(trace, now, look))?;
        show::next_steps(trace).iter().for_each(|step| session.say(step));
    }
    Ok(exit::OK)
}
