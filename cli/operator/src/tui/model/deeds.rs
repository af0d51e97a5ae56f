//! What an operator can do from here: asked for in a dialog that knows the blast radius, ordered as one call of the API that
//! is also one command line, and followed until its outcome is known.

use std::collections::BTreeMap;

use meshctl_api::view::breakers::{Breaker, BreakerChange, BreakerRequest};
use meshctl_api::view::messages::{DeadLetterQuery, DeadLetterRequest, Replay};
use meshctl_api::view::{Accepted, Plan, RestartRequest, ScaleRequest};
use meshctl_model::units::{Rate, Span};

use super::grid::Tone;
use super::input::Input;
use crate::letters::count;
use crate::tui::figures::rate;

/// What is done to a breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Force {
    Trip,
    Hold,
    Reset,
}

impl Force {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Trip => "trip",
            Self::Hold => "hold",
            Self::Reset => "reset",
        }
    }
}

/// What the dialog is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Deed {
    Force {
        force: Force,
        edge: String,
    },
    /// By ids; by a filter, or all of them, where there are none.
    Replay {
        ids: Vec<String>,
        filter: Option<String>,
    },
    Scale {
        service: String,
        now: u32,
    },
    Restart {
        service: String,
    },
}

/// A deed with everything said: a call of the API.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Order {
    Force { force: Force, edge: String, request: BreakerRequest },
    Replay(DeadLetterRequest),
    Scale(ScaleRequest),
    Restart(RestartRequest),
}

/// What the daemon says to an order, and to the dry run of one.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Answer {
    Force(Box<BreakerChange>),
    Replay(Box<Replay>),
    Accepted(Box<Accepted>),
}

/// A line to fill in.
#[derive(Clone, Debug)]
pub(crate) struct Field {
    pub(crate) label: &'static str,
    pub(crate) hint: &'static str,
    pub(crate) input: Input,
}

/// Before something is done: what it means, how it is called on the command line, and why it is done.
#[derive(Clone, Debug)]
pub(crate) struct Dialog {
    pub(crate) deed: Deed,
    pub(crate) fields: Vec<Field>,
    pub(crate) focus: usize,
    /// The number of the dry run whose answer counts; answers to earlier ones are not of this form any more.
    pub(crate) dry_run: u64,
    /// What the dry run said; `None` until it has.
    pub(crate) radius: Option<Result<Answer, String>>,
    pub(crate) complaint: Option<String>,
    /// Once it is confirmed: the job that it shows.
    pub(crate) job: Option<u64>,
}

/// An order that was given.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub(crate) number: u64,
    pub(crate) order: Order,
    pub(crate) state: JobState,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum JobState {
    /// The daemon has not answered yet.
    Sent,
    /// Done, and not yet known to be acknowledged by every gateway.
    Acknowledging(Box<Breaker>),
    Replaying(Box<Replay>),
    /// Pursued; an event after this one tells of the outcome.
    Rolling {
        revision: u64,
        after: String,
    },
    Over {
        good: bool,
        text: String,
    },
}

const REASON: usize = 0;
const DETAIL: usize = 1;

impl Dialog {
    pub(crate) fn new(deed: Deed) -> Self {
        let field = |label, hint, text: &str| Field { label, hint, input: Input::new(text) };
        let mut fields = vec![field("reason", "why: it goes into the audit", "")];
        match &deed {
            Deed::Force { force: Force::Reset, .. } | Deed::Restart { .. } => {}
            Deed::Force { .. } => fields.push(field("for", "after which it ends by itself; empty: until reset", "10m")),
            Deed::Replay { .. } => fields.push(field("rate", "such as 50/s; empty: as fast as it goes", "")),
            Deed::Scale { now, .. } => fields.push(field("instances", "how many there are to be", &now.to_string())),
        }
        let focus = if matches!(deed, Deed::Scale { .. }) { DETAIL } else { REASON };
        Self { deed, fields, focus, dry_run: 0, radius: None, complaint: None, job: None }
    }

