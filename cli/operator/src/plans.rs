//! Plans: asking for one, and showing it.

use std::collections::BTreeMap;

use meshctl_api::error::ErrorCode;
use meshctl_api::view::{ApplyRequest, Plan, PlanStep};
use meshctl_model::exit;
use meshctl_model::plan::{Desired, Overlay, Ports, changes, fingerprint, render};

use crate::failure::Failure;
use crate::launch;
use crate::output::{self, BAD, BOLD, CAREFUL, Cell, Format, GOOD, Table, document, styled};
use crate::session::Session;

/// What would be done for `request`. Nothing is started or written for it.
///
/// # Errors
/// What the daemon refuses; and a daemon that owns the directory and does not answer, whose state is not known.
pub(crate) async fn plan(session: &Session, request: &ApplyRequest) -> Result<Plan, Failure> {
    if !session.state_dir().exists() {
        return plan_without_daemon(request);
    }
    let error = match session.daemon().await {
        Ok(client) => return Ok(client.plan(request).await?),
        Err(failure) => failure,
    };
    let unreachable = error.exit == ErrorCode::Unreachable.exit_status();
    if unreachable && launch::recorded(session.state_dir()).is_none() {
        plan_without_daemon(request)
    } else {
        Err(error)
    }
}

/// The plan for an empty system: where no daemon owns the state directory, nothing runs.
fn plan_without_daemon(request: &ApplyRequest) -> Result<Plan, Failure> {
    let loaded = meshctl_model::load::load(&request.sources);
    let Some(topology) = loaded.topology else {
        return Err(Failure::new(exit::INVALID_TOPOLOGY, "the topology has errors").hint("see `meshctl validate FILE`"));
    };
    let desired = render(&topology, &Overlay::default(), &mut Ports::default())
        .map_err(|why| Failure::new(exit::FAILURE, why))?;
    let steps: Vec<PlanStep> = changes(&Desired::default(), &desired).into_iter().map(PlanStep::from).collect();
    Ok(Plan {
        api_version: meshctl_model::API_VERSION.into(),
        kind: "Plan".into(),
        fingerprint: fingerprint(&request.sources, 0),
        changes: steps.len() as u32,
        steps,
        base_revision: 0,
        sources: Some(request.sources.clone()),
    })
}

/// Shows `plan` on stdout, in the form asked for.
pub(crate) fn print(plan: &Plan, format: &Format) -> Result<(), Failure> {
    // The topology belongs to a plan that is saved; it may hold variables that are nobody else's business.
    if document(format, &Plan { sources: None, ..plan.clone() })? {
        return Ok(());
    }
    if *format == Format::Name {
        return output::print(
            plan.steps.iter().map(|step| format!("{}/{}\n", step.kind, step.name)).collect::<String>(),
        );
    }
    output::print(draw(plan, output::width()))
}

/// Shows `plan` on stderr, before it is executed.
pub(crate) fn announce(session: &Session, plan: &Plan) {
    if !session.is_quiet() {
        output::say(draw(plan, output::stderr_width()).trim_end());
    }
}

/// The steps and, below, how many there are: as a table, or where that is wider than the terminal, step by step. A plan is
/// agreed to, so nothing of it is trimmed.
fn draw(plan: &Plan, width: Option<u16>) -> String {
    if plan.steps.is_empty() {
        return "no changes\n".to_owned();
    }
    let mut table = Table::new(["action", "what", "why", "consequence"]);
    for step in &plan.steps {
        let what = Cell::plain(format_args!("{}/{}", step.kind, step.name));
        table.row(vec![action(step), what, Cell::plain(&step.why), Cell::plain(&step.consequence)]);
    }
    let steps = if table.fits(width) { table.draw(None) } else { plan.steps.iter().map(paragraph).collect() };
    format!("{steps}\n{}\n", summary(plan))
}

fn action(step: &PlanStep) -> Cell {
    match step.action.as_str() {
        "create" => Cell::good(&step.action),
        "remove" => Cell::bad(&step.action),
        _ => Cell::careful(&step.action),
    }
}

fn paragraph(step: &PlanStep) -> String {
    let style = match step.action.as_str() {
        "create" => GOOD,
        "remove" => BAD,
        _ => CAREFUL,
    };
    let PlanStep { action, kind, name, why, consequence } = step;
    let action = styled(style, action);
    format!("{action} {kind}/{name}\n    {}\n    {consequence}\n", why.replace('\n', "\n    "))
}

