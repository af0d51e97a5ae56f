//! Reads one HTTP/1.1 response after another from bytes as they come: heads are parsed, bodies are counted and skipped where
//! nobody wants them. Invariant: no byte of an answer is kept beyond its turn, except an unfinished head.

use std::mem::MaybeUninit;

/// Longer heads are malformed: the reader's memory per connection is bounded by it.
const MAX_HEAD: usize = 64 * 1024;
const MAX_HEADERS: usize = 96;
/// Of a body that is wanted, no more than this is kept.
const MAX_KEPT: usize = 256 * 1024;

/// What is being read.
#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Head,
    /// So many bytes of body are to come.
    Length(u64),
    /// The digits of a chunk's size, until the end of the line; `extension` where digits have ended.
    ChunkSize {
        size: u64,
        extension: bool,
    },
    Chunk(u64),
    /// The line end after a chunk.
    ChunkEnd,
    /// After the last chunk; `line` bytes of this line have been read.
    Trailer {
        line: usize,
    },
    UntilClose,
}

/// Where a response is at the end of the bytes that were given.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Progress {
    More,
    Done(Done),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Done {
    pub status: u16,
    /// The connection cannot carry another request.
    pub close: bool,
}

/// The bytes are no HTTP/1.1 response.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Malformed;

#[derive(Debug)]
pub(crate) struct Reader {
    state: State,
    done: Done,
    /// A head that has not come whole.
    head: Vec<u8>,
}

impl Reader {
    pub fn new() -> Self {
        Self { state: State::Head, done: Done { status: 0, close: false }, head: Vec::new() }
    }

    /// Reads on; `to_head` says that the request was a HEAD, whose answer has no body whatever its head says. The body is
    /// appended to `keep` where there is one.
    pub fn feed(
        &mut self,
        mut input: &[u8],
        to_head: bool,
        mut keep: Option<&mut Vec<u8>>,
    ) -> Result<Progress, Malformed> {
        loop {
            let (taken, finished) = match self.state {
                State::Head => self.head(input, to_head)?,
                State::Length(left) => {
                    let taken = input.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                    kept(&mut keep, &input[..taken]);
                    self.state = State::Length(left - taken as u64);
                    (taken, left == taken as u64)
                }
                State::UntilClose => {
                    kept(&mut keep, input);
                    (input.len(), false)
                }
                State::Chunk(left) => {
                    let taken = input.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                    kept(&mut keep, &input[..taken]);
                    self.state = if left == taken as u64 { State::ChunkEnd } else { State::Chunk(left - taken as u64) };
                    (taken, false)
                }
                State::ChunkSize { .. } | State::ChunkEnd | State::Trailer { .. } => match input.first() {
                    Some(&byte) => (1, self.framing(byte)?),
                    None => (0, false),
                },
            };
            input = &input[taken..];
            if finished {
                // Nobody has asked for another answer: what follows belongs to none.
                let done = Done { close: self.done.close || !input.is_empty(), ..self.done };
                self.state = State::Head;
                return Ok(Progress::Done(done));
            }
            if input.is_empty() {
                return Ok(Progress::More);
            }
        }
    }

    /// The connection has ended: which is the end of some answers.
    pub fn end(&mut self) -> Option<Done> {
        (self.state == State::UntilClose).then_some(self.done)
    }

    /// How many bytes it took, and whether the response ends with its head.
    fn head(&mut self, input: &[u8], to_head: bool) -> Result<(usize, bool), Malformed> {
        if self.head.is_empty() {
            match self.parse(input, to_head)? {
                Some(parsed) => return Ok(parsed),
                None => self.head.extend_from_slice(input),
            }
            return Ok((input.len(), false));
        }
        let before = self.head.len();
        let mut head = std::mem::take(&mut self.head);
        head.extend_from_slice(input);
        match self.parse(&head, to_head)? {
            Some((taken, finished)) => Ok((taken - before, finished)),
            None if head.len() > MAX_HEAD => Err(Malformed),
            None => {
                self.head = head;
                Ok((input.len(), false))
            }
        }
    }

    /// `None` where the head has not ended. Sets what comes after it.
    fn parse(&mut self, bytes: &[u8], to_head: bool) -> Result<Option<(usize, bool)>, Malformed> {
        if bytes.is_empty() {
            return Ok(None);
        }
        let mut headers = [const { MaybeUninit::uninit() }; MAX_HEADERS];
        let mut response = httparse::Response::new(&mut []);
        let taken = match httparse::ParserConfig::default()
            .parse_response_with_uninit_headers(&mut response, bytes, &mut headers)
            .map_err(|_| Malformed)?
        {
            httparse::Status::Complete(taken) => taken,
            httparse::Status::Partial => return Ok(None),
        };
        let status = response.code.ok_or(Malformed)?;
        let mut close = response.version == Some(0);
        let (mut length, mut chunked) = (None, false);
        for header in response.headers.iter() {
            // The length first: no comparison of text for the many headers that do not matter.
            match header.name.len() {
                10 if header.name.eq_ignore_ascii_case("connection") => {
                    if has_token(header.value, b"close") {
                        close = true;
                    } else if has_token(header.value, b"keep-alive") {
                        close = false;
                    }
                }
                14 if header.name.eq_ignore_ascii_case("content-length") => length = Some(number(header.value)?),
                17 if header.name.eq_ignore_ascii_case("transfer-encoding") => {
                    chunked = has_token(header.value, b"chunked");
                }
                _ => {}
            }
        }
        if (100..200).contains(&status) {
            // An interim answer: the real one follows. 101 was never asked for.
            return if status == 101 { Err(Malformed) } else { Ok(Some((taken, false))) };
        }
        self.done = Done { status, close };
        if to_head || status == 204 || status == 304 {
            return Ok(Some((taken, true)));
        }
        self.state = match (chunked, length) {
            (true, _) => State::ChunkSize { size: 0, extension: false },
            (false, Some(0)) => return Ok(Some((taken, true))),
            (false, Some(length)) => State::Length(length),
            (false, None) => {
                self.done.close = true;
                State::UntilClose
            }
        };
        Ok(Some((taken, false)))
    }

