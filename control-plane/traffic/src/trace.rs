//! W3C trace context: what came in is continued, what did not is begun.

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::spans::{Record, What};

pub(crate) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
pub(crate) const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
/// Tells the client under which id its request can be found.
pub(crate) const TRACE_ID: HeaderName = HeaderName::from_static("meshctl-trace-id");

const LENGTH: usize = 55;
const HEX: &[u8; 16] = b"0123456789abcdef";
const SAMPLED: u8 = 1;

/// The trace that a request belongs to, with a new span for what is done here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Trace {
    id: u128,
    /// 0: it begins here.
    parent: u64,
    span: u64,
    flags: u8,
}

impl Trace {
    /// `random` yields uniform values. `sample` decides whether the trace is sampled, given what the one who asks says of
    /// it; `None` if it begins here.
    pub(crate) fn of(
        headers: &HeaderMap,
        random: impl FnMut() -> u64,
        sample: impl FnOnce(Option<bool>) -> bool,
    ) -> Self {
        let mut incoming = headers.get_all(&TRACEPARENT).iter();
        // Two of them contradict each other: the specification says to begin anew.
        let incoming = match (incoming.next(), incoming.next()) {
            (Some(value), None) => Some(value.as_bytes()),
            _ => None,
        };
        Self::after(incoming, random, sample)
    }

    /// A new span below `parent` (the value of a `traceparent`), or in a trace of its own.
    pub(crate) fn after(
        parent: Option<&[u8]>,
        mut random: impl FnMut() -> u64,
        sample: impl FnOnce(Option<bool>) -> bool,
    ) -> Self {
        let (id, parent, flags) = parent.and_then(valid).unwrap_or_else(|| {
            let (high, low) = (random(), random() | 1);
            (u128::from(high) << 64 | u128::from(low), 0, 0)
        });
        let sampled = sample((parent != 0).then_some(flags & SAMPLED != 0));
        let flags = flags & !SAMPLED | if sampled { SAMPLED } else { 0 };
        Self { id, parent, span: random() | 1, flags }
    }

    /// Another span beside this one, below the same parent.
    pub(crate) fn beside(self, mut random: impl FnMut() -> u64) -> Self {
        Self { span: random() | 1, ..self }
    }

    pub(crate) fn id(&self) -> String {
        format!("{:032x}", self.id)
    }

    pub(crate) fn span(&self) -> u64 {
        self.span
    }

    pub(crate) fn sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }

    /// Whether it began elsewhere.
    pub(crate) fn continued(&self) -> bool {
        self.parent != 0
    }

    /// A span of it that says nothing yet but where it belongs: this one.
    pub(crate) fn record(&self, what: What) -> Record {
        let Self { id, parent, span, flags } = *self;
        Record { trace: id, span, parent, began: 0, took: 0, flags, recorded: false, failed: false, what }
    }

    pub(crate) fn id_header(&self) -> HeaderValue {
        let mut text = [0; 32];
        write_hex(&mut text[..16], (self.id >> 64) as u64);
        write_hex(&mut text[16..], self.id as u64);
        header(&text)
    }

    /// The value of `traceparent` for whoever is called by the span `span` of it.
    pub(crate) fn header(&self, span: u64) -> HeaderValue {
        header(&self.text(span))
    }

    /// The value of `traceparent` below this span.
    pub(crate) fn traceparent(&self) -> String {
        self.text(self.span).into_iter().map(char::from).collect()
    }

    fn text(&self, span: u64) -> [u8; LENGTH] {
        let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
        write_hex(&mut text[3..19], (self.id >> 64) as u64);
        write_hex(&mut text[19..35], self.id as u64);
        write_hex(&mut text[36..52], span);
        write_hex(&mut text[53..55], self.flags.into());
        text
    }
}

fn header(text: &[u8]) -> HeaderValue {
    HeaderValue::from_bytes(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

fn write_hex(into: &mut [u8], mut value: u64) {
    for digit in into.iter_mut().rev() {
        *digit = HEX[(value & 15) as usize];
        value >>= 4;
    }
}

/// The number that lower-case hexadecimal digits stand for.
fn read_hex(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0, |value, digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(value << 4 | u64::from(digit))
    })
}

/// The trace id, span id and flags, if the whole is what the specification allows.
fn valid(text: &[u8]) -> Option<(u128, u64, u8)> {
    let (head, tail) = text.split_at_checked(LENGTH)?;
    let dashes = head[2] == b'-' && head[35] == b'-' && head[52] == b'-';
    let version = read_hex(&head[..2])?;
    // A version above ours may append more, after a dash.
    let length = tail.is_empty() || (version != 0 && tail[0] == b'-');
    let id = u128::from(read_hex(&head[3..19])?) << 64 | u128::from(read_hex(&head[19..35])?);
    let (span, flags) = (read_hex(&head[36..52])?, read_hex(&head[53..55])?);
    (dashes && length && version != 0xff && id != 0 && span != 0).then_some((id, span, flags as u8))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn trace(parents: &[&str], sample: impl FnOnce(Option<bool>) -> bool) -> Trace {
        let mut headers = HeaderMap::new();
        for parent in parents {
            headers.append(TRACEPARENT, parent.parse().expect("a header value"));
        }
        Trace::of(&headers, || 0xabc, sample)
    }

    #[test]
    fn a_good_one_is_continued_with_a_new_span() {
        let trace = trace(&[GOOD], |said| said == Some(true));
        assert_eq!(trace.id(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(trace.id_header(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(trace.traceparent(), "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000abd-01");
        assert_eq!(trace.header(7), "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000007-01");
        assert_eq!((trace.parent, trace.continued()), (0x00f0_67aa_0ba9_02b7, true));
    }

    #[test]
    fn whoever_begins_or_refuses_a_sample_says_so_onward() {
        assert!(trace(&[GOOD], |_| false).traceparent().ends_with("-00"));
        assert!(
            trace(&["00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-03"], |_| false)
                .traceparent()
                .ends_with("-02")
        );
        for sampled in [true, false] {
            let begun = trace(&[], |said| said.is_none() && sampled);
            assert_eq!((begun.sampled(), begun.continued(), begun.parent), (sampled, false, 0));
        }
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
            let trace = trace(bad, |said| said.is_some());
            assert_eq!(trace.traceparent(), "00-0000000000000abc0000000000000abd-0000000000000abd-00", "{bad:?}");
        }
    }

    #[test]
    fn a_later_version_is_understood() {
        let later = "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00-what-the-future-brings";
        let trace = trace(&[later], |said| said == Some(true));
        assert!(trace.traceparent().starts_with("00-4bf9") && trace.traceparent().ends_with("-00"));
    }
}
