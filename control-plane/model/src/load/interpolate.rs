//! `${NAME}` in a value: the operator's environment, as it was when the files were read.

use std::collections::BTreeMap;

/// A part of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Piece<'t> {
    Text(&'t str),
    Variable {
        name: &'t str,
        otherwise: Otherwise<'t>,
        at: usize,
    },
    /// What is wrong with the `${` at this byte.
    Wrong {
        at: usize,
        why: &'static str,
    },
}

/// What stands in for a variable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Otherwise<'t> {
    /// `${NAME}`
    Nothing,
    /// `${NAME-default}`
    IfUnset(&'t str),
    /// `${NAME:-default}`
    IfUnsetOrEmpty(&'t str),
    /// `${NAME:?message}`
    Complain(&'t str),
}

/// Takes `text` apart. `$$` is a dollar, and a dollar before anything but `{` is itself.
pub(crate) fn pieces(text: &str) -> Pieces<'_> {
    Pieces { text, from: 0, next: None }
}

pub(crate) struct Pieces<'t> {
    text: &'t str,
    from: usize,
    /// What follows the text that was handed out last.
    next: Option<Piece<'t>>,
}

impl<'t> Iterator for Pieces<'t> {
    type Item = Piece<'t>;

    fn next(&mut self) -> Option<Piece<'t>> {
        if let Some(piece) = self.next.take() {
            return Some(piece);
        }
        let text = self.text;
        let start = self.from;
        if start == text.len() {
            return None;
        }
        let dollar = text[start..].find('$').map_or(text.len(), |found| start + found);
        let before = if dollar > start { Some(Piece::Text(&text[start..dollar])) } else { None };
        if dollar == text.len() {
            self.from = dollar;
            return before;
        }
        let after = dollar + 1;
        let piece = if text[after..].starts_with('$') {
            self.from = after + 1;
            Piece::Text("$")
        } else if !text[after..].starts_with('{') {
            self.from = after;
            Piece::Text("$")
        } else if let Some(end) = text[after..].find('}').map(|end| after + end) {
            self.from = end + 1;
            variable(&text[after + 1..end], dollar)
        } else {
            // One complaint is enough: nothing after it can be told apart.
            self.from = text.len();
            Piece::Wrong { at: dollar, why: "it has no closing brace" }
        };
        if before.is_some() {
            self.next = Some(piece);
        }
        before.or(Some(piece))
    }
}

fn variable(inside: &str, at: usize) -> Piece<'_> {
    let (name, rest) = inside.split_at(inside.find(|c: char| !is_name(c)).unwrap_or(inside.len()));
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
        return Piece::Wrong { at, why: "it begins with no name of a variable" };
    }
    if rest.contains("${") {
        return Piece::Wrong { at, why: "a default cannot contain another variable" };
    }
    let otherwise = if rest.is_empty() {
        Otherwise::Nothing
    } else if let Some(default) = rest.strip_prefix(":-") {
        Otherwise::IfUnsetOrEmpty(default)
    } else if let Some(default) = rest.strip_prefix('-') {
        Otherwise::IfUnset(default)
    } else if let Some(message) = rest.strip_prefix(":?") {
        Otherwise::Complain(message)
    } else {
        return Piece::Wrong { at, why: "after the name only `:-`, `-` or `:?` may follow" };
    };
    Piece::Variable { name, otherwise, at }
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

impl<'t> Otherwise<'t> {
    /// The text in place of the variable `name`.
    ///
    /// # Errors
    ///
    /// The message of `:?` (possibly empty) if there is nothing to put in its place.
    pub(crate) fn fill(self, name: &str, environment: &'t BTreeMap<String, String>) -> Result<&'t str, &'t str> {
        let value = environment.get(name).map(String::as_str);
        let full = value.filter(|value| !value.is_empty());
        match self {
            Self::Nothing => value.ok_or(""),
            Self::IfUnset(default) => Ok(value.unwrap_or(default)),
            Self::IfUnsetOrEmpty(default) => Ok(full.unwrap_or(default)),
            Self::Complain(message) => full.ok_or(message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(text: &str) -> String {
        let environment = BTreeMap::from([("P".into(), "9".into()), ("EMPTY".into(), String::new())]);
        pieces(text)
            .map(|piece| match piece {
                Piece::Text(text) => text.to_owned(),
                Piece::Variable { name, otherwise, .. } => match otherwise.fill(name, &environment) {
                    Ok(value) => value.to_owned(),
                    Err(message) => format!("<{name} {message}>"),
                },
                Piece::Wrong { at, .. } => format!("<wrong {at}>"),
            })
            .collect()
    }

    #[test]
    fn every_form_is_filled_in() {
        for (text, expected) in [
            ("plain", "plain"),
            ("${P}", "9"),
            ("a${P}b${P}", "a9b9"),
            ("${X}", "<X >"),
            ("${X:-8080}", "8080"),
            ("${X-d}", "d"),
            ("${EMPTY:-d}", "d"),
            ("${EMPTY-d}", ""),
            ("${EMPTY}", ""),
            ("${X:-}", ""),
            ("${X:?set X}", "<X set X>"),
            ("${EMPTY:?set it}", "<EMPTY set it>"),
            ("${P:?set it}", "9"),
            ("$$", "$"),
            ("$${P}", "${P}"),
            ("$$$${P}", "$${P}"),
            ("$$${P}", "$9"),
            ("$P", "$P"),
            ("costs 5$", "costs 5$"),
            ("é${P}", "é9"),
            ("${}", "<wrong 0>"),
            ("a ${1A}", "a <wrong 2>"),
            ("${A", "<wrong 0>"),
            ("${A:x}", "<wrong 0>"),
            ("${A:-${P}}", "<wrong 0>}"),
            ("${ä}", "<wrong 0>"),
        ] {
            assert_eq!(filled(text), expected, "{text}");
        }
    }
}
