//! The second half of every change: it has been accepted; follow it, and say how it ended.

use meshctl_api::client::Client;
use meshctl_api::view::{Accepted, Plan, PlanStep, Route, Status};
use meshctl_model::exit;
use serde::Serialize;

use crate::args::{ChangeArgs, OutputArgs, WaitArgs};
use crate::failure::{Failure, Outcome};
use crate::output::{self, BOLD, Format, document, styled};
use crate::plans;
use crate::progress::{BlockedService, Ending, Failed, FailedService, Goal, follow, waiting};
use crate::session::Session;

/// How long a command waits for a daemon that went away in the middle of a change.
const RETURN: std::time::Duration = std::time::Duration::from_secs(10);
/// How much of a failed service's output is shown.
const LOG_LINES: usize = 20;

/// The result of a change as a document.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Rollout<'a> {
    api_version: &'static str,
    kind: &'static str,
    /// The system's.
    name: &'a str,
    revision: u64,
    /// `accepted`, `applied` or `failed`.
    state: &'static str,
    changes: u32,
    steps: &'a [PlanStep],
    failures: &'a [FailedService],
    blocked: &'a [BlockedService],
    /// Where the gateways are.
    urls: Vec<&'a str>,
    /// A call to try.
    #[serde(skip_serializing_if = "Option::is_none")]
    curl: Option<String>,
}

/// What was accepted, or only shown.
pub(crate) async fn finish(session: &Session, client: &Client, accepted: Accepted, args: &ChangeArgs) -> Outcome {
    if args.dry_run {
        plans::print(&accepted.plan, &args.output.output)?;
        return Ok(exit::OK);
    }
    plans::announce(session, &accepted.plan);
    pursue(session, client, accepted, &args.wait, &args.output).await
}

/// Waits for the outcome of `accepted` and shows it.
pub(crate) async fn pursue(
    session: &Session,
    client: &Client,
    accepted: Accepted,
    wait: &WaitArgs,
    output: &OutputArgs,
) -> Outcome {
    let Accepted { revision, plan, last_event_id } = accepted;
    if !wait.wait {
        session.say(format_args!("revision {revision} is accepted; `meshctl rollout status` follows it"));
        let status = client.status().await?;
        return report(client, &status, &plan, revision, "accepted", &Failed::default(), output).await;
    }
    let watch = client.watch(Some(last_event_id.clone()), RETURN).await?;
    let goal = Goal::Outcome { revision, after: last_event_id };
    let (ending, picture) = follow(session, watch, &goal, wait.timeout.get()).await?;
    conclude(session, client, ending, picture, &plan, revision, wait, output).await
}

/// Waits until everything is ready as it is wanted already.
pub(crate) async fn settle(
    session: &Session,
    client: &Client,
    plan: &Plan,
    wait: &WaitArgs,
    output: &OutputArgs,
) -> Outcome {
    let status = client.status().await?;
    let revision = status.revision;
    if status.ready || !wait.wait {
        return report(client, &status, plan, revision, "applied", &Failed::default(), output).await;
    }
    let watch = client.watch(None, RETURN).await?;
    let (ending, picture) = follow(session, watch, &Goal::Ready, wait.timeout.get()).await?;
    conclude(session, client, ending, picture, plan, revision, wait, output).await
}

