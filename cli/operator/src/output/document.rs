//! `-o`: the forms in which a result is written.

use std::cmp::Ordering;
use std::str::FromStr;

use serde::Serialize;
use serde_json::Value;

use super::jsonpath::{JsonPathTemplate, path, query};
use super::print;
use crate::failure::Failure;

/// How a result is written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Format {
    #[default]
    Table,
    /// A table with more columns.
    Wide,
    Json,
    Yaml,
    /// `service/orders`, one a line.
    Name,
    JsonPath(JsonPathTemplate),
}

impl Format {
    /// Refuses `name` where the result is not a list of things that have one.
    pub(crate) fn must_not_be_names(&self) -> Result<(), Failure> {
        match self {
            Self::Name => Err(Failure::usage("`-o name` lists things by their names, and there are none here")
                .hint("use json, yaml or jsonpath=TEMPLATE")),
            _ => Ok(()),
        }
    }

    /// Whether it is for people, who are told more beside it.
    pub(crate) fn for_people(&self) -> bool {
        matches!(self, Self::Table | Self::Wide)
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text {
            "table" => Self::Table,
            "wide" => Self::Wide,
            "json" => Self::Json,
            "yaml" => Self::Yaml,
            "name" => Self::Name,
            _ => match text.strip_prefix("jsonpath=") {
                Some(template) => Self::JsonPath(JsonPathTemplate::parse(template)?),
                None => return Err("one of table, wide, json, yaml, name, jsonpath=TEMPLATE".to_owned()),
            },
        })
    }
}

/// Writes `value` as the document that `format` asks for; false where it asks for a table or names.
pub(crate) fn document(format: &Format, value: &impl Serialize) -> Result<bool, Failure> {
    let unwritable = |error: &dyn std::error::Error| {
        Failure::new(meshctl_model::exit::FAILURE, "cannot write the result").caused_by(error)
    };
    match format {
        Format::Table | Format::Wide | Format::Name => return Ok(false),
        Format::Json => {
            let text = serde_json::to_string_pretty(value).map_err(|error| unwritable(&error))?;
            print(text + "\n")?;
        }
        Format::Yaml => print(serde_yaml::to_string(value).map_err(|error| unwritable(&error))?)?,
        Format::JsonPath(template) => {
            let value = serde_json::to_value(value).map_err(|error| unwritable(&error))?;
            let text = template.fill(&value);
            print(if text.is_empty() || text.ends_with('\n') { text } else { text + "\n" })?;
        }
    }
    Ok(true)
}

/// What a `--sort-by` path finds in an item: the first value.
pub(crate) fn find(value: &Value, sort_by: &str) -> Result<Option<Value>, String> {
    let path = path(sort_by.trim_start_matches('{').trim_end_matches('}'))?;
    Ok(query(value, &path).into_iter().next().cloned())
}

/// The order of values as people sort them: numbers by size, the rest as text, nothing last.
pub(crate) fn order(left: Option<&Value>, right: Option<&Value>) -> Ordering {
    match (left, right) {
        (None | Some(Value::Null), None | Some(Value::Null)) => Ordering::Equal,
        (None | Some(Value::Null), _) => Ordering::Greater,
        (_, None | Some(Value::Null)) => Ordering::Less,
        (Some(Value::Number(left)), Some(Value::Number(right))) => {
            left.as_f64().unwrap_or(f64::NAN).total_cmp(&right.as_f64().unwrap_or(f64::NAN))
        }
        (Some(Value::String(left)), Some(Value::String(right))) => left.cmp(right),
        (Some(left), Some(right)) => left.to_string().cmp(&right.to_string()),
    }
}
