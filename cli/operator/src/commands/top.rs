//! `meshctl top`: rate, errors, duration and saturation of everything, again and again in the same place.

use std::cmp::Ordering;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use meshctl_api::ApiError;
use meshctl_api::client::{Client, Follow};
use meshctl_api::error::ErrorCode;
use meshctl_api::view::messages::Channel;
use meshctl_api::view::vitals::{Signals, Vitals};
use meshctl_model::exit;

use super::{RETURN, ended};
use crate::args::OutputArgs;
use crate::failure::{Failure, Outcome, writing};
use crate::output::{self, BAD, BOLD, CAREFUL, Format, document, print, print_line, styled};
use crate::session::Session;
use crate::show::{self, percent, share, signals};

/// Show rate, errors, latency and load of everything, over the last ten seconds
///
/// On a terminal it goes on until it is interrupted; elsewhere, or with --once, it is shown once. Latencies are of requests
/// that reached an instance; `-` means that none did.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshctl top
  meshctl top routes --sort p99
  meshctl top services --once --no-headers
  meshctl top -w -o json | jq '.services[] | {name, requestsPerS, latencyP99Ms}'

errors: answered 5xx, refused without a fallback, or given up by the caller
cpu:    of all instances of the service together; 100% is one core")]
pub struct Args {
    /// What to show; services and channels where left out
    #[arg(value_name = "KIND")]
    what: Option<What>,

    /// Which comes first: the largest, of names the first
    #[arg(long, value_name = "COLUMN", default_value = "name", hide_default_value = true)]
    sort: Sort,

    /// Show it once
    #[arg(long, conflicts_with = "watch")]
    once: bool,

    /// Go on, also where nothing can be drawn over; with -o json one object a line
    #[arg(short, long)]
    watch: bool,

