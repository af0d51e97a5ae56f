//! `meshctl loadtest`: sends, measures, judges. The engine is `meshctl-load`; here is what is asked of it and what is said of
//! its answer.

mod figures;
mod hdr_log;
mod judge;
mod ledger;
mod progress;
mod target;

use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use meshctl_load::plan::{Arrivals, Plan};
use meshctl_load::{LoadError, Outcome as Measured, Stop};
use meshctl_model::units::Span;
use meshctl_model::{API_VERSION, exit};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use super::completion::flow_names;
use crate::args::OutputArgs;
use crate::failure::{Failure, Outcome};
use crate::output::{self, document, print};
use crate::session::Session;
use crate::show::load::{LoadTest, summary};
use judge::Objectives;
use ledger::Ledger;
use progress::View;
use target::Target;

/// Send load, and say how it was carried: rates, latencies from intended send times, objectives, where messages went
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshctl loadtest                             all flows of the topology, by their weights
  meshctl loadtest place-order -c 10k          10,000 sessions, each 1 request a second
  meshctl loadtest place-order --async         until the effect shows, with the run's ledger
  meshctl loadtest browse-stock --rate 5k/s -z 30s --slo 'p99 < 50ms, errors < 0.1%'
  meshctl loadtest GET '/inventory/book?n={{n}}' --closed -c 64
  meshctl loadtest POST /orders '{\"sku\":\"book\",\"quantity\":{{random 1 3}}}'
  meshctl loadtest http://127.0.0.1:9000/ -q 1k      any HTTP server, no daemon needed
  meshctl loadtest -c 10k -z 1m -o json --hdr-log run.hlog > run.json

By default the loop is open: requests are sent as independent users would, whatever
becomes of earlier ones, and latency counts from the time at which each was to be
sent. With --closed each connection waits for its answer, and the service decides the
rate. Numbers may end in k or M. In paths, headers and bodies {{n}}, {{uuid}}, {{now}},
{{random 1 100}} and {{random NAME}} are filled in for each request.

Objectives compare p50, p99, p99.9, mean, max, errors, rate, and with --async
visible p99 and lost. Without --slo they are the topology's, each of its own flow.

Exit status: 0 as it should be, 1 nothing succeeded, 98 INVALID (the generator did
not keep up, and no latency is printed), 99 an objective was breached, 130 interrupted.")]
pub struct Args {
    /// Flows; or METHOD PATH [BODY]; or a URL; all flows where left out
    #[arg(value_name = "FLOW | METHOD PATH [BODY] | URL", add = flow_names())]
    what: Vec<String>,

    /// Requests a second, all together: 500, 10k/s, 600/m; one for each connection where left out
    #[arg(short = 'q', long, value_name = "RATE", value_parser = figures::rate, conflicts_with = "closed")]
    rate: Option<f64>,

    /// Open at the same time [default: one for each request a second, at most 1k; 64 with --closed]
    #[arg(short = 'c', long, value_name = "N", value_parser = figures::count)]
    connections: Option<u32>,

    /// How long to measure
    #[arg(short = 'z', long, value_name = "DURATION", default_value = "10s")]
    duration: Span,

    /// At the full rate before that, and not counted
    #[arg(long, value_name = "DURATION", default_value = "2s")]
    warm_up: Span,

    /// From nothing to the full rate [default: 1s for each 1k connections]
    #[arg(long, value_name = "DURATION")]
    ramp: Option<Span>,

    /// Each connection waits for its answer before it sends again
    #[arg(long)]
    closed: bool,

    /// Follow each request until its effect shows, as the flow's `asynchronous` says
    #[arg(long = "async")]
    asynchronous: bool,

    /// Of a path or URL [default: GET, POST with a body]
    #[arg(short = 'm', long, value_name = "METHOD")]
    method: Option<String>,

    /// A header, as often as wanted
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE", value_parser = figures::header)]
    headers: Vec<(String, String)>,

    /// The body of each request
    #[arg(short = 'd', long, value_name = "TEXT", conflicts_with = "body_file")]
    body: Option<String>,

