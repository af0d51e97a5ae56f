//! Payloads for eyes: JSON laid out, text as it is, anything else as a dump of its bytes. A terminal obeys none of them.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use meshctl_model::exit;
use serde::de::IgnoredAny;
use serde_json::Value;

use crate::failure::Failure;

/// How a payload is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Form {
    /// Laid out over lines.
    Json,
    Text,
    /// Offsets, bytes, and the ASCII among them.
    Hex,
}

/// The bytes of a payload that came as JSON, text or base64.
///
/// # Errors
/// What is not base64.
pub(crate) fn bytes(value: Option<&Value>, base64: Option<&str>) -> Result<Vec<u8>, Failure> {
    match (base64, value) {
        (Some(text), _) => STANDARD.decode(text).map_err(|error| {
            Failure::new(exit::FAILURE, "the daemon's answer holds a payload that is not base64").caused_by(&error)
        }),
        (None, Some(Value::String(text))) => Ok(text.clone().into_bytes()),
        (None, Some(value)) => Ok(value.to_string().into_bytes()),
        (None, None) => Ok(Vec::new()),
    }
}

pub(crate) fn encode(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// What `bytes` are, where nobody says.
pub(crate) fn guess(bytes: &[u8]) -> Form {
    let is_line = |c: char| !c.is_control() || matches!(c, '\n' | '\r' | '\t');
    match std::str::from_utf8(bytes) {
        Ok(_) if serde_json::from_slice::<IgnoredAny>(bytes).is_ok() => Form::Json,
        Ok(text) if text.chars().all(is_line) => Form::Text,
        _ => Form::Hex,
    }
}

/// `bytes` in the form wanted, or in the one that suits them; each line ended.
///
/// # Errors
/// JSON or text that is none.
pub(crate) fn draw(bytes: &[u8], form: Option<Form>) -> Result<String, Failure> {
    let refused = |what: &str, error: &dyn std::error::Error| {
        let size = bytes.len();
        Failure::new(exit::FAILURE, format!("the payload ({size} bytes) is not {what}"))
            .caused_by(error)
            .hint("without --as it is shown as what it is; `--as hex` shows anything")
    };
    let mut text = match form.unwrap_or_else(|| guess(bytes)) {
        Form::Json => {
            serde_json::from_slice::<IgnoredAny>(bytes).map_err(|error| refused("JSON", &error))?;
            lay_out(&String::from_utf8_lossy(bytes))
        }
        Form::Text => std::str::from_utf8(bytes).map_err(|error| refused("UTF-8 text", &error))?.replace("\r\n", "\n"),
        Form::Hex => dump(bytes),
    };
    text = text.replace(|c: char| c.is_control() && !matches!(c, '\n' | '\t'), "\u{fffd}");
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}

/// Valid JSON over lines. Only the space between its parts changes: fields keep their order, and numbers every digit.
fn lay_out(json: &str) -> String {
    let mut text = String::with_capacity(json.len() * 2);
    let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
    let mut parts = json.trim().chars().filter(|c| !matches!(c, '\n' | '\r' | '\t')).peekable();
    while let Some(c) = parts.next() {
        if in_string {
            text.push(c);
            in_string = escaped || c != '"';
            escaped = !escaped && c == '\\';
            continue;
        }
        match c {
            ' ' => continue,
            '{' | '[' => {
                text.push(c);
                while parts.next_if_eq(&' ').is_some() {}
                match parts.next_if(|next| matches!(next, '}' | ']')) {
                    Some(close) => text.push(close),
                    None => {
                        depth += 1;
                        break_line(&mut text, depth);
                    }
                }
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                break_line(&mut text, depth);
                text.push(c);
            }
            ',' => {
                text.push(c);
                break_line(&mut text, depth);
            }
            ':' => text.push_str(": "),
            _ => {
                in_string = c == '"';
                text.push(c);
            }
        }
    }
    text
}

fn break_line(text: &mut String, depth: usize) {
    text.push('\n');
    text.extend(std::iter::repeat_n("  ", depth));
}

/// As `hexdump -C` writes it.
fn dump(bytes: &[u8]) -> String {
    let mut text = String::new();
    for (row, bytes) in bytes.chunks(16).enumerate() {
        let half = |half: &[u8]| half.iter().map(|byte| format!("{byte:02x} ")).collect::<String>();
        let (left, right) = bytes.split_at(bytes.len().min(8));
        let ascii: String =
            bytes.iter().map(|byte| if (0x20..0x7f).contains(byte) { *byte as char } else { '.' }).collect();
        text.push_str(&format!("{:08x}  {:<24} {:<24} |{ascii}|\n", row * 16, half(left), half(right)));
    }
    text
}

/// In one line: compact JSON, text without its breaks, or how much there is of anything else.
pub(crate) fn one_line(value: Option<&Value>, base64: Option<&str>, size: u64) -> String {
    let text = match (value, base64) {
        (Some(Value::String(text)), _) => text.clone(),
        (Some(value), _) => value.to_string(),
        (None, Some(base64)) => match STANDARD.decode(base64) {
            Ok(bytes) if guess(&bytes) != Form::Hex => String::from_utf8_lossy(&bytes).into_owned(),
            _ => format!("<{size} bytes>"),
        },
        (None, None) => format!("<{size} bytes>"),
    };
    text.replace(char::is_control, " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_is_shown_as_what_it_is() {
        let drawn = |bytes: &[u8]| draw(bytes, None).expect("always");
        assert_eq!(drawn(br#"{"sku":"book","quantity":1}"#), "{\n  \"sku\": \"book\",\n  \"quantity\": 1\n}\n");
        assert_eq!(drawn("zwölf\nBücher".as_bytes()), "zwölf\nBücher\n");
        assert_eq!(drawn(b""), "");
        insta::assert_snapshot!(drawn(b"\x00\x01binary\xff and some more"), @r"
        00000000  00 01 62 69 6e 61 72 79  ff 20 61 6e 64 20 73 6f  |..binary. and so|
        00000010  6d 65 20 6d 6f 72 65                              |me more|
        ");
        assert_eq!(drawn(b"\x1b[2Jcleared").lines().count(), 1, "escapes are bytes, not orders");
        assert!(!draw(b"\x1b[2J", Some(Form::Text)).expect("UTF-8").contains('\u{1b}'));
        assert!(draw(b"[1, 2", Some(Form::Json)).is_err() && draw(b"\xff", Some(Form::Text)).is_err());
        assert!(draw(br#""a""#, Some(Form::Hex)).expect("always").contains("22 61 22"));
    }

    #[test]
    fn json_keeps_its_order_and_its_digits() {
        let json = r#" {"z":[ ] ,"a":{}, "n":[1.50,12345678901234567890123],"s":"a\\\"{b:[,]}\\\\", "t": true} "#;
        insta::assert_snapshot!(draw(json.as_bytes(), None).expect("JSON"), @r#"
        {
          "z": [],
          "a": {},
          "n": [
            1.50,
            12345678901234567890123
          ],
          "s": "a\\\"{b:[,]}\\\\",
          "t": true
        }
        "#);
    }

    #[test]
    fn a_line_holds_any_payload() {
        let json = serde_json::json!({ "a": 1 });
        assert_eq!(one_line(Some(&json), None, 7), r#"{"a":1}"#);
        assert_eq!(one_line(None, Some("AAE="), 2), "<2 bytes>");
        assert_eq!(one_line(None, Some("YQpi"), 3), "a b");
        assert_eq!(one_line(None, None, 12), "<12 bytes>");
        assert_eq!(bytes(Some(&json), Some("AAE=")).expect("base64"), [0, 1]);
        assert!(bytes(None, Some("?")).is_err());
    }
}
