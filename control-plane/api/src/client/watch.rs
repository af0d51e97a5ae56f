//! Following the daemon: server-sent events, resumed after the last one seen when the connection breaks off, and made whole
//! again where the daemon could not wait for this reader.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::lines::Lines;
use super::{Client, failure};
use crate::error::{ApiError, ErrorCode};
use crate::view::Told;

/// Between attempts to come back.
const PAUSE: Duration = Duration::from_millis(100);
/// Missed events that are fetched at once.
const PAGE: usize = 1000;

/// What the daemon tells, in order, without gaps and each event once: what was missed comes before what follows it.
#[derive(Debug)]
pub struct Watch {
    client: Client,
    return_within: Duration,
    /// The last event that was handed over, or that the first snapshot holds.
    after: Option<String>,
    /// `None` while the connection is broken.
    lines: Option<Lines>,
    broken_since: Option<Instant>,
    /// When this connection must have said something; `None` once it has.
    begins_by: Option<Instant>,
    message: Message,
    /// Whether this connection's first snapshot has come. A later one says that events before it were left out.
    has_begun: bool,
    /// A later snapshot; it is handed over after the events that it stands for.
    catching_up: Option<Told>,
    /// Fetched, and to be handed over before anything else.
    fetched: VecDeque<Told>,
}

/// What a watch hears next.
#[derive(Debug)]
pub enum Heard {
    Told(Box<Told>),
    /// The connection broke off; from now on the watch tries to come back.
    Broken,
    /// The daemon is gone and did not come back in time.
    Ended,
}

/// The message that is being read.
#[derive(Debug, Default)]
struct Message {
    id: Option<String>,
    data: String,
}

impl Watch {
    pub(super) async fn open(client: Client, after: Option<String>, return_within: Duration) -> Result<Self, ApiError> {
        let begins_by = Instant::now() + client.patience;
        let lines = Some(connect(&client, after.as_deref()).await?);
        Ok(Self {
            client,
            return_within,
            after,
            lines,
            broken_since: None,
            begins_by: Some(begins_by),
            message: Message::default(),
            has_begun: false,
            catching_up: None,
            fetched: VecDeque::new(),
        })
    }

    /// The next thing told; `None` when the daemon is gone and did not come back in time. May be cancelled at any time.
    ///
    /// # Errors
    /// When the daemon refuses, or says something that is not understood.
    pub async fn next(&mut self) -> Result<Option<Told>, ApiError> {
        loop {
            match self.hear().await? {
                Heard::Told(told) => return Ok(Some(*told)),
                Heard::Broken => {}
                Heard::Ended => return Ok(None),
            }
        }
    }

    /// As [`Self::next`], for who wants to know of breaks too.
    ///
    /// # Errors
    /// As [`Self::next`].
    pub async fn hear(&mut self) -> Result<Heard, ApiError> {
        loop {
            if let Some(told) = self.fetched.pop_front() {
                if let Told::Event(event) = &told {
                    self.has_seen(&event.id);
                }
                return Ok(Heard::Told(Box::new(told)));
            }
            if self.catching_up.is_some() {
                self.catch_up().await?;
                continue;
            }
            let Some(lines) = &mut self.lines else {
                if !self.come_back().await? {
                    return Ok(Heard::Ended);
                }
                continue;
            };
            let line = match self.begins_by {
                Some(at) => tokio::time::timeout_at(at, lines.next()).await.map_err(|_| self.client.silent())?,
                None => lines.next().await,
            };
            match line {
                Ok(Some(line)) => {
                    self.begins_by = None;
                    let Some((id, data)) = self.message.take_line(&line) else { continue };
                    let told =
                        serde_json::from_str(&data).map_err(|error| failure::not_understood("/v1/watch", &error))?;
                    if let Some(told) = self.take(id.as_deref(), told) {
                        return Ok(Heard::Told(Box::new(told)));
                    }
                }
                Ok(None) | Err(_) => {
                    self.has_broken();
                    return Ok(Heard::Broken);
                }
            }
        }
    }

