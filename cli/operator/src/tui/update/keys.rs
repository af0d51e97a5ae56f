//! Keys: to the dialog, the help or the line at the bottom if there is one, and to the view otherwise.

use crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::deeds::{confirm, dry_run, propose};
use crate::kinds::Kind;
use crate::tui::effects::Effect;
use crate::tui::keymap::{Action, Place, action, action_in};
use crate::tui::model::deeds::{Deed, Force};
use crate::tui::model::input::Input;
use crate::tui::model::views::{Meant, View, complete, understand};
use crate::tui::model::{Loaded, Model, Prompt, Screen};

pub(super) fn press(model: &mut Model, key: KeyEvent) -> Vec<Effect> {
    if key.kind == KeyEventKind::Release {
        return Vec::new();
    }
    // A terminal sends Alt as an Esc before the key, and so it reads an Esc that another key follows at once.
    if key.modifiers.contains(KeyModifiers::ALT) {
        let mut effects = press(model, KeyEvent::new(KeyCode::Esc, KeyModifiers::NONE));
        model.settle();
        effects.extend(press(model, KeyEvent { modifiers: key.modifiers - KeyModifiers::ALT, ..key }));
        return effects;
    }
    let view = model.front().view.clone();
    let meant = action(key, &view);
    match meant {
        // Whatever is in front.
        Some(Action::Quit) if key.code != KeyCode::Char('q') => return vec![Effect::Quit],
        Some(Action::Suspend) => return vec![Effect::Suspend],
        _ => {}
    }
    if model.dialog.is_some() {
        return in_dialog(model, key);
    }
    if model.prompt.is_some() {
        return in_prompt(model, key);
    }
    let Some(meant) = meant else { return Vec::new() };
    if let Some(scrolled) = model.help {
        model.help = match meant {
            Action::Down => Some(scrolled + 1),
            Action::Up => Some(scrolled.saturating_sub(1)),
            Action::PageDown => Some(scrolled + model.page()),
            Action::PageUp => Some(scrolled.saturating_sub(model.page())),
            Action::Quit => return vec![Effect::Quit],
            _ => None,
        };
        return Vec::new();
    }
    model.notice = None;
    act(model, meant)
}

pub(super) fn paste(model: &mut Model, text: &str) -> Vec<Effect> {
    if let Some(dialog) = model.dialog.as_mut().filter(|dialog| dialog.job.is_none()) {
        let focus = dialog.focus;
        dialog.fields[focus].input.insert(text);
        return if dialog.decides(focus) { dry_run(model) } else { Vec::new() };
    }
    if let Some(prompt) = &mut model.prompt {
        prompt.input.insert(text);
        typed(model);
    }
    Vec::new()
}

fn in_dialog(model: &mut Model, key: KeyEvent) -> Vec<Effect> {
    let Some(dialog) = &mut model.dialog else { return Vec::new() };
    let (focus, fields) = (dialog.focus, dialog.fields.len());
    match action_in(key, Place::Dialog) {
        Some(Action::Confirm) => return confirm(model),
        Some(Action::Cancel) => model.dialog = None,
        _ if dialog.job.is_some() => {}
        Some(Action::NextField) => dialog.focus = (focus + 1) % fields,
        Some(Action::FormerField) => dialog.focus = (focus + fields - 1) % fields,
        _ => {
            let before = dialog.fields[focus].input.text().to_owned();
            dialog.fields[focus].input.press(key);
            if dialog.fields[focus].input.text() != before {
                dialog.complaint = None;
                if dialog.decides(focus) {
                    return dry_run(model);
                }
            }
        }
    }
    Vec::new()
}

fn in_prompt(model: &mut Model, key: KeyEvent) -> Vec<Effect> {
    let Some(prompt) = &mut model.prompt else { return Vec::new() };
    let is_filter = prompt.is_filter;
    match action_in(key, Place::Prompt) {
        Some(Action::Confirm) if is_filter => model.prompt = None,
        Some(Action::Confirm) => {
            let line = prompt.input.text().to_owned();
            match understand(&line) {
                _ if line.trim().is_empty() => model.prompt = None,
                Ok(Meant::Quit) => return vec![Effect::Quit],
                Ok(Meant::View(view)) => {
                    model.prompt = None;
                    return go(model, view);
                }
                Err(why) => prompt.complaint = Some(why),
            }
        }
        Some(Action::Cancel) => {
            model.prompt = None;
            if is_filter {
                filter(model, String::new());
            }
        }
        Some(Action::Complete) if !is_filter => complete_line(model),
        _ => {
            if prompt.input.text().is_empty() && key.code == KeyCode::Backspace {
                model.prompt = None;
            } else if prompt.input.press(key) {
                typed(model);
            }
        }
    }
    Vec::new()
}

/// What is typed takes effect while it is typed.
fn typed(model: &mut Model) {
    let Some(prompt) = &mut model.prompt else { return };
    prompt.complaint = None;
    prompt.candidates.clear();
    if prompt.is_filter {
        let text = prompt.input.text().to_owned();
        filter(model, text);
    }
}

