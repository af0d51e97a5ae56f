//! One thing on one page: every field of its JSON form, nested things below.

use jiff::Timestamp;
use serde_json::{Map, Value};

use super::{Item, Look, waterfall};
use crate::kinds::Kind;
use crate::output::{BOLD, styled};

/// The page of `item`.
pub(crate) fn describe(kind: Kind, item: &Item) -> String {
    // What a trace is about is when things happened, and that is drawn.
    if kind == Kind::Trace
        && let Ok(trace) = serde_json::from_value(item.value.clone())
    {
        return waterfall(&trace, Timestamp::now(), Look::of_stdout());
    }
    let mut page = format!("{}\n", styled(BOLD, format_args!("{}/{}", kind.singular(), item.name)));
    if let Value::Object(fields) = &item.value {
        write_fields(fields, 1, &mut page);
    }
    page
}

fn write_fields(fields: &Map<String, Value>, depth: usize, page: &mut String) {
    let indent = "  ".repeat(depth);
    let width = fields.keys().map(|key| words(key).len()).max().unwrap_or(0) + 1;
    for (key, value) in fields {
        let key = format!("{}:", words(key));
        match value {
            Value::Object(inner) if !inner.is_empty() => {
                page.push_str(&format!("{indent}{key}\n"));
                write_fields(inner, depth + 1, page);
            }
            Value::Array(items) if items.iter().any(Value::is_object) => {
                page.push_str(&format!("{indent}{key}\n"));
                for each in items {
                    write_entry(each, depth + 1, page);
                }
            }
            other => page.push_str(format!("{indent}{key:<width$} {}", scalar(other)).trim_end()),
        }
        if !page.ends_with('\n') {
            page.push('\n');
        }
    }
}

/// One of several things: its first field leads, the rest stands below.
fn write_entry(entry: &Value, depth: usize, page: &mut String) {
    let Value::Object(fields) = entry else {
        page.push_str(&format!("{}- {}\n", "  ".repeat(depth), scalar(entry)));
        return;
    };
    let mut lines = String::new();
    write_fields(fields, depth + 1, &mut lines);
    let dash = format!("{}- ", "  ".repeat(depth));
    page.push_str(&lines.replacen(&"  ".repeat(depth + 1), &dash, 1));
}

fn scalar(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.replace(|c: char| c.is_control() && c != '\n', " "),
        Value::Array(items) if items.is_empty() => "-".to_owned(),
        Value::Array(items) => items.iter().map(scalar).collect::<Vec<_>>().join(", "),
        Value::Object(fields) if fields.is_empty() => "-".to_owned(),
        Value::Number(number) if number.is_f64() => {
            // More digits than anybody measured say nothing.
            number
                .as_f64()
                .map_or_else(|| number.to_string(), |number| ((number * 1000.0).round() / 1000.0).to_string())
        }
        other => other.to_string(),
    }
}

/// `startedAt` as `Started at`.
fn words(key: &str) -> String {
    let mut text = String::new();
    for (at, c) in key.chars().enumerate() {
        match c {
            c if at == 0 => text.extend(c.to_uppercase()),
            c if c.is_uppercase() => {
                text.push(' ');
                text.extend(c.to_lowercase());
            }
            c => text.push(c),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_shows_every_field() {
        let value = serde_json::json!({
            "name": "orders", "state": "degraded", "blockedBy": null, "labels": {},
            "instances": [
                { "id": "orders-1", "pid": 41, "startedAt": "2026-11-23T10:00:00Z" },
                { "id": "orders-2", "pid": null, "startedAt": null }
            ],
            "methods": ["GET", "POST"], "load": 0.30000000000000004,
        });
        let page = describe(Kind::Service, &Item { name: "orders".into(), value, cells: Vec::new() });
        insta::assert_snapshot!(anstream::adapter::strip_str(&page).to_string(), @r"
        service/orders
          Blocked by: -
          Instances:
            - Id:         orders-1
              Pid:        41
              Started at: 2026-11-23T10:00:00Z
            - Id:         orders-2
              Pid:        -
              Started at: -
          Labels:     -
          Load:       0.3
          Methods:    GET, POST
          Name:       orders
          State:      degraded
        ");
    }
}
