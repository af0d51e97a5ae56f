//! From text to a [`Filter`]: words, then a descent over the grammar, in which every mistake knows its column.
//!
//! ```text
//! any        = all ("or" all)*
//! all        = one ("and" one)*
//! one        = "not" one | "(" any ")" | FIELD OPERATOR VALUE | FIELD "in" "(" VALUE ("," VALUE)* ")"
//! ```

use super::{Field, Filter, Kind, Operator, Value};
use crate::load::report::{one_of, quoted};
use crate::load::suggest::nearest;
use crate::units::{Bytes, Span};

/// What is wrong with a filter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("column {column}: {message}; {help}")]
pub struct FilterError {
    /// In characters, from 1; one behind the end where something is missing.
    pub column: usize,
    pub message: String,
    /// What to do about it.
    pub help: String,
}

/// Deeper than anybody writes, and shallower than any stack.
const DEEPEST: usize = 64;

/// The keywords: in quotes where they are meant as text.
const KEYWORDS: [&str; 4] = ["and", "or", "not", "in"];

const OPERATORS: [Operator; 7] = [
    Operator::NotEqual,
    Operator::AtMost,
    Operator::AtLeast,
    Operator::Equal,
    Operator::Less,
    Operator::Greater,
    Operator::Contains,
];

/// The operators that a field of this kind has.
pub(super) fn operators(kind: Kind) -> &'static [Operator] {
    match kind {
        Kind::Text | Kind::Word(_) => &[Operator::Equal, Operator::NotEqual, Operator::Contains],
        Kind::Number | Kind::Size | Kind::Duration | Kind::Time => &[
            Operator::Equal,
            Operator::NotEqual,
            Operator::Less,
            Operator::AtMost,
            Operator::Greater,
            Operator::AtLeast,
        ],
    }
}

/// Reads a filter over `fields`.
///
/// # Errors
/// The first mistake, where it stands, and what to do about it.
pub fn parse(text: &str, fields: &[Field]) -> Result<Filter, FilterError> {
    let end = text.chars().count() + 1;
    let mut parser = Parser { tokens: tokens(text)?, at: 0, end, fields, depth: 0 };
    let filter = parser.any()?;
    match parser.next() {
        None => Ok(filter),
        Some(Token { column, part: Part::Close }) => {
            Err(error(column, "this `)` closes nothing", "take it out, or add a `(` before"))
        }
        Some(token) => Err(error(
            token.column,
            format!("{} follows a whole condition", token.part.shown()),
            "put `and` or `or` between two conditions, and quotes around text with spaces",
        )),
    }
}

/// Whether a text may stand without quotes.
pub(super) fn is_bare(text: &str) -> bool {
    !text.is_empty() && text.chars().all(is_of_word) && !KEYWORDS.iter().any(|word| text.eq_ignore_ascii_case(word))
}

fn is_of_word(c: char) -> bool {
    !c.is_whitespace() && !c.is_control() && !"()=!<>~,\"'&|\\".contains(c)
}

fn error(column: usize, message: impl Into<String>, help: impl Into<String>) -> FilterError {
    FilterError { column, message: message.into(), help: help.into() }
}

struct Token {
    column: usize,
    part: Part,
}

#[derive(Clone, Debug, PartialEq)]
enum Part {
    Word(String),
    Quoted(String),
    Operator(Operator),
    Open,
    Close,
    Comma,
}

impl Part {
    fn is(&self, keyword: &str) -> bool {
        matches!(self, Self::Word(word) if word.eq_ignore_ascii_case(keyword))
    }

    /// As it stood in the text, for a message.
    fn shown(&self) -> String {
        match self {
            Self::Word(text) | Self::Quoted(text) => quoted(text),
            Self::Operator(operator) => quoted(operator.as_str()),
            Self::Open => "`(`".into(),
            Self::Close => "`)`".into(),
            Self::Comma => "`,`".into(),
        }
    }
}

