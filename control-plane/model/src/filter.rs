//! The filter language: `reason = poison and age > 1h and (channel = "order.placed" or not error ~ timeout)`. One language
//! for commands, API and stores; what a thing can be asked about is a list of [`Field`]s, so that a word that is not
//! known is found where it stands, before anything is looked at.
//!
//! `and` binds closer than `or`, and `not` closer than both. Text is compared exactly, but `~` (contains) overlooks case.
//! What a thing does not have is equal to nothing: `!=` holds for it, and every other comparison does not.

use std::fmt;

use jiff::Timestamp;

use crate::units::Span;

mod parse;

pub use parse::{FilterError, parse};

/// A question about a thing, with every name and value understood.
#[derive(Clone, Debug, PartialEq)]
pub enum Filter {
    /// Of two or more.
    And(Vec<Filter>),
    /// Of two or more.
    Or(Vec<Filter>),
    Not(Box<Filter>),
    Compare {
        field: &'static str,
        operator: Operator,
        value: Value,
    },
    /// Whether the field is one of these; there is at least one.
    In {
        field: &'static str,
        values: Vec<Value>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    Equal,
    NotEqual,
    Less,
    AtMost,
    Greater,
    AtLeast,
    /// Text within text, whatever the case of letters.
    Contains,
}

/// What a field holds, and what it is compared with: always of the field's own kind.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Of [`Kind::Text`] and [`Kind::Word`].
    Text(String),
    /// Of [`Kind::Number`] and, in bytes, of [`Kind::Size`]; finite.
    Number(f64),
    Duration(Span),
    Time(Timestamp),
    /// What a thing has several of, never what it is compared with: a comparison holds if it does for one of them, and `!=` if
    /// it does for all.
    Several(Vec<Value>),
}

/// Something that may be asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// As in the JSON of the thing.
    pub name: &'static str,
    pub kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Text,
    /// One of these words and no other.
    Word(&'static [&'static str]),
    Number,
    /// A number of bytes, which may be written `64KiB`.
    Size,
    Duration,
    Time,
}

/// What dead letters can be asked about: what they show of themselves, and `age`, the time since the last failure.
pub const DEAD_LETTER: &[Field] = &[
    Field { name: "age", kind: Kind::Duration },
    Field { name: "attempts", kind: Kind::Number },
    Field { name: "channel", kind: Kind::Text },
    Field { name: "class", kind: Kind::Word(&["rejected", "refused", "timeout", "unreachable"]) },
    Field { name: "error", kind: Kind::Text },
    Field { name: "fingerprint", kind: Kind::Text },
    Field { name: "firstFailedAt", kind: Kind::Time },
    Field { name: "id", kind: Kind::Text },
    Field { name: "key", kind: Kind::Text },
    Field { name: "lastFailedAt", kind: Kind::Time },
    Field { name: "messageId", kind: Kind::Text },
    Field { name: "reason", kind: Kind::Word(&["poison", "exhausted"]) },
    Field { name: "replayId", kind: Kind::Text },
    Field { name: "sizeBytes", kind: Kind::Size },
    Field { name: "state", kind: Kind::Word(&["dead", "parked", "replaying", "processed", "discarded"]) },
    Field { name: "subscription", kind: Kind::Text },
    Field { name: "traceId", kind: Kind::Text },
    Field { name: "type", kind: Kind::Text },
];

/// What traces can be asked about: what lists show of them, and `age`, the time since they began. `service` is any that took
/// part, `operation` and `latency` are of the first span.
pub const TRACE: &[Field] = &[
    Field { name: "age", kind: Kind::Duration },
    Field { name: "duration", kind: Kind::Duration },
    Field { name: "errors", kind: Kind::Number },
    Field { name: "latency", kind: Kind::Duration },
    Field { name: "operation", kind: Kind::Text },
    Field { name: "service", kind: Kind::Text },
    Field { name: "spans", kind: Kind::Number },
    Field { name: "startAt", kind: Kind::Time },
    Field { name: "status", kind: Kind::Word(&["ok", "error", "slow", "dead"]) },
    Field { name: "traceId", kind: Kind::Text },
];

