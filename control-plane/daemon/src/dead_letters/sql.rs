//! From a selection to a condition of SQL. What it finds is what the filter, evaluated on the letter as it is shown, says
//! yes to; a test holds the two together.

use jiff::Timestamp;
use meshctl_api::error::ApiError;
use meshctl_api::view::messages::DeadLetterQuery;
use rusqlite::types::Value;

/// A condition with the values of its parameters, in order.
#[derive(Clone, Debug, PartialEq)]
pub struct Where {
    pub sql: String,
    pub values: Vec<Value>,
}

impl Where {
    pub fn of(query: &DeadLetterQuery, _now: Timestamp) -> Result<Self, ApiError> {
        let mut sql = String::from("TRUE");
        let mut values = Vec::new();
        if let Some(ids) = query.ids.as_deref().filter(|ids| !ids.is_empty()) {
            let ids: Vec<&str> = ids.split(',').map(str::trim).collect();
            sql = "id IN (SELECT value FROM json_each(?))".to_owned();
            values.push(Value::Text(serde_json::to_string(&ids).unwrap_or_default()));
        }
        Ok(Self { sql, values })
    }
}