    /// Leave the header lines out
    #[arg(long)]
    no_headers: bool,

    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum What {
    #[value(alias = "svc", alias = "service")]
    Services,
    #[value(alias = "rt", alias = "route")]
    Routes,
    #[value(alias = "edge")]
    Edges,
    #[value(alias = "ch", alias = "channel")]
    Channels,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Sort {
    Name,
    Rate,
    Errors,
    P50,
    P99,
    InFlight,
    Queued,
    Cpu,
    Memory,
    /// Of channels
    Lag,
}

pub(super) async fn run(session: &Session, args: &Args) -> Outcome {
    args.output.output.must_not_be_names()?;
    let client = session.daemon().await?;
    let in_place = io::stdout().is_terminal() && args.output.output.for_people();
    if args.once || !(args.watch || in_place) {
        let mut vitals = client.vitals().await.map_err(too_old)?;
        sort(&mut vitals, args.sort);
        if !document(&args.output.output, &vitals)? {
            print(page(&vitals, args, output::width()))?;
        }
        return Ok(exit::OK);
    }
    watch(&client, args, in_place).await
}

/// A daemon from before there were vitals says only that there is no such call.
fn too_old(error: ApiError) -> Failure {
    let unknown = error.code == ErrorCode::NotFound;
    let failure = Failure::from(error);
    if unknown {
        failure.hint("the daemon may be older than this command: `meshctl version` compares them")
    } else {
        failure
    }
}

/// Shows what comes for as long as there is a daemon, or for [`RETURN`] after the last one was there.
async fn watch(client: &Client, args: &Args, in_place: bool) -> Outcome {
    const AGAIN: Duration = Duration::from_millis(500);
    let (mut following, mut last, mut is_first) = (None::<Follow<Vitals>>, Instant::now(), true);
    loop {
        let next = match &mut following {
            Some(following) => following.next().await,
            None => match client.follow_vitals().await {
                Ok(begun) => {
                    following = Some(begun);
                    continue;
                }
                Err(error) => Err(error),
            },
        };
        match next {
            Ok(Some(mut vitals)) => {
                sort(&mut vitals, args.sort);
                show(&vitals, args, in_place, is_first)?;
                (last, is_first) = (Instant::now(), false);
            }
            // It ends, or comes back: a daemon may be replaced while it is watched.
            Ok(None) => following = None,
            Err(error) if !is_first && matches!(error.code, ErrorCode::Unreachable | ErrorCode::Unavailable) => {
                following = None;
            }
            Err(error) => return Err(too_old(error)),
        }
        if following.is_none() {
            if last.elapsed() > RETURN {
                return Err(ended());
            }
            tokio::time::sleep(AGAIN).await;
        }
    }
}

fn show(vitals: &Vitals, args: &Args, in_place: bool, is_first: bool) -> Result<(), Failure> {
    match &args.output.output {
        Format::Json => print_line(serde_json::to_string(vitals).unwrap_or_default()),
        format if document(format, vitals)? => Ok(()),
        _ if in_place => draw_over(&page(vitals, args, output::width()), is_first),
        _ => print(page(vitals, args, None) + "\n"),
    }
}

/// Draws in place of what stood there: from the upper left corner, each line to its end. Nothing has to be put back when it
/// is interrupted. Not by way of `print`, which takes such signs for colours and leaves them out with them.
fn draw_over(page: &str, is_first: bool) -> Result<(), Failure> {
    let plain = anstream::AutoStream::choice(&io::stdout()) == anstream::ColorChoice::Never;
    let page = if plain { anstream::adapter::strip_str(page).to_string() } else { page.to_owned() };
    let height = terminal_size::terminal_size_of(io::stdout()).map_or(usize::MAX, |(_, height)| height.0.into());
    let mut text = String::from(if is_first { "\u{1b}[H\u{1b}[2J" } else { "\u{1b}[H" });
    for line in fit(&page, height) {
        text.push_str(&line);
        text.push_str("\u{1b}[K\n");
    }
    text.push_str("\u{1b}[J");
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(|error| writing(&error))
}

/// As many lines as there is room for above the one that the cursor stands on, and how many are missing.
fn fit(page: &str, height: usize) -> Vec<String> {
    let mut lines: Vec<String> = page.lines().map(str::to_owned).collect();
    let room = height.saturating_sub(1).max(1);
    if lines.len() > room {
        let hidden = lines.len() - room + 1;
        lines.truncate(room - 1);
        lines.push(format!("… {hidden} more; --sort brings others up"));
    }
    lines
}

fn sort(vitals: &mut Vitals, by: Sort) {
    let largest = |of: &dyn Fn(&Signals) -> f64, left: &Signals, right: &Signals| of(right).total_cmp(&of(left));
    let order = |left: &Signals, right: &Signals| -> Ordering {
        match by {
            Sort::Name | Sort::Lag => Ordering::Equal,
            Sort::Rate => largest(&|one| one.requests_per_s, left, right),
            Sort::Errors => largest(&|one| share(one).unwrap_or(-1.0), left, right),
            Sort::P50 => largest(&|one| one.latency_p50_ms.unwrap_or(-1.0), left, right),
            Sort::P99 => largest(&|one| one.latency_p99_ms.unwrap_or(-1.0), left, right),
            Sort::InFlight => right.in_flight.cmp(&left.in_flight),
            Sort::Queued => right.queued.cmp(&left.queued),
            Sort::Cpu => largest(&|one| one.cpu_percent.unwrap_or(-1.0), left, right),
            Sort::Memory => right.memory_bytes.cmp(&left.memory_bytes),
        }
    };
    for things in [&mut vitals.services, &mut vitals.routes, &mut vitals.edges] {
        things.sort_by(|left, right| order(left, right).then_with(|| left.name.cmp(&right.name)));
    }
    vitals.channels.sort_by(|left: &Channel, right: &Channel| {
        let first = match by {
            Sort::Rate => right.published_per_s.total_cmp(&left.published_per_s),
            Sort::InFlight => right.in_flight.cmp(&left.in_flight),
            Sort::Lag | Sort::Queued => right.lag.cmp(&left.lag),
            Sort::Errors => right.dead_letters.cmp(&left.dead_letters),
            _ => Ordering::Equal,
        };
        first.then_with(|| left.name.cmp(&right.name))
    });
}

fn page(vitals: &Vitals, args: &Args, width: Option<u16>) -> String {
    let (header, wide) = (!args.no_headers, args.output.output == Format::Wide);
    let table = |title, things: &[Signals]| signals(title, things, wide, header).draw(width);
    let channels = || show::channels(vitals.channels.clone()).table(&args.output.output, header).draw(width);
    let tables = match args.what {
        Some(What::Services) => vec![table("service", &vitals.services)],
        Some(What::Routes) => vec![table("route", &vitals.routes)],
        Some(What::Edges) => vec![table("edge", &vitals.edges)],
        Some(What::Channels) => vec![channels()],
        None if vitals.channels.is_empty() => vec![table("service", &vitals.services)],
        None => vec![table("service", &vitals.services), channels()],
    };
    let mut text = String::new();
    if header {
        text.push_str(&headline(vitals));
    }
    text + &tables.join("\n")
}

/// What comes from outside, and what somebody should look at.
fn headline(vitals: &Vitals) -> String {
    let total = vitals.routes.iter().fold(Signals::default(), |sum, route| Signals {
        requests_per_s: sum.requests_per_s + route.requests_per_s,
        errors_per_s: sum.errors_per_s + route.errors_per_s,
        ..sum
    });
    let mut parts = vec![styled(BOLD, format_args!("{} requests/s from outside", show::rate(total.requests_per_s)))];
    if let Some(share) = share(&total).filter(|share| *share > 0.0) {
        parts.push(styled(BAD, format_args!("{} errors", percent(share))));
    }
    let open = vitals.breakers.iter().filter(|breaker| breaker.state != "closed" && breaker.state != "unknown");
    let open: Vec<String> = open.map(|breaker| format!("{} {}", breaker.edge, breaker.state)).collect();
    if !open.is_empty() {
        parts.push(styled(BAD, format_args!("breakers: {}", open.join(", "))));
    }
    match vitals.dead_letters {
        0 => {}
        1 => parts.push(styled(CAREFUL, "1 dead letter")),
        letters => parts.push(styled(CAREFUL, format_args!("{letters} dead letters"))),
    }
    if !vitals.silent.is_empty() {
        let who = vitals.silent.join(", ");
        parts.push(styled(BAD, format_args!("without what {who} carries: no answer")));
    }
    format!("{}\n\n", parts.join("   "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vitals() -> Vitals {
        let of = |name: &str, rate: f64, errors: f64, p99: Option<f64>| Signals {
            name: name.into(),
            requests_per_s: rate,
            errors_per_s: errors,
            latency_p50_ms: p99.map(|ms| ms / 10.0),
            latency_p99_ms: p99,
            in_flight: 3,
            cpu_percent: Some(12.4),
            memory_bytes: Some(20 << 20),
            ..Signals::default()
        };
        let route = |rate, errors| Signals {
            name: "POST /orders".into(),
            requests_per_s: rate,
            errors_per_s: errors,
            ..Signals::default()
        };
        Vitals {
            api_version: "meshctl/v1".into(),
            kind: "Vitals".into(),
            at: jiff::Timestamp::UNIX_EPOCH,
            routes: vec![route(120.0, 0.6)],
            edges: Vec::new(),
            services: vec![
                of("billing", 0.0, 0.0, None),
                of("inventory", 9.3, 0.0, Some(4.2)),
                of("orders", 120.0, 12.0, Some(310.0)),
            ],
            channels: Vec::new(),
            breakers: Vec::new(),
            dead_letters: 2,
            silent: vec!["gateway-2".into()],
        }
    }

    fn args(sort: Sort) -> Args {
        Args { what: None, sort, once: true, watch: false, no_headers: false, output: OutputArgs::default() }
    }

    fn plain(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    #[test]
    fn one_table_tells_how_everything_is() {
        let text = page(&vitals(), &args(Sort::Name), None);
        insta::assert_snapshot!(plain(&text), @r"
        120 requests/s from outside   0.5% errors   2 dead letters   without what gateway-2 carries: no answer

        SERVICE     REQ/S   ERRORS   P50      P99     IN FLIGHT   QUEUED   CPU   MEMORY
        billing     0       -        -        -       3           0        12%   20MiB
        inventory   9.3     0%       0.42ms   4.2ms   3           0        12%   20MiB
        orders      120     10%      31ms     310ms   3           0        12%   20MiB
        ");
    }

    #[test]
    fn the_largest_comes_first_and_nothing_comes_last() {
        let names = |sort_by| {
            let mut vitals = vitals();
            sort(&mut vitals, sort_by);
            vitals.services.into_iter().map(|one| one.name).collect::<Vec<_>>()
        };
        assert_eq!(names(Sort::P99), ["orders", "inventory", "billing"]);
        assert_eq!(names(Sort::Errors), ["orders", "inventory", "billing"]);
        assert_eq!(names(Sort::Cpu), ["billing", "inventory", "orders"], "the same of all: by name");
    }

    #[test]
    fn what_has_no_room_is_counted() {
        assert_eq!(fit("a\nb\nc\n", 4), ["a", "b", "c"]);
        assert_eq!(fit("a\nb\nc\n", 3), ["a", "… 2 more; --sort brings others up"]);
    }
}
