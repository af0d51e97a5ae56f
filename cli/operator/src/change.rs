//! The second half of every change: it has been accepted; follow it, and say how it ended.

use meshctl_api::client::Client;
use meshctl_api::view::{Accepted, Plan, PlanStep, Route, ServiceState, Status};
use meshctl_model::exit;
use serde::Serialize;

use crate::args::{ChangeArgs, OutputArgs, WaitArgs};
use crate::failure::{Failure, Outcome};
use crate::output::{self, BOLD, Format, document, styled};
use crate::plans;
use crate::progress::{BlockedService, Ending, Failed, FailedService, Goal, RETURN, follow, waiting};
use crate::session::Session;
use crate::show::state_word;

/// How much of a failed service's output is shown.
const LOG_LINES: usize = 20;

/// A revision that is followed to its end, and how that is shown.
struct Pursuit<'a> {
    session: &'a Session,
    client: &'a Client,
    revision: u64,
    /// What was asked for; `None` where somebody only looks.
    plan: Option<&'a Plan>,
    wait: &'a WaitArgs,
    output: &'a OutputArgs,
}

/// What is proven about a revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
enum State {
    /// It is saved and pursued; nobody waited for more.
    Accepted,
    /// Everything is ready as it is wanted.
    Applied,
    Failed,
    /// Somebody looked, and not everything was ready.
    NotReady,
}

/// The result of a change as a document.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Rollout<'a> {
    api_version: &'static str,
    kind: &'static str,
    /// The system's.
    name: &'a str,
    revision: u64,
    state: State,
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
    let pursuit = Pursuit { session, client, revision, plan: Some(&plan), wait, output };
    if !wait.wait {
        session.say(format_args!("revision {revision} is accepted; `meshctl rollout status` follows it"));
        pursuit.report(&client.status().await?, State::Accepted, &Failed::default()).await?;
        return Ok(exit::OK);
    }
    let watch = client.watch(Some(last_event_id.clone()), RETURN).await?;
    let goal = Goal::Outcome { revision, after: last_event_id };
    let (ending, picture) = follow(session, watch, &goal, wait.timeout.get()).await?;
    pursuit.conclude(ending, picture).await
}

/// Waits until everything is ready as it is wanted already; without waiting, tells whether it is.
pub(crate) async fn settle(session: &Session, client: &Client, wait: &WaitArgs, output: &OutputArgs) -> Outcome {
    let revisions = client.revisions().await?.items;
    let status = client.status().await?;
    let revision = status.revision;
    let pursuit = Pursuit { session, client, revision, plan: None, wait, output };
    if status.ready {
        pursuit.report(&status, State::Applied, &Failed::default()).await?;
        return Ok(exit::OK);
    }
    if revisions.iter().any(|revision| revision.current && revision.state == "failed") {
        pursuit.report(&status, State::Failed, &Failed::default()).await?;
        tell_waiting(&status);
        return Err(Failure::new(exit::FAILURE, format!("revision {revision} failed"))
            .hint("`meshctl status` shows what is not ready; correct it and apply again"));
    }
    if !wait.wait {
        pursuit.report(&status, State::NotReady, &Failed::default()).await?;
        tell_waiting(&status);
        return Err(Failure::new(exit::FAILURE, format!("revision {revision} is not ready"))
            .hint("without --wait=false `meshctl rollout status` waits until it is"));
    }
    let watch = client.watch(None, RETURN).await?;
    let (ending, picture) = follow(session, watch, &Goal::Ready, wait.timeout.get()).await?;
    pursuit.conclude(ending, picture).await
}