/// `3 changes: 2 to create, 1 to remove`.
fn summary(plan: &Plan) -> String {
    let mut actions: BTreeMap<&str, usize> = BTreeMap::new();
    for step in &plan.steps {
        *actions.entry(&step.action).or_default() += 1;
    }
    let parts: Vec<String> = actions.iter().map(|(action, count)| format!("{count} to {action}")).collect();
    let changes = plan.changes;
    format!("{changes} change{}: {}", if changes == 1 { "" } else { "s" }, parts.join(", "))
}

/// The steps as `diff` writes them.
pub(crate) fn diff(plan: &Plan) -> String {
    let mut text = String::new();
    for step in &plan.steps {
        let name = format!("{}/{}", step.kind, step.name);
        let (before, after) = match step.action.as_str() {
            "create" => ("/dev/null", name.as_str()),
            "remove" => (name.as_str(), "/dev/null"),
            _ => (name.as_str(), name.as_str()),
        };
        text.push_str(&format!("{}\n", styled(BOLD, format_args!("--- {before} (revision {})", plan.base_revision))));
        text.push_str(&format!("{}\n", styled(BOLD, format_args!("+++ {after} (wanted)"))));
        for line in step.why.lines() {
            text.push_str(&hunk(step, line));
        }
    }
    text
}

/// `command: ["a"] -> ["b"]` as the line that goes and the line that comes.
fn hunk(step: &PlanStep, line: &str) -> String {
    let minus = |text: &str| format!("{}\n", styled(BAD, format_args!("-{text}")));
    let plus = |text: &str| format!("{}\n", styled(GOOD, format_args!("+{text}")));
    match (step.action.as_str(), line.split_once(" -> ")) {
        ("create", _) => plus(line),
        ("remove", _) => minus(line),
        (_, Some((before, after))) => {
            let key = before.split_once(": ").map_or(String::new(), |(key, _)| format!("{key}: "));
            minus(before) + &plus(&format!("{key}{after}"))
        }
        (_, None) => format!(" {line}\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        let step = |action: &str, name: &str, why: &str, consequence: &str| PlanStep {
            action: action.into(),
            kind: "service".into(),
            name: name.into(),
            why: why.into(),
            consequence: consequence.into(),
        };
        Plan {
            api_version: "meshctl/v1".into(),
            kind: "Plan".into(),
            fingerprint: "f".into(),
            changes: 3,
            steps: vec![
                step("create", "mailer", "new in the topology", "1 instance is started"),
                step(
                    "change",
                    "orders",
                    "command: [\"a\"] -> [\"b\"]",
                    "instances are replaced one at a time; no request fails",
                ),
                step("remove", "billing", "no longer in the topology", "its instances drain and stop"),
            ],
            base_revision: 3,
            sources: None,
        }
    }

    fn plain(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    #[test]
    fn a_plan_says_what_why_and_what_follows() {
        insta::assert_snapshot!(plain(&draw(&plan(), None)), @r#"
        ACTION   WHAT              WHY                         CONSEQUENCE
        create   service/mailer    new in the topology         1 instance is started
        change   service/orders    command: ["a"] -> ["b"]     instances are replaced one at a time; no request fails
        remove   service/billing   no longer in the topology   its instances drain and stop

        3 changes: 1 to change, 1 to create, 1 to remove
        "#);
        insta::assert_snapshot!(plain(&draw(&plan(), Some(80))), @r#"
        create service/mailer
            new in the topology
            1 instance is started
        change service/orders
            command: ["a"] -> ["b"]
            instances are replaced one at a time; no request fails
        remove service/billing
            no longer in the topology
            its instances drain and stop

        3 changes: 1 to change, 1 to create, 1 to remove
        "#);
        assert_eq!(draw(&Plan { steps: Vec::new(), changes: 0, ..plan() }, None), "no changes\n");
    }

    #[test]
    fn a_diff_shows_what_goes_and_what_comes() {
        insta::assert_snapshot!(plain(&diff(&plan())), @r#"
        --- /dev/null (revision 3)
        +++ service/mailer (wanted)
        +new in the topology
        --- service/orders (revision 3)
        +++ service/orders (wanted)
        -command: ["a"]
        +command: ["b"]
        --- service/billing (revision 3)
        +++ /dev/null (wanted)
        -no longer in the topology
        "#);
    }
}
