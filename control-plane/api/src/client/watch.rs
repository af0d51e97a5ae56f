//! Following the daemon: server-sent events, resumed after the last one seen when the connection breaks off.

use std::time::Duration;

use tokio::time::Instant;

use super::lines::Lines;
use super::{Client, failure};
use crate::error::{ApiError, ErrorCode};
use crate::view::Told;

/// Between attempts to come back.
const PAUSE: Duration = Duration::from_millis(100);

/// What the daemon tells, in order and without gaps: after a break the missed events come first.
#[derive(Debug)]
pub struct Watch {
    client: Client,
    return_within: Duration,
    after: Option<String>,
    /// `None` while the connection is broken.
    lines: Option<Lines>,
    broken_since: Option<Instant>,
    message: Message,
}

/// The message that is being read.
#[derive(Debug, Default)]
struct Message {
    id: Option<String>,
    data: String,
}

impl Watch {
    pub(super) async fn open(client: Client, after: Option<String>, return_within: Duration) -> Result<Self, ApiError> {
        let lines = connect(&client, after.as_deref()).await?;
        Ok(Self { client, return_within, after, lines: Some(lines), broken_since: None, message: Message::default() })
    }

    /// The next thing told; `None` when the daemon is gone and did not come back in time. May be cancelled at any time.
    ///
    /// # Errors
    /// When the daemon refuses, or says something that is not understood.
    pub async fn next(&mut self) -> Result<Option<Told>, ApiError> {
        loop {
            let Some(lines) = &mut self.lines else {
                if !self.come_back().await? {
                    return Ok(None);
                }
                continue;
            };
            match lines.next().await {
                Ok(Some(line)) => {
                    if let Some(data) = self.message.take_line(&line, &mut self.after) {
                        let told = serde_json::from_str(&data);
                        return told.map(Some).map_err(|error| failure::not_understood("/v1/watch", &error));
                    }
                }
                Ok(None) | Err(_) => {
                    self.lines = None;
                    self.message = Message::default();
                    self.broken_since = Some(Instant::now());
                }
            }
        }
    }

    /// One attempt to resume; false when the time for it is over.
    async fn come_back(&mut self) -> Result<bool, ApiError> {
        if self.broken_since.is_none_or(|since| since.elapsed() >= self.return_within) {
            return Ok(false);
        }
        match connect(&self.client, self.after.as_deref()).await {
            Ok(lines) => {
                self.lines = Some(lines);
                self.broken_since = None;
            }
            // Not there yet, or there and not ready: a daemon that starts is both for a moment.
            Err(error) if matches!(error.code, ErrorCode::Unreachable | ErrorCode::Unavailable) => {
                tokio::time::sleep(PAUSE).await;
            }
            Err(error) => return Err(error),
        }
        Ok(true)
    }
}

async fn connect(client: &Client, after: Option<&str>) -> Result<Lines, ApiError> {
    let request = client.http.get(client.url("/v1/watch")).query(&[("after", after)]);
    let answer = client.open(request).await?;
    Ok(Lines::new(answer, client.place.clone()))
}

impl Message {
    /// Takes one line; the data of a message when that line ended one that has any. `last_id` follows the messages that
    /// are complete, so that one cut off in the middle is asked for again.
    fn take_line(&mut self, line: &str, last_id: &mut Option<String>) -> Option<String> {
        if line.is_empty() {
            let message = std::mem::take(self);
            if message.id.is_some() {
                *last_id = message.id;
            }
            return (!message.data.is_empty()).then_some(message.data);
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "id" => self.id = Some(value.to_owned()),
            "data" if self.data.is_empty() => self.data.push_str(value),
            "data" => {
                self.data.push('\n');
                self.data.push_str(value);
            }
            // Comments keep the connection alive; the event's name says nothing that the data does not.
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_its_lines_up_to_an_empty_one() {
        let (mut message, mut last) = (Message::default(), Some("4".to_owned()));
        let mut read = |text: &str| -> Vec<String> {
            text.lines().filter_map(|line| message.take_line(line, &mut last)).collect()
        };
        assert_eq!(read(": keep-alive\n\nevent: told\nid: 5\ndata: {\"a\":\ndata:1}\n\n"), ["{\"a\":\n1}"]);
        assert_eq!(read("id: 6\ndata: cut"), Vec::<String>::new());
        assert_eq!(last.as_deref(), Some("5"), "half a message does not count as seen");
    }
}
