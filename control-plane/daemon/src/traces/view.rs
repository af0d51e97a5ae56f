//! Traces as the API shows them.

use std::collections::BTreeSet;

use jiff::Timestamp;
use meshctl_api::error::{ApiError, ErrorCode};
use meshctl_api::view::traces::{Trace, TraceList, TraceQuery, TraceStore};
use meshctl_model::API_VERSION;
use meshctl_model::trace::{Subscriptions, assemble};
use meshctl_model::units::{Bytes, Span as Length};

use super::follow::recall;
use super::read::{Wanted, Whole, whole};
use super::{Traces, id};

impl Traces {
    /// # Errors
    /// When the query cannot be, or the store cannot be read. So it is with all that follow.
    pub async fn list(&self, query: &TraceQuery) -> Result<TraceList, ApiError> {
        let wanted = Wanted::of(query, Timestamp::now())?;
        let items = self.store.read("list traces", move |from| wanted.list(from)).await?;
        let store = self.store.state().await?;
        Ok(TraceList { api_version: API_VERSION.into(), kind: "TraceList".into(), items, store })
    }

    pub async fn state(&self) -> Result<TraceStore, ApiError> {
        self.store.state().await
    }

    /// By the id of a trace, or of a message of it. Where it is not there, or not whole, those who may still remember are asked
    /// first.
    pub async fn show(&self, asked: &str, subscriptions: &Subscriptions) -> Result<Trace, ApiError> {
        let mut shown = self.find(asked, subscriptions).await?;
        if shown.as_ref().is_none_or(|trace| !trace.complete) {
            let of_shown = shown.iter().flat_map(|trace| trace.joined.iter().chain([&trace.trace_id]).cloned());
            let asked_for = id::trace(asked).map(id::trace_text).into_iter().chain(of_shown);
            let ids: Vec<String> = BTreeSet::from_iter(asked_for).into_iter().collect();
            let heard = if ids.is_empty() { Vec::new() } else { recall(&self.processes, &ids).await };
            if !heard.is_empty() {
                for read in heard {
                    self.store.write(read.batch).await;
                }
                shown = self.find(asked, subscriptions).await?;
            }
        }
        match shown {
            Some(trace) => Ok(trace),
            None => Err(self.unknown(asked).await?),
        }
    }

    async fn find(&self, asked: &str, subscriptions: &Subscriptions) -> Result<Option<Trace>, ApiError> {
        let (asked, subscriptions) = (asked.to_owned(), subscriptions.clone());
        // What is put together is large, and done where it was read: beside the threads that answer others.
        let find =
            move |from: &rusqlite::Connection| Ok(whole(from, &asked)?.map(|whole| shown(whole, &subscriptions)));
        self.store.read("show a trace", find).await
    }

    async fn unknown(&self, asked: &str) -> Result<ApiError, ApiError> {
        let TraceStore { traces, keep_ms, max_size_bytes, dropped_spans, evicted_traces, .. } =
            self.store.state().await?;
        let hint = format!(
            "the store has {traces} traces, of the last {} and up to {}; it has removed {evicted_traces} since, and {dropped_spans} \
             spans found no room. A trace that was not sampled is kept only where something failed or was slow. `meshctl trace --last` lists the newest",
            Length::from_millis(keep_ms),
            Bytes(max_size_bytes),
        );
        let message =
            format!("there is no trace `{asked}`, and no message of that id in one; no process remembers it either");
        Ok(ApiError::new(ErrorCode::NotFound, message).hint(hint))
    }
}

fn shown(whole: Whole, subscriptions: &Subscriptions) -> Trace {
    let trace_id = id::trace_text(whole.trace);
    let start_at = whole.spans.iter().map(|span| span.start_at).min().unwrap_or_default();
    let end_at = whole.spans.iter().map(|span| span.end_at()).max().unwrap_or_default();
    let tree = assemble(whole.spans.clone(), subscriptions);
    let mut gaps: Vec<String> = tree.gaps.iter().map(ToString::to_string).collect();
    if whole.cut {
        gaps.push("it has more than can be shown: some of the traces that are joined to it are left out".into());
    }
    Trace {
        api_version: API_VERSION.into(),
        kind: "Trace".into(),
        name: trace_id.clone(),
        trace_id,
        start_at,
        duration_ms: end_at.duration_since(start_at).as_nanos() as f64 / 1e6,
        complete: gaps.is_empty(),
        gaps,
        message_ids: whole.message_ids(),
        spans: whole.spans,
        joined: whole.joined.into_iter().map(id::trace_text).collect(),
    }
}
