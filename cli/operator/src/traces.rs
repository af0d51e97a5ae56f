//! Which trace is meant: by its id, by the first digits of it, or by the id of a message.

use meshctl_api::client::Client;
use meshctl_api::error::ErrorCode;
use meshctl_api::view::traces::{Trace, TraceQuery};

use crate::failure::Failure;

/// Fewer digits than this mean nothing.
const SHORTEST: usize = 6;
/// So many digits are shown where there is no room for all of them: enough to find the trace by.
pub(crate) const SHORT: usize = 12;
/// How many digits an id has.
const DIGITS: usize = 32;
/// Among so many of the latest it is looked for by its first digits.
const LATEST: u32 = 1000;

/// The trace that `text` means.
///
/// # Errors
/// Not found; usage where several begin with these digits.
pub(crate) async fn resolve(client: &Client, text: &str) -> Result<Trace, Failure> {
    let id = bare(text);
    let error = match client.trace(&id).await {
        Err(error) if error.code == ErrorCode::NotFound && is_start(&id) => error,
        answer => return Ok(answer?),
    };
    let latest = client.traces(&TraceQuery { limit: Some(LATEST), ..TraceQuery::default() }).await?.items;
    let mut found: Vec<String> =
        latest.into_iter().map(|trace| trace.trace_id).filter(|it| it.starts_with(&id)).collect();
    found.sort();
    match found.as_slice() {
        [] => Err(error.into()),
        [one] => Ok(client.trace(one).await?),
        several => Err(Failure::usage(format!("{} traces begin with {id}", several.len()))
            .hint(format!("write more digits: {}", several.join(", ")))),
    }
}

/// The id of the trace that `text` means, which need not be stored where it is written in full.
pub(crate) async fn full_id(client: &Client, text: &str) -> Result<String, Failure> {
    let id = bare(text);
    if id.len() == DIGITS && is_hex(&id) { Ok(id) } else { Ok(resolve(client, text).await?.trace_id) }
}

/// Without its kind, as `-o name` writes it.
pub(crate) fn bare(text: &str) -> String {
    let id = text.strip_prefix("trace/").or_else(|| text.strip_prefix("tr/")).unwrap_or(text);
    if is_hex(id) { id.to_lowercase() } else { id.to_owned() }
}

fn is_start(id: &str) -> bool {
    (SHORTEST..DIGITS).contains(&id.len()) && is_hex(id)
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_hexdigit())
}
