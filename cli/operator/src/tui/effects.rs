//! What the screen wants done: calls of the API, whose answers come back as messages.

use std::time::Duration;

use futures_util::FutureExt;
use jiff::Timestamp;
use meshctl_api::ApiError;
use meshctl_api::client::{Client, Heard};
use meshctl_api::error::ErrorCode;
use meshctl_api::view::LogQuery;
use meshctl_api::view::messages::DeadLetterQuery;
use meshctl_api::view::traces::TraceQuery;
use meshctl_model::trace::{Subscriptions, assemble};
use tokio::sync::mpsc::Sender;
use tokio::time::sleep;

use super::model::Loaded;
use super::model::deeds::{Answer, Force, Order};
use super::model::views::{View, Which};
use super::msg::Msg;
use crate::failure::Failure;
use crate::kinds::Kind;
use crate::show;

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Effect {
    Load {
        screen: u64,
        view: View,
    },
    /// From now on, or what was written after `since`.
    FollowLog {
        screen: u64,
        service: Option<String>,
        since: Option<Timestamp>,
    },
    LeaveLog,
    DryRun {
        dry_run: u64,
        order: Order,
    },
    Do {
        job: u64,
        order: Order,
    },
    LookAtReplay {
        job: u64,
        id: String,
    },
    /// To the shell, until it brings the program back.
    Suspend,
    /// Everything, also what seems to be there already.
    Redraw,
    Quit,
}

/// Between attempts to follow something that is not there.
const PAUSE: Duration = Duration::from_secs(1);
/// Events from before.
const PAST: usize = 500;
/// Lines of each instance from before.
const TAIL: usize = 200;
/// Lines that are handed over at once.
const BATCH: usize = 500;

/// The answer to an effect that asks; `None` for those that are the runtime's own.
pub(super) async fn perform(client: Client, effect: Effect) -> Option<Msg> {
    Some(match effect {
        Effect::Load { screen, view } => Msg::Loaded { screen, result: load(&client, &view).await },
        Effect::DryRun { dry_run, order } => Msg::WouldBe { dry_run, result: give(&client, order).await },
        Effect::Do { job, order } => Msg::Did { job, result: give(&client, order).await },
        Effect::LookAtReplay { job, id } => Msg::ReplayIs { job, result: client.replay(&id).await },
        Effect::FollowLog { .. } | Effect::LeaveLog | Effect::Suspend | Effect::Redraw | Effect::Quit => {
            return None;
        }
    })
}

async fn give(client: &Client, order: Order) -> Result<Answer, ApiError> {
    Ok(match order {
        Order::Force { force, edge, request } => Answer::Force(Box::new(match force {
            Force::Trip => client.trip_breaker(&edge, &request).await?,
            Force::Hold => client.hold_breaker(&edge, &request).await?,
            Force::Reset => client.reset_breaker(&edge, &request).await?,
        })),
        Order::Replay(request) => Answer::Replay(Box::new(client.start_replay(&request).await?)),
        Order::Scale(request) => Answer::Accepted(Box::new(client.scale(&request).await?)),
        Order::Restart(request) => Answer::Accepted(Box::new(client.restart(&request).await?)),
    })
}

