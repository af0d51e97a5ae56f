//! The asynchronous half of the typed client: channels, the ledger, messages, dead letters, replays, the audit.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStream;
use reqwest::{Body, Method, Url};

use super::lines::Lines;
use super::{Client, Follow};
use crate::error::ApiError;
use crate::view::List;
use crate::view::messages::{
    AuditEntry, Channel, DeadLetter, DeadLetterGroup, DeadLetterOutcome, DeadLetterQuery, DeadLetterRequest,
    LedgerEntry, Message, MessageQuery, PauseRequest, PublishRequest, Published, Replay,
};

impl Client {
    pub async fn channels(&self) -> Result<List<Channel>, ApiError> {
        self.get("/v1/channels").await
    }

    pub async fn channel(&self, name: &str) -> Result<Channel, ApiError> {
        self.get(&path(&["channels", name])).await
    }

    /// The messages are durable when this returns, in the order in which they were given.
    pub async fn publish(&self, channel: &str, body: &PublishRequest) -> Result<List<Published>, ApiError> {
        self.post(&path(&["channels", channel, "messages"]), body).await
    }

    /// Delivery stops; publishing goes on. The channel as it is then.
    pub async fn pause_channel(&self, channel: &str, body: &PauseRequest) -> Result<Channel, ApiError> {
        self.post(&path(&["channels", channel, "pause"]), body).await
    }

    pub async fn resume_channel(&self, channel: &str, body: &PauseRequest) -> Result<Channel, ApiError> {
        self.post(&path(&["channels", channel, "resume"]), body).await
    }

    /// Every subscription of every channel.
    pub async fn ledger(&self) -> Result<List<LedgerEntry>, ApiError> {
        self.get("/v1/ledger").await
    }

    /// Messages that channels keep, oldest first. Does not follow: that is [`Self::follow_messages`].
    pub async fn messages(&self, query: &MessageQuery) -> Result<List<Message>, ApiError> {
        self.json(self.request(Method::GET, "/v1/messages").query(&MessageQuery { follow: false, ..query.clone() }))
            .await
    }

    /// The same, and what comes, as it comes.
    pub async fn follow_messages(&self, query: &MessageQuery) -> Result<Follow<Message>, ApiError> {
        let query = MessageQuery { follow: true, ..query.clone() };
        let answer = self.open(self.http.get(self.url("/v1/messages")).query(&query)).await?;
        Ok(Follow::new(Lines::new(answer, Arc::clone(&self.place))))
    }

    /// One message with its payload.
    pub async fn message(&self, id: &str) -> Result<Message, ApiError> {
        self.get(&path(&["messages", id])).await
    }

    /// The dead letters that `query` selects, the latest failure first. Its `group_by` is left out.
    pub async fn dead_letters(&self, query: &DeadLetterQuery) -> Result<List<DeadLetter>, ApiError> {
        let query = DeadLetterQuery { group_by: None, ..query.clone() };
        self.json(self.request(Method::GET, "/v1/deadletters").query(&query)).await
    }

    /// The dead letters that `query` selects, counted by its `group_by`, the largest group first.
    pub async fn dead_letter_groups(&self, query: &DeadLetterQuery) -> Result<List<DeadLetterGroup>, ApiError> {
        self.json(self.request(Method::GET, "/v1/deadletters").query(query)).await
    }

    /// One dead letter with payload, headers and history.
    pub async fn dead_letter(&self, id: &str) -> Result<DeadLetter, ApiError> {
        self.get(&path(&["deadletters", id])).await
    }

    /// `action`: `discard`, `park`, `restore`.
    pub async fn change_dead_letters(
        &self,
        action: &str,
        body: &DeadLetterRequest,
    ) -> Result<DeadLetterOutcome, ApiError> {
        self.post(&path(&["deadletters", action]), body).await
    }

    /// The dead letters that `query` selects, whole, one JSON object on a line.
    pub async fn export(&self, query: &DeadLetterQuery) -> Result<Export, ApiError> {
        let answer = self.open(self.http.get(self.url("/v1/deadletters/export")).query(query)).await?;
        Ok(Export(Lines::new(answer, Arc::clone(&self.place))))
    }

    /// Takes lines in that were exported, or with `dry_run` says what that would come to. What is there already stays as it is
    /// and does not count as changed.
    pub async fn import<E>(
        &self,
        lines: impl TryStream<Ok = Bytes, Error = E> + Send + 'static,
        reason: Option<&str>,
        dry_run: bool,
        timeout: Duration,
    ) -> Result<DeadLetterOutcome, ApiError>
    where
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let query = [("reason", reason), ("dryRun", dry_run.then_some("true"))];
        let request = self.request(Method::POST, "/v1/deadletters/import").timeout(timeout).query(&query);
        let request = request.header("content-type", "application/x-ndjson");
        self.json(request.body(Body::wrap_stream(lines))).await
    }

    /// The set is frozen when this returns; its messages are issued from then on, whoever asks.
    pub async fn start_replay(&self, body: &DeadLetterRequest) -> Result<Replay, ApiError> {
        self.post("/v1/replays", body).await
    }

    /// The latest first.
    pub async fn replays(&self) -> Result<List<Replay>, ApiError> {
        self.get("/v1/replays").await
    }

    pub async fn replay(&self, id: &str) -> Result<Replay, ApiError> {
        self.get(&path(&["replays", id])).await
    }

    /// `action`: `pause`, `resume`, `cancel`. Of `body` only the reason counts.
    pub async fn change_replay(&self, id: &str, action: &str, body: &PauseRequest) -> Result<Replay, ApiError> {
        self.post(&path(&["replays", id, action]), body).await
    }

    /// The last `limit` entries, oldest first; 100 where left out.
    pub async fn audit(&self, limit: Option<u32>) -> Result<List<AuditEntry>, ApiError> {
        self.json(self.request(Method::GET, "/v1/audit").query(&[("limit", limit)])).await
    }
}

/// Dead letters on their way out, as text: they are written down as they came, fields of later versions included.
#[derive(Debug)]
pub struct Export(Lines);

impl Export {
    /// The next line without its end; `None` at the end.
    ///
    /// # Errors
    /// When the connection breaks off.
    pub async fn next(&mut self) -> Result<Option<String>, ApiError> {
        while let Some(line) = self.0.next().await? {
            if !line.is_empty() {
                return Ok(Some(line));
            }
        }
        Ok(None)
    }
}

/// `/v1/channels/order.placed/pause`, with whatever a name holds percent-encoded.
pub(super) fn path(segments: &[&str]) -> String {
    // The address itself plays no part: the socket is the place.
    let mut url = Url::parse("http://meshctl/v1").expect("a constant that is a URL");
    if let Ok(mut path) = url.path_segments_mut() {
        path.extend(segments);
    }
    url.path().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_one_segment_of_a_path() {
        assert_eq!(path(&["channels", "order.placed", "pause"]), "/v1/channels/order.placed/pause");
        assert_eq!(path(&["messages", "a/b?c d%"]), "/v1/messages/a%2Fb%3Fc%20d%25");
    }
}