impl Filter {
    /// Whether it holds for the thing whose fields `lookup` knows; `None` is a field that the thing does not have.
    pub fn matches(&self, lookup: &impl Fn(&str) -> Option<Value>) -> bool {
        match self {
            Self::And(parts) => parts.iter().all(|part| part.matches(lookup)),
            Self::Or(parts) => parts.iter().any(|part| part.matches(lookup)),
            Self::Not(part) => !part.matches(lookup),
            Self::Compare { field, operator, value } => operator.holds(lookup(field).as_ref(), value),
            Self::In { field, values } => {
                let found = lookup(field);
                values.iter().any(|value| Operator::Equal.holds(found.as_ref(), value))
            }
        }
    }
}

impl Operator {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Equal => "=",
            Self::NotEqual => "!=",
            Self::Less => "<",
            Self::AtMost => "<=",
            Self::Greater => ">",
            Self::AtLeast => ">=",
            Self::Contains => "~",
        }
    }

    fn holds(self, found: Option<&Value>, value: &Value) -> bool {
        use std::cmp::Ordering::{Greater, Less};
        let Some(found) = found else { return self == Self::NotEqual };
        if let Value::Several(all) = found {
            let mut holds = all.iter().map(|one| self.holds(Some(one), value));
            return if self == Self::NotEqual { holds.all(|holds| holds) } else { holds.any(|holds| holds) };
        }
        let order = match (found, value) {
            (Value::Text(found), Value::Text(value)) => {
                if self == Self::Contains {
                    return found.to_lowercase().contains(&value.to_lowercase());
                }
                Some(found.cmp(value))
            }
            (Value::Number(found), Value::Number(value)) => found.partial_cmp(value),
            (Value::Duration(found), Value::Duration(value)) => Some(found.cmp(value)),
            (Value::Time(found), Value::Time(value)) => Some(found.cmp(value)),
            // Things of different kinds are never equal and stand in no order.
            _ => None,
        };
        match self {
            Self::Equal => order.is_some_and(|order| order.is_eq()),
            Self::NotEqual => !order.is_some_and(|order| order.is_eq()),
            Self::Less => order == Some(Less),
            Self::AtMost => order.is_some_and(|order| order.is_le()),
            Self::Greater => order == Some(Greater),
            Self::AtLeast => order.is_some_and(|order| order.is_ge()),
            Self::Contains => false,
        }
    }
}