impl Pursuit<'_> {
    async fn conclude(&self, ending: Ending, picture: Option<Status>) -> Outcome {
        let Self { session, client, revision, wait, .. } = self;
        match ending {
            Ending::Applied => {
                self.report(&client.status().await?, State::Applied, &Failed::default()).await?;
                Ok(exit::OK)
            }
            Ending::Failed(failed) => {
                let status = client.status().await?;
                self.report(&status, State::Failed, &failed).await?;
                tell_failures(&failed, &status);
                Err(next_step(&failed, &status, *revision))
            }
            Ending::Superseded(other) => {
                Err(Failure::new(exit::CONFLICT, format!("revision {revision} gave way to revision {other}"))
                    .hint("somebody else changed the system meanwhile: `meshctl rollout history` shows who"))
            }
            Ending::TakenDown(how) => {
                Err(Failure::new(exit::FAILURE, format!("revision {revision} is given up: {how}"))
                    .hint("nothing of it goes on; when the system is down, `meshctl apply` brings it up again"))
            }
            Ending::Gone => {
                Err(Failure::new(exit::UNREACHABLE, format!("the daemon ended before revision {revision} was done"))
                    .hint("what runs goes on, and the revision is saved: apply again, and a new daemon pursues it"))
            }
            Ending::TimedOut => {
                picture.iter().for_each(tell_waiting);
                Err(Failure::new(exit::TIMED_OUT, format!("revision {revision} is not done after {}", wait.timeout))
                    .hint("it goes on: `meshctl rollout status` follows it, --timeout waits longer"))
            }
            Ending::Interrupted => {
                session.say(format_args!("detached: revision {revision} goes on without this command"));
                session.say(
                    "  `meshctl rollout status` follows it, `meshctl rollout undo` goes back, `meshctl down` ends it",
                );
                Ok(exit::INTERRUPTED)
            }
        }
    }

    /// Shows the result: what became of each thing and, for people, what to call.
    async fn report(&self, status: &Status, state: State, failed: &Failed) -> Result<(), Failure> {
        let routes = self.client.routes().await?.items;
        let curl = status.gateways.first().and_then(|gateway| curl(&routes, &gateway.url));
        let rollout = Rollout {
            api_version: meshctl_model::API_VERSION,
            kind: "Rollout",
            name: &status.name,
            revision: self.revision,
            state,
            changes: self.plan.map_or(0, |plan| plan.changes),
            steps: self.plan.map_or(&[], |plan| &plan.steps),
            failures: &failed.failures,
            blocked: &failed.blocked,
            urls: status.gateways.iter().map(|gateway| gateway.url.as_str()).collect(),
            curl,
        };
        let format = &self.output.output;
        if document(format, &rollout)? {
            return Ok(());
        }
        let lines = match self.plan {
            Some(_) => results(&rollout, status),
            None => status.items.iter().map(|service| ("service", &*service.name, state_word(service.state))).collect(),
        };
        if *format == Format::Name {
            return output::print(lines.iter().map(|(kind, name, _)| format!("{kind}/{name}\n")).collect::<String>());
        }
        // There are many routes and edges, and they follow from the services.
        let is_shown = |kind: &str| self.session.is_verbose() || !matches!(kind, "route" | "edge");
        let lines = lines.iter().filter(|(kind, ..)| is_shown(kind));
        output::print(lines.map(|(kind, name, became)| format!("{kind}/{name} {became}\n")).collect::<String>())?;
        if state == State::Applied {
            output::print(invitation(&rollout))?;
        }
        Ok(())
    }
}

/// What became of each thing: its kind, its name and a word.
fn results<'a>(rollout: &Rollout<'a>, status: &'a Status) -> Vec<(&'a str, &'a str, &'a str)> {
    let is_changed = |name: &str| rollout.steps.iter().any(|step| step.kind == "service" && step.name == name);
    let changed = rollout.steps.iter().map(|step| (&*step.kind, &*step.name, became(step, rollout, status)));
    let unchanged = status.items.iter().filter(|service| !is_changed(&service.name));
    changed.chain(unchanged.map(|service| ("service", &*service.name, "unchanged"))).collect()
}

/// The word for what is proven about a step.
fn became<'a>(step: &'a PlanStep, rollout: &Rollout<'_>, status: &Status) -> &'a str {
    let has_failed = |name: &str| rollout.failures.iter().any(|failure| failure.service == name);
    let is_service = step.kind == "service";
    if is_service && has_failed(&step.name)
        || step.kind == "gateway" && status.gateways.iter().any(|gateway| has_failed(&gateway.id))
    {
        return "failed";
    }
    if is_service && rollout.blocked.iter().any(|blocked| blocked.service == step.name) {
        return "blocked";
    }
    match step.action.as_str() {
        _ if !is_done(step, rollout, status) => "accepted",
        "create" => "created",
        "change" => "configured",
        "remove" => "deleted",
        "restart" => "restarted",
        "scale" => "scaled",
        other => other,
    }
}

/// Whether a step is done. Of a revision that failed some are: services that are as they are wanted, and what the gateways
/// carry without complaint.
fn is_done(step: &PlanStep, rollout: &Rollout<'_>, status: &Status) -> bool {
    let removes = step.action == "remove";
    match rollout.state {
        State::Accepted | State::NotReady => false,
        State::Applied => true,
        State::Failed if step.kind == "service" => {
            match status.items.iter().find(|service| service.name == step.name) {
                None => removes,
                Some(service) if service.desired == 0 => !removes && service.instances.is_empty(),
                Some(service) => service.state == ServiceState::Ready,
            }
        }
        State::Failed => {
            let carries = |revision: u64, trouble: &Option<String>| revision >= rollout.revision && trouble.is_none();
            (removes || !status.gateways.is_empty())
                && status.gateways.iter().all(|gateway| carries(gateway.revision, &gateway.reason))
        }
    }
}

/// What is still to come, by name.
fn tell_waiting(status: &Status) {
    waiting(status).iter().for_each(|(_, line)| output::say(format_args!("  {line}")));
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
    let path = match route.path.as_str() {
        "/*" => "/".to_owned(),
        path => path.replace('*', "1"),
    };
    words.push(format!("{}{path}", url.trim_end_matches('/')));
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
        assert_eq!(call(&[place, beta, stock.clone()]).as_deref(), Some("curl -i http://127.0.0.1:8080/inventory/1"));
        let (any, health) = (route(None, "/*", &[]), route(None, "/healthz", &["GET"]));
        assert_eq!(call(std::slice::from_ref(&any)).as_deref(), Some("curl -i http://127.0.0.1:8080/"));
        assert_eq!(call(&[any, stock, health]).as_deref(), Some("curl -i http://127.0.0.1:8080/healthz"));
    }
}
