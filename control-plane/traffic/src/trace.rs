//! W3C trace context: what came in is continued, what did not is begun.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};

pub(crate) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
pub(crate) const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
/// Tells the client under which id its request can be found.
pub(crate) const TRACE_ID: HeaderName = HeaderName::from_static("meshctl-trace-id");

const LENGTH: usize = 55;
const HEX: &[u8; 16] = b"0123456789abcdef";

/// The trace that a request belongs to, with a new span id for this hop.
#[derive(Clone, Debug)]
pub(crate) struct Trace {
    /// `00-<trace id>-<span id>-<flags>`.
    parent: Bytes,
    continued: bool,
}

impl Trace {
    /// `random` yields uniform values.
    pub(crate) fn of(headers: &HeaderMap, random: impl FnMut() -> u64) -> Self {
        let mut incoming = headers.get_all(&TRACEPARENT).iter();
        // Two of them contradict each other: the specification says to begin anew.
        let incoming = match (incoming.next(), incoming.next()) {
            (Some(value), None) => Some(value.as_bytes()),
            _ => None,
        };
        Self::after(incoming, random)
    }

    /// A new span below `parent` (the value of a `traceparent`), or in a trace of its own.
    pub(crate) fn after(parent: Option<&[u8]>, mut random: impl FnMut() -> u64) -> Self {
        let incoming = parent.and_then(valid);
        let mut text = *b"00-00000000000000000000000000000000-0000000000000000-01";
        match incoming {
            Some((id, flags)) => {
                text[3..35].copy_from_slice(id);
                text[53..55].copy_from_slice(flags);
            }
            None => {
                write_hex(&mut text[3..19], random());
                write_hex(&mut text[19..35], random() | 1);
            }
        }
        write_hex(&mut text[36..52], random() | 1);
        Self { parent: Bytes::copy_from_slice(&text), continued: incoming.is_some() }
    }

    pub(crate) fn id(&self) -> &str {
        std::str::from_utf8(&self.parent[3..35]).unwrap_or_default()
    }

    /// Whether it began elsewhere.
    pub(crate) fn continued(&self) -> bool {
        self.continued
    }

    /// The value of `traceparent`.
    pub(crate) fn parent(&self) -> &str {
        std::str::from_utf8(&self.parent).unwrap_or_default()
    }

    pub(crate) fn id_header(&self) -> HeaderValue {
        header(self.parent.slice(3..35))
    }

    /// For the next hop. The state of a trace that we begin would belong to another one.
    pub(crate) fn carry(&self, headers: &mut HeaderMap) {
        headers.insert(TRACEPARENT, header(self.parent.clone()));
        if !self.continued {
            headers.remove(TRACESTATE);
        }
    }
}

fn header(text: Bytes) -> HeaderValue {
    HeaderValue::from_maybe_shared(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

fn write_hex(into: &mut [u8], mut value: u64) {
    for digit in into.iter_mut().rev() {
        *digit = HEX[(value & 15) as usize];
        value >>= 4;
    }
}

/// The trace id and flags, if the whole is what the specification allows.
fn valid(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let hex = |part: &[u8]| part.iter().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'));
    let zero = |part: &[u8]| part.iter().all(|c| *c == b'0');
    let (head, tail) = text.split_at_checked(LENGTH)?;
    let (version, id, span, flags) = (&head[..2], &head[3..35], &head[36..52], &head[53..55]);
    let dashes = head[2] == b'-' && head[35] == b'-' && head[52] == b'-';
    // A version above ours may append more, after a dash.
    let length = tail.is_empty() || (version != b"00" && tail[0] == b'-');
    (dashes
        && length
        && version != b"ff"
        && [version, id, span, flags].into_iter().all(hex)
        && !zero(id)
        && !zero(span))
    .then_some((id, flags))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn trace(parents: &[&str]) -> (Trace, HeaderMap) {
        let mut headers = HeaderMap::new();
        for parent in parents {
            headers.append(TRACEPARENT, parent.parse().expect("a header value"));
        }
        headers.insert(TRACESTATE, HeaderValue::from_static("vendor=1"));
        let trace = Trace::of(&headers, || 0xabc);
        trace.carry(&mut headers);
        (trace, headers)
    }

    #[test]
    fn a_good_one_is_continued_with_a_new_span() {
        let (trace, headers) = trace(&[GOOD]);
        assert_eq!(trace.id(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(headers[TRACEPARENT], "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000abd-01");
        assert_eq!(headers[TRACESTATE], "vendor=1");
    }

    #[test]
    fn a_bad_one_is_begun_anew() {
        for bad in [
            &["", GOOD][..],
            &[GOOD, GOOD],
            &["00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01"],
            &["00-00000000000000000000000000000000-00f067aa0ba902b7-01"],
            &["00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01"],
            &["ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"],
            &["00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more"],
            &["nonsense"],
        ] {
            let (trace, headers) = trace(bad);
            assert_eq!(trace.id(), "0000000000000abc0000000000000abd", "{bad:?}");
            assert!(!headers.contains_key(TRACESTATE), "{bad:?}");
            assert_eq!(headers.get_all(TRACEPARENT).iter().count(), 1);
        }
    }

    #[test]
    fn a_later_version_is_understood() {
        let (trace, headers) =
            trace(&["cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00-what-the-future-brings"]);
        assert_eq!(trace.id(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert!(
            headers[TRACEPARENT].as_bytes().starts_with(b"00-") && headers[TRACEPARENT].as_bytes().ends_with(b"-00")
        );
    }
}