/// As it may be written: parsed again it is the same filter.
impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let joined = |f: &mut fmt::Formatter<'_>, parts: &[Self], word: &str, loose: fn(&Self) -> bool| {
            for (at, part) in parts.iter().enumerate() {
                if at > 0 {
                    write!(f, " {word} ")?;
                }
                if loose(part) { write!(f, "({part})") } else { write!(f, "{part}") }?;
            }
            Ok(())
        };
        match self {
            Self::And(parts) => joined(f, parts, "and", |part| matches!(part, Self::And(_) | Self::Or(_))),
            Self::Or(parts) => joined(f, parts, "or", |part| matches!(part, Self::Or(_))),
            Self::Not(part) if matches!(**part, Self::And(_) | Self::Or(_)) => write!(f, "not ({part})"),
            Self::Not(part) => write!(f, "not {part}"),
            Self::Compare { field, operator, value } => write!(f, "{field} {} {value}", operator.as_str()),
            Self::In { field, values } => {
                let values: Vec<String> = values.iter().map(Value::to_string).collect();
                write!(f, "{field} in ({})", values.join(", "))
            }
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) if parse::is_bare(text) => f.write_str(text),
            Self::Text(text) => write!(f, "\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")),
            Self::Number(number) => write!(f, "{number}"),
            Self::Duration(span) => write!(f, "{span}"),
            Self::Time(time) => write!(f, "{time}"),
            Self::Several(all) => {
                let all: Vec<String> = all.iter().map(Self::to_string).collect();
                f.write_str(&all.join(", "))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn letter(field: &str) -> Option<Value> {
        Some(match field {
            "reason" => Value::Text("poison".into()),
            "channel" => Value::Text("order.placed".into()),
            "error" => Value::Text("POST /events answered 500: Out of Stock".into()),
            "attempts" => Value::Number(6.0),
            "sizeBytes" => Value::Number(70_000.0),
            "age" => Value::Duration(Span::from_secs(7_200)),
            "lastFailedAt" => Value::Time("2026-11-23T10:00:00Z".parse().expect("a time")),
            _ => return None,
        })
    }

    #[test]
    fn what_holds_and_what_does_not() {
        for (text, holds) in [
            ("reason = poison", true),
            ("reason != poison", false),
            ("reason = exhausted or attempts >= 6", true),
            ("reason = poison and age > 1h and (channel = \"order.placed\" or not error ~ timeout)", true),
            ("error ~ 'out of STOCK'", true),
            ("not error ~ stock", false),
            ("channel in (a, order.placed)", true),
            ("channel in (a)", false),
            ("age < 2h", false),
            ("age <= 2h", true),
            ("sizeBytes > 64KiB and sizeBytes < 70001", true),
            ("lastFailedAt > 2026-11-23", true),
            ("lastFailedAt < 2026-11-23T10:00:00+01:00", false),
            // `and` binds closer, `not` closest.
            ("reason = poison or reason = poison and reason = exhausted", true),
            ("(reason = poison or reason = poison) and reason = exhausted", false),
            ("not reason = exhausted and attempts = 6", true),
            // What is not there.
            ("traceId = x", false),
            ("traceId != x", true),
            ("traceId ~ x", false),
            ("key in (a)", false),
            ("not key in (a)", true),
        ] {
            let filter = parse(text, DEAD_LETTER).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(filter.matches(&letter), holds, "{text}");
        }
    }

    #[test]
    fn of_several_one_is_enough_and_none_is_unequal() {
        let trace = |field: &str| {
            let all = ["gateway", "orders"].map(|name| Value::Text(name.into()));
            (field == "service").then(|| Value::Several(all.to_vec()))
        };
        for (text, holds) in [
            ("service = orders", true),
            ("service = billing", false),
            ("service != billing", true),
            ("service != orders", false),
            ("service ~ order", true),
            ("service in (billing, gateway)", true),
            ("not service = orders", false),
        ] {
            let filter = parse(text, TRACE).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(filter.matches(&trace), holds, "{text}");
        }
    }

    fn value(kind: Kind) -> BoxedStrategy<Value> {
        match kind {
            Kind::Text => any::<String>().prop_map(Value::Text).boxed(),
            Kind::Word(words) => prop::sample::select(words).prop_map(|word| Value::Text(word.into())).boxed(),
            Kind::Number => any::<f64>().prop_filter("finite", |n| n.is_finite()).prop_map(Value::Number).boxed(),
            Kind::Size => (0..1_u64 << 50).prop_map(|bytes| Value::Number(bytes as f64)).boxed(),
            Kind::Duration => (0..1_u64 << 40).prop_map(|ms| Value::Duration(Span::from_millis(ms))).boxed(),
            Kind::Time => {
                (0..1_i64 << 41).prop_map(|ms| Value::Time(Timestamp::from_millisecond(ms).expect("in range"))).boxed()
            }
        }
    }

    fn filter() -> impl Strategy<Value = Filter> {
        let comparison = prop::sample::select(DEAD_LETTER).prop_flat_map(|Field { name, kind }| {
            let compare = (prop::sample::select(parse::operators(kind)), value(kind));
            let compare = compare.prop_map(move |(operator, value)| Filter::Compare { field: name, operator, value });
            let within = prop::collection::vec(value(kind), 1..4);
            prop_oneof![compare, within.prop_map(move |values| Filter::In { field: name, values })]
        });
        comparison.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 2..4).prop_map(Filter::And),
                prop::collection::vec(inner.clone(), 2..4).prop_map(Filter::Or),
                inner.prop_map(|part| Filter::Not(Box::new(part))),
            ]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn printed_and_read_it_is_the_same(filter in filter()) {
            let text = filter.to_string();
            prop_assert_eq!(parse(&text, DEAD_LETTER), Ok(filter), "{}", text);
        }

        #[test]
        fn any_text_is_answered(text in prop_oneof![any::<String>(), "[a-z =<>~!()\"',0-9]{0,40}"]) {
            if let Err(error) = parse(&text, DEAD_LETTER) {
                prop_assert!((1..=text.chars().count() + 1).contains(&error.column), "{}", error);
            }
        }
    }
}