#[expect(clippy::too_many_arguments, reason = "one call in two places; a struct would be a word for nothing")]
async fn conclude(
    session: &Session,
    client: &Client,
    ending: Ending,
    picture: Option<Status>,
    plan: &Plan,
    revision: u64,
    wait: &WaitArgs,
    output: &OutputArgs,
) -> Outcome {
    match ending {
        Ending::Applied => {
            let status = client.status().await?;
            report(client, &status, plan, revision, "applied", &Failed::default(), output).await
        }
        Ending::Failed(failed) => {
            let status = client.status().await?;
            report(client, &status, plan, revision, "failed", &failed, output).await?;
            tell_failures(&failed, &status);
            Err(next_step(&failed, &status, revision))
        }
        Ending::Superseded(other) => {
            Err(Failure::new(exit::CONFLICT, format!("revision {revision} gave way to revision {other}"))
                .hint("somebody else changed the system meanwhile: `meshctl rollout history` shows who"))
        }
        Ending::Gone => {
            Err(Failure::new(exit::UNREACHABLE, format!("the daemon ended before revision {revision} was done"))
                .hint("what runs goes on, and the revision is saved: apply again, and a new daemon pursues it"))
        }
        Ending::TimedOut => {
            let lines = picture.as_ref().map(waiting).unwrap_or_default();
            lines.iter().for_each(|(_, line)| output::say(format_args!("  {line}")));
            Err(Failure::new(exit::TIMED_OUT, format!("revision {revision} is not done after {}", wait.timeout))
                .hint("it goes on: `meshctl rollout status` follows it, --timeout waits longer"))
        }
        Ending::Interrupted => {
            session.say(format_args!("detached: revision {revision} goes on without this command"));
            session
                .say("  `meshctl rollout status` follows it, `meshctl rollout undo` goes back, `meshctl down` ends it");
            Ok(exit::INTERRUPTED)
        }
    }
}

/// Shows the result: what became of each thing and, for people, what to call.
async fn report(
    client: &Client,
    status: &Status,
    plan: &Plan,
    revision: u64,
    state: &'static str,
    failed: &Failed,
    output: &OutputArgs,
) -> Result<u8, Failure> {
    let routes = client.routes().await?.items;
    let curl = status.gateways.first().and_then(|gateway| curl(&routes, &gateway.url));
    let rollout = Rollout {
        api_version: meshctl_model::API_VERSION,
        kind: "Rollout",
        name: &status.name,
        revision,
        state,
        changes: plan.changes,
        steps: &plan.steps,
        failures: &failed.failures,
        blocked: &failed.blocked,
        urls: status.gateways.iter().map(|gateway| gateway.url.as_str()).collect(),
        curl,
    };
    if document(&output.output, &rollout)? {
        return Ok(exit::OK);
    }
    let names_only = output.output == Format::Name;
    output::print(results(plan, status, failed, names_only))?;
    if state == "applied" && !names_only {
        output::print(invitation(&rollout))?;
    }
    Ok(exit::OK)
}

/// `service/orders created`, one line for each thing.
fn results(plan: &Plan, status: &Status, failed: &Failed, names_only: bool) -> String {
    let line = |kind: &str, name: &str, became: &str| match names_only {
        true => format!("{kind}/{name}\n"),
        false => format!("{kind}/{name} {became}\n"),
    };
    let became = |step: &PlanStep| {
        let has_failed = step.kind == "service" && failed.failures.iter().any(|failure| failure.service == step.name);
        let is_blocked = step.kind == "service" && failed.blocked.iter().any(|blocked| blocked.service == step.name);
        match step.action.as_str() {
            _ if has_failed => "failed".to_owned(),
            _ if is_blocked => "blocked".to_owned(),
            "create" => "created".to_owned(),
            "change" => "configured".to_owned(),
            "remove" => "deleted".to_owned(),
            "restart" => "restarted".to_owned(),
            "scale" => "scaled".to_owned(),
            other => other.to_owned(),
        }
    };
    let is_changed = |name: &str| plan.steps.iter().any(|step| step.kind == "service" && step.name == name);
    let changed = plan.steps.iter().map(|step| line(&step.kind, &step.name, &became(step)));
    let unchanged = status
        .items
        .iter()
        .filter(|service| !is_changed(&service.name))
        .map(|service| line("service", &service.name, "unchanged"));
    changed.chain(unchanged).collect()
}

/// Where the system is, and a call to try.
fn invitation(rollout: &Rollout<'_>) -> String {
    let mut urls = rollout.urls.clone();
    urls.dedup();
    let mut text = String::new();
    if !urls.is_empty() {
        text.push_str(&format!("\n{} is ready at {}\n", rollout.name, styled(BOLD, urls.join(", "))));
    }
    if let Some(curl) = &rollout.curl {
        text.push_str(&format!("  {curl}\n"));
    }
    text
}