/// As far as all that is possible agrees; what is possible is shown.
fn complete_line(model: &mut Model) {
    let channels: Vec<String> = model.channels().iter().map(|channel| channel.name.clone()).collect();
    let services = model.status.iter().flat_map(|status| &status.items).map(|service| service.name.as_str());
    let services: Vec<String> = services.map(str::to_owned).collect();
    let Some(prompt) = &mut model.prompt else { return };
    let borrowed = |names: &'_ [String]| names.iter().map(String::as_str).collect::<Vec<_>>().join("\n");
    let (services, channels) = (borrowed(&services), borrowed(&channels));
    let (services, channels): (Vec<&str>, Vec<&str>) = (services.lines().collect(), channels.lines().collect());
    let candidates = complete(prompt.input.text(), &services, &channels);
    let Some(first) = candidates.first() else { return };
    let agreed = candidates.iter().fold(first.as_str(), |agreed, other| {
        let same = agreed.chars().zip(other.chars()).take_while(|(left, right)| left == right);
        &agreed[..same.map(|(c, _)| c.len_utf8()).sum()]
    });
    if agreed.len() > prompt.input.text().len() {
        prompt.input = Input::new(agreed);
    }
    prompt.candidates = if candidates.len() > 1 { candidates } else { Vec::new() };
}

fn filter(model: &mut Model, text: String) {
    model.front_mut().filter = text;
    model.is_unsettled = true;
}

/// Goes to a view that was named: it is a beginning, with the overview before it.
fn go(model: &mut Model, view: View) -> Vec<Effect> {
    model.screens.truncate(1);
    if view == View::Overview { leave(model) } else { open(model, view) }
}

/// Goes into `view`, from where Esc comes back.
fn open(model: &mut Model, view: View) -> Vec<Effect> {
    let effects = leave(model);
    let screen = Screen::new(model.number(), view);
    model.screens.push(screen);
    model.is_unsettled = true;
    effects
}

/// Nobody looks at a log that is left.
fn leave(model: &mut Model) -> Vec<Effect> {
    model.is_unsettled = true;
    let mut effects = Vec::new();
    for screen in &mut model.screens {
        if matches!(screen.view, View::Logs(_)) && screen.is_asking {
            screen.is_asking = false;
            screen.is_streaming = false;
            effects = vec![Effect::LeaveLog];
        }
    }
    effects
}

fn back(model: &mut Model) -> Vec<Effect> {
    if !model.front().filter.is_empty() {
        filter(model, String::new());
        return Vec::new();
    }
    if model.screens.len() == 1 {
        return Vec::new();
    }
    let effects = leave(model);
    model.screens.pop();
    effects
}

fn act(model: &mut Model, meant: Action) -> Vec<Effect> {
    let page = model.page();
    let current = model.front().current().map(str::to_owned);
    match meant {
        Action::Quit => return vec![Effect::Quit],
        Action::Back => return back(model),
        Action::Help => model.help = Some(0),
        Action::Redraw => return vec![Effect::Redraw],
        Action::Command => prompt(model, false, ""),
        Action::Filter => {
            let text = model.front().filter.clone();
            prompt(model, true, &text);
        }
        Action::Where => {
            let text = match &model.front().view {
                View::Letters(Some(filter)) => format!("deadletters {filter}"),
                _ => "deadletters ".to_owned(),
            };
            prompt(model, false, &text);
        }
        Action::Up => scroll(model, -1),
        Action::Down => scroll(model, 1),
        Action::PageUp => scroll(model, -signed(page)),
        Action::PageDown => scroll(model, signed(page)),
        Action::First => scroll(model, isize::MIN),
        Action::Last => scroll(model, isize::MAX),
        Action::Left => model.front_mut().left = model.front().left.saturating_sub(SIDEWAYS),
        Action::Right => model.front_mut().left = model.front().left.saturating_add(SIDEWAYS),
        Action::Open => {
            let screen = model.front();
            if let Some(view) = screen.grid.rows.get(screen.cursor).and_then(|row| row.open.clone()) {
                return open(model, view);
            }
        }
        Action::SortNext => {
            let screen = model.front_mut();
            let columns = screen.grid.columns.len();
            screen.sort = match screen.sort {
                None => Some((0, false)),
                Some((column, _)) if column + 1 < columns => Some((column + 1, false)),
                Some(_) => None,
            };
            model.is_unsettled = true;
        }
        Action::SortOther => {
            let screen = model.front_mut();
            screen.sort = screen.sort.or(Some((0, false))).map(|(column, reversed)| (column, !reversed));
            model.is_unsettled = true;
        }
        Action::Mark => {
            let screen = model.front_mut();
            if let Some(id) = current
                && !screen.marked.remove(&id)
            {
                screen.marked.insert(id);
            }
            scroll(model, 1);
        }
        Action::MarkAll => {
            let screen = model.front_mut();
            let shown = screen.grid.rows.iter().map(|row| row.id.clone()).collect();
            screen.marked = if screen.marked == shown { Default::default() } else { shown };
        }
        Action::Which => {
            let screen = model.front_mut();
            if let View::Traces(which, _) = &mut screen.view {
                *which = which.next();
                (screen.loaded, screen.asked_at) = (None, None);
            }
            model.is_unsettled = true;
        }
        Action::Follow => {
            let screen = model.front_mut();
            screen.is_following = !screen.is_following;
        }
        Action::Describe => return describe(model, false),
        Action::Yaml => return describe(model, true),
        Action::Logs => return service(model).map_or_else(Vec::new, |name| open(model, View::Logs(Some(name)))),
        Action::Trace => return trace(model),
        Action::Trip => return force(model, Force::Trip),
        Action::Hold => return force(model, Force::Hold),
        Action::Reset => return force(model, Force::Reset),
        Action::Replay => {
            let marked: Vec<String> = model.front().marked.iter().cloned().collect();
            let alone = match &model.front().view {
                View::Letter(id) => Some(id.clone()),
                _ => current,
            };
            let ids = if marked.is_empty() { alone.into_iter().collect() } else { marked };
            if !ids.is_empty() {
                return propose(model, Deed::Replay { ids, filter: None });
            }
        }
        Action::ReplayAll => {
            if let View::Letters(filter) = model.front().view.clone() {
                return propose(model, Deed::Replay { ids: Vec::new(), filter });
            }
        }
        Action::Scale => {
            if let Some(service) = service(model) {
                let now = model.status.iter().flat_map(|status| &status.items).find(|one| one.name == service);
                let now = now.map_or(0, |service| service.desired);
                return propose(model, Deed::Scale { service, now });
            }
        }
        Action::Restart => {
            if let Some(service) = service(model) {
                return propose(model, Deed::Restart { service });
            }
        }
        // Those of dialogs and prompts.
        Action::Suspend
        | Action::Confirm
        | Action::Cancel
        | Action::NextField
        | Action::FormerField
        | Action::Complete => {}
    }
    Vec::new()
}

