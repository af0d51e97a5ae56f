//! What an HTTP answer means for the message that was delivered.
//!
//! A gateway stands before the subscriber, and says of its own answers why (`Meshctl-Cause`): most of them mean that the
//! subscriber has never seen the message, which is nobody's failed attempt.

use std::time::Duration;

use http::header::RETRY_AFTER;
use http::{HeaderMap, StatusCode};
use jiff::Timestamp;
use meshctl_model::message::Failure;

use crate::problem::{CAUSE, Cause};

/// `None`: the subscriber has it.
pub(crate) fn failure(status: StatusCode, headers: &HeaderMap) -> Option<Failure> {
    if status.is_success() {
        return None;
    }
    let cause = headers.get(CAUSE).and_then(|cause| cause.to_str().ok());
    Some(match cause {
        Some(
            "noRoute" | "noEndpoint" | "connectFailed" | "breakerOpen" | "breakerForcedOpen" | "bulkheadFull"
            | "rateLimited",
        ) => Failure::Unreachable,
        Some("attemptTimeout" | "deadlineExceeded") => Failure::Timeout,
        _ => match status.as_u16() {
            408 | 425 | 429 | 500.. => Failure::Refused,
            _ => Failure::Rejected,
        },
    })
}

/// `Retry-After`, in seconds or as a date. Not that of a breaker that an operator has opened: it may be taken back long before,
/// and a look every few seconds costs nothing.
pub(crate) fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    if headers.get(CAUSE).is_some_and(|cause| cause == Cause::BreakerForcedOpen.name()) {
        return None;
    }
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
    Duration::try_from(date.duration_since(now)).ok()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn statuses_and_causes() {
        let plain = HeaderMap::new();
        let of = |status: u16| failure(StatusCode::from_u16(status).expect("a status"), &plain);
        for status in [200, 201, 202, 204, 299] {
            assert_eq!(of(status), None, "{status}");
        }
        for status in [408, 425, 429, 500, 502, 503, 504, 599] {
            assert_eq!(of(status), Some(Failure::Refused), "{status}");
        }
        for status in [301, 302, 304, 400, 401, 404, 409, 410, 413, 415, 422, 499] {
            assert_eq!(of(status), Some(Failure::Rejected), "{status}");
        }
        for (status, cause, means) in [
            (503, "noEndpoint", Failure::Unreachable),
            (502, "connectFailed", Failure::Unreachable),
            (503, "breakerOpen", Failure::Unreachable),
            (503, "breakerForcedOpen", Failure::Unreachable),
            (503, "bulkheadFull", Failure::Unreachable),
            (429, "rateLimited", Failure::Unreachable),
            // The edge is being changed: nothing that the message could help.
            (404, "noRoute", Failure::Unreachable),
            (504, "attemptTimeout", Failure::Timeout),
            (504, "deadlineExceeded", Failure::Timeout),
            (502, "reset", Failure::Refused),
            (408, "requestTimeout", Failure::Refused),
            (413, "bodyTooLarge", Failure::Rejected),
            (500, "of another making", Failure::Refused),
        ] {
            let headers = HeaderMap::from_iter([(CAUSE, HeaderValue::from_static(cause))]);
            let status = StatusCode::from_u16(status).expect("a status");
            assert_eq!(failure(status, &headers), Some(means), "{cause}");
        }
    }

    #[test]
    fn retry_after_in_both_forms() {
        let now: Timestamp = "1994-11-06T08:49:00Z".parse().expect("a time");
        let of = |text: &str| {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_str(text).expect("a value"))]);
            retry_after(&headers, now)
        };
        assert_eq!(of("120"), Some(Duration::from_secs(120)));
        assert_eq!(of("0"), Some(Duration::ZERO));
        assert_eq!(of("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::from_secs(37)));
        assert_eq!(of("Sun, 06 Nov 1994 08:48:37 GMT"), None);
        assert_eq!(of("soon"), None);
        assert_eq!(of("-1"), None);
    }
}