fn tokens(text: &str) -> Result<Vec<Token>, FilterError> {
    let mut tokens = Vec::new();
    let mut characters = text.chars().zip(1..).peekable();
    while let Some((c, column)) = characters.next() {
        let part = match c {
            _ if c.is_whitespace() => continue,
            '(' => Part::Open,
            ')' => Part::Close,
            ',' => Part::Comma,
            '"' | '\'' => {
                let mut inside = String::new();
                loop {
                    match characters.next() {
                        Some((end, _)) if end == c => break Part::Quoted(inside),
                        Some(('\\', _)) => inside.extend(characters.next().map(|(escaped, _)| escaped)),
                        Some((other, _)) => inside.push(other),
                        None => {
                            return Err(error(column, "this quote is not closed", format!("add a {c} at its end")));
                        }
                    }
                }
            }
            '&' => return Err(error(column, "`&` is no operator", "write `and`")),
            '|' => return Err(error(column, "`|` is no operator", "write `or`")),
            _ if is_of_word(c) => {
                let mut word = String::from(c);
                while let Some((more, _)) = characters.next_if(|(more, _)| is_of_word(*more)) {
                    word.push(more);
                }
                Part::Word(word)
            }
            _ => {
                let mut sign = String::from(c);
                sign.extend(characters.next_if(|(more, _)| matches!(more, '=' | '~' | '>')).map(|(more, _)| more));
                match OPERATORS.into_iter().find(|operator| operator.as_str() == sign) {
                    Some(operator) => Part::Operator(operator),
                    None => return Err(no_operator(column, &sign)),
                }
            }
        };
        tokens.push(Token { column, part });
    }
    Ok(tokens)
}

fn no_operator(column: usize, sign: &str) -> FilterError {
    let help = match sign {
        "==" => "write `=`",
        "<>" => "write `!=`",
        "!~" | "!" => "write `not` before the condition",
        "=~" => "write `~`, which means: contains",
        "=>" => "write `>=`",
        _ => "use = != < <= > >= or ~ (contains)",
    };
    error(column, format!("{} is no operator", quoted(sign)), help)
}

struct Parser<'f> {
    tokens: Vec<Token>,
    at: usize,
    /// The column behind the text.
    end: usize,
    fields: &'f [Field],
    depth: usize,
}

