//! Names as numbers: a record holds a number where a name would need an allocation. A number means one name for ever. What is
//! gone from the snapshot keeps its name for as long as records may speak of it.

use std::collections::{HashMap, VecDeque};

/// Names of which the snapshot no longer knows; beyond it the first of them to go are forgotten.
const GONE: usize = 16_384;

/// A name. 0 is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Label(u32);

#[derive(Debug, Default)]
pub(crate) struct Names {
    given: u32,
    known: HashMap<Label, Name>,
    gone: VecDeque<Label>,
}

#[derive(Debug)]
struct Name {
    name: String,
    /// As operations call it: a route by its pattern, an edge by its callee.
    shown: String,
}

impl Names {
    pub(crate) fn give(&mut self, name: &str, shown: &str) -> Label {
        self.given = self.given.wrapping_add(1).max(1);
        let label = Label(self.given);
        self.known.insert(label, Name { name: name.to_owned(), shown: shown.to_owned() });
        label
    }

    /// It is given to nothing new.
    pub(crate) fn gone(&mut self, label: Label) {
        self.gone.push_back(label);
        if self.gone.len() > GONE
            && let Some(forgotten) = self.gone.pop_front()
        {
            self.known.remove(&forgotten);
        }
    }

    pub(crate) fn name(&self, label: Label) -> Option<&str> {
        self.known.get(&label).map(|name| name.name.as_str())
    }

    pub(crate) fn shown(&self, label: Label) -> Option<&str> {
        self.known.get(&label).map(|name| name.shown.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_outlives_what_it_named_and_not_for_ever() {
        let mut names = Names::default();
        let stays = names.give("gateway:web", "web");
        let first = names.give("web-0", "web-0");
        names.gone(first);
        assert_eq!((names.name(first), names.shown(stays)), (Some("web-0"), Some("web")));
        for n in 0..GONE {
            let label = names.give(&n.to_string(), "");
            names.gone(label);
        }
        assert_eq!((names.name(first), names.name(stays)), (None, Some("gateway:web")));
        assert!(names.known.len() <= GONE + 1);
        assert_eq!(names.name(Label::default()), None);
    }
}
