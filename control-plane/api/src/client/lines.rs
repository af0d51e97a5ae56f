//! An answer without an end, line by line, and the logs that come that way.

use std::sync::Arc;

use reqwest::Response;

use super::failure;
use crate::error::ApiError;
use crate::view::LogLine;

/// The longest line that is taken: a snapshot of thousands of services fits well.
const LONGEST: usize = 64 << 20;

/// The lines of an answer as they arrive. Dropping it closes the connection.
#[derive(Debug)]
pub(super) struct Lines {
    answer: Response,
    place: Arc<str>,
    buffer: Vec<u8>,
    /// How much of the buffer is known to hold no end of line.
    searched: usize,
}

impl Lines {
    pub(super) fn new(answer: Response, place: Arc<str>) -> Self {
        Self { answer, place, buffer: Vec::new(), searched: 0 }
    }

    /// The next whole line without its end; `None` at the end. What is cut off is dropped: it would be half a message.
    /// May be cancelled at any time without losing anything.
    pub(super) async fn next(&mut self) -> Result<Option<String>, ApiError> {
        loop {
            if let Some(at) = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=self.searched + at).collect();
                self.searched = 0;
                return Ok(Some(String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']).to_owned()));
            }
            self.searched = self.buffer.len();
            if self.searched > LONGEST {
                let error = ApiError::new(crate::error::ErrorCode::Internal, "the daemon sent a line without end");
                return Err(error.hint("it may be of another version: compare with `meshctl version`"));
            }
            match self.answer.chunk().await.map_err(|error| failure::transport(&self.place, error))? {
                Some(bytes) => self.buffer.extend_from_slice(&bytes),
                None => return Ok(None),
            }
        }
    }
}

/// Lines of output as they arrive.
#[derive(Debug)]
pub struct Logs(Lines);

impl Logs {
    pub(super) fn new(answer: Response, place: Arc<str>) -> Self {
        Self(Lines::new(answer, place))
    }

    /// The next line; `None` at the end.
    ///
    /// # Errors
    /// When the connection breaks off or what comes is not a line of output.
    pub async fn next(&mut self) -> Result<Option<LogLine>, ApiError> {
        while let Some(line) = self.0.next().await? {
            if !line.is_empty() {
                let line = serde_json::from_str(&line).map_err(|error| failure::not_understood("/v1/logs", &error))?;
                return Ok(Some(line));
            }
        }
        Ok(None)
    }
}