fn prompt(model: &mut Model, is_filter: bool, text: &str) {
    model.prompt = Some(Prompt { is_filter, input: Input::new(text), complaint: None, candidates: Vec::new() });
}

fn signed(count: usize) -> isize {
    isize::try_from(count).unwrap_or(isize::MAX)
}

fn scroll(model: &mut Model, by: isize) {
    let page = model.page();
    let screen = model.front_mut();
    if screen.view.is_text() {
        let last = screen.length().saturating_sub(page);
        screen.top = screen.top.saturating_add_signed(by).min(last);
        // Whoever scrolls up reads; at the end it goes on.
        if matches!(screen.view, View::Logs(_)) {
            screen.is_following = screen.top == last && by > 0;
        }
    } else {
        screen.move_to(screen.cursor.saturating_add_signed(by), page);
    }
}

/// Columns that a long line moves.
const SIDEWAYS: u16 = 20;

/// The service that is meant: the row's, or that of the instance in the row.
fn service(model: &Model) -> Option<String> {
    if let View::Page { kind: Kind::Service, name, .. } = &model.front().view {
        return Some(name.clone());
    }
    let id = model.front().current()?;
    match model.front().view {
        View::Services => Some(id.to_owned()),
        View::Instances(_) => {
            let instances = model.status.iter().flat_map(|status| &status.items).flat_map(|service| &service.instances);
            instances.into_iter().find(|instance| instance.id == id).map(|instance| instance.service.clone())
        }
        _ => None,
    }
}

fn force(model: &mut Model, force: Force) -> Vec<Effect> {
    let edge = match &model.front().view {
        View::Page { name, .. } => Some(name.clone()),
        _ => model.front().current().map(str::to_owned),
    };
    match edge {
        Some(edge) => propose(model, Deed::Force { force, edge }),
        None => Vec::new(),
    }
}

fn describe(model: &mut Model, yaml: bool) -> Vec<Effect> {
    let screen = model.front();
    let view = match (&screen.view, screen.view.kind()) {
        (View::Page { kind, name, .. }, _) => Some(View::Page { kind: *kind, name: name.clone(), yaml }),
        (View::Letter(id), Some(kind)) => Some(View::Page { kind, name: id.clone(), yaml }),
        (_, Some(kind)) => screen.current().map(|name| View::Page { kind, name: name.to_owned(), yaml }),
        _ => None,
    };
    view.map_or_else(Vec::new, |view| open(model, view))
}

/// The trace in which a letter died.
fn trace(model: &mut Model) -> Vec<Effect> {
    let screen = model.front();
    let id = match (&screen.view, &screen.loaded) {
        (View::Letters(_), Some(Loaded::Letters(letters))) => {
            let letter = letters.iter().find(|letter| Some(letter.id.as_str()) == screen.current());
            letter.and_then(|letter| letter.trace_id.clone())
        }
        (_, Some(Loaded::Text { trace, .. })) => trace.clone(),
        _ => None,
    };
    match id {
        Some(id) => open(model, View::Trace(id)),
        None => {
            model.notice = Some((false, "no trace is known of it".to_owned()));
            Vec::new()
        }
    }
}
