//! From a selection to a condition of SQL. It finds exactly the letters of which the filter holds as they are shown; a test
//! holds the two together.

use jiff::Timestamp;
use meshctl_api::error::{ApiError, ErrorCode};
use meshctl_api::view::messages::DeadLetterQuery;
use meshctl_model::filter::{self, DEAD_LETTER, Filter, Operator};
use rusqlite::functions::FunctionFlags;
use rusqlite::types::Value;
use rusqlite::{Connection, Result};

use super::store::nanos;

/// A condition with the values of its parameters, in order.
#[derive(Clone, Debug, PartialEq)]
pub struct Where {
    pub sql: String,
    pub values: Vec<Value>,
}

impl Where {
    /// All that is given must hold. What is over, processed or discarded, is found only where ids or states are given.
    ///
    /// # Errors
    /// When the filter is none, with the column.
    pub fn of(query: &DeadLetterQuery, now: Timestamp) -> Result<Self, ApiError> {
        let mut condition = Self { sql: "TRUE".into(), values: Vec::new() };
        let mut open_only = true;
        if let Some(ids) = &query.ids {
            let ids: Vec<&str> = ids.split(',').map(str::trim).collect();
            condition.sql.push_str(" AND id IN (SELECT value FROM json_each(?))");
            condition.values.push(Value::Text(serde_json::to_string(&ids).unwrap_or_default()));
            open_only = false;
        }
        if let Some(text) = query.r#where.as_deref().filter(|text| !text.trim().is_empty()) {
            let filter = filter::parse(text, DEAD_LETTER).map_err(|why| {
                ApiError::new(ErrorCode::Invalid, format!("the filter `{text}`: {why}"))
                    .hint("for example: reason = poison and age > 1h")
            })?;
            condition.sql.push_str(" AND ");
            condition.add(&filter, now);
            open_only &= !asks_for_state(&filter);
        }
        if open_only {
            condition.sql.push_str(" AND state IN ('dead', 'parked', 'replaying')");
        }
        Ok(condition)
    }

    /// Appends the filter. Each comparison is true or false, never NULL, so that `not` means what it says.
    fn add(&mut self, filter: &Filter, now: Timestamp) {
        match filter {
            Filter::And(parts) => self.join(parts, " AND ", now),
            Filter::Or(parts) => self.join(parts, " OR ", now),
            Filter::Not(part) => {
                self.sql.push_str("NOT (");
                self.add(part, now);
                self.sql.push(')');
            }
            Filter::Compare { field, operator, value } => self.compare(field, *operator, value, now),
            Filter::In { field, values } => {
                for (at, value) in values.iter().enumerate() {
                    self.sql.push_str(if at == 0 { "(" } else { " OR " });
                    self.compare(field, Operator::Equal, value, now);
                }
                self.sql.push(')');
            }
        }
    }

    fn join(&mut self, parts: &[Filter], word: &str, now: Timestamp) {
        for (at, part) in parts.iter().enumerate() {
            self.sql.push_str(if at == 0 { "(" } else { word });
            self.add(part, now);
        }
        self.sql.push(')');
    }

    fn compare(&mut self, field: &str, operator: Operator, value: &filter::Value, now: Timestamp) {
        let column = column(field);
        let operator = match operator {
            Operator::Equal => "IS",
            Operator::NotEqual => "IS NOT",
            Operator::Contains => {
                self.sql.push_str(&format!("contains({column}, ?)"));
                return self.values.push(parameter(value));
            }
            order => order.as_str(),
        };
        let text = match operator {
            "IS" | "IS NOT" => format!("{column} {operator} ?"),
            _ => format!("coalesce({column} {operator} ?, FALSE)"),
        };
        if column == AGE {
            self.values.push(Value::Integer(nanos(now)));
        }
        self.sql.push_str(&text);
        self.values.push(parameter(value));
    }
}

/// Whole milliseconds since the last failure, as it is shown.
const AGE: &str = "max((? - last_failed_at) / 1000000, 0)";

fn column(field: &str) -> &'static str {
    match field {
        "age" => AGE,
        "attempts" => "attempts",
        "channel" => "channel",
        "class" => "class",
        "error" => "error",
        "fingerprint" => "fingerprint",
        "firstFailedAt" => "first_failed_at",
        "id" => "id",
        "key" => "message_key",
        "lastFailedAt" => "last_failed_at",
        "messageId" => "message_id",
        "reason" => "reason",
        "replayId" => "replay_id",
        "sizeBytes" => "size_bytes",
        "state" => "state",
        "subscription" => "subscription",
        "traceId" => "trace_id",
        "type" => "type",
        // The parser knows the fields above and no other.
        _ => "NULL",
    }
}