    /// `Trip the breaker of orders:inventory`.
    pub(crate) fn title(&self) -> String {
        match &self.deed {
            Deed::Force { force: Force::Trip, edge } => format!("Trip the breaker of {edge}"),
            Deed::Force { force: Force::Hold, edge } => format!("Hold the breaker of {edge} closed"),
            Deed::Force { force: Force::Reset, edge } => format!("Reset the breaker of {edge}"),
            Deed::Replay { ids, .. } if !ids.is_empty() => format!("Replay {}", count(ids.len() as u64)),
            Deed::Replay { filter: Some(filter), .. } => format!("Replay dead letters where {filter}"),
            Deed::Replay { .. } => "Replay all dead letters".to_owned(),
            Deed::Scale { service, now } => format!("Scale {service}, which has {now}"),
            Deed::Restart { service } => format!("Restart {service}"),
        }
    }

    pub(crate) fn reason(&self) -> &str {
        self.fields[REASON].input.text().trim()
    }

    fn detail(&self) -> &str {
        self.fields.get(DETAIL).map_or("", |field| field.input.text().trim())
    }

    /// The order as it stands; to what the dry run has shown where there is a set to agree to.
    ///
    /// # Errors
    /// What is not understood.
    pub(crate) fn order(&self, dry_run: bool) -> Result<Order, String> {
        let reason = Some(self.reason().to_owned()).filter(|reason| !reason.is_empty());
        Ok(match &self.deed {
            Deed::Force { force, edge } => {
                let ttl = Some(self.detail()).filter(|ttl| !ttl.is_empty()).map(str::parse::<Span>).transpose()?;
                let ttl_ms = ttl.map(|ttl| u64::try_from(ttl.get().as_millis()).unwrap_or(u64::MAX));
                Order::Force { force: *force, edge: edge.clone(), request: BreakerRequest { ttl_ms, reason, dry_run } }
            }
            Deed::Replay { ids, filter } => {
                let rate = Some(self.detail()).filter(|rate| !rate.is_empty()).map(str::parse::<Rate>).transpose()?;
                let fingerprint = match &self.radius {
                    Some(Ok(Answer::Replay(preview))) if !dry_run => Some(preview.fingerprint.clone()),
                    _ => None,
                };
                let select = DeadLetterQuery {
                    ids: (!ids.is_empty()).then(|| ids.join(",")),
                    r#where: filter.clone().filter(|_| ids.is_empty()),
                    ..DeadLetterQuery::default()
                };
                let rate_per_s = rate.map(|rate| rate.0);
                Order::Replay(DeadLetterRequest { select, fingerprint, reason, rate_per_s, dry_run })
            }
            Deed::Scale { service, .. } => {
                let count = self.detail();
                let count = count.parse().map_err(|_| format!("`{count}` is not a number of instances"))?;
                Order::Scale(ScaleRequest { replicas: BTreeMap::from([(service.clone(), count)]), reason, dry_run })
            }
            Deed::Restart { service } => {
                Order::Restart(RestartRequest { services: vec![service.clone()], reason, dry_run })
            }
        })
    }

    /// Whether what the field says changes what the order does, so that the dry run has to be asked for again.
    pub(crate) fn decides(&self, field: usize) -> bool {
        field == DETAIL && matches!(self.deed, Deed::Scale { .. })
    }
}