impl Parser<'_> {
    fn next(&mut self) -> Option<Token> {
        let token = self.tokens.get_mut(self.at)?;
        self.at += 1;
        Some(Token { column: token.column, part: std::mem::replace(&mut token.part, Part::Comma) })
    }

    /// Takes the next word if it is `keyword`.
    fn takes(&mut self, keyword: &str) -> bool {
        let found = self.tokens.get(self.at).is_some_and(|token| token.part.is(keyword));
        self.at += usize::from(found);
        found
    }

    fn any(&mut self) -> Result<Filter, FilterError> {
        self.joined("or", Self::all, Filter::Or)
    }

    fn all(&mut self) -> Result<Filter, FilterError> {
        self.joined("and", Self::one, Filter::And)
    }

    fn joined(
        &mut self,
        word: &str,
        part: fn(&mut Self) -> Result<Filter, FilterError>,
        join: fn(Vec<Filter>) -> Filter,
    ) -> Result<Filter, FilterError> {
        let first = part(self)?;
        let mut parts = vec![first];
        while self.takes(word) {
            parts.push(part(self)?);
        }
        Ok(if parts.len() == 1 { parts.remove(0) } else { join(parts) })
    }

    fn one(&mut self) -> Result<Filter, FilterError> {
        let Some(Token { column, part }) = self.next() else {
            return Err(error(self.end, "a condition is missing", "write one such as `reason = poison`"));
        };
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err(error(column, "this is nested too deeply", "write it with fewer `(` and `not`"));
        }
        let filter = match part {
            Part::Open => {
                let inside = self.any()?;
                match self.next() {
                    Some(Token { part: Part::Close, .. }) => inside,
                    other => {
                        let at = other.map_or(self.end, |token| token.column);
                        let message = format!("the `(` of column {column} is not closed here");
                        return Err(error(at, message, "add a `)`, or put `and` or `or` between two conditions"));
                    }
                }
            }
            ref not if not.is("not") => Filter::Not(Box::new(self.one()?)),
            Part::Word(word) => self.condition(column, &word)?,
            other => {
                let message = format!("expected the name of a field, found {}", other.shown());
                return Err(error(column, message, format!("ask about {}", self.known())));
            }
        };
        self.depth -= 1;
        Ok(filter)
    }

    fn known(&self) -> String {
        self.fields.iter().map(|field| field.name).collect::<Vec<_>>().join(", ")
    }

    fn condition(&mut self, column: usize, word: &str) -> Result<Filter, FilterError> {
        let Some(Field { name, kind }) = self.fields.iter().find(|field| field.name == word).copied() else {
            let help = match nearest(word, self.fields.iter().map(|field| field.name)) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("ask about {}", self.known()),
            };
            return Err(error(column, format!("there is no field {}", quoted(word)), help));
        };
        if self.takes("in") {
            return Ok(Filter::In { field: name, values: self.values(name, kind)? });
        }
        let allowed = operators(kind);
        let listed = || allowed.iter().map(|operator| operator.as_str()).collect::<Vec<_>>().join(" ");
        let operator = match self.next() {
            Some(Token { part: Part::Operator(operator), .. }) if allowed.contains(&operator) => operator,
            Some(Token { column, part: part @ Part::Operator(_) }) => {
                let message = format!("{} makes no sense for `{name}`, which is {}", part.shown(), kind.describe());
                return Err(error(column, message, format!("use one of {} or `in (…)`", listed())));
            }
            other => {
                let at = other.map_or(self.end, |token| token.column);
                let message = format!("`{name}` is compared with nothing");
                return Err(error(at, message, format!("add one of {} and a value, or `in (…)`", listed())));
            }
        };
        let value = self.value(name, kind, operator)?;
        Ok(Filter::Compare { field: name, operator, value })
    }

    fn values(&mut self, name: &str, kind: Kind) -> Result<Vec<Value>, FilterError> {
        let expected = |this: &Self, token: Option<Token>, what: &str| {
            let at = token.map_or(this.end, |token| token.column);
            error(at, format!("expected {what}"), format!("write `{name} in (one, another)`"))
        };
        match self.next() {
            Some(Token { part: Part::Open, .. }) => {}
            other => return Err(expected(self, other, "`(` after `in`")),
        }
        let mut values = Vec::new();
        loop {
            values.push(self.value(name, kind, Operator::Equal)?);
            match self.next() {
                Some(Token { part: Part::Comma, .. }) => {}
                Some(Token { part: Part::Close, .. }) => return Ok(values),
                other => return Err(expected(self, other, "`,` or `)`")),
            }
        }
    }

    fn value(&mut self, name: &str, kind: Kind, operator: Operator) -> Result<Value, FilterError> {
        let missing = |column| {
            let message = format!("`{name}` is compared with nothing");
            error(column, message, format!("write {} here", kind.describe()))
        };
        let (column, text) = match self.next() {
            None => return Err(missing(self.end)),
            Some(Token { column, part: Part::Quoted(text) }) => (column, text),
            Some(Token { column, part: Part::Word(word) }) => {
                if KEYWORDS.iter().any(|keyword| word.eq_ignore_ascii_case(keyword)) {
                    let help = format!("write {} before it, or put it in quotes", kind.describe());
                    return Err(error(column, format!("{} is a word of the language", quoted(&word)), help));
                }
                (column, word)
            }
            Some(Token { column, .. }) => return Err(missing(column)),
        };
        let read = match kind {
            // A part of a word is not among the words.
            Kind::Word(_) if operator == Operator::Contains => Some(Value::Text(text.clone())),
            Kind::Word(words) if !words.contains(&text.as_str()) => {
                let help = match nearest(&text, words.iter().copied()) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("use {}", one_of(words.iter().copied())),
                };
                return Err(error(column, format!("`{name}` is never {}", quoted(&text)), help));
            }
            Kind::Text | Kind::Word(_) => Some(Value::Text(text.clone())),
            Kind::Number => text.parse().ok().filter(|number: &f64| number.is_finite()).map(Value::Number),
            Kind::Size => text.parse().ok().map(|Bytes(bytes)| Value::Number(bytes as f64)),
            Kind::Duration => text.parse::<Span>().ok().map(Value::Duration),
            Kind::Time => time(&text).map(Value::Time),
        };
        read.ok_or_else(|| {
            let message = format!("{} is not {}", quoted(&text), kind.describe());
            error(column, message, format!("write {}", kind.describe()))
        })
    }
}

/// RFC 3339, or the first moment of a day in UTC.
fn time(text: &str) -> Option<jiff::Timestamp> {
    let day = || text.parse::<jiff::civil::Date>().ok().filter(|_| !text.contains(['T', 't', ':']));
    text.parse().ok().or_else(|| day()?.in_tz("UTC").ok().map(|zoned| zoned.timestamp()))
}

