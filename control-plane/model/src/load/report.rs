//! The findings of one load: each once, at most [`SHOWN`] of them, in the order of files and lines.

use super::SourceFile;
use super::tree::Place;
use crate::finding::{self, Code, Finding, Severity};

/// Nobody reads more, and a hostile file must not make us write more.
pub(crate) const SHOWN: usize = 100;

/// The message and the remedy of a finding.
pub(crate) type Words = (String, String);

pub(crate) fn words(message: impl Into<String>, help: impl Into<String>) -> Words {
    (message.into(), help.into())
}

pub(crate) struct Report<'s> {
    files: &'s [SourceFile],
    kept: Vec<(Place, Code, Words)>,
    /// Not kept: errors, warnings.
    more: (usize, usize),
    errors: usize,
}

impl<'s> Report<'s> {
    pub(crate) fn new(files: &'s [SourceFile]) -> Self {
        Self { files, kept: Vec::new(), more: (0, 0), errors: 0 }
    }

    /// `words` is asked only if the finding is kept: words are what costs.
    pub(crate) fn add(&mut self, code: Code, place: Place, words: impl FnOnce() -> Words) {
        let error = code.severity == Severity::Error;
        self.errors += usize::from(error);
        if self.kept.len() < SHOWN {
            // What an alias repeats stands in one place only.
            if !self.kept.iter().any(|(p, c, _)| *p == place && *c == code) {
                self.kept.push((place, code, words()));
            }
        } else if error {
            self.more.0 += 1;
        } else {
            self.more.1 += 1;
        }
    }

    pub(crate) fn has_errors(&self) -> bool {
        self.errors > 0
    }

    pub(crate) fn file(&self, place: Place) -> &'s SourceFile {
        &self.files[place.file as usize]
    }

    /// `shop.yaml:12:3`
    pub(crate) fn locate(&self, place: Place) -> String {
        format!("{}:{}:{}", self.file(place).name, place.line, place.column)
    }

    pub(crate) fn into_findings(mut self) -> Vec<Finding> {
        self.kept.sort_by_key(|(place, ..)| *place);
        if let Some((place, ..)) = self.kept.last()
            && self.more != (0, 0)
        {
            let (errors, warnings) = self.more;
            let place = *place;
            let severity = if errors > 0 { Severity::Error } else { Severity::Warning };
            let what = words(
                format!("and {} more findings ({errors} errors, {warnings} warnings)", errors + warnings),
                "mend the ones above first",
            );
            self.kept.push((place, Code { severity, ..finding::MORE }, what));
        }
        let name = |place: Place| self.files.get(place.file as usize).map_or("", |file| &file.name).to_owned();
        self.kept
            .into_iter()
            .map(|(place, code, (message, help))| Finding {
                severity: code.severity,
                code: code.name.into(),
                message,
                help: Some(help),
                file: name(place),
                line: place.line as usize,
                column: place.column as usize,
                end_line: place.end_line as usize,
                end_column: place.end_column as usize,
            })
            .collect()
    }
}

/// Text of a file as it may stand in a message: in backquotes, short, and without anything that moves a terminal.
pub(crate) fn quoted(text: &str) -> String {
    const LONGEST: usize = 60;
    let mut shown: String = text
        .chars()
        .take(LONGEST)
        .flat_map(|c| if c.is_control() { c.escape_debug().collect() } else { vec![c] })
        .collect();
    if text.chars().nth(LONGEST).is_some() {
        shown.push('…');
    }
    format!("`{shown}`")
}

/// `a, b or c`, each in backquotes; at most ten.
pub(crate) fn one_of<'w>(list: impl IntoIterator<Item = &'w str>) -> String {
    let mut all: Vec<String> = list.into_iter().take(11).map(quoted).collect();
    if all.len() > 10 {
        all[10] = "others".into();
    }
    match all.pop() {
        None => "nothing".into(),
        Some(last) if all.is_empty() => last,
        Some(last) => format!("{} or {last}", all.join(", ")),
    }
}