fn parameter(value: &filter::Value) -> Value {
    match value {
        filter::Value::Text(text) => Value::Text(text.clone()),
        filter::Value::Number(number) => Value::Real(*number),
        filter::Value::Duration(span) => Value::Integer(i64::try_from(span.as_millis()).unwrap_or(i64::MAX)),
        filter::Value::Time(time) => Value::Integer(nanos(*time)),
        // The parser never makes one.
        filter::Value::Several(_) => Value::Null,
    }
}

fn asks_for_state(filter: &Filter) -> bool {
    match filter {
        Filter::And(parts) | Filter::Or(parts) => parts.iter().any(asks_for_state),
        Filter::Not(part) => asks_for_state(part),
        Filter::Compare { field, .. } | Filter::In { field, .. } => *field == "state",
    }
}

/// Teaches a connection `contains(text, part)`, which overlooks case as the filter does; SQLite's own knows only ASCII.
pub fn teach(connection: &Connection) -> Result<()> {
    let flags = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DETERMINISTIC;
    connection.create_scalar_function("contains", 2, flags, |context| {
        let Some(text) = context.get_raw(0).as_str_or_null()? else { return Ok(false) };
        let part = context.get_or_create_aux(1, |part| Ok::<_, rusqlite::Error>(part.as_str()?.to_lowercase()))?;
        Ok(text.to_lowercase().contains(part.as_str()))
    })
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;
    use meshctl_api::view::messages::DeadLetter;
    use meshctl_model::filter::Value as Of;
    use meshctl_model::units::Span;
    use proptest::prelude::*;

    use super::super::letters;
    use super::super::store::in_memory;
    use super::*;

    fn now() -> Timestamp {
        "2026-11-23T12:00:00.000000789Z".parse().expect("a time")
    }

    /// What the filter is told of a letter as it is shown.
    fn field(letter: &DeadLetter, name: &str) -> Option<Of> {
        let text = |text: &str| Some(Of::Text(text.to_owned()));
        match name {
            "age" => {
                let age = now().duration_since(letter.last_failed_at).as_millis();
                Some(Of::Duration(Span::from_millis(u64::try_from(age).unwrap_or(0))))
            }
            "attempts" => Some(Of::Number(f64::from(letter.attempts))),
            "channel" => text(&letter.channel),
            "class" => text(&letter.class),
            "error" => text(&letter.error),
            "fingerprint" => text(&letter.fingerprint),
            "firstFailedAt" => Some(Of::Time(letter.first_failed_at)),
            "id" => text(&letter.id),
            "key" => text(letter.key.as_deref()?),
            "lastFailedAt" => Some(Of::Time(letter.last_failed_at)),
            "messageId" => text(&letter.message_id),
            "reason" => text(letter.reason.as_str()),
            "replayId" => text(letter.replay_id.as_deref()?),
            "sizeBytes" => Some(Of::Number(letter.size_bytes as f64)),
            "state" => text(&letter.state),
            "subscription" => text(&letter.subscription),
            "traceId" => text(letter.trace_id.as_deref()?),
            "type" => text(&letter.kind),
            other => panic!("the filter knows {other}, and the store does not"),
        }
    }

    /// Letters in which the values below occur, with everything that may be missing missing in some.
    fn store() -> Connection {
        let connection = in_memory();
        for number in 0..60_i64 {
            let optional = |text: &str, each: i64| (number % each != 0).then(|| text.to_owned());
            let error = ["answered 500: Größe x", "TIMEOUT after 10s", "Ünïcode \"quoted\"", ""][number as usize % 4];
            let last = now() - SignedDuration::from_millis(number * 61_000 - 120_000);
            connection
                .execute(
                    "INSERT INTO letters VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, 'f', ?10, ?11, ?12, ?13, ?14, ?15,
                         NULL, ?16, ?17, NULL)",
                    rusqlite::params![
                        number,
                        format!("{number:016x}"),
                        ["a", "b"][number as usize % 2],
                        ["billing", "shipping"][number as usize / 2 % 2],
                        format!("message-{number}"),
                        "a",
                        ["poison", "exhausted"][number as usize % 2],
                        ["rejected", "refused", "timeout"][number as usize % 3],
                        error,
                        number % 7,
                        nanos(last) - 1_000_000_000,
                        nanos(last),
                        optional("trace", 3),
                        ["dead", "parked", "replaying", "processed", "discarded"][number as usize % 5],
                        optional("replay", 4),
                        optional("k1", 2),
                        number * 1000,
                    ],
                )
                .expect("written");
        }
        connection
    }

    fn value() -> impl Strategy<Value = &'static str> {
        prop::sample::select(vec![
            "a",
            "b",
            "billing",
            "x",
            "größe",
            "timeout",
            "ü",
            "trace",
            "replay",
            "k1",
            "message-7",
        ])
    }

    fn comparison() -> impl Strategy<Value = String> {
        let order = || prop::sample::select(vec!["=", "!=", "<", "<=", ">", ">="]);
        let text = || {
            prop::sample::select(vec![
                "channel",
                "subscription",
                "error",
                "key",
                "replayId",
                "traceId",
                "type",
                "messageId",
            ])
        };
        prop_oneof![
            (text(), prop::sample::select(vec!["=", "!=", "~"]), value())
                .prop_map(|(f, o, v)| format!("{f} {o} \"{v}\"")),
            (text(), prop::collection::vec(value(), 1..4))
                .prop_map(|(f, v)| format!("{f} in (\"{}\")", v.join("\", \""))),
            (order(), 0..8).prop_map(|(o, v)| format!("attempts {o} {v}")),
            (order(), 0..60).prop_map(|(o, v)| format!("sizeBytes {o} {v}000")),
            (order(), 0..60).prop_map(|(o, v)| format!("age {o} {v}m")),
            (order(), 0..60).prop_map(|(o, v)| format!("lastFailedAt {o} 2026-11-23T11:{v:02}:00Z")),
            prop::sample::select(vec!["reason = poison", "class != timeout", "state in (dead, processed)"])
                .prop_map(str::to_owned),
        ]
    }

    fn filter() -> impl Strategy<Value = String> {
        comparison().prop_recursive(4, 16, 3, |inner| {
            prop_oneof![
                (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a} and {b})")),
                (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a} or {b})")),
                inner.prop_map(|part| format!("not ({part})")),
            ]
        })
    }

    fn found(connection: &Connection, query: DeadLetterQuery) -> Vec<DeadLetter> {
        let query = DeadLetterQuery { limit: Some(0), ..query };
        let wanted = Where::of(&query, now()).unwrap_or_else(|why| panic!("{:?}: {why}", query.r#where));
        letters::list(connection, &query, &wanted).unwrap_or_else(|why| panic!("{}: {why:?}", wanted.sql))
    }

    #[test]
    fn sql_finds_what_the_filter_holds_for() {
        let connection = store();
        let states = "state in (dead, parked, replaying, processed, discarded)".to_owned();
        let all = found(&connection, DeadLetterQuery { r#where: Some(states), ..DeadLetterQuery::default() });
        assert_eq!(all.len(), 60);
        let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
            failure_persistence: None,
            cases: 2000,
            ..ProptestConfig::default()
        });
        let outcome = runner.run(&filter(), |text| {
            let parsed =
                filter::parse(&text, DEAD_LETTER).map_err(|why| TestCaseError::fail(format!("{text}: {why}")))?;
            let open = |letter: &&DeadLetter| {
                asks_for_state(&parsed) || matches!(letter.state.as_str(), "dead" | "parked" | "replaying")
            };
            let expected: Vec<_> =
                all.iter().filter(open).filter(|letter| parsed.matches(&|name: &str| field(letter, name))).collect();
            let found = found(&connection, DeadLetterQuery { r#where: Some(text), ..DeadLetterQuery::default() });
            prop_assert_eq!(found.iter().collect::<Vec<_>>(), expected);
            Ok(())
        });
        outcome.unwrap_or_else(|why| panic!("{why}"));
    }

    #[test]
    fn every_field_of_the_filter_is_a_column() {
        let unknown: Vec<_> = DEAD_LETTER.iter().filter(|field| column(field.name) == "NULL").collect();
        assert!(unknown.is_empty(), "{unknown:?}");
    }

    #[test]
    fn what_is_over_is_found_where_it_is_asked_for() {
        let connection = store();
        let states = |query: DeadLetterQuery| {
            let mut states: Vec<_> = found(&connection, query).into_iter().map(|letter| letter.state).collect();
            states.sort();
            states.dedup();
            states
        };
        assert_eq!(states(DeadLetterQuery::default()), ["dead", "parked", "replaying"]);
        let over = DeadLetterQuery { r#where: Some("state = processed".into()), ..DeadLetterQuery::default() };
        assert_eq!(states(over), ["processed"]);
        let ids = DeadLetterQuery { ids: Some(format!("{:016x}, {:016x}", 4, 6)), ..DeadLetterQuery::default() };
        assert_eq!(states(ids), ["discarded", "parked"]);
    }

    #[test]
    fn a_filter_that_is_none_is_refused_with_its_column() {
        let query = DeadLetterQuery { r#where: Some("resaon = poison".into()), ..DeadLetterQuery::default() };
        let refused = Where::of(&query, now()).expect_err("it is refused");
        assert_eq!(refused.code, ErrorCode::Invalid);
        assert!(refused.message.contains("reason"), "{}", refused.message);
    }
}
