//! The gateway's own errors, and a courier's, as problem+json (RFC 9457). What a service answers passes untouched: whoever reads an error
//! can tell by `Meshctl-Cause` which of the two it is.

use std::sync::Arc;
use std::time::Duration;

use http::header::{ALLOW, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderName, HeaderValue, Response, StatusCode};

use crate::body::Body;
use crate::breaker::Refused;
use crate::metrics::Refusal;

pub(crate) const CAUSE: HeaderName = HeaderName::from_static("meshctl-cause");

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Cause {
    NoRoute,
    MethodNotAllowed,
    NoEndpoint,
    ConnectFailed,
    Reset,
    AttemptTimeout,
    DeadlineExceeded,
    BreakerOpen,
    BreakerForcedOpen,
    BulkheadFull,
    RateLimited,
    BodyTooLarge,
    BadRequest,
    RequestTimeout,
    // Of a courier.
    NoChannel,
    ChannelFull,
    BrokerAway,
    OutcomeUnknown,
}

impl Cause {
    const fn facts(self) -> (StatusCode, &'static str, &'static str) {
        match self {
            Self::NoRoute => (StatusCode::NOT_FOUND, "noRoute", "No route"),
            Self::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, "methodNotAllowed", "Method not allowed"),
            Self::NoEndpoint => (StatusCode::SERVICE_UNAVAILABLE, "noEndpoint", "No instance"),
            Self::ConnectFailed => (StatusCode::BAD_GATEWAY, "connectFailed", "Instance not reachable"),
            Self::Reset => (StatusCode::BAD_GATEWAY, "reset", "Connection to the instance broke"),
            Self::AttemptTimeout => (StatusCode::GATEWAY_TIMEOUT, "attemptTimeout", "Instance too slow"),
            Self::DeadlineExceeded => (StatusCode::GATEWAY_TIMEOUT, "deadlineExceeded", "Deadline exceeded"),
            Self::BreakerOpen => (StatusCode::SERVICE_UNAVAILABLE, "breakerOpen", "Breaker open"),
            Self::BreakerForcedOpen => {
                (StatusCode::SERVICE_UNAVAILABLE, "breakerForcedOpen", "Breaker opened by an operator")
            }
            Self::BulkheadFull => (StatusCode::SERVICE_UNAVAILABLE, "bulkheadFull", "Too many requests under way"),
            Self::RateLimited => (StatusCode::TOO_MANY_REQUESTS, "rateLimited", "Rate limit reached"),
            Self::BodyTooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "bodyTooLarge", "Request body too large"),
            Self::RequestTimeout => (StatusCode::REQUEST_TIMEOUT, "requestTimeout", "Client too slow"),
            Self::BadRequest => (StatusCode::BAD_REQUEST, "badRequest", "Bad request"),
            Self::NoChannel => (StatusCode::NOT_FOUND, "noChannel", "No such channel"),
            Self::ChannelFull => (StatusCode::SERVICE_UNAVAILABLE, "channelFull", "Channel full"),
            Self::BrokerAway => (StatusCode::SERVICE_UNAVAILABLE, "brokerAway", "Broker away"),
            Self::OutcomeUnknown => (StatusCode::SERVICE_UNAVAILABLE, "outcomeUnknown", "Published or not"),
        }
    }

    pub(crate) const fn name(self) -> &'static str {
        self.facts().1
    }

    pub(crate) const fn status(self) -> StatusCode {
        self.facts().0
    }

    /// Whether nothing was tried, and who saw to that.
    pub(crate) const fn refusal(self) -> Option<Refusal> {
        match self {
            Self::BreakerOpen | Self::BreakerForcedOpen => Some(Refusal::Breaker),
            Self::BulkheadFull | Self::RateLimited => Some(Refusal::Limit),
            _ => None,
        }
    }
}

/// An error of ours on its way to the client.
#[derive(Debug)]
pub(crate) struct Problem {
    pub(crate) cause: Cause,
    pub(crate) detail: String,
    pub(crate) retry_after: Option<Duration>,
    pub(crate) allow: Option<HeaderValue>,
    /// In an operator's words.
    pub(crate) reason: Option<Arc<str>>,
}

/// Where it happened.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Place<'a> {
    pub(crate) edge: Option<&'a str>,
    pub(crate) route: Option<&'a str>,
    pub(crate) trace_id: &'a str,
}

#[derive(serde::Serialize)]
#[serde(rename_all = "camelCase")]
struct Document<'a> {
    r#type: String,
    title: &'a str,
    status: u16,
    detail: &'a str,
    cause: Cause,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    edge: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    route: Option<&'a str>,
    trace_id: &'a str,
}

impl Problem {
    pub(crate) fn new(cause: Cause, detail: impl Into<String>) -> Self {
        Self { cause, detail: detail.into(), retry_after: None, allow: None, reason: None }
    }

    /// What the breaker of `edge` says to whom it refuses.
    pub(crate) fn refused(edge: &str, refused: &Refused) -> Self {
        let (cause, why) = match (refused.forced, &refused.reason) {
            (false, _) => (Cause::BreakerOpen, format!("the breaker of {edge} is open")),
            (true, None) => (Cause::BreakerForcedOpen, format!("an operator has opened the breaker of {edge}")),
            (true, Some(reason)) => {
                (Cause::BreakerForcedOpen, format!("an operator has opened the breaker of {edge}: {reason}"))
            }
        };
        Self { reason: refused.reason.clone(), ..Self::new(cause, why).retry_after(refused.wait) }
    }

    pub(crate) fn retry_after(mut self, nanos: u64) -> Self {
        self.retry_after = Some(Duration::from_nanos(nanos));
        self
    }

    pub(crate) fn into_response(self, place: Place<'_>) -> Response<Body> {
        let (status, name, title) = self.cause.facts();
        let document = Document {
            r#type: format!("urn:meshctl:problem:{name}"),
            title,
            status: status.as_u16(),
            detail: &self.detail,
            cause: self.cause,
            reason: self.reason.as_deref(),
            edge: place.edge,
            route: place.route,
            trace_id: place.trace_id,
        };
        let text = serde_json::to_vec(&document).unwrap_or_default();
        let mut response = Response::new(Body::full(text));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(CAUSE, HeaderValue::from_static(name));
        if let Some(after) = self.retry_after {
            // Whole seconds, rounded up: who comes back then is let in.
            headers.insert(RETRY_AFTER, HeaderValue::from(after.as_nanos().div_ceil(1_000_000_000).max(1) as u64));
        }
        if let Some(allow) = self.allow {
            headers.insert(ALLOW, allow);
        }
        response
    }
}