impl Kind {
    /// In words, with an article.
    fn describe(self) -> String {
        match self {
            Self::Text => "a text".into(),
            Self::Word(words) => one_of(words.iter().copied()),
            Self::Number => "a number".into(),
            Self::Size => "a size such as 64KiB".into(),
            Self::Duration => "a duration such as 90s, 1h or 7d".into(),
            Self::Time => "a time such as 2026-11-23T10:00:00Z or 2026-11-23".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::DEAD_LETTER;
    use super::*;

    #[test]
    fn every_mistake_is_found_where_it_stands() {
        for (marked, message, help) in [
            ("▸", "a condition is missing", "write one such as `reason = poison`"),
            ("▸reson = poison", "there is no field `reson`", "did you mean `reason`?"),
            ("▸REASON = poison", "there is no field `REASON`", "did you mean `reason`?"),
            ("reason = ▸poisn", "`reason` is never `poisn`", "did you mean `poison`?"),
            ("class = ▸x", "`class` is never `x`", "use `rejected`, `refused`, `timeout` or `unreachable`"),
            ("reason▸", "`reason` is compared with nothing", "add one of = != ~ and a value, or `in (…)`"),
            ("reason =▸", "`reason` is compared with nothing", "write `poison` or `exhausted` here"),
            ("reason ▸== poison", "`==` is no operator", "write `=`"),
            ("reason ▸=> poison", "`=>` is no operator", "write `>=`"),
            (
                "reason ▸> poison",
                "`>` makes no sense for `reason`, which is `poison` or `exhausted`",
                "use one of = != ~ or `in (…)`",
            ),
            (
                "age ▸~ 1h",
                "`~` makes no sense for `age`, which is a duration such as 90s, 1h or 7d",
                "use one of = != < <= > >= or `in (…)`",
            ),
            ("age > ▸5", "`5` is not a duration such as 90s, 1h or 7d", "write a duration such as 90s, 1h or 7d"),
            ("attempts > ▸inf", "`inf` is not a number", "write a number"),
            (
                "lastFailedAt > ▸yesterday",
                "`yesterday` is not a time such as 2026-11-23T10:00:00Z or 2026-11-23",
                "write a time such as 2026-11-23T10:00:00Z or 2026-11-23",
            ),
            ("key = a ▸&& key = b", "`&` is no operator", "write `and`"),
            (
                "key = a ▸key = b",
                "`key` follows a whole condition",
                "put `and` or `or` between two conditions, and quotes around text with spaces",
            ),
            ("key = a and▸", "a condition is missing", "write one such as `reason = poison`"),
            ("key = ▸and key = b", "`and` is a word of the language", "write a text before it, or put it in quotes"),
            ("key = a▸)", "this `)` closes nothing", "take it out, or add a `(` before"),
            (
                "(key = a or key = b▸",
                "the `(` of column 1 is not closed here",
                "add a `)`, or put `and` or `or` between two conditions",
            ),
            ("ä ▸'x", "this quote is not closed", "add a ' at its end"),
            ("key in ▸a", "expected `(` after `in`", "write `key in (one, another)`"),
            ("key in (a ▸b)", "expected `,` or `)`", "write `key in (one, another)`"),
            ("key in (▸)", "`key` is compared with nothing", "write a text here"),
        ] {
            let column = marked.chars().position(|c| c == '▸').expect("a mark") + 1;
            let found = parse(&marked.replace('▸', ""), DEAD_LETTER);
            assert_eq!(found, Err(error(column, message, help)), "{marked}");
        }
    }

    #[test]
    fn depth_is_bounded() {
        for text in ["(".repeat(100_000), "not ".repeat(100_000)] {
            let found = parse(&text, DEAD_LETTER).map_err(|error| error.message);
            assert_eq!(found, Err("this is nested too deeply".into()));
        }
        assert!(parse(&vec!["key = a"; 1_000].join(" and "), DEAD_LETTER).is_ok());
    }

    #[test]
    fn words_of_the_language_take_any_case_and_quotes_take_anything() {
        let plain = parse("not key = a and key in (b)", DEAD_LETTER);
        assert_eq!(parse("NOT key='a' AND key In(\"b\")", DEAD_LETTER), plain);
        let quoted = parse(r#"key = "a \"b\" \\ 'c' and""#, DEAD_LETTER);
        let value = Value::Text(r#"a "b" \ 'c' and"#.into());
        assert_eq!(quoted, Ok(Filter::Compare { field: "key", operator: Operator::Equal, value }));
    }
}
