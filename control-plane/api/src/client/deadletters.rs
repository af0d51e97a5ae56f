//! Calls about dead letters, replays and the audit.

use reqwest::{Body, Method};
use serde_json::json;

use super::lines::Lines;
use super::{Client, failure};
use crate::error::ApiError;
use crate::view::List;
use crate::view::messages::{
    AuditEntry, DeadLetter, DeadLetterGroup, DeadLetterOutcome, DeadLetterQuery, DeadLetterRequest, Replay,
};

/// What is done to dead letters, beside replays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeadLetterAction {
    Discard,
    Park,
    Restore,
}

/// What is done to a replay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplayAction {
    Pause,
    Resume,
    Cancel,
}

impl Client {
    /// The latest failure first; `group_by` is not looked at.
    pub async fn dead_letters(&self, query: &DeadLetterQuery) -> Result<List<DeadLetter>, ApiError> {
        let query = DeadLetterQuery { group_by: None, ..query.clone() };
        self.json(self.request(Method::GET, "/v1/deadletters").query(&query)).await
    }

    /// Counted by `query.group_by`, the largest group first.
    pub async fn dead_letter_groups(&self, query: &DeadLetterQuery) -> Result<List<DeadLetterGroup>, ApiError> {
        let query = DeadLetterQuery { group_by: Some(query.group_by.clone().unwrap_or_default()), ..query.clone() };
        self.json(self.request(Method::GET, "/v1/deadletters").query(&query)).await
    }

    /// With headers, payload and history.
    pub async fn dead_letter(&self, id: &str) -> Result<DeadLetter, ApiError> {
        self.get(&format!("/v1/deadletters/{}", segment(id))).await
    }

    pub async fn change_dead_letters(
        &self,
        action: DeadLetterAction,
        body: &DeadLetterRequest,
    ) -> Result<DeadLetterOutcome, ApiError> {
        let action = match action {
            DeadLetterAction::Discard => "discard",
            DeadLetterAction::Park => "park",
            DeadLetterAction::Restore => "restore",
        };
        self.post(&format!("/v1/deadletters/{action}"), body).await
    }

    /// Whole dead letters, oldest first.
    pub async fn export_dead_letters(&self, query: &DeadLetterQuery) -> Result<Export, ApiError> {
        let answer = self.open(self.http.get(self.url("/v1/deadletters/export")).query(query)).await?;
        Ok(Export(Lines::new(answer, self.place.clone())))
    }

    /// Takes in what an export wrote: NDJSON, as long as it may be.
    pub async fn import_dead_letters(
        &self,
        ndjson: impl Into<Body>,
        reason: Option<&str>,
    ) -> Result<DeadLetterOutcome, ApiError> {
        // As long as the file takes: only a daemon that is gone ends it.
        let request = self.http.post(self.url("/v1/deadletters/import")).query(&[("reason", reason)]);
        self.json(request.header("content-type", "application/x-ndjson").body(ndjson)).await
    }

    pub async fn replay(&self, body: &DeadLetterRequest) -> Result<Replay, ApiError> {
        self.post("/v1/replays", body).await
    }

    /// The latest first.
    pub async fn replays(&self) -> Result<List<Replay>, ApiError> {
        self.get("/v1/replays").await
    }

    pub async fn show_replay(&self, id: &str) -> Result<Replay, ApiError> {
        self.get(&format!("/v1/replays/{}", segment(id))).await
    }

    pub async fn steer_replay(&self, id: &str, action: ReplayAction, reason: Option<&str>) -> Result<Replay, ApiError> {
        let action = match action {
            ReplayAction::Pause => "pause",
            ReplayAction::Resume => "resume",
            ReplayAction::Cancel => "cancel",
        };
        self.post(&format!("/v1/replays/{}/{action}", segment(id)), &json!({"reason": reason})).await
    }

    /// The last `limit` entries (100 where left out), oldest first. With `verify` an audit that was tampered with is an error.
    pub async fn audit(&self, limit: Option<u32>, verify: bool) -> Result<List<AuditEntry>, ApiError> {
        let request = self.request(Method::GET, "/v1/audit").query(&[("limit", limit)]);
        self.json(request.query(&[("verify", verify)])).await
    }
}

/// Dead letters as they arrive.
#[derive(Debug)]
pub struct Export(Lines);

impl Export {
    /// The next one as it stands in the file, without the end of its line; `None` at the end.
    ///
    /// # Errors
    /// When the connection breaks off.
    pub async fn next_line(&mut self) -> Result<Option<String>, ApiError> {
        self.0.next().await
    }

    /// The next one; `None` at the end.
    ///
    /// # Errors
    /// When the connection breaks off or what comes is no dead letter.
    pub async fn next(&mut self) -> Result<Option<DeadLetter>, ApiError> {
        let Some(line) = self.0.next().await? else { return Ok(None) };
        serde_json::from_str(&line).map(Some).map_err(|error| failure::not_understood("/v1/deadletters/export", &error))
    }
}

/// What a user typed, as one segment of a path.
fn segment(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'~' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}
