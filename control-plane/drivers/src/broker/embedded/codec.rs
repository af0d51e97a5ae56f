//! The binary form of frames and messages: big-endian numbers, text and bytes with their length before them. A message is
//! kept, delivered and moved in this form; its headers are never taken apart on the way.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use meshctl_model::message::Message;

/// The longest frame; a batch of messages must fit into it.
pub const LONGEST_FRAME: usize = 64 << 20;
/// Length, kind, request.
pub const FRAME_HEAD: usize = 4 + 1 + 8;

/// What does not decode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("it ends too early")]
    Short,
    #[error("a text in it is not UTF-8")]
    Text,
    #[error("it says {0}, which means nothing here")]
    Value(u64),
    #[error("its headers do not fill their block exactly; {} headers are the most", u16::MAX)]
    Headers,
    #[error("it is {0} bytes long; {LONGEST_FRAME} is the most")]
    Long(usize),
}

/// One frame: `u32` length of what follows, `u8` kind, `u64` request (or consumer), body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub id: u64,
    pub body: Bytes,
}

impl Frame {
    /// Takes the first frame out of `buffer`, if it is there as a whole.
    pub fn take(buffer: &mut BytesMut) -> Result<Option<Self>, Malformed> {
        let Some(mut head) = buffer.get(..4) else { return Ok(None) };
        let length = head.get_u32() as usize;
        if length > LONGEST_FRAME {
            return Err(Malformed::Long(length));
        }
        if length < FRAME_HEAD - 4 {
            return Err(Malformed::Short);
        }
        if buffer.len() < 4 + length {
            buffer.reserve(4 + length - buffer.len());
            return Ok(None);
        }
        let mut frame = buffer.split_to(4 + length).freeze();
        frame.advance(4);
        let (kind, id) = (frame.get_u8(), frame.get_u64());
        Ok(Some(Self { kind, id, body: frame }))
    }
}

/// Writes a frame whose body `write` appends.
pub fn frame(kind: u8, id: u64, write: impl FnOnce(&mut BytesMut)) -> Bytes {
    let mut out = BytesMut::with_capacity(256);
    append_frame(&mut out, kind, id, write);
    out.freeze()
}

/// [`frame`], at the end of `out`.
pub fn append_frame(out: &mut BytesMut, kind: u8, id: u64, write: impl FnOnce(&mut BytesMut)) {
    let start = out.len();
    out.put_u32(0);
    out.put_u8(kind);
    out.put_u64(id);
    write(out);
    let length = u32::try_from(out.len() - start - 4).unwrap_or(u32::MAX);
    if let Some(head) = out.get_mut(start..start + 4) {
        head.copy_from_slice(&length.to_be_bytes());
    }
}

/// A message in the form in which it is kept: texts are checked, headers are one block.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Raw {
    pub id: Bytes,
    pub key: Option<Bytes>,
    pub headers: Bytes,
    pub payload: Bytes,
}

impl Raw {
    /// What counts towards the size of a channel.
    pub fn size(&self) -> u64 {
        (self.key.as_ref().map_or(0, Bytes::len) + self.payload.len()) as u64
    }
}

/// Takes values from the front of a body.
pub struct Reader(pub Bytes);

impl Reader {
    pub fn u8(&mut self) -> Result<u8, Malformed> {
        self.0.try_get_u8().map_err(|_| Malformed::Short)
    }

    pub fn u16(&mut self) -> Result<u16, Malformed> {
        self.0.try_get_u16().map_err(|_| Malformed::Short)
    }

    pub fn u32(&mut self) -> Result<u32, Malformed> {
        self.0.try_get_u32().map_err(|_| Malformed::Short)
    }

    pub fn u64(&mut self) -> Result<u64, Malformed> {
        self.0.try_get_u64().map_err(|_| Malformed::Short)
    }

    pub fn i64(&mut self) -> Result<i64, Malformed> {
        self.0.try_get_i64().map_err(|_| Malformed::Short)
    }

    /// How many items follow, each of at least `least` bytes.
    pub fn count(&mut self, least: usize) -> Result<usize, Malformed> {
        let count = self.u32()? as usize;
        if count.saturating_mul(least) > self.0.len() { Err(Malformed::Short) } else { Ok(count) }
    }

    pub fn bytes(&mut self) -> Result<Bytes, Malformed> {
        let length = self.u32()? as usize;
        if self.0.len() < length { Err(Malformed::Short) } else { Ok(self.0.split_to(length)) }
    }

    /// Bytes that are text.
    pub fn text(&mut self) -> Result<Bytes, Malformed> {
        let bytes = self.bytes()?;
        if std::str::from_utf8(&bytes).is_ok() { Ok(bytes) } else { Err(Malformed::Text) }
    }

    pub fn string(&mut self) -> Result<String, Malformed> {
        String::from_utf8(self.bytes()?.into()).map_err(|_| Malformed::Text)
    }

    /// A byte that says whether a value follows, and the value.
    pub fn option<T>(&mut self, value: impl FnOnce(&mut Self) -> Result<T, Malformed>) -> Result<Option<T>, Malformed> {
        match self.u8()? {
            0 => Ok(None),
            1 => value(self).map(Some),
            other => Err(Malformed::Value(u64::from(other))),
        }
    }