/// A call that can be pasted: of the route that needs the least.
fn curl(routes: &[Route], url: &str) -> Option<String> {
    let gets = |route: &Route| route.methods.is_empty() || route.methods.iter().any(|method| method == "GET");
    let effort = |route: &&Route| {
        (!gets(route), route.host.is_some(), !route.headers.is_empty(), route.path.matches('*').count())
    };
    let route = routes.iter().min_by_key(effort)?;
    let mut words = vec!["curl -i".to_owned()];
    if !gets(route) {
        words.push(format!("-X {} -H 'content-type: application/json' -d '{{}}'", route.methods.first()?));
    }
    if let Some(host) = &route.host {
        words.push(format!("-H 'host: {}'", host.replacen('*', "www", 1)));
    }
    words.extend(route.headers.iter().map(|(name, value)| format!("-H '{name}: {value}'")));
    words.push(format!("{}{}", url.trim_end_matches('/'), route.path.replace('*', "1")));
    Some(words.join(" "))
}

fn tell_failures(failed: &Failed, status: &Status) {
    for failure in &failed.failures {
        output::say(format_args!("{} does not become ready: {}", styled(BOLD, &failure.service), failure.reason));
        let from = failure.log.len().saturating_sub(LOG_LINES);
        failure.log[from..].iter().for_each(|line| output::say(format_args!("  | {line}")));
    }
    for blocked in &failed.blocked {
        output::say(format_args!("{} is blocked by {}", styled(BOLD, &blocked.service), blocked.by));
    }
    let running: Vec<&str> =
        status.items.iter().filter(|service| service.ready > 0).map(|service| service.name.as_str()).collect();
    if !running.is_empty() {
        output::say(format_args!("running on: {}", running.join(", ")));
    }
}

fn next_step(failed: &Failed, status: &Status, revision: u64) -> Failure {
    let names: Vec<&str> = failed.failures.iter().map(|failure| failure.service.as_str()).collect();
    let message = match names.as_slice() {
        [] => format!("revision {revision} failed"),
        names => format!("revision {revision} failed: {} did not become ready", names.join(", ")),
    };
    // What failed may also be a gateway, which has no logs here.
    let service = names.iter().find(|name| status.items.iter().any(|service| service.name == **name));
    Failure::new(exit::FAILURE, message).hint(match service {
        Some(name) => format!("`meshctl logs {name}` shows more; correct it and apply again"),
        None => "`meshctl events` shows what happened; correct it and apply again".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(host: Option<&str>, path: &str, methods: &[&str]) -> Route {
        Route {
            name: path.into(),
            host: host.map(Into::into),
            path: path.into(),
            methods: methods.iter().map(ToString::to_string).collect(),
            headers: Default::default(),
            targets: Vec::new(),
            deadline_ms: 0,
            attempt_timeout_ms: 0,
            retries: 0,
        }
    }

    #[test]
    fn the_call_to_try_needs_the_least() {
        let call = |routes: &[Route]| curl(routes, "http://127.0.0.1:8080/");
        let beta = route(Some("*.shop.local"), "/beta", &["GET"]);
        let stock = route(None, "/inventory/*", &["GET"]);
        let place = route(None, "/orders", &["POST"]);
        assert_eq!(call(&[]), None);
        assert_eq!(
            call(std::slice::from_ref(&place)).as_deref(),
            Some("curl -i -X POST -H 'content-type: application/json' -d '{}' http://127.0.0.1:8080/orders")
        );
        assert_eq!(
            call(&[place.clone(), beta.clone()]).as_deref(),
            Some("curl -i -H 'host: www.shop.local' http://127.0.0.1:8080/beta")
        );
        assert_eq!(call(&[place, beta, stock]).as_deref(), Some("curl -i http://127.0.0.1:8080/inventory/1"));
    }
}