    /// What of a message is handed over now.
    fn take(&mut self, id: Option<&str>, told: Told) -> Option<Told> {
        match &told {
            Told::Snapshot(_) if self.has_begun && self.after.is_some() => {
                self.catching_up = Some(told);
                return None;
            }
            Told::Snapshot(_) => self.has_begun = true,
            Told::Event(event) if self.after.as_deref().is_some_and(|after| number(&event.id) <= number(after)) => {
                return None;
            }
            _ => {}
        }
        if let Some(id) = id {
            self.has_seen(id);
        }
        Some(told)
    }

    /// Fetches events that the daemon did not tell. A full page may not be all of them: the snapshot waits for the last.
    async fn catch_up(&mut self) -> Result<(), ApiError> {
        let events = match self.client.events(self.after.as_deref(), Some(PAGE), None).await {
            Ok(events) => events.items,
            Err(error) if is_absent(&error) => {
                // Whoever comes back is told what was missed.
                self.has_broken();
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let last = self.after.as_deref().map_or(0, number);
        let are_all = events.len() < PAGE;
        self.fetched.extend(events.into_iter().filter(|event| number(&event.id) > last).map(Told::Event));
        if are_all || self.fetched.is_empty() {
            self.fetched.extend(self.catching_up.take());
        }
        Ok(())
    }

    /// One attempt to resume; false when the time for it is over.
    async fn come_back(&mut self) -> Result<bool, ApiError> {
        if self.broken_since.is_none_or(|since| since.elapsed() >= self.return_within) {
            return Ok(false);
        }
        let begins_by = Instant::now() + self.client.patience;
        match connect(&self.client, self.after.as_deref()).await {
            Ok(lines) => {
                self.lines = Some(lines);
                self.begins_by = Some(begins_by);
                self.broken_since = None;
            }
            Err(error) if is_absent(&error) => tokio::time::sleep(PAUSE).await,
            Err(error) => return Err(error),
        }
        Ok(true)
    }

    fn has_broken(&mut self) {
        self.lines = None;
        self.message = Message::default();
        self.has_begun = false;
        self.catching_up = None;
        self.broken_since = Some(Instant::now());
    }

    /// Messages that are no events carry the id of the last one told, which may lie before those that were fetched.
    fn has_seen(&mut self, id: &str) {
        if self.after.as_deref().is_none_or(|after| number(id) > number(after)) {
            self.after = Some(id.to_owned());
        }
    }
}

/// Not there yet, or there and not ready: a daemon that starts is both for a moment.
fn is_absent(error: &ApiError) -> bool {
    matches!(error.code, ErrorCode::Unreachable | ErrorCode::Silent | ErrorCode::Unavailable)
}

/// Ids of events are numbers that rise.
fn number(id: &str) -> u64 {
    id.parse().unwrap_or(0)
}

async fn connect(client: &Client, after: Option<&str>) -> Result<Lines, ApiError> {
    let request = client.http.get(client.url("/v1/watch")).query(&[("after", after)]);
    let answer = client.open(request).await?;
    Ok(Lines::new(answer, client.place.clone()))
}

impl Message {
    /// Takes one line; the id and data of a message when that line ended one that has any. One that is cut off in the
    /// middle does not count as seen, and is asked for again.
    fn take_line(&mut self, line: &str) -> Option<(Option<String>, String)> {
        if line.is_empty() {
            let message = std::mem::take(self);
            return (!message.data.is_empty()).then_some((message.id, message.data));
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
        let mut message = Message::default();
        let mut read = |text: &str| text.lines().filter_map(|line| message.take_line(line)).collect::<Vec<_>>();
        assert_eq!(
            read(": keep-alive\n\nevent: told\nid: 5\ndata: {\"a\":\ndata:1}\n\n"),
            [(Some("5".to_owned()), "{\"a\":\n1}".to_owned())]
        );
        assert_eq!(read("id: 6\ndata: cut"), [], "half a message is none");
    }
}