impl Order {
    /// The same on the command line.
    pub(crate) fn command(&self) -> String {
        let (mut words, reason) = match self {
            Self::Force { force, edge, request } => {
                let mut words = vec!["breaker".to_owned(), force.word().to_owned(), edge.clone()];
                if let Some(ttl) = request.ttl_ms {
                    words.extend(["--ttl".to_owned(), Span::from_millis(ttl).to_string()]);
                }
                (words, &request.reason)
            }
            Self::Replay(request) => {
                let mut words = vec!["dlq".to_owned(), "replay".to_owned()];
                match (&request.select.ids, &request.select.r#where) {
                    (Some(ids), _) => words.extend(ids.split(',').map(str::to_owned)),
                    (None, Some(filter)) => words.extend(["--where".to_owned(), filter.clone()]),
                    (None, None) => words.push("--all".to_owned()),
                }
                if let Some(rate) = request.rate_per_s {
                    words.extend(["--rate".to_owned(), Rate(rate).to_string()]);
                }
                (words, &request.reason)
            }
            Self::Scale(request) => {
                let counts = request.replicas.iter().map(|(service, count)| format!("{service}={count}"));
                (std::iter::once("scale".to_owned()).chain(counts).collect(), &request.reason)
            }
            Self::Restart(request) => {
                (std::iter::once("restart".to_owned()).chain(request.services.clone()).collect(), &request.reason)
            }
        };
        if let Some(reason) = reason {
            words.extend(["--reason".to_owned(), reason.clone()]);
        }
        words.iter().fold("meshctl".to_owned(), |line, word| line + " " + &quoted(word))
    }
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// What a dry run says about what would be hit, a line each.
pub(crate) fn radius(answer: &Answer) -> Vec<(Tone, String)> {
    match answer {
        Answer::Force(change) => {
            let Breaker { requests_per_s, instances, state, .. } = &change.breaker;
            let listed = |what: &str, names: &[String]| match names.len() {
                0 => format!("no {what} leads over it"),
                _ => format!("{what}: {}", names.join(", ")),
            };
            let mut lines = vec![
                (Tone::Plain, format!("{state} now, {} requests/s over it", rate(*requests_per_s))),
                (Tone::Plain, listed("routes", &change.routes)),
            ];
            if !change.channels.is_empty() {
                lines.push((Tone::Plain, listed("channels", &change.channels)));
            }
            let tone = if change.action == "trip" { Tone::Bad } else { Tone::Plain };
            lines.push((tone, format!("callers get {}", change.callers_get)));
            lines.push((Tone::Faint, format!("on {instances} gateway{}", if *instances == 1 { "" } else { "s" })));
            lines
        }
        Answer::Replay(preview) => {
            let mut lines = vec![(Tone::Careful, format!("{} will be delivered again", count(preview.selected)))];
            let to = preview.subscriptions.iter().map(|(name, count)| (Tone::Plain, format!("{count} to {name}")));
            lines.extend(to);
            lines
        }
        Answer::Accepted(accepted) => plan(&accepted.plan),
    }
}

fn plan(plan: &Plan) -> Vec<(Tone, String)> {
    if plan.steps.is_empty() {
        return vec![(Tone::Faint, "nothing would change".to_owned())];
    }
    let step = |step: &meshctl_api::view::PlanStep| {
        let tone = if step.action == "remove" { Tone::Bad } else { Tone::Careful };
        [
            (tone, format!("{} {}/{}: {}", step.action, step.kind, step.name, step.why)),
            (Tone::Plain, format!("  {}", step.consequence)),
        ]
    };
    plan.steps.iter().flat_map(step).collect()
}

/// Whether the dry run says that there is nothing to do.
pub(crate) fn is_nothing(answer: &Answer) -> bool {
    match answer {
        Answer::Force(_) => false,
        Answer::Replay(preview) => preview.selected == 0,
        Answer::Accepted(accepted) => accepted.plan.steps.is_empty(),
    }
}

impl JobState {
    /// What an answer means for the one who waits for the outcome.
    pub(crate) fn of(answer: Answer) -> Self {
        match answer {
            Answer::Force(change) => Self::of_breaker(&change.action, change.breaker),
            Answer::Replay(replay) => Self::of_replay(*replay),
            Answer::Accepted(accepted) => {
                Self::Rolling { revision: accepted.revision, after: accepted.last_event_id.clone() }
            }
        }
    }

