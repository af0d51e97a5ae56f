//! The one table of keys: what a key does is looked up in it, and the help is written from it.

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::model::views::View;
use crate::kinds::Kind;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Quit,
    Suspend,
    Redraw,
    Help,
    Back,
    Command,
    Filter,
    Up,
    Down,
    PageUp,
    PageDown,
    First,
    Last,
    Left,
    Right,
    Open,
    SortNext,
    SortOther,
    Mark,
    MarkAll,
    Describe,
    Yaml,
    Logs,
    Trip,
    Hold,
    Reset,
    Replay,
    ReplayAll,
    Where,
    Trace,
    Which,
    Follow,
    Scale,
    Restart,
    Confirm,
    Cancel,
    NextField,
    FormerField,
    Complete,
}

/// Where a key means something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Anywhere,
    /// Where there is something to move in.
    List,
    /// Lines that may be longer than the screen is wide.
    Text,
    /// Rows to choose from.
    Rows,
    /// Rows that are things with a page of their own.
    Things,
    Services,
    Edges,
    Letters,
    /// Dead letters, also one alone.
    Traced,
    Traces,
    Log,
    Dialog,
    Prompt,
}

impl Place {
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Anywhere => "anywhere",
            Self::List | Self::Text => "moving",
            Self::Rows => "rows",
            Self::Things => "one thing",
            Self::Services => "services, instances",
            Self::Edges => "edges, breakers",
            Self::Letters | Self::Traced => "dead letters",
            Self::Traces => "traces",
            Self::Log => "logs",
            Self::Dialog => "in a dialog",
            Self::Prompt => "while typing",
        }
    }

    fn holds(self, view: &View) -> bool {
        match self {
            Self::Anywhere | Self::List => true,
            Self::Text => view.is_text(),
            Self::Rows => !view.is_text() && !matches!(view, View::Trace(_)),
            Self::Things => {
                view.kind().is_some() || matches!(view, View::Page { .. } | View::Trace(_) | View::Traces(..))
            }
            Self::Services => {
                matches!(view, View::Services | View::Instances(_) | View::Page { kind: Kind::Service, .. })
            }
            Self::Edges => {
                matches!(view, View::Edges | View::Breakers | View::Page { kind: Kind::Edge | Kind::Breaker, .. })
            }
            Self::Letters => matches!(view, View::Letters(_)),
            Self::Traced => matches!(view, View::Letters(_) | View::Letter(_)),
            Self::Traces => matches!(view, View::Traces(..)),
            Self::Log => matches!(view, View::Logs(_)),
            Self::Dialog | Self::Prompt => false,
        }
    }
}

pub(crate) struct Binding {
    keys: &'static [(KeyCode, KeyModifiers)],
    /// As the help and the hints write them.
    pub(crate) shown: &'static str,
    pub(crate) action: Action,
    pub(crate) place: Place,
    pub(crate) help: &'static str,
    /// A word for the hints at the bottom; empty where it is not hinted at.
    pub(crate) hint: &'static str,
}

const fn plain(c: char) -> (KeyCode, KeyModifiers) {
    (KeyCode::Char(c), KeyModifiers::NONE)
}

const fn ctrl(c: char) -> (KeyCode, KeyModifiers) {
    (KeyCode::Char(c), KeyModifiers::CONTROL)
}

const fn key(code: KeyCode) -> (KeyCode, KeyModifiers) {
    (code, KeyModifiers::NONE)
}

macro_rules! bindings {
    ($($place:ident: [$($keys:expr),+] $shown:literal $action:ident $hint:literal $help:literal)+) => {
        &[$(Binding {
            keys: &[$($keys),+],
            shown: $shown,
            action: Action::$action,
            place: Place::$place,
            help: $help,
            hint: $hint,
        }),+]
    };
}