async fn load(client: &Client, view: &View) -> Result<Loaded, ApiError> {
    Ok(match view {
        View::Routes => Loaded::Routes(client.routes().await?.items),
        View::Edges => Loaded::Edges(client.edges().await?.items),
        View::Replays => Loaded::Replays(client.replays().await?.items),
        View::Letters(filter) => {
            let query = DeadLetterQuery { r#where: filter.clone(), ..DeadLetterQuery::default() };
            Loaded::Letters(client.dead_letters(&query).await?.items)
        }
        View::Letter(id) => {
            let letter = client.dead_letter(id).await?;
            let page = crate::commands::dead_letter_page(&letter, None).map_err(refused)?;
            Loaded::Text { lines: lines(&page), trace: letter.trace_id }
        }
        View::Traces(which, filter) => {
            let query = TraceQuery {
                slowest: *which == Which::Slowest,
                errors: *which == Which::Errors,
                filter: filter.clone(),
                limit: Some(200),
                ..TraceQuery::default()
            };
            Loaded::Traces(Box::new(client.traces(&query).await?))
        }
        View::Trace(id) => {
            let trace = client.trace(id).await?;
            // What is still to come of its messages the daemon has said already, among the gaps.
            let tree = assemble(trace.spans.clone(), &Subscriptions::new());
            Loaded::Trace { trace: Box::new(trace), tree }
        }
        View::Page { kind, name, yaml } => {
            Loaded::Text { lines: lines(&page(client, *kind, name, *yaml).await?), trace: None }
        }
        // The others live from the streams.
        _ => Loaded::Text { lines: Vec::new(), trace: None },
    })
}

/// As `meshctl describe KIND/NAME` has it, or `meshctl get -o yaml`.
async fn page(client: &Client, kind: Kind, name: &str, yaml: bool) -> Result<String, ApiError> {
    let listing = kind.fetch(client, &[name.to_owned()]).await.map_err(refused)?;
    let Some(item) = listing.items.first() else {
        return Err(ApiError::new(ErrorCode::NotFound, format!("there is no {} `{name}`", kind.singular())));
    };
    if !yaml {
        return Ok(show::describe(kind, item));
    }
    serde_yaml::to_string(&show::alone(kind, item))
        .map_err(|error| ApiError::new(ErrorCode::Internal, format!("{}/{name} is no YAML: {error}", kind.singular())))
}

/// Commands fail in their own way; here it is one more answer.
fn refused(failure: Failure) -> ApiError {
    let code =
        if failure.exit == meshctl_model::exit::UNREACHABLE { ErrorCode::Unreachable } else { ErrorCode::NotFound };
    ApiError { hint: failure.hint, ..ApiError::new(code, failure.message) }
}

/// Without the styles that commands write for a terminal.
fn lines(text: &str) -> Vec<String> {
    let plain = anstream::adapter::strip_str(text).to_string();
    plain.lines().map(|line| line.replace('\t', "    ").replace(char::is_control, " ")).collect()
}

/// Tells what the daemon tells, for ever: it comes back when the daemon does.
pub(super) async fn watch(client: Client, to: Sender<Msg>) {
    if let Ok(events) = client.events(None, Some(PAST), None).await {
        let _ = to.send(Msg::Past(events.items)).await;
    }
    let mut last = None;
    loop {
        if let Ok(mut watch) = client.watch(last.clone(), Duration::MAX).await {
            loop {
                let message = match watch.hear().await {
                    Ok(Heard::Told(told)) => {
                        if let meshctl_api::view::Told::Event(event) = &*told {
                            last = Some(event.id.clone());
                        }
                        Msg::Told(told)
                    }
                    Ok(Heard::Broken) => Msg::Gone,
                    Ok(Heard::Ended) | Err(_) => break,
                };
                if to.send(message).await.is_err() {
                    return;
                }
            }
        }
        if to.send(Msg::Gone).await.is_err() {
            return;
        }
        sleep(PAUSE).await;
    }
}

/// Tells the golden signals once a second, for ever.
pub(super) async fn sense(client: Client, to: Sender<Msg>) {
    loop {
        let why = match client.follow_vitals().await {
            Ok(mut vitals) => loop {
                match vitals.next().await {
                    Ok(Some(vitals)) => {
                        if to.send(Msg::Vitals(Box::new(vitals))).await.is_err() {
                            return;
                        }
                    }
                    Ok(None) => break "the daemon has ended".to_owned(),
                    Err(error) => break error.message,
                }
            },
            Err(error) => error.message,
        };
        if to.send(Msg::NoVitals(why)).await.is_err() {
            return;
        }
        sleep(PAUSE).await;
    }
}

/// Tells what is written, until the daemon ends. What comes at once is handed over at once.
pub(super) async fn follow_log(
    client: Client,
    screen: u64,
    service: Option<String>,
    since: Option<Timestamp>,
    to: Sender<Msg>,
) {
    let query = LogQuery {
        services: service,
        tail: since.is_none().then_some(TAIL),
        since: since.map(|at| at.to_string()),
        follow: true,
        grep: None,
    };
    let mut log = match client.logs(&query).await {
        Ok(log) => log,
        Err(error) => {
            let _ = to.send(Msg::LogEnded { screen, why: Some(error.message) }).await;
            return;
        }
    };
    let why = loop {
        match log.next().await {
            Ok(Some(line)) => {
                let mut lines = vec![line];
                while lines.len() < BATCH
                    && let Some(Ok(Some(line))) = log.next().now_or_never()
                {
                    lines.push(line);
                }
                if to.send(Msg::Written { screen, lines }).await.is_err() {
                    return;
                }
            }
            Ok(None) => break None,
            Err(error) => break Some(error.message),
        }
    };
    let _ = to.send(Msg::LogEnded { screen, why }).await;
}
