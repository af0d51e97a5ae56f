//! Where everything is that channels have accepted.

use axum::Json;
use axum::extract::State as Extract;
use meshctl_api::view::List;
use meshctl_api::view::messages::LedgerEntry;

use super::{Answer, FromShared};
use crate::messaging::wanted;

/// One entry for each subscription, each figure counted on its own; `missing` is what cannot be accounted for.
#[utoipa::path(get, path = "/v1/ledger", responses((status = 200, body = List<LedgerEntry>)))]
pub async fn ledger(Extract(shared): FromShared) -> Answer<List<LedgerEntry>> {
    let wanted = shared.look(|control| Ok(wanted(&control.state))).await?;
    Ok(Json(List::of("LedgerEntry", shared.messaging.ledger(&wanted).await?)))
}
