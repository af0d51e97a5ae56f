//! Findings as a compiler shows them: the line, what is wrong with it, and what to do.

use std::ops::Range;

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};
use meshctl_model::finding::{Finding, Severity};
use meshctl_model::load::Sources;
use serde::Serialize;

use super::{Format, document, say, stderr_width};
use crate::failure::Failure;

/// As wide as a finding is drawn where there is no terminal.
const WIDTH: u16 = 140;

/// `validate -o json`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct FindingList<'a> {
    api_version: &'static str,
    kind: &'static str,
    findings: &'a [Finding],
}

/// Shows `findings`: a document on stdout where `format` asks for one, and otherwise snippets on stderr.
///
/// # Errors
/// When the document cannot be written.
pub(crate) fn show(findings: &[Finding], sources: &Sources, format: &Format) -> Result<(), Failure> {
    let list = FindingList { api_version: meshctl_model::API_VERSION, kind: "FindingList", findings };
    if !document(format, &list)? {
        tell(findings, sources);
    }
    Ok(())
}

/// Shows `findings` on stderr.
pub(crate) fn tell(findings: &[Finding], sources: &Sources) {
    let width = stderr_width().unwrap_or(WIDTH);
    for finding in findings {
        say(draw(finding, sources, width));
        say("");
    }
}

/// `3 errors and 1 warning`.
pub(crate) fn count(findings: &[Finding]) -> String {
    let errors = findings.iter().filter(|finding| finding.severity == Severity::Error).count();
    let warnings = findings.len() - errors;
    let many = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    match (errors, warnings) {
        (_, 0) => many(errors, "error"),
        (0, _) => many(warnings, "warning"),
        _ => format!("{} and {}", many(errors, "error"), many(warnings, "warning")),
    }
}

pub(crate) fn has_errors(findings: &[Finding]) -> bool {
    findings.iter().any(|finding| finding.severity == Severity::Error)
}

/// One finding, styled; the source's line is left out where the text is not at hand.
fn draw(finding: &Finding, sources: &Sources, width: u16) -> String {
    let level = match finding.severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
    };
    let title = level.primary_title(clean(&finding.message)).id(finding.code.clone());
    let text = sources.files.iter().find(|file| file.name == finding.file).map(|file| Excerpt::of(&file.text, finding));
    let mut group = match &text {
        Some(excerpt) => title.element(
            Snippet::source(excerpt.text.as_str())
                .line_start(excerpt.first_line)
                .path(finding.file.as_str())
                .annotation(AnnotationKind::Primary.span(excerpt.span.clone())),
        ),
        None => title.element(
            annotate_snippets::Origin::path(finding.file.as_str()).line(finding.line).char_column(finding.column),
        ),
    };
    if let Some(help) = &finding.help {
        group = group.element(Level::HELP.message(clean(help)));
    }
    Renderer::styled().term_width(width.into()).render(&[group])
}

/// The lines around a finding. Only these are handed to the renderer, so that a finding in a large file costs no more
/// than one in a small file.
struct Excerpt {
    text: String,
    first_line: usize,
    /// In bytes of `text`.
    span: Range<usize>,
}

/// Lines shown before the finding's own.
const CONTEXT: usize = 1;
/// A line longer than this is cut around the finding.
const LONG: usize = 4096;

impl Excerpt {
    fn of(source: &str, finding: &Finding) -> Self {
        let (line, end_line) = (finding.line.max(1), finding.end_line.max(finding.line.max(1)));
        let first_line = line.saturating_sub(CONTEXT).max(1);
        let mut text = String::new();
        let mut span = None;
        let mut end = None;
        for (number, content) in source.lines().enumerate().map(|(at, line)| (at + 1, line)).skip(first_line - 1) {
            // A finding that covers many lines is shown by its first ones.
            if number > end_line || number > line + 3 {
                break;
            }
            let begin = text.len();
            let content = content.get(..LONG.min(content.len())).unwrap_or(content);
            if number == line {
                span = Some(begin + offset(content, finding.column));
            }
            if number == end_line {
                end = Some(begin + offset(content, finding.end_column));
            }
            text.push_str(&clean(content));
            text.push('\n');
        }
        let last = text.trim_end_matches('\n').len();
        let start = span.unwrap_or(last).min(last);
        let end = end.unwrap_or(last).clamp(start, last.max(start));
        Self { text, first_line, span: start..end }
    }
}

