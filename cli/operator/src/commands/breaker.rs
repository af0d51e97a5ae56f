//! `meshctl breaker`: which edges refuse requests, and the hand on the switch. What it means for others is said first; nobody is
//! asked, because it is urgent and can be taken back.

use clap::Subcommand;
use futures_util::future::join_all;
use meshctl_api::ApiError;
use meshctl_api::client::Client;
use meshctl_api::view::List;
use meshctl_api::view::breakers::{Breaker, BreakerChange, BreakerRequest};
use meshctl_model::exit;
use meshctl_model::units::Span;

use super::completion::edge_names;
use super::get::list;
use crate::args::{DeedArgs, ListArgs};
use crate::failure::{Failure, Outcome};
use crate::kinds::{Kind, Selection, no_such};
use crate::output::{Format, document, print};
use crate::session::Session;

/// Look at breakers, and open, hold or reset them on every gateway
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List the breakers: their state, since when, and who or what put them there
    #[command(
        visible_alias = "list",
        after_help = "\
Examples:
  meshctl breaker ls
  meshctl breaker ls -o wide
  meshctl breaker ls -o jsonpath='{.items[?(@.state==\"open\")].edge}'
  meshctl describe breaker/orders:inventory     # with its history

States: closed, open, halfOpen as requests fare; forcedOpen, forcedClosed as operators say.
GATEWAYS: how many of them do what is wanted of it now."
    )]
    Ls(ListArgs),
    /// Refuse every request of an edge, on every gateway, until reset or until the ttl is over
    #[command(after_help = "\
Examples:
  meshctl breaker trip orders:inventory --ttl 10m --reason 'inventory is being migrated'
  meshctl breaker trip '*:inventory' --dry-run       # who would notice
  meshctl breaker trip inventory --ttl 30s           # every edge to it
  meshctl breaker reset orders:inventory

Callers get 503 with the reason and Retry-After, or the fallback where there is one; what
is under way is not cut. The ttl ends at the gateways themselves, daemon or no daemon.")]
    Trip(ForceArgs),
    /// Keep an edge's breaker closed, whatever fails
    #[command(after_help = "\
Examples:
  meshctl breaker hold orders:inventory --ttl 5m --reason 'half an answer is better than none'
  meshctl breaker ls                                 # what it would have done
  meshctl breaker reset orders:inventory")]
    Hold(ForceArgs),
    /// Take back what was forced, and close the breaker: it begins anew
    #[command(after_help = "\
Examples:
  meshctl breaker reset orders:inventory
  meshctl breaker reset '*:inventory' --reason 'inventory is back'")]
    Reset(ResetArgs),
}

#[derive(Debug, clap::Args)]
pub struct ForceArgs {
    #[command(flatten)]
    reset: ResetArgs,

    /// When it ends by itself; never where left out
    #[arg(long, value_name = "DURATION", help_heading = "Change options")]
    ttl: Option<Span>,
}

#[derive(Debug, clap::Args)]
pub struct ResetArgs {
    /// CALLER:CALLEE, with `*` for any of them; a service alone means every edge to it
    #[arg(value_name = "EDGE", required = true, add = edge_names())]
    edges: Vec<String>,

