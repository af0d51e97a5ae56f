//! Who is followed, and who is asked for more.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use meshctl_drivers::Pending;
use meshctl_drivers::gateway::{Gateway, GatewayError};
use meshctl_drivers::spans::Spans;
use meshctl_model::snapshot::{GatewayEvent, GatewayStatus, Snapshot};
use serde_json::json;
use tokio::sync::mpsc;

use super::super::Traces;
use super::super::follow::Process;
use super::super::id::trace_text;

/// A gateway that remembers, and notes what it is asked.
#[derive(Default)]
struct Remembers {
    asked: Mutex<Vec<String>>,
}

impl Gateway for Remembers {
    fn push<'a>(&'a self, _: &'a Snapshot) -> Pending<'a, Result<GatewayStatus, GatewayError>> {
        self.status()
    }

    fn status(&self) -> Pending<'_, Result<GatewayStatus, GatewayError>> {
        Box::pin(async { Err(GatewayError::Unreachable { id: "gateway-1".into(), why: "it only remembers".into() }) })
    }

    fn drained<'a>(&'a self, _: &'a [String], _: std::time::Duration) -> Pending<'a, Result<(), GatewayError>> {
        Box::pin(async { Ok(()) })
    }

    fn events(&self) -> Pending<'_, Result<mpsc::Receiver<GatewayEvent>, GatewayError>> {
        Box::pin(async { Ok(mpsc::channel(1).1) })
    }

    fn spans(&self) -> Pending<'_, Result<mpsc::Receiver<Spans>, GatewayError>> {
        Box::pin(async { Ok(mpsc::channel(1).1) })
    }

    fn recall<'a>(&'a self, trace_ids: &'a [String]) -> Pending<'a, Result<Spans, GatewayError>> {
        self.asked.lock().expect("a lock").extend_from_slice(trace_ids);
        let span = |id: &String| {
            json!({"traceId": id, "spanId": "00000000000000aa", "name": "GET /", "kind": 2,
                "startTimeUnixNano": "1800000000000000000", "endTimeUnixNano": "1800000000010000000"})
        };
        let spans: Vec<_> = trace_ids.iter().filter(|id| id.ends_with('7')).map(span).collect();
        let resource = json!({"attributes": [{"key": "service.name", "value": {"stringValue": "gateway"}}]});
        let batch = json!({"resourceSpans": [{"resource": resource, "scopeSpans": [{"spans": spans}]}]});
        Box::pin(async move { Ok(serde_json::from_value(batch).expect("OTLP")) })
    }
}

#[tokio::test]
async fn a_trace_that_is_not_there_is_asked_of_those_who_remember() {
    let folder = tempfile::tempdir().expect("a folder");
    let (messages, _told) = mpsc::channel(8);
    let (traces, _) = Traces::open(&folder.path().join("traces.db"), messages).expect("opens");
    let gateway = Arc::new(Remembers::default());
    let process = Process::Gateway(Arc::clone(&gateway) as _);
    *traces.processes.lock().expect("a lock") = BTreeMap::from([("gateway-1".to_owned(), process)]);
    let shown = traces.show(&trace_text(7), &Default::default()).await.expect("is remembered");
    assert_eq!((shown.spans.len(), shown.complete, shown.gaps.len()), (1, true, 0));
    // Now it is kept, whole, and nobody is asked.
    traces.show(&trace_text(7), &Default::default()).await.expect("is kept");
    assert_eq!(*gateway.asked.lock().expect("a lock"), [trace_text(7)]);
    let unknown = traces.show(&trace_text(8), &Default::default()).await.expect_err("nobody knows it");
    let hint = unknown.hint.unwrap_or_default();
    assert!(unknown.message.contains("no process remembers it"), "{}", unknown.message);
    assert!(
        hint.contains("1 traces, of the last 1d and up to 1GiB") && hint.contains("0 spans found no room"),
        "{hint}"
    );
    traces.show("a message", &Default::default()).await.expect_err("nobody knows it");
    assert_eq!(*gateway.asked.lock().expect("a lock"), [trace_text(7), trace_text(8)], "a message's id is nobody's");
}