    /// The same, from a file
    #[arg(short = 'D', long, value_name = "FILE")]
    body_file: Option<PathBuf>,

    /// After which a request has failed
    #[arg(long, value_name = "DURATION", default_value = "10s")]
    timeout: Span,

    /// Threads that send [default: half of the machine's cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: Option<u16>,

    /// The same seed sends the same at the same times [default: another each time]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,

    /// What must hold, such as 'p99 < 200ms, errors < 0.1%'; as often as wanted
    #[arg(long, value_name = "OBJECTIVES", value_parser = figures::objectives)]
    slo: Vec<Vec<meshctl_model::slo::Objective>>,

    /// Keep the latencies as an HdrHistogram log (V2), in ms
    #[arg(long, value_name = "FILE")]
    hdr_log: Option<PathBuf>,

    /// Say nothing but the result and errors
    // The global one gives its -q to the rate, as oha and hey have it.
    #[arg(long)]
    quiet: bool,

    #[command(flatten)]
    output: OutputArgs,
}

/// Connections where nobody says.
const CONNECTIONS: u32 = 1000;
const CONNECTIONS_CLOSED: u32 = 64;

pub(super) async fn run(session: &Session, args: Args) -> Outcome {
    args.output.output.must_not_be_names()?;
    let target = Target::find(session, &args).await?;
    let objectives = Objectives::of(&args.slo, &target)?;
    let plan = plan(&args, &target)?;
    let log = args.hdr_log.as_deref().map(hdr_log::create).transpose()?;
    let ledger = Ledger::open(&target).await?;
    session.say(format_args!("{}", target.intent(&plan)));

    let measured = measure(session, plan.clone()).await?;
    if let Some(log) = log {
        hdr_log::write(log, &measured)?;
    }
    let ledger = ledger.close().await?;
    let slo = objectives.judge(&measured, ledger.as_ref());
    let test = LoadTest {
        api_version: API_VERSION,
        kind: "LoadTest",
        name: target.name(),
        target: target.url(),
        seed: plan.seed,
        report: measured.report.clone(),
        slo,
        ledger,
    };
    if !document(&args.output.output, &test)? {
        print(summary(&test, &measured))?;
    }
    verdict(&test)
}

