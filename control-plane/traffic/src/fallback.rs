//! The answer where a service gives none. It is tagged, and counted apart from success.

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderName, HeaderValue, Response, StatusCode};

use crate::body::Body;

pub(crate) const FALLBACK: HeaderName = HeaderName::from_static("meshctl-fallback");

#[derive(Clone, Debug)]
pub(crate) struct Fallback {
    status: StatusCode,
    content_type: HeaderValue,
    body: Bytes,
}

impl Fallback {
    /// # Errors
    /// When the status or the content type is none.
    pub(crate) fn new(policy: &meshctl_model::topology::Fallback) -> Result<Self, String> {
        let status = policy.status.unwrap_or(200);
        let json = serde_json::from_str::<serde::de::IgnoredAny>(&policy.body).is_ok();
        let content_type = match &policy.content_type {
            Some(given) => given.parse().map_err(|_| format!("`{given}` is not a content type"))?,
            None => HeaderValue::from_static(if json { "application/json" } else { "text/plain; charset=utf-8" }),
        };
        Ok(Self {
            status: StatusCode::from_u16(status).map_err(|_| format!("{status} is not a status"))?,
            content_type,
            body: Bytes::from(policy.body.clone()),
        })
    }

    pub(crate) fn response(&self) -> Response<Body> {
        let mut response = Response::new(Body::full(self.body.clone()));
        *response.status_mut() = self.status;
        response.headers_mut().insert(CONTENT_TYPE, self.content_type.clone());
        response.headers_mut().insert(FALLBACK, HeaderValue::from_static("true"));
        response
    }
}
