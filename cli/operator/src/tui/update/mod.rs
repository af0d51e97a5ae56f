//! What becomes of the model when something happens, and what is to be done about it. Nothing here waits or touches the
//! world: the same messages make the same screen.

mod deeds;
mod keys;

use meshctl_api::view::Told;

use super::effects::Effect;
use super::model::Model;
use super::model::views::View;
use super::msg::Msg;
use crate::progress::fold;

pub(crate) fn update(model: &mut Model, message: Msg) -> Vec<Effect> {
    model.is_unsettled |= !matches!(message, Msg::Key(_) | Msg::Paste(_));
    let mut effects = match message {
        Msg::Key(key) => {
            model.settle();
            keys::press(model, key)
        }
        Msg::Paste(text) => keys::paste(model, &text),
        Msg::Resize(columns, rows) => {
            model.size = (columns, rows);
            Vec::new()
        }
        Msg::Tick(now) => {
            model.now = now;
            deeds::look_after(model)
        }
        Msg::Told(told) => {
            model.gone_since = None;
            if let Told::Event(event) = &*told {
                deeds::hear(model, event);
                model.remember(event.clone());
            }
            fold(&mut model.status, *told);
            Vec::new()
        }
        Msg::Gone => {
            model.gone_since.get_or_insert(model.now);
            Vec::new()
        }
        Msg::Vitals(vitals) => {
            model.sense(*vitals);
            deeds::acknowledge(model);
            Vec::new()
        }
        Msg::NoVitals(why) => {
            model.vitals_trouble = Some(why);
            Vec::new()
        }
        Msg::Past(events) => {
            // Some of them may have been told meanwhile.
            let told = std::mem::take(&mut model.events);
            events.into_iter().chain(told).for_each(|event| model.remember(event));
            Vec::new()
        }
        Msg::Loaded { screen, result } => {
            if let Some(screen) = model.screens.iter_mut().find(|one| one.number == screen) {
                screen.is_asking = false;
                match result {
                    Ok(loaded) => {
                        screen.loaded = Some(loaded);
                        screen.trouble = None;
                    }
                    Err(error) => screen.trouble = Some(with_hint(&error.message, error.hint.as_deref())),
                }
            }
            Vec::new()
        }
        Msg::Written { screen, lines } => {
            if let Some(screen) = model.screens.iter_mut().find(|one| one.number == screen) {
                screen.write_down(lines);
                screen.is_streaming = true;
                screen.trouble = None;
            }
            Vec::new()
        }
        Msg::LogEnded { screen, why } => {
            if let Some(screen) = model.screens.iter_mut().find(|one| one.number == screen) {
                screen.is_asking = false;
                screen.is_streaming = false;
                screen.trouble = why;
            }
            Vec::new()
        }
        Msg::WouldBe { dry_run, result } => {
            deeds::would_be(model, dry_run, result);
            Vec::new()
        }
        Msg::Did { job, result } => {
            deeds::did(model, job, result);
            Vec::new()
        }
        Msg::ReplayIs { job, result } => {
            deeds::replay_is(model, job, result);
            Vec::new()
        }
    };
    stay_at_the_end(model);
    effects.extend(ask(model));
    effects
}

/// What the front view needs and has not: asked for at once, and again each second.
fn ask(model: &mut Model) -> Option<Effect> {
    let now = model.now;
    let is_gone = model.gone_since.is_some();
    let screen = model.front_mut();
    let effect = match &screen.view {
        View::Logs(service) => {
            Effect::FollowLog { screen: screen.number, service: service.clone(), since: screen.log_end() }
        }
        view if view.is_asked_for() => Effect::Load { screen: screen.number, view: view.clone() },
        _ => return None,
    };
    if screen.is_asking || is_gone || screen.asked_at.is_some_and(|at| at >= now) {
        return None;
    }
    screen.is_asking = true;
    screen.asked_at = Some(now);
    Some(effect)
}

/// A log that is followed shows its end.
fn stay_at_the_end(model: &mut Model) {
    let page = model.page();
    let screen = model.front_mut();
    if screen.is_following {
        screen.top = screen.length().saturating_sub(page);
    }
}

fn with_hint(message: &str, hint: Option<&str>) -> String {
    hint.map_or_else(|| message.to_owned(), |hint| format!("{message}; {hint}"))
}

#[cfg(test)]
pub(crate) mod tests;