fn plan(args: &Args, target: &Target) -> Result<Plan, Failure> {
    let connections = args.connections.unwrap_or(match args.rate {
        _ if args.closed => CONNECTIONS_CLOSED,
        Some(rate) => (rate.ceil() as u32).clamp(1, CONNECTIONS),
        None => CONNECTIONS,
    });
    let arrivals = match args.rate {
        _ if args.closed => Arrivals::Closed,
        Some(per_second) => Arrivals::Open { per_second },
        None => Arrivals::Open { per_second: f64::from(connections) },
    };
    if args.duration == Span::default() || args.timeout == Span::default() {
        return Err(Failure::usage("`--duration` and `--timeout` must be more than zero").hint("write 10s, or 1m"));
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = args.threads.map_or((cores / 2).max(1), usize::from);
    Ok(Plan {
        address: target.address(),
        host: target.host().to_owned(),
        requests: target.requests().to_vec(),
        arrivals,
        connections,
        duration: args.duration.get(),
        ramp: args.ramp.map_or(Duration::from_secs(u64::from(connections / 1000)), Span::get),
        warm_up: args.warm_up.get(),
        timeout: args.timeout.get(),
        threads,
        // Another each time, because `{{uuid}}` must not repeat itself; within what JSON numbers keep.
        seed: args.seed.unwrap_or_else(|| (Timestamp::now().as_nanosecond() as u64) & 0xffff_ffff),
    })
}

/// Runs the engine on a thread of its own, shows how far it is, and ends it early on Ctrl-C; a second one does not wait for it.
async fn measure(session: &Session, plan: Plan) -> Result<Measured, Failure> {
    let mut interrupt =
        signal(SignalKind::interrupt()).map_err(|error| Failure::file("cannot listen for Ctrl-C", &error))?;
    let (address, stop) = (plan.address, Stop::new());
    let (ticks, mut told) = mpsc::channel(8);
    let (done, mut outcome) = oneshot::channel();
    let stopped = stop.clone();
    let engine = std::thread::Builder::new().name("loadtest".to_owned());
    let run = move || {
        // Nobody listens any more: the command has ended.
        let tell = |tick| drop(ticks.blocking_send(tick));
        drop(done.send(meshctl_load::run(&plan, &stopped, tell)));
    };
    engine.spawn(run).map_err(|error| Failure::file("cannot start the load engine", &error))?;
    let mut view = View::new(session.is_quiet());
    let outcome = loop {
        tokio::select! {
            // What was told is shown before the end is.
            biased;
            Some(tick) = told.recv() => view.show(&tick),
            outcome = &mut outcome => break outcome,
            _ = interrupt.recv() => {
                if stop.is_stopped() {
                    view.close();
                    return Err(Failure::new(exit::INTERRUPTED, "interrupted twice: nothing is known about this run"));
                }
                stop.stop();
                view.say("interrupted: waiting for the answers that are under way; Ctrl-C again does not");
            }
        }
    };
    view.close();
    match outcome {
        Ok(outcome) => outcome.map_err(|error| cannot(error, address)),
        Err(_) => Err(Failure::new(exit::FAILURE, "the load engine ended without a result")
            .hint("please report it, with the command line")),
    }
}

fn cannot(error: LoadError, address: std::net::SocketAddr) -> Failure {
    match error {
        LoadError::Plan(_) | LoadError::Template { .. } => Failure::usage(error.to_string()),
        LoadError::Connect { source, .. } => Failure::new(
            exit::FAILURE,
            format!("cannot connect to {address}, so nothing was sent"),
        )
        .caused_by(&source)
        .hint("is it running, and is this the right port? `meshctl status` shows the gateway, `ss -ltn` who listens"),
        LoadError::Descriptors { .. } | LoadError::Ports { .. } | LoadError::Machine { .. } => {
            Failure::new(exit::FAILURE, error.to_string()).hint("ask for fewer connections with -c, or mend the limit")
        }
    }
}

/// The exit status: what it says is on stdout already, and in a word on stderr.
fn verdict(test: &LoadTest) -> Outcome {
    let report = &test.report;
    if report.interrupted {
        return Err(Failure::new(exit::INTERRUPTED, "interrupted: this is what was measured until then"));
    }
    if report.succeeded == 0 {
        let worst = report.errors.iter().max_by_key(|(_, count)| **count);
        let why = worst.map_or("nothing was sent".to_owned(), |(cause, _)| cause.clone());
        let failure = Failure::new(exit::FAILURE, format!("none of {} requests succeeded: {why}", report.requests));
        return Err(failure.hint(match (why.as_str(), report.failed.iter().find_map(|one| one.trace_id.as_ref())) {
            ("connect" | "reset", _) => "is the server up? `meshctl status` shows the gateway".to_owned(),
            ("timeout", _) => "is the server stuck, or --timeout too short?".to_owned(),
            (_, Some(id)) => format!("`meshctl trace {id}` shows one of them"),
            (_, None) => "send one by hand: `curl -i`".to_owned(),
        }));
    }
    if !report.validity.valid {
        return Err(Failure::new(
            exit::LOAD_INVALID,
            "INVALID: this says more about the generator than about the service",
        )
        .hint("lower the rate or the connections, give it more --threads, or send from another machine"));
    }
    let breached: Vec<&str> =
        test.slo.iter().filter(|slo| slo.met == Some(false)).map(|slo| slo.expression.as_str()).collect();
    if !breached.is_empty() {
        return Err(Failure::new(exit::SLO_BREACHED, format!("breached: {}", breached.join(", "))));
    }
    if let Some(ledger) = test.ledger.as_ref().filter(|ledger| !ledger.balanced) {
        let names: Vec<&str> =
            ledger.items.iter().filter(|item| !item.balanced).map(|item| item.name.as_str()).collect();
        output::warn(format_args!("not balanced: {}; `meshctl ledger` says more", names.join(", ")));
    }
    Ok(exit::OK)
}