    #[command(flatten)]
    deed: DeedArgs,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Act {
    Trip,
    Hold,
    Reset,
}

impl Command {
    pub(super) fn timeout(&self) -> Option<Span> {
        match self {
            Self::Ls(_) => None,
            Self::Trip(args) | Self::Hold(args) => Some(args.reset.deed.timeout),
            Self::Reset(args) => Some(args.deed.timeout),
        }
    }
}

pub(super) async fn run(session: &Session, command: Command) -> Outcome {
    match command {
        Command::Ls(args) => list(session, &[Selection { kind: Kind::Breaker, names: Vec::new() }], &args).await,
        Command::Trip(ForceArgs { reset, ttl }) => act(session, Act::Trip, &reset, ttl).await,
        Command::Hold(ForceArgs { reset, ttl }) => act(session, Act::Hold, &reset, ttl).await,
        Command::Reset(args) => act(session, Act::Reset, &args, None).await,
    }
}

async fn act(session: &Session, act: Act, args: &ResetArgs, ttl: Option<Span>) -> Outcome {
    let client = session.daemon().await?;
    let edges = chosen(&args.edges, &client.breakers().await?.items)?;
    let deed = &args.deed;
    let request = BreakerRequest { ttl_ms: ttl.map(Span::as_millis), reason: deed.reason.clone(), dry_run: true };
    let radius = all(&client, act, &edges, &request).await.into_iter().collect::<Result<Vec<_>, _>>()?;
    let said: String = radius.iter().map(|change| explained(act, change)).collect();
    if deed.dry_run {
        if !document(&deed.output.output, &as_document(&radius, args))? {
            print(said)?;
        }
        return Ok(exit::OK);
    }
    session.say(said.trim_end());
    let outcomes = all(&client, act, &edges, &BreakerRequest { dry_run: false, ..request }).await;
    let (done, refused): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
    let done: Vec<BreakerChange> = done.into_iter().flatten().collect();
    report(&done, args)?;
    if let Some(Err(refused)) = refused.into_iter().next() {
        return Err(refused.into());
    }
    if act != Act::Reset {
        session.say(format_args!("`meshctl breaker reset {}` takes it back", quoted(&args.edges)));
    }
    unacknowledged(&done).map_or(Ok(exit::OK), Err)
}

/// Asks for all of them at once: what is asked in one moment is one snapshot for the gateways.
async fn all(
    client: &Client,
    act: Act,
    edges: &[String],
    request: &BreakerRequest,
) -> Vec<Result<BreakerChange, ApiError>> {
    join_all(edges.iter().map(async |edge| match act {
        Act::Trip => client.trip_breaker(edge, request).await,
        Act::Hold => client.hold_breaker(edge, request).await,
        Act::Reset => client.reset_breaker(edge, request).await,
    }))
    .await
}

/// The edges that are meant, each once, as they are listed.
///
/// # Errors
/// Not found, with the nearest name, for a word that means none.
fn chosen(words: &[String], known: &[Breaker]) -> Result<Vec<String>, Failure> {
    let names = || known.iter().map(|breaker| breaker.edge.as_str());
    let mut chosen: Vec<&str> = Vec::new();
    for word in words {
        let meant = |edge: &&str| matches(word, edge);
        if !names().any(|edge| meant(&edge)) {
            let services = names().filter_map(|edge| edge.split_once(':')).map(|(_, callee)| callee);
            return Err(match word.contains(':') {
                true => no_such(Kind::Edge, word, names()),
                false => no_such(Kind::Edge, word, names().chain(services)),
            });
        }
        chosen.extend(names().filter(meant));
    }
    Ok(names().filter(|edge| chosen.contains(edge)).map(str::to_owned).collect())
}

/// Whether `word` means `edge`: `orders:inventory`, `*:inventory`, `inventory`.
fn matches(word: &str, edge: &str) -> bool {
    let (caller, callee) = word.split_once(':').unwrap_or(("*", word));
    let is = |pattern: &str, name: &str| pattern == "*" || pattern == name;
    edge.split_once(':').is_some_and(|(from, to)| is(caller, from) && is(callee, to))
}

/// What it means for everybody else.
fn explained(act: Act, change: &BreakerChange) -> String {
    let listed = |names: &[String]| if names.is_empty() { "none".to_owned() } else { names.join(" · ") };
    let breaker = &change.breaker;
    let doing = match act {
        Act::Trip => "opening the breaker of",
        Act::Hold => "holding closed the breaker of",
        Act::Reset => "resetting the breaker of",
    };
    let now = match &breaker.reason {
        Some(reason) => format!("{}: {reason}", breaker.state),
        None => breaker.state.clone(),
    };
    format!(
        "{doing} {}\n  now:         {now}, {} requests/s\n  routes:      {}\n  deliveries:  {}\n  callers get: {}\n",
        breaker.edge,
        breaker.requests_per_s,
        listed(&change.routes),
        listed(&change.channels),
        change.callers_get
    )
}

/// One edge named is one document, anything else a list.
fn as_document(changes: &[BreakerChange], args: &ResetArgs) -> serde_json::Value {
    let document = match (changes, args.edges.as_slice()) {
        ([only], [named]) if only.breaker.edge == *named => serde_json::to_value(only),
        _ => serde_json::to_value(List::of("BreakerChange", changes.to_vec())),
    };
    // The views are plain data: they always have a JSON form.
    document.unwrap_or_default()
}

fn report(done: &[BreakerChange], args: &ResetArgs) -> Result<(), Failure> {
    let format = &args.deed.output.output;
    if document(format, &as_document(done, args))? {
        return Ok(());
    }
    let line = |change: &BreakerChange| {
        let Breaker { edge, state, acknowledged, instances, expires_at, .. } = &change.breaker;
        if *format == Format::Name {
            return format!("breaker/{edge}\n");
        }
        let until = expires_at.map(|at| format!(", until {at:.0}")).unwrap_or_default();
        format!("breaker/{edge} {state} at {acknowledged}/{instances} gateways{until}\n")
    };
    print(done.iter().map(line).collect::<String>())
}

/// The failure to reach every gateway in time.
fn unacknowledged(done: &[BreakerChange]) -> Option<Failure> {
    let late = done.iter().find(|change| !change.breaker.stragglers.is_empty())?;
    let Breaker { edge, stragglers, .. } = &late.breaker;
    let message = format!("{} did not acknowledge the breaker of {edge} in time", stragglers.join(", "));
    Some(
        Failure::new(exit::TIMED_OUT, message)
            .hint("it is given it as soon as it answers: `meshctl breaker ls` shows when"),
    )
}

/// As a shell takes it.
fn quoted(words: &[String]) -> String {
    let word = |word: &String| if word.contains('*') { format!("'{word}'") } else { word.clone() };
    words.iter().map(word).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> Vec<Breaker> {
        let breaker = |edge: &str| Breaker {
            edge: edge.into(),
            state: "closed".into(),
            since: None,
            reason: None,
            by: None,
            expires_at: None,
            acknowledged: 1,
            instances: 1,
            stragglers: Vec::new(),
            requests_per_s: 0.0,
            refused_per_s: 0.0,
        };
        ["billing:courier", "gateway:inventory", "gateway:orders", "orders:inventory"].map(breaker).into()
    }

    #[test]
    fn edges_are_meant_in_three_ways() {
        let of = |words: &[&str]| chosen(&words.iter().map(ToString::to_string).collect::<Vec<_>>(), &known());
        for (words, edges) in [
            (&["orders:inventory"][..], &["orders:inventory"][..]),
            (&["*:inventory"], &["gateway:inventory", "orders:inventory"]),
            (&["gateway:*"], &["gateway:inventory", "gateway:orders"]),
            (&["inventory"], &["gateway:inventory", "orders:inventory"]),
            (
                &["orders:inventory", "inventory", "billing:courier"],
                &["billing:courier", "gateway:inventory", "orders:inventory"],
            ),
        ] {
            assert_eq!(of(words).expect("edges"), edges, "{words:?}");
        }
        for (word, hint) in [
            ("orders:inventroy", "did you mean `orders:inventory`?"),
            ("inventroy", "did you mean `inventory`?"),
            ("zzz", "`meshctl get edges` shows all"),
        ] {
            let failure = of(&[word]).expect_err("no such edge");
            assert_eq!(failure.exit, exit::NOT_FOUND);
            assert!(failure.hint.as_deref().is_some_and(|said| said.contains(hint)), "{word}: {failure:?}");
        }
    }
}
