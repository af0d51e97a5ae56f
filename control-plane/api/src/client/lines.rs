//! An answer without an end, line by line, and the things that come that way.

use std::marker::PhantomData;
use std::sync::Arc;

use reqwest::Response;
use serde::de::DeserializeOwned;

use super::failure;
use crate::error::ApiError;

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

/// What comes as it comes: a JSON object on a line.
#[derive(Debug)]
pub struct Follow<T> {
    lines: Lines,
    what: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> Follow<T> {
    pub(super) fn new(lines: Lines) -> Self {
        Self { lines, what: PhantomData }
    }

    /// The next one; `None` when the daemon has ended, or has given up a reader that is too slow. May be cancelled at any time.
    ///
    /// # Errors
    /// When the connection breaks off or what comes is not understood.
    pub async fn next(&mut self) -> Result<Option<T>, ApiError> {
        while let Some(line) = self.lines.next().await? {
            if !line.is_empty() {
                let read = serde_json::from_str(&line);
                return read.map(Some).map_err(|error| failure::not_understood(std::any::type_name::<T>(), &error));
            }
        }
        Ok(None)
    }
}
