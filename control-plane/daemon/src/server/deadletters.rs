//! Dead letters: looked at, dealt with, and carried from one store to another.

use axum::Json;
use axum::body::Body as HttpBody;
use axum::extract::{ConnectInfo, Path, Query, Request, State as Extract};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use meshctl_api::error::{ApiError, ErrorCode};
use meshctl_api::view::List;
use meshctl_api::view::messages::{
    DeadLetter, DeadLetterGroup, DeadLetterOutcome, DeadLetterQuery, DeadLetterRequest, ImportQuery,
};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use super::{Answer, Body, Failure, FromShared, Peer, Shared};
use crate::dead_letters::{Action, Import};
use crate::operate::Asked;

/// The longest line of an import: the largest message in base64, with its headers and history.
const LONGEST: usize = 64 << 20;

/// Dead letters, the latest failure first; with `groupBy` a List of DeadLetterGroup. Those that are processed or discarded are
/// there only where the filter asks for a state, or ids are given.
#[utoipa::path(get, path = "/v1/deadletters", params(DeadLetterQuery), responses(
    (status = 200, description = "With `groupBy`: List of DeadLetterGroup", body = List<DeadLetter>),
    (status = "2XX", description = "The form with `groupBy`", body = List<DeadLetterGroup>)))]
pub async fn list(Extract(shared): FromShared, Query(query): Query<DeadLetterQuery>) -> Result<Response, Failure> {
    let letters = &shared.dead_letters;
    if query.group_by.is_some() {
        return Ok(Json(List::of("DeadLetterGroup", letters.group(query).await?)).into_response());
    }
    Ok(Json(List::of("DeadLetter", letters.list(query).await?)).into_response())
}

/// One dead letter with its headers, payload and history.
#[utoipa::path(get, path = "/v1/deadletters/{id}", params(("id" = String, Path)),
    responses((status = 200, body = DeadLetter)))]
pub async fn show(Extract(shared): FromShared, Path(id): Path<String>) -> Answer<DeadLetter> {
    Ok(Json(shared.dead_letters.show(id).await?))
}

/// Gives up dead letters that are dead or parked. Those in other states are left out, as long as there are any.
#[utoipa::path(post, path = "/v1/deadletters/discard", request_body = DeadLetterRequest,
    responses((status = 200, body = DeadLetterOutcome)))]
pub async fn discard(
    Extract(shared): FromShared,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Body(request): Body<DeadLetterRequest>,
) -> Answer<DeadLetterOutcome> {
    change(&shared, peer, Action::Discard, request).await
}

/// Puts dead letters aside: no replay takes them until they are restored.
#[utoipa::path(post, path = "/v1/deadletters/park", request_body = DeadLetterRequest,
    responses((status = 200, body = DeadLetterOutcome)))]
pub async fn park(
    Extract(shared): FromShared,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Body(request): Body<DeadLetterRequest>,
) -> Answer<DeadLetterOutcome> {
    change(&shared, peer, Action::Park, request).await
}

/// Makes dead letters that are parked or discarded dead again; also those that a cancelled replay has issued and that never came
/// back, which may be processed twice if they do after all, and are asked for by id. The discarded ones have to be asked for by id or by state.
#[utoipa::path(post, path = "/v1/deadletters/restore", request_body = DeadLetterRequest,
    responses((status = 200, body = DeadLetterOutcome)))]
pub async fn restore(
    Extract(shared): FromShared,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Body(request): Body<DeadLetterRequest>,
) -> Answer<DeadLetterOutcome> {
    change(&shared, peer, Action::Restore, request).await
}

async fn change(
    shared: &Shared,
    peer: Peer,
    action: Action,
    mut request: DeadLetterRequest,
) -> Answer<DeadLetterOutcome> {
    let asked = Asked { by: peer.name(), reason: request.reason.take() };
    Ok(Json(shared.dead_letters.change(action, request, asked).await?))
}

/// NDJSON of DeadLetter with history, headers and payloadBase64, oldest first.
#[utoipa::path(get, path = "/v1/deadletters/export", params(DeadLetterQuery),
    responses((status = 200, content_type = "application/x-ndjson", body = DeadLetter)))]
pub async fn export(Extract(shared): FromShared, Query(query): Query<DeadLetterQuery>) -> Result<Response, Failure> {
    let letters = shared.dead_letters.export(query).await?;
    let lines = ReceiverStream::new(letters).map(|letter| {
        // An error breaks the answer off, so that nobody takes a part for the whole.
        let letter: DeadLetter = letter.map_err(|why| std::io::Error::other(why.message))?;
        let mut text = serde_json::to_string(&letter)?;
        text.push('\n');
        Ok::<_, std::io::Error>(text)
    });
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], HttpBody::from_stream(lines)).into_response())
}

/// Takes in the NDJSON of an export, as dead letters that are dead. What is there already is left alone, so that an import
/// that broke off can be done again. With `dryRun` nothing changes, and `changed` is how many would be added.
#[utoipa::path(post, path = "/v1/deadletters/import", params(ImportQuery),
    request_body(content = DeadLetter, content_type = "application/x-ndjson"),
    responses((status = 200, body = DeadLetterOutcome)))]
pub async fn import(
    Extract(shared): FromShared,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Query(query): Query<ImportQuery>,
    request: Request,
) -> Answer<DeadLetterOutcome> {
    let asked = Asked { by: peer.name(), reason: query.reason };
    let mut import = shared.dead_letters.import(asked, query.dry_run);
    let done = match lines(&mut import, request.into_body()).await {
        Ok(()) => import.finish().await,
        Err(why) => Err(why),
    };
    if let Err(why) = &done {
        import.failed(why).await;
    }
    Ok(Json(done?))
}

/// Feeds the body to the import line by line, holding no more than one of them and a piece.
async fn lines(import: &mut Import, body: HttpBody) -> Result<(), ApiError> {
    let mut pieces = body.into_data_stream();
    let mut line = Vec::new();
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(|why| ApiError::new(ErrorCode::Invalid, format!("the import broke off: {why}")))?;
        let mut rest = piece.as_ref();
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            line.extend_from_slice(&rest[..end]);
            import.line(&line).await?;
            line.clear();
            rest = &rest[end + 1..];
        }
        line.extend_from_slice(rest);
        if line.len() > LONGEST {
            let message = format!("cannot import a line of more than {} MiB", LONGEST >> 20);
            return Err(ApiError::new(ErrorCode::Invalid, message));
        }
    }
    import.line(&line).await
}
