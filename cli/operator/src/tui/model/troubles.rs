//! What is wrong now, the worst first: what the overview begins with.

use meshctl_api::view::messages::Channel;
use meshctl_api::view::vitals::Signals;
use meshctl_api::view::{InstanceState, ServiceState};

use super::Model;
use super::grid::Tone;
use super::views::View;
use crate::kinds::Kind;
use crate::output::age;
use crate::show::{state_word, why};
use crate::tui::figures::{percent, rate, share};

/// Above this share of failed requests something is wrong, in percent.
const ERRORS: f64 = 1.0;

/// One thing that is not as it should be.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Trouble {
    pub(crate) tone: Tone,
    /// `service/orders`.
    pub(crate) subject: String,
    pub(crate) text: String,
    /// Where more is to be seen.
    pub(crate) open: View,
}

pub(super) fn troubles(model: &Model) -> Vec<Trouble> {
    let mut found = Vec::new();
    services(model, &mut found);
    breakers(model, &mut found);
    routes(model, &mut found);
    channels(model, &mut found);
    // What is bad before what wants attention; beyond that in the order of where it is looked for.
    found.sort_by_key(|trouble| trouble.tone != Tone::Bad);
    found
}

fn services(model: &Model, found: &mut Vec<Trouble>) {
    let Some(status) = &model.status else { return };
    for service in &status.items {
        let tone = match service.state {
            ServiceState::Ready | ServiceState::Stopped => continue,
            ServiceState::Failed | ServiceState::Degraded | ServiceState::RolledBack => Tone::Bad,
            _ => Tone::Careful,
        };
        let reason = why(service).map(|why| format!(": {why}")).unwrap_or_default();
        let (state, ready, desired) = (state_word(service.state), service.ready, service.desired);
        found.push(Trouble {
            tone,
            subject: format!("service/{}", service.name),
            text: format!("{state}, {ready} of {desired} ready{reason}"),
            open: View::Instances(Some(service.name.clone())),
        });
    }
    for gateway in &status.gateways {
        let text = match gateway.state {
            InstanceState::Ready if gateway.revision == status.revision => continue,
            InstanceState::Ready => format!("carries revision {}, not {}", gateway.revision, status.revision),
            _ => gateway.reason.clone().unwrap_or_else(|| "not ready".to_owned()),
        };
        found.push(Trouble { tone: Tone::Bad, subject: format!("gateway/{}", gateway.id), text, open: View::Gateways });
    }
    let silent = model.vitals.iter().flat_map(|vitals| &vitals.silent);
    found.extend(silent.map(|id| Trouble {
        tone: Tone::Bad,
        subject: format!("gateway/{id}"),
        text: "did not say how it is: what it carries is not in the figures".to_owned(),
        open: View::Gateways,
    }));
}

fn breakers(model: &Model, found: &mut Vec<Trouble>) {
    for breaker in model.breakers() {
        let tone = match breaker.state.as_str() {
            "closed" | "unknown" if breaker.acknowledged >= breaker.instances => continue,
            "open" | "forcedOpen" => Tone::Bad,
            _ => Tone::Careful,
        };
        let mut text = breaker.state.clone();
        if let Some(since) = breaker.since {
            text += &format!(" for {}", age(since, model.now));
        }
        if breaker.refused_per_s > 0.0 {
            text += &format!(", refuses {}/s", rate(breaker.refused_per_s));
        }
        if breaker.acknowledged < breaker.instances {
            text += &format!(", acknowledged {}/{}", breaker.acknowledged, breaker.instances);
        }
        if let Some(reason) = &breaker.reason {
            text += &format!(": {reason}");
        }
        let open = View::Page { kind: Kind::Breaker, name: breaker.edge.clone(), yaml: false };
        found.push(Trouble { tone, subject: format!("breaker/{}", breaker.edge), text, open });
    }
}

fn routes(model: &Model, found: &mut Vec<Trouble>) {
    for Signals { name, requests_per_s, errors_per_s, .. } in model.vitals.iter().flat_map(|vitals| &vitals.routes) {
        if share(*errors_per_s, *requests_per_s) >= ERRORS {
            found.push(Trouble {
                tone: Tone::Bad,
                subject: format!("route/{name}"),
                text: format!("{} of {}/s fail", percent(*errors_per_s, *requests_per_s), rate(*requests_per_s)),
                open: View::Traces(super::views::Which::Errors, None),
            });
        }
    }
}

fn channels(model: &Model, found: &mut Vec<Trouble>) {
    for Channel { name, dead_letters, subscriptions, .. } in model.channels() {
        for subscription in subscriptions.iter().filter(|subscription| subscription.state != "flowing") {
            let reason = subscription.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
            found.push(Trouble {
                tone: if subscription.state == "paused" { Tone::Careful } else { Tone::Bad },
                subject: format!("subscription/{}", subscription.name),
                text: format!("{}, lag {}{reason}", subscription.state, subscription.lag),
                open: View::Subscriptions(Some(name.clone())),
            });
        }
        if *dead_letters > 0 {
            found.push(Trouble {
                tone: Tone::Careful,
                subject: format!("channel/{name}"),
                text: match dead_letters {
                    1 => "1 dead letter waits".to_owned(),
                    several => format!("{several} dead letters wait"),
                },
                open: View::Letters(Some(format!("channel = \"{name}\" and state = dead"))),
            });
        }
    }
}