    pub fn raw(&mut self) -> Result<Raw, Malformed> {
        let (id, key, headers) = (self.text()?, self.option(Self::text)?, self.bytes()?);
        check_headers(headers.clone())?;
        Ok(Raw { id, key, headers, payload: self.bytes()? })
    }

    pub fn message(&mut self) -> Result<Message, Malformed> {
        let raw = self.raw()?;
        let text = |bytes: Bytes| String::from_utf8(bytes.into()).map_err(|_| Malformed::Text);
        let headers = headers(raw.headers)?;
        Ok(Message { id: text(raw.id)?, key: raw.key.map(text).transpose()?, headers, payload: raw.payload })
    }
}

/// Takes the block of headers apart.
pub fn headers(block: Bytes) -> Result<Vec<(String, String)>, Malformed> {
    let mut block = Reader(block);
    let count = block.u16()?;
    (0..count).map(|_| Ok((block.string()?, block.string()?))).collect()
}

/// Whether every reader will understand the block: one that is kept and cannot be read would stop its partition.
fn check_headers(block: Bytes) -> Result<(), Malformed> {
    let mut block = Reader(block);
    for _ in 0..block.u16()? {
        block.text()?;
        block.text()?;
    }
    if block.0.is_empty() { Ok(()) } else { Err(Malformed::Headers) }
}

pub fn put_bytes(out: &mut BytesMut, bytes: &[u8]) {
    out.put_u32(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
    out.put_slice(bytes);
}

pub fn put_option(out: &mut BytesMut, bytes: Option<&[u8]>) {
    out.put_u8(u8::from(bytes.is_some()));
    if let Some(bytes) = bytes {
        put_bytes(out, bytes);
    }
}

/// A message from its parts, the headers as a block.
pub fn put_parts(out: &mut BytesMut, id: &[u8], key: Option<&[u8]>, headers: &[u8], payload: &[u8]) {
    put_bytes(out, id);
    put_option(out, key);
    put_bytes(out, headers);
    put_bytes(out, payload);
}

pub fn put_message(out: &mut BytesMut, message: &Message) {
    put_bytes(out, message.id.as_bytes());
    put_option(out, message.key.as_deref().map(str::as_bytes));
    let length = 2 + message.headers.iter().map(|(name, value)| 8 + name.len() + value.len()).sum::<usize>();
    out.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    // More than that is refused by whoever reads it: its headers do not end with the block.
    out.put_u16(u16::try_from(message.headers.len()).unwrap_or(u16::MAX));
    for (name, value) in &message.headers {
        put_bytes(out, name.as_bytes());
        put_bytes(out, value.as_bytes());
    }
    put_bytes(out, &message.payload);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_message_comes_back_as_it_was(
            id in ".{0,40}", key in proptest::option::of(".{0,20}"), payload in proptest::collection::vec(any::<u8>(), 0..200),
            headers in proptest::collection::vec((".{0,10}", ".{0,30}"), 0..8),
        ) {
            let message = Message { id, key, headers, payload: payload.into() };
            let mut out = BytesMut::new();
            put_message(&mut out, &message);
            let mut reader = Reader(out.freeze());
            prop_assert_eq!(reader.message(), Ok(message));
            prop_assert!(reader.0.is_empty());
        }

        /// What is accepted for keeping is understood by consumers.
        #[test]
        fn a_block_of_headers_is_whole_or_refused(block in proptest::collection::vec(0..4u8, 0..24)) {
            let mut out = BytesMut::new();
            put_parts(&mut out, b"id", None, &block, b"payload");
            let bytes = out.freeze();
            if Reader(bytes.clone()).raw().is_ok() {
                prop_assert!(Reader(bytes).message().is_ok());
            } else {
                prop_assert!(check_headers(block.into()).is_err());
            }
        }

        #[test]
        fn nothing_that_comes_in_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Reader(bytes.clone().into()).message();
            let _ = Frame::take(&mut BytesMut::from(bytes.as_slice()));
        }

        #[test]
        fn frames_come_back_however_they_are_cut(bodies in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..50), 1..6), cut in 1..20usize) {
            let mut stream = BytesMut::new();
            for (number, body) in bodies.iter().enumerate() {
                append_frame(&mut stream, 7, number as u64, |out| out.put_slice(body));
            }
            let (mut buffer, mut found) = (BytesMut::new(), Vec::new());
            for piece in stream.chunks(cut) {
                buffer.put_slice(piece);
                while let Some(frame) = Frame::take(&mut buffer).expect("well formed") {
                    found.push(frame.body.to_vec());
                }
            }
            prop_assert_eq!(found, bodies);
        }
    }

    #[test]
    fn more_headers_than_can_be_counted_are_refused() {
        let message = |count| Message {
            id: "id".to_owned(),
            key: None,
            headers: vec![("a".to_owned(), "b".to_owned()); count],
            payload: Bytes::new(),
        };
        for (count, expected) in [(65_535, Ok(())), (65_536, Err(Malformed::Headers))] {
            let mut out = BytesMut::new();
            put_message(&mut out, &message(count));
            assert_eq!(Reader(out.freeze()).raw().map(drop), expected);
        }
    }
}