    /// One byte between chunks; true where it was the last of the response.
    fn framing(&mut self, byte: u8) -> Result<bool, Malformed> {
        self.state = match (self.state, byte) {
            (State::ChunkSize { size: 0, .. }, b'\n') => State::Trailer { line: 0 },
            (State::ChunkSize { size, .. }, b'\n') => State::Chunk(size),
            (State::ChunkSize { size, .. }, b'\r' | b';' | b' ') => State::ChunkSize { size, extension: true },
            (State::ChunkSize { size, extension: false }, digit) => {
                let value = (digit as char).to_digit(16).ok_or(Malformed)?;
                let size = size.checked_mul(16).ok_or(Malformed)? + u64::from(value);
                State::ChunkSize { size, extension: false }
            }
            (State::ChunkEnd, b'\n') => State::ChunkSize { size: 0, extension: false },
            (State::ChunkEnd, b'\r') => State::ChunkEnd,
            (State::ChunkEnd, _) => return Err(Malformed),
            (State::Trailer { line: 0 }, b'\n') => return Ok(true),
            (State::Trailer { .. }, b'\n') => State::Trailer { line: 0 },
            (State::Trailer { line }, b'\r') => State::Trailer { line },
            (State::Trailer { line }, _) if line < MAX_HEAD => State::Trailer { line: line + 1 },
            (State::Trailer { .. }, _) => return Err(Malformed),
            (state, _) => state,
        };
        Ok(false)
    }
}

fn kept(keep: &mut Option<&mut Vec<u8>>, bytes: &[u8]) {
    if let Some(keep) = keep {
        let room = MAX_KEPT.saturating_sub(keep.len());
        keep.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }
}

fn has_token(value: &[u8], token: &[u8]) -> bool {
    value.split(|&byte| byte == b',').any(|part| part.trim_ascii().eq_ignore_ascii_case(token))
}

fn number(value: &[u8]) -> Result<u64, Malformed> {
    std::str::from_utf8(value.trim_ascii()).ok().and_then(|text| text.parse().ok()).ok_or(Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn done(status: u16, close: bool) -> Progress {
        Progress::Done(Done { status, close })
    }

    /// The same bytes at once, and one by one: the end must be at the last byte either way.
    fn read(bytes: &[u8]) -> (Progress, Vec<u8>) {
        let (mut at_once, mut body) = (Reader::new(), Vec::new());
        let whole = at_once.feed(bytes, false, Some(&mut body)).expect("well-formed");
        let (mut one_by_one, mut same) = (Reader::new(), Vec::new());
        for (i, byte) in bytes.iter().enumerate() {
            let progress = one_by_one.feed(&[*byte], false, Some(&mut same)).expect("well-formed");
            match i + 1 == bytes.len() {
                true => assert_eq!(progress, whole),
                false => assert_eq!(progress, Progress::More, "after {i} bytes"),
            }
        }
        assert_eq!(body, same);
        (whole, body)
    }

    #[test]
    fn bodies_end_where_they_say() {
        let cases: [(&[u8], Progress, &[u8]); 7] = [
            (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", done(200, false), b"hello"),
            (b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\nConnection: close\r\n\r\n", done(503, true), b""),
            (b"HTTP/1.1 204 No Content\r\n\r\n", done(204, false), b""),
            (b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\nx", done(200, true), b"x"),
            (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx", done(200, false), b"x"),
            (
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n1\r\n!\r\n0\r\nT: x\r\n\r\n",
                done(200, false),
                b"hello!",
            ),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", done(200, false), b""),
        ];
        for (bytes, progress, body) in cases {
            let text = String::from_utf8_lossy(bytes);
            assert_eq!(read(bytes), (progress, body.to_vec()), "{text}");
        }
    }

    #[test]
    fn an_answer_without_a_length_ends_with_its_connection() {
        let mut reader = Reader::new();
        assert_eq!(reader.feed(b"HTTP/1.1 200 OK\r\n\r\nsome", false, None), Ok(Progress::More));
        assert_eq!(reader.end(), Some(Done { status: 200, close: true }));
    }

    #[test]
    fn half_an_answer_is_none() {
        let mut reader = Reader::new();
        assert_eq!(reader.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel", false, None), Ok(Progress::More));
        assert_eq!(reader.end(), None);
    }

    #[test]
    fn the_answer_to_a_head_has_no_body() {
        let mut reader = Reader::new();
        assert_eq!(reader.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", true, None), Ok(done(200, false)));
    }

    #[test]
    fn a_connection_with_more_than_was_asked_for_is_not_used_again() {
        let mut reader = Reader::new();
        assert_eq!(reader.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nxHTTP", false, None), Ok(done(200, true)));
    }

    #[test]
    fn what_is_no_answer_is_said_to_be_none() {
        for bytes in [
            &b"SSH-2.0-OpenSSH\r\n"[..],
            b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        ] {
            assert_eq!(Reader::new().feed(bytes, false, None), Err(Malformed), "{}", String::from_utf8_lossy(bytes));
        }
    }
}