    /// Done once every gateway carries it.
    pub(crate) fn of_breaker(action: &str, breaker: Breaker) -> Self {
        if breaker.acknowledged < breaker.instances {
            return Self::Acknowledging(Box::new(breaker));
        }
        let Breaker { edge, state, acknowledged, instances, .. } = &breaker;
        let undo =
            if action == "reset" { String::new() } else { format!("; `meshctl breaker reset {edge}` undoes it") };
        Self::Over { good: true, text: format!("{edge} is {state}: acknowledged {acknowledged}/{instances}{undo}") }
    }

    pub(crate) fn of_replay(replay: Replay) -> Self {
        if matches!(replay.state.as_str(), "running" | "paused") {
            return Self::Replaying(Box::new(replay));
        }
        let Replay { replay_id, selected, processed, failed_again, withdrawn, state, .. } = &replay;
        let mut text = format!("replay {replay_id} is {state}: processed {processed} of {selected}");
        if *failed_again > 0 {
            text += &format!(", failed again {failed_again}");
        }
        if *withdrawn > 0 {
            text += &format!(", withdrawn {withdrawn}");
        }
        Self::Over { good: processed == selected, text }
    }

    /// How far it is, in words.
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Sent => "asked; the daemon has not answered yet".to_owned(),
            Self::Acknowledging(breaker) => {
                let Breaker { edge, acknowledged, instances, stragglers, .. } = &**breaker;
                let who = if stragglers.is_empty() {
                    String::new()
                } else {
                    format!("; waiting for {}", stragglers.join(", "))
                };
                format!("{edge}: acknowledged {acknowledged}/{instances}{who}")
            }
            Self::Replaying(replay) => {
                let Replay { processed, selected, failed_again, pending, issued, .. } = &**replay;
                format!(
                    "issued {issued} of {selected}, processed {processed}, failed again {failed_again}, pending {pending}"
                )
            }
            Self::Rolling { revision, .. } => format!("revision {revision} is accepted and pursued"),
            Self::Over { text, .. } => text.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(deed: Deed, reason: &str, detail: Option<&str>) -> Dialog {
        let mut dialog = Dialog::new(deed);
        dialog.fields[REASON].input = Input::new(reason);
        if let Some(detail) = detail {
            dialog.fields[DETAIL].input = Input::new(detail);
        }
        dialog
    }

    fn command(deed: Deed, reason: &str, detail: Option<&str>) -> Result<String, String> {
        filled(deed, reason, detail).order(false).map(|order| order.command())
    }

    #[test]
    fn every_deed_is_a_command() {
        let trip = Deed::Force { force: Force::Trip, edge: "orders:inventory".into() };
        assert_eq!(
            command(trip.clone(), "it's slow", Some("5m")).as_deref(),
            Ok(r"meshctl breaker trip orders:inventory --ttl 5m --reason 'it'\''s slow'")
        );
        assert_eq!(
            command(trip.clone(), "test", Some("")).as_deref(),
            Ok("meshctl breaker trip orders:inventory --reason test")
        );
        assert!(command(trip, "test", Some("soon")).is_err());
        let letters = |ids: &[&str], filter: Option<&str>| Deed::Replay {
            ids: ids.iter().map(ToString::to_string).collect(),
            filter: filter.map(str::to_owned),
        };
        assert_eq!(command(letters(&["a1", "b2"], Some("x = y")), "", None).as_deref(), Ok("meshctl dlq replay a1 b2"));
        assert_eq!(
            command(letters(&[], Some("age < 1h")), "", Some("50/s")).as_deref(),
            Ok("meshctl dlq replay --where 'age < 1h' --rate 50/s")
        );
        assert_eq!(command(letters(&[], None), "", None).as_deref(), Ok("meshctl dlq replay --all"));
        let scale = Deed::Scale { service: "orders".into(), now: 2 };
        assert_eq!(
            command(scale.clone(), "evening", Some("4")).as_deref(),
            Ok("meshctl scale orders=4 --reason evening")
        );
        assert_eq!(command(scale, "", Some("many")), Err("`many` is not a number of instances".into()));
        assert_eq!(
            command(Deed::Restart { service: "orders".into() }, "", None).as_deref(),
            Ok("meshctl restart orders")
        );
    }
}
