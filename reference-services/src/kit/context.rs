//! What a request brings along and every call made for it takes on: the W3C trace and the deadline.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue};

/// The milliseconds that are left of the request's overall deadline.
const DEADLINE: HeaderName = HeaderName::from_static("meshctl-deadline-ms");
pub(super) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
pub(super) const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// The trace and the deadline of the request being answered. A service records no spans of its own, so what it passes on is
/// the caller's `traceparent` unchanged, as the standard asks of such a participant.
#[derive(Clone, Debug)]
pub(crate) struct Context {
    traceparent: HeaderValue,
    tracestate: Option<HeaderValue>,
    deadline: Option<Instant>,
}

impl Context {
    /// The context of a request that came at `now`; a new trace begins where it brought none that is valid.
    pub(crate) fn of(headers: &HeaderMap, now: Instant) -> Self {
        let given = headers.get(TRACEPARENT).filter(|value| is_traceparent(value.as_bytes()));
        let deadline = headers.get(DEADLINE).and_then(|value| value.to_str().ok()?.parse().ok());
        Self {
            traceparent: given.cloned().unwrap_or_else(new_traceparent),
            tracestate: given.and_then(|_| headers.get(TRACESTATE)).cloned(),
            deadline: deadline.map(|ms| now + Duration::from_millis(ms)),
        }
    }

    /// 32 hexadecimal digits.
    pub(crate) fn trace_id(&self) -> &str {
        self.traceparent.to_str().ok().and_then(|text| text.get(3..35)).unwrap_or_default()
    }

    /// What is left of the deadline at `now`; `None` where the request has none.
    pub(crate) fn left(&self, now: Instant) -> Option<Duration> {
        self.deadline.map(|deadline| deadline.saturating_duration_since(now))
    }

    /// The headers for what is done later and on its own account, but because of the request.
    pub(crate) fn trace(&self) -> HeaderMap {
        let mut headers = HeaderMap::with_capacity(3);
        headers.insert(TRACEPARENT, self.traceparent.clone());
        if let Some(state) = &self.tracestate {
            headers.insert(TRACESTATE, state.clone());
        }
        headers
    }

    /// The headers for a call made at `now` on behalf of the request.
    pub(crate) fn onward(&self, now: Instant) -> HeaderMap {
        let mut headers = self.trace();
        if let Some(left) = self.left(now) {
            headers.insert(DEADLINE, HeaderValue::from(u64::try_from(left.as_millis()).unwrap_or(u64::MAX)));
        }
        headers
    }
}

impl<S: Sync> FromRequestParts<S> for Context {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(parts.extensions.get().cloned().unwrap_or_else(|| Self::of(&parts.headers, Instant::now())))
    }
}

/// `00-<32 hex>-<16 hex>-<2 hex>` in lower case with neither id all zeros; later versions may carry more after that.
fn is_traceparent(value: &[u8]) -> bool {
    let hex = |range: std::ops::Range<usize>| {
        value.get(range).is_some_and(|part| part.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
    };
    let zero = |range: std::ops::Range<usize>| value.get(range).is_some_and(|part| part.iter().all(|b| *b == b'0'));
    let dashes = [2, 35, 52].iter().all(|at| value.get(*at) == Some(&b'-'));
    let version = value.get(..2);
    let length = match version {
        Some(b"00") => value.len() == 55,
        Some(b"ff") => false,
        _ => value.len() == 55 || value.get(55) == Some(&b'-'),
    };
    let ids = hex(0..2) && hex(3..35) && hex(36..52) && hex(53..55) && !zero(3..35) && !zero(36..52);
    length && dashes && ids
}

fn new_traceparent() -> HeaderValue {
    let (trace, span) = (rand::random::<u128>() | 1, rand::random::<u64>() | 1);
    HeaderValue::from_str(&format!("00-{trace:032x}-{span:016x}-01")).expect("hexadecimal digits and dashes")
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIVEN: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn headers(pairs: &[(HeaderName, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), HeaderValue::from_str(value).expect("a header"))).collect()
    }

    #[test]
    fn a_given_trace_goes_on_unchanged_with_what_is_left_of_the_deadline() {
        let came = Instant::now();
        let given = [(TRACEPARENT, GIVEN), (TRACESTATE, "vendor=1"), (DEADLINE, "1500")];
        let context = Context::of(&headers(&given), came);
        assert_eq!(context.trace_id(), "4bf92f3577b34da6a3ce929d0e0e4736");
        let onward = context.onward(came + Duration::from_millis(600));
        assert_eq!(onward, headers(&[(TRACEPARENT, GIVEN), (TRACESTATE, "vendor=1"), (DEADLINE, "900")]));
        assert_eq!(context.left(came + Duration::from_secs(2)), Some(Duration::ZERO));
    }

    #[test]
    fn an_invalid_trace_is_replaced_and_its_state_dropped() {
        for bad in [
            "",
            "00-short-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
        ] {
            let context = Context::of(&headers(&[(TRACEPARENT, bad), (TRACESTATE, "vendor=1")]), Instant::now());
            let onward = context.onward(Instant::now());
            assert!(is_traceparent(onward[TRACEPARENT].as_bytes()), "{bad:?} became {onward:?}");
            assert_ne!(onward[TRACEPARENT], bad);
            assert!(!onward.contains_key(TRACESTATE), "{bad:?} kept its state");
        }
    }

    #[test]
    fn a_later_version_may_carry_more() {
        let later = format!("01{}-more", &GIVEN[2..]);
        let context = Context::of(&headers(&[(TRACEPARENT, &later)]), Instant::now());
        assert_eq!(context.trace_id(), "4bf92f3577b34da6a3ce929d0e0e4736");
    }
}