/// In the order of the hints: what belongs to a view first.
pub(crate) const BINDINGS: &[Binding] = bindings! {
    Edges: [plain('t')] "t" Trip "trip" "trip the breaker: refuse every request of the edge"
    Edges: [plain('T')] "T" Hold "hold" "hold the breaker closed, whatever fails"
    Edges: [plain('R')] "R" Reset "reset" "reset the breaker: take back what was forced, begin anew"
    Services: [plain('S')] "S" Scale "scale" "scale the service"
    Services: [ctrl('r')] "ctrl-r" Restart "restart" "restart the service, one instance at a time"
    Services: [plain('l')] "l" Logs "logs" "what the service writes"
    Traced: [plain('r')] "r" Replay "replay" "replay the marked letters, or the one under the cursor"
    Letters: [plain('A')] "A" ReplayAll "all" "replay all that the view's filter selects"
    Letters: [plain('w')] "w" Where "where" "select with the filter language: reason = poison and age > 1h"
    Letters: [plain(' ')] "space" Mark "mark" "mark, or take the mark back"
    Letters: [plain('a')] "a" MarkAll "" "mark all that are shown, or none"
    Traced: [plain('x')] "x" Trace "trace" "the trace of what died"
    Traces: [plain('v')] "v" Which "order" "newest, slowest, only errors"
    Log: [plain('f')] "f" Follow "follow" "keep the end in sight, or not"
    Rows: [key(KeyCode::Enter)] "enter" Open "open" "go into what is under the cursor"
    Things: [plain('d')] "d" Describe "describe" "everything about it, as `meshctl describe`"
    Things: [plain('y')] "y" Yaml "yaml" "the same as YAML"
    Rows: [plain('s')] "s" SortNext "sort" "sort by the next column"
    Rows: [plain('i')] "i" SortOther "" "sort the other way round"
    List: [key(KeyCode::Up), plain('k')] "up k" Up "" "up"
    List: [key(KeyCode::Down), plain('j')] "down j" Down "" "down"
    List: [key(KeyCode::PageUp), ctrl('b')] "pgup ctrl-b" PageUp "" "a page up"
    List: [key(KeyCode::PageDown), ctrl('f')] "pgdn ctrl-f" PageDown "" "a page down"
    List: [key(KeyCode::Home), plain('g')] "home g" First "" "to the first"
    List: [key(KeyCode::End), plain('G')] "end G" Last "" "to the last"
    Text: [key(KeyCode::Left)] "left" Left "" "to the beginning of long lines"
    Text: [key(KeyCode::Right)] "right" Right "" "to what long lines go on with"
    List: [plain('/')] "/" Filter "filter" "show only what contains a text; /!text what does not"
    Anywhere: [key(KeyCode::Esc)] "esc" Back "" "take the filter away, then go back"
    Anywhere: [plain(':')] ":" Command "view" "go to a view; Tab completes"
    Anywhere: [plain('?')] "?" Help "help" "this page"
    Anywhere: [plain('q'), ctrl('c')] "q ctrl-c" Quit "quit" "leave"
    Anywhere: [ctrl('z')] "ctrl-z" Suspend "" "to the shell; `fg` comes back"
    Anywhere: [ctrl('l')] "ctrl-l" Redraw "" "draw everything again"
    Dialog: [key(KeyCode::Enter)] "enter" Confirm "do it" "do what the command says, once a reason is given"
    Dialog: [key(KeyCode::Esc)] "esc" Cancel "leave" "leave the dialog; what was begun goes on"
    Dialog: [key(KeyCode::Tab), key(KeyCode::Down)] "tab down" NextField "next line" "the next line"
    Dialog: [key(KeyCode::BackTab), key(KeyCode::Up)] "shift-tab up" FormerField "" "the line before"
    Prompt: [key(KeyCode::Enter)] "enter" Confirm "" "keep the filter; go to the view"
    Prompt: [key(KeyCode::Esc)] "esc" Cancel "" "leave the line"
    Prompt: [key(KeyCode::Tab)] "tab" Complete "" "complete"
};

fn is(binding: &Binding, event: KeyEvent) -> bool {
    // Shift is in the character already; terminals differ in whether they also say so.
    let modifiers = event.modifiers - KeyModifiers::SHIFT;
    binding.keys.contains(&(event.code, modifiers))
}

/// What `event` means where `view` is in front.
pub(crate) fn action(event: KeyEvent, view: &View) -> Option<Action> {
    BINDINGS.iter().find(|binding| binding.place.holds(view) && is(binding, event)).map(|binding| binding.action)
}

/// What `event` means in a dialog or a prompt.
pub(crate) fn action_in(event: KeyEvent, place: Place) -> Option<Action> {
    BINDINGS.iter().find(|binding| binding.place == place && is(binding, event)).map(|binding| binding.action)
}

/// What is hinted at where `view` is in front.
pub(crate) fn hints(view: &View) -> impl Iterator<Item = (&'static str, &'static str)> {
    let held = BINDINGS.iter().filter(|binding| binding.place.holds(view) && !binding.hint.is_empty());
    held.map(|binding| (binding.shown.split(' ').next().unwrap_or_default(), binding.hint))
}

pub(crate) fn hints_in(place: Place) -> impl Iterator<Item = (&'static str, &'static str)> {
    let held = BINDINGS.iter().filter(move |binding| binding.place == place && !binding.hint.is_empty());
    held.map(|binding| (binding.shown.split(' ').next().unwrap_or_default(), binding.hint))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tui::model::views::Which;

    #[test]
    fn a_key_means_one_thing_in_a_place() {
        let views = [
            View::Overview,
            View::Services,
            View::Instances(None),
            View::Edges,
            View::Breakers,
            View::Letters(None),
            View::Letter("x".into()),
            View::Traces(Which::Newest, None),
            View::Trace("x".into()),
            View::Logs(None),
            View::Page { kind: Kind::Service, name: "x".into(), yaml: false },
            View::Page { kind: Kind::Breaker, name: "x".into(), yaml: true },
        ];
        for view in views {
            let held: Vec<_> = BINDINGS.iter().filter(|binding| binding.place.holds(&view)).collect();
            for (at, binding) in held.iter().enumerate() {
                for key in binding.keys {
                    let other = held[at + 1..].iter().find(|other| other.keys.contains(key));
                    assert!(
                        other.is_none(),
                        "{key:?} is {:?} and {:?}",
                        binding.action,
                        other.map(|other| other.action)
                    );
                }
            }
        }
    }

    #[test]
    fn capital_letters_are_found_with_and_without_shift() {
        for modifiers in [KeyModifiers::NONE, KeyModifiers::SHIFT] {
            let key = KeyEvent::new(KeyCode::Char('T'), modifiers);
            assert_eq!(action(key, &View::Breakers), Some(Action::Hold));
            assert_eq!(action(key, &View::Services), None);
        }
    }
}
