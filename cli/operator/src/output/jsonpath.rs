//! `-o jsonpath=…` as kubectl takes it: text with `{.items[*].name}` in it, `{"\n"}` for what a shell cannot write, and
//! `{range .items[*]}…{end}`. A path without braces is the whole template.

use jsonpath_rust::JsonPath;
use serde_json::Value;

/// A template, ready to be filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JsonPathTemplate(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    /// A path from `$`.
    Path(String),
    /// The parts once for each thing that the path finds.
    Range(String, Vec<Part>),
}

impl JsonPathTemplate {
    /// # Errors
    /// Says what is wrong with the template.
    pub(crate) fn parse(template: &str) -> Result<Self, String> {
        if !template.contains('{') {
            return Ok(Self(vec![Part::Path(path(template)?)]));
        }
        let mut rest = template;
        let parts = parse_parts(&mut rest, false)?;
        Ok(Self(parts))
    }

    /// What the template says about `value`. A path that finds nothing says nothing; several finds are separated by spaces.
    pub(crate) fn fill(&self, value: &Value) -> String {
        let mut text = String::new();
        fill(&self.0, value, &mut text);
        text
    }
}

fn parse_parts(rest: &mut &str, inside_range: bool) -> Result<Vec<Part>, String> {
    let mut parts = Vec::new();
    loop {
        let Some(open) = rest.find('{') else {
            if inside_range {
                return Err("`{range …}` without `{end}`".to_owned());
            }
            push_text(&mut parts, rest);
            return Ok(parts);
        };
        push_text(&mut parts, &rest[..open]);
        let expression = &rest[open + 1..];
        let close = closing_brace(expression).ok_or_else(|| format!("`{{` without `}}` in `{}`", &rest[open..]))?;
        *rest = &expression[close + 1..];
        let expression = expression[..close].trim();
        if expression == "end" {
            return if inside_range { Ok(parts) } else { Err("`{end}` without `{range …}`".to_owned()) };
        } else if let Some(over) = expression.strip_prefix("range ") {
            parts.push(Part::Range(path(over)?, parse_parts(rest, true)?));
        } else if expression.starts_with('"') {
            let text = serde_json::from_str(expression).map_err(|_| format!("`{expression}` is not a quoted text"))?;
            parts.push(Part::Text(text));
        } else {
            parts.push(Part::Path(path(expression)?));
        }
    }
}

fn push_text(parts: &mut Vec<Part>, text: &str) {
    if !text.is_empty() {
        parts.push(Part::Text(text.to_owned()));
    }
}

/// The brace that ends an expression: not one in quotes.
fn closing_brace(expression: &str) -> Option<usize> {
    let mut quote = None;
    let mut escaped = false;
    for (at, c) in expression.char_indices() {
        match (quote, c) {
            _ if escaped => escaped = false,
            (Some(_), '\\') => escaped = true,
            (Some(open), c) if open == c => quote = None,
            (None, '"' | '\'') => quote = Some(c),
            (None, '}') => return Some(at),
            _ => {}
        }
    }
    None
}

/// A path from `$`, checked: `.items[*]`, `items[*]`, `@.name` and `$.name` all count.
pub(super) fn path(text: &str) -> Result<String, String> {
    let text = text.trim();
    let path = match text.strip_prefix('$').or_else(|| text.strip_prefix('@')).unwrap_or(text) {
        rest @ ("" | ".") => rest.replace('.', "").replacen("", "$", 1),
        rest if rest.starts_with(['.', '[']) => format!("${rest}"),
        rest => format!("$.{rest}"),
    };
    match Value::Null.query(&path) {
        Ok(_) => Ok(path),
        Err(error) => Err(format!("`{text}` is not a JSONPath: {}", first_line(&error.to_string()))),
    }
}

fn first_line(text: &str) -> &str {
    text.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or_default()
}

/// What `path`, which came from [`path`], finds in `value`.
pub(super) fn query<'a>(value: &'a Value, path: &str) -> Vec<&'a Value> {
    value.query(path).unwrap_or_default()
}

fn fill(parts: &[Part], value: &Value, text: &mut String) {
    for part in parts {
        match part {
            Part::Text(literal) => text.push_str(literal),
            Part::Path(path) => {
                let found: Vec<String> = query(value, path).into_iter().map(bare).collect();
                text.push_str(&found.join(" "));
            }
            Part::Range(path, parts) => query(value, path).into_iter().for_each(|each| fill(parts, each, text)),
        }
    }
}

/// A value as a shell wants it: texts without quotes.
fn bare(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(template: &str) -> String {
        let value = serde_json::json!({
            "name": "shop", "items": [{ "name": "orders", "ready": 2 }, { "name": "mailer", "ready": 0 }]
        });
        JsonPathTemplate::parse(template).expect("a template").fill(&value)
    }

    #[test]
    fn templates_are_filled_as_kubectl_fills_them() {
        for (template, text) in [
            ("{.items[*].name}", "orders mailer"),
            (".items[0].name", "orders"),
            ("$.name", "shop"),
            ("name", "shop"),
            ("system {.name}: {.items[1].ready}", "system shop: 0"),
            ("{range .items[*]}{.name}={.ready}{\"\\n\"}{end}", "orders=2\nmailer=0\n"),
            ("{.items[?(@.ready==0)].name}", "mailer"),
            ("{.items[?(@.name=='}')].name}", ""),
            ("{.missing}", ""),
            ("{.items[0]}", r#"{"name":"orders","ready":2}"#),
            ("{@.name}", "shop"),
        ] {
            assert_eq!(filled(template), text, "{template}");
        }
        assert!(filled("{$}").starts_with(r#"{"items""#), "the whole document");
    }

    #[test]
    fn mistakes_are_named() {
        for (template, complaint) in [
            ("{.items[}", "`.items[` is not a JSONPath"),
            ("{.items", "`{` without `}`"),
            ("{range .items[*]}{.name}", "without `{end}`"),
            ("{end}", "without `{range"),
        ] {
            let error = JsonPathTemplate::parse(template).expect_err(template);
            assert!(error.contains(complaint), "{error}");
        }
    }
}
