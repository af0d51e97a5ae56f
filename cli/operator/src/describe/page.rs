//! How a page looks: a title, what there is to say in a word each, and a table under each heading.

use jiff::Timestamp;
use meshctl_api::view::LogLine;
use meshctl_api::view::traces::TraceSummary;
use meshctl_api::view::vitals::Signals;
use meshctl_model::event::Event;

use crate::output::{self, BOLD, Cell, Format, Table, age, styled};
use crate::show::{self, milliseconds, signals};

#[derive(Debug)]
pub(super) struct Page {
    title: String,
    fields: Vec<(&'static str, String)>,
    sections: Vec<(String, String)>,
}

impl Page {
    pub(super) fn new(title: impl Into<String>) -> Self {
        Self { title: title.into(), fields: Vec::new(), sections: Vec::new() }
    }

    pub(super) fn field(&mut self, name: &'static str, value: impl ToString) {
        self.fields.push((name, value.to_string().replace(|c: char| c.is_control() && c != '\u{1b}', " ")));
    }

    /// The field, if there is something to say.
    pub(super) fn maybe(&mut self, name: &'static str, value: Option<impl ToString>) {
        if let Some(value) = value {
            self.field(name, value);
        }
    }

    /// A table under a heading; nothing where it has no rows.
    pub(super) fn table(&mut self, heading: &str, header: &[&str], rows: Vec<Vec<Cell>>) {
        if !rows.is_empty() {
            let mut table = Table::new(header.iter().copied());
            rows.into_iter().for_each(|row| table.row(row));
            self.section(heading, table.draw(room()));
        }
    }

    pub(super) fn section(&mut self, heading: &str, text: String) {
        if !text.is_empty() {
            self.sections.push((heading.to_owned(), text));
        }
    }

    /// The golden signals of one thing.
    pub(super) fn now(&mut self, of: Option<&Signals>) {
        if let Some(of) = of {
            let table = signals("", std::slice::from_ref(of), true, true).without_first_column();
            self.section("Now, over ten seconds", table.draw(room()));
        }
    }

    pub(super) fn traces(&mut self, traces: Vec<&TraceSummary>, now: Timestamp) {
        let rows = traces.into_iter().map(|trace| {
            vec![
                Cell::plain(&trace.trace_id),
                Cell::plain(age(trace.start_at, now)),
                Cell::bad(&trace.status),
                Cell::plain(milliseconds(trace.latency_ms)),
                Cell::plain(&trace.operation),
            ]
        });
        self.table("Failed traces", &["trace", "age", "status", "took", "operation"], rows.collect());
    }

    pub(super) fn events(&mut self, events: Vec<Event>, now: Timestamp) {
        if !events.is_empty() {
            self.section("Events", show::events(events, now).table(&Format::Table, true).draw(room()));
        }
    }

    pub(super) fn logs(&mut self, lines: &[LogLine]) {
        let mut text = String::new();
        for line in lines {
            let said = anstream::adapter::strip_str(&line.line).to_string().replace(char::is_control, " ");
            text.push_str(&format!("{}  {said}\n", line.instance));
        }
        self.section("Last lines of the log", text);
    }

    pub(super) fn text(&self) -> String {
        let mut text = format!("{}\n", styled(BOLD, &self.title));
        let width = self.fields.iter().map(|(name, _)| name.len()).max().unwrap_or(0) + 1;
        for (name, value) in &self.fields {
            text.push_str(format!("  {:<width$} {value}", format!("{name}:")).trim_end());
            text.push('\n');
        }
        for (heading, section) in &self.sections {
            text.push_str(&format!("\n  {}\n", styled(BOLD, heading)));
            section.lines().for_each(|line| text.push_str(&format!("    {line}\n")));
        }
        text
    }
}

/// What is left of a terminal's width beside the indentation.
fn room() -> Option<u16> {
    output::width().map(|width| width.saturating_sub(4))
}
