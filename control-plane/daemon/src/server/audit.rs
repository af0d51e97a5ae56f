//! Who did what, and why.

use axum::Json;
use axum::extract::{Query, State as Extract};
use meshctl_api::view::List;
use meshctl_api::view::messages::AuditEntry;
use serde::Deserialize;
use utoipa::IntoParams;

use super::{Answer, FromShared};

#[derive(Debug, Deserialize, IntoParams)]
#[serde(default)]
pub struct AuditQuery {
    /// The last so many; by default 100.
    limit: u32,
    /// Whether the chain of digests is verified, and nothing shown when it is broken; by default it is.
    verify: bool,
}

impl Default for AuditQuery {
    fn default() -> Self {
        Self { limit: 100, verify: true }
    }
}

/// What was done to messages, and what was refused, oldest first.
#[utoipa::path(get, path = "/v1/audit", params(AuditQuery), responses((status = 200, body = List<AuditEntry>)))]
pub async fn audit(Extract(shared): FromShared, Query(query): Query<AuditQuery>) -> Answer<List<AuditEntry>> {
    Ok(Json(List::of("AuditEntry", shared.audit.entries(query.limit, query.verify).await?)))
}