/// The byte at which the character in `column`, counted from 1, begins.
fn offset(line: &str, column: usize) -> usize {
    line.char_indices().nth(column.saturating_sub(1)).map_or(line.len(), |(at, _)| at)
}

/// Without characters that could move the cursor; each is replaced by one of its own length, so that offsets hold.
fn clean(text: &str) -> String {
    text.replace(|c: char| c.is_ascii_control() && c != '\n' && c != '\t', " ")
}

#[cfg(test)]
mod tests {
    use meshctl_model::load::SourceFile;

    use super::*;

    const TEXT: &str = "services:\n  orders:\n    comand: [\"./orders\"]\n    dependsOn: [billng]\n";

    fn sources(text: &str) -> Sources {
        let file = SourceFile { name: "shop.yaml".into(), folder: "/tmp".into(), text: text.into() };
        Sources { files: vec![file], ..Sources::default() }
    }

    fn finding(line: usize, columns: Range<usize>) -> Finding {
        Finding {
            severity: Severity::Error,
            code: "unknown-key".into(),
            message: "unknown key `comand`".into(),
            help: Some("did you mean `command`?".into()),
            file: "shop.yaml".into(),
            line,
            column: columns.start,
            end_line: line,
            end_column: columns.end,
        }
    }

    fn drawn(finding: &Finding, sources: &Sources, width: u16) -> String {
        anstream::adapter::strip_str(&draw(finding, sources, width)).to_string()
    }

    #[test]
    fn a_finding_shows_its_line() {
        insta::assert_snapshot!(drawn(&finding(3, 5..11), &sources(TEXT), 80), @r#"
        error[unknown-key]: unknown key `comand`
         --> shop.yaml:3:5
          |
        3 |     comand: ["./orders"]
          |     ^^^^^^
          |
          = help: did you mean `command`?
        "#);
    }

    #[test]
    fn a_warning_without_its_text_shows_where() {
        let warning =
            Finding { severity: Severity::Warning, file: "other.yaml".into(), help: None, ..finding(3, 5..11) };
        insta::assert_snapshot!(drawn(&warning, &sources(TEXT), 80), @r"
        warning[unknown-key]: unknown key `comand`
        --> other.yaml:3:5
        ");
    }

    #[test]
    fn a_long_line_is_trimmed_to_the_width() {
        let text = format!("services: {{ {}: {{ comand: x }} }}\n", "a".repeat(300));
        let text = drawn(&finding(1, 316..322), &sources(&text), 80);
        assert!(text.contains("comand: x"), "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 84), "{text}");
    }

    #[test]
    fn places_outside_the_text_and_wide_characters_are_survived() {
        for (line, begin, end) in [(99, 1, 5), (0, 0, 0), (4, 900, 901), (3, 11, 5)] {
            drawn(&finding(line, begin..end), &sources(TEXT), 80);
        }
        let text = drawn(&finding(1, 4..7), &sources("日本: bad\n"), 80);
        assert!(text.contains("^^^"), "{text}");
        drawn(&finding(1, 1..2), &sources(""), 80);
    }

    #[test]
    fn findings_are_counted_in_words() {
        let error = finding(1, 1..2);
        let warning = Finding { severity: Severity::Warning, ..error.clone() };
        assert_eq!(count(std::slice::from_ref(&error)), "1 error");
        assert_eq!(count(&[error.clone(), error, warning]), "2 errors and 1 warning");
    }
}
